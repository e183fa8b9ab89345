"""Residual operand: native codes from feature memory become the level that is added before requantization."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..spec.formats import Format
from ..spec.parts import part_shift_bits
from .encode import UNIFORM_BITS, part_index_bits
from .requantize import residual_bits

__all__ = ["ResidualDecoder"]


class ResidualDecoder(wiring.Component):
    """Level of a value whose native codes come one per cycle, least significant part first.

    Parameters
    ----------
    native_format : :class:`Format`
        Native activation format.
    step : int, optional
        Bits of a digit, unless they follow from the format.

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

    def __init__(self, native_format, step=None):
        if not isinstance(native_format, Format):
            raise TypeError(f"native_format must be a Format, not {native_format!r}")
        self._format = native_format
        self._step = step or part_shift_bits(native_format)
        #: Name that is the same for equal decoders only.
        self.module_name = f"residual_decoder_{native_format.identifier}_{self._step}"
        super().__init__(
            {
                "code": In(native_format.bits),
                "enable": In(1),
                "first": In(1),
                "part": In(part_index_bits(native_format, step)),
                "native": In(1),
                "lowest": In(signed(UNIFORM_BITS + 1)),
                "level": Out(signed(residual_bits(native_format))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        native = self._format
        width = residual_bits(native)

        # Cycle 1: what the code contributes, and where the value starts from.
        value = Signal(signed(width), reset_less=True)
        start = Signal(signed(width), reset_less=True)
        first = Signal(reset_less=True)
        m.d.sync += [first.eq(self.first), start.eq(self.lowest), value.eq(0)]
        with m.If(self.enable & self.native):
            m.d.sync += value.eq(self._native_level())
        with m.Elif(self.enable):
            with m.Switch(self.part):
                for part in range(-(-UNIFORM_BITS // self._step)):
                    with m.Case(part):
                        m.d.sync += value.eq(self.code << part * self._step)

        # Cycle 2: sum of the parts.
        m.d.sync += self.level.eq(Mux(first, start, self.level) + value)
        return m

    def _native_level(self):
        """Truth table of every bit of the level."""
        native = self._format
        levels = [native.decode(code) for code in range(1 << native.bits)]
        width = residual_bits(native)
        tables = (sum((level >> bit & 1) << code for code, level in enumerate(levels)) for bit in range(width))
        return Cat(Const(table, len(levels)).bit_select(self.code, 1) for table in tables).as_signed()
