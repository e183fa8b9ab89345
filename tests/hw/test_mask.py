"""The masking unit and the compactor against the golden selection."""

import numpy as np
import pytest
from amaranth import *
from amaranth.sim import Simulator
from sigbit_hw.arith.mask import Compactor, MaskUnit
from sigbit_hw.spec.masks import Policy
from sigbit_sim.golden.sdp import Token, select, tokens


def bits(mask):
    return sum(int(bit) << index for index, bit in enumerate(mask))


def codes_of(rng, group, zero):
    """Codes with many ties and zeros, among them the extremes."""
    special = np.array([zero, 0, 255, zero ^ 16, zero ^ 1, zero ^ 17, 127, 128])
    return np.where(rng.random(group) < 0.6, rng.choice(special, group), rng.integers(0, 256, group))


def simulate(component, bench):
    sim = Simulator(component)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()


@pytest.mark.parametrize("group", [4, 8, 16])
def test_masks_are_the_golden_ones_for_a_group_in_every_cycle_whatever_its_settings(group):
    rng = np.random.default_rng(group)
    unit = MaskUnit(group)
    settings = [
        (zero, budget, policy)
        for zero in (0, 128, 8)
        for budget in range(1, 2 * group + 1)
        for policy in (Policy.NIB, Policy.MAG)
    ]
    groups = [(codes_of(rng, group, zero), zero, budget, policy) for zero, budget, policy in settings]
    found = []

    async def bench(ctx):
        for cycle in range(len(groups) + unit.latency_cycles):
            codes, zero, budget, policy = groups[min(cycle, len(groups) - 1)]
            ctx.set(unit.codes, codes.tolist())
            ctx.set(unit.zero, zero)
            ctx.set(unit.budget, budget)
            ctx.set(unit.magnitude_keys, int(policy == Policy.MAG))
            if cycle >= unit.latency_cycles:
                o = ctx.get(unit.o)
                found.append(([o.magnitudes[i] for i in range(group)], o.negative, o.high, o.low))
            await ctx.tick()

    simulate(unit, bench)
    for (codes, zero, budget, policy), result in zip(groups, found, strict=True):
        values = codes - zero
        high, low = select(np.abs(values), budget, policy)
        expected = np.abs(values).tolist(), bits(values < 0), bits(high), bits(low)
        assert result == expected, (codes, zero, budget, policy)


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("group", [4, 8])
def test_tokens_come_in_the_golden_beats_with_groups_back_to_back(group, lanes):
    rng = np.random.default_rng(lanes)
    unit = Compactor(group, lanes)
    starts, expected = {}, {}
    cycle = 0
    for budget in (*range(1, 2 * group + 1), group, 1):
        values = codes_of(rng, group, 128) - 128
        high, low = select(np.abs(values), budget)
        starts[cycle] = {
            "magnitudes": np.abs(values).tolist(),
            "negative": bits(values < 0),
            "high": bits(high),
            "low": bits(low),
        }
        for beat, wanted in enumerate(tokens(values, high, low, budget, lanes)):
            expected[cycle + unit.latency_cycles + beat] = wanted
        cycle += -(-budget // lanes)
    # When no group follows, lanes are idle.
    expected |= {cycle + unit.latency_cycles + beat: [None] * lanes for beat in range(2 * group + 3)}
    found = {}

    async def bench(ctx):
        for now in range(max(expected) + 1):
            ctx.set(unit.start, int(now in starts))
            ctx.set(unit.i, starts.get(now, starts[0]))
            found[now] = [
                Token(token.index, token.high, token.nibble, token.negative) if token.nibble else None
                for token in (ctx.get(unit.tokens[lane]) for lane in range(lanes))
            ]
            await ctx.tick()

    simulate(unit, bench)
    for now, wanted in expected.items():
        assert found[now] == wanted, now
