"""Networks with term masks through the compiler: emulator and cycle model against the golden model."""

from dataclasses import replace

import numpy as np
import pytest
from networks import Builder, mixed_network, random_dag, random_network, roomy, with_masks
from sigbit.compiler import CompileError, compile
from sigbit.device import EmulatorDevice
from sigbit.evaluation import token_counters
from sigbit.session import Session
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import INT, UINT
from sigbit_hw.spec.masks import Policy, TermMask
from sigbit_hw.spec.registers import Register
from sigbit_sim.golden.network import IntegerNetwork, NetworkError, run
from sigbit_sim.golden.sdp import select, tokens

TINY = roomy(PRESETS["tiny"], INT(8), UINT(8), cell="masked", feature_depth=8192, weight_depth=8192)
DENSE = roomy(
    TINY, INT(8), UINT(8), rows=2, columns=16, weight_columns=2, planes=2, post_lanes=8, token_lanes=2,
    weight_depth=256, parameter_depth=4, strip_depth=8,
)  # fmt: skip
EIGHT = roomy(TINY, INT(8), UINT(8), rows=2, lanes=8, columns=8, post_lanes=8, token_lanes=2)


@pytest.mark.parametrize("config", [TINY, DENSE, EIGHT], ids=["tiny", "dense", "groups of 8"])
@pytest.mark.parametrize("make", [random_network, random_dag, mixed_network])
@pytest.mark.parametrize("seed", range(3))
def test_the_emulator_gives_the_golden_integers_and_counts_the_planned_cycles(config, make, seed):
    builder = make(seed, INT(8), UINT(8))
    network = with_masks(builder.network(), config.lanes, seed)
    images = builder.images(2)
    program = compile(network, config)
    device = EmulatorDevice(config)
    with Session(device, program) as session:
        results = session.run(images)
    np.testing.assert_array_equal(results, run(network, images))
    planned = sum(layer["compute_cycles"] for layer in program.layers)
    assert device.read(Register.COMPUTE_CYCLES) == len(images) * planned


@pytest.mark.parametrize("seed", range(2))
def test_the_whole_budget_gives_what_cells_of_multipliers_give(seed):
    builder = random_network(seed, INT(8), UINT(8))
    network, images = builder.network(), builder.images(2)
    results = []
    for config in (roomy(TINY, INT(8), UINT(8), cell="logic"), TINY):
        with Session(EmulatorDevice(config), compile(network, config)) as session:
            results.append(session.run(images))
    np.testing.assert_array_equal(*results)


def one_layer(channels, mask, format=None, groups=1):
    network = Builder(0, channels, 3, 3, format or UINT(8)).conv(8, (3, 3), INT(8), UINT(8), groups=groups).network()
    return replace(network, layers=(replace(network.layers[0], mask=mask),))


@pytest.mark.parametrize("format", [UINT(8), INT(8)])
def test_a_masked_layer_may_read_the_input_whose_last_group_is_not_full(format):
    network = one_layer(6, TermMask(4, 3), format)
    images = np.random.default_rng(5).choice(np.array(format.levels), (3, 6, 3, 3))
    with Session(EmulatorDevice(TINY), compile(network, TINY)) as session:
        np.testing.assert_array_equal(session.run(images), run(network, images))


def test_cycles_follow_the_budget():
    cycles = {
        budget: compile(one_layer(8, mask=TermMask(4, budget)), TINY).layers[0]["compute_cycles"]
        for budget in range(1, 9)
    }
    assert cycles == {budget: budget * cycles[1] for budget in cycles}
    program = compile(one_layer(8, mask=TermMask(4, 3)), TINY).layers[0]
    assert program["part_products"] == program["macs"] * 3 // 4


@pytest.mark.parametrize("format", [UINT(8), INT(8)])
def test_valid_tokens_are_those_of_the_golden_model(format):
    budget, lanes = 5, 2
    config = replace(TINY, token_lanes=lanes)
    # 12 channels are 3 groups in 2 tiles of 2 rows; 10 columns are 2 passes over the same tokens.
    builder = Builder(0, 12, 4, 5, format).conv(10, (3, 2), INT(8), UINT(8), pads=(1, 0, 1, 1))
    network, images = builder.network(), builder.images(2)
    layer = replace(network.layers[0], mask=TermMask(4, budget))
    network = replace(network, layers=(layer,))
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (0, 1)))
    beats = valid = 0
    for image, y, x, ky, kx, group in np.ndindex(2, 4, 5, 3, 2, 3):
        values = padded[image, 4 * group : 4 * group + 4, y + ky, x + kx]
        high, low = select(np.abs(values), budget)
        for beat in tokens(values, high, low, budget, lanes):
            beats += 1
            valid += sum(token is not None for token in beat)
    with Session(EmulatorDevice(config), compile(network, config)) as session:
        np.testing.assert_array_equal(session.run(images), run(network, images))
        found = token_counters(session.counters(), config)
    assert found["valid_tokens"] == 2 * valid
    # A row without a group has beats as well, but no tokens, whatever lies there.
    assert found["beats"] == 2 * beats * 4 // 3
    assert found["idle_lanes"] == found["beats"] * lanes - 2 * valid
    assert found["utilisation"] == 2 * valid / (found["beats"] * lanes)


def joined(channels):
    builder = Builder(1, 4, 4, 4, UINT(8)).conv(channels, (1, 1), INT(8), UINT(8))
    first = builder.last
    builder.conv(channels, (1, 1), INT(8), UINT(8))
    network = builder.concat(first, builder.last).conv(4, (1, 1), INT(8), UINT(8)).network()
    *layers, last = network.layers
    return replace(network, layers=(*layers, replace(last, mask=TermMask(4, 3))))


def test_a_masked_layer_may_read_joined_tensors_of_whole_groups():
    network = joined(8)
    images = np.random.default_rng(6).integers(0, 256, (2, 4, 4, 4))
    with Session(EmulatorDevice(TINY), compile(network, TINY)) as session:
        np.testing.assert_array_equal(session.run(images), run(network, images))


@pytest.mark.parametrize(
    ("network", "config", "message"),
    [
        (one_layer(4, mask=TermMask(4, 3)), roomy(PRESETS["tiny"], INT(8), UINT(8)), "takes masked cells; choose"),
        (one_layer(4, mask=TermMask(8, 3)), TINY, "masks of groups of 8, the accelerator has groups of 4; quantize"),
        (one_layer(4, mask=TermMask(4, 3, Policy.TERM)), TINY, "policy term, which the golden model alone has"),
        (joined(6), TINY, "channels are not multiples of 4; give the layer a budget of 8"),
    ],
)
def test_masks_that_the_accelerator_does_not_have_are_errors(network, config, message):
    with pytest.raises(CompileError, match=message):
        compile(network, config)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: one_layer(4, TermMask(4, 3), UINT(4)), "masks parts of 8-bit levels, but input has uint:4"),
        (lambda: one_layer(12, mask=TermMask(8, 3), groups=2), "has 6 channels in a group of the convolution"),
        (lambda: one_layer(4, mask="sdp:4,3"), "mask must be a TermMask or None"),
    ],
)
def test_masks_that_a_layer_cannot_have_are_errors(make, message):
    with pytest.raises(NetworkError, match=message):
        make()


def test_masks_survive_a_file(tmp_path):
    network = one_layer(4, mask=TermMask(4, 3, Policy.MAG))
    network.save(tmp_path / "network.npz")
    assert IntegerNetwork.load(tmp_path / "network.npz").layers[0].mask == network.layers[0].mask
