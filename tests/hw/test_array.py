"""The whole array against integers: tiles back to back, Horner passes, banks, read port, stated latencies."""

from dataclasses import replace

import numpy as np
import pytest
from amaranth.sim import Simulator
from sigbit_hw.array.array import Array
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import Format
from sigbit_hw.spec.instructions import LEVEL_CODES
from sigbit_hw.spec.parts import code_distances, fill_steps

CASES = [
    # weights, activations, rows, lanes, columns, planes, post_lanes, weight columns
    ("esb:4,2", "esbu:4,2", 2, 4, 8, 1, 4, 1),
    ("esb:4,2", "esbu:4,2", 1, 4, 24, 1, 4, 4),
    ("esb:4,2", "esbu:4,2", 1, 4, 6, 2, 2, 2),
    ("esb:4,1", "esbu:3,1", 2, 3, 3, 2, 1, 1),
    ("esb:3,0", "esbu:2,0", 1, 5, 5, 1, 5, 1),
    ("esb:5,2", "esb:5,2", 2, 2, 2, 2, 2, 1),
    ("int:8", "uint:8", 1, 4, 4, 2, 2, 1),
    # of table cells, and columns per generator
    ("esb:4,2", "esbu:4,2", 2, 4, 8, 1, 4, 2, 4),
    ("int:4", "int:4", 1, 4, 6, 2, 2, 1, 2),
    # and which cell
    ("int:8", "uint:4", 2, 4, 6, 1, 2, 2, 2, "subset"),
    # and how many columns of logic cells
    ("int:4", "uint:4", 1, 4, 6, 2, 2, 2, 2, "subset", 2),
    ("esb:4,2", "esbu:4,2", 2, 4, 8, 1, 4, 2, 4, "table", 4),
]


def configuration(case):
    weights, activations, rows, lanes, columns, planes, post_lanes, weight_columns, *options = case
    return replace(
        PRESETS["tiny"],
        weight_format=Format.parse(weights),
        activation_format=Format.parse(activations),
        rows=rows,
        lanes=lanes,
        columns=columns,
        weight_columns=weight_columns,
        planes=planes,
        post_lanes=post_lanes,
        strip_depth=16,
        max_reduction=64,
        max_wide_reduction=1,
        cell=("logic", "table", *options[1:2])[min(len(options), 2)],
        logic_columns=sum(options[2:]),
        fill_columns=options[0] if options else 8,
    )


class Schedule:
    """Stimulus by cycle, and the accumulators that integers predict."""

    def __init__(self, array, config, seed):
        self.array = array
        self.config = config
        self.rng = np.random.default_rng(seed)
        self.inputs = {}
        self.pushes = {}
        self.next_input = config.columns
        self.entries, self.banks, self.tiles = {}, {}, 0
        self.next_push = LEVEL_CODES + 1 if config.cell == "table" else 0
        shape = (2, config.planes, config.strip_depth, config.columns)
        self.expected = np.zeros(shape, dtype=np.int64)

    def tile(self, bank, steps, *, clear=False, shift=False):
        """One set of random weights against ``steps`` random vectors, started as early as is allowed."""
        config, rng = self.config, self.rng
        weights, activations = config.weight_format, config.activation_format
        filling = self.levels() if config.cell == "table" else 0
        signs = rng.integers(0, 2, (config.columns, config.vector))
        magnitudes = rng.integers(0, len(weights.magnitudes), (config.columns, config.vector))
        if config.cell == "table":
            # Weight -0 is no negative weight to a table.
            signs = np.where(magnitudes, signs, 0)
        codes = (signs << weights.bits - 1 | magnitudes).reshape(-1, config.weight_columns * config.vector)
        for index, word in enumerate(codes):
            self.pushes[self.next_push + index] = index, sum(int(c) << weights.bits * i for i, c in enumerate(word))
        swap = max(self.next_input, self.next_push + self.array.weight_lead_cycles + filling)
        levels = (1 - 2 * signs) * np.array(weights.magnitudes)[magnitudes]
        vectors = rng.choice(activations.levels, (steps, config.planes, config.vector))
        for step, vector in enumerate(vectors):
            self.inputs[swap + step] = {
                "valid": 1,
                "swap": int(step == 0),
                "clear": int(clear),
                "shift": int(shift),
                "bank": bank,
                "address": step,
                "codes": [activations.encode(int(level)) for level in vector.reshape(-1)],
            }
        least = min(map(activations.decode, range(1 << activations.bits))) if config.cell == "table" else 0
        sums = np.einsum("spv,cv->psc", vectors - least, levels) - signs.sum(axis=1)
        old = self.expected[bank, :, :steps]
        old = 0 if clear else old << config.part_shift_bits if shift else old
        half = 1 << config.accumulator_bits - 1
        self.expected[bank, :, :steps] = (old + sums + half) % (2 * half) - half
        self.next_input = swap + steps
        self.next_push = max(self.next_push + len(codes), swap + self.array.weight_hold_cycles)
        if config.cell == "table":
            self.next_push = max(self.next_push, max(self.pushes) + 1 + LEVEL_CODES + 1)

    def levels(self):
        """A level table of the native formats, as late as it may come; the cycles that filling tables takes."""
        weights, activations = self.config.weight_format, self.config.activation_format
        distances = code_distances(activations)
        order = sorted(range(len(distances)), key=distances.__getitem__)
        steps = np.diff([distances[code] for code in order], prepend=0).tolist()
        self.tiles += 1
        self.banks |= {self.next_push + index: self.tiles % 2 for index in range(self.config.columns)}
        for index in range(LEVEL_CODES):
            # As the words above have them: sign and magnitude code.
            sign, magnitude = divmod(index, 1 << weights.bits - 1)
            weight = (1 - 2 * sign) * weights.magnitudes[magnitude]
            entry = {"weight": weight, "code": order[index], "step": steps[index]}
            self.entries[self.next_push - LEVEL_CODES - 1 + index] = {
                "valid": 1,
                "bank": self.tiles % 2,
                "index": index,
                "entry": entry,
            }
        return fill_steps(steps) * self.array.fill_columns

    def run(self, banks, *, early=0, after=None):
        """Run, and read banks ``early`` cycles before the stated latency has passed since cycle ``after``."""
        array, config = self.array, self.config
        last = max(self.inputs) if after is None else after
        idle = dict.fromkeys(("valid", "swap", "clear", "shift", "bank", "address"), 0)
        idle["codes"] = [0] * len(array.i.codes)
        start = last + array.latency_cycles - early
        groups = config.columns // config.post_lanes
        requests = [
            (bank, plane, address, group)
            for bank in banks
            for address in reversed(range(config.strip_depth))
            for plane in range(config.planes)
            for group in range(groups)
        ]
        result = np.zeros_like(self.expected)

        async def bench(ctx):
            for cycle in range(start + len(requests) + array.read_latency_cycles):
                ctx.set(array.i, self.inputs.get(cycle, idle))
                index, word = self.pushes.get(cycle, (0, 0))
                ctx.set(array.weight, {"valid": int(cycle in self.pushes), "index": index, "word": word})
                if config.cell == "table":
                    nothing = {"valid": 0, "bank": 0, "index": 0, "entry": {}}
                    ctx.set(array.levels, self.entries.get(cycle, nothing))
                    ctx.set(array.level_bank, self.banks.get(cycle, 0))
                if 0 <= cycle - start < len(requests):
                    bank, plane, address, group = requests[cycle - start]
                    ctx.set(array.read, {"bank": bank, "plane": plane, "address": address, "group": group})
                answered = cycle - start - array.read_latency_cycles
                if answered >= 0:
                    bank, plane, address, group = requests[answered]
                    columns = slice(group * config.post_lanes, (group + 1) * config.post_lanes)
                    result[bank, plane, address, columns] = [ctx.get(value) for value in array.read_data]
                await ctx.tick()

        sim = Simulator(array)
        sim.add_clock(1e-8)
        sim.add_testbench(bench)
        sim.run()
        return result[list(banks)], self.expected[list(banks)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tiles_accumulate_exactly_in_both_banks(case):
    config = configuration(case)
    schedule = Schedule(Array(config), config, seed=5)
    schedule.tile(0, 16, clear=True)
    schedule.tile(0, 7)
    schedule.tile(0, 16)
    schedule.tile(1, 16, clear=True)
    schedule.tile(1, 16, shift=True)
    schedule.tile(1, 9)
    result, expected = schedule.run((0, 1))
    np.testing.assert_array_equal(result, expected)


def test_results_are_readable_at_the_stated_latency_and_not_before():
    config = configuration(("esb:4,2", "esbu:3,2", 1, 4, 4, 1, 4, 1))
    # The last address is written last and read first, in its last column.
    for early, equal in ((0, True), (1, False)):
        schedule = Schedule(Array(config), config, seed=6)
        schedule.tile(0, 16, clear=True)
        result, expected = schedule.run((0,), early=early)
        assert np.array_equal(result, expected) == equal


def test_invalid_inputs_change_nothing():
    config = configuration(CASES[0])
    schedule = Schedule(Array(config), config, seed=7)
    schedule.tile(0, 16, clear=True)
    for cycle, vector in list(schedule.inputs.items()):
        schedule.inputs[cycle + 20] = vector | {"valid": 0, "swap": 0}
    result, expected = schedule.run((0,))
    np.testing.assert_array_equal(result, expected)


def test_a_bank_is_read_while_the_other_accumulates():
    config = configuration(("esb:4,2", "esbu:3,2", 1, 4, 2, 2, 1, 1))
    schedule = Schedule(Array(config), config, seed=8)
    schedule.tile(0, 16, clear=True)
    reads_from = schedule.next_input
    for _ in range(6):
        schedule.tile(1, 16)
    assert schedule.next_input - reads_from > schedule.array.latency_cycles + 16 * 2 * 2
    result, expected = schedule.run((0,), after=reads_from - 1)
    np.testing.assert_array_equal(result, expected)
