"""Clipping and rounding error of every operand of a quantized network, as a table and as a picture (docs/ausn.md)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sigbit_hw.spec.errors import SigbitError
from sigbit_sim.golden.network import Convolution, IntegerNetwork

from .adaptation import Errors, errors
from .float_model import run_float
from .graph import Conv
from .model_reader import Model, read_model
from .passes import lower

__all__ = ["OperandErrors", "draw", "operand_errors"]

#: Images whose tensors are held at once.
_IMAGES = 64
#: Bins of a histogram, in units of the largest level of the narrowest channel.
_BINS = 256
#: Most levels of which every one gets a line.
_LINES = 64
#: Panels beside each other.
_PANELS = 4


@dataclass(frozen=True)
class OperandErrors:
    """One operand of one layer.

    Attributes
    ----------
    layer, operand : str
        ``operand`` is ``"weights"`` or ``"activations"``, which are what the layer writes.
    format : str
    unit_log2 : tuple of float
        Smallest and largest ``log2`` of the units of its channels.
    errors : :class:`~sigbit.adaptation.Errors`
        Of the float values, not of a histogram.
    counts, edges : arrays
        Histogram of the values over the unit of their channel.
    levels : tuple of int
    """

    layer: str
    operand: str
    format: str
    unit_log2: tuple
    errors: Errors
    counts: np.ndarray
    edges: np.ndarray
    levels: tuple

    @property
    def row(self) -> dict[str, Any]:
        """Plain values for reports; errors are relative to the power of the values."""
        power = self.errors.power or 1.0
        return {
            "layer": self.layer,
            "operand": self.operand,
            "format": self.format,
            "unit_log2": self.unit_log2,
            "clipping": self.errors.clipping / power,
            "rounding": self.errors.rounding / power,
            "sqnr_db": self.errors.sqnr_db,
            "lost": self.errors.lost,
        }


def _histogram(values: np.ndarray, levels: tuple) -> tuple[Any, Any]:
    reach = 1.25 * max(abs(levels[0]), abs(levels[-1]))
    return np.histogram(np.clip(values, -reach, reach), _BINS, (-reach if levels[0] < 0 else 0.0, reach))


def operand_errors(model: Model, network: IntegerNetwork, calibration: np.ndarray) -> list[OperandErrors]:
    """Errors of all weights, and of all activations on the float values of ``calibration``.

    Every operand is measured alone: activations are those of the float model, not of a network that is quantized up
    to there.

    Raises
    ------
    :exc:`~sigbit_hw.spec.errors.SigbitError`
        If the images do not fit the model.
    """
    graph = lower(read_model(model, calibration))
    images = np.asarray(calibration)
    if images.ndim == 2:
        images = images[:, :, np.newaxis, np.newaxis]
    images = graph.check_images(images)
    nodes = {node.name: node for node in graph.nodes}
    found = []
    sums: dict[str, np.ndarray] = {}
    histograms: dict[str, tuple] = {}
    for start in range(0, len(images), _IMAGES):
        part = images[start : start + _IMAGES]
        for name, values in run_float(graph, part, all_tensors=True).items():
            tensor = network.tensors.get(name)
            if tensor is None or tensor.format is None:
                continue
            own = errors(values, tensor.format, tensor.unit)
            weight = len(part) / len(images)
            sums[name] = sums.get(name, 0) + weight * np.array([own.clipping, own.rounding, own.power, own.lost])
            counts, edges = _histogram(values / tensor.unit, tensor.format.levels)
            histograms[name] = counts + (histograms[name][0] if name in histograms else 0), edges
    for layer in network.layers:
        node = nodes[layer.name]
        if isinstance(layer, Convolution) and isinstance(node, Conv) and not node.copy and layer.codebooks is None:
            scaled = node.weight.reshape(len(node.weight), -1) / layer.weight_units[:, np.newaxis]
            counts, edges = _histogram(scaled, layer.weight_format.levels)
            found.append(
                OperandErrors(
                    layer.name, "weights", str(layer.weight_format), _exponents(layer.weight_units),
                    errors(node.weight, layer.weight_format, layer.weight_units),
                    counts, edges, layer.weight_format.levels,
                )
            )  # fmt: skip
        tensor = network.tensors[layer.output]
        if layer.output in sums:
            total = Errors(*sums[layer.output].tolist())
            counts, edges = histograms[layer.output]
            found.append(
                OperandErrors(
                    layer.name, "activations", str(tensor.format), _exponents(np.array([tensor.unit])), total,
                    counts, edges, tensor.format.levels,
                )
            )  # fmt: skip
    return found


def _exponents(units):
    return float(np.log2(units.min())), float(np.log2(units.max()))


def draw(operands, path):
    """Write a picture: the distribution of every operand over its unit, its levels, and the two errors.

    Raises
    ------
    :exc:`~sigbit_hw.spec.errors.SigbitError`
        If matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SigbitError("Pictures need matplotlib; run: pip install 'sigbit[plot]', or leave --picture out") from None
    rows = -(-len(operands) // _PANELS)
    figure = Figure(figsize=(4 * _PANELS, 2.4 * rows), layout="constrained")
    for position, operand in enumerate(operands):
        axes = figure.add_subplot(rows, _PANELS, position + 1)
        axes.stairs(operand.counts, operand.edges, fill=True, color="lightsteelblue")
        for level in operand.levels if len(operand.levels) <= _LINES else ():
            axes.axvline(level, color="grey", linewidth=0.4)
        axes.set_yscale("symlog")
        row = operand.row
        axes.set_title(f"{row['layer']} {row['operand']} {row['format']}", fontsize=7)
        axes.set_xlabel(f"CE {row['clipping']:.1e}, RE {row['rounding']:.1e} of the power", fontsize=7)
        axes.tick_params(labelsize=6)
    try:
        figure.savefig(path, dpi=110, metadata={"Date": None} if str(path).endswith(".svg") else None)
    except (OSError, ValueError) as error:
        raise SigbitError(f"Cannot write the picture {path}: {error}") from error
