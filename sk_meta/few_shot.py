"""What `adapt` returns: ordinary sklearn estimators over rows."""

import warnings
from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from sk_meta.tasks.unlabeled import labeled_rows


def probabilities(logits):
    """Softmax over the last axis, (n, n_classes) -> (n, n_classes)."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


class _FewShotEstimator(BaseEstimator):
    """Validation, and the way to the meta-learner."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags

    def _meta(self):
        """The fitted meta-learner, or None."""
        meta = self.meta_learner
        meta = meta.estimator if isinstance(meta, FrozenEstimator) else meta
        if meta is None:
            return None
        if not hasattr(meta, "adapt_state"):
            raise TypeError(
                f"meta_learner must be a meta-learner, got {type(meta).__name__}. "
                "A Pipeline or a search is adapted by sk_meta.adapt."
            )
        if meta._classification != isinstance(self, ClassifierMixin):
            raise TypeError(
                f"{type(self).__name__} cannot adapt a {type(meta).__name__}: one is "
                "for classes, the other for targets. The learner's own adapt(X, y) "
                "returns the right kind."
            )
        if not hasattr(meta, "schema_"):
            raise NotFittedError(
                f"The {type(meta).__name__} is not fitted. Fit it, and pass "
                "meta_learner=FrozenEstimator(meta), since cloning unfits it otherwise."
            )
        return meta

    def __getstate__(self):
        state = dict(super().__getstate__())  # not the estimator's own
        if "state_" in state and self._meta() is not None:
            state["state_"] = self._meta().portable_state(state["state_"])
        return state

    def _adapt(self, meta, X, y, sample_weight, metadata):
        X = X if hasattr(X, "shape") else np.asarray(X)
        state, classes = meta.adapt_state(X, y, sample_weight, metadata)
        if np.ndim(X) == 2:
            validate_data(self, X, skip_check_array=True)
        self.n_features_in_ = meta.n_features_in_
        self._row_shape = np.shape(X)[1:]
        self.state_ = state
        return classes

    def _check_rows(self, X):
        check_is_fitted(self)
        if self._meta() is None:
            return validate_data(self, X, reset=False, dtype=np.float64)
        X = X if hasattr(X, "shape") else np.asarray(X)
        if X.ndim < 2:
            raise ValueError(
                f"X has {X.ndim} dimension(s); expected at least 2. Reshape a single "
                "row with X.reshape(1, -1)."
            )
        if np.ndim(X) == 2:
            validate_data(self, X, reset=False, skip_check_array=True)
        return X


class FewShotClassifier(ClassifierMixin, _FewShotEstimator):
    """A classifier that a meta-learner adapts to a few rows.

    Usually made by the meta-learner's `adapt`; on its own, `fit` adapts, so that a
    meta-learner takes part in Pipelines, cross-validation and ensembles over rows.

    Parameters
    ----------
    meta_learner : FrozenEstimator of a fitted meta-classifier, default=None
        Frozen, because cloning would unfit it. None means no learned prior: class
        means of the raw features.
    classes : {"support", "meta"}, default="support"
        Whether `classes_` are the labels of the support set, or all labels that the
        meta-learner shares between tasks.
    encoded_labels : array of shape (n_classes,), default=None
        What the integers 0, 1, ... stand for where an ensemble (Bagging, Voting,
        Stacking) hands these instead of labels. Only consulted when y holds a value
        that is not a label of the meta-learner. Set by `adapt`.

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    Examples
    --------
    >>> from sk_meta import FewShotClassifier
    >>> X, y = [[0.0], [0.2], [1.0], [1.2]], ["low", "low", "high", "high"]
    >>> FewShotClassifier().fit(X, y).predict([[0.1], [1.1]])
    array(['low', 'high'], dtype='<U4')
    """

    _parameter_constraints: ClassVar[dict] = {
        "classes": [StrOptions({"support", "meta"})],
        "encoded_labels": ["array-like", None],
    }

    def __init__(self, meta_learner=None, *, classes="support", encoded_labels=None):
        self.meta_learner = meta_learner
        self.classes = classes
        self.encoded_labels = encoded_labels

    def fit(self, X, y, sample_weight=None, metadata=None):
        """Adapt to a support set.

        Parameters
        ----------
        X : array of shape (n_support, ...) or DataFrame
        y : array of shape (n_support,)
        sample_weight : array of shape (n_support,), default=None
        metadata : array or dict of numbers, default=None
            The task's own description, for methods that use it.

        Returns
        -------
        self
        """
        self._validate_params()
        meta = self._meta()
        if meta is None:
            X, y = validate_data(self, X, y, dtype=np.float64)
            check_classification_targets(y)
            if self.classes == "meta":
                raise ValueError("classes='meta' needs a meta_learner; got None.")
            weight = _check_sample_weight(sample_weight, X)
            self.classes_, codes = np.unique(y, return_inverse=True)
            self._columns = np.arange(len(self.classes_))
            self.state_ = _fit_class_means(X, codes, weight, len(self.classes_))
            return self
        y = np.asarray(y)
        labels = y.ravel() if y.ndim == 2 and y.shape[1] == 1 else y
        labeled = labeled_rows(labels, meta.unlabeled)
        # An ensemble, which hands codes, would have numbered unlabelled rows too.
        decoded = self._decode(labels, meta) if labeled.all() else labels
        known = self._adapt(meta, X, decoded, sample_weight, metadata)
        if self.classes == "meta":
            self.classes_, self._columns = known, np.arange(len(known))
        else:
            self.classes_, first = np.unique(labels[labeled], return_index=True)
            self._columns = np.searchsorted(known, decoded[labeled][first])
        self._n_known = len(known)
        return self

    def _decode(self, y, meta):
        """Labels by value; integers of an ensemble are translated first."""
        shared = getattr(meta, "classes_", None)
        if shared is None or self.encoded_labels is None or y.dtype.kind not in "iu":
            return y
        codes = np.asarray(self.encoded_labels)
        fits = (y >= 0).all() and (y < len(codes)).all()
        if shared.dtype.kind in "iufb" and np.isin(y, shared).all():
            present = np.unique(y)
            if fits and len(present) > 1 and (codes[present] != present).any():
                warnings.warn(
                    f"The labels {present.tolist()} are read by value, but could be an "
                    f"ensemble's codes for {codes[present].tolist()}. Number the "
                    "classes from 0, or pass encoded_labels=None to be sure of values.",
                    stacklevel=3,
                )
            return y
        return codes[y] if fits else y

    def predict_proba(self, X):
        """Class probabilities of rows.

        Parameters
        ----------
        X : array of shape (n_rows, ...) or DataFrame

        Returns
        -------
        array of shape (n_rows, n_classes)
        """
        X = self._check_rows(X)
        meta = self._meta()
        if meta is None:
            return probabilities(_class_mean_logits(self.state_, X))
        shared, _ = meta.apply_state(self.state_, X, self._n_known)
        chosen = shared[:, self._columns]
        total = chosen.sum(axis=1, keepdims=True)
        # All the mass may be on labels that this task does not have.
        even = np.full_like(chosen, 1 / chosen.shape[1])
        return np.divide(chosen, total, out=even, where=total > 0)

    def predict(self, X):
        """Labels of rows.

        Parameters
        ----------
        X : array of shape (n_rows, ...) or DataFrame

        Returns
        -------
        array of shape (n_rows,)
        """
        chosen = self.predict_proba(X).argmax(axis=1)
        return self.classes_[chosen]


class FewShotRegressor(RegressorMixin, _FewShotEstimator):
    """A regressor that a meta-learner adapts to a few rows.

    Usually made by the meta-learner's `adapt`; on its own, `fit` adapts, so that a
    meta-learner takes part in Pipelines, cross-validation and ensembles over rows.

    Parameters
    ----------
    meta_learner : FrozenEstimator of a fitted meta-regressor, default=None
        Frozen, because cloning would unfit it. None means no learned prior: ridge
        regression on the raw features.

    Attributes
    ----------
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    Examples
    --------
    >>> from sk_meta import FewShotRegressor
    >>> FewShotRegressor().fit([[0.0], [2.0]], [0.0, 3.0]).predict([[1.0]])
    array([1.5])
    """

    _parameter_constraints: ClassVar[dict] = {}

    def __init__(self, meta_learner=None):
        self.meta_learner = meta_learner

    def fit(self, X, y, sample_weight=None, metadata=None):
        """Adapt to a support set.

        Parameters
        ----------
        X : array of shape (n_support, ...) or DataFrame
        y : array of shape (n_support,) or (n_support, n_targets)
        sample_weight : array of shape (n_support,), default=None
        metadata : array or dict of numbers, default=None
            The task's own description, for methods that use it.

        Returns
        -------
        self
        """
        self._validate_params()
        meta = self._meta()
        if meta is None:
            X, y = validate_data(
                self, X, y, dtype=np.float64, multi_output=True, y_numeric=True
            )
            weight = _check_sample_weight(sample_weight, X)
            self.state_ = Ridge().fit(X, y, sample_weight=weight)
            return self
        self._adapt(meta, X, y, sample_weight, metadata)
        return self

    def predict(self, X, return_std=False):
        """Targets of rows.

        Parameters
        ----------
        X : array of shape (n_rows, ...) or DataFrame
        return_std : bool, default=False
            Also return the predictive standard deviation, where the method has one.

        Returns
        -------
        mean : array of shape (n_rows,) or (n_rows, n_targets)
        std : array of the same shape
            Only with `return_std`.
        """
        X = self._check_rows(X)
        meta = self._meta()
        if meta is None:
            mean, std = self.state_.predict(X), None
        else:
            mean, std = meta.apply_state(self.state_, X, 0)
        if not return_std:
            return mean
        if std is None:
            raise ValueError(
                "This regressor gives no standard deviation. Adapt a method that does, "
                "such as ALPaCARegressor."
            )
        return mean, std

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _fit_class_means(X, codes, weight, n_classes):
    """Class means and the variance around them, per feature and pooled."""
    member = (codes[:, None] == np.arange(n_classes)) * weight[:, None]
    mass = np.maximum(member.sum(axis=0), 1e-12)
    means = member.T @ X / mass[:, None]
    total = max(weight.sum(), 1e-12)
    within = weight @ ((X - means[codes]) ** 2).mean(axis=1) / total
    if within <= 0:  # one row in each class
        centre = weight @ X / total
        within = weight @ ((X - centre) ** 2).mean(axis=1) / total
    return means, max(within, 1e-12)


def _class_mean_logits(state, X):
    means, variance = state
    squared = ((X[:, None, :] - means) ** 2).sum(axis=2)
    return -squared / (2 * variance)
