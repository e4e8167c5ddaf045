"""Table 12: segmentation."""

from isoflop.lab.reproduce.grid import TABLES, Grid, rows_of
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.tables.transfer import transferred


@TABLES.register("table12")
def table12(preset: Preset) -> Grid:
    """All measures of DeepLabV3+ on Cityscapes with Sparse Wide ResNet-18 from ImageNet."""
    return Grid(
        title="Table 12: DeepLabV3+ on Cityscapes with Sparse Wide ResNet-18 from ImageNet",
        unit="%",
        seeds=1,
        rows=rows_of(
            "table12",
            lambda labels: transferred(
                preset, "cityscapes", str(labels["measure"]), float(labels["sparsity"])
            ),
        ),
    )
