"""Bit-field tables: a named list of fields packed from bit 0 upwards, readable by Python and by the gateware."""

from dataclasses import dataclass

__all__ = ["BitField", "BitTable"]


@dataclass(frozen=True)
class BitField:
    """One field: ``bits`` wide, two's complement if ``signed``."""

    name: str
    bits: int
    signed: bool = False

    @property
    def range(self):
        """Smallest and largest value."""
        if self.signed:
            return -(1 << self.bits - 1), (1 << self.bits - 1) - 1
        return 0, (1 << self.bits) - 1


class BitTable:
    """Fields packed LSB first into a word of ``width`` bits; the rest is zero.

    Raises
    ------
    :exc:`ValueError`
        If the fields do not fit.
    """

    def __init__(self, name, width, *entries):
        self.name = name
        self.width = width
        self.fields = tuple(BitField(*entry) for entry in entries)
        used = sum(field.bits for field in self.fields)
        if used > width:
            raise ValueError(f"{name} needs {used} bits, but its word has {width}")

    def pack(self, **values):
        """Word as an integer; absent fields are 0.

        Raises
        ------
        :exc:`ValueError`
            If a value is unknown or does not fit its field.
        """
        word = offset = 0
        for field in self.fields:
            value = int(values.pop(field.name, 0))
            low, high = field.range
            if not low <= value <= high:
                raise ValueError(f"{self.name}.{field.name} must be {low} to {high}, not {value}")
            word |= (value & ((1 << field.bits) - 1)) << offset
            offset += field.bits
        if values:
            raise ValueError(f"{self.name} has no field {', '.join(values)}")
        return word

    def unpack(self, word):
        """Field values of a word, as a dict."""
        values = {}
        for field in self.fields:
            value = word & ((1 << field.bits) - 1)
            if field.signed and value >> (field.bits - 1):
                value -= 1 << field.bits
            values[field.name] = value
            word >>= field.bits
        return values
