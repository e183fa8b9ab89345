"""Integer networks: frozen descriptions in levels, and their exact execution in int64.

An :class:`IntegerNetwork` *is* the quantized model; its execution here defines what is correct.
"""

import json
import os
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import INT, UINT, Format
from sigbit_hw.spec.masks import TermMask

from .numerics import (
    ACCUMULATOR_LIMIT,
    MULTIPLIER_MAX,
    RESIDUAL_MULTIPLIER_MAX,
    SHIFT_MAX,
    level_table,
    requantize,
)
from .sdp import masked_levels

__all__ = [
    "AveragePool",
    "Concat",
    "Convolution",
    "IntegerNetwork",
    "MaxPool",
    "NetworkError",
    "Tensor",
    "Upsample",
    "run",
    "run_layer",
    "sources",
]

_FILE_FORMAT = "sigbit integer network"
_FILE_VERSION = 2
#: Elements of the largest temporary array while running; bounds memory at some 100 MB.
_BATCH_ELEMENTS = 1 << 23
#: Elements of the arrays of one step, few enough to stay in a cache: for products and for what is done to results.
_PRODUCT_ELEMENTS = 1 << 21
_RESULT_ELEMENTS = 1 << 16


class NetworkError(SigbitError):
    """An integer network that is inconsistent, a file that holds none, or an input that does not fit it."""


@dataclass(frozen=True)
class Tensor:
    """A feature map: ``channels x height x width`` levels of ``format``, real value = ``unit`` * level.

    ``format`` is None for raw 32-bit integers (logits).
    """

    name: str
    channels: int
    height: int
    width: int
    format: Format | None
    unit: float


@dataclass(frozen=True, eq=False)
class Convolution:
    """``acc = conv(levels, weights)``, then ``requantize(acc + bias)``, with a second tensor added if there is one.

    A fully connected layer has a kernel as large as its map.

    Attributes
    ----------
    weights : int64 array, ``(out, in / groups, kh, kw)``
        Levels of ``weight_format``, or of their channel's codebook.
    codebooks : int64 array, ``(out, N)``, optional
        Levels of every output channel where ``weight_format`` is a NUUQ format without a codebook of its own.
    weight_units : float64 array, ``(out,)``
    stride, dilation : (int, int)
        Rows, columns.
    pads : (int, int, int, int)
        Rows of zeros on top, columns on the left, bottom, right.
    bias : int64 array, ``(out,)``
        In units of weight unit times input unit; no XOR constant.
    multiplier, shift : int64 array, ``(out,)``
        ``M0`` and ``sh`` of numerics 6.1; unused (zeros) if the output is raw.
    residual : str, optional
        A tensor of the output's shape whose levels are added before the only rounding. An addition on its own is a 1x1
        convolution with one channel per group and weights of 1.
    residual_multiplier : int64 array, ``(out,)``, optional
        ``M1`` of numerics 6.1; given if and only if there is a residual.
    groups : int
        Output channel ``o`` reads the input channels of group ``o // (out / groups)`` only.
    relu : bool
        Negative results become 0 (implied by unsigned output formats).
    negative_multiplier : int64 array, ``(out,)``, optional
        ``N0`` of numerics 6.1, instead of ``M0`` where ``acc + bias`` is negative (leaky ReLU). Only for signed output
        formats, and neither with a ReLU nor with a residual, which is added behind that decision.
    mask : :class:`~sigbit_hw.spec.masks.TermMask`, optional
        Which nibbles of the 8-bit input levels are multiplied (``sdp.md``); everything if there is none.
    """

    name: str
    input: str
    output: str
    weights: np.ndarray
    weight_format: Format
    weight_units: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    stride: tuple = (1, 1)
    dilation: tuple = (1, 1)
    pads: tuple = (0, 0, 0, 0)
    relu: bool = False
    residual: str | None = None
    residual_multiplier: np.ndarray | None = None
    groups: int = 1
    negative_multiplier: np.ndarray | None = None
    codebooks: np.ndarray | None = None
    mask: TermMask | None = None


@dataclass(frozen=True)
class MaxPool:
    """Maximum over the window positions inside the map; the output has the input's format and unit."""

    name: str
    input: str
    output: str
    kernel: tuple
    stride: tuple
    pads: tuple = (0, 0, 0, 0)


@dataclass(frozen=True)
class AveragePool:
    """Sum over the full window (padding counts as 0), then ``requantize`` with one ``multiplier`` and ``shift``."""

    name: str
    input: str
    output: str
    kernel: tuple
    stride: tuple
    multiplier: int
    shift: int
    pads: tuple = (0, 0, 0, 0)
    relu: bool = False


@dataclass(frozen=True)
class Concat:
    """The channels of ``input`` and ``others``, one after the other; all have one format and one unit."""

    name: str
    input: str
    output: str
    others: tuple


@dataclass(frozen=True)
class Upsample:
    """Every pixel ``factors[0]`` times in its column and ``factors[1]`` times in its row; format and unit stay."""

    name: str
    input: str
    output: str
    factors: tuple


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """Layers in execution order over named tensors; one input, one or more outputs.

    ``outputs`` is a tuple of different names; one name stands for itself alone.

    Raises
    ------
    :exc:`NetworkError`
        If shapes, formats, constants or the order of layers are inconsistent, or an accumulator could leave 32 bits.
    """

    name: str
    tensors: dict = field(repr=False)
    layers: tuple = field(repr=False)
    input: str = "input"
    outputs: tuple = ("output",)

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        outputs = (self.outputs,) if isinstance(self.outputs, str) else tuple(self.outputs)
        object.__setattr__(self, "outputs", outputs)
        if not outputs or len(set(outputs)) < len(outputs):
            raise NetworkError(f"A network must have at least one output, and each only once, not {outputs!r}")
        for name, tensor in self.tensors.items():
            _check_tensor(name, tensor)
        for role, name in (("input", self.input), *(("output", name) for name in outputs)):
            if name not in self.tensors:
                raise NetworkError(f"Network {role} {name!r} is not one of its tensors: {', '.join(self.tensors)}")
        if self.tensors[self.input].format is None:
            raise NetworkError(f"Network input {self.input!r} must have a format; raw integers can only be an output")
        known, names = {self.input}, set()
        for layer in self.layers:
            if type(layer) not in _CHECKS:
                kinds = ", ".join(kind.__name__ for kind in _CHECKS)
                raise NetworkError(f"A layer is one of {kinds}, not {type(layer).__name__}")
            if layer.name in names:
                raise NetworkError(f"Layer name {layer.name!r} is used twice")
            names.add(layer.name)
            if isinstance(layer, Concat) and not isinstance(layer.others, tuple):
                raise NetworkError(f"Layer {layer.name}: others must be a tuple of tensors, not {layer.others!r}")
            for name in (*sources(layer), layer.output):
                if name not in self.tensors:
                    raise NetworkError(f"Layer {layer.name} uses tensor {name!r}, which the network does not describe")
            for name in sources(layer):
                if name not in known:
                    raise NetworkError(f"Layer {layer.name} reads {name!r} before any layer has written it")
            if layer.output in known:
                raise NetworkError(f"Layer {layer.name} writes {layer.output!r}, which exists already")
            known.add(layer.output)
            _CHECKS[type(layer)](layer, self.tensors[layer.output], *(self.tensors[name] for name in sources(layer)))
        if missing := sorted(set(self.tensors) - known):
            raise NetworkError(f"No layer writes the tensors {', '.join(missing)}")

    @property
    def output(self):
        """Name of the first output."""
        return self.outputs[0]

    def save(self, path):
        """Write one ``.npz`` file: a JSON description and the arrays, no pickles. All or nothing.

        Raises
        ------
        :exc:`NetworkError`
            If the file cannot be written.
        """
        arrays: dict = {}
        layers = []
        for index, layer in enumerate(self.layers):
            entry = {"kind": type(layer).__name__}
            for key, value in vars(layer).items():
                if isinstance(value, np.ndarray):
                    # Levels have at most 13 bits with their sign; everything else keeps its type.
                    arrays[f"{index}.{key}"] = value.astype(np.int16) if key == "weights" else value
                else:
                    entry[key] = str(value) if isinstance(value, Format | TermMask) else value
            layers.append(entry)
        description = {
            "file": _FILE_FORMAT,
            "version": _FILE_VERSION,
            "name": self.name,
            "input": self.input,
            "outputs": self.outputs,
            "tensors": [
                {**vars(tensor), "format": None if tensor.format is None else str(tensor.format)}
                for tensor in self.tensors.values()
            ],
            "layers": layers,
        }
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            try:
                with temporary.open("wb") as file:
                    np.savez_compressed(file, description=np.array(json.dumps(description)), **arrays)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise NetworkError(f"Cannot write the network to {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path):
        """Read a file of :meth:`save`.

        Raises
        ------
        :exc:`NetworkError`
            If the file cannot be read, is not such a file, or describes an inconsistent network.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                stored = dict(archive)
            description = json.loads(str(stored.pop("description")))
            if description["file"] != _FILE_FORMAT:
                raise KeyError("file")
            version = description["version"]
        except FileNotFoundError as error:
            raise NetworkError(f"Integer network {path} does not exist") from error
        except OSError as error:
            raise NetworkError(f"Cannot read the integer network {path}: {error.strerror or error}") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise NetworkError(
                f"{path} is not an integer network; expected the .npz file that IntegerNetwork.save writes"
            ) from error
        if version != _FILE_VERSION:
            raise NetworkError(f"{path} has version {version}, expected {_FILE_VERSION}; quantize the model again")
        try:
            return cls._from_description(description, stored)
        except NetworkError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NetworkError(f"{path} is a damaged integer network: {error!r}; quantize the model again") from error

    @classmethod
    def _from_description(cls, description, arrays):
        tensors = {}
        for entry in description["tensors"]:
            format = None if entry["format"] is None else Format.parse(entry["format"])
            tensors[entry["name"]] = Tensor(**{**entry, "format": format})
        layers = []
        for index, entry in enumerate(description["layers"]):
            values: dict = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
            kind = {kind.__name__: kind for kind in _CHECKS}[values.pop("kind")]
            if kind is Convolution:
                values["weight_format"] = Format.parse(values["weight_format"])
                if values.get("mask") is not None:
                    values["mask"] = TermMask.parse(values["mask"])
                keys = ["weights", "weight_units", "bias", "multiplier", "shift"]
                keys += [key for key in _OPTIONAL_ARRAYS if f"{index}.{key}" in arrays]
                for key in keys:
                    values[key] = arrays[f"{index}.{key}"]
                values["weights"] = values["weights"].astype(np.int64)
            layers.append(kind(**values))
        return cls(description["name"], tensors, tuple(layers), description["input"], description["outputs"])


#: Arrays of a convolution that only some have.
_OPTIONAL_ARRAYS = ("residual_multiplier", "negative_multiplier", "codebooks")


def sources(layer):
    """Names of the tensors that a layer reads, as a tuple."""
    if isinstance(layer, Concat):
        return (layer.input, *layer.others)
    residual = getattr(layer, "residual", None)
    return (layer.input,) if residual is None else (layer.input, residual)


def _is_integer(value, low):
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _check_tensor(name, tensor):
    if not isinstance(tensor, Tensor) or tensor.name != name:
        raise NetworkError(f"Tensor {name!r} must be a Tensor of that name, not {tensor!r}")
    for key in ("channels", "height", "width"):
        if not _is_integer(getattr(tensor, key), 1):
            raise NetworkError(f"Tensor {name}: {key} must be a positive integer, not {getattr(tensor, key)!r}")
    if tensor.format is not None and not isinstance(tensor.format, Format):
        raise NetworkError(f"Tensor {name}: format must be a Format or None, not {tensor.format!r}")
    if not (isinstance(tensor.unit, float) and np.isfinite(tensor.unit) and tensor.unit > 0):
        raise NetworkError(f"Tensor {name}: unit must be a positive finite float, not {tensor.unit!r}")


def _check_geometry(layer, source, target, channels, kernel, dilation=(1, 1)):
    if source.format is None:
        raise NetworkError(f"Layer {layer.name} reads raw integers ({source.name}); only a network output can be raw")
    for key, values, count, low in (
        ("kernel", kernel, 2, 1),
        ("stride", layer.stride, 2, 1),
        ("dilation", dilation, 2, 1),
        ("pads", layer.pads, 4, 0),
    ):
        legal = isinstance(values, tuple) and len(values) == count and all(_is_integer(value, low) for value in values)
        if not legal:
            raise NetworkError(
                f"Layer {layer.name}: {key} must be a tuple of {count} integers >= {low}, not {values!r}"
            )
    size = _output_size(source, kernel, layer.stride, layer.pads, dilation)
    if min(size) < 1:
        raise NetworkError(
            f"Layer {layer.name}: a {kernel[0]}x{kernel[1]} window does not fit "
            f"the padded {source.height}x{source.width} map"
        )
    if (target.channels, target.height, target.width) != (channels, *size):
        raise NetworkError(
            f"Layer {layer.name} produces {channels}x{size[0]}x{size[1]}, but tensor {target.name} is "
            f"{target.channels}x{target.height}x{target.width}"
        )


def _output_size(source, kernel, stride, pads, dilation=(1, 1)):
    return tuple(
        (length + before + after - (k - 1) * d - 1) // s + 1
        for length, before, after, k, d, s in zip(
            (source.height, source.width), pads[:2], pads[2:], kernel, dilation, stride, strict=True
        )
    )


def _check_array(layer, key, shape, dtype):
    value = getattr(layer, key)
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
        found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else repr(value)
        raise NetworkError(f"Layer {layer.name}: {key} must be a {np.dtype(dtype)} array of shape {shape}, not {found}")
    return value


def _check_range(layer, key, low, high):
    values = getattr(layer, key)
    smallest, largest = np.min(values), np.max(values)
    if smallest < low or largest > high:
        raise NetworkError(f"Layer {layer.name}: {key} must be {low} to {high}, not {smallest} to {largest}")


def _check_requantizer(layer):
    _check_range(layer, "multiplier", 1, MULTIPLIER_MAX)
    _check_range(layer, "shift", 0, SHIFT_MAX)


def _check_residual(layer, target, residual):
    if residual is None:
        if layer.residual_multiplier is not None:
            raise NetworkError(f"Layer {layer.name}: residual_multiplier must be None without a residual")
        return
    for name, tensor in (("reads", residual), ("writes", target)):
        if tensor.format is None:
            raise NetworkError(
                f"Layer {layer.name} with a residual {name} raw integers ({tensor.name}); both must have a format"
            )
    shapes = [(tensor.channels, tensor.height, tensor.width) for tensor in (residual, target)]
    if shapes[0] != shapes[1]:
        found, expected = ("x".join(map(str, shape)) for shape in shapes)
        raise NetworkError(f"Layer {layer.name}: residual {residual.name} is {found}, but the output is {expected}")
    _check_array(layer, "residual_multiplier", (target.channels,), np.int64)
    _check_range(layer, "residual_multiplier", 0, RESIDUAL_MULTIPLIER_MAX)


def _check_leaky(layer, target):
    if layer.negative_multiplier is None:
        return
    if target.format is None or not target.format.signed:
        raise NetworkError(
            f"Layer {layer.name} keeps negative results, but {target.name} has the format {target.format or 'raw'}; "
            f"a leaky ReLU needs a signed output format"
        )
    if layer.relu or layer.residual is not None:
        what = "a ReLU" if layer.relu else f"the residual {layer.residual}"
        raise NetworkError(
            f"Layer {layer.name} has a negative_multiplier and {what}; only one of them can follow the accumulator"
        )
    _check_array(layer, "negative_multiplier", (target.channels,), np.int64)
    _check_range(layer, "negative_multiplier", 0, MULTIPLIER_MAX)


def _check_weight_levels(layer, out):
    form = layer.weight_format
    if not form.searched:
        if layer.codebooks is not None:
            raise NetworkError(f"Layer {layer.name}: weight_format {form} has its levels, so codebooks must be None")
        legal = bool(np.isin(layer.weights, level_table(form)).all())
    else:
        books = _check_array(layer, "codebooks", (out, form.level_count), np.int64)
        _check_range(layer, "codebooks", *form.level_range)
        if (np.diff(books) < 1).any():
            raise NetworkError(f"Layer {layer.name}: every codebook must increase strictly")
        rows = zip(layer.weights.reshape(out, -1), books, strict=True)
        legal = all(np.isin(weights, book).all() for weights, book in rows)
    if not legal:
        raise NetworkError(f"Layer {layer.name}: weights must be levels of {form}")


def _check_mask(layer, source):
    mask = layer.mask
    if mask is None:
        return
    if not isinstance(mask, TermMask):
        raise NetworkError(f"Layer {layer.name}: mask must be a TermMask or None, not {mask!r}")
    if source.format not in (UINT(8), INT(8)):
        raise NetworkError(
            f"Layer {layer.name} masks parts of 8-bit levels, but {source.name} has {source.format}; give it the "
            f"format uint:8 or int:8, or leave the mask out"
        )
    depth = source.channels // layer.groups
    if not mask.exact and layer.groups > 1 and depth % mask.group:
        raise NetworkError(
            f"Layer {layer.name} has {depth} channels in a group of the convolution, so groups of {mask.group} of the "
            f"mask straddle them; use a budget of {2 * mask.group} or no mask"
        )


def _accumulator_bound(layer, source):
    """Largest possible ``|acc|`` of every output channel of a convolution, by its actual weights."""
    return source.format.magnitude_max * np.abs(layer.weights).sum(axis=(1, 2, 3))


def _check_convolution(layer, target, source, residual=None):
    if not isinstance(layer.weights, np.ndarray) or layer.weights.ndim != 4 or layer.weights.dtype != np.int64:
        raise NetworkError(f"Layer {layer.name}: weights must be an int64 array (out, in / groups, kh, kw)")
    out, depth, *kernel = layer.weights.shape
    if not _is_integer(layer.groups, 1) or out % layer.groups:
        raise NetworkError(
            f"Layer {layer.name}: groups must be a positive integer that divides {out} channels, not {layer.groups!r}"
        )
    if (channels := depth * layer.groups) != source.channels:
        raise NetworkError(
            f"Layer {layer.name}: weights expect {channels} channels, but {source.name} has {source.channels}"
        )
    _check_geometry(layer, source, target, out, tuple(kernel), layer.dilation)
    if not isinstance(layer.weight_format, Format):
        raise NetworkError(f"Layer {layer.name}: weight_format must be a Format, not {layer.weight_format!r}")
    _check_weight_levels(layer, out)
    units = _check_array(layer, "weight_units", (out,), np.float64)
    if not (np.isfinite(units) & (units > 0)).all():
        raise NetworkError(f"Layer {layer.name}: weight_units must be positive and finite")
    bias = _check_array(layer, "bias", (out,), np.int64)
    _check_array(layer, "multiplier", (out,), np.int64)
    _check_array(layer, "shift", (out,), np.int64)
    bound = _accumulator_bound(layer, source)
    if target.format is None:
        # Raw results leave as 32-bit integers, bias included.
        bound = bound + np.abs(bias)
        if layer.relu:
            raise NetworkError(f"Layer {layer.name}: raw results have no ReLU")
    else:
        _check_requantizer(layer)
    _check_residual(layer, target, residual)
    _check_leaky(layer, target)
    _check_mask(layer, source)
    for what, values in (("bias", np.abs(bias)), ("accumulator", bound)):
        if values.max() >= ACCUMULATOR_LIMIT:
            raise NetworkError(
                f"Layer {layer.name}: {what} of output channel {values.argmax()} can reach {values.max()}, "
                f"which leaves 32 bits; use narrower formats or a shorter reduction"
            )


def _check_max_pool(layer, target, source):
    _check_geometry(layer, source, target, source.channels, layer.kernel)
    if any(pad >= size for pad, size in zip(layer.pads, layer.kernel * 2, strict=True)):
        raise NetworkError(f"Layer {layer.name}: pads {layer.pads} must be smaller than the kernel {layer.kernel}")
    if (source.format, source.unit) != (target.format, target.unit):
        raise NetworkError(f"Layer {layer.name}: a maximum keeps format and unit of its input")


def _check_average_pool(layer, target, source):
    _check_geometry(layer, source, target, source.channels, layer.kernel)
    if target.format is None:
        raise NetworkError(f"Layer {layer.name}: an average has no raw form; give tensor {target.name} a format")
    for key in ("multiplier", "shift"):
        if not _is_integer(getattr(layer, key), 0):
            raise NetworkError(f"Layer {layer.name}: {key} must be an integer, not {getattr(layer, key)!r}")
    _check_requantizer(layer)


def _check_map(layer, target, shape, parts):
    """The output is a map of this shape, and of the format and unit of all parts."""
    if (target.channels, target.height, target.width) != shape:
        raise NetworkError(
            f"Layer {layer.name} produces {'x'.join(map(str, shape))}, but tensor {target.name} is "
            f"{target.channels}x{target.height}x{target.width}"
        )
    for part in parts:
        if part.format is None:
            raise NetworkError(f"Layer {layer.name} reads raw integers ({part.name}); only a network output can be raw")
        if (part.format, part.unit) != (target.format, target.unit):
            raise NetworkError(
                f"Layer {layer.name} keeps format and unit, but {part.name} has {part.format} and {part.unit}, "
                f"{target.name} {target.format} and {target.unit}"
            )


def _check_concat(layer, target, *parts):
    sizes = {(part.height, part.width) for part in parts}
    if len(sizes) > 1:
        raise NetworkError(f"Layer {layer.name} joins maps of the sizes {sorted(sizes)}; they must be equal")
    _check_map(layer, target, (sum(part.channels for part in parts), *sizes.pop()), parts)


def _check_upsample(layer, target, source):
    factors = layer.factors
    if not (isinstance(factors, tuple) and len(factors) == 2 and all(_is_integer(factor, 1) for factor in factors)):
        raise NetworkError(f"Layer {layer.name}: factors must be a tuple of 2 integers >= 1, not {factors!r}")
    _check_map(layer, target, (source.channels, source.height * factors[0], source.width * factors[1]), (source,))


_CHECKS = {
    Convolution: _check_convolution,
    MaxPool: _check_max_pool,
    AveragePool: _check_average_pool,
    Concat: _check_concat,
    Upsample: _check_upsample,
}


def run(network, levels, trace=False):
    """Execute a network exactly.

    Parameters
    ----------
    network : :class:`IntegerNetwork`
    levels : int array, ``(N, channels, height, width)``
        Levels of the network's input tensor.
    trace : bool
        Return every tensor as well.

    Returns
    -------
    output : int64 array, or dict of str to int64 array
        ``(N, channels)`` if the output map is one pixel, else ``(N, channels, height, width)``: levels of the output's
        format, or raw integers. A dictionary by name, in order, if the network has several outputs.
    tensors : dict of str to int64 array
        Only with ``trace``: every tensor as ``(N, channels, height, width)``.

    Raises
    ------
    :exc:`NetworkError`
        If ``levels`` does not fit the input tensor.
    """
    source = network.tensors[network.input]
    levels = np.asarray(levels)
    shape = (source.channels, source.height, source.width)
    if levels.ndim != 4 or levels.shape[1:] != shape or levels.dtype.kind not in "iu":
        raise NetworkError(
            f"Input must be an integer array (N, {', '.join(map(str, shape))}), not {levels.dtype} {levels.shape}"
        )
    if not np.isin(levels, level_table(source.format)).all():
        raise NetworkError(f"Input must hold levels of {source.format} only; project real values first")
    wanted = list(network.tensors) if trace else list(network.outputs)
    results = {}
    for name in wanted:
        tensor = network.tensors[name]
        results[name] = np.empty((len(levels), tensor.channels, tensor.height, tensor.width), dtype=np.int64)
    step = min((_batch_size(layer, network.tensors) for layer in network.layers), default=_BATCH_ELEMENTS)
    for start in range(0, len(levels), step):
        values = {network.input: levels[start : start + step].astype(np.int64)}
        for layer in network.layers:
            inputs = (values[name] for name in sources(layer))
            values[layer.output] = _execute(layer, network.tensors, *inputs)
        for name in wanted:
            results[name][start : start + step] = values[name]
    outputs = {name: results[name] for name in network.outputs}
    outputs = {name: found[:, :, 0, 0] if found.shape[2:] == (1, 1) else found for name, found in outputs.items()}
    output = outputs if len(outputs) > 1 else outputs[network.output]
    return (output, results) if trace else output


def run_layer(layer, tensors, *levels):
    """Execute one layer alone, exactly.

    Parameters
    ----------
    layer : :class:`Convolution` or another layer of a network
    tensors : dict of str to :class:`Tensor`
        Holds at least those that the layer reads and writes.
    levels : integer arrays, ``(N, channels, height, width)``
        Levels of the tensors that the layer reads, in the order of :func:`sources`.

    Raises
    ------
    :exc:`NetworkError`
        If the layer is inconsistent, as in :class:`IntegerNetwork`.
    """
    target = tensors[layer.output]
    _CHECKS[type(layer)](layer, target, *(tensors[name] for name in sources(layer)))
    result = np.empty((len(levels[0]), target.channels, target.height, target.width), dtype=np.int64)
    step = _batch_size(layer, tensors)
    for start in range(0, len(result), step):
        parts = (values[start : start + step].astype(np.int64) for values in levels)
        result[start : start + step] = _execute(layer, tensors, *parts)
    return result


def _execute(layer, tensors, *levels):
    return _EXECUTE[type(layer)](layer, tensors[layer.input], tensors[layer.output], *levels)


def _batch_size(layer, tensors):
    target = tensors[layer.output]
    copies = layer.weights[0].size * layer.groups if isinstance(layer, Convolution) else 0
    return max(1, _BATCH_ELEMENTS // (max(copies, target.channels) * target.height * target.width))


def _padded(values, pads, fill=0):
    top, left, bottom, right = pads
    return np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)


def _taps(values, kernel, stride, dilation, size):
    """Every kernel position with the strided view of the padded map that it reads."""
    for ky in range(kernel[0]):
        for kx in range(kernel[1]):
            y, x = ky * dilation[0], kx * dilation[1]
            yield ky, kx, values[..., y : y + size[0] * stride[0] : stride[0], x : x + size[1] * stride[1] : stride[1]]


def _rounded(accumulator, bias, multiplier, shift, relu, format, *residual, **options):
    ranks = requantize(accumulator, bias, multiplier, shift, format.midpoints, *residual, **options)
    levels = level_table(format)[ranks]
    return np.maximum(levels, 0) if relu else levels


def _run_convolution(layer, source, target, values, residual=None):
    out, depth, *kernel = layer.weights.shape
    bound = int(_accumulator_bound(layer, source).max())
    assert bound < ACCUMULATOR_LIMIT, "accumulator overflows 32 bits"
    # Every partial sum is an integer of at most this bound, so a float with as many significand bits computes it
    # exactly in any order; floats are much faster than NumPy's integer matrix product.
    dtype = np.float32 if bound < 1 << 24 else np.float64
    if layer.mask is not None:
        values = masked_levels(values, layer.mask)
    groups, reduction, size = layer.groups, depth * kernel[0] * kernel[1], (target.height, target.width)
    weights = layer.weights.reshape(groups, out // groups, reduction).astype(dtype)
    products = _depthwise_products if depth == 1 else _dense_products
    result = np.empty((len(values), out, *size), dtype=np.int64)
    images = max(1, _PRODUCT_ELEMENTS // (groups * reduction * size[0] * size[1]))
    channels = max(1, _RESULT_ELEMENTS // (images * size[0] * size[1]))
    for image in range(0, len(values), images):
        several = slice(image, image + images)
        padded = _padded(values[several].transpose(1, 0, 2, 3).astype(dtype), layer.pads)
        taps = [view for _, _, view in _taps(padded, kernel, layer.stride, layer.dilation, size)]
        accumulator = products(weights, taps).reshape(out, -1, *size).transpose(1, 0, 2, 3)
        for channel in range(0, out, channels):
            some = slice(channel, channel + channels)
            added = () if residual is None else (residual[several, some],)
            result[several, some] = _results(layer, target, some, accumulator[:, some].astype(np.int64), *added)
    return result


def _dense_products(weights, taps):
    """Sums ``(groups, out, images * pixels)`` of weights ``(groups, out, in * taps)``; taps: ``(in, images, y, x)``."""
    columns = np.stack(taps, axis=1) if len(taps) > 1 else taps[0]
    return weights @ columns.reshape(*weights.shape[::2], -1)


def _depthwise_products(weights, taps):
    """As :func:`_dense_products` for one input channel per group, without its matrices of one row."""
    total = np.zeros((*weights.shape[:2], *taps[0].shape[1:]), dtype=weights.dtype)
    for tap, weight in zip(taps, weights.transpose(2, 0, 1)[..., np.newaxis, np.newaxis, np.newaxis], strict=True):
        total += tap[:, np.newaxis] * weight
    return total


def _results(layer, target, channels, accumulator, *residual):
    """What a convolution makes of the sums of some channels."""
    bias, multiplier, shift = (
        constants[channels, np.newaxis, np.newaxis] for constants in (layer.bias, layer.multiplier, layer.shift)
    )
    if target.format is None:
        return accumulator + bias
    if residual:
        residual = (*residual, layer.residual_multiplier[channels, np.newaxis, np.newaxis])
    leaky = layer.negative_multiplier
    negative = None if leaky is None else leaky[channels, np.newaxis, np.newaxis]
    return _rounded(
        accumulator, bias, multiplier, shift, layer.relu, target.format, *residual, negative_multiplier=negative
    )


def _run_max_pool(layer, _source, target, values):
    lowest = np.iinfo(np.int64).min  # below every level, so padding never wins
    padded = _padded(values, layer.pads, lowest)
    result = np.full((*values.shape[:2], target.height, target.width), lowest)
    for _, _, view in _taps(padded, layer.kernel, layer.stride, (1, 1), result.shape[2:]):
        np.maximum(result, view, out=result)
    return result


def _run_average_pool(layer, _source, target, values):
    padded = _padded(values, layer.pads)
    total = np.zeros((*values.shape[:2], target.height, target.width), dtype=np.int64)
    for _, _, view in _taps(padded, layer.kernel, layer.stride, (1, 1), total.shape[2:]):
        total += view
    return _rounded(total, 0, layer.multiplier, layer.shift, layer.relu, target.format)


def _run_concat(_layer, _source, _target, *values):
    return np.concatenate(values, axis=1)


def _run_upsample(layer, _source, _target, values):
    return values.repeat(layer.factors[0], axis=2).repeat(layer.factors[1], axis=3)


_EXECUTE = {
    Convolution: _run_convolution,
    MaxPool: _run_max_pool,
    AveragePool: _run_average_pool,
    Concat: _run_concat,
    Upsample: _run_upsample,
}
