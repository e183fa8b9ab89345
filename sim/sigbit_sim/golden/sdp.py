"""Structured dynamic precision: selection of term parts, their tokens, and the array that multiplies them (SDP-1).

Values are 8-bit levels in sign and magnitude; a magnitude is two nibbles ``16 * H + L``. A mask keeps the ``budget``
most important non-zero nibbles of every group. Three forms of the selection are here, a sort (the definition), ranks
and a radix count, and a model of the array's registers beside the formula of its cycles. ``docs/sdp.md`` is the text
that they follow; all of it is our definition.
"""

from dataclasses import dataclass

import numpy as np
from sigbit_hw.spec.masks import Policy

from .numerics import NumericsError

__all__ = [
    "W1P_LEVELS",
    "Token",
    "keep_masked",
    "layer_cycles",
    "masked_levels",
    "record_bits",
    "run_tile",
    "select",
    "select_by_radix",
    "select_by_rank",
    "single_part",
    "tile_cycles",
    "tokens",
]

#: Levels of weights that keep one part each: a nibble, low or high.
W1P_LEVELS = tuple(sorted({sign * level for level in (*range(16), *range(16, 129, 16)) for sign in (1, -1)}))


def _nibbles(magnitudes):
    magnitudes = np.asarray(magnitudes)
    if magnitudes.size and (magnitudes.min() < 0 or magnitudes.max() > 255):
        raise NumericsError(f"Magnitudes must be 0 to 255, not {magnitudes.min()} to {magnitudes.max()}")
    magnitudes = magnitudes.astype(np.int16)
    return magnitudes, magnitudes >> 4, magnitudes & 15


def _keys(magnitudes, policy):
    """Keys of the high and of the low nibbles; 0 is no candidate."""
    m, high, low = _nibbles(magnitudes)
    if policy == Policy.NIB:
        keys = 16 + high, low
    elif policy == Policy.MAG:
        keys = 256 + m, low
    else:
        keys = 256 + m, np.where(high > 0, m, 256 + m)
    return np.where(high > 0, keys[0], 0), np.where(low > 0, keys[1], 0)


def select(magnitudes, budget, policy=Policy.NIB):
    """Which nibbles are kept: the first ``budget`` by key, equal keys by position.

    Parameters
    ----------
    magnitudes : int array, ``(..., group)``
        0 to 255.
    budget : int
        1 or more.
    policy : :class:`~sigbit_hw.spec.masks.Policy`

    Returns
    -------
    high, low : bool arrays, ``(..., group)``
    """
    keys = np.stack(_keys(magnitudes, policy), axis=-2)
    group = keys.shape[-1]
    # One number per nibble, all different: the key, then the position. A high and a low nibble never share a key.
    order = (keys << 5) | np.arange(31, 31 - 2 * group, -1, dtype=np.int16).reshape(2, group)
    flat = order.reshape(*order.shape[:-2], 2 * group)
    last = np.sort(flat, axis=-1)[..., max(2 * group - budget, 0), np.newaxis, np.newaxis]
    kept = (order >= last) & (keys > 0)
    return kept[..., 0, :], kept[..., 1, :]


def select_by_rank(magnitudes, budget, policy=Policy.NIB):
    """As :func:`select` by counting what comes before each nibble; policies NIB and MAG."""
    m, high, low = _nibbles(magnitudes)
    group = m.shape[-1]
    earlier = np.arange(group)[:, np.newaxis] > np.arange(group)  # [i, j]: j < i
    key = m if policy == Policy.MAG else high

    def ranks(values, valid):
        own, other = values[..., :, np.newaxis], values[..., np.newaxis, :]
        before = (other > own) | ((other == own) & earlier)
        return (before & valid[..., np.newaxis, :]).sum(axis=-1)

    has_high, has_low = high > 0, low > 0
    left = np.maximum(budget - has_high.sum(axis=-1, keepdims=True), 0)
    return has_high & (ranks(key, has_high) < budget), has_low & (ranks(low, has_low) < left)


def select_by_radix(magnitudes, budget, policy=Policy.NIB):
    """As :func:`select` by counting ones from the top bit plane down; policies NIB and MAG."""
    m, high, low = _nibbles(magnitudes)
    need = np.full((*m.shape[:-1], 1), budget)
    masks = []
    for values, valid, planes in ((m if policy == Policy.MAG else high, high > 0, 8), (low, low > 0, 4)):
        alive, keep = valid, np.zeros(m.shape, dtype=bool)
        for plane in reversed(range(planes)):
            ones = alive & (values >> plane & 1 == 1)
            count = ones.sum(axis=-1, keepdims=True)
            fits = count <= need
            keep |= ones & fits
            alive = np.where(fits, alive & ~ones, ones)
            need = np.where(fits, need - count, need)
        tied = alive & (np.cumsum(alive, axis=-1) <= need)
        need = need - tied.sum(axis=-1, keepdims=True)
        masks.append(keep | tied)
    return tuple(masks)


def keep_masked(levels, high, low):
    """What the kept nibbles of signed ``levels`` are worth: ``s * (16 * H * mH + L * mL)``."""
    levels = np.asarray(levels)
    _, upper, lower = _nibbles(np.abs(levels))
    return (np.sign(levels) * (16 * upper * high + lower * low)).astype(np.int64)


def masked_levels(levels, mask):
    """Levels ``(N, channels, ...)`` as a layer with ``mask`` multiplies them: groups of channels, the last one padded.

    Parameters
    ----------
    levels : int array
        -128 to 255.
    mask : :class:`~sigbit_hw.spec.masks.TermMask`
    """
    levels = np.asarray(levels, dtype=np.int64)
    if mask.exact:
        return levels
    channels = levels.shape[1]
    last = np.moveaxis(levels, 1, -1)
    padded = np.zeros((*last.shape[:-1], -(-channels // mask.group) * mask.group), dtype=np.int16)
    padded[..., :channels] = last
    grouped = padded.reshape(*last.shape[:-1], -1, mask.group)
    kept = keep_masked(grouped, *select(np.abs(grouped), mask.budget, mask.policy))
    return np.moveaxis(kept.reshape(padded.shape)[..., :channels], -1, 1)


@dataclass(frozen=True)
class Token:
    """One term part: ``nibble << 4 * high`` of the value at ``index``, negative or not."""

    index: int
    high: int
    nibble: int
    negative: int = 0


def tokens(levels, high, low, budget, lanes):
    """Beats of one group: ``ceil(budget / lanes)`` lists of ``lanes`` tokens, None where a lane is idle.

    Kept nibbles come by position, a value's high nibble before its low one.
    """
    found = []
    for index, level in enumerate(np.asarray(levels).tolist()):
        magnitude, negative = abs(level), int(level < 0)
        if high[index]:
            found.append(Token(index, 1, magnitude >> 4, negative))
        if low[index]:
            found.append(Token(index, 0, magnitude & 15, negative))
    beats = -(-budget // lanes)
    if len(found) > beats * lanes:
        raise NumericsError(f"{len(found)} tokens do not fit {beats} beats of {lanes} lanes")
    padded = found + [None] * (beats * lanes - len(found))
    return [padded[beat * lanes : (beat + 1) * lanes] for beat in range(beats)]


def run_tile(weights, levels, budget, lanes, policy=Policy.NIB):
    """A tile on the array, register by register.

    Parameters
    ----------
    weights : int array, ``(rows, group, columns)``
    levels : int array, ``(positions, rows, group)``
    budget, lanes : int
    policy : :class:`~sigbit_hw.spec.masks.Policy`

    Returns
    -------
    sums : int64 array, ``(positions, columns)``
    cycles : int
        From the first token that is presented to the last partial sum that is written.
    counters : dict
        ``beats`` issued, ``valid_tokens`` and ``idle_lanes``.
    """
    weights, levels = np.asarray(weights, dtype=np.int64), np.asarray(levels, dtype=np.int64)
    rows, _, columns = weights.shape
    positions = len(levels)
    masks = select(np.abs(levels), budget, policy)
    streams = [
        [
            (number == 0, number == -(-budget // lanes) - 1, beat)
            for x in range(positions)
            for number, beat in enumerate(tokens(levels[x, row], masks[0][x, row], masks[1][x, row], budget, lanes))
        ]
        for row in range(rows)
    ]
    idle: tuple = (False, False, [])
    beats = [[idle] * (columns + 1) for _ in range(rows)]  # what a cell takes in this cycle; the last is not used
    acc = np.zeros((rows, columns), dtype=np.int64)
    psum = np.zeros((rows, columns), dtype=np.int64)
    sums = np.zeros((positions, columns), dtype=np.int64)
    written = [0] * columns
    cycle = 0
    while min(written) < positions:
        for row in range(rows):
            at = cycle - row
            beats[row][0] = streams[row][at] if 0 <= at < len(streams[row]) else idle
        new_acc, new_psum = acc.copy(), psum.copy()
        for row in range(rows):
            for column in range(columns):
                first, last, lane_tokens = beats[row][column]
                if not lane_tokens:
                    continue
                total = 0 if first else acc[row, column]
                for token in filter(None, lane_tokens):
                    weight = weights[row, token.index, column]
                    total += (-weight if token.negative else weight) * token.nibble << 4 * token.high
                if last:
                    new_psum[row, column] = total + (psum[row - 1, column] if row else 0)
                    if row == rows - 1:
                        sums[written[column], column] = new_psum[row, column]
                        written[column] += 1
                else:
                    new_acc[row, column] = total
        acc, psum = new_acc, new_psum
        beats = [[idle, *line[:columns]] for line in beats]
        cycle += 1
    valid = sum(token is not None for stream in streams for _, _, beat in stream for token in beat)
    issued = sum(map(len, streams))
    return sums, cycle, {"beats": issued, "valid_tokens": valid, "idle_lanes": issued * lanes - valid}


def tile_cycles(positions, budget, lanes, rows, columns):
    """Cycles of :func:`run_tile`."""
    return positions * -(-budget // lanes) + rows - 1 + columns - 1


def layer_cycles(reduction, outputs, positions, budget, lanes, *, group, rows, columns, mask_cycles):
    """Cycles of a layer without its first load of weights, which otherwise hides behind the tile before.

    Parameters
    ----------
    reduction : int
        Products per output, channels padded to whole groups.
    outputs, positions : int
        Output channels and pixels.
    budget, lanes, group, rows, columns : int
    mask_cycles : int
        Latency of the masking unit.
    """
    tiles = -(-reduction // (rows * group)) * -(-outputs // columns)
    steady = max(positions * -(-budget // lanes), rows * group)
    return tiles * (steady + rows - 1 + columns - 1 + mask_cycles)


def record_bits(group, budget, signed):
    """Bits of a group stored as its mask, ``budget`` nibbles and signs."""
    return 2 * group + 4 * budget + group * bool(signed)


def single_part(weights):
    """Nearest level of :data:`W1P_LEVELS`, a tie to the larger one: weights of one part each."""
    levels = np.array(W1P_LEVELS)
    middle = (levels[1:] + levels[:-1]) / 2
    return levels[np.searchsorted(middle, np.asarray(weights), side="right")]
