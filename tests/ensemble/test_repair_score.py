"""A score that must not fall, beside the losses."""

import itertools

import pytest
import torch
from sklearn.frozen import FrozenEstimator

from sk_meta import R2D2Regressor, RepairedLearner, TaskNet
from sk_meta.tasks import make_sinusoids


@pytest.fixture(scope="module")
def tasks():
    return make_sinusoids(100, random_state=0)


@pytest.fixture(scope="module")
def untrained(tasks):
    net = TaskNet(module__hidden=(16,), max_epochs=0)
    return R2D2Regressor(net, random_state=0).fit(tasks)


def repair(meta, tasks, scoring):
    options = {"max_loss": 0.0, "max_epochs": 20, "lr": 0.02, "alpha": 0.5}
    return RepairedLearner(
        FrozenEstimator(meta), scoring=scoring, random_state=0, **options
    ).fit(tasks)


def test_a_score_that_rises_is_in_the_report(untrained, tasks):
    repaired = repair(untrained, tasks, "r2")
    before, after = repaired.repair_report_.scores
    assert repaired.repaired_ and after > before
    assert "  score: " in str(repaired.repair_report_)


def test_a_score_that_falls_refuses_what_losses_accept(untrained, tasks):
    calls = itertools.count()
    repaired = repair(untrained, tasks, lambda estimator, X, y: -next(calls))
    assert not repaired.repaired_
    assert "mean score fell from" in repaired.repair_report_.reason
    for name, value in untrained.learner_.state_dict().items():
        assert torch.equal(value, repaired.learner_.state_dict()[name])


def test_a_wrong_name(untrained, tasks):
    with pytest.raises(ValueError, match="nonsense"):
        repair(untrained, tasks, "nonsense")
