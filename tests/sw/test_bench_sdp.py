"""The bench of structured dynamic precision: interpolation on fronts, both readings of a gain, and a whole run."""

from importlib.resources import files
from itertools import pairwise

import numpy as np
import pytest
from sigbit.bench import bench_needs, run_bench
from sigbit.bench import sdp as module
from sigbit.bench.sdp_area import area_rows, area_table
from sigbit.cli import main
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.errors import SigbitError
from sigbit_sim import drq_cost

MODELS = files("sigbit") / "models"
OPTIONS = {
    "networks": [f"{MODELS}/digits.onnx"],
    "data": f"{MODELS}/digits.npz:x_test,y_test",
    "calibration": f"{MODELS}/digits.npz:x_calibration",
}
SIZE = {
    "kind": "size", "yosys": "0", "masking_lut": 40, "cells_lut": 160, "overhead": 0.25,
    **{name: {"lut": 10, "dsp": 0} for name in ("mask", "compactor", "cell", "plain")},
}  # fmt: skip
COSTS = {"element": 80, "predictor": 72, "fifos": {4: 160, 16: 320}, "lockstep": 80.5, "elastic": {4: 90.5, 16: 100.5}}


@pytest.mark.parametrize(
    ("points", "goal", "cost"),
    [
        ([(1, 0.5), (2, 0.9), (4, 1.0)], 0.7, 1.5),
        ([(1, 0.5), (2, 0.9), (4, 1.0)], 0.95, 3.0),
        ([(1, 0.5), (2, 0.4), (3, 0.7)], 0.6, 2.0),  # the second point is not on the front
        ([(1, 0.5), (2, 0.9)], 0.4, 1),
        ([(1, 0.5), (2, 0.9)], 0.95, None),
        ([], 0.1, None),
    ],
)
def test_costs_are_interpolated_on_the_front(points, goal, cost):
    assert module._cost_at(points, goal) == (None if cost is None else pytest.approx(cost))


def test_settings_are_chosen_by_the_tuning_images():
    def row(cost, error, tuned):
        return {
            "kind": "sdp",
            "cost": cost,
            "accuracy": 1 - error,
            "error": error,
            "toggles": 10 * cost,
            "tuning": {"cost": cost, "error": tuned},
        }

    # The second setting is the best of all on the images of the test, and not on the front of the others.
    rows = [row(1.0, 0.5, 0.5), row(2.0, 0.001, 0.6), row(3.0, 0.01, 0.01)]
    (match,) = [found for found in module._matches(rows, 1.0) if found["goal"] == "8 bits - 1 points"]
    assert match["SDP"] == 3.0
    assert match["SDP toggles"] == pytest.approx(30)
    assert match["M0"] is match["realisable"] is None


def test_a_gain_has_two_readings():
    assert module._gain(1.41, 1.0) == "1.41x, 29.1%"
    assert module._gain(1.0, 0.775) == "1.29x, 22.5%"
    assert module._gain(None, 1.0) == "-"


def test_a_run_compares_both_designs_on_one_network(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_size", lambda progress, config: [SIZE])
    monkeypatch.setattr(drq_cost, "drq_cost", lambda: COSTS)
    masked, elements = [], []

    def masked_toggles(config, weights, activations, mask):
        masked.append((weights, activations, mask.budget))
        return 4.0 * mask.budget

    def drq_toggles(weights, activations, sensitive):
        np.testing.assert_array_equal(activations, masked[0][1])
        np.testing.assert_array_equal(weights, masked[0][0][:, 0])
        elements.append(sensitive.mean())
        return 20 + 60 * sensitive.mean()

    monkeypatch.setattr("sigbit_sim.energy.masked_toggles", masked_toggles)
    monkeypatch.setattr("sigbit_sim.energy.drq_toggles", drq_toggles)
    rows, text = run_bench("sdp", limit=12, **OPTIONS)
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("sdp", "w1p", "drq", "match")}
    assert [row["budget"] for row in kinds["sdp"]] == list(range(2, 17, 2))
    last = kinds["sdp"][-1]
    assert (last["error"], last["cost"], last["share"], last["average_bits"]) == (0, 4, 1, 8)
    single = kinds["w1p"][-1]
    assert single["cost"] < 4
    assert single["cycles"] == last["cycles"]
    assert 0 < single["error"] < 0.1
    errors = [row["error"] for row in kinds["sdp"]]
    assert errors[0] > errors[3] > errors[-1]
    cycles = [row["cycles"] for row in kinds["sdp"]]
    assert cycles == sorted(cycles)
    for row in kinds["drq"]:
        # In layers of few pixels the fill, which is left out, is as long as what stalls cost.
        costs = [row[model] for model in ("M0", "M2(16)", "M2(4)", "M1")]
        assert all(before <= 1.05 * after for before, after in pairwise(costs))
        assert 1 <= min(costs) <= max(costs) <= 4
    # A budget of 16 is what exact layers take, too; the other rows are between their own and exact.
    assert [row["toggles"] for row in kinds["sdp"]][-1] == pytest.approx(64)
    assert 8 < kinds["sdp"][0]["toggles"] < 16
    assert elements[:2] == [1, 0]
    shares = [row["toggles"] for row in kinds["drq"]]
    assert shares[0] > shares[1] > shares[2] > shares[3] > 20
    assert all(row["toggles"] > 20 + 60 * share for row, share in zip(kinds["drq"], elements[2:], strict=True))
    assert {row["goal"] for row in kinds["match"]} >= {"8 bits - 1 points", "error 0.03"}
    assert "25.0% of 160" in text
    assert "not the published design" in text
    assert "| toggles per MAC at | SDP | DRQ | gain |" in text
    assert "flows for FPGAs cannot check that figure" in text

    # What was measured is kept; other images are others.
    monkeypatch.setattr(module, "_outputs", None)
    monkeypatch.setattr(module.drq, "run_drq", None)
    assert run_bench("sdp", limit=12, **OPTIONS) == (rows, text)
    with pytest.raises(TypeError, match="not callable"):
        run_bench("sdp", limit=11, **OPTIONS)


def test_at_equal_look_up_tables_lanes_count_by_their_size(monkeypatch):
    monkeypatch.setattr(drq_cost, "drq_cost", lambda: COSTS)
    match = {"kind": "match", "goal": "error 1", "SDP": 2.0, "M0": 2.0, "M1": 4.0, "M2(4)": 3.0, "M2(16)": None}
    config = PRESETS["sdp"]
    size = {"masking_lut": 28 * 128, "cells_lut": 100 * 128}
    (row,) = area_rows([match], size, config)
    assert (row["lane"], row["SDP"], row["M0"], row["M1"]) == (128, 128, 161, 322)
    assert (row["M2(4)"], row["M2(16)"], row["realisable"]) == (271.5, None, "M2(4)")
    assert "| error 1 | 128 | 161 | 272 M2(4) | 1.26x, 20.5% | 2.12x, 52.9% |" in area_table(
        [row], module._gain, config
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": ["a.onnx", "b.onnx"]}, "takes one ONNX model, not 2"),
        ({"config": "small"}, "needs a configuration with masked cells, not logic"),
        ({"data": f"{MODELS}/digits.npz:x_test"}, "Accuracy needs labels"),
    ],
)
def test_what_cannot_be_compared_is_an_error(changes, message):
    with pytest.raises(SigbitError, match=message):
        run_bench("sdp", **OPTIONS | changes)


def test_the_command_line_names_options_that_are_missing(capsys):
    assert bench_needs("sdp") == ("networks", "data", "calibration")
    assert main(["bench", "sdp", "--networks", "a.onnx"]) == 2
    assert "bench sdp also needs --data, --calibration" in capsys.readouterr().err


def test_a_picture_has_both_designs(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"kind": kind, "cost": 1.0, "accuracy": 0.5} for kind in ("sdp", "w1p")]
    rows += [{"kind": "drq", "accuracy": 0.5, **dict.fromkeys(("M0", "M1", "M2(4)", "M2(16)"), 2.0)}]
    module._plot(tmp_path / "pareto.png", rows)
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
