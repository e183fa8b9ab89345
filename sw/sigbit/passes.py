"""Exact rewrites of the float graph, down to convolutions and pools. Every pass must leave the logits as they were."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod

import numpy as np

from .float_model import run_float
from .graph import Add, Affine, AveragePool, Conv, Graph, LeakyRelu, Linear, MaxPool, ModelError, Node, Relu, Reshape

__all__ = [
    "PASSES",
    "PassError",
    "fold_affine",
    "fuse_add",
    "fuse_leaky_relu",
    "fuse_relu",
    "lower",
    "lower_linear",
    "merge_copies",
    "remove_dead_nodes",
]

#: Largest difference of logits that a pass may cause, relative to the largest logit; passes compute in float64.
TOLERANCE = 1e-8

_SEED = 1

#: Channels that an output may have if a layer is added for it.
_MOST_OUTPUTS = 1 << 12


class PassError(RuntimeError):
    """A pass changed what the graph computes: a defect of the pass."""


def _rebuilt(graph: Graph, nodes: Iterable[Node], **changes) -> Graph:
    return replace(graph, nodes=tuple(nodes), **changes)


def _renamed(node: Node, old: str, new: str) -> Node:
    """``node`` reading tensor ``new`` wherever it read ``old``."""
    fields = ("input", "residual") if len(node.inputs) > 1 else ("input",)
    changes = {field: new for field in fields if getattr(node, field) == old}
    return replace(node, **changes) if changes else node


def _swapped(graph: Graph, removed: Node, added: dict[Node, Node]) -> Graph:
    """``graph`` without ``removed``, whose readers now read its input, and with the nodes of ``added`` exchanged."""
    nodes = []
    for node in graph.nodes:
        if node is not removed:
            nodes.append(_renamed(added.get(node, node), removed.output, removed.input))
    return _rebuilt(graph, nodes, output=removed.input if graph.output == removed.output else graph.output)


def _only_reader(graph: Graph, tensor: str) -> bool:
    return len(graph.consumers(tensor)) == 1 and tensor != graph.output


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
    """Without the nodes whose results never reach the output."""
    needed, kept = {graph.output}, []
    for node in reversed(graph.nodes):
        if node.output in needed:
            needed.update(node.inputs)
            kept.append(node)
    return _rebuilt(graph, reversed(kept))


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
    if not (isinstance(node, Conv) and node.copy and not node.relu and node.output != graph.output and readers):
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
    passes = isinstance(source, MaxPool | AveragePool) or (isinstance(source, Conv) and source.copy)
    return source is not None and passes and _non_negative(graph, source.input)


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


def _least(first: float | None, second: float | None) -> float | None:
    limits = [limit for limit in (first, second) if limit is not None]
    return min(limits, default=None)


def fuse_leaky_relu(graph: Graph) -> Graph:
    """Every leaky ReLU part of the convolution before it, or else a layer of its own; it passes max pools.

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
        elif isinstance(source, MaxPool):
            graph = _exchanged(graph, source, node)[0]
        else:
            graph = _replaced(graph, node, _per_channel(graph, node, slope=slope))
    return graph


def fuse_relu(graph: Graph) -> Graph:
    """Every ReLU part of the layer before it, or else a layer of its own; it passes max pools.

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
        elif isinstance(source, MaxPool):
            graph = _exchanged(graph, source, node)[0]
        elif isinstance(source, Relu):
            graph = _swapped(graph, node, {source: replace(source, limit=_least(node.limit, source.limit))})
        else:
            graph = _replaced(graph, node, _per_channel(graph, node, relu=True, limit=node.limit))
    return graph


def lower_linear(graph: Graph) -> Graph:
    """Vectors become maps of 1x1, and a linear layer a convolution whose kernel is as large as its map (CHW order).

    Raises
    ------
    :exc:`~sigbit.graph.ModelError`
        If a flattened map reaches anything but a linear layer.
    """

    def as_map(shape: tuple[int, ...]) -> tuple[int, int, int]:
        return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (shape[0], 1, 1)

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
            lowered = replace(node, **dict(zip(("input", "residual"), sources, strict=False)))
        nodes.append(lowered)
        source_of[node.output] = node.output
        maps[node.output] = maps[source] if element_by_element else as_map(graph.shapes[node.output])
    output = source_of[graph.output]
    if maps[output] != as_map(graph.shapes[graph.output]):
        raise ModelError(f"Output {graph.output!r} is a flattened map; end the model in a linear layer, or in the map")
    return _rebuilt(graph, nodes, input_shape=maps[graph.input], output=output)


def end_in_convolution(graph: Graph) -> Graph:
    """A last layer whose logits can leave as raw integers: a convolution without ReLU.

    A last average pool becomes a convolution with weights ``1 / area``; behind anything else, such as a sum, comes a
    1x1 identity.
    """
    last = graph.producer(graph.output)
    alone = last is not None and len(last.inputs) == 1 and not graph.consumers(graph.output)
    if isinstance(last, Conv) and not _is_rectified(last) and alone:
        return _replaced(graph, last, replace(last, copy=False)) if last.copy else graph
    if any(node.name == "logits" for node in graph.nodes) or "raw_logits" in graph.shapes:
        raise ModelError("A model that ends in a pool or ReLU must not name a node 'logits' or a tensor 'raw_logits'")
    channels = graph.shapes[graph.output][0]
    if channels > _MOST_OUTPUTS:
        raise ModelError(f"Output {graph.output!r} has {channels} channels; at most {_MOST_OUTPUTS}")
    diagonal = np.eye(channels)[:, :, np.newaxis, np.newaxis]
    bias = np.zeros(channels)
    if isinstance(last, AveragePool) and not last.relu and not graph.consumers(graph.output):
        weight = np.tile(diagonal / prod(last.kernel), last.kernel)
        layer = Conv(
            name=last.name,
            input=last.input,
            output=last.output,
            weight=weight,
            bias=bias,
            stride=last.stride,
            pads=last.pads,
        )
        return _rebuilt(graph, [layer if node is last else node for node in graph.nodes])
    layer = Conv(name="logits", input=graph.output, output="raw_logits", weight=diagonal, bias=bias)
    return _rebuilt(graph, [*graph.nodes, layer], output=layer.output)


PASSES: tuple[Callable[[Graph], Graph], ...] = (
    remove_dead_nodes,
    fold_affine,
    lower_linear,
    merge_copies,
    fuse_add,
    fuse_leaky_relu,
    fuse_relu,
    end_in_convolution,
)


def lower(graph: Graph, check: bool = True, passes: Iterable[Callable[[Graph], Graph]] = PASSES) -> Graph:
    """All passes in order; the result holds only :class:`~sigbit.graph.Conv`, ``MaxPool`` and ``AveragePool`` on maps.

    Parameters
    ----------
    check : bool
        Run the graph before and after every pass in float64 on two seeded random images and compare the logits.

    Raises
    ------
    :exc:`~sigbit.graph.ModelError`
        If the graph cannot be lowered exactly.
    :exc:`PassError`
        If a pass changed the logits by more than :data:`TOLERANCE`.
    """
    images = np.random.default_rng(_SEED).normal(size=(2, *graph.input_shape))
    expected = run_float(graph, images, dtype=np.float64) if check else None
    for transform in passes:
        graph = transform(graph)
        if expected is None:
            continue
        found = run_float(graph, images.reshape(2, *graph.input_shape), dtype=np.float64).reshape(expected.shape)
        difference = np.abs(found - expected).max()
        if not difference <= TOLERANCE * max(1.0, np.abs(expected).max()):
            raise PassError(f"Pass {transform.__name__} changed the logits of {graph.name!r} by {difference:.3g}")
    return graph
