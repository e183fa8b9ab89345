"""DRQ, the baseline that structured dynamic precision is compared with: a model of our own (``docs/sdp.md``).

After Z. Song et al., "DRQ: Dynamic Region-based Quantization for Deep Neural Network Acceleration", ISCA 2020. The
paper has the regions, the mean filter, the threshold and the two precisions; the rounding of the 4-bit operands, the
processing element of one 4x4 multiplier and the models of its stalls are our definition, as favourable to it as we know
how.
"""

from dataclasses import dataclass, replace

import numpy as np
from sigbit_hw.spec.formats import INT, UINT
from sigbit_hw.spec.masks import MaskError

from .golden import network as golden
from .golden.numerics import level_table, requantize

__all__ = [
    "ELASTIC_DEPTHS",
    "Costs",
    "Region",
    "array_reads",
    "elastic_cycles",
    "layer_costs",
    "lockstep_cycles",
    "run_drq",
    "sensitive",
    "short_activations",
    "short_weights",
]

#: Cycles of a 4x4 multiplier for an activation of 8 bits times a weight of 8, and of 4 times 4.
SENSITIVE_CYCLES, SHORT_CYCLES = 4, 1
#: Array rows, each a channel and kernel position; array columns.
ROWS, COLUMNS = 18, 16
#: Entries of the FIFOs of the elastic array; None: without limit.
ELASTIC_DEPTHS = (4, 16, None)


@dataclass(frozen=True)
class Region:
    """Regions of ``rows`` x ``columns`` pixels with a threshold of their mean, in levels of UINT(8)."""

    rows: int
    columns: int
    threshold: int

    def __post_init__(self):
        for name, low in (("rows", 1), ("columns", 1), ("threshold", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise MaskError(f"{name} of a region must be an integer of {low} or more, not {value!r}")


def sensitive(levels, region):
    """Whether each pixel lies in a region whose mean reaches the threshold.

    Parameters
    ----------
    levels : int array, ``(..., height, width)``
        0 to 255. Regions start at the top left corner; those at the other edges are cut.
    region : :class:`Region`

    Returns
    -------
    bool array of the same shape
    """
    levels = np.asarray(levels, dtype=np.int64)
    height, width = levels.shape[-2:]
    starts = np.arange(0, height, region.rows), np.arange(0, width, region.columns)
    sums = np.add.reduceat(np.add.reduceat(levels, starts[0], axis=-2), starts[1], axis=-1)
    sizes = [np.diff([*start, end]) for start, end in zip(starts, (height, width), strict=True)]
    chosen = sums >= region.threshold * np.outer(*sizes)
    return chosen.repeat(sizes[0], axis=-2).repeat(sizes[1], axis=-1)


def short_activations(levels):
    """UINT(8) rounded to its upper 4 bits."""
    return np.minimum((np.asarray(levels) + 8) >> 4, 15)


def short_weights(weights):
    """INT(8) rounded to its upper 4 bits."""
    return np.clip((np.asarray(weights) + 8) >> 4, -8, 7)


def _applies(layer, network, exempt):
    return (
        isinstance(layer, golden.Convolution)
        and layer.name not in exempt
        and network.tensors[layer.input].format == UINT(8)
    )


def _accumulator(layer, network, levels, weights):
    """Exact sums of a convolution, whatever it makes of them."""
    target = network.tensors[layer.output]
    raw = replace(target, format=None, unit=1.0)
    zeros = np.zeros(len(weights), dtype=np.int64)
    bare = replace(
        layer, weights=weights, weight_format=INT(8), bias=zeros, multiplier=zeros, shift=zeros, relu=False,
        residual=None, residual_multiplier=None, negative_multiplier=None,
    )  # fmt: skip
    return golden.run_layer(bare, {layer.input: network.tensors[layer.input], layer.output: raw}, levels)


def run_drq(network, levels, region, exempt):
    """Outputs of a network whose layers work on sensitive regions in 8 bits and on the others in 4.

    Parameters
    ----------
    network : :class:`~sigbit_sim.golden.network.IntegerNetwork`
        8-bit weights and unsigned 8-bit activations, as for the masks that it is compared with.
    levels : int array, ``(N, channels, height, width)``
    region : :class:`Region`
    exempt : collection of str
        Layers that stay exact.

    Returns
    -------
    outputs : int64 array
        Of the first output.
    masks : dict of str to bool array
        What every other convolution reads: sensitive or not, ``(N, channels, height, width)``.
    """
    values = {network.input: np.asarray(levels)}
    masks = {}
    for layer in network.layers:
        inputs = [values[name] for name in golden.sources(layer)]
        if not _applies(layer, network, exempt):
            values[layer.output] = golden.run_layer(layer, network.tensors, *inputs)
            continue
        source, target = inputs[0], network.tensors[layer.output]
        mask = masks[layer.name] = sensitive(source, region)
        accumulator = _accumulator(layer, network, source * mask, layer.weights)
        short = short_activations(source) * ~mask
        accumulator += _accumulator(layer, network, short, short_weights(layer.weights)) << 8
        values[layer.output] = _results(layer, target, accumulator, *inputs[1:])
    outputs = values[network.output]
    return (outputs[:, :, 0, 0] if outputs.shape[2:] == (1, 1) else outputs), masks


def _results(layer, target, accumulator, residual=0):
    """What a convolution makes of its sums."""

    def constant(name):
        values = getattr(layer, name)
        return None if values is None else values[:, np.newaxis, np.newaxis]

    if target.format is None:
        return accumulator + constant("bias")
    ranks = requantize(
        accumulator,
        constant("bias"),
        constant("multiplier"),
        constant("shift"),
        target.format.midpoints,
        residual,
        0 if layer.residual is None else constant("residual_multiplier"),
        constant("negative_multiplier"),
    )
    levels = level_table(target.format)[ranks]
    return np.maximum(levels, 0) if layer.relu else levels


def array_reads(layer, target, values):
    """What every row of an array reads in every step: ``(N, channels * taps, pixels)``, taps of a channel together.

    ``values``: of what the layer reads, ``(N, channels, height, width)``; padding is 0.
    """
    kernel = layer.weights.shape[2:]
    top, left, bottom, right = layer.pads
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    spans = [(size - 1) * step + 1 for size, step in zip((target.height, target.width), layer.stride, strict=True)]
    taps = []
    for ky, kx in np.ndindex(*kernel):
        y, x = ky * layer.dilation[0], kx * layer.dilation[1]
        taps.append(padded[:, :, y : y + spans[0] : layer.stride[0], x : x + spans[1] : layer.stride[1]])
    return np.stack(taps, axis=2).reshape(len(values), -1, target.height * target.width)


def _step_cycles(rows):
    return np.where(rows, SENSITIVE_CYCLES, SHORT_CYCLES)


def lockstep_cycles(rows):
    """M1 without fill: every step takes as long as its slowest row. ``rows``: ``(..., rows, steps)``, bool."""
    return _step_cycles(rows.any(axis=-2)).sum(axis=-1)


def elastic_cycles(rows, depth):
    """M2 without columns: a row may be ``depth`` steps ahead of the next one, or any number (M3: None).

    Parameters
    ----------
    rows : bool array, ``(..., rows, steps)``
    depth : int or None

    Returns
    -------
    begin, end : int64 arrays, ``(...,)``
        Start of the last row's first step, which is the fill of the rows, and finish of its last one.
    """
    cost = np.moveaxis(_step_cycles(rows), (-2, -1), (0, 1))
    count, steps = cost.shape[:2]
    start = np.zeros((count, steps, *cost.shape[2:]), dtype=np.int64)
    finish = np.zeros((count, *cost.shape[2:]), dtype=np.int64)  # of every row's latest step
    for step in range(steps):
        for row in range(count):
            start[row, step] = np.maximum(finish[row], finish[row - 1]) if row else finish[row]
            finish[row] = start[row, step] + cost[row, step]
            if depth is not None and row + 1 < count and step >= depth:
                finish[row] = np.maximum(finish[row], start[row + 1, step - depth])
    return start[-1, 0], finish[-1]


@dataclass(frozen=True)
class Costs:
    """Cycles per product and 4x4 multiplier in the steady state, over the layers of a network.

    Attributes
    ----------
    ideal : float
        M0: as many cycles as there are part products, which no array reaches.
    lockstep : float
        M1: all rows work on one pixel.
    elastic : dict
        M2 by the depth of its FIFOs; None is M3.
    share : float
        Share of products in 8 bits.
    """

    ideal: float
    lockstep: float
    elastic: dict
    share: float


def layer_costs(layer, target, mask, rows=ROWS, depths=ELASTIC_DEPTHS):
    """Costs of one layer, images and passes over its rows averaged.

    Parameters
    ----------
    layer : Convolution
    target : Tensor
        What it writes.
    mask : bool array, ``(N, channels, height, width)``
        Of what it reads.
    rows : int
        Array rows; the last pass may have fewer.
    """
    read = array_reads(layer, target, mask)
    images, count, steps = read.shape
    share = float(read.mean())
    passes = -(-count // rows)
    padded = np.zeros((images, passes * rows, steps), dtype=bool)
    padded[:, :count] = read
    padded = padded.reshape(images, passes, rows, steps)
    slots = images * passes * steps
    elastic = {}
    for depth in depths:
        begin, end = elastic_cycles(padded, depth)
        elastic[depth] = float((end - begin).sum() / slots)
    return Costs(
        1 + (SENSITIVE_CYCLES - SHORT_CYCLES) * share, float(lockstep_cycles(padded).sum() / slots), elastic, share
    )
