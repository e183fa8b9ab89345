"""The accuracy bench: formats of equal bits, rows that other commands give, and what it needs."""

import json
from pathlib import Path

import pytest
import sigbit
from sigbit import bench
from sigbit.bench import accuracy
from sigbit.data import load_images
from sigbit.evaluation import evaluate
from sigbit.quantize import quantize
from sigbit_hw.spec.errors import SigbitError

DIGITS = Path(sigbit.__file__).parent / "models" / "digits.onnx"
IMAGES = f"{DIGITS.with_suffix('.npz')}:x_test,y_test"
CALIBRATION = f"{DIGITS.with_suffix('.npz')}:x_calibration"


@pytest.mark.parametrize("family", accuracy.FAMILIES)
@pytest.mark.parametrize("bits", accuracy.BITS)
def test_a_family_has_formats_of_these_stored_bits(family, bits):
    weights, activations = accuracy.family_formats(family, bits)
    assert weights.signed
    assert not activations.signed
    assert (weights.bits, activations.bits) == (bits, bits)


def test_rows_are_what_quantize_and_the_golden_model_give(monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setattr(accuracy, "FAMILIES", ("INT", "ESB"))
    images, labels = load_images(IMAGES, scale=16)
    calibration, _ = load_images(CALIBRATION, scale=16)
    network = quantize(DIGITS, calibration, "esb:3,0", "esbu:3,1", 8, rounding="reconstruct", alpha_mode="output")
    rows, text = bench.run_bench(
        "accuracy", networks=[str(DIGITS)], data=IMAGES, calibration=CALIBRATION, scale=16.0, bits=[3],
        plain=True,
    )  # fmt: skip
    assert [row["family"] for row in rows] == ["INT", "ESB"]
    assert rows[1]["both_reconstructed"] == evaluate(network, images, labels=labels)["accuracy"]
    plain = quantize(DIGITS, calibration, "int:3", "uint:8", 8)
    assert rows[0]["weights_only_plain"] == evaluate(plain, images, labels=labels)["accuracy"]
    assert f"| 3 | ESB | `esb:3,0` | `esbu:3,1` | {100 * rows[1]['weights_only_reconstructed']:.1f} %" in text
    assert "400 images, float 99.5 %" in text


def test_trained_networks_of_several_seeds_share_a_row(tmp_path):
    pytest.importorskip("onnx")
    images, labels = load_images(IMAGES, scale=16)
    calibration, _ = load_images(CALIBRATION, scale=16)
    found, folders = [], []
    for name, count, weights in (("a", 100, "int:2"), ("b", 20, "int:2"), ("c", 100, "int:3")):
        folder = tmp_path / name
        folder.mkdir()
        network = quantize(DIGITS, calibration[:count], weights, "uint:2", 8)
        network.save(folder / "network.npz")
        log = [{"steps": 5, "seconds": 60.0}, {"steps": 7, "seconds": 120.0}]
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
        found.append(evaluate(network, images, labels=labels)["accuracy"])
        folders.append(str(folder))
    rows, text = bench.run_bench("trained", networks=[str(DIGITS)], data=IMAGES, scale=16.0, trained=folders)
    assert [row["accuracy"] for row in rows] == found
    assert {(row["steps"], row["seconds"], row["activations"]) for row in rows} == {(12, 180.0, "uint:2")}
    assert len(set(found)) == 3
    mean, low, high = 50 * sum(found[:2]), 100 * min(found[:2]), 100 * max(found[:2])
    assert f"| `int:2` | `uint:2` |  | 2 | {mean:.2f} % ({low:.1f} to {high:.1f}) | " in text
    assert f"| `int:3` | `uint:2` |  | 1 | {100 * found[2]:.2f} % | " in text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"networks": ["a", "b"]}, "what one model became, not 2"),
        ({"trained": ["nowhere"]}, "nowhere"),
        ({"data": CALIBRATION, "trained": []}, "Accuracy needs labels"),
    ],
)
def test_what_the_bench_of_trained_networks_lacks_is_said(changes, text):
    pytest.importorskip("onnx")
    options = {"networks": [str(DIGITS)], "data": IMAGES, "scale": 16.0, "trained": ["nowhere"]}
    with pytest.raises(SigbitError, match=text):
        bench.run_bench("trained", **{**options, **changes})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"networks": ["a", "b"]}, "one model, not 2"),
        ({"bits": [4, 9]}, "bits must be 2 to 8, not 9"),
        ({"data": CALIBRATION}, "Accuracy needs labels"),
    ],
)
def test_what_the_bench_lacks_is_said(changes, text):
    pytest.importorskip("onnx")
    options = {"networks": [str(DIGITS)], "data": IMAGES, "calibration": CALIBRATION, "scale": 16.0, "bits": [3]}
    with pytest.raises(SigbitError, match=text):
        bench.run_bench("accuracy", **{**options, **changes})
