"""An accelerator behind two UART lines: the frames of :mod:`sigbit_hw.spec.serial` to AXI and back."""

import os
from functools import reduce
from operator import xor

from amaranth import *
from amaranth.back import verilog
from amaranth.hdl._ir import PortDirection
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from sigbit_hw.emit import emit_verilog
from sigbit_hw.spec.serial import HEADER_BYTES, HEADER_CHECK, SERIAL_VERSION, Problem, Request, Response

from .uart import UartReceiver, UartTransmitter

__all__ = ["GRANTED_BYTES", "SerialAccelerator", "SerialBridge", "serial_verilog"]

#: Bytes of SEND payload that the bridge can hold.
GRANTED_BYTES = 4096
#: Freed bytes that are worth a CREDIT frame while more arrive.
_CREDIT_BYTES = 256
_REGISTER_BYTES = 4


class _Parser(wiring.Component):
    """Requests from characters. See :class:`SerialBridge`."""

    def __init__(self, beat_bytes):
        self._beat_bytes = beat_bytes
        super().__init__(
            {
                "character": In(8),
                "valid": In(1),
                "error": In(1),
                "byte": Out(stream.Signature(9)),
                "receiving": Out(1),
                "read": Out(1),
                "write": Out(1),
                "offset": Out(8),
                "value": Out(32),
                "busy": In(1),
                "problem": Out(Problem),
                "dead": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        header = Signal((HEADER_BYTES - 1) * 8)
        index = Signal(range(HEADER_BYTES))
        count = Signal(16)
        last = Signal()
        kind, argument, size = header[:8], header[8:16], header[16:32]
        check = reduce(xor, (header[start : start + 8] for start in range(0, len(header), 8)))
        m.d.sync += [self.read.eq(0), self.write.eq(0), self.byte.valid.eq(0)]
        m.d.comb += self.receiving.eq(count != 0)

        def give_up(problem):
            return [self.problem.eq(problem), self.dead.eq(1)]

        with m.If(self.dead):
            pass
        with m.Elif(self.error):
            m.d.sync += give_up(Problem.FRAMING)
        with m.Elif(self.byte.valid & ~self.byte.ready):
            m.d.sync += give_up(Problem.OVERFLOW)
        with m.Elif(self.valid & (count != 0)):
            m.d.sync += count.eq(count - 1)
            with m.If(kind == Request.SEND):
                m.d.sync += [self.byte.valid.eq(1), self.byte.payload.eq(Cat(self.character, last & (count == 1)))]
            with m.Else():
                m.d.sync += [self.value.eq(Cat(self.value[8:], self.character)), self.write.eq(count == 1)]
        with m.Elif(self.valid & (index != HEADER_BYTES - 1)):
            m.d.sync += [header.eq(Cat(header[8:], self.character)), index.eq(index + 1)]
        with m.Elif(self.valid):
            m.d.sync += index.eq(0)
            with m.If(check ^ self.character != HEADER_CHECK):
                m.d.sync += give_up(Problem.HEADER)
            with m.Elif((kind == Request.SEND) & (size != 0) & (size % self._beat_bytes == 0) & (argument < 2)):
                m.d.sync += [count.eq(size), last.eq(argument[0])]
            with m.Elif((kind == Request.READ) & (size == 0) & ~self.busy):
                m.d.sync += [self.read.eq(1), self.offset.eq(argument)]
            with m.Elif((kind == Request.WRITE) & (size == _REGISTER_BYTES) & ~self.busy):
                m.d.sync += [count.eq(size), self.offset.eq(argument)]
            with m.Else():
                m.d.sync += give_up(Problem.KIND)
        return m


class _Responder(wiring.Component):
    """Responses to characters, the most urgent first. See :class:`SerialBridge`."""

    def __init__(self, beat_bytes):
        self._beat_bytes = beat_bytes
        super().__init__(
            {
                "problem": In(Problem),
                "dead": In(1),
                "done": In(1),
                "value_valid": In(1),
                "value": In(32),
                "offset": In(8),
                "registers_busy": Out(1),
                "interrupt": In(1),
                "freed": In(1),
                "receiving": In(1),
                "answer": In(stream.Signature(beat_bytes * 8 + 1)),
                "o": Out(stream.Signature(8)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        payload_bytes = max(self._beat_bytes, 2 * _REGISTER_BYTES)
        frame = Signal((HEADER_BYTES + payload_bytes) * 8)
        left = Signal(range(HEADER_BYTES + payload_bytes + 1))
        freed = Signal(range(GRANTED_BYTES + 1))
        spent = Signal.like(freed)
        ready_due, problem_told = Signal(init=1), Signal()
        done_due, value_due, interrupt_due, interrupt_seen = Signal(), Signal(), Signal(), Signal()
        value = Signal(32)

        def send(kind, argument=0, payload=None, count=None):
            """Load a frame; ``count`` is that of a frame that has none of its bytes."""
            size = (len(payload) // 8 if payload is not None else 0) if count is None else count
            words = [Const(kind, 8), *(Signal(8, name=f"header_{i}") for i in range(3))]
            m.d.comb += [words[1].eq(argument), Cat(words[2:]).eq(size)]
            header = Cat(*words, reduce(xor, words) ^ HEADER_CHECK)
            m.d.sync += [
                frame.eq(header if payload is None else Cat(header, payload)),
                left.eq(HEADER_BYTES + (0 if payload is None else len(payload) // 8)),
            ]

        m.d.sync += interrupt_seen.eq(self.interrupt)
        m.d.comb += [
            self.o.valid.eq(left != 0),
            self.o.payload.eq(frame[:8]),
            self.registers_busy.eq(done_due | value_due),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += [frame.eq(frame >> 8), left.eq(left - 1)]
        with m.If(left == 0):
            with m.If(ready_due):
                send(Response.READY, SERIAL_VERSION, count=GRANTED_BYTES)
                m.d.sync += ready_due.eq(0)
            with m.Elif(self.dead):
                with m.If(~problem_told):
                    send(Response.PROBLEM, self.problem)
                    m.d.sync += problem_told.eq(1)
            with m.Elif(value_due):
                send(Response.VALUE, self.offset, Cat(value, ~value))
                m.d.sync += value_due.eq(0)
            with m.Elif(done_due):
                send(Response.DONE, self.offset)
                m.d.sync += done_due.eq(0)
            with m.Elif(interrupt_due):
                send(Response.INTERRUPT)
                m.d.sync += interrupt_due.eq(0)
            with m.Elif((freed >= _CREDIT_BYTES) | (~self.receiving & (freed != 0))):
                send(Response.CREDIT, count=freed)
                m.d.comb += spent.eq(freed)
            with m.Elif(self.answer.valid):
                m.d.comb += self.answer.ready.eq(1)
                send(Response.ANSWER, self.answer.payload[-1], self.answer.payload[:-1])
        m.d.sync += freed.eq(freed - spent + self.freed)
        with m.If(self.value_valid):
            m.d.sync += [value_due.eq(1), value.eq(self.value)]
        with m.If(self.done):
            m.d.sync += done_due.eq(1)
        with m.If(self.interrupt & ~interrupt_seen):
            m.d.sync += interrupt_due.eq(1)
        return m


class SerialBridge(wiring.Component):
    """Frames on UART lines to AXI4-Stream and AXI4-Lite master ports, and back.

    Parameters
    ----------
    stream_bits : int
        TDATA width.
    clock_hz, baud : int

    Members
    -------
    rx : ``In(1)``, tx : ``Out(1)``
        Lines.
    aresetn : ``Out(1)``
        Low during a BREAK.
    dead : ``Out(1)``
        A problem was found; only a BREAK helps.
    s_axis_tdata ... irq
        The other side of every port of the accelerator, under the same name.
    """

    def __init__(self, stream_bits, clock_hz, baud):
        self._beat_bytes = stream_bits // 8
        self._clock_hz, self._baud = clock_hz, baud
        super().__init__(
            {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "aresetn": Out(1),
                "dead": Out(1),
                "s_axis_tdata": Out(stream_bits),
                "s_axis_tkeep": Out(stream_bits // 8),
                "s_axis_tlast": Out(1),
                "s_axis_tvalid": Out(1),
                "s_axis_tready": In(1),
                "m_axis_tdata": In(stream_bits),
                "m_axis_tkeep": In(stream_bits // 8),
                "m_axis_tlast": In(1),
                "m_axis_tvalid": In(1),
                "m_axis_tready": Out(1),
                "s_axil_awvalid": Out(1),
                "s_axil_awready": In(1),
                "s_axil_awaddr": Out(8),
                "s_axil_awprot": Out(3),
                "s_axil_wvalid": Out(1),
                "s_axil_wready": In(1),
                "s_axil_wdata": Out(32),
                "s_axil_wstrb": Out(4),
                "s_axil_bvalid": In(1),
                "s_axil_bready": Out(1),
                "s_axil_bresp": In(2),
                "s_axil_arvalid": Out(1),
                "s_axil_arready": In(1),
                "s_axil_araddr": Out(8),
                "s_axil_arprot": Out(3),
                "s_axil_rvalid": In(1),
                "s_axil_rready": Out(1),
                "s_axil_rdata": In(32),
                "s_axil_rresp": In(2),
                "irq": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.receiver = receiver = UartReceiver(self._clock_hz, self._baud)
        restart = receiver.broken
        restarting = ResetInserter(restart)
        m.submodules.transmitter = transmitter = restarting(UartTransmitter(self._clock_hz, self._baud))
        m.submodules.parser = parser = restarting(_Parser(self._beat_bytes))
        m.submodules.responder = responder = restarting(_Responder(self._beat_bytes))
        m.submodules.fifo = fifo = restarting(SyncFIFOBuffered(width=9, depth=GRANTED_BYTES))
        wiring.connect(m, responder.o, transmitter.i)
        m.d.comb += [
            receiver.line.eq(self.rx),
            self.tx.eq(transmitter.line),
            self.aresetn.eq(~restart),
            self.dead.eq(parser.dead),
            parser.character.eq(receiver.o),
            parser.valid.eq(receiver.valid),
            parser.error.eq(receiver.error),
            parser.busy.eq(responder.registers_busy),
            responder.problem.eq(parser.problem),
            responder.dead.eq(parser.dead),
            responder.offset.eq(parser.offset),
            responder.interrupt.eq(self.irq),
            responder.receiving.eq(parser.receiving | fifo.r_rdy),
            fifo.w_data.eq(parser.byte.payload),
            fifo.w_en.eq(parser.byte.valid),
            parser.byte.ready.eq(fifo.w_rdy),
        ]

        # Bytes to beats.
        beat = Signal(self._beat_bytes * 8)
        filled = Signal(range(self._beat_bytes))
        take = Signal()
        m.d.comb += [
            take.eq(fifo.r_rdy & (~self.s_axis_tvalid | self.s_axis_tready)),
            fifo.r_en.eq(take),
            responder.freed.eq(take),
            self.s_axis_tdata.eq(beat),
            self.s_axis_tkeep.eq(~0),
        ]
        with m.If(self.s_axis_tready):
            m.d.sync += self.s_axis_tvalid.eq(0)
        with m.If(take):
            m.d.sync += [beat.eq(Cat(beat[8:], fifo.r_data[:8])), self.s_axis_tlast.eq(fifo.r_data[8])]
            with m.If(filled == self._beat_bytes - 1):
                m.d.sync += [filled.eq(0), self.s_axis_tvalid.eq(1)]
            with m.Else():
                m.d.sync += filled.eq(filled + 1)

        # Answers.
        m.d.comb += [
            responder.answer.payload.eq(Cat(self.m_axis_tdata, self.m_axis_tlast)),
            responder.answer.valid.eq(self.m_axis_tvalid),
            self.m_axis_tready.eq(responder.answer.ready),
        ]

        # Registers: each channel's valid until it is taken.
        m.d.comb += [
            self.s_axil_awaddr.eq(parser.offset),
            self.s_axil_araddr.eq(parser.offset),
            self.s_axil_wdata.eq(parser.value),
            self.s_axil_wstrb.eq(~0),
            self.s_axil_bready.eq(1),
            self.s_axil_rready.eq(1),
            responder.done.eq(self.s_axil_bvalid),
            responder.value_valid.eq(self.s_axil_rvalid),
            responder.value.eq(self.s_axil_rdata),
        ]
        for channel, request in (("aw", parser.write), ("w", parser.write), ("ar", parser.read)):
            valid, ready = getattr(self, f"s_axil_{channel}valid"), getattr(self, f"s_axil_{channel}ready")
            with m.If(request):
                m.d.sync += valid.eq(1)
            with m.Elif(ready):
                m.d.sync += valid.eq(0)
        with m.If(restart):
            m.d.sync += [
                filled.eq(0),
                self.s_axis_tvalid.eq(0),
                *(getattr(self, f"s_axil_{channel}valid").eq(0) for channel in ("aw", "w", "ar")),
            ]
        return m


class SerialAccelerator(wiring.Component):
    """:class:`SerialBridge` and, as instance of module ``sigbit``, the accelerator behind it.

    Parameters
    ----------
    config : AcceleratorConfig
    clock_hz, baud : int

    Members
    -------
    rx : ``In(1)``, tx : ``Out(1)``
        Lines.
    dead, irq : ``Out(1)``
        For lamps: the bridge waits for a BREAK; the accelerator's interrupt.
    """

    def __init__(self, config, clock_hz, baud):
        self._config, self._clock_hz, self._baud = config, clock_hz, baud
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "dead": Out(1), "irq": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.bridge = bridge = SerialBridge(self._config.stream_bits, self._clock_hz, self._baud)
        lines = ("rx", "tx", "dead", "aresetn")
        ports = {
            f"{'o' if member.flow == wiring.In else 'i'}_{name}": getattr(bridge, name)
            for name, member in bridge.signature.members.items()
            if name not in lines
        }
        m.submodules.accelerator = Instance(
            "sigbit", i_aclk=ClockSignal(), i_aresetn=bridge.aresetn & ~ResetSignal(), **ports
        )
        m.d.comb += [
            bridge.rx.eq(self.rx),
            self.tx.eq(bridge.tx),
            self.dead.eq(bridge.dead),
            self.irq.eq(bridge.irq),
        ]
        return m


def serial_verilog(config, clock_hz, baud):
    """Verilog of :class:`SerialAccelerator` under the name ``serial_accelerator``, the accelerator included.

    Ports are ``clk``, ``rst``, ``rx``, ``tx``, ``dead`` and ``irq``. A simulation runs what a board gets, but for the
    pins and the PLL.
    """
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"
    top = SerialAccelerator(config, clock_hz, baud)
    ports = {
        name: (getattr(top, name), PortDirection.Input if member.flow == wiring.In else PortDirection.Output)
        for name, member in top.signature.members.items()
    }
    text = verilog.convert(top, name="serial_accelerator", ports=ports, emit_src=False, strip_internal_attrs=True)
    return f"{text}\n{emit_verilog(config)}"
