"""NUUQ formats: codebooks, indices, their text form, and every error."""

import numpy as np
import pytest
from sigbit_hw.spec.config import PRESETS, ConfigError
from sigbit_hw.spec.formats import ESB, ESBU, INT, NUUQ, NUUQU, UINT, Format, FormatError
from sigbit_hw.spec.parts import activation_parts, part_shift_bits, weight_parts
from sigbit_sim.golden.numerics import decode, encode, encode_half_units, order_keys, project, requantize

BELL = NUUQ(4, 5, (-10, -3, 3, 10))


@pytest.mark.parametrize(("value", "level"), [(6.5, 10), (-6.5, -3), (0, 3), (-0.001, -3), (6.49, 3)])
def test_nearest_level_with_ties_up(value, level):
    assert project(value, BELL) == level


@pytest.mark.parametrize(
    ("format", "uniform"),
    [(NUUQ(15, 4, range(-7, 8)), INT(4)), (NUUQU(16, 4, range(16)), UINT(4))],
    ids=["int", "uint"],
)
def test_uniform_members_quantize_like_uniform_formats(format, uniform):
    values = np.arange(-200, 400) / 16
    assert (project(values, format) == project(values, uniform)).all()
    ranks = requantize(np.arange(-3000, 3000), 0, 51590, 22, format.midpoints)
    assert (ranks == requantize(np.arange(-3000, 3000), 0, 51590, 22, uniform.midpoints)).all()


@pytest.mark.parametrize(
    ("count", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (8, 3), (9, 4), (16, 4), (17, 5), (255, 8)]
)
def test_indices_have_just_enough_bits(count, bits):
    assert NUUQ(count, 8, range(-127, -127 + count)).bits == bits


@pytest.mark.parametrize("format", [BELL, NUUQ(3, 2, (-1, 0, 1)), NUUQU(5, 4, (0, 1, 3, 7, 15))], ids=str)
def test_codes_are_indices_and_order_like_levels(format):
    indices = np.arange(format.level_count)
    assert [format.decode(i) for i in range(format.level_count)] == list(format.levels) == list(format.codebook)
    assert [format.encode(level) for level in format.levels] == indices.tolist()
    assert (decode(indices, format) == format.levels).all()
    assert (encode(format.levels, format) == indices).all()
    assert (order_keys(indices, format) == indices).all()
    q = np.arange(-60, 60)
    assert (encode_half_units(q, format) == (q[:, np.newaxis] >= np.array(format.midpoints)).sum(axis=1)).all()
    for code in (-1, format.level_count):
        with pytest.raises(FormatError, match=f"{code} is not a code of .* expected 0 to {format.level_count - 1}"):
            format.decode(code)
        with pytest.raises(FormatError, match=f"{code} is not a code of"):
            decode([code], format)


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ("nuuq:16,6", NUUQ(16, 6)),
        ("NUUQU:16,8 ", NUUQU(16, 8)),
        ("nuuq:4,5=-10,-3,3,10", BELL),
        ("nuuqu:2,1=0,1", NUUQU(2, 1, (0, 1))),
    ],
)
def test_text_form_reads_back(text, format):
    assert Format.parse(text) == format
    assert Format.parse(str(format)) == format
    assert format.label == text.strip().lower().split("=")[0]


def test_levels_that_are_not_searched_yet_are_an_error():
    with pytest.raises(FormatError, match="nuuq:16,6 has no levels yet; quantize a network with it, or name them"):
        _ = NUUQ(16, 6).levels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nuuq:1,4", "nuuq:1,4 does not exist"),
        ("nuuq:16,4", "nuuq:16,4 does not exist; expected 2 to 8 bits per level, and 2 to 2\\*\\*bits - 1 levels"),
        ("nuuq:3,1", "does not exist"),
        ("nuuqu:17,4", "nuuqu:17,4 does not exist; expected 1 to 8 bits per level, and 2 to 2\\*\\*bits levels"),
        ("nuuq:4,9", "nuuq:4,9 does not exist"),
        ("nuuq:4,0", "nuuq:4,0 does not exist"),
        ("nuuq:4,5=-10,-3,3", "The codebook of nuuq:4,5 must have 4 levels, not 3"),
        ("nuuq:4,5=-10,3,3,10", "must increase strictly from -15 to 15, not \\(-10, 3, 3, 10\\)"),
        ("nuuq:4,5=-16,-3,3,10", "must increase strictly from -15 to 15"),
        ("nuuqu:2,4=-1,3", "must increase strictly from 0 to 15"),
    ],
)
def test_format_that_does_not_exist_is_an_error(text, message):
    with pytest.raises(FormatError, match=message):
        Format.parse(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nuuq", 3, 0, 4, 5), "nuuq:4,5 has indices of 2 bits without fraction, not of 3 bits with 0"),
        (("nuuq", 2, 1, 4, 5), "not of 2 bits with 1"),
        (("nuuq", 2, 0, 4, 5, [1, 2, 3, 4]), "must be a tuple of integers, not \\[1, 2, 3, 4\\]"),
        (("nuuq", 2, 0, 4, 5, (1, 2, 3, 4.0)), "must be a tuple of integers"),
        (("nuuq", 2, 0, "4", 5), "Format level_count must be an integer, not '4'"),
        (("int", 4, 0, 4, 5), "int has no codebook, but one was given"),
    ],
)
def test_fields_that_do_not_belong_together_are_an_error(arguments, message):
    with pytest.raises(FormatError, match=message):
        Format(*arguments)


@pytest.mark.parametrize("native", [(ESB(4, 2), ESBU(4, 2)), (ESB(3, 0), ESBU(2, 0))], ids=["esb:4,2", "esb:3,0"])
@pytest.mark.parametrize(
    "format",
    [
        BELL,
        NUUQ(3, 2, (-1, 0, 1)),
        NUUQ(8, 5, (-8, -5, -3, -1, 1, 3, 5, 8)),
        NUUQ(16, 8, (-127, -90, -61, -45, -32, -20, -11, -3, 2, 10, 19, 30, 46, 64, 93, 125)),
    ],
    ids=lambda format: format.label,
)
def test_every_codebook_is_written_in_native_parts(native, format):
    weights, activations = native
    step = part_shift_bits(activations)
    parts = weight_parts(weights, format, step)
    for level in format.levels:
        digits = parts.table[level]
        assert sum(digit << shift * step for digit, shift in zip(digits, parts.shifts, strict=True)) == level
        assert set(digits) <= set(weights.levels)


def test_codebooks_are_no_native_formats():
    with pytest.raises(ConfigError, match=r"weight_format must be .* not nuuq:4,5: codebooks travel in programs"):
        type(PRESETS["tiny"])(**{**vars(PRESETS["tiny"]), "weight_format": BELL})


def test_activations_are_stored_as_their_levels():
    assert activation_parts(ESBU(4, 2), NUUQU(3, 6, (0, 3, 60))) == activation_parts(ESBU(4, 2), UINT(6))
    assert activation_parts(ESBU(4, 2), NUUQ(3, 5, (-9, 0, 12))) == activation_parts(ESBU(4, 2), INT(5))
    assert activation_parts(UINT(4), NUUQU(2, 1, (0, 1))) == activation_parts(UINT(4), UINT(2))
