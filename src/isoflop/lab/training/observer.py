"""Watches the masks of a run, and their spectra, and writes down what it sees."""

import dataclasses
import time
from typing import Any

from torch import Tensor, nn

from isoflop import spectral
from isoflop.kernels import SparseLayer, densify
from isoflop.lab.training.interval import Interval
from isoflop.lab.training.mask_history import MaskHistory
from isoflop.lab.training.tracking import Tracker
from isoflop.sparsity.sparsifier import Sparsifier
from isoflop.sparsity.weights.sharding import full_tensor


class Observer:
    """Records every change of the masks, and the spectra at every interval.

    Args:
        model: The model.
        sparsifier: What masks it.
        spectra: How often the spectra are measured; None for never.
        steps_per_epoch: Optimizer steps of an epoch.

    Attributes:
        spectra_seconds: Time that the spectra took.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsifier: Sparsifier,
        spectra: Interval | None,
        steps_per_epoch: int,
    ) -> None:
        self.spectra_seconds = 0.0
        self._model = model
        self._sparsifier = sparsifier
        self._spectra = spectra
        self._steps_per_epoch = steps_per_epoch
        self._history = MaskHistory(self._masks())
        self._updates = len(sparsifier.history)

    def start(self, tracker: Tracker | None) -> None:
        """Record the state before the first step. All processes call this; one has the tracker."""
        if self._sparsifier.masks:
            self._record_masks(tracker, 0, 0)
        if self._spectra is not None:
            self._measure(tracker, 0)

    def after_step(self, tracker: Tracker | None, step: int, training_flops: int) -> None:
        """Record what has changed in optimizer step `step`, the first being 1.

        Raises:
            WorkersError: The masks have changed, and not on all processes alike.
        """
        updates = len(self._sparsifier.history)
        # Masks that follow every step have no history; an epoch is often enough for them.
        follows = self._sparsifier.method.keeps_dense_weights
        if updates > self._updates or (follows and step % self._steps_per_epoch == 0):
            self._sparsifier.check_workers()
            self._record_masks(tracker, step, training_flops)
        self._updates = updates
        if self._spectra is not None and self._spectra.due(step, self._steps_per_epoch):
            self._measure(tracker, step)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"masks": self._history.state_dict(), "spectra_seconds": self.spectra_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned, once the sparsifier has loaded its own."""
        self._history.load_state_dict(state["masks"])
        self._updates = len(self._sparsifier.history)
        self.spectra_seconds = state["spectra_seconds"]

    def _masks(self) -> dict[str, Tensor]:
        return {name: full_tensor(mask) for name, mask in self._sparsifier.masks.items()}

    def _record_masks(self, tracker: Tracker | None, step: int, training_flops: int) -> None:
        masks = self._masks()  # which all processes gather, if they are sharded
        if tracker is not None:
            layers = self._history.record(masks)
            tracker.log_masks({"step": step, "training_flops": training_flops, "layers": layers})

    def _measure(self, tracker: Tracker | None, step: int) -> None:
        if tracker is None:
            return
        start = time.perf_counter()
        line = measure(self._model)
        seconds = time.perf_counter() - start
        self.spectra_seconds += seconds
        tracker.log_spectra({"step": step, "seconds": seconds, **line})


def measure(model: nn.Module, bound: spectral.Bound = "mean-degree") -> dict[str, Any]:
    """Return the spectra of a model as plain data: `bound`, `network` and, by name, `layers`."""
    if any(isinstance(module, SparseLayer) for module in model.modules()):
        model = densify(model)
    layers = spectral.analyze(model, bound=bound)
    return {
        "bound": bound,
        "network": spectral.average(layers),
        "layers": {name: dataclasses.asdict(spectrum) for name, spectrum in layers.items()},
    }
