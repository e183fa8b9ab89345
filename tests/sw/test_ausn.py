"""AUSN weights and activations on arrays of other formats, golden model against emulator."""

from dataclasses import replace

import numpy as np
import pytest
from networks import Builder
from sigbit.compiler import CompileError, compile
from sigbit.device import EmulatorDevice
from sigbit.graph import Add, AveragePool, Conv, Graph, LeakyRelu, Relu
from sigbit.quantize import input_levels, quantize
from sigbit.session import Session
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import AUSN_A, AUSN_G, AUSN_GU, INT, UINT
from sigbit_sim.golden.network import Convolution, run


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


def small_model(seed=70, pool=(3, 3), slope=None, residual=True):
    """Two convolutions, the second with a residual, a mean over an odd area, and a classifier."""
    rng = np.random.default_rng(seed)

    def conv(name, source, target, shape, **options):
        weight = rng.laplace(size=shape) / np.sqrt(np.prod(shape[1:]))
        bias = rng.standard_normal(shape[0]) / 8
        return Conv(name=name, input=source, output=target, weight=weight, bias=bias, **options)

    pads = {"pads": (1, 1, 1, 1)}
    nodes = [
        conv("first", "input", "a", (8, 3, 3, 3), **pads),
        Relu(name="relu1", input="a", output="b"),
        conv("second", "b", "c", (8, 8, 3, 3), **pads),
    ]
    nodes.append(
        Add(name="add", input="c", output="d", residual="b") if residual else conv("third", "c", "d", (8, 8, 1, 1))
    )
    nodes.append(
        Relu(name="relu2", input="d", output="e")
        if slope is None
        else LeakyRelu(name="leaky", input="d", output="e", slope=np.full(1, slope))
    )
    nodes.append(AveragePool(name="mean", input="e", output="f", kernel=pool, stride=pool))
    nodes.append(conv("last", "f", "out", (5, 8, 2, 2)))
    return Graph(
        name="net", input="input", outputs=("out",), input_shape=(3, 2 * pool[0], 2 * pool[1]), nodes=tuple(nodes)
    )


def images(model, count=24):
    return np.random.default_rng(71).random((count, *model.input_shape), dtype=np.float32)


SHIFT = replace(PRESETS["tiny"], weight_format=AUSN_G(2, 1), activation_format=AUSN_GU(2, 2), requantizer="shift")


@pytest.mark.parametrize(("weights", "activations"), [("auto:4", "ausn-gu:2,2"), ("ausn-a:2,1", "ausn-gu:2,2")])
@pytest.mark.parametrize("pool", [(2, 2), (3, 3)])
def test_a_program_for_shifts_gives_the_integers_of_multipliers(weights, activations, pool):
    model = small_model(pool=pool)
    network = quantize(model, images(model), weights=weights, activations=activations, edge_bits=8)
    levels = input_levels(network, images(model, 5))
    expected = run(network, levels)
    for config in (SHIFT, replace(SHIFT, requantizer="multiplier")):
        program = compile(network, config)
        with Session(EmulatorDevice(config), program) as session:
            np.testing.assert_array_equal(session.run(levels), expected)


def test_all_units_are_powers_of_two_but_for_the_factor_of_a_mean():
    model = small_model()
    network = quantize(model, images(model), weights="auto:4", activations="auto:4", edge_bits=8)
    mantissas = {name: np.frexp(tensor.unit)[0] for name, tensor in network.tensors.items()}
    assert [mantissas[layer.output] for layer in network.layers] == [0.5, 0.5, 8 / 9, 8 / 9]
    for layer in network.layers:
        if hasattr(layer, "weight_units"):
            assert (np.frexp(layer.weight_units)[0] == 0.5).all()


def test_every_layer_and_operand_has_a_split_of_its_own():
    model = small_model()
    # What the layer reads reaches far in few places; what the other one reads does not.
    node = model.nodes[2]
    heavy = np.where(np.arange(node.weight.size).reshape(node.weight.shape) % 50, 0.01, 1.0) * np.sign(node.weight)
    nodes = tuple(replace(n, weight=heavy) if n.name == "second" else n for n in model.nodes)
    network = quantize(replace(model, nodes=nodes), images(model), weights="auto:4", activations="auto:5")
    splits = {layer.name: str(layer.weight_format) for layer in network.layers if hasattr(layer, "weight_format")}
    assert splits["second"] == "ausn-g:3,0"
    assert splits["first"] == "ausn-g:2,1"
    assert network.tensors[network.layers[0].output].format.bits == 5


@pytest.mark.parametrize(
    ("options", "model", "message"),
    [
        ({"weights": "int:4", "activations": "uint:4"}, small_model(), "gains that are no powers of two"),
        (
            {"weights": "auto:4", "activations": "ausn-gu:2,2"},
            small_model(slope=0.25, residual=False),
            "scales negative sums by another factor",
        ),
    ],
)
def test_what_shifts_cannot_do_is_refused(options, model, message):
    network = quantize(model, images(model), **options)
    with pytest.raises(CompileError, match=message):
        compile(network, replace(SHIFT, activation_format=UINT(4)) if "int:4" in options.values() else SHIFT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "auto:9"}, "No format ausn-g has 9 stored bits"),
        ({"weights": "auto4"}, "Unknown format 'auto4'; expected auto, auto-a, auto:B or auto-a:B"),
        ({"weights": "auto:4", "adaptation": "best"}, "adaptation must be search, fixed, incremental, not 'best'"),
    ],
)
def test_bad_options_are_named(options, message):
    model = small_model()
    with pytest.raises(SigbitError, match=message):
        quantize(model, images(model), **options)


@pytest.mark.parametrize(("weights", "activations"), [("auto:4", "auto:4"), ("int:4", "uint:4")])
def test_units_that_are_powers_of_two_stay_so_when_weights_are_reconstructed(weights, activations):
    model = small_model()
    network = quantize(
        model, images(model), weights=weights, activations=activations, alpha_mode="window", rounding="reconstruct"
    )
    for layer in network.layers:
        if isinstance(layer, Convolution):
            assert (np.frexp(layer.weight_units)[0] == 0.5).all(), layer.name
