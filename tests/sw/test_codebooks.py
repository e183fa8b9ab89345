"""The level search: pinned optima, brute force, k-means with snapping, constraints, units, and weights of layers."""

from itertools import combinations

import numpy as np
import pytest
from sigbit.codebooks import CodebookError, fit_weights, project_weights, search_codebook, search_levels
from sigbit_hw.spec.formats import INT, NUUQ, NUUQU
from sigbit_sim.golden.numerics import project

PINNED = [-23, -19, -18, -9, -8, -7, -6, -2, -1, 0, 0, 1, 2, 3, 5, 6, 7, 11, 12, 21]


def squared_error(values, levels):
    distances = np.abs(np.subtract.outer(np.asarray(values, dtype=float), levels))
    return (distances.min(axis=1) ** 2).sum()


@pytest.mark.parametrize(
    ("format", "levels", "error"),
    [
        (NUUQ(3, 6), (-20, -2, 10), 375),
        (NUUQ(3, 4), (-7, 0, 7), 788),
        (NUUQ(4, 4), (-7, -1, 2, 7), 774),
        (NUUQ(4, 6), (-20, -8, 2, 15), 166),
        (NUUQ(5, 6), (-20, -8, 0, 8, 21), 78),
    ],
    ids=lambda value: getattr(value, "label", None),
)
def test_pinned_levels(format, levels, error):
    found = search_levels(PINNED, format)
    assert (found.format.codebook, found.error, found.unit) == (levels, error, 1.0)


def admissible(format, zero=False, symmetric=False):
    low, high = format.level_range
    for levels in combinations(range(low, high + 1), format.level_count):
        if zero and 0 not in levels:
            continue
        if symmetric and levels != tuple(-level for level in reversed(levels)):
            continue
        yield levels


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("format", "constraints"),
    [
        (NUUQ(3, 4), {}),
        (NUUQ(4, 4), {}),
        (NUUQ(4, 4), {"zero": True}),
        (NUUQ(5, 4), {"symmetric": True}),
        (NUUQ(4, 4), {"symmetric": True}),
        (NUUQU(4, 4), {}),
        (NUUQU(3, 4), {"zero": True}),
        (NUUQ(7, 3), {}),
    ],
    ids=str,
)
def test_search_equals_brute_force(format, constraints, seed):
    rng = np.random.default_rng(seed)
    # Away from zero for some seeds, so that constraints cost something.
    values = rng.integers(-9, 10, 25) + 4 * (seed % 2)
    found = search_levels(values, format, **constraints)
    carried = values if format.signed else np.maximum(values, 0)
    best = min(squared_error(carried, levels) for levels in admissible(format, **constraints))
    assert found.error == best == squared_error(carried, found.format.codebook)
    assert found.format.codebook in set(admissible(format, **constraints))


def test_counts_stand_for_repeated_values():
    values = np.array([-9.0, 2.0, 5.0, 5.5])
    counts = np.array([3, 1, 4, 2])
    repeated = np.repeat(values, counts)
    assert search_codebook(values, NUUQ(3, 4), counts=counts) == search_codebook(repeated, NUUQ(3, 4))


def k_means(values, count):
    """Lloyd's algorithm from quantiles."""
    centres = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(100):
        nearest = np.abs(np.subtract.outer(values, centres)).argmin(axis=1)
        centres = np.array([values[nearest == i].mean() if (nearest == i).any() else centres[i] for i in range(count)])
    return np.sort(centres)


@pytest.mark.parametrize("count", [3, 4, 6, 8])
@pytest.mark.parametrize("seed", range(3))
def test_search_is_never_worse_than_k_means_and_snapping(count, seed):
    values = np.random.default_rng(seed).laplace(size=400)
    format = NUUQ(count, 5)
    found = search_codebook(values, format)
    best_snapped = np.inf
    for full_scale in np.arange(10, 81) / 10:
        unit = full_scale * np.sqrt(np.mean(values**2)) / 15
        snapped = np.unique(np.clip(np.round(k_means(values, count) / unit), -15, 15))
        best_snapped = min(best_snapped, squared_error(values, snapped * unit))
    assert found.error <= best_snapped * (1 + 1e-9)
    np.testing.assert_allclose(found.error, squared_error(values, np.array(found.format.levels) * found.unit))


@pytest.mark.parametrize(
    ("density", "format", "levels", "decibels"),
    [
        (lambda x: np.exp(-(x**2) / 2), NUUQ(4, 5), (-10, -3, 3, 10), 9.30),
        (lambda x: np.exp(-np.abs(x) * 2**0.5), NUUQ(8, 5), (-15, -8, -4, -1, 1, 4, 8, 15), 12.61),
    ],
    ids=["normal", "Laplace"],
)
def test_levels_of_known_densities(density, format, levels, decibels):
    x = np.linspace(-12, 12, 24001)
    found = search_codebook(x, format, counts=density(x))
    assert found.format.codebook == levels
    assert 10 * np.log10(np.dot(density(x), x * x) / found.error) == pytest.approx(decibels, abs=0.01)


@pytest.mark.parametrize("count", [3, 4, 5, 6, 8, 16])
def test_two_bits_more_than_an_index_come_close_to_free_levels(count):
    x = np.linspace(-10, 10, 20001)
    weights = np.exp(-(x**2) / 2)
    lloyd_max = {3: 7.21, 4: 9.30, 5: 10.97, 6: 12.37, 8: 14.62, 16: 20.22}[count]
    found = search_codebook(x, NUUQ(count, (count - 1).bit_length() + 2), counts=weights)
    assert lloyd_max - 10 * np.log10(np.dot(weights, x * x) / found.error) < 0.07


def test_a_common_divisor_goes_into_the_unit():
    values = np.random.default_rng(2).normal(size=3000)
    found = search_codebook(values, NUUQ(3, 4), symmetric=True)
    assert found.format.codebook == (-1, 0, 1)
    assert found.error == pytest.approx(squared_error(values, np.array([-1, 0, 1]) * found.unit))


def test_unit_can_be_a_power_of_two():
    values = np.random.default_rng(1).normal(size=2000)
    found = search_codebook(values, NUUQ(8, 5), power_of_two=True)
    assert np.log2(found.unit) == int(np.log2(found.unit))
    free = search_codebook(values, NUUQ(8, 5))
    assert free.error <= found.error < 1.1 * free.error


@pytest.mark.parametrize(
    ("values", "format", "options", "message"),
    [
        ([], NUUQ(3, 4), {}, "at least one value"),
        ([1, np.nan], NUUQ(3, 4), {}, "finite values"),
        ([1, 2], INT(4), {}, "Only nuuq and nuuqu formats have a codebook, not int:4"),
        ([1, 2], NUUQU(3, 4), {"symmetric": True}, "Only signed codebooks can be symmetric, not nuuqu:3,4"),
        ([1, 2], NUUQ(4, 4), {"symmetric": True, "zero": True}, "symmetric codebook of 4 levels has no zero"),
        ([1, 2], NUUQ(4, 4), {"counts": [0, 0]}, "counts must be 2 numbers of at least 0, not all of them 0"),
        ([1, 2], NUUQ(4, 4), {"counts": [1]}, "counts must be 2 numbers"),
    ],
)
def test_what_has_no_codebook_is_an_error(values, format, options, message):
    with pytest.raises(CodebookError, match=message):
        search_levels(values, format, **options)


def layer(rng):
    """Channels of very different scale and distribution; one of zeros."""
    weights = rng.laplace(size=(6, 5, 3, 3)) * 10.0 ** np.arange(-3, 3).reshape(-1, 1, 1, 1)
    weights[1] = rng.normal(size=weights[1].shape)
    weights[4] = 0
    return weights


@pytest.mark.parametrize("shared_unit", [False, True])
@pytest.mark.parametrize("channel_codebooks", [False, True])
def test_weights_of_a_layer(shared_unit, channel_codebooks):
    weights = layer(np.random.default_rng(5))
    format, units, books = fit_weights(
        weights, NUUQ(4, 5), shared_unit=shared_unit, channel_codebooks=channel_codebooks
    )
    assert (books is None) == (not channel_codebooks) == bool(format.codebook)
    assert books is None or books.shape == (6, 4)
    assert (len(set(units)) == 1) == shared_unit
    if not shared_unit:
        assert units[4] == 0
    used = np.maximum(units, 1e-9).reshape(-1, 1, 1, 1)
    levels = project_weights(weights / used, format, books)
    errors = ((weights - levels * used) ** 2).sum(axis=(1, 2, 3))
    if channel_codebooks and not shared_unit:
        for channel, error in zip(weights[[0, 2, 5]], errors[[0, 2, 5]], strict=True):
            assert error == pytest.approx(search_codebook(channel, NUUQ(4, 5)).error)
    if not channel_codebooks and not shared_unit:
        # Every channel is about as well off as with levels of its own.
        for channel, error in zip(weights[[0, 2, 5]], errors[[0, 2, 5]], strict=True):
            assert error < 2.5 * search_codebook(channel, NUUQ(4, 5)).error


def test_zeros_alone_have_a_codebook_with_zero():
    found = search_codebook(np.zeros(10), NUUQ(4, 5))
    assert 0 in found.format.codebook
    assert project(np.zeros(1), found.format) == 0
    format, units, _ = fit_weights(np.zeros((2, 3)), NUUQ(4, 5), shared_unit=True)
    assert 0 in format.codebook
    assert (units > 0).all()
