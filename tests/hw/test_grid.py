"""The grid against integers: sums, the constant of the signs, timing of weights and results."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from amaranth.sim import Simulator
from sigbit_hw.array.columns import GridShape
from sigbit_hw.array.grid import Grid
from sigbit_hw.spec.config import accumulator_width
from sigbit_hw.spec.formats import INT, UINT, Format
from sigbit_hw.spec.instructions import LEVEL_CODES
from sigbit_hw.spec.parts import code_distances, fill_steps

CASES = [
    # weights, activations, rows, lanes, columns, planes, weight columns
    ("esb:4,2", "esbu:4,2", 1, 4, 3, 1, 1),
    ("esb:4,2", "esbu:4,2", 2, 4, 4, 2, 2),
    ("esb:4,1", "esbu:3,1", 2, 5, 2, 1, 1),
    ("esb:3,0", "esbu:2,0", 1, 8, 3, 2, 1),
    ("esb:3,0", "esbu:2,0", 3, 1, 2, 1, 1),
    ("esb:4,2", "esb:4,2", 2, 3, 2, 1, 2),
    ("esb:5,2", "esb:5,2", 1, 4, 2, 2, 1),
    ("int:8", "uint:8", 1, 3, 2, 1, 1),
    ("int:3", "int:4", 2, 2, 18, 1, 1),
    ("esb:3,0", "esbu:2,0", 1, 2, 40, 1, 1),
    ("esb:3,0", "esbu:2,0", 1, 2, 40, 1, 2),
    ("esb:3,0", "esbu:2,0", 1, 2, 36, 1, 4),
    ("esb:3,0", "esbu:2,0", 2, 1, 48, 1, 16),
]
TABLE_CASES = [
    # bits of weight and activation codes, geometry as above, columns per generator, bits of weights and products
    (4, 4, 1, 4, 3, 1, 1, 1, 5, 8),
    (4, 4, 2, 4, 4, 2, 2, 4, 3, 6),
    (4, 3, 2, 5, 2, 1, 1, 2, 8, 12),
    (3, 4, 2, 2, 18, 1, 1, 8, 4, 8),
    (4, 4, 1, 9, 6, 1, 2, 4, 7, 9),
    (3, 2, 1, 2, 40, 1, 1, 16, 2, 5),
    (3, 2, 3, 1, 40, 1, 2, 2, 5, 8),
    (2, 2, 2, 1, 48, 2, 16, 16, 5, 8),
]
SUBSET_CASES = [
    # formats and geometry as for logic cells, columns per generator, and which cell
    ("int:4", "uint:4", 1, 8, 3, 1, 1, 1, "subset"),
    ("int:8", "uint:8", 1, 5, 2, 2, 1, 2, "subset"),
    ("int:8", "int:8", 2, 4, 2, 1, 2, 2, "subset"),
    ("int:8", "uint:4", 2, 9, 6, 1, 2, 4, "subset"),
    ("esb:4,0", "int:4", 1, 13, 3, 1, 1, 1, "subset"),
    ("esb:4,2", "uint:2", 1, 1, 5, 1, 1, 4, "subset"),
    ("int:3", "int:2", 3, 3, 18, 1, 2, 16, "subset"),
]
HYBRID_CASES = [
    # as subset-sum cells, and how many columns are of logic cells
    ("int:4", "uint:4", 1, 4, 3, 1, 1, 1, "subset", 1),
    ("int:4", "uint:3", 2, 3, 6, 2, 2, 4, "subset", 2),
    ("int:3", "int:2", 1, 2, 40, 1, 2, 8, "subset", 19),
    ("int:3", "uint:2", 2, 1, 48, 1, 16, 16, "subset", 16),
    ("int:8", "uint:8", 1, 3, 3, 1, 1, 2, "subset", 1),
    ("esb:4,2", "esbu:4,2", 1, 5, 4, 1, 1, 2, "table", 2),
    ("esb:4,2", "esbu:3,2", 2, 3, 6, 2, 2, 2, "table", 4),
    ("esb:3,0", "esbu:2,0", 1, 2, 40, 1, 4, 4, "table", 8),
]


def build(case):
    weights, activations, rows, lanes, columns, planes, weight_columns, *options = case
    cell, logic_columns = "table" if options else "logic", 0
    if len(options) > 1 and isinstance(options[1], str):
        cell, logic_columns = options[1], sum(options[2:])
        options = (options[0], 5, 8)
    fill_columns, weight_bits, product_bits = options or (weight_columns, 5, 8)
    if isinstance(weights, int):
        weights, activations = INT(weights), UINT(activations)
        largest = (1 << product_bits) - 1
    else:
        weights, activations = Format.parse(weights), Format.parse(activations)
        largest = (1 << product_bits) - 1 if cell == "table" else weights.magnitude_max * activations.magnitude_max
    shape = GridShape(
        rows=rows,
        lanes=lanes,
        columns=columns,
        weight_columns=weight_columns,
        planes=planes,
        sum_bits=accumulator_width(rows * lanes, largest),
        fill_columns=fill_columns,
        table_weight_bits=weight_bits,
        table_product_bits=product_bits,
        logic_columns=logic_columns,
    )
    return Grid(weights, activations, shape, cell)


@dataclass
class Tile:
    """Codes of weights ``(columns, vector)`` and activations ``(steps, planes * vector)``, and their levels.

    ``table`` is the level table that tells one from the other, as ``(weight, code, step)``; empty for logic cells.
    """

    weight_codes: np.ndarray
    weights: np.ndarray
    negative: np.ndarray
    codes: np.ndarray
    activations: np.ndarray
    table: tuple = ()


def random_table(rng, case):
    """Levels of weight codes, then distances of activation codes, and both as a level table."""
    bits, activation_bits, *_, weight_bits, product_bits = case
    weights = rng.integers(-(1 << weight_bits), (1 << weight_bits) + 1, LEVEL_CODES)
    weights[0] = 0
    most = ((1 << product_bits) - 1) // max(1, np.abs(weights[: 1 << bits]).max())
    count = 1 << activation_bits
    distances = np.sort(rng.integers(0, min(most, 200) + 1, count))
    order = rng.permutation(count)
    steps = np.diff(distances, prepend=0)
    entries = [
        (int(weights[i]), int(order[i]) if i < count else 0, int(steps[i]) if i < count else 77)
        for i in range(LEVEL_CODES)
    ]
    levels = np.empty(count, dtype=np.int64)
    levels[order] = distances
    return weights[: 1 << bits], levels, tuple(entries)


def native_table(weights, activations):
    """What codes mean to logic cells, as a level table."""
    distances = code_distances(activations)
    order = sorted(range(len(distances)), key=distances.__getitem__)
    steps = np.diff([distances[code] for code in order], prepend=0).tolist()
    levels = [*weights.magnitudes, *(-magnitude for magnitude in weights.magnitudes)]
    padding = LEVEL_CODES - len(order)
    levels += [0] * (LEVEL_CODES - len(levels))
    return tuple(zip(levels, order + [0] * padding, steps + [77] * padding, strict=True))


def random_tile(rng, case, *, extreme):
    weights, activations, rows, lanes, columns, planes, *options = case
    vector, steps = rows * lanes, int(rng.integers(2, 30))
    if isinstance(weights, int):
        levels, distances, entries = random_table(rng, case)
        weight_codes = rng.integers(0, len(levels), (columns, vector))
        codes = rng.integers(0, len(distances), (steps, planes * vector))
        if extreme:
            weight_codes[:] = np.abs(levels).argmax()
            codes[0], codes[1] = distances.argmax(), distances.argmin()
        chosen = levels[weight_codes]
        return Tile(weight_codes, chosen, chosen < 0, codes, distances[codes], entries)
    weights, activations = Format.parse(weights), Format.parse(activations)
    signs = rng.integers(0, 2, (columns, vector))
    magnitudes = rng.integers(0, len(weights.magnitudes), (columns, vector))
    codes = np.vectorize(activations.encode)(rng.choice(activations.levels, (steps, planes * vector)))
    if extreme:
        magnitudes[:] = len(weights.magnitudes) - 1
        codes[0], codes[1] = activations.encode(activations.levels[-1]), activations.encode(activations.levels[0])
    levels = (1 - 2 * signs) * np.array(weights.magnitudes)[magnitudes]
    tables = "table" in options
    if tables:
        # Weight -0 is no negative weight to a table.
        signs, levels = np.where(magnitudes, signs, 0), np.where(magnitudes, levels, 0)
    return Tile(
        signs << weights.bits - 1 | magnitudes,
        levels,
        signs,
        codes,
        np.vectorize(activations.decode)(codes),
        native_table(weights, activations) if tables else (),
    )


def opposite(tile):
    """The same activations with all weights negated; logic cells."""
    bits = int(tile.weight_codes.max()).bit_length()
    return replace(
        tile, weight_codes=tile.weight_codes ^ 1 << bits - 1, weights=-tile.weights, negative=1 - tile.negative
    )


def run_tiles(case, tiles, *, hold=0, lead=0, levels=0):
    """Feed tiles ``hold``, ``lead`` and ``levels`` cycles before they may; what columns and planes gave per step."""
    weights, _, _, _, columns, planes, weight_columns, *_ = case
    grid = build(case)
    bits = weights if isinstance(weights, int) else Format.parse(weights).bits
    swaps = []
    pushes, inputs, entries = {}, {}, {}
    push = lead if not tiles[0].table else LEVEL_CODES + 1 + lead
    swap = 0
    for number, tile in enumerate(tiles):
        for index, entry in enumerate(tile.table):
            entries[push - LEVEL_CODES - 1 + index + levels] = number % 2, index, entry
        for index in range(columns // weight_columns):
            word = [0] * weight_columns
            for position in range(weight_columns):
                for lane, code in enumerate(tile.weight_codes[index * weight_columns + position]):
                    word[position] |= int(code) << bits * lane
            assert push + index not in pushes
            pushes[push + index] = index, word, number % 2
        filling = 0
        if tile.table:
            codes = 1 << len(grid.codes[0])
            filling = fill_steps([step for _, _, step in tile.table[:codes]]) * grid.timing.fill_columns
        swap = max(swap, push + grid.timing.weight_lead_cycles + filling - lead)
        swaps.append(swap)
        inputs |= {swap + step: (step == 0, code.tolist()) for step, code in enumerate(tile.codes)}
        push = max(push + columns // weight_columns, swap + grid.timing.weight_hold_cycles - hold)
        # The other bank of levels takes its entries behind the last word of this one's tile.
        if tile.table:
            push = max(push, max(pushes) + 1 + LEVEL_CODES + 1)
        swap += len(tile.codes)
    total = max(inputs) + max(grid.timing.latency_cycles) + 1
    seen = []

    async def bench(ctx):
        seen.clear()
        for cycle in range(total):
            swap, code = inputs.get(cycle, (0, [0] * len(grid.codes)))
            index, word, bank = pushes.get(cycle, (0, [0] * weight_columns, 0))
            ctx.set(grid.swap, int(swap))
            ctx.set(grid.codes, code)
            ctx.set(grid.weight, {"valid": int(cycle in pushes), "index": index, "word": word})
            if tiles[0].table:
                other, position, entry = entries.get(cycle, (0, 0, (0, 0, 0)))
                ctx.set(grid.level_bank, bank)
                ctx.set(
                    grid.levels,
                    {
                        "valid": int(cycle in entries),
                        "bank": other,
                        "index": position,
                        "entry": dict(zip(("weight", "code", "step"), entry, strict=True)),
                    },
                )
            seen.append([ctx.get(value) for value in grid.sums])
            await ctx.tick()

    sim = Simulator(grid)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    results = []
    for swap, tile in zip(swaps, tiles, strict=True):
        results.append(
            [
                [
                    [seen[step + latency][p * columns + c] for c, latency in enumerate(grid.timing.latency_cycles)]
                    for p in range(planes)
                ]
                for step in range(swap, swap + len(tile.codes))
            ]
        )
    return results


def expected_sums(case, tile):
    """Exact sums less the number of weight sign bits, as (step, plane, column)."""
    planes = case[5]
    activations = tile.activations.reshape(len(tile.activations), planes, -1)
    return np.einsum("spv,cv->spc", activations, tile.weights) - tile.negative.sum(axis=1)


@pytest.mark.parametrize("case", CASES + TABLE_CASES + SUBSET_CASES + HYBRID_CASES, ids=str)
def test_every_sum_is_the_exact_sum_less_the_sign_bits_with_tiles_back_to_back(case):
    rng = np.random.default_rng(1)
    tiles = [random_tile(rng, case, extreme=index == 1) for index in range(4)]
    for tile, result in zip(tiles, run_tiles(case, tiles), strict=True):
        np.testing.assert_array_equal(result, expected_sums(case, tile))


@pytest.mark.parametrize(("columns", "weight_columns"), [(3, 1), (20, 2), (32, 8)])
def test_weights_given_one_cycle_too_early_disturb_the_tile_before(columns, weight_columns):
    case = ("esb:4,2", "esbu:3,2", 2, 4, columns, 1, weight_columns)
    rng = np.random.default_rng(2)
    tiles = [random_tile(rng, case, extreme=False) for _ in range(2)]
    tiles[1] = opposite(tiles[0])
    results = run_tiles(case, tiles, hold=1)
    assert not np.array_equal(results[0], expected_sums(case, tiles[0]))
    assert np.array_equal(run_tiles(case, tiles)[0], expected_sums(case, tiles[0]))


@pytest.mark.parametrize(("columns", "weight_columns"), [(1, 1), (20, 1), (20, 2), (32, 8)])
def test_a_swap_one_cycle_too_early_misses_weights(columns, weight_columns):
    case = ("esb:4,2", "esbu:3,2", 1, 4, columns, 1, weight_columns)
    rng = np.random.default_rng(3)
    tile = random_tile(rng, case, extreme=True)
    assert np.array_equal(run_tiles(case, [tile])[0], expected_sums(case, tile))
    assert not np.array_equal(run_tiles(case, [tile], lead=1)[0], expected_sums(case, tile))


@pytest.mark.parametrize(
    "geometry", [(1, 4, 1, 1, 1, 1), (2, 1, 24, 1, 2, 8), (1, 4, 40, 1, 8, 8), (3, 2, 8, 2, 1, 4)], ids=str
)
def test_a_swap_one_cycle_too_early_finds_a_table_that_is_not_full(geometry):
    case = (4, 4, *geometry, 5, 8)
    tile = random_tile(np.random.default_rng(4), case, extreme=True)
    # The code that is written last meets the tables first.
    tile.codes[0], tile.activations[0] = tile.table[15][1], tile.activations.max()
    assert np.array_equal(run_tiles(case, [tile])[0], expected_sums(case, tile))
    assert not np.array_equal(run_tiles(case, [tile], lead=1)[0], expected_sums(case, tile))


@pytest.mark.parametrize("geometry", [(1, 4, 1, 1, 1, 1), (2, 5, 12, 1, 2, 8)], ids=str)
def test_a_swap_one_cycle_too_early_misses_the_last_subset(geometry):
    """The last of the Gray code is the fourth weight alone."""
    case = ("int:4", "uint:3", *geometry, "subset")
    tile = random_tile(np.random.default_rng(6), case, extreme=True)
    tile.codes[:] = tile.activations[:] = np.arange(tile.codes.shape[1]) % 4 == 3
    assert np.array_equal(run_tiles(case, [tile])[0], expected_sums(case, tile))
    assert not np.array_equal(run_tiles(case, [tile], lead=1)[0], expected_sums(case, tile))


@pytest.mark.parametrize(("columns", "weight_columns"), [(12, 1), (48, 16)])
def test_tables_filled_one_cycle_too_early_disturb_the_tile_before(columns, weight_columns):
    """Few levels and lanes: what the hold waits for are the tables themselves."""
    case = (3, 2, 3, 1, columns, 1, weight_columns, 16, 2, 5)
    rng = np.random.default_rng(5)
    tiles = [random_tile(rng, case, extreme=False) for _ in range(2)]
    results = run_tiles(case, tiles, hold=build(case).timing.weight_hold_cycles)
    assert not np.array_equal(results[0], expected_sums(case, tiles[0]))


@pytest.mark.parametrize("case", [(4, 4, 1, 4, 4, 1, 1, 4, 5, 8), (4, 2, 2, 1, 8, 1, 2, 2, 8, 12)], ids=str)
def test_a_level_table_one_cycle_too_late_misses_the_first_weights(case):
    tile = random_tile(np.random.default_rng(6), case, extreme=False)
    level = tile.table[-1][0]
    assert level, "what the missing entry would count"
    tile.weight_codes[0], tile.weights[0], tile.negative[0] = LEVEL_CODES - 1, level, level < 0
    assert np.array_equal(run_tiles(case, [tile])[0], expected_sums(case, tile))
    assert not np.array_equal(run_tiles(case, [tile], levels=1)[0], expected_sums(case, tile))


@pytest.mark.slow
def test_words_of_the_second_next_tile_wait_for_generators_of_far_columns():
    """Words of eight columns are there long before activations, by which the last generators start."""
    case = (2, 2, 1, 1, 144, 1, 8, 8, 1, 1)
    rng = np.random.default_rng(1)
    tiles = [random_tile(rng, case, extreme=False) for _ in range(4)]
    tiles = [replace(tile, codes=tile.codes[:2], activations=tile.activations[:2]) for tile in tiles]
    for tile, result in zip(tiles, run_tiles(case, tiles), strict=True):
        np.testing.assert_array_equal(result, expected_sums(case, tile))
