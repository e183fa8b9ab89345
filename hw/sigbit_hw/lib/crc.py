"""CRC-32 of a whole stream beat per cycle (IEEE 802.3, as ``zlib.crc32``).

The next state is linear over GF(2): ``advance(state) ^ contribution(data)``. The contribution of the data has no
feedback, so users register it one stage earlier and only ``advance`` (about 16 inputs per bit) stays in the loop.
``amaranth.lib.crc.Processor`` computes both in the cycle of the feedback, which for 512 bits is twice as many LUT
levels; therefore our own.
"""

import zlib

from amaranth import *

__all__ = ["CRC32_INIT", "crc32_advance", "crc32_contribution", "crc32_value"]

CRC32_INIT = 0xFFFF_FFFF


def _step(state, data, data_bytes):
    """Raw state after ``data``, without the inversions at both ends that ``zlib`` applies."""
    return zlib.crc32(data.to_bytes(data_bytes, "little"), state ^ CRC32_INIT) ^ CRC32_INIT


def _linear(value, columns):
    """Product of a matrix, given by the images of the unit vectors, with ``value``."""
    rows = [sum((column >> row & 1) << index for index, column in enumerate(columns)) for row in range(32)]
    return Cat((value & Const(mask, len(value))).xor() for mask in rows)


def crc32_contribution(data):
    """What ``data`` (a whole number of bytes, first byte lowest) adds to the next state: 32 bits, combinational."""
    if len(data) % 8:
        raise ValueError(f"CRC-32 data must be whole bytes, not {len(data)} bits")
    return _linear(data, [_step(0, 1 << bit, len(data) // 8) for bit in range(len(data))])


def crc32_advance(state, data_bits):
    """``state`` after ``data_bits`` zero bits: 32 bits, combinational."""
    return _linear(state, [_step(1 << bit, 0, data_bits // 8) for bit in range(32)])


def crc32_value(state):
    """Checksum as it is sent, of a state that started from :data:`CRC32_INIT`."""
    return ~state
