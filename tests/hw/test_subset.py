"""Subset-sum cells and their generators: steps of a fill, words of a generator, names, and what cannot be built."""

import numpy as np
import pytest
from amaranth.sim import Simulator
from sigbit_hw.array.subset import SubsetCell, SubsetGenerator
from sigbit_hw.spec.config import subset_word_bits


def test_a_generator_gives_the_sum_of_every_subset_of_its_weights():
    weights = np.array([[127, -127, 127, 127, -5, 3], [-1, 0, -127, -127, 0, 99], [-127, -127, -127, -127, 64, -64]])
    columns, lanes = weights.shape
    width = subset_word_bits(127)
    dut = SubsetGenerator(8, width, lanes=lanes, columns=columns, weight_columns=1)
    program = [(0, 0)]  # a weight and whether it is taken away, from the empty subset on
    for number in range(1, 16):
        pick = [number >> bit & 1 for bit in range(4)].index(1)
        program.append((pick, int(not (number ^ number >> 1) >> pick & 1)))
    found = {}

    async def bench(ctx):
        for row, column in enumerate(weights):
            ctx.set(dut.weights, [column.tolist()])
            ctx.set(dut.row, row)
            ctx.set(dut.load, 1)
            await ctx.tick()
        ctx.set(dut.load, 0)
        steps = [(column, number) for column in range(columns) for number in range(16)]
        for cycle in range(len(steps) + 2):
            if cycle < len(steps):
                column, number = steps[cycle]
                ctx.set(dut.column, column)
                ctx.set(dut.pick, program[number][0])
                ctx.set(dut.away, program[number][1])
            ctx.set(dut.restart, int(1 <= cycle <= len(steps) and steps[cycle - 1][1] == 0))
            if cycle >= 2:
                column, number = steps[cycle - 2]
                found[column, number ^ number >> 1] = [int(word) for word in ctx.get(dut.words)]
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    for (column, subset), words in found.items():
        chosen = np.pad(weights[column], (0, 2)).reshape(2, 4) * (subset >> np.arange(4) & 1)
        assert words == (chosen.sum(axis=1) + (1 << width - 1)).tolist(), (column, subset)
    assert len(found) == columns * 16


def test_a_cell_is_named_by_its_widths_alone():
    first = (4, False, 7, {"lanes": 4, "planes": 1, "sum_bits": 12})
    others = [(3, *first[1:]), (4, True, 7, first[3]), (4, False, 8, first[3])]
    others += [(*first[:3], first[3] | {key: value + 1}) for key, value in first[3].items()]
    names = [SubsetCell(*widths, **sizes).module_name for *widths, sizes in (first, *others)]
    assert names[0] == "subset_cell_u4_7_4x1_12"
    assert len(set(names)) == 7


def test_impossible_cells_are_refused():
    with pytest.raises(ValueError, match="largest_weight must be a positive integer, not 0"):
        SubsetCell(4, False, 0, lanes=2, planes=1, sum_bits=10)
