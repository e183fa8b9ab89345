"""Units: the real value of integer 1 of a tensor or of an output channel, and the requantizer constants from them.

The DDA scale rule follows the ESB paper (arXiv 2109.03513) and the table in its public code; the statistics, the search
for the least squared error and the derivation of the constants are our definitions (``docs/numerics.md``).
"""

import math
from fractions import Fraction
from functools import cache
from itertools import pairwise

import numpy as np
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import magnitudes
from sigbit_sim.golden.numerics import MULTIPLIER_MAX, RESIDUAL_MULTIPLIER_MAX, SHIFT_MAX

__all__ = [
    "ALPHA_TABLES",
    "MovingAverage",
    "ScaleError",
    "alpha_star",
    "requantizer_constants",
    "statistic",
    "unit_dda",
    "unit_from_statistic",
    "unit_max",
    "unit_mse",
    "unit_percentile",
]

#: Optimal scales of a unit normal variable by (stored bits of the signed format, fraction bits). ``global`` is
#: :func:`alpha_star`, the global minimum; ``public`` is what the public ESB code prints, local minima included.
ALPHA_TABLES = {
    "global": {
        (2, 0): 1.22401,
        (3, 0): 0.518127,
        (3, 1): 1.30154,
        (4, 0): 0.0655253,
        (4, 1): 0.487079,
        (4, 2): 1.41365,
        (5, 1): 0.0766382,
        (5, 2): 0.482773,
        (5, 3): 1.54599,
        (6, 2): 0.0405514,
        (6, 3): 0.499672,
        (6, 4): 1.68780,
        (7, 3): 0.0409406,
        (7, 4): 0.524688,
        (7, 5): 1.83236,
        (8, 4): 0.0411766,
        (8, 5): 0.552655,
        (8, 6): 1.97569,
        (9, 5): 0.0415864,
        (9, 6): 0.581613,
        (9, 7): 2.11560,
    },
    "public": {
        (2, 0): 1.2240,
        (3, 0): 0.5181,
        (3, 1): 1.3015,
        (4, 0): 0.0381,
        (4, 1): 0.4871,
        (4, 2): 1.4136,
        (5, 1): 0.0391,
        (5, 2): 0.4828,
        (5, 3): 1.5460,
        (6, 2): 0.0406,
        (6, 3): 0.4997,
        (6, 4): 1.6878,
        (7, 3): 0.0409,
        (7, 4): 0.5247,
        (7, 5): 1.8324,
        (8, 4): 0.0412,
        (8, 5): 0.5527,
        (8, 6): 1.9757,
        (9, 5): 0.0416,
        (9, 6): 0.5816,
        (9, 7): 1.9757,
    },
}

#: Candidates of the search: largest-value unit times ``2**(-j / 16)``, larger units first.
_CANDIDATES = 2.0 ** (-np.arange(-16, 80) / 16)


class ScaleError(SigbitError):
    """Data or constants for which no unit or no requantizer exists."""


def _cells(unit, levels):
    """Slope of the squared error in ``unit``, halved, and the error itself, for a unit normal variable.

    Both by exact integrals over the cells of the non-negative levels; the other half is symmetric. Cell borders do not
    enter the slope, because the error is continuous there.
    """
    borders = [0.0, *((low + high) / 2 * unit for low, high in pairwise(levels)), math.inf]
    density = [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in borders]
    # The complement keeps its relative precision in the tail.
    tail = [math.erfc(x / math.sqrt(2)) / 2 for x in borders]
    first = sum(m * (density[i] - density[i + 1]) for i, m in enumerate(levels))
    second = sum(m * m * (tail[i] - tail[i + 1]) for i, m in enumerate(levels))
    return unit * second - first, 1 + 2 * unit * (unit * second - 2 * first)


@cache
def alpha_star(bits, fraction_bits):
    """Scale with the least expected squared error for a unit normal variable, ``argmin E[(x - a Q(x/a))^2]``.

    Exact cell integrals, global minimum (the ESB formats with three exponent bits have several local ones).

    Parameters
    ----------
    bits, fraction_bits : int
        Stored bits with sign, and ``k``, of a signed ESB format. ``(bits, bits - 2)`` is the uniform one.
    """
    if fraction_bits < 0 or bits - 1 - fraction_bits < 1:
        raise ScaleError(f"ESB({bits},{fraction_bits}) does not exist; expected 0 <= k <= bits - 2")
    levels = magnitudes(bits - 1 - fraction_bits, fraction_bits)
    # The largest level lies between 0.5 and 64 standard deviations; neighbouring minima are an octave apart.
    candidates = [0.5 / levels[-1] * 2 ** (i / 32) for i in range(7 * 32 + 1)]
    best = min(range(1, len(candidates) - 1), key=lambda i: _cells(candidates[i], levels)[1])
    low, high = candidates[best - 1], candidates[best + 1]
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _cells(middle, levels)[0] < 0 else (low, middle)
    return middle * 2**fraction_bits


def _finite(values):
    values = np.asarray(values, dtype=np.float64)
    if not values.size:
        raise ScaleError("A unit needs at least one value, but the data is empty")
    finite = np.isfinite(values)
    if not finite.all():
        count = np.count_nonzero(~finite)
        raise ScaleError(f"A unit needs finite values, but {count} of {values.size} are NaN or infinite")
    return values


def _rows(values, channel_axis):
    """Values as one row per channel, or one row in all."""
    values = _finite(values)
    if channel_axis is None:
        return values.reshape(1, -1)
    return np.moveaxis(values, channel_axis, 0).reshape(values.shape[channel_axis], -1)


def _result(units, channel_axis):
    return float(units[0]) if channel_axis is None else units


def _representable(rows, format):
    """Values that the format has to carry: an unsigned format drops negative values, as ReLU does, and of a symmetric
    one magnitudes suffice."""
    if not format.signed:
        return np.maximum(rows, 0)
    return rows if format.indexed else np.abs(rows)


def statistic(values, format, channel_axis=None):
    """Root mean square about zero; of the strictly positive values alone if the format is unsigned.

    Returns a float, or a float64 array with one entry per index of ``channel_axis``. Data without any (positive)
    value other than zero has the statistic 0.

    Raises
    ------
    :exc:`ScaleError`
        If the data is empty, or holds NaN or infinity.
    """
    rows = _rows(values, channel_axis)
    kept = np.ones_like(rows, dtype=bool) if format.signed else rows > 0
    squares = np.sum(np.where(kept, rows, 0) ** 2, axis=1)
    return _result(np.sqrt(squares / np.maximum(kept.sum(axis=1), 1)), channel_axis)


def unit_from_statistic(value, format, alpha_table="global"):
    """``alpha * statistic * 2**-k``, and 1 where the statistic is 0.

    An unsigned format is one half of the signed format with one more bit and uses its ``alpha``; uniform formats are
    the ESB members with one exponent bit.
    """
    if alpha_table not in ALPHA_TABLES:
        raise ScaleError(f"alpha_table must be {' or '.join(ALPHA_TABLES)}, not {alpha_table!r}")
    if format.indexed:
        raise ScaleError(f"The distribution difference aligner has no scale for codebooks such as {format.label}")
    fraction_bits = format.magnitude_code_bits - 1 if format.uniform else format.fraction_bits
    alpha = ALPHA_TABLES[alpha_table][format.magnitude_code_bits + 1, fraction_bits]
    units = np.where(np.asarray(value) > 0, alpha * np.asarray(value) / 2**fraction_bits, 1.0)
    return units if units.ndim else float(units)


def unit_dda(values, format, channel_axis=None, alpha_table="global"):
    """Unit by the distribution difference aligner: :func:`unit_from_statistic` of :func:`statistic`."""
    return unit_from_statistic(statistic(values, format, channel_axis), format, alpha_table)


def unit_max(values, format, channel_axis=None):
    """Unit that puts the largest magnitude on the largest level; 1 for data without one."""
    largest = np.abs(_representable(_rows(values, channel_axis), format)).max(axis=1)
    return _result(np.where(largest > 0, largest / format.magnitude_max, 1.0), channel_axis)


def unit_percentile(values, format, channel_axis=None, percentage=99.9):
    """Unit that puts this percentile of the non-zero magnitudes on the largest level; 1 for data without one.

    The percentile is that of NumPy, linear between neighbours.
    """
    rows = _representable(_rows(values, channel_axis), format)
    found = np.array([np.percentile(row[row > 0], percentage) if row.any() else 0.0 for row in rows])
    return _result(np.where(found > 0, found / format.magnitude_max, 1.0), channel_axis)


def unit_mse(values, format, channel_axis=None, counts=None):
    """Unit with the least squared error of nearest-level quantization.

    Candidates are ``unit_max * 2**(-j/16)`` for ``j = -16 .. 79``; ties go to the larger one. Cost is one sort of the
    data and, per channel and candidate, one search per level.

    Parameters
    ----------
    values : array
        Real values, or the bin centres of a histogram.
    format : :class:`~sigbit_hw.spec.formats.Format`
    channel_axis : int or None
        Axis with one unit per index; None for one unit in all.
    counts : array or None
        Weight of every value, of the shape of ``values``; 1 by default.

    Raises
    ------
    :exc:`ScaleError`
        If the data is empty or holds NaN or infinity, or ``counts`` does not fit it.
    """
    rows = _representable(_rows(values, channel_axis), format)
    if counts is None:
        rows, weights = np.sort(rows, axis=1), np.ones_like(rows)
    else:
        if np.shape(counts) != np.shape(values) or np.min(counts) < 0:
            raise ScaleError(f"counts must be non-negative and of shape {np.shape(values)}, not of {np.shape(counts)}")
        weights = _rows(counts, channel_axis)
        rows = np.where(weights > 0, rows, 0)
        order = np.argsort(rows, axis=1)
        rows, weights = np.take_along_axis(rows, order, 1), np.take_along_axis(weights, order, 1)
    units = np.ones(len(rows))
    for channel, row in enumerate(rows):
        if np.abs(row[[0, -1]]).max() > 0:
            units[channel] = _least_error(row, weights[channel], format)
    return _result(units, channel_axis)


def _least_error(row, weights, format):
    """Best candidate for sorted values as :func:`_representable` gives them."""
    candidates = np.abs(row[[0, -1]]).max() / format.magnitude_max * _CANDIDATES
    levels = np.array(format.levels if format.indexed else format.magnitudes, dtype=np.float64)
    borders = (levels[1:] + levels[:-1]) / 2
    below = np.searchsorted(row, candidates[:, np.newaxis] * borders)
    # Sums of weight and of weight times value over everything at or above a border; each border adds one level step.
    count = np.append(np.cumsum(weights[::-1])[::-1], 0)[below]
    first = np.append(np.cumsum((weights * row)[::-1])[::-1], 0)[below]
    energy = np.dot(weights, row * row)
    squares = weights.sum() * levels[0] ** 2 + count @ np.diff(levels**2)
    products = np.dot(weights, row) * levels[0] + first @ np.diff(levels)
    errors = energy + candidates**2 * squares - 2 * candidates * products
    # The sums cancel down to rounding noise, so near-ties are decided by the errors themselves.
    finalists = candidates[errors <= errors.min() + 1e-9 * energy]
    direct = [
        np.dot(weights, (row - unit * levels[np.searchsorted(borders, row / unit, side="right")]) ** 2)
        for unit in finalists
    ]
    return finalists[np.argmin(direct)]


class MovingAverage:
    """Exponential moving average of an activation statistic: ``shadow = m * shadow + (1 - m) * batch``.

    The first batch sets the average. The momentum is that of the sibling quantizers in the public ESB code.
    """

    def __init__(self, momentum=0.9):
        if not 0 <= momentum < 1:
            raise ScaleError(f"momentum must be at least 0 and below 1, not {momentum!r}")
        self._momentum = momentum
        self._value = None

    @property
    def value(self):
        """The average.

        Raises
        ------
        :exc:`ScaleError`
            Before the first batch.
        """
        if self._value is None:
            raise ScaleError("The average has no value yet; update it with at least one batch of calibration data")
        return self._value

    def update(self, batch):
        """Take in the statistic of one batch and return the new average."""
        _finite(batch)
        if self._value is None:
            self._value = batch
        else:
            self._value = self._momentum * self._value + (1 - self._momentum) * batch
        return self._value


def _rounded(ratio, shift):
    return math.floor(ratio * (1 << shift) + Fraction(1, 2))


def requantizer_constants(r0, r1=None, negative=None):
    """Integer constants of a requantizer with the real gain ``r0`` (exact, numerics 6.5).

    Parameters
    ----------
    r0 : :class:`~fractions.Fraction`
        ``u_w * u_a / u_out``.
    r1 : :class:`~fractions.Fraction` or None
        ``u_residual / u_out``; None without a residual input.
    negative : :class:`~fractions.Fraction` or None
        Gain of negative sums, at least 0; None if it is ``r0``.

    Returns
    -------
    tuple of int
        ``(M0, sh)``, then ``M1`` with a residual, then ``N0`` with a gain of negative sums: ``sh`` is the largest shift
        of 0..47 for which the rounded constants fit 16, 24 and 16 bits.

    Raises
    ------
    :exc:`ScaleError`
        If a gain is not positive, or no shift gives constants that fit.
    """
    for name, ratio in (("r0", r0), ("r1", r1)):
        if ratio is not None and not (isinstance(ratio, Fraction) and ratio > 0):
            raise ScaleError(f"{name} must be a positive Fraction, not {ratio!r}")
    if negative is not None and not (isinstance(negative, Fraction) and negative >= 0):
        raise ScaleError(f"negative must be a Fraction of at least 0, not {negative!r}")
    optional = [(r1, RESIDUAL_MULTIPLIER_MAX), (negative, MULTIPLIER_MAX)]
    gains = [(r0, MULTIPLIER_MAX), *((gain, limit) for gain, limit in optional if gain is not None)]
    for shift in range(SHIFT_MAX, -1, -1):
        multiplier, *others = (_rounded(gain, shift) for gain, _ in gains)
        if all(value <= limit for value, (_, limit) in zip((multiplier, *others), gains, strict=True)):
            break
    else:
        raise ScaleError(
            f"Gains {' and '.join(f'{float(gain):.6g}' for gain, _ in gains)} are too large for a requantizer; "
            f"use a larger output unit"
        )
    if multiplier == 0:
        raise ScaleError(f"Gain {float(r0):.6g} is too small for a requantizer; use a smaller output unit")
    return (multiplier, shift, *others)
