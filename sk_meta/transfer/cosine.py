"""CosineClassifier: the head of Baseline++."""

from numbers import Integral, Real
from typing import ClassVar

import numpy as np
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils._param_validation import Interval
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from sk_meta.few_shot import probabilities


class CosineClassifier(ClassifierMixin, BaseEstimator):
    """Softmax of scaled cosines between a row and a vector for each class.

    The vectors :math:`w_c` start from the class means :math:`m_c` of rows of length 1,
    and minimise

    .. math::

       -\\sum_i \\log p(y_i | x_i) + \\frac{\\alpha}{2} \\sum_c \\lVert w_c -
       m_c / \\lVert m_c \\rVert \\rVert^2 , \\quad
       p(c | x) \\propto \\exp(s \\cos(w_c, x))

    by L-BFGS. A row's length has no effect; a row of zeros is at right angles to all
    vectors.

    Parameters
    ----------
    scale : float, default=10.0
        The scale :math:`s`: 1 / temperature of the softmax.
    alpha : float, default=1.0
        Penalty on leaving the class means; a large one gives the classifier of the
        nearest mean, by angle.
    max_iter : int, default=100
        Most iterations of L-BFGS; 0 for the class means.

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
    coef_ : array of shape (n_classes, n_features)
        The vectors.
    n_iter_ : int
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    Notes
    -----
    In the paper a weight decay and a fixed number of steps take the place of the
    penalty.

    References
    ----------
    Chen, Liu, Kira, Wang, Huang (2019), A Closer Look at Few-shot Classification,
    section 3.2; Gidaris, Komodakis (2018), Dynamic Few-Shot Visual Learning without
    Forgetting.

    Examples
    --------
    >>> from sk_meta import CosineClassifier
    >>> X, y = [[1.0, 0.1], [2.0, 0.0], [0.1, 1.0]], ["flat", "flat", "steep"]
    >>> CosineClassifier().fit(X, y).predict([[30.0, 1.0], [0.0, 0.5]])
    array(['flat', 'steep'], dtype='<U5')
    """

    _parameter_constraints: ClassVar[dict] = {
        "scale": [Interval(Real, 0, None, closed="neither")],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(self, scale=10.0, *, alpha=1.0, max_iter=100):
        self.scale = scale
        self.alpha = alpha
        self.max_iter = max_iter

    def fit(self, X, y, sample_weight=None):
        """Fit the vectors of the classes.

        Parameters
        ----------
        X : array of shape (n_rows, n_features)
        y : array of shape (n_rows,)
        sample_weight : array of shape (n_rows,), default=None

        Returns
        -------
        self
        """
        self._validate_params()
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        self.classes_, codes = np.unique(y, return_inverse=True)
        U, member = _unit(X)[0], codes[:, None] == np.arange(len(self.classes_))
        member = member * weight[:, None]
        start = _unit(member.T @ U)[0]
        self.coef_, self.n_iter_ = start, 0
        if self.max_iter and len(self.classes_) > 1:
            found = minimize(
                self._loss,
                start.ravel(),
                (U, member, start),
                method="L-BFGS-B",
                jac=True,
                options={"maxiter": self.max_iter, "ftol": 1e-12, "gtol": 1e-7},
            )
            self.coef_, self.n_iter_ = found.x.reshape(start.shape), int(found.nit)
        return self

    def _loss(self, flat, U, member, start):
        """Loss and its gradient."""
        W = flat.reshape(start.shape)
        V, length = _unit(W)
        logits = self.scale * U @ V.T
        highest = logits.max(axis=1, keepdims=True)
        total = np.log(np.exp(logits - highest).sum(axis=1, keepdims=True)) + highest
        weight = member.sum(axis=1, keepdims=True)
        slope = weight * np.exp(logits - total) - member
        at_V = self.scale * slope.T @ U
        # What is left of it at right angles to the vectors: their length has no effect.
        at_W = (at_V - (at_V * V).sum(axis=1, keepdims=True) * V) / length
        loss = (member * (total - logits)).sum()
        loss += self.alpha / 2 * ((W - start) ** 2).sum()
        return loss, (at_W + self.alpha * (W - start)).ravel()

    def decision_function(self, X):
        """Scaled cosines of rows.

        Parameters
        ----------
        X : array of shape (n_rows, n_features)

        Returns
        -------
        array of shape (n_rows, n_classes)
            Of two classes, the difference, of shape (n_rows,).
        """
        scores = self._cosines(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict_proba(self, X):
        """Class probabilities of rows.

        Parameters
        ----------
        X : array of shape (n_rows, n_features)

        Returns
        -------
        array of shape (n_rows, n_classes)
        """
        return probabilities(self._cosines(X))

    def predict(self, X):
        """Labels of rows.

        Parameters
        ----------
        X : array of shape (n_rows, n_features)

        Returns
        -------
        array of shape (n_rows,)
        """
        chosen = self._cosines(X).argmax(axis=1)
        return self.classes_[chosen]

    def _cosines(self, X):
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return self.scale * _unit(X)[0] @ _unit(self.coef_)[0].T


def _unit(rows):
    """Rows of length 1, and their lengths; rows of zeros stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    length = np.where(length > 0, length, 1.0)
    return rows / length, length
