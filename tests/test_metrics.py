"""Scores over tasks: means, intervals, gains, and any metric of sklearn."""

import pickle

import numpy as np
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.metrics import (
    balanced_accuracy_score,
    get_scorer,
    log_loss,
    make_scorer,
    mean_squared_error,
    roc_auc_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_meta import (
    ALPaCAClassifier,
    ALPaCARegressor,
    FewShotClassifier,
    FewShotRegressor,
    PrototypicalClassifier,
    Task,
    TaskNet,
    TaskTransformer,
    evaluate,
    task_scorer,
)
from sk_meta.metrics import Evaluation, mean_interval
from sk_meta.tasks import make_blob_tasks, make_linear_tasks


def small_net():
    return TaskNet(module__hidden=(8,), max_epochs=5, lr=0.01)


@pytest.fixture(scope="module")
def blobs():
    """(fitted classifier, new tasks): sizes differ, labels are strings."""
    tasks = make_blob_tasks(
        14, n_classes=2, n_query=(3, 20), n_features=4, labels="shared", random_state=0
    )
    named = [Task(t.X, np.array(["no", "yes"])[t.y], t.support) for t in tasks]
    return ALPaCAClassifier(small_net(), random_state=0).fit(named[:8]), named[8:]


@pytest.fixture(scope="module")
def lines():
    tasks = make_linear_tasks(14, n_features=3, n_query=(3, 20), random_state=0)
    return ALPaCARegressor(small_net(), random_state=0).fit(tasks[:8]), tasks[8:]


def by_hand(meta, tasks, metric):
    """A metric of labels, task by task, through adapt."""
    return [
        metric(t.y_query, meta.adapt(t.X_support, t.y_support).predict(t.X_query))
        for t in tasks
    ]


def test_a_task_counts_as_one_however_many_rows_it_has(blobs):
    meta, tasks = blobs
    scores = by_hand(meta, tasks, lambda y, found: np.mean(y == found))
    assert meta.score(tasks) == pytest.approx(np.mean(scores))
    rows = sum(len(t.y_query) * s for t, s in zip(tasks, scores, strict=True))
    assert meta.score(tasks) != pytest.approx(rows / sum(len(t.y_query) for t in tasks))


def test_task_scorer_of_labels(blobs):
    meta, tasks = blobs
    expected = np.mean(by_hand(meta, tasks, balanced_accuracy_score))
    assert task_scorer("balanced_accuracy")(meta, tasks) == pytest.approx(expected)


def test_task_scorer_of_probabilities(blobs):
    meta, tasks = blobs
    proba = meta.predict_proba(tasks)
    auc, loss = (
        [metric(t.y_query, p) for t, p in zip(tasks, proba, strict=True)]
        for metric in (lambda y, p: roc_auc_score(y, p[:, 1]), log_loss)
    )
    assert task_scorer("roc_auc")(meta, tasks) == pytest.approx(np.mean(auc))
    assert task_scorer("neg_log_loss")(meta, tasks) == pytest.approx(-np.mean(loss))


def test_task_scorer_of_targets(lines):
    meta, tasks = lines
    expected = -np.mean(by_hand(meta, tasks, mean_squared_error))
    scorer = task_scorer("neg_mean_squared_error")
    assert scorer(meta, tasks) == pytest.approx(expected, rel=1e-4)


def test_task_scorer_takes_a_scorer_and_pickles(blobs):
    meta, tasks = blobs
    scorer = task_scorer(make_scorer(balanced_accuracy_score))
    assert scorer(meta, tasks) == task_scorer("balanced_accuracy")(meta, tasks)
    for name in ("balanced_accuracy", get_scorer("roc_auc")):
        copy = pickle.loads(pickle.dumps(task_scorer(name)))
        assert copy(meta, tasks) == task_scorer(name)(meta, tasks)
    assert repr(task_scorer("roc_auc")) == "task_scorer('roc_auc')"


def test_task_scorer_uses_weights(blobs):
    meta, tasks = blobs
    weighted = []
    for task, found in zip(tasks, meta.predict(tasks), strict=True):
        weight = np.ones(len(task))
        weight[np.flatnonzero(~task.support)[found != task.y_query]] = 0
        weighted.append(Task(task.X, task.y, task.support, sample_weight=weight))
    assert task_scorer("accuracy")(meta, weighted) == 1 > meta.score(tasks)


def test_task_scorer_through_a_pipeline(blobs):
    _, tasks = blobs
    meta = PrototypicalClassifier(small_net(), random_state=0)
    pipe = make_pipeline(TaskTransformer(StandardScaler()), meta).fit(tasks)
    assert task_scorer("accuracy")(pipe, tasks) == pytest.approx(pipe.score(tasks))


def test_evaluate_scores_each_task_and_the_same_without_a_prior(blobs):
    meta, tasks = blobs
    found = evaluate(meta, tasks)
    scores = by_hand(meta, tasks, lambda y, labels: np.mean(y == labels))
    np.testing.assert_allclose(found.scores, scores)
    plain = [
        FewShotClassifier().fit(t.X_support, t.y_support).score(t.X_query, t.y_query)
        for t in tasks
    ]
    np.testing.assert_allclose(found.baseline_scores, plain)
    np.testing.assert_allclose(found.gain, np.subtract(scores, plain))
    assert found.mean == pytest.approx(meta.score(tasks))
    assert found.names == [t.name for t in tasks] and found.metric == "accuracy"


def test_evaluate_regression(lines):
    meta, tasks = lines
    found = evaluate(meta, tasks, scoring="neg_root_mean_squared_error")
    plain = [
        -np.sqrt(
            mean_squared_error(
                t.y_query,
                FewShotRegressor().fit(t.X_support, t.y_support).predict(t.X_query),
            )
        )
        for t in tasks
    ]
    np.testing.assert_allclose(found.baseline_scores, plain, rtol=1e-5)
    assert evaluate(meta, tasks).metric == "r2"
    assert evaluate(meta, tasks).mean == pytest.approx(meta.score(tasks), rel=1e-4)


def test_evaluate_compares_on_the_same_drawn_rows_and_features(blobs):
    """Without a network to speak of, a prototype is the class mean: no gain."""
    _, tasks = blobs
    pairs = [(t.X * [1, 10, 100, 1000], t.y) for t in tasks]

    class Same(PrototypicalClassifier):
        def predict_tasks(self, tasks):
            return [self._plain(found) for found in super().predict_tasks(tasks)]

        def _plain(self, found):
            X, y = found.task.X, found.task.y
            plain = FewShotClassifier().fit(X[found.support], y[found.support])
            return found._replace(values=plain.predict_proba(X[found.query]))

    for transformer in (StandardScaler(), "passthrough"):
        steps = [] if transformer == "passthrough" else [TaskTransformer(transformer)]
        pipe = make_pipeline(*steps, Same(small_net(), support_size=2, random_state=0))
        found = evaluate(pipe.fit(pairs), pairs)
        assert np.array_equal(found.scores, found.baseline_scores)


def test_a_class_that_the_support_set_lacks_is_scored(blobs):
    meta, tasks = blobs
    task = tasks[0]
    lacking = Task(task.X, task.y, task.support & (task.y == "no"))
    found = evaluate(meta, [lacking])
    assert found.baseline_scores[0] == np.mean(lacking.y_query == "no")


def test_interval_is_the_t_interval():
    values = np.random.default_rng(0).normal(size=20)
    mean, half = mean_interval(values)
    low, high = stats.t.interval(0.95, 19, values.mean(), stats.sem(values))
    assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))
    assert mean_interval(values, 0.5)[1] < half
    assert mean_interval([2.0])[0] == 2 and np.isnan(mean_interval([2.0])[1])


def test_evaluation_says_who_got_worse():
    scores, plain = np.array([0.5, 0.9, 0.2, 0.7]), np.array([0.6, 0.5, 0.9, 0.7])
    found = Evaluation(scores, plain, ["a", "b", "c", "d"], "accuracy")
    assert found.worse == [2, 0]
    assert found.interval[0] < found.mean < found.interval[1]
    assert "over 4 tasks" in str(found) and "2 tasks got worse" in str(found)


def test_tasks_too_small_for_r2_are_left_out(lines):
    meta, tasks = lines
    small = Task(tasks[0].X, tasks[0].y, np.arange(len(tasks[0])) > 0)
    assert meta.score([*tasks, small]) == pytest.approx(meta.score(tasks), rel=1e-5)
    with pytest.raises(ValueError, match="two labelled query rows"):
        meta.score([small])
    assert np.isfinite(task_scorer("neg_mean_squared_error")(meta, [small]))


def test_a_clone_scores_the_same(blobs):
    meta, tasks = blobs
    again = clone(meta).fit(tasks)
    assert evaluate(again, tasks).mean == again.score(tasks)
