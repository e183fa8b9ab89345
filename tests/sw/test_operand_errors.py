"""Errors of operands: exact on the tensors themselves, and part of a command."""

import json
from pathlib import Path

import numpy as np
import pytest
import sigbit
from sigbit.adaptation import errors
from sigbit.cli import main
from sigbit.operand_errors import draw, operand_errors
from sigbit.passes import lower
from sigbit.quantize import input_levels, quantize
from sigbit_sim.golden.network import run

MODELS = Path(sigbit.__file__).parent / "models"


def series():
    with np.load(MODELS / "series.npz") as file:
        return file["x_test"], file["y_test"], file["x_calibration"]


def test_every_operand_has_the_errors_of_its_own_values():
    calibration = series()[2]
    model = sigbit.read_onnx(MODELS / "series.onnx")
    network = quantize(model, calibration, weights="auto:4", activations="auto:4", edge_bits=8)
    found = operand_errors(model, network, calibration)
    assert [operand.operand for operand in found] == ["weights", "activations"] * 2 + ["weights"]
    for operand in found:
        if operand.operand == "weights":
            layer = next(layer for layer in network.layers if layer.name == operand.layer)
            weight = next(node for node in lower(model).nodes if node.name == operand.layer).weight
            assert operand.errors == errors(weight, layer.weight_format, layer.weight_units)
            assert operand.counts.sum() == weight.size
        assert operand.row["clipping"] >= 0
        assert operand.row["rounding"] > 0
        assert operand.unit_log2[0] == round(operand.unit_log2[0])
    # The first hidden layer, from the float model.
    hidden = np.maximum(calibration @ lower(model).nodes[0].weight[:, :, 0, 0].T + lower(model).nodes[0].bias, 0)
    tensor = network.tensors[network.layers[0].output]
    expected = errors(hidden, tensor.format, tensor.unit)
    assert found[1].errors.total == pytest.approx(expected.total, rel=1e-4)


@pytest.mark.parametrize(("width", "most"), [("auto:4", 0.3), ("auto:5", 0.15)])
def test_a_forecast_keeps_its_error(width, most):
    """Root mean square error over the standard deviation of the change; the float model has 0.061."""
    windows, wanted, calibration = series()
    network = quantize(MODELS / "series.onnx", calibration, weights=width, activations=width, edge_bits=8)
    found = run(network, input_levels(network, windows)).ravel() * network.tensors[network.output].unit
    assert np.sqrt(np.mean((found - wanted) ** 2)) < most * wanted.std()


def test_the_command_gives_one_row_per_operand(capsys, tmp_path):
    arguments = [str(MODELS / "series.onnx"), "--calibration", f"{MODELS / 'series.npz'}:x_calibration"]
    arguments += ["--weights", "auto:4", "--activations", "auto-a:4", "--edge-bits", "8", "--json"]
    assert main(["errors", *arguments]) == 0
    rows = json.loads(capsys.readouterr().out)["operands"]
    assert {row["format"] for row in rows} >= {"int:8", "ausn-au:2,2"}


def test_a_picture_is_written_or_its_library_named(tmp_path):
    model, calibration = sigbit.read_onnx(MODELS / "series.onnx"), series()[2]
    found = operand_errors(model, quantize(model, calibration, weights="auto:4", activations="auto:4"), calibration)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        with pytest.raises(sigbit.SigbitError, match="matplotlib"):
            draw(found, tmp_path / "errors.png")
    else:
        draw(found, tmp_path / "errors.png")
        assert (tmp_path / "errors.png").stat().st_size > 1000
