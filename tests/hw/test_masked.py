"""The grid of masked cells against the golden selection: sums, timing of weights and results, cycles of a tile."""

import numpy as np
import pytest
from amaranth.sim import Simulator
from sigbit_hw.array.columns import GridShape
from sigbit_hw.array.masked import MaskedGrid
from sigbit_hw.spec.config import accumulator_width
from sigbit_hw.spec.formats import INT, UINT
from sigbit_hw.spec.masks import Policy
from sigbit_sim.golden.sdp import keep_masked, run_tile, select, tile_cycles

CASES = [
    # group, rows, columns, weight columns, planes, token lanes
    (4, 2, 8, 1, 1, 1),
    (4, 1, 8, 2, 2, 2),
    (4, 3, 16, 4, 1, 4),
    (8, 1, 8, 1, 1, 2),
    pytest.param((8, 2, 32, 2, 2, 2), marks=pytest.mark.slow),
    pytest.param((16, 1, 16, 1, 1, 4), marks=pytest.mark.slow),
    pytest.param((4, 2, 64, 4, 1, 1), marks=pytest.mark.slow),
]


def shape(case):
    group, rows, columns, weight_columns, planes, token_lanes = case
    return GridShape(
        rows=rows,
        lanes=group,
        columns=columns,
        weight_columns=weight_columns,
        planes=planes,
        sum_bits=accumulator_width(rows * group, 128 * 255),
        fill_columns=8,
        token_lanes=token_lanes,
    )


def random_tile(rng, case, *, budget, policy, zero, steps):
    group, rows, columns, _, planes, _ = case
    codes = rng.choice([0, 1, 15, 16, 17, 127, 128, 129, 255, *range(256)], (steps, planes, rows, group))
    return {
        "weights": rng.integers(-128, 128, (rows, group, columns)),
        "codes": codes,
        "budget": budget,
        "policy": policy,
        "zero": zero,
    }


def expected_sums(tile):
    """As (step, plane, column)."""
    values = tile["codes"] - tile["zero"]
    kept = keep_masked(values, *select(np.abs(values), tile["budget"], tile["policy"]))
    return np.einsum("sprg,rgc->spc", kept, tile["weights"])


def valid_tokens(tile):
    masks = select(np.abs(tile["codes"] - tile["zero"]), tile["budget"], tile["policy"])
    return sum(int(mask[:, :, tile["weights"].any(axis=(1, 2))].sum()) for mask in masks)


def weight_words(case, weights):
    """Words of a tile, each an integer per ``weight_columns``."""
    group, _, columns, weight_columns, _, _ = case
    words = []
    for first in range(0, columns, weight_columns * group):
        for position in range(group):
            codes = weights[:, position, first : first + weight_columns * group].T.reshape(weight_columns, -1) & 255
            words.append([sum(int(code) << 8 * i for i, code in enumerate(part)) for part in codes])
    return words


def run_tiles(case, tiles, *, hold=0, lead=0, counts=None):
    """Feed tiles ``hold`` and ``lead`` cycles before they may; sums of every step. ``counts`` gets their tokens."""
    _, _, columns, weight_columns, planes, token_lanes = case
    grid = MaskedGrid(INT(8), UINT(8), shape(case))
    pushes, inputs, reads, spans = {}, {}, [], []
    push, swap = lead, 0
    for tile in tiles:
        words = weight_words(case, tile["weights"])
        pushes |= {push + index: (index, word) for index, word in enumerate(words)}
        swap = max(swap, push + grid.timing.weight_lead_cycles - lead)
        beats = -(-tile["budget"] // token_lanes)
        mask = {
            "budget": tile["budget"],
            "magnitude_keys": int(tile["policy"] == Policy.MAG),
            "zero": tile["zero"],
        }
        steps = []
        for step, codes in enumerate(tile["codes"]):
            inputs[swap + step * beats] = (step == 0, codes.reshape(-1).tolist(), mask)
            steps.append(swap + (step + 1) * beats - 1 + grid.timing.latency_cycles[0])
        reads.append(steps)
        push = max(push + len(words), swap + grid.timing.weight_hold_cycles - hold)
        spans.append(slice(swap, swap + len(tile["codes"]) * beats))
        swap += len(tile["codes"]) * beats
    seen, tokens = [], []

    async def bench(ctx):
        idle = False, [0] * len(grid.codes), dict.fromkeys(("budget", "magnitude_keys", "zero"), 0)
        for cycle in range(reads[-1][-1] + columns + 1):
            first, codes, mask = inputs.get(cycle, idle)
            index, word = pushes.get(cycle, (0, [0] * weight_columns))
            ctx.set(grid.start, int(cycle in inputs))
            ctx.set(grid.swap, int(first))
            ctx.set(grid.codes, codes)
            ctx.set(grid.mask, mask)
            ctx.set(grid.weight, {"valid": int(cycle in pushes), "index": index, "word": word})
            seen.append([ctx.get(value) for value in grid.sums])
            tokens.append(ctx.get(grid.valid_tokens))
            await ctx.tick()

    sim = Simulator(grid)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    if counts is not None:
        counts += [sum(tokens[grid.valid_tokens_cycles :][span]) for span in spans]
    return [
        np.array([[[seen[time + c][p * columns + c] for c in range(columns)] for p in range(planes)] for time in steps])
        for steps in reads
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_sum_is_the_golden_one_with_tiles_of_any_budget_back_to_back(case):
    rng = np.random.default_rng(1)
    group = case[0]
    settings = [
        (group, Policy.NIB, 0), (1, Policy.MAG, 128), (2 * group, Policy.NIB, 0), (3, Policy.NIB, 128),
        (group + 1, Policy.MAG, 0),
    ]  # fmt: skip
    tiles = [
        random_tile(rng, case, budget=budget, policy=policy, zero=zero, steps=int(rng.integers(1, 9)))
        for budget, policy, zero in settings
    ]
    # Rows without weights have no tokens.
    tiles[1]["weights"][0] = tiles[3]["weights"][-1] = 0
    counts = []
    for tile, result in zip(tiles, run_tiles(case, tiles, counts=counts), strict=True):
        np.testing.assert_array_equal(result, expected_sums(tile))
    assert counts == [valid_tokens(tile) for tile in tiles]


def only_position(tile, position):
    """The same tile with activations at one position of every group only."""
    codes = np.zeros_like(tile["codes"])
    codes[..., position] = 255
    return {**tile, "codes": codes}


#: The column that is loaded first against the swap, and last: with one and with several columns per word.
TIMED = [(4, 2, 8, 1, 1, 1), (4, 1, 16, 4, 1, 1), (4, 1, 24, 1, 1, 1)]


@pytest.mark.parametrize("case", TIMED, ids=str)
def test_weights_given_one_cycle_too_early_disturb_the_last_tile_with_their_bank(case):
    rng = np.random.default_rng(2)
    tiles = [random_tile(rng, case, budget=1, policy=Policy.NIB, zero=0, steps=steps) for steps in (40, 1, 1)]
    tiles[0] = only_position(tiles[0], 0)
    assert np.array_equal(run_tiles(case, tiles)[0], expected_sums(tiles[0]))
    assert not np.array_equal(run_tiles(case, tiles, hold=1)[0], expected_sums(tiles[0]))


@pytest.mark.parametrize("case", [(8, 1, 8, 1, 1, 1)], ids=str)
def test_a_swap_one_cycle_too_early_misses_weights(case):
    rng = np.random.default_rng(3)
    tile = only_position(random_tile(rng, case, budget=1, policy=Policy.NIB, zero=0, steps=1), case[0] - 1)
    assert np.array_equal(run_tiles(case, [tile])[0], expected_sums(tile))
    assert not np.array_equal(run_tiles(case, [tile], lead=1)[0], expected_sums(tile))


@pytest.mark.parametrize("budget", [1, 4, 7])
def test_a_tile_takes_the_cycles_of_the_golden_array(budget):
    case = (4, 2, 4, 1, 1, 2)
    rng = np.random.default_rng(4)
    tile = random_tile(rng, case, budget=budget, policy=Policy.NIB, zero=0, steps=5)
    sums, cycles, _ = run_tile(tile["weights"], tile["codes"][:, 0], budget, 2)
    np.testing.assert_array_equal(run_tiles(case, [tile])[0][:, 0], sums)
    grid = MaskedGrid(INT(8), UINT(8), shape(case))
    # Both: first token at the first cell to the last sum at the last column, which a cell delays by its pipeline.
    measured = 5 * -(-budget // 2) - 1 + (grid.timing.latency_cycles[0] - grid.timing.edge_cycles) + (4 - 1)
    pipeline = grid.timing.latency_cycles[0] - grid.timing.edge_cycles - (2 - 1) - 1
    assert measured - pipeline == cycles == tile_cycles(5, budget, 2, 2, 4)
