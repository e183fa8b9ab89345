"""ZCU102 with a Zynq UltraScale+ ZU9EG: a Vivado project, for a PYNQ overlay."""

from .build import build_zcu102, check_zcu102, read_zcu102_reports, write_zcu102

__all__ = ["build_zcu102", "check_zcu102", "read_zcu102_reports", "write_zcu102"]
