"""Codes that are indices of levels which every program brings along, for table cells: encoder and decoder."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..lib.delay import delayed
from ..spec.instructions import CODEBOOK_DISTANCE_BITS, CODEBOOK_LEVEL_BITS, Encoding
from .encode import UNIFORM_BITS, uniform_level
from .requantize import ANY_HALF_UNIT_BITS, ANY_LEVEL_BITS
from .residual import DECODER_INPUTS, add_parts

__all__ = ["IndexDecoder", "IndexEncoder"]


def _selected(values, index):
    """One of ``2**len(index)`` values; synthesis makes better use of look-up tables than of a switch."""
    for bit in index:
        values = [Mux(bit, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]


class IndexEncoder(wiring.Component):
    """Project half units to the nearest level, ties to the larger one, and give its index or a digit, every cycle.

    The index is found bit by bit, highest first, each by one comparison with the middle of two levels. Uniform formats
    are as those of :class:`~.encode.Encoder`.

    Parameters
    ----------
    code_bits : int
        2 or more; there are as many levels as codes.

    Members
    -------
    half_units : In(signed)
        ``q``.
    middles : In(ArrayLayout(signed, 2**code_bits - 1))
        Sums of neighbouring levels, not decreasing; each so many cycles behind ``half_units`` as :attr:`middle_cycles`
        says.
    field, encoding, limit, excess, relu, part, code
        As of :class:`~.encode.Encoder`; ``Encoding.NATIVE`` gives the index.
    """

    def __init__(self, code_bits):
        self._code_bits = code_bits
        #: Cycles from ``half_units`` to ``code``.
        self.latency_cycles = max(code_bits, 3) + 1
        self.module_name = f"index_encoder_{code_bits}"
        super().__init__(
            {
                "half_units": In(signed(ANY_HALF_UNIT_BITS)),
                "middles": In(data.ArrayLayout(signed(ANY_HALF_UNIT_BITS), (1 << code_bits) - 1)),
                "field": In(code_bits),
                "encoding": In(2),
                "limit": In(UNIFORM_BITS),
                "excess": In(UNIFORM_BITS),
                "relu": In(1),
                "part": In(range(max(2, -(-UNIFORM_BITS // code_bits)))),
                "code": Out(code_bits),
            }
        )

    @property
    def middle_cycles(self):
        """Cycles from ``half_units`` to each of the ``middles``."""
        cycles = [0] * ((1 << self._code_bits) - 1)
        for stage in range(1, self._code_bits):
            for position in self._candidates(stage):
                cycles[position] = max(1, stage - 1)
        return tuple(cycles)

    def _candidates(self, stage):
        """Middles of which one decides about bit number ``stage`` from the top, by the bits above it."""
        step = 1 << self._code_bits - stage
        return range(step // 2 - 1, len(self.middles), step)

    def elaborate(self, platform):
        m = Module()
        bits = self._code_bits

        # Cycles 1 to code_bits: one bit each. Which two middles may be next is chosen while the bit before is found.
        word = Mux(self.relu & self.half_units[-1], 0, self.half_units).as_signed()
        index = Const(0, 0)
        pair = [self.middles[self._candidates(0)[0]]]
        for stage in range(bits):
            reached = Signal(stage + 1, name=f"index_{stage}", reset_less=True)
            m.d.sync += reached.eq(Cat(word >= _selected(pair, index[: len(pair) - 1]).as_signed(), index))
            if stage + 1 < bits:
                candidates = [self.middles[position] for position in self._candidates(stage + 1)]
                if stage:
                    chosen = [Signal(signed(ANY_HALF_UNIT_BITS), name=f"middle_{stage}_{n}", reset_less=True)
                              for n in range(2)]  # fmt: skip
                    m.d.sync += [middle.eq(_selected(candidates[n::2], index)) for n, middle in enumerate(chosen)]
                    candidates = chosen
                pair = candidates
                word = delayed(m, word, 1, name=f"word_{stage}").as_signed()
            index = reached
        cycles = self.latency_cycles - 1
        index = delayed(m, index, cycles - bits, name="index")

        # Cycle 1: integer in excess, rounded by the carry of the bit below; then as every encoder.
        doubled = self.half_units + Cat(Const(1, 1), self.excess)
        rounded = Signal(signed(len(doubled) - 1), reset_less=True)
        m.d.sync += rounded.eq(doubled >> 1)
        negative, relu, limit, excess = (
            delayed(m, value, 1, name=name)
            for name, value in (
                ("negative", self.half_units[-1]),
                ("relu", self.relu),
                ("limit", self.limit),
                ("excess", self.excess),
            )
        )
        level = delayed(m, uniform_level(m, rounded, negative, relu, limit, excess), cycles - 3, name="level")

        # Last cycle: one code.
        encoding, part, field = (
            delayed(m, getattr(self, name), cycles, name=name) for name in ("encoding", "part", "field")
        )
        with m.Switch(encoding):
            with m.Case(Encoding.NATIVE):
                m.d.sync += self.code.eq(index)
            with m.Case(Encoding.UINT, Encoding.INT), m.Switch(part):
                for number in range(-(-len(level) // bits)):
                    with m.Case(number):
                        m.d.sync += self.code.eq(level[bits * number :][:bits])
            with m.Case(Encoding.RAW):
                m.d.sync += self.code.eq(field)
        return m


class IndexDecoder(wiring.Component):
    """:class:`~.residual.ResidualDecoder` of codes that are indices of levels given from outside.

    Parameters
    ----------
    code_bits : int

    Members
    -------
    distances : In(ArrayLayout(CODEBOOK_DISTANCE_BITS, 2**code_bits))
        How far the level of every code is above ``lowest``; with the codes.
    lowest : In(signed(CODEBOOK_LEVEL_BITS))
        Level that digits of 0 stand for, or the smallest level if ``native``; 0 if not ``enable``.
    code, enable, first, part, native, level
        As of :class:`~.residual.ResidualDecoder`.
    """

    #: Choose among four, choose, then add to the parts before.
    latency_cycles = 3

    def __init__(self, code_bits):
        self._code_bits = code_bits
        self.module_name = f"index_decoder_{code_bits}"
        super().__init__(
            {
                "code": In(code_bits),
                "distances": In(data.ArrayLayout(CODEBOOK_DISTANCE_BITS, 1 << code_bits)),
                "enable": In(1),
                "first": In(1),
                "part": In(range(max(2, -(-UNIFORM_BITS // code_bits)))),
                "native": In(1),
                "lowest": In(signed(CODEBOOK_LEVEL_BITS)),
                "level": Out(signed(ANY_LEVEL_BITS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # Cycle 1: one of every four levels.
        distances = list(self.distances)
        chosen = [
            Signal(CODEBOOK_DISTANCE_BITS, name=f"chosen_{n}", reset_less=True) for n in range(len(distances) // 4)
        ]
        m.d.sync += [level.eq(_selected(distances[4 * n :][:4], self.code[:2])) for n, level in enumerate(chosen)]
        inputs = {name: delayed(m, getattr(self, name), 1, name=name) for name in DECODER_INPUTS}

        # Cycles 2 and 3.
        add_parts(m, self.level, inputs, _selected(chosen, inputs["code"][2:]), self._code_bits)
        return m
