"""The labelled rows of all source tasks, as the one table that an encoder is fitted on.

Where labels are local, a class of one task is another class than that of another task,
whatever it is called: classes are numbered over the tasks. Episodes of one table share
its classes, and its rows come once.
"""

from typing import NamedTuple

import numpy as np

from sk_meta.tasks.sampling import Episode, EpisodeSampler
from sk_meta.tasks.stacking import needs_fit
from sk_meta.tasks.task import take_rows
from sk_meta.tasks.validation import label_array, target_array


class PooledRows(NamedTuple):
    """The rows of all source tasks.

    Attributes
    ----------
    X : array of shape (n_rows, ...) or DataFrame
    y : array of shape (n_rows,) or (n_rows, n_targets)
        Shared labels by value, class numbers where labels are local, or targets.
    weight : array of shape (n_rows,), or None
        None where no task has weights.
    """

    X: object
    y: np.ndarray
    weight: np.ndarray | None


def pool(tasks, schema, draws) -> PooledRows:
    """Pool the labelled rows of tasks.

    Parameters
    ----------
    tasks : sequence of Task
        Checked.
    schema : Schema
    draws : EncodedTasks or EncodedEpisodes
        Which rows are the support set of a task whose features depend on that.
    """
    if isinstance(tasks, EpisodeSampler):
        parts = [_of_sampler(tasks)]
    else:
        episodes = [task for task in tasks if isinstance(task, Episode)]
        parts = _of_episodes(episodes)
        parts += [
            _of_task(task, draws, index)
            for index, task in enumerate(tasks)
            if not isinstance(task, Episode)
        ]
    X, y, weight = zip(*parts, strict=True)
    return PooledRows(_join(X), _join_y(y, schema), _join_weights(weight, y))


def _of_sampler(sampler):
    rows = np.arange(len(sampler.y))
    if sampler.labeled is not None:
        rows = np.flatnonzero(sampler.labeled)
    return take_rows(sampler.X, rows), sampler.y[rows], None


def _of_episodes(episodes):
    """One part for each table: its rows that occur, each once."""
    tables = {}
    for task in episodes:
        labeled = slice(None) if task.labeled is None else task.labeled
        found = tables.setdefault(id(task.table), (task.table, [], []))
        found[1].append(task.rows[labeled])
        found[2].append(task.y[labeled])
    parts = []
    for table, rows, y in tables.values():
        rows, first = np.unique(np.concatenate(rows), return_index=True)
        parts.append((take_rows(table, rows), np.concatenate(y)[first], None))
    return parts


def _of_task(task, draws, index):
    if needs_fit(task):  # transformers of its support set come first
        support, query = draws.evaluation_draw(index)
        rows = np.concatenate([support, query])
        X = _join(task.fit_support(support, query))
    else:
        rows = np.arange(len(task.y))
        if task.labeled is not None:
            rows = np.flatnonzero(task.labeled)
        X = task.X if len(rows) == len(task.y) else take_rows(task.X, rows)
    weight = None if task.sample_weight is None else task.sample_weight[rows]
    return X, task.y[rows], weight


def _join(parts):
    if hasattr(parts[0], "iloc"):
        import pandas as pd

        return pd.concat(parts, ignore_index=True)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _join_y(parts, schema):
    if not schema.classification:
        y = np.concatenate([target_array(y, "y") for y in parts])
        return y.reshape(len(y), -1) if schema.multi_output else y.reshape(len(y))
    parts = [label_array(y, "y") for y in parts]
    if schema.labels == "shared":
        y = np.concatenate(parts)
        return y.astype(np.int64) if y.dtype.kind == "f" else y
    numbered, n_classes = [], 0
    for y in parts:
        classes, codes = np.unique(y, return_inverse=True)
        numbered.append(codes + n_classes)
        n_classes += len(classes)
    return np.concatenate(numbered)


def _join_weights(weights, ys):
    if all(weight is None for weight in weights):
        return None
    return np.concatenate(
        [
            np.ones(len(y)) if weight is None else weight
            for weight, y in zip(weights, ys, strict=True)
        ]
    )
