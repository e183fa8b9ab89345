"""What every supported ONNX operator becomes: nodes of a :class:`~sigbit.graph.Graph`, or another view of a tensor.

A handler takes the state of the reading (:class:`Reader`) and one node of the model whose inputs are known; it emits
nodes of the graph, or raises :exc:`UnsupportedError` with the reason.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from .graph import (
    Add,
    Affine,
    AveragePool,
    Concat,
    Conv,
    LeakyRelu,
    Linear,
    MaxPool,
    ModelError,
    Node,
    Relu,
    Reshape,
    Shape,
    Upsample,
    window_positions,
)

__all__ = [
    "ANY_ORDER",
    "ARITHMETIC",
    "CONSTANT_FIRST",
    "HANDLERS",
    "MOST_CONSTANTS",
    "MOST_VALUES",
    "PLAIN",
    "SUMS",
    "TRANSPOSED",
    "Reader",
    "UnsupportedError",
    "View",
    "attributes_of",
    "dims",
]

_FLOATS = (np.float16, np.float32, np.float64)

#: A clip at this value or above is none; exporters write the largest float.
_NO_LIMIT = 1e30

#: A slice that ends here or later takes everything; exporters write the largest integer of 32 or 64 bits.
_ALL = 1 << 30

#: Most values of one tensor for one image; more than any accelerator streams, and sizes that overflow end here.
MOST_VALUES = 1 << 26

#: The same of a constant that is computed.
MOST_CONSTANTS = 1 << 28

TRANSPOSED = "acts on values whose axes were transposed; supported are channels first"

#: For every axis of an ONNX tensor behind the batch, the axes of the graph's map that it runs over, slowest first:
#: one as a rule, several where they were merged, none where it has size 1 and the map has no such axis.
View = tuple[Shape, ...]

PLAIN: View = ((0,), (1,), (2,))


class UnsupportedError(Exception):
    """Why one node cannot be read; collected, never seen outside."""


class Reader:
    """State while one ONNX graph is walked in order."""

    def __init__(
        self, onnx: Any, opset: int, last: set[str], written: set[str], constants: dict, inferred: dict
    ) -> None:
        self.onnx = onnx
        self.opset = opset
        self.fixed_batch: int | None = None
        self.input = ""
        #: Outputs of the model, and what is only renamed on the way to them.
        self.last = last
        self.written = written
        self.constants: dict[str, np.ndarray] = dict(constants)
        #: Shapes without batch that ONNX infers: what lets reading go on behind a node that is not supported.
        self.inferred: dict[str, Shape] = inferred
        #: Shapes of maps to which the model reshapes an input of vectors.
        self.wanted: list[Shape] = []
        self.shapes: dict[str, Shape] = {}
        self.aliases: dict[str, str] = {}
        #: ONNX name of a map whose axes are not channels, height, width: which of these each of its axes is.
        self.views: dict[str, View] = {}
        #: ONNX name of a vector that was flattened from such a map: which value of the graph's vector each one is.
        self.orders: dict[str, Shape] = {}
        self.dropped: list[str] = []
        #: Tensors behind nodes that cannot be read, and among them those that hold sizes of others.
        self.unknown: set[str] = set()
        self.unknown_numbers: set[str] = set()
        self.nodes: list[Node] = []

    def tensor(self, name: str) -> str:
        return self.aliases.get(name, name)

    def shape(self, node: Any) -> Shape:
        """Shape of the first input as ONNX has it."""
        return self.onnx_shape(node.input[0])

    def onnx_shape(self, name: str) -> Shape:
        shape = self.shapes[self.tensor(name)]
        view = self.views.get(name)
        return shape if view is None else tuple(prod(shape[axis] for axis in axes) for axes in view)

    def constant(self, node: Any, index: int, what: str) -> np.ndarray | None:
        """Constant input ``index``; None if the node leaves it out."""
        if index >= len(node.input) or not node.input[index]:
            return None
        if node.input[index] not in self.constants:
            raise UnsupportedError(
                f"{what} {node.input[index]!r} is computed from the input; only constants are supported"
            )
        return self.constants[node.input[index]]

    def weights(self, node: Any, index: int, what: str) -> np.ndarray | None:
        """Constant float input ``index`` in float64, checked to be finite and not empty."""
        value = self.constant(node, index, what)
        if value is None:
            return None
        if value.dtype not in _FLOATS:
            raise UnsupportedError(
                f"{what} {node.input[index]!r} has type {value.dtype}; supported are float16, 32 and 64"
            )
        if value.size == 0:
            raise UnsupportedError(f"{what} {node.input[index]!r} is empty (shape {value.shape})")
        value = value.astype(np.float64)
        if not np.isfinite(value).all():
            raise UnsupportedError(
                f"{what} {node.input[index]!r} holds {(~np.isfinite(value)).sum()} values that are NaN or infinite; "
                "retrain or repair the model"
            )
        return value

    def required(self, node: Any, index: int, what: str) -> np.ndarray:
        value = self.weights(node, index, what)
        if value is None:
            raise UnsupportedError(f"{what} (input {index}) is missing")
        return value

    def emit(self, node: Node) -> None:
        try:
            shape = node.output_shape(*(self.shapes[name] for name in node.inputs))
        except ModelError as error:
            raise UnsupportedError(str(error)) from None
        _check_size(shape)
        self.shapes[node.output] = shape
        self.nodes.append(node)

    def alias(self, node: Any) -> None:
        self.aliases[node.output[0]] = self.tensor(node.input[0])
        self.keep_layout(node)

    def keep_layout(self, node: Any) -> None:
        """The output has the axes of the first input."""
        if node.input[0] in self.views:
            self.set_view(node.output[0], self.views[node.input[0]])
        if node.input[0] in self.orders:
            self.orders[node.output[0]] = self.orders[node.input[0]]

    def view(self, node: Any) -> View:
        """Axes of the first input, which must be a map."""
        name = node.input[0]
        if len(self.shapes[self.tensor(name)]) != 3:
            raise UnsupportedError(
                f"needs a map N x channels x height x width, but its input is {dims(self.shape(node))}"
            )
        return self.views.get(name, PLAIN)

    def channel_axis(self, node: Any) -> int | None:
        """Axis behind the batch that has the channels of the first input alone, or None where they are merged."""
        view = self.view(node) if len(self.shapes[self.tensor(node.input[0])]) == 3 else ((0,),)
        return view.index((0,)) if (0,) in view else None

    def set_view(self, name: str, view: View) -> None:
        """Of several views that mean the same, because axes have size 1, the plainest one."""
        shape = self.shapes[self.tensor(name)]
        groups = [tuple(axis for axis in axes if shape[axis] > 1) for axes in view]
        absent = (axis for axis in range(3) if shape[axis] == 1)
        for position, axes in enumerate(groups):
            if not axes and (axis := next(absent, None)) is not None:
                groups[position] = (axis,)
        self.views[name] = tuple(groups)
        if self.views[name] == PLAIN:
            del self.views[name]

    def flatten(self, name: str, source: str, output: str, axes: Shape) -> None:
        """A vector of a map whose axes run in the order of ``axes``; those of size 1 may be missing there."""
        shape = self.shapes[source]
        self.emit(Reshape(name=name, input=source, output=output, shape=(prod(shape),)))
        order = np.arange(prod(shape)).reshape(shape)
        order = order.transpose(*axes, *(axis for axis in range(3) if axis not in axes)).reshape(-1)
        if (np.diff(order) != 1).any():
            self.orders[output] = tuple(order.tolist())


def dims(shape: Shape) -> str:
    return " x ".join(["N", *map(str, shape)])


def attributes_of(reader: Reader, node: Any) -> dict[str, Any]:
    values = {a.name: reader.onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {key: value.decode() if isinstance(value, bytes) else value for key, value in values.items()}


def _ends(reader: Reader, node: Any) -> dict[str, Any]:
    return {"input": reader.tensor(node.input[0]), "output": node.output[0], "name": node.name}


def _check_size(shape: Shape) -> None:
    if prod(shape) > MOST_VALUES:
        raise UnsupportedError(f"makes {dims(shape)}, {prod(shape)} values per image; at most {MOST_VALUES}")


def _axis(axis: int, rank: int) -> int:
    """``axis`` of a tensor with ``rank`` axes, the batch included, counted from the front."""
    if not -rank <= axis < rank:
        raise UnsupportedError(f"axis {axis} of a tensor with {rank} axes; expected {-rank} to {rank - 1}")
    return axis % rank


def _spatial(reader: Reader, node: Any) -> Shape:
    """For every axis of the first input behind batch and channels, which axis of the map it is: 1 or 2."""
    view = reader.view(node)
    if view[0] != (0,):
        raise UnsupportedError(TRANSPOSED)
    if not 2 <= len(view) <= 3 or any(len(axes) != 1 for axes in view):
        raise UnsupportedError(
            f"has an input {dims(reader.shape(node))}; supported are N x channels x height x width and "
            "N x channels x length"
        )
    return tuple(axis for (axis,) in view[1:])


def _per_axis(values: Any, what: str, count: int) -> Shape:
    """One integer for each of ``count`` spatial axes."""
    numbers = tuple(int(v) for v in values) if values else (1,) * count
    if len(numbers) != count:
        raise UnsupportedError(f"{what} {list(numbers)}; expected {count} values, one per axis of the window")
    return numbers


def _on_map(values: Shape, axes: Shape, default: int) -> Shape:
    """Values of the spatial axes ``axes`` as (rows, columns)."""
    found = dict(zip(axes, values, strict=True))
    return found.get(1, default), found.get(2, default)


def _pads_on_map(pads: Shape, axes: Shape) -> Shape:
    return _on_map(pads[: len(axes)], axes, 0) + _on_map(pads[len(axes) :], axes, 0)


def _pads(attributes: dict, shape: Shape, kernel: Shape, stride: Shape, dilation: Shape) -> Shape:
    """Pads before all spatial axes of ONNX shape ``shape``, then behind them."""
    mode = attributes.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        count = 2 * len(kernel)
        pads = tuple(int(p) for p in attributes.get("pads", (0,) * count))
        if len(pads) != count or min(pads) < 0:
            raise UnsupportedError(f"pads {list(pads)}; supported are {count} values of at least 0")
        return pads
    if mode == "VALID":
        return (0,) * (2 * len(kernel))
    if min(stride) < 1:
        raise UnsupportedError(f"strides {list(stride)}; expected at least 1")
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedError(f"auto_pad {mode!r}; supported are NOTSET, VALID, SAME_UPPER and SAME_LOWER")
    before, after = [], []
    for size, k, s, d in zip(shape[1:], kernel, stride, dilation, strict=True):
        total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
        small = total // 2
        before.append(small if mode == "SAME_UPPER" else total - small)
        after.append(total - before[-1])
    return (*before, *after)


def _conv(reader: Reader, node: Any) -> None:
    attributes = attributes_of(reader, node)
    weight = reader.required(node, 1, "weight")
    if weight.ndim not in (3, 4):
        raise UnsupportedError(f"{weight.ndim - 2}-D convolution (weights {weight.shape}); supported are 2-D and 1-D")
    axes = _spatial(reader, node)
    kernel = weight.shape[2:]
    if len(kernel) != len(axes):
        raise UnsupportedError(f"weights {weight.shape} do not fit its input {dims(reader.shape(node))}")
    if "kernel_shape" in attributes and tuple(attributes["kernel_shape"]) != kernel:
        raise UnsupportedError(
            f"kernel_shape {list(attributes['kernel_shape'])} contradicts the weights {weight.shape}"
        )
    stride = _per_axis(attributes.get("strides"), "strides", len(axes))
    dilation = _per_axis(attributes.get("dilations"), "dilations", len(axes))
    pads = _pads(attributes, reader.shape(node), kernel, stride, dilation)
    bias = reader.weights(node, 2, "bias")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UnsupportedError(f"bias has shape {bias.shape}, expected {weight.shape[:1]}")
    reader.emit(
        Conv(
            **_ends(reader, node),
            weight=(weight if axes != (2, 1) else weight.swapaxes(2, 3)).reshape(
                *weight.shape[:2], *_on_map(kernel, axes, 1)
            ),
            bias=np.zeros(len(weight)) if bias is None else bias,
            stride=_on_map(stride, axes, 1),
            dilation=_on_map(dilation, axes, 1),
            pads=_pads_on_map(pads, axes),
            groups=attributes.get("group", 1),
        )
    )
    reader.keep_layout(node)


def _gemm(reader: Reader, node: Any) -> None:
    attributes = attributes_of(reader, node)
    if attributes.get("transA", 0):
        raise UnsupportedError("transA=1 mixes the images of a batch; supported is transA=0")
    weight = reader.required(node, 1, "weight")
    if weight.ndim != 2:
        raise UnsupportedError(f"weight has shape {weight.shape}, expected a matrix")
    if not attributes.get("transB", 0):
        weight = weight.T
    bias = reader.weights(node, 2, "bias")
    bias = np.zeros(len(weight)) if bias is None else bias * attributes.get("beta", 1.0)
    bias = _per_channel(bias, (len(weight),), "bias")
    weight = _in_order(reader, node, weight * attributes.get("alpha", 1.0))
    reader.emit(Linear(**_ends(reader, node), weight=weight, bias=bias))


def _matmul(reader: Reader, node: Any) -> None:
    if node.input[0] in reader.constants:
        raise UnsupportedError("the constant is the left factor; supported is data times constant matrix")
    weight = reader.required(node, 1, "right factor")
    if weight.ndim != 2:
        raise UnsupportedError(f"right factor has shape {weight.shape}; supported is a matrix")
    bias = np.zeros(weight.shape[1])
    if len(reader.shape(node)) == 1:
        reader.emit(Linear(**_ends(reader, node), weight=_in_order(reader, node, weight.T), bias=bias))
        return
    if reader.view(node)[-1] != (0,):
        raise UnsupportedError(
            f"multiplies the last axis of {dims(reader.shape(node))}, which is not that of the channels; flatten it "
            "first, or transpose it to channels last"
        )
    reader.emit(Conv(**_ends(reader, node), weight=weight.T[:, :, np.newaxis, np.newaxis], bias=bias))
    reader.keep_layout(node)


def _in_order(reader: Reader, node: Any, values: np.ndarray) -> np.ndarray:
    """Values whose last axis runs over the input's elements, in the order that these have in the graph."""
    order = reader.orders.get(node.input[0])
    if order is None or values.shape[-1] != len(order):
        return values
    ordered = np.empty_like(values)
    ordered[..., list(order)] = values
    return ordered


def _per_channel(value: np.ndarray, shape: Shape, what: str, channel: int = 0) -> np.ndarray:
    """``value`` of a broadcast against ``N x shape`` as one number per channel, which is axis ``channel`` of it."""
    full = (1,) * (1 + len(shape) - value.ndim) + value.shape
    others = (n for axis, n in enumerate(full) if axis != 1 + channel)
    if len(full) != 1 + len(shape) or any(n != 1 for n in others) or full[1 + channel] not in (1, shape[channel]):
        raise UnsupportedError(
            f"{what} of shape {value.shape} does not broadcast as one value per channel of {dims(shape)}"
        )
    return np.array(np.broadcast_to(value.reshape(-1), (shape[channel],)))


def _affine(reader: Reader, node: Any, gain: np.ndarray, shift: np.ndarray) -> None:
    """Values per channel, or per element of a vector in the order that ONNX has it."""
    gain, shift = (_in_order(reader, node, values) for values in (gain, shift))
    reader.emit(Affine(**_ends(reader, node), gain=gain, shift=shift))
    reader.keep_layout(node)


def _batch_norm(reader: Reader, node: Any) -> None:
    attributes = attributes_of(reader, node)
    if attributes.get("training_mode", 0) or len([name for name in node.output if name]) > 1:
        raise UnsupportedError("is in training mode; export the model in evaluation mode")
    names = ("scale", "bias", "mean", "variance")
    scale, bias, mean, variance = (reader.required(node, i, name) for i, name in enumerate(names, 1))
    shapes = {value.shape for value in (scale, bias, mean, variance)}
    if len(shapes) > 1 or scale.ndim != 1:
        raise UnsupportedError(f"has parameters of the shapes {sorted(shapes)}; expected one value per channel each")
    if (variance < 0).any():
        raise UnsupportedError("has a negative variance; repair the model")
    deviation = np.sqrt(variance + attributes.get("epsilon", 1e-5))
    if (deviation == 0).any():
        raise UnsupportedError("has a variance of 0 and no epsilon; repair the model")
    gain = scale / deviation
    if reader.channel_axis(node) != 0:
        raise UnsupportedError(TRANSPOSED)
    _affine(reader, node, gain, bias - mean * gain)


def _arithmetic(reader: Reader, node: Any) -> None:
    """Add, Sub, Mul, Div with a constant per channel, and Add (or Sum) of two tensors."""
    if len(node.input) != 2 or not all(node.input):
        raise UnsupportedError(f"has {len([name for name in node.input if name])} operands; supported are two")
    if node.op_type in SUMS and not any(name in reader.constants for name in node.input):
        first, second = ((reader.views.get(name), reader.orders.get(name)) for name in node.input)
        if first != second:
            raise UnsupportedError("adds maps whose axes are ordered differently; supported is one order")
        reader.emit(Add(**_ends(reader, node), residual=reader.tensor(node.input[1])))
        reader.keep_layout(node)
        return
    first_is_constant = node.input[0] in reader.constants
    constant = reader.required(node, 0 if first_is_constant else 1, "operand")
    if first_is_constant:
        node.input[:] = [node.input[1], node.input[0]]
    shape = reader.shape(node)
    channel = reader.channel_axis(node)
    # Where the channels are merged with other axes, or have no axis, one number for all is left.
    if channel is None and constant.size == 1:
        constant, shape = constant.reshape(1), reader.shapes[reader.tensor(node.input[0])][:1]
    value = _per_channel(constant, shape, "operand", channel or 0)
    one, zero = np.ones(len(value)), np.zeros(len(value))
    if node.op_type in SUMS:
        gain, shift = one, value
    elif node.op_type == "Mul":
        gain, shift = value, zero
    elif node.op_type == "Sub":
        gain, shift = (-one, value) if first_is_constant else (one, -value)
    elif first_is_constant:
        raise UnsupportedError("divides a constant by data; supported is data divided by a constant")
    elif (value == 0).any():
        raise UnsupportedError("divides by 0")
    else:
        gain, shift = 1 / value, zero
    _affine(reader, node, gain, shift)


def _rectify(reader: Reader, node: Any, limit: float | None) -> None:
    reader.emit(Relu(**_ends(reader, node), limit=limit))
    reader.keep_layout(node)


def _relu(reader: Reader, node: Any) -> None:
    _rectify(reader, node, None)


def _leak(reader: Reader, node: Any, slope: np.ndarray) -> None:
    reader.emit(LeakyRelu(**_ends(reader, node), slope=slope))
    reader.keep_layout(node)


def _leaky_relu(reader: Reader, node: Any) -> None:
    _leak(reader, node, np.array([attributes_of(reader, node).get("alpha", 0.01)], np.float64))


def _prelu(reader: Reader, node: Any) -> None:
    slope = reader.required(node, 1, "slope")
    if slope.size > 1:
        slope = _per_channel(slope, reader.shape(node), "slope", reader.channel_axis(node) or 0)
        slope = _in_order(reader, node, slope)
    _leak(reader, node, slope.reshape(-1))


def _clip(reader: Reader, node: Any) -> None:
    attributes = attributes_of(reader, node)
    bounds = []
    for index, key in ((1, "min"), (2, "max")):
        given = reader.constant(node, index, key) if reader.opset >= 11 else attributes.get(key)
        if given is not None and np.size(given) != 1:
            raise UnsupportedError(f"{key} has {np.size(given)} values; expected one")
        bounds.append(None if given is None else float(np.asarray(given).reshape(-1)[0]))
    low, high = bounds
    if low != 0 and not ((low is None or low < 0) and _non_negative(reader, node.input[0])):
        raise UnsupportedError(f"clips below at {low}; supported is 0, as ReLU and ReLU6 do")
    _rectify(reader, node, _limit(high))


def _limit(value: float | None) -> float | None:
    """Upper bound of a clip; None if it is larger than any number that a model computes with."""
    if value is None or value >= _NO_LIMIT:
        return None
    if not value > 0:
        raise UnsupportedError(f"clips above at {value}; supported are bounds above 0")
    return value


def _non_negative(reader: Reader, name: str) -> bool:
    """Whether a tensor is a ReLU's, or was pooled or rearranged from one."""
    source = next((node for node in reader.nodes if node.output == reader.tensor(name)), None)
    if isinstance(source, MaxPool | AveragePool | Reshape) or (isinstance(source, Conv) and source.copy):
        return _non_negative(reader, source.input)
    return isinstance(source, Relu)


def _extremum(reader: Reader, node: Any) -> None:
    """Max with 0, and Min with a positive constant behind a ReLU: the two halves of a clip."""
    constants = [name for name in node.input if name in reader.constants]
    data = [name for name in node.input if name not in reader.constants]
    if len(constants) != 1 or len(data) != 1 or reader.constants[constants[0]].size != 1:
        raise UnsupportedError("supported is the extremum of one tensor and one constant number")
    value = float(reader.constants[constants[0]].reshape(-1)[0])
    node.input[:] = [data[0], constants[0]]
    if node.op_type == "Max":
        if value != 0:
            raise UnsupportedError(f"with {value}; supported is 0, as ReLU does")
        _rectify(reader, node, None)
        return
    if not _non_negative(reader, data[0]):
        raise UnsupportedError("of a tensor that can be negative; supported is Min behind a ReLU or Max with 0")
    _rectify(reader, node, _limit(value))


def _copy(
    reader: Reader,
    node: Any,
    channels: Sequence[int | None],
    stride: Shape = (1, 1),
    pads: Shape = (0, 0, 0, 0),
) -> None:
    """The channels of these numbers, None for one of zeros, at strided positions, zeros around."""
    given = reader.shapes[reader.tensor(node.input[0])][0]
    _check_size((len(channels), given))
    weight = np.zeros((len(channels), given, 1, 1))
    for output, channel in enumerate(channels):
        if channel is not None:
            weight[output, channel] = 1
    bias = np.zeros(len(weight))
    reader.emit(Conv(**_ends(reader, node), weight=weight, bias=bias, stride=stride, pads=pads, copy=True))
    reader.keep_layout(node)


def _integers(reader: Reader, node: Any, index: int, what: str) -> list[int] | None:
    value = reader.constant(node, index, what)
    if value is not None and value.dtype.kind not in "iu":
        raise UnsupportedError(f"{what} {node.input[index]!r} has type {value.dtype}; expected integers")
    return None if value is None else value.reshape(-1).tolist()


def _slice(reader: Reader, node: Any) -> None:
    attributes = attributes_of(reader, node)
    keys = ("starts", "ends", "axes", "steps")
    if reader.opset >= 10:
        starts, ends, axes, steps = (_integers(reader, node, index, key) for index, key in enumerate(keys, 1))
    else:
        starts, ends, axes, steps = (attributes.get(key) for key in keys)
    if starts is None or ends is None:
        raise UnsupportedError("has no starts or ends")
    rank = 1 + len(reader.shape(node))
    view = reader.view(node)
    shape = reader.shapes[reader.tensor(node.input[0])]
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise UnsupportedError(f"has {len(starts)} starts, {len(ends)} ends, {len(axes)} axes, {len(steps)} steps")
    chosen = [range(n) for n in shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = _axis(axis, rank)
        if step == 0:
            raise UnsupportedError("has a step of 0")
        if axis == 0:
            if start != 0 or step != 1 or end < _ALL:
                raise UnsupportedError("takes images out of the batch; supported are slices of a map")
        elif len(view[axis - 1]) == 1:
            (mapped,) = view[axis - 1]
            chosen[mapped] = range(shape[mapped])[start:end:step]
        elif (size := reader.shape(node)[axis - 1]) != len(range(size)[start:end:step]) or step != 1:
            raise UnsupportedError(f"slices axis {axis} of {dims(reader.shape(node))}, which is several axes merged")
    stride = (chosen[1].step, chosen[2].step)
    for taken, size, step in zip(chosen[1:], shape[1:], stride, strict=True):
        if step < 1 or taken != range(0, size, step):
            raise UnsupportedError(
                f"takes {len(taken)} of {size} rows or columns, from {taken.start} in steps of {step}; supported are "
                "steps over the whole axis"
            )
    if not chosen[0]:
        raise UnsupportedError("takes no channel")
    if chosen == [range(n) for n in shape]:
        reader.alias(node)
        return
    _copy(reader, node, chosen[0], stride=stride)


def _pad(reader: Reader, node: Any) -> None:
    attributes = attributes_of(reader, node)
    mode = attributes.get("mode", "constant")
    if mode != "constant":
        raise UnsupportedError(f"mode {mode!r}; supported is constant")
    if reader.opset >= 11:
        pads = _integers(reader, node, 1, "pads")
        value = reader.constant(node, 2, "value")
        axes = _integers(reader, node, 3, "axes")
    else:
        pads, value, axes = attributes.get("pads"), attributes.get("value", 0.0), None
    if value is not None and np.any(value):
        raise UnsupportedError(f"value {np.asarray(value).reshape(-1)[0]}; supported is 0")
    rank = 1 + len(reader.shape(node))
    axes = list(range(rank)) if axes is None else [_axis(axis, rank) for axis in axes]
    if pads is None or len(pads) != 2 * len(axes):
        raise UnsupportedError(f"pads {pads}; expected two per axis")
    view = ((), *reader.view(node))
    before, after = [0] * 3, [0] * 3
    for position, axis in enumerate(axes):
        ends = pads[position], pads[position + len(axes)]
        if min(ends) < 0 or (any(ends) and len(view[axis]) != 1):
            raise UnsupportedError(f"pads {pads}; supported are channels, rows and columns of zeros")
        if any(ends):
            before[view[axis][0]], after[view[axis][0]] = ends
    if not any(before + after):
        reader.alias(node)
        return
    channels = reader.shapes[reader.tensor(node.input[0])][0]
    _check_size((before[0] + channels + after[0],))
    taken = [None] * before[0] + list(range(channels)) + [None] * after[0]
    _copy(reader, node, taken, pads=(*before[1:], *after[1:]))


def _concat(reader: Reader, node: Any) -> None:
    if constant := [name for name in node.input if name in reader.constants]:
        raise UnsupportedError(f"joins the constant {constant[0]!r}; supported are tensors computed from the input")
    views = [reader.views.get(name) for name in node.input]
    if any(view != views[0] for view in views):
        raise UnsupportedError("joins maps whose axes are ordered differently; supported is one order")
    shape, axis = reader.shape(node), attributes_of(reader, node).get("axis", 1)
    index = _axis(axis, 1 + len(shape)) - 1
    plain = PLAIN if len(shape) == 3 else ((0,),)
    if index < 0 or (views[0] or plain)[index] != (0,):
        raise UnsupportedError(f"joins axis {axis} of {dims(shape)}; supported is the one of channels or features")
    if len(node.input) == 1:
        reader.alias(node)
        return
    sources = [reader.tensor(name) for name in node.input]
    reader.emit(Concat(**_ends(reader, node), others=tuple(sources[1:])))
    if views[0] is not None:
        reader.views[node.output[0]] = views[0]
    if any(name in reader.orders for name in node.input):
        order: list[int] = []
        for name, source in zip(node.input, sources, strict=True):
            own = reader.orders.get(name, tuple(range(reader.shapes[source][0])))
            start = len(order)
            order.extend(start + position for position in own)
        reader.orders[node.output[0]] = tuple(order)


def _resize(reader: Reader, node: Any) -> None:
    """Resize and Upsample that repeat every pixel."""
    attributes = attributes_of(reader, node)
    shape = reader.shape(node)
    view = reader.view(node)
    scales = _scales(reader, node, attributes, shape)
    factors = tuple(int(scale) if scale == int(scale) else 0 for scale in scales)
    by_axis = {axis: factor for axes, factor in zip(view, factors, strict=True) for axis in axes}
    if (
        min(factors) < 1
        or any(len(axes) != 1 and factor != 1 for axes, factor in zip(view, factors, strict=True))
        or (by_axis.get(0, 1) != 1)
    ):
        text = " x ".join(f"{scale:g}" for scale in scales)
        raise UnsupportedError(f"scales {dims(shape)} by {text}; supported are whole factors of height and width")
    if set(factors) == {1}:
        reader.alias(node)
        return
    mode = attributes.get("mode", "nearest")
    if mode != "nearest":
        raise UnsupportedError(f"mode {mode!r}; supported is nearest")
    for size, factor in zip(shape, factors, strict=True):
        if not _repeats(reader, node, attributes, size, factor):
            chosen = [str(attributes.get(key, "default")) for key in ("coordinate_transformation_mode", "nearest_mode")]
            raise UnsupportedError(
                f"takes other pixels than each one {factor} times ({', '.join(chosen)}); supported are modes that "
                "repeat pixels, such as asymmetric with floor"
            )
    reader.emit(Upsample(**_ends(reader, node), factors=(by_axis.get(1, 1), by_axis.get(2, 1))))
    reader.keep_layout(node)


def _scales(reader: Reader, node: Any, attributes: dict, shape: Shape) -> list[float]:
    """Scales of all axes but the batch, from the input of scales, that of sizes, or the attribute."""
    late = node.op_type == "Resize" and reader.opset >= 11
    scales = sizes = None
    if "scales" in attributes:
        scales = np.asarray(attributes["scales"])
    else:
        scales = reader.constant(node, 2 if late else 1, "scales")
        sizes = reader.constant(node, 3, "sizes") if late else None
    rank = 1 + len(shape)
    axes = [_axis(axis, rank) for axis in attributes.get("axes", range(rank))]
    scaled = sizes is None or sizes.size == 0
    values = scales if scaled else sizes
    if values is None or values.size != len(axes) or sorted(set(axes)) != sorted(axes):
        raise UnsupportedError(f"has no scales or sizes for the axes {axes}")
    if not scaled and attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnsupportedError("keeps the aspect ratio; supported is keep_aspect_ratio_policy='stretch'")
    given = dict(zip(axes, np.asarray(values, np.float64).reshape(-1).tolist(), strict=True))
    # A size of 0 is the batch, as reading a Shape writes it.
    if given.get(0, 1) not in ((1,) if scaled else (0, reader.fixed_batch)):
        raise UnsupportedError("scales the batch; supported are height and width")
    return [given.get(axis, 1.0 if scaled else size) / (1 if scaled else size) for axis, size in enumerate(shape, 1)]


def _repeats(reader: Reader, node: Any, attributes: dict, size: int, factor: int) -> bool:
    """Whether nearest resizing of an axis, as the operator defines it, takes pixel ``i // factor`` for pixel ``i``."""
    if factor == 1:
        return True
    late = node.op_type == "Resize" and reader.opset >= 11
    coordinates = attributes.get("coordinate_transformation_mode", "half_pixel" if late else "asymmetric")
    rounding = attributes.get("nearest_mode", "round_prefer_floor" if late else "floor")
    index = np.arange(size * factor)
    place: np.ndarray
    if coordinates == "asymmetric":
        place = index / factor
    elif coordinates in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
        place = (index + 0.5) / factor - 0.5
    elif coordinates == "tf_half_pixel_for_nn":
        place = (index + 0.5) / factor
    elif coordinates == "align_corners":
        place = index * ((size - 1) / (size * factor - 1))
    else:
        return False
    nearest = {
        "floor": np.floor(place),
        "ceil": np.ceil(place),
        "round_prefer_floor": np.ceil(place - 0.5),
        "round_prefer_ceil": np.floor(place + 0.5),
    }.get(rounding)
    return nearest is not None and np.array_equal(np.clip(nearest, 0, size - 1), index // factor)


def _softmax(reader: Reader, node: Any) -> None:
    """A last softmax does not change which logit is the largest."""
    rank = 1 + len(reader.shape(node))
    axis = _axis(attributes_of(reader, node).get("axis", -1 if reader.opset >= 13 else 1), rank)
    # Before version 13 all axes from this one on are one.
    merged = () if reader.opset >= 13 else reader.shape(node)[axis:]
    if node.output[0] not in reader.last or axis == 0 or axis - 1 != reader.channel_axis(node) or prod(merged) != 1:
        raise UnsupportedError(
            "is not the model's output over its classes, axis=1; supported is that, which the host can compute, "
            "because the logits have the same order"
        )
    _drop(reader, node)


def _sigmoid(reader: Reader, node: Any) -> None:
    if node.output[0] not in reader.last:
        raise UnsupportedError(
            "is not the model's output; supported is that, which the host can compute. Use ReLU or ReLU6 inside"
        )
    _drop(reader, node)


def _drop(reader: Reader, node: Any) -> None:
    reader.dropped.append(f"{node.op_type} {node.name!r}")
    reader.alias(node)


def _pool(reader: Reader, node: Any) -> None:
    attributes = attributes_of(reader, node)
    if len([name for name in node.output if name]) > 1:
        raise UnsupportedError("returns indices; supported is the pooled map alone")
    axes = _spatial(reader, node)
    if "kernel_shape" not in attributes:
        raise UnsupportedError("has no kernel_shape")
    kernel = _per_axis(attributes["kernel_shape"], "kernel_shape", len(axes))
    stride = _per_axis(attributes.get("strides"), "strides", len(axes))
    dilation = _per_axis(attributes.get("dilations"), "dilations", len(axes))
    if any(d != 1 for d in dilation):
        raise UnsupportedError(f"dilations {list(dilation)}; supported are pools without dilation")
    if min(kernel + stride) < 1:
        raise UnsupportedError(f"kernel_shape {list(kernel)}, strides {list(stride)}; expected at least 1")
    sizes = reader.shape(node)[1:]
    pads = _pads(attributes, reader.shape(node), kernel, stride, dilation)
    grown = _ceil_mode_pads(sizes, kernel, stride, pads) if attributes.get("ceil_mode", 0) else pads
    if set(kernel + stride) == {1} and not any(grown):
        reader.alias(node)
        return
    if any(pad >= size for pad, size in zip(grown, kernel * 2, strict=True)):
        raise UnsupportedError(f"pads {list(grown)} must be smaller than the window {list(kernel)}")
    window: dict[str, Any] = {"kernel": _on_map(kernel, axes, 1), "stride": _on_map(stride, axes, 1)}
    window["pads"] = _pads_on_map(grown, axes)
    if node.op_type == "MaxPool":
        reader.emit(MaxPool(**_ends(reader, node), **window))
        reader.keep_layout(node)
        return
    area = _common_area(sizes, kernel, stride, grown, pads if attributes.get("count_include_pad", 0) else None)
    ends = _ends(reader, node)
    if area == prod(kernel):
        reader.emit(AveragePool(**ends, **window))
    else:
        summed = ends["output"] + ".windows"
        reader.emit(AveragePool(**{**ends, "output": summed}, **window))
        channels = reader.shapes[summed][0]
        gain = np.full(channels, prod(kernel) / area)
        reader.emit(
            Affine(
                name=ends["name"] + ".area", input=summed, output=ends["output"], gain=gain, shift=np.zeros(channels)
            )
        )
    reader.keep_layout(node)


def _ceil_mode_pads(sizes: Shape, kernel: Shape, stride: Shape, pads: Shape) -> Shape:
    """Pads that give the positions of ceil_mode: windows may run out at the end but must start inside the map."""
    after = []
    for axis, size in enumerate(sizes):
        before, end = pads[axis], pads[len(sizes) + axis]
        exact = size + before + end - kernel[axis]
        count = -(-exact // stride[axis]) + 1
        if (count - 1) * stride[axis] >= size + before:
            count -= 1
        if count > window_positions(size, kernel[axis], stride[axis], 1, before, end):
            end += (count - 1) * stride[axis] - exact
        after.append(end)
    return (*pads[: len(sizes)], *after)


def _common_area(sizes: Shape, kernel: Shape, stride: Shape, pads: Shape, counted: Shape | None) -> int:
    """Pixels that every window of an average is divided by: those of the map and, of the pads, those counted."""
    area = 1
    for axis, size in enumerate(sizes):
        before, after = pads[axis], pads[len(sizes) + axis]
        inner, outer = (0, 0) if counted is None else (counted[axis], counted[len(sizes) + axis])
        starts = range(-before, size + after - kernel[axis] + 1, stride[axis])
        lengths = {min(start + kernel[axis], size + outer) - max(start, -inner) for start in starts}
        if len(lengths) > 1:
            raise UnsupportedError(
                "windows at the border differ in area, because pads or positions of ceil_mode=1 are not counted; "
                "supported is count_include_pad=1, or windows of one area"
            )
        area *= max(1, *lengths) if lengths else 1
    return area


def _global_pool(reader: Reader, node: Any) -> None:
    _spatial(reader, node)
    _reduced(reader, node, {1, 2}, node.output[0])
    reader.keep_layout(node)


def _reduced(reader: Reader, node: Any, axes: set[int], output: str) -> None:
    """One pool over whole axes of the map, to tensor ``output``."""
    ends = {**_ends(reader, node), "output": output}
    _, height, width = reader.shapes[ends["input"]]
    kernel = (height if 1 in axes else 1, width if 2 in axes else 1)
    if kernel == (1, 1):
        reader.aliases[output] = ends["input"]
    else:
        kind = AveragePool if node.op_type in ("GlobalAveragePool", "ReduceMean") else MaxPool
        reader.emit(kind(**ends, kernel=kernel, stride=(1, 1)))


def _reduce(reader: Reader, node: Any) -> None:
    attributes = attributes_of(reader, node)
    axes = attributes.get("axes")
    if axes is None:
        axes = _integers(reader, node, 1, "axes") or []
    view = reader.view(node)
    reduced = {_axis(axis, 1 + len(view)) - 1 for axis in axes}
    mapped = {axis for position in reduced if position >= 0 for axis in view[position]}
    if not reduced or -1 in reduced or 0 in mapped:
        what = "mean" if node.op_type == "ReduceMean" else "maximum"
        raise UnsupportedError(
            f"reduces axes {list(axes)} of {dims(reader.shape(node))}; supported is the {what} over height and width, "
            "axes [2, 3]"
        )
    kept = tuple(axes for position, axes in enumerate(view) if position not in reduced)
    output = node.output[0]
    if len(kept) == 1 and not attributes.get("keepdims", 1):
        _reduced(reader, node, mapped, output + ".pooled")
        reader.flatten(node.name + ".flatten", reader.tensor(output + ".pooled"), output, kept[0])
    else:
        _reduced(reader, node, mapped, output)
        reader.set_view(output, view if attributes.get("keepdims", 1) else kept)


def _flatten(reader: Reader, node: Any) -> None:
    shape = reader.shape(node)
    axis = attributes_of(reader, node).get("axis", 1)
    position = axis if axis == 1 + len(shape) else _axis(axis, 1 + len(shape))
    if position == 0 or prod(shape[: position - 1]) != 1:
        raise UnsupportedError(f"axis={axis}; supported is axis=1, which keeps the batch")
    _emit_reshape(reader, node, (prod(shape),))


def _reshape(reader: Reader, node: Any) -> None:
    shape = reader.shape(node)
    sizes = _integers(reader, node, 1, "shape")
    if sizes is None:
        raise UnsupportedError("has no shape input")
    if attributes_of(reader, node).get("allowzero", 0) and 0 in sizes[1:]:
        raise UnsupportedError(f"target shape {sizes} has no values (allowzero=1)")
    rest = [shape[i - 1] if n == 0 and i <= len(shape) else n for i, n in enumerate(sizes[1:], 1)]
    keeps_batch = bool(sizes) and (sizes[0] in (0, reader.fixed_batch) or (sizes[0] == -1 and -1 not in rest))
    if rest.count(-1) == 1 and prod(n for n in rest if n != -1) > 0:
        rest[rest.index(-1)] = prod(shape) // prod(n for n in rest if n != -1)
    if not keeps_batch or not rest or prod(rest) != prod(shape):
        raise UnsupportedError(f"target shape {sizes} does not keep the batch of {dims(shape)}")
    _emit_reshape(reader, node, tuple(int(n) for n in rest))


def _emit_reshape(reader: Reader, node: Any, rest: Shape) -> None:
    shape = reader.shape(node)
    source = reader.tensor(node.input[0])
    if rest == shape:
        reader.alias(node)
    elif len(reader.shapes[source]) == 3:
        view = _regrouped(reader.shapes[source], reader.view(node), rest)
        if view is None:
            raise UnsupportedError(
                f"turns {dims(shape)} into {dims(rest)}; supported is flattening, and axes that are merged or have "
                "size 1"
            )
        if len(rest) == 1:
            reader.flatten(node.name, source, node.output[0], view[0])
        else:
            _viewed(reader, node, view)
    elif shape[0] in rest and prod(rest) == shape[0] and node.input[0] not in reader.orders and source != reader.input:
        reader.emit(Reshape(**_ends(reader, node), shape=(shape[0], 1, 1)))
        channel = rest.index(shape[0])
        reader.set_view(node.output[0], tuple((0,) if axis == channel else () for axis in range(len(rest))))
    else:
        if source == reader.input:
            reader.wanted.append(rest)
        raise UnsupportedError(
            f"turns {dims(shape)} into {dims(rest)}; supported is that of the model's input, and axes of size 1"
        )


def _regrouped(shape: Shape, view: View, rest: Shape) -> View | None:
    """View of the axes of ``view`` merged to the sizes ``rest``; None if an axis would be split."""
    axes = iter([axis for axes in view for axis in axes if shape[axis] > 1])
    groups = []
    for size in rest:
        group: Shape = ()
        while prod(shape[axis] for axis in group) < size and (axis := next(axes, None)) is not None:
            group += (axis,)
        if prod(shape[axis] for axis in group) != size:
            return None
        groups.append(group)
    return tuple(groups)


def _viewed(reader: Reader, node: Any, view: View) -> None:
    """The output is the input with its axes in another order, merged or apart; nothing is computed."""
    reader.aliases[node.output[0]] = reader.tensor(node.input[0])
    reader.set_view(node.output[0], view)


def _transpose(reader: Reader, node: Any) -> None:
    shape = reader.shape(node)
    order = list(attributes_of(reader, node).get("perm", range(len(shape), -1, -1)))
    if sorted(order) != list(range(1 + len(shape))) or order[0] != 0:
        raise UnsupportedError(f"perm {order} of {dims(shape)}; supported is any order that keeps the batch first")
    if len(shape) == 1:
        reader.alias(node)
    else:
        view = reader.view(node)
        _viewed(reader, node, tuple(view[axis - 1] for axis in order[1:]))


def _squeeze(reader: Reader, node: Any) -> None:
    """Squeeze and Unsqueeze: axes of size 1, but the batch, come and go."""
    shape = reader.shape(node)
    axes = attributes_of(reader, node).get("axes")
    if axes is None:
        axes = _integers(reader, node, 1, "axes")
    if node.op_type == "Unsqueeze":
        if axes is None:
            raise UnsupportedError("has no axes")
        rank = 1 + len(shape) + len(axes)
        added = {_axis(axis, rank) for axis in axes}
        if 0 in added or len(added) != len(axes):
            raise UnsupportedError(f"axes {list(axes)} of {dims(shape)}; expected different ones behind the batch")
        sizes = iter(shape)
        rest = tuple(1 if axis in added else next(sizes) for axis in range(1, rank))
    else:
        if axes is None and reader.fixed_batch == 1:
            raise UnsupportedError("without axes would drop a batch of one; supported are axes [2, 3]")
        if axes is None:
            axes = [axis for axis, size in enumerate(shape, 1) if size == 1]
        drop = {_axis(axis, 1 + len(shape)) for axis in axes}
        if 0 in drop or any(shape[axis - 1] != 1 for axis in drop):
            raise UnsupportedError(f"axes {list(axes)} of {dims(shape)}; supported are axes of size 1")
        rest = tuple(n for i, n in enumerate(shape, 1) if i not in drop)
    _emit_reshape(reader, node, rest)


def _identity(reader: Reader, node: Any) -> None:
    if node.op_type == "Dropout" and (value := reader.constant(node, 2, "training_mode")) is not None and value.any():
        raise UnsupportedError("is in training mode; export the model in evaluation mode")
    reader.alias(node)


def _cast(reader: Reader, node: Any) -> None:
    types = reader.onnx.TensorProto
    target = attributes_of(reader, node).get("to")
    if target not in (types.FLOAT, types.FLOAT16, types.DOUBLE, types.BFLOAT16):
        name = types.DataType.Name(target).lower() if target in types.DataType.values() else target
        raise UnsupportedError(f"casts to {name}; supported are types of real numbers")
    reader.alias(node)


HANDLERS: dict[str, Callable[[Reader, Any], None]] = {
    "Add": _arithmetic,
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
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
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "Relu": _relu,
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": _sigmoid,
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": _arithmetic,
    "Sum": _arithmetic,
    "Transpose": _transpose,
    "Unsqueeze": _squeeze,
    "Upsample": _resize,
}

SUMS = ("Add", "Sum")
ARITHMETIC = (*SUMS, "Div", "Mul", "Sub")
#: Operators whose first input may be a constant.
CONSTANT_FIRST = (*ARITHMETIC, "MatMul", "Max", "Min")
#: Operators that are read on vectors that were flattened from maps whose axes are in another order.
ANY_ORDER = ("Add", "BatchNormalization", "Cast", "Clip", "Concat", "Div", "Dropout", "Flatten", "Gemm",
              "Identity", "LeakyRelu", "LogSoftmax", "MatMul", "Max", "Min", "Mul", "PRelu", "Relu", "Reshape",
              "Sigmoid", "Softmax", "Squeeze", "Sub", "Sum", "Unsqueeze")  # fmt: skip
