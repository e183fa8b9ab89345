"""The host of the sigbit accelerator: read a trained network, quantize it, compile it, run it.

Importing this package loads NumPy only. ONNX is loaded when a model is read, Amaranth and Verilator when a device
``"rtl"`` is opened or Verilog is written, PyTorch when a network is trained.
"""

from sigbit_hw.spec.config import PRESETS, AcceleratorConfig
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import ESB, ESBU, INT, NUUQ, NUUQU, UINT
from sigbit_sim.golden.network import IntegerNetwork
from sigbit_sim.golden.program import Program

from .boards import build as build_board
from .compiler import compile, fit
from .data import load_images
from .device import Device, open_device
from .evaluation import evaluate, layer_report
from .float_model import run_float
from .graph import Graph
from .onnx_reader import read_onnx
from .passes import lower
from .performance import report
from .quantize import input_levels, quantize, summary
from .search import search
from .session import Session

__all__ = [
    "ESB",
    "ESBU",
    "INT",
    "NUUQ",
    "NUUQU",
    "PRESETS",
    "UINT",
    "AcceleratorConfig",
    "Device",
    "Graph",
    "IntegerNetwork",
    "Program",
    "Session",
    "SigbitError",
    "build_board",
    "compile",
    "evaluate",
    "fit",
    "input_levels",
    "layer_report",
    "load_images",
    "lower",
    "open_device",
    "prepare_qat",
    "quantize",
    "read_onnx",
    "report",
    "run_float",
    "search",
    "summary",
    "write_verilog",
]


def write_verilog(config, folder, family=None):
    """Write ``sigbit.v`` and ``manifest.json``: :func:`sigbit_hw.emit.write_verilog`."""
    from sigbit_hw.emit import write_verilog as write

    return write(config, folder, family)


def prepare_qat(model, calibration, **options):
    """A model as a PyTorch module for quantization-aware training: :func:`sigbit.training.prepare_qat`."""
    from .training import prepare_qat as prepare

    return prepare(model, calibration, **options)
