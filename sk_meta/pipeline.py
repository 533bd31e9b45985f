"""Ordinary sklearn transformers over tasks, and adapting what is built from them."""

from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from sk_meta.tasks.sampling import Episode, EpisodeSampler
from sk_meta.tasks.task import Task, take_rows
from sk_meta.tasks.unlabeled import labeled_rows
from sk_meta.tasks.validation import call_task, check_tasks


class SupportScaledTask(Task):
    """A task whose features go through transformers fitted on its support set."""

    def __init__(self, task, transformers):
        vars(self).update(vars(task.replace_X(task.X)))
        self.transformers = transformers

    def replace_X(self, X):
        """The same task with other features, row for row."""
        return SupportScaledTask(super().replace_X(X), self.transformers)

    def preview(self):
        """Features after fitting on all rows: their number and names are known so."""
        rows = np.arange(len(self))
        return self.fit_support(rows, rows[:1])[1]

    def fit_support(self, support, query):
        """Features of support and query rows, after fitting on the support rows."""
        X_support, X_query = take_rows(self.X, support), take_rows(self.X, query)
        y = self.y[support]
        if self.labeled is not None and not self.labeled[support].all():
            y = None
        for transformer in self.transformers:
            fitted = clone(transformer).fit(X_support, y)
            X_support, X_query = (
                _dense(fitted.transform(X)) for X in (X_support, X_query)
            )
        return X_support, X_query


class TaskTransformer(TransformerMixin, BaseEstimator, auto_wrap_output_keys=None):
    """Apply an sklearn transformer to the features of every task.

    Parameters
    ----------
    transformer : transformer
        Any, a ColumnTransformer on DataFrames included.
    scope : {"pooled", "support"}, default="pooled"
        "pooled": fitted once, on the rows of all training tasks together.
        "support": fitted afresh on each support set, after it is drawn.

    Attributes
    ----------
    transformer_ : transformer
        Fitted, for the pooled scope; else an unfitted copy.

    Examples
    --------
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sk_meta import Task, TaskTransformer
    >>> tasks = [Task([[0.0], [2.0]], [0, 1]), Task([[4.0], [6.0]], [1, 0])]
    >>> TaskTransformer(StandardScaler(with_std=False)).fit_transform(tasks)[0].X
    array([[-3.],
           [-1.]])
    """

    _parameter_constraints: ClassVar[dict] = {
        "transformer": [HasMethods(["fit", "transform"])],
        "scope": [StrOptions({"pooled", "support"})],
    }

    def __init__(self, transformer, scope="pooled"):
        self.transformer = transformer
        self.scope = scope

    def fit(self, tasks, y=None):
        """Fit the transformer on the rows of all tasks, where its scope is pooled.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
        y : None
            Ignored.

        Returns
        -------
        self
        """
        self._validate_params()
        tasks = check_tasks(tasks)
        transformer = clone(self.transformer)
        if self.scope == "pooled":
            X, labels = _pool(tasks)
            transformer.fit(X, labels)
        self.transformer_ = transformer
        return self

    def transform(self, tasks):
        """Tasks with transformed features.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler

        Returns
        -------
        list of Task, or EpisodeSampler
            Never a DataFrame: `set_output` goes to the inner transformer.
        """
        check_is_fitted(self, "transformer_")
        tasks = check_tasks(tasks)
        if self.scope == "support":
            return [_with_support_scope(task, self.transformer_) for task in tasks]
        if isinstance(tasks, EpisodeSampler):
            return tasks.replace_table(_dense(self.transformer_.transform(tasks.X)))
        tables = {}
        return [self._transform_task(task, tables) for task in tasks]

    def _transform_task(self, task, tables):
        if isinstance(task, SupportScaledTask):
            raise ValueError(
                "A TaskTransformer of scope 'pooled' cannot follow one of scope "
                "'support'. Put the pooled one first."
            )
        if not isinstance(task, Episode):
            return task.replace_X(_dense(self.transformer_.transform(_features(task))))
        if id(task.table) not in tables:  # episodes share it: once is enough
            tables[id(task.table)] = _dense(self.transformer_.transform(task.table))
        return task.replace_table(tables[id(task.table)])

    @available_if(lambda self: hasattr(self.transformer, "set_output"))
    def set_output(self, *, transform=None):
        """Set the output container of the inner transformer.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"} or None, default=None

        Returns
        -------
        self
        """
        self.transformer.set_output(transform=transform)
        if hasattr(self, "transformer_"):
            self.transformer_.set_output(transform=transform)
        return self

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        return tags


def _features(task):
    """X of a task; named, where the file that it comes from has column names."""
    columns = getattr(getattr(task, "table", None), "columns", None)
    X = task.X
    if columns is None or hasattr(X, "columns"):
        return X
    import pandas as pd

    return pd.DataFrame(X, columns=columns)


def _dense(X):
    """An array where an encoder puts out a sparse matrix."""
    return X.toarray() if hasattr(X, "toarray") else X


def _with_support_scope(task, transformer):
    earlier = getattr(task, "transformers", ())
    return SupportScaledTask(task, (*earlier, transformer))


def _pool(tasks):
    """All rows of tasks, each table once, and their y where it means one thing."""
    tables = {}
    for task in [tasks] if isinstance(tasks, EpisodeSampler) else tasks:
        X = task.table if isinstance(task, Episode) else _features(task)
        tables.setdefault(id(X), (X, task))
    parts = [X for X, _ in tables.values()]
    widths = {np.shape(X)[1:] for X in parts}
    if len(widths) > 1:
        first = np.shape(parts[0])[1:]
        odd = next(i for i, X in enumerate(parts) if np.shape(X)[1:] != first)
        raise ValueError(
            f"{call_task(tasks[odd], odd)} has rows of shape {np.shape(parts[odd])[1:]}"
            f", the first task of shape {first}. All tasks need the same features."
        )
    if hasattr(parts[0], "iloc"):
        import pandas as pd

        X = pd.concat(parts)
    else:
        X = parts[0] if len(parts) == 1 else np.concatenate(parts)
    meant_once = all(
        not isinstance(task, EpisodeSampler | Episode)
        and task.labels == "shared"
        and task.labeled is None
        for _, task in tables.values()
    )
    y = np.concatenate([task.y for _, task in tables.values()]) if meant_once else None
    return X, y


def parts_of(model):
    """A meta-learner behind a search or a Pipeline: (transformers, meta-learner)."""
    model = getattr(model, "best_estimator_", model)
    steps = []
    while isinstance(model, Pipeline):
        check_is_fitted(model)
        steps += [
            (name, step)
            for name, step in model.steps[:-1]
            if step is not None and step != "passthrough"
        ]
        model = model.steps[-1][1]
    for name, step in steps:
        if not isinstance(step, TaskTransformer):
            raise TypeError(
                f"Step {name!r} is a {type(step).__name__}, which works on rows. Wrap "
                f"it: TaskTransformer({type(step).__name__}())."
            )
    if not hasattr(model, "adapt_state"):
        raise TypeError(
            f"Expected a meta-learner, a Pipeline that ends in one, or a fitted search "
            f"over these; got {type(model).__name__}."
        )
    return steps, model


def adapt(model, X, y, *, sample_weight=None, metadata=None):
    """Adapt a meta-learner, a Pipeline ending in one, or a search, to a support set.

    Parameters
    ----------
    model : meta-learner, Pipeline, or search such as GridSearchCV
        Fitted on tasks. Left as it is.
    X : array of shape (n_support, ...) or DataFrame
    y : array of shape (n_support,) or (n_support, n_targets)
    sample_weight : array of shape (n_support,), default=None
    metadata : array or dict of numbers, default=None
        The task's own description, for methods that use it.

    Returns
    -------
    FewShotClassifier, FewShotRegressor, or Pipeline ending in one
        Fitted. Transformers fitted on pooled tasks are frozen in it; those of scope
        "support" are fitted on `X`.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sk_meta import PrototypicalClassifier, TaskNet, TaskTransformer, adapt
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(10, n_classes=2, random_state=0)
    >>> meta = PrototypicalClassifier(TaskNet(max_epochs=1), random_state=0)
    >>> pipe = make_pipeline(TaskTransformer(StandardScaler()), meta).fit(old)
    >>> adapt(pipe, new.X_support, new.y_support).predict(new.X_query).shape[0] > 0
    True
    """
    steps, meta = parts_of(model)
    known = y if labeled_rows(y, meta.unlabeled).all() else None
    fitted, X = adapt_steps(steps, X, known)
    few_shot = meta.adapt(X, y, sample_weight=sample_weight, metadata=metadata)
    return Pipeline([*fitted, ("few_shot", few_shot)]) if fitted else few_shot


def adapt_steps(steps, X, y):
    """Transformers of rows for one task, and its support rows after them.

    Parameters
    ----------
    steps : list of (name, TaskTransformer)
        Fitted.
    X : array or DataFrame
        Support rows.
    y : array or None
        Their labels, where all are known.

    Returns
    -------
    fitted : list of (name, transformer)
    X : array
    """
    fitted = []
    for name, step in steps:
        if step.scope == "pooled":
            transformer = FrozenEstimator(step.transformer_)
        else:
            transformer = clone(step.transformer_).fit(X, y)
        X = _dense(transformer.transform(X))
        fitted.append((name, transformer))
    return fitted, X


def transform_tasks(steps, tasks):
    """Tasks after the TaskTransformers of a Pipeline, as `parts_of` gives them."""
    tasks = check_tasks(tasks)
    for _, step in steps:
        tasks = step.transform(tasks)
    return tasks
