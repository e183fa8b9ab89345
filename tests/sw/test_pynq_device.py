"""The PYNQ driver drives the Verilog through a model of DMA, cached memory and interrupts, whatever goes wrong."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from networks import Builder
from sigbit.compiler import compile
from sigbit.demo import digits_network
from sigbit.device import DeviceError, open_device
from sigbit.pynq_device import PynqDevice, open_overlay
from sigbit.session import Session
from sigbit_hw.emit import manifest
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT
from sigbit_hw.spec.registers import Control, Register
from sigbit_sim.golden import network as golden
from sigbit_sim.pynq_model import FAULTS, ModelError, PynqModel

TINY = PRESETS["tiny"]
NETWORK = (
    Builder(3, 2, 4, 4, UINT(8))
    .conv(8, (3, 3), INT(8), ESBU(4, 2), relu=True)
    .conv(3, (2, 2), ESB(4, 2), None)
    .network()
)
PROGRAM = compile(NETWORK, TINY)
LEVELS = np.random.default_rng(5).integers(0, 256, (5, 2, 4, 4))
#: What a session says it recovered from.
WORDS = {
    "internal error": "stopped with internal error",
    "slave error": "stopped with slave error",
    "decode error": "stopped with decode error",
    "stall": "nothing happened for 0.0002 s; DMA: ",
    "damage": r"CRC",
    "reset": r"fault 9 \(STATE\)",
}


@pytest.fixture(scope="module")
def board():
    return PynqModel(TINY)


def driver(board, **options):
    board.faults.clear()
    options = {"timeout_seconds": 0.0002, "time": board, "loop": board.new_event_loop()} | options
    return PynqDevice(TINY, board, board.overlay, **options)


@pytest.mark.parametrize("interrupts", [True, False])
def test_programs_run_as_on_every_device(board, interrupts):
    device = driver(board, interrupts=interrupts)
    for _ in range(2):
        with Session(device, PROGRAM) as session:
            assert (session.run(LEVELS) == golden.run(NETWORK, LEVELS)).all()
            assert session.counters()["compute_cycles"] > 0
        assert session.recoveries == []
    device.close()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("channel", ["mm2s", "s2mm"])
def test_nothing_is_lost_when_a_transfer_fails(board, channel, fault):
    device = driver(board)
    number = board.transfers(channel) + 3
    board.faults[channel, number] = fault
    with Session(device, PROGRAM) as session:
        assert (session.run(LEVELS) == golden.run(NETWORK, LEVELS)).all()
    assert board.faults == {}, "the fault happened"
    if fault == "lost interrupt":
        assert session.recoveries == []
    else:
        (said,) = session.recoveries
        assert re.search(WORDS[fault], said)
    device.close()


def test_the_digits_network_loses_nothing_to_errors_timeouts_and_resets(board):
    network, images, _ = digits_network(8)
    program = compile(network, TINY)
    levels = program.input_levels(images)
    device = driver(board, timeout_seconds=0.0004)
    sent, received = board.transfers("mm2s"), board.transfers("s2mm")
    board.faults |= {
        ("mm2s", sent + 2): "decode error",  # while the weights are sent
        ("mm2s", sent + 5): "slave error",
        ("mm2s", sent + 12): "stall",
        ("mm2s", sent + 18): "reset",
        ("s2mm", received + 12): "internal error",
        ("s2mm", received + 15): "stall",
        ("s2mm", received + 18): "damage",
    }
    with Session(device, program) as session:
        outputs = session.run(levels)
    np.testing.assert_array_equal(outputs, golden.run(network, levels))
    assert board.faults == {}
    assert len(session.recoveries) == 7
    device.close()


def test_a_device_that_never_recovers_is_an_error_in_words(board):
    device = driver(board)
    number = board.transfers("mm2s")
    board.faults |= {("mm2s", number + attempt): "slave error" for attempt in range(1, 9)}
    with pytest.raises(DeviceError, match=r"MM2S .* stopped with slave error: memory answered"):
        Session(device, PROGRAM, retries=2).__enter__()
    assert len(board.faults) == 5, "three attempts"
    device.close()


def test_without_retries_the_first_failure_is_an_error(board):
    device = driver(board)
    board.faults["mm2s", board.transfers("mm2s") + 3] = "internal error"
    with pytest.raises(DeviceError, match="internal error"), Session(device, PROGRAM, retries=0) as session:
        session.run(LEVELS)
    device.close()


def test_a_session_that_cannot_end_leaves_the_device_reset(board):
    device = driver(board)
    with Session(device, PROGRAM) as session:
        outputs = session.run(LEVELS)
        board.faults["mm2s", board.transfers("mm2s") + 1] = "decode error"
    assert (outputs == golden.run(NETWORK, LEVELS)).all()
    assert len(session.recoveries) == 1
    assert device.read(Register.STATUS) == 0
    device.close()


def test_hanging_without_any_answer_says_what_every_part_does(board):
    device = driver(board)
    with pytest.raises(DeviceError, match=r"Expected a packet, .*MM2S .* running, S2MM .* running; accelerator: idle"):
        device.receive()
    device.close()


def test_an_interrupt_ends_waiting(board):
    device = driver(board)
    session = Session(device, PROGRAM).__enter__()
    packet = bytearray(PROGRAM.image_packets(LEVELS[0], 0)[0])
    packet[-20] ^= 1
    device.send(bytes(packet))
    with pytest.raises(DeviceError, match=r"fault 6 \(CRC\) at packet"):
        Session._receive(session)
    device.close()


def test_a_packet_larger_than_every_memory_is_refused(board):
    device = driver(board)
    with pytest.raises(DeviceError, match="larger than any memory"):
        device.send(bytes(1 << 23))
    device.close()


def test_another_overlay_is_refused(board):
    overlay = SimpleNamespace(ip_dict={"axi_dma": {}, "axi_gpio": {}})
    with pytest.raises(DeviceError, match="no accelerator, but axi_dma, axi_gpio; build it with"):
        PynqDevice(TINY, board, overlay)


def test_memory_that_is_missing_is_said(board):
    def none_left(shape, dtype):
        raise RuntimeError("Failed to allocate memory!")

    poor = SimpleNamespace(allocate=none_left, MMIO=board.MMIO, Interrupt=board.Interrupt)
    with pytest.raises(DeviceError, match=r"\d+ KiB of contiguous memory .*Failed to allocate"):
        PynqDevice(TINY, poor, board.overlay)


def test_the_model_refuses_what_the_hardware_does_not_allow(board):
    device = driver(board)
    dma = board.MMIO(board.overlay.ip_dict["axi_dma"]["phys_addr"], 0x1000)
    with pytest.raises(ModelError, match="while a transfer is active"):
        dma.write(0x58, 64)
    dma.write(0x18, 0x7000_0001)
    with pytest.raises(ModelError, match="without data realignment"):
        dma.write(0x28, 64)
    with pytest.raises(ModelError, match="nothing at address"):
        board.MMIO(0x1000, 4).read()
    device.close()


def test_memory_that_was_not_flushed_does_not_arrive(board, monkeypatch):
    device = driver(board)
    monkeypatch.setattr(type(device._out.buffers[0]), "flush", lambda buffer: None)
    with pytest.raises(DeviceError, match="fault"):
        Session(device, PROGRAM, retries=0).__enter__()
    monkeypatch.undo()
    device.write(Register.CONTROL, Control.SOFT_RESET)
    device.close()


def test_an_overlay_is_opened_from_the_folder_of_a_build(board, tmp_path, monkeypatch):
    with pytest.raises(DeviceError, match=r"no sigbit\.bit, no sigbit\.hwh, no manifest\.json"):
        open_device(f"pynq:{tmp_path}", TINY)
    for name in ("sigbit.bit", "sigbit.hwh"):
        (tmp_path / name).write_text("")
    (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "pynq", None)
    with pytest.raises(DeviceError, match="PYNQ, which is not installed"):
        open_overlay(tmp_path)
    loaded = []
    board.Overlay = lambda path: loaded.append(path) or board.overlay
    monkeypatch.setitem(sys.modules, "pynq", board)
    with pytest.raises(DeviceError, match="not a manifest of sigbit"):
        open_overlay(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest(TINY)))
    device = open_overlay(tmp_path)
    assert loaded == [str(tmp_path / "sigbit.bit")]
    assert device.config == TINY
    device.close()
