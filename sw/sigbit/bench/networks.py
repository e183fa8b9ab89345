"""Cycles per image of well-known networks, predicted or in RTL."""

import tempfile
import time
from pathlib import Path

import numpy as np

from ..architectures import ARCHITECTURES, write_architecture
from ..data import load_images
from ..evaluation import configuration
from ..onnx_reader import read_onnx
from ..performance import CLOCKS_MHZ, report
from ..quantize import quantize
from .table import markdown

__all__ = ["bench"]

_EDGE_BITS = 8

_NETWORKS = """\
{what}, `{preset}`: {config.mac_lanes} lanes, {config.weight_format} x {config.activation_format}, \
first and last layer in {edge} bits, {config.stream_bits} stream bits per cycle. In use is the share of lanes and \
cycles, those in which input and weights arrive included, with part products that the formats need (9 per product of \
8 bits); convolutions: in all cycles but those of fully connected layers. Frames per second are arithmetic at these \
clocks, not timing. Prediction is the cycle model against RTL, wrong outputs are images of which any output differs \
from the golden model. Weights and images are random, unless models are given."""


def bench(progress, networks=tuple(ARCHITECTURES), config="zcu102", device="model", data=None, batch=1):
    """Cycles per image of well-known networks, or of ONNX models, one group of ``batch`` images each."""
    preset = config
    config = configuration(config)
    rows = []
    for name in networks:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            path = name
            if name in ARCHITECTURES:
                progress(f"{name}: making the model")
                path = f"{folder}/{name}.onnx"
                write_architecture(name, path)
            graph = read_onnx(path)
        if name in ARCHITECTURES or data is None:
            images = np.random.default_rng(0).standard_normal((2, *graph.input_shape), dtype=np.float32)
        else:
            images, _ = load_images(data, 16)
        progress(f"{name}: quantizing")
        network = quantize(
            graph, images, weights=config.weight_format, activations=config.activation_format, edge_bits=_EDGE_BITS
        )
        result = report(
            network,
            config,
            device=device,
            batch=batch,
            progress=lambda line, *count, name=name: progress(f"{name}: {line}"),
        )
        total = result["total"]
        cycles = {kind: total[kind] and round(total[kind]["total"] / batch) for kind in ("predicted", "measured")}
        rows.append(
            {
                "network": Path(name).stem,
                "configuration": preset,
                "batch": batch,
                "macs": total["macs"],
                "part_products": total["part_products"],
                "cycles": cycles["measured"] or cycles["predicted"],
                "predicted_cycles": cycles["predicted"],
                "rtl_cycles": cycles["measured"],
                "counters": total["measured"] or total["predicted"],
                "utilisation": total["utilisation"],
                "convolution_utilisation": total["convolutions"]["utilisation"],
                **{f"fps_{mhz}": value for mhz, value in total["frames_per_second"].items()},
                "bytes": total["bytes"],
                "mismatches": result["mismatches"],
                "seconds": time.perf_counter() - start,
            }
        )
    table = markdown(
        rows,
        {
            "network": lambda row: row["network"],
            "GMAC": lambda row: f"{row['macs'] / 1e9:.3f}",
            "cycles": lambda row: row["cycles"],
            "in use, convolutions": lambda row: f"{row['convolution_utilisation']:.1%}",
            "in use, all layers": lambda row: f"{row['utilisation']:.1%}",
            "frames/s at 200 / 250 / 300 MHz": lambda row: " / ".join(f"{row[f'fps_{mhz}']:.1f}" for mhz in CLOCKS_MHZ),
            "MB sent": lambda row: f"{row['bytes']['image'] / 1e6:.2f}",
            "prediction": _prediction,
            "wrong outputs": lambda row: "-" if row["mismatches"] is None else row["mismatches"],
            "seconds": lambda row: f"{row['seconds']:.0f}",
        },
    )
    what = "One image per network" if batch == 1 else f"Figures per image of a group of {batch}"
    return rows, f"{table}\n\n{_NETWORKS.format(what=what, config=config, preset=preset, edge=_EDGE_BITS)}"


def _prediction(row):
    """How far the cycle model is from RTL."""
    if row["rtl_cycles"] is None:
        return "only"
    return f"{row['predicted_cycles'] / row['rtl_cycles'] - 1:+.2%}"
