"""Requantizer against the golden model."""

import random

import pytest
from hw.pipeline import feed
from sigbit_hw.arith.requantize import Requantizer, ShiftRequantizer, half_unit_bits, residual_bits
from sigbit_hw.spec.formats import INT, UINT, Format
from sigbit_sim.golden import numerics

NATIVE = ["esbu:4,2", "esb:5,2", "esb:3,0", "esbu:2,0", "int:4", "uint:8", "esbu:8,6", "esb:4,0"]
ACCUMULATOR_MAX = (1 << 31) - 1
OPERANDS = ("accumulator", "bias", "multiplier", "shift", "residual", "residual_multiplier", "negative_multiplier")
MULTIPLIERS = (1, 2, 3, 32768, 51590, 65535)


def run(dut, operands):
    """Feed one operand set per cycle, by default without a residual and with one multiplier; (half_units, field)."""
    inputs = []
    for operand in operands:
        defaults = (0, 0, operand[2])[len(operand) - 4 :]
        inputs.append(dict(zip(OPERANDS, (*operand, *defaults), strict=True)))
    return feed(dut, inputs, lambda ctx: (ctx.get(dut.half_units), ctx.get(dut.field)))


def random_operands(rng, count):
    """Operands of which many give results inside the unsaturated range."""
    operands = []
    for _ in range(count):
        accumulator, bias = (rng.randint(-ACCUMULATOR_MAX, ACCUMULATOR_MAX) >> rng.randrange(31) for _ in range(2))
        multiplier = rng.randint(1, 65535) if rng.random() < 0.3 else rng.randint(32768, 65535)
        product_bits = (abs(accumulator + bias) * multiplier).bit_length()
        shift = min(47, max(0, product_bits - rng.randrange(12))) if rng.random() < 0.8 else rng.randrange(48)
        operands.append((accumulator, bias, multiplier, shift))
    return operands


def tie_operands(midpoints):
    """Products that lie on a decision point and one step beside it."""
    operands = []
    for shift in (1, 5, 16, 17, 31, 33):
        for point in midpoints:
            exact = point << (shift - 1)
            if abs(exact) < ACCUMULATOR_MAX:
                operands += [(exact + step, 0, 1, shift) for step in (-1, 0, 1)]
    return operands


def expected(operands, native):
    limit = 1 << (half_unit_bits(native) - 1)
    pairs = []
    for operand in operands:
        q = int(numerics.half_units(*operand))
        pairs.append((max(-limit, min(limit - 1, q)), q & ((1 << native.bits) - 1)))
    return pairs


def assert_equal(operands, found, wanted):
    assert len(found) == len(wanted)
    for operand, result, reference in zip(operands, found, wanted, strict=True):
        assert result == reference, f"acc, bias, M0, sh = {operand}: {result}, expected {reference}"


@pytest.mark.parametrize("text", NATIVE)
def test_result_equals_the_golden_half_units(text):
    native = Format.parse(text)
    operands = [
        (accumulator, bias, multiplier, shift)
        for accumulator in (-ACCUMULATOR_MAX, -1, 0, 1, ACCUMULATOR_MAX)
        for bias in (-ACCUMULATOR_MAX, 0, ACCUMULATOR_MAX)
        for multiplier in (1, 65535)
        for shift in (0, 1, 47)
    ]
    operands += tie_operands(native.midpoints)[:: 1 if native.bits < 8 else 23]
    operands += random_operands(random.Random(text), 150)
    assert_equal(operands, run(Requantizer(native), operands), expected(operands, native))


def test_every_shift_and_multiplier_digit_counts():
    native = Format.parse("esbu:4,2")
    rng = random.Random(5)
    operands = []
    for shift in range(48):
        for multiplier in MULTIPLIERS + tuple(1 << rng.randrange(16) for _ in range(2)):
            value = (rng.randint(-600, 600) << shift) // (2 * multiplier)
            value = max(-2 * ACCUMULATOR_MAX, min(2 * ACCUMULATOR_MAX, value))
            operands.append((value // 2, value - value // 2, multiplier, shift))
    assert_equal(operands, run(Requantizer(native), operands), expected(operands, native))


@pytest.mark.parametrize("bits", [9, 21, 25])
def test_narrow_accumulators_are_extended(bits):
    native = Format.parse("esbu:4,2")
    extreme = (1 << (bits - 1)) - 1
    operands = [(a, b, 65535, sh) for a in (-extreme, -1, extreme) for b in (-7, ACCUMULATOR_MAX) for sh in (9, 22, 40)]
    assert_equal(operands, run(Requantizer(native, bits), operands), expected(operands, native))


@pytest.mark.parametrize(
    ("accumulator", "bias", "product", "half_units"),
    [
        (1000, 24, 52828160, 25),
        (-1000, 24, -50351840, -25),
        (12345, -345, 619080000, 295),
        (-70000, 0, -3611300000, -1723),
        (40, 0, 2063600, 0),
        (41, 0, 2115190, 1),
        (-41, 0, -2115190, -2),
        (-122, 0, -6293980, -4),
        (528, 0, 27239520, 12),
        (529, 0, 27291110, 13),
    ],
)
def test_pinned_row(accumulator, bias, product, half_units):
    """NUM-T2: M0 = 51590, sh = 22."""
    assert (accumulator + bias) * 51590 == product
    dut = Requantizer(Format.parse("esbu:4,2"))
    limit = 1 << (len(dut.half_units) - 1)
    assert run(dut, [(accumulator, bias, 51590, 22)])[0][0] == max(half_units, -limit)


@pytest.mark.parametrize("text", NATIVE)
def test_the_residual_is_added_before_the_only_rounding(text):
    native = Format.parse(text)
    rng = random.Random(text)
    limit = 1 << (residual_bits(native) - 1)
    operands = []
    for residual in {-limit, -1, 0, 1, 127, limit - 1, *(rng.randrange(-limit, limit) for _ in range(12))}:
        for residual_multiplier in (0, 1, 2, 3, 0x555555, 0xAAAAAA, 0xFFFFFF, rng.randrange(1 << 24)):
            for accumulator, bias, multiplier, shift in random_operands(rng, 2):
                near = (abs(residual) * residual_multiplier).bit_length()
                shift = rng.choice((shift, min(47, max(0, near - rng.randrange(10)))))
                accumulator >>= rng.randrange(20)
                operands.append((accumulator, bias, multiplier, shift, residual, residual_multiplier))
    assert_equal(operands, run(Requantizer(native), operands), expected(operands, native))


@pytest.mark.parametrize(
    ("accumulator", "bias", "residual", "residual_multiplier", "half_units"),
    [(1000, 24, 37, 524288, 99), (-3000, 24, 37, 524288, 0), (1000, 24, -37, 393216, -31)],
)
def test_pinned_residual_row(accumulator, bias, residual, residual_multiplier, half_units):
    """NUM-T6: M0 = 6449, sh = 19."""
    dut = Requantizer(Format.parse("esbu:4,2"))
    assert run(dut, [(accumulator, bias, 6449, 19, residual, residual_multiplier)])[0][0] == half_units


@pytest.mark.parametrize("text", NATIVE)
def test_a_negative_sum_takes_the_negative_multiplier(text):
    native = Format.parse(text)
    rng = random.Random(text)
    operands = [
        (total - bias, bias, multiplier, shift, 0, 0, negative)
        for total in (-3, -2, -1, 0, 1, 2)
        for bias in (-7, 0, 5)
        for multiplier in (1, 65535)
        for negative in (0, 1, 0x5555, 0xAAAA, 65535)
        for shift in (0, 1, 9, 17)
    ]
    for accumulator, bias, multiplier, shift in random_operands(rng, 150):
        negative = rng.choice((rng.randrange(65536), multiplier * rng.randrange(1, 256) >> 8))
        operands.append((accumulator, bias, multiplier, shift, 0, 0, negative))
    assert_equal(operands, run(Requantizer(native), operands), expected(operands, native))


@pytest.mark.parametrize(
    ("accumulator", "product", "half_units"), [(-1000, -10068416, -5), (-24, 0, 0), (-25, -10316, -1), (1000, 0, 25)]
)
def test_pinned_leaky_row(accumulator, product, half_units):
    """M0 = 51590, N0 = 10316 (a slope of 0.2), sh = 22, bias = 24."""
    assert accumulator > 0 or (accumulator + 24) * 10316 == product
    dut = Requantizer(Format.parse("esbu:4,2"))
    assert run(dut, [(accumulator, 24, 51590, 22, 0, 0, 10316)])[0][0] == half_units


@pytest.mark.parametrize("total", [0, 1, -1, 0x12345678, -0x7FFFFFFF, 0x7FFFFFFF])
def test_field_is_a_piece_of_the_unscaled_sum(total):
    dut = Requantizer(Format.parse("esbu:4,2"))
    bias = 5 if total >= 0 else -5
    inputs = [
        {"accumulator": total - bias, "bias": bias, "multiplier": 40000, "negative_multiplier": 3, "unscaled": 1,
         "shift": 4 * part + 1}
        for part in range(8)
    ]  # fmt: skip
    fields = feed(dut, inputs, lambda ctx: ctx.get(dut.field))
    assert sum(field << 4 * part for part, field in enumerate(fields)) == total & 0xFFFFFFFF


def test_result_comes_exactly_after_the_stated_latency():
    dut = Requantizer(Format.parse("esbu:4,2"))
    assert dut.latency_cycles == 15
    blank, pulse = (0, 0, 1, 0), (7, 0, 1, 0)
    results = run(dut, [blank] * 3 + [pulse] + [blank] * 3)
    assert [q for q, _ in results] == [0, 0, 0, 14, 0, 0, 0]


@pytest.mark.parametrize("text", NATIVE)
def test_saturation_keeps_every_decision_point(text):
    native = Format.parse(text)
    limit = 1 << (half_unit_bits(native) - 1)
    for format in (native, UINT(8), INT(8)):
        assert -limit < min(format.midpoints)
        assert max(format.midpoints) <= limit - 1


@pytest.mark.parametrize("text", ["ausn-gu:2,2", "ausn-a:2,1", "ausn-gu:3,1", "uint:8"])
def test_shift_mode_equals_the_golden_half_units_of_powers_of_two(text):
    native = Format.parse(text)
    rng = random.Random(text)
    operands = [
        (accumulator, bias, 1 << j, shift)
        for accumulator in (-ACCUMULATOR_MAX, -1, 0, 1, ACCUMULATOR_MAX)
        for bias in (-ACCUMULATOR_MAX, 0, ACCUMULATOR_MAX)
        for j in (0, 1, 15)
        for shift in (0, 1, 17, 47)
    ]
    operands += tie_operands(native.midpoints)[:: 1 if native.bits < 6 else 23]
    operands += [(a, b, 1 << rng.randrange(16), sh) for a, b, _, sh in random_operands(rng, 100)]
    limit = 1 << (residual_bits(native) - 1)
    for residual in (-limit, -1, 0, 1, limit - 1, *(rng.randrange(-limit, limit) for _ in range(4))):
        for j in range(-1, 24):
            near = max(0, min(47, residual.bit_length() + j - rng.randrange(9)))
            accumulator = rng.randint(-ACCUMULATOR_MAX, ACCUMULATOR_MAX) >> rng.randrange(31)
            operands.append((accumulator, rng.randint(-99, 99), 1, near, residual, 0 if j < 0 else 1 << j))
    dut = ShiftRequantizer(native)
    assert dut.latency_cycles < Requantizer.latency_cycles
    assert_equal(operands, run(dut, operands), expected(operands, native))


def test_the_field_of_shift_mode_is_a_piece_of_the_unscaled_sum():
    dut = ShiftRequantizer(Format.parse("ausn-gu:2,2"))
    total = -0x12345678
    inputs = [
        {"accumulator": total, "multiplier": 1 << 9, "unscaled": 1, "shift": 4 * part + 1, "residual_multiplier": 0}
        for part in range(8)
    ]
    fields = feed(dut, inputs, lambda ctx: ctx.get(dut.field))
    assert sum(field << 4 * part for part, field in enumerate(fields)) == total & 0xFFFFFFFF


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="must be a Format, not 'esbu'"):
        Requantizer("esbu")
    with pytest.raises(ValueError, match="must be 1 to 32, not 33"):
        Requantizer(UINT(4), 33)
