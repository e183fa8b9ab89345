"""Accumulators against integers: clear, shift, banks, reuse of an address after the stated cycles."""

import random

import pytest
from amaranth.sim import Simulator
from sigbit_hw.array.accumulator import Accumulator
from sigbit_hw.spec.instructions import MIN_TILE_CYCLES

TAG_OFF = {"valid": 0, "clear": 0, "shift": 0, "bank": 0, "address": 0}


def run(accumulator, steps, reads=()):
    """Feed ``(tag, sum)`` or ``None`` per cycle; afterwards read ``(bank, address)`` pairs."""
    values = []

    async def bench(ctx):
        tags = []
        for cycle in range(len(steps) + 4):
            step = steps[cycle] if cycle < len(steps) else None
            tags.append((step[0] | {"valid": 1}, step[1]) if step else (TAG_OFF, 0))
            for port, age in ((accumulator.fetch, 0), (accumulator.add, 1), (accumulator.store, 3)):
                ctx.set(port, tags[cycle - age][0] if cycle >= age else TAG_OFF)
            ctx.set(accumulator.sum, tags[cycle - 1][1] if cycle else 0)
            await ctx.tick()
        ctx.set(accumulator.store, TAG_OFF)
        for bank, address in reads:
            ctx.set(accumulator.read_address, address)
            await ctx.tick()
            values.append(ctx.get(accumulator.read_data[bank]))

    sim = Simulator(accumulator)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    return values


@pytest.mark.parametrize(
    ("sum_bits", "bits"), [(12, 24), (20, 20), (9, 16), (18, 32), (5, 8), (14, 20), (15, 20), (16, 17), (17, 18)]
)
def test_sums_are_added_cleared_and_shifted_in_both_banks(sum_bits, bits):
    rng = random.Random(4)
    depth, shift = 8, 3
    accumulator = Accumulator(depth, sum_bits=sum_bits, accumulator_bits=bits, shift_bits=shift)
    memory = [[0] * depth, [0] * depth]
    last_use = {}
    steps = []
    for cycle in range(600):
        bank, address = rng.randrange(2), rng.randrange(depth)
        if rng.random() < 0.1 or cycle - last_use.get((bank, address), -9) < accumulator.reuse_cycles:
            steps.append(None)
            continue
        last_use[bank, address] = cycle
        clear, shifting = int(rng.random() < 0.2), int(rng.random() < 0.2)
        total = rng.choice([rng.randrange(-(1 << sum_bits - 1), 1 << sum_bits - 1), -1, 1, -(1 << sum_bits - 1)])
        old = memory[bank][address]
        new = (0 if clear else old << shift if shifting else old) + total
        memory[bank][address] = (new + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)
        steps.append(({"clear": clear, "shift": shifting, "bank": bank, "address": address}, total))
    places = [(bank, address) for bank in range(2) for address in range(depth)]
    assert run(accumulator, steps, places) == [memory[bank][address] for bank, address in places]


def accumulated_twice(distance):
    accumulator = Accumulator(8, sum_bits=8, accumulator_bits=20, shift_bits=3)
    add = ({"clear": 0, "shift": 0, "bank": 1, "address": 3}, 100)
    return run(accumulator, [add, *[None] * (distance - 1), add], [(1, 3)])


def test_an_address_may_be_used_again_after_the_stated_cycles_and_not_before():
    assert Accumulator.reuse_cycles <= MIN_TILE_CYCLES
    assert accumulated_twice(Accumulator.reuse_cycles) == [200]
    assert accumulated_twice(Accumulator.reuse_cycles - 1) == [100]


def test_the_other_bank_is_read_while_one_accumulates():
    accumulator = Accumulator(8, sum_bits=8, accumulator_bits=20, shift_bits=3)
    seen = []

    async def bench(ctx):
        for bank, value in ((0, 5), (1, 7)):
            tag = TAG_OFF | {"valid": 1, "bank": bank, "address": 2}
            ctx.set(accumulator.fetch, tag)
            await ctx.tick()
            ctx.set(accumulator.fetch, TAG_OFF)
            ctx.set(accumulator.add, tag)
            ctx.set(accumulator.sum, value)
            await ctx.tick().repeat(2)
            ctx.set(accumulator.store, tag)
            await ctx.tick()
            ctx.set(accumulator.store, TAG_OFF)
        ctx.set(accumulator.fetch, TAG_OFF | {"valid": 1, "bank": 1, "address": 6})
        ctx.set(accumulator.read_address, 2)
        await ctx.tick()
        seen.append((ctx.get(accumulator.read_data[0]), ctx.get(accumulator.read_data[1])))

    sim = Simulator(accumulator)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    assert seen == [(5, 0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 8, 16), "strip_depth must be a power of two of 2 or more, not 6"),
        ((8, 17, 16), r"sum_bits must be 1 to accumulator_bits \(16\), not 17"),
    ],
)
def test_impossible_parameters_are_refused(arguments, message):
    depth, sum_bits, bits = arguments
    with pytest.raises(ValueError, match=message):
        Accumulator(depth, sum_bits=sum_bits, accumulator_bits=bits, shift_bits=1)
