"""A simulated serial port: the Verilog of an accelerator behind UART lines, bit by bit, with pyserial's methods."""

import ctypes
from pathlib import Path

from .rtl import RtlError, build_library, load_library

__all__ = ["SerialLine"]

_HARNESS = Path(__file__).with_name("serial.cpp")
#: Bit times of a simulated BREAK.
_BREAK_BITS = 24

_HANDLE, _SIZE, _CYCLES = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64

#: What ``serial.cpp`` has.
_FUNCTIONS = {
    "new": (_HANDLE, ()),
    "free": (None, (_HANDLE,)),
    "cycles": (_CYCLES, (_HANDLE,)),
    "framing_errors": (_CYCLES, (_HANDLE,)),
    "write": (None, (_HANDLE, ctypes.c_char_p, _SIZE)),
    "break": (None, (_HANDLE, ctypes.c_uint32)),
    "run": (None, (_HANDLE, _CYCLES, _SIZE)),
    "drain": (None, (_HANDLE,)),
    "received": (_SIZE, (_HANDLE,)),
    "read": (None, (_HANDLE, ctypes.c_char_p, _SIZE)),
    "forget": (None, (_HANDLE,)),
}


class SerialLine:
    """What ``serial.Serial`` of pyserial is to a board: ``read``, ``write``, ``send_break`` and what else a host uses.

    Time is that of the simulation: a read waits ``timeout`` seconds of the simulated clock at most.

    Parameters
    ----------
    verilog : str
        With top module ``serial_accelerator`` (ports ``clk``, ``rst``, ``rx``, ``tx``).
    stream_bits : int
        TDATA width of the accelerator.
    clock_hz, baud : int
        The clock is a multiple of the baud rate here.
    progress : callable, optional
        Called with a line of text before a long build.

    Attributes
    ----------
    timeout : float
        Seconds that :meth:`read` waits.
    damage : callable, optional
        Takes and returns the bytes of every write: a line that loses or changes some.

    Raises
    ------
    :exc:`~.rtl.RtlError`
        If the clock is no multiple of the baud rate of at least 4, or the simulation cannot be built.
    """

    def __init__(self, verilog, stream_bits, clock_hz, baud, progress=None):
        cycles, rest = divmod(clock_hz, baud)
        if rest or cycles < 4:
            raise RtlError(f"clock_hz must be a multiple of baud ({baud}), at least 4 times as much, not {clock_hz!r}")
        library = build_library(
            verilog,
            stream_bits,
            progress,
            top="serial_accelerator",
            harness=_HARNESS,
            defines={"SIGBIT_BIT_CYCLES": cycles},
        )
        self._api = load_library(library, "serial", _FUNCTIONS)
        self._handle = self._api.serial_new()
        self._clock_hz = clock_hz
        self.timeout = 0.1
        self.damage = None

    def __del__(self):
        if getattr(self, "_handle", None):
            self._api.serial_free(self._handle)
            self._handle = None

    @property
    def cycles(self):
        """Clock cycles since the reset."""
        return self._api.serial_cycles(self._handle)

    @property
    def framing_errors(self):
        """Characters from the accelerator without stop bit: a BREAK may cut one."""
        return self._api.serial_framing_errors(self._handle)

    @property
    def in_waiting(self):
        """Characters that can be read at once."""
        return self._api.serial_received(self._handle)

    def write(self, data):
        """Queue characters for the line; they are sent while time passes."""
        sent = self.damage(data) if self.damage else data
        self._api.serial_write(self._handle, bytes(sent), len(sent))
        return len(data)

    def flush(self):
        """Wait until all characters have left."""
        self._api.serial_drain(self._handle)

    def read(self, size=1):
        """Up to ``size`` characters: fewer if ``timeout`` passes first."""
        self._api.serial_run(self._handle, round(self.timeout * self._clock_hz), size)
        size = min(size, self.in_waiting)
        buffer = ctypes.create_string_buffer(size)
        self._api.serial_read(self._handle, buffer, size)
        return buffer.raw

    def send_break(self, duration=0.25):
        """Hold the line low; the simulation takes a short time for any ``duration``, which is long on every line."""
        self._api.serial_break(self._handle, _BREAK_BITS)
        self.flush()

    def reset_input_buffer(self):
        """Forget what was received."""
        self._api.serial_forget(self._handle)

    def close(self):
        """Nothing to do here."""
