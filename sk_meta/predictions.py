"""What a meta-learner says of one task, and which of it can be scored."""

from typing import NamedTuple

import numpy as np

from sk_meta.tasks.validation import label_array


class TaskPrediction(NamedTuple):
    """What a meta-learner says of the query rows of one task.

    Attributes
    ----------
    task : Task
    support, query : int arrays
        Positions of the rows.
    classes : array or None
        What the columns of `values` stand for, in classification.
    values : array
        Probabilities (n_query, n_classes), or means of the shape of y.
    std : array or None
        Of the shape of `values`, for regressors that give it.
    """

    task: object
    support: np.ndarray
    query: np.ndarray
    classes: np.ndarray | None
    values: np.ndarray
    std: np.ndarray | None


def object_array(entries):
    """Arrays of any shapes as the entries of one, of shape (n_tasks,)."""
    array = np.empty(len(entries), dtype=object)
    for position, entry in enumerate(entries):
        array[position] = entry
    return array


def scored_rows(found: TaskPrediction):
    """True y of the labelled query rows, their mask, and their weights or None.

    Raises
    ------
    ValueError
        If no query row is labelled.
    """
    task, query = found.task, found.query
    labeled = np.ones(len(query), bool) if task.labeled is None else task.labeled[query]
    if not labeled.any():
        raise ValueError(f"{task.label()} has no labelled query row, so no score.")
    weight = None if task.sample_weight is None else task.sample_weight[query][labeled]
    y = task.y[query][labeled]
    if found.classes is not None:
        y = label_array(y, f"y of {task.label()}")
    return y, labeled, weight


def r_squared(y_true, y_pred, weight=None) -> float:
    """What sklearn's ``r2_score`` is, without its checks, which take most of its time.

    Parameters
    ----------
    y_true, y_pred : array of shape (n,) or (n, n_targets)
    weight : array of shape (n,), default=None

    Returns
    -------
    float
        Averaged over targets; one that is constant counts 1 if predicted, else 0.
    """
    y_true, y_pred = (y.reshape(len(y), -1).astype(float) for y in (y_true, y_pred))
    mean = np.average(y_true, axis=0, weights=weight)
    weight = np.ones(len(y_true)) if weight is None else weight
    left = weight @ (y_true - y_pred) ** 2
    total = weight @ (y_true - mean) ** 2
    exact = np.where(left == 0, 1.0, 0.0)
    return float(
        np.where(total > 0, 1 - left / np.where(total > 0, total, 1), exact).mean()
    )
