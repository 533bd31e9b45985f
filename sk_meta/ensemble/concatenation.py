"""Fitted members joined by their features, under one head."""

import numpy as np

from sk_meta.ensemble.members import transformed
from sk_meta.row_heads import apply_head, fit_head
from sk_meta.tasks.stacking import needs_fit

_MOST_ROWS = 2000  # that the scale of features is taken from


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
