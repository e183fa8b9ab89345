"""Superposition adaptation: the split of an AUSN code and its power-of-two window, by clipping and rounding error.

The two errors are those that the AUSN paper names (arXiv 2007.03903); their formulas, the search and its order are our
definition, and ``fixed`` is the rule of the public quantizer of its authors (``docs/ausn.md``).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import Format, FormatError
from sigbit_sim.golden.numerics import project

__all__ = ["MODES", "Adaptation", "AdaptationError", "Adaptive", "Errors", "adapt", "errors", "splits", "unit_window"]

#: How a split and its window are found.
MODES = ("search", "fixed", "incremental")
#: Bits of ``auto`` without a number.
_DEFAULT_BITS = 4
#: Windows that are tried: the widest, which clips nothing, and six that are narrower by an octave each.
WINDOWS = 7
#: Exponent bits of the public quantizer by magnitude bits. It has 5 of 7; ours are limited to 3.
_FIXED_EXPONENT_BITS = {1: 1, 2: 2, 3: 2, 4: 2, 5: 3, 6: 3, 7: 3, 8: 3}


class AdaptationError(SigbitError):
    """Data or options that no split can be found for."""


@dataclass(frozen=True)
class Errors:
    """What quantization does to values, per value.

    Attributes
    ----------
    clipping : float
        CE: ``(|x| - qmax)**2`` of values beyond the outermost levels, else 0. An unsigned format clips at 0, too.
    rounding : float
        RE: ``(x - Q(x))**2`` of the other values.
    power : float
        ``x**2``.
    lost : float
        Share of the values that are not 0 but become 0.
    """

    clipping: float
    rounding: float
    power: float
    lost: float

    @property
    def total(self):
        """CE + RE, which is the mean squared error."""
        return self.clipping + self.rounding

    @property
    def sqnr_db(self):
        """Power over CE + RE in decibels; None if one of them is 0."""
        return 10 * math.log10(self.power / self.total) if min(self.power, self.total) > 0 else None


@dataclass(frozen=True)
class Adaptive:
    """Stands for the format of an operand until :func:`adapt` has chosen its split.

    Parameters
    ----------
    type : str
        ``"a"`` or ``"g"``.
    bits : int
        Stored bits, sign included.
    signed : bool
    """

    type: str
    bits: int
    signed: bool

    ausn = adaptive = True
    indexed = searched = False

    @classmethod
    def parse(cls, text, signed=False):
        """Read ``auto:4`` (type G) or ``auto-a:4``; without a number 4 bits."""
        match = re.fullmatch(r"auto(-a)?(?::(\d))?", text.strip().lower())
        if not match:
            raise AdaptationError(
                f"Unknown format {text!r}; expected auto, auto-a, auto:B or auto-a:B with 2 to 8 bits, such as auto:4"
            )
        adaptive = cls("a" if match[1] else "g", int(match[2] or _DEFAULT_BITS), signed)
        return adaptive if adaptive.formats else None

    @property
    def formats(self):
        """What there is to choose from."""
        return splits(f"ausn-{self.type}" + ("" if self.signed else "u"), self.bits)

    def __str__(self):
        return f"auto{'-a' if self.type == 'a' else ''}:{self.bits}"


@dataclass(frozen=True)
class Adaptation:
    """A split and its window.

    Attributes
    ----------
    format : :class:`~sigbit_hw.spec.formats.Format`
    unit : float or float array
        Power of two; an array with a unit per channel if there was a channel axis.
    clipping, rounding : float
        CE and RE.
    """

    format: Format
    unit: float | np.ndarray
    clipping: float
    rounding: float


def _finite(values):
    values = np.asarray(values, dtype=np.float64)
    if not values.size:
        raise AdaptationError("Adaptation needs at least one value, but the data is empty")
    if not np.isfinite(values).all():
        count = np.count_nonzero(~np.isfinite(values))
        raise AdaptationError(f"Adaptation needs finite values, but {count} of {values.size} are NaN or infinite")
    return values


def _squares(rows, format, units):
    """Squared errors of every value beyond the outermost levels, and of every other value; one unit per row."""
    units = np.asarray(units)[:, np.newaxis]
    squares = (rows - units * project(rows / units, format)) ** 2
    clipped = (rows > units * format.levels[-1]) | (rows < units * format.levels[0])
    return np.where(clipped, squares, 0), np.where(clipped, 0, squares)


def errors(values, format, unit, counts=None):
    """Clipping and rounding error of nearest-level quantization.

    Parameters
    ----------
    values : float array
    format : :class:`~sigbit_hw.spec.formats.Format`
    unit : float, or array
        One unit for all values, or one per index of the first axis.
    counts : float array, optional
        How often every value occurs, of the same shape; 1 by default.

    Returns
    -------
    :class:`Errors`

    Raises
    ------
    :exc:`AdaptationError`
        If the data is empty, or holds NaN or infinity.
    """
    values = _finite(values)
    unit = np.asarray(unit, dtype=np.float64)
    rows = values.reshape(unit.size, -1)
    counts = np.ones_like(rows) if counts is None else np.asarray(counts, dtype=np.float64).reshape(rows.shape)
    clipping, rounding = ((counts * squares).sum() / counts.sum() for squares in _squares(rows, format, unit.ravel()))
    power = (counts * rows**2).sum() / counts.sum()
    lost = (project(rows / unit.reshape(-1, 1), format) == 0) & (rows != 0)
    some = counts[rows != 0].sum()
    return Errors(float(clipping), float(rounding), float(power), float(counts[lost].sum() / some) if some else 0.0)


def splits(kind, bits):
    """Formats of an AUSN kind with so many stored bits within the build limits, fewest exponent bits first.

    Raises
    ------
    :exc:`AdaptationError`
        If there is none.
    """
    found = []
    for superposition_bits in range(bits, -1, -1):
        try:
            found.append(Format(kind, bits, superposition_bits))
        except FormatError:
            continue
    if not found:
        raise AdaptationError(f"No format {kind} has {bits} stored bits; expected 2 to 8")
    return tuple(found)


def _windows(rows, format, counts, narrower):
    """Best unit of every row, and the summed clipping and rounding error of each: ties go to the larger unit."""
    magnitudes = np.abs(rows) if format.signed else np.maximum(rows, 0)
    largest = np.where(counts > 0, magnitudes, 0).max(axis=1)
    # log2 of a quotient may be off by a rounding error at exact powers of two, so the comparison decides.
    top = np.array([0 if not x else _ceil_log2(x / format.magnitude_max) for x in largest.tolist()])
    best = np.full(len(rows), np.inf)
    units, clipping, rounding = np.ones(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))
    for step in range(narrower + 1):
        tried = np.where(largest > 0, 2.0 ** (top - step), 1.0)
        clipped, rounded = ((counts * squares).sum(axis=1) for squares in _squares(rows, format, tried))
        better = clipped + rounded < best
        best = np.where(better, clipped + rounded, best)
        units, clipping, rounding = (
            np.where(better, new, old) for new, old in ((tried, units), (clipped, clipping), (rounded, rounding))
        )
    return units, clipping, rounding


def _ceil_log2(value):
    mantissa, exponent = math.frexp(value)
    return exponent - (mantissa == 0.5)


def _rows(values, channel_axis, counts):
    values = _finite(values)
    counts = np.ones_like(values) if counts is None else np.asarray(counts, dtype=np.float64)
    if counts.shape != values.shape or counts.min() < 0:
        raise AdaptationError(f"counts must be non-negative and of shape {values.shape}, not of {counts.shape}")
    if channel_axis is None:
        return values.reshape(1, -1), counts.reshape(1, -1)
    return (np.moveaxis(x, channel_axis, 0).reshape(values.shape[channel_axis], -1) for x in (values, counts))


def unit_window(values, format, channel_axis=None, counts=None):
    """Power-of-two unit with the least CE + RE: the widest window, or one narrower by up to six octaves.

    Works for every format. Arguments as those of :func:`~sigbit.scales.unit_mse`.
    """
    rows, counts = _rows(values, channel_axis, counts)
    units, _, _ = _windows(rows, format, counts, WINDOWS - 1)
    return float(units[0]) if channel_axis is None else units


def adapt(values, formats: Sequence[Format], mode="search", channel_axis=None, counts=None):
    """The split and window of a tensor.

    Parameters
    ----------
    values : float array
        The tensor, or the bin centres of a histogram.
    formats : sequence of :class:`~sigbit_hw.spec.formats.Format`
        Splits to choose from, as :func:`splits` gives them: fewest exponent bits first.
    mode : str
        ``"search"``: least CE + RE of all splits and windows; ties go to fewer exponent bits, then to the wider window.
        ``"incremental"``: from the most exponent bits on, one fewer while RE > CE; best of what was seen.
        ``"fixed"``: the split that the public quantizer gives the width (the nearest there is), and no clipping.
    channel_axis : int, optional
        Axis with a window per index; the split is one for all.
    counts : float array, optional
        How often every value occurs.

    Returns
    -------
    :class:`Adaptation`

    Raises
    ------
    :exc:`AdaptationError`
        If the data cannot be used, there is no format, or the mode is unknown.
    """
    if mode not in MODES:
        raise AdaptationError(f"mode must be {', '.join(MODES)}, not {mode!r}")
    if not formats:
        raise AdaptationError("Adaptation needs at least one format to choose from")
    rows, counts = _rows(values, channel_axis, counts)
    total = counts.sum()

    def tried(format, narrower=WINDOWS - 1):
        units, clipping, rounding = _windows(rows, format, counts, narrower)
        unit = float(units[0]) if channel_axis is None else units
        return Adaptation(format, unit, float(clipping.sum() / total), float(rounding.sum() / total))

    if mode == "fixed":
        wanted = _FIXED_EXPONENT_BITS[formats[0].magnitude_code_bits]
        return tried(min(formats, key=lambda format: abs(format.exponent_bits - wanted)), 0)
    seen = []
    for format in formats if mode == "search" else reversed(formats):
        seen.append(tried(format))
        if mode == "incremental" and seen[-1].rounding <= seen[-1].clipping:
            break
    return min(seen, key=lambda found: (found.clipping + found.rounding, found.format.exponent_bits))
