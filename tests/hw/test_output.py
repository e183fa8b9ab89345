"""Output formatter: packets against zlib, full rate, any back-pressure, abort."""

import random
import zlib
from dataclasses import replace

import pytest
from amaranth.sim import Simulator
from hw.packet_builder import Builder
from hw.streams import STALLS, Stall, get, put, stall_pair
from sigbit_hw.bus.output import OutputFormatter
from sigbit_hw.spec.config import PRESETS

# Feature words of 96 bits: one and a half beats of 64, less than half a beat of 256.
CONFIGS = {
    bits: replace(PRESETS["tiny"], lanes=12, feature_depth=64, parameter_depth=16, stream_bits=bits)
    for bits in (64, 256)
}
JOBS = [(0, 3, 7), (40, 24, 0xFFFF), (5, 1, 0), (9, 0, 4), (63, 1, 1), (2, 9, 2)]


class Bench:
    """A formatter before a memory of fixed latency whose port is not always free."""

    def __init__(self, bits, latency=2, port_stall=None):
        self.config = CONFIGS[bits]
        self.builder = Builder(self.config)
        self.dut = OutputFormatter(self.config, latency)
        self._latency = latency
        self._port_stall = port_stall or Stall(False)
        rng = random.Random(bits)
        self.memory = [rng.getrandbits(96) for _ in range(64)]
        self.cycle = self.done = 0

    def packet(self, base, words, tag):
        return self.builder.answer(self.memory[base : base + words], tag)

    async def _memory(self, ctx):
        dut = self.dut
        on_the_way = [None] * (self._latency - 1)
        pause = 0
        while True:
            ctx.set(dut.read.ready, pause == 0)
            taken = ctx.get(dut.read.valid) and ctx.get(dut.read.ready)
            on_the_way.append(ctx.get(dut.read.payload) if taken else None)
            await ctx.tick()
            self.cycle += 1
            assert self.cycle < 5000, "no progress"
            self.done += ctx.get(dut.done)
            pause = self._port_stall() if taken else max(pause - 1, 0)
            # The word is at the port in the latency-th cycle after the transfer and garbage in all others.
            address = on_the_way.pop(0)
            ctx.set(dut.read_data, 0xBAD if address is None else self.memory[address])

    def run(self, *testbenches):
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-8)
        for testbench in testbenches:
            simulator.add_testbench(testbench)
        simulator.add_testbench(self._memory, background=True)
        simulator.run()


def _fields(beats):
    return [(beat.data, beat.keep, beat.last) for beat in beats]


@pytest.mark.parametrize("latency", [1, 2, 4])
@pytest.mark.parametrize("stalls", STALLS)
@pytest.mark.parametrize("bits", CONFIGS)
def test_packets_equal_those_built_with_zlib(bits, stalls, latency):
    idle, pressure = stall_pair(stalls)
    bench = Bench(bits, latency, idle)
    expected = [beat for job in JOBS for beat in bench.packet(*job)]

    async def jobs(ctx):
        await put(ctx, bench.dut.job, [dict(zip(("base", "words", "tag"), job, strict=True)) for job in JOBS], idle)

    async def receiver(ctx):
        beats = await get(ctx, bench.dut.o, len(expected), pressure)
        assert _fields(beats) == _fields(expected)
        await ctx.tick().repeat(3)
        assert (ctx.get(bench.dut.busy), bench.done) == (0, len(JOBS))

    bench.run(jobs, receiver)


@pytest.mark.parametrize("latency", [1, 2, 4])
@pytest.mark.parametrize("bits", CONFIGS)
def test_a_packet_leaves_at_one_beat_per_cycle(bits, latency):
    bench = Bench(bits, latency)
    expected = bench.packet(0, 60, 1)

    async def testbench(ctx):
        await put(ctx, bench.dut.job, [{"base": 0, "words": 60, "tag": 1}])
        ctx.set(bench.dut.o.ready, 1)
        await ctx.tick().repeat(2)
        assert ctx.get(bench.dut.o.valid), "the first beat comes three cycles after the job"
        start = bench.cycle
        await ctx.tick().until(bench.dut.o.valid & bench.dut.o.payload.last)
        # The first word may come later than the header by the latency of memory and queue.
        assert bench.cycle - start <= len(expected) + latency + 2

    bench.run(testbench)


@pytest.mark.parametrize("stalls", ["none", "both"])
@pytest.mark.parametrize("bits", CONFIGS)
def test_abort_at_any_time_closes_the_packet_with_a_wrong_checksum_and_the_next_one_is_whole(bits, stalls):
    whole = {}
    for moment in range(1, 30):
        idle, pressure = stall_pair(stalls, moment + 1)
        bench = Bench(bits, 3, idle)
        expected, following = _fields(bench.packet(3, 7, 5)), _fields(bench.packet(20, 2, 6))
        received = []

        async def control(ctx, bench=bench, moment=moment):
            await put(ctx, bench.dut.job, [{"base": 3, "words": 7, "tag": 5}])
            await ctx.tick().repeat(moment)
            ctx.set(bench.dut.abort, 1)
            await ctx.tick()
            ctx.set(bench.dut.abort, 0)
            await put(ctx, bench.dut.job, [{"base": 20, "words": 2, "tag": 6}])

        async def receiver(ctx, bench=bench, received=received, pressure=pressure, following=following):
            while received[-len(following) :] != following:
                received.extend(_fields(await get(ctx, bench.dut.o, 1, pressure)))

        bench.run(control, receiver)
        assert received[-len(following) :] == following, f"abort after {moment} cycles: no whole packet afterwards"
        first = received[: -len(following)]
        whole[moment] = first == expected
        if first and first != expected:
            assert [beat[2] for beat in first] == [0] * (len(first) - 1) + [1], "TLAST on the last beat alone"
            assert first[:-1] == expected[: len(first) - 1]
            content = b"".join(beat[0].to_bytes(bits // 8, "little") for beat in first[:-1])
            assert first[-1][0] & 0xFFFF_FFFF != zlib.crc32(content)
        assert bench.done == 1 + whole[moment], "a cut packet is not done"
    if stalls == "none":
        assert (whole[1], whole[29]) == (False, True), "both outcomes occur"


def test_read_latency_must_be_positive():
    with pytest.raises(ValueError, match="read_latency must be at least 1"):
        OutputFormatter(CONFIGS[64], 0)
