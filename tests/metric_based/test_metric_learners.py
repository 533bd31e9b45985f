"""The check suite, and meta-gradients against finite differences."""

import pytest
import torch
from torch import nn

from sk_meta import (
    MatchingClassifier,
    RelationClassifier,
    SemiSupervisedPrototypicalClassifier,
)
from sk_meta.checks import meta_estimator_checks
from sk_meta.metric_based.matching import Matching
from sk_meta.metric_based.relation import Relations
from sk_meta.metric_based.semi_supervised import SemiSupervisedPrototypes
from sk_meta.networks import MLP, BatchNorm
from tests.meta_gradients import TOLERANCE, deviation

ESTIMATORS = [
    MatchingClassifier(),
    MatchingClassifier(full_context=True),
    RelationClassifier(relation_hidden=(8,)),
    RelationClassifier(relation_hidden=(8,), loss="squared_error"),
    SemiSupervisedPrototypicalClassifier(unlabeled=-1),
    SemiSupervisedPrototypicalClassifier(refinement="masked", n_refinements=2),
    SemiSupervisedPrototypicalClassifier(refinement="distractor"),
]
CHECKS = [
    pytest.param(check, id=f"{type(estimator).__name__}{i}-{check.func.__name__}")
    for i, estimator in enumerate(ESTIMATORS)
    for check in meta_estimator_checks(estimator)
]
N_FEATURES, WIDTH, N_CLASSES = 5, 4, 3
NETWORKS = {
    "MLP": lambda: MLP(N_FEATURES, WIDTH, (6,), nn.Tanh),
    "BatchNorm1d": lambda: nn.Sequential(
        nn.Linear(N_FEATURES, 6), BatchNorm(6), nn.Tanh(), nn.Linear(6, WIDTH)
    ),
}
SHIFTABLE = ("soft", "masked")
LEARNERS = {
    "matching": lambda net: Matching(net, WIDTH, 0.2, False, 2),
    "matching, full context": lambda net: Matching(net, WIDTH, 0.2, True, 3),
    "relation": lambda net: Relations(net, WIDTH, (6, 5), "cross_entropy"),
    "relation, squared": lambda net: Relations(net, WIDTH, (6,), "squared_error"),
    "soft": lambda net: SemiSupervisedPrototypes(net, "soft", 2),
    "distractor": lambda net: SemiSupervisedPrototypes(net, "distractor", 2),
    "masked": lambda net: SemiSupervisedPrototypes(net, "masked", 2),
}


@pytest.mark.filterwarnings("ignore:No task has an unlabelled row")
@pytest.mark.parametrize("check", CHECKS)
def test_meta_estimator(check):
    check()


def make_batch(make_group, semi_supervised):
    """Two sizes of task, one with weights; some support rows unlabelled."""
    batch = []
    for n_tasks, n_support, weighted in ((2, 9, False), (3, 12, True)):
        group = make_group(
            n_tasks,
            n_support,
            5,
            N_FEATURES,
            N_CLASSES,
            weighted=weighted,
            seed=n_support,
        )
        if semi_supervised:
            y = group.support.y.masked_fill(torch.arange(n_support) >= 4, -1)
            group = group._replace(support=group.support._replace(y=y))
        batch.append(group)
    return batch


def make_learner(name, network="MLP"):
    """In float64, away from any special point."""
    learner = LEARNERS[name](NETWORKS[network]()).double().train()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return learner


@pytest.mark.parametrize("way", ["vmap", "loop", "layers"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", LEARNERS)
def test_meta_gradient_matches_finite_differences(name, network, way, make_group):
    learner = make_learner(name, network)
    semi_supervised = isinstance(learner, SemiSupervisedPrototypes)
    batch = make_batch(make_group, semi_supervised)
    found = deviation(learner, batch, way)
    assert learner.why == "", "another way was taken"
    assert found <= TOLERANCE


@pytest.mark.parametrize("name", LEARNERS)
def test_no_meta_parameter_is_left_out(name, make_group):
    learner = make_learner(name)
    batch = make_batch(make_group, isinstance(learner, SemiSupervisedPrototypes))
    deviation(learner, batch, "loop", n_directions=1)
    # Neither distances between embeddings nor a softmax depend on what all have in
    # common.
    blind = {"relation": {"relation.4.bias"}}
    blind = blind.get(name, {"module.layers.2.bias"} if name in SHIFTABLE else ())
    for parameter_name, parameter in learner.named_parameters():
        if parameter_name not in blind:
            assert parameter.grad.norm() > 1e-8, parameter_name


@pytest.mark.parametrize("name", LEARNERS)
def test_order_classes_and_weights(name, make_group):
    """Of the support set: rows permuted, classes permuted, rows of weight 0 or 2."""
    learner = make_learner(name).eval()
    group = make_batch(make_group, isinstance(learner, SemiSupervisedPrototypes))[1]
    X, y, weight = (part[0] for part in group.support[:3])
    query = group.query.X[0]

    def scores(X, y, weight):
        support = group.support._replace(X=X, y=y, weight=weight)
        with torch.no_grad():
            return learner.predict(learner.adapt(support), query)

    expected = scores(X, y, weight)
    order = torch.randperm(len(X))
    torch.testing.assert_close(scores(X[order], y[order], weight[order]), expected)
    classes = torch.tensor([2, 0, 1])
    renamed = torch.where(y < 0, y, classes[y])
    torch.testing.assert_close(scores(X, renamed, weight)[:, classes], expected)
    assert not torch.allclose(expected, expected[:, classes])
    for label in (0, -1) if (y < 0).any() else (0,):
        more = 50 * torch.ones(1, N_FEATURES).double()
        row = torch.cat([X, more]), torch.cat([y, torch.tensor([label])])
        torch.testing.assert_close(
            scores(*row, torch.cat([weight, torch.zeros(1).double()])), expected
        )
    first = torch.cat([torch.arange(len(X)), torch.tensor([0, 7])])
    twice = weight * (1 + torch.isin(torch.arange(len(X)), first[-2:]))
    torch.testing.assert_close(
        scores(X[first], y[first], weight[first]), scores(X, y, twice)
    )
    assert not torch.allclose(scores(X, y, twice), expected)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_class_without_rows_is_shut_out(name, make_group):
    learner = make_learner(name)
    group = make_batch(make_group, isinstance(learner, SemiSupervisedPrototypes))[0]
    X, y = (
        group.support.X[0],
        group.support.y[0].masked_fill(group.support.y[0] == 2, 0),
    )
    support = group.support._replace(X=X, y=y)
    scores = learner.predict(learner.adapt(support), group.query.X[0])
    assert (scores[:, 2] < -1e8).all() and (scores[:, :2] > -1e6).all()
    query = group.query._replace(X=group.query.X[0], y=group.query.y[0])
    loss = learner.loss(scores, query, support)
    assert 0 < loss < 1e3, "the class counts in the loss"
    loss.backward()
    assert all(p.grad.isfinite().all() for p in learner.parameters())
