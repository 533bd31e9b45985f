"""Joint training: one network, which a new task may fine-tune."""

import numpy as np
import pytest
import torch
from torch import nn

from sk_meta import JointClassifier, JointRegressor, TaskNet
from sk_meta.checks import meta_estimator_checks
from sk_meta.engine.batching import task_losses
from sk_meta.learner import Query, RowLoss, Support
from sk_meta.networks import MLP
from sk_meta.tasks import make_blob_tasks
from sk_meta.transfer.joint import Joint
from tests.meta_gradients import TOLERANCE, deviation, meta_gradient

N_FEATURES = 16
BATCH_NORM = TaskNet(
    module__hidden=(8,), module__normalization="batch", max_epochs=2, way="vmap"
)
ESTIMATORS = [
    JointClassifier(),
    JointClassifier(BATCH_NORM, adapt_lr=0.1),
    JointClassifier(n_adapt_steps=0),
    JointRegressor(),
]
CHECKS = [
    pytest.param(check, id=f"{type(estimator).__name__}{i}-{check.func.__name__}")
    for i, estimator in enumerate(ESTIMATORS)
    for check in meta_estimator_checks(estimator)
]


@pytest.mark.parametrize("check", CHECKS)
def test_meta_estimator(check):
    check()


def make_learner(n_steps=3, normalization=None, adapt_lr=0.1, n_outputs=3):
    torch.manual_seed(0)
    network = MLP(N_FEATURES, n_outputs, (6,), nn.Tanh, normalization)
    return Joint(network, n_outputs, adapt_lr, n_steps).double().train()


def one_task(make_group, **kind):
    group = make_group(1, 9, 6, **kind)
    X, y, weight = (None if p is None else p[0] for p in group.support[:3])
    query = Query(*(None if p is None else p[0] for p in group.query))
    return Support(X, y, weight, group.support.n_classes), query


KINDS = {"classes": {"n_classes": 3}, "targets": {"n_targets": 3}}


@pytest.mark.parametrize("way", ["vmap", "loop"])
@pytest.mark.parametrize("normalization", [None, "batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_all_rows(kind, normalization, way, make_group):
    learner = make_learner(normalization=normalization)
    batch = [
        make_group(2, 6, 4, seed=1, **KINDS[kind]),
        make_group(3, 9, 5, weighted=True, seed=2, **KINDS[kind]),
    ]
    assert deviation(learner, batch, way) <= TOLERANCE
    found, losses = meta_gradient(learner, batch, way), []
    assert learner.way == way
    for group in batch:
        for i in range(len(group.positions)):
            X = torch.cat([group.support.X[i], group.query.X[i]])
            y = torch.cat([group.support.y[i], group.query.y[i]])
            weight = torch.ones(len(X))
            if group.query.weight is not None:
                weight = torch.cat([group.support.weight[i], group.query.weight[i]])
            rows = RowLoss()(learner.module(X), y)
            losses.append((rows * weight).sum() / weight.sum())
    learner.zero_grad()
    torch.stack(losses).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in learner.parameters()])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_without_steps_the_support_set_is_ignored(kind, make_group):
    learner = make_learner(n_steps=0).eval()
    support, query = one_task(make_group, **KINDS[kind])
    other = support._replace(X=support.X + 1, y=support.y.flip(0))
    found = learner.predict(learner.adapt(support), query.X)
    torch.testing.assert_close(found, learner.predict(learner.adapt(other), query.X))
    torch.testing.assert_close(found, learner.module(query.X))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_lower_the_support_loss(kind, make_group):
    support, _ = one_task(make_group, **KINDS[kind])
    losses = []
    for n_steps in (0, 1, 2, 4, 8):
        learner = make_learner(n_steps).eval()
        scores = learner.predict(learner.adapt(support), support.X)
        losses.append(RowLoss()(scores, support.y).mean())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_sgd(kind, make_group):
    learner = make_learner(n_steps=3).eval()
    support, query = one_task(make_group, weighted=True, **KINDS[kind])
    found = learner.predict(learner.adapt(support), query.X)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        losses = RowLoss()(learner.module(support.X), support.y)
        ((losses * support.weight).sum() / support.weight.sum()).backward()
        optimizer.step()
    torch.testing.assert_close(found, learner.module(query.X))


@pytest.mark.parametrize("normalization", [None, "batch"])
def test_fine_tuning_is_the_same_batched_and_looped(normalization, make_group):
    learner = make_learner(normalization=normalization)
    group = make_group(3, 6, 4, n_classes=3, weighted=True)
    learner.update_running(task_losses(learner, [group])[1])
    learner.eval()
    losses = []
    for way in ("vmap", "loop"):
        learner.way = way
        with torch.no_grad():
            losses.append(task_losses(learner, [group], training=False)[0])
        assert learner.way == way
    torch.testing.assert_close(*losses)


def test_a_row_of_weight_zero_changes_nothing(make_group):
    learner = make_learner()
    group = make_group(2, 6, 4, n_classes=3, weighted=True)
    support = group.support
    more = support._replace(
        X=torch.cat([support.X, 100 + support.X[:, :1]], 1),
        y=torch.cat([support.y, support.y[:, :1]], 1),
        weight=torch.cat([support.weight, torch.zeros(2, 1).double()], 1),
    )
    for training in (True, False):
        learner.train(training)
        found, expected = (
            task_losses(learner, [group._replace(support=given)], training)[0]
            for given in (more, support)
        )
        torch.testing.assert_close(found, expected)


def test_outputs_beyond_the_classes_of_a_task_are_shut_out(make_group):
    learner = make_learner(n_outputs=5).eval()
    support, query = one_task(make_group, n_classes=3)
    share = learner.predict(learner.adapt(support), query.X).softmax(1)
    assert (share[:, 3:] == 0).all() and (share[:, :3] > 0).all()


def test_is_logistic_regression_on_pooled_rows_where_tasks_agree():
    """Shared labels whose classes lie in the same place: no task needs adapting."""
    rng = np.random.default_rng(0)
    tasks = []
    for _ in range(40):
        y = np.arange(20) % 2
        tasks.append((rng.normal(size=(20, 2)) + 3 * y[:, None], y))
    net = TaskNet(max_epochs=20, module__hidden=(8,), lr=1e-2)
    meta = JointClassifier(net, n_adapt_steps=0, random_state=0).fit(tasks[:30])
    assert meta.score(tasks[30:]) > 0.95


def test_local_labels_need_fine_tuning():
    tasks = make_blob_tasks(60, n_classes=3, labels="local", random_state=0)
    scores = {}
    for n_steps in (0, 30):
        net = TaskNet(max_epochs=5, module__hidden=(16,))
        meta = JointClassifier(
            net, n_adapt_steps=n_steps, adapt_lr=0.3, random_state=0
        ).fit(tasks[:30])
        scores[n_steps] = meta.score(tasks[30:])
    assert abs(scores[0] - 1 / 3) < 0.1  # chance
    assert scores[30] > scores[0] + 0.2


@pytest.mark.parametrize("bad", [{"adapt_lr": 0.0}, {"n_adapt_steps": -1}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=f"'{next(iter(bad))}' parameter of"):
        JointRegressor(**bad).fit([])
