"""Reptile: the gradient is the way back from the adapted parameters."""

import pytest
import torch
from torch import nn

from sk_meta import ReptileClassifier, ReptileRegressor, TaskNet
from sk_meta.checks import meta_estimator_checks
from sk_meta.engine.batching import task_losses
from sk_meta.engine.memory import peak_bytes
from sk_meta.engine.meta_step import MetaStep
from sk_meta.gradient_based.maml import MAML
from sk_meta.gradient_based.reptile import Reptile
from sk_meta.learner import RowLoss
from sk_meta.networks import MLP
from sk_meta.tasks import make_sinusoids
from tests.meta_gradients import meta_gradient

N_FEATURES = 16
BATCH_NORM = TaskNet(
    module__hidden=(8,), module__normalization="batch", max_epochs=2, way="vmap"
)
ESTIMATORS = [
    ReptileClassifier(n_inner_steps=2, n_adapt_steps=3),
    ReptileClassifier(BATCH_NORM, inner_batch_size=4),
    ReptileRegressor(inner_batch_size=3),
]
CHECKS = [
    pytest.param(check, id=f"{type(estimator).__name__}{i}-{check.func.__name__}")
    for i, estimator in enumerate(ESTIMATORS)
    for check in meta_estimator_checks(estimator)
]


@pytest.mark.parametrize("check", CHECKS)
def test_meta_estimator(check):
    normalised = check.args[0].net.get_params().get("module__normalization")
    if normalised and check.func.__name__ == "check_support":
        pytest.skip("a row of weight 0 counts in the statistics of the support set")
    check()


def make_learner(n_steps=3, normalization=None, n_outputs=3, inner_lr=0.2, **options):
    torch.manual_seed(0)
    network = MLP(N_FEATURES, n_outputs, (6,), nn.Tanh, normalization)
    learner = Reptile(network, n_outputs, inner_lr, n_steps, n_steps, **options)
    return learner.double().train()


def rows_of(group, task):
    """Features, targets and weights of all rows of a task, and which are used."""
    parts = [
        [part[task] for part in (found.X, found.y)]
        + [torch.ones(len(found.X[task])) if found[2] is None else found[2][task]]
        for found in (group.support, group.query)
    ]
    return [torch.cat(both) for both in zip(*parts, strict=True)]


def mean_loss(network, X, y, weight):
    return (RowLoss()(network(X), y) * weight).sum() / weight.sum()


KINDS = {"classes": {"n_classes": 3}, "targets": {"n_targets": 3}}


@pytest.mark.parametrize("way", ["vmap", "loop"])
@pytest.mark.parametrize("normalization", [None, "batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_way_back(kind, normalization, way, make_group):
    """Three steps of SGD on all rows of each task, by hand; the loss is the last."""
    learner = make_learner(normalization=normalization)
    batch = [
        make_group(2, 6, 4, seed=1, **KINDS[kind]),
        make_group(3, 9, 5, weighted=True, seed=2, **KINDS[kind]),
    ]
    start = nn.utils.parameters_to_vector(learner.parameters()).detach()
    ways, losses = [], []
    for group in batch:
        for task in range(len(group.positions)):
            rows = rows_of(group, task)
            nn.utils.vector_to_parameters(start.clone(), learner.parameters())
            optimizer = torch.optim.SGD(learner.parameters(), lr=0.2)
            for _ in range(3):
                optimizer.zero_grad()
                mean_loss(learner.module, *rows).backward()
                optimizer.step()
            end = nn.utils.parameters_to_vector(learner.parameters()).detach()
            ways.append(start - end)
            losses.append(mean_loss(learner.module, *rows).detach())
    nn.utils.vector_to_parameters(start.clone(), learner.parameters())
    found = meta_gradient(learner, batch, way)
    assert learner.way == way
    torch.testing.assert_close(found, torch.stack(ways).mean(0))
    found, _ = task_losses(learner, batch)
    torch.testing.assert_close(found.detach(), torch.stack(losses))


@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_with_one_step_it_is_joint_training(way, make_group):
    """The gradient of the mean loss of all rows, times the inner learning rate."""
    learner = make_learner(n_steps=1)
    group = make_group(3, 6, 4, n_classes=3, weighted=True)
    found = meta_gradient(learner, [group], way)
    learner.zero_grad()
    sum(mean_loss(learner.module, *rows_of(group, i)) for i in range(3)).backward()
    expected = torch.cat([p.grad.flatten() for p in learner.parameters()])
    torch.testing.assert_close(found, 0.2 * expected / 3)


def test_weights_of_tasks_weigh_their_ways(make_group):
    learner = make_learner()
    group = make_group(3, 6, 4, n_classes=3)
    each = []
    for i in range(3):
        learner.zero_grad()
        task_losses(learner, [group])[0][i].backward()
        each.append(torch.cat([p.grad.flatten() for p in learner.parameters()]))
    learner.zero_grad()
    MetaStep()(learner, [group], lambda losses: losses @ torch.arange(3.0).double())
    found = torch.cat([p.grad.flatten() for p in learner.parameters()])
    torch.testing.assert_close(found, each[1] + 2 * each[2])


def test_adapts_and_predicts_as_maml_does(make_group):
    learner = make_learner(normalization="batch").eval()
    maml = MAML(learner.module, 3, 0.2, 3, 3).eval()
    group = make_group(3, 6, 4, n_classes=3, weighted=True)
    with torch.no_grad():
        found = task_losses(learner, [group], training=False)[0]
        expected = task_losses(maml, [group], training=False)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_batches_are_turns_of_a_random_order(way, make_group):
    """Enough batches of 4 for two passes over 10 rows see each row twice.

    With a loss that is linear in the parameters, steps do not depend on one another.
    """

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(N_FEATURES, 1))

        def forward(self, X):
            return X @ self.w

    class Itself(nn.Module):
        def forward(self, scores, y):
            return scores[:, 0]

    group = make_group(2, 6, 4)
    ways = []
    for size, n_steps in ((4, 5), (None, 5), (100, 5), (4, 1)):
        learner = Reptile(Linear(), 1, 1.0, n_steps, n_steps, size).double().train()
        learner.row_loss = Itself()
        torch.manual_seed(0)
        ways.append(meta_gradient(learner, [group], way))
        assert learner.uses_weight == (size is None)
    torch.testing.assert_close(ways[0], ways[1])
    torch.testing.assert_close(ways[1], ways[2])
    assert not torch.allclose(ways[3], ways[1] / 5)


@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_memory_does_not_grow_with_inner_steps(way, make_group):
    group = make_group(4, n_classes=3)
    held = []
    for n_steps in (2, 20):
        learner = make_learner(n_steps, "batch")
        learner.way = way
        step = MetaStep()
        step(learner, [group])  # the gradients of the parameters stay
        held.append(peak_bytes(step, learner, [group]))
    assert held[0] == held[1]


def test_sgd_with_rate_one_goes_to_the_mean_of_the_tasks(make_group):
    learner = make_learner()
    group = make_group(3, 6, 4, n_classes=3)
    start = nn.utils.parameters_to_vector(learner.parameters()).detach()
    way = meta_gradient(learner, [group], "vmap")
    torch.optim.SGD(learner.parameters(), lr=1.0).step()
    end = nn.utils.parameters_to_vector(learner.parameters()).detach()
    torch.testing.assert_close(end, start - way)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_training_helps(optimizer):
    """On sinusoids, adapting after training beats adapting before."""
    *old, _ = make_sinusoids(41, random_state=0)
    new = make_sinusoids(40, random_state=1)
    scores = []
    for max_epochs in (0, 30):
        net = TaskNet(
            optimizer=optimizer,
            lr=1e-3 if optimizer is torch.optim.Adam else 1.0,
            max_epochs=max_epochs,
        )
        meta = ReptileRegressor(net, n_adapt_steps=20, random_state=0).fit(old)
        scores.append(meta.score(new))
    assert scores[1] > scores[0] + 0.05


@pytest.mark.parametrize("bad", [{"inner_batch_size": 0}, {"n_inner_steps": 0}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=f"'{next(iter(bad))}' parameter of"):
        ReptileRegressor(**bad).fit([])
