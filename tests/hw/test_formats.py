"""Formats: level tables, every code of every legal format, and every error."""

import pytest
from sigbit_hw.spec.formats import (
    AUSN_A,
    AUSN_AU,
    AUSN_G,
    AUSN_GU,
    ESB,
    ESBU,
    INT,
    KINDS,
    UINT,
    Format,
    FormatError,
    magnitudes,
    superposed_magnitudes,
)


def candidates():
    for kind in (kind for kind in KINDS if not kind.startswith("nuuq")):
        for bits in range(2, 9):
            for fraction_bits in range(1 if kind.endswith("int") else bits):
                yield kind, bits, fraction_bits


def legal(kind, bits, fraction_bits):
    """The build limits, said another way: one to three exponent bits, magnitudes below 4096."""
    if kind.endswith("int"):
        return True
    exponent_bits = bits - fraction_bits - (not kind.endswith("u"))
    octaves = 2**exponent_bits - (1 if "-a" in kind else 2)
    largest = (2 ** (fraction_bits + 1) - 1) * 2**octaves if exponent_bits >= 1 else 0
    return 1 <= exponent_bits <= 3 and largest < 4096


FORMATS = [Format(*case) for case in candidates() if legal(*case)]


def test_legal_formats_are_exactly_those_inside_the_build_limits():
    for case in candidates():
        if not legal(*case):
            with pytest.raises(FormatError):
                Format(*case)
    assert len(FORMATS) > 40


@pytest.mark.parametrize(
    ("format", "table"),
    [
        (ESB(2, 0), [0, 1]),
        (ESB(3, 0), [0, 1, 2, 4]),
        (ESB(3, 1), [0, 1, 2, 3]),
        (ESB(4, 0), [0, 1, 2, 4, 8, 16, 32, 64]),
        (ESB(4, 1), [0, 1, 2, 3, 4, 6, 8, 12]),
        (ESB(4, 2), [0, 1, 2, 3, 4, 5, 6, 7]),
        (ESB(5, 2), [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28]),
        (ESB(6, 3), [*range(16), *range(16, 32, 2), *range(32, 64, 4)]),
        (ESB(8, 5), [*range(64), *range(64, 128, 2), *range(128, 256, 4)]),
        (ESBU(4, 2), [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28]),
        (INT(4), list(range(8))),
        (UINT(4), list(range(16))),
        (AUSN_A(2, 0), [0, 2, 4, 8]),
        (AUSN_A(2, 1), [0, 3, 4, 6, 8, 12, 16, 24]),
        (AUSN_A(2, 2), [0, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56]),
        (AUSN_A(3, 0), [0, 2, 4, 8, 16, 32, 64, 128]),
        (AUSN_A(3, 1), [0, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384]),
        (AUSN_A(2, 3), [0, *range(9, 16), *range(16, 32, 2), *range(32, 64, 4), *range(64, 128, 8)]),
        (AUSN_G(2, 0), [0, 1, 2, 4]),
        (AUSN_G(2, 1), [0, 1, 2, 3, 4, 6, 8, 12]),
        (AUSN_G(2, 2), [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28]),
        (AUSN_G(3, 0), [0, 1, 2, 4, 8, 16, 32, 64]),
        (AUSN_G(3, 1), [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192]),
        (AUSN_G(2, 3), [*range(16), *range(16, 32, 2), *range(32, 64, 4)]),
    ],
    ids=str,
)
def test_magnitude_tables(format, table):
    assert list(format.magnitudes) == table


@pytest.mark.parametrize("exponent_bits", [1, 2, 3])
def test_every_esb_table_up_to_nine_bits_has_all_its_values(exponent_bits):
    for fraction_bits in range(9 - exponent_bits):
        table = magnitudes(exponent_bits, fraction_bits)
        bits = 1 + exponent_bits + fraction_bits
        assert len({sign * m for m in table for sign in (1, -1)}) == 2**bits - 1
        assert list(table) == sorted(table)
        assert table[-1] == (2 ** (fraction_bits + 1) - 1) << (2**exponent_bits - 2)


def reference_magnitudes(kind, e, s):
    """Reference text of the specification."""
    out = []
    for exponent in range(1 << e):
        for m in range(1 << s):
            if kind == "G":
                out.append(m if exponent == 0 else ((1 << s) + m) << (exponent - 1))
            else:
                out.append(0 if exponent == m == 0 else ((1 << s) + m) << exponent)
    return tuple(out)


@pytest.mark.parametrize("exponent_bits", [1, 2, 3])
def test_both_types_of_ausn_follow_the_reference_text_and_type_g_is_esb(exponent_bits):
    for s in range(5):
        assert magnitudes(exponent_bits, s) == reference_magnitudes("G", exponent_bits, s)
        assert superposed_magnitudes(exponent_bits, s) == reference_magnitudes("A", exponent_bits, s)
        if exponent_bits + s >= 2:
            signed, unsigned = AUSN_G(exponent_bits, s), AUSN_GU(exponent_bits, s)
            for ausn, esb in (
                (signed, ESB(1 + exponent_bits + s, s)),
                (unsigned, ESBU(exponent_bits + s, s)),
            ):
                codes = range(1 << esb.bits)
                assert (ausn.bits, ausn.levels) == (esb.bits, esb.levels)
                assert [ausn.decode(code) for code in codes] == [esb.decode(code) for code in codes]


@pytest.mark.parametrize(
    ("format", "points"),
    [
        (AUSN_AU(2, 0), [2, 6, 12]),
        (AUSN_AU(2, 1), [3, 7, 10, 14, 20, 28, 40]),
        (AUSN_AU(2, 2), [5, 11, 13, 15, 18, 22, 26, 30, 36, 44, 52, 60, 72, 88, 104]),
        (AUSN_GU(2, 0), [1, 3, 6]),
        (AUSN_GU(2, 1), [1, 3, 5, 7, 10, 14, 20]),
        (AUSN_GU(2, 2), [1, 3, 5, 7, 9, 11, 13, 15, 18, 22, 26, 30, 36, 44, 52]),
        (AUSN_GU(3, 1), [1, 3, 5, 7, 10, 14, 20, 28, 40, 56, 80, 112, 160, 224, 320]),
    ],
    ids=str,
)
def test_decision_points_of_ausn(format, points):
    assert list(format.midpoints) == points


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_every_level_survives_encoding_and_every_code_decodes(format):
    for level in format.levels:
        code = format.encode(level)
        assert 0 <= code < 1 << format.bits
        assert format.decode(code) == level
    emitted = {format.encode(level) for level in format.levels}
    tolerated = [code for code in range(1 << format.bits) if code not in emitted]
    # One code of a signed format is never emitted: the negative zero, or the lowest two's complement number.
    assert tolerated == ([1 << (format.bits - 1)] if format.signed else [])
    for code in tolerated:
        assert format.decode(code) == (-(1 << (format.bits - 1)) if format.kind == "int" else 0)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_levels_increase_and_are_symmetric_if_signed(format):
    assert list(format.levels) == sorted(set(format.levels))
    assert len(format.levels) == (1 << format.bits) - format.signed
    assert 0 in format.levels
    assert format.encode(0) == 0
    if format.signed:
        assert [-level for level in reversed(format.levels)] == list(format.levels)
    assert format.magnitude_max == max(format.levels)
    assert 1 << format.magnitude_bits > format.magnitude_max >= 1 << (format.magnitude_bits - 1)
    assert format.midpoints == tuple(format.levels[i] + format.levels[i + 1] for i in range(len(format.levels) - 1))


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_order_keys_order_codes_like_levels(format):
    codes = range(1 << format.bits)
    for a in codes:
        for b in (0, a // 2, (a + 1) % len(codes), len(codes) - 1 - a):
            keys, levels = format.order_key(a) - format.order_key(b), format.decode(a) - format.decode(b)
            assert (keys > 0, keys < 0) == (levels > 0, levels < 0), (a, b)


def test_uniform_members_of_the_esb_family():
    for bits in range(2, 9):
        assert ESB(bits, bits - 2).levels == INT(bits).levels
        assert ESBU(bits, bits - 1).levels == UINT(bits).levels
        assert [ESBU(bits, bits - 1).encode(x) for x in UINT(bits).levels] == list(UINT(bits).levels)


@pytest.mark.parametrize(
    ("format", "stored", "levels", "largest", "magnitude_bits"),
    [
        (INT(4), 4, 15, 7, 3), (INT(8), 8, 255, 127, 7), (UINT(4), 4, 16, 15, 4), (UINT(8), 8, 256, 255, 8),
        (ESB(2, 0), 2, 3, 1, 1), (ESB(3, 0), 3, 7, 4, 3), (ESB(3, 1), 3, 7, 3, 2), (ESB(4, 0), 4, 15, 64, 7),
        (ESB(4, 1), 4, 15, 12, 4), (ESB(4, 2), 4, 15, 7, 3), (ESB(5, 2), 5, 31, 28, 5), (ESB(6, 3), 6, 63, 60, 6),
        (ESB(8, 5), 8, 255, 252, 8), (ESBU(4, 2), 4, 16, 28, 5), (ESBU(8, 6), 8, 256, 508, 9),
        (AUSN_A(2, 0), 3, 7, 8, 4), (AUSN_A(2, 1), 4, 15, 24, 5), (AUSN_A(2, 2), 5, 31, 56, 6),
        (AUSN_A(3, 1), 5, 31, 384, 9), (AUSN_G(2, 1), 4, 15, 12, 4), (AUSN_G(2, 3), 6, 63, 60, 6),
        (AUSN_GU(2, 2), 4, 16, 28, 5),
    ],
    ids=str,
)  # fmt: skip
def test_cost_of_the_formats(format, stored, levels, largest, magnitude_bits):
    assert (format.bits, len(format.levels), format.magnitude_max) == (stored, levels, largest)
    assert format.magnitude_bits == magnitude_bits


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_text_form_reads_back(format):
    assert Format.parse(str(format)) == format
    assert Format.parse(f" {str(format).upper()} ") == format


@pytest.mark.parametrize(
    "text",
    [
        "",
        "esb",
        "esb:4",
        "int:8,2",
        "uint:",
        "float:8",
        "esb:4,2,1",
        "esb:-4,2",
        "4,2",
        "esb: 4,2",
        "uint:8.0",
        "ausn:2,1",
        "ausn-g:3",
        "ausn-b:2,1",
        "ausn-g:2,1,1",
    ],
)
def test_unknown_text_form_is_an_error(text):
    with pytest.raises(FormatError, match=r"Unknown format .* expected int:B, uint:B, esb:B,K, .* or nuuqu:N,B, such"):
        Format.parse(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("float", 8), "Format kind must be int, uint, esb, .* or nuuqu, not 'float'"),
        (("int", 8.0), "Format bits must be an integer, not 8.0"),
        (("int", True), "Format bits must be an integer, not True"),
        (("esb", 4, "2"), "Format fraction_bits must be an integer, not '2'"),
        (("int", 1), "A format has 2 to 8 stored bits, not 1"),
        (("uint", 9), "A format has 2 to 8 stored bits, not 9"),
        (("uint", 8, 1), "uint has no fraction bits, but 1 were given"),
        (("esb", 4, 3), "esb:4,3 leaves 0 exponent bits; expected 0 <= k <= 2"),
        (("esbu", 4, 4), "esbu:4,4 leaves 0 exponent bits; expected 0 <= k <= 3"),
        (("esb", 4, -1), "expected 0 <= k <= 2"),
        (("ausn-g", 3, 2), "ausn-g:0,2 leaves 0 exponent bits; expected 0 <= s <= 1 with 3 stored bits"),
        (("ausn-a", 5, 0), "ausn-a:4,0 has 4 exponent bits and 16-bit magnitudes; the limits are 3 and 12"),
        (("ausn-au", 8, 5), "ausn-au:3,5 has 3 exponent bits and 13-bit magnitudes"),
        (("esb", 5, 0), "esb:5,0 has 4 exponent bits and 15-bit magnitudes; the limits are 3 and 12"),
    ],
)
def test_format_that_does_not_exist_is_an_error(arguments, message):
    with pytest.raises(FormatError, match=message):
        Format(*arguments)


@pytest.mark.parametrize(("format", "level"), [(ESB(4, 1), 5), (INT(4), -8), (UINT(4), 16), (ESBU(4, 2), -1)])
def test_encoding_what_is_no_level_is_an_error(format, level):
    with pytest.raises(FormatError, match=rf"{level} is not a level of {format}; its levels are {format.levels[0]} "):
        format.encode(level)


@pytest.mark.parametrize("code", [-1, 16])
def test_decoding_what_is_no_code_is_an_error(code):
    with pytest.raises(FormatError, match=rf"{code} is not a code of esb:4,2; expected 0 to 15"):
        ESB(4, 2).decode(code)
