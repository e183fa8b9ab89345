"""Compiled programs on the emulator give the golden model's integers; what does not fit gives a message."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from networks import Builder, mixed_network, random_dag, random_network, random_structure, roomy
from sigbit.compiler import CompileError, compile, fit
from sigbit.memory_plan import MemoryPlan, Move, Output, Send, Work
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT, Format
from sigbit_hw.spec.parts import activation_parts
from sigbit_hw.spec.registers import Register
from sigbit_sim.golden.emulator import SCHEDULES, Emulator
from sigbit_sim.golden.network import IntegerNetwork, Tensor, run
from sigbit_sim.golden.program import Program, ProgramError

TINY = PRESETS["tiny"]


def emulate(program, images, schedule="eager", count_from=0):
    """Results of a whole session, all images on their way before the first result is read."""
    emulator = Emulator(program.config, schedule)
    for packet in program.setup:
        emulator.send(packet)
    for index, image in enumerate(images):
        for packet in program.image_packets(image, index):
            emulator.send(packet)
    results = [
        program.decode_outputs([emulator.receive() for _ in program.outputs], index)[0] for index in range(len(images))
    ]
    assert emulator.receive() is None
    emulator.send(program.end_packet())
    assert emulator.read(Register.FAULT) == 0
    assert emulator.read(Register.STATUS) == 0
    if len(program.outputs) > 1:
        return {
            output.name: np.stack([found[output.name] for found in results]) for output in program.outputs
        }, emulator
    return np.stack(results), emulator


def check(network, config, images):
    """Both schedules give the golden integers; returns the program."""
    program = compile(network, config)
    expected = run(network, images)
    for schedule in SCHEDULES:
        results, emulator = emulate(program, images, schedule)
        if len(network.outputs) == 1:
            np.testing.assert_array_equal(results, expected, err_msg=schedule)
        else:
            for name in network.outputs:
                np.testing.assert_array_equal(results[name], expected[name], err_msg=f"{schedule} {name}")
        for register in (Register.COMPUTE_CYCLES, Register.POOL_CYCLES):
            cycles = sum(layer[register.name.lower()] for layer in program.layers)
            assert emulator.read(register) == cycles * len(images)
    return program


#: Configurations that differ in every number the compiler uses.
CONFIGS = {
    "tiny": TINY,
    "planes": replace(TINY, planes=2, rows=1, columns=4, post_lanes=2, strip_depth=8),
    "rows": replace(TINY, rows=3, lanes=4, columns=12, post_lanes=4, strip_depth=16, stream_bits=128),
    "small": PRESETS["small"],
    "wide columns": replace(TINY, rows=1, lanes=4, columns=16, post_lanes=2, planes=4, stream_bits=512),
}
FORMATS = [
    (ESB(4, 2), ESBU(4, 2)),
    (ESB(4, 1), ESBU(4, 2)),
    (ESB(3, 0), ESBU(2, 0)),
    (ESB(5, 2), ESBU(5, 3)),
    (INT(8), UINT(8)),
    (ESB(4, 1), ESB(4, 2)),
    (INT(4), INT(4)),
]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("weights", "activations"), FORMATS, ids=str)
def test_random_networks_equal_the_golden_model(name, weights, activations):
    config = roomy(CONFIGS[name], weights, activations)
    for seed in range(6):
        builder = random_network(seed, weights, activations)
        check(builder.network(), config, builder.images(3))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("weights", "activations"), FORMATS, ids=str)
def test_random_networks_with_residuals_and_groups_equal_the_golden_model(name, weights, activations):
    config = roomy(CONFIGS[name], weights, activations, feature_depth=8192, weight_depth=8192, parameter_depth=256)
    first = 3 * list(CONFIGS).index(name)
    for seed in range(first, first + 3):
        builder = random_dag(seed, weights, activations)
        check(builder.network(), config, builder.images(2))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("weights", "activations"), FORMATS, ids=str)
def test_a_format_of_its_own_in_every_layer_equals_the_golden_model(name, weights, activations):
    config = roomy(CONFIGS[name], weights, activations, feature_depth=8192, weight_depth=8192, parameter_depth=256)
    first = 3 * list(CONFIGS).index(name)
    for seed in range(first, first + 3):
        builder = mixed_network(seed, weights, activations)
        check(builder.network(), config, builder.images(2))


@pytest.mark.parametrize("stored", [make(bits) for make in (UINT, INT) for bits in range(2, 9)], ids=str)
@pytest.mark.parametrize("native", [ESBU(4, 2), UINT(4), INT(4), ESB(5, 2), ESBU(2, 0)], ids=str)
def test_every_uniform_format_is_stored_and_added(native, stored):
    builder = Builder(stored.bits, 6, 4, 4, UINT(8)).conv(6, (1, 1), INT(8), stored)
    builder.conv(6, (1, 1), INT(4), stored, residual=builder.last)
    builder.conv(5, (2, 2), INT(8), stored, leaky=stored.signed)
    for layer in builder.layers[:2]:
        layer.shift[:] -= 3  # so much that both ends saturate
    network = builder.network()
    images = builder.images(4)
    _, levels = run(network, images, trace=True)
    for name in ("layer0_out", "layer1_out"):
        assert {levels[name].min(), levels[name].max()} == {stored.levels[0], stored.levels[-1]}
    program = check(network, roomy(TINY, INT(4), native), images)
    assert program.output.part_count(program.config) == activation_parts(native, stored).count


def test_formats_with_the_levels_of_others_run_as_these():
    for native, stored in (
        (ESBU(4, 2), ESBU(3, 2)),
        (ESBU(4, 2), ESB(4, 2)),
        (UINT(4), ESBU(4, 3)),
        (INT(4), ESB(4, 2)),
    ):
        builder = Builder(3, 5, 5, 5, stored).conv(6, (2, 2), INT(4), stored, leaky=stored.signed)
        if stored.bits <= 3:
            builder.max_pool((2, 2), (1, 1))
        source = builder.last
        builder.conv(6, (1, 1), INT(4), stored, residual=source).conv(2, (2, 2), INT(4), stored)
        check(builder.network(), roomy(TINY, INT(4), native), builder.images(3))


@pytest.mark.parametrize("format", [ESB(4, 2), INT(4), INT(8), INT(5)], ids=str)
def test_the_sign_of_a_leaky_layer_is_that_of_its_biased_sum(format):
    """Sums around zero, with negation by XOR, an input in excess and a bias that turn the accumulator's own sign."""
    for source in (INT(8), UINT(8), ESB(4, 2)):
        builder = Builder(11, 4, 5, 5, source).conv(8, (2, 2), ESB(4, 2), format, leaky=True)
        layer = builder.layers[0]
        layer.weights[:4] = np.sign(layer.weights[:4])
        layer.multiplier[:] = 65535
        layer.shift[:] = 16
        layer.negative_multiplier[:] = [0, 1, 655, 13107, 32768, 65535, 65534, 6553]
        layer.bias[:] = [-3, -2, -1, 0, 1, 2, 100, -100]
        check(builder.network(), roomy(TINY, ESB(4, 2), ESB(4, 2)), builder.images(3))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("weights", "activations"), FORMATS, ids=str)
def test_random_networks_that_join_and_enlarge_equal_the_golden_model(name, weights, activations):
    config = roomy(CONFIGS[name], weights, activations, feature_depth=32768, weight_depth=8192, parameter_depth=256)
    first = 3 * list(CONFIGS).index(name) + FORMATS.index((weights, activations))
    for seed in (first, first + 21):
        builder, outputs = random_structure(seed, weights, activations)
        check(builder.network(*dict.fromkeys(outputs)), config, builder.images(2))


def _joined(*channels, height=5, format=None):
    """Tensors ``layer0_out`` ... of so many channels, all made of the input."""
    native = format or TINY.activation_format
    builder = Builder(7, 6, height, 4, native)
    for count in channels:
        builder.last = "input"
        builder.conv(count, (3, 3), ESB(4, 2), native, pads=(1, 1, 1, 1))
    return builder


def _tail(builder):
    """A last layer, and the program for a tiny accelerator, which is checked, with its costs by layer."""
    builder.conv(3, (1, 1), ESB(4, 2), None)
    program = check(builder.network(), replace(TINY, feature_depth=8192), builder.images(2))
    return {layer["name"]: layer for layer in program.layers}


def _instructions(layer):
    return sum(end - start for start, end in layer["instructions"])


@pytest.mark.parametrize("format", [TINY.activation_format, UINT(8), INT(8)], ids=str)
@pytest.mark.parametrize("channels", [(8, 16), (4, 5), (1, 1, 1, 1), (5, 7, 30, 2)], ids=str)
def test_tensors_are_concatenated_without_an_instruction(channels, format):
    builder = _joined(*channels, format=format)
    names = [f"layer{i}_out" for i in range(len(channels))]
    builder.concat(*names[::-1])
    join = builder.layers[-1].name
    layers = _tail(builder)
    assert _instructions(layers[join]) == 0
    # Every tensor starts at the next group of post_lanes, and nothing else is lost.
    blocks = -(-sum(-(-count // TINY.post_lanes) * TINY.post_lanes for count in channels) // TINY.vector)
    assert layers[f"layer{len(channels) + 1}"]["tiles"] <= blocks * 3 ** (format != TINY.activation_format)


def test_a_dense_block_copies_nothing():
    builder = _joined(6)
    names = ["layer0_out"]
    for _ in range(3):
        if len(names) > 1:
            builder.concat(*names)
        builder.conv(5, (3, 3), ESB(4, 2), TINY.activation_format, pads=(1, 1, 1, 1))
        names.append(builder.last)
    builder.concat(*names)
    layers = _tail(builder)
    joins = [layer.name for layer in builder.layers if hasattr(layer, "others")]
    assert len(joins) == 3
    assert [_instructions(layers[name]) for name in joins] == [0, 0, 0]


def test_nested_concatenations_and_pools_of_them_copy_nothing():
    builder = _joined(5, 6)
    builder.concat("layer0_out", "layer1_out").max_pool((3, 3), (1, 1), (1, 1, 1, 1))
    pooled = builder.last
    builder.concat("layer2_out", pooled)
    join = builder.layers[-1].name
    assert _instructions(_tail(builder)[join]) == 0


@pytest.mark.parametrize(
    ("members", "copies"),
    [
        (("input", "layer0_out"), 1),
        (("layer0_out", "layer0_out"), 1),
        (("layer0_out", "input", "layer0_out", "input", "layer1_out"), 3),
    ],
    ids=["the input", "a tensor twice", "both"],
)
def test_what_cannot_be_in_its_place_is_copied(members, copies):
    builder = _joined(5, 4)
    builder.concat(*members)
    join = builder.layers[-1].name
    layers = _tail(builder)
    # A copy reads one block and fills one tile of columns.
    assert layers[join]["tiles"] == copies
    assert layers[join]["macs"] == 0


def test_a_sum_of_one_part_adds_parts_that_are_blocks_of_others_apart():
    builder = _joined(16, 8, format=UINT(8)).conv(8, (1, 1), ESB(4, 2), TINY.activation_format, residual="layer1_out")
    alone = builder.last
    builder.concat("layer0_out", "layer1_out").conv(8, (1, 1), ESB(4, 2), TINY.activation_format, residual=alone)
    _tail(builder)


def test_a_sum_in_other_lanes_than_its_residual_is_copied():
    for first, copies in ((8, 0), (3, 1)):
        builder = _joined(first, 8)
        builder.conv(8, (1, 1), ESB(4, 2), TINY.activation_format, residual="layer1_out")
        builder.concat("layer0_out", builder.last)
        join = builder.layers[-1].name
        assert _tail(builder)[join]["tiles"] == copies


@pytest.mark.parametrize("format", [TINY.activation_format, UINT(8)], ids=str)
def test_a_sum_takes_the_lanes_of_a_concatenation_with_gaps(format):
    builder = _joined(5, 6, 11, format=format)
    builder.concat("layer0_out", "layer1_out")
    builder.last = "layer2_out"
    builder.conv(11, (3, 3), ESB(4, 2), format, pads=(1, 1, 1, 1), residual="layer3_out")
    builder.conv(11, (1, 1), ESB(4, 2), format, residual="layer4_out")
    assert _instructions(_tail(builder)["layer3"]) == 0


@pytest.mark.parametrize("format", [TINY.activation_format, UINT(8), INT(8)], ids=str)
def test_upsampling_takes_one_cycle_per_word_that_it_makes(format):
    builder = _joined(9, format=format)
    builder.upsample((2, 3))
    layers = _tail(builder)
    parts = 1 if format == TINY.activation_format else 3
    assert layers["layer1"]["pool_cycles"] == parts * 2 * (5 * 2) * (4 * 3)
    assert _instructions(layers["layer1"]) == parts * 3


def test_an_output_makes_room_as_soon_as_it_is_sent():
    """Each of the outputs fills a third of the memory."""
    builder = Builder(3, 2, 4, 4, ESBU(4, 2))
    for _ in range(6):
        builder.last = "input"
        builder.conv(3, (3, 3), ESB(4, 2), None, pads=(1, 1, 1, 1))
    outputs = tuple(layer.output for layer in builder.layers)
    config = replace(TINY, feature_depth=256)
    program = check(builder.network(*outputs[::-1]), config, builder.images(3))
    assert sum(output.word_count(config) for output in program.outputs) > 2 * config.feature_depth
    assert program.arrival == tuple(reversed(range(6)))


def test_a_concatenation_that_is_an_output_stays_until_it_is_sent():
    """Nothing reads its parts, and another layer runs between the last of them and the concatenation."""
    builder = _joined(5, 6, 12)
    builder.concat("layer0_out", "layer1_out")
    join, builder.last = builder.last, "layer2_out"
    builder.conv(3, (5, 4), ESB(4, 2), None)
    check(builder.network(builder.last, join), TINY, builder.images(2))


def test_outputs_of_all_kinds_are_sent_in_their_formats():
    builder = _joined(5, 6, format=UINT(8))
    builder.concat("layer0_out", "layer1_out").upsample().conv(4, (2, 2), ESB(4, 2), None)
    outputs = ("layer4_out", "layer2_out", "layer1_out", "layer3_out")
    network = builder.network(*outputs)
    program = check(network, replace(TINY, feature_depth=8192), builder.images(3))
    assert [output.name for output in program.outputs] == list(outputs)
    assert [output.format for output in program.outputs] == [None, UINT(8), UINT(8), UINT(8)]


def test_the_input_is_no_output():
    network = Builder(0, 3, 4, 4, UINT(8)).conv(3, (1, 1), INT(8), None).network("layer0_out", "input")
    with pytest.raises(CompileError, match="Output input of network random is its input; leave it out"):
        compile(network, TINY)


@pytest.mark.parametrize(("weight_depth", "parameter_depth"), [(16, 2), (32, 4), (64, 64), (2048, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_streamed_weights_and_parameters_equal_the_golden_model(weight_depth, parameter_depth, seed):
    config = roomy(TINY, ESB(4, 2), ESBU(4, 2), weight_depth=weight_depth, parameter_depth=parameter_depth)
    builder = random_dag(seed, ESB(4, 2), ESBU(4, 2))
    check(builder.network(), config, builder.images(3))
    builder = random_network(seed, ESB(4, 2), ESBU(4, 2))
    program = check(builder.network(), config, builder.images(4))
    kinds = {packet.kind.name for packet in program.image[0]}
    assert ("WEIGHTS" in kinds) or weight_depth == 2048
    assert ("PARAMETERS" in kinds) == (parameter_depth < 64)
    limits = {"WEIGHTS": weight_depth // 2, "RUN": config.instruction_depth // 2}
    assert all(packet.count <= limits.get(packet.kind.name, packet.count) for packet in program.image[0])


def test_weights_that_fit_twice_are_loaded_while_computing():
    """The fence of a weight packet does not wait for the instruction before it when the words it takes are free."""
    config = roomy(TINY, ESB(4, 2), ESBU(4, 2), weight_depth=128)
    builder = Builder(0, 8, 6, 6, ESBU(4, 2)).conv(32, (3, 3), ESB(4, 2), ESBU(4, 2), pads=(1, 1, 1, 1))
    builder.conv(4, (1, 1), ESB(4, 2), None)
    program = check(builder.network(), config, builder.images(3))
    fences = [packet.fence for packet in program.image[0] if packet.kind.name == "WEIGHTS"]
    assert len(fences) > 3
    assert max(fences) > 0
    assert (
        max(packet.count for packet in program.image[0] if packet.kind.name == "WEIGHTS") == 16
    )  # an eighth: two tiles


@pytest.mark.parametrize(
    ("kind", "memories"),
    [("WEIGHTS", {"weight_depth": 16}), ("PARAMETERS", {"parameter_depth": 2}), ("INPUT", {"feature_depth": 128})],
)
def test_a_program_without_fences_fails_on_the_late_schedule(kind, memories):
    config = replace(TINY, instruction_depth=64, **memories)
    builder = Builder(3, 8, 5, 5, ESBU(4, 2)).conv(16, (2, 2), ESB(4, 2), ESBU(4, 2))
    builder.conv(16, (2, 2), ESB(4, 2), ESBU(4, 2))
    network, images = builder.network(), builder.images(4)
    program = check(network, config, images)
    unfenced = tuple(
        tuple(replace(packet, fence=0xFFFF) if packet.kind.name == kind else packet for packet in packets)
        for packets in program.image
    )
    results, _ = emulate(replace(program, image=unfenced), images, "late")
    assert (results != run(network, images)).any()


def test_fences_know_that_a_post_reads_its_residual(monkeypatch):
    builder = Builder(3, 8, 6, 6, ESBU(4, 2)).conv(8, (1, 1), ESB(4, 2), ESBU(4, 2))
    builder.conv(8, (1, 1), ESB(4, 2), ESBU(4, 2), residual="input")
    network, images = builder.network(), builder.images(4)
    config = replace(TINY, feature_depth=128, instruction_depth=64)  # one input region
    check(network, config, images)
    from sigbit import emission

    issue = emission.Emitter._issue
    monkeypatch.setattr(
        emission.Emitter,
        "_issue",
        lambda self, opcode, reads=None, **rest: issue(self, opcode, reads=reads if opcode == 1 else None, **rest),
    )
    results, _ = emulate(compile(network, config), images, "late")
    assert (results != run(network, images)).any()


def test_without_wait_post_the_late_schedule_fails(monkeypatch):
    builder = Builder(3, 8, 5, 5, ESBU(4, 2)).conv(8, (2, 2), ESB(4, 2), ESBU(4, 2))
    builder.conv(8, (2, 2), ESB(4, 2), ESBU(4, 2))
    network, images = builder.network(), builder.images(2)
    check(network, TINY, images)
    from sigbit_sim.golden import emulator

    decode = emulator.Emulator._decode
    monkeypatch.setattr(emulator.Emulator, "_decode", lambda self, word: {**decode(self, word), "wait_post": 0})
    results, _ = emulate(compile(network, TINY), images, "late")
    assert (results != run(network, images)).any()


@pytest.mark.parametrize(
    ("channels", "kernel", "stored"),
    [(1, (2, 3), (6, 4, 7)), (2, (5, 3), (30, 5, 7)), (2, (1, 3), (6, 9, 7)), (3, (2, 2), (6, 9, 8)),
     (3, (2, 3), (18, 4, 7)), (1, (3, 8), (8, 9, 2)), (8, (3, 1), (8, 9, 9))],
)  # fmt: skip
@pytest.mark.parametrize("format", [UINT(8), INT(8), ESBU(4, 2), UINT(4), INT(5)], ids=str)
def test_input_kernel_positions_are_folded_into_channels_where_that_is_faster(channels, kernel, stored, format):
    builder = Builder(1, channels, 9, 9, format)
    builder.conv(5, kernel, INT(8), None, stride=(2, 1) if kernel == (2, 3) else (1, 1))
    program = check(builder.network(), roomy(TINY, ESB(4, 2), ESBU(4, 2)), builder.images(2))
    layout = program.input
    assert (layout.stored_channels, layout.rows, layout.columns) == stored


def test_folded_padding_stride_and_dilation_are_exact():
    for seed, (stride, dilation, pads) in enumerate(
        [((1, 1), (1, 1), (2, 2, 2, 2)), ((2, 3), (1, 1), (1, 0, 2, 3)), ((1, 2), (2, 3), (0, 3, 1, 1))]
    ):
        for kernel in ((2, 3), (4, 2)):
            for format in (INT(8), UINT(8), ESBU(4, 2)):
                builder = Builder(seed, 1, 9, 10, format)
                builder.conv(9, kernel, INT(8), UINT(8), stride, dilation, pads).conv(3, (1, 1), ESB(4, 2), None)
                config = roomy(TINY, ESB(4, 2), ESBU(4, 2), feature_depth=4096)
                check(builder.network(), config, builder.images(2))


def test_an_input_with_two_readers_is_not_folded():
    builder = Builder(5, 1, 6, 6, ESBU(4, 2)).max_pool((2, 2), (1, 1))
    builder.last = "input"
    builder.conv(3, (2, 2), ESB(4, 2), ESBU(4, 2))
    program = check(builder.network(), TINY, builder.images(2))
    assert program.input.kernel == (1, 1)


def test_an_input_that_is_added_or_grouped_is_not_folded():
    builder = Builder(5, 2, 6, 6, UINT(8)).conv(4, (2, 2), INT(8), UINT(8), groups=2)
    assert check(builder.network(), TINY, builder.images(2)).input.kernel == (1, 1)
    builder = Builder(5, 2, 6, 6, UINT(8)).conv(2, (3, 1), INT(8), UINT(8), pads=(1, 0, 1, 0), residual="input")
    assert check(builder.network(), TINY, builder.images(2)).input.kernel == (1, 1)
    builder = Builder(5, 2, 6, 6, UINT(8)).conv(2, (3, 1), INT(8), UINT(8), pads=(1, 0, 1, 0))
    assert check(builder.network(), TINY, builder.images(2)).input.kernel == (3, 1)


@pytest.mark.parametrize(("depth", "regions"), [(128, 2), (64, 1)])
def test_input_is_double_buffered_where_there_is_space(depth, regions):
    builder = Builder(2, 8, 6, 6, ESBU(4, 2)).conv(8, (2, 2), ESB(4, 2), ESBU(4, 2)).max_pool((2, 2), (2, 2))
    program = check(builder.network(), replace(TINY, feature_depth=depth), builder.images(5))
    assert len(program.image) == regions


def _bands(program):
    return [packet for packet in program.image[0] if packet.rows]


#: Networks with an input too large for the memory: builder, memory, number of bands.
BANDED = {
    "7x7 stride 2": (
        lambda: (
            Builder(1, 3, 40, 16, ESBU(4, 2))
            .conv(8, (7, 7), ESB(4, 2), ESBU(4, 2), stride=(2, 2), pads=(3, 3, 3, 3))
            .max_pool((3, 3), (2, 2), (1, 1, 1, 1))
        ),
        {"feature_depth": 512, "strip_depth": 8},
    ),
    "7x7 stride 2, columns folded": (
        lambda: (
            Builder(1, 1, 40, 24, INT(8))
            .conv(8, (7, 7), INT(8), ESBU(4, 2), stride=(2, 2), pads=(3, 3, 3, 3))
            .conv(5, (3, 3), INT(8), ESBU(4, 2))
        ),
        {"feature_depth": 1024, "strip_depth": 16},
    ),
    "3x3 stride 2, folded": (
        lambda: (
            Builder(2, 1, 48, 26, INT(8))
            .conv(8, (3, 3), INT(8), ESBU(4, 2), stride=(2, 2), pads=(1, 1, 1, 1))
            .conv(3, (2, 2), ESB(4, 2), ESBU(4, 2))
        ),
        {"feature_depth": 1024, "strip_depth": 16, "lanes": 8},
    ),
    "dilation, much padding, several tiles": (
        lambda: (
            Builder(3, 9, 30, 7, UINT(8))
            .conv(16, (3, 2), ESB(4, 2), ESBU(4, 2), stride=(3, 1), dilation=(2, 1), pads=(9, 1, 30, 0))
            .average_pool((3, 3), (2, 2), ESBU(4, 2))
        ),
        {"feature_depth": 1024, "strip_depth": 8},
    ),
    "weights streamed": (
        lambda: (
            Builder(4, 16, 24, 12, ESBU(4, 2))
            .conv(24, (3, 3), ESB(4, 2), ESBU(4, 2), stride=(2, 2), pads=(1, 1, 0, 0))
            .conv(5, (3, 3), ESB(4, 2), ESBU(4, 2))
        ),
        {"feature_depth": 512, "strip_depth": 8, "weight_depth": 128},
    ),
    "strips side by side": (
        lambda: Builder(5, 8, 12, 36, ESBU(4, 2)).conv(
            8, (3, 3), ESB(4, 2), ESBU(4, 2), stride=(2, 2), pads=(1, 1, 1, 1)
        ),
        {"feature_depth": 512, "strip_depth": 8},
    ),
    "average": (
        lambda: Builder(6, 8, 30, 20, ESBU(4, 2)).average_pool((3, 3), (2, 2), ESBU(4, 2), (1, 1, 1, 1)),
        {"feature_depth": 512, "strip_depth": 16},
    ),
    "regions used again by later layers": (
        lambda: (
            Builder(7, 8, 30, 12, ESBU(4, 2))
            .conv(8, (3, 3), ESB(4, 2), ESBU(4, 2), stride=(2, 2), pads=(1, 1, 1, 1))
            .conv(8, (1, 1), ESB(4, 2), ESBU(4, 2))
        ),
        {"feature_depth": 256, "strip_depth": 8},
    ),
}


def _banded(name, planes):
    build, sizes = BANDED[name]
    builder = build()
    config = roomy(TINY, ESB(4, 2), ESBU(4, 2), **{**sizes, "planes": planes})
    return builder.network(), config, builder.images(4)


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("name", BANDED)
def test_an_input_that_does_not_fit_is_sent_in_bands_of_rows(name, planes):
    network, config, images = _banded(name, planes)
    program = check(network, config, images)
    bands = [packet for packet in program.image[0] if packet.rows]
    assert len(bands) > 2
    assert len({packet.destination for packet in bands}) == 2
    assert bands[0].rows[0] == 0
    assert all(first <= end for (_, end), (first, _) in itertools.pairwise(packet.rows for packet in bands))


def test_bands_are_as_high_as_the_memory_allows():
    """Two regions of 16 words per row beside the 160 words of the output."""
    builder = Builder(1, 8, 40, 16, ESBU(4, 2))
    builder.conv(8, (7, 7), ESB(4, 2), ESBU(4, 2), stride=(2, 2), pads=(3, 3, 3, 3), groups=8)
    for depth, rows in ((512, 11), (1024, None)):
        packets = compile(builder.network(), replace(TINY, strip_depth=8, feature_depth=depth)).image[0]
        heights = [end - first for first, end in (packet.rows for packet in packets if packet.rows)]
        # Every strip is one output row; one more of them takes two more input rows.
        assert (max(heights) if heights else None) == rows
        if rows:
            assert 2 * 16 * rows <= depth - 160 < 2 * 16 * (rows + 2)


def changed(monkeypatch, change):
    """Programs are made from plans whose steps went through ``change``."""
    from sigbit import compiler

    plan = compiler._plan
    monkeypatch.setattr(
        compiler,
        "_plan",
        lambda *arguments: replace(
            made := plan(*arguments), groups=tuple(tuple(map(change, steps)) for steps in made.groups)
        ),
    )


def test_a_band_without_its_halo_is_wrong(monkeypatch):
    builder = Builder(1, 8, 40, 16, ESBU(4, 2))
    builder.conv(8, (7, 7), ESB(4, 2), ESBU(4, 2), stride=(2, 2), pads=(3, 3, 3, 3), groups=8)
    network, config, images = builder.network(), replace(TINY, feature_depth=512, planes=2), builder.images(2)
    assert _bands(check(network, config, images))

    def shorter(step):
        if isinstance(step, Send) and step.window.end < 40:
            return replace(step, window=replace(step.window, end=step.window.end - 1))
        return step

    changed(monkeypatch, shorter)
    results, _ = emulate(compile(network, config), images)
    assert (results != run(network, images)).any()


@pytest.mark.parametrize("name", ["7x7 stride 2", "3x3 stride 2, folded", "regions used again by later layers"])
def test_a_band_that_does_not_wait_for_the_band_before_the_last_is_wrong(name):
    network, config, images = _banded(name, 2)
    config = replace(config, instruction_depth=64)
    program = check(network, config, images)
    unfenced = tuple(replace(packet, fence=0xFFFF) if packet.rows else packet for packet in program.image[0])
    results, _ = emulate(replace(program, image=(unfenced,)), images, "late")
    assert (results != run(network, images)).any()


def test_a_band_is_loaded_while_the_band_before_is_computed():
    """Its fence lets the instructions of that band be outstanding."""
    network, config, _ = _banded("7x7 stride 2", 2)
    program = compile(network, config)
    fences = [packet.fence for packet in program.image[0] if packet.rows][2:]
    assert min(fences) >= 2


def check_in_smaller_memories(builder, config, images, outputs=()):
    """:func:`check` from the feature memory of ``config`` down to the smallest one that is enough; returns that."""
    network, levels = builder.network(*outputs), builder.images(images)
    smallest = None
    while True:
        try:
            check(network, config, levels)
        except CompileError:
            return smallest
        smallest = config.feature_depth
        config = replace(config, feature_depth=smallest // 2)


def _bottleneck(seed, weights, activations):
    """A pyramid with everything a chain must get right: strides, dilations, one-sided pads, pools, sums."""
    builder = Builder(seed, 5, 35, 13, INT(8))
    builder.conv(4, (3, 3), INT(8), INT(8), stride=(1, 2), pads=(1, 1, 1, 1))
    builder.conv(20, (1, 1), weights, activations)
    builder.conv(20, (3, 2), weights, activations, groups=20, pads=(3, 1, 1, 0), dilation=(2, 1))
    builder.conv(4, (1, 1), weights, activations, residual="layer0_out")
    builder.conv(20, (2, 3), weights, activations, pads=(0, 1, 1, 1)).max_pool((3, 2), (2, 2), (1, 0, 1, 0))
    builder.conv(20, (1, 1), weights, activations, residual=builder.last)
    builder.average_pool((3, 3), (2, 2), activations, (1, 1, 1, 1)).conv(3, (9, 2), INT(8), None, stride=(2, 1))
    return builder


def _steps(monkeypatch):
    """The steps of every plan made from now on."""
    from sigbit import compiler

    steps: list = []
    plan = compiler._plan

    def spy(*arguments):
        made = plan(*arguments)
        if isinstance(made, MemoryPlan):
            steps.append(made.groups[0])
        return made

    monkeypatch.setattr(compiler, "_plan", spy)
    return steps


@pytest.mark.parametrize(("name", "formats"), [*zip(CONFIGS, FORMATS, strict=False)])
def test_chains_of_layers_equal_the_golden_model(name, formats, monkeypatch):
    """In ever smaller memories, down to the one that is too small."""
    weights, activations = formats
    config = roomy(CONFIGS[name], weights, activations, weight_depth=8192, parameter_depth=256)
    builder = _bottleneck(len(name), weights, activations)
    steps = _steps(monkeypatch)
    smallest = check_in_smaller_memories(builder, replace(config, feature_depth=1 << 15), 2)
    with pytest.raises(CompileError, match=f"raise feature_depth to at least {smallest},"):
        compile(builder.network(), replace(config, feature_depth=smallest // 2))
    kinds = [{type(step) for step in plan} for plan in steps]
    assert kinds[0] == {Send, Work, Output}
    turns = [Counter(step.layer for step in plan if isinstance(step, Work)) for plan in steps]
    assert set(turns[0].values()) == {1}
    assert sum(count > 1 for count in turns[-1].values()) > 1


@pytest.mark.parametrize("seed", range(8))
def test_random_networks_in_small_memories_equal_the_golden_model(seed):
    weights, activations = FORMATS[seed % len(FORMATS)]
    config = roomy(list(CONFIGS.values())[seed % 5], weights, activations, parameter_depth=256)
    for make in (random_network, random_dag):
        builder = make(seed, weights, activations)
        check_in_smaller_memories(builder, replace(config, feature_depth=512), 3)


@pytest.mark.parametrize("seed", range(8))
def test_random_networks_that_join_and_enlarge_equal_the_golden_model_in_small_memories(seed):
    weights, activations = FORMATS[seed % len(FORMATS)]
    config = roomy(list(CONFIGS.values())[seed % 5], weights, activations, parameter_depth=256)
    builder, outputs = random_structure(seed, weights, activations)
    check_in_smaller_memories(builder, replace(config, feature_depth=8192), 2, dict.fromkeys(outputs))


def test_what_several_layers_write_stays_whole():
    """Its 512 words do not fit beside anything else in 512, though one chain writes and reads them."""
    builder = Builder(0, 8, 64, 8, ESBU(4, 2)).conv(8, (1, 1), ESB(4, 2), ESBU(4, 2))
    for kernel, pad in ((3, 1), (1, 0)):
        builder.last = "layer0_out"
        builder.conv(4, (kernel, 1), ESB(4, 2), ESBU(4, 2), pads=(pad, 0, pad, 0))
    builder.concat("layer1_out", "layer2_out").conv(8, (3, 3), ESB(4, 2), ESBU(4, 2), pads=(1, 1, 1, 1))
    builder.max_pool((2, 2), (2, 2))
    assert check_in_smaller_memories(builder, replace(TINY, feature_depth=2048), 2) == 1024


@pytest.mark.parametrize("join", [False, True], ids=["chain before", "chain within"])
def test_chains_write_and_read_what_is_concatenated(join, monkeypatch):
    """A chain whose first tensor comes in bands while others share one region, which stays whole."""
    builder = Builder(1, 8, 64, 8, ESBU(4, 2)).conv(24, (1, 1), ESB(4, 2), ESBU(4, 2))
    builder.conv(4, (3, 3), ESB(4, 2), ESBU(4, 2), stride=(2, 2), pads=(1, 1, 1, 1))
    builder.last = "layer0_out"
    builder.conv(3, (5, 3), ESB(4, 2), ESBU(4, 2), stride=(2, 2), pads=(2, 1, 2, 1)).concat("layer1_out", "layer2_out")
    if join:
        builder.conv(4, (3, 3), ESB(4, 2), ESBU(4, 2), pads=(1, 1, 1, 1)).concat("layer3_out", builder.last)
    else:
        builder.upsample((1, 2))
    builder.conv(3, (8, 3), ESB(4, 2), None, stride=(8, 4))
    steps = _steps(monkeypatch)
    config = replace(TINY, feature_depth=1 << 12, weight_depth=4096)
    assert check_in_smaller_memories(builder, config, 2) <= 1024
    turns = Counter(step.layer for step in steps[-1] if isinstance(step, Work))
    assert min(turns[index] for index in range(3)) > 1


def _tall(residual=None):
    """Two 3x3 convolutions in front of a pool, and their configuration: only the pooled map fits whole."""
    builder = Builder(0, 8, 64, 8, ESBU(4, 2)).conv(8, (3, 3), ESB(4, 2), ESBU(4, 2), pads=(1, 1, 1, 1))
    builder.conv(8, (3, 3), ESB(4, 2), ESBU(4, 2), pads=(1, 1, 1, 1), residual=residual).max_pool((2, 2), (2, 2))
    return builder, replace(TINY, feature_depth=512)


@pytest.mark.parametrize("residual", [None, "input", "layer0_out"])
def test_rows_that_two_bands_need_are_moved_where_that_is_cheaper(residual, monkeypatch):
    builder, config = _tall(residual)
    steps = _steps(monkeypatch)
    program = check(builder.network(), config, builder.images(3))
    moves = [step for step in steps[0] if isinstance(step, Move)]
    # Rows come from behind the place they go to, in whatever number the next band needs.
    assert {(move.layer, move.rows) for move in moves} == {(0, 2)}
    assert all(move.source > move.base for move in moves)
    # So no row is computed twice.
    assert program.layers[0]["compute_cycles"] == 9 * 64 * 8
    assert program.layers[0]["pool_cycles"] == len(moves) * 2 * 8
    ranges = program.layers[0]["instructions"]
    assert len(ranges) == len(moves) + 1
    assert all(end < first for (_, end), (first, _) in itertools.pairwise(ranges))


def test_wrong_rows_in_a_chain_change_the_result(monkeypatch):
    builder, config = _tall()
    network, images = builder.network(), builder.images(2)

    def skipped(step):
        return replace(step, base=step.source) if isinstance(step, Move) else step

    def higher(step):
        late = isinstance(step, Work) and step.layer == 1 and step.first > 0
        window = step.windows["layer0_out"] if late else None
        # The band's first row then counts as the map's, and what is above it as padding.
        return (
            replace(step, windows={**step.windows, "layer0_out": replace(window, first=window.first + 1)})
            if late
            else step
        )

    for change in (skipped, higher):
        with monkeypatch.context() as patch:
            changed(patch, change)
            results, _ = emulate(compile(network, config), images)
            assert (results != run(network, images)).any(), change.__name__
    check(network, config, images)


def test_what_fits_whole_runs_layer_by_layer(monkeypatch):
    steps = _steps(monkeypatch)
    builder, config = _tall()
    program = check(builder.network(), replace(config, feature_depth=2048), builder.images(3))
    assert [type(step) for step in steps[0]] == [Send, Work, Work, Work, Output]
    assert [layer["instructions"] for layer in program.layers] == [((0, 32),), ((32, 64),), ((64, 65),)]
    assert len(program.image) == 2


@pytest.mark.parametrize(("channels", "format"), [(8, INT(8)), (16, ESBU(4, 2))], ids=["parts", "blocks"])
def test_both_sides_of_a_sum_with_several_parts_or_blocks_stay_whole(channels, format):
    """POST reads and writes with the same steps, so neither may lie in a buffer of fewer rows."""
    builder = Builder(0, 8, 64, 4, ESBU(4, 2)).conv(channels, (1, 1), ESB(4, 2), format)
    builder.conv(8, (3, 3), ESB(4, 2), ESBU(4, 2), pads=(1, 1, 1, 1))
    builder.conv(channels, (3, 3), ESB(4, 2), format, pads=(1, 1, 1, 1), residual="layer0_out")
    builder.conv(8, (4, 1), ESB(4, 2), ESBU(4, 2), stride=(4, 1))
    config = roomy(TINY, ESB(4, 2), ESBU(4, 2), feature_depth=4096)
    whole = 2 * builder.tensors["layer0_out"].height * 4 * (3 if channels == 8 else 2)
    assert whole < check_in_smaller_memories(builder, config, 2) <= 2 * whole


def test_what_a_chain_reads_stays_until_its_last_band():
    """Not only until the layer that reads it has run in the first one."""
    builder = Builder(0, 8, 64, 1, ESBU(4, 2))
    builder.conv(8, (65, 1), ESB(4, 2), ESBU(4, 2), pads=(32, 1, 32, 2))
    builder.conv(32, (1, 1), ESB(4, 2), ESBU(4, 2)).conv(32, (3, 3), ESB(4, 2), ESBU(4, 2), pads=(1, 1, 1, 1))
    builder.conv(8, (1, 1), ESB(4, 2), ESBU(4, 2))
    config = roomy(TINY, ESB(4, 2), ESBU(4, 2), feature_depth=1024, weight_depth=4096)
    first, *chain = check(builder.network(), config, builder.images(3)).layers
    assert len(first["instructions"]) == 1
    assert all(len(layer["instructions"]) > 1 for layer in chain)


def test_a_tensor_that_is_only_added_comes_in_bands_too(monkeypatch):
    builder = Builder(0, 8, 64, 8, ESBU(4, 2)).conv(8, (1, 1), ESB(4, 2), ESBU(4, 2))
    builder.last = "input"
    builder.conv(8, (1, 1), ESB(4, 2), ESBU(4, 2))
    builder.conv(8, (2, 1), ESB(4, 2), ESBU(4, 2), pads=(1, 0, 0, 0), residual="layer0_out").max_pool((2, 2), (2, 2))
    program = check(builder.network(), replace(TINY, feature_depth=512), builder.images(2))
    assert all(len(layer["instructions"]) > 1 for layer in program.layers)


def test_tensors_are_placed_by_size_where_the_order_of_use_leaves_small_holes():
    """64, 128, 128 and 256 words, two at a time: in order of use the last one would begin at 320."""
    builder = Builder(0, 8, 8, 8, ESBU(4, 2)).conv(16, (1, 1), ESB(4, 2), ESBU(4, 2))
    builder.conv(16, (1, 1), ESB(4, 2), ESBU(4, 2)).conv(32, (1, 1), ESB(4, 2), ESBU(4, 2))
    check(builder.network(), replace(TINY, feature_depth=512), builder.images(3))


def test_wide_rows_are_split_into_columns_of_strips():
    builder = Builder(8, 3, 3, 50, ESBU(4, 2)).conv(5, (2, 3), ESB(4, 2), ESBU(4, 2), pads=(1, 1, 1, 1))
    builder.conv(3, (1, 1), ESB(4, 2), None)
    for planes in (1, 4):
        check(builder.network(), replace(TINY, planes=planes, strip_depth=8), builder.images(2))


def test_negative_levels_reach_the_padding_code_of_every_part():
    """Padding of an excess tensor is the digits of the offset, on the array as in the host's folding."""
    builder = Builder(4, 9, 4, 4, INT(8)).conv(6, (3, 3), INT(8), INT(8), pads=(2, 2, 2, 2))
    builder.conv(5, (3, 3), INT(8), INT(8), pads=(1, 1, 1, 1)).average_pool((3, 3), (2, 2), INT(8), (1, 1, 1, 1))
    check(builder.network(), roomy(TINY, ESB(4, 2), ESBU(4, 2)), builder.images(2))


def test_extreme_levels_do_not_overflow_fitted_accumulators():
    """All weights and activations at their ends, with accumulators that have no bit to spare."""
    for sign in (1, -1):
        for weights, activation, config in (
            (INT(8), UINT(8), TINY),
            (ESB(4, 2), ESBU(4, 2), TINY),
            (INT(8), INT(8), TINY),
            (INT(8), UINT(8), roomy(TINY, INT(8), UINT(8))),
        ):
            builder = Builder(0, 20, 3, 3, activation).conv(4, (3, 3), weights, None, pads=(1, 1, 1, 1))
            builder.layers[0].weights[:] = sign * weights.levels[-1]
            network = builder.network()
            fitted = fit(network, config)
            images = np.full((1, 20, 3, 3), activation.levels[-1])
            check(network, fitted, np.concatenate([images, -images if activation.signed else 0 * images]))


def test_fit_gives_the_narrowest_accumulators_that_compile():
    builder = Builder(6, 40, 5, 5, UINT(8)).conv(6, (5, 5), INT(8), ESBU(4, 2)).conv(3, (1, 1), INT(8), None)
    network = builder.network()
    fitted = fit(network, TINY)
    check(network, fitted, builder.images(2))
    narrower = replace(
        fitted, max_reduction=fitted.max_reduction // 2, max_wide_reduction=fitted.max_wide_reduction // 2
    )
    assert narrower.accumulator_bits == fitted.accumulator_bits - 1
    with pytest.raises(CompileError, match=f"layer0 needs accumulators of {fitted.accumulator_bits} bits"):
        compile(network, narrower)
    assert (fitted.weight_format, fitted.columns) == (TINY.weight_format, TINY.columns)


@pytest.mark.parametrize(
    ("positive", "negative", "bits"), [(0, 8192, 16), (0, 8193, 17), (10923, 2, 16), (10923, 1, 17)]
)
def test_sign_constants_count_in_the_width_of_accumulators(positive, negative, bits):
    """Products are -3 to 3; every negative weight takes one more off the raw sum."""
    config = replace(TINY, weight_format=ESB(2, 0), activation_format=UINT(2))
    builder = Builder(0, 1, 1, positive + negative, UINT(2)).conv(1, (1, positive + negative), ESB(2, 0), None)
    builder.layers[0].weights[0, 0, 0] = [1] * positive + [-1] * negative
    assert fit(builder.network(), config).accumulator_bits == bits


def test_part_passes_with_gaps_between_their_shifts_are_bridged():
    """Weights of one part at shift 0 and one at shift 2 or more: a pass without weights shifts in between."""
    config = roomy(TINY, ESB(3, 0), ESBU(2, 0))
    builder = Builder(0, 9, 4, 4, ESBU(2, 0)).conv(5, (2, 2), INT(8), ESBU(2, 0)).conv(3, (3, 3), INT(8), None)
    program = check(builder.network(), config, builder.images(3))
    blocks, kernel_positions, strips = 2, 4, 1
    assert program.layers[0]["tiles"] % (blocks * kernel_positions * strips), "no pass without weights"


def test_report_counts_what_a_person_counts():
    builder = Builder(7, 16, 8, 8, ESBU(4, 2)).conv(16, (3, 3), ESB(4, 2), ESBU(4, 2), pads=(1, 1, 1, 1))
    first = compile(builder.network(), TINY).layers[0]
    macs = 16 * 16 * 9 * 64
    tiles = 2 * 9 * 2 * 2  # channel blocks, kernel positions, column tiles, strips of 32 pixels
    assert first == {
        "name": "layer0",
        "macs": macs,
        "part_products": macs,
        "tiles": tiles,
        "compute_cycles": tiles * 32,
        "pool_cycles": 0,
        "weight_words": 2 * 9 * 16,
        "instructions": ((0, 8),),
    }
    # No lane idles: every cycle does as many products as the grid has multipliers.
    assert macs == tiles * 32 * TINY.mac_lanes


@pytest.mark.parametrize(
    ("columns", "channels", "out", "groups", "tiles"),
    [
        (8, 24, 24, 24, 3),  # depthwise: a channel block each
        (12, 24, 24, 24, 3),  # tiles of 12 would read 1 + 2 blocks
        (12, 24, 24, 1, 2 * 3),  # every tile reads everything
        (8, 24, 24, 2, 2 + 3 + 2),  # cut at the group: 4 tiles of 2 blocks
        (16, 24, 24, 2, 2 + 2),  # cut at the group: 16 + 8 channels would read 3 + 2 blocks
        (16, 8, 32, 8, 2),  # four outputs per channel, all in one block
        (16, 32, 32, 4, 4),  # a tile of two groups reads two blocks, once
    ],
)
def test_grouped_layers_run_the_fewest_pairs_of_tile_and_channel_block(columns, channels, out, groups, tiles):
    builder = Builder(1, channels, 4, 4, ESBU(4, 2)).conv(out, (3, 1), ESB(4, 2), ESBU(4, 2), groups=groups)
    builder.layers[0].weights[builder.layers[0].weights == 0] = 1
    report = check(builder.network(), replace(TINY, columns=columns), builder.images(2)).layers[0]
    assert report["tiles"] == 3 * tiles
    assert report["compute_cycles"] == 3 * tiles * 8
    assert report["macs"] == 3 * 8 * out * channels // groups


def test_blocks_without_weights_are_skipped():
    """A selection reads one block per tile; new channels, which have no source, read one for the zeros."""
    builder = Builder(1, 16, 4, 4, UINT(8)).select(8, 32, ESB(4, 2), stride=(2, 2)).conv(3, (2, 2), INT(8), None)
    report = check(builder.network(), TINY, builder.images(2)).layers[0]
    activation_parts = 3
    assert report["tiles"] == 4 * activation_parts
    assert report["weight_words"] == 4 * 8


def _simple(
    channels=8, size=(6, 6), format=TINY.activation_format, out=8, kernel=(3, 3), weights=TINY.weight_format, output=...
):  # fmt: skip
    output = TINY.activation_format if output is ... else output
    return Builder(0, channels, *size, format).conv(out, kernel, weights, output)


def _max_of_wide():
    return _simple(output=UINT(8)).max_pool((2, 2), (2, 2))


def _tall_kernel():
    builder = Builder(0, 1, 300, 1, ESBU(4, 2)).max_pool((1, 1), (1, 1))
    return builder.conv(2, (2, 1), ESB(4, 2), None, dilation=(280, 1))


def _large_bias():
    builder = _simple()
    builder.layers[0].bias[3] = 2**31 - 1
    return builder


@pytest.mark.parametrize(
    ("builder", "config", "words"),
    [
        (
            lambda: _simple(size=(40, 40)),
            {"feature_depth": 1024},
            "Layer layer0 takes at least 1684 words.*there are 1024.*feature_depth to at least 2048",
        ),
        (
            lambda: Builder(0, 8, 20, 20, ESBU(4, 2)).max_pool((20, 20), (1, 1)).conv(880, (1, 1), INT(8), None),
            {"feature_depth": 512},
            "Layer layer1 takes at least 881 words.*there are 512.*feature_depth to at least 1024",
        ),
        (
            lambda: Builder(0, 8, 40, 40, ESBU(4, 2)).max_pool((2, 2), (1, 1)),
            {"feature_depth": 1024},
            "Layer layer0 takes at least 1681 words.*there are 1024.*feature_depth to at least 2048",
        ),
        (
            lambda: _simple(channels=64, kernel=(6, 6)),
            {"max_reduction": 8, "max_wide_reduction": 1},
            "layer0 needs accumulators of 1[89] bits, the accelerator has 16.*fit",
        ),
        (
            lambda: _simple(out=32),
            {"columns": 32, "weight_depth": 16},
            "one tile of weights has 32 words.*8.*weight_depth to at least 64",
        ),
        (
            lambda: _simple(out=16),
            {"columns": 16, "parameter_depth": 2},
            "4 words of parameters.*2.*parameter_depth to at least 4",
        ),
        (lambda: _simple(format=ESBU(5, 3)), {}, "Tensor input: Activations esbu:5,3 do not run"),
        (
            lambda: _simple(format=UINT(2), output=UINT(2), weights=ESB(8, 5)),
            {"weight_format": ESB(2, 0), "activation_format": UINT(2)},
            "layer0: Weights esb:8,5",
        ),
        (lambda: _simple(output=ESBU(3, 0)), {}, "Tensor layer0_out: Activations esbu:3,0 do not run"),
        (_max_of_wide, {}, "maximum of uint:8.*3 parts here.*esbu:4,2 or an int or uint format of at most 3 bits"),
        (_tall_kernel, {}, r"layer1 does not fit an instruction: COMPUTE.ystep1 must be 0 to 255, not 280"),
        (lambda: _simple(size=(5000, 3)), {"feature_depth": 65536}, "reaches input row.*4095"),
        (_large_bias, {}, "bias of output channel 3 is 2147483"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error_that_says_what_to_change(builder, config, words):
    network = builder().network()
    with pytest.raises(CompileError, match=words):
        compile(network, replace(TINY, **config))


def test_raw_results_must_fit_32_bits():
    """The level -128 that the excess form could hold is counted, although no encoder emits it."""
    builder = Builder(0, 8, 3, 3, INT(8)).conv(1, (3, 3), INT(8), None)
    builder.layers[0].weights[0, :4], builder.layers[0].weights[0, 4:] = 127, -127
    builder.layers[0].bias[0] = -(2**31) + 1 + 127 * 127 * 72
    with pytest.raises(CompileError, match=r"Layer layer0: raw results can reach .* leaves 32 bits"):
        compile(builder.network(), TINY)


def test_a_network_without_layers_is_refused():
    network = IntegerNetwork("empty", {"input": Tensor("input", 1, 1, 1, UINT(8), 1.0)}, (), "input", "input")
    with pytest.raises(CompileError, match="no layers"):
        compile(network, TINY)


@pytest.fixture(scope="module")
def compiled():
    builder = random_network(1, ESB(4, 2), ESBU(4, 2))
    return compile(builder.network(), roomy(TINY, ESB(4, 2), ESBU(4, 2))), builder


def test_a_saved_program_is_the_same_program(compiled, tmp_path):
    program, builder = compiled
    path = tmp_path / "network.sigbit"
    program.save(path)
    loaded = Program.load(path, program.config)
    for field in ("config", "name", "setup", "image", "input", "outputs", "layers"):
        assert getattr(loaded, field) == getattr(program, field)
    assert [entry.name for entry in tmp_path.iterdir()] == ["network.sigbit"]
    assert Program.is_program(path)
    assert not Program.is_program(tmp_path / "absent")
    image = builder.images(1)[0]
    assert loaded.image_packets(image, 7) == program.image_packets(image, 7)


def test_a_saved_program_keeps_the_rows_of_its_bands(tmp_path):
    network, config, images = _banded("7x7 stride 2", 1)
    program = compile(network, config)
    program.save(tmp_path / "network.sigbit")
    loaded = Program.load(tmp_path / "network.sigbit", config)
    assert loaded.image == program.image
    assert loaded.image_packets(images[0], 0) == program.image_packets(images[0], 0)


def test_a_program_for_another_accelerator_is_refused_in_words(compiled, tmp_path):
    compiled[0].save(tmp_path / "p")
    with pytest.raises(ProgramError, match="another accelerator: columns 8 instead of 16; compile it again"):
        Program.load(tmp_path / "p", replace(compiled[0].config, columns=16))


def test_a_damaged_program_file_is_refused(compiled, tmp_path):
    path = tmp_path / "p"
    compiled[0].save(path)
    data = bytearray(path.read_bytes())
    for change, words in (
        (lambda d: d[:-5], "damaged"),
        (lambda d: d[:20], "damaged"),
        (lambda d: d[:200] + bytes([d[200] ^ 1]) + d[201:], "damaged"),
        (lambda d: b"P" + d[1:], "not a sigbit program"),
        (lambda d: b"", "not a sigbit program"),
    ):
        path.write_bytes(change(data))
        with pytest.raises(ProgramError, match=words):
            Program.load(path)
    with pytest.raises(ProgramError, match="Cannot read"):
        Program.load(tmp_path / "absent")
    with pytest.raises(ProgramError, match="Cannot write"):
        compiled[0].save(tmp_path / "absent" / "p")


def test_images_of_wrong_shape_or_level_are_refused(compiled):
    program, builder = compiled
    image = builder.images(1)[0]
    with pytest.raises(ProgramError, match="must be an integer array"):
        program.image_packets(image[:, 1:], 0)
    with pytest.raises(ProgramError, match="must be an integer array"):
        program.image_packets(image.astype(float), 0)
    image[0, 0, 0] = -128
    with pytest.raises(ProgramError, match="levels of int:8 only"):
        program.image_packets(image, 0)


def test_real_images_become_the_nearest_levels(compiled):
    program = replace(compiled[0], input=replace(compiled[0].input, unit=0.5))
    assert program.input_levels([0.0, 0.25, -0.25, 1.0, 99.0]).tolist() == [0, 1, 0, 2, 127]


def test_returned_packets_are_checked(compiled):
    program, builder = compiled
    emulator = Emulator(program.config)
    for packet in (*program.setup, *program.image_packets(builder.images(1)[0], 65538)):
        emulator.send(packet)
    packet = emulator.receive()
    program.decode_output(packet, 2)
    program.decode_output(packet)
    with pytest.raises(ProgramError, match="tag 2, expected 3"):
        program.decode_output(packet, 3)
    with pytest.raises(ProgramError, match="CRC-32"):
        program.decode_output(packet[:30] + bytes([packet[30] ^ 1]) + packet[31:], 2)
    with pytest.raises(ProgramError, match="bytes, not"):
        program.decode_output(packet[:-8], 2)


def test_format_names_round_trip_in_layouts(compiled):
    assert compiled[0].input.format == Format.parse("int:8")
