"""Networks of superposed powers of two on accelerators that only shift: quantized, compiled and run in Verilog."""

from functools import cache

import numpy as np
import pytest
from hw.test_shift_mode import products
from networks import roomy
from rtl.test_networks import check_cycles
from sigbit.compiler import compile
from sigbit.device import RtlDevice
from sigbit.quantize import input_levels, quantize
from sigbit.session import Session
from sigbit_hw.emit import emit_verilog
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import AUSN_G, AUSN_GU
from sigbit_sim import cycles
from sigbit_sim.golden.network import run
from sw.test_ausn import images, small_model

CONFIGS = {
    "tables": roomy(
        PRESETS["tiny"], AUSN_G(2, 1), AUSN_GU(2, 2), requantizer="shift", cell="table", weight_columns=2,
        table_weight_bits=7, table_product_bits=12,
    ),
    "logic": roomy(PRESETS["tiny"], AUSN_G(2, 1), AUSN_GU(2, 2), requantizer="shift"),
}  # fmt: skip
NAMES = ["tables", pytest.param("logic", marks=pytest.mark.slow)]
#: Weights and results of the layers of the model. Results of cells of logic have the native split.
SPLITS = {
    "tables": {
        "first": ("ausn-g:3,0", "ausn-au:3,1"),
        "second": ("ausn-a:2,1", "ausn-gu:3,1"),
        "mean": (None, "ausn-au:2,2"),
        "last": ("ausn-a:1,2", None),
    },
    "logic": {"first": ("ausn-g:3,0", None), "second": ("ausn-a:2,1", None), "last": ("ausn-g:2,1", None)},
}


@cache
def device(name):
    return RtlDevice(CONFIGS[name], timeout_cycles=1_000_000)


@pytest.mark.parametrize("name", NAMES)
def test_layers_of_different_splits_run_without_a_multiplier(name):
    model = small_model()
    keys = ("weights", "activations")
    layers = {
        layer: {key: text for key, text in zip(keys, formats, strict=True) if text}
        for layer, formats in SPLITS[name].items()
    }
    network = quantize(model, images(model), weights="auto", activations="ausn-gu:2,2", layers=layers)
    written = {network.tensors[layer.output].format for layer in network.layers[:-1]}
    assert len(written) == (3 if name == "tables" else 1)
    assert len({layer.weight_format for layer in network.layers if hasattr(layer, "weight_format")}) == 3
    levels = input_levels(network, images(model, 4))
    program = compile(network, CONFIGS[name])
    accelerator = device(name)
    with Session(accelerator, program) as session:
        accelerator.model.mark(cycles.marks(program, len(levels)))
        np.testing.assert_array_equal(session.run(levels), run(network, levels))
    check_cycles(program, len(levels), accelerator.model.snapshots())
    assert products(emit_verilog(CONFIGS[name])) == []
