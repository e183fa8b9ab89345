"""Table cells and their generators: words of a generator, cycles of a fill, names, and what cannot be built."""

import numpy as np
import pytest
from amaranth.sim import Simulator
from sigbit_hw.array.table import TableCell, TableGenerator
from sigbit_hw.spec.formats import Format
from sigbit_hw.spec.parts import code_distances, fill_steps


@pytest.mark.parametrize(
    ("text", "cycles"), [("uint:4", 16), ("esbu:4,2", 19), ("esbu:3,2", 8), ("int:4", 16), ("esb:4,2", 16)]
)
def test_levels_that_are_one_or_two_apart_take_one_cycle_and_equal_ones_another(text, cycles):
    distances = sorted(code_distances(Format.parse(text)))
    assert fill_steps(np.diff(distances, prepend=0).tolist()) == cycles


@pytest.mark.parametrize(("steps", "cycles"), [([0], 1), ([1], 2), ([2], 2), ([3, 0, 1], 5), ([0, 255], 129)])
def test_a_first_level_above_zero_is_counted_too(steps, cycles):
    assert fill_steps(steps) == cycles


@pytest.mark.parametrize("weight_columns", [1, 2])
def test_a_generator_gives_every_multiple_of_its_columns_with_the_sign_as_an_exclusive_or(weight_columns):
    weights = np.array([[0, 7, -3], [-1, 1, -6], [5, 2, -15], [-4, 7, 0]])
    columns, lanes = weights.shape
    dut = TableGenerator(5, 8, lanes=lanes, columns=columns, weight_columns=weight_columns)
    # Restart, one, two, hold, two, one: 0, 1, 3, 3, 5, 6.
    steps = [(1, 0, 0), (0, 0, 0), (0, 1, 0), (0, 1, 1), (0, 1, 0), (0, 0, 0)]
    multiples = [0, 1, 3, 3, 5, 6]
    found = {}

    async def bench(ctx):
        for row in range(columns // weight_columns):
            block = weights[row * weight_columns : (row + 1) * weight_columns]
            ctx.set(
                dut.weights,
                [[{"operand": abs(int(w)) - 1 & 31, "add": int(w >= 0)} for w in column] for column in block],
            )
            ctx.set(dut.row, row)
            ctx.set(dut.load, 1)
            await ctx.tick()
        ctx.set(dut.load, 0)
        given = [(column, *step) for column in range(columns) for step in steps]
        for cycle in range(len(given) + 2):
            if cycle < len(given):
                ctx.set(dut.column, given[cycle][0])
            if 1 <= cycle <= len(given):
                _, restart, double, hold = given[cycle - 1]
                ctx.set(dut.restart, restart)
                ctx.set(dut.twice, double)
                ctx.set(dut.hold, hold)
            if cycle >= 2:
                found[divmod(cycle - 2, len(steps))] = [int(word) for word in ctx.get(dut.words)]
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    for (column, step), words in found.items():
        products = np.abs(weights[column]) * multiples[step]
        expected = np.where(weights[column] < 0, ~products, products)
        assert words == (expected & 255).tolist(), (column, step)
    assert len(found) == columns * len(steps)


def test_a_cell_is_named_by_its_widths_alone():
    first = (4, 8, {"lanes": 4, "planes": 1, "sum_bits": 12})
    others = [(3, 8, first[2]), (4, 7, first[2])]
    others += [(4, 8, first[2] | {key: value + 1}) for key, value in first[2].items()]
    names = [TableCell(code, word, **sizes).module_name for code, word, sizes in (first, *others)]
    assert names[0] == "table_cell_4_8_4x1_12"
    assert len(set(names)) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code_bits": 5}, "code_bits must be at most 4, not 5"),
        ({"word_bits": 0}, "word_bits must be a positive integer, not 0"),
        ({"lanes": 0}, "lanes must be a positive integer, not 0"),
    ],
)
def test_impossible_cells_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TableCell(**{"code_bits": 4, "word_bits": 8, "lanes": 2, "planes": 1, "sum_bits": 10} | changes)


def test_a_generator_stores_whole_words():
    with pytest.raises(ValueError, match="weight_columns must divide the columns of a generator, not 4, 2"):
        TableGenerator(4, 8, lanes=2, columns=2, weight_columns=4)
