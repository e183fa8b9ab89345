"""The DRQ baseline: regions, short operands, cycles of its arrays, and networks."""

import numpy as np
import pytest
from networks import Builder
from sigbit_hw.spec.formats import INT, UINT
from sigbit_hw.spec.masks import MaskError
from sigbit_sim.drq import (
    Region,
    array_reads,
    elastic_cycles,
    layer_costs,
    lockstep_cycles,
    run_drq,
    sensitive,
    short_activations,
    short_weights,
)
from sigbit_sim.golden.network import run


def rows_of(text):
    return np.array([[int(bit) for bit in row] for row in text.replace(" ", "").split(",")], dtype=bool)


@pytest.mark.parametrize(
    ("region", "mask"),
    [
        (Region(2, 2, 20), "11001,11001,00110"),
        (Region(2, 2, 21), "00001,00001,00110"),
        (Region(2, 4, 18), "00001,00001,11110"),
    ],
)
def test_pinned_regions(region, mask):
    levels = np.array([[10, 20, 0, 0, 40], [30, 22, 0, 4, 41], [1, 1, 60, 60, 9]])
    np.testing.assert_array_equal(sensitive(levels, region), rows_of(mask))
    np.testing.assert_array_equal(sensitive(levels[np.newaxis], region)[0], rows_of(mask))


def test_pinned_operands():
    assert short_activations([7, 8, 23, 24, 247, 255]).tolist() == [0, 1, 1, 2, 15, 15]
    assert short_weights([-128, -9, -8, 7, 8, 119, 127]).tolist() == [-8, -1, 0, 0, 1, 7, 7]
    a, w, sure = np.array([200, 9, 40, 7]), np.array([-100, 50, 8, 127]), np.array([1, 0, 0, 1], dtype=bool)
    terms = np.where(sure, a * w, short_activations(a) * short_weights(w) << 8)
    assert terms.tolist() == [-20000, 768, 768, 889]


@pytest.mark.parametrize(
    ("rows", "columns", "lockstep", "elastic"),
    [
        ("10001000,01000100,00100010,00010001", 1, 35, {1: 28, 2: 26, 4: 26, 16: 26, None: 26}),
        ("100100,001000,000010", 2, 21, {1: 18, 2: 18, 4: 18, 16: 18, None: 18}),
        ("000000,000000,000000", 2, 9, {1: 9, 2: 9, 4: 9, 16: 9, None: 9}),
    ],
)
def test_pinned_cycles(rows, columns, lockstep, elastic):
    rows = rows_of(rows)
    assert lockstep_cycles(rows) + len(rows) - 1 + columns - 1 == lockstep
    for depth, cycles in elastic.items():
        begin, end = elastic_cycles(rows, depth)
        assert end + columns - 1 == cycles
        assert begin >= len(rows) - 1


@pytest.mark.parametrize(("share", "expected"), [(0.05, 2.808), (0.09, 3.451), (0.14, 3.801)])
def test_lockstep_cycles_of_independent_rows_are_the_closed_form(share, expected):
    rows = np.random.default_rng(1).random((18, 40_000)) < share
    assert lockstep_cycles(rows) / 40_000 == pytest.approx(expected, rel=0.01)


def network():
    builder = Builder(3, 2, 7, 6, UINT(8)).conv(5, (3, 3), INT(8), UINT(8), pads=(1, 1, 1, 1))
    first = builder.last
    builder.conv(5, (3, 3), INT(8), UINT(8), pads=(1, 1, 1, 1), residual=first)
    builder.conv(4, (1, 1), INT(8), UINT(8), stride=(2, 1))
    shape = builder.tensors[builder.last]
    return builder.conv(3, (shape.height, shape.width), INT(8), None)


def test_a_threshold_of_zero_and_exempt_layers_are_exact():
    builder = network()
    integer, images = builder.network(), builder.images(3)
    expected = run(integer, images)
    outputs, masks = run_drq(integer, images, Region(2, 2, 0), ())
    np.testing.assert_array_equal(outputs, expected)
    assert list(masks) == [layer.name for layer in integer.layers]
    assert all(mask.all() for mask in masks.values())
    names = [layer.name for layer in integer.layers]
    outputs, masks = run_drq(integer, images, Region(2, 2, 256), names)
    np.testing.assert_array_equal(outputs, expected)
    assert masks == {}


def test_a_layer_is_the_sum_of_its_two_precisions():
    builder = Builder(4, 3, 4, 4, UINT(8)).conv(2, (2, 2), INT(8), None)
    integer, images = builder.network(), builder.images(2)
    region = Region(2, 2, 130)
    outputs, masks = run_drq(integer, images, region, ())
    (layer,) = integer.layers
    mask = masks[layer.name]
    assert 0 < mask.mean() < 1
    for n, o, y, x in np.ndindex(2, 2, 3, 3):
        total = int(layer.bias[o])
        for c, ky, kx in np.ndindex(3, 2, 2):
            a, w = int(images[n, c, y + ky, x + kx]), int(layer.weights[o, c, ky, kx])
            if mask[n, c, y + ky, x + kx]:
                total += a * w
            else:
                total += (min((a + 8) >> 4, 15) * min(max((w + 8) >> 4, -8), 7)) << 8
        assert outputs[n, o, y, x] == total


def test_rows_of_the_array_read_taps_of_a_channel_one_after_the_other():
    builder = Builder(5, 2, 4, 5, UINT(8)).conv(1, (2, 2), INT(8), UINT(8), stride=(2, 1), pads=(1, 0, 0, 1))
    integer = builder.network()
    (layer,) = integer.layers
    target = integer.tensors[layer.output]
    mask = np.random.default_rng(5).random((1, 2, 4, 5)) < 0.5
    found = array_reads(layer, target, mask)[0].reshape(2, 2, 2, target.height, target.width)
    for c, ky, kx, y, x in np.ndindex(found.shape):
        row, column = 2 * y + ky - 1, x + kx
        inside = 0 <= row < 4 and column < 5
        assert found[c, ky, kx, y, x] == (inside and mask[0, c, row, column])


def test_costs_lie_between_one_and_four_in_the_order_of_the_freedom_of_the_array():
    builder = Builder(6, 4, 8, 8, UINT(8)).conv(2, (3, 3), INT(8), UINT(8), pads=(1, 1, 1, 1))
    integer = builder.network()
    (layer,) = integer.layers
    target = integer.tensors[layer.output]
    mask = np.random.default_rng(6).random((2, 4, 8, 8)) < 0.1
    costs = layer_costs(layer, target, mask)
    assert 1 <= costs.ideal <= costs.elastic[None] <= costs.elastic[16] <= costs.elastic[4] <= costs.lockstep <= 4
    whole = layer_costs(layer, target, np.ones_like(mask), rows=9)
    assert 3 < whole.lockstep <= 4


def test_a_region_of_nothing_is_an_error():
    with pytest.raises(MaskError, match="rows of a region must be an integer of 1 or more, not 0"):
        Region(0, 4, 3)
