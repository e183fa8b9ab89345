"""Feature, weight and parameter memories with their address generators."""
