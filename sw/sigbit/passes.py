"""Exact rewrites of the float graph, down to convolutions and pools. Every pass must leave the logits as they were."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod

import numpy as np

from .float_model import run_float
from .graph import Affine, AveragePool, Conv, Graph, Linear, MaxPool, ModelError, Node, Relu, Reshape

__all__ = ["PASSES", "PassError", "fold_affine", "fuse_relu", "lower", "lower_linear", "remove_dead_nodes"]

#: Largest difference of logits that a pass may cause, relative to the largest logit; passes compute in float64.
TOLERANCE = 1e-8

_SEED = 1


class PassError(RuntimeError):
    """A pass changed what the graph computes: a defect of the pass."""


def _rebuilt(graph: Graph, nodes: Iterable[Node], **changes) -> Graph:
    return replace(graph, nodes=tuple(nodes), **changes)


def _swapped(graph: Graph, removed: Node, added: dict[Node, Node]) -> Graph:
    """``graph`` without ``removed``, whose readers now read its input, and with the nodes of ``added`` exchanged."""
    nodes = []
    for node in graph.nodes:
        if node is not removed:
            node = added.get(node, node)
            nodes.append(replace(node, input=removed.input) if node.input == removed.output else node)
    return _rebuilt(graph, nodes, output=removed.input if graph.output == removed.output else graph.output)


def _only_reader(graph: Graph, tensor: str) -> bool:
    return len(graph.consumers(tensor)) == 1 and tensor != graph.output


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
            needed.add(node.input)
            kept.append(node)
    return _rebuilt(graph, reversed(kept))


def _affine_before(graph: Graph, node: Affine) -> tuple[Graph, Node | None] | None:
    """One step of an affine node backwards: moved (the node is returned), folded (None instead), or not possible."""
    source = graph.producer(node.input)
    if source is None or not _only_reader(graph, node.input):
        return None
    if isinstance(source, Conv | Linear) and not source.relu:
        column = (-1,) + (1,) * (source.weight.ndim - 1)
        folded = replace(
            source, weight=source.weight * node.gain.reshape(column), bias=source.bias * node.gain + node.shift
        )
        return _swapped(graph, node, {source: folded}), None
    if isinstance(source, Affine):
        merged = replace(source, gain=source.gain * node.gain, shift=source.shift * node.gain + node.shift)
        return _swapped(graph, node, {source: merged}), None
    commutes = (
        (isinstance(source, MaxPool) and (node.gain > 0).all())
        or (isinstance(source, AveragePool) and not source.relu and (not any(source.pads) or not node.shift.any()))
        or (isinstance(source, Reshape) and graph.shapes[source.input][0] == source.shape[0])
    )
    return _exchanged(graph, source, node)[:2] if commutes else None


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
    if isinstance(target, Linear) or (isinstance(target, Conv) and (not any(target.pads) or not node.shift.any())):
        row = (1, -1) + (1,) * (target.weight.ndim - 2)
        shift = (target.weight * node.shift.reshape(row)).reshape(len(target.weight), -1).sum(1)
        folded = replace(target, weight=target.weight * node.gain.reshape(row), bias=target.bias + shift)
        return _swapped(graph, node, {target: folded}), None
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
    a shift, because padding is 0 behind the affine node, not before it.

    Raises
    ------
    :exc:`~sigbit.graph.ModelError`
        If neither is exact.
    """
    while affine := [node for node in graph.nodes if isinstance(node, Affine)]:
        for node in affine:
            folded = _fold_towards(graph, node, _affine_before) or _fold_towards(graph, node, _affine_after)
            if folded is not None:
                graph = folded
                break
        else:
            raise ModelError(
                "Cannot fold "
                + ", ".join(node.label for node in affine)
                + " exactly: it follows no convolution or linear layer directly or through a pool, and the layer "
                "behind it has padding or does not exist. Place batch normalization directly behind a convolution"
            )
    return graph


def fuse_relu(graph: Graph) -> Graph:
    """Every ReLU part of the convolution, linear layer or average pool before it; it passes max pools and reshapes.

    Raises
    ------
    :exc:`~sigbit.graph.ModelError`
        If a ReLU has no such layer before it.
    """
    while rectifiers := [node for node in graph.nodes if isinstance(node, Relu)]:
        node = rectifiers[0]
        source = graph.producer(node.input)
        if source is None:
            raise ModelError(f"{node.label} acts on the model's input; apply it to the images and cut it off")
        if not _only_reader(graph, node.input):
            raise ModelError(f"{node.label}: other nodes read its input {node.input!r}, too; supported are chains")
        if isinstance(source, Conv | Linear | AveragePool):
            graph = _swapped(graph, node, {source: replace(source, relu=True)})
        else:
            graph = _exchanged(graph, source, node)[0]
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
        source = source_of[node.input]
        if isinstance(node, Reshape):
            source_of[node.output] = source
            continue
        flattened = maps[source] != as_map(graph.shapes[node.input])
        if isinstance(node, Linear):
            lowered: Node = Conv(
                name=node.name,
                input=source,
                output=node.output,
                weight=node.weight.reshape(-1, *maps[source]),
                bias=node.bias,
                relu=node.relu,
            )
        elif flattened:
            raise ModelError(f"{node.label} acts on a flattened map; only linear layers are supported there")
        else:
            lowered = replace(node, input=source)
        nodes.append(lowered)
        source_of[node.output] = node.output
        maps[node.output] = as_map(graph.shapes[node.output])
    output = source_of[graph.output]
    if maps[output] != as_map(graph.shapes[graph.output]):
        raise ModelError(f"Output {graph.output!r} is a flattened map; end the model in a linear layer, or in the map")
    return _rebuilt(graph, nodes, input_shape=maps[graph.input], output=output)


def end_in_convolution(graph: Graph) -> Graph:
    """A last layer whose logits can leave as raw integers: a convolution without ReLU.

    A last average pool becomes a convolution with weights ``1 / area``; behind anything else comes a 1x1 identity.
    """
    last = graph.producer(graph.output)
    if isinstance(last, Conv) and not last.relu:
        return graph
    if any(node.name == "logits" for node in graph.nodes) or "raw_logits" in graph.shapes:
        raise ModelError("A model that ends in a pool or ReLU must not name a node 'logits' or a tensor 'raw_logits'")
    channels = graph.shapes[graph.output][0]
    diagonal = np.eye(channels)[:, :, np.newaxis, np.newaxis]
    bias = np.zeros(channels)
    if isinstance(last, AveragePool) and not last.relu:
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
    fuse_relu,
    lower_linear,
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
