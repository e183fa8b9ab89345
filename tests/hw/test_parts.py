"""Term parts: native digits that add up to every level of a wider format."""

from itertools import combinations_with_replacement, product

import pytest
from sigbit_hw.spec.formats import AUSN_A, AUSN_G, AUSN_GU, ESB, ESBU, INT, UINT, FormatError
from sigbit_hw.spec.parts import activation_parts, part_shift_bits, weight_parts

NATIVE_ACTIVATIONS = [ESBU(2, 0), ESBU(3, 1), ESBU(4, 2), ESBU(4, 1), ESBU(8, 6), UINT(2), UINT(4), UINT(8), ESB(4, 2),
                      ESB(5, 2), INT(4), INT(8)]  # fmt: skip
UNIFORM = [kind(bits) for kind in (UINT, INT) for bits in range(2, 9)]


@pytest.mark.parametrize("native", NATIVE_ACTIVATIONS, ids=str)
def test_step_is_the_longest_run_of_levels_that_are_their_own_codes(native):
    step = part_shift_bits(native)
    run = 0
    while run in native.levels and native.encode(run) == run:
        run += 1
    assert 1 << step <= run < 2 << step


@pytest.mark.parametrize("native", NATIVE_ACTIVATIONS, ids=str)
@pytest.mark.parametrize("stored", [*UNIFORM, ESBU(3, 2), ESB(5, 3)], ids=str)
def test_activation_digits_are_native_and_add_up(native, stored):
    parts = activation_parts(native, stored)
    for level in stored.levels:
        codes = parts.codes(level)
        assert len(codes) == parts.count
        digits = [native.decode(code) for code in codes]
        assert sum(digit << (parts.step * j) for j, digit in enumerate(digits)) == level + parts.offset
    if stored.levels == native.levels:
        assert parts == activation_parts(native, native)
    else:
        assert parts.offset == (1 << (stored.bits - 1) if stored.signed else 0)
        assert parts.count * parts.step >= stored.bits > (parts.count - 1) * parts.step


def test_activations_of_ausn_type_g_are_those_of_esb():
    native = ESBU(4, 2)
    assert activation_parts(native, AUSN_GU(2, 2)) == activation_parts(native, native)


@pytest.mark.parametrize("native", NATIVE_ACTIVATIONS, ids=str)
def test_native_activations_are_one_part_each(native):
    parts = activation_parts(native, native)
    assert [parts.codes(level) for level in native.levels] == [(native.encode(level),) for level in native.levels]
    assert [parts.levels[native.encode(level)] for level in native.levels] == list(native.levels)


@pytest.mark.parametrize(
    ("native", "stored"), [(ESBU(4, 2), ESBU(4, 1)), (UINT(8), ESBU(4, 2)), (ESBU(4, 2), ESB(5, 2))]
)
def test_activations_of_a_foreign_significant_bit_format_are_an_error(native, stored):
    with pytest.raises(FormatError, match=f"Activations {stored} do not run on an array built for {native}"):
        activation_parts(native, stored)


NATIVE_WEIGHTS = [ESB(2, 0), ESB(3, 0), ESB(3, 1), ESB(4, 0), ESB(4, 1), ESB(4, 2), ESB(5, 2), ESB(8, 5), INT(4),
                  INT(8)]  # fmt: skip


@pytest.mark.parametrize("native", NATIVE_WEIGHTS, ids=str)
@pytest.mark.parametrize(
    "stored", [INT(8), INT(4), INT(2), ESB(4, 2), ESB(5, 2), ESB(3, 0), AUSN_A(2, 1), AUSN_G(2, 2)], ids=str
)
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_weight_parts_are_native_and_add_up(native, stored, step):
    if native == ESB(2, 0):
        step = min(step, 2)  # sums of few ternary digits leave gaps between wider steps
    parts = weight_parts(native, stored, step)
    assert parts.stored == stored
    assert list(parts.shifts) == sorted(parts.shifts)
    assert set(parts.table) == set(stored.levels)
    for level, digits in parts.table.items():
        assert len(digits) == len(parts.shifts)
        assert all(digit in native.levels for digit in digits)
        assert sum(digit << shift * step for digit, shift in zip(digits, parts.shifts, strict=True)) == level


def writable(native, shifts, step):
    """Everything that some choice of native digits adds up to."""
    return {
        sum(digit << shift * step for digit, shift in zip(digits, shifts, strict=True))
        for digits in product(native.levels, repeat=len(shifts))
    }


@pytest.mark.parametrize(
    ("native", "stored", "step", "count"),
    [
        (ESB(4, 2), ESB(4, 2), 3, 1),
        (ESB(4, 2), INT(4), 3, 1),
        (ESB(5, 2), INT(4), 3, 1),
        (ESB(4, 2), INT(8), 3, 3),
        (ESB(4, 2), INT(8), 4, 4),
        (ESB(5, 2), INT(8), 3, 2),
        (ESB(4, 1), INT(8), 2, 3),
        (ESB(3, 0), INT(4), 1, 2),
        (ESB(4, 1), AUSN_G(2, 1), 3, 1),
        (ESB(4, 2), AUSN_A(2, 1), 3, 2),
        (ESB(4, 2), AUSN_A(3, 0), 3, 3),
        (ESB(2, 0), INT(3), 1, 2),
        (ESB(2, 0), INT(4), 1, 3),
    ],
)
def test_no_smaller_number_of_parts_would_do(native, stored, step, count):
    assert len(weight_parts(native, stored, step).shifts) == count
    for shifts in combinations_with_replacement(range(stored.magnitude_bits // step + 2), count - 1):
        assert not set(stored.levels) <= writable(native, shifts, step), shifts


@pytest.mark.parametrize("step", [3, 4])
def test_too_many_parts_are_an_error(step):
    with pytest.raises(FormatError, match="Weights int:8 cannot be written as at most 8 parts of esb:2,0"):
        weight_parts(ESB(2, 0), INT(8), step)
