"""The unit of meta-learning: one data set, of which some rows are the support set."""

import numpy as np

LABEL_KINDS = ("shared", "local")


def take_rows(X, rows):
    """Rows of an array or a DataFrame, by position."""
    return X.iloc[rows] if hasattr(X, "iloc") else X[rows]


class Task:
    """One data set, and which of its rows are the support set.

    To a meta-learner, one sample is one task: a list of tasks takes the place of `X`.

    Parameters
    ----------
    X : array of shape (n_rows, ...) or DataFrame
        Features. Kept as it is until a learner needs numbers.
    y : array of shape (n_rows,) or (n_rows, n_targets)
        Labels or targets. Required; rows whose `y` is unknown are marked in `labeled`.
    support : array of bool or int, default=None
        Mask or positions of the rows that form the support set; the others are the
        query set. None lets the meta-learner draw the rows (its `support_size`).
    labels : {"shared", "local"}, default="shared"
        "shared": a label means the same in every task (sick, healthy).
        "local": each task has classes of its own (five new characters).
    metadata : object, default=None
        A description of the task as a whole.
    sample_weight : array of shape (n_rows,), default=None
        Weights of the rows, in the inner loop and in scores.
    labeled : array of bool of shape (n_rows,), default=None
        Which rows have a known `y`. None means all of them.
    name : str, default=None
        Used in error messages and tables.

    Raises
    ------
    ValueError
        If lengths disagree, `y` is missing, or `support` is not a valid mask or index.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_meta import Task
    >>> task = Task(np.eye(4), [0, 1, 0, 1], support=[0, 1], name="store_17")
    >>> task
    Task('store_17', n_rows=4, n_support=2)
    >>> task.X_query.shape
    (2, 4)
    """

    def __init__(
        self,
        X,
        y,
        support=None,
        labels="shared",
        metadata=None,
        sample_weight=None,
        labeled=None,
        name=None,
    ):
        self.X = X if hasattr(X, "iloc") else np.asarray(X)
        self._describe(
            self.X,
            len(self.X),
            y,
            support,
            labels,
            metadata,
            sample_weight,
            labeled,
            name,
        )

    def _describe(
        self, X, n_rows, y, support, labels, metadata, sample_weight, labeled, name
    ):
        """Check and keep all but the features; `X` tells their rank."""
        self.name = None if name is None else str(name)
        self.metadata = metadata
        self.labels = labels
        if labels not in LABEL_KINDS:
            raise ValueError(
                f"labels of {self.label()} must be 'shared' or 'local', got {labels!r}."
            )
        if X.ndim < 2:
            raise ValueError(
                f"X of {self.label()} has {X.ndim} dimension(s); expected at "
                "least 2. Reshape a single feature with X.reshape(-1, 1)."
            )
        if y is None:
            raise ValueError(
                f"y of {self.label()} is missing. Pass y; rows without a known label "
                "are marked with labeled=mask, or left to "
                "Task.from_support_query(Xs, ys, Xq)."
            )
        self.y = np.asarray(y)
        if not n_rows:
            raise ValueError(f"{self.label()} has no rows. Leave it out.")
        self.sample_weight = (
            None if sample_weight is None else np.asarray(sample_weight, dtype=float)
        )
        self.labeled = None if labeled is None else np.asarray(labeled)
        for what in ("y", "sample_weight", "labeled"):
            value = getattr(self, what)
            if value is not None and (value.ndim == 0 or len(value) != n_rows):
                found = "a scalar" if value.ndim == 0 else f"{len(value)} entries"
                raise ValueError(
                    f"{what} of {self.label()} has {found}, but X has {n_rows} rows."
                )
        if self.labeled is not None and self.labeled.dtype != bool:
            raise ValueError(
                f"labeled of {self.label()} must be a mask of True and False, got an "
                f"array of dtype {self.labeled.dtype}."
            )
        weight = self.sample_weight
        if weight is not None and (
            weight.ndim > 1 or not np.isfinite(weight).all() or (weight < 0).any()
        ):
            raise ValueError(
                f"sample_weight of {self.label()} must be {n_rows} finite numbers of "
                f"at least 0; got an array of shape {weight.shape} with values from "
                f"{weight.min()} to {weight.max()}."
            )
        self.support = None if support is None else self._mask(support, n_rows)

    def _mask(self, support, n_rows):
        rows = np.asarray(support)
        if rows.dtype == bool:
            if rows.shape != (n_rows,):
                raise ValueError(
                    f"support of {self.label()} is a mask of shape {rows.shape}, but "
                    f"X has {n_rows} rows."
                )
            return rows.copy()
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise ValueError(
                f"support of {self.label()} must be a mask or row positions, got an "
                f"array of dtype {rows.dtype} and shape {rows.shape}."
            )
        outside = rows[(rows < -n_rows) | (rows >= n_rows)]
        if outside.size:
            raise ValueError(
                f"support of {self.label()} holds row {outside[0]}, but X has "
                f"{n_rows} rows."
            )
        mask = np.zeros(n_rows, dtype=bool)
        mask[rows.astype(int)] = True
        return mask

    @classmethod
    def from_support_query(cls, X_support, y_support, X_query, y_query=None, **options):
        """Join a support set and a query set into one task.

        Parameters
        ----------
        X_support : array of shape (n_support, ...) or DataFrame
            Features of the support set.
        y_support : array of shape (n_support,) or (n_support, n_targets)
            Labels or targets of the support set.
        X_query : array of shape (n_query, ...) or DataFrame
            Features of the query set.
        y_query : array of shape (n_query,) or (n_query, n_targets), default=None
            None if they are not known: the rows are then marked as not labeled.
        **options
            `labels`, `metadata`, `sample_weight` and `name` of `Task`.

        Returns
        -------
        Task
        """
        y_support = np.asarray(y_support)
        n_support, n_query = len(X_support), len(X_query)
        labeled = np.ones(n_support + n_query, dtype=bool)
        if y_query is None:
            labeled[n_support:] = False
            y_query = np.repeat(y_support[:1], n_query, axis=0)
        for part, n_rows, y in (
            ("support", n_support, y_support),
            ("query", n_query, y_query),
        ):
            if np.ndim(y) == 0 or len(y) != n_rows:
                raise ValueError(
                    f"X_{part} has {n_rows} rows, y_{part} has {np.size(y)}; they must "
                    "agree."
                )
        if hasattr(X_support, "iloc"):
            import pandas as pd

            if list(X_support.columns) != list(getattr(X_query, "columns", [])):
                raise ValueError(
                    "X_support and X_query must have the same columns in the same "
                    f"order: {list(X_support.columns)} against "
                    f"{list(getattr(X_query, 'columns', ['no columns']))}."
                )
            X = pd.concat([X_support, X_query])
        else:
            X = np.concatenate([np.asarray(X_support), np.asarray(X_query)])
        return cls(
            X,
            np.concatenate([y_support, np.asarray(y_query)]),
            support=np.arange(n_support + n_query) < n_support,
            labeled=labeled,
            **options,
        )

    def label(self):
        """How messages call this task."""
        return "the task" if self.name is None else f"task {self.name!r}"

    def replace_X(self, X):
        """The same task with other features, row for row."""
        return Task(
            X,
            self.y,
            support=self.support,
            labels=self.labels,
            metadata=self.metadata,
            sample_weight=self.sample_weight,
            labeled=self.labeled,
            name=self.name,
        )

    def __float__(self):
        # What an sklearn transformer asks for when it is handed tasks as rows.
        raise TypeError(
            "A Task is not a number. A transformer of rows works on tasks inside "
            "TaskTransformer, as in TaskTransformer(StandardScaler())."
        )

    def __len__(self):
        return len(self.X)

    def _part(self, values, of_support):
        if self.support is None:
            raise ValueError(
                f"{self.label()} has no support set of its own; pass support=, or let "
                "a meta-learner draw one (its support_size)."
            )
        return take_rows(values, np.flatnonzero(self.support == of_support))

    @property
    def X_support(self):
        """Features of the support set."""
        return self._part(self.X, True)

    @property
    def y_support(self):
        """Labels or targets of the support set."""
        return self._part(self.y, True)

    @property
    def X_query(self):
        """Features of the query set."""
        return self._part(self.X, False)

    @property
    def y_query(self):
        """Labels or targets of the query set."""
        return self._part(self.y, False)

    def __repr__(self):
        name = "" if self.name is None else f"{self.name!r}, "
        support = "" if self.support is None else f", n_support={self.support.sum()}"
        return f"Task({name}n_rows={len(self)}{support})"
