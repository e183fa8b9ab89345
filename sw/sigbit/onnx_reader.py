"""Read an ONNX classifier into a :class:`~sigbit.graph.Graph`; everything that is not supported is reported at once."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .graph import (
    Affine,
    AveragePool,
    Conv,
    Graph,
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


class _UnsupportedError(Exception):
    """Why one node cannot be read; collected, never seen outside."""


class _Reader:
    """State while one ONNX graph is walked in order."""

    def __init__(self, onnx: Any, opset: int, fixed_batch: int | None) -> None:
        self.onnx = onnx
        self.opset = opset
        self.fixed_batch = fixed_batch
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, Shape] = {}
        self.aliases: dict[str, str] = {}
        self.unknown: set[str] = set()
        self.nodes: list[Node] = []

    def tensor(self, name: str) -> str:
        return self.aliases.get(name, name)

    def shape(self, node: Any) -> Shape:
        return self.shapes[self.tensor(node.input[0])]

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
            self.shapes[node.output] = node.output_shape(self.shapes[node.input])
        except ModelError as error:
            raise _UnsupportedError(str(error)) from None
        self.nodes.append(node)

    def alias(self, node: Any) -> None:
        self.aliases[node.output[0]] = self.tensor(node.input[0])


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
    reader.emit(Linear(**_ends(reader, node), weight=weight * attributes.get("alpha", 1.0), bias=bias))


def _matmul(reader: _Reader, node: Any) -> None:
    if node.input[0] in reader.constants:
        raise _UnsupportedError("the constant is the left factor; supported is data times constant matrix")
    weight = reader.required(node, 1, "right factor")
    if weight.ndim != 2:
        raise _UnsupportedError(f"right factor has shape {weight.shape}; supported is a matrix")
    reader.emit(Linear(**_ends(reader, node), weight=weight.T, bias=np.zeros(weight.shape[1])))


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
    """Add, Sub, Mul, Div with a constant per channel."""
    first_is_constant = node.input[0] in reader.constants
    data = reader.tensor(node.input[1 if first_is_constant else 0])
    shape = reader.shapes[data]
    value = _per_channel(reader.required(node, 0 if first_is_constant else 1, "operand"), shape, "operand")
    one, zero = np.ones(shape[0]), np.zeros(shape[0])
    if node.op_type == "Add":
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


def _relu(reader: _Reader, node: Any) -> None:
    reader.emit(Relu(**_ends(reader, node)))


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
    reader.emit(kind(**_ends(reader, node), kernel=_map(reader, node)[1:], stride=(1, 1)))


def _reduce_mean(reader: _Reader, node: Any) -> None:
    attributes = _attributes(reader, node)
    axes = attributes.get("axes")
    if axes is None:
        given = reader.constant(node, 1, "axes")
        axes = [] if given is None else given.reshape(-1).tolist()
    shape = _map(reader, node)
    if sorted(axis % 4 for axis in axes) != [2, 3]:
        raise _UnsupportedError(f"reduces axes {list(axes)}; supported is the mean over height and width, axes [2, 3]")
    ends = _ends(reader, node)
    if attributes.get("keepdims", 1):
        reader.emit(AveragePool(**ends, kernel=shape[1:], stride=(1, 1)))
        return
    pooled = node.output[0] + ".pooled"
    reader.emit(AveragePool(**{**ends, "output": pooled}, kernel=shape[1:], stride=(1, 1)))
    reader.emit(Reshape(**{**ends, "name": node.name + ".flatten", "input": pooled}, shape=(shape[0],)))


def _flatten(reader: _Reader, node: Any) -> None:
    axis = _attributes(reader, node).get("axis", 1)
    shape = reader.shape(node)
    if axis % (1 + len(shape)) != 1:
        raise _UnsupportedError(f"axis={axis}; supported is axis=1, which keeps the batch")
    reader.emit(Reshape(**_ends(reader, node), shape=(prod(shape),)))


def _reshape(reader: _Reader, node: Any) -> None:
    shape = reader.shape(node)
    target = reader.constant(node, 1, "shape")
    if target is None:
        raise _UnsupportedError("has no shape input")
    sizes = target.reshape(-1).tolist()
    if _attributes(reader, node).get("allowzero", 0):
        raise _UnsupportedError("allowzero=1; supported is allowzero=0")
    rest = [shape[i - 1] if n == 0 and i <= len(shape) else n for i, n in enumerate(sizes[1:], 1)]
    keeps_batch = bool(sizes) and (sizes[0] in (0, reader.fixed_batch) or (sizes[0] == -1 and -1 not in rest))
    if rest.count(-1) == 1 and prod(n for n in rest if n != -1) > 0:
        rest[rest.index(-1)] = prod(shape) // prod(n for n in rest if n != -1)
    if not keeps_batch or not rest or prod(rest) != prod(shape):
        raise _UnsupportedError(f"target shape {sizes} does not keep the batch of {_text(shape)}")
    _emit_reshape(reader, node, tuple(int(n) for n in rest))


def _emit_reshape(reader: _Reader, node: Any, rest: Shape) -> None:
    shape = reader.shape(node)
    if rest == shape:
        reader.alias(node)
    elif len(rest) == 1 or (len(shape) == 1 and rest[1:] == (1, 1)):
        reader.emit(Reshape(**_ends(reader, node), shape=rest))
    else:
        raise _UnsupportedError(f"turns {_text(shape)} into {_text(rest)}; supported is flattening to N x features")


def _squeeze(reader: _Reader, node: Any) -> None:
    """Squeeze and Unsqueeze between N x C x 1 x 1 and N x C."""
    shape = reader.shape(node)
    axes = _attributes(reader, node).get("axes")
    if axes is None:
        given = reader.constant(node, 1, "axes")
        axes = None if given is None else given.reshape(-1).tolist()
    rank = 1 + len(shape)
    if node.op_type == "Unsqueeze":
        if len(shape) != 1 or axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
            raise _UnsupportedError(f"axes {axes}; supported is N x C to N x C x 1 x 1, axes [2, 3]")
        rest: Shape = (shape[0], 1, 1)
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
    "Conv": _conv,
    "Div": _arithmetic,
    "Dropout": _identity,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "Identity": _identity,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "Mul": _arithmetic,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Sub": _arithmetic,
    "Unsqueeze": _squeeze,
}

_ARITHMETIC = ("Add", "Div", "Mul", "Sub")

#: Operators that the reader understands; any deterministic operator on constants alone is evaluated, too.
SUPPORTED = tuple(_HANDLERS)

_HINTS = {
    "Softmax": "cut it off; the logits have the same order",
    "LogSoftmax": "cut it off; the logits have the same order",
    "ArgMax": "cut it off; the classifier's logits are the output",
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
    reader = _Reader(onnx, opset, batch)
    reader.constants.update(constants)
    reader.shapes[name] = shape
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
    return Graph(path.stem, name, output, shape, tuple(reader.nodes))


def _check_without_shapes(reader: _Reader, node: Any) -> None:
    """What can be said of a node even behind one that is not supported, so that one run names every obstacle."""
    if node.op_type in _ARITHMETIC and not any(name in reader.constants for name in node.input):
        raise _UnsupportedError("combines two computed tensors; supported is one constant, per tensor or per channel")
    if node.op_type == "Conv" and (group := _attributes(reader, node).get("group", 1)) != 1:
        raise _UnsupportedError(f"group={group}; supported is group=1")


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
        if inputs[0] in reader.constants and node.op_type not in (*_ARITHMETIC, "MatMul"):
            raise _UnsupportedError(
                f"data input {inputs[0]!r} is a constant; expected a tensor computed from the input"
            )
        _HANDLERS[node.op_type](reader, node)
    except _UnsupportedError as error:
        problems.append(f"{label}: {error}")
        reader.unknown.update(node.output)
