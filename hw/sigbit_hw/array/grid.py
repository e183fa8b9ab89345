# amaranth: UnusedElaboratable=no
"""The grid: rows x columns of dot-product cells with their edges."""

from dataclasses import dataclass, fields

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..arith.multiplier import multiplier
from ..arith.operand import lookup
from ..lib.delay import delayed
from ..lib.shared import instantiate
from ..lib.tree import adder_tree, sign_parent, tree_levels
from .cell import DotProductCell, swap_stages, weight_lane

__all__ = ["BUS_COLUMNS", "Grid", "GridShape", "GridTiming", "bus_cycles", "bus_stage", "grid_members"]

#: Columns that share one stage of the weight bus.
BUS_COLUMNS = 16
#: Cycles from a weight word at the port to the load of its column: recoding and the bus.
LOAD_CYCLES = 2


@dataclass(frozen=True, kw_only=True)
class GridShape:
    """Geometry of a grid: fields of :class:`~sigbit_hw.spec.config.AcceleratorConfig`."""

    rows: int
    lanes: int
    columns: int
    weight_columns: int
    planes: int
    sum_bits: int
    fill_columns: int
    table_weight_bits: int = 0
    table_product_bits: int = 0
    token_lanes: int = 1

    @classmethod
    def of(cls, config):
        """Geometry of the grid of a configuration."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    @property
    def vector(self):
        """Activations that enter per plane."""
        return self.rows * self.lanes


def bus_cycles(weight_columns):
    """Cycles from one stage of the weight bus to the next.

    Words of several columns would overtake the swap that moves one column per cycle: the bus slows them down, so that
    they run ahead of it within a stage only.
    """
    return max(1, BUS_COLUMNS - BUS_COLUMNS // weight_columns)


def bus_stage(m, bus, column, cycles, name="bus"):
    """The weight bus as ``column`` sees it: at the first column of a group ``cycles`` later, at the grid's first one.

    ``bus`` is a list of values; the first two say what is loaded, and only they need a reset.
    """
    if column % BUS_COLUMNS:
        return bus
    return [
        delayed(m, value, cycles if column else 1, name=f"{name}_{index}_{column}", clear=index < 2)
        for index, value in enumerate(bus)
    ]


def constant_cycles(rows, lanes):
    """Cycles from the recoded weights of a column to the constant of their signs."""
    return max(tree_levels(lanes) + tree_levels(rows), tree_levels(rows * lanes)) + 2


class WeightEdge(wiring.Component):
    """Recodes the weight word of one column for its cells and computes the constant of its signs.

    Cells add ``sum((-1)**s * p) + Z`` (:class:`~.cell.DotProductCell`); the array owes ``sum((-1)**s * p) - C`` with
    ``C`` set sign bits (numerics 5.2). So each column's chain of sums starts from ``-C - sum(Z)``, which the same
    adder tree over zero products and a count of the signs give once for all columns.

    Members
    -------
    word : ``In``
        Weight codes ``{sign, magnitude code}`` of all rows, lane 0 of row 0 lowest.
    cells : ``Out``
        What the cells take, per row and lane, one cycle later.
    constant : ``Out(signed(sum_bits))``
        ``constant_cycles()`` after ``cells``.
    """

    def __init__(self, weight_format, activation_format, *, rows, lanes, sum_bits):
        self._multiplier = multiplier(weight_format, activation_format)
        self._rows = rows
        self._lanes = lanes
        self._code = data.StructLayout({"magnitude": weight_format.magnitude_code_bits, "sign": 1})
        lane = weight_lane(weight_format, activation_format)
        super().__init__(
            {
                "word": In(data.ArrayLayout(self._code, rows * lanes)),
                "cells": Out(data.ArrayLayout(lane, rows * lanes)),
                "constant": Out(signed(sum_bits)),
            }
        )

    def elaborate(self, platform):
        m = Module()

        signs = Signal(self._rows * self._lanes)
        for index, code in enumerate(self.word):
            lane = index % self._lanes
            parent = index - lane + sign_parent(lane)[1] if lane else None
            word = lookup(self._multiplier.weight_table, code.magnitude, self._multiplier.weight_bits)
            m.d.sync += [
                self.cells[index].word.eq(word),
                self.cells[index].agrees.eq(~code.sign if parent is None else ~(code.sign ^ self.word[parent].sign)),
                signs[index].eq(code.sign),
            ]

        zero = Const(self._multiplier.zero, self._multiplier.product_bits)
        owed = []
        for row in range(self._rows):
            cells = [self.cells[row * self._lanes + lane] for lane in range(self._lanes)]
            agrees = [delayed(m, cells[0].agrees, tree_levels(self._lanes), name=f"positive_{row}")]
            for lane in range(1, self._lanes):
                level, _ = sign_parent(lane)
                agrees.append(delayed(m, cells[lane].agrees, level - 1, name=f"agrees_{row}_{lane}"))
            root = adder_tree(m, [zero] * self._lanes, agrees, name=f"zero_{row}")
            owed.append(delayed(m, root ^ agrees[0].replicate(len(root)), 1, name=f"owed_{row}"))
        total = adder_tree(m, owed, name="owed")
        # Cells subtract the complement of a root and 1: one more per row.
        count = adder_tree(m, list(signs), name="count")
        correction = Signal.like(self.constant)
        m.d.sync += correction.eq(self._rows - count)

        last = constant_cycles(self._rows, self._lanes) - 1
        total = delayed(m, total, last - 1 - tree_levels(self._lanes) - tree_levels(self._rows), name="owed_late")
        correction = delayed(m, correction, last - 1 - tree_levels(len(signs)), name="correction_late")
        m.d.sync += self.constant.eq(total + correction)
        return m


@dataclass(frozen=True)
class GridTiming:
    """Cycles of a grid.

    Attributes
    ----------
    edge_cycles : int
        From ``codes`` to the first cell: an input register, the decoder, and as many as the constants of the weights
        need to be in time.
    latency_cycles : int
        From ``codes`` to the sums of column 0; column ``c`` is ``c`` cycles later.
    weight_hold_cycles : int
        From ``swap`` until the first word of the next weights may be given; the others may follow, one per cycle in
        ascending order.
    weight_lead_cycles : int
        From the first word of a tile until its ``swap``, if the others follow one per cycle.
    fill_columns : int
        Of tables: how much longer that is per cycle that one column's tables take (:func:`~..spec.parts.fill_steps`).
    """

    edge_cycles: int
    latency_cycles: int
    weight_hold_cycles: int
    weight_lead_cycles: int
    fill_columns: int = 0

    @classmethod
    def of(cls, weight_format, activation_format, shape):
        """Timing for two formats and a :class:`GridShape`."""
        stages = swap_stages(weight_format, activation_format, shape.lanes)
        constant = constant_cycles(shape.rows, shape.lanes)
        edge = 2 + max(0, constant - stages + 1)
        # The swap of a column comes `column` cycles after that of column 0. How much later than that its weights come:
        late = [
            LOAD_CYCLES
            + column // BUS_COLUMNS * bus_cycles(shape.weight_columns)
            + column // shape.weight_columns
            - column
            for column in range(shape.columns)
        ]
        # When the last stage of the last row has the old weights; when the first stage and the constant take new ones.
        freed = edge + shape.rows - 1 + stages - 1
        needed = edge + min(-1, stages - 2 - constant)
        return cls(edge, edge + shape.rows + stages, freed - min(late), max(0, max(late) - needed))


def grid_members(weight_format, activation_format, shape):
    """Ports of a grid of any cell, as :class:`Grid` describes them."""
    return {
        "codes": In(data.ArrayLayout(activation_format.bits, shape.planes * shape.vector)),
        "swap": In(1),
        "weight": In(
            data.StructLayout(
                {
                    "valid": 1,
                    "index": range(-(-shape.columns // shape.weight_columns)),
                    "word": data.ArrayLayout(weight_format.bits * shape.vector, shape.weight_columns),
                }
            )
        ),
        "sums": Out(data.ArrayLayout(signed(shape.sum_bits), shape.planes * shape.columns)),
    }


class Grid(wiring.Component):
    """Sums of ``rows * lanes`` products for every column and plane, systolic.

    Activations of all planes enter together; column ``c`` delivers ``timing.latency_cycles + c`` cycles later. The
    sum is ``sum(weight * activation)`` minus the number of weight sign bits in the column (numerics 5.2).

    Weights: the words of a tile are given one per cycle in ascending order, the first at least
    ``timing.weight_hold_cycles`` after the last ``swap``. The ``swap`` that makes them active may come
    ``timing.weight_lead_cycles`` after the first word, while the others follow; it takes effect on the activations of
    its own cycle. A column that got no new word repeats the one it has.

    Parameters
    ----------
    weight_format, activation_format : :class:`Format`
        Native formats.
    shape : :class:`GridShape`

    Members
    -------
    codes : ``In``
        Activation codes, plane by plane, row by row, lane 0 lowest.
    swap : ``In(1)``
        The weights loaded last are used from these codes on.
    weight : ``In``
        ``valid``, ``index`` and ``word``, the sign-magnitude codes of ``weight_columns`` columns from
        ``index * weight_columns``, lane 0 of row 0 of the first column lowest.
    sums : ``Out``
        Plane by plane, column by column.
    """

    def __init__(self, weight_format, activation_format, shape):
        self._formats = (weight_format, activation_format)
        self._multiplier = multiplier(weight_format, activation_format)
        self._shape = shape
        self._stages = swap_stages(weight_format, activation_format, shape.lanes)
        #: :class:`GridTiming`
        self.timing = GridTiming.of(weight_format, activation_format, shape)
        super().__init__(grid_members(weight_format, activation_format, shape))

    def elaborate(self, platform):
        m = Module()
        shape = self._shape

        # Edge of the activations.
        codes = delayed(m, self.codes, self.timing.edge_cycles - 1, name="codes")
        table = self._multiplier.activation_table
        bits = self._multiplier.activation_bits
        skewed = {}
        for row in range(shape.rows):
            for plane in range(shape.planes):
                first = plane * shape.vector + row * shape.lanes
                decoded = Cat(lookup(table, codes[first + lane], bits) for lane in range(shape.lanes))
                skewed[row, plane] = delayed(m, decoded, 1 + row, name=f"row_{row}_{plane}")

        # Tags, one register per column, tapped by every stage and row on their diagonal.
        swap = [delayed(m, self.swap, self.timing.edge_cycles, name="swap_edge", clear=True)]
        for position in range(1, shape.columns + shape.rows - 2 + self._stages):
            swap.append(delayed(m, swap[-1], 1, name=f"swap_{position}", clear=True))

        # Edge of the weights, and a bus with one register per group of columns.
        edges = []
        for position in range(shape.weight_columns):
            edge = WeightEdge(*self._formats, rows=shape.rows, lanes=shape.lanes, sum_bits=shape.sum_bits)
            m.submodules[f"weight_edge_{position}"] = edge
            m.d.comb += edge.word.eq(self.weight.word[position])
            edges.append(edge)
        load = delayed(m, Cat(self.weight.valid, self.weight.index), LOAD_CYCLES - 1, name="load", clear=True)
        load_constant = delayed(m, load, constant_cycles(shape.rows, shape.lanes), "load_constant", clear=True)
        bus = [load, load_constant, *(edge.cells for edge in edges), *(edge.constant for edge in edges)]

        neighbours = [Cat(skewed[row, plane] for plane in range(shape.planes)) for row in range(shape.rows)]
        for column in range(shape.columns):
            bus = bus_stage(m, bus, column, bus_cycles(shape.weight_columns))
            index, position = divmod(column, shape.weight_columns)
            bus_load, bus_load_constant = bus[:2]
            bus_word, bus_constant = bus[2 + position], bus[2 + shape.weight_columns + position]
            selected = 1 | index << 1
            load = Signal(name=f"load_{column}")
            m.d.comb += load.eq(bus_load == selected)

            constant_shadow = Signal(signed(shape.sum_bits), name=f"constant_shadow_{column}", reset_less=True)
            constant = Signal(signed(shape.sum_bits), name=f"constant_{column}", reset_less=True)
            with m.If(bus_load_constant == selected):
                m.d.sync += constant_shadow.eq(bus_constant)
            with m.If(swap[column + self._stages - 1]):
                m.d.sync += constant.eq(constant_shadow)

            sums = [constant] * shape.planes
            for row in range(shape.rows):
                pe = DotProductCell(*self._formats, lanes=shape.lanes, planes=shape.planes, sum_bits=shape.sum_bits)
                m.d.comb += [
                    pe.activations.eq(neighbours[row]),
                    pe.weights.eq(Cat(bus_word[row * shape.lanes + lane] for lane in range(shape.lanes))),
                    pe.load.eq(load),
                    pe.swap.eq(Cat(swap[column + row + stage] for stage in range(self._stages))),
                    pe.sums_in.eq(Cat(sums)),
                ]
                instantiate(m, platform, f"cell_{row}_{column}", pe)
                neighbours[row] = pe.activations_out
                sums = [pe.sums_out[plane] for plane in range(shape.planes)]
            m.d.comb += [self.sums[plane * shape.columns + column].eq(sums[plane]) for plane in range(shape.planes)]
        return m
