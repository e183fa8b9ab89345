"""Packed weights: every packing gives back its codes, one word per cycle, and words that follow each other."""

from dataclasses import replace

import numpy as np
import pytest
from amaranth import Module, Signal
from amaranth.sim import Simulator
from sigbit_hw.control.unpacker import WeightUnpacker, divide
from sigbit_hw.spec.codebooks import STREAM_PACKINGS, stream_packing
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.packets import PACKING
from sigbit_sim.golden.program import pack_groups, unpack_groups, word_bytes

CONFIG = replace(PRESETS["tiny"], lanes=3, post_lanes=2, weight_columns=2, packing="radix")
LANES = 12


@pytest.mark.parametrize("base", [3, 5, 6])
def test_division_is_exact_for_every_word(base):
    width = next(form.word_bits for form in STREAM_PACKINGS if form.base == base)
    m, word = Module(), Signal(width)
    quotient, remainder = Signal(width), Signal(4)
    parts = divide(m, word, base, "division")
    m.d.comb += [quotient.eq(parts[0]), remainder.eq(parts[1])]

    async def bench(ctx):
        for value in range(1 << width):
            ctx.set(word, value)
            assert (ctx.get(quotient), ctx.get(remainder)) == divmod(value, base)

    sim = Simulator(m)
    sim.add_testbench(bench)
    sim.run()


def words_of(codes):
    return [sum(int(code) << 4 * lane for lane, code in enumerate(row)) for row in codes]


@pytest.mark.parametrize("number", range(len(STREAM_PACKINGS)))
def test_groups_become_words_without_a_gap(number):
    form, rng = STREAM_PACKINGS[number], np.random.default_rng(number)
    count = 2 * form.count + form.count // 2  # a tail that is not whole
    table = rng.permutation(16)[:8]
    indices = rng.integers(0, form.levels, (count, LANES))
    payload = pack_groups(CONFIG, indices, form)
    assert (unpack_groups(CONFIG, payload, form, count) == indices).all()
    stride = word_bytes(CONFIG, LANES * form.word_bits)
    groups = [payload[start : start + stride] for start in range(0, len(payload), stride)]
    unpacker = WeightUnpacker(CONFIG)
    written, cycles = [], []

    async def bench(ctx):
        entry = PACKING.pack(form=number, **{f"code{i}": int(code) for i, code in enumerate(table)})
        ctx.set(unpacker.packing.en, 1)
        ctx.set(unpacker.packing.data, entry)
        await ctx.tick()
        ctx.set(unpacker.packing.en, 0)
        assert ctx.get(unpacker.count) == form.count
        assert 8 * (ctx.get(unpacker.last_beat) + 1) == stride
        top = len(unpacker.i.payload.data) - 8 * stride
        waiting = [(g, 5 + form.count * n, min(form.count, count - form.count * n)) for n, g in enumerate(groups)]
        for now in range(40):
            ctx.set(unpacker.i.valid, int(bool(waiting)))
            if waiting:
                group, address, words = waiting[0]
                data = int.from_bytes(group, "little") << top
                ctx.set(unpacker.i.payload, {"data": data, "address": address, "words": words})
            if waiting and ctx.get(unpacker.i.ready):
                waiting.pop(0)
            if ctx.get(unpacker.write.en):
                assert ctx.get(unpacker.busy)
                written.append((ctx.get(unpacker.write.address), ctx.get(unpacker.write.data)))
                cycles.append(now)
            await ctx.tick()

    sim = Simulator(unpacker)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    assert written == list(enumerate(words_of(table[indices]), start=5))
    assert np.diff(cycles).tolist() == [1] * (count - 1)


@pytest.mark.parametrize(
    ("codes", "bits"), [(2, 1), (3, 1.6), (4, 2), (5, 7 / 3), (6, 2.6), (7, 3), (8, 3), (9, None), (16, None)]
)
def test_the_densest_packing_for_some_codes(codes, bits):
    found = stream_packing(codes)
    assert (found is None) == (bits is None)
    if found:
        assert found[1].word_bits / found[1].count == pytest.approx(bits)
        assert STREAM_PACKINGS[found[0]] == found[1]
