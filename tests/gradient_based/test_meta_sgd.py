"""Meta-SGD: a learned rate for every number of the network."""

import numpy as np
import pytest
import torch
from torch import nn

from sk_meta import MAMLRegressor, MetaSGDClassifier, MetaSGDRegressor, Task, TaskNet
from sk_meta.checks import meta_estimator_checks
from sk_meta.gradient_based.maml import MAML
from sk_meta.networks import MLP, exact_normalization
from sk_meta.tasks import make_sinusoids
from tests.meta_gradients import TOLERANCE, deviation

ESTIMATORS = [MetaSGDClassifier(inner_lr=0.1), MetaSGDRegressor(n_inner_steps=2)]


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=f"{type(estimator).__name__}-{check.func.__name__}")
        for estimator in ESTIMATORS
        for check in meta_estimator_checks(estimator)
    ],
)
def test_meta_estimator(check):
    check()


def make_learner(normalization=None, **options):
    """With rates of both signs."""
    network = exact_normalization(MLP(4, 2, (5,), nn.Tanh, normalization)).double()
    learner = MAML(network, 2, 0.1, 2, 2, inner_rates="parameter", **options).double()
    with torch.no_grad():
        for rates in learner.rates.parameters():
            rates += torch.randn_like(rates) / 10
    return learner.train()


@pytest.mark.parametrize("normalization", [None, "batch", "layer"])
@pytest.mark.parametrize("way", ["layers", "vmap", "loop"])
def test_meta_gradients(way, normalization, make_group):
    learner = make_learner(normalization)
    batch = [make_group(3, 6, 4, 4, 0, 2, weighted=True), make_group(2, 5, 3, 4, 0, 2)]
    learner.checked = learner.forced = True  # no other way than this one
    assert deviation(learner, batch, way) <= TOLERANCE


def test_one_step_of_linear_regression_by_hand(make_group):
    group = make_group(1, 7, 4, 3, 0, 1)
    learner = MAML(nn.Linear(3, 1).double(), 1, 0.1, 1, 1, inner_rates="parameter")
    learner = learner.double()
    rates = torch.tensor([[0.3, -0.2, 0.0]]).double(), torch.tensor([0.5]).double()
    for own, value in zip(learner.rates.parameters(), rates, strict=True):
        own.data = value
    X, y = group.support.X[0], group.support.y[0]
    w, b = learner.module.weight, learner.module.bias
    error = X @ w.T + b - y
    expected = {
        "weight": w - rates[0] * 2 * (error * X).mean(0),
        "bias": b - rates[1] * 2 * error.mean(0),
    }
    found = learner.adapt(group.support._replace(X=X, y=y)).parameters
    torch.testing.assert_close(found, expected)
    assert torch.equal(found["weight"][0, 2], w[0, 2])  # whose rate is 0


def test_a_row_of_weight_0_changes_nothing(make_group):
    group = make_group(1, 6, 4, 4, 0, 2, weighted=True)
    X, y, weight = group.support.X[0], group.support.y[0], group.support.weight[0]
    learner = make_learner()
    weight = weight * (torch.arange(6) < 5)
    given = group.support._replace(X=X, y=y, weight=weight)
    fewer = group.support._replace(X=X[:5], y=y[:5], weight=weight[:5])
    found, expected = (learner.adapt(each).parameters for each in (given, fewer))
    torch.testing.assert_close(found, expected)


def test_classes_may_be_renamed_with_the_heads_rates(make_group):
    """The outputs are permuted together with labels, weights and rates."""
    order = torch.tensor([2, 0, 1])
    group = make_group(1, 6, 4, 4, 3)
    support = group.support._replace(X=group.support.X[0], y=group.support.y[0])
    found = []
    for renamed in (False, True):
        torch.manual_seed(0)
        network = MLP(4, 3, (5,)).double()
        learner = MAML(network, 3, 0.1, 2, 2, inner_rates="parameter").double()
        with torch.no_grad():
            for rates in learner.rates.parameters():
                rates += torch.randn_like(rates) / 10
            if renamed:
                values = [*network.parameters()], [*learner.rates.parameters()]
                for tensor in (*values[0][-2:], *values[1][-2:]):
                    tensor.copy_(tensor[order])
                support = support._replace(y=order.argsort()[support.y])
        found.append(learner.predict(learner.adapt(support), group.query.X[0]))
    torch.testing.assert_close(found[1], found[0][:, order])


def test_it_is_maml_with_a_rate_for_every_number():
    tasks = make_sinusoids(12, random_state=0)
    net = TaskNet(module__hidden=(6,), max_epochs=2)
    found = [
        meta.fit(tasks)
        for meta in (
            MetaSGDRegressor(net, inner_lr=0.02, random_state=0),
            MAMLRegressor(net, inner_lr=0.02, inner_rates="parameter", random_state=0),
        )
    ]
    for one, other in zip(
        found[0].predict(tasks), found[1].predict(tasks), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert found[0].learner_.way == "layers"
    n_rates = sum(p.numel() for p in found[0].learner_.rates.parameters())
    assert n_rates == sum(p.numel() for p in found[0].learner_.module.parameters())


def test_images():
    rng = np.random.default_rng(0)
    old = [Task(rng.normal(size=(8, 1, 4, 4)), np.arange(8) % 2) for _ in range(4)]
    net = TaskNet(module__n_filters=4, max_epochs=2, batch_size=2)
    meta = MetaSGDClassifier(net, inner_lr=0.1, support_size=2, random_state=0).fit(old)
    assert meta.learner_.way == "loop"
    rates = dict(zip(meta.learner_.adapted, meta.learner_.rates.values, strict=True))
    for name in ("layers.0.weight", "layers.1.weight", [*rates][-2], [*rates][-1]):
        assert (rates[name] != 0.1).all(), name
    assert meta.adapt(old[0].X[:4], old[0].y[:4]).predict(old[0].X).shape == (8,)


def test_what_it_settles_is_no_parameter():
    assert "inner_rates" not in MetaSGDClassifier().get_params()
    with pytest.raises(ValueError, match="'inner_lr' parameter of MetaSGDRegressor"):
        MetaSGDRegressor(inner_lr=0).fit(make_sinusoids(4, random_state=0))
