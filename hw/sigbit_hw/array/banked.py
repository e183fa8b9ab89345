# amaranth: UnusedElaboratable=no
"""What grids of cells with two banks of tables share: the way of activations, banks, weights and sums."""

from dataclasses import dataclass

from amaranth import *
from amaranth.lib import wiring

from ..lib.delay import delayed
from ..lib.shared import instantiate
from ..lib.tree import tree_levels
from .grid import BUS_COLUMNS, GridTiming, bus_stage, grid_members

__all__ = [
    "EDGE_CYCLES",
    "SEQUENCE_CYCLES",
    "START_CYCLES",
    "WRITE_CYCLES",
    "BankedGrid",
    "BankedGridTiming",
    "activation_edge",
    "chain_cells",
    "travelling_bank",
]

#: From an activation code at the grid to the first cell: an input register.
EDGE_CYCLES = 1
#: From a weight word at the grid to the first step of its generator, beside stages of the bus: recoding, the bus, the
#: memory of the generator.
START_CYCLES = 3
#: Of them, from the sequence of steps to its outputs.
SEQUENCE_CYCLES = 1
#: From a step at the generator to its write: the weight's register, the counter.
WRITE_CYCLES = 2


@dataclass(frozen=True)
class BankedGridTiming(GridTiming):
    """Cycles of a grid of cells with two banks of tables.

    Attributes
    ----------
    fill_cycles : int
        From the first step of a generator to its last: steps per column times columns.
    """

    fill_cycles: int = 0

    @classmethod
    def of(cls, shape, *, steps, stages):
        """Timing for a :class:`~.grid.GridShape`, steps of a generator per column, and stages of a cell."""
        fill = steps * shape.fill_columns
        hold, lead = 1, 0
        for column in range(shape.columns):
            first = column // shape.fill_columns * shape.fill_columns
            begin = first // shape.weight_columns + START_CYCLES + first // BUS_COLUMNS + (column - first) * steps
            # Its tables: the old bank is read by the last row, the new one by the first.
            hold = max(hold, EDGE_CYCLES + column + shape.rows - 1 - (begin + WRITE_CYCLES))
            lead = max(lead, begin + steps + WRITE_CYCLES - (EDGE_CYCLES + column + 1))
            # Its constant.
            taken = EDGE_CYCLES + column + stages - 1
            stored = column // shape.weight_columns + 3 + tree_levels(shape.vector) + first // BUS_COLUMNS
            hold = max(hold, taken - stored)
            lead = max(lead, stored + 1 - taken)
        # Generators must have ended before words of the next tile come.
        hold = max(hold, fill + 2 - lead)
        return cls(EDGE_CYCLES, EDGE_CYCLES + shape.rows + stages, hold, lead, fill_cycles=fill)


def activation_edge(m, codes, shape):
    """Activations of every row as its first cell gets them: ``EDGE_CYCLES`` later, and one more per row."""
    neighbours = []
    for row in range(shape.rows):
        own = [
            codes[plane * shape.vector + row * shape.lanes + lane]
            for plane in range(shape.planes)
            for lane in range(shape.lanes)
        ]
        neighbours.append(delayed(m, Cat(own), EDGE_CYCLES + row, name=f"row_{row}"))
    return neighbours


def travelling_bank(m, swap, shape):
    """The bank that computed last, and the one that computes as it travels with the activations: one per diagonal."""
    last_bank, bank = Signal(), Signal()
    m.d.comb += bank.eq(last_bank ^ swap)
    m.d.sync += last_bank.eq(bank)
    banks = [delayed(m, bank, EDGE_CYCLES, name="bank_edge", clear=True)]
    for position in range(1, shape.columns + shape.rows - 1):
        banks.append(delayed(m, banks[-1], 1, name=f"bank_{position}", clear=True))
    return last_bank, banks


def chain_cells(m, platform, column, cells, neighbours, banks, write, words, sums):
    """Chain the cells of a column, one per row; returns the sums of the last and moves ``neighbours`` one column on."""
    for row, pe in enumerate(cells):
        m.d.comb += [
            pe.activations.eq(neighbours[row]),
            pe.bank.eq(banks[column + row]),
            pe.write.eq(write),
            pe.words.eq(words[row]),
            pe.sums_in.eq(Cat(sums)),
        ]
        instantiate(m, platform, f"cell_{row}_{column}", pe)
        neighbours[row] = pe.activations_out
        sums = [pe.sums_out[plane] for plane in range(len(sums))]
    return sums


class BankedGrid(wiring.Component):
    """The same sums as :class:`~.grid.Grid` gives, from tables in distributed RAM that generators fill.

    The ports are the same, and so is what they mean; ``timing`` has other figures. Word 0 of a tile starts the
    generators. The bank that computes travels with the activations, and generators fill the other one.

    A subclass says what ``_cell()`` and ``_generator()`` are, how a generator is driven (``_drive``), which steps there
    are (``_sequence``) and what becomes of weight codes (``_weight_edge``).

    Parameters
    ----------
    weight_format, activation_format : :class:`Format`
        Native formats.
    shape : :class:`~.grid.GridShape`
    """

    def __init__(self, weight_format, activation_format, shape, *, steps):
        self._weight_format = weight_format
        self._activation_format = activation_format
        self._shape = shape
        self._stages = self._cell().latency_cycles - 1
        #: :class:`BankedGridTiming`
        self.timing = BankedGridTiming.of(shape, steps=steps, stages=self._stages)
        super().__init__(grid_members(weight_format, activation_format, shape))

    def elaborate(self, platform):
        m = Module()
        shape = self._shape

        neighbours = activation_edge(m, self.codes, shape)
        last_bank, banks = travelling_bank(m, self.swap, shape)
        fill, writing = self._sequence(m, last_bank)
        # Operands one cycle, constants of their columns `tree_levels` and one cycle later.
        operands, constants = self._weight_edge(m)
        tag = Cat(self.weight.valid, self.weight.index)
        bus = [
            delayed(m, tag, 1, name="load", clear=True),
            delayed(m, tag, 2 + tree_levels(shape.vector), name="owed", clear=True),
            *operands,
            *constants,
        ]
        taken = delayed(m, self.swap, EDGE_CYCLES + self._stages - 1, name="swap_edge", clear=True)

        group_bits = (shape.fill_columns // shape.weight_columns - 1).bit_length()
        passed = SEQUENCE_CYCLES
        for column in range(shape.columns):
            bus = bus_stage(m, bus, column, 1)
            load, owed = bus[:2]
            group, inside = divmod(column, shape.fill_columns)
            if inside == 0:
                cycles = column // shape.weight_columns + START_CYCLES - 1 + column // BUS_COLUMNS
                # With a reset these are flip-flops, of which there are more to spare than look-up tables.
                fill = delayed(m, fill, cycles - passed, name=f"fill_{group}", clear=True)
                writing = delayed(m, writing, cycles - passed, name=f"writing_{group}", clear=True)
                passed = cycles
                step = delayed(m, fill, 1, name=f"step_{group}")
                enables = delayed(m, writing, WRITE_CYCLES, name=f"enables_{group}", clear=True)
                words = []
                for row in range(shape.rows):
                    generator = self._generator()
                    lanes = slice(row * shape.lanes, (row + 1) * shape.lanes)
                    m.d.comb += [
                        generator.load.eq(load[0] & (load[1 + group_bits :] == group)),
                        generator.row.eq(load[1 : 1 + group_bits]),
                        generator.weights.eq(Cat(Cat(list(word)[lanes]) for word in bus[2 : 2 + shape.weight_columns])),
                        generator.column.eq(fill.column),
                    ]
                    self._drive(m, generator, fill, step)
                    instantiate(m, platform, f"generator_{row}_{group}", generator)
                    words.append(generator.words)
                write = delayed(m, Cat(step.code, step.bank), 1, name=f"write_{group}")
            constant = self._constant(m, column, owed, bus[2 + shape.weight_columns :], taken)
            taken = delayed(m, taken, 1, name=f"swap_{column}", clear=True)
            stored = Cat(enables[inside], write[-1], write[:-1])
            cells = [self._cell() for _ in range(shape.rows)]
            sums = chain_cells(m, platform, column, cells, neighbours, banks, stored, words, [constant] * shape.planes)
            m.d.comb += [self.sums[plane * shape.columns + column].eq(sums[plane]) for plane in range(shape.planes)]
        return m

    def _constant(self, m, column, owed, constants, taken):
        """What the sums of a column start from: loaded with its weights, taken over with the bank."""
        index, position = divmod(column, self._shape.weight_columns)
        waiting = Signal(signed(self._shape.sum_bits), name=f"constant_waiting_{column}", reset_less=True)
        constant = Signal.like(waiting, name=f"constant_{column}", reset_less=True)
        with m.If(owed == (1 | index << 1)):
            m.d.sync += waiting.eq(constants[position])
        with m.If(taken):
            m.d.sync += constant.eq(waiting)
        return constant
