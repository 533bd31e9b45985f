"""Selecting features of tasks: by sklearn's tests on rows, and by importance."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import (
    SelectFromModel,
    SelectKBest,
    VarianceThreshold,
    f_classif,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_meta import (
    ALPaCARegressor,
    EpisodeSampler,
    PrototypicalClassifier,
    Task,
    TaskFeatureSelector,
    TaskNet,
    TaskTransformer,
    adapt,
)
from sk_meta.onnx import to_onnx

USEFUL = np.array([False, True, False, True, False])
NAMES = [f"column {i}" for i in range(5)]


def make_tasks(n_tasks=12, n_rows=16, seed=0):
    """Two of five features tell the classes apart, in a direction of each task's own.

    The fourth feature counts half as much as the second.
    """
    rng = np.random.default_rng(seed)
    tasks = []
    for _ in range(n_tasks):
        y = np.arange(n_rows) % 2
        X = rng.normal(size=(n_rows, 5)).astype(np.float32)
        signs = rng.choice([-1, 1], 2)
        X[:, 1] += 3 * signs[0] * y
        X[:, 3] += 2 * signs[1] * y
        tasks.append(Task(X, y))
    return tasks


TASKS = make_tasks()
X_NEW, Y_NEW = make_tasks(1, seed=1)[0].X, TASKS[0].y


def make_meta(**options):
    net = TaskNet(module__hidden=(8,), max_epochs=3)
    return PrototypicalClassifier(net, **{"random_state": 0, **options})


@pytest.fixture(scope="module")
def trained():
    return make_meta().fit(TASKS)


def select(meta, n_features=2, **options):
    options = {"random_state": 0, "n_repeats": 3, **options}
    return TaskFeatureSelector(FrozenEstimator(meta), n_features, **options)


# sklearn's own.


@pytest.mark.parametrize(
    "selector",
    [
        SelectKBest(f_classif, k=2),
        VarianceThreshold(1.5),
        SelectFromModel(LogisticRegression(), max_features=2, threshold=-np.inf),
    ],
    ids=lambda selector: type(selector).__name__,
)
@pytest.mark.parametrize("framed", [False, True])
def test_selectors_of_rows(selector, framed):
    # Pooled rows say something of a label only where it lies the same way in all tasks.
    tasks = make_tasks(4)
    for task in tasks:
        task.X[:, USEFUL] = np.abs(task.X[:, USEFUL]) * (2 * task.y - 1)[:, None] * 2
    if framed:
        tasks = [task.replace_X(pd.DataFrame(task.X, columns=NAMES)) for task in tasks]
    pipe = make_pipeline(TaskTransformer(selector), make_meta()).fit(tasks)
    rows = clone(selector).fit(
        np.concatenate([task.X for task in tasks]),
        np.concatenate([task.y for task in tasks]),
    )
    fitted = pipe[0].transformer_
    np.testing.assert_array_equal(fitted.get_support(), rows.get_support())
    np.testing.assert_array_equal(fitted.get_support(), USEFUL)
    assert pipe[-1].n_features_in_ == 2
    model = adapt(pipe, tasks[0].X, tasks[0].y)
    assert model.predict_proba(tasks[0].X).shape == (16, 2)
    alone = pipe[-1].adapt(np.asarray(tasks[0].X)[:, USEFUL], tasks[0].y)
    np.testing.assert_allclose(
        model.predict_proba(tasks[0].X),
        alone.predict_proba(np.asarray(tasks[0].X)[:, USEFUL]),
    )


def test_selectors_on_each_support_set():
    each = TaskTransformer(SelectKBest(f_classif, k=1), scope="support")
    pipe = make_pipeline(each, make_meta()).fit(TASKS)
    X = np.random.default_rng(0).normal(size=(16, 5))
    X[:, 4] = Y_NEW + 0.01 * X[:, 4]
    model = adapt(pipe, X, Y_NEW)
    assert model[0].get_support(indices=True).tolist() == [4]


# By importance.


def test_useful_features_stay(trained):
    selector = select(trained).fit(TASKS)
    np.testing.assert_array_equal(selector.get_support(), USEFUL)
    assert selector.get_support(indices=True).tolist() == [1, 3]
    importances = selector.importances_.mean(1)
    assert importances[1] > importances[3] > np.abs(importances[~USEFUL]).max()
    assert selector.importances_.shape == (5, 3)
    assert selector.score_ == pytest.approx(trained.score(TASKS))


def test_a_feature_that_nothing_looks_at_has_no_importance():
    meta = make_meta().fit(TASKS)
    meta.learner_.module.layers[0].weight.data[:, [0, 2]] = 0
    selector = select(meta, 3).fit(TASKS)
    assert (selector.importances_[[0, 2]] == 0).all()
    assert (selector.importances_[1] > 0).all()


def test_a_feature_that_is_constant_in_each_task_has_none(trained):
    tasks = [task.replace_X(task.X.copy()) for task in TASKS]
    for i, task in enumerate(tasks):
        task.X[:, 1] = i
    assert (select(trained).fit(tasks).importances_[1] == 0).all()


def test_order_of_features_does_not_matter():
    order = np.array([3, 0, 4, 1, 2])
    swapped = [task.replace_X(task.X[:, order]) for task in TASKS]
    meta = make_meta().fit(TASKS)
    found = select(meta).fit(TASKS).importances_
    first = meta.learner_.module.layers[0].weight
    first.data = first.data[:, order]
    again = select(meta).fit(swapped).importances_
    np.testing.assert_allclose(again, found[order], atol=1e-12)


def test_regression():
    rng = np.random.default_rng(0)
    tasks = []
    for slope in rng.normal(size=12):
        X = rng.normal(size=(20, 3))
        tasks.append((X, slope * X[:, 2] + 0.01 * rng.normal(size=20)))
    meta = ALPaCARegressor(TaskNet(module__hidden=(8,), max_epochs=20), random_state=0)
    for scoring in (None, "neg_mean_squared_error"):
        selector = TaskFeatureSelector(meta, 1, scoring=scoring, random_state=0)
        assert selector.fit(tasks).get_support().tolist() == [False, False, True]


def test_scoring(trained):
    selector = select(trained, scoring="neg_log_loss").fit(TASKS)
    assert selector.score_ < 0
    np.testing.assert_array_equal(selector.get_support(), USEFUL)


@pytest.mark.parametrize(
    "wanted, n_kept", [(1, 1), (4, 4), (5, 5), (0.4, 2), (0.01, 1)]
)
def test_how_many(trained, wanted, n_kept):
    selector = select(trained, wanted, n_repeats=1).fit(TASKS)
    assert selector.get_support().sum() == n_kept
    transformed = selector.transform(TASKS)
    assert all(task.X.shape == (16, n_kept) for task in transformed)
    np.testing.assert_array_equal(transformed[0].X, TASKS[0].X[:, selector.support_])
    np.testing.assert_array_equal(transformed[0].y, TASKS[0].y)


def test_pipeline():
    selector = TaskFeatureSelector(make_meta(), 2, random_state=0)
    pipe = make_pipeline(TaskTransformer(StandardScaler()), selector, make_meta())
    pipe.fit(TASKS)
    assert pipe[-1].n_features_in_ == 2 and 0.5 < pipe.score(TASKS) <= 1
    model = adapt(pipe, X_NEW, Y_NEW)
    probabilities = model.predict_proba(X_NEW)
    other = X_NEW.copy()
    other[:, ~USEFUL] += 100
    np.testing.assert_array_equal(model.predict_proba(other), probabilities)
    again = pickle.loads(pickle.dumps(pipe))
    found = adapt(again, X_NEW, Y_NEW).predict_proba(X_NEW)
    np.testing.assert_array_equal(found, probabilities)
    to_onnx(model)  # compares the file with the model


def test_number_of_features_is_a_hyperparameter(trained):
    pipe = make_pipeline(select(trained, n_repeats=1), make_meta())
    grid = {"taskfeatureselector__n_features_to_select": [1, 0.6]}
    search = GridSearchCV(pipe, grid, cv=2, error_score="raise").fit(TASKS)
    assert adapt(search, X_NEW, Y_NEW).predict(X_NEW).shape == (16,)


def test_frames(trained):
    tasks = [task.replace_X(pd.DataFrame(task.X, columns=NAMES)) for task in TASKS]
    selector = TaskFeatureSelector(make_meta(), 2, random_state=0, n_repeats=3)
    selector.set_output(transform="pandas")
    for fitted in (clone(selector).fit(tasks), selector.fit(tasks)):
        kept = fitted.transform(tasks)[0].X
        assert [*kept.columns] == ["column 1", "column 3"]
        assert fitted.get_feature_names_out().tolist() == [*kept.columns]
    np.testing.assert_array_equal(
        selector.importances_, select(trained).fit(TASKS).importances_
    )
    selector.set_output(transform="default")
    assert isinstance(selector.transform(tasks)[0].X, np.ndarray)
    selector.fit(TASKS)
    assert not hasattr(selector, "feature_names_in_")


def test_episodes():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(12), 8)
    X = rng.normal(size=(96, 4))
    X[:, 2] += 3 * y
    episodes = EpisodeSampler(X, y, n_way=2, n_shot=2, n_query=4, n_episodes=30)
    selector = TaskFeatureSelector(make_meta(), 1, random_state=0, n_repeats=1)
    transformed = selector.fit(episodes).transform(episodes)
    assert selector.get_support(indices=True).tolist() == [2]
    assert isinstance(transformed, EpisodeSampler) and transformed.X.shape == (96, 1)


def test_random_state_and_what_is_given(trained):
    tasks = copy.deepcopy(TASKS)
    before = {k: v.clone() for k, v in trained.learner_.state_dict().items()}
    unfitted = TaskFeatureSelector(make_meta(random_state=None), n_repeats=1)
    a, b, c = (
        clone(unfitted).set_params(random_state=seed).fit(tasks).importances_
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    assert not hasattr(unfitted.meta_learner, "net_")
    select(trained).fit(tasks)
    for name, value in trained.learner_.state_dict().items():
        assert (value == before[name]).all()
    for task, original in zip(tasks, TASKS, strict=True):
        np.testing.assert_array_equal(task.X, original.X)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"n_features_to_select": 0}, ValueError, "'n_features_to_select'"),
        ({"n_features_to_select": 1.5}, ValueError, "'n_features_to_select'"),
        ({"n_features_to_select": 6}, ValueError, "is 6, but the tasks have 5"),
        ({"n_repeats": 0}, ValueError, "'n_repeats'"),
        ({"scoring": "nothing"}, ValueError, "nothing"),
        ({"meta_learner": Ridge()}, TypeError, "got Ridge"),
        ({"meta_learner": FrozenEstimator(make_meta())}, NotFittedError, "not fitted"),
    ],
)
def test_bad_parameters_leave_it_as_it_was(trained, options, error, message):
    selector = select(trained, n_repeats=1).fit(TASKS)
    before = selector.get_support().copy()
    with pytest.raises(error, match=message):
        selector.set_params(**options).fit(TASKS)
    np.testing.assert_array_equal(selector.get_support(), before)


def test_bad_tasks(trained):
    images = [(np.zeros((4, 1, 2, 2)), [0, 1, 0, 1])]
    with pytest.raises(ValueError, match="rows of shape .1, 2, 2."):
        TaskFeatureSelector(make_meta()).fit(images)
    uneven = [TASKS[0], TASKS[1].replace_X(TASKS[1].X[:, :4])]
    with pytest.raises(ValueError, match="Task 1 .* 4 features; the first task has 5"):
        TaskFeatureSelector(make_meta()).fit(uneven)
    scaled = TaskTransformer(StandardScaler(), scope="support").fit_transform(TASKS)
    with pytest.raises(ValueError, match="Put the selector first"):
        select(trained).fit(scaled)
    for method in ("transform", "get_support", "get_feature_names_out"):
        arguments = [TASKS] if method == "transform" else []
        with pytest.raises(NotFittedError):
            getattr(select(trained), method)(*arguments)
