"""Brings the stationary weights of the next tile into the grid while the current tile computes."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["WeightLoader"]


class WeightLoader(wiring.Component):
    """Read the weight words of a job tile by tile, each as soon as the shadow registers of the grid are free.

    Parameters
    ----------
    hold_cycles : int
        Cycles after ``swap`` before the first word of the next tile may be read.

    Members
    -------
    job : In(stream.Signature(...))
        ``base`` and ``words`` per tile; ``counts``: the loops over tiles.
    swap : In(1)
        The loaded tile is being taken over by the grid.
    loaded : Out(1)
        All words of the next tile have been read.
    read : Out(1)
        The word at ``address`` is wanted this cycle, for ``column`` of the grid; columns come in ascending order.
    address : Out(20)
    column : Out(12)
    """

    def __init__(self, hold_cycles):
        self._hold_cycles = hold_cycles
        super().__init__(
            {
                "job": In(
                    stream.Signature(
                        data.StructLayout({"base": 20, "words": 12, "counts": data.ArrayLayout(unsigned(16), 3)})
                    )
                ),
                "swap": In(1),
                "loaded": Out(1),
                "read": Out(1),
                "address": Out(20),
                "column": Out(12),
            }
        )

    def elaborate(self, platform):
        m = Module()
        job = Signal.like(self.job.payload)
        active = Signal()
        tiles_left = [Signal(16, name=f"tiles_left{i}") for i in range(3)]
        hold = Signal(range(self._hold_cycles + 1))

        with m.If(hold != 0):
            m.d.sync += hold.eq(hold - 1)
        with m.If(self.swap):
            m.d.sync += [self.loaded.eq(0), hold.eq(self._hold_cycles)]

        m.d.comb += self.job.ready.eq(~active)
        with m.If(self.job.valid & self.job.ready):
            m.d.sync += [
                job.eq(self.job.payload),
                active.eq(1),
                self.address.eq(self.job.payload.base),
                self.column.eq(0),
                *(left.eq(self.job.payload.counts[i] - 1) for i, left in enumerate(tiles_left)),
            ]

        m.d.comb += self.read.eq(active & ~self.loaded & (hold == 0))
        with m.If(self.read):
            m.d.sync += self.address.eq(self.address + 1)
            m.d.sync += self.column.eq(self.column + 1)
            with m.If(self.column == job.words - 1):
                m.d.sync += [self.loaded.eq(1), self.column.eq(0)]
                with m.If(tiles_left[2] != 0):
                    m.d.sync += tiles_left[2].eq(tiles_left[2] - 1)
                with m.Else():
                    m.d.sync += tiles_left[2].eq(job.counts[2] - 1)
                    with m.If(tiles_left[1] != 0):
                        m.d.sync += tiles_left[1].eq(tiles_left[1] - 1)
                    with m.Else():
                        m.d.sync += tiles_left[1].eq(job.counts[1] - 1)
                        with m.If(tiles_left[0] != 0):
                            m.d.sync += tiles_left[0].eq(tiles_left[0] - 1)
                        with m.Else():
                            m.d.sync += active.eq(0)
        return m
