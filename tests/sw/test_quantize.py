"""Quantization: formats, units, constants and signs by rule, accuracy on the shipped model, and refusals."""

import sys
from dataclasses import replace
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
import sigbit
from sigbit.compiler import compile, fit
from sigbit.data import load_images
from sigbit.device import EmulatorDevice
from sigbit.float_model import run_float
from sigbit.graph import (
    Add,
    Affine,
    AveragePool,
    Concat,
    Conv,
    Graph,
    LeakyRelu,
    MaxPool,
    ModelError,
    Relu,
    Upsample,
)
from sigbit.onnx_reader import read_onnx
from sigbit.passes import lower
from sigbit.quantize import ALPHA_MODES, QuantizationError, input_levels, quantize, summary
from sigbit.scales import requantizer_constants, unit_mse
from sigbit.session import Session
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT, FormatError
from sigbit_sim.golden.network import NetworkError, run, run_layer

RANDOM = np.random.default_rng(11)
IMAGES = RANDOM.normal(size=(40, 2, 8, 8)).astype(np.float32)
MODELS = Path(sigbit.__file__).parent / "models"


def conv(name, source, target, inputs, outputs, kernel=3, **options):
    weight = RANDOM.normal(size=(outputs, inputs, kernel, kernel)) / kernel
    return Conv(name=name, input=source, output=target, weight=weight, bias=RANDOM.normal(size=outputs), **options)


NODES = (
    conv("first", "x", "a", 2, 6, pads=(1, 1, 1, 1), relu=True),
    MaxPool(name="pool", input="a", output="b", kernel=(2, 2), stride=(2, 2)),
    conv("linear", "b", "c", 6, 5, pads=(1, 1, 1, 1)),
    conv("third", "c", "d", 5, 6, relu=True),
    AveragePool(name="average", input="d", output="e", kernel=(2, 2), stride=(1, 1)),
    MaxPool(name="stay", input="e", output="f", kernel=(1, 1), stride=(1, 1)),
    conv("last", "f", "logits", 6, 4, kernel=1),
)
GRAPH = Graph("small", "x", "logits", (2, 8, 8), NODES)


def formats(network):
    return {name: str(tensor.format) for name, tensor in network.tensors.items()}


def test_activations_get_the_given_format_where_they_cannot_be_negative():
    network = quantize(GRAPH, IMAGES)
    assert formats(network) == {
        "x": "int:8",
        "a": "esbu:4,2",
        "b": "esbu:4,2",
        "c": "int:8",
        "d": "esbu:4,2",
        "e": "esbu:4,2",
        "f": "esbu:4,2",
        "logits": "None",
    }
    assert all(layer.weight_format == ESB(4, 2) for layer in network.layers if hasattr(layer, "weights"))


def test_signed_activations_are_used_everywhere():
    network = quantize(GRAPH, IMAGES, activations="esb:5,2")
    assert {tensor.format for name, tensor in network.tensors.items() if name not in ("x", "logits")} == {ESB(5, 2)}
    assert network.layers[0].relu
    assert not network.layers[2].relu
    _, tensors = run(network, input_levels(network, IMAGES), trace=True)
    assert tensors["a"].min() == 0
    assert tensors["c"].min() < 0


def test_signed_tensors_get_the_signed_format_where_activations_are_unsigned():
    found = formats(quantize(GRAPH, IMAGES, signed_activations="int:6"))
    assert (found["x"], found["a"], found["c"], found["e"]) == ("int:8", "esbu:4,2", "int:6", "esbu:4,2")
    found = formats(quantize(GRAPH, IMAGES, activations="esb:5,2", signed_activations="int:6"))
    assert found["c"] == "esb:5,2"


def test_single_layers_have_formats_of_their_own():
    layers = {
        "first": {"weights": "int:6", "activations": "uint:3"},
        "linear": {"activations": INT(5)},
        "third": {"activations": "uint:7"},
        "average": {"activations": "uint:2"},
        "last": {"weights": ESB(3, 1)},
    }
    network = quantize(GRAPH, IMAGES, edge_bits=8, layers=layers)
    found = formats(network)
    assert [found[name] for name in "abcdef"] == ["uint:3", "uint:3", "int:5", "uint:7", "uint:2", "uint:2"]
    widths = {layer.name: str(layer.weight_format) for layer in network.layers if hasattr(layer, "weights")}
    assert widths == {"first": "int:6", "linear": "esb:4,2", "third": "esb:4,2", "last": "esb:3,1"}
    program = compile(network, fit(network, replace(PRESETS["tiny"], planes=2)))
    with Session(EmulatorDevice(program.config), program) as session:
        levels = input_levels(network, IMAGES[:5])
        np.testing.assert_array_equal(session.run(levels), run(network, levels))


def test_everything_wrong_with_single_layers_is_named_at_once():
    layers = {
        "second": {"weights": "int:4"},
        "first": {"weights": "uint:4", "activations": "int:9"},
        "pool": {"weights": "int:4", "activations": "uint:4"},
        "stay": {"activations": "uint:4"},
        "linear": {"activations": "uint:4"},
        "third": {"weight": "int:4"},
        "average": "uint:4",
        "last": {"activations": "uint:4"},
    }
    with pytest.raises(QuantizationError) as caught:
        quantize(GRAPH, IMAGES, layers=layers)
    lines = str(caught.value).splitlines()
    assert lines == [
        "Formats of single layers cannot be used:",
        "  'second': no layer has this name; layers are first, pool, linear, third, average, stay, last",
        "  'first': weights must have a signed format (int, esb, ausn-a, ausn-g or nuuq), not uint:4",
        "  'first': A format has 2 to 8 stored bits, not 9",
        "  'pool': MaxPool has no weights that are quantized",
        "  'pool': the layer keeps the format of its input; give it to layer 'first'",
        "  'stay': the layer keeps the format of its input; give it to layer 'average'",
        "  'linear': activations uint:4 are unsigned, but the layer's results can be negative",
        "  'third': expected formats of weights, activations or both, not {'weight': 'int:4'}",
        "  'average': expected formats of weights, activations or both, not 'uint:4'",
        "  'last': the last layer leaves raw integers, which have no format",
    ]


LEAKY = (
    conv("first", "x", "a", 2, 6, pads=(1, 1, 1, 1)),
    LeakyRelu(name="leak", input="a", output="b", slope=np.array([0, 0.01, 0.2, 0.5, 1, 1.75])),
    MaxPool(name="pool", input="b", output="c", kernel=(2, 2), stride=(2, 2)),
    conv("second", "c", "d", 6, 6, pads=(1, 1, 1, 1)),
    Add(name="sum", input="d", residual="c", output="e"),
    LeakyRelu(name="behind", input="e", output="f", slope=np.array([0.1])),
    conv("last", "f", "logits", 6, 4, kernel=4),
)


def test_leaky_layers_are_signed_and_their_slopes_exact():
    network = quantize(Graph("leaky", "x", "logits", (2, 8, 8), LEAKY), IMAGES, signed_activations="int:7")
    for layer, slopes in ((network.layers[0], LEAKY[1].slope), (network.layers[3], np.full(6, 0.1))):
        source, target = network.tensors[layer.input], network.tensors[layer.output]
        assert (target.format, layer.relu) == (INT(7), False)
        for unit, slope, *constants in zip(
            layer.weight_units, slopes, layer.multiplier, layer.shift, layer.negative_multiplier, strict=True
        ):
            gain = Fraction(unit) * Fraction(source.unit) / Fraction(target.unit)
            exact = [gain * 2 ** int(constants[1]), gain * Fraction(slope) * 2 ** int(constants[1])]
            assert [constants[0], constants[2]] == [floor(value + Fraction(1, 2)) for value in exact]
            assert 32768 <= max(constants[0], constants[2]) <= 65535
    assert [layer.name for layer in network.layers] == ["first", "pool", "second", "behind", "last"]
    assert network.layers[2].negative_multiplier is None


def test_eight_bits_of_a_leaky_network_follow_the_float_model():
    graph = Graph("leaky", "x", "logits", (2, 8, 8), LEAKY)
    network = quantize(graph, IMAGES, "int:8", "int:8")
    logits = network.tensors["logits"].unit * run(network, input_levels(network, IMAGES))
    expected = run_float(graph, IMAGES).reshape(logits.shape)
    assert np.square(logits - expected).sum() < 2e-3 * np.square(expected).sum()
    program = compile(network, fit(network, replace(PRESETS["tiny"], weight_format=INT(8), activation_format=INT(8))))
    with Session(EmulatorDevice(program.config), program) as session:
        levels = input_levels(network, IMAGES[:5])
        np.testing.assert_array_equal(session.run(levels), run(network, levels))


def test_edge_bits_widen_the_first_and_last_weights_and_the_last_input():
    network = quantize(GRAPH, IMAGES, "esb:3,1", "esbu:3,1", edge_bits=8)
    layers = {layer.name: layer for layer in network.layers}
    widths = [str(layers[name].weight_format) for name in ("first", "linear", "third", "last")]
    assert widths == ["int:8", "esb:3,1", "esb:3,1", "int:8"]
    found = formats(network)
    assert (found["a"], found["d"], found["e"], found["f"]) == ("esbu:3,1", "esbu:3,1", "uint:8", "uint:8")


def test_edge_input_that_can_be_negative_is_signed():
    graph = Graph("two", "x", "c", (2, 8, 8), (conv("a", "x", "b", 2, 3), conv("b", "b", "c", 3, 2)))
    assert formats(quantize(graph, IMAGES, edge_bits=6))["b"] == "int:6"


def test_input_is_unsigned_where_no_calibration_value_is_negative():
    assert quantize(GRAPH, np.abs(IMAGES)).tensors["x"].format == UINT(8)
    assert quantize(GRAPH, np.abs(IMAGES), input_format="int:8").tensors["x"].format == INT(8)
    assert quantize(GRAPH, IMAGES, input_format=INT(6)).tensors["x"].format == INT(6)


def test_maximum_shares_the_unit_that_suits_its_own_output():
    network = quantize(GRAPH, IMAGES)
    pooled = run_float(GRAPH, IMAGES, all_tensors=True)["b"]
    assert network.tensors["a"].unit == network.tensors["b"].unit == unit_mse(pooled, ESBU(4, 2))


def test_large_tensors_are_calibrated_from_a_histogram_with_the_same_result(monkeypatch):
    direct = quantize(GRAPH, IMAGES).tensors
    # The package's attribute of that name is the function.
    monkeypatch.setattr(sys.modules["sigbit.quantize"], "_DIRECT_VALUES", 100)
    binned = quantize(GRAPH, IMAGES).tensors
    for name in ("x", "a", "c", "d", "e"):
        assert binned[name].unit == pytest.approx(direct[name].unit, rel=0.1)
        assert binned[name].unit != direct[name].unit


def test_classifier_has_one_weight_unit_and_its_logits_compare():
    network = quantize(GRAPH, IMAGES)
    last = network.layers[-1]
    assert len(set(last.weight_units.tolist())) == 1
    assert len(set(network.layers[0].weight_units.tolist())) == 6
    assert network.tensors["logits"].unit == last.weight_units[0] * network.tensors["f"].unit
    logits = run(network, input_levels(network, IMAGES)) * network.tensors["logits"].unit
    wanted = run_float(GRAPH, IMAGES)
    assert np.corrcoef(logits.ravel(), wanted.ravel())[0, 1] > 0.98


def test_one_unit_per_layer_on_request():
    network = quantize(GRAPH, IMAGES, per_channel=False)
    assert all(len(set(layer.weight_units)) == 1 for layer in network.layers if hasattr(layer, "weights"))


def test_constants_follow_exactly_from_the_units():
    network = quantize(GRAPH, IMAGES, bias_correction=False)
    for layer, node in zip(network.layers, GRAPH.nodes, strict=True):
        source, target = network.tensors[layer.input], network.tensors[layer.output]
        if isinstance(node, Conv):
            for channel, unit in enumerate(layer.weight_units):
                gain = Fraction(unit) * Fraction(source.unit)
                assert layer.bias[channel] == floor(Fraction(node.bias[channel]) / gain + Fraction(1, 2))
                if target.format is not None:
                    constants = requantizer_constants(gain / Fraction(target.unit))
                    assert (layer.multiplier[channel], layer.shift[channel]) == constants
        elif isinstance(node, AveragePool):
            gain = Fraction(source.unit) / (4 * Fraction(target.unit))
            assert (layer.multiplier, layer.shift) == requantizer_constants(gain)


def test_bias_correction_restores_the_mean_of_every_channel():
    def offset(corrected):
        network = quantize(GRAPH, IMAGES, "esb:3,1", "esbu:3,1", bias_correction=corrected)
        logits = run(network, input_levels(network, IMAGES))
        wanted = run_float(GRAPH, IMAGES)[:, :, 0, 0] / network.tensors["logits"].unit
        return np.abs(logits.mean(axis=0) - wanted.mean(axis=0)).max()

    # In units of the logits: the bias is an integer, so half a unit may remain.
    assert offset(True) <= 0.5001 < 1 < offset(False)


SAME = {"pads": (1, 1, 1, 1)}
SELECTION = np.eye(8)[:, 1:7, None, None]
RESIDUAL = (
    conv("first", "x", "a", 2, 6, relu=True, **SAME),
    conv("narrow", "a", "b", 1, 6, groups=6, relu=True, limit=0.8, **SAME),
    conv("wide", "b", "c", 6, 8, stride=(2, 2), **SAME),
    Conv(name="shortcut", input="a", output="d", weight=SELECTION, bias=np.zeros(8), stride=(2, 2), copy=True),
    Add(name="sum", input="c", residual="d", output="e"),
    Relu(name="relu", input="e", output="f"),
    conv("down", "f", "g", 8, 8, kernel=1),
    conv("main", "f", "h", 4, 8, groups=2, **SAME),
    Add(name="sum2", input="g", residual="h", output="i"),
    Relu(name="relu2", input="i", output="j"),
    conv("last", "j", "logits", 8, 4, kernel=4),
)
BLOCKS = Graph("blocks", "x", "logits", (2, 8, 8), RESIDUAL)


def test_sums_take_both_operands_with_one_shift():
    network = quantize(BLOCKS, IMAGES)
    layers = {layer.name: layer for layer in network.layers}
    assert formats(network) == {
        "x": "int:8", "a": "esbu:4,2", "b": "esbu:4,2", "d": "esbu:4,2", "e": "esbu:4,2", "h": "int:8",
        "i": "esbu:4,2", "logits": "None",
    }  # fmt: skip
    assert (layers["wide"].residual, layers["down"].residual) == ("d", "h")
    for name in ("wide", "down"):
        layer = layers[name]
        units = [Fraction(network.tensors[tensor].unit) for tensor in (layer.input, layer.residual, layer.output)]
        for channel, unit in enumerate(layer.weight_units):
            expected = requantizer_constants(Fraction(unit) * units[0] / units[2], units[1] / units[2])
            found = (layer.multiplier[channel], layer.shift[channel], layer.residual_multiplier[channel])
            assert found == expected


def test_sums_and_groups_follow_the_float_model():
    rows = summary(BLOCKS, quantize(BLOCKS, IMAGES, "int:8", "uint:8"), IMAGES)
    assert all(row["sqnr_db"] > 25 for row in rows)
    assert {row["name"]: (row["groups"], row["residual"], row["weights"]) for row in rows} == {
        "first": (1, None, 108),
        "narrow": (6, None, 54),
        "wide": (1, "d", 432),
        "shortcut": (1, None, 48),
        "main": (2, None, 288),
        "down": (1, "h", 64),
        "last": (1, None, 512),
    }


@pytest.mark.parametrize("alpha_mode", ["mse", "dda"])
def test_copies_keep_every_level(alpha_mode):
    network = quantize(BLOCKS, IMAGES, "esb:3,0", "esbu:4,2", alpha_mode=alpha_mode)
    assert (network.tensors["d"].format, network.tensors["d"].unit) == (ESBU(4, 2), network.tensors["a"].unit)
    _, tensors = run(network, input_levels(network, IMAGES), trace=True)
    expected = np.zeros((len(IMAGES), 8, 4, 4), int)
    expected[:, 1:7] = tensors["a"][:, :, ::2, ::2]
    assert len(np.unique(expected)) == 16
    assert np.array_equal(tensors["d"], expected)


def test_a_copy_of_the_input_is_not_the_first_layer():
    pads = Conv(name="pads", input="x", output="p", weight=np.eye(2)[:, :, None, None], bias=np.zeros(2), copy=True,
                pads=(0, 0, 1, 1))  # fmt: skip
    nodes = (pads, MaxPool(name="pool", input="p", output="a", kernel=(3, 3), stride=(2, 2)), conv("c", "a", "b", 2, 3),
             conv("d", "b", "y", 3, 2, kernel=1), conv("e", "y", "z", 2, 2, kernel=1))  # fmt: skip
    layers = quantize(Graph("g", "x", "z", (2, 8, 8), nodes), IMAGES, edge_bits=8).layers
    assert [str(layer.weight_format) for layer in layers if hasattr(layer, "weights")] == [
        "esb:4,2", "int:8", "esb:4,2", "int:8",
    ]  # fmt: skip


@pytest.mark.parametrize("activations", ["esbu:4,2", "esb:5,2", "uint:8", "esbu:3,0"])
@pytest.mark.parametrize("limit", [0.8, 6.0, 0.1])
def test_a_limit_is_never_exceeded(activations, limit):
    nodes = tuple(replace(node, limit=limit) if node.name == "narrow" else node for node in RESIDUAL)
    network = quantize(replace(BLOCKS, nodes=nodes), IMAGES, activations=activations)
    tensor = network.tensors["b"]
    assert tensor.unit * tensor.format.magnitude_max <= limit
    if limit == 0.1:
        assert tensor.unit * tensor.format.magnitude_max == pytest.approx(limit, rel=1e-12)


def test_bias_correction_restores_the_mean_of_a_sum():
    def offset(corrected):
        network = quantize(BLOCKS, IMAGES, "esb:3,1", "esbu:3,1", bias_correction=corrected)
        _, tensors = run(network, input_levels(network, IMAGES), trace=True)
        wide = next(layer for layer in network.layers if layer.name == "wide")
        raw = replace(wide, residual=None, residual_multiplier=None, relu=False)
        described = {**network.tensors, "e": replace(network.tensors["e"], format=None)}
        gains = wide.weight_units * network.tensors["b"].unit
        products = run_layer(raw, described, tensors["b"]).mean(axis=(0, 2, 3)) * gains
        found = products + tensors["d"].mean(axis=(0, 2, 3)) * network.tensors["d"].unit
        wanted = run_float(BLOCKS, IMAGES, all_tensors=True)["e"].mean(axis=(0, 2, 3))
        return (np.abs(found - wanted) / gains).max()

    # The bias is an integer, so half a unit may remain; the float model computes in single precision.
    assert offset(True) <= 0.501 < 1 < offset(False)


@pytest.mark.parametrize("scale", [1e-6, 1e-12, 1e-30])
def test_a_sum_with_tiny_weights_keeps_the_other_operand(scale):
    nodes = []
    for node in RESIDUAL:
        if node.name == "wide":
            weight = node.weight.copy()
            weight[1] *= scale
            node = replace(node, weight=weight, bias=np.zeros(8))
        nodes.append(node)
    network = quantize(replace(BLOCKS, nodes=tuple(nodes)), IMAGES, activations="uint:8", bias_correction=False)
    _, tensors = run(network, input_levels(network, IMAGES), trace=True)
    values = {name: tensors[name] * network.tensors[name].unit for name in ("d", "e")}
    assert np.abs(values["e"][:, 1] - values["d"][:, 1]).max() <= network.tensors["e"].unit


def test_negative_norm_gain_flips_weight_signs_and_multipliers_stay_positive():
    plain = conv("conv", "x", "y", 2, 3)
    gain = np.array([2.0, -2.0, -0.5])
    norm = Affine(name="norm", input="y", output="z", gain=gain, shift=np.zeros(3))
    tail = (Relu(name="relu", input="z", output="r"), conv("tail", "r", "logits", 3, 2))
    network = quantize(Graph("norm", "x", "logits", (2, 8, 8), (plain, norm, *tail)), IMAGES, bias_correction=False)
    alone = quantize(Graph("plain", "x", "logits", (2, 8, 8), (replace(plain, relu=True, output="r"), tail[1])), IMAGES)
    first, reference = network.layers[0], alone.layers[0]
    signs = np.sign(gain).astype(int)[:, None, None, None]
    inner = np.abs(reference.weights * signs) < ESB(4, 2).magnitude_max
    assert ((first.weights == reference.weights * signs) | ~inner).mean() > 0.95
    np.testing.assert_allclose(first.weight_units, reference.weight_units * np.abs(gain), rtol=1e-12)
    assert (first.multiplier > 0).all()


def test_a_channel_without_weights_gets_unit_one():
    node = conv("conv", "x", "y", 2, 3)
    node.weight[1] = 0
    network = quantize(Graph("dead", "x", "z", (2, 8, 8), (node, conv("tail", "y", "z", 3, 2))), IMAGES)
    assert not network.layers[0].weights[1].any()
    assert network.layers[0].weight_units[1] == 1


@pytest.mark.parametrize("bias", [0.0, 3.0])
@pytest.mark.parametrize("scale", [1e-6, 1e-12, 1e-30])
def test_a_channel_with_tiny_weights_keeps_its_bias(scale, bias):
    node = conv("conv", "x", "y", 2, 3, relu=True)
    node.weight[1] *= scale
    node.bias[1] = bias
    graph = Graph("tiny", "x", "z", (2, 8, 8), (node, conv("tail", "y", "z", 3, 2)))
    network = quantize(graph, IMAGES, activations="uint:8")
    _, tensors = run(network, input_levels(network, IMAGES), trace=True)
    assert np.abs(tensors["y"][:, 1] * network.tensors["y"].unit - bias).max() < network.tensors["y"].unit


@pytest.mark.parametrize(("tail", "format"), [("average", None), ("maximum", ESB(6, 3)), ("relu", ESB(6, 3))])
def test_a_model_may_end_in_a_pool_or_relu(tail, format):
    head = conv("conv", "x", "y", 2, 5)
    nodes = {
        "average": (head, AveragePool(name="p", input="y", output="z", kernel=(6, 6), stride=(1, 1))),
        "maximum": (head, MaxPool(name="p", input="y", output="z", kernel=(6, 6), stride=(1, 1))),
        "relu": (head, Relu(name="p", input="y", output="z")),
    }
    graph = Graph("tail", "x", "z", (2, 8, 8), nodes[tail])
    network = quantize(graph, IMAGES, activations="esb:6,3")
    tensor = network.tensors[network.output]
    assert tensor.format == format
    found = run(network, input_levels(network, IMAGES)) * tensor.unit
    wanted = run_float(graph, IMAGES).reshape(found.shape)
    assert 10 * np.log10((wanted**2).sum() / ((found - wanted) ** 2).sum()) > 15


#: ``a``, ``p`` and ``q`` are joined; ``a`` is pooled to the size of ``q``, which is enlarged.
STRUCTURE = (
    conv("one", "x", "a", 2, 6, pads=(1, 1, 1, 1), relu=True),
    MaxPool(name="pool", input="a", output="p", kernel=(2, 2), stride=(2, 2)),
    conv("two", "p", "b", 6, 4, pads=(1, 1, 1, 1), relu=True),
    Upsample(name="grow", input="b", output="q", factors=(2, 2)),
    Concat(name="join", input="a", output="c", others=("q",)),
    conv("three", "c", "d", 10, 5, pads=(1, 1, 1, 1), relu=True),
    conv("head", "d", "y", 5, 3, kernel=1),
    conv("other", "b", "z", 4, 2, kernel=1),
)


def test_what_is_concatenated_has_the_unit_that_suits_all_of_it():
    graph = Graph("structure", "x", ("y", "z", "p"), (2, 8, 8), STRUCTURE)
    network = quantize(graph, IMAGES)
    floats = run_float(graph, IMAGES, all_tensors=True)
    union = np.concatenate([floats["a"].ravel(), floats["b"].ravel()])
    units = {network.tensors[name].unit for name in "apbqc"}
    assert units == {unit_mse(union, ESBU(4, 2))}
    assert units != {unit_mse(floats["a"], ESBU(4, 2))}
    assert network.outputs == ("y", "z", "p")
    assert [str(network.tensors[name].format) for name in "yzp"] == ["None", "None", "esbu:4,2"]
    outputs = run(network, input_levels(network, IMAGES))
    for name in network.outputs:
        found = outputs[name] * network.tensors[name].unit
        assert np.corrcoef(found.ravel(), floats[name].ravel())[0, 1] > 0.95
    rows = {row["name"]: row for row in summary(graph, network, IMAGES)}
    assert rows["join"]["kind"] == "concat"
    assert rows["grow"]["kind"] == "upsample"
    assert rows["grow"]["output_shape"] == (4, 8, 8)


def test_the_format_of_one_layer_is_that_of_all_it_is_joined_with():
    graph = Graph("structure", "x", ("y", "z"), (2, 8, 8), STRUCTURE)
    network = quantize(graph, IMAGES, layers={"two": {"activations": "uint:6"}})
    assert {network.tensors[name].format for name in "apbqc"} == {UINT(6)}
    layers = {"one": {"activations": "uint:6"}, "two": {"activations": "uint:5"}, "join": {"activations": "uint:6"},
              "other": {"activations": "int:8"}}  # fmt: skip
    with pytest.raises(QuantizationError) as caught:
        quantize(graph, IMAGES, layers=layers)
    for message in ("'two': uint:5 is joined with uint:6 of layer 'one'", "'join': the layer keeps the format of its "
                    "input; give it to layer 'one'", "'other': the last layer leaves raw integers"):  # fmt: skip
        assert message in str(caught.value)


def test_every_rule_for_units_works_on_a_union():
    graph = Graph("structure", "x", ("y", "z"), (2, 8, 8), STRUCTURE)
    floats = run_float(graph, IMAGES, all_tensors=True)
    union = np.concatenate([floats["a"].ravel(), floats["b"].ravel()])
    for mode, rule in ALPHA_MODES.items():
        network = quantize(graph, IMAGES, alpha_mode=mode)
        assert {network.tensors[name].unit for name in "apbqc"} == {rule(union, ESBU(4, 2))}


def test_one_negative_member_makes_a_concatenation_signed_and_edges_are_wide():
    linear = replace(STRUCTURE[2], relu=False)
    network = quantize(
        Graph("signed", "x", ("y", "z", "d"), (2, 8, 8), (*STRUCTURE[:2], linear, *STRUCTURE[3:])), IMAGES, edge_bits=8
    )
    assert {network.tensors[name].format for name in "apbqc"} == {INT(8)}
    layers = {layer.name: layer for layer in network.layers}
    wide = {name for name, layer in layers.items() if getattr(layer, "weight_format", None) == INT(8)}
    assert wide == {"one", "head", "other"}
    assert network.tensors["d"].format == UINT(8)


def test_outputs_that_are_levels_have_the_bits_of_the_edges_unless_they_are_pooled():
    graph = Graph("structure", "x", ("p", "d"), (2, 8, 8), STRUCTURE)
    network = quantize(graph, IMAGES, edge_bits=8)
    assert (network.tensors["p"].format, network.tensors["d"].format) == (ESBU(4, 2), UINT(8))


def test_the_input_joins_as_a_layer_and_stays_unsigned():
    nodes = (conv("a", "x", "a", 2, 3, pads=(1, 1, 1, 1), relu=True), Concat(name="c", input="x", output="c",
             others=("a",)), conv("y", "c", "y", 5, 2))  # fmt: skip
    images = np.abs(IMAGES)
    network = quantize(Graph("dense", "x", "y", (2, 8, 8), nodes), images)
    assert network.tensors["x"].format == UINT(8)
    assert network.tensors["c"].format == ESBU(4, 2)
    _, tensors = run(network, input_levels(network, images), trace=True)
    copied = tensors["c"][:, :2] * network.tensors["c"].unit
    assert np.corrcoef(copied.ravel(), images.ravel())[0, 1] > 0.95


def test_a_clip_beside_another_layer_keeps_its_limit():
    clipped = conv("a", "x", "a", 2, 3, pads=(1, 1, 1, 1), relu=True, limit=0.5)
    nodes = (clipped, conv("b", "x", "b", 2, 3, pads=(1, 1, 1, 1), relu=True),
             Concat(name="c", input="a", output="c", others=("b",)), conv("y", "c", "y", 6, 2))  # fmt: skip
    network = quantize(Graph("clip", "x", "y", (2, 8, 8), nodes), IMAGES, weights="int:8", activations="uint:8")
    _, tensors = run(network, input_levels(network, IMAGES), trace=True)
    values = tensors["c"] * network.tensors["c"].unit
    assert 0.45 < values[:, :3].max() <= 0.5 + network.tensors["c"].unit
    assert values[:, 3:].max() > 1


@pytest.mark.parametrize("mode", ["mse", "dda", "max"])
def test_eight_bits_follow_the_float_model(mode):
    network = quantize(GRAPH, IMAGES, "int:8", "uint:8", alpha_mode=mode)
    rows = summary(GRAPH, network, IMAGES)
    assert rows[-1]["sqnr_db"] > 25


def test_summary_describes_every_layer():
    rows = summary(GRAPH, quantize(GRAPH, IMAGES), IMAGES)
    assert [row["name"] for row in rows] == [node.name for node in GRAPH.nodes]
    assert rows[0] | {"sqnr_db": None} == {
        "name": "first",
        "kind": "conv",
        "input_shape": (2, 8, 8),
        "output_shape": (6, 8, 8),
        "kernel": (3, 3),
        "stride": (1, 1),
        "pads": (1, 1, 1, 1),
        "groups": 1,
        "residual": None,
        "relu": True,
        "weight_format": "esb:4,2",
        "input_format": "int:8",
        "output_format": "esbu:4,2",
        "weights": 108,
        "macs": 108 * 64,
        "sqnr_db": None,
    }
    assert [row["kind"] for row in rows[4:6]] == ["average_pool", "max_pool"]
    assert rows[-1]["output_format"] == "raw32"
    assert all(10 < row["sqnr_db"] < 40 for row in rows)


def test_summary_does_not_depend_on_how_many_images_are_held(monkeypatch):
    network = quantize(BLOCKS, IMAGES)
    expected = [row["sqnr_db"] for row in summary(BLOCKS, network, IMAGES)]
    monkeypatch.setattr(sys.modules["sigbit.quantize"], "_SUMMARY_IMAGES", 7)
    assert [row["sqnr_db"] for row in summary(BLOCKS, network, IMAGES)] == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def digits():
    images, labels = load_images(f"{MODELS / 'digits.npz'}:x_test,y_test", scale=16)
    calibration, _ = load_images(f"{MODELS / 'digits.npz'}:x_calibration", scale=16)
    return read_onnx(MODELS / "digits.onnx"), images, labels, calibration


def test_shipped_model_is_accurate_in_float(digits):
    graph, images, labels, calibration = digits
    assert len(images) == 400
    assert len(calibration) == 128
    assert (run_float(graph, images).argmax(1) == labels).mean() >= 0.98


@pytest.mark.parametrize("edge_bits", [None, 8])
def test_shipped_model_loses_less_than_a_point_with_four_bits(digits, edge_bits):
    graph, images, labels, calibration = digits
    network = quantize(graph, calibration, edge_bits=edge_bits)
    wanted = (run_float(graph, images).argmax(1) == labels).mean()
    found = (run(network, input_levels(network, images)).argmax(1) == labels).mean()
    assert found >= wanted - 0.01


def test_shipped_test_images_are_not_calibration_images(digits):
    _, images, _, calibration = digits
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in calibration}


def test_vectors_are_taken_as_maps_of_one_pixel():
    node = conv("fc", "x", "y", 7, 3, kernel=1)
    graph = Graph("vector", "x", "y", (7, 1, 1), (node,))
    images = RANDOM.normal(size=(9, 7)).astype(np.float32)
    network = quantize(graph, images)
    assert run(network, input_levels(network, images)).shape == (9, 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"calibration": IMAGES[:0]}, QuantizationError, "at least one image"),
        ({"calibration": IMAGES[:, :1]}, ModelError, r"shape \(N, 2, 8, 8\)"),
        ({"calibration": np.full_like(IMAGES, np.nan)}, ModelError, "must be finite"),
        ({"weights": "uint:4"}, QuantizationError, "weights must have a signed format"),
        ({"weights": "esb:4"}, FormatError, "Unknown format 'esb:4'"),
        ({"activations": 4}, QuantizationError, "activations must be a format or its name"),
        ({"signed_activations": "uint:4"}, QuantizationError, "signed_activations must be a signed format"),
        ({"edge_bits": 9}, QuantizationError, "edge_bits must be None or 2 to 8, not 9"),
        ({"alpha_mode": "best"}, QuantizationError, "alpha_mode must be mse, dda, max, percentile, output, not 'best'"),
        (
            {"input_format": "uint:8"},
            QuantizationError,
            "input_format uint:8 is unsigned, but calibration images reach -",
        ),
    ],
)
def test_what_cannot_be_quantized_is_refused(options, error, message):
    arguments = {"calibration": IMAGES} | options
    with pytest.raises(error, match=message):
        quantize(GRAPH, **arguments)


def test_accumulators_that_could_leave_32_bits_are_refused():
    weight = np.ones((1, 3000, 6, 6))
    node = Conv(name="wide", input="x", output="y", weight=weight, bias=np.zeros(1))
    graph = Graph("wide", "x", "y", (3000, 6, 6), (node,))
    with pytest.raises(NetworkError, match="leaves 32 bits"):
        quantize(graph, np.ones((1, 3000, 6, 6), np.float32), weights="int:8", input_format="uint:8")


def test_images_for_a_network_must_have_its_shape():
    network = quantize(GRAPH, IMAGES)
    with pytest.raises(QuantizationError, match=r"shape \(N, 2, 8, 8\), not float32 \(40, 2, 8, 4\)"):
        input_levels(network, IMAGES[..., :4])


def test_a_lowered_graph_and_its_source_give_the_same_network(digits):
    graph, _, _, calibration = digits
    for layer, other in zip(
        quantize(graph, calibration).layers, quantize(lower(graph), calibration).layers, strict=True
    ):
        if hasattr(layer, "weights"):
            np.testing.assert_array_equal(layer.weights, other.weights)
            np.testing.assert_array_equal(layer.bias, other.bias)
