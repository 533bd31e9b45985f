"""What the tests share: one thread, fixed seeds, small tasks as tensors."""

import numpy as np
import pytest
import torch
from hypothesis import settings

from sk_meta.learner import Query, Support
from sk_meta.tasks import Task
from sk_meta.tasks.stacking import TaskDataset, TaskGroup
from sk_meta.tasks.validation import Schema

settings.register_profile("sk_meta", deadline=None, derandomize=True)
settings.load_profile("sk_meta")


def pytest_configure(config):
    """Small tensors: more threads only cost time."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed_torch():
    """The same initial weights whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def make_group(
    n_tasks=2,
    n_support=6,
    n_query=4,
    n_features=16,
    n_classes=0,
    n_targets=1,
    weighted=False,
    seed=0,
):
    """Random tasks of one size, in float64; regression where `n_classes` is 0."""
    generator = torch.Generator().manual_seed(seed)

    def rows(n):
        X = torch.randn(n_tasks, n, n_features, generator=generator).double()
        if n_classes:
            y = (torch.arange(n) % n_classes).repeat(n_tasks, 1)
        else:
            y = torch.randn(n_tasks, n, n_targets, generator=generator).double()
        weight = 0.5 + torch.rand(n_tasks, n, generator=generator).double()
        return X, y, weight if weighted else None

    support = Support(*rows(n_support), n_classes)
    return TaskGroup(np.arange(n_tasks), support, Query(*rows(n_query)))


@pytest.fixture(name="make_group")
def make_group_fixture():
    """The function itself; tests call it with sizes."""
    return make_group


def make_dataset(tasks, classification=True, support_size=2, seed=0, scored=True):
    """The tasks as a TaskDataset on the CPU."""
    schema = Schema.from_tasks(tasks, classification)
    return TaskDataset(tasks, schema, support_size, seed, "cpu", scored)


@pytest.fixture(name="make_dataset")
def make_dataset_fixture():
    """The function itself; tests call it with tasks."""
    return make_dataset


def make_ragged_tasks(classification=True, n_features=4, seed=0):
    """Ten tasks of 3 to 20 rows, in groups of one to three; three classes.

    Some have weights; in the smallest the support set lacks a class.
    """
    sizes = ((2, 1), (9, 8), (12, 8), (4, 3))
    rng = np.random.default_rng(seed)
    tasks = []
    for i in range(10):
        n_support, n_query = sizes[i % 4]
        n = n_support + n_query
        X = rng.normal(size=(n, n_features))
        y = np.arange(n) % 3 if classification else rng.normal(size=n)
        weight = rng.uniform(0.5, 2.0, n) if i % 4 == 1 or i == 8 else None
        mask = np.arange(n) < n_support
        tasks.append(Task(X, y, support=mask, sample_weight=weight, name=f"task {i}"))
    return tasks


@pytest.fixture(name="make_ragged_tasks")
def make_ragged_tasks_fixture():
    """The function itself."""
    return make_ragged_tasks
