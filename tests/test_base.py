"""Meta-estimators: sklearn's API, adaptation, prediction; nothing is lost in clone."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch.callbacks import EarlyStopping
from skorch.dataset import ValidSplit
from torch import nn

from sk_meta import (
    ALPaCAClassifier,
    ALPaCARegressor,
    EpisodeSampler,
    FewShotClassifier,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    Task,
    TaskNet,
)
from sk_meta.learner import RowLoss
from sk_meta.networks import MLP
from sk_meta.tasks import make_blob_tasks, make_linear_tasks, make_sinusoids

CLASSIFIERS = [MAMLClassifier, PrototypicalClassifier, ALPaCAClassifier]
REGRESSORS = [MAMLRegressor, ALPaCARegressor]


def small_net(**options):
    return TaskNet(**{"module__hidden": (8,), "max_epochs": 2, "lr": 1e-2, **options})


def without_support(tasks):
    return [Task(task.X, task.y, labels=task.labels) for task in tasks]


@pytest.fixture(scope="module")
def blobs():
    return make_blob_tasks(
        8, n_classes=3, n_support=(2, 4), n_features=4, labels="shared", random_state=0
    )


@pytest.fixture(scope="module")
def lines():
    return make_linear_tasks(8, n_features=4, n_support=(4, 8), random_state=0)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.1},
        {"max_epochs": 3},
        {"batch_size": 2},
        {"optimizer": torch.optim.SGD},
        {"optimizer__betas": (0.5, 0.9)},
        {"criterion": nn.L1Loss},
        {"train_split": ValidSplit(4)},
        {"module__hidden": (9,)},
        {"module__activation": nn.Tanh},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_parameter_of_the_net_acts_and_survives_clone(change, lines):
    net = small_net().set_params(**change)
    found = [
        np.concatenate(list(model.fit(lines).predict(lines)))
        for net in (small_net(), net)
        for model in [clone(MAMLRegressor(net, inner_lr=0.1, random_state=0))]
    ]
    assert not np.array_equal(*found)


def test_an_instance_of_a_network_is_cloned_and_left_alone(lines):
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    before = [parameter.clone() for parameter in network.parameters()]
    meta = MAMLRegressor(TaskNet(network, max_epochs=2), random_state=0)
    found = [clone(meta).fit(lines).predict(lines)[0] for _ in range(2)]
    assert np.array_equal(*found)
    assert all(map(torch.equal, before, network.parameters()))


def test_set_params_reaches_deep_into_the_net():
    meta = MAMLClassifier(net=TaskNet())
    meta.set_params(net__module__hidden=(5,), net__lr=0.2, net__optimizer__eps=1e-3)
    kept = clone(meta).get_params()
    assert kept["net__module__hidden"] == (5,)
    assert kept["net__lr"] == 0.2 and kept["net__optimizer__eps"] == 1e-3


def test_set_params_may_bring_the_net_along():
    meta = MAMLClassifier().set_params(net=TaskNet(), net__lr=0.3)
    assert meta.net.lr == 0.3


@pytest.mark.parametrize("kind", CLASSIFIERS + REGRESSORS)
def test_default_net(kind, blobs, lines, monkeypatch):
    monkeypatch.setattr(TaskNet, "fit_loop", lambda self, *a, **k: self)
    tasks = blobs if kind in CLASSIFIERS else lines
    meta = kind(random_state=0).fit(tasks)
    assert isinstance(meta.learner_.module, MLP)
    assert isinstance(meta.net_.criterion_, RowLoss)


def test_predict_tells_classes_of_each_task_by_value():
    tasks = make_blob_tasks(10, n_classes=4, n_support=2, separation=20, random_state=0)
    named = [
        Task(t.X, np.char.add(f"{i}_", t.y.astype(str)), t.support, labels="local")
        for i, t in enumerate(tasks)
    ]
    meta = PrototypicalClassifier(small_net(), random_state=0).fit(named)
    for i, (task, found) in enumerate(zip(named, meta.predict(named), strict=True)):
        assert all(label.startswith(f"{i}_") for label in found)
        assert np.mean(found == task.y_query) > 0.8


def test_labels_of_any_kind_give_the_same_numbers(blobs):
    meta = ALPaCAClassifier(small_net(), random_state=0)
    expected = clone(meta).fit(blobs).predict_proba(blobs)
    for labels in (["a", "b", "c"], [-3, 0, 7], [1.0, 2.0, 5.0]):
        labels = np.array(labels)
        tasks = [Task(t.X, labels[t.y], t.support) for t in blobs]
        renamed = clone(meta).fit(tasks)
        assert np.array_equal(renamed.classes_, labels)
        for one, other in zip(renamed.predict_proba(tasks), expected, strict=True):
            assert np.array_equal(one, other)
        assert set(np.concatenate(renamed.predict(tasks))) <= set(labels)


@pytest.mark.parametrize("kind", REGRESSORS)
def test_targets_are_scaled_back(kind, lines):
    """Shifting and scaling the targets does just that to what is predicted."""
    moved = [Task(t.X, 1e3 + 50 * t.y, t.support) for t in lines]
    meta = kind(small_net(), random_state=0)
    expected = clone(meta).fit(lines).predict(lines)
    for one, other in zip(clone(meta).fit(moved).predict(moved), expected, strict=True):
        np.testing.assert_allclose(one, 1e3 + 50 * other, rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("kind", REGRESSORS)
def test_many_targets(kind, lines):
    tasks = [Task(t.X, np.column_stack([t.y, 5 - t.y]), t.support) for t in lines]
    meta = kind(small_net(), random_state=0).fit(tasks)
    found = meta.predict(tasks)
    assert all(
        f.shape == (len(t.y_query), 2) for f, t in zip(found, tasks, strict=True)
    )
    few_shot = meta.adapt(tasks[0].X_support, tasks[0].y_support)
    np.testing.assert_allclose(
        few_shot.predict(tasks[0].X_query), found[0], rtol=1e-4, atol=1e-5
    )
    assert np.isfinite(meta.score(tasks))


def test_standard_deviations(lines):
    meta = ALPaCARegressor(small_net(), random_state=0).fit(lines)
    means, stds = meta.predict(lines, return_std=True)
    few_shot = meta.adapt(lines[0].X_support, lines[0].y_support)
    mean, std = few_shot.predict(lines[0].X_query, return_std=True)
    np.testing.assert_allclose(mean, means[0], rtol=1e-4)
    np.testing.assert_allclose(std, stds[0], rtol=1e-4)
    assert all((std > 0).all() for std in stds)


def test_no_standard_deviation_is_said(lines):
    meta = MAMLRegressor(small_net()).fit(lines)
    few_shot = meta.adapt(lines[0].X_support, lines[0].y_support)
    for predict, X in ((meta.predict, lines), (few_shot.predict, lines[0].X)):
        with pytest.raises(ValueError, match="no standard deviation"):
            predict(X, return_std=True)


def test_weights_move_a_regressor_towards_their_rows():
    tasks = make_linear_tasks(4, n_features=1, random_state=0)
    meta = ALPaCARegressor(small_net(), random_state=0).fit(tasks)
    X, y = np.zeros((2, 1)), np.array([-1.0, 1.0])
    low, high = (
        meta.adapt(X, y, sample_weight=weight).predict(X[:1])[0]
        for weight in ([10, 1], [1, 10])
    )
    assert low < high


def test_weights_count_in_the_score(blobs):
    meta = PrototypicalClassifier(small_net(), random_state=0).fit(blobs)
    found = meta.predict(blobs)
    weighted = []
    for task, labels in zip(blobs, found, strict=True):
        weight = np.ones(len(task))
        weight[np.flatnonzero(~task.support)[labels != task.y_query]] = 0
        weighted.append(Task(task.X, task.y, task.support, sample_weight=weight))
    assert meta.score(blobs) < meta.score(weighted) == 1


def test_only_labelled_query_rows_are_scored(blobs):
    meta = PrototypicalClassifier(small_net(), random_state=0).fit(blobs)
    task, found = blobs[0], meta.predict(blobs)[0]
    query = np.flatnonzero(~task.support)
    labeled = np.ones(len(task), dtype=bool)
    labeled[query[found != task.y_query]] = False
    partly = Task(task.X, task.y, task.support, labeled=labeled)
    assert meta.score([partly]) == 1
    assert np.array_equal(meta.predict([partly])[0], found)


def test_support_drawn_for_prediction_depends_on_the_task_alone(blobs):
    pairs = [(task.X, task.y) for task in blobs]
    meta = PrototypicalClassifier(small_net(), support_size=(1, 3), random_state=0)
    meta.fit(pairs)
    rows = [found.support for found in meta.predict_tasks(pairs)]
    shifted = [(X + 1, y) for X, y in pairs]
    for found, expected in zip(meta.predict_tasks(shifted), rows, strict=True):
        assert np.array_equal(found.support, expected)
    assert np.array_equal(meta.predict_tasks(pairs[3:])[0].support, rows[3])
    meta.set_params(evaluation_seed=5)
    assert any(
        not np.array_equal(found.support, expected)
        for found, expected in zip(meta.predict_tasks(pairs), rows, strict=True)
    )


@pytest.mark.filterwarnings("ignore:These episodes are drawn")
def test_episodes_take_the_place_of_tasks():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(8), 10)
    X = rng.normal(size=(8, 4))[y] * 5 + rng.normal(size=(80, 4))
    episodes = EpisodeSampler(X, y, n_way=3, n_shot=2, n_query=4, n_episodes=20)
    meta = PrototypicalClassifier(small_net(), random_state=0).fit(episodes)
    assert meta.score(episodes) > 0.9
    assert len(meta.predict(episodes)) == 20


def test_training_helps():
    tasks = make_sinusoids(60, random_state=0)
    net = TaskNet(module__hidden=(16,), max_epochs=30, lr=1e-2)
    meta = ALPaCARegressor(net, random_state=0).fit(tasks)
    losses = [row["train_loss"] for row in meta.history_]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.3


def test_early_stopping_restores_the_best(lines):
    net = small_net(
        max_epochs=20,
        lr=0.5,
        train_split=ValidSplit(4),
        callbacks=[EarlyStopping(patience=3, load_best=True)],
    )
    meta = MAMLRegressor(net, inner_lr=0.1, random_state=0).fit(lines)
    best = int(np.argmin([row["valid_loss"] for row in meta.history_]))
    assert len(meta.history_) < 20
    stopped = clone(meta).set_params(net__max_epochs=best + 1, net__callbacks=None)
    for one, other in zip(
        stopped.fit(lines).predict(lines), meta.predict(lines), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_verbose_shows_progress_and_default_is_silent(lines, capsys):
    MAMLRegressor(small_net()).fit(lines)
    assert capsys.readouterr() == ("", "")
    MAMLRegressor(small_net(), verbose=1).fit(lines)
    assert "2/2" in capsys.readouterr().err


def test_adapt_returns_a_frozen_estimator_that_clone_keeps(blobs):
    meta = PrototypicalClassifier(small_net(), random_state=0).fit(blobs)
    task = blobs[0]
    few_shot = meta.adapt(task.X_support, task.y_support)
    assert isinstance(few_shot, FewShotClassifier)
    again = clone(few_shot).fit(task.X_support, task.y_support)
    assert np.array_equal(
        again.predict_proba(task.X_query), few_shot.predict_proba(task.X_query)
    )
