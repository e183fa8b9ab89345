"""Exact rewrites of the float graph, down to a few kinds of layers. Every pass must leave the outputs as they were."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from .float_model import run_float
from .graph import (
    Add,
    Affine,
    AveragePool,
    Concat,
    Conv,
    Graph,
    LeakyRelu,
    Linear,
    MaxPool,
    ModelError,
    Node,
    Relu,
    Reshape,
    Upsample,
)

__all__ = [
    "PASSES",
    "PassError",
    "fold_affine",
    "fuse_add",
    "fuse_leaky_relu",
    "fuse_relu",
    "keeps_levels",
    "leaves_raw",
    "lower",
    "lower_linear",
    "merge_copies",
    "remove_dead_nodes",
    "separate_concat_inputs",
    "split_behind_concat",
]

#: Largest difference of logits that a pass may cause, relative to the largest logit; passes compute in float64.
TOLERANCE = 1e-8

_SEED = 1

#: Most weights of a copy that flattens a map, which has one per channel and pair of pixels.
_FLATTENING_WEIGHTS = 1 << 24


class PassError(RuntimeError):
    """A pass changed what the graph computes: a defect of the pass."""


def _rebuilt(graph: Graph, nodes: Iterable[Node], **changes) -> Graph:
    return replace(graph, nodes=tuple(nodes), **changes)


def _reading(node: Node, inputs: Sequence[str]) -> Node:
    """``node`` reading other tensors, given in the order of ``node.inputs``."""
    if isinstance(node, Concat):
        return replace(node, input=inputs[0], others=tuple(inputs[1:]))
    return replace(node, **dict(zip(("input", "residual"), inputs, strict=False)))


def _renamed(node: Node, old: str, new: str) -> Node:
    """``node`` reading tensor ``new`` wherever it read ``old``."""
    return _reading(node, [new if name == old else name for name in node.inputs]) if old in node.inputs else node


def _swapped(graph: Graph, removed: Node, added: dict[Node, Node]) -> Graph:
    """``graph`` without ``removed``, whose readers now read its input, and with the nodes of ``added`` exchanged."""
    nodes = []
    for node in graph.nodes:
        if node is not removed:
            nodes.append(_renamed(added.get(node, node), removed.output, removed.input))
    outputs = tuple(removed.input if name == removed.output else name for name in graph.outputs)
    return _rebuilt(graph, nodes, outputs=outputs)


def _only_reader(graph: Graph, tensor: str) -> bool:
    return len(graph.consumers(tensor)) == 1 and tensor not in graph.outputs


def _per_channel(graph: Graph, node: Node, **options) -> Conv:
    """A 1x1 convolution of ones, each channel on its own, in the place of ``node``."""
    channels = graph.shapes[node.input][0]
    fields = {"bias": np.zeros(channels), "weight": np.ones((channels, 1, 1, 1)), **options}
    return Conv(name=node.name, input=node.input, output=node.output, groups=channels, **fields)


def _replaced(graph: Graph, node: Node, new: Node) -> Graph:
    return _rebuilt(graph, [new if other is node else other for other in graph.nodes])


def _exchanged(graph: Graph, first: Node, second: Node) -> tuple[Graph, Node, Node]:
    """Neighbours ``first -> second`` in the other order, and both as they are now.

    Nodes are matched by their outputs, so ``first`` and ``second`` may carry parameters that fit only the new order.
    """
    before = replace(second, input=first.input, output=first.output)
    after = replace(first, input=first.output, output=second.output)
    nodes = [before if n.output == first.output else after if n.output == second.output else n for n in graph.nodes]
    return _rebuilt(graph, nodes), before, after


def remove_dead_nodes(graph: Graph) -> Graph:
    """Without the nodes whose results never reach an output."""
    needed, kept = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if node.output in needed:
            needed.update(node.inputs)
            kept.append(node)
    return _rebuilt(graph, reversed(kept))


def split_behind_concat(graph: Graph) -> Graph:
    """An affine node or ReLU behind a concatenation becomes one on each of its inputs, if nothing else reads them.

    There it becomes part of the layers that make them.
    """
    while True:
        for node in graph.nodes:
            source = graph.producer(node.input)
            if (
                isinstance(node, Affine | Relu | LeakyRelu)
                and isinstance(source, Concat)
                and _only_reader(graph, node.input)
            ):
                made = all(graph.producer(name) is not None and _only_reader(graph, name) for name in source.inputs)
                if made and len(set(source.inputs)) == len(source.inputs):
                    break
        else:
            return graph
        parts: list[Node] = []
        start = 0
        for index, name in enumerate(source.inputs):
            own = slice(start, start := start + graph.shapes[name][0])
            part = replace(node, name=f"{node.name}.part{index}", input=name, output=f"{node.output}.part{index}")
            if isinstance(part, Affine):
                part = replace(part, gain=part.gain[own], shift=part.shift[own])
            elif isinstance(part, LeakyRelu) and part.slope.size > 1:
                part = replace(part, slope=part.slope[own])
            parts.append(part)
        joined = replace(_reading(source, [part.output for part in parts]), output=node.output)
        nodes: list[Node] = []
        for other in graph.nodes:
            if other is not node:
                nodes.extend([*parts, joined] if other is source else [other])
        graph = _rebuilt(graph, nodes)


def _with_parameters(node: Conv | Linear, weight: np.ndarray, bias: np.ndarray) -> Node:
    """``node`` with other parameters; it is no copy any more."""
    if isinstance(node, Conv):
        return replace(node, weight=weight, bias=bias, copy=False)
    return replace(node, weight=weight, bias=bias)


def _is_rectified(node: Conv | Linear) -> bool:
    return node.relu or getattr(node, "slope", None) is not None


def _affine_before(graph: Graph, node: Affine) -> tuple[Graph, Node | None] | None:
    """One step of an affine node backwards: moved (the node is returned), folded (None instead), or not possible."""
    source = graph.producer(node.input)
    if source is None or not _only_reader(graph, node.input):
        return None
    if isinstance(source, Conv | Linear) and not _is_rectified(source) and len(source.inputs) == 1:
        column = (-1,) + (1,) * (source.weight.ndim - 1)
        weight, bias = source.weight * node.gain.reshape(column), source.bias * node.gain + node.shift
        return _swapped(graph, node, {source: _with_parameters(source, weight, bias)}), None
    if isinstance(source, Affine):
        merged = replace(source, gain=source.gain * node.gain, shift=source.shift * node.gain + node.shift)
        return _swapped(graph, node, {source: merged}), None
    commutes = (
        (isinstance(source, MaxPool) and (node.gain > 0).all())
        or isinstance(source, Upsample)
        or (isinstance(source, AveragePool) and not source.relu and (not any(source.pads) or not node.shift.any()))
        or (isinstance(source, Reshape) and graph.shapes[source.input][0] == source.shape[0])
    )
    return _exchanged(graph, source, node)[:2] if commutes else None


def _seen_by_outputs(target: Conv | Linear, values: np.ndarray) -> np.ndarray:
    """One value per input channel, arranged like the weights of ``target``."""
    outputs, depth, *kernel = target.weight.shape
    groups = target.groups if isinstance(target, Conv) else 1
    rows = np.repeat(values.reshape(groups, depth), outputs // groups, axis=0)
    return rows.reshape(outputs, depth, *(1 for _ in kernel))


def _affine_after(graph: Graph, node: Affine) -> tuple[Graph, Node | None] | None:
    """One step forwards, as :func:`_affine_before`."""
    if not _only_reader(graph, node.output):
        return None
    (target,) = graph.consumers(node.output)
    if isinstance(target, Reshape):
        repeats = target.shape[0] // len(node.gain)
        if target.shape[0] != repeats * len(node.gain):
            return None
        spread = replace(node, gain=np.repeat(node.gain, repeats), shift=np.repeat(node.shift, repeats))
        exchanged, _, moved = _exchanged(graph, spread, target)
        return exchanged, moved
    if isinstance(target, Conv) and (node.output in target.inputs[1:] or (any(target.pads) and node.shift.any())):
        return None
    if isinstance(target, Conv) and target.copy and not target.relu and target.weight.shape[2:] == (1, 1):
        chosen = target.weight[:, :, 0, 0]
        spread = replace(node, gain=chosen @ node.gain, shift=chosen @ node.shift)
        exchanged, _, moved = _exchanged(graph, spread, target)
        return exchanged, moved
    if isinstance(target, Conv | Linear):
        gain, shift = (_seen_by_outputs(target, values) for values in (node.gain, node.shift))
        bias = target.bias + (target.weight * shift).reshape(len(target.weight), -1).sum(1)
        return _swapped(graph, node, {target: _with_parameters(target, target.weight * gain, bias)}), None
    return None


def _fold_towards(graph: Graph, node: Node | None, step: Callable) -> Graph | None:
    """``graph`` with the affine node folded by repeated steps; None if it gets stuck on the way."""
    while node is not None:
        result = step(graph, node)
        if result is None:
            return None
        graph, node = result
    return graph


def fold_affine(graph: Graph) -> Graph:
    """Batch normalization and constant arithmetic folded into the layer before, or else into the layer behind.

    On the way back an affine node passes pools that it commutes with. Behind it, only a layer without padding can take
    a shift, because padding is 0 behind the affine node, not before it. Where neither is exact, the node becomes a
    layer of its own: a 1x1 convolution of each channel on its own.

    Raises
    ------
    :exc:`~sigbit.graph.ModelError`
        If a flattened map would need such a layer.
    """
    while affine := [node for node in graph.nodes if isinstance(node, Affine)]:
        for node in affine:
            folded = _fold_towards(graph, node, _affine_before) or _fold_towards(graph, node, _affine_after)
            if folded is not None:
                graph = folded
                break
        else:
            node = affine[0]
            weight = node.gain.reshape(-1, 1, 1, 1)
            if len(graph.shapes[node.input]) != 3:
                raise ModelError(
                    f"Cannot fold {node.label}, which acts on a flattened map or vector, into a layer beside it; place "
                    "batch normalization directly behind a convolution or linear layer"
                )
            graph = _replaced(graph, node, _per_channel(graph, node, weight=weight, bias=node.shift))
    return graph


def merge_copies(graph: Graph) -> Graph:
    """A copy behind a copy becomes one, and a copy that only pads becomes part of the windows behind it.

    Those of a maximum leave padding out instead of counting it as 0, which is the same where nothing is negative.
    """
    while True:
        merged = next(filter(None, (_merged_copy(graph, node) for node in graph.nodes)), None)
        if merged is None:
            return graph
        graph = remove_dead_nodes(merged)


def _merged_copy(graph: Graph, node: Node) -> Graph | None:
    """``graph`` without the copy ``node``, if all its readers can take over; None otherwise."""
    readers = graph.consumers(node.output)
    if not (isinstance(node, Conv) and node.copy and not node.relu and node.output not in graph.outputs and readers):
        return None
    only_pads = node.stride == (1, 1) and np.array_equal(node.weight[:, :, 0, 0], np.eye(len(node.weight)))
    taken: dict[Node, Node] = {}
    for reader in readers:
        if not isinstance(reader, Conv | AveragePool | MaxPool) or node.output in reader.inputs[1:]:
            return None
        if not (only_pads or (isinstance(reader, Conv) and reader.copy and not reader.relu)):
            return None
        pads = tuple(
            inner + outer * stride for inner, outer, stride in zip(node.pads, reader.pads, node.stride * 2, strict=True)
        )
        if not isinstance(reader, Conv):
            fits = all(pad < size for pad, size in zip(pads, reader.kernel * 2, strict=True))
            if not fits or (isinstance(reader, MaxPool) and not _non_negative(graph, node.input)):
                return None
            taken[reader] = replace(reader, input=node.input, pads=pads)
            continue
        stride = (node.stride[0] * reader.stride[0], node.stride[1] * reader.stride[1])
        weight = reader.weight
        if not only_pads:
            weight = (weight[:, :, 0, 0] @ node.weight[:, :, 0, 0])[:, :, np.newaxis, np.newaxis]
        taken[reader] = replace(reader, input=node.input, weight=weight, stride=stride, pads=pads)
    return _rebuilt(graph, [taken.get(other, other) for other in graph.nodes])


def _non_negative(graph: Graph, tensor: str) -> bool:
    """Whether a tensor comes from a ReLU, through pools and copies."""
    source = graph.producer(tensor)
    if isinstance(source, Relu) or getattr(source, "relu", False):
        return True
    passes = isinstance(source, MaxPool | AveragePool | Concat | Upsample) or (isinstance(source, Conv) and source.copy)
    return source is not None and passes and all(_non_negative(graph, name) for name in source.inputs)


def _depths(graph: Graph) -> dict[str, int]:
    """Layers on the longest way from the input to every tensor."""
    depths = {graph.input: 0}
    for node in graph.nodes:
        depths[node.output] = 1 + max(depths[name] for name in node.inputs)
    return depths


def fuse_add(graph: Graph) -> Graph:
    """Every sum part of a convolution that makes one of its operands, or else a layer of its own.

    The convolution must have no other reader. Of two, the one on the longer way from the input takes the sum: the other
    ends the shortcut, which exists earlier. A layer of its own is a 1x1 convolution of each channel with a weight of 1.
    """
    while sums := [node for node in graph.nodes if isinstance(node, Add)]:
        node = sums[0]
        depths = _depths(graph)
        best: tuple | None = None
        for name, other in (node.inputs, node.inputs[::-1]):
            source = graph.producer(name)
            if not isinstance(source, Conv) or _is_rectified(source) or source.residual is not None or name == other:
                continue
            rank = (not source.copy, depths[name])
            if _only_reader(graph, name) and (best is None or rank > best[0]):
                best = rank, source, other
        if best is None:
            graph = _replaced(graph, node, _per_channel(graph, node, residual=node.residual))
            continue
        _, source, other = best
        # Moved to the place of the sum, because the other operand may be made between the two.
        fused = replace(source, output=node.output, residual=other, copy=False)
        graph = _rebuilt(graph, [fused if other is node else other for other in graph.nodes if other is not source])
    return graph


def keeps_levels(node: Node) -> bool:
    """Whether the output has the format and the unit of the inputs."""
    return isinstance(node, Concat | MaxPool | Upsample) or (isinstance(node, Conv) and node.copy)


def _origins(graph: Graph, name: str) -> set[str]:
    """The tensors whose values reach a tensor unchanged."""
    source = graph.producer(name)
    if source is None or not keeps_levels(source):
        return {name}
    return set().union(*(_origins(graph, read) for read in source.inputs))


def _separable_input(graph: Graph) -> tuple[Concat, int] | None:
    """A concatenation and the number of an input that cannot have the unit of the others."""
    joined = [node for node in graph.nodes if isinstance(node, Concat)]
    units: list[set[str]] = []
    for node in joined:
        unit = _origins(graph, node.output)
        unit.update(*(other for other in units if other & unit))
        units = [other for other in units if not other & unit] + [unit]
    for node in joined:
        for index, name in enumerate(node.inputs):
            origins = _origins(graph, name)
            if origins == {graph.input}:
                return node, index
            (unit,) = (unit for unit in units if unit & origins)
            limits = {tensor: getattr(graph.producer(tensor), "limit", None) for tensor in unit}
            if len(set(limits.values())) > 1 and len(origins) == 1 and limits[min(origins)] is not None:
                return node, index
    return None


def separate_concat_inputs(graph: Graph) -> Graph:
    """A 1x1 identity in front of those inputs of a concatenation that cannot have the unit of the others.

    These are the network's input, which has a format of its own, and tensors behind a clip unless all tensors that
    share the unit have the same limit: saturation at the largest level is the clip.
    """
    while found := _separable_input(graph):
        node, index = found
        name = f"{node.output}.apart{index}"
        identity = _per_channel(graph, Node(name=f"{node.name}.apart{index}", input=node.inputs[index], output=name))
        joined = _reading(node, [*node.inputs[:index], name, *node.inputs[index + 1 :]])
        nodes: list[Node] = []
        for other in graph.nodes:
            nodes.extend([identity, joined] if other is node else [other])
        graph = _rebuilt(graph, nodes)
    return graph


def _least(first: float | None, second: float | None) -> float | None:
    limits = [limit for limit in (first, second) if limit is not None]
    return min(limits, default=None)


def fuse_leaky_relu(graph: Graph) -> Graph:
    """Every leaky ReLU part of the convolution before it, or else a layer of its own; it passes max pools and
    upsampling.

    Behind a sum it stays a layer of its own, a 1x1 convolution of each channel with a weight of 1: which multiplier a
    result takes is decided before the sum (numerics 6.1). Behind a ReLU it does nothing.
    """
    while leaky := [node for node in graph.nodes if isinstance(node, LeakyRelu)]:
        node = leaky[0]
        source = graph.producer(node.input)
        slope = np.broadcast_to(node.slope, graph.shapes[node.input][:1])
        if isinstance(source, Relu) or (isinstance(source, Conv | AveragePool) and source.relu):
            graph = _swapped(graph, node, {})
        elif source is None or not _only_reader(graph, node.input):
            graph = _replaced(graph, node, _per_channel(graph, node, slope=slope))
        elif isinstance(source, Conv) and source.residual is None and not source.copy:
            fused = replace(source, slope=slope if source.slope is None else slope * source.slope)
            graph = _swapped(graph, node, {source: fused})
        elif isinstance(source, MaxPool | Upsample):
            graph = _exchanged(graph, source, node)[0]
        else:
            graph = _replaced(graph, node, _per_channel(graph, node, slope=slope))
    return graph


def fuse_relu(graph: Graph) -> Graph:
    """Every ReLU part of the layer before it, or else a layer of its own; it passes max pools and upsampling.

    Only convolutions can take a limit. A layer of its own is a 1x1 convolution of each channel with a weight of 1.
    """
    while rectifiers := [node for node in graph.nodes if isinstance(node, Relu)]:
        node = rectifiers[0]
        source = graph.producer(node.input)
        if source is None or not _only_reader(graph, node.input):
            graph = _replaced(graph, node, _per_channel(graph, node, relu=True, limit=node.limit))
        elif isinstance(source, Conv):
            # Saturation is the limit, and a copy cannot choose where it saturates.
            fused = replace(
                source,
                relu=True,
                limit=_least(node.limit, source.limit),
                slope=None,
                copy=source.copy and node.limit is None,
            )
            graph = _swapped(graph, node, {source: fused})
        elif isinstance(source, AveragePool) and node.limit is None:
            graph = _swapped(graph, node, {source: replace(source, relu=True)})
        elif isinstance(source, MaxPool | Upsample):
            graph = _exchanged(graph, source, node)[0]
        elif isinstance(source, Relu):
            graph = _swapped(graph, node, {source: replace(source, limit=_least(node.limit, source.limit))})
        else:
            graph = _replaced(graph, node, _per_channel(graph, node, relu=True, limit=node.limit))
    return graph


def lower_linear(graph: Graph) -> Graph:
    """Vectors become maps of 1x1, and a linear layer a convolution whose kernel is as large as its map (CHW order).

    Maps of different sizes that are concatenated flat are copied to vectors first: each pixel becomes channels.

    Raises
    ------
    :exc:`~sigbit.graph.ModelError`
        If a flattened map reaches anything but a linear layer or a concatenation.
    """

    def as_map(shape: tuple[int, ...]) -> tuple[int, int, int]:
        return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (shape[0], 1, 1)

    def as_vector(node: Node, index: int, source: str) -> Conv:
        channels, height, width = maps[source]
        area = height * width
        if channels * area**2 > _FLATTENING_WEIGHTS:
            raise ModelError(
                f"{node.label} joins the flattened {channels}x{height}x{width} map {source!r} with values of another "
                f"size; pool it first, or concatenate before flattening"
            )
        return Conv(
            name=f"{node.name}.flat{index}",
            input=source,
            output=f"{node.output}.flat{index}",
            weight=np.tile(np.eye(area), (channels, 1)).reshape(-1, 1, height, width),
            bias=np.zeros(channels * area),
            groups=channels,
            copy=True,
        )

    source_of = {graph.input: graph.input}
    maps = {graph.input: as_map(graph.input_shape)}
    nodes: list[Node] = []
    for node in graph.nodes:
        sources = [source_of[name] for name in node.inputs]
        source = sources[0]
        if isinstance(node, Reshape):
            source_of[node.output] = source
            continue
        flattened = any(
            maps[found] != as_map(graph.shapes[name]) for found, name in zip(sources, node.inputs, strict=True)
        )
        if isinstance(node, Concat):
            if len({maps[found][1:] for found in sources}) > 1:
                flat = [as_vector(node, i, found) for i, found in enumerate(sources)]
                flat = [copy for copy, found in zip(flat, sources, strict=True) if maps[found][1:] != (1, 1)]
                nodes.extend(flat)
                renamed = {copy.input: copy.output for copy in flat}
                sources = [renamed.get(found, found) for found in sources]
                maps.update((copy.output, (copy.weight.shape[0], 1, 1)) for copy in flat)
            nodes.append(_reading(node, sources))
            source_of[node.output] = node.output
            maps[node.output] = (sum(maps[found][0] for found in sources), *maps[sources[0]][1:])
            continue
        alike = isinstance(node, Add | Relu) or (isinstance(node, LeakyRelu) and node.slope.size == 1)
        element_by_element = alike and len({maps[found] for found in sources}) == 1
        if isinstance(node, Linear):
            lowered: Node = Conv(
                name=node.name,
                input=source,
                output=node.output,
                weight=node.weight.reshape(-1, *maps[source]),
                bias=node.bias,
                relu=node.relu,
            )
        elif flattened and not element_by_element:
            raise ModelError(f"{node.label} acts on a flattened map; only linear layers are supported there")
        else:
            lowered = _reading(node, sources)
        nodes.append(lowered)
        source_of[node.output] = node.output
        maps[node.output] = maps[source] if element_by_element else as_map(graph.shapes[node.output])
    for name in graph.outputs:
        if maps[source_of[name]] != as_map(graph.shapes[name]):
            raise ModelError(f"Output {name!r} is a flattened map; end the model in a linear layer, or in the map")
    outputs = tuple(source_of[name] for name in graph.outputs)
    if len(set(outputs)) < len(outputs):
        raise ModelError(f"Some of the outputs {', '.join(graph.outputs)} are the same values; leave all but one out")
    return _rebuilt(graph, nodes, input_shape=maps[graph.input], outputs=outputs)


def leaves_raw(graph: Graph, node: Node) -> bool:
    """Whether the output of a layer is one of the graph that leaves as raw integers; others leave as levels."""
    return (
        isinstance(node, Conv)
        and node.output in graph.outputs
        and not (_is_rectified(node) or node.residual is not None or node.copy or graph.consumers(node.output))
    )


def end_in_convolution(graph: Graph) -> Graph:
    """Averages that nothing but the caller reads become convolutions, whose results can leave as raw integers.

    So does a copy, when it is none any more.

    Raises
    ------
    :exc:`~sigbit.graph.ModelError`
        If an output is the input.
    """
    if graph.input in graph.outputs:
        raise ModelError(f"Output {graph.input!r} of {graph.name!r} is the model's input; leave it out")
    ends: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.output not in graph.outputs or graph.consumers(node.output):
            continue
        if isinstance(node, Conv) and node.copy:
            ends[node] = replace(node, copy=False)
        elif isinstance(node, AveragePool) and not node.relu:
            channels = graph.shapes[node.output][0]
            ends[node] = Conv(
                name=node.name,
                input=node.input,
                output=node.output,
                weight=np.full((channels, 1, *node.kernel), 1 / prod(node.kernel)),
                bias=np.zeros(channels),
                stride=node.stride,
                pads=node.pads,
                groups=channels,
            )
    return _rebuilt(graph, [ends.get(node, node) for node in graph.nodes])


def _renamed_outputs(graph: Graph, names: tuple[str, ...]) -> Graph:
    """``graph`` with outputs of other names."""
    new = dict(zip(graph.outputs, names, strict=True))
    # A tensor that has one of these names and is no output any more takes a free one.
    for name in graph.shapes.keys() & (set(names) - new.keys()):
        new[name] = next(free for i in range(len(new) + 1) if (free := f"{name}.{i}") not in graph.shapes)
    nodes = [
        replace(_reading(node, [new.get(name, name) for name in node.inputs]), output=new.get(node.output, node.output))
        for node in graph.nodes
    ]
    return _rebuilt(graph, nodes, outputs=names)


PASSES: tuple[Callable[[Graph], Graph], ...] = (
    remove_dead_nodes,
    split_behind_concat,
    fold_affine,
    lower_linear,
    merge_copies,
    fuse_add,
    fuse_leaky_relu,
    fuse_relu,
    separate_concat_inputs,
    end_in_convolution,
)


def lower(graph: Graph, check: bool = True, passes: Iterable[Callable[[Graph], Graph]] = PASSES) -> Graph:
    """All passes in order; the result holds only convolutions, pools, concatenations and upsampling of maps.

    Outputs keep their names and their order.

    Parameters
    ----------
    check : bool
        Run the graph before and after every pass in float64 on two seeded random images and compare the outputs.

    Raises
    ------
    :exc:`~sigbit.graph.ModelError`
        If the graph cannot be lowered exactly.
    :exc:`PassError`
        If a pass changed an output by more than :data:`TOLERANCE`.
    """
    images = np.random.default_rng(_SEED).normal(size=(2, *graph.input_shape))
    names = graph.outputs

    def outputs() -> list[np.ndarray]:
        found = run_float(graph, images.reshape(2, *graph.input_shape), dtype=np.float64)
        return list(found.values()) if isinstance(found, dict) else [found]

    expected = outputs() if check else []
    for transform in passes:
        graph = transform(graph)
        for name, wanted, found in zip(names, expected, outputs(), strict=True) if check else ():
            difference = np.abs(found.reshape(wanted.shape) - wanted).max()
            if not difference <= TOLERANCE * max(1.0, np.abs(wanted).max()):
                raise PassError(
                    f"Pass {transform.__name__} changed output {name!r} of {graph.name!r} by {difference:.3g}"
                )
    return _renamed_outputs(graph, names)
