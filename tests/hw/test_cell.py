"""The dot-product cell against integers: products, relative signs, swap stage by stage, latency."""

import numpy as np
import pytest
from amaranth.hdl import Fragment
from amaranth.sim import Simulator
from sigbit_hw.arith.multiplier import multiplier
from sigbit_hw.array.cell import DotProductCell
from sigbit_hw.lib.tree import sign_parent
from sigbit_hw.spec.formats import Format

SUM_BITS = 26
CASES = [
    # weights, activations, lanes, planes
    ("esb:4,2", "esbu:4,2", 4, 1),
    ("esb:4,2", "esbu:3,2", 7, 2),
    ("esb:4,1", "esbu:3,1", 5, 1),
    ("esb:3,0", "esbu:2,0", 8, 2),
    ("esb:4,2", "esb:4,2", 3, 1),
    ("esb:5,2", "esb:5,2", 2, 1),
    ("int:8", "uint:8", 3, 1),
    ("esb:4,2", "esbu:3,2", 1, 1),
]


def run_cell(cell, lanes, planes, engine, tiles, sums_in):
    """Sums for every step of tiles ``(signs, magnitude codes, activation codes)``, swapped without a gap."""
    swaps, inputs = {}, {}
    cycle = 4
    for signs, magnitudes, vectors in tiles:
        swaps[cycle] = signs, magnitudes
        for codes in vectors:
            inputs[cycle] = codes
            cycle += 1
    results = []

    async def bench(ctx):
        history = [0] * cell.swap_stages
        for now in range(cycle + cell.latency_cycles):
            for swap, (signs, magnitudes) in swaps.items():
                if now == swap - 1:
                    words = []
                    for lane in range(lanes):
                        parent = sign_parent(lane)[1] if lane else None
                        agrees = not signs[lane] if parent is None else signs[lane] == signs[parent]
                        words.append({"word": engine.weight_table[magnitudes[lane]], "agrees": int(agrees)})
                    ctx.set(cell.weights, words)
            ctx.set(cell.load, int(now + 1 in swaps))
            history = [int(now in swaps), *history[:-1]]
            ctx.set(cell.swap, sum(bit << stage for stage, bit in enumerate(history)))
            codes = inputs.get(now, [0] * lanes * planes)
            ctx.set(cell.activations, [engine.activation_table[code] for code in codes])
            ctx.set(cell.sums_in, sums_in)
            if now - cell.latency_cycles in inputs:
                results.append([ctx.get(value) for value in cell.sums_out])
            await ctx.tick()

    sim = Simulator(cell)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    assert len(results) == len(inputs)
    return np.array(results)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sums_are_exact_up_to_the_constant_of_the_signs(case):
    weights, activations, lanes, planes = case
    weights, activations = Format.parse(weights), Format.parse(activations)
    engine = multiplier(weights, activations)
    rng = np.random.default_rng(10)
    tiles = []
    for _ in range(4):
        steps = 12 + int(rng.integers(0, 8))
        signs = rng.integers(0, 2, lanes).tolist()
        magnitudes = rng.integers(0, len(weights.magnitudes), lanes).tolist()
        levels = rng.choice(activations.levels, (steps, planes * lanes))
        levels[0] = 0
        tiles.append((signs, magnitudes, [[activations.encode(int(x)) for x in row] for row in levels]))
    sums_in = [1000 + plane for plane in range(planes)]
    cell = DotProductCell(weights, activations, lanes=lanes, planes=planes, sum_bits=SUM_BITS)
    results = run_cell(cell, lanes, planes, engine, tiles, sums_in)
    position = 0
    for signs, magnitudes, vectors in tiles:
        values = np.array([(-1) ** s * weights.magnitudes[t] for s, t in zip(signs, magnitudes, strict=True)])
        levels = np.array([[activations.decode(code) for code in row] for row in vectors]).reshape(-1, planes, lanes)
        got = results[position : position + len(vectors)]
        zero = got[0]  # all activations are zero in the first step of a tile
        np.testing.assert_array_equal(got - zero, levels @ values)
        assert len(set((zero - sums_in).tolist())) == 1
        position += len(vectors)


def test_activations_leave_one_cycle_later():
    cell = DotProductCell(Format.parse("esb:4,2"), Format.parse("esbu:3,2"), lanes=2, planes=2, sum_bits=10)

    async def bench(ctx):
        for value in ([1, 2, 3, 4], [7, 0, 5, 6]):
            ctx.set(cell.activations, value)
            await ctx.tick()
            assert list(ctx.get(cell.activations_out)) == value

    sim = Simulator(cell)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()


def test_equal_cells_share_a_name_and_others_do_not():
    def name(weights, activations, lanes, planes, sum_bits):
        formats = Format.parse(weights), Format.parse(activations)
        cell = DotProductCell(*formats, lanes=lanes, planes=planes, sum_bits=sum_bits)
        Fragment.get(cell, None)
        return cell.module_name

    first = ("esb:4,2", "esbu:3,2", 4, 1, 12)
    others = [
        ("esb:4,1", "esbu:3,2", 4, 1, 12),
        ("esb:4,2", "uint:3", 4, 1, 12),
        ("esb:4,2", "esbu:3,2", 8, 1, 12),
        ("esb:4,2", "esbu:3,2", 4, 2, 12),
        ("esb:4,2", "esbu:3,2", 4, 1, 13),
    ]
    assert name(*first) == name(*first)
    assert len({name(*first), *(name(*other) for other in others)}) == 6
    assert name(*first) == "dot_product_cell_esb4_2_esbu3_2_4x1_12"


@pytest.mark.parametrize("wrong", [{"lanes": 0}, {"planes": 0}, {"sum_bits": -1}])
def test_impossible_geometry_is_refused(wrong):
    arguments = {"lanes": 2, "planes": 1, "sum_bits": 10} | wrong
    ((key, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{key} must be a positive integer, not {value}"):
        DotProductCell(Format.parse("esb:4,2"), Format.parse("esbu:3,2"), **arguments)
