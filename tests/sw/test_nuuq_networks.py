"""Networks with codebooks run on every array: golden model, compiler and emulator, and files."""

from dataclasses import replace

import numpy as np
import pytest
from networks import codebook_network, roomy
from sigbit import evaluation
from sigbit.compiler import compile
from sigbit.device import open_device
from sigbit.evaluation import native_formats
from sigbit.session import Session
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import ESB, ESBU, INT, NUUQ, UINT
from sigbit_sim.golden.network import IntegerNetwork, NetworkError, run

TINY = PRESETS["tiny"]
NATIVE = [(ESB(4, 2), ESBU(4, 2)), (ESB(5, 2), ESBU(4, 2)), (INT(8), UINT(8)), (ESB(3, 0), ESBU(2, 0))]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("native", NATIVE, ids=lambda pair: str(pair[0]))
def test_layers_with_different_codebooks_run_on_any_array(native, seed):
    builder = codebook_network(seed, native[1])
    network, images = builder.network(), builder.images(3)
    config = roomy(TINY, *native, feature_depth=4096)
    program = compile(network, config)
    with Session(open_device("emulator", config), program) as session:
        np.testing.assert_array_equal(session.run(images), run(network, images))


def test_codebooks_survive_a_file(tmp_path):
    builder = codebook_network(0, ESBU(4, 2))
    network, images = builder.network(), builder.images(2)
    network.save(tmp_path / "network.npz")
    loaded = IntegerNetwork.load(tmp_path / "network.npz")
    for layer, found in zip(network.layers, loaded.layers, strict=True):
        assert found.weight_format == layer.weight_format
        assert (found.codebooks is None) == (layer.codebooks is None)
        assert layer.codebooks is None or (found.codebooks == layer.codebooks).all()
    assert (run(loaded, images) == run(network, images)).all()


def damaged(layer, **changes):
    return replace(layer, **{key: change(layer) for key, change in changes.items()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": lambda layer: np.full_like(layer.weights, 127)}, "weights must be levels of nuuq:5,5"),
        ({"codebooks": lambda layer: None}, r"codebooks must be a int64 array of shape \(\d+, 5\), not None"),
        ({"codebooks": lambda layer: layer.codebooks[:, ::-1].copy()}, "every codebook must increase strictly"),
        ({"codebooks": lambda layer: layer.codebooks * 16}, "codebooks must be -15 to 15, not"),
        ({"weight_format": lambda layer: NUUQ(5, 5, range(5))}, "has its levels, so codebooks must be None"),
        ({"weight_format": lambda layer: INT(5)}, "has its levels, so codebooks must be None"),
    ],
)
def test_codebooks_that_do_not_fit_their_layer_are_an_error(changes, message):
    builder = codebook_network(0, ESBU(4, 2))
    index, layer = next((i, layer) for i, layer in enumerate(builder.layers) if layer.codebooks is not None)
    builder.layers[index] = damaged(layer, **changes)
    with pytest.raises(NetworkError, match=f"Layer layer{index}: .*{message}"):
        builder.network()


def test_codebooks_do_not_choose_the_native_formats():
    network = codebook_network(0, ESBU(4, 2)).network()
    assert native_formats(network) == {"activation_format": ESBU(4, 2)}
    assert evaluation.configuration("tiny", "nuuq:16,6", None, network) == TINY
