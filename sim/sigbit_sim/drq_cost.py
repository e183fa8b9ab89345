"""What an array of DRQ costs: look-up tables of its processing element, its FIFOs and its predictor, from Yosys.

Our definition, like the array that they belong to (:mod:`.drq`).
"""

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from sigbit_hw.lib.shared import emit_modules
from sigbit_hw.spec.config import accumulator_width

from .drq import COLUMNS, ROWS
from .drq_circuit import DrqElement
from .synthesis import run_synthesis

__all__ = ["RegionPredictor", "drq_cost"]

#: Largest magnitude of a product, channels whose taps are the rows, regions of a row, and their pixels.
_PRODUCT_MAX, _CHANNELS, _REGIONS, _PIXELS = 128 * 255, 2, 16, 64


class RegionPredictor(wiring.Component):
    """Decide which regions of a channel are sensitive; one pixel per cycle, row by row.

    Parameters
    ----------
    regions, pixels : int
        Regions beside each other, and pixels of the largest one, at most.

    Members
    -------
    valid : ``In(1)``
    level : ``In(8)``
        Of a pixel.
    region : ``In``
        Which of those beside each other it lies in.
    first, last : ``In(1)``
        It is the first and the last pixel of its region.
    limit : ``In``
        Threshold times the region's pixels, with ``last``.
    done, sensitive : ``Out(1)``
        One cycle after ``last``.
    """

    def __init__(self, regions=_REGIONS, pixels=_PIXELS):
        self._regions = regions
        self._sum_bits = (255 * pixels).bit_length()
        super().__init__(
            {
                "valid": In(1),
                "level": In(8),
                "region": In(range(regions)),
                "first": In(1),
                "last": In(1),
                "limit": In(self._sum_bits),
                "done": Out(1),
                "sensitive": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.sums = sums = Memory(
            shape=self._sum_bits, depth=self._regions, init=[], attrs={"ram_style": "distributed"}
        )
        read, write = sums.read_port(domain="comb"), sums.write_port()
        total = Signal(self._sum_bits)
        m.d.comb += [
            read.addr.eq(self.region),
            total.eq(Mux(self.first, 0, read.data) + self.level),
            write.addr.eq(self.region),
            write.data.eq(total),
            write.en.eq(self.valid),
        ]
        m.d.sync += [self.done.eq(self.valid & self.last), self.sensitive.eq(total >= self.limit)]
        return m


class _Fifo(wiring.Component):
    """Sums of one row of the array on their way to the next."""

    def __init__(self, width, depth):
        self._width, self._depth = width, depth
        super().__init__(
            {
                "i": In(width),
                "put": In(1),
                "space": Out(1),
                "o": Out(width),
                "take": In(1),
                "filled": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = fifo = SyncFIFO(width=self._width, depth=self._depth)
        m.d.comb += [
            fifo.w_data.eq(self.i),
            fifo.w_en.eq(self.put),
            self.space.eq(fifo.w_rdy),
            self.o.eq(fifo.r_data),
            fifo.r_en.eq(self.take),
            self.filled.eq(fifo.r_rdy),
        ]
        return m


def drq_cost(depths=(4, 16)):
    """Look-up tables per processing element of the array of :mod:`.drq`.

    Parameters
    ----------
    depths : iterable of int
        Of the FIFOs between rows.

    Returns
    -------
    dict
        ``element``; ``predictor``: of one channel; ``fifos``: of one row, by depth; ``lockstep`` and ``elastic`` (by
        depth): all of it per processing element.
    """
    sum_bits = accumulator_width(ROWS, _PRODUCT_MAX)

    def luts(component):
        figures = run_synthesis(emit_modules(component, "part"), "part")
        return figures["lut"] + figures["lutram"] + figures["srl"]

    element, predictor = luts(DrqElement(sum_bits)), luts(RegionPredictor())
    fifos = {depth: luts(_Fifo(COLUMNS * sum_bits, depth)) for depth in depths}
    lockstep = element + _CHANNELS * predictor / (ROWS * COLUMNS)
    elastic = {depth: lockstep + lut / COLUMNS for depth, lut in fifos.items()}
    return {"element": element, "predictor": predictor, "fifos": fifos, "lockstep": lockstep, "elastic": elastic}
