"""Evaluation: configurations by name and file, accuracy, and where a device leaves the golden model."""

import json
from dataclasses import replace

import numpy as np
import pytest
from networks import Builder
from sigbit import evaluation
from sigbit.data import DataError
from sigbit.evaluation import accuracy, configuration, evaluate, layer_report, native_formats
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT
from sigbit_sim.golden import network as golden

TINY = PRESETS["tiny"]


def small_network(weights=TINY.weight_format, activations=TINY.activation_format):
    return (
        Builder(4, 3, 6, 6, UINT(8))
        .conv(8, (3, 3), INT(8), activations, relu=True)
        .max_pool((2, 2), (2, 2))
        .conv(9, (2, 2), weights, activations, relu=True)
        .conv(5, (1, 1), weights, None)
        .network()
    )


def random_images(network, count, seed=1):
    source = network.tensors[network.input]
    shape = (count, source.channels, source.height, source.width)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.float32)


def test_the_emulator_agrees_with_the_golden_model():
    network = small_network()
    images = random_images(network, 4)
    expected = golden.run(network, images.astype(np.int64))
    labels = expected.reshape(4, -1).argmax(axis=1)
    calls = []
    result = evaluate(
        network, images, device="emulator", config=TINY, labels=labels, progress=lambda *call: calls.append(call)
    )
    assert (result["outputs"] == expected).all()
    assert (result["accuracy"], result["golden_accuracy"]) == (1.0, 1.0)
    assert (result["mismatches_against_golden"], result["first_mismatch"]) == (0, None)
    assert calls[-4:] == [("emulator: images", done, 4) for done in (1, 2, 3, 4)]


def test_targets_that_are_numbers_give_the_root_of_the_mean_squared_error():
    network = small_network()
    images = random_images(network, 3)
    outputs = golden.run(network, images.astype(np.int64))
    unit = network.tensors[network.output].unit
    result = evaluate(
        network, images, labels=unit * outputs + np.array([3.0, 0, 0]).reshape(3, *[1] * (outputs.ndim - 1))
    )
    assert (result["accuracy"], result["rmse"]) == (None, pytest.approx(3**0.5))
    assert result["golden_rmse"] == result["rmse"]
    with pytest.raises(DataError, match=r"numbers of shape \(3,\), but outputs are of shape"):
        evaluate(network, images, labels=np.zeros(3))
    with pytest.raises(DataError, match="Accuracy needs integer labels"):
        evaluation.accuracy(outputs, np.zeros(3))


@pytest.mark.parametrize("options", [("uint:8", "uint:8"), ("ausn-a:3,0", "ausn-au:3,1"), (None, None)])
def test_table_cells_keep_their_configuration_whatever_the_formats(tmp_path, options):
    path = tmp_path / "tables.json"
    path.write_text(json.dumps(PRESETS["tables"].to_dict()))
    for name in ("tables", str(path)):
        assert configuration(name, *options, small_network()) == PRESETS["tables"]


def test_a_difference_is_traced_to_its_first_layer(monkeypatch):
    network = small_network()
    images = random_images(network, 3)
    wrong = replace_weight(network, 2)
    # A device that runs another network: the golden side keeps the right one.
    original = evaluation.compile
    monkeypatch.setattr(evaluation, "compile", lambda net, config, *batch: original(swap(net, wrong), config, *batch))
    result = evaluate(network, images, device="emulator", config=TINY)
    first = result["first_mismatch"]
    assert result["mismatches_against_golden"] >= 1
    assert first["layer"]["name"] == network.layers[2].name
    assert first["layer"]["position"][0] == 4
    assert first["layer"]["found"] != first["layer"]["expected"]
    assert result["outputs"][first["image"]][first["position"]] == first["found"] != first["expected"]


def replace_weight(network, index):
    """The network with large other weights in output channel 4 of one layer."""
    layer = network.layers[index]
    weights = layer.weights.copy()
    weights[4] = layer.weight_format.levels[-1]
    return replace(layer, weights=weights)


def swap(network, layer):
    layers = tuple(layer if own.name == layer.name else own for own in network.layers)
    return golden.IntegerNetwork(network.name, network.tensors, layers, network.input, network.outputs)


def with_outputs(network, *names):
    return golden.IntegerNetwork(network.name, network.tensors, network.layers, network.input, names)


def test_accuracy_is_that_of_one_output_and_all_outputs_are_compared(monkeypatch):
    network = small_network()
    first, last = network.layers[0].output, network.output
    images = random_images(network, 6)
    both = with_outputs(network, first, last)
    labels = evaluate(network, images)["outputs"].argmax(axis=1)
    named = evaluate(both, images, device="emulator", config=TINY, labels=labels, output=last)
    assert (named["accuracy"], named["mismatches_against_golden"]) == (1, 0)
    assert list(named["outputs"]) == [first, last]
    assert evaluate(both, images, labels=labels)["accuracy"] < 1
    with pytest.raises(SigbitError, match=f"no output 'x'; it has {first}, {last}"):
        evaluate(both, images, labels=labels, output="x")
    with pytest.raises(SigbitError, match=f"has one output; leave out --output {last}"):
        evaluate(network, images, labels=labels, output=last)
    original, wrong = evaluation.compile, replace_weight(network, 0)
    monkeypatch.setattr(evaluation, "compile", lambda net, config, *batch: original(swap(net, wrong), config, *batch))
    found = evaluate(both, images, device="emulator", config=TINY)["first_mismatch"]
    assert found["output"] == first
    assert found["layer"]["name"] == both.layers[0].name


def test_accuracy_counts_the_largest_output_and_gives_ties_to_the_lower_class():
    outputs = np.array([[1, 3, 2], [5, 5, 0], [0, 1, 2], [0, 0, 9]])
    assert accuracy(outputs, np.array([1, 0, 0, 2])) == 0.75


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_is_refused(label):
    with pytest.raises(SigbitError, match="the model has the classes 0 to 2"):
        accuracy(np.zeros((2, 3)), np.array([0, label]))


def test_a_preset_takes_given_formats_and_otherwise_the_network_s_own():
    network = small_network(ESB(5, 2), ESBU(5, 3))
    assert configuration("tiny") == TINY
    own = configuration("tiny", network=network)
    assert (own.weight_format, own.activation_format) == (ESB(5, 2), ESBU(5, 3))
    given = configuration("tiny", "int:4", None, network)
    assert (given.weight_format, given.activation_format) == (INT(4), ESBU(5, 3))


def test_a_uniform_network_keeps_its_8_bit_formats():
    network = Builder(1, 3, 4, 4, UINT(8)).conv(4, (3, 3), INT(8), UINT(8)).conv(3, (2, 2), INT(8), None).network()
    assert native_formats(network) == {"weight_format": INT(8), "activation_format": UINT(8)}


def test_formats_that_run_on_every_array_are_native_only_where_there_are_no_others():
    builder = Builder(1, 3, 6, 6, UINT(8)).conv(40, (3, 3), INT(8), UINT(5))
    builder.conv(4, (2, 2), INT(8), ESBU(4, 2))
    assert native_formats(builder.conv(4, (1, 1), INT(8), INT(6)).network())["activation_format"] == ESBU(4, 2)
    builder = Builder(1, 3, 6, 6, UINT(8)).conv(40, (3, 3), INT(8), UINT(5)).conv(50, (2, 2), INT(8), INT(8))
    assert native_formats(builder.network())["activation_format"] == UINT(5)


@pytest.mark.parametrize("wrap", [lambda values: values, lambda values: {"configuration": values, "top": "sigbit"}])
def test_a_file_or_a_manifest_gives_a_configuration(tmp_path, wrap):
    config = replace(TINY, columns=12, weight_format=INT(4))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(wrap(config.to_dict())))
    assert configuration(str(path)) == config
    assert configuration(str(path), network=small_network()) == config
    assert configuration(str(path), "esb:3,0").weight_format == ESB(3, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "JSON object"),
        ('{"rows": 2}', "incomplete"),
        (json.dumps({**TINY.to_dict(), "rows": 0}), "rows must be a positive integer"),
        (json.dumps({**TINY.to_dict(), "row": 1}), "Unknown configuration keys row"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(SigbitError, match=message) as error:
        configuration(str(path))
    assert "config.json" in str(error.value)


def test_a_preset_that_cannot_take_the_formats_says_what_to_do():
    with pytest.raises(SigbitError, match=r"Preset small with esb:8,4 x esbu:8,5.*give it as --config FILE"):
        configuration("small", "esb:8,4", "esbu:8,5")


def test_the_report_counts_part_products_and_lanes():
    network = small_network()
    rows = layer_report(network, TINY)
    first = rows[0]
    assert first["output_shape"] == (8, 4, 4)
    assert (first["weight_format"], first["input_format"], first["output_format"]) == ("int:8", "uint:8", "esbu:4,2")
    assert first["macs"] == 8 * 4 * 4 * 27
    # 8 bits on an array of 3-bit digits: three parts of weights times three of activations.
    assert first["part_products"] == 9 * first["macs"]
    assert first["lane_utilisation"] == first["part_products"] / (first["compute_cycles"] * TINY.mac_lanes)
    assert rows[1]["lane_utilisation"] is None
    assert rows[-1]["output_format"] == "raw32"
