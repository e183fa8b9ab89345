"""What the weights of a network take when every index is stored as densely as its number of levels allows."""

import math

from sigbit_hw.spec.codebooks import packing
from sigbit_sim.golden.network import Convolution, IntegerNetwork

__all__ = ["weight_storage"]


def weight_storage(network: IntegerNetwork) -> dict:
    """Bits and bytes of all weights.

    Returns
    -------
    dict
        ``layers``: for every layer with weights ``name``, ``weight_format``, ``weights``, ``levels``,
        ``information_bits`` (``log2`` of the levels), ``stored_bits`` (per weight, tail included), ``packed_bytes``,
        ``codebook_bytes`` (0 without codebooks), ``int8_bytes``, ``int4_bytes``. ``total``: the sums of the bytes and
        weights, ``stored_bits`` and ``information_bits`` per weight.
    """
    layers = []
    for layer in network.layers:
        # A copy has no weights of its own.
        if not isinstance(layer, Convolution) or (layer.weights.shape[1:] == (1, 1, 1) and (layer.weights == 1).all()):
            continue
        form, count = layer.weight_format, layer.weights.size
        levels = form.level_count if form.indexed else len(form.levels)
        bits = packing(levels).bits(count) if form.indexed else form.bits * count
        books = 0 if not form.indexed else 1 if layer.codebooks is None else len(layer.codebooks)
        layers.append(
            {
                "name": layer.name,
                "weight_format": form.label,
                "weights": count,
                "levels": levels,
                "information_bits": math.log2(levels),
                "stored_bits": bits / count,
                "packed_bytes": -(-bits // 8),
                "codebook_bytes": -(-books * levels * form.level_bits // 8),
                "int8_bytes": count,
                "int4_bytes": -(-count // 2),
            }
        )
    sums = ("weights", "packed_bytes", "codebook_bytes", "int8_bytes", "int4_bytes")
    total: dict = {key: sum(row[key] for row in layers) for key in sums}
    weights = max(total["weights"], 1)
    total["stored_bits"] = 8 * total["packed_bytes"] / weights
    total["information_bits"] = sum(row["information_bits"] * row["weights"] for row in layers) / weights
    return {"layers": layers, "total": total}
