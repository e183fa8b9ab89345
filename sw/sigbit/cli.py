"""Command line ``sigbit``: every command prints for people, or one JSON object with ``--json``; bad input exits with 2."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.errors import SigbitError

from . import evaluation

__all__ = ["main"]


def _say(line):
    """Progress goes to standard error, so that standard output holds results only."""
    print(f"  {line}", file=sys.stderr, flush=True)


def _numbers(text):
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, not {text!r}") from None


def _positive(text):
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not {text!r}")
    return int(text)


def _table(rows, columns):
    """Lines of a plain text table; ``columns`` maps a heading to a function of a row."""
    cells = [list(columns), *([str(value(row)) for value in columns.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def _print(arguments, result, text):
    print(json.dumps(result) if arguments.json else text)


def _percent(value):
    return "-" if value is None else f"{100 * value:.2f} %"


# -- input shared by several commands ----------------------------------------------------------------------------------


def _images(arguments, source, limit=None):
    from .data import load_images

    return load_images(source, limit, scale=arguments.scale, mean=arguments.mean, std=arguments.std)


def _quantized(arguments):
    """The network of a command: read from a network file, or quantized from an ONNX model."""
    from sigbit_sim.golden.network import IntegerNetwork

    from .quantize import quantize

    if Path(arguments.model).suffix != ".onnx":
        return IntegerNetwork.load(arguments.model)
    if arguments.calibration is None:
        raise SigbitError("An ONNX model needs calibration images; give --calibration FILE.npz:NAME")
    calibration, _ = _images(arguments, arguments.calibration)
    if not arguments.json:
        _say(f"quantizing {arguments.model} with {len(calibration)} calibration images")
    return quantize(
        arguments.model,
        calibration,
        weights=arguments.weights,
        activations=arguments.activations,
        edge_bits=arguments.edge_bits,
        per_channel=not arguments.per_tensor,
        alpha_mode=arguments.alpha,
    )


def _config(arguments):
    return evaluation.configuration(arguments.config, arguments.weights, arguments.activations)


# -- commands ----------------------------------------------------------------------------------------------------------


def _quantize(arguments):
    from .onnx_reader import read_onnx
    from .quantize import summary

    network = _quantized(arguments)
    calibration, _ = _images(arguments, arguments.calibration)
    dropped = read_onnx(arguments.model).dropped
    rows = summary(arguments.model, network, calibration)
    network.save(arguments.output)
    text = _table(
        rows,
        {
            "layer": lambda r: r["name"],
            "kind": lambda r: r["kind"],
            "output": lambda r: "x".join(map(str, r["output_shape"])),
            "weights": lambda r: r["weight_format"] or "-",
            "activations": lambda r: f"{r['input_format']} -> {r['output_format']}",
            "MACs": lambda r: r["macs"],
            "SQNR dB": lambda r: "-" if r["sqnr_db"] is None else f"{r['sqnr_db']:.1f}",
        },
    )
    if dropped:
        text += f"\nleft to the host: {', '.join(dropped)}"
    result = {"network": arguments.output, "layers": rows, "left_to_host": dropped}
    _print(arguments, result, f"{text}\nwrote {arguments.output}")


def _compile(arguments):
    from sigbit_sim.golden.network import IntegerNetwork

    from .compiler import compile

    program = compile(IntegerNetwork.load(arguments.network), _config(arguments))
    program.save(arguments.output)
    cycles = sum(layer["compute_cycles"] for layer in program.layers)
    result = {"program": arguments.output, "configuration_hash": f"{program.config.hash:016x}", "compute_cycles": cycles}
    _print(arguments, result, f"wrote {arguments.output}: {cycles} compute cycles per image")


def _run(arguments):
    from sigbit_sim.golden.program import Program

    from .device import open_device
    from .session import Session

    images, labels = _images(arguments, arguments.data, arguments.limit)
    if Program.is_program(arguments.model):
        program = Program.load(arguments.model)
        if arguments.device == "golden":
            raise SigbitError("A compiled program runs on a device; give --device emulator or --device rtl")
        with Session(open_device(arguments.device, program.config, _say), program) as session:
            outputs = session.run(program.input_levels(images))
        result = {"images": len(images), "device": arguments.device}
        if labels is not None:
            result["accuracy"] = float(np.mean(outputs.reshape(len(outputs), -1).argmax(axis=1) == labels))
    else:
        result = _evaluated(arguments, images, labels)
        outputs = result.pop("outputs")
    if arguments.output:
        _save_outputs(arguments.output, outputs)
    lines = [f"{result['images']} images on {arguments.device}"]
    if result.get("accuracy") is not None:
        lines.append(f"accuracy {_percent(result['accuracy'])}")
    if "mismatches_against_golden" in result:
        lines.append(f"images that differ from the golden model: {result['mismatches_against_golden']}")
    if result.get("cycles_per_image"):
        lines.append(f"cycles per image {result['cycles_per_image']:.0f}")
    _print(arguments, result, "\n".join(lines))
    return 1 if result.get("mismatches_against_golden") else 0


def _save_outputs(path, outputs):
    import os

    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.npz")
    try:
        np.savez_compressed(temporary, outputs=outputs)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SigbitError(f"Cannot write outputs to {path}: {error.strerror}") from error


def _evaluated(arguments, images, labels):
    network = _quantized(arguments)
    config = None if arguments.device == "golden" else _config(arguments)
    return evaluation.evaluate(
        network,
        images,
        device=arguments.device,
        config=config,
        labels=labels,
        progress=None if arguments.json else _say,
    )


def _evaluate(arguments):
    from .float_model import run_float
    from .onnx_reader import read_onnx
    from .quantize import summary

    images, labels = _images(arguments, arguments.data, arguments.limit)
    if labels is None:
        raise SigbitError("Accuracy needs labels; name them after the images: --data FILE.npz:IMAGES,LABELS")
    result = _evaluated(arguments, images, labels)
    del result["outputs"]
    logits = run_float(read_onnx(arguments.model), images)
    result["float_accuracy"] = float(np.mean(logits.reshape(len(logits), -1).argmax(axis=1) == labels))
    text = (
        f"{result['images']} images, {arguments.weights} weights, {arguments.activations} activations, {arguments.device}\n"
        f"accuracy: float {_percent(result['float_accuracy'])}, quantized {_percent(result['accuracy'])}\n"
        f"images that differ from the golden model: {result['mismatches_against_golden']}"
    )
    if result["cycles_per_image"]:
        text += f"\ncycles per image: {result['cycles_per_image']:.0f}, MAC utilisation {_percent(result['mac_utilisation'])}"
    if arguments.layers:
        calibration, _ = _images(arguments, arguments.calibration)
        result["layers"] = summary(arguments.model, _quantized(arguments), calibration)
        text += "\n" + _table(
            result["layers"],
            {
                "layer": lambda r: r["name"],
                "weights": lambda r: r["weight_format"] or "-",
                "activations": lambda r: f"{r['input_format']} -> {r['output_format']}",
                "SQNR dB": lambda r: "-" if r["sqnr_db"] is None else f"{r['sqnr_db']:.1f}",
            },
        )
    _print(arguments, result, text)
    return 1 if result["mismatches_against_golden"] else 0


def _verilog(arguments):
    from sigbit_hw.emit import write_verilog

    config = _config(arguments)
    if not arguments.json:
        _say(f"elaborating {config.mac_lanes} multipliers")
    manifest = write_verilog(config, arguments.output)
    _print(arguments, manifest, f"wrote {arguments.output}/sigbit.v and manifest.json, configuration {config.hash:016x}")


def _report(arguments):
    network, config = _quantized(arguments), _config(arguments)
    rows = evaluation.layer_report(network, config)
    text = _table(
        rows,
        {
            "layer": lambda r: r["name"],
            "MACs": lambda r: r["macs"],
            "part products": lambda r: r["part_products"],
            "tiles": lambda r: r["tiles"],
            "weight words": lambda r: r["weight_words"],
            "compute cycles": lambda r: r["compute_cycles"],
            "lanes in use": lambda r: _percent(r["lane_utilisation"]),
        },
    )
    result = {"configuration": config.to_dict(), "mac_lanes": config.mac_lanes, "layers": rows}
    _print(arguments, result, f"{text}\n{config.mac_lanes} lanes; compute cycles without stalls, from the compiler")


def _demo(arguments):
    from .demo import run_demo

    result, text = run_demo(arguments.output, images=arguments.images, progress=_say)
    _print(arguments, result, text)
    return 1 if result["mismatches"] else 0


def _bench(arguments):
    from .bench import run_bench

    rows, text = run_bench(arguments.what, write=arguments.write, progress=_say)
    _print(arguments, rows, text)


def _doctor(arguments):
    from .doctor import examine

    findings = examine()
    text = _table(findings, {"": lambda f: "ok" if f["found"] else "missing", "what": lambda f: f["what"], "note": lambda f: f["note"]})
    _print(arguments, findings, text)
    return 0 if all(finding["found"] for finding in findings) else 2


# -- arguments ---------------------------------------------------------------------------------------------------------


def _parser():
    parser = argparse.ArgumentParser(
        prog="sigbit",
        description="Trained neural networks on generated, LUT-only FPGA accelerators.",
        epilog="sigbit COMMAND --help shows options and an example of each command.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name, function, help, example):
        sub = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=f"Example: {example}",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        sub.add_argument("--json", action="store_true", help="print one JSON value instead of text")
        sub.set_defaults(function=function)
        return sub

    def data(sub, **options):
        if options:
            sub.add_argument("--data", metavar="FILE.npz:X[,Y]", help="images and labels, uint8 NHWC or float NCHW", **options)
            sub.add_argument("--limit", type=_positive, metavar="N", help="use the first N images only")
        sub.add_argument("--scale", type=float, default=255.0, help="uint8 images are divided by this")
        sub.add_argument("--mean", type=_numbers, default=[0.0], metavar="M[,M,M]", help="then this is subtracted")
        sub.add_argument("--std", type=_numbers, default=[1.0], metavar="S[,S,S]", help="and divided by this")

    def formats(sub, default=("esb:4,2", "esbu:4,2")):
        sub.add_argument("--weights", default=default[0], metavar="FORMAT", help="int:B or esb:B,K")
        sub.add_argument("--activations", default=default[1], metavar="FORMAT", help="uint:B, esbu:B,K, int:B or esb:B,K")

    def quantization(sub, calibration_required=False):
        sub.add_argument(
            "--calibration", required=calibration_required, metavar="FILE.npz:X", help="images that fix the scales"
        )
        sub.add_argument("--edge-bits", type=_positive, metavar="B", help="int:B weights in the first and last layer")
        sub.add_argument("--per-tensor", action="store_true", help="one weight scale per layer instead of per channel")
        sub.add_argument("--alpha", choices=("mse", "dda", "max"), default="mse", help="how scales are found")

    def config(sub, default="small"):
        sub.add_argument("--config", default=default, metavar="NAME|FILE", help=f"{', '.join(PRESETS)}, or a JSON file")

    def device(sub):
        sub.add_argument("--device", choices=evaluation.DEVICES, default="golden", help="what computes")

    sub = command(
        "quantize", _quantize, "quantize an ONNX model and write the integer network",
        "sigbit quantize lenet.onnx --calibration mnist.npz:calib_x --mean 0.1307 --std 0.3081 -o lenet.network.npz",
    )  # fmt: skip
    sub.add_argument("model", metavar="MODEL.onnx")
    quantization(sub, calibration_required=True)
    formats(sub)
    data(sub)
    sub.add_argument("-o", "--output", required=True, metavar="FILE", help="integer network")

    sub = command(
        "compile", _compile, "compile an integer network for a configuration",
        "sigbit compile lenet.network.npz --config small -o lenet.program",
    )  # fmt: skip
    sub.add_argument("network", metavar="NETWORK")
    config(sub)
    formats(sub)
    sub.add_argument("-o", "--output", required=True, metavar="FILE", help="program")

    sub = command(
        "run", _run, "run a model, an integer network or a compiled program on a device",
        "sigbit run lenet.network.npz --data mnist.npz:x,y --mean 0.1307 --std 0.3081 --device rtl --limit 50",
    )  # fmt: skip
    sub.add_argument("model", metavar="MODEL|NETWORK|PROGRAM")
    data(sub, required=True)
    quantization(sub)
    formats(sub)
    config(sub)
    device(sub)
    sub.add_argument("-o", "--output", metavar="FILE.npz", help="write the outputs")

    sub = command(
        "evaluate", _evaluate, "quantize, compile and run a classifier, and say how accurate it is",
        "sigbit evaluate lenet.onnx --data mnist.npz:x,y --calibration mnist.npz:calib_x --mean 0.1307 --std 0.3081",
    )  # fmt: skip
    sub.add_argument("model", metavar="MODEL.onnx")
    data(sub, required=True)
    quantization(sub, calibration_required=True)
    formats(sub)
    config(sub)
    device(sub)
    sub.add_argument("--layers", action="store_true", help="add formats and error of every layer")

    sub = command(
        "verilog", _verilog, "write the accelerator as Verilog, with a manifest",
        "sigbit verilog --config zcu102 --weights esb:4,2 --activations esbu:4,2 -o build/zcu102",
    )  # fmt: skip
    config(sub, default="zcu102")
    formats(sub, default=(None, None))
    sub.add_argument("-o", "--output", required=True, metavar="FOLDER")

    sub = command(
        "report", _report, "show what the compiler makes of every layer",
        "sigbit report lenet.network.npz --config small",
    )  # fmt: skip
    sub.add_argument("model", metavar="MODEL|NETWORK")
    data(sub)
    quantization(sub)
    formats(sub)
    config(sub)

    sub = command(
        "demo", _demo, "quantize the digits network, run it in RTL simulation and write the ZCU102 Verilog", "sigbit demo"
    )
    sub.add_argument("--images", type=_positive, default=400, metavar="N", help="test images")
    sub.add_argument("-o", "--output", default="build/demo", metavar="FOLDER", help="where the Verilog goes")

    sub = command("bench", _bench, "measure LUTs per MAC, or simulation speed", "sigbit bench lut --json")
    sub.add_argument("what", choices=("lut", "sim"))
    sub.add_argument("--write", metavar="FILE.md", help="replace the bench's table in this file")

    command("doctor", _doctor, "say which tools are installed and how to get those that are missing", "sigbit doctor")
    return parser


def main(arguments=None):
    """Run a command; returns its exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        return parsed.function(parsed) or 0
    except SigbitError as error:
        print(f"sigbit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sigbit: interrupted", file=sys.stderr)
        return 130
