"""In-context learners."""

import numpy as np
import pytest
import torch

from sk_meta import EpisodeSampler, InContextClassifier, InContextRegressor, TaskNet
from sk_meta.learner import Support
from sk_meta.model_based.in_context import (
    InContextClassification,
    InContextRegression,
)
from sk_meta.networks import MLP
from sk_meta.tasks import make_blob_tasks, make_linear_tasks
from tests.meta_gradients import TOLERANCE, deviation, meta_gradient

N_FEATURES = 16
METHODS = {
    "local": lambda net: InContextClassification(net, 4, 2, 2, 8, 0),
    "shared": lambda net: InContextClassification(net, 4, 2, 2, 8, 3),
    "regression": lambda net: InContextRegression(net, 4, 2, 2, 8, 2),
}


def make_learner(method, normalization=None):
    """In float64, away from any special point such as blocks that start as 0."""
    net = MLP(N_FEATURES, 4, (6,), torch.nn.Tanh, normalization)
    learner = METHODS[method](net).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return learner.eval()


def make_support(method, n=7, weighted=False):
    X = torch.randn(n, N_FEATURES).double()
    weight = 0.5 + torch.rand(n).double() if weighted else None
    if method == "regression":
        return Support(X, torch.randn(n, 2).double(), weight)
    return Support(X, torch.arange(n) % 3, weight, 3)


def take(support, rows):
    parts = (None if part is None else part[rows] for part in support[:3])
    return support._replace(**dict(zip(("X", "y", "weight"), parts, strict=True)))


def scores(learner, support, X):
    with torch.no_grad():
        found = learner.predict(learner.adapt(support), X)
    return torch.cat(found, 1) if isinstance(found, tuple) else found


@pytest.mark.parametrize("normalization", [None, "batch"])
@pytest.mark.parametrize("way", ["layers", "vmap", "loop"])
@pytest.mark.parametrize("method", METHODS)
def test_meta_gradient_matches_finite_differences(
    method, way, normalization, make_group
):
    learner = make_learner(method, normalization).train()
    kind = {"n_targets": 2} if method == "regression" else {"n_classes": 3}
    batch = [
        make_group(2, 6, 4, **kind, seed=1),
        make_group(3, 9, 5, **kind, weighted=True, seed=2),
    ]
    meta_gradient(learner, batch, way)
    assert learner.way == way
    assert deviation(learner, batch, way) <= TOLERANCE


@pytest.mark.parametrize("method", METHODS)
def test_no_meta_parameter_is_left_out(method, make_group):
    learner = make_learner(method).train()
    kind = {"n_targets": 2} if method == "regression" else {"n_classes": 3}
    meta_gradient(learner, [make_group(2, 6, 4, **kind)], "vmap")
    for name, parameter in learner.named_parameters():
        assert parameter.grad.norm() > 1e-8, name


@pytest.mark.parametrize("method", METHODS)
def test_a_row_of_weight_0_changes_nothing(method):
    learner, support = make_learner(method), make_support(method)
    X, weight = torch.randn(4, N_FEATURES).double(), torch.ones(7).double()
    weight[2] = 0
    found = scores(learner, support._replace(weight=weight), X)
    expected = scores(learner, take(support, weight > 0), X)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, scores(learner, support, X))


@pytest.mark.parametrize("method", METHODS)
def test_a_row_of_weight_2_is_the_row_twice(method):
    learner, support = make_learner(method), make_support(method)
    X = torch.randn(4, N_FEATURES).double()
    weight = torch.tensor([2.0, *[1.0] * 6]).double()
    found = scores(learner, support._replace(weight=weight), X)
    twice = take(support, torch.tensor([0, 0, 1, 2, 3, 4, 5, 6]))
    torch.testing.assert_close(found, scores(learner, twice, X))


@pytest.mark.parametrize("method", METHODS)
def test_rows_in_any_order_and_each_for_itself(method):
    learner, support = make_learner(method), make_support(method, weighted=True)
    X = torch.randn(5, N_FEATURES).double()
    expected = scores(learner, support, X)
    shuffled = take(support, torch.randperm(7))
    torch.testing.assert_close(scores(learner, shuffled, X), expected)
    alone = torch.cat([scores(learner, support, row[None]) for row in X])
    torch.testing.assert_close(alone, expected)


def test_permuting_local_classes_permutes_the_answer():
    learner, support = make_learner("local"), make_support("local")
    X, output = torch.randn(5, N_FEATURES).double(), torch.tensor([2, 0, 1])
    expected = scores(learner, support, X)
    found = scores(learner, support._replace(y=output[support.y]), X)
    torch.testing.assert_close(found[:, output], expected)


def test_an_absent_class_is_shut_out_where_local_and_has_a_prior_where_shared():
    X = torch.randn(5, N_FEATURES).double()
    for method, shut in (("local", True), ("shared", False)):
        support = make_support(method)
        present = take(support, support.y != 1)
        found = scores(make_learner(method), present, X).softmax(1)[:, 1]
        assert bool((found < 1e-12).all()) == shut


def test_a_row_of_no_class_is_read_but_gets_no_score():
    """As in semi-supervised learning: a label outside of the classes."""
    learner, support = make_learner("local"), make_support("local")
    X = torch.randn(5, N_FEATURES).double()
    y = support.y.clone()
    y[0] = -1
    found = scores(learner, support._replace(y=y), X)
    assert found.isfinite().all()
    assert not torch.allclose(found, scores(learner, take(support, y >= 0), X))


def test_without_layers_to_learn_from_it_starts_as_attention_to_embedded_rows():
    """Blocks start as the identity: matching networks on normalised embeddings."""
    learner = METHODS["local"](MLP(N_FEATURES, 4, (6,))).double().eval()
    support = make_support("local")
    X = torch.randn(5, N_FEATURES).double()
    with torch.no_grad():
        Q, K = (learner.leave(learner.enter(learner.module(Z))) for Z in (X, support.X))
        attention = (-(torch.cdist(Q, K) ** 2) / 8**0.5).softmax(1)
        expected = torch.stack([attention[:, support.y == c].sum(1) for c in range(3)])
    torch.testing.assert_close(scores(learner, support, X).softmax(1), expected.T)


def test_adapting_changes_no_parameter_and_memory_grows_with_the_support_set():
    tasks = make_linear_tasks(6, n_support=(3, 9), random_state=0)
    net = TaskNet(module__hidden=(8,), max_epochs=1)
    meta = InContextRegressor(net, width=8, n_heads=2, n_layers=3).fit(tasks)
    before = {k: v.clone() for k, v in meta.learner_.state_dict().items()}
    for task in tasks:
        state = meta.adapt(task.X_support, task.y_support).state_
        n = len(task.y_support)
        assert [memory.keys.shape for memory in state.memories] == [(2, n, 4)] * 3
        assert state.rows.shape == (n, 8)
    for name, value in meta.learner_.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_more_classes_than_in_training():
    meta = InContextClassifier(TaskNet(module__hidden=(8,), max_epochs=1), width=8)
    meta.fit(make_blob_tasks(6, n_classes=3, random_state=0))
    new = make_blob_tasks(1, n_classes=6, random_state=1)[0]
    few_shot = meta.adapt(new.X_support, new.y_support)
    assert few_shot.predict_proba(new.X_query).shape[1] == 6


def test_it_learns_what_labels_mean_in_each_task():
    """New local classes that no one has seen: better than chance by far."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(scale=3.0, size=(60, 5)), 10, 0)
    X, y = X + rng.normal(size=X.shape), np.repeat(np.arange(60), 10)
    episodes = {"n_way": 4, "n_shot": 2, "n_query": 4, "random_state": 0}
    old = EpisodeSampler(X[:400], y[:400], n_episodes=200, **episodes)
    new = EpisodeSampler(X[400:], y[400:], n_episodes=30, **episodes)
    meta = InContextClassifier(TaskNet(max_epochs=1), width=16, random_state=0)
    assert meta.fit(old).score(new) > 0.8


@pytest.mark.parametrize("option", ["width", "n_heads", "n_layers"])
def test_bad_parameters(option):
    meta = InContextClassifier(**{option: 0})
    with pytest.raises(ValueError, match=f"'{option}' parameter"):
        meta.fit(make_blob_tasks(3, random_state=0))


def test_heads_must_divide_the_width():
    meta = InContextClassifier(width=10, n_heads=4)
    with pytest.raises(ValueError, match="width must be a multiple of n_heads"):
        meta.fit(make_blob_tasks(3, random_state=0))
