# amaranth: UnusedElaboratable=no
"""Columns of logic cells with the edge of their weights."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..arith.multiplier import multiplier
from ..arith.operand import lookup
from ..lib.delay import delayed
from ..lib.tree import adder_tree, sign_parent, tree_levels
from .cell import DotProductCell, swap_stages, weight_lane
from .columns import BUS_COLUMNS, Columns, bus_cycles, bus_stage

__all__ = ["LogicColumns"]

#: Cycles from a weight word at the port to the load of its column: recoding and the bus.
LOAD_CYCLES = 2
#: Cycles from activation codes to the words that cells take.
DECODE_CYCLES = 1


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


class LogicColumns(Columns):
    """Columns of :class:`~.cell.DotProductCell`.

    Behind columns of another kind the weight words wait for as long as the bus in front of them would take.
    """

    def __init__(self, weight_format, activation_format, shape, columns, arrival_cycles=None):
        self._formats = (weight_format, activation_format)
        self._shape = shape
        self.columns = columns
        self._stages = stages = swap_stages(weight_format, activation_format, shape.lanes)
        constant = constant_cycles(shape.rows, shape.lanes)
        if arrival_cycles is None:
            # An input register, and as many cycles as the constants of the weights need to be in time.
            arrival_cycles = 1 + max(0, constant - stages + 1)
        self.arrival_cycles = arrival_cycles
        self.edge_cycles = edge = arrival_cycles + DECODE_CYCLES
        self.latency_cycles = edge + shape.rows + stages
        # The swap of a column comes `column` cycles after that of column 0. How much later than that its weights come:
        late = [
            LOAD_CYCLES
            + column // BUS_COLUMNS * bus_cycles(shape.weight_columns)
            + column // shape.weight_columns
            - column
            for column in columns
        ]
        # When the last stage of the last row has the old weights; when the first stage and the constant take new ones.
        freed = edge + shape.rows - 1 + stages - 1
        needed = edge + min(-1, stages - 2 - constant)
        self.weight_hold_cycles = freed - min(late)
        self.weight_lead_cycles = max(0, max(late) - needed)

    def _cell(self):
        shape = self._shape
        return DotProductCell(*self._formats, lanes=shape.lanes, planes=shape.planes, sum_bits=shape.sum_bits)

    def build(self, m, platform, grid, neighbours):
        shape, columns = self._shape, self.columns
        engine = multiplier(*self._formats)
        lanes = shape.planes * shape.lanes
        neighbours = [
            delayed(
                m,
                Cat(
                    lookup(engine.activation_table, row.word_select(lane, len(row) // lanes), engine.activation_bits)
                    for lane in range(lanes)
                ),
                DECODE_CYCLES,
                name=f"decoded_{index}",
            )
            for index, row in enumerate(map(Value.cast, neighbours))
        ]

        # Tags, one register per column, tapped by every stage and row on their diagonal.
        swap = [delayed(m, grid.swap, self.edge_cycles + columns.start, name="logic_swap_edge", clear=True)]
        for position in range(1, len(columns) + shape.rows - 2 + self._stages):
            swap.append(delayed(m, swap[-1], 1, name=f"logic_swap_{position}", clear=True))

        # Edge of the weights, and a bus with one register per group of columns.
        waiting = columns.start // BUS_COLUMNS * bus_cycles(shape.weight_columns)
        edges = []
        for position in range(shape.weight_columns):
            edge = WeightEdge(*self._formats, rows=shape.rows, lanes=shape.lanes, sum_bits=shape.sum_bits)
            m.submodules[f"weight_edge_{position}"] = edge
            word = delayed(m, grid.weight.word[position], waiting, name=f"logic_word_{position}")
            m.d.comb += edge.word.eq(word)
            edges.append(edge)
        tag = Cat(grid.weight.valid, grid.weight.index)
        load = delayed(m, tag, waiting + LOAD_CYCLES - 1, name="logic_load", clear=True)
        load_constant = delayed(m, load, constant_cycles(shape.rows, shape.lanes), "logic_load_constant", clear=True)
        bus = [load, load_constant, *(edge.cells for edge in edges), *(edge.constant for edge in edges)]

        for offset, column in enumerate(columns):
            bus = bus_stage(m, bus, column, bus_cycles(shape.weight_columns), first=columns.start, name="logic_bus")
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
            with m.If(swap[offset + self._stages - 1]):
                m.d.sync += constant.eq(constant_shadow)

            inputs = [
                {
                    "weights": Cat(bus_word[row * shape.lanes + lane] for lane in range(shape.lanes)),
                    "load": load,
                    "swap": Cat(swap[offset + row : offset + row + self._stages]),
                }
                for row in range(shape.rows)
            ]
            self._chain(m, platform, grid, column, neighbours, constant, inputs)
        return neighbours
