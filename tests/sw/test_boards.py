"""Boards from the command line and from Python: what is written, refused and measured."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest
import sigbit
from sigbit import bench
from sigbit.boards import read_reports
from sigbit.cli import main
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.errors import SigbitError


def test_the_command_line_passes_on_what_it_was_given(tmp_path, capsys, monkeypatch):
    calls = []

    def write(folder, **options):
        calls.append((folder, {key: value for key, value in options.items() if key != "progress"}))
        return {"folder": folder, "files": ["build.tcl"], "commands": 302}

    monkeypatch.setattr("sigbit_boards.zcu102.write_zcu102", write)
    arguments = ["build", "zcu102", "--scripts-only", "--config", "tiny", "--clock", "100", "--jobs", "7"]
    assert main([*arguments, "-o", str(tmp_path)]) == 0
    assert "302 Vivado commands were checked; run: vivado -mode batch -source build.tcl" in capsys.readouterr().out
    assert main(["build", "zcu102", "--scripts-only", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == ["build.tcl"]
    assert calls == [
        (str(tmp_path), {"config": PRESETS["tiny"], "clock_mhz": 100.0, "jobs": 7}),
        ("build/zcu102", {}),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zcu102"], "Vivado is not on PATH"),
        (["zcu102", "--baud", "9600"], "--baud has no effect on the ZCU102"),
        (["ulx3s", "--jobs", "2"], "--jobs has no effect on the ULX3S"),
        (["ulx3s", "--scripts-only", "--config", "tiny", "--clock", "51"], "cannot make 51 MHz"),
        (["ulx3s", "--scripts-only", "--baud", "20000000"], "at most a fourth of the clock"),
    ],
)
def test_what_cannot_be_built_is_refused_with_status_2(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["build", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "build").exists()


def test_an_unknown_board_is_refused(tmp_path):
    for call in (lambda: sigbit.build_board("de10", tmp_path), lambda: read_reports("de10", tmp_path)):
        with pytest.raises(SigbitError, match="Unknown board 'de10'; expected zcu102 or ulx3s"):
            call()


@pytest.mark.parametrize(("device", "good"), [("serial:/dev/x", True), ("pynq:overlay", True), ("usb", False)])
def test_boards_are_devices_of_the_command_line(device, good, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sigbit.session.Session.__init__", lambda *arguments: None)
    try:
        status = main(["run", str(tmp_path / "none"), "--data", "x.npz:x", "--device", device])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert ("serial:PORT" in capsys.readouterr().err) != good


def placed(board):
    cells = {"lut": 1000, "ff": 2000, "bram": 3, "dsp": 0}
    figures = {"board": board, "tool": "tool 1", "mac_lanes": 8, **cells}
    figures |= {f"{key}_available": 10_000 for key in cells}
    return figures | {"clock_mhz": 50.0, "fmax_mhz": 61.26, "slack_ns": 3.676, "mapped": {**cells, "lut": 900}}


def sources():
    """What runs where a program is executed: the host, the contract, the golden model."""
    for package in ("sigbit", "sigbit_hw.spec", "sigbit_sim.golden"):
        for folder in importlib.util.find_spec(package).submodule_search_locations:
            yield from sorted(Path(folder).rglob("*.py"))


def test_the_runtime_is_written_for_the_python_of_pynq():
    """PYNQ 3.0 has Python 3.10, which takes no stars in an index without parentheses."""
    found = []
    for path in sources():
        text = path.read_text()
        for node in ast.walk(ast.parse(text, feature_version=(3, 10))):
            if not (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple)):
                continue
            starred = any(isinstance(element, ast.Starred) for element in node.slice.elts)
            if starred and not ast.get_source_segment(text, node.slice).startswith("("):
                found.append(f"{path.name}:{node.lineno}")
    assert found == []


def test_the_bench_puts_placed_designs_beside_the_estimates(tmp_path, monkeypatch):
    asked = []

    def reports(board, folder):
        asked.append((board, folder))
        return placed(board) | ({"watts": 9.87} if board == "zcu102" else {})

    estimated = {"lut": 1234, "ff": 5, "bram": 6.5, "dsp": 0, "yosys": "0"}
    monkeypatch.setattr("sigbit.bench.boards.read_reports", reports)
    monkeypatch.setattr("sigbit_sim.estimate.estimate", lambda config: estimated)
    rows, table = bench.run_bench("boards", builds=str(tmp_path))
    assert [(row["board"], row["state"]) for row in rows] == [
        ("ulx3s", "mapped"),
        ("ulx3s", "placed"),
        ("zcu102", "mapped"),
    ]
    line = "| ulx3s | 8 | placed | tool 1 | 1,000 (10%) | 2,000 (20%) | 3 (0%) | 0 (0%) | 50 | 61.3 | 3.68 |  |"
    assert line in table
    assert "| zcu102 | 8192 | mapped | Yosys | 1,234 | 5 | 6.5 | 0 |  |  |  |  |" in table
    (tmp_path / "zcu102" / "reports").mkdir(parents=True)
    (tmp_path / "zcu102" / "reports" / "timing.rpt").write_text("")
    rows, table = bench.run_bench("boards", builds=str(tmp_path))
    assert rows[-1]["watts"] == 9.87
    assert asked[-1] == ("zcu102", tmp_path / "zcu102")


def test_the_bench_builds_what_was_not_built(tmp_path, monkeypatch):
    built = []

    def build(board, folder, progress):
        built.append((board, folder))
        return placed(board)

    monkeypatch.setattr("sigbit.bench.boards.build", build)
    monkeypatch.setattr("sigbit_sim.estimate.estimate", lambda config: placed("zcu102"))
    bench.run_bench("boards", builds=str(tmp_path))
    assert built == [("ulx3s", tmp_path / "ulx3s")]
