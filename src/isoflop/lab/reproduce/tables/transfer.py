"""What tables 5, 11 and 12 have in common: Sparse Wide backbones on other tasks."""

from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.sources import Missing, Source
from isoflop.lab.reproduce.tables.table4 import imagenet
from isoflop.transforms import SparseWide

HEADLINES = {"coco": "ap", "cityscapes": "miou"}
"""The measure that heads the results of each task."""


def transferred(preset: Preset, task: str, measure: str, sparsity: float) -> Source:
    """Return the training of a backbone from ImageNet on another task (appendix C.3.4).

    The backbone brings its masks along, and they stay as they are. Where a stand-in trains a
    classifier in place of the whole, there is one number only, for the measure that heads the task.

    Args:
        preset: The setting.
        task: Name of the recipe, `coco` or `cityscapes`.
        measure: Key of the result.
        sparsity: That of the Sparse Wide backbone; 0 for the dense one.
    """
    headline = measure == HEADLINES[task]
    if not preset.transfers(task):
        if not headline:
            return Missing(reason=f"the stand-in has no {measure}")
        if sparsity == 0:
            return preset.train(task, method="dense")
        return preset.train(task, transform=SparseWide(sparsity), method="rigl")
    labels: dict[str, str | float] = {"model": "resnet18", "transform": "wide"}
    if sparsity:
        labels["sparsity"] = sparsity
    return preset.train(task, measure=measure, backbone=imagenet(preset, labels))
