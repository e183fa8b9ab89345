"""The emitted Verilog and the emulator agree on every fault, stop answering at it, and recover from it."""

import zlib

import numpy as np
import pytest
from networks import Builder
from sigbit.compiler import compile
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import ESB, ESBU, INT
from sigbit_hw.spec.packets import Fault, Kind
from sigbit_hw.spec.registers import Control, Interrupt, Register, Status
from sigbit_sim.golden.emulator import Emulator
from sigbit_sim.golden.program import build_packet
from sigbit_sim.rtl import RtlModel
from sim.test_emulator import CONFIGURE, END, FAULTS

TINY = PRESETS["tiny"]
BEAT = TINY.stream_bits // 8
#: What both must say after a fault; counters depend on time and stay out.
SAME = (Register.FAULT, Register.FAULT_PACKET, Register.STATUS, Register.IRQ_PENDING, Register.PACKETS)
RECOVERIES = ("soft reset", "end packet")


def answered(builder):
    """The program, packets of each image, and the answers of the emulator, which are the golden integers."""
    program = compile(builder.network(), TINY)
    images = [program.image_packets(image, index) for index, image in enumerate(builder.images(3))]
    emulator = Emulator(TINY)
    for packet in program.setup:
        emulator.send(packet)
    answers = []
    for image in images:
        for packet in image:
            emulator.send(packet)
        answers.append(emulator.receive())
    assert emulator.read(Register.FAULT) == Fault.NONE
    return program, images, answers


@pytest.fixture(scope="module")
def session():
    """Setup packets, packets of each image, and the answers."""
    builder = Builder(7, 3, 6, 6, INT(8)).conv(12, (3, 3), ESB(4, 2), ESBU(4, 2), pads=(1, 1, 1, 1))
    program, images, answers = answered(builder.max_pool((2, 2), (2, 2)).conv(10, (3, 3), ESB(4, 2), None))
    return [*program.setup], images, answers


@pytest.fixture(scope="module")
def model():
    return RtlModel(TINY)


@pytest.fixture
def rtl(model):
    """The accelerator after a soft reset."""
    model.discard()
    model.write(Register.CONTROL, Control.SOFT_RESET)
    model.write(Register.IRQ_ENABLE, 0)
    settle(model)
    return model


def settle(rtl, cycles=3000):
    """Let it work; returns the packets that came."""
    received = []
    end = rtl.cycles + cycles
    while rtl.cycles < end:
        rtl.run(end - rtl.cycles)
        if (packet := rtl.receive()) is not None:
            received.append(packet)
    return received


def same_registers(rtl, emulator):
    expected = {register.name: emulator.read(register) for register in SAME}
    assert {register.name: rtl.read(register) for register in SAME} == expected
    return expected


def intact(packet):
    return len(packet) > BEAT and zlib.crc32(packet[:-BEAT]) == int.from_bytes(packet[-BEAT:], "little")


def check_stopped(rtl, emulator, session):
    """Nothing is answered and nothing else is reported, whatever is sent, until a recovery."""
    setup, images, _ = session
    before = same_registers(rtl, emulator)
    assert before["STATUS"] & (Status.FAULT | Status.DRAINING) == Status.FAULT | Status.DRAINING
    for packet in (*setup, *images[0]):
        rtl.send(packet)
        emulator.send(packet)
    assert settle(rtl) == []
    assert emulator.receive() is None
    assert same_registers(rtl, emulator) == before


def check_recovery(rtl, emulator, session, recovery):
    """After it, a whole session is exact."""
    setup, images, answers = session
    if recovery == "end packet":
        for device in (rtl, emulator):
            device.send(END)
        assert settle(rtl, 100) == []
        assert same_registers(rtl, emulator)["STATUS"] == Status.FAULT
        fault = rtl.read(Register.FAULT)
    else:
        rtl.write(Register.CONTROL, Control.SOFT_RESET)
        emulator.write(Register.CONTROL, Control.SOFT_RESET)
        assert set(same_registers(rtl, emulator).values()) == {0}
        fault = Fault.NONE
    for packet in (*setup, *(packet for image in images for packet in image), END):
        rtl.send(packet)
        emulator.send(packet)
    assert settle(rtl, 10000) == answers
    # The code of a fault that END has drained stays until a soft reset.
    assert same_registers(rtl, emulator)["FAULT"] == fault


@pytest.mark.parametrize("recovery", RECOVERIES)
@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_has_the_same_code_and_packet_and_is_recovered_from(rtl, session, name, recovery):
    transfers, code, number = FAULTS[name]
    emulator = Emulator(TINY)
    for data, last in [(CONFIGURE, True), *transfers]:
        rtl.send(data, last)
        emulator.send(data, last)
    assert settle(rtl) == []
    assert same_registers(rtl, emulator)["FAULT"] == code
    assert rtl.read(Register.FAULT_PACKET) == number
    check_stopped(rtl, emulator, session)
    check_recovery(rtl, emulator, session, recovery)


@pytest.mark.parametrize("before", [[], [CONFIGURE, END]], ids=["before CONFIGURE", "after END"])
@pytest.mark.parametrize("kind", [kind for kind in Kind if kind != Kind.CONFIGURE])
def test_packets_outside_a_session_are_faults_in_both(rtl, session, before, kind):
    emulator = Emulator(TINY)
    for packet in (*before, build_packet(TINY, kind, count=0)):
        rtl.send(packet)
        emulator.send(packet)
    assert settle(rtl) == []
    # The array of the configuration takes neither level tables nor packed weights, in or out of a session.
    fault = Fault.KIND if kind in (Kind.LEVELS, Kind.PACKING, Kind.PACKED) else Fault.STATE
    assert same_registers(rtl, emulator)["FAULT"] == fault
    check_stopped(rtl, emulator, session)
    check_recovery(rtl, emulator, session, "soft reset")


def damaged(packet, rng):
    """The packet with one thing wrong, and what."""
    beats = len(packet) // BEAT
    cut = int(rng.integers(1, beats)) * BEAT
    kind = rng.choice(["bit", "burst", "shorter", "partial beat", "beat lost", "beat twice"])
    data = bytearray(packet)
    if kind == "bit":
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    elif kind == "burst":
        start = rng.integers(len(data) - 1)
        data[start : start + 2] = bytes([data[start] ^ 0xFF, data[start + 1] ^ 0x81])
    elif kind == "shorter":
        del data[cut:]
    elif kind == "partial beat":
        del data[cut - 3 :]
    elif kind == "beat lost":
        del data[cut : cut + BEAT]
    else:
        data[cut:cut] = data[cut - BEAT : cut]
    return bytes(data), kind


@pytest.mark.parametrize("seed", range(40))
def test_a_program_damaged_anywhere_stops_both_at_the_same_packet(rtl, session, seed):
    setup, images, answers = session
    rng = np.random.default_rng(seed)
    packets = [*setup, *(packet for image in images for packet in image)]
    number = int(rng.integers(len(packets)))
    packets[number], kind = damaged(packets[number], rng)
    emulator = Emulator(TINY)
    rtl.set_stalls(seed + 1, 30 * (seed % 2), 30 * (seed // 2 % 2))
    for packet in packets:
        rtl.send(packet)
        emulator.send(packet)
    received = settle(rtl, 10000)
    rtl.set_stalls(1)
    values = same_registers(rtl, emulator)
    assert values["FAULT"] != Fault.NONE, kind
    assert values["FAULT_PACKET"] == number
    # What came before is right; an answer that the fault has cut is marked.
    whole = received[:-1] if received and not intact(received[-1]) else received
    assert whole == answers[: len(whole)]
    while emulator.receive() is not None:
        pass
    check_stopped(rtl, emulator, session)
    check_recovery(rtl, emulator, session, RECOVERIES[seed // 4 % 2])


def check_soft_reset(rtl, session):
    """After it, nothing is left of what was going on, and a whole session is exact."""
    setup, images, answers = session
    rtl.discard()
    rtl.write(Register.CONTROL, Control.SOFT_RESET)
    settle(rtl, 50)
    rtl.discard()
    assert [rtl.read(register) for register in SAME] == [0] * len(SAME)
    for packet in (*setup, *(packet for image in images for packet in image), END):
        rtl.send(packet)
    assert settle(rtl, 10000) == answers
    assert rtl.read(Register.IRQ_PENDING) == Interrupt.END


@pytest.mark.parametrize("seed", range(20))
def test_a_soft_reset_at_any_time_leaves_a_working_accelerator(rtl, session, seed):
    setup, images, _ = session
    rng = np.random.default_rng(seed)
    for packet in (*setup, *(packet for image in images for packet in image)):
        rtl.send(packet)
    settle(rtl, int(rng.integers(1, 4500)))
    check_soft_reset(rtl, session)


@pytest.mark.parametrize("delay", [60, 61, 62, 63, 150, 301])
def test_a_soft_reset_while_a_residual_is_added_leaves_a_working_accelerator(rtl, delay):
    builder = Builder(11, 8, 5, 6, INT(8))
    builder.conv(8, (1, 1), ESB(4, 2), INT(8), residual="input").conv(4, (5, 6), ESB(4, 2), None)
    program, images, answers = answered(builder)
    layer = program.layers[0]
    ((first, end),) = layer["instructions"]
    for packet in (*program.setup, *images[0]):
        rtl.send(packet)
    while rtl.read(Register.COMPUTE_CYCLES) < layer["compute_cycles"]:
        pass
    # The POST of the only strip has begun, and has not ended.
    settle(rtl, delay)
    assert rtl.read(Register.INSTRUCTIONS) == end - first - 1
    check_soft_reset(rtl, (program.setup, images, answers))
