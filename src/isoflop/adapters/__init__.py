"""Callbacks that let trainers of other libraries save and resume a sparsifier.

Training itself needs no adapter: the sparsifier hooks the optimizer. Accelerate needs none at all:
``accelerator.register_for_checkpointing(sparsifier)``.
"""
