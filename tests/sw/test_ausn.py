"""AUSN weights and activations on arrays of other formats, golden model against emulator."""

import numpy as np
import pytest
from networks import Builder
from sigbit.compiler import compile
from sigbit.device import EmulatorDevice
from sigbit.session import Session
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import AUSN_A, AUSN_G, AUSN_GU, INT, UINT
from sigbit_sim.golden.network import run


def network(seed, weights, activations):
    builder = Builder(seed, 3, 9, 7, UINT(8))
    builder.conv(12, (3, 3), INT(8), activations, pads=(1, 1, 1, 1), relu=True).max_pool((2, 2), (2, 2))
    builder.conv(9, (2, 2), weights, activations, relu=True).average_pool((2, 2), (1, 1), activations)
    return builder.conv(5, (2, 1), weights, None)


@pytest.mark.parametrize("weights", [AUSN_A(2, 1), AUSN_A(3, 0), AUSN_G(2, 1), AUSN_G(2, 2)], ids=str)
def test_weights_of_ausn_run_on_an_array_of_another_format(weights):
    builder = network(50, weights, AUSN_GU(2, 2))
    check(PRESETS["tiny"], builder)


def check(config, builder):
    network, images = builder.network(), builder.images(4)
    with Session(EmulatorDevice(config), compile(network, config)) as session:
        np.testing.assert_array_equal(session.run(images), run(network, images))
