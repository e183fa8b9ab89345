"""Random networks on the emitted Verilog give the golden integers, on accelerators that differ in every number."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import sigbit
from networks import (
    Builder,
    codebook_network,
    mixed_network,
    random_dag,
    random_network,
    random_structure,
    roomy,
    small_detector,
    small_unet,
    with_masks,
)
from sigbit import evaluation, performance
from sigbit.compiler import compile
from sigbit.device import EmulatorDevice, RtlDevice
from sigbit.graph import Add, Conv, Graph, LeakyRelu, MaxPool, Relu
from sigbit.quantize import input_levels, quantize
from sigbit.session import Session
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import AUSN_A, AUSN_AU, AUSN_G, AUSN_GU, ESB, ESBU, INT, NUUQ, NUUQU, UINT
from sigbit_hw.spec.masks import TermMask
from sigbit_hw.spec.packets import Kind
from sigbit_hw.spec.registers import Register
from sigbit_sim import cycles
from sigbit_sim.golden.network import run

TINY = PRESETS["tiny"]
#: Streamed weights and parameters, words of two columns, rows, planes, more columns than lanes, wide beats.
DENSE = roomy(
    TINY, ESB(4, 2), ESBU(4, 2), rows=2, lanes=2, columns=8, weight_columns=2, planes=2, post_lanes=2, strip_depth=8,
    weight_depth=32, parameter_depth=4, stream_bits=512,
)  # fmt: skip
#: Tables for all weights of 4 bits, and so few words for level tables that these are streamed.
TABLES = roomy(
    TINY, ESB(4, 2), ESBU(4, 2), columns=12, weight_columns=2, planes=2, cell="table", fill_columns=4, weight_depth=256,
    table_weight_bits=7, table_product_bits=12, level_depth=64,
)  # fmt: skip
MASKED = roomy(TINY, INT(8), UINT(8), cell="masked", token_lanes=2, feature_depth=4096, weight_depth=4096)
FAST = {"tiny": TINY, "dense": DENSE, "tables": TABLES, "masked": MASKED}
SLOW = {
    "fewer columns than lanes": roomy(TINY, ESB(4, 1), ESBU(4, 2), rows=1, lanes=16, columns=8, stream_bits=128),
    "three rows, short codes": roomy(TINY, ESB(3, 0), ESBU(2, 0), rows=3, lanes=4, columns=12, strip_depth=16),
    "two planes, odd code width": roomy(
        TINY,
        ESB(5, 2),
        ESBU(5, 3),
        lanes=2,
        columns=36,
        weight_columns=4,
        planes=2,
        stream_bits=256,
        feature_depth=4096,
    ),
    "four planes, integers": roomy(
        TINY, INT(8), UINT(8), rows=1, columns=16, post_lanes=2, planes=4, strip_depth=8, weight_depth=128
    ),
    "signed activations": roomy(TINY, ESB(4, 2), ESB(4, 2), rows=4, lanes=2, columns=8, parameter_depth=2),
    "subsets": roomy(
        TINY, INT(8), UINT(4), columns=12, weight_columns=2, planes=2, cell="subset", fill_columns=4, weight_depth=256
    ),
    "subsets, signed activations": roomy(TINY, INT(8), INT(8), rows=1, lanes=8, cell="subset", fill_columns=2),
    "subsets and logic": roomy(
        TINY,
        INT(8),
        UINT(4),
        columns=12,
        weight_columns=2,
        planes=2,
        cell="subset",
        logic_columns=4,
        fill_columns=4,
        weight_depth=256,
    ),
    "tables and logic": roomy(
        TINY,
        ESB(4, 2),
        ESBU(3, 2),
        columns=12,
        weight_columns=2,
        cell="table",
        logic_columns=4,
        fill_columns=4,
        level_depth=32,
    ),
    "tables, signed activations": roomy(TINY, INT(4), INT(4), rows=1, lanes=8, cell="table", fill_columns=1),
    "one lane": roomy(
        TINY, ESB(4, 2), ESBU(4, 2), rows=1, lanes=3, columns=3, post_lanes=1, stream_bits=512, feature_depth=4096
    ),
}


@cache
def device(name):
    return RtlDevice((FAST | SLOW)[name], timeout_cycles=1_000_000)


def check(name, builder, images, stalls=(0, 0)):
    """As :func:`check_network`, of a builder's network."""
    return check_network(name, builder.network(), images, stalls)


def check_network(name, network, images, stalls=(0, 0), batch=1):
    """A session gives the golden integers and counts what the compiler predicts; returns the program.

    On masked cells layers keep random numbers of parts.
    """
    accelerator = device(name)
    if accelerator.config.masked:
        network = with_masks(network, accelerator.config.lanes, len(network.layers))
    program = compile(network, accelerator.config, batch)
    groups = program.groups(len(images))
    expected = run(network, images)
    accelerator.model.set_stalls(len(images), *stalls)
    with Session(accelerator, program) as session:
        accelerator.model.mark(cycles.marks(program, len(images)))
        results = session.run(images)
        counters = session.counters()
    if len(network.outputs) == 1:
        results, expected = {network.output: results}, {network.output: expected}
    for output in network.outputs:
        np.testing.assert_array_equal(results[output], expected[output], err_msg=output)
    layers = program.layers
    for key in ("compute_cycles", "pool_cycles"):
        assert counters[key] == groups * sum(layer[key] for layer in layers), key
    if accelerator.config.masked:
        emulator = EmulatorDevice(accelerator.config)
        with Session(emulator, program) as session:
            session.run(images)
            assert counters["valid_tokens"] == session.counters()["valid_tokens"] > 0
    else:
        assert counters["valid_tokens"] == 0
    if stalls == (0, 0):
        check_cycles(program, len(images), accelerator.model.snapshots())
    instructions = len(network.outputs) * batch
    instructions += sum(end - start for layer in layers for start, end in layer["instructions"])
    assert accelerator.read(Register.INSTRUCTIONS) == groups * instructions
    return program


def check_cycles(program, images, snapshots):
    """The cycle model agrees with the counters of cycles in every layer."""
    counted = ("cycles", "idle_cycles", *cycles.REASONS)
    assert len(snapshots) == len(cycles.marks(program, images))
    measured = cycles.attribute(program, [dict.fromkeys(snapshots[0], 0), *snapshots])
    predicted = cycles.predict(program, images)
    for layer in range(len(program.layers)):
        found, expected = ({key: row.layers[layer][key] for key in counted} for row in (predicted, measured))
        assert found == pytest.approx(expected, rel=0.005, abs=4), layer
    found, expected = ({key: row.total[key] for key in counted} for row in (predicted, measured))
    assert found == pytest.approx(expected, rel=0.005, abs=4)


NAMES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", NAMES)
def test_random_networks_equal_the_golden_model(name, seed):
    config = device(name).config
    builder = random_network(seed, config.weight_format, config.activation_format)
    check(name, builder, builder.images(3))


@pytest.mark.parametrize("stalls", [(70, 0), (0, 70), (60, 60)], ids=["idle", "back-pressure", "both"])
@pytest.mark.parametrize("name", NAMES)
def test_stalls_on_the_streams_change_nothing(name, stalls):
    config = device(name).config
    for seed in (3, 6):
        builder = random_network(seed, config.weight_format, config.activation_format)
        check(name, builder, builder.images(3), stalls)


#: Of :func:`random_dag`: together they add tensors of every stored format, behind groups, copies and branches.
DAG_SEEDS = (0, 3, 43, 64)


@pytest.mark.parametrize("seed", DAG_SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_random_networks_with_residuals_and_groups_equal_the_golden_model(name, seed):
    config = device(name).config
    builder = random_dag(seed, config.weight_format, config.activation_format)
    check(name, builder, builder.images(2))


#: Of :func:`mixed_network`: together they store, add and pool uniform formats of all widths, and leak.
MIXED_SEEDS = (1, 4, 18, 27)


@pytest.mark.parametrize("seed", MIXED_SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_format_of_its_own_in_every_layer_equals_the_golden_model(name, seed):
    config = device(name).config
    builder = mixed_network(seed, config.weight_format, config.activation_format)
    check(name, builder, builder.images(2))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_layers_with_different_codebooks_equal_the_golden_model(name, seed):
    builder = codebook_network(seed, device(name).config.activation_format)
    check(name, builder, builder.images(2))


def test_the_mixed_networks_have_uniform_formats_of_all_widths():
    builders = [mixed_network(seed, ESB(4, 2), ESBU(4, 2)) for seed in MIXED_SEEDS]
    layers = [(builder.tensors, layer) for builder in builders for layer in builder.layers]
    written = {tensors[layer.output].format for tensors, layer in layers}
    uniform = {make(bits) for make in (UINT, INT) for bits in range(2, 9)}
    assert uniform <= written
    residuals = {tensors[layer.residual].format for tensors, layer in layers if getattr(layer, "residual", None)}
    assert {format.kind for format in residuals} == {"esbu", "uint", "int"}
    assert any(getattr(layer, "negative_multiplier", None) is not None for _, layer in layers)


#: Of :func:`random_structure`: all stored formats; they fit the smallest memories.
STRUCTURE_SEEDS = (0, 1, 2, 3)


@pytest.mark.parametrize("seed", STRUCTURE_SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_random_networks_that_join_and_enlarge_equal_the_golden_model(name, seed):
    config = device(name).config
    builder, outputs = random_structure(seed, config.weight_format, config.activation_format)
    check_network(name, builder.network(*outputs), builder.images(2))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", [small_unet, small_detector])
def test_networks_with_branches_that_meet_again_equal_the_golden_model(name, model):
    config, graph = device(name).config, model()
    images = np.random.default_rng(4).normal(size=(3, *graph.input_shape)).astype(np.float32)
    network = quantize(graph, images, config.weight_format, config.activation_format, edge_bits=8)
    program = check_network(name, network, input_levels(network, images), (40, 40))
    joined = [layer for layer, kind in zip(program.layers, network.layers, strict=True) if hasattr(kind, "others")]
    assert len(joined) == 2
    assert not any(layer["instructions"] for layer in joined), "nothing is copied"


def test_the_random_networks_add_every_stored_format_and_have_groups():
    builders = [random_dag(seed, ESB(4, 2), ESBU(4, 2)) for seed in DAG_SEEDS]
    added = {
        builder.tensors[layer.residual].format for builder in builders for layer in builder.layers if layer.residual
    }
    assert added == {ESBU(4, 2), UINT(8), INT(8)}
    # Fewer groups than channels: not only depthwise.
    assert any(1 < layer.groups < len(layer.weights) for builder in builders for layer in builder.layers)


@pytest.mark.parametrize("name", NAMES)
def test_compute_gives_way_to_the_residual_of_the_strip_before(name):
    """Strips follow each other without a wait, so that both want to read feature memory in the same cycle."""
    config = device(name).config
    weights, activations = config.weight_format, config.activation_format
    stalls = []
    for residual in (None, "layer0_out"):
        builder = Builder(8, 5, 13, 11, UINT(8)).conv(config.columns, (2, 2), INT(8), activations)
        builder.conv(config.columns, (3, 3), weights, activations, pads=(1, 1, 1, 1), residual=residual)
        builder.conv(3, (12, 10), INT(8), None)
        check(name, builder, builder.images(2))
        stalls.append(device(name).read(Register.POST_STALLS))
    assert stalls[0] < stalls[1]


@pytest.mark.parametrize("stalls", [(60, 0), (60, 60)], ids=["idle", "both"])
@pytest.mark.parametrize("name", NAMES)
def test_stalls_change_no_residual(name, stalls):
    config = device(name).config
    builder = random_dag(43, config.weight_format, config.activation_format)
    check(name, builder, builder.images(3), stalls)


def test_weights_and_parameters_are_streamed_where_memories_are_small():
    builder = random_network(3, ESB(4, 2), ESBU(4, 2))
    kinds = {packet.kind for packet in check("dense", builder, builder.images(2)).image[0]}
    assert {Kind.WEIGHTS, Kind.PARAMETERS} <= kinds


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_levels_are_exact(name, sign):
    """Weights and inputs at the ends of 8 bits, in every lane, row and column."""
    config = device(name).config
    for edge in (UINT(8), INT(8)):
        builder = Builder(0, 2 * config.vector, 3, 3, edge)
        builder.conv(config.columns + 1, (2, 3), INT(8), None, pads=(1, 1, 1, 1))
        builder.layers[0].weights[:] = sign * 127
        images = np.full((2, 2 * config.vector, 3, 3), edge.levels[-1])
        images[1] = edge.levels[0]
        check(name, builder, images)


@pytest.mark.parametrize("name", NAMES)
def test_levels_of_the_native_formats_are_exact_in_every_lane(name):
    """Every weight level meets every activation level; kernels, strides and pads of one native layer after another."""
    config = device(name).config
    weights, activations = config.weight_format, config.activation_format
    builder = Builder(5, config.vector + 1, 6, 7, activations)
    builder.conv(config.columns + 3, (3, 2), weights, activations, stride=(2, 1), pads=(1, 0, 2, 1))
    builder.max_pool((2, 2), (1, 2), pads=(1, 1, 0, 0))
    builder.conv(config.vector, (2, 2), weights, activations, dilation=(2, 1), pads=(1, 1, 1, 1), relu=True)
    builder.average_pool((2, 1), (1, 1), activations).conv(3, (1, 1), weights, None)
    check(name, builder, builder.images(4))


def test_a_quantized_leaky_model_with_formats_of_single_layers_is_exact():
    """From the float graph on: leaky ReLU behind a convolution and behind a sum, five formats of activations."""
    rng = np.random.default_rng(6)

    def conv(name, source, target, outputs, kernel=3):
        weight, pad = rng.normal(size=(outputs, 6 if source != "x" else 3, kernel, kernel)) / 3, kernel // 2
        ends = {"name": name, "input": source, "output": target}
        return Conv(**ends, weight=weight, bias=rng.normal(size=outputs) / 2, pads=(pad,) * 4)

    nodes = (
        conv("first", "x", "a", 6),
        LeakyRelu(name="leak", input="a", output="b", slope=np.array([0, 0.01, 0.2, 0.5, 1, 1.75])),
        conv("second", "b", "c", 6),
        Add(name="sum", input="c", residual="b", output="d"),
        LeakyRelu(name="behind", input="d", output="e", slope=np.array([0.1])),
        conv("third", "e", "f", 6, 1),
        Relu(name="relu", input="f", output="g"),
        MaxPool(name="pool", input="g", output="h", kernel=(2, 2), stride=(2, 2)),
        conv("last", "h", "logits", 4, 1),
    )
    images = rng.normal(size=(8, 3, 6, 6)).astype(np.float32)
    layers = {
        "first": {"weights": "int:8", "activations": "int:5"},
        "second": {"weights": "int:3"},
        "behind": {"activations": "int:3"},
        "third": {"activations": "uint:2"},
    }
    graph = Graph("leaky", "x", "logits", (3, 6, 6), nodes)
    network = quantize(graph, images, signed_activations="int:6", layers=layers)
    assert [str(network.tensors[name].format) for name in "adefh"] == ["int:5", "int:6", "int:3", "uint:2", "uint:2"]
    levels = input_levels(network, images)
    program = compile(network, TINY)
    with Session(device("tiny"), program) as session:
        np.testing.assert_array_equal(session.run(levels), run(network, levels))


@pytest.mark.parametrize("stalls", [(0, 0), (60, 60)], ids=["flowing", "stalls"])
def test_one_build_runs_layers_of_any_formats_one_after_the_other(stalls):
    """Weights and activations of another level table in every layer; the only difference is the program."""
    native = ESBU(4, 2)
    levels = (-127, -90, -61, -40, -25, -14, -6, 0, 3, 9, 17, 30, 47, 70, 99, 127)
    builder = Builder(8, 7, 9, 8, UINT(8))
    for weights, target in (
        (ESB(4, 1), native),
        (AUSN_A(2, 1), UINT(4)),
        (NUUQ(16, 8, levels), native),
        (ESB(4, 0), INT(4)),
        (ESB(4, 2), UINT(3)),
        (ESB(4, 1), native),
        (INT(8), INT(6)),
    ):
        builder.conv(9, (2, 2), weights, target, pads=(1, 0, 0, 1))
    builder.conv(3, (9, 8), ESB(4, 0), None)
    program = check("tables", builder, builder.images(3), stalls)
    passes = [layer["part_products"] // layer["macs"] for layer in program.layers]
    assert passes == [2, 1, 1, 1, 1, 1, 2, 2], "two digits of 8 and 6 bits, and two parts of INT(8)"
    sent = sum(packet.kind == Kind.LEVELS for packet in program.image[0])
    assert sent > 4, "more tables than their memory holds"


#: Every split of 4-bit weights with sign, and of 4-bit activations with and without, of both types of AUSN.
SPLITS = {
    "a": [make(e, 3 - e) for make in (AUSN_G, AUSN_A) for e in (1, 2, 3)],
    "au": [make(e, 4 - e) for make in (AUSN_GU, AUSN_AU) for e in (1, 2, 3)],
}


def splits_network(seed, activations):
    """Layers of the given activation formats: maxima of all, sums of one with the next, every split of weights."""
    builder = Builder(seed, 5, 5, 4, activations[0])
    for number, target in enumerate((*activations, activations[0])):
        weights = SPLITS["a"][(number + seed) % len(SPLITS["a"])]
        residual = builder.last if builder.tensors[builder.last].channels == 9 else None
        builder.conv(9, (2, 2), weights, target, pads=(1, 0, 0, 1), relu=number % 2 == 1, residual=residual)
        if number % 3 != 2:
            builder.max_pool((2, 2), (1, 1), (1, 0, 0, 1))
    builder.average_pool((2, 2), (1, 1), activations[1])
    return builder.conv(3, (2, 2), AUSN_G(2, 1), None)


def test_one_build_runs_every_split_of_ausn_in_one_program():
    """Of weights and of activations, with and without sign; the only difference between layers is the program."""
    builder = splits_network(18, [*SPLITS["au"], *SPLITS["a"]])
    formats = {tensor.format for tensor in builder.tensors.values()}
    assert {*SPLITS["au"], *SPLITS["a"]} <= formats
    assert {*SPLITS["a"]} <= {layer.weight_format for layer in builder.layers if hasattr(layer, "weight_format")}
    program = check("tables", builder, builder.images(2), (40, 40))
    again = splits_network(
        18, [AUSN_AU(3, 1), NUUQU(5, 8, (0, 3, 9, 100, 255)), ESB(4, 0), NUUQ(4, 5, (-9, -2, 0, 15))]
    )
    check("tables", again, again.images(2))
    assert compile(again.network(), program.config).config.hash == program.config.hash


def test_a_forecast_of_a_time_series_is_exact():
    folder = Path(sigbit.__file__).parent / "models"
    with np.load(folder / "series.npz") as file:
        windows, calibration = file["x_test"][:40], file["x_calibration"]
    network = quantize(folder / "series.onnx", calibration, weights="auto:4", activations="auto:4", edge_bits=8)
    check_network("tables", network, input_levels(network, windows))


def test_images_after_a_long_session_are_still_exact():
    """Tags, fences and input regions go round many times."""
    builder = Builder(9, 3, 4, 4, ESBU(4, 2)).conv(6, (2, 2), ESB(4, 2), ESBU(4, 2)).conv(4, (3, 3), ESB(4, 2), None)
    check("tiny", builder, builder.images(300))


def test_a_tensor_of_one_row_leaves_the_other_plane_without_effect():
    builder = Builder(4, 3, 1, 5, UINT(8)).conv(9, (1, 2), INT(8), ESBU(4, 2)).conv(4, (1, 4), INT(8), None)
    check("dense", builder, builder.images(3))


@pytest.mark.parametrize("stalls", [(0, 0), (60, 60)], ids=["flowing", "stalls"])
@pytest.mark.parametrize("name", NAMES)
def test_layers_that_do_not_fit_run_in_bands(name, stalls):
    """Sums, strides, pools, rows that are moved and inputs in bands; no tensor but the last fits."""
    config = device(name).config
    weights, activations = config.weight_format, config.activation_format
    width = 16
    builder = Builder(3, config.vector, config.feature_depth // width + 9, width, activations)
    builder.conv(config.vector, (3, 1), weights, activations, pads=(1, 0, 1, 0))
    builder.conv(config.vector, (3, 3), weights, activations, pads=(1, 1, 1, 1), residual="layer0_out")
    builder.max_pool((3, 2), (2, 2), (1, 0, 1, 0)).conv(config.vector, (1, 1), weights, activations)
    builder.average_pool((4, 3), (4, 2), activations)
    program = check(name, builder, builder.images(2), stalls)
    layers = program.layers
    assert len([packet for packet in program.image[0] if packet.kind == Kind.INPUT]) > 2
    assert all(len(layer["instructions"]) > 2 for layer in layers[:3])
    assert layers[1]["pool_cycles"] > 0


@pytest.mark.parametrize("stalls", [(0, 0), (60, 60)], ids=["flowing", "stalls"])
@pytest.mark.parametrize("batch", [2, 3, 5])
@pytest.mark.parametrize("name", NAMES)
def test_groups_of_images_equal_the_golden_model(name, batch, stalls):
    """Fully connected layers behind maps of several pixels, with a sum, and a last group that is not full."""
    config = device(name).config
    weights, activations = config.weight_format, config.activation_format
    builder = Builder(5, 3, 7, 6, UINT(8)).conv(config.vector + 1, (3, 3), INT(8), activations, relu=True)
    builder.max_pool((2, 2), (2, 2)).conv(config.columns + 1, (2, 2), weights, activations)
    builder.conv(config.columns + 1, (1, 1), weights, activations, residual=builder.last).conv(3, (1, 1), INT(8), None)
    program = check_network(name, builder.network(), builder.images(7), stalls, batch)
    assert program.batch == batch


@pytest.mark.parametrize("name", NAMES)
def test_groups_take_means_and_maxima_and_send_every_output(name):
    """Of whole maps of every image, joined; a map and its maximum are outputs as well, and a kernel has padding."""
    config = device(name).config
    weights, activations = config.weight_format, config.activation_format
    builder = Builder(6, 5, 6, 6, UINT(8)).conv(config.vector + 2, (3, 2), INT(8), activations)
    builder.max_pool((4, 5), (1, 1))
    builder.last = "layer0_out"
    builder.average_pool((4, 5), (1, 1), activations).concat("layer1_out", "layer2_out")
    builder.conv(5, (3, 3), weights, activations, pads=(1, 1, 1, 1)).conv(3, (1, 1), weights, None)
    check_network(name, builder.network("layer5_out", "layer0_out", "layer1_out"), builder.images(5), batch=3)


def test_run_and_report_say_how_many_tokens_are_valid(monkeypatch):
    accelerator = device("masked")
    for module in (evaluation, performance):
        monkeypatch.setattr(module, "open_device", lambda *_: accelerator)
    builder = random_network(2, INT(8), UINT(8))
    network, images = with_masks(builder.network(), accelerator.config.lanes, 1), builder.images(2)
    images = images.astype(np.float32) * network.tensors[network.input].unit
    result = sigbit.evaluate(network, images, device="rtl", config=accelerator.config)
    found, config = result["tokens"], accelerator.config
    assert found["busy"] == 2 * sum(layer["compute_cycles"] for layer in result["layers"])
    assert found["beats"] == found["busy"] * config.rows * config.planes
    assert found["valid_tokens"] == result["counters"]["valid_tokens"]
    assert found["idle_lanes"] == found["beats"] * config.token_lanes - found["valid_tokens"]
    assert 0 < found["utilisation"] < 1
    report = sigbit.report(network, config, device="rtl", images=2)
    rows = [row["tokens"]["valid_tokens"] for row in (*report["layers"], report["total"])]
    assert sum(rows[:-1]) == rows[-1] > 0


def test_cycles_of_a_masked_layer_are_proportional_to_its_budget():
    accelerator = device("masked")
    builder = Builder(1, 24, 8, 4, UINT(8)).select(0, 24, INT(8))
    network = builder.conv(8, (5, 5), INT(8), UINT(8), pads=(2, 2, 2, 2)).network()
    images = builder.images(1)
    cycles_of = {}
    for budget in (2, 4, 6, 8):
        copy, layer = network.layers
        masked = replace(network, layers=(copy, replace(layer, mask=TermMask(4, budget))))
        program = compile(masked, accelerator.config)
        with Session(accelerator, program) as session:
            accelerator.model.mark(cycles.marks(program, 1))
            np.testing.assert_array_equal(session.run(images), run(masked, images))
        snapshots = accelerator.model.snapshots()
        measured = cycles.attribute(program, [dict.fromkeys(snapshots[0], 0), *snapshots])
        cycles_of[budget] = measured.layers[1]["cycles"]
    assert {budget: count / budget for budget, count in cycles_of.items()} == pytest.approx(
        dict.fromkeys(cycles_of, cycles_of[8] / 8), rel=0.03
    )
