"""AXI4-Lite register table: 32-bit registers at byte offsets. Unmapped addresses read 0 and ignore writes."""

from enum import IntEnum, IntFlag

__all__ = ["COUNTERS", "IDENTITY", "Control", "Interrupt", "Register", "Status"]

IDENTITY = 0x54494253  # "SBIT" in memory order


class Register(IntEnum):
    """Byte offsets."""

    IDENTITY = 0x00  #: read only, :data:`IDENTITY`
    VERSION = 0x04  #: read only, contract version
    HASH_LOW = 0x08  #: read only, configuration hash
    HASH_HIGH = 0x0C
    CONTROL = 0x10  #: write only, :class:`Control`; bits clear themselves
    STATUS = 0x14  #: read only, :class:`Status`
    FAULT = 0x18  #: read only, sticky :class:`~.packets.Fault` code; cleared by a soft reset
    FAULT_PACKET = 0x1C  #: read only, number of the faulty packet in its session, from 0
    IRQ_ENABLE = 0x20  #: read and write, :class:`Interrupt`
    IRQ_PENDING = 0x24  #: read, write 1 to clear, :class:`Interrupt`
    PACKETS = 0x28  #: read only, packets accepted since the last CONFIGURE
    INSTRUCTIONS = 0x2C  #: read only, instructions retired since the last reset
    CYCLES = 0x30  #: counters, see :data:`COUNTERS`; cleared by Control.CLEAR_COUNTERS and soft reset
    COMPUTE_CYCLES = 0x34
    WEIGHT_STALLS = 0x38
    POST_STALLS = 0x3C
    POOL_CYCLES = 0x40
    OUTPUT_CYCLES = 0x44
    IDLE_CYCLES = 0x48
    VALID_TOKENS = 0x4C


#: What every performance counter counts; 32 bits, wrapping.
COUNTERS = {
    Register.CYCLES: "cycles since an instruction was first queued, until the queue is empty and all units are idle",
    Register.COMPUTE_CYCLES: "cycles in which an activation vector enters the grid",
    Register.WEIGHT_STALLS: "cycles in which a tile waits for its weights",
    Register.POST_STALLS: "cycles in which an instruction waits for the post-processor",
    Register.POOL_CYCLES: "cycles in which the pooling unit reads",
    Register.OUTPUT_CYCLES: "cycles in which an output packet is being sent",
    Register.IDLE_CYCLES: "cycles in which no instruction is queued while a session is open",
    Register.VALID_TOKENS: "term parts that masked cells multiply, counted once for all columns; 0 with other cells",
}


class Control(IntFlag):
    """Bits of the control register."""

    SOFT_RESET = 1
    CLEAR_COUNTERS = 2


class Status(IntFlag):
    """Bits of the status register."""

    SESSION = 1  #: a CONFIGURE was accepted and no END yet
    BUSY = 2  #: instructions are queued or running
    FAULT = 4
    DRAINING = 8  #: input is discarded until END or a soft reset


class Interrupt(IntFlag):
    """Bits of the interrupt registers; ``irq`` is the OR of enabled pending bits."""

    END = 1  #: an END packet was accepted and all work is done
    FAULT = 2
