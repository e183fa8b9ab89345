"""Settled net toggles per useful multiplication: a proxy of energy, for circuits with data that they would have.

What a toggle is, and what the proxy leaves out, says :mod:`.mapped`; above all it is not power. A multiplication is
useful if the network has it, whatever the circuit needs for it. Every function compares what the netlist gives with the
exact results, and an error is raised if one bit differs: so what is counted is the work that was meant.
"""

import numpy as np
from sigbit_hw.arith.encode import Encoder
from sigbit_hw.arith.requantize import requantizer_class
from sigbit_hw.array.array import build_grid
from sigbit_hw.emit import emit_grid, emit_verilog
from sigbit_hw.lib.shared import emit_modules
from sigbit_hw.lib.ultrascale import ULTRASCALE
from sigbit_hw.spec.config import accumulator_width
from sigbit_hw.spec.instructions import Encoding
from sigbit_hw.spec.masks import Policy

from .drq import ROWS, SENSITIVE_CYCLES, SHORT_CYCLES, array_reads, short_activations, short_weights
from .drq_circuit import DrqElement
from .estimate import boxed
from .golden.numerics import encode, encode_half_units, half_units
from .golden.sdp import keep_masked, select
from .mapped import STREAMS, MappedCircuit, bit_rows, row_values
from .synthesis import GridBench, SynthesisError, bench_config, mapped_netlist, run_synthesis

__all__ = [
    "accelerator_toggles",
    "draw_tiles",
    "drq_toggles",
    "lane_toggles",
    "masked_toggles",
    "reduction",
    "requantizer_toggles",
]


def reduction(layer, target, levels):
    """What a convolution without groups multiplies, in the order of the array: position by position, channels fastest.

    Parameters
    ----------
    layer, target : Convolution, Tensor
        ``target`` is what it writes.
    levels : int array, ``(N, channels, height, width)``
        What it reads.

    Returns
    -------
    weights : int64 array, ``(outputs, length)``
    activations : int64 array, ``(N * pixels, length)``
    """
    outputs, channels, *kernel = layer.weights.shape
    reads = array_reads(layer, target, levels).reshape(len(levels), channels, int(np.prod(kernel)), -1)
    weights = layer.weights.transpose(0, 2, 3, 1).reshape(outputs, -1)
    return weights, reads.transpose(0, 3, 2, 1).reshape(-1, weights.shape[1])


def _same(found, expected, what):
    if not np.array_equal(found, expected):
        wrong = np.count_nonzero(np.asarray(found) != expected)
        raise SynthesisError(f"The netlist of {what} gives {wrong} of {np.size(expected)} results that are not exact")


def _sign_magnitude(levels, format):
    magnitudes = np.searchsorted(format.magnitudes, np.abs(levels))
    return (levels < 0).astype(np.int64) << format.bits - 1 | magnitudes


#: Tiles of a sum that are simulated.
_TILES = 8


def lane_toggles(weight_format, activation_format, weights, activations, lanes):
    """Toggles per multiplication of one more column of a grid of logic cells, its accumulator's adder included.

    The difference of two grids, as :func:`~.synthesis.grid_cost` has it, which also has the same circuits. ``lanes``
    activations enter per cycle; weights of a tile stay for all positions and are then replaced, which is counted, too.
    Of a long sum only some tiles are simulated, evenly spread, with what the accumulators hold by then.

    Parameters
    ----------
    weight_format, activation_format : :class:`~sigbit_hw.spec.formats.Format`
    weights : int array, ``(streams, 3, length)``
        Levels for three columns. The length is a multiple of ``lanes``, at least two times as much.
    activations : int array, ``(streams, positions, length)``
        Levels.
    lanes : int

    Returns
    -------
    float, int array
        Toggles per multiplication, and the accumulators ``(streams, positions, 3)``.
    """
    streams, columns, _ = weights.shape
    positions = activations.shape[1]
    shaped = activations.reshape(streams, positions, -1, lanes)
    tiled = weights.reshape(streams, columns, -1, lanes)
    # Sums leave the grid less the number of sign bits, which the bias makes good.
    products = np.einsum("spkl,sckl->kpcs", shaped, tiled)
    after = np.cumsum(products - (tiled < 0).sum(axis=-1).transpose(2, 1, 0)[:, np.newaxis], axis=0)
    before = np.concatenate((np.zeros_like(after[:1]), after[:-1]))
    chosen = slice(None, None, max(1, len(after) // _TILES))
    shaped, tiled, before, after = shaped[:, :, chosen], tiled[:, :, chosen], before[chosen], after[chosen]
    tiles = len(after)
    codes = encode(shaped, activation_format)
    words = _sign_magnitude(tiled, weight_format)
    toggles = {}
    for count in (columns - 1, columns):
        config = bench_config(weight_format, activation_format, lanes, count)
        bench = GridBench(config)
        timing = bench.grid.timing
        first, hold = timing.weight_lead_cycles, timing.weight_hold_cycles
        if positions < hold + first:
            raise ValueError(f"positions must be at least {hold + first}, not {positions}")
        cycles = first + tiles * positions + max(timing.latency_cycles) + 3

        steps = slice(first, first + tiles * positions)
        data = np.zeros((cycles, lanes, streams), dtype=np.int64)
        data[steps] = codes.transpose(2, 1, 3, 0).reshape(-1, lanes, streams)
        swap = np.zeros((cycles, 1, streams), dtype=np.int64)
        swap[steps][::positions] = 1
        index_bits = len(bench.weight.as_value()) - 1 - lanes * weight_format.bits
        header = np.zeros((cycles, 1, streams), dtype=np.int64)
        word = np.zeros((cycles, lanes, streams), dtype=np.int64)
        # As many words come during every tile: the last one's are never used.
        for tile in range(tiles + 1):
            push = first + (tile - 1) * positions + hold if tile else 0
            for column in range(count):
                header[push + column] = 1 | column << 1
                word[push + column] = words[:, column, tile % tiles].T
        old = np.zeros((cycles, count, streams), dtype=np.int64)
        clear = np.zeros_like(old)
        for column in range(count):
            start = first + timing.latency_cycles[column]
            old[start : start + tiles * positions, column] = before[:, :, column].reshape(-1, streams)
            clear[start : start + positions, column] = 1
        accumulator_bits = config.accumulator_bits
        circuit = MappedCircuit.synthesized(emit_modules(bench, "grid_bench", family=ULTRASCALE), "grid_bench", streams)
        inputs = {
            "codes": bit_rows(data, activation_format.bits),
            "swap": bit_rows(swap, 1),
            "weight": np.concatenate((bit_rows(header, 1 + index_bits), bit_rows(word, weight_format.bits)), axis=1),
            "clear": bit_rows(clear, 1),
            "shift": bit_rows(np.zeros_like(clear), 1),
            "old": bit_rows(old, accumulator_bits),
            "rst": bit_rows(np.zeros_like(swap), 1),
        }
        # From the second tile on, when the first one's weights have been replaced.
        found = circuit.run(inputs, ("new",), slice(first + positions, steps.stop))
        new = row_values(found["new"], accumulator_bits, streams, signed=True)
        for column in range(count):
            start = first + timing.latency_cycles[column] + 2
            _same(new[start : start + tiles * positions, column], after[:, :, column].reshape(-1, streams), "a grid")
        toggles[count] = circuit.toggles
    sums = np.einsum("spd,scd->spc", activations, weights)
    return (toggles[columns] - toggles[columns - 1]) / ((tiles - 1) * positions * lanes * streams), sums


def requantizer_toggles(activation_format, requantizer, accumulator_bits, accumulators, bias, multiplier, shift):
    """Toggles per result of one lane's requantizer and its encoder, a result per cycle.

    The circuits are those of :func:`~.synthesis.requantizer_cost`; their residual input is 0.

    Parameters
    ----------
    activation_format : :class:`~sigbit_hw.spec.formats.Format`
        Unsigned.
    requantizer, accumulator_bits
        As of :class:`~sigbit_hw.spec.config.AcceleratorConfig`.
    accumulators, bias, multiplier, shift : int arrays, ``(streams, results)``
        Parameters are of a result's channel.
    """
    streams, results = accumulators.shape
    parts = (requantizer_class(requantizer)(activation_format, accumulator_bits), Encoder(activation_format))
    netlists = [MappedCircuit.synthesized(emit_modules(part, "part"), "part", streams) for part in parts]
    delays = [part.latency_cycles for part in parts]
    cycles = 2 * results + sum(delays)

    def port(values, bits):
        """The results again and again, so that the circuits are full when the count begins and when it ends."""
        values = np.broadcast_to(values, (streams, results)).T
        return bit_rows(values[np.arange(cycles) % results, np.newaxis], bits)

    inputs = {
        "accumulator": port(accumulators, accumulator_bits),
        **{
            name: port(values, len(getattr(parts[0], name)))
            for name, values in (
                ("bias", bias), ("multiplier", multiplier), ("negative_multiplier", multiplier), ("shift", shift),
                ("unscaled", 0), ("residual", 0), ("residual_multiplier", 0),
            )
        },
        "rst": port(0, 1),
    }  # fmt: skip
    found = netlists[0].run(inputs, ("half_units", "field"), slice(results + delays[0], 2 * results + delays[0]))
    expected = half_units(accumulators, bias, multiplier, shift)
    limit = 1 << len(parts[0].half_units) - 1
    seen = row_values(found["half_units"], len(parts[0].half_units), streams, signed=True)[:, 0]
    _same(seen[delays[0] : delays[0] + results], np.clip(expected, -limit, limit - 1).T, "a requantizer")
    inputs = {
        **found,
        "encoding": port(int(Encoding.NATIVE), 2),
        "limit": port((1 << activation_format.bits) - 1 if activation_format.uniform else 0, 8),
        "excess": port(0, 8),
        "relu": port(1, 1),
        "part": port(0, len(parts[1].part)),
        "rst": port(0, 1),
    }
    codes = netlists[1].run(inputs, ("code",), slice(results + sum(delays), 2 * results + sum(delays)))["code"]
    seen = row_values(codes, activation_format.bits, streams)[:, 0]
    _same(seen[sum(delays) :][:results], encode_half_units(expected, activation_format).T, "an encoder")
    return sum(netlist.toggles for netlist in netlists) / (results * streams)


def draw_tiles(network, layers, maps, config, positions, seed):
    """What 64 tiles of a masked grid multiply, of layers drawn as often as their share of all multiplications.

    Parameters
    ----------
    network : IntegerNetwork
    layers : sequence of Convolution
        Without groups.
    maps : dict of str to array, ``(N, channels, height, width)``
        By layer: its input, or anything else of that shape, such as a mask.
    config : :class:`~sigbit_hw.spec.config.AcceleratorConfig`
        With masked cells: a tile is ``rows`` groups of ``lanes`` channels for ``columns`` outputs.
    positions : int
        Consecutive ones of the output, from one image into the next.
    seed : int
        The same tiles for the same seed.

    Returns
    -------
    weights : int64 array, ``(streams, columns, rows * lanes)``
    values : array, ``(streams, positions, rows * lanes)``
    """
    rng = np.random.default_rng(seed)
    targets = [network.tensors[layer.output] for layer in layers]
    macs = np.array([layer.weights.size * to.height * to.width for layer, to in zip(layers, targets, strict=True)])
    weights, values = [], []
    for number in np.sort(rng.choice(len(layers), STREAMS, p=macs / macs.sum())):
        layer, target = layers[number], targets[number]
        channels = layer.weights.shape[1]
        missing = -channels % config.lanes
        outputs = (rng.integers(len(layer.weights)) + np.arange(config.columns)) % len(layer.weights)
        groups = layer.weights.shape[2] * layer.weights.shape[3] * (channels + missing) // config.lanes
        chosen = (rng.integers(groups) + np.arange(config.rows)) % groups
        elements = (chosen[:, np.newaxis] * config.lanes + np.arange(config.lanes)).reshape(-1)
        count = len(maps[layer.name]) * target.height * target.width
        steps = (rng.integers(count) + np.arange(positions)) % count
        images, pixels = np.divmod(steps, target.height * target.width)
        # Only the images and channels that are drawn are laid out: maps are large.
        taps, blocks = np.divmod(elements, channels + missing)
        present = blocks < channels
        kept = np.minimum(blocks, channels - 1)
        used, image = np.unique(images, return_inverse=True)
        kernel = layer.weights.shape[2] * layer.weights.shape[3]
        reads = array_reads(layer, target, maps[layer.name][used]).reshape(len(used), channels, kernel, -1)
        values.append(reads[image[:, np.newaxis], kept, taps, pixels[:, np.newaxis]] * present)
        flat = layer.weights.reshape(len(layer.weights), channels, kernel)
        weights.append(flat[outputs[:, np.newaxis], kept, taps] * present)
    return np.array(weights), np.array(values)


#: Positions of a masked tile before the count begins.
_WARM_UP = 8


def masked_toggles(config, weights, activations, mask):
    """Toggles per multiplication of a grid of masked cells: masking units, compactors, tags, cells and weights.

    Weights are loaded before the count begins.

    Parameters
    ----------
    config : :class:`~sigbit_hw.spec.config.AcceleratorConfig`
        With masked cells and one plane.
    weights : int array, ``(streams, columns, rows * lanes)``
    activations : int array, ``(streams, positions, rows * lanes)``
        0 to 255.
    mask : :class:`~sigbit_hw.spec.masks.TermMask`
    """
    streams, positions, _ = activations.shape
    rows, lanes, columns = config.rows, config.lanes, config.columns
    grid = build_grid(config)
    beats = -(-mask.budget // config.token_lanes)
    first = grid.timing.weight_lead_cycles
    cycles = first + positions * beats + max(grid.timing.latency_cycles) + 1

    def port(fields):
        return np.zeros((cycles, fields, streams), dtype=np.int64)

    starts = first + beats * np.arange(positions)
    start, swap, codes = port(1), port(1), port(rows * lanes)
    start[starts] = 1
    swap[first] = 1
    # Codes stay until the next ones come.
    codes[first : first + positions * beats] = activations.transpose(1, 2, 0).repeat(beats, axis=0)
    codes[first + positions * beats :] = codes[first + positions * beats - 1]
    per_word = config.weight_columns * lanes
    index_bits = len(grid.weight.index)
    header, word = port(1), port(per_word * rows)
    shaped = weights.reshape(streams, columns // per_word, per_word, rows, lanes)
    for index, (block, position) in enumerate(np.ndindex(columns // per_word, lanes)):
        header[index] = 1 | index << 1
        word[index] = shaped[:, block, :, :, position].reshape(streams, -1).T
    settings = port(1) + (mask.budget | (mask.policy == Policy.MAG) << len(grid.mask.budget))
    inputs = {
        "codes": bit_rows(codes, 8),
        "start": bit_rows(start, 1),
        "swap": bit_rows(swap, 1),
        "mask": bit_rows(settings, len(grid.mask.as_value())),
        "weight": np.concatenate((bit_rows(header, 1 + index_bits), bit_rows(word, config.weight_format.bits)), axis=1),
        "rst": bit_rows(port(1), 1),
    }
    circuit = MappedCircuit.synthesized(emit_grid(config, ULTRASCALE), "sigbit_grid", streams)
    found = circuit.run(inputs, ("sums",), slice(starts[_WARM_UP], first + positions * beats))
    sums = row_values(found["sums"], config.sum_bits, streams, signed=True)
    groups = activations.reshape(streams, positions, rows, lanes)
    kept = keep_masked(groups, *select(groups, mask.budget, mask.policy)).reshape(activations.shape)
    expected = np.einsum("spe,sce->pcs", kept, weights)
    for column in range(columns):
        seen = sums[starts + beats - 1 + grid.timing.latency_cycles[column], column]
        _same(seen, expected[:, column], "masked cells")
    return circuit.toggles / ((positions - _WARM_UP) * rows * lanes * columns * streams)


def drq_toggles(weights, activations, sensitive):
    """Toggles per multiplication of DRQ's processing elements (:class:`~.drq_circuit.DrqElement`).

    Every element of a tile is simulated alone, with the sums that come from the rows above it; it never waits.

    Parameters
    ----------
    weights : int array, ``(tiles, length)``
    activations, sensitive : int and bool arrays, ``(tiles, positions, length)``
    """
    tiles, positions, length = activations.shape
    sum_bits = accumulator_width(ROWS, 128 * 255)
    values = np.where(sensitive, activations, short_activations(activations) << 4)
    terms = np.where(
        sensitive,
        activations * weights[:, np.newaxis],
        short_activations(activations) * short_weights(weights)[:, np.newaxis] << 8,
    )
    # An array has so many rows, and the sums of each pass begin at 0.
    sums = np.concatenate([np.cumsum(terms[..., row : row + ROWS], axis=-1) for row in range(0, length, ROWS)], axis=-1)
    above = sums - terms

    def elements(of):
        """One row per element."""
        return of.transpose(0, 2, 1).reshape(tiles * length, positions)

    values, flags, above, sums = (elements(of) for of in (values, sensitive, above, sums))
    held = weights.reshape(-1)
    module = emit_modules(DrqElement(sum_bits), "drq_element", family=ULTRASCALE)
    toggles = 0
    for begin in range(0, len(held), STREAMS):
        part = slice(begin, begin + STREAMS)
        inputs, ends = _drq_inputs(held[part], values[part], flags[part], above[part], sum_bits)
        streams = len(ends)
        circuit = MappedCircuit.synthesized(module, "drq_element", streams)
        # The weight is held, and the first activation not yet taken.
        found = circuit.run(inputs, ("sum_out",), slice(2, None))["sum_out"]
        found = row_values(found, sum_bits, streams, signed=True)[:, 0]
        _same(found[ends, np.arange(streams)[:, np.newaxis]], sums[part], "DRQ's element")
        toggles += circuit.toggles
    return toggles / values.size


def _drq_inputs(weights, values, sensitive, above, sum_bits):
    """Rows of every port of one element per stream, and the cycles in which its sums are there."""
    streams, positions = values.shape
    costs = np.where(sensitive, SENSITIVE_CYCLES, SHORT_CYCLES)
    ends = 2 + np.cumsum(costs, axis=1)
    cycles = ends.max() + 1
    bits = {"take": 1, "activation": 8, "sensitive": 1, "step": 2, "add": 1, "sum_in": sum_bits, "load": 1, "rst": 1}
    ports = {name: np.zeros((cycles, 1, streams), dtype=np.int64) for name in bits}
    ports["load"][0] = 1
    for stream in range(streams):
        begin, end = ends[stream] - costs[stream], ends[stream, -1]
        position = np.arange(positions).repeat(costs[stream])
        span = np.arange(begin[0], end)
        # A value is at its port one cycle before its first step.
        ports["take"][begin - 1, 0, stream] = 1
        ports["activation"][span - 1, 0, stream] = values[stream, position]
        ports["sensitive"][span - 1, 0, stream] = sensitive[stream, position]
        ports["sum_in"][span, 0, stream] = above[stream, position]
        ports["add"][span, 0, stream] = 1
        ports["step"][span, 0, stream] = span - begin[position]
        # An element that has finished holds still.
        ports["step"][end:, 0, stream] = costs[stream, -1] - 1
        ports["sum_in"][end:, 0, stream] = above[stream, -1]
    rows = {name: bit_rows(values, bits[name]) for name, values in ports.items()}
    return {
        **rows,
        "weight": bit_rows(np.broadcast_to(weights, (cycles, 1, streams)), 8),
        "short_weight": bit_rows(np.broadcast_to(short_weights(weights), (cycles, 1, streams)), 4),
    }, ends


def accelerator_toggles(config, program, levels):
    """Toggles of a whole accelerator that runs one image, cells of its netlist, and the results.

    Every stream is an accelerator with an image of its own. What is counted begins with the first beat of the image,
    when the program is loaded, and ends with the last one of the result. Memories of words are black boxes, whose
    outputs count and whose insides do not.

    Parameters
    ----------
    config : :class:`~sigbit_hw.spec.config.AcceleratorConfig`
    program : :class:`~.golden.program.Program`
        For one image at a time.
    levels : int array, ``(streams, channels, height, width)``

    Returns
    -------
    dict
        ``toggles`` per image, ``cycles``, ``outputs`` by image (as the program decodes them), ``lut`` (with memory and
        shift registers), ``ff`` and ``dsp``.
    """
    verilog, boxes = boxed(emit_verilog(config, ULTRASCALE), "sigbit_memory_")
    streams, mask = len(levels), np.uint64((1 << len(levels)) - 1)
    circuit = MappedCircuit(mapped_netlist(verilog, "sigbit", boxes=boxes), streams, boxes)
    beat = config.stream_bits // 8
    setup = _beats([program.setup] * streams, beat)
    data, last = (
        np.concatenate(parts)
        for parts in zip(setup, _beats([program.image_packets(image, 0) for image in levels], beat), strict=True)
    )
    for name in circuit.inputs:
        circuit.set(name, 0)
    for name in ("m_axis_tready", "s_axil_bready", "s_axil_rready"):
        circuit.set(name, mask)
    for _ in range(4):
        circuit.settle()
        circuit.clock()
    circuit.set("aresetn", mask)
    circuit.set("s_axis_tkeep", mask)
    sent = cycles = quiet = 0
    packets: list[list] = [[]]
    while len(packets) <= len(program.arrival):
        valid = sent < len(data)
        circuit.set("s_axis_tvalid", mask * valid)
        if valid:
            circuit.set("s_axis_tdata", data[sent])
            circuit.set("s_axis_tlast", mask * last[sent])
        circuit.settle()
        taken, given = (_common(circuit.get(name), mask) for name in ("s_axis_tready", "m_axis_tvalid"))
        if given:
            packets[-1].append(circuit.get("m_axis_tdata"))
            if _common(circuit.get("m_axis_tlast"), mask):
                packets.append([])
        if taken and valid and sent == len(setup[0]):
            circuit.restart_count()
            cycles = 0
        circuit.clock()
        sent += valid and taken
        cycles += 1
        quiet = 0 if given or (taken and valid) else quiet + 1
        if quiet > _QUIET_CYCLES:
            raise SynthesisError(f"The netlist of an accelerator gave nothing for {quiet} cycles")
    received = [row_values(np.array(packet), 8, streams) for packet in packets[:-1]]
    outputs = [
        program.decode_outputs([packet[..., stream].astype(np.uint8).tobytes() for packet in received], 0)
        for stream in range(streams)
    ]
    figures = run_synthesis(verilog, "sigbit", boxes=boxes)
    return {
        "toggles": circuit.toggles / streams,
        "cycles": cycles,
        "outputs": outputs,
        "lut": figures["lut"] + figures["lutram"] + figures["srl"],
        "ff": figures["ff"],
        "dsp": figures["dsp"],
        "yosys": figures["yosys"],
    }


#: Without a beat an accelerator has stopped.
_QUIET_CYCLES = 1_000_000


def _beats(packets, size):
    """Packets of every stream as bits of beats, ``(beats, 8 * size)``, and which are the last of a packet."""
    texts = [b"".join(part.ljust(-(-len(part) // size) * size, b"\0") for part in own) for own in packets]
    octets = np.stack([np.frombuffer(text, dtype=np.uint8) for text in texts], axis=-1).reshape(-1, size, len(texts))
    last = np.concatenate([np.arange(-(-len(part) // size))[::-1] == 0 for part in packets[0]])
    return bit_rows(octets, 8), last


def _common(row, mask):
    """A bit that all streams agree on: control depends on no data."""
    (bits,) = row & mask
    if bits not in (0, mask):
        raise SynthesisError("The streams of an accelerator are no longer in step")
    return bool(bits)
