"""Score on the query rows against gradient steps and support rows."""

from copy import deepcopy

import numpy as np

from sk_meta.inspection._shared import (
    BLUE,
    GRAY,
    axes_for,
    count,
    fitted_parts,
    learner_with_steps,
    part_of,
    score_label,
    score_tasks,
)
from sk_meta.metrics import mean_interval
from sk_meta.tasks.support import evaluation_generator
from sk_meta.tasks.validation import call_task, check_tasks, label_array


class AdaptationDisplay:
    """Query score while a meta-learner adapts: against inner steps and shots.

    A line for each number of shots, the mean over tasks with its 95 % interval. For a
    method without gradient steps there is one line, against the shots. It is made by
    `from_estimator`.

    Parameters
    ----------
    n_shots : array of int of shape (n_shots,)
        Support rows: of each class, in classification.
    n_steps : array of int of shape (n_steps,) or None
        Gradient steps on the support set; None for a method without them.
    scores : array of shape (n_shots, n_steps, n_tasks)
        Of the query rows; ``n_steps`` is 1 for a method without steps.
    score_name : str, default="Score"
    steps_of_learner : int, default=None
        Steps that the learner itself takes, which are marked.
    per_class : bool, default=True
        Whether shots are rows of each class.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    lines_ : list of matplotlib Line2D
        One for each number of shots, or the one against them.
    bands_ : list of matplotlib PolyCollection
        Their 95 % intervals; empty for a single task.

    Examples
    --------
    >>> from sk_meta import MAMLRegressor, TaskNet
    >>> from sk_meta.inspection import AdaptationDisplay
    >>> from sk_meta.tasks import make_sinusoids
    >>> tasks = make_sinusoids(20, random_state=0)
    >>> meta = MAMLRegressor(TaskNet(max_epochs=1), random_state=0).fit(tasks[:10])
    >>> display = AdaptationDisplay.from_estimator(
    ...     meta, tasks[10:], n_steps=[0, 1, 2], n_shots=[2, 5]
    ... )
    >>> display.scores.shape
    (2, 3, 10)
    """

    def __init__(
        self,
        n_shots,
        n_steps,
        scores,
        *,
        score_name="Score",
        steps_of_learner=None,
        per_class=True,
    ):
        self.n_shots = n_shots
        self.n_steps = n_steps
        self.scores = scores
        self.score_name = score_name
        self.steps_of_learner = steps_of_learner
        self.per_class = per_class

    @classmethod
    def from_estimator(
        cls,
        model,
        tasks,
        *,
        n_steps=range(11),
        n_shots=(1, 5, 10),
        scoring=None,
        ax=None,
    ):
        """Adapt to new tasks with so many steps and shots, score and draw.

        The query rows of a task are the same for all steps and shots, and its support
        sets are the first rows (of each class) of one draw, so that the curves compare.
        A task with a support set of its own keeps its query set, and the draw is from
        its support set. The draw depends on the learner's `evaluation_seed` and the
        task alone. Rows without a known label are left out.

        Parameters
        ----------
        model : meta-learner, Pipeline ending in one, or search over these
            Fitted; left as it is.
        tasks : list of Task, list of (X, y), or EpisodeSampler
            New ones. With shared labels, classes are those that the task has.
        n_steps : sequence of int, default=range(11)
            Gradient steps, 0 or more; not used by methods without them.
        n_shots : sequence of int, default=(1, 5, 10)
            Support rows (of each class), 1 or more.
        scoring : str or callable, default=None
            A metric of sklearn, such as "balanced_accuracy", or a scorer; None means
            accuracy or R^2.
        ax : matplotlib Axes, default=None
            See `plot`.

        Returns
        -------
        AdaptationDisplay

        Raises
        ------
        ValueError
            If a task has too few rows, or steps or shots are no whole numbers.
        """
        steps, meta = fitted_parts(model, cls)
        shots = _whole(n_shots, "n_shots", 1)
        numbers = _whole(n_steps, "n_steps", 0)
        seed = getattr(meta, "evaluation_seed", 0)
        of_shots = _nested(
            check_tasks(tasks, meta.unlabeled), shots, meta._classification, seed
        )
        inner = learner_with_steps(meta)
        usual = None
        if inner is not None:
            meta = deepcopy(inner)
            usual = meta.learner_.n_adapt_steps
        found = []
        for cut in of_shots:
            found.append([])
            for number in numbers if inner is not None else [None]:
                if inner is not None:
                    meta.learner_.n_adapt_steps = number
                scores, metric = score_tasks(steps, meta, cut, scoring)
                found[-1].append(scores)
        display = cls(
            np.array(shots),
            None if inner is None else np.array(numbers),
            np.array(found),
            score_name=score_label(metric),
            steps_of_learner=usual,
            per_class=meta._classification,
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
        shots, scores = self._checked()
        ax = axes_for(ax)
        self.lines_, self.bands_ = [], []
        unit = "row{} per class" if self.per_class else "row{}"
        if self.n_steps is None:
            self._line(ax, shots, scores[:, 0], BLUE, None)
            ax.set_xlabel(f"Support set ({unit.format('s')})")
        else:
            for shot, of_shot, color in zip(
                shots, scores, _shades(len(shots)), strict=True
            ):
                label = f"{shot} {unit.format('' if shot == 1 else 's')}"
                self._line(ax, np.asarray(self.n_steps), of_shot, color, label)
            ax.set_xlabel("Gradient steps on the support set")
            self._mark_usual(ax)
            ax.legend(title="Support set", frameon=False)
        ax.xaxis.get_major_locator().set_params(integer=True)
        n_tasks = scores.shape[2]
        band = " and 95 % interval" if n_tasks > 1 else ""
        ax.set_ylabel(
            f"{self.score_name} on query rows\nmean{band} over {count(n_tasks, 'task')}"
        )
        ax.grid(alpha=0.25)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _checked(self):
        shots, scores = np.asarray(self.n_shots), np.asarray(self.scores, dtype=float)
        n_steps = 1 if self.n_steps is None else len(self.n_steps)
        if scores.ndim != 3 or scores.shape[:2] != (len(shots), n_steps):
            raise ValueError(
                f"scores has shape {scores.shape}; expected ({len(shots)}, {n_steps}, "
                "n_tasks): shots, steps, tasks."
            )
        return shots, scores

    def _line(self, ax, x, scores, color, label):
        mean, half = np.array([mean_interval(each) for each in scores]).T
        self.lines_ += ax.plot(x, mean, "o-", ms=4, color=color, label=label)
        if np.isfinite(half).any():
            band = ax.fill_between(
                x, mean - half, mean + half, color=color, alpha=0.15, lw=0
            )
            self.bands_.append(band)

    def _mark_usual(self, ax):
        usual = self.steps_of_learner
        if usual is not None and min(self.n_steps) <= usual <= max(self.n_steps):
            ax.axvline(usual, color=GRAY, lw=1, ls=":", label="steps the learner takes")


def _shades(n):
    """Colours from dark to light: more of the same thing."""
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0.85, 0.1, n) if n > 1 else [0.3])


def _whole(values, name, least):
    """A sorted list of different whole numbers."""
    array = np.asarray(list(values))
    if not array.size or array.dtype.kind not in "iu" or array.min() < least:
        raise ValueError(
            f"{name} must be whole numbers of at least {least}, got {array.tolist()}."
        )
    return np.unique(array).tolist()


def _nested(tasks, shots, per_class, seed):
    """For each number of shots the tasks with such a support set and one query set."""
    of_shots = [[] for _ in shots]
    for position in range(len(tasks)):
        task = tasks[position]
        what = call_task(task, position)
        labeled = task.labeled
        known = np.arange(len(task)) if labeled is None else np.flatnonzero(labeled)
        own = task.support is not None
        pool = known[task.support[known]] if own else known
        rng = evaluation_generator(task, seed)
        strata = _strata(task, rng.permutation(pool), per_class, what)
        _check_rows(strata, max(shots), own, what)
        most = np.concatenate([rows[: max(shots)] for _, rows in strata])
        query = known[~task.support[known]] if own else np.setdiff1d(known, most)
        if not len(query):
            raise ValueError(f"{what} has no labelled query row, so no score.")
        for found, n in zip(of_shots, shots, strict=True):
            support = np.concatenate([rows[:n] for _, rows in strata])
            found.append(part_of(task, support, query))
    return of_shots


def _strata(task, rows, per_class, what):
    """(class, its rows) of each class of the task, or all rows together."""
    if not per_class:
        return [(None, rows)]
    y = label_array(task.y[rows], f"y of {what}")
    return [(label, rows[y == label]) for label in np.unique(y).tolist()]


def _check_rows(strata, most, own, what):
    needed = most if own else most + 1
    for label, rows in strata:
        if len(rows) < needed:
            of_class = "" if label is None else f" of class {label!r}"
            found = count(len(rows), "support row" if own else "labelled row")
            why = "" if own else ", one of them for the query set"
            instead = ", or pass it without a support set of its own" if own else ""
            raise ValueError(
                f"{what} has {found}{of_class}; {most} shots need {needed}{why}. Lower "
                f"n_shots, or leave the task out{instead}."
            )
