"""Table 11: detection."""

from isoflop.lab.reproduce.grid import TABLES, Grid, rows_of
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.tables.transfer import transferred


@TABLES.register("table11")
def table11(preset: Preset) -> Grid:
    """All measures of RetinaNet on COCO with Sparse Wide ResNet-18 from ImageNet."""
    return Grid(
        title="Table 11: RetinaNet on COCO with Sparse Wide ResNet-18 from ImageNet",
        unit="%",
        seeds=1,
        rows=rows_of(
            "table11",
            lambda labels: transferred(
                preset, "coco", str(labels["measure"]), float(labels["sparsity"])
            ),
        ),
    )
