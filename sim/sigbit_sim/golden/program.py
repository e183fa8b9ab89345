"""A compiled network: the packets that run it, and how images become packets and packets become results."""

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sigbit_hw.spec.config import CONTRACT_VERSION, AcceleratorConfig
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.formats import Format
from sigbit_hw.spec.instructions import INSTRUCTION_BITS, INSTRUCTIONS, Opcode
from sigbit_hw.spec.packets import HEADER, HEADER_BYTES, MAGIC, Kind, pack_header
from sigbit_hw.spec.parts import RAW_BITS

from .numerics import project

__all__ = [
    "InputLayout",
    "OutputLayout",
    "Packet",
    "Program",
    "ProgramError",
    "build_packet",
    "pack_codes",
    "unpack_codes",
    "word_bytes",
]

_FILE_MAGIC = b"sigbit program 3\n"
_TAG_MASK = 0xFFFF


class ProgramError(SigbitError):
    """A program, an image or a returned packet that does not fit."""


def word_bytes(config, word_bits):
    """Bytes of one memory word in a packet: whole beats."""
    return config.beats_per_word(word_bits) * config.stream_bits // 8


def pack_codes(config, codes, code_bits):
    """Payload of words of codes: ``(words, codes per word)``, code 0 in the low bits, every word padded to beats."""
    codes = np.ascontiguousarray(codes, dtype=np.uint8)
    words, lanes = codes.shape
    bits = np.unpackbits(codes[..., np.newaxis], axis=-1, bitorder="little", count=code_bits)
    padded = np.zeros((words, word_bytes(config, lanes * code_bits) * 8), dtype=np.uint8)
    padded[:, : lanes * code_bits] = bits.reshape(words, -1)
    return np.packbits(padded, axis=-1, bitorder="little").tobytes()


def unpack_codes(config, payload, lanes, code_bits):
    """Inverse of :func:`pack_codes`: uint8 array ``(words, lanes)``."""
    stride = word_bytes(config, lanes * code_bits)
    data = np.frombuffer(payload, dtype=np.uint8).reshape(-1, stride)
    bits = np.unpackbits(data, axis=-1, bitorder="little", count=lanes * code_bits)
    return np.packbits(bits.reshape(len(data), lanes, code_bits), axis=-1, bitorder="little")[..., 0]


def _lane_words(form, count, lanes):
    return -(-count // form.count), lanes * form.word_bits


def pack_groups(config, indices, form):
    """Payload of weight memory words whose codes are given by indices ``(words, lanes)``, ``form.count`` words a group.

    A group is padded to beats; lane ``j`` of it holds the indices of code ``j`` of its words, the first one lowest.
    """
    count, lanes = indices.shape
    groups, bits = _lane_words(form, count, lanes)
    padded = np.zeros((groups * form.count, lanes), dtype=np.int64)
    padded[:count] = indices
    weights = form.base ** np.arange(form.count)
    words = np.tensordot(padded.reshape(groups, form.count, lanes), weights, (1, 0))
    digits = (words[..., np.newaxis] >> np.arange(form.word_bits)) & 1
    stored = np.zeros((groups, word_bytes(config, bits) * 8), dtype=np.uint8)
    stored[:, :bits] = digits.reshape(groups, bits)
    return np.packbits(stored, axis=-1, bitorder="little").tobytes()


def group_bytes(config, form, count):
    """Bytes of the payload of ``count`` packed weight memory words."""
    groups, bits = _lane_words(form, count, config.weight_columns * config.vector)
    return groups * word_bytes(config, bits)


def unpack_groups(config, payload, form, count):
    """Indices ``(count, lanes)`` of a payload of packed weights: by division, digit by digit."""
    lanes = config.weight_columns * config.vector
    groups, bits = _lane_words(form, count, lanes)
    data = np.frombuffer(payload, dtype=np.uint8).reshape(groups, -1)
    digits = np.unpackbits(data, axis=-1, bitorder="little", count=bits).reshape(groups, lanes, form.word_bits)
    rest = digits.astype(np.int64) @ (1 << np.arange(form.word_bits))
    words = []
    for _ in range(form.count):
        words.append(rest % form.base)
        rest //= form.base
    return np.stack(words, axis=1).reshape(-1, lanes)[:count]


def build_packet(config, kind, payload=b"", *, count, destination=0, fence=0):
    """One packet: header, payload (already padded to beats), CRC-32.

    Parameters
    ----------
    kind : :class:`~sigbit_hw.spec.packets.Kind`
    payload : bytes
        Words, each padded to whole beats.
    count : int
        Payload words.
    destination, fence : int
        See :data:`~sigbit_hw.spec.packets.HEADER`.
    """
    beat = config.stream_bits // 8
    header = pack_header(kind=kind, count=count, destination=destination, fence=fence).to_bytes(HEADER_BYTES, "little")
    data = header.ljust(-(-HEADER_BYTES // beat) * beat, b"\0") + payload
    return data + zlib.crc32(data).to_bytes(beat, "little")


@dataclass(frozen=True)
class InputLayout:
    """How an image lies in feature memory.

    Kernel positions of the first convolution may be folded into channels: stored channel
    ``(ky * kw + kx) * channels + c`` at stored pixel ``(y, x)`` is the image at
    ``(y * sy - top + ky * dy, x * sx - left + kx * dx)``, 0 outside. Without folding the kernel is 1x1.

    Attributes
    ----------
    channels, height, width, format, unit
        The network's input tensor.
    kernel, stride, dilation : (int, int)
    pads : (int, int)
        Rows on top, columns on the left.
    rows, columns : int
        Stored map.
    """

    channels: int
    height: int
    width: int
    format: Format
    unit: float
    kernel: tuple
    stride: tuple
    dilation: tuple
    pads: tuple
    rows: int
    columns: int

    @property
    def stored_channels(self):
        """Channels after folding."""
        return self.channels * self.kernel[0] * self.kernel[1]

    def encode(self, config, levels):
        """Codes of one image: levels ``(channels, height, width)`` to uint8 ``(parts, blocks, rows, columns, vector)``.

        Raises
        ------
        :exc:`ProgramError`
            If the shape differs or a value is not a level of the format.
        """
        levels = np.asarray(levels)
        shape = (self.channels, self.height, self.width)
        if levels.shape != shape or levels.dtype.kind not in "iu":
            raise ProgramError(f"An image must be an integer array {shape}, not {levels.dtype} {levels.shape}")
        parts = config.activation_parts(self.format)
        low, table = _level_codes(parts)
        index = levels.astype(np.int64) - low
        legal = (index >= 0) & (index < len(table))
        if not legal.all() or (table[index] < 0).any():
            raise ProgramError(f"An image must hold levels of {self.format} only; project real values first")
        codes = np.moveaxis(table[index], -1, 0)  # (parts, channels, height, width)
        zero = table[-low]
        span = [
            (count - 1) * s + (k - 1) * d + 1
            for count, s, k, d in zip((self.rows, self.columns), self.stride, self.kernel, self.dilation, strict=True)
        ]
        size = [max(reach, length + pad) for reach, length, pad in zip(span, shape[1:], self.pads, strict=True)]
        padded = np.empty((parts.count, self.channels, *size), dtype=np.uint8)
        padded[:] = zero.reshape(-1, 1, 1, 1)
        top, left = self.pads
        padded[:, :, top : top + self.height, left : left + self.width] = codes
        taps = [
            padded[
                :,
                :,
                ky * self.dilation[0] : ky * self.dilation[0] + (self.rows - 1) * self.stride[0] + 1 : self.stride[0],
                kx * self.dilation[1] : kx * self.dilation[1] + (self.columns - 1) * self.stride[1] + 1 : self.stride[
                    1
                ],
            ]
            for ky in range(self.kernel[0])
            for kx in range(self.kernel[1])
        ]
        vector = config.vector
        blocks = -(-self.stored_channels // vector)
        # Lanes without a channel are 0, too: masked cells see whole groups.
        stored = np.empty((parts.count, blocks * vector, self.rows, self.columns), dtype=np.uint8)
        stored[:] = zero.reshape(-1, 1, 1, 1)
        stored[:, : self.stored_channels] = np.concatenate(taps, axis=1)
        return stored.reshape(parts.count, blocks, vector, self.rows, self.columns).transpose(0, 1, 3, 4, 2)


@dataclass(frozen=True)
class OutputLayout:
    """An output tensor of the network, and how it lies in the feature words of its packet.

    Attributes
    ----------
    name, channels, height, width, format, unit
        The tensor; ``format`` is None for raw 32-bit integers.
    blocks : int
        Channel blocks from one part to the next.
    lanes : tuple of (int, int)
        Where the channels lie, in order: so many from a lane on, counted from the first block that is sent.
    """

    name: str
    channels: int
    height: int
    width: int
    format: Format | None
    unit: float
    blocks: int
    lanes: tuple

    def part_count(self, config):
        """Native codes per value."""
        if self.format is None:
            return -(-RAW_BITS // config.activation_format.bits)
        return config.activation_parts(self.format).count

    def word_count(self, config):
        """Feature words of one result: all blocks between parts are sent, those behind the last channel are not."""
        used = -(-max(first + count for first, count in self.lanes) // config.vector)
        return ((self.part_count(config) - 1) * self.blocks + used) * self.height * self.width

    def decode(self, config, payload):
        """Levels (or raw integers) of the feature words of one result: int64, ``(channels, height, width)``."""
        code_bits = config.activation_format.bits
        count = self.part_count(config)
        stored = np.zeros((count * self.blocks, self.height, self.width, config.vector), np.int64)
        words = unpack_codes(config, payload, config.vector, code_bits)
        stored.reshape(-1, config.vector)[: len(words)] = words
        lanes = np.concatenate([np.arange(first, first + channels) for first, channels in self.lanes])
        codes = stored.reshape(count, self.blocks, self.height, self.width, config.vector).transpose(0, 1, 4, 2, 3)
        codes = codes.reshape(count, -1, self.height, self.width)[:, lanes]
        if self.format is None:
            fields = codes << (code_bits * np.arange(count)).reshape(-1, 1, 1, 1)
            raw = fields.sum(axis=0) & ((1 << RAW_BITS) - 1)
            return raw - ((raw >> (RAW_BITS - 1)) << RAW_BITS)
        parts = config.activation_parts(self.format)
        if parts.levels:
            return np.array(parts.levels, dtype=np.int64)[codes[0]]
        return (codes << (parts.step * np.arange(count)).reshape(-1, 1, 1, 1)).sum(axis=0) - parts.offset


@dataclass(frozen=True)
class Packet:
    """A packet of every group of images. The payload of INPUT comes with the image; that of OUTPUT has as its tag the
    output's number, plus the image's number in the group times the number of outputs; group ``i`` adds ``i`` times as
    many as it has results.

    INPUT carries the stored rows ``rows[0]`` to ``rows[1]`` of image ``image`` of the group; all of them if ``rows`` is
    empty.
    """

    kind: Kind
    count: int
    destination: int = 0
    fence: int = 0
    payload: bytes = b""
    rows: tuple = ()
    image: int = 0

    def build(self, config, payload):
        """Bytes with another payload."""
        return build_packet(
            config, self.kind, payload, count=self.count, destination=self.destination, fence=self.fence
        )


@dataclass(frozen=True, eq=False)
class Program:
    """Everything a device needs to run one network. Made by ``sigbit.compiler.compile``.

    Attributes
    ----------
    config : :class:`~sigbit_hw.spec.config.AcceleratorConfig`
    name : str
        Of the network.
    setup : tuple of bytes
        Packets sent once: CONFIGURE, then resident weights and parameters.
    image : tuple of tuple of :class:`Packet`
        Packets of one group of images. Group ``i`` uses entry ``i % len(image)``: with two input regions there may be
        two.
    input : :class:`InputLayout`
    outputs : tuple of :class:`OutputLayout`
    layers : tuple of dict
        Per layer and image: ``name``, ``macs``, ``part_products`` (multiplications of native operands that carry data).
        Per layer and group: ``tiles`` (sets of stationary weights used), ``compute_cycles`` (cycles in which a vector
        enters the grid; the counter COMPUTE_CYCLES reads their sum), ``pool_cycles``, ``weight_words`` (distinct words
        in weight memory), ``instructions`` (ranges ``(first, end)`` within the group: several if the layer and others
        take turns).
    batch : int
        Images in a group.
    """

    config: AcceleratorConfig
    name: str
    setup: tuple
    image: tuple
    input: InputLayout
    outputs: tuple
    layers: tuple
    batch: int = 1

    def groups(self, images):
        """Groups that so many images take; the last one may be filled up."""
        return -(-images // self.batch)

    @property
    def output(self):
        """The first output."""
        return self.outputs[0]

    @property
    def arrival(self):
        """Numbers of the outputs of a group in the order in which their packets arrive, as a tuple: those of the first
        image come first."""
        return tuple(self._instruction(packet)["tag"] for packet in self.image[0] if packet.kind == Kind.OUTPUT)

    @staticmethod
    def _instruction(packet):
        """Fields of the instruction of an OUTPUT packet."""
        return INSTRUCTIONS[Opcode.OUTPUT].unpack(int.from_bytes(packet.payload[: INSTRUCTION_BITS // 8], "little"))

    def input_levels(self, images):
        """Levels of real images ``(N, channels, height, width)``: nearest level of ``x / unit``, ties up."""
        return project(np.asarray(images, dtype=np.float64) / self.input.unit, self.input.format)

    def image_packets(self, levels, index):
        """Packets that run group number ``index``, as a list of bytes; TLAST ends each.

        Consecutive groups must have consecutive numbers, because images alternate between two input regions where
        there is space; a new count may start when all earlier results have been received. Output ``n`` of image ``i``,
        counted over all groups, carries ``i * len(outputs) + n`` modulo 65536 as its tag.

        Parameters
        ----------
        levels : int array, ``(channels, height, width)`` or ``(N, channels, height, width)``
            One image or up to ``batch``. The last one also takes the places that are left in the group.
        index : int

        Raises
        ------
        :exc:`ProgramError`
            If there are too many images, or an image does not fit the input tensor.
        """
        packets = []
        levels = np.asarray(levels)
        if levels.ndim == 3:
            levels = levels[np.newaxis]
        if not 1 <= len(levels) <= self.batch:
            raise ProgramError(f"{self.name} takes 1 to {self.batch} images at a time, not {len(levels)}")
        encoded = [self.input.encode(self.config, image) for image in levels]
        for packet in self.image[index % len(self.image)]:
            payload = packet.payload
            if packet.kind == Kind.INPUT:
                codes = encoded[min(packet.image, len(encoded) - 1)]
                words = codes[:, :, slice(*(packet.rows or (None,)))].reshape(-1, self.config.vector)
                payload = pack_codes(self.config, words, self.config.activation_format.bits)
            elif packet.kind == Kind.OUTPUT:
                fields = self._instruction(packet)
                fields["tag"] = (index * self.batch * len(self.outputs) + fields["tag"]) & _TAG_MASK
                payload = INSTRUCTIONS[Opcode.OUTPUT].pack(**fields).to_bytes(len(payload), "little")
            packets.append(packet.build(self.config, payload))
        return packets

    def end_packet(self):
        """The packet that closes the session."""
        return build_packet(self.config, Kind.END, count=0)

    def decode_outputs(self, packets, index):
        """Results of the images of a group: each is its output, or a dictionary by name if there are several.

        Parameters
        ----------
        packets : sequence of bytes
            As the accelerator sent them, all of the group.
        index : int
            Number of the group.

        Returns
        -------
        list of int64 array, or of dict of str to int64 array

        Raises
        ------
        :exc:`ProgramError`
            As :meth:`decode_output`.
        """
        count = len(self.outputs)
        found: list[dict] = [{} for _ in range(self.batch)]
        for tag, data in zip(self.arrival, packets, strict=True):
            image, number = divmod(tag, count)
            found[image][number] = self.decode_output(data, index * self.batch + image, number)
        if count == 1:
            return [outputs[0] for outputs in found]
        return [{output.name: outputs[n] for n, output in enumerate(self.outputs)} for outputs in found]

    def decode_output(self, data, index=None, number=0):
        """Result in a returned packet.

        Parameters
        ----------
        data : bytes
            One packet as the accelerator sent it.
        index : int, optional
            Number of the image the result must belong to.
        number : int
            Of the output.

        Returns
        -------
        int64 array
            ``(channels,)`` if the output map is one pixel, else ``(channels, height, width)``.

        Raises
        ------
        :exc:`ProgramError`
            If the packet is damaged, is not this program's output, or belongs to another image.
        """
        config = self.config
        beat = config.stream_bits // 8
        word = word_bytes(config, config.feature_word_bits)
        header_bytes = -(-HEADER_BYTES // beat) * beat
        out = self.outputs[number]
        count = out.word_count(config)
        expected = header_bytes + count * word + beat
        if len(data) != expected:
            raise ProgramError(f"A result of {self.name} is a packet of {expected} bytes, not {len(data)}")
        if zlib.crc32(data[:-beat]) != int.from_bytes(data[-beat:][:4], "little"):
            raise ProgramError("The returned packet is damaged: its CRC-32 does not match its bytes")
        header = HEADER.unpack(int.from_bytes(data[:HEADER_BYTES], "little"))
        wanted = {"magic": MAGIC, "version": CONTRACT_VERSION, "kind": Kind.OUTPUT, "count": count}
        if index is not None:
            wanted["destination"] = (index * len(self.outputs) + number) & _TAG_MASK
        for key, value in wanted.items():
            if header[key] != value:
                what = "tag" if key == "destination" else key
                raise ProgramError(f"The returned packet has {what} {header[key]}, expected {value}")
        result = out.decode(config, data[header_bytes:-beat])
        return result[:, 0, 0] if (out.height, out.width) == (1, 1) else result

    def save(self, path):
        """Write one file (JSON description, packets, CRC-32), all or nothing.

        Raises
        ------
        :exc:`ProgramError`
            If the file cannot be written.
        """
        blobs = []

        def place(data):
            blobs.append(data)
            return len(data)

        description = {
            "contract": CONTRACT_VERSION,
            "config": self.config.to_dict(),
            "hash": f"{self.config.hash:016x}",
            "name": self.name,
            "setup": [place(data) for data in self.setup],
            "image": [
                [[int(p.kind), p.count, p.destination, p.fence, place(p.payload), p.image, *p.rows] for p in packets]
                for packets in self.image
            ],
            "input": _layout_to_dict(self.input),
            "outputs": [_layout_to_dict(output) for output in self.outputs],
            "layers": list(self.layers),
            "batch": self.batch,
        }
        text = json.dumps(description).encode()
        data = _FILE_MAGIC + len(text).to_bytes(8, "little") + text + b"".join(blobs)
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            temporary.write_bytes(data + zlib.crc32(data).to_bytes(4, "little"))
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise ProgramError(f"Cannot write program {path}: {error.strerror}") from error

    @staticmethod
    def is_program(path):
        """Whether a file begins like one written by :meth:`save`; False if it cannot be read."""
        try:
            with open(path, "rb") as file:
                return file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        except OSError:
            return False

    @classmethod
    def load(cls, path, config=None):
        """Read a file written by :meth:`save`.

        Parameters
        ----------
        path : path-like
        config : :class:`~sigbit_hw.spec.config.AcceleratorConfig`, optional
            The accelerator that is to run the program.

        Raises
        ------
        :exc:`ProgramError`
            If the file cannot be read, is damaged, or was compiled for another configuration or contract.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ProgramError(f"Cannot read program {path}: {error.strerror}") from error
        if not data.startswith(_FILE_MAGIC):
            raise ProgramError(f"{path} is not a sigbit program; write one with `sigbit compile`")
        start = len(_FILE_MAGIC) + 8
        if len(data) < start + 4 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise ProgramError(f"Program {path} is damaged (CRC-32 differs); compile it again")
        text_end = start + int.from_bytes(data[len(_FILE_MAGIC) : start], "little")
        description = json.loads(data[start:text_end])
        if description["contract"] != CONTRACT_VERSION:
            raise ProgramError(
                f"Program {path} was compiled for contract version {description['contract']}, "
                f"this is version {CONTRACT_VERSION}; compile it again"
            )
        own = AcceleratorConfig.from_dict(description["config"])
        if config is not None and config.hash != own.hash:
            given = config.to_dict()
            differences = ", ".join(
                f"{key} {value} instead of {given[key]}" for key, value in own.to_dict().items() if value != given[key]
            )
            raise ProgramError(f"Program {path} was compiled for another accelerator: {differences}; compile it again")
        position = text_end

        def take(size):
            nonlocal position
            position += size
            return data[position - size : position]

        setup = tuple(take(size) for size in description["setup"])
        image = tuple(
            tuple(
                Packet(Kind(kind), count, destination, fence, take(size), tuple(rows), image)
                for kind, count, destination, fence, size, image, *rows in p
            )
            for p in description["image"]
        )
        layers = tuple(
            {**layer, "instructions": tuple(map(tuple, layer["instructions"]))} for layer in description["layers"]
        )
        return cls(
            own,
            description["name"],
            setup,
            image,
            _layout_from_dict(InputLayout, description["input"]),
            tuple(_layout_from_dict(OutputLayout, output) for output in description["outputs"]),
            layers,
            description["batch"],
        )


def _level_codes(parts):
    """Smallest level, and the codes of every integer from there on (-1: not a level), ``(integers, parts)``."""
    levels = parts.stored.levels
    table = np.full((levels[-1] - levels[0] + 1, parts.count), -1, dtype=np.int16)
    for level in levels:
        table[level - levels[0]] = parts.codes(level)
    return levels[0], table


def _layout_to_dict(layout):
    values = vars(layout)
    return {**values, "format": None if layout.format is None else str(layout.format)}


def _layout_from_dict(cls, values):
    values = {key: _tuples(value) for key, value in values.items()}
    return cls(**{**values, "format": None if values["format"] is None else Format.parse(values["format"])})


def _tuples(value):
    """Lists of JSON, inner ones too, as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
