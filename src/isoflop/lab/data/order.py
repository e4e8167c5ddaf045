"""Random order that depends on nothing but the seed and the number of the epoch."""

import numpy as np
import torch


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the CPU generator of an epoch's order, so that every device sees the same samples.

    Args:
        seed: Seed of the run.
        epoch: Number of the epoch.
    """
    entropy = np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(entropy[0]) << 32 | int(entropy[1]))
