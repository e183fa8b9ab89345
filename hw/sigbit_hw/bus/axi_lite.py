"""AXI4-Lite slave with the registers of :mod:`sigbit_hw.spec.registers`."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..spec.config import CONTRACT_VERSION
from ..spec.packets import Fault
from ..spec.registers import COUNTERS, IDENTITY, Control, Interrupt, Register, Status

__all__ = ["ADDRESS_BITS", "AxiLiteRegisters", "AxiLiteSignature", "FaultSignature"]

ADDRESS_BITS = 8
_WRITABLE_BITS = 8  # every writable bit is in byte 0, so one strobe decides


class AxiLiteSignature(wiring.Signature):
    """AXI4-Lite with 32-bit data, seen from the master. ``awprot`` and ``arprot`` carry no meaning here."""

    def __init__(self):
        super().__init__(
            {
                "awvalid": Out(1),
                "awready": In(1),
                "awaddr": Out(ADDRESS_BITS),
                "awprot": Out(3),
                "wvalid": Out(1),
                "wready": In(1),
                "wdata": Out(32),
                "wstrb": Out(4),
                "bvalid": In(1),
                "bready": Out(1),
                "bresp": In(2),
                "arvalid": Out(1),
                "arready": In(1),
                "araddr": Out(ADDRESS_BITS),
                "arprot": Out(3),
                "rvalid": In(1),
                "rready": Out(1),
                "rdata": In(32),
                "rresp": In(2),
            }
        )


class FaultSignature(wiring.Signature):
    """Report of a fault: ``valid`` is a pulse, ``code`` and ``packet`` hold with it."""

    def __init__(self):
        super().__init__({"valid": Out(1), "code": Out(Fault), "packet": Out(32)})


class AxiLiteRegisters(wiring.Component):
    """Registers behind AXI4-Lite.

    Address and data of a write may come in any order. A write takes effect in the cycle after both have arrived, and
    only in bytes whose strobe is set. All responses are OKAY. One read per two cycles, one write per three; no
    combinational path between any two ports.

    Parameters
    ----------
    config : :class:`~sigbit_hw.spec.config.AcceleratorConfig`
        For the configuration hash.

    Members
    -------
    bus : ``In(AxiLiteSignature())``
        The slave port.
    irq : ``Out(1)``
        OR of the enabled pending interrupts, registered.
    soft_reset, clear_counters : ``Out(1)``
        Pulses of the control register. A soft reset also clears the fault registers and the pending interrupts here,
        not the enables.
    fault : ``In(FaultSignature())``
        Sets the fault registers, unless they hold a fault already, and the pending FAULT interrupt.
    ended : ``In(1)``
        Pulse that sets the pending END interrupt.
    session, busy, draining : ``In(1)``
        Bits of the status register. Its FAULT bit is kept here.
    packets, instructions : ``In(32)``
        Read as they are.
    counters : ``In(StructLayout)``
        One 32-bit field per counter, in lower case: ``cycles``, ``compute_cycles`` and so on.
    """

    def __init__(self, config):
        self._hash = config.hash
        super().__init__(
            {
                "bus": In(AxiLiteSignature()),
                "irq": Out(1),
                "soft_reset": Out(1),
                "clear_counters": Out(1),
                "fault": In(FaultSignature()),
                "ended": In(1),
                "session": In(1),
                "busy": In(1),
                "draining": In(1),
                "packets": In(32),
                "instructions": In(32),
                "counters": In(data.StructLayout({register.name.lower(): 32 for register in COUNTERS})),
            }
        )

    def elaborate(self, platform):
        m = Module()
        bus = self.bus
        fault_code = Signal(Fault)
        fault_packet = Signal(32)
        enable = Signal(Interrupt)
        pending = Signal(Interrupt)

        # Write: hold address and data until both are here and the response channel is free.
        address_held = Signal()
        data_held = Signal()
        address = Signal(ADDRESS_BITS)
        written = Signal(_WRITABLE_BITS)
        strobe = Signal()
        write = Signal()
        m.d.comb += [
            bus.awready.eq(~address_held),
            bus.wready.eq(~data_held),
            write.eq(address_held & data_held & ~bus.bvalid),
        ]
        with m.If(bus.awvalid & bus.awready):
            m.d.sync += [address_held.eq(1), address.eq(bus.awaddr)]
        with m.If(bus.wvalid & bus.wready):
            m.d.sync += [data_held.eq(1), written.eq(bus.wdata), strobe.eq(bus.wstrb[0])]
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(write):
            m.d.sync += [address_held.eq(0), data_held.eq(0), bus.bvalid.eq(1)]

        cleared = Signal(Interrupt)
        m.d.sync += [self.soft_reset.eq(0), self.clear_counters.eq(0)]
        with m.If(write & strobe):
            with m.Switch(address[2:]):
                with m.Case(Register.CONTROL >> 2):
                    m.d.sync += [
                        self.soft_reset.eq((written & Control.SOFT_RESET).any()),
                        self.clear_counters.eq((written & Control.CLEAR_COUNTERS).any()),
                    ]
                with m.Case(Register.IRQ_ENABLE >> 2):
                    m.d.sync += enable.eq(written)
                with m.Case(Register.IRQ_PENDING >> 2):
                    m.d.comb += cleared.eq(written)

        # An event that meets its own clearing is not lost.
        events = Mux(self.ended, Interrupt.END.value, 0) | Mux(self.fault.valid, Interrupt.FAULT.value, 0)
        m.d.sync += pending.eq((pending & ~cleared) | events)
        with m.If(self.fault.valid & (fault_code == Fault.NONE)):
            m.d.sync += [fault_code.eq(self.fault.code), fault_packet.eq(self.fault.packet)]
        with m.If(self.soft_reset):
            m.d.sync += [pending.eq(0), fault_code.eq(0), fault_packet.eq(0)]
        m.d.sync += self.irq.eq((enable & pending).any())

        # Read.
        status = (
            Mux(self.session, Status.SESSION.value, 0)
            | Mux(self.busy, Status.BUSY.value, 0)
            | Mux(fault_code != Fault.NONE, Status.FAULT.value, 0)
            | Mux(self.draining, Status.DRAINING.value, 0)
        )
        values = {
            Register.IDENTITY: Const(IDENTITY, 32),
            Register.VERSION: Const(CONTRACT_VERSION, 32),
            Register.HASH_LOW: Const(self._hash & 0xFFFF_FFFF, 32),
            Register.HASH_HIGH: Const(self._hash >> 32, 32),
            Register.STATUS: status,
            Register.FAULT: fault_code,
            Register.FAULT_PACKET: fault_packet,
            Register.IRQ_ENABLE: enable,
            Register.IRQ_PENDING: pending,
            Register.PACKETS: self.packets,
            Register.INSTRUCTIONS: self.instructions,
            **{register: self.counters[register.name.lower()] for register in COUNTERS},
        }
        m.d.comb += bus.arready.eq(~bus.rvalid)
        with m.If(bus.arvalid & bus.arready):
            m.d.sync += [bus.rvalid.eq(1), bus.rdata.eq(0)]
            with m.Switch(bus.araddr[2:]):
                for register, value in values.items():
                    with m.Case(register >> 2):
                        m.d.sync += bus.rdata.eq(value)
        with m.Elif(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        return m
