"""Encoder: from half units to one native code of the value, in the tensor's format (``docs/numerics.md`` 6.3, 6.4)."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..lib.delay import delayed
from ..spec.formats import Format
from ..spec.instructions import Encoding
from ..spec.parts import WIDE_ACTIVATIONS, activation_parts, has_digits, part_shift_bits
from .requantize import half_unit_bits

__all__ = ["UNIFORM_BITS", "Encoder", "part_count", "part_index_bits", "uniform_level", "uniform_range"]

#: Bits of the widest uniform format.
UNIFORM_BITS = max(stored.bits for stored in WIDE_ACTIVATIONS)


def part_count(native_format):
    """Most native codes that a stored value has."""
    if not has_digits(native_format):
        return 1
    return max(activation_parts(native_format, stored).count for stored in WIDE_ACTIVATIONS)


def part_index_bits(native_format):
    """Width of the index of a part of an 8-bit activation; at least 1."""
    return max(1, ceil_log2(part_count(native_format)))


def uniform_range(native_format, encoding, bits):
    """``(limit, excess)`` that an :class:`Encoder` needs for an ``encoding`` with so many ``bits``, without registers.

    Parameters
    ----------
    native_format : :class:`Format` or None
    encoding, bits : value-like
        Fields of POST. A native uniform format is taken like any other; else NATIVE and RAW give no defined result.
    """
    signed = encoding == Encoding.INT
    if native_format is not None and native_format.uniform:
        native = encoding == Encoding.NATIVE
        bits = Mux(native, native_format.bits, bits)
        signed |= native & native_format.signed
    limit = Cat(bits > position for position in range(UNIFORM_BITS))
    return limit, Cat(bits == position + 1 for position in range(UNIFORM_BITS)) & signed.replicate(UNIFORM_BITS)


class Encoder(wiring.Component):
    """Project half units to the nearest level, ties to the larger one, and give one native code of it, every cycle.

    All formats saturate at their outermost levels; a negative zero and ``-2**(b-1)`` are never given. Levels of a
    uniform format are computed in excess: ``limit`` is the largest result, ``excess`` that of level 0. The code of a
    level that is not native is the digit ``part`` of :func:`~sigbit_hw.spec.parts.activation_parts`, with sign 0 in
    signed native formats.

    Parameters
    ----------
    native_format : :class:`Format`
        Native activation format.

    Members
    -------
    half_units : In(signed(half_unit_bits(native_format)))
        ``q``.
    field : In(native_format.bits)
        What ``Encoding.RAW`` gives.
    encoding : In(:class:`Encoding`)
    limit : In(8)
        ``2**b - 1`` of a uniform format, as :func:`uniform_range` gives it.
    excess : In(8)
        ``2**(b-1)`` of a signed uniform format, else 0.
    relu : In(1)
        A negative result becomes level 0; no effect on ``Encoding.RAW``.
    part : In(part_index_bits(native_format))
        Digit of a level; values beyond the last part give no defined result.
    code : Out(native_format.bits)

    Raises
    ------
    :exc:`TypeError`
        If ``native_format`` is not a :class:`Format`.
    """

    #: Cycles from ``half_units`` to ``code``.
    latency_cycles = 4

    def __init__(self, native_format):
        if not isinstance(native_format, Format):
            raise TypeError(f"native_format must be a Format, not {native_format!r}")
        self._format = native_format
        self._step = part_shift_bits(native_format)
        #: Name that is the same for equal encoders only.
        self.module_name = f"encoder_{native_format.identifier}"
        super().__init__(
            {
                "half_units": In(signed(half_unit_bits(native_format))),
                "field": In(native_format.bits),
                "encoding": In(2),
                "limit": In(UNIFORM_BITS),
                "excess": In(UNIFORM_BITS),
                "relu": In(1),
                "part": In(part_index_bits(native_format)),
                "code": Out(native_format.bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        native_format = self._format

        # Cycle 1: magnitude by one's complement, which is what turns ties up on the negative side; integer in excess,
        # rounded by the carry of the bit below.
        negative = Signal(reset_less=True)
        magnitude = Signal(len(self.half_units) - 1, reset_less=True)
        sign = self.half_units[-1]
        m.d.sync += [negative.eq(sign), magnitude.eq(self.half_units[:-1] ^ sign.replicate(len(magnitude)))]
        doubled = self.half_units + Cat(Const(1, 1), self.excess)
        rounded = Signal(signed(len(doubled) - 1), reset_less=True)
        m.d.sync += rounded.eq(doubled >> 1)
        relu = delayed(m, self.relu, 1, name="relu")
        limit = delayed(m, self.limit, 1, name="limit")
        excess = delayed(m, self.excess, 1, name="excess")

        # Cycles 2 and 3: select by position, then round and saturate.
        level = uniform_level(m, rounded, negative, relu, limit, excess)
        if native_format.uniform:
            # Two's complement has the other top bit than excess.
            native = level[: native_format.bits] ^ (native_format.signed << native_format.bits - 1)
        else:
            native = _significant_bit_code(m, native_format, negative, magnitude, relu)

        # Cycle 4: one code.
        encoding = delayed(m, self.encoding, 3, name="encoding")
        part = delayed(m, self.part, 3, name="part")
        field = delayed(m, self.field, 3, name="field")
        step = self._step
        with m.Switch(encoding):
            with m.Case(Encoding.NATIVE):
                m.d.sync += self.code.eq(native)
            if has_digits(native_format):
                with m.Case(Encoding.UINT, Encoding.INT):
                    with m.Switch(part):
                        for index in range(-(-len(level) // step)):
                            with m.Case(index):
                                m.d.sync += self.code.eq(level[step * index :][:step])
            with m.Case(Encoding.RAW):
                m.d.sync += self.code.eq(field)
        return m


def uniform_level(m, rounded, negative, relu, limit, excess):
    """Clamp integers in excess to the levels of a uniform format; two cycles.

    The lowest result is 1 if the format is signed, because ``-2**(b-1)`` is never given, and level 0 with ReLU.
    """
    below = Signal(reset_less=True)
    above = Signal(reset_less=True)
    lowest = Signal(reset_less=True)
    m.d.sync += [
        below.eq(rounded[-1] | ~rounded.any() | (negative & relu)),
        above.eq((rounded[: len(limit)] & ~limit).any() | rounded[len(limit) : -1].any()),
        lowest.eq(excess.any()),
    ]
    middle = delayed(m, rounded[: len(limit)], 1, name="middle")
    relu, limit, excess = (
        delayed(m, value, 1, name=f"level_{name}")
        for name, value in (("relu", relu), ("limit", limit), ("excess", excess))
    )
    level = Signal(len(limit), reset_less=True)
    m.d.sync += level.eq(Mux(below, Mux(relu, excess, lowest), Mux(above, limit, middle)))
    return level


def _significant_bit_code(m, format, negative, magnitude, relu):
    """Leading-one encoder of the ESB and AUSN kinds; two cycles."""
    fraction_bits = format.fraction_bits
    top = (1 << format.magnitude_code_bits) - 1
    # Type A has an octave more instead of the levels below 2**s.
    octaves = (1 << format.exponent_bits) - format.gradual

    truncated = Signal(format.magnitude_code_bits, reset_less=True)
    round_bit = Signal(reset_less=True)
    saturated = Signal(reset_less=True)
    for exponent in range(1, octaves + 1):
        significand = magnitude[exponent:][: fraction_bits + 1]
        if format.gradual:
            # The hidden one adds 1 to an exponent field of E - 1; without it (E = 1 only) the code is the integer.
            field = Mux(significand[-1], exponent, exponent - 1)
        else:
            field = Const(exponent - 1, format.exponent_bits)
        selected = [truncated.eq(Cat(significand[:-1], field)), round_bit.eq(magnitude[exponent - 1])]
        if exponent == 1:
            m.d.sync += selected
        else:
            # Longer magnitudes either select a later exponent or saturate.
            with m.If(magnitude[exponent + fraction_bits]):
                m.d.sync += selected
    m.d.sync += saturated.eq(magnitude[octaves + 1 + fraction_bits :].any())

    zero = Signal(reset_less=True)
    smallest = Signal(reset_less=True)
    if not format.gradual:
        # The gap around zero ends at half of the smallest level, 2**s + 1; up to 2**(s+1) no rule of position holds.
        m.d.sync += [
            zero.eq(magnitude < (1 << fraction_bits) + 1),
            smallest.eq(magnitude <= 2 << fraction_bits),
        ]

    suppressed = Signal(reset_less=True)
    minus = Signal(reset_less=True)
    if format.signed:
        nonzero = magnitude.any() if format.gradual else magnitude >= (1 << fraction_bits) + 1
        m.d.sync += [suppressed.eq(negative & relu), minus.eq(negative & nonzero)]
    else:
        m.d.sync += suppressed.eq(negative)

    code = Signal(format.bits, reset_less=True)
    rounded = Mux(saturated | (truncated == top), top, truncated + round_bit)[: len(truncated)]
    if not format.gradual:
        rounded = Mux(smallest, 1, rounded)
    m.d.sync += code.eq(Mux(suppressed | zero, 0, Cat(rounded[: len(truncated)], minus)))
    return code
