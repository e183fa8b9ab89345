"""How wide a grid of every cell may be on a ZU9EG, by the ledger."""

from dataclasses import replace

from sigbit_hw.spec.config import MEMORY_LUTS, PRESETS
from sigbit_hw.spec.formats import Format

from ..performance import CLOCKS_MHZ
from .table import markdown

__all__ = ["FIT_CASES", "bench"]

#: Share of the device's look-up tables that an accelerator may take.
SHARE = 0.8
#: Look-up tables that may be memory where others on the board take the rest.
FEW_MEMORY_LUTS = 60_000
#: Cell, weight and activation format, look-up tables that may be memory, and whether logic cells may take columns.
FIT_CASES = (
    ("logic", "esb:4,2", "esbu:3,2", MEMORY_LUTS, False),
    ("table", "esb:4,2", "esbu:3,2", MEMORY_LUTS, False),
    ("logic", "esb:4,2", "esbu:4,2", MEMORY_LUTS, False),
    ("table", "esb:4,2", "esbu:4,2", MEMORY_LUTS, False),
    ("logic", "int:4", "uint:4", MEMORY_LUTS, False),
    ("subset", "int:4", "uint:4", MEMORY_LUTS, False),
    ("subset", "int:8", "uint:4", MEMORY_LUTS, False),
    ("subset", "int:8", "uint:8", MEMORY_LUTS, False),
    ("table", "esb:4,2", "esbu:4,2", FEW_MEMORY_LUTS, False),
    ("table", "esb:4,2", "esbu:4,2", FEW_MEMORY_LUTS, True),
    ("subset", "int:4", "uint:4", FEW_MEMORY_LUTS, False),
    ("subset", "int:4", "uint:4", FEW_MEMORY_LUTS, True),
)

_NOTE = """\
`zcu102` with as many columns (in steps of {step}, the lanes of the post-processor) as stay under {share:.0%} of the \
look-up tables of a ZU9EG, memories, post-processor and control included, predicted by the ledger; a generator fills \
the tables of {fill_columns} columns. The device has {memory:,} look-up tables that can be memory; with {few:,} others \
on it take the rest. GOPS per 1k LUT are arithmetic at these clocks, not timing (the ESB paper reports 10.95)."""


def bench(progress):
    """Widest grids of every cell, and of two kinds where memory is short."""
    from sigbit_sim.ledger import fitting_grid, ledger

    base = PRESETS["zcu102"]
    rows = []
    for cell, weights, activations, memory, mixed in FIT_CASES:
        formats = {"weight_format": Format.parse(weights), "activation_format": Format.parse(activations)}
        config = fitting_grid(replace(base, **formats, cell=cell), SHARE, memory, mixed=mixed)
        predicted = ledger(config)
        rows.append(
            {
                "cell": cell,
                "weights": weights,
                "activations": activations,
                "memory_allowed": memory,
                "columns": config.columns,
                "logic_columns": config.logic_columns,
                "mac_lanes": config.mac_lanes,
                **{key: predicted[key] for key in ("lut", "lutram", "share")},
                **{f"gops_per_klut_{mhz}": 2 * config.mac_lanes * mhz / predicted["lut"] for mhz in CLOCKS_MHZ},
            }
        )
    table = markdown(
        rows,
        {
            "cell": lambda row: f"{row['cell']} and logic" if row["logic_columns"] else row["cell"],
            "weights": lambda row: row["weights"],
            "activations": lambda row: row["activations"],
            "memory allowed": lambda row: f"{row['memory_allowed']:,}",
            "columns": lambda row: row["columns"],
            "of logic cells": lambda row: row["logic_columns"] or "",
            "MAC lanes": lambda row: f"{row['mac_lanes']:,}",
            "LUT": lambda row: f"{row['lut']:,} ({row['share']:.0%})",
            "as memory": lambda row: f"{row['lutram']:,}",
            "GOPS/1k LUT at 200 / 250 / 300 MHz": lambda row: " / ".join(
                f"{row[f'gops_per_klut_{mhz}']:.1f}" for mhz in CLOCKS_MHZ
            ),
        },
    )
    note = _NOTE.format(
        step=base.post_lanes,
        share=SHARE,
        fill_columns=base.fill_columns,
        memory=MEMORY_LUTS,
        few=FEW_MEMORY_LUTS,
    )
    return rows, f"{table}\n\n{note}"
