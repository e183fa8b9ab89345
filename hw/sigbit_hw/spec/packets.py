"""The program stream: packets of header, payload and CRC-32, on both AXI4-Streams.

A packet is a header (16 bytes, padded to whole beats), ``count`` payload words (each padded to whole beats) and one beat with the
CRC-32 (IEEE 802.3, ``zlib.crc32``) of all preceding bytes in its low 32 bits. TLAST may stand on the last beat of any packet and nowhere else; the packet
before END and END itself must have it.
"""

from enum import IntEnum

from .layout import BitTable

__all__ = ["HEADER", "HEADER_BYTES", "MAGIC", "Fault", "Kind"]

MAGIC = 0x5342  # "BS" on the wire: significant bits, little-endian
HEADER_BYTES = 16

HEADER = BitTable(
    "HEADER",
    HEADER_BYTES * 8,
    ("magic", 16),
    ("version", 8),  # CONTRACT_VERSION
    ("kind", 8),
    ("count", 32),  # payload words of the destination memory
    ("destination", 32),  # first word address
    ("fence", 16),  # hold the payload back until at most this many instructions are queued or running
)


class Kind(IntEnum):
    """Packet kinds."""

    CONFIGURE = 1  #: one beat (the configuration hash in its low 64 bits); opens a session
    WEIGHTS = 2  #: weight memory words
    PARAMETERS = 3  #: parameter memory words
    INPUT = 4  #: feature memory words
    RUN = 5  #: instructions; destination 0
    OUTPUT = 6  #: to the accelerator: OUTPUT instructions; from it: feature memory words
    END = 7  #: no payload; closes the session


class Fault(IntEnum):
    """Sticky error codes of the accelerator."""

    NONE = 0
    MAGIC = 1  #: a header does not start with MAGIC
    VERSION = 2  #: contract version differs
    KIND = 3  #: unknown packet kind
    LENGTH = 4  #: payload count is not legal for the kind
    BOUNDS = 5  #: payload would not fit its memory
    CRC = 6  #: checksum differs
    FRAMING = 7  #: TLAST inside a packet, or TKEEP not all ones
    HASH = 8  #: program was compiled for another configuration
    STATE = 9  #: packet before CONFIGURE
    OPCODE = 10  #: unknown instruction, or one with a count of zero
