"""What follows from a codebook: how dense its indices are stored, and what the engines for it need (our definition)."""

from dataclasses import dataclass
from functools import cache

from .formats import FormatError

__all__ = ["PACKINGS", "DigitPlan", "Packing", "digit_plan", "engine_cycles", "magnitudes", "packing"]


@dataclass(frozen=True)
class Packing:
    """How indices below ``levels`` are stored: ``count`` in every word of ``word_bits``, the first one lowest.

    Indices are the digits of a word to the base ``base``: ``levels`` of a radix packing, else a power of two.
    """

    levels: int
    base: int
    count: int
    word_bits: int

    def pack(self, indices):
        """Words of some indices; the last one is filled with index 0.

        Raises
        ------
        :exc:`~.formats.FormatError`
            If an index is not below ``levels``.
        """
        indices = list(indices)
        for index in indices:
            if not 0 <= index < self.levels:
                raise FormatError(f"{index} is not an index of {self.levels} levels; expected 0 to {self.levels - 1}")
        words = []
        for start in range(0, len(indices), self.count):
            digits = indices[start : start + self.count]
            words.append(sum(index * self.base**position for position, index in enumerate(digits)))
        return words

    def unpack(self, words, length):
        """The first ``length`` indices of some words.

        Raises
        ------
        :exc:`~.formats.FormatError`
            If a word is larger than any that :meth:`pack` gives, or there are not as many words as ``length`` takes.
        """
        words = list(words)
        if len(words) != -(-length // self.count):
            raise FormatError(f"{length} indices take {-(-length // self.count)} words, not {len(words)}")
        indices = []
        for word in words:
            digits = [word // self.base**position % self.base for position in range(self.count)]
            if not 0 <= word < self.base**self.count or max(digits) >= self.levels:
                raise FormatError(f"{word} is not a word of {self.count} indices of {self.levels} levels")
            indices += digits
        return indices[:length]

    def bits(self, length):
        """Stored bits of so many indices, the tail filled up."""
        return -(-length // self.count) * self.word_bits


#: Numbers of levels that are stored as digits to an odd base: indices in a word, and its bits.
_RADIX = {3: (5, 8), 5: (3, 7), 6: (5, 13)}


@cache
def packing(levels):
    """The packing of so many levels: a radix packing for 3, 5 and 6, one index of ``ceil(log2 N)`` bits for others."""
    if levels in _RADIX:
        return Packing(levels, levels, *_RADIX[levels])
    bits = (levels - 1).bit_length()
    return Packing(levels, 1 << bits, 1, bits)


#: Packings that are not plain, by their number of levels.
PACKINGS = {levels: packing(levels) for levels in _RADIX}


def magnitudes(codebook):
    """Distinct magnitudes other than 0 of a codebook, increasing: the bins of the engines."""
    return tuple(sorted({abs(level) for level in codebook} - {0}))


@dataclass(frozen=True)
class DigitPlan:
    """Signed digits of the levels of a codebook: ``level = sum of digit << plane``.

    Attributes
    ----------
    planes : tuple of int
        Those in which a level has a digit that is not 0, decreasing.
    digits : tuple of tuple of int
        Digit -1, 0 or 1 of every index, for every plane.
    """

    planes: tuple
    digits: tuple


def _binary(level):
    sign = -1 if level < 0 else 1
    return {plane: sign for plane in range(abs(level).bit_length()) if abs(level) >> plane & 1}


def _non_adjacent(level):
    digits, plane = {}, 0
    while level:
        if level & 1:
            digits[plane] = 2 - (level & 3)
            level -= digits[plane]
        level >>= 1
        plane += 1
    return digits


def digit_plan(codebook):
    """Binary digits or the non-adjacent form, whichever uses fewer planes; binary on a tie."""
    plans = []
    for form in (_binary, _non_adjacent):
        digits = [form(level) for level in codebook]
        planes = sorted({plane for level in digits for plane in level}, reverse=True)
        plans.append(DigitPlan(tuple(planes), tuple(tuple(d.get(plane, 0) for d in digits) for plane in planes)))
    return min(plans, key=lambda plan: len(plan.planes))


def engine_cycles(codebook, reduction):
    """Cycles of the four engines for one output: decode-multiply, bins, level-serial, digit-serial."""
    count = len(magnitudes(codebook))
    return reduction, reduction + count, count * reduction + count, len(digit_plan(codebook).planes) * reduction
