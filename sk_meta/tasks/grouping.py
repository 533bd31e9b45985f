"""From a long table with an id column to a list of tasks."""

from pathlib import Path

import numpy as np

from sk_meta.tasks.disk import DiskTable, View, as_columns, on_disk, open_table
from sk_meta.tasks.task import Task, take_rows


def tasks_from_groups(X, y, groups, *, labels="shared", sample_weight=None):
    """Cut a table into tasks, one per group.

    Parameters
    ----------
    X : array of shape (n_rows, ...), DataFrame, or DiskTable
        Features of all rows. A memory map, as ``np.load(path, mmap_mode="r")`` gives,
        stays on disk: the tasks are views of it.
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
    X = X if hasattr(X, "iloc") or on_disk(X) else np.asarray(X)
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
    if groups.dtype.kind == "O":
        missing = [
            i for i, group in enumerate(groups) if group is None or group != group
        ]
    else:
        missing = np.flatnonzero(groups != groups)
    _refuse(missing)
    names, code = np.unique(groups, return_inverse=True)
    return _cut(X, y, code, names, labels, weight)


def tasks_from_file(
    path, *, target, group, features=None, labels="shared", sample_weight=None
):
    """Cut a Parquet or Arrow file into tasks, whose features stay on disk.

    Parameters
    ----------
    path : str or Path
        See `DiskTable`.
    target : str or list of str
        Column of the labels or targets, or several of targets.
    group : str
        Column that says which task a row belongs to.
    features : list of str, default=None
        Columns of the features; None means all others, but for the index that pandas
        writes. They must hold numbers. A meta-learner compares their names and order
        with those of `fit`, as it does for DataFrames.
    labels : {"shared", "local"}, default="shared"
        Whether a label means the same in every task.
    sample_weight : str, default=None
        Column of the weights of rows.

    Returns
    -------
    list of Task
        In the order in which the groups first appear. The target and the group are held
        in memory, features are read when they are used.

    Raises
    ------
    TypeError
        If `features` is no list.
    ValueError
        If a column is missing, holds no numbers or has two roles, if there are no
        features, if a group is missing, or if the file is of another kind.

    See Also
    --------
    tasks_from_groups : The same for tables in memory and memory maps.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import pandas as pd
    >>> from sk_meta.tasks import tasks_from_file
    >>> table = pd.DataFrame({"id": ["a", "a", "b"], "x": [1, 2, 3], "y": [4, 5, 6]})
    >>> with TemporaryDirectory() as folder:
    ...     table.to_parquet(Path(folder) / "table.parquet")
    ...     tasks = tasks_from_file(
    ...         Path(folder) / "table.parquet", target="y", group="id"
    ...     )
    ...     tasks[0].X
    array([[1],
           [2]])
    """
    file, path = open_table(path), Path(path)
    targets = [target] if isinstance(target, str) else as_columns(target, "target")
    held = [*targets, group, *([sample_weight] if sample_weight else [])]
    for column in held:
        if column not in file.schema.names:
            raise ValueError(
                f"{path.name} has no column {column!r}; it has {file.schema.names}."
            )
    if len(set(held)) < len(held):
        raise ValueError(
            "target, group and sample_weight must be different columns, got "
            f"target={target!r}, group={group!r}, sample_weight={sample_weight!r}."
        )
    features = _feature_columns(features, targets, group, held, file, path)
    table = file.read_all(held)
    y = [np.asarray(table.column(name)) for name in targets]
    groups = table.column(group).combine_chunks().dictionary_encode()
    names, code = (
        np.asarray(groups.dictionary),
        np.asarray(groups.indices.fill_null(-1)),
    )
    if names.dtype.kind == "f":
        code = np.where(np.isnan(names)[code], -1, code)
    _refuse(np.flatnonzero(code < 0))
    return _cut(
        DiskTable(path, features),
        y[0] if isinstance(target, str) else np.stack(y, axis=1),
        code,
        names,
        labels,
        np.asarray(table.column(sample_weight)) if sample_weight else None,
    )


def _feature_columns(features, targets, group, held, file, path):
    """Columns of the features: those named, or all that have no other role."""
    if features is None:
        other = {*held, *file.index_columns}
        features = [name for name in file.schema.names if name not in other]
        if not features:
            raise ValueError(
                f"{path.name} has no column left for the features; it has "
                f"{file.schema.names}, of which {sorted(other)} are the target, the "
                "group, weights or the index. Name columns in `features`."
            )
    features = as_columns(features, "features")
    for name in features:
        if name == group or name in targets:
            role = "group" if name == group else "target"
            raise ValueError(
                f"features has the column {name!r}, which is the {role}. Leave it out "
                "of `features`."
            )
    return features


def _refuse(missing):
    if len(missing):
        raise ValueError(
            f"groups has {len(missing)} missing value(s), the first in row "
            f"{missing[0]}. Drop these rows, or give them a group of their own."
        )


def _cut(X, y, code, names, labels, weight):
    """Tasks from the code of each row, a position in `names`."""
    found, first, code = np.unique(code, return_index=True, return_inverse=True)
    in_turn = np.argsort(first)
    code = np.argsort(in_turn)[code]
    names = names[found[in_turn]]
    ends = np.cumsum(np.bincount(code))[:-1]
    lazy = on_disk(X)
    tasks = []
    for name, rows in zip(
        names, np.split(np.argsort(code, kind="stable"), ends), strict=True
    ):
        options = {
            "labels": labels,
            "sample_weight": None if weight is None else weight[rows],
            "name": name,
        }
        if lazy:
            tasks.append(View(X, rows, y[rows], **options))
        else:
            tasks.append(Task(take_rows(X, rows), y[rows], **options))
    return tasks
