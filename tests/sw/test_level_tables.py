"""Level tables: entries that the hardware counts, codes of weights, and how layers get theirs."""

from dataclasses import replace

import numpy as np
import pytest
from networks import Builder, roomy
from sigbit.compiler import CompileError, compile
from sigbit.device import EmulatorDevice
from sigbit.level_tables import LevelTable
from sigbit.session import Session
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import ESB, ESBU, INT, NUUQ, UINT, Format
from sigbit_hw.spec.instructions import LEVEL_CODES
from sigbit_hw.spec.parts import code_distances, codebook_parts
from sigbit_sim.golden.network import run

NARROW = roomy(PRESETS["tiny"], ESB(4, 2), ESBU(4, 2), cell="table", fill_columns=4)
WIDE = replace(NARROW, table_weight_bits=7, table_product_bits=12, max_reduction=4096)


@pytest.mark.parametrize("text", ["esbu:4,2", "esbu:4,1", "uint:4", "int:4", "esb:4,2", "esb:4,0", "esbu:3,1"])
def test_entries_name_every_code_at_its_distance_and_every_weight_at_its_code(text):
    form = Format.parse(text)
    table = LevelTable.of([-5, 0, 3, 120, -5], code_distances(form))
    entries = [dict(entry) for entry in table.entries]
    count = 1 << form.bits
    reached = np.cumsum([entry["step"] for entry in entries[:count]]).tolist()
    levels = [form.decode(code) for code in range(count)]
    assert {entry["code"]: level for entry, level in zip(entries[:count], reached, strict=True)} == {
        code: level - min(levels) for code, level in enumerate(levels)
    }
    assert [entry["weight"] for entry in entries] == [0, -5, 3, 120] + [0] * 12
    assert len(table.words) == LEVEL_CODES
    assert table.codes(np.array([[120, 0], [-5, 3]])).tolist() == [[3, 0], [1, 2]]


def test_sixteen_levels_without_zero_take_all_codes():
    levels = [level for level in range(-8, 9) if level]
    table = LevelTable.of(levels, range(16))
    assert table.weights == tuple(levels)
    assert table.codes(np.array(levels)).tolist() == list(range(16))


@pytest.mark.parametrize("largest", [4, 7, 9, 15, 17, 36, 146])
@pytest.mark.parametrize("step", [2, 3, 4])
@pytest.mark.parametrize("text", ["int:8", "int:5", "esb:4,0", "esb:4,1", "esb:5,2"])
def test_parts_of_digits_add_up_and_fit_a_table(text, step, largest):
    form = Format.parse(text)
    parts = codebook_parts(form, step, largest, LEVEL_CODES)
    for level in form.levels:
        digits = parts.table[level]
        assert sum(digit << shift * step for digit, shift in zip(digits, parts.shifts, strict=True)) == level
    for digits in zip(*parts.table.values(), strict=True):
        assert len({0, *digits}) <= LEVEL_CODES
        assert max(map(abs, digits)) <= largest


@pytest.mark.parametrize(
    ("text", "largest", "count"),
    [("esb:4,0", 64, 1), ("esb:4,0", 63, 2), ("esb:4,1", 12, 1), ("int:8", 15, 2), ("int:8", 14, 3), ("int:5", 8, 2)],
)
def test_the_fewest_parts_are_taken(text, largest, count):
    assert len(codebook_parts(Format.parse(text), 4, largest, LEVEL_CODES).shifts) == count


def passes(config, network, images):
    """Passes of every layer; the emulator gives the golden integers."""
    program = compile(network, config)
    with Session(EmulatorDevice(config), program) as session:
        np.testing.assert_array_equal(session.run(images), run(network, images))
    return [layer["part_products"] // layer["macs"] for layer in program.layers]


def test_levels_beyond_the_tables_take_more_passes():
    builder = Builder(8, 7, 5, 5, UINT(8)).conv(9, (2, 2), ESB(4, 1), ESBU(4, 2))
    builder.conv(9, (2, 2), ESB(4, 0), UINT(4)).conv(3, (3, 3), INT(8), None)
    network, images = builder.network(), builder.images(3)
    assert passes(WIDE, network, images) == [2, 1, 2]
    assert passes(NARROW, network, images) == [2, 2, 2], "esb:4,0 reaches 64, tables of esbu:4,2 take 9"


@pytest.mark.parametrize(("channels", "count"), [(8, 1), (7, 2)])
def test_sixteen_levels_without_zero_are_one_pass_where_every_lane_has_a_weight(channels, count):
    """Else the lanes without one need a seventeenth level."""
    levels = (*(level for level in range(-127, 128, 17) if level), 126)
    builder = Builder(8, channels, 5, 5, ESBU(4, 2)).conv(9, (2, 2), INT(8), None)
    weights = builder.rng.choice(levels, builder.layers[0].weights.shape)
    form = NUUQ(len(levels), 8, levels)
    builder.layers[0] = replace(builder.layers[0], weights=weights, weight_format=form)
    assert (len(levels), WIDE.vector) == (16, 8)
    assert passes(WIDE, builder.network(), builder.images(3)) == [count]


def test_products_that_no_parts_make_fit_are_an_error():
    config = replace(NARROW, weight_format=ESB(2, 0), table_weight_bits=1, table_product_bits=5)
    network = Builder(8, 7, 5, 5, UINT(8)).conv(9, (2, 2), INT(8), None).network()
    with pytest.raises(CompileError, match=r"reach 15, so weights reach 2 at most: raise table_product_bits \(5\) or"):
        compile(network, config)


@pytest.mark.parametrize(
    ("cell", "weights", "activations", "expected"),
    [
        ("table", "esb:4,2", "esbu:3,2", [3, 1, 9]),
        ("table", "int:3", "uint:4", [2, 1, 12]),
        ("subset", "int:8", "uint:4", [2, 1, 2]),
    ],
)
def test_with_columns_of_logic_cells_passes_are_those_of_the_native_formats(cell, weights, activations, expected):
    weights, activations = Format.parse(weights), Format.parse(activations)
    config = roomy(PRESETS["tiny"], weights, activations, cell=cell, logic_columns=4, columns=12, fill_columns=4)
    builder = Builder(8, 7, 5, 5, UINT(8)).conv(9, (2, 2), weights, activations)
    builder.conv(13, (2, 2), weights, UINT(8)).conv(11, (2, 2), INT(8), None)
    assert passes(config, builder.network(), builder.images(3)) == expected
    assert passes(replace(config, cell="logic", logic_columns=0), builder.network(), builder.images(3)) == expected
