"""Characters on a pair of lines: 8 data bits, no parity, one stop bit, and BREAK."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out
from sigbit_hw.spec.serial import BREAK_BITS

__all__ = ["UartReceiver", "UartTransmitter", "baud_step"]

_PHASE_BITS = 20
#: Start bit, eight data bits, stop bit.
_CHARACTER_BITS = 10


def baud_step(clock_hz, baud):
    """What a phase accumulator of 20 bits adds per clock cycle to overflow ``baud`` times a second.

    Raises
    ------
    :exc:`ValueError`
        If there are fewer than four clock cycles per bit.
    """
    if clock_hz < 4 * baud:
        raise ValueError(f"baud must be at most a fourth of the clock ({clock_hz} Hz), not {baud!r}")
    return round((baud << _PHASE_BITS) / clock_hz)


class UartReceiver(wiring.Component):
    """Characters from a line. Bits are sampled in their middle, within half a clock cycle.

    Parameters
    ----------
    clock_hz, baud : int

    Members
    -------
    line : ``In(1)``
        Asynchronous; high when idle.
    o : ``Out(8)``, ``valid`` : ``Out(1)``
        A character, for one cycle: whoever listens takes it.
    error : ``Out(1)``
        Pulse: a character without stop bit, unless it is all zero, as in a BREAK.
    broken : ``Out(1)``
        High from when the line has been low for :data:`BREAK_BITS` bit times until it is high again.
    """

    def __init__(self, clock_hz, baud):
        self._step = baud_step(clock_hz, baud)
        super().__init__({"line": In(1, init=1), "o": Out(8), "valid": Out(1), "error": Out(1), "broken": Out(1)})

    def elaborate(self, platform):
        m = Module()
        line = Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(self.line, line, init=1)
        phase = Signal(_PHASE_BITS)
        tick = Signal()
        bits = Signal(range(_CHARACTER_BITS + 1))
        character = Signal(8)
        low = Signal(range(BREAK_BITS + 1))
        low_phase = Signal(_PHASE_BITS)
        low_tick = Signal()

        m.d.comb += self.o.eq(character)
        m.d.sync += [self.valid.eq(0), self.error.eq(0), Cat(phase, tick).eq(phase + self._step)]
        with m.If((bits == 0) & ~self.broken):
            # Half a bit ahead, so that ticks come in the middle of bits; a step more for the cycle that sets bits.
            m.d.sync += [phase.eq((1 << _PHASE_BITS - 1) + self._step), tick.eq(0)]
            with m.If(~line):
                m.d.sync += bits.eq(_CHARACTER_BITS)
        with m.Elif(tick & (bits != 0)):
            m.d.sync += bits.eq(bits - 1)
            with m.If(bits == 1):
                m.d.sync += [self.valid.eq(line), self.error.eq(~line & (character != 0))]
            with m.Elif((bits == _CHARACTER_BITS) & line):
                m.d.sync += bits.eq(0)  # a glitch and no start bit
            with m.Else():
                m.d.sync += character.eq(Cat(character[1:], line))

        m.d.sync += Cat(low_phase, low_tick).eq(low_phase + self._step)
        with m.If(line):
            m.d.sync += [low.eq(0), low_phase.eq(0), low_tick.eq(0), self.broken.eq(0)]
        with m.Elif(low_tick):
            with m.If(low == BREAK_BITS - 1):
                m.d.sync += [self.broken.eq(1), bits.eq(0)]
            with m.Else():
                m.d.sync += low.eq(low + 1)
        return m


class UartTransmitter(wiring.Component):
    """Characters to a line, without gaps while there are any.

    Parameters
    ----------
    clock_hz, baud : int

    Members
    -------
    i : ``In(stream.Signature(8))``
    line : ``Out(1)``
        High when idle.
    """

    def __init__(self, clock_hz, baud):
        self._step = baud_step(clock_hz, baud)
        super().__init__({"i": In(stream.Signature(8)), "line": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        phase = Signal(_PHASE_BITS)
        tick = Signal()
        bits = Signal(range(_CHARACTER_BITS + 1))
        character = Signal(_CHARACTER_BITS - 1, init=~0)
        m.d.comb += self.i.ready.eq(bits == 0)
        with m.If(bits == 0):
            m.d.sync += [phase.eq(0), tick.eq(0)]
            with m.If(self.i.valid):
                m.d.sync += [
                    Cat(self.line, character).eq(Cat(C(0, 1), self.i.payload, C(1, 1))),
                    bits.eq(_CHARACTER_BITS),
                ]
        with m.Else():
            m.d.sync += Cat(phase, tick).eq(phase + self._step)
            with m.If(tick):
                m.d.sync += [Cat(self.line, character).eq(Cat(character, C(1, 1))), bits.eq(bits - 1)]
        return m
