"""Engines for weights that are indices into a codebook: four ways from indices and activations to the same integer.

Codebooks are inputs, so other levels need no other hardware. The lanes are what a column of an array has once per
output; tables, the combining multiplier and the shift of the activations serve all lanes. Spatial against temporal cost
is the idea of NUUQ (Zacchigna et al., Electronics 13(10), 1923); the engines are our definition (``docs/nuuq.md``).
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..lib.sizes import require_positive
from ..spec.codebooks import digit_plan, magnitudes

__all__ = ["ENGINES", "AddLane", "CodebookEngine", "Combiner", "DecodeLane", "Digit", "engine_tables"]

#: Kinds of engines, in the order of their cycles for many levels.
ENGINES = ("decode", "bins", "levels", "digits")


class Digit(data.StructLayout):
    """What a level adds: nothing, the activation, or its negative."""

    def __init__(self):
        super().__init__({"used": 1, "negative": 1})


def _digit_tables(count, level_count):
    return data.ArrayLayout(data.ArrayLayout(Digit(), level_count), count)


def _select(table, index):
    """Entry of a table; an index beyond the last one, which no code has, gives the last one."""
    return Array(table)[index]


class DecodeLane(wiring.Component):
    """Decode, multiply, accumulate: one product per cycle.

    Members
    -------
    codebook : In(ArrayLayout(signed(level_bits), level_count))
    valid, first : In(1)
        A product is to be added, or replaces the sum.
    index, activation : In
    total : Out(signed(accumulator_bits))
        Two cycles later.
    """

    latency_cycles = 2

    def __init__(self, level_count, level_bits, activation_bits, accumulator_bits):
        self._product_bits = level_bits + activation_bits
        super().__init__(
            {
                "codebook": In(data.ArrayLayout(signed(level_bits), level_count)),
                "valid": In(1),
                "first": In(1),
                "index": In(range(level_count)),
                "activation": In(activation_bits),
                "total": Out(signed(accumulator_bits)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        product = Signal(signed(self._product_bits), reset_less=True)
        valid, first = Signal(), Signal(reset_less=True)
        m.d.sync += [
            product.eq(_select(self.codebook, self.index) * self.activation),
            valid.eq(self.valid),
            first.eq(self.first),
        ]
        with m.If(valid):
            m.d.sync += self.total.eq(Mux(first, 0, self.total) + product)
        return m


class AddLane(wiring.Component):
    """Add or subtract the activation in every accumulator whose table says so. No multiplier.

    Parameters
    ----------
    bins : int
        Accumulators.
    level_count, activation_bits, accumulator_bits : int

    Members
    -------
    digits : In(tables of :class:`Digit` by bin and index)
    valid, first : In(1)
        The activation is to be added, to zero in place of the sums if ``first``.
    index, activation : In
    totals : Out(ArrayLayout(signed(accumulator_bits), bins))
        One cycle later.
    """

    latency_cycles = 1

    def __init__(self, bins, level_count, activation_bits, accumulator_bits):
        super().__init__(
            {
                "digits": In(_digit_tables(bins, level_count)),
                "valid": In(1),
                "first": In(1),
                "index": In(range(level_count)),
                "activation": In(activation_bits),
                "totals": Out(data.ArrayLayout(signed(accumulator_bits), bins)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        for table, total in zip(self.digits, self.totals, strict=True):
            digit = Signal(Digit())
            m.d.comb += digit.eq(Array(entry.as_value() for entry in table)[self.index])
            # A subtraction adds the complement and one.
            mask = digit.negative.replicate(len(total))
            term = Mux(digit.used, self.activation, 0)[: len(self.activation)] ^ mask[: len(self.activation)]
            operand = Cat(term, digit.negative.replicate(len(total) - len(term)))
            with m.If(self.valid):
                m.d.sync += total.eq(Mux(self.first, 0, total) + operand.as_signed() + digit.negative)
        return m


class Combiner(wiring.Component):
    """``total += scale * bin``: the multiplier that lanes share.

    Members
    -------
    valid, first : In(1)
    scale : In(scale_bits)
    bin : In(signed(bin_bits))
    total : Out(signed(accumulator_bits))
        One cycle later.
    """

    def __init__(self, scale_bits, bin_bits, accumulator_bits):
        super().__init__(
            {
                "valid": In(1),
                "first": In(1),
                "scale": In(scale_bits),
                "bin": In(signed(bin_bits)),
                "total": Out(signed(accumulator_bits)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        with m.If(self.valid):
            m.d.sync += self.total.eq(Mux(self.first, 0, self.total) + self.scale * self.bin)
        return m


def engine_tables(kind, codebook, rows):
    """Program of an engine for a codebook, for its members of these names.

    Parameters
    ----------
    rows : int
        Tables that the engine has: bins, or passes.

    Raises
    ------
    :exc:`ValueError`
        If the engine has too few tables.
    """
    if kind == "decode":
        return {"codebook": list(codebook)}
    if kind == "digits":
        plan = digit_plan(codebook)
        scales, digits = plan.planes, plan.digits
    else:
        scales = magnitudes(codebook)
        digits = tuple(tuple((c > 0) - (c < 0) if abs(c) == scale else 0 for c in codebook) for scale in scales)
    if len(scales) > rows:
        raise ValueError(f"The codebook {codebook} takes {len(scales)} tables, the engine has {rows}")
    words = [[{"used": int(d != 0), "negative": int(d < 0)} for d in row] for row in digits]
    words += [[{"used": 0, "negative": 0}] * len(codebook)] * (rows - len(words))
    return {"digits": words, "scales": [*scales, *[0] * (rows - len(scales))], "rows": len(scales)}


class CodebookEngine(wiring.Component):
    """One output at a time from a memory of indices and activations, with one lane of the given kind.

    ``decode``: one multiplier per lane, ``D`` cycles. ``bins``: an accumulator per magnitude and a shared multiplier,
    ``D + m``. ``levels``: one accumulator that sums the activations of one magnitude in every pass, ``m * D + m``.
    ``digits``: one pass per used plane of signed digits, the activation shifted to that plane at the edge, no
    multiplier, ``J * D``.

    Parameters
    ----------
    kind : str
        One of :data:`ENGINES`.
    level_count, level_bits, activation_bits : int
        ``N``, ``B`` and bits of unsigned activations.
    max_reduction : int
        Longest reduction ``D``.
    rows : int
        Tables of bins or passes: magnitudes, or used planes, of the codebooks to come.

    Members
    -------
    codebook : In(...)
        Of ``decode``.
    digits, scales, rows : In(...)
        Of the others, as :func:`engine_tables` gives them; constant while the engine works.
    operand : In(...)
        Writes index and activation number ``address``.
    start : In(1)
        Begins the next cycle; not while ``busy``.
    reduction : In
        ``D``, 1 or more; constant while the engine works.
    busy : Out(1)
    done : Out(1)
        Pulse; ``total`` is valid from now on. ``cycles + latency_cycles`` cycles after the start.
    total : Out(signed)
    cycles : Out(16)
        Cycles in which the lane or its multiplier worked for this output.
    """

    #: From the last cycle of work to ``done``: operand memory, lane, combiner or second stage.
    latency_cycles = 3

    def __init__(self, kind, *, level_count, level_bits, activation_bits, max_reduction, rows=1):
        if kind not in ENGINES:
            raise ValueError(f"kind must be one of {', '.join(ENGINES)}, not {kind!r}")
        require_positive(level_count=level_count, max_reduction=max_reduction, rows=rows)
        self._kind = kind
        self._shape = level_count, level_bits, activation_bits
        self._max_reduction = max_reduction
        self._rows = rows
        activations = max_reduction * ((1 << activation_bits) - 1)
        self._bin_bits = 1 + activations.bit_length()
        self._total_bits = 1 + (activations * ((1 << level_bits - 1) - 1)).bit_length()
        tables = (
            {"codebook": In(data.ArrayLayout(signed(level_bits), level_count))}
            if kind == "decode"
            else {
                "digits": In(_digit_tables(rows, level_count)),
                "scales": In(data.ArrayLayout(max(level_bits - 1, level_bits.bit_length()), rows)),
                "rows": In(range(rows + 1)),
            }
        )
        super().__init__(
            {
                **tables,
                "operand": In(
                    wiring.Signature(
                        {
                            "en": Out(1),
                            "address": Out(range(max_reduction)),
                            "data": Out(
                                data.StructLayout({"index": range(level_count), "activation": activation_bits})
                            ),
                        }
                    )
                ),
                "start": In(1),
                "reduction": In(range(max_reduction + 1)),
                "busy": Out(1),
                "done": Out(1),
                "total": Out(signed(self._total_bits)),
                "cycles": Out(16),
            }
        )

    def elaborate(self, platform):
        m = Module()
        level_count, level_bits, activation_bits = self._shape
        kind = self._kind
        shape = self.operand.data.shape()
        m.submodules.operands = operands = Memory(shape=shape, depth=self._max_reduction, init=[])
        write, read = operands.write_port(), operands.read_port()
        m.d.comb += [
            write.en.eq(self.operand.en),
            write.addr.eq(self.operand.address),
            write.data.eq(self.operand.data),
        ]

        # Cycle 0: what to do, an operand to add or a bin to combine.
        row = Signal(range(max(self._rows, 2)))
        position = Signal(range(self._max_reduction))
        combining = Signal()
        token = Signal(data.StructLayout({"add": 1, "combine": 1, "first": 1, "last": 1, "row": row.shape()}))
        last_position = position == self.reduction - 1
        m.d.comb += [
            read.addr.eq(position),
            token.row.eq(row),
            token.add.eq(self.busy & ~combining),
            token.combine.eq(self.busy & combining),
        ]
        with m.If(self.start):
            m.d.sync += [self.busy.eq(1), self.cycles.eq(0), row.eq(0), position.eq(0), combining.eq(0)]
        with m.If(self.busy):
            m.d.sync += self.cycles.eq(self.cycles + 1)
            with m.If(~combining):
                m.d.sync += position.eq(Mux(last_position, 0, position + 1))
            if kind == "decode":
                m.d.comb += [token.first.eq(position == 0), token.last.eq(last_position)]
            else:
                last_row = row == self.rows - 1
                if kind == "bins":
                    m.d.comb += [token.first.eq(Mux(combining, row == 0, position == 0))]
                    m.d.comb += token.last.eq(combining & last_row)
                    m.d.sync += combining.eq(combining | last_position)
                    with m.If(combining):
                        m.d.sync += row.eq(row + 1)
                elif kind == "levels":
                    m.d.comb += [token.first.eq(Mux(combining, row == 0, position == 0))]
                    m.d.comb += token.last.eq(combining & last_row)
                    m.d.sync += combining.eq(~combining & last_position)
                    with m.If(combining):
                        m.d.sync += row.eq(row + 1)
                else:
                    m.d.comb += [token.first.eq((position == 0) & (row == 0)), token.last.eq(last_position & last_row)]
                    with m.If(last_position):
                        m.d.sync += row.eq(row + 1)
            with m.If(token.last):
                m.d.sync += self.busy.eq(0)

        # Cycle 1: the operand. Cycle 2: the lane has added. Cycle 3: the total.
        tokens = [token]
        for stage in range(1, self.latency_cycles):
            tokens.append(Signal.like(token, name=f"token_{stage}"))
            m.d.sync += tokens[stage].eq(tokens[stage - 1])
        m.d.sync += self.done.eq(tokens[2].last)
        index, activation = read.data.index, read.data.activation
        lane_row = tokens[1].row
        if kind == "decode":
            m.submodules.lane = lane = DecodeLane(level_count, level_bits, activation_bits, self._total_bits)
            m.d.comb += [lane.codebook.eq(self.codebook), lane.activation.eq(activation), self.total.eq(lane.total)]
        elif kind == "digits":
            wide = activation_bits + level_bits
            m.submodules.lane = lane = AddLane(1, level_count, wide, self._total_bits)
            plane = Array(self.scales)[lane_row][: level_bits.bit_length()]
            m.d.comb += [
                lane.digits[0].eq(Array(table.as_value() for table in self.digits)[lane_row]),
                lane.activation.eq(activation << plane),
            ]
            m.d.sync += self.total.eq(lane.totals[0])
        else:
            bins = self._rows if kind == "bins" else 1
            m.submodules.lane = lane = AddLane(bins, level_count, activation_bits, self._bin_bits)
            m.submodules.combiner = combiner = Combiner(level_bits - 1, self._bin_bits, self._total_bits)
            if kind == "bins":
                m.d.comb += [lane.digits.eq(self.digits), combiner.bin.eq(Array(lane.totals)[tokens[2].row])]
            else:
                m.d.comb += [
                    lane.digits[0].eq(Array(table.as_value() for table in self.digits)[lane_row]),
                    combiner.bin.eq(lane.totals[0]),
                ]
            m.d.comb += [
                lane.activation.eq(activation),
                combiner.valid.eq(tokens[2].combine),
                combiner.first.eq(tokens[2].first),
                combiner.scale.eq(Array(self.scales)[tokens[2].row]),
                self.total.eq(combiner.total),
            ]
        m.d.comb += [lane.valid.eq(tokens[1].add), lane.first.eq(tokens[1].first), lane.index.eq(index)]
        return m
