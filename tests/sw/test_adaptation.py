"""Metrics and adaptation of AUSN: the pinned values of the specification, and the search against all candidates."""

import math

import numpy as np
import pytest
from sigbit.adaptation import MODES, AdaptationError, adapt, errors, splits, unit_window
from sigbit_hw.spec.formats import AUSN_A, AUSN_AU, AUSN_G, AUSN_GU, INT, UINT, Format

VALUES = [0.1, -0.3, 0.9, -2.5, 1.3, -0.7, 0.05, 3.4]


def laplace():
    p = (np.arange(1, 1000) - 0.5) / 999
    return -np.sign(p - 0.5) * np.log(1 - 2 * np.abs(p - 0.5)) / np.sqrt(2)


@pytest.mark.parametrize(
    ("format", "exponent", "highest", "clipping", "rounding", "sqnr"),
    [
        (AUSN_G(2, 1), -1, 6, 0, 0.0690625, 15.779),
        (AUSN_G(2, 1), -2, 3, 0.02, 0.0396875, 16.412),
        (AUSN_G(2, 1), -3, 1.5, 0.57625, 0.007265625, 6.511),
        (AUSN_A(2, 1), -2, 6, 0, 0.070625, 15.681),
        (AUSN_A(2, 1), -3, 3, 0.02, 0.040078125, 16.384),
    ],
)
def test_metrics(format, exponent, highest, clipping, rounding, sqnr):
    """AUS-T5."""
    unit = 2.0**exponent
    assert format.magnitude_max * unit == highest
    found = errors(VALUES, format, unit)
    assert found.power == pytest.approx(2.6128125, rel=1e-12)
    assert (found.clipping, found.rounding) == pytest.approx((clipping, rounding), rel=1e-12, abs=1e-15)
    assert found.sqnr_db == pytest.approx(sqnr, abs=5e-4)


def test_clipping_and_rounding_add_up_to_the_mean_squared_error():
    values = np.random.default_rng(60).standard_normal(500)
    for format in (AUSN_G(2, 1), AUSN_AU(3, 1), UINT(4), INT(3)):
        for unit in (0.01, 0.25, 1.0):
            found = errors(values, format, unit)
            nearest = unit * np.array([min(format.levels, key=lambda x, v=v: abs(x - v / unit)) for v in values])
            assert found.total == pytest.approx(np.mean((values - nearest) ** 2), rel=1e-12)
            assert found.lost == np.mean(nearest == 0)


@pytest.mark.parametrize(
    ("bits", "e", "s", "window", "exponent", "sqnr"),
    [(3, 2, 0, 1, -1, 10.667), (4, 2, 1, 1, -2, 16.410), (5, 2, 2, 2, -2, 22.116), (6, 2, 3, 2, -3, 28.099)],
)
def test_search(bits, e, s, window, exponent, sqnr):
    """AUS-T6."""
    values = laplace()
    found = adapt(values, splits("ausn-g", bits))
    assert found.format == AUSN_G(e, s)
    assert found.unit == 2.0**exponent
    assert found.unit * found.format.magnitude_max == (2 - 2.0**-s) * 2**window
    metrics = errors(values, found.format, found.unit)
    assert (metrics.clipping, metrics.rounding) == pytest.approx((found.clipping, found.rounding), rel=1e-12)
    assert metrics.sqnr_db == pytest.approx(sqnr, abs=5e-4)


@pytest.mark.parametrize(("kind", "format", "sqnr"), [("ausn-g", AUSN_G(2, 1), 15.93), ("ausn-a", AUSN_A(2, 1), 13.95)])
def test_the_fixed_rule_clips_nothing(kind, format, sqnr):
    """AUS-T6."""
    found = adapt(laplace(), splits(kind, 4), "fixed")
    assert (found.format, found.clipping) == (format, 0)
    assert found.unit * format.magnitude_max == 1.5 * 2**2
    assert errors(laplace(), format, found.unit).sqnr_db == pytest.approx(sqnr, abs=5e-3)


@pytest.mark.parametrize(("bits", "split"), [(3, (2, 0)), (4, (2, 1)), (5, (2, 2)), (6, (3, 2))])
def test_the_fixed_split_is_that_of_the_public_table(bits, split):
    for kind in ("ausn-a", "ausn-g"):
        found = adapt(VALUES, splits(kind, bits), "fixed").format
        assert (found.exponent_bits, found.fraction_bits) == split


@pytest.mark.parametrize("make", [AUSN_A, AUSN_AU, AUSN_G, AUSN_GU])
def test_the_largest_level_stands_for_the_top_of_the_window(make):
    """AUS-T7."""
    for e in (1, 2, 3):
        for s in range(1, 4):
            format = make(e, s)
            for window in (-3, 0, 5):
                u = 2.0 ** (window + (1 if "_A" in make.__name__ else 2) - 2**e - s)
                assert format.magnitude_max * u == (2 - 2.0**-s) * 2.0**window
                # A largest value on the top level, or a little below, takes this window if nothing clips.
                for top in (1.0, 0.9):
                    largest = [top * format.magnitude_max * u]
                    assert adapt(largest, [format], "fixed").unit == u


@pytest.mark.parametrize("mode", MODES)
def test_modes_keep_what_they_promise(mode):
    rng = np.random.default_rng(61)
    tensors = {
        "laplace": rng.laplace(size=2000),
        "uniform": rng.uniform(-1, 1, 2000),
        "student": rng.standard_t(3, 2000),
        "relu": np.maximum(rng.standard_normal(2000), 0),
    }
    for name, values in tensors.items():
        kind = "ausn-gu" if name == "relu" else "ausn-g"
        for bits in (3, 4, 6):
            formats = splits(kind, bits)
            best = adapt(values, formats, mode)
            candidates = [
                errors(values, format, 2.0**k).total
                for format in formats
                for k in range(math.ceil(math.log2(abs(values).max() / format.magnitude_max)) - 6, 20)
            ]
            total = best.clipping + best.rounding
            assert total >= min(candidates) * (1 - 1e-12)
            if mode == "search":
                assert total == pytest.approx(min(candidates), rel=1e-12)
            if mode == "fixed":
                assert best.clipping == 0


def test_the_incremental_mode_moves_bits_to_the_superposition_while_rounding_dominates():
    uniform = np.linspace(-1, 1, 1001)
    assert adapt(uniform, splits("ausn-g", 5), "incremental").format.exponent_bits == 1
    # Nothing is left to round, so no bit moves.
    assert adapt(AUSN_G(3, 1).levels, splits("ausn-g", 5), "incremental").format == AUSN_G(3, 1)


def test_a_window_per_channel_is_that_of_every_channel_alone():
    values = np.random.default_rng(62).laplace(size=(5, 40)) * 2.0 ** np.arange(5)[:, np.newaxis]
    values[3] = 0
    for format in (AUSN_G(2, 1), INT(8), AUSN_A(2, 2)):
        units = unit_window(values, format, channel_axis=0)
        assert units.tolist() == [unit_window(row, format) for row in values]
        assert (np.log2(units) == np.round(np.log2(units))).all()
        assert units[3] == 1
    found = adapt(values, splits("ausn-g", 4), channel_axis=0)
    assert found.clipping + found.rounding == pytest.approx(errors(values, found.format, found.unit).total, rel=1e-12)


def test_a_histogram_stands_for_its_values():
    values = np.repeat([0.5, 1.0, 7.0], [10, 20, 3])
    formats = splits("ausn-gu", 4)
    assert adapt(values, formats) == adapt([0.5, 1.0, 7.0], formats, counts=[10, 20, 3])
    assert errors(values, formats[0], 1.0) == errors([0.5, 1.0, 7.0], formats[0], 1.0, counts=[10, 20, 3])


def test_splits_stay_within_the_build_limits():
    assert splits("ausn-g", 4) == (AUSN_G(1, 2), AUSN_G(2, 1), AUSN_G(3, 0))
    assert splits("ausn-gu", 4) == (AUSN_GU(1, 3), AUSN_GU(2, 2), AUSN_GU(3, 1))
    assert splits("ausn-au", 8) == (Format("ausn-au", 8, 7), Format("ausn-au", 8, 6))
    assert splits("ausn-a", 2) == (AUSN_A(1, 0),)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adapt([], splits("ausn-g", 4)), "at least one value"),
        (lambda: adapt([1.0, math.nan], splits("ausn-g", 4)), "1 of 2 are NaN or infinite"),
        (lambda: adapt([1.0], splits("ausn-g", 4), "best"), "mode must be search, fixed, incremental, not 'best'"),
        (lambda: adapt([1.0], []), "at least one format"),
        (lambda: adapt([1.0], splits("ausn-g", 4), counts=[1, 2]), r"counts must be .* of shape \(1,\), not of \(2,\)"),
        (lambda: splits("ausn-g", 9), "No format ausn-g has 9 stored bits"),
    ],
)
def test_what_cannot_be_adapted_is_an_error(call, message):
    with pytest.raises(AdaptationError, match=message):
        call()
