"""Figure 7: speed-up of a matrix product."""

from isoflop.lab.reproduce.grid import TABLES, Grid, Row
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.sources import Timing

SPARSITIES = (0.5, 0.75, 0.9, 0.95)

_PAPER = "matmul --fixed-size --inputs 12288 --outputs 12288"
_SMALLER = {
    "smoke": "matmul --fixed-size --inputs 64 --outputs 64 --batch 16 --repeats 1 --peers none",
}


@TABLES.register("figure7")
def figure7(preset: Preset) -> Grid:
    """Speed-up of a 12k × 12k matrix product by skipping its zeros; the paper prints no numbers."""
    smaller = _SMALLER.get(preset.name)
    arguments = (*(smaller or _PAPER).split(), "--skip", "dense_compiled")
    rows = [
        Row(
            labels={"system": "isoflop", "sparsity": sparsity},
            source=Timing(
                arguments=arguments,
                sparsities=SPARSITIES,
                sparsity=sparsity,
                contestant="isoflop",
                quantity="speed-up",
                deviation=f"{smaller} in place of {_PAPER}" if smaller else "",
            ),
        )
        for sparsity in SPARSITIES
    ]
    return Grid(
        title="Figure 7: speed-up of a matrix product by skipping its zeros",
        unit="times",
        figure="speed-ups",
        seeds=1,
        rows=tuple(rows),
    )
