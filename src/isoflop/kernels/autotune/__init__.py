"""The fastest form of each layer, found by timing."""
