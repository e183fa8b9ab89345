"""A float graph as a PyTorch module that computes what its integer network will, and how it becomes that network.

The module runs the lowered graph: batch normalization is folded, residuals and ReLU are fused. A layer sums products of
levels, adds its integer bias, multiplies by the rounded gain of the requantizer and takes the nearest level. Each of
these roundings is straight through for gradients, so what is trained is what runs: float32 rounds only the product with
the gain, and in float64 nothing is left but integers. Training can normalize batches again, folded at every step.

Trained units have the gradient of LSQ (Esser et al., ICLR 2020) and are trained as logarithms, so that a step is a
share of them. Units by statistics follow the ESB paper, averaged as ``docs/numerics.md`` section 8 says. Trained levels
have the gradient of trained ternary quantization (Zhu et al., ICLR 2017), for any number of levels.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import Format
from sigbit_hw.spec.masks import MaskError, Policy, TermMask
from sigbit_sim.golden import network as golden
from sigbit_sim.golden.network import IntegerNetwork
from sigbit_sim.golden.numerics import project as golden_project
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from ..budgets import maskable
from ..graph import AveragePool, Concat, Conv, Graph, MaxPool, Node, Upsample
from ..model_reader import Model, read_model
from ..passes import keeps_levels, lower
from ..quantize import convolution, level_groups, other_layer, quantize
from ..scales import unit_from_statistic
from .straight_through import (
    activation_levels,
    channel_statistics,
    keep_parts,
    nearest_integer,
    project,
    straight_through,
)

__all__ = ["UNITS", "FloatNetwork", "QatNetwork", "TrainingError", "prepare_qat", "term_masks"]

#: How units are found: trained, or from statistics of every batch.
UNITS = ("trained", "statistics")

#: Share of the average that stays with every batch (numerics 8).
_MOMENTUM = 0.9

#: Variance of a channel that is added before division, as a share of the layer's.
_LEAST_VARIANCE = 1e-5


class TrainingError(SigbitError):
    """A model, an option or a file that cannot be trained with."""


class _Unit(nn.Module):
    """Trained units, float64: the first ones times a factor, which is a power of two where the format needs one."""

    first: Tensor

    def __init__(self, first, format: Format) -> None:
        super().__init__()
        self._octaves = format.ausn
        self.register_buffer("first", torch.tensor(first, dtype=torch.float64))
        self.logarithm = nn.Parameter(torch.zeros(self.first.shape))

    def forward(self) -> Tensor:
        logarithm = self.logarithm.double()
        if self._octaves:
            octaves = logarithm / math.log(2)
            return self.first * 2 ** straight_through(octaves, torch.floor(octaves + 0.5))
        return self.first * logarithm.exp()


class _Scaled(nn.Module):
    """A parameter over its size, so that one learning rate is the same share of large and of small ones.

    Without batch normalization the sizes of channels differ by orders of magnitude. Sizes are powers of two, by which
    floating point divides exactly.
    """

    size: Tensor

    def __init__(self, size: np.ndarray) -> None:
        super().__init__()
        size = np.where(size > 0, size, 1.0)
        self.register_buffer("size", torch.tensor(2.0 ** np.round(np.log2(size)), dtype=torch.float32))

    def forward(self, value: Tensor) -> Tensor:
        return value * self.size

    def right_inverse(self, value: Tensor) -> Tensor:
        return value / self.size


class _Normalization(nn.Module):
    """Batch normalization (Ioffe and Szegedy, ICML 2015) of what a layer sums, always folded into units and bias.

    Training folds the statistics of the batch, evaluation their running averages, so what is trained is what runs
    (folding as Jacob et al., CVPR 2018). Where sums are distributed as :meth:`begin` saw them it changes nothing.
    """

    first_mean: Tensor
    first_variance: Tensor
    average_mean: Tensor
    average_variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logarithm = nn.Parameter(torch.zeros(channels))
        for name, value in (("first_mean", 0), ("first_variance", 1), ("average_mean", 0), ("average_variance", 1)):
            self.register_buffer(name, torch.full((channels,), value, dtype=torch.float64))
        self.begins = self.frozen = False

    def forward(self, sums: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        """Factor of the units and what is added to the bias, float64, ``(channels,)``.

        Parameters
        ----------
        sums : tensor, ``(n, channels, height, width)``
            Of products of levels, without bias.
        gain : tensor, ``(channels,)`` or ``(1,)``
            What 1 of them stands for.
        """
        if not self.begins and (self.frozen or not self.training):
            return self.folded()
        mean, variance = (x.double() for x in channel_statistics(sums))
        mean, variance = mean * gain, variance * gain**2
        self._observe(mean, variance)
        return self._fold(mean, variance)

    def folded(self) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`, by the running averages."""
        return self._fold(self.average_mean, self.average_variance)

    def _fold(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        least = _LEAST_VARIANCE * self.first_variance.mean()
        factor = ((self.first_variance + least) / (variance + least)).sqrt() * self.logarithm.double().exp()
        return factor, self.first_mean - mean * factor

    @torch.no_grad()
    def _observe(self, mean: Tensor, variance: Tensor) -> None:
        if self.begins:
            self.first_mean.copy_(mean)
            self.first_variance.copy_(variance)
        share = 1.0 if self.begins else 1 - _MOMENTUM
        self.average_mean.lerp_(mean, share)
        self.average_variance.lerp_(variance, share)


class QuantizedLayer(nn.Module):
    """Float weights and bias of a convolution, and the levels and units that they stand for.

    ``weight`` and ``bias`` are trained over their sizes: the root mean square of the channel's weights, and what such
    weights make of inputs of a quarter of their largest value (our definition).

    Parameters
    ----------
    node : Conv
        Has the real weights.
    layer : golden.Convolution
        Has the format, the first units and the first bias.
    bias : float array, ``(out,)``
    largest : float
        Largest value of the input.
    shared : bool
        All channels have one unit.
    units : str
        One of :data:`UNITS`.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    frozen_units: Tensor

    def __init__(
        self, node: Conv, layer: golden.Convolution, bias: np.ndarray, largest: float, shared: bool, units: str
    ) -> None:
        super().__init__()
        self._format = layer.weight_format
        self._statistics = units == "statistics"
        # Where reconstruction chose another level than the nearest, that level; elsewhere the float weight itself.
        column = layer.weight_units[:, np.newaxis, np.newaxis, np.newaxis]
        nearest = golden_project(node.weight / column, self._format) == layer.weights
        weight = np.where(nearest, node.weight, layer.weights * column)
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))
        squares = np.square(weight).reshape(len(weight), -1)
        parametrize.register_parametrization(self, "weight", _Scaled(np.sqrt(squares.mean(1)).reshape(-1, 1, 1, 1)))
        parametrize.register_parametrization(self, "bias", _Scaled(np.sqrt(squares.sum(1).mean()) * largest / 4))
        first = layer.weight_units[:1] if shared else layer.weight_units
        if self._statistics:
            self.register_buffer("frozen_units", torch.tensor(first), persistent=True)
        else:
            self.unit = _Unit(first, self._format)
        if self._format.indexed:
            self.codebook = nn.Parameter(torch.tensor(self._format.codebook, dtype=torch.float32))
        self.frozen = False

    @property
    def format(self) -> Format:
        """The format, with the codebook as it is trained."""
        if not self._format.indexed:
            return self._format
        return replace(self._format, codebook=tuple(int(level) for level in self._levels().tolist()))

    @torch.no_grad()
    def _levels(self) -> Tensor:
        """Trained levels as different integers of the format's range, in increasing order."""
        levels = torch.floor(self.codebook.detach().double() + 0.5).sort().values
        low, high = self._format.level_range
        places = torch.arange(len(levels), dtype=torch.float64, device=levels.device)
        # Room for the levels below and above; then each at least one above the one before it.
        levels = levels.maximum(low + places).minimum(high - places.flip(0))
        return ((levels - places).cummax(0).values + places).minimum(high - places.flip(0))

    def units(self) -> Tensor:
        """float64, ``(out,)`` or ``(1,)``."""
        if not self._statistics:
            return self.unit()
        if self.training and not self.frozen:
            with torch.no_grad():
                squares = self.weight.double().square().flatten(1)
                squares = squares.mean(1) if len(self.frozen_units) > 1 else squares.mean().reshape(1)
                units = unit_from_statistic(squares.sqrt().cpu().numpy(), self._format)
                self.frozen_units.copy_(torch.as_tensor(units, device=self.frozen_units.device))
        return self.frozen_units.clone()

    def forward(self) -> tuple[Tensor, Tensor]:
        """float64 levels of the weights, and units."""
        units = self.units()
        column = units.reshape(-1, 1, 1, 1)
        weight = self.weight.double()
        format = self.format
        low, high = float(format.levels[0]), float(format.levels[-1])
        scaled = weight / column
        found = project(scaled.detach(), format)
        # To the unit the gradient of LSQ, to the weight that of the identity.
        gradient = (weight.detach() / column).clamp(low, high)
        to_weight = (weight - weight.detach()) / column.detach()
        if self._format.indexed:
            margin = (high - low) / (len(format.levels) - 1) / 2
            inside = (scaled.detach() >= low - margin) & (scaled.detach() <= high + margin)
            to_weight = to_weight * inside
            sums = torch.tensor(format.midpoints, dtype=torch.float64, device=found.device)
            index = torch.bucketize(scaled.detach(), sums / 2, right=True)
            levels = self.codebook.sort().values.double()
            to_weight = to_weight + (levels - levels.detach())[index]
        return straight_through(gradient + to_weight, found), units


class QuantizedTensor(nn.Module):
    """Unit of a tensor, or of several tensors between which levels move unchanged.

    Parameters
    ----------
    limit : float or None
        Clip of the values, above which the largest level must not lie.
    """

    average: Tensor

    def __init__(self, format: Format, unit: float, limit: float | None, units: str, alone: bool) -> None:
        super().__init__()
        self.format = format
        # What post-training quantization found is below the limit, and a power of two where it has to be.
        self._highest = math.inf if limit is None else max(unit, 0.0 if format.ausn else limit / format.magnitude_max)
        self._alone = alone
        self._statistics = units == "statistics"
        if self._statistics:
            self.register_buffer("average", torch.tensor(unit / float(unit_from_statistic(1.0, format))).double())
        else:
            self.unit = _Unit(unit, format)
        self.frozen = False

    @property
    def observes(self) -> bool:
        """Whether the unit depends on the values of the batch."""
        return self._statistics and self.training and not self.frozen

    def forward(self, values: Tensor | None = None) -> Tensor:
        """float64 unit; while training by statistics that of ``values``, if they are all that have it."""
        if not self._statistics:
            return self.unit().clamp(max=self._highest)
        statistic = self.average.clone()
        if values is not None and self.observes:
            values = values.detach().double()
            kept = values if self.format.signed else values[values > 0]
            if kept.numel():
                batch = kept.square().mean().sqrt()
                self.average.mul_(_MOMENTUM).add_((1 - _MOMENTUM) * batch)
                statistic = batch if self._alone else self.average.clone()
        return (statistic * float(unit_from_statistic(1.0, self.format))).clamp(max=self._highest)


class _Fixed(nn.Module):
    """Unit of the input."""

    unit: Tensor

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.register_buffer("unit", torch.tensor(unit, dtype=torch.float64))

    def forward(self, _values: Tensor | None = None) -> Tensor:
        return self.unit


def _shift(gains: Tensor, bits: int) -> Tensor:
    """Largest shift for which the rounded gain has at most so many bits."""
    shift = bits - torch.frexp(gains).exponent.double()
    return shift - (torch.floor(gains * 2**shift + 0.5) >= 2**bits).double()


def _constants(gain: Tensor, residual: Tensor | None = None, negative: Tensor | None = None) -> list[Tensor]:
    """Gains as the requantizer has them (numerics 6.5): of sums, then of a residual and of negative sums if given."""
    gains = [gain, *(x for x in (residual, negative) if x is not None)]
    bits = [16, *([24] if residual is not None else []), *([16] if negative is not None else [])]
    with torch.no_grad():
        shift = torch.full_like(gain, 47)
        for value, width in zip(gains, bits, strict=True):
            shift = torch.minimum(shift, torch.where(value > 0, _shift(value, width), shift))
        found = [torch.floor(value * 2**shift + 0.5) / 2**shift for value in gains]
    return [straight_through(value.broadcast_to(f.shape), f) for value, f in zip(gains, found, strict=True)]


class QatNetwork(nn.Module):
    """A lowered graph that computes with the levels of a quantized network; made by :func:`prepare_qat`.

    Called with images as the model takes them; returns the real outputs of the raw result, or of all levels, as the
    integer network gives them: a tensor, or a dictionary by name if there are several.

    Attributes
    ----------
    graph : Graph
        The lowered float graph, as it was before training.
    """

    def __init__(
        self,
        graph: Graph,
        network: IntegerNetwork,
        units: str = "trained",
        masks: Mapping[str, TermMask] | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.graph = graph
        self._network = network
        self._masks = self._masks_now = dict(masks or {})
        layers = {layer.name: layer for layer in network.layers}
        self._group = level_groups(graph)
        writers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            if not keeps_levels(node):
                writers.setdefault(self._group[node.output], []).append(node)
        convolutions: dict[str, nn.Module] = {}
        normalizations: dict[str, nn.Module] = {}
        tensors: dict[str, nn.Module] = {}
        self._layer_of: dict[str, str] = {}
        self._tensor_of: dict[str, str] = {}
        for own, nodes in {self._group[graph.input]: [], **writers}.items():
            tensor = network.tensors[own]
            if tensor.format is None:
                continue
            key = self._tensor_of[own] = f"tensor{len(tensors)}"
            if own == self._group[graph.input]:
                tensors[key] = _Fixed(tensor.unit)
                continue
            limits = [node.limit for node in nodes if isinstance(node, Conv) and node.limit is not None]
            limit = min(limits) if limits else None
            tensors[key] = QuantizedTensor(tensor.format, tensor.unit, limit, units, len(nodes) == 1)
        for node in graph.nodes:
            if not isinstance(node, Conv) or node.copy:
                continue
            layer = layers[node.name]
            key = self._layer_of[node.name] = f"layer{len(convolutions)}"
            source = network.tensors[node.input]
            assert source.format is not None
            bias = layer.bias * layer.weight_units * source.unit
            shared = network.tensors[node.output].format is None or len(set(layer.weight_units.tolist())) == 1
            convolutions[key] = QuantizedLayer(
                node, layer, bias, source.format.magnitude_max * source.unit, shared, units
            )
            if normalize and network.tensors[node.output].format is not None:
                normalizations[key] = _Normalization(len(layer.weights))
        self.layers = nn.ModuleDict(convolutions)
        self.tensors = nn.ModuleDict(tensors)
        self.normalizations = nn.ModuleDict(normalizations)

    @property
    def template(self) -> IntegerNetwork:
        """The quantized network that training starts from: formats and first units."""
        return self._network

    @torch.no_grad()
    def begin(self, images: Tensor) -> None:
        """Let batch normalization change nothing where values are distributed as with these images."""
        if not self.normalizations:
            return
        was = self.training
        self.eval()
        normalizations = [module for module in self.normalizations.values() if isinstance(module, _Normalization)]
        for module in normalizations:
            module.begins = True
        self(images)
        for module in normalizations:
            module.begins = False
        self.train(was)

    def freeze_units(self) -> None:
        """Keep all units, and averages of statistics, as they are from now on."""
        for name, parameter in self.named_parameters():
            if name.endswith("unit.logarithm"):
                parameter.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, QuantizedLayer | QuantizedTensor | _Normalization):
                module.frozen = True

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        source = self._network.tensors[self.graph.input]
        assert source.format is not None
        unit = self.tensors[self._tensor_of[self.graph.input]]()
        images = _maps(images)
        levels = {self.graph.input: project(images.double() / unit, source.format).to(images.dtype)}
        units: dict[str, Tensor] = {self._group[self.graph.input]: unit}
        last = self.graph.last_readers()
        for node in self.graph.nodes:
            read = [levels[name] for name in node.inputs]
            if isinstance(node, Conv) and not node.copy:
                levels[node.output] = self._convolution(node, units, *read)
            elif isinstance(node, AveragePool):
                levels[node.output] = self._average(node, units, *read)
            else:
                levels[node.output] = _moved(node, *read)
            for name in set(node.inputs):
                if last.get(name) is node:
                    del levels[name]
        outputs = {}
        for name in self.graph.outputs:
            own = units[self._group[name]].to(images.dtype)
            found = levels[name] * own
            outputs[name] = found[:, :, 0, 0] if found.shape[2:] == (1, 1) else found
        return outputs if len(outputs) > 1 else outputs[self.graph.output]

    def anneal(self, share: float) -> None:
        """Go a share of the way from all term parts to the budgets of the masks; 1 is where a module begins."""
        self._masks_now = {
            name: replace(mask, budget=math.ceil(2 * mask.group - share * (2 * mask.group - mask.budget)))
            for name, mask in self._masks.items()
        }

    def _layer(self, node: Conv) -> QuantizedLayer:
        return cast(QuantizedLayer, self.layers[self._layer_of[node.name]])

    def _normalization(self, node: Conv) -> _Normalization | None:
        key = self._layer_of[node.name]
        return cast(_Normalization, self.normalizations[key]) if key in self.normalizations else None

    def _tensor(self, name: str) -> QuantizedTensor:
        """The module of a tensor that a layer writes, by the name of its group."""
        return cast(QuantizedTensor, self.tensors[self._tensor_of[name]])

    def _convolution(self, node: Conv, units: dict[str, Tensor], x: Tensor, residual: Tensor | None = None) -> Tensor:
        quantized, normalization = self._layer(node), self._normalization(node)
        weights, weight_units = quantized()
        if node.name in self._masks_now:
            mask = self._masks_now[node.name]
            x = keep_parts(x, mask.group, mask.budget, mask.policy.name.lower())
        source = units[self._group[node.input]]
        bias = quantized.bias.double()
        top, left, bottom, right = node.pads
        padding: Any = (top, left)
        if (top, left) != (bottom, right):
            x, padding = functional.pad(x, (left, right, top, bottom)), 0
        options = node.stride, padding, node.dilation, node.groups
        if normalization is not None:
            sums = functional.conv2d(x, weights.to(x.dtype), None, *options)
            factor, offset = normalization(sums, weight_units * source)
            gain = weight_units * factor * source
            sums = sums + nearest_integer((bias + offset) / gain).to(x.dtype).reshape(-1, 1, 1)
        else:
            gain = weight_units * source
            sums = functional.conv2d(x, weights.to(x.dtype), nearest_integer(bias / gain).to(x.dtype), *options)
        own = self._group[node.output]
        if self._network.tensors[node.output].format is None:
            units[own] = gain
            return sums
        tensor = self._tensor(own)
        residual_unit = None if node.residual is None else units[self._group[node.residual]]
        values = None
        if tensor.observes:
            with torch.no_grad():
                values = sums * gain.to(x.dtype).reshape(-1, 1, 1)
                if residual is not None and residual_unit is not None:
                    values += residual * residual_unit.to(x.dtype)
        unit = units[own] = tensor(values)
        gain = gain.broadcast_to((sums.shape[1],)) / unit
        added = None if residual_unit is None else residual_unit / unit
        slope = None
        if node.slope is not None:
            slope = gain * torch.as_tensor(node.slope, dtype=torch.float64, device=gain.device)
        gains = [value.to(x.dtype).reshape(-1, 1, 1) for value in _constants(gain, added, slope)]
        scaled = sums * gains[0] if residual is None else torch.addcmul(sums * gains[0], residual, gains[1])
        if slope is not None:
            scaled = torch.where(sums < 0, sums * gains[1], scaled)
        if node.relu and tensor.format.signed:
            scaled = scaled.clamp(min=0)
        return activation_levels(scaled, tensor.format)

    def _average(self, node: AveragePool, units: dict[str, Tensor], x: Tensor) -> Tensor:
        top, left, bottom, right = node.pads
        x = functional.pad(x, (left, right, top, bottom))
        sums = functional.avg_pool2d(x, node.kernel, node.stride, divisor_override=1)
        own, source = self._group[node.output], units[self._group[node.input]]
        area = node.kernel[0] * node.kernel[1]
        tensor = self._tensor(own)
        unit = units[own] = tensor(sums.detach() * (source / area).to(x.dtype))
        (gain,) = _constants(source / (area * unit))
        scaled = sums * gain.to(x.dtype)
        return activation_levels(scaled.clamp(min=0) if node.relu else scaled, tensor.format)

    @torch.no_grad()
    def export(self) -> IntegerNetwork:
        """The integer network of what is trained; its logits are those of this module in evaluation.

        Raises
        ------
        :exc:`~sigbit_hw.spec.errors.SigbitError`
            If a unit has become so small or so large that no requantizer has its gain.
        """
        was = self.training
        self.eval()
        tensors = dict(self._network.tensors)
        layers: list[Any] = []
        for name, tensor in tensors.items():
            if tensor.format is not None:
                tensors[name] = replace(tensor, unit=float(self.tensors[self._tensor_of[self._group[name]]]()))
        for node, layer in zip(self.graph.nodes, self._network.layers, strict=True):
            if not isinstance(node, Conv):
                layers.append(other_layer(node, tensors[node.input], tensors[node.output]))
                continue
            if node.copy:
                assert isinstance(layer, golden.Convolution)
                format, weights, units, bias = layer.weight_format, layer.weights, layer.weight_units, node.bias
            else:
                quantized, normalization = self._layer(node), self._normalization(node)
                found, unit = quantized()
                format, weights = quantized.format, found.cpu().numpy().astype(np.int64)
                trained_bias = quantized.bias.double()
                if normalization is not None:
                    factor, offset = normalization.folded()
                    unit, trained_bias = unit * factor, trained_bias + offset
                units = np.broadcast_to(unit.cpu().numpy(), len(weights)).astype(np.float64)
                bias = trained_bias.cpu().numpy()
            made = convolution(node, format, weights, units, bias, tensors)
            layers.append(replace(made, mask=self._masks.get(node.name)))
            if tensors[node.output].format is None:
                raw = float(units[0]) * tensors[node.input].unit
                tensors[node.output] = replace(tensors[node.output], unit=raw)
        self.train(was)
        return IntegerNetwork(self.graph.name, tensors, tuple(layers), self.graph.input, self.graph.outputs)

    @torch.no_grad()
    def trained_graph(self) -> Graph:
        """The lowered float graph with the trained weights and biases."""
        nodes = []
        for node in self.graph.nodes:
            if isinstance(node, Conv) and not node.copy:
                quantized, normalization = self._layer(node), self._normalization(node)
                weight, bias = quantized.weight.double(), quantized.bias.double()
                if normalization is not None:
                    factor, offset = normalization.folded()
                    weight, bias = weight * factor.reshape(-1, 1, 1, 1), bias + offset
                node = replace(node, weight=weight.cpu().numpy(), bias=bias.cpu().numpy())
            nodes.append(node)
        return Graph(
            self.graph.name, self.graph.input, self.graph.outputs, self.graph.input_shape, tuple(nodes),
            self.graph.dropped,
        )  # fmt: skip


def _maps(images: Tensor) -> Tensor:
    """Images as maps; what reads them is faster with channels last."""
    maps = images[:, :, None, None] if images.dim() == 2 else images
    return maps.contiguous(memory_format=torch.channels_last)


def _moved(node: Node, x: Tensor, *others: Tensor) -> Tensor:
    """What a layer that keeps levels makes of them."""
    if isinstance(node, Conv):
        top, left, bottom, right = node.pads
        weight = torch.as_tensor(node.weight, dtype=x.dtype, device=x.device)
        return functional.conv2d(
            functional.pad(x, (left, right, top, bottom)), weight, None, node.stride, 0, node.dilation, node.groups
        )
    if isinstance(node, MaxPool):
        top, left, bottom, right = node.pads
        return functional.max_pool2d(
            functional.pad(x, (left, right, top, bottom), value=-math.inf), node.kernel, node.stride
        )
    if isinstance(node, Concat):
        return torch.cat((x, *others), 1)
    if isinstance(node, Upsample):
        return x.repeat_interleave(node.factors[0], 2).repeat_interleave(node.factors[1], 3)
    raise TypeError(f"A lowered graph has no {node.label}")


def prepare_qat(
    model: Model,
    calibration: np.ndarray,
    *,
    units: str = "trained",
    masks: Mapping[str, tuple] | None = None,
    normalize: bool = False,
    **options: Any,
) -> QatNetwork:
    """A model as a module for quantization-aware training; its first state is what post-training quantization finds.

    Parameters
    ----------
    model : Model
        The trained float model: a graph, an ONNX file or a PyTorch module (:mod:`~sigbit.model_reader`).
    calibration : float array, ``(n, *input_shape)``
    units : str
        ``"trained"``, or ``"statistics"`` of every batch: the rule of the ESB paper, for INT and ESB only.
    masks : mapping, optional
        Structured dynamic precision by layer: ``(group, budget)`` or ``(group, budget, policy)``; ``"*"`` are all
        layers that :func:`~sigbit.budgets.maskable` names.
    normalize : bool
        Train with batch normalization after every layer but those of raw results; for all formats but AUSN. It begins
        with the statistics of the first 128 calibration images.
    options
        Those of :func:`~sigbit.quantize.quantize`.

    Raises
    ------
    :exc:`~sigbit_hw.spec.errors.SigbitError`
        As :func:`~sigbit.quantize.quantize`, or if ``units`` or ``masks`` cannot be used.
    """
    if units not in UNITS:
        raise TrainingError(f"units must be {' or '.join(UNITS)}, not {units!r}")
    graph = lower(read_model(model, np.asarray(calibration)))
    if units == "statistics":
        options = {**options, "alpha_mode": "dda"}
    network = quantize(graph, calibration, **options)
    if normalize:
        fixed = [layer.name for layer in network.layers if hasattr(layer, "weights") and layer.weight_format.ausn]
        if fixed:
            raise TrainingError(
                f"Batch normalization is folded into units, but those of AUSN are powers of two; leave out normalize "
                f"or choose another format for the weights of {', '.join(fixed)}"
            )
    made = QatNetwork(graph, network, units, term_masks(network, masks or {}), normalize)
    made.begin(torch.as_tensor(calibration[:128], dtype=torch.float32))
    return made


def term_masks(network: IntegerNetwork, masks: Mapping[str, tuple]) -> dict[str, TermMask]:
    """Masks by layer, checked; everything wrong is reported at once."""
    layers = {layer.name: layer for layer in network.layers if isinstance(layer, golden.Convolution)}
    found: dict[str, TermMask] = {}
    problems = []
    for name, mask in masks.items():
        try:
            group, budget, *policy = mask
            own = TermMask(group, budget, *(Policy[each.upper()] for each in policy))
        except (MaskError, ValueError, TypeError, KeyError, AttributeError) as error:
            problems.append(f"{name!r}: a mask is (group, budget) or (group, budget, policy), not {mask!r}: {error}")
            continue
        if name == "*":
            found = {layer.name: own for layer in maskable(network, own.group)} | found
            continue
        if name not in layers:
            problems.append(f"{name!r}: no convolution has this name; they are {', '.join(layers)}")
            continue
        format = network.tensors[layers[name].input].format
        if format is None or not format.uniform or format.bits != 8:
            problems.append(f"{name!r}: masks need activations in uint:8 or int:8, but the layer reads {format}")
            continue
        found[name] = own
    if problems:
        raise TrainingError("Term masks cannot be used:\n  " + "\n  ".join(problems))
    return found


class FloatNetwork(nn.Module):
    """A lowered graph in float, with fixed weights: what a quantized one learns from."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        self._of = {}
        for index, node in enumerate(graph.nodes):
            if isinstance(node, Conv):
                self._of[node.name] = index
                for what in ("weight", "bias"):
                    self.register_buffer(f"{what}{index}", torch.tensor(getattr(node, what), dtype=torch.float32))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The first output."""
        tensors = {self._graph.input: _maps(images)}
        for node in self._graph.nodes:
            x, *others = (tensors[name] for name in node.inputs)
            if isinstance(node, Conv):
                weight, bias = (getattr(self, f"{what}{self._of[node.name]}") for what in ("weight", "bias"))
                top, left, bottom, right = node.pads
                x = functional.pad(x, (left, right, top, bottom))
                x = functional.conv2d(x, weight, bias, node.stride, 0, node.dilation, node.groups)
                x = x + others[0] if others else x
                if node.relu:
                    x = x.clamp(0, node.limit)
                if node.slope is not None:
                    slope = torch.as_tensor(node.slope, dtype=x.dtype, device=x.device).reshape(-1, 1, 1)
                    x = torch.where(x < 0, x * slope, x)
            elif isinstance(node, AveragePool):
                top, left, bottom, right = node.pads
                x = functional.avg_pool2d(functional.pad(x, (left, right, top, bottom)), node.kernel, node.stride)
                x = x.clamp(min=0) if node.relu else x
            else:
                x = _moved(node, x, *others)
            tensors[node.output] = x
        found = tensors[self._graph.output]
        return found[:, :, 0, 0] if found.shape[2:] == (1, 1) else found
