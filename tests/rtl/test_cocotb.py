"""The emitted Verilog under AXI bus models: the cocotb bench in Verilator and, as a second opinion, in Icarus."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import sigbit_sim.bench
from cocotb_tools.runner import get_runner
from networks import Builder
from sigbit.compiler import compile
from sigbit.device import EmulatorDevice
from sigbit_hw.emit import emit_verilog
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import ESB, ESBU, INT
from sigbit_sim.golden.network import run
from sigbit_sim.rtl import verilator_environment

TINY = PRESETS["tiny"]
BENCH = Path(sigbit_sim.bench.__file__).parent


def vectors(config):
    """A small network with padding, two layers of blocks, pooling and 8-bit input, for the bench."""
    network = (
        Builder(7, 3, 6, 6, INT(8))
        .conv(12, (3, 3), ESB(4, 2), ESBU(4, 2), pads=(1, 1, 1, 1))
        .max_pool((2, 2), (2, 2))
        .conv(10, (3, 3), ESB(4, 2), None)
        .network()
    )
    levels = Builder(7, 3, 6, 6, INT(8)).images(3)
    program = compile(network, config)
    other = compile(network, replace(config, parameter_depth=config.parameter_depth * 2))
    images = [program.image_packets(image, index) for index, image in enumerate(levels)]
    device = EmulatorDevice(config)
    for packet in (*program.setup, *(packet for image in images for packet in image)):
        device.send(packet)
    expected = [device.receive() for _ in images]
    golden = run(network, levels)
    for index, packet in enumerate(expected):
        assert (program.decode_output(packet, index) == golden[index]).all()
    return {
        "setup": [packet.hex() for packet in program.setup],
        "images": [[packet.hex() for packet in image] for image in images],
        "end": program.end_packet().hex(),
        "expected": [packet.hex() for packet in expected],
        "other_hash": other.setup[0].hex(),
        "stream_bytes": config.stream_bits // 8,
    }


def run_bench(simulator, folder, config, build_args, test_filter=None):
    """Build and run; the runner exits, which fails the test, if a bench fails."""
    verilog = folder / "sigbit.v"
    verilog.write_text(emit_verilog(config))
    (folder / "vectors.json").write_text(json.dumps(vectors(config)))
    runner = get_runner(simulator)
    # The runner takes the language from the last source.
    sources = [BENCH / "ports.vlt", verilog] if simulator == "verilator" else [verilog]
    runner.build(
        sources=sources,
        hdl_toplevel="sigbit",
        build_dir=folder / "build",
        timescale=("1ns", "1ps"),
        build_args=build_args,
    )
    runner.test(
        hdl_toplevel="sigbit",
        test_module="sigbit_sim.bench.accelerator",
        build_dir=folder / "build",
        test_dir=folder,
        test_filter=test_filter,
        extra_env={"SIGBIT_VECTORS": str(folder / "vectors.json"), "PYTHONWARNINGS": "ignore"},
    )


@pytest.mark.parametrize("name", ["one plane", pytest.param("two planes", marks=pytest.mark.slow)])
def test_bus_regression_in_verilator(name, tmp_path, monkeypatch):
    config = TINY if name == "one plane" else replace(TINY, planes=2, stream_bits=128)
    for key, value in verilator_environment().items():
        monkeypatch.setenv(key, value)
    # With --public-flat-rw, which the runner adds, a build takes several times as long; the bench needs the ports only.
    run_bench(
        "verilator",
        tmp_path,
        config,
        ["--no-public-flat-rw", "-Wno-fatal", "-Wno-lint", "--noassert", "-O1", "--output-split", "0"],
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus Verilog is not installed")
def test_bus_regression_in_icarus(tmp_path):
    """Every test of the bench costs a minute or more here: the hardest stalls, and a refused program."""
    run_bench("icarus", tmp_path, TINY, ["-g2012"], test_filter="idle=True/backpressure=True|another_configuration")
