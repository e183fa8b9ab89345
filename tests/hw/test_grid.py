"""The grid against integers: sums, the constant of the signs, timing of weights and results."""

import numpy as np
import pytest
from amaranth.sim import Simulator
from sigbit_hw.array.grid import Grid, GridShape
from sigbit_hw.array.table import TableGrid
from sigbit_hw.spec.config import accumulator_width
from sigbit_hw.spec.formats import Format

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
    # as above, and columns per generator
    ("esb:4,2", "esbu:4,2", 1, 4, 3, 1, 1, 1),
    ("esb:4,2", "esbu:4,2", 2, 4, 4, 2, 2, 4),
    ("esb:4,1", "esbu:3,1", 2, 5, 2, 1, 1, 2),
    ("esb:4,2", "esb:4,2", 2, 3, 2, 1, 2, 2),
    ("int:4", "int:4", 2, 2, 18, 1, 1, 8),
    ("int:4", "uint:4", 1, 9, 6, 1, 2, 4),
    ("esb:2,0", "esbu:4,1", 1, 3, 5, 1, 1, 4),
    ("esb:3,0", "esbu:2,0", 1, 2, 40, 1, 1, 16),
    ("esb:3,0", "esbu:2,0", 3, 1, 40, 1, 2, 2),
    ("esb:3,0", "esbu:2,0", 2, 1, 48, 2, 16, 16),
]


def build(case):
    weights, activations, rows, lanes, columns, planes, weight_columns, *fill_columns = case
    weights, activations = Format.parse(weights), Format.parse(activations)
    shape = GridShape(
        rows=rows,
        lanes=lanes,
        columns=columns,
        weight_columns=weight_columns,
        planes=planes,
        sum_bits=accumulator_width(rows * lanes, weights.magnitude_max * activations.magnitude_max),
        fill_columns=fill_columns[0] if fill_columns else weight_columns,
    )
    return (TableGrid if fill_columns else Grid)(weights, activations, shape)


def random_tile(rng, case, *, extreme):
    """Sign-magnitude weight codes, their levels, and activation codes of one tile with their levels."""
    weights, activations, rows, lanes, columns, planes, *_ = case
    weights, activations = Format.parse(weights), Format.parse(activations)
    vector = rows * lanes
    signs = rng.integers(0, 2, (columns, vector))
    magnitudes = rng.integers(0, len(weights.magnitudes), (columns, vector))
    steps = int(rng.integers(2, 30))
    chosen = rng.choice(activations.levels, (steps, planes * vector))
    codes = [[activations.encode(int(level)) for level in row] for row in chosen]
    if extreme:
        magnitudes[:] = len(weights.magnitudes) - 1
        codes[0] = [activations.encode(activations.levels[-1])] * (planes * vector)
        codes[1] = [activations.encode(activations.levels[0])] * (planes * vector)
    levels = (1 - 2 * signs) * np.array(weights.magnitudes)[magnitudes]
    return signs, magnitudes, levels, codes, np.array([[activations.decode(c) for c in row] for row in codes])


def run_tiles(case, tiles, *, hold=0, lead=0):
    """Feed tiles ``hold`` and ``lead`` cycles before they may; what every column and plane gave for every step."""
    weights, _, _, _, columns, planes, weight_columns, *_ = case
    grid = build(case)
    bits = Format.parse(weights).bits
    swaps = []
    pushes, inputs = {}, {}
    push, swap = lead, 0
    for signs, magnitudes, _, codes, _ in tiles:
        for index in range(columns // weight_columns):
            word = [0] * weight_columns
            for position in range(weight_columns):
                column = index * weight_columns + position
                for lane, (s, t) in enumerate(zip(signs[column], magnitudes[column], strict=True)):
                    word[position] |= (int(s) << bits - 1 | int(t)) << bits * lane
            assert push + index not in pushes
            pushes[push + index] = index, word
        swap = max(swap, push + grid.timing.weight_lead_cycles - lead)
        swaps.append(swap)
        inputs |= {swap + step: (step == 0, code) for step, code in enumerate(codes)}
        push = max(push + columns // weight_columns, swap + grid.timing.weight_hold_cycles - hold)
        swap += len(codes)
    total = max(inputs) + grid.timing.latency_cycles + columns + 1
    seen = []

    async def bench(ctx):
        for cycle in range(total):
            swap, code = inputs.get(cycle, (0, [0] * len(grid.codes)))
            index, word = pushes.get(cycle, (0, [0] * weight_columns))
            ctx.set(grid.swap, int(swap))
            ctx.set(grid.codes, code)
            ctx.set(grid.weight, {"valid": int(cycle in pushes), "index": index, "word": word})
            seen.append([ctx.get(value) for value in grid.sums])
            await ctx.tick()

    sim = Simulator(grid)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    results = []
    for swap, tile in zip(swaps, tiles, strict=True):
        steps = range(swap + grid.timing.latency_cycles, swap + grid.timing.latency_cycles + len(tile[3]))
        results.append(
            [[[seen[step + c][p * columns + c] for c in range(columns)] for p in range(planes)] for step in steps]
        )
    return results


def expected_sums(case, tile):
    """Exact sums less the number of weight sign bits, as (step, plane, column)."""
    planes = case[5]
    signs, _, levels, _, activations = tile
    activations = activations.reshape(len(activations), planes, -1)
    return np.einsum("spv,cv->spc", activations, levels) - signs.sum(axis=1)


@pytest.mark.parametrize("case", CASES + TABLE_CASES, ids=str)
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
    signs, magnitudes, levels, *activations = tiles[0]
    tiles[1] = (1 - signs, magnitudes, -levels, *activations)
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
    "geometry", [(1, 4, 1, 1, 1, 1), (2, 1, 20, 1, 2, 8), (1, 4, 40, 1, 8, 8), (3, 2, 6, 2, 1, 4)], ids=str
)
def test_a_swap_one_cycle_too_early_finds_a_table_that_is_not_full(geometry):
    case = ("esb:4,2", "esbu:4,2", *geometry)
    tile = random_tile(np.random.default_rng(4), case, extreme=True)
    assert np.array_equal(run_tiles(case, [tile])[0], expected_sums(case, tile))
    assert not np.array_equal(run_tiles(case, [tile], lead=1)[0], expected_sums(case, tile))


@pytest.mark.parametrize(("columns", "weight_columns"), [(12, 1), (48, 16)])
def test_tables_filled_one_cycle_too_early_disturb_the_tile_before(columns, weight_columns):
    """Few levels and lanes: what the hold waits for are the tables themselves."""
    case = ("esb:3,0", "esbu:2,0", 3, 1, columns, 1, weight_columns, 16)
    rng = np.random.default_rng(5)
    tiles = [random_tile(rng, case, extreme=False) for _ in range(2)]
    results = run_tiles(case, tiles, hold=build(case).timing.weight_hold_cycles)
    assert not np.array_equal(results[0], expected_sums(case, tiles[0]))
