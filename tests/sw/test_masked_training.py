"""Term masks in training: the schedule of the budget, forward pass and gradient."""

import numpy as np
import pytest
from sigbit.masked_training import annealed_budget, straight_through
from sigbit_hw.spec.masks import MaskError, TermMask
from sigbit_sim.golden.sdp import masked_levels


def test_the_budget_falls_over_the_first_third():
    budgets = [annealed_budget(step, 30, 8, 6) for step in range(30)]
    assert budgets[0] == 16
    assert budgets[10:] == [6] * 20
    assert budgets == sorted(budgets, reverse=True)


@pytest.mark.parametrize(("step", "target", "message"), [(30, 6, "step must be 0 to 29"), (0, 17, "budget must be")])
def test_steps_and_budgets_that_do_not_exist_are_errors(step, target, message):
    with pytest.raises(MaskError, match=message):
        annealed_budget(step, 30, 8, target)


@pytest.mark.parametrize("signed", [False, True])
def test_forward_is_the_golden_mask_and_backward_the_identity_inside_the_range(signed):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    x = torch.tensor(rng.normal(0, 8, (2, 6, 3, 3)), requires_grad=True)
    unit, mask = 0.125, TermMask(4, 3)
    result = straight_through(x, unit, mask, signed)
    low, high = (-127, 127) if signed else (0, 255)
    levels = np.clip(np.floor(x.detach().numpy() / unit + 0.5), low, high).astype(int)
    np.testing.assert_array_equal(result.detach().numpy(), masked_levels(levels, mask) * unit)
    result.sum().backward()
    inside = (x.detach() >= low * unit) & (x.detach() <= high * unit)
    assert 0 < inside.double().mean() < 1
    np.testing.assert_array_equal(x.grad.numpy(), inside.numpy())
