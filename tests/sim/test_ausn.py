"""AUSN in the golden model: the pinned values of the specification."""

import numpy as np
import pytest
from sigbit_hw.spec.formats import AUSN_A, AUSN_AU, AUSN_G, AUSN_GU, KINDS, Format, FormatError
from sigbit_sim.golden.numerics import (
    decode,
    encode,
    encode_half_units,
    half_units,
    level_table,
    requantize,
    superpose,
    thresholds,
    xor_dot,
)


def every_ausn_format():
    for kind in KINDS:
        for bits in range(2, 9):
            for superposition_bits in range(bits if kind.startswith("ausn") else 0):
                try:
                    yield Format(kind, bits, superposition_bits)
                except FormatError:
                    continue


AUSN = tuple(every_ausn_format())


@pytest.mark.parametrize("format", AUSN, ids=str)
def test_the_superposed_reading_of_every_code_is_its_level(format):
    codes = range(1 << format.bits)
    assert superpose(codes, format).tolist() == [format.decode(code) for code in codes]


def test_there_are_formats_of_all_widths():
    assert {format.bits for format in AUSN} == set(range(2, 9))


def test_dot_product():
    """AUS-T3."""
    weights = np.array([0b0111, 0b1010, 0b0001, 0b1111, 0b0000, 0b0100, 0b1011, 0b0110])
    activations = np.array([5, 7, 1, 2, 6, 0, 3, 4])
    weight_levels, activation_levels = decode(weights, AUSN_A(2, 1)), decode(activations, AUSN_AU(2, 1))
    assert weight_levels.tolist() == [24, -4, 3, -24, 0, 8, -6, 16]
    assert activation_levels.tolist() == [12, 24, 3, 4, 16, 0, 6, 8]
    assert (weight_levels * activation_levels).tolist() == [288, -96, 9, -96, 0, 0, -36, 128]
    assert weight_levels @ activation_levels == 197
    assert xor_dot(weights, activation_levels, AUSN_A(2, 1)) == (194, 3)


@pytest.mark.parametrize(
    ("acc", "type_a", "type_g"),
    [
        (-1, (0, 0), (0, 0)),
        (15, (0, 0), (0, 0)),
        (16, (0, 0), (1, 1)),
        (79, (0, 0), (2, 2)),
        (80, (1, 5), (3, 3)),
        (175, (1, 5), (5, 5)),
        (176, (2, 6), (6, 6)),
        (208, (3, 7), (7, 7)),
        (240, (4, 8), (8, 8)),
        (287, (4, 8), (8, 8)),
        (288, (5, 10), (9, 10)),
        (351, (5, 10), (9, 10)),
        (352, (6, 12), (10, 12)),
        (703, (9, 20), (13, 20)),
        (704, (10, 24), (14, 24)),
        (1663, (14, 48), (15, 28)),
        (1664, (15, 56), (15, 28)),
        (5000, (15, 56), (15, 28)),
    ],
)
def test_shift_mode(acc, type_a, type_g):
    """AUS-T4: ``f = 5``, no bias."""
    q = half_units(acc, 0, 1, 5)
    assert q == acc >> 4
    for format, (code, level) in ((AUSN_AU(2, 2), type_a), (AUSN_GU(2, 2), type_g)):
        assert encode_half_units(q, format) == code
        assert level_table(format)[requantize(acc, 0, 1, 5, format.midpoints)] == level == format.decode(code)


@pytest.mark.parametrize(
    ("acc", "bias", "unsigned_a", "signed_g"),
    [
        (1000, 24, (6, 12), 12),
        (-1000, 24, (0, 0), -12),
        (12345, -345, (15, 56), 12),
        (-70000, 0, (0, 0), -12),
        (40, 0, (0, 0), 0),
        (41, 0, (0, 0), 1),
        (-41, 0, (0, 0), -1),
        (-122, 0, (0, 0), -2),
        (528, 0, (2, 6), 6),
        (529, 0, (3, 7), 6),
    ],
)
def test_multiplier_mode(acc, bias, unsigned_a, signed_g):
    """The AUSN columns of NUM-T2."""
    q = half_units(acc, bias, 51590, 22)
    code = int(encode_half_units(q, AUSN_AU(2, 2)))
    assert (code, AUSN_AU(2, 2).decode(code)) == unsigned_a
    assert AUSN_G(2, 1).decode(int(encode_half_units(q, AUSN_G(2, 1)))) == signed_g


FORMATS = (AUSN_A(2, 1), AUSN_AU(2, 2), AUSN_A(3, 1), AUSN_G(2, 1), AUSN_GU(2, 2), AUSN_GU(3, 1), AUSN_G(2, 0))


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_shift_mode_multiplier_mode_and_threshold_mode_are_the_same(format):
    """AUS-T8, and every other power of two that means the same gain."""
    rng = np.random.default_rng(40)
    for f in range(21):
        limit = min(2 * format.magnitude_max << f, (1 << 30) - 1)
        acc, bias = rng.integers(-limit, limit, 200), int(rng.integers(-1000, 1000))
        shifted = acc + bias >> f - 1 if f else (acc + bias) << 1
        codes = encode_half_units(shifted, format)
        for j in (0, 3, 15):
            ranks = requantize(acc, bias, 1 << j, f + j, format.midpoints)
            assert np.array_equal(encode(level_table(format)[ranks], format), codes)
        points = thresholds(bias, 1, f, format.midpoints)
        assert np.array_equal((acc[:, np.newaxis] >= points).sum(axis=1), ranks)
