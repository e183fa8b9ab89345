"""The host of the sigbit accelerator: read a trained network, quantize it, compile it, run it.

Importing this package loads NumPy only; ONNX is loaded when a model is read.
"""

from .data import DataError, load_images
from .float_model import run_float
from .graph import Graph, ModelError
from .onnx_reader import read_onnx
from .passes import lower
from .quantize import QuantizationError, input_levels, quantize, summary

__all__ = [
    "DataError",
    "Graph",
    "ModelError",
    "QuantizationError",
    "input_levels",
    "load_images",
    "lower",
    "quantize",
    "read_onnx",
    "run_float",
    "summary",
]
