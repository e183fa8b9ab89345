"""Level loader: every entry once, in order, into alternating banks, and ready when a word may follow."""

import random

import pytest
from amaranth.sim import Simulator
from sigbit_hw.control.level_loader import LevelLoader
from sigbit_hw.spec.instructions import LEVEL_CODES
from sigbit_hw.spec.parts import fill_steps


@pytest.mark.parametrize("codes", [4, 8, 16])
@pytest.mark.parametrize("latency_cycles", [1, 2, 3])
def test_tables_are_read_in_order_and_their_cycles_counted(codes, latency_cycles):
    rng = random.Random(codes)
    memory = [
        {"weight": rng.randrange(-256, 256), "code": rng.randrange(16), "step": rng.choice([0, 1, 2, 3, 99, 255])}
        for _ in range(64)
    ]
    dut = LevelLoader(codes=codes, latency_cycles=latency_cycles)
    # Cycles in which a table is asked for: far apart, as soon as the one before is there, and before that.
    starts = {3: 16, 60: 32, 60 + dut.load_cycles: 5, 120: 0, 127: 48}
    reads, ready, steps, banks = [], [], [], []

    async def bench(ctx):
        pipeline = [0] * latency_cycles
        for cycle in range(200):
            ctx.set(dut.start, cycle in starts)
            ctx.set(dut.base, starts.get(cycle, 63))
            ctx.set(dut.entry, memory[pipeline[0] % len(memory)])
            if ctx.get(dut.read):
                reads.append((cycle, ctx.get(dut.address), ctx.get(dut.index), ctx.get(dut.bank)))
            ready.append(ctx.get(dut.ready))
            steps.append(ctx.get(dut.steps))
            banks.append(ctx.get(dut.bank))
            pipeline = [*pipeline[1:], ctx.get(dut.address)]
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    expected = []
    for number, (start, base) in enumerate(starts.items()):
        count = 7 if start == 120 else LEVEL_CODES
        expected += [(start + 1 + i, base + i, i, (number + 1) % 2) for i in range(count)]
        if count < LEVEL_CODES:
            continue
        loaded = start + dut.load_cycles
        assert not any(ready[start + 1 : loaded]), "the last entry is on its way"
        assert ready[loaded]
        assert steps[loaded] == fill_steps([entry["step"] for entry in memory[base : base + codes]])
    assert reads == expected
