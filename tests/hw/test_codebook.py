"""Engines for codebooks: one integer from all four, cycles by their formulas, other levels without new hardware."""

import numpy as np
import pytest
from amaranth.sim import Simulator
from sigbit_hw.array.codebook import ENGINES, CodebookEngine, engine_tables
from sigbit_hw.spec.codebooks import PACKINGS, digit_plan, engine_cycles, magnitudes, packing
from sigbit_hw.spec.formats import FormatError
from sigbit_sim.golden import engines as golden

BELL = (-10, -3, 3, 10)
TERNARY = (-1, 0, 1)
BELL_CASE = (0, 1, 2, 3, 3, 0, 2, 1, 1), (12, 200, 7, 0, 255, 31, 64, 3, 90)
TERNARY_CASE = (0, 1, 2, 2, 0), (10, 20, 30, 40, 50)
#: Codebook, magnitudes, planes of binary digits and of the non-adjacent form, cycles of the engines for 64 products.
TABLE = [
    (TERNARY, 1, (0,), (0,), (64, 65, 65, 64)),
    (BELL, 2, (0, 1, 3), (0, 1, 2, 3), (64, 66, 130, 192)),
    ((-7, -2, 2, 7), 2, (0, 1, 2), (0, 1, 3), (64, 66, 130, 192)),
    ((-13, -3, 3, 13), 2, (0, 1, 2, 3), (0, 2, 4), (64, 66, 130, 192)),
    ((-8, -5, -3, -1, 1, 3, 5, 8), 4, (0, 1, 2, 3), (0, 2, 3), (64, 68, 260, 192)),
    ((-12, -4, 0, 4, 20), 3, (2, 3, 4), (2, 4), (64, 67, 195, 128)),
]


def run_engine(engine, kind, rows, outputs):
    """``(total, cycles, latency)`` of outputs ``(codebook, indices, activations)``, one after the other."""
    results = []

    async def bench(ctx):
        for codebook, indices, activations in outputs:
            for name, value in engine_tables(kind, codebook, rows).items():
                ctx.set(getattr(engine, name), value)
            for address, (index, activation) in enumerate(zip(indices, activations, strict=True)):
                ctx.set(engine.operand.en, 1)
                ctx.set(engine.operand.address, address)
                ctx.set(engine.operand.data, {"index": index, "activation": activation})
                await ctx.tick()
            ctx.set(engine.operand.en, 0)
            ctx.set(engine.reduction, len(indices))
            ctx.set(engine.start, 1)
            await ctx.tick()
            ctx.set(engine.start, 0)
            waited = 0
            while not ctx.get(engine.done):
                await ctx.tick()
                waited += 1
                assert waited < 5000
            results.append((ctx.get(engine.total), ctx.get(engine.cycles), waited))

    sim = Simulator(engine)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    return results


def random_case(rng, codebook, length):
    return rng.integers(0, len(codebook), length).tolist(), rng.integers(0, 256, length).tolist()


@pytest.mark.parametrize(("codebook", "count", "binary", "non_adjacent", "cycles"), TABLE, ids=lambda v: str(v))
def test_magnitudes_planes_and_cycles(codebook, count, binary, non_adjacent, cycles):
    assert len(magnitudes(codebook)) == count
    indices = [i % len(codebook) for i in range(64)]
    assert golden.digit_serial(codebook, indices, [1] * 64, adjacent=True)[2] == binary
    assert golden.digit_serial(codebook, indices, [1] * 64, adjacent=False)[2] == non_adjacent
    assert digit_plan(codebook).planes == tuple(reversed(min(binary, non_adjacent, key=len)))
    assert engine_cycles(codebook, 64) == cycles


@pytest.mark.parametrize("seed", range(20))
def test_digits_add_up_to_the_levels(seed):
    rng = np.random.default_rng(seed)
    codebook = tuple(np.sort(rng.choice(np.arange(-127, 128), 9, replace=False)).tolist())
    plan = digit_plan(codebook)
    for index, level in enumerate(codebook):
        assert sum(row[index] << plane for plane, row in zip(plan.planes, plan.digits, strict=True)) == level
        for adjacent in (True, False):
            assert sum(d << i for i, d in enumerate(golden.signed_digits(level, adjacent))) == level
    assert all(any(row) for row in plan.digits)


@pytest.mark.parametrize(
    ("codebook", "case", "total", "cycles"),
    [(BELL, BELL_CASE, 1454, (9, 11, 20, 27)), (TERNARY, TERNARY_CASE, 10, (5, 6, 6, 5))],
    ids=["bell", "ternary"],
)
def test_pinned_outputs_of_the_golden_engines(codebook, case, total, cycles):
    found = [golden.decode_multiply, golden.bins, golden.level_serial, golden.digit_serial]
    assert [engine(codebook, *case)[:2] for engine in found] == [(total, count) for count in cycles]
    assert engine_cycles(codebook, len(case[0])) == cycles
    if codebook == BELL:
        assert golden.bins(codebook, *case)[2] == {3: -222, 10: 212}
        assert golden.digit_serial(codebook, *case, adjacent=False)[:2] == (1454, 36)


@pytest.mark.parametrize("kind", ENGINES)
def test_every_engine_gives_the_integer_in_its_cycles(kind):
    position = ENGINES.index(kind)
    rng = np.random.default_rng(position)
    outputs = [(BELL, *BELL_CASE), *((BELL, *random_case(rng, BELL, length)) for length in (1, 2, 17, 20))]
    # The same hardware with other levels, those of the largest magnitudes with the largest activations among them.
    for codebook in ((-7, -2, 2, 7), (-15, -14, 14, 15), (0, 1, 2, 3), (-12, -4, 0, 4)):
        outputs.append((codebook, *random_case(rng, codebook, 20)))
    outputs.append(((-15, -14, 14, 15), [0] * 20, [255] * 20))
    outputs.append(((-15, -14, 14, 15), [3] * 20, [255] * 20))
    engine = CodebookEngine(kind, level_count=4, level_bits=5, activation_bits=8, max_reduction=20, rows=4)
    results = run_engine(engine, kind, 4, outputs)
    for (codebook, indices, activations), (total, cycles, waited) in zip(outputs, results, strict=True):
        assert total == golden.decode_multiply(codebook, indices, activations)[0], codebook
        assert cycles == engine_cycles(codebook, len(indices))[position], codebook
        assert 1 + waited == cycles + engine.latency_cycles


@pytest.mark.parametrize("count", [3, 5, 16])
@pytest.mark.parametrize("kind", ENGINES)
def test_engines_of_other_sizes(kind, count):
    position, rng = ENGINES.index(kind), np.random.default_rng(count)
    codebooks = [tuple(np.sort(rng.choice(np.arange(-31, 32), count, replace=False)).tolist()) for _ in range(2)]
    outputs = [(codebook, *random_case(rng, codebook, 9)) for codebook in codebooks]
    engine = CodebookEngine(kind, level_count=count, level_bits=6, activation_bits=8, max_reduction=9, rows=16)
    for output, (total, cycles, _) in zip(outputs, run_engine(engine, kind, 16, outputs), strict=True):
        assert (total, cycles) == (golden.decode_multiply(*output)[0], engine_cycles(output[0], 9)[position])


def test_arguments_that_cannot_be_built_are_errors():
    sizes = {"level_count": 4, "level_bits": 5, "activation_bits": 8, "max_reduction": 8}
    with pytest.raises(ValueError, match="kind must be one of decode, bins, levels, digits, not 'bin'"):
        CodebookEngine("bin", **sizes)
    with pytest.raises(ValueError, match="rows must be a positive integer, not 0"):
        CodebookEngine("bins", **sizes, rows=0)
    with pytest.raises(ValueError, match="takes 2 tables, the engine has 1"):
        engine_tables("bins", BELL, 1)


@pytest.mark.parametrize(
    ("levels", "indices", "word"),
    [
        (3, (2, 0, 1, 1, 2), 200),
        (3, (0, 1, 2, 0, 1), 102),
        (3, (2, 2, 2, 2, 2), 242),
        (5, (4, 0, 3), 79),
        (5, (4, 4, 4), 124),
        (6, (5, 4, 3, 2, 1), 1865),
        (6, (5, 5, 5, 5, 5), 7775),
    ],
)
def test_pinned_words(levels, indices, word):
    assert packing(levels).pack(indices) == [word]
    assert packing(levels).unpack([word], len(indices)) == list(indices)


@pytest.mark.parametrize(
    ("levels", "per_index"), [(2, 1), (3, 1.6), (4, 2), (5, 7 / 3), (6, 2.6), (8, 3), (16, 4), (17, 5)]
)
def test_density_and_round_trip_of_packings(levels, per_index):
    form = packing(levels)
    assert form.word_bits / form.count == pytest.approx(per_index)
    indices = np.random.default_rng(levels).integers(0, levels, 38).tolist()
    words = form.pack(indices)
    assert form.unpack(words, 38) == indices
    assert form.bits(38) == len(words) * form.word_bits
    assert max(words) < 1 << form.word_bits


def test_trits_of_a_layer_take_the_pinned_bytes():
    assert packing(3).bits(36_864) == 7373 * 8
    assert set(PACKINGS) == {3, 5, 6}


@pytest.mark.parametrize(("levels", "word"), [(3, 243), (3, 255), (5, 125), (6, 7776), (7, 7), (3, -1)])
def test_words_that_no_indices_give_are_errors(levels, word):
    with pytest.raises(FormatError, match=f"{word} is not a word of"):
        packing(levels).unpack([word], 1)


def test_indices_that_do_not_exist_are_errors():
    with pytest.raises(FormatError, match="3 is not an index of 3 levels; expected 0 to 2"):
        packing(3).pack([0, 3])
    with pytest.raises(FormatError, match="6 indices take 2 words, not 1"):
        packing(3).unpack([0], 6)
