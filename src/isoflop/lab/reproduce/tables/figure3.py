"""Figure 3: accuracy against sparsity."""

from isoflop.lab.reproduce.grid import TABLES, Grid, Row
from isoflop.lab.reproduce.paper import Labels, PaperRow, paper_row, paper_rows
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.sources import Training
from isoflop.lab.reproduce.tables.table10 import structured
from isoflop.lab.training import build_transform

SPARSITIES = (0.5, 0.75, 0.9)
FAMILIES = ("wide", "parallel", "factorized", "doped")


@TABLES.register("figure3")
def figure3(preset: Preset) -> Grid:
    """Accuracy against sparsity: families, structured against unstructured, sparse against dense.

    The numbers are those of tables 2, 7 and 10. The enlarged networks trained dense, the upper
    bound, have none.
    """
    dense = paper_row("table2", method="dense")
    rows = [_row({"transform": "none", "method": "dense"}, preset.train("cifar100"), dense)]
    for family in FAMILIES:
        for sparsity in SPARSITIES:
            labels = {"transform": family, "method": "rigl", "sparsity": sparsity}
            rows.append(_row(labels, family_training(preset, labels), number(family, sparsity)))
    for row in paper_rows("table10"):
        if row.labels["structure"] != "unstructured":
            rows.append(_row(row.labels, structured(preset, row.labels), row))
    for family in ("wide", "parallel"):
        for sparsity in SPARSITIES:
            labels = {"transform": family, "method": "dense", "sparsity": sparsity}
            rows.append(_row(labels, family_training(preset, labels), None))
    return Grid(title="Figure 3: accuracy against sparsity, ResNet-18, CIFAR-100", rows=tuple(rows))


def family_training(preset: Preset, labels: Labels, *, spectra: str | None = None) -> Training:
    """Return the training of a member of the family by `transform`, `method` and `sparsity`."""
    transform = build_transform(str(labels["transform"]), sparsity=labels["sparsity"])
    method = str(labels["method"])
    return preset.train("cifar100", transform=transform, method=method, spectra=spectra)


def number(family: str, sparsity: float) -> PaperRow:
    """Return the paper's number of a member of the family with RigL, ResNet-18 and CIFAR-100."""
    if family == "wide":
        return paper_row("table2", method="rigl", sparsity=sparsity)
    return paper_row("table7", transform=family, branch="nonlinear", sparsity=sparsity)


def _row(labels: Labels, training: Training, paper: PaperRow | None) -> Row:
    if paper is None:
        return Row(labels=labels, source=training)
    return Row(labels=labels, source=training, paper=paper.value, paper_std=paper.std)
