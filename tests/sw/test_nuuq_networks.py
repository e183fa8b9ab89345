"""Networks with codebooks run on every array: golden model, compiler and emulator, and files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sigbit
from networks import Builder, codebook_network, roomy
from sigbit import cli, evaluation
from sigbit.compiler import CompileError, compile
from sigbit.device import open_device
from sigbit.evaluation import native_formats
from sigbit.quantize import QuantizationError, quantize
from sigbit.session import Session
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import ESB, ESBU, INT, NUUQ, NUUQU, UINT
from sigbit_sim.golden.network import IntegerNetwork, NetworkError, run

TINY = PRESETS["tiny"]
NATIVE = [(ESB(4, 2), ESBU(4, 2)), (ESB(5, 2), ESBU(4, 2)), (INT(8), UINT(8)), (ESB(3, 0), ESBU(2, 0))]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("native", NATIVE, ids=lambda pair: str(pair[0]))
def test_layers_with_different_codebooks_run_on_any_array(native, seed):
    builder = codebook_network(seed, native[1])
    network, images = builder.network(), builder.images(3)
    config = roomy(TINY, *native, feature_depth=4096)
    program = compile(network, config)
    with Session(open_device("emulator", config), program) as session:
        np.testing.assert_array_equal(session.run(images), run(network, images))


def test_codebooks_survive_a_file(tmp_path):
    builder = codebook_network(0, ESBU(4, 2))
    network, images = builder.network(), builder.images(2)
    network.save(tmp_path / "network.npz")
    loaded = IntegerNetwork.load(tmp_path / "network.npz")
    for layer, found in zip(network.layers, loaded.layers, strict=True):
        assert found.weight_format == layer.weight_format
        assert (found.codebooks is None) == (layer.codebooks is None)
        assert layer.codebooks is None or (found.codebooks == layer.codebooks).all()
    assert (run(loaded, images) == run(network, images)).all()


def damaged(layer, **changes):
    return replace(layer, **{key: change(layer) for key, change in changes.items()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": lambda layer: np.full_like(layer.weights, 127)}, "weights must be levels of nuuq:5,5"),
        ({"codebooks": lambda layer: None}, r"codebooks must be a int64 array of shape \(\d+, 5\), not None"),
        ({"codebooks": lambda layer: layer.codebooks[:, ::-1].copy()}, "every codebook must increase strictly"),
        ({"codebooks": lambda layer: layer.codebooks * 16}, "codebooks must be -15 to 15, not"),
        ({"weight_format": lambda layer: NUUQ(5, 5, range(5))}, "has its levels, so codebooks must be None"),
        ({"weight_format": lambda layer: INT(5)}, "has its levels, so codebooks must be None"),
    ],
)
def test_codebooks_that_do_not_fit_their_layer_are_an_error(changes, message):
    builder = codebook_network(0, ESBU(4, 2))
    index, layer = next((i, layer) for i, layer in enumerate(builder.layers) if layer.codebooks is not None)
    builder.layers[index] = damaged(layer, **changes)
    with pytest.raises(NetworkError, match=f"Layer layer{index}: .*{message}"):
        builder.network()


def test_codebooks_do_not_choose_the_native_formats():
    network = codebook_network(0, ESBU(4, 2)).network()
    assert native_formats(network) == {"activation_format": ESBU(4, 2)}
    assert evaluation.configuration("tiny", "nuuq:16,6", None, network) == TINY


DIGITS = Path(sigbit.__file__).parent / "models" / "digits"


@pytest.mark.parametrize(
    "options", [{}, {"codebooks": "channel"}, {"symmetric_levels": True}, {"per_channel": False}], ids=str
)
def test_searched_codebooks_make_a_network(options):
    calibration, _ = sigbit.load_images(f"{DIGITS}.npz:x_calibration", limit=40, scale=16)
    network = quantize(f"{DIGITS}.onnx", calibration, weights="nuuq:5,5", edge_bits=8, **options)
    own = [layer for layer in network.layers if getattr(layer, "weight_format", INT(8)) != INT(8)]
    assert len(own) == 3
    for layer in own:
        form = layer.weight_format
        assert form.label == "nuuq:5,5"
        assert (layer.codebooks is None) == ("codebooks" not in options) == bool(form.codebook)
        assert len(np.unique(layer.weights)) <= 5 or "codebooks" in options
        if "symmetric_levels" in options:
            assert form.levels == tuple(-level for level in reversed(form.levels))
        if not options.get("per_channel", True):
            assert len(set(layer.weight_units)) == 1
    images, labels = sigbit.load_images(f"{DIGITS}.npz:x_test,y_test", limit=100, scale=16)
    found = evaluation.evaluate(network, images, labels=labels)
    assert found["accuracy"] > 0.9


def test_searched_activations_have_a_zero_and_a_codebook_of_their_own():
    calibration, _ = sigbit.load_images(f"{DIGITS}.npz:x_calibration", limit=40, scale=16)
    network = quantize(f"{DIGITS}.onnx", calibration, weights="int:4", activations="nuuqu:8,6", edge_bits=8)
    formats = {tensor.format for tensor in network.tensors.values() if tensor.format and tensor.format.indexed}
    assert len(formats) > 1
    for form in formats:
        assert form.label == "nuuqu:8,6"
        assert form.levels[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebooks": "tensor"}, "codebooks must be layer or channel, not 'tensor'"),
        ({"weights": "nuuq:4,5", "alpha_mode": "dda"}, "alpha_mode dda has no scale for codebooks"),
        ({"weights": "nuuqu:4,5"}, "weights must have a signed format"),
    ],
)
def test_options_that_do_not_fit_are_an_error(options, message):
    with pytest.raises(QuantizationError, match=message):
        quantize(f"{DIGITS}.onnx", np.zeros((2, 1, 8, 8), np.float32), **options)


def test_the_command_line_searches_codebooks_and_runs_them(capsys):
    data = ["--data", f"{DIGITS}.npz:x_test,y_test", "--limit", "10", "--scale", "16"]
    arguments = ["evaluate", f"{DIGITS}.onnx", *data, "--calibration", f"{DIGITS}.npz:x_calibration"]
    arguments += ["--edge-bits", "8", "--weights", "nuuq:4,5", "--codebooks", "channel", "--device", "emulator"]
    assert cli.main([*arguments, "--layers", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["mismatches_against_golden"] == 0
    assert [row["weight_format"] for row in result["layers"] if row["weight_format"]][1] == "nuuq:4,5"


def test_activations_need_enough_comparisons():
    builder = codebook_network(0, NUUQU(5, 4, (0, 1, 3, 7, 15)))
    config = roomy(TINY, ESB(4, 2), ESBU(4, 2), threshold_count=3)
    with pytest.raises(
        CompileError, match=r"layer0 writes nuuqu:5,4, 5 levels; .* configure it with threshold_count 4"
    ):
        compile(builder.network(), config)


def test_every_accumulator_meets_its_thresholds_as_the_multiplier_would():
    """All sums of one channel, those on a threshold and beside it among them, in channels of different constants."""
    form = NUUQU(5, 6, (0, 3, 9, 31, 60))
    builder = Builder(3, 1, 16, 16, UINT(8))
    builder.conv(6, (1, 1), INT(3), form)
    layer = builder.layers[0]
    constants = {
        "bias": [-100, 0, 7, 50, 200, 3],
        "multiplier": [52429, 1, 3, 40000, 65535, 1],
        "shift": [18, 1, 4, 17, 18, 0],
    }
    weights = np.array([1, 1, 1, 2, -1, 3]).reshape(-1, 1, 1, 1)
    builder.layers[0] = replace(layer, weights=weights, **{key: np.array(value) for key, value in constants.items()})
    network = builder.network()
    images = np.arange(256).reshape(1, 1, 16, 16)
    config = roomy(TINY, ESB(4, 2), ESBU(4, 2), threshold_count=4)
    expected = run(network, images)
    assert all(len(np.unique(channel)) > 1 for channel in expected[0])
    with Session(open_device("emulator", config), compile(network, config)) as session:
        np.testing.assert_array_equal(session.run(images), expected)
