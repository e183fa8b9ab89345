"""Budgets of term masks: which layers may have one, greedy choice under a target, and the command line."""

import json
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
from networks import Builder
from sigbit.budgets import (
    BudgetError,
    average_bits,
    choose_budgets,
    given_budgets,
    maskable,
    predicted_cycles,
    relative_error,
    report,
    uniform_budgets,
    with_budgets,
)
from sigbit.cli import main
from sigbit.evaluation import accuracy
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import INT, UINT
from sigbit_hw.spec.masks import Policy, TermMask
from sigbit_sim.golden.network import IntegerNetwork, run

CONFIG = replace(
    PRESETS["tiny"], weight_format=INT(8), activation_format=UINT(8), cell="masked", feature_depth=4096,
    weight_depth=4096,
)  # fmt: skip


def small_network():
    builder = Builder(7, 3, 8, 8, UINT(8)).conv(8, (3, 3), INT(8), UINT(8), pads=(1, 1, 1, 1))
    first = builder.last
    builder.conv(8, (3, 3), INT(8), UINT(8), pads=(1, 1, 1, 1))
    builder.conv(8, (1, 1), INT(8), UINT(8), residual=first)
    builder.select(0, 8, INT(8), (2, 2))
    builder.conv(8, (3, 3), INT(8), UINT(8), groups=4)
    builder.average_pool((2, 2), (1, 1), UINT(8))
    return builder.conv(4, (1, 1), INT(8), None)


@pytest.fixture(scope="module")
def case():
    builder = small_network()
    images = builder.images(6)
    network = builder.network()
    return network, images, run(network, images).argmax(axis=1)


def test_edges_copies_and_groups_of_few_channels_stay_exact(case):
    network, _, _ = case
    assert [layer.name for layer in maskable(network, 4)] == ["layer1", "layer2"]
    masked = with_budgets(network, 4, uniform_budgets(network, 4, 3), Policy.MAG)
    masks = {layer.name: getattr(layer, "mask", None) for layer in masked.layers}
    assert {name for name, mask in masks.items() if mask is not None} == {"layer1", "layer2"}
    assert masks["layer1"] == TermMask(4, 3, Policy.MAG)


def test_average_bits_weigh_layers_by_their_multiplications(case):
    network, _, _ = case
    assert average_bits(network, 4, {}) == 8
    # 3x3 and 1x1 of the same channels and pixels.
    assert average_bits(network, 4, {"layer1": 4, "layer2": 2}) == pytest.approx((9 * 4 + 2) / 10)


@pytest.mark.parametrize("target", [0.9, 0.7])
def test_a_target_of_cycles_is_met_with_as_few_steps_as_it_takes(case, target):
    network, images, _ = case
    chosen = choose_budgets(network, images, CONFIG, target_cycles=target)
    assert chosen.masked.cycles <= target * chosen.exact.cycles
    assert chosen.exact.cycles == predicted_cycles(network, CONFIG)
    assert chosen.masked.cycles == predicted_cycles(chosen.network, CONFIG)
    masks = {layer.name: layer.mask.budget for layer in chosen.network.layers if getattr(layer, "mask", None)}
    assert masks == chosen.budgets
    outputs = run(chosen.network, images)
    assert chosen.masked.error == relative_error(outputs, run(network, images))
    rows = report(chosen, CONFIG)
    for row in rows:
        assert row["cycles"] / row["exact_cycles"] == row["budget"] / 8
        assert row["error"] == chosen.errors[row["name"]][row["budget"]]
    # One step less would not have been enough.
    assert chosen.masked.cycles > (target - 0.12) * chosen.exact.cycles


def test_the_layer_that_hurts_least_per_cycle_goes_first(case):
    network, images, _ = case
    chosen = choose_budgets(network, images, CONFIG, target_cycles=0.97)
    (name,) = {name for name, budget in chosen.budgets.items() if budget < 8}
    cycles = {row["name"]: row["exact_cycles"] for row in report(chosen, CONFIG)}
    assert name == min(chosen.errors, key=lambda layer: chosen.errors[layer][7] / cycles[layer])


def test_a_target_of_accuracy_is_kept_on_the_calibration_images(case):
    network, images, labels = case
    chosen = choose_budgets(network, images, CONFIG, target_accuracy=1.0, labels=labels)
    assert chosen.masked.accuracy == accuracy(run(chosen.network, images), labels) == 1.0
    free = choose_budgets(network, images, CONFIG, target_accuracy=0.0, labels=labels)
    assert set(free.budgets.values()) == {1}
    assert free.masked.cycles < chosen.exact.cycles


def test_given_budgets_are_measured(case):
    network, images, labels = case
    chosen = given_budgets(network, images, CONFIG, 4, labels=labels)
    assert chosen.budgets == {"layer1": 4, "layer2": 4}
    assert chosen.masked.average_bits == 4
    assert chosen.exact.accuracy == 1.0
    assert report(chosen, CONFIG)[0]["error"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give one target"),
        ({"target_cycles": 0.5, "target_accuracy": 0.9}, "Give one target"),
        ({"target_accuracy": 0.9}, "needs labels"),
        ({"target_cycles": 1.5}, "above 0 and at most 1, not 1.5"),
        ({"target_cycles": 0.01}, "more than 0.01"),
        ({"target_accuracy": 1.1, "labels": np.zeros(6, dtype=int)}, "which is less than 1.1"),
    ],
)
def test_targets_that_make_no_sense_are_errors(case, options, message):
    network, images, _ = case
    with pytest.raises(BudgetError, match=message):
        choose_budgets(network, images, CONFIG, **options)


def test_cells_without_masks_and_networks_without_layers_for_them_are_errors(case):
    network, images, _ = case
    with pytest.raises(BudgetError, match="but cell is logic; choose preset sdp"):
        choose_budgets(network, images, PRESETS["tiny"], target_cycles=0.9)
    short = Builder(1, 3, 4, 4, UINT(8)).conv(4, (4, 4), INT(8), None).network()
    with pytest.raises(BudgetError, match="no layer that can be masked"):
        given_budgets(short, images[:, :, :4, :4], CONFIG, 3)


MODELS = files("sigbit") / "models"
COMMAND = [
    "quantize", f"{MODELS}/digits.onnx", "--calibration", f"{MODELS}/digits.npz:x_test,y_test", "--scale", "16",
]  # fmt: skip


def test_the_command_line_chooses_budgets_and_says_what_they_cost(tmp_path, capsys):
    output = tmp_path / "network.npz"
    command = [*COMMAND, "-o", str(output), "--sdp"]
    assert main([*command, "--target-cycles", "0.9", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["masked"]["cycles"] <= 0.9 * result["exact"]["cycles"]
    assert 0 <= result["masked"]["accuracy"] <= 1
    network = IntegerNetwork.load(output)
    assert {layer.name: layer.mask.budget for layer in network.layers if getattr(layer, "mask", None)} == result[
        "budgets"
    ]
    assert main([*command, "--budget", "6", "--policy", "mag"]) == 0
    text = capsys.readouterr().out
    assert "3.00 average bits" in text
    assert "calibration images" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sdp", "--target-cycles", "0.9", "--weights", "int:4"], "--weights has no effect on --sdp"),
        (["--target-cycles", "0.9"], "--target-cycles has no effect on networks without --sdp"),
        (["--sdp"], "Give one target"),
        (["--sdp", "--budget", "99"], "budget must be 1 to 16 for groups of 8, not 99"),
        (["--sdp", "--target-cycles", "0.9", "--config", "small"], "but cell is logic"),
    ],
)
def test_options_that_do_not_fit_are_errors(tmp_path, capsys, options, message):
    assert main([*COMMAND, "-o", str(tmp_path / "network.npz"), *options]) == 2
    assert message in capsys.readouterr().err
