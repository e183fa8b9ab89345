"""Weight loader: every word of every tile once, in order, and never while the grid still needs its shadow registers."""

import random
from collections import deque

import pytest
from amaranth.sim import Simulator
from sigbit_hw.control.weight_loader import WeightLoader


def simulate(hold_cycles, lead_cycles, jobs, patience, cycles=2000):
    """Runs ``(base, words, counts)`` jobs; swaps ``patience()`` cycles after a tile may be used.

    Returns reads and swaps as ``(cycle, address, index)`` and cycles.
    """
    dut = WeightLoader(hold_cycles=hold_cycles, lead_cycles=lead_cycles)
    reads, swaps = [], []

    async def bench(ctx):
        queue = deque(jobs)
        waited = patience()
        for cycle in range(cycles):
            ctx.set(dut.job.valid, bool(queue))
            if queue:
                ctx.set(dut.job.payload, dict(zip(("base", "words", "counts"), queue[0], strict=True)))
            swap = bool(ctx.get(dut.loaded)) and waited == 0
            if swap:
                swaps.append(cycle)
                assert ctx.get(dut.ahead)
                waited = patience()
            elif ctx.get(dut.loaded):
                waited -= 1
            ctx.set(dut.swap, swap)
            if ctx.get(dut.read):
                reads.append((cycle, ctx.get(dut.address), ctx.get(dut.index)))
            if queue and ctx.get(dut.job.ready):
                queue.popleft()
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return reads, swaps


@pytest.mark.parametrize("hold_cycles", [1, 4, 9])
@pytest.mark.parametrize("lead_cycles", [1, 2, 5])
@pytest.mark.parametrize("slow", [False, True])
def test_all_words_are_read_in_order_and_not_before_the_hold_is_over(hold_cycles, lead_cycles, slow):
    rng = random.Random(hold_cycles)
    jobs = [(100, 3, (2, 3, 1)), (7, 1, (1, 1, 1)), (50, 4, (1, 2, 4)), (2000, 8, (3, 1, 2))]
    reads, swaps = simulate(hold_cycles, lead_cycles, jobs, lambda: rng.randrange(12) if slow else 0)
    tiles = [
        [(base + tile * words + column, column) for column in range(words)]
        for base, words, (blocks, rows, columns) in jobs
        for tile in range(blocks * rows * columns)
    ]
    assert [(address, column) for _, address, column in reads] == [word for tile in tiles for word in tile]
    assert len(swaps) == len(tiles)
    position = ended = 0
    for tile, swap, previous in zip(tiles, swaps, [None, *swaps], strict=False):
        cycles = [cycle for cycle, _, _ in reads[position : position + len(tile)]]
        position += len(tile)
        assert cycles == list(range(cycles[0], cycles[0] + len(tile))), "one word per cycle"
        assert swap >= cycles[0] + lead_cycles
        if not slow:
            assert swap == cycles[0] + lead_cycles, "a tile may be used before its last words are there"
        if previous is not None:
            assert cycles[0] > previous + hold_cycles
            if not slow:
                earliest = max(previous + hold_cycles + 1, ended + 1)
                assert cycles[0] <= earliest + 1, "reads go on as soon as they may"
        ended = cycles[-1]
