"""The estimate of a whole accelerator counts every module as often as it is instantiated."""

from sigbit_hw.spec.config import PRESETS
from sigbit_sim import estimate as module


def test_modules_are_synthesized_once_and_counted_by_their_instances(monkeypatch):
    config = PRESETS["tiny"]
    seen = {}

    def synthesis(verilog, top, *, boxes):
        assert top not in seen, "synthesized twice"
        seen[top] = set(boxes)
        assert verilog.count(f"\nmodule {top}(") == 1
        assert all(f"(* blackbox *) module {box}(" in verilog for box in boxes)
        return {**dict.fromkeys(("lut", "lc", "ff", "carry", "dsp", "srl", "lutram", "bram"), 1), "yosys": "none"}

    monkeypatch.setattr(module, "run_synthesis", synthesis)
    result = module.estimate(config)
    instances = {}
    for name, figures in result["modules"].items():
        instances[name.removeprefix("sigbit_").split("_")[0]] = figures["instances"]
    assert instances["dot"] == config.rows * config.columns
    assert instances["accumulator"] == config.planes * config.columns
    assert instances["requantizer"] == instances["encoder"] == instances["residual"] == config.post_lanes
    assert instances["sigbit"] == instances["array"] == 1
    # Look-up tables that are shift registers or memory count as well.
    assert result["lut"] == sum(3 * figures["instances"] for figures in result["modules"].values())
    assert not any(box in seen[box] for box in seen)
