"""Runs a quantized network on a device, compares every logit with the golden model, and says how good and how fast it is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from sigbit_hw.spec.config import PRESETS, AcceleratorConfig, ConfigError
from sigbit_hw.spec.formats import Format
from sigbit_sim.golden import network as golden

from .compiler import compile
from .device import open_device
from .quantize import input_levels
from .session import Session

__all__ = ["configuration", "evaluate", "layer_report"]

DEVICES = ("golden", "emulator", "rtl")


def configuration(name, weights=None, activations=None):
    """A preset by name, or a JSON file, with other native formats if given.

    Raises
    ------
    :exc:`ConfigError`
        If there is no such preset or file, or the values cannot be built.
    """
    if name in PRESETS:
        config = PRESETS[name]
    else:
        try:
            values = json.loads(Path(name).read_text())
        except OSError as error:
            raise ConfigError(
                f"{name!r} is neither a preset ({', '.join(PRESETS)}) nor a readable file: {error.strerror}"
            ) from error
        except ValueError as error:
            raise ConfigError(f"Configuration {name} is not JSON: {error}") from error
        # A manifest carries the configuration that its Verilog was made from.
        config = AcceleratorConfig.from_dict(values.get("configuration", values) if isinstance(values, dict) else values)
    formats = {"weight_format": weights, "activation_format": activations}
    return replace(config, **{key: Format.parse(text) for key, text in formats.items() if text is not None})


def evaluate(network, images, *, device="golden", config=None, labels=None, progress=None):
    """Outputs of a network on a device, and how they compare with the golden model.

    Parameters
    ----------
    network : IntegerNetwork
    images : float32 array, ``(N, channels, height, width)``
    device : str
        ``"golden"``, ``"emulator"`` or ``"rtl"``.
    config : AcceleratorConfig
        Accelerator; not needed for ``"golden"``.
    labels : int array, optional
    progress : callable, optional
        Called with one line of text per step.

    Returns
    -------
    dict
        ``images``, ``outputs`` (int64 array), ``accuracy`` (None without labels), ``mismatches_against_golden`` (images of
        which any output differs) and, from RTL, ``cycles_per_image``, ``mac_utilisation`` and ``counters``.
    """
    say = progress or (lambda line: None)
    levels = input_levels(network, images)
    say(f"golden model: {len(images)} images")
    expected = golden.run(network, levels)
    result = {
        "images": len(images),
        "device": device,
        "mismatches_against_golden": 0,
        "cycles_per_image": None,
        "mac_utilisation": None,
        "counters": None,
    }
    outputs = expected
    if device != "golden":
        program = compile(network, config)
        body = open_device(device, config, say)
        step = max(1, len(images) // 10)
        with Session(body, program) as session:
            outputs = session.run(
                levels, lambda done: say(f"{device}: {done} of {len(images)} images") if done % step == 0 else None
            )
            if device == "rtl":
                counters = session.counters()
                # The time in which an accelerator holds work or waits for input, both of a running session.
                cycles = counters["cycles"] + counters["idle_cycles"]
                useful = sum(layer["part_products"] for layer in program.layers)
                result |= {
                    "cycles_per_image": cycles / len(images),
                    "mac_utilisation": useful * len(images) / (cycles * config.mac_lanes),
                    "counters": counters,
                }
        wrong = (outputs != expected).reshape(len(images), -1).any(axis=1)
        result["mismatches_against_golden"] = int(wrong.sum())
    result["accuracy"] = None if labels is None else float(np.mean(_best(outputs) == labels))
    result["golden_accuracy"] = None if labels is None else float(np.mean(_best(expected) == labels))
    return {**result, "outputs": outputs}


def _best(outputs):
    """Class of every image; ties go to the lower index."""
    return outputs.reshape(len(outputs), -1).argmax(axis=1)


def layer_report(network, config):
    """Per layer what the compiler made of it: MACs, part products, tiles, ideal cycles and the share of lanes in use."""
    return [
        {**layer, "lane_utilisation": layer["part_products"] / max(1, layer["compute_cycles"] * config.mac_lanes)}
        for layer in compile(network, config).layers
    ]
