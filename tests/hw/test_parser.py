"""Packet parser: good packets land exactly, every fault is found, nothing bad is committed, it always comes back."""

import random
from dataclasses import dataclass, field, replace

import pytest
from amaranth import *
from amaranth.lib import wiring
from amaranth.sim import Simulator
from hw.packet_builder import (
    CONFIGURE,
    END,
    INPUT,
    LEVELS,
    OUTPUT,
    PARAMETERS,
    RUN,
    WEIGHTS,
    Builder,
    packet_bytes,
    to_beats,
)
from hw.streams import STALLS, put, stall_pair
from sigbit_hw.control.parser import PacketParser
from sigbit_hw.control.queue import InstructionQueue
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.packets import Fault

_BASE = replace(PRESETS["tiny"], lanes=12, feature_depth=64, weight_depth=32, parameter_depth=16, instruction_depth=4)
# Words of 96 bits (features, weights), 256 or 512 bits (parameters) and 512 bits: below, at and above a beat.
CONFIGS = {64: replace(_BASE, stream_bits=64), 256: replace(_BASE, stream_bits=256, post_lanes=8)}
BUILDERS = {bits: Builder(config) for bits, config in CONFIGS.items()}
WIDTHS = sorted(CONFIGS)


@dataclass
class Seen:
    """What left a parser."""

    weights: list = field(default_factory=list)
    parameters: list = field(default_factory=list)
    levels: list = field(default_factory=list)
    features: list = field(default_factory=list)
    doubtful: list = field(default_factory=list)
    committed: list = field(default_factory=list)
    faults: list = field(default_factory=list)
    opened: int = 0
    ended: int = 0
    cycles: int = 0
    sent: int = 0
    session: int = 0
    draining: int = 0
    packets: int = 0


class Bench:
    """One parser in one simulation, fed step by step; every output is recorded in ``seen``."""

    def __init__(self, bits, stalls="none", seed=1, config=None):
        self.config = config or CONFIGS[bits]
        self.dut = PacketParser(self.config)
        self.seen = Seen()
        self._idle, self._pressure = stall_pair(stalls, seed)
        self._pause = {"features": 0, "instructions": 0}

    def run(self, script):
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-8)

        async def testbench(ctx):
            self._ctx = ctx
            await script(self)

        simulator.add_testbench(testbench)
        simulator.run()
        return self.seen

    def hold_memories(self):
        self._pause = dict.fromkeys(self._pause, 1000)

    def release_memories(self):
        self._pause = dict.fromkeys(self._pause, 0)

    async def cycle(self):
        """Record one clock cycle; returns whether the offered beat was taken."""
        ctx, dut, seen = self._ctx, self.dut, self.seen
        for name in self._pause:
            ctx.set(getattr(dut, name).ready, self._pause[name] == 0)
        taken = ctx.get(dut.i.valid) and ctx.get(dut.i.ready)
        for name in ("weights", "parameters", *(["levels"] if self.config.cell == "table" else [])):
            port = getattr(dut, name)
            if ctx.get(port.en):
                getattr(seen, name).append((ctx.get(port.address), ctx.get(port.data)))
        if ctx.get(dut.features.valid) and ctx.get(dut.features.ready):
            payload = ctx.get(dut.features.payload)
            seen.features.append((payload["address"], payload["data"]))
        if ctx.get(dut.instructions.valid) and ctx.get(dut.instructions.ready):
            seen.doubtful.append(ctx.get(dut.instructions.payload))
        for name in self._pause:
            self._pause[name] = max(self._pause[name] - 1, 0) or self._pressure()
        assert not (ctx.get(dut.commit) and ctx.get(dut.rollback))
        if ctx.get(dut.commit):
            assert not ctx.get(dut.instructions.valid)
            seen.committed += seen.doubtful
        if ctx.get(dut.commit) or ctx.get(dut.rollback):
            seen.doubtful.clear()
        if ctx.get(dut.fault.valid):
            seen.faults.append((Fault(ctx.get(dut.fault.code)), ctx.get(dut.fault.packet)))
        seen.opened += ctx.get(dut.opened)
        seen.ended += ctx.get(dut.ended)
        seen.cycles += 1
        seen.session, seen.draining = ctx.get(dut.session), ctx.get(dut.draining)
        seen.packets = ctx.get(dut.packets)
        await ctx.tick()
        return taken

    async def idle(self, cycles=8):
        for _ in range(cycles):
            await self.cycle()

    async def send(self, beats):
        """Send beats; a beat that is not taken for 200 cycles is a hang."""
        ctx, dut = self._ctx, self.dut
        for beat in beats:
            await self.idle(self._idle())
            ctx.set(dut.i.payload, {"data": beat.data, "keep": beat.keep, "last": beat.last})
            ctx.set(dut.i.valid, 1)
            for _ in range(200):
                if await self.cycle():
                    break
            else:
                raise AssertionError(f"the parser hangs in front of {beat}")
            ctx.set(dut.i.valid, 0)
            self.seen.sent += 1

    def set(self, name, value):
        self._ctx.set(getattr(self.dut, name), value)

    async def pulse(self, name):
        self.set(name, 1)
        await self.cycle()
        self.set(name, 0)


def run_beats(bits, *packets, stalls="none"):
    """Everything seen after these packets."""

    async def script(bench):
        for beats in packets:
            await bench.send(beats)
        await bench.idle(60)

    return Bench(bits, stalls).run(script)


def _words(seed, count, width):
    rng = random.Random(seed)
    return [rng.getrandbits(width) for _ in range(count)]


def _payloads(bits):
    widths = BUILDERS[bits].word_bits
    return {
        kind: _words(kind, count, widths[kind])
        for kind, count in ((WEIGHTS, 5), (PARAMETERS, 3), (INPUT, 6), (RUN, 4), (OUTPUT, 1))
    }


def _good_session(bits, **header):
    builder, words = BUILDERS[bits], _payloads(bits)
    return [
        builder.configure(**header),
        builder.packet(WEIGHTS, words[WEIGHTS], destination=27, **header),
        builder.packet(PARAMETERS, words[PARAMETERS], destination=0, **header),
        builder.packet(INPUT, words[INPUT], destination=58, **header),
        builder.packet(RUN, words[RUN], **header),
        builder.packet(INPUT, words[INPUT][:1], destination=1, **header),
        builder.packet(OUTPUT, words[OUTPUT], **header | {"last": True}),
        builder.end(),
    ]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("stalls", STALLS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_good_packets_of_every_kind_land_exactly(bits, stalls, last):
    words = _payloads(bits)
    seen = run_beats(bits, *_good_session(bits, last=last), stalls=stalls)
    assert seen.faults == []
    assert seen.weights == list(enumerate(words[WEIGHTS], 27))
    assert seen.parameters == list(enumerate(words[PARAMETERS]))
    assert seen.features == [*enumerate(words[INPUT], 58), (1, words[INPUT][0])]
    assert seen.committed == words[RUN] + words[OUTPUT]
    assert (seen.opened, seen.ended, seen.session, seen.draining, seen.packets) == (1, 1, 0, 0, 8)


@pytest.mark.parametrize("bits", WIDTHS)
def test_one_beat_per_cycle_and_one_cycle_more_per_packet(bits):
    session = _good_session(bits)

    async def script(bench):
        for beats in session:
            await bench.send(beats)

    seen = Bench(bits).run(script)
    assert seen.cycles <= seen.sent + len(session)


@pytest.mark.parametrize("bits", WIDTHS)
def test_level_tables_of_table_cells_land_exactly_and_inside_their_memory(bits):
    config = replace(CONFIGS[bits], cell="table", level_depth=64)
    builder, words = Builder(config), _words(7, 20, 32)

    async def script(bench):
        for beats in (
            builder.configure(),
            builder.packet(LEVELS, words, destination=44),
            builder.packet(RUN, [5]),
            builder.packet(LEVELS, words[:2], destination=63),
        ):
            await bench.send(beats)
        await bench.idle(20)

    seen = Bench(bits, config=config).run(script)
    assert seen.levels == list(enumerate(words, 44))
    assert (seen.weights, seen.parameters, seen.features, seen.committed) == ([], [], [], [5])
    assert seen.faults == [(Fault.BOUNDS, 3)]


def _damage(beats, index, **change):
    return [replace(beat, **change) if i == index % len(beats) else beat for i, beat in enumerate(beats)]


def _too_long_crc_beat(bits):
    beats = BUILDERS[bits].packet(RUN, [5])
    return _damage(beats, -1, data=beats[-1].data | 1 << 40)


# name -> (packets after CONFIGURE by builder, fault, number of the faulty packet)
FAULTS = {
    "wrong magic": (lambda b: [b.packet(RUN, [1], magic=0x5343)], Fault.MAGIC, 1),
    "wrong version": (lambda b: [b.packet(RUN, [1], version=5)], Fault.VERSION, 1),
    "kind 0": (lambda b: [to_beats(b.config.stream_bits, packet_bytes(b.config.stream_bits, 0))], Fault.KIND, 1),
    "kind 8": (lambda b: [to_beats(b.config.stream_bits, packet_bytes(b.config.stream_bits, 8))], Fault.KIND, 1),
    "kind 0x82": (lambda b: [to_beats(b.config.stream_bits, packet_bytes(b.config.stream_bits, 0x82))], Fault.KIND, 1),
    "RUN of nothing": (lambda b: [b.packet(RUN)], Fault.LENGTH, 1),
    "RUN longer than the queue": (lambda b: [b.packet(RUN, [0] * 5)], Fault.LENGTH, 1),
    "OUTPUT longer than the queue": (lambda b: [b.packet(OUTPUT, [0] * 5)], Fault.LENGTH, 1),
    "RUN of 2**32 - 1 instructions": (lambda b: [b.packet(RUN, [0], count=0xFFFFFFFF)], Fault.LENGTH, 1),
    "CONFIGURE of two words": (lambda b: [b.packet(CONFIGURE, [0, 0])], Fault.LENGTH, 1),
    "CONFIGURE of nothing": (lambda b: [b.packet(CONFIGURE)], Fault.LENGTH, 1),
    "END with a word": (lambda b: [b.packet(END, [0])], Fault.LENGTH, 1),
    "RUN with a destination": (lambda b: [b.packet(RUN, [0], destination=1)], Fault.BOUNDS, 1),
    "CONFIGURE with a destination": (lambda b: [b.configure(destination=1)], Fault.BOUNDS, 1),
    "END with a destination": (lambda b: [b.end(destination=1)], Fault.BOUNDS, 1),
    "weights one too far": (lambda b: [b.packet(WEIGHTS, [0] * 5, destination=28)], Fault.BOUNDS, 1),
    "parameters one too far": (lambda b: [b.packet(PARAMETERS, [0], destination=16)], Fault.BOUNDS, 1),
    "input one too far": (lambda b: [b.packet(INPUT, [0, 0], destination=63)], Fault.BOUNDS, 1),
    "destination far beyond": (lambda b: [b.packet(WEIGHTS, [0], destination=1 << 16)], Fault.BOUNDS, 1),
    "count beyond the memory": (lambda b: [b.packet(INPUT, [0], count=65)], Fault.BOUNDS, 1),
    "sum that wraps 32 bits": (lambda b: [b.packet(INPUT, [0] * 2, destination=0xFFFFFFFF)], Fault.BOUNDS, 1),
    "count that wraps 32 bits": (lambda b: [b.packet(WEIGHTS, [0], destination=1, count=0xFFFFFFFF)], Fault.BOUNDS, 1),
    "wrong checksum": (lambda b: [_damage(b.packet(RUN, [5]), -1, data=0)], Fault.CRC, 1),
    "bits beside the checksum": (lambda b: [_too_long_crc_beat(b.config.stream_bits)], Fault.CRC, 1),
    "later packet": (lambda b: [b.packet(RUN, [5]), _damage(b.packet(RUN, [5]), -1, data=0)], Fault.CRC, 2),
    "TLAST in the header": (lambda b: [_damage(b.packet(RUN, [5]), 0, last=1)], Fault.FRAMING, 1),
    "TLAST in the payload": (lambda b: [_damage(b.packet(RUN, [5]), -2, last=1)], Fault.FRAMING, 1),
    "TKEEP in the header": (lambda b: [_damage(b.packet(RUN, [5]), 0, keep=0x7F)], Fault.FRAMING, 1),
    "TKEEP in the payload": (lambda b: [_damage(b.packet(RUN, [5]), -2, keep=0xFE)], Fault.FRAMING, 1),
    "TKEEP in the checksum": (lambda b: [_damage(b.packet(RUN, [5]), -1, keep=0x0F)], Fault.FRAMING, 1),
    "END after a packet without TLAST": (lambda b: [b.packet(RUN, [5], last=False), b.end()], Fault.FRAMING, 2),
    "END without TLAST": (lambda b: [b.end(last=False)], Fault.FRAMING, 1),
    "CONFIGURE for something else": (lambda b: [b.packet(CONFIGURE, [b.config.hash ^ 1 << 63])], Fault.HASH, 1),
    "packet after END": (lambda b: [b.end(), b.packet(RUN, [1])], Fault.STATE, 0),
    "END after END": (lambda b: [b.end(), b.end()], Fault.STATE, 0),
}


@pytest.mark.parametrize("stalls", ["none", "both"])
@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_a_bad_packet_raises_its_fault_and_end_recovers(bits, case, stalls):
    make, code, number = FAULTS[case]
    builder = BUILDERS[bits]
    good_before = sum(1 for beats in make(builder)[:-1] if len(beats) > 2 + (bits == 64))
    recovery = [builder.packet(RUN, [9]), builder.end(), builder.configure(), builder.packet(RUN, [8])]
    seen = run_beats(bits, builder.configure(), *make(builder), *recovery, stalls=stalls)
    assert seen.faults == [(code, number)], "one fault, the first one"
    assert seen.committed == [5] * good_before + [8], "what drains is not committed, what follows is"
    assert (seen.opened, seen.session, seen.draining, seen.packets) == (2, 1, 0, 2)
    assert seen.ended == (number == 0), "END counts only where it closed a good session"


def test_every_fault_of_the_parser_has_a_case():
    elsewhere = {Fault.NONE, Fault.OPCODE}  # OPCODE is raised by the sequencer
    assert {code for _, code, _ in FAULTS.values()} == set(Fault) - elsewhere


@pytest.mark.parametrize("kind", [WEIGHTS, PARAMETERS, INPUT, RUN, OUTPUT, END])
def test_before_configure_every_packet_is_a_state_fault(kind):
    builder = BUILDERS[64]
    seen = run_beats(64, builder.packet(kind, [] if kind == END else [0]))
    assert (seen.faults, seen.draining, seen.ended) == ([(Fault.STATE, 0)], 1, 0)
    assert seen.weights + seen.parameters + seen.features + seen.doubtful == []


def test_the_hash_is_judged_only_when_the_checksum_holds():
    builder = BUILDERS[64]
    beats = builder.packet(CONFIGURE, [0])
    assert run_beats(64, _damage(beats, -1, data=0)).faults == [(Fault.CRC, 0)]
    assert run_beats(64, beats).faults == [(Fault.HASH, 0)]


def test_configure_in_an_open_session_restarts_the_count():
    builder = BUILDERS[64]
    run = builder.packet(RUN, [1])
    seen = run_beats(64, builder.configure(), run, run, builder.configure(), run)
    assert (seen.opened, seen.packets, seen.session, seen.faults) == (2, 2, 1, [])


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("bits", WIDTHS)
def test_any_single_wrong_bit_is_a_fault_and_commits_nothing_and_one_in_a_header_writes_nothing(bits, last):
    builder = BUILDERS[bits]
    rng = random.Random(bits)
    words = _payloads(bits)
    packets = [
        builder.packet(kind, words[kind][:2], last=last, fence=3) for kind in (WEIGHTS, PARAMETERS, INPUT, RUN, OUTPUT)
    ]
    trials = []
    for beats in packets:
        total = len(beats) * bits
        chosen = {*range(128), *range(total - bits, total - bits + 40), *rng.sample(range(total), 20)}
        trials += [
            (beats, bit) for bit in (sorted(chosen) if last and beats is packets[3] else rng.sample(sorted(chosen), 20))
        ]
    after = builder.packet(RUN, [9])

    async def script(bench):
        for beats, bit in trials:
            wrong = _damage(beats, bit // bits, data=beats[bit // bits].data ^ 1 << bit % bits)
            landed = bench.seen.weights, bench.seen.parameters, bench.seen.features
            for words_seen in (bench.seen.faults, *landed):
                words_seen.clear()
            await bench.send([*builder.configure(), *wrong, *after, *builder.end()])
            await bench.idle(4)
            assert len(bench.seen.faults) == 1, f"bit {bit} of kind {beats[0].data >> 24 & 0xFF}"
            assert bench.seen.faults[0][1] == 1
            assert bench.seen.committed == [], f"bit {bit}"
            assert bit >= 128 or not any(landed), f"header bit {bit}"
            await bench.pulse("clear")

    Bench(bits).run(script)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("stalls", ["none", "both"])
def test_a_packet_cut_after_any_beat_is_a_fault_and_the_next_session_works(bits, stalls):
    builder = BUILDERS[bits]
    words = _payloads(bits)

    async def script(bench):
        for kind in (CONFIGURE, INPUT, RUN, END):
            beats = builder.configure() if kind == CONFIGURE else builder.packet(kind, words.get(kind, [])[:2])
            for length in range(1, len(beats)):
                for with_last in (True, False):
                    cut = _damage(beats[:length], -1, last=int(with_last))
                    bench.seen.faults.clear()
                    bench.seen.committed.clear()
                    # Without TLAST the next packets are swallowed up to the first TLAST, so END comes twice.
                    await bench.send([*builder.configure(), *cut, *builder.end(), *builder.end()])
                    await bench.idle(30)
                    assert len(bench.seen.faults) >= 1, f"kind {kind} cut to {length} beats"
                    assert bench.seen.committed == []
                    await bench.pulse("clear")
                    bench.seen.faults.clear()
                    bench.seen.ended = 0
                    await bench.send([*builder.configure(), *builder.packet(RUN, [3]), *builder.end()])
                    await bench.idle(30)
                    assert (bench.seen.faults, bench.seen.committed, bench.seen.ended) == ([], [3], 1)

    Bench(bits, stalls).run(script)


@pytest.mark.parametrize("name", ["halt", "clear"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_a_stop_from_outside_at_any_cycle_commits_nothing_and_recovers(bits, name):
    builder = BUILDERS[bits]
    words = _payloads(bits)
    stream_beats = [
        *builder.configure(),
        *builder.packet(RUN, words[RUN][:2]),
        *builder.packet(INPUT, words[INPUT][:2]),
    ]

    async def script(bench):
        for length in range(len(stream_beats) + 1):
            for wait in range(3):
                bench.seen.faults.clear()
                await bench.send(stream_beats[:length])
                await bench.idle(wait)
                await bench.pulse(name)
                bench.seen.committed.clear()
                if name == "halt":
                    # The rest of the stream and one END are discarded, whatever was cut.
                    await bench.send([*stream_beats[length:], *builder.end()])
                    await bench.idle(4)
                    assert not bench.seen.draining
                bench.seen.ended = 0
                await bench.send([*builder.configure(), *builder.packet(RUN, [3, 4]), *builder.end()])
                await bench.idle(6)
                assert (bench.seen.faults, bench.seen.committed, bench.seen.ended) == ([], [3, 4], 1), (length, wait)

    Bench(bits).run(script)


@pytest.mark.parametrize("sent", [0, 1])
def test_a_stop_without_tlast_just_before_it_waits_for_tlast_before_end(sent):
    builder = BUILDERS[64]

    async def script(bench):
        await bench.send(builder.configure(last=bool(sent)))
        await bench.send(builder.packet(RUN, [1])[:sent])
        await bench.idle(4)
        await bench.pulse("halt")
        for draining in (1, 0):
            await bench.send(builder.end())
            await bench.idle(4)
            assert bench.seen.draining == draining

    Bench(64).run(script)


@pytest.mark.parametrize("name", ["halt", "clear"])
@pytest.mark.parametrize("kind", [INPUT, RUN])
def test_a_word_that_waits_for_its_memory_is_dropped_by_a_stop(kind, name):
    builder = BUILDERS[64]

    async def script(bench):
        await bench.send(builder.configure())
        bench.hold_memories()
        await bench.send(builder.packet(kind, [7])[:-1])
        await bench.idle(4)
        await bench.pulse(name)
        bench.release_memories()
        await bench.idle(4)
        assert bench.seen.features + bench.seen.doubtful == []

    Bench(64).run(script)


def test_a_drain_ends_although_instructions_never_retire():
    builder = BUILDERS[64]

    async def script(bench):
        bench.set("outstanding", 5)
        await bench.send([*builder.packet(RUN, [1], magic=0), *builder.end(fence=0)])
        await bench.idle(6)
        assert (bench.seen.draining, len(bench.seen.faults)) == (0, 1)

    Bench(64).run(script)


def test_end_counts_while_draining_only_after_tlast_and_only_when_whole():
    builder = BUILDERS[64]
    bad = builder.packet(RUN, [0], magic=0, last=False)
    wrong_end = _damage(builder.end(), -1, data=0)

    async def script(bench):
        for beats, draining in (
            (bad, 1),
            (builder.end(), 1),  # its TLAST is the first one
            (wrong_end, 1),
            (builder.end(version=5), 1),
            (builder.end(count=1), 1),
            (builder.end(last=False), 1),
            (builder.packet(RUN, [0]), 1),
            (_damage(builder.end(), 1, keep=0), 1),
            (builder.end(), 0),
        ):
            await bench.send(beats)
            await bench.idle(4)
            assert bench.seen.draining == draining
        assert (bench.seen.ended, len(bench.seen.faults)) == (0, 1)

    Bench(64).run(script)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("kind", [WEIGHTS, INPUT, RUN, END])
def test_the_fence_holds_the_payload_back(bits, kind):
    builder = BUILDERS[bits]
    words = _payloads(bits).get(kind, [])
    beats = builder.packet(kind, words, fence=2)
    header_beats = -(-128 // bits)

    async def script(bench):
        bench.set("outstanding", 3)
        await bench.send(builder.configure(fence=0xFFFF))
        await bench.send(beats[:header_beats])
        # One more beat fits into the register in front of the parser.
        await bench.send([beats[header_beats]])
        await bench.idle(30)
        seen = bench.seen
        assert (seen.weights, seen.features, seen.doubtful, seen.ended) == ([], [], [], 0)
        bench.set("outstanding", 2)
        await bench.cycle()
        bench.set("outstanding", 3)  # once open, the fence stays open for this packet
        await bench.send(beats[header_beats + 1 :])
        await bench.idle(8)
        assert len(seen.weights + seen.features + seen.committed) == len(words)
        assert (seen.ended, seen.faults) == (kind == END, [])

    Bench(bits).run(script)


def test_words_have_landed_before_their_packet_is_accepted():
    builder = BUILDERS[64]

    async def script(bench):
        await bench.send(builder.configure())
        bench.hold_memories()
        await bench.send(builder.packet(INPUT, [7]))
        await bench.idle(30)
        assert bench.seen.packets == 1, "not accepted while the word waits"

    Bench(64).run(script)


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_fence_counts_the_instructions_of_the_packet_just_before_it(bits):
    config, builder = CONFIGS[bits], BUILDERS[bits]
    words = _payloads(bits)
    m = Module()
    m.submodules.parser = dut = PacketParser(config)
    m.submodules.queue = queue = InstructionQueue(config.instruction_depth)
    wiring.connect(m, dut.instructions, queue.i)
    m.d.comb += [
        queue.commit.eq(dut.commit),
        queue.rollback.eq(dut.rollback),
        dut.outstanding.eq(queue.outstanding),
        dut.features.ready.eq(1),
    ]
    packets = [builder.configure(), builder.packet(RUN, words[RUN]), builder.packet(INPUT, words[INPUT], fence=1)]
    landed = []

    async def sender(ctx):
        await put(ctx, dut.i, [{"data": b.data, "keep": b.keep, "last": b.last} for beats in packets for b in beats])

    async def consumer(ctx):
        ctx.set(queue.o.ready, 1)
        for word in words[RUN]:
            (payload,) = await ctx.tick().sample(queue.o.payload).until(queue.o.valid)
            assert payload == word
        await ctx.tick().repeat(40)
        assert landed == [], "the input must wait for the running instructions"
        for _ in range(len(words[RUN]) - 1):
            ctx.set(queue.retire, 1)
            await ctx.tick()
            ctx.set(queue.retire, 0)
            assert landed == []
        await ctx.tick().repeat(30)
        assert landed == words[INPUT]

    async def monitor(ctx):
        async for _, _, valid, payload in ctx.tick().sample(dut.features.valid, dut.features.payload.data):
            if valid:
                landed.append(payload)

    simulator = Simulator(m)
    simulator.add_clock(1e-8)
    simulator.add_testbench(monitor, background=True)
    simulator.add_testbench(sender)
    simulator.add_testbench(consumer)
    simulator.run()


def test_random_garbage_never_stops_the_parser_and_writes_nothing():
    rng = random.Random(5)
    builder = BUILDERS[64]

    async def script(bench):
        good = [beat for beats in _good_session(64) for beat in beats]
        for _ in range(40):
            mess = [
                replace(rng.choice(good), **({"data": rng.getrandbits(64)} if rng.random() < 0.2 else {}))
                for _ in range(40)
            ]
            await bench.send(mess)
        assert bench.seen.weights + bench.seen.features + bench.seen.committed == []
        await bench.send([replace(good[0], last=1), *builder.end()])
        await bench.idle(6)
        assert not bench.seen.draining

    Bench(64, "both").run(script)
