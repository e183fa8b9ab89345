"""The host's side of the serial link: on a scripted port, and on the whole accelerator bit by bit."""

import sys

import numpy as np
import pytest
from networks import Builder
from sigbit.compiler import compile
from sigbit.demo import digits_network
from sigbit.device import DeviceError, open_device
from sigbit.serial_device import SerialDevice, open_port
from sigbit.session import Session
from sigbit_boards.serial import serial_verilog
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT
from sigbit_hw.spec.registers import IDENTITY, Register
from sigbit_hw.spec.serial import HEADER_BYTES, SERIAL_VERSION, Problem, Request, Response, pack_frame, unpack_header
from sigbit_sim.golden import network as golden
from sigbit_sim.rtl import RtlError
from sigbit_sim.serial import SerialLine

TINY = PRESETS["tiny"]
GRANTED = 2048


class Port:
    """A port with an accelerator that has registers, takes every byte, and says what it is told to."""

    def __init__(self, ready=None):
        self.ready = pack_frame(Response.READY, SERIAL_VERSION, count=GRANTED) if ready is None else ready
        self.incoming, self.sent, self.breaks = b"", [], 0
        self.credit = True
        self.values = {Register.IDENTITY: IDENTITY}
        self.say = {}

    @property
    def in_waiting(self):
        return len(self.incoming)

    def read(self, size):
        data, self.incoming = self.incoming[:size], self.incoming[size:]
        return data

    def write(self, data):
        kind, argument, count = unpack_header(data[:HEADER_BYTES])
        self.sent.append((kind, argument, data[HEADER_BYTES:]))
        if kind in self.say:
            self.incoming += self.say.pop(kind)
        elif kind == Request.READ:
            value = self.values.get(argument, 0)
            payload = value.to_bytes(4, "little") + (value ^ 0xFFFFFFFF).to_bytes(4, "little")
            self.incoming += pack_frame(Response.VALUE, argument, payload)
        elif kind == Request.WRITE:
            self.incoming += pack_frame(Response.DONE, argument)
        elif self.credit:
            self.incoming += pack_frame(Response.CREDIT, count=count)

    def send_break(self, duration):
        self.breaks += 1
        self.incoming += self.ready

    def reset_input_buffer(self):
        self.incoming = self.ready


def test_opening_resets_the_accelerator_and_registers_answer():
    port = Port()
    device = SerialDevice(TINY, port)
    assert port.breaks == 1
    assert device.read(Register.IDENTITY) == IDENTITY
    device.write(Register.CONTROL, 1)
    assert port.sent[-1] == (Request.WRITE, Register.CONTROL, b"\1\0\0\0")


def test_stale_characters_before_the_answer_to_a_break_are_skipped():
    stale = pack_frame(Response.ANSWER, 0, bytes(range(8)))[3:]
    port = Port(stale + bytes([Response.READY]) + pack_frame(Response.READY, SERIAL_VERSION, count=GRANTED))
    SerialDevice(TINY, port)
    assert port.incoming == b""


def test_packets_are_sent_in_frames_no_faster_than_granted():
    port = Port()
    port.credit = False
    device = SerialDevice(TINY, port)
    packet = bytes(range(256)) * 9
    device.send(packet)
    assert [len(payload) for _, _, payload in port.sent] == [1024, 1024]
    port.incoming += pack_frame(Response.CREDIT, count=255)
    device.send(b"12345678")
    assert len(port.sent) == 2, "256 are needed for the next"
    port.incoming += pack_frame(Response.CREDIT, count=1793)
    port.credit = True
    device.flush()
    assert b"".join(payload for _, _, payload in port.sent) == packet + b"12345678"
    assert [last for _, last, _ in port.sent] == [0, 0, 1, 1]


def test_answers_are_put_together_from_beats():
    port = Port()
    device = SerialDevice(TINY, port)
    for number, last in enumerate((0, 0, 1, 1)):
        port.incoming += pack_frame(Response.ANSWER, last, bytes([number]) * 8)
    assert device.receive() == b"\0" * 8 + b"\1" * 8 + b"\2" * 8
    assert device.receive() == b"\3" * 8


WRONG = {
    "nothing at all": (b"", "nothing for 5 s"),
    "a part of a frame": (pack_frame(Response.ANSWER, 0, bytes(8))[:9], "4 of 8 characters came"),
    "damaged header": (bytes(HEADER_BYTES), "was damaged on the serial line"),
    "unknown frame": (pack_frame(0x99), "unknown kind 0x99"),
    "reset": (pack_frame(Response.READY, SERIAL_VERSION, count=GRANTED), "was reset while a program ran"),
    "lost bytes": (pack_frame(Response.PROBLEM, Problem.HEADER), "gave up: a frame header was damaged"),
    "wrong baud rate": (pack_frame(Response.PROBLEM, Problem.FRAMING), "no stop bit; is the baud rate"),
    "overflow": (pack_frame(Response.PROBLEM, Problem.OVERFLOW), "more bytes came than it had granted"),
    "unknown problem": (pack_frame(Response.PROBLEM, 77), "problem 77"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_goes_wrong_is_said_until_the_link_is_reset(what):
    data, message = WRONG[what]
    port = Port()
    device = SerialDevice(TINY, port)
    port.incoming = data
    with pytest.raises(DeviceError, match=message):
        device.receive()
    with pytest.raises(DeviceError, match=message):
        device.read(Register.FAULT)
    device.discard()
    assert device.read(Register.IDENTITY) == IDENTITY


def test_a_damaged_register_value_is_seen():
    port = Port()
    device = SerialDevice(TINY, port)
    port.say[Request.READ] = pack_frame(Response.VALUE, Register.FAULT, bytes(8))
    with pytest.raises(DeviceError, match="register FAULT was damaged"):
        device.read(Register.FAULT)


def test_an_interrupt_ends_waiting_for_a_packet():
    port = Port()
    device = SerialDevice(TINY, port)
    port.incoming += pack_frame(Response.INTERRUPT)
    with pytest.raises(DeviceError, match="raised its interrupt"):
        device.receive()
    assert device.read(Register.IDENTITY) == IDENTITY, "the link still works"


@pytest.mark.parametrize(
    ("ready", "message"),
    [
        (b"", "silent after a BREAK .* bitstream loaded"),
        (b"hello" * 20000, "not as a sigbit accelerator does"),
        (pack_frame(Response.READY, SERIAL_VERSION + 1, count=1), "speaks version 2 of the serial link, this host 1"),
    ],
)
def test_another_thing_at_the_port_is_refused(ready, message):
    with pytest.raises(DeviceError, match=message):
        SerialDevice(TINY, Port(ready))


def test_a_missing_package_or_port_is_an_error_in_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(DeviceError, match="pip install pyserial"):
        open_device("serial:/dev/null", TINY)
    with pytest.raises(DeviceError, match="baud rate of a serial device must be a number, not 'fast'"):
        open_device("serial:/dev/null@fast", TINY)


def test_a_port_that_cannot_be_opened_is_named():
    pytest.importorskip("serial")
    with pytest.raises(DeviceError, match="Cannot open the serial port /nowhere at 115200 baud"):
        open_port("/nowhere", 115200)


def test_a_simulated_line_needs_whole_cycles_per_bit():
    with pytest.raises(RtlError, match="clock_hz must be a multiple of baud"):
        SerialLine("", 64, 10, 3)


# -- the whole accelerator ---------------------------------------------------------------------------------------------

CLOCK, BAUD = 16_000_000, 4_000_000
NETWORK = (
    Builder(3, 2, 4, 4, UINT(8))
    .conv(8, (3, 3), INT(8), ESBU(4, 2), relu=True)
    .conv(3, (2, 2), ESB(4, 2), None)
    .network()
)
LEVELS = np.random.default_rng(5).integers(0, 256, (3, 2, 4, 4))


@pytest.fixture(scope="module")
def line():
    return SerialLine(serial_verilog(TINY, CLOCK, BAUD), TINY.stream_bits, CLOCK, BAUD)


@pytest.mark.slow
def test_a_network_runs_over_the_lines(line):
    device = SerialDevice(TINY, line, timeout_seconds=0.003)
    with Session(device, compile(NETWORK, TINY)) as session:
        assert (session.run(LEVELS) == golden.run(NETWORK, LEVELS)).all()
        assert session.counters()["compute_cycles"] > 0
    assert session.recoveries == []
    assert line.framing_errors == 0


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["lost", "changed", "header", "noise"])
def test_nothing_is_lost_on_a_line_that_loses_and_changes_bytes(line, damage):
    device = SerialDevice(TINY, line, timeout_seconds=0.003)
    count = iter(range(1000))

    def change(data):
        number = next(count)
        if number not in (14, 40):
            return data
        where = {"header": 2}.get(damage, len(data) // 2)
        middle = {"lost": b"", "noise": b"\xff\x00" + data[where : where + 1]}.get(damage, bytes([data[where] ^ 0x20]))
        return data[:where] + middle + data[where + 1 :]

    line.damage = change
    try:
        with Session(device, compile(NETWORK, TINY)) as session:
            outputs = session.run(LEVELS)
    finally:
        line.damage = None
    assert (outputs == golden.run(NETWORK, LEVELS)).all()
    assert next(count) > 40
    assert session.recoveries, "the damage was seen"


@pytest.mark.slow
def test_digits_run_over_the_lines(line):
    network, images, _ = digits_network(2)
    program = compile(network, TINY)
    levels = program.input_levels(images)
    with Session(SerialDevice(TINY, line, timeout_seconds=0.01), program) as session:
        np.testing.assert_array_equal(session.run(levels), golden.run(network, levels))
    assert session.recoveries == []
