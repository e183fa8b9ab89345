"""Register stage for streams: order, throughput, stability, no path through it."""

import pytest
from amaranth.sim import Simulator
from hw.streams import STALLS, get, put, stall_pair
from sigbit_hw.lib.stream import StreamRegister


@pytest.mark.parametrize("stalls", STALLS)
def test_payloads_arrive_once_and_in_order(stalls):
    dut = StreamRegister(8)
    idle, pressure = stall_pair(stalls)
    sent = [(7 * i + 3) & 0xFF for i in range(200)]
    cycles = 0

    async def sender(ctx):
        await put(ctx, dut.i, sent, idle)

    async def receiver(ctx):
        assert await get(ctx, dut.o, len(sent), pressure) == sent
        if stalls == "none":
            assert cycles <= len(sent) + 1, "one payload per cycle, one cycle of latency"

    async def clock(ctx):
        nonlocal cycles
        while True:
            await ctx.tick()
            cycles += 1

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(sender)
    simulator.add_testbench(receiver)
    simulator.add_testbench(clock, background=True)
    simulator.run()


def test_neither_side_reaches_the_other_in_the_same_cycle():
    dut = StreamRegister(8)

    async def testbench(ctx):
        ctx.set(dut.i.valid, 1)
        assert not ctx.get(dut.o.valid)
        await ctx.tick().repeat(2)
        assert not ctx.get(dut.i.ready), "two payloads are held"
        ctx.set(dut.o.ready, 1)
        assert not ctx.get(dut.i.ready)
        await ctx.tick()
        assert ctx.get(dut.i.ready)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.run()
