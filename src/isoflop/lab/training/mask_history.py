"""What the masks of a run have done: how far they moved, and how much they explored."""

from collections.abc import Mapping

import torch
from torch import Tensor

# One byte per weight remembers three masks.
_INITIAL, _PRESENT, _EVER = 1, 2, 4


class MaskHistory:
    """Follows masks from one change to the next.

    The share of positions that were ever active is what Liu et al. call in-time
    over-parameterisation (https://arxiv.org/abs/2102.02887).

    Args:
        masks: The first masks, by parameter name.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        everything = _INITIAL | _PRESENT | _EVER
        self._flags = {name: mask.to(torch.uint8) * everything for name, mask in masks.items()}

    @torch.no_grad()
    def record(self, masks: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
        """Take note of the present masks.

        Returns:
            By parameter name: `numel`, the number of weights; `nnz`, that of active ones, and
            `initial_nnz` at first; `from_initial`, the Hamming distance to the first masks;
            `grown` and `dropped` since the last call; `explored`, how many positions were ever
            active.
        """
        counts = []
        for name, mask in masks.items():
            flags = self._flags[name]
            initial, previous = (flags & _INITIAL).bool(), (flags & _PRESENT).bool()
            ever = (flags & _EVER).bool() | mask
            flags.copy_(_INITIAL * initial.byte() + _PRESENT * mask.byte() + _EVER * ever.byte())
            changes = (mask ^ initial, mask & ~previous, previous & ~mask)
            counts += [part.sum() for part in (mask, initial, *changes, ever)]
        # Read together, so that the device is waited for once.
        numbers = iter(torch.stack(counts).tolist() if counts else [])
        nouns = ("nnz", "initial_nnz", "from_initial", "grown", "dropped", "explored")
        return {
            name: {"numel": mask.numel(), **{noun: next(numbers) for noun in nouns}}
            for name, mask in masks.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the masks that are remembered, three to a byte; see `unpack`."""
        return {name: flags.clone() for name, flags in self._flags.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        for name, flags in self._flags.items():
            flags.copy_(state[name])


def unpack(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the masks in a state: by parameter name `initial`, `present` and `ever`."""
    bits = {"initial": _INITIAL, "present": _PRESENT, "ever": _EVER}
    return {
        name: {noun: (flags & bit).bool() for noun, bit in bits.items()}
        for name, flags in state.items()
    }


def shares(layers: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Return what the counts of `MaskHistory.record` mean, over all of the given layers.

    Returns:
        `density`, the part of the weights that is active, and `explored`, the part that ever was;
        `from_initial` and `churn`, the Hamming distances to the first and to the previous masks,
        divided by the active weights of both: 0 for equal masks, 1 if they share nothing.
    """

    def total(noun: str) -> int:
        return sum(layer[noun] for layer in layers.values())

    nnz, changed = total("nnz"), total("grown") + total("dropped")
    previous = nnz - total("grown") + total("dropped")
    return {
        "density": total("nnz") / max(1, total("numel")),
        "explored": total("explored") / max(1, total("numel")),
        "from_initial": total("from_initial") / max(1, nnz + total("initial_nnz")),
        "churn": changed / max(1, nnz + previous),
    }
