"""Block-RAM memories of the accelerator: one write port, one synchronous read port."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

__all__ = ["WordMemory"]


class WordMemory(wiring.Component):
    """Memory with output register: data two cycles after the address.

    A word that is read in the cycle in which it is written gives the old value. Words are 0 at first.

    Parameters
    ----------
    width, depth : int
        Bits of a word, words.
    granule_bits : int
        Bits per write enable; divides ``width``.

    Members
    -------
    write_enable : In(width // granule_bits)
    write_address, write_data : In
    read_address : In
    read_data : Out(width)
    """

    #: Cycles from ``read_address`` to ``read_data``.
    read_latency_cycles = 2

    def __init__(self, width, depth, granule_bits=None):
        self._width, self._depth = width, depth
        self._granule_bits = granule_bits or width
        if width % self._granule_bits:
            raise ValueError(f"granule_bits must divide the width {width}, not {granule_bits}")
        self.module_name = f"memory_{depth}x{width}_{self._granule_bits}"
        super().__init__(
            {
                "write_enable": In(width // self._granule_bits),
                "write_address": In(range(depth)),
                "write_data": In(width),
                "read_address": In(range(depth)),
                "read_data": Out(width),
            }
        )

    def verilog(self, name):
        """The same memory as the text of a Verilog module, used when it is emitted.

        Amaranth writes one line per word to initialize a memory, which for megabits is most of the file and half of the
        time. Block RAM is 0 after configuration, so synthesis needs no initialization; simulation has the loop.
        """
        address_bits = exact_log2(self._depth)
        return f"""\
module {name}(clk, rst, write_enable, write_address, write_data, read_address, read_data);
  input clk, rst;
  input [{self._width // self._granule_bits - 1}:0] write_enable;
  input [{address_bits - 1}:0] write_address, read_address;
  input [{self._width - 1}:0] write_data;
  output reg [{self._width - 1}:0] read_data;
  (* ram_style = "block" *) reg [{self._width - 1}:0] words [0:{self._depth - 1}];
  reg [{self._width - 1}:0] fetched;
  integer granule;
  always @(posedge clk) begin
    for (granule = 0; granule < {self._width // self._granule_bits}; granule = granule + 1)
      if (write_enable[granule])
        words[write_address][granule * {self._granule_bits} +: {self._granule_bits}]
          <= write_data[granule * {self._granule_bits} +: {self._granule_bits}];
    fetched <= words[read_address];
    read_data <= fetched;
  end
`ifndef SYNTHESIS
  integer index;
  initial for (index = 0; index < {self._depth}; index = index + 1) words[index] = 0;
`endif
endmodule
"""

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(
            shape=unsigned(self._width), depth=self._depth, init=[], attrs={"ram_style": "block"}
        )
        write = memory.write_port(granularity=self._granule_bits)
        read = memory.read_port()
        m.d.comb += [
            write.en.eq(self.write_enable),
            write.addr.eq(self.write_address),
            write.data.eq(self.write_data),
            read.addr.eq(self.read_address),
        ]
        m.d.sync += self.read_data.eq(read.data)
        return m
