"""Structured dynamic precision and DRQ at equal look-up tables: costs of equal accuracy times what a lane costs."""

from typing import Any

from .table import markdown

__all__ = ["NOTE", "area_rows", "area_table"]

#: Stall models of DRQ -> depth of the FIFOs that they need.
_FIFOS = {"M0": None, "M1": None, "M2(4)": 4, "M2(16)": 16}

NOTE = """\
The costs above at equal look-up tables: cycles per MAC times look-up tables. A token lane of SDP has {lane:.1f}, with \
its share of the cell, the masking unit and the compactor, at {columns} columns. A 4x4 multiplier of DRQ has \
{lockstep:.1f}: its element ({element}; rounding and control are free) and its share of the predictors ({predictor} \
per channel); with FIFOs of 4 between rows {fifo:.1f}. M0 has no FIFOs. Flip-flops are not counted."""


def area_rows(matches, size, config):
    """Rows ``area``: look-up tables times cycles per product, of both at every goal of the rows ``match``."""
    from sigbit_sim.drq_cost import drq_cost

    drq = drq_cost()
    lanes = config.rows * config.columns * config.planes * config.token_lanes
    lane = (size["masking_lut"] + size["cells_lut"]) / lanes
    element = {model: drq["lockstep"] if depth is None else drq["elastic"][depth] for model, depth in _FIFOS.items()}
    rows = []
    for match in matches:
        # A token lane counts as two 4x4 multipliers there.
        found: dict[str, Any] = {"SDP": None if match["SDP"] is None else match["SDP"] / 2 * lane}
        found |= {model: None if match[model] is None else match[model] * lut for model, lut in element.items()}
        real = {model: found[model] for model in _FIFOS if model != "M0" and found[model] is not None}
        best = min(real, key=real.__getitem__, default=None)
        rows.append({"kind": "area", "goal": match["goal"], **found, "realisable": best, "lane": lane, "drq": drq})
    return rows


def area_table(rows, gain, config):
    """Table and note; ``gain`` writes how much less the second of two numbers is."""

    def number(value):
        return "-" if value is None else f"{value:.0f}"

    drq = rows[0]["drq"]
    table = markdown(
        rows,
        {
            "LUT cycles at": lambda row: row["goal"],
            "SDP": lambda row: number(row["SDP"]),
            "DRQ M0": lambda row: number(row["M0"]),
            "best of M1, M2": lambda row: (
                "-" if row["realisable"] is None else f"{number(row[row['realisable']])} {row['realisable']}"
            ),
            "gain against M0": lambda row: gain(row["M0"], row["SDP"]),
            "against realisable": lambda row: gain(row.get(row["realisable"]), row["SDP"]),
        },
    )
    note = NOTE.format(
        lane=rows[0]["lane"], columns=config.columns, lockstep=drq["lockstep"], element=drq["element"],
        predictor=drq["predictor"], fifo=drq["elastic"][4],
    )  # fmt: skip
    return f"{table}\n\n{note}"
