"""Read an ONNX network into a :class:`~sigbit.graph.Graph`; everything that is not supported is reported at once.

The operators are in :mod:`.onnx_operators`; here are the file, its constants, its input and the order of work.
"""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .graph import Graph, ModelError, Shape
from .onnx_operators import (
    ANY_ORDER,
    ARITHMETIC,
    CONSTANT_FIRST,
    HANDLERS,
    MOST_CONSTANTS,
    MOST_VALUES,
    PLAIN,
    SUMS,
    TRANSPOSED,
    Reader,
    UnsupportedError,
    View,
    attributes_of,
    dims,
)

__all__ = ["OPSET_MAX", "OPSET_MIN", "SUPPORTED", "read_onnx"]

#: Versions of the default operator set whose definitions the reader follows.
OPSET_MIN = 7
OPSET_MAX = 26

#: Constants up to this size can be shapes.
_FEW_VALUES = 64

#: Names of nodes that a message lists at most.
_MOST_NAMES = 100

#: Operators that the reader understands; any deterministic operator on constants alone is evaluated, too.
SUPPORTED = tuple(HANDLERS)

#: Operators that compute nothing, so that the host can leave out what is behind them.
_RENAMING = ("Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
#: Operators of quantized models.
_INTEGER = ("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QGemm", "QuantizeLinear")

_HINTS = {
    "ArgMax": "cut it off; the classifier's logits are the output",
    "HardSigmoid": "use ReLU or ReLU6",
    "HardSwish": "use ReLU or ReLU6",
}


class _Problem(NamedTuple):
    """A node that cannot be read: operator, name, shape of its input if it is known, and why."""

    kind: str
    name: str
    shape: str
    reason: str


def _import_onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.inliner
        import onnx.numpy_helper
        import onnx.reference
        import onnx.shape_inference
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
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
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
    if not model.graph.output:
        raise ModelError(f"{str(path)!r} has no output")
    name, kind = inputs[0].name, inputs[0].type.tensor_type
    if kind.elem_type not in (1, 10, 11):
        raise ModelError(
            f"Input {name!r} has ONNX type {kind.elem_type}; supported are float, float16 and double. Export the float "
            "model; images of 8 bits are normalized by the host"
        )
    supported = "supported are N x C x H x W, N x C x length and N x features"
    if not kind.HasField("shape"):
        raise ModelError(f"Input {name!r} has no shape; {supported} with fixed sizes")
    sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]
    if sizes and sizes[0] == -1:
        sizes[0] = "?"
    text = " x ".join(map(str, sizes)) or "scalar"
    if not 2 <= len(sizes) <= 4:
        raise ModelError(f"Input {name!r} has shape {text}; {supported}")
    dynamic = [size for size in sizes[1:] if isinstance(size, str)]
    if dynamic:
        raise ModelError(
            f"Input {name!r} has shape {text}; only the batch may be dynamic, not {', '.join(map(repr, dynamic))}. "
            "Export with fixed sizes, or fix them with onnxruntime.tools.make_dynamic_shape_fixed"
        )
    if any(size < 1 for size in sizes if not isinstance(size, str)):
        raise ModelError(f"Input {name!r} has shape {text}; every size must be at least 1")
    shape = tuple(int(size) for size in sizes[1:])
    if prod(shape) > MOST_VALUES:
        raise ModelError(f"Input {name!r} has shape {text}, {prod(shape)} values per image; at most {MOST_VALUES}")
    return name, shape, sizes[0] if isinstance(sizes[0], int) else None


def _layouts(shape: Shape, transposes: bool) -> list[tuple[Shape, View]]:
    """Maps, and vectors, that an input of ``shape`` can be, and what the axes of the input are in them.

    Which one it is shows in what the model does with it: before a convolution, channels come first. Channels are taken
    to be last only where there are few of them, or the model transposes something. Of several layouts that can be read
    the first one is taken.
    """
    layouts: list[tuple[Shape, View]]
    few = shape[-1] <= 4 < shape[0]
    if len(shape) == 1:
        return [(shape, ((0,),))]
    if len(shape) == 2:
        first, second = shape
        layouts = [((1, first, second), ((1,), (2,))), ((first, 1, second), ((0,), (2,)))]
        return [*layouts, ((second, 1, first), ((2,), (0,)))] if few or transposes else layouts
    layouts = [(shape, PLAIN)]
    channels_last: tuple[Shape, View] = ((shape[2], shape[0], shape[1]), ((1,), (2,), (0,)))
    return [channels_last, *layouts] if few else [*layouts, channels_last] if transposes else layouts


def _layouts_of_vector(shape: Shape, transposes: bool) -> list[tuple[Shape, View]]:
    """The same for vectors that the model reshapes to ``shape`` first."""
    if not 2 <= len(shape) <= 3:
        return []
    return [(mapped, (tuple(axis for axes in view for axis in axes),)) for mapped, view in _layouts(shape, transposes)]


def _last_tensors(model: Any) -> set[str]:
    readers = Counter(name for node in model.graph.node for name in node.input)
    last = {value.name for value in model.graph.output if not readers[value.name]}
    for node in reversed(model.graph.node):
        if node.op_type in _RENAMING and last.intersection(node.output):
            last.update(name for name in node.input[:1] if readers[name] == 1)
    return last


def _check_names(model: Any, constants: dict, path: Path) -> None:
    """Every tensor is written once, and every output of the model at all."""
    written = Counter(name for node in model.graph.node for name in node.output if name)
    written.update({value.name for value in model.graph.input} | constants.keys())
    problems = [f"tensor {name!r} is written {count} times" for name, count in written.items() if count > 1]
    problems += [f"nothing writes output {v.name!r}" for v in model.graph.output if v.name not in written]
    if problems:
        more = f", and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ModelError(f"{str(path)!r} is not a valid graph: {', '.join(problems[:10])}{more}")


def _check_is_float(model: Any, constants: dict, path: Path) -> None:
    known = constants.keys() | {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    integer = Counter(
        node.op_type
        for node in model.graph.node
        if (node.op_type in _INTEGER or node.op_type.startswith("QLinear")) and node.input[0] not in known
    )
    if integer:
        found = ", ".join(f"{count} {kind}" for kind, count in integer.items())
        raise ModelError(
            f"{str(path)!r} is quantized already ({found}); sigbit chooses and calibrates formats itself: export the "
            "float model"
        )


def _inferred_shapes(onnx: Any, model: Any) -> dict[str, Shape]:
    """Shapes of tensors as ONNX infers them, a free batch as 0; those with other sizes that are free are left out."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # protobuf and onnx raise several types; what is wrong shows when the nodes are read
        return {}
    shapes = {}
    for value in (*graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims[1:]):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    return shapes


def _fold(reader: Reader, node: Any) -> None:
    """Evaluate a node whose inputs are all constants."""
    onnx = reader.onnx
    if node.op_type == "Shape" and node.input[0] not in reader.constants:
        # 0 is the batch: Reshape reads it as "copy".
        sizes = np.array((0, *reader.shape(node)), np.int64)
        attributes = attributes_of(reader, node)
        reader.constants[node.output[0]] = sizes[attributes.get("start", 0) : attributes.get("end", len(sizes))]
        return
    helper, feeds = onnx.helper, {name: reader.constants[name] for name in node.input if name}
    try:
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in feeds.items()
        ]
        outputs = [helper.make_tensor_value_info(name, 0, None) for name in node.output if name]
        small = [onnx.numpy_helper.from_array(array, key) for key, array in feeds.items() if array.size <= _FEW_VALUES]
        graph = helper.make_graph([node], "constant", inputs, outputs, small)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", reader.opset)])
        most = max(map(prod, _inferred_shapes(onnx, model).values()), default=0) if feeds else 0
        if most > MOST_CONSTANTS:
            raise UnsupportedError(f"makes a constant of {most} values; at most {MOST_CONSTANTS}")
        results = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    except UnsupportedError:
        raise
    except Exception as error:  # the reference evaluator raises whatever NumPy raises
        raise UnsupportedError(f"cannot be evaluated on its constant inputs: {error}") from None
    reader.constants.update(zip((name for name in node.output if name), map(np.asarray, results), strict=True))


def _foldable(reader: Reader, node: Any) -> bool:
    if node.op_type == "Shape" and node.input and reader.tensor(node.input[0]) in reader.shapes:
        return True
    if node.op_type == "Constant":
        return not node.input
    inputs = [name for name in node.input if name]
    return bool(inputs) and "Random" not in node.op_type and all(name in reader.constants for name in inputs)


def read_onnx(path: str | Path) -> Graph:
    """Read an ONNX model with one float input and one or more outputs.

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
    _check_names(model, constants, path)
    _check_is_float(model, constants, path)
    name, shape, batch = _read_input(model, constants, path)
    used: set[str] = set()
    for index, node in enumerate(model.graph.node):
        wanted = node.name or f"{node.op_type}_{index}"
        node.name = wanted if wanted not in used else f"{wanted}_{index}"
        used.add(node.name)

    last, written = _last_tensors(model), {name for node in model.graph.node for name in node.output}

    def attempt(layout: tuple[Shape, View], inferred: dict) -> tuple[Reader, list[_Problem]]:
        reader = Reader(onnx, opset, last, written, constants, inferred)
        reader.input, reader.fixed_batch = name, batch
        reader.shapes[name] = layout[0]
        if len(layout[0]) == 3:
            reader.set_view(name, layout[1])
        problems: list[_Problem] = []
        for node in model.graph.node:
            _read_node(reader, node, problems)
        return reader, problems

    best: tuple[int, tuple[Shape, View]] | None = None
    transposes = any(node.op_type == "Transpose" for node in model.graph.node)
    layouts = _layouts(shape, transposes)
    for layout in layouts:
        reader, problems = attempt(layout, {})
        if not problems:
            break
        layouts += [found for rest in reader.wanted for found in _layouts_of_vector(rest, transposes)]
        if best is None or len(reader.unknown) < best[0]:
            best = len(reader.unknown), layout
    else:
        # The layout that gets furthest; again, so that what stands behind the obstacles is checked as well.
        assert best is not None
        _, problems = attempt(best[1], _inferred_shapes(onnx, model))
        raise ModelError(_explained(path, problems))
    names = [value.name for value in model.graph.output]
    if lost := [repr(output) for output in names if reader.tensor(output) not in reader.shapes]:
        raise ModelError(f"Output {', '.join(lost)} of {str(path)!r} does not depend on input {name!r}")
    # Several names of one tensor are one output.
    outputs = tuple(dict.fromkeys(map(reader.tensor, names)))
    for output in names:
        tensor = reader.tensor(output)
        axes = [axis for group in reader.views.get(output, ()) for axis in group if reader.shapes[tensor][axis] > 1]
        if axes != sorted(axes) or output in reader.orders:
            reader.dropped.append(f"transposition of {tensor!r}")
    return Graph(path.stem, name, outputs, layout[0], tuple(reader.nodes), tuple(reader.dropped))


def _explained(path: Path, problems: list[_Problem]) -> str:
    """All problems; nodes of one kind with the same problem share a line, and very many names are counted only."""
    groups: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        shape = f" ({problem.shape})" if problem.shape else ""
        groups.setdefault((problem.kind, problem.reason), []).append(f"{problem.name!r}{shape}")
    lines, left = [], _MOST_NAMES
    for (kind, reason), names in groups.items():
        shown = names[: max(1, left)]
        left -= len(shown)
        more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
        lines.append(f"{kind} {', '.join(shown)}{more}: {reason}")
    hidden = lines[_MOST_NAMES:]
    lines = lines[:_MOST_NAMES] + [f"... and {len(hidden)} more kinds of problems"] * bool(hidden)
    return (
        f"{str(path)!r} has {len(problems)} unsupported or broken node{'s' * (len(problems) > 1)}:\n  "
        + "\n  ".join(lines)
        + f"\nSupported operators: {', '.join(SUPPORTED)}"
    )


def _check_without_shapes(reader: Reader, node: Any) -> None:
    """What can be said of a node even behind one that is not supported, so that one run names every obstacle."""
    computed = not any(name in reader.constants for name in node.input)
    if node.op_type in ARITHMETIC and node.op_type not in SUMS and computed:
        raise UnsupportedError("combines two computed tensors; supported is one constant, per tensor or per channel")


def _is_unknown_number(reader: Reader, node: Any) -> bool:
    """Whether a node computes with sizes of a tensor behind an obstacle."""
    if node.op_type in ("Shape", "Size") and node.input:
        return reader.tensor(node.input[0]) in reader.unknown
    inputs = {name for name in node.input if name and name not in reader.constants}
    return bool(inputs) and inputs <= reader.unknown_numbers


def _check_schema(reader: Reader, node: Any) -> None:
    """Attributes and inputs have the types that ONNX defines for the operator."""
    context = reader.onnx.checker.C.CheckerContext()
    context.ir_version = reader.onnx.IR_VERSION
    context.opset_imports = {"": reader.opset}
    try:
        reader.onnx.checker.check_node(node, context)
    except reader.onnx.checker.ValidationError as error:
        reason = str(error).split("\n")[0]
        raise UnsupportedError(f"is not valid in operator set {reader.opset}: {reason}") from None


def _read_node(reader: Reader, node: Any, problems: list[_Problem]) -> None:
    # Handlers may order its inputs.
    node = type(node).FromString(node.SerializeToString()) if node.op_type in CONSTANT_FIRST else node
    domain = node.domain if node.domain not in ("", "ai.onnx") else ""
    try:
        if not domain and _foldable(reader, node):
            _fold(reader, node)
            return
        if not domain and _is_unknown_number(reader, node):
            reader.unknown.update(node.output)
            reader.unknown_numbers.update(node.output)
            return
        if domain or node.op_type not in HANDLERS:
            hint = _HINTS.get(node.op_type, "replace it by supported operators, or cut the model before it")
            raise UnsupportedError(f"operator {domain + '.' if domain else ''}{node.op_type} is not supported; {hint}")
        _check_schema(reader, node)
        inputs = [reader.tensor(source) for source in node.input if source]
        known = reader.shapes.keys() | reader.constants.keys() | reader.unknown
        missing = [source for source in inputs if source not in known]
        if missing and missing[0] in reader.written:
            raise UnsupportedError(f"reads tensor {missing[0]!r} before it is written: a cycle, or nodes out of order")
        if missing:
            raise UnsupportedError(f"reads tensor {missing[0]!r}, which nothing before it writes")
        _check_without_shapes(reader, node)
        if any(source in reader.unknown for source in inputs):
            reader.unknown.update(node.output)
            return
        if inputs[0] in reader.constants and node.op_type not in CONSTANT_FIRST:
            raise UnsupportedError(f"data input {inputs[0]!r} is a constant; expected a tensor computed from the input")
        if node.op_type not in ANY_ORDER and any(source in reader.orders for source in node.input):
            raise UnsupportedError(TRANSPOSED)
        HANDLERS[node.op_type](reader, node)
    except UnsupportedError as error:
        sources = [name for name in node.input if reader.tensor(name) in reader.shapes]
        shape = reader.onnx_shape(sources[0]) if sources else reader.inferred.get(next(iter(node.input), ""), (0,))[1:]
        problems.append(_Problem(node.op_type, node.name, dims(shape) if shape else "", str(error)))
        for name in filter(None, node.output):
            same = (source for source in sources if reader.inferred.get(name, (0,))[1:] == reader.onnx_shape(source))
            if (source := next(same, None)) is None:
                reader.unknown.add(name)
            else:
                reader.alias(type(node)(input=[source], output=[name]))
