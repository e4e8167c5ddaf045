"""Table 9: efficient networks."""

from isoflop.lab.reproduce.grid import TABLES, Grid, Row, rows_of
from isoflop.lab.reproduce.paper import Labels
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.sources import Training
from isoflop.lab.training import build_transform

RECIPES = {
    "mobilenetv2": "cifar100-mobilenet-v2",
    "mobilevit_s": "cifar100-mobilevit-s",
    "botnet50": "cifar100-botnet50",
}


@TABLES.register("table9")
def table9(preset: Preset) -> Grid:
    """MobileNetV2, MobileViT-S and BotNet-50 on CIFAR-100, RigL.

    The paper prints the same numbers for Sparse Wide and Sparse Parallel. They stand with Sparse
    Wide here, and Sparse Parallel has none.
    """

    def source(labels: Labels) -> Training:
        recipe = RECIPES[str(labels["model"])]
        if "sparsity" not in labels:
            return preset.train(recipe, method="dense")
        transform = build_transform(str(labels["transform"]), sparsity=labels["sparsity"])
        return preset.train(recipe, transform=transform, method="rigl")

    rows = rows_of("table9", source)
    parallel: list[Row] = []
    for row in rows:
        if row.labels["transform"] == "wide":
            labels = {**row.labels, "transform": "parallel"}
            parallel.append(Row(labels=labels, source=source(labels)))
    return Grid(
        title="Table 9: MobileNetV2, MobileViT-S and BotNet-50 on CIFAR-100, RigL",
        rows=(*rows, *parallel),
        figure="accuracy-flops",
    )
