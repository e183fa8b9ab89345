"""The program stream: packets of header, payload and CRC-32, on both AXI4-Streams.

A packet is a header (16 bytes, padded to whole beats), ``count`` payload words (each padded to whole beats) and one
beat with the CRC-32 (IEEE 802.3, ``zlib.crc32``) of all preceding bytes in its low 32 bits. TLAST may stand on the last
beat of any packet and nowhere else; the packet before END and END itself must have it.
"""

from enum import IntEnum

from .config import CONTRACT_VERSION
from .layout import BitTable

__all__ = ["HEADER", "HEADER_BYTES", "HEADER_FOLD", "MAGIC", "Fault", "Kind", "pack_header"]

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
    ("check", 16),  # makes the XOR of the eight 16-bit words of the header HEADER_FOLD
)

#: What the 16-bit words of a header add up to without carries. Data words land before their packet's CRC-32 is known,
#: so no single wrong bit, nor a burst of up to 16, may send them to another address.
HEADER_FOLD = 0xFFFF


def pack_header(**fields):
    """Header word with ``magic``, ``version`` and ``check`` filled in; ``fields`` override."""
    word = HEADER.pack(**{"magic": MAGIC, "version": CONTRACT_VERSION, **fields})
    if "check" in fields:
        return word
    fold = HEADER_FOLD
    for position in range(0, HEADER.width, 16):
        fold ^= word >> position & 0xFFFF
    return word | fold << HEADER.width - 16


class Kind(IntEnum):
    """Packet kinds."""

    CONFIGURE = 1  #: one beat (the configuration hash in its low 64 bits); opens a session
    WEIGHTS = 2  #: weight memory words
    PARAMETERS = 3  #: parameter memory words
    INPUT = 4  #: feature memory words
    RUN = 5  #: instructions; destination 0
    OUTPUT = 6  #: to the accelerator: OUTPUT instructions; from it: feature memory words
    END = 7  #: no payload; closes the session
    LEVELS = 8  #: entries of level tables; table cells only


class Fault(IntEnum):
    """Sticky error codes of the accelerator."""

    NONE = 0
    MAGIC = 1  #: a header does not start with MAGIC
    VERSION = 2  #: contract version differs
    KIND = 3  #: unknown packet kind
    LENGTH = 4  #: payload count is not legal for the kind
    BOUNDS = 5  #: payload would not fit its memory
    CRC = 6  #: checksum of the packet or check of its header differs
    FRAMING = 7  #: TLAST inside a packet, or TKEEP not all ones
    HASH = 8  #: program was compiled for another configuration
    STATE = 9  #: packet before CONFIGURE
    OPCODE = 10  #: unknown instruction, or one with a count of zero
