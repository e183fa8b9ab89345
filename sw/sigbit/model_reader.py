"""A trained model of any kind that is read as a float graph."""

import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from .graph import Graph, ModelError
from .onnx_reader import read_onnx

if TYPE_CHECKING:
    import torch

__all__ = ["Model", "read_model"]

#: What is read: a graph as it is, the path of an ONNX file, or a PyTorch module.
Model: TypeAlias = "Graph | str | Path | torch.nn.Module"


def read_model(model: Model, images: np.ndarray) -> Graph:
    """A graph as it is, the graph of an ONNX file, or of a PyTorch module, which goes through ONNX.

    Parameters
    ----------
    model : Model
        A module is read as it evaluates, and stays as it is, on the device that it is on.
    images : float array, ``(n, *input_shape)``
        Images as the model takes them; a module is traced with one of them.

    Raises
    ------
    :exc:`~sigbit_hw.spec.errors.SigbitError`
        If the model is of another type, PyTorch cannot write it as ONNX, or the ONNX cannot be read.
    """
    if isinstance(model, Graph):
        return model
    if isinstance(model, str | Path):
        return read_onnx(model)
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        raise ModelError(
            f"A model must be the path of an ONNX file, a Graph or a torch.nn.Module, not {type(model).__name__}"
        )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        parameter = next(model.parameters(), None)
        device = None if parameter is None else parameter.device
        example = torch.as_tensor(np.asarray(images)[:1], dtype=torch.float32, device=device)
        was = model.training
        model.eval()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    model, (example,), str(path), input_names=["image"], opset_version=17,
                    training=torch.onnx.TrainingMode.EVAL, do_constant_folding=False, dynamo=False,
                )  # fmt: skip
        except Exception as error:
            raise ModelError(f"PyTorch cannot write {type(model).__name__} as ONNX: {error}") from error
        finally:
            model.train(was)
        return read_onnx(path)
