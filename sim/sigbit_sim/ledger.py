"""The ledger of look-up tables: what an accelerator costs on UltraScale+, predicted from its configuration at once.

Our definition. The structure of cells, generators and accumulators is counted: adders by their bits, truth tables by
their inputs, memories by their ports. What surrounds the grid is fitted to a few synthesized accelerators. All figures
stand for what :mod:`.estimate` measures with Yosys; ``sigbit bench ledger`` compares the two.
"""

from dataclasses import replace

from sigbit_hw.arith.multiplier import multiplier
from sigbit_hw.arith.operand import significand_bits, significand_parts
from sigbit_hw.array.masked import group_sum_bits
from sigbit_hw.array.subset import subset_terms
from sigbit_hw.lib.tree import Term, ternary_luts, tree_levels
from sigbit_hw.lib.ultrascale import function_luts
from sigbit_hw.spec.config import (
    COLUMNS_MAX,
    DEVICE_LUTS,
    MEMORY_LUTS,
    SUBSET_WEIGHTS,
    ConfigError,
    ram_luts,
    subset_word_bits,
)
from sigbit_hw.spec.formats import product_bits

__all__ = ["accumulator_luts", "cell_luts", "fitting_grid", "generator_luts", "ledger", "masking_luts"]

#: Part of the bits of a conjunction that are not the reset of a register.
_SINGLE_PARTIAL = 0.75
#: Of masking units by their group, and of compactors by group and tokens per cycle, synthesized.
_MASK_UNITS = {4: 222, 8: 701, 16: 1688}
_COMPACTORS = {
    4: {1: 62, 2: 88, 4: 132},
    8: {1: 130, 2: 202, 4: 318},
    16: {1: 323, 2: 469, 4: 779},
}
#: Of a token lane of a masked cell, and of a level of its adders: at all, and per bit of a weight.
_TOKEN_LANE, _TOKEN_LEVEL = (34, 5), (0.5, 1.5)
#: Of a requantizer, an encoder and a decoder of residuals.
_POST_LANE = 856
#: What codes that are indices add to it, and to the post-processor at all.
_INDEX_LANE, _INDEX = 157, 608
#: Of the array's edge, per lane and column of a weight word, and at all.
_EDGE_LANE, _EDGE = 21, 190
#: Of parser, sequencer, pooling, post-processor and buses: per bit of a beat, per bit of the planes' words, and at all.
_STREAM_BIT, _FEATURE_BIT, _CONTROL = 6, 6, 3090
#: Sums in banks this deep lie in look-up tables: of a RAM32M16, which synthesis takes for them, and its bits.
_SHALLOW = 64
_RAM_LUTS, _RAM_BITS = 8, 14


def cell_luts(config, cell=None):
    """Look-up tables of one cell of the grid, memory included; of the configuration's kind, or of another one."""
    cell = cell or config.cell
    terms, words, word_bits = None, config.lanes, config.product_bits
    if cell == "masked":
        return _masked_cell(config)
    if cell == "logic":
        word_bits = product_bits(config.weight_format, config.activation_format)
        return config.planes * (_multipliers(config) + _signed_tree(config.lanes, word_bits) + config.sum_bits)
    if cell == "subset":
        largest = config.weight_format.magnitude_max
        form = config.activation_format
        terms = subset_terms(config.lanes, form.bits, largest, form.signed)
        words, word_bits = len(terms), subset_word_bits(largest)
    terms = terms or [Term(0, (1 << word_bits) - 1)] * words
    return config.planes * (ram_luts(words * -(-word_bits // 2)) + ternary_luts(terms, config.sum_bits))


def _masked_cell(config):
    """Weights and products of every token lane, their adders, the sum of a group, the sum of the column."""
    bits, lanes = config.weight_format.bits, config.token_lanes
    lane, level = (constant + slope * bits for constant, slope in (_TOKEN_LANE, _TOKEN_LEVEL))
    # Bits that the sum of the column does not have are dropped.
    group = min(group_sum_bits(config.lanes), config.sum_bits) + 1
    return 1 + config.planes * (lanes * lane + tree_levels(lanes) * level + group + config.sum_bits)


def masking_luts(config):
    """Look-up tables of the masking unit and the compactor of one row and plane; 0 without masks."""
    return _MASK_UNITS[config.lanes] + _COMPACTORS[config.lanes][config.token_lanes] if config.masked else 0


def _multipliers(config):
    """All multipliers of a plane. Those of every second lane leave short truth tables to their adder."""
    engine = multiplier(config.weight_format, config.activation_format)
    if engine.form == "significand":
        return config.lanes * _significand_multiplier(config.weight_format, config.activation_format, engine)
    own, late = function_luts(engine.functions()), function_luts(engine.functions(late=True))
    return -(-config.lanes // 2) * own + config.lanes // 2 * late


def _significand_multiplier(weight, activation, engine):
    """Partial products of two bits of the weight, their sums, and a shift."""
    weight_bits = significand_bits(weight)
    bits = activation.bits if activation.kind == "int" else significand_bits(activation) + activation.signed
    shift = max(part[1] for part in significand_parts(weight)) + max(part[1] for part in significand_parts(activation))
    if engine.delay_cycles <= 1 + (shift > 0):
        count = weight_bits + bits
    else:
        count, distance = 0, 2
        words = [bits + 2] * (weight_bits // 2) + [bits] * (weight_bits % 2)
        count += sum(width if width > bits else _SINGLE_PARTIAL * width for width in words)
        while len(words) > 1:
            sums = []
            for low, high in zip(words[::2], [*words[1::2], None], strict=False):
                sums.append(low if high is None else max(low, high + distance) + 1)
                count += 0 if high is None else sums[-1] - distance
            words, distance = sums, 2 * distance
    sources = [min(bit + 1, shift + 1, engine.product_bits - bit) for bit in range(engine.product_bits)]
    if shift:
        count += sum(1 if source <= 3 else 2 if source <= 5 else 3 for source in sources) + shift.bit_length() - 1
    return count + 2 * activation.signed


def _signed_tree(lanes, word_bits):
    count, level, total = lanes, 0, 0
    while count > 1:
        level += 1
        total += count // 2 * (word_bits + level - 1)
        count = -(-count // 2)
    return total


def generator_luts(config):
    """Look-up tables of one generator of the tables of ``fill_columns`` columns, memory included; 0 without tables."""
    if config.cell in ("logic", "masked"):
        return 0
    if config.cell == "subset":
        weight_bits = config.weight_format.magnitude_bits + 1
        sums = subset_word_bits(config.weight_format.magnitude_max) + 1
        logic = -(-config.lanes // SUBSET_WEIGHTS) * (sums + weight_bits) + 2
        # One of several columns and one of four weights: choices share look-up tables.
        logic += (config.weight_columns - 1) * config.lanes * weight_bits / 2
    else:
        weight_bits = config.table_weight_bits + 2
        logic = config.lanes * (config.product_bits + -(-(config.weight_columns - 1) // 3) * weight_bits)
    return round(logic) + config.weight_columns * ram_luts(-(-config.lanes * weight_bits // 2))


def accumulator_luts(config):
    """Look-up tables of the accumulator of one column and plane: adder, choice of the bank, addresses."""
    address_bits = (config.strip_depth - 1).bit_length()
    memory = 2 * _RAM_LUTS * -(-config.accumulator_bits // _RAM_BITS) * -(-config.strip_depth // 32)
    shallow = config.strip_depth <= _SHALLOW
    return 2 * config.accumulator_bits + 2 * address_bits + 2 + shallow * memory


def _read_multiplexer(config):
    """The multiplexer in front of the post-processor: four words per look-up table and bit."""
    words, count = 2 * config.planes * (config.columns // config.post_lanes), 0
    while words > 1:
        words = -(-words // 4)
        count += words
    return config.post_lanes * config.accumulator_bits * count


def ledger(config):
    """Predicted look-up tables of an accelerator.

    Parameters
    ----------
    config : AcceleratorConfig

    Returns
    -------
    dict
        ``parts``: look-up tables, memory included, by part; ``lut``: their sum; ``lutram``: those of the grid that are
        memory; ``share``: of the device; ``spare``: look-up tables that the device has more, negative if it does not
        fit; ``fits``.
    """
    columns = config.columns - config.logic_columns
    generators = config.rows * -(-columns // config.fill_columns)
    edges = 1 + (config.logic_columns > 0)
    cells = columns * cell_luts(config) + (config.logic_columns and config.logic_columns * cell_luts(config, "logic"))
    parts = {
        "cells": config.rows * cells,
        "generators": generators * generator_luts(config),
        "masking": config.rows * config.planes * masking_luts(config),
        "accumulators": config.columns * config.planes * accumulator_luts(config),
        "array's edges": edges * (_EDGE_LANE * config.vector * config.weight_columns + _EDGE)
        + _read_multiplexer(config),
        "post-processor": _POST_LANE * config.post_lanes
        + config.level_tables * (_INDEX_LANE * config.post_lanes + _INDEX),
        "control, pooling, buses": _STREAM_BIT * config.stream_bits
        + _FEATURE_BIT * config.planes * config.feature_word_bits
        + _CONTROL,
    }
    parts = {part: round(luts) for part, luts in parts.items()}
    total = sum(parts.values())
    return {
        "parts": parts,
        "lut": total,
        "lutram": config.memory_luts,
        "share": total / DEVICE_LUTS,
        "spare": DEVICE_LUTS - total,
        "fits": total <= DEVICE_LUTS,
    }


def fitting_grid(config, share, memory_luts=MEMORY_LUTS, *, mixed=True):
    """The configuration with as many columns as take at most a share of the device's look-up tables; None if none do.

    With ``mixed`` tables that would need more than ``memory_luts`` of them as memory make room for columns of logic
    cells, as few as it takes.
    """
    fitting = None
    for columns in range(config.post_lanes, COLUMNS_MAX + 1, config.post_lanes):
        most = columns if mixed and config.cell in ("table", "subset") else 1
        wider = _with_logic(config, columns, range(0, most, config.fill_columns), memory_luts)
        if wider is None or ledger(wider)["share"] > share:
            break
        fitting = wider
    return fitting


def _with_logic(config, columns, choices, memory_luts):
    """So many columns, with the first choice of how many are of logic cells that the memory allows, or None."""
    for logic_columns in choices:
        try:
            wider = replace(config, columns=columns, logic_columns=logic_columns)
        except ConfigError:
            continue
        if wider.memory_luts <= memory_luts:
            return wider
    return None
