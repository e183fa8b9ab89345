"""The report of a network: what it adds up, and what it says of a layer."""

import numpy as np
import pytest
import sigbit
from networks import Builder, roomy
from sigbit import performance
from sigbit.compiler import compile
from sigbit.device import DeviceError
from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT
from sigbit_sim.cycles import predict
from sigbit_sim.golden.network import run

TINY = PRESETS["tiny"]
W, A = ESB(4, 2), ESBU(4, 2)


@pytest.fixture(scope="module")
def network():
    builder = Builder(0, 3, 12, 12, UINT(8)).conv(8, (3, 3), INT(8), A, (2, 2), pads=(1, 1, 1, 1))
    builder.max_pool((2, 2), (2, 2)).conv(16, (1, 1), W, A).average_pool((3, 3), (3, 3), UINT(8))
    return builder.conv(10, (1, 1), INT(8), None).network()


def test_rows_have_geometry_formats_passes_and_cycles(network):
    result = sigbit.report(network, TINY)
    first, pool, second, average, last = result["layers"]
    assert [row["kind"] for row in result["layers"]] == [
        "Convolution", "MaxPool", "Convolution", "AveragePool", "Convolution",
    ]  # fmt: skip
    assert (first["input_shape"], first["output_shape"]) == ((3, 12, 12), (8, 6, 6))
    assert (first["kernel"], first["stride"], first["groups"]) == ((3, 3), (2, 2), 1)
    assert [row["passes"] for row in (first, pool, second, last)] == [9, None, 1, 9]
    assert pool["bound_by"] == "pooling"
    assert average["groups"] is None
    assert first["weight_bytes"] == first["weight_words"] * TINY.weight_word_bits // 8
    assert result["mismatches"] is None
    predicted = predict(compile(network, TINY))
    for row, expected in zip(result["layers"], predicted.layers, strict=True):
        assert expected.items() <= row["predicted"].items()
        slots = row["predicted"]["total"] * TINY.mac_lanes
        assert row["utilisation"] == row["part_products"] / slots
        assert row["measured"] is row["tokens"] is None


def test_the_total_is_the_sum_of_layers_and_output(network):
    result = sigbit.report(network, TINY)
    rows, total = result["layers"], result["total"]
    for key in ("macs", "part_products", "tiles", "weight_words", "weight_bytes"):
        assert total[key] == sum(row[key] for row in rows)
    for key, value in total["predicted"].items():
        assert value == sum(row["predicted"][key] for row in (*rows, result["output"])), key
    assert total["frames_per_second"][250] == 250e6 / total["predicted"]["total"]
    convolutions = [row for row in rows[:-1] if row["kind"] == "Convolution"]
    assert total["convolutions"]["part_products"] == sum(row["part_products"] for row in convolutions)
    cycles = sum(row["predicted"]["total"] for row in rows[:-1])
    assert total["convolutions"]["utilisation"] == total["convolutions"]["part_products"] / (cycles * TINY.mac_lanes)


def test_bytes_are_those_of_the_packets(network):
    program = compile(network, TINY)
    source = network.tensors[network.input]
    packets = program.image_packets(np.zeros((source.channels, source.height, source.width), dtype=int), 0)
    sent = sigbit.report(network, TINY)["total"]["bytes"]
    assert sent["image"] == sum(map(len, packets))
    assert sent["image"] == sum(sent[key] for key in ("weights", "parameters", "input", "instructions"))
    assert sent["setup"] == sum(map(len, program.setup))


def test_a_layer_is_bound_by_what_takes_most_of_its_cycles():
    # One position per tile; each tile waits for its eight columns.
    builder = Builder(0, 32, 4, 4, A).conv(8, (4, 4), W, None)
    assert sigbit.report(builder.network(), TINY)["layers"][0]["bound_by"] == "weight load"
    builder = Builder(0, 64, 16, 16, A).conv(8, (3, 3), W, A)
    assert sigbit.report(builder.network(), TINY)["layers"][0]["bound_by"] == "compute"


def test_measured_cycles_stand_beside_predicted_ones(network):
    result = sigbit.report(network, TINY, device="rtl", images=2, seed=3)
    assert result["mismatches"] == 0
    rows = [*result["layers"], result["output"], result["total"]]
    for row in rows:
        assert row["measured"]["total"] == pytest.approx(row["predicted"]["total"], rel=0.02, abs=20)
    total = result["total"]
    assert total["frames_per_second"][200] == 2 * 200e6 / total["measured"]["total"]
    assert total["utilisation"] == 2 * total["part_products"] / (total["measured"]["total"] * TINY.mac_lanes)


def test_wrong_outputs_are_counted(network, monkeypatch):
    def wrong(program, levels, progress):
        outputs = run(network, levels)
        outputs[1, 4] += 1
        return predict(program, len(levels)), outputs

    monkeypatch.setattr(performance, "measure", wrong)
    assert sigbit.report(network, TINY, device="rtl", images=3)["mismatches"] == 1


def test_an_unknown_device_is_refused(network):
    with pytest.raises(DeviceError, match="Unknown device 'emulator'; expected model or rtl"):
        sigbit.report(network, TINY, device="emulator")


def test_groups_take_fewer_cycles_per_image_and_send_weights_once(network):
    """The mean and the layer behind it run for all images; figures stay per image."""
    one, four = (sigbit.report(network, TINY, images=3, batch=batch) for batch in (1, 4))
    assert (one["images"], one["batch"], four["images"], four["batch"]) == (3, 1, 4, 4)
    totals = [result["total"] for result in (one, four)]
    for result in (one, four):
        total = result["total"]
        assert total["cycles_per_image"] == total["predicted"]["total"] / result["images"]
        assert total["frames_per_second"][200] == pytest.approx(200e6 / total["cycles_per_image"])
        slots = total["predicted"]["total"] * TINY.mac_lanes
        assert total["utilisation"] == total["part_products"] * result["images"] / slots
    assert totals[0]["part_products"] == totals[1]["part_products"]
    assert totals[1]["cycles_per_image"] < totals[0]["cycles_per_image"]
    for row, grouped in zip(one["layers"], four["layers"], strict=True):
        assert row["macs"] == grouped["macs"]
        assert grouped["lane_utilisation"] == row["lane_utilisation"]
    streamed = roomy(TINY, W, A, weight_depth=64)
    sent = [sigbit.report(network, streamed, batch=batch)["total"]["bytes"] for batch in (1, 4)]
    assert sent[0]["input"] == sent[1]["input"]
    assert sent[1]["weights"] < sent[0]["weights"]


def test_groups_are_measured_as_they_are_predicted(network):
    result = sigbit.report(network, TINY, device="rtl", images=5, batch=3)
    assert (result["images"], result["mismatches"]) == (6, 0)
    total = result["total"]
    assert total["measured"]["total"] == pytest.approx(total["predicted"]["total"], rel=0.005)
    assert total["cycles_per_image"] == total["measured"]["total"] / 6
