"""Operand codes as the array takes them: a significand and a shift, decoded by truth tables at the array's edge."""

from amaranth import *

__all__ = ["activation_levels", "bits_of", "lookup", "significand_bits", "significand_parts"]


def significand_parts(weight_or_activation):
    """``(significand, shift)`` of every magnitude code of a format, ``magnitude = significand << shift`` (numerics
    3.3).

    ESB and AUSN's type G split into ``{E != 0, f}`` and ``max(E - 1, 0)``; type A is ``{1, m}`` and ``E`` as it stands,
    0 for code 0; uniform formats are a significand alone.
    """
    form = weight_or_activation
    if form.uniform:
        return tuple((magnitude, 0) for magnitude in form.magnitudes)
    hidden = 1 << form.fraction_bits
    if not form.gradual:
        fields = [(hidden + m, exponent) for exponent in range(1 << form.exponent_bits) for m in range(hidden)]
        return ((0, 0), *fields[1:])
    return tuple(
        (fraction if exponent == 0 else hidden + fraction, max(exponent - 1, 0))
        for exponent in range(1 << form.exponent_bits)
        for fraction in range(hidden)
    )


def significand_bits(form):
    """Bits of the largest significand of a format: ``k + 1`` for ESB, ``s + 1`` for AUSN."""
    return max(significand for significand, _ in significand_parts(form)).bit_length()


def activation_levels(form):
    """Level of every stored code, those that no encoder emits included."""
    return tuple(form.decode(code) for code in range(1 << form.bits))


def bits_of(values, bit):
    """Column ``bit`` of a table of integers, as a tuple of 0 and 1; two's complement for negative entries."""
    return tuple(value >> bit & 1 for value in values)


def lookup(table, index, bits):
    """``table[index]`` in ``bits`` bits as combinational logic, one truth table per bit.

    Parameters
    ----------
    table : sequence of int
        ``2**len(index)`` entries; negative ones are taken in two's complement.
    index : Value
        Selects the entry.

    Bits that are constant or equal to one bit of ``index`` cost nothing.
    """
    if len(table) != 1 << len(index):
        raise ValueError(f"A table indexed by {len(index)} bits must have {1 << len(index)} entries, not {len(table)}")
    wires = {bits_of(range(len(table)), bit): index[bit] for bit in range(len(index))}
    wires[(0,) * len(table)] = Const(0, 1)
    wires[(1,) * len(table)] = Const(1, 1)
    outputs = []
    for bit in range(bits):
        column = bits_of(table, bit)
        if column not in wires:
            truth = sum(value << entry for entry, value in enumerate(column))
            wires[column] = Const(truth, len(table)).bit_select(index, 1)
        outputs.append(wires[column])
    return Cat(outputs)
