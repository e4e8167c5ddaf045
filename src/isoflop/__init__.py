"""Sparse Iso-FLOP transformations for any PyTorch model."""
