"""Cycles of a compiled program, and where they go, without running it.

A timeline of jobs (our definition): packets arrive one beat per cycle, instructions run in order, a POST beside what
follows it. Every step is a recurrence over the times of earlier steps; positions, tokens and beats are only counted.
The components state their latencies (:class:`sigbit_hw.core.Timing`); what one state of the sequencer or the parser
takes is written here where it is used. The host is taken to be faster than the stream.
"""

from bisect import bisect_left, insort
from collections import defaultdict, deque
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from sigbit_hw.control.queue import InstructionQueue
from sigbit_hw.core import Timing
from sigbit_hw.spec.codebooks import STREAM_PACKINGS
from sigbit_hw.spec.instructions import INSTRUCTION_BITS, INSTRUCTIONS, LEVEL, LEVEL_CODES, MIN_TILE_CYCLES, Opcode
from sigbit_hw.spec.packets import HEADER, HEADER_BYTES, PACKING, Kind
from sigbit_hw.spec.parts import fill_steps

__all__ = ["REASONS", "Prediction", "marks", "predict"]

#: Counters beside ``cycles`` (cycles with work) and ``idle_cycles``: what the cycles with work are spent on.
REASONS = ("compute_cycles", "weight_stalls", "post_stalls", "pool_cycles", "output_cycles")
_COUNTERS = ("cycles", *REASONS, "idle_cycles")
#: Sets of weights of one COMPUTE are taken together where counters inside them are right: with at most so many cycles
#: of one kind per set, or so many sets that one of them does not matter.
_EVEN_CYCLES, _EVEN_SETS = 2, 256


@dataclass(frozen=True)
class Prediction:
    """What the performance counters will read.

    Attributes
    ----------
    layers : tuple of dict
        By layer of the program, summed over the images: the counters of cycles by register name, and ``stream_waits``,
        the cycles in which the sequencer waits for an instruction that has not arrived (most of them are idle cycles).
        A layer lasts from the retirement of the last instruction before its own to that of its own last one.
    output : dict
        The same for sending the results.
    total : dict
        Sum of all.
    """

    layers: tuple
    output: dict
    total: dict


def _stages(program):
    """Runs of instructions of one layer within a group: ``(layer, end)``; layer -1 sends results."""
    count = sum(packet.count for packet in program.image[0] if packet.kind in (Kind.RUN, Kind.OUTPUT))
    owners = np.full(count, -1)
    for index, layer in enumerate(program.layers):
        for start, end in layer["instructions"]:
            owners[start:end] = index
    ends = [*(np.flatnonzero(np.diff(owners)) + 1).tolist(), count]
    return [(int(owners[end - 1]), end) for end in ends]


def marks(program, images=1):
    """Numbers of retired instructions at which the layers of all images end, or give way to another one."""
    stages = _stages(program)
    count = stages[-1][1]
    return [group * count + end for group in range(program.groups(images)) for _, end in stages]


def predict(program, images=1):
    """Run the timeline of ``images`` images that follow each other, in whole groups.

    Parameters
    ----------
    program : :class:`~sigbit_sim.golden.program.Program`
    images : int

    Returns
    -------
    :class:`Prediction`
    """
    timeline = _Timeline(program.config)
    timeline.setup(program.setup)
    for group in range(program.groups(images)):
        for packet in program.image[group % len(program.image)]:
            timeline.packet(packet)
    retired = [0, *(timeline.retired[mark - 1] + 1 for mark in marks(program, images))]
    return attribute(program, timeline.counters(retired))


def attribute(program, snapshots):
    """What happened between snapshots of counters (dicts; at the start, then at :func:`marks`), by layer."""
    names = list(snapshots[0])
    rows = np.zeros((len(program.layers) + 1, len(names)), dtype=np.int64)
    stages = cycle(_stages(program))
    for (layer, _), earlier, later in zip(stages, snapshots, snapshots[1:], strict=False):
        rows[layer] += [later[name] - earlier[name] for name in names]
    *layers, output, total = (dict(zip(names, row, strict=True)) for row in (*rows.tolist(), rows.sum(axis=0).tolist()))
    return Prediction(tuple(layers), output, total)


class _Port:
    """A memory port that others take in some cycles, in a pattern that repeats."""

    def __init__(self):
        self._uses: deque = deque()  # start, end, period, offsets in the period that are free; ascending
        self._end = 0

    def take(self, start, cycles, period, taken):
        """From ``start`` on for ``cycles`` cycles; ``taken`` are the offsets in every period."""
        self._end = start + cycles
        self._uses.append((start, self._end, period, [offset for offset in range(period) if offset not in taken]))

    def is_free_from(self, time):
        return time >= self._end

    def after(self, time, cycles):
        """First cycle behind ``cycles`` free ones from ``time`` on. Times must not fall from call to call."""
        while self._uses and self._uses[0][1] <= time:
            self._uses.popleft()
        for start, end, period, free in self._uses:
            if time + cycles <= start:
                break
            if time < start:
                cycles -= start - time
                time = start

            def before(offset, period=period, free=free):
                """Free cycles before an offset."""
                return offset // period * len(free) + bisect_left(free, offset % period)

            wanted = before(time - start) + cycles
            if wanted <= before(end - start):
                full, rest = divmod(wanted - 1, len(free))
                return start + full * period + free[rest] + 1
            cycles = wanted - before(end - start)
            time = end
        return time + cycles


class _Timeline:
    """Times of packets and instructions, cycle 0 being the parser's first beat.

    A time is the cycle in which something is seen; a register that changes then has its new value one cycle later.
    """

    def __init__(self, config):
        self._config = config
        self._timing = Timing.of(config)
        self._spent = defaultdict(list)  # reason -> (start, end, cycles), in order
        self.retired = []  # cycles of retirement, ascending
        # Stream.
        self._beat = 0  # next beat may be taken
        self._packing = STREAM_PACKINGS[0]
        self._committed = 0
        self._popped = []  # per instruction: cycle in which the sequencer took it out of the queue
        # Sequencer: first cycle in which it looks for the next instruction.
        self._free = 0
        # First positions of the last tile and of the first one with the same weights; all of these have been read then.
        self._tile = self._swap = -self._timing.weight_hold_cycles - MIN_TILE_CYCLES
        self._loaded = 0
        # Steps of the level tables in memory.
        self._level_steps = [0] * (self._config.level_depth if self._timing.fill_columns else 0)
        # Post-processor: the last job's acceptance and end. What it keeps from the reader and from the input.
        self._accepted = self._done = -1
        self._feature_reads = _Port()
        self._feature_writes = _Port()

    # -- stream --------------------------------------------------------------------------------------------------------

    def setup(self, packets):
        """Level tables among the packets that are sent once; these take no time."""
        config = self._config
        beat = config.stream_bits // 8
        for data in packets:
            header = HEADER.unpack(int.from_bytes(data[:HEADER_BYTES], "little"))
            if header["kind"] == Kind.LEVELS:
                self._store_levels(header["destination"], data[config.beats_per_word(HEADER.width) * beat : -beat])

    def _store_levels(self, start, payload):
        stride = self._config.beats_per_word(LEVEL.width) * self._config.stream_bits // 8
        for position in range(0, len(payload), stride):
            word = int.from_bytes(payload[position : position + LEVEL.width // 8], "little")
            self._level_steps[start + position // stride] = LEVEL.unpack(word)["step"]

    def packet(self, packet):
        config = self._config
        check = self._beat + config.beats_per_word(HEADER.width)
        beat = max(check, self._fence(packet.fence)) + 1
        if packet.kind in (Kind.RUN, Kind.OUTPUT):
            beat = self._instructions(packet, beat)
            instructions = _decode(packet, config)
        else:
            width = {
                Kind.PACKING: PACKING.width,
                Kind.PACKED: 0,
                Kind.WEIGHTS: config.weight_word_bits,
                Kind.PARAMETERS: config.parameter_word_bits,
                Kind.INPUT: config.feature_word_bits,
                Kind.LEVELS: config.level_word_bits,
            }[packet.kind]
            beats, words = config.beats_per_word(width), packet.count
            if packet.kind == Kind.INPUT:
                # A word that meets a result on the write port waits, and the beats behind it.
                while words and not self._feature_writes.is_free_from(beat):
                    beat = self._feature_writes.after(beat + beats, 1) - 1
                    words -= 1
            if packet.kind == Kind.PACKING:
                self._packing = STREAM_PACKINGS[packet.payload[0]]
            if packet.kind == Kind.PACKED:
                beat = self._packed(packet.count, beat)
            else:
                beat += beats * words
            instructions = []
            if packet.kind == Kind.LEVELS:
                self._store_levels(packet.destination, packet.payload)
        self._beat = beat + 1
        commit = self._beat
        if instructions:
            self._spend_idle(commit)
        for opcode, fields in instructions:
            self._instruction(opcode, fields, commit)
        self._committed += len(instructions)

    def _fence(self, fence):
        """First cycle in which at most ``fence`` instructions are outstanding."""
        behind = self._committed - fence
        return self.retired[behind - 1] + 1 if behind > 0 else 0

    def _packed(self, count, beat):
        """Groups of packed weights: the next one comes in while the words of one are written, one per cycle."""
        form, config = self._packing, self._config
        beats = config.beats_per_word(config.weight_columns * config.vector * form.word_bits)
        written = 0
        for start in range(0, count, form.count):
            # Complete in the cycle before `beat`; the words are written behind the cycle that hands the group over.
            beat = max(beat + beats, written)
            written = beat + min(form.count, count - start)
        return written + 1

    def _instructions(self, packet, beat):
        """Beats of instructions; each is in the queue one cycle behind its last beat, if there is a place."""
        config = self._config
        beats = config.beats_per_word(INSTRUCTION_BITS)
        held = config.instruction_depth + InstructionQueue.output_registers
        for number in range(self._committed, self._committed + packet.count):
            beat += beats
            if number >= held:
                beat = max(beat, self._popped[number - held] + 1)
        return beat

    # -- sequencer -----------------------------------------------------------------------------------------------------

    def _instruction(self, opcode, fields, commit):
        # At the head behind its predecessor; its legality is known one cycle later.
        present = self._popped[-1] + 1 if self._popped else 0
        arrived = commit + InstructionQueue.latency_cycles
        known = max(present, arrived) + 1
        if opcode == Opcode.POST:
            popped = self._post(fields, known)
        else:
            self._spend("stream_waits", max(present + 1, self._free), known)
            popped = self._run(opcode, fields, known)
        self._popped.append(popped)

    def _run(self, opcode, fields, known):
        """An instruction that the sequencer executes itself; returns the cycle in which it is taken."""
        # A waiting job blocks until it has been accepted, a running one those that wait for its end.
        waits = opcode == Opcode.POOL or fields["wait_post"]
        start = max(known, self._free)
        popped = max(start, self._accepted + 1, self._done + 1 if waits else 0)
        self._spend("post_stalls", start, popped)
        if opcode == Opcode.COMPUTE:
            return self._compute(fields, known, popped)
        if opcode == Opcode.POOL:
            # State "load", then one position per cycle.
            first = popped + 2
            windows, positions = _product(fields, range(3)), _product(fields, range(5))
            self._spend("pool_cycles", first, first + positions)
            self._retire(first + positions + self._timing.pool_drain_cycles)
            # The planes store one after the other.
            window = positions // windows
            stored = first + window - 1 + self._timing.pool_store_cycles
            planes = self._config.planes if fields["all_planes"] else 1
            self._feature_writes.take(stored, positions, window, set(range(planes)))
            return popped
        job = popped + 1
        done = job + Timing.output_cycles(self._config, fields["words"])
        self._spend("output_cycles", job, done + 1)
        self._retire(done)
        return popped

    def _retire(self, cycle):
        insort(self.retired, cycle)
        self._free = cycle + 1

    def _compute(self, fields, known, popped):
        timing, feature_reads = self._timing, self._feature_reads
        words = fields["weight_words"]
        positions = _product(fields, range(3, 5))
        beats = -(-fields["budget"] // self._config.token_lanes) if self._config.masked else 1
        # Tiles with the same weights are a set.
        tiles = _product(fields, range(1, 3)) if fields["keep"] else 1
        left = _product(fields, range(3)) // tiles
        # The loader takes the job when it has read the last set before, and the sequencer the instruction after that.
        asked = max(known, self._loaded)
        popped = max(popped, asked + 1)
        self._loaded = asked + max(1, timing.level_cycles)
        lead = timing.weight_lead_cycles
        if timing.fill_columns:
            steps = self._level_steps[fields["level_base"] :][
                : min(LEVEL_CODES, 1 << self._config.activation_format.bits)
            ]
            lead += timing.fill_columns * fill_steps(steps)
        # State "load", then tiles. `now` is the first cycle behind the tile before.
        now = popped + 2
        before = None
        while left:
            # Words are read when the grid has taken the set before; then the grid may take this one.
            read = max(self._loaded, self._swap + 1 + timing.weight_hold_cycles)
            usable, swap = read + lead, None
            for tile in range(tiles):
                ready = max(now, usable, self._tile + MIN_TILE_CYCLES)
                last = left == 1 and tile == tiles - 1
                if last and positions == 1:
                    ready = max(ready, read + words)
                self._tile = feature_reads.after(ready, 1) - 1
                self._spend("weight_stalls", now, ready)
                swap = self._tile if swap is None else swap
                now = self._positions(ready, positions - last, beats)
                if last:
                    # The last position waits until the words of its set have been read.
                    ready = max(now, read + words)
                    self._spend("weight_stalls", now, ready)
                    now = self._positions(ready, 1, beats)
            period, self._swap, self._loaded = swap - self._swap, swap, read + words
            left -= 1
            state = swap - read, now - swap
            busy = tiles * positions * beats
            even = min(busy, period - busy) <= _EVEN_CYCLES or left > _EVEN_SETS
            if state == before and even and feature_reads.is_free_from(swap):
                # Times depend on nothing else, so they go on as from the set before to this one.
                rest = left * period
                self._spend("compute_cycles", now, now + rest, left * busy)
                self._spend("weight_stalls", now, now + rest, left * (period - busy))
                now, self._tile, self._swap, self._loaded = (
                    time + rest for time in (now, self._tile, self._swap, self._loaded)
                )
                left = 0
            before = state
        # As above, if the last set was one of those that go on.
        late = max(self._loaded + beats - now, 0)
        self._spend("weight_stalls", now, now + late)
        if positions == 1:
            self._tile += late
            self._swap += late if tiles == 1 else 0
        self._retire(now + late - 1)
        return popped

    def _positions(self, ready, count, beats):
        """First cycle behind so many positions, each of which reads in the first of its ``beats`` cycles."""
        feature_reads, end, left = self._feature_reads, ready, count
        if beats == 1 and count:
            end, left = feature_reads.after(ready, count), 0
        while left and not feature_reads.is_free_from(end):
            end = feature_reads.after(end, 1) - 1 + beats
            left -= 1
        taken = (count - left) * beats
        self._spend("compute_cycles", ready, end, taken)
        self._spend("post_stalls", ready, end, end - ready - taken)
        self._spend("compute_cycles", end, end + left * beats)
        return end + left * beats

    def _post(self, fields, known):
        """A POST is taken while the COMPUTE before it runs, if none waits; returns the cycle in which it is taken."""
        timing = self._timing
        taken = max(known, self._accepted + 1)
        self._accepted = max(taken + 1, self._free, self._done + 1)
        rows = min(max(fields["valid_rows"], 1), fields["rows"] * self._config.planes)
        pixels = rows * fields["pixels"]
        residual_parts = fields["residual_parts"]
        value_tokens = max(residual_parts, 1)
        group_tokens = fields["parts"] * value_tokens
        pixel_tokens = fields["groups"] * group_tokens
        tokens = pixels * pixel_tokens
        start = self._accepted + timing.post_start_cycles
        self._done = start + tokens - 1 + timing.post_latency_cycles
        insort(self.retired, self._done)
        if residual_parts:
            # The first group in every feature word reads the word of every part.
            granules = self._config.vector // self._config.post_lanes
            groups = {0, *range(granules - fields["first_group"] % granules, fields["groups"], granules)}
            reads = {group * group_tokens + part for group in groups for part in range(residual_parts)}
            self._feature_reads.take(start + timing.post_reserve_cycles, tokens, pixel_tokens, reads)
        self._feature_writes.take(start + timing.post_latency_cycles, tokens, value_tokens, {value_tokens - 1})
        return taken

    # -- counters ------------------------------------------------------------------------------------------------------

    def _spend(self, reason, start, end, cycles=None):
        cycles = end - start if cycles is None else cycles
        if end > start and cycles:
            self._spent[reason].append((start, end, cycles))

    def _spend_idle(self, commit):
        """No instruction is outstanding from the last retirement on."""
        self._spend("idle_cycles", self.retired[-1] + 1 if self.retired else 0, commit + 1)

    def counters(self, times):
        """Counters at ascending times; within one job they grow evenly."""
        columns = {}
        for reason in (*REASONS, "idle_cycles", "stream_waits"):
            spans = np.array(self._spent[reason] or [(0, 1, 0)], dtype=np.float64)
            points = np.column_stack((spans[:, 0], spans[:, 1])).reshape(-1)
            grown = np.cumsum(np.column_stack((np.zeros(len(spans)), spans[:, 2])).reshape(-1))
            columns[reason] = np.rint(np.interp(times, points, grown)).astype(int).tolist()
        columns["cycles"] = [time - idle for time, idle in zip(times, columns["idle_cycles"], strict=True)]
        return [{name: columns[name][index] for name in (*_COUNTERS, "stream_waits")} for index in range(len(times))]


def _product(fields, levels):
    result = 1
    for level in levels:
        result *= fields[f"count{level}"]
    return result


def _decode(packet, config):
    """Instructions of a packet, as opcodes and fields."""
    instructions = []
    stride = config.beats_per_word(INSTRUCTION_BITS) * config.stream_bits // 8
    for start in range(0, packet.count * stride, stride):
        word = int.from_bytes(packet.payload[start : start + INSTRUCTION_BITS // 8], "little")
        opcode = Opcode(word & 0xF)
        instructions.append((opcode, INSTRUCTIONS[opcode].unpack(word)))
    return instructions
