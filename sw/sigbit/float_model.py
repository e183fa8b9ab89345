"""Float execution of a :class:`~sigbit.graph.Graph` in NumPy: what passes and quantization are held against."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .graph import Affine, AveragePool, Conv, Graph, Linear, MaxPool, Node, Relu, Reshape

__all__ = ["evaluate_node", "run_float", "window_means"]

#: Most values of gathered windows held at once; bounds memory, changes no result.
_GATHER_VALUES = 1 << 24


def _windows(x, kernel, stride, dilation, pads, fill):
    """View ``(n, channels, rows, columns, kh, kw)`` of all windows of a padded batch."""
    if any(pads):
        x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])), constant_values=fill)
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    view = sliding_window_view(x, span, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def window_means(node: Conv, x: np.ndarray) -> np.ndarray:
    """Mean over images and positions of what every kernel element reads, float64 ``(in, kh, kw)``.

    A convolution is linear, so its mean per output channel is the sum of weights times these means.
    """
    windows = _windows(x, node.weight.shape[2:], node.stride, node.dilation, node.pads, 0)
    return windows.mean(axis=(0, 2, 3), dtype=np.float64)


def _convolve(x, weight, stride, dilation, pads):
    """Convolution of a batch ``(n, in, height, width)`` with ``(out, in, kh, kw)``, a few images at a time."""
    outputs, depth = weight.shape[0], weight[0].size
    matrix = weight.reshape(outputs, depth).T
    results = []
    start = 0
    while start < len(x):
        windows = _windows(x[start : start + 1], weight.shape[2:], stride, dilation, pads, 0)
        rows, columns = windows.shape[2:4]
        count = max(1, _GATHER_VALUES // (rows * columns * depth))
        windows = _windows(x[start : start + count], weight.shape[2:], stride, dilation, pads, 0)
        gathered = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, depth)
        result = (gathered @ matrix).reshape(len(windows), rows, columns, outputs)
        results.append(np.ascontiguousarray(result.transpose(0, 3, 1, 2)))
        start += count
    return np.concatenate(results)


def evaluate_node(node: Node, x: np.ndarray) -> np.ndarray:
    """One operation on a batch, in the type of ``x``."""
    if isinstance(node, Conv):
        y = _convolve(x, node.weight.astype(x.dtype), node.stride, node.dilation, node.pads)
        y += node.bias.astype(x.dtype)[:, None, None]
        return np.maximum(y, 0) if node.relu else y
    if isinstance(node, Linear):
        y = x @ node.weight.T.astype(x.dtype) + node.bias.astype(x.dtype)
        return np.maximum(y, 0) if node.relu else y
    if isinstance(node, Affine):
        column = (-1,) + (1,) * (x.ndim - 2)
        return x * node.gain.astype(x.dtype).reshape(column) + node.shift.astype(x.dtype).reshape(column)
    if isinstance(node, Relu):
        return np.maximum(x, 0)
    if isinstance(node, Reshape):
        return x.reshape(len(x), *node.shape)
    if isinstance(node, MaxPool):
        return _windows(x, node.kernel, node.stride, (1, 1), node.pads, -np.inf).max(axis=(4, 5))
    if isinstance(node, AveragePool):
        y = _windows(x, node.kernel, node.stride, (1, 1), node.pads, 0).mean(axis=(4, 5), dtype=x.dtype)
        return np.maximum(y, 0) if node.relu else y
    raise TypeError(f"Node must be an operation of sigbit.graph, not {node!r}")


def run_float(graph: Graph, images: np.ndarray, *, all_tensors: bool = False, dtype=np.float32):
    """Logits of a batch, or a dictionary of every tensor if ``all_tensors``.

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
    last_use = {node.input: node for node in graph.nodes}
    for node in graph.nodes:
        tensors[node.output] = evaluate_node(node, tensors[node.input])
        if not all_tensors and last_use[node.input] is node and node.input != graph.output:
            del tensors[node.input]
    return tensors if all_tensors else tensors[graph.output]
