"""One random_state, one result: again, in another process, and in workers."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from sk_meta import (
    ALPaCAClassifier,
    ALPaCARegressor,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    Task,
    TaskNet,
    adapt,
)
from sk_meta.tasks import make_blob_tasks, make_linear_tasks

ALL = [
    MAMLClassifier,
    PrototypicalClassifier,
    ALPaCAClassifier,
    MAMLRegressor,
    ALPaCARegressor,
]


def make_tasks(kind):
    """Without support sets, so that they are drawn in training."""
    if kind in ALL[3:]:
        tasks = make_linear_tasks(8, n_features=4, n_query=(8, 12), random_state=0)
    else:
        tasks = make_blob_tasks(
            8, n_classes=3, n_support=4, n_query=5, n_features=4, random_state=0
        )
    return [Task(task.X, task.y, labels=task.labels) for task in tasks]


def small(kind, **options):
    net = TaskNet(module__hidden=(8,), max_epochs=2, batch_size=3, lr=0.01)
    return kind(net, **{"support_size": (2, 3), "random_state": 0, **options})


def digest(kind):
    """Everything that comes out of fit, partial_fit, predict and adapt, to the bit."""
    tasks = make_tasks(kind)
    meta = small(kind).fit(tasks).partial_fit(tasks[:5])
    few_shot = meta.adapt(tasks[0].X[::2], tasks[0].y[::2])
    parts = [value.numpy() for value in meta.learner_.state_dict().values()]
    parts += [np.asarray([row["train_loss"] for row in meta.history_])]
    parts += [*meta.predict(tasks), few_shot.predict(tasks[0].X)]
    return hashlib.sha256(b"".join(np.asarray(p).tobytes() for p in parts)).hexdigest()


def global_states():
    numpy_state = np.random.get_state()  # noqa: NPY002
    return numpy_state[1].tobytes(), numpy_state[2], torch.get_rng_state().tolist()


@pytest.mark.parametrize("kind", ALL)
def test_the_global_generators_neither_matter_nor_move(kind):
    found = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        before = global_states()
        found.append(digest(kind))
        assert global_states() == before
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ALL)
def test_another_random_state_gives_other_numbers(kind):
    tasks = make_tasks(kind)
    found = [
        torch.cat([p.ravel() for p in small(kind, random_state=seed).fit(tasks)
                   .learner_.parameters()])
        for seed in (0, 1)
    ]  # fmt: skip
    assert not torch.equal(*found)


def test_no_random_state_is_random_and_leaves_the_global_generators():
    tasks, before = make_tasks(MAMLRegressor), global_states()
    found = [
        small(MAMLRegressor, random_state=None).fit(tasks).predict(tasks)[0]
        for _ in range(2)
    ]
    assert not np.array_equal(*found)
    assert global_states() == before


def test_a_generator_object_as_random_state():
    """As in sklearn: it moves on, and its seed settles the result."""
    tasks = make_tasks(MAMLRegressor)

    def predictions(rng):
        return small(MAMLRegressor, random_state=rng).fit(tasks).predict(tasks)[0]

    rng = np.random.RandomState(3)
    first, second = predictions(rng), predictions(rng)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, predictions(np.random.RandomState(3)))


def test_random_layers_of_a_user_are_seeded_and_silent_in_prediction():
    tasks = make_tasks(ALPaCARegressor)
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh())
    meta = ALPaCARegressor(TaskNet(network, max_epochs=2), random_state=0)
    before = global_states()
    first, second = clone(meta).fit(tasks), clone(meta).fit(tasks)
    assert global_states() == before
    found = [first.predict(tasks)[0], first.predict(tasks)[0], second.predict(tasks)[0]]
    assert all(np.array_equal(found[0], other) for other in found)


def test_a_fresh_process_gives_the_same_bits():
    here = Path(__file__)
    code = (
        f"import sys; sys.path.insert(0, {str(here.parent)!r}); "
        "import torch; torch.set_num_threads(1); import test_reproducible as t; "
        "print(*map(t.digest, t.ALL))"
    )
    # The seed of str hashes differs between processes, and must not matter.
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=here.parents[1],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        check=True,
    ).stdout.split()
    assert found == [digest(kind) for kind in ALL]


def test_two_workers_give_the_same_bits():
    tasks = make_tasks(MAMLClassifier)
    grid = {"inner_lr": [0.01, 0.1], "net__lr": [1e-3, 1e-2]}
    found = []
    for n_jobs in (1, 2):
        search = GridSearchCV(small(MAMLClassifier), grid, cv=2, n_jobs=n_jobs)
        search.fit(tasks)
        few_shot = adapt(search, tasks[0].X[::2], tasks[0].y[::2])
        found.append(
            [
                search.cv_results_["split0_test_score"],
                search.cv_results_["split1_test_score"],
                *search.best_estimator_.predict_proba(tasks),
                few_shot.predict_proba(tasks[0].X),
            ]
        )
    assert all(map(np.array_equal, *found))
