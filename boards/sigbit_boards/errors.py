"""What can go wrong while a board is built."""

from sigbit_hw.spec.errors import SigbitError

__all__ = ["BuildError", "TimingError"]


class BuildError(SigbitError):
    """A tool is missing or failed, or a generated file is not what it must be."""


class TimingError(BuildError):
    """The design was placed and routed, but is too slow for its clock. Reports were written."""
