"""Table 2: methods of sparse training."""

from isoflop.lab.reproduce.grid import TABLES, Grid, rows_of
from isoflop.lab.reproduce.paper import Labels
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.sources import Training
from isoflop.transforms import SparseWide

_GRANET = {"initial_density": 0.75}
"""At 50 %, where GraNet's own 0.5 would leave nothing to prune; the paper says nothing of it."""


@TABLES.register("table2")
def table2(preset: Preset) -> Grid:
    """Methods of sparse training on Sparse Wide ResNet-18, CIFAR-100."""

    def source(labels: Labels) -> Training:
        if "sparsity" not in labels:
            return preset.train("cifar100", method="dense")
        sparsity, method = float(labels["sparsity"]), str(labels["method"])
        options = _GRANET if (method, sparsity) == ("granet", 0.5) else {}
        wide = SparseWide(sparsity)
        return preset.train("cifar100", transform=wide, method=method, options=options)

    return Grid(
        title="Table 2: methods of sparse training on Sparse Wide ResNet-18, CIFAR-100",
        rows=rows_of("table2", source),
    )
