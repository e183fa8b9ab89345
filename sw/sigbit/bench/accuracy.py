"""Accuracy of a classifier in every family of formats at equal bits after training, from the golden integer model."""

from pathlib import Path
from typing import Any

from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import UINT, Format, FormatError
from sigbit_sim.golden import network as golden

from ..data import load_images
from ..evaluation import accuracy, choose
from ..float_model import run_float
from ..onnx_reader import read_onnx
from ..quantize import input_levels, quantize
from .table import markdown

__all__ = ["BITS", "FAMILIES", "bench", "family_formats"]

BITS = (2, 3, 4, 5, 6, 7, 8)
FAMILIES = ("INT", "ESB", "AUSN", "NUUQ")

_EDGE_BITS = 8

_NOTE = """\
{name}: accuracy on {images} images, float {float:.1f} %; first and last layer in {edge} bits and not counted. \
One image is {one:.2f} points, so differences below about one point do not rank formats. Weights only: activations in \
uint:8. INT and UINT; ESB and AUSN of type G with two exponent bits (one at 2 bits); NUUQ of 2**b levels \
(255 at 8 bits) of b + 2 bits, 8 at most. Post-training: `rounding` reconstruct, `alpha_mode` output, {calibration} \
calibration images{plain}."""


def family_formats(family, bits):
    """Weights and activations of a family with so many stored bits; None where it has no such format."""
    exponent = 1 if bits == 2 else 2
    texts = {
        "INT": (f"int:{bits}", f"uint:{bits}"),
        "ESB": (f"esb:{bits},{bits - 1 - exponent}", f"esbu:{bits},{bits - exponent}"),
        "AUSN": (f"ausn-g:{exponent},{bits - 1 - exponent}", f"ausn-gu:{exponent},{bits - exponent}"),
        "NUUQ": (
            f"nuuq:{min(2**bits, 255)},{min(bits + 2, 8)}",
            f"nuuqu:{2**bits},{min(bits + 2, 8)}",
        ),
    }
    try:
        return tuple(Format.parse(text) for text in texts[family])
    except FormatError:
        return None


def bench(progress, networks, data, calibration, scale=255.0, mean=(0.0,), std=(1.0,), bits=BITS, plain=False):
    """Accuracy of one ONNX model after training in all formats.

    Parameters
    ----------
    networks : list of one str
        The ONNX model.
    data, calibration : str
        ``FILE.npz:IMAGES,LABELS`` and ``FILE.npz:IMAGES``.
    scale : float
    mean, std : sequences of float
    bits : sequence of int
    plain : bool
        Measure nearest levels with scales of least squared error, too.
    """
    if len(networks) != 1:
        raise SigbitError(f"bench accuracy measures one model, not {len(networks)}")
    unknown = [width for width in bits if width not in BITS]
    if unknown:
        raise SigbitError(f"bits must be 2 to 8, not {', '.join(map(str, unknown))}")
    graph = read_onnx(networks[0])
    images, labels = load_images(data, scale=scale, mean=mean, std=std)
    if labels is None:
        raise SigbitError("Accuracy needs labels; name them after the images: --data FILE.npz:IMAGES,LABELS")
    calibration_images, _ = load_images(calibration, scale=scale, mean=mean, std=std)

    def measured(network):
        return accuracy(choose(golden.run(network, input_levels(network, images))), labels)

    float_accuracy = accuracy(choose(run_float(graph, images)), labels)
    methods: dict[str, dict[str, Any]] = {"reconstructed": {"rounding": "reconstruct", "alpha_mode": "output"}} | (
        {"plain": {}} if plain else {}
    )
    rows = []
    for family in FAMILIES:
        for width in bits:
            formats = family_formats(family, width)
            if formats is None:
                continue
            row = {"family": family, "bits": width, "weights": str(formats[0]), "activations": str(formats[1])}
            for what, activations in (("weights_only", UINT(8)), ("both", formats[1])):
                for method, options in methods.items():
                    progress(f"{formats[0]} x {activations}, {method}")
                    network = quantize(graph, calibration_images, formats[0], activations, _EDGE_BITS, **options)
                    row[f"{what}_{method}"] = measured(network)
            rows.append(row)
    rows.sort(key=lambda row: row["bits"])
    table = markdown(
        rows,
        {
            "bits": lambda row: row["bits"],
            "family": lambda row: row["family"],
            "weights": lambda row: f"`{row['weights']}`",
            "activations": lambda row: f"`{row['activations']}`",
            "weights only": lambda row: _cell(row, "weights_only"),
            "weights and activations": lambda row: _cell(row, "both"),
        },
    )
    brackets = "; in brackets nearest levels and scales of least squared error" if plain else ""
    note = _NOTE.format(
        name=Path(networks[0]).stem,
        images=len(images),
        float=100 * float_accuracy,
        edge=_EDGE_BITS,
        one=100 / len(images),
        calibration=len(calibration_images),
        plain=brackets,
    )
    return rows, f"{table}\n\n{note}"


def _cell(row, what):
    text = f"{100 * row[f'{what}_reconstructed']:.1f} %"
    return f"{text} ({100 * row[f'{what}_plain']:.1f} %)" if f"{what}_plain" in row else text
