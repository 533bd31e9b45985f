"""Meta-learners that look at one task after the other, without a network over tasks."""

from numbers import Integral
from typing import ClassVar, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from sk_meta.predictions import TaskPrediction
from sk_meta.tasks.encoding import EncodedEpisodes, EncodedTasks
from sk_meta.tasks.sampling import EpisodeSampler, tables_of
from sk_meta.tasks.stacking import needs_fit
from sk_meta.tasks.support import check_support_size
from sk_meta.tasks.task import take_rows
from sk_meta.tasks.validation import (
    Schema,
    call_task,
    check_tasks,
    label_array,
    row_weights,
    target_array,
)


class SupportRows(NamedTuple):
    """The support set of one task, checked.

    Attributes
    ----------
    X : array of shape (n, ...) or DataFrame
    y : array of shape (n,) or (n, n_targets)
        Labels or targets as the user wrote them.
    weight : array of shape (n,), or None
    metadata : object
    classes : array or None
        The columns of what is predicted: all labels where they are shared.
    """

    X: object
    y: np.ndarray
    weight: np.ndarray | None
    metadata: object
    classes: np.ndarray | None


class TaskByTask(BaseEstimator):
    """Checks, draws and predictions over tasks, one task at a time.

    For meta-learners whose parts take rows as the user has them, such as transformers
    of DataFrames. A class brings `fit`, which ends in `_take_tasks`, and the two
    methods `_adapt_to` and `apply_state`.
    """

    _parameter_constraints: ClassVar[dict] = {
        "support_size": "no_validation",  # by check_support_size
        "evaluation_seed": [Interval(Integral, 0, None, closed="left")],
    }

    def _adapt_to(self, support: SupportRows):
        """State for one support set."""
        raise NotImplementedError

    def apply_state(self, state, X, n_classes):
        """Predictions from a state: (probabilities or means, std or None).

        Probabilities have a column for each of `SupportRows.classes`.
        """
        raise NotImplementedError

    def portable_state(self, state):
        """A state as it is pickled."""
        return state

    def adapt_state(self, X, y, sample_weight=None, metadata=None):
        """State for one support set, and the classes that its columns stand for."""
        support = self._check_support(X, y, sample_weight, metadata)
        return self._adapt_to(support), support.classes

    def predict_tasks(self, tasks):
        """Predictions for the query rows of tasks, with the rows they are for.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
            A task without a support set gets one by `support_size`, by a draw that
            depends on `evaluation_seed` and the task alone.

        Returns
        -------
        list of TaskPrediction
        """
        check_is_fitted(self)
        tasks = check_tasks(tasks)
        draws = self._draws(tasks, self.schema_, scored=False)
        found = []
        for index, task in enumerate(tasks):
            try:
                found.append(self._predict_task(task, draws, index))
            except Exception as error:
                error.add_note(f"In {call_task(task, index)}.")
                raise
        return found

    def _predict_task(self, task, draws, index):
        support, query = draws.evaluation_draw(index)
        n_classes, classes = draws.encoded(index)
        if needs_fit(task):
            X, X_query = task.fit_support(support, query)
        else:
            X, X_query = take_rows(task.X, support), take_rows(task.X, query)
        weight = None if task.sample_weight is None else task.sample_weight[support]
        state, known = self.adapt_state(X, task.y[support], weight, task.metadata)
        n_known = 0 if known is None else len(known)
        values, std = self.apply_state(state, self._check_rows(X_query), n_known)
        if n_known != n_classes:  # a class of the query rows without a support row
            columns = np.searchsorted(classes, known)
            all_classes = np.zeros((len(values), n_classes))
            all_classes[:, columns] = values
            values = all_classes
        return TaskPrediction(task, support, query, classes, values, std)

    def _check_rows(self, X, what="X"):
        """Raise unless rows look like those of `fit`; images may come as vectors."""
        X = X if hasattr(X, "shape") else np.asarray(X)
        self.schema_.check_columns(X, what)
        if not hasattr(X, "iloc") and X.dtype.kind == "f" and np.isinf(X).any():
            raise ValueError(f"{what} contains infinity. Clip it, or leave it out.")
        return X if hasattr(X, "iloc") else X.reshape(len(X), *self.schema_.shape)

    def _check_support(self, X, y, sample_weight, metadata):
        what, schema = "the support set", self.schema_
        X = self._check_rows(X, what)
        if not len(X):
            raise ValueError("The support set is empty. Pass at least one row.")
        _, classes = schema.encode(y, what)
        if len(X) != len(y):
            raise ValueError(f"X of {what} has {len(X)} rows, y has {len(y)}.")
        weight = row_weights(sample_weight, len(X), what)
        as_array = label_array if schema.classification else target_array
        y = as_array(y, f"y of {what}")
        if not schema.multi_output and y.ndim == 2:
            y = y[:, 0]
        return SupportRows(X, y, weight, metadata, classes)

    def _check_fit(self, tasks):
        """Tasks and their schema; raises for what `fit` cannot use."""
        self._validate_params()
        check_support_size(self.support_size)
        tasks = check_tasks(tasks)
        schema = Schema.from_tasks(tasks, self._classification)
        self._draws(tasks, schema).check_draws()
        return tasks, schema

    def _draws(self, tasks, schema, scored=True):
        if isinstance(tasks, EpisodeSampler):
            return EncodedEpisodes(tasks, schema)
        return EncodedTasks(
            tasks, schema, self.support_size, self.evaluation_seed, scored
        )

    def _take_tasks(self, tasks, schema):
        """Know the tasks of `fit`; nothing before this changes the estimator."""
        self._take_schema(schema)
        self._tables_of_fit = tables_of(tasks)
