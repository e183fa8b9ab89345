# amaranth: UnusedElaboratable=no
"""Columns of subset-sum cells: distributed arithmetic, the sums of four stationary weights in distributed RAM.

Our definition. A dot product with uniform activations is a sum over the bits of the activations, and what one bit of
four activations adds is the sum of a subset of their four weights. A table holds the 16 sums; each bit of the
activations reads them with four bits of address, and an adder tree adds what the bits read with shifts. So the
cost follows the bits of the weight and of the activation, and any weights whose levels are short enough are the same.
The top bit of signed activations counts negative.

Tables have two banks, one that computes and one that is filled. A generator per row and ``fill_columns`` columns goes
through the subsets in the order of a Gray code, so that it adds or takes away one weight per cycle.
"""

from amaranth import *
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from ..arith.operand import lookup
from ..lib.delay import delayed
from ..lib.sizes import require_positive
from ..lib.tree import Term, adder_tree, ternary_excess, ternary_levels, ternary_tree
from ..lib.ultrascale import tables
from ..spec.config import SUBSET_WEIGHTS, subset_word_bits
from .banked import SEQUENCE_CYCLES, BankedCell, BankedColumns, Generator

__all__ = ["SubsetCell", "SubsetColumns", "SubsetGenerator", "subset_terms"]

#: Steps that fill the tables of a column.
STEPS = 1 << SUBSET_WEIGHTS


def subset_terms(lanes, code_bits, largest_weight, signed_codes):
    """Terms of the words that the tables of a cell give, bit after bit of the activations."""
    offset = 1 << subset_word_bits(largest_weight) - 1
    count = -(-lanes // SUBSET_WEIGHTS)
    largest = offset + min(lanes, SUBSET_WEIGHTS) * largest_weight
    return tuple(
        Term(bit, largest, signed_codes and bit == code_bits - 1) for bit in range(code_bits) for _ in range(count)
    )


class SubsetCell(BankedCell):
    """Sums of the weights that the bits of activation codes select; what is added is a dot product and ``excess``.

    Tables of four lanes each are filled with the sum of the subset ``code`` of their weights, in excess of half of the
    range.

    Parameters
    ----------
    code_bits : int
        Bits of an activation code, which is an integer.
    signed_codes : bool
        Whether codes are in two's complement.
    largest_weight : int
        Largest magnitude of a weight.
    lanes, planes, sum_bits : int
        As of :class:`~.banked.BankedCell`.
    """

    def __init__(self, code_bits, signed_codes, largest_weight, *, lanes, planes, sum_bits):
        require_positive(largest_weight=largest_weight)
        word_bits, words = subset_word_bits(largest_weight), -(-lanes // SUBSET_WEIGHTS)
        super().__init__(code_bits, SUBSET_WEIGHTS, word_bits, words, lanes=lanes, planes=planes, sum_bits=sum_bits)
        self._signed = signed_codes
        self._largest_weight = largest_weight
        self._terms = subset_terms(lanes, code_bits, largest_weight, signed_codes)
        #: Cycles from ``activations`` to ``sums_out``: operands, words of the tables, adders.
        self.latency_cycles = 2 + ternary_levels(len(self._terms))
        offset = 1 << self._word_bits - 1
        #: What a sum is greater by, of any weights and activations.
        self.excess = ternary_excess(self._terms) + sum(
            (-offset if term.negative else offset) << term.shift for term in self._terms
        )

    @property
    def module_name(self):
        """Name that is the same for equal cells only."""
        codes = f"{'s' if self._signed else 'u'}{self._code_bits}"
        return f"subset_cell_{codes}_{self._largest_weight}_{self._lanes}x{self._planes}_{self._sum_bits}"

    def elaborate(self, platform):
        m = Module()
        activations, bank = self._operands(m)
        for plane in range(self._planes):
            codes = [activations[plane * self._lanes + lane] for lane in range(self._lanes)]
            reads = []
            for bit in range(self._code_bits):
                for first in range(0, self._lanes, SUBSET_WEIGHTS):
                    address = [code[bit] for code in codes[first : first + SUBSET_WEIGHTS]]
                    reads.append(Cat(address, Const(0, SUBSET_WEIGHTS - len(address)), bank))
            words = tables(
                m,
                platform,
                list(self.words) * self._code_bits,
                enable=self.write.enable,
                address=Cat(self.write.code, self.write.bank),
                reads=reads,
                name=f"table_{plane}",
            )
            sums = [delayed(m, word, 1, name=f"subset_{plane}_{index}") for index, word in enumerate(words)]
            carried = self.sums_in[plane].as_unsigned()
            root = ternary_tree(m, platform, sums, carried, self._terms, name=f"tree_{plane}")
            m.d.comb += self.sums_out[plane].eq(root)
        return m


class SubsetGenerator(Generator):
    """Adds and takes away weights, one word per four lanes and cycle.

    Parameters
    ----------
    weight_bits, word_bits : int
        Bits of a weight, in two's complement, and of a table entry.
    lanes, columns, weight_columns : int
        As of :class:`~.banked.Generator`.

    Members
    -------
    bank, column, pick, away : ``In``
        Which weights change a sum, and whether they are taken away from it.
    restart : ``In``
        Sums start at zero; one cycle after ``column``.
    words : ``Out``
        Sums in excess of half of the range, two cycles after ``column``.
    """

    def __init__(self, weight_bits, word_bits, *, lanes, columns, weight_columns):
        self._weight_bits = weight_bits
        self._word_bits = word_bits
        super().__init__(
            signed(weight_bits),
            {
                "pick": In(range(SUBSET_WEIGHTS)),
                "away": In(1),
                "restart": In(1),
                "words": Out(data.ArrayLayout(word_bits, -(-lanes // SUBSET_WEIGHTS))),
            },
            lanes=lanes,
            columns=columns,
            weight_columns=weight_columns,
        )

    @property
    def module_name(self):
        """Name that is the same for equal generators only."""
        return f"subset_generator_{self._weight_bits}_{self._word_bits}_{self._sizes}"

    def elaborate(self, platform):
        m = Module()
        chosen = self._chosen(m, platform)
        add = Signal(reset_less=True)
        m.d.sync += add.eq(~self.away)
        for table, word in enumerate(self.words):
            weight = Signal(signed(self._weight_bits), name=f"weight_{table}", reset_less=True)
            first = table * SUBSET_WEIGHTS
            with m.Switch(self.pick):
                for position, lane in enumerate(range(self._lanes)[first : first + SUBSET_WEIGHTS]):
                    with m.Case(position):
                        m.d.sync += weight.eq(chosen[lane])
                with m.Default():
                    m.d.sync += weight.eq(0)
            value = Signal(self._word_bits, name=f"value_{table}", reset_less=True)
            extended = Signal(self._word_bits, name=f"extended_{table}")
            m.d.comb += [extended.eq(weight), word.eq(value)]
            # As in `add_signed`, but exact: what chooses the complement is the borrow.
            total = Cat(C(0, 1), value) - Cat(add, extended ^ add.replicate(self._word_bits))
            m.d.sync += value.eq(total[1 : self._word_bits + 1])
            with m.If(self.restart):
                m.d.sync += value.eq(1 << self._word_bits - 1)
        return m


class SubsetColumns(BankedColumns):
    """Columns of :class:`SubsetCell`; activations ``int`` or ``uint``."""

    def __init__(self, weight_format, activation_format, shape, columns, arrival_cycles=None):
        super().__init__(weight_format, activation_format, shape, columns, arrival_cycles, steps=STEPS, exact=True)

    @property
    def _weight_bits(self):
        return self._weight_format.magnitude_bits + 1

    def _cell(self):
        shape = self._shape
        return SubsetCell(
            self._activation_format.bits,
            self._activation_format.signed,
            self._weight_format.magnitude_max,
            lanes=shape.lanes,
            planes=shape.planes,
            sum_bits=shape.sum_bits,
        )

    def _generator(self):
        shape = self._shape
        return SubsetGenerator(
            self._weight_bits,
            subset_word_bits(self._weight_format.magnitude_max),
            lanes=shape.lanes,
            columns=shape.fill_columns,
            weight_columns=shape.weight_columns,
        )

    def _drive(self, m, generator, fill, step):
        m.d.comb += [generator.pick.eq(fill.pick), generator.away.eq(fill.away), generator.restart.eq(step.restart)]

    def _sequence(self, m, grid, bank):
        """Steps of all columns of a generator from the first word of a tile on, and the column that each writes to.

        Also the bank of the weight word of this cycle. Step ``n`` makes the subset ``n ^ n >> 1``: the weight of the
        lowest bit of ``n`` comes or goes.
        """
        columns = self._shape.fill_columns
        fill = Signal(
            data.StructLayout(
                {
                    "restart": 1,
                    "pick": range(SUBSET_WEIGHTS),
                    "away": 1,
                    "bank": 1,
                    "code": SUBSET_WEIGHTS,
                    "column": range(columns),
                }
            )
        )
        running = Signal()
        fill_bank = Signal()
        step = Signal(SUBSET_WEIGHTS)
        column = Signal(range(columns))
        with m.If(running):
            m.d.sync += Cat(step, column).eq(Cat(step, column) + 1)
            m.d.sync += running.eq(Cat(step, column) != STEPS * columns - 1)
        begin = grid.weight.valid & (grid.weight.index == 0)
        with m.If(begin):
            m.d.sync += [running.eq(1), step.eq(0), column.eq(0), fill_bank.eq(~bank)]
        m.d.comb += [
            fill.restart.eq(step == 0),
            fill.code.eq(step ^ step >> 1),
            fill.away.eq(~fill.code.bit_select(fill.pick, 1)),
            fill.bank.eq(fill_bank),
            fill.column.eq(column),
        ]
        for pick in reversed(range(SUBSET_WEIGHTS)):
            with m.If(step[pick]):
                m.d.comb += fill.pick.eq(pick)
        # The columns' own signals come from a register, so that no look-up table stands behind the step's.
        fill = delayed(m, fill, SEQUENCE_CYCLES, name="fill")
        writes = delayed(m, running, SEQUENCE_CYCLES, name="writes", clear=True)
        return fill, Cat(writes & (fill.column == column) for column in range(columns)), Mux(begin, ~bank, fill_bank)

    def _weight_edge(self, m, platform, grid):
        form = self._weight_format
        code = data.StructLayout({"magnitude": form.magnitude_code_bits, "sign": 1})
        excess = self._shape.rows * self._cell().excess
        words, constants = [], []
        for position in range(self._shape.weight_columns):
            codes = data.View(data.ArrayLayout(code, self._shape.vector), grid.weight.word[position])
            layout = data.ArrayLayout(signed(self._weight_bits), len(codes))
            word = Signal(layout, name=f"weights_{position}", reset_less=True)
            signs = Signal(len(codes), name=f"signs_{position}", reset_less=True)
            for lane, entry in enumerate(codes):
                up = lookup(form.magnitudes, entry.magnitude, self._weight_bits)
                down = lookup([-magnitude for magnitude in form.magnitudes], entry.magnitude, self._weight_bits)
                m.d.sync += [word[lane].eq(Mux(entry.sign, down, up)), signs[lane].eq(entry.sign)]
            words.append(word)
            count = adder_tree(m, list(signs), name=f"count_{position}")
            constant = Signal(signed(self._shape.sum_bits), name=f"owed_{position}", reset_less=True)
            m.d.sync += constant.eq(-excess - count)
            constants.append(constant)
        return words, constants

    def _constant(self, constant):
        return constant
