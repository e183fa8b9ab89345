"""ULX3S with an ECP5 LFE5U-85F: an open flow from PyPI to the bitstream, a serial port to the host."""

from .build import CONFIG, build_ulx3s, read_ulx3s_report

__all__ = ["CONFIG", "build_ulx3s", "read_ulx3s_report"]
