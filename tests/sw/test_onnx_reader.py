"""The reader against onnxruntime, one operator at a time, and the messages for what it cannot read."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import sigbit
from onnx import numpy_helper
from onnx_models import MAP, build, one, read
from sigbit.float_model import run_float
from sigbit.graph import Linear, ModelError
from sigbit.onnx_reader import OPSET_MAX, OPSET_MIN, SUPPORTED, read_onnx
from sigbit.passes import lower
from sigbit.quantize import input_levels, quantize
from sigbit_sim.golden.network import run

RANDOM = np.random.default_rng(3)
VECTOR = ("N", 12)


def weights(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


CONV = {"w": weights(4, 3, 3, 2), "b": weights(4)}
NORM = {"s": weights(3), "t": weights(3), "m": weights(3), "v": np.abs(weights(3))}
AS_ONNX_RUNS_IT = {
    "conv": (one("Conv", "x w b"), CONV),
    "conv without bias": (one("Conv", "x w"), CONV),
    "conv with uneven pads": (one("Conv", "x w b", pads=[2, 0, 1, 1]), CONV),
    "conv with stride and dilation": (one("Conv", "x w b", strides=[2, 3], dilations=[2, 1]), CONV),
    "conv same upper": (one("Conv", "x w b", auto_pad="SAME_UPPER", strides=[2, 1]), CONV),
    "conv same lower": (one("Conv", "x w b", auto_pad="SAME_LOWER", strides=[2, 3]), CONV),
    "conv valid": (one("Conv", "x w b", auto_pad="VALID", kernel_shape=[3, 2]), CONV),
    "batch norm": (one("BatchNormalization", "x s t m v", epsilon=1e-3), NORM),
    "relu": (one("Relu"), {}),
    "leaky relu": (one("LeakyRelu", alpha=0.25), {}),
    "leaky relu with the default slope": (one("LeakyRelu"), {}),
    "leaky relu of transposed maps": (
        [
            ("Transpose", ["x"], ["t"], {"perm": [0, 2, 3, 1]}),
            ("LeakyRelu", ["t"], ["r"], {"alpha": 0.5}),
            ("PRelu", ["r", "p"], ["q"], {}),
            ("Transpose", ["q"], ["y"], {"perm": [0, 3, 1, 2]}),
        ],
        {"p": np.full((1, 1, 1), 0.5, np.float32)},
    ),
    "prelu where channels are last": (
        [
            ("Transpose", ["x"], ["t"], {"perm": [0, 2, 3, 1]}),
            ("PRelu", ["t", "p"], ["q"], {}),
            ("Transpose", ["q"], ["y"], {"perm": [0, 3, 1, 2]}),
        ],
        {"p": np.abs(weights(3))},
    ),
    "prelu with one slope": (one("PRelu", "x p"), {"p": np.full(1, 0.3, np.float32)}),
    "prelu with a slope per channel": (one("PRelu", "x p"), {"p": np.abs(weights(3, 1, 1))}),
    "max pool": (one("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]), {}),
    "max pool, ceil": (one("MaxPool", kernel_shape=[3, 3], strides=[2, 3], ceil_mode=1), {}),
    "max pool, ceil with pads": (
        one("MaxPool", kernel_shape=[2, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
        {},
    ),
    "max pool, ceil without effect": (one("MaxPool", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1), {}),
    "average pool": (one("AveragePool", kernel_shape=[2, 3], strides=[2, 1]), {}),
    "average pool with counted pads": (
        one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        {},
    ),
    "pools of one pixel": (
        [
            ("GlobalMaxPool", ["x"], ["g"], {}),
            ("GlobalAveragePool", ["g"], ["h"], {}),
            ("AveragePool", ["h"], ["i"], {"kernel_shape": [1, 1]}),
            ("MaxPool", ["i"], ["y"], {"kernel_shape": [1, 1], "ceil_mode": 1}),
        ],
        {},
    ),
    "global average pool": (one("GlobalAveragePool"), {}),
    "global max pool": (one("GlobalMaxPool"), {}),
    "mean over space": (one("ReduceMean", axes=[-1, 2]), {}),
    "mean over space, dropped": (one("ReduceMean", axes=[2, 3], keepdims=0), {}),
    "flatten": (one("Flatten"), {}),
    "reshape": (one("Reshape", "x shape"), {"shape": np.array([0, -1])}),
    "reshape to the same shape": (one("Reshape", "x shape"), {"shape": np.array([0, 0, 0, 8])}),
    "reshape with free batch": (one("Reshape", "x shape"), {"shape": np.array([-1, 216])}),
    "reshape that may be empty": (one("Reshape", "x shape", allowzero=1), {"shape": np.array([-1, 216])}),
    "reshape by the input's own shape": (
        [
            ("Shape", ["x"], ["size"], {}),
            ("Gather", ["size", "zero"], ["batch"], {}),
            ("Unsqueeze", ["batch", "axis"], ["first"], {}),
            ("Concat", ["first", "rest"], ["shape"], {"axis": 0}),
            ("Reshape", ["x", "shape"], ["y"], {}),
        ],
        {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1])},
    ),
    "squeeze": (
        [("GlobalAveragePool", ["x"], ["p"], {}), ("Squeeze", ["p", "axes"], ["y"], {})],
        {"axes": np.array([2, 3])},
    ),
    "identity and dropout": ([("Identity", ["x"], ["i"], {}), ("Dropout", ["i"], ["y"], {})], {}),
    "add per channel": (one("Add", "x c"), {"c": weights(3, 1, 1)}),
    "data minus constant": (one("Sub", "x c"), {"c": weights(3, 1, 1)}),
    "constant minus data": (one("Sub", "c x"), {"c": weights(1, 3, 1, 1)}),
    "multiply by a number": (one("Mul", "x c"), {"c": weights(1)}),
    "divide per channel": (one("Div", "x c"), {"c": weights(3, 1, 1)}),
    "depthwise conv": (one("Conv", "x w", group=3, strides=[2, 1]), {"w": weights(3, 1, 3, 2)}),
    "depthwise conv with a multiplier": (one("Conv", "x w b", group=3), {"w": weights(6, 1, 3, 2), "b": weights(6)}),
    "grouped conv": (
        [("Conv", ["x", "v"], ["c"], {}), ("Conv", ["c", "w"], ["y"], {"group": 2, "pads": [1, 0, 1, 2]})],
        {"v": weights(4, 3, 1, 1), "w": weights(6, 2, 3, 3)},
    ),
    "sum of two tensors": (
        [("Relu", ["x"], ["r"], {}), ("Add", ["x", "r"], ["s"], {}), ("Relu", ["s"], ["y"], {})],
        {},
    ),
    "sum of a tensor with itself": (one("Add", "x x"), {}),
    "sum by another name": ([("Relu", ["x"], ["r"], {}), ("Sum", ["x", "r"], ["y"], {})], {}),
    "relu 6": (one("Clip", "x low high"), {"low": np.float32(0), "high": np.float32(0.6)}),
    "clip without an upper bound": (one("Clip", "x low"), {"low": np.float32(0)}),
    "clip with the largest float": (
        one("Clip", "x low high"),
        {"low": np.float32(0), "high": np.finfo(np.float32).max},
    ),
    "clip by extrema": (
        [("Max", ["zero", "x"], ["r"], {}), ("Min", ["r", "six"], ["y"], {})],
        {"zero": np.float32(0), "six": weights(1) ** 2},
    ),
    "option A shortcut": (
        [("Slice", ["x", "start", "end", "axes", "steps"], ["s"], {}), ("Pad", ["s", "pads"], ["y"], {})],
        {
            "start": np.array([0, 0]),
            "end": np.array([1 << 62, 8]),
            "axes": np.array([2, 3]),
            "steps": np.array([2, 3]),
            "pads": np.array([0, 2, 0, 0, 0, 1, 0, 0]),
        },
    ),
    "slice of channels": (
        one("Slice", "x start end axes"),
        {"start": np.array([-2]), "end": np.array([3]), "axes": np.array([1])},
    ),
    "pad with zeros": (
        one("Pad", "x pads value", mode="constant"),
        {"pads": np.array([0, 0, 1, 0, 0, 0, 2, 3]), "value": np.float32(0)},
    ),
    "transposed there and back": (
        [
            ("Transpose", ["x"], ["last"], {"perm": [0, 2, 3, 1]}),
            ("Relu", ["last"], ["r"], {}),
            ("Transpose", ["r"], ["y"], {"perm": [0, 3, 1, 2]}),
        ],
        {},
    ),
    "flattened with channels last": (
        [
            ("Transpose", ["x"], ["last"], {"perm": [0, 2, 3, 1]}),
            ("Reshape", ["last", "flat"], ["v"], {}),
            ("Relu", ["v"], ["r"], {}),
            ("MatMul", ["r", "w"], ["y"], {}),
        ],
        {"flat": np.array([-1, 216]), "w": weights(216, 4)},
    ),
    "mean with channels last": (
        [
            ("Transpose", ["x"], ["last"], {"perm": [0, 2, 3, 1]}),
            ("ReduceMean", ["last"], ["m"], {"axes": [1, 2]}),
            ("Squeeze", ["m", "axes"], ["y"], {}),
        ],
        {"axes": np.array([1, 2])},
    ),
    "pixel renamed": (
        [
            ("GlobalAveragePool", ["x"], ["p"], {}),
            ("Transpose", ["p"], ["t"], {"perm": [0, 2, 3, 1]}),
            ("Reshape", ["t", "back"], ["u"], {}),
            ("Conv", ["u", "w"], ["y"], {}),
        ],
        {"back": np.array([0, 3, 1, 1]), "w": weights(2, 3, 1, 1)},
    ),
}
ON_VECTORS = {
    "gemm": (one("Gemm", "x w b"), {"w": weights(12, 5), "b": weights(5)}),
    "gemm transposed and scaled": (
        one("Gemm", "x w b", transB=1, alpha=0.5, beta=3.0),
        {"w": weights(5, 12), "b": weights(1, 5)},
    ),
    "gemm with one bias": (one("Gemm", "x w b"), {"w": weights(12, 5), "b": np.float32(1.5)}),
    "matmul and add": (
        [("MatMul", ["x", "w"], ["p"], {}), ("Add", ["b", "p"], ["y"], {})],
        {"w": weights(12, 5), "b": weights(5)},
    ),
    "matmul with a transposed constant": (
        [("Transpose", ["w"], ["t"], {"perm": [1, 0]}), ("MatMul", ["x", "t"], ["y"], {})],
        {"w": weights(5, 12)},
    ),
    "batch norm of a vector": (
        one("BatchNormalization", "x s t m v"),
        {"s": weights(12), "t": weights(12), "m": weights(12), "v": np.abs(weights(12))},
    ),
}


def check(nodes, constants, shape, folder, opset=17):
    model = build(nodes, constants, shape, opset)
    images = np.random.default_rng(4).normal(size=(5, *shape[1:])).astype(np.float32)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": images})[0]
    found = run_float(read(model, folder), images)
    assert found.shape == expected.shape
    # float32 sums of more than a thousand terms, in another order: an error of the sum's size, not of the result's
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("case", AS_ONNX_RUNS_IT)
def test_operator_on_a_map_computes_what_onnxruntime_computes(case, tmp_path):
    check(*AS_ONNX_RUNS_IT[case], MAP, tmp_path)


TWICE = np.array([1, 1, 2, 2], np.float32)
SIZES = np.array([1, 3, 18, 16], np.int64)


def resize(inputs, **attributes):
    return [("Resize", inputs.split(" "), ["y"], attributes)]


#: Nodes, constants, operator set.
STRUCTURE = {
    "concat": (
        [("Conv", ["x", "w", "b"], ["c"], {"auto_pad": "SAME_UPPER"}), *one("Concat", "x c x", axis=1)],
        CONV,
        17,
    ),
    "concat, negative axis": (one("Concat", "x x", axis=-3), {}, 17),
    "concat of one": (one("Concat", axis=1), {}, 17),
    "concat of vectors": (
        [
            ("Flatten", ["x"], ["f"], {}),
            ("GlobalAveragePool", ["x"], ["g"], {}),
            ("Flatten", ["g"], ["h"], {}),
            ("Concat", ["h", "f", "h"], ["i"], {"axis": 1}),
            *one("Gemm", "i m"),
        ],
        {"m": weights(3 * 9 * 8 + 6, 4)},
        17,
    ),
    "concat, channels last": (
        [
            ("Transpose", ["x"], ["t"], {"perm": [0, 2, 3, 1]}),
            ("Relu", ["t"], ["r"], {}),
            ("Concat", ["t", "r"], ["u"], {"axis": 3}),
            ("Upsample", ["u", "s"], ["v"], {}),
            ("Flatten", ["v"], ["f"], {}),
            ("Concat", ["f", "f"], ["h"], {"axis": 1}),
            *one("MatMul", "h m"),
        ],
        {"m": weights(18 * 8 * 6 * 2, 4), "s": np.array([1, 2, 1, 1], np.float32)},
        9,
    ),
    "resize": (resize("x  s"), {"s": TWICE}, 17),
    "resize, opset 10": (one("Resize", "x s"), {"s": np.array([1, 1, 3, 2], np.float32)}, 10),
    "resize by axes": (resize("x  s", axes=[3, 2]), {"s": np.array([1, 4], np.float32)}, 18),
    "resize to sizes of the input": (
        [
            ("Shape", ["x"], ["h"], {}),
            ("Slice", ["h", "zero", "two"], ["front"], {}),
            ("Concat", ["front", "back"], ["z"], {"axis": 0}),
            *resize("x   z", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        ],
        {"zero": np.array([0]), "two": np.array([2]), "back": np.array([18, 24])},
        17,
    ),
    "resize to the same": (resize("x  s", mode="linear"), {"s": np.ones(4, np.float32)}, 17),
    "upsample, opset 7": (one("Upsample", scales=[1.0, 1.0, 2.0, 3.0]), {}, 7),
}


@pytest.mark.parametrize("case", STRUCTURE)
def test_concatenation_and_resizing_compute_what_onnxruntime_computes(case, tmp_path):
    nodes, constants, opset = STRUCTURE[case]
    check(nodes, constants, MAP, tmp_path, opset=opset)


@pytest.mark.parametrize(
    ("nodes", "constants", "opset", "message"),
    [
        (one("Concat", "x x", axis=2), {}, 17, "joins axis 2 of N x 3 x 9 x 8; supported is the one of channels"),
        (one("Concat", "x x", axis=0), {}, 17, "joins axis 0 of"),
        (one("Concat", "x w", axis=1), {"w": weights(1, 3, 9, 8)}, 17, "joins the constant 'w'"),
        ([("MaxPool", ["x"], ["p"], {"kernel_shape": [2, 2]}), *one("Concat", "x p", axis=1)], {}, 17,
         "joins the shapes .3, 9, 8., .3, 8, 7."),
        ([("Transpose", ["x"], ["t"], {"perm": [0, 1, 3, 2]}), *one("Concat", "x t", axis=1)], {}, 17,
         "axes are ordered differently"),
        (resize("x  s", mode="linear"), {"s": TWICE}, 17, "mode 'linear'; supported is nearest"),
        (resize("x  s"), {"s": TWICE / 2}, 17, "scales N x 3 x 9 x 8 by 0.5 x 1 x 1|scales the batch"),
        (resize("x  s"), {"s": TWICE * [1, 1, 0.25, 1]}, 17, "by 1 x 0.5 x 2; supported are whole factors"),
        (resize("x  s"), {"s": TWICE * [1, 2, 1, 1]}, 17, "by 2 x 2 x 2; supported are whole factors"),
        (resize("x  s"), {"s": np.array([2, 2], np.float32)}, 17, "has no scales or sizes for the axes"),
        (resize("x  x"), {}, 17, "scales 'x' is computed from the input"),
        (resize("x   s", keep_aspect_ratio_policy="not_larger"), {"s": SIZES * [0, 1, 1, 1]}, 18, "aspect ratio"),
        (resize("x   s"), {"s": SIZES * [4, 1, 1, 1]}, 17, "scales the batch"),
        (one("Upsample", "x s", mode="linear"), {"s": TWICE}, 9, "mode 'linear'"),
    ],
)  # fmt: skip
def test_what_moves_no_whole_channels_or_pixels_is_refused(nodes, constants, opset, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        read(build(nodes, constants, opset=opset), tmp_path)


def test_slices_and_pads_of_old_operator_sets_have_attributes(tmp_path):
    pads = {"pads": [0, 1, 0, 1, 0, 0, 2, 0], "mode": "constant", "value": 0.0}
    check(one("Pad", **pads), {}, MAP, tmp_path, opset=9)
    check(one("Slice", starts=[1], ends=[3], axes=[1]), {}, MAP, tmp_path, opset=9)
    check(one("Clip", min=0.0, max=0.5), {}, MAP, tmp_path, opset=9)


@pytest.mark.parametrize("kind", ["Transpose", "Reshape"])
def test_input_with_channels_last_is_taken_with_channels_first(kind, tmp_path):
    channels = 3 if kind == "Transpose" else 1
    moved = ["x"] if kind == "Transpose" else ["x", "shape"]
    nodes = [
        (kind, moved, ["first"], {"perm": [0, 3, 1, 2]} if kind == "Transpose" else {}),
        ("Conv", ["first", "w"], ["c"], {}),
        ("Transpose", ["c"], ["last"], {"perm": [0, 2, 3, 1]}),
        ("Reshape", ["last", "flat"], ["v"], {}),
        ("Gemm", ["v", "f"], ["y"], {"transB": 1}),
    ]
    constants = {
        "shape": np.array([-1, 1, 9, 8]),
        "w": weights(2, channels, 3, 3),
        "flat": np.array([-1, 84]),
        "f": weights(5, 84),
    }
    model = build(nodes, constants, ("N", 9, 8, channels))
    graph = read(model, tmp_path)
    assert graph.input_shape == (channels, 9, 8)
    images = RANDOM.normal(size=(4, 9, 8, channels)).astype(np.float32)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": images})[0]
    found = run_float(graph, images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_a_last_softmax_is_left_to_the_host(kind, tmp_path):
    nodes = [("Gemm", ["x", "w"], ["z"], {}), (kind, ["z"], ["y"], {"axis": 1})]
    model = build(nodes, {"w": weights(12, 5)}, VECTOR)
    graph = read(model, tmp_path)
    assert graph.dropped == (f"{kind} 'n1'",)
    images = RANDOM.normal(size=(50, 12)).astype(np.float32)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": images})[0]
    assert np.array_equal(run_float(graph, images).argmax(1), expected.argmax(1))


@pytest.mark.parametrize("case", ON_VECTORS)
def test_operator_on_a_vector_computes_what_onnxruntime_computes(case, tmp_path):
    check(*ON_VECTORS[case], VECTOR, tmp_path)


def test_mean_takes_its_axes_as_input_since_opset_18(tmp_path):
    check(one("ReduceMean", "x axes"), {"axes": np.array([2, 3])}, MAP, tmp_path, opset=18)


def test_fixed_batch_is_free(tmp_path):
    nodes = [("Reshape", ["x", "s"], ["v"], {}), ("MatMul", ["v", "w"], ["y"], {})]
    graph = read(build(nodes, {"s": np.array([1, 216]), "w": weights(216, 2)}, (1, 3, 9, 8)), tmp_path)
    assert run_float(graph, np.zeros((4, 3, 9, 8), np.float32)).shape == (4, 2)


def test_pools_of_one_pixel_are_nothing(tmp_path):
    assert len(read(build(*AS_ONNX_RUNS_IT["pools of one pixel"]), tmp_path).nodes) == 1


def test_initializers_listed_as_inputs_are_not_inputs(tmp_path):
    graph = read(build(one("Conv", "x w b"), CONV, inputs=[("w", (4, 3, 3, 2)), ("b", (4,))]), tmp_path)
    assert graph.input == "x"


def test_constant_nodes_are_read(tmp_path):
    value = numpy_helper.from_array(weights(12, 2))
    nodes = [("Constant", [], ["w"], {"value": value}), ("MatMul", ["x", "w"], ["y"], {})]
    graph = read(build(nodes, {}, VECTOR), tmp_path)
    np.testing.assert_array_equal(graph.nodes[0].weight, numpy_helper.to_array(value).T)


def test_float16_weights_are_read(tmp_path):
    model = build(one("Gemm", "x w"), {"w": weights(12, 2).astype(np.float16)}, VECTOR)
    assert isinstance(read(model, tmp_path).nodes[0], Linear)


def with_value(value, *shape):
    array = weights(*shape)
    array.flat[1] = value
    return array


BROKEN_NODES = {
    "unknown operator": (
        one("Softsign"),
        {},
        MAP,
        r"Softsign 'n0' \(N x 3 x 9 x 8\): operator Softsign is not supported.*cut the model",
    ),
    "hard swish": (one("HardSwish"), {}, MAP, "operator HardSwish is not supported; use ReLU or ReLU6"),
    "sigmoid inside": ([("Sigmoid", ["x"], ["s"], {}), ("Relu", ["s"], ["y"], {})], {}, MAP, "not the model's output"),
    "softmax of a row": (one("Softmax", axis=3), {}, ("N", 3, 9, 5), "not the model's output over its classes"),
    "softmax inside": (
        [("Softmax", ["x"], ["s"], {"axis": 1}), ("Relu", ["s"], ["y"], {})],
        {},
        VECTOR,
        "not the model's output over its classes",
    ),
    "groups": (one("Conv", "x w", group=3), {"w": weights(4, 1, 3, 3)}, MAP, "groups must divide its 4 output"),
    "group depth": (one("Conv", "x w", group=2), {"w": weights(4, 1, 3, 3)}, MAP, "take 2 channels, but its input has"),
    "leaky relu that mirrors": (
        one("LeakyRelu", alpha=-0.5),
        {},
        MAP,
        "LeakyRelu 'n0' has the slope -0.5; supported are slopes of at least 0",
    ),
    "prelu that mirrors in a channel": (
        one("PRelu", "x p"),
        {"p": np.array([0.1, -0.25, 1], np.float32).reshape(3, 1, 1)},
        MAP,
        "PRelu 'n0'.* has the slope -0.25",
    ),
    "prelu with a slope per position": (
        one("PRelu", "x p"),
        {"p": np.ones((3, 9, 8), np.float32)},
        MAP,
        "slope of shape .* one value per channel",
    ),
    "prelu with a computed slope": (one("PRelu", "x x"), {}, MAP, "slope 'x' is computed from the input"),
    "sum of different shapes": (
        [("GlobalAveragePool", ["x"], ["p"], {}), ("Add", ["x", "p"], ["y"], {})],
        {},
        MAP,
        r"adds tensors of the shapes \(3, 9, 8\) and \(3, 1, 1\); supported are equal shapes",
    ),
    "sum of different layouts": (
        [("Transpose", ["x"], ["t"], {"perm": [0, 1, 3, 2]}), ("Add", ["x", "t"], ["y"], {})],
        {},
        ("N", 3, 8, 8),
        "axes are ordered differently",
    ),
    "sum of three": (one("Sum", "x x x"), {}, MAP, "has 3 operands; supported are two"),
    "product of tensors": (one("Mul", "x x"), {}, MAP, "two computed tensors"),
    "conv with channels last": (
        [("Transpose", ["x"], ["t"], {"perm": [0, 2, 3, 1]}), ("Conv", ["t", "w"], ["y"], {})],
        {"w": weights(4, 8, 3, 3)},
        ("N", 8, 8, 8),
        "axes were transposed; supported are channels first",
    ),
    "transposed batch": (one("Transpose", perm=[1, 0]), {}, VECTOR, "keeps the batch first"),
    "clip below 0": (
        one("Clip", "x low high"),
        {"low": np.float32(-1), "high": np.float32(1)},
        MAP,
        "clips below at -1.0; supported is 0",
    ),
    "clip to nothing": (
        one("Clip", "x low high"),
        {"low": np.float32(0), "high": np.float32(0)},
        MAP,
        "clips above at 0.0",
    ),
    "minimum of anything": (one("Min", "x c"), {"c": np.float32(6)}, MAP, "supported is Min behind a ReLU"),
    "maximum with 1": (one("Max", "x c"), {"c": np.float32(1)}, MAP, "with 1.0; supported is 0"),
    "maximum of two tensors": (one("Max", "x x"), {}, MAP, "one tensor and one constant number"),
    "crop": (
        one("Slice", "x s e a"),
        {"s": np.array([1]), "e": np.array([9]), "a": np.array([2])},
        MAP,
        "takes 8 of 9 rows or columns, from 1 in steps of 1; supported are steps over the whole axis",
    ),
    "slice of the batch": (
        one("Slice", "x s e a"),
        {"s": np.array([0]), "e": np.array([1]), "a": np.array([0])},
        MAP,
        "takes images out of the batch",
    ),
    "reflected pads": (one("Pad", "x p", mode="reflect"), {"p": np.array([0] * 7 + [1])}, MAP, "mode 'reflect'"),
    "pads of one": (
        one("Pad", "x p v"),
        {"p": np.array([0] * 7 + [1]), "v": np.float32(1)},
        MAP,
        "value 1.0; supported is 0",
    ),
    "negative pads": (one("Pad", "x p"), {"p": np.array([0] * 7 + [-1])}, MAP, "channels, rows and columns of zeros"),
    "channels": (one("Conv", "x w"), {"w": weights(4, 2, 3, 3)}, MAP, "take 2 channels, but its input has 3"),
    "too large a window": (one("Conv", "x w"), {"w": weights(4, 3, 3, 9)}, MAP, "3x9 window .* does not fit"),
    "bias shape": (one("Conv", "x w b"), {"w": weights(4, 3, 3, 3), "b": weights(3)}, MAP, r"bias has shape \(3,\)"),
    "linear on a map": (one("Gemm", "x w"), {"w": weights(8, 2)}, MAP, "needs a vector"),
    "linear inputs": (one("Gemm", "x w"), {"w": weights(13, 2)}, VECTOR, "take 13 inputs, but get 12"),
    "transA": (one("Gemm", "x w", transA=1), {"w": weights(12, 2)}, VECTOR, "transA=1"),
    "NaN": (one("Conv", "x w"), {"w": with_value(np.nan, 4, 3, 3, 3)}, MAP, "'w' holds 1 values that are NaN"),
    "infinity": (one("Gemm", "x w"), {"w": with_value(np.inf, 12, 2)}, VECTOR, "'w' holds 1 values that are NaN"),
    "empty weights": (one("Gemm", "x w"), {"w": np.zeros((12, 0), np.float32)}, VECTOR, "is empty"),
    "negative variance": (
        one("BatchNormalization", "x s t m v"),
        NORM | {"v": -np.ones(3, np.float32)},
        MAP,
        "negative variance",
    ),
    "computed weights": (
        [("Relu", ["x"], ["r"], {}), ("MatMul", ["x", "r"], ["y"], {})],
        {},
        VECTOR,
        "'r' is computed from the input",
    ),
    "bias per pixel": (one("Add", "x c"), {"c": weights(9, 8)}, MAP, "does not broadcast as one value per channel"),
    "average of uneven areas": (
        one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        {},
        MAP,
        "supported is count_include_pad=1",
    ),
    "reshape across images": (one("Reshape", "x s"), {"s": np.array([-1, 3])}, MAP, "does not keep the batch"),
    "reshape to nothing": (
        one("Reshape", "x s", allowzero=1),
        {"s": np.array([-1, 0])},
        MAP,
        "has no values",
    ),
    "reshape to a map": (one("Reshape", "x s"), {"s": np.array([0, 8, 9, 3])}, MAP, "supported is flattening"),
    "mean over channels": (
        one("ReduceMean", axes=[1]),
        {},
        ("N", 3, 9, 5),
        "supported is the mean over height and width",
    ),
    "missing tensor": (one("Relu", "z"), {}, MAP, "reads tensor 'z', which nothing before it writes"),
    "missing operand": ([("Sum", ["x", ""], ["y"], {})], {}, MAP, "has 1 operands; supported are two"),
    "cycle": (
        [("Add", ["x", "b"], ["a"], {}), ("Relu", ["a"], ["b"], {}), ("Relu", ["b"], ["y"], {})],
        {},
        MAP,
        "reads tensor 'b' before it is written: a cycle, or nodes out of order",
    ),
    "attribute of another version": (one("Clip", min=0.0), {}, MAP, "not valid in operator set 17: .*min"),
    "attribute of another type": (one("Conv", "x w", strides=2), CONV, MAP, "not valid in operator set 17: .*strides"),
    "too few inputs": (one("Conv"), {}, MAP, "not valid in operator set 17"),
    "three strides": (one("Conv", "x w", strides=[1, 1, 1]), CONV, MAP, "expected 2 values, one per axis"),
    "3-D convolution": (one("Conv", "x w"), {"w": weights(4, 3, 3, 3, 3)}, MAP, "3-D convolution .*2-D and 1-D"),
    "1-D weights on a map": (one("Conv", "x w"), {"w": weights(4, 3, 3)}, MAP, "do not fit its input N x 3 x 9 x 8"),
    "pads that overflow": (
        one("Conv", "x w", pads=[1 << 62] * 4),
        {"w": weights(4, 3, 3, 3)},
        MAP,
        "values per image; at most",
    ),
    "pads of a pool that overflow": (
        one("AveragePool", kernel_shape=[2, 2], pads=[1 << 62] * 4),
        {},
        MAP,
        "must be smaller than the window",
    ),
    "channels that overflow": (one("Pad", "x p"), {"p": np.array([0, 1 << 40] + [0] * 6)}, MAP, "at most 67108864"),
    "shape that overflows": (
        one("Reshape", "x s"),
        {"s": np.array([0, 1 << 32, 1 << 32])},
        MAP,
        r"target shape \[0, 4294967296, 4294967296\] does not keep the batch",
    ),
    "constant that overflows": (
        [("ConstantOfShape", ["s"], ["c"], {}), ("Add", ["x", "c"], ["y"], {})],
        {"s": np.array([1 << 31, 1 << 31])},
        MAP,
        "makes a constant of 4611686018427387904 values",
    ),
    "axis out of range": (one("ReduceMean", axes=[2, 7]), {}, MAP, "axis 7 of a tensor with 4 axes; expected -4 to 3"),
    "axes that are no integers": (one("Squeeze", "x a"), {"a": weights(1)}, MAP, "axes 'a' has type float32"),
    "cast to integers": (one("Cast", to=7), {}, MAP, "casts to int64"),
    "windows of different areas in ceil mode": (
        one("AveragePool", kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1),
        {},
        MAP,
        "windows at the border differ in area",
    ),
    "parameters of different sizes": (
        one("BatchNormalization", "x s t m v"),
        NORM | {"m": weights(4)},
        MAP,
        r"parameters of the shapes \[\(3,\), \(4,\)\]",
    ),
    "other domain": (
        [("Softsign", ["x"], ["y"], {"domain": "com.example"})],
        {},
        MAP,
        "operator com.example.Softsign is not supported",
    ),
}


@pytest.mark.parametrize("case", BROKEN_NODES)
def test_a_node_that_cannot_be_read_is_named_with_the_reason(case, tmp_path):
    nodes, constants, shape, message = BROKEN_NODES[case]
    with pytest.raises(ModelError, match=message) as caught:
        read(build(nodes, constants, shape), tmp_path)
    assert "'n" in str(caught.value)
    assert "Supported operators: Add" in str(caught.value)


def test_every_obstacle_is_named_at_once(tmp_path):
    nodes = [
        ("Sigmoid", ["x"], ["a"], {}),
        ("CumSum", ["a", "x"], ["b"], {}),
        ("Relu", ["b"], ["c"], {}),
        ("Mul", ["b", "c"], ["d"], {}),
        ("Shape", ["d"], ["size"], {}),
        ("Gather", ["size", "zero"], ["n"], {}),
        ("Concat", ["n", "rest"], ["flat"], {"axis": 0}),
        ("Reshape", ["d", "flat"], ["e"], {}),
        ("Tanh", ["e"], ["y"], {}),
    ]
    with pytest.raises(ModelError) as caught:
        read(build(nodes, {"zero": np.array([0]), "rest": np.array([-1])}), tmp_path)
    found = [line.strip().split(":")[0] for line in str(caught.value).splitlines()[1:-1]]
    first = "Sigmoid 'n0' (N x 3 x 9 x 8)"
    assert found == [first, "CumSum 'n1' (N x 3 x 9 x 8)", "Mul 'n3' (N x 3 x 9 x 8)", "Tanh 'n8' (N x 216)"]


def test_obstacles_are_those_of_the_layout_that_gets_furthest(tmp_path):
    nodes = [("Conv", ["x", "w"], ["c"], {}), ("Softsign", ["c"], ["s"], {}), ("Tanh", ["s"], ["y"], {})]
    with pytest.raises(ModelError) as caught:
        read(build(nodes, {"w": weights(4, 6, 3)}, ("N", 6, 20)), tmp_path)
    found = [line.strip().split(":")[0] for line in str(caught.value).splitlines()[1:-1]]
    assert found == ["Softsign 'n1' (N x 4 x 18)", "Tanh 'n2' (N x 4 x 18)"]


def test_a_softmax_is_over_all_axes_from_its_own_on_before_operator_set_13(tmp_path):
    assert read(build(one("Softmax", axis=1), {}, opset=13), tmp_path).dropped
    with pytest.raises(ModelError, match="not the model's output over its classes"):
        read(build(one("Softmax", axis=1), {}, opset=12), tmp_path)


def test_what_stands_behind_obstacles_is_checked_as_well(tmp_path):
    nodes = [
        ("Softsign", ["x"], ["a"], {}),
        ("Conv", ["a", "w"], ["c"], {"group": 2}),
        ("HardSwish", ["c"], ["d"], {}),
        ("AveragePool", ["a"], ["y"], {"kernel_shape": [3, 3], "dilations": [2, 2]}),
    ]
    with pytest.raises(ModelError) as caught:
        read(build(nodes, CONV, opset=19), tmp_path)
    reasons = str(caught.value).splitlines()
    assert len(reasons) == 6
    assert "take 6 channels, but its input has 3" in reasons[2]
    assert "pools without dilation" in reasons[4]


def test_hundreds_of_obstacles_are_grouped_and_counted(tmp_path):
    nodes = [(("Softsign", "Tanh")[i % 2], [f"t{i}" if i else "x"], [f"t{i + 1}"], {}) for i in range(600)]
    nodes.append(("Relu", ["t600"], ["y"], {}))
    with pytest.raises(ModelError, match="has 600 unsupported or broken nodes") as caught:
        read(build(nodes, {}), tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("  Softsign 'n0' (N x 3 x 9 x 8), 'n2' (N x 3 x 9 x 8), 'n4'")
    assert " and 200 more: operator Softsign is not supported" in lines[1]
    assert " and 299 more: operator Tanh is not supported" in lines[2]
    assert len(str(caught.value)) < 5000


QUANTIZED = {
    "QDQ": [
        ("QuantizeLinear", ["x", "s", "z"], ["q"], {}),
        ("DequantizeLinear", ["q", "s", "z"], ["d"], {}),
        ("Softsign", ["d"], ["y"], {}),
    ],
    "operators on integers": [
        ("QuantizeLinear", ["x", "s", "z"], ["q"], {}),
        ("QLinearMatMul", ["q", "s", "z", "q", "s", "z", "s", "z"], ["r"], {}),
        ("DequantizeLinear", ["r", "s", "z"], ["y"], {}),
    ],
}


@pytest.mark.parametrize("case", QUANTIZED)
def test_models_that_are_quantized_are_refused_in_one_sentence(case, tmp_path):
    model = build(QUANTIZED[case], {"s": np.float32(0.1), "z": np.int8(0)})
    with pytest.raises(ModelError, match=r"is quantized already \(1 QuantizeLinear.*export the float model") as caught:
        read(model, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tensor_that_is_written_twice_or_never_is_named(tmp_path):
    with pytest.raises(ModelError, match="not a valid graph: tensor 'y' is written 2 times"):
        read(build([*one("Relu"), *one("Relu")], {}), tmp_path)
    with pytest.raises(ModelError, match="tensor 'x' is written 2 times"):
        read(build([("Relu", ["x"], ["x"], {}), *one("Relu")], {}), tmp_path)
    with pytest.raises(ModelError, match="nothing writes output 'z'"):
        read(build(one("Relu"), {}, outputs=["z"]), tmp_path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (("N", 3, "H", 8), "N x 3 x H x 8; only the batch may be dynamic, not 'H'. Export with fixed sizes"),
        (("N", "C", "length"), "not 'C', 'length'"),
        (("N", 3, 1 << 40, 1 << 40), "3626777458843887524118528 values per image; at most"),
        (("N", 3, 0, 8), "every size must be at least 1"),
        ((("N", 3, 8, 8, 8)), "supported are N x C x H x W, N x C x length and N x features"),
        (("N",), "supported are N x C x H x W"),
        (None, "has no shape"),
    ],
)
def test_input_shapes_that_are_not_fixed_maps_or_vectors_are_refused(shape, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        read(build(one("Relu"), {}, shape), tmp_path)


def test_a_batch_of_minus_one_is_free(tmp_path):
    assert read(build(one("Conv", "x w b"), CONV, (-1, 3, 9, 8)), tmp_path).input_shape == (3, 9, 8)


def test_inputs_of_integers_are_refused(tmp_path):
    model = build(one("Relu"), {})
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    with pytest.raises(ModelError, match=r"has ONNX type 2; supported are float.*normalized by the host"):
        read(model, tmp_path)


@pytest.mark.parametrize("opset", [OPSET_MIN - 1, OPSET_MAX + 1])
def test_operator_sets_outside_the_range_are_refused(opset, tmp_path):
    with pytest.raises(ModelError, match=f"operator set {opset}; supported are {OPSET_MIN} to {OPSET_MAX}"):
        read(build(one("Relu"), {}, opset=opset), tmp_path)


def test_exactly_one_input_is_taken(tmp_path):
    with pytest.raises(ModelError, match="2 inputs"):
        read(build(one("Relu"), {}, inputs=[("z", MAP)]), tmp_path)
    with pytest.raises(ModelError, match="has no output"):
        read(build(one("Relu"), {}, outputs=()), tmp_path)


def test_several_outputs_are_read_by_name_and_keep_their_names_when_lowered(tmp_path):
    nodes = [
        ("Conv", ["x", "w", "b"], ["c"], {}),
        ("Relu", ["c"], ["feature"], {}),
        ("Upsample", ["feature", "s"], ["grown"], {}),
        ("Relu", ["c"], ["r"], {}),
        ("Concat", ["feature", "r"], ["both"], {"axis": 1}),
        ("GlobalAveragePool", ["both"], ["g"], {}),
        ("Flatten", ["g"], ["mean"], {}),
        ("Softmax", ["mean"], ["probability"], {}),
    ]
    names = ("grown", "both", "feature", "mean", "probability")
    model = build(nodes, CONV | {"s": np.array([1, 1, 2, 2], np.float32)}, opset=9, outputs=names)
    graph = read(model, tmp_path)
    assert graph.outputs == ("grown", "both", "feature", "mean")
    assert [text.split()[0] for text in graph.dropped] == ["Softmax"]
    images = RANDOM.normal(size=(2, *MAP[1:])).astype(np.float32)
    found = run_float(graph, images)
    lowered = lower(graph)
    assert lowered.outputs == graph.outputs
    again = run_float(lowered, images)
    for name, wanted in zip(names, onnx_run(model, images), strict=True):
        if name != "probability":
            np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(again[name].reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5)


def onnx_run(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": images})


@pytest.mark.parametrize(
    ("coordinates", "rounding"),
    [
        ("asymmetric", "floor"),
        ("asymmetric", "round_prefer_floor"),
        ("half_pixel", "round_prefer_floor"),
        ("half_pixel", "round_prefer_ceil"),
        ("pytorch_half_pixel", "round_prefer_floor"),
        ("half_pixel", "floor"),
        ("asymmetric", "ceil"),
        ("align_corners", "floor"),
        ("tf_half_pixel_for_nn", "floor"),
    ],
)
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("given", ["scales", "sizes"])
def test_a_resize_is_read_if_and_only_if_it_repeats_pixels(coordinates, rounding, factor, given, tmp_path):
    value = (
        np.array([1, 1, factor, factor], np.float32) if given == "scales" else SIZES * [1, 1, factor / 2, factor / 2]
    )
    names = ["x", "none", "v"] if given == "scales" else ["x", "none", "none", "v"]
    attributes = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    constants = {"v": value.astype(np.float32 if given == "scales" else int), "none": np.zeros(0, np.float32)}
    model = build([("Resize", names, ["y"], attributes)], constants, (1, *MAP[1:]), opset=11)
    images = RANDOM.normal(size=(1, *MAP[1:])).astype(np.float32)
    (wanted,) = onnx_run(model, images)
    if np.array_equal(wanted, images.repeat(factor, axis=2).repeat(factor, axis=3)):
        assert np.array_equal(run_float(read(model, tmp_path), images), wanted)
    else:
        with pytest.raises(ModelError, match=f"takes other pixels than each one {factor} times.*{coordinates}"):
            read(model, tmp_path)


def test_an_output_that_does_not_depend_on_the_input_is_refused(tmp_path):
    nodes = [("Relu", ["x"], ["z"], {}), ("Relu", ["w"], ["y"], {})]
    with pytest.raises(ModelError, match="does not depend on input 'x'"):
        read(build(nodes, {"w": weights(2)}), tmp_path)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ModelError, match="No such file"):
        read_onnx(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="Is a directory"):
        read_onnx(tmp_path)
    for content in (b"", b"\x00garbage" * 9, b"PK\x03\x04"):
        path = tmp_path / "broken.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not an ONNX model"):
            read_onnx(path)


def test_missing_external_data_is_named(tmp_path):
    path = tmp_path / "model.onnx"
    model = build(one("Conv", "x w b"), CONV)
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert read_onnx(path).nodes[0].weight.shape == (4, 3, 3, 2)
    content = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(content[:20])
    with pytest.raises(ModelError, match=r"Cannot read weights '.' .* from 'weights.bin'"):
        read_onnx(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights '.' .* from 'weights.bin'"):
        read_onnx(path)


def test_a_model_with_blocks_and_channels_last_is_read_lowered_and_quantized(tmp_path):
    nodes = [
        ("Transpose", ["x"], ["nchw"], {"perm": [0, 3, 1, 2]}),
        ("Pad", ["nchw", "pads"], ["p"], {}),
        ("Conv", ["p", "w0", "b0"], ["c0"], {"strides": [2, 2]}),
        ("Clip", ["c0", "zero", "six"], ["r0"], {}),
        ("Conv", ["r0", "w1"], ["c1"], {"group": 8, "auto_pad": "SAME_UPPER"}),
        ("BatchNormalization", ["c1", "s", "t", "m", "v"], ["n1"], {}),
        ("Max", ["n1", "zero"], ["m1"], {}),
        ("Min", ["m1", "six"], ["r1"], {}),
        ("Conv", ["r1", "w2"], ["c2"], {}),
        ("Add", ["r0", "c2"], ["a"], {}),
        ("Conv", ["a", "w3"], ["c3"], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
        ("Slice", ["a", "from", "to", "axes", "steps"], ["half"], {}),
        ("Pad", ["half", "channels"], ["wide"], {}),
        ("Add", ["c3", "wide"], ["b"], {}),
        ("Relu", ["b"], ["r3"], {}),
        ("Dropout", ["r3"], ["d"], {}),
        ("Transpose", ["d"], ["nhwc"], {"perm": [0, 2, 3, 1]}),
        ("ReduceMean", ["nhwc"], ["mean"], {"axes": [1, 2], "keepdims": 0}),
        ("MatMul", ["mean", "f"], ["z"], {}),
        ("Add", ["z", "g"], ["logits"], {}),
        ("Softmax", ["logits"], ["y"], {}),
    ]
    constants = {
        "pads": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
        "w0": weights(8, 3, 3, 3) / 4,
        "b0": weights(8),
        "zero": np.float32(0),
        "six": np.float32(2.5),
        "w1": weights(8, 1, 3, 3) / 2,
        **{"s": weights(8), "t": weights(8), "m": weights(8), "v": np.abs(weights(8)) + 1},
        "w2": weights(8, 8, 1, 1) / 2,
        "w3": weights(12, 8, 3, 3) / 6,
        "from": np.array([0, 0]),
        "to": np.array([1 << 40, 1 << 40]),
        "axes": np.array([2, 3]),
        "steps": np.array([2, 2]),
        "channels": np.array([0, 2, 0, 0, 0, 2, 0, 0]),
        "f": weights(12, 5),
        "g": weights(5),
    }
    model = build(nodes, constants, ("N", 16, 14, 3))
    graph = read(model, tmp_path)
    assert graph.dropped == ("Softmax 'n20'",)
    model.graph.output[0].name = "logits"
    del model.graph.node[-1]
    images = RANDOM.normal(size=(30, 16, 14, 3)).astype(np.float32)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": images})[0]
    images = images.transpose(0, 3, 1, 2)
    lowered = lower(graph)
    assert len(lowered.nodes) == 7
    np.testing.assert_allclose(run_float(lowered, images).reshape(30, 5), expected, rtol=1e-4, atol=1e-4)
    network = quantize(lowered, images, "int:8", "uint:8")
    found = run(network, input_levels(network, images)) * network.tensors[network.output].unit
    assert 10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum()) > 25


def test_the_page_of_operators_names_all_of_them():
    text = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
    assert not [name for name in SUPPORTED if f"`{name}`" not in text]
    assert f"operator sets {OPSET_MIN} to {OPSET_MAX}" in text


def test_the_shipped_model_equals_onnxruntime_after_lowering():
    path = Path(sigbit.__file__).parent / "models" / "digits.onnx"
    images = RANDOM.normal(size=(8, 1, 8, 8)).astype(np.float32)
    expected = onnxruntime.InferenceSession(path).run(None, {"image": images})[0]
    found = run_float(lower(read_onnx(path)), images)
    np.testing.assert_allclose(found.reshape(8, 10), expected, rtol=1e-4, atol=1e-4)
