"""What describes a task as a whole, as numbers."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from sk_meta.tasks.sampling import EpisodeSampler
from sk_meta.tasks.validation import call_task


class Description(NamedTuple):
    """What the metadata of the training tasks have in common.

    Attributes
    ----------
    names : tuple of str, or None
        Keys of the dicts, sorted; None for arrays.
    mean, scale : arrays of shape (m,)
    """

    names: tuple | None
    mean: np.ndarray
    scale: np.ndarray


def numeric_metadata(metadata):
    """Numeric metadata as a float vector, dicts in the order of their keys; or None."""
    if metadata is None:
        return None
    names = _names(metadata)
    values = metadata if names is None else [metadata[name] for name in names]
    try:
        return np.atleast_1d(np.asarray(values, dtype=np.float32)).ravel()
    except (TypeError, ValueError):
        return None


def _names(metadata):
    return tuple(sorted(metadata, key=str)) if isinstance(metadata, dict) else None


def _form(metadata):
    """What must be the same in all tasks: names, and the number of values."""
    values = numeric_metadata(metadata)
    return _names(metadata), 0 if values is None else len(values)


def describe(tasks) -> Description:
    """Description of training tasks; raises where they disagree.

    Parameters
    ----------
    tasks : sequence of Task, or EpisodeSampler
    """
    tasks = tasks[:1] if isinstance(tasks, EpisodeSampler) else tasks
    forms = Counter(_form(task.metadata) for task in tasks)
    common = max(forms, key=lambda form: (form[1] > 0, forms[form]))
    table = np.stack(
        [
            _checked(task.metadata, common, call_task(task, i))
            for i, task in enumerate(tasks)
        ]
    )
    scale = table.std(axis=0)
    scale = np.where(scale > 1e-6 * np.abs(table).max(axis=0), scale, 1.0)
    return Description(common[0], table.mean(axis=0), scale)


def check_metadata(metadata, description: Description, what: str):
    """Raise unless metadata is of the form of the training tasks'."""
    _checked(metadata, (description.names, len(description.mean)), what)


def _checked(metadata, form, what):
    values, (names, n_values) = numeric_metadata(metadata), form
    if values is None or not values.size:
        found = "none" if metadata is None else f"{metadata!r:.60}"
        raise ValueError(
            f"{what} has no numeric metadata, which use_metadata=True needs; found "
            f"{found}. Pass an array or dict of numbers, or use_metadata=False."
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"{what} has metadata with NaN or infinity: {values.tolist()!r:.60}. "
            "Describe every task by finite numbers, or use_metadata=False."
        )
    if _names(metadata) != names:
        known, found = (
            "without names" if part is None else f"named {', '.join(map(str, part))}"
            for part in (names, _names(metadata))
        )
        raise ValueError(
            f"{what} has metadata {found}; tasks of meta-training have metadata "
            f"{known}. Describe all tasks alike."
        )
    if len(values) != n_values:
        raise ValueError(
            f"{what} has {len(values)} metadata value(s); tasks of meta-training have "
            f"{n_values}. Describe all tasks by the same numbers."
        )
    return values
