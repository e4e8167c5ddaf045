"""Tasks: what models are trained for, with their data, losses and measures."""

from isoflop.training.tasks.base import TASKS, Task, TaskData
from isoflop.training.tasks.classification import Classification
from isoflop.training.tasks.language import Language

__all__ = ["TASKS", "Classification", "Language", "Task", "TaskData"]
