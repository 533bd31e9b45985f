"""Fitted members joined by their outputs."""

import numpy as np

from sk_meta.ensemble.members import leave_one_out
from sk_meta.ensemble.weights import given, simplex_weights, support_weights
from sk_meta.predictions import TaskPrediction
from sk_meta.task_by_task import SupportRows
from sk_meta.tasks.task import take_rows


class Averaged:
    """Weighted outputs: a mixture of the members' predictions.

    Parameters
    ----------
    members : list of Member
    schema : Schema
    weights : array of shape (n_members,), or None
        None: of each task, from its support set.
    """

    def __init__(self, members, schema, weights):
        self.members, self.schema, self.weights = members, schema, weights

    @classmethod
    def fit(cls, members, schema, weights, tasks):
        """With weights that are given, or "uniform", "learned" or "support"."""
        if isinstance(weights, str) and weights == "learned":
            weights = simplex_weights([m.predict_tasks(tasks) for m in members])
        elif isinstance(weights, str) and weights == "support":
            weights = None
        return cls(members, schema, given(weights, len(members)))

    def weights_of(self, support):
        """Weights of the members for one support set."""
        if self.weights is not None:
            return self.weights
        left_out = leave_one_out(support, self.schema)
        asked = [m.predict_tasks(left_out) if left_out else [] for m in self.members]
        return support_weights(asked)

    def adapt(self, support):
        """See `TaskByTask`."""
        states = [member.adapt(support) for member in self.members]
        return states, self.weights_of(support)

    def portable(self, state):
        """See `TaskByTask`."""
        states, weights = state
        pairs = zip(self.members, states, strict=True)
        return [member.portable(inner) for member, inner in pairs], weights

    def apply(self, state, X, n_classes):
        """See `TaskByTask`."""
        states, weights = state
        pairs = zip(self.members, states, strict=True)
        return mixture([m.apply(inner, X, n_classes) for m, inner in pairs], weights)

    def predict_tasks(self, tasks):
        """Predictions of tasks with support sets; members see many tasks at once."""
        found = zip(*(m.predict_tasks(tasks) for m in self.members), strict=True)
        joined = []
        for task, of_members in zip(tasks, found, strict=True):
            weights = self.weights
            if weights is None:
                weights = self.weights_of(_support_of(task, of_members[0]))
            values = mixture([(one.values, one.std) for one in of_members], weights)
            joined.append(TaskPrediction(*of_members[0][:4], *values))
        return joined


def _support_of(task, found):
    """The support rows that a prediction was made from, before any transformer."""
    rows = found.support
    weight = None if task.sample_weight is None else task.sample_weight[rows]
    X = take_rows(task.X, rows)
    return SupportRows(X, task.y[rows], weight, task.metadata, found.classes)


def mixture(parts, weights):
    """Mean, and std where all members give one, of a mixture.

    Parameters
    ----------
    parts : list of (values, std or None)
    weights : array of shape (n_members,)
    """
    values = sum(w * values for w, (values, _) in zip(weights, parts, strict=True))
    if any(std is None for _, std in parts):
        return values, None
    second = sum(
        w * (std**2 + (mean - values) ** 2)
        for w, (mean, std) in zip(weights, parts, strict=True)
    )
    return values, np.sqrt(second)
