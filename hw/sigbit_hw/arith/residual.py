"""Residual operand: native codes from feature memory become the level that is added before requantization."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..spec.formats import Format
from ..spec.parts import has_digits, part_shift_bits
from .encode import UNIFORM_BITS, part_index_bits
from .requantize import residual_bits

__all__ = ["DECODER_INPUTS", "ResidualDecoder", "add_parts"]

#: Members of a decoder that come with every code.
DECODER_INPUTS = ("code", "enable", "first", "part", "native", "lowest")


class ResidualDecoder(wiring.Component):
    """Level of a value whose native codes come one per cycle, least significant part first.

    Parameters
    ----------
    native_format : :class:`Format`
        Native activation format.

    Members
    -------
    code : In(native_format.bits)
    enable : In(1)
        Low: ``level`` is 0, whatever the code.
    first : In(1)
        The code is part 0 of a value.
    part : In
        Number of the part.
    native : In(1)
        The value is one native code, not digits.
    lowest : In(signed(9))
        Level that digits of 0 stand for; 0 if ``native`` or not ``enable``.
    level : Out(signed(residual_bits(native_format)))
        Level of the parts so far, ``latency_cycles`` after a code.

    Raises
    ------
    :exc:`TypeError`
        If ``native_format`` is not a :class:`Format`.
    """

    #: Decode, then add to the parts before.
    latency_cycles = 2

    def __init__(self, native_format):
        if not isinstance(native_format, Format):
            raise TypeError(f"native_format must be a Format, not {native_format!r}")
        self._format = native_format
        #: Name that is the same for equal decoders only.
        self.module_name = f"residual_decoder_{native_format.identifier}"
        super().__init__(
            {
                "code": In(native_format.bits),
                "enable": In(1),
                "first": In(1),
                "part": In(part_index_bits(native_format)),
                "native": In(1),
                "lowest": In(signed(UNIFORM_BITS + 1)),
                "level": Out(signed(residual_bits(native_format))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        inputs = {name: getattr(self, name) for name in DECODER_INPUTS}
        step = part_shift_bits(self._format) if has_digits(self._format) else None
        add_parts(m, self.level, inputs, self._native_level(), step)
        return m

    def _native_level(self):
        """Truth table of every bit of the level."""
        native = self._format
        levels = [native.decode(code) for code in range(1 << native.bits)]
        width = residual_bits(native)
        tables = (sum((level >> bit & 1) << code for code, level in enumerate(levels)) for bit in range(width))
        return Cat(Const(table, len(levels)).bit_select(self.code, 1) for table in tables).as_signed()


def add_parts(m, level, inputs, native_level, step):
    """Add up the parts of a value; two cycles.

    Parameters
    ----------
    level : Signal(signed)
    inputs : dict
        Those of a decoder by name.
    native_level : value-like
        Level of a code that is no digit.
    step : int or None
        Bits of a digit; None if codes are never digits.
    """
    # Cycle 1: what the code contributes, and where the value starts from.
    value = Signal(signed(len(level)), reset_less=True)
    start = Signal(signed(len(level)), reset_less=True)
    first = Signal(reset_less=True)
    m.d.sync += [first.eq(inputs["first"]), start.eq(inputs["lowest"]), value.eq(0)]
    with m.If(inputs["enable"] & inputs["native"]):
        m.d.sync += value.eq(native_level)
    if step is not None:
        with m.Elif(inputs["enable"]):
            with m.Switch(inputs["part"]):
                for part in range(-(-UNIFORM_BITS // step)):
                    with m.Case(part):
                        m.d.sync += value.eq(inputs["code"] << part * step)

    # Cycle 2: sum of the parts.
    m.d.sync += level.eq(Mux(first, start, level) + value)
