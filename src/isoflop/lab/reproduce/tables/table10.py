"""Table 10: structured alternatives."""

from isoflop.lab.reproduce.grid import TABLES, Grid, rows_of
from isoflop.lab.reproduce.paper import Labels
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.sources import Training
from isoflop.lab.reproduce.tables.table7 import NONLINEARITY
from isoflop.transforms import LowRank, SparseWide


@TABLES.register("table10")
def table10(preset: Preset) -> Grid:
    """Low rank, transposable N:M and unstructured sparsity at equal FLOPs, ResNet-18, CIFAR-100."""
    return Grid(
        title="Table 10: low rank, transposable N:M and unstructured sparsity, CIFAR-100",
        rows=rows_of("table10", lambda labels: structured(preset, labels)),
    )


def structured(preset: Preset, labels: Labels) -> Training:
    """Return the training of a row by its `structure` and its `sparsity`, or `width` and `branch`.

    N:M masks are trained as in the method that the paper takes them from (Hubara et al. 2021),
    straight through to weights off the mask: SR-STE.
    """
    structure = str(labels["structure"])
    if structure == "low rank":
        nonlinearity = NONLINEARITY[str(labels["branch"])]
        low_rank = LowRank(width=float(labels["width"]), nonlinearity=nonlinearity)
        # What is masked of the factors is what repairs the rounding of their rank.
        return preset.train("cifar100", transform=low_rank, method="static", storage="masked")
    wide = SparseWide(float(labels["sparsity"]))
    if structure == "unstructured":
        return preset.train("cifar100", transform=wide, method="rigl")
    return preset.train("cifar100", transform=wide, method="sr_ste", pattern=structure)
