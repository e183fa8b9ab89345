"""The hardware/software contract: formats, configuration, packets, instructions, registers.

Standard library only: the host, the golden model and the gateware all read these files, so a layout exists once.
"""
