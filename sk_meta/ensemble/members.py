"""The learners that a fusion joins: checked, fitted, asked about the same rows."""

from copy import copy
from typing import NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sk_meta.pipeline import TaskTransformer, adapt_steps, parts_of, transform_tasks
from sk_meta.seeds import settle_random_states
from sk_meta.tasks.sampling import EpisodeSampler
from sk_meta.tasks.task import Task


class Member(NamedTuple):
    """A fitted learner, and the transformers of tasks before it.

    Attributes
    ----------
    name : str
    model : meta-learner, or Pipeline ending in one
    steps : list of (name, TaskTransformer)
    meta : meta-learner
    """

    name: str
    model: BaseEstimator
    steps: list
    meta: BaseEstimator

    def predict_tasks(self, tasks):
        """A TaskPrediction for each task, as the learner alone would make it."""
        return self.meta.predict_tasks(transform_tasks(self.steps, tasks))

    def adapt(self, support):
        """State for the support rows, with that of the transformers."""
        transformers, X = self.transform_support(support)
        state, _ = self.meta.adapt_state(X, support.y, support.weight, support.metadata)
        return transformers, state

    def transform_support(self, support):
        """Transformers of rows for this support set, and its rows after them."""
        fitted, X = adapt_steps(self.steps, support.X, support.y)
        return [transformer for _, transformer in fitted], X

    def portable(self, state):
        """Such a state as it is pickled."""
        transformers, inner = state
        return transformers, self.meta.portable_state(inner)

    def apply(self, state, X, n_classes):
        """(probabilities or means, std or None) of rows."""
        transformers, inner = state
        return self.meta.apply_state(inner, transformed(transformers, X), n_classes)


def transformed(transformers, X):
    """Rows after transformers, one after the other; dense."""
    for transformer in transformers:
        X = transformer.transform(X)
    return X.toarray() if hasattr(X, "toarray") else X


def check_learners(learners, classification):
    """Raise unless these are named meta-learners of one kind."""
    if not learners:
        raise ValueError("learners is an empty list. Pass at least one.")
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in learners):
        raise TypeError("learners must be a list of pairs (name, meta-learner).")
    kind = "classes" if classification else "targets"
    for name, learner in learners:
        meta = last_step(learner)
        if not hasattr(meta, "adapt_state"):
            raise TypeError(
                f"{name!r} must be a meta-learner, a Pipeline that ends in one, or "
                f"FrozenEstimator of a fitted one; got {type(meta).__name__}."
            )
        if meta._classification != classification:
            raise TypeError(
                f"{name!r} is a {type(meta).__name__}, which is not for {kind}. Join "
                "learners of one kind."
            )
        if isinstance(learner, FrozenEstimator):
            check_is_fitted(learner.estimator)
        for step, transformer in _steps(learner):
            if not isinstance(transformer, TaskTransformer):
                raise TypeError(
                    f"Step {step!r} of {name!r} is a {type(transformer).__name__}, "
                    "which works on rows. Wrap it: "
                    f"TaskTransformer({type(transformer).__name__}())."
                )


def last_step(learner):
    """The meta-learner within a frozen or unfitted learner or Pipeline."""
    learner = _inside(learner)
    return learner.steps[-1][1] if isinstance(learner, Pipeline) else learner


def _steps(learner):
    learner = _inside(learner)
    steps = learner.steps[:-1] if isinstance(learner, Pipeline) else []
    return [step for step in steps if step[1] not in (None, "passthrough")]


def _inside(learner):
    return learner.estimator if frozen(learner) else learner


def frozen(learner):
    """Whether a learner is used as it is."""
    return isinstance(learner, FrozenEstimator)


def fit_members(learners, tasks, rng, alike=False):
    """Members, in order; those that are not frozen are fitted on the tasks.

    Parameters
    ----------
    learners : list of (name, learner)
    tasks : list of Task, or EpisodeSampler
    rng : RandomState, or None
        Seeds those that have no `random_state`.
    alike : bool, default=False
        Whether all get the same seeds, and so start from the same parameters.
    """
    members = []
    seed = None if rng is None else int(rng.randint(2**31 - 1))
    for name, learner in learners:
        if alike:
            rng = np.random.RandomState(seed)
        if frozen(learner):
            model = learner.estimator
        else:
            model = clone(learner)
            if rng is not None:
                settle_random_states(model, rng)
            model.fit(tasks)
        members.append(Member(name, model, *parts_of(model)))
    return members


def check_agreement(members, schema):
    """Raise unless all members know the features and labels of the tasks."""
    first = members[0]
    for member in members:
        theirs = member.meta.schema_
        if theirs.labels != first.meta.schema_.labels or theirs.labels != schema.labels:
            raise ValueError(
                f"{member.name!r} was fitted on tasks with {theirs.labels} labels, "
                f"{first.name!r} on {first.meta.schema_.labels} ones; these tasks have "
                f"{schema.labels} ones. Join learners of one kind of labels."
            )
        if not np.array_equal(theirs.classes, first.meta.schema_.classes):
            raise ValueError(
                f"{member.name!r} was fitted on the classes {_listed(theirs)}, "
                f"{first.name!r} on {_listed(first.meta.schema_)}. Fit them on tasks "
                "with the same ones."
            )
        if not schema.classification and theirs.n_outputs != schema.n_outputs:
            raise ValueError(
                f"{member.name!r} was fitted on {theirs.n_outputs} target(s); these "
                f"tasks have {schema.n_outputs}. All need as many."
            )
        _check_features(member, schema)


def _listed(schema):
    return None if schema.classes is None else schema.classes.tolist()


def _check_features(member, schema):
    """Of what comes first: the transformers, or the learner."""
    asked = getattr(member.steps[0][1], "transformer_", None) if member.steps else None
    if asked is None:
        shape, names = member.meta.schema_.shape, member.meta.schema_.names
        n_features = int(np.prod(shape))
    else:
        n_features = getattr(asked, "n_features_in_", None)
        names = getattr(asked, "feature_names_in_", None)
    given = int(np.prod(schema.shape))
    if n_features not in (None, given):
        raise ValueError(
            f"{member.name!r} was fitted on {n_features} features; these tasks have "
            f"{given}. Join learners of the same features, or put what selects them "
            "into a Pipeline of each."
        )
    known = names is not None and schema.names is not None
    if known and not np.array_equal(names, schema.names):
        raise ValueError(
            f"{member.name!r} was fitted on the columns {list(names)}; these tasks "
            f"have {list(schema.names)}. Join learners of the same features."
        )


def with_support(tasks, draws):
    """Tasks with the support sets of `draws`, so that all members get the same."""
    if isinstance(tasks, EpisodeSampler):
        return tasks
    fixed = []
    for index, task in enumerate(tasks):
        if task.support is None:
            rows, _ = draws.evaluation_draw(index)
            task = copy(task)
            task.support = np.isin(np.arange(len(task)), rows)
        fixed.append(task)
    return fixed


def leave_one_out(support, schema):
    """A task for each support row that can be spared: the others are its support set.

    A class that would lose its only row keeps it.
    """
    rows = np.arange(len(support.y))
    if schema.classification:
        _, codes, counts = np.unique(support.y, return_inverse=True, return_counts=True)
        rows = rows[counts[codes] > 1]
    elif len(rows) < 2:
        return []
    if support.weight is not None:
        rows = rows[support.weight[rows] > 0]
    return [
        Task(
            support.X,
            support.y,
            support=np.delete(np.arange(len(support.y)), row),
            labels=schema.labels,
            metadata=support.metadata,
            sample_weight=support.weight,
        )
        for row in rows
    ]
