"""Tasks: what models are trained for, with their data, losses and measures."""

from isoflop.lab.tasks.base import TASKS, Task, TaskData, TransferTask
from isoflop.lab.tasks.classification import Classification
from isoflop.lab.tasks.detection import Detection
from isoflop.lab.tasks.language import Language
from isoflop.lab.tasks.segmentation import Segmentation

__all__ = [
    "TASKS",
    "Classification",
    "Detection",
    "Language",
    "Segmentation",
    "Task",
    "TaskData",
    "TransferTask",
]
