"""A vector for each task, from what adaptation makes of it."""

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from torch.utils._pytree import tree_leaves

from sk_meta.pipeline import adapt
from sk_meta.tasks.task import take_rows


def draw_probes(tasks, n_probes, rng):
    """Rows drawn from those of all tasks together, without replacement."""
    ends = np.cumsum([len(task) for task in tasks])
    chosen = np.sort(rng.permutation(ends[-1])[:n_probes])
    of_task = np.searchsorted(ends, chosen, side="right")
    parts = []
    for i in np.unique(of_task):
        rows = chosen[of_task == i] - (ends[i] - len(tasks[i]))
        parts.append(take_rows(tasks[i].X, rows))
    if hasattr(parts[0], "iloc"):
        import pandas as pd

        return pd.concat(parts)
    return np.concatenate(parts)


def vectors_of(model, meta, tasks, vectors, probes):
    """A vector for each task."""
    found = []
    for task in tasks:
        weight = task.sample_weight
        few_shot = adapt(
            model,
            task.X_support,
            task.y_support,
            sample_weight=None if weight is None else weight[task.support],
            metadata=task.metadata,
        )
        X = probes
        if isinstance(few_shot, Pipeline):
            X, few_shot = few_shot[:-1].transform(X), few_shot[-1]
        if vectors == "states":
            found.append(_flat(few_shot.state_, meta))
        else:
            n_classes = len(meta.classes_) if meta._classification else 0
            values, _ = meta.apply_state(few_shot.state_, X, n_classes)
            found.append(np.ravel(values))
    sizes = sorted({len(vector) for vector in found})
    if len(sizes) > 1:
        raise ValueError(
            f"The adapted states hold from {sizes[0]} to {sizes[-1]} numbers, as tasks "
            "differ in size, and cannot be compared. Give all tasks as many support "
            "rows and classes, or use vectors='predictions' with shared labels."
        )
    return np.array(found)


def _flat(state, meta):
    leaves = tree_leaves(meta.portable_state(state))
    tensors = [leaf for leaf in leaves if torch.is_tensor(leaf)]
    if not tensors:
        local = meta._classification and meta.schema_.labels == "local"
        raise TypeError(
            f"What {type(meta).__name__} adapts to holds no tensors, so its states "
            "cannot be compared"
            + (
                ", nor can predictions with local labels: there is no map for it."
                if local
                else ". Use vectors='predictions'."
            )
        )
    return np.concatenate([t.detach().double().numpy().ravel() for t in tensors])


def in_a_plane(table, embedding):
    """Points of the plane, and what its axes are."""
    if embedding is None:
        pca = PCA(2, random_state=0)
        if table.shape[1] < 2:
            table = np.c_[table, np.zeros(len(table))]
        with np.errstate(invalid="ignore"):  # shares of no variance at all
            points = pca.fit_transform(table)
        shares = np.nan_to_num(pca.explained_variance_ratio_)
        return points, [
            f"Principal component {i + 1} ({share:.0%} of the variance)"
            for i, share in enumerate(shares)
        ]
    points = np.asarray(embedding.fit_transform(table))
    if points.ndim != 2 or points.shape[1] < 2:
        raise ValueError(
            f"{type(embedding).__name__} made {points.shape} of {len(table)} tasks; "
            "a map needs two columns."
        )
    name = type(embedding).__name__
    return points[:, :2], [f"{name}, axis {i}" for i in (1, 2)]
