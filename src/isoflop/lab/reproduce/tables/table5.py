"""Table 5: transfer to detection and segmentation."""

from isoflop.lab.reproduce.grid import TABLES, Grid, rows_of
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.tables.transfer import transferred


@TABLES.register("table5")
def table5(preset: Preset) -> Grid:
    """Sparse Wide ResNet-18 from ImageNet on COCO detection and Cityscapes segmentation."""
    return Grid(
        title="Table 5: Sparse Wide ResNet-18 from ImageNet on COCO and Cityscapes",
        unit="%",
        seeds=1,
        rows=rows_of(
            "table5",
            lambda labels: transferred(
                preset, str(labels["task"]), str(labels["measure"]), float(labels["sparsity"])
            ),
        ),
    )
