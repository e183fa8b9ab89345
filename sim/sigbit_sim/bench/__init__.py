"""cocotb benches of the emitted Verilog."""
