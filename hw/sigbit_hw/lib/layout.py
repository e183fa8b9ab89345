"""Amaranth layouts of the bit-field tables in :mod:`sigbit_hw.spec`."""

from amaranth import *
from amaranth.lib import data

from ..spec.instructions import INSTRUCTIONS, Opcode

__all__ = ["post_job_layout", "table_layout"]


def table_layout(table):
    """``data.StructLayout`` of a :class:`~sigbit_hw.spec.layout.BitTable`, as wide as the table's word."""
    members = {field.name: Shape(field.bits, field.signed) for field in table.fields}
    if padding := table.width - sum(field.bits for field in table.fields):
        members["reserved"] = unsigned(padding)
    return data.StructLayout(members)


def post_job_layout():
    """A POST instruction and the ``bank`` of accumulators it reads: what the sequencer gives the post-processor."""
    return data.StructLayout({"instruction": table_layout(INSTRUCTIONS[Opcode.POST]), "bank": 1})
