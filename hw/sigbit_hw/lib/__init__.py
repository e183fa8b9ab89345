"""Stream and arithmetic parts that know nothing of neural networks."""
