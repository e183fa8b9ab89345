"""Networks with term masks through the compiler: emulator and cycle model against the golden model."""

from dataclasses import replace

import numpy as np
import pytest
from networks import Builder, mixed_network, random_dag, random_network, roomy, with_masks
from sigbit.compiler import CompileError, compile
from sigbit.device import EmulatorDevice
from sigbit.session import Session
from sigbit_hw.spec.config import PRESETS, ConfigError
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT
from sigbit_hw.spec.masks import Policy, TermMask
from sigbit_hw.spec.registers import Register
from sigbit_sim.golden.network import run

TINY = roomy(PRESETS["tiny"], INT(8), UINT(8), cell="masked", feature_depth=8192, weight_depth=8192)
DENSE = roomy(
    TINY, INT(8), UINT(8), rows=3, columns=24, weight_columns=3 - 1, planes=2, post_lanes=8 * 3 // 2 * 2 // 3,
    token_lanes=2, weight_depth=256, parameter_depth=4, strip_depth=8,
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
