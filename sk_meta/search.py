"""MetaGridSearchCV: the candidates and folds of a grid search, trained together."""

import time
from functools import partial
from itertools import product
from numbers import Integral, Real

from joblib import effective_n_jobs
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, ParameterGrid, check_cv
from sklearn.model_selection._validation import (
    _fit_and_score,
    _insert_error_scores,
    _warn_or_raise_about_fit_failures,
)
from sklearn.pipeline import Pipeline
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.parallel import Parallel, delayed

from sk_meta.base import MetaEstimator
from sk_meta.lockstep import Apart, Datasets, alike, prepared, train
from sk_meta.training import TaskNet

__all__ = ["MetaGridSearchCV"]

_AT_ONCE = 48  # candidates times folds that train together: bounds the memory


class MetaGridSearchCV(GridSearchCV):
    """GridSearchCV that trains candidates and folds together where it can.

    Interface, scores and `cv_results_` are those of scikit-learn's GridSearchCV.
    Candidates that differ only in numbers that change no shape train in lockstep, all
    folds at once: at each step, one call computes the gradients of all of them. These
    numbers are the learning rate and all parameters of the optimizer
    (``net__lr``, ``net__optimizer__weight_decay``), ``random_state``, and those that a
    method's Learner keeps as a float (``inner_lr``). Small networks gain the most.

    All others are evaluated as in GridSearchCV: networks with dropout or other random
    numbers, or with running statistics of batch normalisation; convolutions on a CPU
    and recurrent layers, which are faster one by one; a TaskNet with callbacks,
    `train_split`, `compile`, `max_memory` or `precision`; subclasses of TaskNet; and
    estimators that are neither a meta-learner nor a Pipeline that ends in one.

    Parameters
    ----------
    estimator : meta-learner, or Pipeline ending in one
    param_grid : dict or list of dict
    scoring : str, callable, list, tuple or dict, default=None
        None means the estimator's own `score`; for a metric over rows see
        `task_scorer`.
    n_jobs : int, default=None
        Processes. What trains together is divided among them.
    refit : bool, str or callable, default=True
    cv : int, cross-validation generator or iterable, default=None
        Splits tasks.
    verbose : int, default=0
        1 says how many candidates trained together, and why others did not.
    pre_dispatch : int or str, default="2*n_jobs"
    error_score : "raise" or number, default=nan
    return_train_score : bool, default=False

    Attributes
    ----------
    cv_results_, best_estimator_, best_score_, best_params_, best_index_, scorer_, \
    n_splits_, refit_time_, multimetric_
        As in GridSearchCV; `mean_fit_time` of what trained together is its share of
        the time.

    Notes
    -----
    Scores equal those of GridSearchCV up to the rounding of sums, which long
    meta-training can magnify. Progress bars and training logs of the candidates are
    not shown. At most 48 candidates times folds are in memory at a time.

    Examples
    --------
    >>> from sk_meta import MAMLRegressor, MetaGridSearchCV, TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> meta = MAMLRegressor(TaskNet(max_epochs=2), random_state=0)
    >>> grid = {"inner_lr": [0.01, 0.1], "net__lr": [1e-3, 1e-2]}
    >>> search = MetaGridSearchCV(meta, grid, cv=3, verbose=1)
    >>> search.fit(make_sinusoids(12, random_state=0)).cv_results_["params"][0]
    Fitting 3 folds for each of 4 candidates, totalling 12 fits
    4 candidates train together
    {'inner_lr': 0.01, 'net__lr': 0.001}
    """

    def fit(self, X, y=None, **params):
        """Evaluate all candidates, and refit the best.

        Parameters
        ----------
        X : list of Task, list of (X, y), or EpisodeSampler
        y : None
            Ignored; tasks hold their own.
        **params : dict
            ``groups`` for the splits.

        Returns
        -------
        self
        """
        self._validate_params()
        candidates = list(ParameterGrid(self.param_grid))
        groups, alone = _plan(self.estimator, candidates)
        if y is not None or not groups:
            if self.verbose and alone:
                print(_described(len(candidates), alone))
            return super().fit(X, y, **params)
        scorers, refit_metric = self._get_scorers()
        routed = self._get_routed_params_for_fit(params)
        splits = list(check_cv(self.cv).split(X, None, **routed.splitter.split))
        self.n_splits_ = len(splits)
        options = {
            "scorer": scorers,
            "fit_params": routed.estimator.fit,
            "score_params": routed.scorer.score,
            "return_train_score": self.return_train_score,
            "return_n_test_samples": True,
            "return_times": True,
            "error_score": self.error_score,
            "verbose": self.verbose,
        }
        out = self._evaluate(X, candidates, splits, groups, alone, options)
        _warn_or_raise_about_fit_failures(out, self.error_score)
        if callable(self.scoring):
            _insert_error_scores(out, self.error_score)
        self.cv_results_ = self._format_results(candidates, self.n_splits_, out)
        first = out[0]["test_scores"]
        self.multimetric_ = isinstance(first, dict)
        if callable(self.scoring) and self.multimetric_:
            self._check_refit_for_multimetric(first)
            refit_metric = self.refit
        if self.refit or not self.multimetric_:
            self._choose(refit_metric)
        if self.refit:
            self._refit(X, routed.estimator.fit)
        self.scorer_ = getattr(scorers, "_scorers", scorers)
        return self

    def _evaluate(self, X, candidates, splits, groups, alone, options):
        """Results of all pairs of a candidate and a fold, in sklearn's order."""
        n_candidates, n_splits = len(candidates), len(splits)
        if self.verbose:
            print(
                f"Fitting {n_splits} folds for each of {n_candidates} candidates, "
                f"totalling {n_candidates * n_splits} fits"
            )
        evaluate = partial(
            _evaluate_one, clone(self.estimator), X, candidates, splits, options
        )
        with Parallel(n_jobs=self.n_jobs, pre_dispatch=self.pre_dispatch) as parallel:
            results = {}
            jobs = _jobs(groups, n_splits, effective_n_jobs(self.n_jobs))
            for done, reasons in parallel(
                delayed(_evaluate_together)(evaluate, pairs) for pairs in jobs
            ):
                results.update(done)
                alone.update((c, reason) for (c, _), reason in reasons.items())
            if self.verbose:
                print(_described(n_candidates, alone))
            every = list(product(range(n_candidates), range(n_splits)))
            rest = [pair for pair in every if pair not in results]
            done = parallel(delayed(evaluate)(*pair) for pair in rest)
        results.update(zip(rest, done, strict=True))
        return [results[pair] for pair in every]

    def _choose(self, metric):
        results = self.cv_results_
        self.best_index_ = self._select_best_index(self.refit, metric, results)
        if not callable(self.refit):
            self.best_score_ = results[f"mean_test_{metric}"][self.best_index_]
        self.best_params_ = results["params"][self.best_index_]

    def _refit(self, X, fit_params):
        params = clone(self.best_params_, safe=False)
        self.best_estimator_ = clone(self.estimator).set_params(**params)
        start = time.time()
        self.best_estimator_.fit(X, **fit_params)
        self.refit_time_ = time.time() - start
        if hasattr(self.best_estimator_, "feature_names_in_"):
            self.feature_names_in_ = self.best_estimator_.feature_names_in_


def _plan(estimator, candidates):
    """Which candidates may train together, and why others may not.

    Returns
    -------
    groups : list of lists of int
        Positions of candidates.
    alone : dict
        Position -> reason.
    """
    groups, alone = {}, {}
    for c, params in enumerate(candidates):
        try:
            model = clone(estimator).set_params(**clone(params, safe=False))
            reason = _why_alone(model)
        except Exception as error:  # sklearn's evaluation will meet and report it
            reason = f"{type(error).__name__}"
        if reason is None:
            groups.setdefault(_rest(model, params), []).append(c)
        else:
            alone[c] = reason
    return list(groups.values()), alone


def _why_alone(model):
    """What keeps a candidate from training with others; None if nothing does."""
    if type(model) is Pipeline:
        if model.memory is not None or getattr(model, "transform_input", None):
            return "the Pipeline has a memory or transform_input"
        model = model.steps[-1][1]
    if not isinstance(model, MetaEstimator):
        return f"{type(model).__name__} has no network of its own"
    if type(model).fit is not MetaEstimator.fit:
        return f"{type(model).__name__} has a fit of its own"
    net = TaskNet() if model.net is None else model.net
    if type(net) is not TaskNet:
        return f"{type(net).__name__} is not TaskNet itself"
    if net.callbacks not in (None, "disable") and len(net.callbacks):
        return "callbacks"
    if net.train_split is not None:
        return "train_split"
    if net.compile or net.max_memory is not None or net.precision != "float32":
        return "compile, max_memory or precision"
    return None


def _rest(model, params):
    """What candidates that train together have in common."""
    last = f"{model.steps[-1][0]}__" if isinstance(model, Pipeline) else ""
    rest = []
    for name, value in params.items():
        own = name.removeprefix(last)
        is_own = name.startswith(last) and "__" not in own
        number = isinstance(value, Real) and not isinstance(value, Integral)
        if own in ("random_state", "net__lr") or (is_own and number):
            continue
        if name.startswith(f"{last}net__optimizer__"):
            continue
        try:
            hash(value)
        except TypeError:
            value = id(value)
        rest.append((name, type(value), value))
    return tuple(rest)


def _described(n_candidates, alone):
    together = n_candidates - len(alone)
    lines = [f"{together} candidates train together"]
    for reason in sorted(set(alone.values())):
        lines.append(f"{list(alone.values()).count(reason)} alone: {reason}")
    return "\n".join(lines)


def _jobs(groups, n_splits, n_jobs):
    """Pairs of a candidate and a fold that train together, in portions."""
    for group in groups:
        # Fold by fold: the members of a fold share their meta-batches.
        pairs = [(c, s) for s, c in product(range(n_splits), group)]
        n_portions = max(n_jobs, -(-len(pairs) // _AT_ONCE))
        size = -(-len(pairs) // n_portions)
        for start in range(0, len(pairs), size):
            yield pairs[start : start + size]


def _evaluate_one(base, X, candidates, splits, options, c, s, trained=None):
    """What sklearn does with one candidate and fold; `fit` may have been done."""
    model = clone(base)
    if trained is not None:
        model.fit = partial(_become, model, trained)
    train, test = splits[s]
    return _fit_and_score(
        model,
        X,
        None,
        train=train,
        test=test,
        parameters=candidates[c],
        split_progress=(s, len(splits)),
        candidate_progress=(c, len(candidates)),
        **options,
    )


def _become(model, trained, X):
    """`fit` of a model that has been trained already."""
    own = model.get_params(deep=False)
    vars(model).update({k: v for k, v in vars(trained).items() if k not in own})
    if isinstance(model, Pipeline):
        model.steps = trained.steps
    del model.fit
    return model


def _evaluate_together(evaluate, pairs):
    """Train pairs of a candidate and a fold together, and score each.

    Returns
    -------
    results : dict
        Pair -> what `_fit_and_score` returns.
    reasons : dict
        Of the pairs that have to be evaluated one by one.
    """
    start = time.time()
    base, X, candidates, splits, _ = evaluate.args
    parts, datasets, trained, reasons = {}, Datasets(), {}, {}
    for c, s in pairs:
        model = clone(base).set_params(**clone(candidates[c], safe=False))
        try:
            if s not in parts:
                parts[s] = _transformed(
                    model, _safe_split(base, X, None, splits[s][0])[0]
                )
            steps, tasks = parts[s]
            meta = model.steps[-1][1] if steps is not None else model
            meta = prepared(meta, tasks, s, datasets)
        except Apart as error:
            reasons[c, s] = str(error)
        except Exception as error:  # sklearn's evaluation will meet and report it
            reasons[c, s] = f"{type(error).__name__} in fit"
        else:
            if steps is None:
                model = meta
            else:
                model.steps = [*steps, (model.steps[-1][0], meta)]
            trained[c, s] = model, meta
    units = {}
    for pair, (_, meta) in trained.items():
        units.setdefault(alike(meta), []).append(pair)
    for unit in units.values():
        try:
            train([trained[pair][1] for pair in unit], [s for _, s in unit], datasets)
        except Exception as error:
            for pair in unit:
                reasons[pair] = str(error).split("\n")[0] or type(error).__name__
                del trained[pair]
    share = (time.time() - start) / max(1, len(trained))
    results = {}
    for pair in sorted(trained):
        results[pair] = evaluate(*pair, trained=trained[pair][0])
        results[pair]["fit_time"] = share
    return results, reasons


def _transformed(model, tasks):
    """A Pipeline's transformers, fitted, and what they make of tasks."""
    if not isinstance(model, Pipeline):
        return None, tasks
    if len(model.steps) == 1:
        return [], tasks
    transformers = Pipeline(clone(model).steps[:-1])
    tasks = transformers.fit_transform(tasks)
    return transformers.steps, tasks
