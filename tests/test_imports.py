"""Who may import whom (docs/architecture.md): read from the source, so that a lazy import counts too."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What the modules of a part may import from this project and from outside; the first matching part counts.
NUMBERS = {"numpy"}
GATEWARE = {"amaranth"}
RULES = [
    ("sigbit_hw.spec", {"sigbit_hw.spec"}, set()),
    ("sigbit_hw.lib", {"sigbit_hw.spec", "sigbit_hw.lib"}, GATEWARE),
    ("sigbit_hw.arith", {"sigbit_hw.spec", "sigbit_hw.lib", "sigbit_hw.arith"}, GATEWARE),
    ("sigbit_hw.array", {"sigbit_hw.spec", "sigbit_hw.lib", "sigbit_hw.arith", "sigbit_hw.array"}, GATEWARE),
    ("sigbit_hw.memory", {"sigbit_hw.spec", "sigbit_hw.lib", "sigbit_hw.memory"}, GATEWARE),
    ("sigbit_hw.bus", {"sigbit_hw.spec", "sigbit_hw.lib", "sigbit_hw.bus"}, GATEWARE),
    (
        "sigbit_hw.control",
        {"sigbit_hw.spec", "sigbit_hw.lib", "sigbit_hw.memory", "sigbit_hw.bus", "sigbit_hw.control"},
        GATEWARE,
    ),
    ("sigbit_hw", {"sigbit_hw"}, GATEWARE),
    ("sigbit_sim.golden", {"sigbit_hw.spec", "sigbit_sim.golden"}, NUMBERS),
    ("sigbit_sim", {"sigbit_hw", "sigbit_sim"}, NUMBERS | GATEWARE | {"cocotb", "cocotb_tools", "cocotbext"}),
    (
        "sigbit_boards",
        {"sigbit_boards", "sigbit_hw.spec", "sigbit_hw.emit"},
        GATEWARE | {"amaranth_boards", "tkinter"},
    ),
    (
        "sigbit",
        {"sigbit", "sigbit_hw.spec", "sigbit_hw.emit", "sigbit_sim", "sigbit_boards"},
        NUMBERS | {"onnx", "torch", "sklearn", "matplotlib", "pynq", "serial"},
    ),
]
STANDARD = set(__import__("sys").stdlib_module_names)


def modules():
    for folder in ("hw", "sim", "sw", "boards"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield pytest.param(path, folder, id=str(path.relative_to(ROOT)))


def imported(path, folder):
    parts = path.relative_to(ROOT / folder).with_suffix("").parts
    package = parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            module = (base + (node.module or "")).rstrip(".")
            if node.module or not node.level:
                yield module
            else:
                yield from (f"{module}.{alias.name}" for alias in node.names)


def within(name, allowed):
    return any(name == part or name.startswith(part + ".") for part in allowed)


@pytest.mark.parametrize(("path", "folder"), list(modules()))
def test_a_module_imports_only_what_its_part_may(path, folder):
    own = ".".join(path.relative_to(ROOT / folder).with_suffix("").parts)
    _, project, outside = next(rule for rule in RULES if within(own, [rule[0]]))
    for name in imported(path, folder):
        top = name.split(".")[0]
        if top in ("sigbit", "sigbit_hw", "sigbit_sim", "sigbit_boards"):
            assert within(name, project), f"{own} must not import {name}"
        else:
            assert top in STANDARD | outside, f"{own} must not import {name}"
