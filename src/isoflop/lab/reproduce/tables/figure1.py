"""Figure 1: accuracy against training FLOPs."""

from isoflop.lab.reproduce.grid import TABLES, Grid, Row
from isoflop.lab.reproduce.paper import paper_rows
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.tables.table4 import imagenet


@TABLES.register("figure1")
def figure1(preset: Preset) -> Grid:
    """Accuracy against training FLOPs of ResNet-18 and ResNet-34, dense and Sparse Wide, ImageNet."""
    chosen = (
        row
        for row in paper_rows("table4")
        if row.labels["model"] != "botnet50" and row.labels["transform"] != "parallel"
    )
    return Grid(
        title="Figure 1: accuracy against training FLOPs on ImageNet",
        figure="accuracy-flops",
        rows=tuple(
            Row(
                labels=row.labels,
                source=imagenet(preset, row.labels),
                paper=row.value,
                paper_std=row.std,
            )
            for row in chosen
        ),
    )
