"""Simulation of sigbit accelerators: the golden model, RTL simulation and synthesis estimates."""
