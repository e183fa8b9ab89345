"""Well-known networks with random weights, as ONNX files: every layer has the shape that the trained network has.

For measuring cycles, memory and tools, where weights do not matter; the classes they answer mean nothing. Shapes are
those of torchvision (ResNet-18, MobileNetV2 1.0, AlexNet) and of He et al. 2016, section 4.2 (ResNet-20, option A).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .float_model import evaluate_node
from .graph import Conv, MaxPool, ModelError

__all__ = ["ARCHITECTURES", "write_architecture"]

_OPSET = 17
_IR_VERSION = 8
_EPSILON = 1e-5


@dataclass(frozen=True, eq=False)
class _Value:
    """A tensor of the model, and what it holds for one image."""

    name: str
    data: np.ndarray


class _Model:
    """An ONNX model that grows node by node, and runs on one image meanwhile.

    Weights are drawn as He et al. 2015 do. Batch norms hold the means and variances that the image has in front of
    them, so that activations stay in range however deep the network is.
    """

    def __init__(self, onnx: Any, seed: int, size: int) -> None:
        self._onnx = onnx
        self._random = np.random.default_rng(seed)
        self._nodes: list = []
        self._constants: dict[str, np.ndarray] = {}
        self._shape = (3, size, size)
        self.parameters = self.macs = 0
        # Smooth areas of 8x8 pixels with noise: neighbours in a photograph are alike, too.
        areas = self._random.standard_normal((1, 3, size // 8, size // 8)).repeat(8, axis=2).repeat(8, axis=3)
        noise = self._random.standard_normal(areas.shape)
        self.input = _Value("input", (0.9 * areas + 0.4 * noise).astype(np.float32))

    def _add(self, kind: str, sources: tuple, data: np.ndarray, constants: dict, **attributes: Any) -> _Value:
        name = f"{kind.lower()}{len(self._nodes)}"
        stored = []
        for key, value in constants.items():
            stored.append(f"{name}.{key}")
            self._constants[stored[-1]] = value
        inputs = [*(source.name for source in sources), *stored]
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, [f"{name}_out"], name=name, **attributes))
        return _Value(f"{name}_out", data)

    def _normal(self, shape: tuple, deviation: float) -> np.ndarray:
        return self._random.standard_normal(shape, dtype=np.float32) * np.float32(deviation)

    def conv(
        self, x: _Value, channels: int, kernel: int, stride: int = 1, pad: int = 0, groups: int = 1, bias: bool = False
    ) -> _Value:
        shape = (channels, x.data.shape[1] // groups, kernel, kernel)
        constants = {"weight": self._normal(shape, (2 / (shape[1] * kernel**2)) ** 0.5)}
        if bias:
            constants["bias"] = self._normal((channels,), 0.1)
        node = Conv(
            name="",
            input=x.name,
            output="",
            weight=constants["weight"],
            bias=constants.get("bias", np.zeros(channels)),
            stride=(stride, stride),
            pads=(pad,) * 4,
            groups=groups,
        )
        y = evaluate_node(node, x.data)
        self.parameters += sum(value.size for value in constants.values())
        self.macs += constants["weight"].size * y.shape[2] * y.shape[3]
        return self._add(
            "Conv", (x,), y, constants, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=groups
        )

    def norm(self, x: _Value) -> _Value:
        channels = x.data.shape[1]
        gain, shift = 1 + self._normal((channels,), 0.1), self._normal((channels,), 0.1)
        mean, variance = x.data.mean(axis=(0, 2, 3)), x.data.var(axis=(0, 2, 3))
        # A small map says little about the variance of one channel.
        weight = np.float32(1 / (1 + x.data[0, 0].size / 16))
        variance = (1 - weight) * variance + weight * variance.mean()
        factor = gain / np.sqrt(variance + _EPSILON)
        y = x.data * factor[:, None, None] + (shift - mean * factor)[:, None, None]
        self.parameters += 2 * channels
        constants = {"scale": gain, "bias": shift, "mean": mean, "variance": variance}
        return self._add("BatchNormalization", (x,), y, constants, epsilon=_EPSILON)

    def relu(self, x: _Value) -> _Value:
        return self._add("Relu", (x,), np.maximum(x.data, 0), {})

    def relu6(self, x: _Value) -> _Value:
        limits = {"min": np.float32(0), "max": np.float32(6)}
        return self._add("Clip", (x,), np.clip(x.data, 0, 6), limits)

    def add(self, x: _Value, y: _Value) -> _Value:
        return self._add("Add", (x, y), x.data + y.data, {})

    def max_pool(self, x: _Value, kernel: int, stride: int, pad: int = 0) -> _Value:
        node = MaxPool(name="", input=x.name, output="", kernel=(kernel,) * 2, stride=(stride,) * 2, pads=(pad,) * 4)
        y = evaluate_node(node, x.data)
        return self._add("MaxPool", (x,), y, {}, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def mean(self, x: _Value) -> _Value:
        return self._add("GlobalAveragePool", (x,), x.data.mean(axis=(2, 3), keepdims=True), {})

    def flatten(self, x: _Value) -> _Value:
        return self._add("Flatten", (x,), x.data.reshape(1, -1), {}, axis=1)

    def linear(self, x: _Value, outputs: int) -> _Value:
        inputs = x.data.shape[1]
        weight, bias = self._normal((outputs, inputs), (2 / inputs) ** 0.5), self._normal((outputs,), 0.1)
        self.parameters += weight.size + bias.size
        self.macs += weight.size
        return self._add("Gemm", (x,), x.data @ weight.T + bias, {"weight": weight, "bias": bias}, transB=1)

    def widened(self, x: _Value, channels: int) -> _Value:
        """Every second pixel, with new channels of zeros on both sides."""
        ends = np.full(2, np.iinfo(np.int64).max)
        sliced = {"starts": np.zeros(2, np.int64), "ends": ends, "axes": np.array([2, 3]), "steps": np.array([2, 2])}
        half = self._add("Slice", (x,), x.data[:, :, ::2, ::2], sliced)
        side = (channels - x.data.shape[1]) // 2
        y = np.pad(half.data, ((0, 0), (side, side), (0, 0), (0, 0)))
        return self._add("Pad", (half,), y, {"pads": np.array([0, side, 0, 0, 0, side, 0, 0])})

    def proto(self, name: str, output: _Value) -> Any:
        helper, real = self._onnx.helper, self._onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info("input", real, ("N", *self._shape))],
            [helper.make_tensor_value_info(output.name, real, ("N", output.data.shape[1]))],
            [self._onnx.numpy_helper.from_array(np.asarray(value), key) for key, value in self._constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def _residual_block(model: _Model, x: _Value, channels: int, stride: int, shortcut: Callable) -> _Value:
    y = model.relu(model.norm(model.conv(x, channels, 3, stride, 1)))
    y = model.norm(model.conv(y, channels, 3, 1, 1))
    return model.relu(model.add(y, x if x.data.shape == y.data.shape else shortcut(x, channels)))


def _resnet18(model: _Model) -> _Value:
    def shortcut(x: _Value, channels: int) -> _Value:
        return model.norm(model.conv(x, channels, 1, 2))

    x = model.relu(model.norm(model.conv(model.input, 64, 7, 2, 3)))
    x = model.max_pool(x, 3, 2, 1)
    for channels in (64, 128, 256, 512):
        for block in range(2):
            x = _residual_block(model, x, channels, 2 if channels > 64 and block == 0 else 1, shortcut)
    return model.linear(model.flatten(model.mean(x)), 1000)


def _resnet20(model: _Model) -> _Value:
    x = model.relu(model.norm(model.conv(model.input, 16, 3, 1, 1)))
    for channels in (16, 32, 64):
        for block in range(3):
            x = _residual_block(model, x, channels, 2 if channels > 16 and block == 0 else 1, model.widened)
    return model.linear(model.flatten(model.mean(x)), 10)


#: Of MobileNetV2 (Sandler et al. 2018, table 2): expansion, output channels, blocks, stride of the first one.
_INVERTED_RESIDUALS = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def _mobilenetv2(model: _Model) -> _Value:
    x = model.relu6(model.norm(model.conv(model.input, 32, 3, 2, 1)))
    for expansion, channels, blocks, first_stride in _INVERTED_RESIDUALS:
        for block in range(blocks):
            inner = x.data.shape[1] * expansion
            y = x if expansion == 1 else model.relu6(model.norm(model.conv(x, inner, 1)))
            y = model.relu6(model.norm(model.conv(y, inner, 3, 1 if block else first_stride, 1, groups=inner)))
            y = model.norm(model.conv(y, channels, 1))
            x = model.add(y, x) if x.data.shape == y.data.shape else y
    x = model.relu6(model.norm(model.conv(x, 1280, 1)))
    return model.linear(model.flatten(model.mean(x)), 1000)


def _alexnet(model: _Model) -> _Value:
    """At 224x224 the adaptive pool in front of the classifier changes nothing; dropout is for training."""
    x = model.max_pool(model.relu(model.conv(model.input, 64, 11, 4, 2, bias=True)), 3, 2)
    x = model.max_pool(model.relu(model.conv(x, 192, 5, 1, 2, bias=True)), 3, 2)
    for channels in (384, 256, 256):
        x = model.relu(model.conv(x, channels, 3, 1, 1, bias=True))
    x = model.flatten(model.max_pool(x, 3, 2))
    for outputs in (4096, 4096):
        x = model.relu(model.linear(x, outputs))
    return model.linear(x, 1000)


#: Name: rows and columns of the images, and what builds the network.
ARCHITECTURES: dict[str, tuple[int, Callable]] = {
    "resnet18": (224, _resnet18),
    "mobilenetv2": (224, _mobilenetv2),
    "alexnet": (224, _alexnet),
    "resnet20": (32, _resnet20),
}


def write_architecture(name: str, path: str | Path, seed: int = 0) -> dict:
    """Write a network with random weights as ONNX, all or nothing.

    Parameters
    ----------
    name : str
        One of :data:`ARCHITECTURES`.
    path : path-like
    seed : int
        Of weights and biases. Statistics of batch norms are measured, so they may differ in the last bit elsewhere.

    Returns
    -------
    dict
        ``model`` (the path), ``input_shape``, ``parameters`` (trained values; not the statistics of batch norms) and
        ``macs`` per image.

    Raises
    ------
    :exc:`~sigbit.graph.ModelError`
        If the name is unknown, the package onnx is missing, or the file cannot be written.
    """
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError as error:
        raise ModelError(f"Writing ONNX needs the package onnx ({error}); install sigbit[onnx]") from None
    if name not in ARCHITECTURES:
        raise ModelError(f"Unknown network {name!r}; there are {', '.join(ARCHITECTURES)}")
    size, build = ARCHITECTURES[name]
    model = _Model(onnx, seed, size)
    output = build(model)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(model.proto(name, output).SerializeToString())
        temporary.replace(path)
    except OSError as error:
        raise ModelError(f"Cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return {"model": str(path), "input_shape": (3, size, size), "parameters": model.parameters, "macs": model.macs}
