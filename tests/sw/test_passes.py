"""Every pass keeps the logits, and refuses what it cannot do exactly."""

from dataclasses import replace

import numpy as np
import pytest
from sigbit.float_model import run_float, window_means
from sigbit.graph import Affine, AveragePool, Conv, Graph, Linear, MaxPool, ModelError, Relu, Reshape
from sigbit.passes import PassError, fold_affine, fuse_relu, lower, lower_linear, remove_dead_nodes

RANDOM = np.random.default_rng(5)


def conv(inputs, outputs, kernel=3, **options):
    weight = RANDOM.normal(size=(outputs, inputs, kernel, kernel))
    return lambda **ends: Conv(weight=weight, bias=RANDOM.normal(size=outputs), **options, **ends)


def linear(inputs, outputs):
    weight = RANDOM.normal(size=(outputs, inputs))
    return lambda **ends: Linear(weight=weight, bias=RANDOM.normal(size=outputs), **ends)


def affine(channels, positive=False):
    gain = np.abs(RANDOM.normal(size=channels)) + 0.1
    gain[0] *= 1 if positive else -1
    return lambda **ends: Affine(gain=gain, shift=RANDOM.normal(size=channels), **ends)


def scaling(channels):
    return lambda **ends: Affine(gain=RANDOM.normal(size=channels), shift=np.zeros(channels), **ends)


def relu(**ends):
    return Relu(**ends)


def max_pool(**ends):
    return MaxPool(kernel=(2, 2), stride=(2, 2), **ends)


def average_pool(**ends):
    return AveragePool(kernel=(2, 2), stride=(2, 2), **ends)


def padded_average_pool(**ends):
    return AveragePool(kernel=(2, 2), stride=(2, 2), pads=(0, 0, 1, 1), **ends)


def reshape(*shape):
    return lambda **ends: Reshape(shape=shape, **ends)


def chain(*makers, shape=(3, 8, 8)):
    nodes = [make(name=f"n{i}", input=f"t{i}", output=f"t{i + 1}") for i, make in enumerate(makers)]
    return Graph("chain", "t0", f"t{len(nodes)}", shape, tuple(nodes))


def kinds(graph):
    return [type(node).__name__ + "+relu" * getattr(node, "relu", False) for node in graph.nodes]


def same(before, after):
    images = RANDOM.normal(size=(3, *before.input_shape))
    expected = run_float(before, images, dtype=np.float64)
    found = run_float(after, images.reshape(3, *after.input_shape), dtype=np.float64)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-9, atol=1e-9)


LOWERED = {
    "conv, norm, relu": ((conv(3, 4, pads=(1, 1, 1, 1)), affine(4), relu, conv(4, 2)), ["Conv+relu", "Conv"]),
    "norm after norm": ((conv(3, 4), affine(4), affine(4)), ["Conv"]),
    "norm before an unpadded conv": ((affine(3), conv(3, 4)), ["Conv"]),
    "two norms before an unpadded conv": ((affine(3), affine(3), conv(3, 4)), ["Conv"]),
    "scaling before a padded conv": ((scaling(3), conv(3, 4, pads=(1, 1, 1, 1))), ["Conv"]),
    "norm behind relu and pool, unpadded": (
        (conv(3, 4), relu, max_pool, affine(4), conv(4, 2)),
        ["Conv+relu", "MaxPool", "Conv"],
    ),
    "positive norm behind a max pool": (
        (conv(3, 4), max_pool, affine(4, positive=True), relu, conv(4, 2, pads=(1, 1, 1, 1))),
        ["Conv+relu", "MaxPool", "Conv"],
    ),
    "norm behind an average pool": (
        (conv(3, 4), average_pool, affine(4), conv(4, 2, pads=(1, 1, 1, 1))),
        ["Conv", "AveragePool", "Conv"],
    ),
    "norm before flattening": (
        (conv(3, 4), relu, affine(4), reshape(144), linear(144, 5)),
        ["Conv+relu", "Conv"],
    ),
    "norm of a flattened pixel": (
        (conv(3, 5, kernel=8), reshape(5), affine(5), relu, linear(5, 2)),
        ["Conv+relu", "Conv"],
    ),
    "relu behind pool and flattening": (
        (conv(3, 4), max_pool, reshape(36), relu, linear(36, 5)),
        ["Conv+relu", "MaxPool", "Conv"],
    ),
    "relu twice": ((conv(3, 4), relu, max_pool, relu, conv(4, 2)), ["Conv+relu", "MaxPool", "Conv"]),
    "relu of an average": ((conv(3, 4), average_pool, relu, conv(4, 2)), ["Conv", "AveragePool+relu", "Conv"]),
    "linear layers": ((linear(6, 5), relu, linear(5, 4)), ["Conv+relu", "Conv"]),
    "ends in an average": ((conv(3, 4), relu, average_pool), ["Conv+relu", "Conv"]),
    "ends in a padded average": ((conv(3, 4), padded_average_pool), ["Conv", "Conv"]),
    "ends in a maximum": ((conv(3, 4), max_pool), ["Conv", "MaxPool", "Conv"]),
    "ends in a relu": ((conv(3, 4), relu), ["Conv+relu", "Conv"]),
}


@pytest.mark.parametrize("case", LOWERED)
def test_lowering_keeps_the_logits_and_leaves_convolutions_and_pools(case):
    makers, expected = LOWERED[case]
    graph = chain(*makers, shape=(6,) if case == "linear layers" else (3, 8, 8))
    lowered = lower(graph)
    assert kinds(lowered) == expected
    assert all(len(shape) == 3 for shape in lowered.shapes.values())
    same(graph, lowered)
    assert kinds(lower(lowered)) == expected


def test_linear_layer_becomes_a_kernel_as_large_as_its_map_in_chw_order():
    graph = chain(reshape(2 * 3 * 4), linear(24, 5), shape=(2, 3, 4))
    (layer,) = lower_linear(graph).nodes
    assert layer.weight.shape == (5, 2, 3, 4)
    assert layer.weight[1, 1, 2, 3] == graph.nodes[1].weight[1, 23]


def test_nodes_that_do_not_reach_the_output_are_removed():
    graph = chain(conv(3, 4), relu)
    dead = Relu(name="dead", input="t1", output="nowhere")
    assert kinds(remove_dead_nodes(replace(graph, nodes=(*graph.nodes, dead)))) == ["Conv", "Relu"]


REFUSED = {
    "shift before padding": ((affine(3), conv(3, 4, pads=(1, 1, 1, 1))), "Cannot fold Affine 'n0' exactly"),
    "negative gain behind a max pool": (
        (conv(3, 4), max_pool, affine(4), conv(4, 2, pads=(1, 1, 1, 1))),
        "Cannot fold Affine 'n2' exactly",
    ),
    "shift behind a padded average": (
        (conv(3, 4), padded_average_pool, affine(4), conv(4, 2, pads=(1, 1, 1, 1))),
        "Cannot fold Affine 'n2' exactly",
    ),
    "norm behind relu as output": ((conv(3, 4), relu, affine(4)), "Cannot fold Affine 'n2' exactly"),
    "relu on the input": ((relu, conv(3, 4)), "Relu 'n0' acts on the model's input"),
    "output that is a flattened map": ((conv(3, 4), relu, reshape(144)), "flattened map"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_exact_is_refused(case):
    makers, message = REFUSED[case]
    with pytest.raises(ModelError, match=message):
        lower(chain(*makers))


def test_a_tensor_with_two_readers_is_not_rewritten():
    head = chain(conv(3, 4))
    norm = affine(4)(name="norm", input="t1", output="t2")
    both = replace(head, nodes=(*head.nodes, norm, Relu(name="other", input="t1", output="t3")), output="t2")
    with pytest.raises(ModelError, match="Cannot fold"):
        fold_affine(both)
    rectified = replace(head, nodes=(*head.nodes, Relu(name="r", input="t1", output="t2"), norm_reader()), output="t2")
    with pytest.raises(ModelError, match="other nodes read its input"):
        fuse_relu(rectified)


def norm_reader():
    return MaxPool(name="pool", input="t1", output="t4", kernel=(2, 2), stride=(2, 2))


def test_a_pass_that_changes_the_logits_is_caught():
    def wrong(graph):
        first = graph.nodes[0]
        return replace(graph, nodes=(replace(first, bias=first.bias + 1e-5), *graph.nodes[1:]))

    graph = chain(conv(3, 4))
    with pytest.raises(PassError, match="Pass wrong changed the logits of 'chain'"):
        lower(graph, passes=[wrong])
    lower(graph, passes=[wrong], check=False)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 3, 8, 8)), "at least one image"),
        (np.zeros((2, 3, 8, 9)), r"shape \(N, 3, 8, 8\), not \(2, 3, 8, 9\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), "takes float images, not uint8"),
        (np.full((2, 3, 8, 8), np.nan), "must be finite, but 384 values are not"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, message):
    with pytest.raises(ModelError, match=message):
        run_float(chain(conv(3, 4)), images)


def test_all_tensors_are_returned_when_asked():
    graph = chain(conv(3, 4), relu, max_pool)
    tensors = run_float(graph, np.ones((2, 3, 8, 8), np.float32), all_tensors=True)
    assert {name: value.shape[1:] for name, value in tensors.items()} == graph.shapes
    assert all(value.dtype == np.float32 for value in tensors.values())


def test_convolution_in_small_batches_is_the_same(monkeypatch):
    graph = chain(conv(3, 4))
    images = RANDOM.normal(size=(7, 3, 8, 8))
    expected = run_float(graph, images)
    monkeypatch.setattr("sigbit.float_model._GATHER_VALUES", 36 * 27 * 3)
    np.testing.assert_array_equal(run_float(graph, images), expected)


def test_means_of_windows_give_the_means_of_a_convolution():
    graph = chain(conv(3, 4, pads=(1, 0, 2, 1), stride=(2, 1), dilation=(1, 2)))
    images = RANDOM.normal(size=(5, 3, 8, 8))
    (node,) = graph.nodes
    found = np.tensordot(node.weight, window_means(node, images), 3) + node.bias
    np.testing.assert_allclose(found, run_float(graph, images, dtype=np.float64).mean(axis=(0, 2, 3)), rtol=1e-12)


def test_graph_refuses_nodes_out_of_order_and_written_twice():
    first, second = conv(3, 4)(name="a", input="x", output="y"), relu(name="b", input="y", output="z")
    with pytest.raises(ModelError, match="reads tensor 'y', which nothing before it writes"):
        Graph("g", "x", "z", (3, 8, 8), (second, first))
    with pytest.raises(ModelError, match="writes tensor 'y' a second time"):
        Graph("g", "x", "y", (3, 8, 8), (first, first))
    with pytest.raises(ModelError, match="No node writes the output"):
        Graph("g", "x", "nothing", (3, 8, 8), (first,))
