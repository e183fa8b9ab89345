"""Significant-bit multipliers: the product of a weight's magnitude and an activation, without a DSP block.

Both forms take operands that were recoded once at the array's edge and give a *lane word*: the product as an unsigned
integer, or, for signed activations, the two's complement product with its top bit inverted, that is plus ``2**(W-1)``.
The sign of the weight is not part of it; the adder tree applies it (numerics 5.2, :mod:`sigbit_hw.lib.tree`).
"""

from dataclasses import dataclass
from functools import cache, cached_property, reduce
from itertools import combinations, zip_longest
from operator import or_

from amaranth import *

from ..lib.ultrascale import Function, function_luts, functions
from ..spec.formats import product_bits
from .operand import activation_levels, bits_of, lookup, significand_bits, significand_parts

__all__ = ["LATE_INPUTS", "ProductBit", "SignificandMultiplier", "TableMultiplier", "multiplier"]

#: Inputs of a look-up table of the target families.
LUT_INPUTS = 6
#: Largest truth table: six inputs and the multiplexers that join eight such tables in one slice.
TABLE_INPUTS_MAX = 9
#: A truth table this small fits into the look-up table of the adder that takes the bit, beside the other word's bit
#: and a sign.
LATE_INPUTS = LUT_INPUTS - 2
#: Such a bit costs nothing in every second lane.
LATE_COST = 0.5
#: A conjunction is the reset of the register behind it.
FREE_INPUTS = 2
#: Cost of one more bit of the activation word, a register per lane, in look-up tables.
REGISTER_COST = 0.25


class _Multiplier:
    """What the two forms share: formats, widths and the meaning of the lane word."""

    def __init__(self, weight_format, activation_format):
        if not weight_format.signed:
            raise ValueError(f"Weight format must be signed (int, esb, ausn-a or ausn-g), not {weight_format}")
        self.weight_format = weight_format
        self.activation_format = activation_format

    @cached_property
    def _levels(self):
        return activation_levels(self.activation_format)

    @property
    def product_bits(self):
        """Width ``W`` of the lane word; every product of any codes fits."""
        return product_bits(self.weight_format, self.activation_format)

    @property
    def zero(self):
        """Lane word of the product 0."""
        return 1 << (self.product_bits - 1) if self.activation_format.signed else 0


@dataclass(frozen=True)
class ProductBit:
    """One bit of the lane word as a truth table.

    Attributes
    ----------
    weight : tuple of int
        Bits of the weight word that it depends on.
    activation : tuple of int
        Bits of the activation word that it depends on.
    truth : tuple of int
        Value for every index ``{activation, weight}``, first bits lowest.
    """

    weight: tuple
    activation: tuple
    truth: tuple

    @property
    def inputs(self):
        """Number of inputs of the truth table."""
        return len(self.weight) + len(self.activation)

    def function(self, weight_bits):
        """The bit as a function of ``Cat(weight, activation)``."""
        return Function(self.truth, (*self.weight, *(weight_bits + bit for bit in self.activation)))


def _table_cost(inputs):
    if inputs <= FREE_INPUTS:
        return 0
    return LATE_COST if inputs <= LATE_INPUTS else 1 << max(inputs - LUT_INPUTS, 0)


def _told_apart(column, pairs):
    """Bit set of the pairs of codes for which a function of the code differs."""
    return sum(1 << position for position, (one, other) in enumerate(pairs) if column[one] != column[other])


class TableMultiplier(_Multiplier):
    """Every bit of the lane word is one truth table of the two codes; one cycle.

    Each bit sees only as much of the activation as tells apart the functions of the weight that it selects: code
    bits, bits of the level, or the index of the function, whichever costs least. These bits form the activation word,
    computed at the edge.

    Parameters
    ----------
    weight_format, activation_format : :class:`Format`
        Operands; together at most 9 bits of magnitude code and activation code.

    Raises
    ------
    :exc:`ValueError`
        If the weight is unsigned or the codes are too long.
    """

    form = "table"
    delay_cycles = 1

    def __init__(self, weight_format, activation_format):
        super().__init__(weight_format, activation_format)
        inputs = weight_format.magnitude_code_bits + activation_format.bits
        if inputs > TABLE_INPUTS_MAX:
            raise ValueError(
                f"A table of {weight_format} x {activation_format} has {inputs} inputs; "
                f"expected at most {TABLE_INPUTS_MAX}"
            )

    @property
    def weight_bits(self):
        """Bits of the weight word, the magnitude code itself."""
        return self.weight_format.magnitude_code_bits

    @property
    def weight_table(self):
        """Weight word of every magnitude code."""
        return tuple(range(1 << self.weight_bits))

    @property
    def activation_bits(self):
        """Bits of the activation word."""
        return len(self._plan[1])

    @property
    def activation_table(self):
        """Activation word of every stored code."""
        columns = self._plan[1]
        return tuple(
            sum(column[code] << bit for bit, column in enumerate(columns)) for code in range(len(self._levels))
        )

    @property
    def bits(self):
        """The truth tables, a tuple of :class:`ProductBit`."""
        return self._plan[0]

    @property
    def luts(self):
        """Look-up tables of six inputs per multiplier."""
        return function_luts(self.functions())

    def functions(self, *, late=False):
        """Bits of the lane word as functions of ``Cat(weight, activation)``; with ``late`` without the adder's own."""
        return [bit.function(self.weight_bits) for bit in self.bits if not late or bit.inputs > LATE_INPUTS]

    @cached_property
    def _plan(self):
        code_bits = [bits_of(range(len(self._levels)), bit) for bit in range(self.activation_format.bits)]
        return min((self._planned([]), self._planned(code_bits)), key=lambda plan: plan[0])[1:]

    def _planned(self, used):
        """``(cost, bits, columns)`` of the plan that starts from the functions ``used`` of the activation code."""
        magnitudes = self.weight_format.magnitudes
        words = [[magnitude * level + self.zero for magnitude in magnitudes] for level in self._levels]
        level_bits = max(abs(level) for level in self._levels).bit_length() + self.activation_format.signed
        pool = [bits_of(self._levels, bit) for bit in range(level_bits)]
        pool += [bits_of(range(len(self._levels)), bit) for bit in range(self.activation_format.bits)]
        plan = []
        for bit in range(self.product_bits):
            functions = [bits_of(row, bit) for row in words]
            weight = tuple(
                index
                for index in range(self.weight_bits)
                if any(function[t] != function[t ^ 1 << index] for function in functions for t in range(len(function)))
            )
            columns = self._selectors(functions, len(weight), used, pool)
            used = [*used, *(column for column in columns if column not in used)]
            plan.append((functions, weight, columns))
        used = [column for column in used if any(column in columns for _, _, columns in plan)]
        order = {column: position for position, column in enumerate(used)}
        bits = []
        for functions, weight, columns in plan:
            truth = [0] * (1 << (len(weight) + len(columns)))
            for code, function in enumerate(functions):
                selector = sum(column[code] << position for position, column in enumerate(columns))
                for t, value in enumerate(function):
                    index = sum((t >> source & 1) << position for position, source in enumerate(weight))
                    truth[selector << len(weight) | index] = value
            bits.append(ProductBit(weight, tuple(order[column] for column in columns), tuple(truth)))
        cost = sum(_table_cost(bit.inputs) for bit in bits) + REGISTER_COST * len(used)
        return cost, tuple(bits), tuple(used)

    @staticmethod
    def _selectors(functions, weight_inputs, used, pool):
        """Functions of the activation code that tell the weight functions of one bit apart, at the least cost."""
        distinct = sorted(set(functions))
        indices = [distinct.index(function) for function in functions]
        index_bits = (len(distinct) - 1).bit_length()
        choices = [tuple(bits_of(indices, bit) for bit in range(index_bits))]
        pairs = [pair for pair in combinations(range(len(indices)), 2) if indices[pair[0]] != indices[pair[1]]]
        for candidates in (used, pool):
            told_apart = {column: _told_apart(column, pairs) for column in candidates}
            for count in range(index_bits, TABLE_INPUTS_MAX - weight_inputs + 1):
                found = [
                    columns
                    for columns in combinations(candidates, count)
                    if reduce(or_, map(told_apart.get, columns), 0) == (1 << len(pairs)) - 1
                ]
                choices += found
                if found:
                    break

        def cost(columns):
            new = sum(column not in used for column in columns)
            return _table_cost(weight_inputs + len(columns)) + REGISTER_COST * new, len(columns)

        return min(choices, key=cost)

    def product(self, m, platform, weight, activation, name):
        """Lane word of two operand words, ``delay_cycles`` later, as a Signal added to ``m``."""
        word = Signal(self.product_bits, name=f"{name}_product", reset_less=True)
        m.d.sync += word.eq(Cat(functions(m, platform, self.functions(), Cat(weight, activation), f"{name}_bit")))
        return word

    def late_product(self, m, platform, weight, activation, late_weight, late_activation, name):
        """Lane word of which the bits of few inputs are left to the logic of the first adder.

        These take the operand words one cycle later.
        """
        early = iter(functions(m, platform, self.functions(late=True), Cat(weight, activation), f"{name}_bit"))
        bits = []
        for index, bit in enumerate(self.bits):
            if bit.inputs <= LATE_INPUTS:
                late = [bit.function(self.weight_bits)]
                bits += functions(m, None, late, Cat(late_weight, late_activation), name)
            else:
                register = Signal(name=f"{name}_product_{index}", reset_less=True)
                m.d.sync += register.eq(next(early))
                bits.append(register)
        return Cat(bits)


class SignificandMultiplier(_Multiplier):
    """Significands are multiplied, then shifted by the sum of the two shifts.

    Up to six input bits the significand product is a truth table; longer ones add partial products of two bits of the
    weight's significand each. One cycle for the partial products, one per level of their tree and one for the shift
    (none if neither format shifts).

    Parameters
    ----------
    weight_format, activation_format : :class:`Format`
        Operands of any length.

    Raises
    ------
    :exc:`ValueError`
        If the weight is unsigned.
    """

    form = "significand"

    def __init__(self, weight_format, activation_format):
        super().__init__(weight_format, activation_format)
        self._weight_parts = significand_parts(weight_format)
        self._weight_significand = significand_bits(weight_format)
        self._weight_shift = max(shift for _, shift in self._weight_parts)
        parts = significand_parts(activation_format)
        if activation_format.kind == "int":
            self._activation_parts = tuple((level, 0) for level in self._levels)
        elif activation_format.signed:
            self._activation_parts = parts + tuple((-significand, shift) for significand, shift in parts)
        else:
            self._activation_parts = parts
        self._activation_significand = significand_bits(activation_format) + activation_format.signed
        if activation_format.kind == "int":
            self._activation_significand = activation_format.bits
        self._activation_shift = max(shift for _, shift in self._activation_parts)

    @property
    def weight_bits(self):
        """Bits of the weight word ``{shift, significand}``."""
        return self._weight_significand + self._weight_shift.bit_length()

    @property
    def weight_table(self):
        """Weight word of every magnitude code."""
        return tuple(significand | shift << self._weight_significand for significand, shift in self._weight_parts)

    @property
    def activation_bits(self):
        """Bits of the activation word ``{shift, significand}``, a signed significand in two's complement."""
        return self._activation_significand + self._activation_shift.bit_length()

    @property
    def activation_table(self):
        """Activation word of every stored code."""
        mask = (1 << self._activation_significand) - 1
        return tuple(
            significand & mask | shift << self._activation_significand for significand, shift in self._activation_parts
        )

    @property
    def _shift_max(self):
        return self._weight_shift + self._activation_shift

    @property
    def _tabled(self):
        return self._weight_significand + self._activation_significand <= LUT_INPUTS

    @property
    def _partials(self):
        return 1 if self._tabled else -(-self._weight_significand // 2)

    @property
    def delay_cycles(self):
        """Cycles from the operand words to the lane word."""
        return 1 + (self._partials - 1).bit_length() + (self._shift_max > 0)

    @property
    def luts(self):
        """Estimated look-up tables per multiplier: product bits, partial sums, shift multiplexers."""
        significand_product = self._weight_significand + self._activation_significand
        if self._tabled:
            count = significand_product
        else:
            count = self._partials * (self._activation_significand + 2) + (self._partials - 1) * significand_product
        for inputs, cost in ((1, 0), (2, 1), (4, 1), (8, 2), (16, 4)):
            if self._shift_max < inputs:
                return count + cost * self.product_bits
        raise AssertionError("formats have at most three exponent bits")

    def product(self, m, platform, weight, activation, name):
        """Lane word of two operand words, ``delay_cycles`` later, as a Signal added to ``m``."""
        signed_activation = self.activation_format.signed
        multiplicand = activation[: self._activation_significand]
        multiplier_bits = weight[: self._weight_significand]
        width = self._weight_significand + self._activation_significand
        if self._tabled:
            words = [self._tabled_product(m, multiplier_bits, multiplicand, width, name)]
        else:
            words = self._partial_products(m, multiplier_bits, multiplicand, name)
        level = 0
        while len(words) > 1:
            # Each word counts 2**(2 << level) times the one before it.
            words = [
                self._registered(m, sum_, f"{name}_sum_{level}_{index}")
                for index, sum_ in enumerate(
                    low if high is None else low + (high << (2 << level))
                    for low, high in zip_longest(words[::2], words[1::2])
                )
            ]
            level += 1
        word = words[0]
        if self._shift_max:
            amount = weight[self._weight_significand :] + activation[self._activation_significand :]
            for cycle in range(self.delay_cycles - 1):
                amount = self._registered(m, amount, f"{name}_shift_{cycle}")
            shifted = Signal(Shape(self.product_bits, signed_activation), name=f"{name}_shifted")
            with m.Switch(amount):
                for shift in range(self._shift_max + 1):
                    with m.Case(shift):
                        m.d.comb += shifted.eq(word << shift)
            word = Signal.like(shifted, name=f"{name}_product", reset_less=True)
            m.d.sync += word.eq(shifted)
        word = word.as_unsigned()[: self.product_bits] if len(word) >= self.product_bits else word
        return word ^ self.zero if signed_activation else word

    def _tabled_product(self, m, multiplier_bits, multiplicand, width, name):
        mask = (1 << self._activation_significand) - 1
        half = (mask + 1) >> 1
        table = []
        for index in range(1 << width):
            factor = index & ((1 << self._weight_significand) - 1)
            value = index >> self._weight_significand
            if self.activation_format.signed and value >= half:
                value -= mask + 1
            table.append(factor * value)
        product = lookup(table, Cat(multiplier_bits, multiplicand), width)
        if self.activation_format.signed:
            product = product.as_signed()
        return self._registered(m, product, f"{name}_significand")

    def _partial_products(self, m, multiplier_bits, multiplicand, name):
        value = multiplicand.as_signed() if self.activation_format.signed else multiplicand
        words = []
        for index in range(self._partials):
            bits = multiplier_bits[2 * index : 2 * index + 2]
            partial = Mux(bits[0], value, 0)
            if len(bits) == 2:
                partial = partial + (Mux(bits[1], value, 0) << 1)
            words.append(self._registered(m, partial, f"{name}_partial_{index}"))
        return words

    @staticmethod
    def _registered(m, value, name):
        register = Signal(value.shape(), name=name, reset_less=True)
        m.d.sync += register.eq(value)
        return register


@cache
def multiplier(weight_format, activation_format):
    """The cheaper form for two formats, by look-up tables; the table, which is faster, if they tie."""
    significand = SignificandMultiplier(weight_format, activation_format)
    if weight_format.magnitude_code_bits + activation_format.bits > TABLE_INPUTS_MAX:
        return significand
    table = TableMultiplier(weight_format, activation_format)
    return table if table.luts <= significand.luts else significand
