"""Table 7: non-linearities inside the layers."""

from isoflop.lab.reproduce.grid import TABLES, Grid, rows_of
from isoflop.lab.reproduce.paper import Labels
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.sources import Training
from isoflop.lab.training import build_transform


@TABLES.register("table7")
def table7(preset: Preset) -> Grid:
    """Sparse Factorized, Parallel and Doped without and with a non-linearity, CIFAR-100, RigL."""

    def source(labels: Labels) -> Training:
        transform = build_transform(
            str(labels["transform"]),
            sparsity=labels["sparsity"],
            nonlinearity=NONLINEARITY[str(labels["branch"])],
        )
        return preset.train("cifar100", transform=transform, method="rigl")

    return Grid(
        title="Table 7: without and with a non-linearity, ResNet-18, CIFAR-100, RigL",
        rows=rows_of("table7", source),
    )


NONLINEARITY = {"linear": "none", "nonlinear": "auto"}
"""Option of the transforms by what the paper calls the branch."""
