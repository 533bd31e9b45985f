"""A budget in a search: sizes beside the scores, and the best that is within it."""

from numbers import Real

import numpy as np
from sklearn.utils._param_validation import Interval, validate_parameter_constraints

from sk_meta.metrics import task_scorer

UNITS = {"kilobytes": "KB", "milliseconds": "ms"}


def size_scorer(scoring=None, *, task=None):
    """A scorer over tasks that also tells what the learner costs.

    It writes the learner's ONNX file for each candidate and fold, which takes seconds.

    Parameters
    ----------
    scoring : str or callable, default=None
        A metric of sklearn, such as "balanced_accuracy", or a scorer; None means
        accuracy or R^2.
    task : Task or pair (X, y), default=None
        A support set for the measurement, see :func:`sk_meta.size_report`. Where
        columns of DataFrames are inputs, None means the first task that is scored.

    Returns
    -------
    callable
        (fitted meta-learner or Pipeline, tasks, y=None) -> dict of "score", mean over
        tasks; "kilobytes", of the ONNX file; and "milliseconds", to adapt to a support
        set and predict one row. For the `scoring` of GridSearchCV, whose `cv_results_`
        then have ``mean_test_score``, ``mean_test_kilobytes`` and
        ``mean_test_milliseconds``, and whose `refit` may be `best_within`. To measure
        times, leave `n_jobs` alone.

    Examples
    --------
    >>> from sklearn.frozen import FrozenEstimator
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sk_meta import MAMLClassifier, PrunedLearner, best_within, size_scorer
    >>> pruned = PrunedLearner(MAMLClassifier(), how="slim")
    >>> search = GridSearchCV(
    ...     pruned,
    ...     {"amount": [0.0, 0.5, 0.75]},
    ...     scoring=size_scorer("balanced_accuracy"),
    ...     refit=best_within(kilobytes=20),
    ... )

    After ``search.fit(tasks)``, ``search.best_estimator_`` is the best of those whose
    file has at most 20 KB.
    """
    return _SizeScorer(scoring, task)


class _SizeScorer:
    """A callable that pickles."""

    def __init__(self, scoring, task):
        self.task_score, self.task = task_scorer(scoring), task

    def __call__(self, model, tasks, y=None):
        from sk_meta.onnx.report import learner_cost, takes_columns

        score, task = self.task_score(model, tasks), self.task
        if task is None and takes_columns(model):
            task = tasks[0]
        cost = learner_cost(model, task)
        return {"score": score} | dict(zip(UNITS, cost, strict=True))

    def __repr__(self):
        return f"size_scorer({self.task_score.scoring!r})"


def best_within(kilobytes=None, milliseconds=None, *, score="score"):
    """A `refit` for GridSearchCV: the best score among candidates within a budget.

    The search needs a `scoring` that measures the sizes: :func:`sk_meta.size_scorer`.
    Of candidates with equal scores, the smaller one is taken.

    Parameters
    ----------
    kilobytes : float, default=None
        Largest size of the ONNX file, in 1,000 bytes; None sets no limit.
    milliseconds : float, default=None
        Longest time to adapt to a support set and predict one row; None sets no limit.
    score : str, default="score"
        What is best: ``mean_test_<score>``.

    Returns
    -------
    callable
        ``cv_results_`` -> position of the candidate. It pickles.

    Raises
    ------
    ValueError
        If there is no limit, or one that is not above 0; when called, if no candidate
        is within the budget, or if sizes were not measured.

    Examples
    --------
    >>> from sk_meta import best_within
    >>> results = {
    ...     "params": [{"amount": 0.0}, {"amount": 0.5}, {"amount": 0.75}],
    ...     "mean_test_score": [0.93, 0.92, 0.88],
    ...     "mean_test_kilobytes": [120.0, 44.0, 19.0],
    ... }
    >>> best_within(kilobytes=50)(results)
    1
    >>> best_within(kilobytes=10)(results)
    Traceback (most recent call last):
        ...
    ValueError: No candidate is within 10 KB: the smallest has 19 KB ({'amount':
    0.75}). Allow more, or add smaller candidates or stronger compression.
    """
    return _BestWithin(kilobytes, milliseconds, score)


class _BestWithin:
    """A callable that pickles."""

    def __init__(self, kilobytes, milliseconds, score):
        constraints = {
            name: [Interval(Real, 0, None, closed="neither")] for name in UNITS
        }
        given = limits_of(kilobytes, milliseconds)
        validate_parameter_constraints(constraints, given, "best_within")
        if not given:
            raise ValueError(
                "best_within needs a limit: kilobytes, milliseconds or both."
            )
        self.limits, self.score = given, score

    def __call__(self, results):
        sizes = {name: self._column(results, name) for name in self.limits}
        names = [str(params) for params in results["params"]]
        return best_index(names, self._column(results, self.score), sizes, self.limits)

    def _column(self, results, name):
        if f"mean_test_{name}" not in results:
            found = [key for key in results if key.startswith("mean_test_")]
            raise ValueError(
                f"The search has no 'mean_test_{name}', only {found}. Pass "
                "scoring=size_scorer(...) to it; if you did, it failed, and sklearn's "
                "warnings say how."
            )
        return np.asarray(results[f"mean_test_{name}"], dtype=float)

    def __repr__(self):
        limits = [f"{name}={limit!r}" for name, limit in self.limits.items()]
        return f"best_within({', '.join(limits)})"


def limits_of(kilobytes, milliseconds):
    """The limits that are set, by their names."""
    given = zip(UNITS, (kilobytes, milliseconds), strict=True)
    return {name: limit for name, limit in given if limit is not None}


def best_index(names, scores, sizes, limits):
    """Position of the best score within limits; of equal ones, of the smallest.

    Parameters
    ----------
    names : list of str
    scores : array of shape (n_candidates,)
        NaN for a candidate that cannot be chosen.
    sizes : dict of arrays of shape (n_candidates,)
    limits : dict of float

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If no candidate is within the limits.
    """
    chosen = ~np.isnan(scores)
    for name, limit in limits.items():
        chosen &= sizes[name] <= limit
    if chosen.any():
        found = np.flatnonzero(chosen)
        keys = [sizes[name][found] for name in reversed(limits)]
        return int(found[np.lexsort([*keys, -scores[found]])[0]])
    if all(np.isnan(sizes[name]).all() for name in limits):
        raise ValueError("No candidate could be scored and measured; all have failed.")
    budget = " and ".join(f"{v:g} {UNITS[name]}" for name, v in limits.items())
    least = []
    for name in limits:
        at = int(np.nanargmin(sizes[name]))
        word = "the smallest has" if name == "kilobytes" else "the fastest takes"
        least.append(f"{word} {sizes[name][at]:.3g} {UNITS[name]} ({names[at]})")
    raise ValueError(
        f"No candidate is within {budget}: {', '.join(least)}. Allow more, or add "
        "smaller candidates or stronger compression."
    )
