"""Score on new tasks against the number of training tasks."""

import numpy as np
from sklearn.model_selection import LearningCurveDisplay

from sk_meta.inspection._shared import axes_for, score_label
from sk_meta.metrics import task_scorer

_LEGEND = {"Train": "Training tasks", "Test": "New tasks"}


class TaskLearningCurveDisplay(LearningCurveDisplay):
    """Score on new tasks against the number of training tasks.

    sklearn's own display, for which a row is a task here: would more tasks help? The
    band is one standard deviation over the folds. Both curves are scores of query rows;
    the support sets of training tasks are drawn as those of new ones.

    Parameters
    ----------
    train_sizes : array of shape (n_sizes,)
        Numbers of training tasks.
    train_scores : array of shape (n_sizes, n_folds)
        On the tasks of training.
    test_scores : array of shape (n_sizes, n_folds)
        On tasks left out.
    score_name : str, default=None
        Label of the score's axis.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    errorbar_, lines_, fill_between_ : list of artists or None
        As in sklearn.

    Examples
    --------
    >>> from sk_meta import PrototypicalClassifier, TaskNet
    >>> from sk_meta.inspection import TaskLearningCurveDisplay
    >>> from sk_meta.tasks import make_blob_tasks
    >>> tasks = make_blob_tasks(12, n_classes=2, random_state=0)
    >>> meta = PrototypicalClassifier(TaskNet(max_epochs=1), random_state=0)
    >>> display = TaskLearningCurveDisplay.from_estimator(
    ...     meta, tasks, train_sizes=[2, 8], cv=3
    ... )
    >>> display.test_scores.shape
    (2, 3)
    """

    @classmethod
    def from_estimator(
        cls,
        estimator,
        tasks,
        *,
        train_sizes=(0.2, 0.4, 0.6, 0.8, 1.0),
        cv=None,
        scoring=None,
        n_jobs=None,
        shuffle=False,
        random_state=None,
        error_score=np.nan,
        ax=None,
        score_type="both",
        std_display_style="fill_between",
    ):
        """Fit clones on more and more tasks, score them on others, and draw.

        Parameters
        ----------
        estimator : meta-learner, Pipeline ending in one, or search over these
            Cloned; it need not be fitted.
        tasks : list of Task, list of (X, y), or EpisodeSampler
            Split by `cv` into tasks of training and new ones.
        train_sizes : array of shape (n_sizes,), default=(0.2, 0.4, 0.6, 0.8, 1.0)
            Numbers of tasks, or shares of those that a fold trains on.
        cv : int, splitter or iterable, default=None
            None means 5 folds.
        scoring : str or callable, default=None
            A metric of sklearn, such as "balanced_accuracy", or a scorer of rows; None
            means accuracy or R^2.
        n_jobs : int, default=None
        shuffle : bool, default=False
            Whether tasks are shuffled before the first of them are taken.
        random_state : int, RandomState instance or None, default=None
            Of that shuffling.
        error_score : "raise" or float, default=nan
        ax, score_type, std_display_style
            See `plot`.

        Returns
        -------
        TaskLearningCurveDisplay

        Notes
        -----
        For its other options use :func:`sklearn.model_selection.learning_curve`, with
        tasks as X and ``y=None``, and make the display from what it returns.
        """
        known = None if scoring is None else score_label(str(scoring))
        return super().from_estimator(
            estimator,
            tasks,
            None,
            train_sizes=train_sizes,
            cv=cv,
            scoring=None if scoring is None else task_scorer(scoring),
            n_jobs=n_jobs,
            shuffle=shuffle,
            random_state=random_state,
            error_score=error_score,
            ax=ax,
            score_name=known or _default_name(estimator),
            score_type=score_type,
            std_display_style=std_display_style,
        )

    def plot(
        self,
        ax=None,
        *,
        negate_score=False,
        score_name=None,
        score_type="both",
        std_display_style="fill_between",
        line_kw=None,
        fill_between_kw=None,
        errorbar_kw=None,
    ):
        """Draw, on new or given Axes.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.
        negate_score : bool, default=False
        score_name : str, default=None
        score_type : {"test", "train", "both"}, default="both"
            "test" shows new tasks only.
        std_display_style : {"errorbar", "fill_between"} or None, default="fill_between"
        line_kw, fill_between_kw, errorbar_kw : dict, default=None

        Returns
        -------
        self
        """
        ax = axes_for(ax)
        super().plot(
            ax,
            negate_score=negate_score,
            score_name=score_name,
            score_type=score_type,
            std_display_style=std_display_style,
            line_kw={"marker": "o", **(line_kw or {})},
            fill_between_kw={"alpha": 0.2, "lw": 0, **(fill_between_kw or {})},
            errorbar_kw=errorbar_kw,
        )
        handles, labels = ax.get_legend_handles_labels()
        ax.legend(handles, [_LEGEND.get(label, label) for label in labels])
        ax.set_xlabel("Number of training tasks")
        ax.grid(alpha=0.25)
        return self


def _default_name(estimator):
    """What the `score` of an unfitted meta-learner, Pipeline or search is called."""
    while True:
        if hasattr(estimator, "steps"):
            estimator = estimator.steps[-1][1]
        elif hasattr(estimator, "estimator"):
            estimator = estimator.estimator
        else:
            break
    names = {True: "Accuracy", False: "R²"}
    return names.get(getattr(estimator, "_classification", None), "Score")
