"""SelectBest: train many learners, select one under a budget, compress it."""

import warnings
from numbers import Real
from typing import ClassVar

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.metaestimators import _BaseComposition

from sk_meta.base import MetaEstimator
from sk_meta.compression.budget import UNITS, best_index, limits_of
from sk_meta.compression.prune import PrunedLearner
from sk_meta.metrics import task_scorer
from sk_meta.tasks.validation import check_tasks
from sk_meta.wrapped import WrappedLearner


class SelectBest(_BaseComposition, WrappedLearner):
    """The best of many meta-learners that a budget allows, compressed if need be.

    1. All learners are scored by cross-validation over tasks.
    2. If the best one is within the budget, it is chosen.
    3. If not, its compressions are scored too, and the best that is within the budget
       is chosen: a compression, or another learner that needs none. While there is
       nothing within the budget, the compressions of the next best learner are tried.
    4. What is chosen is trained and compressed on all tasks.

    Parameters
    ----------
    learners : list of (name, meta-learner)
        Not fitted. Compressed learners, such as a DistilledLearner, are meta-learners.
    kilobytes : float, default=None
        Largest size of the learner's ONNX file, in 1,000 bytes; None sets no limit.
    milliseconds : float, default=None
        Longest time for adapting to a support set and predicting one row, measured as
        `adapt_ms` in :func:`sk_meta.size_report`; None sets no limit. It is of this
        computer.
    cv : int, cross-validation generator or iterable, default=None
        Splits tasks; None means 5 folds.
    compress : list of (name, compressed learner), default=None
        What is tried of a learner that is too large: a PrunedLearner, for example,
        whose `meta_learner` (or `teacher`, of a DistilledLearner) becomes the fitted
        learner, whatever it was. None means slimming by 25, 50 and 75 %. An empty list
        means no compression.
    scoring : str or callable, default=None
        A metric of sklearn, such as "balanced_accuracy", or a scorer; None means
        accuracy or R^2.
    random_state : int, RandomState instance or None, default=None
        Seed of the learners and compressions that have no `random_state` of their own.

    Attributes
    ----------
    meta_learner_ : meta-learner
        The one chosen, fitted on all tasks.
    results_ : list of dict
        One for each candidate: its "name", "score" (mean over folds), "kilobytes",
        "milliseconds" and whether it is "chosen". The sizes are those of the first
        fold's fit, and None where there is no budget. A compression that is too large
        is not scored: NaN. So is one that does not suit a learner's network, with a
        FitFailedWarning.
    net_, learner_, history_, schema_, classes_, n_features_in_, feature_names_in_
        Those of the one chosen.

    Raises
    ------
    ValueError
        By `fit`, if nothing is within the budget.
    TypeError
        By `fit`, if a learner is not a meta-learner, is fitted and frozen (its score on
        tasks that it may know would say nothing), or is of another kind than the first.

    Notes
    -----
    Parameters of learners and compressions are set by their names:
    ``select.set_params(big__inner_lr=0.1, half__max_epochs=5)``. The score of the one
    chosen is the best of several, hence a little too high: evaluate on other tasks.

    Examples
    --------
    >>> from sk_meta import PrototypicalClassifier, R2D2Classifier, SelectBest, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(13, n_classes=2, labels="local", random_state=0)
    >>> net = TaskNet(max_epochs=1)
    >>> learners = [
    ...     ("proto", PrototypicalClassifier(net)),
    ...     ("r2d2", R2D2Classifier(net)),
    ... ]
    >>> select = SelectBest(learners, cv=2, random_state=0).fit(old)
    >>> [result["name"] for result in select.results_]
    ['proto', 'r2d2']
    >>> select.adapt(new.X_support, new.y_support).predict(new.X_query[:3]).shape
    (3,)

    With ``SelectBest(learners, kilobytes=50)``, what is chosen fits into 50 KB.
    """

    _parameter_constraints: ClassVar[dict] = {
        "learners": [list],
        "kilobytes": [Interval(Real, 0, None, closed="neither"), None],
        "milliseconds": [Interval(Real, 0, None, closed="neither"), None],
        "cv": ["cv_object"],
        "compress": [list, None],
        "scoring": "no_validation",  # by task_scorer
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        learners,
        *,
        kilobytes=None,
        milliseconds=None,
        cv=None,
        compress=None,
        scoring=None,
        random_state=None,
    ):
        self.learners = learners
        self.kilobytes = kilobytes
        self.milliseconds = milliseconds
        self.cv = cv
        self.compress = compress
        self.scoring = scoring
        self.random_state = random_state

    @property
    def meta_learner(self):
        """The first learner, which tells the kind of all."""
        return self.learners[0][1]

    def get_params(self, deep=True):
        """Parameters, with `deep` those of learners and compressions too."""
        return self._get_params("compress", deep) | self._get_params("learners", deep)

    def set_params(self, **params):
        """Set parameters, those of learners and compressions by their names too.

        Returns
        -------
        self
        """
        compress = params.get("compress", self.compress)
        own = {"compress", *(name for name, _ in compress or [])}
        self._set_params("compress", **{k: params.pop(k) for k in own & params.keys()})
        return self._set_params("learners", **params)

    def fit(self, tasks, y=None):
        """Train all learners, select one, compress it if need be.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
        y : None
            Ignored; tasks hold their own.

        Returns
        -------
        self
        """
        self._validate_params()
        compressions = self._check_parts()
        scorer = task_scorer(self.scoring)
        tasks = check_tasks(tasks, self.unlabeled)
        splits = check_cv(self.cv).split(tasks)
        folds = [[_safe_indexing(tasks, rows) for rows in split] for split in splits]
        seed = None
        if self.random_state is not None:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        limits = limits_of(self.kilobytes, self.milliseconds)
        search = _Search(dict(self.learners), compressions, folds, scorer, limits, seed)
        chosen = search.run()
        self.meta_learner_ = search.fit(chosen, tasks)
        self.results_ = [
            {**result, "chosen": name == chosen}
            for name, result in search.results.items()
        ]
        return self

    def _check_parts(self):
        """Raise unless learners and compressions are what they should be.

        Returns
        -------
        dict
            Compressions by their names.
        """
        if not self.learners:
            raise ValueError("learners is an empty list. Pass at least one.")
        compress = self.compress
        if compress is None:
            compress = [
                (f"slim {100 * amount:.0f} %", PrunedLearner(None, amount, how="slim"))
                for amount in (0.25, 0.5, 0.75)
            ]
        parts = [*self.learners, *compress]
        if not all(isinstance(p, tuple) and len(p) == 2 for p in parts):
            raise TypeError(
                "learners and compress must be lists of pairs (name, estimator)."
            )
        self._validate_names([name for name, _ in parts])
        for name, learner in self.learners:
            self._check_learner(name, learner)
        for name, compression in compress:
            if not isinstance(compression, WrappedLearner) or not _slot(compression):
                raise TypeError(
                    f"{name!r} of compress must be a compressed learner with a "
                    "parameter meta_learner or teacher, such as "
                    f"PrunedLearner(None, 0.5); got {type(compression).__name__}."
                )
        return dict(compress)

    def _check_learner(self, name, learner):
        if isinstance(learner, FrozenEstimator):
            raise TypeError(
                f"{name!r} is frozen: it may know the tasks that it would be scored "
                "on. Pass the meta-learner itself; it is fitted anew."
            )
        if not isinstance(learner, MetaEstimator | WrappedLearner):
            raise TypeError(
                f"{name!r} must be a meta-learner with a network, got "
                f"{type(learner).__name__}. In a Pipeline, put SelectBest in its last "
                "step."
            )
        first_name, first = self.learners[0]
        if learner._classification != first._classification:
            raise TypeError(
                f"{first_name!r} is a {type(first).__name__}, {name!r} a "
                f"{type(learner).__name__}: one is for classes, the other for targets. "
                "Choose all of one kind."
            )


def _slot(compression):
    """Name of the parameter that takes what is compressed."""
    names = compression.get_params(deep=False)
    return next((n for n in ("meta_learner", "teacher") if n in names), None)


class _Search:
    """Candidates by name, with their fits on the folds and their results.

    Attributes
    ----------
    results : dict of dict
        Name of a candidate -> its result.
    """

    def __init__(self, learners, compressions, folds, scorer, limits, seed):
        self.learners, self.compressions = learners, compressions
        self.folds, self.scorer, self.limits, self.seed = folds, scorer, limits, seed
        self.results, self.fits = {}, {}
        self.recipes = {name: (name, None) for name in learners}

    def run(self):
        """Name of the candidate to choose."""
        for name in self.learners:
            self.fits[name] = [self._trained(name, train) for train, _ in self.folds]
            self._note(name, self.fits[name], self._cost(self.fits[name][0]))
        scores = {name: self.results[name]["score"] for name in self.learners}
        order = sorted(scores, key=scores.get, reverse=True)
        if not self._fits(order[0]):
            for name in order:
                self._try_compressions(name)
                if any(map(self._fits, self.results)):
                    break
        rows = list(self.results.values())
        column = {
            key: np.array([row[key] for row in rows], dtype=float)
            for key in ("score", *self.limits)
        }
        names = list(self.results)
        return names[best_index(names, column.pop("score"), column, self.limits)]

    def fit(self, chosen, tasks):
        """Train and compress a candidate on all tasks."""
        name, compression = self.recipes[chosen]
        meta = self._trained(name, tasks)
        return (
            meta if compression is None else self._compressed(compression, meta, tasks)
        )

    def _try_compressions(self, name):
        for compression in self.compressions:
            whole = f"{name}, {compression}"
            self.recipes[whole] = name, compression
            try:
                fits, cost = self._fit_if_small(name, compression)
            except (TypeError, ValueError) as error:
                message = f"{whole!r} is left out, since it failed: {error}"
                warnings.warn(message, FitFailedWarning, stacklevel=4)
                fits, cost = [], dict.fromkeys(UNITS, float("nan"))
            self._note(whole, fits, cost)

    def _fit_if_small(self, name, compression):
        """Fits on all folds, or none if the first is too large, and its cost."""
        fits, cost = [], {}
        for meta, (train, _) in zip(self.fits[name], self.folds, strict=True):
            fits.append(self._compressed(compression, meta, train))
            cost = cost or self._cost(fits[0])
            if any(cost[key] > limit for key, limit in self.limits.items()):
                return [], cost  # not worth more training
        return fits, cost

    def _note(self, name, fits, cost):
        score = float("nan")
        if fits:
            tests = [test for _, test in self.folds]
            score = float(np.mean(list(map(self.scorer, fits, tests))))
        self.results[name] = {"name": name, "score": score, **cost}

    def _cost(self, meta):
        if not self.limits:
            return dict.fromkeys(UNITS)
        from sk_meta.onnx.report import learner_cost

        return dict(zip(UNITS, learner_cost(meta), strict=True))

    def _fits(self, name):
        result = self.results[name]
        return all(result[key] <= limit for key, limit in self.limits.items())

    def _trained(self, name, tasks):
        return self._seeded(self.learners[name]).fit(tasks)

    def _compressed(self, name, meta, tasks):
        compression = self._seeded(self.compressions[name])
        return compression.set_params(
            **{_slot(compression): FrozenEstimator(meta)}
        ).fit(tasks)

    def _seeded(self, estimator):
        estimator = clone(estimator)
        if getattr(estimator, "random_state", self.seed) is None:
            estimator.set_params(random_state=self.seed)
        return estimator
