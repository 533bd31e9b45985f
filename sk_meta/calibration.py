"""CalibratedLearner: how sure a learner is, corrected by tasks that were held out."""

import warnings
from numbers import Real
from typing import ClassVar

import numpy as np
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils._param_validation import Interval

from sk_meta.compression.quantize import QuantizedLearner
from sk_meta.predictions import scored_rows
from sk_meta.tasks.sampling import tables_of
from sk_meta.tasks.validation import check_tasks
from sk_meta.training import TaskNet
from sk_meta.wrapped import (
    WrappedLearner,
    check_learner,
    file_within,
    fitted_learner,
    unwrapped,
)

_SOFT = 100.0  # a temperature at which no probability is rounded to 0
_MOST = 1e3  # temperature, and its inverse


class CalibratedLearner(WrappedLearner):
    """A meta-learner whose uncertainty is corrected by tasks that it has not seen.

    The training tasks are cut into folds. Clones that are fitted without a fold adapt
    to its tasks and predict their query rows. From these predictions one number is
    found: in regression the factor of the standard deviations with which intervals
    cover as many rows as they say, in classification the temperature of the
    probabilities. Every task counts the same. Then a clone is fitted on all tasks, and
    predicts with that number: after `adapt`, over tasks, and in ONNX. Means and labels
    stay as they are.

    Parameters
    ----------
    meta_learner : meta-learner, or FrozenEstimator of a fitted one
        A classifier, or a regressor that gives standard deviations. Of a frozen one a
        copy is calibrated on all tasks given to `fit`, which it must not have seen;
        there are no folds then.
    cv : int, splitter or iterable, default=5
        Folds of tasks, as for GridSearchCV: their number, without shuffling; a
        splitter such as ``KFold(5, shuffle=True)``; or pairs of positions of tasks.
        None means 5. Tasks that belong together, such as those of one patient, must
        not be parted, see Notes.
    level : float, default=0.9
        Share of the query rows that their intervals shall cover, ``mean +- z * std``
        with the quantile z of the normal distribution. Of no effect in classification.
    random_state : int, RandomState instance or None, default=None
        Seed of a meta-learner that has no `random_state` of its own, in every fit.

    Attributes
    ----------
    meta_learner_ : meta-learner
        Fitted on all tasks, and calibrated.
    factor_ : float
        Regression: what standard deviations are multiplied by. Classification: the
        temperature, by which logits are divided. Above 1: too sure without it.
    coverage_ : float
        Share of the held-out query rows, mean over tasks, in the intervals of `level`
        before calibration. Regression only.
    log_loss_ : float
        Log loss of the held-out query rows, mean over tasks, before calibration.
        Classification only.
    net_ : TaskNet
    learner_ : Learner
    history_ : skorch.history.History
    schema_ : Schema
        What the tasks have in common.
    classes_ : array of shape (n_classes,)
        All labels, where they are shared.
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    Raises
    ------
    TypeError
        By `fit`, before any training: if `meta_learner` is no meta-learner, is a
        regressor without standard deviations, or has a Learner of one's own whose
        `predict` does not end in ``self.calibrated(scores)``.
    ValueError
        By `fit`, before any training: if it is a QuantizedLearner, which is a file, or
        if a class is in one fold alone. After the folds, if predictions of held-out
        rows are not finite.

    Warns
    -----
    UserWarning
        If the tasks are episodes of one table: those held out have classes that were
        trained on, so that nothing is known of new ones.

    Notes
    -----
    The level holds on the average over tasks like those of training and their rows,
    not for each task. The folds' learners have seen fewer tasks than the last one, and
    may be somewhat worse: the intervals then are somewhat too wide. A support set of a
    task without one is drawn as in `predict`.

    Several tasks of one patient are no new tasks to each other:
    ``cv=list(GroupKFold(5).split(tasks, groups=patients))`` keeps them together.

    Query rows whose class is not in the support set are left out; no temperature can
    help there. Training on, compressing or repairing a calibrated learner makes the
    number stale: calibrate last, but before a QuantizedLearner.

    References
    ----------
    Vovk (2015), Cross-conformal predictors, Annals of Mathematics and Artificial
    Intelligence 74: scores of held-out folds, here of tasks, and their quantile. Levi,
    Gispan, Giladi, Fetaya (2022), Evaluating and Calibrating Uncertainty Prediction in
    Regression Tasks: one factor for all standard deviations. Guo, Pleiss, Sun,
    Weinberger (2017), On Calibration of Modern Neural Networks, section 4.2: the
    temperature.

    Examples
    --------
    >>> from sk_meta import CalibratedLearner, ConditionalNeuralProcessRegressor
    >>> from sk_meta import TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> net = TaskNet(max_epochs=2)
    >>> meta = ConditionalNeuralProcessRegressor(net, random_state=0)
    >>> meta = CalibratedLearner(meta, cv=2).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> mean, std = few_shot.predict(new.X_query, return_std=True)
    >>> low, high = mean - 1.645 * std, mean + 1.645 * std  # a 90 % interval
    """

    _parameter_constraints: ClassVar[dict] = {
        "meta_learner": "no_validation",  # by check_learner
        "cv": ["cv_object"],
        "level": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
    }

    def __init__(self, meta_learner, *, cv=5, level=0.9, random_state=None):
        self.meta_learner = meta_learner
        self.cv = cv
        self.level = level
        self.random_state = random_state

    def fit(self, tasks, y=None):
        """Calibrate on held-out tasks, and fit on all.

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
        frozen = check_learner(self.meta_learner)
        inner = _innermost(self.meta_learner)
        tasks = check_tasks(tasks, inner.unlabeled)
        seed = self._seed()
        if frozen:
            meta = fitted_learner(self.meta_learner, tasks)
            _check_calibrates(meta, tasks)
            _warn_of_episodes(tables_of(tasks) & unwrapped(meta)._tables_of_fit)
            held_out = _predictions(meta, tasks)
        else:
            held_out = self._held_out(inner, tasks, seed)
        if inner._classification:
            (factor, before), name = _temperature(held_out), "log_loss_"
        else:
            (factor, before), name = _spread(held_out, self.level), "coverage_"
        if not frozen:
            meta = fitted_learner(self.meta_learner, tasks, seed)
        unwrapped(meta).learner_.calibrate(factor)
        for earlier in ("coverage_", "log_loss_"):
            vars(self).pop(earlier, None)
        self.meta_learner_, self.factor_ = meta, factor
        setattr(self, name, before)
        return self

    def _held_out(self, inner, tasks, seed):
        """Predictions for every task, by clones that were fitted without it."""
        _check_calibrates(_untrained(inner, tasks), tasks)
        splits = _checked_splits(check_cv(self.cv).split(tasks), inner, tasks)
        _warn_of_episodes(tables_of(tasks))
        found = []
        for train, test in splits:
            seen, unseen = (_safe_indexing(tasks, part) for part in (train, test))
            meta = fitted_learner(self.meta_learner, seen, seed)
            found += _predictions(meta, unseen)
        return found

    def _seed(self):
        if self.random_state is None:
            return None
        return int(check_random_state(self.random_state).randint(2**31 - 1))


def _innermost(meta):
    """The meta-learner with a network inside wrapped ones, fitted or not."""
    while isinstance(meta, WrappedLearner | FrozenEstimator):
        if isinstance(meta, QuantizedLearner):
            raise ValueError(
                "A QuantizedLearner is a file, which stays as it is. Calibrate the "
                "learner first, then quantise it: "
                "QuantizedLearner(FrozenEstimator(CalibratedLearner(...).fit(tasks)))."
            )
        inner = getattr(meta, "estimator", None)
        meta = meta.meta_learner if inner is None else inner
    return meta


def _untrained(meta, tasks):
    """A meta-learner as it is before its first epoch."""
    meta = clone(meta).set_params(verbose=0)
    net = TaskNet() if meta.net is None else meta.net
    if isinstance(net, TaskNet):
        options = {"max_epochs": 0, "callbacks": None, "compile": False}
        meta.net = clone(net).set_params(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fit of a fold says them again
        return meta.fit(tasks)


def _check_calibrates(meta, tasks):
    """Raise unless a fitted meta-learner has something to calibrate, and can be."""
    inner = unwrapped(meta)
    kind, learner, first = type(inner).__name__, inner.learner_, tasks[:1]
    learner.calibrate(np.inf)  # all classes alike, or no end of the interval
    (found,) = inner.predict_tasks(first)
    if found.classes is None and found.std is None:
        raise TypeError(
            f"{kind} gives no standard deviation, so there is nothing to calibrate. "
            "Use a regressor that does, such as ALPaCARegressor, DKTRegressor or "
            "AttentiveNeuralProcessRegressor."
        )
    sure = np.ptp(found.values) > 1e-6 if found.std is None else found.std < np.inf
    if np.any(sure):
        raise TypeError(
            f"predict of {type(learner).__name__}, the Learner of {kind}, does not "
            "calibrate. Let it end in: return self.calibrated(scores)."
        )


def _checked_splits(splits, inner, tasks):
    """Folds as a list; raise where one is trained without classes of another."""
    splits = [tuple(np.asarray(part) for part in pair) for pair in splits]
    whole = _outputs(inner, tasks)
    last = max((part.max() for pair in splits for part in pair if part.size), default=0)
    if last >= len(tasks):
        raise ValueError(
            f"cv holds the position {last}, but fit got {len(tasks)} tasks. A search "
            "fits parts of the tasks, which positions in all do not suit: calibrate "
            "its best_estimator_ afterwards, or pass a splitter or a number."
        )
    for number, (train, _) in enumerate(splits):
        part = _outputs(inner, _safe_indexing(tasks, train))
        if part != whole:
            raise ValueError(
                f"All tasks together have {whole}; those to train on for fold {number} "
                f"of cv have {part}. Shuffle the folds, KFold(5, shuffle=True), or "
                "pass tasks that have the same classes."
            )
    return splits


def _outputs(inner, tasks):
    schema = inner._make_schema(tasks)
    if schema.classes is not None:
        return f"the classes {schema.classes.tolist()}"
    return f"{inner._n_network_outputs(schema)} outputs"


def _warn_of_episodes(tables):
    if tables:
        warnings.warn(
            "Episodes of one table share their classes, so the learner is calibrated "
            "for classes that it was trained on; it may be too sure of new ones. Fit "
            "it on episodes of some classes, and calibrate FrozenEstimator of it on "
            "episodes of others; see split_classes.",
            stacklevel=4,
        )


def _predictions(meta, tasks):
    """Predictions for tasks, without a calibration; probabilities softened."""
    _innermost(file_within(meta))  # what SelectBest has chosen may be one
    inner = unwrapped(meta)
    inner.learner_.calibrate(_SOFT if inner._classification else None)
    return inner.predict_tasks(tasks)


def _spread(held_out, level):
    """Factor of standard deviations that covers `level`, and the coverage before."""
    ratios, weights = [], []
    for found in held_out:
        y, rows, weight = scored_rows(found)
        ratio = np.abs(y - found.values[rows]) / found.std[rows]
        ratio = ratio.reshape(len(y), -1)  # by target
        weight = np.ones(len(y)) if weight is None else weight
        share = weight / (max(weight.sum(), 1e-12) * ratio.shape[1])
        ratios.append(ratio.ravel())
        weights.append(np.repeat(share, ratio.shape[1]))
    ratios, weights = _finite(np.concatenate(ratios)), np.concatenate(weights)
    order, normal = np.argsort(ratios), stats.norm.ppf(0.5 + level / 2)
    covered = np.cumsum(weights[order]) / weights.sum()
    # Less what sums are rounded by: 0.9 of ten rows are nine.
    last = np.searchsorted(covered, level - 1e-9)
    if ratios[order][last] == 0:
        raise ValueError(
            f"{level:.0%} of the held-out query rows are predicted without any error, "
            "so no standard deviation is too small. Leave out tasks whose targets are "
            "constant, or raise level."
        )
    before = weights[ratios <= normal].sum() / weights.sum()
    return float(ratios[order][last] / normal), float(before)


def _temperature(held_out):
    """Temperature of the least log loss, and the log loss before."""
    parts = [part for part in map(_margins, held_out) if len(part[0])]
    if not parts:
        raise ValueError(
            "No held-out query row has a class of its support set. Pass tasks whose "
            "support sets hold all their classes."
        )
    width = max(margins.shape[1] for margins, _ in parts)
    margins = np.concatenate(
        [
            np.pad(each, ((0, 0), (0, width - each.shape[1])), constant_values=-np.inf)
            for each, _ in parts
        ]
    )
    weights = np.concatenate([weight for _, weight in parts]) / len(parts)

    def loss(log_temperature):
        return weights @ logsumexp(margins / np.exp(log_temperature), axis=1)

    most = np.log(_MOST)
    found = minimize_scalar(loss, bounds=(-most, most), method="bounded")
    return float(np.exp(found.x)), float(loss(0.0))


def _margins(found):
    """Logits of rows minus those of the true class (n, n_classes), and weights (n,)."""
    y, rows, weight = scored_rows(found)
    task, support = found.task, found.support
    if task.labeled is not None:
        support = support[task.labeled[support]]
    present = np.isin(found.classes, task.y[support])
    classes, known = found.classes[present], np.isin(y, found.classes[present])
    soft = _finite(found.values[rows][known][:, present])
    logits = _SOFT * np.log(np.maximum(soft, np.finfo(float).tiny))
    true = np.searchsorted(classes, y[known])[:, None]
    weight = (np.ones(len(y)) if weight is None else weight)[known]
    margins = logits - np.take_along_axis(logits, true, axis=1)
    return margins, weight / max(weight.sum(), 1e-12)


def _finite(values):
    if not np.isfinite(values).all():
        raise ValueError(
            "Some predictions of held-out rows are not finite: training has diverged. "
            "Lower net__lr, or look at history_ of the meta-learner alone."
        )
    return values
