"""Unpacks weights that arrive as indices into a short table of codes, several weight memory words at a time."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..lib.layout import table_layout
from ..spec.codebooks import STREAM_PACKINGS
from ..spec.packets import PACKING, PACKING_CODES

__all__ = ["PackedGroup", "PackingSignature", "WeightUnpacker", "divide", "group_beats"]

#: Indices in a lane's word at most, and bits of that word.
WORDS_MAX = max(form.count for form in STREAM_PACKINGS)
LANE_BITS_MAX = max(form.word_bits for form in STREAM_PACKINGS)


def divide(m, word, base, name):
    """Quotient and remainder of ``word`` by a constant that is no power of two, from the top bit on.

    As many bits at a time as fit six-input tables with the remainder so far.
    """
    remainder_bits = (base - 1).bit_length()
    step = 6 - remainder_bits
    quotient, remainder, remainders = [], Const(0, 0), 1
    for stage, low in enumerate(reversed(range(0, len(word), step))):
        chunk = word[low : low + step]
        entry = Signal(len(chunk) + remainder_bits, name=f"{name}_{stage}")
        results = [value // base | value % base << len(chunk) for value in range(remainders << len(chunk))]
        m.d.comb += entry.eq(Array(Const(result, len(entry)) for result in results)[Cat(chunk, remainder)])
        quotient.insert(0, entry[: len(chunk)])
        remainder, remainders = entry[len(chunk) :], base
    return Cat(*quotient), remainder


def group_beats(config):
    """Stream beats of a whole group, for every packing."""
    lanes = config.weight_columns * config.vector
    return [config.beats_per_word(lanes * form.word_bits) for form in STREAM_PACKINGS]


class PackedGroup(data.StructLayout):
    """Packed indices, the last beat on top; the address of the first of ``words`` memory words that they make."""

    def __init__(self, config):
        super().__init__(
            {
                "data": max(group_beats(config)) * config.stream_bits,
                "address": range(config.weight_depth),
                "words": range(WORDS_MAX + 1),
            }
        )


class PackingSignature(wiring.Signature):
    """``en`` puts the entry ``data`` of :data:`~sigbit_hw.spec.packets.PACKING` in force."""

    def __init__(self):
        super().__init__({"en": Out(1), "data": Out(PACKING.width)})


class WeightUnpacker(wiring.Component):
    """Turn groups of packed indices into weight memory words, one per cycle.

    Lane ``j`` of a group is a word of the packing in force (:data:`~sigbit_hw.spec.codebooks.STREAM_PACKINGS`); its
    ``i``-th digit is the index of code ``j`` of the group's ``i``-th memory word.

    Parameters
    ----------
    config : :class:`~sigbit_hw.spec.config.AcceleratorConfig`

    Members
    -------
    packing : In(PackingSignature)
        Only while not ``busy``.
    i : In(stream.Signature(PackedGroup))
        At least one word.
    count, last_beat : Out
        Words and beats less one of a whole group in the packing in force.
    write : Out(...)
        To the weight memory, which always accepts: ``en``, ``address``, ``data``.
    busy : Out(1)
        Words are still to be written.
    """

    def __init__(self, config):
        self._config = config
        self._lanes = config.weight_columns * config.vector
        super().__init__(
            {
                "packing": In(PackingSignature()),
                "i": In(stream.Signature(PackedGroup(config))),
                "count": Out(range(WORDS_MAX + 1)),
                "last_beat": Out(range(max(group_beats(config)))),
                "write": Out(
                    wiring.Signature(
                        {
                            "en": Out(1),
                            "address": Out(range(config.weight_depth)),
                            "data": Out(config.weight_word_bits),
                        }
                    )
                ),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        code_bits = config.weight_format.bits
        packing = Signal(table_layout(PACKING))
        codes = Array(packing[f"code{i}"][:code_bits] for i in range(PACKING_CODES))
        with m.If(self.packing.en):
            m.d.sync += packing.eq(self.packing.data)

        left = Signal(range(WORDS_MAX + 1))
        lanes = [Signal(LANE_BITS_MAX, name=f"lane_{j}", reset_less=True) for j in range(self._lanes)]
        taken = [Signal(LANE_BITS_MAX, name=f"taken_{j}") for j in range(self._lanes)]
        rest = [Signal(LANE_BITS_MAX, name=f"rest_{j}") for j in range(self._lanes)]
        indices = [Signal(range(PACKING_CODES), name=f"index_{j}") for j in range(self._lanes)]
        m.d.comb += [
            self.busy.eq(left != 0),
            self.i.ready.eq(left <= 1),
            self.write.en.eq(left != 0),
            self.write.data.eq(Cat(codes[index] for index in indices)),
        ]
        divisions = []
        for j, lane in enumerate(lanes):
            found = {}
            for base in sorted({form.base for form in STREAM_PACKINGS}):
                if base & (base - 1):
                    width = next(form.word_bits for form in STREAM_PACKINGS if form.base == base)
                    found[base] = divide(m, lane[:width], base, f"lane_{j}_by_{base}")
                else:
                    bits = base.bit_length() - 1
                    found[base] = lane[bits:], lane[:bits]
            divisions.append(found)
        with m.Switch(packing.form):
            for number, form in reversed(list(enumerate(STREAM_PACKINGS))):
                with m.Case(number) if number else m.Default():
                    beats = group_beats(config)[number]
                    # Beats come in from the top.
                    group = self.i.payload.data[-beats * config.stream_bits :]
                    m.d.comb += [self.count.eq(form.count), self.last_beat.eq(beats - 1)]
                    for j, found in enumerate(divisions):
                        quotient, remainder = found[form.base]
                        m.d.comb += [
                            taken[j].eq(group[j * form.word_bits :][: form.word_bits]),
                            rest[j].eq(quotient),
                            indices[j].eq(remainder),
                        ]
        with m.If(left != 0):
            m.d.sync += [
                left.eq(left - 1),
                self.write.address.eq(self.write.address + 1),
                *(lane.eq(value) for lane, value in zip(lanes, rest, strict=True)),
            ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                left.eq(self.i.payload.words),
                self.write.address.eq(self.i.payload.address),
                *(lane.eq(value) for lane, value in zip(lanes, taken, strict=True)),
            ]
        return m
