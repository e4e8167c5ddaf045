"""Tasks: what models are trained for, with their data, losses and measures."""

from isoflop.training.tasks.base import TASKS, Task, TaskData, TransferTask
from isoflop.training.tasks.classification import Classification
from isoflop.training.tasks.detection import Detection
from isoflop.training.tasks.language import Language
from isoflop.training.tasks.segmentation import Segmentation

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
