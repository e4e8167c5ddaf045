"""Giving every pixel of images a class."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.lab.data.segmentation import SegmentationData, load_segmentation
from isoflop.lab.data.segmentation.cityscapes import IGNORED
from isoflop.lab.metrics import MEAN_IOU
from isoflop.lab.recipes.base import Recipe
from isoflop.lab.tasks.base import TASKS
from isoflop.model_specs import build_model


class Segmentation:
    """One class per pixel: cross-entropy, judged by the mean intersection over union."""

    metric = MEAN_IOU

    def build_model(self, recipe: Recipe) -> nn.Module:
        """Return the recipe's own dense network, freshly initialised."""
        channels = recipe.input_shape[0]
        return build_model(
            recipe.model, recipe.num_classes, in_channels=channels, base_width=recipe.base_width
        )

    def build_on(self, recipe: Recipe, classifier: nn.Module) -> nn.Module:
        """Return the recipe's network on the layers of a classifier, which are used themselves."""
        return build_model(
            recipe.model, recipe.num_classes, base_width=recipe.base_width, backbone=classifier
        )

    def example_inputs(self, recipe: Recipe) -> tuple[int, ...]:
        """Return the shape of a batch of one crop."""
        return (1, *recipe.input_shape)

    def load(
        self, recipe: Recipe, folder: str | Path | None, workers: int | None = None
    ) -> SegmentationData:
        """Open the data set."""
        return load_segmentation(recipe, None if folder is None else Path(folder), workers)

    def loss(self, recipe: Recipe, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of scores and labels, the mean over all pixels.

        Pixels that are ignored count as zero, so that every image has the same weight however a batch
        is cut.

        Args:
            recipe: The recipe.
            outputs: Scores `[batch, classes, height, width]`.
            targets: Class numbers, bytes `[batch, height, width]`.
        """
        losses = F.cross_entropy(
            outputs,
            targets.long(),
            reduction="none",
            ignore_index=IGNORED,
            label_smoothing=recipe.label_smoothing,
        )
        return losses.mean()


TASKS.add("segmentation", Segmentation())
