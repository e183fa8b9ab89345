"""Boards by name: what the package ``sigbit_boards`` builds, loaded when it is asked for."""

from sigbit_hw.spec.errors import SigbitError

__all__ = ["BOARDS", "build", "read_reports"]

BOARDS = ("zcu102", "ulx3s")


def build(board, folder, config=None, clock_mhz=None, scripts_only=False, progress=None, **options):
    """Build an accelerator for a board.

    Parameters
    ----------
    board : str
        ``"zcu102"``: a Vivado project, and with Vivado on PATH ``sigbit.bit`` and ``sigbit.hwh`` for PYNQ. ``"ulx3s"``:
        ``ulx3s.bit``, with tools from PyPI.
    folder : path
        Where everything goes; created.
    config : AcceleratorConfig, optional
        By default the board's own.
    clock_mhz : float, optional
    scripts_only : bool
        Write and check, run no tool.
    progress : callable, optional
        Called with a line of text before each step.
    options
        ``jobs`` of the ``zcu102``, ``baud`` of the ``ulx3s``.

    Returns
    -------
    dict
        With ``scripts_only`` ``folder`` and ``files``; otherwise figures of the placed design
        (:func:`read_reports`) and ``bitstream``.

    Raises
    ------
    :exc:`SigbitError`
        If the board is not known, a tool is missing or fails, or the clock is missed.
    """
    if config is not None:
        options["config"] = config
    if board == "zcu102":
        from sigbit_boards.zcu102 import build_zcu102, write_zcu102

        if clock_mhz is not None:
            options["clock_mhz"] = clock_mhz
        return (write_zcu102 if scripts_only else build_zcu102)(folder, progress=progress, **options)
    if board == "ulx3s":
        from sigbit_boards.ulx3s import build_ulx3s

        if clock_mhz is not None:
            options["clock_hz"] = round(clock_mhz * 1e6)
        return build_ulx3s(folder, scripts_only=scripts_only, progress=progress, **options)
    raise SigbitError(f"Unknown board {board!r}; expected {' or '.join(BOARDS)}")


def read_reports(board, folder):
    """Figures of a placed design, in the units of the Yosys estimates (``lut``, ``ff``, ``bram``, ``dsp``, ...)."""
    if board == "zcu102":
        from sigbit_boards.zcu102 import read_zcu102_reports

        return read_zcu102_reports(folder)
    if board == "ulx3s":
        from sigbit_boards.ulx3s import read_ulx3s_report

        return read_ulx3s_report(folder)
    raise SigbitError(f"Unknown board {board!r}; expected {' or '.join(BOARDS)}")
