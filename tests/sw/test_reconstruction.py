"""Reconstruction: covariance and target against plain sums, rounding that no move improves, units, equalization."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sigbit
from sigbit.data import load_images
from sigbit.float_model import run_float
from sigbit.graph import Conv, Graph
from sigbit.passes import lower
from sigbit.quantize import QuantizationError, input_levels, quantize
from sigbit.reconstruction import (
    Statistics,
    activation_unit,
    equalized,
    output_units,
    reconstruct,
    round_weights,
    statistics,
)
from sigbit.scales import ScaleError, unit_mse, unit_percentile
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT
from sigbit_sim.golden.network import run
from sigbit_sim.golden.numerics import project

MODELS = Path(sigbit.__file__).parent / "models"
FORMATS = (INT(2), INT(4), ESB(3, 0), ESB(4, 1), ESB(5, 2))


def layer(random, shape, **options):
    weight, bias = random.normal(size=shape), random.normal(size=shape[0])
    return Conv(name="layer", input="x", output="y", weight=weight, bias=bias, **options)


def problem(seed, shape=(5, 3, 2, 2), groups=1):
    """Statistics of correlated inputs."""
    random = np.random.default_rng(seed)
    depth = int(np.prod(shape[1:]))
    mix = random.normal(size=(groups, depth, depth))
    return Statistics(mix @ mix.transpose(0, 2, 1) + 0.1 * np.eye(depth), random.normal(size=shape))


@pytest.mark.parametrize("options", [{}, {"stride": (2, 1), "pads": (1, 0, 2, 1)}, {"dilation": (2, 2)}, {"groups": 2}])
def test_statistics_are_those_of_every_window(options):
    random = np.random.default_rng(1)
    node = layer(random, (6, 4 // options.get("groups", 1), 3, 2), **options)
    floats = random.normal(size=(3, 4, 8, 7)).astype(np.float32)
    found = (floats + random.normal(size=floats.shape) / 4).astype(np.float32)
    known = statistics(node, [floats], [found])
    top, left, bottom, right = node.pads
    windows, errors = [], []
    for x, y in zip(floats, found, strict=True):
        x, y = (np.pad(a, ((0, 0), (top, bottom), (left, right))).astype(np.float64) for a in (x, y))
        span = [(k - 1) * d for k, d in zip((3, 2), node.dilation, strict=True)]
        for row in range(0, x.shape[1] - span[0], node.stride[0]):
            for column in range(0, x.shape[2] - span[1], node.stride[1]):
                at = np.s_[
                    :, row : row + span[0] + 1 : node.dilation[0], column : column + span[1] + 1 : node.dilation[1]
                ]
                windows.append(y[at])
                errors.append((x - y)[at])
    windows, errors = np.array(windows), np.array(errors)
    per = 6 // node.groups
    for group in range(node.groups):
        channels = np.s_[group * 4 // node.groups : (group + 1) * 4 // node.groups]
        inputs = windows[:, channels].reshape(len(windows), -1)
        inputs = inputs - inputs.mean(axis=0)
        covariance = inputs.T @ inputs / len(inputs)
        covariance += 0.01 * np.diag(covariance).mean() * np.eye(len(covariance))
        np.testing.assert_allclose(known.covariance[group], covariance, rtol=1e-4, atol=1e-5)
        weight = node.weight[group * per : (group + 1) * per].reshape(per, -1)
        missing = errors[:, channels].reshape(len(errors), -1) @ weight.T
        cross = (missing - missing.mean(axis=0)).T @ inputs / len(inputs)
        expected = weight + np.linalg.solve(covariance, cross.T).T
        np.testing.assert_allclose(known.target[group * per : (group + 1) * per].reshape(per, -1), expected, atol=1e-3)


def test_without_an_error_of_the_input_the_target_is_the_weight():
    random = np.random.default_rng(2)
    node, x = layer(random, (4, 3, 3, 3)), random.normal(size=(5, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(statistics(node, [x], [x]).target, node.weight, atol=1e-9)


def test_an_error_of_the_residual_moves_the_target():
    random = np.random.default_rng(3)
    node, x = layer(random, (3, 3, 1, 1), residual="r"), random.normal(size=(40, 3, 8, 8)).astype(np.float32)
    # What the residual lacks is twice the input, so every weight of a channel to itself should be larger by 2.
    known = statistics(node, [x, 2 * x], [x, 0 * x])
    np.testing.assert_allclose(known.target[:, :, 0, 0] - node.weight[:, :, 0, 0], 2 * np.eye(3), atol=0.1)


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("groups", [1, 5])
def test_rounding_beats_the_nearest_level_and_no_single_move_improves_it(format, groups):
    known = problem(4, groups=groups)
    units = np.asarray(unit_mse(known.target, format, channel_axis=0))
    scale = units.reshape(-1, 1, 1, 1)
    levels = round_weights(known, units, format)
    assert set(np.unique(levels)) <= set(format.levels)
    error = known.error(levels * scale)
    nearest = known.error(project(known.target / scale, format) * scale)
    assert error.sum() < nearest.sum()
    for position in np.ndindex(known.target.shape[1:]):
        for level in format.levels:
            moved = levels.copy()
            moved[(slice(None), *position)] = level
            assert (known.error(moved * scale) >= error - 1e-9).all()


def test_rounding_without_correlation_is_the_nearest_level():
    known = problem(5)
    known = replace(known, covariance=np.eye(12)[np.newaxis] * np.arange(1, 13))
    units = np.full(5, 0.3)
    assert (round_weights(known, units, INT(4)) == project(known.target / 0.3, INT(4))).all()


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_reconstruction_with_units_that_follow_is_never_worse_than_with_fixed_ones(format):
    known, least = problem(6), np.full(5, 1e-3)
    units = np.asarray(unit_mse(known.target, format, channel_axis=0))
    fixed, same = reconstruct(known, units, format, least, fixed_units=True)
    assert (same == units).all()
    levels, found = reconstruct(known, units, format, least)

    def total(levels, units):
        return known.error(levels * units.reshape(-1, 1, 1, 1)).sum()

    assert total(levels, found) <= total(fixed, units)


def test_a_shared_unit_stays_shared_and_above_the_least():
    known = problem(7)
    units = np.full(5, float(unit_mse(known.target, INT(4))))
    for found in (output_units(known, units, INT(4)), reconstruct(known, units, INT(4), units)[1]):
        assert len(set(found.tolist())) == 1
    assert (reconstruct(known, units, INT(4), 2 * units)[1] >= units).all()


def test_units_by_the_output_have_the_least_error_of_all_candidates():
    known = problem(8)
    units = np.asarray(unit_mse(known.target, ESB(4, 1), channel_axis=0))
    found = output_units(known, units, ESB(4, 1))

    def error(units):
        scale = units.reshape(-1, 1, 1, 1)
        return known.error(project(known.target / scale, ESB(4, 1)) * scale)

    for step in range(-10, 7):
        assert (error(found) <= error(units * 2 ** (step / 16))).all()


def test_the_unit_of_an_activation_follows_what_its_reader_weighs():
    random = np.random.default_rng(9)
    values = np.maximum(random.normal(size=(20, 2, 4, 4)), 0).astype(np.float32)
    values[:, 1] *= 20
    weight = np.array([[1.0, 0.0]]).reshape(1, 2, 1, 1)
    reader = Conv(name="reader", input="x", output="y", weight=weight, bias=np.zeros(1))
    graph = Graph("g", "x", "y", (2, 4, 4), (reader,))
    unit = unit_mse(values, UINT(4))
    # The large channel has no weight, so the unit becomes the smallest that is tried.
    assert activation_unit(graph, "x", values, UINT(4), unit) == pytest.approx(unit / 2)
    graph = Graph("g", "x", "y", (2, 4, 4), (replace(reader, weight=weight[:, ::-1]),))
    assert activation_unit(graph, "x", values, UINT(4), unit) > unit / 2


def test_the_percentile_puts_that_share_of_non_zero_magnitudes_below_the_largest_level():
    values = np.concatenate([np.zeros(500), np.arange(1.0, 1001.0)])
    assert unit_percentile(values, UINT(4), percentage=50) * 15 == pytest.approx(500.5)
    assert unit_percentile(-values, UINT(4)) == 1.0
    rows = np.stack([values, 2 * values])
    units = unit_percentile(rows, INT(4), channel_axis=0)
    assert units[1] == 2 * units[0]
    with pytest.raises(ScaleError, match="NaN"):
        unit_percentile([np.nan], INT(4))


def chain(random, **options):
    first = layer(random, (4, 2, 3, 3), relu=True, **options)
    second = replace(layer(random, (3, 4, 3, 3)), name="second", input="y", output="z")
    return Graph("g", "x", "z", (2, 8, 8), (first, second))


def test_equalization_keeps_the_outputs_and_gives_both_sides_one_range():
    random = np.random.default_rng(10)
    graph = chain(random)
    graph = replace_node(graph, 0, weight=graph.nodes[0].weight * np.array([1, 10, 0.1, 0]).reshape(4, 1, 1, 1))
    x = random.normal(size=(6, 2, 8, 8)).astype(np.float32)
    equal = equalized(graph)
    np.testing.assert_allclose(run_float(equal, x), run_float(graph, x), atol=1e-3)
    first, second = (node.weight for node in equal.nodes)
    given, taken = np.abs(first).max(axis=(1, 2, 3)), np.abs(second).max(axis=(0, 2, 3))
    np.testing.assert_allclose(given[:3], taken[:3])


def replace_node(graph, index, **changes):
    nodes = list(graph.nodes)
    nodes[index] = replace(nodes[index], **changes)
    return Graph(graph.name, graph.input, graph.outputs, graph.input_shape, tuple(nodes))


def test_equalization_leaves_a_clip_and_a_tensor_with_two_readers_alone():
    random = np.random.default_rng(11)
    clipped = chain(random, limit=6.0)
    both = chain(random)
    third = replace(both.nodes[1], name="third", output="w")
    both = Graph("g", "x", ("z", "w"), (2, 8, 8), (*both.nodes, third))
    for graph in (clipped, both):
        for old, new in zip(graph.nodes, equalized(graph).nodes, strict=True):
            assert (old.weight == new.weight).all()


@pytest.mark.parametrize(("weights", "activations"), [(ESB(3, 0), ESBU(4, 2)), (INT(3), UINT(4))], ids=str)
def test_reconstruction_halves_the_error_of_the_shipped_models_logits(weights, activations):
    data = f"{MODELS / 'digits.npz'}:"
    images, _ = load_images(data + "x_test", 200, scale=16)
    calibration, _ = load_images(data + "x_calibration", scale=16)
    graph = lower(sigbit.read_onnx(MODELS / "digits.onnx"))
    expected = run_float(graph, images)[:, :, 0, 0]

    def error(**options):
        network = quantize(graph, calibration, weights, activations, **options)
        logits = run(network, input_levels(network, images)) * network.tensors[network.output].unit
        return np.mean((logits - expected) ** 2)

    assert error(rounding="reconstruct", alpha_mode="output") < 0.5 * error()


def test_an_unknown_rounding_is_refused():
    graph = Graph("g", "x", "y", (2, 8, 8), (layer(np.random.default_rng(12), (3, 2, 3, 3)),))
    with pytest.raises(QuantizationError, match="rounding must be nearest or reconstruct, not 'up'"):
        quantize(graph, np.ones((2, 2, 8, 8), np.float32), rounding="up")
