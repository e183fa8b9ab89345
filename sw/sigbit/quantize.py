"""Post-training quantization: a float graph and calibration images become an :class:`IntegerNetwork`.

Scale search, requantizer constants and layer rules follow ``docs/numerics.md``. The bias correction is our definition:
after the weights of a layer are quantized, its bias restores the float mean of every channel on the calibration images.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import INT, UINT, Format, FormatError
from sigbit_sim.golden import network as golden
from sigbit_sim.golden.network import IntegerNetwork, Tensor
from sigbit_sim.golden.numerics import project

from .adaptation import MODES, Adaptive, adapt, unit_window
from .codebooks import fit_weights, project_weights, search_codebook
from .float_model import channel_sums, evaluate_node, run_float, window_means
from .graph import AveragePool, Concat, Conv, Graph, MaxPool, Node, Upsample
from .model_reader import Model, read_model
from .passes import keeps_levels, leaves_raw, lower
from .reconstruction import activation_unit, equalized, output_units, reconstruct, statistics
from .scales import requantizer_constants, unit_dda, unit_max, unit_mse, unit_percentile

__all__ = ["ALPHA_MODES", "ROUNDINGS", "QuantizationError", "input_levels", "quantize", "summary"]

#: Rules for units, by the name of ``alpha_mode``; ``output`` starts from the least squared error.
ALPHA_MODES: dict[str, Callable] = {
    "mse": unit_mse,
    "dda": unit_dda,
    "max": unit_max,
    "percentile": unit_percentile,
    "output": unit_mse,
    "window": unit_window,
}
#: How weights become levels.
ROUNDINGS = ("nearest", "reconstruct")

#: Values of a tensor that are searched one by one; larger tensors are searched as a histogram.
_DIRECT_VALUES = 1 << 20
_HISTOGRAM_BINS = 1 << 14

#: Images of a summary whose tensors are all held at once.
_SUMMARY_IMAGES = 16

#: Biases leave this much room below 2**31, and the gain of a requantizer is never below 2**-32: a channel with weights
#: so small that it would break either gets a larger unit. Its products then contribute at most half an output level.
#: With a residual, the gain is not below 2**-20 of the residual's, because both share one shift and M1 has 24 bits.
_BIAS_LIMIT = 1 << 29
_GAIN_MIN = 2.0**-32
_GAIN_TO_RESIDUAL_MIN = 2.0**-20


class QuantizationError(SigbitError):
    """Formats, options or calibration data that a model cannot be quantized with."""


@dataclass(frozen=True)
class _Options:
    weights: Format | Adaptive
    activations: Format | Adaptive
    signed_activations: Format | Adaptive
    edge_bits: int | None
    input_format: Format
    per_channel: bool
    unit: Callable
    output_error: bool
    rounding: str
    bias_correction: bool
    codebooks: str
    zero_level: bool
    symmetric_levels: bool
    adaptation: str


def _format(value: Format | Adaptive | str, what: str) -> Any:
    if isinstance(value, Format | Adaptive):
        return value
    if isinstance(value, str):
        return Adaptive.parse(value, signed=what == "weights") if value.startswith("auto") else Format.parse(value)
    raise QuantizationError(f"{what} must be a format or its name, such as 'esb:4,2', not {value!r}")


def _options(
    images: np.ndarray,
    weights: Format | str,
    activations: Format | str,
    signed_activations: Format | str,
    edge_bits: int | None,
    input_format: Format | str | None,
    per_channel: bool,
    alpha_mode: str | None,
    rounding: str,
    bias_correction: bool,
    codebooks: str,
    zero_level: bool,
    symmetric_levels: bool,
    adaptation: str,
    layers: Mapping,
) -> _Options:
    if adaptation not in MODES:
        raise QuantizationError(f"adaptation must be {', '.join(MODES)}, not {adaptation!r}")
    if codebooks not in ("layer", "channel"):
        raise QuantizationError(f"codebooks must be layer or channel, not {codebooks!r}")
    if codebooks == "channel" and (rounding == "reconstruct" or alpha_mode == "output"):
        raise QuantizationError(
            "codebooks of channels are fitted to weights alone; leave out rounding reconstruct and alpha_mode output"
        )
    weight_format = _format(weights, "weights")
    if not weight_format.signed:
        raise QuantizationError(
            f"weights must have a signed format (int, esb, ausn-a, ausn-g or nuuq), not {weight_format}"
        )
    if (weight_format.indexed or _format(activations, "activations").indexed) and alpha_mode == "dda":
        raise QuantizationError("alpha_mode dda has no scale for codebooks (nuuq, nuuqu); choose mse or max")
    signed_format = _format(signed_activations, "signed_activations")
    if isinstance(signed_format, Adaptive):
        signed_format = replace(signed_format, signed=True)
    if not signed_format.signed:
        raise QuantizationError(
            f"signed_activations must be a signed format (int, esb, ausn-a or ausn-g), not {signed_format}"
        )
    if edge_bits is not None and (not isinstance(edge_bits, int) or not 2 <= edge_bits <= 8):
        raise QuantizationError(f"edge_bits must be None or 2 to 8, not {edge_bits!r}")
    if alpha_mode is None:
        chosen_formats = [weight_format, _format(activations, "activations"), signed_format]
        chosen_names = [
            str(value) for given in layers.values() if isinstance(given, Mapping) for value in given.values()
        ]
        powers = any(format.ausn for format in chosen_formats)
        powers |= any(name.startswith(("auto", "ausn")) for name in chosen_names)
        alpha_mode = "window" if powers else "mse"
    if alpha_mode not in ALPHA_MODES:
        raise QuantizationError(f"alpha_mode must be {', '.join(ALPHA_MODES)}, not {alpha_mode!r}")
    if rounding not in ROUNDINGS:
        raise QuantizationError(f"rounding must be {' or '.join(ROUNDINGS)}, not {rounding!r}")
    lowest = float(images.min())
    automatic = INT(8) if lowest < 0 else UINT(8)
    chosen = automatic if input_format is None else _format(input_format, "input_format")
    if not chosen.signed and lowest < 0:
        raise QuantizationError(
            f"input_format {chosen} is unsigned, but calibration images reach {lowest:.4g}; use int:8, or leave it out"
        )
    return _Options(
        weight_format,
        _format(activations, "activations"),
        signed_format,
        edge_bits,
        chosen,
        per_channel,
        ALPHA_MODES[alpha_mode],
        alpha_mode == "output",
        rounding,
        bias_correction,
        codebooks,
        zero_level,
        symmetric_levels,
        adaptation,
    )


def _as_maps(graph: Graph, images: np.ndarray) -> np.ndarray:
    """Images as ``(n, channels, height, width)`` for a lowered graph; vectors become maps of 1x1."""
    images = np.asarray(images)
    if images.ndim == 2 and graph.input_shape[1:] == (1, 1):
        images = images[:, :, np.newaxis, np.newaxis]
    return graph.check_images(images)


def level_groups(graph: Graph) -> dict[str, str]:
    """Tensor -> one of the tensors that have the same format and the same unit, because levels move between them."""
    group = {graph.input: graph.input}
    for node in graph.nodes:
        group[node.output] = node.output
        if keeps_levels(node):
            joined = {group[name] for name in node.inputs}
            first = group[node.input]
            group = {name: first if own in joined else own for name, own in group.items()}
            group[node.output] = first
    return group


def signed_groups(graph: Graph, signed_input: bool, group: dict[str, str]) -> set[str]:
    """Groups with a tensor that can be negative: anything but what a ReLU makes, and averages of such tensors."""
    non_negative = {graph.input: not signed_input}
    for node in graph.nodes:
        if keeps_levels(node):
            non_negative[node.output] = all(non_negative[name] for name in node.inputs) or getattr(node, "relu", False)
            continue
        rectified = isinstance(node, Conv | AveragePool) and node.relu
        averaged = isinstance(node, AveragePool) or _is_identity(node)
        non_negative[node.output] = rectified or (averaged and non_negative[node.input])
    return {group[name] for name, positive in non_negative.items() if not positive}


def _layer_formats(
    graph: Graph, options: _Options, layers: Mapping, group: dict[str, str]
) -> dict[Node, dict[str, Format]]:
    """What ``layers`` of :func:`quantize` says, checked; everything wrong is reported at once."""
    named = {node.name: node for node in graph.nodes}
    signed = signed_groups(graph, options.input_format.signed, group)
    chosen: dict[str, tuple[str, Format]] = {}
    found: dict[Node, dict[str, Format]] = {}
    problems = []
    for name, given in layers.items():
        node = named.get(name)
        if node is None:
            problems.append(f"{name!r}: no layer has this name; layers are {', '.join(named)}")
            continue
        if not isinstance(given, Mapping) or not given or not set(given) <= {"weights", "activations"}:
            problems.append(f"{name!r}: expected formats of weights, activations or both, not {given!r}")
            continue
        found[node] = {}
        for key, value in given.items():
            try:
                format = found[node][key] = _format(value, key)
            except (FormatError, QuantizationError) as error:
                problems.append(f"{name!r}: {error}")
                continue
            if key == "weights" and (not isinstance(node, Conv) or node.copy):
                problems.append(f"{name!r}: {type(node).__name__} has no weights that are quantized")
            elif key == "weights" and not format.signed:
                problems.append(
                    f"{name!r}: weights must have a signed format (int, esb, ausn-a, ausn-g or nuuq), not {format}"
                )
            elif key == "activations" and leaves_raw(graph, node):
                problems.append(f"{name!r}: the last layer leaves raw integers, which have no format")
            elif key == "activations" and keeps_levels(node):
                maker: Node | None = node
                while maker is not None and keeps_levels(maker):
                    maker = graph.producer(maker.input)
                where = "input_format" if maker is None else f"layer {maker.name!r}"
                problems.append(f"{name!r}: the layer keeps the format of its input; give it to {where}")
            elif key == "activations" and not format.signed and group[node.output] in signed:
                problems.append(f"{name!r}: activations {format} are unsigned, but the layer's results can be negative")
            elif key == "activations":
                other, known = chosen.setdefault(group[node.output], (name, format))
                if known != format:
                    problems.append(
                        f"{name!r}: {format} is joined with {known} of layer {other!r}; give both one format"
                    )
    if problems:
        raise QuantizationError("Formats of single layers cannot be used:\n  " + "\n  ".join(problems))
    return found


def _tensor_formats(
    graph: Graph, options: _Options, layers: dict[Node, dict[str, Format]], group: dict[str, str]
) -> dict[str, Any]:
    """Format of every tensor that is not raw.

    Where ``layers`` names none, an unsigned activation format holds tensors that cannot be negative, and the others
    get the signed one. Layers that keep levels keep the format, and what is concatenated has one.
    """
    signed = signed_groups(graph, options.input_format.signed, group)
    widened = {group[node.input] for node in graph.nodes if leaves_raw(graph, node)}
    pooled = {group[node.output] for node in graph.nodes if isinstance(node, MaxPool)}
    widened |= {group[name] for name in graph.outputs} - pooled
    formats: dict[str, Any] = {}
    for name in set(group.values()):
        fits = options.activations.signed or name not in signed
        formats[name] = options.activations if fits else options.signed_activations
        if options.edge_bits is not None and name in widened:
            formats[name] = INT(options.edge_bits) if name in signed else UINT(options.edge_bits)
    formats |= {group[node.output]: own["activations"] for node, own in layers.items() if "activations" in own}
    formats[group[graph.input]] = options.input_format
    return {name: formats[own] for name, own in group.items()}


def _is_identity(node: Node) -> bool:
    """Whether a layer gives every channel as it is, apart from its format and unit."""
    return (
        isinstance(node, Conv)
        and node.weight.shape[1:] == (1, 1, 1)
        and bool((node.weight == 1).all() and not node.bias.any() and node.residual is None and node.slope is None)
    )


def _weight_formats(graph: Graph, options: _Options, own: dict[Node, dict[str, Format]]) -> dict[Node, Any]:
    layers = [node for node in graph.nodes if isinstance(node, Conv)]
    formats: dict[Node, Any] = dict.fromkeys(layers, options.weights)
    if options.edge_bits is not None:
        edges = [*[node for node in layers if not node.copy][:1], *(node for node in layers if leaves_raw(graph, node))]
        formats.update(dict.fromkeys(edges, INT(options.edge_bits)))
    # A codebook need not have the level 1.
    formats.update((node, INT(2)) for node in layers if node.copy and (formats[node].indexed or formats[node].adaptive))
    return formats | {node: formats["weights"] for node, formats in own.items() if "weights" in formats}


def _seen_values(graph: Graph, name: str, values: np.ndarray) -> np.ndarray:
    """The float values of a tensor where they are used: behind the max pools that share its unit.

    A maximum commutes with the projection, so values that no window selects need no care.
    """
    while len(readers := graph.consumers(name)) == 1 and isinstance(readers[0], MaxPool) and name not in graph.outputs:
        name, values = readers[0].output, evaluate_node(readers[0], values)
    return values


def _base(node: Node, source: float) -> float:
    """What the unit of a layer's result is a power of two times, if all units are powers of two: 1 to below 2.

    The mean over an area that is no power of two divides by it, and what reads the mean keeps that factor.
    """
    area = node.kernel[0] * node.kernel[1] if isinstance(node, AveragePool) else 1
    return 2 * math.frexp(source / area)[0]


def _activation_unit(
    graph: Graph, tensors: dict[str, np.ndarray], format: Any, options: _Options, base: float = 1.0
) -> tuple[Format, float]:
    """Format with its levels, and unit, of tensors with these float values, which have them together.

    A unit that is to be a power of two is one times ``base``.
    """
    seen = [_seen_values(graph, name, found) for name, found in tensors.items()]
    values = seen[0] if len(seen) == 1 else np.concatenate([v.ravel() for v in seen])
    unit = unit_window if format.ausn else options.unit
    windowed = unit is unit_window
    if not windowed:
        base = 1.0
    values = values / base
    if format.searched:
        # Padding needs a zero.
        centres, counts = _histogram(values, format)
        result = search_codebook(centres, format, zero=True, counts=counts)
        format, found = result.format, result.unit
    elif isinstance(format, Adaptive):
        centres, counts = _histogram(values, format)
        result = adapt(centres, format.formats, options.adaptation, counts=counts)
        format, found = result.format, float(result.unit)
    else:
        found = _searched_unit(values, format, unit)
        if options.output_error and len(tensors) == 1:
            ((name, value),) = tensors.items()
            found = activation_unit(graph, name, value, format, found * base) / base
    found *= base
    producers = map(graph.producer, tensors)
    limits = [node.limit for node in producers if isinstance(node, Conv) and node.limit is not None]
    if not limits:
        return format, found
    # Saturation at the largest level is the clip, so that level must not lie above the limit.
    limit = min(limits)
    highest = limit / format.magnitude_max
    while highest * format.magnitude_max > limit:
        highest = math.nextafter(highest, 0)
    if windowed:
        highest = base * 2.0 ** (math.frexp(highest / base)[1] - 1)
    return format, min(found, highest)


def _shared_units(
    graph: Graph, images: np.ndarray, group: dict[str, str], formats: dict[str, Format], options: _Options
) -> dict[str, tuple[Format, float]]:
    """Format and unit of every group whose values come from several layers, from all of these values."""
    made: dict[str, list[str]] = {}
    for node in graph.nodes:
        if not keeps_levels(node):
            made.setdefault(group[node.output], []).append(node.output)
    waiting = {own: names for own, names in made.items() if len(names) > 1}
    units: dict[str, tuple[Format, float]] = {}
    floats = {graph.input: images.astype(np.float32)}
    last_use = graph.last_readers()
    held: dict[str, dict[str, np.ndarray]] = {own: {} for own in waiting}
    for node in graph.nodes if waiting else ():
        own = group[node.output]
        floats[node.output] = evaluate_node(node, *(floats[name] for name in node.inputs))
        if own in waiting and node.output in waiting[own]:
            held[own][node.output] = floats[node.output]
            if len(held[own]) == len(waiting[own]):
                units[own] = _activation_unit(graph, held.pop(own), formats[own], options)
                del waiting[own]
        if not waiting:
            break
        for name in set(node.inputs):
            if last_use.get(name) is node:
                del floats[name]
    return units


def _searched_unit(values: np.ndarray, format: Format, unit: Callable) -> float:
    if unit not in (unit_mse, unit_window) or values.size <= _DIRECT_VALUES:
        return unit(values, format)
    values, counts = _histogram(values, format)
    return unit(values, format, counts=counts)


def _histogram(values: np.ndarray, format: Any) -> tuple[np.ndarray, np.ndarray]:
    """Centres and counts of bins for what a format has to carry: magnitudes of a symmetric one suffice."""
    values = np.maximum(values, 0) if not format.signed else values if format.indexed else np.abs(values)
    lowest, highest = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    counts, edges = np.histogram(values, _HISTOGRAM_BINS, (lowest, highest if highest > lowest else 1.0))
    return (edges[1:] + edges[:-1]) / 2, counts


def _weight_units(
    node: Conv,
    format: Any,
    options: _Options,
    input_unit: float,
    output_unit: float | None,
    residual_unit: float | None,
) -> tuple[Format, np.ndarray, np.ndarray | None, np.ndarray]:
    """Format, unit of every output channel, codebooks if channels have their own, and the least legal units.

    The unit is one and the same for a classifier (``output_unit`` None).
    """
    shared = output_unit is None or not options.per_channel
    books = None
    unit = unit_window if format.ausn else options.unit
    if format.searched:
        format, units, books = fit_weights(
            node.weight,
            format,
            shared_unit=shared,
            channel_codebooks=options.codebooks == "channel",
            zero=options.zero_level,
            symmetric=options.symmetric_levels,
        )
    elif isinstance(format, Adaptive):
        result = adapt(node.weight, format.formats, options.adaptation, None if shared else 0)
        format, units = result.format, np.broadcast_to(result.unit, len(node.weight))
    elif shared:
        units = np.full(len(node.weight), unit(node.weight, format))
    else:
        units = np.asarray(unit(node.weight, format, channel_axis=0))
    least = np.abs(node.bias) / (input_unit * _BIAS_LIMIT)
    if output_unit is not None:
        least = np.maximum(least, _GAIN_MIN * output_unit / input_unit)
    if residual_unit is not None:
        least = np.maximum(least, _GAIN_TO_RESIDUAL_MIN * residual_unit / input_unit)
    if unit is unit_window:
        least = np.exp2(np.ceil(np.log2(np.maximum(least, 2.0**-60))))
    least = np.full_like(least, least.max()) if shared else least
    return format, np.maximum(units, least), books, least


def _nearest_integer(ratio: Fraction) -> int:
    return math.floor(ratio + Fraction(1, 2))


def _convolution(
    node: Conv,
    weight_format: Any,
    options: _Options,
    tensors: dict[str, Tensor],
    levels: list[np.ndarray],
    floats: list[np.ndarray],
) -> golden.Convolution:
    """Quantized layer for the ``levels`` that it reads, which stand for ``floats``."""
    source, target = tensors[node.input], tensors[node.output]
    residual = None if node.residual is None else tensors[node.residual]
    raw = target.format is None
    books = None
    if node.copy:
        power = weight_format.smallest_power
        weights, units = node.weight.astype(np.int64) * power, np.full(len(node.weight), 1 / power)
    else:
        weight_format, units, books, least = _weight_units(
            node,
            weight_format,
            options,
            source.unit,
            None if raw else target.unit,
            None if residual is None else residual.unit,
        )
        known = None
        if options.output_error or options.rounding == "reconstruct":
            found = [np.float32(tensors[name].unit) * x for name, x in zip(node.inputs, levels, strict=True)]
            known = statistics(node, floats, found)
        if known is not None and options.output_error:
            units = np.maximum(output_units(known, units, weight_format), least)
        if known is not None and options.rounding == "reconstruct":
            fixed = weight_format.ausn or options.unit is unit_window
            weights, units = reconstruct(known, units, weight_format, least, fixed_units=fixed)
        else:
            weights = project_weights(node.weight / units[:, np.newaxis, np.newaxis, np.newaxis], weight_format, books)
    bias = node.bias
    if options.bias_correction and not node.copy:
        bias = bias + channel_sums(node, node.weight, window_means(node, floats[0]))
        bias = bias - units * source.unit * channel_sums(node, weights, window_means(node, levels[0]))
        if residual is not None:
            wanted, found = (x.mean(axis=(0, 2, 3), dtype=np.float64) for x in (floats[1], levels[1]))
            bias = bias + wanted - residual.unit * found
    return convolution(node, weight_format, weights, units, bias, tensors, books)


def convolution(
    node: Conv,
    weight_format: Format,
    weights: np.ndarray,
    units: np.ndarray,
    bias: np.ndarray,
    tensors: Mapping[str, Tensor],
    books: np.ndarray | None = None,
) -> golden.Convolution:
    """Integer layer with these levels and units, and the real bias, for tensors that have formats and units."""
    source, target = tensors[node.input], tensors[node.output]
    residual = None if node.residual is None else tensors[node.residual]
    raw = target.format is None
    gains = [Fraction(unit) * Fraction(source.unit) for unit in units.tolist()]
    constants: list[tuple[int, ...]] = [(0, 0)] * len(gains)
    if not raw:
        unit = Fraction(target.unit)
        added = None if residual is None else Fraction(residual.unit) / unit
        negative = [None] * len(gains) if node.slope is None else [
            gain * Fraction(slope) / unit for gain, slope in zip(gains, node.slope.tolist(), strict=True)
        ]  # fmt: skip
        pairs = list(zip(gains, negative, strict=True))
        known = {(gain, leak): requantizer_constants(gain / unit, added, leak) for gain, leak in set(pairs)}
        constants = [known[pair] for pair in pairs]
    return golden.Convolution(
        name=node.name,
        input=node.input,
        output=node.output,
        weights=weights,
        weight_format=weight_format,
        weight_units=units,
        bias=np.array([_nearest_integer(Fraction(b) / g) for b, g in zip(bias.tolist(), gains, strict=True)], np.int64),
        multiplier=np.array([c[0] for c in constants], np.int64),
        shift=np.array([c[1] for c in constants], np.int64),
        stride=node.stride,
        dilation=node.dilation,
        pads=node.pads,
        relu=node.relu,
        residual=node.residual,
        residual_multiplier=None if residual is None else np.array([c[2] for c in constants], np.int64),
        groups=node.groups,
        negative_multiplier=None if node.slope is None else np.array([c[2] for c in constants], np.int64),
        codebooks=books,
    )


def _tensor(graph: Graph, name: str, format: Format | None, unit: float) -> Tensor:
    channels, height, width = graph.shapes[name]
    return Tensor(name, channels, height, width, format, unit)


def other_layer(
    node: Node, source: Tensor, target: Tensor
) -> golden.MaxPool | golden.AveragePool | golden.Concat | golden.Upsample:
    if isinstance(node, Concat):
        return golden.Concat(node.name, node.input, node.output, node.others)
    if isinstance(node, Upsample):
        return golden.Upsample(node.name, node.input, node.output, node.factors)
    if isinstance(node, MaxPool):
        return golden.MaxPool(node.name, node.input, node.output, node.kernel, node.stride, node.pads)
    if isinstance(node, AveragePool):
        area = node.kernel[0] * node.kernel[1]
        gain = Fraction(source.unit) / (area * Fraction(target.unit))
        multiplier, shift = requantizer_constants(gain)
        return golden.AveragePool(
            node.name, node.input, node.output, node.kernel, node.stride, multiplier, shift, node.pads, node.relu
        )
    raise TypeError(f"A lowered graph has no {node.label}")


def quantize(
    model: Model,
    calibration: np.ndarray,
    weights: Format | str = "esb:4,2",
    activations: Format | str = "esbu:4,2",
    edge_bits: int | None = None,
    input_format: Format | str | None = None,
    per_channel: bool = True,
    alpha_mode: str | None = None,
    bias_correction: bool = True,
    signed_activations: Format | str = "int:8",
    layers: Mapping[str, Mapping[str, Format | str]] | None = None,
    rounding: str = "nearest",
    equalize: bool = False,
    codebooks: str = "layer",
    zero_level: bool = False,
    symmetric_levels: bool = False,
    adaptation: str = "search",
) -> IntegerNetwork:
    """Quantize a model after training.

    A layer without ReLU that makes an output for the caller alone has one weight unit and leaves raw 32-bit logits; all
    other layers write ``activations``, or ``signed_activations`` where that format is unsigned and the tensor can be
    negative.

    Parameters
    ----------
    model : Model
        The trained float model: a graph, an ONNX file or a PyTorch module (:mod:`~sigbit.model_reader`).
    calibration : float array, ``(n, *input_shape)``
        Images as the model takes them; a hundred are usually enough.
    weights, activations : Format or str
        Formats of all layers, such as ``"esb:4,2"`` and ``"esbu:4,2"``. Weights must be signed. ``"auto:4"`` is AUSN of
        type G in 4 bits with a split of its own for every operand of every layer, ``"auto-a:4"`` of type A;
        ``"auto"`` is ``"auto:4"``.
    edge_bits : int, optional
        Bits of ``int`` weights in the first and the last layers, of the (u)int inputs of the last ones, and of outputs
        that are not raw.
    input_format : Format or str, optional
        Format of the images; by default ``int:8``, or ``uint:8`` if no calibration value is negative.
    per_channel : bool
        One weight unit per output channel, or one per layer.
    alpha_mode : str
        How units are found: ``"mse"`` (least squared error), ``"dda"`` (ESB paper), ``"max"``, ``"percentile"`` (of
        99.9 % of the values), ``"output"`` (least squared error of the outputs of the layers that read them) or
        ``"window"`` (powers of two with the least squared error). By default ``"window"`` if a format is AUSN, whose
        units are always powers of two, else ``"mse"``.
    bias_correction : bool
        Move biases so that the calibration mean of every channel stays what it is in float.
    signed_activations : Format or str
        Format of tensors that can be negative where ``activations`` is unsigned.
    layers : mapping, optional
        Formats of single layers, by the names that :func:`summary` gives, such as
        ``{"conv1": {"weights": "int:8", "activations": "uint:6"}}``; activations are what the layer writes. They come
        before all other options.
    rounding : str
        How weights become levels: ``"nearest"``, or ``"reconstruct"``, which fits weights and units of one layer after
        the other to what it should give (:mod:`sigbit.reconstruction`). It takes about twice as long, and much longer
        where a kernel has thousands of weights.
    equalize : bool
        Scale channels between two layers to like ranges first (cross-layer equalization).
    codebooks : str
        ``"layer"`` or ``"channel"``: what has a codebook of its own, where formats leave levels to a search.
    zero_level, symmetric_levels : bool
        Search only weight codebooks with a level 0, or with the negative of every level. Those of activations always
        have 0.
    adaptation : str
        How ``auto`` finds splits: ``"search"``, ``"fixed"`` or ``"incremental"`` (:func:`sigbit.adaptation.adapt`).

    Raises
    ------
    :exc:`~sigbit_hw.spec.errors.SigbitError`
        If the model, a format, an option or the calibration data cannot be used.
    """
    images = np.asarray(calibration)
    if images.size == 0:
        raise QuantizationError(f"Calibration needs at least one image, but the array has shape {images.shape}")
    graph = lower(read_model(model, images))
    images = _as_maps(graph, images)
    options = _options(
        images, weights, activations, signed_activations, edge_bits, input_format, per_channel, alpha_mode,
        rounding, bias_correction, codebooks, zero_level, symmetric_levels, adaptation, layers or {},
    )  # fmt: skip
    if equalize:
        graph = equalized(graph)
    group = level_groups(graph)
    own = _layer_formats(graph, options, layers or {}, group)
    formats, weight_formats = _tensor_formats(graph, options, own, group), _weight_formats(graph, options, own)
    shared = _shared_units(graph, images, group, formats, options)
    found = _activation_unit(graph, {graph.input: images}, formats[graph.input], options)
    tensors = {graph.input: _tensor(graph, graph.input, *found)}
    quantized: list[Any] = []
    floats = {graph.input: images.astype(np.float32)}
    # Levels have at most 13 bits with their sign; all images of the tensors that are still to be read are held.
    levels = {graph.input: project(images / found[1], found[0]).astype(np.int16)}
    last_use = graph.last_readers()
    for node in graph.nodes:
        source, name = tensors[node.input], node.output
        read_floats, read_levels = ([held[tensor] for tensor in node.inputs] for held in (floats, levels))
        floats[name] = evaluate_node(node, *read_floats)
        if leaves_raw(graph, node):
            target = _tensor(graph, name, None, 1.0)
        elif keeps_levels(node):
            target = _tensor(graph, name, source.format, source.unit)
        else:
            known = shared.get(group[name])
            if known is None:
                base = _base(node, source.unit)
                known = _activation_unit(graph, {name: floats[name]}, formats[name], options, base)
            target = _tensor(graph, name, *known)
        tensors[name] = target
        if isinstance(node, Conv):
            layer: Any = _convolution(node, weight_formats[node], options, tensors, read_levels, read_floats)
        else:
            layer = other_layer(node, source, target)
        if target.format is None:
            tensors[name] = replace(target, unit=float(layer.weight_units[0]) * source.unit)
        quantized.append(layer)
        # One layer at a time: the next one is fitted to what the hardware will really feed it.
        made = golden.run_layer(layer, tensors, *read_levels)
        levels[name] = made if target.format is None else made.astype(np.int16)
        for tensor in set(node.inputs):
            if last_use.get(tensor) is node:
                del floats[tensor], levels[tensor]
    return IntegerNetwork(graph.name, tensors, tuple(quantized), graph.input, graph.outputs)


def input_levels(network: IntegerNetwork, images: np.ndarray) -> np.ndarray:
    """Images as the levels that ``network`` takes, ``(n, channels, height, width)`` int64.

    Raises
    ------
    :exc:`QuantizationError`
        If the images do not have the network's shape, or are not finite numbers.
    """
    source = network.tensors[network.input]
    shape = (source.channels, source.height, source.width)
    images = np.asarray(images)
    if images.ndim == 2 and shape[1:] == (1, 1):
        images = images[:, :, np.newaxis, np.newaxis]
    if images.shape[1:] != shape or not np.issubdtype(images.dtype, np.floating):
        raise QuantizationError(
            f"Network {network.name!r} takes floating-point images of shape (N, {', '.join(map(str, shape))}), "
            f"not {images.dtype} {images.shape}"
        )
    return project(images / source.unit, source.format)


def _energy(values: np.ndarray) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _energies(graph: Graph, network: IntegerNetwork, images: np.ndarray) -> dict[str, np.ndarray]:
    """Energy of every layer's float output, and of what the integer network makes of it less that."""
    energies = {layer.output: np.zeros(2) for layer in network.layers}
    for start in range(0, len(images), _SUMMARY_IMAGES):
        part = images[start : start + _SUMMARY_IMAGES]
        floats = run_float(graph, part, all_tensors=True)
        _, levels = golden.run(network, input_levels(network, part), trace=True)
        for name, energy in energies.items():
            noise = floats[name] - network.tensors[name].unit * levels[name]
            energy += _energy(floats[name]), _energy(noise)
    return energies


def summary(model: Model, network: IntegerNetwork, calibration: np.ndarray) -> list[dict[str, Any]]:
    """One dictionary per layer of ``network`` for reports.

    Keys: ``name``, ``kind`` (``conv``, ``max_pool``, ``average_pool``, ``concat``, ``upsample``), ``input_shape``,
    ``output_shape``, ``kernel``,
    ``stride``, ``pads``, ``groups``, ``residual`` (the tensor that is added, or None), ``relu``, ``weight_format``
    (None for pools), ``input_format``, ``output_format`` (``raw32`` for logits), ``weights`` and ``macs`` (numbers),
    ``sqnr_db``: energy of the float tensor over that of the difference at the layer's output on ``calibration``,
    everything before it quantized, too (None if one of them is 0).
    """
    graph = lower(read_model(model, calibration))
    images = _as_maps(graph, calibration)
    energies = _energies(graph, network, images)
    kinds = {
        golden.Convolution: "conv",
        golden.MaxPool: "max_pool",
        golden.AveragePool: "average_pool",
        golden.Concat: "concat",
        golden.Upsample: "upsample",
    }
    rows = []
    for layer in network.layers:
        source, target = network.tensors[layer.input], network.tensors[layer.output]
        is_conv = isinstance(layer, golden.Convolution)
        weights = layer.weights.size if is_conv else 0
        signal, noise = energies[layer.output].tolist()
        rows.append(
            {
                "name": layer.name,
                "kind": kinds[type(layer)],
                "input_shape": (source.channels, source.height, source.width),
                "output_shape": (target.channels, target.height, target.width),
                "kernel": layer.weights.shape[2:] if is_conv else getattr(layer, "kernel", (1, 1)),
                "stride": getattr(layer, "stride", (1, 1)),
                "pads": getattr(layer, "pads", (0, 0, 0, 0)),
                "groups": getattr(layer, "groups", 1),
                "residual": getattr(layer, "residual", None),
                "relu": getattr(layer, "relu", False),
                "weight_format": layer.weight_format.label if is_conv else None,
                "input_format": source.format.label,
                "output_format": "raw32" if target.format is None else target.format.label,
                "weights": weights,
                "macs": weights * target.height * target.width,
                "sqnr_db": 10 * math.log10(signal / noise) if min(signal, noise) > 0 else None,
            }
        )
    return rows
