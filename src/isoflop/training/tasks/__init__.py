"""Tasks: what models are trained for, with their data, losses and measures."""

from isoflop.training.tasks.base import TASKS, Task, TaskData, TransferTask
from isoflop.training.tasks.classification import Classification

__all__ = ["TASKS", "Classification", "Task", "TaskData", "TransferTask"]
