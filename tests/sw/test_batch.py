"""Groups of images: the last layers run once for all of them, every result stays that of the golden model."""

from dataclasses import replace

import numpy as np
import pytest
from networks import Builder, roomy
from sigbit import compiler
from sigbit.compiler import CompileError, compile, fit
from sigbit.device import EmulatorDevice
from sigbit.session import Session
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT
from sigbit_hw.spec.packets import Kind
from sigbit_hw.spec.registers import Register
from sigbit_sim.golden.emulator import SCHEDULES, Emulator
from sigbit_sim.golden.network import run
from sigbit_sim.golden.program import Program, ProgramError

W, A = ESB(4, 2), ESBU(4, 2)
TINY = roomy(PRESETS["tiny"], W, A)
CONFIGS = {
    "tiny": TINY,
    "planes, streamed": roomy(
        TINY, W, A, rows=2, lanes=2, columns=8, weight_columns=2, planes=2, post_lanes=2, strip_depth=8,
        weight_depth=32, parameter_depth=4, stream_bits=512,
    ),
    "four planes": roomy(TINY, W, A, rows=1, columns=16, post_lanes=2, planes=4, strip_depth=8),
    "small": PRESETS["small"],
}  # fmt: skip


def lenet(seed=1):
    """A first layer of 8 bits, pools, three fully connected layers, the first of them over maps of several pixels."""
    builder = Builder(seed, 1, 14, 14, UINT(8)).conv(6, (3, 3), INT(8), A, relu=True).max_pool((2, 2), (2, 2))
    builder.conv(16, (3, 3), W, A, relu=True).max_pool((2, 2), (2, 2)).conv(30, (2, 2), W, A, relu=True)
    return builder.conv(21, (1, 1), W, A, relu=True).conv(10, (1, 1), W, None)


def alexnet():
    """Strides, kernels larger than strides, pools that overlap, last layer of 8 bits."""
    builder = Builder(2, 3, 11, 11, INT(8)).conv(8, (5, 5), INT(8), A, (2, 2), pads=(2, 2, 2, 2), relu=True)
    builder.max_pool((3, 3), (2, 2)).conv(20, (3, 3), W, A, pads=(1, 1, 1, 1), relu=True)
    builder.conv(40, (2, 2), W, A, relu=True).conv(40, (1, 1), W, A, relu=True)
    return builder.conv(12, (1, 1), INT(8), None)


def resnet():
    """A sum, then the mean of its map, which a group takes at once."""
    builder = Builder(3, 9, 5, 4, A).conv(18, (3, 3), W, A, pads=(1, 1, 1, 1))
    builder.conv(18, (3, 3), W, A, pads=(1, 1, 1, 1), residual=builder.last)
    return builder.average_pool((5, 4), (1, 1), A).conv(7, (1, 1), W, None)


def vectors():
    """The input is a vector; sums of it and of others, in several parts; kernels that reach into padding."""
    builder = Builder(4, 13, 1, 1, INT(8)).conv(13, (1, 1), INT(8), A, relu=True)
    builder.conv(13, (1, 1), W, INT(8), residual="input").conv(13, (1, 1), W, A, residual="layer1_out")
    builder.conv(13, (3, 3), W, INT(8), residual="layer0_out", pads=(1, 1, 1, 1))
    return builder.conv(3, (3, 2), W, None, dilation=(2, 1), pads=(2, 1, 2, 0))


def flat():
    """One fully connected layer over an image, which is stored with its kernel folded into channels or not."""
    return Builder(5, 3, 4, 5, UINT(8)).conv(9, (4, 5), W, None)


def maximum():
    """Maxima of whole maps, joined with another vector of the same map."""
    builder = Builder(6, 5, 6, 6, A).conv(20, (3, 2), W, A).max_pool((4, 5), (1, 1))
    builder.last = "layer0_out"
    builder.conv(11, (4, 5), W, A).concat("layer1_out", "layer2_out")
    return builder.conv(6, (1, 1), W, A).conv(4, (1, 1), W, None)


def padded():
    """Kernels that reach beyond all sides of their map."""
    builder = Builder(7, 4, 6, 7, UINT(8)).conv(9, (3, 3), INT(8), UINT(8), (2, 2))
    builder.conv(10, (4, 5), W, A, pads=(1, 1, 1, 1))
    return builder.average_pool((3, 3), (3, 3), A, pads=(1, 1, 1, 1)).conv(4, (1, 1), W, None)


NETWORKS = {make.__name__: make for make in (lenet, alexnet, resnet, vectors, flat, maximum, padded)}


def emulate(program, images, schedule="eager"):
    """Results of a session by name of the output, all groups on their way before the first result is read."""
    emulator = Emulator(program.config, schedule)
    batch, groups = program.batch, program.groups(len(images))
    packets = [packet for i in range(groups) for packet in program.image_packets(images[i * batch :][:batch], i)]
    for packet in (*program.setup, *packets):
        emulator.send(packet)
    results = []
    for index in range(groups):
        results.extend(program.decode_outputs([emulator.receive() for _ in program.arrival], index))
    assert emulator.receive() is None
    assert emulator.read(Register.FAULT) == 0
    if len(program.outputs) == 1:
        results = [{program.output.name: result} for result in results]
    return {name: np.stack([result[name] for result in results[: len(images)]]) for name in results[0]}, emulator


def check(network, config, images, batch):
    """Both schedules give the golden integers and the cycles of the report; returns the program."""
    program = compile(network, config, batch)
    expected = run(network, images)
    if len(network.outputs) == 1:
        expected = {network.output: expected}
    for schedule in SCHEDULES:
        results, emulator = emulate(program, images, schedule)
        for name, values in expected.items():
            np.testing.assert_array_equal(results[name], values, err_msg=f"{schedule} {name}")
        for register in (Register.COMPUTE_CYCLES, Register.POOL_CYCLES):
            cycles = sum(layer[register.name.lower()] for layer in program.layers)
            assert emulator.read(register) == cycles * program.groups(len(images))
    return program


def weight_words(program):
    return sum(packet.count for packet in program.image[0] if packet.kind == Kind.WEIGHTS)


@pytest.mark.parametrize("batch", [2, 3, 5])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_groups_equal_the_golden_model(name, config, batch):
    builder = NETWORKS[name]()
    config = fit(builder.network(), config, batch)
    program = check(builder.network(), config, builder.images(7), batch)
    assert program.batch == batch
    # Groups and input regions come round together.
    assert len(program.image) in ((1, 2) if batch % 2 or name in ("vectors", "flat") else (1,))


def test_a_group_takes_the_weights_of_its_layers_once():
    network, config = lenet().network(), CONFIGS["planes, streamed"]
    one, many = (compile(network, config, batch) for batch in (1, 5))
    own = {layer["name"]: layer["weight_words"] for layer in one.layers}
    connected = sum(own[f"layer{index}"] for index in (4, 5, 6))
    assert weight_words(one) >= sum(own.values()) > config.weight_depth
    assert weight_words(many) == 5 * (weight_words(one) - connected) + connected


def test_a_tile_runs_for_all_images_of_a_group():
    network = lenet().network()
    one, many = (compile(network, TINY, batch).layers for batch in (1, 5))
    for index in (4, 5, 6):
        assert many[index]["tiles"] == one[index]["tiles"]
        assert many[index]["compute_cycles"] == 5 * one[index]["compute_cycles"]
        assert many[index]["macs"] == one[index]["macs"]
    # Planes take different images.
    layers = compile(network, replace(TINY, planes=2), 6).layers
    assert layers[5]["compute_cycles"] == 3 * one[5]["compute_cycles"]


def test_more_images_than_the_accumulators_hold_take_some_weights_again():
    builder, config = vectors(), CONFIGS["planes, streamed"]
    most = config.strip_depth * config.planes
    words = [
        weight_words(check(builder.network(), config, builder.images(most + 3), batch)) for batch in (most, most + 1)
    ]
    assert config.weight_depth < words[0] < words[1] <= 2 * words[0]


def test_outputs_of_all_kinds_are_sent_for_every_image():
    """A map and a vector of single images, one that a group reads, too, and the group's own; not in this order."""
    builder = Builder(8, 3, 6, 6, UINT(8)).conv(9, (3, 3), INT(8), A).conv(5, (2, 2), W, INT(8))
    builder.conv(10, (3, 3), W, A).conv(4, (1, 1), W, None)
    network = builder.network("layer3_out", "layer0_out", "layer2_out", "layer1_out")
    program = check(network, replace(TINY, feature_depth=4096), builder.images(5), 2)
    assert program.arrival == (1, 3, 5, 7, 2, 6, 0, 4)


def test_images_wait_for_their_group_in_memory_that_nothing_else_uses(monkeypatch):
    builder = lenet()
    network, images = builder.network(), builder.images(6)
    check(network, TINY, images, 3)
    steps = compiler.MemoryPlan

    def crowded(groups):
        """All images of a group in the place of the first one."""
        assert any(getattr(step, "image", 0) for group in groups for step in group)
        return steps(
            tuple(
                tuple(
                    replace(step, windows={key: replace(w, image_words=1) if w.image_words else w
                                           for key, w in step.windows.items()})
                    if hasattr(step, "windows") else step
                    for step in group
                )
                for group in groups
            )
        )  # fmt: skip

    plan = compiler._plan
    monkeypatch.setattr(compiler, "_plan", lambda *arguments: crowded(plan(*arguments).groups))
    results, _ = emulate(compile(network, TINY, 3), images)
    assert (results[network.output] != run(network, images)).any()


def test_padding_inside_a_group_would_read_other_images(monkeypatch):
    """The taps outside the map are left out: with them the results are wrong."""
    builder = padded()
    network, images = builder.network(), builder.images(4)
    monkeypatch.setattr(compiler, "_vector_form", lambda layer, source, target: layer if target.width == 1 else None)
    results, _ = emulate(compile(network, TINY, 2), images)
    assert (results[network.output] != run(network, images)).any()


def test_an_image_takes_its_own_place_in_the_group():
    builder = lenet()
    network, images = builder.network(), builder.images(4)
    program = compile(network, TINY, 2)
    wrong = tuple(tuple(replace(packet, image=0) for packet in group) for group in program.image)
    results, _ = emulate(replace(program, image=wrong), images)
    expected = run(network, images)
    np.testing.assert_array_equal(results[network.output][::2], expected[::2])
    assert (results[network.output][1::2] != expected[1::2]).any(axis=1).all()


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Kind.INPUT, "tiny"), (Kind.WEIGHTS, "planes, streamed"), (Kind.PARAMETERS, "planes, streamed")],
)
def test_a_group_without_fences_fails_on_the_late_schedule(kind, name):
    builder = lenet()
    network, images = builder.network(), builder.images(9)
    program = check(network, replace(CONFIGS[name], instruction_depth=256), images, 3)
    unfenced = tuple(
        tuple(replace(packet, fence=0xFFFF) if packet.kind == kind else packet for packet in group)
        for group in program.image
    )
    results, _ = emulate(replace(program, image=unfenced), images, "late")
    assert (results[network.output] != run(network, images)).any()


@pytest.mark.parametrize("batch", [2, 3])
def test_input_regions_take_turns_from_image_to_image(batch):
    """Those of the next group, too; then it all comes again."""
    program = compile(lenet().network(), TINY, batch)
    regions = [packet.destination for group in program.image for packet in group if packet.kind == Kind.INPUT]
    assert len(set(regions)) == 2
    assert all(one != following for one, following in zip(regions, regions[1:] + regions[:1], strict=True))


def test_input_bands_work_for_every_image_of_a_group():
    builder = Builder(9, 8, 40, 16, A).conv(8, (7, 7), W, A, (2, 2), pads=(3, 3, 3, 3), groups=8)
    builder.max_pool((4, 4), (4, 4)).conv(6, (5, 2), W, A).conv(4, (1, 1), W, None)
    program = check(builder.network(), replace(TINY, feature_depth=512), builder.images(5), 3)
    assert {packet.image for packet in program.image[0] if packet.rows} == {0, 1, 2}


def test_one_image_at_a_time_stays_as_it_is():
    program, same = compile(lenet().network(), TINY), compile(lenet().network(), TINY, 1)
    assert (program.image, program.setup, program.layers) == (same.image, same.setup, same.layers)
    assert program.batch == 1
    assert not any(packet.image for packet in program.image[0])


@pytest.mark.parametrize("batch", [0, -1, 2.0, "2", None])
def test_a_group_has_a_whole_number_of_images(batch):
    with pytest.raises(CompileError, match="batch must be a whole number of at least 1, not"):
        compile(lenet().network(), TINY, batch)


@pytest.mark.parametrize(
    "end",
    [
        lambda builder: builder,
        # Its only tap inside the map is not the first pixel.
        lambda builder: builder.conv(3, (2, 2), W, None, dilation=(6, 5), pads=(4, 3, 0, 0)),
    ],
    ids=["map", "kernel that begins inside the map"],
)
def test_a_network_without_vectors_at_its_end_takes_no_groups(end):
    network = end(Builder(1, 3, 5, 5, A).conv(4, (3, 3), W, A)).network()
    with pytest.raises(
        CompileError, match=r"gains nothing from groups of 4 images: layer layer\d makes .* for batch 1"
    ):
        compile(network, TINY, 4)


def test_the_largest_group_that_fits_is_named():
    builder, config = lenet(), replace(TINY, feature_depth=512)
    with pytest.raises(CompileError, match="A group of 100 images does not fit 512 words") as error:
        compile(builder.network(), config, 100)
    most = int(str(error.value).split("compile for batch ")[1].split(",")[0])
    assert 1 < most < 100
    check(builder.network(), config, builder.images(most + 1), most)
    with pytest.raises(CompileError, match=f"does has {most}"):
        compile(builder.network(), config, most + 1)


def test_the_mean_of_a_map_stays_with_its_image_where_maps_do_not_fit():
    builder, config = resnet(), replace(TINY, feature_depth=512)
    one = compile(builder.network(), config).layers[2]["compute_cycles"]
    tiles = {batch: check(builder.network(), config, builder.images(5), batch).layers[2] for batch in (2, 20)}
    # The tiles of a mean are few pixels each, so a group needs fewer of them.
    assert tiles[2]["tiles"] * 20 == tiles[20]["tiles"]
    assert tiles[20]["compute_cycles"] == 20 * one


def test_a_layer_that_fits_alone_but_not_in_any_group_is_named():
    with pytest.raises(CompileError, match="takes at least"):
        compile(lenet().network(), replace(TINY, feature_depth=16), 4)


def test_a_saved_program_keeps_its_groups(tmp_path):
    builder = lenet()
    program = compile(builder.network(), TINY, 3)
    program.save(tmp_path / "program")
    loaded = Program.load(tmp_path / "program")
    assert (loaded.batch, loaded.image, loaded.layers) == (3, program.image, program.layers)
    images = builder.images(3)
    assert loaded.image_packets(images, 5) == program.image_packets(images, 5)


def test_a_group_that_is_not_full_repeats_its_last_image():
    builder = lenet()
    program, images = compile(builder.network(), TINY, 3), builder.images(4)
    full = program.image_packets(images[[0, 1, 1]], 0)
    assert program.image_packets(images[:2], 0) == full
    assert program.image_packets(images[0], 0) == program.image_packets(images[[0, 0, 0]], 0) != full
    for wrong in (images, images[:0]):
        with pytest.raises(ProgramError, match=f"takes 1 to 3 images at a time, not {len(wrong)}"):
            program.image_packets(wrong, 0)


class Recorder(EmulatorDevice):
    """An emulator that notes what the host does."""

    actions = ()

    def send(self, packet):
        self.actions = (*self.actions, "send")
        super().send(packet)

    def receive(self):
        self.actions = (*self.actions, "receive")
        return super().receive()


def test_a_session_sends_groups_and_drops_what_fills_up_the_last():
    builder = lenet()
    network, images = builder.network(), builder.images(7)
    device, done = Recorder(TINY), []
    program = compile(network, TINY, 3)
    with Session(device, program) as session:
        device.actions = ()
        first = session.run(images, done.append)
        actions = device.actions
        again = session.run(images[:1])
    expected = run(network, images)
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(again, expected[:1])
    assert done == [3, 6, 7]
    send, receive = ("send",) * (len(actions) // 3 - 3), ("receive",) * 3
    assert actions == (*send, *send, *receive, *send, *receive, *receive)
