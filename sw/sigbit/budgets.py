"""Budgets of term masks: how many nibbles every layer keeps, chosen on calibration images (``docs/sdp.md``, section 5).

Greedy by sensitivity: every layer alone is run with every budget, and its error at the network's output is kept. Then
budgets are lowered one step at a time, where the least error is added per cycle that is saved, until a target is met.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sigbit_hw.spec.config import AcceleratorConfig
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import INT, UINT
from sigbit_hw.spec.masks import Policy, TermMask
from sigbit_sim.golden import network as golden
from sigbit_sim.golden.network import IntegerNetwork

from .compiler import compile
from .evaluation import accuracy, choose

__all__ = [
    "BudgetError",
    "Budgets",
    "Measure",
    "average_bits",
    "choose_budgets",
    "given_budgets",
    "maskable",
    "predicted_cycles",
    "relative_error",
    "report",
    "uniform_budgets",
    "with_budgets",
]


class BudgetError(SigbitError):
    """A target that cannot be met, or a network that has nothing to mask."""


@dataclass(frozen=True)
class Measure:
    """What a network costs and what it gives.

    Attributes
    ----------
    cycles : int
        Predicted for one image on the accelerator.
    average_bits : float
        Bits per activation, over all multiplications of the layers that can be masked.
    error : float
        Energy of the difference from the outputs of the unmasked network, over the energy of these.
    accuracy : float or None
        On the calibration images, with labels.
    """

    cycles: int
    average_bits: float
    error: float
    accuracy: float | None


@dataclass(frozen=True)
class Budgets:
    """A choice of budgets, and what it was made from.

    Attributes
    ----------
    network : IntegerNetwork
        With masks.
    budgets : dict
        Layer -> budget.
    exact, masked : :class:`Measure`
        Of the network without and with masks.
    errors : dict
        Layer -> budget -> error of the output when this layer alone has the budget; empty if budgets were given.
    """

    network: IntegerNetwork
    budgets: dict
    exact: Measure
    masked: Measure
    errors: dict


def maskable(network: IntegerNetwork, group: int) -> list[golden.Convolution]:
    """Layers that may have a budget: not the first and the last ones, which stay exact, nor those that copy levels.

    A convolution in groups whose channels are no multiple of ``group`` stays exact as well.
    """
    found = []
    for layer in network.layers:
        if not isinstance(layer, golden.Convolution):
            continue
        source, target = network.tensors[layer.input], network.tensors[layer.output]
        depth = layer.weights.shape[1]
        copies = layer.weights.shape[2:] == (1, 1) and (np.count_nonzero(layer.weights, axis=(1, 2, 3)) <= 1).all()
        whole = layer.groups == 1 or depth % group == 0
        edge = layer.input == network.input or target.format is None
        if source.format in (UINT(8), INT(8)) and whole and not edge and not copies:
            found.append(layer)
    return found


def with_budgets(network: IntegerNetwork, group: int, budgets: dict, policy: Policy = Policy.NIB) -> IntegerNetwork:
    """The network with masks of some layers, by name; the others keep everything."""
    layers = tuple(
        replace(layer, mask=TermMask(group, budgets[layer.name], policy) if layer.name in budgets else None)
        if isinstance(layer, golden.Convolution)
        else layer
        for layer in network.layers
    )
    return replace(network, layers=layers)


def uniform_budgets(network: IntegerNetwork, group: int, budget: int) -> dict:
    """The same budget for every layer that may have one."""
    return {layer.name: budget for layer in maskable(network, group)}


def average_bits(network: IntegerNetwork, group: int, budgets: dict) -> float:
    """Bits per activation, over all multiplications of the layers that may be masked; 8 without a budget."""
    bits = macs = 0.0
    for layer in maskable(network, group):
        target = network.tensors[layer.output]
        own = layer.weights.size * target.height * target.width
        macs += own
        bits += own * TermMask(group, budgets.get(layer.name, 2 * group)).average_bits
    return bits / macs


def predicted_cycles(network: IntegerNetwork, config: AcceleratorConfig) -> int:
    """Cycles of the second of two images on an accelerator, by the cycle model."""
    from sigbit_sim.cycles import predict

    program = compile(network, config)
    one, two = (predict(program, images).total for images in (1, 2))
    return int(two["cycles"] + two["idle_cycles"] - one["cycles"] - one["idle_cycles"])


def relative_error(outputs: np.ndarray, exact: np.ndarray) -> float:
    """Energy of the difference over the energy of the exact outputs."""
    exact = exact.astype(np.float64)
    return float(np.square(outputs - exact).sum() / np.square(exact).sum())


class _Runner:
    """Outputs of a network on fixed images, from the first layer on that changed."""

    def __init__(self, network, levels):
        self._network = network
        outputs, self._exact = golden.run(network, levels, trace=True)
        self.exact = choose(outputs)

    def outputs(self, network):
        """Of the network with other masks."""
        values, changed = dict(self._exact), set[str]()
        for layer, before in zip(network.layers, self._network.layers, strict=True):
            same = getattr(layer, "mask", None) == getattr(before, "mask", None)
            if same and not changed & set(golden.sources(layer)):
                continue
            values[layer.output] = golden.run_layer(
                layer, network.tensors, *(values[name] for name in golden.sources(layer))
            )
            changed.add(layer.output)
        found = values[network.output]
        return found[:, :, 0, 0] if found.shape[2:] == (1, 1) else found


def choose_budgets(
    network: IntegerNetwork,
    levels: np.ndarray,
    config: AcceleratorConfig,
    *,
    policy: Policy = Policy.NIB,
    target_cycles: float | None = None,
    target_accuracy: float | None = None,
    labels: np.ndarray | None = None,
    progress: Callable | None = None,
) -> Budgets:
    """Budgets of all layers under a target.

    Parameters
    ----------
    network : IntegerNetwork
        With 8-bit activations; masks that it has are forgotten.
    levels : int array, ``(N, channels, height, width)``
        Calibration images, as :func:`~sigbit.quantize.input_levels` gives them.
    config : AcceleratorConfig
        With masked cells: its cycles are saved, in groups of its lanes.
    policy : :class:`~sigbit_hw.spec.masks.Policy`
    target_cycles : float, optional
        At most this share of the cycles of the unmasked network, 0 to 1.
    target_accuracy : float, optional
        The fewest cycles with at least this accuracy on the calibration images; takes ``labels``.
    labels : int array, optional
    progress : callable, optional
        Called with a line of text, or with text, number done and total.

    Raises
    ------
    :exc:`BudgetError`
        If not exactly one target is given, it cannot be met, or no layer can be masked.
    """
    say = progress or (lambda *arguments: None)
    _check_masked(network, config)
    if (target_cycles is None) == (target_accuracy is None):
        raise BudgetError("Give one target: a share of the cycles, or an accuracy")
    if target_accuracy is not None and labels is None:
        raise BudgetError("A target of accuracy needs labels of the calibration images")
    if target_cycles is not None and not 0 < target_cycles <= 1:
        raise BudgetError(f"target_cycles must be above 0 and at most 1, not {target_cycles!r}")
    group, lanes = config.lanes, config.token_lanes
    network = with_budgets(network, group, {})
    names = [layer.name for layer in maskable(network, group)]
    steps = sorted({*range(lanes, 2 * group, lanes), 2 * group})
    runner = _Runner(network, levels)

    exact = _measure(network, {}, runner, config, labels)
    errors: dict[str, dict[int, float]] = {}
    for number, name in enumerate(names):
        errors[name] = {2 * group: 0.0}
        for budget in steps[:-1]:
            outputs = runner.outputs(with_budgets(network, group, {name: budget}, policy))
            errors[name][budget] = relative_error(outputs, runner.exact)
        say("error of every layer alone", number + 1, len(names))

    # Cycles per beat of every position of a layer.
    compiled = compile(network, config)
    beats = {layer["name"]: layer["compute_cycles"] for layer in compiled.layers}
    path = _descend(names, steps, errors, {name: beats[name] / (2 * group) * lanes for name in names}, lanes)

    def masked_at(index):
        return with_budgets(network, group, path[index], policy)

    if target_cycles is not None:
        most = target_cycles * exact.cycles
        index = _first(len(path), lambda at: predicted_cycles(masked_at(at), config) <= most)
        if index == len(path):
            least = predicted_cycles(masked_at(-1), config) / exact.cycles
            raise BudgetError(
                f"With the smallest budgets {network.name} takes {least:.3f} of the cycles, more than {target_cycles}"
            )
    else:
        index = _first(len(path), lambda at: accuracy(runner.outputs(masked_at(at)), labels) < target_accuracy) - 1
        if index < 0:
            raise BudgetError(
                f"{network.name} has an accuracy of {exact.accuracy:.4f} on these images without masks, which is "
                f"less than {target_accuracy}"
            )
    budgets, masked = path[index], masked_at(index)
    say(f"{index} steps of {len(path) - 1}")
    return Budgets(masked, budgets, exact, _measure(masked, budgets, runner, config, labels), errors)


def given_budgets(
    network: IntegerNetwork,
    levels: np.ndarray,
    config: AcceleratorConfig,
    budget: int,
    *,
    policy: Policy = Policy.NIB,
    labels: np.ndarray | None = None,
) -> Budgets:
    """The same budget for every layer that can be masked, and what comes of it; arguments as :func:`choose_budgets`.

    Raises
    ------
    :exc:`~sigbit_hw.spec.errors.SigbitError`
        If there is no such budget, or no layer can be masked.
    """
    _check_masked(network, config)
    group = config.lanes
    network = with_budgets(network, group, {})
    budgets = uniform_budgets(network, group, budget)
    masked = with_budgets(network, group, budgets, policy)
    runner = _Runner(network, levels)
    return Budgets(
        masked,
        budgets,
        _measure(network, {}, runner, config, labels),
        _measure(masked, budgets, runner, config, labels),
        {},
    )


def _check_masked(network, config):
    if not config.masked:
        raise BudgetError(f"Budgets need masked cells, but cell is {config.cell}; choose preset sdp")
    if not maskable(network, config.lanes):
        raise BudgetError(
            f"Network {network.name} has no layer that can be masked: behind the first and before the last one, with "
            f"activations of uint:8 or int:8"
        )


def _measure(network, budgets, runner, config, labels):
    outputs = runner.outputs(network)
    return Measure(
        predicted_cycles(network, config),
        average_bits(network, config.lanes, budgets),
        relative_error(outputs, runner.exact),
        None if labels is None else accuracy(outputs, labels),
    )


def _descend(names, steps, errors, cycles, lanes):
    """Budgets after every step down, from all at the top to all at the bottom."""
    budgets = dict.fromkeys(names, steps[-1])
    path = [dict(budgets)]
    while True:
        moves = []
        for name in names:
            at = steps.index(budgets[name])
            if at:
                lower = steps[at - 1]
                saved = (-(-budgets[name] // lanes) - -(-lower // lanes)) * cycles[name]
                moves.append(((errors[name][lower] - errors[name][budgets[name]]) / saved, name, lower))
        if not moves:
            return path
        _, name, lower = min(moves)
        budgets[name] = lower
        path.append(dict(budgets))


def _first(count, holds):
    """First index at which something holds that then goes on to hold; ``count`` if it never does."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def report(budgets: Budgets, config: AcceleratorConfig) -> list[dict[str, Any]]:
    """One dictionary per layer that can be masked.

    Keys: ``name``, ``budget``, ``average_bits``, ``cycles`` of the array, ``exact_cycles`` without a mask, ``error`` of
    the network's output if this layer alone is masked (None if budgets were given).
    """
    exact = compile(with_budgets(budgets.network, config.lanes, {}), config).layers
    masked = compile(budgets.network, config).layers
    rows = []
    for before, after in zip(exact, masked, strict=True):
        name = after["name"]
        if name in budgets.budgets:
            budget = budgets.budgets[name]
            rows.append(
                {
                    "name": name,
                    "budget": budget,
                    "average_bits": TermMask(config.lanes, budget).average_bits,
                    "cycles": after["compute_cycles"],
                    "exact_cycles": before["compute_cycles"],
                    "error": budgets.errors[name][budget] if name in budgets.errors else None,
                }
            )
    return rows
