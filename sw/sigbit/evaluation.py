"""Runs a quantized network on a device and compares every output with the golden model."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from sigbit_hw.spec.config import PRESETS, AcceleratorConfig, ConfigError
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import INT, UINT, Format
from sigbit_sim.golden import network as golden

from .compiler import compile
from .data import DataError
from .device import open_device
from .quantize import input_levels
from .session import Session

__all__ = [
    "DEVICES",
    "accuracy",
    "choose",
    "configuration",
    "differing",
    "evaluate",
    "layer_report",
    "native_formats",
    "quality",
    "token_counters",
]

DEVICES = ("golden", "emulator", "rtl")


def configuration(name, weights=None, activations=None, network=None):
    """A preset by name, or a JSON file, with other native formats if given.

    Parameters
    ----------
    name : str
        Preset, or a JSON file: a configuration, or the ``manifest.json`` beside some Verilog.
    weights, activations : str, optional
        Native formats instead of those of the preset or file; codebooks run on any and change nothing, ``auto`` leaves
        it to the network, and table cells, which have none, stay as they are.
    network : IntegerNetwork, optional
        A preset of logic cells takes the native formats that are not given from this network.

    Raises
    ------
    :exc:`SigbitError`
        If there is no such preset or file, or the values cannot be built.
    """
    formats = {"weight_format": weights, "activation_format": activations}
    given = {key: Format.parse(text) for key, text in formats.items() if text and not text.startswith("auto")}
    given = {key: format for key, format in given.items() if not format.indexed}
    if name in PRESETS:
        if PRESETS[name].level_tables:
            return PRESETS[name]
        if network is not None and not PRESETS[name].masked:
            given = {**native_formats(network), **given}
        try:
            return replace(PRESETS[name], **given)
        except ConfigError as error:
            pair = " x ".join(str(format) for format in given.values())
            raise ConfigError(
                f"Preset {name} with {pair}: {error}. Presets are fixed: copy the configuration out of a "
                f"manifest.json that `sigbit verilog` wrote, change it, and give it as --config FILE"
            ) from error
    try:
        values = json.loads(Path(name).read_text())
    except OSError as error:
        presets = ", ".join(PRESETS)
        raise ConfigError(f"{name!r} is neither a preset ({presets}) nor a readable file: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"Configuration {name} is not JSON: {error}") from error
    try:
        inner = values.get("configuration", values) if isinstance(values, dict) else values
        config = AcceleratorConfig.from_dict(inner)
        return config if config.level_tables else replace(config, **given)
    except ConfigError as error:
        raise ConfigError(f"Configuration {name}: {error}") from error


def native_formats(network):
    """Formats of an array on which the network takes the fewest passes: keyword arguments for a configuration.

    Native are the formats in which most values are multiplied and written. Evenly spaced activations run on every
    array, so they count only where a network has no others; of uniform formats those of 8 bits count last. Codebooks
    run on every array, too.
    """
    weights: Counter = Counter()
    activations: Counter = Counter()
    for layer in network.layers:
        target = network.tensors[layer.output]
        pixels = target.height * target.width
        if isinstance(layer, golden.Convolution):
            weights[layer.weight_format] += layer.weights.size * pixels
        if target.format is not None:
            activations[target.format] += target.channels * pixels
    chosen = {}
    uneven = Counter({format: count for format, count in activations.items() if format.exponent_bits > 1})
    for key, counts in (("weight_format", weights), ("activation_format", uneven or activations)):
        counts = Counter({format: count for format, count in counts.items() if not format.indexed})
        own = {format: count for format, count in counts.items() if format not in (INT(8), UINT(8))} or counts
        if own:
            chosen[key] = max(own, key=own.__getitem__)
    return chosen


def choose(outputs, name=None):
    """One output of a result that may have several, which are then in a dictionary; the first without ``name``.

    Raises
    ------
    :exc:`SigbitError`
        If there is no output of that name.
    """
    if not isinstance(outputs, dict):
        if name is not None:
            raise SigbitError(f"The model has one output; leave out --output {name}")
        return outputs
    if name is not None and name not in outputs:
        raise SigbitError(f"The model has no output {name!r}; it has {', '.join(outputs)}")
    return outputs[next(iter(outputs)) if name is None else name]


def accuracy(outputs, labels):
    """Share of images whose largest output is the label; ties go to the lower class.

    Raises
    ------
    :exc:`DataError`
        If labels are not classes of the outputs.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError("Accuracy needs integer labels, one class per image, not numbers")
    outputs = outputs.reshape(len(outputs), -1)
    if labels.min() < 0 or labels.max() >= outputs.shape[1]:
        raise DataError(
            f"Labels are {labels.min()} to {labels.max()}, but the model has the classes 0 to {outputs.shape[1] - 1}"
        )
    return float(np.mean(outputs.argmax(axis=1) == labels))


def quality(outputs, labels, unit=1.0):
    """How good outputs are.

    Parameters
    ----------
    outputs : array, ``(N, ...)``
    labels : array or None
        Integer classes, or numbers that outputs should be.
    unit : float
        What an output of 1 is worth.

    Returns
    -------
    dict
        ``accuracy`` of classes, ``rmse`` of numbers, the root of the mean squared error; None for the others.

    Raises
    ------
    :exc:`DataError`
        If labels do not fit the outputs.
    """
    found: dict[str, float | None] = {"accuracy": None, "rmse": None}
    if labels is None:
        return found
    if np.issubdtype(labels.dtype, np.integer):
        return found | {"accuracy": accuracy(outputs, labels)}
    if labels.size != outputs.size:
        raise DataError(f"Targets are numbers of shape {labels.shape}, but outputs are of shape {outputs.shape}")
    difference = unit * outputs.reshape(len(outputs), -1) - labels.reshape(len(labels), -1)
    return found | {"rmse": float(np.sqrt(np.mean(np.square(difference))))}


def evaluate(network, images, *, device="golden", config=None, batch=1, labels=None, output=None, progress=None):
    """Outputs of a network on a device, and how they compare with the golden model.

    Parameters
    ----------
    network : IntegerNetwork
    images : float32 array, ``(N, channels, height, width)``
    device : str
        ``"golden"``, ``"emulator"`` or ``"rtl"``.
    config : AcceleratorConfig
        Accelerator; not needed for ``"golden"``.
    batch : int
        Images in a group, as in :func:`~sigbit.compiler.compile`.
    labels : array, optional
        Integer classes, or numbers that outputs should be.
    output : str, optional
        The output that labels are of, if there are several; the first if left out.
    progress : callable, optional
        Called with a line of text, or with text, number done and total.

    Returns
    -------
    dict
        ``images``, ``device``, ``outputs`` (int64 array, or a dictionary of them by name), ``accuracy`` and ``rmse``
        (:func:`quality`), ``golden_accuracy`` and ``golden_rmse``, ``mismatches_against_golden`` (images of which any
        output differs),
        ``first_mismatch`` (None, or where it is; with ``output`` if there are several), ``layers``
        (:func:`layer_report`; None for ``"golden"``) and, from RTL,
        ``cycles_per_image``, ``mac_utilisation``, ``counters`` and ``tokens`` (:func:`token_counters`; None without
        masked cells).

    Raises
    ------
    :exc:`SigbitError`
        If images, labels or configuration do not fit, or the device fails.
    """
    say = progress or (lambda *arguments: None)
    levels = input_levels(network, images)
    program = None if device == "golden" else compile(network, config, batch)
    say(f"golden model: {len(images)} images")
    expected = golden.run(network, levels)
    chosen = choose(expected, output)
    unit = network.tensors[output or network.output].unit
    result = {
        "images": len(images),
        "device": device,
        **{f"golden_{name}": value for name, value in quality(chosen, labels, unit).items()},
        "mismatches_against_golden": 0,
        "first_mismatch": None,
        "cycles_per_image": None,
        "mac_utilisation": None,
        "counters": None,
        "tokens": None,
    }
    outputs = expected
    if program is not None:
        body = open_device(device, config, say)
        with Session(body, program) as session:
            outputs = session.run(levels, lambda done: say(f"{device}: images", done, len(images)))
            if device == "rtl":
                counters = session.counters()
                # The time in which the accelerator holds work or waits for input, both of a running session.
                cycles = counters["cycles"] + counters["idle_cycles"]
                useful = sum(layer["part_products"] for layer in program.layers)
                result |= {
                    "cycles_per_image": cycles / len(images),
                    "mac_utilisation": useful * len(images) / (cycles * config.mac_lanes),
                    "counters": counters,
                    "tokens": token_counters(counters, config) if config.masked else None,
                }
        wrong = differing(outputs, expected)
        result["mismatches_against_golden"] = len(wrong)
        if wrong:
            image, name = next(iter(wrong.items()))
            found, wanted = (values if name is None else values[name] for values in (outputs, expected))
            say(f"image {image} differs from the golden model; looking for the first layer that does")
            result["first_mismatch"] = {
                "image": image,
                **({} if name is None else {"output": name}),
                **_difference(found[image], wanted[image]),
                "layer": _first_wrong_layer(network, config, body, levels[image : image + 1]),
            }
    result |= quality(choose(outputs, output), labels, unit)
    layers = None if program is None else layer_report(network, config, program)
    return {**result, "layers": layers, "outputs": outputs}


def token_counters(counters, config):
    """What the performance counters say of masked cells, in the words of structured dynamic precision.

    Parameters
    ----------
    counters : dict
        By register name, as a session or a layer of a report has them.
    config : AcceleratorConfig
        With masked cells.

    Returns
    -------
    dict
        ``busy``: cycles in which tokens enter the array (the fill of a tile passes beside the next one); ``beats``:
        these times rows and planes; ``valid_tokens``; ``idle_lanes``: token lanes of beats without a token;
        ``wload_stall``, ``memory_stall``: cycles of waiting for weights, and for the post-processor or while it reads
        feature memory; ``utilisation``: valid tokens per beat and token lane, None without beats.
    """
    busy, valid = counters["compute_cycles"], counters["valid_tokens"]
    beats = busy * config.rows * config.planes
    slots = beats * config.token_lanes
    return {
        "busy": busy,
        "beats": beats,
        "valid_tokens": valid,
        "idle_lanes": slots - valid,
        "wload_stall": counters["weight_stalls"],
        "memory_stall": counters["post_stalls"],
        "utilisation": valid / slots if slots else None,
    }


def differing(found, expected):
    """Images of which any output differs, in order: number of the image -> name of its first output that does.

    Both are arrays ``(N, ...)``, or dictionaries of them if there are several outputs; the name is None otherwise.
    """
    if not isinstance(expected, dict):
        found, expected = {None: found}, {None: expected}
    wrong: dict[int, str | None] = {}
    for name, values in expected.items():
        for image in np.flatnonzero((found[name] != values).reshape(len(values), -1).any(axis=1)).tolist():
            wrong.setdefault(image, name)
    return dict(sorted(wrong.items()))


def _difference(found, expected):
    """First position at which two arrays differ: channel, or channel, row and column."""
    position = tuple(int(index) for index in np.argwhere(found != expected)[0])
    return {"position": position, "found": int(found[position]), "expected": int(expected[position])}


def _first_wrong_layer(network, config, device, levels):
    """Run longer and longer beginnings of a network until one differs; None if every one agrees.

    The last layer may be wrong with all its inputs right only inside the whole program, where images overlap.
    """
    for end in range(1, len(network.layers) + 1):
        layers = network.layers[:end]
        names = {network.input, *(layer.output for layer in layers)}
        tensors = {name: tensor for name, tensor in network.tensors.items() if name in names}
        beginning = golden.IntegerNetwork(network.name, tensors, layers, network.input, layers[-1].output)
        expected = golden.run(beginning, levels)
        try:
            with Session(device, compile(beginning, config)) as session:
                found = session.run(levels)
        except SigbitError as error:
            return {"name": layers[-1].name, "error": str(error)}
        if (found != expected).any():
            return {"name": layers[-1].name, **_difference(found[0], expected[0])}
    return None


def layer_report(network, config, program=None):
    """What the compiler makes of every layer, one dictionary each; ``program`` if it is compiled already.

    Keys: those of ``Program.layers``, ``output_shape``, ``weight_format`` (None for pools), ``input_format``,
    ``output_format`` and ``lane_utilisation`` (part products per lane and compute cycle; None for pools).

    Raises
    ------
    :exc:`~sigbit.compiler.CompileError`
        If the network does not fit the configuration.
    """
    rows = []
    program = program or compile(network, config)
    for layer, compiled in zip(network.layers, program.layers, strict=True):
        source, target = network.tensors[layer.input], network.tensors[layer.output]
        slots = compiled["compute_cycles"] * config.mac_lanes
        rows.append(
            {
                "name": layer.name,
                "output_shape": (target.channels, target.height, target.width),
                "weight_format": layer.weight_format.label if isinstance(layer, golden.Convolution) else None,
                "input_format": source.format.label,
                "output_format": "raw32" if target.format is None else target.format.label,
                **compiled,
                "lane_utilisation": compiled["part_products"] * program.batch / slots if slots else None,
            }
        )
    return rows
