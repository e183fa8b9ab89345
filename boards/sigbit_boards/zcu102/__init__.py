"""ZCU102 with a Zynq UltraScale+ ZU9EG: a Vivado project, for a PYNQ overlay."""

from .build import (
    CLOCK_MHZ,
    INSTANCES,
    check_zcu102,
    find_vivado,
    read_zcu102_reports,
    run_vivado,
    write_zcu102,
)

__all__ = [
    "CLOCK_MHZ",
    "INSTANCES",
    "check_zcu102",
    "find_vivado",
    "read_zcu102_reports",
    "run_vivado",
    "write_zcu102",
]
