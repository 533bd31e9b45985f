"""Fitted members joined by their outputs, or by their features."""

import numpy as np

from sk_meta.ensemble.members import leave_one_out, transformed
from sk_meta.ensemble.weights import given, simplex_weights, support_weights
from sk_meta.predictions import TaskPrediction
from sk_meta.row_heads import apply_head, fit_head
from sk_meta.task_by_task import SupportRows
from sk_meta.tasks.stacking import needs_fit
from sk_meta.tasks.task import take_rows

_MOST_ROWS = 2000  # that the scale of features is taken from


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


class Concatenated:
    """Features of all members side by side, under a head fitted to each support set.

    Each member's features are centred and scaled to the same mean square over the
    tasks of `fit`, then to its weight.

    Parameters
    ----------
    members : list of Member
    schema : Schema
    weights : array of shape (n_members,)
    head : sklearn classifier or regressor
    """

    def __init__(self, members, schema, weights, head):
        self.members, self.schema, self.weights = members, schema, weights
        self.head = head
        self.centres, self.scales = [], []

    def fit(self, tasks):
        """Find centre and scale of each member's features."""
        for member in self.members:
            if not hasattr(member.meta, "embed"):
                raise ValueError(
                    f"{member.name!r} is a {type(member.meta).__name__}, which has no "
                    "features that are common to all tasks. Use how='average'."
                )
        blocks = [[] for _ in self.members]
        n_rows = 0
        for task in tasks:
            if n_rows >= _MOST_ROWS:
                break
            n_rows += len(task)
            for block, member in zip(blocks, self.members, strict=True):
                block.append(self._of_task(member, task))
        for block, weight in zip(blocks, self.weights, strict=True):
            Z = np.concatenate(block)
            spread = np.sqrt((Z - Z.mean(axis=0)).var(axis=0).sum())
            self.centres.append(Z.mean(axis=0))
            share = np.sqrt(weight * len(self.members))
            self.scales.append(share / spread if spread > 0 else 0.0)
        return self

    def _of_task(self, member, task):
        X = task.X
        for _, step in member.steps:
            task = step.transform([task])[0]
            X = task.X
        if needs_fit(task):
            rows = np.arange(len(task))
            X, _ = task.fit_support(rows, rows[:1])
        return np.asarray(member.meta.embed(X))

    def _features(self, transformers, X):
        blocks = []
        for member, own, centre, scale in zip(
            self.members, transformers, self.centres, self.scales, strict=True
        ):
            Z = np.asarray(member.meta.embed(transformed(own, X)))
            blocks.append((Z - centre) * scale)
        return np.concatenate(blocks, axis=1)

    def adapt(self, support):
        """See `TaskByTask`."""
        transformers = [m.transform_support(support)[0] for m in self.members]
        Z = self._features(transformers, support.X)
        return transformers, fit_head(self.head, Z, support)

    def portable(self, state):
        """See `TaskByTask`."""
        return state

    def apply(self, state, X, n_classes):
        """See `TaskByTask`."""
        transformers, head = state
        return apply_head(head, self._features(transformers, X))
