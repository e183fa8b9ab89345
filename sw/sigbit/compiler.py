"""The compiler: an integer network becomes a packet program for one accelerator configuration.

Every layer is lowered to a few forms (a convolution in part passes, a maximum, repeated pixels), placed in feature
memory, cut into strips of output pixels and column tiles of output channels, and written as packets. What is
concatenated is written where it belongs from the start. Nothing here rounds: the program's result equals
:func:`sigbit_sim.golden.network.run` bit for bit, or compiling fails with a message.
"""

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import numpy as np
from sigbit_hw.spec.config import ConfigError, accumulator_width
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import INT, UINT, FormatError
from sigbit_hw.spec.instructions import (
    INSTRUCTION_BITS,
    INSTRUCTIONS,
    MIN_TILE_CYCLES,
    PARAMETER,
    Encoding,
    Opcode,
)
from sigbit_hw.spec.packets import Kind
from sigbit_hw.spec.parts import RAW_BITS, activation_parts, weight_parts
from sigbit_sim.golden.network import AveragePool, Concat, Convolution, MaxPool, Upsample, sources
from sigbit_sim.golden.program import InputLayout, OutputLayout, Packet, Program, build_packet, pack_codes, word_bytes

from .memory_plan import Costs, MemoryPlan, Move, Output, Send, plan_memory

__all__ = ["CompileError", "compile", "fit"]

_ADDRESS_MASK = (1 << 20) - 1
#: Coordinates are 13-bit signed numbers in the feature reader.
_COORDINATE_MAX = (1 << 12) - 1
#: Streamed weights come in pieces of this part of the weight memory.
_PIECES = 8
#: Wait for nothing.
_NO_FENCE = (1 << 16) - 1


class CompileError(SigbitError):
    """A network that does not fit the accelerator; the message says what to change."""


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
    layouts = _input_layouts(network, config)
    lowered = cache(lambda layout: _lower(network, config, layout))

    def ways(images):
        """Layers and plans, or what they lack, for groups of so many images; the best first."""
        for layout in layouts:
            layers = lowered(layout).layers
            for layer in layers:
                if isinstance(layer, _Reduction):
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
        return _Emitter(network, config, layers, plan, batch).program()
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
    layers = _lower(network, config, _input_layouts(network, config)[0]).layers
    wide = INT(8).magnitude_max * UINT(8).magnitude_max
    bits = max(config.sum_bits, accumulator_width(1, wide))
    for layer in layers:
        if isinstance(layer, _Reduction):
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


@dataclass(frozen=True)
class _Map:
    """A tensor as feature memory holds it: in a region of ``blocks`` per part, alone or beside others of its size.

    ``lanes`` are runs ``(first, count)`` of stored channels, together the tensor's channels in order; a run starts at a
    multiple of ``post_lanes``. The other lanes may hold anything.
    """

    name: str  # of the region
    height: int
    width: int
    blocks: int
    parts: int
    lanes: tuple

    @property
    def positions(self):
        """Stored channel of every channel."""
        return np.concatenate([np.arange(first, first + count) for first, count in self.lanes])

    def span(self, config):
        """First and end of the blocks in which channels lie."""
        first, end = _extent(self.lanes)
        return first // config.vector, -(-end // config.vector)

    @property
    def planes(self):
        """Pairs of part and block, of which each takes ``plane_words``."""
        return self.parts * self.blocks


@dataclass(frozen=True)
class _ColumnTile:
    """Output channels ``start`` to ``start + used`` in ``columns`` (``words`` of weights), from ``block`` on."""

    start: int
    used: int
    columns: int
    words: int
    block: int
    blocks: int


@dataclass(frozen=True, eq=False)
class _Reduction:
    """A convolution in part passes; an average is one with one channel per group and weights of 1.

    Outputs are the stored channels from the first to the last of the target; those between its channels are 0.
    ``digits[i]`` are native weight levels ``(out, in of a group, kh, kw)`` of part ``i``, and ``inputs`` the stored
    channels ``(out, in of a group)`` of the source that they belong to.
    """

    name: str
    source: _Map
    target: _Map
    residual: _Map | None
    digits: tuple
    inputs: np.ndarray
    keep: bool  # every kernel position has the same weights
    tiles: tuple
    shifts: tuple  # of weight parts, in steps
    kernel: tuple
    stride: tuple
    dilation: tuple
    pads: tuple  # top, left
    pad_digits: tuple
    low: np.ndarray  # smallest and largest final accumulator of every channel
    high: np.ndarray
    bias: np.ndarray  # with XOR constant and excess
    multiplier: np.ndarray
    shift: np.ndarray
    residual_multiplier: np.ndarray
    negative_multiplier: np.ndarray
    encoding: tuple  # and bits, as POST has them
    residual_encoding: tuple
    relu: bool
    macs: int
    in_bands: ClassVar = True

    @property
    def reads(self):
        """Tensors that must stay in memory until the layer is done."""
        return (self.source,) if self.residual is None else (self.source, self.residual)

    @property
    def weight_words(self):
        """Distinct words of weights; passes that only shift share one tile of zeros."""
        positions = 1 if self.keep else int(np.prod(self.kernel))
        words = sum(tile.words * tile.blocks for tile in self.tiles) * positions * len(self.digits)
        if any(part is None for part, _, _ in _passes(self)):
            words += sum({tile.words for tile in self.tiles})
        return words

    @property
    def accumulator_bits(self):
        """Bits of two's complement that hold every final accumulator."""
        return 1 + max(int(max(self.high.max(), -1 - self.low.min(), 0)).bit_length(), 1)


@dataclass(frozen=True)
class _Maximum:
    name: str
    source: _Map
    target: _Map
    kernel: tuple
    stride: tuple
    pads: tuple
    dilation: tuple = (1, 1)
    in_bands: ClassVar = True

    @property
    def reads(self):
        return (self.source,)


@dataclass(frozen=True)
class _Repetition:
    """Every pixel ``factors[0]`` times in its column and ``factors[1]`` times in its row."""

    name: str
    source: _Map
    target: _Map
    factors: tuple
    in_bands: ClassVar = False

    @property
    def reads(self):
        return (self.source,)


@dataclass(frozen=True)
class _Lowered:
    """A network in the accelerator's terms.

    ``layers`` come in order; ``ends[i]`` is the number of those that are done when layer ``i`` of the network is. One
    that only concatenates has none of its own. ``maps`` holds every tensor by name.
    """

    layers: tuple
    ends: tuple
    layout: InputLayout
    maps: dict


def _extent(lanes):
    """First and end of all stored channels of some runs."""
    return min(first for first, _ in lanes), max(first + count for first, count in lanes)


def _blocks(channels, config):
    return -(-channels // config.vector)


def _feature_map(tensor, config):
    """Map of a tensor, or the error that says why the accelerator cannot store it."""
    if tensor.format is None:
        parts = -(-RAW_BITS // config.activation_format.bits)
    else:
        try:
            parts = activation_parts(config.activation_format, tensor.format).count
        except FormatError as error:
            raise CompileError(f"Tensor {tensor.name}: {error}") from error
    blocks = _blocks(tensor.channels, config)
    return _Map(tensor.name, tensor.height, tensor.width, blocks, parts, ((0, tensor.channels),))


def _encoding(tensor, config):
    """Encoding and bits by which the post-processor stores or adds a tensor."""
    if tensor.format is None:
        return Encoding.RAW, 0
    if activation_parts(config.activation_format, tensor.format).stored == config.activation_format:
        return Encoding.NATIVE, 0
    return (Encoding.INT if tensor.format.signed else Encoding.UINT), tensor.format.bits


def _input_layouts(network, config):
    """Layouts of the input, the fastest first: kernel positions may be folded into channels, none, those of x or all.

    The first layer and the stream that brings the input overlap, so the longer of the two counts.
    """
    if not network.layers:
        raise CompileError(f"Network {network.name} has no layers; there is nothing to run")
    tensor = network.tensors[network.input]
    plain = InputLayout(
        tensor.channels, tensor.height, tensor.width, tensor.format, tensor.unit,
        (1, 1), (1, 1), (1, 1), (0, 0), tensor.height, tensor.width,
    )  # fmt: skip
    readers = [layer for layer in network.layers if network.input in sources(layer)]
    if len(readers) != 1 or not isinstance(readers[0], Convolution) or readers[0].groups > 1:
        return (plain,)
    layer = readers[0]
    if layer.residual == network.input:
        return (plain,)
    kh, kw = layer.weights.shape[2:]
    target = network.tensors[layer.output]
    along_x = replace(
        plain, kernel=(1, kw), stride=(1, layer.stride[1]), dilation=(1, layer.dilation[1]), pads=(0, layer.pads[1]),
        columns=target.width,
    )  # fmt: skip
    whole = replace(
        plain, kernel=(kh, kw), stride=layer.stride, dilation=layer.dilation, pads=layer.pads[:2],
        rows=target.height, columns=target.width,
    )  # fmt: skip
    column_tiles = -(-target.channels // config.columns)
    weight_passes = len(_weight_parts(layer, config).shifts)

    def cycles(layout):
        """Per part of the input: whatever takes longer, then the words to send."""
        blocks = _blocks(layout.stored_channels, config)
        steps = blocks * kh * kw // (layout.kernel[0] * layout.kernel[1])
        compute = steps * -(-target.height // config.planes) * target.width * column_tiles * weight_passes
        words = blocks * layout.rows * layout.columns
        return max(compute, words * config.beats_per_word(config.feature_word_bits)), words

    layouts = [plain, *([along_x] if kh > 1 and kw > 1 else []), *([whole] if kh * kw > 1 else [])]
    return tuple(sorted(layouts, key=cycles))


def _weight_parts(layer, config):
    try:
        return weight_parts(config.weight_format, layer.weight_format, config.part_shift_bits)
    except FormatError as error:
        raise CompileError(f"Layer {layer.name}: {error}") from error


def _lower(network, config, layout):
    """Layers in the accelerator's terms, and where tensors lie in their regions."""
    if network.input in network.outputs:
        raise CompileError(f"Output {network.input} of network {network.name} is its input; leave it out")
    plain = {name: _feature_map(tensor, config) for name, tensor in network.tensors.items()}
    plain[network.input] = replace(
        plain[network.input],
        height=layout.rows,
        width=layout.columns,
        blocks=_blocks(layout.stored_channels, config),
        lanes=((0, layout.stored_channels),),
    )
    maps, copies = _arrange(network, config, plain)
    tensors = dict(network.tensors)
    layers: list[_Reduction | _Maximum | _Repetition] = []
    ends: list[int] = []
    for layer in network.layers:
        source = tensors[layer.input]
        if isinstance(layer, MaxPool):
            # Digits of one part are native codes in the order of their levels.
            if (parts := maps[layer.input].parts) > 1:
                raise CompileError(
                    f"Layer {layer.name} takes the maximum of {source.format} ({source.name}), which has {parts} parts "
                    f"here; the pooling unit compares single codes: give the tensor the format "
                    f"{config.activation_format} or an int or uint format of at most {config.part_shift_bits} bits, or "
                    f"pool after the next convolution"
                )
            layers.append(
                _Maximum(layer.name, maps[layer.input], maps[layer.output], layer.kernel, layer.stride, layer.pads[:2])
            )
        elif isinstance(layer, Upsample):
            layers.append(_Repetition(layer.name, maps[layer.input], maps[layer.output], layer.factors))
        elif isinstance(layer, Concat):
            for copy, name in copies[layer.output].items():
                tensors[copy] = tensors[name]
                lowered = _lower_reduction(
                    _identity(layer.name, name, copy, tensors, config), tensors, maps, None, config
                )
                layers.append(replace(lowered, macs=0))
        else:
            folded = layout if layer.input == network.input and isinstance(layer, Convolution) else None
            layers.append(_lower_reduction(layer, tensors, maps, folded, config))
        ends.append(len(layers))
    return _Lowered(tuple(layers), tuple(ends), layout, maps)


def _identity(name, source, target, tensors, config):
    """A layer that copies levels."""
    channels = tensors[source].channels
    ones, zeros = np.ones(channels, dtype=np.int64), np.zeros(channels, dtype=np.int64)
    return Convolution(
        name, source, target, ones.reshape(-1, 1, 1, 1), config.weight_format, np.ones(channels), zeros, ones, zeros,
        groups=channels,
    )  # fmt: skip


def _arrange(network, config, plain):
    """Where tensors lie, those that are concatenated in one region, so that nothing has to be moved.

    What cannot be written in its place is copied there: the network's input, a tensor that comes twice, and the sum of
    a layer with a residual in other lanes, because the post-processor adds lane by lane.

    Parameters
    ----------
    plain : dict of str to :class:`_Map`
        Every tensor in a region of its own.

    Returns
    -------
    maps : dict of :class:`_Map`
        By tensor or copy.
    copies : dict
        Output of a concatenation -> its copies and the tensors that they are copied from.
    """
    moved = {network.input}
    while True:
        members, copies, home = _members(network, moved)
        maps = _assign_lanes(network, config, plain, members, copies, home)
        for layer in network.layers:
            residual = getattr(layer, "residual", None)
            if (
                residual is not None
                and layer.output in home
                and not _same_lanes(maps[residual], maps[layer.output], config)
            ):
                moved.add(layer.output)
                break
        else:
            return maps, copies


def _members(network, moved):
    """What is concatenated from what.

    Parameters
    ----------
    moved : set of str
        Tensors that have to be copied.

    Returns
    -------
    members : dict
        Output of a concatenation -> the tensors and copies that it consists of, none of them concatenated itself.
    copies : dict
        As of :func:`_arrange`.
    home : dict
        Every such tensor or copy -> the region that it shares with all that it is concatenated with.
    """
    members: dict[str, list] = {}
    copies: dict[str, dict] = {}
    home: dict = {}
    for layer in network.layers:
        if not isinstance(layer, Concat):
            continue
        own: list = []
        made: dict = {}
        for name in sources(layer):
            for member in members.get(name, (name,)):
                if member in moved or member in own:
                    known = (copy for group in copies.values() for copy, source in group.items() if source == member)
                    copy = next((copy for copy in known if copy not in own), (layer.output, len(own)))
                    if copy[0] == layer.output:
                        made[copy] = member
                    member = copy
                own.append(member)
        members[layer.output], copies[layer.output] = own, made
        regions = {home.get(member) for member in own} - {None}
        home = {member: layer.output if region in regions else region for member, region in home.items()}
        home.update(dict.fromkeys(own, layer.output))
    return members, copies, home


def _assign_lanes(network, config, plain, members, copies, home):
    """Maps of all tensors and copies. Regions fill in the order in which layers run.

    The pooling unit writes whole words: what it makes starts a block and lies in the lanes of its source. Layers that
    come later fill up its last block.
    """
    vector = config.vector
    lanes, ends, steps = {network.input: plain[network.input].lanes}, dict.fromkeys(home.values(), 0), {}

    def take(name, count, unit):
        """First stored channel of so many in the region of a tensor or copy."""
        if name not in home:
            return 0
        first = -(-ends[home[name]] // unit) * unit
        ends[home[name]] = first + count
        return first

    for layer in network.layers:
        name = layer.output
        residual = getattr(layer, "residual", None)
        if isinstance(layer, Concat):
            for copy, source in copies[name].items():
                count = sum(count for _, count in lanes[source])
                lanes[copy] = ((take(copy, count, config.post_lanes), count),)
            lanes[name] = tuple(run for member in members[name] for run in lanes[member])
        elif isinstance(layer, MaxPool | Upsample):
            first, end = _extent(lanes[layer.input])
            offset = take(name, end - first // vector * vector, vector) - first // vector * vector
            lanes[name] = tuple((first + offset, count) for first, count in lanes[layer.input])
        elif residual is not None and name not in home:
            offset = _extent(lanes[residual])[0] // vector * vector
            lanes[name] = tuple((first - offset, count) for first, count in lanes[residual])
            if min(plain[name].parts, plain[residual].parts) > 1:
                steps[name] = residual
        else:
            count = network.tensors[name].channels
            lanes[name] = ((take(name, count, config.post_lanes), count),)

    def region(name):
        return home.get(members[name][0] if name in members else name, name)

    blocks = {name: _blocks(end, config) for name, end in ends.items()}
    maps: dict = {}
    for name, runs in lanes.items():
        own, source = region(name), name
        if own not in blocks:
            # Parts of a sum follow each other in the same steps as those of its residual.
            blocks[own] = maps[steps[name]].blocks if name in steps else _blocks(_extent(runs)[1], config)
        while source not in plain:
            source = copies[source[0]][source]
        maps[name] = replace(plain[source], name=own, blocks=blocks[own], lanes=runs)
    return maps


def _same_lanes(residual, target, config):
    """Whether every channel of two maps lies in the same lane, with the same steps between blocks and parts."""
    distance = np.unique(residual.positions - target.positions)
    apart = min(residual.parts, target.parts) > 1 and residual.blocks != target.blocks
    return len(distance) == 1 and distance[0] % config.vector == 0 and not apart


def _lower_reduction(layer, tensors, maps, folded, config):
    source, target = tensors[layer.input], tensors[layer.output]
    activations = activation_parts(config.activation_format, source.format)
    residual = getattr(layer, "residual", None)
    if isinstance(layer, AveragePool):
        weights = np.ones((source.channels, 1, *layer.kernel), dtype=np.int64)
        digits, shifts, groups, dilation = (weights,), (0,), source.channels, (1, 1)
        bias = np.zeros(source.channels, dtype=np.int64)
        multiplier, shift = (np.full(source.channels, value) for value in (layer.multiplier, layer.shift))
    else:
        parts = _weight_parts(layer, config)
        weights, shifts, groups, dilation = layer.weights, parts.shifts, layer.groups, layer.dilation
        levels = np.array(sorted(parts.table))
        rows = np.array([parts.table[level] for level in levels])
        digits = tuple(np.moveaxis(rows[np.searchsorted(levels, weights)], -1, 0))
        bias, multiplier, shift = layer.bias, layer.multiplier, layer.shift
    negative_multiplier = getattr(layer, "negative_multiplier", None)
    if negative_multiplier is None:
        negative_multiplier = multiplier
    kernel = weights.shape[2:]
    positive = np.maximum(weights, 0).sum(axis=(1, 2, 3))
    negative = np.minimum(weights, 0).sum(axis=(1, 2, 3))
    sign_bits = tuple((digit < 0).sum(axis=(1, 2, 3)) for digit in digits)
    # Every pass leaves its sum short by its set sign bits (numerics 5.2), then the passes' shifts weight that shortage.
    step = activations.step
    constant = sum(
        bits << step * (weight_shift + part)
        for bits, weight_shift in zip(sign_bits, shifts, strict=True)
        for part in range(activations.count)
    )
    if activations.offset or activations.stored != config.activation_format:
        smallest, largest = 0, (1 << source.format.bits) - 1
    else:
        smallest, largest = source.format.levels[0], source.format.levels[-1]
    stride, pads = layer.stride, layer.pads[:2]
    low = smallest * positive + largest * negative - constant
    high = largest * positive + smallest * negative - constant
    bias = bias + constant - activations.offset * (positive + negative)
    residual_multiplier = np.zeros_like(bias) if residual is None else layer.residual_multiplier
    if folded is not None and folded.kernel != (1, 1):
        digits = tuple(_fold(digit, folded.kernel) for digit in digits)
        if folded.kernel[0] > 1 or kernel[0] == 1:
            kernel, stride, dilation, pads = (1, 1), (1, 1), (1, 1), (0, 0)
        else:
            kernel, stride, dilation, pads = (kernel[0], 1), (stride[0], 1), (dilation[0], 1), (pads[0], 0)
    inputs = _inputs(maps[layer.input], groups, digits[0].shape, config)
    positions = maps[layer.output].positions
    if (np.diff(positions) != 1).any():
        positions = positions - positions.min()

        def spread(values):
            """Zeros between what belongs to the target's channels."""
            result = np.zeros((positions.max() + 1, *values.shape[1:]), values.dtype)
            result[positions] = values
            return result

        digits, inputs = tuple(map(spread, digits)), spread(inputs)
        low, high, bias, multiplier, shift, residual_multiplier, negative_multiplier = map(
            spread, (low, high, bias, multiplier, shift, residual_multiplier, negative_multiplier)
        )
    return _Reduction(
        name=layer.name,
        source=maps[layer.input],
        target=maps[layer.output],
        residual=None if residual is None else maps[residual],
        digits=digits,
        inputs=inputs,
        keep=isinstance(layer, AveragePool),
        tiles=_column_tiles(digits, inputs, maps[layer.input].blocks, config),
        shifts=shifts,
        kernel=tuple(kernel),
        stride=stride,
        dilation=dilation,
        pads=pads,
        pad_digits=activations.digits(0),
        low=low,
        high=high,
        bias=bias,
        multiplier=multiplier,
        shift=shift,
        residual_multiplier=residual_multiplier,
        negative_multiplier=negative_multiplier,
        encoding=_encoding(target, config),
        residual_encoding=(Encoding.NATIVE, 0) if residual is None else _encoding(tensors[residual], config),
        relu=layer.relu,
        macs=weights.size * target.height * target.width,
    )


def _inputs(source, groups, shape, config):
    """Stored channel of a map for every output and input channel of its group; ``shape`` is that of the weights."""
    outputs, depth = shape[:2]
    rows = source.positions.astype(np.int32).reshape(groups, depth)
    if groups == 1:
        return np.broadcast_to(rows, (outputs, depth))
    return rows.repeat(outputs // groups, axis=0)


def _fold(weights, kernel):
    """Weights with kernel positions as channels, ``(ky, kx, channel)`` as in :class:`InputLayout`."""
    out, channels, kh, kw = weights.shape
    if kernel[0] == kh:
        return weights.transpose(0, 2, 3, 1).reshape(out, kh * kw * channels, 1, 1)
    return weights.transpose(0, 3, 1, 2).reshape(out, kw * channels, kh, 1)


def _column_tiles(digits, inputs, blocks, config):
    """Cut output channels into the fewest pairs of tile and channel block, of these into the fewest tiles.

    A tile starts at a multiple of ``post_lanes`` and reads the blocks from the first to the last for which it has a
    weight: all of them in most layers, few where channels are grouped or selected. The array computes nothing else.
    """
    out = len(inputs)
    outputs, channels = np.nonzero(np.any([digit.any(axis=(2, 3)) for digit in digits], axis=0))
    block = inputs[outputs, channels] // config.vector
    firsts, ends = np.full(out, blocks), np.zeros(out, dtype=np.int64)
    np.minimum.at(firsts, outputs, block)
    np.maximum.at(ends, outputs, block + 1)
    # best[start]: pairs, number of tiles and first tile of the channels from there on.
    best: dict[int, tuple] = {out: (0, 0, None)}
    for start in reversed(range(0, out, config.post_lanes)):
        low, high = blocks, 0
        best[start] = ()
        for position in range(start, min(start + config.columns, out), config.post_lanes):
            end = min(position + config.post_lanes, out)
            low, high = min(low, *firsts[position:end].tolist()), max(high, *ends[position:end].tolist())
            # Without any weight one block of zeros clears the accumulators.
            span = (low, high - low) if high else (0, 1)
            cost = span[1] + best[end][0], 1 + best[end][1]
            if not best[start] or cost <= best[start][:2]:
                # Whole groups of post_lanes: the columns that fill one up get zero weights.
                columns = position + config.post_lanes - start
                tile = _ColumnTile(start, end - start, columns, columns // config.weight_columns, *span)
                best[start] = *cost, tile
    tiles, start = [], 0
    while start < out:
        tiles.append(best[start][2])
        start += tiles[-1].used
    return tuple(tiles)


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
    words = tuple(layer.weight_words if isinstance(layer, _Reduction) else 0 for layer in layers)
    outputs = {
        layer.output: (lowered.maps[layer.output].name, end - 1)
        for layer, end in zip(network.layers, lowered.ends, strict=True)
        if layer.output in network.outputs
    }
    costs = Costs(
        cycles=lambda index, rows: _row_cycles(layers[index], rows, config)[0],
        drain=lambda index, rows: _row_cycles(layers[index], rows, config)[1],
        weight_words=words,
        weight_depth=config.weight_depth,
        weight_beats=config.beats_per_word(config.weight_word_bits),
        input_cycles=source.planes * source.height * source.width * config.beats_per_word(config.feature_word_bits),
    )
    return plan_memory(layers, source, outputs, config.feature_depth, costs, images, grouped)


def _row_cycles(layer, rows, config):
    """Cycles of so many output rows, and those from the end of their computation until the last results are stored."""
    width = layer.target.width
    if not isinstance(layer, _Reduction):
        first, end = layer.source.span(config)
        if isinstance(layer, _Repetition):
            return layer.source.parts * (end - first) * rows * width, 0
        positions = layer.kernel[0] * layer.kernel[1]
        return (end - first) * _plane_rows(rows, config.planes, positions)[0] * width * positions, 0
    total = post = 0
    sizes = Counter(
        (strip.rows * strip.pixels, strip.valid_rows * strip.pixels) for strip in _strips(rows, width, config)
    )
    values = max(layer.target.parts, layer.residual.parts if layer.residual else 1)
    for tile in layer.tiles:
        steps = sum(
            1 if part is None else tile.blocks * layer.kernel[0] * layer.kernel[1] for part, _, _ in _passes(layer)
        )
        for (positions, results), count in sizes.items():
            # Results are stored while the next strip is computed.
            post = results * (tile.columns // config.post_lanes) * values
            total += count * max(steps * max(positions, MIN_TILE_CYCLES), post)
    return total, post + config.columns + config.rows


@dataclass(frozen=True)
class _Strip:
    """Output pixels of one bank: ``rows`` per plane from ``y``, ``pixels`` columns from ``x``."""

    y: int
    x: int
    rows: int
    pixels: int
    valid_rows: int


def _strips(height, width, config):
    """Cut an output map; full-width rows where they fit, all strips as equal as possible."""
    columns = -(-width // config.strip_depth)
    pixels = -(-width // columns)
    rows = min(config.strip_depth // pixels, -(-height // config.planes))
    rows = -(-height // (-(-height // (rows * config.planes)) * config.planes))
    strips = []
    for y in range(0, height, rows * config.planes):
        valid = min(rows * config.planes, height - y)
        for x in range(0, width, pixels):
            strips.append(_Strip(y, x, -(-valid // config.planes), min(pixels, width - x), valid))
    return strips


def _plane_rows(height, planes, positions):
    """Rows that every plane pools, and the step from one plane's to the next's; some rows may come twice.

    The planes store one after the other, so a window must have at least as many positions.
    """
    if planes > 1 and positions >= planes:
        for rows in range(-(-height // planes), height):
            step, rest = divmod(height - rows, planes - 1)
            if rest == 0 and step <= rows:
                return rows, step
    return height, 0


def _passes(layer):
    """Part passes ``(weight part, activation part, shift)`` in Horner order; weight part None: shift only."""
    pairs = sorted(
        ((layer.shifts[i] + j, i, j) for i in range(len(layer.shifts)) for j in range(layer.source.parts)),
        key=lambda pair: -pair[0],
    )
    passes: list[tuple[int | None, int, bool]] = []
    total = pairs[0][0]
    for wanted, i, j in pairs:
        while total - wanted > 1:
            passes.append((None, j, True))
            total -= 1
        passes.append((i, j, total != wanted))
        total = wanted
    passes.extend((None, 0, True) for _ in range(total))
    return passes


class _Ring:
    """A memory filled piece by piece while instructions use it; pieces stay until their words are needed again."""

    def __init__(self, depth):
        self.depth = depth
        self.readers = np.full(depth, -1, dtype=np.int64)  # last instruction that reads each word
        self.start_group()

    def start_group(self):
        """Forget the contents, so that every group of images is loaded the same way."""
        self._pieces = {}
        self._next = 0

    def find(self, key):
        """Address of a piece, or None."""
        return self._pieces.get(key, (None, 0))[0]

    def place(self, key, size):
        """Take the oldest words for a piece; return its address."""
        base = self._next if self._next + size <= self.depth else 0
        self._next = base + size
        self._pieces = {k: (b, s) for k, (b, s) in self._pieces.items() if b + s <= base or base + size <= b}
        self._pieces[key] = (base, size)
        return base


class _Emitter:
    """Writes instructions and the packets around them, and knows which instruction uses which words."""

    def __init__(self, network, config, lowered, plan, batch):
        self._network, self._config, self._lowered, self._layers = network, config, lowered, lowered.layers
        self._plan, self._batch = plan, batch
        self._log = []  # per instruction: whether it cannot retire before the POST in front of it
        self._packets = []
        self._pending = []
        self._weights, self._parameters = _Ring(config.weight_depth), _Ring(config.parameter_depth)
        self._feature_posts = np.full(config.feature_depth, -1, dtype=np.int64)
        self._feature_users = np.full(config.feature_depth, -1, dtype=np.int64)
        self._payloads = {}
        self._fresh: tuple = ()  # spans that the latest POST writes, if nothing has waited for it since
        self._fresh_layer = None  # of that POST

    # -- whole program -------------------------------------------------------------------------------------------------

    def program(self):
        config = self._config
        beat = config.stream_bits // 8
        hash_payload = config.hash.to_bytes(beat, "little")
        setup = [build_packet(config, Kind.CONFIGURE, hash_payload, count=1)]
        weights = self._resident(self._all_weights(), self._weights)
        parameters = self._resident(self._all_parameters(), self._parameters)
        self._stream_weights, self._stream_parameters = not weights, not parameters
        for kind, pieces, ring in (
            (Kind.WEIGHTS, weights, self._weights),
            (Kind.PARAMETERS, parameters, self._parameters),
        ):
            setup.extend(self._setup_packets(kind, pieces, ring))
        # The fences of a group depend on the groups before it; after one round over the input regions they repeat.
        copies = len(self._plan.groups)
        for index in range(2 * copies):
            if index == copies:
                groups = []
            self._start_group()
            packets, reports = self._group(self._plan.groups[index % copies])
            if index >= copies:
                groups.append(tuple(packets))
        outputs = tuple(map(self._output_layout, self._network.outputs))
        layout, name = self._lowered.layout, self._network.name
        return Program(config, name, tuple(setup), tuple(groups), layout, outputs, tuple(reports), self._batch)

    def _output_layout(self, name):
        config, tensor, place = self._config, self._network.tensors[name], self._lowered.maps[name]
        start = place.span(config)[0] * config.vector
        lanes = tuple((int(first - start), int(count)) for first, count in place.lanes)
        return OutputLayout(
            name, tensor.channels, tensor.height, tensor.width, tensor.format, tensor.unit, place.blocks, lanes
        )

    def _resident(self, pieces, ring):
        """The pieces, placed for good, if they fit together; else nothing."""
        if sum(size for _, size, _ in pieces) > ring.depth:
            return ()
        for key, size, _ in pieces:
            ring.place(key, size)
        return pieces

    def _setup_packets(self, kind, pieces, ring):
        config = self._config
        limit = ring.depth // 2
        payload = b"".join(make() for _, _, make in pieces)
        words = sum(size for _, size, _ in pieces)
        stride = len(payload) // words if words else 0
        for start in range(0, words, limit):
            count = min(limit, words - start)
            chunk = payload[start * stride : (start + count) * stride]
            yield build_packet(config, kind, chunk, count=count, destination=start)

    def _all_weights(self):
        """Every distinct piece of weights, unsplit: ``(key, words, function that makes the payload)``."""
        pieces = {}
        for index, layer in enumerate(self._layers):
            if not isinstance(layer, _Reduction):
                continue
            for tile in layer.tiles:
                for part, _, _ in _passes(layer):
                    key, size, make = self._weight_piece(index, tile, part, self._whole(layer, tile, part))
                    pieces[key] = (key, size, make)
        return tuple(pieces.values())

    def _all_parameters(self):
        pieces: list[tuple] = []
        for index, layer in enumerate(self._layers):
            if isinstance(layer, _Reduction):
                pieces.extend(self._parameter_piece(index, tile) for tile in layer.tiles)
        return tuple(pieces)

    def _start_group(self):
        self._packets = []
        if self._stream_weights:
            self._weights.start_group()
        if self._stream_parameters:
            self._parameters.start_group()

    def _group(self, steps):
        """Packets of a group of images, and the report of every layer."""
        first = len(self._log)
        owners = np.searchsorted(self._lowered.ends, np.arange(len(self._layers)), side="right").tolist()
        own = [
            [layer for layer, owner in zip(self._layers, owners, strict=True) if owner == index]
            for index in range(len(self._network.layers))
        ]
        reports = [
            self._empty_report(layer.name, lowered) for layer, lowered in zip(self._network.layers, own, strict=True)
        ]
        for step in steps:
            if isinstance(step, Send):
                self._send_input(step)
                continue
            if isinstance(step, Output):
                self._send_output(step)
                continue
            layer, report = self._layers[step.layer], reports[owners[step.layer]]
            start = len(self._log) - first
            try:
                if isinstance(step, Move):
                    self._move(step, layer.target, report)
                elif isinstance(layer, _Maximum):
                    self._maximum(step, layer, report)
                elif isinstance(layer, _Repetition):
                    self._repetition(step, layer, report)
                else:
                    self._reduction(step, layer, report)
            except ValueError as error:
                if isinstance(error, CompileError):
                    raise
                # The only other ValueError is a field of an instruction that is too narrow.
                raise CompileError(f"Layer {layer.name} does not fit an instruction: {error}") from error
            ranges = report["instructions"]
            if ranges and ranges[-1][1] == start:
                start, _ = ranges.pop()
            ranges.append((start, len(self._log) - first))
        self._flush()
        return self._packets, [{**report, "instructions": tuple(report["instructions"])} for report in reports]

    @staticmethod
    def _empty_report(name, lowered):
        """Report of a layer of the network before its instructions; ``lowered`` is what it became."""
        reductions = [layer for layer in lowered if isinstance(layer, _Reduction)]
        products = (layer.macs * sum(part is not None for part, _, _ in _passes(layer)) for layer in reductions)
        return {
            "name": name,
            "macs": sum(layer.macs for layer in reductions),
            "part_products": sum(products),
            "tiles": 0,
            "compute_cycles": 0,
            "pool_cycles": 0,
            "weight_words": sum(layer.weight_words for layer in reductions),
            "instructions": [],
        }

    @staticmethod
    def _span(tensor, window):
        """First address of a window, and number of words up to its last."""
        words = (tensor.planes - 1) * window.plane_words + (window.end - window.first) * tensor.width
        return window.base, (window.images - 1) * window.image_words + words

    def _send_input(self, step):
        """Send rows of the input as soon as nobody uses the words that they take."""
        self._flush()
        source, window = self._layers[0].source, step.window
        base, words = self._span(source, window)
        span = slice(base, base + words)
        fence = self._fence(self._feature_posts[span], self._feature_users[span])
        rows = () if window.end - window.first == source.height else (window.first, window.end)
        self._packets.append(Packet(Kind.INPUT, words, base, fence, rows=rows, image=step.image))

    def _send_output(self, step):
        """Send the words of an output, in a packet of its own, whose tag is its number."""
        self._flush()
        place = self._lowered.maps[step.name]
        base = step.window.base + place.span(self._config)[0] * step.window.plane_words
        words = self._output_layout(step.name).word_count(self._config)
        tag = step.image * len(self._network.outputs) + self._network.outputs.index(step.name)
        output = INSTRUCTIONS[Opcode.OUTPUT].pack(opcode=Opcode.OUTPUT, wait_post=1, base=base, words=words, tag=tag)
        self._feature_users[base : base + words] = len(self._log)
        self._log.append(True)
        self._fresh = ()
        self._packets.append(Packet(Kind.OUTPUT, 1, fence=_NO_FENCE, payload=self._instruction_payload(output)))

    # -- layers --------------------------------------------------------------------------------------------------------

    def _move(self, step, tensor, report):
        """Copy rows: the maximum of single words. A word is read long before another one is written over it."""
        words = step.rows * tensor.width
        for plane in range(tensor.planes):
            source, base = (address + plane * step.plane_words for address in (step.source, step.base))
            self._issue(
                Opcode.POOL,
                reads=(source, words),
                writes=(base, words),
                wait_post=True,
                base=source,
                y0=0,
                x0=0,
                height=1,
                width=tensor.width,
                **_loops(
                    (1, 0, 0, 0),
                    (step.rows, tensor.width, 0, 0),
                    (tensor.width, 1, 0, 1),
                    (1, 0, 0, 0),
                    (1, 0, 0, 0),
                ),
                output_base=base,
                output_step=1,
            )
            report["pool_cycles"] += words

    def _maximum(self, step, layer, report):
        source, target = layer.source, layer.target
        window, written = step.windows[source.name], step.windows[target.name]
        self._check_coordinates(layer, window, step.end)
        positions = layer.kernel[0] * layer.kernel[1]
        rows, plane_rows = _plane_rows(step.end - step.first, self._config.planes, positions)
        row_words, row_step, kernel_step, height = self._rows(layer, window)
        above = layer.pads[0] + window.first
        written_words = written.image_words or target.width
        (first, end), first_written = source.span(self._config), target.span(self._config)[0]
        for block in range(first, end):
            start = window.base + block * window.plane_words
            output = written.base + (first_written + block - first) * written.plane_words
            output += (step.first - written.first) * written_words
            self._issue(
                Opcode.POOL,
                reads=(start, (window.images - 1) * window.image_words + (window.end - window.first) * source.width),
                writes=(output, (step.end - step.first) * written_words),
                wait_post=True,
                base=(start + step.first * row_words - above * source.width - layer.pads[1]) & _ADDRESS_MASK,
                y0=step.first * row_step - above,
                x0=-layer.pads[1],
                height=height,
                width=source.width,
                **_loops(
                    (1, 0, 0, 0),
                    (rows, row_words, row_step, 0),
                    (target.width, layer.stride[1], 0, layer.stride[1]),
                    (layer.kernel[0], source.width, kernel_step, 0),
                    (layer.kernel[1], 1, 0, 1),
                ),
                plane_step=plane_rows * row_words,
                plane_ystep=plane_rows * row_step,
                output_base=output,
                output_step=written.image_words or 1,
                all_planes=plane_rows > 0,
                output_plane_step=plane_rows * written_words,
            )
            report["pool_cycles"] += rows * target.width * positions

    def _repetition(self, step, layer, report):
        """Windows of one pixel: a row is read once per row that it becomes, one instruction per column in a pixel."""
        source, target = layer.source, layer.target
        window, written = step.windows[source.name], step.windows[target.name]
        (first, end), block = source.span(self._config), target.span(self._config)[0]
        down, across = layer.factors
        for part in range(source.parts):
            start = window.base + (part * source.blocks + first) * window.plane_words
            output = written.base + (part * target.blocks + block) * written.plane_words
            for column in range(across):
                self._issue(
                    Opcode.POOL,
                    reads=self._span(source, window),
                    writes=self._span(target, written),
                    wait_post=True,
                    base=start,
                    height=1,
                    width=1,
                    # Both maps are whole: the rows of all blocks follow each other, and so do those that they become.
                    **_loops(
                        ((end - first) * source.height, source.width, 0, 0),
                        (down, 0, 0, 0),
                        (source.width, 1, 0, 0),
                        (1, 0, 0, 0),
                        (1, 0, 0, 0),
                    ),
                    output_base=output + column,
                    output_step=across,
                )
        report["pool_cycles"] += source.parts * (end - first) * target.height * target.width

    def _reduction(self, step, layer, report):
        config = self._config
        passes = _passes(layer)
        window = step.windows[layer.source.name]
        strips = [
            replace(strip, y=step.first + strip.y)
            for strip in _strips(step.end - step.first, layer.target.width, config)
        ]
        self._check_coordinates(layer, window, strips[-1].y + strips[-1].rows * config.planes)
        for column_tile in layer.tiles:
            for strip in strips:
                for number, (part, activation_part, shift) in enumerate(passes):
                    pieces = self._pieces(layer, column_tile, part)
                    for piece, ranges in enumerate(pieces):
                        address = self._load_weights(step.layer, column_tile, part, ranges)
                        count = self._compute(
                            layer, window, column_tile, strip, activation_part, ranges, address,
                            clear=number == 0 and piece == 0, shift=shift and piece == 0,
                        )  # fmt: skip
                        report["tiles"] += count
                        report["compute_cycles"] += count * strip.rows * strip.pixels
                self._post(step, layer, column_tile, strip)

    def _check_coordinates(self, layer, window, rows):
        """Input coordinates, padding and rows beyond the map included, must fit the reader's 13 signed bits."""
        columns = layer.target.width
        if window.image_words:
            if rows > _COORDINATE_MAX:
                raise CompileError(
                    f"Layer {layer.name} runs for {window.images} images at once; the feature reader counts to "
                    f"{_COORDINATE_MAX}: compile for a smaller batch"
                )
            rows = 1
        for what, count, first, axis in (("row", rows, window.first, 0), ("column", columns, 0, 1)):
            reach = (count - 1) * layer.stride[axis] - first + (layer.kernel[axis] - 1) * layer.dilation[axis]
            if reach > _COORDINATE_MAX or layer.pads[axis] > _COORDINATE_MAX:
                raise CompileError(
                    f"Layer {layer.name} reaches input {what} {reach}; the feature reader counts to {_COORDINATE_MAX}: "
                    f"cut the image into smaller ones"
                )

    @staticmethod
    def _rows(layer, window):
        """How the reader counts the rows of a window of the layer's source.

        Words and rows from one row of results to the next, rows from one row of the kernel to the next, and rows in
        all. Of a group, rows of results are images, and these count as rows: kernels stay inside their maps.
        """
        if window.image_words:
            return window.image_words, 1, 0, window.images
        return layer.stride[0] * layer.source.width, layer.stride[0], layer.dilation[0], window.end - window.first

    def _compute(self, layer, window, column_tile, strip, part, ranges, address, *, clear, shift):
        """One part pass over a window of the layer's source.

        Channel blocks that the latest POST is still writing come after those that are there.
        """
        (first, end), rows, columns = ranges
        settled = first
        while settled < end and not self._is_fresh(layer, window, strip, part, settled):
            settled += 1
        tiles = (rows[1] - rows[0]) * (columns[1] - columns[0])
        block_words = (1 if layer.keep else tiles) * column_tile.words
        for wait, blocks in ((False, (first, settled)), (True, (settled, end))):
            if blocks[0] < blocks[1]:
                start = blocks[0] == first
                self._compute_blocks(
                    layer, window, column_tile, strip, part, (blocks, rows, columns),
                    address + (blocks[0] - first) * block_words, block_words,
                    wait_post=wait, clear=clear and start, shift=shift and start,
                )  # fmt: skip
        return (end - first) * tiles

    def _is_fresh(self, layer, window, strip, part, block):
        """Whether a strip reads words of a channel block that the latest POST may not have written yet."""
        if not self._fresh or layer is self._fresh_layer:
            # Its results may lie beside what it reads, in other lanes of the same words.
            return False
        width, rows = layer.source.width, window.end - window.first
        start = window.base + (part * layer.source.blocks + block) * window.plane_words
        if window.image_words:
            images = range(strip.y, strip.y + strip.valid_rows)
            spans = [(start + n * window.image_words, start + n * window.image_words + rows * width) for n in images]
        else:
            low = strip.y * layer.stride[0] - layer.pads[0] - window.first
            high = (strip.y + strip.rows * self._config.planes - 1) * layer.stride[0] - layer.pads[0] - window.first
            high += (layer.kernel[0] - 1) * layer.dilation[0] + 1
            spans = [(start + max(low, 0) * width, start + min(high, rows) * width)]
        # All are in order.
        if self._fresh[-1][1] <= spans[0][0] or spans[-1][1] <= self._fresh[0][0]:
            return False
        return any(begin < last and first < end for begin, end in self._fresh for first, last in spans)

    def _compute_blocks(
        self, layer, window, column_tile, strip, part, ranges, address, block_words, *, wait_post, clear, shift
    ):
        (b0, b1), (ky0, ky1), (kx0, kx1) = ranges
        sx, (dy, dx) = layer.stride[1], layer.dilation
        source = layer.source
        row_words, row_step, kernel_step, height = self._rows(layer, window)
        above = layer.pads[0] + window.first
        x0 = strip.x * sx - layer.pads[1] + kx0 * dx
        start = window.base + (part * source.blocks + b0) * window.plane_words
        self._issue(
            Opcode.COMPUTE,
            reads=self._span(source, window),
            weights=(address, (b1 - b0) * block_words),
            wait_post=wait_post,
            base=(start + strip.y * row_words + (ky0 * dy - above) * source.width + x0) & _ADDRESS_MASK,
            y0=strip.y * row_step + ky0 * kernel_step - above,
            x0=x0,
            height=height,
            width=source.width,
            **_loops(
                (b1 - b0, window.plane_words, 0, 0),
                (ky1 - ky0, dy * source.width, kernel_step, 0),
                (kx1 - kx0, dx, 0, dx),
                (strip.rows, row_words, row_step, 0),
                (strip.pixels, sx, 0, sx),
            ),
            plane_step=(strip.rows * row_words) & _ADDRESS_MASK,
            plane_ystep=strip.rows * row_step,
            pad_code=layer.pad_digits[part],
            weight_base=address,
            keep=layer.keep,
            weight_words=column_tile.words,
            clear=clear,
            shift=shift,
        )

    def _post(self, step, layer, column_tile, strip):
        config = self._config
        target = layer.target
        key, size, make = self._parameter_piece(step.layer, column_tile)
        address = self._load(self._parameters, Kind.PARAMETERS, key, size, make, self._stream_parameters)
        lane = _extent(target.lanes)[0] + column_tile.start
        first_block, end_block = lane // config.vector, (lane + column_tile.used - 1) // config.vector + 1

        window = step.windows[target.name]
        # Of a group, rows of results are images.
        row_words = window.image_words or target.width

        def first_word(window, plane):
            return window.base + plane * window.plane_words + (strip.y - window.first) * row_words + strip.x

        encoding, bits = layer.encoding
        reads, residual, part_step = None, {}, target.blocks * window.plane_words
        if layer.residual is not None:
            added = step.windows[layer.residual.name]
            reads = self._span(layer.residual, added)
            # In the same lane of another block.
            other = lane + layer.residual.lanes[0][0] - target.lanes[0][0]
            residual = {
                "residual_base": first_word(added, other // config.vector),
                "residual_parts": layer.residual.parts,
                **dict(zip(("residual_encoding", "residual_bits"), layer.residual_encoding, strict=True)),
            }
            if target.parts == 1:
                # The plan gives both the same steps, but for those that only one of them takes.
                part_step = layer.residual.blocks * added.plane_words
        self._issue(
            Opcode.POST,
            reads=reads,
            writes=self._span(target, window),
            parameters=(address, size),
            base=first_word(window, first_block),
            rows=strip.rows,
            pixels=strip.pixels,
            row_step=row_words,
            block_step=window.plane_words,
            part_step=part_step,
            plane_step=strip.rows * row_words,
            valid_rows=strip.valid_rows,
            first_group=lane // config.post_lanes % (config.vector // config.post_lanes),
            groups=size,
            parts=target.parts,
            parameter_base=address,
            encoding=encoding,
            bits=bits,
            relu=layer.relu,
            **residual,
        )
        starts = [
            first_word(window, part * target.blocks + block) - strip.x
            for part in range(target.parts)
            for block in range(first_block, end_block)
        ]
        if window.image_words:
            rows = [n * row_words for n in range(strip.valid_rows)]
            self._fresh = tuple(sorted((start + row, start + row + 1) for start in starts for row in rows))
        else:
            self._fresh = tuple((start, start + strip.valid_rows * target.width) for start in starts)
        self._fresh_layer = layer

    # -- weights and parameters ----------------------------------------------------------------------------------------

    @staticmethod
    def _whole(layer, tile, part):
        """Ranges of block, ky and kx of a pass; a pass that only shifts takes one tile."""
        if part is None:
            return (tile.block, tile.block + 1), (0, 1), (0, 1)
        return (tile.block, tile.block + tile.blocks), (0, layer.kernel[0]), (0, layer.kernel[1])

    def _pieces(self, layer, tile, part):
        """Ranges of a pass, cut into pieces that are small against the weight memory when weights are streamed.

        While one is used, the stream can fill the memory but for that one.
        """
        blocks, rows, columns = self._whole(layer, tile, part)
        if not self._stream_weights:
            return [(blocks, rows, columns)]
        half = self._config.weight_depth // 2
        limit = max(self._config.weight_depth // _PIECES, tile.words)
        if tile.words > half:
            raise CompileError(
                f"Layer {layer.name}: one tile of weights has {tile.words} words, half of the weight memory has "
                f"{half}; raise weight_depth to at least {2 << (tile.words - 1).bit_length()} or lower columns"
            )

        def cut(bounds, size):
            step = max(limit // size, 1)
            return [(low, min(low + step, bounds[1])) for low in range(bounds[0], bounds[1], step)]

        if layer.keep:
            return [(b, rows, columns) for b in cut(blocks, tile.words)]
        column_words = (columns[1] - columns[0]) * tile.words
        row_words = (rows[1] - rows[0]) * column_words
        block_cuts = cut(blocks, row_words)
        row_cuts = cut(rows, column_words) if row_words > limit else [rows]
        column_cuts = cut(columns, tile.words) if column_words > limit else [columns]
        return [(b, y, x) for b in block_cuts for y in row_cuts for x in column_cuts]

    def _weight_piece(self, index, tile, part, ranges):
        layer = self._layers[index]
        if layer.keep:
            ranges = ranges[0], (0, 1), (0, 1)
        count = int(np.prod([high - low for low, high in ranges])) * tile.words
        if part is None:
            key: tuple = ("zero", tile.words)
            ranges = (0, 1), (0, 1), (0, 1)
        else:
            key = (index, tile.start, part, ranges)

        def make():
            return self._weight_payload(layer, tile, part, ranges)

        return key, count, make

    def _weight_payload(self, layer, tile, part, ranges):
        config = self._config
        (b0, b1), (ky0, ky1), (kx0, kx1) = ranges
        vector = config.vector
        levels = np.zeros((tile.columns, (b1 - b0) * vector, ky1 - ky0, kx1 - kx0), dtype=np.int64)
        if part is not None:
            piece = layer.digits[part][tile.start : tile.start + tile.used, :, ky0:ky1, kx0:kx1]
            channels = layer.inputs[tile.start : tile.start + tile.used] - b0 * vector
            outputs, inputs = np.nonzero((channels >= 0) & (channels < levels.shape[1]))
            levels[outputs, channels[outputs, inputs]] = piece[outputs, inputs]
        words = levels.reshape(tile.columns, b1 - b0, vector, ky1 - ky0, kx1 - kx0)
        words = words.transpose(1, 3, 4, 0, 2).reshape(-1, config.weight_columns * vector)
        codes = self._weight_codes[words + config.weight_format.magnitude_max]
        return pack_codes(config, codes, config.weight_format.bits)

    @property
    def _weight_codes(self):
        """Code ``{sign, magnitude code}`` of every native weight level."""
        native = self._config.weight_format
        table = np.zeros(2 * native.magnitude_max + 1, dtype=np.uint8)
        for code, magnitude in enumerate(native.magnitudes[: 1 << (native.bits - 1)]):
            table[native.magnitude_max + magnitude] = code
            if magnitude:
                table[native.magnitude_max - magnitude] = code | 1 << (native.bits - 1)
        return table

    def _parameter_piece(self, index, tile):
        config = self._config
        layer = self._layers[index]
        groups = tile.columns // config.post_lanes

        def make():
            stride = word_bytes(config, config.parameter_word_bits)
            payload = b""
            for group in range(groups):
                word = 0
                for lane in range(config.post_lanes):
                    channel = tile.start + group * config.post_lanes + lane
                    # Channels that fill up a group: multiplier 0 stores code 0.
                    if channel < tile.start + tile.used:
                        entry = PARAMETER.pack(
                            bias=layer.bias[channel],
                            multiplier=layer.multiplier[channel],
                            shift=layer.shift[channel],
                            residual_multiplier=layer.residual_multiplier[channel],
                            negative_multiplier=layer.negative_multiplier[channel],
                        )
                        word |= entry << (PARAMETER.width * lane)
                payload += word.to_bytes(stride, "little")
            return payload

        return (index, tile.start), groups, make

    def _load_weights(self, index, tile, part, ranges):
        key, size, make = self._weight_piece(index, tile, part, ranges)
        return self._load(self._weights, Kind.WEIGHTS, key, size, make, self._stream_weights)

    def _load(self, ring, kind, key, size, make, streamed):
        """Address of a piece; sends it first if it is not in memory."""
        address = ring.find(key)
        if address is None:
            assert streamed, "resident pieces are placed before the first image"
            if size > ring.depth:
                raise CompileError(
                    f"Layer {self._layers[key[0]].name}: one column tile has {size} words of parameters, the "
                    f"memory has {ring.depth}; raise parameter_depth to at least {1 << (size - 1).bit_length()}"
                )
            self._flush()
            address = ring.place(key, size)
            readers = ring.readers[address : address + size]
            if (kind, key) not in self._payloads:
                self._payloads[kind, key] = make()
            none = np.empty(0, dtype=np.int64)
            fence = self._fence(readers, none) if kind == Kind.PARAMETERS else self._fence(none, readers)
            self._packets.append(Packet(kind, size, address, fence, self._payloads[kind, key]))
        return address

    # -- instructions --------------------------------------------------------------------------------------------------

    def _issue(self, opcode, *, reads=None, writes=None, weights=None, parameters=None, **fields):
        number = len(self._log)
        is_post = opcode == Opcode.POST
        if fields.get("wait_post"):
            self._fresh = ()
        for ring, span in ((self._weights, weights), (self._parameters, parameters)):
            if span:
                ring.readers[span[0] : sum(span)] = number
        users = self._feature_posts if is_post else self._feature_users
        for span in (reads, writes):
            if span:
                users[span[0] : sum(span)] = number
        self._log.append(is_post or fields["wait_post"])
        self._pending.append(INSTRUCTIONS[opcode].pack(opcode=opcode, **fields))
        if len(self._pending) >= max(self._config.instruction_depth // 2, 1):
            self._flush()

    def _instruction_payload(self, instruction):
        return instruction.to_bytes(word_bytes(self._config, INSTRUCTION_BITS), "little")

    def _flush(self):
        """Send the instructions written so far."""
        if self._pending:
            payload = b"".join(self._instruction_payload(instruction) for instruction in self._pending)
            self._packets.append(Packet(Kind.RUN, len(self._pending), fence=_NO_FENCE, payload=payload))
            self._pending = []

    def _fence(self, posts, others):
        """Most instructions that may be outstanding when every user of some words is certainly done.

        Instructions retire in order, except that those behind a POST may retire before it, up to the next POST or the
        next instruction that waits for it. So with ``m`` instructions issued behind instruction ``k``:

        * if ``k`` is no POST and not done, all ``m`` are outstanding with it: ``m`` outstanding ones prove it done;
        * if ``k`` is a POST, only those from the next one that waits for it are outstanding with it.
        """
        issued = len(self._log)
        fence = _NO_FENCE
        for k in np.unique(others[others >= 0]):
            fence = min(fence, issued - 1 - int(k))
        for k in np.unique(posts[posts >= 0]):
            behind = self._log[int(k) + 1 :]
            overtaking = next((i for i, waits in enumerate(behind) if waits), len(behind))
            fence = min(fence, len(behind) - overtaking)
        return fence


def _loops(*levels):
    """Fields of the five loop levels ``(count, step, ystep, xstep)``, outermost first."""
    names = ("count", "step", "ystep", "xstep")
    return {f"{name}{i}": value for i, level in enumerate(levels) for name, value in zip(names, level, strict=True)}
