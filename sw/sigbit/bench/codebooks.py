"""Accuracy of a network whose weights have few levels: searched codebooks against evenly spaced ones."""

from pathlib import Path

from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import INT, NUUQ

from .. import evaluation
from ..data import load_images
from ..float_model import run_float
from ..onnx_reader import read_onnx
from ..quantize import quantize
from ..storage import weight_storage
from .picture import figure
from .table import markdown

__all__ = ["LEVELS", "bench", "even_levels"]

#: Numbers of levels that are compared.
LEVELS = (16, 8, 5, 4, 3)
_EDGE_BITS = 8

_NOTE = """\
{network}: {images} images, golden model, float {float:.1%}. Post-training only, {calibration} calibration images, \
activations {activations}, first and last layer in {edge} bits. Even: N evenly spaced symmetric levels, unit of least \
squared error per channel. NUUQ: `B = ceil(log2 N) + 2` bits, levels and units searched per layer or per output \
channel. Bits and kB are those of the weights in N levels, packed; codebooks apart and with them. In INT(8) and INT(4) \
these weights take {int8:.1f} and {int4:.1f} kB."""


def even_levels(count):
    """A format of ``count`` symmetric evenly spaced levels."""
    step = 1 if count % 2 else 2
    levels = tuple(range(-(count - 1) * step // 2, (count - 1) * step // 2 + 1, step))
    return NUUQ(count, 1 + levels[-1].bit_length() + (levels[-1] == 0), levels)


def bench(
    progress,
    networks=(),
    data=None,
    calibration=None,
    activations="uint:8",
    scale=255.0,
    mean=(0.0,),
    std=(1.0,),
    picture=None,
):
    """Accuracy and weight memory of one ONNX model for 16 to 3 levels; ``picture``: a file for the curve.

    ``data`` has images and labels, ``calibration`` images; ``scale``, ``mean`` and ``std`` are those of the model.
    """
    if len(networks) != 1 or data is None or calibration is None:
        raise SigbitError(
            "bench codebooks takes one ONNX model: --networks MODEL.onnx --data FILE.npz:X,Y --calibration FILE.npz:X"
        )
    graph = read_onnx(networks[0])
    pixels = {"scale": scale, "mean": mean, "std": std}
    images, labels = load_images(data, **pixels)
    if labels is None:
        raise SigbitError("Accuracy needs labels; name them after the images: --data FILE.npz:IMAGES,LABELS")
    samples, _ = load_images(calibration, **pixels)
    name = Path(networks[0]).stem

    def measured(weights, **options):
        network = quantize(graph, samples, weights=weights, activations=activations, edge_bits=_EDGE_BITS, **options)
        return evaluation.evaluate(network, images, labels=labels)["accuracy"], weight_storage(network)

    rows = []
    for count in LEVELS:
        bits = (count - 1).bit_length() + 2
        row = {"levels": count, "bits": bits}
        for key, weights, options in (
            ("even", even_levels(count), {}),
            ("layer", NUUQ(count, bits), {}),
            ("channel", NUUQ(count, bits), {"codebooks": "channel"}),
        ):
            progress(f"{name}: {count} levels, {key}")
            row[key], storage = measured(weights, **options)
            inner = [layer for layer in storage["layers"] if layer["levels"] == count]
            for total in ("packed_bytes", "codebook_bytes", "weights"):
                row[f"{key}_{total}"] = sum(layer[total] for layer in inner)
        rows.append(row)
    weights = rows[0]["layer_weights"]
    if picture is not None:
        _draw(rows, name, picture)
    table = markdown(
        rows,
        {
            "N": lambda row: row["levels"],
            "B": lambda row: row["bits"],
            "even": lambda row: f"{row['even']:.1%}",
            "NUUQ per layer": lambda row: f"{row['layer']:.1%}",
            "NUUQ per channel": lambda row: f"{row['channel']:.1%}",
            "stored bits": lambda row: f"{8 * row['layer_packed_bytes'] / row['layer_weights']:.3f}",
            "kB": lambda row: f"{row['layer_packed_bytes'] / 1000:.1f}",
            "with codebooks, layer / channel": lambda row: " / ".join(
                f"{(row[f'{key}_packed_bytes'] + row[f'{key}_codebook_bytes']) / 1000:.1f}"
                for key in ("layer", "channel")
            ),
        },
    )
    note = _NOTE.format(
        network=name,
        images=len(images),
        float=evaluation.accuracy(evaluation.choose(run_float(graph, images)), labels),
        calibration=len(samples),
        activations=activations,
        edge=INT(_EDGE_BITS).bits,
        int8=weights / 1000,
        int4=weights / 2000,
    )
    return rows, f"{table}\n\n{note}"


def _draw(rows, name, path):
    with figure(path) as axes:
        for key, label in (("even", "even"), ("layer", "NUUQ per layer"), ("channel", "NUUQ per channel")):
            axes.plot([row["levels"] for row in rows], [100 * row[key] for row in rows], marker="o", label=label)
        ticks = [row["levels"] for row in rows]
        axes.set(xscale="log", xlabel="levels", ylabel="accuracy in %", title=f"{name}, post-training")
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
        axes.grid(True, alpha=0.3)
        axes.legend()
