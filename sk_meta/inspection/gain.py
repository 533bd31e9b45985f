"""What the learned prior is worth on each task."""

import numpy as np

from sk_meta.inspection._shared import (
    BLACK,
    GREEN,
    RED,
    as_names,
    as_numbers,
    axes_for,
    count,
    fitted_parts,
    in_a_sentence,
    score_label,
)
from sk_meta.metrics import evaluate, mean_interval

_MOST_NAMES = 40


class GainDisplay:
    """Gain of each task over no learned prior, sorted, and how many tasks got worse.

    The gain is the score of the meta-learner minus that of class means or ridge
    regression on the same support set, see :class:`sk_meta.metrics.Evaluation`. It is
    made by `from_estimator` or `from_evaluation`.

    Parameters
    ----------
    gain : array of shape (n_tasks,)
        NaN, where a metric is not defined, is left out.
    names : list of str, default=None
        Of the tasks.
    score_name : str, default="Score"

    Attributes
    ----------
    n_worse_ : int
        Number of tasks with a gain below 0.
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    bars_ : matplotlib BarContainer
        Largest gain first.
    mean_line_ : matplotlib Line2D

    Examples
    --------
    >>> from sk_meta.inspection import GainDisplay
    >>> display = GainDisplay([0.2, -0.1, 0.3], ["a", "b", "c"]).plot()
    >>> [tick.get_text() for tick in display.ax_.get_xticklabels()], display.n_worse_
    (['c', 'a', 'b'], 1)
    """

    def __init__(self, gain, names=None, *, score_name="Score"):
        self.gain = gain
        self.names = names
        self.score_name = score_name

    @classmethod
    def from_estimator(cls, model, tasks, *, scoring=None, ax=None):
        """Evaluate on new tasks and draw.

        Parameters
        ----------
        model : meta-learner, Pipeline ending in one, or search over these
            Fitted.
        tasks : list of Task, list of (X, y), or EpisodeSampler
        scoring : str or callable, default=None
            A metric of sklearn, such as "balanced_accuracy", or a scorer; None means
            accuracy or R^2. R^2 has no lower bound: where ridge regression fails on a
            task, that bar hides the others, and "neg_mean_absolute_error" shows more.
        ax : matplotlib Axes, default=None
            See `plot`.

        Returns
        -------
        GainDisplay
        """
        fitted_parts(model, cls)
        return cls.from_evaluation(evaluate(model, tasks, scoring), ax=ax)

    @classmethod
    def from_evaluation(cls, evaluation, *, ax=None):
        """Draw what :func:`sk_meta.evaluate` has found.

        Parameters
        ----------
        evaluation : sk_meta.metrics.Evaluation
        ax : matplotlib Axes, default=None
            See `plot`.

        Returns
        -------
        GainDisplay
        """
        names = evaluation.names
        if names is None or any(name is None for name in names):
            names = None
        display = cls(evaluation.gain, names, score_name=score_label(evaluation.metric))
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
        gain = as_numbers(self.gain, "gain", 1)
        names = self.names
        if names is not None:
            names = np.array(as_names(names, len(gain), "tasks"))
        order = np.argsort(-gain, kind="stable")
        order = order[np.isfinite(gain[order])]
        if not len(order):
            raise ValueError("gain is NaN for all tasks. Use another metric.")
        gain = gain[order]
        ax = axes_for(ax)
        self.n_worse_ = int((gain < 0).sum())
        self._draw(ax, gain)
        ax.set_ylabel(f"Gain in {in_a_sentence(self.score_name)} over no learned prior")
        if names is None or len(gain) > _MOST_NAMES:
            ax.set_xlabel(f"{count(len(gain), 'task')}, from most to least gain")
            ax.set_xticks([])
        else:
            ax.set_xlabel("Task")
            long = max(map(len, names)) * len(names) > 60
            ax.set_xticks(
                np.arange(len(gain)), names[order], rotation=90 if long else 0
            )
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw(self, ax, gain):
        worse = gain < 0
        self.bars_ = ax.bar(
            np.arange(len(gain)),
            gain,
            color=[RED if bad else GREEN for bad in worse],
            width=0.8,
        )
        mean, half = mean_interval(gain)
        ax.axhline(0, color=BLACK, lw=0.8)
        self.mean_line_ = ax.axhline(mean, color=BLACK, lw=1.2, ls="--")
        # Bars of one container have one label: a bar of each kind stands for it.
        even = int((gain == 0).sum())
        better = len(gain) - even - self.n_worse_
        interval = "" if np.isnan(half) else f" ± {half:.3g} (95 % interval)"
        handles = [self.mean_line_]
        labels = [f"mean {mean:+.3g}{interval}"]
        for number, word, color in (
            (better, "better", GREEN),
            (self.n_worse_, "worse", RED),
        ):
            handles.append(_patch(color))
            labels.append(f"{count(number, 'task')} {word}")
        if even:
            labels[-1] += f", {even} the same"
        ax.legend(handles, labels, frameon=False)
        ax.grid(axis="y", alpha=0.25)
        ax.set_axisbelow(True)
        ax.margins(x=0.01 if len(gain) > 10 else 0.05)


def _patch(color):
    from matplotlib.patches import Patch

    return Patch(color=color)
