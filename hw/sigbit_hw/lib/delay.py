"""Delay lines for what travels beside a pipeline."""

from amaranth import *

__all__ = ["delayed"]


def delayed(m, value, cycles, name="delayed", clear=False):
    """The value that ``value`` had ``cycles`` cycles ago; 0 until then.

    Parameters
    ----------
    m : :class:`Module`
        Where the registers go.
    value : value-like
        Its shape is kept.
    cycles : int
        0 gives ``value`` itself.
    name : str
        Prefix of the registers' names.
    clear : bool
        Whether reset empties the line. Without it the line has no reset and fits shift-register LUTs.

    Raises
    ------
    :exc:`ValueError`
        If ``cycles`` is not an integer of at least 0.
    """
    if not isinstance(cycles, int) or cycles < 0:
        raise ValueError(f"A delay must be a number of cycles of 0 or more, not {cycles!r}")
    for cycle in range(cycles):
        later = Signal.like(value, name=f"{name}_{cycle + 1}", init=None, reset_less=not clear)
        m.d.sync += later.eq(value)
        value = later
    return value
