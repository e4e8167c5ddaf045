"""Classifying images."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.lab.data.datasets import ImageData, load_dataset
from isoflop.lab.data.images import ImageFolderData
from isoflop.lab.metrics import ACCURACY
from isoflop.lab.recipes.base import Recipe
from isoflop.lab.tasks.base import TASKS
from isoflop.model_specs import build_model


class Classification:
    """One label per image: cross-entropy, judged by accuracy."""

    metric = ACCURACY

    def build_model(self, recipe: Recipe) -> nn.Module:
        """Return the recipe's own dense model, freshly initialised."""
        return build_model(
            recipe.model,
            recipe.num_classes,
            # None leaves the default, which models of libraries may not let one choose.
            in_channels=None if recipe.input_shape[0] == 3 else recipe.input_shape[0],
            base_width=recipe.base_width,
        )

    def example_inputs(self, recipe: Recipe) -> tuple[int, ...]:
        """Return the shape of a batch of one image."""
        return (1, *recipe.input_shape)

    def load(
        self, recipe: Recipe, folder: str | Path | None, workers: int | None = None
    ) -> ImageData | ImageFolderData:
        """Load the data set."""
        return load_dataset(recipe.dataset, folder).configured(recipe, workers)

    def loss(self, recipe: Recipe, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of scores `[batch, classes]` and labels `[batch]`."""
        return F.cross_entropy(outputs, targets, label_smoothing=recipe.label_smoothing)


TASKS.add("classification", Classification())
