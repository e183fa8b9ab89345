"""What term masks cost: look-up tables of masking units, compactors and masked cells, from Yosys."""

from sigbit_hw.arith.mask import Compactor, MaskUnit
from sigbit_hw.array.cell import DotProductCell
from sigbit_hw.array.masked import MaskedCell
from sigbit_hw.lib.shared import emit_modules

from .synthesis import run_synthesis

__all__ = ["masking_cost"]


def masking_cost(config):
    """Size of the parts of a grid with masked cells, each synthesized alone.

    Parameters
    ----------
    config : :class:`~sigbit_hw.spec.config.AcceleratorConfig`
        With masked cells.

    Returns
    -------
    dict
        ``mask``, ``compactor``, ``cell``, and ``plain``, a cell of multipliers of look-up tables for the same formats,
        as many lanes and planes: each with ``lut`` (memory and shift registers included), ``ff``, ``carry``, ``dsp``
        and ``instances``; ``masking_lut`` and ``cells_lut`` of the grid, ``overhead``: the former over the latter, and
        ``yosys``.
    """
    parts = {
        "mask": (MaskUnit(config.lanes), config.rows * config.planes),
        "compactor": (Compactor(config.lanes, config.token_lanes), config.rows * config.planes),
        "cell": (
            MaskedCell(
                config.lanes,
                lanes=config.token_lanes,
                planes=config.planes,
                weight_bits=config.weight_format.bits,
                sum_bits=config.sum_bits,
            ),
            config.rows * config.columns,
        ),
        "plain": (
            DotProductCell(
                config.weight_format,
                config.activation_format,
                lanes=config.lanes,
                planes=config.planes,
                sum_bits=config.sum_bits,
            ),
            config.rows * config.columns,
        ),
    }
    result = {}
    for name, (component, instances) in parts.items():
        figures = run_synthesis(emit_modules(component, "part"), "part")
        result[name] = {
            "lut": figures["lut"] + figures["lutram"] + figures["srl"],
            **{key: figures[key] for key in ("ff", "carry", "dsp", "depth")},
            "instances": instances,
        }
        result["yosys"] = figures["yosys"]
    masking = sum(result[name]["lut"] * result[name]["instances"] for name in ("mask", "compactor"))
    cells = result["cell"]["lut"] * result["cell"]["instances"]
    return {**result, "masking_lut": masking, "cells_lut": cells, "overhead": masking / cells}
