"""Accuracy of networks that were trained for their quantized form, from the golden integer model."""

import json
from collections import Counter
from pathlib import Path

from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import INT
from sigbit_sim.golden import network as golden
from sigbit_sim.golden.network import IntegerNetwork

from ..data import load_images
from ..evaluation import accuracy, choose
from ..float_model import run_float
from ..onnx_reader import read_onnx
from ..quantize import input_levels
from .table import markdown

__all__ = ["bench"]

#: What the papers say of accuracy, as far as their abstracts do.
_CLAIMS = """\
The papers, other networks and recipes: ESB, on average 4.78 / 1.92 / 3.56 points better than methods before it \
(AlexNet, ResNet-18, MobileNetV2, trained); NUUQ, no loss at 2 bits (N = 4) and about 0.6 points at 1.58 (N = 3), \
trained; AUSN and SDP name no accuracy in their abstracts, SDP compares at equal accuracy, fine-tuned."""

_NOTE = """\
{name}: accuracy on {images} images, float {float:.1f} %, of the networks that `sigbit train` exported; formats are \
those of most weights. Runs of equal formats, masks and steps share a row: mean, and least and largest. One image is \
{one:.2f} points. {claims}"""


def bench(progress, networks, data, trained, scale=255.0, mean=(0.0,), std=(1.0,)):
    """Accuracy of trained integer networks, and of the ONNX model that training began with.

    Parameters
    ----------
    networks : list of one str
        The ONNX model.
    data : str
        ``FILE.npz:IMAGES,LABELS``.
    trained : sequence of str
        Folders that ``sigbit train`` wrote.
    scale : float
    mean, std : sequences of float
    """
    if len(networks) != 1:
        raise SigbitError(f"bench trained measures what one model became, not {len(networks)}")
    images, labels = load_images(data, scale=scale, mean=mean, std=std)
    if labels is None:
        raise SigbitError("Accuracy needs labels; name them after the images: --data FILE.npz:IMAGES,LABELS")
    runs = [_run(folder) for folder in trained]
    float_accuracy = accuracy(choose(run_float(read_onnx(networks[0]), images)), labels)
    for run in runs:
        progress(f"{run['run']}: {run['weights']} x {run['activations']}")
        network = run.pop("network")
        run["accuracy"] = accuracy(choose(golden.run(network, input_levels(network, images))), labels)
    table = markdown(
        _rows(runs),
        {
            "weights": lambda row: f"`{row['weights']}`",
            "activations": lambda row: f"`{row['activations']}`",
            "masks": lambda row: row["masks"] or "",
            "runs": lambda row: len(row["accuracies"]),
            "accuracy": lambda row: _spread(row["accuracies"]),
            "against float": lambda row: f"{100 * (_mean(row['accuracies']) - float_accuracy):+.2f}",
            "steps": lambda row: row["steps"],
            "minutes": lambda row: f"{_mean(row['seconds']) / 60:.0f}",
        },
    )
    note = _NOTE.format(
        name=Path(networks[0]).stem,
        images=len(images),
        float=100 * float_accuracy,
        one=100 / len(images),
        claims=_CLAIMS,
    )
    return runs, f"{table}\n\n{note}"


def _run(folder):
    """The network of a folder, and what its log says."""
    network = IntegerNetwork.load(Path(folder) / "network.npz")
    try:
        log = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise SigbitError(f"{folder} has no log of a training: {error}") from error
    weights: Counter = Counter()
    activations: Counter = Counter()
    masks: Counter = Counter()
    for layer in network.layers:
        format = network.tensors[layer.output].format
        if isinstance(layer, golden.Convolution) and layer.weight_format != INT(8):
            # Trained codebooks differ from layer to layer.
            weights[layer.weight_format.label] += layer.weights.size
            activations[None if format is None else format.label] += layer.weights.size
        if isinstance(layer, golden.Convolution) and layer.mask is not None:
            masks[str(layer.mask)] += 1
    return {
        "run": Path(folder).name,
        "weights": max(weights, key=weights.__getitem__, default="int:8"),
        "activations": max(activations, key=activations.__getitem__, default="uint:8"),
        "masks": max(masks, key=masks.__getitem__, default=None),
        "steps": sum(row["steps"] for row in log),
        "seconds": sum(row["seconds"] for row in log),
        "network": network,
    }


def _rows(runs):
    """Runs that differ by their seed alone, in one row."""
    rows: dict[tuple, dict] = {}
    for run in runs:
        same = {key: run[key] for key in ("weights", "activations", "masks", "steps")}
        row = rows.setdefault(tuple(same.values()), {**same, "accuracies": [], "seconds": []})
        row["accuracies"].append(run["accuracy"])
        row["seconds"].append(run["seconds"])
    return list(rows.values())


def _mean(values):
    return sum(values) / len(values)


def _spread(values):
    text = f"{100 * _mean(values):.2f} %"
    return f"{text} ({100 * min(values):.1f} to {100 * max(values):.1f})" if len(values) > 1 else text
