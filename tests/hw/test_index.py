"""Codes that are indices of levels: encoder and decoder of table cells against the definition of the projection."""

from bisect import bisect_right
from itertools import pairwise

import pytest
from hw.pipeline import feed
from sigbit_hw.arith.index import IndexDecoder, IndexEncoder
from sigbit_hw.spec.formats import INT, UINT, Format, FormatError
from sigbit_hw.spec.instructions import Encoding
from sigbit_hw.spec.parts import indexed_parts

FOUR = [
    *("ausn-gu:2,2", "ausn-gu:3,1", "ausn-au:1,3", "ausn-au:2,2", "ausn-au:3,1"),
    *("ausn-g:2,1", "ausn-g:3,0", "ausn-a:1,2", "ausn-a:2,1", "ausn-a:3,0", "esb:4,0", "esbu:3,1", "esb:3,0"),
    *("nuuqu:16,8=0,1,2,3,9,17,40,41,42,80,90,100,180,200,254,255", "nuuq:5,8=-127,-100,0,1,127", "nuuqu:2,1=0,1"),
]
SHORT = {2: ["esbu:2,0", "nuuq:3,8=-127,0,127"], 3: ["esb:3,0", "ausn-au:2,1", "nuuqu:5,4=0,1,4,9,15"]}
CASES = [(4, text) for text in FOUR] + [(bits, text) for bits, texts in SHORT.items() for text in texts]
UNIFORM = [make(bits) for make in (UINT, INT) for bits in (2, 4, 5, 8)]


def middles(levels):
    return [low + high for low, high in pairwise(levels)]


@pytest.mark.parametrize("relu", [0, 1])
@pytest.mark.parametrize(("bits", "text"), CASES)
def test_every_half_unit_value_gets_the_index_of_the_nearest_level(bits, text, relu):
    parts = indexed_parts(bits, Format.parse(text))
    sums = middles(parts.levels)
    dut = IndexEncoder(bits)
    limit = 1 << len(dut.half_units) - 1
    # Around every point where the level changes, and everything of short reach.
    near = {point + distance for point in sums for distance in (-1, 0, 1)}
    values = sorted({*range(-limit, limit, 29), *range(-40, 120), *near, -limit, limit - 1})
    assert dut.latency_cycles == max(bits, 3) + 1
    inputs = [{"half_units": q, "relu": relu, "encoding": Encoding.NATIVE, "middles": sums} for q in values]
    for q, code in zip(values, feed(dut, inputs, lambda ctx: ctx.get(dut.code)), strict=True):
        q = max(q, 0) if relu else q
        assert code == bisect_right(sums, q), q
        stored = parts.stored.levels
        assert parts.levels[code] == stored[bisect_right(middles(stored), q)]


def test_middles_change_from_one_value_to_the_next_in_the_cycles_stated():
    tables = [indexed_parts(4, Format.parse(text)).levels for text in FOUR if "3,0" not in text]
    dut = IndexEncoder(4)
    wanted = dut.middle_cycles
    assert wanted == (2, 1, 2, 1, 2, 1, 2, 0, 2, 1, 2, 1, 2, 1, 2)
    values = [(q, tables[number % len(tables)]) for number, q in enumerate(range(-60, 400, 3))]
    inputs = [
        {
            "half_units": q,
            "middles": [middles(values[max(now - late, 0)][1])[j] for j, late in enumerate(wanted)],
        }
        for now, (q, _) in enumerate(values)
    ]
    codes = feed(dut, inputs, lambda ctx: ctx.get(dut.code))
    assert codes[: len(values) - 2] == [bisect_right(middles(levels), q) for q, levels in values][: len(values) - 2]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_uniform_levels_are_digits_and_raw_passes_the_field(bits):
    dut = IndexEncoder(bits)
    inputs, expected = [], []
    for stored in UNIFORM:
        parts = indexed_parts(bits, stored)
        own = {
            "limit": (1 << stored.bits) - 1,
            "excess": parts.offset,
            "encoding": Encoding.INT if stored.signed else Encoding.UINT,
        }
        for q in range(-300, 600, 7):
            level = stored.levels[bisect_right(stored.midpoints, q)]
            for part, code in enumerate(parts.codes(level)):
                inputs.append({"half_units": q, "part": part, **own})
                expected.append(code)
    for field in range(1 << bits):
        inputs.append({"half_units": -5, "field": field, "encoding": Encoding.RAW, "relu": 1})
        expected.append(field)
    assert feed(dut, inputs, lambda ctx: ctx.get(dut.code)) == expected


@pytest.mark.parametrize(("bits", "text"), CASES)
def test_every_level_comes_back_from_its_index_or_digits(bits, text):
    dut = IndexDecoder(bits)
    inputs, expected = [], []
    for stored in (Format.parse(text), UINT(8), INT(5)):
        parts = indexed_parts(bits, stored)
        distances = [level - parts.levels[0] for level in parts.levels] if parts.levels else [3] * (1 << bits)
        for level in stored.levels:
            for part, code in enumerate(parts.codes(level)):
                inputs.append(
                    {
                        "code": code,
                        "enable": 1,
                        "first": part == 0,
                        "part": part,
                        "native": bool(parts.levels),
                        "lowest": -parts.offset,
                        "distances": distances,
                    }
                )
            expected.append((len(inputs) - 1, level))
    disabled = {"enable": 0, "first": 1, "part": 0, "native": 1, "lowest": 0, "distances": [9] * (1 << bits)}
    inputs += [{"code": code, **disabled} for code in range(1 << bits)]
    expected += [(len(inputs) - 1 - code, 0) for code in range(1 << bits)]
    levels = feed(dut, inputs, lambda ctx: ctx.get(dut.level))
    assert [levels[index] for index, _ in expected] == [level for _, level in expected]


@pytest.mark.parametrize(
    ("bits", "text", "count"),
    [
        (4, "uint:8", 2), (4, "int:4", 1), (3, "int:8", 3), (4, "esbu:4,3", 1), (4, "esbu:8,7", 2), (2, "uint:8", 4),
        (4, "nuuqu:16,8=0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,255", 1), (3, "nuuqu:9,4=0,1,2,3,4,5,6,7,15", 2),
        (4, "nuuqu:2,8=1,255", 2),
    ],
)  # fmt: skip
def test_evenly_spaced_levels_are_digits_and_others_one_code_if_they_fit(bits, text, count):
    stored = Format.parse(text)
    parts = indexed_parts(bits, stored)
    assert parts.count == count
    for level in stored.levels:
        codes = parts.codes(level)
        assert len(codes) == count
        assert all(0 <= code < 1 << bits for code in codes)
        if parts.levels:
            assert parts.levels[codes[0]] == level
        else:
            assert sum(code << bits * part for part, code in enumerate(codes)) == level + parts.offset
    assert bool(parts.levels) == (text.startswith("nuuqu:16"))


@pytest.mark.parametrize(("bits", "text"), [(4, "esbu:5,3"), (3, "ausn-au:2,2"), (2, "esb:3,0")])
def test_more_levels_than_codes_are_an_error(bits, text):
    with pytest.raises(FormatError, match=f"Activations {text} have .* codes of {bits} bits are {1 << bits}: use uint"):
        indexed_parts(bits, Format.parse(text))
