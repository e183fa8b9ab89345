# amaranth: UnusedElaboratable=no
"""Block-RAM memory: a plain model, the Amaranth description and the Verilog text behave the same."""

import random
import shutil
import subprocess

import pytest
from amaranth.sim import Simulator
from sigbit_hw.memory.word_memory import WordMemory

SHAPES = [(8, 16, None), (32, 16, 4), (12, 64, 6)]

TESTBENCH = """\
module bench;
  reg clk = 0;
  reg [{granules}-1:0] write_enable;
  reg [{address_bits}-1:0] write_address, read_address;
  reg [{width}-1:0] write_data;
  wire [{width}-1:0] read_data;
  reg [{granules}+2*{address_bits}+{width}-1:0] traffic [0:{cycles}-1];
  integer cycle;
  memory dut(clk, 1'b0, write_enable, write_address, write_data, read_address, read_data);
  initial begin
    $readmemh("traffic.hex", traffic);
    for (cycle = 0; cycle < {cycles}; cycle = cycle + 1) begin
      {{write_enable, write_address, write_data, read_address}} = traffic[cycle];
      #1 clk = 1;
      #1 clk = 0;
      $display("%0d", read_data);
    end
  end
endmodule
"""


def traffic(width, depth, granules, cycles=400):
    """Random ``(write_enable, write_address, write_data, read_address)``; reads often hit what is written."""
    rng = random.Random(width)
    for _ in range(cycles):
        address = rng.randrange(depth)
        read = address if rng.random() < 0.3 else rng.randrange(depth)
        yield rng.getrandbits(granules) if rng.random() < 0.7 else 0, address, rng.getrandbits(width), read


def expected(width, depth, granule_bits, steps):
    """``read_data`` after every clock edge: old data when a word is read as it is written, two cycles later."""
    words, fetched, results = [0] * depth, 0, []
    for enable, address, value, read in steps:
        results.append(fetched)
        fetched = words[read]
        mask = sum(
            ((1 << granule_bits) - 1) << granule_bits * i for i in range(width // granule_bits) if enable >> i & 1
        )
        words[address] = (words[address] & ~mask) | (value & mask)
    return results


@pytest.mark.parametrize(("width", "depth", "granule_bits"), SHAPES)
def test_reads_and_granular_writes_are_as_modelled(width, depth, granule_bits):
    dut = WordMemory(width, depth, granule_bits)
    granule_bits = granule_bits or width
    steps = list(traffic(width, depth, width // granule_bits))
    found = []

    async def bench(ctx):
        for enable, address, value, read in steps:
            ctx.set(dut.write_enable, enable)
            ctx.set(dut.write_address, address)
            ctx.set(dut.write_data, value)
            ctx.set(dut.read_address, read)
            await ctx.tick()
            found.append(ctx.get(dut.read_data))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert found == expected(width, depth, granule_bits, steps)


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus Verilog is not installed")
@pytest.mark.parametrize(("width", "depth", "granule_bits"), SHAPES)
def test_the_verilog_text_is_the_same_memory(width, depth, granule_bits, tmp_path):
    text = WordMemory(width, depth, granule_bits).verilog("memory")
    granule_bits = granule_bits or width
    granules, address_bits = width // granule_bits, depth.bit_length() - 1
    steps = list(traffic(width, depth, granules))
    words = []
    for enable, address, value, read in steps:
        words.append(f"{((enable << address_bits | address) << width | value) << address_bits | read:x}")
    (tmp_path / "traffic.hex").write_text("\n".join(words))
    bench = TESTBENCH.format(width=width, granules=granules, address_bits=address_bits, cycles=len(steps))
    (tmp_path / "bench.v").write_text(text + bench)
    subprocess.run(["iverilog", "-g2012", "-s", "bench", "-o", "bench", "bench.v"], cwd=tmp_path, check=True)
    done = subprocess.run(["vvp", "-n", "bench"], cwd=tmp_path, capture_output=True, text=True, check=True)
    # Before the first read has come through, the registers of the text are undefined.
    assert [int(line) for line in done.stdout.split()[1:]] == expected(width, depth, granule_bits, steps)[1:]


def test_granules_must_divide_the_word():
    with pytest.raises(ValueError, match="granule_bits must divide the width 32, not 5"):
        WordMemory(32, 16, 5)
