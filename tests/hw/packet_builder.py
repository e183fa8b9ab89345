"""Packets built with ``struct`` and ``zlib`` alone, as an independent reading of the packet format."""

import struct
import zlib
from dataclasses import dataclass, replace

CONFIGURE, WEIGHTS, PARAMETERS, INPUT, RUN, OUTPUT, END, LEVELS = range(1, 9)


@dataclass(frozen=True)
class Beat:
    data: int
    keep: int
    last: int


def packet_bytes(stream_bits, kind, words=(), word_bits=64, *, destination=0, fence=0, **header):
    """Bytes of one packet, checksum beat included. ``header`` overrides magic, version or count."""
    beat_bytes = stream_bits // 8

    def padded(content):
        return content.ljust(-(-len(content) // beat_bytes) * beat_bytes, b"\0")

    fields = {"magic": 0x5342, "version": 4, "kind": kind, "count": len(words), **header}
    header = struct.pack("<HBBIIH", *fields.values(), destination, fence)
    check = 0xFFFF
    for (half,) in struct.iter_unpack("<H", header):
        check ^= half
    content = padded(header + struct.pack("<H", check))
    for word in words:
        content += padded(word.to_bytes(-(-word_bits // 8), "little"))
    return content + padded(struct.pack("<I", zlib.crc32(content)))


def to_beats(stream_bits, content, last=True):
    """Beats of whole-beat bytes, TLAST on the last one if ``last``."""
    beat_bytes = stream_bits // 8
    assert len(content) % beat_bytes == 0
    beats = [
        Beat(int.from_bytes(content[start : start + beat_bytes], "little"), (1 << beat_bytes) - 1, 0)
        for start in range(0, len(content), beat_bytes)
    ]
    beats[-1] = replace(beats[-1], last=int(last))
    return beats


class Builder:
    """Packets for one configuration, as lists of beats."""

    def __init__(self, config):
        self.config = config
        self.word_bits = {
            CONFIGURE: 64,
            WEIGHTS: config.weight_word_bits,
            PARAMETERS: config.parameter_word_bits,
            INPUT: config.feature_word_bits,
            RUN: 512,
            OUTPUT: 512,
            END: 64,
            LEVELS: 32,
        }

    def packet(self, kind, words=(), *, last=True, word_bits=None, **header):
        bits = self.config.stream_bits
        return to_beats(bits, packet_bytes(bits, kind, words, word_bits or self.word_bits[kind], **header), last)

    def answer(self, words, tag):
        """What the accelerator sends for an OUTPUT instruction."""
        return self.packet(OUTPUT, words, word_bits=self.config.feature_word_bits, destination=tag)

    def configure(self, **header):
        return self.packet(CONFIGURE, [self.config.hash], **header)

    def end(self, **header):
        return self.packet(END, **header)
