"""Sizes of components, checked."""

__all__ = ["require_positive"]


def require_positive(**sizes):
    """Raise :exc:`ValueError` for the first size, by name, that is no integer of at least 1."""
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, not {value!r}")
