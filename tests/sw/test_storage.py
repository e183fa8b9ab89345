"""Memory for weights: information, packed bits, codebooks, against INT(8) and INT(4)."""

from dataclasses import replace

import numpy as np
import pytest
from networks import Builder
from sigbit.storage import weight_storage
from sigbit_hw.spec.formats import ESB, ESBU, INT, NUUQ, UINT


def layer_of(format, codebooks=None):
    """A network of one 64 to 64 channel 3x3 layer."""
    builder = Builder(1, 64, 3, 3, UINT(8))
    builder.conv(64, (3, 3), INT(4), ESBU(4, 2))
    levels = np.array(format.levels if codebooks is None else codebooks[0])
    weights = np.resize(levels, builder.layers[0].weights.shape)
    builder.layers[0] = replace(builder.layers[0], weights=weights, weight_format=format, codebooks=codebooks)
    return builder.network()


@pytest.mark.parametrize(
    ("format", "packed", "codebook"),
    [
        (NUUQ(3, 2, (-1, 0, 1)), 7373, 1),
        (NUUQ(4, 5, (-10, -3, 3, 10)), 9216, 3),
        (NUUQ(5, 5, (-7, -3, 0, 3, 7)), 10752, 4),
        (NUUQ(16, 6, range(-8, 8)), 18432, 12),
        (ESB(4, 2), 18432, 0),
        (INT(8), 36864, 0),
    ],
    ids=lambda value: getattr(value, "label", None),
)
def test_bytes_of_a_layer(format, packed, codebook):
    found = weight_storage(layer_of(format))
    (row,) = found["layers"]
    assert (row["weights"], row["int8_bytes"], row["int4_bytes"]) == (36864, 36864, 18432)
    assert (row["packed_bytes"], row["codebook_bytes"]) == (packed, codebook)
    assert row["information_bits"] == pytest.approx(np.log2(len(format.levels)))
    assert found["total"]["packed_bytes"] == packed
    assert found["total"]["stored_bits"] == pytest.approx(8 * packed / 36864)


def test_three_levels_take_less_than_1_61_bits():
    assert weight_storage(layer_of(NUUQ(3, 2, (-1, 0, 1))))["total"]["stored_bits"] < 1.61


def test_every_channel_has_its_codebook():
    books = np.tile([-9, -2, 2, 9], (64, 1))
    (row,) = weight_storage(layer_of(NUUQ(4, 5), books))["layers"]
    assert row["codebook_bytes"] == 64 * 4 * 5 // 8
