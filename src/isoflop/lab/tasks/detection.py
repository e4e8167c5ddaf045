"""Finding objects in images."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from isoflop.lab.data.detection import DetectionData, load_detection
from isoflop.lab.data.detection.coco import canvas_of
from isoflop.lab.data.detection.rules import loss
from isoflop.lab.metrics import AVERAGE_PRECISION
from isoflop.lab.recipes.base import Recipe
from isoflop.lab.tasks.base import TASKS
from isoflop.model_specs import build_model


class Detection:
    """Boxes and labels of objects: RetinaNet's losses, judged by COCO's average precision."""

    metric = AVERAGE_PRECISION

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
        """Return the shape of a batch of one image, of the largest size that there is."""
        channels, shorter, longer = recipe.input_shape
        return (1, channels, *canvas_of([(shorter, longer)]))

    def load(
        self, recipe: Recipe, folder: str | Path | None, workers: int | None = None
    ) -> DetectionData:
        """Open the data set."""
        return load_detection(recipe, None if folder is None else Path(folder), workers)

    def loss(self, recipe: Recipe, outputs: Any, targets: list[dict[str, Any]]) -> Tensor:
        """Return focal loss and box loss together, the mean over the images."""
        return loss(recipe.model, outputs, targets)


TASKS.add("detection", Detection())
