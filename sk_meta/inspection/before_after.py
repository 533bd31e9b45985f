"""What a learner says of a task with one feature, before and after its support set."""

from copy import deepcopy

import numpy as np
from sklearn.pipeline import Pipeline

from sk_meta.few_shot import FewShotRegressor
from sk_meta.inspection._shared import (
    BLACK,
    BLUE,
    GRAY,
    ORANGE,
    axes_for,
    fitted_parts,
    learner_with_steps,
    settled,
)
from sk_meta.pipeline import adapt
from sk_meta.task_by_task import TaskByTask

_QUANTILE = 1.645  # of the standard normal: a nominal 90 % interval
_NO_WEIGHT = 1e-30  # rows that count for nothing; a weight of 0 everywhere is refused


class BeforeAfterDisplay:
    """Predictions of a regression task with one feature, before and after adapting.

    With bands of 1.645 standard deviations, a nominal 90 % interval, where the method
    gives them. It is made by `from_estimator` or `from_predictions`.

    Parameters
    ----------
    x : array of shape (n_points,)
        In ascending order.
    after : array of shape (n_points,)
        Predictions of the adapted learner.
    before : array of shape (n_points,), default=None
        Those before any support row.
    after_std, before_std : array of shape (n_points,), default=None
        Their standard deviations.
    baseline : array of shape (n_points,), default=None
        Predictions without a learned prior.
    support, query : pair (x, y) of arrays, default=None
        Rows to show as points.
    feature_name : str, default="x"
    target_name : str, default="y"

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    lines_ : dict of str to matplotlib Line2D
        "after", and those of "before" and "baseline" that there are.
    bands_ : dict of str to matplotlib PolyCollection
        "after" and "before", likewise.

    Examples
    --------
    >>> from sk_meta import ALPaCARegressor, TaskNet
    >>> from sk_meta.inspection import BeforeAfterDisplay
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> meta = ALPaCARegressor(TaskNet(max_epochs=1), random_state=0).fit(old)
    >>> sorted(BeforeAfterDisplay.from_estimator(meta, new).bands_)
    ['after', 'before']
    """

    def __init__(
        self,
        x,
        after,
        *,
        before=None,
        after_std=None,
        before_std=None,
        baseline=None,
        support=None,
        query=None,
        feature_name="x",
        target_name="y",
    ):
        self.x = x
        self.after = after
        self.before = before
        self.after_std = after_std
        self.before_std = before_std
        self.baseline = baseline
        self.support = support
        self.query = query
        self.feature_name = feature_name
        self.target_name = target_name

    @classmethod
    def from_estimator(cls, model, task, *, n_points=200, ax=None):
        """Adapt to a task and draw what is predicted, over the range of its rows.

        Before means: at 0 gradient steps, for a learner that takes such steps; else
        after a support set whose rows have a weight of practically 0, if the learner
        then says the same whatever their targets. For ALPaCA and deep kernels that is
        the prior exactly; a neural process has never been trained on an empty support
        set. For other methods there is no "before", and ridge regression on the support
        set, without a learned prior, is shown instead.

        Parameters
        ----------
        model : meta-regressor, Pipeline ending in one, or search over these
            Fitted; left as it is.
        task : Task or pair (X, y)
            With one feature and one target. Without a support set of its own it gets
            the one that the learner would draw.
        n_points : int, default=200
        ax : matplotlib Axes, default=None
            See `plot`.

        Returns
        -------
        BeforeAfterDisplay

        Raises
        ------
        ValueError
            If the task has more than one feature or target.
        TypeError
            If the meta-learner is a classifier.
        """
        steps, meta = fitted_parts(model, cls)
        if meta._classification:
            raise TypeError(
                f"{cls.__name__} shows regression; {type(meta).__name__} is a "
                "classifier. Pass a meta-regressor."
            )
        (task,), _ = settled(steps, meta, [task])
        _check_one(task)
        X, y = np.asarray(task.X, dtype=float)[:, 0], np.asarray(task.y).ravel()
        x = np.linspace(X.min(), X.max(), n_points)
        found = _predictions(model, meta, task, _like(task.X, x))
        rows, known = task.support, np.ones(len(y), bool)
        known = known if task.labeled is None else task.labeled
        names = getattr(task.X, "columns", None)
        return cls.from_predictions(
            x,
            **found,
            support=(X[rows & known], y[rows & known]),
            query=(X[~rows & known], y[~rows & known]),
            feature_name="x" if names is None else str(names[0]),
            ax=ax,
        )

    @classmethod
    def from_predictions(
        cls,
        x,
        after,
        *,
        before=None,
        after_std=None,
        before_std=None,
        baseline=None,
        support=None,
        query=None,
        feature_name="x",
        target_name="y",
        ax=None,
    ):
        """Draw predictions that are known.

        Parameters
        ----------
        x, after, before, after_std, before_std, baseline, support, query
            See :class:`BeforeAfterDisplay`.
        feature_name : str, default="x"
        target_name : str, default="y"
        ax : matplotlib Axes, default=None
            See `plot`.

        Returns
        -------
        BeforeAfterDisplay
        """
        display = cls(
            x,
            after,
            before=before,
            after_std=after_std,
            before_std=before_std,
            baseline=baseline,
            support=support,
            query=query,
            feature_name=feature_name,
            target_name=target_name,
        )
        return display.plot(ax)

    def plot(self, ax=None):
        """Draw, on new or given Axes.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.

        Returns
        -------
        self
        """
        curves = self._curves()
        ax = axes_for(ax)
        self.lines_, self.bands_ = {}, {}
        for name, label, style in (
            ("baseline", "No learned prior (ridge)", {"color": ORANGE, "ls": ":"}),
            ("before", "Before adapting", {"color": GRAY, "ls": "--"}),
            ("after", "After adapting", {"color": BLUE}),
        ):
            if name in curves:
                self._curve(ax, name, label, style, curves)
        for pair, label, style in (
            (self.query, "Query rows", {"ms": 4, "color": GRAY, "mfc": "white"}),
            (self.support, "Support rows", {"ms": 7, "color": BLACK}),
        ):
            if pair is not None and len(pair[0]):
                ax.plot(*pair, "o", label=label, zorder=4, **style)
        ax.set(xlabel=self.feature_name, ylabel=self.target_name)
        ax.grid(alpha=0.25)
        ax.legend(frameon=False, fontsize="small")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _curve(self, ax, name, label, style, curves):
        x, middle, std = curves["x"], curves[name], curves.get(f"{name}_std")
        if std is not None:
            label += " ± 1.645 std (90 %)"
            self.bands_[name] = ax.fill_between(
                x,
                middle - _QUANTILE * std,
                middle + _QUANTILE * std,
                color=style["color"],
                alpha=0.15 if name == "before" else 0.25,
                lw=0,
            )
        (self.lines_[name],) = ax.plot(x, middle, label=label, **style)

    def _curves(self):
        """The arrays that there are, of one length."""
        names = ("x", "after", "before", "after_std", "before_std", "baseline")
        curves = {
            name: np.asarray(getattr(self, name), dtype=float)
            for name in names
            if getattr(self, name) is not None
        }
        for name, values in curves.items():
            if values.ndim != 1 or values.shape != curves["x"].shape:
                raise ValueError(
                    f"{name} has shape {values.shape}, x has {curves['x'].shape}. "
                    "Pass one number for each point of x."
                )
        return curves


def _check_one(task):
    shape = np.shape(task.X)[1:]
    if int(np.prod(shape)) != 1:
        raise ValueError(
            f"{task.label()} has rows of shape {shape}; only a single feature can be "
            "the axis of x. For more features see FeatureImportanceDisplay."
        )
    if task.y.ndim > 1 and task.y.shape[1] != 1:
        raise ValueError(
            f"{task.label()} has {task.y.shape[1]} targets. Fit a learner for one."
        )


def _like(X, x):
    """Points as rows of the kind of X."""
    if hasattr(X, "iloc"):
        return type(X)(x[:, None], columns=X.columns)
    return x.reshape(-1, *np.shape(X)[1:])


def _predictions(model, meta, task, grid):
    """What to draw, by name."""
    weight = None if task.sample_weight is None else task.sample_weight[task.support]
    X, y = task.X_support, task.y_support
    few_shot = adapt(model, X, y, sample_weight=weight, metadata=task.metadata)
    if isinstance(few_shot, Pipeline):  # what is behind it works on its features
        X, grid = few_shot[:-1].transform(X), few_shot[:-1].transform(grid)
        few_shot = few_shot[-1]
    after, after_std = meta.apply_state(few_shot.state_, grid, 0)
    found = {"after": after, "after_std": after_std}
    before = _before(meta, X, y, weight, task.metadata, grid)
    if before is not None:
        found.update(before=before[0], before_std=before[1])
    else:
        baseline = FewShotRegressor().fit(X, y, sample_weight=weight)
        found["baseline"] = baseline.predict(grid)
    return {
        name: None if values is None else np.ravel(values)
        for name, values in found.items()
    }


def _before(meta, X, y, weight, metadata, grid):
    """(mean, std or None) before the support rows; None where there is no such thing.

    Rows of no weight must say nothing: with other targets the answer is the same, next
    to what other targets change when rows count.
    """

    def answer(learner, targets, weight):
        state, _ = learner.adapt_state(X, targets, weight, metadata)
        return learner.apply_state(state, grid, 0)

    if isinstance(meta, TaskByTask):
        return None  # heads and fusions have nothing to say of no row
    inner = learner_with_steps(meta)
    if inner is not None:
        start = deepcopy(inner)
        start.learner_.n_adapt_steps = 0
        return answer(start, y, weight)
    others = y + np.std(y) + 1
    nothing = np.full(len(y), _NO_WEIGHT)
    mean, std = answer(meta, y, nothing)
    left = np.abs(mean - answer(meta, others, nothing)[0]).max()
    full = np.abs(answer(meta, y, None)[0] - answer(meta, others, None)[0]).max()
    return (mean, std) if left <= 1e-3 * full else None
