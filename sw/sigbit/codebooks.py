"""Codebooks of NUUQ formats: the levels and the unit with the least squared error, by an exact dynamic programme.

The search is our definition (``docs/nuuq.md``); the idea of few levels that are integers is that of Zacchigna et al.,
Electronics 13(10), 1923, 2024.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import Format
from sigbit_sim.golden.numerics import project

__all__ = ["Codebook", "CodebookError", "fit_weights", "project_weights", "search_codebook", "search_levels"]

#: Candidates for the full scale, which is the largest integer of the grid times the unit, in root mean squares.
FULL_SCALES = np.arange(10, 81) / 10


class CodebookError(SigbitError):
    """Data or options for which there is no codebook."""


@dataclass(frozen=True)
class Codebook:
    """Result of a search.

    Attributes
    ----------
    format : :class:`~sigbit_hw.spec.formats.Format`
        With its levels.
    unit : float
        Real value of integer 1.
    error : float
        Sum of squared differences between values and nearest levels.
    """

    format: Format
    unit: float
    error: float


class _Samples:
    """Sorted values with their sums up to every one."""

    def __init__(self, values, counts=None):
        values = np.asarray(values, dtype=np.float64).ravel()
        if not values.size:
            raise CodebookError("A codebook needs at least one value, but the data is empty")
        if not np.isfinite(values).all():
            raise CodebookError("A codebook needs finite values, but some are NaN or infinite")
        if counts is None:
            self.values = np.sort(values)
            weights = np.ones_like(values)
        else:
            weights = np.asarray(counts, dtype=np.float64).ravel()
            if weights.shape != values.shape or weights.min() < 0 or not weights.any():
                raise CodebookError(f"counts must be {values.size} numbers of at least 0, not all of them 0")
            order = np.argsort(values, kind="stable")
            self.values, weights = values[order], weights[order]
        self.count = np.concatenate([[0.0], np.cumsum(weights)])
        self.total = np.concatenate([[0.0], np.cumsum(weights * self.values)])
        self.energy = float(np.dot(weights, self.values**2))

    @property
    def root_mean_square(self):
        return float(np.sqrt(self.energy / self.count[-1]))


@dataclass(frozen=True)
class _Grid:
    """Consecutive integers ``low`` to ``high`` of which ``levels`` are chosen.

    ``first``: the lowest is one of them. ``zero``: 0 is one of them.
    """

    low: int
    high: int
    levels: int
    first: bool = False
    zero: bool = False


def _grid(format, zero, symmetric):
    low, high = format.level_range
    if not symmetric:
        return _Grid(low, high, format.level_count, zero=zero)
    if not format.signed:
        raise CodebookError(f"Only signed codebooks can be symmetric, not {format.label}")
    odd = format.level_count % 2
    if zero and not odd:
        raise CodebookError(
            f"A symmetric codebook of {format.level_count} levels has no zero; choose an odd number, or one constraint"
        )
    return _Grid(0 if odd else 1, high, (format.level_count + 1) // 2, first=bool(odd))


def _best(samples, grid, unit):
    """Least squared error in units of ``unit**2``, and indices of the levels in the grid.

    ``V[i][j] = (i - j) * ((g_i + g_j) * C - 2 * F)``, with the number ``C`` and the sum ``F`` of the values below the
    middle of two levels, is what the error grows by if ``g_i`` instead of ``g_j`` stands for all these values. So the
    error of levels ``i < j < ... < k`` is ``V[i][j] + ...`` plus the error of ``g_k`` for all values.
    """
    size = grid.high - grid.low + 1
    sums = 2 * grid.low + np.arange(2 * size - 1)
    below = np.searchsorted(samples.values, sums * (unit / 2))
    gain = sums * samples.count[below] - 2 * samples.total[below] / unit
    index = np.arange(size)
    # Row j, column i: a minimum over i runs along memory, and the first one is the smallest i.
    steps = (index - index[:, np.newaxis]) * gain[index + index[:, np.newaxis]]
    steps[index[:, np.newaxis] <= index] = np.inf
    errors = np.zeros(size)
    levels = grid.low + index
    if grid.zero:
        steps[np.logical_and.outer(levels > 0, levels < 0)] = np.inf
        errors[levels > 0] = np.inf
    if grid.first:
        errors[1:] = np.inf
    sources = np.empty((grid.levels - 1, size), dtype=np.intp)
    totals = np.empty_like(steps)
    for source in sources:
        np.add(steps, errors, out=totals)
        totals.argmin(axis=1, out=source)
        errors = totals[index, source]
    errors += levels**2 * samples.count[-1] - 2 * levels * (samples.total[-1] / unit)
    if grid.zero:
        errors[levels < 0] = np.inf
    chosen = [int(errors.argmin())]
    error = float(errors[chosen[0]]) + samples.energy / unit**2
    for source in sources[::-1]:
        chosen.append(int(source[chosen[-1]]))
    return error, [grid.low + i for i in reversed(chosen)]


def _folded(values, format, symmetric):
    """Values that the levels have to carry: magnitudes of a symmetric codebook, what is not negative of an unsigned."""
    values = np.asarray(values, dtype=np.float64)
    if symmetric:
        return np.abs(values)
    return values if format.signed else np.maximum(values, 0)


def _unfolded(levels, symmetric):
    return tuple([-x for x in reversed(levels) if x] + levels if symmetric else levels)


def search_levels(values, format, *, zero=False, symmetric=False, counts=None):
    """Levels with the least squared error for values that are integers times 1: the search at the unit 1.

    Parameters
    ----------
    values : array
    format : :class:`~sigbit_hw.spec.formats.Format`
        ``NUUQ`` or ``NUUQU``; levels that it has are ignored.
    zero, symmetric : bool
        Admit only codebooks with a level 0; only those with ``c_i = -c_(N-1-i)``.
    counts : array, optional
        How often every value occurs; 1 by default.

    Returns
    -------
    :class:`Codebook`
        Of several best ones the one that the smallest predecessors of the smallest last level lead to.

    Raises
    ------
    :exc:`CodebookError`
        If the data is empty or not finite, or no codebook meets the constraints.
    """
    return _search(values, format, zero, symmetric, counts, lambda samples, grid: [1.0])


def search_codebook(values, format, *, zero=False, symmetric=False, counts=None, power_of_two=False):
    """Levels and unit with the least squared error.

    The unit puts the largest integer of the format at 1.0 to 8.0 root mean squares of the values, in steps of 0.1, or
    is a power of two in this range. Then a common divisor of the levels goes into the unit (if it stays a power of
    two), so three symmetric levels are -1, 0 and 1. Parameters and errors are those of :func:`search_levels`. For a
    million values, 16 levels and 8 bits it takes half a second.
    """

    def units(samples, grid):
        scale = samples.root_mean_square / grid.high or 1.0
        if not power_of_two:
            return scale * FULL_SCALES
        lowest, highest = np.log2(scale * FULL_SCALES[[0, -1]])
        return 2.0 ** np.arange(np.ceil(lowest), np.floor(highest) + 1)

    found = _search(values, format, zero, symmetric, counts, units)
    divisor = math.gcd(*found.format.levels)
    if power_of_two:
        divisor &= -divisor
    levels = tuple(level // divisor for level in found.format.levels)
    return Codebook(replace(format, codebook=levels), found.unit * divisor, found.error)


def _search(values, format, zero, symmetric, counts, units):
    if not format.indexed:
        raise CodebookError(f"Only nuuq and nuuqu formats have a codebook, not {format}")
    grid = _grid(format, zero, symmetric)
    samples = _Samples(_folded(values, format, symmetric), counts)
    candidates = units(samples, grid)
    if not samples.energy:
        # Nothing but zeros: any unit, and a level 0 if there may be one.
        grid = _grid(format, not symmetric or format.level_count % 2 == 1, symmetric)
        candidates = [1.0]
    found = []
    for unit in candidates:
        error, levels = _best(samples, grid, unit)
        found.append((error * unit**2, unit, levels))
    error, unit, levels = min(found, key=lambda result: result[0])
    return Codebook(replace(format, codebook=_unfolded(levels, symmetric)), float(unit), max(float(error), 0.0))


def fit_weights(weights, format, *, shared_unit=False, channel_codebooks=False, zero=False, symmetric=False):
    """Levels and units for the weights of a layer, output channels first.

    One codebook for all channels is searched on weights over the root mean square of their channel, unless they share
    the unit, too. Codebooks of channels that share a unit are searched at the unit that is best for one codebook.

    Returns
    -------
    format : :class:`~sigbit_hw.spec.formats.Format`
        With its levels, or without them if every channel has its own.
    units : float64 array, ``(out,)``
        0 for a channel of zeros, whatever its levels.
    codebooks : int64 array, ``(out, N)``, or None

    Raises
    ------
    :exc:`CodebookError`
        As :func:`search_codebook`.
    """
    rows = np.asarray(weights, dtype=np.float64).reshape(len(weights), -1)
    constraints = {"zero": zero, "symmetric": symmetric}
    if shared_unit or not channel_codebooks:
        scales = np.sqrt(np.mean(rows**2, axis=1))
        if shared_unit:
            scales = np.ones_like(scales)
        used = rows[scales > 0] / scales[scales > 0, np.newaxis] if scales.any() else rows
        found = search_codebook(used, format, **constraints)
        units = scales * found.unit
        if not channel_codebooks:
            return found.format, units, None
        results = [search_levels(row / found.unit, format, **constraints) for row in rows]
    else:
        results = [search_codebook(row, format, **constraints) for row in rows]
        units = np.array([result.unit for result in results]) * rows.any(axis=1)
    return replace(format, codebook=()), units, np.array([result.format.codebook for result in results])


def project_weights(weights, format, codebooks):
    """Nearest levels of weights in units of their channel; ``codebooks`` as :func:`fit_weights` gives them."""
    if codebooks is None:
        return project(weights, format)
    forms = [replace(format, codebook=tuple(book)) for book in codebooks.tolist()]
    return np.stack([project(channel, form) for channel, form in zip(weights, forms, strict=True)])
