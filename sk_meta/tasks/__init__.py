"""What is learned from: tasks, episodes, generators."""

from sk_meta.tasks.disk import DiskTable
from sk_meta.tasks.generators import (
    make_blob_tasks,
    make_gaussian_process_tasks,
    make_linear_tasks,
    make_sinusoids,
)
from sk_meta.tasks.grouping import tasks_from_file, tasks_from_groups
from sk_meta.tasks.sampling import EpisodeSampler, split_classes
from sk_meta.tasks.task import Task

__all__ = [
    "DiskTable",
    "EpisodeSampler",
    "Task",
    "make_blob_tasks",
    "make_gaussian_process_tasks",
    "make_linear_tasks",
    "make_sinusoids",
    "split_classes",
    "tasks_from_file",
    "tasks_from_groups",
]
