"""What every meta-learner does over tasks, whatever it is made of."""

import warnings
from copy import copy
from typing import ClassVar

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from sk_meta.few_shot import FewShotClassifier, FewShotRegressor
from sk_meta.predictions import object_array, r_squared, scored_rows
from sk_meta.tasks.sampling import tables_of
from sk_meta.tasks.validation import labels_in


class OverTasks:
    """The face of a meta-learner: to it, a sample is a task.

    A class brings `fit`, `schema_`, `predict_tasks`, `adapt_state`, `portable_state`
    and `apply_state`, see `MetaEstimator`.
    """

    _classification: ClassVar[bool]
    unlabeled: ClassVar = None  # y of such rows: a parameter of learners that use them

    def adapt(self, X, y, *, sample_weight=None, metadata=None):
        """Learn a new task from its support set.

        Parameters
        ----------
        X : array of shape (n_support, ...) or DataFrame
        y : array of shape (n_support,) or (n_support, n_targets)
        sample_weight : array of shape (n_support,), default=None
        metadata : array or dict of numbers, default=None
            The task's own description, for methods that use it.

        Returns
        -------
        FewShotClassifier or FewShotRegressor
            Fitted; an ordinary sklearn estimator. The meta-learner is left as it is.
        """
        check_is_fitted(self)
        # A shallow copy: training this learner on leaves what was adapted as it is.
        few_shot = self._few_shot(FrozenEstimator(copy(self)), y)
        return few_shot.fit(X, y, sample_weight=sample_weight, metadata=metadata)

    def _take_schema(self, schema):
        """Know what the tasks of `fit` have in common."""
        self.schema_ = schema
        self.n_features_in_ = int(np.prod(schema.shape))
        for optional in ("feature_names_in_", "classes_"):
            vars(self).pop(optional, None)
        if schema.names is not None:
            self.feature_names_in_ = schema.names
        if schema.classes is not None:
            self.classes_ = schema.classes

    def _warn_of_leak(self, tasks):
        """Episodes of the table that was trained on share their classes with it."""
        if tables_of(tasks) & getattr(self, "_tables_of_fit", set()):
            warnings.warn(
                "These episodes are drawn from the table that the meta-learner was "
                "trained on, so their classes are not new to it, and the score says "
                "nothing about new ones. Cut the classes first, with split_classes.",
                stacklevel=3,
            )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.target_tags.required = False
        return tags


class ClassifiesTasks(OverTasks):
    """A meta-learner whose tasks are classification tasks."""

    _classification = True

    def predict_proba(self, tasks):
        """Class probabilities of the query rows of each task.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler

        Returns
        -------
        object array of shape (n_tasks,)
            Each entry of shape (n_query, n_classes).
        """
        return object_array([p.values for p in self.predict_tasks(tasks)])

    def predict(self, tasks):
        """Labels of the query rows of each task.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler

        Returns
        -------
        object array of shape (n_tasks,)
            Each entry of shape (n_query,).
        """
        return object_array(
            [p.classes[p.values.argmax(1)] for p in self.predict_tasks(tasks)]
        )

    def score(self, tasks, y=None):
        """Mean over tasks of the accuracy on labelled query rows.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
        y : None
            Ignored.

        Returns
        -------
        float
        """
        predictions, scores = self.predict_tasks(tasks), []
        self._warn_of_leak(tasks)
        for found in predictions:
            y_true, rows, weight = scored_rows(found)
            y_pred = found.classes[found.values.argmax(1)][rows]
            scores.append(np.average(y_true == y_pred, weights=weight))
        return float(np.mean(scores))

    def _few_shot(self, frozen, y):
        labels = labels_in(y, self.unlabeled)
        return FewShotClassifier(frozen, encoded_labels=labels)


class RegressesTasks(OverTasks):
    """A meta-learner whose tasks are regression tasks."""

    _classification = False

    def predict(self, tasks, return_std=False):
        """Targets of the query rows of each task.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
        return_std : bool, default=False
            Also return the predictive standard deviation, where the method has one.

        Returns
        -------
        object array of shape (n_tasks,)
            Each entry of the shape of the task's query targets. With `return_std`, a
            second such array.
        """
        found = self.predict_tasks(tasks)
        means = object_array([p.values for p in found])
        if not return_std:
            return means
        if found[0].std is None:
            raise ValueError(
                f"{type(self).__name__} gives no standard deviation. Use a method that "
                "does, such as ALPaCARegressor."
            )
        return means, object_array([p.std for p in found])

    def score(self, tasks, y=None):
        """Mean over tasks of R^2 on labelled query rows.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
            A task with fewer than two labelled query rows has no R^2 and is left out.
        y : None
            Ignored.

        Returns
        -------
        float
        """
        predictions, scores = self.predict_tasks(tasks), []
        self._warn_of_leak(tasks)
        for found in predictions:
            y_true, rows, weight = scored_rows(found)
            if len(y_true) > 1:
                values = found.values[rows]
                scores.append(r_squared(y_true, values, weight))
        if not scores:
            raise ValueError(
                "No task has two labelled query rows, which R^2 needs. Use another "
                "metric, with task_scorer('neg_mean_squared_error')."
            )
        return float(np.mean(scores))

    def _few_shot(self, frozen, y):
        return FewShotRegressor(frozen)
