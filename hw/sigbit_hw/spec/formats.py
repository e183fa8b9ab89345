"""Number formats: a finite table of signed integers (*levels*) and the codes that select them.

The levels of NUUQ are data, a *codebook*; those of the other kinds follow from the format. The level tables of ESB
follow the paper (arXiv 2109.03513, public code of its authors); the closed form, the bit layout and the unsigned
variant are our definition. The levels of AUSN's type A are those of the public quantizer of its authors (arXiv
2007.03903); the names of the types and the unsigned variants are our definition, as are codebooks and limits of NUUQ
(Zacchigna et al., Electronics 13(10), 1923, has the idea). See ``docs/numerics.md`` and ``docs/nuuq.md``.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from .errors import SigbitError

__all__ = [
    "AUSN_A",
    "AUSN_AU",
    "AUSN_G",
    "AUSN_GU",
    "ESB",
    "ESBU",
    "INT",
    "KINDS",
    "NUUQ",
    "NUUQU",
    "UINT",
    "Format",
    "FormatError",
    "magnitudes",
    "product_bits",
    "superposed_magnitudes",
]

#: Kinds of formats -> how the command line writes one. AUSN is written by its two fields, NUUQ by the number of levels
#: and their bits, the others by their bits.
KINDS = {
    "int": "int:B",
    "uint": "uint:B",
    "esb": "esb:B,K",
    "esbu": "esbu:B,K",
    "ausn-a": "ausn-a:E,S",
    "ausn-au": "ausn-au:E,S",
    "ausn-g": "ausn-g:E,S",
    "ausn-gu": "ausn-gu:E,S",
    "nuuq": "nuuq:N,B",
    "nuuqu": "nuuqu:N,B",
}

#: Build limits (our definition): 3 exponent bits, magnitudes of 12 bits.
EXPONENT_BITS_MAX = 3
MAGNITUDE_BITS_MAX = 12


class FormatError(SigbitError):
    """A format that does not exist, or a code or level that a format does not have."""


def magnitudes(exponent_bits, fraction_bits):
    """Integer magnitude ``M(t)`` of every magnitude code ``t = {E, f}``, in code order.

    ``M = f`` for ``E = 0`` (gradual underflow) and ``(2**k + f) << (E - 1)`` otherwise.
    """
    hidden = 1 << fraction_bits
    return tuple(f if e == 0 else (hidden + f) << (e - 1) for e in range(1 << exponent_bits) for f in range(hidden))


def superposed_magnitudes(exponent_bits, superposition_bits):
    """Integer magnitude ``M(t)`` of every magnitude code ``t = {E, m}`` of AUSN's type A, in code order.

    ``M = (2**s + m) << E``, but 0 for the smallest code: no gradual underflow and one more octave than type G.
    """
    hidden = 1 << superposition_bits
    return (0, *[(hidden + m) << e for e in range(1 << exponent_bits) for m in range(hidden)][1:])


@dataclass(frozen=True)
class Format:
    """One operand format. Build it with :func:`INT`, :func:`UINT`, :func:`ESB`, ... or :meth:`parse`.

    Parameters
    ----------
    kind : str
        One of :data:`KINDS`.
    bits : int
        Stored bits of a code, sign included; 2 to 8. Of an index of the NUUQ kinds: ``ceil(log2 N)``.
    fraction_bits : int
        ``k`` of the ESB kinds, ``s`` of the AUSN kinds; 0 for the others.
    level_count, level_bits : int
        ``N`` and ``B`` of the NUUQ kinds; 0 for the others.
    codebook : tuple of int
        Levels of the NUUQ kinds, strictly increasing; empty while they are still to be searched.

    Raises
    ------
    :exc:`FormatError`
        If the combination is outside the build limits.
    """

    kind: str
    bits: int
    fraction_bits: int = 0
    level_count: int = 0
    level_bits: int = 0
    codebook: tuple = ()

    def __post_init__(self):
        if self.kind not in KINDS:
            *first, last = KINDS
            raise FormatError(f"Format kind must be {', '.join(first)} or {last}, not {self.kind!r}")
        for name in ("bits", "fraction_bits", "level_count", "level_bits"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise FormatError(f"Format {name} must be an integer, not {value!r}")
        if self.indexed:
            self._check_codebook()
            return
        if self.level_count or self.level_bits or self.codebook:
            raise FormatError(f"{self.kind} has no codebook, but one was given")
        if not 2 <= self.bits <= 8:
            raise FormatError(f"A format has 2 to 8 stored bits, not {self.bits}")
        if self.uniform:
            if self.fraction_bits:
                raise FormatError(f"{self.kind} has no fraction bits, but {self.fraction_bits} were given")
            return
        if self.fraction_bits < 0 or self.exponent_bits < 1:
            raise FormatError(
                f"{self} leaves {self.exponent_bits} exponent bits; expected 0 <= {'s' if self.ausn else 'k'} <= "
                f"{self.bits - 1 - self.signed} with {self.bits} stored bits"
            )
        if self.exponent_bits > EXPONENT_BITS_MAX or self.magnitude_bits > MAGNITUDE_BITS_MAX:
            raise FormatError(
                f"{self} has {self.exponent_bits} exponent bits and "
                f"{self.magnitude_bits}-bit magnitudes; the limits are {EXPONENT_BITS_MAX} and {MAGNITUDE_BITS_MAX}"
            )

    def _check_codebook(self):
        name, count = f"{self.kind}:{self.level_count},{self.level_bits}", self.level_count
        low, high = self.level_range if self.level_bits > 0 else (0, 0)
        if not 1 + self.signed <= self.level_bits <= 8 or not 2 <= count <= high - low + 1:
            raise FormatError(
                f"{name} does not exist; expected {1 + self.signed} to 8 bits per level, and 2 to 2**bits"
                f"{' - 1' if self.signed else ''} levels"
            )
        if self.bits != (count - 1).bit_length() or self.fraction_bits:
            raise FormatError(
                f"{name} has indices of {(count - 1).bit_length()} bits without fraction, not of {self.bits} bits "
                f"with {self.fraction_bits}"
            )
        levels = self.codebook
        if not isinstance(levels, tuple) or not all(isinstance(x, int) and not isinstance(x, bool) for x in levels):
            raise FormatError(f"The codebook of {name} must be a tuple of integers, not {levels!r}")
        if levels and len(levels) != count:
            raise FormatError(f"The codebook of {name} must have {count} levels, not {len(levels)}")
        if any(a >= b for a, b in pairwise(levels)) or (levels and (levels[0] < low or levels[-1] > high)):
            raise FormatError(f"The codebook of {name} must increase strictly from {low} to {high}, not {levels}")

    @classmethod
    def parse(cls, text):
        """Read the command-line form of :data:`KINDS`, such as ``int:8``, ``esbu:4,2``, ``ausn-g:2,1``, ``nuuq:16,6``.

        ``nuuq:N,B`` and ``nuuqu:N,B`` leave the levels to a search; ``nuuq:4,5=-10,-3,3,10`` names them.
        """
        match = re.fullmatch(r"([a-z-]+):(\d+)(?:,(\d+))?(?:=(-?\d+(?:,-?\d+)*))?", text.strip().lower())
        if (
            not match
            or (match[3] is not None) != ("," in KINDS.get(match[1], ""))
            or (match[4] is not None and not match[1].startswith("nuuq"))
            or match[1] not in KINDS
        ):
            *first, last = KINDS.values()
            raise FormatError(
                f"Unknown format {text!r}; expected {', '.join(first)} or {last}, such as esb:4,2, nuuq:16,6 or "
                f"nuuq:4,5=-10,-3,3,10"
            )
        kind, first_field, second_field = match[1], int(match[2]), int(match[3] or 0)
        if kind.startswith("ausn"):
            return _ausn(kind, first_field, second_field)
        if kind.startswith("nuuq"):
            return _indexed(kind, first_field, second_field, tuple(map(int, match[4].split(","))) if match[4] else ())
        return cls(kind, first_field, second_field)

    def __str__(self):
        return self.label + ("=" + ",".join(map(str, self.codebook)) if self.codebook else "")

    @property
    def label(self):
        """The format without its codebook, for people."""
        if self.indexed:
            return f"{self.kind}:{self.level_count},{self.level_bits}"
        if self.uniform:
            return f"{self.kind}:{self.bits}"
        return f"{self.kind}:{self.exponent_bits if self.ausn else self.bits},{self.fraction_bits}"

    @property
    def identifier(self):
        """The format as part of a name in Verilog: ``esb4_2``."""
        return str(self).replace(":", "").replace(",", "_").replace("-", "_")

    @property
    def signed(self):
        """Whether negative levels exist, or may exist in a codebook."""
        return self.kind in ("int", "esb", "ausn-a", "ausn-g", "nuuq")

    #: Whether a split is still to be chosen.
    adaptive = False

    @property
    def ausn(self):
        """Whether the format is AUSN: units are powers of two."""
        return self.kind.startswith("ausn")

    @property
    def gradual(self):
        """Whether levels around zero are evenly spaced (ESB and AUSN's type G), unlike those of AUSN's type A."""
        return self.kind not in ("ausn-a", "ausn-au")

    @property
    def uniform(self):
        """Whether the code is a plain binary or two's complement integer."""
        return self.kind in ("int", "uint")

    @property
    def indexed(self):
        """Whether the code is an index into a codebook."""
        return self.kind in ("nuuq", "nuuqu")

    @property
    def searched(self):
        """Whether the levels are still to be searched: a codebook without any."""
        return self.indexed and not self.codebook

    @property
    def level_range(self):
        """Smallest and largest integer that may stand in the codebook."""
        if not self.indexed:
            raise FormatError(f"{self} has no codebook")
        return (1 - (1 << self.level_bits - 1), (1 << self.level_bits - 1) - 1) if self.signed else (
            0, (1 << self.level_bits) - 1
        )  # fmt: skip

    @property
    def magnitude_code_bits(self):
        """Bits of the magnitude code ``t``."""
        return self.bits - self.signed

    @property
    def exponent_bits(self):
        """``n`` of the ESB kinds, ``e`` of the AUSN kinds, 0 for the others (uniform: code and magnitude are one)."""
        return 0 if self.uniform or self.indexed else self.magnitude_code_bits - self.fraction_bits

    @cached_property
    def magnitudes(self):
        """Magnitude of every magnitude code, strictly increasing; of a codebook, all that occur."""
        if self.indexed:
            return tuple(sorted({abs(level) for level in self.levels}))
        if self.uniform:
            return tuple(range(1 << self.magnitude_code_bits))
        table = magnitudes if self.gradual else superposed_magnitudes
        return table(self.exponent_bits, self.fraction_bits)

    @property
    def magnitude_max(self):
        """Largest magnitude."""
        return self.magnitudes[-1]

    @property
    def magnitude_bits(self):
        """Bits of the largest magnitude."""
        return self.magnitude_max.bit_length()

    @cached_property
    def smallest_power(self):
        """Smallest level that is a power of two: 1, but ``2**(s+1)`` in AUSN's type A."""
        return next(magnitude for magnitude in self.magnitudes if magnitude and magnitude & (magnitude - 1) == 0)

    @cached_property
    def levels(self):
        """The distinct levels that the encoder emits, in increasing order.

        Raises
        ------
        :exc:`FormatError`
            If the codebook is still to be searched.
        """
        if self.searched:
            raise FormatError(
                f"{self} has no levels yet; quantize a network with it, or name them, as in nuuq:4,5=-10,-3,3,10"
            )
        if self.indexed:
            return self.codebook
        negative = tuple(-x for x in reversed(self.magnitudes[1:])) if self.signed else ()
        return negative + self.magnitudes

    @cached_property
    def midpoints(self):
        """Sums of neighbouring levels: the decision points of the projection, in half units."""
        return tuple(low + high for low, high in zip(self.levels, self.levels[1:], strict=False))

    @property
    def code_count(self):
        """Codes that :meth:`decode` accepts: 0 to one less than this."""
        return self.level_count if self.indexed else 1 << self.bits

    def encode(self, level):
        """Stored code of a level. Never a negative zero, never ``-2**(b-1)``."""
        if level not in self._codes:
            raise FormatError(f"{level} is not a level of {self}; its levels are {self.levels[0]} to {self.levels[-1]}")
        return self._codes[level]

    def decode(self, code):
        """Level of a stored code; accepts the codes that no encoder emits (``{1, 0}`` and ``-2**(b-1)``)."""
        if not 0 <= code < self.code_count:
            raise FormatError(f"{code} is not a code of {self}; expected 0 to {self.code_count - 1}")
        if self.indexed:
            return self.levels[code]
        if not self.signed:
            return self.magnitudes[code]
        sign = code >> (self.bits - 1)
        if self.kind == "int":
            return code - (sign << self.bits)
        magnitude = self.magnitudes[code & ((1 << self.bits - 1) - 1)]
        return -magnitude if sign else magnitude

    @cached_property
    def _codes(self):
        if self.indexed:
            return {level: index for index, level in enumerate(self.levels)}
        if self.kind == "int":
            return {level: level & ((1 << self.bits) - 1) for level in self.levels}
        codes = {}
        for code, magnitude in enumerate(self.magnitudes):
            codes[magnitude] = code
            if self.signed and magnitude:
                codes[-magnitude] = code | 1 << (self.bits - 1)
        return codes

    def order_key(self, code):
        """An integer that orders codes like their levels, without decoding magnitudes (numerics 3.5)."""
        if self.indexed or not self.signed:
            return code
        if self.kind == "int":
            return self.decode(code)
        magnitude_code = code & ((1 << self.bits - 1) - 1)
        return -magnitude_code if code >> (self.bits - 1) else magnitude_code


def product_bits(weight_format, activation_format):
    """Bits of a product of any two codes without the weight's sign; signed for signed activations."""
    largest = max(abs(activation_format.decode(code)) for code in range(1 << activation_format.bits))
    return (weight_format.magnitude_max * largest).bit_length() + activation_format.signed


def INT(bits):
    """Two's complement integers of ``bits`` bits; the encoder is symmetric."""
    return Format("int", bits)


def UINT(bits):
    """Unsigned integers of ``bits`` bits."""
    return Format("uint", bits)


def ESB(bits, fraction_bits):
    """Elastic significant bits: sign, ``bits - 1 - k`` exponent bits, ``k`` fraction bits."""
    return Format("esb", bits, fraction_bits)


def ESBU(bits, fraction_bits):
    """Unsigned elastic significant bits: ``bits - k`` exponent bits, ``k`` fraction bits (our definition)."""
    return Format("esbu", bits, fraction_bits)


def _ausn(kind, exponent_bits, superposition_bits):
    signed = not kind.endswith("u")
    return Format(kind, signed + exponent_bits + superposition_bits, superposition_bits)


def AUSN_A(exponent_bits, superposition_bits):
    """Superposed powers of two: sign, ``e`` exponent bits, ``s`` superposition bits; the smallest level is zero."""
    return _ausn("ausn-a", exponent_bits, superposition_bits)


def AUSN_AU(exponent_bits, superposition_bits):
    """Unsigned :func:`AUSN_A`."""
    return _ausn("ausn-au", exponent_bits, superposition_bits)


def AUSN_G(exponent_bits, superposition_bits):
    """Superposed powers of two with gradual underflow: the codes and integers of ``ESB(1 + e + s, s)``."""
    return _ausn("ausn-g", exponent_bits, superposition_bits)


def AUSN_GU(exponent_bits, superposition_bits):
    """Unsigned :func:`AUSN_G`."""
    return _ausn("ausn-gu", exponent_bits, superposition_bits)


def _indexed(kind, level_count, level_bits, codebook):
    return Format(kind, max(level_count - 1, 0).bit_length(), 0, level_count, level_bits, codebook)


def NUUQ(level_count, level_bits, codebook=()):
    """``level_count`` signed levels that are integers of ``level_bits`` bits; without ``codebook`` to be searched."""
    return _indexed("nuuq", level_count, level_bits, tuple(codebook))


def NUUQU(level_count, level_bits, codebook=()):
    """``level_count`` levels from 0 to ``2**level_bits - 1``; without ``codebook`` to be searched."""
    return _indexed("nuuqu", level_count, level_bits, tuple(codebook))
