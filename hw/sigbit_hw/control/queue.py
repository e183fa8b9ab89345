"""Instruction queue: written on trust, committed when the packet's checksum held."""

from amaranth import *
from amaranth.hdl import Assert
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..spec.instructions import INSTRUCTION_BITS
from ..spec.packets import HEADER

__all__ = ["OUTSTANDING_BITS", "InstructionQueue"]

#: As wide as the fence that it is compared with.
OUTSTANDING_BITS = next(field.bits for field in HEADER.fields if field.name == "fence")


class InstructionQueue(wiring.Component):
    """First-in first-out queue in block RAM whose writes stay invisible until ``commit``.

    One instruction per cycle in and out; an instruction is at ``o`` three cycles after its ``commit``.

    Parameters
    ----------
    depth : int
        Instructions that fit, committed or not; a power of two. Two more may wait in the output registers.
    width : int
        Bits of an instruction.

    Members
    -------
    i : ``In(stream.Signature(width))``
        Instructions; ``ready`` is low while ``depth`` are held.
    commit : ``In(1)``
        Everything written, including a transfer of this cycle, may leave.
    rollback : ``In(1)``
        Everything written since the last ``commit``, including a transfer of this cycle, is forgotten. Wins over
        ``commit``.
    flush : ``In(1)``
        Everything is forgotten and ``outstanding`` becomes 0; ``o.valid`` falls without a transfer. Wins over all
        others.
    retire : ``In(2)``
        Number of instructions, 0 to 2, that ended in this cycle.
    o : ``Out(stream.Signature(width))``
        Committed instructions in order; registered.
    level : ``Out(range(depth + 1))``
        Entries of the memory in use, committed or not.
    outstanding : ``Out(16)``
        Instructions committed and not yet retired; valid in the cycle after ``commit``. Saturates at 0, so that a unit
        that ends its instruction after a ``flush`` cannot lock a fence.

    Raises
    ------
    :exc:`ValueError`
        If ``depth`` is not a power of two of at least 2.
    """

    #: Cycles from ``commit`` to the instruction at ``o``.
    latency_cycles = 3
    #: Instructions that wait in the output registers and take no word of the memory.
    output_registers = 2

    def __init__(self, depth, width=INSTRUCTION_BITS):
        if not isinstance(depth, int) or depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two of at least 2, not {depth!r}")
        self._depth = depth
        self._width = width
        super().__init__(
            {
                "i": In(stream.Signature(width)),
                "commit": In(1),
                "rollback": In(1),
                "flush": In(1),
                "retire": In(2),
                "o": Out(stream.Signature(width)),
                "level": Out(range(depth + 1)),
                "outstanding": Out(OUTSTANDING_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(
            shape=unsigned(self._width), depth=self._depth, init=[], attrs={"ram_style": "block"}
        )
        write = memory.write_port()
        read = memory.read_port()

        # Pointers have one bit more than an address: equal is empty, a difference of the depth is full.
        written = Signal(range(2 * self._depth))
        committed = Signal.like(written)
        taken = Signal.like(written)
        written_next = Signal.like(written)
        m.d.comb += [
            self.level.eq((written - taken)[: len(written)]),
            self.i.ready.eq(self.level != self._depth),
            write.en.eq(self.i.valid & self.i.ready),
            write.addr.eq(written),
            write.data.eq(self.i.payload),
            written_next.eq(written + write.en),
        ]
        m.d.sync += written.eq(written_next)
        with m.If(self.rollback):
            m.d.sync += written.eq(committed)
        with m.Elif(self.commit):
            m.d.sync += committed.eq(written_next)

        # Memory output, then output register.
        fetched = Signal()
        fetch_moves = ~self.o.valid | self.o.ready
        m.d.comb += [
            read.addr.eq(taken),
            read.en.eq((taken != committed) & (~fetched | fetch_moves)),
        ]
        with m.If(read.en):
            m.d.sync += [taken.eq(taken + 1), fetched.eq(1)]
        with m.Elif(fetch_moves):
            m.d.sync += fetched.eq(0)
        with m.If(fetch_moves):
            m.d.sync += [self.o.valid.eq(fetched), self.o.payload.eq(read.data)]

        added = Signal.like(self.level)
        total = Signal(OUTSTANDING_BITS)
        with m.If(self.commit & ~self.rollback):
            m.d.comb += added.eq((written_next - committed)[: len(written)])
        m.d.comb += total.eq(self.outstanding + added)
        m.d.sync += self.outstanding.eq(Mux(total < self.retire, 0, total - self.retire))

        if platform == "formal":
            believed = (committed - taken)[: len(written)]
            m.d.comb += [
                Assert(self.level <= self._depth, "no more entries than words"),
                Assert(believed <= self.level, "what was committed was written"),
            ]

        with m.If(self.flush):
            m.d.sync += [
                written.eq(0),
                committed.eq(0),
                taken.eq(0),
                fetched.eq(0),
                self.o.valid.eq(0),
                self.outstanding.eq(0),
            ]
        return m
