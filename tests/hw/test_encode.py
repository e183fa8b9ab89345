"""Encoder against the golden model, for every half-unit value."""

from bisect import bisect_right

import pytest
from hw.pipeline import feed
from sigbit_hw.arith.encode import Encoder
from sigbit_hw.spec.formats import INT, UINT, Format
from sigbit_hw.spec.instructions import Encoding
from sigbit_hw.spec.parts import activation_parts
from sigbit_sim.golden import numerics

NATIVE = [
    *("esbu:4,2", "esb:4,2", "esb:5,2", "esb:4,1", "esb:3,0", "esbu:2,0", "esbu:2,1", "esb:4,0", "esbu:8,6"),
    *("uint:4", "int:4", "uint:8", "int:8", "int:2"),
]
STORED = {Encoding.UINT8: UINT(8), Encoding.INT8: INT(8)}


def run(dut, inputs):
    """Feed one dict of members per cycle; the codes."""
    return feed(dut, inputs, lambda ctx: ctx.get(dut.code))


def nearest_level(q, format):
    """The projection by its definition: the rank is the number of decision points up to ``q``."""
    return format.levels[bisect_right(format.midpoints, q)]


def reference(q, native, encoding, relu, part):
    stored = STORED.get(encoding, native)
    level = nearest_level(q, stored)
    if relu:
        level = max(level, 0)
    return native.encode(activation_parts(native, stored).digits(level)[part])


def limit_of(dut):
    return 1 << (len(dut.half_units) - 1)


@pytest.mark.parametrize("relu", [0, 1])
@pytest.mark.parametrize("encoding", [Encoding.NATIVE, Encoding.UINT8, Encoding.INT8])
@pytest.mark.parametrize("text", NATIVE)
def test_every_half_unit_value_gets_the_nearest_level(text, encoding, relu):
    native = Format.parse(text)
    dut = Encoder(native)
    parts = activation_parts(native, STORED.get(encoding, native)).count
    values = range(-limit_of(dut), 40) if relu else range(-limit_of(dut), limit_of(dut))
    if text in ("esbu:4,2", "esb:4,1"):
        cases = [(q, part) for q in values for part in range(parts)]
    else:
        cases = [(q, q % parts) for q in values]
    codes = run(dut, [{"half_units": q, "encoding": encoding, "relu": relu, "part": part} for q, part in cases])
    for (q, part), code in zip(cases, codes, strict=True):
        wanted = reference(q, native, encoding, relu, part)
        assert code == wanted, f"q = {q}, part {part}: {code}, expected {wanted}"


@pytest.mark.parametrize("text", NATIVE)
def test_native_codes_equal_the_golden_encoder(text):
    native = Format.parse(text)
    dut = Encoder(native)
    values = list(range(-limit_of(dut), limit_of(dut), 3))
    codes = run(dut, [{"half_units": q} for q in values])
    assert codes == numerics.encode_half_units(values, native).tolist()


@pytest.mark.parametrize("text", ["esbu:4,2", "int:4", "esb:3,0"])
def test_raw_passes_the_field_whatever_the_value(text):
    native = Format.parse(text)
    cases = [(q, field) for q in (-300, -1, 0, 511) for field in range(1 << native.bits)]
    codes = run(
        Encoder(native),
        [{"half_units": q, "field": field, "encoding": Encoding.RAW, "relu": 1} for q, field in cases],
    )
    assert codes == [field for _, field in cases]


@pytest.mark.parametrize(
    ("half_units", "levels"),
    [
        (25, {"int:8": 13, "uint:8": 13, "uint:4": 13, "esbu:4,2": 12, "esb:5,2": 12}),
        (-25, {"int:8": -12, "uint:8": 0, "uint:4": 0, "esbu:4,2": 0, "esb:5,2": -12}),
        (295, {"int:8": 127, "uint:8": 148, "uint:4": 15, "esbu:4,2": 28, "esb:5,2": 28}),
        (0, {"int:8": 0, "uint:8": 0, "uint:4": 0, "esbu:4,2": 0, "esb:5,2": 0}),
        (1, {"int:8": 1, "uint:8": 1, "uint:4": 1, "esbu:4,2": 1, "esb:5,2": 1}),
        (-2, {"int:8": -1, "uint:8": 0, "uint:4": 0, "esbu:4,2": 0, "esb:5,2": -1}),
        (-4, {"int:8": -2, "uint:8": 0, "uint:4": 0, "esbu:4,2": 0, "esb:5,2": -2}),
        (12, {"int:8": 6, "uint:8": 6, "uint:4": 6, "esbu:4,2": 6, "esb:5,2": 6}),
        (13, {"int:8": 7, "uint:8": 7, "uint:4": 7, "esbu:4,2": 7, "esb:5,2": 7}),
    ],
)
def test_pinned_row(half_units, levels):
    """NUM-T2, from q on."""
    for text, level in levels.items():
        native = Format.parse(text)
        assert native.decode(run(Encoder(native), [{"half_units": half_units}])[0]) == level


def test_code_comes_exactly_after_the_stated_latency():
    dut = Encoder(Format.parse("esbu:4,2"))
    assert dut.latency_cycles == 4
    assert run(dut, [{"half_units": q} for q in (0, 0, 14, 0, 0)]) == [0, 0, 7, 0, 0]


def test_a_format_is_required():
    with pytest.raises(TypeError, match="must be a Format"):
        Encoder("uint:4")
