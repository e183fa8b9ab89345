"""Random integer networks for tests of the compiler, the emulator and the RTL."""

from dataclasses import replace

import numpy as np
from sigbit.graph import Concat as JoinedNode
from sigbit.graph import Conv, Graph
from sigbit.graph import MaxPool as MaxPoolNode
from sigbit.graph import Upsample as UpsampleNode
from sigbit_hw.spec.formats import INT, NUUQ, UINT
from sigbit_hw.spec.masks import Policy, TermMask
from sigbit_hw.spec.parts import part_shift_bits
from sigbit_sim.golden.network import (
    AveragePool,
    Concat,
    Convolution,
    IntegerNetwork,
    MaxPool,
    Tensor,
    Upsample,
    sources,
)


class Builder:
    """Random integer networks, layer by layer, with constants that use the whole range of every output format."""

    def __init__(self, seed, channels, height, width, format):
        self.rng = np.random.default_rng(seed)
        self.tensors = {"input": Tensor("input", channels, height, width, format, 1.0)}
        self.layers = []
        self.last = "input"

    def _add(self, make, channels, kernel, stride, pads, dilation, format):
        source = self.tensors[self.last]
        name = f"layer{len(self.layers)}"
        size = [
            (length + before + after - (k - 1) * d - 1) // s + 1
            for length, before, after, k, d, s in zip(
                (source.height, source.width), pads[:2], pads[2:], kernel, dilation, stride, strict=True
            )
        ]
        self.layers.append(make(name, source.name, f"{name}_out"))
        self.last = f"{name}_out"
        self.tensors[self.last] = Tensor(self.last, channels, *size, format, 1.0)
        return self

    def conv(
        self,
        channels,
        kernel,
        weights,
        output,
        stride=(1, 1),
        dilation=(1, 1),
        pads=(0, 0, 0, 0),
        relu=False,
        groups=1,
        residual=None,
        leaky=False,
    ):
        source = self.tensors[self.last]
        levels = np.array(weights.levels)
        w = self.rng.choice(levels, (channels, source.channels // groups, *kernel))
        w[self.rng.random(w.shape) < 0.2] = 0
        deviation = np.sqrt(w[0].size * np.mean(levels**2) * np.mean(np.array(source.format.levels) ** 2))
        bias = self.rng.integers(-int(deviation) - 1, int(deviation) + 2, channels)
        multiplier = shift = np.zeros(channels, dtype=np.int64)
        residual_multiplier = None
        if residual is not None:
            # The same weight for both operands, in whichever constant the range of the other one leaves.
            scale = output.magnitude_max / self.tensors[residual].format.magnitude_max / 2
            multiplier, shift = _constants(output.magnitude_max / deviation / 2)
            while round(scale * 2**shift) >= 1 << 24:
                multiplier, shift = multiplier // 2, shift - 1
            residual_multiplier = self.rng.integers(0, round(scale * 2**shift) + 1, channels)
            multiplier = np.maximum(multiplier - self.rng.integers(0, multiplier // 2 + 1, channels), 1)
            shift = np.full(channels, shift)
        elif output is not None:
            multiplier, shift = _constants(output.magnitude_max / deviation / 2)
            multiplier = multiplier - self.rng.integers(0, multiplier // 2, channels)
            shift = np.full(channels, shift)

        # Slopes from 0 to a little above 1.
        leaking = np.minimum(multiplier * self.rng.integers(0, 300, channels) >> 8, 65535) if leaky else None

        def make(name, source, target):
            return Convolution(
                name,
                source,
                target,
                w,
                weights,
                np.ones(channels),
                bias,
                multiplier,
                shift,
                stride,
                dilation,
                pads,
                relu,
                residual,
                residual_multiplier,
                groups,
                leaking,
            )

        return self._add(make, channels, kernel, stride, pads, dilation, output)

    def select(self, first, channels, weights, stride=(1, 1)):
        """Levels unchanged: every ``stride``-th pixel, the source's channels from output channel ``first`` on."""
        source = self.tensors[self.last]
        w = np.eye(channels, source.channels, -first, dtype=np.int64)[:, :, np.newaxis, np.newaxis]
        zeros, ones = np.zeros(channels, dtype=np.int64), np.ones(channels, dtype=np.int64)
        return self._add(
            lambda name, a, b: Convolution(name, a, b, w, weights, np.ones(channels), zeros, ones, zeros, stride),
            channels, (1, 1), stride, (0, 0, 0, 0), (1, 1), source.format,
        )  # fmt: skip

    def max_pool(self, kernel, stride, pads=(0, 0, 0, 0)):
        source = self.tensors[self.last]
        return self._add(
            lambda name, a, b: MaxPool(name, a, b, kernel, stride, pads),
            source.channels, kernel, stride, pads, (1, 1), source.format,
        )  # fmt: skip

    def average_pool(self, kernel, stride, output, pads=(0, 0, 0, 0)):
        source = self.tensors[self.last]
        scale = output.magnitude_max / source.format.magnitude_max / (kernel[0] * kernel[1])
        multiplier, shift = _constants(scale)
        return self._add(
            lambda name, a, b: AveragePool(name, a, b, kernel, stride, multiplier, shift, pads),
            source.channels, kernel, stride, pads, (1, 1), output,
        )  # fmt: skip

    def concat(self, *names):
        """The channels of some tensors; the next layer reads them."""
        name = f"layer{len(self.layers)}"
        self.last = f"{name}_out"
        self.layers.append(Concat(name, names[0], self.last, names[1:]))
        channels = sum(self.tensors[other].channels for other in names)
        self.tensors[self.last] = replace(self.tensors[names[0]], name=self.last, channels=channels)
        return self

    def upsample(self, factors=(2, 2)):
        source = self.tensors[self.last]
        name = f"layer{len(self.layers)}"
        self.layers.append(Upsample(name, source.name, f"{name}_out", factors))
        self.last = f"{name}_out"
        self.tensors[self.last] = replace(
            source, name=self.last, height=source.height * factors[0], width=source.width * factors[1]
        )
        return self

    def network(self, *outputs):
        return IntegerNetwork("random", self.tensors, tuple(self.layers), "input", outputs or self.last)

    def images(self, count):
        source = self.tensors["input"]
        return self.rng.choice(np.array(source.format.levels), (count, source.channels, source.height, source.width))


def _constants(scale):
    for shift in range(47, -1, -1):
        if (multiplier := int(scale * 2**shift + 0.5)) <= 65535:
            return multiplier, shift
    raise AssertionError(scale)


def random_network(seed, weights, activations):
    """Convolutions of all kinds between 8-bit edges, and pools; small enough for every configuration."""
    rng = np.random.default_rng(seed)

    def pair(low, high):
        return tuple(int(x) for x in rng.integers(low, high + 1, 2))

    def pads(limit):
        return tuple(int(x) for x in rng.integers(0, limit + 1, 4))

    edge = [UINT(8), INT(8)][seed % 2]
    builder = Builder(seed, int(rng.integers(1, 5)), 11, 9, edge)
    builder.conv(int(rng.integers(3, 14)), pair(1, 3), INT(8), activations, pair(1, 2), pads=pads(2))
    if seed % 3 == 0:
        builder.max_pool(pair(2, 3), pair(1, 2), pads(1))
    builder.conv(
        int(rng.integers(5, 20)), pair(1, 3), weights, activations, dilation=pair(1, 2), pads=(2, 2, 2, 2),
        relu=bool(seed & 4),
    )  # fmt: skip
    if seed % 3 == 1:
        builder.average_pool(pair(1, 3), pair(1, 2), activations, pads(1))
    if seed % 4 == 2:
        builder.conv(7, (1, 2), weights, [UINT(8), INT(8)][seed // 4 % 2], relu=bool(seed & 8))
        builder.average_pool((2, 1), (1, 2), activations)
    shape = builder.tensors[builder.last]
    builder.conv(int(rng.integers(2, 12)), (shape.height, shape.width), INT(8), None)
    return builder


def random_dag(seed, weights, activations):
    """Tensors with several readers: residuals in all formats that can be added, groups, selections and branches."""
    rng = np.random.default_rng(seed)
    stored = [activations, UINT(8), INT(8)]
    builder = Builder(seed, int(rng.integers(1, 7)), 7, 6, stored[seed % 3])

    def choose(items):
        return items[int(rng.integers(len(items)))]

    def same():
        """Earlier tensors of the shape of the last one, itself included."""
        shape = _shape(builder.tensors[builder.last])
        return [name for name, tensor in builder.tensors.items() if _shape(tensor) == shape]

    channels = builder.tensors["input"].channels if seed % 4 == 0 else choose([4, 6, 9, 10, 12, 15, 18, 20])
    builder.conv(channels, (3, 3), INT(8), choose(stored), pads=(1, 1, 1, 1))
    for step in range(4):
        source = builder.tensors[builder.last]
        count = source.channels
        kind = (seed + step) % 4
        if kind == 0:
            builder.conv(count, (1, 3), weights, choose(stored), pads=(0, 1, 0, 1), residual=choose(same()))
        elif kind == 1:
            groups = choose([g for g in range(2, count) if count % g == 0] or [count])
            builder.conv(
                count, (3, 2), weights, choose(stored), pads=(1, 0, 1, 1), groups=groups, relu=True,
                residual=choose([None, *same()]),
            )  # fmt: skip
        elif kind == 2:
            builder.conv(count * int(rng.integers(1, 3)), (1, 1), choose([weights, INT(8)]), activations, groups=count)
        else:
            first = int(rng.integers(0, 9))
            builder.select(first, first + count + int(rng.integers(0, 9)), weights, choose([(1, 1), (2, 1)]))
        builder.last = choose([builder.last, choose(same())])
    # One addition on its own, of the two newest tensors of a shape.
    operands = same()
    builder.last = operands[-1]
    count = builder.tensors[builder.last].channels
    builder.conv(count, (1, 1), weights, choose(stored), groups=count, residual=operands[max(-2, -len(operands))])
    shape = builder.tensors[builder.last]
    return builder.conv(3, (shape.height, shape.width), INT(8), None)


def mixed_network(seed, weights, activations):
    """Another format in every layer, 2 to 8 bits, leaky where it is signed; sums and maxima of such tensors."""
    rng = np.random.default_rng(seed)
    step = part_shift_bits(activations)

    def choose(items):
        return items[int(rng.integers(len(items)))]

    def stored(low=2, high=8):
        return choose([activations, UINT(int(rng.integers(low, high + 1))), INT(int(rng.integers(low, high + 1)))])

    def weight_format():
        return choose([weights, INT(8), INT(int(rng.integers(2, 8)))])

    builder = Builder(seed, int(rng.integers(1, 5)), 8, 7, stored())
    for _ in range(3):
        format = stored()
        count = int(rng.integers(3, 14))
        kernel = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
        builder.conv(count, kernel, weight_format(), format, pads=(1, 1, 1, 1), leaky=format.signed)
    first, kernel = builder.last, (3, 3)
    builder.conv(count, kernel, weight_format(), stored(), pads=(1, 1, 1, 1), relu=bool(seed & 1), residual=first)
    builder.conv(count, (1, 1), weights, stored(), groups=count, residual=first)
    if step > 1:
        format = stored(2, step)
        builder.conv(count, (2, 1), weight_format(), format, leaky=format.signed).max_pool((2, 2), (2, 1), (1, 0, 0, 1))
    builder.average_pool((2, 2), (1, 1), stored())
    shape = builder.tensors[builder.last]
    return builder.conv(3, (shape.height, shape.width), weight_format(), choose([None, stored()]))


def random_structure(seed, weights, activations):
    """Concatenations of whatever there is, nested and repeated, sums, pools and upsampling, and several outputs.

    Returns the builder and the names of the outputs.
    """
    rng = np.random.default_rng(seed)
    # All tensors have one format, so that any may be joined; only the native one can be pooled.
    stored = [activations, activations, UINT(8), INT(8)][seed % 4]
    builder = Builder(seed, int(rng.integers(1, 7)), 4, 5, stored)

    def choose(items):
        return items[int(rng.integers(len(items)))]

    def like(*keys):
        """Earlier tensors that agree with the last one, which comes first."""
        last = builder.tensors[builder.last]
        found = [n for n, t in builder.tensors.items() if all(getattr(t, key) == getattr(last, key) for key in keys)]
        return [builder.last, *(name for name in found if name != builder.last)]

    outputs = []
    for _ in range(9):
        count = builder.tensors[builder.last].channels
        kind = choose(["conv", "conv", "sum", "concat", "concat", "concat", "pool", "upsample", "average", "depthwise"])
        area = builder.tensors[builder.last].height * builder.tensors[builder.last].width
        if kind == "concat" and count < 40:
            names = like("height", "width")
            builder.concat(*(choose(names) for _ in range(int(rng.integers(1, 4)))), builder.last)
        elif kind == "pool" and stored == activations:
            builder.max_pool(*choose([((3, 3), (1, 1), (1, 1, 1, 1)), ((2, 2), (2, 2), (0, 0, 1, 1))]))
        elif kind == "upsample" and area < 60:
            builder.upsample(choose([(2, 2), (1, 3)]))
        elif kind == "sum" or kind == "depthwise":
            groups = count if kind == "depthwise" else 1
            residual = (
                choose([None, *like("channels", "height", "width")])
                if groups > 1
                else choose(like("channels", "height", "width"))
            )
            builder.conv(count, (3, 3), weights, stored, pads=(1, 1, 1, 1), groups=groups, residual=residual)
        elif kind == "average":
            builder.average_pool((3, 3), (1, 1), stored, (1, 1, 1, 1))
        else:
            builder.conv(int(rng.integers(2, 20)), (1, 3), weights, stored, pads=(0, 1, 0, 1))
        if rng.random() < 0.2:
            outputs.append(builder.last)
        if rng.random() < 0.3:
            builder.last = choose(like("height", "width"))
    shape = builder.tensors[builder.last]
    builder.conv(3, (shape.height, shape.width), weights, None)
    return builder, (*outputs, builder.last)


def codebook_network(seed, activations):
    """Layers whose weights have 2, 3, 5, 8 and 16 levels of 2 to 8 bits, some with a codebook for every channel."""
    rng = np.random.default_rng(seed)
    builder = Builder(seed, 3, 6, 5, UINT(8))
    cases = [(3, 2, False), (16, 8, False), (5, 5, True), (2, 4, True), (8, 5, False), (4, 5, False), (16, 6, True)]
    for index, (count, bits, per_channel) in enumerate(cases[seed % 2 :]):
        last = index == len(cases[seed % 2 :]) - 1
        shape = builder.tensors[builder.last]
        channels = int(rng.integers(3, 12))
        kernel, pads = ((shape.height, shape.width), (0, 0, 0, 0)) if last else ((2, 3), (1, 1, 0, 1))
        builder.conv(channels, kernel, INT(bits), None if last else activations, pads=pads)
        form = NUUQ(count, bits)
        low, high = form.level_range
        books = np.array([np.sort(rng.choice(high - low + 1, count, replace=False)) + low for _ in range(channels)])
        if not per_channel:
            books[:] = books[0]
            form = NUUQ(count, bits, books[0].tolist())
        layer = builder.layers[-1]
        indices = rng.integers(0, count, layer.weights.shape)
        weights = np.take_along_axis(books, indices.reshape(channels, -1), 1).reshape(indices.shape)
        codebooks = books if per_channel else None
        builder.layers[-1] = replace(layer, weights=weights, weight_format=form, codebooks=codebooks)
    return builder


def _shape(tensor):
    return tensor.channels, tensor.height, tensor.width


def with_masks(network, group, seed):
    """A network whose convolutions of 8-bit levels keep random numbers of parts, by policies of the hardware."""
    rng = np.random.default_rng(seed)
    layers, apart = [], set()  # tensors whose groups of channels do not lie in groups of lanes
    for layer in network.layers:
        names = [name for name in sources(layer) if network.tensors[name].channels % group]
        if apart & set(sources(layer)) or (isinstance(layer, Concat) and names):
            apart |= set() if isinstance(layer, Convolution | AveragePool) else {layer.output}
        elif isinstance(layer, Convolution) and network.tensors[layer.input].format in (UINT(8), INT(8)):
            mask = TermMask(group, int(rng.integers(1, 2 * group + 1)), Policy(int(rng.integers(2))))
            if layer.groups == 1 or layer.weights.shape[1] % group == 0:
                layer = replace(layer, mask=mask)
        layers.append(layer)
    return replace(network, layers=tuple(layers))


def roomy(config, weights, activations, **changes):
    """The configuration for the formats, with accumulators for any small network."""
    config = replace(config, weight_format=weights, activation_format=activations, max_reduction=1, **changes)
    return replace(config, max_reduction=(1 << 30) // (config.product_magnitude_max + 1))


def _float_layers(seed):
    """Makers of float convolutions ``(name, source, inputs, outputs)``, with and without ReLU."""
    rng = np.random.default_rng(seed)

    def conv(name, source, inputs, outputs, kernel=3, relu=True, stride=1):
        weight = rng.normal(size=(outputs, inputs, kernel, kernel)) * (2 / inputs) ** 0.5 / kernel
        pads = ((kernel - 1) // 2,) * 4
        return Conv(name=name, input=source, output=name, weight=weight, bias=rng.normal(size=outputs) / 10, relu=relu,
                    stride=(stride, stride), pads=pads)  # fmt: skip

    return conv


def small_unet():
    """Two levels down and up again, joined with what was there before; a class for every pixel."""
    conv = _float_layers(1)
    nodes = (
        conv("e1", "x", 2, 6),
        MaxPoolNode(name="d1", input="e1", output="d1", kernel=(2, 2), stride=(2, 2)),
        conv("e2", "d1", 6, 10),
        MaxPoolNode(name="d2", input="e2", output="d2", kernel=(2, 2), stride=(2, 2)),
        conv("middle", "d2", 10, 13),
        UpsampleNode(name="u2", input="middle", output="u2", factors=(2, 2)),
        JoinedNode(name="c2", input="u2", output="c2", others=("e2",)),
        conv("f2", "c2", 23, 7),
        UpsampleNode(name="u1", input="f2", output="u1", factors=(2, 2)),
        JoinedNode(name="c1", input="e1", output="c1", others=("u1",)),
        conv("f1", "c1", 13, 6),
        conv("classes", "f1", 6, 3, kernel=1, relu=False),
    )
    return Graph("unet", "x", "classes", (2, 12, 8), nodes)


def small_detector():
    """Strided layers, a pool of pools, two heads at two scales, the finer one fed by the coarser one."""
    conv = _float_layers(2)
    pool = {"kernel": (3, 3), "stride": (1, 1), "pads": (1, 1, 1, 1)}
    nodes = (
        conv("a", "x", 3, 6, stride=2),
        conv("b", "a", 6, 9, stride=2),
        conv("c", "b", 9, 8, stride=2),
        MaxPoolNode(name="p1", input="c", output="p1", **pool),
        MaxPoolNode(name="p2", input="p1", output="p2", **pool),
        JoinedNode(name="pools", input="c", output="pools", others=("p1", "p2")),
        conv("d", "pools", 24, 11, kernel=1),
        conv("coarse", "d", 11, 5, kernel=1, relu=False),
        conv("e", "d", 11, 5, kernel=1),
        UpsampleNode(name="grown", input="e", output="grown", factors=(2, 2)),
        JoinedNode(name="route", input="grown", output="route", others=("b",)),
        conv("f", "route", 14, 7),
        conv("fine", "f", 7, 5, kernel=1, relu=False),
    )
    return Graph("detector", "x", ("coarse", "fine"), (3, 24, 16), nodes)
