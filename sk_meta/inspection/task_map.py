"""Tasks as points of a plane: near where adaptation makes the same of them."""

import numpy as np
from sklearn.utils import check_random_state

from sk_meta.inspection._shared import (
    COLORS,
    as_names,
    axes_for,
    fitted_parts,
    score_label,
    settled,
)
from sk_meta.inspection._task_vectors import draw_probes, in_a_plane, vectors_of
from sk_meta.metrics import score_prediction, scorer_of

_MARKERS = "osD^vP*X"
_OUTLIERS = 5  # percent of values beyond each end of the colour scale


class TaskMapDisplay:
    """Map of tasks: each is a point, near those that the learner adapts to alike.

    What is embedded in the plane is one vector for each task, see `from_estimator`.

    Parameters
    ----------
    points : array of shape (n_tasks, 2)
    names : list of str, default=None
        Of the tasks.
    color : array of shape (n_tasks,), default=None
        Numbers, for a colour scale, or strings, for a legend.
    color_name : str, default=None
        What they are.
    axis_names : pair of str, default=("Axis 1", "Axis 2")

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    points_ : list of matplotlib PathCollection
        One, or one for each value of a `color` of strings.
    colorbar_ : matplotlib Colorbar or None
        Beside the Axes, of which it takes some room.

    Examples
    --------
    >>> from sk_meta import ALPaCARegressor, TaskNet
    >>> from sk_meta.inspection import TaskMapDisplay
    >>> from sk_meta.tasks import make_sinusoids
    >>> tasks = make_sinusoids(20, random_state=0)
    >>> meta = ALPaCARegressor(TaskNet(max_epochs=1), random_state=0).fit(tasks[:10])
    >>> amplitudes = [task.metadata[0] for task in tasks[10:]]
    >>> display = TaskMapDisplay.from_estimator(meta, tasks[10:], color=amplitudes)
    >>> display.points.shape
    (10, 2)
    """

    def __init__(
        self,
        points,
        names=None,
        *,
        color=None,
        color_name=None,
        axis_names=("Axis 1", "Axis 2"),
    ):
        self.points = points
        self.names = names
        self.color = color
        self.color_name = color_name
        self.axis_names = axis_names

    @classmethod
    def from_estimator(
        cls,
        model,
        tasks,
        *,
        vectors="auto",
        embedding=None,
        n_probes=100,
        color="score",
        color_name=None,
        scoring=None,
        random_state=0,
        annotate=False,
        ax=None,
    ):
        """Adapt to each task, embed what came out, and draw.

        Parameters
        ----------
        model : meta-learner, Pipeline ending in one, or search over these
            Fitted; left as it is.
        tasks : list of Task, list of (X, y), or EpisodeSampler
            Three or more.
        vectors : {"auto", "predictions", "states"}, default="auto"
            What stands for a task. "predictions": those of the adapted learner, means
            or class probabilities, for the same probe rows in all tasks; works for
            every method, and two tasks are near where the same would be predicted.
            "states": the tensors that adaptation leaves behind, side by side; they must
            be of one size in all tasks, and for local labels they depend on the order
            of a task's classes. "auto" takes predictions, except for local labels,
            whose columns mean something else in each task.
        embedding : transformer, default=None
            From vectors to a plane, by `fit_transform`; None means PCA(2).
        n_probes : int, default=100
            Probe rows, drawn from the rows of all tasks together.
        color : "score", None, or array of shape (n_tasks,), default="score"
            "score" is that of the task's query rows; an array may hold numbers, such as
            metadata, or strings.
        color_name : str, default=None
            What the numbers or strings are.
        scoring : str or callable, default=None
            For ``color="score"``: a metric of sklearn; None means accuracy or R^2.
        random_state : int, RandomState instance or None, default=0
            Of the draw of the probe rows.
        annotate, ax
            See `plot`.

        Returns
        -------
        TaskMapDisplay

        Raises
        ------
        ValueError
            If there are fewer than three tasks, states are of different sizes, or
            predictions are asked for with local labels.
        TypeError
            If states are asked for and are no tensors.
        """
        steps, meta = fitted_parts(model, cls)
        vectors = _kind(vectors, meta)
        tasks, found = settled(steps, meta, tasks)
        if len(tasks) < 3:
            raise ValueError(f"A map needs three tasks at least, got {len(tasks)}.")
        by_score = isinstance(color, str) and color == "score"
        if by_score:
            scorer, metric = scorer_of(scoring, meta)
            color = [score_prediction(one, scorer, metric) for one in found]
            color_name = color_name or f"{score_label(metric)} on query rows"
        elif color is not None and len(color) != len(tasks):
            raise ValueError(
                f"color has {len(color)} values for {len(tasks)} tasks. Pass one each."
            )
        probes = draw_probes(tasks, n_probes, check_random_state(random_state))
        table = vectors_of(model, meta, tasks, vectors, probes)
        points, axis_names = in_a_plane(table, embedding)
        names = [str(i) if t.name is None else t.name for i, t in enumerate(tasks)]
        display = cls(
            points, names, color=color, color_name=color_name, axis_names=axis_names
        )
        return display.plot(ax, annotate=annotate)

    def plot(self, ax=None, *, annotate=False, cmap="viridis"):
        """Draw, on new or given Axes.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.
        annotate : bool, default=False
            Whether names stand beside the points.
        cmap : str or matplotlib Colormap, default="viridis"
            Of numbers.

        Returns
        -------
        self
        """
        points = np.asarray(self.points, dtype=float)
        if points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise ValueError(
                f"points must be of shape (n_tasks, 2), got {points.shape}."
            )
        color = None if self.color is None else np.asarray(self.color)
        if color is not None and color.shape != (len(points),):
            raise ValueError(f"color has shape {color.shape} for {len(points)} points.")
        ax = axes_for(ax)
        self.colorbar_ = None
        if color is None:
            self.points_ = [ax.scatter(*points.T, **_style(COLORS[0]))]
        elif color.dtype.kind in "fiub":
            self._by_number(ax, points, color.astype(float), cmap)
        else:
            self._by_name(ax, points, color.astype(str))
        if annotate and self.names is not None:
            names = as_names(self.names, len(points), "points")
            for name, point in zip(names, points, strict=True):
                ax.annotate(
                    name,
                    point,
                    xytext=(5, 4),
                    textcoords="offset points",
                    fontsize="small",
                )
        ax.set(xlabel=self.axis_names[0], ylabel=self.axis_names[1])
        ax.margins(0.1)
        ax.grid(alpha=0.25)
        ax.set_axisbelow(True)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _by_number(self, ax, points, color, cmap):
        from matplotlib import colormaps

        known = color[np.isfinite(color)]
        low, high, extend = _range(known)
        drawn = ax.scatter(
            *points.T,
            c=np.ma.masked_invalid(color),
            cmap=colormaps.get_cmap(cmap).with_extremes(bad="0.8"),
            vmin=low,
            vmax=high,
            plotnonfinite=True,
            **_style(),
        )
        self.points_ = [drawn]
        self.colorbar_ = ax.figure.colorbar(drawn, ax=ax, extend=extend)
        self.colorbar_.set_label(self.color_name or "")

    def _by_name(self, ax, points, color):
        self.points_ = []
        for i, name in enumerate(np.unique(color)):
            style = _style(COLORS[i % len(COLORS)])
            drawn = ax.scatter(
                *points[color == name].T,
                marker=_MARKERS[(i + i // len(COLORS)) % len(_MARKERS)],
                label=name,
                **style,
            )
            self.points_.append(drawn)
        ax.legend(title=self.color_name, frameon=False)


def _style(color=None):
    style = {"s": 42, "edgecolor": "white", "linewidth": 0.6}
    return style if color is None else {**style, "color": color}


def _range(values):
    """Ends of the colour scale; a few outliers do not stretch it."""
    if not len(values):
        return 0.0, 1.0, "neither"
    low, high = values.min(), values.max()
    inner_low, inner_high = np.percentile(values, [_OUTLIERS, 100 - _OUTLIERS])
    width = inner_high - inner_low
    cut_low, cut_high = inner_low - low > width, high - inner_high > width
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}
    return (
        inner_low if cut_low else low,
        inner_high if cut_high else high,
        extend[int(cut_low), int(cut_high)],
    )


def _kind(vectors, meta):
    if vectors not in ("auto", "predictions", "states"):
        raise ValueError(
            f"vectors must be 'auto', 'predictions' or 'states', got {vectors!r}."
        )
    local = meta._classification and meta.schema_.labels == "local"
    if vectors == "predictions" and local:
        raise ValueError(
            "With local labels a class of one task has nothing to do with those of "
            "another, so predictions cannot be compared. Use vectors='states'."
        )
    if vectors == "auto":
        return "states" if local else "predictions"
    return vectors
