"""AXI4-Lite registers: the table, channel order, back-pressure, strobes, interrupts."""

from dataclasses import replace

import pytest
from amaranth.sim import Simulator
from hw.streams import STALLS, stall_pair
from sigbit_hw.bus.axi_lite import AxiLiteRegisters
from sigbit_hw.spec.config import CONTRACT_VERSION, PRESETS
from sigbit_hw.spec.packets import Fault
from sigbit_hw.spec.registers import COUNTERS, IDENTITY, Control, Interrupt, Register, Status

CONFIG = PRESETS["tiny"]
COUNTER_VALUES = {register: 0x1000_0000 + register for register in COUNTERS}


class Master:
    """AXI4-Lite master with stalls on every channel."""

    def __init__(self, ctx, dut, stalls="none"):
        self.ctx = ctx
        self.dut = dut
        self.bus = dut.bus
        self._idle, self._pressure = stall_pair(stalls)

    async def write(self, address, value, strobe=0xF, first="both"):
        """Write with the address channel ``first``, the data channel first, or both at once."""
        ctx, bus = self.ctx, self.bus
        waits = {"aw": {"both": 0, "aw": 0, "w": 3}[first], "w": {"both": 0, "aw": 3, "w": 0}[first]}
        waits = {channel: wait + self._idle() for channel, wait in waits.items()}
        ctx.set(bus.awaddr, address)
        ctx.set(bus.wdata, value)
        ctx.set(bus.wstrb, strobe)
        while waits:
            for channel in waits:
                ctx.set(getattr(bus, f"{channel}valid"), waits[channel] <= 0)
            taken = [c for c in waits if waits[c] <= 0 and ctx.get(getattr(bus, f"{c}ready"))]
            assert not ctx.get(bus.bvalid), "no response before address and data"
            await ctx.tick()
            waits = {channel: wait - 1 for channel, wait in waits.items() if channel not in taken}
            for channel in taken:
                ctx.set(getattr(bus, f"{channel}valid"), 0)
        assert await self._response("b", "bresp") == 0

    async def read(self, address):
        ctx, bus = self.ctx, self.bus
        for _ in range(self._idle()):
            await ctx.tick()
        ctx.set(bus.araddr, address)
        ctx.set(bus.arvalid, 1)
        await ctx.tick().until(bus.arready)
        ctx.set(bus.arvalid, 0)
        value = await self._response("r", "rdata")
        assert ctx.get(bus.rresp) == 0
        return value

    async def _response(self, channel, payload):
        ctx, bus = self.ctx, self.bus
        valid, ready, payload = getattr(bus, f"{channel}valid"), getattr(bus, f"{channel}ready"), getattr(bus, payload)
        for _ in range(50):
            if ctx.get(valid):
                break
            await ctx.tick()
        value = ctx.get(payload)
        for _ in range(self._pressure()):
            await ctx.tick()
            assert (ctx.get(valid), ctx.get(payload)) == (1, value), "a response stays until it is taken"
        ctx.set(ready, 1)
        assert ctx.get(valid), "no response"
        await ctx.tick()
        ctx.set(ready, 0)
        assert not ctx.get(valid), "one response per request"
        return value

    async def pulse(self, **signals):
        dut, ctx = self.dut, self.ctx
        names = {"fault": dut.fault.valid, "ended": dut.ended}
        if "fault" in signals:
            code, packet = signals["fault"]
            ctx.set(dut.fault.code, code)
            ctx.set(dut.fault.packet, packet)
        for name in signals:
            ctx.set(names[name], 1)
        await ctx.tick()
        for name in signals:
            ctx.set(names[name], 0)


def run(script, stalls="none", config=CONFIG):
    dut = AxiLiteRegisters(config)

    async def testbench(ctx):
        await script(ctx, dut, Master(ctx, dut, stalls))

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.run()


@pytest.mark.parametrize("stalls", STALLS)
def test_every_register_reads_its_value_and_all_else_reads_zero(stalls):
    expected = {
        Register.IDENTITY: IDENTITY,
        Register.VERSION: CONTRACT_VERSION,
        Register.HASH_LOW: CONFIG.hash & 0xFFFFFFFF,
        Register.HASH_HIGH: CONFIG.hash >> 32,
        Register.CONTROL: 0,
        Register.STATUS: Status.SESSION | Status.BUSY | Status.DRAINING,
        Register.FAULT: 0,
        Register.FAULT_PACKET: 0,
        Register.IRQ_ENABLE: 0,
        Register.IRQ_PENDING: 0,
        Register.PACKETS: 0xAAAA0001,
        Register.INSTRUCTIONS: 0xBBBB0002,
        **COUNTER_VALUES,
    }
    assert set(expected) == set(Register), "every register has an expected value"

    async def script(ctx, dut, master):
        for name in ("session", "busy", "draining"):
            ctx.set(getattr(dut, name), 1)
        ctx.set(dut.packets, 0xAAAA0001)
        ctx.set(dut.instructions, 0xBBBB0002)
        ctx.set(dut.counters, {register.name.lower(): value for register, value in COUNTER_VALUES.items()})
        for address in range(0, 256, 4):
            assert await master.read(address) == expected.get(address, 0), hex(address)
        assert await master.read(Register.HASH_LOW + 3) == expected[Register.HASH_LOW]

    run(script, stalls)


@pytest.mark.parametrize("bit", ["session", "busy", "draining"])
def test_every_status_input_has_its_own_bit(bit):
    async def script(ctx, dut, master):
        ctx.set(getattr(dut, bit), 1)
        assert await master.read(Register.STATUS) == Status[bit.upper()]

    run(script)


def test_the_hash_is_that_of_the_configuration():
    async def script(ctx, dut, master):
        other = replace(CONFIG, columns=4)
        assert await master.read(Register.HASH_HIGH) == other.hash >> 32 != CONFIG.hash >> 32

    run(script, config=replace(CONFIG, columns=4))


@pytest.mark.parametrize("stalls", STALLS)
@pytest.mark.parametrize("first", ["both", "aw", "w"])
def test_address_and_data_of_a_write_come_in_any_order(first, stalls):
    async def script(ctx, dut, master):
        for value in (3, 1, 2, 0):
            await master.write(Register.IRQ_ENABLE, value, first=first)
            assert await master.read(Register.IRQ_ENABLE) == value

    run(script, stalls)


def test_a_write_without_the_low_strobe_changes_nothing():
    async def script(ctx, dut, master):
        await master.write(Register.IRQ_ENABLE, 3, strobe=0x1)
        await master.write(Register.IRQ_ENABLE, 0, strobe=0xE)
        assert await master.read(Register.IRQ_ENABLE) == 3

    run(script)


def test_writes_to_read_only_and_unmapped_addresses_are_ignored():
    async def script(ctx, dut, master):
        before = [await master.read(address) for address in range(0, 256, 4)]
        pulses = 0
        for address in range(0, 256, 4):
            if address not in (Register.CONTROL, Register.IRQ_ENABLE):
                await master.write(address, 0xFFFFFFFF)
                pulses += ctx.get(dut.soft_reset) + ctx.get(dut.clear_counters)
        assert [await master.read(address) for address in range(0, 256, 4)] == before
        assert pulses == 0

    run(script)


@pytest.mark.parametrize(
    ("value", "soft_reset", "clear_counters"),
    [(Control.SOFT_RESET, 1, 0), (Control.CLEAR_COUNTERS, 0, 1), (3, 1, 1), (0xFC, 0, 0)],
)
def test_control_bits_pulse_for_one_cycle(value, soft_reset, clear_counters):
    async def script(ctx, dut, master):
        seen = [0, 0]
        ctx.set(dut.bus.awaddr, Register.CONTROL)
        ctx.set(dut.bus.wdata, value)
        ctx.set(dut.bus.wstrb, 0xF)
        ctx.set(dut.bus.awvalid, 1)
        ctx.set(dut.bus.wvalid, 1)
        ctx.set(dut.bus.bready, 1)
        for _ in range(10):
            await ctx.tick()
            ctx.set(dut.bus.awvalid, 0)
            ctx.set(dut.bus.wvalid, 0)
            seen[0] += ctx.get(dut.soft_reset)
            seen[1] += ctx.get(dut.clear_counters)
        assert seen == [soft_reset, clear_counters]

    run(script)


def test_the_first_fault_stays_until_a_soft_reset():
    async def script(ctx, dut, master):
        await master.pulse(fault=(Fault.CRC, 7))
        await master.pulse(fault=(Fault.MAGIC, 9))
        assert await master.read(Register.FAULT) == Fault.CRC
        assert await master.read(Register.FAULT_PACKET) == 7
        assert await master.read(Register.STATUS) == Status.FAULT
        await master.write(Register.CONTROL, Control.CLEAR_COUNTERS)
        assert await master.read(Register.FAULT) == Fault.CRC
        await master.write(Register.IRQ_ENABLE, 2)
        await master.write(Register.CONTROL, Control.SOFT_RESET)
        for register in (Register.FAULT, Register.FAULT_PACKET, Register.STATUS, Register.IRQ_PENDING):
            assert await master.read(register) == 0
        assert await master.read(Register.IRQ_ENABLE) == 2, "the enables are the host's setting"
        await master.pulse(fault=(Fault.MAGIC, 9))
        assert await master.read(Register.FAULT) == Fault.MAGIC

    run(script)


@pytest.mark.parametrize("interrupt", Interrupt)
def test_an_interrupt_needs_event_and_enable_and_is_cleared_by_writing_one(interrupt):
    event = {"ended": 1} if interrupt == Interrupt.END else {"fault": (Fault.CRC, 1)}
    other = Interrupt(3) ^ interrupt

    async def script(ctx, dut, master):
        await master.pulse(**event)
        await ctx.tick()
        assert not ctx.get(dut.irq)
        assert await master.read(Register.IRQ_PENDING) == interrupt
        await master.write(Register.IRQ_ENABLE, other)
        await ctx.tick().repeat(2)
        assert not ctx.get(dut.irq)
        await master.write(Register.IRQ_ENABLE, interrupt)
        await ctx.tick().repeat(2)
        assert ctx.get(dut.irq)
        await master.write(Register.IRQ_PENDING, other)
        assert await master.read(Register.IRQ_PENDING) == interrupt
        await master.write(Register.IRQ_PENDING, interrupt)
        await ctx.tick().repeat(2)
        assert not ctx.get(dut.irq)
        assert await master.read(Register.IRQ_PENDING) == 0

    run(script)


def test_an_event_that_meets_its_own_clearing_is_not_lost():
    async def script(ctx, dut, master):
        for event, kept in ((0, 0), (1, Interrupt.END)):
            await master.pulse(ended=1)
            ctx.set(dut.bus.awaddr, Register.IRQ_PENDING)
            ctx.set(dut.bus.wdata, Interrupt.END)
            ctx.set(dut.bus.wstrb, 1)
            ctx.set(dut.bus.awvalid, 1)
            ctx.set(dut.bus.wvalid, 1)
            ctx.set(dut.bus.bready, 1)
            await ctx.tick()
            ctx.set(dut.bus.awvalid, 0)
            ctx.set(dut.bus.wvalid, 0)
            ctx.set(dut.ended, event)  # the cycle in which the write takes effect
            await ctx.tick()
            ctx.set(dut.ended, 0)
            await ctx.tick().repeat(2)
            ctx.set(dut.bus.bready, 0)
            assert await master.read(Register.IRQ_PENDING) == kept

    run(script)
