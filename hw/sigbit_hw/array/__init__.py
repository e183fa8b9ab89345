"""Many numbers at a time: dot-product cell, grid, accumulators."""
