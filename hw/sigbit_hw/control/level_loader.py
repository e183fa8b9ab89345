"""Brings the level table of a part pass into the grid, before its weights."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..lib.layout import table_layout
from ..spec.instructions import LEVEL, LEVEL_CODES
from ..spec.parts import fill_steps

__all__ = ["LevelLoader"]

#: Most cycles that one column's tables take.
STEPS_MAX = fill_steps([(1 << next(field.bits for field in LEVEL.fields if field.name == "step")) - 1] * LEVEL_CODES)


class LevelLoader(wiring.Component):
    """Read the entries of a level table, one per cycle, into the bank that the table before does not use.

    Parameters
    ----------
    codes : int
        Activation codes that tables have; later entries do not take part in filling.
    latency_cycles : int
        From ``address`` to ``entry``, at least 1.

    Members
    -------
    start : ``In(1)``
        Read the table at ``base``; no word of the table before is wanted any more.
    read, address, index : ``Out``
        The word at ``address`` goes to the grid as entry ``index`` of ``bank``.
    bank : ``Out(1)``
        Bank of the latest table.
    entry : ``In``
        The word that was read.
    ready : ``Out(1)``
        The latest table is in the grid when a weight word that is read now gets there; low from the cycle after
        ``start`` on, for ``load_cycles``.
    steps : ``Out``
        Cycles that this table takes to fill one column (:func:`~sigbit_hw.spec.parts.fill_steps`); while ``ready``.
    """

    def __init__(self, *, codes, latency_cycles):
        self._codes = codes
        self._latency_cycles = latency_cycles
        #: From ``start`` to the first weight word at least.
        self.load_cycles = LEVEL_CODES + latency_cycles + 1
        super().__init__(
            {
                "start": In(1),
                "base": In(16),
                "read": Out(1),
                "address": Out(16),
                "index": Out(range(LEVEL_CODES)),
                "bank": Out(1),
                "entry": In(table_layout(LEVEL)),
                "ready": Out(1),
                "steps": Out(range(STEPS_MAX + 1)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        left = Signal(range(self.load_cycles))
        arrived = Signal(range(LEVEL_CODES + 1))
        m.d.comb += self.ready.eq(left == 0)
        with m.If(left != 0):
            m.d.sync += left.eq(left - 1)
        with m.If(self.read):
            m.d.sync += [self.address.eq(self.address + 1), self.index.eq(self.index + 1)]
            with m.If(self.index == LEVEL_CODES - 1):
                m.d.sync += self.read.eq(0)
        # As `fill_steps` counts.
        step = self.entry.step
        cycles = Signal(len(step))
        m.d.comb += cycles.eq((step + 1) >> 1)
        with m.If((left != 0) & (left <= LEVEL_CODES)):
            m.d.sync += arrived.eq(arrived + 1)
            with m.If(arrived == 0):
                m.d.sync += self.steps.eq(1 + cycles)
            with m.Elif(arrived < self._codes):
                m.d.sync += self.steps.eq(self.steps + Mux(cycles == 0, 1, cycles))
        with m.If(self.start):
            m.d.sync += [
                left.eq(self.load_cycles - 1),
                self.read.eq(1),
                self.address.eq(self.base),
                self.index.eq(0),
                self.bank.eq(~self.bank),
                arrived.eq(0),
            ]
        return m
