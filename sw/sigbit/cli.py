"""Command line ``sigbit``.

Results go to standard output: text for people, or exactly one JSON value with ``--json``. Progress and messages go to
standard error. Exit status: 0, 1 if outputs differ from the golden model, 2 for bad input (one message, no traceback).
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.errors import SigbitError
from sigbit_sim.golden.network import IntegerNetwork
from sigbit_sim.golden.program import Program

from . import evaluation
from .architectures import ARCHITECTURES, write_architecture
from .bench import BENCHES
from .progress import Progress
from .storage import weight_storage

__all__ = ["main"]

_PRESET = "small"
_SDP_PRESET = "sdp"
#: Calibration images by which budgets are chosen, and options that only this takes.
_BUDGET_IMAGES = 64
_BUDGETS = ("budget", "target_cycles", "target_accuracy", "policy", "config")
#: Options that only quantization takes.
_QUANTIZATION = (
    "calibration", "edge_bits", "per_tensor", "alpha", "rounding", "equalize", "signed_activations", "layer_formats",
    "adaptation",
    "codebooks", "zero_level", "symmetric_levels",
)  # fmt: skip
_say = Progress()

# -- output ------------------------------------------------------------------------------------------------------------


def _print(arguments, result, text):
    print(json.dumps(result) if arguments.json else text)


def _percent(value):
    return "-" if value is None else f"{100 * value:.2f} %"


def _table(rows, columns):
    """Lines of a plain text table; ``columns`` maps a heading to a key of a row or a function of a row."""
    pick = [value if callable(value) else lambda row, key=value: row[key] for value in columns.values()]
    cells = [list(columns), *(["-" if (cell := get(row)) is None else str(cell) for get in pick] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in lines)


_FORMATS = {
    "layer": "name",
    "output": lambda row: "x".join(map(str, row["output_shape"])),
    "weights": "weight_format",
    "activations": lambda row: f"{row['input_format']} -> {row['output_format']}",
    "MACs": "macs",
}
_COST = {
    "part products": "part_products",
    "tiles": "tiles",
    "weight words": "weight_words",
    "cycles": lambda row: row["compute_cycles"] + row["pool_cycles"],
    "lanes in use": lambda row: _percent(row["lane_utilisation"]),
}
_MASKED = {
    "layer": "name",
    "budget": "budget",
    "average bits": lambda row: f"{row['average_bits']:.1f}",
    "cycles": "cycles",
    "without a mask": "exact_cycles",
    "error alone": lambda row: None if row["error"] is None else f"{row['error']:.6f}",
}
_ERROR = {"SQNR": lambda row: None if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB"}


def _check_output(path):
    """Complain about a file that cannot be written before the work is done, not after it."""
    path = Path(path)
    if path.is_dir():
        raise SigbitError(f"Cannot write {path}: it is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise SigbitError(f"Cannot write {path}: the folder {path.parent} does not exist")


def _save_outputs(path, outputs):
    """Write one array ``outputs``, or one array by the name of each output if there are several."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **(outputs if isinstance(outputs, dict) else {"outputs": outputs}))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# -- input -------------------------------------------------------------------------------------------------------------


def _images(arguments, source, limit=None):
    from .data import load_images

    return load_images(source, limit, scale=arguments.scale, mean=arguments.mean, std=arguments.std)


def _is_network(path):
    """Whether a file is an archive, as an integer network is; ONNX is not."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"PK"
    except OSError:
        return False


def _refuse(arguments, what, *names):
    """Complain about options that would change nothing."""
    for name in names:
        if getattr(arguments, name, None):
            raise SigbitError(f"--{name.replace('_', '-')} has no effect on {what}; leave it out")


def _configuration(arguments, network=None):
    return evaluation.configuration(arguments.config or _PRESET, arguments.weights, arguments.activations, network)


def _layer_formats(path):
    """Formats of single layers in a JSON file; the quantizer checks what they say."""
    try:
        value = json.loads(Path(path).read_text())
    except OSError as error:
        raise SigbitError(f"Cannot read the layer formats {path}: {error.strerror}") from error
    except ValueError as error:  # also text that is not UTF-8
        raise SigbitError(f"Layer formats {path} are not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SigbitError(
            f"Layer formats {path} must be an object such as "
            f'{{"conv1": {{"weights": "int:8", "activations": "uint:6"}}}}, not {type(value).__name__}'
        )
    return value


def _sized(text, native):
    """A format of the command line: the native one if there is none; ``auto`` has as many bits as that."""
    return f"{text}:{native.bits}" if text in ("auto", "auto-a") else text or native


def _quantized(arguments, model, config):
    """Integer network of a float graph, in the formats of the array."""
    from .quantize import quantize

    if arguments.calibration is None:
        raise SigbitError(f"{arguments.model} is quantized first; give images for it: --calibration FILE.npz:NAME")
    layers = {} if arguments.layer_formats is None else _layer_formats(arguments.layer_formats)
    calibration, _ = _images(arguments, arguments.calibration)
    _say(f"quantizing {arguments.model} with {len(calibration)} calibration images")
    network = quantize(
        model,
        calibration,
        weights=_sized(arguments.weights, config.weight_format),
        activations=_sized(arguments.activations, config.activation_format),
        edge_bits=arguments.edge_bits,
        per_channel=not arguments.per_tensor,
        alpha_mode=arguments.alpha,
        signed_activations=arguments.signed_activations or "int:8",
        layers=layers,
        rounding=arguments.rounding or "nearest",
        equalize=arguments.equalize,
        codebooks=arguments.codebooks or "layer",
        zero_level=arguments.zero_level,
        symmetric_levels=arguments.symmetric_levels,
        adaptation=arguments.adaptation or "search",
    )
    return network, calibration


def _network_and_configuration(arguments):
    """From a network file, or quantized from an ONNX model; then with the float graph and calibration images."""
    from .onnx_reader import read_onnx

    if _is_network(arguments.model):
        _refuse(arguments, "an integer network", *_QUANTIZATION)
        network = IntegerNetwork.load(arguments.model)
        return network, _configuration(arguments, network), None, None
    config = _configuration(arguments)
    model = read_onnx(arguments.model)
    network, calibration = _quantized(arguments, model, config)
    if any((text or "").startswith("auto") for text in (arguments.weights, arguments.activations)):
        config = _configuration(arguments, network)
    return network, config, model, calibration


# -- commands ----------------------------------------------------------------------------------------------------------


def _storage(total):
    """Sentence about the memory for weights, packed as densely as their numbers of levels allow."""
    return (
        f"weights: {total['packed_bytes']} bytes packed, {total['stored_bits']:.3f} bits each "
        f"(log2 of the levels {total['information_bits']:.3f}), codebooks {total['codebook_bytes']} bytes; "
        f"INT(8) {total['int8_bytes']}, INT(4) {total['int4_bytes']} bytes"
    )


def _quantize(arguments):
    from .onnx_reader import read_onnx
    from .quantize import summary

    _check_output(arguments.output)
    if arguments.sdp:
        _refuse(arguments, "--sdp, which takes the formats of its configuration", "weights", "activations")
        config = evaluation.configuration(arguments.config or _SDP_PRESET)
    else:
        _refuse(arguments, "networks without --sdp", *_BUDGETS)
        config = evaluation.configuration(_PRESET, arguments.weights, arguments.activations)
    model = read_onnx(arguments.model)
    network, calibration = _quantized(arguments, model, config)
    chosen, lines = (_budgets(arguments, network, config)) if arguments.sdp else (None, [])
    if chosen is not None:
        network = chosen.network
    rows = summary(model, network, calibration)
    network.save(arguments.output)
    text = "\n".join([_table(rows, _FORMATS | _ERROR), *lines, f"wrote {arguments.output}"])
    if model.dropped:
        text += f"\nleft to the host: {', '.join(model.dropped)}"
    storage = weight_storage(network)["total"]
    text += f"\n{_storage(storage)}"
    result = {"network": arguments.output, "layers": rows, "left_to_host": model.dropped, "storage": storage}
    if chosen is not None:
        result["budgets"] = chosen.budgets
        result |= {name: asdict(getattr(chosen, name)) for name in ("exact", "masked")}
    _print(arguments, result, text)


def _errors(arguments):
    from .onnx_reader import read_onnx
    from .operand_errors import draw, operand_errors

    if arguments.picture:
        _check_output(arguments.picture)
    model = read_onnx(arguments.model)
    config = evaluation.configuration(_PRESET, arguments.weights, arguments.activations)
    network, calibration = _quantized(arguments, model, config)
    operands = operand_errors(model, network, calibration)
    rows = [operand.row for operand in operands]
    columns = {
        "layer": "layer",
        "operand": "operand",
        "format": "format",
        "log2 unit": lambda row: " to ".join(f"{value:.4g}" for value in sorted(set(row["unit_log2"]))),
        "CE/P": lambda row: f"{row['clipping']:.2e}",
        "RE/P": lambda row: f"{row['rounding']:.2e}",
        "SQNR": lambda row: None if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB",
        "lost": lambda row: _percent(row["lost"]),
    }
    text = _table(rows, columns)
    if arguments.picture:
        draw(operands, arguments.picture)
        text += f"\nwrote {arguments.picture}"
    _print(arguments, {"operands": rows, "picture": arguments.picture}, text)


def _budgets(arguments, network, config):
    """Budgets under the target that is given, and lines about them."""
    from sigbit_hw.spec.masks import Policy

    from .budgets import choose_budgets, given_budgets, report
    from .quantize import input_levels

    images, labels = _images(arguments, arguments.calibration, _BUDGET_IMAGES)
    policy = Policy[(arguments.policy or "nib").upper()]
    levels = input_levels(network, images)
    if arguments.budget is not None:
        _refuse(arguments, "--budget", "target_cycles", "target_accuracy")
        chosen = given_budgets(network, levels, config, arguments.budget, policy=policy, labels=labels)
    else:
        chosen = choose_budgets(
            network, levels, config, policy=policy, target_cycles=arguments.target_cycles,
            target_accuracy=arguments.target_accuracy, labels=labels, progress=_say,
        )  # fmt: skip
    exact, masked = chosen.exact, chosen.masked
    lines = [
        "",
        _table(report(chosen, config), _MASKED),
        f"{masked.average_bits:.2f} average bits; {masked.cycles} cycles per image, {exact.cycles} without masks "
        f"({masked.cycles / exact.cycles:.1%}); error of the outputs {masked.error:.5f}",
    ]
    if labels is not None:
        lines.append(
            f"accuracy on {len(labels)} calibration images: {_percent(masked.accuracy)}, without masks "
            f"{_percent(exact.accuracy)}"
        )
    return chosen, lines


def _compile(arguments):
    from .compiler import compile

    _check_output(arguments.output)
    if Path(arguments.model).is_file() and not _is_network(arguments.model):
        raise SigbitError(f"{arguments.model} is not an integer network; write one with: sigbit quantize MODEL.onnx")
    network = IntegerNetwork.load(arguments.model)
    config = _configuration(arguments, network)
    program = compile(network, config, arguments.batch)
    program.save(arguments.output)
    cycles = sum(layer["compute_cycles"] + layer["pool_cycles"] for layer in program.layers) / program.batch
    result = {
        "program": arguments.output,
        "configuration_hash": f"{config.hash:016x}",
        "weights": str(config.weight_format),
        "activations": str(config.activation_format),
        "batch": program.batch,
        "compute_cycles": cycles,
    }
    text = (
        f"wrote {arguments.output} for {config.weight_format} x {config.activation_format}, {config.mac_lanes} MAC "
        f"lanes, configuration {config.hash:016x}\n{cycles:.0f} cycles per image without stalls"
    )
    _print(arguments, result, text)


def _run(arguments):
    if arguments.output:
        _check_output(arguments.output)
    images, labels = _images(arguments, arguments.data, arguments.limit)
    if Program.is_program(arguments.model):
        result, outputs = _run_program(arguments, images, labels)
    else:
        network, config, _, _ = _network_and_configuration(arguments)
        device = arguments.device or "golden"
        if device == "golden":
            _refuse(arguments, "the golden model", "batch")
        result = evaluation.evaluate(
            network, images, device=device, config=config, batch=arguments.batch or 1, labels=labels, progress=_say
        )
        outputs = result.pop("outputs")
        del result["layers"]
    lines = [f"{result['images']} images on {result['device']}"]
    if (text := _quality(result)) is not None:
        lines.append(text)
    if result.get("cycles_per_image"):
        lines.append(_speed(result))
    if "mismatches_against_golden" in result:
        lines.append(_mismatches(result))
    if arguments.output:
        _save_outputs(arguments.output, outputs)
        result["outputs"] = arguments.output
        lines.append(f"wrote {arguments.output}")
    _print(arguments, result, "\n".join(lines))
    return 1 if result.get("mismatches_against_golden") else 0


def _run_program(arguments, images, labels):
    from .device import open_device
    from .session import Session

    _refuse(arguments, "a compiled program", *_QUANTIZATION, "batch")
    device = arguments.device or "emulator"
    if device == "golden":
        raise SigbitError(
            "A program runs on a device, the golden model takes the network that it was compiled from; "
            "give --device emulator or rtl"
        )
    if arguments.config is None:
        _refuse(arguments, "a compiled program without --config", "weights", "activations")
        program = Program.load(arguments.model)
    else:
        program = Program.load(arguments.model, _configuration(arguments))
    levels = program.input_levels(images)
    with Session(open_device(device, program.config, _say), program) as session:
        outputs = session.run(levels, lambda done: _say(f"{device}: images", done, len(images)))
    for failure in session.recoveries:
        _say(f"recovered from: {failure}")
    quality = evaluation.quality(evaluation.choose(outputs), labels, program.output.unit)
    return {"images": len(images), "device": device, **quality, "recoveries": session.recoveries}, outputs


def _quality(result):
    """What labels say of the outputs, as text."""
    if result["rmse"] is not None:
        return f"root mean squared error {result['rmse']:.4g}"
    return None if result["accuracy"] is None else f"accuracy {_percent(result['accuracy'])}"


def _qualities(result):
    """What labels say of the outputs of the float and of the quantized network, as text."""
    if result["rmse"] is not None:
        return f"root mean squared error: float {result['float_rmse']:.4g}, quantized {result['rmse']:.4g}"
    return f"accuracy: float {_percent(result['float_accuracy'])}, quantized {_percent(result['accuracy'])}"


def _speed(result):
    text = (
        f"{result['cycles_per_image']:.0f} cycles per image, {_percent(result['mac_utilisation'])} of MAC lanes in use"
    )
    return text if result["tokens"] is None else f"{text}\n{_tokens(result['tokens'])}"


def _tokens(tokens):
    return (
        f"{tokens['valid_tokens']} valid tokens in {tokens['beats']} beats, {_percent(tokens['utilisation'])} of their "
        f"lanes; {tokens['wload_stall']} cycles wait for weights, {tokens['memory_stall']} for the post-processor"
    )


def _mismatches(result):
    count = result["mismatches_against_golden"]
    if result["device"] == "golden":
        return "computed by the golden model itself"
    text = f"{count} of {result['images']} images differ from the golden model"
    if count:
        first = result["first_mismatch"]
        text += f"\nfirst: image {first['image']}, {_place(first)}"
        layer = first["layer"]
        if layer is None:
            text += "; alone every layer of this image is right, so it depends on the images before it"
        elif "error" in layer:
            text += f"; layer {layer['name']} stops with: {layer['error']}"
        else:
            text += f"; first wrong layer {layer['name']}, {_place(layer)}"
    return text


def _place(difference):
    names = zip(("channel", "y", "x"), difference["position"], strict=False)
    where = ", ".join(f"{name} {index}" for name, index in names)
    if "output" in difference:
        where = f"output {difference['output']}, {where}"
    return f"{where}: {difference['found']} instead of {difference['expected']}"


def _evaluate(arguments):
    from .float_model import run_float
    from .quantize import summary

    images, labels = _images(arguments, arguments.data, arguments.limit)
    if labels is None:
        raise SigbitError("Accuracy needs labels; name them after the images: --data FILE.npz:IMAGES,LABELS")
    if _is_network(arguments.model):
        raise SigbitError(f"{arguments.model} is quantized already; give the ONNX model, or use: sigbit run")
    network, config, model, calibration = _network_and_configuration(arguments)
    device = arguments.device or "golden"
    if device == "golden":
        _refuse(arguments, "the golden model", "batch")
    # First, so that labels that do not fit are found before the device runs.
    real = evaluation.quality(evaluation.choose(run_float(model, images), arguments.output), labels)
    measured = evaluation.evaluate(
        network,
        images,
        device=device,
        config=config,
        batch=arguments.batch or 1,
        labels=labels,
        output=arguments.output,
        progress=_say,
    )
    del measured["outputs"]
    costs = measured.pop("layers")
    result = {
        **measured,
        **{f"float_{name}": value for name, value in real.items()},
        "weights": arguments.weights or str(config.weight_format),
        "activations": arguments.activations or str(config.activation_format),
        "edge_bits": arguments.edge_bits,
        "configuration_hash": f"{config.hash:016x}",
    }
    lines = [
        f"{result['images']} images, {result['weights']} weights, {result['activations']} activations, {device}",
        _qualities(result),
        _mismatches(result),
    ]
    if result["cycles_per_image"]:
        lines.append(_speed(result))
    if arguments.layers:
        rows, columns = summary(model, network, calibration), _FORMATS | _ERROR
        if costs is not None:
            rows, columns = [row | cost for row, cost in zip(rows, costs, strict=True)], _FORMATS | _COST | _ERROR
        result["layers"] = rows
        lines.append(_table(rows, columns))
    _print(arguments, result, "\n".join(lines))
    return 1 if result["mismatches_against_golden"] else 0


def _search(arguments):
    from dataclasses import replace

    from sigbit_hw.spec.formats import Format

    from .onnx_reader import read_onnx
    from .search import Budget, draw, pareto, search

    for path in filter(None, (arguments.output, arguments.picture, arguments.network)):
        _check_output(path)
    config = evaluation.configuration(arguments.config)
    configs = [config]
    if arguments.natives:
        pairs = [[Format.parse(text) for text in pair.split("/")] for pair in arguments.natives]
        if any(len(pair) != 2 for pair in pairs):
            raise SigbitError(f"--natives takes WEIGHTS/ACTIVATIONS, such as esb:4,1/esbu:4,2, not {arguments.natives}")
        configs = [replace(config, weight_format=pair[0], activation_format=pair[1]) for pair in pairs]
    calibration, _ = _images(arguments, arguments.calibration)
    validation = None
    if arguments.data is not None:
        validation = _images(arguments, arguments.data, arguments.limit)
        if validation[1] is None:
            raise SigbitError("Accuracy needs labels; name them after the images: --data FILE.npz:IMAGES,LABELS")
    budget = Budget(
        cycles=arguments.max_cycles, weight_bytes=arguments.max_bytes, luts=arguments.max_luts, loss=arguments.max_loss
    )
    result = search(
        read_onnx(arguments.model),
        calibration,
        configs,
        weights=arguments.weights or ["int:8"],
        activations=arguments.activations or ["uint:8"],
        edge_bits=arguments.edge_bits or 8,
        budget=budget,
        validation=validation,
        points=arguments.points,
        alpha_mode=arguments.alpha or "mse",
        rounding=arguments.rounding or "nearest",
        progress=_say,
    )
    front, rows = pareto(result.points), []
    for point in result.points:
        row = {key: value for key, value in vars(point).items() if key != "network"}
        rows.append({**row, "pareto": point in front, "best": point is result.best})
    if arguments.picture:
        draw(result, arguments.picture)
    if result.best is not None and arguments.output:
        Path(arguments.output).write_text(json.dumps(result.best.layers, indent=1) + "\n")
    if result.best is not None and arguments.network:
        result.best.network.save(arguments.network)
    columns = {
        "native": lambda row: f"{row['weight_format']} x {row['activation_format']}",
        "cycles": _thousands(lambda row: row["cycles"]),
        "weight bytes": _thousands(lambda row: row["weight_bytes"]),
        "LUTs": _thousands(lambda row: row["luts"]),
        "divergence": lambda row: f"{row['divergence']:.4f}",
        "predicted": lambda row: f"{row['predicted_divergence']:.4f}",
        "accuracy": lambda row: _percent(row["accuracy"]),
        "": lambda row: "best" if row["best"] else "pareto" if row["pareto"] else "",
    }
    text = _table(rows, columns)
    if result.float_accuracy is not None:
        text += f"\nfloat {_percent(result.float_accuracy)}"
    if result.best is None:
        text += "\nno point keeps the budget"
    _print(arguments, {"points": rows, "float_accuracy": result.float_accuracy}, text)
    return 0 if result.best is not None else 1


def _train(arguments):
    from .data import load_images, load_raw
    from .onnx_reader import read_onnx
    from .training import Recipe, Team, train

    changes = {} if arguments.seed is None else {"seed": arguments.seed}
    recipe = Recipe.read(arguments.recipe, **changes)
    parts = [load_raw(source) for source in arguments.data]
    images, labels = (np.concatenate(arrays)[: arguments.limit] for arrays in zip(*parts, strict=True))
    test = None
    if arguments.test is not None:
        test = load_images(arguments.test, scale=recipe.scale, mean=recipe.mean, std=recipe.std)
        if test[1] is None:
            raise SigbitError("Accuracy needs labels; name them after the images: --test FILE.npz:IMAGES,LABELS")
    model = read_onnx(arguments.model)
    with Team() as team:
        network, log = train(
            model,
            recipe,
            images,
            labels,
            arguments.output,
            test=test,
            resume=arguments.resume,
            team=team,
            progress=_say if team.leads else lambda *arguments: None,
        )
        if not team.leads:
            return
    result = {"network": f"{arguments.output}/network.npz", "log": log, "accuracy": None}
    lines = [f"wrote {result['network']} after {sum(row['seconds'] for row in log):.0f} s of training"]
    if test is not None:
        measured = evaluation.evaluate(network, test[0], labels=test[1])
        result["accuracy"] = measured["accuracy"]
        lines.append(f"accuracy of the golden model {_percent(measured['accuracy'])} on {len(test[0])} images")
    _print(arguments, result, "\n".join(lines))


def _verilog(arguments):
    from sigbit_hw.emit import write_verilog

    config = evaluation.configuration(arguments.config, arguments.weights, arguments.activations)
    _say(f"generating {config.mac_lanes} MAC lanes, {config.weight_format} x {config.activation_format}")
    from sigbit_sim.ledger import ledger

    manifest = write_verilog(config, arguments.output, arguments.family)
    text = f"wrote {arguments.output}/sigbit.v and manifest.json, configuration {config.hash:016x}"
    text += f"\n{_resources(ledger(config))}"
    _print(arguments, manifest, text)


def _resources(resources):
    """What the ledger of look-up tables says, in words."""
    spare = resources["spare"]
    verdict = f"fits, {spare} to spare" if resources["fits"] else f"does not fit, {-spare} too many"
    return (
        f"{resources['lut']} look-up tables predicted, {_percent(resources['share'])} of an XCZU9EG (ZCU102): {verdict}"
    )


def _thousands(cell):
    """Column of numbers with their digits in groups."""
    return lambda row: None if (value := cell(row)) is None else f"{value:,}".replace(",", " ")


def _count(kind, key):
    return _thousands(lambda row: row[kind][key])


_GEOMETRY = {
    "layer": "name",
    "output": lambda row: "x".join(map(str, row["output_shape"])),
    "kernel": lambda row: (
        "x".join(map(str, row["kernel"])) + (f"/{max(row['stride'])}" if max(row["stride"]) > 1 else "")
    ),
    "groups": "groups",
    "weights": "weight_format",
    "activations": lambda row: f"{row['input_format']} -> {row['output_format']}",
    "passes": "passes",
    "MACs": _thousands(lambda row: row["macs"]),
    "part products": _thousands(lambda row: row["part_products"]),
    "weight words": _thousands(lambda row: row["weight_words"]),
}
_CYCLES = {
    "cycles": _count("predicted", "total"),
    "compute": _count("predicted", "compute_cycles"),
    "weights wait": _count("predicted", "weight_stalls"),
    "post wait": _count("predicted", "post_stalls"),
    "pool": _count("predicted", "pool_cycles"),
    "stream wait": _count("predicted", "stream_waits"),
    "sequencer": _count("predicted", "sequencer"),
}
_BOUND = {"in use": lambda row: _percent(row["utilisation"]), "bound by": "bound_by"}


def _report(arguments):
    from .performance import report
    from .quantize import summary

    network, config, model, calibration = _network_and_configuration(arguments)
    result = report(
        network, config, device=arguments.device, images=arguments.images, batch=arguments.batch, progress=_say
    )
    rows, total = result["layers"], result["total"]
    measured = {}
    if arguments.device == "rtl":
        measured = {
            "cycles in RTL": _count("measured", "total"),
            "difference": lambda row: row["measured"]["total"] - row["predicted"]["total"],
        }
        if config.masked:
            measured["valid tokens"] = lambda row: _percent(row["tokens"]["utilisation"])
    error = {}
    if model is not None:
        for row, quantized in zip(rows, summary(model, network, calibration), strict=True):
            row["sqnr_db"] = quantized["sqnr_db"]
        error = _ERROR
    lines = [_table(rows, _GEOMETRY | error), _table(rows, {"layer": "name"} | _CYCLES | measured | _BOUND)]
    speed = " / ".join(f"{value:.1f}" for value in total["frames_per_second"].values())
    clocks = " / ".join(map(str, total["frames_per_second"]))
    convolutions, sent = total["convolutions"], total["bytes"]
    best = "measured" if arguments.device == "rtl" else "predicted"
    lines.append(
        f"total: {total['macs']} MACs as {total['part_products']} part products; {total[best]['total']} cycles {best} "
        f"for {result['images']} image(s), {total['cycles_per_image']:.0f} per image, bound by {total['bound_by']}\n"
        f"{_percent(total['utilisation'])} of {config.mac_lanes} MAC lanes in use; without the fully connected layers "
        f"{_percent(convolutions['utilisation'])} (convolutions: {convolutions['ideal_cycles']} cycles at best)\n"
        f"{speed} frames per second at {clocks} MHz: arithmetic, not timing\n"
        f"{total['weight_words']} weight words, memory holds {config.weight_depth}; {sent['image']} bytes per image "
        f"(weights {sent['weights']}, input {sent['input']}), {sent['setup']} once; {config.stream_bits} bits a cycle\n"
        f"{_resources(result['resources'])}"
    )
    if result["mismatches"] is not None:
        predicted = total["predicted"]["total"] / total["measured"]["total"] - 1
        lines.append(
            f"{result['mismatches']} of {result['images']} images differ from the golden model; the prediction is "
            f"{100 * predicted:+.2f} % off"
        )
        if config.masked:
            lines.append(_tokens(total["tokens"]))
    result["storage"] = weight_storage(network)
    lines.append(_storage(result["storage"]["total"]))
    _print(arguments, result, "\n\n".join(lines))
    return 1 if result["mismatches"] else 0


def _demo(arguments):
    from .demo import run_demo

    result, text = run_demo(arguments.output, images=arguments.images, progress=_say)
    _print(arguments, result, text)
    return 1 if result["mismatches"] else 0


def _bench(arguments):
    from .bench import bench_needs, bench_options, run_bench

    options = {
        key: getattr(arguments, key)
        for key in (
            "networks", "config", "device", "data", "batch", "calibration", "activations", "scale", "mean", "std",
            "limit", "picture", "bits", "trained", "plain", "builds",
        )
    }  # fmt: skip
    options = {key: value for key, value in options.items() if value is not None}
    known = bench_options(arguments.what)
    _refuse(arguments, f"bench {arguments.what}", *(key for key in options if key not in known))
    if missing := [f"--{key}" for key in bench_needs(arguments.what) if key not in options]:
        raise SigbitError(f"bench {arguments.what} also needs {', '.join(missing)}")
    rows, text = run_bench(arguments.what, write=arguments.write, progress=_say, **options)
    _print(arguments, rows, text)
    return 1 if any(row.get("mismatches") for row in rows) else 0


def _build(arguments):
    from .boards import build

    if arguments.board == "ulx3s":
        _refuse(arguments, "the ULX3S, which Vivado does not build", "jobs", "activity")
    else:
        _refuse(arguments, "the ZCU102, which has no serial link", "baud")
    config = None
    if arguments.config or arguments.weights or arguments.activations:
        config = evaluation.configuration(arguments.config or arguments.board, arguments.weights, arguments.activations)
    result = build(
        arguments.board,
        arguments.output or f"build/{arguments.board}",
        config=config,
        scripts_only=arguments.scripts_only,
        progress=_say,
        **{
            key: value
            for key in ("clock_mhz", "baud", "jobs", "activity")
            if (value := getattr(arguments, key)) is not None
        },
    )
    if arguments.scripts_only:
        text = f"wrote {', '.join(result['files'])} to {result['folder']}"
        if "commands" in result:
            text += f"\n{result['commands']} Vivado commands were checked; run: vivado -mode batch -source build.tcl"
    else:
        text = (
            f"wrote {result['bitstream']}\n{result['lut']} of {result['lut_available']} LUTs, {result['ff']} of "
            f"{result['ff_available']} flip-flops, {result['bram']} of {result['bram_available']} block RAMs, "
            f"{result['dsp']} DSPs\n{result['fmax_mhz']:.1f} MHz reached, {result['clock_mhz']:g} MHz asked for, slack "
            f"{result['slack_ns']:.2f} ns ({result['tool']})"
        )
    _print(arguments, result, text)


def _model(arguments):
    _check_output(arguments.output)
    result = write_architecture(arguments.name, arguments.output, arguments.seed)
    text = (
        f"wrote {result['model']} with random weights: {result['parameters']} parameters, {result['macs']} MACs per "
        f"{'x'.join(map(str, result['input_shape']))} image"
    )
    _print(arguments, result, text)


def _doctor(arguments):
    from .doctor import examine

    findings = examine()
    columns = {"": lambda row: "ok" if row["found"] else "missing", "what": "what", "note": "note"}
    _print(arguments, findings, _table(findings, columns))
    return 0 if all(finding["found"] or not finding["required"] for finding in findings) else 2


# -- arguments ---------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"sigbit: {message}; see {self.prog} --help\n")


def _numbers(text):
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, not {text!r}") from None


def _number(text):
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, not {text!r}") from None


def _device_name(text):
    if text in evaluation.DEVICES or text.startswith(("serial:", "pynq:")):
        return text
    names = ", ".join(evaluation.DEVICES)
    raise argparse.ArgumentTypeError(f"expected {names}, serial:PORT[@BAUD] or pynq:FOLDER, not {text!r}")


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not {text!r}")
    return int(text)


def _widths(text):
    return [_positive(part) for part in text.split(",")]


def _seed(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, not {text!r}")
    return int(text)


def _data(sub, required=False):
    if required:
        help = "images and labels: uint8 (N, height, width[, channels]), or float as the model takes them"
        sub.add_argument("--data", metavar="FILE.npz:X[,Y]", required=True, help=help)
        sub.add_argument("--limit", type=_positive, metavar="N", help="use the first N images only")
    sub.add_argument("--scale", type=float, default=255.0, help="uint8 images are divided by this (255)")
    sub.add_argument("--mean", type=_numbers, default=[0.0], metavar="M[,M,M]", help="then this is subtracted (0)")
    sub.add_argument("--std", type=_numbers, default=[1.0], metavar="S[,S,S]", help="and divided by this (1)")


def _formats(sub, what):
    signed = "int:B, esb:B,K, ausn-a:E,S, ausn-g:E,S, auto[:B] (AUSN, a split per layer) or nuuq:N,B[=LEVEL,...]"
    sub.add_argument("--weights", metavar="FORMAT", help=f"{signed}; {what}")
    unsigned = "uint:B, esbu:B,K, ausn-au:E,S, ausn-gu:E,S, auto[:B] or a signed one"
    sub.add_argument("--activations", metavar="FORMAT", help=f"{unsigned}; likewise")


def _quantization(sub, required=False):
    sub.add_argument("--calibration", required=required, metavar="FILE.npz:X", help="images that fix the scales")
    sub.add_argument(
        "--edge-bits", type=_positive, metavar="B", help="int bits of the first and the last layer (as the rest)"
    )
    sub.add_argument("--per-tensor", action="store_true", help="one weight scale per layer instead of one per channel")
    sub.add_argument(
        "--signed-activations",
        metavar="FORMAT",
        help="int:B or esb:B,K for tensors that can be negative, where activations are unsigned (int:8)",
    )
    sub.add_argument(
        "--layer-formats",
        metavar="FILE.json",
        help='formats of single layers: {"conv1": {"weights": "int:8", "activations": "uint:6"}, ...}',
    )
    sub.add_argument(
        "--alpha",
        choices=("mse", "dda", "max", "percentile", "output", "window"),
        help="how scales are found (mse; window if a format is ausn or auto)",
    )
    sub.add_argument(
        "--rounding", choices=("nearest", "reconstruct"), help="reconstruct: fit weights layer by layer (nearest)"
    )
    sub.add_argument("--equalize", action="store_true", help="scale channels between layers to like ranges first")
    sub.add_argument(
        "--codebooks", choices=("layer", "channel"), help="what has searched nuuq levels of its own (layer)"
    )
    sub.add_argument("--zero-level", action="store_true", help="search only nuuq weights with a level 0")
    sub.add_argument("--symmetric-levels", action="store_true", help="search only nuuq weights with symmetric levels")
    sub.add_argument("--adaptation", choices=("search", "fixed", "incremental"), help="how auto finds splits (search)")


def _config(sub, default=_PRESET):
    names = ", ".join(PRESETS)
    sub.add_argument("--config", metavar="NAME|FILE", help=f"{names}, or a JSON file such as manifest.json ({default})")


def _device(sub, default="golden"):
    names = ", ".join(evaluation.DEVICES)
    help = f"what computes: {names}, serial:PORT[@BAUD] or pynq:FOLDER ({default})"
    sub.add_argument("--device", type=_device_name, metavar="DEVICE", help=help)


def _batch(sub, default=None):
    help = "images in a group: fully connected layers at the end run once for all, with one load of their weights (1)"
    sub.add_argument("--batch", type=_positive, default=default, metavar="N", help=help)


def _cycles_device(sub):
    help = "model: cycles are predicted; rtl: and measured in simulation, which can take minutes (model)"
    sub.add_argument("--device", choices=("model", "rtl"), default="model", help=help)


_MNIST = "--mean 0.1307 --std 0.3081"
_OWN = "otherwise those of the --config file, or esb:4,2 and esbu:4,2"
_NETWORKS_OWN = "native in the array; otherwise those of the --config file or of the network"


def _parser():
    parser = _Parser(
        prog="sigbit",
        description="Trained neural networks on generated, LUT-only FPGA accelerators.",
        epilog="sigbit COMMAND --help shows the options and an example of each command.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name, function, help, example):
        description = help[0].upper() + help[1:] + "."
        sub = commands.add_parser(name, help=help, description=description, epilog=f"Example: {example}")
        sub.add_argument("--json", action="store_true", help="print one JSON value instead of text")
        sub.set_defaults(function=function)
        return sub

    sub = command(
        "quantize",
        _quantize,
        "quantize an ONNX model and write the integer network",
        f"sigbit quantize lenet.onnx --calibration mnist.npz:calib_x {_MNIST} -o lenet.npz",
    )
    sub.add_argument("model", metavar="MODEL.onnx")
    _quantization(sub, required=True)
    _formats(sub, "esb:4,2 and esbu:4,2 if left out")
    _data(sub)
    group = sub.add_argument_group(
        "sdp",
        f"8-bit activations of which every layer keeps a budget of nibbles, by {_BUDGET_IMAGES} calibration images.",
    )
    group.add_argument("--sdp", action="store_true", help="choose budgets; takes one target")
    group.add_argument(
        "--target-cycles", type=_number, metavar="SHARE", help="at most this share of the cycles without masks"
    )
    group.add_argument(
        "--target-accuracy", type=_number, metavar="SHARE",
        help="fewest cycles with this accuracy on labelled calibration images, FILE.npz:X,Y",
    )  # fmt: skip
    group.add_argument("--budget", type=_positive, metavar="K", help="the same budget for every layer instead")
    group.add_argument("--policy", choices=("nib", "mag"), help="how nibbles are ordered (nib)")
    _config(group, default=_SDP_PRESET)
    sub.add_argument("-o", "--output", required=True, metavar="NETWORK.npz", help="integer network")

    sub = command(
        "errors",
        _errors,
        "quantize an ONNX model and show clipping and rounding error of every operand",
        f"sigbit errors lenet.onnx --calibration mnist.npz:calib_x {_MNIST} --weights auto:4 --activations auto:4",
    )
    sub.add_argument("model", metavar="MODEL.onnx")
    _quantization(sub, required=True)
    _formats(sub, "esb:4,2 and esbu:4,2 if left out")
    _data(sub)
    sub.add_argument("--picture", metavar="FILE", help="distributions, levels and errors; needs matplotlib")

    sub = command(
        "compile",
        _compile,
        "compile an integer network for an accelerator",
        "sigbit compile lenet.npz --config small -o lenet.program",
    )
    sub.add_argument("model", metavar="NETWORK.npz")
    _config(sub)
    _formats(sub, _NETWORKS_OWN)
    _batch(sub, default=1)
    sub.add_argument("-o", "--output", required=True, metavar="PROGRAM", help="packets, and how results are read")

    sub = command(
        "run",
        _run,
        "run a model, an integer network or a compiled program on a device; all but programs are compared with the "
        "golden model",
        f"sigbit run lenet.program --data mnist.npz:x,y {_MNIST} --device rtl --limit 50",
    )
    sub.add_argument("model", metavar="MODEL|NETWORK|PROGRAM")
    _data(sub, required=True)
    _quantization(sub)
    _formats(sub, _NETWORKS_OWN)
    _config(sub, default=f"{_PRESET}, or the program's own")
    _device(sub, default="golden, for a program emulator")
    _batch(sub)
    sub.add_argument("-o", "--output", metavar="FILE.npz", help="write the outputs, an array for each by its name")

    sub = command(
        "evaluate",
        _evaluate,
        "quantize, compile and run a classifier, and say how accurate it is",
        f"sigbit evaluate lenet.onnx --data mnist.npz:x,y --calibration mnist.npz:calib_x {_MNIST} --device rtl",
    )
    sub.add_argument("model", metavar="MODEL.onnx")
    _data(sub, required=True)
    _quantization(sub, required=True)
    _formats(sub, _OWN)
    _config(sub)
    _device(sub)
    _batch(sub)
    sub.add_argument("--output", metavar="NAME", help="the output that has the classes, if there are several (first)")
    sub.add_argument("--layers", action="store_true", help="add formats, cost and error of every layer")

    sub = command(
        "search",
        _search,
        "choose formats of single layers under a budget, and measure assignments from accurate to cheap",
        "sigbit search resnet20.onnx --calibration c.npz:x --data test.npz:x,y --max-cycles 60000 -o layers.json",
    )
    sub.add_argument("model", metavar="MODEL.onnx")
    sub.add_argument("--calibration", required=True, metavar="FILE.npz:X", help="images for scales and sensitivities")
    sub.add_argument("--weights", nargs="+", metavar="FORMAT", help="to choose from beside the native one (int:8)")
    sub.add_argument("--activations", nargs="+", metavar="FORMAT", help="likewise (uint:8)")
    sub.add_argument("--natives", nargs="+", metavar="W/A", help="pairs of native formats (those of --config)")
    _config(sub)
    sub.set_defaults(config=_PRESET)
    sub.add_argument(
        "--data", metavar="FILE.npz:X,Y", help="images and labels that measure points (calibration images)"
    )
    sub.add_argument("--limit", type=_positive, metavar="N", help="use the first N of them only")
    _data(sub)
    sub.add_argument("--edge-bits", type=_positive, metavar="B", help="int bits of the first and the last layer (8)")
    sub.add_argument(
        "--alpha",
        choices=("mse", "dda", "max", "percentile", "output", "window"),
        help="how scales are found (mse; window if a format is ausn or auto)",
    )
    sub.add_argument("--rounding", choices=("nearest", "reconstruct"), help="how measured points are rounded (nearest)")
    sub.add_argument("--points", type=_positive, default=6, metavar="N", help="measured points per accelerator (6)")
    sub.add_argument("--max-cycles", type=float, metavar="N", help="per image, predicted")
    sub.add_argument("--max-bytes", type=float, metavar="N", help="of weights")
    sub.add_argument("--max-luts", type=float, metavar="N", help="of the accelerator, predicted")
    sub.add_argument(
        "--max-loss", type=float, metavar="POINTS", help="of accuracy lost against float; then the fastest"
    )
    sub.add_argument("--picture", metavar="FILE", help="picture of all points; needs matplotlib")
    sub.add_argument("--network", metavar="NETWORK.npz", help="write the best point's integer network")
    sub.add_argument("-o", "--output", metavar="LAYERS.json", help="write the best point for --layer-formats")

    sub = command(
        "train",
        _train,
        "train an ONNX model for its quantized form (needs PyTorch), under torchrun on several devices",
        "sigbit train recipes/resnet20-w4a4.json resnet20.onnx --data train.npz:images,labels -o build/w4a4",
    )
    sub.add_argument("recipe", metavar="RECIPE.json")
    sub.add_argument("model", metavar="MODEL.onnx", help="trained in float")
    sub.add_argument(
        "--data", nargs="+", required=True, metavar="FILE.npz:X,Y", help="uint8 training images and labels"
    )
    sub.add_argument("--limit", type=_positive, metavar="N", help="use the first N training images only")
    sub.add_argument("--test", metavar="FILE.npz:X,Y", help="images and labels for the log; nothing is chosen by them")
    sub.add_argument("--seed", type=_seed, metavar="N", help="instead of the recipe's")
    sub.add_argument("--resume", action="store_true", help="continue after the last epoch that is complete")
    sub.add_argument("-o", "--output", required=True, metavar="FOLDER", help="for network, checkpoint and log")

    sub = command(
        "verilog",
        _verilog,
        "write the accelerator as Verilog, with a manifest",
        "sigbit verilog --config zcu102 --weights esb:4,2 --activations esbu:4,2 -o build/zcu102",
    )
    _config(sub, default="zcu102")
    sub.set_defaults(config="zcu102")
    _formats(sub, _OWN)
    sub.add_argument("-o", "--output", required=True, metavar="FOLDER", help="for sigbit.v and manifest.json")
    sub.add_argument("--family", choices=["ultrascale+"], help="use primitives of this device (none)")

    sub = command(
        "report",
        _report,
        "show geometry, formats, cost and cycles of every layer, and where they go; of an ONNX model also the error",
        "sigbit report lenet.npz --config zcu102",
    )
    sub.add_argument("model", metavar="MODEL|NETWORK")
    _data(sub)
    _quantization(sub)
    _formats(sub, _NETWORKS_OWN)
    _config(sub)
    _cycles_device(sub)
    _batch(sub, default=1)
    sub.add_argument(
        "--images", type=_positive, default=1, metavar="N", help="images that follow each other, in whole groups (1)"
    )

    help = "quantize the digits network, run it in RTL simulation and write the ZCU102 Verilog"
    sub = command("demo", _demo, help, "sigbit demo")
    sub.add_argument("--images", type=_positive, default=250, metavar="N", help="test images, 400 at most (250)")
    sub.add_argument("-o", "--output", default="build/demo", metavar="FOLDER", help="for the Verilog (build/demo)")

    help = "measure LUTs per MAC lane, of a whole accelerator, speed, cycles of networks, or codebooks"
    sub = command("bench", _bench, help, "sigbit bench networks --networks resnet20 --json")
    sub.add_argument("what", choices=BENCHES)
    sub.add_argument("--write", metavar="FILE.md", help="replace the bench's table in this file")
    sub.add_argument("--config", metavar="NAME|FILE", help="of size and networks: preset or JSON file (zcu102)")
    group = sub.add_argument_group("networks")
    known = ", ".join(ARCHITECTURES)
    group.add_argument("--networks", nargs="+", metavar="NAME|MODEL.onnx", help=f"{known} (all), or ONNX models")
    group.add_argument(
        "--device", choices=("model", "rtl"), help="cycles are predicted, or measured in RTL, too (model)"
    )
    _batch(group)
    help = "images that calibrate ONNX models (random ones), or images and labels of codebooks and sdp"
    group.add_argument("--data", metavar="FILE.npz:X[,Y]", help=help)
    group = sub.add_argument_group("codebooks, sdp, accuracy, trained and ausn", "One ONNX model in --networks.")
    group.add_argument("--calibration", metavar="FILE.npz:X", help="images that fix the scales")
    group.add_argument("--activations", metavar="FORMAT", help="of codebooks: of all layers (uint:8)")
    group.add_argument("--scale", type=float, help="uint8 images are divided by this (255)")
    group.add_argument("--mean", type=_numbers, metavar="M[,M,M]", help="then this is subtracted (0)")
    group.add_argument("--std", type=_numbers, metavar="S[,S,S]", help="and divided by this (1)")
    group.add_argument("--limit", type=_positive, metavar="N", help="of sdp and ausn: the first N images only")
    group.add_argument("--picture", metavar="FILE", help="of nuuq, codebooks and sdp: also draw it (.svg, .png, .pdf)")
    group.add_argument("--bits", type=_widths, metavar="B[,B]", help="of accuracy: stored bits (2 to 8)")
    group.add_argument("--trained", nargs="+", metavar="FOLDER", help="of trained: what sigbit train wrote")
    group.add_argument("--plain", action="store_const", const=True, help="of accuracy: measure nearest levels, too")
    group = sub.add_argument_group("boards")
    group.add_argument("--builds", metavar="FOLDER", help="with the folders of sigbit build, by board (build)")

    sub = command(
        "build",
        _build,
        "build a board: a Vivado project and an overlay for PYNQ, or a bitstream with tools from PyPI",
        "sigbit build zcu102 --scripts-only -o build/zcu102; sigbit build ulx3s -o build/ulx3s",
    )
    sub.add_argument("board", choices=("zcu102", "ulx3s"))
    sub.add_argument("--scripts-only", action="store_true", help="write and check everything, run no tool")
    _config(sub, default="the board's own")
    _formats(sub, "otherwise those of the --config file or of the board")
    sub.add_argument("--clock", dest="clock_mhz", type=float, metavar="MHZ", help="zcu102: 200; ulx3s: 50")
    sub.add_argument("--baud", type=_positive, metavar="N", help="of the ULX3S's serial port (3000000)")
    sub.add_argument("--jobs", type=_positive, metavar="N", help="processes of Vivado (2)")
    help = "simulate so many digits on the accelerator first, for Vivado's power report (none)"
    sub.add_argument("--activity", type=_positive, metavar="IMAGES", help=help)
    sub.add_argument("-o", "--output", metavar="FOLDER", help="where everything goes (build/BOARD)")

    help = "write a well-known network with random weights, for measuring cycles and memory"
    sub = command("model", _model, help, "sigbit model resnet18 -o resnet18.onnx")
    sub.add_argument("name", choices=ARCHITECTURES)
    sub.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the weights (0)")
    sub.add_argument("-o", "--output", required=True, metavar="FILE.onnx", help="the model")

    command("doctor", _doctor, "say which tools are installed and how to get those that are missing", "sigbit doctor")
    return parser


def main(arguments=None):
    """Run a command; returns its exit status. Bad options leave through :exc:`SystemExit`, also with status 2."""
    parsed = _parser().parse_args(arguments)
    try:
        return parsed.function(parsed) or 0
    except SigbitError as error:
        message = str(error)
    except BrokenPipeError:
        # The reader of our output left; there is nobody to tell, and Python must not try again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        message = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
    except KeyboardInterrupt:
        message = None
    _say.close()
    print(f"sigbit: {message or 'interrupted'}", file=sys.stderr)
    return 2 if message else 130
