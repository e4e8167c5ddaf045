"""Table 8: longer training of the original network."""

from isoflop.lab.reproduce.grid import TABLES, Grid, rows_of
from isoflop.lab.reproduce.paper import Labels
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.sources import Training
from isoflop.transforms import SparseWide


@TABLES.register("table8")
def table8(preset: Preset) -> Grid:
    """SET and RigL on the original ResNet-18 for `epochs / (1 - s)`, against Sparse Wide."""

    def source(labels: Labels) -> Training:
        sparsity, method = float(labels["sparsity"]), str(labels["method"])
        if labels["transform"] == "wide":
            return preset.train("cifar100", transform=SparseWide(sparsity), method=method)
        # As many times longer as the network is cheaper (appendix C.3.1).
        return preset.train(
            "cifar100", sparsity=sparsity, method=method, stretch=1 / (1 - sparsity)
        )

    return Grid(
        title="Table 8: sparse training of the original ResNet-18, longer at equal FLOPs, CIFAR-100",
        rows=rows_of("table8", source),
    )
