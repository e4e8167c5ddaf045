"""Figure 5: time relative to the dense model."""

from isoflop.lab.report.figures.paper_times import PAPER_TIMES
from isoflop.lab.reproduce.grid import TABLES, Grid, Row
from isoflop.lab.reproduce.paper import Labels
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.sources import Missing, Source, Timing

SPARSITIES = (0.5, 0.75, 0.9)

_PAPER = {
    "inference": "inference --model torchvision:resnet18 --batch 64 --image 224",
    "training": "training --model isoflop:gpt3_20b --batch 256 --sequence 256 --scope layers",
}
_SMALLER = {
    "cpu": {"training": "training --model isoflop:gpt3_small_blocks --batch 8 --scope layers"},
    "smoke": {
        "inference": "inference --model isoflop:resnet8_digits --batch 4 --repeats 1 --peers none "
        "--skip dense_compiled",
        "training": "training --model isoflop:resnet8_digits --batch 4 --repeats 1 --peers none "
        "--skip dense_compiled",
    },
}
"""By preset what is timed in place of the paper's work."""


@TABLES.register("figure5")
def figure5(preset: Preset) -> Grid:
    """Time of inference and of training, relative to the dense model of equal FLOPs."""

    def source(labels: Labels) -> Source:
        workload, system = str(labels["workload"]), str(labels["system"])
        if system == "cs2":
            return Missing(reason="a Cerebras CS-2, which is not measured here")
        smaller = _SMALLER.get(preset.name, {}).get(workload)
        command = smaller or _PAPER[workload]
        return Timing(
            arguments=tuple(command.split()),
            sparsities=SPARSITIES,
            sparsity=float(labels["sparsity"]),
            contestant=system,
            quantity="relative time",
            deviation=f"{smaller} in place of {_PAPER[workload]}" if smaller else "",
        )

    rows = []
    for workload, systems in PAPER_TIMES.items():
        for system, times in {**systems, "isoflop": dict.fromkeys(SPARSITIES)}.items():
            for sparsity, paper in times.items():
                labels = {"workload": workload, "system": system, "sparsity": sparsity}
                rows.append(Row(labels=labels, source=source(labels), paper=paper))
    return Grid(
        title="Figure 5: time relative to the dense model of equal FLOPs",
        unit="time ÷ dense",
        figure="relative-times",
        seeds=1,
        rows=tuple(rows),
    )
