"""Float execution of a :class:`~sigbit.graph.Graph` in NumPy: what passes and quantization are held against."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .graph import (
    Add,
    Affine,
    AveragePool,
    Concat,
    Conv,
    Graph,
    LeakyRelu,
    Linear,
    MaxPool,
    Node,
    Relu,
    Reshape,
    Upsample,
)

__all__ = ["channel_sums", "evaluate_node", "run_float", "window_means", "windows"]

#: Most values of gathered windows held at once; bounds memory, changes no result.
_GATHER_VALUES = 1 << 24


def windows(x, kernel, stride, dilation, pads, fill):
    """View ``(n, channels, rows, columns, kh, kw)`` of all windows of a padded batch."""
    if any(pads):
        x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])), constant_values=fill)
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    view = sliding_window_view(x, span, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def _leaking(x, slope):
    column = (-1,) + (1,) * (x.ndim - 2)
    return np.where(x < 0, x * slope.astype(x.dtype).reshape(column), x)


def _rectified(y, node):
    """``y`` behind the ReLU of ``node``, if it has one."""
    if not node.relu:
        return y
    return np.clip(y, 0, getattr(node, "limit", None))


def window_means(node: Conv, x: np.ndarray) -> np.ndarray:
    """Mean over images and positions of what every kernel element reads, float64 ``(in, kh, kw)``.

    A convolution is linear, so its mean per output channel is the sum of weights times these means.
    """
    mean = x.mean(axis=0, keepdims=True, dtype=np.float64)
    return windows(mean, node.weight.shape[2:], node.stride, node.dilation, node.pads, 0).mean(axis=(0, 2, 3))


def channel_sums(node: Conv, weight: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Per output channel the sum of weights, arranged as those of ``node``, times :func:`window_means`."""
    groups = node.groups
    rows = weight.reshape(groups, len(weight) // groups, -1)
    return (rows @ means.reshape(groups, rows.shape[2], 1)).reshape(-1)


def _taps(x, kernel, stride, dilation, size):
    """Every kernel position with the strided view of the padded batch that it reads."""
    for ky in range(kernel[0]):
        for kx in range(kernel[1]):
            y, z = ky * dilation[0], kx * dilation[1]
            yield ky, kx, x[..., y : y + size[0] * stride[0] : stride[0], z : z + size[1] * stride[1] : stride[1]]


def _convolve(node: Conv, x: np.ndarray) -> np.ndarray:
    """Convolution of a batch ``(n, in, height, width)`` in its type, a few images at a time."""
    outputs, depth, *kernel = node.weight.shape
    size = node.output_shape(x.shape[1:])[1:]
    reduction = depth * kernel[0] * kernel[1]
    weight = node.weight.astype(x.dtype)
    matrices = weight.reshape(node.groups, outputs // node.groups, reduction)
    y = np.empty((len(x), outputs, *size), x.dtype)
    step = max(1, _GATHER_VALUES // (reduction * node.groups * size[0] * size[1]))
    for start in range(0, len(x), step):
        top, left, bottom, right = node.pads
        part = np.pad(x[start : start + step], ((0, 0), (0, 0), (top, bottom), (left, right)))
        count = len(part)
        if depth == 1 < node.groups:
            # Depthwise: gathering windows would cost more than the products.
            result = np.zeros((count, outputs, *size), x.dtype)
            for ky, kx, view in _taps(part, kernel, node.stride, node.dilation, size):
                result += np.repeat(view, outputs // node.groups, axis=1) * weight[:, 0, ky, kx, None, None]
            y[start : start + count] = result
            continue
        columns = np.empty((x.shape[1], *kernel, count, *size), x.dtype)
        for ky, kx, view in _taps(part.transpose(1, 0, 2, 3), kernel, node.stride, node.dilation, size):
            columns[:, ky, kx] = view
        product = matrices @ columns.reshape(node.groups, reduction, count * size[0] * size[1])
        y[start : start + count] = product.reshape(outputs, count, *size).transpose(1, 0, 2, 3)
    return y


def evaluate_node(node: Node, x: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """One operation on a batch, in the type of ``x``; ``others`` are the further tensors of a node that has some."""
    if isinstance(node, Conv):
        y = _convolve(node, x)
        y += node.bias.astype(x.dtype)[:, None, None]
        if others:
            y += others[0]
        return _rectified(y, node) if node.slope is None else _leaking(y, node.slope)
    if isinstance(node, Add):
        return x + others[0]
    if isinstance(node, Concat):
        return np.concatenate((x, *others), axis=1)
    if isinstance(node, Upsample):
        return x.repeat(node.factors[0], axis=2).repeat(node.factors[1], axis=3)
    if isinstance(node, Linear):
        y = x @ node.weight.T.astype(x.dtype) + node.bias.astype(x.dtype)
        return _rectified(y, node)
    if isinstance(node, Affine):
        column = (-1,) + (1,) * (x.ndim - 2)
        return x * node.gain.astype(x.dtype).reshape(column) + node.shift.astype(x.dtype).reshape(column)
    if isinstance(node, Relu):
        return np.clip(x, 0, node.limit)
    if isinstance(node, LeakyRelu):
        return _leaking(x, node.slope)
    if isinstance(node, Reshape):
        return x.reshape(len(x), *node.shape)
    if isinstance(node, MaxPool):
        return windows(x, node.kernel, node.stride, (1, 1), node.pads, -np.inf).max(axis=(4, 5))
    if isinstance(node, AveragePool):
        y = windows(x, node.kernel, node.stride, (1, 1), node.pads, 0).mean(axis=(4, 5), dtype=x.dtype)
        return _rectified(y, node)
    raise TypeError(f"Node must be an operation of sigbit.graph, not {node!r}")


def run_float(graph: Graph, images: np.ndarray, *, all_tensors: bool = False, dtype=np.float32):
    """Output of a batch; a dictionary by name if there are several outputs, and of every tensor if ``all_tensors``.

    Parameters
    ----------
    images : float array, ``(n, *graph.input_shape)``
    dtype : NumPy type
        Type of all arithmetic.

    Raises
    ------
    :exc:`~sigbit.graph.ModelError`
        If the images do not fit the graph.
    """
    tensors = {graph.input: graph.check_images(images).astype(dtype)}
    last_use = graph.last_readers()
    for node in graph.nodes:
        tensors[node.output] = evaluate_node(node, *(tensors[name] for name in node.inputs))
        if not all_tensors:
            for name in set(node.inputs):
                if last_use.get(name) is node:
                    del tensors[name]
    if all_tensors:
        return tensors
    return {name: tensors[name] for name in graph.outputs} if len(graph.outputs) > 1 else tensors[graph.output]
