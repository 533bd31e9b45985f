"""R2-D2 and LR-D2: sklearn's solutions on the embedded rows, differentiated through."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from sk_meta import R2D2Classifier, R2D2Regressor, TaskNet
from sk_meta.checks import meta_estimator_checks
from sk_meta.closed_form.r2d2 import LRD2, R2D2, R2D2OfClasses
from sk_meta.engine.batching import disagreement, task_losses
from sk_meta.heads import logistic_newton, ridge
from sk_meta.learner import Query, Support
from sk_meta.networks import MLP, exact_normalization
from sk_meta.tasks import make_blob_tasks, make_linear_tasks
from tests.meta_gradients import TOLERANCE, deviation, meta_gradient

N_FEATURES, WIDTH = 4, 6
LEARNERS = {
    "regression": R2D2,
    "ridge": R2D2OfClasses,
    "logistic": lambda net: LRD2(net, 4),
}
CLASSIFIERS = ["ridge", "logistic"]
ESTIMATORS = [R2D2Classifier(), R2D2Classifier(head="logistic"), R2D2Regressor()]
CHECKS = [
    pytest.param(check, id=f"{type(estimator).__name__}{i}-{check.func.__name__}")
    for i, estimator in enumerate(ESTIMATORS)
    for check in meta_estimator_checks(estimator)
]


@pytest.mark.parametrize("check", CHECKS)
def test_meta_estimator(check):
    check()


def make_learner(method, normalization=None):
    network = MLP(N_FEATURES, WIDTH, (5,), nn.Tanh, normalization=normalization)
    learner = LEARNERS[method](exact_normalization(network)).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return learner


@pytest.fixture
def one_task(make_group):
    """(method) -> (Support, Query) of one weighted task."""

    def make(method, n_support=9):
        kind = {"n_targets": 2} if method == "regression" else {"n_classes": 3}
        group = make_group(1, n_support, 6, N_FEATURES, weighted=True, **kind)
        X, y, weight, *_ = group.support
        support = Support(X[0], y[0], weight[0], group.support.n_classes)
        return support, Query(*(part[0] for part in group.query))

    return make


def take(support, rows):
    X, y, weight = (part[rows] for part in support[:3])
    return support._replace(X=X, y=y, weight=weight)


def predict(learner, support, X):
    with torch.no_grad():
        return learner.eval().predict(learner.adapt(support), X)


@pytest.mark.parametrize("way", ["vmap", "loop", "layers"])
@pytest.mark.parametrize("normalization", [None, "batch"])
@pytest.mark.parametrize("method", LEARNERS)
def test_meta_gradient(method, normalization, way, make_group):
    kind = {"n_targets": 2} if method == "regression" else {"n_classes": 3}
    sizes = [(2, 4, 3), (2, 9, 5)]  # fewer rows than features, and more
    batch = [
        make_group(*size, N_FEATURES, **kind, weighted=size[1] > 4) for size in sizes
    ]
    learner = make_learner(method, normalization).train()
    meta_gradient(learner, batch, way)
    assert learner.way == way
    assert deviation(learner, batch, way) <= TOLERANCE
    for name, parameter in learner.named_parameters():
        # Normalisation takes out the bias before it.
        if normalization is None or name != "module.layers.0.bias":
            assert parameter.grad.norm() > 1e-8, name
    assert disagreement(learner, batch[1]) is None


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_rows", [1, 3, 7, 20])
def test_ridge_is_that_of_sklearn(n_rows, weighted, rng):
    """With fewer rows than features, and with more."""
    A, B = rng.normal(size=(n_rows, 7)), rng.normal(size=(n_rows, 2))
    weight = rng.uniform(0, 2, n_rows) if weighted else None
    expected = Ridge(0.3, fit_intercept=False).fit(A, B, weight).coef_.T
    if weighted:
        weight = torch.from_numpy(weight)
    penalty = torch.tensor(0.3, dtype=torch.float64)
    found = ridge(*map(torch.from_numpy, (A, B)), penalty, weight)
    np.testing.assert_allclose(found, np.reshape(expected, (7, 2)), rtol=1e-8)


@pytest.mark.parametrize("n_rows", [2, 9])
def test_regression_is_ridge_on_the_embedded_rows(n_rows, one_task):
    learner, (support, query) = make_learner("regression"), one_task("regression")
    support = take(support, slice(n_rows))
    with torch.no_grad():
        Z, Z_query = learner.embed(support.X).numpy(), learner.embed(query.X).numpy()
        penalty = learner.penalty().item()
    model = Ridge(penalty, fit_intercept=False)
    model.fit(Z, support.y.numpy(), support.weight.numpy())
    found = predict(learner, support, query.X)
    np.testing.assert_allclose(found, model.predict(Z_query), rtol=1e-8)


def test_newton_steps_approach_logistic_regression(rng):
    """Of each class against the rest; closer with each step."""
    A, y = rng.normal(size=(20, 5)), np.arange(20) % 3
    weight = rng.uniform(0.5, 2.0, 20)
    Y = (y[:, None] == np.arange(3)).astype(float)
    model = LogisticRegression(C=1 / 0.2, fit_intercept=False, tol=1e-10, max_iter=1000)
    expected = np.stack([model.fit(A, y == k, weight).coef_[0] for k in range(3)], 1)
    given = [torch.from_numpy(part) for part in (A, Y, weight)]
    penalty = torch.tensor(0.2, dtype=torch.float64)
    errors = []
    for n_steps in (1, 2, 3, 4, 6, 10):
        found = logistic_newton(*given[:2], penalty, given[2], n_steps)
        errors.append(np.abs(found.numpy() - expected).max())
    assert (np.diff(errors[:5]) < 0).all()
    assert errors[-1] < 1e-5 < 0.1 < errors[0]


def test_newton_steps_stay_finite_on_rows_that_are_easy_to_tell_apart():
    A = torch.tensor([[-100.0, 1.0], [100.0, 1.0], [100.0, 1.0]], requires_grad=True)
    Y = torch.eye(3)[:, :2]
    W = logistic_newton(A, Y, torch.tensor(1e-4), None, 50)
    assert W.isfinite().all()
    (gradient,) = torch.autograd.grad(W.sum(), A)
    assert gradient.isfinite().all()
    assert ((A @ W)[0] @ torch.tensor([1.0, -1.0])) > 0


@pytest.mark.parametrize("method", LEARNERS)
def test_a_row_of_weight_zero_or_of_no_class_changes_nothing(method, one_task):
    learner, (support, query) = make_learner(method), one_task(method)
    expected = predict(learner, support, query.X)
    more = support._replace(
        X=torch.cat([support.X, 9 * torch.ones(1, N_FEATURES).double()]),
        y=torch.cat([support.y, support.y[:1]]),
        weight=torch.cat([support.weight, torch.zeros(1).double()]),
    )
    torch.testing.assert_close(predict(learner, more, query.X), expected)
    if method != "regression":
        y = more.y.clone()
        y[-1] = -1
        unknown = more._replace(y=y, weight=more.weight + (y < 0))
        torch.testing.assert_close(predict(learner, unknown, query.X), expected)


@pytest.mark.parametrize("method", LEARNERS)
def test_weights_act_like_repeated_rows_in_any_order(method, one_task):
    learner, (support, query) = make_learner(method), one_task(method)
    twice = support._replace(weight=1.0 + (torch.arange(9) < 4).double())
    rows = torch.tensor([0, 1, 2, 3, *range(9)])[torch.randperm(13)]
    repeated = take(support, rows)._replace(weight=None)
    expected = predict(learner, twice, query.X)
    torch.testing.assert_close(predict(learner, repeated, query.X), expected)
    equal = predict(learner, support._replace(weight=None), query.X)
    assert not torch.allclose(equal, expected)


@pytest.mark.parametrize("method", CLASSIFIERS)
def test_permuting_classes_permutes_the_answer(method, one_task):
    learner, (support, query) = make_learner(method), one_task(method)
    order = torch.tensor([2, 0, 1])
    relabelled = support._replace(y=order[support.y])
    found = predict(learner, relabelled, query.X)[:, order]
    torch.testing.assert_close(found, predict(learner, support, query.X))
    assert not torch.allclose(found, found[:, order])


@pytest.mark.parametrize("method", CLASSIFIERS)
def test_a_class_without_rows_is_shut_out_and_not_scored(method, one_task):
    learner, (support, query) = make_learner(method), one_task(method)
    known = support.y != 2
    lacking = support._replace(weight=support.weight * known)
    scores = predict(learner, lacking, query.X)
    assert (scores.softmax(1)[:, 2] == 0).all()
    rest = predict(learner, take(support, known), query.X)
    torch.testing.assert_close(scores, rest)
    kept = query.y != 2
    torch.testing.assert_close(
        learner.loss(scores, query, lacking),
        learner.loss(
            scores[kept], Query(*(part[kept] for part in query)), take(support, known)
        ),
    )


@pytest.mark.parametrize("method", CLASSIFIERS)
def test_one_row_a_class_and_the_same_row_twice(method, one_task):
    learner, (support, query) = make_learner(method).train(), one_task(method)
    for rows in ([0, 1, 2], [0, 0, 1, 1, 2, 2], [0]):
        scores = learner.predict(learner.adapt(take(support, rows)), query.X)
        assert scores.isfinite().all()
        learner.zero_grad()
        scores[:, 0].sum().backward()
        for name, parameter in learner.named_parameters():
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("head", CLASSIFIERS)
def test_training_learns_what_tasks_share(head):
    """Half of the features say nothing, but are far larger."""
    tasks = make_blob_tasks(120, n_classes=3, n_support=1, n_query=8, random_state=0)
    rng = np.random.default_rng(0)
    noisy = [t.replace_X(np.c_[t.X, 5 * rng.normal(size=t.X.shape)]) for t in tasks]
    scores = {}
    for lr, epochs in ((0.0, 1), (0.01, 10)):
        net = TaskNet(MLP, module__hidden=(32,), lr=lr, max_epochs=epochs)
        meta = R2D2Classifier(net, head=head, random_state=0).fit(noisy[:80])
        scores[lr] = meta.score(noisy[80:])
    assert scores[0.01] > scores[0.0] + 0.1


def test_the_penalty_moves_to_where_the_noise_asks_for_it():
    """More noise in the tasks, a larger penalty."""
    found = {}
    for noise in (0.1, 2.0):
        tasks = make_linear_tasks(150, n_features=2, noise=noise, random_state=0)
        net = TaskNet(nn.Identity(), lr=0.05, max_epochs=8)
        meta = R2D2Regressor(net, random_state=0).fit(tasks)
        found[noise] = meta.learner_.penalty().item()
    assert found[2.0] > 5 * found[0.1]


def test_ragged_tasks_are_filled_up_and_lose_nothing(make_ragged_tasks):
    """Together as one by one."""
    tasks = make_ragged_tasks()
    net = TaskNet(MLP, module__hidden=(6,), max_epochs=1)
    meta = R2D2Classifier(net, random_state=0).fit(tasks)
    found = meta.predict_proba(tasks)
    for task, proba in zip(tasks, found, strict=True):
        np.testing.assert_allclose(
            proba, meta.predict_proba([task])[0], rtol=1e-5, atol=1e-6
        )


def test_any_number_of_classes_at_adapt_time():
    tasks = make_blob_tasks(10, n_classes=3, random_state=0)
    (new,) = make_blob_tasks(1, n_classes=7, random_state=1)
    meta = R2D2Classifier(TaskNet(MLP, max_epochs=1), random_state=0).fit(tasks)
    few_shot = meta.adapt(new.X_support, new.y_support)
    assert few_shot.predict_proba(new.X_query).shape[1] == 7


def test_losses_are_the_same_in_every_way(make_group):
    group = make_group(3, 5, 4, N_FEATURES, n_classes=3)
    learner = make_learner("logistic", "batch").train()
    found = []
    for way in ("vmap", "loop", "layers"):
        learner.way = way
        found.append(task_losses(learner, [group])[0])
        assert learner.way == way
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"head": "svm"}, "head.*'logistic'.*Got 'svm'"),
        ({"head": None}, "head"),
        ({"n_newton_steps": 0}, r"n_newton_steps.*\[1, inf\).*Got 0"),
    ],
)
def test_bad_parameters(parameters, said):
    with pytest.raises(ValueError, match=said):
        R2D2Classifier(**parameters).fit(make_blob_tasks(3, random_state=0))


def test_it_has_no_standard_deviation():
    tasks = make_linear_tasks(4, random_state=0)
    meta = R2D2Regressor(TaskNet(MLP, max_epochs=1), random_state=0).fit(tasks)
    with pytest.raises(ValueError, match="gives no standard deviation"):
        meta.predict(tasks, return_std=True)
