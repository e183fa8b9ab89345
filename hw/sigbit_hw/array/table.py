# amaranth: UnusedElaboratable=no
"""The grid of table cells: the products of every stationary weight lie in distributed RAM.

Our definition. An activation code reads the product of its lane's weight from a table with two banks: one computes,
the other is filled for the next tile. A table holds ``p ^ s`` for a product magnitude ``p`` and the weight's sign ``s``
(numerics 5.2), as an unsigned word; for signed activations plus half of the range. So there is neither a multiplier
nor a sign in the cell, and it does not depend on the formats.

A generator per row and ``fill_columns`` columns counts through the levels of the activation format in multiples of
the weight, up from zero and then down, by one or two multiples per cycle, and writes every level's product.
"""

from dataclasses import dataclass
from typing import NamedTuple

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..arith.operand import lookup
from ..lib.delay import delayed
from ..lib.shared import instantiate
from ..lib.tree import adder_tree, ternary_levels, ternary_tree, tree_levels
from ..lib.ultrascale import count_step, tables
from ..spec.config import TABLE_CODE_BITS
from ..spec.formats import product_bits
from .grid import BUS_COLUMNS, GridTiming, bus_stage, grid_members

__all__ = ["FillStep", "TableCell", "TableGenerator", "TableGrid", "TableGridTiming", "fill_program"]

#: From an activation code at the grid to the first cell: an input register.
EDGE_CYCLES = 1
#: From a weight word at the grid to the first step of its generator, beside stages of the bus: recoding, the bus, the
#: memory of the generator.
START_CYCLES = 3
#: Of them, from the sequence of steps to its outputs.
SEQUENCE_CYCLES = 1
#: From a step at the generator to its write: the weight's register, the counter.
WRITE_CYCLES = 2


class FillStep(NamedTuple):
    """What a generator does in one cycle: see :func:`~sigbit_hw.lib.ultrascale.count_step`; ``code`` is written."""

    restart: int
    double: int
    down: int
    code: int | None


def fill_program(activation_format):
    """Steps that reach every level of a format, and write every code once."""
    steps = []
    for down in (0, 1):
        levels = sorted(
            (abs(level), code)
            for code in range(1 << activation_format.bits)
            if (level := activation_format.decode(code)) < 0 or not down
            if (level < 0) == bool(down)
        )
        if down and levels:
            steps.append(FillStep(1, 0, 0, None))
        reached = 0
        for level, code in levels:
            if level == 0:
                steps.append(FillStep(1, 0, 0, code))
            while reached < level:
                double = int(level - reached >= 2)
                reached += 1 + double
                steps.append(FillStep(0, double, down, code if reached == level else None))
    return tuple(steps)


class TableCell(wiring.Component):
    """``lanes`` table look-ups per plane of activation codes that pass by, added to a passing sum.

    Activations move one column to the right per cycle. A result is ``latency_cycles`` behind its activations.
    ``sums_in`` must be given one cycle before ``sums_out``. Between two registers are a table, or two look-up tables
    and a carry chain as long as a sum.

    Parameters
    ----------
    code_bits : int
        Bits of an activation code, at most 4.
    word_bits : int
        Bits of a table entry.
    lanes, planes : int
        Look-ups per plane, and planes with the same weights.
    sum_bits : int
        Width of the sums, which wrap around.

    Members
    -------
    activations, activations_out : ``data.ArrayLayout``
        Activation codes, plane by plane; out to the next column one cycle later.
    bank : ``In(1)``
        Bank that ``activations`` read.
    write : ``In``
        ``enable``, ``bank``, ``code``: store ``words`` in every lane's table; read from the next cycle on.
    words : ``data.ArrayLayout``
    sums_in, sums_out : ``data.ArrayLayout``
        One sum per plane, modulo ``2**sum_bits``. What is added is the sum of the unsigned words.
    """

    def __init__(self, code_bits, word_bits, *, lanes, planes, sum_bits):
        for name, value in (
            ("code_bits", code_bits),
            ("word_bits", word_bits),
            ("lanes", lanes),
            ("planes", planes),
            ("sum_bits", sum_bits),
        ):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
        if code_bits > TABLE_CODE_BITS:
            raise ValueError(f"code_bits must be at most {TABLE_CODE_BITS}, not {code_bits}")
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
                "write": In(data.StructLayout({"enable": 1, "bank": 1, "code": code_bits})),
                "words": In(data.ArrayLayout(word_bits, lanes)),
                "sums_in": In(sums),
                "sums_out": Out(sums),
            }
        )
        #: Cycles from ``activations`` to ``sums_out``: operands, products, adders.
        self.latency_cycles = 2 + ternary_levels(lanes)

    @property
    def module_name(self):
        """Name that is the same for equal cells only."""
        return f"table_cell_{self._code_bits}_{self._word_bits}_{self._lanes}x{self._planes}_{self._sum_bits}"

    def elaborate(self, platform):
        m = Module()

        activations = Signal.like(self.activations, reset_less=True)
        bank = Signal(reset_less=True)
        m.d.sync += [activations.eq(self.activations), bank.eq(self.bank)]
        m.d.comb += self.activations_out.eq(activations)

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


class TableGenerator(wiring.Component):
    """Fills the tables of one row of up to ``columns`` columns, one word per lane and cycle.

    Parameters
    ----------
    operand_bits, word_bits : int
        Bits of a weight's magnitude less one, in two's complement, and of a table entry.
    lanes, columns, weight_columns : int
        Weights per column, columns, and columns that are stored at once.
    offset : bool
        Whether entries are greater by half of the range.

    Members
    -------
    weights : ``In``
        Per column stored at once and lane ``{add, operand}``: whether the weight is positive, and its operand.
    load, row : ``In``
        Store ``weights`` as number ``row``.
    column, restart, double, down : ``In``
        The step. ``column`` and ``down`` are given one cycle before the others.
    words : ``Out``
        After the step, one cycle later.
    """

    def __init__(self, operand_bits, word_bits, *, lanes, columns, weight_columns, offset):
        if columns % weight_columns:
            raise ValueError(f"weight_columns must divide the columns of a generator, not {weight_columns}, {columns}")
        self._word_bits = word_bits
        self._lanes = lanes
        self._columns = columns
        self._weight_columns = weight_columns
        self._offset = offset
        self._lane = data.StructLayout({"operand": operand_bits, "add": 1})
        super().__init__(
            {
                "weights": In(data.ArrayLayout(data.ArrayLayout(self._lane, lanes), weight_columns)),
                "load": In(1),
                "row": In(range(columns // weight_columns)),
                "column": In(range(columns)),
                "restart": In(1),
                "double": In(1),
                "down": In(1),
                "words": Out(data.ArrayLayout(word_bits, lanes)),
            }
        )

    @property
    def module_name(self):
        """Name that is the same for equal generators only."""
        offset = "_offset" if self._offset else ""
        operand = self._lane["operand"].width
        return (
            f"table_generator_{operand}_{self._word_bits}_{self._lanes}x{self._columns}_{self._weight_columns}{offset}"
        )

    def elaborate(self, platform):
        m = Module()
        layout = data.ArrayLayout(self._lane, self._lanes)

        stored = []
        position_bits = (self._weight_columns - 1).bit_length()
        for position in range(self._weight_columns):
            memory = Memory(
                shape=unsigned(layout.size),
                depth=self._columns // self._weight_columns,
                init=[],
                attrs={"ram_style": "distributed"},
            )
            m.submodules[f"weights_{position}"] = memory
            write, read = memory.write_port(), memory.read_port(domain="comb")
            m.d.comb += [
                write.en.eq(self.load),
                write.addr.eq(self.row),
                write.data.eq(self.weights[position]),
                read.addr.eq(self.column[position_bits:]),
            ]
            stored.append(read.data)
        chosen = Signal(layout)
        with m.Switch(self.column[:position_bits]):
            for position, weights in enumerate(stored):
                with m.Case(position):
                    m.d.comb += chosen.eq(weights)

        for lane in range(self._lanes):
            operand = Signal.like(chosen[lane].operand, name=f"operand_{lane}", reset_less=True)
            add = Signal(name=f"add_{lane}", reset_less=True)
            m.d.sync += [operand.eq(chosen[lane].operand), add.eq(chosen[lane].add ^ self.down)]
            value = Signal(self._word_bits, name=f"value_{lane}", reset_less=True)
            extended = Signal(self._word_bits, name=f"extended_{lane}")
            m.d.comb += [extended.eq(operand.as_signed()), self.words[lane].eq(value)]
            m.d.sync += value.eq(
                count_step(
                    m,
                    platform,
                    value,
                    extended,
                    double=self.double,
                    add=add,
                    restart=self.restart,
                    offset=self._offset,
                    name=f"next_{lane}",
                )
            )
        return m


@dataclass(frozen=True)
class TableGridTiming(GridTiming):
    """Cycles of a grid of table cells.

    Attributes
    ----------
    fill_cycles : int
        From the first step of a generator to its last: steps per column times columns.
    """

    fill_cycles: int

    @classmethod
    def of(cls, weight_format, activation_format, shape):
        """Timing for two formats and a :class:`~.grid.GridShape`."""
        stages = 1 + ternary_levels(shape.lanes)
        steps = len(fill_program(activation_format))
        fill = steps * shape.fill_columns
        hold, lead = 1, 0
        for column in range(shape.columns):
            first = column // shape.fill_columns * shape.fill_columns
            begin = first // shape.weight_columns + START_CYCLES + first // BUS_COLUMNS + (column - first) * steps
            # Its tables: the old bank is read by the last row, the new one by the first.
            hold = max(hold, EDGE_CYCLES + column + shape.rows - 1 - (begin + WRITE_CYCLES))
            lead = max(lead, begin + steps + WRITE_CYCLES - (EDGE_CYCLES + column + 1))
            if not activation_format.signed:
                taken = EDGE_CYCLES + column + stages - 1
                stored = column // shape.weight_columns + 3 + tree_levels(shape.vector) + first // BUS_COLUMNS
                hold = max(hold, taken - stored)
                lead = max(lead, stored + 1 - taken)
        # Generators must have ended before words of the next tile come.
        hold = max(hold, fill + 2 - lead)
        return cls(EDGE_CYCLES, EDGE_CYCLES + shape.rows + stages, hold, lead, fill)


class TableGrid(wiring.Component):
    """The same sums as :class:`~.grid.Grid` gives, with tables instead of multipliers.

    The ports are the same, and so is what they mean; ``timing`` has other figures. Word 0 of a tile starts the
    generators.

    Parameters
    ----------
    weight_format, activation_format : :class:`Format`
        Native formats; activation codes of at most 4 bits.
    shape : :class:`~.grid.GridShape`
    """

    def __init__(self, weight_format, activation_format, shape):
        self._weight_format = weight_format
        self._activation_format = activation_format
        self._word_bits = product_bits(weight_format, activation_format)
        self._shape = shape
        #: :class:`TableGridTiming`
        self.timing = TableGridTiming.of(weight_format, activation_format, shape)
        super().__init__(grid_members(weight_format, activation_format, shape))

    def elaborate(self, platform):
        m = Module()
        shape = self._shape
        stages = 1 + ternary_levels(shape.lanes)

        # Edge of the activations.
        neighbours = []
        for row in range(shape.rows):
            codes = [
                self.codes[plane * shape.vector + row * shape.lanes + lane]
                for plane in range(shape.planes)
                for lane in range(shape.lanes)
            ]
            neighbours.append(delayed(m, Cat(codes), EDGE_CYCLES + row, name=f"row_{row}"))

        # The bank travels with the activations, one register per diagonal.
        last_bank, bank = Signal(), Signal()
        m.d.comb += bank.eq(last_bank ^ self.swap)
        m.d.sync += last_bank.eq(bank)
        banks = [delayed(m, bank, EDGE_CYCLES, name="bank_edge", clear=True)]
        for position in range(1, shape.columns + shape.rows - 1):
            banks.append(delayed(m, banks[-1], 1, name=f"bank_{position}", clear=True))

        fill, writing = self._sequence(m, last_bank)
        operands, constants = self._weight_edge(m)
        bus = [
            delayed(m, Cat(self.weight.valid, self.weight.index), 1, name="load", clear=True),
            delayed(
                m, Cat(self.weight.valid, self.weight.index), 2 + tree_levels(shape.vector), name="owed", clear=True
            ),
            *operands,
            *constants,
        ]
        taken = delayed(m, self.swap, EDGE_CYCLES + stages - 1, name="swap_edge", clear=True)

        group_words = shape.fill_columns // shape.weight_columns
        group_bits = (group_words - 1).bit_length()
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
                        generator.down.eq(fill.down),
                        generator.restart.eq(step.restart),
                        generator.double.eq(step.double),
                    ]
                    instantiate(m, platform, f"generator_{row}_{group}", generator)
                    words.append(generator.words)
                write = delayed(m, Cat(step.code, step.bank), 1, name=f"write_{group}")
            constant = self._constant(m, column, owed, bus[2 + shape.weight_columns :], taken)
            taken = delayed(m, taken, 1, name=f"swap_{column}", clear=True)
            sums = [constant] * shape.planes
            for row in range(shape.rows):
                pe = TableCell(
                    self._activation_format.bits,
                    self._word_bits,
                    lanes=shape.lanes,
                    planes=shape.planes,
                    sum_bits=shape.sum_bits,
                )
                m.d.comb += [
                    pe.activations.eq(neighbours[row]),
                    pe.bank.eq(banks[column + row]),
                    pe.write.eq(Cat(enables[inside], write[-1], write[:-1])),
                    pe.words.eq(words[row]),
                    pe.sums_in.eq(Cat(sums)),
                ]
                instantiate(m, platform, f"cell_{row}_{column}", pe)
                neighbours[row] = pe.activations_out
                sums = [pe.sums_out[plane] for plane in range(shape.planes)]
            m.d.comb += [self.sums[plane * shape.columns + column].eq(sums[plane]) for plane in range(shape.planes)]
        return m

    @property
    def _operand_bits(self):
        return (self._weight_format.magnitude_max - 1).bit_length() + 1

    def _generator(self):
        return TableGenerator(
            self._operand_bits,
            self._word_bits,
            lanes=self._shape.lanes,
            columns=self._shape.fill_columns,
            weight_columns=self._shape.weight_columns,
            offset=self._activation_format.signed,
        )

    def _sequence(self, m, bank):
        """Steps of all columns of a generator from the first word of a tile on, and the columns that write its code."""
        program = fill_program(self._activation_format)
        fill = Signal(
            data.StructLayout(
                {
                    "restart": 1,
                    "double": 1,
                    "down": 1,
                    "bank": 1,
                    "code": self._activation_format.bits,
                    "column": range(self._shape.fill_columns),
                }
            )
        )
        running = Signal()
        writes = Signal()
        step = Signal(range(len(program)))
        column = Signal(range(self._shape.fill_columns))
        fill_bank = Signal()
        with m.If(running):
            m.d.sync += step.eq(step + 1)
            with m.If(step == len(program) - 1):
                m.d.sync += [step.eq(0), column.eq(column + 1)]
                with m.If(column == self._shape.fill_columns - 1):
                    m.d.sync += [column.eq(0), running.eq(0)]
        with m.If(self.weight.valid & (self.weight.index == 0)):
            m.d.sync += [running.eq(1), step.eq(0), column.eq(0), fill_bank.eq(~bank)]
        m.d.comb += [fill.bank.eq(fill_bank), fill.column.eq(column)]
        with m.Switch(step):
            for index, entry in enumerate(program):
                with m.Case(index):
                    m.d.comb += [
                        fill.restart.eq(entry.restart),
                        fill.double.eq(entry.double),
                        fill.down.eq(entry.down),
                        writes.eq(running & (entry.code is not None)),
                        fill.code.eq(entry.code or 0),
                    ]
        # The columns' own signals come from a register, so that no look-up table stands behind the program's.
        fill = delayed(m, fill, SEQUENCE_CYCLES, name="fill")
        writes = delayed(m, writes, SEQUENCE_CYCLES, name="writes", clear=True)
        return fill, Cat(writes & (fill.column == column) for column in range(self._shape.fill_columns))

    def _weight_edge(self, m):
        """Recoded weights one cycle later, and ``-C`` of their columns ``tree_levels`` and one cycle behind them."""
        form = self._weight_format
        code = data.StructLayout({"magnitude": form.magnitude_code_bits, "sign": 1})
        table = [magnitude - 1 for magnitude in form.magnitudes]
        words, constants = [], []
        for position in range(self._shape.weight_columns):
            codes = data.View(data.ArrayLayout(code, self._shape.vector), self.weight.word[position])
            layout = data.StructLayout({"operand": self._operand_bits, "add": 1})
            word = Signal(data.ArrayLayout(layout, len(codes)), name=f"operands_{position}", reset_less=True)
            signs = Signal(len(codes), name=f"signs_{position}", reset_less=True)
            for lane, entry in enumerate(codes):
                m.d.sync += [
                    word[lane].operand.eq(lookup(table, entry.magnitude, self._operand_bits)),
                    word[lane].add.eq(~entry.sign),
                    signs[lane].eq(entry.sign),
                ]
            words.append(word)
            if not self._activation_format.signed:
                count = adder_tree(m, list(signs), name=f"count_{position}")
                constants.append(delayed(m, -count, 1, name=f"owed_{position}"))
        return words, constants

    def _constant(self, m, column, owed, constants, taken):
        """What the sums of a column start from: the excess of its tables' unsigned words, negative."""
        constant = Signal(signed(self._shape.sum_bits), name=f"constant_{column}")
        if self._activation_format.signed:
            m.d.comb += constant.eq(-(self._shape.vector << self._word_bits - 1))
            return constant
        index, position = divmod(column, self._shape.weight_columns)
        waiting = Signal.like(constants[position], name=f"signs_waiting_{column}", reset_less=True)
        signs = Signal.like(waiting, name=f"signs_{column}", reset_less=True)
        with m.If(owed == (1 | index << 1)):
            m.d.sync += waiting.eq(constants[position])
        with m.If(taken):
            m.d.sync += signs.eq(waiting)
        m.d.comb += constant.eq(signs << self._word_bits)
        return constant
