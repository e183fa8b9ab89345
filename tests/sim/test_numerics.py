"""Golden arithmetic: the pinned values of the specification, and exhaustive agreement of its different forms."""

from itertools import pairwise

import numpy as np
import pytest
from sigbit_hw.spec.formats import ESB, ESBU, INT, KINDS, UINT, Format, FormatError, magnitudes
from sigbit_sim.golden.numerics import (
    NumericsError,
    decode,
    encode,
    encode_half_units,
    half_units,
    level_table,
    order_keys,
    project,
    requantize,
    thresholds,
    xor_dot,
)


def legal_formats():
    for kind in (kind for kind in KINDS if not kind.startswith("nuuq")):
        for bits in range(2, 9):
            for fraction_bits in range(bits):
                try:
                    yield Format(kind, bits, fraction_bits)
                except FormatError:
                    continue


FORMATS = tuple(legal_formats())

# Requantizer with the gain 0.0123.
M0, SH = 51590, 22


def plain_requantize(acc, bias, m0, sh, levels, r=0, m1=0):
    """Reference text of the specification, in Python integers."""
    p = (int(acc) + int(bias)) * int(m0) + int(r) * int(m1)
    q = p >> (sh - 1) if sh else p << 1
    return sum(q >= low + high for low, high in pairwise(levels))


# --- projection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "value", "level"),
    [
        *((ESB(5, 2), value, level) for value, level in [
            (9, 10), (-9, -8), (11, 12), (-11, -10), (18, 20), (-18, -16), (26, 28), (-26, -24), (17.5, 16), (0.5, 1),
            (-0.5, 0), (-1.5, -1), (-2.5, -2), (1000, 28),
        ]),
        *((INT(4), value, level) for value, level in [(3.5, 4), (-1.5, -1), (8.5, 7), (-9, -7)]),
    ],
)  # fmt: skip
def test_projection_goes_to_the_nearest_level_and_ties_go_up(format, value, level):
    assert project(value, format) == level


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_projection_agrees_with_the_definition_on_a_grid_of_quarters(format):
    top = format.magnitude_max + 2
    values = np.arange(-4 * top, 4 * top + 1) / 4
    ranks = sum((2 * values >= midpoint).astype(int) for midpoint in format.midpoints)
    assert np.array_equal(project(values, format), np.array(format.levels)[ranks])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_projection_of_a_non_finite_value_is_an_error(bad):
    with pytest.raises(NumericsError, match=r"must be finite to be projected to esb:4,2, but 1 of 3 are not"):
        project([0.0, bad, 1.0], ESB(4, 2))


def test_figure_of_the_esb_paper():
    inputs = [2.17, 1.62, 1.24, 0.76, 0.68, 1.91, 2.72, 3.06, 2.81, 2.37, 2.21, 2.67, 1.33, 1.46, 0.59, 4.00, 4.38,
              1.67, 2.98, 0.61]  # fmt: skip
    printed = [2.19, 1.56, 1.25, 0.78, 0.63, 1.88, 2.50, 3.13, 2.50, 2.50, 2.19, 2.50, 1.25, 1.56, 0.63, 3.75, 4.38,
               1.56, 3.13, 0.63]  # fmt: skip
    unit = 0.625 / 4
    levels = project(np.array(inputs) / unit, ESB(5, 2))
    assert levels.tolist() == [14, 10, 8, 5, 4, 12, 16, 20, 16, 16, 14, 16, 8, 10, 4, 24, 28, 10, 20, 4]
    assert encode(levels, ESB(5, 2)).tolist() == [11, 9, 8, 5, 4, 10, 12, 13, 12, 12, 11, 12, 8, 9, 4, 14, 15, 9, 13, 4]
    assert np.abs(levels * unit - printed).max() <= 0.005 + 1e-12


# --- codes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_arrays_of_codes_agree_with_single_codes(format):
    codes = np.arange(1 << format.bits).reshape(2, -1)
    assert decode(codes, format).tolist() == [[format.decode(int(c)) for c in row] for row in codes]
    assert order_keys(codes, format).tolist() == [[format.order_key(int(c)) for c in row] for row in codes]
    levels = level_table(format)
    assert encode(levels, format).tolist() == [format.encode(level) for level in format.levels]
    assert np.array_equal(decode(encode(levels, format), format), levels)


@pytest.mark.parametrize(("format", "level"), [(ESB(4, 1), 5), (INT(4), -8), (UINT(4), 16), (ESBU(4, 2), -1)])
def test_encoding_a_foreign_level_names_it(format, level):
    with pytest.raises(FormatError, match=rf"{level} is not a level of {format}"):
        encode([0, level], format)


@pytest.mark.parametrize("code", [-1, 16])
def test_decoding_a_foreign_code_names_it(code):
    with pytest.raises(FormatError, match=rf"{code} is not a code of esb:4,2; expected 0 to 15"):
        decode([0, code], ESB(4, 2))
    with pytest.raises(FormatError, match=rf"{code} is not a code of esb:4,2; expected 0 to 15"):
        order_keys([0, code], ESB(4, 2))


# --- requantizer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("acc", "bias", "p", "q", "int8", "uint8", "uint4", "esbu42", "esb52", "esb41"),
    [
        (1000, 24, 52828160, 25, 13, 13, 13, (10, 12), 12, 12),
        (-1000, 24, -50351840, -25, -12, 0, 0, (0, 0), -12, -12),
        (12345, -345, 619080000, 295, 127, 148, 15, (15, 28), 28, 12),
        (-70000, 0, -3611300000, -1723, -127, 0, 0, (0, 0), -28, -12),
        (40, 0, 2063600, 0, 0, 0, 0, (0, 0), 0, 0),
        (41, 0, 2115190, 1, 1, 1, 1, (1, 1), 1, 1),
        (-41, 0, -2115190, -2, -1, 0, 0, (0, 0), -1, -1),
        (-122, 0, -6293980, -4, -2, 0, 0, (0, 0), -2, -2),
        (528, 0, 27239520, 12, 6, 6, 6, (6, 6), 6, 6),
        (529, 0, 27291110, 13, 7, 7, 7, (7, 7), 7, 6),
    ],
)
def test_multiplier_mode(acc, bias, p, q, int8, uint8, uint4, esbu42, esb52, esb41):
    assert (acc + bias) * M0 == p
    assert half_units(acc, bias, M0, SH) == q
    expected = {INT(8): int8, UINT(8): uint8, UINT(4): uint4, ESBU(4, 2): esbu42[1], ESB(5, 2): esb52, ESB(4, 1): esb41}
    for format, level in expected.items():
        assert level_table(format)[requantize(acc, bias, M0, SH, format.midpoints)] == level
        assert encode_half_units(q, format) == format.encode(level)
    assert encode_half_units(q, ESBU(4, 2)) == esbu42[0]


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        (ESBU(4, 2), [17, 98, 180, 261, 342, 424, 505, 586, 708, 871, 1033, 1196, 1440, 1765, 2090]),
        (UINT(4), [17, 98, 180, 261, 342, 424, 505, 586, 668, 749, 830, 911, 993, 1074, 1155]),
    ],
)
def test_thresholds(format, expected):
    assert thresholds(24, M0, SH, format.midpoints).tolist() == expected


def test_half_unit_decision_points():
    expected = [1, 3, 5, 7, 9, 11, 13, 15, 18, 22, 26, 30, 36, 44, 52]
    assert list(ESBU(4, 2).midpoints) == expected
    assert [m for m in ESB(5, 2).midpoints if m > 0] == expected
    assert [m for m in ESB(4, 1).midpoints if m > 0] == [1, 3, 5, 7, 10, 14, 20]


@pytest.mark.parametrize("format", [ESBU(4, 2), UINT(4), ESB(5, 2), INT(8), ESB(4, 0)], ids=str)
def test_threshold_rank_equals_multiplier_rank_around_every_threshold(format):
    rng = np.random.default_rng(20)
    channels = 40
    shift = rng.integers(0, 48, channels)
    multiplier = rng.integers(1, 1 << 16, channels)
    bias = rng.integers(-(1 << 20), 1 << 20, channels)
    points = thresholds(bias, multiplier, shift, format.midpoints)
    assert points.shape == (channels, len(format.midpoints))
    checked = 0
    for channel in range(channels):
        for acc in {int(t) + d for t in points[channel] for d in (-1, 0, 1)}:
            if abs(acc) < 1 << 31:
                constants = int(bias[channel]), int(multiplier[channel]), int(shift[channel])
                rank = int(requantize(acc, *constants, format.midpoints))
                assert rank == int((acc >= points[channel]).sum()), (acc, constants)
                assert rank == plain_requantize(acc, *constants, format.levels), (acc, constants)
                checked += 1
    assert checked > 100


def test_requantizer_broadcasts_constants_over_channels():
    rng = np.random.default_rng(21)
    acc = rng.integers(-(1 << 20), 1 << 20, (3, 5, 2, 2))
    bias, multiplier, shift = rng.integers(-999, 999, 5), rng.integers(1, 65536, 5), np.array([0, 1, 7, 33, 47])
    shape = (5, 1, 1)
    ranks = requantize(acc, bias.reshape(shape), multiplier.reshape(shape), shift.reshape(shape), ESB(4, 2).midpoints)
    for (n, c, y, x), value in np.ndenumerate(acc):
        assert ranks[n, c, y, x] == plain_requantize(value, bias[c], multiplier[c], int(shift[c]), ESB(4, 2).levels)


@pytest.mark.parametrize("acc", [(1 << 31) - 1, -(1 << 31) + 1])
def test_requantizer_is_exact_at_the_extremes(acc):
    bias = (1 << 31) - 1 if acc > 0 else -(1 << 31) + 1
    assert half_units(acc, bias, 65535, 0) == 2 * (acc + bias) * 65535
    assert half_units(acc, bias, 65535, 47) == (acc + bias) * 65535 >> 46
    extreme = half_units(acc, bias, 65535, 1, 4095, (1 << 24) - 1)
    assert extreme == (acc + bias) * 65535 + 4095 * ((1 << 24) - 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1 << 31, 0, 1, 0), "accumulator"),
        ((0, -(1 << 31), 1, 0), "bias"),
        ((0, 0, 0, 0), "M0"),
        ((0, 0, 1 << 16, 0), "M0"),
        ((0, 0, 1, 48), "sh"),
        ((0, 0, 1, -1), "sh"),
        ((0, 0, 1, 0, 4096, 1), "r must"),
        ((0, 0, 1, 0, 1, 1 << 24), "M1"),
        ((0, 0, 1, 0, 0, 0, -1), "N0"),
        ((0, 0, 1, 0, 0, 0, 1 << 16), "N0"),
    ],
)
def test_requantizer_asserts_its_bounds(arguments, message):
    with pytest.raises(AssertionError, match=message):
        half_units(*arguments)


@pytest.mark.parametrize(
    ("acc", "r", "m1", "p", "q", "uint8", "int8"),
    [
        (1000, 37, 524288, 26002432, 99, 50, 50),
        (-3000, 37, 524288, 206432, 0, 0, 0),
        (1000, -37, 393216, -7945216, -31, 0, -15),
    ],
)
def test_residual_input_is_added_before_the_one_rounding(acc, r, m1, p, q, uint8, int8):
    assert (acc + 24) * 6449 + r * m1 == p
    assert half_units(acc, 24, 6449, 19, r, m1) == q
    for format, level in ((UINT(8), uint8), (INT(8), int8)):
        assert level_table(format)[requantize(acc, 24, 6449, 19, format.midpoints, r, m1)] == level


@pytest.mark.parametrize(
    ("acc", "p", "q", "int8", "esb52"),
    [
        (1000, 52828160, 25, 13, 12),
        (-24, 0, 0, 0, 0),
        (-25, -10316, -1, 0, 0),
        (-1000, -10068416, -5, -2, -2),
        (-12345, -127103436, -61, -30, -28),
    ],
)
def test_a_negative_sum_has_its_own_multiplier(acc, p, q, int8, esb52):
    """A slope of 0.2: M0 = 51590, N0 = 10316."""
    constants = (acc, 24, 51590, 22)
    assert (acc + 24) * (51590 if acc + 24 >= 0 else 10316) == p
    assert half_units(*constants, negative_multiplier=10316) == q
    for format, level in ((INT(8), int8), (ESB(5, 2), esb52)):
        assert level_table(format)[requantize(*constants, format.midpoints, negative_multiplier=10316)] == level


def test_average_of_a_seven_by_seven_window():
    sums = np.array([24, 25, 9824, 9825, 12495])
    ranks = requantize(sums, 0, 42799, 21, UINT(8).midpoints)
    assert level_table(UINT(8))[ranks].tolist() == [0, 1, 200, 201, 255]


# --- encoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_hardware_encoder_equals_comparators_for_every_half_unit(format):
    top = 4 * format.magnitude_max + 8
    q = np.arange(-top, top + 1)
    ranks = sum((q >= midpoint).astype(int) for midpoint in format.midpoints)
    expected = np.array([format.encode(level) for level in format.levels])[ranks]
    assert np.array_equal(encode_half_units(q, format), expected)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_hardware_encoder_saturates_for_the_largest_results(format):
    q = np.array([-(1 << 50), (1 << 50) - 1])
    assert encode_half_units(q, format).tolist() == [format.encode(format.levels[0]), format.encode(format.levels[-1])]


@pytest.mark.parametrize("exponent_bits", [1, 2, 3])
@pytest.mark.parametrize("fraction_bits", range(5))
def test_magnitudes_equal_the_esb_table(exponent_bits, fraction_bits):
    """The closed form, written out once more: significand times two to the shift."""
    expected = [
        ((1 if e else 0) * 2**fraction_bits + f) * 2 ** max(e - 1, 0)
        for e in range(2**exponent_bits)
        for f in range(2**fraction_bits)
    ]
    assert list(magnitudes(exponent_bits, fraction_bits)) == expected
    assert ESB(1 + exponent_bits + fraction_bits, fraction_bits).magnitudes == tuple(expected)


# --- sign by XOR --------------------------------------------------------------------------------------------------


def test_xor_sign_with_unsigned_activations():
    weights = [ESB(4, 1).encode(3), ESB(4, 1).encode(-2), 0b1000, ESB(4, 1).encode(-6), ESB(4, 1).encode(12),
               ESB(4, 1).encode(-1)]  # fmt: skip
    raw, constant = xor_dot(weights, [7, 0, 9, 5, 1, 15], ESB(4, 1))
    assert (raw, constant, raw + constant) == (-16, 4, -12)


def test_xor_sign_with_activations_in_twos_complement():
    weights = encode([-3, 2, -1, 3], ESB(4, 1))
    raw, constant = xor_dot(weights, [-2, -3, 1, 0], ESB(4, 1))
    assert (raw, constant, raw + constant) == (-3, 2, -1)


def test_esb_dot_product():
    weights = np.array([0b00111, 0b10101, 0b11111, 0b01000, 0b10000, 0b10001, 0b01101, 0b11010])
    activations = np.array([15, 3, 8, 12, 9, 15, 0, 7])
    weight_levels, activation_levels = decode(weights, ESB(5, 2)), decode(activations, ESBU(4, 2))
    assert weight_levels.tolist() == [7, -5, -28, 8, 0, -1, 20, -12]
    assert activation_levels.tolist() == [28, 3, 8, 16, 10, 28, 0, 7]
    assert (weight_levels * activation_levels).tolist() == [196, -15, -224, 128, 0, -28, 0, -84]
    assert weight_levels @ activation_levels == -27
    assert xor_dot(weights, activation_levels, ESB(5, 2)) == (-32, 5)


@pytest.mark.parametrize("format", [ESB(4, 2), ESB(5, 2), ESB(4, 0), INT(8), INT(4)], ids=str)
def test_xor_sum_plus_constant_is_the_dot_product_for_any_codes(format):
    rng = np.random.default_rng(22)
    codes = rng.integers(0, 1 << format.bits, (50, 33))
    activations = rng.integers(-128, 256, (50, 33))
    raw, constant = xor_dot(codes, activations, format)
    assert np.array_equal(raw + constant, (decode(codes, format) * activations).sum(axis=1))
    assert (constant > 0).any()


# --- decode as significand and shift ------------------------------------------------------------------------------


def test_decode_table_of_esb_5_2():
    rows = [(0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3), (4, 0, 4), (5, 0, 5), (6, 0, 6), (7, 0, 7), (4, 1, 8),
            (5, 1, 10), (6, 1, 12), (7, 1, 14), (4, 2, 16), (5, 2, 20), (6, 2, 24), (7, 2, 28)]  # fmt: skip
    for code, (significand, shift, magnitude) in enumerate(rows):
        assert significand << shift == magnitude == ESB(5, 2).decode(code)
        assert split(code, ESB(5, 2)) == (significand, shift)


def split(code, format):
    exponent, fraction = code >> format.fraction_bits, code & ((1 << format.fraction_bits) - 1)
    hidden = int(exponent != 0)
    return hidden << format.fraction_bits | fraction, exponent - hidden


@pytest.mark.parametrize(
    ("weight", "activation"),
    [(ESB(5, 2), ESBU(4, 2)), (ESB(4, 1), ESBU(4, 2)), (ESB(3, 0), ESBU(2, 0)), (ESB(8, 5), ESBU(8, 6))],
    ids=str,
)
def test_product_of_significands_shifted_is_the_product_of_magnitudes(weight, activation):
    for w, magnitude_w in enumerate(weight.magnitudes):
        for a, magnitude_a in enumerate(activation.magnitudes):
            (significand_w, shift_w), (significand_a, shift_a) = split(w, weight), split(a, activation)
            assert (significand_w * significand_a) << (shift_w + shift_a) == magnitude_w * magnitude_a
