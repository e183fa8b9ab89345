"""The four engines for codebooks, literally: what each adds, cycle by cycle, and how many cycles that takes.

They follow ``docs/nuuq.md``, not the gateware: digits are made here anew, and planes are summed in Horner's scheme.
"""

__all__ = ["bins", "decode_multiply", "digit_serial", "level_serial", "signed_digits"]


def decode_multiply(codebook, indices, activations):
    """``(acc, cycles)``: one product per cycle."""
    total = 0
    for index, activation in zip(indices, activations, strict=True):
        total += codebook[index] * activation
    return total, len(indices)


def bins(codebook, indices, activations):
    """``(acc, cycles, bins)``: one addition per cycle, then one product per magnitude."""
    sums = dict.fromkeys(sorted({abs(c) for c in codebook if c}), 0)
    cycles = 0
    for index, activation in zip(indices, activations, strict=True):
        level = codebook[index]
        if level:
            sums[abs(level)] += activation if level > 0 else -activation
        cycles += 1
    total = 0
    for magnitude, bin in sums.items():
        total += magnitude * bin
        cycles += 1
    return total, cycles, sums


def level_serial(codebook, indices, activations):
    """``(acc, cycles)``: a pass and a product for every magnitude."""
    total = cycles = 0
    for magnitude in sorted({abs(c) for c in codebook if c}):
        bin = 0
        for index, activation in zip(indices, activations, strict=True):
            if codebook[index] == magnitude:
                bin += activation
            elif codebook[index] == -magnitude:
                bin -= activation
            cycles += 1
        total += magnitude * bin
        cycles += 1
    return total, cycles


def signed_digits(level, adjacent):
    """Digits -1, 0, 1 of an integer from bit 0 on: those of its magnitude with its sign, or none beside another."""
    if adjacent:
        sign = -1 if level < 0 else 1
        return [sign * int(bit) for bit in reversed(f"{abs(level):b}")]
    # The non-adjacent form is the difference of the bits of 3x and x, one place down.
    triple = 3 * level
    width = abs(triple).bit_length() + 1
    return [(triple >> i & 1) - (level >> i & 1) for i in range(1, width)]


def digit_serial(codebook, indices, activations, adjacent=None):
    """``(acc, cycles, planes)``: a pass for every used plane, the most significant first, shifted in between.

    ``adjacent`` chooses the binary digits or the non-adjacent form; by default the one with fewer planes.
    """
    if adjacent is None:
        plain, other = (digit_serial(codebook, indices, activations, form) for form in (True, False))
        return min(plain, other, key=lambda result: len(result[2]))
    digits = [signed_digits(level, adjacent) for level in codebook]
    width = max(map(len, digits))
    digits = [row + [0] * (width - len(row)) for row in digits]
    planes = [j for j in reversed(range(width)) if any(row[j] for row in digits)]
    total = cycles = 0
    previous = planes[0]
    for plane in planes:
        total <<= previous - plane
        previous = plane
        for index, activation in zip(indices, activations, strict=True):
            total += digits[index][plane] * activation
            cycles += 1
    return total << planes[-1], cycles, tuple(reversed(planes))
