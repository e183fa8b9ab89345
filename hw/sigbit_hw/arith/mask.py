# amaranth: UnusedElaboratable=no
"""Term masks: which nibbles of a group of activations are multiplied, and their tokens, beat by beat (SDP-1).

Our definition. A group's codes become magnitudes of two nibbles; a network of ranks or a radix count keeps the
``budget`` most important of them; the compactor hands them out in order. One group may enter per cycle.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..lib.delay import delayed

__all__ = ["Compactor", "MaskUnit", "MaskedGroup", "mask_cycles", "token_layout"]

#: Codes to differences from zero to magnitudes.
_MAGNITUDE_CYCLES = 2
#: Comparisons, ranks, masks.
_RANK_CYCLES = 3
#: Bit planes of a key, and one cycle for ties; high nibbles under policy MAG have the longer key.
_HIGH_PLANES, _LOW_PLANES = 8, 4
#: Largest group for a network of ranks: its size grows with the square of the group.
_RANK_GROUP = 8


def mask_cycles(group):
    """Cycles from the codes of a group to its masks."""
    if group <= _RANK_GROUP:
        return _MAGNITUDE_CYCLES + _RANK_CYCLES
    return _MAGNITUDE_CYCLES + _HIGH_PLANES + 1 + _LOW_PLANES + 1


def token_layout(group):
    """One term part: ``nibble << 4 * high`` of the value at ``index``; an idle lane has a nibble of 0."""
    return data.StructLayout({"nibble": 4, "high": 1, "negative": 1, "index": range(group)})


class MaskedGroup(data.StructLayout):
    """Values of a group in sign and magnitude, and which of their nibbles are kept."""

    def __init__(self, group):
        super().__init__(
            {
                "magnitudes": data.ArrayLayout(8, group),
                "negative": group,
                "high": group,
                "low": group,
            }
        )


class MaskUnit(wiring.Component):
    """Select the ``budget`` first non-zero nibbles of a group: by key, then by position.

    Groups of up to 8 use a network of ranks, which compares every pair of keys; larger ones a radix count, which fixes
    one bit plane of the keys per cycle, high nibbles first and low ones with what is left of the budget.

    Parameters
    ----------
    group : int

    Members
    -------
    codes : ``In``
        Codes of the group; the value is the code less ``zero``.
    zero : ``In(8)``
        Code of 0: 0 for unsigned tensors, the excess of signed ones.
    budget : ``In``
    magnitude_keys : ``In(1)``
        Policy MAG: high nibbles are ordered by their whole magnitude; else NIB, by themselves.
    o : ``Out(MaskedGroup(group))``
        ``mask_cycles(group)`` later.
    """

    def __init__(self, group):
        self._group = group
        self.latency_cycles = mask_cycles(group)
        super().__init__(
            {
                "codes": In(data.ArrayLayout(8, group)),
                "zero": In(8),
                "budget": In(range(2 * group + 1)),
                "magnitude_keys": In(1),
                "o": Out(MaskedGroup(group)),
            }
        )

    @property
    def module_name(self):
        """Name that is the same for equal units only."""
        return f"mask_unit_{self._group}"

    def elaborate(self, platform):
        m = Module()

        # Cycles 1 and 2: sign and magnitude.
        magnitudes, negative = [], []
        for index, code in enumerate(self.codes):
            difference = Signal(signed(9), name=f"difference_{index}", reset_less=True)
            magnitude = Signal(8, name=f"magnitude_{index}", reset_less=True)
            sign = difference[-1]
            m.d.sync += [
                difference.eq(code - self.zero),
                magnitude.eq((difference[:8] ^ sign.replicate(8)) + sign),
            ]
            magnitudes.append(magnitude)
            negative.append(delayed(m, sign, 1, name=f"negative_{index}"))
        budget = delayed(m, self.budget, _MAGNITUDE_CYCLES, name="budget")
        whole = delayed(m, self.magnitude_keys, _MAGNITUDE_CYCLES, name="magnitude_keys")

        keys = [Cat(magnitude[:4] & whole.replicate(4), magnitude[4:]) for magnitude in magnitudes]
        lows = [magnitude[:4] for magnitude in magnitudes]
        has_high = [magnitude[4:].any() for magnitude in magnitudes]
        has_low = [low.any() for low in lows]
        select = self._ranks if self._group <= _RANK_GROUP else self._radix
        high, low = select(m, keys, lows, has_high, has_low, budget)
        cycles = self.latency_cycles - _MAGNITUDE_CYCLES
        m.d.comb += [
            self.o.magnitudes.eq(delayed(m, Cat(magnitudes), cycles, name="magnitudes")),
            self.o.negative.eq(delayed(m, Cat(negative), cycles, name="negatives")),
            self.o.high.eq(high),
            self.o.low.eq(low),
        ]
        return m

    def _ranks(self, m, keys, lows, has_high, has_low, budget):
        """Masks ``_RANK_CYCLES`` later: how many come before each nibble, against the budget."""
        group = range(self._group)

        def before(values, valid, name):
            """Cycle 1: per nibble, whether each other one comes before it."""
            found = [[None] * self._group for _ in group]
            for j in group:
                for i in range(j):
                    # The earlier position wins ties, so one comparison serves both directions.
                    wins = Signal(name=f"{name}_{i}_{j}", reset_less=True)
                    loses = Signal(name=f"{name}_{j}_{i}", reset_less=True)
                    comparison = values[i] >= values[j]
                    m.d.sync += [wins.eq(valid[i] & comparison), loses.eq(valid[j] & ~comparison)]
                    found[j][i], found[i][j] = wins, loses
            return [[bit for bit in bits if bit is not None] for bits in found]

        high_before, low_before = before(keys, has_high, "high"), before(lows, has_low, "low")
        valid = delayed(m, Cat(has_high, has_low), 1, name="valid")

        # Cycle 2: ranks.
        ranks = []
        for index, bits in enumerate((*high_before, *low_before)):
            rank = Signal(range(self._group), name=f"rank_{index}", reset_less=True)
            m.d.sync += rank.eq(_count(bits))
            ranks.append(rank)
        highs = Signal(range(self._group + 1), reset_less=True)
        m.d.sync += highs.eq(_count(list(valid[: self._group])))
        valid = delayed(m, valid, 1, name="valid_late")
        budget = delayed(m, budget, 2, name="budget_late")

        # Cycle 3: masks.
        left = Mux(budget > highs, budget - highs, 0)[: len(budget)]
        masks = Signal(2 * self._group, reset_less=True)
        for index, rank in enumerate(ranks):
            limit = budget if index < self._group else left
            m.d.sync += masks[index].eq(valid[index] & (rank < limit))
        return masks[: self._group], masks[self._group :]

    def _radix(self, m, keys, lows, has_high, has_low, budget):
        """Masks one cycle per bit plane and one per class for ties later."""
        masks = []
        need = budget
        for name, values, valid, planes, wait in (
            ("high", keys, has_high, _HIGH_PLANES, 0),
            ("low", lows, has_low, _LOW_PLANES, _HIGH_PLANES + 1),
        ):
            alive = delayed(m, Cat(valid), wait, name=f"{name}_valid")
            keep = C(0, self._group)
            for step in range(planes):
                plane = Cat(value[planes - 1 - step] for value in values)
                bits = delayed(m, plane, wait + step, name=f"{name}_plane_{step}")
                ones = alive & bits
                count = _count(list(ones))
                fits = count <= need
                new_alive, new_keep, new_need = (
                    Signal.like(Value.cast(value), name=f"{name}_{what}_{step}", reset_less=True, init=None)
                    for what, value in (("alive", alive), ("keep", keep), ("need", need))
                )
                m.d.sync += [
                    new_alive.eq(Mux(fits, alive & ~ones, ones)),
                    new_keep.eq(keep | ones & fits.replicate(self._group)),
                    new_need.eq(Mux(fits, need - count, need)),
                ]
                alive, keep, need = new_alive, new_keep, new_need
            # Ties: the lowest positions among those alive.
            tied = Cat(alive[index] & (_count(list(alive[: index + 1])) <= need) for index in range(self._group))
            count = _count(list(alive))
            rest = Signal.like(need, name=f"{name}_rest", reset_less=True)
            mask = Signal(self._group, name=f"{name}_mask", reset_less=True)
            m.d.sync += [mask.eq(keep | tied), rest.eq(Mux(count < need, need - count, 0))]
            need = rest
            masks.append(delayed(m, mask, 0 if name == "low" else _LOW_PLANES + 1, name=f"{name}_mask_late"))
        return masks


class Compactor(wiring.Component):
    """Hand out the kept nibbles of a group, ``lanes`` per cycle: by position, a value's high nibble first.

    Parameters
    ----------
    group, lanes : int

    Members
    -------
    i : ``In(MaskedGroup(group))``
    start : ``In(1)``
        ``i`` is a new group; at the earliest when all tokens of the one before are out.
    tokens : ``Out``
        ``latency_cycles`` after ``start`` the first beat, then one more per cycle; idle lanes behind the last token.
    """

    #: Slots of the kept nibbles, the choice of a beat.
    latency_cycles = 2

    def __init__(self, group, lanes):
        self._group = group
        self._lanes = lanes
        super().__init__(
            {
                "i": In(MaskedGroup(group)),
                "start": In(1),
                "tokens": Out(data.ArrayLayout(token_layout(group), lanes)),
            }
        )

    @property
    def module_name(self):
        """Name that is the same for equal compactors only."""
        return f"compactor_{self._group}_{self._lanes}"

    def elaborate(self, platform):
        m = Module()
        parts = [(index, high) for index in range(self._group) for high in (1, 0)]
        beats = len(parts) // self._lanes
        lane_bits = (self._lanes - 1).bit_length()

        # Cycle 1: the group and the slot of every kept nibble stay here while its tokens go out.
        group = Signal(MaskedGroup(self._group), reset_less=True)
        kept = [self.i.high[index] if high else self.i.low[index] for index, high in parts]
        held = Signal(len(parts), reset_less=True)
        slots = [Signal(range(len(parts)), name=f"slot_{number}", reset_less=True) for number in range(len(parts))]
        beat = Signal(range(beats + 1), init=beats)
        with m.If(self.start):
            m.d.sync += [group.eq(self.i), held.eq(Cat(kept)), beat.eq(0)]
            m.d.sync += [slot.eq(_count(kept[:number])) for number, slot in enumerate(slots) if number]
        with m.Elif(beat != beats):
            m.d.sync += beat.eq(beat + 1)

        # Cycle 2: the tokens of a beat.
        now = [held[number] & (slot[lane_bits:] == beat) for number, slot in enumerate(slots)]
        for lane in range(self._lanes):
            chosen = [ready & (slot[:lane_bits] == lane) for ready, slot in zip(now, slots, strict=True)]
            token = Signal(token_layout(self._group), name=f"token_{lane}", reset_less=True)
            m.d.comb += self.tokens[lane].eq(token)
            nibbles, indices, negatives = [], [], []
            for (index, high), choose in zip(parts, chosen, strict=True):
                magnitude = group.magnitudes[index]
                nibbles.append((magnitude[4:] if high else magnitude[:4]) & choose.replicate(4))
                indices.append(C(index, len(token.index)) & choose.replicate(len(token.index)))
                negatives.append(group.negative[index] & choose)
            m.d.sync += [
                token.nibble.eq(_any(nibbles)),
                token.index.eq(_any(indices)),
                token.negative.eq(_any(negatives)),
                token.high.eq(_any([choose for (_, high), choose in zip(parts, chosen, strict=True) if high])),
            ]
        return m


def _any(values):
    """OR of all values, as a balanced tree."""
    while len(values) > 1:
        values = [values[i] | values[i + 1] if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
    return values[0]


def _count(bits):
    """Number of ones, as a balanced tree."""
    values = [Value.cast(bit) for bit in bits] or [C(0, 1)]
    while len(values) > 1:
        values = [values[i] + values[i + 1] if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
    return values[0]
