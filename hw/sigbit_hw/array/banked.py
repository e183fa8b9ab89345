# amaranth: UnusedElaboratable=no
"""What columns of cells with two banks of tables share: the way of banks, weights and constants, and the generators."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..lib.delay import delayed
from ..lib.shared import instantiate
from ..lib.sizes import require_positive
from ..lib.tree import tree_levels
from ..lib.ultrascale import TABLE_ADDRESS_BITS, tables
from .columns import BUS_COLUMNS, Columns, bus_cycles, bus_stage

__all__ = ["SEQUENCE_CYCLES", "BankedCell", "BankedColumns", "Generator"]

#: From an activation code at the grid to the first cell: an input register.
EDGE_CYCLES = 1
#: From a weight word at the grid to the first step of its generator, beside stages of the bus: recoding, the bus, the
#: memory of the generator.
START_CYCLES = 3
#: Of them, from the sequence of steps to its outputs.
SEQUENCE_CYCLES = 1
#: From a step at the generator to its write: the weight's register, the counter.
WRITE_CYCLES = 2
#: From a weight word at the grid to the constant of its column, beside its adder tree and stages of the bus.
CONSTANT_CYCLES = 3


class BankedCell(wiring.Component):
    """Reads tables in distributed RAM by activation codes that pass by, and adds what they give to a passing sum.

    Activations move one column to the right per cycle. A result is ``latency_cycles`` behind its activations.
    ``sums_in`` must be given one cycle before ``sums_out``. Between two registers are a table, or two look-up tables
    and a carry chain as long as a sum.

    Parameters
    ----------
    code_bits : int
        Bits of an activation code.
    write_bits, word_bits, words : int
        Bits of an address of the tables without the bank, bits of an entry, and tables that are written at once.
    lanes, planes : int
        Activations per plane, and planes with the same weights.
    sum_bits : int
        Width of the sums, which wrap around.

    Members
    -------
    activations, activations_out : ``data.ArrayLayout``
        Activation codes, plane by plane; out to the next column one cycle later.
    bank : ``In(1)``
        Bank that ``activations`` read.
    write : ``In``
        ``enable``, ``bank``, ``code``: store ``words`` in every table; read from the next cycle on.
    words : ``data.ArrayLayout``
    sums_in, sums_out : ``data.ArrayLayout``
        One sum per plane, modulo ``2**sum_bits``.
    """

    def __init__(self, code_bits, write_bits, word_bits, words, *, lanes, planes, sum_bits):
        require_positive(code_bits=code_bits, word_bits=word_bits, lanes=lanes, planes=planes, sum_bits=sum_bits)
        self._code_bits = code_bits
        self._word_bits = word_bits
        self._lanes = lanes
        self._planes = planes
        self._sum_bits = sum_bits
        codes = data.ArrayLayout(code_bits, lanes * planes)
        sums = data.ArrayLayout(signed(sum_bits), planes)
        super().__init__(
            {
                "activations": In(codes),
                "activations_out": Out(codes),
                "bank": In(1),
                "write": In(data.StructLayout({"enable": 1, "bank": 1, "code": write_bits})),
                "words": In(data.ArrayLayout(word_bits, words)),
                "sums_in": In(sums),
                "sums_out": Out(sums),
            }
        )

    def _operands(self, m):
        """The codes that pass by and their bank, one cycle later."""
        activations = Signal.like(self.activations, reset_less=True, name="activations")
        bank = Signal(reset_less=True)
        m.d.sync += [activations.eq(self.activations), bank.eq(self.bank)]
        m.d.comb += self.activations_out.eq(activations)
        return activations, bank


class Generator(wiring.Component):
    """Fills the tables of one row of up to ``columns`` columns; what a step is says a subclass.

    Its weights wait in distributed RAM, in two banks, one memory for each column that is stored at once.

    Parameters
    ----------
    weight : shape-like
        A weight, as it is stored.
    lanes, columns, weight_columns : int
        Weights per column, columns, and columns that are stored at once.
    members : dict
        Ports of the subclass.

    Members
    -------
    weights : ``In``
        Per column stored at once and lane a weight.
    load, load_bank, row : ``In``
        Store ``weights`` as number ``row`` of a bank.
    bank, column : ``In``
        Whose weights :meth:`_chosen` gives.
    """

    def __init__(self, weight, members, *, lanes, columns, weight_columns):
        if columns % weight_columns:
            raise ValueError(f"weight_columns must divide the columns of a generator, not {weight_columns}, {columns}")
        self._lanes = lanes
        self._weights_of_column = data.ArrayLayout(weight, lanes)
        self._weight_columns = weight_columns
        self._rows = columns // weight_columns
        self._sizes = f"{lanes}x{columns}_{weight_columns}"
        super().__init__(
            {
                "weights": In(data.ArrayLayout(self._weights_of_column, weight_columns)),
                "load": In(1),
                "load_bank": In(1),
                "bank": In(1),
                "row": In(range(max(2, self._rows))),
                "column": In(range(max(2, columns))),
                **members,
            }
        )

    def _chosen(self, m, platform):
        """The weights of ``column`` in ``bank``, of all lanes, in the same cycle."""
        position_bits = (self._weight_columns - 1).bit_length()
        # Ports have one bit at least, addresses of one row none.
        row_bits = (self._rows - 1).bit_length()
        unused = C(0, TABLE_ADDRESS_BITS - row_bits - 1)
        write = Cat(self.row[:row_bits], self.load_bank, unused)
        read = Cat(self.column[position_bits : position_bits + row_bits], self.bank, unused)
        chosen = Signal(self._weights_of_column)
        stored = [
            tables(m, platform, [word], enable=self.load, address=write, reads=[read], name=f"weights_{position}")[0]
            for position, word in enumerate(map(Value.cast, self.weights))
        ]
        with m.Switch(self.column[:position_bits]):
            for position, weights in enumerate(stored):
                with m.Case(position):
                    m.d.comb += chosen.eq(weights)
        return chosen


class BankedColumns(Columns):
    """Columns of cells that read tables in distributed RAM, which generators fill.

    Word 0 of a tile starts the generators. The bank that computes travels with the activations, and generators fill the
    other one.

    A subclass says what ``_cell()`` and ``_generator()`` are, how a generator is driven (``_drive``), which steps there
    are (``_sequence``), what becomes of weight codes (``_weight_edge``) and what sums start from (``_constant``).

    Parameters
    ----------
    steps : int
        Cycles that a generator takes for one column, at least.
    exact : bool
        Whether it takes no more.
    """

    def __init__(self, weight_format, activation_format, shape, columns, arrival_cycles=None, *, steps, exact):
        self._weight_format = weight_format
        self._activation_format = activation_format
        self._shape = shape
        self.columns = columns
        self.arrival_cycles = EDGE_CYCLES if arrival_cycles is None else arrival_cycles
        self.edge_cycles = edge = self.arrival_cycles
        self._stages = stages = self._cell().latency_cycles - 1
        self.latency_cycles = edge + shape.rows + stages
        # A column may take more steps. Then the last columns of generators are later by `fill_columns` times that, and
        # no other column by more.
        fill = steps * shape.fill_columns
        hold, lead, late = 1, 0, 0
        for column in columns:
            first = column // shape.fill_columns * shape.fill_columns
            words = first // shape.weight_columns + first // BUS_COLUMNS
            begin = START_CYCLES + self._start_cycles(first) + (column - first) * steps
            # Its tables: the old bank is read by the last row, the new one by the first.
            hold = max(hold, edge + column + shape.rows - 1 - (begin + WRITE_CYCLES))
            lead = max(lead, begin + steps + WRITE_CYCLES - (edge + column + 1))
            # Its constant.
            taken = edge + column + stages - 1
            stored = (
                CONSTANT_CYCLES
                + tree_levels(shape.vector)
                + column // shape.weight_columns
                + column // BUS_COLUMNS * bus_cycles(shape.weight_columns)
            )
            hold = max(hold, taken - stored)
            lead = max(lead, stored + 1 - taken)
            late = max(late, self._start_cycles(first) - words)
        lead -= fill
        # The sequence must have ended before words of the next tile come, and a generator before its weights'
        # bank takes those of the tile after that.
        self.weight_hold_cycles = max(hold, 2 - lead, (late - fill + 1) // 2 - lead)
        self.weight_lead_cycles = lead + fill * exact
        self.fill_columns = 0 if exact else shape.fill_columns

    def _start_cycles(self, column):
        """How much later than the first generator that of the columns from ``column`` on starts.

        As much as activations take there, so that tables that are in use no longer are filled as soon as possible; but
        not before its weights are there.
        """
        return max(column, column // self._shape.weight_columns + column // BUS_COLUMNS)

    def build(self, m, platform, grid, neighbours):
        shape, columns = self._shape, self.columns

        # The bank that computed last, and the one that computes as it travels with the activations: one per diagonal.
        last_bank, bank = Signal(), Signal()
        m.d.comb += bank.eq(last_bank ^ grid.swap)
        m.d.sync += last_bank.eq(bank)
        banks = [delayed(m, bank, self.edge_cycles, name="bank_edge", clear=True)]
        for position in range(1, len(columns) + shape.rows - 1):
            banks.append(delayed(m, banks[-1], 1, name=f"bank_{position}", clear=True))

        fill, writing, loading = self._sequence(m, grid, last_bank)
        # Operands one cycle, constants of their columns `tree_levels` and one cycle later.
        operands, constants = self._weight_edge(m, platform, grid)
        load = delayed(m, Cat(grid.weight.valid, grid.weight.index), 1, name="load", clear=True)
        bus = [load, delayed(m, loading, 1, name="load_bank", clear=True), *operands]
        owed = [delayed(m, load, 1 + tree_levels(shape.vector), name="owed", clear=True), C(0, 0), *constants]
        taken = delayed(m, grid.swap, self.edge_cycles + self._stages - 1, name="swap_edge", clear=True)

        group_words = shape.fill_columns // shape.weight_columns
        group_bits = (group_words - 1).bit_length()
        passed = SEQUENCE_CYCLES
        for column in columns:
            bus = bus_stage(m, bus, column, 1, first=columns.start)
            owed = bus_stage(m, owed, column, bus_cycles(shape.weight_columns), first=columns.start, name="owed_bus")
            load, load_bank, *words_loaded = bus
            group, inside = divmod(column, shape.fill_columns)
            if inside == 0:
                cycles = START_CYCLES - 1 + self._start_cycles(column)
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
                        generator.load_bank.eq(load_bank),
                        generator.row.eq(load[1 : 1 + group_bits]),
                        generator.weights.eq(Cat(Cat(list(word)[lanes]) for word in words_loaded)),
                        generator.bank.eq(fill.bank),
                        generator.column.eq(fill.column),
                    ]
                    self._drive(m, generator, fill, step)
                    instantiate(m, platform, f"generator_{row}_{group}", generator)
                    words.append(generator.words)
                write = delayed(m, Cat(step.code, step.bank), 1, name=f"write_{group}")

            # What the sums of a column start from: loaded with its weights, taken over with the bank.
            index, position = divmod(column, shape.weight_columns)
            waiting = Signal.like(owed[2 + position], name=f"constant_waiting_{column}", reset_less=True)
            constant = Signal.like(waiting, name=f"constant_{column}", reset_less=True)
            with m.If(owed[0] == (1 | index << 1)):
                m.d.sync += waiting.eq(owed[2 + position])
            with m.If(taken):
                m.d.sync += constant.eq(waiting)
            taken = delayed(m, taken, 1, name=f"swap_{column}", clear=True)
            start = Signal(signed(shape.sum_bits), name=f"start_{column}")
            m.d.comb += start.eq(self._constant(constant))
            inputs = [
                {
                    "bank": banks[column - columns.start + row],
                    "write": Cat(enables[inside], write[-1], write[:-1]),
                    "words": words[row],
                }
                for row in range(shape.rows)
            ]
            self._chain(m, platform, grid, column, neighbours, start, inputs)
        return neighbours
