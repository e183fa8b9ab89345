# amaranth: UnusedElaboratable=no
"""Columns of table cells: the products of every stationary weight lie in distributed RAM.

Our definition. An activation code reads the product of its lane's weight from a table with two banks: one computes,
the other is filled for the next tile. A table holds ``p ^ s`` for a product magnitude ``p`` and the weight's sign ``s``
(numerics 5.2), as an unsigned word. So there is neither a multiplier nor a sign in the cell.

What codes mean is data. A level table (:data:`~sigbit_hw.spec.instructions.LEVEL`) comes before the weights of a layer:
the level of every weight code, looked up at the edge, and the activation codes in the order of their levels, counted
from the smallest one. So products are those with distances from the smallest level, and never negative for
positive weights.

A generator per row and ``fill_columns`` columns counts through these levels in multiples of the weight, up from zero
by one or two multiples per cycle, and writes every code's product.
"""

from amaranth import *
from amaranth.lib import data
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..lib.delay import delayed
from ..lib.layout import table_layout
from ..lib.tree import adder_tree, ternary_levels, ternary_tree
from ..lib.ultrascale import count_step, tables
from ..spec.config import TABLE_CODE_BITS
from ..spec.instructions import LEVEL, LEVEL_CODES
from .banked import SEQUENCE_CYCLES, BankedCell, BankedColumns, Generator

__all__ = ["LevelEntry", "TableCell", "TableColumns", "TableGenerator"]


class LevelEntry(data.StructLayout):
    """An entry of a level table on its way to a grid: its position ``index``, and the ``bank`` that takes it.

    A weight word may be decoded with a bank two cycles after its last entry. While words are decoded with one bank,
    and until their tables are full, the other one may be written.
    """

    def __init__(self):
        super().__init__({"valid": 1, "bank": 1, "index": range(LEVEL_CODES), "entry": table_layout(LEVEL)})


class TableCell(BankedCell):
    """``lanes`` table look-ups per plane; what is added is the sum of the unsigned words, one per lane.

    Parameters
    ----------
    code_bits : int
        At most 4.
    word_bits, lanes, planes, sum_bits : int
        As of :class:`~.banked.BankedCell`.
    """

    def __init__(self, code_bits, word_bits, *, lanes, planes, sum_bits):
        super().__init__(code_bits, code_bits, word_bits, lanes, lanes=lanes, planes=planes, sum_bits=sum_bits)
        if code_bits > TABLE_CODE_BITS:
            raise ValueError(f"code_bits must be at most {TABLE_CODE_BITS}, not {code_bits}")
        #: Cycles from ``activations`` to ``sums_out``: operands, products, adders.
        self.latency_cycles = 2 + ternary_levels(lanes)

    @property
    def module_name(self):
        """Name that is the same for equal cells only."""
        return f"table_cell_{self._code_bits}_{self._word_bits}_{self._lanes}x{self._planes}_{self._sum_bits}"

    def elaborate(self, platform):
        m = Module()
        activations, bank = self._operands(m)
        padding = Const(0, TABLE_CODE_BITS - self._code_bits)
        for plane in range(self._planes):
            words = tables(
                m,
                platform,
                [self.words[lane] for lane in range(self._lanes)],
                enable=self.write.enable,
                address=Cat(self.write.code, padding, self.write.bank),
                reads=[Cat(activations[plane * self._lanes + lane], padding, bank) for lane in range(self._lanes)],
                name=f"table_{plane}",
            )
            products = [delayed(m, word, 1, name=f"product_{plane}_{lane}") for lane, word in enumerate(words)]
            root = ternary_tree(m, platform, products, self.sums_in[plane].as_unsigned(), name=f"tree_{plane}")
            m.d.comb += self.sums_out[plane].eq(root)
        return m


class TableGenerator(Generator):
    """Counts the multiples of weights, one word per lane and cycle.

    Parameters
    ----------
    operand_bits, word_bits : int
        Bits of a weight's magnitude less one, in two's complement, and of a table entry.
    lanes, columns, weight_columns : int
        As of :class:`~.banked.Generator`.

    Members
    -------
    weights : ``In``
        Per column stored at once and lane ``{add, operand}``: whether the weight is positive, and its operand.
    bank, column, restart, twice, hold : ``In``
        The step: start at zero, count two multiples or none, else one. ``bank`` and ``column``, which say what weight,
        are given one cycle before the others.
    words : ``Out``
        After the step, one cycle later.
    """

    def __init__(self, operand_bits, word_bits, *, lanes, columns, weight_columns):
        self._operand_bits = operand_bits
        self._word_bits = word_bits
        super().__init__(
            data.StructLayout({"operand": operand_bits, "add": 1}),
            {"restart": In(1), "twice": In(1), "hold": In(1), "words": Out(data.ArrayLayout(word_bits, lanes))},
            lanes=lanes,
            columns=columns,
            weight_columns=weight_columns,
        )

    @property
    def module_name(self):
        """Name that is the same for equal generators only."""
        return f"table_generator_{self._operand_bits}_{self._word_bits}_{self._sizes}"

    def elaborate(self, platform):
        m = Module()
        chosen = self._chosen(m, platform)
        for lane in range(self._lanes):
            operand = Signal.like(chosen[lane].operand, name=f"operand_{lane}", reset_less=True)
            add = Signal(name=f"add_{lane}", reset_less=True)
            m.d.sync += [operand.eq(chosen[lane].operand), add.eq(chosen[lane].add)]
            value = Signal(self._word_bits, name=f"value_{lane}", reset_less=True)
            extended = Signal(self._word_bits, name=f"extended_{lane}")
            m.d.comb += [extended.eq(operand.as_signed()), self.words[lane].eq(value)]
            following = count_step(
                m, platform, value, extended, double=self.twice, add=add, restart=self.restart, name=f"next_{lane}"
            )
            with m.If(~self.hold):
                m.d.sync += value.eq(following)
        return m


class TableColumns(BankedColumns):
    """Columns of :class:`TableCell`.

    ``weight_format`` and ``activation_format`` say how long codes are, at most 4 bits; what they mean comes with the
    grid's ``levels``.
    """

    def __init__(self, weight_format, activation_format, shape, columns, arrival_cycles=None):
        steps = 1 << activation_format.bits
        super().__init__(weight_format, activation_format, shape, columns, arrival_cycles, steps=steps, exact=False)

    @property
    def _operand_bits(self):
        return self._shape.table_weight_bits + 1

    def _cell(self):
        shape = self._shape
        return TableCell(
            self._activation_format.bits,
            shape.table_product_bits,
            lanes=shape.lanes,
            planes=shape.planes,
            sum_bits=shape.sum_bits,
        )

    def _generator(self):
        return TableGenerator(
            self._operand_bits,
            self._shape.table_product_bits,
            lanes=self._shape.lanes,
            columns=self._shape.fill_columns,
            weight_columns=self._shape.weight_columns,
        )

    def _drive(self, m, generator, fill, step):
        m.d.comb += [generator.restart.eq(step.restart), generator.twice.eq(step.twice), generator.hold.eq(step.hold)]

    def _sequence(self, m, grid, bank):
        """Steps of all columns of a generator from the first word of a tile on, and the columns that write its code.

        Also the bank of the weight word of this cycle.
        """
        code_bits = self._activation_format.bits
        last_code = (1 << code_bits) - 1
        last_column = self._shape.fill_columns - 1
        fill = Signal(
            data.StructLayout(
                {
                    "restart": 1,
                    "twice": 1,
                    "hold": 1,
                    "bank": 1,
                    "code": code_bits,
                    "column": range(self._shape.fill_columns),
                }
            )
        )
        entry = data.StructLayout({"code": code_bits, "step": len(grid.levels.entry.step)})
        m.submodules.steps = memory = Memory(
            shape=entry, depth=2 * LEVEL_CODES, init=[], attrs={"ram_style": "distributed"}
        )
        write, read = memory.write_port(), memory.read_port(domain="comb")
        m.d.comb += [
            write.en.eq(grid.levels.valid),
            write.addr.eq(Cat(grid.levels.index, grid.levels.bank)),
            write.data.code.eq(grid.levels.entry.code),
            write.data.step.eq(grid.levels.entry.step),
        ]

        # `current` is the entry whose level is being reached, less what was counted already; `following` is the one
        # behind it, the first one when none is behind it.
        running, starting, level_bank, fill_bank = Signal(), Signal(), Signal(), Signal()
        current = Signal(entry)
        following = Signal(range(LEVEL_CODES))
        column = Signal(range(self._shape.fill_columns))
        reached, writes = Signal(), Signal()
        begin = grid.weight.valid & (grid.weight.index == 0)
        m.d.comb += [
            read.addr.eq(Cat(following, Mux(begin, grid.level_bank, level_bank))),
            reached.eq(Mux(starting, current.step == 0, current.step <= 2)),
            writes.eq(running & reached),
        ]
        with m.If(begin):
            m.d.sync += [
                running.eq(1),
                starting.eq(1),
                column.eq(0),
                level_bank.eq(grid.level_bank),
                fill_bank.eq(~bank),
            ]
        with m.Elif(running):
            m.d.sync += starting.eq(0)
            with m.If(reached & (following == 0)):
                m.d.sync += [starting.eq(1), column.eq(column + 1)]
                with m.If(column == last_column):
                    m.d.sync += [running.eq(0), starting.eq(0), column.eq(0)]
        with m.If(begin | writes):
            m.d.sync += [current.eq(read.data), following.eq(Mux(following == last_code, 0, following + 1))]
        with m.Elif(running & ~starting):
            m.d.sync += current.step.eq(current.step - 2)
        with m.If(writes & (following == 0) & (column == last_column)):
            # The first entry was fetched for a column that does not come: it is fetched again.
            m.d.sync += following.eq(0)
        m.d.comb += [
            fill.bank.eq(fill_bank),
            fill.column.eq(column),
            fill.restart.eq(starting),
            fill.twice.eq(current.step > 1),
            fill.hold.eq(~starting & (current.step == 0)),
            fill.code.eq(current.code),
        ]
        # The columns' own signals come from a register, so that no look-up table stands behind the sequence's.
        fill = delayed(m, fill, SEQUENCE_CYCLES, name="fill")
        writes = delayed(m, writes, SEQUENCE_CYCLES, name="writes", clear=True)
        writing = Cat(writes & (fill.column == column) for column in range(self._shape.fill_columns))
        return fill, writing, Mux(begin, ~bank, fill_bank)

    def _weight_edge(self, m, platform, grid):
        """Decoded weights one cycle later, and ``-C`` of their columns ``tree_levels`` and one cycle behind them."""
        layout = data.StructLayout({"operand": self._operand_bits, "add": 1})
        level = grid.levels.entry.weight
        decoded = Signal(layout)
        valid = delayed(m, grid.levels.valid, 1, name="level_valid", clear=True)
        address = delayed(m, Cat(grid.levels.index, grid.levels.bank), 1, name="level_address")
        m.d.sync += [decoded.operand.eq(Mux(level < 0, ~level, level - 1)), decoded.add.eq(level >= 0)]

        vector, bits = self._shape.vector, self._weight_format.bits
        padding = Const(0, TABLE_CODE_BITS - bits)
        words, constants = [], []
        for position in range(self._shape.weight_columns):
            codes = grid.weight.word[position]
            found = tables(
                m,
                platform,
                [decoded.as_value()] * vector,
                enable=valid,
                address=address,
                reads=[Cat(codes.word_select(lane, bits), padding, grid.level_bank) for lane in range(vector)],
                name=f"levels_{position}",
            )
            word = Signal(data.ArrayLayout(layout, vector), name=f"operands_{position}", reset_less=True)
            m.d.sync += word.eq(Cat(found))
            signs = [~lane.add for lane in word]
            count = adder_tree(m, signs, name=f"count_{position}")
            words.append(word)
            constants.append(delayed(m, -count, 1, name=f"owed_{position}"))
        return words, constants

    def _constant(self, signs):
        """The excess of its tables' unsigned words, negative."""
        return Cat(C(0, self._shape.table_product_bits), signs).as_signed()
