"""Every pass keeps the logits, and refuses what it cannot do exactly."""

from dataclasses import replace

import numpy as np
import pytest
from sigbit.float_model import channel_sums, run_float, window_means
from sigbit.graph import (
    Add,
    Affine,
    AveragePool,
    Concat,
    Conv,
    Graph,
    LeakyRelu,
    Linear,
    MaxPool,
    ModelError,
    Relu,
    Reshape,
    Upsample,
)
from sigbit.passes import PassError, lower, lower_linear, remove_dead_nodes

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


def grouped(inputs, outputs, groups):
    return conv(inputs // groups, outputs, groups=groups)


def copy(channels, before=0, after=0, **options):
    """Channel ``c`` is channel ``c - before`` of the input."""
    weight = np.eye(before + channels + after)[:, before : before + channels, None, None]
    return lambda **ends: Conv(weight=weight, bias=np.zeros(len(weight)), copy=True, **options, **ends)


def relu(**ends):
    return Relu(**ends)


def clip(**ends):
    return Relu(limit=0.7, **ends)


def leaky(*slope):
    return lambda **ends: LeakyRelu(slope=np.array(slope), **ends)


def add(residual):
    return lambda **ends: Add(residual=residual, **ends)


def concat(*others):
    return lambda **ends: Concat(others=others, **ends)


def upsample(**ends):
    return Upsample(factors=(2, 2), **ends)


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


def dag(*steps, shape=(3, 8, 8)):
    """Steps are ``(input, output, maker)``; the input is ``x``, the output that of the last step."""
    nodes = [make(name=f"n{i}", input=source, output=target) for i, (source, target, make) in enumerate(steps)]
    return Graph("dag", "x", steps[-1][1], shape, tuple(nodes))


def kinds(graph):
    return [
        type(node).__name__
        + "+sum" * (getattr(node, "residual", None) is not None)
        + "+relu" * getattr(node, "relu", False)
        + "+leaky" * (getattr(node, "slope", None) is not None)
        for node in graph.nodes
    ]


def same(before, after):
    images = RANDOM.normal(size=(3, *before.input_shape))
    expected = run_float(before, images, dtype=np.float64)
    found = run_float(after, images.reshape(3, *after.input_shape), dtype=np.float64)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-9, atol=1e-9)


LOWERED = {
    "conv, norm, leaky relu": ((conv(3, 4), affine(4), leaky(0.1), conv(4, 2)), ["Conv+leaky", "Conv"]),
    "one slope per channel": ((conv(3, 4), leaky(0.1, 0, 1, 1.5), conv(4, 2)), ["Conv+leaky", "Conv"]),
    "leaky relu of the input": ((leaky(0.1, 0.2, 0.3), conv(3, 2)), ["Conv+leaky", "Conv"]),
    "leaky relu before a norm": ((conv(3, 4), leaky(0.2), affine(4), conv(4, 2)), ["Conv+leaky", "Conv"]),
    "leaky relu twice": ((conv(3, 4), leaky(0.2), leaky(0.5, 0.1, 0, 1), conv(4, 2)), ["Conv+leaky", "Conv"]),
    "leaky relu behind a relu": ((conv(3, 4), relu, leaky(0.2), conv(4, 2)), ["Conv+relu", "Conv"]),
    "leaky relu before a clip": ((conv(3, 4), leaky(0.2), clip, conv(4, 2)), ["Conv+relu", "Conv"]),
    "leaky relu behind a max pool": ((conv(3, 4), max_pool, leaky(0.2), conv(4, 2)), ["Conv+leaky", "MaxPool", "Conv"]),
    "leaky relu behind an average": (
        (conv(3, 4), average_pool, leaky(0.2), conv(4, 2)),
        ["Conv", "AveragePool", "Conv+leaky", "Conv"],
    ),
    "leaky relu behind a copy": (
        (conv(3, 4), copy(4, stride=(2, 2)), leaky(0.2), conv(4, 2)),
        ["Conv", "Conv", "Conv+leaky", "Conv"],
    ),
    "leaky relu at the end": ((conv(3, 4), leaky(0.2)), ["Conv+leaky"]),
    "leaky relu of a flattened map": ((conv(3, 4), reshape(144), leaky(0.2), linear(144, 2)), ["Conv+leaky", "Conv"]),
    "leaky relu of a vector": (
        (conv(3, 4), reshape(144), linear(144, 3), leaky(0.2, 0.1, 0), linear(3, 2)),
        ["Conv", "Conv+leaky", "Conv"],
    ),
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
    "pads before an average": (
        (conv(3, 4), copy(4, pads=(1, 0, 1, 1)), average_pool, conv(4, 2)),
        ["Conv", "AveragePool", "Conv"],
    ),
    "pads before a maximum of nothing negative": (
        (conv(3, 4), relu, max_pool, copy(4, pads=(1, 0, 0, 1)), max_pool, conv(4, 2, kernel=2)),
        ["Conv+relu", "MaxPool", "MaxPool", "Conv"],
    ),
    "pads before a maximum": (
        (conv(3, 4), copy(4, pads=(1, 0, 1, 1)), max_pool, conv(4, 2)),
        ["Conv", "Conv", "MaxPool", "Conv"],
    ),
    "pads as wide as the window": (
        (conv(3, 4), relu, copy(4, pads=(2, 0, 0, 1)), max_pool, conv(4, 2)),
        ["Conv+relu", "Conv", "MaxPool", "Conv"],
    ),
    "scaling before pads and new channels": (
        (scaling(3), copy(3, before=1, after=2, pads=(1, 1, 1, 1)), conv(6, 4)),
        ["Conv", "Conv"],
    ),
    "scaling before pads": ((scaling(3), copy(3, pads=(1, 1, 1, 1)), conv(3, 4)), ["Conv"]),
    "shift before new channels": ((affine(3), copy(3, before=1, after=2), conv(6, 4)), ["Conv", "Conv"]),
    "shift before pads": ((affine(3), copy(3, pads=(1, 1, 1, 1)), conv(3, 4)), ["Conv", "Conv"]),
    "relu twice": ((conv(3, 4), relu, max_pool, relu, conv(4, 2)), ["Conv+relu", "MaxPool", "Conv"]),
    "relu of an average": ((conv(3, 4), average_pool, relu, conv(4, 2)), ["Conv", "AveragePool+relu", "Conv"]),
    "linear layers": ((linear(6, 5), relu, linear(5, 4)), ["Conv+relu", "Conv"]),
    "ends in an average": ((conv(3, 4), relu, average_pool), ["Conv+relu", "Conv"]),
    "ends in a padded average": ((conv(3, 4), padded_average_pool), ["Conv", "Conv"]),
    "ends in a maximum": ((conv(3, 4), max_pool), ["Conv", "MaxPool"]),
    "ends in a relu": ((conv(3, 4), relu), ["Conv+relu"]),
    "relu on the input": ((relu, conv(3, 4)), ["Conv+relu", "Conv"]),
    "norm and relu before a padded conv": (
        (affine(3), relu, conv(3, 4, pads=(1, 1, 1, 1))),
        ["Conv+relu", "Conv"],
    ),
    "shift before padding": ((affine(3), conv(3, 4, pads=(1, 1, 1, 1))), ["Conv", "Conv"]),
    "negative gain behind a max pool": (
        (conv(3, 4), max_pool, affine(4), conv(4, 2, pads=(1, 1, 1, 1))),
        ["Conv", "MaxPool", "Conv", "Conv"],
    ),
    "shift behind a padded average": (
        (conv(3, 4), padded_average_pool, affine(4), conv(4, 2, pads=(1, 1, 1, 1))),
        ["Conv", "AveragePool", "Conv", "Conv"],
    ),
    "norm behind relu as output": ((conv(3, 4), relu, affine(4)), ["Conv+relu", "Conv"]),
    "depthwise, norms, relu": (
        (affine(3), grouped(3, 6, 3), affine(6), relu, grouped(6, 4, 2), affine(4)),
        ["Conv+relu", "Conv"],
    ),
    "clipped average": ((conv(3, 4), average_pool, clip, conv(4, 2)), ["Conv", "AveragePool", "Conv+relu", "Conv"]),
    "clip twice behind a pool": ((conv(3, 4), max_pool, relu, clip, conv(4, 2)), ["Conv+relu", "MaxPool", "Conv"]),
    "pads before a conv": ((copy(3, pads=(1, 2, 0, 1)), conv(3, 4, pads=(0, 1, 1, 1))), ["Conv"]),
    "pads before a max pool": ((conv(3, 4), copy(4, pads=(1, 1, 0, 1)), max_pool), ["Conv", "Conv", "MaxPool"]),
    "copy as output": ((conv(3, 4), copy(4, stride=(2, 2))), ["Conv", "Conv"]),
}


@pytest.mark.parametrize("case", LOWERED)
def test_lowering_keeps_the_outputs_and_leaves_convolutions_and_pools(case):
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


SAME = {"pads": (1, 1, 1, 1)}
BLOCK = (("x", "a", conv(3, 4, **SAME)), ("a", "r", relu), ("r", "b", conv(4, 4, **SAME)), ("b", "c", affine(4)))


def summing(graph):
    """Names of the layers that take a sum."""
    return [node.name for node in graph.nodes if len(node.inputs) > 1]


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ([("c", "s", add("r")), ("s", "t", relu), ("t", "y", conv(4, 2))], ["n2"]),
        ([("r", "s", add("c")), ("s", "t", clip), ("t", "y", conv(4, 2))], ["n2"]),
        ([("x", "d", conv(3, 4, kernel=1)), ("d", "s", add("c")), ("s", "y", conv(4, 2))], ["n2"]),
        ([("x", "d", conv(3, 4, **SAME)), ("d", "e", relu), ("e", "s", add("c")), ("s", "y", conv(4, 2))], ["n2"]),
        ([("c", "e", relu), ("e", "s", add("r")), ("s", "y", conv(4, 2))], ["n5"]),
        ([("c", "s", add("c")), ("s", "y", conv(4, 2))], ["n4"]),
        ([("c", "s", add("r")), ("s", "t", add("c")), ("t", "y", conv(4, 2))], ["n4", "n5"]),
        ([("c", "s", add("r"))], ["n2"]),
        ([("r", "d", copy(4)), ("d", "s", add("c")), ("s", "y", conv(4, 2))], ["n2"]),
        ([("c", "e", relu), ("r", "d", copy(4)), ("d", "s", add("e")), ("s", "y", conv(4, 2))], ["n5"]),
    ],
    ids=["shortcut", "shortcut first, clipped", "longer way takes the sum", "shortcut made later", "relu on both",
         "a tensor with itself", "two sums", "as output", "shortcut that copies", "only a copy can take it"],
)  # fmt: skip
def test_a_sum_becomes_part_of_the_layer_on_the_longer_way_or_a_layer(tail, expected):
    graph = dag(*BLOCK, *tail)
    lowered = lower(graph)
    assert all(isinstance(node, Conv) for node in lowered.nodes)
    assert summing(lowered) == expected
    assert not any(node.copy for node in lowered.nodes if node.residual is not None)
    same(graph, lowered)
    assert kinds(lower(lowered)) == kinds(lowered)


def test_a_sum_of_vectors_is_lowered():
    graph = dag(("x", "a", linear(6, 5)), ("x", "b", linear(6, 5)), ("a", "s", add("b")), ("s", "r", relu),
                ("r", "y", linear(5, 2)), shape=(6,))  # fmt: skip
    assert kinds(lower(graph)) == ["Conv", "Conv+sum+relu", "Conv"]
    same(graph, lower(graph))


def test_a_sum_of_flattened_maps_is_lowered():
    graph = dag(("x", "a", conv(3, 4)), ("a", "u", reshape(144)), ("x", "b", conv(3, 4)), ("b", "v", reshape(144)),
                ("u", "s", add("v")), ("s", "r", relu), ("r", "y", linear(144, 2)))  # fmt: skip
    assert kinds(lower(graph)) == ["Conv", "Conv+sum+relu", "Conv"]
    same(graph, lower(graph))


def test_strided_slice_and_channel_pads_become_one_copy():
    graph = dag(*BLOCK, ("r", "d", copy(4, stride=(2, 2))), ("d", "e", copy(4, before=2, after=2)),
                ("c", "f", conv(4, 8, stride=(2, 2), **SAME)), ("f", "s", add("e")),
                ("s", "y", conv(8, 2)))  # fmt: skip
    lowered = lower(graph)
    (shortcut,) = [node for node in lowered.nodes if node.copy]
    assert shortcut.stride == (2, 2)
    np.testing.assert_array_equal(shortcut.weight[:, :, 0, 0], np.eye(8)[:, 2:6])
    assert summing(lowered) == ["n6"]
    same(graph, lowered)


@pytest.mark.parametrize(
    "first", [{}, {"stride": (3, 2)}, {"pads": (1, 0, 2, 1)}, {"stride": (2, 3), "pads": (1, 2, 0, 1)}]
)
@pytest.mark.parametrize(
    "second", [{"stride": (2, 1)}, {"pads": (0, 1, 1, 0)}, {"stride": (2, 2), "pads": (1, 1, 2, 0)}]
)
def test_copies_of_copies_are_exact(first, second):
    graph = dag(("x", "a", relu), ("a", "b", copy(3, after=1, **first)), ("b", "c", copy(4, before=1, **second)),
                ("c", "p", max_pool_of_one), ("p", "y", conv(5, 2, kernel=1)))  # fmt: skip
    lowered = lower(graph)
    assert [node.name for node in lowered.nodes if isinstance(node, Conv) and node.copy] == ["n2"]
    same(graph, lowered)


def max_pool_of_one(**ends):
    return MaxPool(kernel=(1, 1), stride=(1, 1), **ends)


def test_pads_read_by_several_convolutions_become_part_of_all():
    graph = dag(("x", "p", copy(3, pads=(1, 1, 1, 1))), ("p", "a", conv(3, 4)), ("p", "b", grouped(3, 6, 3)),
                ("b", "c", conv(6, 4, kernel=1)), ("c", "s", add("a")), ("s", "y", conv(4, 2)))  # fmt: skip
    lowered = lower(graph)
    assert not any(node.copy for node in lowered.nodes)
    assert [node.pads for node in lowered.nodes[:2]] == [(1, 1, 1, 1)] * 2
    same(graph, lowered)


def test_norms_on_both_sides_of_a_sum_fold_where_they_are_exact():
    graph = dag(*BLOCK, ("r", "d", affine(4)), ("d", "s", add("c")), ("s", "t", affine(4)), ("t", "y", conv(4, 2)))
    lowered = lower(graph)
    # The norm of the shortcut follows a ReLU, so it is a layer; the one behind the sum goes into the last convolution.
    assert kinds(lowered) == ["Conv+relu", "Conv", "Conv+sum", "Conv"]
    same(graph, lowered)


def test_a_block_with_norm_and_relu_first_is_lowered():
    graph = dag(("x", "a", conv(3, 4, **SAME)), ("a", "b", affine(4)), ("b", "c", relu), ("c", "d", conv(4, 4, **SAME)),
                ("d", "s", add("a")), ("s", "e", affine(4)), ("e", "f", relu), ("f", "g", conv(4, 4, **SAME)),
                ("g", "t", add("s")), ("t", "y", conv(4, 2)))  # fmt: skip
    lowered = lower(graph)
    assert kinds(lowered) == ["Conv", "Conv+relu", "Conv+sum", "Conv+relu", "Conv+sum", "Conv"]
    same(graph, lowered)


@pytest.mark.parametrize(("rectifier", "still"), [(relu, True), (clip, False)])
def test_a_copy_can_rectify_but_not_clip(rectifier, still):
    graph = chain(conv(3, 4), copy(4, stride=(2, 2)), rectifier, conv(4, 2))
    assert lower(graph).nodes[1].copy == still
    same(graph, lower(graph))


def test_the_lower_of_two_limits_remains():
    graph = chain(conv(3, 4), clip, lambda **ends: Relu(limit=0.3, **ends), clip, conv(4, 2))
    assert lower(graph).nodes[0].limit == 0.3
    same(graph, lower(graph))


def test_a_leaky_relu_behind_a_sum_is_a_layer_of_its_own():
    graph = dag(("x", "a", conv(3, 4)), ("a", "b", conv(4, 4, **SAME)), ("b", "s", add("a")),
                ("s", "l", leaky(0.1)), ("l", "y", conv(4, 2)))  # fmt: skip
    lowered = lower(graph)
    assert kinds(lowered) == ["Conv", "Conv+sum", "Conv+leaky", "Conv"]
    assert lowered.nodes[2].groups == 4
    same(graph, lowered)


def test_a_sum_with_a_leaky_operand_is_a_layer_of_its_own():
    graph = dag(("x", "a", conv(3, 4)), ("a", "b", leaky(0.1)), ("b", "c", conv(4, 4, **SAME)),
                ("c", "d", leaky(0.3)), ("d", "s", add("b")), ("s", "y", conv(4, 2)))  # fmt: skip
    lowered = lower(graph)
    assert kinds(lowered) == ["Conv+leaky", "Conv+leaky", "Conv+sum", "Conv"]
    same(graph, lowered)


REFUSED = {
    "slopes of single features of a map": (
        (conv(3, 4), reshape(144), leaky(*[0.1] * 144), linear(144, 2)),
        "LeakyRelu 'n2' acts on a flattened map",
    ),
    "output that is a flattened map": ((conv(3, 4), relu, reshape(144)), "flattened map"),
    "norm of a flattened map": (
        (conv(3, 4), relu, reshape(144), affine(144), relu, linear(144, 2)),
        "Cannot fold Affine 'n3', which acts on a flattened map",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_exact_is_refused(case):
    makers, message = REFUSED[case]
    with pytest.raises(ModelError, match=message):
        lower(chain(*makers))


def test_a_tensor_with_two_readers_is_not_rewritten():
    graph = dag(("x", "a", conv(3, 4)), ("a", "b", affine(4)), ("a", "c", relu), ("b", "s", add("c")),
                ("s", "y", conv(4, 2, **SAME)))  # fmt: skip
    lowered = lower(graph)
    assert kinds(lowered) == ["Conv", "Conv+relu", "Conv+sum", "Conv"]
    np.testing.assert_array_equal(lowered.nodes[0].weight, graph.nodes[0].weight)
    same(graph, lowered)


def test_a_sum_of_different_shapes_is_refused():
    with pytest.raises(ModelError, match=r"adds tensors of the shapes \(4, 6, 6\) and \(3, 8, 8\)"):
        dag(("x", "a", conv(3, 4)), ("a", "s", add("x")))


def test_a_pass_that_changes_the_logits_is_caught():
    def wrong(graph):
        first = graph.nodes[0]
        return replace(graph, nodes=(replace(first, bias=first.bias + 1e-5), *graph.nodes[1:]))

    graph = chain(conv(3, 4))
    with pytest.raises(PassError, match="Pass wrong changed output 't1' of 'chain' by"):
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


@pytest.mark.parametrize("groups", [1, 3])
def test_means_of_windows_give_the_means_of_a_convolution(groups):
    graph = chain(conv(3 // groups, 6, pads=(1, 0, 2, 1), stride=(2, 1), dilation=(1, 2), groups=groups))
    images = RANDOM.normal(size=(5, 3, 8, 8))
    (node,) = graph.nodes
    found = channel_sums(node, node.weight, window_means(node, images)) + node.bias
    np.testing.assert_allclose(found, run_float(graph, images, dtype=np.float64).mean(axis=(0, 2, 3)), rtol=1e-12)


def test_graph_refuses_nodes_out_of_order_and_written_twice():
    first, second = conv(3, 4)(name="a", input="x", output="y"), relu(name="b", input="y", output="z")
    with pytest.raises(ModelError, match="reads tensor 'y', which nothing before it writes"):
        Graph("g", "x", "z", (3, 8, 8), (second, first))
    with pytest.raises(ModelError, match="writes tensor 'y' a second time"):
        Graph("g", "x", "y", (3, 8, 8), (first, first))
    with pytest.raises(ModelError, match="No node writes the output"):
        Graph("g", "x", "nothing", (3, 8, 8), (first,))


JOINED = {
    "norm and relu behind a concatenation": (
        (("x", "a", conv(3, 4)), ("x", "b", conv(3, 5)), ("a", "c", concat("b")), ("c", "d", affine(9)),
         ("d", "e", relu), ("e", "y", conv(9, 2))),
        ["Conv+relu", "Conv+relu", "Concat", "Conv"],
    ),
    "a slope for each channel behind a concatenation": (
        (("x", "a", conv(3, 4)), ("x", "b", conv(3, 5)), ("a", "c", concat("b")), ("c", "d", leaky(*range(1, 10))),
         ("d", "y", conv(9, 2))),
        ["Conv+leaky", "Conv+leaky", "Concat", "Conv"],
    ),
    "norm behind a concatenation that others read, too": (
        (("x", "a", conv(3, 4)), ("x", "b", conv(3, 5)), ("a", "c", concat("b")), ("c", "d", affine(9)),
         ("c", "e", concat("d")), ("e", "y", conv(18, 2))),
        ["Conv", "Conv", "Concat", "Conv", "Concat", "Conv"],
    ),
    "relu behind a concatenation of one tensor twice": (
        (("x", "a", conv(3, 4)), ("a", "c", concat("a")), ("c", "d", relu), ("d", "y", conv(8, 2))),
        ["Conv", "Concat", "Conv+relu", "Conv"],
    ),
    "norm and relu behind upsampling": (
        (("x", "a", conv(3, 4)), ("a", "b", upsample), ("b", "c", affine(4)), ("c", "d", relu), ("d", "y", conv(4, 2))),
        ["Conv+relu", "Upsample", "Conv"],
    ),
    "nested concatenations, a norm at each": (
        (("x", "a", conv(3, 4)), ("x", "b", conv(3, 5)), ("x", "c", conv(3, 2)), ("a", "d", concat("b")),
         ("d", "e", affine(9)), ("e", "f", concat("c")), ("f", "g", affine(11)), ("g", "y", conv(11, 2))),
        ["Conv", "Conv", "Concat", "Conv", "Concat", "Conv"],
    ),
    "the input is joined": (
        (("x", "a", conv(3, 4, pads=(1, 1, 1, 1))), ("a", "c", concat("x")), ("c", "y", conv(7, 2))),
        ["Conv", "Conv", "Concat", "Conv"],
    ),
    "one clip among others": (
        (("x", "a", conv(3, 4)), ("a", "b", clip), ("x", "c", conv(3, 5)), ("c", "d", relu), ("b", "e", concat("d")),
         ("e", "y", conv(9, 2))),
        ["Conv+relu", "Conv+relu", "Conv", "Concat", "Conv"],
    ),
    "the same clip everywhere": (
        (("x", "a", conv(3, 4)), ("a", "b", clip), ("x", "c", conv(3, 5)), ("c", "d", clip), ("b", "e", concat("d")),
         ("e", "y", conv(9, 2))),
        ["Conv+relu", "Conv+relu", "Concat", "Conv"],
    ),
    "sum of concatenations": (
        (("x", "a", conv(3, 4)), ("x", "b", conv(3, 4)), ("a", "c", concat("b")), ("b", "d", concat("a")),
         ("c", "e", add("d")), ("e", "y", conv(8, 2))),
        ["Conv", "Conv", "Concat", "Concat", "Conv+sum", "Conv"],
    ),
    "vectors": (
        (("x", "a", reshape(192)), ("x", "b", conv(3, 4, kernel=8)), ("b", "c", reshape(4)), ("c", "d", concat("a")),
         ("d", "y", linear(196, 3))),
        ["Conv", "Conv", "Conv", "Concat", "Conv"],
    ),
    "vectors of maps of one size": (
        (("x", "a", reshape(192)), ("x", "b", conv(3, 4, pads=(1, 1, 1, 1))), ("b", "c", reshape(256)),
         ("c", "d", concat("a")), ("d", "y", linear(448, 3))),
        ["Conv", "Conv", "Concat", "Conv"],
    ),
    "ends in a concatenation": ((("x", "a", conv(3, 4)), ("a", "y", concat("a"))), ["Conv", "Concat"]),
}  # fmt: skip


@pytest.mark.parametrize("case", JOINED)
def test_lowering_keeps_the_outputs_of_models_that_join_and_enlarge(case):
    steps, expected = JOINED[case]
    graph = dag(*steps)
    lowered = lower(graph)
    assert sorted(kinds(lowered)) == sorted(expected)
    same(graph, lowered)
    assert kinds(lower(lowered)) == kinds(lowered)


def test_all_outputs_are_checked_and_keep_their_names_and_their_order():
    steps = (("x", "a", conv(3, 4)), ("a", "b", relu), ("b", "c", max_pool), ("b", "d", conv(4, 2)), ("d", "e", relu))
    graph = replace(dag(*steps), outputs=("e", "c", "b"))
    lowered = lower(graph)
    assert lowered.outputs == ("e", "c", "b")
    assert kinds(lowered) == ["Conv+relu", "MaxPool", "Conv+relu"]
    images = RANDOM.normal(size=(2, 3, 8, 8))
    expected, found = (run_float(model, images, dtype=np.float64) for model in (graph, lowered))
    for name in graph.outputs:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-9)

    def wrong(graph):
        nodes = [replace(node, kernel=(1, 2)) if isinstance(node, MaxPool) else node for node in graph.nodes]
        return replace(graph, nodes=tuple(nodes))

    with pytest.raises(PassError, match="changed output 'c'"):
        lower(graph, passes=(wrong,))


def test_outputs_that_cannot_be_told_apart_are_refused():
    nodes = dag(("x", "a", conv(3, 4, kernel=8)), ("a", "b", reshape(4))).nodes
    with pytest.raises(ModelError, match="outputs a, b are the same values"):
        lower(Graph("twice", "x", ("a", "b"), (3, 8, 8), nodes))
    with pytest.raises(ModelError, match="Output 'x' of 'input' is the model's input"):
        lower(Graph("input", "x", ("b", "x"), (3, 8, 8), nodes))
    with pytest.raises(ModelError, match="at least one output, and each only once"):
        Graph("twice", "x", ("a", "a"), (3, 8, 8), nodes)


def test_joining_a_large_flattened_map_with_a_vector_is_refused():
    graph = dag(("x", "a", reshape(3 * 64 * 64)), ("a", "b", linear(3 * 64 * 64, 2)), ("a", "c", concat("b")),
                ("c", "y", linear(3 * 64 * 64 + 2, 2)), shape=(3, 64, 64))  # fmt: skip
    with pytest.raises(ModelError, match="joins the flattened 3x64x64 map 'x' with values of another size"):
        lower(graph)
