"""Ternary trees against integers: shifts, negative terms, latency, cost."""

import numpy as np
import pytest
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator
from sigbit_hw.lib.tree import Term, ternary_excess, ternary_levels, ternary_luts, ternary_tree

TREES = {
    "one word": [Term(0, 9)],
    "two places": [Term(0, 9), Term(3, 9)],
    "a negative": [Term(0, 9), Term(3, 9, True)],
    "all negative": [Term(2, 9, True)] * 4,
    "bits of four activations": [Term(bit, 60) for bit in range(4) for _ in range(3)],
    "two's complement": [Term(bit, 1016, bit == 3) for bit in range(4) for _ in range(8)],
    "far apart": [Term(0, 1), Term(9, 3, True), Term(17, 1), Term(5, 2, True)],
}
ROOT_BITS = 32


class Tree(wiring.Component):
    """One tree with its words as ports."""

    def __init__(self, terms):
        self._terms = terms
        words = {f"word_{index}": In(term.bits) for index, term in enumerate(terms)}
        super().__init__({**words, "carried": In(ROOT_BITS), "root": Out(ROOT_BITS)})
        self.words = [getattr(self, name) for name in words]

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.root.eq(ternary_tree(m, platform, self.words, self.carried, self._terms))
        return m


def roots(terms, vectors, carried):
    """Roots of one vector per cycle; ``carried`` is given one cycle before its root."""
    dut = Tree(terms)
    latency = ternary_levels(len(terms))
    found = []

    async def bench(ctx):
        for cycle in range(len(vectors) + latency):
            for word, value in zip(dut.words, vectors[min(cycle, len(vectors) - 1)], strict=True):
                ctx.set(word, value)
            ctx.set(dut.carried, carried[max(0, cycle - latency + 1)] if cycle - latency + 1 < len(carried) else 0)
            if cycle >= latency:
                found.append(ctx.get(dut.root))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    return found


@pytest.mark.parametrize("name", TREES)
def test_the_root_is_the_sum_of_all_terms_and_the_excess(name):
    terms = TREES[name]
    rng = np.random.default_rng(1)
    vectors = [[term.largest for term in terms], [0] * len(terms)]
    vectors += [[int(rng.integers(term.largest + 1)) for term in terms] for _ in range(20)]
    carried = rng.integers(0, 1000, len(vectors)).tolist()
    for vector, start, root in zip(vectors, carried, roots(terms, vectors, carried), strict=True):
        total = sum((-word if term.negative else word) << term.shift for word, term in zip(vector, terms, strict=True))
        assert root == (start + total + ternary_excess(terms)) % (1 << ROOT_BITS)


def test_adders_of_words_in_the_same_place_take_a_look_up_table_per_bit_and_one_for_the_carry():
    assert ternary_luts([Term(0, 1020)] * 3, 14) == 11 + 14
    # The two bits below the second word are wires; 1020 * 21 has 15 bits, and the longest word ends at the fourteenth.
    assert ternary_luts([Term(0, 1020), Term(2, 1020), Term(4, 1020)], 16) == 14 - 2 + 1 + 16
