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
    Else the largest probability is that of the label which the head predicts: where its
    own probabilities say otherwise, as Platt's of SVC may, the two are exchanged.
    """
    head, classes = fitted
    if classes is None:
        if "return_std" in signature(head.predict).parameters:
            return head.predict(Z, return_std=True)
        return np.asarray(head.predict(Z), dtype=float), None
    if hasattr(head, "predict_proba"):
        values = head.predict_proba(Z)
        values = _led_by(np.searchsorted(head.classes_, head.predict(Z)), values)
    else:
        scores = head.decision_function(Z)
        if scores.ndim == 1:  # two classes
            scores = np.stack([-scores / 2, scores / 2], axis=1)
        values = probabilities(scores)
    columns = np.zeros((len(values), len(classes)))
    columns[:, np.searchsorted(classes, head.classes_)] = values
    return columns, None


def _led_by(labels, values):
    """Probabilities whose largest is that of the label.

    Parameters
    ----------
    labels : int array of shape (n,)
    values : array of shape (n, n_classes)
    """
    rows, values = np.arange(len(values)), np.array(values, dtype=float)
    first = values.argmax(axis=1)
    values[rows, first], values[rows, labels] = (
        values[rows, labels],
        values[rows, first],
    )
    return values
