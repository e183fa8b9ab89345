"""Parts of an array of DRQ whose look-up tables are counted."""

import numpy as np
import pytest
from amaranth.sim import Simulator
from sigbit_sim import drq_cost
from sigbit_sim.drq import Region, sensitive
from sigbit_sim.drq_cost import RegionPredictor


@pytest.mark.parametrize("region", [Region(2, 2, 20), Region(2, 4, 18), Region(3, 5, 50)], ids=str)
def test_the_predictor_decides_as_the_model(region):
    random = np.random.default_rng(1)
    levels = random.integers(0, 256, (7, 9)) >> random.integers(0, 6, (7, 9))
    levels[: region.rows, : region.columns] = region.threshold  # a tie
    expected = sensitive(levels, region)
    assert 0 < expected.mean() < 1
    dut = RegionPredictor(regions=8, pixels=16)
    found = {}

    async def bench(ctx):
        waiting = None
        for y, x in [*np.ndindex(levels.shape), (0, 0)]:
            corner = y // region.rows * region.rows, x // region.columns * region.columns
            end = tuple(
                min(start + size, full) - 1
                for start, size, full in zip(corner, (region.rows, region.columns), levels.shape, strict=True)
            )
            pixels = (end[0] - corner[0] + 1) * (end[1] - corner[1] + 1)
            ctx.set(dut.valid, 1)
            ctx.set(dut.level, int(levels[y, x]))
            ctx.set(dut.region, x // region.columns)
            ctx.set(dut.first, (y, x) == corner)
            ctx.set(dut.last, (y, x) == end)
            ctx.set(dut.limit, region.threshold * pixels)
            assert ctx.get(dut.done) == (waiting is not None)
            if waiting is not None:
                found[waiting] = ctx.get(dut.sensitive)
            waiting = corner if (y, x) == end else None
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    assert found == {
        (y, x): expected[y, x]
        for y in range(0, levels.shape[0], region.rows)
        for x in range(0, levels.shape[1], region.columns)
    }


def test_shares_of_an_element_are_added_up(monkeypatch):
    sizes = {"DrqElement": 90, "RegionPredictor": 36, "_Fifo": 160}
    monkeypatch.setattr(drq_cost, "emit_modules", lambda component, name: type(component).__name__)
    monkeypatch.setattr(
        drq_cost, "run_synthesis", lambda source, top: {"lut": sizes[source] - 3, "lutram": 2, "srl": 1}
    )
    assert drq_cost.drq_cost(depths=(4,)) == {
        "element": 90,
        "predictor": 36,
        "fifos": {4: 160},
        "lockstep": 90.25,
        "elastic": {4: 100.25},
    }
