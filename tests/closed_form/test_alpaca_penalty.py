"""ALPaCA's penalty: how far the prior is from its start, and the network from 0."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from sk_meta import ALPaCARegressor, TaskNet
from sk_meta.checks import meta_estimator_checks
from sk_meta.closed_form.alpaca import ALPaCA
from sk_meta.engine.batching import task_losses
from sk_meta.networks import MLP
from sk_meta.tasks import make_linear_tasks, make_sinusoids
from tests.meta_gradients import TOLERANCE, deviation, meta_gradient

CHECKS = [
    pytest.param(check, id=check.func.__name__)
    for check in meta_estimator_checks(ALPaCARegressor(regularization=1.0))
]


@pytest.mark.parametrize("check", CHECKS)
def test_meta_estimator(check):
    check()


def make_learner(regularization=0.0):
    learner = ALPaCA(MLP(4, 3, (5,), nn.Tanh), 3, 4, 2, regularization).double()
    return learner.train()


def changed(learner):
    """The same learner, away from its start."""
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return learner


def test_the_divergence_is_zero_at_the_start_and_nowhere_else():
    learner = make_learner()
    divergence = learner.divergence()
    assert abs(divergence.item()) < 1e-12
    gradients = torch.autograd.grad(divergence, learner.parameters(), allow_unused=True)
    assert max(g.abs().max() for g in gradients if g is not None) < 1e-12
    for name in ("prior_mean", "prior_log_scale", "prior_correlation"):
        for sign in (-0.1, 0.1):
            learner = make_learner()
            with torch.no_grad():
                getattr(learner, name).add_(sign)
            assert learner.divergence() > 1e-3, name


def test_the_divergence_is_that_of_two_normal_distributions():
    learner = changed(make_learner())
    start = MultivariateNormal(
        torch.zeros(8).double(), (2 * learner.first_log_scale).exp().diag()
    )
    factor = learner.factor()
    expected = [
        kl_divergence(MultivariateNormal(mean, scale_tril=factor), start)
        for mean in learner.prior_mean.T
    ]
    torch.testing.assert_close(learner.divergence(), sum(expected) / 2)


@pytest.mark.parametrize("way", ["vmap", "loop", "layers"])
def test_it_is_added_to_the_loss_of_each_task_in_training_alone(way, make_group):
    group = make_group(3, 6, 4, 4, n_targets=2, weighted=True)
    found = {}
    for penalty in (0.0, 0.5):
        torch.manual_seed(0)
        learner = changed(make_learner(penalty))
        learner.way = way
        found[penalty], _ = task_losses(learner, [group])
        assert learner.way == way
        found[penalty, "valid"], _ = task_losses(
            learner.eval(), [group], training=False
        )
    weights = torch.cat(
        [layer.weight.flatten() for layer in learner.module.layers[::2]]
    )
    penalty = learner.divergence() + 0.5 * (weights**2).sum()
    expected = found[0.0] + 0.5 * penalty
    torch.testing.assert_close(found[0.5], expected)
    torch.testing.assert_close(found[0.5, "valid"], found[0.0, "valid"])


@pytest.mark.parametrize("way", ["vmap", "loop", "layers"])
def test_meta_gradient(way, make_group):
    batch = [
        make_group(2, 4, 3, 4, n_targets=2),
        make_group(2, 7, 5, 4, n_targets=2, weighted=True),
    ]
    learner = changed(make_learner(0.5))
    meta_gradient(learner, batch, way)
    assert learner.way == way
    assert deviation(learner, batch, way) <= TOLERANCE


def test_the_more_tasks_the_less_it_weighs():
    """A prior belief: its share in the sum over all tasks stays the same."""
    net = TaskNet(MLP, module__hidden=(4,), max_epochs=1)
    for n_tasks in (5, 20):
        tasks = make_sinusoids(n_tasks, random_state=0)
        meta = ALPaCARegressor(net, regularization=2.0, random_state=0).fit(tasks)
        assert meta.learner_.regularization == 2.0 / n_tasks


def test_a_large_one_keeps_the_prior_where_it_was():
    tasks = make_linear_tasks(30, random_state=0)
    net = TaskNet(MLP, module__hidden=(4,), max_epochs=10)
    divergence = [
        ALPaCARegressor(net, regularization=penalty, random_state=0)
        .fit(tasks)
        .learner_.divergence()
        .item()
        for penalty in (0.0, 1.0, 1000.0)
    ]
    assert np.all(np.diff(divergence) < 0)
    assert divergence[2] < 0.05 * divergence[0]


@pytest.mark.parametrize("penalty", [-1.0, "much", None])
def test_bad_parameter(penalty):
    with pytest.raises(ValueError, match="regularization"):
        ALPaCARegressor(regularization=penalty).fit(make_sinusoids(3))
