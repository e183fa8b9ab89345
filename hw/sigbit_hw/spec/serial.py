"""Frames of the serial link: both AXI4-Streams, the registers and the interrupt over one pair of UART lines.

A frame is a header of :data:`HEADER_BYTES` bytes (kind, argument, count, check) and ``count`` bytes of payload where
the kind has one. UART characters are 8 data bits, no parity, one stop bit. Bytes of a stream need no checksum here:
packets carry their own. A BREAK (line low for at least :data:`BREAK_BITS` bit times) resets bridge and accelerator;
READY answers when the line is high again.

The host counts: it never sends more payload of SEND than READY granted and CREDIT gave back, so the accelerator may
hold its stream for as long as it likes, and registers answer meanwhile. One READ or WRITE may be on its way at a time.
"""

from enum import IntEnum

from .errors import SigbitError

__all__ = [
    "BREAK_BITS",
    "HEADER_BYTES",
    "HEADER_CHECK",
    "SERIAL_VERSION",
    "FrameError",
    "Problem",
    "Request",
    "Response",
    "pack_frame",
    "unpack_header",
]

#: Version of this file; READY carries it.
SERIAL_VERSION = 1
HEADER_BYTES = 5
#: What the five bytes of a header add up to without carries.
HEADER_CHECK = 0xFF
#: A line that is low for so many bit times is a BREAK; a character keeps it low for nine at most.
BREAK_BITS = 16


class FrameError(SigbitError):
    """A frame that cannot be."""


class Request(IntEnum):
    """Frames from the host."""

    SEND = 0x51  #: payload: whole beats of ``s_axis``; argument 1: TLAST on the last beat, else 0
    READ = 0x52  #: argument: register offset; no payload
    WRITE = 0x53  #: argument: register offset; payload: 4 bytes, little-endian


class Response(IntEnum):
    """Frames from the accelerator."""

    READY = 0xA1  #: after a reset; argument: :data:`SERIAL_VERSION`; count: bytes of SEND payload granted; no payload
    CREDIT = 0xA2  #: count: bytes granted again; no payload
    ANSWER = 0xA3  #: payload: one beat of ``m_axis``; argument: its TLAST
    VALUE = 0xA4  #: argument: register offset; payload: its value, then the value's complement, 4 bytes each
    DONE = 0xA5  #: argument: register offset that was written; no payload
    INTERRUPT = 0xA6  #: the interrupt line went high; no payload
    PROBLEM = 0xA7  #: argument: :class:`Problem`; the bridge ignores everything from here to a BREAK; no payload


class Problem(IntEnum):
    """Why a bridge gave up."""

    HEADER = 1  #: a header fails its check: bytes were lost or damaged
    KIND = 2  #: unknown kind, or a count that does not belong to it
    OVERFLOW = 3  #: more bytes than were granted
    FRAMING = 4  #: a character without stop bit


def pack_frame(kind, argument=0, payload=b"", count=None):
    """Bytes of a frame. ``count`` is that of the payload where it is not given.

    Raises
    ------
    :exc:`FrameError`
        If the argument is not a byte or the count not 16 bits.
    """
    count = len(payload) if count is None else count
    if not 0 <= argument <= 0xFF:
        raise FrameError(f"argument must be 0 to 255, not {argument!r}")
    if not 0 <= count <= 0xFFFF:
        raise FrameError(f"count must be 0 to 65535, not {count!r}")
    header = [kind, argument, count & 0xFF, count >> 8]
    check = HEADER_CHECK
    for byte in header:
        check ^= byte
    return bytes([*header, check]) + payload


def unpack_header(data):
    """Kind, argument and count of a header.

    Raises
    ------
    :exc:`FrameError`
        If it has another size or fails its check.
    """
    check = 0
    for byte in data:
        check ^= byte
    if len(data) != HEADER_BYTES or check != HEADER_CHECK:
        raise FrameError(f"A frame header must be {HEADER_BYTES} bytes that hold their check, not {data.hex(' ')!r}")
    return data[0], data[1], data[2] | data[3] << 8
