"""Packet parser: checks the program stream and hands its payload to the memories and the instruction queue."""

from functools import reduce
from operator import xor

from amaranth import *
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from ..bus.axi_lite import FaultSignature
from ..bus.axi_stream import axi_stream_signature
from ..lib.crc import CRC32_INIT, crc32_advance, crc32_contribution, crc32_value
from ..lib.layout import table_layout
from ..spec.config import CONTRACT_VERSION
from ..spec.instructions import INSTRUCTION_BITS
from ..spec.packets import HEADER, HEADER_FOLD, MAGIC, Fault, Kind
from .queue import OUTSTANDING_BITS

__all__ = ["MemoryWriteSignature", "PacketParser"]


class MemoryWriteSignature(wiring.Signature):
    """Write port of a memory that always accepts: ``en``, ``address``, ``data``."""

    def __init__(self, depth, width):
        super().__init__({"en": Out(1), "address": Out(range(depth)), "data": Out(width)})


class _State(enum.Enum, shape=3):
    HEADER = 0  # beats of a header
    CHECK = 1  # no beat: the whole header is judged
    PAYLOAD = 2
    CRC = 3
    SKIP = 4  # draining: discard until TLAST


class PacketParser(wiring.Component):
    """Parse one beat per cycle; one more cycle per packet in which the header is judged.

    Payload words appear at their port two cycles after their last beat. ``commit``, ``opened``, ``ended`` and ``fault``
    are pulses two cycles after the beat that decides (three for what the header decides); by then every word of the
    packet is in its memory.
    ``i.ready`` depends on the ``ready`` of the output streams and on ``halt`` and ``clear`` in the same cycle: put a
    :class:`~sigbit_hw.lib.stream.StreamRegister` in front of it.

    After a fault the parser drains: it discards beats until a beat with TLAST is followed by a correct END packet, then
    it is ready for CONFIGURE. While it drains, no packet takes effect and no further fault is reported.

    Parameters
    ----------
    config : :class:`~sigbit_hw.spec.config.AcceleratorConfig`

    Members
    -------
    i : ``In(axi_stream_signature(config.stream_bits))``
        Program stream.
    weights, parameters, levels : ``Out(MemoryWriteSignature)``
        Payload words of WEIGHTS, PARAMETERS and LEVELS packets; ``levels`` with table cells only.
    features : ``Out(stream.Signature({address, data}))``
        Payload words of INPUT packets. ``valid`` may fall without a transfer on ``halt`` and ``clear`` only.
    instructions : ``Out(stream.Signature(512))``
        Payload words of RUN and OUTPUT packets, not to be trusted before ``commit``. ``valid`` as for ``features``.
    commit, rollback : ``Out(1)``
        Pulses: the instructions sent since the last pulse are good, or are void.
    opened, ended : ``Out(1)``
        Pulses: CONFIGURE accepted; END accepted in a session without fault (not when it only ends a drain).
    fault : ``Out(FaultSignature)``
        Pulse with the code and the packet's number in its session.
    outstanding : ``In(16)``
        Instructions queued or running; what a header's fence is compared with. Must count a ``commit`` in the
        next cycle.
    halt : ``In(1)``
        Pulse: a fault was found elsewhere. Starts draining from the middle of whatever packet is arriving.
    clear : ``In(1)``
        Pulse: soft reset. The next beat starts a packet, outside a session. Wins over ``halt``.
    session, draining : ``Out(1)``
        See :class:`~sigbit_hw.spec.registers.Status`.
    packets : ``Out(32)``
        Packets accepted in this session including CONFIGURE, so also the number of the next one. Kept after END.
    """

    def __init__(self, config):
        self._config = config
        levels = {"levels": Out(MemoryWriteSignature(config.level_depth, config.level_word_bits))}
        super().__init__(
            {
                **(levels if config.cell == "table" else {}),
                "i": In(axi_stream_signature(config.stream_bits)),
                "weights": Out(MemoryWriteSignature(config.weight_depth, config.weight_word_bits)),
                "parameters": Out(MemoryWriteSignature(config.parameter_depth, config.parameter_word_bits)),
                "features": Out(
                    stream.Signature(
                        data.StructLayout({"address": range(config.feature_depth), "data": config.feature_word_bits})
                    )
                ),
                "instructions": Out(stream.Signature(INSTRUCTION_BITS)),
                "commit": Out(1),
                "rollback": Out(1),
                "opened": Out(1),
                "ended": Out(1),
                "fault": Out(FaultSignature()),
                "outstanding": In(OUTSTANDING_BITS),
                "halt": In(1),
                "clear": In(1),
                "session": Out(1),
                "draining": Out(1),
                "packets": Out(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        beat_bits = config.stream_bits

        # Stage 1: register the beat with all that needs wide logic and no state.
        beat = Signal(
            data.StructLayout({"data": beat_bits, "last": 1, "whole": 1, "padding_zero": 1, "contribution": 32})
        )
        beat_valid = Signal()
        take = Signal()
        given = self.i.payload
        m.d.comb += self.i.ready.eq(~beat_valid | take)
        with m.If(self.i.ready):
            m.d.sync += [
                beat_valid.eq(self.i.valid),
                beat.data.eq(given.data),
                beat.last.eq(given.last),
                beat.whole.eq(given.keep.all()),
                beat.padding_zero.eq(~given.data[32:].any()),
                beat.contribution.eq(crc32_contribution(given.data)),
            ]

        # Stage 2: the packet's state.
        state = Signal(_State)
        closed = Signal(init=1)  # the previous packet ended with TLAST, or there was none
        crc = Signal(32)

        header_beats = config.beats_per_word(HEADER.width)
        header = Signal(table_layout(HEADER))
        header_beat = Signal(range(header_beats))
        kind = Signal(Kind)

        targets = {
            Kind.WEIGHTS: (self.weights.en, config.weight_depth, config.weight_word_bits),
            Kind.PARAMETERS: (self.parameters.en, config.parameter_depth, config.parameter_word_bits),
            Kind.INPUT: (self.features.valid, config.feature_depth, config.feature_word_bits),
            Kind.RUN: (self.instructions.valid, config.instruction_depth, INSTRUCTION_BITS),
            Kind.OUTPUT: (self.instructions.valid, config.instruction_depth, INSTRUCTION_BITS),
        }
        writes = {Kind.WEIGHTS: self.weights, Kind.PARAMETERS: self.parameters}
        if config.cell == "table":
            writes[Kind.LEVELS] = self.levels
            targets[Kind.LEVELS] = (self.levels.en, config.level_depth, config.level_word_bits)
        most_beats = max(config.beats_per_word(width) for _, _, width in targets.values())
        most_words = max(depth for _, depth, _ in targets.values())
        word = Signal(most_beats * beat_bits)  # shifts by one beat, so the last beats are at the top
        word_beat = Signal(range(most_beats))
        word_last_beat = Signal(range(most_beats))
        address = Signal(range(most_words))
        next_address = Signal(range(most_words))
        remaining = Signal(range(most_words + 1))
        fence_open = Signal()
        hash_equal = Signal()

        def top_bits(width):
            return word[-config.beats_per_word(width) * beat_bits :][:width]

        for target, port in {**writes, Kind.INPUT: self.features.payload}.items():
            m.d.comb += [port.data.eq(top_bits(targets[target][2])), port.address.eq(address)]
        m.d.comb += self.instructions.payload.eq(top_bits(INSTRUCTION_BITS))

        # A word stays at its port until it is taken; then a packet is accepted only when all its words have landed.
        stop = Signal()
        m.d.comb += stop.eq((self.halt & ~self.draining) | self.clear)
        blocked = (self.features.valid & ~self.features.ready) | (self.instructions.valid & ~self.instructions.ready)
        with m.Switch(state):
            with m.Case(_State.CHECK):
                m.d.comb += take.eq(0)
            with m.Case(_State.PAYLOAD, _State.CRC):
                m.d.comb += take.eq(beat_valid & ~stop & fence_open & ~blocked)
            with m.Default():
                m.d.comb += take.eq(beat_valid & ~stop)

        fault = Signal(Fault)
        m.d.sync += [
            self.commit.eq(0),
            self.rollback.eq(0),
            self.opened.eq(0),
            self.ended.eq(0),
            self.fault.valid.eq(0),
            *(port.en.eq(0) for port in writes.values()),
        ]
        with m.If(self.features.ready):
            m.d.sync += self.features.valid.eq(0)
        with m.If(self.instructions.ready):
            m.d.sync += self.instructions.valid.eq(0)
        with m.If(self.outstanding <= header.fence):
            m.d.sync += fence_open.eq(1)

        with m.If(take):
            first = (state == _State.HEADER) & (header_beat == 0)
            previous = Mux(first, CRC32_INIT, crc)
            m.d.sync += crc.eq(crc32_advance(previous, beat_bits) ^ beat.contribution)

        with m.Switch(state):
            with m.Case(_State.HEADER):
                with m.If(take):
                    with m.If(beat.last | ~beat.whole):
                        m.d.comb += fault.eq(Fault.FRAMING)
                    with m.Else():
                        m.d.sync += header.eq(Cat(header.as_value(), beat.data[: HEADER.width])[-HEADER.width :])
                        m.d.sync += header_beat.eq(header_beat + 1)
                        with m.If(header_beat == header_beats - 1):
                            m.d.sync += [header_beat.eq(0), state.eq(_State.CHECK)]

            with m.Case(_State.CHECK):
                with m.If(~stop):
                    self._check_header(m, header, targets, closed, fault)
                    m.d.sync += [
                        kind.eq(header.kind),
                        next_address.eq(header.destination),
                        remaining.eq(header.count),
                        word_beat.eq(0),
                        word_last_beat.eq(0),
                        hash_equal.eq(1),
                        fence_open.eq(self.draining | (self.outstanding <= header.fence)),
                        state.eq(Mux(header.count == 0, _State.CRC, _State.PAYLOAD)),
                    ]
                    with m.Switch(header.kind):
                        for target, (_, _, width) in targets.items():
                            with m.Case(target):
                                m.d.sync += word_last_beat.eq(config.beats_per_word(width) - 1)

            with m.Case(_State.PAYLOAD):
                with m.If(take):
                    with m.If(beat.last | ~beat.whole):
                        m.d.comb += fault.eq(Fault.FRAMING)
                    with m.Else():
                        m.d.sync += word.eq(Cat(word, beat.data)[beat_bits:])
                        m.d.sync += hash_equal.eq((kind != Kind.CONFIGURE) | (beat.data[:64] == config.hash))
                        m.d.sync += word_beat.eq(word_beat + 1)
                        with m.If(word_beat == word_last_beat):
                            m.d.sync += [
                                word_beat.eq(0),
                                address.eq(next_address),
                                next_address.eq(next_address + 1),
                                remaining.eq(remaining - 1),
                            ]
                            with m.Switch(kind):
                                for target, (enable, _, _) in targets.items():
                                    with m.Case(target):
                                        m.d.sync += enable.eq(1)
                            with m.If(remaining == 1):
                                m.d.sync += state.eq(_State.CRC)

            with m.Case(_State.CRC):
                with m.If(take):
                    with m.If(~beat.whole | ((kind == Kind.END) & ~beat.last)):
                        m.d.comb += fault.eq(Fault.FRAMING)
                    with m.Elif((beat.data[:32] != crc32_value(crc)) | ~beat.padding_zero):
                        m.d.comb += fault.eq(Fault.CRC)
                    with m.Elif(~hash_equal):
                        m.d.comb += fault.eq(Fault.HASH)
                    with m.Else():
                        m.d.sync += [closed.eq(beat.last), state.eq(_State.HEADER)]
                        with m.If(~self.draining):
                            m.d.sync += self.packets.eq(self.packets + 1)
                        with m.Switch(kind):
                            with m.Case(Kind.CONFIGURE):
                                m.d.sync += [self.session.eq(1), self.packets.eq(1), self.opened.eq(1)]
                            with m.Case(Kind.RUN, Kind.OUTPUT):
                                m.d.sync += self.commit.eq(1)
                            with m.Case(Kind.END):
                                m.d.sync += [self.session.eq(0), self.draining.eq(0), self.ended.eq(~self.draining)]

            with m.Default():  # SKIP, and where a disturbed register may land
                with m.If(take & beat.last):
                    m.d.sync += [closed.eq(1), state.eq(_State.HEADER)]

        with m.If(fault != Fault.NONE):
            m.d.sync += [header_beat.eq(0), state.eq(_State.SKIP), self.draining.eq(1)]
            with m.If(take & beat.last):
                m.d.sync += [closed.eq(1), state.eq(_State.HEADER)]
            with m.If(~self.draining):
                m.d.sync += [
                    self.rollback.eq(1),
                    self.fault.valid.eq(1),
                    self.fault.code.eq(fault),
                    self.fault.packet.eq(Mux(self.session, self.packets, 0)),
                ]

        with m.If(self.halt & ~self.draining):
            m.d.sync += [self.rollback.eq(1), self.draining.eq(1), header_beat.eq(0)]
            with m.If(~closed | (state != _State.HEADER) | (header_beat != 0)):
                m.d.sync += state.eq(_State.SKIP)
        with m.If(self.clear):
            m.d.sync += [
                self.rollback.eq(1),
                self.draining.eq(0),
                self.session.eq(0),
                self.packets.eq(0),
                beat_valid.eq(0),
                closed.eq(1),
                header_beat.eq(0),
                state.eq(_State.HEADER),
            ]
        with m.If(stop):
            m.d.sync += [self.features.valid.eq(0), self.instructions.valid.eq(0)]
        return m

    def _check_header(self, m, header, targets, closed, fault):
        """Set ``fault`` by the first rule of the header that is broken."""
        words = header.as_value()
        fold = reduce(xor, (words[position : position + 16] for position in range(0, HEADER.width, 16)))
        with m.If(header.magic != MAGIC):
            m.d.comb += fault.eq(Fault.MAGIC)
        with m.Elif(header.version != CONTRACT_VERSION):
            m.d.comb += fault.eq(Fault.VERSION)
        with m.Elif(fold != HEADER_FOLD):
            m.d.comb += fault.eq(Fault.CRC)
        with m.Elif((header.kind == 0) | (header.kind > max(*targets, Kind.END))):
            m.d.comb += fault.eq(Fault.KIND)
        with m.Elif(self.draining):
            # Only a correct END counts; the code itself is not reported.
            with m.If((header.kind != Kind.END) | (header.count != 0) | (header.destination != 0)):
                m.d.comb += fault.eq(Fault.STATE)
        with m.Elif(~self.session & (header.kind != Kind.CONFIGURE)):
            m.d.comb += fault.eq(Fault.STATE)
        with m.Else():
            with m.Switch(header.kind):
                for target, (_, depth, _) in targets.items():
                    with m.Case(target):
                        if target in (Kind.RUN, Kind.OUTPUT):
                            with m.If((header.count == 0) | (header.count > depth)):
                                m.d.comb += fault.eq(Fault.LENGTH)
                            with m.Elif(header.destination != 0):
                                m.d.comb += fault.eq(Fault.BOUNDS)
                        else:
                            # The sum is exact in one bit more than each operand, which are first known to be small.
                            low = depth.bit_length()
                            with m.If(
                                header.count[low:].any()
                                | header.destination[low:].any()
                                | (header.count[:low] + header.destination[:low] > depth)
                            ):
                                m.d.comb += fault.eq(Fault.BOUNDS)
                with m.Case(Kind.CONFIGURE, Kind.END):
                    with m.If(header.count != Mux(header.kind == Kind.CONFIGURE, 1, 0)):
                        m.d.comb += fault.eq(Fault.LENGTH)
                    with m.Elif(header.destination != 0):
                        m.d.comb += fault.eq(Fault.BOUNDS)
                    with m.Elif((header.kind == Kind.END) & ~closed):
                        m.d.comb += fault.eq(Fault.FRAMING)
