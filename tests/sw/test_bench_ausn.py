"""The bench of AUSN: the data that its circuits get, and its tables; synthesis and netlists are stood in for."""

from importlib.resources import files

import numpy as np
import pytest
from sigbit.bench import ausn, run_bench
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import Format
from sigbit_sim.golden.numerics import half_units, level_table

MODELS = files("sigbit") / "models"


@pytest.fixture
def _stand_ins(monkeypatch):
    """Sizes and toggles that follow from the widths of the formats; data are checked on the way."""

    def grid(weights, activations, lanes):
        assert lanes == ausn.TILE_LANES
        return {"lut_per_mac": weights.bits * activations.bits, "ff_per_mac": 1.0, "dsp": 0, "yosys": "0.70"}

    def requantizer(activations, mode, bits):
        return {"lut": {"multiplier": 800, "shift": 300}[mode], "ff": 10, "dsp": 0}

    def lane(weight_format, activation_format, weights, activations, lanes):
        assert weights.shape[1] == 3
        assert weights.shape[2] == activations.shape[2]
        assert weights.shape[2] % lanes == 0
        assert np.isin(weights, level_table(weight_format)).all()
        assert np.isin(activations, level_table(activation_format)).all()
        # Both ends of the formats are used, and not much else is.
        assert activations.max() > activation_format.levels[-1] / 2
        assert np.mean(np.abs(weights) == weight_format.levels[-1]) < 0.2
        toggles = weight_format.bits * activation_format.bits / 2
        return toggles, np.einsum("spl,scl->spc", activations, weights)

    def result(activation_format, mode, bits, sums, bias, multiplier, shift):
        assert np.abs(sums).max() < 1 << bits - 1
        assert sums.shape == bias.shape == multiplier.shape == shift.shape
        if mode == "shift":
            assert (multiplier & multiplier - 1 == 0).all()
        levels = half_units(sums, bias, multiplier, shift) / 2
        assert levels.max() > activation_format.levels[-1] / 2
        return 128.0

    def accelerator(config, program, levels):
        found = {"toggles": 460_416.0 * config.weight_format.bits, "cycles": 9, "lut": 800, "ff": 9, "dsp": 0}
        results = [np.zeros((1, 10), dtype=int)] * len(levels)
        return {**found, "yosys": "0.70", "outputs": results}

    monkeypatch.setattr("sigbit_sim.synthesis.grid_cost", grid)
    monkeypatch.setattr("sigbit_sim.synthesis.requantizer_cost", requantizer)
    monkeypatch.setattr("sigbit_sim.energy.lane_toggles", lane)
    monkeypatch.setattr("sigbit_sim.energy.requantizer_toggles", result)
    monkeypatch.setattr("sigbit_sim.energy.accelerator_toggles", accelerator)


@pytest.mark.usefixtures("_stand_ins")
def test_every_row_has_accuracy_beside_size_and_toggles(monkeypatch):
    pairs = [pair for pair in ausn.PAIRS if pair[0] in ("int:8", "ausn-a:2,1", "ausn-g:2,1")]
    monkeypatch.setattr(ausn, "PAIRS", pairs)
    monkeypatch.setattr(ausn, "ACCELERATORS", pairs[:1])
    monkeypatch.setattr(ausn, "_REDUCTION", 64)
    rows, text = run_bench("ausn", limit=70)
    pairs, (whole,) = rows[:-1], rows[-1:]
    assert [row["weights"] for row in pairs] == ["int:8", "ausn-a:2,1", "ausn-g:2,1", "ausn-g:2,1"]
    for row in pairs:
        assert row["accuracy"] > 0.9
        assert row["generated"]["tile"] == row["generated"]["lane"] + 128 / 64
        assert row["real"]["tile"] == row["real"]["lane"] + 128 / row["length"]
    assert whole["per_mac"] == 8
    assert whole["mismatches"] == 64  # the accelerator that stands in gives zeros only
    assert "| `ausn-g:2,1` | `ausn-gu:2,2` | shift | 8.0 (4.00) | 10.0 (3.40) | 8.0 (4.00) |" in text
    assert "our energy proxy and not power" in text
    assert "network digits" in text


def test_every_pair_is_one_that_can_be_built():
    for weights, activations, mode in ausn.PAIRS:
        assert Format.parse(weights).signed
        assert not Format.parse(activations).signed
        assert mode == ("shift" if weights.startswith("ausn") else "multiplier")
    assert set(ausn.ACCELERATORS) < set(ausn.PAIRS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": ["a.onnx"]}, "takes one ONNX model, and with it --data"),
        ({"networks": ["a.onnx", "b.onnx"], "data": "d.npz:x,y", "calibration": "c.npz:x"}, "takes one ONNX model"),
        (
            {
                "networks": [f"{MODELS}/digits.onnx"],
                "data": f"{MODELS}/digits.npz:x_test",
                "calibration": f"{MODELS}/digits.npz:x_calibration",
            },
            "Accuracy needs labels",
        ),
    ],
)
def test_a_network_without_its_images_is_an_error(options, message):
    with pytest.raises(SigbitError, match=message):
        run_bench("ausn", **options)
