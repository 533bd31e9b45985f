"""FusionClassifier and FusionRegressor."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn

from sk_meta import (
    ALPaCARegressor,
    EpisodeSampler,
    FusionClassifier,
    FusionRegressor,
    InContextRegressor,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    PrunedLearner,
    R2D2Classifier,
    R2D2Regressor,
    Task,
    TaskNet,
    TaskTransformer,
    TransferClassifier,
    check_meta_estimator,
    evaluate,
    task_scorer,
)
from sk_meta.ensemble.members import leave_one_out
from sk_meta.ensemble.weights import simplex_weights, support_weights
from sk_meta.predictions import TaskPrediction
from sk_meta.task_by_task import SupportRows
from sk_meta.tasks import make_blob_tasks

NET = TaskNet(module__hidden=(8,), max_epochs=2)


def classifiers(net=NET):
    return [
        ("prototypes", PrototypicalClassifier(net, random_state=0)),
        ("maml", MAMLClassifier(net, random_state=0)),
    ]


def regressors(net=NET):
    return [
        ("alpaca", ALPaCARegressor(net, random_state=0)),
        ("in_context", InContextRegressor(net, random_state=0)),
    ]


def frozen(learners, tasks):
    return [(name, FrozenEstimator(meta.fit(tasks))) for name, meta in learners]


def values_of(meta, tasks):
    return [found.values for found in meta.predict_tasks(tasks)]


def test_uniform_average_is_the_mean(blobs):
    meta = FusionClassifier(frozen(classifiers(), blobs)).fit(blobs)
    parts = [values_of(member, blobs) for _, member in meta.learners_]
    for found, *of_members in zip(values_of(meta, blobs), *parts, strict=True):
        np.testing.assert_allclose(found, np.mean(of_members, axis=0))


def test_one_learner_is_itself(sinusoids):
    learners = frozen(regressors()[:1], sinusoids)
    for weights in ("uniform", "learned", "support", [3.0]):
        meta = FusionRegressor(learners, weights=weights).fit(sinusoids)
        alone = learners[0][1].estimator.predict(sinusoids, return_std=True)
        for one, other in zip(
            meta.predict(sinusoids, return_std=True), alone, strict=True
        ):
            for found, expected in zip(one, other, strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("weights", ["uniform", "learned", "support", [1, 3]])
@pytest.mark.parametrize("labels", ["shared", "local"])
def test_adapt_agrees_with_predict_over_tasks(weights, labels):
    tasks = make_blob_tasks(8, n_classes=3, labels=labels, random_state=0)
    meta = FusionClassifier(frozen(classifiers(), tasks), weights=weights).fit(tasks)
    for task, found in zip(tasks, values_of(meta, tasks), strict=True):
        few_shot = meta.adapt(task.X_support, task.y_support)
        proba = few_shot.predict_proba(task.X_query)
        np.testing.assert_allclose(proba, found, rtol=1e-4, atol=1e-6)
        again = pickle.loads(pickle.dumps(few_shot))
        np.testing.assert_array_equal(again.predict_proba(task.X_query), proba)


def test_mixture_std_holds_the_disagreement(sinusoids):
    learners = frozen(regressors(), sinusoids)
    meta = FusionRegressor(learners, weights=[0.25, 0.75]).fit(sinusoids)
    rng = np.random.default_rng(0)
    mean, std = (array[0] for array in meta.predict(sinusoids[:1], return_std=True))
    parts = [m.predict(sinusoids[:1], return_std=True) for _, m in meta.learners_]
    draws = np.concatenate(
        [
            rng.normal(m[0], s[0], (n, len(mean)))
            for (m, s), n in zip(parts, (25_000, 75_000), strict=True)
        ]
    )
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=0.02)
    np.testing.assert_allclose(draws.std(axis=0), std, rtol=0.02)


def test_no_std_unless_all_have_one(sinusoids):
    learners = [*regressors()[:1], ("maml", MAMLRegressor(NET, random_state=0))]
    meta = FusionRegressor(learners).fit(sinusoids)
    with pytest.raises(ValueError, match="no standard deviation"):
        meta.predict(sinusoids, return_std=True)
    few_shot = meta.adapt(sinusoids[0].X_support, sinusoids[0].y_support)
    with pytest.raises(ValueError, match="no standard deviation"):
        few_shot.predict(sinusoids[0].X_query, return_std=True)


def predicted(values, y, std=None, classes=None):
    rows = np.arange(len(y))
    task = Task(np.zeros((len(y), 1)), y)
    return TaskPrediction(task, rows[:0], rows, classes, values, std)


def test_learned_weights_find_the_best_mixture():
    rng = np.random.default_rng(0)
    tasks = [rng.normal(size=20) for _ in range(30)]
    noise = [[rng.normal(size=20) * s for _ in tasks] for s in (1.0, 1.0, 2.0)]
    members = [
        [predicted(y + e, y) for y, e in zip(tasks, errors, strict=True)]
        for errors in noise
    ]
    weights = simplex_weights(members)
    # Independent errors: inverse variances.
    np.testing.assert_allclose(weights, [4 / 9, 4 / 9, 1 / 9], atol=0.08)
    flat = np.array([np.concatenate(errors) for errors in noise])

    def loss(w):
        return ((w @ flat) ** 2).mean()

    others = rng.dirichlet(np.ones(3), 500)
    assert loss(weights) <= min(map(loss, others)) + 1e-9


def test_learned_weights_of_probabilities():
    rng = np.random.default_rng(0)
    members = [[], []]
    for _ in range(20):
        y = rng.integers(2, size=10)
        knows_odd = np.where(np.arange(10) % 2, y, 0.5)
        knows_even = np.where(np.arange(10) % 2, 0.5, y)
        for found, one in zip(members, (knows_odd, knows_even), strict=True):
            proba = np.clip(np.stack([1 - one, one], axis=1), 0.02, 0.98)
            found.append(predicted(proba, y, classes=np.arange(2)))
    np.testing.assert_allclose(simplex_weights(members), [0.5, 0.5], atol=0.02)
    useless = [
        [one._replace(values=np.full((10, 2), 0.5)) for one in members[0]],
        members[1],
    ]
    assert simplex_weights(useless)[1] > 0.99


def test_support_weights_are_bayes_rule():
    y = np.array([0.0, 1.0, 2.0])
    good = [predicted(y, y, std=np.ones(3))]
    bad = [predicted(y + 1, y, std=np.ones(3))]
    weights = support_weights([good, bad])
    np.testing.assert_allclose(weights[1] / weights[0], np.exp(-1.5))
    # Rows count by their weights.
    rows = [predicted(y[i : i + 1], y[i : i + 1], std=np.ones(1)) for i in range(3)]
    for found, weight in zip(rows, (0.5, 0.5, 2.0), strict=True):
        found.task.sample_weight = np.array([weight])
    worse = [one._replace(values=one.values + i) for i, one in enumerate(rows)]
    found = support_weights([rows, worse])
    np.testing.assert_allclose(found[1] / found[0], np.exp(-0.5 * (0.5 + 4 * 2.0)))
    order = support_weights([bad, good])
    np.testing.assert_allclose(order, weights[::-1])
    assert np.allclose(support_weights([[], []]), 0.5)


def test_rows_left_out_are_those_that_can_be_spared(blobs):
    schema = R2D2Classifier(NET, random_state=0).fit(blobs).schema_
    y = np.array(["a", "a", "b", "b", "b", "c"])
    y = schema.classes[[0, 0, 1, 1, 1, 2]]
    support = SupportRows(np.zeros((6, 2)), y, None, None, schema.classes)
    tasks = leave_one_out(support, schema)
    assert [int(np.flatnonzero(~task.support)[0]) for task in tasks] == [0, 1, 2, 3, 4]
    weight = np.array([1, 1, 0, 1, 1, 1.0])
    tasks = leave_one_out(support._replace(weight=weight), schema)
    assert len(tasks) == 4


def test_support_weights_follow_the_task(sinusoids):
    """Each learner knows another half: the support set tells which one is asked for."""
    rng = np.random.default_rng(0)

    def tasks(slope, n):
        X = rng.normal(size=(n, 12, 1))
        return [Task(x, slope * x[:, 0], support=range(6)) for x in X]

    net = TaskNet(module__hidden=(), max_epochs=300, lr=0.05)
    learners = [
        ("up", FrozenEstimator(JointlyFitted(net).fit(tasks(2.0, 8)))),
        ("down", FrozenEstimator(JointlyFitted(net).fit(tasks(-2.0, 8)))),
    ]
    both = tasks(2.0, 4) + tasks(-2.0, 4)
    meta = FusionRegressor(learners, weights="support").fit(both)
    for task, best in zip(both, [0] * 4 + [1] * 4, strict=True):
        assert meta.support_weights(task.X_support, task.y_support)[best] > 0.99
    assert meta.score(both) > 0.9
    with pytest.raises(AttributeError, match="weights of its own"):
        _ = meta.weights_


def JointlyFitted(net):
    from sk_meta import JointRegressor

    return JointRegressor(net, n_adapt_steps=0, random_state=0)


def test_concatenate_is_a_head_on_all_features(local_blobs):
    learners = [
        ("prototypes", PrototypicalClassifier(NET, random_state=0)),
        ("r2d2", R2D2Classifier(NET, random_state=1)),
    ]
    learners = frozen(learners, local_blobs)
    meta = FusionClassifier(learners, how="concatenate", head=RidgeClassifier())
    meta.fit(local_blobs)
    task = local_blobs[0]
    both = [member.estimator.embed for _, member in learners]

    def features(X):
        blocks = []
        for embed in both:
            pooled = np.concatenate([embed(t.X) for t in local_blobs])
            spread = np.sqrt(pooled.var(axis=0).sum())
            blocks.append((embed(X) - pooled.mean(axis=0)) / spread)
        return np.hstack(blocks)

    head = RidgeClassifier().fit(features(task.X_support), task.y_support)
    few_shot = meta.adapt(task.X_support, task.y_support)
    np.testing.assert_array_equal(
        few_shot.predict(task.X_query), head.predict(features(task.X_query))
    )
    assert few_shot.predict_proba(task.X_query).shape == (len(task.X_query), 3)


def test_support_weights_of_pipelines_see_rows_once():
    tasks = make_blob_tasks(
        8, n_classes=3, n_support=9, labels="shared", random_state=0
    )
    learners = [
        ("pca", make_pipeline(TaskTransformer(PCA(2)), classifiers()[0][1])),
        ("r2d2", clone(R2D2)),
    ]
    meta = FusionClassifier(learners, weights="support", random_state=0).fit(tasks)
    for task, found in zip(tasks, values_of(meta, tasks), strict=True):
        few_shot = meta.adapt(task.X_support, task.y_support)
        proba = few_shot.predict_proba(task.X_query)
        np.testing.assert_allclose(found, proba, rtol=1e-4, atol=1e-6)


def test_learners_of_a_soup_start_alike(sinusoids):
    nets = [TaskNet(module__hidden=(4,), max_epochs=0, lr=lr) for lr in (1e-3, 1e-2)]
    learners = [(f"{net.lr}", R2D2Regressor(net)) for net in nets]
    for seed in (0, None):
        meta = FusionRegressor(learners, "soup", random_state=seed).fit(sinusoids)
        one, other = (m.learner_.state_dict() for _, m in meta.learners_)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_members_without_a_network(local_blobs):
    learners = [
        ("pca", TransferClassifier(PCA(2), SVC())),
        ("prototypes", PrototypicalClassifier(NET)),
    ]
    for how, weights in [
        ("average", "learned"),
        ("average", "support"),
        ("concatenate", "uniform"),
    ]:
        meta = FusionClassifier(learners, how, weights, random_state=0)
        found = values_of(meta.fit(local_blobs), local_blobs)
        task = local_blobs[0]
        few_shot = meta.adapt(task.X_support, task.y_support)
        proba = few_shot.predict_proba(task.X_query)
        np.testing.assert_allclose(proba, found[0], rtol=1e-4, atol=1e-6)


def test_a_weight_of_zero_leaves_a_learner_out(sinusoids):
    learners = [(s, R2D2Regressor(NET, random_state=ord(s))) for s in "ab"]
    learners = frozen(learners, sinusoids)

    def outputs(learners, weights, how):
        meta = FusionRegressor(learners, how, weights)
        return np.concatenate(meta.fit(sinusoids).predict(sinusoids))

    both, one = outputs(learners, [2, 0], "average"), learners[:1]
    np.testing.assert_allclose(both, outputs(one, [1], "average"))
    # The features that are left weigh double in the penalty of the head.
    head = FusionRegressor(learners, "concatenate", [1, 0], head=Ridge(2e-9))
    alone = FusionRegressor(one, "concatenate", head=Ridge(1e-9))
    found, expected = (m.fit(sinusoids).predict(sinusoids) for m in (head, alone))
    for of_task, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(of_task, other, rtol=1e-3, atol=1e-3)


class Normed(nn.Module):
    def __init__(self, n_features=1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_features, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)
        )

    def forward(self, X):
        return self.layers(X)


NORMED = TaskNet(Normed, max_epochs=2)


def test_soup_is_one_learner_with_the_mean_parameters(blobs):
    first = PrototypicalClassifier(NORMED, random_state=0).fit(blobs)
    second = pickle.loads(pickle.dumps(first)).partial_fit(blobs[:5])
    learners = [("a", FrozenEstimator(first)), ("b", FrozenEstimator(second))]
    meta = FusionClassifier(learners, "soup", [1, 3]).fit(blobs)
    parts = [m.learner_.state_dict() for m in (first, second)]
    found = meta.soup_.learner_.state_dict()
    for name in found:
        if "weight" in name or "bias" in name:
            expected = 0.25 * parts[0][name] + 0.75 * parts[1][name]
            np.testing.assert_allclose(found[name], expected, atol=1e-6)
    np.testing.assert_array_equal(
        np.concatenate(values_of(meta, blobs)),
        np.concatenate(values_of(meta.soup_, blobs)),
    )
    task = blobs[0]
    few_shot = meta.adapt(task.X_support, task.y_support)
    assert (few_shot.predict(task.X_query) == meta.predict([task])[0]).mean() > 0.99


def test_soup_of_the_same_is_the_same(blobs):
    """Running statistics too: they are those of the parameters."""
    meta = PrototypicalClassifier(NORMED, random_state=0).fit(blobs)
    soups = [
        FusionClassifier([(s, FrozenEstimator(meta)) for s in names], "soup").fit(blobs)
        for names in ("a", "abc")
    ]
    for one, other in zip(*(values_of(soup, blobs) for soup in soups), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_learned_soup_is_not_behind_its_best_ingredient(sinusoids):
    good = R2D2Regressor(TaskNet(module__hidden=(8,), max_epochs=60), random_state=0)
    bad = R2D2Regressor(TaskNet(module__hidden=(8,), max_epochs=0), random_state=0)
    learners = frozen([("bad", bad), ("good", good)], sinusoids)
    meta = FusionRegressor(learners, "soup", "learned").fit(sinusoids)
    assert abs(meta.weights_.sum() - 1) < 1e-6 and (meta.weights_ >= 0).all()

    def loss(model):
        return -task_scorer("neg_mean_squared_error")(model, sinusoids)

    assert loss(meta) <= loss(learners[1][1].estimator) * 1.001


def test_learned_weights_hold_tasks_out_of_training(sinusoids, monkeypatch):
    seen = {}

    def fit(self, tasks, y=None):
        seen[type(self).__name__] = {id(task) for task in tasks}
        return original(self, tasks)

    original = ALPaCARegressor.fit
    for kind in (ALPaCARegressor, InContextRegressor):
        monkeypatch.setattr(kind, "fit", fit)
    meta = FusionRegressor(regressors(), weights="learned", validation=0.25)
    meta.fit(sinusoids)
    assert len(seen["ALPaCARegressor"]) == 12
    assert seen["ALPaCARegressor"] == seen["InContextRegressor"]
    assert (meta.weights_ >= 0).all() and abs(meta.weights_.sum() - 1) < 1e-9


def test_pipelines_frames_and_searches(blobs):
    columns = ["a", "b"]
    frames = [t.replace_X(pd.DataFrame(t.X[:, :2], columns=columns)) for t in blobs]
    learners = [
        (
            "scaled",
            make_pipeline(TaskTransformer(StandardScaler()), classifiers()[0][1]),
        ),
        (
            "by support",
            make_pipeline(TaskTransformer(StandardScaler(), "support"), clone(R2D2)),
        ),
    ]
    for how in ("average", "concatenate"):
        meta = FusionClassifier(learners, how, random_state=0).fit(frames)
        assert list(meta.feature_names_in_) == columns
        task = frames[0]
        few_shot = meta.adapt(task.X_support, task.y_support)
        found = few_shot.predict_proba(task.X_query)
        expected = meta.predict_proba([task])[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    search = GridSearchCV(
        FusionClassifier(classifiers()),
        {"weights": ["uniform", [1, 0]], "maml__inner_lr": [0.1]},
        cv=2,
    ).fit(blobs)
    assert search.best_estimator_.learners[1][1].inner_lr == 0.1
    piped = make_pipeline(
        TaskTransformer(StandardScaler()), FusionClassifier(classifiers())
    ).fit(blobs)
    assert evaluate(piped, blobs).scores.shape == (16,)


R2D2 = R2D2Classifier(NET, random_state=0)


def r2d2(tasks, name="a"):
    return frozen([(name, clone(R2D2))], tasks)


def test_learners_within_others_and_episodes(local_blobs):
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(12), 8)
    X = rng.normal(size=(96, 4)) + y[:, None]
    sampler = EpisodeSampler(X, y, n_way=3, n_shot=2, n_query=3, n_episodes=6)
    pruned = PrunedLearner(PrototypicalClassifier(NET), 0.5, random_state=0)
    inner = FusionClassifier(classifiers(), random_state=0)
    learners = [("pruned", pruned), ("fused", inner)]
    meta = FusionClassifier(learners, weights="support", random_state=0).fit(sampler)
    with pytest.warns(UserWarning, match="not new"):
        assert 0 <= meta.score(sampler) <= 1
    with pytest.raises(ValueError, match="split_classes"):
        FusionClassifier(learners, weights="learned").fit(sampler)


def test_members_are_left_alone(blobs):
    learners = frozen(classifiers(), blobs)
    before = pickle.dumps([m.estimator.learner_.state_dict() for _, m in learners])
    for how, weights in [("average", "support"), ("average", "learned")]:
        meta = FusionClassifier(learners, how, weights).fit(blobs)
        meta.adapt(blobs[0].X_support, blobs[0].y_support)
        meta.score(blobs)
    after = pickle.dumps([m.estimator.learner_.state_dict() for _, m in learners])
    assert after == before
    unfitted = classifiers()
    FusionClassifier(unfitted).fit(blobs)
    assert not hasattr(unfitted[0][1], "net_")


def test_reproducible(sinusoids):
    def fused():
        learners = [("a", ALPaCARegressor(NET)), ("m", MAMLRegressor(NET))]
        meta = FusionRegressor(learners, weights="learned", random_state=3)
        return np.concatenate(meta.fit(sinusoids).predict(sinusoids))

    np.testing.assert_array_equal(fused(), fused())


def test_before_fit(blobs):
    meta = FusionClassifier(classifiers())
    with pytest.raises(NotFittedError):
        meta.predict(blobs)
    with pytest.raises(NotFittedError):
        meta.adapt(blobs[0].X, blobs[0].y)


@pytest.mark.parametrize(
    "fusion",
    [
        FusionClassifier(classifiers(), weights=[1, 2]),
        FusionRegressor([("a", R2D2Regressor(NET)), ("b", R2D2Regressor(NET))], "soup"),
    ],
    ids=["average", "soup"],
)
def test_conventions(fusion):
    check_meta_estimator(fusion)
