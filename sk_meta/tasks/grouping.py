"""From a long table with an id column to a list of tasks."""

import numpy as np

from sk_meta.tasks.task import Task, take_rows


def tasks_from_groups(X, y, groups, *, labels="shared", sample_weight=None):
    """Cut a table into tasks, one per group.

    Parameters
    ----------
    X : array of shape (n_rows, ...) or DataFrame
        Features of all rows.
    y : array of shape (n_rows,) or (n_rows, n_targets)
        Labels or targets.
    groups : array of shape (n_rows,)
        The task of each row: a patient, a shop, a hospital.
    labels : {"shared", "local"}, default="shared"
        Whether a label means the same in every task.
    sample_weight : array of shape (n_rows,), default=None
        Weights of the rows.

    Returns
    -------
    list of Task
        In the order in which the groups first appear; named after their group. Rows
        keep their order.

    Raises
    ------
    ValueError
        If lengths disagree or a group is missing (NaN or None).

    Examples
    --------
    >>> from sk_meta import tasks_from_groups
    >>> tasks_from_groups([[1.0], [2.0], [3.0]], [1, 2, 3], ["ann", "bob", "ann"])
    [Task('ann', n_rows=2), Task('bob', n_rows=1)]
    """
    X = X if hasattr(X, "iloc") else np.asarray(X)
    y, groups = np.asarray(y), np.asarray(groups)
    if not len(X) == len(y) == len(groups):
        raise ValueError(
            f"X has {len(X)} rows, y {len(y)}, groups {len(groups)}; they must agree."
        )
    weight = None if sample_weight is None else np.asarray(sample_weight, dtype=float)
    if weight is not None and weight.shape != (len(y),):
        raise ValueError(
            f"sample_weight has shape {weight.shape}; expected ({len(y)},), one weight "
            "for each row."
        )
    missing = [i for i, group in enumerate(groups) if group is None or group != group]
    if missing:
        raise ValueError(
            f"groups has {len(missing)} missing value(s), the first in row "
            f"{missing[0]}. Drop these rows, or give them a group of their own."
        )
    _, first, code = np.unique(groups, return_index=True, return_inverse=True)
    rows_of = np.split(np.argsort(code, kind="stable"), np.cumsum(np.bincount(code)))
    return [
        Task(
            take_rows(X, rows_of[group]),
            y[rows_of[group]],
            labels=labels,
            sample_weight=None if weight is None else weight[rows_of[group]],
            name=groups[first[group]],
        )
        for group in np.argsort(first)
    ]
