"""Any sklearn classifier or regressor, fitted to the features of one support set."""

from inspect import signature

import numpy as np
from sklearn.base import clone
from sklearn.utils.validation import has_fit_parameter

from sk_meta.few_shot import probabilities


def fit_head(head, Z, support):
    """A clone of an sklearn estimator, fitted to encoded support rows.

    Parameters
    ----------
    head : sklearn classifier or regressor
    Z : array of shape (n, n_features)
    support : SupportRows

    Returns
    -------
    estimator
        Fitted.
    classes : array or None
        The columns of what is predicted.

    Raises
    ------
    ValueError
        If rows have different weights and the head takes none.
    """
    options = {}
    weight = support.weight
    if weight is not None and not (weight == weight[0]).all():
        if not has_fit_parameter(head, "sample_weight"):
            raise ValueError(
                f"The head {type(head).__name__} takes no sample_weight. Leave the "
                "weights out, or choose a head that does."
            )
        options["sample_weight"] = weight
    return clone(head).fit(Z, support.y, **options), support.classes


def apply_head(fitted, Z):
    """Predictions of such a head: (probabilities or means, std or None).

    A classifier without `predict_proba` gives the softmax of its decision function.
    """
    head, classes = fitted
    if classes is None:
        if "return_std" in signature(head.predict).parameters:
            return head.predict(Z, return_std=True)
        return np.asarray(head.predict(Z), dtype=float), None
    if hasattr(head, "predict_proba"):
        values = head.predict_proba(Z)
    else:
        scores = head.decision_function(Z)
        if scores.ndim == 1:  # two classes
            scores = np.stack([-scores / 2, scores / 2], axis=1)
        values = probabilities(scores)
    columns = np.zeros((len(values), len(classes)))
    columns[:, np.searchsorted(classes, head.classes_)] = values
    return columns, None
