"""Drives a component that takes operands every cycle and gives results a fixed number of cycles later."""

from amaranth.sim import Simulator

__all__ = ["feed"]


def feed(dut, inputs, read):
    """Feed one dict of members per cycle; ``read(ctx)`` of each, called ``dut.latency_cycles`` later."""
    results = []

    async def bench(ctx):
        for cycle in range(len(inputs) + dut.latency_cycles):
            if cycle < len(inputs):
                for name, value in inputs[cycle].items():
                    ctx.set(getattr(dut, name), value)
            if cycle >= dut.latency_cycles:
                results.append(read(ctx))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    return results
