"""Units and requantizer constants: pinned values, and independent searches that must agree."""

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from sigbit.scales import (
    ALPHA_TABLES,
    MovingAverage,
    ScaleError,
    alpha_star,
    requantizer_constants,
    statistic,
    unit_dda,
    unit_from_statistic,
    unit_max,
    unit_mse,
)
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT
from sigbit_sim.golden.numerics import encode, project

# (bits, k): alpha*, SQNR in dB, entry of the public table.
TABLE = {
    (2, 0): (1.22401, 7.21, 1.2240), (3, 0): (0.51813, 13.23, 0.5181), (3, 1): (1.30154, 13.29, 1.3015),
    (4, 0): (0.06553, 14.23, 0.0381), (4, 1): (0.48708, 18.97, 0.4871), (4, 2): (1.41365, 18.90, 1.4136),
    (5, 1): (0.07664, 19.73, 0.0391), (5, 2): (0.48277, 24.87, 0.4828), (5, 3): (1.54599, 24.33, 1.5460),
    (6, 2): (0.04055, 25.58, 0.0406), (6, 3): (0.49967, 30.81, 0.4997), (6, 4): (1.68780, 29.71, 1.6878),
    (7, 3): (0.04094, 31.56, 0.0409), (7, 4): (0.52469, 36.75, 0.5247), (7, 5): (1.83236, 35.11, 1.8324),
    (8, 4): (0.04118, 37.56, 0.0412), (8, 5): (0.55266, 42.67, 0.5527), (8, 6): (1.97569, 40.54, 1.9757),
    (9, 5): (0.04159, 43.58, 0.0416), (9, 6): (0.58161, 48.57, 0.5816), (9, 7): (2.11560, 46.02, 1.9757),
}  # fmt: skip


def esb_levels(bits, k):
    """Non-negative values of ESB(bits, k) in units of alpha, written out from the definition of a short float."""
    values = {0.0}
    for exponent in range(2 ** (bits - 1 - k)):
        for fraction in range(2**k):
            values.add((fraction / 2**k) if exponent == 0 else (1 + fraction / 2**k) * 2 ** (exponent - 1))
    return np.array(sorted(values))


def gaussian_error(alpha, levels):
    """Squared error of a unit normal variable by Gauss quadrature in every cell: no closed form, no gradient."""
    borders = np.append(0, (levels[1:] + levels[:-1]) / 2 * alpha)
    # The last cell is endless; the density is negligible beyond 12.
    tail = np.linspace(borders[-1], max(12, borders[-1] + 1), 25)[1:]
    borders, values = np.append(borders, tail), alpha * np.append(levels, np.repeat(levels[-1], 23))
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = np.diff(borders) / 2
    x = (borders[:-1] + half)[:, None] + half[:, None] * nodes
    error = (x - values[:, None]) ** 2 * np.exp(-x * x / 2) * 2 / math.sqrt(2 * math.pi)
    return float(half @ error @ weights)


@pytest.mark.parametrize(("bits", "k"), TABLE)
def test_alpha_star_matches_the_table_and_the_pinned_constants(bits, k):
    alpha, _, public = TABLE[bits, k]
    assert alpha_star(bits, k) == pytest.approx(alpha, abs=0.6e-5)
    assert ALPHA_TABLES["global"][bits, k] == pytest.approx(alpha_star(bits, k), rel=0.6e-5)
    assert ALPHA_TABLES["public"][bits, k] == public


def test_alpha_tables_hold_every_format_and_nothing_else():
    assert set(ALPHA_TABLES["global"]) == set(ALPHA_TABLES["public"]) == set(TABLE)


@pytest.mark.parametrize(("bits", "k"), TABLE)
def test_alpha_star_agrees_with_an_independent_minimization(bits, k):
    """Golden section search on a numerical integral around the table's value."""
    levels = esb_levels(bits, k)
    expected, sqnr, _ = TABLE[bits, k]
    low, high = expected * 0.97, expected * 1.03
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(30):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if gaussian_error(left, levels) < gaussian_error(right, levels):
            high = right
        else:
            low = left
    assert alpha_star(bits, k) == pytest.approx((low + high) / 2, rel=2e-5)
    assert -10 * math.log10(gaussian_error(alpha_star(bits, k), levels)) == pytest.approx(sqnr, abs=0.006)


@pytest.mark.parametrize(("bits", "k"), [(4, 0), (5, 1)])
def test_alpha_star_is_the_global_minimum_where_the_public_table_is_a_local_one(bits, k):
    levels = esb_levels(bits, k)
    public = ALPHA_TABLES["public"][bits, k]
    assert gaussian_error(alpha_star(bits, k), levels) < gaussian_error(public, levels)
    assert gaussian_error(public, levels) < min(gaussian_error(public * f, levels) for f in (0.9, 1.1))


@pytest.mark.parametrize(("bits", "k"), [(4, 3), (3, -1), (1, 0)])
def test_alpha_star_of_a_format_that_does_not_exist_is_an_error(bits, k):
    with pytest.raises(ScaleError, match=rf"ESB\({bits},{k}\) does not exist"):
        alpha_star(bits, k)


# --- statistics and DDA -------------------------------------------------------------------------------------------


def test_unsigned_statistic_uses_positive_entries_only():
    x = np.array([0, 0.5, 0, 1.5, 2.0, 0, 0, 0.25])
    assert statistic(x, ESBU(4, 2)) == pytest.approx(1.280869, abs=1e-6)
    unit = unit_dda(x, ESBU(4, 2))
    assert 4 * unit == pytest.approx(0.618369, abs=2e-6)
    assert unit == pytest.approx(0.154592, abs=1e-6)
    levels = project(x / unit, ESBU(4, 2))
    assert levels.tolist() == [0, 3, 0, 10, 12, 0, 0, 2]
    assert encode(levels, ESBU(4, 2)).tolist() == [0, 3, 0, 9, 10, 0, 0, 2]


def test_ternary_weights():
    w = np.array([-1.5, -0.7, -0.2, 0.1, 0.4, 0.65, 0.9, 1.9])
    assert statistic(w, ESB(2, 0)) == pytest.approx(0.986946, abs=1e-6)
    assert unit_dda(w, ESB(2, 0)) == pytest.approx(1.208032, abs=2e-6)
    assert project(w / unit_dda(w, ESB(2, 0)), ESB(2, 0)).tolist() == [-1, -1, 0, 0, 0, 1, 1, 1]


def test_signed_statistic_is_about_zero_not_about_the_mean():
    assert statistic(np.array([3.0, 3.0, 3.0]), ESB(4, 2)) == 3.0


@pytest.mark.parametrize(
    ("bits", "k", "alpha"),
    [(2, 0, 0.51813), (2, 1, 1.30154), (3, 1, 0.48708), (4, 2, 0.48277), (4, 3, 1.54599), (5, 3, 0.49967),
     (8, 6, 0.58161)],
)  # fmt: skip
def test_unsigned_formats_use_the_scale_of_one_more_bit(bits, k, alpha):
    assert unit_from_statistic(1.0, ESBU(bits, k)) * 2**k == pytest.approx(alpha, abs=0.6e-5)


def test_uniform_formats_are_the_esb_members_with_one_exponent_bit():
    assert unit_from_statistic(2.0, INT(4)) == unit_from_statistic(2.0, ESB(4, 2))
    assert unit_from_statistic(2.0, UINT(4)) == unit_from_statistic(2.0, ESBU(4, 3))


def test_alpha_table_chooses_the_public_entries():
    assert unit_from_statistic(1.0, ESB(4, 0), "public") == 0.0381
    assert unit_from_statistic(1.0, ESB(4, 0)) == 0.0655253
    with pytest.raises(ScaleError, match="alpha_table must be global or public, not 'paper'"):
        unit_from_statistic(1.0, ESB(4, 0), "paper")


def test_units_per_channel_are_the_units_of_the_channels():
    w = np.random.default_rng(30).normal(size=(3, 4, 5)) * np.array([1, 10, 0.1])[:, None, None]
    for rule in (unit_dda, unit_mse, unit_max):
        units = rule(w, ESB(4, 2), channel_axis=0)
        assert units.tolist() == [pytest.approx(rule(channel, ESB(4, 2)), rel=1e-12) for channel in w]
        assert rule(w.transpose(1, 0, 2), ESB(4, 2), channel_axis=1) == pytest.approx(units, rel=1e-12)
        assert isinstance(rule(w, ESB(4, 2)), float)


@pytest.mark.parametrize("rule", [unit_dda, unit_mse, unit_max])
def test_channel_of_zeros_has_unit_one(rule):
    w = np.zeros((2, 6))
    w[1] = [1, -2, 3, -4, 5, -6]
    units = rule(w, ESB(4, 2), channel_axis=0)
    assert units[0] == 1.0
    assert units[1] != 1.0
    assert rule(np.array([-1.0, -2.0, 0.0]), ESBU(4, 2)) == 1.0


@pytest.mark.parametrize("rule", [unit_dda, unit_mse, unit_max])
@pytest.mark.parametrize(
    ("values", "message"),
    [([], "data is empty"), ([1.0, np.nan], "1 of 2 are NaN or inf"), ([np.inf, 1.0], "1 of 2 are NaN or inf")],
)
def test_data_without_a_unit_is_an_error(rule, values, message):
    with pytest.raises(ScaleError, match=message):
        rule(np.array(values), ESB(4, 2))


def test_dda_reaches_the_signal_to_noise_ratio_of_the_table():
    x = np.linspace(-9, 9, 500_001)
    density = np.exp(-x * x / 2) / np.exp(-x * x / 2).sum()
    for (bits, k), (_, sqnr, _) in TABLE.items():
        if bits <= 8:
            unit = unit_from_statistic(1.0, ESB(bits, k))
            error = density @ (x - unit * project(x / unit, ESB(bits, k))) ** 2
            assert -10 * math.log10(error) == pytest.approx(sqnr, abs=0.006), (bits, k)


@pytest.mark.parametrize(
    ("format", "gaussian", "laplace"),
    [(ESB(4, 1), 15.69, 17.33), (ESB(5, 2), 19.46, 22.99), (ESB(6, 3), 22.40, 28.55), (ESB(8, 5), 26.62, 39.45)],
    ids=str,
)
def test_gaussian_scale_is_poor_and_least_error_good_on_heavy_tails(format, gaussian, laplace):
    # Quantiles in place of samples: the tail, which decides, is then the same in every run.
    p = (np.arange(4_000_000) + 0.5) / 4_000_000
    x = -np.log1p(-p) / math.sqrt(2)

    def sqnr(unit):
        return -10 * math.log10(np.mean((x - unit * project(x / unit, format)) ** 2) / np.mean(x * x))

    assert sqnr(ALPHA_TABLES["global"][format.bits, format.fraction_bits] / 2**format.fraction_bits) == pytest.approx(
        gaussian, abs=0.03
    )
    sample = x[::40]
    assert sqnr(unit_mse(sample, format)) == pytest.approx(laplace, abs=0.15)


# --- least squared error ------------------------------------------------------------------------------------------


def search(values, format, counts=None):
    """The rule of least squared error, literally."""
    counts = np.ones_like(values) if counts is None else counts
    best = None
    for j in range(-16, 80):
        unit = np.abs(values[counts > 0]).max() / format.magnitude_max * 2 ** (-j / 16)
        error = np.sum(counts * (values - unit * project(values / unit, format)) ** 2)
        if best is None or error < best[0] - 1e-12:
            best = (error, unit)
    return best[1]


@pytest.mark.parametrize("format", [ESB(4, 2), ESB(4, 1), ESB(2, 0), ESB(5, 2), INT(8), INT(2)], ids=str)
def test_least_error_unit_equals_the_literal_search(format):
    rng = np.random.default_rng(32)
    w = np.stack([rng.normal(size=300), rng.laplace(size=300), rng.uniform(-1, 1, 300), rng.integers(-3, 4, 300)])
    assert unit_mse(w, format, channel_axis=0) == pytest.approx([search(row, format) for row in w], rel=1e-12)


@pytest.mark.parametrize("format", [ESBU(4, 2), UINT(4), UINT(8)], ids=str)
def test_least_error_unit_of_unsigned_data_equals_the_literal_search(format):
    x = np.maximum(np.random.default_rng(33).normal(size=1000), 0)
    assert unit_mse(x, format) == pytest.approx(search(x, format), rel=1e-12)


def test_histogram_counts_like_repeated_values():
    rng = np.random.default_rng(34)
    values, counts = rng.normal(size=50), rng.integers(0, 9, 50)
    values[0], counts[0] = 100.0, 0  # an empty bin must not set the range
    expected = unit_mse(np.repeat(values, counts), ESB(4, 2))
    assert unit_mse(values, ESB(4, 2), counts=counts) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ScaleError, match=r"counts must be non-negative and of shape \(50,\)"):
        unit_mse(values, ESB(4, 2), counts=counts[1:])
    with pytest.raises(ScaleError, match="counts must be non-negative"):
        unit_mse(values, ESB(4, 2), counts=-counts)


def test_ties_go_to_the_larger_unit():
    # One value is represented without error with the level 28, 14, 7 or any other power of two below the top.
    assert unit_mse(np.array([0.0, 3.0]), ESBU(4, 2)) == 3.0 / 28 * 2
    assert unit_mse(np.array([-0.7]), INT(8)) == 0.7 / 127


def test_least_error_unit_of_a_wide_layer_is_fast_enough():
    w = np.random.default_rng(35).normal(size=(512, 4608))
    start = time.perf_counter()
    unit_mse(w, INT(8), channel_axis=0)
    assert time.perf_counter() - start < 5


def test_unit_max_puts_the_largest_value_on_the_largest_level():
    x = np.array([-4.2, 1.0, 2.1])
    assert unit_max(x, INT(8)) == 4.2 / 127
    assert unit_max(x, UINT(8)) == 2.1 / 255


# --- averaging ----------------------------------------------------------------------------------------------------


def test_average_starts_with_the_first_batch_and_moves_by_a_tenth():
    average = MovingAverage()
    assert average.update(1.0) == 1.0
    assert average.update(2.0) == pytest.approx(1.1, abs=1e-15)
    assert average.value == pytest.approx(1.1, abs=1e-15)


def test_average_refuses_what_it_cannot_average():
    with pytest.raises(ScaleError, match="no value yet"):
        _ = MovingAverage().value
    with pytest.raises(ScaleError, match="finite"):
        MovingAverage().update(math.nan)
    for momentum in (-0.1, 1.0):
        with pytest.raises(ScaleError, match="momentum must be at least 0 and below 1"):
            MovingAverage(momentum)


# --- requantizer constants ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("r0", "multiplier", "shift"),
    [
        ("1/256", 32768, 23), ("0.0123", 51590, 22), ("0.75", 49152, 16), ("1", 32768, 15), ("3.2e-5", 34360, 30),
        ("1e-10", 14074, 47), ("131071/131072", 32768, 15), ("1/49", 42799, 21),
    ],
)  # fmt: skip
def test_requantizer_constants(r0, multiplier, shift):
    assert requantizer_constants(Fraction(r0)) == (multiplier, shift)


@pytest.mark.parametrize(
    ("r0", "r1", "expected"), [("0.0123", "0.75", (51590, 22, 3145728)), ("0.001", "1", (8389, 23, 8388608))]
)
def test_requantizer_constants_with_a_residual(r0, r1, expected):
    assert requantizer_constants(Fraction(r0), Fraction(r1)) == expected


@pytest.mark.parametrize(
    ("r0", "slope", "expected"),
    [
        ("0.0123", "0.2", (51590, 22, 10318)),
        ("0.0123", "0", (51590, 22, 0)),
        ("0.0123", "1", (51590, 22, 51590)),
        ("0.0123", "1.75", (25795, 21, 45141)),
        ("1", "0.2", (32768, 15, 6554)),
    ],
)
def test_requantizer_constants_with_a_gain_of_negative_sums(r0, slope, expected):
    assert requantizer_constants(Fraction(r0), negative=Fraction(r0) * Fraction(slope)) == expected


@pytest.mark.parametrize("negative", [Fraction(-1, 5), 0.2])
def test_a_gain_of_negative_sums_is_a_fraction_of_at_least_zero(negative):
    with pytest.raises(ScaleError, match="negative must be a Fraction of at least 0, not"):
        requantizer_constants(Fraction(1), negative=negative)


def test_multiplier_is_normalized_and_precise_whenever_the_shift_is_not_at_its_end():
    rng = np.random.default_rng(36)
    for exponent in rng.uniform(-30, 15, 500):
        r0 = Fraction(float(2.0**exponent))
        multiplier, shift = requantizer_constants(r0)
        if shift < 47:
            assert 32768 <= multiplier <= 65535
            assert abs(Fraction(multiplier, 1 << shift) / r0 - 1) <= Fraction(1, 1 << 16)


@pytest.mark.parametrize(
    ("r0", "r1", "message"),
    [
        (Fraction(65536), None, "too large for a requantizer; use a larger output unit"),
        (Fraction(1), Fraction(1 << 24), "too large for a requantizer"),
        (Fraction(1, 1 << 49), None, "too small for a requantizer; use a smaller output unit"),
        (Fraction(0), None, "r0 must be a positive Fraction, not Fraction"),
        (Fraction(-1), None, "r0 must be a positive Fraction"),
        (0.5, None, "r0 must be a positive Fraction, not 0.5"),
        (Fraction(1), Fraction(0), "r1 must be a positive Fraction"),
    ],
)
def test_gains_without_constants_are_errors(r0, r1, message):
    with pytest.raises(ScaleError, match=message):
        requantizer_constants(r0, r1)
