"""Instructions of the sequencer: 64 bytes each, one table per opcode, all starting with the opcode.

The reader walks a nest of five counted loops, level 0 outermost. Every level has a count, an address step in feature
words and a step of the input coordinates ``(y, x)``; a coordinate outside the map reads as the padding code in every
lane.
COMPUTE nests (block, ky, kx, y, x) and calls levels 3 and 4 a *tile* (one set of stationary weights); POOL nests
(block, y, x, ky, kx) and calls levels 3 and 4 a *window*.
"""

from enum import IntEnum

from .layout import BitTable

__all__ = [
    "CODEBOOK_DISTANCE_BITS",
    "CODEBOOK_LEVELS",
    "CODEBOOK_LEVEL_BITS",
    "INSTRUCTIONS",
    "INSTRUCTION_BITS",
    "LEVEL",
    "LEVEL_CODES",
    "LOOP_LEVELS",
    "MIN_TILE_CYCLES",
    "PARAMETER",
    "Encoding",
    "Opcode",
]

INSTRUCTION_BITS = 512
LOOP_LEVELS = 5

#: A tile takes at least this many cycles, so that a sum is stored before it is read again.
MIN_TILE_CYCLES = 6


#: Levels of a codebook that POST can write or add, bits of the smallest one (signed), and of the others' distances
#: from it. No level is above ``2**CODEBOOK_DISTANCE_BITS - 1``.
CODEBOOK_LEVELS = 16
CODEBOOK_LEVEL_BITS = 9
CODEBOOK_DISTANCE_BITS = 9


class Opcode(IntEnum):
    """What an instruction does."""

    COMPUTE = 1  #: one part pass over all tiles of a reduction, into the current bank of accumulators
    POST = 2  #: requantize the current bank into feature memory, then switch banks
    POOL = 3  #: maximum over windows, feature memory to feature memory
    OUTPUT = 4  #: send a range of feature memory as one packet


class Encoding(IntEnum):
    """What POST writes."""

    NATIVE = 0  #: one native activation code
    UINT = 1  #: digits of a level of UINT(bits)
    INT = 2  #: digits of a level of INT(bits) in excess 2**(bits-1)
    RAW = 3  #: accumulator plus bias, 32 bits, cut into fields of the native code width


_READER = (
    ("opcode", 4),
    ("wait_post", 1),  # start only when the post-processor is idle and its results are stored
    ("base", 20),  # feature address of loop position 0 at coordinate (y0, x0)
    ("y0", 13, True),  # input row of loop position 0, negative inside the top padding
    ("x0", 13, True),
    ("height", 13),  # input rows and columns, bounds of the padding test
    ("width", 13),
    *((f"count{i}", 16) for i in range(LOOP_LEVELS)),
    *((f"step{i}", 20) for i in range(LOOP_LEVELS)),
    *((f"ystep{i}", 8) for i in range(LOOP_LEVELS)),
    *((f"xstep{i}", 8) for i in range(LOOP_LEVELS)),
    ("plane_step", 20),  # feature address of plane p is that of plane 0 plus p * plane_step
    ("plane_ystep", 13),  # and its input row is lower by p * plane_ystep
    ("pad_code", 8),  # native code read outside the map
)


def _codebook(prefix):
    """The smallest level, and the distance of every other one from it, not decreasing."""
    return (
        (f"{prefix}level0", CODEBOOK_LEVEL_BITS, True),
        *((f"{prefix}distance{i}", CODEBOOK_DISTANCE_BITS) for i in range(1, CODEBOOK_LEVELS)),
    )


INSTRUCTIONS = {
    Opcode.COMPUTE: BitTable(
        "COMPUTE",
        INSTRUCTION_BITS,
        *_READER,
        ("weight_base", 20),  # first weight word; tiles follow each other
        ("keep", 1),  # all tiles of a block (level 0) use the same weights, which are stored once
        ("weight_words", 12),  # words loaded per tile, `weight_columns` columns each, column 0 first
        ("clear", 1),  # the first tile overwrites the accumulators
        ("shift", 1),  # the first tile shifts them left by part_shift_bits
        ("level_base", 16),  # table cells: first word of the level table of this part
        ("budget", 6),  # masked cells: nibbles kept per group, 1 to 2 * lanes; others ignore it
        ("magnitude_keys", 1),  # masked cells: policy MAG instead of NIB (:mod:`.masks`)
    ),
    Opcode.POST: BitTable(
        "POST",
        INSTRUCTION_BITS,
        ("opcode", 4),
        ("base", 20),  # feature address of output pixel (0, 0) of plane 0, part 0
        ("rows", 13),  # output rows per plane in the strip
        ("pixels", 13),  # output columns in the strip
        ("row_step", 20),  # feature words from one output row to the next
        ("block_step", 20),  # from one channel block to the next
        ("part_step", 20),  # from one part to the next
        ("plane_step", 20),  # from one plane to the next
        ("valid_rows", 13),  # rows of all planes together; later rows are computed but not stored
        ("first_group", 8),  # position of the first group of post_lanes channels in its feature word
        ("groups", 11),  # groups of post_lanes channels to store
        ("parts", 5),  # native codes per value
        ("parameter_base", 16),  # parameter word of the first group
        ("encoding", 2),
        ("bits", 4),  # of UINT and INT: 2 to 8
        ("relu", 1),  # a negative result becomes 0 (signed native formats; unsigned ones do it anyway)
        ("residual_base", 20),  # feature address of a tensor of the output's shape that is added, as `base`
        ("residual_parts", 4),  # native codes per value of that tensor; 0: nothing is added
        ("residual_encoding", 2),  # of that tensor; not RAW
        ("residual_bits", 4),  # as `bits`
        ("codebook", 1),  # UINT and INT: results are projected to the levels below first
        ("thresholds", 1),  # the parameters' thresholds decide between them, not multiplier and shift
        *_codebook(""),  # of results
        *_codebook("residual_"),  # of that tensor if it is NATIVE; table cells only
    ),
    Opcode.POOL: BitTable(
        "POOL",
        INSTRUCTION_BITS,
        *_READER,
        ("output_base", 20),  # feature address of the first result
        ("output_step", 20),  # from one result to the next, modulo the memory
        ("all_planes", 1),  # every plane pools; else plane 0 alone
        ("output_plane_step", 20),  # plane p stores its results p * output_plane_step further on
    ),
    Opcode.OUTPUT: BitTable(
        "OUTPUT",
        INSTRUCTION_BITS,
        ("opcode", 4),
        ("wait_post", 1),
        ("base", 20),
        ("words", 20),
        ("tag", 16),  # returned in the header's destination
    ),
}

#: One parameter entry per output channel (numerics 6.1).
PARAMETER = BitTable(
    "PARAMETER",
    96,
    ("bias", 32, True),
    ("multiplier", 16),
    ("shift", 6),
    ("residual_multiplier", 24),
    ("negative_multiplier", 16),  # instead of `multiplier` where the sum of accumulator and bias is negative
)

#: Entries of a level table, one per code of weights or activations.
LEVEL_CODES = 16

#: One entry of a level table: what a weight code counts, and the next activation code in the order of their levels.
LEVEL = BitTable(
    "LEVEL",
    32,
    ("weight", 9, True),  # level of the weight code that is this entry's position
    ("code", 4),  # activation code
    ("step", 8),  # how much its level is above that of the entry before; in the first entry above 0
)
