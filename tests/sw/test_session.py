"""Sessions: what is checked before a program runs, how images follow each other, and what a fault looks like."""

import contextlib

import numpy as np
import pytest
from networks import Builder
from sigbit.compiler import compile
from sigbit.device import DeviceError, EmulatorDevice, open_device
from sigbit.session import Session
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT
from sigbit_hw.spec.packets import Fault
from sigbit_hw.spec.registers import Control, Register
from sigbit_sim.golden import network as golden

TINY = PRESETS["tiny"]
NETWORK = (
    Builder(3, 2, 4, 4, UINT(8))
    .conv(8, (3, 3), INT(8), ESBU(4, 2), relu=True)
    .conv(3, (2, 2), ESB(4, 2), None)
    .network()
)
PROGRAM = compile(NETWORK, TINY)
LEVELS = np.random.default_rng(5).integers(0, 256, (5, 2, 4, 4))


class Recorder(EmulatorDevice):
    """An emulator that notes what the host does and answers some registers with other values."""

    def __init__(self, answers=()):
        super().__init__(TINY)
        self.answers, self.actions = dict(answers), []

    def read(self, register):
        return self.answers.get(register, super().read(register))

    def write(self, register, value):
        self.actions.append((register, value))
        super().write(register, value)

    def send(self, packet):
        self.actions.append("send")
        super().send(packet)

    def receive(self):
        self.actions.append("receive")
        return super().receive()

    def discard(self):
        self.actions.append("discard")
        super().discard()


def test_images_may_come_in_several_batches():
    expected = golden.run(NETWORK, LEVELS)
    done = []
    with Session(EmulatorDevice(TINY), PROGRAM) as session:
        first = session.run(LEVELS[:2])
        second = session.run(LEVELS[2:], done.append)
    assert (np.concatenate([first, second]) == expected).all()
    assert done == [1, 2, 3]


def test_the_next_image_is_sent_before_a_result_is_awaited():
    device = Recorder()
    with Session(device, PROGRAM) as session:
        start = len(device.actions)
        session.run(LEVELS[:3])
        actions = device.actions[start:]
    packets = actions.count("send") // 3
    sends = ["send"] * packets
    assert actions == [*sends, *sends, "receive", *sends, "receive", "receive"]


def two_outputs():
    builder = Builder(3, 2, 4, 4, UINT(8)).conv(8, (3, 3), INT(8), ESBU(4, 2), relu=True)
    return builder.conv(3, (2, 2), ESB(4, 2), None).network("layer1_out", "layer0_out")


def test_several_outputs_come_by_name():
    network = two_outputs()
    expected = golden.run(network, LEVELS)
    with Session(EmulatorDevice(TINY), compile(network, TINY)) as session:
        found = session.run(LEVELS)
        nothing = session.run(LEVELS[:0])
    assert list(found) == list(nothing) == ["layer1_out", "layer0_out"]
    for name, values in expected.items():
        assert (found[name] == values).all()
        assert nothing[name].shape == (0,)


def test_no_images_give_no_outputs():
    with Session(EmulatorDevice(TINY), PROGRAM) as session:
        assert session.run(LEVELS[:0]).shape == (0,)


def test_a_device_can_be_used_again_after_a_session():
    device = EmulatorDevice(TINY)
    for _ in range(2):
        with Session(device, PROGRAM) as session:
            assert (session.run(LEVELS) == golden.run(NETWORK, LEVELS)).all()
            counted = session.counters()["compute_cycles"]
        assert counted == len(LEVELS) * sum(layer["compute_cycles"] for layer in PROGRAM.layers)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({Register.IDENTITY: 0x1234}, "Expected a sigbit accelerator .* found 0x00001234"),
        ({Register.VERSION: 99}, "speaks contract version 99"),
        ({Register.HASH_HIGH: 1}, "compiled for configuration .* accelerator is 00000001"),
    ],
)
def test_another_accelerator_is_refused_before_anything_is_sent(answers, message):
    device = Recorder(answers)
    with pytest.raises(DeviceError, match=message):
        Session(device, PROGRAM)
    assert device.actions == []


def test_a_fault_is_named_with_its_packet():
    device = EmulatorDevice(TINY)
    session = Session(device, PROGRAM).__enter__()
    packet = bytearray(PROGRAM.image_packets(LEVELS[0], 0)[0])
    packet[-20] ^= 1
    device.send(bytes(packet))
    with pytest.raises(DeviceError, match=rf"fault {int(Fault.CRC)} \(CRC\) at packet {len(PROGRAM.setup)}"):
        session.run(LEVELS[:1])


def test_a_session_that_fails_leaves_the_device_reset():
    device = Recorder()
    with contextlib.suppress(KeyError), Session(device, PROGRAM) as session:
        session.run(LEVELS[:1])
        raise KeyError
    assert device.actions[-2:] == ["discard", (Register.CONTROL, Control.SOFT_RESET)]
    with Session(device, PROGRAM) as session:
        assert (session.run(LEVELS) == golden.run(NETWORK, LEVELS)).all()


def test_an_unknown_device_is_refused():
    with pytest.raises(
        SigbitError, match=r"Unknown device 'board'; expected emulator, rtl, serial:PORT\[@BAUD\] or pynq:FOLDER"
    ):
        open_device("board", TINY)
