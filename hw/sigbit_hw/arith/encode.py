"""Encoder: from half units to one native code of the value, in the tensor's format (``docs/numerics.md`` 6.3, 6.4)."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..lib.delay import delayed
from ..spec.formats import INT, UINT, Format
from ..spec.instructions import Encoding
from ..spec.parts import WIDE_ACTIVATIONS, activation_parts
from .requantize import half_unit_bits

__all__ = ["Encoder", "part_index_bits"]


def part_index_bits(native_format):
    """Width of the index of a part of an 8-bit activation; at least 1."""
    return max(1, *(ceil_log2(activation_parts(native_format, stored).count) for stored in WIDE_ACTIVATIONS))


class Encoder(wiring.Component):
    """Project half units to the nearest level, ties to the larger one, and give one native code of it, every cycle.

    All formats saturate at their outermost levels; a negative zero and ``-2**(b-1)`` are never given. The code of an
    8-bit level is the digit ``part`` of :func:`~sigbit_hw.spec.parts.activation_parts`, with sign 0 in signed native
    formats; if the 8-bit format is the native one it is the native code.

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
    relu : In(1)
        A negative result becomes level 0; no effect on ``Encoding.RAW``.
    part : In(part_index_bits(native_format))
        Digit of an 8-bit level; values beyond the last part give no defined result.
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
        #: Name that is the same for equal encoders only.
        self.module_name = f"encoder_{native_format.identifier}"
        super().__init__(
            {
                "half_units": In(signed(half_unit_bits(native_format))),
                "field": In(native_format.bits),
                "encoding": In(2),
                "relu": In(1),
                "part": In(part_index_bits(native_format)),
                "code": Out(native_format.bits),
            }
        )

    def elaborate(self, platform):
        m = Module()

        # Cycle 1: round to integers; magnitude by one's complement, which is what turns ties up on the negative side.
        negative = Signal(reset_less=True)
        magnitude = Signal(len(self.half_units) - 1, reset_less=True)
        rounded = Signal(self.half_units.shape(), reset_less=True)
        sign = self.half_units[-1]
        m.d.sync += [
            negative.eq(sign),
            magnitude.eq(self.half_units[:-1] ^ sign.replicate(len(magnitude))),
            rounded.eq((self.half_units >> 1) + self.half_units[0]),
        ]
        relu = delayed(m, self.relu, 1, name="relu")

        # Cycles 2 and 3: select by position, then round and saturate.
        unsigned_level = _uniform_level(m, UINT(8), rounded, relu, name="unsigned_level")
        signed_level = _uniform_level(m, INT(8), rounded, relu, name="signed_level")
        if self._format.uniform:
            native = _uniform_level(m, self._format, rounded, relu, name="native_level")
        else:
            native = _significant_bit_code(m, self._format, negative, magnitude, relu)

        # Cycle 4: one code.
        encoding = delayed(m, self.encoding, 3, name="encoding")
        part = delayed(m, self.part, 3, name="part")
        field = delayed(m, self.field, 3, name="field")
        with m.Switch(encoding):
            with m.Case(Encoding.NATIVE):
                m.d.sync += self.code.eq(native)
            for kind, stored, level in (
                (Encoding.UINT8, UINT(8), unsigned_level),
                (Encoding.INT8, INT(8), signed_level ^ activation_parts(self._format, INT(8)).offset),
            ):
                parts = activation_parts(self._format, stored)
                with m.Case(kind):
                    if stored == self._format:
                        m.d.sync += self.code.eq(native)
                    else:
                        with m.Switch(part):
                            for index in range(parts.count):
                                with m.Case(index):
                                    m.d.sync += self.code.eq(level[parts.step * index :][: parts.step])
            with m.Case(Encoding.RAW):
                m.d.sync += self.code.eq(field)
        return m


def _uniform_level(m, format, rounded, relu, *, name):
    """Clamp integers to a uniform format; two cycles."""
    code = format.magnitude_code_bits
    negative = rounded[-1]
    low = Signal(name=f"{name}_low", reset_less=True)
    high = Signal(name=f"{name}_high", reset_less=True)
    m.d.sync += high.eq(~negative & rounded[code:].any())
    if format.signed:
        m.d.sync += low.eq(negative & (relu | ~(rounded[code:].all() & rounded[:code].any())))
        lowest = Mux(delayed(m, relu, 1, name=f"{name}_relu"), 0, -format.magnitude_max)
    else:
        m.d.sync += low.eq(negative)
        lowest = 0
    level = Signal(format.bits, name=name, reset_less=True)
    middle = delayed(m, rounded[: format.bits], 1, name=f"{name}_middle")
    m.d.sync += level.eq(Mux(low, lowest, Mux(high, format.magnitude_max, middle)))
    return level


def _significant_bit_code(m, format, negative, magnitude, relu):
    """Leading-one encoder of the ESB kinds; two cycles."""
    fraction_bits = format.fraction_bits
    top = (1 << format.magnitude_code_bits) - 1

    truncated = Signal(format.magnitude_code_bits, reset_less=True)
    round_bit = Signal(reset_less=True)
    saturated = Signal(reset_less=True)
    for exponent in range(1, 1 << format.exponent_bits):
        significand = magnitude[exponent:][: fraction_bits + 1]
        # The hidden one adds 1 to an exponent field of E - 1; without it (E = 1 only) the code is the integer.
        selected = [
            truncated.eq(Cat(significand[:-1], Mux(significand[-1], exponent, exponent - 1))),
            round_bit.eq(magnitude[exponent - 1]),
        ]
        if exponent == 1:
            m.d.sync += selected
        else:
            # Longer magnitudes either select a later exponent or saturate.
            with m.If(magnitude[exponent + fraction_bits]):
                m.d.sync += selected
    m.d.sync += saturated.eq(magnitude[(1 << format.exponent_bits) + fraction_bits :].any())

    suppressed = Signal(reset_less=True)
    minus = Signal(reset_less=True)
    if format.signed:
        m.d.sync += [suppressed.eq(negative & relu), minus.eq(negative & magnitude.any())]
    else:
        m.d.sync += suppressed.eq(negative)

    code = Signal(format.bits, reset_less=True)
    m.d.sync += code.eq(
        Mux(
            suppressed,
            0,
            Cat(Mux(saturated | (truncated == top), top, truncated + round_bit)[: len(truncated)], minus),
        )
    )
    return code
