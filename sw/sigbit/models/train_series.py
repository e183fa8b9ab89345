"""Train a small network that forecasts a time series, and write ``series.onnx`` and ``series.npz`` beside this script.

Data: the Mackey-Glass equation ``x' = 0.2 x(t - 17) / (1 + x(t - 17)**10) - 0.1 x``, a common test of forecasts
(M. C. Mackey, L. Glass, Science 197, 1977), in unit steps. The network sees 32 samples and says how much the value
changes in the next 6. Windows for testing come after those for training.

Needs ``onnx`` and ``numpy`` and takes seconds; everybody else needs only the two files it writes: ``x_test``
(float32, 500x32), ``y_test`` (500), and ``x_calibration`` (200 training windows).
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["main", "windows"]

SEED = 2026
WINDOW, AHEAD, DELAY = 32, 6, 17
WIDTHS = (WINDOW, 48, 32, 1)
TRAIN, TEST, CALIBRATION = 3000, 500, 200


def windows():
    """Windows of the series and what follows them, ``(n, 32)`` and ``(n,)``."""
    x = [1.2] * (DELAY + 1)
    for _ in range(500 + TRAIN + TEST + WINDOW + AHEAD):
        x.append(x[-1] + 0.2 * x[-1 - DELAY] / (1 + x[-1 - DELAY] ** 10) - 0.1 * x[-1])
    series = np.array(x[500:], np.float32)
    starts = np.arange(TRAIN + TEST)
    inputs = series[starts[:, np.newaxis] + np.arange(WINDOW)]
    return inputs, series[starts + WINDOW - 1 + AHEAD] - inputs[:, -1]


def _train(x, y, steps):
    """Adam on the mean squared error."""
    rng = np.random.default_rng(SEED)
    sizes = list(itertools.pairwise(WIDTHS))
    values = [rng.standard_normal((a, b)) * np.sqrt(2 / a) for a, b in sizes] + [np.zeros(b) for _, b in sizes]
    first, second = ([np.zeros_like(v) for v in values] for _ in range(2))
    count = len(sizes)
    for step in range(1, steps + 1):
        batch = rng.integers(0, len(x), 64)
        held = [x[batch]]
        for layer in range(count):
            total = held[-1] @ values[layer] + values[count + layer]
            held.append(total if layer == count - 1 else np.maximum(total, 0))
        slope = 2 * (held[-1] - y[batch, np.newaxis]) / len(batch)
        for layer in reversed(range(count)):
            gradients = {layer: held[layer].T @ slope, count + layer: slope.sum(axis=0)}
            slope = (slope @ values[layer].T) * (held[layer] > 0)
            for index, gradient in gradients.items():
                first[index] = 0.9 * first[index] + 0.1 * gradient
                second[index] = 0.999 * second[index] + 0.001 * gradient**2
                rate = 3e-3 * 0.5 * (1 + np.cos(np.pi * step / steps))
                corrected = first[index] / (1 - 0.9**step)
                values[index] -= rate * corrected / (np.sqrt(second[index] / (1 - 0.999**step)) + 1e-8)
    return values[:count], values[count:]


def main(steps: int, folder: Path) -> None:
    """Train, test once, export."""
    x, y = windows()
    weights, biases = _train(x[:TRAIN].astype(np.float64), y[:TRAIN].astype(np.float64), steps)
    found = x[TRAIN:]
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        found = found @ weight + bias
        found = found if layer == len(weights) - 1 else np.maximum(found, 0)
    error = np.sqrt(np.mean((found[:, 0] - y[TRAIN:]) ** 2)) / y[TRAIN:].std()
    print(f"test error {error:.4f} of the standard deviation")

    nodes, constants, name = [], [], "window"
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        constants += [
            numpy_helper.from_array(weight.astype(np.float32), f"weight{layer}"),
            numpy_helper.from_array(bias.astype(np.float32), f"bias{layer}"),
        ]
        last = layer == len(weights) - 1
        target = "change" if last else f"sum{layer}"
        nodes.append(helper.make_node("Gemm", [name, f"weight{layer}", f"bias{layer}"], [target], name=f"dense{layer}"))
        if not last:
            nodes.append(helper.make_node("Relu", [target], [f"hidden{layer}"], name=f"relu{layer}"))
            name = f"hidden{layer}"
    graph = helper.make_graph(
        nodes,
        "series",
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, ["batch", WINDOW])],
        [helper.make_tensor_value_info("change", TensorProto.FLOAT, ["batch", 1])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="sigbit", ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "series.onnx")
    np.savez_compressed(
        folder / "series.npz", x_test=x[TRAIN:], y_test=y[TRAIN:], x_calibration=x[:TRAIN:TRAIN // CALIBRATION]
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where to write both files")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.folder)
