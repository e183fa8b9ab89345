"""Accumulator: two banks of running sums of one column and plane."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..lib.delay import delayed

__all__ = ["Accumulator", "AccumulatorAdder", "accumulator_tag"]

#: Longest carry chain of the addition; a longer sum is added in two cycles.
CARRY_BITS = 16


def accumulator_tag(strip_depth):
    """What happens to a sum: ``bank`` and ``address`` of its accumulator, ``clear`` it first, or ``shift`` it."""
    return data.StructLayout({"valid": 1, "clear": 1, "shift": 1, "bank": 1, "address": range(strip_depth)})


class AccumulatorAdder(wiring.Component):
    """``new = (clear ? 0 : shift ? old << shift_bits : old) + sum``, two cycles later, in carry chains of 16 bits.

    Members
    -------
    old, sum : ``In``
        Signed values; ``new`` wraps around.
    clear, shift : ``In(1)``
    new : ``Out``
    """

    delay_cycles = 2

    def __init__(self, *, sum_bits, accumulator_bits, shift_bits):
        self._low_bits = min(accumulator_bits, CARRY_BITS - 2)
        self._shift_bits = shift_bits
        super().__init__(
            {
                "old": In(signed(accumulator_bits)),
                "clear": In(1),
                "shift": In(1),
                "sum": In(signed(sum_bits)),
                "new": Out(signed(accumulator_bits)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        low_bits = self._low_bits
        high_bits = len(self.old) - low_bits

        total = Signal(signed(len(self.old)))
        m.d.comb += total.eq(self.sum)

        # Cycle 1: the low part and its carry.
        base = self._base(self.old, self.clear, self.shift)
        low = Signal(low_bits + 1, reset_less=True)
        m.d.sync += low.eq(_plus(total[:low_bits], base[:low_bits], C(0, 1)))

        # Cycle 2: the high part.
        old = delayed(m, self.old, 1, name="old")
        clear = delayed(m, self.clear, 1, name="clear")
        shift = delayed(m, self.shift, 1, name="shift")
        added = delayed(m, total, 1, name="added")
        high = _plus(added[low_bits:], self._base(old, clear, shift)[low_bits:], low[low_bits])[:high_bits]
        new = Signal.like(self.new, reset_less=True)
        m.d.sync += new.eq(Cat(low[:low_bits], high))
        m.d.comb += self.new.eq(new)
        return m

    def _base(self, old, clear, shift):
        """What the sum is added to."""
        shifted = (old << self._shift_bits)[: len(old)]
        return Mux(shift, shifted, old.as_unsigned()) & (~clear).replicate(len(old))


def _plus(plain, logic, carry):
    """Sum of two equally wide words and a carry, as a subtraction: so only ``logic`` may be logic (``add_signed``)."""
    return (Cat(C(0, 1), plain, C(0, 1)) - Cat(~carry, ~logic, C(1, 1)))[1 : len(plain) + 2]


class Accumulator(wiring.Component):
    """``accumulator = (clear ? 0 : shift ? accumulator << shift_bits : accumulator) + sum``, one sum per cycle.

    An address must not be given again within ``reuse_cycles``; the sum that is stored then is read.

    Parameters
    ----------
    strip_depth : int
        Accumulators per bank, a power of two.
    sum_bits, accumulator_bits : int
        Signed widths; the accumulator wraps around.
    shift_bits : int
        Distance of ``shift``.

    Members
    -------
    fetch, add, store : ``In(accumulator_tag(strip_depth))``
        The tag of a sum one cycle before it, with it (only ``clear`` and ``shift`` are used), and two cycles after it.
    sum : ``In(signed(sum_bits))``
        What is added.
    read_address : ``In``
        Address in a bank in which nothing is fetched in this cycle.
    read_data : ``Out``
        Both banks at ``read_address``, one cycle later.
    """

    #: Cycles from ``fetch`` to the ``fetch`` that sees the new value.
    reuse_cycles = 4

    def __init__(self, strip_depth, *, sum_bits, accumulator_bits, shift_bits):
        if strip_depth < 2 or strip_depth & (strip_depth - 1):
            raise ValueError(f"strip_depth must be a power of two of 2 or more, not {strip_depth!r}")
        if not 1 <= sum_bits <= accumulator_bits:
            raise ValueError(f"sum_bits must be 1 to accumulator_bits ({accumulator_bits!r}), not {sum_bits!r}")
        self._strip_depth = strip_depth
        self._sum_bits = sum_bits
        self._accumulator_bits = accumulator_bits
        self._shift_bits = shift_bits
        tag = accumulator_tag(strip_depth)
        super().__init__(
            {
                "fetch": In(tag),
                "add": In(tag),
                "store": In(tag),
                "sum": In(signed(sum_bits)),
                "read_address": In(range(strip_depth)),
                "read_data": Out(data.ArrayLayout(signed(accumulator_bits), 2)),
            }
        )

    @property
    def module_name(self):
        """Name that is the same for equal accumulators only."""
        return f"accumulator_{self._strip_depth}_{self._sum_bits}_{self._accumulator_bits}_{self._shift_bits}"

    def elaborate(self, platform):
        m = Module()

        banks = []
        for bank in range(2):
            memory = Memory(shape=signed(self._accumulator_bits), depth=self._strip_depth, init=[])
            m.submodules[f"bank_{bank}"] = memory
            write = memory.write_port()
            read = memory.read_port()
            fetching = self.fetch.valid & (self.fetch.bank == bank)
            m.d.comb += [
                read.addr.eq(Mux(fetching, self.fetch.address, self.read_address)),
                self.read_data[bank].eq(read.data),
                write.addr.eq(self.store.address),
                write.en.eq(self.store.valid & (self.store.bank == bank)),
            ]
            banks.append((read, write))

        m.submodules.adder = adder = AccumulatorAdder(
            sum_bits=self._sum_bits, accumulator_bits=self._accumulator_bits, shift_bits=self._shift_bits
        )
        m.d.comb += [
            adder.old.eq(Mux(self.add.bank, banks[1][0].data, banks[0][0].data)),
            adder.clear.eq(self.add.clear),
            adder.shift.eq(self.add.shift),
            adder.sum.eq(self.sum),
        ]
        for _, write in banks:
            m.d.comb += write.data.eq(adder.new)
        return m
