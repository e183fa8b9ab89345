"""Boards by name: what the package ``sigbit_boards`` builds, loaded when it is asked for."""

import tempfile
from pathlib import Path

from sigbit_hw.spec.config import PRESETS
from sigbit_hw.spec.errors import SigbitError
from sigbit_sim.golden import network as golden

from .compiler import compile
from .demo import digits_network
from .device import RtlDevice
from .session import Session

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
        ``jobs`` and ``activity`` of the ``zcu102``, ``baud`` of the ``ulx3s``. ``activity``: images of the digits that
        the accelerator computes in simulation first, for the power report; a large one takes long.

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
        from sigbit_boards.zcu102 import find_vivado, run_vivado, write_zcu102

        if not scripts_only:
            find_vivado()
        if clock_mhz is not None:
            options["clock_mhz"] = clock_mhz
        images = options.pop("activity", None)
        result = write_zcu102(folder, progress=progress, **options)
        if images:
            _record_activity(folder, config or PRESETS["zcu102"], images, result["clock_mhz"], progress)
            result["files"].append("activity.saif")
        return result if scripts_only else run_vivado(folder, progress)
    if board == "ulx3s":
        from sigbit_boards.ulx3s import build_ulx3s

        if clock_mhz is not None:
            options["clock_hz"] = round(clock_mhz * 1e6)
        return build_ulx3s(folder, scripts_only=scripts_only, progress=progress, **options)
    raise SigbitError(f"Unknown board {board!r}; expected {' or '.join(BOARDS)}")


def _record_activity(folder, config, images, clock_mhz, progress):
    """Run digits on the simulated accelerator and write what every signal did."""
    from sigbit_boards.zcu102 import INSTANCES
    from sigbit_sim.activity import place_activity

    network, test, _ = digits_network(images, config)
    program = compile(network, config)
    device = RtlDevice(config, progress=progress, activity=True)
    with tempfile.TemporaryDirectory() as temporary:
        raw = Path(temporary, "activity.saif")
        with Session(device, program) as session:
            # What is measured is work, not the weights on their way in.
            device.model.record_activity(raw)
            outputs = session.run(program.input_levels(test))
            device.model.finish_activity()
        if not (outputs == golden.run(network, program.input_levels(test))).all():
            raise SigbitError("The simulation differs from the golden model, so its activity is worth nothing")
        place_activity(raw, Path(folder) / "activity.saif", INSTANCES, clock_mhz)


def read_reports(board, folder):
    """Figures of a placed design, in the units of the Yosys estimates (``lut``, ``ff``, ``bram``, ``dsp``, ...)."""
    if board == "zcu102":
        from sigbit_boards.zcu102 import read_zcu102_reports

        return read_zcu102_reports(folder)
    if board == "ulx3s":
        from sigbit_boards.ulx3s import read_ulx3s_report

        return read_ulx3s_report(folder)
    raise SigbitError(f"Unknown board {board!r}; expected {' or '.join(BOARDS)}")
