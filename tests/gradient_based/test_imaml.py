"""Implicit MAML: the gradient of the solution, whatever way led to it."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call

from sk_meta import IMAMLClassifier, IMAMLRegressor, TaskNet
from sk_meta.checks import meta_estimator_checks
from sk_meta.engine.batching import task_losses
from sk_meta.engine.memory import peak_bytes
from sk_meta.engine.meta_step import MetaStep
from sk_meta.gradient_based.imaml import IMAML
from sk_meta.gradient_based.maml import MAML
from sk_meta.learner import RowLoss, Support
from sk_meta.networks import MLP, Conv4
from sk_meta.updates import conjugate_gradients, gradient_descent, with_gradient
from tests.meta_gradients import TOLERANCE, deviation, meta_gradient

N_FEATURES = 4
REGULARIZATION = 5.0
BATCH_NORM = TaskNet(
    module__hidden=(8,), module__normalization="batch", max_epochs=2, way="vmap"
)
ESTIMATORS = [
    IMAMLClassifier(n_inner_steps=3, n_adapt_steps=4),
    IMAMLClassifier(BATCH_NORM, n_inner_steps=2, n_cg_steps=2),
    IMAMLRegressor(),
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


def make_learner(n_steps=50, n_cg_steps=25, normalization=None, n_outputs=3):
    """Enough steps to be at the solution, in float64."""
    torch.manual_seed(0)
    network = MLP(N_FEATURES, n_outputs, (3,), nn.Tanh, normalization)
    learner = IMAML(
        network, n_outputs, REGULARIZATION, 0.1, n_steps, n_steps, n_cg_steps
    )
    return learner.double().train()


KINDS = {"classes": {"n_classes": 3}, "targets": {"n_targets": 3}}


@pytest.mark.parametrize(
    ("kind", "normalization", "way"),
    [
        ("classes", None, "vmap"),
        ("classes", None, "loop"),
        ("targets", None, "vmap"),
        ("classes", "batch", "vmap"),
        ("classes", "batch", "loop"),
    ],
)
def test_gradient_of_the_solved_problem(kind, normalization, way, make_group):
    """Finite differences of the loss, the inner problem solved anew at each point."""
    learner = make_learner(100 if normalization else 50, normalization=normalization)
    batch = [make_group(2, 9, 5, N_FEATURES, weighted=True, **KINDS[kind])]
    assert deviation(learner, batch, way, n_directions=1) <= TOLERANCE
    meta_gradient(learner, batch, way)
    assert learner.way == way


class Proximal(MAML):
    """Gradient descent on the regularised problem, differentiated step by step."""

    def adapt(self, support):
        start = dict(self.module.named_parameters())

        def loss(parameters):
            scores = functional_call(self.module, parameters, (support.X,))
            rows = RowLoss()(scores, support.y)
            squared = sum(((parameters[n] - p) ** 2).sum() for n, p in start.items())
            return rows.mean() + REGULARIZATION / 2 * squared

        return self._state(
            support, gradient_descent(loss, start, self.inner_lr, self.n_inner_steps)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_equals_second_order_gradient_descent_at_convergence(kind, make_group):
    learner = make_learner()
    batch = [make_group(2, 6, 4, N_FEATURES, seed=1, **KINDS[kind])]
    unrolled = Proximal(learner.module, 3, 0.1, 50, 50)
    expected = meta_gradient(unrolled, batch, "loop")
    found = meta_gradient(learner, batch, "loop")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    losses = [task_losses(each, batch)[0].detach() for each in (learner, unrolled)]
    torch.testing.assert_close(*losses)
    # Half way it does not: the way counts for one, and not for the other.
    early = Proximal(learner.module, 3, 0.1, 1, 1)
    implicit = make_learner(n_steps=1)
    difference = meta_gradient(implicit, batch, "loop") - meta_gradient(
        early, batch, "loop"
    )
    assert difference.norm() > 1e-3 * expected.norm()


def test_solution_is_that_of_ridge_regression(make_group):
    """A linear network: the inner problem has a closed form."""
    network = nn.Linear(N_FEATURES, 1, bias=False).double()
    learner = IMAML(network, 1, REGULARIZATION, 0.1, 300, 300, 5).eval()
    group = make_group(1, 6, 4, N_FEATURES)
    X, y = group.support.X[0], group.support.y[0]
    anchor = network.weight.detach()
    gram = 2 * X.T @ X / 6 + REGULARIZATION * torch.eye(N_FEATURES).double()
    expected = torch.linalg.solve(gram, 2 * X.T @ y / 6 + REGULARIZATION * anchor.T)
    found = learner.adapt(Support(X, y)).parameters["weight"]
    torch.testing.assert_close(found, expected.T)


def test_matrix_behind_the_gradient(make_group):
    """(I + H / lambda)^-1 times the gradient at the solution, H written out."""
    network = nn.Linear(N_FEATURES, 3, bias=False).double()
    learner = IMAML(network, 3, REGULARIZATION, 0.1, 7, 7, 3 * N_FEATURES).train()
    group = make_group(1, 6, 4, N_FEATURES, n_classes=3)
    found = meta_gradient(learner, [group], "loop")
    support = group.support._replace(X=group.support.X[0], y=group.support.y[0])
    adapted = learner.adapt(support).parameters["weight"]

    def loss(weight, X, y):
        return nn.functional.cross_entropy(X @ weight.view(3, -1).T, y)

    at = adapted.flatten().requires_grad_()
    loss(at, group.query.X[0], group.query.y[0]).backward()
    H = hessian(partial(loss, X=support.X, y=support.y), at.detach())
    matrix = torch.eye(len(at)).double() + H / REGULARIZATION
    torch.testing.assert_close(found, torch.linalg.solve(matrix, at.grad))


@pytest.mark.parametrize("way", ["vmap", "loop"])
@pytest.mark.parametrize("network", ["MLP", "Conv4"])
def test_memory_does_not_grow_with_inner_steps(network, way, make_group):
    group = make_group(2, n_classes=3)
    if network == "Conv4":
        group = group._replace(
            support=group.support._replace(X=group.support.X.unflatten(2, (1, 4, 4))),
            query=group.query._replace(X=group.query.X.unflatten(2, (1, 4, 4))),
        )
    held = []
    for n_steps in (2, 8):
        module = MLP(16, 3, (8,)) if network == "MLP" else Conv4((1, 4, 4), 3, 8)
        learner = IMAML(module, 3, 1.0, 0.1, n_steps, n_steps, 3).double().train()
        learner.way = way
        step = MetaStep()
        step(learner, [group])  # the gradients of the parameters stay
        held.append(peak_bytes(step, learner, [group]))
        assert learner.way == way
    assert held[0] == held[1]


def test_the_graph_is_a_sum(make_group):
    """No graph of the inner loop hangs on the loss of a task."""
    learner = make_learner(n_steps=5)
    group = make_group(1, 6, 4, N_FEATURES, n_classes=3)
    learner.way = "loop"
    todo, names = [task_losses(learner, [group])[0].grad_fn], set()
    while todo:
        node = todo.pop()
        names.add(type(node).__name__)
        todo += [parent for parent, _ in node.next_functions if parent is not None]
    assert names <= {
        "AccumulateGrad",
        "AddBackward0",
        "MulBackward0",
        "StackBackward0",
        "SubBackward0",
        "SumBackward0",
    }


def test_a_row_of_weight_zero_changes_nothing(make_group):
    learner = make_learner(n_steps=5)
    group = make_group(2, 9, 5, N_FEATURES, n_classes=3, weighted=True)
    X, y, weight = group.support[:3]
    zero = group._replace(
        support=group.support._replace(
            X=torch.cat([X, 100 + X[:, :1]], 1),
            y=torch.cat([y, y[:, :1]], 1),
            weight=torch.cat([weight, torch.zeros(2, 1).double()], 1),
        )
    )
    torch.testing.assert_close(
        meta_gradient(learner, [zero], "vmap"), meta_gradient(learner, [group], "vmap")
    )


def test_the_stronger_the_regularization_the_nearer_the_anchor(make_group):
    group = make_group(1, 6, 4, N_FEATURES, n_classes=3)
    support = group.support._replace(X=group.support.X[0], y=group.support.y[0])
    distances = []
    for regularization in (0.1, 1.0, 10.0):
        learner = make_learner(n_steps=100)
        learner.regularization, learner.inner_lr = regularization, 0.1
        adapted = learner.adapt(support).parameters
        start = dict(learner.module.named_parameters())
        distances.append(sum(((adapted[n] - start[n]) ** 2).sum() for n in start))
    assert distances[0] > 2 * distances[1] > 4 * distances[2] > 0


@pytest.mark.parametrize("n", [1, 4])
def test_conjugate_gradients_solve_in_as_many_steps_as_unknowns(n):
    A = torch.randn(2 * n, 2 * n).double()
    A = A @ A.T + torch.eye(2 * n).double()
    b = torch.randn(2 * n).double()

    def product(v):
        a, c = (A @ torch.cat([v["a"], v["c"]])).split(n)
        return {"a": a, "c": c}

    given = {"a": b[:n], "c": b[n:]}
    for n_steps in (2 * n, 2 * n + 5):
        x = conjugate_gradients(product, given, n_steps)
        x = torch.cat([x["a"], x["c"]])
        torch.testing.assert_close(x, torch.linalg.solve(A, b))


def test_conjugate_gradients_stop_where_they_cannot_go_on():
    b = {"a": torch.ones(3).double()}
    zero = conjugate_gradients(lambda v: v, {"a": torch.zeros(3).double()}, 3)
    assert (zero["a"] == 0).all()
    negative = conjugate_gradients(lambda v: {"a": -v["a"]}, b, 3)
    assert (negative["a"] == 0).all()
    torch.testing.assert_close(conjugate_gradients(lambda v: v, b, 3), b)


def test_with_gradient():
    w = torch.randn(3).requires_grad_()
    value = with_gradient(torch.tensor(7.0), {"w": w}, {"w": torch.arange(3.0)})
    (2 * value).backward()
    assert value == 7.0 and torch.equal(w.grad, 2 * torch.arange(3.0))


@pytest.mark.parametrize("bad", [{"regularization": 0.0}, {"n_cg_steps": 0}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=f"'{next(iter(bad))}' parameter of"):
        IMAMLRegressor(**bad).fit([])
