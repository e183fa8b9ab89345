"""Layers in the accelerator's terms: a convolution in part passes, a maximum, or repeated pixels.

Where channels lie in feature words, how the input is folded, and how a layer is cut into column tiles of output
channels, strips of output pixels and part passes. Nothing here rounds.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import NUUQ, FormatError
from sigbit_hw.spec.instructions import LEVEL, Encoding
from sigbit_hw.spec.masks import Policy, TermMask
from sigbit_hw.spec.parts import RAW_BITS, codebook_parts, weight_parts
from sigbit_sim.golden.network import AveragePool, Concat, Convolution, MaxPool, Upsample, sources
from sigbit_sim.golden.numerics import SHIFT_MAX, thresholds
from sigbit_sim.golden.program import InputLayout

from .level_tables import LevelTable

__all__ = [
    "CompileError",
    "Maximum",
    "Reduction",
    "Repetition",
    "cut_strips",
    "extent",
    "input_layouts",
    "lower_layers",
    "pool_rows",
    "stored_weight_parts",
]


class CompileError(SigbitError):
    """A network that does not fit the accelerator; the message says what to change."""


#: Largest magnitude of a weight in a level table.
LEVEL_MAX = next(field.range[1] for field in LEVEL.fields if field.name == "weight")


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
        first, end = extent(self.lanes)
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
class Reduction:
    """A convolution in part passes; an average is one with one channel per group and weights of 1.

    Outputs are the stored channels from the first to the last of the target; those between its channels are 0.
    ``digits[i]`` are native weight levels ``(out, in of a group, kh, kw)`` of part ``i``, and ``inputs`` the stored
    channels ``(out, in of a group)`` of the source that they belong to. On table cells ``tables[i]`` says what the
    codes of part ``i`` count, and ``no_weights`` is the table of passes that only shift.
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
    pad_codes: tuple
    low: np.ndarray  # smallest and largest final accumulator of every channel
    high: np.ndarray
    bias: np.ndarray  # with XOR constant and excess
    multiplier: np.ndarray
    shift: np.ndarray
    residual_multiplier: np.ndarray
    negative_multiplier: np.ndarray
    codebook: tuple  # levels that POST projects to first; none: all of the encoding
    by_threshold: bool  # thresholds of the accumulator choose between them
    thresholds: np.ndarray
    encoding: tuple  # and bits, as POST has them
    residual_encoding: tuple
    levels: tuple  # that the codes of results are indices of, and those of the residual; none: of the encoding
    residual_levels: tuple
    relu: bool
    macs: int
    tables: tuple
    no_weights: LevelTable | None
    mask: TermMask | None  # of masked cells
    beats: int  # cycles of the array per position
    in_bands: ClassVar = True

    @property
    def products_per_mac(self):
        """Native products that a multiplication takes, as a quotient of integers ``(products, multiplications)``."""
        if self.mask is not None:
            return self.mask.budget, self.mask.group
        return sum(part is not None for part, _, _ in self.passes), 1

    @property
    def reads(self):
        """Tensors that must stay in memory until the layer is done."""
        return (self.source,) if self.residual is None else (self.source, self.residual)

    @cached_property
    def passes(self):
        """Part passes ``(weight part, activation part, shift)`` in Horner order; weight part None: shift only."""
        pairs = sorted(
            ((self.shifts[i] + j, i, j) for i in range(len(self.shifts)) for j in range(self.source.parts)),
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
        return tuple(passes)

    @property
    def weight_words(self):
        """Distinct words of weights; passes that only shift share one tile of zeros."""
        positions = 1 if self.keep else int(np.prod(self.kernel))
        words = sum(tile.words * tile.blocks for tile in self.tiles) * positions * len(self.digits)
        if any(part is None for part, _, _ in self.passes):
            words += sum({tile.words for tile in self.tiles})
        return words

    @property
    def accumulator_bits(self):
        """Bits of two's complement that hold every final accumulator."""
        return 1 + max(int(max(self.high.max(), -1 - self.low.min(), 0)).bit_length(), 1)


@dataclass(frozen=True)
class Maximum:
    """A maximum over a window, of codes in the order of their levels; positions outside the source do not count."""

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
class Repetition:
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


def extent(lanes):
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
            parts = config.activation_parts(tensor.format).count
        except FormatError as error:
            raise CompileError(f"Tensor {tensor.name}: {error}") from error
    blocks = _blocks(tensor.channels, config)
    return _Map(tensor.name, tensor.height, tensor.width, blocks, parts, ((0, tensor.channels),))


def _encoding(tensor, config):
    """Encoding and bits by which the post-processor stores or adds a tensor."""
    if tensor.format is None:
        return Encoding.RAW, 0
    parts = config.activation_parts(tensor.format)
    if parts.levels:
        return Encoding.NATIVE, 0
    return (Encoding.INT if parts.stored.signed else Encoding.UINT), parts.stored.bits


def _index_levels(tensor, config):
    """Level of every code, where codes are indices of levels that instructions name; else none."""
    return config.activation_parts(tensor.format).levels if config.level_tables and tensor.format is not None else ()


def _codebook(layer, target, config):
    """Levels of the target's codebook that its integers are projected to, none if it has no codebook."""
    if target.format is None or not target.format.indexed or _index_levels(target, config):
        return ()
    levels = target.format.levels
    if len(levels) > config.threshold_count + 1:
        raise CompileError(
            f"Layer {layer.name} writes {target.format.label}, {len(levels)} levels; the accelerator compares each "
            f"result {config.threshold_count} times: configure it with threshold_count {len(levels) - 1}, or with "
            f"table cells"
        )
    return levels


def _thresholds(bias, multiplier, shift, format, config):
    """Least accumulators of every rank but 0, ``(channels, threshold_count)``; out of reach is as far as words go."""
    limit = 1 << (config.accumulator_bits - 1)
    result = np.full((len(bias), config.threshold_count), limit, dtype=np.int64)
    if format is not None:
        found = thresholds(bias, multiplier, shift, format.midpoints)
        result[:, : found.shape[1]] = np.clip(found, -limit, limit)
    return result


def input_layouts(network, config):
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
    if layer.residual == network.input or (layer.mask is not None and not layer.mask.exact):
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
    weight_passes = len(_weight_parts(layer, tensor.format, config).shifts) * _mask(layer, tensor, config)[1]

    def cycles(layout):
        """Per part of the input: whatever takes longer, then the words to send."""
        blocks = _blocks(layout.stored_channels, config)
        steps = blocks * kh * kw // (layout.kernel[0] * layout.kernel[1])
        compute = steps * -(-target.height // config.planes) * target.width * column_tiles * weight_passes
        words = blocks * layout.rows * layout.columns
        return max(compute, words * config.beats_per_word(config.feature_word_bits)), words

    layouts = [plain, *([along_x] if kh > 1 and kw > 1 else []), *([whole] if kh * kw > 1 else [])]
    return tuple(sorted(layouts, key=cycles))


def _distances(form, config):
    """What the activation codes of a tensor count in tables of products: distances from the smallest level."""
    parts = config.activation_parts(form)
    # Digits are their own codes.
    levels = parts.levels or range(1 << config.activation_format.bits)
    return tuple(level - levels[0] for level in levels)


def _largest_weight(source, config):
    """Largest level of a weight in tables of products with a tensor in the format ``source``, and its reach."""
    reach = max(_distances(source, config))
    return min(config.table_weight_max, config.product_magnitude_max // reach, LEVEL_MAX), reach


def stored_weight_parts(form, source, config, unused_lanes=True):
    """Parts that an accelerator multiplies weights in ``form`` by, if the activations are in the format ``source``.

    ``unused_lanes`` says whether words that are read have lanes for which there is no weight.

    Raises
    ------
    :exc:`~sigbit_hw.spec.formats.FormatError`
        If it cannot.
    """
    if not config.level_tables:
        return weight_parts(config.weight_format, form, config.part_shift_bits)
    largest, _ = _largest_weight(source, config)
    return codebook_parts(form, config.part_shift_bits, largest, 1 << config.weight_format.bits, unused_lanes)


def _weight_parts(layer, source, config, unused_lanes=True):
    """Parts of the weights of a layer that reads a tensor in the format ``source``."""
    form = layer.weight_format
    if layer.codebooks is not None:
        # One cut for all channels, so that a pass is the same for all.
        levels = tuple(np.unique(layer.codebooks).tolist())
        form = NUUQ(len(levels), form.level_bits, levels)
    try:
        return stored_weight_parts(form, source, config, unused_lanes)
    except FormatError as error:
        if not config.level_tables:
            raise CompileError(f"Layer {layer.name}: {error}") from error
        largest, reach = _largest_weight(source, config)
        raise CompileError(
            f"Layer {layer.name}: {error}; its activations {source} reach {reach}, so weights reach {largest} at most: "
            f"raise table_product_bits ({config.table_product_bits}) or table_weight_bits ({config.table_weight_bits})"
        ) from error


def lower_layers(network, config, layout):
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
    layers: list[Reduction | Maximum | Repetition] = []
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
                Maximum(layer.name, maps[layer.input], maps[layer.output], layer.kernel, layer.stride, layer.pads[:2])
            )
        elif isinstance(layer, Upsample):
            layers.append(Repetition(layer.name, maps[layer.input], maps[layer.output], layer.factors))
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
    power = config.weight_format.smallest_power
    return Convolution(
        name, source, target, (power * ones).reshape(-1, 1, 1, 1), config.weight_format, ones / power, zeros, ones,
        (power.bit_length() - 1) * ones, groups=channels,
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
            first, end = extent(lanes[layer.input])
            offset = take(name, end - first // vector * vector, vector) - first // vector * vector
            lanes[name] = tuple((first + offset, count) for first, count in lanes[layer.input])
        elif residual is not None and name not in home:
            offset = extent(lanes[residual])[0] // vector * vector
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
            blocks[own] = maps[steps[name]].blocks if name in steps else _blocks(extent(runs)[1], config)
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
    activations = config.activation_parts(source.format)
    residual = getattr(layer, "residual", None)
    if isinstance(layer, AveragePool):
        power = config.weight_format.smallest_power
        weights = np.full((source.channels, 1, *layer.kernel), power, dtype=np.int64)
        digits, shifts, groups, dilation = (weights,), (0,), source.channels, (1, 1)
        bias = np.zeros(source.channels, dtype=np.int64)
        shift = layer.shift + power.bit_length() - 1
        if shift > SHIFT_MAX:
            raise CompileError(
                f"Layer {layer.name}: an average with the weight {power} of {config.weight_format} needs a shift by "
                f"{shift}, the largest is {SHIFT_MAX}; give its result a smaller unit"
            )
        multiplier, shift = (np.full(source.channels, value) for value in (layer.multiplier, shift))
    else:
        first, end = maps[layer.input].span(config)
        channels = source.channels if folded is None else folded.stored_channels
        unused_lanes = layer.groups > 1 or channels < (end - first) * config.vector
        parts = _weight_parts(layer, source.format, config, unused_lanes)
        weights, shifts, groups, dilation = layer.weights, parts.shifts, layer.groups, layer.dilation
        levels = np.array(sorted(parts.table))
        rows = np.array([parts.table[level] for level in levels])
        digits = tuple(np.moveaxis(rows[np.searchsorted(levels, weights)], -1, 0))
        bias, multiplier, shift = layer.bias, layer.multiplier, layer.shift
    negative_multiplier = getattr(layer, "negative_multiplier", None)
    if negative_multiplier is None:
        negative_multiplier = multiplier
    if config.requantizer == "shift":
        constants = multiplier, getattr(layer, "residual_multiplier", None), negative_multiplier
        multiplier, residual_multiplier, shift = _powers(layer, *constants, shift, target.format is None)
        negative_multiplier = multiplier
    else:
        residual_multiplier = None if residual is None else layer.residual_multiplier
    kernel = weights.shape[2:]
    positive = np.maximum(weights, 0).sum(axis=(1, 2, 3))
    negative = np.minimum(weights, 0).sum(axis=(1, 2, 3))
    sign_bits = tuple((digit < 0).sum(axis=(1, 2, 3)) for digit in digits)
    # Every pass leaves its sum short by its set sign bits (numerics 5.2), then the passes' shifts weight that shortage.
    # Masked cells negate exactly and take the excess off before they mask.
    step = activations.step
    constant = (
        0
        if config.masked
        else sum(
            bits << step * (weight_shift + part)
            for bits, weight_shift in zip(sign_bits, shifts, strict=True)
            for part in range(activations.count)
        )
    )
    offset = 0 if config.masked else activations.offset
    if activations.levels or config.masked:
        smallest, largest = source.format.levels[0] + offset, source.format.levels[-1] + offset
    else:
        smallest, largest = 0, (1 << activations.stored.bits) - 1
    stride, pads = layer.stride, layer.pads[:2]
    low = smallest * positive + largest * negative - constant
    high = largest * positive + smallest * negative - constant
    bias = bias + constant - offset * (positive + negative)
    mask, beats = _mask(layer, source, config)
    if mask is not None and not mask.exact:
        _check_groups(layer, maps[layer.input], mask)
    if residual_multiplier is None:
        residual_multiplier = np.zeros_like(bias)
    if folded is not None and folded.kernel != (1, 1):
        digits = tuple(_fold(digit, folded.kernel) for digit in digits)
        if folded.kernel[0] > 1 or kernel[0] == 1:
            kernel, stride, dilation, pads = (1, 1), (1, 1), (1, 1), (0, 0)
        else:
            kernel, stride, dilation, pads = (kernel[0], 1), (stride[0], 1), (dilation[0], 1), (pads[0], 0)
    tables, no_weights = (), None
    if config.level_tables:
        distances = _distances(source.format, config)
        tables = tuple(LevelTable.of(np.unique(digit).tolist(), distances) for digit in digits)
        no_weights = LevelTable.of((), distances)
    elif config.cell == "table":
        no_weights = LevelTable.native(config.weight_format, config.activation_format)
        tables = (no_weights,) * len(digits)
    codebook = _codebook(layer, target, config)
    # What is added or leaks is not known to a threshold.
    by_threshold = bool(codebook) and residual is None and getattr(layer, "negative_multiplier", None) is None
    compared = _thresholds(bias, multiplier, shift, target.format if by_threshold else None, config)
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
        compared = spread(compared)
    return Reduction(
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
        pad_codes=activations.codes(0),
        low=low,
        high=high,
        bias=bias,
        multiplier=multiplier,
        shift=shift,
        residual_multiplier=residual_multiplier,
        negative_multiplier=negative_multiplier,
        codebook=codebook,
        by_threshold=by_threshold,
        thresholds=compared,
        encoding=_encoding(target, config),
        residual_encoding=(Encoding.NATIVE, 0) if residual is None else _encoding(tensors[residual], config),
        levels=_index_levels(target, config),
        residual_levels=() if residual is None else _index_levels(tensors[residual], config),
        relu=layer.relu,
        macs=weights.size * target.height * target.width,
        tables=tables,
        no_weights=no_weights,
        mask=mask,
        beats=beats,
    )


def _mask(layer, source, config):
    """Mask of a layer that reads a tensor, None without masked cells, and cycles per position in the array."""
    mask = getattr(layer, "mask", None)
    if mask is None or mask.exact:
        if not config.masked:
            return None, 1
        # Values of up to 4 bits have no high nibbles.
        mask = TermMask(config.lanes, config.lanes * (1 if source.format.magnitude_max < 16 else 2))
    elif not config.masked:
        raise CompileError(
            f"Layer {layer.name} keeps {mask.budget} parts of every {mask.group} activations, which takes masked "
            f"cells; choose a configuration with cell masked and lanes {mask.group}"
        )
    elif mask.group != config.lanes:
        raise CompileError(
            f"Layer {layer.name} has masks of groups of {mask.group}, the accelerator has groups of {config.lanes}; "
            f"quantize for groups of {config.lanes}, or choose a configuration with lanes {mask.group}"
        )
    elif mask.policy == Policy.TERM:
        raise CompileError(
            f"Layer {layer.name} has the policy term, which the golden model alone has; masking units have nib and mag"
        )
    return mask, -(-mask.budget // config.token_lanes)


def _check_groups(layer, source, mask):
    """Channels of a group of the mask must lie in one group of the accelerator, in their order."""
    positions = source.positions
    channels = np.arange(len(positions))
    wrong = positions != positions[channels // mask.group * mask.group] + channels % mask.group
    if (wrong | (positions % mask.group != channels % mask.group)).any():
        raise CompileError(
            f"Layer {layer.name} masks groups of {mask.group} channels, but its input {layer.input} is joined from "
            f"tensors whose channels are not multiples of {mask.group}; give the layer a budget of {2 * mask.group}"
        )


def _powers(layer, multiplier, residual_multiplier, negative_multiplier, shift, raw):
    """The same gains for a requantizer that only shifts: ``(M0, M1, sh)`` with ``M0`` = 1 wherever that can be."""
    if raw:
        # The sums leave as they are.
        return np.ones_like(multiplier), residual_multiplier, shift
    factors = [multiplier] + ([] if residual_multiplier is None else [residual_multiplier])
    if any((values & (values - 1)).any() or not values.all() for values in factors):
        raise CompileError(
            f"Layer {layer.name} has gains that are no powers of two, and the accelerator's requantizer only shifts; "
            f'quantize with power-of-two units (--alpha window), or build it with requantizer "multiplier"'
        )
    if (negative_multiplier != multiplier).any():
        raise CompileError(
            f"Layer {layer.name} scales negative sums by another factor, and the accelerator's requantizer only "
            f'shifts; build it with requantizer "multiplier"'
        )
    common = np.minimum.reduce([*factors, np.left_shift(1, shift)])
    multiplier, *others = (values // common for values in factors)
    if others and (multiplier > 1).any():
        raise CompileError(
            f"Layer {layer.name} adds a residual that is finer than its sums, and the accelerator's requantizer only "
            f'shifts; build it with requantizer "multiplier"'
        )
    return multiplier, others[0] if others else None, shift - np.log2(common).astype(np.int64)


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


@dataclass(frozen=True)
class _Strip:
    """Output pixels of one bank: ``rows`` per plane from ``y``, ``pixels`` columns from ``x``."""

    y: int
    x: int
    rows: int
    pixels: int
    valid_rows: int


def cut_strips(height, width, config):
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


def pool_rows(height, planes, positions):
    """Rows that every plane pools, and the step from one plane's to the next's; some rows may come twice.

    The planes store one after the other, so a window must have at least as many positions.
    """
    if planes > 1 and positions >= planes:
        for rows in range(-(-height // planes), height):
            step, rest = divmod(height - rows, planes - 1)
            if rest == 0 and step <= rows:
                return rows, step
    return height, 0
