"""Sparse training: patterns, allocations and schedules, and the sparsifier that applies them."""
