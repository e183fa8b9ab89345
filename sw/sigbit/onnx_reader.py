"""Read an ONNX classifier into a :class:`~sigbit.graph.Graph`; everything that is not supported is reported at once."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .graph import (
    Add,
    Affine,
    AveragePool,
    Conv,
    Graph,
    LeakyRelu,
    Linear,
    MaxPool,
    ModelError,
    Node,
    Relu,
    Reshape,
    Shape,
    window_positions,
)

__all__ = ["OPSET_MAX", "OPSET_MIN", "SUPPORTED", "read_onnx"]

#: Versions of the default operator set whose definitions the reader follows.
OPSET_MIN = 7
OPSET_MAX = 26

_FLOATS = (np.float16, np.float32, np.float64)

#: A clip at this value or above is none; exporters write the largest float.
_NO_LIMIT = 1e30

#: A slice that ends here or later takes everything; exporters write the largest integer of 32 or 64 bits.
_ALL = 1 << 30

_TRANSPOSED = "acts on values whose axes were transposed; supported are channels first"


class _UnsupportedError(Exception):
    """Why one node cannot be read; collected, never seen outside."""


class _Reader:
    """State while one ONNX graph is walked in order."""

    def __init__(self, onnx: Any, opset: int, fixed_batch: int | None, last: set[str]) -> None:
        self.onnx = onnx
        self.opset = opset
        self.fixed_batch = fixed_batch
        #: Outputs of the model that no node reads.
        self.last = last
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, Shape] = {}
        self.aliases: dict[str, str] = {}
        #: ONNX name of a map whose axes are not channels, height, width: which of these each of its axes is.
        self.views: dict[str, Shape] = {}
        #: ONNX name of a vector that was flattened from such a map: which value of the graph's vector each one is.
        self.orders: dict[str, Shape] = {}
        self.dropped: list[str] = []
        self.unknown: set[str] = set()
        self.nodes: list[Node] = []

    def tensor(self, name: str) -> str:
        return self.aliases.get(name, name)

    def shape(self, node: Any) -> Shape:
        """Shape of the first input as ONNX has it."""
        shape = self.shapes[self.tensor(node.input[0])]
        view = self.views.get(node.input[0])
        return shape if view is None else tuple(shape[axis] for axis in view)

    def constant(self, node: Any, index: int, what: str) -> np.ndarray | None:
        """Constant input ``index``; None if the node leaves it out."""
        if index >= len(node.input) or not node.input[index]:
            return None
        if node.input[index] not in self.constants:
            raise _UnsupportedError(
                f"{what} {node.input[index]!r} is computed from the input; only constants are supported"
            )
        return self.constants[node.input[index]]

    def weights(self, node: Any, index: int, what: str) -> np.ndarray | None:
        """Constant float input ``index`` in float64, checked to be finite and not empty."""
        value = self.constant(node, index, what)
        if value is None:
            return None
        if value.dtype not in _FLOATS:
            raise _UnsupportedError(
                f"{what} {node.input[index]!r} has type {value.dtype}; supported are float16, 32 and 64"
            )
        if value.size == 0:
            raise _UnsupportedError(f"{what} {node.input[index]!r} is empty (shape {value.shape})")
        value = value.astype(np.float64)
        if not np.isfinite(value).all():
            raise _UnsupportedError(
                f"{what} {node.input[index]!r} holds {(~np.isfinite(value)).sum()} values that are NaN or infinite; "
                "retrain or repair the model"
            )
        return value

    def required(self, node: Any, index: int, what: str) -> np.ndarray:
        value = self.weights(node, index, what)
        if value is None:
            raise _UnsupportedError(f"{what} (input {index}) is missing")
        return value

    def emit(self, node: Node) -> None:
        try:
            self.shapes[node.output] = node.output_shape(*(self.shapes[name] for name in node.inputs))
        except ModelError as error:
            raise _UnsupportedError(str(error)) from None
        self.nodes.append(node)

    def alias(self, node: Any) -> None:
        self.aliases[node.output[0]] = self.tensor(node.input[0])
        self.keep_layout(node)

    def keep_layout(self, node: Any) -> None:
        """The output has the axes of the first input."""
        for layouts in (self.views, self.orders):
            if node.input[0] in layouts:
                layouts[node.output[0]] = layouts[node.input[0]]

    def set_view(self, name: str, view: Shape) -> None:
        if view != tuple(sorted(view)):
            self.views[name] = view


def _text(shape: Shape) -> str:
    return " x ".join(["N", *map(str, shape)])


def _attributes(reader: _Reader, node: Any) -> dict[str, Any]:
    values = {a.name: reader.onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {key: value.decode() if isinstance(value, bytes) else value for key, value in values.items()}


def _ends(reader: _Reader, node: Any) -> dict[str, Any]:
    return {"input": reader.tensor(node.input[0]), "output": node.output[0], "name": node.name}


def _map(reader: _Reader, node: Any) -> Shape:
    shape = reader.shape(node)
    if len(shape) != 3:
        raise _UnsupportedError(f"needs a map N x channels x height x width, but its input is {_text(shape)}")
    return shape


def _pair(values: Any, what: str, default: int = 1) -> Shape:
    pair = tuple(int(v) for v in values) if values else (default, default)
    if len(pair) != 2:
        raise _UnsupportedError(f"{what} {list(pair)} is not two-dimensional; supported are 2-D windows")
    return pair


def _pads(attributes: dict, shape: Shape, kernel: Shape, stride: Shape, dilation: Shape) -> Shape:
    mode = attributes.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = tuple(int(p) for p in attributes.get("pads", (0, 0, 0, 0)))
        if len(pads) != 4 or min(pads) < 0:
            raise _UnsupportedError(f"pads {list(pads)}; supported are four values of at least 0")
        return pads
    if mode == "VALID":
        return (0, 0, 0, 0)
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise _UnsupportedError(f"auto_pad {mode!r}; supported are NOTSET, VALID, SAME_UPPER and SAME_LOWER")
    before, after = [], []
    for size, k, s, d in zip(shape[1:], kernel, stride, dilation, strict=True):
        total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
        small = total // 2
        before.append(small if mode == "SAME_UPPER" else total - small)
        after.append(total - before[-1])
    return (*before, *after)


def _conv(reader: _Reader, node: Any) -> None:
    attributes = _attributes(reader, node)
    weight = reader.required(node, 1, "weight")
    if weight.ndim != 4:
        raise _UnsupportedError(f"{weight.ndim - 2}-D convolution (weights {weight.shape}); supported is 2-D")
    shape = _map(reader, node)
    kernel = weight.shape[2:]
    if "kernel_shape" in attributes and tuple(attributes["kernel_shape"]) != kernel:
        raise _UnsupportedError(
            f"kernel_shape {list(attributes['kernel_shape'])} contradicts the weights {weight.shape}"
        )
    stride = _pair(attributes.get("strides"), "strides")
    dilation = _pair(attributes.get("dilations"), "dilations")
    bias = reader.weights(node, 2, "bias")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise _UnsupportedError(f"bias has shape {bias.shape}, expected {weight.shape[:1]}")
    reader.emit(
        Conv(
            **_ends(reader, node),
            weight=weight,
            bias=np.zeros(len(weight)) if bias is None else bias,
            stride=stride,
            dilation=dilation,
            pads=_pads(attributes, shape, kernel, stride, dilation),
            groups=attributes.get("group", 1),
        )
    )


def _gemm(reader: _Reader, node: Any) -> None:
    attributes = _attributes(reader, node)
    if attributes.get("transA", 0):
        raise _UnsupportedError("transA=1 mixes the images of a batch; supported is transA=0")
    weight = reader.required(node, 1, "weight")
    if weight.ndim != 2:
        raise _UnsupportedError(f"weight has shape {weight.shape}, expected a matrix")
    if not attributes.get("transB", 0):
        weight = weight.T
    bias = reader.weights(node, 2, "bias")
    bias = np.zeros(len(weight)) if bias is None else bias * attributes.get("beta", 1.0)
    bias = _per_channel(bias, (len(weight),), "bias")
    weight = _in_order(reader, node, weight * attributes.get("alpha", 1.0))
    reader.emit(Linear(**_ends(reader, node), weight=weight, bias=bias))


def _matmul(reader: _Reader, node: Any) -> None:
    if node.input[0] in reader.constants:
        raise _UnsupportedError("the constant is the left factor; supported is data times constant matrix")
    weight = reader.required(node, 1, "right factor")
    if weight.ndim != 2:
        raise _UnsupportedError(f"right factor has shape {weight.shape}; supported is a matrix")
    reader.emit(Linear(**_ends(reader, node), weight=_in_order(reader, node, weight.T), bias=np.zeros(weight.shape[1])))


def _in_order(reader: _Reader, node: Any, weight: np.ndarray) -> np.ndarray:
    """Weights ``(out, in)`` for the order that the input's values have in the graph."""
    order = reader.orders.get(node.input[0])
    if order is None or weight.shape[1] != len(order):
        return weight
    ordered = np.empty_like(weight)
    ordered[:, list(order)] = weight
    return ordered


def _per_channel(value: np.ndarray, shape: Shape, what: str) -> np.ndarray:
    """``value`` of a broadcast against ``N x shape`` as one number per channel."""
    full = (1,) * (1 + len(shape) - value.ndim) + value.shape
    if len(full) != 1 + len(shape) or any(n != 1 for n in (full[0], *full[2:])) or full[1] not in (1, shape[0]):
        raise _UnsupportedError(
            f"{what} of shape {value.shape} does not broadcast as one value per channel of {_text(shape)}"
        )
    return np.array(np.broadcast_to(value.reshape(-1), (shape[0],)))


def _batch_norm(reader: _Reader, node: Any) -> None:
    attributes = _attributes(reader, node)
    if attributes.get("training_mode", 0) or len([name for name in node.output if name]) > 1:
        raise _UnsupportedError("is in training mode; export the model in evaluation mode")
    names = ("scale", "bias", "mean", "variance")
    scale, bias, mean, variance = (reader.required(node, i, name) for i, name in enumerate(names, 1))
    if (variance < 0).any():
        raise _UnsupportedError("has a negative variance; repair the model")
    deviation = np.sqrt(variance + attributes.get("epsilon", 1e-5))
    if (deviation == 0).any():
        raise _UnsupportedError("has a variance of 0 and no epsilon; repair the model")
    gain = scale / deviation
    reader.emit(Affine(**_ends(reader, node), gain=gain, shift=bias - mean * gain))


def _arithmetic(reader: _Reader, node: Any) -> None:
    """Add, Sub, Mul, Div with a constant per channel, and Add (or Sum) of two tensors."""
    if len(node.input) != 2:
        raise _UnsupportedError(f"has {len(node.input)} operands; supported are two")
    if node.op_type in _SUMS and not any(name in reader.constants for name in node.input):
        first, second = ((reader.views.get(name), reader.orders.get(name)) for name in node.input)
        if first != second:
            raise _UnsupportedError("adds maps whose axes are ordered differently; supported is one order")
        reader.emit(Add(**_ends(reader, node), residual=reader.tensor(node.input[1])))
        reader.keep_layout(node)
        return
    if any(name in layouts for name in node.input for layouts in (reader.views, reader.orders)):
        raise _UnsupportedError(_TRANSPOSED)
    first_is_constant = node.input[0] in reader.constants
    data = reader.tensor(node.input[1 if first_is_constant else 0])
    shape = reader.shapes[data]
    value = _per_channel(reader.required(node, 0 if first_is_constant else 1, "operand"), shape, "operand")
    one, zero = np.ones(shape[0]), np.zeros(shape[0])
    if node.op_type in _SUMS:
        gain, shift = one, value
    elif node.op_type == "Mul":
        gain, shift = value, zero
    elif node.op_type == "Sub":
        gain, shift = (-one, value) if first_is_constant else (one, -value)
    elif first_is_constant:
        raise _UnsupportedError("divides a constant by data; supported is data divided by a constant")
    elif (value == 0).any():
        raise _UnsupportedError("divides by 0")
    else:
        gain, shift = 1 / value, zero
    reader.emit(Affine(name=node.name, input=data, output=node.output[0], gain=gain, shift=shift))


def _rectify(reader: _Reader, node: Any, limit: float | None) -> None:
    reader.emit(Relu(**_ends(reader, node), limit=limit))
    reader.keep_layout(node)


def _relu(reader: _Reader, node: Any) -> None:
    _rectify(reader, node, None)


def _leak(reader: _Reader, node: Any, slope: np.ndarray) -> None:
    reader.emit(LeakyRelu(**_ends(reader, node), slope=slope))
    reader.keep_layout(node)


def _leaky_relu(reader: _Reader, node: Any) -> None:
    _leak(reader, node, np.array([_attributes(reader, node).get("alpha", 0.01)], np.float64))


def _prelu(reader: _Reader, node: Any) -> None:
    slope = reader.required(node, 1, "slope")
    if slope.size > 1:
        if any(node.input[0] in layouts for layouts in (reader.views, reader.orders)):
            raise _UnsupportedError(_TRANSPOSED)
        slope = _per_channel(slope, reader.shape(node), "slope")
    _leak(reader, node, slope.reshape(-1))


def _clip(reader: _Reader, node: Any) -> None:
    attributes = _attributes(reader, node)
    bounds = []
    for index, key in ((1, "min"), (2, "max")):
        given = reader.constant(node, index, key) if reader.opset >= 11 else attributes.get(key)
        bounds.append(None if given is None else float(np.asarray(given).reshape(-1)[0]))
    low, high = bounds
    if low != 0:
        raise _UnsupportedError(f"clips below at {low}; supported is 0, as ReLU and ReLU6 do")
    _rectify(reader, node, _limit(high))


def _limit(value: float | None) -> float | None:
    """Upper bound of a clip; None if it is larger than any number that a model computes with."""
    if value is None or value >= _NO_LIMIT:
        return None
    if not value > 0:
        raise _UnsupportedError(f"clips above at {value}; supported are bounds above 0")
    return value


def _extremum(reader: _Reader, node: Any) -> None:
    """Max with 0, and Min with a positive constant behind a ReLU: the two halves of a clip."""
    constants = [name for name in node.input if name in reader.constants]
    data = [name for name in node.input if name not in reader.constants]
    if len(constants) != 1 or len(data) != 1 or reader.constants[constants[0]].size != 1:
        raise _UnsupportedError("supported is the extremum of one tensor and one constant number")
    value = float(reader.constants[constants[0]].reshape(-1)[0])
    node.input[:] = [data[0], constants[0]]
    if node.op_type == "Max":
        if value != 0:
            raise _UnsupportedError(f"with {value}; supported is 0, as ReLU does")
        _rectify(reader, node, None)
        return
    source = next((other for other in reader.nodes if other.output == reader.tensor(data[0])), None)
    if not isinstance(source, Relu):
        raise _UnsupportedError("of a tensor that can be negative; supported is Min behind a ReLU or Max with 0")
    _rectify(reader, node, _limit(value))


def _copy(reader: _Reader, node: Any, weight: np.ndarray, stride: Shape = (1, 1), pads: Shape = (0, 0, 0, 0)) -> None:
    """Channels chosen by a matrix of zeros and ones, at strided positions, zeros around."""
    reader.emit(
        Conv(
            **_ends(reader, node),
            weight=weight[:, :, np.newaxis, np.newaxis],
            bias=np.zeros(len(weight)),
            stride=stride,
            pads=pads,
            copy=True,
        )
    )


def _integers(reader: _Reader, node: Any, index: int, what: str) -> list[int] | None:
    value = reader.constant(node, index, what)
    return None if value is None else [int(n) for n in value.reshape(-1)]


def _slice(reader: _Reader, node: Any) -> None:
    attributes = _attributes(reader, node)
    keys = ("starts", "ends", "axes", "steps")
    if reader.opset >= 10:
        starts, ends, axes, steps = (_integers(reader, node, index, key) for index, key in enumerate(keys, 1))
    else:
        starts, ends, axes, steps = (attributes.get(key) for key in keys)
    if starts is None or ends is None:
        raise _UnsupportedError("has no starts or ends")
    shape = _map(reader, node)
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    chosen = [range(n) for n in shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis % 4 == 0:
            if start != 0 or step != 1 or end < _ALL:
                raise _UnsupportedError("takes images out of the batch; supported are slices of a map")
            continue
        if step == 0:
            raise _UnsupportedError("has a step of 0")
        chosen[axis % 4 - 1] = range(shape[axis % 4 - 1])[start:end:step]
    stride = (chosen[1].step, chosen[2].step)
    for taken, size, step in zip(chosen[1:], shape[1:], stride, strict=True):
        if step < 1 or taken != range(0, size, step):
            raise _UnsupportedError(
                f"takes {len(taken)} of {size} rows or columns, from {taken.start} in steps of {step}; supported are "
                "steps over the whole axis"
            )
    if not chosen[0]:
        raise _UnsupportedError("takes no channel")
    _copy(reader, node, np.eye(shape[0])[list(chosen[0])], stride)


def _pad(reader: _Reader, node: Any) -> None:
    attributes = _attributes(reader, node)
    mode = attributes.get("mode", "constant")
    if mode != "constant":
        raise _UnsupportedError(f"mode {mode!r}; supported is constant")
    if reader.opset >= 11:
        pads = _integers(reader, node, 1, "pads")
        value = reader.constant(node, 2, "value")
        axes = _integers(reader, node, 3, "axes")
    else:
        pads, value, axes = attributes.get("pads"), attributes.get("value", 0.0), None
    shape = _map(reader, node)
    axes = list(range(4)) if axes is None else [axis % 4 for axis in axes]
    if value is not None and np.any(value):
        raise _UnsupportedError(f"value {np.asarray(value).reshape(-1)[0]}; supported is 0")
    if pads is None or len(pads) != 2 * len(axes):
        raise _UnsupportedError(f"pads {pads}; expected two per axis")
    before, after = [0] * 4, [0] * 4
    for position, axis in enumerate(axes):
        before[axis], after[axis] = pads[position], pads[position + len(axes)]
    if min(before + after) < 0 or before[0] or after[0]:
        raise _UnsupportedError(f"pads {pads}; supported are channels, rows and columns of zeros")
    weight = np.eye(before[1] + shape[0] + after[1])[:, before[1] : before[1] + shape[0]]
    _copy(reader, node, weight, pads=(*before[2:], *after[2:]))


def _softmax(reader: _Reader, node: Any) -> None:
    """A last softmax does not change which logit is the largest."""
    shape = reader.shape(node)
    axis = _attributes(reader, node).get("axis", -1 if reader.opset >= 13 else 1) % (1 + len(shape))
    if node.output[0] not in reader.last or axis != 1:
        raise _UnsupportedError(
            "is not the model's output over its classes, axis=1; supported is that, which the host can compute, "
            "because the logits have the same order"
        )
    reader.dropped.append(f"{node.op_type} {node.name!r}")
    reader.alias(node)


def _pool(reader: _Reader, node: Any) -> None:
    attributes = _attributes(reader, node)
    if len([name for name in node.output if name]) > 1:
        raise _UnsupportedError("returns indices; supported is the pooled map alone")
    shape = _map(reader, node)
    if "kernel_shape" not in attributes:
        raise _UnsupportedError("has no kernel_shape")
    kernel = _pair(attributes["kernel_shape"], "kernel_shape")
    stride = _pair(attributes.get("strides"), "strides")
    dilation = _pair(attributes.get("dilations"), "dilations")
    if dilation != (1, 1):
        raise _UnsupportedError(f"dilations {list(dilation)}; supported are pools without dilation")
    pads = _pads(attributes, shape, kernel, stride, dilation)
    grown = _ceil_mode_pads(shape, kernel, stride, pads) if attributes.get("ceil_mode", 0) else pads
    if kernel == stride == (1, 1) and not any(grown):
        reader.alias(node)
        return
    if node.op_type == "MaxPool":
        reader.emit(MaxPool(**_ends(reader, node), kernel=kernel, stride=stride, pads=grown))
        return
    if grown != pads:
        raise _UnsupportedError("ceil_mode=1 gives windows of different areas here; supported are windows of one area")
    if any(pads) and not attributes.get("count_include_pad", 0):
        raise _UnsupportedError("windows differ in area, pads are not counted; supported is count_include_pad=1")
    reader.emit(AveragePool(**_ends(reader, node), kernel=kernel, stride=stride, pads=pads))


def _ceil_mode_pads(shape: Shape, kernel: Shape, stride: Shape, pads: Shape) -> Shape:
    """Pads that give the positions of ceil_mode: windows may run out at the end but must start inside the map."""
    after = []
    for axis in range(2):
        size, before, end = shape[1 + axis], pads[axis], pads[2 + axis]
        exact = size + before + end - kernel[axis]
        count = -(-exact // stride[axis]) + 1
        if (count - 1) * stride[axis] >= size + before:
            count -= 1
        if count > window_positions(size, kernel[axis], stride[axis], 1, before, end):
            end += (count - 1) * stride[axis] - exact
        after.append(end)
    return (pads[0], pads[1], *after)


def _global_pool(reader: _Reader, node: Any) -> None:
    kind = MaxPool if node.op_type == "GlobalMaxPool" else AveragePool
    kernel = _map(reader, node)[1:]
    if kernel == (1, 1):
        reader.alias(node)
    else:
        reader.emit(kind(**_ends(reader, node), kernel=kernel, stride=(1, 1)))


def _reduce_mean(reader: _Reader, node: Any) -> None:
    attributes = _attributes(reader, node)
    axes = attributes.get("axes")
    if axes is None:
        given = reader.constant(node, 1, "axes")
        axes = [] if given is None else given.reshape(-1).tolist()
    shape = reader.shapes[reader.tensor(node.input[0])]
    if len(shape) != 3:
        raise _UnsupportedError(f"needs a map N x channels x height x width, but its input is {_text(shape)}")
    view = reader.views.get(node.input[0], (0, 1, 2))
    if any(axis % 4 == 0 for axis in axes) or sorted(view[axis % 4 - 1] for axis in axes) != [1, 2]:
        raise _UnsupportedError(f"reduces axes {list(axes)}; supported is the mean over height and width, axes [2, 3]")
    ends = _ends(reader, node)
    if attributes.get("keepdims", 1):
        reader.emit(AveragePool(**ends, kernel=shape[1:], stride=(1, 1)))
        reader.keep_layout(node)
        return
    pooled = node.output[0] + ".pooled"
    reader.emit(AveragePool(**{**ends, "output": pooled}, kernel=shape[1:], stride=(1, 1)))
    reader.emit(Reshape(**{**ends, "name": node.name + ".flatten", "input": pooled}, shape=(shape[0],)))


def _flatten(reader: _Reader, node: Any) -> None:
    axis = _attributes(reader, node).get("axis", 1)
    shape = reader.shape(node)
    if axis % (1 + len(shape)) != 1:
        raise _UnsupportedError(f"axis={axis}; supported is axis=1, which keeps the batch")
    _emit_reshape(reader, node, (prod(shape),))


def _reshape(reader: _Reader, node: Any) -> None:
    shape = reader.shape(node)
    target = reader.constant(node, 1, "shape")
    if target is None:
        raise _UnsupportedError("has no shape input")
    sizes = target.reshape(-1).tolist()
    if _attributes(reader, node).get("allowzero", 0) and 0 in sizes[1:]:
        raise _UnsupportedError(f"target shape {sizes} has no values (allowzero=1)")
    rest = [shape[i - 1] if n == 0 and i <= len(shape) else n for i, n in enumerate(sizes[1:], 1)]
    keeps_batch = bool(sizes) and (sizes[0] in (0, reader.fixed_batch) or (sizes[0] == -1 and -1 not in rest))
    if rest.count(-1) == 1 and prod(n for n in rest if n != -1) > 0:
        rest[rest.index(-1)] = prod(shape) // prod(n for n in rest if n != -1)
    if not keeps_batch or not rest or prod(rest) != prod(shape):
        raise _UnsupportedError(f"target shape {sizes} does not keep the batch of {_text(shape)}")
    _emit_reshape(reader, node, tuple(int(n) for n in rest))


def _emit_reshape(reader: _Reader, node: Any, rest: Shape) -> None:
    shape = reader.shape(node)
    large = [axis for axis, size in enumerate(shape) if size > 1]
    if rest == shape:
        reader.alias(node)
    elif len(rest) == 1:
        reader.emit(Reshape(**_ends(reader, node), shape=rest))
        if (view := reader.views.get(node.input[0])) is not None:
            mapped = reader.shapes[reader.tensor(node.input[0])]
            order = np.arange(rest[0]).reshape(mapped).transpose(view).reshape(-1)
            if (np.diff(order) != 1).any():
                reader.orders[node.output[0]] = tuple(order.tolist())
    elif len(rest) == 3 and len(shape) == 3 and [shape[axis] for axis in large] == [n for n in rest if n > 1]:
        small = (axis for axis, size in enumerate(shape) if size == 1)
        wide = iter(large)
        _transposed(reader, node, tuple(next(small) if n == 1 else next(wide) for n in rest))
    elif len(rest) == 3 and len(shape) == 1 and shape[0] in rest and node.input[0] not in reader.orders:
        reader.emit(Reshape(**_ends(reader, node), shape=(shape[0], 1, 1)))
        channel = rest.index(shape[0])
        others = iter((1, 2))
        reader.set_view(node.output[0], tuple(0 if axis == channel else next(others) for axis in range(3)))
    else:
        raise _UnsupportedError(
            f"turns {_text(shape)} into {_text(rest)}; supported is flattening to N x features, and axes of size 1"
        )


def _transposed(reader: _Reader, node: Any, axes: Shape) -> None:
    """The output is the input with its axes, numbered without batch, in another order; nothing is computed."""
    view = reader.views.get(node.input[0], (0, 1, 2))
    reader.aliases[node.output[0]] = reader.tensor(node.input[0])
    reader.set_view(node.output[0], tuple(view[axis] for axis in axes))


def _transpose(reader: _Reader, node: Any) -> None:
    shape = reader.shape(node)
    order = list(_attributes(reader, node).get("perm", range(len(shape), -1, -1)))
    if sorted(order) != list(range(1 + len(shape))) or order[0] != 0:
        raise _UnsupportedError(f"perm {order} of {_text(shape)}; supported is any order that keeps the batch first")
    if len(shape) == 1:
        reader.alias(node)
    else:
        _transposed(reader, node, tuple(axis - 1 for axis in order[1:]))


def _squeeze(reader: _Reader, node: Any) -> None:
    """Squeeze and Unsqueeze between N x C x 1 x 1 and N x C."""
    shape = reader.shape(node)
    axes = _attributes(reader, node).get("axes")
    if axes is None:
        given = reader.constant(node, 1, "axes")
        axes = None if given is None else given.reshape(-1).tolist()
    rank = 1 + len(shape)
    if node.op_type == "Unsqueeze":
        if len(shape) != 1 or axes is None or len(axes) != 2 or 0 in (added := {axis % 4 for axis in axes}):
            raise _UnsupportedError(f"axes {axes} of {_text(shape)}; supported is N x C to a map, axes [2, 3]")
        rest: Shape = tuple(1 if axis in added else shape[0] for axis in (1, 2, 3))
    else:
        if axes is None:
            raise _UnsupportedError("without axes would drop a batch of one; supported are axes [2, 3]")
        drop = {axis % rank for axis in axes}
        if 0 in drop or any(shape[axis - 1] != 1 for axis in drop):
            raise _UnsupportedError(f"axes {list(axes)} of {_text(shape)}; supported are axes of size 1")
        rest = tuple(n for i, n in enumerate(shape, 1) if i not in drop)
    _emit_reshape(reader, node, rest)


def _identity(reader: _Reader, node: Any) -> None:
    if node.op_type == "Dropout" and (value := reader.constant(node, 2, "training_mode")) is not None and value.any():
        raise _UnsupportedError("is in training mode; export the model in evaluation mode")
    reader.alias(node)


_HANDLERS: dict[str, Callable[[_Reader, Any], None]] = {
    "Add": _arithmetic,
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Conv": _conv,
    "Div": _arithmetic,
    "Dropout": _identity,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "Identity": _identity,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "Max": _extremum,
    "MaxPool": _pool,
    "Min": _extremum,
    "Mul": _arithmetic,
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": _arithmetic,
    "Sum": _arithmetic,
    "Transpose": _transpose,
    "Unsqueeze": _squeeze,
}

_SUMS = ("Add", "Sum")
_ARITHMETIC = (*_SUMS, "Div", "Mul", "Sub")
#: Operators whose first input may be a constant.
_CONSTANT_FIRST = (*_ARITHMETIC, "MatMul", "Max", "Min")
#: Operators that are read on maps whose axes are in another order.
_ANY_VIEW = ("Add", "Clip", "Dropout", "Flatten", "Identity", "LeakyRelu", "Max", "Min", "PRelu", "ReduceMean", "Relu",
             "Reshape", "Squeeze", "Sum", "Transpose")  # fmt: skip
#: Operators that are read on vectors that were flattened from such maps.
_ANY_ORDER = ("Add", "Clip", "Dropout", "Flatten", "Gemm", "Identity", "LeakyRelu", "LogSoftmax", "MatMul", "Max",
              "Min", "PRelu", "Relu", "Reshape", "Softmax", "Sum")  # fmt: skip

#: Operators that the reader understands; any deterministic operator on constants alone is evaluated, too.
SUPPORTED = tuple(_HANDLERS)

_HINTS = {
    "ArgMax": "cut it off; the classifier's logits are the output",
    "Concat": "add the parts instead, or cut the model before it",
    "Resize": "maps do not grow; cut the model before it",
    "Upsample": "maps do not grow; cut the model before it",
}


def _import_onnx() -> Any:
    try:
        import onnx
        import onnx.numpy_helper
        import onnx.reference
    except ImportError as error:
        raise ModelError(f"Reading ONNX needs the package onnx ({error}); install sigbit[onnx]") from None
    return onnx


def _load(onnx: Any, path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"Cannot read model {str(path)!r}: {error.strerror}; expected an ONNX file") from None
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's error type differs between its implementations
        raise ModelError(f"{str(path)!r} is not an ONNX model ({type(error).__name__}: {error})") from None
    if not model.ir_version or not model.graph.node:
        raise ModelError(f"{str(path)!r} is not an ONNX model, or has no nodes ({len(data)} bytes)")
    return model


def _opset(model: Any, path: Path) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise ModelError(f"{str(path)!r} names no ONNX operator set; expected version {OPSET_MIN} to {OPSET_MAX}")
    if not OPSET_MIN <= max(versions) <= OPSET_MAX:
        raise ModelError(
            f"{str(path)!r} uses ONNX operator set {max(versions)}; supported are {OPSET_MIN} to {OPSET_MAX}. "
            "Export again, or convert with onnx.version_converter"
        )
    return max(versions)


def _read_initializers(onnx: Any, model: Any, path: Path) -> dict[str, np.ndarray]:
    constants = {}
    for tensor in model.graph.initializer:
        try:
            constants[tensor.name] = onnx.numpy_helper.to_array(tensor, str(path.parent))
        except Exception as error:  # onnx raises several types for missing, short or escaping external files
            where = {entry.key: entry.value for entry in tensor.external_data}.get("location", "the model file")
            raise ModelError(
                f"Cannot read weights {tensor.name!r} of {str(path)!r} from {where!r}: {error}. "
                "A model with external data needs that file beside it"
            ) from None
    return constants


def _read_input(model: Any, constants: dict, path: Path) -> tuple[str, Shape, int | None]:
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs) or "none"
        raise ModelError(f"{str(path)!r} has {len(inputs)} inputs ({names}); supported is exactly one")
    if len(model.graph.output) != 1:
        names = ", ".join(repr(value.name) for value in model.graph.output) or "none"
        raise ModelError(f"{str(path)!r} has {len(model.graph.output)} outputs ({names}); supported is exactly one")
    name, kind = inputs[0].name, inputs[0].type.tensor_type
    if kind.elem_type not in (1, 10, 11):
        raise ModelError(f"Input {name!r} has ONNX type {kind.elem_type}; supported are float, float16 and double")
    if not kind.HasField("shape"):
        raise ModelError(f"Input {name!r} has no shape; supported are N x C x H x W and N x features with fixed sizes")
    sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]
    text = " x ".join(map(str, sizes)) or "scalar"
    if len(sizes) not in (2, 4):
        raise ModelError(f"Input {name!r} has shape {text}; supported are N x C x H x W and N x features")
    if any(isinstance(size, str) for size in sizes[1:]):
        raise ModelError(f"Input {name!r} has shape {text}; only the batch may be dynamic. Export with fixed sizes")
    if any(size < 1 for size in sizes if not isinstance(size, str)):
        raise ModelError(f"Input {name!r} has shape {text}; every size must be at least 1")
    return name, tuple(int(size) for size in sizes[1:]), sizes[0] if isinstance(sizes[0], int) else None


def _input_layout(onnx: Any, model: Any, name: str, shape: Shape, constants: dict) -> tuple[Shape, Shape]:
    """Shape of the input as channels, height, width, and which of these each axis of the ONNX input is.

    A model that takes channels last moves them first at once, by Transpose, or by Reshape if there is one channel.
    """
    readers = [node for node in model.graph.node if name in node.input]
    kinds = {node.op_type for node in readers}
    last = len(shape) == 3 and len(readers) > 0
    if kinds == {"Transpose"}:
        last &= all(list(onnx.helper.get_node_attr_value(node, "perm")) == [0, 3, 1, 2] for node in readers)
    elif kinds == {"Reshape"}:
        targets = [constants.get(node.input[1], np.zeros(0)).tolist()[1:] for node in readers]
        last &= shape[2:] == (1,) and shape[0] > 1 and all(target == [1, *shape[:2]] for target in targets)
    else:
        last = False
    return ((shape[2], shape[0], shape[1]), (1, 2, 0)) if last else (shape, tuple(range(len(shape))))


def _fold(reader: _Reader, node: Any) -> None:
    """Evaluate a node whose inputs are all constants."""
    onnx = reader.onnx
    if node.op_type == "Shape":
        # 0 is the batch: Reshape reads it as "copy".
        sizes = np.array((0, *reader.shape(node)), np.int64)
        attributes = _attributes(reader, node)
        reader.constants[node.output[0]] = sizes[attributes.get("start", 0) : attributes.get("end", len(sizes))]
        return
    values = [onnx.helper.make_tensor_value_info(name, 0, None) for name in node.input if name]
    outputs = [onnx.helper.make_tensor_value_info(name, 0, None) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "constant", values, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", reader.opset)])
    try:
        feeds = {name: reader.constants[name] for name in node.input if name}
        results = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:  # the reference evaluator raises whatever NumPy raises
        raise _UnsupportedError(f"cannot be evaluated on its constant inputs: {error}") from None
    reader.constants.update(zip((name for name in node.output if name), map(np.asarray, results), strict=True))


def _foldable(reader: _Reader, node: Any) -> bool:
    if node.op_type == "Shape":
        return reader.tensor(node.input[0]) in reader.shapes
    if node.op_type == "Constant":
        return True
    inputs = [name for name in node.input if name]
    return bool(inputs) and "Random" not in node.op_type and all(name in reader.constants for name in inputs)


def read_onnx(path: str | Path) -> Graph:
    """Read an ONNX model with one float input and one output.

    Supported are the operators of :data:`SUPPORTED` on data, and any deterministic operator on constants. Weights
    become float64, batch normalization and arithmetic with constants become :class:`~sigbit.graph.Affine`.

    Parameters
    ----------
    path : str or Path
        The ``.onnx`` file; external data is looked for beside it.

    Raises
    ------
    :exc:`~sigbit.graph.ModelError`
        If the file cannot be read, or with one line per node that is not supported.
    """
    path = Path(path)
    onnx = _import_onnx()
    model = _load(onnx, path)
    opset = _opset(model, path)
    constants = _read_initializers(onnx, model, path)
    name, shape, batch = _read_input(model, constants, path)
    last = {value.name for value in model.graph.output} - {name for node in model.graph.node for name in node.input}
    reader = _Reader(onnx, opset, batch, last)
    reader.constants.update(constants)
    shape, view = _input_layout(onnx, model, name, shape, constants)
    reader.shapes[name] = shape
    reader.set_view(name, view)
    problems: list[str] = []
    used: set[str] = set()
    for index, node in enumerate(model.graph.node):
        wanted = node.name or f"{node.op_type}_{index}"
        node.name = wanted if wanted not in used else f"{wanted}_{index}"
        used.add(node.name)
        _read_node(reader, node, problems)
    if problems:
        raise ModelError(
            f"{str(path)!r} has {len(problems)} unsupported or broken node{'s' * (len(problems) > 1)}:\n  "
            + "\n  ".join(problems)
            + f"\nSupported operators: {', '.join(SUPPORTED)}"
        )
    output = reader.tensor(model.graph.output[0].name)
    if output not in reader.shapes:
        raise ModelError(f"Output {model.graph.output[0].name!r} of {str(path)!r} does not depend on input {name!r}")
    if any(model.graph.output[0].name in layouts for layouts in (reader.views, reader.orders)):
        reader.dropped.append(f"transposition of {output!r}")
    return Graph(path.stem, name, output, shape, tuple(reader.nodes), tuple(reader.dropped))


def _check_without_shapes(reader: _Reader, node: Any) -> None:
    """What can be said of a node even behind one that is not supported, so that one run names every obstacle."""
    computed = not any(name in reader.constants for name in node.input)
    if node.op_type in _ARITHMETIC and node.op_type not in _SUMS and computed:
        raise _UnsupportedError("combines two computed tensors; supported is one constant, per tensor or per channel")


def _read_node(reader: _Reader, node: Any, problems: list[str]) -> None:
    label = f"{node.op_type} {node.name!r}"
    domain = node.domain if node.domain not in ("", "ai.onnx") else ""
    try:
        if not domain and _foldable(reader, node):
            _fold(reader, node)
            return
        if domain or node.op_type not in _HANDLERS:
            hint = _HINTS.get(node.op_type, "replace it by supported operators, or cut the model before it")
            raise _UnsupportedError(f"operator {domain + '.' if domain else ''}{node.op_type} is not supported; {hint}")
        inputs = [reader.tensor(source) for source in node.input if source]
        known = reader.shapes.keys() | reader.constants.keys() | reader.unknown
        missing = [source for source in inputs if source not in known]
        if missing:
            raise _UnsupportedError(f"reads tensor {missing[0]!r}, which nothing before it writes")
        _check_without_shapes(reader, node)
        if not inputs or any(source in reader.unknown for source in inputs):
            reader.unknown.update(node.output)
            return
        if inputs[0] in reader.constants and node.op_type not in _CONSTANT_FIRST:
            raise _UnsupportedError(
                f"data input {inputs[0]!r} is a constant; expected a tensor computed from the input"
            )
        for layouts, readable in ((reader.views, _ANY_VIEW), (reader.orders, _ANY_ORDER)):
            if node.op_type not in readable and any(source in layouts for source in node.input):
                raise _UnsupportedError(_TRANSPOSED)
        _HANDLERS[node.op_type](reader, node)
    except _UnsupportedError as error:
        problems.append(f"{label}: {error}")
        reader.unknown.update(node.output)
