"""Post-processor: every write, its address and its cycle, against a plain walk over the job."""

import random
from collections import deque
from dataclasses import replace
from itertools import cycle, pairwise

import pytest
from amaranth.sim import Simulator
from sigbit_hw.array.post import PostProcessor
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import INT, UINT, Format
from sigbit_hw.spec.instructions import INSTRUCTIONS, Encoding, Opcode
from sigbit_sim.golden import numerics

TINY = PRESETS["tiny"]
CONFIGS = {
    "tiny": TINY,
    "two planes, more columns than a word": replace(TINY, planes=2, columns=24),
    "four planes, fewer columns than a word": replace(TINY, planes=4, rows=4, columns=8),
    "one lane": replace(TINY, post_lanes=1, columns=3, activation_format=Format.parse("esb:4,2")),
    "word of one group": replace(TINY, post_lanes=8, columns=16, activation_format=Format.parse("int:4")),
    "8-bit codes": replace(TINY, activation_format=Format.parse("uint:8")),
    "tables": replace(TINY, cell="table", planes=2),
    "tables, signed": replace(TINY, cell="table", activation_format=Format.parse("esb:4,2")),
    "tables of short codes": replace(TINY, cell="table", activation_format=Format.parse("uint:2")),
}
#: Levels of NATIVE values of table cells, job after job: as many as codes or fewer, signed, and of the longest reach.
CODEBOOKS = [
    Format.parse(text)
    for text in ("ausn-au:3,1", "ausn-a:2,1", "nuuqu:3,8=0,1,255", "ausn-a:3,0", "nuuq:4,8=-127,-126,0,127", "esbu:4,2")
]
#: Digits below this, in all three parts, make no more than 8 bits.
DIGIT_LIMIT = 4
#: Encoding and bits of every kind of tensor that can be added; all but RAW of those that can be written.
STORED = [(Encoding.NATIVE, 0), *((kind, bits) for kind in (Encoding.UINT, Encoding.INT) for bits in (2, 5, 6, 8))]


def format_of(encoding, bits, native):
    return native if encoding == Encoding.NATIVE else UINT(bits) if encoding == Encoding.UINT else INT(bits)


def native_formats(config):
    """Formats of NATIVE values, one after the other."""
    if not config.level_tables:
        return cycle([config.activation_format])
    return cycle([form for form in CODEBOOKS if len(form.levels) <= 1 << config.activation_format.bits])


def codebook(prefix, parts):
    """Fields that name the levels of indices."""
    levels = parts.levels + parts.levels[-1:] * (16 - len(parts.levels))
    fields = {f"{prefix}distance{i}": level - levels[0] for i, level in enumerate(levels) if i}
    return {f"{prefix}level0": levels[0], **fields}


class Job:
    """One POST instruction with the writes it must cause."""

    def __init__(self, bank, *, config=None, native=None, residual_native=None, **fields):
        self.bank, self.natives = bank, (native, residual_native)
        if config is not None and config.level_tables:
            for prefix, form in (("", native), ("residual_", residual_native)):
                fields |= codebook(prefix, config.activation_parts(form))
        self.fields = {
            "opcode": Opcode.POST,
            **dict.fromkeys(("base", "row_step", "block_step", "part_step", "plane_step", "first_group", "relu"), 0),
            **dict.fromkeys(("residual_base", "residual_parts", "residual_encoding", "residual_bits", "bits"), 0),
            **dict.fromkeys(("rows", "pixels", "groups", "parts"), 1),
            "encoding": Encoding.NATIVE,
            "parameter_base": 0,
            **fields,
        }
        self.fields.setdefault("valid_rows", 1 << 12)
        INSTRUCTIONS[Opcode.POST].pack(**self.fields)

    def tokens(self, config):
        """(plane, row, pixel, group, part, residual part) in the order of the walk."""
        f = self.fields
        return [
            (plane, row, pixel, group, part, residual_part)
            for plane in range(config.planes)
            for row in range(f["rows"])
            if plane * f["rows"] + row < f["valid_rows"]
            for pixel in range(f["pixels"])
            for group in range(f["groups"])
            for part in range(f["parts"])
            for residual_part in range(max(1, f["residual_parts"]))
        ]

    def writes(self, config, accumulators, parameters, features):
        """(address, granule, codes) of every token, None for one that only reads a part of a residual."""
        f = self.fields
        native, residual_native = (form or config.activation_format for form in self.natives)
        stored = None if f["encoding"] == Encoding.RAW else format_of(f["encoding"], f["bits"], native)
        granules = config.vector // config.post_lanes
        found = []
        residuals = [0] * config.post_lanes
        for plane, row, pixel, group, part, residual_part in self.tokens(config):
            block, granule = divmod(f["first_group"] + group, granules)
            offset = plane * f["plane_step"] + row * f["row_step"] + pixel + block * f["block_step"]
            address = f["base"] + offset + part * f["part_step"]
            if f["residual_parts"]:
                word = features[(f["residual_base"] + offset + residual_part * f["part_step"]) % config.feature_depth]
                codes = word[granule * config.post_lanes :][: config.post_lanes]
                added = format_of(f["residual_encoding"], f["residual_bits"], residual_native)
                residuals = [
                    add_part(residual, code, residual_part, config.activation_parts(added))
                    for residual, code in zip(residuals, codes, strict=True)
                ]
                if residual_part < f["residual_parts"] - 1:
                    found.append(None)
                    continue
            sums = accumulators[self.bank, plane, row * f["pixels"] + pixel, group]
            entries = parameters[f["parameter_base"] + group]
            codes = [
                code_of(acc, entry, residual, stored, f["relu"], part, config)
                for acc, entry, residual in zip(sums, entries, residuals, strict=True)
            ]
            found.append((address % config.feature_depth, granule, codes))
        return found


def add_part(residual, code, part, parts):
    """Level of the parts up to ``part``; before part 0 ``residual`` does not count."""
    if parts.levels:
        return parts.levels[code]
    return (residual if part else -parts.offset) + (code << part * parts.step)


def code_of(accumulator, entry, residual, stored, relu, part, config):
    if stored is None:
        bits = config.activation_format.bits
        return (accumulator + entry["bias"]) >> (bits * part) & ((1 << bits) - 1)
    parts = config.activation_parts(stored)
    # Of the codes that stand for the last level, values far beyond it have the last one.
    levels = parts.levels if config.level_tables and parts.levels else stored.levels
    constants = entry["bias"], entry["multiplier"], entry["shift"], [low + high for low, high in pairwise(levels)]
    added = residual, entry["residual_multiplier"], entry["negative_multiplier"]
    rank = numerics.requantize(accumulator, *constants, *added)
    if levels is parts.levels:
        return max(int(rank), levels.index(0)) if relu else int(rank)
    return parts.codes(max(levels[int(rank)], 0) if relu else levels[int(rank)])[part]


class Bench:
    """Both memories with their latencies; drives jobs back to back and records every write with its cycle."""

    def __init__(
        self,
        config,
        *,
        start_delay_cycles=3,
        accumulator_latency_cycles=2,
        parameter_latency_cycles=1,
        feature_latency_cycles=2,
        code_limit=None,
        seed=1,
    ):
        self.config = config
        self.latencies = accumulator_latency_cycles, parameter_latency_cycles, feature_latency_cycles
        self.start_delay_cycles = start_delay_cycles
        self.dut = PostProcessor(
            config,
            start_delay_cycles=start_delay_cycles,
            accumulator_latency_cycles=accumulator_latency_cycles,
            parameter_latency_cycles=parameter_latency_cycles,
            feature_latency_cycles=feature_latency_cycles,
        )
        rng = random.Random(seed)
        limit = (1 << (config.accumulator_bits - 1)) - 1
        self.accumulators = {
            (bank, plane, address, group): [
                rng.randint(-limit, limit) >> rng.randrange(12) for _ in range(config.post_lanes)
            ]
            for bank in range(2)
            for plane in range(config.planes)
            for address in range(config.strip_depth)
            for group in range(config.columns // config.post_lanes)
        }
        self.parameters = [
            [
                {
                    "bias": rng.randint(-(1 << 20), 1 << 20),
                    "multiplier": rng.randint(32768, 65535),
                    "shift": config.accumulator_bits + rng.randrange(2, 12),
                    "residual_multiplier": rng.getrandbits(24),
                    "negative_multiplier": rng.randrange(65536),
                }
                for _ in range(config.post_lanes)
            ]
            for _ in range(config.parameter_depth)
        ]
        codes = range(code_limit or 1 << config.activation_format.bits)
        self.features = [rng.choices(codes, k=config.vector) for _ in range(config.feature_depth)]
        self.accepted, self.done, self.busy, self.writes, self.reserved = [], [], [], [], []

    def run(self, jobs):
        async def bench(ctx):
            await self._drive(ctx, deque(jobs))

        simulator = Simulator(self.dut)
        simulator.add_clock(1e-8)
        simulator.add_testbench(bench)
        simulator.run()
        return self.writes

    def _answer(self, ctx, port, pending, latency, value):
        """Request of this cycle into ``pending``; the data of the request ``latency`` cycles ago onto the port."""
        pending.append(value)
        if len(pending) > latency:
            data = pending.popleft()
            ctx.set(port.data, data)

    async def _drive(self, ctx, jobs):
        dut, config = self.dut, self.config
        blank_sums = [-1] * config.post_lanes
        blank_entries = [{"bias": -1, "multiplier": 65535, "shift": 0, "residual_multiplier": -1 & 0xFFFFFF}]
        blank_entries *= config.post_lanes
        blank_word = [(1 << config.activation_format.bits) - 1] * config.vector
        sums, entries, words = deque(), deque(), deque()
        now = idle = 0
        offered = None
        while idle < dut.latency_cycles + 4:
            ctx.set(dut.job.valid, bool(jobs))
            if jobs and jobs[0] is not offered:
                offered = jobs[0]
                ctx.set(dut.job.payload.bank, offered.bank)
                for name, value in offered.fields.items():
                    ctx.set(dut.job.payload.instruction[name], value)
            port = dut.accumulator
            at = tuple(ctx.get(x) for x in (port.bank, port.plane, port.address, port.group))
            self._answer(ctx, port, sums, self.latencies[0], self.accumulators[at] if ctx.get(port.en) else blank_sums)
            port = dut.parameter
            entry = self.parameters[ctx.get(port.address)] if ctx.get(port.en) else blank_entries
            self._answer(ctx, port, entries, self.latencies[1], entry)
            port = dut.residual
            assert ctx.get(port.en) == bool(self.reserved and self.reserved[-1]), f"unannounced read in cycle {now}"
            self.reserved.append(ctx.get(port.reserve))
            word = self.features[ctx.get(port.address)] if ctx.get(port.en) else blank_word
            packed = sum(code << config.activation_format.bits * lane for lane, code in enumerate(word))
            self._answer(ctx, port, words, self.latencies[2], packed)
            if ctx.get(dut.write.en):
                codes = [ctx.get(code) for code in dut.write.data]
                self.writes.append((now, (ctx.get(dut.write.address), ctx.get(dut.write.granule), codes)))
            if ctx.get(dut.done):
                self.done.append(now)
            self.busy.append(ctx.get(dut.busy))
            if jobs and ctx.get(dut.job.ready):
                self.accepted.append(now)
                jobs.popleft()
            idle = 0 if jobs or ctx.get(dut.busy) else idle + 1
            now += 1
            assert now < 20000, f"still busy after {now} cycles, {len(jobs)} jobs not accepted"
            await ctx.tick()


def assert_writes(bench, jobs):
    """Every write and its cycle: tokens follow each other without a gap."""
    wanted = []
    for job, accepted in zip(jobs, bench.accepted, strict=True):
        first = accepted + 1 + bench.start_delay_cycles + bench.dut.latency_cycles
        for index, write in enumerate(job.writes(bench.config, bench.accumulators, bench.parameters, bench.features)):
            if write is not None:
                wanted.append((first + index, write))
    assert len(bench.writes) == len(wanted)
    for found, expected in zip(bench.writes, wanted, strict=True):
        assert found == expected
    return wanted


def layout_of(config, *, rows, pixels, groups, parts, first_group=0):
    """Steps of a map without gaps: part, block, pixel, row, plane."""
    blocks = -(-(first_group + groups) // (config.vector // config.post_lanes))
    row = pixels
    return {
        "rows": rows,
        "pixels": pixels,
        "groups": groups,
        "parts": parts,
        "first_group": first_group,
        "row_step": row,
        "plane_step": rows * row,
        "block_step": config.planes * rows * row,
        "part_step": blocks * config.planes * rows * row,
    }


def part_count(config, encoding, bits):
    if encoding == Encoding.RAW:
        return -(-32 // config.activation_format.bits)
    return config.activation_parts(format_of(encoding, bits, config.activation_format)).count


@pytest.mark.parametrize("name", CONFIGS)
def test_writes_equal_the_walk_over_the_job_in_every_encoding(name):
    config = CONFIGS[name]
    bench = Bench(config, start_delay_cycles=0)
    jobs = []
    natives = native_formats(config)
    for encoding, bits in [*STORED[:1] * 3, *STORED, (Encoding.RAW, 0)]:
        parts = part_count(config, encoding, bits)
        shape = layout_of(config, rows=2, pixels=2, groups=config.columns // config.post_lanes, parts=parts)
        stored = {"encoding": encoding, "bits": bits}
        for bank in (0, 1):
            own = {"config": config, "native": next(natives), "residual_native": next(native_formats(config))}
            jobs.append(Job(bank, base=70, parameter_base=5, relu=bank, **own, **stored, **shape))
    bench.run(jobs)
    assert_writes(bench, jobs)
    codes = {code for _, (_, _, codes) in bench.writes for code in codes}
    assert len(codes) > 3


@pytest.mark.parametrize("first_group", [0, 1, 2, 3])
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_groups_wrap_into_the_next_block(first_group, groups):
    config = replace(TINY, rows=4, columns=24)  # four granules in a word
    bench = Bench(config)
    steps = {"row_step": 37, "block_step": 301, "part_step": 611, "plane_step": 5}
    stored = {"encoding": Encoding.UINT, "bits": 8}
    job = Job(0, base=9, rows=2, pixels=2, groups=groups, parts=2, first_group=first_group, **stored, **steps)
    bench.run([job])
    assert_writes(bench, [job])
    granules = [granule for _, (_, granule, _) in bench.writes[: 2 * groups : 2]]
    assert granules == [(first_group + group) % 4 for group in range(groups)]


@pytest.mark.parametrize(("encoding", "bits"), STORED)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_residual_is_read_from_its_own_map_and_added(name, encoding, bits):
    config = CONFIGS[name]
    native = encoding == Encoding.NATIVE
    bench = Bench(config, feature_latency_cycles=1 + len(name) % 3, code_limit=None if native else DIGIT_LIMIT)
    shape = layout_of(config, rows=2, pixels=2, groups=config.columns // config.post_lanes, parts=1)
    parts = part_count(config, encoding, bits)
    residual = {"residual_parts": parts, "residual_encoding": encoding, "residual_bits": bits}
    natives = native_formats(config)

    def own():
        return {"config": config, "native": next(natives), "residual_native": next(natives)}

    jobs = [
        Job(0, **own(), **shape, residual_base=1000, **residual),
        Job(1, **own(), **shape),
        Job(1, **own(), **shape, residual_base=9, **residual),
        Job(0, **own(), **shape, residual_base=80, **residual),
    ]
    bench.run(jobs)
    assert_writes(bench, jobs)
    tokens = 3 * len(jobs[0].tokens(config))
    blocks = -(-shape["groups"] // (config.vector // config.post_lanes))
    assert sum(bench.reserved) == tokens // shape["groups"] * blocks, "every word once"


@pytest.mark.parametrize("valid_rows", [0, 1, 2, 3, 4, 5, 6, 7, 12, 8000])
def test_rows_beyond_the_valid_ones_take_no_time_and_are_not_written(valid_rows):
    config = CONFIGS["four planes, fewer columns than a word"]
    bench = Bench(config)
    shape = layout_of(config, rows=3, pixels=2, groups=2, parts=1)
    jobs = [Job(0, **shape, valid_rows=valid_rows), Job(1, **shape)]
    bench.run(jobs)
    wanted = assert_writes(bench, jobs)
    assert len(wanted) == (min(valid_rows, 12) + 12) * 4
    busy_cycles = bench.accepted[1] - bench.accepted[0]
    assert busy_cycles == 1 + bench.start_delay_cycles + max(1, min(valid_rows, 12)) * 4


@pytest.mark.parametrize("start_delay_cycles", [0, 1, 9])
@pytest.mark.parametrize(("accumulator_latency_cycles", "parameter_latency_cycles"), [(1, 1), (2, 9), (11, 3)])
def test_latencies_are_as_stated(start_delay_cycles, accumulator_latency_cycles, parameter_latency_cycles):
    bench = Bench(
        TINY,
        start_delay_cycles=start_delay_cycles,
        accumulator_latency_cycles=accumulator_latency_cycles,
        parameter_latency_cycles=parameter_latency_cycles,
    )
    residual_cycles = 3 + 2 + 1 + 2
    assert bench.dut.latency_cycles == max(accumulator_latency_cycles, parameter_latency_cycles, residual_cycles) + 19
    jobs = [
        Job(0, pixels=2, groups=2, block_step=10),
        Job(1, base=50),
        Job(0, base=90, parts=3, part_step=4, encoding=Encoding.UINT, bits=8),
    ]
    bench.run(jobs)
    wanted = assert_writes(bench, jobs)
    last = [wanted[3][0], wanted[4][0], wanted[7][0]]
    assert bench.done == last
    assert bench.busy == [bench.accepted[0] < cycle <= last[-1] for cycle in range(len(bench.busy))]
    gaps = [later - earlier for earlier, later in zip(bench.accepted, bench.accepted[1:], strict=False)]
    assert gaps == [1 + start_delay_cycles + 4, 1 + start_delay_cycles + 1]


@pytest.mark.parametrize("seed", range(4))
def test_random_jobs_back_to_back_keep_their_own_settings(seed):
    rng = random.Random(seed)
    config = rng.choice([CONFIGS["tiny"], CONFIGS["two planes, more columns than a word"]])
    bench = Bench(config, start_delay_cycles=rng.randrange(3), code_limit=DIGIT_LIMIT, seed=seed)
    granules = config.vector // config.post_lanes
    jobs = []
    for bank in range(6):
        encoding, bits = rng.choice([*STORED, (Encoding.RAW, 0)])
        residual_encoding, residual_bits = rng.choice(STORED[1:])
        rows = rng.randint(1, 4)
        jobs.append(
            Job(
                bank % 2,
                encoding=encoding,
                bits=bits,
                relu=rng.randrange(2),
                rows=rows,
                pixels=rng.randint(1, config.strip_depth // rows // 2),
                groups=rng.randint(1, config.columns // config.post_lanes),
                parts=rng.randint(1, part_count(config, encoding, bits)),
                first_group=rng.randrange(granules),
                parameter_base=rng.randrange(50),
                valid_rows=rng.randint(1, rows * config.planes),
                residual_parts=rng.choice([0, 1, 3]) if encoding != Encoding.RAW else 0,
                residual_base=rng.randrange(300),
                residual_encoding=residual_encoding,
                residual_bits=residual_bits,
                **{name: rng.randrange(300) for name in ("base", "row_step", "block_step", "part_step", "plane_step")},
            )
        )
    bench.run(jobs)
    assert_writes(bench, jobs)


@pytest.mark.parametrize(
    ("name", "value", "low"),
    [("start_delay_cycles", -1, 0), ("accumulator_latency_cycles", 0, 1), ("parameter_latency_cycles", 0, 1)],
)
def test_a_number_of_cycles_out_of_range_is_refused(name, value, low):
    cycles = {"start_delay_cycles": 0, "accumulator_latency_cycles": 1, "parameter_latency_cycles": 1, name: value}
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least {low}, not {value}"):
        PostProcessor(TINY, **cycles)
