"""Search of mixed formats: sensitivities by hand, assignments under budgets, points that run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sigbit
from sigbit.adaptation import unit_window
from sigbit.cli import main
from sigbit.float_model import run_float
from sigbit.graph import Conv, Graph, MaxPool
from sigbit.performance import report
from sigbit.quantize import quantize
from sigbit.scales import unit_mse
from sigbit.search import Budget, Point, SearchError, divergence, draw, pareto, search, sensitivities
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import AUSN_G, ESB, INT, NUUQ, UINT
from sigbit_sim.golden.numerics import project
from sigbit_sim.ledger import ledger

MODELS = Path(sigbit.__file__).parent / "models"
MIXED = ("weights", "activations")
DIGITS = f"{MODELS / 'digits.npz'}:"


def conv(random, name, source, target, shape, **options):
    weight = random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
    return Conv(name=name, input=source, output=target, weight=weight, bias=random.normal(size=shape[0]) / 4, **options)


@pytest.fixture
def model():
    """A small classifier, images for calibration, and images with the labels that it gives them."""
    random, pads = np.random.default_rng(1), (1, 1, 1, 1)
    nodes = (
        conv(random, "first", "x", "a", (8, 2, 3, 3), pads=pads, relu=True),
        conv(random, "second", "a", "b", (8, 8, 3, 3), pads=pads, relu=True),
        MaxPool(name="pool", input="b", output="c", kernel=(2, 2), stride=(2, 2)),
        conv(random, "third", "c", "d", (8, 8, 3, 3), pads=pads, relu=True),
        conv(random, "logits", "d", "y", (5, 8, 2, 2)),
    )
    graph = Graph("small", "x", "y", (2, 4, 4), nodes)
    images = random.normal(size=(80, 2, 4, 4)).astype(np.float32)
    return graph, images[:40], (images[40:], run_float(graph, images[40:]).reshape(40, -1).argmax(axis=1))


def test_the_divergence_is_that_of_kullback_and_leibler():
    wanted, found = np.log([[0.5, 0.25, 0.25], [1, 1, 1]]), np.log([[0.25, 0.25, 0.5], [1, 1, 1]])
    assert divergence(wanted, wanted + 5) == pytest.approx(0)
    assert divergence(wanted, found) == pytest.approx((0.5 * np.log(2) - 0.25 * np.log(2)) / 2)


def test_a_sensitivity_is_what_one_quantized_layer_does_to_the_output(model):
    graph, images, _ = model
    first, second = [node for node in graph.nodes if isinstance(node, Conv)][:2]
    found = sensitivities(graph, images[:20], {second.name: (INT(2), INT(8))}, {first.name: (UINT(2),)})
    wanted = run_float(graph, images[:20])

    def output(nodes):
        changed = replace_nodes(graph, nodes)
        return run_float(changed, images[:20])

    for format in (INT(2), INT(8)):
        units = unit_mse(second.weight, format, 0).reshape(-1, 1, 1, 1)
        other = replace(second, weight=project(second.weight / units, format) * units)
        expected = divergence(wanted, output({second.name: other}))
        assert found[second.name, "weights", format] == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert found[second.name, "weights", INT(2)] > 10 * found[second.name, "weights", INT(8)]
    assert found[first.name, "activations", UINT(2)] > 0


def replace_nodes(graph, nodes):
    kept = tuple(nodes.get(node.name, node) for node in graph.nodes)
    return Graph(graph.name, graph.input, graph.outputs, graph.input_shape, kept)


def test_a_search_goes_from_accurate_to_cheap_and_keeps_its_budget(model):
    graph, calibration, validation = model
    config = replace(PRESETS["tiny"], weight_format=INT(3), activation_format=UINT(3))
    formats = {"weights": ["int:8", "esb:4,1"], "activations": ["uint:8"]}
    free = search(graph, calibration, [config], **formats, images=16, points=3, validation=validation)
    assert free.float_accuracy == 1
    cycles = [point.cycles for point in free.points]
    assert cycles == sorted(cycles)
    assert cycles[-1] > 1.5 * cycles[0]
    assert free.points[0].divergence > free.points[-1].divergence
    assert free.best.divergence == min(point.divergence for point in free.points)
    # What it says is what the rest of the package says of the same formats.
    point = free.points[1]
    again = quantize(graph, calibration, "int:3", "uint:3", 8, layers=point.layers)
    assert report(again, config)["total"]["weight_bytes"] == point.weight_bytes
    for one, other in zip(again.layers, point.network.layers, strict=True):
        assert not hasattr(one, "weights") or (one.weights == other.weights).all()
    limit = (cycles[0] + cycles[-1]) / 2
    bound = search(
        graph, calibration, [config], **formats, images=16, points=2, validation=validation, budget=Budget(cycles=limit)
    )
    assert cycles[0] < bound.best.cycles <= limit
    none = search(graph, calibration, [config], **formats, images=4, points=2, budget=Budget(weight_bytes=1))
    assert none.best is None


def test_a_budget_of_look_up_tables_chooses_the_accelerator(model):
    graph, calibration, _ = model
    narrow = replace(PRESETS["tiny"], weight_format=INT(3), activation_format=UINT(3))
    wide = replace(PRESETS["tiny"], weight_format=INT(8), activation_format=UINT(8))
    luts = [ledger(config)["lut"] for config in (narrow, wide)]
    assert luts[0] < luts[1]
    options = {"weights": ["int:8"], "images": 4, "points": 2}
    for limit, weights in ((None, "int:8"), (luts[1], "int:8"), (luts[1] - 1, "int:3"), (luts[0] - 1, None)):
        found = search(graph, calibration, [narrow, wide], **options, budget=Budget(cycles=1e9, luts=limit))
        assert {point.luts for point in found.points} == set(luts)
        assert (found.best and found.best.weight_format) == weights


def point(cycles, size, loss):
    return Point(
        weight_format="a", activation_format="b", layers={}, predicted_divergence=0.0, divergence=loss, accuracy=None,
        cycles=cycles, weight_bytes=size, luts=1000, network=None,
    )  # fmt: skip


def test_the_pareto_front_has_what_nothing_beats():
    points = [point(1, 1, 3.0), point(2, 1, 2.0), point(2, 2, 2.0), point(3, 1, 2.5), point(3, 3, 1.0)]
    assert pareto(points) == [points[0], points[1], points[4]]


def test_formats_that_an_accelerator_cannot_run_are_left_out_there(model):
    graph, calibration, _ = model
    config = replace(PRESETS["tiny"], weight_format=INT(3), activation_format=UINT(3))
    found = search(graph, calibration, [config], weights=[], activations=["esbu:4,2", "uint:6"], images=4, points=2)
    used = {own.get("activations") for point in found.points for own in point.layers.values()} - {None}
    assert used <= {"uint:3", "uint:6"}
    assert ESB(4, 1) not in used


def test_levels_of_a_codebook_are_those_of_the_layer(model):
    graph, calibration, _ = model
    first = graph.nodes[0]
    channels = np.tile(np.resize([-9, 0, 1, 31], 18), (8, 1))
    weight = 0.1 * np.random.default_rng(2).permuted(channels, axis=1).reshape(first.weight.shape)
    graph = Graph("levels", "x", "y", graph.input_shape, (replace(first, weight=weight), *graph.nodes[1:]))
    formats = NUUQ(4, 6), AUSN_G(2, 1), INT(4)
    found = sensitivities(graph, calibration[:8], {first.name: formats}, {})
    losses = [found[first.name, "weights", format] for format in formats]
    assert losses[0] < min(losses[1:]) / 50, losses


def test_units_of_ausn_are_powers_of_two(model):
    graph, calibration, _ = model
    first, form = graph.nodes[0], AUSN_G(2, 1)
    units = unit_window(first.weight, form, channel_axis=0).reshape(-1, 1, 1, 1)
    other = replace(first, weight=project(first.weight / units, form) * units)
    images = calibration[:8]
    wanted = divergence(run_float(graph, images), run_float(replace(graph, nodes=(other, *graph.nodes[1:])), images))
    found = sensitivities(graph, images, {first.name: (form,)}, {})
    assert found[first.name, "weights", form] == pytest.approx(wanted)


def test_codebooks_are_tried_where_any_of_their_levels_would_run(model):
    # Eight parts of -1, 0 and 1 with shifts of 4 make -31, 0 and 31, but not every integer of 6 bits.
    graph, calibration, _ = model
    config = replace(PRESETS["tiny"], weight_format=INT(2), activation_format=UINT(4))
    found = search(graph, calibration, [config], weights=["nuuq:4,6"], edge_bits=None, images=4, points=2)
    assert {own.get("weights") for point in found.points for own in point.layers.values()} - {None} == {"int:2"}


@pytest.mark.parametrize("cell", ["table", "logic"])
def test_formats_are_mixed_as_the_array_runs_them(model, cell):
    graph, calibration, _ = model
    config = PRESETS["tiny"]
    if cell == "table":
        config = replace(config, cell="table", table_weight_bits=7, table_product_bits=12)
    weights, activations = ["nuuq:16,6", "ausn-g:2,1", "nuuq:255,8"], ["nuuqu:16,6", "ausn-gu:2,2"]
    found = search(graph, calibration, [config], weights=weights, activations=activations, images=4, points=3)
    used = {what: {own.get(what) for point in found.points for own in point.layers.values()} for what in MIXED}
    # In tables levels are data; elsewhere activations find their level by thresholds, of which this array has none.
    assert ("nuuqu:16,6" in used["activations"]) == (cell == "table")
    assert used["weights"] & {"nuuq:16,6", "nuuq:255,8"}
    for point in found.points:
        assert point.cycles == round(report(point.network, config)["total"]["cycles_per_image"])


def test_what_cannot_be_searched_is_refused(model):
    graph, calibration, _ = model
    for configs, options, text in (
        ([], {}, "at least one accelerator"),
        ([PRESETS["tiny"]], {"points": 1}, "points must be at least 2"),
        ([PRESETS["tiny"]], {"budget": Budget(loss=1.0)}, "needs images and labels"),
    ):
        with pytest.raises(SearchError, match=text):
            search(graph, calibration, configs, weights=["int:8"], **options)


def test_what_does_not_fit_is_named_before_anything_is_measured(model):
    graph, calibration, _ = model
    small = replace(PRESETS["tiny"], feature_depth=16)
    told = []
    with pytest.raises(SearchError, match=r"With esb:4,2 x esbu:4,2 in all layers .* on esb.*feature_depth"):
        search(
            graph, calibration, [PRESETS["tiny"], small], weights=["int:8"], activations=["uint:8"],
            progress=lambda text, *_: told.append(text),
        )  # fmt: skip
    assert not any("measuring" in text for text in told)


def test_the_command_writes_formats_that_quantize_takes_and_a_picture(tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    arguments = ["search", str(MODELS / "digits.onnx"), "--calibration", DIGITS + "x_calibration", "--scale", "16"]
    arguments += ["--config", "tiny", "--natives", "int:3/uint:3", "--points", "2", "--json"]
    assert main([*arguments, "--max-cycles", "1e9", "-o", "layers.json", "--network", "best.npz"]) == 0
    best = next(row for row in json.loads(capsys.readouterr().out)["points"] if row["best"])
    layers = json.loads(Path("layers.json").read_text())
    assert layers == best["layers"]
    quantized = ["quantize", *arguments[1:6], "--layer-formats", "layers.json", "--edge-bits", "8", "-o", "again.npz"]
    assert main([*quantized, "--weights", "int:3", "--activations", "uint:3"]) == 0


def test_a_picture_is_drawn_or_says_what_is_missing(tmp_path, model, monkeypatch):
    graph, calibration, validation = model
    config = replace(PRESETS["tiny"], weight_format=INT(3), activation_format=UINT(3))
    result = search(graph, calibration, [config], weights=["int:8"], images=4, points=2, validation=validation)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(SearchError, match=r"pip install 'sigbit\[plot\]'"):
        draw(result, tmp_path / "points.png")
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    draw(result, tmp_path / "points.png")
    assert (tmp_path / "points.png").read_bytes().startswith(b"\x89PNG")
