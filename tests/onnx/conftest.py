"""Trained learners and their files, made once."""

import numpy as np
import pytest

from sk_meta import (
    ALPaCARegressor,
    MAMLClassifier,
    PrototypicalClassifier,
    Task,
    TaskNet,
)
from sk_meta.onnx import OnnxMetaLearner, to_onnx
from tests.onnx.toy_learners import LABELS, frame, rows

SEEDS = range(5)


def net():
    return TaskNet(max_epochs=1, module__hidden=(6,))


def loaded(meta):
    return OnnxMetaLearner(to_onnx(meta).SerializeToString())


@pytest.fixture(scope="session")
def prototypes():
    """Trained on DataFrames with shared labels."""
    drawn = [rows(seed=seed) for seed in SEEDS]
    meta = PrototypicalClassifier(net(), random_state=0, support_size=2)
    return meta.fit([(frame(X), LABELS[y]) for X, y in drawn])


@pytest.fixture(scope="session")
def from_prototypes(prototypes):
    return loaded(prototypes)


@pytest.fixture(scope="session")
def maml():
    """With an inner loop, and classes of each task's own."""
    tasks = [Task(*rows(seed=seed), labels="local") for seed in SEEDS]
    meta = MAMLClassifier(
        net(), n_inner_steps=2, inner_lr=0.1, random_state=0, support_size=2
    )
    return meta.fit(tasks)


@pytest.fixture(scope="session")
def from_maml(maml):
    return loaded(maml)


@pytest.fixture(scope="session")
def alpaca():
    targets = np.random.default_rng(0).normal(size=(5, 12, 2)) * 100 + 7
    tasks = [(rows(seed=seed)[0], y) for seed, y in enumerate(targets)]
    return ALPaCARegressor(net(), random_state=0, support_size=6).fit(tasks)


@pytest.fixture(scope="session")
def from_alpaca(alpaca):
    return loaded(alpaca)
