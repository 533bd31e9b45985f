"""Faults that a review found, each with what shows that it is gone."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
from scipy import sparse
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sk_meta import (
    ALPaCARegressor,
    EpisodeSampler,
    FewShotRegressor,
    MAMLClassifier,
    PrototypicalClassifier,
    Task,
    TaskNet,
    TaskTransformer,
    adapt,
    evaluate,
    task_scorer,
)
from sk_meta.tasks import make_blob_tasks, make_sinusoids


@pytest.fixture(scope="module")
def tasks():
    sizes = {"n_support": 4, "n_query": 6}
    return make_blob_tasks(8, n_classes=3, labels="shared", random_state=0, **sizes)


@pytest.fixture(scope="module")
def maml(tasks):
    net = TaskNet(module__hidden=(8,), max_epochs=2)
    return MAMLClassifier(net, inner_lr=0.1, random_state=0).fit(tasks)


def test_threads_do_not_disturb_each_other(maml, tasks):
    adapted = [maml.adapt(task.X_support, task.y_support) for task in tasks]
    X = tasks[0].X_query
    alone = [few_shot.predict_proba(X) for few_shot in adapted]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            together = pool.map(lambda few_shot: few_shot.predict_proba(X), adapted)
            for one, other in zip(alone, together, strict=True):
                np.testing.assert_array_equal(one, other)


def test_training_on_leaves_what_was_adapted(maml, tasks):
    meta = deepcopy(maml)
    few_shot = meta.adapt(tasks[0].X_support, tasks[0].y_support)
    before = few_shot.predict_proba(tasks[0].X_query)
    meta.partial_fit(tasks)
    np.testing.assert_array_equal(few_shot.predict_proba(tasks[0].X_query), before)
    assert not np.allclose(
        meta.adapt(tasks[0].X_support, tasks[0].y_support).predict_proba(
            tasks[0].X_query
        ),
        before,
    )


@pytest.mark.parametrize("metric", ["neg_log_loss", "roc_auc"])
def test_metrics_of_probabilities_on_a_query_set_that_lacks_a_class(
    maml, tasks, metric
):
    keep = tasks[0].support | (tasks[0].y != 2)
    lacking = Task(tasks[0].X[keep], tasks[0].y[keep], tasks[0].support[keep])
    assert np.isfinite(task_scorer(metric)(maml, [lacking]))


def test_a_metric_in_place_of_a_scorer_is_refused():
    with pytest.raises(ValueError, match="make_scorer"):
        task_scorer(f1_score)


def test_r2_of_one_row_is_left_out():
    net = TaskNet(module__hidden=(8,), max_epochs=1)
    old = make_sinusoids(6, random_state=0)
    meta = ALPaCARegressor(net, random_state=0).fit(old)
    short = Task(old[0].X[:6], old[0].y[:6], support=range(5))
    expected = meta.score([old[1]])
    assert task_scorer("r2")(meta, [short, old[1]]) == pytest.approx(expected)
    result = evaluate(meta, [short, old[1]])
    assert np.isnan(result.scores[0])
    assert result.mean == pytest.approx(expected)


def test_sparse_encodings_reach_the_learner():
    rng = np.random.default_rng(0)
    old = [
        Task(rng.choice(list("abc"), (12, 1)), rng.permutation(np.arange(12) % 2))
        for _ in range(5)
    ]
    assert sparse.issparse(OneHotEncoder().fit_transform(old[0].X))
    meta = PrototypicalClassifier(TaskNet(max_epochs=1), support_size=2, random_state=0)
    pipe = make_pipeline(TaskTransformer(OneHotEncoder()), meta).fit(old)
    few_shot = adapt(pipe, old[0].X[:6], old[0].y[:6])
    assert few_shot.predict(old[0].X[6:]).shape == (6,)


def test_numbers_written_as_text_are_refused():
    X = np.array([["1.0"], ["2.0"], ["3.0"], ["4.0"]], dtype=object)
    with pytest.raises(ValueError, match="not real numbers"):
        PrototypicalClassifier(support_size=1).fit([(X, [0, 1, 0, 1])])


def test_adapting_the_wrong_kind_is_refused(maml):
    with pytest.raises(TypeError, match="cannot adapt a MAMLClassifier"):
        FewShotRegressor(FrozenEstimator(maml)).fit(np.zeros((2, 2)), [0.0, 1.0])


def test_scoring_on_the_classes_of_training_warns():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 3)), np.repeat(np.arange(6), 10)
    episodes = EpisodeSampler(X, y, n_way=3, n_shot=1, n_query=2, n_episodes=8)
    meta = PrototypicalClassifier(TaskNet(max_epochs=1), random_state=0)
    meta.fit(episodes[:6])
    with pytest.warns(UserWarning, match="split_classes"):
        meta.score(episodes[6:])


def test_images_may_come_flattened_to_an_adapted_model():
    rng = np.random.default_rng(0)
    old = [Task(rng.normal(size=(8, 1, 4, 4)), np.arange(8) % 2) for _ in range(3)]
    meta = PrototypicalClassifier(
        TaskNet(module__n_filters=4, max_epochs=1), support_size=2, random_state=0
    ).fit(old)
    few_shot = meta.adapt(old[0].X, old[0].y)
    assert few_shot.n_features_in_ == 16
    flat = few_shot.predict_proba(old[0].X.reshape(8, 16))
    np.testing.assert_array_equal(flat, few_shot.predict_proba(old[0].X))


def test_a_bare_transformer_says_what_to_do(tasks):
    with pytest.raises((TypeError, ValueError), match="TaskTransformer"):
        StandardScaler().fit(tasks)


def test_validation_tasks_of_ones_own_say_what_to_do(tasks):
    net = TaskNet(max_epochs=1, train_split=lambda dataset: (dataset, [1, 2]))
    with pytest.raises(TypeError, match="PredefinedSplit"):
        MAMLClassifier(net).fit(tasks)
