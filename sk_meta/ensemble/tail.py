"""The worst tasks: which they are, training that helps them, and what came of it."""

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch

from sk_meta.engine.batching import group_losses
from sk_meta.engine.each_task import can_pad
from sk_meta.engine.meta_step import MetaStep
from sk_meta.metrics import without_prior
from sk_meta.predictions import scored_rows

_CHUNK = 32  # tasks that are evaluated at once
_SURE = 1.645  # standard errors: one-sided, 5 %
HUGE = float(np.finfo(np.float32).max)  # a loss that is no number
_N_RESAMPLES = 2000
_FROM_0 = 100  # a change of parameters relative to their norm that says nothing
_FEW = 5  # worst tasks held out, for a verdict that stays
_CONFIDENCE = 0.9  # of intervals: their upper ends are one-sided bounds of 95 %


def query_losses(learner, dataset):
    """Loss of each task, adapted to the support set of its evaluation draw.

    Parameters
    ----------
    learner : Learner
        Put into evaluation mode.
    dataset : TaskDataset

    Returns
    -------
    array of shape (n_tasks,)
        What is not finite is the largest float32.
    """
    learner.eval()
    found, pad = np.empty(len(dataset)), can_pad(learner)
    for start in range(0, len(dataset), _CHUNK):
        indices = range(start, min(start + _CHUNK, len(dataset)))
        for group in dataset.batch(indices, pad=pad):
            with torch.no_grad():
                losses, _ = group_losses(learner, group, training=False)
            found[start + group.positions] = losses.cpu().numpy()
    return np.nan_to_num(found, nan=HUGE, posinf=HUGE).clip(max=HUGE)


def usual_end(losses):
    """Tukey's upper fence of losses: of their logarithms, unless some are negative.

    Parameters
    ----------
    losses : array of shape (n_tasks,)

    Returns
    -------
    float
    """
    logarithm = (losses >= 0).all()
    values = np.log(np.maximum(losses, 1e-12)) if logarithm else losses
    low, high = np.quantile(values, [0.25, 0.75])
    fence = high + 1.5 * (high - low)
    return float(np.exp(fence) if logarithm else fence)


def worse_than_no_prior(found):
    """Whether a prediction is worse than that of the support set alone.

    By the mean difference of the losses of rows, if it is beyond chance.
    """
    difference = _row_losses(found) - _row_losses(without_prior(found))
    if len(difference) < 2:
        return False
    weight = scored_rows(found)[2]
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return bool(np.average(difference, weights=weight) > _SURE * error)


def _row_losses(found):
    """Log loss or squared error of the labelled query rows, (n,)."""
    y, rows, _ = scored_rows(found)
    values = found.values[rows]
    if found.classes is None:
        error = np.nan_to_num((values - y).reshape(len(y), -1), nan=HUGE)
        return (error**2).mean(axis=1)
    hit = found.classes == y[:, None]
    return -np.log(np.maximum(np.where(hit, values, 0).sum(axis=1), 1e-12))


def tail_start(losses, alpha):
    """Where the worst share `alpha` of losses begins: their (1 - alpha) quantile.

    Parameters
    ----------
    losses : array of shape (..., n_tasks)
    alpha : float
        Above 0, up to 1.

    Returns
    -------
    array of shape (...)
    """
    return np.quantile(losses, 1 - alpha, axis=-1, method="inverted_cdf")


def tail_mean(losses, alpha):
    """Mean of the worst share `alpha` of losses: their conditional value at risk.

    Where `alpha` is no whole number of tasks, the last one counts in part.

    Parameters
    ----------
    losses : array of shape (..., n_tasks)
    alpha : float
        Above 0, up to 1.

    Returns
    -------
    array of shape (...)

    References
    ----------
    Rockafellar, Uryasev (2000), Optimization of Conditional Value-at-Risk, theorem 1:
    the least value over t of t + mean(max(losses - t, 0)) / alpha, which the quantile
    reaches.

    Examples
    --------
    >>> from sk_meta.ensemble.tail import tail_mean
    >>> round(float(tail_mean([1.0, 5.0, 2.0, 4.0], 0.5)), 6)
    4.5
    """
    losses = np.asarray(losses, dtype=float)
    t = tail_start(losses, alpha)
    beyond = np.maximum(losses - t[..., None], 0).mean(axis=-1)
    return t + beyond / alpha


class TailStep(MetaStep):
    """A meta-step that lowers the mean loss of tasks and that of the worst ones.

    The loss L of a task counts (1 - tail) L + tail (t + max(L - t, 0) / alpha), where t
    is the (1 - alpha) quantile of the latest losses of all training tasks: that of a
    meta-batch alone would be biased, as there are few tasks in it.

    Parameters
    ----------
    alpha : float
        Share of tasks that are the worst ones.
    tail : float
        Weight of their mean, from 0 (the plain mean of all) to 1.
    losses : array of shape (n_tasks,)
        Of the training tasks before the first step, in training mode.
    max_memory : float, default=None
        See `MetaStep`.

    References
    ----------
    Rockafellar, Uryasev (2000), equation 4, with t by its exact minimiser.
    """

    def __init__(self, alpha, tail, losses, max_memory=None):
        super().__init__(max_memory)
        # All tasks are the worst ones where alpha is 1: that is the plain mean.
        self.alpha, self.tail = alpha, tail if alpha < 1 else 0.0
        self.latest = deque(losses, maxlen=len(losses))

    def objective(self, losses, t):
        """What the losses of tasks count for, (n_tasks,) -> (n_tasks,)."""
        worst = t + (losses - t).relu() / self.alpha
        return (1 - self.tail) * losses + self.tail * worst

    def __call__(self, learner, batch, reduce=None):
        """See `MetaStep`; the loss returned is the mean, as ever."""
        known = np.fromiter(self.latest, float)
        known = known[np.isfinite(known)]
        t = float(tail_start(known, self.alpha)) if len(known) else 0.0

        def weighed(losses):
            return (reduce or torch.mean)(self.objective(losses, t))

        _, losses, seen = super().__call__(learner, batch, weighed)
        self.latest.extend(losses.tolist())
        return losses.mean(), losses, seen


def compare(before, after, alpha, rng):
    """Losses of the same tasks before and after: mean and worst share, with intervals.

    The intervals are 90 % percentile intervals of a paired bootstrap over tasks: both
    losses of a task are drawn together.

    Parameters
    ----------
    before, after : array of shape (n_tasks,)
    alpha : float
    rng : numpy.random.Generator

    Returns
    -------
    dict of dict of tuple of (value, low, high)
        "mean" and "worst", each with "before", "after" and "change".
    """
    losses = np.stack([before, after])
    rows = rng.integers(len(before), size=(_N_RESAMPLES, len(before)))
    drawn = losses[:, rows]
    ends = (1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2
    found = {}
    for name, share in (("mean", 1.0), ("worst", alpha)):
        values, resampled = tail_mean(losses, share), tail_mean(drawn, share)
        sides = {
            "before": (values[0], resampled[0]),
            "after": (values[1], resampled[1]),
            "change": (values[1] - values[0], resampled[1] - resampled[0]),
        }
        found[name] = {
            side: (float(value), *np.quantile(draws, ends).tolist())
            for side, (value, draws) in sides.items()
        }
    return found


def relative_changes(before, after):
    """Norm of the change of each layer's parameters, relative to their norm.

    Parameters
    ----------
    before, after : Learner
        Of one architecture.

    Returns
    -------
    dict of float
    """
    squares = {}
    changed = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        old, new = parameter.detach(), changed[name].detach()
        layer = squares.setdefault(name.rpartition(".")[0] or name, [0.0, 0.0])
        layer[0] += float(((new - old) ** 2).sum())
        layer[1] += float((old**2).sum())
    return {k: math.sqrt(new / max(old, 1e-12)) for k, (new, old) in squares.items()}


@dataclass
class RepairReport:
    """What a RepairedLearner found, tried, and kept. It prints well.

    Losses are those of the query set, in units of the learner's training loss:
    cross-entropy, squared error of scaled targets, or minus log density.

    Attributes
    ----------
    n_tasks : int
        Tasks in which failing ones were looked for; the others were held out.
    positions : list of int
        Of the tasks on which the learner fell short, worst first, in the list given.
    names : list of str or None
    why : list of str
    before : list of float
        Losses of these tasks.
    held_out : list of int
        Positions of the tasks that decide.
    alpha : float
        Share of the worst tasks.
    repaired : bool
        Whether the learner was changed.
    reason : str
        Why, in a sentence.
    after : list of float or None
        Losses of the tasks found, after the epoch that was tried.
    comparison : dict or None
        As from `compare`, on the held-out tasks.
    scores : tuple of (before, after), or None
        Mean over the held-out tasks, where `scoring` asked for one.
    n_better : int or None
        Held-out tasks whose loss fell.
    epoch : int
        That was tried on the held-out tasks, of those trained; 0 if none was better
        than the start.
    layers : dict of float
        Norm of the change of each layer's parameters, relative to their norm.
    """

    n_tasks: int
    positions: list
    names: list
    why: list
    before: list
    held_out: list
    alpha: float
    repaired: bool = False
    reason: str = "None of the tasks falls short, so nothing was trained."
    after: list | None = None
    comparison: dict | None = None
    scores: tuple | None = None
    n_better: int | None = None
    epoch: int = 0
    layers: dict = field(default_factory=dict)

    def rows(self):
        """The tasks that were found, as a list of dict: for a table.

        Returns
        -------
        list of dict
            "task", "position", "before", "after" (None without training), "why".
        """
        after = self.after or [None] * len(self.before)
        columns = (self.names, self.positions, self.before, after, self.why)
        keys = ("task", "position", "before", "after", "why")
        return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]

    def __str__(self):
        lines = [f"{'Repaired' if self.repaired else 'Unchanged'}. {self.reason}"]
        rows = self.rows()
        if rows:
            lines.append(f"{len(rows)} of {self.n_tasks} tasks fall short; their loss:")
        lines += [f"  {_row(row)}" for row in rows[:5]]
        if len(rows) > 5:
            lines.append(f"  and {len(rows) - 5} more")
        if self.comparison is not None:
            lines += self._comparison_lines()
            changed = ", ".join(
                f"{name} {100 * change:.0f} %" if change < _FROM_0 else f"{name} from 0"
                for name, change in self.layers.items()
            )
            kept = "Change" if self.repaired else "Change that was not kept"
            lines.append(f"{kept} of the layers, after epoch {self.epoch}: {changed}")
        return "\n".join(lines)

    def _comparison_lines(self):
        lines = [
            f"Loss on {len(self.held_out)} held-out tasks, with 90 % intervals "
            f"({self.n_better} got better):"
        ]
        n_worst = self.alpha * len(self.held_out)
        worst = f"worst {100 * self.alpha:.3g} % ({n_worst:.3g} tasks)"
        for name, label in (("mean", "mean"), ("worst", worst)):
            parts = self.comparison[name]
            before, after, change = (
                "{:.4g} [{:.4g}, {:.4g}]".format(*parts[side])
                for side in ("before", "after", "change")
            )
            lines.append(f"  {label}: {before} -> {after}; change {change}")
        if self.scores is not None:
            lines.append("  score: {:.4g} -> {:.4g}".format(*self.scores))
        if n_worst < _FEW:
            lines.append(
                f"  {n_worst:.3g} tasks decide little: pass more, or a larger alpha."
            )
        return lines


def _row(row):
    name = "" if row["task"] is None else f" ({row['task']})"
    after = "" if row["after"] is None else f" -> {row['after']:.4g}"
    return f"task {row['position']}{name}: {row['before']:.4g}{after}, {row['why']}"
