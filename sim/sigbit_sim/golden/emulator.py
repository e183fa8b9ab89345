"""The emulator: what the accelerator does with a stream of packets, bit for bit, without its time.

It decodes the same packets and instructions as the gateware and keeps the same memories, so a wrong program shows
without simulating hardware. Imports :mod:`sigbit_hw.spec` and NumPy only.
"""

import zlib
from collections import deque
from dataclasses import dataclass
from math import prod

import numpy as np
from sigbit_hw.spec.codebooks import STREAM_PACKINGS
from sigbit_hw.spec.config import CONTRACT_VERSION
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import INT, UINT, FormatError
from sigbit_hw.spec.instructions import (
    CODEBOOK_DISTANCE_BITS,
    CODEBOOK_LEVELS,
    INSTRUCTION_BITS,
    INSTRUCTIONS,
    LEVEL,
    LEVEL_CODES,
    LOOP_LEVELS,
    PARAMETER,
    Encoding,
    Opcode,
)
from sigbit_hw.spec.masks import Policy
from sigbit_hw.spec.packets import HEADER, HEADER_BYTES, HEADER_FOLD, MAGIC, PACKING, PACKING_CODES, Fault, Kind
from sigbit_hw.spec.parts import RAW_BITS
from sigbit_hw.spec.registers import IDENTITY, Control, Interrupt, Register, Status

from .program import build_packet, group_bytes, pack_codes, unpack_codes, unpack_groups, word_bytes
from .sdp import keep_masked, select

__all__ = ["SCHEDULES", "Emulator", "EmulatorError"]

#: When instructions run, within what the hardware may do: ``eager`` runs each as soon as it has arrived, ``late`` only
#: when a fence or a full queue forces it to, and every POST as late as its successors allow.
SCHEDULES = ("eager", "late")

#: Instructions that wait or run outside the queue's memory: two in its output registers, one running, two POSTs.
_BEYOND_QUEUE = 5
_ADDRESS_MASK = (1 << 20) - 1
#: Elements of cached index arrays; bounds memory at some 100 MB.
_CACHE_ELEMENTS = 1 << 24

_NONZERO = {
    Opcode.COMPUTE: (*(f"count{i}" for i in range(LOOP_LEVELS)), "weight_words"),
    Opcode.POOL: tuple(f"count{i}" for i in range(LOOP_LEVELS)),
    Opcode.POST: ("rows", "pixels", "groups", "parts"),
    Opcode.OUTPUT: ("words",),
}


class EmulatorError(SigbitError):
    """An instruction whose effect the contract leaves open: an address outside a memory, a strip that is too long."""


@dataclass(frozen=True)
class _Queued:
    word: int
    packet: int


class Emulator:
    """An accelerator in NumPy.

    Parameters
    ----------
    config : :class:`~sigbit_hw.spec.config.AcceleratorConfig`
    schedule : str
        One of :data:`SCHEDULES`. A correct program gives the same results under both; a missing fence or wait does not.

    Raises
    ------
    :exc:`EmulatorError`
        If ``schedule`` is unknown; later, if an instruction leaves a memory.
    """

    def __init__(self, config, schedule="eager"):
        if schedule not in SCHEDULES:
            raise EmulatorError(f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")
        self.config = config
        self._late = schedule == "late"
        native = config.activation_format
        self._table_columns = config.columns - config.logic_columns if config.cell == "table" else 0
        self._product_max, self._accumulator_bits = config.product_magnitude_max, config.accumulator_bits
        self._code_levels = np.array([native.decode(code) for code in range(1 << native.bits)], dtype=np.float32)
        self._rank_codes = np.array([native.encode(level) for level in native.levels], dtype=np.uint8)
        codes = np.arange(1 << native.bits)
        # Indices are in the order of their levels.
        sign = codes >> (native.bits - 1) if native.signed and not config.level_tables else np.zeros_like(codes)
        # Order of levels; a negative zero is less than zero.
        below = codes - (sign << native.bits) if native.kind == "int" else ~(codes & ((1 << native.bits - 1) - 1))
        self._keys = np.where(sign, below, codes).astype(np.int16)
        self._codes_by_key = codes[np.argsort(self._keys)].astype(np.uint8)
        # One more word than there are addresses: what is read outside the map.
        self._codes = np.zeros((config.feature_depth + 1, config.vector), dtype=np.uint8)
        self._levels = np.zeros(self._codes.shape, dtype=np.float32)
        self._weights = np.zeros((config.weight_depth, config.weight_columns * config.vector), dtype=np.uint8)
        self._parameters = {
            field.name: np.zeros((config.parameter_depth, config.post_lanes), np.int64)
            for field in config.parameter.fields
        }
        self._level_table = {field.name: np.zeros(config.level_depth, np.int64) for field in LEVEL.fields}
        self._accumulators = np.zeros((2, config.planes, config.strip_depth, config.columns), dtype=np.int64)
        self._weight_cache, self._index_cache, self._index_elements = {}, {}, 0
        self._returned: deque[bytes] = deque()
        self._irq_enable = 0
        self._counters = dict.fromkeys(_COUNTED, 0)
        self._reset()

    def _reset(self):
        self._buffer = b""
        self._skip, self._closed = False, True
        self._session = self._draining = False
        self._packets = self._retired = 0
        self._fault, self._fault_packet = Fault.NONE, 0
        self._irq_pending = 0
        self._packing = PACKING.unpack(0)
        self._counters = dict.fromkeys(self._counters, 0)
        self._stop()

    def _stop(self):
        """Forget all instructions."""
        self._queue: deque[_Queued] = deque()
        self._held_post: tuple | None = None
        self._bank = 0

    # -- outside ------------------------------------------------------------------------------------------------------

    def send(self, data, last=True):
        """Take the bytes of one or more packets. TLAST stands on the last beat if ``last``."""
        self._buffer += data
        while self._buffer and self._parse(last):
            pass

    def receive(self):
        """Next returned packet, or None. All instructions that have arrived run first."""
        self._run(0)
        return self._returned.popleft() if self._returned else None

    def read(self, register):
        """Value of a register. All instructions that have arrived run first.

        Of the counters only COMPUTE_CYCLES, POOL_CYCLES, OUTPUT_CYCLES (beats) and VALID_TOKENS have values; what
        depends on time reads 0.
        """
        self._run(0)
        status = (Status.SESSION * self._session) | (Status.DRAINING * self._draining)
        if self._fault:
            status |= Status.FAULT
        values = {
            Register.IDENTITY: IDENTITY,
            Register.VERSION: CONTRACT_VERSION,
            Register.HASH_LOW: self.config.hash,
            Register.HASH_HIGH: self.config.hash >> 32,
            Register.STATUS: status,
            Register.FAULT: self._fault,
            Register.FAULT_PACKET: self._fault_packet,
            Register.IRQ_ENABLE: self._irq_enable,
            Register.IRQ_PENDING: self._irq_pending,
            Register.PACKETS: self._packets,
            Register.INSTRUCTIONS: self._retired,
            **self._counters,
        }
        return int(values.get(register, 0)) & 0xFFFF_FFFF

    def write(self, register, value):
        """Write a register; those that cannot be written ignore it."""
        if register == Register.CONTROL:
            if value & Control.SOFT_RESET:
                self._reset()
            if value & Control.CLEAR_COUNTERS:
                self._run(0)
                self._counters = dict.fromkeys(self._counters, 0)
        elif register == Register.IRQ_ENABLE:
            self._irq_enable = value & (Interrupt.END | Interrupt.FAULT)
        elif register == Register.IRQ_PENDING:
            self._run(0)
            self._irq_pending &= ~value

    @property
    def interrupt(self):
        """Level of ``irq``."""
        self._run(0)
        return bool(self._irq_enable & self._irq_pending)

    # -- packets ------------------------------------------------------------------------------------------------------

    def _parse(self, last):
        """Take one packet off the buffer; False: the rest of it has not come yet."""
        config = self.config
        beat = config.stream_bits // 8
        header_bytes = -(-HEADER_BYTES // beat) * beat
        data = self._buffer
        if self._skip:
            self._buffer, self._skip = b"", not last
            return False
        if len(data) < header_bytes or (last and len(data) == header_bytes):
            return self._broken(Fault.FRAMING, last) if last else False
        header = HEADER.unpack(int.from_bytes(data[:HEADER_BYTES], "little"))
        fold = np.bitwise_xor.reduce(np.frombuffer(data[:HEADER_BYTES], dtype="<u2"))
        if fault := self._judge(header, fold):
            return self._broken(fault, last)
        kind, count = Kind(header["kind"]), header["count"]
        if kind == Kind.PACKED:
            payload_bytes = group_bytes(config, self._stream_packing, count)
        else:
            payload_bytes = count * word_bytes(config, self._word_bits(kind))
        end = header_bytes + payload_bytes + beat
        if len(data) < end:
            return self._broken(Fault.FRAMING, last) if last else False
        ends = last and len(data) == end
        if kind == Kind.END and not ends:
            return self._broken(Fault.FRAMING, last)
        self._run(header["fence"])
        if self._skip:
            return True
        if int.from_bytes(data[end - beat : end], "little") != zlib.crc32(data[: end - beat]):
            return self._broken(Fault.CRC, last)
        payload = data[header_bytes : end - beat]
        if kind == Kind.CONFIGURE and int.from_bytes(payload[:8], "little") != config.hash:
            return self._broken(Fault.HASH, last)
        self._buffer, self._closed = data[end:], ends
        self._accept(kind, header, payload)
        return True

    def _judge(self, header, fold):
        """First rule of a header that is broken."""
        kind, count, destination = header["kind"], header["count"], header["destination"]
        if header["magic"] != MAGIC:
            return Fault.MAGIC
        if header["version"] != CONTRACT_VERSION:
            return Fault.VERSION
        if fold != HEADER_FOLD:
            return Fault.CRC
        unknown = {Kind.LEVELS} if self.config.cell != "table" else set()
        if self.config.packing == "none":
            unknown |= {Kind.PACKING, Kind.PACKED}
        if kind not in list(Kind) or kind in unknown:
            return Fault.KIND
        if self._draining:
            return Fault.NONE if kind == Kind.END and not count and not destination else Fault.STATE
        if not self._session and kind != Kind.CONFIGURE:
            return Fault.STATE
        if kind == Kind.PACKING:
            return Fault.BOUNDS if count + destination > 1 else Fault.NONE
        if kind in _DEPTHS:
            return Fault.BOUNDS if count + destination > getattr(self.config, _DEPTHS[kind]) else Fault.NONE
        if kind in (Kind.RUN, Kind.OUTPUT):
            legal = 1 <= count <= self.config.instruction_depth
        else:
            legal = count == (kind == Kind.CONFIGURE)
        if not legal:
            return Fault.LENGTH
        if destination:
            return Fault.BOUNDS
        return Fault.FRAMING if kind == Kind.END and not self._closed else Fault.NONE

    def _word_bits(self, kind):
        config = self.config
        return {
            Kind.CONFIGURE: config.stream_bits,
            Kind.WEIGHTS: config.weight_word_bits,
            Kind.PARAMETERS: config.parameter_word_bits,
            Kind.INPUT: config.feature_word_bits,
            Kind.RUN: INSTRUCTION_BITS,
            Kind.OUTPUT: INSTRUCTION_BITS,
            Kind.END: 0,
            Kind.LEVELS: config.level_word_bits,
            Kind.PACKING: PACKING.width,
        }[kind]

    @property
    def _stream_packing(self):
        form = self._packing["form"]
        return STREAM_PACKINGS[form if form < len(STREAM_PACKINGS) else 0]

    def _broken(self, fault, last):
        """Drop the rest of the transfer; report the fault unless one is being drained already."""
        self._buffer, self._skip, self._closed = b"", not last, True
        if not self._draining:
            self._report(fault, self._packets if self._session else 0)
        return False

    def _report(self, fault, packet):
        self._draining = True
        self._irq_pending |= Interrupt.FAULT
        if not self._fault:
            self._fault, self._fault_packet = fault, packet
        self._stop()

    def _accept(self, kind, header, payload):
        config = self.config
        start, count = header["destination"], header["count"]
        number = self._packets
        if not self._draining:
            self._packets += 1
        if kind == Kind.CONFIGURE:
            self._session, self._packets = True, 1
        elif kind == Kind.END:
            if not self._draining:
                self._run(0)
                # An instruction that faults keeps the end from being reported.
                if not self._draining:
                    self._irq_pending |= Interrupt.END
            self._session = self._draining = False
        elif kind == Kind.WEIGHTS:
            self._weights[start : start + count] = unpack_codes(
                config, payload, config.weight_columns * config.vector, config.weight_format.bits
            )
            self._weight_cache = {}
        elif kind == Kind.PACKING:
            if count:
                self._packing = PACKING.unpack(int.from_bytes(payload[: PACKING.width // 8], "little"))
        elif kind == Kind.PACKED:
            codes = np.array([self._packing[f"code{i}"] for i in range(PACKING_CODES)], dtype=np.uint8)
            indices = unpack_groups(config, payload, self._stream_packing, count)
            self._weights[start : start + count] = codes[indices] & ((1 << config.weight_format.bits) - 1)
            self._weight_cache = {}
        elif kind == Kind.INPUT:
            codes = unpack_codes(config, payload, config.vector, config.activation_format.bits)
            self._codes[start : start + count] = codes
            self._levels[start : start + count] = self._code_levels[codes]
        elif kind == Kind.PARAMETERS:
            for name, values in self._entries(config.parameter, payload, count, config.post_lanes).items():
                self._parameters[name][start : start + count] = values
        elif kind == Kind.LEVELS:
            for name, values in self._entries(LEVEL, payload, count, 1).items():
                self._level_table[name][start : start + count] = values[:, 0]
            self._weight_cache = {}
        else:
            size = INSTRUCTION_BITS // 8
            stride = word_bytes(config, INSTRUCTION_BITS)
            self._run(max(config.instruction_depth + _BEYOND_QUEUE - count, 0))
            if self._draining:
                return
            for position in range(0, count * stride, stride):
                word = int.from_bytes(payload[position : position + size], "little")
                self._queue.append(_Queued(word, number))
            if not self._late:
                self._run(0)

    def _entries(self, table, payload, count, lanes):
        """Fields of words with so many entries of a bit table each: arrays ``(words, lanes)`` by name."""
        width = table.width * lanes
        words = np.frombuffer(payload, dtype=np.uint8).reshape(count, word_bytes(self.config, width))
        bits = np.unpackbits(words, axis=-1, count=width, bitorder="little").reshape(count, lanes, table.width)
        fields, offset = {}, 0
        for field in table.fields:
            values = bits[..., offset : offset + field.bits] @ (1 << np.arange(field.bits))
            if field.signed:
                values -= (values >> (field.bits - 1)) << field.bits
            fields[field.name] = values
            offset += field.bits
        return fields

    # -- instructions -------------------------------------------------------------------------------------------------

    def _run(self, most):
        """Run instructions until at most ``most`` are outstanding."""
        while len(self._queue) + (self._held_post is not None) > most:
            if not self._queue:
                self._finish_post()
                continue
            queued = self._queue[0]
            fields = self._decode(queued.word)
            if fields is None:
                if self._held_post is not None:
                    self._finish_post()
                self._buffer, self._skip = b"", bool(self._buffer) or not self._closed
                self._report(Fault.OPCODE, queued.packet)
                return
            self._queue.popleft()
            opcode = fields["opcode"]
            if self._held_post is not None and (opcode == Opcode.POST or fields["wait_post"]):
                self._finish_post()
            if opcode == Opcode.POST:
                self._held_post = (fields, self._bank)
                self._bank ^= 1
                if not self._late:
                    self._finish_post()
            else:
                {Opcode.COMPUTE: self._compute, Opcode.POOL: self._pool, Opcode.OUTPUT: self._output}[opcode](
                    queued.word, fields
                )
                self._retired += 1

    def _decode(self, word):
        """Fields of an instruction; None if it is illegal."""
        opcode = word & 0xF
        if opcode not in list(Opcode):
            return None
        key = "fields", word
        if key not in self._index_cache:
            self._index_cache[key] = INSTRUCTIONS[Opcode(opcode)].unpack(word)
        fields = self._index_cache[key]
        if self.config.masked and opcode == Opcode.COMPUTE and not fields["budget"]:
            return None
        return fields if all(fields[name] for name in _NONZERO[opcode]) else None

    def _indices(self, word, fields, planes):
        """Feature addresses ``(planes, outer, inner)`` of levels 0-2 and 3-4; the extra word outside the map."""
        if word in self._index_cache:
            return self._index_cache[word]

        def nest(name, levels):
            total = np.zeros(1, dtype=np.int64)
            for i in levels:
                total = np.add.outer(total, np.arange(fields[f"count{i}"]) * fields[f"{name}{i}"]).reshape(-1)
            return total

        grids = {
            name: np.add.outer(nest(name, range(3)), nest(name, range(3, LOOP_LEVELS)))
            for name in ("step", "ystep", "xstep")
        }
        plane = np.arange(planes).reshape(-1, 1, 1)
        y = _signed(grids["ystep"] + fields["y0"], 13) + plane * fields["plane_ystep"]
        x = _signed(grids["xstep"] + fields["x0"], 13)
        address = (grids["step"] + fields["base"] + plane * fields["plane_step"]) & _ADDRESS_MASK
        inside = (y >= 0) & (y < fields["height"]) & (x >= 0) & (x < fields["width"])
        self._check("feature", address[inside], self.config.feature_depth)
        result = np.where(inside, address, self.config.feature_depth).astype(np.int32)
        if self._index_elements + result.size > _CACHE_ELEMENTS:
            self._index_cache, self._index_elements = {}, 0
        self._index_cache[word] = result
        self._index_elements += result.size
        return result

    @staticmethod
    def _check(name, addresses, depth):
        if addresses.size and (addresses.max() >= depth or addresses.min() < 0):
            raise EmulatorError(
                f"An instruction reaches {name} words {addresses.min()} to {addresses.max()}; the memory has {depth}"
            )

    def _tile_weights(self, fields):
        """Weights of all tiles as ``(tiles * vector, columns used)`` levels, and set sign bits of every column."""
        config = self.config
        taps = fields["count1"] * fields["count2"]
        repeats = taps if fields["keep"] else 1
        tiles = fields["count0"] * taps // repeats
        words, base = fields["weight_words"], fields["weight_base"]
        key = base, words, tiles, repeats, fields["level_base"]
        if key not in self._weight_cache:
            self._check("weight", np.array([base, base + tiles * words - 1]), config.weight_depth)
            codes = self._weights[base : base + tiles * words]
            if config.masked:
                return self._masked_weights(key, codes, repeats)
            codes = codes.reshape(tiles, -1, config.vector)
            codes = codes[:, : config.columns].repeat(repeats, axis=0)
            bits = config.weight_format.bits
            sign = codes >> (bits - 1)
            magnitude = np.array(config.weight_format.magnitudes, dtype=np.float32)[codes & ((1 << bits - 1) - 1)]
            levels = np.where(sign, -magnitude, magnitude)
            if self._table_columns:
                by_table = codes[:, : self._table_columns]
                found, _ = self._levels_of_codes(fields["level_base"])
                levels[:, : self._table_columns] = found.astype(np.float32)[by_table]
                sign[:, : self._table_columns] = levels[:, : self._table_columns] < 0
            matrix = np.ascontiguousarray(levels.transpose(0, 2, 1)).reshape(len(levels) * config.vector, -1)
            self._weight_cache[key] = matrix, sign.sum(axis=(0, 2), dtype=np.int64)
        return self._weight_cache[key]

    def _levels_of_codes(self, base):
        """A level table: level of every weight code, and distance of every activation code from the smallest level.

        An activation code that the table leaves out has no distance, but NaN.
        """
        config = self.config
        self._check("level", np.array([base, base + LEVEL_CODES - 1]), config.level_depth)
        entries = {name: values[base : base + LEVEL_CODES] for name, values in self._level_table.items()}
        weights = entries["weight"][: 1 << config.weight_format.bits]
        count = 1 << config.activation_format.bits
        distances = np.full(count, np.nan, dtype=np.float32)
        distances[entries["code"][:count] % count] = np.cumsum(entries["step"][:count])
        largest = int(np.abs(weights).max())
        product = largest * int(entries["step"][:count].sum())
        if largest > config.table_weight_max or product > config.product_magnitude_max:
            raise EmulatorError(
                f"The level table at {base} has weights up to {largest} and products up to {product}; tables take "
                f"{config.table_weight_max} and {config.product_magnitude_max}"
            )
        return weights, distances

    def _masked_weights(self, key, codes, repeats):
        """As :meth:`_tile_weights`: a word holds one position of every group, in two's complement."""
        config = self.config
        groups = config.weight_columns * config.lanes
        # (tile, columns of a word, position, column, row)
        levels = _signed(codes.astype(np.int64), config.weight_format.bits)
        levels = levels.reshape(key[2], -1, config.lanes, groups, config.rows)
        levels = levels.transpose(0, 4, 2, 1, 3).reshape(key[2], config.vector, -1)[:, :, : config.columns]
        matrix = levels.repeat(repeats, axis=0).astype(np.float32)
        self._weight_cache[key] = matrix.reshape(len(matrix) * config.vector, -1), 0
        return self._weight_cache[key]

    def _used_rows(self, fields, tiles):
        """Rows that have weights, ``(tiles, rows)``: those whose first words of a tile are not all zero."""
        config = self.config
        words = fields["weight_words"]
        repeats = fields["count1"] * fields["count2"] if fields["keep"] else 1
        codes = self._weights[fields["weight_base"] :][: tiles // repeats * words].reshape(
            -1, words, config.weight_columns * config.lanes, config.rows
        )
        return codes[:, : config.lanes].any(axis=(1, 2)).repeat(repeats, axis=0)

    def _masked_levels(self, indices, fields):
        """What the grid multiplies of the words at some addresses: levels less that of the padding, masked; and how
        many term parts these are in every row."""
        group, budget = self.config.lanes, fields["budget"]
        if budget > 2 * group:
            raise EmulatorError(f"COMPUTE keeps {budget} parts of a group; there are {2 * group}")
        addresses, inverse = np.unique(indices, return_inverse=True)
        values = (self._levels[addresses] - fields["pad_code"]).astype(np.int16).reshape(len(addresses), -1, group)
        policy = Policy.MAG if fields["magnitude_keys"] else Policy.NIB
        high, low = select(np.abs(values), budget, policy)
        kept = keep_masked(values, high, low).astype(np.float32).reshape(len(addresses), -1)
        inverse = inverse.reshape(indices.shape)
        return kept[inverse], (high.sum(axis=-1) + low.sum(axis=-1))[inverse]

    def _compute(self, word, fields):
        config = self.config
        indices = self._indices(word, fields, config.planes)
        planes, tiles, positions = indices.shape
        if positions > config.strip_depth:
            raise EmulatorError(f"A strip of {positions} positions exceeds strip_depth {config.strip_depth}")
        weights, sign_bits = self._tile_weights(fields)
        pad_code = fields["pad_code"] & (len(self._code_levels) - 1)
        self._codes[-1], self._levels[-1] = pad_code, self._code_levels[pad_code]
        # Every partial sum is an integer of at most this size: exact in a float with as many significand bits.
        bound = len(weights) * self._product_max
        assert bound < 1 << 53, "sums leave the exact range of float64"
        dtype = np.float32 if bound < 1 << 24 else np.float64
        order, beats = indices.transpose(0, 2, 1), 1
        runs = []
        if config.masked:
            levels, tokens = self._masked_levels(order, fields)
            runs.append(levels)
            beats = -(-fields["budget"] // config.token_lanes)
            used = self._used_rows(fields, tiles)
            self._counters[Register.VALID_TOKENS] += int(tokens.sum(axis=(0, 1))[used].sum())
        if self._table_columns:
            runs.append(self._levels_of_codes(fields["level_base"])[1][self._codes[order]])
            if np.isnan(runs[0]).any():
                raise EmulatorError(
                    f"COMPUTE meets activation codes that its level table at {fields['level_base']} leaves out"
                )
        if not runs or config.logic_columns:
            runs.append(self._levels[order])
        # Table cells and logic cells beside them have their own levels.
        split = np.split(weights.astype(dtype, copy=False), [self._table_columns] if len(runs) > 1 else [], axis=1)
        total = np.hstack(
            [
                levels.reshape(planes * positions, -1).astype(dtype, copy=False) @ part
                for levels, part in zip(runs, split, strict=True)
            ]
        ).astype(np.int64)
        # XOR negation leaves each product of a negative weight one short.
        raw = (total - sign_bits).reshape(planes, positions, -1)
        bank = self._accumulators[self._bank][:, :positions, : raw.shape[2]]
        if not fields["clear"]:
            raw += bank << (config.part_shift_bits if fields["shift"] else 0)
        bank[...] = _signed(raw, self._accumulator_bits)
        self._counters[Register.COMPUTE_CYCLES] += tiles * positions * beats

    def _finish_post(self):
        assert self._held_post is not None
        fields, bank = self._held_post
        self._held_post = None
        self._retired += 1
        config = self.config
        native = config.activation_format
        planes, rows, pixels, groups, parts = (
            config.planes, fields["rows"], fields["pixels"], fields["groups"], fields["parts"],
        )  # fmt: skip
        lanes = config.post_lanes
        if rows * pixels > config.strip_depth or groups * lanes > config.columns:
            raise EmulatorError(
                f"POST reads {rows * pixels} positions of {groups * lanes} columns; the accumulators have "
                f"{config.strip_depth} of {config.columns}"
            )
        start = fields["parameter_base"]
        self._check("parameter", np.array([start, start + groups - 1]), config.parameter_depth)
        bias, multiplier, shift, residual_multiplier, negative_multiplier = (
            self._parameters[name][start : start + groups].reshape(-1) for name in _PARAMETERS
        )
        granules = config.vector // lanes
        position = fields["first_group"] + np.arange(groups)
        granule = position % granules
        # Of part 0, from the first word on: (plane, row, pixel, group).
        words = sum(
            step * index.reshape([-1 if axis == i else 1 for i in range(4)])
            for axis, (step, index) in enumerate(
                (
                    (fields["plane_step"], np.arange(planes)),
                    (fields["row_step"], np.arange(rows)),
                    (1, np.arange(pixels)),
                    (fields["block_step"], position // granules),
                )
            )
        )
        stored = np.arange(planes)[:, np.newaxis] * rows + np.arange(rows) < fields["valid_rows"]
        stored = np.broadcast_to(stored[..., np.newaxis, np.newaxis], words.shape)

        def addresses(base, count):
            """Feature addresses ``(part, ...)``; the extra word for rows that are not stored."""
            parts = np.arange(count).reshape(-1, 1, 1, 1, 1)
            address = (fields[base] + words + parts * fields["part_step"]) & _ADDRESS_MASK
            self._check("feature", address[:, stored], config.feature_depth)
            return np.where(stored, address, config.feature_depth)

        target = addresses("base", parts)
        accumulators = self._accumulators[bank][:, : rows * pixels, : groups * lanes]
        biased = accumulators + bias
        product = biased * np.where(biased < 0, negative_multiplier, multiplier)
        if fields["residual_parts"]:
            source = addresses("residual_base", fields["residual_parts"])
            read, written = ((words * granules + granule)[:, stored] for words in (source, target))
            if np.intersect1d(read, written).size:
                raise EmulatorError("POST adds values that it writes; what it reads there depends on its timing")
            codes = self._codes.reshape(-1, granules, lanes)[source, granule]
            product += self._residual(codes, fields).reshape(biased.shape) * residual_multiplier
        ranks = None
        if fields["thresholds"]:
            given = [
                self._parameters[f"threshold{j}"][start : start + groups].reshape(-1)
                for j in range(config.threshold_count)
            ]
            ranks = sum((accumulators >= threshold).astype(np.int64) for threshold in given)
        codes = self._encode(biased, product, shift, fields, ranks).astype(np.uint8)
        # (part, plane, row, pixel, group, lane)
        codes = codes.reshape(parts, planes, rows, pixels, groups, lanes)
        where = target[:, stored], np.broadcast_to(granule, target.shape)[:, stored]
        values = codes[:, stored]
        self._codes.reshape(-1, granules, lanes)[where] = values
        self._levels.reshape(-1, granules, lanes)[where] = self._code_levels[values & ((1 << native.bits) - 1)]

    def _stored_format(self, encoding, bits):
        """Format of a tensor that POST writes or adds."""
        native = self.config.activation_format
        if encoding == Encoding.NATIVE and not self.config.level_tables:
            return native
        try:
            format = UINT(bits) if encoding == Encoding.UINT else INT(bits)
        except FormatError as error:
            raise EmulatorError(f"POST stores or adds {encoding.name} values of {bits} bits: {error}") from error
        if format == native and not self.config.level_tables:
            raise EmulatorError(f"POST stores or adds digits of {format}, which is native: the encoding is NATIVE")
        return format

    def _residual(self, codes, fields):
        """Levels of native codes, parts first."""
        encoding, stored = Encoding(fields["encoding"]), Encoding(fields["residual_encoding"])
        if Encoding.RAW in (encoding, stored):
            raise EmulatorError(f"POST adds {stored.name} values to {encoding.name} ones; RAW has no residual")
        if stored == Encoding.NATIVE:
            table = (
                self._codebook(fields, "residual_") if self.config.level_tables else self._code_levels.astype(np.int64)
            )
            self._check_parts(codes, 1, stored.name)
            return table[codes[0]]
        format, step = self._stored_format(stored, fields["residual_bits"]), self.config.part_shift_bits
        self._check_parts(codes, -(-format.bits // step), format)
        excess = 1 << format.bits - 1 if format.signed else 0
        return np.tensordot(1 << step * np.arange(len(codes)), codes.astype(np.int64), 1) - excess

    @staticmethod
    def _check_parts(codes, count, stored):
        if len(codes) != count:
            raise EmulatorError(f"POST adds {len(codes)} parts of {stored}; there are {count}")

    def _codebook(self, fields, prefix):
        """Levels of all codes, as an instruction names them."""
        count = 1 << self.config.activation_format.bits if self.config.level_tables else CODEBOOK_LEVELS
        distances = np.array([0, *(fields[f"{prefix}distance{i}"] for i in range(1, count))])
        levels = fields[f"{prefix}level0"] + distances
        if (np.diff(distances) < 0).any() or levels[-1] >= 1 << CODEBOOK_DISTANCE_BITS:
            raise EmulatorError(
                f"The levels of POST must not decrease and be below {1 << CODEBOOK_DISTANCE_BITS}, not {levels}"
            )
        return levels

    def _encode(self, biased, product, shift, fields, ranks=None):
        """Native codes of all parts, parts first (numerics 6.2 to 6.4); ``ranks`` are those of the thresholds."""
        native = self.config.activation_format
        encoding, parts = Encoding(fields["encoding"]), np.arange(fields["parts"]).reshape(-1, 1, 1, 1)
        if encoding == Encoding.RAW:
            raw = _signed(biased, RAW_BITS)
            return (raw >> np.minimum(native.bits * parts, RAW_BITS - 1)) & ((1 << native.bits) - 1)
        half_units = (product << 1) >> shift
        if fields["codebook"]:
            levels = self._codebook(fields, "")
            if (count := len(np.unique(levels))) > self.config.threshold_count + 1:
                raise EmulatorError(f"POST projects to {count} levels with {self.config.threshold_count} comparisons")
            if ranks is None:
                ranks = np.searchsorted(levels[1:] + levels[:-1], half_units, side="right")
            half_units = 2 * levels[ranks]
        if fields["relu"]:
            half_units = np.maximum(half_units, 0)
        if self.config.level_tables and encoding == Encoding.NATIVE:
            levels = self._codebook(fields, "")
            return np.searchsorted(levels[1:] + levels[:-1], half_units, side="right")[np.newaxis]
        stored = self._stored_format(encoding, fields["bits"])
        if stored == native and not self.config.level_tables:
            return self._rank_codes[np.searchsorted(native.midpoints, half_units, side="right")][np.newaxis]
        step, excess = self.config.part_shift_bits, 1 << stored.bits - 1 if stored.signed else 0
        level = np.clip((half_units + 1) >> 1, stored.levels[0], stored.levels[-1]) + excess
        return (level >> step * parts) & ((1 << step) - 1)

    def _pool(self, word, fields):
        config = self.config
        planes = config.planes if fields["all_planes"] else 1
        indices = self._indices(word, fields, planes)
        windows = prod(fields[f"count{i}"] for i in range(3))
        if planes > 1 and fields["count3"] * fields["count4"] < planes:
            raise EmulatorError(f"POOL of all {planes} planes must have windows of at least as many positions")
        indices = indices.reshape(planes * windows, -1)
        steps = fields["output_plane_step"] * np.arange(planes).reshape(-1, 1)
        results = fields["output_step"] * np.arange(windows)
        where = (fields["output_base"] + steps + results).reshape(-1) & _ADDRESS_MASK
        self._check("feature", where, config.feature_depth)
        keys = self._keys[self._codes[indices]]
        outside = indices == config.feature_depth
        keys[outside] = np.iinfo(keys.dtype).min
        codes = self._codes_by_key[np.maximum(keys.max(axis=1), self._keys.min()) - self._keys.min()]
        codes[outside.all(axis=1)] = 0
        self._codes[where] = codes
        self._levels[where] = self._code_levels[codes]
        self._counters[Register.POOL_CYCLES] += indices.size // planes

    def _output(self, _word, fields):
        config = self.config
        start, words = fields["base"], fields["words"]
        self._check("feature", np.array([start, start + words - 1]), config.feature_depth)
        payload = pack_codes(config, self._codes[start : start + words], config.activation_format.bits)
        packet = build_packet(config, Kind.OUTPUT, payload, count=words, destination=fields["tag"])
        self._returned.append(packet)
        self._counters[Register.OUTPUT_CYCLES] += len(packet) * 8 // config.stream_bits


_COUNTED = (Register.COMPUTE_CYCLES, Register.POOL_CYCLES, Register.OUTPUT_CYCLES, Register.VALID_TOKENS)
_PARAMETERS = tuple(field.name for field in PARAMETER.fields)
_DEPTHS = {
    Kind.WEIGHTS: "weight_depth",
    Kind.PACKED: "weight_depth",
    Kind.PARAMETERS: "parameter_depth",
    Kind.INPUT: "feature_depth",
    Kind.LEVELS: "level_depth",
}


def _signed(values, bits):
    """Two's complement wrap-around."""
    half = 1 << (bits - 1)
    return ((values + half) & ((1 << bits) - 1)) - half
