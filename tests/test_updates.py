from itertools import pairwise

import numpy as np
import pytest
import torch

from sk_meta.heads import prototypes
from sk_meta.updates import gradient_descent


@pytest.fixture
def problem():
    """Least squares: (loss, start)."""
    A, b = torch.randn(9, 3).double(), torch.randn(9).double()

    def loss(parameters):
        return ((A @ parameters["w"] + parameters["c"] - b) ** 2).mean()

    return loss, {"w": torch.randn(3).double(), "c": torch.zeros(()).double()}


@pytest.mark.parametrize("first_order", [False, True])
def test_gradient_descent_is_sgd(problem, first_order):
    loss, start = problem
    before = {name: value.clone() for name, value in start.items()}
    found = gradient_descent(loss, start, 0.1, 4, first_order)
    free = {name: value.clone().requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.SGD(free.values(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        loss(free).backward()
        optimizer.step()
    for name, value in found.items():
        torch.testing.assert_close(value, free[name].detach())
        assert torch.equal(start[name], before[name])


def test_no_steps_leave_the_start(problem):
    loss, start = problem
    assert gradient_descent(loss, start, 0.1, 0) == start


def test_small_steps_lower_the_loss_more_and_more(problem):
    loss, start = problem
    losses = [loss(gradient_descent(loss, start, 0.02, n)) for n in range(8)]
    assert all(later < earlier for earlier, later in pairwise(losses))


def test_second_order_jacobian_of_a_quadratic_is_known():
    """One step on w'Hw/2 is (I - lr H) w; first order takes the identity for it."""
    H = torch.randn(3, 3).double()
    H, w = H @ H.T, torch.randn(3).double()

    def step(w, first_order):
        def loss(parameters):
            return parameters["w"] @ H @ parameters["w"] / 2

        return gradient_descent(loss, {"w": w}, 0.1, 1, first_order)["w"]

    identity = torch.eye(3).double()
    for first_order, expected in ((False, identity - 0.1 * H), (True, identity)):
        found = torch.autograd.functional.jacobian(
            lambda w, first=first_order: step(w, first), w
        )
        torch.testing.assert_close(found, expected)


def test_the_learning_rate_can_be_learned(problem):
    loss, start = problem
    rate = torch.tensor(0.05).double().requires_grad_()
    loss(gradient_descent(loss, start, rate, 2)).backward()
    with torch.no_grad():
        above, below = (
            loss(gradient_descent(loss, start, rate + change, 2))
            for change in (1e-6, -1e-6)
        )
    torch.testing.assert_close(rate.grad, (above - below) / 2e-6, rtol=1e-6, atol=0)


def test_each_parameter_may_have_a_rate_of_its_own(problem):
    loss, start = problem
    rates = {"w": torch.rand(3).double(), "c": torch.tensor(0.2).double()}
    gradients = torch.func.grad(loss)(start)
    found = gradient_descent(loss, start, rates, 1)
    for name, value in start.items():
        torch.testing.assert_close(found[name], value - rates[name] * gradients[name])
    equal = dict.fromkeys(start, torch.tensor(0.1).double())
    found, expected = (gradient_descent(loss, start, r, 3) for r in (equal, 0.1))
    torch.testing.assert_close(found, expected)


def test_prototypes_are_weighted_class_means(rng):
    Z, y = rng.normal(size=(12, 3)), np.arange(12) % 3
    weight = rng.uniform(0.1, 2.0, 12)
    means, mass = prototypes(*map(torch.from_numpy, (Z, y, weight)), 4)
    for k in range(3):
        expected = np.average(Z[y == k], axis=0, weights=weight[y == k])
        np.testing.assert_allclose(means[k], expected)
        np.testing.assert_allclose(mass[k], weight[y == k].sum())
    assert mass[3] == 0 and not means[3].any()


def test_labels_out_of_range_belong_to_no_class(rng):
    Z, y = torch.from_numpy(rng.normal(size=(6, 2))), torch.tensor([0, 1, 0, 1, -1, 7])
    for found, expected in zip(
        prototypes(Z, y, None, 2), prototypes(Z[:4], y[:4], None, 2), strict=True
    ):
        torch.testing.assert_close(found, expected)
