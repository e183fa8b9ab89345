"""Predicted cycles against the counters of whole networks on the ``small`` preset."""

import pytest
from networks import Builder
from sigbit.compiler import compile
from sigbit.performance import measure
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT
from sigbit_sim.cycles import REASONS, predict

W, A = ESB(4, 2), ESBU(4, 2)


def lenet():
    builder = Builder(1, 1, 28, 28, UINT(8)).conv(6, (5, 5), INT(8), A, pads=(2, 2, 2, 2)).max_pool((2, 2), (2, 2))
    builder.conv(16, (5, 5), W, A).max_pool((2, 2), (2, 2)).conv(120, (5, 5), W, A).conv(84, (1, 1), W, A)
    return builder.conv(10, (1, 1), INT(8), None)


def resnet():
    builder = Builder(2, 3, 32, 32, INT(8)).conv(16, (3, 3), INT(8), A, pads=(1, 1, 1, 1))
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        if stride == 2:
            source = builder.last
            builder.conv(channels, (3, 3), W, A, (2, 2), pads=(1, 1, 1, 1), relu=True)
            first, builder.last = builder.last, source
            builder.conv(channels, (1, 1), W, INT(8), (2, 2))
            residual, builder.last = builder.last, first
        else:
            residual = builder.last
            builder.conv(channels, (3, 3), W, A, pads=(1, 1, 1, 1), relu=True)
        builder.conv(channels, (3, 3), W, A, pads=(1, 1, 1, 1), relu=True, residual=residual)
    return builder.average_pool((8, 8), (1, 1), UINT(8)).conv(10, (1, 1), INT(8), None)


@pytest.mark.slow
@pytest.mark.parametrize("make", [lenet, resnet])
def test_every_layer_takes_the_predicted_cycles_for_the_predicted_reasons(make):
    builder = make()
    program = compile(builder.network(), PRESETS["small"])
    measured, _ = measure(program, builder.images(2))
    predicted = predict(program, 2)
    rows = [*zip(predicted.layers, measured.layers, strict=True), (predicted.total, measured.total)]
    for found, expected in rows:
        expected = {key: expected[key] for key in ("cycles", "idle_cycles", *REASONS)}
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=0.005, abs=4)
