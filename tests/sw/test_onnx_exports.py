"""What exporters write (PyTorch's two, tf2onnx of Keras and of tflite), against onnxruntime: read, and lowered."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx_models import MAP, build, read
from sigbit.float_model import run_float
from sigbit.graph import MaxPool
from sigbit.passes import lower

RANDOM = np.random.default_rng(11)
LENGTH = ("N", 6, 20)


def weights(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def int64(*values):
    return np.array(values, np.int64)


def chain(*steps):
    """Nodes one behind the other from ``x`` to ``y``: ``"Conv w b", {attributes}``; without attributes a string."""
    nodes = []
    for index, step in enumerate(steps):
        text, attributes = (step, {}) if isinstance(step, str) else step
        kind, *others = text.split()
        source = "x" if index == 0 else f"t{index - 1}"
        target = "y" if index == len(steps) - 1 else f"t{index}"
        nodes.append((kind, [source, *("" if name == "-" else name for name in others)], [target], attributes))
    return nodes


def norm(channels):
    return {"s": weights(channels), "t": weights(channels), "m": weights(channels), "v": np.abs(weights(channels)) + 1}


def logits(model, images):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": images})[0]


def undone(graph, outputs):
    """What the model makes of the logits behind the graph's output."""
    for what in graph.dropped:
        if "Softmax" in what:
            outputs = np.exp(outputs - outputs.max(1, keepdims=True))
            outputs /= outputs.sum(1, keepdims=True)
            outputs = np.log(outputs) if "Log" in what else outputs
        elif "Sigmoid" in what:
            outputs = 1 / (1 + np.exp(-outputs))
    return outputs


def check(model, folder, axes=None):
    """The model's outputs from its graph and from the lowered one; ``axes`` moves the images' to channels first."""
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    images = RANDOM.normal(size=(3, *shape)).astype(np.float32)
    expected = logits(model, images)
    graph = read(model, folder)
    arranged = images if axes is None else images.transpose(0, *axes)
    lowered = lower(graph)
    for found in (graph, lowered):
        outputs = run_float(found, arranged.reshape(3, *found.input_shape)).reshape(3, -1)
        np.testing.assert_allclose(undone(graph, outputs), expected.reshape(3, -1), rtol=1e-4, atol=1e-4)
    return graph, lowered


def layers(lowered):
    return [type(node).__name__ for node in lowered.nodes]


HEAD = ["Flatten", ("Gemm f g", {"transB": 1})]


def head(inputs, outputs=5):
    return {"f": weights(outputs, inputs), "g": weights(outputs)}


CONV = {"w": weights(4, 3, 3, 3), "b": weights(4)}
SAME = {"auto_pad": "SAME_UPPER"}

#: Name: nodes, constants, shape of the input, operator set.
CASES = {
    # -- convolutions and pools
    "kernel of 10x4 with uneven pads": (
        chain(("Conv w b", {"strides": [2, 2], "pads": [4, 1, 5, 1]}), "Relu", *HEAD),
        {"w": weights(4, 1, 10, 4), "b": weights(4), **head(500)},
        ("N", 1, 49, 10),
        13,
    ),
    "depthwise 7x7": (
        chain(("Conv w", {"group": 6, "pads": [3] * 4}), *HEAD),
        {"w": weights(6, 1, 7, 7), **head(6 * 11 * 13)},
        ("N", 6, 11, 13),
        17,
    ),
    "average of 25x5": (
        chain("Conv w b", "Relu", ("AveragePool", {"kernel_shape": [25, 5], "strides": [25, 5]}), *HEAD),
        {"w": weights(4, 2, 1, 1), "b": weights(4), **head(4)},
        ("N", 2, 25, 5),
        17,
    ),
    "groups, dilation and a prime size": (
        chain(("Conv w", {"group": 2, "dilations": [3, 2], "strides": [2, 3], "pads": [1, 0, 2, 3]}), *HEAD),
        {"w": weights(6, 3, 3, 2), **head(6 * 8 * 6)},
        ("N", 6, 19, 17),
        17,
    ),
    "one branch same, lower": (
        chain(
            ("Conv w b", {"auto_pad": "SAME_LOWER", "strides": [2, 3]}), ("MaxPool", {"kernel_shape": [2, 2], **SAME}),
        ),
        CONV,
        MAP,
        17,
    ),
    "max pool, ceil mode, odd size": (
        chain("Relu", ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}), *HEAD),
        head(3 * 4 * 4),
        MAP,
        17,
    ),
    "average pool, ceil mode without effect": (
        chain(("AveragePool", {"kernel_shape": [3, 2], "strides": [3, 2], "ceil_mode": 1}), *HEAD),
        head(3 * 3 * 4),
        MAP,
        19,
    ),
    "average pool, same without pads": (
        chain(("AveragePool", {"kernel_shape": [3, 2], "strides": [3, 2], **SAME}), *HEAD),
        head(3 * 3 * 4),
        MAP,
        17,
    ),
    "average pool over all of a small map, pads not counted": (
        chain("Relu", ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4}), *HEAD),
        head(3 * 2 * 2),
        ("N", 3, 2, 2),
        17,
    ),
    "global max pool of a length": (
        chain("Conv w", "GlobalMaxPool", *HEAD),
        {"w": weights(4, 6, 3), **head(4)},
        LENGTH,
        17,
    ),
    # -- pads
    "pads of rows and columns become those of a convolution": (
        chain("Pad p", ("Conv w b", {"strides": [2, 2]}), *HEAD),
        {"p": int64(0, 0, 1, 0, 0, 0, 2, 3), **CONV, **head(4 * 5 * 5)},
        MAP,
        17,
    ),
    "pads before a max pool behind a ReLU": (
        chain("Conv w b", "Relu", "Pad p", ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2]}), *HEAD),
        {"p": int64(0, 0, 0, 1, 0, 0, 1, 1), **CONV, **head(4 * 3 * 3)},
        MAP,
        13,
    ),
    "pads before an average pool": (
        chain("Conv w b", "Pad p", ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}), *HEAD),
        {"p": int64(0, 0, 0, 1, 0, 0, 1, 1), **CONV, **head(4 * 4 * 4)},
        MAP,
        13,
    ),
    "pads before a max pool of anything are a layer": (
        chain("Conv w b", "Pad p", ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}), *HEAD),
        {"p": int64(0, 0, 0, 1, 0, 0, 1, 1), **CONV, **head(4 * 4 * 4)},
        MAP,
        13,
    ),
    "pads of nothing": (chain("Pad p", "Conv w b"), {"p": int64(*[0] * 8), **CONV}, MAP, 13),
    # -- means
    "mean, axes as attribute, negative": (
        chain("Relu", ("ReduceMean", {"axes": [-2, -1], "keepdims": 0}), "Gemm f"),
        {"f": weights(3, 5)},
        MAP,
        17,
    ),
    "mean, axes as input": (
        chain("Relu", ("ReduceMean a", {"keepdims": 1}), *HEAD),
        {"a": int64(-1, 2), **head(3)},
        MAP,
        18,
    ),
    "mean over rows, then over columns": (
        chain(
            "Relu", ("ReduceMean", {"axes": [2], "keepdims": 0}), ("ReduceMean", {"axes": [2], "keepdims": 0}),
            "Gemm f",
        ),
        {"f": weights(3, 5)},
        MAP,
        17,
    ),
    "mean over rows only": (
        chain(("ReduceMean", {"axes": [2]}), "Relu", *HEAD),
        head(24),
        MAP,
        17,
    ),
    "maximum over space": (
        chain(("ReduceMax a", {"keepdims": 0}), "Gemm f"),
        {"a": int64(2, 3), "f": weights(3, 5)},
        MAP,
        18,
    ),
    "mean of flattened space": (
        chain("Conv w b", "Relu", "Reshape s", ("ReduceMean", {"axes": [-1], "keepdims": 0}), "Gemm f"),
        {"s": int64(0, 4, -1), **CONV, "f": weights(4, 5)},
        MAP,
        17,
    ),
    # -- one-dimensional
    "1-D convolutions, norm and pools of PyTorch": (
        chain(
            ("Conv w b", {"pads": [1, 1], "strides": [2], "kernel_shape": [3]}),
            "BatchNormalization s t m v",
            "Relu",
            ("Conv d", {"group": 8, "dilations": [2], "pads": [4, 4]}),
            ("MaxPool", {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
            ("AveragePool", {"kernel_shape": [2], "strides": [2]}),
            *HEAD,
        ),
        {"w": weights(8, 6, 3), "b": weights(8), **norm(8), "d": weights(8, 1, 5), **head(16)},
        LENGTH,
        17,
    ),
    "1-D, mean over the length": (
        chain(("Conv w", {"auto_pad": "SAME_UPPER", "strides": [3]}), "Relu", "ReduceMean a", "Squeeze a", "Gemm f"),
        {"w": weights(4, 6, 4), "a": int64(2), "f": weights(4, 5)},
        LENGTH,
        18,
    ),
    "1-D, linear layer per position, as PyTorch's M5": (
        chain(
            "Conv w", "GlobalAveragePool", ("Transpose", {"perm": [0, 2, 1]}), "MatMul f", "Add g",
            ("LogSoftmax", {"axis": 2}),
        ),
        {"w": weights(4, 6, 3), "f": weights(4, 5), "g": weights(5)},
        LENGTH,
        17,
    ),
    "1-D from a map by Unsqueeze": (
        chain("Unsqueeze a", ("Conv w", {"pads": [1] * 4}), "GlobalAveragePool", *HEAD),
        {"a": int64(1), "w": weights(4, 1, 3, 3), **head(4)},
        LENGTH,
        13,
    ),
    # -- reshaping
    "flattened by Shape, Gather, Unsqueeze, Concat": (
        [
            ("Conv", ["x", "w", "b"], ["c"], {}),
            ("Shape", ["c"], ["size"], {}),
            ("Gather", ["size", "zero"], ["batch"], {"axis": 0}),
            ("Unsqueeze", ["batch", "first"], ["one"], {}),
            ("Constant", [], ["rest"], {"value_ints": [-1]}),
            ("Concat", ["one", "rest"], ["shape"], {"axis": 0}),
            ("Reshape", ["c", "shape"], ["r"], {}),
            ("Gemm", ["r", "f", "g"], ["y"], {"transB": 1}),
        ],
        {"zero": np.array(0), "first": int64(0), **CONV, **head(4 * 7 * 6)},
        MAP,
        17,
    ),
    "flattened by Shape, Slice, Cast, Concat, as tf2onnx": (
        [
            ("Relu", ["x"], ["c"], {}),
            ("Shape", ["c"], ["size"], {}),
            ("Cast", ["size"], ["short"], {"to": onnx.TensorProto.INT32}),
            ("Slice", ["short", "zero", "one", "zero"], ["batch"], {}),
            ("Concat", ["batch", "rest"], ["both"], {"axis": 0}),
            ("Cast", ["both"], ["shape"], {"to": onnx.TensorProto.INT64}),
            ("Reshape", ["c", "shape"], ["r"], {}),
            ("Gemm", ["r", "f", "g"], ["y"], {"transB": 1}),
        ],
        {"zero": int64(0), "one": int64(1), "rest": np.array([216], np.int32), **head(216)},
        MAP,
        13,
    ),
    "pads computed by ConstantOfShape": (
        [
            ("ConstantOfShape", ["six"], ["zeros"], {"value": numpy_helper.from_array(int64(0))}),
            ("Concat", ["ends", "zeros"], ["all"], {"axis": 0}),
            ("Reshape", ["all", "pairs"], ["matrix"], {}),
            ("Slice", ["matrix", "last", "before", "zero", "back"], ["reversed"], {}),
            ("Transpose", ["reversed"], ["turned"], {"perm": [1, 0]}),
            ("Reshape", ["turned", "flat"], ["pads"], {}),
            ("Pad", ["x", "pads"], ["p"], {}),
            ("Conv", ["p", "w", "b"], ["y"], {}),
        ],
        {
            "six": int64(4), "ends": int64(1, 2, 0, 1), "pairs": int64(-1, 2), "last": int64(-1), "zero": int64(0),
            "before": int64(-(1 << 62)), "back": int64(-1), "flat": int64(-1), **CONV,
        },
        MAP,
        13,
    ),
    "vectors reshaped to maps": (
        chain("Reshape s", "Conv w b", *HEAD),
        {"s": int64(-1, 3, 9, 8), **CONV, **head(4 * 7 * 6)},
        ("N", 216),
        17,
    ),
    "vectors reshaped to lengths": (
        chain("Unsqueeze a", "Conv w", *HEAD),
        {"a": int64(1), "w": weights(4, 1, 5), **head(4 * 16)},
        ("N", 20),
        17,
    ),
    "channels last in the middle": (
        chain(
            ("Transpose", {"perm": [0, 2, 3, 1]}), "MatMul f", "Relu", ("Transpose", {"perm": [0, 3, 1, 2]}), "Conv w",
        ),
        {"f": weights(3, 6), "w": weights(2, 6, 2, 2)},
        MAP,
        17,
    ),
    "columns before rows": (
        chain(("Transpose", {"perm": [0, 1, 3, 2]}), ("Conv w b", {"strides": [1, 2], "pads": [2, 0, 0, 1]}), *HEAD),
        {"w": weights(4, 3, 2, 3), "b": weights(4), **head(4 * 9 * 4)},
        MAP,
        17,
    ),
    "norm of a vector that was flattened with channels last": (
        chain(
            "Relu", ("Transpose", {"perm": [0, 2, 3, 1]}), "Flatten", "BatchNormalization s t m v", "Add c", "MatMul f",
        ),
        {**norm(216), "c": weights(216), "f": weights(216, 5)},
        MAP,
        17,
    ),
    "flattened behind the first axes of size 1": (
        chain("GlobalAveragePool", ("Transpose", {"perm": [0, 2, 3, 1]}), ("Flatten", {"axis": 3}), "MatMul f"),
        {"f": weights(3, 5)},
        MAP,
        17,
    ),
    "squeezed twice": (
        chain("GlobalAveragePool", "Conv w", "Squeeze a", "Squeeze a", "Sigmoid"),
        {"w": weights(5, 3, 1, 1), "a": int64(-1)},
        MAP,
        17,
    ),
    "squeezed without axes": (
        chain("GlobalAveragePool", "Squeeze", "Gemm f"),
        {"f": weights(3, 5)},
        MAP,
        17,
    ),
    "axes of size 1 in another order": (
        [
            ("GlobalAveragePool", ["x"], ["p"], {}),
            ("Transpose", ["p"], ["t"], {"perm": [0, 1, 3, 2]}),
            ("Relu", ["t"], ["r"], {}),
            ("Add", ["p", "r"], ["a"], {}),
            ("Conv", ["a", "w"], ["y"], {}),
        ],
        {"w": weights(5, 3, 1, 1)},
        MAP,
        17,
    ),
    "constant minus a length": (
        [("Sub", ["c", "x"], ["s"], {}), ("Conv", ["s", "w"], ["y"], {})],
        {"c": np.float32(1.5), "w": weights(4, 6, 3)},
        LENGTH,
        17,
    ),
    # -- clips
    "clip by attributes": (chain(("Clip", {"min": 0.0, "max": 0.6}), "Conv w b"), CONV, MAP, 10),
    "clip by inputs": (
        chain("Clip low high", "Conv w b"),
        {"low": np.float32(0), "high": np.float32(0.6), **CONV},
        MAP,
        11,
    ),
    "clip from above behind a ReLU": (
        chain("Relu", ("MaxPool", {"kernel_shape": [2, 2]}), "Clip - high", "Conv w b"),
        {"high": np.float32(0.6), **CONV},
        MAP,
        13,
    ),
    "clip below 0 behind a ReLU": (
        chain("Relu", "Clip low high", "Conv w b"),
        {"low": np.float32(-1), "high": np.float32(0.6), **CONV},
        MAP,
        13,
    ),
    # -- nothing
    "identity, cast, dropout with a ratio": (
        chain("Identity", ("Cast", {"to": onnx.TensorProto.FLOAT}), "Dropout r", "Conv w b"),
        {"r": np.float32(0.5), **CONV},
        MAP,
        13,
    ),
    "old dropout": (chain(("Dropout", {"ratio": 0.3}), "Conv w b"), CONV, MAP, 7),
    # -- what the host does
    "softmax, then reshaped": (
        chain(*HEAD, ("Softmax", {"axis": -1}), "Reshape s", "Identity"),
        {**head(216), "s": int64(-1, 5)},
        MAP,
        13,
    ),
    "softmax of a pixel, all axes from 1 on": (
        chain("GlobalAveragePool", "Conv w", ("Softmax", {"axis": 1}), "Flatten"),
        {"w": weights(5, 3, 1, 1)},
        MAP,
        11,
    ),
    # -- normalization in front
    "normalization before a convolution": (
        chain("Sub m", "Div s", "Conv w b"),
        {"m": weights(1, 3, 1, 1), "s": np.abs(weights(1, 3, 1, 1)) + 1, **CONV},
        MAP,
        17,
    ),
    "normalization before a padded convolution": (
        chain("Mul s", "Add m", ("Conv w b", {"pads": [1] * 4})),
        {"m": weights(3, 1, 1), "s": weights(1), **CONV},
        MAP,
        17,
    ),
    "scaling before pads": (
        chain("Div s", "Pad p", "Conv w b"),
        {"s": np.abs(weights(3, 1, 1)) + 1, "p": int64(0, 0, 1, 1, 0, 0, 1, 1), **CONV},
        MAP,
        17,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_graph_and_lowered_graph_compute_what_onnxruntime_computes(case, tmp_path):
    check(build(*CASES[case]), tmp_path)


#: Channels last, from front to back: the same, and how the axes move to channels first.
CHANNELS_LAST = {
    "transposed in front, flattened at the back": (
        chain(
            ("Transpose", {"perm": [0, 3, 1, 2]}), ("Conv w b", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}), "Relu",
            ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}), ("Transpose", {"perm": [0, 2, 3, 1]}),
            "Reshape s", "MatMul f", "Add g", ("Softmax", {"axis": -1}),
        ),
        {**CONV, "s": int64(-1, 16), "f": weights(16, 5), "g": weights(5)},
        ("N", 9, 8, 3),
        13,
    ),
    "normalized and padded in front": (
        chain(
            "Mul scale", "Add shift", "Pad p", ("Transpose", {"perm": [0, 3, 1, 2]}), ("Conv w b", {"strides": [2, 2]}),
            ("Transpose", {"perm": [0, 2, 3, 1]}), "Mul c", "Sub d", ("ReduceMean", {"axes": [1, 2], "keepdims": 0}),
            "MatMul f",
        ),
        {
            "scale": np.float32(2), "shift": weights(3), "p": int64(0, 3, 2, 0, 0, 2, 3, 0), **CONV,
            "c": weights(4), "d": weights(1, 1, 1, 4), "f": weights(4, 5),
        },
        ("N", 9, 8, 3),
        13,
    ),
    "one channel, moved by Reshape": (
        chain(
            "Reshape first", ("Conv w", {"pads": [4, 1, 5, 1], "strides": [2, 2]}), "Relu",
            ("AveragePool", {"kernel_shape": [25, 5]}), ("Transpose", {"perm": [0, 2, 3, 1]}), "Reshape s", "Gemm f",
        ),
        {"first": int64(-1, 1, 49, 10), "w": weights(4, 1, 10, 4), "s": int64(-1, 4), "f": weights(4, 5)},
        ("N", 49, 10, 1),
        13,
    ),
    "depthwise weights as Keras has them": (
        [
            ("Transpose", ["x"], ["t"], {"perm": [0, 3, 1, 2]}),
            ("Reshape", ["d", "merged"], ["d1"], {}),
            ("Transpose", ["d1"], ["d2"], {"perm": [3, 2, 0, 1]}),
            ("Conv", ["t", "d2"], ["c"], {"group": 3, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
            ("GlobalAveragePool", ["c"], ["p"], {}),
            ("Squeeze", ["p", "axes"], ["v"], {}),
            ("MatMul", ["v", "f"], ["y"], {}),
        ],
        {"d": weights(3, 3, 3, 2), "merged": int64(3, 3, 1, 6), "axes": int64(2, 3), "f": weights(6, 5)},
        ("N", 9, 8, 3),
        13,
    ),
    "dense layers on every pixel": (
        chain("MatMul f", "Add b", "Relu", ("ReduceMean", {"axes": [1, 2], "keepdims": 0}), "MatMul g", "Sigmoid"),
        {"f": weights(3, 6), "b": weights(6), "g": weights(6, 2)},
        ("N", 9, 8, 3),
        13,
    ),
    "1-D, as Keras": (
        chain(
            "Unsqueeze one", ("Transpose", {"perm": [0, 3, 1, 2]}), ("Conv w", {"pads": [0, 1, 0, 1]}),
            ("Transpose", {"perm": [0, 2, 3, 1]}), "Squeeze one", "Add b", "Relu", ("Transpose", {"perm": [0, 2, 1]}),
            ("MaxPool", {"kernel_shape": [2], "strides": [2]}), ("Transpose", {"perm": [0, 2, 1]}), "Flatten", "Gemm f",
        ),
        {"one": int64(1), "w": weights(4, 6, 1, 3), "b": weights(4), "f": weights(40, 5)},
        ("N", 20, 6),
        13,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANNELS_LAST)
def test_channels_last_are_taken_with_channels_first(case, tmp_path):
    nodes, constants, shape, opset = CHANNELS_LAST[case]
    graph, _ = check(build(nodes, constants, shape, opset), tmp_path, (3, 1, 2) if len(shape) == 4 else (2, 1))
    assert graph.input_shape[0] == shape[-1]


@pytest.mark.parametrize("opset", [7, 10, 11, 13, 18, 21])
def test_pads_of_every_operator_set_are_read(opset, tmp_path):
    pads = [0, 0, 1, 0, 0, 0, 2, 3]
    constants = {**CONV}
    if opset < 11:
        step = ("Pad", {"pads": pads, "value": 0.0, "mode": "constant"})
    elif opset < 18:
        step = "Pad p zero"
        constants |= {"p": int64(*pads), "zero": np.float32(0)}
    else:
        step = "Pad p - axes"
        constants |= {"p": int64(1, 0, 2, 3), "axes": int64(-2, 3)}
    _, lowered = check(build(chain(step, "Conv w b"), constants, MAP, opset), tmp_path)
    assert [node.pads for node in lowered.nodes] == [(1, 0, 2, 3)]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("pads of rows and columns become those of a convolution", ["Conv", "Conv"]),
        ("pads before a max pool behind a ReLU", ["Conv", "MaxPool", "Conv"]),
        ("pads before an average pool", ["Conv", "AveragePool", "Conv"]),
        ("pads before a max pool of anything are a layer", ["Conv", "Conv", "MaxPool", "Conv"]),
        ("pads of nothing", ["Conv"]),
        ("normalization before a convolution", ["Conv"]),
        ("normalization before a padded convolution", ["Conv", "Conv"]),
        ("scaling before pads", ["Conv"]),
        ("mean over rows, then over columns", ["Conv", "AveragePool", "AveragePool", "Conv"]),
        ("columns before rows", ["Conv", "Conv"]),
        ("1-D, linear layer per position, as PyTorch's M5", ["Conv", "AveragePool", "Conv"]),
    ],
)
def test_no_layer_is_spent_on_what_can_be_folded(case, expected, tmp_path):
    assert layers(lower(read(build(*CASES[case]), tmp_path))) == expected


def test_pads_folded_into_a_max_pool_keep_its_window(tmp_path):
    lowered = lower(read(build(*CASES["pads before a max pool behind a ReLU"]), tmp_path))
    (pool,) = (node for node in lowered.nodes if isinstance(node, MaxPool))
    assert (pool.kernel, pool.pads) == ((3, 3), (0, 1, 1, 1))


def test_functions_of_the_model_are_read_like_operators(tmp_path):
    model = build([("Block", ["x", "w", "b"], ["y"], {})], CONV, MAP)
    model.graph.node[0].domain = "local"
    body = [helper.make_node("Conv", ["a", "u", "v"], ["c"]), helper.make_node("Relu", ["c"], ["d"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("local", "Block", ["a", "u", "v"], ["d"], body, opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    check(model, tmp_path)


def test_an_output_whose_axes_are_in_another_order_is_noted(tmp_path):
    nodes = chain("Conv w b", ("Transpose", {"perm": [0, 2, 3, 1]}))
    assert read(build(nodes, CONV), tmp_path).dropped == ("transposition of 't0'",)
    pixel = chain("Conv w b", "GlobalAveragePool", ("Transpose", {"perm": [0, 2, 3, 1]}))
    assert read(build(pixel, CONV), tmp_path).dropped == ()
