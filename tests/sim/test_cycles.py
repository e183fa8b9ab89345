"""The cycle model: port patterns, tiles, and what a program's packets cost. RTL is compared in tests/rtl."""

from dataclasses import replace

import pytest
from networks import Builder, random_network
from sigbit.compiler import compile
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import ESB, ESBU, UINT
from sigbit_sim.cycles import REASONS, _Port, marks, predict

TINY = PRESETS["tiny"]


@pytest.mark.parametrize("period", range(1, 6))
def test_a_port_gives_the_cycles_that_nobody_takes(period):
    uses = [(3, 4 * period, period, {0}), (40, 3 * period, period, set(range(period)))]
    taken = {start + n for start, cycles, _, offsets in uses for n in range(cycles) if n % period in offsets}
    for time in range(70):
        for cycles in range(1, 12):
            port = _Port()
            for use in uses:
                port.take(*use)
            free = [cycle for cycle in range(time, 200) if cycle not in taken]
            assert port.after(time, cycles) == free[cycles - 1] + 1
            assert port.is_free_from(time) == (time >= 40 + 3 * period)


def layer(kernel, height, width, channels=8, config=TINY):
    """Prediction of one native layer on its own."""
    builder = Builder(0, 8, height, width, ESBU(4, 2)).conv(channels, kernel, ESB(4, 2), None)
    return compile(builder.network(), config), predict(compile(builder.network(), config)).layers[0]


def test_reasons_and_the_sequencer_make_up_all_cycles():
    program = compile(random_network(3, ESB(4, 2), ESBU(4, 2)).network(), TINY)
    prediction = predict(program)
    for row in (*prediction.layers, prediction.output):
        spent = sum(row[reason] for reason in REASONS) + row["stream_waits"]
        # An instruction costs a few cycles between two others.
        assert 0 <= row["cycles"] + row["idle_cycles"] - spent <= 150
    assert prediction.total["compute_cycles"] == sum(row["compute_cycles"] for row in program.layers)
    assert prediction.total["pool_cycles"] == sum(row["pool_cycles"] for row in program.layers) > 0


def test_tiles_that_are_shorter_than_their_weights_load_wait_for_weights():
    for kernel in ((1, 1), (3, 3)):
        # One word per column and tile; of 30 positions the load hides behind all tiles but the first.
        long_program, long = layer(kernel, 5 + kernel[0], 4 + kernel[1])
        short_program, short = layer(kernel, kernel[0], kernel[1])
        assert long["compute_cycles"] == long_program.layers[0]["compute_cycles"]
        assert long["weight_stalls"] <= 8
        tiles = short_program.layers[0]["tiles"]
        assert short["weight_stalls"] >= (tiles - 1) * 8


def test_the_next_layer_waits_longer_for_values_of_more_parts():
    waits = []
    for output in (ESBU(4, 2), UINT(8)):
        builder = Builder(0, 8, 4, 4, ESBU(4, 2)).conv(8, (1, 1), ESB(4, 2), output).conv(8, (1, 1), ESB(4, 2), None)
        waits.append(predict(compile(builder.network(), TINY)).layers[0]["post_stalls"])
    # 16 pixels in two groups of post_lanes; uint:8 has three digits.
    assert waits[1] - waits[0] == 2 * 16 * 2


def test_a_narrow_stream_makes_the_first_layer_wait():
    program, row = layer((1, 1), 6, 6)
    beats = program.config.beats_per_word(program.config.feature_word_bits)
    # Header, check, words and checksum of INPUT, then the instructions'.
    assert row["idle_cycles"] >= 36 * beats
    assert row["stream_waits"] >= row["idle_cycles"]


def test_images_overlap():
    builder = random_network(1, ESB(4, 2), ESBU(4, 2))
    program = compile(builder.network(), TINY)
    one, five = predict(program).total, predict(program, 5).total
    assert five["compute_cycles"] == 5 * one["compute_cycles"]
    assert five["idle_cycles"] == one["idle_cycles"]
    assert five["cycles"] < 5 * one["cycles"]


def test_marks_are_the_ends_of_layers_and_images():
    program = compile(random_network(1, ESB(4, 2), ESBU(4, 2)).network(), TINY)
    ends = [row["instructions"][-1][1] for row in program.layers]
    assert marks(program) == [*ends, ends[-1] + 1]
    assert marks(program, 2) == [*ends, ends[-1] + 1, *(ends[-1] + 1 + end for end in ends), 2 * ends[-1] + 2]


def test_layers_that_take_turns_are_added_up():
    program = compile(random_network(1, ESB(4, 2), ESBU(4, 2)).network(), TINY)
    ((start, end),) = program.layers[1]["instructions"]
    middle = start + 2
    layers = list(program.layers)
    # The first two instructions of layer 1 count as if they were of layer 0, behind a part of layer 1.
    layers[0] = {**layers[0], "instructions": ((0, start - 1), (start, middle))}
    layers[1] = {**layers[1], "instructions": ((start - 1, start), (middle, end))}
    turns = replace(program, layers=tuple(layers))
    assert marks(turns)[:4] == [start - 1, start, middle, end]
    one, other = predict(program), predict(turns)
    for key, value in one.total.items():
        assert other.total[key] == value
        assert other.layers[0][key] + other.layers[1][key] == one.layers[0][key] + one.layers[1][key]
    assert other.layers[0] != one.layers[0]
    assert other.layers[2:] == one.layers[2:]
