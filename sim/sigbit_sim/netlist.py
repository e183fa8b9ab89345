"""Netlists after synthesis, for UltraScale+ and ECP5, and their simulation with Yosys' models of the cells."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from .synthesis import SYNTHESIS, SynthesisError, run_yosys

__all__ = ["FAMILIES", "simulate_netlist", "synthesized_netlist"]

#: Family -> synthesis command, file of Yosys with the behaviour of its cells.
FAMILIES = {
    "ultrascale+": (SYNTHESIS, "+/xilinx/cells_sim.v"),
    "ecp5": ("synth_ecp5", "+/ecp5/cells_sim.v"),
}

# After synthesis the cells get their behaviour, so that any simulator takes the netlist.
_SCRIPT = """\
read_verilog -sv design.v
hierarchy -top {top}
proc
flatten
opt_clean -purge
{synthesis} -top {top}
tee -q -o cells.txt stat
write_verilog -noattr mapped.v
design -reset
read_verilog mapped.v
read_verilog -overwrite {models}
hierarchy -top {top}
proc
flatten
opt_clean -purge
write_verilog -noattr netlist.v
"""


def synthesized_netlist(verilog, top, family):
    """Verilog of the mapped design with its cells written out, and how many cells of which type it has.

    Parameters
    ----------
    verilog, top : str
    family : str
        Of :data:`FAMILIES`.

    Returns
    -------
    str, dict

    Raises
    ------
    :exc:`~.synthesis.SynthesisError`
        If the family is not known, or Yosys is missing or fails.
    """
    if family not in FAMILIES:
        raise SynthesisError(f"family must be {' or '.join(FAMILIES)}, not {family!r}")
    synthesis, models = FAMILIES[family]
    with tempfile.TemporaryDirectory() as folder:
        run_yosys(folder, verilog, _SCRIPT.format(top=top, synthesis=synthesis, models=models), top)
        cells = re.findall(
            r"^\s+(\d+)\s+(?:[\d.e+]+\s+|-\s+)?([A-Z]\w+)\s*$", Path(folder, "cells.txt").read_text(), re.M
        )
        return Path(folder, "netlist.v").read_text(), {name: int(count) for count, name in cells}


def simulate_netlist(netlist, top, inputs, outputs, stimulus):
    """Run a netlist with Icarus Verilog, cycle by cycle.

    Parameters
    ----------
    netlist, top : str
        With ports ``clk`` and ``rst``, which is high for four cycles first.
    inputs, outputs : dict of str to int
        Ports and their bits.
    stimulus : list of dict
        Values of the inputs by port, for every cycle; what is left out is 0.

    Returns
    -------
    list of dict
        The outputs as they are in each cycle, before its rising edge; four bits of which any is undefined are 0.

    Raises
    ------
    :exc:`~.synthesis.SynthesisError`
        If Icarus Verilog is missing or does not take the netlist.
    """
    if shutil.which("iverilog") is None:
        raise SynthesisError(
            "Simulating a netlist needs Icarus Verilog; on Debian and Ubuntu run: apt-get install iverilog"
        )
    words = []
    for values in stimulus:
        word = 0
        for name, bits in reversed(inputs.items()):
            word = word << bits | values.get(name, 0) & (1 << bits) - 1
        words.append(f"{word:x}")
    width = sum(inputs.values())
    bench = _bench(top, inputs, outputs, width, len(words))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "netlist.v").write_text(netlist)
        Path(folder, "bench.v").write_text(bench)
        Path(folder, "stimulus.hex").write_text("\n".join(words) + "\n")
        for command in (
            ["iverilog", "-g2012", "-o", "bench", "-s", "bench", "bench.v", "netlist.v"],
            ["vvp", "-n", "bench"],
        ):
            run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if run.returncode:
                raise SynthesisError(f"{command[0]} failed on the netlist of {top}: {run.stderr.strip()[-500:]}")
        lines = [line.split() for line in run.stdout.splitlines() if line.startswith("cycle ")]
    return [
        {name: int(re.sub("[xXzZ]", "0", text), 16) for name, text in zip(outputs, line[1:], strict=True)}
        for line in lines
    ]


def _bench(top, inputs, outputs, width, cycles):
    connections, position = [], 0
    for name, bits in inputs.items():
        connections.append(f".{name}(word[{position + bits - 1}:{position}])")
        position += bits
    connections += [f".{name}({name})" for name in outputs]
    wires = "\n".join(f"  wire [{bits - 1}:0] {name};" for name, bits in outputs.items())
    shown = " ".join("%h" for _ in outputs)
    return f"""\
module bench;
  reg clk = 0, rst = 1;
  reg [{width - 1}:0] stimulus [0:{cycles - 1}];
  reg [{width - 1}:0] word = 0;
{wires}
  {top} dut(.clk(clk), .rst(rst), {", ".join(connections)});
  integer cycle;
  initial begin
    $readmemh("stimulus.hex", stimulus);
    for (cycle = 0; cycle < 4; cycle = cycle + 1) begin
      #1 clk = 1;
      #1 clk = 0;
    end
    rst = 0;
    for (cycle = 0; cycle < {cycles}; cycle = cycle + 1) begin
      word = stimulus[cycle];
      #1 $display("cycle {shown}", {", ".join(outputs)});
      clk = 1;
      #1 clk = 0;
    end
    $finish;
  end
endmodule
"""
