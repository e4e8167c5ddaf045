"""Random numbers that models draw while they are looked at, without moving those of the user."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn


@contextlib.contextmanager
def kept_random_state(model: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Give the random numbers of PyTorch, NumPy and Python the state back that they have now.

    Args:
        model: What runs; its devices have random numbers of their own.
        seed: What to begin with; by default with the state as it is.
    """
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    # Of the models, not ours: we draw from generators.
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=list(devices)):
            if seed is not None:
                torch.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
