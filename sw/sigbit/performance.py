"""Where the cycles of a network go on an accelerator, layer by layer: predicted, and measured in RTL."""

import numpy as np
from sigbit_hw.spec.packets import HEADER, Kind
from sigbit_sim.golden import network as golden

from .compiler import compile
from .device import DeviceError, open_device
from .evaluation import differing, layer_report, token_counters
from .session import Session

__all__ = ["CLOCKS_MHZ", "REPORT_DEVICES", "frames_per_second", "measure", "report"]

#: Clocks at which frames per second are arithmetic; no tool has timed the design.
CLOCKS_MHZ = (200, 250, 300)
REPORT_DEVICES = ("model", "rtl")

#: What a layer can be bound by, and where its cycles stand.
_BOUNDS = {
    "compute": "compute_cycles",
    "weight load": "weight_stalls",
    "post-processor": "post_stalls",
    "pooling": "pool_cycles",
    "output": "output_cycles",
    "stream": "stream_waits",
}


def report(network, config, *, device="model", images=1, batch=1, seed=0, progress=None):
    """Geometry, formats, cost and cycles of every layer. How long a program takes does not depend on its data.

    Parameters
    ----------
    network : IntegerNetwork
    config : AcceleratorConfig
    device : str
        ``"model"``: the cycle model (:mod:`sigbit_sim.cycles`) alone; ``"rtl"``: random images run in simulation, too.
    images : int
        Images that follow each other; cycles are those of all of them. Groups are filled up.
    batch : int
        Images in a group, as in :func:`~sigbit.compiler.compile`.
    seed : int
        Of the random images.
    progress : callable, optional
        Called with a line of text, or with text, number done and total.

    Returns
    -------
    dict
        ``configuration``, ``mac_lanes``, ``resources`` (:func:`sigbit_sim.ledger.ledger`), ``images``, ``batch``,
        ``device``, ``layers``, ``output`` (sending the result), ``total`` and ``mismatches`` (images of which any
        output differs from the golden model; None without RTL). Layers have what
        :func:`~sigbit.evaluation.layer_report` says, and

        * ``kind``, ``input_shape``, ``kernel``, ``stride``, ``groups``;
        * ``passes`` (native passes over the weights and activations), ``weight_bytes`` (of ``weight_words``);
        * ``predicted`` and ``measured`` (None without RTL): ``total`` cycles, and the performance counters by name. The
          prediction also has ``stream_waits`` and ``sequencer``, the cycles that no counter counts;
        * ``tokens`` (:func:`~sigbit.evaluation.token_counters` of the measurement; None without, or without masked
          cells);
        * ``utilisation``: part products over lanes and total cycles, of the measurement if there is one;
        * ``bound_by``: what most of the predicted cycles go to; None for a layer that takes none.

        ``total`` sums them up and has ``cycles_per_image``, ``frames_per_second`` by clock in MHz (arithmetic, not
        timing), ``convolutions`` (the part products of convolutions, what share of the lanes' cycles they are in all
        layers that are not fully connected) and ``bytes`` sent per image by kind of packet, and once (``setup``).

    Raises
    ------
    :exc:`~sigbit_hw.spec.errors.SigbitError`
        If the network does not fit the configuration, or the simulation fails.
    """
    from sigbit_sim.cycles import predict
    from sigbit_sim.ledger import ledger

    if device not in REPORT_DEVICES:
        raise DeviceError(f"Unknown device {device!r}; expected {' or '.join(REPORT_DEVICES)}")
    program = compile(network, config, batch)
    images = program.groups(images) * batch
    predicted = predict(program, images)
    measured = mismatches = None
    if device == "rtl":
        levels = _random_levels(network, images, seed)
        measured, outputs = measure(program, levels, progress)
        mismatches = len(differing(outputs, golden.run(network, levels)))
    rows = []
    for index, (layer, row) in enumerate(zip(network.layers, layer_report(network, config, program), strict=True)):
        rows.append({**_geometry(network, layer), **row, **_cycles(row, config, images, index, predicted, measured)})
    total = {key: sum(row[key] for row in rows) for key in ("macs", "part_products", "tiles", "weight_words")}
    total["weight_bytes"] = sum(row["weight_bytes"] for row in rows)
    total |= _cycles(total, config, images, None, predicted, measured)
    best = total["measured"] or total["predicted"]
    total["cycles_per_image"] = best["total"] / images
    total["frames_per_second"] = frames_per_second(best["total"], images)
    total["convolutions"] = _convolutions(network, rows, config, images)
    total["bytes"] = _bytes(program)
    return {
        "configuration": config.to_dict(),
        "mac_lanes": config.mac_lanes,
        "resources": ledger(config),
        "images": images,
        "batch": batch,
        "device": device,
        "layers": rows,
        "output": {
            "predicted": _counters(predicted.output, "predicted"),
            "measured": measured and _counters(measured.output, "measured"),
        },
        "total": total,
        "mismatches": mismatches,
    }


def frames_per_second(cycles, images=1):
    """By clock in MHz."""
    return {mhz: images * mhz * 1e6 / cycles for mhz in CLOCKS_MHZ}


def measure(program, levels, progress=None):
    """Run images in RTL simulation; the counters of every layer, and the outputs.

    Parameters
    ----------
    program : Program
    levels : int array, ``(N, channels, height, width)``
    progress : callable, optional

    Returns
    -------
    :class:`~sigbit_sim.cycles.Prediction`, int64 array
        As predicted, but without ``stream_waits``, which no counter counts, and with ``valid_tokens``.
    """
    from sigbit_sim.cycles import attribute, marks

    say = progress or (lambda *arguments: None)
    device = open_device("rtl", program.config, progress)
    with Session(device, program) as session:
        device.model.mark(marks(program, len(levels)))
        outputs = session.run(levels, lambda done: say("rtl: images", done, len(levels)))
    snapshots = device.model.snapshots()
    return attribute(program, [dict.fromkeys(snapshots[0], 0), *snapshots]), outputs


def _random_levels(network, count, seed):
    source = network.tensors[network.input]
    levels = np.array(source.format.levels)
    return np.random.default_rng(seed).choice(levels, (count, source.channels, source.height, source.width))


def _geometry(network, layer):
    source = network.tensors[layer.input]
    convolution = isinstance(layer, golden.Convolution)
    return {
        "kind": type(layer).__name__,
        "input_shape": (source.channels, source.height, source.width),
        "kernel": tuple(layer.weights.shape[2:] if convolution else getattr(layer, "kernel", (1, 1))),
        "stride": tuple(getattr(layer, "stride", (1, 1))),
        "groups": layer.groups if convolution else None,
    }


def _counters(counters, kind):
    result = {"total": counters["cycles"] + counters["idle_cycles"], **counters}
    if kind == "predicted":
        result["sequencer"] = result["total"] - sum(counters[key] for key in _BOUNDS.values())
    return result


def _cycles(row, config, images, index, predicted, measured):
    """Cycles of a layer, or of all if ``index`` is None."""

    def own(source, kind):
        return source and _counters(source.total if index is None else source.layers[index], kind)

    counts = own(predicted, "predicted")
    shares = {**{bound: counts[key] for bound, key in _BOUNDS.items()}, "sequencer": counts["sequencer"]}
    result = {"predicted": counts, "measured": own(measured, "measured")}
    if index is not None:
        result["passes"] = row["part_products"] // row["macs"] if row["macs"] else None
        result["weight_bytes"] = row["weight_words"] * config.weight_word_bits // 8
    cycles = (result["measured"] or counts)["total"]
    slots = cycles * config.mac_lanes
    return {
        **result,
        "tokens": token_counters(result["measured"], config) if measured and config.masked else None,
        "utilisation": row["part_products"] * images / slots if slots else None,
        "bound_by": max(shares, key=shares.__getitem__) if counts["total"] else None,
    }


def _convolutions(network, rows, config, images):
    """Part products of convolutions against all cycles but those of fully connected layers."""
    useful = cycles = 0
    for layer, row in zip(network.layers, rows, strict=True):
        convolution = isinstance(layer, golden.Convolution)
        if convolution and row["output_shape"][1:] == (1, 1) and row["kernel"] == row["input_shape"][1:]:
            continue
        useful += row["part_products"] if convolution else 0
        cycles += (row["measured"] or row["predicted"])["total"]
    slots = cycles * config.mac_lanes
    return {
        "part_products": useful,
        "ideal_cycles": -(-useful // config.mac_lanes),
        "utilisation": useful * images / slots if slots else None,
    }


def _bytes(program):
    """Bytes sent per image, rounded, by kind of packet, and once per session."""
    config = program.config
    beat = config.stream_bits // 8
    names = {Kind.WEIGHTS: "weights", Kind.PARAMETERS: "parameters", Kind.INPUT: "input"}
    if config.cell == "table":
        names[Kind.LEVELS] = "levels"
    names |= {Kind.PACKING: "weights", Kind.PACKED: "weights"}
    sums = {**dict.fromkeys(names.values(), 0), "instructions": 0}
    for packet in program.image[0]:
        size = len(packet.payload)
        if packet.kind == Kind.INPUT:
            size = packet.count * config.beats_per_word(config.feature_word_bits) * beat
        sums[names.get(packet.kind, "instructions")] += size + (config.beats_per_word(HEADER.width) + 1) * beat
    sums["image"] = sum(sums.values())
    return {**{key: round(size / program.batch) for key, size in sums.items()}, "setup": sum(map(len, program.setup))}
