"""Packet parser, instruction queue, sequencer."""
