"""Layers joined into one operation: norms folded, activations fused."""
