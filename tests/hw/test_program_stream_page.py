"""The page about the program stream names everything in the contract, with its numbers."""

import re
from pathlib import Path

import pytest
from sigbit_hw.spec.config import CONTRACT_VERSION
from sigbit_hw.spec.instructions import INSTRUCTIONS, LEVEL, MIN_TILE_CYCLES, PARAMETER, Encoding, Opcode
from sigbit_hw.spec.packets import HEADER, MAGIC, Fault, Kind
from sigbit_hw.spec.registers import COUNTERS, IDENTITY, Control, Interrupt, Register, Status

PAGE = (Path(__file__).parents[2] / "docs" / "program-stream.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]


def _section(title):
    """Rows of the tables under one heading."""
    text = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def _table(head):
    """Rows below the table head that starts with ``head``, down to the next head."""
    start = next(index for index, row in enumerate(ROWS) if row[0] == head)
    rows = ROWS[start + 2 :]
    end = next((i - 1 for i, row in enumerate(rows) if set(row[0]) == {"-"}), len(rows))
    return {row[0]: row[1:] for row in rows[:end]}


@pytest.mark.parametrize(
    ("head", "members"),
    [
        ("kind", Kind),
        ("opcode", Opcode),
        ("fault", Fault),
        ("CONTROL bit", Control),
        ("STATUS bit", Status),
        ("interrupt bit", Interrupt),
    ],
)
def test_a_table_of_codes_lists_exactly_the_members_and_values(head, members):
    assert {name: int(row[0]) for name, row in _table(head).items()} == {m.name: m.value for m in members}


def test_the_register_table_is_exact():
    rows = _table("register")
    assert {name: int(row[0], 16) for name, row in rows.items()} == {r.name: r.value for r in Register}
    assert {name: rows[name.name][2] for name in COUNTERS} == COUNTERS
    assert f"`{IDENTITY:#x}`" in rows["IDENTITY"][2]


def test_the_header_table_is_exact():
    rows = _table("field")
    assert [(name.strip("`"), int(row[0])) for name, row in rows.items() if name] == [
        (field.name, field.bits) for field in HEADER.fields
    ]
    assert f"`{MAGIC:#06x}`" in rows["`magic`"][1]
    assert rows["`version`"][1] == f"contract version, {CONTRACT_VERSION}"


HEADS = {
    Opcode.COMPUTE: ("reader field (COMPUTE, POOL)", "then, COMPUTE"),
    Opcode.POOL: ("reader field (COMPUTE, POOL)", "then, POOL"),
    Opcode.POST: ("POST",),
    Opcode.OUTPUT: ("OUTPUT",),
}


@pytest.mark.parametrize("opcode", Opcode)
def test_the_instruction_tables_are_exact(opcode):
    sections = _section("Instructions")
    listed = []
    for head in HEADS[opcode]:
        start = next(i for i, row in enumerate(sections) if row[0] == head and row[1] == "bits")
        for names, bits, *_ in sections[start + 2 :]:
            if not names.startswith("`"):
                break
            match = re.fullmatch(r"(\d+)( s)?( each)?", bits)
            listed += [(name, int(match[1]), bool(match[2])) for name in re.findall(r"`(\w+)`", names)]
    assert listed == [(field.name, field.bits, field.signed) for field in INSTRUCTIONS[opcode].fields]


def test_encodings_parameters_and_the_shortest_tile_are_named():
    for encoding in Encoding:
        assert f"{encoding.name} {encoding.value}" in PAGE
    for field in PARAMETER.fields:
        assert f"`{field.name}` ({field.bits}" in PAGE
    assert f"at least {MIN_TILE_CYCLES} cycles (`MIN_TILE_CYCLES`)" in PAGE


def test_the_table_of_level_entries_is_exact():
    rows = _table("level entry")
    listed = [(name.strip("`"), int(bits.split()[0]), bits.endswith("s")) for name, (bits, _) in rows.items() if name]
    assert listed[: len(LEVEL.fields)] == [(field.name, field.bits, field.signed) for field in LEVEL.fields]
