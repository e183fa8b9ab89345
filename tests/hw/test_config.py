"""Configuration: presets, derived widths, dictionaries, identity, and every error."""

import json
from dataclasses import FrozenInstanceError, fields, replace

import pytest
from sigbit_hw.spec.config import PRESETS, AcceleratorConfig, ConfigError, accumulator_width
from sigbit_hw.spec.formats import ESB, ESBU, INT, UINT

TINY = PRESETS["tiny"]

#: Another legal value of every field of the tiny preset.
CHANGES = {
    "weight_format": ESB(5, 2),
    "activation_format": UINT(4),
    "rows": 4,
    "lanes": 8,
    "columns": 16,
    "weight_columns": 2,
    "planes": 2,
    "post_lanes": 8,
    "strip_depth": 64,
    "max_reduction": 4000,
    "max_wide_reduction": 500,
    "feature_depth": 4096,
    "weight_depth": 4096,
    "parameter_depth": 128,
    "cell": "table",
    "logic_columns": 4,
    "fill_columns": 4,
    "table_weight_bits": 6,
    "table_product_bits": 10,
    "level_depth": 256,
    "token_lanes": 2,
    "requantizer": "shift",
    "threshold_count": 3,
    "packing": "radix",
    "instruction_depth": 32,
    "stream_bits": 128,
}
_BYTES = {"cell": "masked", "weight_format": INT(8), "activation_format": UINT(8)}
OTHERS = ("cell", "requantizer", "packing", "threshold_count", "logic_columns")
NUMBERS = [name for name in CHANGES if "format" not in name and name not in OTHERS]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_consistent(name):
    config = PRESETS[name]
    assert config.vector == config.rows * config.lanes
    inputs = config.rows * config.token_lanes if config.cell == "masked" else config.vector
    assert config.mac_lanes == inputs * config.columns * config.planes
    assert config.columns % config.post_lanes == config.vector % config.post_lanes == 0
    assert config.accumulator_bits <= 32
    assert config.feature_word_bits == config.vector * config.activation_format.bits
    assert config.weight_word_bits == config.weight_columns * config.vector * config.weight_format.bits
    assert config.parameter_word_bits == config.post_lanes * 96


def test_board_preset_has_its_lanes():
    assert PRESETS["zcu102"].mac_lanes >= 4096


@pytest.mark.parametrize(
    ("weight", "activation", "widths"),
    [
        (ESB(3, 1), ESBU(3, 1), (13, 16, 19)),
        (ESB(4, 2), ESBU(4, 2), (15, 18, 21)),
        (ESB(4, 1), ESBU(4, 2), (16, 19, 22)),
        (ESB(5, 2), ESBU(4, 2), (17, 20, 23)),
        (ESB(4, 1), ESBU(4, 1), (19, 22, 25)),
        (ESB(8, 5), ESBU(8, 6), (24, 27, 31)),
    ],
)
def test_accumulator_widths(weight, activation, widths):
    largest = weight.magnitude_max * activation.magnitude_max
    assert tuple(accumulator_width(d, largest) for d in (64, 512, 4608)) == widths


@pytest.mark.parametrize("products", [1, 7, 8, 9, 512, 4608])
@pytest.mark.parametrize("largest", [1, 3, 36, 196, 255, 256, 32640])
def test_accumulator_width_holds_both_extremes_and_is_needed(products, largest):
    """With negation by XOR the extreme sums are ``D * Pmax`` and ``D * (-Pmax - 1)``."""
    bits = accumulator_width(products, largest)
    assert -(1 << (bits - 1)) <= products * (-largest - 1)
    assert products * largest <= (1 << (bits - 1)) - 1
    assert products * (-largest - 1) < -(1 << (bits - 2)) or products * largest > (1 << (bits - 2)) - 1


def test_ternary_sums_need_one_bit_more_with_xor_negation():
    assert accumulator_width(4608, 1) == 15


@pytest.mark.parametrize("bits", [64, 128, 256, 512])
def test_words_start_on_stream_beats(bits):
    config = replace(TINY, stream_bits=bits)
    for width in (1, bits - 1, bits, bits + 1, 5 * bits):
        beats = config.beats_per_word(width)
        assert (beats - 1) * bits < width <= beats * bits


@pytest.mark.parametrize("name", PRESETS)
def test_dictionary_and_json_round_trip(name):
    values = PRESETS[name].to_dict()
    assert AcceleratorConfig.from_dict(json.loads(json.dumps(values))) == PRESETS[name]


def test_changes_cover_every_field():
    assert set(CHANGES) == {field.name for field in fields(AcceleratorConfig)}


@pytest.mark.parametrize("field", CHANGES)
def test_hash_changes_with_every_field(field):
    base = replace(TINY, cell="table") if field == "logic_columns" else TINY
    changed = replace(base, **{field: CHANGES[field]})
    assert getattr(changed, field) != getattr(base, field)
    assert changed.hash != base.hash
    assert AcceleratorConfig.from_dict(changed.to_dict()).hash == changed.hash
    assert 0 <= changed.hash < 1 << 64


def test_hash_changes_with_the_contract_version(monkeypatch):
    before = TINY.hash
    monkeypatch.setattr("sigbit_hw.spec.config.CONTRACT_VERSION", 99)
    assert TINY.hash != before


def test_configuration_is_frozen():
    with pytest.raises(FrozenInstanceError):
        TINY.rows = 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_format": "esb:4,2"}, "weight_format must be a Format, not 'esb:4,2'"),
        ({"activation_format": None}, "activation_format must be a Format, not None"),
        ({"weight_format": UINT(4)}, r"weight_format must be signed \(int, esb, ausn-a or ausn-g\), not uint:4"),
        *(({name: 0}, f"{name} must be a positive integer, not 0") for name in NUMBERS),
        ({"cell": "dsp"}, "cell must be logic, table, subset or masked, not 'dsp'"),
        ({"fill_columns": 6}, "fill_columns must be 1, 2, 4, 8 or 16, not 6"),
        ({"cell": "table", "fill_columns": 1, "weight_columns": 2}, r"at least weight_columns \(2\), not 1"),
        (
            {"cell": "table", "activation_format": UINT(5), "weight_format": ESB(2, 0)},
            r"codes of up to 4 bits, but activation_format uint:5 has 5; choose a shorter format or cell logic",
        ),
        ({"cell": "table", "weight_format": INT(5)}, r"codes of up to 4 bits, but weight_format int:5 has 5"),
        (
            {"cell": "table", "weight_format": ESB(4, 1)},
            r"esb:4,1 x esbu:4,2, with weights up to 12 and products up to 336; raise table_weight_bits \(5\) to 4 and "
            r"table_product_bits \(8\) to 9, choose shorter",
        ),
        (
            {"cell": "table", "weight_format": INT(4), "activation_format": INT(4), "table_product_bits": 6},
            r"int:4 x int:4, with weights up to 7 and products up to 105; .* table_product_bits \(6\) to 7",
        ),
        (
            {"cell": "table", "lanes": 64, "rows": 1, "columns": 256, "planes": 2},
            r"Tables would need \d+ look-up tables as memory, \d+ more than the 144000 of the ZU9EG; raise ",
        ),
        ({"table_weight_bits": 9}, "table_weight_bits must be at most 8, not 9"),
        ({"table_product_bits": 17}, "table_product_bits must be at most 16, not 17"),
        ({"level_depth": 16}, "level_depth must be a power of two from 32 to 65536, not 16"),
        ({"cell": "masked"}, "weights of int:2 to int:8 and activations of uint:8, not esb:4,2 x esbu:4,2"),
        ({**_BYTES, "weight_format": ESB(4, 2)}, "weights of int:2 to int:8 and activations of uint:8, not esb:4,2"),
        ({**_BYTES, "rows": 4, "lanes": 2}, r"the group of a mask: \(4, 8, 16\), not 2"),
        ({**_BYTES, "token_lanes": 3}, "token_lanes must be 1, 2 or 4, not 3"),
        ({**_BYTES, "weight_columns": 2}, r"multiple of weight_columns \* lanes \(8\), not 4"),
        ({"cell": "subset"}, r"esb:4,2 has 3, activations are esbu:4,2; choose other formats or cell logic"),
        (
            {"cell": "subset", "weight_format": ESB(6, 2), "activation_format": UINT(4)},
            r"weights with magnitudes of up to 8 bits; esb:6,2 has 9, activations are uint:4; choose other formats",
        ),
        (
            {
                "cell": "subset",
                "weight_format": INT(8),
                "activation_format": UINT(8),
                "lanes": 64,
                "rows": 1,
                "columns": 128,
                "planes": 2,
            },
            r"Tables would need 192128 look-up tables as memory, 48128 more than the 144000 of the ZU9EG; raise",
        ),
        (
            {"logic_columns": 4},
            "logic_columns are for grids of table or subset cells, not logic; leave logic_columns out",
        ),
        ({"logic_columns": -1}, "logic_columns must be an integer of 0 or more, not -1"),
        (
            {"cell": "table", "logic_columns": 8},
            r"logic_columns must be less than columns \(8\), not 8; with cell logic",
        ),
        (
            {"cell": "table", "logic_columns": 4, "activation_format": ESB(4, 2)},
            "Logic cells beside table cells take unsigned activations, not esb:4,2, of which tables count from the",
        ),
        ({"rows": 2.0}, "rows must be a positive integer, not 2.0"),
        ({"rows": True}, "rows must be a positive integer, not True"),
        ({"stream_bits": 96}, "stream_bits must be 64, 128, 256 or 512, not 96"),
        ({"strip_depth": 4}, "strip_depth must be a power of two from 8 to 4096, not 4"),
        ({"strip_depth": 8192}, "strip_depth must be a power of two from 8 to 4096, not 8192"),
        ({"strip_depth": 48}, "strip_depth must be a power of two from 8 to 4096, not 48"),
        ({"feature_depth": 8}, "feature_depth must be a power of two from 16 to 1048576, not 8"),
        ({"weight_depth": 1 << 21}, "weight_depth must be a power of two from 16 to 1048576, not 2097152"),
        ({"parameter_depth": 1}, "parameter_depth must be a power of two from 2 to 65536, not 1"),
        ({"instruction_depth": 512}, "instruction_depth must be a power of two from 4 to 256, not 512"),
        ({"rows": 65}, "rows must be at most 64, not 65"),
        ({"lanes": 257}, "lanes must be at most 256, not 257"),
        ({"columns": 1025}, "columns must be at most 1024, not 1025"),
        ({"planes": 16}, "planes must be at most 8, not 16"),
        ({"planes": 3}, "planes must be a power of two, not 3"),
        ({"post_lanes": 3}, r"post_lanes must divide columns \(8\) and rows \* lanes \(8\), not 3"),
        ({"post_lanes": 16}, r"post_lanes must divide columns \(8\)"),
        ({"lanes": 6}, r"post_lanes must divide columns \(8\) and rows \* lanes \(12\), not 8"),
        ({"weight_columns": 3}, r"weight_columns must be 1, 2, 4, 8 or 16 and divide post_lanes \(4\), not 3"),
        ({"weight_columns": 8}, r"divide post_lanes \(4\), not 8"),
        ({"max_reduction": 1 << 30}, "accumulators would need 39 bits, the requantizer takes 32; lower max_reduction"),
        ({"max_wide_reduction": 1 << 20}, r"lower max_reduction \(4608\) or max_wide_reduction \(1048576\)"),
    ],
)
def test_configuration_that_cannot_be_built_is_an_error(changes, message):
    base = replace(TINY, post_lanes=8) if changes.get("lanes") == 6 else TINY
    with pytest.raises(ConfigError, match=message):
        replace(base, **changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], "A configuration is a JSON object, not list"),
        ({**TINY.to_dict(), "depth": 3}, "Unknown configuration keys depth; expected some of activation_format, "),
        ({**TINY.to_dict(), "weight_format": "esb:4,9"}, "leaves -6 exponent bits"),
        ({**TINY.to_dict(), "weight_format": 4}, "Unknown format '4'"),
        ({**TINY.to_dict(), "rows": "2"}, "rows must be a positive integer, not '2'"),
        ({k: v for k, v in TINY.to_dict().items() if k != "rows"}, "Configuration is incomplete: .*'rows'"),
    ],
)
def test_dictionary_that_is_no_configuration_is_an_error(values, message):
    with pytest.raises(ConfigError, match=message):
        AcceleratorConfig.from_dict(values)


def test_native_formats_may_be_uniform():
    config = replace(TINY, weight_format=INT(8), activation_format=UINT(8), max_reduction=512)
    assert config.accumulator_bits == accumulator_width(512, 127 * 255)
    assert config.part_shift_bits == 8
