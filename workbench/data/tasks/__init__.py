"""Tasks: pairs of prompts that differ in what decides the answer, made for a model's vocabulary."""

from workbench.data.tasks.making import make_pairs
from workbench.data.tasks.reading import read_task, task_names
from workbench.data.tasks.records import Pair, Task, TaskUnavailable

__all__ = ["Pair", "Task", "TaskUnavailable", "make_pairs", "read_task", "task_names"]
