"""Layer-by-layer reconstruction: which level every weight takes, and which unit, by the error of a layer's *output*.

All of it minimizes one quadratic form. With ``x`` what a layer reads in float and ``y`` what quantized layers before it
really give, the mean squared error of its output, apart from what the bias takes, is

    (q - t) H (q - t)^T + constant,        H = cov(y),   t = w + cov(w (x - y), y) H^-1

so the target ``t`` is the float weight that suits the quantized input best, and ``H`` says what an error costs.

* The target is that of GPFQ (Lybrand and Saab, JMLR 2021) in closed form, as in GPTAQ (Li et al., 2025).
* :func:`round_weights` rounds one weight after the other and lets those behind it make up for its error: OPTQ (Frantar
  et al., ICLR 2023), which needs no more than a table of levels, evenly spaced or not. Cyclic coordinate descent
  (CDQuant, Nair and Suggala, 2024) then moves single weights while that lowers the error. The two stand where AdaRound
  (Nagel et al., ICML 2020) has gradients.
* :func:`output_units` and :func:`activation_unit` search units by the error of outputs.
* :func:`equalized` is cross-layer equalization (Nagel et al., ICCV 2019).

Sampling, damping and the candidates are our definitions. Everything is deterministic.
"""

from dataclasses import dataclass, replace

import numpy as np
from sigbit_hw.spec.formats import Format
from sigbit_sim.golden.numerics import project

from .float_model import evaluate_node, windows
from .graph import Conv, Graph, Node

__all__ = ["Statistics", "activation_unit", "equalized", "output_units", "reconstruct", "round_weights", "statistics"]

#: Multiplications for the covariances of a layer; positions beyond that are left out evenly.
_PRODUCTS = 1 << 33
#: Positions per weight of an output channel, at least, whatever that costs.
_LEAST_POSITIONS = 16
#: Values of gathered windows that are held at once.
_GATHERED = 1 << 22
#: Added to the diagonal of the covariance, as a share of its mean.
_DAMPING = 0.01
#: Sweeps of coordinate descent, and how often the unit follows the levels.
_SWEEPS = 4
_REFINEMENTS = 2
#: Columns whose errors reach the columns behind them together.
_BLOCK = 64
#: Factors of a unit that are tried by the error of outputs.
_WEIGHT_FACTORS = 2.0 ** (np.arange(6, -11, -1) / 16)
_ACTIVATION_FACTORS = 2.0 ** (np.arange(4, -9, -1) / 8)
#: The same where units are powers of two.
_OCTAVES = 2.0 ** np.arange(1, -3, -1)
#: Images by which the unit of an activation is found.
_ACTIVATION_IMAGES = 64


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the error of a layer's weights costs.

    Attributes
    ----------
    covariance : float64 array, ``(groups, depth, depth)``
        Of the inputs of one output channel, real values, damped.
    target : float64 array, of the shape of the weights
        The weights that are to be rounded.
    """

    covariance: np.ndarray
    target: np.ndarray

    def rows(self, values: np.ndarray) -> np.ndarray:
        """Weights, or one value per output channel, as ``(groups, out / groups, ...)``."""
        groups = len(self.covariance)
        return values.reshape(groups, len(values) // groups, -1)

    def error(self, weights: np.ndarray) -> np.ndarray:
        """Mean squared error of every output channel with these real weights, ``(out,)``."""
        difference = self.rows(weights - self.target)
        return ((difference @ self.covariance) * difference).sum(axis=2).ravel()


def statistics(node: Conv, floats: list[np.ndarray], found: list[np.ndarray]) -> Statistics:
    """Covariance and target of a layer on calibration images.

    Parameters
    ----------
    floats, found : arrays, ``(n, channels, height, width)``
        Real values of the tensors that the layer reads: in float, and as the quantized layers before it give them.
    """
    outputs, depth = len(node.weight), node.weight[0].size
    groups = node.groups
    plain = replace(node, bias=np.zeros(outputs), relu=False, limit=None, slope=None)
    missing = evaluate_node(plain, *(a - b for a, b in zip(floats, found, strict=True)))
    rows, columns = missing.shape[2:]
    total = len(missing) * rows * columns
    wanted = max(_PRODUCTS // (groups * depth * depth + outputs * depth), _LEAST_POSITIONS * depth)
    chosen = np.arange(0, total, -(-total // wanted))
    view = windows(found[0], node.weight.shape[2:], node.stride, node.dilation, node.pads, 0)
    second = np.zeros((groups, depth, depth))
    cross = np.zeros((groups, outputs // groups, depth))
    first, offset = np.zeros((groups, depth, 1)), np.zeros((groups, outputs // groups, 1))
    step = max(1, _GATHERED // (groups * depth))
    for start in range(0, len(chosen), step):
        image, row, column = np.unravel_index(chosen[start : start + step], (len(missing), rows, columns))
        inputs = view[image, :, row, column].reshape(len(image), groups, depth).transpose(1, 2, 0)
        errors = missing[image, :, row, column].reshape(len(image), groups, -1).transpose(1, 2, 0)
        second += inputs @ inputs.transpose(0, 2, 1)
        cross += errors @ inputs.transpose(0, 2, 1)
        first += inputs.sum(axis=2, keepdims=True, dtype=np.float64)
        offset += errors.sum(axis=2, keepdims=True, dtype=np.float64)
    first, offset = first / len(chosen), offset / len(chosen)
    covariance = second / len(chosen) - first @ first.transpose(0, 2, 1)
    cross = cross / len(chosen) - offset @ first.transpose(0, 2, 1)
    diagonal = np.einsum("gii->gi", covariance)
    mean = diagonal.mean(axis=1, keepdims=True)
    diagonal += _DAMPING * np.where(mean > 0, mean, 1.0)
    step_to_target = np.linalg.solve(covariance, cross.transpose(0, 2, 1)).transpose(0, 2, 1)
    return Statistics(covariance, node.weight + step_to_target.reshape(node.weight.shape))


def round_weights(known: Statistics, units: np.ndarray, format: Format) -> np.ndarray:
    """Levels of all weights, int64 and of their shape: OPTQ, then coordinate descent."""
    target = known.rows(known.target / units.reshape(-1, 1, 1, 1))
    levels = _descended(known.covariance, target, _one_after_the_other(known.covariance, target, format), format)
    return levels.reshape(known.target.shape).astype(np.int64)


def _one_after_the_other(covariance: np.ndarray, target: np.ndarray, format: Format) -> np.ndarray:
    """OPTQ, the inputs with the most energy first."""
    order = np.argsort(-np.einsum("gii->gi", covariance), axis=1, kind="stable")
    weights = np.take_along_axis(target, order[:, np.newaxis], axis=2)
    covariance = np.take_along_axis(covariance, order[:, :, np.newaxis], axis=1)
    inverse = np.linalg.inv(np.take_along_axis(covariance, order[:, np.newaxis], axis=2))
    factor = np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1)
    levels = np.empty_like(weights)
    depth = weights.shape[2]
    for start in range(0, depth, _BLOCK):
        end = min(start + _BLOCK, depth)
        errors = np.empty((*weights.shape[:2], end - start))
        for column in range(start, end):
            levels[..., column] = project(weights[..., column], format)
            error = (weights[..., column] - levels[..., column]) / factor[:, np.newaxis, column, column]
            weights[..., column:end] -= error[..., np.newaxis] * factor[:, np.newaxis, column, column:end]
            errors[..., column - start] = error
        weights[..., end:] -= errors @ factor[:, start:end, end:]
    return np.take_along_axis(levels, np.argsort(order, axis=1)[:, np.newaxis], axis=2)


def _descended(covariance: np.ndarray, target: np.ndarray, levels: np.ndarray, format: Format) -> np.ndarray:
    """Every weight to the level that is best for the others as they are, until none moves; never a larger error."""
    levels = levels.copy()
    slope = (levels - target) @ covariance
    for _ in range(_SWEEPS):
        moved = False
        for column in range(levels.shape[2]):
            best = project(levels[..., column] - slope[..., column] / covariance[:, column, column, np.newaxis], format)
            change = best - levels[..., column]
            if change.any():
                moved = True
                slope += change[..., np.newaxis] * covariance[:, np.newaxis, column]
                levels[..., column] = best
        if not moved:
            break
    return levels


def output_units(known: Statistics, units: np.ndarray, format: Format) -> np.ndarray:
    """Units near ``units`` with the least error of outputs when weights are rounded to the nearest level.

    One factor per output channel; one for all if all units are equal. Ties go to the larger unit.
    """
    shared = len(units) > 1 and bool((units == units[0]).all())
    candidates = (_OCTAVES if format.ausn else _WEIGHT_FACTORS)[:, np.newaxis] * units
    errors = []
    for candidate in candidates:
        scale = candidate.reshape(-1, 1, 1, 1)
        errors.append(known.error(project(known.target / scale, format) * scale))
    if shared:
        return candidates[np.sum(errors, axis=1).argmin()]
    return np.take_along_axis(candidates, np.argmin(errors, axis=0)[np.newaxis], axis=0)[0]


def _following_units(known: Statistics, units: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The units that are best for given levels; as they are where the levels are all zero."""
    shared = len(units) > 1 and bool((units == units[0]).all())
    rows = known.rows(levels.astype(np.float64))
    product = rows @ known.covariance
    energy = (product * rows).sum(axis=2).ravel()
    fit = (product * known.rows(known.target)).sum(axis=2).ravel()
    if shared:
        energy, fit = np.full_like(energy, energy.sum()), np.full_like(fit, fit.sum())
    return np.where((energy > 0) & (fit > 0), fit / np.where(energy > 0, energy, 1.0), units)


def reconstruct(
    known: Statistics, units: np.ndarray, format: Format, least: np.ndarray, fixed_units: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Levels and units of a layer's weights; units stay at ``least`` or above.

    With ``fixed_units`` they stay what they are, which powers of two have to.
    """
    levels = round_weights(known, units, format)
    if fixed_units:
        return levels, units
    best = (float(known.error(levels * units.reshape(-1, 1, 1, 1)).sum()), levels, units)
    for _ in range(_REFINEMENTS):
        units = np.maximum(_following_units(known, units, levels), least)
        target = known.rows(known.target / units.reshape(-1, 1, 1, 1))
        rows = _descended(known.covariance, target, known.rows(levels.astype(np.float64)), format)
        levels = rows.reshape(levels.shape).astype(np.int64)
        error = float(known.error(levels * units.reshape(-1, 1, 1, 1)).sum())
        if error >= best[0]:
            break
        best = (error, levels, units)
    return best[1], best[2]


def activation_unit(graph: Graph, name: str, values: np.ndarray, format: Format, unit: float) -> float:
    """Unit near ``unit`` with the least error in the outputs of the layers that read a tensor, in float otherwise.

    The error of every reader counts in shares of the variance of its output. Ties go to the larger unit.
    """
    readers = [node for node in graph.consumers(name) if isinstance(node, Conv) and not node.copy]
    if not readers:
        return unit
    values = values[:: -(-len(values) // _ACTIVATION_IMAGES)]
    parts: list[Conv | None] = []
    for node in readers:
        bare = replace(node, bias=np.zeros(len(node.weight)), residual=None, relu=False, limit=None, slope=None)
        # A layer that adds the tensor passes its error on as it is.
        parts += [bare] * (node.input == name) + [None] * (node.residual == name)

    def passed(part, x):
        return x if part is None else evaluate_node(part, x)

    energies = [float(passed(part, values).var()) or 1.0 for part in parts]
    best = (np.inf, unit)
    for factor in _OCTAVES if format.ausn else _ACTIVATION_FACTORS:
        error = (project(values / (unit * factor), format) * (unit * factor) - values).astype(np.float32)
        cost = sum(
            float(np.square(passed(part, error), dtype=np.float64).mean()) / energy
            for part, energy in zip(parts, energies, strict=True)
        )
        best = min(best, (cost, unit * factor), key=lambda pair: pair[0])
    return float(best[1])


def equalized(graph: Graph) -> Graph:
    """Cross-layer equalization of a lowered graph: the same outputs with channels of like range between two layers.

    Where exactly one convolution reads another and nothing but ReLU or leaky ReLU lies between, channel ``i`` is
    divided by ``sqrt(r1 * r2) / r2`` in the first and multiplied in the second, with ``r1`` and ``r2`` the largest
    magnitudes of its weights there. A clip has a limit that would move, so it stays as it is.
    """
    nodes: dict[str, Node] = {node.output: node for node in graph.nodes}
    for name in list(nodes):
        readers = graph.consumers(name)
        first, second = nodes[name], nodes[readers[0].output] if len(readers) == 1 else None
        if not (isinstance(first, Conv) and isinstance(second, Conv)):
            continue
        fixed = first.copy or second.copy or first.residual is not None or first.limit is not None
        if fixed or first.output in graph.outputs or second.residual == first.output or second.groups != 1:
            continue
        given, taken = np.abs(first.weight).max(axis=(1, 2, 3)), np.abs(second.weight).max(axis=(0, 2, 3))
        used = (given > 0) & (taken > 0)
        factor = np.where(used, np.sqrt(given / np.where(used, taken, 1.0)), 1.0)
        column = factor[:, np.newaxis, np.newaxis]
        nodes[first.output] = replace(first, weight=first.weight / column[:, np.newaxis], bias=first.bias / factor)
        nodes[second.output] = replace(second, weight=second.weight * column)
    return Graph(graph.name, graph.input, graph.outputs, graph.input_shape, tuple(nodes.values()), graph.dropped)
