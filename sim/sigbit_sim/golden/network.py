"""Integer networks: frozen descriptions in levels, and their exact execution in int64.

An :class:`IntegerNetwork` *is* the quantized model; its execution here defines what is correct.
"""

from dataclasses import dataclass, field

import numpy as np

from sigbit_hw.spec.formats import Format

__all__ = ["AveragePool", "Convolution", "IntegerNetwork", "MaxPool", "Tensor"]


@dataclass(frozen=True)
class Tensor:
    """A feature map: ``channels x height x width`` levels of ``format``, real value = ``unit`` * level.

    ``format`` is None for raw 32-bit integers (logits).
    """

    name: str
    channels: int
    height: int
    width: int
    format: Format | None
    unit: float


@dataclass(frozen=True, eq=False)
class Convolution:
    """``acc = conv(levels, weights)``, then ``requantise(acc + bias)``; a fully connected layer has a kernel as large as its map.

    Attributes
    ----------
    weights : int64 array, ``(out, in, kh, kw)``
        Levels of ``weight_format``.
    weight_units : float64 array, ``(out,)``
    stride, dilation : (int, int)
        Rows, columns.
    pads : (int, int, int, int)
        Rows of zeros on top, columns on the left, bottom, right.
    bias : int64 array, ``(out,)``
        In units of weight unit times input unit; no XOR constant.
    multiplier, shift : int64 array, ``(out,)``
        ``M0`` and ``sh`` of numerics 6.1; unused (zeros) if the output is raw.
    relu : bool
        Negative results become 0 (implied by unsigned output formats).
    """

    name: str
    input: str
    output: str
    weights: np.ndarray
    weight_format: Format
    weight_units: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    stride: tuple = (1, 1)
    dilation: tuple = (1, 1)
    pads: tuple = (0, 0, 0, 0)
    relu: bool = False


@dataclass(frozen=True)
class MaxPool:
    """Maximum over the window positions inside the map; the output has the input's format and unit."""

    name: str
    input: str
    output: str
    kernel: tuple
    stride: tuple
    pads: tuple = (0, 0, 0, 0)


@dataclass(frozen=True)
class AveragePool:
    """Sum over the full window (padding counts as 0), then ``requantise`` with one ``multiplier`` and ``shift``."""

    name: str
    input: str
    output: str
    kernel: tuple
    stride: tuple
    multiplier: int
    shift: int
    pads: tuple = (0, 0, 0, 0)
    relu: bool = False


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """Layers in execution order over named tensors; one input, one output."""

    name: str
    tensors: dict = field(repr=False)
    layers: tuple = field(repr=False)
    input: str = "input"
    output: str = "output"
