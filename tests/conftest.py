"""What the tests share: one thread, fixed seeds, small tasks as tensors."""

import numpy as np
import pytest
import torch
from hypothesis import settings

from sk_meta.learner import Query, Support
from sk_meta.tasks.stacking import TaskGroup

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
