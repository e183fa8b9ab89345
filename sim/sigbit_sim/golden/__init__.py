"""The golden model: what an integer network computes, in NumPy, independent of the gateware.

Imports :mod:`sigbit_hw.spec` only; never Amaranth, never the host package.
"""
