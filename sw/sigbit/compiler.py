"""The compiler: an integer network becomes a packet program for one accelerator configuration.

Every layer is lowered to a few forms (:mod:`.lowering`), placed in feature memory (:mod:`.memory_plan`) and written as
packets (:mod:`.emission`). What is concatenated is written where it belongs from the start. Nothing here rounds: the
program's result equals :func:`sigbit_sim.golden.network.run` bit for bit, or compiling fails with a message.
"""

from bisect import bisect_right
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
from sigbit_hw.spec.config import ConfigError, accumulator_width
from sigbit_hw.spec.formats import INT, UINT
from sigbit_hw.spec.instructions import MIN_TILE_CYCLES, PARAMETER, Encoding
from sigbit_hw.spec.parts import RAW_BITS
from sigbit_sim.golden.network import Concat, Convolution, Upsample

from .emission import Emitter
from .lowering import CompileError, Reduction, Repetition, cut_strips, input_layouts, lower_layers, pool_rows
from .memory_plan import Costs, MemoryPlan, plan_memory

__all__ = ["CompileError", "compile", "fit"]


def compile(network, config, batch=1):
    """Compile a network.

    Parameters
    ----------
    network : :class:`~sigbit_sim.golden.network.IntegerNetwork`
    config : :class:`~sigbit_hw.spec.config.AcceleratorConfig`
    batch : int
        Images in a group. The last layers, from the first one on behind which every map is one pixel, run once per
        group, so that their weights are sent and loaded once; the layers before run for each image.

    Returns
    -------
    :class:`~sigbit_sim.golden.program.Program`

    Raises
    ------
    :exc:`CompileError`
        If a layer, a memory, an accumulator or an instruction field does not fit, naming what was found, what there is
        and what to change.
    """
    if not isinstance(batch, int) or batch < 1:
        raise CompileError(f"batch must be a whole number of at least 1, not {batch!r}")
    network, first = _groups(network, batch)
    layouts = input_layouts(network, config)
    lowered = cache(lambda layout: lower_layers(network, config, layout))

    def ways(images):
        """Layers and plans, or what they lack, for groups of so many images; the best first."""
        for layout in layouts:
            layers = lowered(layout).layers
            for layer in layers:
                if isinstance(layer, Reduction):
                    _check_accumulators(layer, config)
            start = (0, *lowered(layout).ends)[first]
            if images > 1 and start == len(layers):
                raise CompileError(
                    f"Network {network.name} gains nothing from groups of {batch} images: layer {layers[-1].name} "
                    f"makes maps of several pixels, and no layer comes behind it; compile for batch 1"
                )
            # The earlier a group comes together the better, but that takes memory.
            for grouped in (None,) if images == 1 else range(start, len(layers)):
                yield lowered(layout), _plan(network, config, lowered(layout), images, grouped)

    def fitting(images):
        return next(((layers, plan) for layers, plan in ways(images) if isinstance(plan, MemoryPlan)), None)

    if found := fitting(batch):
        layers, plan = found
        return Emitter(network, config, layers, plan, batch).program()
    if batch > 1 and fitting(1):
        most = bisect_right(range(1, batch), False, key=lambda images: not fitting(images))
        raise CompileError(
            f"A group of {batch} images does not fit {config.feature_depth} words of feature memory; the largest that "
            f"does has {most}: compile for batch {most}, or raise feature_depth"
        )
    layers, least = min(ways(1), key=lambda way: (way[1].enough, way[1].words))
    raise CompileError(
        f"Layer {layers.layers[least.layer].name} takes at least {least.words} words of feature memory, with all that "
        f"later layers wait for and with bands of rows as low as possible; there are {config.feature_depth} for all "
        f"layers: raise feature_depth to at least {least.enough}, choose a larger preset or a smaller image"
    )


def _groups(network, batch):
    """The network in the form that groups need, and its first layer from which on all may run once per group."""
    layers = list(network.layers)
    first = len(layers)
    while batch > 1 and first:
        layer = layers[first - 1]
        vector = _vector_form(layer, network.tensors[layer.input], network.tensors[layer.output])
        if vector is None:
            break
        first -= 1
        layers[first] = vector
    return (network if batch == 1 else replace(network, layers=tuple(layers))), first


def _vector_form(layer, source, target):
    """The layer with one result and a kernel that begins with the first pixel and has no padding, or None.

    What it reads of an image then does not depend on what lies beside it.
    """
    if (target.height, target.width) != (1, 1) or isinstance(layer, Upsample):
        return None
    if isinstance(layer, Concat):
        return layer
    convolution = isinstance(layer, Convolution)
    kernel, dilation = (layer.weights.shape[2:], layer.dilation) if convolution else (layer.kernel, (1, 1))
    taps = []
    for length, size, step, pad in zip((source.height, source.width), kernel, dilation, layer.pads[:2], strict=True):
        positions = np.arange(size) * step - pad
        inside = np.flatnonzero((positions >= 0) & (positions < length))
        if not len(inside) or positions[inside[0]]:
            return None
        taps.append(slice(int(inside[0]), int(inside[-1]) + 1))
    shape = {"stride": (source.height, source.width), "pads": (0, 0, 0, 0)}
    if convolution:
        return replace(layer, weights=layer.weights[:, :, *taps], **shape)
    return replace(layer, kernel=tuple(tap.stop - tap.start for tap in taps), **shape)


def fit(network, config, batch=1):
    """Give a configuration accumulators exactly as wide as the network's worst case needs; formats and sizes stay.

    The worst case is taken over the actual weights and all possible activations of every layer. ``max_reduction`` and
    ``max_wide_reduction`` become the largest values of that width. Two widths bound it from below: the sum that leaves
    a column, and one 8-bit product (``max_wide_reduction`` is at least 1).

    Raises
    ------
    :exc:`CompileError`
        If a layer needs more than 32 bits, or cannot run on the configuration's formats.
    """
    network, _ = _groups(network, batch)
    layers = lower_layers(network, config, input_layouts(network, config)[0]).layers
    wide = INT(8).magnitude_max * UINT(8).magnitude_max
    bits = max(config.sum_bits, accumulator_width(1, wide))
    for layer in layers:
        if isinstance(layer, Reduction):
            needed = layer.accumulator_bits
            if needed > RAW_BITS:
                raise CompileError(
                    f"Layer {layer.name} needs accumulators of {needed} bits, the requantizer takes {RAW_BITS}; "
                    f"use narrower formats or a shorter reduction"
                )
            bits = max(bits, needed)
    # accumulator_width(d, m) <= bits  <=>  d * (m + 1) <= 2**(bits - 1)
    limit = 1 << (bits - 1)
    try:
        return replace(
            config,
            max_reduction=limit // (config.product_magnitude_max + 1),
            max_wide_reduction=limit // (wide + 1),
        )
    except ConfigError as error:
        raise CompileError(str(error)) from error


def _check_accumulators(layer, config):
    if layer.accumulator_bits > config.accumulator_bits:
        raise CompileError(
            f"Layer {layer.name} needs accumulators of {layer.accumulator_bits} bits, the accelerator has "
            f"{config.accumulator_bits}; raise max_reduction ({config.max_reduction}) or max_wide_reduction "
            f"({config.max_wide_reduction}), or let sigbit.compiler.fit choose them"
        )
    low, high = PARAMETER.fields[0].range
    for channel, value in enumerate(layer.bias):
        if not low <= value <= high:
            raise CompileError(
                f"Layer {layer.name}: the bias of output channel {channel} is {value} with its sign constant and "
                f"excess, which leaves {RAW_BITS} bits; use a larger weight unit or input unit"
            )
    if layer.encoding[0] == Encoding.RAW:
        worst = max((layer.high + layer.bias).max(), -1 - (layer.low + layer.bias).min())
        if worst >= 1 << (RAW_BITS - 1):
            raise CompileError(f"Layer {layer.name}: raw results can reach {worst}, which leaves {RAW_BITS} bits")


def _plan(network, config, lowered, images, grouped):
    """Addresses of all regions and the order of work, or the words that the feature memory lacks."""
    layers = lowered.layers
    source = layers[0].source
    words = tuple(layer.weight_words if isinstance(layer, Reduction) else 0 for layer in layers)
    outputs = {
        layer.output: (lowered.maps[layer.output].name, end - 1)
        for layer, end in zip(network.layers, lowered.ends, strict=True)
        if layer.output in network.outputs
    }
    costs = Costs(
        cycles=lambda index, rows: _row_cycles(layers[index], rows, config),
        weight_words=words,
        weight_depth=config.weight_depth,
        weight_beats=config.beats_per_word(config.weight_word_bits),
        input_cycles=source.planes * source.height * source.width * config.beats_per_word(config.feature_word_bits),
    )
    return plan_memory(layers, source, outputs, config.feature_depth, costs, images, grouped)


def _row_cycles(layer, rows, config):
    """Cycles of so many output rows, and those from the end of their computation until the last results are stored."""
    width = layer.target.width
    if not isinstance(layer, Reduction):
        first, end = layer.source.span(config)
        if isinstance(layer, Repetition):
            return layer.source.parts * (end - first) * rows * width, 0
        positions = layer.kernel[0] * layer.kernel[1]
        return (end - first) * pool_rows(rows, config.planes, positions)[0] * width * positions, 0
    total = post = 0
    sizes = Counter(
        (strip.rows * strip.pixels, strip.valid_rows * strip.pixels) for strip in cut_strips(rows, width, config)
    )
    values = max(layer.target.parts, layer.residual.parts if layer.residual else 1)
    for tile in layer.tiles:
        steps = sum(
            1 if part is None else tile.blocks * layer.kernel[0] * layer.kernel[1] for part, _, _ in layer.passes
        )
        for (positions, results), count in sizes.items():
            # Results are stored while the next strip is computed.
            post = results * (tile.columns // config.post_lanes) * values
            total += count * max(steps * max(positions * layer.beats, MIN_TILE_CYCLES), post)
    return total, post + config.columns + config.rows
