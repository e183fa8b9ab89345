"""Amaranth layouts of the bit-field tables in :mod:`sigbit_hw.spec`."""

from amaranth import *
from amaranth.lib import data

__all__ = ["table_layout"]


def table_layout(table):
    """``data.StructLayout`` of a :class:`~sigbit_hw.spec.layout.BitTable`, as wide as the table's word."""
    members = {field.name: Shape(field.bits, field.signed) for field in table.fields}
    if padding := table.width - sum(field.bits for field in table.fields):
        members["reserved"] = unsigned(padding)
    return data.StructLayout(members)
