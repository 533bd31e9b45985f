"""The worst tasks: their mean, the gradient of the objective, the comparison."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sk_meta import MAMLRegressor, TaskNet
from sk_meta.engine.batching import task_losses
from sk_meta.engine.meta_step import MetaStep
from sk_meta.ensemble.tail import (
    TailStep,
    compare,
    tail_mean,
    tail_start,
    usual_end,
)
from sk_meta.tasks import make_sinusoids

floats = st.floats(-100, 100, allow_subnormal=False)


@given(st.lists(floats, min_size=1, max_size=30), st.floats(0.01, 1))
def test_tail_mean_is_the_least_value_over_t(losses, alpha):
    losses = np.array(losses)
    found = tail_mean(losses, alpha)
    brute = min(t + np.maximum(losses - t, 0).mean() / alpha for t in losses)
    assert found == pytest.approx(brute, abs=1e-9 / alpha)
    # Nothing between the losses is lower.
    for t in np.linspace(losses.min() - 1, losses.max() + 1, 50):
        assert found <= t + np.maximum(losses - t, 0).mean() / alpha + 1e-9 / alpha
    assert losses.mean() - 1e-9 <= found <= losses.max() + 1e-9 / alpha


@pytest.mark.parametrize("alpha, n_worst", [(0.1, 2), (0.25, 5), (0.5, 10), (1, 20)])
def test_tail_mean_of_whole_numbers_of_tasks(alpha, n_worst, rng):
    losses = rng.exponential(size=20)
    worst = np.sort(losses)[-n_worst:]
    assert tail_mean(losses, alpha) == pytest.approx(worst.mean())
    assert (losses > tail_start(losses, alpha)).sum() <= n_worst
    stacked = np.stack([losses, 2 * losses])
    np.testing.assert_allclose(
        tail_mean(stacked, alpha), [worst.mean(), 2 * worst.mean()]
    )


def group_and_learner(make_group, way):
    net = TaskNet(module__hidden=(8,), max_epochs=0)
    meta = MAMLRegressor(net, random_state=0).fit(make_sinusoids(4, random_state=0))
    learner = copy.deepcopy(meta.learner_).double().train()
    learner.way, learner.checked, learner.forced = way, True, True
    return make_group(5, 6, 4, 1), learner


@pytest.mark.parametrize("way", ["layers", "vmap", "loop"])
@pytest.mark.parametrize("alpha, tail", [(0.1, 1.0), (0.4, 0.25)])
def test_gradient_is_that_of_the_objective(way, alpha, tail, make_group):
    group, learner = group_and_learner(make_group, way)
    parameters = list(learner.parameters())
    losses, _ = task_losses(learner, [group])
    known = losses.tolist()
    t = tail_start(known, alpha)
    worst = t + (losses - t).relu().mean() / alpha
    expected = torch.autograd.grad(
        (1 - tail) * losses.mean() + tail * worst, parameters
    )
    # In pieces too.
    for max_memory in (None, 1e-4):
        learner.zero_grad()
        step = TailStep(alpha, tail, known, max_memory)
        loss, each, _ = step(learner, [group])
        torch.testing.assert_close(loss, losses.detach().mean())
        torch.testing.assert_close(each, losses.detach())
        for parameter, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("alpha, tail", [(0.1, 0.0), (1.0, 0.7)])
def test_where_it_is_the_plain_mean(alpha, tail, make_group):
    group, learner = group_and_learner(make_group, "vmap")
    found = []
    for step in (MetaStep(), TailStep(alpha, tail, [1.0, 2.0])):
        learner.zero_grad()
        step(learner, [group])
        found.append([parameter.grad for parameter in learner.parameters()])
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(plain, other)


def test_threshold_follows_the_latest_losses(make_group):
    group, learner = group_and_learner(make_group, "vmap")
    step = TailStep(0.5, 0.5, [np.nan, np.inf, 1e9, 1e9, 1e9])
    _, losses, _ = step(learner, [group])
    assert list(step.latest) == losses.tolist()
    TailStep(0.5, 0.5, [np.nan])(learner, [group])
    assert all(p.grad.isfinite().all() for p in learner.parameters())


def test_comparison_is_paired(rng):
    before = rng.exponential(size=60)
    found = compare(before, before - 0.01, 0.1, rng)
    for part in found.values():  # a shift by the same amount leaves no doubt
        np.testing.assert_allclose(part["change"], -0.01, atol=1e-9)
        value, low, high = part["before"]
        assert low < value < high
    noise = compare(before, rng.permutation(before), 0.1, rng)["worst"]["change"]
    assert noise[1] < 0 < noise[2]


def test_fence():
    losses = np.exp(np.linspace(-1, 1, 21))
    assert usual_end(losses) == pytest.approx(np.exp(0.5 + 1.5))
    assert usual_end(np.array([-1.0, 0, 1, 2, 3])) == pytest.approx(2 + 1.5 * 2)
    assert np.isfinite(usual_end(np.zeros(5)))
