"""Features that matter to a meta-learner, over many tasks."""

from numbers import Integral
from typing import ClassVar

import numpy as np
from sklearn.feature_selection import SelectKBest
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, RealNotInt
from sklearn.utils.validation import check_is_fitted, validate_data

from sk_meta.metrics import task_scorer
from sk_meta.pipeline import SupportScaledTask, TaskTransformer
from sk_meta.tasks.validation import call_task, check_tasks
from sk_meta.wrapped import check_learner, fitted_learner


class TaskFeatureSelector(TaskTransformer, auto_wrap_output_keys=None):
    """Keep the features that a meta-learner needs, judged over many tasks.

    A meta-learner is trained with all features. Then one feature at a time is shuffled
    among the rows of each task, support set and query set alike, so that it says
    nothing there, neither to adapt from nor to predict from. Its importance is what the
    score over the tasks loses by that.

    A step of a Pipeline, before the meta-learner that works on what is left. To select
    by a test on pooled rows instead, use ``TaskTransformer(SelectKBest())``.

    Parameters
    ----------
    meta_learner : meta-learner, or FrozenEstimator of a fitted one
        What judges: a clone, fitted on the tasks, or the frozen one as it is. Frozen,
        it may be asked about tasks that it was not trained on.
    n_features_to_select : int or float, default=0.5
        How many features stay, or which share of them; at least one stays.
    n_repeats : int, default=5
        Times that each feature is shuffled.
    scoring : str or callable, default=None
        A metric of sklearn, such as "balanced_accuracy", or a scorer; None means the
        meta-learner's own, accuracy or R^2.
    random_state : int, RandomState instance or None, default=None
        Seed of the shuffling, and of an unfitted meta-learner without a `random_state`.

    Attributes
    ----------
    meta_learner_ : meta-learner
        That judged.
    score_ : float
        Mean over the tasks, with all features.
    importances_ : array of shape (n_features, n_repeats)
        Loss of score; about 0, of either sign, for a feature without use.
    support_ : bool array of shape (n_features,)
        Which features stay.
    transformer_ : SelectKBest
        Takes them from rows.
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    Raises
    ------
    ValueError
        If the rows are no vectors of features, there are fewer than
        `n_features_to_select`, or a transformer of scope "support" comes before; before
        any training.

    Notes
    -----
    A feature that is constant within each task is not changed by shuffling, and so of
    importance 0, though it may tell tasks apart. Of two features that say the same,
    each may hide the other's importance.

    References
    ----------
    Breiman (2001), Random Forests, section 10: importance by permutation.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_meta import PrototypicalClassifier, TaskFeatureSelector, TaskNet
    >>> rng = np.random.default_rng(0)
    >>> tasks = [(rng.normal(size=(20, 3)), np.arange(20) % 2) for _ in range(10)]
    >>> for X, y in tasks:
    ...     X[:, 1] += 4 * y
    >>> meta = PrototypicalClassifier(TaskNet(max_epochs=2), random_state=0)
    >>> select = TaskFeatureSelector(meta, 1, random_state=0).fit(tasks)
    >>> select.get_support()
    array([False,  True, False])
    >>> select.transform(tasks)[0].X.shape
    (20, 1)
    """

    scope = "pooled"  # see TaskTransformer: frozen when adapting
    _parameter_constraints: ClassVar[dict] = {
        "meta_learner": "no_validation",  # by check_learner
        "n_features_to_select": [
            Interval(Integral, 1, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="neither"),
        ],
        "n_repeats": [Interval(Integral, 1, None, closed="left")],
        "scoring": [str, callable, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        meta_learner,
        n_features_to_select=0.5,
        *,
        n_repeats=5,
        scoring=None,
        random_state=None,
    ):
        self.meta_learner = meta_learner
        self.n_features_to_select = n_features_to_select
        self.n_repeats = n_repeats
        self.scoring = scoring
        self.random_state = random_state

    def fit(self, tasks, y=None):
        """Train the meta-learner where it is not frozen, and find what it needs.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
        y : None
            Ignored.

        Returns
        -------
        self
        """
        self._validate_params()
        check_learner(self.meta_learner)
        scorer = None if self.scoring is None else task_scorer(self.scoring)
        tasks = check_tasks(tasks)
        n_features = _n_features(tasks)
        n_kept = self._n_kept(n_features)
        rng = check_random_state(self.random_state)
        seed = None if self.random_state is None else rng.randint(2**31 - 1)
        meta = fitted_learner(self.meta_learner, tasks, seed)

        def score(tasks):
            return meta.score(tasks) if scorer is None else scorer(meta, tasks)

        # As tasks of their own: an episode would have its whole table copied.
        plain = [task.replace_X(task.X) for task in tasks]
        all_features = score(plain)
        importances = np.empty((n_features, self.n_repeats))
        for repeat in range(self.n_repeats):
            # The same order for all features: they are compared on equal terms.
            orders = [rng.permutation(len(task)) for task in plain]
            for feature in range(n_features):
                shuffled = map(_shuffled, plain, orders, [feature] * len(plain))
                importances[feature, repeat] = all_features - score([*shuffled])
        self.meta_learner_ = meta
        self.score_, self.importances_ = all_features, importances
        self._select(n_kept, plain[0].X)
        return self

    def _n_kept(self, n_features):
        wanted = self.n_features_to_select
        if not isinstance(wanted, Integral):
            return max(1, round(wanted * n_features))
        if wanted > n_features:
            raise ValueError(
                f"n_features_to_select is {wanted}, but the tasks have {n_features} "
                "features. Lower it, or pass a share between 0 and 1."
            )
        return wanted

    def _select(self, n_kept, X):
        # Plain sklearn, which ONNX converters know. The scores are ours: its own test
        # of features is never run.
        self.transformer_ = SelectKBest(k=n_kept)
        self.transformer_.scores_ = self.importances_.mean(1)
        validate_data(self.transformer_, X, skip_check_array=True)
        self.set_output(**getattr(self, "_sklearn_output_config", {}))
        self.support_ = self.transformer_.get_support()
        self.n_features_in_ = self.transformer_.n_features_in_
        vars(self).pop("feature_names_in_", None)
        if hasattr(self.transformer_, "feature_names_in_"):
            self.feature_names_in_ = self.transformer_.feature_names_in_

    def get_support(self, indices=False):
        """Which features stay.

        Parameters
        ----------
        indices : bool, default=False
            Positions instead of a mask.

        Returns
        -------
        array of bool of shape (n_features,), or of int of shape (n_kept,)
        """
        check_is_fitted(self)
        return np.flatnonzero(self.support_) if indices else self.support_

    def get_feature_names_out(self, input_features=None):
        """Names of the features that stay.

        Parameters
        ----------
        input_features : array of str, default=None
            Names of all of them; None for those of `fit`, or x0, x1, ...

        Returns
        -------
        array of str
        """
        check_is_fitted(self)
        return self.transformer_.get_feature_names_out(input_features)

    def set_output(self, *, transform=None):
        """Set the output container of `transformer_`.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"} or None, default=None

        Returns
        -------
        self
        """
        if transform is not None:
            # Where sklearn keeps it: clone takes it along.
            self._sklearn_output_config = {"transform": transform}
            if hasattr(self, "transformer_"):
                self.transformer_.set_output(transform=transform)
        return self


def _n_features(tasks):
    """Length of the rows of tasks; raises where they are no vectors of features."""
    for position, task in enumerate(tasks):
        if isinstance(task, SupportScaledTask):
            raise ValueError(
                "A TaskFeatureSelector cannot follow a TaskTransformer of scope "
                "'support'. Put the selector first."
            )
        if task.X.ndim != 2:
            raise ValueError(
                f"{call_task(task, position)} has rows of shape {task.X.shape[1:]}; "
                "features are selected from rows of shape (n_features,). Flatten them, "
                "or leave out the TaskFeatureSelector."
            )
        if task.X.shape[1] != tasks[0].X.shape[1]:
            raise ValueError(
                f"{call_task(task, position)} has {task.X.shape[1]} features; the first"
                f" task has {tasks[0].X.shape[1]}. All tasks need the same features."
            )
    return tasks[0].X.shape[1]


def _shuffled(task, order, feature):
    """A task with its rows' values of one feature in another order."""
    X = task.X.copy()
    if hasattr(X, "iloc"):
        X.isetitem(feature, X.iloc[order, feature].array)
    else:
        X[:, feature] = X[order, feature]
    return task.replace_X(X)
