"""Residual decoder: levels of all codes of all encodings, part by part."""

import pytest
from hw.pipeline import feed
from sigbit_hw.arith.residual import ResidualDecoder
from sigbit_hw.spec.formats import INT, UINT, Format
from sigbit_hw.spec.parts import activation_parts

NATIVE = ["esbu:4,2", "esb:4,1", "esbu:2,0", "uint:4", "int:4", "uint:8", "int:8", "esb:5,2"]
UNIFORM = [make(bits) for make in (UINT, INT) for bits in range(2, 9)]


def run(native, tokens):
    """``level`` after each token ``(code, enable, first, part, native, lowest)``."""
    dut = ResidualDecoder(native)
    names = ("code", "enable", "first", "part", "native", "lowest")
    inputs = [dict(zip(names, token, strict=True)) for token in tokens]
    return feed(dut, inputs, lambda ctx: ctx.get(dut.level))


@pytest.mark.parametrize("text", NATIVE)
def test_every_level_comes_back_from_its_codes(text):
    native = Format.parse(text)
    tokens, expected = [], []
    for stored in {native, *UNIFORM}:
        parts = activation_parts(native, stored)
        for level in stored.levels:
            for part, code in enumerate(parts.codes(level)):
                tokens.append((code, 1, part == 0, part, stored == native, -parts.offset))
            expected.append((len(tokens) - 1, level))
    levels = run(native, tokens)
    assert [levels[index] for index, _ in expected] == [level for _, level in expected]


def test_a_disabled_decoder_gives_zero_for_every_code():
    native = Format.parse("esbu:4,2")
    tokens = [(code, 0, 1, 0, native_code, 0) for native_code in (0, 1) for code in range(16)]
    assert run(native, tokens) == [0] * len(tokens)
