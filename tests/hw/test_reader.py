"""The loop nest of the feature reader against nested Python loops."""

import random
from itertools import product

import pytest
from amaranth.sim import Simulator
from sigbit_hw.memory.reader import FeatureReader
from sigbit_hw.spec.instructions import INSTRUCTIONS, Opcode

TABLE = INSTRUCTIONS[Opcode.COMPUTE]


def expected_positions(fields, planes):
    counts = [fields[f"count{i}"] for i in range(5)]
    for position in product(*(range(count) for count in counts)):
        walk = {name: sum(fields[f"{name}{i}"] * position[i] for i in range(5)) for name in ("step", "ystep", "xstep")}
        reads = []
        for plane in range(planes):
            y = fields["y0"] + walk["ystep"] + plane * fields["plane_ystep"]
            x = fields["x0"] + walk["xstep"]
            inside = 0 <= y < fields["height"] and 0 <= x < fields["width"]
            reads.append(((fields["base"] + walk["step"] + plane * fields["plane_step"]) % (1 << 20), inside))
        flags = (
            position[:3] == (0, 0, 0),
            position[3:] == (0, 0),
            position[3] == counts[3] - 1 and position[4] == counts[4] - 1,
        )
        yield reads, flags


def random_fields(rng):
    return {
        "opcode": Opcode.COMPUTE,
        "base": rng.randrange(1 << 20),
        "y0": rng.randrange(-4, 5),
        "x0": rng.randrange(-4, 5),
        "height": rng.randrange(1, 8),
        "width": rng.randrange(1, 8),
        "plane_step": rng.randrange(1 << 20),
        "plane_ystep": rng.randrange(5),
        **{f"count{i}": rng.randrange(1, 4) for i in range(5)},
        **{f"step{i}": rng.randrange(1 << 20) for i in range(5)},
        **{f"{axis}step{i}": rng.randrange(4) for i in range(5) for axis in "yx"},
    }


@pytest.mark.parametrize("planes", [1, 2, 4])
@pytest.mark.parametrize("seed", range(6))
def test_positions_addresses_and_bounds_follow_the_nest(planes, seed):
    rng = random.Random(seed)
    fields = random_fields(rng)
    dut = FeatureReader(planes)
    expected = list(expected_positions(fields, planes))
    seen = []

    async def drive(ctx):
        ctx.set(dut.instruction.as_value(), TABLE.pack(**fields))
        ctx.set(dut.load, 1)
        await ctx.tick()
        ctx.set(dut.load, 0)
        history = []
        while True:
            advance = rng.random() < 0.7
            ctx.set(dut.advance, advance)
            last = ctx.get(dut.last)
            flags = tuple(bool(ctx.get(flag)) for flag in (dut.first_tile, dut.tile_first, dut.tile_last))
            await ctx.tick()
            history.append((advance, flags, [ctx.get(dut.planes[p].address) for p in range(planes)]))
            if len(history) >= 2 and history[-2][0]:
                inside = [bool(ctx.get(dut.planes[p].inside)) for p in range(planes)]
                seen.append((list(zip(history[-2][2], inside, strict=True)), history[-2][1]))
            if last and advance:
                break
        ctx.set(dut.advance, 0)
        await ctx.tick()
        inside = [bool(ctx.get(dut.planes[p].inside)) for p in range(planes)]
        seen.append((list(zip(history[-1][2], inside, strict=True)), history[-1][1]))

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(drive)
    simulator.run()
    assert seen == expected
