"""Encoder against the golden model, for every half-unit value."""

from bisect import bisect_right

import pytest
from amaranth import *
from amaranth.sim import Simulator
from hw.pipeline import feed
from sigbit_hw.arith.encode import Encoder, uniform_range
from sigbit_hw.spec.formats import INT, UINT, Format
from sigbit_hw.spec.instructions import Encoding
from sigbit_hw.spec.parts import activation_parts
from sigbit_sim.golden import numerics

NATIVE = [
    *("esbu:4,2", "esb:4,2", "esb:5,2", "esb:4,1", "esb:3,0", "esbu:2,0", "esbu:2,1", "esb:4,0", "esbu:8,6"),
    *("uint:4", "int:4", "uint:8", "int:8", "int:2"),
    *("ausn-gu:2,2", "ausn-au:2,0", "ausn-a:2,0", "ausn-au:2,1", "ausn-a:2,2", "ausn-a:3,1", "ausn-au:1,2"),
]
#: Formats of which everything is tried with every uniform format.
THOROUGH = ("esbu:4,2", "esb:4,1", "int:4", "uint:8")
UNIFORM = [make(bits) for make in (UINT, INT) for bits in range(2, 9)]


def range_of(stored):
    """What the encoder has to be told of a uniform format."""
    if not stored.uniform:
        return {}
    return {"limit": (1 << stored.bits) - 1, "excess": 1 << (stored.bits - 1) if stored.signed else 0}


def run(dut, inputs, stored):
    """Feed one dict of members per cycle; the codes."""
    inputs = [{**range_of(stored), **values} for values in inputs]
    return feed(dut, inputs, lambda ctx: ctx.get(dut.code))


def nearest_level(q, format):
    """The projection by its definition: the rank is the number of decision points up to ``q``."""
    return format.levels[bisect_right(format.midpoints, q)]


def reference(q, native, stored, relu, part):
    level = nearest_level(q, stored)
    if relu:
        level = max(level, 0)
    return activation_parts(native, stored).codes(level)[part]


def limit_of(dut):
    return 1 << (len(dut.half_units) - 1)


@pytest.mark.parametrize("relu", [0, 1])
@pytest.mark.parametrize("text", NATIVE)
def test_every_half_unit_value_gets_the_nearest_level(text, relu):
    native = Format.parse(text)
    dut = Encoder(native)
    values = range(-limit_of(dut), 40) if relu else range(-limit_of(dut), limit_of(dut))
    inputs, expected = [], []
    # No digits add up to evenly spaced levels in type A.
    uniform = (UNIFORM if text in THOROUGH else [UINT(8), INT(8), INT(5)]) if native.gradual else []
    for stored in (native, *uniform):
        if inputs and stored == native:
            continue
        encoding = Encoding.NATIVE if stored == native else Encoding.INT if stored.signed else Encoding.UINT
        parts = activation_parts(native, stored).count
        for q in values:
            for part in range(parts) if text == "esbu:4,2" else [q % parts]:
                fields = {"half_units": q, "relu": relu, "part": part, "encoding": encoding, **range_of(stored)}
                inputs.append(fields)
                expected.append((stored, q, part, reference(q, native, stored, relu, part)))
    for code, (stored, q, part, wanted) in zip(run(dut, inputs, native), expected, strict=True):
        assert code == wanted, f"{stored}, q = {q}, part {part}: {code}, expected {wanted}"


@pytest.mark.parametrize("text", NATIVE)
def test_the_range_follows_from_encoding_and_bits(text):
    native = Format.parse(text)
    encoding, bits = Signal(2), Signal(4)
    limit, excess = Signal(8), Signal(8)
    m = Module()
    m.d.comb += Cat(limit, excess).eq(Cat(uniform_range(native, encoding, bits)))

    async def bench(ctx):
        for stored in UNIFORM:
            for kind in (Encoding.INT if stored.signed else Encoding.UINT, Encoding.NATIVE):
                ctx.set(encoding, kind)
                ctx.set(bits, stored.bits)
                wanted = range_of(native if kind == Encoding.NATIVE else stored)
                assert not wanted or (ctx.get(limit), ctx.get(excess)) == (wanted["limit"], wanted["excess"]), stored

    simulator = Simulator(m)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("text", NATIVE)
def test_native_codes_equal_the_golden_encoder(text):
    native = Format.parse(text)
    dut = Encoder(native)
    values = list(range(-limit_of(dut), limit_of(dut), 3))
    codes = run(dut, [{"half_units": q} for q in values], native)
    assert codes == numerics.encode_half_units(values, native).tolist()


@pytest.mark.parametrize("text", ["esbu:4,2", "int:4", "esb:3,0"])
def test_raw_passes_the_field_whatever_the_value(text):
    native = Format.parse(text)
    cases = [(q, field) for q in (-300, -1, 0, 511) for field in range(1 << native.bits)]
    codes = run(
        Encoder(native),
        [{"half_units": q, "field": field, "encoding": Encoding.RAW, "relu": 1} for q, field in cases],
        native,
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
        assert native.decode(run(Encoder(native), [{"half_units": half_units}], native)[0]) == level


def test_code_comes_exactly_after_the_stated_latency():
    native = Format.parse("esbu:4,2")
    dut = Encoder(native)
    assert dut.latency_cycles == 4
    assert run(dut, [{"half_units": q} for q in (0, 0, 14, 0, 0)], native) == [0, 0, 7, 0, 0]


def test_a_format_is_required():
    with pytest.raises(TypeError, match="must be a Format"):
        Encoder("uint:4")
