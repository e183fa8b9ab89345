"""Levels by comparisons: thresholds and middles choose the same, whatever the scale, in the cycles stated."""

from itertools import pairwise

import numpy as np
import pytest
from amaranth import *
from amaranth.sim import Simulator
from sigbit_hw.arith.threshold import LevelSelector, middles
from sigbit_hw.spec.config import PRESETS, ConfigError
from sigbit_sim.golden.numerics import half_units, requantize, thresholds

LEVELS = (0, 3, 7, 15)
SCALE = {"bias": -100, "multiplier": 52429, "shift": 20}
REQUANTIZER_CYCLES = 4


def test_pinned_thresholds():
    sums = [low + high for low, high in pairwise(LEVELS)]
    found = thresholds(**SCALE, midpoints=sums)
    assert found.tolist() == [130, 200, 320]
    accumulators = np.array([-9, 129, 130, 199, 200, 319, 320, 5000])
    assert (accumulators[:, np.newaxis] >= found).sum(axis=1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    every = np.arange(-1000, 6001)
    ranks = (every[:, np.newaxis] >= found).sum(axis=1)
    assert (ranks == requantize(every, **SCALE, midpoints=sums)).all()


class Selectors(Elaboratable):
    """The selector, with the register of middles that all lanes share."""

    def __init__(self, count, bits, q_bits):
        self.selector = LevelSelector(count, bits, q_bits, REQUANTIZER_CYCLES)

    def elaborate(self, platform):
        m = Module()
        m.submodules.selector = selector = self.selector
        m.d.comb += selector.middles.eq(middles(m, list(selector.levels)))
        return m


@pytest.mark.parametrize("levels", [LEVELS, (0, 9), (-7, -2, 0, 5, 6), (0, 1, 2, 40, 41, 255)], ids=str)
@pytest.mark.parametrize("by_threshold", [0, 1])
def test_every_accumulator_gives_the_golden_level(levels, by_threshold):
    count, bits, q_bits = 5, 14, 12
    sums = [low + high for low, high in pairwise(levels)]
    limit = 1 << (bits - 1)
    found = np.clip(thresholds(**SCALE, midpoints=sums), -limit, limit).tolist()
    found += [limit] * (count - len(found))
    rng = np.random.default_rng(len(levels))
    edges = [t + d for t in found for d in (-1, 0, 1)]
    values = [v for v in (*edges, *rng.integers(-limit, limit, 60).tolist(), -limit, limit - 1) if -limit <= v < limit]
    q = np.clip(half_units(values, **SCALE), -(1 << q_bits - 1), (1 << q_bits - 1) - 1).tolist()
    dut = Selectors(count, bits, q_bits)
    lane, results = dut.selector, []

    async def bench(ctx):
        ctx.set(lane.levels, [*levels, *[levels[-1]] * (count + 1 - len(levels))])
        ctx.set(lane.thresholds, found if by_threshold else [0] * count)
        ctx.set(lane.by_threshold, by_threshold)
        await ctx.tick()
        for now in range(len(values) + REQUANTIZER_CYCLES + LevelSelector.latency_cycles):
            if now < len(values):
                ctx.set(lane.accumulator, values[now])
            behind = now - REQUANTIZER_CYCLES
            if 0 <= behind < len(values):
                # Half units are of no effect where thresholds decide.
                ctx.set(lane.half_units, 0 if by_threshold else q[behind])
            if (done := behind - LevelSelector.latency_cycles) >= 0:
                results.append((values[done], ctx.get(lane.level)))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    ranks = requantize(np.array(values), **SCALE, midpoints=sums)
    assert results == list(zip(values, np.array(levels)[ranks].tolist(), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold_count": 16}, "threshold_count must be 0 to 15, not 16"),
        ({"threshold_count": -1}, "threshold_count must be 0 to 15, not -1"),
        ({"packing": "dense"}, "packing must be none or radix, not 'dense'"),
    ],
)
def test_configurations_that_cannot_be_built_are_errors(changes, message):
    with pytest.raises(ConfigError, match=message):
        type(PRESETS["tiny"])(**{**vars(PRESETS["tiny"]), **changes})
