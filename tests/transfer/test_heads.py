"""The heads of this package: CosineClassifier and FineTuning."""

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss

from sk_meta import (
    CosineClassifier,
    FineTuning,
    RowNet,
    TorchEncoder,
    TransferClassifier,
    TransferRegressor,
)
from sk_meta.tasks import make_blob_tasks, make_sinusoids

SMALL = RowNet(module__hidden=(12,), max_epochs=3)


def rows(n=40, n_classes=3):
    rng = np.random.default_rng(0)
    y = np.arange(n) % n_classes
    return rng.normal(size=(n, 4)) + 2 * np.eye(4)[y], y


def by_angle(X, y, X_new):
    """Cosines of rows and the mean directions of classes."""
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    means = np.stack([unit[y == k].mean(axis=0) for k in np.unique(y)])
    cosines = X_new @ means.T / np.linalg.norm(means, axis=1)
    return cosines / np.linalg.norm(X_new, axis=1, keepdims=True)


def test_lengths_of_rows_have_no_effect():
    (X, y), head = rows(), CosineClassifier()
    lengths = np.random.default_rng(1).uniform(0.1, 10, (40, 1))
    one, other = head.fit(X, y).predict_proba(X), None
    other = CosineClassifier().fit(lengths * X, y).predict_proba(3 * X)
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("params", [{"max_iter": 0}, {"alpha": 1e9}])
def test_it_starts_from_the_class_means(params):
    X, y = rows()
    head = CosineClassifier(scale=4.0, **params).fit(X, y)
    cosines = by_angle(X, y, X)
    assert np.array_equal(head.predict(X), cosines.argmax(axis=1))
    expected = np.exp(4 * cosines) / np.exp(4 * cosines).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(head.predict_proba(X), expected, atol=1e-6)


def test_training_lowers_the_loss_and_its_gradient_is_right():
    X, y = rows()
    losses = [
        log_loss(y, CosineClassifier(alpha=alpha).fit(X, y).predict_proba(X))
        for alpha in (1e9, 1.0, 1e-3)
    ]
    assert losses[0] > losses[1] > losses[2]
    head, rng = CosineClassifier(alpha=0.3), np.random.default_rng(0)
    W, start = rng.normal(size=(2, 3, 4))
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    member = (y[:, None] == np.arange(3)) * rng.uniform(size=(40, 1))
    _, gradient = head._loss(W.ravel(), unit, member, start)
    for i in range(12):
        step = 1e-6 * np.eye(12)[i]
        high, low = (
            head._loss(W.ravel() + sign * step, unit, member, start)[0]
            for sign in (1, -1)
        )
        assert gradient[i] == pytest.approx((high - low) / 2e-6, abs=1e-5)


def test_a_row_of_zeros_says_nothing():
    X, y = rows()
    proba = CosineClassifier().fit(X, y).predict_proba(np.zeros((1, 4)))
    np.testing.assert_allclose(proba, np.full((1, 3), 1 / 3))


def tuned(head, n_support=4, kind="linear", **task):
    """A fitted learner, a new task, and what the head makes of its support set."""
    *old, new = make_blob_tasks(
        9, n_classes=3, n_support=n_support, separation=3.0, random_state=0, **task
    )
    encoder = TorchEncoder(SMALL, head=kind)
    meta = TransferClassifier(encoder, head, random_state=0).fit(old)
    return meta, new, meta.adapt_state(new.X_support, new.y_support)[0]


def support_loss(meta, new):
    few_shot = meta.adapt(new.X_support, new.y_support)
    return log_loss(new.y_support, few_shot.predict_proba(new.X_support))


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_more_steps_lower_the_loss_on_the_support_set(kind):
    losses = []
    for n_steps in (0, 5, 40):
        head = FineTuning(1e-2, max_steps=n_steps, validation_fraction=None)
        meta, new, state = tuned(head, kind=kind)
        losses.append(support_loss(meta, new))
        assert state.n_steps == n_steps
    assert losses[0] > losses[1] > losses[2]


def test_it_starts_from_the_nearest_class_mean():
    meta, new, state = tuned(FineTuning(max_steps=0))
    Z, Z_new = meta.embed(new.X_support), meta.embed(new.X_query)
    means = np.stack([Z[new.y_support == k].mean(axis=0) for k in range(3)])
    nearest = ((Z_new[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert np.array_equal(state.predict(new.X_query.astype("f4")).argmax(1), nearest)


def changed_layers(meta, state):
    before = meta.encoder_.net_.module_.network.state_dict()
    after = state.network.network.state_dict()
    return [name for name in before if not torch.equal(before[name], after[name])]


def test_all_weights_change_but_those_of_the_encoder_stay():
    head = FineTuning(1e-2, max_steps=5, validation_fraction=None)
    meta, _, state = tuned(head)
    assert changed_layers(meta, state) == ["layers.0.weight", "layers.0.bias"]


def test_one_row_a_class_trains_the_last_layer_alone():
    meta, new, state = tuned(FineTuning(1e-2, max_steps=30), n_support=1)
    assert changed_layers(meta, state) == [] and state.n_steps == 30
    meta.set_params(head__max_steps=0)
    start, loss = meta.fit([new]), support_loss(meta, new)
    start.set_params(head__max_steps=30).fit([new])
    assert support_loss(start, new) < loss


def test_validation_stops_where_nothing_is_to_be_learned():
    rng = np.random.default_rng(0)
    head = FineTuning(1e-2, max_steps=300, patience=5)
    meta, _, _ = tuned(head)
    steps = [
        meta.adapt_state(rng.normal(size=(30, 10)), rng.permutation(30) % 3)[0].n_steps
        for _ in range(5)
    ]
    assert max(steps) < 100


def test_which_rows_are_for_validation():
    X = np.random.default_rng(0).normal(size=(21, 3)).astype(np.float32)
    strata = np.r_[np.zeros(12, int), np.ones(8, int), 2]
    head = FineTuning(random_state=0)
    held_out = head._validation_rows(X, strata)
    assert np.bincount(strata[held_out], minlength=3).tolist() == [3, 2, 0]
    assert np.array_equal(head._validation_rows(X[::-1], strata[::-1]), held_out[::-1])
    others = FineTuning(random_state=1)._validation_rows(X, strata)
    assert not np.array_equal(others, held_out)


def test_weight_counts_rows():
    head = FineTuning(1e-2, max_steps=5, validation_fraction=None)
    meta, new, _ = tuned(head)
    X, y, counts = new.X_support, new.y_support, np.arange(12) % 3 + 1
    order = np.repeat(np.arange(12), counts)
    weighted = meta.adapt(X, y, sample_weight=counts).predict_proba(new.X_query)
    repeated = meta.adapt(X[order], y[order]).predict_proba(new.X_query)
    np.testing.assert_allclose(weighted, repeated, atol=0.02)


def test_a_class_without_a_support_row_is_unlikely():
    for kind in ("linear", "cosine"):
        head = FineTuning(1e-2, max_steps=5)
        meta, new, _ = tuned(head, kind=kind, labels="shared")
        known = new.y_support < 2
        X, y = new.X_support[known], new.y_support[known]
        state, classes = meta.adapt_state(X, y)
        assert len(classes) == 3
        assert state.predict(new.X_query.astype("f4"))[:, 2].max() < 0.5


def test_targets_go_on_from_the_encoders_last_layer():
    *old, new = make_sinusoids(20, n_support=20, random_state=0)
    encoder = TorchEncoder(SMALL, random_state=0)
    X, y = new.X_support, new.y_support
    errors = []
    for n_steps in (0, 100):
        head = FineTuning(1e-2, max_steps=n_steps, validation_fraction=None)
        meta = TransferRegressor(encoder, head, random_state=0).fit(old)
        errors.append(np.mean((meta.adapt(X, y).predict(X) - y) ** 2))
    assert errors[1] < 0.8 * errors[0]
    same = TransferRegressor(FrozenEstimator(meta.encoder_), FineTuning(max_steps=0))
    found = same.fit(old).adapt(X, y).predict(X)
    with torch.no_grad():
        scaled = meta.encoder_.net_.module_(torch.tensor(X, dtype=torch.float32))
    scale, mean = meta.encoder_.target_scale_, meta.encoder_.target_mean_
    np.testing.assert_allclose(found, (scaled.numpy() * scale + mean)[:, 0], atol=1e-5)
