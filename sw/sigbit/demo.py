"""The whole product in one command: the digits network that comes with the package, from ONNX to RTL logits and ZCU102 Verilog."""

from importlib.resources import as_file, files

import numpy as np

from sigbit_hw.spec.config import PRESETS

from .data import load_images
from .evaluation import evaluate
from .float_model import run_float
from .onnx_reader import read_onnx
from .quantize import quantize

__all__ = ["digits_network", "run_demo"]

#: The accelerator that runs the demo, and the formats of its array and of the network.
CONFIG = PRESETS["small"]
EDGE_BITS = 8


def _digits(name, limit=None):
    with as_file(files("sigbit") / "models" / "digits.npz") as path:
        return load_images(f"{path}:{name}", limit, scale=16)


def _digits_model():
    with as_file(files("sigbit") / "models" / "digits.onnx") as path:
        return read_onnx(path)


def digits_network(limit=None):
    """The digits network in 4-bit ESB with 8-bit edges, its held-out test images (normalized) and their labels."""
    calibration, _ = _digits("x_calibration")
    images, labels = _digits("x_test,y_test", limit)
    network = quantize(
        _digits_model(),
        calibration,
        weights=CONFIG.weight_format,
        activations=CONFIG.activation_format,
        edge_bits=EDGE_BITS,
    )
    return network, images, labels


def run_demo(folder, images=400, progress=lambda line: None):
    """Quantize, compile, run in RTL simulation, compare with the golden model, write Verilog.

    Parameters
    ----------
    folder : path-like
        Where ``sigbit.v`` and ``manifest.json`` of the ``zcu102`` configuration go.
    images : int
        Held-out test images.
    progress : callable
        Called with one line of text per step.

    Returns
    -------
    dict, str
        Figures, and the same as text.
    """
    from sigbit_hw.emit import write_verilog
    from sigbit_sim.synthesis import estimate

    progress("quantizing the digits network to 4-bit ESB")
    network, test, labels = digits_network(images)
    logits = run_float(_digits_model(), test)
    measured = evaluate(network, test, device="rtl", config=CONFIG, labels=labels, progress=progress)
    progress("writing the Verilog of the zcu102 configuration")
    board = PRESETS["zcu102"]
    write_verilog(board, folder)
    progress("estimating LUTs of the simulated configuration with Yosys")
    area = estimate(CONFIG)
    result = {
        "images": measured["images"],
        "float_accuracy": float(np.mean(logits.reshape(len(logits), -1).argmax(axis=1) == labels)),
        "quantized_accuracy": measured["golden_accuracy"],
        "rtl_accuracy": measured["accuracy"],
        "mismatches": measured["mismatches_against_golden"],
        "cycles_per_image": measured["cycles_per_image"],
        "mac_utilisation": measured["mac_utilisation"],
        "mac_lanes": CONFIG.mac_lanes,
        "lut": area["lut"],
        "dsp": area["dsp"],
        "verilog": str(folder),
        "zcu102_mac_lanes": board.mac_lanes,
    }
    text = f"""\
sigbit demo: {result['images']} held-out digits, {CONFIG.weight_format} weights, {CONFIG.activation_format} activations, \
{EDGE_BITS}-bit first and last layer
  accuracy      float {100 * result['float_accuracy']:.2f} %, quantized {100 * result['quantized_accuracy']:.2f} %, \
RTL {100 * result['rtl_accuracy']:.2f} %
  mismatches    {result['mismatches']} images of {result['images']} with a logit that differs between RTL and golden model
  speed         {result['cycles_per_image']:.0f} cycles per image, {100 * result['mac_utilisation']:.1f} % of \
{CONFIG.mac_lanes} MAC lanes in use
  size          {area['lut']} LUTs, {area['ff']} flip-flops, {area['dsp']} DSPs for the simulated configuration ({area['yosys']})
  Verilog       {folder}/sigbit.v, {board.mac_lanes} MAC lanes for the ZCU102"""
    return result, text
