"""Benches of codebooks: rows and tables of small cases, pictures, and what they refuse."""

from pathlib import Path

import pytest
import sigbit
from sigbit.bench import codebooks, nuuq, picture
from sigbit.bench.codebooks import even_levels
from sigbit_hw.spec.errors import SigbitError

DIGITS = Path(sigbit.__file__).parent / "models" / "digits"


def silent(line):
    del line


@pytest.mark.parametrize(
    ("count", "levels"), [(3, (-1, 0, 1)), (4, (-3, -1, 1, 3)), (5, (-2, -1, 0, 1, 2)), (16, tuple(range(-15, 16, 2)))]
)
def test_even_levels_are_symmetric_and_as_short_as_possible(count, levels):
    format = even_levels(count)
    assert format.levels == levels
    assert levels[-1] <= format.level_range[1] < 2 * levels[-1] + 1 + (count == 3)


def test_accuracy_and_memory_of_the_digits_network(monkeypatch):
    monkeypatch.setattr(codebooks, "LEVELS", (5,))
    rows, table = codebooks.bench(
        silent, [f"{DIGITS}.onnx"], f"{DIGITS}.npz:x_test,y_test", f"{DIGITS}.npz:x_calibration", scale=16
    )
    assert [row["levels"] for row in rows] == [5]
    assert min(rows[0][key] for key in ("even", "layer", "channel")) > 0.9
    assert 8 * rows[0]["layer_packed_bytes"] / rows[0]["layer_weights"] == pytest.approx(7 / 3, abs=0.01)
    assert rows[0]["channel_codebook_bytes"] > rows[0]["layer_codebook_bytes"] > 0
    assert "| 5 | 5 |" in table


@pytest.mark.parametrize("arguments", [{}, {"networks": ["a.onnx"], "data": "d.npz:x,y"}, {"networks": ["a", "b"]}])
def test_the_accuracy_bench_says_what_it_takes(arguments):
    with pytest.raises(SigbitError, match=r"bench codebooks takes one ONNX model: --networks MODEL.onnx"):
        codebooks.bench(silent, **arguments)


def test_space_and_time_of_the_engines(monkeypatch):
    from sigbit_sim import codebook_cost

    def lane_costs(codebook, level_bits):
        fields = {"lut": len(codebook), "shared_lut": 7, "yosys": "1.0"}
        return [
            {"engine": engine, "cycles": cycles, **fields}
            for engine, cycles in zip(
                ("decode", "bins", "levels", "digits"), codebook_cost.engine_cycles(codebook, 512), strict=True
            )
        ]

    monkeypatch.setattr(codebook_cost, "lane_costs", lane_costs)
    rows, table = nuuq.bench(silent)
    assert [row["levels"] for row in rows] == [2, 3, 4, 5, 8, 16]
    assert "| 4 | 4 | -7 -2 2 7 | 2 / 2 | 4 / 512 / 2 | 4 / 514 / 2 | 4 / 1026 / 4 | 4 / 1536 / 6 |" in table
    assert "| 1.585 / 1.600 |" in table


def test_a_picture_without_matplotlib_is_an_error_before_the_work(monkeypatch):
    monkeypatch.setattr(picture, "find_spec", lambda name: None)
    with pytest.raises(SigbitError, match="Pictures need matplotlib; run: pip install 'sigbit\\[plot\\]'"):
        nuuq.bench(silent, picture="x.svg")
