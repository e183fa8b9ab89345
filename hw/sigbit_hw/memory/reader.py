"""Feature addresses: a nest of five counted loops with bounds test, one vector per cycle and plane."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..lib.layout import table_layout
from ..spec.instructions import INSTRUCTIONS, LOOP_LEVELS, Opcode

__all__ = ["FeatureReader", "ReaderAddress", "multiple"]

_LEVELS = range(LOOP_LEVELS)


def multiple(value, count):
    """``count`` times a value, as a sum of shifted copies: no multiplication is left to synthesis."""
    return sum((value << bit for bit in range(count.bit_length()) if count >> bit & 1), Const(0, 1))


class ReaderAddress(data.StructLayout):
    """What one plane reads: an address, and whether it lies inside the map (one cycle later than the address)."""

    def __init__(self):
        super().__init__({"address": 20, "inside": 1})


class FeatureReader(wiring.Component):
    """Walk the loop nest of a COMPUTE or POOL instruction (:mod:`sigbit_hw.spec.instructions`).

    The position is available combinationally; ``advance`` consumes it. One position per cycle.

    Parameters
    ----------
    planes : int
        Output pixels that are read at once.

    Members
    -------
    instruction : In(COMPUTE layout)
        Must hold from ``load`` until the last position has been consumed.
    load : In(1)
        Go to loop position 0; it can be consumed in the next cycle.
    advance : In(1)
        Consume the position.
    first_tile : Out(1)
        The position belongs to the first tile (levels 0 to 2 at 0).
    first_of_block : Out(1)
        The position belongs to the first tile of its block (levels 1 and 2 at 0).
    tile_first, tile_last : Out(1)
        First and last position of levels 3 and 4.
    last : Out(1)
        Last position of the nest.
    planes : Out(ArrayLayout(ReaderAddress, planes))
        ``address`` one cycle after ``advance``, ``inside`` two cycles after.
    """

    def __init__(self, planes):
        self._plane_count = planes
        super().__init__(
            {
                "instruction": In(table_layout(INSTRUCTIONS[Opcode.COMPUTE])),
                "load": In(1),
                "advance": In(1),
                "first_tile": Out(1),
                "first_of_block": Out(1),
                "tile_first": Out(1),
                "tile_last": Out(1),
                "last": Out(1),
                "planes": Out(data.ArrayLayout(ReaderAddress(), planes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        instruction = self.instruction
        remaining = [Signal(16, name=f"remaining{i}") for i in _LEVELS]
        address = [Signal(20, name=f"address{i}") for i in _LEVELS]
        y = [Signal(signed(13), name=f"y{i}") for i in _LEVELS]
        x = [Signal(signed(13), name=f"x{i}") for i in _LEVELS]

        def rewind(level):
            m.d.sync += remaining[level].eq(instruction[f"count{level}"] - 1)

        with m.If(self.load):
            for i in _LEVELS:
                rewind(i)
                m.d.sync += [address[i].eq(instruction.base), y[i].eq(instruction.y0), x[i].eq(instruction.x0)]
            m.d.sync += [self.first_tile.eq(1), self.first_of_block.eq(1), self.tile_first.eq(1)]
        with m.Elif(self.advance):
            m.d.sync += self.tile_first.eq(0)
            # The innermost loop with iterations left steps; the loops inside it start over from there.
            step = Signal(range(LOOP_LEVELS))
            for i in _LEVELS:
                with m.If(remaining[i] != 0):
                    m.d.comb += step.eq(i)
            with m.Switch(step):
                for i in _LEVELS:
                    with m.Case(i):
                        m.d.sync += remaining[i].eq(remaining[i] - 1)
                        for inner in range(i + 1, LOOP_LEVELS):
                            rewind(inner)
                        for inner in range(i, LOOP_LEVELS):
                            m.d.sync += [
                                address[inner].eq(address[i] + instruction[f"step{i}"]),
                                y[inner].eq(y[i] + instruction[f"ystep{i}"]),
                                x[inner].eq(x[i] + instruction[f"xstep{i}"]),
                            ]
                        if i <= 2:
                            m.d.sync += [self.first_tile.eq(0), self.first_of_block.eq(i == 0), self.tile_first.eq(1)]
        exhausted = [remaining[i] == 0 for i in _LEVELS]
        m.d.comb += self.tile_last.eq(exhausted[3] & exhausted[4])
        m.d.comb += self.last.eq(Cat(exhausted).all())

        column_inside = Signal()
        m.d.sync += column_inside.eq((x[-1] >= 0) & (x[-1] < instruction.width))
        for p in range(self._plane_count):
            plane_y = Signal(signed(17), name=f"plane{p}_y")
            m.d.sync += self.planes[p].address.eq(address[-1] + multiple(instruction.plane_step, p))
            m.d.sync += plane_y.eq(y[-1] + multiple(instruction.plane_ystep, p))
            m.d.sync += self.planes[p].inside.eq(column_inside & (plane_y >= 0) & (plane_y < instruction.height))
        return m
