"""Pooling unit against the maximum of the golden order keys."""

import random
from dataclasses import replace
from itertools import product

import pytest
from amaranth.sim import Simulator
from sigbit_hw.array.pool import PoolUnit
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import Format
from sigbit_sim.golden import numerics

FORMATS = ["esbu:4,2", "esb:4,2", "int:4", "uint:4", "esb:3,0"]


def config_of(text):
    return replace(PRESETS["tiny"], activation_format=Format.parse(text))


def run(dut, positions):
    """Feed ``(valid, first, last, inside, codes)`` per cycle; (cycle, codes) of every result."""
    results = []

    async def bench(ctx):
        for cycle, (valid, first, last, inside, codes) in enumerate([*positions, (0, 0, 0, 0, None)]):
            if ctx.get(dut.o.valid):
                results.append((cycle, [ctx.get(code) for code in dut.o.codes]))
            for name, value in (("valid", valid), ("first", first), ("last", last), ("inside", inside)):
                ctx.set(getattr(dut.i, name), value)
            if codes is not None:
                ctx.set(dut.i.codes, codes)
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    return results


def window(vectors, inside):
    return [
        (1, index == 0, index == len(vectors) - 1, here, codes)
        for index, (codes, here) in enumerate(zip(vectors, inside, strict=True))
    ]


def maximum(codes, format):
    """Level of the largest code; 0 without codes."""
    keys = numerics.order_keys(codes, format) if codes else []
    return numerics.decode(codes, format)[int(keys.argmax())] if codes else 0


@pytest.mark.parametrize("text", FORMATS)
def test_every_pair_of_codes_gives_the_larger_level(text):
    config = config_of(text)
    codes = range(1 << config.activation_format.bits)
    pairs = list(product(codes, codes))
    # Eight pairs at a time, one per lane.
    positions, wanted = [], []
    for start in range(0, len(pairs), config.vector):
        some = pairs[start : start + config.vector]
        positions += window([[a for a, _ in some], [b for _, b in some]], [1, 1])
        wanted.append([maximum(list(pair), config.activation_format) for pair in some])
    results = run(PoolUnit(config), positions)
    assert [[config.activation_format.decode(code) for code in codes] for _, codes in results] == wanted


@pytest.mark.parametrize("text", FORMATS)
def test_positions_outside_are_skipped_and_idle_cycles_change_nothing(text):
    config = config_of(text)
    rng = random.Random(text)
    positions, wanted, last_cycles = [], [], []
    for _ in range(60):
        size = rng.randint(1, 9)
        inside = [int(rng.random() < 0.6) for _ in range(size)]
        vectors = [
            [rng.randrange(1 << config.activation_format.bits) for _ in range(config.vector)] for _ in range(size)
        ]
        for position in window(vectors, inside):
            positions += [(0, *(rng.randrange(2) for _ in range(3)), position[4])] * rng.choice((0, 0, 1, 2))
            positions.append(position)
        last_cycles.append(len(positions) - 1)
        kept = [vector for vector, here in zip(vectors, inside, strict=True) if here]
        wanted.append(
            [maximum([vector[lane] for vector in kept], config.activation_format) for lane in range(config.vector)]
        )
    dut = PoolUnit(config)
    results = run(dut, positions)
    assert [cycle for cycle, _ in results] == [cycle + dut.latency_cycles for cycle in last_cycles]
    assert [[config.activation_format.decode(code) for code in codes] for _, codes in results] == wanted


@pytest.mark.parametrize("text", FORMATS)
def test_a_window_without_positions_inside_gives_code_zero(text):
    config = config_of(text)
    full = [[(1 << config.activation_format.bits) - 1] * config.vector]
    results = run(PoolUnit(config), window(full, [1]) + window(full * 3, [0, 0, 0]))
    assert results[1][1] == [0] * config.vector


def test_a_negative_zero_loses_against_zero():
    config = config_of("esb:4,2")
    for order in ([8, 0], [0, 8]):
        results = run(PoolUnit(config), window([[code] * config.vector for code in order], [1, 1]))
        assert results[0][1] == [0] * config.vector


@pytest.mark.parametrize("text", FORMATS)
def test_a_window_of_one_position_gives_every_code_as_it_is(text):
    config = config_of(text)
    codes = [[code] * config.vector for code in range(1 << config.activation_format.bits)]
    results = run(PoolUnit(config), [position for vector in codes for position in window([vector], [1])])
    assert [vector for _, vector in results] == codes


def test_indices_are_in_the_order_of_their_levels_whatever_the_configured_format():
    config = replace(config_of("esb:4,2"), cell="table")
    codes = range(1 << config.activation_format.bits)
    positions, wanted = [], []
    for first in codes:
        for start in range(0, len(codes), config.vector):
            others = list(codes)[start:][: config.vector]
            positions += window([[first] * config.vector, others], [1, 1])
            wanted.append([max(first, other) for other in others])
    assert [found for _, found in run(PoolUnit(config), positions)] == wanted
