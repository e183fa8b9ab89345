"""One accelerator for codebooks of all sizes: packed weights and levels by comparisons, in Verilog as in the model."""

from functools import cache

import numpy as np
import pytest
from networks import Builder, codebook_network, roomy
from rtl.test_networks import check_cycles
from sigbit.compiler import compile
from sigbit.device import RtlDevice, open_device
from sigbit.session import Session
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import ESB, ESBU, INT, NUUQ, NUUQU, UINT
from sigbit_hw.spec.packets import Kind
from sigbit_sim import cycles
from sigbit_sim.golden.network import run

#: Weights do not fit, so that packed ones come with every image.
CONFIG = roomy(
    PRESETS["tiny"], ESB(4, 2), ESBU(4, 2), packing="radix", threshold_count=6, weight_columns=2, weight_depth=128
)
SMALL, MIDDLE, SIGNED = (
    NUUQU(4, 5, (0, 3, 9, 31)),
    NUUQU(7, 6, (0, 1, 5, 11, 20, 33, 60)),
    NUUQ(5, 4, (-7, -3, 0, 2, 7)),
)


def activation_network(seed):
    """Results in codebooks, plain, added, averaged, leaky and cut off at zero, of weights in codebooks."""
    builder = Builder(seed, 3, 6, 5, UINT(8))
    builder.conv(7, (3, 3), ESB(4, 2), SMALL, pads=(1, 1, 1, 1))
    builder.conv(7, (1, 1), ESB(4, 2), MIDDLE, residual=builder.last)
    builder.conv(5, (2, 2), INT(8), SIGNED)
    builder.conv(6, (2, 2), NUUQ(3, 2, (-1, 0, 1)), SMALL, relu=True)
    builder.average_pool((2, 1), (1, 1), MIDDLE)
    builder.conv(6, (1, 1), ESB(4, 2), SIGNED, leaky=True)
    shape = builder.tensors[builder.last]
    return builder.conv(4, (shape.height, shape.width), ESB(4, 2), None)


@cache
def device():
    return RtlDevice(CONFIG, timeout_cycles=1_000_000)


NETWORKS = [
    lambda: codebook_network(0, ESBU(4, 2)),
    lambda: codebook_network(1, ESBU(4, 2)),
    lambda: activation_network(0),
]


@pytest.mark.parametrize("make", NETWORKS, ids=["weights", "other weights", "activations"])
def test_codebooks_equal_the_golden_model_on_the_emulator(make):
    builder = make()
    network, images = builder.network(), builder.images(2)
    with Session(open_device("emulator", CONFIG), compile(network, CONFIG)) as session:
        np.testing.assert_array_equal(session.run(images), run(network, images))


@pytest.mark.parametrize("make", NETWORKS, ids=["weights", "other weights", "activations"])
def test_codebooks_equal_the_golden_model_in_rtl(make):
    builder = make()
    network, images = builder.network(), builder.images(2)
    program = compile(network, CONFIG)
    if make is not NETWORKS[-1]:
        assert any(packet.kind == Kind.PACKED for packet in program.image[0])
    model = device().model
    with Session(device(), program) as session:
        model.mark(cycles.marks(program, len(images)))
        np.testing.assert_array_equal(session.run(images), run(network, images))
    check_cycles(program, len(images), model.snapshots())
