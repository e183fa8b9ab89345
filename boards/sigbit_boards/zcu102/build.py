"""From a configuration to a Vivado project for the ZCU102, and from Vivado's reports to figures."""

import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

from sigbit_hw.emit import emit_grid, manifest, write_verilog
from sigbit_hw.spec.config import PRESETS

from ..errors import BuildError, TimingError
from .recorder import Recorder, check_constraints, verilog_modules

__all__ = [
    "CLOCK_MHZ",
    "VIVADO_VERSIONS",
    "check_zcu102",
    "find_vivado",
    "read_zcu102_reports",
    "run_vivado",
    "write_zcu102",
]

#: Instances of the block design above the accelerator, as Vivado names them.
INSTANCES = ("sigbit_system_wrapper", "sigbit_system_i", "accelerator", "inst")
PART = "xczu9eg-ffvb1156-2-e"
#: 1500 MHz of the I/O PLL divided by 7.5 and more; what a placed design reaches is not known.
CLOCK_MHZ = 200
SWEEP_MHZ = (150, 200, 250, 300, 350)
VIVADO_VERSIONS = ("2022.2", "2023.2", "2024.1", "2024.2")
_FAMILY = "ultrascale+"
_SCRIPTS = ("build.tcl", "package_ip.tcl", "block_design.tcl", "out_of_context.tcl")
#: Rows of report_utilization, and what the estimates call them.
_ROWS = {"lut": "CLB LUTs", "ff": "CLB Registers", "bram": "Block RAM Tile", "dsp": "DSPs"}


def write_zcu102(folder, config=None, clock_mhz=CLOCK_MHZ, jobs=2, progress=None):
    """Write everything that Vivado needs, for this machine or another one, and check it.

    Parameters
    ----------
    folder : path
        Created.
    config : AcceleratorConfig, optional
        The preset ``zcu102``.
    clock_mhz : int
        Of processing system's clock 0, on which everything runs.
    jobs : int
        Processes of Vivado.
    progress : callable, optional
        Called with a line of text.

    Returns
    -------
    dict
        ``folder``, ``files``, ``commands`` (how many the recorder saw), ``configuration_hash``, ``clock_mhz``.

    Raises
    ------
    :exc:`BuildError`
        If the folder cannot be written, or a script would fail; also if Python has no Tcl to check them with.
    """
    say = progress or (lambda line: None)
    config = PRESETS["zcu102"] if config is None else config
    folder = Path(folder)
    say(f"generating {config.mac_lanes} MAC lanes, {config.weight_format} x {config.activation_format}")
    write_verilog(config, folder, _FAMILY)
    values = manifest(config) | {
        "board": {"name": "zcu102", "part": PART, "clock_mhz": clock_mhz, "vivado_versions": list(VIVADO_VERSIONS)}
    }
    settings = {
        "part": PART,
        "configuration_hash": values["configuration_hash"],
        "stream_bits": config.stream_bits,
        "clock_mhz": clock_mhz,
        "sweep_mhz": " ".join(map(str, SWEEP_MHZ)),
        "jobs": jobs,
        "vivado_versions": " ".join(VIVADO_VERSIONS),
    }
    texts = {
        "manifest.json": json.dumps(values, indent=2) + "\n",
        "settings.tcl": "# Written by sigbit build zcu102.\n"
        + "".join(f"set sigbit({key}) {{{value}}}\n" for key, value in settings.items()),
        "sigbit_grid.v": emit_grid(config, _FAMILY),
        "sigbit_ooc.xdc": _clock("aclk", clock_mhz),
        "sigbit_grid_ooc.xdc": _clock("clk", clock_mhz),
        **{name: (files(__package__) / name).read_text() for name in _SCRIPTS},
    }
    try:
        for name, text in texts.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise BuildError(f"Cannot write the build to {folder}: {error.strerror}") from error
    say("checking the scripts")
    commands = check_zcu102(folder)
    return {
        "folder": str(folder),
        "files": sorted(["sigbit.v", *texts]),
        "commands": commands,
        "configuration_hash": values["configuration_hash"],
        "clock_mhz": clock_mhz,
    }


def _clock(port, clock_mhz):
    return (
        "# Out of context: in the block design the processing system's clock is constrained by its own IP.\n"
        f"create_clock -name {port} -period {1e3 / clock_mhz:.3f} [get_ports {port}]\n"
    )


def check_zcu102(folder):
    """Run the scripts of a folder under the recorder, and look for what the constraints name.

    Returns the number of Vivado commands that were checked.

    Raises
    ------
    :exc:`BuildError`
        If a script would fail, in words.
    """
    folder = Path(folder)
    values = json.loads((folder / "manifest.json").read_text())
    problems = [
        f"{constraints}, {problem}"
        for source, module, constraints in (
            ("sigbit.v", "sigbit", "sigbit_ooc.xdc"),
            ("sigbit_grid.v", "sigbit_grid", "sigbit_grid_ooc.xdc"),
        )
        for problem in check_constraints(
            (folder / constraints).read_text(), verilog_modules((folder / source).read_text())[module]
        )
    ]
    if problems:
        raise BuildError("; ".join(problems))
    runs = [Recorder(folder, values).run(script) for script in ("build.tcl", "out_of_context.tcl")]
    for script, run in zip(("build.tcl", "out_of_context.tcl"), runs, strict=True):
        if run.exit_status != 0:
            raise BuildError(f"{script} ends with exit status {run.exit_status}: {' '.join(run.output)}")
    return sum(len(run.calls) for run in runs)


def find_vivado():
    """Path of Vivado.

    Raises
    ------
    :exc:`BuildError`
        If it is not on PATH, with what to do.
    """
    vivado = shutil.which("vivado")
    if vivado is None:
        raise BuildError(
            f"Vivado is not on PATH. These scripts were designed for Vivado {', '.join(VIVADO_VERSIONS)}, with a paid "
            "licence or the trial, which the ZU9EG needs: source its settings64.sh, or write everything for another "
            "machine with: sigbit build zcu102 --scripts-only"
        )
    return vivado


def run_vivado(folder, progress=None):
    """Build what :func:`write_zcu102` wrote.

    Returns
    -------
    dict
        As :func:`read_zcu102_reports`, with ``bitstream``.

    Raises
    ------
    :exc:`BuildError`
        If Vivado is missing or fails.
    :exc:`TimingError`
        If the clock is missed.
    """
    command = [find_vivado(), "-mode", "batch", "-nojournal", "-source", "build.tcl"]
    if progress:
        progress("Vivado: synthesis, placement, routing; hours (vivado.log)")
    folder = Path(folder)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    said = [line for line in done.stdout.splitlines() if line.startswith("sigbit: ")]
    if done.returncode:
        words = said[-1].removeprefix("sigbit: ") if said else f"exit status {done.returncode}; see {folder}/vivado.log"
        kind = TimingError if "timing is missed" in words else BuildError
        raise kind(f"Vivado did not build the accelerator: {words}")
    return read_zcu102_reports(folder) | {"bitstream": str(folder / "sigbit.bit")}


def read_zcu102_reports(folder):
    """Figures of Vivado's reports, in the units of the Yosys estimates.

    Returns
    -------
    dict
        ``board``, ``tool``, ``configuration_hash``, ``mac_lanes``; ``lut``, ``ff``, ``bram`` (36 Kb), ``dsp``, each
        with ``..._available``; ``clock_mhz`` (asked for), ``slack_ns`` (worst setup), ``hold_slack_ns``, ``fmax_mhz``
        (clock at which the worst path would just fit), ``watts`` (estimated by Vivado).

    Raises
    ------
    :exc:`BuildError`
        If a report is missing or not what Vivado writes, naming it.
    """
    folder = Path(folder)
    texts = {}
    for name in ("manifest.json", "reports/utilization.rpt", "reports/timing.rpt", "reports/power.rpt"):
        try:
            texts[name] = (folder / name).read_text()
        except OSError as error:
            raise BuildError(f"Cannot read {folder / name}: {error.strerror}; it is written by build.tcl") from error

    def find(pattern, name):
        match = re.search(pattern, texts[name], re.MULTILINE)
        if match is None:
            raise BuildError(f"{folder / name} is not a report that is understood: {pattern!r} is not in it")
        return match

    values = json.loads(texts["manifest.json"])
    figures: dict = {}
    utilization = "reports/utilization.rpt"
    for key, row in _ROWS.items():
        # | name | used | fixed | (prohibited |) available | percent |
        cells = find(rf"^\| *{row}\*? *\|(.*)\|$", utilization)[1].split("|")
        figures |= {key: _number(cells[0]), f"{key}_available": _number(cells[-2])}
    summary = find(r"WNS\(ns\).*\n[\s-]*\n\s*(-?[\d.]+)\s+-?[\d.]+\s+\d+\s+\d+\s+(-?[\d.]+)", "reports/timing.rpt")
    slack, hold = float(summary[1]), float(summary[2])
    clock_mhz = values["board"]["clock_mhz"]
    return {
        "board": "zcu102",
        "tool": find(r"Vivado v\.?\s*([\d.]+)", utilization)[0].replace("v.", ""),
        "configuration_hash": values["configuration_hash"],
        "mac_lanes": values["mac_lanes"],
        **figures,
        "clock_mhz": clock_mhz,
        "fmax_mhz": 1e3 / (1e3 / clock_mhz - slack),
        "slack_ns": slack,
        "hold_slack_ns": hold,
        "watts": float(find(r"Total On-Chip Power \(W\)\s*\|\s*([\d.]+)", "reports/power.rpt")[1]),
    }


def _number(text):
    value = float(text)
    return int(value) if value.is_integer() else value
