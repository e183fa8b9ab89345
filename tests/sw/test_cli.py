"""The command line: what commands print and write, and one message with status 2 for everything they cannot use."""

import json
import re
import shlex
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from sigbit import cli
from sigbit.cli import main
from sigbit.progress import Progress
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import Format

MODELS = files("sigbit") / "models"
MODEL = f"{MODELS}/digits.onnx"
DATA = f"{MODELS}/digits.npz"
SCALE = ["--scale", "16"]
CALIBRATION = ["--calibration", f"{DATA}:x_calibration", *SCALE]
IMAGES = ["--data", f"{DATA}:x_test,y_test", "--limit", "20"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with the network and the program of the digits model."""
    folder = tmp_path_factory.mktemp("built")
    assert main(["quantize", MODEL, *CALIBRATION, "-o", str(folder / "digits.npz"), "--json"]) == 0
    assert main(["compile", str(folder / "digits.npz"), "-o", str(folder / "digits.program"), "--json"]) == 0
    return folder


def run(capsys, *arguments, status=0):
    """Standard output of a command."""
    assert main([str(argument) for argument in arguments]) == status
    return capsys.readouterr().out


def run_json(capsys, *arguments, status=0):
    """The one JSON value on standard output."""
    return json.loads(run(capsys, *arguments, "--json", status=status))


def refusal(capsys, *arguments):
    """The one message of a command that fails, which must leave no file."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    before, *messages = re.split(r"^sigbit: ", captured.err, flags=re.MULTILINE)
    assert status == 2
    assert captured.out == ""
    assert len(messages) == 1, captured.err
    assert all(line.startswith("  ") for line in before.splitlines()), "only progress before the message"
    assert messages[0].count("\n") == len(messages[0].splitlines()), "the message ends its line"
    return messages[0].rstrip()


def two_headed(path):
    """The digits model with a second output, the map behind its first ReLU."""
    model = onnx.load(MODEL)
    name = next(node.output[0] for node in model.graph.node if node.op_type == "Relu")
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    onnx.save(model, path)
    return [output.name for output in model.graph.output]


# -- commands ----------------------------------------------------------------------------------------------------------


def test_quantize_compile_and_run_give_what_the_golden_model_gives(built, tmp_path, capsys):
    golden = run_json(capsys, "run", built / "digits.npz", *IMAGES, *SCALE, "-o", tmp_path / "golden.npz")
    device = run_json(capsys, "run", built / "digits.program", *IMAGES, *SCALE, "-o", tmp_path / "device.npz")
    model = run_json(capsys, "run", MODEL, *IMAGES, *CALIBRATION, "--device", "emulator")
    assert (golden["device"], device["device"], model["device"]) == ("golden", "emulator", "emulator")
    assert golden["accuracy"] == device["accuracy"] == model["accuracy"] >= 0.9
    assert model["mismatches_against_golden"] == 0
    first, second = (np.load(tmp_path / f"{name}.npz")["outputs"] for name in ("golden", "device"))
    assert first.shape == (20, 10)
    assert (first == second).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device.npz", "golden.npz"]


def test_several_outputs_are_written_and_evaluated_by_name(tmp_path, capsys):
    names = two_headed(tmp_path / "two.onnx")
    assert main(["quantize", "two.onnx", *CALIBRATION, "-o", "two.npz"]) == 0
    assert main(["compile", "two.npz", "-o", "two.program"]) == 0
    capsys.readouterr()
    golden = run_json(capsys, "run", "two.npz", *IMAGES, *SCALE, "-o", "golden.npz")
    device = run_json(capsys, "run", "two.program", *IMAGES, *SCALE, "-o", "device.npz")
    assert golden["accuracy"] == device["accuracy"] >= 0.9
    first, second = np.load("golden.npz"), np.load("device.npz")
    assert sorted(first) == sorted(second) == sorted(names)
    for name in names:
        assert (first[name] == second[name]).all()
    shared = ["evaluate", "two.onnx", *IMAGES, *CALIBRATION]
    assert run_json(capsys, *shared)["accuracy"] == run_json(capsys, *shared, "--output", names[0])["accuracy"] >= 0.9
    assert run_json(capsys, *shared, "--output", names[1])["accuracy"] < 0.9
    assert refusal(capsys, *shared, "--output", "logit").startswith("The model has no output 'logit'; it has ")


def test_a_forecast_with_a_split_per_layer_is_one_command(capsys):
    series = MODEL.replace("digits", "series")
    arguments = ["--calibration", series.replace(".onnx", ".npz:x_calibration"), "--limit", 40, "--edge-bits", 8]
    arguments += ["--data", series.replace(".onnx", ".npz:x_test,y_test"), "--device", "emulator"]
    adaptive = ["--weights", "auto", "--activations", "auto", "--config", "tables"]
    result = run_json(capsys, "evaluate", series, *arguments, *adaptive, "--layers")
    assert result["mismatches_against_golden"] == 0
    assert result["float_rmse"] < result["rmse"] < 0.1
    assert (result["accuracy"], result["float_accuracy"]) == (None, None)
    formats = {layer["weight_format"] for layer in result["layers"]} - {"int:8"}
    assert all(text.startswith("ausn-g:") and Format.parse(text).bits == 4 for text in formats)
    assert "root mean squared error 0." in run(capsys, "run", series, *arguments, *adaptive)


def test_evaluate_prints_the_keys_of_its_contract(capsys):
    result = run_json(capsys, "evaluate", MODEL, *IMAGES, *CALIBRATION, "--edge-bits", 8, "--device", "emulator")
    assert {"images", "float_accuracy", "accuracy", "mismatches_against_golden", "cycles_per_image"} <= set(result)
    assert result["images"] == 20
    assert result["mismatches_against_golden"] == 0
    assert "layers" not in result


def test_single_layers_get_formats_of_their_own(capsys, tmp_path):
    names = [row["name"] for row in run_json(capsys, "quantize", MODEL, *CALIBRATION, "-o", "plain.npz")["layers"]]
    layers = {names[0]: {"weights": "int:6", "activations": "uint:3"}, names[-1]: {"weights": "int:8"}}
    (tmp_path / "layers.json").write_text(json.dumps(layers))
    own = ["--layer-formats", "layers.json", "--signed-activations", "int:5"]
    result = run_json(capsys, "evaluate", MODEL, *IMAGES, *CALIBRATION, *own, "--layers", "--device", "emulator")
    assert result["mismatches_against_golden"] == 0
    rows = result["layers"]
    assert (rows[0]["weight_format"], rows[0]["output_format"]) == ("int:6", "uint:3")
    assert (rows[-1]["weight_format"], rows[-1]["output_format"]) == ("int:8", "raw32")
    assert {row["weight_format"] for row in rows[1:-1]} <= {"esb:4,2", None}


def test_one_accelerator_of_tables_takes_layers_of_any_formats(capsys, tmp_path):
    tables = {"cell": "table", "table_weight_bits": 7, "table_product_bits": 12, "max_reduction": 1024}
    (tmp_path / "tables.json").write_text(json.dumps(PRESETS["small"].to_dict() | tables))
    found = run_json(capsys, "quantize", MODEL, *CALIBRATION, "-o", "plain.npz")["layers"]
    names = [row["name"] for row in found if row["weight_format"]]
    weights = dict(zip(names, ("esb:4,0", "esb:4,1", "int:4", "esb:3,0", "int:8"), strict=True))
    layers = {name: {"weights": text} for name, text in weights.items()}
    layers[names[0]]["activations"] = "uint:4"
    (tmp_path / "layers.json").write_text(json.dumps(layers))
    own = ["--layer-formats", "layers.json", "--config", "tables.json"]
    result = run_json(capsys, "evaluate", MODEL, *IMAGES, *CALIBRATION, *own, "--layers", "--device", "emulator")
    assert result["mismatches_against_golden"] == 0
    rows = [row for row in result["layers"] if row["weight_format"]]
    assert [row["weight_format"] for row in rows] == list(weights.values())
    passes = [row["part_products"] // row["macs"] for row in rows]
    assert passes == [2, 1, 1, 1, 2], "images have two digits, and int:8 has more levels than there are codes"


@pytest.mark.parametrize("device", ["golden", "emulator"])
def test_evaluate_shows_layers(capsys, device):
    result = run_json(capsys, "evaluate", MODEL, *IMAGES, *CALIBRATION, "--layers", "--device", device)
    keys = {"name", "weight_format", "input_format", "output_format", "macs", "sqnr_db"}
    if device == "emulator":
        keys |= {"part_products", "compute_cycles", "lane_utilisation"}
    assert all(keys <= set(row) for row in result["layers"])
    text = run(capsys, "evaluate", MODEL, *IMAGES, *CALIBRATION, "--layers", "--device", device)
    assert "accuracy: float" in text
    assert all(row["name"] in text for row in result["layers"])


@pytest.mark.parametrize(
    "options",
    [
        "--weights int:8 --activations uint:8",
        "--weights esb:3,0 --activations esbu:2,0",
        "--weights esb:5,2 --activations esbu:5,3",
        "--weights esb:4,2 --activations esb:4,2",
        "--weights int:4 --activations uint:4 --edge-bits 8",
        "--weights esb:4,1 --activations esbu:4,2 --per-tensor",
        "--weights esb:4,2 --activations esbu:4,2 --alpha dda",
        "--weights int:8 --activations int:8 --edge-bits 8",
    ],
)
def test_every_pair_of_formats_runs_bit_exactly(capsys, options):
    options = shlex.split(options)
    result = run_json(capsys, "evaluate", MODEL, *IMAGES, *CALIBRATION, *options, "--device", "emulator")
    assert (result["weights"], result["activations"]) == (options[1], options[3])
    assert result["mismatches_against_golden"] == 0
    assert result["accuracy"] >= 0.85


def test_a_network_brings_its_formats_and_a_file_brings_its_own(capsys, tmp_path):
    main(
        [
            "quantize",
            MODEL,
            *CALIBRATION,
            "--weights",
            "esb:5,2",
            "--activations",
            "esbu:5,3",
            "-o",
            "five.npz",
            "--json",
        ]
    )
    capsys.readouterr()
    own = run_json(capsys, "compile", "five.npz", "-o", "five.program")
    assert (own["weights"], own["activations"]) == ("esb:5,2", "esbu:5,3")
    values = {**PRESETS["small"].to_dict(), "weight_format": "int:4", "activation_format": "uint:4"}
    (tmp_path / "four.json").write_text(json.dumps(values))
    result = run_json(capsys, "evaluate", MODEL, *IMAGES, *CALIBRATION, "--config", "four.json", "--device", "emulator")
    assert (result["weights"], result["activations"]) == ("int:4", "uint:4")


def test_report_of_a_model_has_errors_and_of_a_network_has_none(built, capsys):
    model = run_json(capsys, "report", MODEL, *CALIBRATION)
    network = run_json(capsys, "report", built / "digits.npz", "--config", "tiny")
    assert all("sqnr_db" in row for row in model["layers"])
    assert not any("sqnr_db" in row for row in network["layers"])
    assert model["mac_lanes"] == PRESETS["small"].mac_lanes
    assert model["resources"]["fits"]
    assert f"{model['resources']['spare']} to spare" in run(capsys, "report", MODEL, *CALIBRATION)
    assert network["configuration"]["rows"] == PRESETS["tiny"].rows
    for result in (model, network):
        assert result["total"]["macs"] == sum(row["macs"] for row in result["layers"])
    assert "SQNR" in run(capsys, "report", MODEL, *CALIBRATION)
    assert "SQNR" not in run(capsys, "report", built / "digits.npz")


def test_report_says_where_the_cycles_go(built, capsys):
    result = run_json(capsys, "report", built / "digits.npz", "--config", "tiny", "--device", "rtl", "--images", "2")
    assert (result["images"], result["mismatches"]) == (2, 0)
    text = run(capsys, "report", built / "digits.npz", "--config", "tiny", "--device", "rtl", "--images", "2")
    last = result["layers"][-1]
    line = next(line for line in text.splitlines() if line.startswith(last["name"]) and last["bound_by"] in line)
    total = last["predicted"]["total"]
    assert f"  {total:,}  ".replace(",", " ") in line
    assert "frames per second at 200 / 250 / 300 MHz: arithmetic, not timing" in text
    assert "0 of 2 images differ from the golden model; the prediction is" in text


def test_groups_of_images_run_from_a_program_and_from_a_network(built, tmp_path, capsys):
    network, program = built / "digits.npz", tmp_path / "group.program"
    text = run(capsys, "compile", network, "-o", program, "--batch", "4")
    compiled = run_json(capsys, "compile", network, "-o", program, "--batch", "4")
    assert (compiled["batch"], f"{compiled['compute_cycles']:.0f} cycles per image" in text) == (4, True)
    one = run_json(capsys, "run", built / "digits.program", *IMAGES, *SCALE, "--limit", "6", "-o", tmp_path / "one.npz")
    four = run_json(capsys, "run", program, *IMAGES, *SCALE, "--limit", "6", "-o", tmp_path / "four.npz")
    assert one["accuracy"] == four["accuracy"]
    assert one["images"] == four["images"] == 6
    with np.load(tmp_path / "one.npz") as ones, np.load(tmp_path / "four.npz") as fours:
        np.testing.assert_array_equal(ones["outputs"], fours["outputs"])
    options = ("--limit", "6", "--device", "emulator", "--batch", "4")
    assert run_json(capsys, "run", network, *IMAGES, *SCALE, *options)["mismatches_against_golden"] == 0
    evaluated = run_json(capsys, "evaluate", MODEL, *IMAGES, *CALIBRATION, *options, "--layers")
    assert evaluated["mismatches_against_golden"] == 0
    assert run_json(capsys, "report", network, "--batch", "3", "--images", "4")["images"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run {built}/digits.program", "--batch has no effect on a compiled program"),
        ("run {built}/digits.npz", "--batch has no effect on the golden model"),
    ],
)
def test_a_batch_that_changes_nothing_is_refused(built, capsys, arguments, message):
    assert message in refusal(capsys, *arguments.format(built=built).split(), *IMAGES, *SCALE, "--batch", "2")


def test_verilog_writes_both_files(tmp_path, capsys):
    manifest = run_json(capsys, "verilog", "--config", "tiny", "--weights", "int:4", "-o", tmp_path / "out")
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["configuration"]["weight_format"] == "int:4"
    assert "module sigbit(" in (tmp_path / "out" / "sigbit.v").read_text()
    # The manifest is a configuration.
    again = run_json(capsys, "verilog", "--config", tmp_path / "out" / "manifest.json", "-o", tmp_path / "again")
    assert again["configuration_hash"] == manifest["configuration_hash"]
    assert (tmp_path / "again" / "sigbit.v").read_text() == (tmp_path / "out" / "sigbit.v").read_text()


def test_doctor_names_every_tool(capsys):
    found = run_json(capsys, "doctor")
    assert {"Python", "amaranth", "onnx", "g++", "make", "perl", "Verilator"} <= {row["what"] for row in found}


def test_doctor_fails_when_a_tool_is_missing(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = run_json(capsys, "doctor", status=2)
    missing = {row["what"]: row["note"] for row in found if not row["found"]}
    assert "apt-get install g++" in missing["g++"]
    assert "g++ make perl" in missing["Verilator"]


def test_a_difference_from_the_golden_model_is_status_1(monkeypatch, capsys):
    def wrong(network, images, **options):
        return {
            "images": 1,
            "device": "rtl",
            "accuracy": 0.0,
            "rmse": None,
            "mismatches_against_golden": 1,
            "cycles_per_image": None,
            "first_mismatch": {
                "image": 0,
                "position": (2,),
                "found": 3,
                "expected": 4,
                "layer": {"name": "conv1", "position": (5, 1, 0), "found": -1, "expected": 2},
            },
            "layers": None,
            "outputs": np.zeros((1, 10)),
        }

    monkeypatch.setattr(cli.evaluation, "evaluate", wrong)
    for command in ("run", "evaluate"):
        text = run(capsys, command, MODEL, *IMAGES, *CALIBRATION, status=1)
        assert "1 of 1 images differ from the golden model" in text
        assert (
            "image 0, channel 2: 3 instead of 4; first wrong layer conv1, channel 5, y 1, x 0: -1 instead of 2" in text
        )


def test_an_internal_error_shows_its_traceback(monkeypatch):
    def broken(*arguments, **options):
        raise KeyError("defect")

    monkeypatch.setattr(cli.evaluation, "evaluate", broken)
    with pytest.raises(KeyError, match="defect"):
        main(["run", MODEL, *IMAGES, *CALIBRATION])


def test_ctrl_c_is_one_line_and_status_130(monkeypatch, capsys):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.evaluation, "evaluate", stopped)
    assert main(["run", MODEL, *IMAGES, *CALIBRATION]) == 130
    assert capsys.readouterr().err.endswith("sigbit: interrupted\n")


# -- bad input ---------------------------------------------------------------------------------------------------------


def broken_models(folder):
    """Name -> model file that cannot be used."""
    model = onnx.load(MODEL)
    (folder / "text.onnx").write_text("not a model")
    (folder / "empty.onnx").write_bytes(b"")
    data = model.SerializeToString()
    (folder / "half.onnx").write_bytes(data[: len(data) // 2])

    def save(name):
        onnx.save(model, folder / name)

    weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = numpy_helper.to_array(weights).copy()
    values[0, 0, 0, 0] = np.nan
    original = onnx.TensorProto.FromString(weights.SerializeToString())
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    save("nan.onnx")
    weights.CopyFrom(numpy_helper.from_array(np.ones((8, 7, 3, 3), np.float32), weights.name))
    save("shape.onnx")
    weights.CopyFrom(original)
    first = next(node for node in model.graph.node if node.op_type == "Relu")
    first.op_type = "Softsign"
    save("operator.onnx")
    first.op_type = "Relu"

    def change(name, alter):
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        alter(changed)
        onnx.save(changed, folder / name)

    def sizes(changed):
        return changed.graph.input[0].type.tensor_type.shape.dim

    def many(changed):
        source = changed.graph.input[0].name
        for index in range(300):
            changed.graph.node.append(onnx.helper.make_node("Erf", [source], [f"e{index}"], name=f"erf{index}"))

    def outside(changed):
        onnx.external_data_helper.convert_model_to_external_data(changed, location="absent.bin", size_threshold=0)

    change("dynamic.onnx", lambda changed: setattr(sizes(changed)[2], "dim_param", "rows"))
    change("nothing.onnx", lambda changed: setattr(sizes(changed)[1], "dim_value", 0))
    change("huge.onnx", lambda changed: setattr(sizes(changed)[2], "dim_value", 1 << 62))
    change("old.onnx", lambda changed: setattr(changed.opset_import[0], "version", 6))
    change("new.onnx", lambda changed: setattr(changed.opset_import[0], "version", 99))
    change("many.onnx", many)
    change("cycle.onnx", lambda changed: changed.graph.node[0].input.__setitem__(0, changed.graph.node[1].output[0]))
    change("dangling.onnx", lambda changed: changed.graph.node[1].input.__setitem__(0, "absent"))
    change("output.onnx", lambda changed: setattr(changed.graph.output[0], "name", "absent"))
    change("outside.onnx", outside)
    (folder / "absent.bin").unlink()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("missing.onnx", "missing.onnx"),
        ("text.onnx", "text.onnx"),
        ("empty.onnx", "empty.onnx"),
        ("half.onnx", "half.onnx"),
        (".", "."),
        ("nan.onnx", "NaN|nan|finite"),
        ("shape.onnx", "channels"),
        ("operator.onnx", "Softsign"),
        ("dynamic.onnx", "only the batch may be dynamic, not 'rows'"),
        ("nothing.onnx", "every size must be at least 1"),
        ("huge.onnx", "values per image; at most"),
        ("old.onnx", "operator set 6; supported are"),
        ("new.onnx", "operator set 99; supported are"),
        ("many.onnx", "300 unsupported or broken nodes(.|\n)*Erf 'erf0'.* and 200 more: operator Erf is not supported"),
        ("cycle.onnx", "before it is written: a cycle"),
        ("dangling.onnx", "reads tensor 'absent', which nothing before it writes"),
        ("output.onnx", "nothing writes output 'absent'"),
        ("outside.onnx", "from 'absent.bin'"),
    ],
)
def test_a_model_that_cannot_be_used_is_named(tmp_path, capsys, model, message):
    broken_models(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert re.search(message, refusal(capsys, "quantize", model, *CALIBRATION, "-o", "network.npz"))
    assert re.search(message, refusal(capsys, "evaluate", model, *IMAGES, *CALIBRATION))
    assert sorted(tmp_path.iterdir()) == before


QUANTIZE = f"quantize {MODEL} -o out"
EVALUATE = f"evaluate {MODEL} --data {DATA}:x_test,y_test --limit 2 --scale 16"
CALIBRATED = f"--calibration {DATA}:x_calibration"
CASES = {
    "no command": ("", "required"),
    "unknown command": ("learn", "invalid choice"),
    "unknown option": (f"{EVALUATE} {CALIBRATED} --fast", "--fast"),
    "unknown device": (f"{EVALUATE} {CALIBRATED} --device board", "expected golden, emulator, rtl, serial:PORT"),
    "bad number": (f"{EVALUATE} {CALIBRATED} --mean 0,x", "numbers separated by commas"),
    "limit of zero": (f"evaluate {MODEL} {CALIBRATED} --data {DATA}:x_test,y_test --limit 0", "at least 1"),
    "no calibration": (f"run {MODEL} --data {DATA}:x_test", "--calibration"),
    "empty calibration": (f"{QUANTIZE} --calibration data.npz:empty", "holds no images"),
    "other shape": (f"{QUANTIZE} --calibration data.npz:large", r"8"),
    "other channels": (f"{QUANTIZE} --calibration data.npz:colour", r"channel|shape"),
    "NaN images": (f"{QUANTIZE} --calibration data.npz:nan", "finite"),
    "missing data file": (f"{QUANTIZE} --calibration none.npz:x", "none.npz"),
    "missing array": (f"{QUANTIZE} --calibration {DATA}:images", "has no array 'images'"),
    "no array name": (f"{QUANTIZE} --calibration {DATA}", "FILE.npz:"),
    "data is no archive": (f"{QUANTIZE} --calibration {MODEL}:x", "not a readable .npz"),
    "std of zero": (f"{QUANTIZE} {CALIBRATED} --std 0", "std must be finite and greater than 0"),
    "means of other channels": (f"{QUANTIZE} {CALIBRATED} --mean 1,2,3", "one per channel"),
    "no labels": (f"evaluate {MODEL} {CALIBRATED} --data {DATA}:x_test", "IMAGES,LABELS"),
    "labels too large": (f"evaluate {MODEL} {CALIBRATED} --data data.npz:ok,many", "classes 0 to 9"),
    "unknown format": (f"{EVALUATE} {CALIBRATED} --weights float:4", "float:4"),
    "no such format": (f"{EVALUATE} {CALIBRATED} --weights esb:3,2", "esb"),
    "unsigned weights": (f"{EVALUATE} {CALIBRATED} --weights uint:4", "weight_format must be signed"),
    "edge bits": (f"{QUANTIZE} {CALIBRATED} --edge-bits 9", "edge_bits must be None or 2 to 8"),
    "layer formats missing": (
        f"{QUANTIZE} {CALIBRATED} --layer-formats none.json",
        "Cannot read the layer .* none.json",
    ),
    "layer formats no JSON": (f"{QUANTIZE} {CALIBRATED} --layer-formats data.npz", "are not JSON"),
    "layer formats of no layer": (f"{QUANTIZE} {CALIBRATED} --layer-formats layers.json", "'first': no layer has this"),
    "layer formats no object": (f"{QUANTIZE} {CALIBRATED} --layer-formats list.json", "must be an object .* not list"),
    "layer formats of a network": (f"run NETWORK --data {DATA}:x_test --layer-formats layers.json", "has no effect"),
    "signed format unsigned": (f"{QUANTIZE} {CALIBRATED} --signed-activations uint:4", "must be a signed format"),
    "unknown preset": (f"{EVALUATE} {CALIBRATED} --config huge", "neither a preset"),
    "configuration is a folder": (f"{EVALUATE} {CALIBRATED} --config .", "neither a preset"),
    "formats too wide": (f"{EVALUATE} {CALIBRATED} --weights esb:8,4 --activations esbu:8,5", "--config FILE"),
    "feature memory": (f"{EVALUATE} {CALIBRATED} --device rtl --config features.json", "raise feature_depth"),
    "weight memory": (f"{EVALUATE} {CALIBRATED} --device rtl --config weights.json", "weight_depth"),
    "parameter memory": (f"{EVALUATE} {CALIBRATED} --device rtl --config parameters.json", "parameter_depth"),
    "accumulators": (
        f"{EVALUATE} {CALIBRATED} --device rtl --config accumulators.json --weights int:8 --activations uint:8",
        "max_reduction",
    ),
    "output is a folder": (f"quantize {MODEL} {CALIBRATED} -o .", "it is a folder"),
    "output folder missing": (f"quantize {MODEL} {CALIBRATED} -o no/out", "the folder no does not exist"),
    "model instead of network": (f"compile {MODEL} -o out", "write one with: sigbit quantize"),
    "network missing": ("compile none.npz -o out", "does not exist"),
    "archive is no network": (f"compile {DATA} -o out", "not an integer network"),
    "network evaluated": ("evaluate NETWORK --data d.npz:x,y --calibration d.npz:x", "d.npz"),
    "option without effect": (f"run NETWORK --data {DATA}:x_test --edge-bits 8", "--edge-bits has no effect"),
    "network on another array": (
        f"run NETWORK --data {DATA}:x_test --scale 16 --device emulator --weights int:4 --activations uint:4",
        "uint:4",
    ),
    "images of another network": ("run NETWORK --data data.npz:large", "shape"),
    "program on another configuration": (
        f"run PROGRAM --data {DATA}:x_test --scale 16 --config tiny",
        "compiled for another accelerator: rows 1 instead of 2",
    ),
    "program on other formats": (
        f"run PROGRAM --data {DATA}:x_test --config small --weights int:4",
        "another accelerator",
    ),
    "program on golden": (f"run PROGRAM --data {DATA}:x_test --device golden", "--device emulator or rtl"),
    "program with an option": (f"run PROGRAM --data {DATA}:x_test --weights int:4", "--weights has no effect"),
    "images of another program": ("run PROGRAM --data data.npz:large", r"\(1, 8, 8\)"),
    "damaged program": (f"run damaged.program --data {DATA}:x_test", "damaged"),
    "outputs to a folder": (f"run NETWORK --data {DATA}:x_test -o .", "it is a folder"),
    "Verilog to a file": ("verilog --config tiny -o data.npz", "data.npz"),
    "table in a missing file": ("bench lut --write none.md", "Cannot read none.md"),
    "table without a place": ("bench lut --write accumulators.json", "the table goes between"),
    "demo without images": ("demo --images 0", "at least 1"),
    "demo to a file": ("demo -o data.npz", "give a folder"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_message_and_leaves_no_file(built, tmp_path, capsys, case):
    command, message = CASES[case]
    np.savez(
        tmp_path / "data.npz",
        empty=np.zeros((0, 8, 8), np.uint8),
        large=np.zeros((4, 9, 9), np.uint8),
        colour=np.zeros((4, 8, 8, 3), np.uint8),
        nan=np.full((4, 1, 8, 8), np.nan, np.float32),
        ok=np.zeros((4, 8, 8), np.uint8),
        many=np.arange(8, 12),
    )
    small = PRESETS["tiny"].to_dict()
    changes = {
        "features": {"feature_depth": 16},
        "weights": {"weight_depth": 16, "columns": 64, "post_lanes": 1},
        "parameters": {"parameter_depth": 2, "columns": 64, "post_lanes": 1},
        "accumulators": {"max_reduction": 1, "max_wide_reduction": 1},
    }
    for name, change in changes.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({**small, **change}))
    (tmp_path / "layers.json").write_text('{"first": {"weights": "int:8"}}')
    (tmp_path / "list.json").write_text("[]")
    data = bytearray((built / "digits.program").read_bytes())
    data[-100] ^= 1
    (tmp_path / "damaged.program").write_bytes(data)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    command = command.replace("NETWORK", str(built / "digits.npz")).replace("PROGRAM", str(built / "digits.program"))
    assert re.search(message, refusal(capsys, *shlex.split(command)))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_unwritable_output_is_one_message(built, capsys, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device", "outputs.npz")

    monkeypatch.setattr(cli.np, "savez_compressed", full)
    message = refusal(capsys, "run", built / "digits.npz", *IMAGES, *SCALE, "-o", "outputs.npz")
    assert message == "No space left on device: outputs.npz"


# -- help and progress -------------------------------------------------------------------------------------------------

COMMANDS = ("quantize", "compile", "run", "evaluate", "verilog", "report", "demo", "bench", "doctor")


def documented():
    """Commands of README and docs: ``(file, command, its options)``."""
    root = Path(__file__).parents[2]
    for path in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        text = path.read_text().replace("\\\n", " ")
        for command, rest in re.findall(r"^ {4,}(?:[^#\n]* -m )?sigbit (\w+)([^#\n]*)", text, re.M):
            yield path.name, command, re.findall(r"(?<![\w-])--?[a-z][\w-]*", rest)


def test_documented_commands_have_the_options_that_they_name():
    commands = next(action.choices for action in cli._parser()._actions if action.choices)
    found = list(documented())
    assert len(found) > 40
    for name, command, options in found:
        unknown = set(options) - set(commands[command]._option_string_actions)
        assert not unknown, f"{name}: sigbit {command} has no {', '.join(unknown)}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    example = text.split("Example: sigbit ")[1]
    assert cli._parser().parse_args(shlex.split(example)).function is not None
    assert "--json" in text


class _Stream:
    def __init__(self, terminal):
        self.text, self._terminal = "", terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return self._terminal


@pytest.fixture
def clock(monkeypatch):
    """Time passes as a test says."""
    now = [0.0]
    monkeypatch.setattr("sigbit.progress.time.monotonic", lambda: now[0])
    return now


def test_progress_into_a_file_says_now_and_then_how_long_it_takes(clock):
    stream = _Stream(terminal=False)
    progress = Progress(stream)
    progress("building")
    for done in range(1, 41):
        clock[0] += 0.5
        progress("images", done, 40)
    assert stream.text.splitlines() == [
        "  building",
        "  images: 21 of 40, about 9.0 s left",
        "  images: 40 of 40, 20 s",
    ]


def test_progress_on_a_terminal_rewrites_one_line(clock):
    stream = _Stream(terminal=True)
    progress = Progress(stream)
    for done in range(1, 5):
        clock[0] += 1
        progress("images", done, 4)
    progress("next")
    assert stream.text.count("\n") == 2
    assert stream.text.count("\r\033[K") == 2
    assert stream.text.endswith("images: 4 of 4, 3.0 s\n  next\n")
