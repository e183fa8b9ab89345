"""An accelerator on a Zynq UltraScale+ board under PYNQ: AXI DMA in register mode, registers, interrupts.

Register offsets and bits are those of AMD's product guide PG021, AXI DMA, "Direct Register Mode".
"""

import asyncio
import json
import time as wall_clock
from collections import deque
from enum import IntFlag
from pathlib import Path

import numpy as np
from sigbit_hw.spec.config import AcceleratorConfig
from sigbit_hw.spec.packets import HEADER_BYTES
from sigbit_hw.spec.registers import Control, Register, Status

from .device import Device, DeviceError

__all__ = ["PynqDevice", "open_overlay"]

#: Cells of the block design.
_ACCELERATOR, _DMA = "accelerator", "axi_dma"
_INTERRUPTS = ("axi_dma/mm2s_introut", "axi_dma/s2mm_introut", "accelerator/irq")
_TRANSFER_BYTES = 1 << 22
_POLL_SECONDS = 0.0002
#: Reads of a control register until a DMA reset counts as failed; it takes some tens of cycles.
_RESET_READS = 1000


class _Command(IntFlag):
    """Bits of MM2S_DMACR and S2MM_DMACR."""

    RUN = 1 << 0
    RESET = 1 << 2
    COMPLETE_INTERRUPT = 1 << 12
    ERROR_INTERRUPT = 1 << 14


class _State(IntFlag):
    """Bits of MM2S_DMASR and S2MM_DMASR."""

    HALTED = 1 << 0
    IDLE = 1 << 1
    INTERNAL_ERROR = 1 << 4
    SLAVE_ERROR = 1 << 5
    DECODE_ERROR = 1 << 6
    COMPLETE = 1 << 12
    ERROR = 1 << 14


_ERRORS = {
    _State.INTERNAL_ERROR: "internal error: a packet is longer than its buffer, or a transfer of no bytes",
    _State.SLAVE_ERROR: "slave error: memory answered a burst with an error",
    _State.DECODE_ERROR: "decode error: no memory at this address",
}


def _names(flags, value):
    return " ".join(str(flag.name).lower() for flag in flags if value & flag)


class _Channel:
    """One direction of an AXI DMA."""

    def __init__(self, name, mmio, base, address):
        self._name, self._mmio, self._base, self._address = name, mmio, base, base + address
        self.buffers = []

    @property
    def state(self):
        return _State(self._mmio.read(self._base + 0x04))

    def describe(self):
        state = self.state
        return f"{self._name} {_names(_State, state) or 'running'}"

    def reset(self):
        self._mmio.write(self._base, _Command.RESET)
        for _ in range(_RESET_READS):
            if not self._mmio.read(self._base) & _Command.RESET:
                return
        raise DeviceError(
            f"The DMA's {self._name} channel does not come out of its reset; load the overlay again or power-cycle the "
            "board"
        )

    def enable(self):
        self._mmio.write(self._base, _Command.RUN | _Command.COMPLETE_INTERRUPT | _Command.ERROR_INTERRUPT)

    def start(self, buffer, size):
        """Transfer ``size`` bytes from or to a contiguous buffer."""
        self._mmio.write(self._address, buffer.device_address & 0xFFFFFFFF)
        self._mmio.write(self._address + 4, buffer.device_address >> 32)
        self._mmio.write(self._address + 0x10, size)

    def completed(self):
        """Whether a transfer has ended since the last call.

        Raises
        ------
        :exc:`DeviceError`
            If it ended with an error, in words.
        """
        state = self.state
        errors = [words for bit, words in _ERRORS.items() if state & bit]
        if errors:
            raise DeviceError(f"The DMA's {self._name} channel stopped with {'; '.join(errors)}")
        if not state & _State.COMPLETE:
            return False
        self._mmio.write(self._base + 0x04, _State.COMPLETE)
        return True

    @property
    def transferred(self):
        """Bytes that the last transfer to memory brought."""
        return self._mmio.read(self._address + 0x10)


class PynqDevice(Device):
    """An accelerator behind an AXI DMA without scatter-gather, as the ``zcu102`` block design has it.

    Packets are gathered into transfers of a fixed buffer; one transfer is on its way while the other buffer fills.
    Answers come into a buffer of the largest answer that the configuration can give.

    Parameters
    ----------
    config : AcceleratorConfig
    pynq
        The module ``pynq`` (``MMIO``, ``allocate``, ``Interrupt``), or a model of it.
    overlay : pynq.Overlay
        The design, loaded.
    timeout_seconds : float
        Time without any progress after which the accelerator counts as hung.
    interrupts : bool
        Wait for interrupts. Otherwise, and where an event loop runs already as in a notebook, registers are polled.
    time
        With ``monotonic()`` and ``sleep(seconds)``.
    loop : asyncio event loop, optional
        For waiting for interrupts.

    Raises
    ------
    :exc:`DeviceError`
        If the overlay is not that of sigbit, or memory for the buffers is missing.
    """

    retries = 3

    def __init__(self, config, pynq, overlay, timeout_seconds=5.0, interrupts=True, time=wall_clock, loop=None):
        super().__init__(config)
        missing = [name for name in (_ACCELERATOR, _DMA) if name not in overlay.ip_dict]
        if missing:
            raise DeviceError(
                f"The overlay has no {' and no '.join(missing)}, but "
                f"{', '.join(sorted(overlay.ip_dict)) or 'nothing'}; build it with: sigbit build zcu102"
            )
        self._time, self._timeout_seconds = time, timeout_seconds
        self._registers, dma = (
            pynq.MMIO(overlay.ip_dict[name]["phys_addr"], overlay.ip_dict[name]["addr_range"])
            for name in (_ACCELERATOR, _DMA)
        )
        self._out = _Channel("MM2S (to the accelerator)", dma, 0x00, 0x18)
        self._in = _Channel("S2MM (from the accelerator)", dma, 0x30, 0x18)
        beat = config.stream_bits // 8
        words = max(
            depth * config.beats_per_word(bits)
            for depth, bits in (
                (config.feature_depth, config.feature_word_bits),
                (config.weight_depth, config.weight_word_bits),
                (config.parameter_depth, config.parameter_word_bits),
            )
        )
        overhead = -(-HEADER_BYTES // beat) * beat + beat
        answer = config.feature_depth * config.beats_per_word(config.feature_word_bits) * beat + overhead
        sizes = [max(_TRANSFER_BYTES, words * beat + overhead)] * 2 + [answer]
        try:
            buffers = [pynq.allocate(shape=(size,), dtype=np.uint8) for size in sizes]
        except (MemoryError, RuntimeError) as error:
            raise DeviceError(
                f"The board has no {sum(sizes) >> 10} KiB of contiguous memory left ({error}); end other programs that "
                "hold PYNQ buffers, or boot with a larger cma="
            ) from error
        self._out.buffers, self._in.buffers = buffers[:2], buffers[2:]
        self._interrupts = [pynq.Interrupt(name) for name in _INTERRUPTS] if interrupts else []
        self._loop = loop
        self.discard()

    def read(self, register):
        return self._registers.read(int(register))

    def write(self, register, value):
        self._registers.write(int(register), int(value))

    def send(self, packet):
        if len(packet) > len(self._out.buffers[0]):
            raise DeviceError(
                f"A packet of {len(packet)} bytes is larger than any memory of the accelerator; transfers have "
                f"{len(self._out.buffers[0])}"
            )
        self._outgoing.append(packet)
        self._service()

    def receive(self):
        self._wait(lambda: self._answers, "a packet")
        if not self._answers:
            raise DeviceError("Expected a packet, but the accelerator raised its interrupt")
        return self._answers.popleft()

    def flush(self):
        self._wait(lambda: not self._outgoing and not self._sending, "the end of a transfer")

    def discard(self):
        self._outgoing: deque[bytes] = deque()
        self._answers: deque[bytes] = deque()
        self._sending = False
        self._progress = 0
        # An answer that the reset cuts still ends with a beat, which has to go before the next one comes.
        for _ in range(2):
            # Either channel's reset bit resets both.
            self._out.reset()
            self._out.enable()
            self._in.enable()
            self._arm()
            self.write(Register.CONTROL, Control.SOFT_RESET)
            self.read(Register.STATUS)
        self._take()
        self._answers.clear()

    def close(self):
        """Stop the DMA and give the buffers back."""
        self._out.reset()
        for buffer in (*self._out.buffers, *self._in.buffers):
            buffer.freebuffer()

    def _arm(self):
        (buffer,) = self._in.buffers
        self._in.start(buffer, len(buffer))

    def _take(self):
        """Take an answer, if there is one, and make room for the next."""
        if self._in.completed():
            (buffer,) = self._in.buffers
            buffer.invalidate()
            self._answers.append(buffer[: self._in.transferred].tobytes())
            self._arm()
            self._progress += 1

    def _service(self):
        """Whatever can be done without waiting."""
        self._take()
        if self._sending and self._out.completed():
            self._sending = False
            self._progress += 1
        if self._sending or not self._outgoing:
            return
        buffer = self._out.buffers[0]
        self._out.buffers.reverse()
        filled = 0
        while self._outgoing and filled + len(self._outgoing[0]) <= len(buffer):
            packet = self._outgoing.popleft()
            buffer[filled : filled + len(packet)] = np.frombuffer(packet, np.uint8)
            filled += len(packet)
        buffer.flush()
        self._out.start(buffer, filled)
        self._sending = True

    def _wait(self, ready, awaited):
        """Until ``ready`` or an interrupt of the accelerator."""
        progress, since = self._progress, self._time.monotonic()
        while True:
            self._service()
            if ready() or self.read(Register.IRQ_PENDING) & self.read(Register.IRQ_ENABLE):
                return
            now = self._time.monotonic()
            if self._progress != progress:
                progress, since = self._progress, now
            if now - since >= self._timeout_seconds:
                status = self.read(Register.STATUS)
                raise DeviceError(
                    f"Expected {awaited}, but nothing happened for {self._timeout_seconds:g} s; DMA: "
                    f"{self._out.describe()}, {self._in.describe()}; accelerator: "
                    f"{_names(Status, status) or 'idle'}"
                )
            self._sleep(since + self._timeout_seconds - now)

    def _sleep(self, seconds):
        try:
            asyncio.get_running_loop()
            polled = True
        except RuntimeError:
            polled = not self._interrupts
        if polled:
            self._time.sleep(_POLL_SECONDS)
            return
        self._loop = self._loop or asyncio.new_event_loop()

        async def any_interrupt():
            waiting = [asyncio.ensure_future(interrupt.wait()) for interrupt in self._interrupts]
            _, pending = await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

        self._loop.run_until_complete(any_interrupt())


def open_overlay(folder, timeout_seconds=5.0):
    """Load ``sigbit.bit`` (with ``sigbit.hwh``) of a folder that ``sigbit build zcu102`` filled, and open the device.

    Raises
    ------
    :exc:`DeviceError`
        If PYNQ is not installed, or the folder is not complete.
    """
    folder = Path(folder)
    missing = [name for name in ("sigbit.bit", "sigbit.hwh", "manifest.json") if not (folder / name).is_file()]
    if missing:
        raise DeviceError(f"{folder} has no {', no '.join(missing)}; copy them from the folder of sigbit build zcu102")
    try:
        import pynq
    except ImportError:
        raise DeviceError(
            "A ZCU102 is driven through PYNQ, which is not installed here; run this on the board"
        ) from None
    try:
        config = AcceleratorConfig.from_dict(json.loads((folder / "manifest.json").read_text())["configuration"])
    except (ValueError, KeyError) as error:
        raise DeviceError(f"{folder}/manifest.json is not a manifest of sigbit: {error}") from error
    return PynqDevice(config, pynq, pynq.Overlay(str(folder / "sigbit.bit")), timeout_seconds)
