"""One number at a time: decode, multiply, requantize, encode."""
