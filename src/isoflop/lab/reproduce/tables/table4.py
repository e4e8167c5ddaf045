"""Table 4: ImageNet."""

from isoflop.lab.reproduce.grid import TABLES, Grid, rows_of
from isoflop.lab.reproduce.paper import Labels
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.sources import Training
from isoflop.lab.training import build_transform


@TABLES.register("table4")
def table4(preset: Preset) -> Grid:
    """Sparse Wide and Sparse Parallel with RigL on ImageNet: ResNet-18, ResNet-34, BotNet-50."""
    return Grid(
        title="Table 4: Sparse Wide and Sparse Parallel with RigL on ImageNet",
        rows=rows_of("table4", lambda labels: imagenet(preset, labels)),
        figure="accuracy-flops",
    )


def imagenet(preset: Preset, labels: Labels) -> Training:
    """Return the training of a model on ImageNet by its `model`, `transform` and `sparsity`."""
    model = f"isoflop:{labels['model']}"
    if "sparsity" not in labels:
        return preset.train("imagenet", model=model, method="dense")
    transform = build_transform(str(labels["transform"]), sparsity=labels["sparsity"])
    return preset.train("imagenet", model=model, transform=transform, method="rigl")
