"""Switching activity of a simulated workload as a SAIF file that fits a placed design."""

import re
from pathlib import Path

from .rtl import RtlError

__all__ = ["place_activity"]


def place_activity(source, target, instances, clock_mhz):
    """Rewrite what :meth:`~.rtl.RtlModel.record_activity` wrote for another place in a hierarchy and a real clock.

    Parameters
    ----------
    source, target : path
        Files; ``source`` has two units of time per clock cycle and the accelerator as instance ``sigbit``.
    instances : sequence of str
        Instances from the top of the design down to the accelerator, instead of ``sigbit``.
    clock_mhz : float
        Of the design; times become picoseconds.

    Raises
    ------
    :exc:`~.rtl.RtlError`
        If the file is not one of Verilator's SAIF files of an accelerator.
    """
    text = Path(source).read_text()
    match = re.search(r"^ \(INSTANCE TOP$.*?^  \(INSTANCE sigbit$", text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise RtlError(f"{source} is not an activity file of an accelerator: it has no instance sigbit below TOP")
    opened = "".join(f" (INSTANCE {name}\n" for name in instances)
    # TOP and sigbit were open here; their ends are at the end of the file.
    tail = text[match.end() + 1 :].rstrip()
    text = text[: match.start()] + opened + tail + ")" * (len(instances) - 2) + "\n"
    half_period_ps = 1e6 / clock_mhz / 2

    def scaled(found):
        return f"({found[1]} {round(int(found[2]) * half_period_ps)})"

    Path(target).write_text(re.sub(r"\((T0|T1|TZ|TX|TB|DURATION) (\d+)\)", scaled, text))
