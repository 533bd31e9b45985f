"""Scores over tasks: with an interval, and against no learned prior."""

from dataclasses import dataclass
from inspect import signature

import numpy as np
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.metrics import get_scorer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sk_meta.few_shot import FewShotClassifier, FewShotRegressor
from sk_meta.pipeline import parts_of, transform_tasks
from sk_meta.predictions import scored_rows
from sk_meta.tasks.stacking import needs_fit
from sk_meta.tasks.task import take_rows
from sk_meta.tasks.validation import numeric

__all__ = ["Evaluation", "evaluate", "mean_interval", "task_scorer"]


class _PredictedClassifier(ClassifierMixin, BaseEstimator):
    """Predictions in hand, in the form that sklearn's scorers ask."""

    def __init__(self, found, rows, y_true):
        values = found.values[rows]
        self._labels = found.classes[values.argmax(axis=1)]
        # Metrics of probabilities know only the classes that the query rows have.
        present = np.isin(found.classes, y_true)
        self.classes_ = found.classes[present]
        total = values[:, present].sum(axis=1, keepdims=True)
        even = np.full((len(values), present.sum()), 1 / present.sum())
        self._values = np.divide(values[:, present], total, out=even, where=total > 0)

    def predict_proba(self, X):
        return self._values

    def predict(self, X):
        return self._labels


class _PredictedRegressor(RegressorMixin, BaseEstimator):
    """Predictions in hand, in the form that sklearn's scorers ask."""

    def __init__(self, found, rows, y_true):
        self._values = found.values[rows]

    def predict(self, X):
        return self._values


def mean_interval(values, confidence=0.95):
    """Mean, and the half-width of its t interval (NaN for fewer than two values).

    Values that are NaN, of tasks on which a metric is not defined, are left out.

    Examples
    --------
    >>> from sk_meta.metrics import mean_interval
    >>> mean_interval([1.0, 2.0, 3.0])[0]
    2.0
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return float(values.mean()), float("nan")
    quantile = stats.t.ppf(0.5 + confidence / 2, len(values) - 1)
    return float(values.mean()), float(quantile * stats.sem(values))


@dataclass
class Evaluation:
    """Scores of a meta-learner on tasks.

    Attributes
    ----------
    scores : array of shape (n_tasks,)
    baseline_scores : array of shape (n_tasks,)
        Of the same estimator without a learned prior: class means or ridge regression
        on the support set, after the pipeline's transformers. Categories and missing
        values that are left then are encoded and imputed by the support set.
    names : list of str or None
    metric : str
    """

    scores: np.ndarray
    baseline_scores: np.ndarray
    names: list
    metric: str

    @property
    def mean(self):
        """Mean score over tasks."""
        return mean_interval(self.scores)[0]

    @property
    def interval(self):
        """(low, high): 95 % interval of the mean over tasks."""
        mean, half = mean_interval(self.scores)
        return mean - half, mean + half

    @property
    def gain(self):
        """Score of each task minus its score without a learned prior."""
        return self.scores - self.baseline_scores

    @property
    def worse(self):
        """Positions of the tasks that the learned prior made worse, worst first."""
        order = np.argsort(self.gain)
        return [int(i) for i in order if self.gain[i] < 0]

    def __str__(self):
        mean, half = mean_interval(self.scores)
        gain, gain_half = mean_interval(self.gain)
        return (
            f"{self.metric}: {mean:.4f} +- {half:.4f} over {len(self.scores)} tasks; "
            f"gain over no learned prior {gain:+.4f} +- {gain_half:.4f}; "
            f"{len(self.worse)} tasks got worse"
        )


def evaluate(model, tasks, scoring=None):
    """Score a fitted meta-learner on new tasks, with interval and gain.

    Parameters
    ----------
    model : meta-learner, Pipeline ending in one, or search over these
        Fitted.
    tasks : list of Task, list of (X, y), or EpisodeSampler
    scoring : str or callable, default=None
        A metric of sklearn, such as "balanced_accuracy", or a scorer; None means
        accuracy or R^2.

    Returns
    -------
    Evaluation

    Examples
    --------
    >>> from sk_meta import PrototypicalClassifier, TaskNet, evaluate
    >>> from sk_meta.tasks import make_blob_tasks
    >>> tasks = make_blob_tasks(30, n_classes=3, labels="local", random_state=0)
    >>> meta = PrototypicalClassifier(TaskNet(max_epochs=1), random_state=0)
    >>> result = evaluate(meta.fit(tasks[:20]), tasks[20:])
    >>> result.scores.shape, result.gain.shape
    ((10,), (10,))
    """
    steps, meta = parts_of(model)
    scorer, metric = scorer_of(scoring, meta)
    tasks = transform_tasks(steps, tasks)
    scores, baselines, names = [], [], []
    for found in meta.predict_tasks(tasks):
        scores.append(score_prediction(found, scorer, metric))
        baselines.append(score_prediction(without_prior(found), scorer, metric))
        names.append(found.task.name)
    return Evaluation(np.array(scores), np.array(baselines), names, metric)


def task_scorer(scoring):
    """A scorer over tasks from a metric over rows.

    Parameters
    ----------
    scoring : str or callable
        A metric of sklearn, such as "balanced_accuracy", or a scorer.

    Returns
    -------
    callable
        (fitted meta-learner or Pipeline, tasks, y=None) -> mean score over tasks. For
        the `scoring` of GridSearchCV, cross_val_score and the like, where a metric over
        rows cannot work.

    Examples
    --------
    >>> from sklearn.model_selection import cross_val_score
    >>> from sk_meta import PrototypicalClassifier, TaskNet, task_scorer
    >>> from sk_meta.tasks import make_blob_tasks
    >>> tasks = make_blob_tasks(12, n_classes=2, random_state=0)
    >>> meta = PrototypicalClassifier(TaskNet(max_epochs=1), random_state=0)
    >>> cross_val_score(meta, tasks, cv=3, scoring=task_scorer("roc_auc")).shape
    (3,)
    """
    return _TaskScorer(scoring)


class _TaskScorer:
    """A callable that pickles."""

    def __init__(self, scoring):
        _check_scoring(scoring)
        self.scoring = scoring

    def __call__(self, model, tasks, y=None):
        steps, meta = parts_of(model)
        scorer, metric = scorer_of(self.scoring, meta)
        found = meta.predict_tasks(transform_tasks(steps, tasks))
        scores = np.array([score_prediction(one, scorer, metric) for one in found])
        if np.isnan(scores).all():
            raise ValueError(f"{self.scoring!r} is not defined on any of the tasks.")
        return float(np.nanmean(scores))

    def __repr__(self):
        return f"task_scorer({self.scoring!r})"


def _check_scoring(scoring):
    """Raise for a wrong name, and for a metric where a scorer is needed."""
    get_scorer(scoring)
    if callable(scoring) and next(iter(signature(scoring).parameters)) == "y_true":
        raise ValueError(
            f"{scoring.__name__} is a metric, not a scorer. Pass its name, or "
            f"make_scorer({scoring.__name__})."
        )


def scorer_of(scoring, meta):
    """sklearn's scorer and its name, for what a user passes; None is the usual one."""
    if isinstance(scoring, _TaskScorer):
        scoring = scoring.scoring
    if scoring is None:
        scoring = "accuracy" if meta._classification else "r2"
    _check_scoring(scoring)
    return get_scorer(scoring), scoring if isinstance(scoring, str) else str(scoring)


def score_prediction(found, scorer, metric):
    """Score of one TaskPrediction; NaN where the metric is not defined."""
    y_true, rows, weight = scored_rows(found)
    kind = _PredictedRegressor if found.classes is None else _PredictedClassifier
    X = np.zeros((len(y_true), 1))
    if metric == "r2" and len(y_true) < 2:
        return np.nan  # not defined
    predicted = kind(found, rows, y_true)
    if weight is None:
        return scorer(predicted, X, y_true)
    return scorer(predicted, X, y_true, sample_weight=weight)


def without_prior(found):
    """The same prediction, made from the support set alone.

    Parameters
    ----------
    found : TaskPrediction

    Returns
    -------
    TaskPrediction
    """
    task = found.task
    if needs_fit(task):
        X_support, X_query = task.fit_support(found.support, found.query)
    else:
        X_support, X_query = (
            take_rows(task.X, found.support),
            take_rows(task.X, found.query),
        )
    X_support, X_query = _numbers(X_support, X_query, task.label())
    support = found.support
    if task.labeled is not None:
        X_support = X_support[task.labeled[support]]
        support = support[task.labeled[support]]
    weight = None if task.sample_weight is None else task.sample_weight[support]
    y_support = task.y[support]
    if found.classes is None:
        few_shot = FewShotRegressor().fit(X_support, y_support, sample_weight=weight)
        return found._replace(values=few_shot.predict(X_query), std=None)
    few_shot = FewShotClassifier().fit(X_support, y_support, sample_weight=weight)
    values = np.zeros((len(X_query), len(found.classes)))
    columns = np.searchsorted(found.classes, few_shot.classes_)
    values[:, columns] = few_shot.predict_proba(X_query)
    return found._replace(values=values)


def _numbers(X_support, X_query, what):
    """Rows as finite numbers, (n, n_features) each.

    A learner may know what to do with categories and gaps; without one, a statistician
    would encode, impute and scale them by the support set.
    """
    if hasattr(X_support, "iloc"):
        kinds = X_support.select_dtypes("number").shape[1] < X_support.shape[1]
        if kinds or X_support.isna().any(axis=None) or X_query.isna().any(axis=None):
            scale = make_pipeline(
                SimpleImputer(keep_empty_features=True), StandardScaler()
            )
            encode = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
            table = make_column_transformer(
                (scale, make_column_selector(dtype_include="number")),
                (encode, make_column_selector(dtype_exclude="number")),
            )
            return table.fit_transform(X_support), table.transform(X_query)
    X_support, X_query = (X.reshape(len(X), -1) for X in _arrays(X_support, X_query))
    if any(X.dtype.kind == "f" and np.isnan(X).any() for X in (X_support, X_query)):
        impute = SimpleImputer(keep_empty_features=True).fit(X_support)
        X_support, X_query = impute.transform(X_support), impute.transform(X_query)
    return [numeric(X, what) for X in (X_support, X_query)]


def _arrays(*tables):
    return [X.to_numpy() if hasattr(X, "iloc") else np.asarray(X) for X in tables]
