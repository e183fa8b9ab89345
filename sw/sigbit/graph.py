"""The float graph: frozen operations with inferred shapes from one input to its outputs; no batch axis is stored."""

from dataclasses import dataclass, field
from math import prod

import numpy as np
from sigbit_hw.spec.errors import SigbitError

__all__ = [
    "Add",
    "Affine",
    "AveragePool",
    "Concat",
    "Conv",
    "Graph",
    "LeakyRelu",
    "Linear",
    "MaxPool",
    "ModelError",
    "Node",
    "Relu",
    "Reshape",
    "Shape",
    "Upsample",
    "window_positions",
]

Shape = tuple[int, ...]


class ModelError(SigbitError):
    """A model that cannot be read, or whose parts do not fit together."""


def window_positions(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    """Positions of a window along one axis; at most 0 if it does not fit even once."""
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def _map_shape(node: "Node", shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ModelError(f"{node.label} needs a map of channels x height x width, but its input has shape {shape}")
    return shape


def _windows(node: "Node", shape: Shape, kernel: Shape, stride: Shape, dilation: Shape, pads: Shape) -> Shape:
    """Rows and columns of the output of a windowed operation."""
    _, height, width = _map_shape(node, shape)
    limits = (("kernel", kernel, 1), ("stride", stride, 1), ("dilation", dilation, 1), ("pads", pads, 0))
    for what, values, low in limits:
        if min(values) < low:
            raise ModelError(f"{node.label}: {what} must be at least {low}, not {tuple(values)}")
    rows = window_positions(height, kernel[0], stride[0], dilation[0], pads[0], pads[2])
    columns = window_positions(width, kernel[1], stride[1], dilation[1], pads[1], pads[3])
    if rows < 1 or columns < 1:
        raise ModelError(
            f"{node.label}: a {kernel[0]}x{kernel[1]} window (dilation {dilation[0]},{dilation[1]}) does not fit "
            f"into its {height}x{width} map with pads {tuple(pads)}"
        )
    return rows, columns


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """One operation from tensor ``input``, and for some kinds a second one, to tensor ``output``."""

    name: str
    input: str
    output: str

    @property
    def label(self) -> str:
        """How messages call the node."""
        return f"{type(self).__name__} {self.name!r}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors that the node reads."""
        return (self.input,)

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of the output, without batch, for an input of ``shape``.

        Raises
        ------
        :exc:`ModelError`
            If the node does not fit its input.
        """
        return shape


def _check_same_shape(node: Node, shape: Shape, residual: Shape) -> None:
    if shape != residual:
        raise ModelError(f"{node.label} adds tensors of the shapes {shape} and {residual}; supported are equal shapes")


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv(Node):
    """Convolution (cross-correlation), bias, then if asked a second tensor added and ReLU, or leaky ReLU alone.

    Attributes
    ----------
    weight : float64 array, ``(out, in / groups, kh, kw)``
    bias : float64 array, ``(out,)``
    stride, dilation : (int, int)
        Rows, columns.
    pads : (int, int, int, int)
        Zeros on top, left, bottom, right.
    groups : int
        Output channel ``o`` reads the input channels of group ``o // (out / groups)`` only.
    residual : str, optional
        A tensor of the output's shape that is added.
    limit : float, optional
        Larger results become this one; only with ``relu``.
    slope : float64 array, ``(out,)``, optional
        Negative results are multiplied by this; neither with ``relu`` nor with a residual.
    copy : bool
        The layer only moves values: one channel and one weight of 1 per output at most, no bias, residual or slope.
        Quantization keeps the format and the unit of the input, so that levels are copied exactly.
    """

    weight: np.ndarray = field(repr=False)
    bias: np.ndarray = field(repr=False)
    stride: Shape = (1, 1)
    dilation: Shape = (1, 1)
    pads: Shape = (0, 0, 0, 0)
    groups: int = 1
    residual: str | None = None
    relu: bool = False
    limit: float | None = None
    slope: np.ndarray | None = field(default=None, repr=False)
    copy: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,) if self.residual is None else (self.input, self.residual)

    def output_shape(self, shape: Shape, residual: Shape | None = None) -> Shape:
        outputs, depth, *kernel = self.weight.shape
        rows, columns = _windows(self, shape, tuple(kernel), self.stride, self.dilation, self.pads)
        if self.groups < 1 or outputs % self.groups:
            raise ModelError(f"{self.label}: groups must divide its {outputs} output channels, not be {self.groups}")
        if depth * self.groups != shape[0]:
            raise ModelError(
                f"{self.label}: weights {self.weight.shape} take {depth * self.groups} channels, "
                f"but its input has {shape[0]}"
            )
        if residual is not None:
            _check_same_shape(self, (outputs, rows, columns), residual)
        return outputs, rows, columns


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Node):
    """Fully connected layer on a vector; ``weight`` is ``(out, in)``, ``bias`` ``(out,)``, both float64."""

    weight: np.ndarray = field(repr=False)
    bias: np.ndarray = field(repr=False)
    relu: bool = False

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 1:
            raise ModelError(f"{self.label} needs a vector, but its input has shape {shape}; flatten it first")
        if self.weight.shape[1] != shape[0]:
            raise ModelError(
                f"{self.label}: weights {self.weight.shape} take {self.weight.shape[1]} inputs, but get {shape[0]}"
            )
        return (self.weight.shape[0],)


@dataclass(frozen=True, eq=False, kw_only=True)
class Affine(Node):
    """``gain * x + shift`` per channel, both float64 ``(channels,)``: batch normalization, constant arithmetic."""

    gain: np.ndarray = field(repr=False)
    shift: np.ndarray = field(repr=False)

    def output_shape(self, shape: Shape) -> Shape:
        if self.gain.shape != (shape[0],) or self.shift.shape != (shape[0],):
            raise ModelError(f"{self.label} has {self.gain.size} channels, its input has {shape[0]} (shape {shape})")
        return shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Node):
    """The sum of two tensors of one shape."""

    residual: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input, self.residual)

    def output_shape(self, shape: Shape, residual: Shape | None = None) -> Shape:
        if residual is not None:
            _check_same_shape(self, shape, residual)
        return shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(Node):
    """The channels (or features) of several tensors, one after the other; a tensor may come more than once."""

    others: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input, *self.others)

    def output_shape(self, shape: Shape, *others: Shape) -> Shape:
        shapes = (shape, *others)
        if any(len(other) != len(shape) or other[1:] != shape[1:] for other in others):
            text = ", ".join(map(str, shapes))
            raise ModelError(f"{self.label} joins the shapes {text}; supported are shapes that differ in channels only")
        return sum(other[0] for other in shapes), *shape[1:]


@dataclass(frozen=True, eq=False, kw_only=True)
class Upsample(Node):
    """Every pixel ``factors[0]`` times in its column and ``factors[1]`` times in its row."""

    factors: Shape

    def output_shape(self, shape: Shape) -> Shape:
        channels, height, width = _map_shape(self, shape)
        if len(self.factors) != 2 or min(self.factors) < 1:
            raise ModelError(f"{self.label}: factors must be two integers of at least 1, not {self.factors!r}")
        return channels, height * self.factors[0], width * self.factors[1]


@dataclass(frozen=True, eq=False, kw_only=True)
class Relu(Node):
    """``max(x, 0)``, or ``min(max(x, 0), limit)``."""

    limit: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class LeakyRelu(Node):
    """``x``, or ``slope * x`` where ``x`` is negative; float64 ``(channels,)``, or ``(1,)`` for all channels."""

    slope: np.ndarray = field(repr=False)

    def output_shape(self, shape: Shape) -> Shape:
        if self.slope.shape not in ((1,), (shape[0],)):
            raise ModelError(f"{self.label} has {self.slope.size} slopes, its input has {shape[0]} channels")
        if not (self.slope >= 0).all():
            raise ModelError(
                f"{self.label} has the slope {self.slope.min():.6g}; supported are slopes of at least 0, because the "
                "multiplier of negative sums is unsigned"
            )
        return shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Reshape(Node):
    """The same values, in the same order, as ``shape`` (without batch)."""

    shape: Shape

    def output_shape(self, shape: Shape) -> Shape:
        if prod(shape) != prod(self.shape):
            raise ModelError(f"{self.label} cannot turn shape {shape} ({prod(shape)} values) into {self.shape}")
        return self.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Node):
    """Maximum over the window positions inside the map."""

    kernel: Shape
    stride: Shape
    pads: Shape = (0, 0, 0, 0)

    def output_shape(self, shape: Shape) -> Shape:
        return shape[0], *_pool_windows(self, shape, self.kernel, self.stride, self.pads)


@dataclass(frozen=True, eq=False, kw_only=True)
class AveragePool(Node):
    """Sum over the window, padding counted as 0, divided by the area of the full window; then ReLU if ``relu``."""

    kernel: Shape
    stride: Shape
    pads: Shape = (0, 0, 0, 0)
    relu: bool = False

    def output_shape(self, shape: Shape) -> Shape:
        return shape[0], *_pool_windows(self, shape, self.kernel, self.stride, self.pads)


def _pool_windows(node: Node, shape: Shape, kernel: Shape, stride: Shape, pads: Shape) -> Shape:
    if pads[0] >= kernel[0] or pads[2] >= kernel[0] or pads[1] >= kernel[1] or pads[3] >= kernel[1]:
        raise ModelError(f"{node.label}: pads {tuple(pads)} must be smaller than the {kernel[0]}x{kernel[1]} window")
    return _windows(node, shape, kernel, stride, (1, 1), pads)


@dataclass(frozen=True, eq=False)
class Graph:
    """Operations in execution order from one input tensor to one or more output tensors.

    Parameters
    ----------
    name : str
    input : str
        Name of a tensor.
    outputs : tuple of str, or str
        Names of different tensors; one name stands for itself alone.
    input_shape : tuple of int
        ``(channels, height, width)`` or ``(features,)``.
    nodes : tuple of :class:`Node`
    dropped : tuple of str
        What the model does behind its outputs and the host has to do if it needs it, such as ``"Softmax 'n9'"``.

    Attributes
    ----------
    shapes : dict
        Tensor name -> shape without batch, inferred.

    Raises
    ------
    :exc:`ModelError`
        If a tensor is read before it is written or written twice, or a node does not fit its inputs.
    """

    name: str
    input: str
    outputs: tuple[str, ...]
    input_shape: Shape
    nodes: tuple[Node, ...] = field(repr=False)
    dropped: tuple[str, ...] = ()
    shapes: dict[str, Shape] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.outputs, str):
            object.__setattr__(self, "outputs", (self.outputs,))
        if not self.outputs or len(set(self.outputs)) < len(self.outputs):
            raise ModelError(f"A graph must have at least one output, and each only once, not {self.outputs!r}")
        if len(self.input_shape) not in (1, 3) or min(self.input_shape) < 1:
            raise ModelError(f"Input shape must be (channels, height, width) or (features,), not {self.input_shape}")
        shapes = {self.input: self.input_shape}
        for node in self.nodes:
            for name in node.inputs:
                if name not in shapes:
                    raise ModelError(f"{node.label} reads tensor {name!r}, which nothing before it writes")
            if node.output in shapes:
                raise ModelError(f"{node.label} writes tensor {node.output!r} a second time")
            shapes[node.output] = node.output_shape(*(shapes[name] for name in node.inputs))
        for name in self.outputs:
            if name not in shapes:
                raise ModelError(f"No node writes the output tensor {name!r}")
        object.__setattr__(self, "shapes", shapes)

    @property
    def output(self) -> str:
        """The first output."""
        return self.outputs[0]

    def producer(self, tensor: str) -> Node | None:
        """The node that writes ``tensor``; None for the input."""
        return next((node for node in self.nodes if node.output == tensor), None)

    def consumers(self, tensor: str) -> list[Node]:
        """The nodes that read ``tensor``."""
        return [node for node in self.nodes if tensor in node.inputs]

    def last_readers(self) -> dict[str, Node]:
        """Tensor -> the last node that reads it; outputs are not listed, because the caller reads them."""
        return {name: node for node in self.nodes for name in node.inputs if name not in self.outputs}

    def check_images(self, images: np.ndarray) -> np.ndarray:
        """``images`` shaped for the input, or a message.

        Raises
        ------
        :exc:`ModelError`
            If the array is empty, not finite, or does not have the input's shape.
        """
        images = np.asarray(images)
        if not np.issubdtype(images.dtype, np.floating):
            raise ModelError(f"Model {self.name!r} takes float images, not {images.dtype}; normalize them first")
        if images.ndim < 2 or len(images) == 0:
            raise ModelError(f"Model {self.name!r} needs at least one image, but the array has shape {images.shape}")
        if images.shape[1:] != self.input_shape:
            expected = ", ".join(map(str, self.input_shape))
            raise ModelError(f"Model {self.name!r} takes images of shape (N, {expected}), not {images.shape}")
        if not np.isfinite(images).all():
            count = np.count_nonzero(~np.isfinite(images))
            raise ModelError(f"Images for model {self.name!r} must be finite, but {count} values are not")
        return images
