"""What a model may be: a graph, an ONNX file, a PyTorch module; the same numbers from each."""

from pathlib import Path

import numpy as np
import pytest
import sigbit
from sigbit.graph import ModelError
from sigbit.model_reader import read_model
from sigbit_sim.golden.network import run

DIGITS = Path(sigbit.__file__).parent / "models" / "digits.onnx"


def test_graphs_and_files_are_read():
    pytest.importorskip("onnx")
    images = np.random.default_rng(7).random((2, 1, 8, 8), np.float32)
    graph = read_model(DIGITS, images)
    assert read_model(graph, images) is graph
    np.testing.assert_array_equal(
        sigbit.run_float(read_model(str(DIGITS), images), images), sigbit.run_float(graph, images)
    )


@pytest.mark.parametrize("model", [None, 3, lambda x: x])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(ModelError, match=rf"ONNX file, a Graph or a torch.nn.Module, not {type(model).__name__}"):
        sigbit.quantize(model, np.zeros((2, 1, 8, 8), np.float32))


def test_a_pytorch_module_is_quantized_and_trained_as_it_evaluates():
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    torch.manual_seed(8)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(64, 3),
    )  # fmt: skip
    images = np.random.default_rng(8).normal(size=(16, 1, 4, 4)).astype(np.float32)
    network = sigbit.quantize(model, images, weights="int:8", activations="uint:8")
    module = sigbit.prepare_qat(model, images, weights="int:8", activations="uint:8").eval()
    assert model.training
    with torch.no_grad():
        expected = model.eval()(torch.tensor(images)).numpy()
        trained = module(torch.tensor(images)).numpy()
    found = run(network, sigbit.input_levels(network, images)) * network.tensors[network.outputs[0]].unit
    np.testing.assert_allclose(found, expected, atol=0.1)
    np.testing.assert_allclose(trained, found, atol=1e-5)
    np.testing.assert_allclose(sigbit.run_float(module.graph, images)[:, :, 0, 0], expected, atol=1e-5)


def test_a_module_that_pytorch_cannot_write_is_refused_and_left_alone():
    torch = pytest.importorskip("torch")

    class Drawn(torch.nn.Module):
        def forward(self, _x):
            raise ValueError("no picture")

    model = Drawn()
    with pytest.raises(ModelError, match="PyTorch cannot write Drawn as ONNX: no picture"):
        sigbit.quantize(model, np.zeros((2, 3, 4, 4), np.float32))
    assert model.training
