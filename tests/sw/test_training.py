"""Quantization-aware training: projections and gradients by rule, no drift to the golden model, exact continuation."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sigbit
from sigbit.budgets import maskable
from sigbit.cli import main
from sigbit.float_model import run_float
from sigbit.graph import AveragePool, Concat, Conv, Graph, MaxPool, Upsample
from sigbit.quantize import input_levels, quantize
from sigbit.scales import unit_from_statistic
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT, Format
from sigbit_hw.spec.masks import Policy, TermMask
from sigbit_sim.golden import numerics
from sigbit_sim.golden.network import Convolution, IntegerNetwork, run
from sigbit_sim.golden.sdp import masked_levels

torch = pytest.importorskip("torch")

from sigbit.training import Recipe, TrainingError, prepare_qat, train  # noqa: E402
from sigbit.training.straight_through import (  # noqa: E402
    activation_levels,
    channel_statistics,
    keep_parts,
    nearest_integer,
    project,
)

MODELS = Path(sigbit.__file__).parent / "models"
FORMATS = (INT(2), INT(8), UINT(4), ESB(3, 0), ESB(4, 1), ESB(5, 2), ESBU(4, 2), ESBU(8, 6))


def conv(random, name, source, target, shape, **options):
    weight = random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
    return Conv(name=name, input=source, output=target, weight=weight, bias=random.normal(size=shape[0]) / 4, **options)


def everything(random):
    """A lowered graph with every kind of layer and every option of a convolution."""
    pads = (1, 1, 1, 1)
    nodes = (
        conv(random, "first", "x", "a", (8, 2, 3, 3), pads=(1, 0, 2, 1), stride=(1, 2), relu=True),
        MaxPool(name="pool", input="a", output="b", kernel=(3, 2), stride=(2, 1), pads=(1, 0, 1, 1)),
        conv(random, "grouped", "b", "c", (8, 2, 3, 3), pads=pads, groups=4, relu=True, limit=0.9),
        conv(random, "depthwise", "c", "d", (8, 1, 3, 3), pads=(2, 2, 2, 2), dilation=(2, 2), groups=8),
        conv(random, "sum", "d", "e", (8, 8, 1, 1), residual="c", relu=True),
        conv(random, "leaky", "e", "f", (4, 8, 1, 1), slope=np.array([0.1, 0.2, 0.0, 1.0])),
        conv(random, "side", "e", "g", (4, 8, 1, 1), relu=True),
        Concat(name="both", input="f", output="h", others=("g",)),
        AveragePool(name="average", input="h", output="i", kernel=(2, 2), stride=(2, 2)),
        Upsample(name="up", input="i", output="j", factors=(2, 1)),
        conv(random, "logits", "j", "y", (5, 8, 4, 2)),
    )
    return Graph("everything", "x", "y", (2, 8, 8), nodes)


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("type", [torch.float32, torch.float64], ids=str)
def test_the_projection_is_that_of_the_golden_model(format, type):
    random = np.random.default_rng(1)
    ties = np.array(format.midpoints) / 2
    values = np.concatenate([ties, ties - 1e-3, [1e6, -1e6], random.normal(size=500) * format.magnitude_max])
    values = values.astype(np.float32)
    found = project(torch.tensor(values, dtype=type), format)
    assert found.dtype == type
    assert (found.numpy() == numerics.project(values, format)).all()


def test_gradients_of_activations_are_those_of_the_clip():
    values = torch.tensor([-1.0, 0.0, 3.7, 28.0, 28.1], requires_grad=True)
    activation_levels(values, ESBU(4, 2)).sum().backward()
    assert values.grad.tolist() == [0, 1, 1, 1, 0]
    values = torch.tensor([0.4, 0.5, -1.5], requires_grad=True)
    found = nearest_integer(values)
    found.sum().backward()
    assert found.tolist() == [0, 1, -1]
    assert values.grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize("units", ["trained", "statistics"])
@pytest.mark.parametrize("format", ["int:3", "esb:4,1"])
def test_the_gradient_of_a_weight_is_1_whatever_its_level(format, units):
    random = np.random.default_rng(2)
    images = random.normal(size=(8, 2, 8, 8)).astype(np.float32)
    network = prepare_qat(everything(random), images, weights=format, units=units)
    for layer in network.layers.values():
        levels, unit = layer()
        (levels * unit.detach().reshape(-1, 1, 1, 1)).sum().backward()
        (size,), over = layer.parametrizations.weight, layer.parametrizations.weight.original
        assert torch.allclose(over.grad, torch.ones_like(over) * size.size)


def test_weights_are_trained_over_their_size():
    random = np.random.default_rng(2)
    images = random.normal(size=(8, 2, 8, 8)).astype(np.float32)
    for layer in prepare_qat(everything(random), images, weights="int:4").layers.values():
        ((scaled,), over) = layer.parametrizations.weight, layer.parametrizations.weight.original.detach()
        assert (torch.frexp(scaled.size).mantissa == 0.5).all()
        sizes = over.square().flatten(1).mean(1).sqrt()
        assert (sizes > 0.7).all()
        assert (sizes < 1.42).all()
        assert (layer.weight == over * scaled.size).all()


def test_the_gradient_of_a_unit_is_that_of_lsq():
    random = np.random.default_rng(3)
    images = random.normal(size=(8, 2, 8, 8)).astype(np.float32)
    layer = prepare_qat(everything(random), images, weights="int:2").layers["layer1"]
    levels, unit = layer()
    (levels * unit.reshape(-1, 1, 1, 1)).sum().backward()
    scaled = (layer.weight.double() / unit.reshape(-1, 1, 1, 1)).detach().flatten(1).numpy()
    slope = np.where(np.abs(scaled) > 1, np.sign(scaled), numerics.project(scaled, INT(2)) - scaled).sum(axis=1)
    # The parameter is the logarithm of the unit.
    np.testing.assert_allclose(layer.unit.logarithm.grad.numpy(), slope * unit.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "group", "budget", "policy", "kept"),
    [
        ([200, 3, 31, 96, 0, 255, 24, 47], 8, 4, "nib", [192, 0, 0, 96, 0, 240, 0, 32]),
        ([200, 3, 31, 96, 0, 255, 24, 47], 8, 8, "mag", [192, 0, 31, 96, 0, 255, 16, 32]),
        ([200, 3, 31, 96, 0, 255, 24, 47], 8, 8, "term", [192, 3, 16, 96, 0, 255, 16, 32]),
        ([15, 16, 0, 0, 0, 0, 0, 0], 8, 2, "nib", [15, 16, 0, 0, 0, 0, 0, 0]),
        ([24, 31, 30, 16], 4, 1, "nib", [16, 0, 0, 0]),
        ([24, 31, 30, 16], 4, 1, "mag", [0, 16, 0, 0]),
        ([-128, 127, -1, 0, -16, 5, -17, 64], 8, 4, "nib", [-128, 112, 0, 0, -16, 0, 0, 64]),
        ([-128, 127, -1, 0, -16, 5, -17, 64], 8, 16, "nib", [-128, 127, -1, 0, -16, 5, -17, 64]),
    ],
)
def test_term_parts_are_kept_by_importance(values, group, budget, policy, kept):
    levels = torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1).requires_grad_()
    found = keep_parts(levels, group, budget, policy)
    assert found.flatten().tolist() == kept
    found.sum().backward()
    assert (levels.grad == 1).all()


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("group", [4, 8, 16])
def test_kept_parts_are_those_of_the_golden_model(group, policy):
    random = np.random.default_rng(group)
    # Channels that do not fill the last group; few different values, so that there are ties in every group.
    values = random.choice([0, 1, 15, 16, 17, 31, 32, 127, 128, 240, 255], (40, group + 2, 3))
    signed = random.choice([-128, -127, -17, -16, -1, 0, 1, 5, 16, 127], (40, group + 2, 3))
    for levels in (values, random.integers(0, 256, values.shape), signed):
        for budget in range(1, 2 * group + 1):
            found = keep_parts(torch.tensor(levels, dtype=torch.float32), group, budget, policy.name.lower())
            np.testing.assert_array_equal(found.numpy(), masked_levels(levels, TermMask(group, budget, policy)))


def shaken(network, random):
    """All that is trained moved by a little, so that nothing is what post-training quantization left."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.tensor(0.05 * random.normal(size=parameter.shape), dtype=parameter.dtype)
    return network.eval()


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "esb:4,1", "activations": "esbu:4,2", "edge_bits": 8},
        {"weights": "int:3", "activations": "uint:3", "rounding": "reconstruct"},
        {"weights": "esb:5,2", "activations": "esb:5,2"},
        {"weights": "int:4", "activations": "uint:4", "units": "statistics"},
        {"weights": "int:8", "activations": "uint:8", "masks": {"sum": (8, 3), "side": (4, 2, "mag")}},
        {"weights": "nuuq:4,4", "activations": "uint:8", "rounding": "reconstruct"},
        {"weights": "nuuq:3,2", "activations": "nuuqu:8,5"},
        {"weights": "esb:3,0", "activations": "esbu:3,1", "edge_bits": 8, "normalize": True},
        {"weights": "ausn-g:2,1", "activations": "ausn-gu:2,2", "rounding": "reconstruct", "alpha_mode": "output"},
    ],
    ids=lambda options: options["weights"],
)
def test_the_exported_network_computes_what_the_module_does(options):
    random = np.random.default_rng(4)
    images = random.normal(size=(64, 2, 8, 8)).astype(np.float32)
    network = shaken(prepare_qat(everything(random), images[:32], **options), random)
    with torch.no_grad():
        network.train()(torch.from_numpy(images[32:]))
    exported = network.eval().export()
    with torch.no_grad():
        exact, quick = (network(torch.tensor(images, dtype=type)) for type in (torch.float64, torch.float32))
    unit = exported.tensors[exported.output].unit
    expected = run(exported, input_levels(exported, images))
    # In float64 there is no difference at all; in float32 rounding may decide a tie otherwise.
    assert (np.rint(exact.numpy() / unit) == expected).all()
    assert (quick.numpy().argmax(1) == expected.argmax(1)).mean() >= 0.98


def test_batch_normalization_changes_nothing_at_first_and_is_folded():
    random = np.random.default_rng(12)
    graph = everything(random)
    images = random.normal(size=(64, 2, 8, 8)).astype(np.float32)
    options = {"weights": "int:6", "activations": "int:8", "edge_bits": 8}
    without, network = (prepare_qat(graph, images, normalize=each, **options) for each in (False, True))
    values = torch.from_numpy(images)
    with torch.no_grad():
        before = without.eval()(values)
        assert (network.eval()(values) == before).all()
        for module in network.normalizations.values():
            module.logarithm += 0.3
        after = network.eval()(values)
        changed = (after - before).square().mean()
        assert changed > before.square().mean() / 10
    # The float graph of what was trained, without batch normalization and without rounding.
    folded = torch.from_numpy(run_float(network.trained_graph(), images))[:, :, 0, 0]
    assert (after - folded).square().mean() < changed / 8


def test_statistics_of_a_batch_normalize_it_whatever_its_unit():
    random = np.random.default_rng(13)
    images = random.normal(size=(64, 2, 8, 8)).astype(np.float32)
    network = prepare_qat(everything(random), images, weights="int:4", normalize=True)
    first = {name: module.average_variance.clone() for name, module in network.normalizations.items()}
    sums = torch.from_numpy(random.integers(-99, 99, (64, 8, 3, 3)).astype(np.float32))
    module = network.normalizations["layer0"]
    gain = torch.tensor(random.uniform(0.01, 0.1, 8))
    factor, offset = module.train()(sums, gain)
    found = sums.double() * (gain * factor).reshape(-1, 1, 1) + offset.reshape(-1, 1, 1)
    # Accumulated in float32, and with a little added to the variance.
    assert torch.allclose(found.mean((0, 2, 3)), module.first_mean, atol=1e-5)
    assert torch.allclose(found.var((0, 2, 3), correction=0), module.first_variance, rtol=1e-3)
    batch = sums.double().var((0, 2, 3), correction=0) * gain**2
    assert torch.allclose(module.average_variance, 0.9 * first["layer0"] + 0.1 * batch, rtol=1e-4)
    network.freeze_units()
    factor, offset = module(10 * sums, gain)
    assert torch.equal(factor, module.folded()[0])
    assert torch.allclose(module.average_variance, 0.9 * first["layer0"] + 0.1 * batch, rtol=1e-4)


def test_gradients_of_channel_statistics_are_those_of_autograd():
    random = torch.Generator().manual_seed(1)
    values = torch.randn(4, 3, 5, 2, generator=random, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(channel_statistics, values)
    mean, variance = channel_statistics(values)
    assert torch.allclose(mean, values.mean((0, 2, 3)))
    assert torch.allclose(variance, values.var((0, 2, 3), correction=0))


def test_units_of_ausn_stay_powers_of_two_and_below_a_clip():
    random = np.random.default_rng(10)
    images = random.normal(size=(32, 2, 8, 8)).astype(np.float32)
    options = {"weights": "ausn-g:2,1", "activations": "ausn-gu:2,2"}
    network = prepare_qat(everything(random), images, **options)
    first = network.export()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.4
    exported = network.export()
    limited = exported.tensors["c"]
    assert limited.unit * limited.format.magnitude_max <= 0.9
    factors = {
        name: tensor.unit / first.tensors[name].unit
        for name, tensor in exported.tensors.items()
        if tensor.format is not None and tensor.format.ausn
    }
    assert factors.pop("c") == 1.0
    assert set(factors.values()) == {2.0}
    for after, before in zip(exported.layers, first.layers, strict=True):
        if hasattr(after, "weights"):
            assert (after.weight_units == 2 * before.weight_units).all()


def test_before_training_the_module_is_the_quantized_network():
    random = np.random.default_rng(5)
    images = random.normal(size=(32, 2, 8, 8)).astype(np.float32)
    for options in ({}, {"rounding": "reconstruct"}):
        wanted = quantize(everything(np.random.default_rng(6)), images, "int:3", "uint:4", **options)
        network = prepare_qat(
            everything(np.random.default_rng(6)), images, weights="int:3", activations="uint:4", **options
        )
        found = network.eval().export()
        for one, other in zip(wanted.layers, found.layers, strict=True):
            if hasattr(one, "weights"):
                assert (one.weights == other.weights).all()


def test_masked_layers_compute_with_the_parts_that_are_kept():
    random = np.random.default_rng(11)
    images = random.normal(size=(16, 2, 8, 8)).astype(np.float32)
    options = {"weights": "int:8", "activations": "uint:8"}

    def outputs(masks):
        network = prepare_qat(everything(np.random.default_rng(12)), images, masks=masks, **options).eval()
        with torch.no_grad():
            return network, network(torch.tensor(images))

    _, plain = outputs({})
    _, exact = outputs({"side": (8, 16)})
    network, coarse = outputs({"side": (8, 2)})
    assert torch.equal(plain, exact)
    assert not torch.equal(plain, coarse)
    # Budgets fall from everything to those of the masks; the exported network has the latter.
    found = []
    for share in (0, 0.5, 1):
        network.anneal(share)
        with torch.no_grad():
            found.append(network(torch.tensor(images)))
    assert torch.equal(found[0], plain)
    assert torch.equal(found[2], coarse)
    assert not torch.equal(found[1], plain)
    assert not torch.equal(found[1], coarse)
    network.anneal(0)
    masks = {layer.name: layer.mask for layer in network.export().layers if isinstance(layer, Convolution)}
    assert {name for name, mask in masks.items() if mask} == {"side"}
    assert masks["side"] == TermMask(8, 2)


def test_all_layers_that_can_have_a_budget_are_named_at_once():
    images = np.random.default_rng(11).normal(size=(4, 2, 8, 8)).astype(np.float32)
    graph = everything(np.random.default_rng(12))
    masks = {"side": (8, 3), "*": (8, 4, "mag")}
    network = prepare_qat(graph, images, weights="int:8", activations="uint:8", masks=masks).export()
    found = {layer.name: layer.mask for layer in network.layers if getattr(layer, "mask", None)}
    names = {layer.name for layer in maskable(network, 8)}
    assert len(names) > 1
    assert found == {name: TermMask(8, 4, Policy.MAG) for name in names} | {"side": TermMask(8, 3)}
    with pytest.raises(TrainingError, match=r"'\*': a mask is \(group, budget\)"):
        prepare_qat(graph, images, weights="int:8", activations="uint:8", masks={"*": "sdp"})


def test_units_by_statistics_are_averages_of_the_batches():
    random = np.random.default_rng(7)
    images = random.normal(size=(32, 2, 8, 8)).astype(np.float32)
    network = prepare_qat(everything(random), images, weights="int:4", activations="uint:4", units="statistics")
    tensor = next(module for module in network.tensors.values() if getattr(module, "format", None) == UINT(4))
    star = float(unit_from_statistic(1.0, UINT(4)))
    values = torch.tensor([-3.0, 0.0, 3.0, 4.0])
    batch, before = np.sqrt(12.5), float(tensor.average)
    assert float(tensor.train()(values)) == pytest.approx(star * batch)
    assert float(tensor.average) == pytest.approx(0.9 * before + 0.1 * batch)
    assert float(tensor.eval()(values)) == pytest.approx(star * (0.9 * before + 0.1 * batch))
    network.train().freeze_units()
    tensor(values)
    assert float(tensor.average) == pytest.approx(0.9 * before + 0.1 * batch)


def test_what_cannot_be_trained_is_refused():
    random = np.random.default_rng(9)
    images = random.normal(size=(4, 2, 8, 8)).astype(np.float32)
    with pytest.raises(TrainingError, match="units must be trained or statistics, not 'best'"):
        prepare_qat(everything(random), images, units="best")
    with pytest.raises(TrainingError, match=r"those of AUSN are powers of two; .* weights of grouped, depthwise, sum"):
        prepare_qat(everything(random), images, weights="ausn-g:2,1", edge_bits=8, normalize=True)
    with pytest.raises(TrainingError, match=r"'none': no convolution.*\n.*'grouped': masks need activations in uint:8"):
        prepare_qat(everything(random), images, masks={"none": (8, 4), "grouped": (8, 4)})


RECIPE = {
    "quantization": {"weights": "int:3", "activations": "uint:3", "edge_bits": 8},
    "stages": [
        {"epochs": 1, "learning_rate": 2e-3, "quantization": {"weights": "int:4"}},
        {"epochs": 2.5, "learning_rate": 2e-3},
    ],
    "batch": 32,
    "crop": 1,
    "flip": False,
    "scale": 16,
    "calibration": 64,
}


def digits():
    with np.load(MODELS / "digits.npz") as file:
        return file["x_test"], file["y_test"].astype(np.int64), file["x_calibration"]


@pytest.mark.parametrize("normalize", [False, True])
def test_a_continued_training_is_the_uninterrupted_one_and_learns(tmp_path, normalize):
    pytest.importorskip("onnx")
    images, labels, _ = digits()
    model = sigbit.read_onnx(MODELS / "digits.onnx")
    recipe = Recipe.from_dict({**RECIPE, "normalize": normalize})
    test = ((images / 16).astype(np.float32)[:, None], labels)
    whole, log = train(model, recipe, images, labels, tmp_path / "whole", test=test)
    assert [(row["stage"], row["epoch"], row["steps"]) for row in log] == [
        (0, 0, 12),
        (1, 0, 12),
        (1, 1, 12),
        (1, 2, 6),
    ]
    assert log[-1]["loss"] < log[1]["loss"]

    def stopped(*arguments):
        if arguments[0].startswith("stage 2, epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, recipe, images, labels, tmp_path / "part", test=test, progress=stopped)
    again, _ = train(model, recipe, images, labels, tmp_path / "part", test=test, resume=True)
    for one, other in zip(whole.layers, again.layers, strict=True):
        if hasattr(one, "weights"):
            assert (one.weights == other.weights).all()
            assert (one.bias == other.bias).all()
    assert whole.tensors == again.tensors
    saved = IntegerNetwork.load(tmp_path / "part" / "network.npz")
    assert saved.tensors == whole.tensors
    assert len((tmp_path / "part" / "log.jsonl").read_text().splitlines()) == 4
    checkpoint = torch.load(tmp_path / "part" / "checkpoint.pt", weights_only=True)
    checkpoint["model"] = {f"old.{name}": value for name, value in checkpoint["model"].items()}
    torch.save(checkpoint, tmp_path / "part" / "checkpoint.pt")
    with pytest.raises(TrainingError, match="has other parameters than this version trains"):
        train(model, recipe, images, labels, tmp_path / "part", resume=True)
    with pytest.raises(TrainingError, match=r"another recipe \(seed differ\)"):
        train(model, replace(recipe, seed=1), images, labels, tmp_path / "part", resume=True)
    with pytest.raises(TrainingError, match="no checkpoint"):
        train(model, recipe, images, labels, tmp_path / "none", resume=True)


def test_a_recipe_that_is_wrong_is_refused_with_all_that_is_wrong(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(
        json.dumps({"stages": [{"epoch": 3}], "batch": 0, "units": "x", "flips": True, "warmup": 2, "flip": 1})
    )
    with pytest.raises(TrainingError) as error:
        Recipe.read(path)
    for text in (
        "quantization is missing", "stages[0].epoch is unknown", "stages[0].epochs is missing", "batch must be",
        "units must be trained or statistics", "flips is unknown", "warmup must be a number from 0 to 1",
        "flip must be true or false, not 1",
    ):  # fmt: skip
        assert text in str(error.value)
    path.write_text("[")
    with pytest.raises(TrainingError, match="is not JSON"):
        Recipe.read(path)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "recipes").rglob("*.json")), ids=lambda path: path.stem
)
def test_committed_recipes_can_be_used(path):
    recipe = Recipe.read(path)
    for options in (recipe.quantization, *(stage.quantization for stage in recipe.stages)):
        for key in ("weights", "activations"):
            if key in options:
                assert str(Format.parse(options[key])) == options[key]


def written(folder, stages):
    path = folder / "recipe.json"
    path.write_text(json.dumps({**RECIPE, "stages": stages}))
    return [str(path), str(MODELS / "digits.onnx"), "--data", f"{MODELS / 'digits.npz'}:x_test,y_test"]


def test_the_command_trains_and_writes_a_network(tmp_path, capsys):
    pytest.importorskip("onnx")
    arguments = written(tmp_path, [{"epochs": 0.5}])
    test = ["--test", f"{MODELS / 'digits.npz'}:x_test,y_test", "--seed", "3"]
    assert main(["train", *arguments, *test, "-o", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] > 0.9
    assert IntegerNetwork.load(result["network"]).layers[1].weight_format == INT(3)
    assert main(["train", *arguments[:-1], f"{MODELS / 'digits.npz'}:x_test", "-o", str(tmp_path / "out")]) == 2
    assert "Training needs labels" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_the_same_network_as_one(tmp_path):
    pytest.importorskip("onnx")
    recipe = {**RECIPE, "crop": 0, "stages": [{"epochs": 1, "learning_rate": 1e-4}]}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    command = [
        "-m", "sigbit", "train", str(tmp_path / "recipe.json"), str(MODELS / "digits.onnx"),
        "--data", f"{MODELS / 'digits.npz'}:x_test,y_test", "-o",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, start in (("one", []), ("two", launcher)):
        found = subprocess.run(
            [sys.executable, *start, *command, str(tmp_path / name)], env=environment, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stderr
    one, two = (IntegerNetwork.load(tmp_path / name / "network.npz") for name in ("one", "two"))
    for a, b in zip(one.layers, two.layers, strict=True):
        if hasattr(a, "weights"):
            # The sums of gradients are rounded otherwise.
            assert (a.weights == b.weights).mean() > 0.99


def test_without_pytorch_the_message_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("sigbit.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SigbitError, match=r"pip install 'sigbit\[train\]'"):
        sigbit.prepare_qat("model.onnx", np.zeros((1, 1, 8, 8)))
