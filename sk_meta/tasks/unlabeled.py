"""Rows whose label is not known, marked by a value of y."""

from copy import copy

import numpy as np


def labeled_rows(y, unlabeled):
    """Mask of the rows whose y is not the value that marks unlabelled ones.

    Parameters
    ----------
    y : array of shape (n_rows, ...)
    unlabeled : int or str, or None
        The value; None for none.

    Returns
    -------
    array of bool of shape (n_rows,)

    Raises
    ------
    ValueError
        If y has the value as a string, where it is a number.
    """
    y = np.atleast_1d(np.asarray(y))
    if y.dtype.kind in "US" and str(unlabeled) in y and not isinstance(unlabeled, str):
        raise ValueError(
            f"y holds the string {str(unlabeled)!r}, but unlabeled is the number "
            f"{unlabeled!r}: a list of strings and numbers becomes an array of strings."
            f" Set unlabeled={str(unlabeled)!r}, or pass np.array(y, dtype=object)."
        )
    same_type = (y.dtype.kind in "US") == isinstance(unlabeled, str)
    if unlabeled is None or not (same_type or y.dtype.kind == "O"):
        return np.ones(len(y), dtype=bool)
    return np.asarray(y != unlabeled).reshape(len(y), -1).all(axis=1)


def mark_unlabeled(task, unlabeled):
    """The task, its `labeled` without the rows of that y; the one given is left alone.

    Parameters
    ----------
    task : Task
    unlabeled : int or str, or None

    Returns
    -------
    Task
    """
    if unlabeled is None:
        return task
    labeled = labeled_rows(task.y, unlabeled)
    if labeled.all():
        return task
    task = copy(task)
    task.labeled = labeled if task.labeled is None else labeled & task.labeled
    return task


def check_classes(sampler, unlabeled):
    """Raise if a sampler would draw unlabelled rows as a class."""
    if not labeled_rows(sampler.classes_, unlabeled).all():
        raise ValueError(
            f"y of the sampler has a class {unlabeled!r}, the value of unlabelled "
            "rows, which have no class to draw. Leave them out of the sampler, or pass "
            "unlabeled=None; to hide labels, pass n_unlabeled."
        )
