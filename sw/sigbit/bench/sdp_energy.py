"""Energy proxy of structured dynamic precision and of DRQ: toggles of their netlists for the same activations."""

import numpy as np
from sigbit_hw.spec.formats import UINT
from sigbit_hw.spec.masks import TermMask
from sigbit_sim.golden import network as golden

from ..budgets import maskable

__all__ = ["IMAGES", "NOTE", "POSITIONS", "add_toggles"]

#: Images of which activations are taken, positions per tile.
IMAGES, POSITIONS = 8, 32

NOTE = """\
Toggles: settled net toggles of the mapped netlist per multiplication of the network, our energy proxy of our circuits \
and not power: one per net and cycle at most, no glitches, no clock, all nets alike, every result exact. 64 tiles of \
the layers that may be masked, drawn by their share of all products, {positions} positions of {images} calibration \
images each, with the weights in place. SDP: the whole grid of the configuration, masking units, compactors and tags \
included. DRQ: only its processing element, a 4x4 multiplier with one adder (`sigbit_sim.drq_circuit`), in its \
favour: regions, rounding, control, FIFOs and pipeline registers are free, and stalls take nothing. With exact layers \
only SDP has {sdp_exact:.1f} and DRQ {drq_exact:.1f}; with no region sensitive in any layer DRQ has {drq_short:.1f}. \
The paper has 51 % less energy than DRQ (2.04x) for its own circuits; flows for FPGAs cannot check that figure."""


def add_toggles(progress, network, levels, config, rows):
    """Give rows of kinds ``sdp`` (by ``budget``) and ``drq`` (by ``region`` and ``threshold``) their ``toggles``.

    Per multiplication of the whole network: layers that may be masked by tiles of them, the others as exact. Returns
    one more row with toggles of both designs where everything is exact, and of DRQ where nothing is sensitive.

    Parameters
    ----------
    network : :class:`~sigbit_sim.golden.network.IntegerNetwork`
    levels : int array, ``(N, channels, height, width)``
        Input levels.
    config : :class:`~sigbit_hw.spec.config.AcceleratorConfig`
        With masked cells.
    """
    from sigbit_sim.drq import Region, sensitive
    from sigbit_sim.energy import draw_tiles, drq_toggles, masked_toggles

    own = maskable(network, config.lanes)
    layers = [layer for layer in own if layer.groups == 1 and network.tensors[layer.input].format == UINT(8)]
    _, values = golden.run(network, levels[:IMAGES], trace=True)
    inputs = {layer.name: values[layer.input] for layer in layers}

    def drawn(maps):
        return draw_tiles(network, layers, maps, config, POSITIONS, seed=1)

    weights, activations = drawn(inputs)
    found: dict[tuple, float] = {}
    group = config.lanes
    for budget in sorted({row["budget"] for row in rows if row["kind"] == "sdp"} | {2 * group}):
        progress(f"toggles of masked cells, budget {budget} of {2 * group}")
        found["sdp", budget] = masked_toggles(config, weights, activations, TermMask(group, budget))
    progress("toggles of DRQ, all products in 8 bits, all in 4")
    for exact in (True, False):
        flags = np.full(activations.shape, exact)
        found["drq", exact] = drq_toggles(weights[:, 0], activations, flags)
    for row in rows:
        if row["kind"] == "drq":
            height, width = map(int, row["region"].split("x"))
            region = Region(height, width, row["threshold"])
            progress(f"toggles of DRQ, regions of {row['region']}, threshold {row['threshold']}")
            _, flags = drawn({name: sensitive(array, region) for name, array in inputs.items()})
            found["drq", row["region"], row["threshold"]] = drq_toggles(weights[:, 0], activations, flags > 0)
    share = _products(network, own) / _products(network, network.layers)
    for row in rows:
        if row["kind"] == "sdp":
            row["toggles"] = share * found["sdp", row["budget"]] + (1 - share) * found["sdp", 2 * group]
        elif row["kind"] == "drq":
            key = "drq", row["region"], row["threshold"]
            row["toggles"] = share * found[key] + (1 - share) * found["drq", True]
    return {
        "kind": "toggles",
        "sdp_exact": found["sdp", 2 * group],
        "drq_exact": found["drq", True],
        "drq_short": found["drq", False],
    }


def _products(network, layers):
    return sum(
        layer.weights.size * network.tensors[layer.output].height * network.tensors[layer.output].width
        for layer in layers
        if isinstance(layer, golden.Convolution)
    )
