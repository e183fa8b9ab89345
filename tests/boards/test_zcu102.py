"""The Vivado project: scripts run in the recording interpreter, which sees every way in which they were broken here."""

import importlib.util
import json
import shutil
from dataclasses import replace

import pytest
from sigbit_boards.errors import BuildError, TimingError
from sigbit_boards.zcu102 import check_zcu102, read_zcu102_reports, run_vivado, write_zcu102
from sigbit_boards.zcu102.recorder import Recorder, check_constraints, verilog_modules
from sigbit_hw.spec.config import PRESETS

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tkinter") is None, reason="Python has no Tcl")

CONFIG = replace(PRESETS["tiny"], stream_bits=128)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zcu102")
    return folder, write_zcu102(folder, CONFIG, clock_mhz=150)


@pytest.fixture
def folder(written, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(written[0], tmp_path / "copy")


def edit(folder, name, old, new):
    text = (folder / name).read_text()
    assert old in text, f"{name} no longer says {old!r}"
    (folder / name).write_text(text.replace(old, new))


def test_everything_that_another_machine_needs_is_written_and_checked(written):
    folder, result = written
    assert sorted(entry.name for entry in folder.iterdir()) == result["files"]
    assert set(result["files"]) == {
        *("build.tcl", "package_ip.tcl", "block_design.tcl", "out_of_context.tcl", "settings.tcl"),
        *("sigbit.v", "sigbit_grid.v", "sigbit_ooc.xdc", "sigbit_grid_ooc.xdc", "manifest.json"),
    }
    assert result["commands"] > 150
    assert json.loads((folder / "manifest.json").read_text())["board"]["clock_mhz"] == 150
    assert "period 6.667" in (folder / "sigbit_ooc.xdc").read_text()
    assert "set sigbit(stream_bits) {128}" in (folder / "settings.tcl").read_text()
    for text in (path.read_text() for path in folder.iterdir()):
        assert str(folder) not in text


def test_the_recorder_saw_the_whole_flow(folder):
    run = Recorder(folder, json.loads((folder / "manifest.json").read_text())).run("build.tcl")
    names = [name for name, _ in run.calls]
    order = ["ipx::save_core", "validate_bd_design", "open_run", "report_power", "write_bitstream", "write_hw_platform"]
    assert [name for name in names if name in order] == order
    assert ("set_property", ("-dict",)) not in run.calls
    assert run.exit_status == 0
    assert ("read_saif",) not in [call[:1] for call in run.calls]


def test_activity_is_read_where_it_was_written(folder):
    (folder / "activity.saif").write_text("(SAIFILE)")
    run = Recorder(folder, json.loads((folder / "manifest.json").read_text())).run("build.tcl")
    assert "read_saif" in [name for name, _ in run.calls]


BREAKAGES = {
    "unknown command": ("build.tcl", "open_run impl_1", "open_ran impl_1", "no command open_ran"),
    "unknown option": ("build.tcl", "write_bitstream -force", "write_bitstream -forse", "unknown option -forse"),
    "option without value": (
        "build.tcl",
        "-report_unconstrained -file [file join $reports timing.rpt]",
        "-file",
        "value",
    ),
    "undefined variable": ("build.tcl", "$sigbit(jobs)", "$sigbit(job)", "can't read"),
    "missing file": ("package_ip.tcl", "$here sigbit.v", "$here sigbut.v", "there is no file .*sigbut.v"),
    "missing top": ("package_ip.tcl", "set_property top sigbit ", "set_property top sigbut ", "no module sigbut"),
    "unknown property": ("block_design.tcl", "PSU__USE__IRQ0", "PSU__USE__IRQ_0", "no property CONFIG.PSU__USE__IRQ_0"),
    "unknown DMA parameter": ("block_design.tcl", "c_include_sg 0", "c_includ_sg 0", "no property CONFIG.c_includ_sg"),
    "value that is no number": ("block_design.tcl", "c_addr_width 40", "c_addr_width wide", "must be a number"),
    "unknown IP": ("block_design.tcl", "xilinx.com:ip:axi_intc", "xilinx.com:ip:axi_int", "there is no IP"),
    "scatter-gather on": ("block_design.tcl", "c_include_sg 0", "c_include_sg 1", "axi_dma/M_AXI_SG is not connected"),
    "stream left open": (
        "block_design.tcl",
        "bus accelerator/m_axis axi_dma/S_AXIS_S2MM",
        "",
        "m_axis is not connected",
    ),
    "clock left open": ("block_design.tcl", "axi_dma/m_axi_s2mm_aclk", "", "axi_dma/m_axi_s2mm_aclk is not connected"),
    "reset left open": ("block_design.tcl", "accelerator/aresetn", "", "accelerator/aresetn is not connected"),
    "interrupt left open": ("block_design.tcl", "wire accelerator/irq interrupts/In0", "", "In0 is not connected"),
    "interrupt controller without output": ("block_design.tcl", "C_IRQ_CONNECTION 1", "C_IRQ_CONNECTION 0", "no pin"),
    "two drivers": (
        "block_design.tcl",
        "wire ps/pl_resetn0 reset/ext_reset_in",
        "wire ps/pl_resetn0 reset/ext_reset_in reset/peripheral_aresetn",
        "drive one net",
    ),
    "clock on a reset": ("block_design.tcl", "reset/slowest_sync_clk ", "reset/ext_reset_in ", "on one net"),
    "two masters": (
        "block_design.tcl",
        "accelerator/m_axis axi_dma/S_AXIS_S2MM",
        "accelerator/m_axis axi_dma/M_AXIS_MM2S",
        "both masters",
    ),
    "stream on memory": (
        "block_design.tcl",
        "accelerator/m_axis axi_dma/S_AXIS_S2MM",
        "accelerator/m_axis ps/S_AXI_HP1_FPD",
        "is axis",
    ),
    "address forgotten": (
        "block_design.tcl",
        "assign_bd_address -offset 0xA0010000 -range 64K -target_address_space [get_bd_addr_spaces ps/Data] \\\n"
        "    [get_bd_addr_segs accelerator/s_axil/reg0]",
        "",
        "accelerator/s_axil/reg0 has no address in ps/Data",
    ),
    "addresses overlap": ("block_design.tcl", "0xA0010000", "0xA0000000", "overlap"),
    "address not aligned": ("block_design.tcl", "0xA0010000", "0xA0018000", "not aligned"),
    "range too small": ("block_design.tcl", "-offset 0xA0010000 -range 64K", "-offset 0xA0010000 -range 128", "needs"),
    "memory of the other port": (
        "block_design.tcl",
        "ps/SAXIGP2/HP0_DDR_LOW",
        "ps/SAXIGP3/HP1_DDR_LOW",
        "does not reach",
    ),
    "port not enabled": (
        "block_design.tcl",
        "PSU__USE__S_AXI_GP3 1",
        "PSU__USE__S_AXI_GP3 0",
        "no interface ps/S_AXI_HP1",
    ),
    "DMA stream too narrow": (
        "block_design.tcl",
        "c_m_axis_mm2s_tdata_width $sigbit(stream_bits)",
        "c_m_axis_mm2s_tdata_width 32",
        "bits of TDATA",
    ),
    "bus without clock": (
        "package_ip.tcl",
        "foreach bus {s_axis m_axis s_axil}",
        "foreach bus {s_axis m_axis}",
        "no clock is associated with s_axil",
    ),
    "bus that is not there": ("package_ip.tcl", "foreach bus {s_axis", "foreach bus {x_axis", "no bus x_axis"),
    "constraint on no port": ("sigbit_ooc.xdc", "get_ports aclk", "get_ports clk", "there is no port clk"),
    "constraint of the grid": ("sigbit_grid_ooc.xdc", "get_ports clk", "get_ports aclk", "there is no port aclk"),
    "clock of the sweep": ("out_of_context.tcl", "[get_ports clk]", "[get_ports clock]", "there is no port clock"),
    "design not validated": ("block_design.tcl", "validate_bd_design", "", "was not validated"),
    "manifest of other streams": (
        "manifest.json",
        '"stream_bits": 128',
        '"stream_bits": 256',
        "the manifest's streams have 256",
    ),
    "manifest of another clock": ("manifest.json", '"clock_mhz": 150', '"clock_mhz": 100', "the manifest's is 100 MHz"),
    "port renamed in the Verilog": ("sigbit.v", "s_axis_tready", "s_axis_ready", "no bus s_axis"),
}


@pytest.mark.parametrize("what", BREAKAGES)
def test_a_broken_script_is_refused(folder, what):
    name, old, new, message = BREAKAGES[what]
    edit(folder, name, old, new)
    with pytest.raises(BuildError, match=message):
        check_zcu102(folder)


def test_the_place_of_an_error_is_named(folder):
    edit(folder, "block_design.tcl", "validate_bd_design\n", "validate_bd\n")
    with pytest.raises(BuildError, match=r"block_design\.tcl line \d+, build\.tcl line \d+: Vivado has no command"):
        check_zcu102(folder)


@pytest.mark.parametrize(("delay", "kind"), [("max", "setup"), ("min", "hold")])
def test_a_missed_clock_ends_with_a_sentence_and_without_a_bitstream(folder, delay, kind):
    values = json.loads((folder / "manifest.json").read_text())
    run = Recorder(folder, values, slack_ns={delay: -0.25}).run("build.tcl")
    assert run.exit_status == 1
    assert f"worst {kind} slack is -0.25 ns at 150 MHz" in run.output[-1]
    names = [name for name, _ in run.calls]
    assert "report_timing_summary" in names
    assert "write_bitstream" not in names


@pytest.mark.parametrize("step", ["synth_1", "impl_1"])
def test_a_failed_run_ends_the_build(folder, step):
    run = Recorder(folder, json.loads((folder / "manifest.json").read_text()), runs={step: "0%"}).run("build.tcl")
    assert run.exit_status == 1
    assert f"{step}/runme.log" in run.output[-1]
    assert "open_run" not in [name for name, _ in run.calls]


def test_without_vivado_it_says_which_versions_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"Vivado is not on PATH\. .* 2024\.1.*--scripts-only"):
        run_vivado(tmp_path)


def vivado(folder, words, status):
    """A program that says and does what Vivado would at the end."""
    program = folder / "vivado"
    program.write_text(f"#!/bin/sh\necho '{words}'\nexit {status}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (
            "sigbit: timing is missed: worst setup slack is -1 ns",
            TimingError,
            "accelerator: timing is missed: worst setup",
        ),
        ("sigbit: synthesis failed; see runme.log", BuildError, "synthesis failed"),
        ("ERROR: [Common 17-53]", BuildError, r"exit status 1; see .*vivado\.log"),
    ],
)
def test_what_vivado_says_is_the_error(folder, monkeypatch, words, kind, message):
    vivado(folder, words, 1)
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(kind, match=message):
        run_vivado(folder)


def test_a_build_that_went_well_gives_figures(folder, monkeypatch):
    vivado(folder, "sigbit: wrote sigbit.bit", 0)
    monkeypatch.setenv("PATH", str(folder))
    reports(folder)
    result = run_vivado(folder)
    assert result["bitstream"] == str(folder / "sigbit.bit")
    assert result["lut"] == 200123


@pytest.mark.skipif(importlib.util.find_spec("pyslang") is None, reason="pyslang is not installed")
def test_slang_elaborates_the_verilog_of_the_grid(written):
    from pyslang.ast import Compilation
    from pyslang.syntax import SyntaxTree

    compilation = Compilation()
    text = (written[0] / "sigbit_grid.v").read_text()
    compilation.addSyntaxTree(SyntaxTree.fromText(text))
    errors = [(str(each.code), *each.args) for each in compilation.getAllDiagnostics() if each.isError()]
    # Vivado knows the device's cells, slang does not.
    assert set(errors) <= {("DiagCode(UnknownModule)", cell) for cell in ("LUT6", "LUT6_2", "MUXF7", "MUXF8", "MUXF9")}
    (top,) = compilation.getRoot().topInstances
    # What the constraints were checked against is what a real front end sees.
    assert {port.name for port in top.body.portList} == set(verilog_modules(text)["sigbit_grid"])


def test_constraints_may_name_ports_only():
    ports = {"clk": ("input", 1)}
    assert check_constraints("create_clock [get_ports clk]\n# [get_ports x]\n", ports) == []
    assert check_constraints("a [get_ports {rst}]\n", ports) == ["line 1: there is no port rst"]
    assert "get_cells" in check_constraints("a [get_cells u1]\n", ports)[0]


UTILIZATION = """\
| Tool Version : Vivado v.2024.1 (lin64) Build 5076996
1. CLB Logic
+----------------------------+--------+-------+------------+-----------+-------+
|          Site Type         |  Used  | Fixed | Prohibited | Available | Util% |
+----------------------------+--------+-------+------------+-----------+-------+
| CLB LUTs                   | 200123 |     0 |          0 |    274080 | 73.02 |
|   LUT as Logic             | 190000 |     0 |          0 |    274080 | 69.32 |
| CLB Registers              | 350001 |     0 |          0 |    548160 | 63.85 |
| Block RAM Tile    | 715.5 |     0 |          0 |       912 | 78.45 |
| DSPs      |    0 |     0 |          0 |      2520 |  0.00 |
"""
TIMING = """\
| Design Timing Summary
    WNS(ns)      TNS(ns)  TNS Failing Endpoints  TNS Total Endpoints      WHS(ns)      THS(ns)
    -------      -------  ---------------------  -------------------      -------      -------
      0.125        0.000                      0               900000        0.010        0.000
"""
POWER = "| Total On-Chip Power (W)  | 12.345       |\n"


def reports(folder, timing=TIMING):
    (folder / "reports").mkdir(exist_ok=True)
    for name, text in (("utilization", UTILIZATION), ("timing", timing), ("power", POWER)):
        (folder / "reports" / f"{name}.rpt").write_text(text)


def test_reports_become_figures_in_the_units_of_the_estimates(folder):
    reports(folder)
    figures = read_zcu102_reports(folder)
    assert {key: figures[key] for key in ("lut", "ff", "bram", "dsp", "watts", "slack_ns", "hold_slack_ns")} == {
        "lut": 200123,
        "ff": 350001,
        "bram": 715.5,
        "dsp": 0,
        "watts": 12.345,
        "slack_ns": 0.125,
        "hold_slack_ns": 0.01,
    }
    assert figures["fmax_mhz"] == pytest.approx(1e3 / (1e3 / 150 - 0.125))
    assert (figures["lut_available"], figures["bram_available"]) == (274080, 912)
    assert figures["tool"] == "Vivado 2024.1"


def test_a_missed_clock_lowers_the_one_reached(folder):
    reports(folder, TIMING.replace("0.125", "-1.000"))
    assert read_zcu102_reports(folder)["fmax_mhz"] == pytest.approx(1e3 / (1e3 / 150 + 1))


def test_a_report_that_is_missing_or_another_is_named(folder):
    with pytest.raises(BuildError, match=r"Cannot read .*utilization\.rpt"):
        read_zcu102_reports(folder)
    reports(folder, "nothing")
    with pytest.raises(BuildError, match=r"timing\.rpt is not a report that is understood"):
        read_zcu102_reports(folder)
