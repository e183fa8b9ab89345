"""Diagrams, with matplotlib if it is installed."""

from contextlib import contextmanager
from importlib.util import find_spec

from sigbit_hw.spec.errors import SigbitError

__all__ = ["check_pictures", "figure"]


def check_pictures(path):
    """Complain before the work is done if there could be no picture; no ``path`` is none to be made.

    Raises
    ------
    :exc:`~sigbit_hw.spec.errors.SigbitError`
        If matplotlib is not installed.
    """
    if path is not None and find_spec("matplotlib") is None:
        raise SigbitError("Pictures need matplotlib; run: pip install 'sigbit[plot]', or leave --picture out")


@contextmanager
def figure(path):
    """Axes of a diagram that is written to ``path`` when the block ends.

    Raises
    ------
    :exc:`~sigbit_hw.spec.errors.SigbitError`
        If matplotlib is not installed, or the file cannot be written.
    """
    check_pictures(path)
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7, 4.5), layout="constrained")
    yield drawing.add_subplot()
    try:
        drawing.savefig(path, dpi=120, metadata={"Date": None} if str(path).endswith(".svg") else None)
    except (OSError, ValueError) as error:
        raise SigbitError(f"Cannot write the picture {path}: {error}") from error
