"""The demo: its network is as accurate as it says, and what it prints. The emulator stands in for the RTL here."""

import json

import numpy as np
import pytest
from sigbit import demo, evaluation
from sigbit.cli import main
from sigbit.evaluation import accuracy, evaluate
from sigbit.float_model import run_float

SIZE = {"lut": 1234, "ff": 2345, "dsp": 0, "yosys": "Yosys"}


class _Inline:
    """Runs at once what the demo gives to another process."""

    def __init__(self, *arguments, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def submit(self, function, *arguments):
        self._value = function(*arguments)
        return self

    def done(self):
        return True

    def result(self):
        return self._value


@pytest.fixture
def _quick(monkeypatch, tmp_path):
    """No Verilator, no Yosys, no elaboration."""
    original = evaluation.evaluate

    def on_emulator(network, images, **options):
        result = original(network, images, **{**options, "device": "emulator"})
        return {**result, "cycles_per_image": 1000.0, "mac_utilisation": 0.25}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "evaluate", on_emulator)
    monkeypatch.setattr(demo, "_size", lambda config: SIZE)
    monkeypatch.setattr(demo, "ProcessPoolExecutor", _Inline)
    monkeypatch.setattr("sigbit_hw.emit.emit_verilog", lambda config, family: f"// {config.mac_lanes} lanes")


def test_the_digits_network_keeps_its_accuracy_in_4_bits():
    network, images, labels = demo.digits_network()
    assert len(images) >= 200
    float_accuracy = accuracy(run_float(demo._digits_model(), images), labels)
    quantized = evaluate(network, images, labels=labels)["accuracy"]
    assert float_accuracy >= 0.97
    assert quantized >= float_accuracy - 0.02
    assert {str(layer.weight_format) for layer in network.layers if hasattr(layer, "weights")} == {"esb:4,2", "int:8"}


@pytest.mark.usefixtures("_quick")
def test_the_demo_ends_with_one_object_that_has_the_keys_of_its_contract(capsys, tmp_path):
    assert main(["demo", "--json", "--images", "30", "-o", "verilog"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 30
    assert result["mismatches"] == 0
    assert result["rtl_accuracy"] == result["quantized_accuracy"] > 0.9
    assert result["float_accuracy"] > 0.9
    assert (result["cycles_per_image"], result["mac_utilisation"]) == (1000.0, 0.25)
    assert result["lut"] == SIZE["lut"]
    assert (tmp_path / result["verilog"]).read_text() == "// 8192 lanes"
    assert (tmp_path / "verilog" / "manifest.json").is_file()


@pytest.mark.usefixtures("_quick")
def test_the_demo_prints_its_figures_for_people(capsys):
    assert main(["demo", "--images", "30"]) == 0
    text = capsys.readouterr().out
    for part in (
        "float 100.00%",
        "0 of 30 images",
        "1000 cycles per image, 25.0% of",
        "1234 LUTs",
        "build/demo/sigbit.v",
    ):
        assert part in text


@pytest.mark.usefixtures("_quick")
def test_a_mismatch_makes_the_demo_fail(monkeypatch, capsys):
    right = demo.evaluate

    def wrong(network, images, **options):
        return {**right(network, images, **options), "mismatches_against_golden": 3}

    monkeypatch.setattr(demo, "evaluate", wrong)
    assert main(["demo", "--images", "5", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["mismatches"] == 3


def test_a_missing_compiler_is_named_before_anything_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert main(["demo"]) == 2
    assert "sudo apt-get install g++ make perl" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_the_shipped_images_are_held_out_and_of_all_classes():
    images, labels = demo._digits("x_test,y_test")
    calibration, _ = demo._digits("x_calibration")
    assert set(labels) == set(range(10))
    seen = {image.tobytes() for image in calibration}
    assert not any(image.tobytes() in seen for image in images)
    assert np.bincount(labels).min() >= 30
