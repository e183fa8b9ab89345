"""Diagrams, with matplotlib if it is installed."""

from contextlib import contextmanager

from sigbit_hw.spec.errors import SigbitError

__all__ = ["figure"]


@contextmanager
def figure(path):
    """Axes of a diagram that is written to ``path`` when the block ends.

    Raises
    ------
    :exc:`~sigbit_hw.spec.errors.SigbitError`
        If matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SigbitError("Pictures need matplotlib; run: pip install 'sigbit[plot]', or leave --picture out") from None
    drawing = Figure(figsize=(7, 4.5), layout="constrained")
    yield drawing.add_subplot()
    try:
        drawing.savefig(path, dpi=120, metadata={"Date": None} if str(path).endswith(".svg") else None)
    except (OSError, ValueError) as error:
        raise SigbitError(f"Cannot write the picture {path}: {error}") from error
