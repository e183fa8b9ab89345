"""What quantization looks like to PyTorch's gradients: levels forward, straight through backward.

Everything works on *levels*, tensors of whole numbers; the real value is level times unit. Sums of products of levels
are whole numbers, too, which float32 holds exactly up to 2**24, so a forward pass computes what the hardware does.

The straight-through estimator (Bengio et al., 2013) and which of its gradients are zero are those of
``docs/numerics.md``.
"""

from functools import cache

import torch
from sigbit_hw.spec.formats import Format
from torch import Tensor

__all__ = [
    "POLICIES",
    "activation_levels",
    "channel_statistics",
    "keep_parts",
    "nearest_integer",
    "project",
    "straight_through",
]

#: How term parts are ranked.
POLICIES = ("nib", "mag", "term")


class _StraightThrough(torch.autograd.Function):
    """The second argument forward; the gradient goes to the first as it is.

    The usual ``x + (y - x).detach()`` rounds the difference, so it would not give whole numbers back.
    """

    @staticmethod
    def forward(ctx, values, found):
        return found.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def straight_through(values: Tensor, found: Tensor) -> Tensor:
    """``found``, exactly, with the gradient of ``values``."""
    return _StraightThrough.apply(values, found.detach())


@torch.no_grad()
def project(values: Tensor, format: Format) -> Tensor:
    """Nearest level, a tie going to the larger one (numerics 4); both ends saturate."""
    levels = format.levels
    if levels[-1] - levels[0] == len(levels) - 1:
        return torch.floor(values + 0.5).clamp_(levels[0], levels[-1])
    # All decision points are whole numbers of half units: a table of these is faster than a search.
    lowest, highest = format.midpoints[0] - 1, format.midpoints[-1]
    halves = torch.floor(values * 2).clamp_(lowest, highest).sub_(lowest).int()
    # In the order of the memory: a selection from one axis is much faster than an index of several.
    found = _table(format, values.dtype, values.device).index_select(0, halves.as_strided((halves.numel(),), (1,)))
    return found.as_strided(halves.shape, halves.stride())


@cache
def _table(format: Format, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Level by the number of half units above the lowest decision point."""
    sums = format.midpoints
    ranks = [sum(half >= each for each in sums) for half in range(sums[0] - 1, sums[-1] + 1)]
    return torch.tensor([format.levels[rank] for rank in ranks], dtype=dtype, device=device)


class _ActivationLevels(torch.autograd.Function):
    """Projection; one pass over the values and one mask are all that it keeps."""

    @staticmethod
    def forward(ctx, values, format):
        ctx.save_for_backward((values >= format.levels[0]) & (values <= format.levels[-1]))
        return project(values, format)

    @staticmethod
    def backward(ctx, gradient):
        (inside,) = ctx.saved_tensors
        return gradient * inside, None


def activation_levels(values: Tensor, format: Format) -> Tensor:
    """Levels of values in units; the gradient is 1 from the lowest to the largest level and 0 beyond."""
    return _ActivationLevels.apply(values, format)


class _ChannelStatistics(torch.autograd.Function):
    """Mean and variance in one pass forward and one backward; autograd's own take several."""

    @staticmethod
    def forward(ctx, values):
        mean, variance = torch.batch_norm_update_stats(values, None, None, 0.0)
        ctx.save_for_backward(values, mean)
        return mean, variance

    @staticmethod
    def backward(ctx, to_mean, to_variance):
        values, mean = ctx.saved_tensors
        count = values.numel() // values.shape[1]
        slope = 2 / count * to_variance
        offset = to_mean / count - slope * mean
        return torch.addcmul(offset.reshape(-1, 1, 1), slope.reshape(-1, 1, 1), values)


def channel_statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (of the batch, not of what it was drawn from) of each channel of ``(n, channels, h, w)``."""
    return _ChannelStatistics.apply(values)


def nearest_integer(values: Tensor) -> Tensor:
    """Nearest integer, ties up; the gradient is 1."""
    return straight_through(values, torch.floor(values + 0.5))


def keep_parts(levels: Tensor, group: int, budget: int, policy: str = "nib") -> Tensor:
    """Structured dynamic precision: 8-bit levels of which each group keeps its most important term parts.

    A part is the high or the low nibble of a magnitude; a group is ``group`` consecutive channels of one pixel. The
    masks are constants to the gradient, which is 1.

    Parameters
    ----------
    levels : tensor, ``(n, channels, ...)``
        Whole numbers from -128 to 255.
    budget : int
        Parts that a group keeps; ``2 * group`` changes nothing.
    policy : str
        ``"nib"`` (by nibble), ``"mag"`` (by magnitude, the least squared error) or ``"term"`` (leading parts first).
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be {', '.join(POLICIES)}, not {policy!r}")
    if not 1 <= budget <= 2 * group:
        raise ValueError(f"budget must be 1 to {2 * group} for groups of {group}, not {budget!r}")
    if budget == 2 * group:
        return levels
    count, channels, *rest = levels.shape
    signed = levels.detach()
    filled = torch.cat((signed, signed.new_zeros((count, -channels % group, *rest))), 1)
    # Bytes, a group's positions first: passes over whole tensors, no sort.
    grouped = filled.abs().to(torch.uint8).reshape(count, -1, group, *rest).movedim(2, 0).contiguous()
    high, low = grouped & 0xF0, grouped & 0x0F
    if policy == "term":
        leading, trailing = torch.where(high > 0, high, low), (high > 0) & (low > 0)
        first = _first(grouped, grouped > 0, budget)
        left = (budget - (grouped > 0).sum(0, dtype=torch.int16)).clamp_(min=0)
        kept = leading * first + low * _first(grouped * trailing, trailing, left)
    else:
        first = _first(grouped if policy == "mag" else high, high > 0, budget)
        left = (budget - (high > 0).sum(0, dtype=torch.int16)).clamp_(min=0)
        kept = high * first + low * _first(low, low > 0, left)
    masked = kept.movedim(0, 2).reshape(filled.shape)[:, :channels].to(levels.dtype) * signed.sign()
    return straight_through(levels, masked)


def _first(keys: Tensor, valid: Tensor, budget: Tensor | int) -> Tensor:
    """Which valid keys are among the ``budget`` largest along the first axis, equal ones by position.

    Invalid keys must be smaller than the valid ones. Every key counts those before it: a comparison of two positions
    serves both, and gives a tie to the earlier one.
    """
    size = len(keys)
    rank = torch.zeros_like(keys)
    rank += torch.arange(size - 1, -1, -1, dtype=torch.uint8, device=keys.device).view(-1, *[1] * (keys.dim() - 1))
    for distance in range(1, size):
        wins = (keys[:-distance] >= keys[distance:]).view(torch.uint8)
        rank[distance:] += wins
        rank[:-distance] -= wins
    return valid & (rank < budget)
