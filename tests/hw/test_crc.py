"""CRC-32 per beat against zlib, for every stream width."""

import random
import zlib

import pytest
from amaranth import *
from amaranth.sim import Simulator
from sigbit_hw.lib.crc import CRC32_INIT, crc32_advance, crc32_contribution, crc32_value


@pytest.mark.parametrize("bits", [8, 64, 128, 256, 512])
def test_checksum_of_whole_beats_equals_zlib(bits):
    rng = random.Random(bits)
    data, state, following, value = Signal(bits), Signal(32), Signal(32), Signal(32)
    m = Module()
    m.d.comb += following.eq(crc32_advance(state, bits) ^ crc32_contribution(data))
    m.d.comb += value.eq(crc32_value(following))

    async def testbench(ctx):
        message = b""
        ctx.set(state, CRC32_INIT)
        for _ in range(20):
            beat = rng.randbytes(bits // 8)
            message += beat
            ctx.set(data, int.from_bytes(beat, "little"))
            assert ctx.get(value) == zlib.crc32(message)
            ctx.set(state, ctx.get(following))

    simulator = Simulator(m)
    simulator.add_testbench(testbench)
    simulator.run()


def test_data_must_be_whole_bytes():
    with pytest.raises(ValueError, match="whole bytes, not 12 bits"):
        crc32_contribution(Signal(12))
