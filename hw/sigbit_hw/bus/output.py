"""Output formatter: feature memory words as packets on the output AXI4-Stream."""

from functools import reduce
from operator import xor

from amaranth import *
from amaranth.hdl import Assert
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from ..lib.crc import CRC32_INIT, crc32_advance, crc32_contribution, crc32_value
from ..spec.config import CONTRACT_VERSION
from ..spec.instructions import INSTRUCTIONS, Opcode
from ..spec.packets import HEADER, HEADER_FOLD, MAGIC, Kind
from .axi_stream import axi_stream_signature

__all__ = ["OutputFormatter", "output_job_layout"]


def output_job_layout():
    """``base``, ``words`` and ``tag`` as wide as the OUTPUT instruction has them."""
    fields = {field.name: field.bits for field in INSTRUCTIONS[Opcode.OUTPUT].fields}
    return data.StructLayout({name: fields[name] for name in ("base", "words", "tag")})


class _State(enum.Enum, shape=2):
    IDLE = 0
    HEADER = 1
    PAYLOAD = 2
    CRC = 3


class OutputFormatter(wiring.Component):
    """Send ranges of feature memory, one packet each, one beat per cycle.

    Words are read ahead into a queue that has a place for every word on its way, so back-pressure loses nothing. The
    first beat is offered three cycles after the job was taken.

    Parameters
    ----------
    config : :class:`~sigbit_hw.spec.config.AcceleratorConfig`
    read_latency : int
        Cycles from a transfer on ``read`` to its word on ``read_data``; at least 1.

    Members
    -------
    job : ``In(stream.Signature(output_job_layout()))``
        Ranges to send. ``tag`` becomes the header's destination. ``words`` may be 0.
    read : ``Out(stream.Signature(range(config.feature_depth)))``
        Addresses of the words wanted; ``ready`` may be constant 1. ``valid`` may fall without a transfer on
        ``abort`` only.
    read_data : ``In(config.feature_word_bits)``
        Word of the address taken ``read_latency`` cycles ago.
    o : ``Out(axi_stream_signature(config.stream_bits))``
        Packets, TLAST on the last beat of each. All outputs are registers; a beat once offered stays until it is taken.
    busy : ``Out(1)``
        A job is running or a beat is waiting.
    done : ``Out(1)``
        Pulse in the cycle after the last beat of a packet was taken; not for packets cut by ``abort``.
    abort : ``In(1)``
        Pulse: the packet that is being built ends with one beat that has TLAST and a wrong checksum; a packet of which
        no beat was built yet disappears, one that is complete stays.

    Raises
    ------
    :exc:`ValueError`
        If ``read_latency`` is less than 1.
    """

    def __init__(self, config, read_latency):
        if not isinstance(read_latency, int) or read_latency < 1:
            raise ValueError(f"read_latency must be at least 1, not {read_latency!r}")
        self._config = config
        self._read_latency = read_latency
        super().__init__(
            {
                "job": In(stream.Signature(output_job_layout())),
                "read": Out(stream.Signature(range(config.feature_depth))),
                "read_data": In(config.feature_word_bits),
                "o": Out(axi_stream_signature(config.stream_bits)),
                "busy": Out(1),
                "done": Out(1),
                "abort": In(1),
            }
        )

    def packet_cycles(self, words):
        """Cycles from a transfer on ``job`` to ``done`` if ``read`` and ``o`` are always ready."""
        config = self._config
        header = 1 + config.beats_per_word(HEADER.width)
        first_word = 3 + self._read_latency
        return max(header, first_word) + words * config.beats_per_word(config.feature_word_bits) + 3

    def elaborate(self, platform):
        m = Module()
        config = self._config
        beat_bits = config.stream_bits
        word_bits = config.feature_word_bits
        state = Signal(_State)
        job = Signal(output_job_layout())

        # Words on the way and in the queue never exceed its depth. The queue itself adds two cycles.
        ahead = self._read_latency + 4
        m.submodules.words = words = ResetInserter(self.abort)(SyncFIFOBuffered(width=word_bits, depth=ahead))
        credits = Signal(range(ahead + 1), init=ahead)
        to_read = Signal.like(job.words)
        arriving = Signal(self._read_latency)
        issue = self.read.valid & self.read.ready
        m.d.comb += [
            self.read.valid.eq((to_read != 0) & (credits != 0)),
            words.w_en.eq(arriving[-1]),
            words.w_data.eq(self.read_data),
        ]
        m.d.sync += [
            arriving.eq(Cat(issue, arriving)[: self._read_latency]),
            credits.eq(credits - issue + words.r_en),
        ]
        with m.If(issue):
            m.d.sync += [self.read.payload.eq(self.read.payload + 1), to_read.eq(to_read - 1)]

        if platform == "formal":
            on_the_way = Signal(range(self._read_latency + 1))
            sending = (state == _State.HEADER) | (state == _State.PAYLOAD)
            m.d.comb += [
                on_the_way.eq(sum(arriving)),
                Assert(to_read + on_the_way + words.level == Mux(sending, job.words, 0), "no word is lost"),
                Assert((state != _State.PAYLOAD) | (job.words != 0), "the payload ends with its last word"),
                Assert(credits + on_the_way + words.level == ahead, "every word read has a place in the queue"),
                Assert(words.r_rdy | (words.level <= 1), "the queue's output is refilled at once"),
                Assert(words.w_rdy | ~words.w_en, "the queue never overflows"),
            ]

        # Stage 1: choose the beat.
        header_beats = config.beats_per_word(HEADER.width)
        word_beats = config.beats_per_word(word_bits)
        beat_index = Signal(range(max(header_beats, word_beats)))
        room = Signal()  # stage 2 takes a beat
        made = Signal()
        is_last = Signal()
        chosen = Signal(beat_bits)
        header = Signal(HEADER.width)
        field_values = {
            "magic": MAGIC,
            "version": CONTRACT_VERSION,
            "kind": Kind.OUTPUT.value,
            "count": job.words,
            "destination": job.tag,
            "fence": 0,
        }
        offset = 0
        for field in HEADER.fields[:-1]:
            m.d.comb += header[offset : offset + field.bits].eq(field_values[field.name])
            offset += field.bits
        words_before = (header[position : position + 16] for position in range(0, offset, 16))
        m.d.comb += header[offset:].eq(reduce(xor, words_before, Const(HEADER_FOLD, 16)))

        m.d.comb += self.job.ready.eq((state == _State.IDLE) & ~self.abort)
        with m.Switch(state):
            with m.Case(_State.IDLE):
                with m.If(self.job.valid & self.job.ready):
                    m.d.sync += [
                        job.eq(self.job.payload),
                        self.read.payload.eq(self.job.payload.base),
                        to_read.eq(self.job.payload.words),
                        beat_index.eq(0),
                        state.eq(_State.HEADER),
                    ]
            with m.Case(_State.HEADER):
                m.d.comb += [chosen.eq(_beat(header, beat_index, beat_bits)), made.eq(~self.abort)]
                with m.If(made & room):
                    m.d.sync += beat_index.eq(beat_index + 1)
                    with m.If(beat_index == header_beats - 1):
                        m.d.sync += [
                            beat_index.eq(0),
                            state.eq(Mux(job.words == 0, _State.CRC, _State.PAYLOAD)),
                        ]
            with m.Case(_State.PAYLOAD):
                m.d.comb += [
                    chosen.eq(_beat(words.r_data, beat_index, beat_bits)),
                    made.eq(words.r_rdy & ~self.abort),
                ]
                with m.If(made & room):
                    m.d.sync += beat_index.eq(beat_index + 1)
                    with m.If(beat_index == word_beats - 1):
                        m.d.comb += words.r_en.eq(1)
                        m.d.sync += [beat_index.eq(0), job.words.eq(job.words - 1)]
                        with m.If(job.words == 1):
                            m.d.sync += state.eq(_State.CRC)
            with m.Case(_State.CRC):
                m.d.comb += [made.eq(~self.abort), is_last.eq(1)]
                with m.If(made & room):
                    m.d.sync += state.eq(_State.IDLE)

        # After an abort the state CRC sends the beat that closes the packet.
        aborted = Signal()
        with m.If(self.abort):
            m.d.sync += [credits.eq(ahead), arriving.eq(0), to_read.eq(0)]
            with m.If(state != _State.IDLE):
                m.d.sync += aborted.eq(1)
                with m.If((state == _State.HEADER) & (beat_index == 0)):
                    m.d.sync += state.eq(_State.IDLE)
                with m.Else():
                    m.d.sync += state.eq(_State.CRC)
        with m.Elif(self.job.valid & self.job.ready):
            m.d.sync += aborted.eq(0)

        # Stage 2: the beat and what it adds to the checksum.
        ready = Signal()  # stage 3 takes a beat
        beat = Signal(data.StructLayout({"data": beat_bits, "first": 1, "last": 1, "spoil": 1, "contribution": 32}))
        beat_valid = Signal()
        m.d.comb += room.eq(~beat_valid | ready)
        with m.If(room):
            m.d.sync += [
                beat_valid.eq(made),
                beat.data.eq(chosen),
                beat.first.eq((state == _State.HEADER) & (beat_index == 0)),
                beat.last.eq(is_last),
                beat.spoil.eq(aborted),
                beat.contribution.eq(crc32_contribution(chosen)),
            ]

        # Stage 3: the checksum takes the place of the last beat's data; uninverted it is always wrong.
        crc = Signal(32)
        spoiled = Signal()
        m.d.comb += ready.eq(~self.o.valid | self.o.ready)
        with m.If(ready):
            m.d.sync += [
                self.o.valid.eq(beat_valid),
                self.o.payload.keep.eq(~0),
                self.o.payload.last.eq(beat.last),
                spoiled.eq(beat.spoil),
            ]
            with m.If(beat.last):
                m.d.sync += self.o.payload.data.eq(Mux(beat.spoil, crc, crc32_value(crc)))
            with m.Else():
                m.d.sync += self.o.payload.data.eq(beat.data)
            with m.If(beat_valid):
                previous = Mux(beat.first, CRC32_INIT, crc)
                m.d.sync += crc.eq(crc32_advance(previous, beat_bits) ^ beat.contribution)

        m.d.comb += self.busy.eq((state != _State.IDLE) | beat_valid | self.o.valid)
        m.d.sync += self.done.eq(self.o.valid & self.o.ready & self.o.payload.last & ~spoiled)
        return m


def _beat(word, index, bits):
    """Part ``index`` of a word, as a multiplexer."""
    return Array(word[position:][:bits] for position in range(0, len(word), bits))[index]
