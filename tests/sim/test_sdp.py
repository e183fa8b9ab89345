"""SDP-1: selection of term parts, tokens, the array of masked cells and its cycles."""

from itertools import product

import numpy as np
import pytest
from sigbit_hw.spec.masks import MaskError, Policy, TermMask
from sigbit_sim.golden.numerics import NumericsError
from sigbit_sim.golden.sdp import (
    W1P_LEVELS,
    Token,
    keep_masked,
    layer_cycles,
    masked_levels,
    record_bits,
    run_tile,
    select,
    select_by_radix,
    select_by_rank,
    single_part,
    tile_cycles,
    tokens,
)

MIXED = (200, 3, 31, 96, 0, 255, 24, 47)
MIXED_WEIGHTS = np.array((-128, 5, 77, -3, 127, 1, -20, 64))


def bits(mask):
    return sum(int(bit) << index for index, bit in enumerate(mask))


def masks_of(values, budget, policy=Policy.NIB):
    return tuple(map(bits, select(np.abs(values), budget, policy)))


def values_of(values, budget, policy=Policy.NIB):
    return keep_masked(values, *select(np.abs(values), budget, policy)).tolist()


def tie_heavy(rng, shape):
    """Magnitudes with many zero and many equal nibbles."""
    return rng.choice([0, 1, 3, 15, 16, 17, 32, 48, 49, 128, 240, 255], shape)


@pytest.mark.parametrize("group", [4, 8, 16])
@pytest.mark.parametrize("policy", Policy)
def test_the_whole_budget_keeps_every_value(group, policy):
    rng = np.random.default_rng(1)
    for low, high in ((0, 256), (-128, 128)):
        levels = rng.integers(low, high, (50, group))
        np.testing.assert_array_equal(values_of(levels, 2 * group, policy), levels)


SINGLE = [
    ([17] * 8, 3, 0x07, 0x00, [16, 16, 16, 0, 0, 0, 0, 0]),
    ([17] * 8, 8, 0xFF, 0x00, [16] * 8),
    ([17] * 8, 9, 0xFF, 0x01, [17] + [16] * 7),
    ([15, 16, 0, 0, 0, 0, 0, 0], 1, 0x02, 0x00, [0, 16, 0, 0, 0, 0, 0, 0]),
    ([15, 16, 0, 0, 0, 0, 0, 0], 2, 0x02, 0x01, [15, 16, 0, 0, 0, 0, 0, 0]),
    ([0] * 8, 1, 0x00, 0x00, [0] * 8),
    ([0] * 8, 16, 0x00, 0x00, [0] * 8),
    ([255] * 8, 8, 0xFF, 0x00, [240] * 8),
    ([255] * 8, 12, 0xFF, 0x0F, [255] * 4 + [240] * 4),
    ([16] * 8, 12, 0xFF, 0x00, [16] * 8),
]


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize(("magnitudes", "budget", "high", "low", "values"), SINGLE)
def test_pinned_single_groups(magnitudes, budget, high, low, values, policy):
    assert masks_of(magnitudes, budget, policy) == (high, low)
    assert values_of(magnitudes, budget, policy) == values


@pytest.mark.parametrize(
    ("budget", "high", "low", "values", "term"),
    [
        (1, 0x20, 0x00, [0, 0, 0, 0, 0, 240, 0, 0], (0x20, 0x00, 240)),
        (2, 0x21, 0x00, [192, 0, 0, 0, 0, 240, 0, 0], (0x21, 0x00, 432)),
        (4, 0xA9, 0x00, [192, 0, 0, 96, 0, 240, 0, 32], (0xA9, 0x00, 560)),
        (6, 0xED, 0x00, [192, 0, 16, 96, 0, 240, 16, 32], (0xED, 0x00, 592)),
        (8, 0xED, 0x24, [192, 0, 31, 96, 0, 255, 16, 32], (0xED, 0x22, 610)),
        (12, 0xED, 0xE7, [200, 3, 31, 96, 0, 255, 24, 47], (0xED, 0xE7, 656)),
    ],
)
def test_pinned_mixed_group(budget, high, low, values, term):
    for policy in (Policy.NIB, Policy.MAG):
        assert masks_of(MIXED, budget, policy) == (high, low)
        assert values_of(MIXED, budget, policy) == values
    assert masks_of(MIXED, budget, Policy.TERM) == term[:2]
    assert sum(values_of(MIXED, budget, Policy.TERM)) == term[2]


@pytest.mark.parametrize(
    ("budget", "nib", "others"), [(1, (1, 0), (2, 0)), (2, (3, 0), (6, 0)), (5, (0xF, 2), (0xF, 2))]
)
def test_pinned_group_that_tells_policies_apart(budget, nib, others):
    magnitudes = (24, 31, 30, 16)
    assert masks_of(magnitudes, budget, Policy.NIB) == nib
    assert masks_of(magnitudes, budget, Policy.MAG) == masks_of(magnitudes, budget, Policy.TERM) == others


@pytest.mark.parametrize(
    ("budget", "high", "low", "values"),
    [
        (1, 0x01, 0x00, [-128, 0, 0, 0, 0, 0, 0, 0]),
        (3, 0x83, 0x00, [-128, 112, 0, 0, 0, 0, 0, 64]),
        (4, 0x93, 0x00, [-128, 112, 0, 0, -16, 0, 0, 64]),
        (8, 0xD3, 0x26, [-128, 127, -1, 0, -16, 5, -16, 64]),
        (16, 0xD3, 0x66, [-128, 127, -1, 0, -16, 5, -17, 64]),
    ],
)
def test_pinned_signed_group(budget, high, low, values):
    levels = np.array((-128, 127, -1, 0, -16, 5, -17, 64))
    assert masks_of(levels, budget) == (high, low)
    assert values_of(levels, budget) == values


@pytest.mark.parametrize(
    ("budget", "lanes", "expected", "dot"),
    [
        (6, 2, [[(0, 1, 12), (2, 1, 1)], [(3, 1, 6), (5, 1, 15)], [(6, 1, 1), (7, 1, 2)]], -21664),
        (5, 2, [[(0, 1, 12), (2, 1, 1)], [(3, 1, 6), (5, 1, 15)], [(7, 1, 2), None]], -21344),
        (
            8,
            1,
            [[t] for t in [(0, 1, 12), (2, 1, 1), (2, 0, 15), (3, 1, 6), (5, 1, 15), (5, 0, 15), (6, 1, 1), (7, 1, 2)]],
            -20494,
        ),
    ],
)
def test_pinned_tokens(budget, lanes, expected, dot):
    masks = select(MIXED, budget)
    found = tokens(MIXED, *masks, budget, lanes)
    assert found == [[None if t is None else Token(*t) for t in beat] for beat in expected]
    assert (keep_masked(MIXED, *masks) * MIXED_WEIGHTS).sum() == dot
    sums, _, _ = run_tile(MIXED_WEIGHTS.reshape(1, 8, 1), np.reshape(MIXED, (1, 1, 8)), budget, lanes)
    assert sums.tolist() == [[dot]]


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_the_whole_budget_gives_the_pinned_exact_dot_product(lanes):
    sums, cycles, _ = run_tile(MIXED_WEIGHTS.reshape(1, 8, 1), np.reshape(MIXED, (1, 1, 8)), 16, lanes)
    assert (sums.tolist(), cycles) == ([[-20703]], 16 // lanes)


def test_pinned_cycles_of_tiles():
    assert tile_cycles(3, 4, 2, 2, 1) == 7
    assert tile_cycles(49, 8, 2, 8, 16) == 218


@pytest.mark.parametrize(
    ("reduction", "outputs", "positions", "cycles"),
    [
        (576, 64, 3136, {16: 904032, 8: 452448, 6: 339552, 4: 226656, 2: 113760}),
        (4608, 512, 49, {16: 958464, 8: 506880, 6: 393984, 4: 281088, 2: 202752}),
    ],
)
def test_pinned_cycles_of_layers(reduction, outputs, positions, cycles):
    found = {
        budget: layer_cycles(reduction, outputs, positions, budget, 2, group=8, rows=8, columns=16, mask_cycles=2)
        for budget in cycles
    }
    assert found == cycles


def test_pinned_single_part_weights():
    weights = [7, 15, 20, 24, -24, 25, -25, 40, -40, 119, 120, -120, 127, -128]
    assert single_part(weights).tolist() == [7, 15, 16, 32, -16, 32, -32, 48, -32, 112, 128, -112, 128, -128]
    assert len(W1P_LEVELS) == 47
    everything = np.arange(-128, 128)
    assert np.abs(single_part(everything) - everything).max() == 8


@pytest.mark.parametrize("group", [4, 8, 16])
@pytest.mark.parametrize("policy", [Policy.NIB, Policy.MAG])
def test_sort_rank_and_radix_give_the_same_masks_and_the_promised_number_of_parts(group, policy):
    rng = np.random.default_rng(group)
    magnitudes = np.concatenate([rng.integers(0, 256, (150, group)), tie_heavy(rng, (250, group))])
    parts = (magnitudes >> 4 > 0).sum(axis=1) + (magnitudes & 15 > 0).sum(axis=1)
    for budget in range(1, 2 * group + 1):
        sort, rank, radix = (form(magnitudes, budget, policy) for form in (select, select_by_rank, select_by_radix))
        for found in (rank, radix):
            np.testing.assert_array_equal(found, sort)
        np.testing.assert_array_equal(np.sum(sort, axis=(0, 2)), np.minimum(budget, parts))


def test_mag_has_the_least_squared_error_of_all_choices():
    rng = np.random.default_rng(2)
    groups = np.concatenate([rng.integers(0, 256, (60, 4)), tie_heavy(rng, (60, 4))])
    choices = np.array(list(product([0, 1], repeat=8)))
    kept = 16 * (groups >> 4)[:, np.newaxis] * choices[:, :4] + (groups & 15)[:, np.newaxis] * choices[:, 4:]
    errors = ((groups[:, np.newaxis] - kept) ** 2).sum(axis=2)
    for budget in range(1, 9):
        best = errors[:, choices.sum(axis=1) <= budget].min(axis=1)
        found = ((groups - values_of(groups, budget, Policy.MAG)) ** 2).sum(axis=1)
        np.testing.assert_array_equal(found, best)


@pytest.mark.parametrize(
    ("group", "rows", "columns", "positions"), [(4, 1, 1, 3), (4, 3, 2, 1), (8, 2, 3, 4), (16, 2, 1, 2)]
)
@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_the_array_gives_exact_sums_in_the_cycles_of_the_formula(group, rows, columns, positions, lanes):
    rng = np.random.default_rng(3)
    weights = rng.integers(-128, 128, (rows, group, columns))
    for low, high in ((0, 256), (-128, 128)):
        levels = rng.integers(low, high, (positions, rows, group)) * (rng.random((positions, rows, group)) < 0.7)
        for budget in (1, 2, group - 1, group, 2 * group):
            kept = keep_masked(levels, *select(np.abs(levels), budget))
            sums, cycles, counters = run_tile(weights, levels, budget, lanes)
            np.testing.assert_array_equal(sums, np.einsum("xrg,rgc->xc", kept, weights))
            assert cycles == tile_cycles(positions, budget, lanes, rows, columns)
            assert counters["beats"] == positions * rows * -(-budget // lanes)


def test_channels_are_grouped_at_every_pixel_and_the_last_group_is_padded():
    rng = np.random.default_rng(4)
    levels = rng.integers(0, 256, (2, 6, 3, 2))
    found = masked_levels(levels, TermMask(4, 3))
    for n, y, x in np.ndindex(2, 3, 2):
        column = [*levels[n, :, y, x].tolist(), 0, 0]
        expected = values_of(column[:4], 3) + values_of(column[4:], 3)
        assert found[n, :, y, x].tolist() == expected[:6]


def test_records_have_the_pinned_size():
    assert [record_bits(8, budget, False) for budget in (2, 4, 6, 8)] == [24, 32, 40, 48]
    assert record_bits(8, 8, True) == 56


def test_masks_are_text_and_wrong_ones_say_what_is_expected():
    mask = TermMask(8, 6, Policy.MAG)
    assert str(mask) == "sdp:8,6,mag"
    assert TermMask.parse(str(mask)) == mask
    assert TermMask.parse("SDP:16,32") == TermMask(16, 32)
    assert (mask.average_bits, mask.exact, TermMask(8, 16).exact) == (3.0, False, True)
    for text, message in (
        ("sdp:8", "not a term mask"),
        ("int:8,6", "not a term mask"),
        ("sdp:8,six", "not a term mask"),
        ("sdp:8,6,big", "nib, mag, term"),
        ("sdp:6,6", "group must be 4, 8, 16"),
        ("sdp:8,17", "budget must be 1 to 16"),
        ("sdp:8,0", "budget must be 1 to 16"),
    ):
        with pytest.raises(MaskError, match=message):
            TermMask.parse(text)
    with pytest.raises(MaskError, match="Policy"):
        TermMask(8, 6, 1)


def test_values_beyond_8_bits_are_refused():
    with pytest.raises(NumericsError, match="0 to 255"):
        select([256, 0, 0, 0], 1)
    high = np.ones(4, dtype=bool)
    with pytest.raises(NumericsError, match="do not fit"):
        tokens([17] * 4, high, high, 2, 1)
