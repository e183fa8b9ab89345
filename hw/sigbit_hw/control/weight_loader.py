"""Brings the stationary weights of the next tile into the grid while the current tile computes."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

__all__ = ["WeightLoader"]


class WeightLoader(wiring.Component):
    """Read the weight words of a job tile by tile, each as soon as the shadow registers of the grid are free.

    The words of a tile are read one per cycle without a gap, so the tile may be used while its last words still come.

    Parameters
    ----------
    hold_cycles : int
        Cycles after ``swap`` before the first word of the next tile may be read.
    lead_cycles : int
        Cycles from the first word of a tile to its ``swap``; with what ``fill_steps`` adds, 1 or more.
    fill_columns : int
        Cycles that one more of ``fill_steps`` adds; a power of two, or 0.

    Members
    -------
    job : In(stream.Signature(...))
        ``base`` and ``words`` per tile; ``counts``: the loops over tiles.
    allowed : In(1)
        The first word of a tile may be read; unconnected, always.
    fill_steps : In(16)
        While ``allowed``.
    swap : In(1)
        The next tile is being taken over by the grid; only while ``loaded``.
    loaded : Out(1)
        The next tile may be used.
    reading, ahead : Out(1)
        Words of a tile are being read; it was not taken over yet.
    read : Out(1)
        The word at ``address`` is wanted this cycle; it is the ``index``-th of its tile.
    address : Out(20)
    index : Out(12)
    """

    def __init__(self, *, hold_cycles, lead_cycles, fill_columns=0):
        if lead_cycles < 1 and not fill_columns:
            raise ValueError(f"lead_cycles must be 1 or more, not {lead_cycles!r}")
        self._hold_cycles = hold_cycles
        self._lead_cycles = lead_cycles
        self._fill_columns = fill_columns
        super().__init__(
            {
                "job": In(
                    stream.Signature(
                        data.StructLayout({"base": 20, "words": 12, "counts": data.ArrayLayout(unsigned(16), 3)})
                    )
                ),
                "allowed": In(1, init=1),
                "fill_steps": In(16),
                "swap": In(1),
                "loaded": Out(1),
                "reading": Out(1),
                "ahead": Out(1),
                "read": Out(1),
                "address": Out(20),
                "index": Out(12),
            }
        )

    def elaborate(self, platform):
        m = Module()
        job = Signal.like(self.job.payload)
        active = Signal()
        tiles_left = [Signal(16, name=f"tiles_left{i}") for i in range(3)]
        hold = Signal(range(self._hold_cycles + 1))
        filling = Const(0)
        if self._fill_columns:
            filling = self.fill_steps << exact_log2(self._fill_columns)
        most = self._lead_cycles + (self._fill_columns << len(self.fill_steps))
        lead = Signal(range(most + 1))
        begin = Signal()

        with m.If(hold != 0):
            m.d.sync += hold.eq(hold - 1)
        with m.If(lead != 0):
            m.d.sync += lead.eq(lead - 1)
        with m.If(self.swap):
            m.d.sync += [self.ahead.eq(0), hold.eq(self._hold_cycles)]
        m.d.comb += [
            self.loaded.eq(self.ahead & (lead == 0)),
            begin.eq(active & ~self.reading & ~self.ahead & (hold == 0) & self.allowed),
            self.read.eq(self.reading | begin),
        ]
        with m.If(begin):
            m.d.sync += [self.ahead.eq(1), lead.eq(filling + (self._lead_cycles - 1))]

        m.d.comb += self.job.ready.eq(~active)
        with m.If(self.job.valid & self.job.ready):
            m.d.sync += [
                job.eq(self.job.payload),
                active.eq(1),
                self.address.eq(self.job.payload.base),
                *(left.eq(self.job.payload.counts[i] - 1) for i, left in enumerate(tiles_left)),
            ]

        with m.If(self.read):
            m.d.sync += [self.address.eq(self.address + 1), self.index.eq(self.index + 1), self.reading.eq(1)]
            with m.If(self.index == job.words - 1):
                m.d.sync += [self.reading.eq(0), self.index.eq(0)]
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
