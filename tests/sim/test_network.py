"""Integer networks: exact execution against a plain-Python oracle, validation, and files."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT
from sigbit_sim.golden import network as network_module
from sigbit_sim.golden.network import (
    AveragePool,
    Concat,
    Convolution,
    IntegerNetwork,
    MaxPool,
    NetworkError,
    Tensor,
    Upsample,
    run,
)

# --- oracle: one number at a time, Python integers ----------------------------------------------------------------


def rescale(acc, bias, multiplier, shift, format, relu, residual=0, residual_multiplier=0):
    p = (acc + bias) * multiplier + residual * residual_multiplier
    level = next(
        (high for low, high in reversed(list(pairwise(format.levels)))
         if 2 * p >= (low + high) << shift),
        format.levels[0],
    )  # fmt: skip
    return max(level, 0) if relu else level


def windows(layer, source, target, kernel, dilation=(1, 1)):
    for y in range(target.height):
        for x in range(target.width):
            inside = []
            for ky in range(kernel[0]):
                for kx in range(kernel[1]):
                    row = y * layer.stride[0] + ky * dilation[0] - layer.pads[0]
                    column = x * layer.stride[1] + kx * dilation[1] - layer.pads[1]
                    if 0 <= row < source.height and 0 <= column < source.width:
                        inside.append((ky, kx, row, column))
            yield y, x, inside


def oracle(layer, source, target, image, residual=None):
    result = np.zeros((target.channels, target.height, target.width), dtype=object)
    image = image.tolist()
    for o in range(target.channels):
        if isinstance(layer, Convolution):
            weights = layer.weights.tolist()[o]
            first = o // (target.channels // layer.groups) * len(weights)
            for y, x, inside in windows(layer, source, target, layer.weights.shape[2:], layer.dilation):
                acc = sum(
                    weights[i][ky][kx] * image[first + i][r][c] for ky, kx, r, c in inside for i in range(len(weights))
                )
                bias, multiplier, shift = (int(v[o]) for v in (layer.bias, layer.multiplier, layer.shift))
                if layer.negative_multiplier is not None and acc + bias < 0:
                    multiplier = int(layer.negative_multiplier[o])
                if target.format is None:
                    result[o, y, x] = acc + bias
                else:
                    added = () if residual is None else (int(residual[o, y, x]), int(layer.residual_multiplier[o]))
                    result[o, y, x] = rescale(acc, bias, multiplier, shift, target.format, layer.relu, *added)
        else:
            for y, x, inside in windows(layer, source, target, layer.kernel):
                values = [image[o][r][c] for _, _, r, c in inside]
                if isinstance(layer, MaxPool):
                    result[o, y, x] = max(values)
                else:
                    result[o, y, x] = rescale(sum(values), 0, layer.multiplier, layer.shift, target.format, layer.relu)
    return result.astype(np.int64)


# --- networks of one layer ----------------------------------------------------------------------------------------


def output_length(length, before, after, kernel, stride, dilation=1):
    return (length + before + after - dilation * (kernel - 1) - 1) // stride + 1


def one_layer(layer, source, channels, format, kernel, dilation=(1, 1)):
    size = [
        output_length(n, layer.pads[i], layer.pads[i + 2], kernel[i], layer.stride[i], dilation[i])
        for i, n in enumerate((source.height, source.width))
    ]
    target = Tensor("output", channels, *size, format, source.unit if isinstance(layer, MaxPool) else 0.5)
    return IntegerNetwork("one layer", {"input": source, "output": target}, (layer,))


def convolution(rng, source, out, kernel, weight_format, raw=False, **options):
    """Random layer whose results spread over some hundred half units, whatever the formats."""
    depth = source.channels // options.get("groups", 1)
    weights = rng.choice(np.array(weight_format.levels), (out, depth, *kernel))
    spread = int(np.sqrt(np.prod(weights.shape[1:])) * weight_format.magnitude_max * source.format.magnitude_max / 4)
    shift = (65535 * spread // 16).bit_length()
    constants = np.stack([rng.integers(1, 65536, out), rng.integers(shift - 2, shift + 1, out)])
    if raw:
        constants = np.zeros_like(constants)
    return Convolution(
        "layer", "input", "output", weights, weight_format, rng.uniform(0.1, 1, out),
        rng.integers(-spread, spread + 1, out), constants[0], constants[1], **options,
    )  # fmt: skip


def check(network, rng, images=3):
    source, target = network.tensors["input"], network.tensors["output"]
    shape = (images, source.channels, source.height, source.width)
    levels = rng.choice(np.array(source.format.levels), shape)
    _, tensors = run(network, levels, trace=True)
    assert list(tensors) == ["input", "output"]
    assert tensors["output"].dtype == np.int64
    assert np.array_equal(tensors["input"], levels)
    for image, result in zip(levels, tensors["output"], strict=True):
        assert np.array_equal(result, oracle(network.layers[0], source, target, image))
    return tensors["output"]


CONVOLUTIONS = {
    "one by one": {"kernel": (1, 1)},
    "three by three": {"kernel": (3, 3), "pads": (1, 1, 1, 1)},
    "stride": {"kernel": (3, 3), "stride": (2, 3)},
    "strided one by one": {"kernel": (1, 1), "stride": (3, 2)},
    "dilation": {"kernel": (3, 2), "dilation": (2, 3)},
    "asymmetric pads": {"kernel": (2, 3), "pads": (0, 3, 2, 1)},
    "pads wider than the kernel": {"kernel": (1, 2), "pads": (2, 3, 1, 2)},
    "everything": {"kernel": (3, 2), "stride": (2, 1), "dilation": (1, 2), "pads": (2, 0, 1, 3)},
    "full kernel": {"kernel": (6, 7)},
}


@pytest.mark.parametrize(
    ("source_format", "weight_format", "target_format"),
    [
        (ESBU(4, 2), ESB(4, 2), ESBU(4, 2)),
        (UINT(8), INT(8), ESBU(4, 2)),
        (INT(8), INT(8), INT(8)),
        (ESB(5, 2), ESB(4, 1), ESB(5, 2)),
        (UINT(8), INT(8), None),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_equals_the_oracle(name, source_format, weight_format, target_format):
    rng = np.random.default_rng(40)
    options = dict(CONVOLUTIONS[name])
    kernel = options.pop("kernel")
    source = Tensor("input", 3, 6, 7, source_format, 0.25)
    layer = convolution(rng, source, 4, kernel, weight_format, target_format is None, **options)
    result = check(one_layer(layer, source, 4, target_format, kernel, layer.dilation), rng)
    assert len(np.unique(result)) > 2, "the case must exercise more than the two ends"


@pytest.mark.parametrize(
    ("channels", "outputs", "groups"), [(6, 6, 6), (6, 12, 6), (6, 4, 2), (4, 2, 2), (3, 3, 3)], ids=str
)
@pytest.mark.parametrize("raw", [False, True])
def test_groups_see_their_own_channels(channels, outputs, groups, raw):
    rng = np.random.default_rng(47)
    source = Tensor("input", channels, 5, 6, ESBU(4, 2), 0.25)
    options = {"stride": (1, 2), "pads": (1, 0, 1, 2), "groups": groups}
    layer = convolution(rng, source, outputs, (3, 3), ESB(4, 2), raw, **options)
    result = check(one_layer(layer, source, outputs, None if raw else ESB(5, 2), (3, 3)), rng)
    assert len(np.unique(result)) > 2


def sum_network(rng, target_format, relu=False):
    """``input -> main``, and ``input -> first + main`` in one rounding."""
    source = Tensor("input", 3, 6, 5, ESBU(4, 2), 0.25)
    main = convolution(rng, source, 3, (1, 1), ESB(4, 2), groups=3)
    adding = convolution(rng, source, 3, (3, 3), ESB(4, 2), pads=(1, 1, 1, 1), relu=relu)
    # Both operands of the sum reach about the same size.
    gains = adding.multiplier / 2.0**adding.shift * np.abs(adding.weights).sum(axis=(1, 2, 3)) * 28 / 4 / 127
    adding = replace(
        adding, name="sum", output="output", residual="main",
        residual_multiplier=np.minimum(np.rint(gains * 2.0**adding.shift), (1 << 24) - 1).astype(np.int64),
    )  # fmt: skip
    tensors = {
        "input": source,
        "main": Tensor("main", 3, 6, 5, INT(8), 0.1),
        "output": Tensor("output", 3, 6, 5, target_format, 0.1),
    }
    main = replace(main, name="main", output="main", shift=main.shift - 3)
    return IntegerNetwork("sum", tensors, (main, adding))


@pytest.mark.parametrize(("format", "relu"), [(ESBU(4, 2), False), (ESB(5, 2), False), (INT(8), True)], ids=str)
def test_a_residual_is_added_before_the_only_rounding(format, relu):
    rng = np.random.default_rng(48)
    network = sum_network(rng, format, relu)
    levels = rng.choice(np.array(ESBU(4, 2).levels), (4, 3, 6, 5))
    _, tensors = run(network, levels, trace=True)
    source, target = network.tensors["input"], network.tensors["output"]
    for image, main, result in zip(levels, tensors["main"], tensors["output"], strict=True):
        assert np.array_equal(result, oracle(network.layers[1], source, target, image, main))
    alone = replace(network.layers[1], residual=None, residual_multiplier=None)
    without = run(IntegerNetwork("alone", network.tensors, (network.layers[0], alone)), levels)
    assert (without != tensors["output"]).mean() > 0.2, "the residual must matter"
    assert (np.sign(tensors["main"]) == -1).any()


def test_a_sum_rounds_once_and_ties_go_up():
    tensors = {name: Tensor(name, 1, 1, 1, INT(8), 1.0) for name in ("input", "output")}
    one = np.ones(1, np.int64)
    layer = Convolution(
        "sum", "input", "output", np.ones((1, 1, 1, 1), np.int64), INT(8), np.ones(1), 0 * one, one, 2 * one,
        residual="input", residual_multiplier=one,
    )  # fmt: skip
    network = IntegerNetwork("sum", tensors, (layer,))
    levels = np.array([-3, -2, -1, 0, 1, 2, 3])
    # (r + r) / 4; both quarters rounded on their own would give other results.
    assert run(network, levels.reshape(-1, 1, 1, 1))[:, 0].tolist() == [-1, -1, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("format", [INT(8), ESB(5, 2), INT(3)], ids=str)
def test_a_negative_sum_is_multiplied_by_the_negative_multiplier(format):
    rng = np.random.default_rng(51)
    source = Tensor("input", 3, 6, 7, INT(8), 0.25)
    layer = convolution(rng, source, 5, (3, 2), ESB(4, 2))
    leaky = replace(layer, negative_multiplier=np.array([0, 1, 700, 30000, 65535]))
    plain, result = (
        check(one_layer(each, source, 5, format, (3, 2)), np.random.default_rng(9)) for each in (layer, leaky)
    )
    assert (result[plain > 0] == plain[plain > 0]).all()
    assert (result[:, 0] >= 0).all()
    assert (result[:, 2:4] < 0).any(axis=(0, 2, 3)).all()
    same = replace(layer, negative_multiplier=layer.multiplier)
    assert np.array_equal(check(one_layer(same, source, 5, format, (3, 2)), np.random.default_rng(9)), plain)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": UINT(8)}, "keeps negative results, but output has the format uint:8"),
        ({"format": None, "raw": True}, "keeps negative results, but output has the format raw"),
        ({"relu": True}, "Layer layer has a negative_multiplier and a ReLU"),
        ({"residual": "input", "residual_multiplier": np.ones(3, int)}, "and the residual input"),
        ({"negative_multiplier": np.ones(2, int)}, r"negative_multiplier must be a int64 array of shape \(3,\)"),
        ({"negative_multiplier": np.array([0, 65536, 1])}, "negative_multiplier must be 0 to 65535, not 0 to 65536"),
        ({"negative_multiplier": np.array([0, -1, 1])}, "negative_multiplier must be 0 to 65535, not -1 to 1"),
    ],
)
def test_an_inconsistent_leaky_layer_is_an_error(values, message):
    values = {"format": INT(8), "negative_multiplier": np.ones(3, int), **values}
    format, raw = values.pop("format"), values.pop("raw", False)
    source = Tensor("input", 3, 4, 4, UINT(8), 0.25)
    layer = replace(convolution(np.random.default_rng(52), source, 3, (1, 1), ESB(4, 2), raw), **values)
    with pytest.raises(NetworkError, match=message):
        one_layer(layer, source, 3, format, (1, 1))


RESIDUALS = [
    ({"residual": "nothing"}, "Layer sum uses tensor 'nothing'"),
    ({"residual": "output"}, "Layer sum reads 'output' before any layer has written it"),
    ({"residual_multiplier": None}, "Layer sum: residual_multiplier must be a int64 array of shape"),
    ({"residual_multiplier": np.full(3, 1 << 24)}, "residual_multiplier must be 0 to 16777215"),
    ({"residual": None}, "Layer sum: residual_multiplier must be None without a residual"),
    ({"groups": 2}, "groups must be a positive integer that divides 3 channels, not 2"),
    ({"groups": 0}, "groups must be a positive integer that divides 3 channels, not 0"),
    ({"groups": 3}, "weights expect 9 channels, but input has 3"),
]


@pytest.mark.parametrize(("values", "message"), RESIDUALS)
def test_an_inconsistent_sum_is_an_error(values, message):
    network = sum_network(np.random.default_rng(49), ESB(5, 2))
    with pytest.raises(NetworkError, match=message):
        replace(network, layers=(network.layers[0], replace(network.layers[1], **values)))


def test_a_residual_has_the_shape_of_the_output_and_a_format():
    network = sum_network(np.random.default_rng(49), ESB(5, 2))
    strided = replace(network.layers[0], stride=(2, 1))
    tensors = {**network.tensors, "main": replace(network.tensors["main"], height=3)}
    with pytest.raises(NetworkError, match="Layer sum: residual main is 3x3x5, but the output is 3x6x5"):
        replace(network, tensors=tensors, layers=(strided, network.layers[1]))
    for name in ("main", "output"):
        tensors = {**network.tensors, name: replace(network.tensors[name], format=None)}
        with pytest.raises(NetworkError, match=f"Layer sum with a residual .* raw integers .{name}"):
            replace(network, tensors=tensors)


@pytest.mark.parametrize("format", [ESB(5, 2), UINT(4)], ids=str)
def test_relu_clears_negative_results(format):
    rng = np.random.default_rng(41)
    source = Tensor("input", 3, 5, 5, ESBU(4, 2), 0.25)
    layer = convolution(rng, source, 4, (3, 3), ESB(4, 2), relu=True)
    result = check(one_layer(layer, source, 4, format, (3, 3)), rng)
    assert result.min() == 0 < result.max()


@pytest.mark.parametrize("format", [UINT(8), INT(8), ESBU(4, 2), ESB(4, 1)], ids=str)
@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),
    [((2, 2), (2, 2), (0, 0, 0, 0)), ((3, 3), (2, 2), (1, 1, 1, 1)), ((2, 3), (1, 2), (1, 0, 0, 2)),
     ((6, 7), (1, 1), (0, 0, 0, 0))],
)  # fmt: skip
def test_pooling_equals_the_oracle(format, kernel, stride, pads):
    rng = np.random.default_rng(42)
    source = Tensor("input", 2, 6, 7, format, 0.25)
    largest = MaxPool("pool", "input", "output", kernel, stride, pads)
    check(one_layer(largest, source, 2, format, kernel), rng)
    for relu in (False, True):
        mean = AveragePool("pool", "input", "output", kernel, stride, 40000, 17, pads, relu)
        check(one_layer(mean, source, 2, INT(8), kernel), rng)


def test_padding_never_wins_a_maximum():
    source = Tensor("input", 1, 2, 2, INT(8), 1.0)
    network = one_layer(MaxPool("pool", "input", "output", (2, 2), (2, 2), (1, 1, 1, 1)), source, 1, INT(8), (2, 2))
    assert run(network, -np.arange(1, 5).reshape(1, 1, 2, 2)).tolist() == [[[[-1, -2], [-3, -4]]]]


@pytest.mark.parametrize(("area", "multiplier", "shift"), [(4, 32768, 17), (9, 58254, 19), (49, 42799, 21)])
def test_average_of_equal_units_rounds_to_nearest(area, multiplier, shift):
    side = int(area**0.5)
    source = Tensor("input", 1, side, side, UINT(8), 1.0)
    layer = AveragePool("pool", "input", "output", (side, side), (1, 1), multiplier, shift)
    network = one_layer(layer, source, 1, UINT(8), (side, side))
    totals = np.arange(255 * area + 1)
    images = (totals[:, None] + np.arange(area)) // area
    result = run(network, images.reshape(-1, 1, side, side))[:, 0]
    assert np.array_equal(result, (2 * totals + area) // (2 * area))


def test_sums_beyond_single_precision_stay_exact():
    rng = np.random.default_rng(43)
    source = Tensor("input", 600, 1, 1, UINT(8), 1.0)
    layer = convolution(rng, source, 2, (1, 1), INT(8), raw=True)
    layer = replace(layer, weights=np.full((2, 600, 1, 1), 127), bias=np.array([1, -1]))
    network = one_layer(layer, source, 2, None, (1, 1))
    levels = np.full((2, 600, 1, 1), 255)
    levels[1, :7, 0, 0] = 254
    assert 600 * 127 * 255 > 1 << 24
    assert run(network, levels).tolist() == [[600 * 127 * 255 + 1, 600 * 127 * 255 - 1],
                                             [600 * 127 * 255 - 888, 600 * 127 * 255 - 890]]  # fmt: skip


# --- whole networks -----------------------------------------------------------------------------------------------


def small_network():
    rng = np.random.default_rng(44)
    tensors = [
        Tensor("input", 1, 8, 8, UINT(8), 1 / 255),
        Tensor("conv", 4, 8, 8, ESBU(4, 2), 0.1),
        Tensor("pool", 4, 4, 4, ESBU(4, 2), 0.1),
        Tensor("mean", 4, 2, 2, UINT(8), 0.01),
        Tensor("output", 3, 1, 1, None, 0.001),
    ]
    tensors = {tensor.name: tensor for tensor in tensors}
    first = convolution(rng, tensors["input"], 4, (3, 3), INT(8), pads=(1, 1, 1, 1))
    last = convolution(rng, tensors["mean"], 3, (2, 2), INT(8), raw=True)
    layers = (
        replace(first, name="first", output="conv", shift=np.full(4, 28)),
        MaxPool("largest", "conv", "pool", (2, 2), (2, 2)),
        AveragePool("mean", "pool", "mean", (2, 2), (2, 2), 50000, 15),
        replace(last, name="last", input="mean"),
    )
    return IntegerNetwork("small", tensors, layers)


def images(count):
    return np.random.default_rng(45).integers(0, 256, (count, 1, 8, 8))


def test_network_runs_layer_after_layer_and_returns_logits():
    network = small_network()
    logits, tensors = run(network, images(5), trace=True)
    assert logits.shape == (5, 3)
    assert np.array_equal(logits, run(network, images(5)))
    assert np.array_equal(logits, tensors["output"][:, :, 0, 0])
    for layer in network.layers:
        source, target = network.tensors[layer.input], network.tensors[layer.output]
        for i in range(5):
            assert np.array_equal(tensors[layer.output][i], oracle(layer, source, target, tensors[layer.input][i]))


def test_result_does_not_depend_on_the_batch_size(monkeypatch):
    expected = run(small_network(), images(7))
    monkeypatch.setattr(network_module, "_BATCH_ELEMENTS", 2 * 9 * 64)
    assert network_module._batch_size(small_network().layers[0], small_network().tensors) == 2
    assert np.array_equal(run(small_network(), images(7)), expected)


@pytest.mark.parametrize(("products", "results"), [(1, 1), (1, 1 << 16), (1 << 21, 70), (200, 35)])
def test_result_does_not_depend_on_the_steps_within_a_layer(monkeypatch, products, results):
    """One image or several, one channel or several: sums with a residual, one input channel per group and more."""
    rng = np.random.default_rng(48)
    summed, levels = sum_network(rng, INT(8)), rng.choice(np.array(ESBU(4, 2).levels), (5, 3, 6, 5))
    source = Tensor("input", 4, 8, 8, UINT(8), 1.0)
    grouped = [
        one_layer(convolution(rng, source, 8, (3, 2), INT(8), groups=groups), source, 8, INT(8), (3, 2))
        for groups in (1, 2, 4)
    ]
    cases = [
        (summed, levels),
        (small_network(), images(5)),
        *((n, rng.integers(0, 256, (5, 4, 8, 8))) for n in grouped),
    ]
    expected = [run(*case) for case in cases]
    monkeypatch.setattr(network_module, "_PRODUCT_ELEMENTS", products)
    monkeypatch.setattr(network_module, "_RESULT_ELEMENTS", results)
    for case, result in zip(cases, expected, strict=True):
        assert np.array_equal(run(*case), result)


def test_no_images_give_no_logits():
    assert run(small_network(), images(0)).shape == (0, 3)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (np.zeros((2, 1, 8, 9), int), r"must be an integer array \(N, 1, 8, 8\), not int64 \(2, 1, 8, 9\)"),
        (np.zeros((1, 8, 8), int), r"must be an integer array \(N, 1, 8, 8\)"),
        (np.zeros((2, 1, 8, 8)), "not float64"),
        (np.full((2, 1, 8, 8), 256), "must hold levels of uint:8 only"),
    ],
)
def test_input_that_does_not_fit_is_an_error(levels, message):
    with pytest.raises(NetworkError, match=message):
        run(small_network(), levels)


def changed_tensor(name, /, **values):
    network = small_network()
    tensors = {**network.tensors, name: replace(network.tensors[name], **values)}
    return lambda: IntegerNetwork("small", tensors, network.layers)


def changed_layer(index, **values):
    network = small_network()
    layers = list(network.layers)
    layers[index] = replace(layers[index], **values)
    return lambda: IntegerNetwork("small", network.tensors, layers)


def changed_network(**values):
    return lambda: replace(small_network(), **values)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (changed_tensor("conv", channels=0), "Tensor conv: channels must be a positive integer, not 0"),
        (changed_tensor("conv", height=True), "Tensor conv: height must be a positive integer, not True"),
        (changed_tensor("conv", format="esb:4,2"), "Tensor conv: format must be a Format or None"),
        (changed_tensor("conv", unit=0.0), "Tensor conv: unit must be a positive finite float, not 0.0"),
        (changed_tensor("conv", unit=float("nan")), "Tensor conv: unit must be a positive finite float, not nan"),
        (changed_tensor("conv", name="other"), "Tensor 'conv' must be a Tensor of that name"),
        (changed_tensor("input", format=None), "Network input 'input' must have a format"),
        (changed_tensor("conv", width=9), "Layer first produces 4x8x8, but tensor conv is 4x8x9"),
        (changed_tensor("pool", unit=0.2), "Layer largest: a maximum keeps format and unit"),
        (changed_tensor("pool", format=UINT(4)), "Layer largest: a maximum keeps format and unit"),
        (changed_tensor("mean", format=None), "Layer mean: an average has no raw form"),
        (changed_tensor("output", format=INT(8)), "Layer last: multiplier must be 1 to 65535, not 0 to 0"),
        (changed_network(input="image"), "Network input 'image' is not one of its tensors: input, conv"),
        (changed_network(outputs=("output", "logits")), "Network output 'logits' is not one of its tensors"),
        (changed_network(outputs=()), "at least one output, and each only once"),
        (changed_network(outputs=("output", "output")), "at least one output, and each only once"),
        (changed_network(layers=("relu",)), "A layer is one of Convolution, MaxPool, .*, not str"),
        (changed_network(layers=small_network().layers[1:]), "Layer largest reads 'conv' before any layer has written"),
        (changed_network(layers=small_network().layers[:-1]), "No layer writes the tensors output"),
        (changed_layer(1, name="first"), "Layer name 'first' is used twice"),
        (changed_layer(1, input="nothing"), "uses tensor 'nothing', which the network does not describe"),
        (changed_layer(1, output="conv"), "Layer largest writes 'conv', which exists already"),
        (changed_layer(1, kernel=(2,)), r"Layer largest: kernel must be a tuple of 2 integers >= 1, not \(2,\)"),
        (changed_layer(1, stride=(2, 0)), r"Layer largest: stride must be a tuple of 2 integers >= 1, not \(2, 0\)"),
        (changed_layer(1, pads=(0, 0, -1, 0)), "Layer largest: pads must be a tuple of 4 integers >= 0"),
        (changed_layer(1, kernel=(1, 1), pads=(1, 1, 1, 1), stride=(3, 3)), "pads .* must be smaller than the kernel"),
        (changed_layer(1, kernel=(9, 9)), "Layer largest: a 9x9 window does not fit the padded 8x8 map"),
        (changed_layer(0, dilation=[1, 1]), "Layer first: dilation must be a tuple of 2 integers >= 1"),
        (changed_layer(0, weights=np.zeros((4, 1, 3, 3))), r"weights must be an int64 array \(out, in / groups, "),
        (changed_layer(0, weights=np.zeros((4, 2, 3, 3), int)), "weights expect 2 channels, but input has 1"),
        (changed_layer(0, weights=np.full((4, 1, 3, 3), -128)), "Layer first: weights must be levels of int:8"),
        (changed_layer(0, weight_format="int:8"), "weight_format must be a Format"),
        (changed_layer(0, weight_units=np.zeros(4)), "weight_units must be positive and finite"),
        (changed_layer(0, weight_units=np.ones(3)), r"weight_units must be a float64 array of shape \(4,\)"),
        (changed_layer(0, bias=np.zeros(4)), r"bias must be a int64 array of shape \(4,\), not float64 \(4,\)"),
        (changed_layer(0, bias=np.full(4, 1 << 31)), "bias of output channel 0 can reach 2147483648"),
        (changed_layer(0, multiplier=np.full(4, 65536)), "multiplier must be 1 to 65535, not 65536 to 65536"),
        (changed_layer(0, shift=np.full(4, 48)), "shift must be 0 to 47, not 48 to 48"),
        (changed_layer(2, multiplier=0), "Layer mean: multiplier must be 1 to 65535"),
        (changed_layer(2, multiplier=0.5), "Layer mean: multiplier must be an integer, not 0.5"),
        (changed_layer(3, relu=True), "Layer last: raw results have no ReLU"),
        (changed_layer(3, bias=np.full(3, (1 << 31) - 1)), "accumulator of output channel . can reach"),
    ],
)  # fmt: skip
def test_inconsistent_network_is_an_error(build, message):
    with pytest.raises(NetworkError, match=message):
        build()


def test_accumulator_that_could_overflow_is_an_error():
    channels = (1 << 31) // (255 * 127) + 1
    weights = np.full((1, channels, 1, 1), 127)
    source = Tensor("input", channels, 1, 1, UINT(8), 1.0)
    layer = Convolution("fc", "input", "output", weights, INT(8), np.ones(1), np.zeros(1, int), np.ones(1, int),
                        np.zeros(1, int))  # fmt: skip
    with pytest.raises(NetworkError, match="accumulator of output channel 0 can reach 2147514120"):
        one_layer(layer, source, 1, UINT(8), (1, 1))
    smaller = replace(source, channels=channels - 1)
    one_layer(replace(layer, weights=weights[:, 1:]), smaller, 1, UINT(8), (1, 1))


# --- files --------------------------------------------------------------------------------------------------------


def test_saved_network_is_the_same_network(tmp_path):
    network = small_network()
    network.save(tmp_path / "net.npz")
    loaded = IntegerNetwork.load(tmp_path / "net.npz")
    assert loaded.tensors == network.tensors
    assert (loaded.name, loaded.input, loaded.output) == ("small", "input", "output")
    for old, new in zip(network.layers, loaded.layers, strict=True):
        assert type(old) is type(new)
        for key, value in vars(old).items():
            assert np.array_equal(getattr(new, key), value), key
            if isinstance(value, np.ndarray):
                assert getattr(new, key).dtype == value.dtype
    assert np.array_equal(run(loaded, images(4)), run(network, images(4)))
    assert [path.name for path in tmp_path.iterdir()] == ["net.npz"]


def test_saved_sum_is_the_same_sum(tmp_path):
    network = sum_network(np.random.default_rng(50), ESB(5, 2))
    network.save(tmp_path / "net.npz")
    loaded = IntegerNetwork.load(tmp_path / "net.npz")
    assert [layer.groups for layer in loaded.layers] == [3, 1]
    assert [layer.residual for layer in loaded.layers] == [None, "main"]
    assert loaded.layers[0].residual_multiplier is None
    assert np.array_equal(loaded.layers[1].residual_multiplier, network.layers[1].residual_multiplier)


def test_saved_leaky_layer_is_the_same_layer(tmp_path):
    source = Tensor("input", 3, 4, 4, UINT(8), 0.25)
    layer = convolution(np.random.default_rng(52), source, 3, (1, 1), ESB(4, 2))
    layer = replace(layer, negative_multiplier=np.array([0, 7, 65535]))
    one_layer(layer, source, 3, INT(8), (1, 1)).save(tmp_path / "net.npz")
    (loaded,) = IntegerNetwork.load(tmp_path / "net.npz").layers
    assert np.array_equal(loaded.negative_multiplier, layer.negative_multiplier)
    assert loaded.residual_multiplier is None


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        small_network().save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "net.npz"
    path.write_bytes(b"old")

    def full(file, **_arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(NetworkError, match=r"Cannot write the network to .*: No space left on device"):
        small_network().save(path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.npz"]


def saved(tmp_path, edit):
    """A saved network with its description or arrays changed."""
    path = tmp_path / "net.npz"
    small_network().save(path)
    with np.load(path) as archive:
        arrays = dict(archive)
    description = json.loads(str(arrays.pop("description")))
    edit(description, arrays)
    np.savez(path, description=np.array(json.dumps(description)), **arrays)
    return path


def not_a_network(tmp_path):
    arrays = tmp_path / "arrays.npz"
    np.savez(arrays, x=np.zeros(3))
    array = tmp_path / "array.npy"
    np.save(array, np.zeros(3))
    text, empty, cut = tmp_path / "text.npz", tmp_path / "empty.npz", tmp_path / "cut.npz"
    text.write_text("hello")
    empty.write_bytes(b"")
    small_network().save(cut)
    cut.write_bytes(cut.read_bytes()[:500])
    other = saved(tmp_path, lambda description, arrays: description.update(file="something else"))
    flipped = tmp_path / "flipped.npz"
    small_network().save(flipped)
    data = bytearray(flipped.read_bytes())
    data[200] ^= 255
    flipped.write_bytes(data)
    return arrays, array, text, empty, cut, other, flipped


def test_file_that_is_no_network_is_an_error(tmp_path):
    for path in not_a_network(tmp_path):
        with pytest.raises(NetworkError, match=f"{path.name} is not an integer network; expected the .npz file"):
            IntegerNetwork.load(path)


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(NetworkError, match="does not exist"):
        IntegerNetwork.load(tmp_path / "nothing.npz")
    with pytest.raises(NetworkError, match="Cannot read the integer network"):
        IntegerNetwork.load(tmp_path)
    with pytest.raises(NetworkError, match="Cannot write the network to"):
        small_network().save(tmp_path / "nowhere" / "net.npz")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda description, arrays: description.update(version=99), "has version 99, expected 2; quantize"),
        (lambda description, arrays: arrays.pop("0.weights"), "damaged integer network: KeyError.*0.weights"),
        (lambda description, arrays: description.pop("layers"), "damaged integer network: KeyError.*layers"),
        (lambda description, arrays: description["layers"][0].update(kind="Dense"), "damaged integer network"),
        (lambda description, arrays: description["layers"][0].update(color=1), "damaged integer network: TypeError"),
        (lambda description, arrays: description["tensors"][1].update(format="esb:4,9"), "damaged integer network"),
        (lambda description, arrays: description["tensors"][1].update(channels=5), "4x8x8, but tensor conv is 5x8x8"),
    ],
)
def test_damaged_description_is_an_error(tmp_path, edit, message):
    with pytest.raises(NetworkError, match=message):
        IntegerNetwork.load(saved(tmp_path, edit))


def test_a_changed_requantizer_would_be_noticed(monkeypatch):
    """The oracle shares no code with the model: a model that rounds ties down differs from it."""
    exact = network_module.requantize
    rng = np.random.default_rng(46)
    source = Tensor("input", 1, 4, 4, UINT(8), 1.0)
    network = one_layer(AveragePool("p", "input", "output", (2, 2), (1, 1), 32768, 17), source, 1, UINT(8), (2, 2))
    check(network, rng)
    monkeypatch.setattr(network_module, "requantize", lambda acc, bias, *rest: exact(acc - 1, bias, *rest))
    with pytest.raises(AssertionError):
        check(network, rng)


FIRST, BOTH = (2, 3, 4, UINT(4), 0.5), (5, 3, 4, UINT(4), 0.5)


def joined(first=FIRST, target=BOTH, others=("b",)):
    """Two inputs of a concatenation, ``a`` made of the network's input, and an output."""
    tensors = [Tensor("input", 2, 3, 4, UINT(4), 0.5), Tensor("a", *first), Tensor("b", 3, 3, 4, UINT(4), 0.5)]
    tensors.append(Tensor("output", *target))
    make = one_by_one(2, first[0], "a"), one_by_one(2, 3, "b")
    return IntegerNetwork(
        "joined", {tensor.name: tensor for tensor in tensors}, (*make, Concat("join", "a", "output", others)), "input"
    )


def one_by_one(inputs, outputs, target):
    ones, zeros = np.ones(outputs, np.int64), np.zeros(outputs, np.int64)
    weights = np.arange(outputs * inputs).reshape(outputs, inputs, 1, 1) % 3 - 1
    return Convolution(target, "input", target, weights, INT(4), np.ones(outputs), zeros, ones, zeros)


def test_concatenation_and_upsampling_move_levels():
    network = joined()
    levels = np.random.default_rng(1).integers(0, 16, (3, 2, 3, 4))
    output, tensors = run(network, levels, trace=True)
    assert (output[:, :2] == tensors["a"]).all()
    assert (output[:, 2:] == tensors["b"]).all()
    source, target = Tensor("input", 1, 2, 2, INT(4), 1.0), Tensor("output", 1, 4, 6, INT(4), 1.0)
    grown = IntegerNetwork("grown", {"input": source, "output": target}, (Upsample("u", "input", "output", (2, 3)),))
    assert run(grown, np.array([[[[1, -2], [3, -4]]]]))[0, 0].tolist() == [
        [1, 1, 1, -2, -2, -2], [1, 1, 1, -2, -2, -2], [3, 3, 3, -4, -4, -4], [3, 3, 3, -4, -4, -4],
    ]  # fmt: skip


def test_several_outputs_come_by_name_and_survive_a_file(tmp_path):
    network = joined()
    network = IntegerNetwork("several", network.tensors, network.layers, "input", ("output", "b"))
    levels = np.random.default_rng(2).integers(0, 16, (3, 2, 3, 4))
    found, tensors = run(network, levels, trace=True)
    assert list(found) == ["output", "b"]
    assert (found["b"] == tensors["b"]).all()
    network.save(tmp_path / "net.npz")
    loaded = IntegerNetwork.load(tmp_path / "net.npz")
    assert loaded.outputs == ("output", "b")
    assert loaded.layers[-1] == network.layers[-1]
    assert (run(loaded, levels)["output"] == found["output"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": (6, 3, 4, UINT(4), 0.5)}, "join produces 5x3x4, but tensor output is 6x3x4"),
        ({"target": (5, 3, 4, UINT(4), 0.25)}, "join keeps format and unit, but a has uint:4 and 0.5, output uint:4"),
        ({"target": (5, 3, 4, INT(4), 0.5)}, "join keeps format and unit, but a has uint:4 and 0.5, output int:4"),
        ({"first": (2, 3, 4, None, 0.5)}, r"join reads raw integers \(a\)"),
        ({"others": ["b"]}, "join: others must be a tuple of tensors"),
        ({"others": ("c",)}, "join uses tensor 'c', which the network does not describe"),
    ],
)
def test_inconsistent_concatenation_is_an_error(change, message):
    with pytest.raises(NetworkError, match=message):
        joined(**change)


@pytest.mark.parametrize(
    ("factors", "size", "message"),
    [
        ((2,), (4, 4), r"u: factors must be a tuple of 2 integers >= 1, not \(2,\)"),
        ((2, 0), (4, 4), r"u: factors must be a tuple of 2 integers >= 1"),
        ((2, 2), (4, 5), "u produces 1x4x4, but tensor output is 1x4x5"),
    ],
)
def test_inconsistent_upsampling_is_an_error(factors, size, message):
    tensors = {"input": Tensor("input", 1, 2, 2, INT(4), 1.0), "output": Tensor("output", 1, *size, INT(4), 1.0)}
    with pytest.raises(NetworkError, match=message):
        IntegerNetwork("grown", tensors, (Upsample("u", "input", "output", factors),))
