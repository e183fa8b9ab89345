"""Multipliers of both forms against the products of format levels, over all operand codes."""

import itertools
import random

import pytest
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator
from sigbit_hw.arith.multiplier import SignificandMultiplier, TableMultiplier, multiplier
from sigbit_hw.arith.operand import lookup, significand_bits, significand_parts
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT, Format

WEIGHTS = [
    "esb:2,0", "esb:3,0", "esb:3,1", "esb:4,0", "esb:4,1", "esb:4,2", "esb:5,1", "esb:5,2", "esb:5,3",
    "int:2", "int:4", "int:5",
]  # fmt: skip
ACTIVATIONS = [
    "esbu:2,0", "esbu:2,1", "esbu:3,0", "esbu:3,1", "esbu:3,2", "esbu:4,1", "esbu:4,2", "esbu:4,3", "esbu:5,2",
    "uint:2", "uint:5",
    "esb:3,0", "esb:4,1", "esb:4,2", "esb:5,2", "int:2", "int:4", "int:5",
]  # fmt: skip
WIDE = [
    ("int:8", "uint:8"),
    ("int:8", "int:8"),
    ("esb:8,5", "esbu:8,6"),
    ("esb:6,3", "esb:6,3"),
    ("esb:7,4", "int:8"),
    ("int:7", "esb:8,5"),
]


class Bench(wiring.Component):
    """Recodes both operands as the edge of the array does and multiplies them."""

    def __init__(self, engine):
        self._engine = engine
        super().__init__(
            {
                "weight": In(engine.weight_format.magnitude_code_bits),
                "activation": In(engine.activation_format.bits),
                "product": Out(engine.product_bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        engine = self._engine
        weight = Signal(engine.weight_bits)
        activation = Signal(engine.activation_bits)
        m.d.comb += [
            weight.eq(lookup(engine.weight_table, self.weight, engine.weight_bits)),
            activation.eq(lookup(engine.activation_table, self.activation, engine.activation_bits)),
            self.product.eq(engine.product(m, platform, weight, activation, "lane")),
        ]
        return m


def mismatches(engine, operands):
    """Feed one operand pair per cycle; operands whose lane word is not the biased product of the levels."""
    bench = Bench(engine)
    wrong = []

    async def testbench(ctx):
        waiting = []
        for pair in [*operands, *[operands[0]] * engine.delay_cycles]:
            ctx.set(bench.weight, pair[0])
            ctx.set(bench.activation, pair[1])
            waiting.append(pair)
            await ctx.tick()
            if len(waiting) >= engine.delay_cycles:
                magnitude_code, code = waiting.pop(0)
                product = engine.weight_format.magnitudes[magnitude_code] * engine.activation_format.decode(code)
                if (got := ctx.get(bench.product)) != product + engine.zero:
                    wrong.append((magnitude_code, code, got, product))

    sim = Simulator(bench)
    sim.add_clock(1e-8)
    sim.add_testbench(testbench)
    sim.run()
    return wrong


def every_pair(weight, activation):
    return list(itertools.product(range(1 << weight.magnitude_code_bits), range(1 << activation.bits)))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_both_forms_give_the_product_of_the_levels_for_every_pair_of_codes(weight):
    weight = Format.parse(weight)
    for activation in map(Format.parse, ACTIVATIONS):
        pairs = every_pair(weight, activation)
        assert not mismatches(SignificandMultiplier(weight, activation), pairs)
        if weight.magnitude_code_bits + activation.bits <= 7:
            assert not mismatches(TableMultiplier(weight, activation), pairs)


@pytest.mark.parametrize(
    ("weight", "activation"), [("esb:5,2", "esbu:5,2"), ("esb:4,2", "esb:5,2"), ("int:5", "int:5")]
)
def test_tables_of_up_to_nine_inputs_are_exact(weight, activation):
    weight, activation = Format.parse(weight), Format.parse(activation)
    assert not mismatches(TableMultiplier(weight, activation), every_pair(weight, activation))


@pytest.mark.parametrize(("weight", "activation"), WIDE)
def test_wide_significands_are_exact_at_the_extremes_and_at_random(weight, activation):
    weight, activation = Format.parse(weight), Format.parse(activation)
    pairs = every_pair(weight, activation)
    edges = {0, 1, (1 << activation.bits - 1) - 1, 1 << activation.bits - 1, (1 << activation.bits) - 1}
    chosen = [pair for pair in pairs if pair[1] in edges] + random.Random(9).choices(pairs, k=4000)
    assert not mismatches(multiplier(weight, activation), chosen)


@pytest.mark.parametrize(
    ("weight", "activation", "form", "luts"),
    [
        (ESB(4, 2), ESBU(3, 2), "table", 5),
        (ESB(4, 1), ESBU(3, 1), "table", 8),
        (ESB(3, 0), ESBU(2, 0), "table", 3),
        (ESB(4, 2), ESBU(4, 2), "table", 10),
        (INT(8), UINT(8), "significand", 85),
    ],
)
def test_the_cheaper_form_is_chosen(weight, activation, form, luts):
    chosen = multiplier(weight, activation)
    assert (chosen.form, chosen.luts) == (form, luts)


def test_a_wrong_table_entry_is_found():
    engine = TableMultiplier(ESB(4, 2), ESBU(3, 2))
    bit = engine.bits[3]
    object.__setattr__(bit, "truth", (*bit.truth[:-1], 1 - bit.truth[-1]))
    assert mismatches(engine, every_pair(engine.weight_format, engine.activation_format))


@pytest.mark.parametrize("text", ["esb:5,2", "esb:4,0", "esb:8,5", "esbu:4,2", "int:5", "uint:8"])
def test_a_significand_and_a_shift_make_the_magnitude(text):
    form = Format.parse(text)
    parts = significand_parts(form)
    assert tuple(significand << shift for significand, shift in parts) == form.magnitudes
    assert significand_bits(form) == (form.magnitude_bits if form.uniform else form.fraction_bits + 1)


def test_unsigned_weights_and_long_tables_are_refused():
    with pytest.raises(ValueError, match=r"Weight format must be signed \(int, esb, ausn-a or ausn-g\), not esbu:4,2"):
        multiplier(ESBU(4, 2), ESBU(4, 2))
    with pytest.raises(ValueError, match="A table of int:8 x uint:8 has 15 inputs; expected at most 9"):
        TableMultiplier(INT(8), UINT(8))
    with pytest.raises(ValueError, match="A table indexed by 2 bits must have 4 entries, not 3"):
        lookup([0, 1, 2], Const(0, 2), 2)
