"""Adapted estimators: sklearn's own suite, and sklearn's ensembles around them."""

import pickle
from functools import cache
from itertools import product

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    BaggingRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_meta import (
    ALPaCAClassifier,
    ALPaCARegressor,
    FewShotClassifier,
    FewShotRegressor,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    Task,
    TaskNet,
    TaskTransformer,
    adapt,
)
from sk_meta.tasks import make_blob_tasks, make_linear_tasks

LABELS = {
    "strings": ("ill", "well"),
    "one and two": (1, 2),
    "bools": (False, True),
    "three strings": ("a", "b", "c"),
    "from five": (5, 6, 7),
}
METAS = {
    "maml": MAMLClassifier(inner_lr=0.1, n_inner_steps=3),
    "prototypes": PrototypicalClassifier(),
    "alpaca": ALPaCAClassifier(),
}


@parametrize_with_checks(
    [FewShotClassifier(), FewShotRegressor()], expected_failed_checks=None
)
def test_sklearn_suite(estimator, check):
    check(estimator)


def small_net(**options):
    return TaskNet(**{"module__hidden": (8,), "max_epochs": 20, "lr": 0.02, **options})


def make_tasks(n_classes):
    return make_blob_tasks(
        13,
        n_classes=n_classes,
        n_support=12,
        n_query=30,
        n_features=4,
        labels="shared",
        separation=8.0,
        random_state=1,
    )


@cache
def adapted(method, labels):
    """(adapted classifier, new task): the labels stand for 0, 1, ... of the blobs."""
    values = np.array(labels)
    tasks = [Task(t.X, values[t.y], t.support) for t in make_tasks(len(labels))]
    meta = clone(METAS[method]).set_params(net=small_net(), random_state=0)
    few_shot = meta.fit(tasks[:-1]).adapt(tasks[-1].X_support, tasks[-1].y_support)
    return few_shot, tasks[-1]


def around(few_shot):
    return {
        "bagging": BaggingClassifier(few_shot, 3, random_state=0),
        "bagging of three rows": BaggingClassifier(
            few_shot, 10, max_samples=3, random_state=0
        ),
        "soft voting": VotingClassifier(
            [("one", few_shot), ("other", LogisticRegression())], voting="soft"
        ),
        "hard voting": VotingClassifier([("one", few_shot), ("other", few_shot)]),
        "stacking": StackingClassifier([("one", few_shot)], cv=3),
        "stacking, prefit": StackingClassifier([("one", few_shot)], cv="prefit"),
        "calibration": CalibratedClassifierCV(few_shot, cv=3),
        "calibration, one": CalibratedClassifierCV(few_shot, cv=3, ensemble=False),
        "calibration, frozen": CalibratedClassifierCV(FrozenEstimator(few_shot)),
        "boosting": AdaBoostClassifier(few_shot, n_estimators=2, random_state=0),
        "search": GridSearchCV(few_shot, {"classes": ["support", "meta"]}, cv=3),
    }


ENSEMBLES = list(around(None))


@cache
def ensemble_results(method, ensemble, labels):
    """What an ensemble around an adapted classifier predicts; it must be as good."""
    few_shot, task = adapted(method, labels)
    model = around(few_shot)[ensemble].fit(task.X_support, task.y_support)
    assert np.array_equal(model.classes_, labels)
    plain = few_shot.score(task.X_query, task.y_query)
    rough = ensemble in ("boosting", "bagging of three rows")
    assert plain > 0.8
    assert model.score(task.X_query, task.y_query) > plain - (0.25 if rough else 0.1)
    return model.predict(task.X_query)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
@pytest.mark.parametrize("method, labels", list(product(METAS, LABELS)))
def test_ensembles_predict_the_same_whatever_the_labels(method, labels, ensemble):
    """As with strings that sort the same, which no code can be mistaken for."""
    labels = LABELS[labels]
    plain = ("a", "b", "c")[: len(labels)]
    found = ensemble_results(method, ensemble, labels)
    expected = ensemble_results(method, ensemble, plain)
    assert found.dtype == np.array(labels).dtype
    assert np.array_equal(found, np.array(labels)[np.searchsorted(plain, expected)])


@pytest.mark.parametrize("method, labels", list(product(METAS, LABELS)))
def test_cross_validation_over_rows(method, labels):
    few_shot, task = adapted(method, LABELS[labels])
    X, y = task.X_query, task.y_query
    scores = cross_val_score(few_shot, X, y, cv=StratifiedKFold(3))
    assert scores.mean() > few_shot.score(X, y) - 0.1
    found = cross_val_predict(few_shot, X, y, cv=3)
    assert found.dtype == y.dtype and np.mean(found == y) > 0.8
    plain = [
        clone(few_shot).fit(X[train], y[train]).score(X[test], y[test])
        for train, test in StratifiedKFold(3).split(X, y)
    ]
    assert np.array_equal(scores, plain)


@pytest.mark.parametrize("labels", LABELS)
def test_a_class_missing_from_a_resample(labels):
    """An ensemble's codes still stand for the right labels."""
    few_shot, task = adapted("alpaca", LABELS[labels])
    X, y = task.X_support, task.y_support
    kept = y != few_shot.classes_[0]
    codes = np.searchsorted(few_shot.classes_, y)
    by_value = clone(few_shot).fit(X[kept], y[kept])
    by_code = clone(few_shot).fit(X[kept], codes[kept])
    assert np.array_equal(by_code.classes_, np.unique(codes[kept]))
    assert np.array_equal(by_value.classes_, few_shot.classes_[1:])
    assert np.array_equal(
        by_code.predict_proba(task.X_query), by_value.predict_proba(task.X_query)
    )


def test_codes_that_could_be_labels_are_said():
    few_shot, task = adapted("alpaca", (1, 2, 3))
    X, y = task.X_support, task.y_support
    with pytest.warns(UserWarning, match=r"\[1, 2\] are read by value.*\[2, 3\]"):
        clone(few_shot).fit(X[y > 1], y[y > 1] - 1)
    sure = clone(few_shot).set_params(encoded_labels=None).fit(X[y > 1], y[y > 1] - 1)
    assert np.array_equal(sure.classes_, [1, 2])


def test_all_shared_classes_or_those_of_the_support_set():
    few_shot, task = adapted("alpaca", LABELS["three strings"])
    X, y = task.X_support, task.y_support
    kept = y != "c"
    some = clone(few_shot).fit(X[kept], y[kept])
    every = clone(few_shot).set_params(classes="meta").fit(X[kept], y[kept])
    assert some.classes_.tolist() == ["a", "b"]
    assert every.classes_.tolist() == ["a", "b", "c"]
    shared, part = (m.predict_proba(task.X_query) for m in (every, some))
    np.testing.assert_allclose(
        part, shared[:, :2] / shared[:, :2].sum(1, keepdims=True), atol=1e-12
    )
    assert (every.predict(task.X_query) == "c").any()


def test_adapting_to_one_class():
    few_shot, task = adapted("alpaca", LABELS["strings"])
    kept = task.y_support == "ill"
    one = clone(few_shot).fit(task.X_support[kept], task.y_support[kept])
    assert (one.predict_proba(task.X_query) == 1).all()


def test_a_pipeline_of_frozen_steps_goes_into_an_ensemble():
    tasks = make_tasks(2)
    named = [Task(t.X * 100, np.array(["no", "yes"])[t.y], t.support) for t in tasks]
    pipeline = make_pipeline(
        TaskTransformer(StandardScaler()),
        PrototypicalClassifier(small_net(), random_state=0),
    ).fit(named[:-1])
    task = named[-1]
    plain = adapt(pipeline, task.X_support, task.y_support)
    bagged = BaggingClassifier(plain, 5, random_state=0)
    bagged.fit(task.X_support, task.y_support)
    accuracy = plain.score(task.X_query, task.y_query)
    assert accuracy > 0.8
    assert bagged.score(task.X_query, task.y_query) > accuracy - 0.1


def test_a_few_shot_classifier_ends_an_ordinary_pipeline():
    few_shot, task = adapted("prototypes", LABELS["strings"])
    scaler = StandardScaler().fit(task.X_support)
    pipeline = make_pipeline(FrozenEstimator(scaler), clone(few_shot))
    pipeline.fit(scaler.inverse_transform(task.X_support), task.y_support)
    found = pipeline.predict_proba(scaler.inverse_transform(task.X_query))
    np.testing.assert_allclose(
        found, few_shot.predict_proba(task.X_query), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("method", METAS)
def test_pickle_joblib_and_refit(method, tmp_path):
    few_shot, task = adapted(method, LABELS["strings"])
    joblib.dump(few_shot, tmp_path / "model.joblib")
    expected = few_shot.predict_proba(task.X_query)
    for copy in (
        pickle.loads(pickle.dumps(few_shot)),
        joblib.load(tmp_path / "model.joblib"),
        clone(few_shot).fit(task.X_support, task.y_support),
    ):
        assert np.array_equal(copy.predict_proba(task.X_query), expected)


def test_column_vector_of_labels():
    few_shot, task = adapted("prototypes", LABELS["strings"])
    again = clone(few_shot).fit(task.X_support, task.y_support[:, None])
    assert np.array_equal(again.predict(task.X_query), few_shot.predict(task.X_query))


def test_frames_are_checked_by_name():
    names = ["a", "b", "c", "d"]
    tasks = [t.replace_X(pd.DataFrame(t.X, columns=names)) for t in make_tasks(2)]
    meta = PrototypicalClassifier(small_net(), random_state=0).fit(tasks[:-1])
    task = tasks[-1]
    few_shot = meta.adapt(task.X_support, task.y_support)
    assert few_shot.feature_names_in_.tolist() == names
    assert few_shot.score(task.X_query, task.y_query) > 0.8
    with pytest.raises(ValueError, match="feature names should match"):
        few_shot.predict(task.X_query[names[::-1]])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        few_shot.predict(task.X_query.to_numpy())


def test_an_unfitted_meta_learner_is_said():
    X, y = np.eye(4), [0, 1, 0, 1]
    with pytest.raises(NotFittedError, match=r"FrozenEstimator\(meta\)"):
        FewShotClassifier(PrototypicalClassifier()).fit(X, y)
    few_shot, task = adapted("prototypes", LABELS["strings"])
    loose = FewShotClassifier(few_shot.meta_learner.estimator)
    assert loose.fit(task.X_support, task.y_support).score(task.X, task.y) > 0.8
    with pytest.raises(NotFittedError, match="cloning unfits it"):
        clone(loose).fit(task.X_support, task.y_support)


def test_without_a_prior_the_nearest_class_mean_is_found():
    task = make_tasks(3)[0]
    few_shot = FewShotClassifier().fit(task.X_support, task.y_support)
    means = [task.X_support[task.y_support == k].mean(axis=0) for k in range(3)]
    distances = ((task.X_query[:, None] - np.array(means)) ** 2).sum(-1)
    assert np.array_equal(few_shot.predict(task.X_query), distances.argmin(axis=1))


def test_without_a_prior_ridge_is_found():
    task = make_linear_tasks(1, random_state=0)[0]
    few_shot = FewShotRegressor().fit(task.X_support, task.y_support)
    ridge = Ridge().fit(task.X_support, task.y_support)
    assert np.array_equal(few_shot.predict(task.X), ridge.predict(task.X))


@pytest.mark.parametrize("kind", [MAMLRegressor, ALPaCARegressor])
@pytest.mark.parametrize(
    "make",
    [
        lambda model: BaggingRegressor(model, 5, random_state=0),
        lambda model: VotingRegressor([("one", model), ("other", model)]),
        lambda model: StackingRegressor([("one", model)], Ridge(), cv=3),
    ],
)
def test_ensembles_of_regressors(kind, make):
    *old, new = make_linear_tasks(9, n_features=4, n_support=20, random_state=0)
    meta = kind(small_net(max_epochs=60), random_state=0).fit(old)
    few_shot = meta.adapt(new.X_support, new.y_support)
    model = make(few_shot).fit(new.X_support, new.y_support)
    plain = few_shot.score(new.X_query, new.y_query)
    assert plain > 0.3
    assert model.score(new.X_query, new.y_query) > plain - 0.25
