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

__all__ = ["POLICIES", "activation_levels", "keep_parts", "nearest_integer", "project", "straight_through"]

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
    halves = torch.floor(values * 2).clamp_(lowest, highest).sub_(lowest).long()
    return _table(format, values.dtype, values.device)[halves]


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
    filler = levels.new_zeros((count, -channels % group, *rest))
    grouped = torch.cat((levels.detach(), filler), 1).reshape(count, -1, group, *rest)
    magnitude = grouped.abs()
    high = torch.floor(magnitude / 16)
    low = magnitude - 16 * high
    if policy == "nib":
        keys = [16 + high, low]
    elif policy == "mag":
        keys = [256 + magnitude, low]
    else:
        keys = [256 + magnitude, torch.where(high > 0, magnitude, 256 + magnitude)]
    nothing = torch.zeros_like(low)
    keys = [torch.where(part > 0, key, nothing) for key, part in zip(keys, (high, low), strict=True)]
    order = torch.cat(keys, 2).sort(dim=2, descending=True, stable=True).indices
    kept = torch.zeros_like(order, dtype=torch.bool).scatter_(2, order[:, :, :budget], True)
    parts = torch.cat((16 * high, low), 2) * kept
    masked = grouped.sign() * (parts[:, :, :group] + parts[:, :, group:])
    return straight_through(levels, masked.reshape(count, -1, *rest)[:, :channels])
