"""A meta-learner inside, and its face outside: compressed and repaired learners."""

from copy import copy, deepcopy

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from sk_meta.base import MetaEstimator


def check_learner(meta_learner):
    """Raise unless it is a meta-learner, or a frozen one that is fitted.

    Returns
    -------
    frozen : bool
    """
    frozen = isinstance(meta_learner, FrozenEstimator)
    inner = meta_learner.estimator if frozen else meta_learner
    if not isinstance(inner, MetaEstimator | WrappedLearner):
        raise TypeError(
            "meta_learner must be a meta-learner with a network of its own, or "
            f"FrozenEstimator of a fitted one; got {type(inner).__name__}. In a "
            "Pipeline, wrap its last step."
        )
    if frozen:
        check_is_fitted(inner)
    return frozen


def fitted_learner(meta_learner, tasks, seed=None):
    """A copy of a frozen meta-learner, or a clone that is fitted.

    Parameters
    ----------
    meta_learner : meta-learner, or FrozenEstimator of a fitted one
    tasks : list of Task, list of (X, y), or EpisodeSampler
    seed : int, default=None
        For a meta-learner that is fitted here and has no `random_state` of its own.

    Returns
    -------
    meta-learner
        Fitted; the caller may change it.
    """
    if check_learner(meta_learner):
        return deepcopy(meta_learner.estimator)
    meta = clone(meta_learner)
    if getattr(meta, "random_state", seed) is None:
        meta.set_params(random_state=seed)
    return meta.fit(tasks)


def start_from(meta_learner, tasks, random_state):
    """A meta-learner as from `fitted_learner`, and to train on.

    Parameters
    ----------
    meta_learner : meta-learner, or FrozenEstimator of a fitted one
    tasks : list of Task, list of (X, y), or EpisodeSampler
    random_state : int, RandomState instance or None
        For its training and the draws of further training; None leaves its own.

    Returns
    -------
    meta-learner
    """
    if random_state is None:
        return unwrapped(fitted_learner(meta_learner, tasks))
    seeds = check_random_state(random_state).randint(2**31 - 1, size=2).tolist()
    meta = unwrapped(fitted_learner(meta_learner, tasks, seeds[0]))
    meta.net_.rng_ = np.random.default_rng(seeds[1])
    return meta


def renew_optimizer(net):
    """Give a TaskNet a new optimizer, for its parameters as they are now."""
    net._initialize_optimizer(reason="The network was changed: a new optimizer.")
    for group in net.optimizer_.param_groups:  # where a schedule goes on from
        group["initial_lr"] = group["lr"]


def _classifies(self):
    return self._classification


class WrappedLearner(BaseEstimator):
    """A meta-learner that holds another one in `meta_learner_`.

    A subclass has a parameter `meta_learner` and a `fit` that sets `meta_learner_`.
    """

    @property
    def _classification(self):
        inner = getattr(self, "meta_learner_", self.meta_learner)
        return getattr(inner, "estimator", inner)._classification

    @property
    def unlabeled(self):
        """The y of unlabelled rows, where the learner uses them."""
        inner = getattr(self, "meta_learner_", self.meta_learner)
        return getattr(inner, "estimator", inner).unlabeled

    @property
    def learner_(self):
        """The Learner inside."""
        return self._fitted().learner_

    @property
    def net_(self):
        """The TaskNet that trained it last."""
        return self._fitted().net_

    @property
    def history_(self):
        """Losses of its training."""
        return self._fitted().history_

    @property
    def schema_(self):
        """What the tasks have in common."""
        return self._fitted().schema_

    @property
    def classes_(self):
        """All labels, where they are shared."""
        return self._fitted().classes_

    @property
    def n_features_in_(self):
        """Numbers in a row."""
        return self._fitted().n_features_in_

    @property
    def feature_names_in_(self):
        """Column names, where the tasks were DataFrames."""
        return self._fitted().feature_names_in_

    def _fitted(self):
        if "meta_learner_" not in vars(self):
            raise AttributeError(f"This {type(self).__name__} is not fitted yet.")
        return self.meta_learner_

    def __sklearn_is_fitted__(self):
        return "meta_learner_" in vars(self)

    def adapt(self, X, y, *, sample_weight=None, metadata=None):
        """Learn a new task from its support set; see the meta-learner's own `adapt`.

        Returns
        -------
        FewShotClassifier or FewShotRegressor
        """
        check_is_fitted(self)
        return self.meta_learner_.adapt(
            X, y, sample_weight=sample_weight, metadata=metadata
        )

    def adapt_state(self, X, y, sample_weight=None, metadata=None):
        """See the meta-learner's own `adapt_state`."""
        return self._fitted().adapt_state(X, y, sample_weight, metadata)

    def portable_state(self, state):
        """See the meta-learner's own `portable_state`."""
        return self._fitted().portable_state(state)

    def apply_state(self, state, X, n_classes):
        """See the meta-learner's own `apply_state`."""
        return self._fitted().apply_state(state, X, n_classes)

    @available_if(lambda self: hasattr(self._fitted(), "embed"))
    def embed(self, X):
        """See the meta-learner's own `embed`."""
        return self._fitted().embed(X)

    def predict_tasks(self, tasks):
        """Predictions for the query rows of tasks, with the rows they are for."""
        check_is_fitted(self)
        return self.meta_learner_.predict_tasks(tasks)

    def predict(self, tasks, **options):
        """Labels or targets of the query rows of each task; see the meta-learner."""
        check_is_fitted(self)
        return self.meta_learner_.predict(tasks, **options)

    @available_if(_classifies)
    def predict_proba(self, tasks):
        """Class probabilities of the query rows of each task."""
        check_is_fitted(self)
        return self.meta_learner_.predict_proba(tasks)

    def score(self, tasks, y=None):
        """Mean over tasks of accuracy or R^2; see the meta-learner."""
        check_is_fitted(self)
        return self.meta_learner_.score(tasks)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.target_tags.required = False
        return tags


def file_within(meta):
    """The wrapped learner that is a file already, such as a quantised one; or None.

    It may be inside another, which chose it.
    """
    while isinstance(meta, WrappedLearner):
        if hasattr(meta, "onnx_model_"):
            return meta
        meta = meta._fitted()
    return None


def unwrapped(meta):
    """The meta-learner inside wrapped ones; others as they are."""
    while isinstance(meta, WrappedLearner):
        check_is_fitted(meta)
        meta = meta.meta_learner_
    return copy(meta)
