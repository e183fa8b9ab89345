"""A ZCU102 with PYNQ, modelled: AXI DMA, memory behind a cache, interrupts, and the accelerator's Verilog behind them.

The model answers nothing itself. Bytes reach the accelerator because a driver wrote the DMA's registers (AMD PG021,
direct register mode) with the address of memory that it flushed, and the accelerator's beats reach memory the same way.
A driver that does what the hardware does not allow gets a :exc:`ModelError`.
"""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.registers import Control, Register

from .rtl import RtlModel

__all__ = ["FAULTS", "ModelError", "PynqModel"]

_ACCELERATOR_BASE, _DMA_BASE = 0xA001_0000, 0xA000_0000
_MEMORY_BASE = 0x7000_0000
#: Clock cycles that an access to a register takes.
_ACCESS_CYCLES = 40
#: Clock cycles between two looks of a waiting program.
_SLICE_CYCLES = 1000
#: Bits of the length registers: c_sg_length_width of the block design.
_LENGTH_BITS = 26
_RUN, _RESET = 1 << 0, 1 << 2
_HALTED, _IDLE = 1 << 0, 1 << 1
_INTERNAL, _SLAVE, _DECODE = 1 << 4, 1 << 5, 1 << 6
_COMPLETE, _ERROR = 1 << 12, 1 << 14
_INTERRUPTS = _COMPLETE | _ERROR
_ERRORS: dict = {"internal error": _INTERNAL, "slave error": _SLAVE, "decode error": _DECODE}

#: What can be made to go wrong with a transfer.
FAULTS = (
    "internal error",  #: DMAIntErr half way
    "slave error",  #: DMASlvErr half way
    "decode error",  #: DMADecErr half way
    "stall",  #: half of it, then nothing
    "lost interrupt",  #: the line stays low though it is done
    "damage",  #: one byte changed
    "reset",  #: somebody resets the accelerator meanwhile
)


class ModelError(SigbitError):
    """A driver did what the hardware does not allow."""


class _Buffer(np.ndarray):
    """Contiguous memory as a program sees it; the DMA sees what was flushed."""

    def __new__(cls, model, size):
        # A program finds what was there before, not zeros.
        buffer = np.random.default_rng(size).integers(0, 256, size, np.uint8).view(cls)
        buffer.device_address = buffer.physical_address = model._next_address
        buffer.memory = bytearray(size)
        model._next_address += -(-size // 4096) * 4096
        model._buffers.append(buffer)
        buffer._model = model
        return buffer

    memory: bytearray
    device_address: int
    _model: "PynqModel"

    def flush(self):
        self.memory[:] = self.tobytes()

    def invalidate(self):
        self[:] = np.frombuffer(self.memory, np.uint8)

    def freebuffer(self):
        self._model._buffers = [buffer for buffer in self._model._buffers if buffer is not self]


class _Channel:
    """Registers of one direction, from 0x00 on."""

    def __init__(self, model, name, beat_bytes):
        self._model, self.name, self._beat_bytes = model, name, beat_bytes
        self.transfers = 0
        self.reset()

    def reset(self):
        self.command, self.state, self.address, self.length = 0, _HALTED, 0, 0
        self.active = self.hidden = False
        self.fault: str | None = None
        self.buffer: Any = None

    @property
    def interrupt(self):
        return bool(self.state & self.command & _INTERRUPTS) and not self.hidden

    def read(self, offset):
        values = {0x00: self.command, 0x04: self.state, 0x18: self.address & 0xFFFFFFFF, 0x1C: self.address >> 32}
        return values.get(offset, self.length if offset == 0x28 else 0)

    def write(self, offset, value):
        if offset == 0x00:
            if value & _RESET:
                self._model._reset_dma()
                return
            if value & _RUN and not self.command & _RUN:
                self.state &= ~_HALTED
            self.command = value
        elif offset == 0x04:
            self.state &= ~(value & _INTERRUPTS)
            self.hidden = False
        elif offset == 0x18:
            self.address = self.address >> 32 << 32 | value
        elif offset == 0x1C:
            self.address = self.address & 0xFFFFFFFF | value << 32
        elif offset == 0x28:
            self._start(value)
        else:
            raise ModelError(f"The DMA has no register {offset:#x} in {self.name}")

    def _start(self, length):
        if self.active:
            raise ModelError(f"LENGTH of {self.name} was written while a transfer is active")
        if self.state & _HALTED:
            return
        if self.address % self._beat_bytes:
            raise ModelError(
                f"{self.name} was given address {self.address:#x}; without data realignment it takes beats"
            )
        if length >> _LENGTH_BITS:
            raise ModelError(f"{self.name} was given {length} bytes; its length register has {_LENGTH_BITS} bits")
        self.length = length
        self.state &= ~_IDLE
        self.transfers += 1
        self.fault = self._model.faults.pop((self.name, self.transfers), None)
        if not length:
            self.fail(_INTERNAL)
            return
        self.buffer = next(
            (
                buffer
                for buffer in self._model._buffers
                if buffer.device_address <= self.address
                and self.address + length <= buffer.device_address + len(buffer.memory)
            ),
            None,
        )
        if self.buffer is None:
            self.fail(_DECODE)
            return
        self.active = True

    def store(self, data):
        """Put what came into memory."""
        start = self.address - self.buffer.device_address
        self.buffer.memory[start : start + len(data)] = data

    def fail(self, error):
        """Stop as the hardware does after an error: only a reset helps."""
        self.state |= error | _ERROR | _HALTED
        self.command &= ~_RUN
        self.active = False

    def finish(self):
        self.state |= _COMPLETE | _IDLE
        self.active = False
        self.hidden = self.fault == "lost interrupt"


class PynqModel:
    """Module ``pynq``, module ``time`` and event loop for a driver of a modelled board.

    Parameters
    ----------
    config : AcceleratorConfig
    clock_hz : float
        Of the accelerator: what a second is.
    progress : callable, optional
        Called with a line of text before a long build.

    Attributes
    ----------
    faults : dict
        ``(channel, number)`` -> one of :data:`FAULTS`, for the transfer of that number, from 1, of ``"mm2s"`` or
        ``"s2mm"``. What has happened is taken out.
    rtl : RtlModel
    """

    def __init__(self, config, clock_hz=200e6, progress=None):
        self.rtl = RtlModel(config, progress)
        self.faults = {}
        self._clock_hz = clock_hz
        self._idle_cycles = 0
        self._buffers = []
        self._next_address = _MEMORY_BASE
        beat = config.stream_bits // 8
        self._mm2s, self._s2mm = _Channel(self, "mm2s", beat), _Channel(self, "s2mm", beat)
        self._lines = {
            "axi_dma/mm2s_introut": lambda: self._mm2s.interrupt,
            "axi_dma/s2mm_introut": lambda: self._s2mm.interrupt,
            "accelerator/irq": lambda: self.rtl.interrupt,
        }
        self.overlay = SimpleNamespace(
            ip_dict={
                "accelerator": {"phys_addr": _ACCELERATOR_BASE, "addr_range": 0x1000},
                "axi_dma": {"phys_addr": _DMA_BASE, "addr_range": 0x1000},
            }
        )
        self._accept(False)

    def transfers(self, channel):
        """Transfers of ``"mm2s"`` or ``"s2mm"`` that were started so far."""
        return {"mm2s": self._mm2s, "s2mm": self._s2mm}[channel].transfers

    # -- module pynq ---------------------------------------------------------------------------------------------------

    def allocate(self, shape, dtype):
        """Memory that the DMA can reach."""
        (size,) = shape
        return _Buffer(self, size * np.dtype(dtype).itemsize)

    def MMIO(self, base, length):  # the name that PYNQ gives it
        """Registers from ``base`` on."""
        return SimpleNamespace(
            read=lambda offset=0: self._access(base + offset, None),
            write=lambda offset, value: self._access(base + offset, value),
        )

    def Interrupt(self, pin):
        """A line to wait for."""
        if pin not in self._lines:
            raise ValueError(f"No Pin of name {pin} found")

        async def wait():
            while not self._lines[pin]():
                self.advance(_SLICE_CYCLES)
                await asyncio.sleep(0)

        return SimpleNamespace(wait=wait)

    # -- time ----------------------------------------------------------------------------------------------------------

    def monotonic(self):
        """Seconds of the modelled board."""
        return (self.rtl.cycles + self._idle_cycles) / self._clock_hz

    def sleep(self, seconds):
        """Let so much time pass."""
        self.advance(max(1, round(seconds * self._clock_hz)))

    def new_event_loop(self):
        """An event loop whose time is that of the board."""
        model = self

        class Loop(asyncio.SelectorEventLoop):
            def time(self):
                return model.monotonic()

        return Loop()

    def advance(self, cycles):
        """Let the hardware run."""
        while cycles > 0:
            before = self.rtl.cycles
            self.rtl.run(min(cycles, _SLICE_CYCLES), until_sent=bool(self._mm2s.active))
            self._take_answers()
            self._take_program()
            passed = self.rtl.cycles - before
            if not passed:
                # The interrupt is up, or an answer waits: the simulation stands still until the program does something.
                passed = min(cycles, _SLICE_CYCLES)
                self._idle_cycles += passed
            cycles -= passed

    # -- hardware ------------------------------------------------------------------------------------------------------

    def _access(self, address, value):
        self.advance(_ACCESS_CYCLES)
        offset = address - _DMA_BASE
        if 0 <= offset < 0x60:
            channel = self._mm2s if offset < 0x30 else self._s2mm
            offset %= 0x30
            if value is None:
                return channel.read(offset)
            started = channel.active
            channel.write(offset, value)
            if channel.active and not started:
                self._started(channel)
            return None
        if 0 <= address - _ACCELERATOR_BASE < 0x100:
            if value is None:
                return self.rtl.read(address - _ACCELERATOR_BASE)
            self.rtl.write(address - _ACCELERATOR_BASE, value)
            return None
        raise ModelError(f"There is nothing at address {address:#x}")

    def _accept(self, accept):
        """S2MM takes beats only while a transfer is active."""
        self.rtl.set_stalls(1, 0, 0 if accept else 100)

    def _reset_dma(self):
        """Either reset bit resets the whole engine (PG021)."""
        self.rtl.discard()
        self._mm2s.reset()
        self._s2mm.reset()
        self._accept(False)

    def _started(self, channel):
        if channel is self._s2mm:
            self._accept(channel.fault != "stall")
            return
        start = channel.address - channel.buffer.device_address
        data = bytearray(channel.buffer.memory[start : start + channel.length])
        half = len(data) // 2 // channel._beat_bytes * channel._beat_bytes
        if channel.fault == "damage":
            data[len(data) - 2 * channel._beat_bytes] ^= 0x10
        if channel.fault == "reset":
            self.rtl.write(Register.CONTROL, Control.SOFT_RESET)
        whole = channel.fault in (None, "damage", "reset", "lost interrupt")
        if whole:
            self.rtl.send(bytes(data), last=True)
        elif half:
            self.rtl.send(bytes(data[:half]), last=False)

    def _take_program(self):
        channel = self._mm2s
        if not channel.active or self.rtl.pending or channel.fault == "stall":
            return
        if channel.fault in _ERRORS:
            channel.fail(_ERRORS[channel.fault])
        else:
            channel.finish()

    def _take_answers(self):
        channel = self._s2mm
        if not channel.active or (data := self.rtl.receive()) is None:
            return
        self._accept(False)
        if channel.fault in _ERRORS or len(data) > channel.length:
            channel.fail(_ERRORS.get(channel.fault, _INTERNAL))
            return
        if channel.fault == "damage":
            data = bytes([*data[:-9], data[-9] ^ 1, *data[-8:]])
        if channel.fault == "reset":
            self.rtl.write(Register.CONTROL, Control.SOFT_RESET)
        channel.store(data)
        channel.length = len(data)
        channel.finish()
