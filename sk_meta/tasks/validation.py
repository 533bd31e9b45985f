"""Checks of tasks, in one place, and what the tasks have in common: the schema."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from sk_meta.tasks.disk import table_of
from sk_meta.tasks.sampling import EpisodeSampler
from sk_meta.tasks.task import Task
from sk_meta.tasks.unlabeled import check_classes, labeled_rows, mark_unlabeled


def check_tasks(tasks, unlabeled=None):
    """Turn what a user passes as tasks into a sequence of Task.

    Parameters
    ----------
    tasks : list of Task, list of (X, y), or EpisodeSampler
    unlabeled : int or str, default=None
        Rows with this y count as unlabelled.

    Returns
    -------
    sequence of Task

    Raises
    ------
    ValueError
        If there are none.
    TypeError
        If they are something else.
    """
    if isinstance(tasks, EpisodeSampler):
        check_classes(tasks, unlabeled)
        return tasks
    if isinstance(tasks, Task):
        raise TypeError("Expected a list of tasks, got one Task. Pass [task].")
    is_array = isinstance(tasks, np.ndarray) and tasks.dtype != object
    if (
        is_array
        or hasattr(tasks, "iloc")
        or not isinstance(tasks, Sequence | np.ndarray)
    ):
        raise TypeError(
            "Expected a list of tasks: Task objects or (X, y) pairs, or an "
            f"EpisodeSampler; got {type(tasks).__name__}. A table with an id column "
            "becomes tasks by tasks_from_groups(X, y, groups). To predict rows of a "
            "new task, adapt first: meta.adapt(X_support, y_support).predict(X)."
        )
    if len(tasks) == 0:
        raise ValueError("There are no tasks: the list is empty. Pass at least one.")
    tasks = [_as_task(task, position) for position, task in enumerate(tasks)]
    return [mark_unlabeled(task, unlabeled) for task in tasks]


def _as_task(task, position):
    if isinstance(task, Task):
        return task
    if isinstance(task, tuple) and len(task) == 2:
        return Task(*task, name=str(position))
    raise TypeError(
        f"Task {position} is a {type(task).__name__}. Expected a Task or a pair (X, y)."
    )


def call_task(task, position):
    """How messages call a task of a list."""
    return f"Task {position}" + ("" if task.name is None else f" ({task.name!r})")


def _real(values, what: str, advice: str) -> np.ndarray:
    """An array of real numbers; objects may hold them, strings may not."""
    texts = values.dtype.kind == "O" and any(
        isinstance(value, str) for value in values.ravel().tolist()
    )
    if values.dtype.kind == "O" and not texts:
        with suppress(TypeError, ValueError):
            values = values.astype(np.float64)
    if values.dtype.kind not in "fiub":
        raise ValueError(
            f"{what} holds values that are not real numbers (dtype {values.dtype}). "
            + advice
        )
    return values


def numeric(values, what: str) -> np.ndarray:
    """Values as a finite float32 array, or an error that says what to do."""
    if hasattr(values, "iloc"):
        values = values.to_numpy()
    elif hasattr(values, "toarray"):  # sparse, as encoders put out
        values = values.toarray()
    values = _real(
        np.asarray(values),
        what,
        "Encode them first, for example with TaskTransformer(OneHotEncoder()) or a "
        "ColumnTransformer in a Pipeline.",
    )
    with np.errstate(over="ignore"):
        values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{what} contains NaN, infinity or a value too large for float32. Impute "
            "missing values in a Pipeline, for example with "
            "TaskTransformer(SimpleImputer())."
        )
    return values


def label_array(y, what: str) -> np.ndarray:
    """Class labels as a 1-d array that can be sorted."""
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(
            f"{what} has shape {y.shape}; class labels must be of shape (n_rows,)."
        )
    if y.dtype.kind == "f":
        if not np.isfinite(y).all():
            raise ValueError(
                f"{what} contains NaN or infinity. Mark rows without a known label "
                "with Task(..., labeled=mask)."
            )
        if (y != np.floor(y)).any():
            raise ValueError(
                f"{what} holds continuous values such as {y[y != np.floor(y)][0]!r}. "
                "Use a meta-regressor, or pass class labels."
            )
    if y.dtype.kind == "O":
        if any(value is None for value in y.tolist()):
            raise ValueError(
                f"{what} contains None. Mark rows without a known label with "
                "Task(..., labeled=mask)."
            )
        kinds = {type(value).__name__ for value in y.tolist()}
        if len(kinds) > 1:
            raise ValueError(
                f"{what} mixes labels of types {', '.join(sorted(kinds))}. Use one."
            )
        y = np.asarray(y.tolist())
    return y


def labels_in(y, unlabeled):
    """The labels in y of a support set, sorted; None where there is no y.

    Parameters
    ----------
    y : array of shape (n_rows,)
    unlabeled : int or str, or None
        The value of unlabelled rows.
    """
    if np.ndim(y) == 0:
        return None
    known = np.asarray(y)[labeled_rows(y, unlabeled)]
    return np.unique(label_array(known, "y of the support set"))


def target_array(y, what: str) -> np.ndarray:
    """Regression targets as a finite float64 array of one or two dimensions."""
    y = _real(np.asarray(y), what, "Use a meta-classifier for class labels.")
    y = y.astype(np.float64, copy=False)
    if y.ndim not in (1, 2):
        raise ValueError(
            f"{what} has shape {y.shape}; expected (n_rows,) or (n_rows, n_targets)."
        )
    if not np.isfinite(y).all():
        raise ValueError(
            f"{what} contains NaN or infinity. Mark rows without a known target with "
            "Task(..., labeled=mask)."
        )
    return y


def row_weights(weight, n_rows: int, what: str) -> np.ndarray | None:
    """Weights of rows, of which some must count; None stays None."""
    if weight is None:
        return None
    weight = np.asarray(weight, dtype=np.float32)
    shaped = weight.shape == (n_rows,)
    if not shaped or not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError(
            f"sample_weight of {what} must be {n_rows} finite numbers of at least 0, "
            f"got {weight.tolist()!r:.80}."
        )
    if not weight.any():
        raise ValueError(f"sample_weight of {what} is zero everywhere.")
    return weight


def feature_names(X):
    """Column names of a DataFrame or DiskTable if all are strings, else None."""
    if not hasattr(X, "columns"):
        return None
    names = np.asarray(X.columns, dtype=object)
    return names if all(isinstance(name, str) for name in names) else None


@dataclass
class Schema:
    """What all tasks have in common, and how outputs relate to labels or targets.

    Attributes
    ----------
    classification : bool
    shape : tuple of int
        Shape of one row of X.
    names : array of str, or None
        Column names of DataFrames or files.
    labels : "shared" or "local"
    classes : array, or None
        All labels, sorted, where they are shared.
    n_outputs : int
        Largest number of classes in a task, or number of targets.
    multi_output : bool
        Whether y has two dimensions.
    target_mean, target_scale : arrays of shape (n_outputs,)
        Of the pooled labelled rows, for regression.
    uses_unlabeled : bool
        Whether rows without a known label may be in a support set; their y is -1.
    metadata : Description, or None
        Of the tasks' metadata, for methods that use it.
    n_tasks : int
        Tasks of meta-training.
    """

    classification: bool
    shape: tuple
    names: np.ndarray | None = None
    labels: str = "shared"
    classes: np.ndarray | None = None
    n_outputs: int = 1
    multi_output: bool = False
    target_mean: np.ndarray = field(default_factory=lambda: np.zeros(1))
    target_scale: np.ndarray = field(default_factory=lambda: np.ones(1))
    uses_unlabeled: bool = False
    metadata: tuple | None = None
    n_tasks: int = 0

    @classmethod
    def from_tasks(cls, tasks, classification: bool, uses_unlabeled: bool = False):
        """Infer the schema of training tasks; raise where they disagree."""
        lazy = isinstance(tasks, EpisodeSampler)
        looked_at = tasks[:1] if lazy else tasks
        first = looked_at[0]
        X = first.preview() if hasattr(first, "preview") else table_of(first)
        schema = cls(
            classification,
            tuple(np.shape(X)[1:]),
            feature_names(X),
            uses_unlabeled=uses_unlabeled,
            n_tasks=len(tasks),
        )
        _check_features_agree(looked_at)
        if classification:
            schema._set_labels(tasks, looked_at)
        else:
            schema._set_targets(looked_at)
        return schema

    def _set_labels(self, tasks, looked_at):
        kinds = {task.labels for task in looked_at}
        if len(kinds) > 1:
            odd = [t.labels for t in looked_at].index("local")
            raise ValueError(
                f"Tasks mix label kinds: {call_task(looked_at[odd], odd)} has local "
                "labels, others have shared ones. Use one kind in a list."
            )
        self.labels = kinds.pop()
        found = []
        for position, task in enumerate(looked_at):
            y = labelled_part(task)
            classes = np.unique(label_array(y, f"y of {call_task(task, position)}"))
            if len(classes) < 2:
                raise ValueError(
                    f"{call_task(task, position)} has "
                    + (f"one class ({classes[0]!r})" if len(classes) else "no label")
                    + "; a meta-classifier needs at least two in each training task. "
                    "Leave the task out, or merge it with another."
                )
            found.append(classes)
        if self.labels == "local":
            self.n_outputs = max(map(len, found))
            return
        if len({classes.dtype.kind in "USO" for classes in found}) > 1:
            raise ValueError(
                "Some tasks have strings as labels and others numbers. Shared labels "
                "must be of one type."
            )
        self.classes = np.unique(np.concatenate(found))
        self.n_outputs = len(self.classes)

    def _set_targets(self, tasks):
        targets = []
        for position, task in enumerate(tasks):
            y = target_array(labelled_part(task), f"y of {call_task(task, position)}")
            if targets and y.shape[1:] != targets[0].shape[1:]:
                raise ValueError(
                    f"{call_task(task, position)} has targets of shape {y.shape}; the "
                    f"first task has {targets[0].shape}. All need as many targets."
                )
            targets.append(y)
        pooled = np.concatenate(targets)
        self.multi_output = pooled.ndim == 2
        pooled = pooled.reshape(len(pooled), -1)
        self.n_outputs = pooled.shape[1]
        self.target_mean = pooled.mean(axis=0)
        scale = pooled.std(axis=0)
        self.target_scale = np.where(scale > 0, scale, 1.0)

    def check_features(self, X, what: str):
        """Raise unless rows look like those of `fit`; return them as numbers."""
        self.check_columns(X, what)
        X = numeric(X, f"X of {what}")
        return X.reshape(len(X), *self.shape)

    def check_columns(self, X, what: str):
        """Raise unless shape and names of rows are those of `fit`; reads no row."""
        shape = tuple(np.shape(X)[1:])
        flat = (int(np.prod(self.shape)),)  # rows of images may come as vectors
        if shape not in (self.shape, flat):
            raise ValueError(
                f"{what} has {say_shape(shape)}; the meta-learner was fitted on tasks "
                f"with {say_shape(self.shape)}."
            )
        check_names(feature_names(X), self.names, what, "the tasks of fit")

    def encode(self, y, what: str, labeled=None):
        """Labels as integers in [0, n_classes), or scaled targets (n_rows, n_targets).

        Parameters
        ----------
        y : array of shape (n_rows,) or (n_rows, n_targets)
        what : str
            How messages call the rows.
        labeled : array of bool of shape (n_rows,), default=None
            Mask of the rows whose label is known, for `uses_unlabeled`; others get -1.

        Returns
        -------
        encoded : array
        classes : array or None
            What the integers stand for.
        """
        if np.ndim(y) == 0:
            raise ValueError(f"y of {what} is missing. Pass one entry for each row.")
        if not self.classification:
            y = target_array(y, f"y of {what}")
            if (y.shape[1:] or (1,)) != (self.n_outputs,):
                raise ValueError(
                    f"y of {what} has shape {y.shape}; the meta-learner was fitted on "
                    f"{self.n_outputs} target(s)."
                )
            scaled = (y.reshape(len(y), -1) - self.target_mean) / self.target_scale
            return scaled.astype(np.float32), None
        labeled = np.ones(len(y), dtype=bool) if labeled is None else labeled
        known = label_array(np.asarray(y)[labeled], f"y of {what}")
        if not len(known):
            raise ValueError(
                f"{what[0].upper()}{what[1:]} has no row with a known label."
            )
        classes = np.unique(known) if self.labels == "local" else self.classes
        encoded = np.full(len(y), -1)
        encoded[labeled] = encode_labels(known, classes, what)
        return encoded, classes


def _check_features_agree(tasks):
    tables = [table_of(task) for task in tasks]
    shapes = [np.shape(table)[1:] for table in tables]
    common = max(set(shapes), key=shapes.count)
    names = feature_names(tables[0])
    for position, (table, shape) in enumerate(zip(tables, shapes, strict=True)):
        what = call_task(tasks[position], position)
        if shape != common:
            raise ValueError(
                f"{what} has {say_shape(shape)}; {shapes.count(common)} of the "
                f"{len(tasks)} tasks have {say_shape(common)}. All tasks need the same "
                "features."
            )
        check_names(feature_names(table), names, what, "the first task")


def encode_labels(y, classes, what: str):
    """Positions of labels in sorted classes, matched by value."""
    comparable = (y.dtype.kind in "USO") == (classes.dtype.kind in "USO")
    known = np.isin(y, classes) if comparable else np.zeros(len(y), dtype=bool)
    if not known.all():
        raise ValueError(
            f"y of {what} holds the label {y[~known][0]!r}, which no training task "
            f"had; it knows {classes.tolist()}. With classes of its own in "
            "each task, use labels='local'."
        )
    return np.searchsorted(classes, y)


def labelled_part(task):
    """y of the rows whose y is known."""
    return task.y if task.labeled is None else task.y[task.labeled]


def say_shape(shape):
    """A row's shape in words."""
    return f"{shape[0]} features" if len(shape) == 1 else f"rows of shape {shape}"


def check_names(names, expected, what: str, where: str):
    """Raise when both have column names and these differ."""
    if names is None or expected is None or np.array_equal(names, expected):
        return
    if set(names) == set(expected):
        raise ValueError(
            f"{what} has the columns of {where} in another order: {list(names)} "
            f"against {list(expected)}. Reorder them."
        )
    missing = sorted(set(expected) - set(names))
    unknown = sorted(set(names) - set(expected))
    raise ValueError(
        f"{what} has other columns than {where}: missing {missing}, unknown {unknown}."
    )
