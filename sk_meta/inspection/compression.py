"""Score of compressed learners against what they cost."""

from itertools import pairwise

import numpy as np

from sk_meta.inspection._shared import check_matplotlib
from sk_meta.metrics import evaluate, mean_interval
from sk_meta.onnx.report import size_report

_AXIS = {
    "kilobytes": "Size of the learner's ONNX file (KB)",
    "milliseconds": "Time to adapt and predict one row (ms)",
}
_FAR = 4.0  # largest over smallest cost from which the axis is logarithmic
_LINE, _OTHERS = "C0", "0.55"


class CompressionDisplay:
    """Score of learners against their size and time, and which of them are worth it.

    On the Pareto line lie those that no other beats in both. It is made by
    `from_estimators` or `from_values`.

    Parameters
    ----------
    names : list of str
    scores : array of shape (n_models,)
        Higher is better.
    kilobytes : array of shape (n_models,) or None
    milliseconds : array of shape (n_models,) or None
        One of the two may be None, and has no panel then.
    intervals : array of shape (n_models,), default=None
        Half-widths of error bars of the scores.
    score_name : str, default="score"
        Label of the score's axis.

    Attributes
    ----------
    ax_ : array of matplotlib Axes
        One for each panel: size, then time.
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sk_meta.inspection import CompressionDisplay
    >>> display = CompressionDisplay.from_values(
    ...     ["dense", "half", "quarter"],
    ...     [0.93, 0.92, 0.85],
    ...     [120, 44, 19],
    ...     [0.5, 0.3, 0.2],
    ... )
    >>> [ax.get_xlabel() for ax in display.ax_]
    ["Size of the learner's ONNX file (KB)", 'Time to adapt and predict one row (ms)']
    """

    def __init__(
        self,
        names,
        scores,
        kilobytes,
        milliseconds,
        *,
        intervals=None,
        score_name="score",
    ):
        self.names = list(names)
        self.scores = _column(scores, "scores", len(self.names))
        self.kilobytes = _column(kilobytes, "kilobytes", len(self.names))
        self.milliseconds = _column(milliseconds, "milliseconds", len(self.names))
        self.intervals = _column(intervals, "intervals", len(self.names))
        self.score_name = score_name
        if not self.names or self.scores is None:
            raise ValueError(
                "There is nothing to show. Pass a name and a score at least."
            )
        if not self._costs():
            raise ValueError(
                "kilobytes and milliseconds are both None. Pass one of them."
            )
        for name, values in self._costs().items():
            if not (values > 0).all():
                raise ValueError(f"{name} must be above 0, got {values.min():g}.")

    @classmethod
    def from_values(
        cls,
        names,
        scores,
        kilobytes,
        milliseconds,
        *,
        intervals=None,
        score_name="score",
        ax=None,
    ):
        """Draw figures that are known.

        Parameters
        ----------
        names, scores, kilobytes, milliseconds, intervals, score_name
            See :class:`CompressionDisplay`.
        ax : sequence of matplotlib Axes, default=None
            See `plot`.

        Returns
        -------
        CompressionDisplay
        """
        display = cls(
            names,
            scores,
            kilobytes,
            milliseconds,
            intervals=intervals,
            score_name=score_name,
        )
        return display.plot(ax)

    @classmethod
    def from_estimators(cls, models, tasks, *, scoring=None, task=None, ax=None):
        """Score fitted learners on new tasks, measure and draw them.

        Parameters
        ----------
        models : dict or list of (name, model)
            Fitted meta-learners, or Pipelines that end in one.
        tasks : list of Task, list of (X, y), or EpisodeSampler
            To score them on. Error bars are 95 % intervals of the mean over these.
        scoring : str or callable, default=None
            A metric of sklearn, such as "balanced_accuracy", or a scorer; None means
            accuracy or R^2.
        task : Task or pair (X, y), default=None
            To time them on, see :func:`sk_meta.size_report`.
        ax : sequence of matplotlib Axes, default=None
            See `plot`.

        Returns
        -------
        CompressionDisplay
        """
        models = dict(models)
        found = [evaluate(model, tasks, scoring) for model in models.values()]
        reports = [size_report(model, task) for model in models.values()]
        metric = found[0].metric.replace("_", " ") if found else "score"
        return cls.from_values(
            models,
            [one.mean for one in found],
            [report.kilobytes for report in reports],
            [report.adapt_ms for report in reports],
            intervals=[mean_interval(one.scores)[1] for one in found],
            score_name=f"{metric}, mean over {len(tasks)} new tasks",
            ax=ax,
        )

    def plot(self, ax=None):
        """Draw, on new or given Axes.

        Parameters
        ----------
        ax : sequence of matplotlib Axes, default=None
            One for each panel: size, then time. None makes a figure.

        Returns
        -------
        self
        """
        check_matplotlib()
        costs = self._costs()
        if ax is None:
            import matplotlib.pyplot as plt

            width = 5.2 * len(costs)
            _, ax = plt.subplots(
                1, len(costs), figsize=(width, 4.2), sharey=True, layout="constrained"
            )
        axes = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
        if len(axes) != len(costs):
            raise ValueError(
                f"ax must hold {len(costs)} Axes, one for each of {', '.join(costs)}; "
                f"got {len(axes)}."
            )
        for panel, (name, values) in zip(axes, costs.items(), strict=True):
            self._draw(panel, values, _AXIS[name])
        axes[0].set_ylabel(self.score_name)
        self.ax_, self.figure_ = axes, axes[0].figure
        # Where things are is known after this.
        self.figure_.canvas.figure.draw_without_rendering()
        for panel, values in zip(axes, costs.values(), strict=True):
            _name_points(panel, self.names, values, self.scores, self.intervals)
        return self

    def _costs(self):
        both = {"kilobytes": self.kilobytes, "milliseconds": self.milliseconds}
        return {name: values for name, values in both.items() if values is not None}

    def _draw(self, ax, costs, label):
        from matplotlib import ticker

        best = pareto(costs, self.scores)
        colors = [_LINE if i in best else _OTHERS for i in range(len(costs))]
        if self.intervals is not None:
            ax.errorbar(
                costs, self.scores, self.intervals, fmt="none", ecolor=colors, alpha=0.4
            )
        ax.plot(
            costs[best], self.scores[best], color=_LINE, lw=1.5, label="Pareto line"
        )
        ax.scatter(costs, self.scores, c=colors, s=36, zorder=3)
        if costs.max() > _FAR * costs.min():
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
            ax.xaxis.set_minor_formatter(ticker.NullFormatter())
        else:
            ax.xaxis.set_major_locator(ticker.MaxNLocator(6))
        ax.margins(x=0.12, y=0.12)
        ax.set_xlabel(label)
        ax.grid(alpha=0.25)
        x, y = (
            ax.transAxes.inverted()
            .transform(ax.transData.transform(np.c_[costs, self.scores]))
            .T
        )
        free = not ((x > 0.5) & (y < 0.2)).any()
        ax.legend(loc="lower right" if free else "best", frameon=False)


def pareto(costs, scores):
    """Positions of those that none beats, by increasing cost.

    Parameters
    ----------
    costs, scores : array of shape (n,)

    Returns
    -------
    list of int

    Examples
    --------
    >>> import numpy as np
    >>> from sk_meta.inspection import pareto
    >>> pareto(np.array([3.0, 1.0, 2.0]), np.array([0.9, 0.8, 0.7]))
    [1, 0]
    """
    best, found = -np.inf, []
    for i in np.lexsort([-scores, costs]):
        if scores[i] > best:
            found.append(int(i))
            best = scores[i]
    return found


def _column(values, name, n):
    """Values as an array of numbers, one for each name."""
    if values is None:
        return None
    values = np.asarray(values, dtype=float)
    if values.shape != (n,):
        raise ValueError(f"{name} has shape {values.shape}; there are {n} names.")
    if not np.isfinite(values).all() and name != "intervals":
        raise ValueError(f"{name} contains NaN or infinity. Leave such models out.")
    return values


def _name_points(ax, names, costs, scores, intervals):
    """Write names beside points where they cover as little as possible."""
    points = ax.transData.transform(np.c_[costs, scores])
    scale, best = ax.figure.dpi / 72, pareto(costs, scores)
    solid = [(*(point - 5 * scale), *(point + 5 * scale)) for point in points]
    solid.append(_box(ax.get_legend()))
    thin = _pieces(points[best])
    if intervals is not None:
        half = np.nan_to_num(intervals)
        low, high = (
            ax.transData.transform(np.c_[costs, scores + sign * half])
            for sign in (-1, 1)
        )
        thin += [(*(a - scale), *(b + scale)) for a, b in zip(low, high, strict=True)]
    for i in np.argsort(-scores, kind="stable"):
        color = _LINE if i in best else "0.35"
        label = ax.annotate(
            names[i],
            (costs[i], scores[i]),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize="small",
            color=color,
            annotation_clip=False,
        )
        label.set_in_layout(False)  # the Axes stay where they are
        box = np.array(_box(label))
        size = box[2:] - box[:2]
        corner = min(
            _spots(points[i], size, scale),
            key=lambda spot: _cost(spot, size, solid, thin, _box(ax), points[i]),
        )
        label.set_position((corner - points[i]) / scale)
        end = np.clip(points[i], corner, corner + size)
        if np.linalg.norm(end - points[i]) > 10 * scale:
            leader = ax.annotate(
                "",
                (costs[i], scores[i]),
                xytext=(end - points[i]) / scale,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "lw": 0.6, "color": color, "shrinkA": 0},
            )
            leader.set_in_layout(False)
        solid.append((*(corner - 3 * scale), *(corner + size + 3 * scale)))


def _spots(point, size, scale):
    """Lower left corners for a label, around its point."""
    for distance in (6, 10, 16, 24, 34):
        gap = distance * scale
        for across in (1, -1, 0, 0.5, -0.5):
            for up in (0, 1, -1):
                if across or up:
                    shift = np.array([across, up]) * (gap + size / 2)
                    yield point + shift - size / 2


def _cost(corner, size, solid, thin, frame, point):
    """How much a label there would cover, stick out, and be away from its point."""
    box = (*corner, *(corner + size))
    covered = sum(_overlap(box, other) for other in solid)
    crossed = sum(_overlap(box, other) for other in thin)
    outside = size.prod() - _overlap(box, frame)
    nearest = np.clip(point, corner, corner + size)
    away = np.linalg.norm(nearest - point)
    return 10 * covered + 10 * outside + 2 * crossed + away


def _overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _pieces(points, n=40, half=2.0):
    """Small boxes along a line."""
    pieces = []
    for start, end in pairwise(points):
        for x, y in np.linspace(start, end, n):
            pieces.append((x - half, y - half, x + half, y + half))
    return pieces


def _box(artist):
    box = artist.get_window_extent()
    return box.x0, box.y0, box.x1, box.y1
