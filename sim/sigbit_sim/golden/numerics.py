"""The arithmetic of one number: projection, codes, requantizer, encoders and sign by XOR, exact in int64.

Plain functions on arrays; ``docs/numerics.md`` is the text they follow. Bounds that the rest of the system guarantees
are asserted; bounds that a caller's data can break raise.
"""

from functools import cache

import numpy as np
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import FormatError

__all__ = [
    "ACCUMULATOR_LIMIT",
    "MULTIPLIER_MAX",
    "RESIDUAL_MULTIPLIER_MAX",
    "SHIFT_MAX",
    "NumericsError",
    "decode",
    "encode",
    "encode_half_units",
    "half_units",
    "level_table",
    "order_keys",
    "project",
    "requantize",
    "superpose",
    "thresholds",
    "xor_dot",
]

#: Accumulators and biases are smaller than this in magnitude.
ACCUMULATOR_LIMIT = 1 << 31
#: Largest requantizer constants ``M0`` (at least 1), ``sh`` and ``M1``.
MULTIPLIER_MAX = (1 << 16) - 1
SHIFT_MAX = 47
RESIDUAL_MULTIPLIER_MAX = (1 << 24) - 1


class NumericsError(SigbitError):
    """Values that cannot be projected."""


def _frozen(values):
    array = np.array(values, dtype=np.int64)
    array.flags.writeable = False
    return array


@cache
def level_table(format):
    """Levels of a format in increasing order: rank -> level."""
    return _frozen(format.levels)


def superpose(codes, format):
    """Level of every AUSN code, read as its definition says: a power of two and its lower neighbours, one per bit.

    Type A adds ``2**(E + s)`` and, for every set bit ``i`` of ``m``, ``2**(E + i)``; code 0 is zero. Type G shifts one
    position less and has no leading power of two while ``E`` is 0.
    """
    codes = np.asarray(codes, dtype=np.int64)
    e, s = format.exponent_bits, format.fraction_bits
    exponent = codes >> s & (1 << e) - 1
    if format.kind in ("ausn-a", "ausn-au"):
        position, leading = exponent, codes & (1 << e + s) - 1 != 0
    else:
        position, leading = np.maximum(exponent - 1, 0), exponent != 0
    level = leading * (1 << position + s)
    for bit in range(s):
        level += (codes >> bit & 1) << position + bit
    return np.where(codes >> e + s & 1, -level, level)


@cache
def _code_levels(format):
    codes = range(format.code_count)
    return _frozen(superpose(codes, format) if format.ausn else [format.decode(code) for code in codes])


@cache
def _rank_codes(format):
    return _frozen([format.encode(level) for level in format.levels])


@cache
def _code_keys(format):
    return _frozen([format.order_key(code) for code in range(format.code_count)])


def project(values, format):
    """Level nearest to every value (real value / unit); a tie goes to the larger level, both ends saturate.

    Raises
    ------
    :exc:`NumericsError`
        If a value is NaN or infinite.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        count = np.count_nonzero(~finite)
        raise NumericsError(f"Values must be finite to be projected to {format}, but {count} of {values.size} are not")
    # Sums of neighbouring levels are integers, so their halves are exact.
    decision_points = np.array(format.midpoints) / 2
    return level_table(format)[np.searchsorted(decision_points, values, side="right")]


def encode(levels, format):
    """Stored code of every level.

    Raises
    ------
    :exc:`~sigbit_hw.spec.formats.FormatError`
        If a value is not a level of the format.
    """
    levels = np.asarray(levels)
    table = level_table(format)
    ranks = np.minimum(np.searchsorted(table, levels), len(table) - 1)
    foreign = table[ranks] != levels
    if foreign.any():
        raise FormatError(
            f"{levels[foreign].flat[0]} is not a level of {format}; its levels are {table[0]} to {table[-1]}"
        )
    return _rank_codes(format)[ranks]


def _checked_codes(codes, format):
    codes = np.asarray(codes)
    foreign = (codes < 0) | (codes >= format.code_count)
    if foreign.any():
        raise FormatError(f"{codes[foreign].flat[0]} is not a code of {format}; expected 0 to {format.code_count - 1}")
    return codes


def decode(codes, format):
    """Level of every stored code, including the codes that no encoder emits.

    Raises
    ------
    :exc:`~sigbit_hw.spec.formats.FormatError`
        If a code is too large.
    """
    return _code_levels(format)[_checked_codes(codes, format)]


def order_keys(codes, format):
    """Integers that order codes like their levels (numerics 3.5); what the maximum of the pooling unit compares."""
    return _code_keys(format)[_checked_codes(codes, format)]


def half_units(accumulator, bias, multiplier, shift, residual=0, residual_multiplier=0, negative_multiplier=None):
    """``q = floor(2 * p / 2**sh)`` with ``p = (acc + bias) * M + r * M1``; arguments broadcast.

    ``M`` is ``N0`` where ``acc + bias`` is negative, else ``M0``; without ``negative_multiplier`` it is always ``M0``.
    Every decision point of a format is an integer in half units, so no bit that the shift drops can matter.
    """
    accumulator = np.asarray(accumulator, dtype=np.int64)
    bias = np.asarray(bias, dtype=np.int64)
    multiplier = np.asarray(multiplier, dtype=np.int64)
    shift = np.asarray(shift, dtype=np.int64)
    residual = np.asarray(residual, dtype=np.int64)
    residual_multiplier = np.asarray(residual_multiplier, dtype=np.int64)
    assert (np.abs(accumulator) < ACCUMULATOR_LIMIT).all(), "accumulator overflows 32 bits"
    assert (np.abs(bias) < ACCUMULATOR_LIMIT).all(), "bias overflows 32 bits"
    assert ((multiplier >= 1) & (multiplier <= MULTIPLIER_MAX)).all(), "M0 must be 1 to 65535"
    assert ((shift >= 0) & (shift <= SHIFT_MAX)).all(), "sh must be 0 to 47"
    assert ((residual >= -(1 << 12)) & (residual < 1 << 12)).all(), "r must fit 13 signed bits"
    assert ((residual_multiplier >= 0) & (residual_multiplier <= RESIDUAL_MULTIPLIER_MAX)).all(), "M1 must fit 24 bits"
    biased = accumulator + bias
    if negative_multiplier is not None:
        negative_multiplier = np.asarray(negative_multiplier, dtype=np.int64)
        assert ((negative_multiplier >= 0) & (negative_multiplier <= MULTIPLIER_MAX)).all(), "N0 must be 0 to 65535"
        multiplier = np.where(biased < 0, negative_multiplier, multiplier)
    product = biased * multiplier + residual * residual_multiplier
    assert (np.abs(product) < 1 << 49).all(), "p overflows 50 bits"
    return (product << (shift == 0)) >> np.maximum(shift - 1, 0)


@cache
def _ranks(midpoints):
    """Rank of every number of half units from just below the lowest decision point to the highest one."""
    return _frozen(np.searchsorted(midpoints, np.arange(midpoints[0] - 1, midpoints[-1] + 1), side="right"))


def requantize(
    accumulator, bias, multiplier, shift, midpoints, residual=0, residual_multiplier=0, negative_multiplier=None
):
    """Rank of the level nearest to ``p / 2**sh``, a tie going to the larger level (numerics 6.1).

    Parameters
    ----------
    accumulator : int array
        Exact dot products, magnitude below ``2**31``.
    bias, multiplier, shift : int arrays
        ``bias``, ``M0`` and ``sh``, broadcast against the accumulator (one value per channel).
    midpoints : sequence of int
        Sums of neighbouring levels of the output format.
    residual, residual_multiplier : int arrays
        Level of a second input and its ``M1``; absent by default.
    negative_multiplier : int array, optional
        ``N0``, instead of ``M0`` where ``acc + bias`` is negative.
    """
    q = half_units(accumulator, bias, multiplier, shift, residual, residual_multiplier, negative_multiplier)
    # Nothing changes below the lowest and from the highest decision point on; a table is faster than a search.
    lowest, highest = midpoints[0] - 1, midpoints[-1]
    return _ranks(tuple(midpoints))[np.clip(q, lowest, highest) - lowest]


def thresholds(bias, multiplier, shift, midpoints):
    """Threshold form of the requantizer: ``rank`` is the number of thresholds that are ``<= acc`` (numerics 6.2).

    The result has one more axis than ``bias``: ``len(midpoints)`` thresholds per channel, increasing.
    """
    bias, multiplier, shift = (np.asarray(x, dtype=np.int64)[..., np.newaxis] for x in (bias, multiplier, shift))
    midpoints = np.asarray(midpoints, dtype=np.int64)
    # |midpoint| < 2**13 and shift <= 47, so the numerator stays below 2**60. Floor of the negative is the ceiling.
    return -((-midpoints << shift) // (2 * multiplier)) - bias


def _bit_length(values):
    # frexp is exact below 2**53; q is below 2**51.
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def _magnitude_code(x, format):
    """Magnitude code for ``x >= 0`` half units: a leading-one position, a shift and one round bit (numerics 6.4)."""
    top = (1 << format.magnitude_code_bits) - 1
    if format.uniform:
        return np.minimum((x >> 1) + (x & 1), top)
    k = format.fraction_bits
    exponent = np.maximum(1, _bit_length(x) - k - 1)
    concatenated = (x >> exponent) + ((x >> (exponent - 1)) & 1)
    if format.gradual:
        rounded = ((exponent - 1) << k) + concatenated
        return np.where(exponent > (1 << format.exponent_bits) - 1, top, np.minimum(rounded, top))
    rounded = np.clip(((exponent - 2) << k) + concatenated, 1, top)
    return np.where(x < (1 << k) + 1, 0, np.where(exponent > 1 << format.exponent_bits, top, rounded))


def encode_half_units(half_units, format):
    """Stored code straight from ``q``: the circuit's own way to the code, equal to comparing with every midpoint."""
    q = np.asarray(half_units, dtype=np.int64)
    if format.indexed:
        return (q[..., np.newaxis] >= np.array(format.midpoints)).sum(axis=-1)
    if format.kind == "int":
        return np.clip((q + 1) >> 1, -format.magnitude_max, format.magnitude_max) & ((1 << format.bits) - 1)
    if not format.signed:
        return np.where(q < 0, 0, _magnitude_code(np.maximum(q, 0), format))
    negative = q < 0
    magnitude = _magnitude_code(np.where(negative, ~q, q), format)
    return (negative & (magnitude != 0)).astype(np.int64) << (format.bits - 1) | magnitude


def xor_dot(weight_codes, activation_levels, weight_format):
    """Dot products over the last axis with negation by XOR (numerics 5.2).

    Returns
    -------
    raw : int64 array
        ``sum(p ^ mask)`` with ``p = |weight| * activation`` and an all-ones mask where the weight's sign bit is set.
    constant : int64 array
        Number of set sign bits, negative zeros included (of a codebook: negative levels); ``raw + constant`` is the
        true dot product.
    """
    weight_codes = np.asarray(weight_codes, dtype=np.int64)
    if weight_format.indexed:
        sign = (decode(weight_codes, weight_format) < 0).astype(np.int64)
    else:
        sign = weight_codes >> (weight_format.bits - 1)
    products = np.abs(decode(weight_codes, weight_format)) * np.asarray(activation_levels, dtype=np.int64)
    return (products ^ -sign).sum(axis=-1), sign.sum(axis=-1)
