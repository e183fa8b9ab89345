"""Boards that sigbit accelerators are built for; each imports the emitter and the contract, never the host."""
