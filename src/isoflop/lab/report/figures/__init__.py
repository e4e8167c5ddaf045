"""The figures: each a function from groups of runs to what is drawn, registered by name."""

from isoflop.lab.report.figures.accuracy_flops import accuracy_against_flops
from isoflop.lab.report.figures.accuracy_sparsity import accuracy_against_sparsity
from isoflop.lab.report.figures.curves import training_curves
from isoflop.lab.report.figures.degrees import degree_distributions
from isoflop.lab.report.figures.layers import costs_by_layer
from isoflop.lab.report.figures.mask_changes import mask_changes
from isoflop.lab.report.figures.mask_images import mask_images
from isoflop.lab.report.figures.measures import measures_against_accuracy, measures_over_training
from isoflop.lab.report.figures.pareto import pareto_of_measures
from isoflop.lab.report.figures.registry import FIGURES

__all__ = [
    "FIGURES",
    "accuracy_against_flops",
    "accuracy_against_sparsity",
    "costs_by_layer",
    "degree_distributions",
    "mask_changes",
    "mask_images",
    "measures_against_accuracy",
    "measures_over_training",
    "pareto_of_measures",
    "training_curves",
]
