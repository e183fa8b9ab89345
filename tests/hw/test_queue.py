"""Instruction queue: order, commit, rollback, flush, outstanding count."""

import random
from collections import deque

import pytest
from amaranth.sim import Simulator
from sigbit_hw.control.queue import InstructionQueue


@pytest.mark.parametrize("depth", [2, 8])
@pytest.mark.parametrize("consumer", [0.2, 1.0])
def test_random_traffic_equals_a_model_of_lists(depth, consumer):
    dut = InstructionQueue(depth, width=16)
    rng = random.Random(depth)

    async def testbench(ctx):
        trusted, doubtful = deque(), []
        outstanding = 0
        received = serial = 0
        for _ in range(4000):
            action = rng.random()
            commit, rollback, flush = action < 0.15, 0.12 < action < 0.2, action > 0.998
            valid = rng.random() < 0.7
            ready = rng.random() < consumer
            retire = min(rng.randrange(3), outstanding)
            ctx.set(dut.i.valid, valid)
            ctx.set(dut.i.payload, serial & 0xFFFF)
            ctx.set(dut.commit, commit)
            ctx.set(dut.rollback, rollback)
            ctx.set(dut.flush, flush)
            ctx.set(dut.retire, retire)
            ctx.set(dut.o.ready, ready)
            assert ctx.get(dut.outstanding) == outstanding
            assert ctx.get(dut.level) <= depth
            if ctx.get(dut.o.valid) and ready:
                assert ctx.get(dut.o.payload) == trusted.popleft(), "instructions leave in order, each once"
                received += 1
            if valid and ctx.get(dut.i.ready):
                doubtful.append(serial & 0xFFFF)
                serial += 1
            if rollback:
                doubtful.clear()
            elif commit:
                trusted.extend(doubtful)
                outstanding += len(doubtful)
                doubtful.clear()
            outstanding -= retire
            if flush:
                trusted.clear()
                doubtful.clear()
                outstanding = 0
            await ctx.tick()
        assert received > 100

    _run(dut, testbench)


def test_commit_shows_at_the_output_after_three_cycles_and_in_outstanding_after_one():
    dut = InstructionQueue(4, width=8)

    async def testbench(ctx):
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.i.payload, 77)
        await ctx.tick()
        ctx.set(dut.i.valid, 0)
        await ctx.tick().repeat(10)
        assert not ctx.get(dut.o.valid), "an instruction that was not committed stays"
        ctx.set(dut.commit, 1)
        await ctx.tick()
        ctx.set(dut.commit, 0)
        assert ctx.get(dut.outstanding) == 1
        await ctx.tick()
        assert not ctx.get(dut.o.valid)
        await ctx.tick()
        assert (ctx.get(dut.o.valid), ctx.get(dut.o.payload)) == (1, 77)

    _run(dut, testbench)


def test_one_instruction_per_cycle():
    dut = InstructionQueue(8, width=8)

    async def testbench(ctx):
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.commit, 1)
        ctx.set(dut.o.ready, 1)
        await ctx.tick().until(dut.o.valid)
        for _ in range(20):
            assert (ctx.get(dut.i.ready), ctx.get(dut.o.valid)) == (1, 1)
            await ctx.tick()

    _run(dut, testbench)


def test_a_late_retirement_does_not_wrap_the_count():
    dut = InstructionQueue(4, width=8)

    async def testbench(ctx):
        ctx.set(dut.retire, 2)
        await ctx.tick().repeat(3)
        assert ctx.get(dut.outstanding) == 0

    _run(dut, testbench)


@pytest.mark.parametrize("depth", [0, 1, 6, "8"])
def test_depth_must_be_a_power_of_two(depth):
    with pytest.raises(ValueError, match="depth must be a power of two"):
        InstructionQueue(depth)


def _run(dut, testbench):
    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.run()
