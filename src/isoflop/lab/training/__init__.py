"""Training: the loop, and the run directory that it writes."""

from isoflop.lab.training.configs import build_method, build_transform
from isoflop.lab.training.load_run import load_run
from isoflop.lab.training.loop import train
from isoflop.lab.training.restore import Restored, restore
from isoflop.lab.training.run_directory import RunDirectory

__all__ = [
    "Restored",
    "RunDirectory",
    "build_method",
    "build_transform",
    "load_run",
    "restore",
    "train",
]
