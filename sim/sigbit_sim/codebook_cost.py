"""Size of the lanes of the engines for codebooks, measured with Yosys as everything of :mod:`.synthesis`."""

from sigbit_hw.array.codebook import ENGINES, AddLane, Combiner, DecodeLane
from sigbit_hw.lib.shared import emit_modules
from sigbit_hw.spec.codebooks import digit_plan, engine_cycles, magnitudes

from .synthesis import run_synthesis

__all__ = ["lane_costs"]


def lane_costs(codebook, level_bits, activation_bits=8, reduction=512):
    """Cells of one lane of every engine, sized for codebooks like this one.

    In a lane are the selection by index and the accumulators. Outside are the tables, which are inputs, and what all
    lanes share: the multiplier that combines bins, and the shift of activations to their plane.

    Parameters
    ----------
    codebook : tuple of int
        Its length, number of magnitudes and used planes size the lanes, but its levels are not in them.
    level_bits, activation_bits, reduction : int
        ``B``, bits of unsigned activations, and products of the longest sum.

    Returns
    -------
    list of dict
        ``engine``, ``levels``, ``bits``, ``magnitudes``, ``planes``, ``lut``, ``ff``, ``carry``, ``cycles`` (of one sum
        of ``reduction`` products), ``shared_lut`` (of the combining multiplier with its sum).

    Raises
    ------
    :exc:`~.synthesis.SynthesisError`
        If the tool is missing or fails.
    """
    activations = reduction * ((1 << activation_bits) - 1)
    bin_bits = 1 + activations.bit_length()
    total_bits = 1 + (activations * max(abs(level) for level in codebook)).bit_length()
    count = len(codebook)
    bins, planes = magnitudes(codebook), digit_plan(codebook).planes
    lanes = {
        "decode": DecodeLane(count, level_bits, activation_bits, total_bits),
        "bins": AddLane(len(bins), count, activation_bits, bin_bits),
        "levels": AddLane(1, count, activation_bits, bin_bits),
        "digits": AddLane(1, count, activation_bits + planes[0], total_bits),
    }
    combiner = run_synthesis(emit_modules(Combiner(level_bits - 1, bin_bits, total_bits), "combiner"), "combiner")
    cycles = engine_cycles(codebook, reduction)
    rows = []
    for engine in ENGINES:
        cost = run_synthesis(emit_modules(lanes[engine], f"lane_{engine}"), f"lane_{engine}")
        rows.append(
            {
                "engine": engine,
                "levels": count,
                "bits": level_bits,
                "magnitudes": len(bins),
                "planes": len(planes),
                **{key: cost[key] for key in ("lut", "ff", "carry", "dsp")},
                "cycles": cycles[ENGINES.index(engine)],
                "shared_lut": combiner["lut"] if engine in ("bins", "levels") else 0,
                "yosys": cost["yosys"],
            }
        )
    return rows
