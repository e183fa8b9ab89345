# amaranth: UnusedElaboratable=no
"""The grid of masked cells: term parts of 8-bit activations that are chosen at run time, against 8-bit weights (SDP-1).

Our definition. A row is a group of the reduction axis. At its edge a masking unit keeps the most important nibbles of
every group, and a compactor hands them out, ``token_lanes`` per cycle. A cell holds the group's weights in distributed
RAM, and a token reads its own. Every group takes the same cycles, so rows stay in step and nothing ever waits.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..arith.mask import Compactor, MaskUnit, mask_cycles, token_layout
from ..lib.delay import delayed
from ..lib.shared import instantiate
from ..lib.tree import adder_tree, tree_levels
from .columns import BUS_COLUMNS, GridTiming, bus_cycles, bus_stage, grid_members

__all__ = ["MaskedCell", "MaskedGrid", "group_sum_bits", "mask_layout"]

#: Largest magnitudes of a weight, which may be -128, and of an activation.
WEIGHT_MAX, ACTIVATION_MAX = 128, 255
#: From a token at a cell to the first level of its adders: the token, the weight, two rows of products, the product.
PRODUCT_CYCLES = 4


def mask_layout(group):
    """What selects: ``budget``; ``magnitude_keys``: policy MAG; ``zero``: the code of 0."""
    return data.StructLayout({"budget": range(2 * group + 1), "magnitude_keys": 1, "zero": 8})


def group_sum_bits(group):
    """Bits of the sum of a group."""
    return 1 + (group * WEIGHT_MAX * ACTIVATION_MAX).bit_length()


class MaskedCell(wiring.Component):
    """Tokens of one group that pass by, against ``group`` weights that stay; sums of groups go down the column.

    Tokens move one column to the right per cycle. A group's tokens come in beats, one per cycle; ``sums_out`` means
    something in the cycle that belongs to its last beat, ``latency_cycles`` behind it. ``sums_in`` must be given one
    cycle before ``sums_out``. Negation is exact, so idle lanes, whose nibble is 0, add nothing.

    Parameters
    ----------
    group, lanes, planes : int
        Weights per cell, tokens per plane and cycle, planes with the same weights.
    weight_bits, sum_bits : int
        Widths of weights and sums, two's complement; sums wrap around.

    Members
    -------
    tokens, tokens_out : ``data.ArrayLayout``
        Plane by plane; out to the next column one cycle later.
    first : ``In(1)``
        The first beat of a group.
    bank : ``In(1)``
        Weights that the beat is multiplied with.
    write : ``In``
        ``enable``, ``bank``, ``index``: store ``weight``; read from the next cycle on.
    weight : ``In``
    sums_in, sums_out : ``data.ArrayLayout``
        One sum per plane.
    """

    def __init__(self, group, *, lanes, planes, weight_bits, sum_bits):
        self._group = group
        self._lanes = lanes
        self._planes = planes
        self._weight_bits = weight_bits
        self._sum_bits = sum_bits
        #: Cycles from the last beat to ``sums_out``: products, adders, sum of the group, sum of the column.
        self.latency_cycles = PRODUCT_CYCLES + tree_levels(lanes) + 2
        words = data.ArrayLayout(token_layout(group), planes * lanes)
        sums = data.ArrayLayout(signed(sum_bits), planes)
        super().__init__(
            {
                "tokens": In(words),
                "tokens_out": Out(words),
                "first": In(1),
                "bank": In(1),
                "write": In(data.StructLayout({"index": range(group), "bank": 1, "enable": 1})),
                "weight": In(signed(weight_bits)),
                "sums_in": In(sums),
                "sums_out": Out(sums),
            }
        )

    @property
    def module_name(self):
        """Name that is the same for equal cells only."""
        return f"masked_cell_{self._group}_{self._lanes}x{self._planes}_{self._weight_bits}_{self._sum_bits}"

    def elaborate(self, platform):
        m = Module()

        # Cycle 1: tokens.
        tokens = Signal.like(self.tokens, reset_less=True)
        bank = Signal(reset_less=True)
        m.d.sync += [tokens.eq(self.tokens), bank.eq(self.bank)]
        m.d.comb += self.tokens_out.eq(tokens)
        first = delayed(m, self.first, PRODUCT_CYCLES + tree_levels(self._lanes), name="first")

        memory = Memory(
            shape=signed(self._weight_bits), depth=2 * self._group, init=[], attrs={"ram_style": "distributed"}
        )
        m.submodules.weights = memory
        write = memory.write_port()
        m.d.comb += [
            write.en.eq(self.write.enable),
            write.addr.eq(Cat(self.write.index, self.write.bank)),
            write.data.eq(self.weight),
        ]

        group_bits = group_sum_bits(self._group)
        for plane in range(self._planes):
            values, signs = [], []
            for lane in range(self._lanes):
                name = f"{plane}_{lane}"
                token = tokens[plane * self._lanes + lane]
                # Cycle 2: the weight.
                read = memory.read_port(domain="comb")
                m.d.comb += read.addr.eq(Cat(token.index, bank))
                weight = delayed(m, read.data, 1, name=f"weight_{name}")
                nibble = delayed(m, token.nibble, 1, name=f"nibble_{name}")
                # Cycle 3: products with two bits each. Cycle 4: their sum.
                halves = []
                for half in range(2):
                    product = Signal(signed(self._weight_bits + 2), name=f"half_{name}_{half}", reset_less=True)
                    digits = [
                        weight.as_unsigned() & nibble[2 * half + bit].replicate(self._weight_bits) for bit in range(2)
                    ]
                    m.d.sync += product.eq(digits[0].as_signed() + (digits[1].as_signed().shift_left(1)))
                    halves.append(product)
                product = Signal(signed(self._weight_bits + 4), name=f"product_{name}", reset_less=True)
                m.d.sync += product.eq(halves[0] + halves[1].shift_left(2))
                high = delayed(m, token.high, PRODUCT_CYCLES - 1, name=f"high_{name}")
                sign = delayed(m, token.negative, PRODUCT_CYCLES - 1, name=f"negative_{name}")
                value = Mux(high, product.shift_left(4), product)
                values.append(value ^ sign.replicate(len(value)).as_signed())
                signs.append(sign)

            # One level of adders per cycle. Every adder takes the carry of its right operand's first lane.
            level = 0
            while len(values) > 1:
                level += 1
                sums, rest = [], []
                for index in range(0, len(values), 2):
                    left, right = values[index : index + 2]
                    node = Signal(
                        signed(max(len(left), len(right)) + 1), name=f"sum_{plane}_{level}_{index}", reset_less=True
                    )
                    m.d.sync += node.eq(_add(left, right, signs[index + 1], len(node)))
                    sums.append(node)
                    rest.append(delayed(m, signs[index], 1, name=f"sign_{plane}_{level}_{index}"))
                values, signs = sums, rest

            # Then the sum of the group, then that of the column.
            accumulated = Signal(signed(group_bits), name=f"accumulated_{plane}", reset_less=True)
            kept = accumulated.as_unsigned() & (~first).replicate(group_bits)
            m.d.sync += [
                accumulated.eq(_add(kept, values[0], signs[0], group_bits)),
                self.sums_out[plane].eq(self.sums_in[plane] + accumulated),
            ]
        return m


def _add(left, right, carry, bits):
    """``left + right + carry`` in one carry chain: a bit below both words makes the carry."""
    left, right = (Cat(bit, _extend(value, bits)) for bit, value in ((C(1, 1), left), (carry, right)))
    return (left + right)[1 : bits + 1]


def _extend(value, bits):
    """A word in two's complement, made longer."""
    return Cat(value, value[-1].replicate(bits - len(value)))


class MaskedGrid(wiring.Component):
    """Exact sums of the kept term parts of ``rows`` groups for every column and plane, systolic.

    The ports of :class:`~.grid.Grid`, which mean the same but for these. A vector is taken with ``start``, the next
    one at the earliest ``ceil(budget / token_lanes)`` cycles later; its sums come ``timing.latency_cycles`` behind
    the last of these cycles. Sums owe nothing to the weights' signs.

    Weight words of a tile: word ``i`` holds the weights at position ``i % lanes`` of their groups, of
    ``weight_columns * lanes`` columns from ``i // lanes`` times as many on, rows first, in two's complement.

    Parameters
    ----------
    weight_format, activation_format : :class:`Format`
        ``INT`` of up to 8 bits, and ``UINT(8)``.
    shape : :class:`~.columns.GridShape`

    Members
    -------
    start : ``In(1)``
        ``codes``, ``mask`` and ``swap`` are valid.
    mask : ``In(mask_layout(lanes))``
    valid_tokens : ``Out``
        Tokens that are not idle, of all rows and planes, ``valid_tokens_cycles`` after ``start`` those of the first
        beat. Rows whose weights are all zero in the first ``lanes`` words of a tile have none: nothing that a layer
        reads lies there.
    """

    def __init__(self, weight_format, activation_format, shape):
        self._weight_bits = weight_format.bits
        self._shape = shape
        self._cell = self._build_cell()
        #: :class:`~.columns.GridTiming`
        self.timing = self._timing()
        lanes = shape.rows * shape.planes * shape.token_lanes
        self.valid_tokens_cycles = self.timing.edge_cycles + 1 + tree_levels(lanes)
        super().__init__(
            grid_members(weight_format, activation_format, shape)
            | {
                "start": In(1),
                "mask": In(mask_layout(shape.lanes)),
                "valid_tokens": Out(range(lanes + 1)),
            }
        )

    def _build_cell(self):
        shape = self._shape
        return MaskedCell(
            shape.lanes,
            lanes=shape.token_lanes,
            planes=shape.planes,
            weight_bits=self._weight_bits,
            sum_bits=shape.sum_bits,
        )

    def _timing(self):
        shape = self._shape
        edge = mask_cycles(shape.lanes) + Compactor.latency_cycles
        hold, lead = 1, 0
        for column in range(shape.columns):
            group = column // (shape.weight_columns * shape.lanes)
            # Of the column's words, from the tile's first one on.
            written = 1 + column // BUS_COLUMNS * bus_cycles(shape.weight_columns) + group * shape.lanes
            # The last row still reads the old weights one cycle before the new ones; row 0 reads those first.
            hold = max(hold, edge + column + shape.rows - 1 - written)
            lead = max(lead, written + shape.lanes - 1 - (edge + column))
        latency = edge + shape.rows - 1 + self._cell.latency_cycles
        return GridTiming(edge, tuple(latency + column for column in range(shape.columns)), hold, lead)

    def elaborate(self, platform):
        m = Module()
        shape = self._shape
        edge = self.timing.edge_cycles

        # Edge of the activations: a masking unit and a compactor per row and plane, then as many cycles as the row's
        # number.
        masked = mask_cycles(shape.lanes)
        start = delayed(m, self.start, masked, name="start", clear=True)
        neighbours, nonzero = [], []
        for row in range(shape.rows):
            tokens = []
            for plane in range(shape.planes):
                unit = MaskUnit(shape.lanes)
                compactor = Compactor(shape.lanes, shape.token_lanes)
                instantiate(m, platform, f"mask_{row}_{plane}", unit)
                instantiate(m, platform, f"compactor_{row}_{plane}", compactor)
                position = plane * shape.vector + row * shape.lanes
                m.d.comb += [
                    unit.codes.eq(Cat(self.codes[position + lane] for lane in range(shape.lanes))),
                    unit.zero.eq(self.mask.zero),
                    unit.budget.eq(self.mask.budget),
                    unit.magnitude_keys.eq(self.mask.magnitude_keys),
                    compactor.i.eq(unit.o),
                    compactor.start.eq(start),
                ]
                tokens.append(compactor.tokens)
                nonzero.append(Cat(token.nibble.any() for token in compactor.tokens))
            neighbours.append(delayed(m, Cat(tokens), row, name=f"row_{row}"))

        # What travels with tokens, one register per diagonal: the first beat, and the bank of weights.
        last_bank, bank = Signal(), Signal()
        m.d.comb += bank.eq(last_bank ^ (self.start & self.swap))
        m.d.sync += last_bank.eq(bank)
        diagonal = [delayed(m, Cat(self.start, bank), edge, name="tag_edge", clear=True)]
        for position in range(1, shape.columns + shape.rows - 1):
            diagonal.append(delayed(m, diagonal[-1], 1, name=f"tag_{position}", clear=True))

        # Edge of the weights. All words of a tile go where its first one does.
        held = Signal()
        fill_bank = Signal()
        m.d.comb += fill_bank.eq(Mux(self.weight.index == 0, ~last_bank, held))
        with m.If(self.weight.valid):
            m.d.sync += held.eq(fill_bank)
        index_bits = (shape.lanes - 1).bit_length()
        first_words = self.weight.valid & (self.weight.index[index_bits:] == 0)
        filled = delayed(m, Cat(first_words, self.weight.index == 0, fill_bank), 1, name="filled", clear=True)
        row_bits = shape.rows * self._weight_bits
        words = Value.cast(self.weight.word)
        used = [Signal(shape.rows, name=f"used_{number}") for number in range(2)]
        for row in range(shape.rows):
            own = range(row * self._weight_bits, len(words), row_bits)
            holds = Cat(words[start : start + self._weight_bits] for start in own).any()
            holds = delayed(m, holds, 1, name=f"holds_{row}")
            for number, rows in enumerate(used):
                with m.If(filled[0] & (filled[2] == number)):
                    m.d.sync += rows[row].eq(holds | (rows[row] & ~filled[1]))

        # Tokens of rows with weights. A row's flag is there one cycle behind its tokens, as its weights are.
        counted = delayed(m, diagonal[0][1], 1, name="counted_bank")
        now = Mux(counted, used[1], used[0])
        lanes = shape.planes * shape.token_lanes
        valid = [
            delayed(m, token, 1, name=f"nonzero_{number}") & now[number // lanes]
            for number, token in enumerate(Cat(nonzero))
        ]
        m.d.comb += self.valid_tokens.eq(adder_tree(m, valid, name="valid_tokens"))
        bus = [self.weight.valid, Cat(self.weight.index, fill_bank), self.weight.word]

        for column in range(shape.columns):
            bus = bus_stage(m, bus, column, bus_cycles(shape.weight_columns), first=0)
            valid, place, word = bus
            group, inside = divmod(column, shape.weight_columns * shape.lanes)
            enable = Signal(name=f"load_{column}")
            m.d.comb += enable.eq(valid & (place[index_bits:-1] == group))
            weights = Value.cast(word)[inside * shape.rows * self._weight_bits :]
            sums = [C(0, shape.sum_bits)] * shape.planes
            for row in range(shape.rows):
                pe = self._build_cell()
                m.d.comb += [
                    pe.tokens.eq(neighbours[row]),
                    Cat(pe.first, pe.bank).eq(diagonal[column + row]),
                    pe.write.eq(Cat(place[:index_bits], place[-1], enable)),
                    pe.weight.eq(weights[row * self._weight_bits : (row + 1) * self._weight_bits]),
                    pe.sums_in.eq(Cat(sums)),
                ]
                instantiate(m, platform, f"cell_{row}_{column}", pe)
                neighbours[row] = pe.tokens_out
                sums = [pe.sums_out[plane] for plane in range(shape.planes)]
            m.d.comb += [self.sums[plane * shape.columns + column].eq(sums[plane]) for plane in range(shape.planes)]
        return m
