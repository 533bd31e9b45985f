"""Small fitted learners, tasks, and a meta-learner without a network."""

import matplotlib as mpl
import numpy as np
import pytest
from sklearn.base import BaseEstimator

mpl.use("Agg")
import matplotlib.pyplot as plt

from sk_meta import ALPaCARegressor, MAMLClassifier, MAMLRegressor, Task, TaskNet
from sk_meta.few_shot import FewShotRegressor
from sk_meta.over_tasks import RegressesTasks
from sk_meta.predictions import TaskPrediction
from sk_meta.tasks import make_blob_tasks, make_sinusoids
from sk_meta.tasks.validation import Schema, check_tasks


class WithoutNet(RegressesTasks, BaseEstimator):
    """Ridge regression on the support set: a meta-learner that has learned nothing."""

    evaluation_seed = 0

    def fit(self, tasks, y=None):
        self.schema_ = Schema.from_tasks(check_tasks(tasks), False)
        self.n_features_in_ = self.schema_.shape[0]
        return self

    def predict_tasks(self, tasks):
        return [self._predict(task) for task in check_tasks(tasks)]

    def _predict(self, task):
        state, _ = self.adapt_state(task.X_support, task.y_support)
        rows = np.flatnonzero(task.support), np.flatnonzero(~task.support)
        return TaskPrediction(task, *rows, None, *self.apply_state(state, task.X_query))

    def adapt_state(self, X, y, sample_weight=None, metadata=None):
        return (FewShotRegressor().fit(X, y, sample_weight),), None

    def portable_state(self, state):
        return state

    def apply_state(self, state, X, n_classes=0):
        return state[0].predict(np.asarray(X)), None


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def small_net(**options):
    return TaskNet(module__hidden=(8, 8), max_epochs=1, **options)


@pytest.fixture(name="small_net")
def small_net_fixture():
    """The function itself."""
    return small_net


@pytest.fixture(scope="session")
def sines():
    """Sixteen tasks with 8 support and 8 query rows each, in turns."""
    return make_sinusoids(16, n_support=8, n_query=8, random_state=0)


@pytest.fixture(scope="session")
def maml(sines):
    meta = MAMLRegressor(small_net(), inner_lr=0.05, n_inner_steps=3, random_state=0)
    return meta.fit(sines[:8])


@pytest.fixture(scope="session")
def alpaca(sines):
    return ALPaCARegressor(small_net(), random_state=0).fit(sines[:8])


@pytest.fixture(scope="session")
def without_net(sines):
    return WithoutNet().fit(sines[:8])


@pytest.fixture(scope="session")
def blobs():
    """Twelve tasks of three local classes, without support sets."""
    tasks = make_blob_tasks(12, n_classes=3, labels="local", random_state=0)
    return [Task(task.X, task.y, labels="local", name=task.name) for task in tasks]


@pytest.fixture(scope="session")
def classifier(blobs):
    meta = MAMLClassifier(small_net(), inner_lr=0.3, n_inner_steps=2, random_state=0)
    return meta.fit(blobs[:8])


def shared_tasks(n_tasks=10, n_rows=24, seed=0):
    """The class is in the first of three features, in the second there is a hint."""
    rng = np.random.default_rng(seed)
    tasks = []
    for i in range(n_tasks):
        y = np.arange(n_rows) % 2
        X = rng.normal(size=(n_rows, 3))
        X[:, 0] += 4 * y
        X[:, 1] += 0.5 * y
        mask = np.arange(n_rows) < 8
        tasks.append(Task(X, y, support=mask, name=f"clinic {i}"))
    return tasks


@pytest.fixture(name="shared_tasks", scope="session")
def shared_tasks_fixture():
    """The tasks."""
    return shared_tasks()
