"""What tools of the boards say of placed designs, beside what Yosys counts before placement."""

from pathlib import Path

from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.errors import SigbitError

from ..boards import build, read_reports
from .table import markdown

__all__ = ["bench"]

_NOTE = """\
Mapped: cells that Yosys counts before placement. Placed: what place and route used and timed, at the slowest corner \
that its timing model has; the clock reached is that of the worst path between registers. Block RAM in units of 36 Kb \
(UltraScale+) or 18 Kb (ECP5), LUTs of six inputs or of four. The ULX3S row is a real bitstream with PLL, serial link \
and accelerator. The ZCU102 has a row of Vivado where its reports are at hand; without one no clock of it is known."""


def bench(progress, builds="build"):
    """Utilisation and clocks of the boards; builds the ULX3S if it was not built."""
    from sigbit_sim.estimate import estimate

    folder = Path(builds)
    rows = []
    try:
        placed = read_reports("ulx3s", folder / "ulx3s")
    except SigbitError:
        progress("building the ULX3S, which takes minutes")
        placed = build("ulx3s", folder / "ulx3s", progress=progress)
    rows.append(
        {"board": "ulx3s", "state": "mapped", "tool": "Yosys", "mac_lanes": placed["mac_lanes"], **placed["mapped"]}
    )
    rows.append({"state": "placed", **placed})
    progress("zcu102: synthesizing every module")
    config = PRESETS["zcu102"]
    figures = estimate(config)
    rows.append(
        {"board": "zcu102", "state": "mapped", "tool": "Yosys", "mac_lanes": config.mac_lanes}
        | {key: figures[key] for key in ("lut", "ff", "bram", "dsp")}
    )
    if (folder / "zcu102" / "reports" / "timing.rpt").exists():
        rows.append({"state": "placed", **read_reports("zcu102", folder / "zcu102")})

    def counted(key):
        def text(row):
            share = f" ({row[key] / row[f'{key}_available']:.0%})" if f"{key}_available" in row else ""
            return f"{row[key]:,.10g}{share}"

        return text

    def number(key, form):
        return lambda row: format(row[key], form) if key in row else ""

    table = markdown(
        rows,
        {
            "board": lambda row: row["board"],
            "MAC lanes": lambda row: str(row["mac_lanes"]),
            "state": lambda row: row["state"],
            "tool": lambda row: row["tool"],
            "LUT": counted("lut"),
            "FF": counted("ff"),
            "block RAM": counted("bram"),
            "DSP": counted("dsp"),
            "MHz asked for": number("clock_mhz", "g"),
            "MHz reached": number("fmax_mhz", ".1f"),
            "slack ns": number("slack_ns", ".2f"),
            "W": number("watts", ".1f"),
        },
    )
    return rows, f"{table}\n\n{_NOTE}"
