"""Term masks in a training loop of PyTorch (``docs/sdp.md``, section 5).

Our definition: the forward pass is the golden selection, the gradient is straight through inside the range of the
levels, with masks constant; there are no thresholds and no further loss.
"""

import numpy as np
from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.masks import MaskError, TermMask
from sigbit_sim.golden.sdp import masked_levels

__all__ = ["annealed_budget", "straight_through"]


def annealed_budget(step: int, steps: int, group: int, target: int) -> int:
    """Budget of a training step: from everything down to ``target`` over the first third of the steps, evenly.

    Raises
    ------
    :exc:`~sigbit_hw.spec.masks.MaskError`
        If a step is outside ``0 .. steps - 1``, or there is no such budget.
    """
    TermMask(group, target)
    if not 0 <= step < steps:
        raise MaskError(f"step must be 0 to {steps - 1}, not {step!r}")
    return max(target, 2 * group - (2 * group - target) * 3 * step // steps)


def straight_through(x, unit: float, mask: TermMask, signed: bool = False):
    """Activations as a masked layer multiplies them: nearest level of 8 bits, masked, times the unit.

    Parameters
    ----------
    x : torch.Tensor, ``(N, channels, ...)``
    unit : float
        Of the tensor's UINT(8) or INT(8) levels.
    mask : :class:`~sigbit_hw.spec.masks.TermMask`
    signed : bool
        INT(8) instead of UINT(8).

    Returns
    -------
    torch.Tensor
        With gradient 1 inside the range and 0 outside.

    Raises
    ------
    :exc:`~sigbit_hw.spec.errors.SigbitError`
        If PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise SigbitError("Training needs PyTorch, which is not installed; run: pip install torch") from None
    low, high = (-127, 127) if signed else (0, 255)
    levels = torch.clamp(torch.floor(x.detach().double() / unit + 0.5), low, high)
    kept = masked_levels(levels.cpu().numpy().astype(np.int64), mask)
    masked = torch.from_numpy(kept).to(device=x.device, dtype=x.dtype) * unit
    # The identity is applied to the original tensor, so that its gradient is not cut.
    inside = torch.clamp(x, low * unit, high * unit)
    return inside + (masked - inside).detach()
