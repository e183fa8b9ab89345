"""Mixed formats: which layer gets which, from measured sensitivities, under a budget of what the hardware takes.

Every choice for every layer is tried alone in the float model: the weights of one layer, or the tensor that it writes,
take their levels, and the Kullback-Leibler divergence of the network's outputs says what that costs (as in ZeroQ, Cai
et al., CVPR 2020). Sums of these rank assignments, as in HAWQ-V3 (Yao et al., ICML 2021). From the least sensitive
formats on, the change that costs least divergence per saved share of cycles and weight bytes comes next (marginal
analysis), which gives one assignment after the other. Some of these are then quantized for real: their divergence and
accuracy are those of the golden integer model, their cycles those of the cycle model for the compiled program.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from sigbit_hw.spec.config import AcceleratorConfig
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import INT, Format, FormatError
from sigbit_sim.golden import network as golden
from sigbit_sim.golden.network import IntegerNetwork
from sigbit_sim.golden.numerics import project

from .adaptation import unit_window
from .codebooks import fit_weights, search_codebook
from .evaluation import accuracy
from .float_model import evaluate_node, run_float
from .graph import Conv, Graph, MaxPool
from .lowering import CompileError, stored_weight_parts
from .model_reader import Model, read_model
from .passes import keeps_levels, leaves_raw, lower
from .performance import report
from .quantize import input_levels, level_groups, quantize, signed_groups
from .scales import unit_mse

__all__ = ["Budget", "Point", "SearchError", "SearchResult", "divergence", "draw", "pareto", "search", "sensitivities"]


class SearchError(SigbitError):
    """Formats that no layer can have, or a budget that no assignment keeps."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What an assignment may take at most; None is no limit.

    Attributes
    ----------
    cycles : float
        Per image, predicted.
    weight_bytes : float
        Of the weight memory.
    luts : float
        Of the whole accelerator, predicted (:mod:`sigbit_sim.ledger`).
    loss : float
        Accuracy lost against float, in points, on the validation images.
    """

    cycles: float | None = None
    weight_bytes: float | None = None
    luts: float | None = None
    loss: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Point:
    """One assignment, quantized and measured.

    Attributes
    ----------
    weight_format, activation_format : str
        Native formats of the accelerator.
    layers : dict
        As ``layers`` of :func:`~sigbit.quantize.quantize` takes them.
    predicted_divergence, divergence : float
        Sum of single sensitivities, and of the integer network on the validation images.
    accuracy : float or None
        Of the golden model on the validation images.
    cycles, weight_bytes : int
    luts : int
    network : IntegerNetwork
    """

    weight_format: str
    activation_format: str
    layers: dict[str, dict[str, str]]
    predicted_divergence: float
    divergence: float
    accuracy: float | None
    cycles: int
    weight_bytes: int
    luts: int
    network: IntegerNetwork = field(repr=False)


@dataclass(frozen=True, eq=False)
class SearchResult:
    """All measured points, by cycles, the accuracy in float and the point that keeps the budget best (or None)."""

    points: tuple[Point, ...]
    float_accuracy: float | None
    best: Point | None


def _log_softmax(values: np.ndarray) -> np.ndarray:
    values = values.reshape(len(values), -1).astype(np.float64)
    values = values - values.max(axis=1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def divergence(wanted: np.ndarray, found: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of the softmax of ``found`` from that of ``wanted``, in nats."""
    p, q = _log_softmax(wanted), _log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _changed_output(graph: Graph, tensors: Mapping[str, np.ndarray], changed: dict[str, np.ndarray]) -> np.ndarray:
    """The first output when some tensors have other values; only what depends on them is computed."""
    for node in graph.nodes:
        if node.output not in changed and any(name in changed for name in node.inputs):
            changed[node.output] = evaluate_node(node, *(changed.get(name, tensors[name]) for name in node.inputs))
    return changed.get(graph.output, tensors[graph.output])


def _unit(values: np.ndarray, format: Format, channel_axis: int | None = None) -> Any:
    """The unit of least squared error, a power of two for AUSN."""
    return (unit_window if format.ausn else unit_mse)(values, format, channel_axis)


def _quantized_weights(values: np.ndarray, format: Format) -> np.ndarray:
    if format.searched:
        format, units, _ = fit_weights(values, format)
        units = np.where(units > 0, units, 1.0)
    else:
        units = np.asarray(_unit(values, format, channel_axis=0))
    units = units.reshape(-1, *[1] * (values.ndim - 1))
    return project(values / units, format) * units


def _quantized_activations(values: np.ndarray, format: Format) -> np.ndarray:
    if format.searched:
        found = search_codebook(values, format, zero=True)
        format, unit = found.format, found.unit
    else:
        unit = _unit(values, format)
    return project(values / unit, format) * unit


def _with_levels(format: Format) -> Format:
    """A format, or one with as many levels up to the same largest one if its levels are not known yet."""
    if not format.searched:
        return format
    low, high = format.level_range
    levels = np.linspace(low, high, format.level_count).round().astype(int)
    levels[np.abs(levels).argmin()] = 0
    return replace(format, codebook=tuple(levels.tolist()))


def sensitivities(
    graph: Graph,
    images: np.ndarray,
    weights: Mapping[str, Sequence[Format]],
    activations: Mapping[str, Sequence[Format]],
    progress: Callable = lambda *arguments: None,
) -> dict[tuple[str, str, Format], float]:
    """Divergence that one choice alone causes, by layer, ``"weights"`` or ``"activations"``, and format.

    Parameters
    ----------
    graph : Graph
        Lowered.
    weights, activations : mapping
        Layer -> formats to try.
    """
    tensors = {graph.input: images.astype(np.float32)}
    for node in graph.nodes:
        tensors[node.output] = evaluate_node(node, *(tensors[name] for name in node.inputs))
    wanted, found = tensors[graph.output], {}
    total = sum(map(len, weights.values())) + sum(map(len, activations.values()))
    for node in graph.nodes:
        for format in weights.get(node.name, ()):
            assert isinstance(node, Conv)
            other = replace(node, weight=_quantized_weights(node.weight, format))
            changed = {node.output: evaluate_node(other, *(tensors[name] for name in node.inputs))}
            found[node.name, "weights", format] = divergence(wanted, _changed_output(graph, tensors, changed))
            progress("sensitivities", len(found), total)
        for format in activations.get(node.name, ()):
            values = _quantized_activations(tensors[node.output], format).astype(np.float32)
            output = _changed_output(graph, tensors, {node.output: values})
            found[node.name, "activations", format] = divergence(wanted, output)
            progress("sensitivities", len(found), total)
    return found


@dataclass(frozen=True, eq=False)
class _Choices:
    """What may be chosen on one accelerator, and what it costs there.

    Attributes
    ----------
    formats : dict
        ``(layer, "weights" or "activations")`` -> formats.
    reads : dict
        Layer -> the layer whose activations it reads, if these are chosen.
    cycles, weight_bytes : dict
        ``(weights, activations)`` of all layers -> by layer.
    rest : tuple
        Weights and activations of a layer that has no choice.
    """

    formats: dict[tuple[str, str], tuple[Format, ...]]
    reads: dict[str, str]
    cycles: dict[tuple[Format, Format], dict[str, int]]
    weight_bytes: dict[tuple[Format, Format], dict[str, int]]
    rest: tuple[Format, Format]

    def cost(self, state: Mapping[tuple[str, str], Format], layer: str) -> tuple[int, int]:
        """Cycles and bytes of weights of one layer."""
        read = self.reads.get(layer)
        weights = state.get((layer, "weights"), self.rest[0])
        pair = weights, self.rest[1] if read is None else state[read, "activations"]
        return self.cycles[pair][layer], self.weight_bytes[pair][layer]


def _runnable(
    config: AcceleratorConfig, weights: Sequence[Format], activations: Sequence[Format]
) -> tuple[tuple[Format, ...], tuple[Format, ...]]:
    """What an accelerator stores of these activations, and what it multiplies with all of those."""

    def stores(format: Format) -> bool:
        try:
            parts = config.activation_parts(_with_levels(format))
        except FormatError:
            return False
        # Whose levels are no codes of the array are found by thresholds.
        return not format.indexed or bool(parts.levels) or format.level_count <= config.threshold_count + 1

    def multiplies(format: Format) -> bool:
        # Level tables take a codebook as it is; elsewhere any integer of its bits can be one of its levels.
        levels = INT(max(format.level_bits, 2)) if format.searched and not config.level_tables else _with_levels(format)
        try:
            for source in stored:
                stored_weight_parts(levels, _with_levels(source), config)
        except FormatError:
            return False
        return True

    stored = tuple(filter(stores, activations))
    return tuple(filter(multiplies, weights)), stored


def _choosable(graph: Graph, edge_bits: int | None, signed_input: bool) -> tuple[list[str], dict[str, str]]:
    """Layers whose weights are chosen, and tensor -> the only layer that writes it with a format that is chosen."""
    convolutions = [node for node in graph.nodes if isinstance(node, Conv) and not node.copy]
    edges = [convolutions[0], *(node for node in convolutions if leaves_raw(graph, node))]
    layers = [node.name for node in convolutions if edge_bits is None or node not in edges]
    group = level_groups(graph)
    fixed = set(signed_groups(graph, signed_input, group)) | {group[graph.input]}
    fixed |= {group[name] for name in graph.outputs}
    if edge_bits is not None:
        fixed |= {group[node.input] for node in edges[1:]}
    writers: dict[str, list[str]] = {}
    for node in graph.nodes:
        if not keeps_levels(node):
            writers.setdefault(group[node.output], []).append(node.name)
    alone = {own: names[0] for own, names in writers.items() if len(names) == 1 and own not in fixed}
    return layers, {name: alone[own] for name, own in group.items() if own in alone}


def _choices(
    graph: Graph,
    images: np.ndarray,
    config: AcceleratorConfig,
    weights: Sequence[Format],
    activations: Sequence[Format],
    edge_bits: int | None,
    progress: Callable,
) -> _Choices:
    usable, stored = _runnable(config, weights, activations)
    if not usable or not stored:
        what = ", ".join(map(str, activations if usable else weights))
        raise SearchError(f"None of {what} runs on an array of {config.weight_format} x {config.activation_format}")
    layers, writers = _choosable(graph, edge_bits, bool(images.min() < 0))
    formats: dict[tuple[str, str], tuple[Format, ...]] = {(layer, "weights"): usable for layer in layers}
    formats |= {(layer, "activations"): stored for layer in writers.values()}
    # The pooling unit compares single native codes.
    group = level_groups(graph)
    pooled = {group[node.output] for node in graph.nodes if isinstance(node, MaxPool)}
    single = tuple(format for format in stored if config.activation_parts(_with_levels(format)).count == 1)
    own = {}
    for name, layer in writers.items():
        if group[name] in pooled:
            formats[layer, "activations"] = single
            own[layer] = {"activations": single[0]}
    reads = {node.name: writers[node.input] for node in graph.nodes if node.input in writers}
    cycles: dict[tuple[Format, Format], dict[str, int]] = {}
    weight_bytes: dict[tuple[Format, Format], dict[str, int]] = {}
    for first in usable:
        for second in stored:
            progress(f"cycles of {first} x {second} on {config.weight_format} x {config.activation_format}")
            network = quantize(graph, images[:4], first, second, edge_bits, bias_correction=False, layers=own)
            try:
                rows = report(network, config)["layers"]
            except CompileError as error:
                raise SearchError(
                    f"With {first} x {second} in all layers the network does not run on {config.weight_format} x "
                    f"{config.activation_format}: {error}"
                ) from error
            cycles[first, second] = {row["name"]: row["predicted"]["total"] for row in rows}
            weight_bytes[first, second] = {row["name"]: row["weight_bytes"] for row in rows}
    return _Choices(formats, reads, cycles, weight_bytes, (usable[0], stored[0]))


def _path(
    choices: _Choices, losses: Mapping[tuple[str, str, Format], float], shares: tuple[float, float]
) -> list[dict[tuple[str, str], Format]]:
    """Assignments from the least sensitive formats to the cheapest, one change after the other."""
    state = {}
    for key, formats in choices.formats.items():
        state[key] = formats[int(np.argmin([losses[(*key, format)] for format in formats]))]
    readers: dict[str, list[str]] = {}
    for reader, layer in choices.reads.items():
        readers.setdefault(layer, []).append(reader)
    names = list(next(iter(choices.cycles.values())))
    totals = [max(1, sum(choices.cost(state, name)[i] for name in names)) for i in (0, 1)]
    path = [dict(state)]
    while True:
        best = None
        for key, formats in choices.formats.items():
            layer, what = key
            touched = [layer] if what == "weights" else readers.get(layer, [])
            before = [choices.cost(state, name) for name in touched]
            for format in formats:
                other = {**state, key: format}
                after = [choices.cost(other, name) for name in touched]
                saved = sum(
                    share * (sum(old[i] for old in before) - sum(new[i] for new in after)) / totals[i]
                    for i, share in enumerate(shares)
                )
                if saved > 0:
                    price = (losses[(*key, format)] - losses[(*key, state[key])]) / saved
                    if best is None or price < best[0]:
                        best = (price, key, format)
        if best is None:
            return path
        state[best[1]] = best[2]
        path.append(dict(state))


def _described(state: Mapping[tuple[str, str], Format]) -> dict[str, dict[str, str]]:
    layers: dict[str, dict[str, str]] = {}
    for (layer, what), format in state.items():
        layers.setdefault(layer, {})[what] = str(format)
    return layers


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in cycles, weight bytes, LUTs and divergence at once."""

    def figures(point):
        return point.cycles, point.weight_bytes, point.luts, point.divergence

    def beaten(point):
        own = figures(point)
        others = (figures(other) for other in points)
        return any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in others)

    return [point for point in points if not beaten(point)]


def search(
    model: Model,
    calibration: np.ndarray,
    configs: Sequence[AcceleratorConfig],
    *,
    weights: Sequence[Format | str],
    activations: Sequence[Format | str] = ("uint:8",),
    edge_bits: int | None = 8,
    budget: Budget | None = None,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    images: int = 64,
    points: int = 6,
    progress: Callable = lambda *arguments: None,
    **options: Any,
) -> SearchResult:
    """Search formats of single layers, and measure some assignments from accurate to cheap.

    Parameters
    ----------
    model : Model
    calibration : float array
        Images for units and sensitivities.
    configs : sequence of AcceleratorConfig
        Accelerators to choose from, such as one preset with several pairs of native formats.
    weights, activations : sequences of Format or str
        To choose from beside the native ones; what an accelerator cannot run is left out there.
    edge_bits : int or None
        As in :func:`~sigbit.quantize.quantize`; with it the first and last layers are not searched.
    budget : Budget, optional
    validation : (images, labels), optional
        By which points are measured; the calibration images, without accuracy, if left out.
    images : int
        Calibration images by which sensitivities are measured.
    points : int
        Assignments that are measured on every accelerator.
    options
        Further options of :func:`~sigbit.quantize.quantize` for the measured points.

    Raises
    ------
    :exc:`~sigbit_hw.spec.errors.SigbitError`
        If nothing can be chosen, or an option does not fit.
    """
    from sigbit_sim.ledger import ledger

    budget = budget or Budget()
    if not configs:
        raise SearchError("A search needs at least one accelerator configuration")
    if points < 2:
        raise SearchError(f"points must be at least 2, not {points!r}")
    if budget.loss is not None and validation is None:
        raise SearchError("A limit of lost accuracy needs images and labels to measure it on")
    graph = lower(read_model(model, calibration))
    calibration = graph.check_images(np.asarray(calibration))
    chosen = {
        config: (_formats(weights, config.weight_format), _formats(activations, config.activation_format))
        for config in configs
    }
    layers, writers = _choosable(graph, edge_bits, bool(calibration.min() < 0))
    every = [tuple(dict.fromkeys(format for pair in chosen.values() for format in pair[i])) for i in (0, 1)]
    losses = sensitivities(
        graph,
        calibration[:images],
        dict.fromkeys(layers, every[0]),
        dict.fromkeys(writers.values(), every[1]),
        progress,
    )
    measured_on = calibration[: max(images, 1)] if validation is None else validation[0]
    wanted = _first(run_float(graph, measured_on))
    float_accuracy = None if validation is None else accuracy(wanted, validation[1])
    shares = (1.0, 1.0) if (budget.cycles is None) == (budget.weight_bytes is None) else (
        (1.0, 0.0) if budget.weight_bytes is None else (0.0, 1.0)
    )  # fmt: skip
    found: list[Point] = []
    every_choice = {
        config: _choices(graph, calibration, config, *formats, edge_bits, progress)
        for config, formats in chosen.items()
    }
    for config, choices in every_choice.items():
        resources = ledger(config)
        path = _path(choices, losses, shares)
        costs = [_predicted(choices, state) for state in path]
        for index in _spread(costs, points, budget):
            state = path[index]
            progress(f"measuring point {index + 1} of {len(path)}")
            network = quantize(
                graph, calibration, choices.rest[0], choices.rest[1], edge_bits, layers=_described(state), **options
            )
            total = report(network, config)["total"]
            output = golden.run(network, input_levels(network, measured_on))
            real = _first(output) * network.tensors[network.outputs[0]].unit
            found.append(
                Point(
                    weight_format=str(config.weight_format),
                    activation_format=str(config.activation_format),
                    layers=_described(state),
                    predicted_divergence=sum(losses[(*key, format)] for key, format in state.items()),
                    divergence=divergence(wanted, real),
                    accuracy=None if validation is None else accuracy(real, validation[1]),
                    cycles=round(total["cycles_per_image"]),
                    weight_bytes=total["weight_bytes"],
                    luts=resources["lut"],
                    network=network,
                )
            )
    found.sort(key=lambda point: point.cycles)
    return SearchResult(tuple(found), float_accuracy, _best(found, budget, float_accuracy))


def _formats(given: Sequence[Format | str], native: Format) -> tuple[Format, ...]:
    parsed = (format if isinstance(format, Format) else Format.parse(format) for format in given)
    return tuple(dict.fromkeys((native, *parsed)))


def _first(outputs):
    return next(iter(outputs.values())) if isinstance(outputs, dict) else outputs


def _predicted(choices: _Choices, state: Mapping[tuple[str, str], Format]) -> tuple[int, int]:
    names = next(iter(choices.cycles.values()))
    costs = [choices.cost(state, name) for name in names]
    return sum(cost[0] for cost in costs), sum(cost[1] for cost in costs)


def _spread(costs: Sequence[tuple[int, int]], points: int, budget: Budget) -> list[int]:
    """Places of a path to measure: evenly by cycles and bytes, both ends, and the first that should keep the budget."""
    sums = np.array([cycles / costs[0][0] + size / max(1, costs[0][1]) for cycles, size in costs])
    wanted = np.linspace(sums[0], sums[-1], points)
    chosen = {int(np.abs(sums - value).argmin()) for value in wanted}
    for index, (cycles, size) in enumerate(costs):
        if cycles <= (budget.cycles or np.inf) and size <= (budget.weight_bytes or np.inf):
            # The prediction of a whole is not exact, so a cheaper one is measured, too.
            chosen |= {index, min(index + max(1, len(costs) // 20), len(costs) - 1)}
            break
    return sorted(chosen)


def _best(points: Sequence[Point], budget: Budget, float_accuracy: float | None) -> Point | None:
    def within(value, limit):
        return limit is None or (value is not None and value <= limit)

    kept = [
        point
        for point in points
        if within(point.cycles, budget.cycles)
        and within(point.weight_bytes, budget.weight_bytes)
        and within(point.luts, budget.luts)
        and within(100 * ((float_accuracy or 0) - (point.accuracy or 0)), budget.loss)
    ]
    if not kept:
        return None
    if budget.loss is not None:
        return min(kept, key=lambda point: (point.cycles, point.weight_bytes, point.divergence))
    return min(kept, key=lambda point: (point.divergence, point.cycles))


def draw(result: SearchResult, path: str | Path) -> None:
    """Picture of all points, cycles against divergence; those that no other beats in these two are joined.

    Raises
    ------
    :exc:`SearchError`
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SearchError("A picture needs matplotlib; install it with: pip install 'sigbit[plot]'") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    front: list[Point] = []
    for point in sorted(result.points, key=lambda point: (point.cycles, point.divergence)):
        if not front or point.divergence < front[-1].divergence:
            front.append(point)
    for pair in dict.fromkeys((point.weight_format, point.activation_format) for point in result.points):
        own = [point for point in result.points if (point.weight_format, point.activation_format) == pair]
        axes.scatter([point.cycles for point in own], [point.divergence for point in own], label=" x ".join(pair))
    for point in result.points:
        if point.accuracy is not None:
            text = f"{100 * point.accuracy:.1f} %"
            axes.annotate(text, (point.cycles, point.divergence), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.plot([point.cycles for point in front], [point.divergence for point in front], color="grey", linewidth=1)
    axes.set(xlabel="cycles per image", ylabel="divergence from float (nats)", yscale="log", xscale="log")
    axes.grid(True, alpha=0.3)
    axes.legend(title="accelerator")
    figure.savefig(path)
