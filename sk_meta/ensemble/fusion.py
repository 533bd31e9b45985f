"""Several meta-learners as one."""

from typing import ClassVar

import numpy as np
from sklearn.base import is_classifier, is_regressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, RealNotInt, StrOptions
from sklearn.utils.metaestimators import _BaseComposition, available_if
from sklearn.utils.validation import check_is_fitted

from sk_meta.ensemble.averaging import Averaged
from sk_meta.ensemble.concatenation import Concatenated
from sk_meta.ensemble.members import (
    check_agreement,
    check_learners,
    fit_members,
    frozen,
    with_support,
)
from sk_meta.ensemble.soup import soup_of
from sk_meta.ensemble.weights import given
from sk_meta.over_tasks import ClassifiesTasks, RegressesTasks
from sk_meta.task_by_task import TaskByTask
from sk_meta.tasks.sampling import EpisodeSampler
from sk_meta.tasks.validation import check_tasks

_NAMED_WEIGHTS = {
    "average": ("uniform", "learned", "support"),
    "concatenate": ("uniform",),
    "soup": ("uniform", "learned"),
}


class _Fusion(TaskByTask, _BaseComposition):
    """What the classifier and the regressor share."""

    _parameter_constraints: ClassVar[dict] = {
        **TaskByTask._parameter_constraints,
        "learners": [list],
        "how": [StrOptions(set(_NAMED_WEIGHTS))],
        "weights": [StrOptions({"uniform", "learned", "support"}), "array-like"],
        "head": [HasMethods(["fit", "predict"]), None],  # the kind by _check_weights
        "validation": [Interval(RealNotInt, 0, 1, closed="neither")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        learners,
        how="average",
        weights="uniform",
        *,
        head=None,
        validation=0.25,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
    ):
        self.learners = learners
        self.how = how
        self.weights = weights
        self.head = head
        self.validation = validation
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state

    def get_params(self, deep=True):
        """Parameters, with `deep` those of the learners too."""
        return self._get_params("learners", deep)

    def set_params(self, **params):
        """Set parameters, learners and their parameters by their names too.

        Returns
        -------
        self
        """
        return self._set_params("learners", **params)

    def fit(self, tasks, y=None):
        """Fit the learners that are not frozen, and join them.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
        y : None
            Ignored; tasks hold their own.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If learners were fitted on other features, classes or kinds of labels,
            weights do not match, or parameters are averaged of other architectures.
        TypeError
            If a learner is no meta-learner of this kind.
        """
        self._check_weights()
        check_learners(self.learners, self._classification)
        self._validate_names([name for name, _ in self.learners])
        tasks, schema = self._check_fit(tasks)
        rng, soup = None, self.how == "soup"
        if self.random_state is not None:
            rng = check_random_state(self.random_state)
        elif soup:
            rng = np.random.RandomState(np.random.SeedSequence().generate_state(4))
        old, held_out = self._split(tasks, rng)
        members = fit_members(self.learners, old, rng, alike=soup)
        check_agreement(members, schema)
        schema.classes = members[0].meta.schema_.classes
        held_out = with_support(held_out, self._draws(held_out, schema))
        fused = self._fuse(members, schema, held_out)
        self.learners_ = [(member.name, member.model) for member in members]
        self.fused_ = fused
        self._take_tasks(tasks, schema)
        return self

    def _check_weights(self):
        self._validate_params()
        named = _NAMED_WEIGHTS[self.how]
        if isinstance(self.weights, str) and self.weights not in named:
            reason = {
                "concatenate": "the head weighs the features itself",
                "soup": "there is one set of parameters for all tasks",
            }[self.how]
            raise ValueError(
                f"weights={self.weights!r} cannot be had with how={self.how!r}: "
                f"{reason}. Use one of {', '.join(map(repr, named))}, or numbers."
            )
        if not isinstance(self.weights, str):
            given(self.weights, len(self.learners))
        if self.head is None:
            return
        if self.how != "concatenate":
            raise ValueError(
                f"head is for how='concatenate'; with how={self.how!r} it would do "
                "nothing. Leave it out."
            )
        right = is_classifier if self._classification else is_regressor
        if not right(self.head):
            kind = "classifier" if self._classification else "regressor"
            raise TypeError(
                f"head must be a {kind}, got {self.head!r}. Pass such a one of "
                "scikit-learn, or None for the usual one."
            )

    def _split(self, tasks, rng):
        """Tasks to fit learners on, and those to learn weights from."""
        learned = isinstance(self.weights, str) and self.weights == "learned"
        if not learned or all(frozen(learner) for _, learner in self.learners):
            return tasks, tasks
        if len(tasks) < 4:
            raise ValueError(
                f"There are {len(tasks)} tasks; weights='learned' needs at least 4, as "
                "it holds some of them out. Use weights='support' or 'uniform'."
            )
        if isinstance(tasks, EpisodeSampler):
            raise ValueError(
                "weights='learned' would hold out episodes of the classes that the "
                "learners are trained on. Cut the classes with split_classes, fit the "
                "learners on some, freeze them, and fit this on episodes of others."
            )
        # With random_state=None too the same split each time.
        seed = 0 if rng is None else int(rng.randint(2**31 - 1))
        return train_test_split(tasks, test_size=self.validation, random_state=seed)

    def _fuse(self, members, schema, tasks):
        if self.how == "average":
            return Averaged.fit(members, schema, self.weights, tasks)
        if self.how == "soup":
            return soup_of(members, self.weights, tasks)
        head = self.head
        if head is None:
            head = (
                LogisticRegression(max_iter=1000) if self._classification else Ridge()
            )
        weights = given(self.weights, len(members))
        return Concatenated(members, schema, weights, head).fit(tasks)

    @property
    def weights_(self):
        """Weights (n_learners,); with weights="support" each task has its own."""
        if self.fused_.weights is None:
            raise AttributeError(
                "With weights='support' each task has weights of its own: see "
                "support_weights(X, y)."
            )
        return self.fused_.weights

    @available_if(lambda self: self.how == "average")
    def support_weights(self, X, y, *, sample_weight=None, metadata=None):
        """Weights of the learners for one support set.

        Parameters
        ----------
        X : array of shape (n_support, ...) or DataFrame
        y : array of shape (n_support,) or (n_support, n_targets)
        sample_weight : array of shape (n_support,), default=None
        metadata : array or dict of numbers, default=None

        Returns
        -------
        array of shape (n_learners,)
        """
        check_is_fitted(self)
        support = self._check_support(X, y, sample_weight, metadata)
        return self.fused_.weights_of(support)

    @property
    def soup_(self):
        """The one learner of how="soup"."""
        if self.how != "soup":
            raise AttributeError(f"how={self.how!r} makes no soup.")
        return self.fused_.meta

    def predict_tasks(self, tasks):
        """Predictions for the query rows of tasks, with the rows they are for.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
            A task without a support set gets one by `support_size`, the same for all
            learners.

        Returns
        -------
        list of TaskPrediction
        """
        check_is_fitted(self)
        if not hasattr(self.fused_, "predict_tasks"):
            return super().predict_tasks(tasks)
        tasks = check_tasks(tasks)
        draws = self._draws(tasks, self.schema_, scored=False)
        found = self.fused_.predict_tasks(with_support(tasks, draws))
        return [one._replace(task=task) for one, task in zip(found, tasks, strict=True)]

    def portable_state(self, state):
        """See `TaskByTask`."""
        return self.fused_.portable(state)

    def apply_state(self, state, X, n_classes):
        """See `TaskByTask`."""
        return self.fused_.apply(state, self._check_rows(X), n_classes)

    def _adapt_to(self, support):
        return self.fused_.adapt(support)


class FusionClassifier(ClassifiesTasks, _Fusion):
    """Several meta-classifiers as one: their outputs, features or parameters joined.

    Parameters
    ----------
    learners : list of (name, learner)
        Meta-learners, or Pipelines that end in one. FrozenEstimator of a fitted one is
        used as it is; others are cloned and fitted on the tasks.
    how : {"average", "concatenate", "soup"}, default="average"
        "average": the weighted mean of the probabilities.
        "concatenate": the features of all learners side by side, under a `head` that is
        fitted to each support set.
        "soup": one learner with the weighted mean of the parameters; they must be of
        one class and architecture, and should descend from one training, or at least
        one initialisation (the same `random_state`): else their mean means nothing.
    weights : {"uniform", "learned", "support"} or array, default="uniform"
        "learned": of least query loss over validation tasks, none negative and of sum
        1. "support": for each task anew, by how well each learner predicts the rows of
        the support set when these are left out one by one; classes with a single row
        cannot be left out, and without any other the weights are equal. Numbers are
        divided by their sum. `how` "concatenate" knows neither, "soup" not "support".
    head : sklearn classifier, default=None
        For "concatenate"; None means LogisticRegression.
    validation : float, default=0.25
        With "learned", the share of the tasks that is held out of the training of
        learners for it; where all are frozen, all tasks of `fit` are for this.
    support_size : int, float or tuple, default=5
        Rows per class of the support set of a task that has none: a number, a fraction,
        or a range (low, high). The learners' own is for their training.
    evaluation_seed : int, default=0
        Seed of that draw in `predict` and `score`.
    random_state : int, RandomState instance or None, default=None
        Seed of learners that have none, and of the split for "learned". Learners of a
        soup get the same one, so that they start alike.

    Attributes
    ----------
    learners_ : list of (name, learner)
        Fitted.
    weights_ : array of shape (n_learners,)
        Not with weights="support", see `support_weights`.
    soup_ : meta-learner
        With how="soup": an ordinary one, which can be trained on, saved and exported.
    classes_ : array of shape (n_classes,)
        All labels, where they are shared.
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    References
    ----------
    Wortsman et al. (2022), Model Soups.
    Yao, Vehtari, Simpson, Gelman (2018), Using Stacking to Average Bayesian Predictive
    Distributions: "learned" is their stacking, over tasks; "support" their
    pseudo-Bayesian model averaging.

    Examples
    --------
    >>> from sk_meta import FusionClassifier, PrototypicalClassifier, R2D2Classifier
    >>> from sk_meta import TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=2, random_state=0)
    >>> net = TaskNet(max_epochs=2)
    >>> learners = [
    ...     ("prototypes", PrototypicalClassifier(net)),
    ...     ("r2d2", R2D2Classifier(net)),
    ... ]
    >>> meta = FusionClassifier(learners, weights="learned", random_state=0).fit(old)
    >>> float(meta.weights_.sum().round(6))
    1.0
    >>> meta.adapt(new.X_support, new.y_support).predict(new.X_query[:3]).shape
    (3,)
    """


class FusionRegressor(RegressesTasks, _Fusion):
    """Several meta-regressors as one: their outputs, features or parameters joined.

    Where all learners give a standard deviation, the average is a mixture of normal
    distributions, and its standard deviation also tells how far they disagree.

    Parameters
    ----------
    learners : list of (name, learner)
        Meta-learners, or Pipelines that end in one. FrozenEstimator of a fitted one is
        used as it is; others are cloned and fitted on the tasks.
    how : {"average", "concatenate", "soup"}, default="average"
        "average": the weighted mean of the predictions.
        "concatenate": the features of all learners side by side, under a `head` that is
        fitted to each support set.
        "soup": one learner with the weighted mean of the parameters; they must be of
        one class and architecture, and should descend from one training, or at least
        one initialisation (the same `random_state`): else their mean means nothing.
    weights : {"uniform", "learned", "support"} or array, default="uniform"
        "learned": of least query loss over validation tasks, none negative and of sum
        1. "support": for each task anew, by how well each learner predicts the rows of
        the support set when these are left out one by one. Numbers are divided by
        their sum. `how` "concatenate" knows neither, "soup" not "support".
    head : sklearn regressor, default=None
        For "concatenate"; None means Ridge.
    validation : float, default=0.25
        With "learned", the share of the tasks that is held out of the training of
        learners for it; where all are frozen, all tasks of `fit` are for this.
    support_size : int, float or tuple, default=5
        Rows of the support set of a task that has none: a number, a fraction, or a
        range (low, high). The learners' own is for their training.
    evaluation_seed : int, default=0
        Seed of that draw in `predict` and `score`.
    random_state : int, RandomState instance or None, default=None
        Seed of learners that have none, and of the split for "learned". Learners of a
        soup get the same one, so that they start alike.

    Attributes
    ----------
    learners_ : list of (name, learner)
        Fitted.
    weights_ : array of shape (n_learners,)
        Not with weights="support", see `support_weights`.
    soup_ : meta-learner
        With how="soup": an ordinary one, which can be trained on, saved and exported.
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    References
    ----------
    See :class:`FusionClassifier`.

    Examples
    --------
    >>> from sk_meta import ALPaCARegressor, FusionRegressor, MAMLRegressor, TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> net = TaskNet(max_epochs=2)
    >>> learners = [("alpaca", ALPaCARegressor(net)), ("maml", MAMLRegressor(net))]
    >>> meta = FusionRegressor(learners, weights="support", random_state=0).fit(old)
    >>> meta.support_weights(new.X_support, new.y_support).shape
    (2,)
    """
