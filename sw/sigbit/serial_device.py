"""An accelerator behind a serial port: the host's side of :mod:`sigbit_hw.spec.serial`."""

from collections import deque

from sigbit_hw.spec.registers import Register
from sigbit_hw.spec.serial import (
    HEADER_BYTES,
    SERIAL_VERSION,
    FrameError,
    Problem,
    Request,
    Response,
    pack_frame,
    unpack_header,
)

from .device import Device, DeviceError

__all__ = ["BAUD", "SerialDevice", "open_port"]

#: Of the ULX3S build.
BAUD = 3_000_000
_FRAME_BYTES = 1024
_BREAK_SECONDS = 0.01
#: Characters that may come between a BREAK and READY: an answer that was on its way through the host.
_STALE_BYTES = 1 << 16
_PROBLEMS = {
    Problem.HEADER: "a frame header was damaged",
    Problem.KIND: "a frame was of unknown kind or size",
    Problem.OVERFLOW: "more bytes came than it had granted",
    Problem.FRAMING: "a character had no stop bit; is the baud rate that of the build?",
}


def open_port(path, baud=BAUD):
    """A port of pyserial.

    Raises
    ------
    :exc:`DeviceError`
        If pyserial is not installed or the port cannot be opened.
    """
    try:
        import serial
    except ImportError:
        raise DeviceError("A serial port needs pyserial, which is not installed; run: pip install pyserial") from None
    try:
        return serial.Serial(path, baud)
    except (serial.SerialException, ValueError) as error:
        raise DeviceError(f"Cannot open the serial port {path} at {baud} baud: {error}") from error


class SerialDevice(Device):
    """An accelerator behind UART lines.

    Opening it resets the accelerator by a BREAK.

    Parameters
    ----------
    config : AcceleratorConfig
    port
        With the methods of ``serial.Serial``: :func:`open_port`, or a simulated line.
    timeout_seconds : float
        Silence after which the accelerator counts as hung.

    Raises
    ------
    :exc:`DeviceError`
        If no bridge of this version answers.
    """

    retries = 3

    def __init__(self, config, port, timeout_seconds=5.0):
        super().__init__(config)
        self._port = port
        self._interrupted = False
        self._port.timeout = timeout_seconds
        self._timeout_seconds = timeout_seconds
        self.discard()

    def read(self, register):
        self._request(pack_frame(Request.READ, register))
        payload = self._reply(Response.VALUE, register)
        value, complement = (int.from_bytes(payload[start : start + 4], "little") for start in (0, 4))
        if value ^ complement != 0xFFFFFFFF:
            self._fail(f"The value of register {Register(register).name} was damaged on the serial line")
        return value

    def write(self, register, value):
        self._request(pack_frame(Request.WRITE, register, int(value).to_bytes(4, "little")))
        self._reply(Response.DONE, register)

    def send(self, packet):
        for start in range(0, len(packet), _FRAME_BYTES):
            payload = packet[start : start + _FRAME_BYTES]
            self._outgoing.append(payload)
            self._lasts.append(start + _FRAME_BYTES >= len(packet))
        self._pump()

    def receive(self):
        self._pump()
        while not self._answers:
            if self._interrupted:
                self._interrupted = False
                raise DeviceError("Expected a packet, but the accelerator raised its interrupt")
            self._frame("a packet")
            self._pump()
        return self._answers.popleft()

    def flush(self):
        self._pump()
        while (self._outgoing or self._window < self._granted) and not self._interrupted:
            self._frame("room for more bytes")
            self._pump()

    def discard(self):
        self._outgoing: deque[bytes] = deque()
        self._lasts: deque[bool] = deque()
        self._answers: deque[bytes] = deque()
        self._partial = b""
        self._replies: dict = {}
        self._interrupted = False
        self._failure: str | None = None
        self._port.send_break(_BREAK_SECONDS)
        self._port.reset_input_buffer()
        self._granted = self._window = self._ready()

    def _ready(self):
        """Bytes that READY grants; what was on its way before it is skipped."""
        data = b""
        for _ in range(_STALE_BYTES):
            byte = self._port.read(1)
            if not byte:
                self._fail(
                    f"The serial port is silent after a BREAK ({self._timeout_seconds:g} s); is the board powered and "
                    "its bitstream loaded?"
                )
            data = (data + byte)[-HEADER_BYTES:]
            if data[0] == Response.READY and len(data) == HEADER_BYTES:
                try:
                    _, version, granted = unpack_header(data)
                except FrameError:
                    continue
                if version != SERIAL_VERSION:
                    self._fail(f"The bridge speaks version {version} of the serial link, this host {SERIAL_VERSION}")
                return granted
        return self._fail(
            "The serial port sends, but not as a sigbit accelerator does; is it the right port and baud rate?"
        )

    def _fail(self, message):
        """From now on, every call says so, until :meth:`discard`."""
        self._failure = message
        raise DeviceError(message)

    def _request(self, frame):
        self._check()
        self._replies.clear()
        self._port.write(frame)

    def _reply(self, kind, register):
        while (kind, register) not in self._replies:
            self._frame(f"an answer about register {Register(register).name}")
        return self._replies.pop((kind, register))

    def _check(self):
        if self._failure:
            raise DeviceError(self._failure)

    def _pump(self):
        """Send what was granted, and look at what came."""
        self._check()
        while True:
            while self._outgoing and len(self._outgoing[0]) <= self._window:
                payload = self._outgoing.popleft()
                self._port.write(pack_frame(Request.SEND, self._lasts.popleft(), payload))
                self._window -= len(payload)
            if not self._port.in_waiting:
                return
            self._frame("a frame")

    def _frame(self, awaited):
        """Handle one frame."""
        self._check()
        header = self._read(HEADER_BYTES, awaited)
        try:
            kind, argument, count = unpack_header(header)
        except FrameError:
            self._fail("A frame from the accelerator was damaged on the serial line")
        if kind == Response.CREDIT:
            self._window += count
        elif kind == Response.ANSWER:
            self._partial += self._read(count, "the rest of a frame")
            if argument:
                self._answers.append(self._partial)
                self._partial = b""
        elif kind == Response.VALUE:
            self._replies[Response.VALUE, argument] = self._read(count, "the rest of a frame")
        elif kind == Response.DONE:
            self._replies[Response.DONE, argument] = b""
        elif kind == Response.INTERRUPT:
            self._interrupted = True
        elif kind == Response.PROBLEM:
            self._fail(f"The bridge gave up: {_PROBLEMS.get(argument, f'problem {argument}')}")
        elif kind == Response.READY:
            self._fail("The accelerator was reset while a program ran on it")
        else:
            self._fail(f"The accelerator sent a frame of unknown kind {kind:#04x}")

    def _read(self, size, awaited):
        data = self._port.read(size)
        if len(data) < size:
            self._fail(
                f"Expected {awaited}, but the accelerator sent nothing for {self._timeout_seconds:g} s; "
                f"{len(data)} of {size} characters came"
            )
        return data
