"""Requantizers: from an accumulator to half units of the output format (``docs/numerics.md`` 6)."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..lib.delay import delayed
from ..spec.formats import Format
from ..spec.instructions import CODEBOOK_DISTANCE_BITS, PARAMETER
from ..spec.parts import RAW_BITS, WIDE_ACTIVATIONS

__all__ = [
    "ANY_HALF_UNIT_BITS",
    "ANY_LEVEL_BITS",
    "SHIFT_MAX",
    "Requantizer",
    "ShiftRequantizer",
    "half_unit_bits",
    "requantizer_class",
    "residual_bits",
]

#: Largest ``sh``.
SHIFT_MAX = 47
#: Signed bits of the levels that an instruction can name, and of the sums of two, with a value beyond them.
ANY_LEVEL_BITS = 1 + CODEBOOK_DISTANCE_BITS
ANY_HALF_UNIT_BITS = 1 + ANY_LEVEL_BITS

_PARAMETER_BITS = {field.name: field.bits for field in PARAMETER.fields}
_DIGIT_BITS = 2


def half_unit_bits(native_format):
    """Signed width of ``q``: every decision point of every output format, and a value beyond the outer ones.

    Saturating to this width changes no code, because ``q`` is only compared with decision points.
    """
    points = [point for format in (native_format, *WIDE_ACTIVATIONS) for point in format.midpoints]
    return 1 + max(max(points).bit_length(), (-min(points)).bit_length())


def residual_bits(native_format):
    """Signed width of every level of the native and the 8-bit formats."""
    levels = [level for format in (native_format, *WIDE_ACTIVATIONS) for level in (format.levels[0], format.levels[-1])]
    return 1 + max(max(levels), -min(levels)).bit_length()


def _product_cycles(multiplier_bits):
    """Cycles of :func:`_product`: triple, and one per digit."""
    return 1 + -(-multiplier_bits // _DIGIT_BITS)


def _product(m, multiplicand, multiplier, name):
    """Signed times unsigned, two bits of the multiplier per cycle: 0, 1, 2 or 3 times the multiplicand.

    ``multiplier`` comes one cycle after ``multiplicand``. Two bits of the product are final after every digit.
    """
    multiplier = Cat(multiplier, Const(0, len(multiplier) % _DIGIT_BITS))
    triple = Signal(signed(len(multiplicand) + 2), name=f"{name}_triple", reset_less=True)
    m.d.sync += triple.eq(multiplicand + (multiplicand << 1))
    single = delayed(m, multiplicand, 1, name=f"{name}_single_0")
    digit_count = len(multiplier) // _DIGIT_BITS
    partial = Const(0, signed(1))
    final = []
    for digit in range(digit_count):
        select = multiplier.word_select(digit, _DIGIT_BITS)
        select = delayed(m, select, digit, name=f"{name}_digit_{digit}")
        multiple = Mux(select[1], Mux(select[0], triple, single << 1), Mux(select[0], single, 0))
        following = Signal(signed(len(triple)), name=f"{name}_partial_{digit}", reset_less=True)
        m.d.sync += following.eq((partial >> _DIGIT_BITS) + multiple)
        if digit < digit_count - 1:
            partial = following
            final.append(delayed(m, following[:_DIGIT_BITS], digit_count - 1 - digit, name=f"{name}_final_{digit}"))
            single = delayed(m, single, 1, name=f"{name}_single_{digit + 1}")
            triple = delayed(m, triple, 1, name=f"{name}_triple_{digit + 1}")
    return Cat(*final, following).as_signed()


class Requantizer(wiring.Component):
    """``q = floor(2 * ((acc + bias) * M + r * M1) / 2**sh)``, saturated; one result per cycle, no DSP block.

    ``M`` is ``N0`` where ``acc + bias`` is negative, else ``M0``. Between two registers there is one LUT level and a
    carry chain, or two LUT levels. The multiplications add two bits of one operand per cycle: 0, 1, 2 or 3 times the
    other, the selection sharing the adder's LUT.

    The shift drops bits (floor) and nothing rounds here; the encoder rounds once (``docs/numerics.md`` 6.3).

    Parameters
    ----------
    native_format : :class:`Format`
        Native activation format; with the 8-bit formats it decides the range of ``q``.
    accumulator_bits : int
        1 to 32.
    any_levels : bool
        ``q`` and ``r`` have the range of all levels that an instruction can name.

    Members
    -------
    accumulator : In(signed(accumulator_bits))
    bias : In(signed(32))
    multiplier, negative_multiplier : In(16)
        ``M0`` and ``N0``.
    unscaled : In(1)
        Both multipliers are 1, whatever they are.
    shift : In(6)
        ``sh``, 0 to 47; larger values give no defined result.
    residual : In(signed(residual_bits(native_format)))
        ``r``; of ``ANY_LEVEL_BITS`` bits with ``any_levels``.
    residual_multiplier : In(24)
        ``M1``.
    half_units : Out(signed(half_unit_bits(native_format)))
        ``q``; of ``ANY_HALF_UNIT_BITS`` bits with ``any_levels``.
    field : Out(native_format.bits)
        Low bits of ``q`` before saturation. If ``unscaled``, with ``sh = n + 1`` they are bits ``n`` and up of
        ``acc + bias``.

    Raises
    ------
    :exc:`TypeError`
        If ``native_format`` is not a :class:`Format`.
    :exc:`ValueError`
        If ``accumulator_bits`` is out of range.
    """

    #: Cycles from operands to result: sum, product, sum with the residual's product, three shifts, saturation.
    latency_cycles = 1 + _product_cycles(_PARAMETER_BITS["multiplier"]) + 5

    def __init__(self, native_format, accumulator_bits=RAW_BITS, any_levels=False):
        if not isinstance(native_format, Format):
            raise TypeError(f"native_format must be a Format, not {native_format!r}")
        if not 1 <= accumulator_bits <= RAW_BITS:
            raise ValueError(f"accumulator_bits must be 1 to {RAW_BITS}, not {accumulator_bits!r}")
        self._half_unit_bits = ANY_HALF_UNIT_BITS if any_levels else half_unit_bits(native_format)
        levels = f"any{native_format.bits}" if any_levels else native_format.identifier
        #: Name that is the same for equal requantizers only.
        self.module_name = f"requantizer_{levels}_{accumulator_bits}"
        super().__init__(
            {
                "accumulator": In(signed(accumulator_bits)),
                "bias": In(signed(_PARAMETER_BITS["bias"])),
                "multiplier": In(_PARAMETER_BITS["multiplier"]),
                "negative_multiplier": In(_PARAMETER_BITS["multiplier"]),
                "unscaled": In(1),
                "shift": In(range(SHIFT_MAX + 1)),
                "residual": In(signed(ANY_LEVEL_BITS if any_levels else residual_bits(native_format))),
                "residual_multiplier": In(_PARAMETER_BITS["residual_multiplier"]),
                "half_units": Out(signed(self._half_unit_bits)),
                "field": Out(native_format.bits),
            }
        )

    def elaborate(self, platform):
        m = Module()

        # Cycle 1: sum.
        total = Signal(signed(_PARAMETER_BITS["bias"] + 1), reset_less=True)
        m.d.sync += total.eq(self.accumulator + self.bias)

        # Cycle 2: multiplier, by the sign of the sum; the product needs its first digit one cycle later.
        names = ("multiplier", "negative_multiplier", "unscaled")
        positive, negative, unscaled = (delayed(m, getattr(self, name), 1, name=name) for name in names)
        multiplier = Signal.like(self.multiplier, reset_less=True)
        m.d.sync += multiplier.eq(Mux(unscaled, 1, Mux(total[-1], negative, positive)))

        # Cycles 2 to 10: products. The residual is multiplied as r + 2**(w-1), which is not negative.
        product = _product(m, total, multiplier, "main")
        product_cycles = 1 + _product_cycles(len(self.multiplier))
        factor = Signal(signed(len(self.residual_multiplier) + 1), reset_less=True)
        m.d.comb += factor.eq(self.residual_multiplier)
        excess = len(self.residual) - 1
        flipped = self.residual ^ (1 << excess)
        flipped = delayed(m, flipped[: len(self.residual)], 1, name="flipped")
        raised = _product(m, factor, flipped, "residual")
        raised_cycles = _product_cycles(len(self.residual))
        addend = Signal(signed(len(self.residual) + len(factor)), reset_less=True)
        m.d.sync += addend.eq(raised - (delayed(m, factor, raised_cycles, name="factor") << excess))
        addend = delayed(m, addend, product_cycles - raised_cycles - 1, name="addend")

        # Cycle 11: sum of the products.
        both = Signal(signed(max(len(product), len(addend)) + 1), reset_less=True)
        m.d.sync += both.eq(product + addend)
        product = both
        cycle = product_cycles + 1

        # Cycles 12 to 15: shift and saturate.
        _shift_and_saturate(m, self, Cat(Const(0, 1), product).as_signed(), self.shift, cycle, 3)
        return m


def _shift_and_saturate(m, dut, word, shift, cycle, steps_of_16):
    """``half_units`` and ``field`` of a requantizer from a signed ``word`` to be shifted right; four cycles.

    ``shift`` comes ``cycle`` cycles before ``word`` and is below ``16 * steps_of_16``.
    """
    width_out = len(dut.half_units)
    # Shift by multiples of 16 and of 4. Bits that the shifted word has no room for must repeat the sign; they are
    # compared in the same cycle, those that count for the shift amount are joined in the next.
    overflow = Const(0, 1)
    for step, steps in ((16, steps_of_16), (4, 4)):
        width = width_out + step - 1
        sign = word[-1]
        select = delayed(m, shift[step.bit_length() - 1 :][:2], cycle, name=f"shift_by_{step}")
        shifted = Signal(signed(width + 1), name=f"shifted_by_{step}", reset_less=True)
        different = Signal(steps - 1, name=f"different_{step}", reset_less=True)
        for index in range(steps - 1):
            piece = word[width + step * index :][:step]
            m.d.sync += different[index].eq((piece ^ sign.replicate(len(piece))).any())
        joined = Signal(name=f"overflow_by_{step}")
        with m.Switch(select):
            for index in range(steps):
                with m.Default() if index == steps - 1 else m.Case(index):
                    m.d.sync += shifted.eq(Cat((word >> step * index)[:width], sign))
        with m.Switch(delayed(m, select, 1, name=f"last_shift_by_{step}")):
            for index in range(steps):
                with m.Default() if index == steps - 1 else m.Case(index):
                    m.d.comb += joined.eq(overflow | different[index:].any())
        overflow = joined if step == 4 else delayed(m, joined, 1, name=f"overflow_{step}")
        word = shifted
        cycle += 1

    # Shift by 0 to 3.
    bits = Signal(width_out, reset_less=True)
    sign = Signal(reset_less=True)
    saturated = Signal(reset_less=True)
    m.d.sync += sign.eq(word[-1])
    with m.Switch(delayed(m, shift[:2], cycle, name="shift_by_1")):
        for index in range(4):
            with m.Case(index):
                beyond = word[width_out - 1 + index : -1]
                m.d.sync += [
                    bits.eq(word[index:]),
                    saturated.eq(overflow | (beyond ^ word[-1].replicate(len(beyond))).any()),
                ]

    # Saturate.
    limit = Cat((~sign).replicate(len(bits) - 1), sign)
    m.d.sync += [
        dut.half_units.eq(Mux(saturated, limit, bits).as_signed()),
        dut.field.eq(bits[: len(dut.field)]),
    ]


def _position(one_hot, bits):
    """Index of the one set bit."""
    return Cat(Cat(one_hot[index] for index in range(len(one_hot)) if index >> bit & 1).any() for bit in range(bits))


class ShiftRequantizer(Requantizer):
    """:class:`Requantizer` for multipliers that are powers of two: a sum, and shifts by position; no multiplication.

    Takes the same parameters. ``multiplier`` has one set bit, and is 1 if ``residual_multiplier``, which has at most
    one, is not 0. ``negative_multiplier`` is of no effect.
    """

    #: Cycles from operands to result: position of the residual's bit, three shifts, sum, three shifts, saturation.
    latency_cycles = 9

    def __init__(self, native_format, accumulator_bits=RAW_BITS, any_levels=False):
        super().__init__(native_format, accumulator_bits, any_levels)
        self.module_name = f"shift_{self.module_name}"

    def elaborate(self, platform):
        m = Module()
        total = Signal(signed(_PARAMETER_BITS["bias"] + 1), reset_less=True)
        m.d.sync += total.eq(self.accumulator + self.bias)

        # A left shift by the position of M0 is a smaller right shift of a word that stands that much higher.
        highest = len(self.multiplier) - 1
        position = Signal(range(highest + 1), reset_less=True)
        m.d.sync += position.eq(Mux(self.unscaled, 0, _position(self.multiplier, len(position))))
        amount = Signal(range(SHIFT_MAX + highest + 1), reset_less=True)
        m.d.sync += amount.eq(delayed(m, self.shift, 1, name="shift") + highest - position)

        # Cycles 1 to 4: residual.
        amount_1 = Signal(range(len(self.residual_multiplier)), reset_less=True)
        present = Signal(reset_less=True)
        m.d.sync += [
            amount_1.eq(_position(self.residual_multiplier, len(amount_1))),
            present.eq(self.residual_multiplier.any()),
        ]
        addend = delayed(m, self.residual, 1, name="residual").as_signed()
        for cycle, (step, steps) in enumerate(((1, 4), (4, 4), (16, 2))):
            select = delayed(m, amount_1[2 * cycle :][: (steps - 1).bit_length()], cycle, name=f"residual_by_{step}")
            following = Signal(
                signed(len(addend) + step * (steps - 1)), name=f"residual_shifted_by_{step}", reset_less=True
            )
            with m.Switch(select):
                for index in range(steps):
                    with m.Case(index):
                        m.d.sync += following.eq(addend << step * index)
            addend = following
        present = delayed(m, present, 3, name="present")

        # Cycle 5: sum.
        both = Signal(signed(max(len(total), len(addend)) + 1), reset_less=True)
        m.d.sync += both.eq(delayed(m, total, 3, name="total").as_signed() + Mux(present, addend, 0))

        # Cycles 6 to 9; the amount is two cycles behind the operands.
        _shift_and_saturate(m, self, Cat(Const(0, 1 + highest), both).as_signed(), amount, 3, 4)
        return m


_REQUANTIZERS = {"multiplier": Requantizer, "shift": ShiftRequantizer}


def requantizer_class(name):
    """Component that ``requantizer`` of a configuration chooses."""
    return _REQUANTIZERS[name]
