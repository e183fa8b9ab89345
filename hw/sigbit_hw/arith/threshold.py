"""Levels of a codebook by comparisons: with thresholds of the accumulator, or with the middles of levels."""

from itertools import pairwise

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..lib.delay import delayed
from .requantize import ANY_HALF_UNIT_BITS, ANY_LEVEL_BITS

__all__ = ["LevelSelector", "middles"]


def middles(m, levels):
    """Sums of neighbouring levels: one register, for all lanes."""
    result = Signal(data.ArrayLayout(signed(ANY_HALF_UNIT_BITS), len(levels) - 1), name="middles", reset_less=True)
    m.d.sync += [middle.eq(low + high) for middle, (low, high) in zip(result, pairwise(levels), strict=True)]
    return result


class LevelSelector(wiring.Component):
    """Rank and level of one lane (numerics 6.2).

    Parameters
    ----------
    threshold_count : int
        One less than the levels of the largest codebook.
    accumulator_bits, half_unit_bits : int
    requantizer_cycles : int
        From the accumulator to the half units that belong to it.

    Members
    -------
    accumulator : In(signed(accumulator_bits))
    thresholds : In(ArrayLayout(signed(accumulator_bits + 1), threshold_count))
        With the accumulator. Not decreasing.
    half_units : In(signed(half_unit_bits))
        ``requantizer_cycles`` later.
    middles : In
        As :func:`middles` gives them, with the half units.
    by_threshold : In(1)
        With the half units: the thresholds decide, not the middles.
    levels : In(ArrayLayout(signed, threshold_count + 1))
        Not decreasing, so that the last one may stand for all that a codebook does not have; one cycle behind the half
        units.
    level : Out(signed)
        Two cycles behind the half units.
    """

    latency_cycles = 2

    def __init__(self, threshold_count, accumulator_bits, half_unit_bits, requantizer_cycles):
        self._count = threshold_count
        self._requantizer_cycles = requantizer_cycles
        level = signed(ANY_LEVEL_BITS)
        self.module_name = f"level_selector_{threshold_count}_{accumulator_bits}_{half_unit_bits}_{requantizer_cycles}"
        super().__init__(
            {
                "accumulator": In(signed(accumulator_bits)),
                "thresholds": In(data.ArrayLayout(signed(accumulator_bits + 1), threshold_count)),
                "half_units": In(signed(half_unit_bits)),
                "middles": In(data.ArrayLayout(signed(ANY_HALF_UNIT_BITS), threshold_count)),
                "by_threshold": In(1),
                "levels": In(data.ArrayLayout(level, threshold_count + 1)),
                "level": Out(level),
            }
        )

    def elaborate(self, platform):
        m = Module()
        count = self._count
        # Both comparisons give ones up to the rank, so what is carried is their number.
        reached = Signal(count, reset_less=True)
        m.d.sync += reached.eq(Cat(self.accumulator >= threshold for threshold in self.thresholds))
        early = Signal(range(count + 1), reset_less=True)
        m.d.sync += early.eq(self._ones(reached))
        early = delayed(m, early, self._requantizer_cycles - 2, name="rank")
        passed = [self.half_units >= middle for middle in self.middles]
        rank = Signal(range(count + 1), reset_less=True)
        m.d.sync += rank.eq(Mux(self.by_threshold, early, self._ones(Cat(passed))))
        m.d.sync += self.level.eq(Array(self.levels)[rank])
        return m

    def _ones(self, bits):
        """Number of ones of a word that has them all below its zeros."""
        rank = Const(0, range(self._count + 1))
        for position in range(self._count):
            rank = Mux(bits[position], position + 1, rank)
        return rank
