"""Which features an adapted learner uses, over tasks."""

from inspect import signature
from numbers import Integral

import numpy as np
from sklearn.utils import check_random_state

from sk_meta.inspection._shared import (
    BLUE,
    GRAY,
    RED,
    as_names,
    as_numbers,
    axes_for,
    count,
    fitted_parts,
    in_a_sentence,
    score_label,
    score_tasks,
    settled,
)
from sk_meta.tasks.validation import call_task, feature_names


class FeatureImportanceDisplay:
    """What the query score of a task loses when a feature is shuffled, over tasks.

    A box for each feature shows the tasks; one task may be marked. It is made by
    `from_estimator` or `from_values`.

    :class:`sk_meta.TaskFeatureSelector` shuffles support and query rows alike, to find
    the features that a learner can do without; here the learner adapts to the support
    set as it is, and what is asked is which features its predictions then use.

    Parameters
    ----------
    importances : array of shape (n_features, n_tasks)
    names : list of str, default=None
        Of the features.
    task : int, default=None
        Position of the task to mark.
    task_name : str, default=None
        What it is called.
    score_name : str, default="Score"

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    boxes_ : dict of list of artists
        As from ``Axes.boxplot``; boxes from 25 to 75 %, whiskers from 5 to 95 %.
    order_ : array of int of shape (n_shown,)
        Features from top to bottom: by mean importance.
    marks_ : matplotlib PathCollection or None
        The values of the marked task.

    References
    ----------
    Breiman (2001), Random Forests, section 10: importance by permutation.

    Examples
    --------
    >>> from sk_meta.inspection import FeatureImportanceDisplay
    >>> display = FeatureImportanceDisplay.from_values(
    ...     [[0.0, 0.1, 0.0], [0.3, 0.2, 0.4]], ["age", "dose"]
    ... )
    >>> display.order_.tolist()
    [1, 0]
    """

    def __init__(
        self, importances, names=None, *, task=None, task_name=None, score_name="Score"
    ):
        self.importances = importances
        self.names = names
        self.task = task
        self.task_name = task_name
        self.score_name = score_name

    @classmethod
    def from_estimator(
        cls,
        model,
        tasks,
        *,
        task=None,
        n_repeats=5,
        scoring=None,
        random_state=None,
        max_features=20,
        ax=None,
    ):
        """Shuffle one feature after the other among the query rows, score, and draw.

        Columns are those of the tasks as they are given, before a Pipeline's
        transformers. Features that say the same stand in for one another: each alone
        may then seem useless.

        Parameters
        ----------
        model : meta-learner, Pipeline ending in one, or search over these
            Fitted; left as it is.
        tasks : list of Task, list of (X, y), or EpisodeSampler
            Best those that the learner was not trained on.
        task : int or str, default=None
            Position or name of a task whose values are marked.
        n_repeats : int, default=5
            Times that each feature is shuffled; their mean counts.
        scoring : str or callable, default=None
            A metric of sklearn, such as "balanced_accuracy", or a scorer; None means
            accuracy or R^2.
        random_state : int, RandomState instance or None, default=None
            Of the shuffling, which is the same for all features.
        max_features, ax
            See `plot`.

        Returns
        -------
        FeatureImportanceDisplay

        Raises
        ------
        ValueError
            If rows are no vectors of features, `n_repeats` is not a positive whole
            number, or there is no such task.
        """
        if not isinstance(n_repeats, Integral) or n_repeats < 1:
            raise ValueError(f"n_repeats must be 1 or more, got {n_repeats!r}.")
        steps, meta = fitted_parts(model, cls)
        tasks, _ = settled(steps, meta, tasks)
        n_features = _n_features(tasks)
        position = _position(task, tasks)
        rng = check_random_state(random_state)
        whole, metric = score_tasks(steps, meta, tasks, scoring)
        losses = np.zeros((n_features, len(tasks)))
        for _ in range(n_repeats):
            # The same order for all features: they are compared on equal terms.
            orders = [_order(one, rng) for one in tasks]
            for feature in range(n_features):
                shuffled = [
                    _shuffled(one, order, feature)
                    for one, order in zip(tasks, orders, strict=True)
                ]
                losses[feature] += (
                    whole - score_tasks(steps, meta, shuffled, scoring)[0]
                )
        names = feature_names(tasks[0].X)
        return cls.from_values(
            losses / n_repeats,
            [f"x{i}" for i in range(n_features)] if names is None else names,
            task=position,
            task_name=None if position is None else tasks[position].name,
            score_name=score_label(metric),
            max_features=max_features,
            ax=ax,
        )

    @classmethod
    def from_values(
        cls,
        importances,
        names=None,
        *,
        task=None,
        task_name=None,
        score_name="Score",
        max_features=20,
        ax=None,
    ):
        """Draw importances that are known.

        Parameters
        ----------
        importances, names, task, task_name, score_name
            See :class:`FeatureImportanceDisplay`.
        max_features, ax
            See `plot`.

        Returns
        -------
        FeatureImportanceDisplay
        """
        display = cls(
            importances, names, task=task, task_name=task_name, score_name=score_name
        )
        return display.plot(ax, max_features=max_features)

    def plot(self, ax=None, *, max_features=20):
        """Draw, on new or given Axes.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.
        max_features : int or None, default=20
            The most important ones are shown; None shows all.

        Returns
        -------
        self
        """
        values = as_numbers(self.importances, "importances", 2)
        n_features, n_tasks = values.shape
        names = self.names
        names = [f"x{i}" for i in range(n_features)] if names is None else names
        names = np.array(as_names(names, n_features, "features"))
        if self.task is not None and not 0 <= self.task < n_tasks:
            raise ValueError(f"task is {self.task}, but there are {n_tasks} tasks.")
        known = [row[np.isfinite(row)] for row in values]
        means = np.array([row.mean() if len(row) else -np.inf for row in known])
        self.order_ = np.argsort(-means, kind="stable")[:max_features]
        ax = axes_for(ax, (6.4, 1.4 + 0.27 * len(self.order_)))
        where = np.arange(len(self.order_))
        self._boxes(ax, where, [known[i] for i in self.order_])
        self._mark(ax, where, values)
        ax.axvline(0, color="black", lw=0.8)
        ax.set_yticks(where, names[self.order_])
        ax.invert_yaxis()
        all_shown = len(where) == n_features
        most = f"The {len(where)} most important of {n_features} features"
        ax.set_ylabel("Feature" if all_shown else most)
        ax.set_xlabel(
            f"Loss of {in_a_sentence(self.score_name)} when the feature is shuffled\n"
            f"among the query rows of a task ({count(n_tasks, 'task')})"
        )
        ax.grid(axis="x", alpha=0.25)
        ax.set_axisbelow(True)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _boxes(self, ax, where, rows):
        new = "orientation" in signature(ax.boxplot).parameters  # matplotlib 3.10
        sideways = {"orientation": "horizontal"} if new else {"vert": False}
        self.boxes_ = ax.boxplot(
            rows,
            positions=where,
            **sideways,
            widths=0.6,
            whis=(5, 95),
            patch_artist=True,
            boxprops={"facecolor": BLUE, "alpha": 0.45, "edgecolor": BLUE},
            medianprops={"color": "black"},
            whiskerprops={"color": BLUE},
            capprops={"color": BLUE},
            flierprops={"marker": "o", "ms": 3, "mfc": GRAY, "mec": "none"},
        )

    def _mark(self, ax, where, values):
        self.marks_ = None
        if self.task is None:
            return
        name = self.task if self.task_name is None else self.task_name
        self.marks_ = ax.scatter(
            values[self.order_, self.task],
            where,
            marker="D",
            s=28,
            color=RED,
            edgecolor="white",
            linewidth=0.5,
            zorder=4,
            label=f"task {name}",
        )
        handles = [self.boxes_["boxes"][0], self.marks_]
        labels = [f"all {count(values.shape[1], 'task')}", f"task {name}"]
        ax.legend(handles, labels, frameon=False, loc="lower right")


def _n_features(tasks):
    for position, task in enumerate(tasks):
        if task.X.ndim != 2:
            raise ValueError(
                f"{call_task(task, position)} has rows of shape {task.X.shape[1:]}; "
                "features are the columns of rows of shape (n_features,). Flatten "
                "them, or put features in their place."
            )
    return tasks[0].X.shape[1]


def _position(task, tasks):
    """Where a task stands that is given by position or name."""
    if task is None:
        return None
    if isinstance(task, Integral):
        if not -len(tasks) <= task < len(tasks):
            raise ValueError(f"There is no task {task}; there are {len(tasks)}.")
        return int(task) % len(tasks)
    names = [one.name for one in tasks]
    if names.count(str(task)) != 1:
        raise ValueError(
            f"{names.count(str(task))} tasks are named {task!r}. Pass the position of "
            "a task instead."
        )
    return names.index(str(task))


def _order(task, rng):
    """Rows of a task in another order, where only query rows change places."""
    order = np.arange(len(task))
    query = np.flatnonzero(~task.support)
    order[query] = rng.permutation(query)
    return order


def _shuffled(task, order, feature):
    """A task with the values of one feature in another order."""
    X = task.X.copy()
    if hasattr(X, "iloc"):
        X.isetitem(feature, X.iloc[order, feature].array)
    else:
        X[:, feature] = X[order, feature]
    return task.replace_X(X)
