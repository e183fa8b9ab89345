"""Instructions and packets of a program, in the order of a memory plan; words are fenced until their users are done."""

from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from sigbit_hw.spec.codebooks import Packing, stream_packing
from sigbit_hw.spec.instructions import CODEBOOK_LEVELS, INSTRUCTION_BITS, INSTRUCTIONS, LEVEL, LEVEL_CODES, Opcode
from sigbit_hw.spec.masks import Policy
from sigbit_hw.spec.packets import PACKING, Kind
from sigbit_sim.golden.program import OutputLayout, Packet, Program, build_packet, pack_codes, pack_groups, word_bytes

from .lowering import CompileError, Maximum, Reduction, Repetition, cut_strips, extent, pool_rows
from .memory_plan import Move, Output, Send

__all__ = ["Emitter"]

_ADDRESS_MASK = (1 << 20) - 1
#: Coordinates are 13-bit signed numbers in the feature reader.
_COORDINATE_MAX = (1 << 12) - 1
#: Streamed weights come in pieces of this part of the weight memory.
_PIECES = 8
#: Wait for nothing.
_NO_FENCE = (1 << 16) - 1


class _Ring:
    """A memory filled piece by piece while instructions use it; pieces stay until their words are needed again."""

    def __init__(self, depth):
        self.depth = depth
        self.readers = np.full(depth, -1, dtype=np.int64)  # last instruction that reads each word
        self.start_group()

    def start_group(self):
        """Forget the contents, so that every group of images is loaded the same way."""
        self._pieces = {}
        self._next = 0

    def find(self, key):
        """Address of a piece, or None."""
        return self._pieces.get(key, (None, 0))[0]

    def place(self, key, size):
        """Take the oldest words for a piece; return its address."""
        base = self._next if self._next + size <= self.depth else 0
        self._next = base + size
        self._pieces = {k: (b, s) for k, (b, s) in self._pieces.items() if b + s <= base or base + size <= b}
        self._pieces[key] = (base, size)
        return base


@dataclass(frozen=True)
class _Packing:
    """Weights of a few codes as packed indices, and the packet that says so."""

    form: Packing
    codes: tuple
    packet: Packet

    @classmethod
    def of(cls, config, codes):
        """The packing of weights that have these codes, or None if it would not be shorter."""
        found = stream_packing(len(codes))
        if found is None or found[1].word_bits >= config.weight_format.bits * found[1].count:
            return None
        number, form = found
        codes = tuple(codes.tolist())
        entry = PACKING.pack(form=number, **{f"code{i}": code for i, code in enumerate(codes)})
        payload = entry.to_bytes(word_bytes(config, PACKING.width), "little")
        return cls(form, codes, Packet(Kind.PACKING, 1, fence=_NO_FENCE, payload=payload))


class Emitter:
    """Writes instructions and the packets around them, and knows which instruction uses which words."""

    def __init__(self, network, config, lowered, plan, batch):
        self._network, self._config, self._lowered, self._layers = network, config, lowered, lowered.layers
        self._plan, self._batch = plan, batch
        self._log = []  # per instruction: whether it cannot retire before the POST in front of it
        self._packets = []
        self._pending = []
        self._weights, self._parameters = _Ring(config.weight_depth), _Ring(config.parameter_depth)
        self._levels = _Ring(config.level_depth)
        self._feature_posts = np.full(config.feature_depth, -1, dtype=np.int64)
        self._feature_users = np.full(config.feature_depth, -1, dtype=np.int64)
        self._payloads = {}
        self._packings = {}
        self._announced = None  # the packing in force
        self._fresh: tuple = ()  # spans that the latest POST writes, if nothing has waited for it since
        self._fresh_layer = None  # of that POST

    # -- whole program -------------------------------------------------------------------------------------------------

    def program(self):
        config = self._config
        beat = config.stream_bits // 8
        hash_payload = config.hash.to_bytes(beat, "little")
        setup = [build_packet(config, Kind.CONFIGURE, hash_payload, count=1)]
        weights = self._resident(self._all_weights(), self._weights)
        parameters = self._resident(self._all_parameters(), self._parameters)
        levels = self._resident(self._all_levels(), self._levels)
        self._stream_weights, self._stream_parameters, self._stream_levels = not weights, not parameters, not levels
        for kind, pieces, ring in (
            (Kind.WEIGHTS, weights, self._weights),
            (Kind.PARAMETERS, parameters, self._parameters),
            (Kind.LEVELS, levels, self._levels),
        ):
            setup.extend(self._setup_packets(kind, pieces, ring))
        # The fences of a group depend on the groups before it; after one round over the input regions they repeat.
        copies = len(self._plan.groups)
        for index in range(2 * copies):
            if index == copies:
                groups = []
            self._start_group()
            packets, reports = self._group(self._plan.groups[index % copies])
            if index >= copies:
                groups.append(tuple(packets))
        outputs = tuple(map(self._output_layout, self._network.outputs))
        layout, name = self._lowered.layout, self._network.name
        return Program(config, name, tuple(setup), tuple(groups), layout, outputs, tuple(reports), self._batch)

    def _output_layout(self, name):
        config, tensor, place = self._config, self._network.tensors[name], self._lowered.maps[name]
        start = place.span(config)[0] * config.vector
        lanes = tuple((int(first - start), int(count)) for first, count in place.lanes)
        return OutputLayout(
            name, tensor.channels, tensor.height, tensor.width, tensor.format, tensor.unit, place.blocks, lanes
        )

    def _resident(self, pieces, ring):
        """The pieces, placed for good, if they fit together; else nothing."""
        if sum(size for _, size, _ in pieces) > ring.depth:
            return ()
        for key, size, _ in pieces:
            ring.place(key, size)
        return pieces

    def _setup_packets(self, kind, pieces, ring):
        config = self._config
        limit = ring.depth // 2
        address = 0
        for packing, group in groupby(pieces, lambda piece: self._packing(piece[0]) if kind == Kind.WEIGHTS else None):
            run = list(group)
            words = sum(size for _, size, _ in run)
            rows = [make() for _, _, make in run]
            if kind == Kind.WEIGHTS:
                codes = np.concatenate(rows)
            else:
                payload = b"".join(rows)
                stride = len(payload) // words
            step = limit
            if packing is not None:
                yield packing.packet.build(config, packing.packet.payload)
                step -= limit % packing.form.count
            for start in range(0, words, step):
                count = min(step, words - start)
                used = kind if packing is None else Kind.PACKED
                if kind == Kind.WEIGHTS:
                    chunk = self._weight_payload(codes[start : start + count], packing)
                else:
                    chunk = payload[start * stride : (start + count) * stride]
                yield build_packet(config, used, chunk, count=count, destination=address + start)
            address += words

    def _all_weights(self):
        """Every distinct piece of weights, unsplit: ``(key, words, function that makes the payload)``."""
        pieces = {}
        for index, layer in enumerate(self._layers):
            if not isinstance(layer, Reduction):
                continue
            for tile in layer.tiles:
                for part, _, _ in layer.passes:
                    key, size, make = self._weight_piece(index, tile, part, self._whole(layer, tile, part))
                    pieces[key] = (key, size, make)
        return tuple(pieces.values())

    def _all_parameters(self):
        pieces: list[tuple] = []
        for index, layer in enumerate(self._layers):
            if isinstance(layer, Reduction):
                pieces.extend(self._parameter_piece(index, tile) for tile in layer.tiles)
        return tuple(pieces)

    def _all_levels(self):
        """Every distinct level table."""
        tables = {
            self._table(layer, part)
            for layer in self._layers
            if isinstance(layer, Reduction) and layer.tables
            for part, _, _ in layer.passes
        }
        return tuple(self._level_piece(table) for table in sorted(tables, key=lambda table: table.words))

    def _start_group(self):
        self._packets = []
        self._announced = None
        if self._stream_weights:
            self._weights.start_group()
        if self._stream_parameters:
            self._parameters.start_group()
        if self._stream_levels:
            self._levels.start_group()

    def _group(self, steps):
        """Packets of a group of images, and the report of every layer."""
        first = len(self._log)
        owners = np.searchsorted(self._lowered.ends, np.arange(len(self._layers)), side="right").tolist()
        own = [
            [layer for layer, owner in zip(self._layers, owners, strict=True) if owner == index]
            for index in range(len(self._network.layers))
        ]
        reports = [
            self._empty_report(layer.name, lowered) for layer, lowered in zip(self._network.layers, own, strict=True)
        ]
        for step in steps:
            if isinstance(step, Send):
                self._send_input(step)
                continue
            if isinstance(step, Output):
                self._send_output(step)
                continue
            layer, report = self._layers[step.layer], reports[owners[step.layer]]
            start = len(self._log) - first
            try:
                if isinstance(step, Move):
                    self._move(step, layer.target, report)
                elif isinstance(layer, Maximum):
                    self._maximum(step, layer, report)
                elif isinstance(layer, Repetition):
                    self._repetition(step, layer, report)
                else:
                    self._reduction(step, layer, report)
            except ValueError as error:
                if isinstance(error, CompileError):
                    raise
                # The only other ValueError is a field of an instruction that is too narrow.
                raise CompileError(f"Layer {layer.name} does not fit an instruction: {error}") from error
            ranges = report["instructions"]
            if ranges and ranges[-1][1] == start:
                start, _ = ranges.pop()
            ranges.append((start, len(self._log) - first))
        self._flush()
        return self._packets, [{**report, "instructions": tuple(report["instructions"])} for report in reports]

    @staticmethod
    def _empty_report(name, lowered):
        """Report of a layer of the network before its instructions; ``lowered`` is what it became."""
        reductions = [layer for layer in lowered if isinstance(layer, Reduction)]
        quotients = ((layer.macs, *layer.products_per_mac) for layer in reductions)
        products = (macs * products // multiplications for macs, products, multiplications in quotients)
        return {
            "name": name,
            "macs": sum(layer.macs for layer in reductions),
            "part_products": sum(products),
            "tiles": 0,
            "compute_cycles": 0,
            "pool_cycles": 0,
            "weight_words": sum(layer.weight_words for layer in reductions),
            "instructions": [],
        }

    @staticmethod
    def _span(tensor, window):
        """First address of a window, and number of words up to its last."""
        words = (tensor.planes - 1) * window.plane_words + (window.end - window.first) * tensor.width
        return window.base, (window.images - 1) * window.image_words + words

    def _send_input(self, step):
        """Send rows of the input as soon as nobody uses the words that they take."""
        self._flush()
        source, window = self._layers[0].source, step.window
        base, words = self._span(source, window)
        span = slice(base, base + words)
        fence = self._fence(self._feature_posts[span], self._feature_users[span])
        rows = () if window.end - window.first == source.height else (window.first, window.end)
        self._packets.append(Packet(Kind.INPUT, words, base, fence, rows=rows, image=step.image))

    def _send_output(self, step):
        """Send the words of an output, in a packet of its own, whose tag is its number."""
        self._flush()
        place = self._lowered.maps[step.name]
        base = step.window.base + place.span(self._config)[0] * step.window.plane_words
        words = self._output_layout(step.name).word_count(self._config)
        tag = step.image * len(self._network.outputs) + self._network.outputs.index(step.name)
        output = INSTRUCTIONS[Opcode.OUTPUT].pack(opcode=Opcode.OUTPUT, wait_post=1, base=base, words=words, tag=tag)
        self._feature_users[base : base + words] = len(self._log)
        self._log.append(True)
        self._fresh = ()
        self._packets.append(Packet(Kind.OUTPUT, 1, fence=_NO_FENCE, payload=self._instruction_payload(output)))

    # -- layers --------------------------------------------------------------------------------------------------------

    def _move(self, step, tensor, report):
        """Copy rows: the maximum of single words. A word is read long before another one is written over it."""
        words = step.rows * tensor.width
        for plane in range(tensor.planes):
            source, base = (address + plane * step.plane_words for address in (step.source, step.base))
            self._issue(
                Opcode.POOL,
                reads=(source, words),
                writes=(base, words),
                wait_post=True,
                base=source,
                y0=0,
                x0=0,
                height=1,
                width=tensor.width,
                **_loops(
                    (1, 0, 0, 0),
                    (step.rows, tensor.width, 0, 0),
                    (tensor.width, 1, 0, 1),
                    (1, 0, 0, 0),
                    (1, 0, 0, 0),
                ),
                output_base=base,
                output_step=1,
            )
            report["pool_cycles"] += words

    def _maximum(self, step, layer, report):
        source, target = layer.source, layer.target
        window, written = step.windows[source.name], step.windows[target.name]
        self._check_coordinates(layer, window, step.end)
        positions = layer.kernel[0] * layer.kernel[1]
        rows, plane_rows = pool_rows(step.end - step.first, self._config.planes, positions)
        row_words, row_step, kernel_step, height = self._rows(layer, window)
        above = layer.pads[0] + window.first
        written_words = written.image_words or target.width
        (first, end), first_written = source.span(self._config), target.span(self._config)[0]
        for block in range(first, end):
            start = window.base + block * window.plane_words
            output = written.base + (first_written + block - first) * written.plane_words
            output += (step.first - written.first) * written_words
            self._issue(
                Opcode.POOL,
                reads=(start, (window.images - 1) * window.image_words + (window.end - window.first) * source.width),
                writes=(output, (step.end - step.first) * written_words),
                wait_post=True,
                base=(start + step.first * row_words - above * source.width - layer.pads[1]) & _ADDRESS_MASK,
                y0=step.first * row_step - above,
                x0=-layer.pads[1],
                height=height,
                width=source.width,
                **_loops(
                    (1, 0, 0, 0),
                    (rows, row_words, row_step, 0),
                    (target.width, layer.stride[1], 0, layer.stride[1]),
                    (layer.kernel[0], source.width, kernel_step, 0),
                    (layer.kernel[1], 1, 0, 1),
                ),
                plane_step=plane_rows * row_words,
                plane_ystep=plane_rows * row_step,
                output_base=output,
                output_step=written.image_words or 1,
                all_planes=plane_rows > 0,
                output_plane_step=plane_rows * written_words,
            )
            report["pool_cycles"] += rows * target.width * positions

    def _repetition(self, step, layer, report):
        """Windows of one pixel: a row is read once per row that it becomes, one instruction per column in a pixel."""
        source, target = layer.source, layer.target
        window, written = step.windows[source.name], step.windows[target.name]
        (first, end), block = source.span(self._config), target.span(self._config)[0]
        down, across = layer.factors
        for part in range(source.parts):
            start = window.base + (part * source.blocks + first) * window.plane_words
            output = written.base + (part * target.blocks + block) * written.plane_words
            for column in range(across):
                self._issue(
                    Opcode.POOL,
                    reads=self._span(source, window),
                    writes=self._span(target, written),
                    wait_post=True,
                    base=start,
                    height=1,
                    width=1,
                    # Both maps are whole: the rows of all blocks follow each other, and so do those that they become.
                    **_loops(
                        ((end - first) * source.height, source.width, 0, 0),
                        (down, 0, 0, 0),
                        (source.width, 1, 0, 0),
                        (1, 0, 0, 0),
                        (1, 0, 0, 0),
                    ),
                    output_base=output + column,
                    output_step=across,
                )
        report["pool_cycles"] += source.parts * (end - first) * target.height * target.width

    def _reduction(self, step, layer, report):
        config = self._config
        passes = layer.passes
        window = step.windows[layer.source.name]
        strips = [
            replace(strip, y=step.first + strip.y)
            for strip in cut_strips(step.end - step.first, layer.target.width, config)
        ]
        self._check_coordinates(layer, window, strips[-1].y + strips[-1].rows * config.planes)
        for column_tile in layer.tiles:
            for strip in strips:
                for number, (part, activation_part, shift) in enumerate(passes):
                    pieces = self._pieces(layer, column_tile, part)
                    for piece, ranges in enumerate(pieces):
                        levels = self._load_levels(layer, part)
                        address = self._load_weights(step.layer, column_tile, part, ranges)
                        count = self._compute(
                            layer, window, column_tile, strip, activation_part, ranges, address, levels,
                            clear=number == 0 and piece == 0, shift=shift and piece == 0,
                        )  # fmt: skip
                        report["tiles"] += count
                        report["compute_cycles"] += count * strip.rows * strip.pixels * layer.beats
                self._post(step, layer, column_tile, strip)

    def _check_coordinates(self, layer, window, rows):
        """Input coordinates, padding and rows beyond the map included, must fit the reader's 13 signed bits."""
        columns = layer.target.width
        if window.image_words:
            if rows > _COORDINATE_MAX:
                raise CompileError(
                    f"Layer {layer.name} runs for {window.images} images at once; the feature reader counts to "
                    f"{_COORDINATE_MAX}: compile for a smaller batch"
                )
            rows = 1
        for what, count, first, axis in (("row", rows, window.first, 0), ("column", columns, 0, 1)):
            reach = (count - 1) * layer.stride[axis] - first + (layer.kernel[axis] - 1) * layer.dilation[axis]
            if reach > _COORDINATE_MAX or layer.pads[axis] > _COORDINATE_MAX:
                raise CompileError(
                    f"Layer {layer.name} reaches input {what} {reach}; the feature reader counts to {_COORDINATE_MAX}: "
                    f"cut the image into smaller ones"
                )

    @staticmethod
    def _rows(layer, window):
        """How the reader counts the rows of a window of the layer's source.

        Words and rows from one row of results to the next, rows from one row of the kernel to the next, and rows in
        all. Of a group, rows of results are images, and these count as rows: kernels stay inside their maps.
        """
        if window.image_words:
            return window.image_words, 1, 0, window.images
        return layer.stride[0] * layer.source.width, layer.stride[0], layer.dilation[0], window.end - window.first

    def _compute(self, layer, window, column_tile, strip, part, ranges, address, levels, *, clear, shift):
        """One part pass over a window of the layer's source.

        Channel blocks that the latest POST is still writing come after those that are there.
        """
        (first, end), rows, columns = ranges
        settled = first
        while settled < end and not self._is_fresh(layer, window, strip, part, settled):
            settled += 1
        tiles = (rows[1] - rows[0]) * (columns[1] - columns[0])
        block_words = (1 if layer.keep else tiles) * column_tile.words
        for wait, blocks in ((False, (first, settled)), (True, (settled, end))):
            if blocks[0] < blocks[1]:
                start = blocks[0] == first
                self._compute_blocks(
                    layer, window, column_tile, strip, part, (blocks, rows, columns),
                    address + (blocks[0] - first) * block_words, block_words,
                    levels, wait_post=wait, clear=clear and start, shift=shift and start,
                )  # fmt: skip
        return (end - first) * tiles

    def _is_fresh(self, layer, window, strip, part, block):
        """Whether a strip reads words of a channel block that the latest POST may not have written yet."""
        if not self._fresh or layer is self._fresh_layer:
            # Its results may lie beside what it reads, in other lanes of the same words.
            return False
        width, rows = layer.source.width, window.end - window.first
        start = window.base + (part * layer.source.blocks + block) * window.plane_words
        if window.image_words:
            images = range(strip.y, strip.y + strip.valid_rows)
            spans = [(start + n * window.image_words, start + n * window.image_words + rows * width) for n in images]
        else:
            low = strip.y * layer.stride[0] - layer.pads[0] - window.first
            high = (strip.y + strip.rows * self._config.planes - 1) * layer.stride[0] - layer.pads[0] - window.first
            high += (layer.kernel[0] - 1) * layer.dilation[0] + 1
            spans = [(start + max(low, 0) * width, start + min(high, rows) * width)]
        # All are in order.
        if self._fresh[-1][1] <= spans[0][0] or spans[-1][1] <= self._fresh[0][0]:
            return False
        return any(begin < last and first < end for begin, end in self._fresh for first, last in spans)

    def _compute_blocks(
        self, layer, window, column_tile, strip, part, ranges, address, block_words, levels, *, wait_post, clear, shift
    ):
        (b0, b1), (ky0, ky1), (kx0, kx1) = ranges
        sx, (dy, dx) = layer.stride[1], layer.dilation
        source = layer.source
        row_words, row_step, kernel_step, height = self._rows(layer, window)
        above = layer.pads[0] + window.first
        x0 = strip.x * sx - layer.pads[1] + kx0 * dx
        start = window.base + (part * source.blocks + b0) * window.plane_words
        self._issue(
            Opcode.COMPUTE,
            reads=self._span(source, window),
            weights=(address, (b1 - b0) * block_words),
            levels=(levels, LEVEL_CODES) if layer.tables else None,
            wait_post=wait_post,
            base=(start + strip.y * row_words + (ky0 * dy - above) * source.width + x0) & _ADDRESS_MASK,
            y0=strip.y * row_step + ky0 * kernel_step - above,
            x0=x0,
            height=height,
            width=source.width,
            **_loops(
                (b1 - b0, window.plane_words, 0, 0),
                (ky1 - ky0, dy * source.width, kernel_step, 0),
                (kx1 - kx0, dx, 0, dx),
                (strip.rows, row_words, row_step, 0),
                (strip.pixels, sx, 0, sx),
            ),
            plane_step=(strip.rows * row_words) & _ADDRESS_MASK,
            plane_ystep=strip.rows * row_step,
            pad_code=layer.pad_codes[part],
            weight_base=address,
            keep=layer.keep,
            weight_words=column_tile.words,
            clear=clear,
            shift=shift,
            level_base=levels,
            budget=layer.mask.budget if layer.mask else 0,
            magnitude_keys=layer.mask is not None and layer.mask.policy == Policy.MAG,
        )

    def _post(self, step, layer, column_tile, strip):
        config = self._config
        target = layer.target
        key, size, make = self._parameter_piece(step.layer, column_tile)
        address = self._load(self._parameters, Kind.PARAMETERS, key, size, make, self._stream_parameters)
        lane = extent(target.lanes)[0] + column_tile.start
        first_block, end_block = lane // config.vector, (lane + column_tile.used - 1) // config.vector + 1

        window = step.windows[target.name]
        # Of a group, rows of results are images.
        row_words = window.image_words or target.width

        def first_word(window, plane):
            return window.base + plane * window.plane_words + (strip.y - window.first) * row_words + strip.x

        encoding, bits = layer.encoding
        reads, residual, part_step = None, {}, target.blocks * window.plane_words
        if layer.residual is not None:
            added = step.windows[layer.residual.name]
            reads = self._span(layer.residual, added)
            # In the same lane of another block.
            other = lane + layer.residual.lanes[0][0] - target.lanes[0][0]
            residual = {
                "residual_base": first_word(added, other // config.vector),
                "residual_parts": layer.residual.parts,
                **dict(zip(("residual_encoding", "residual_bits"), layer.residual_encoding, strict=True)),
            }
            if target.parts == 1:
                # The plan gives both the same steps, but for those that only one of them takes.
                part_step = layer.residual.blocks * added.plane_words
        self._issue(
            Opcode.POST,
            reads=reads,
            writes=self._span(target, window),
            parameters=(address, size),
            base=first_word(window, first_block),
            rows=strip.rows,
            pixels=strip.pixels,
            row_step=row_words,
            block_step=window.plane_words,
            part_step=part_step,
            plane_step=strip.rows * row_words,
            valid_rows=strip.valid_rows,
            first_group=lane // config.post_lanes % (config.vector // config.post_lanes),
            groups=size,
            parts=target.parts,
            parameter_base=address,
            encoding=encoding,
            bits=bits,
            relu=layer.relu,
            codebook=bool(layer.codebook),
            thresholds=layer.by_threshold,
            **_codebook("", layer.codebook or layer.levels),
            **_codebook("residual_", layer.residual_levels),
            **residual,
        )
        starts = [
            first_word(window, part * target.blocks + block) - strip.x
            for part in range(target.parts)
            for block in range(first_block, end_block)
        ]
        if window.image_words:
            rows = [n * row_words for n in range(strip.valid_rows)]
            self._fresh = tuple(sorted((start + row, start + row + 1) for start in starts for row in rows))
        else:
            self._fresh = tuple((start, start + strip.valid_rows * target.width) for start in starts)
        self._fresh_layer = layer

    # -- weights and parameters ----------------------------------------------------------------------------------------

    @staticmethod
    def _whole(layer, tile, part):
        """Ranges of block, ky and kx of a pass; a pass that only shifts takes one tile."""
        if part is None:
            return (tile.block, tile.block + 1), (0, 1), (0, 1)
        return (tile.block, tile.block + tile.blocks), (0, layer.kernel[0]), (0, layer.kernel[1])

    def _pieces(self, layer, tile, part):
        """Ranges of a pass, cut into pieces that are small against the weight memory when weights are streamed.

        While one is used, the stream can fill the memory but for that one.
        """
        blocks, rows, columns = self._whole(layer, tile, part)
        if not self._stream_weights:
            return [(blocks, rows, columns)]
        half = self._config.weight_depth // 2
        limit = max(self._config.weight_depth // _PIECES, tile.words)
        if tile.words > half:
            raise CompileError(
                f"Layer {layer.name}: one tile of weights has {tile.words} words, half of the weight memory has "
                f"{half}; raise weight_depth to at least {2 << (tile.words - 1).bit_length()} or lower columns"
            )

        def cut(bounds, size):
            step = max(limit // size, 1)
            return [(low, min(low + step, bounds[1])) for low in range(bounds[0], bounds[1], step)]

        if layer.keep:
            return [(b, rows, columns) for b in cut(blocks, tile.words)]
        column_words = (columns[1] - columns[0]) * tile.words
        row_words = (rows[1] - rows[0]) * column_words
        block_cuts = cut(blocks, row_words)
        row_cuts = cut(rows, column_words) if row_words > limit else [rows]
        column_cuts = cut(columns, tile.words) if column_words > limit else [columns]
        return [(b, y, x) for b in block_cuts for y in row_cuts for x in column_cuts]

    def _weight_piece(self, index, tile, part, ranges):
        layer = self._layers[index]
        if layer.keep:
            ranges = ranges[0], (0, 1), (0, 1)
        count = int(np.prod([high - low for low, high in ranges])) * tile.words
        if part is None:
            key: tuple = ("zero", tile.words)
            ranges = (0, 1), (0, 1), (0, 1)
        else:
            key = (index, tile.start, part, ranges)

        def make():
            return self._weight_words(layer, tile, part, ranges)

        return key, count, make

    def _packing(self, key):
        """How the weights of a piece are packed; None: as they are."""
        index, *_ = key
        if self._config.packing == "none" or index == "zero":
            return None
        _, _, part, _ = key
        if (index, part) not in self._packings:
            self._packings[index, part] = _Packing.of(self._config, self._codes_of(self._layers[index], part))
        return self._packings[index, part]

    def _codes_of(self, layer, part):
        """Different weight codes of a part of a layer, with the one that fills up."""
        levels = np.append(np.unique(layer.digits[part]), 0)
        return np.unique(self._codes(layer, part, levels))

    def _codes(self, layer, part, levels):
        """Weight codes of native levels of a part; those of masked cells are in two's complement."""
        if self._config.masked:
            return levels & (1 << self._config.weight_format.bits) - 1
        if layer.tables:
            return self._table(layer, part).codes(levels)
        return self._weight_codes[levels + self._config.weight_format.magnitude_max]

    def _weight_payload(self, codes, packing):
        """Words of weights ``(words, codes)`` as the stream has them."""
        if packing is None:
            return pack_codes(self._config, codes, self._config.weight_format.bits)
        return pack_groups(self._config, np.searchsorted(packing.codes, codes), packing.form)

    def _weight_words(self, layer, tile, part, ranges):
        config = self._config
        (b0, b1), (ky0, ky1), (kx0, kx1) = ranges
        vector = config.vector
        levels = np.zeros((tile.columns, (b1 - b0) * vector, ky1 - ky0, kx1 - kx0), dtype=np.int64)
        if part is not None:
            piece = layer.digits[part][tile.start : tile.start + tile.used, :, ky0:ky1, kx0:kx1]
            channels = layer.inputs[tile.start : tile.start + tile.used] - b0 * vector
            outputs, inputs = np.nonzero((channels >= 0) & (channels < levels.shape[1]))
            levels[outputs, channels[outputs, inputs]] = piece[outputs, inputs]
        if config.masked:
            return self._codes(layer, part, self._masked_words(levels, b1 - b0))
        words = levels.reshape(tile.columns, b1 - b0, vector, ky1 - ky0, kx1 - kx0)
        words = words.transpose(1, 3, 4, 0, 2).reshape(-1, config.weight_columns * vector)
        return self._codes(layer, part, words)

    def _masked_words(self, levels, blocks):
        """Levels of words of one position in every group each."""
        config = self._config
        columns = config.weight_columns * config.lanes
        words = levels.reshape(-1, columns, blocks, config.rows, config.lanes, *levels.shape[2:])
        return words.transpose(2, 5, 6, 0, 4, 1, 3).reshape(-1, config.weight_columns * config.vector)

    @property
    def _weight_codes(self):
        """Code ``{sign, magnitude code}`` of every native weight level."""
        native = self._config.weight_format
        table = np.zeros(2 * native.magnitude_max + 1, dtype=np.uint8)
        for code, magnitude in enumerate(native.magnitudes[: 1 << (native.bits - 1)]):
            table[native.magnitude_max + magnitude] = code
            if magnitude:
                table[native.magnitude_max - magnitude] = code | 1 << (native.bits - 1)
        return table

    def _parameter_piece(self, index, tile):
        config = self._config
        layer = self._layers[index]
        groups = tile.columns // config.post_lanes

        def make():
            stride = word_bytes(config, config.parameter_word_bits)
            payload = b""
            for group in range(groups):
                word = 0
                for lane in range(config.post_lanes):
                    channel = tile.start + group * config.post_lanes + lane
                    # Channels that fill up a group: multiplier 0 stores code 0.
                    if channel < tile.start + tile.used:
                        thresholds = {f"threshold{j}": t for j, t in enumerate(layer.thresholds[channel].tolist())}
                        entry = config.parameter.pack(
                            **thresholds,
                            bias=layer.bias[channel],
                            multiplier=layer.multiplier[channel],
                            shift=layer.shift[channel],
                            residual_multiplier=layer.residual_multiplier[channel],
                            negative_multiplier=layer.negative_multiplier[channel],
                        )
                        word |= entry << (config.parameter.width * lane)
                payload += word.to_bytes(stride, "little")
            return payload

        return (index, tile.start), groups, make

    @staticmethod
    def _table(layer, part):
        """Level table of a part of a layer; of no part for a pass that only shifts."""
        return layer.no_weights if part is None else layer.tables[part]

    def _level_piece(self, table):
        def make():
            stride = word_bytes(self._config, LEVEL.width)
            return b"".join(word.to_bytes(stride, "little") for word in table.words)

        return table.words, LEVEL_CODES, make

    def _load_levels(self, layer, part):
        """Address of a part's level table; 0 without tables."""
        if not layer.tables:
            return 0
        key, size, make = self._level_piece(self._table(layer, part))
        return self._load(self._levels, Kind.LEVELS, key, size, make, self._stream_levels)

    def _load_weights(self, index, tile, part, ranges):
        key, size, make = self._weight_piece(index, tile, part, ranges)
        return self._load(self._weights, Kind.WEIGHTS, key, size, make, self._stream_weights)

    def _load(self, ring, kind, key, size, make, streamed):
        """Address of a piece; sends it first if it is not in memory."""
        address = ring.find(key)
        if address is None:
            assert streamed, "resident pieces are placed before the first image"
            if size > ring.depth:
                raise CompileError(
                    f"Layer {self._layers[key[0]].name}: one column tile has {size} words of parameters, the "
                    f"memory has {ring.depth}; raise parameter_depth to at least {1 << (size - 1).bit_length()}"
                )
            self._flush()
            address = ring.place(key, size)
            readers = ring.readers[address : address + size]
            packing = None
            if kind == Kind.WEIGHTS and (packing := self._packing(key)) is not None and packing != self._announced:
                self._packets.append(packing.packet)
                self._announced = packing
            if (kind, key) not in self._payloads:
                self._payloads[kind, key] = self._weight_payload(make(), packing) if kind == Kind.WEIGHTS else make()
            none = np.empty(0, dtype=np.int64)
            fence = self._fence(readers, none) if kind == Kind.PARAMETERS else self._fence(none, readers)
            payload = self._payloads[kind, key]
            self._packets.append(Packet(kind if packing is None else Kind.PACKED, size, address, fence, payload))
        return address

    # -- instructions --------------------------------------------------------------------------------------------------

    def _issue(self, opcode, *, reads=None, writes=None, weights=None, parameters=None, levels=None, **fields):
        number = len(self._log)
        is_post = opcode == Opcode.POST
        if fields.get("wait_post"):
            self._fresh = ()
        for ring, span in ((self._weights, weights), (self._parameters, parameters), (self._levels, levels)):
            if span:
                ring.readers[span[0] : sum(span)] = number
        users = self._feature_posts if is_post else self._feature_users
        for span in (reads, writes):
            if span:
                users[span[0] : sum(span)] = number
        self._log.append(is_post or fields["wait_post"])
        self._pending.append(INSTRUCTIONS[opcode].pack(opcode=opcode, **fields))
        if len(self._pending) >= max(self._config.instruction_depth // 2, 1):
            self._flush()

    def _instruction_payload(self, instruction):
        return instruction.to_bytes(word_bytes(self._config, INSTRUCTION_BITS), "little")

    def _flush(self):
        """Send the instructions written so far."""
        if self._pending:
            payload = b"".join(self._instruction_payload(instruction) for instruction in self._pending)
            self._packets.append(Packet(Kind.RUN, len(self._pending), fence=_NO_FENCE, payload=payload))
            self._pending = []

    def _fence(self, posts, others):
        """Most instructions that may be outstanding when every user of some words is certainly done.

        Instructions retire in order, except that those behind a POST may retire before it, up to the next POST or the
        next instruction that waits for it. So with ``m`` instructions issued behind instruction ``k``:

        * if ``k`` is no POST and not done, all ``m`` are outstanding with it: ``m`` outstanding ones prove it done;
        * if ``k`` is a POST, only those from the next one that waits for it are outstanding with it.
        """
        issued = len(self._log)
        fence = _NO_FENCE
        for k in np.unique(others[others >= 0]):
            fence = min(fence, issued - 1 - int(k))
        for k in np.unique(posts[posts >= 0]):
            behind = self._log[int(k) + 1 :]
            overtaking = next((i for i, waits in enumerate(behind) if waits), len(behind))
            fence = min(fence, len(behind) - overtaking)
        return fence


def _codebook(prefix, levels):
    """Fields of a codebook of POST; the last level stands for those that there are not."""
    if not levels:
        return {}
    padded = levels + levels[-1:] * (CODEBOOK_LEVELS - len(levels))
    distances = {f"{prefix}distance{i}": level - levels[0] for i, level in enumerate(padded) if i}
    return {f"{prefix}level0": levels[0], **distances}


def _loops(*levels):
    """Fields of the five loop levels ``(count, step, ystep, xstep)``, outermost first."""
    names = ("count", "step", "ystep", "xstep")
    return {f"{name}{i}": value for i, level in enumerate(levels) for name, value in zip(names, level, strict=True)}
