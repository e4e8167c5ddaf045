"""Density and MACs of each layer."""

from collections.abc import Sequence

from isoflop.errors import FigureError
from isoflop.lab.report.figure import Bars, Figure, Panel
from isoflop.lab.report.figures.registry import FIGURES
from isoflop.lab.report.runs import Group


@FIGURES.register("layers")
def costs_by_layer(groups: Sequence[Group]) -> list[Figure]:
    """Density and MACs of every layer, beside the MACs without masks."""
    figures = []
    for group in groups:
        plan = group.runs[0].plan
        if plan is not None:
            names = [layer.parameter.removesuffix(".weight") for layer in plan.layers]
            density = [layer.density for layer in plan.layers]
            macs = [float(layer.macs) for layer in plan.layers]
            unmasked = [float(layer.unmasked_macs) for layer in plan.layers]
            figures.append(
                Figure(
                    name=f"layers-{group.index}",
                    title=f"Layers: {group.label}",
                    caption="In the order in which the data reaches them, at the latest epoch. "
                    f"Seed {group.runs[0].config['seed']}.",
                    panels=[
                        Panel(
                            y_label="Density",
                            y_range=(0.0, 1.0),
                            marks=[Bars(label="density", group=2, names=names, heights=density)],
                        ),
                        Panel(
                            y_label="MACs per sample",
                            marks=[
                                Bars(label="MACs", group=0, names=names, heights=macs),
                                Bars(
                                    label="MACs without masks",
                                    group=6,
                                    names=names,
                                    heights=unmasked,
                                ),
                            ],
                        ),
                    ],
                    ratio=0.35,
                )
            )
    if not figures:
        raise FigureError("No run has a plan, which is written after the first epoch.")
    return figures
