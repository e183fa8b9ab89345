"""Term parts: how wide levels become short operands of the array (our definition).

The array multiplies only its two native formats. A wider operand is written as ``sum_j digit_j << shift_j`` with native
digits; the product is then the sum of all pairwise part products, each a pass of the array. All shifts are multiples
of one step, so the accumulator needs only one fixed left shift between passes (Horner's scheme).
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement, product

from .formats import INT, UINT, Format, FormatError

__all__ = [
    "RAW_BITS",
    "ActivationParts",
    "WeightParts",
    "activation_parts",
    "code_distances",
    "codebook_parts",
    "fill_steps",
    "has_digits",
    "indexed_parts",
    "part_shift_bits",
    "weight_parts",
]

#: Width of an untouched accumulator, as logits leave the accelerator.
RAW_BITS = 32


def part_shift_bits(activation):
    """Step between the shifts of parts: bits of the longest run ``0 .. 2**r - 1`` of levels that are their codes.

    1 where there is no such run, which is AUSN's type A: its activations have one part each, its weights any number.
    """
    if not activation.gradual:
        return 1
    if activation.uniform:
        return activation.magnitude_code_bits
    return activation.fraction_bits + 1


def has_digits(native):
    """Whether codes can be digits of evenly spaced levels: not those of AUSN's type A."""
    return native.gradual


def code_distances(form):
    """How far the level of every code of a format is above the smallest one: what tables of products count."""
    levels = [form.decode(code) for code in range(1 << form.bits)]
    return tuple(level - min(levels) for level in levels)


def fill_steps(steps):
    """Cycles that a table of products takes to be filled, if its activation levels have these distances in order.

    One cycle starts at zero and writes the first code if its level is that; others count one or two multiples of the
    weight, and write a code where its level is reached, equal ones in cycles of their own.
    """
    first, *others = steps
    return 1 + -(-first // 2) + sum(max(1, -(-step // 2)) for step in others)


@dataclass(frozen=True)
class ActivationParts:
    """How an activation tensor is stored.

    Attributes
    ----------
    stored : :class:`Format`
        Format of the tensor.
    count : int
        Codes per value; part ``j`` has weight ``2**(j * step)``.
    offset : int
        Added to the level by what the array multiplies, so that it is never negative. The host takes
        ``offset * sum(weights)`` off the bias.
    step : int
        Bits per digit.
    levels : tuple of int
        Level of every code, if a value is one code and not digits of ``level + offset``; else empty.
    """

    stored: Format
    count: int
    offset: int
    step: int
    levels: tuple = ()

    def codes(self, level):
        """Codes of one level, least significant part first; digits are their own codes."""
        if self.levels:
            return (self.levels.index(level),)
        value = level + self.offset
        return tuple(value >> (self.step * j) & ((1 << self.step) - 1) for j in range(self.count))


def _digits(stored, step):
    """Parts of evenly spaced levels, signed ones in excess ``2**(b-1)``; None for other levels."""
    if stored.indexed:
        # Levels are stored, not indices: what they are multiplied with sees integers.
        bits = max(stored.level_bits, 2)
        return _digits(INT(bits) if stored.signed else UINT(bits), step)
    if stored.exponent_bits > 1 or not stored.gradual:
        return None
    return ActivationParts(stored, -(-stored.bits // step), 1 << (stored.bits - 1) if stored.signed else 0, step)


def indexed_parts(code_bits, stored):
    """Parts of a tensor on an array whose codes are indices of levels, in their order, or digits (our definition).

    Evenly spaced levels are digits. Others are one code: there are no more of them than codes, 0 among them; codes
    behind the last level stand for it, too. Larger codebooks, and those without 0, are stored as their integers.

    Raises
    ------
    :exc:`FormatError`
        If ``stored`` is none of these.
    """
    digits = _digits(stored, code_bits)
    if digits is not None and not stored.indexed:
        return digits
    levels = stored.levels
    count = 1 << code_bits
    if len(levels) <= count and 0 in levels:
        padded = levels + levels[-1:] * (count - len(levels))
        return ActivationParts(stored, 1, -levels[0], code_bits, padded)
    if digits is None:
        raise FormatError(
            f"Activations {stored} have {len(levels)} levels that are not evenly spaced; codes of {code_bits} bits are "
            f"{count}: use uint:2..8, int:2..8 or a format of up to {code_bits} bits"
        )
    return digits


def activation_parts(native, stored):
    """Parts of a tensor in format ``stored`` on an array whose activation operand is ``native``.

    ``stored`` has the levels of the native format, which then stands for it, or evenly spaced ones: a uniform format of
    any width, an ESB kind with one exponent bit, or a codebook, whose levels are then stored as those integers. Signed
    digits are those of the level in excess ``2**(b-1)``, of :func:`part_shift_bits` bits.

    Raises
    ------
    :exc:`FormatError`
        If ``stored`` is neither.
    """
    step = part_shift_bits(native)
    if stored.levels == native.levels:
        levels = tuple(native.decode(code) for code in range(1 << native.bits))
        return ActivationParts(native, 1, 0, step, levels)
    if not has_digits(native):
        raise FormatError(
            f"Activations {stored} do not run on an array built for {native}, which has no level 1; use {native} for "
            f"all tensors, the input included, table cells, or an array built for type G (ausn-g, ausn-gu)"
        )
    if (digits := _digits(stored, step)) is None:
        raise FormatError(
            f"Activations {stored} do not run on an array built for {native}; use {native}, uint:2..8 or int:2..8, "
            f"or configure the accelerator with activation format {stored}, or with table cells"
        )
    # A codebook's integers may be all that the native format has.
    return activation_parts(native, digits.stored) if stored.indexed else digits


@dataclass(frozen=True)
class WeightParts:
    """How weights of one format are cut into native weights.

    Attributes
    ----------
    stored : :class:`Format`
        Format of the weights.
    shifts : tuple of int
        Left shift of every part in steps of :func:`part_shift_bits`, increasing.
    table : dict
        Level -> native level of every part.
    """

    stored: Format
    shifts: tuple
    table: dict


@cache
def weight_parts(native, stored, step):
    """Fewest parts that write every level of ``stored`` with levels of ``native`` shifted by multiples of ``step``.

    Raises
    ------
    :exc:`FormatError`
        If eight parts are not enough.
    """
    if set(stored.levels) <= set(native.levels):
        return WeightParts(stored, (0,), {level: (level,) for level in stored.levels})
    return _summed_parts(native.levels, stored, step, str(native))


def _summed_parts(digits, stored, step, name):
    """Fewest parts of these digits; ``name`` says in errors what they are."""
    top = -(-stored.magnitude_bits // step)
    by_size = sorted(digits, key=abs)
    for count in range(2, 9):
        for shifts in combinations_with_replacement(range(top + 1), count):
            table: dict[int, tuple] = {0: ()}
            for shift in shifts:
                grown: dict[int, tuple] = {}
                for total, digits in table.items():
                    for level in by_size:
                        grown.setdefault(total + (level << shift * step), (*digits, level))
                table = grown
            if all(level in table for level in stored.levels):
                return WeightParts(stored, shifts, {level: table[level] for level in stored.levels})
    raise FormatError(f"Weights {stored} cannot be written as at most 8 parts of {name}; choose a longer native format")


@cache
def codebook_parts(stored, step, largest, codes, zero=True):
    """Fewest parts of tables of products, whose digits are data (our definition).

    Every part has digits of its own: at most so many different ones. One part holds the levels
    themselves. Else the lower parts hold runs of ``2**step`` digits, the most balanced that do, and the top one what
    is left; where such runs are longer than digits may be, all parts have the digits from ``-largest`` to ``largest``,
    or as many of them as there are codes, and parts may have the same shift.

    Parameters
    ----------
    stored : :class:`Format`
        Format of the weights.
    step : int
        Shifts are multiples of this.
    largest : int
        Largest magnitude of a digit.
    codes : int
        Different digits of one part.
    zero : bool
        Whether every part needs the digit 0, for lanes without a weight.

    Raises
    ------
    :exc:`FormatError`
        If eight parts are not enough.
    """

    def holds(digits):
        return len({0, *digits} if zero else set(digits)) <= codes and max(map(abs, digits)) <= largest

    levels = stored.levels
    if holds(levels):
        return WeightParts(stored, (0,), {level: (level,) for level in levels})
    run = 1 << step
    lows = sorted(range(1 - run, 1), key=lambda low: abs(2 * low + run))
    for count in range(2, 4 if run <= codes else 2):
        for chosen in product(lows, repeat=count - 1):
            table = {}
            for level in levels:
                digits, rest = [], level
                for low in chosen:
                    digits.append((rest - low) % run + low)
                    rest = rest - digits[-1] >> step
                table[level] = (*digits, rest)
            if all(map(holds, zip(*table.values(), strict=True))):
                return WeightParts(stored, tuple(range(count)), table)
    half = min(largest, (codes - 1) // 2)
    return _summed_parts(range(-half, half + 1), stored, step, f"levels of magnitude {half} or less")


#: The widest of the uniform formats that the post-processor writes beside the native one.
WIDE_ACTIVATIONS = (UINT(8), INT(8))
