"""Table cells and their generators: steps of a fill, words of a generator, names, and what cannot be built."""

import numpy as np
import pytest
from amaranth.sim import Simulator
from sigbit_hw.array.table import TableCell, TableGenerator, fill_program
from sigbit_hw.spec.formats import Format

FORMATS = ("esbu:2,0", "esbu:3,1", "esbu:4,2", "esbu:4,1", "uint:2", "uint:4", "int:4", "esb:4,2", "esb:4,0", "esb:3,0")


@pytest.mark.parametrize("text", FORMATS)
def test_every_code_is_written_once_when_its_level_is_reached(text):
    form = Format.parse(text)
    level, written = None, {}
    for restart, double, down, code in fill_program(form):
        assert not (restart and down), "a restart takes the sign of the weight"
        level = 0 if restart else level + (1 + double) * (1 - 2 * down)
        if code is not None:
            assert code not in written
            written[code] = level
    assert written == {code: form.decode(code) for code in range(1 << form.bits)}


@pytest.mark.parametrize(("text", "steps"), [("uint:4", 16), ("esbu:4,2", 19), ("esbu:3,2", 8), ("int:4", 17)])
def test_levels_that_are_one_or_two_apart_take_one_step(text, steps):
    assert len(fill_program(Format.parse(text))) == steps


@pytest.mark.parametrize("text", ["esbu:4,2", "int:4", "esb:4,2"])
@pytest.mark.parametrize("weight_columns", [1, 2])
def test_a_generator_gives_every_product_of_its_columns_with_the_sign_as_an_exclusive_or(text, weight_columns):
    form = Format.parse(text)
    magnitudes, signs = np.array([[0, 7, 3], [1, 0, 6], [5, 2, 7], [4, 7, 0]]), np.array([[0, 0, 1], [1, 1, 1]] * 2)
    columns, lanes = magnitudes.shape
    width = 8
    dut = TableGenerator(
        4, width, lanes=lanes, columns=columns, weight_columns=weight_columns, offset=form.signed
    )  # fmt: skip
    program = fill_program(form)
    found = {}

    async def bench(ctx):
        for row in range(columns // weight_columns):
            block = range(row * weight_columns, (row + 1) * weight_columns)
            weights = [
                [{"operand": int(magnitudes[c, i] - 1) & 15, "add": int(1 - signs[c, i])} for i in range(lanes)]
                for c in block
            ]
            ctx.set(dut.weights, weights)
            ctx.set(dut.row, row)
            ctx.set(dut.load, 1)
            await ctx.tick()
        ctx.set(dut.load, 0)
        steps = [(column, step) for column in range(columns) for step in program]
        for cycle in range(len(steps) + 2):
            if cycle < len(steps):
                ctx.set(dut.column, steps[cycle][0])
                ctx.set(dut.down, steps[cycle][1].down)
            if 1 <= cycle <= len(steps):
                ctx.set(dut.restart, steps[cycle - 1][1].restart)
                ctx.set(dut.double, steps[cycle - 1][1].double)
            if cycle >= 2 and (code := steps[cycle - 2][1].code) is not None:
                found[steps[cycle - 2][0], code] = [int(word) for word in ctx.get(dut.words)]
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    for (column, code), words in found.items():
        products = magnitudes[column] * form.decode(code)
        expected = np.where(signs[column], ~products, products) + (128 if form.signed else 0)
        assert words == (expected & 255).tolist(), (column, code)
    assert len(found) == columns * 16


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
        TableGenerator(4, 8, lanes=2, columns=2, weight_columns=4, offset=False)
