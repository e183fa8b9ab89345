"""The bench of structured dynamic precision: interpolation on fronts, both readings of a gain, and a whole run."""

from importlib.resources import files

import pytest
from sigbit.bench import bench_needs, run_bench
from sigbit.bench import sdp as module
from sigbit.cli import main
from sigbit_hw.spec.errors import SigbitError

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


def test_a_gain_has_two_readings():
    assert module._gain(1.41, 1.0) == "1.41x, 29.1%"
    assert module._gain(1.0, 0.775) == "1.29x, 22.5%"
    assert module._gain(None, 1.0) == "-"


def test_a_run_compares_both_designs_on_one_network(monkeypatch):
    monkeypatch.setattr(module, "_size", lambda progress, config: [SIZE])
    rows, text = run_bench("sdp", limit=12, **OPTIONS)
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("sdp", "drq", "match")}
    assert [row["budget"] for row in kinds["sdp"]] == list(range(2, 17, 2))
    last = kinds["sdp"][-1]
    assert (last["error"], last["cost"], last["share"], last["average_bits"]) == (0, 4, 1, 8)
    errors = [row["error"] for row in kinds["sdp"]]
    assert errors[0] > errors[3] > errors[-1]
    cycles = [row["cycles"] for row in kinds["sdp"]]
    assert cycles == sorted(cycles)
    for row in kinds["drq"]:
        assert 1 <= row["M0"] <= row["M2(16)"] <= row["M2(4)"] <= row["M1"] <= 4
    assert {row["goal"] for row in kinds["match"]} >= {"8 bits - 1 points", "error 0.03"}
    assert "25.0% of 160" in text
    assert "not the published design" in text


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


def test_a_picture_needs_matplotlib(monkeypatch, tmp_path):
    rows = [{"kind": "sdp", "cost": 1.0, "accuracy": 0.5}]
    rows += [{"kind": "drq", "accuracy": 0.5, **dict.fromkeys(("M0", "M1", "M2(4)", "M2(16)"), 2.0)}]
    path = tmp_path / "pareto.png"
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        with pytest.raises(SigbitError, match="pip install matplotlib"):
            module._plot(path, rows)
    else:
        module._plot(path, rows)
        assert path.read_bytes().startswith(b"\x89PNG")
