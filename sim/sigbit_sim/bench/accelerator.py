"""cocotb bench of the accelerator: AXI bus models, the stall matrix, damaged streams, resets in flight.

``SIGBIT_VECTORS`` names a JSON file written by the caller: ``setup``, ``images`` (a list of packets each), ``end``,
``expected`` (a returned packet per image), ``other_hash`` (a CONFIGURE packet for another configuration),
``stream_bytes``; packets are hexadecimal.
"""

import json
import logging
import os
import random
from itertools import cycle
from pathlib import Path

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge, with_timeout
from cocotbext.axi import (
    AxiLiteBus,
    AxiLiteMaster,
    AxiStreamBus,
    AxiStreamFrame,
    AxiStreamSink,
    AxiStreamSource,
)
from sigbit_hw.spec.packets import Fault
from sigbit_hw.spec.registers import IDENTITY, Control, Interrupt, Register, Status

_LIMIT_MS = 20


def _vectors():
    values = json.loads(Path(os.environ["SIGBIT_VECTORS"]).read_text())
    as_bytes = bytes.fromhex
    return {
        "setup": [as_bytes(packet) for packet in values["setup"]],
        "images": [[as_bytes(packet) for packet in image] for image in values["images"]],
        "end": as_bytes(values["end"]),
        "expected": [as_bytes(packet) for packet in values["expected"]],
        "other_hash": as_bytes(values["other_hash"]),
        "stream_bytes": values["stream_bytes"],
    }


def _pauses(seed):
    rng = random.Random(seed)
    return cycle([rng.random() < 0.4 for _ in range(997)])


class Bench:
    """Clock, bus models and the register map of one accelerator."""

    def __init__(self, dut):
        self.dut = dut
        self.vectors = _vectors()
        Clock(dut.aclk, 10, unit="ns").start()
        dut.aresetn.value = 0
        clocking = (dut.aclk, dut.aresetn)
        self.source = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis"), *clocking, reset_active_level=False)
        self.sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis"), *clocking, reset_active_level=False)
        self.registers = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), *clocking, reset_active_level=False)

        for model in (self.source, self.sink, self.registers.read_if, self.registers.write_if):
            model.log.setLevel(logging.WARNING)

    async def reset(self):
        self.dut.aresetn.value = 0
        self.source.clear()
        self.sink.clear()
        await ClockCycles(self.dut.aclk, 5)
        self.dut.aresetn.value = 1
        await ClockCycles(self.dut.aclk, 2)

    def stall(self, idle, backpressure):
        if idle:
            self.source.set_pause_generator(_pauses(1))
        if backpressure:
            self.sink.set_pause_generator(_pauses(2))

    async def read(self, register):
        return await with_timeout(self.registers.read_dword(register), _LIMIT_MS, "ms")

    async def write(self, register, value):
        await with_timeout(self.registers.write_dword(register, value), _LIMIT_MS, "ms")

    async def send(self, *packets):
        for packet in packets:
            await self.source.send(AxiStreamFrame(packet))

    async def check_session(self):
        """A whole session gives exactly the expected packets, one after the other."""
        vectors = self.vectors
        await self.send(*vectors["setup"])
        for image in vectors["images"]:
            await self.send(*image)
        await self.send(vectors["end"])
        for number, expected in enumerate(vectors["expected"]):
            frame = await with_timeout(self.sink.recv(), _LIMIT_MS, "ms")
            assert bytes(frame.tdata) == expected, f"packet {number} of the answer differs"
        while not await self.read(Register.IRQ_PENDING) & Interrupt.END:
            await ClockCycles(self.dut.aclk, 10)
        await self.write(Register.IRQ_PENDING, Interrupt.END)
        assert await self.read(Register.FAULT) == Fault.NONE
        assert not await self.read(Register.STATUS) & (Status.SESSION | Status.BUSY)

    async def check_fault(self, fault, packet_number):
        """The interrupt comes, names the fault, and nothing is answered."""
        if not self.dut.irq.value:
            await with_timeout(RisingEdge(self.dut.irq), _LIMIT_MS, "ms")
        assert await self.read(Register.FAULT) == fault
        assert await self.read(Register.FAULT_PACKET) == packet_number
        assert await self.read(Register.STATUS) & Status.FAULT
        await ClockCycles(self.dut.aclk, 200)
        assert self.sink.empty()

    async def _sent(self):
        while not self.source.idle():
            await RisingEdge(self.dut.aclk)

    async def soft_reset(self):
        """Also in a packet: its rest, which the bus model cannot withdraw, is a fault that a second reset clears."""
        self.source.clear()
        await self.write(Register.CONTROL, Control.SOFT_RESET)
        if not self.source.idle():
            # Not source.wait(): clear() marks the source as idle in the middle of a frame.
            await with_timeout(self._sent(), _LIMIT_MS, "ms")
            await self.write(Register.CONTROL, Control.SOFT_RESET)
        await ClockCycles(self.dut.aclk, 10)
        self.sink.clear()
        assert await self.read(Register.FAULT) == Fault.NONE
        assert not await self.read(Register.IRQ_PENDING)


async def _start(dut):
    bench = Bench(dut)
    await bench.reset()
    assert await bench.read(Register.IDENTITY) == IDENTITY
    await bench.write(Register.IRQ_ENABLE, Interrupt.FAULT)
    return bench


@cocotb.test()
@cocotb.parametrize(idle=[False, True], backpressure=[False, True])
async def a_session_is_exact_under_stalls(dut, idle, backpressure):
    bench = await _start(dut)
    bench.stall(idle, backpressure)
    await bench.check_session()
    await bench.check_session()


@cocotb.test()
@cocotb.parametrize(recovery=["soft reset", "end packet"])
async def a_corrupted_packet_stops_the_accelerator_until_recovery(dut, recovery):
    bench = await _start(dut)
    setup = bench.vectors["setup"]
    damaged = bytearray(setup[-1])
    damaged[len(damaged) // 2] ^= 0x10
    await bench.send(*setup[:-1], bytes(damaged))
    await bench.send(*bench.vectors["images"][0])
    await bench.check_fault(Fault.CRC, len(setup) - 1)
    if recovery == "soft reset":
        await bench.soft_reset()
    else:
        await bench.send(bench.vectors["end"])
        while await bench.read(Register.STATUS) & Status.DRAINING:
            await ClockCycles(dut.aclk, 10)
        await bench.write(Register.CONTROL, Control.SOFT_RESET)
        await bench.write(Register.IRQ_PENDING, Interrupt.END | Interrupt.FAULT)
    await bench.check_session()


@cocotb.test()
async def a_truncated_packet_is_a_framing_fault(dut):
    bench = await _start(dut)
    setup = bench.vectors["setup"]
    await bench.send(setup[0], setup[1][: -bench.vectors["stream_bytes"]], *setup[2:])
    await bench.check_fault(Fault.FRAMING, 1)
    await bench.soft_reset()
    await bench.check_session()


@cocotb.test()
async def a_program_for_another_configuration_is_refused(dut):
    bench = await _start(dut)
    await bench.send(bench.vectors["other_hash"], *bench.vectors["setup"][1:])
    await bench.check_fault(Fault.HASH, 0)
    await bench.soft_reset()
    await bench.check_session()


@cocotb.test()
@cocotb.parametrize(kind=["aresetn", "soft reset"], delay_cycles=[40, 300, 900])
async def a_reset_in_flight_leaves_a_working_accelerator(dut, kind, delay_cycles):
    bench = await _start(dut)
    await bench.send(*bench.vectors["setup"])
    for image in bench.vectors["images"]:
        await bench.send(*image)
    await ClockCycles(dut.aclk, delay_cycles)
    if kind == "aresetn":
        await bench.reset()
    else:
        await bench.soft_reset()
    await bench.check_session()
