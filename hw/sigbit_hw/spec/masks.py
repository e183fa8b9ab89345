"""Term masks: how many nibbles of a group of 8-bit activations a layer multiplies, and which (SDP-1, numerics)."""

from dataclasses import dataclass
from enum import IntEnum

from .errors import SigbitError

__all__ = ["GROUPS", "TOKEN_LANES", "MaskError", "Policy", "TermMask"]

#: Legal groups: consecutive entries of the reduction axis that share a budget.
GROUPS = (4, 8, 16)
#: Legal numbers of term parts that a cell takes per cycle.
TOKEN_LANES = (1, 2, 4)


class MaskError(SigbitError):
    """A term mask that does not exist."""


class Policy(IntEnum):
    """How the nibbles of a group are ordered by importance; high ones come before low ones, but for TERM."""

    NIB = 0  #: by the nibble itself
    MAG = 1  #: high nibbles by the whole magnitude: least squared error
    TERM = 2  #: leading nibbles of all values by magnitude, then the others; not in hardware


@dataclass(frozen=True)
class TermMask:
    """The ``budget`` most important non-zero nibbles of every ``group`` of channels are multiplied, the others are not.

    Parameters
    ----------
    group : int
        4, 8 or 16.
    budget : int
        1 to ``2 * group``, which keeps everything. The average precision is ``4 * budget / group`` bits.
    policy : :class:`Policy`

    Raises
    ------
    :exc:`MaskError`
        If one of them is none of these.
    """

    group: int
    budget: int
    policy: Policy = Policy.NIB

    def __post_init__(self):
        if self.group not in GROUPS:
            raise MaskError(f"group must be {', '.join(map(str, GROUPS))}, not {self.group!r}")
        if not isinstance(self.budget, int) or isinstance(self.budget, bool) or not 1 <= self.budget <= 2 * self.group:
            raise MaskError(f"budget must be 1 to {2 * self.group} for groups of {self.group}, not {self.budget!r}")
        if not isinstance(self.policy, Policy):
            raise MaskError(f"policy must be a Policy, not {self.policy!r}")

    @property
    def exact(self):
        """Whether nothing can be left out."""
        return self.budget == 2 * self.group

    @property
    def average_bits(self):
        """Bits per activation that the time of the layer pays for."""
        return 4 * self.budget / self.group

    def __str__(self):
        return f"sdp:{self.group},{self.budget},{self.policy.name.lower()}"

    @classmethod
    def parse(cls, text):
        """Inverse of ``str``; the policy may be left out.

        Raises
        ------
        :exc:`MaskError`
            If the text is no mask.
        """
        kind, _, rest = str(text).strip().lower().partition(":")
        fields = rest.split(",")
        policies = {policy.name.lower(): policy for policy in Policy}
        try:
            if kind != "sdp" or len(fields) not in (2, 3):
                raise ValueError
            group, budget = int(fields[0]), int(fields[1])
            policy = policies[fields[2].strip()] if len(fields) == 3 else Policy.NIB
        except (ValueError, KeyError):
            raise MaskError(
                f"{text!r} is not a term mask; expected sdp:GROUP,BUDGET[,POLICY] such as sdp:8,6 with a policy of "
                f"{', '.join(policies)}"
            ) from None
        return cls(group, budget, policy)
