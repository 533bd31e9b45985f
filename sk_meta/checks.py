"""One suite over every meta-estimator, as sklearn's check_estimator is over rows."""

import pickle
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sk_meta.few_shot import FewShotClassifier, FewShotRegressor
from sk_meta.pipeline import TaskTransformer, adapt
from sk_meta.tasks.task import Task
from sk_meta.training import TaskNet

NAMES = ["age", "weight", "pulse"]
LABELS = np.array(["high", "low", "mid"])


def check_meta_estimator(estimator):
    """Check that a meta-estimator keeps the conventions of this package.

    Parameters
    ----------
    estimator : meta-learner
        Left as it is. Give it a small network and few epochs: the suite fits it some
        thirty times. A `net` of None is replaced by such a one. What is said of a net
        and of `partial_fit` is checked of those that have one.

    Raises
    ------
    AssertionError
        At the first convention that is broken. What the estimator itself raises comes
        through. Both carry the name of the check as a note.

    Examples
    --------
    >>> from sk_meta import PrototypicalClassifier, check_meta_estimator
    >>> check_meta_estimator(PrototypicalClassifier())
    """
    for check in meta_estimator_checks(estimator):
        try:
            check()
        except Exception as error:
            error.add_note(f"In {check.func.__name__} of {estimator!r}.")
            raise


def meta_estimator_checks(estimator):
    """The checks of `check_meta_estimator` one by one, for pytest.mark.parametrize.

    Parameters
    ----------
    estimator : meta-learner

    Returns
    -------
    list of functools.partial
        Called without arguments; ``check.func.__name__`` makes a good id.

    Examples
    --------
    >>> from sk_meta import MAMLRegressor
    >>> from sk_meta.checks import meta_estimator_checks
    >>> meta_estimator_checks(MAMLRegressor())[0].func.__name__
    'check_parameters'
    """
    estimator = clone(estimator).set_params(random_state=0)
    if _has_net(estimator) and estimator.net is None:
        estimator.set_params(net=TaskNet(module__hidden=(8,), max_epochs=2))
    checks = [value for name, value in globals().items() if name.startswith("check_")]
    checks.remove(check_meta_estimator)
    if find_spec("pandas") is None:
        checks.remove(check_frames)
    return [partial(check, estimator, _make_tasks(estimator)) for check in checks]


def check_parameters(estimator, tasks):
    """__init__ only assigns; clone loses nothing; the tags are those of no rows."""
    parameters = estimator.get_params(deep=False)
    fresh = type(estimator)(**parameters)
    assert vars(fresh).keys() == parameters.keys(), "__init__ does more than assign"
    for name, value in parameters.items():
        assert getattr(fresh, name) is value, f"__init__ changes {name}"
    assert fresh.set_params(**parameters) is fresh, "set_params does not return self"
    assert repr(clone(estimator)) == repr(estimator), "clone loses a parameter"
    if _has_net(estimator):
        fresh = clone(estimator).set_params(net__lr=0.5)
        assert fresh.net.lr == 0.5 != estimator.net.lr, "net__lr misses the net"
    assert not is_classifier(estimator), "has the tag of a classifier of rows"
    assert not is_regressor(estimator), "has the tag of a regressor of rows"


def check_fit(estimator, tasks):
    """Methods say when there was no fit; fit returns self and sets what is promised."""
    meta = clone(estimator)
    for call in (lambda: meta.adapt(*_support(tasks[0])), lambda: meta.predict(tasks)):
        _assert_raises(NotFittedError, call, "before fit")
    assert meta.fit(tasks) is meta, "fit does not return self"
    of_net = ("net_", "learner_", "history_") if _has_net(meta) else ()
    for name in (*of_net, "schema_"):
        assert hasattr(meta, name), f"fit sets no {name}"
    if of_net:
        assert len(meta.history_) > 0, "history_ is empty"
    assert meta.n_features_in_ == len(NAMES), "n_features_in_ is wrong"
    assert not hasattr(meta, "feature_names_in_"), "arrays have no feature names"
    if _classifies(meta):
        assert np.array_equal(meta.classes_, LABELS), "classes_ is not sorted labels"
    assert repr(clone(meta)) == repr(estimator), "fit changes a parameter"


def check_reproducible(estimator, tasks):
    """One random_state gives one result, and the global generators are left alone."""
    pairs, before = _pairs(tasks), _global_generators()
    metas = [clone(estimator).fit(pairs) for _ in range(2)]
    if hasattr(estimator, "partial_fit"):
        metas = [meta.partial_fit(pairs) for meta in metas]
    found = [_outputs(meta, pairs) for meta in metas]
    _assert_same(*found, "random_state does not settle everything", exact=True)
    clone(estimator).set_params(random_state=None).fit(pairs).adapt(*pairs[0])
    assert _global_generators() == before, "a global random generator is used"


def check_left_unchanged(estimator, tasks):
    """Adapt, predict and score change neither the meta-learner nor the tasks."""
    meta, before = clone(estimator).fit(tasks), pickle.dumps(tasks)
    learned = _learned(meta)
    attributes = set(vars(meta))
    _row_outputs(meta.adapt(*_support(tasks[0])), tasks[0].X_query)
    meta.predict(tasks)
    meta.score(tasks)
    assert set(vars(meta)) == attributes, "predicting sets attributes"
    for name, value in _learned(meta).items():
        assert value == learned[name], f"predicting changes {name}"
    assert pickle.dumps(tasks) == before, "the tasks are changed"


def check_predictions(estimator, tasks):
    """One entry a task; one row a query row; labels and probabilities are valid."""
    meta = clone(estimator).fit(tasks)
    found = meta.predict(tasks)
    assert found.dtype == object and found.shape == (len(tasks),), "not one per task"
    for task, values in zip(tasks, found, strict=True):
        assert values.shape == task.y_query.shape, "predictions have another shape"
        assert values.dtype.kind == task.y.dtype.kind, "predictions have another type"
    assert np.isfinite(meta.score(tasks)), "score is not finite"
    if _classifies(meta):
        assert 0 <= meta.score(tasks) <= 1, "accuracy is outside of [0, 1]"
        for values, proba in zip(found, meta.predict_proba(tasks), strict=True):
            assert proba.shape == (len(values), 3), "not one column a class"
            assert np.allclose(proba.sum(axis=1), 1), "probabilities do not sum to 1"
            likely = LABELS[proba.argmax(axis=1)]
            assert np.array_equal(values, likely), "predict is not the likeliest label"


def check_adapt(estimator, tasks):
    """What adapt returns, alone and in a Pipeline, predicts as predict over tasks."""
    kind = FewShotClassifier if _classifies(estimator) else FewShotRegressor
    scale = TaskTransformer(StandardScaler())
    for model in (clone(estimator), Pipeline([("scale", scale), ("meta", estimator)])):
        model = clone(model).fit(tasks)
        few_shots = [adapt(model, *_support(task)) for task in tasks]
        last = getattr(few_shots[0], "steps", [(None, few_shots[0])])[-1][1]
        assert isinstance(last, kind), f"adapt returns no {kind.__name__}"
        found = [
            _row_outputs(few_shot, task.X_query)
            for few_shot, task in zip(few_shots, tasks, strict=True)
        ]
        expected = _outputs(model, tasks)
        _assert_same(found, expected, "adapt differs from predict over tasks")


def check_independence(estimator, tasks):
    """A prediction depends neither on the other tasks nor on the other rows."""
    tasks = [*tasks, *_pairs(tasks[:2])]
    meta = clone(estimator).fit(tasks)
    found = _outputs(meta, tasks)
    alone = [_outputs(meta, [task])[0] for task in tasks]
    _assert_same(found, alone, "many tasks at once differ from one by one")
    backwards = _outputs(meta, tasks[::-1])[::-1]
    _assert_same(found, backwards, "the order of the tasks matters")
    few_shot, X = meta.adapt(*_support(tasks[0])), tasks[0].X_query
    alone = np.concatenate([_row_outputs(few_shot, X[[i]]) for i in range(len(X))])
    _assert_same([_row_outputs(few_shot, X)], [alone], "rows depend on each other")


def check_support(estimator, tasks):
    """Neither the order of support rows matters, nor a row of weight 0."""
    meta, (X, y) = clone(estimator).fit(tasks), _support(tasks[1])

    def found(X, y, weight=None):
        few_shot = meta.adapt(X, y, sample_weight=weight)
        return [_row_outputs(few_shot, tasks[1].X_query)]

    backwards = found(X[::-1], y[::-1])
    _assert_same(found(X, y), backwards, "the order of the support rows matters")
    weighted = found(X, y, np.arange(len(X)) > 0)
    if not np.allclose(weighted, found(X, y)):  # else the method ignores weights
        _assert_same(weighted, found(X[1:], y[1:]), "a row of weight 0 matters")


def check_absent_class(estimator, tasks):
    """With shared labels, a support set may lack a class."""
    if not _classifies(estimator):
        return
    lacking = Task(tasks[0].X, tasks[0].y, support=tasks[0].y != LABELS[2])
    meta = clone(estimator).fit([*tasks, lacking])
    assert meta.predict_proba([lacking])[0].shape[1] == 3, "a class has no column"
    few_shot = meta.adapt(*_support(lacking))
    assert np.array_equal(few_shot.classes_, LABELS[:2]), "not the classes of y"
    assert few_shot.predict_proba(lacking.X_query).shape[1] == 2, "a column too many"


def check_local_labels(estimator, tasks):
    """Tasks may have classes of their own, in any number up to what was seen."""
    if not _classifies(estimator):
        return
    tasks = _make_tasks(estimator, local=True)
    meta = clone(estimator).fit(tasks)
    assert not hasattr(meta, "classes_"), "local labels have no common classes_"
    for task, found in zip(tasks, meta.predict(tasks), strict=True):
        assert np.isin(found, task.y_support).all(), "a label of another task"
        few_shot = meta.adapt(*_support(task))
        classes = np.unique(task.y_support)
        assert np.array_equal(few_shot.classes_, classes), "not the classes of y"
        same = np.array_equal(few_shot.predict(task.X_query), found)
        assert same, "adapt differs from predict where labels are local"


def check_frames(estimator, tasks):
    """DataFrame columns are known by name; they may not come in another order."""
    import pandas as pd

    frames = [task.replace_X(pd.DataFrame(task.X, columns=NAMES)) for task in tasks]
    meta, of_arrays = clone(estimator).fit(frames), clone(estimator).fit(tasks)
    assert list(meta.feature_names_in_) == NAMES, "feature_names_in_ is wrong"
    found = _outputs(meta, frames)
    _assert_same(found, _outputs(of_arrays, tasks), "a DataFrame is not its array")
    X, y = _support(frames[0])
    few_shot = meta.adapt(X, y)
    assert list(few_shot.feature_names_in_) == NAMES, "adapt loses the feature names"
    _assert_raises(ValueError, lambda: meta.adapt(X[NAMES[::-1]], y), "on other names")


def check_pickle(estimator, tasks):
    """Pickled, both the meta-learner and what it adapts predict the same bits."""
    meta = clone(estimator).fit(tasks)
    copy = pickle.loads(pickle.dumps(meta))
    _assert_same(_outputs(copy, tasks), _outputs(meta, tasks), "pickle", exact=True)
    few_shot, X = meta.adapt(*_support(tasks[0])), tasks[0].X_query
    found = _row_outputs(pickle.loads(pickle.dumps(few_shot)), X)
    _assert_same([found], [_row_outputs(few_shot, X)], "pickle", exact=True)


def check_partial_fit(estimator, tasks):
    """partial_fit fits, and trains on from there."""
    if not hasattr(estimator, "partial_fit"):
        return
    meta, first = clone(estimator), clone(estimator).fit(tasks)
    assert meta.partial_fit(tasks) is meta, "partial_fit does not return self"
    found, expected = _outputs(meta, tasks), _outputs(first, tasks)
    _assert_same(found, expected, "the first partial_fit is not fit", exact=True)
    meta.partial_fit(tasks)
    assert len(meta.history_) > len(first.history_), "the history starts anew"
    changed = pickle.dumps(_outputs(meta, tasks)) != pickle.dumps(expected)
    assert changed, "partial_fit does not train on"


def check_errors(estimator, tasks):
    """Bad input raises, and leaves a fitted estimator as it was."""
    meta, (X, y) = clone(estimator).fit(tasks), _support(tasks[0])
    before = _outputs(meta, tasks)
    missing = tasks[0].replace_X(np.full_like(tasks[0].X, np.nan))
    narrow = tasks[0].replace_X(tasks[0].X[:, :2])
    for bad in ([], [*tasks, missing], [*tasks, narrow], tasks[0].X):
        for name in ("fit", "partial_fit", "predict"):
            call = getattr(meta, name, meta.fit)
            what = f"of {call.__name__} on bad tasks"
            _assert_raises((ValueError, TypeError), partial(call, bad), what)
    for bad in ((X[:, :2], y), (X * np.inf, y), (X[:0], y[:0]), (X[1:], y), (X[0], y)):
        _assert_raises(ValueError, partial(meta.adapt, *bad), "on a bad support set")
    _assert_same(_outputs(meta, tasks), before, "an error changes it", exact=True)


def _classifies(estimator):
    return estimator._classification


def _has_net(estimator):
    return "net" in estimator.get_params(deep=False)


def _learned(meta):
    """What `fit` has set, as bytes, by name."""
    if not hasattr(meta, "learner_"):
        return {name: pickle.dumps(value) for name, value in vars(meta).items()}
    state = meta.learner_.state_dict()
    return {name: value.cpu().numpy().tobytes() for name, value in state.items()}


def _make_tasks(estimator, local=False):
    """Ragged tasks of three features; each support set holds every class."""
    rng = np.random.default_rng(0)
    tasks = []
    for i in range(5):
        classes = np.arange(3 + i % 3) + 10 * i if local else LABELS
        codes = np.arange(4 * len(classes) + i % 2) % len(classes)
        X = rng.normal(size=(len(codes), 3)) + codes[:, None]
        y = classes[codes] if _classifies(estimator) else X @ rng.normal(size=3) + i
        support = np.arange(len(classes) * (1 + i % 2))
        tasks.append(Task(X, y, support, labels="local" if local else "shared"))
    return tasks


def _pairs(tasks):
    return [(task.X, task.y) for task in tasks]


def _support(task):
    return task.X_support, task.y_support


def _outputs(model, tasks):
    proba = getattr(model, "predict_proba", None)
    return list(model.predict(tasks) if proba is None else proba(tasks))


def _row_outputs(few_shot, X):
    return np.asarray(_outputs(few_shot, X))


def _global_generators():
    numpy_state = np.random.get_state()  # noqa: NPY002
    return pickle.dumps((numpy_state, torch.get_rng_state().numpy()))


def _assert_same(found, expected, message, exact=False):
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, err_msg=message, **tolerance)


def _assert_raises(kind, call, message):
    try:
        call()
    except kind as error:
        assert str(error), f"the error {message} has no message"
    else:
        raise AssertionError(f"no error {message}")
