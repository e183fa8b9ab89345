"""One interface to an accelerator, whatever its body: golden emulator, RTL in Verilator, a board."""

from abc import ABC, abstractmethod

from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.registers import Register

__all__ = ["Device", "DeviceError", "EmulatorDevice", "RtlDevice", "open_device"]


#: The simulation returns to Python at least this often, so that Ctrl-C stops it.
_SLICE_CYCLES = 200_000


class DeviceError(SigbitError):
    """The accelerator reported a fault, did not answer, or is not the one that was expected."""


class Device(ABC):
    """Registers, packets in, packets out.

    Attributes
    ----------
    config : AcceleratorConfig
        What the device was built from, as far as the host knows; a session checks it against the identity registers.
    retries : int
        How often a session starts again without a result in between; boards have cables, simulations none.
    """

    retries = 0

    def __init__(self, config):
        self.config = config

    @abstractmethod
    def read(self, register: Register) -> int:
        """Value of a 32-bit register."""

    @abstractmethod
    def write(self, register: Register, value: int) -> None:
        """Write a 32-bit register."""

    @abstractmethod
    def send(self, packet: bytes) -> None:
        """Hand over a packet; returns at once, the device takes it when it can."""

    @abstractmethod
    def receive(self) -> bytes:
        """Wait for the next packet.

        Raises
        ------
        :exc:`DeviceError`
            If none comes.
        """

    @abstractmethod
    def flush(self) -> None:
        """Wait until every packet that was sent has been taken."""

    @abstractmethod
    def discard(self) -> None:
        """Drop packets that were sent but not taken, and those received but not read."""


class EmulatorDevice(Device):
    """The program emulator of the golden model: exact results, no notion of time."""

    def __init__(self, config):
        from sigbit_sim.golden.emulator import Emulator

        super().__init__(config)
        self._emulator = Emulator(config)

    def read(self, register):
        return self._emulator.read(register)

    def write(self, register, value):
        self._emulator.write(register, value)

    def send(self, packet):
        self._emulator.send(packet)

    def receive(self):
        packet = self._emulator.receive()
        if packet is None:
            raise DeviceError("The emulator has no packet to return")
        return packet

    def flush(self):
        pass

    def discard(self):
        while self._emulator.receive() is not None:
            pass


class RtlDevice(Device):
    """The emitted Verilog in Verilator.

    Parameters
    ----------
    timeout_cycles : int
        Clock cycles without a packet after which the accelerator counts as hung.
    progress : callable, optional
        Called with a line of text before a long build.
    activity : bool
        Whether the model can record the activity of its signals.
    """

    def __init__(self, config, timeout_cycles=50_000_000, progress=None, activity=False):
        from sigbit_sim.rtl import RtlModel

        super().__init__(config)
        self._timeout_cycles = timeout_cycles
        self.model = RtlModel(config, progress, activity)

    def read(self, register):
        return self.model.read(register)

    def write(self, register, value):
        self.model.write(register, value)

    def send(self, packet):
        self.model.send(packet)

    def receive(self):
        waited = 0
        while (packet := self.model.receive()) is None:
            if self.model.interrupt:
                raise DeviceError("Expected a packet, but the accelerator raised its interrupt")
            if waited >= self._timeout_cycles:
                raise DeviceError(f"Expected a packet, but the accelerator sent nothing for {waited} cycles")
            self.model.run(_SLICE_CYCLES)
            waited += _SLICE_CYCLES
        return packet

    def flush(self):
        self.model.run(self._timeout_cycles, until_sent=True)

    def discard(self):
        self.model.discard()


def open_device(kind, config, progress=None):
    """A device by name: ``"emulator"``, ``"rtl"``, ``"serial:PORT"``, ``"serial:PORT@BAUD"`` or ``"pynq:FOLDER"``."""
    name, _, place = kind.partition(":")
    if kind == "emulator":
        return EmulatorDevice(config)
    if kind == "rtl":
        return RtlDevice(config, progress=progress)
    if name == "serial" and place:
        from .serial_device import BAUD, SerialDevice, open_port

        port, _, baud = place.partition("@")
        if baud and not baud.isdecimal():
            raise DeviceError(f"The baud rate of a serial device must be a number, not {baud!r}")
        return SerialDevice(config, open_port(port, int(baud or BAUD)))
    if name == "pynq" and place:
        from .pynq_device import open_overlay

        return open_overlay(place)
    raise DeviceError(f"Unknown device {kind!r}; expected emulator, rtl, serial:PORT[@BAUD] or pynq:FOLDER")
