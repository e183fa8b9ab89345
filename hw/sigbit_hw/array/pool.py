"""Max pooling on codes: levels are never decoded, only ordered."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["PoolUnit"]


class PoolUnit(wiring.Component):
    """Running maximum of every channel over a window; one position per cycle.

    Positions outside the map are skipped; a window without any position inside gives code 0. A negative zero counts as
    less than zero, so it is given only if nothing else is in the window.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    i : In(valid, first, last, inside, codes)
        One position of the window: ``vector`` native activation codes, channel 0 in the low bits. ``first`` and
        ``last`` may come together. Always accepted.
    o : Out(valid, codes)
        Result, one cycle after ``last``, for that cycle.
    """

    #: Cycles from the last position of a window to its result.
    latency_cycles = 1

    def __init__(self, config):
        self._config = config
        codes = data.ArrayLayout(config.activation_format.bits, config.vector)
        super().__init__(
            {
                "i": In(
                    wiring.Signature(
                        {"valid": Out(1), "first": Out(1), "last": Out(1), "inside": Out(1), "codes": Out(codes)}
                    )
                ),
                "o": Out(wiring.Signature({"valid": Out(1), "codes": Out(codes)})),
            }
        )

    def elaborate(self, platform):
        m = Module()
        started = Signal()  # the maximum is that of at least one position
        running = Signal()
        m.d.comb += running.eq(started & ~self.i.first)
        m.d.sync += self.o.valid.eq(self.i.valid & self.i.last)
        with m.If(self.i.valid):
            m.d.sync += started.eq(running | self.i.inside)
            for code, maximum in zip(self.i.codes, self.o.codes, strict=True):
                with m.If(self.i.inside & (~running | (self._key(code) > self._key(maximum)))):
                    m.d.sync += maximum.eq(code)
                with m.Elif(~running):
                    m.d.sync += maximum.eq(0)
        return m

    def _key(self, code):
        """Integer in the order of the levels; one's complement keeps negation to one LUT input."""
        native = self._config.activation_format
        if self._config.level_tables or not native.signed:
            return code
        if native.kind == "int":
            return code.as_signed()
        return Cat(code[:-1] ^ code[-1].replicate(len(code) - 1), code[-1]).as_signed()
