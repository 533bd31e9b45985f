"""The contract of a method, in torch alone: adapt to one task, predict for one task."""

import math
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sk_meta.engine.each_task import each_task
from sk_meta.engine.layers import StackedNetwork, why_opaque
from sk_meta.networks import batch_norms, call

__all__ = ["EmbeddingLearner", "Gaussian", "Learner", "Query", "RowLoss", "Support"]


class Support(NamedTuple):
    """The support set of one task, as a learner sees it.

    Attributes
    ----------
    X : tensor of shape (n, ...)
    y : int tensor of shape (n,), or float tensor of shape (n, n_targets)
    weight : tensor of shape (n,), or None for equal weights
    n_classes : int
        Classes of this task; 0 in regression.
    metadata : tensor of shape (m,), or None
        The task's own description, where it is numeric.
    """

    X: Tensor
    y: Tensor
    weight: Tensor | None = None
    n_classes: int = 0
    metadata: Tensor | None = None


class Query(NamedTuple):
    """The query set of one task: `X`, `y` and `weight` as in `Support`."""

    X: Tensor
    y: Tensor
    weight: Tensor | None = None


class Gaussian(NamedTuple):
    """A normal distribution for each row and target: two (n, n_targets) tensors."""

    mean: Tensor
    variance: Tensor


class RowLoss(nn.Module):
    """Loss of each row: cross-entropy, squared error, or minus log likelihood.

    Cross-entropy for integer `y`, minus the log density for a `Gaussian`, else the
    squared error; targets are averaged.
    """

    def forward(self, scores, y):
        """(n, ...), (n, ...) -> (n,)."""
        if isinstance(scores, Gaussian):
            # torch's own gaussian_nll_loss branches on data, which vmap cannot.
            variance = scores.variance.clamp_min(1e-6)
            squared = (scores.mean - y) ** 2 / variance
            return 0.5 * (squared + (2 * math.pi * variance).log()).mean(-1)
        if y.is_floating_point():
            error = scores - y
            squared = error * error
            return squared.squeeze(-1) if y.shape[-1] == 1 else squared.mean(-1)
        return F.cross_entropy(scores, y, reduction="none")


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over rows, the last axis; 0 if all weights are 0."""
    if weight is None:
        return values.mean(-1)
    return (values * weight).sum(-1) / weight.sum(-1).clamp_min(1e-12)


class Learner(nn.Module):
    """A method: how to adapt to a support set, and how to predict from what came out.

    Its parameters are the meta-parameters. `adapt` and `predict` are pure functions of
    one task: no data-dependent Python branch, no ``.item()``, nothing in place, so that
    the same code runs for one task, for many under vmap, and in an export.

    Parameters
    ----------
    module : torch.nn.Module
        The network.

    Attributes
    ----------
    uses_weight : bool
        Whether a row of weight 0 changes nothing, so that tasks of different sizes may
        be filled up to one size.
    row_loss : callable
        (scores, y) -> loss of each row. Set by the net that trains the learner.
    way : {"layers", "vmap", "loop"}
        How many tasks are computed, see `sk_meta.engine`.
    why : str
        The reason for it.
    checked : bool
        Whether `together` was compared with `forward`.
    forced : bool
        Whether `way` was asked for, so that another one is an error.
    precision : torch.dtype or None
        Of the network in training; None for that of its parameters.
    phase : tuple or None
        For a method that computes different things at different epochs: which ones it
        computes now; set by `begin_epoch`. None where nothing changes.
    calibration : tensor of shape () or None
        What `calibrate` has set.
    """

    uses_weight = False

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.norms = batch_norms(module)
        self.row_loss = RowLoss()
        self.way, self.why = "vmap", ""
        self.checked = self.forced = False
        self.precision = None
        self.phase = None
        self.register_buffer("calibration", None, persistent=False)

    def begin_epoch(self, epoch: int):
        """Called in training before each epoch, with the number of finished ones.

        What is computed then depends on `epoch` through `phase` and buffers alone.
        """

    def adapt(self, support: Support):
        """Learn from the support set of one task.

        Returns
        -------
        State
            Tensors, in any nesting of tuples and dicts.
        """
        raise NotImplementedError

    def predict(self, state, X):
        """Scores of rows: logits (n, n_classes), means (n, n_targets), or a Gaussian.

        No row's scores depend on the other rows. They go through `calibrated` last.
        """
        raise NotImplementedError

    def calibrate(self, factor: float | None):
        """Set by how much too sure of itself the learner is; None for not at all."""
        self.calibration = None
        if factor is not None:
            tensors = chain(self.parameters(), self.buffers())
            device = next((tensor.device for tensor in tensors), None)
            self.calibration = torch.tensor(
                float(factor), dtype=torch.float64, device=device
            )

    def calibrated(self, scores):
        """Scores of rows with the calibration; in training, as they are.

        It multiplies standard deviations and divides logits; means stay the same, and
        so does the order of classes.
        """
        if self.calibration is None or self.training:
            return scores
        if isinstance(scores, Gaussian):
            variance = scores.variance * self.calibration**2
            return Gaussian(scores.mean, variance.to(scores.variance.dtype))
        # In float64 no two logits become one.
        return scores.double() / self.calibration

    def forward(self, support: Support, X):
        """Adapt and predict, in training: (scores, seen normalisation statistics)."""
        return self.predict(self.adapt(support), X), ()

    def loss(self, scores, query: Query, support: Support) -> Tensor:
        """Loss of one task, given its scores; by default the mean over query rows."""
        return weighted_mean(self.loss_of_rows(scores, query.y), query.weight)

    def loss_of_rows(self, scores, y):
        """Losses (n,) of the rows of one task; those of several targets averaged."""
        losses = self.row_loss(scores, y)
        return losses if losses.ndim == 1 else losses.flatten(1).mean(1)

    def why_apart(self) -> str | None:
        """Why tasks cannot be computed by `together`; None where they can."""
        return f"{type(self).__name__} has no other way"

    def together(self, support: Support, X):
        """What `forward` returns for each task, for stacked tasks in one call.

        A method that has a faster way for many tasks than vmap brings it here; it is
        checked against `forward` before it is used.

        Parameters
        ----------
        support : Support
            Tensors with a leading axis of length n_tasks.
        X : tensor of shape (n_tasks, n, ...)

        Returns
        -------
        scores : tensor of shape (n_tasks, n, ...), or a Gaussian of such
        seen : tuple of tuples of (mean, variance)
            Each of shape (n_tasks, channels).
        """
        raise NotImplementedError

    def row_losses(self, scores, y):
        """Losses (n_tasks, n) of the rows of stacked tasks."""
        flat = tree_map(lambda part: part.flatten(0, 1), scores)
        return self.loss_of_rows(flat, y.flatten(0, 1)).view(y.shape[:2])

    def call(self, X, parameters=None, source="batch", statistics=()):
        """The network as a pure function, see `networks.call`."""
        return call(
            self.module,
            X,
            parameters=parameters,
            norms=self.norms,
            source=source,
            statistics=statistics,
            precision=self.precision if self.training else None,
            fused=self.way == "loop",
        )

    def update_running(self, seen):
        """Take up the statistics that a meta-batch has shown, each (n_tasks, c)."""
        for layer, uses in zip(self.norms, seen, strict=True):
            for mean, variance in uses:
                layer.update_running(mean.detach(), variance.detach())


class EmbeddingLearner(Learner):
    """A method that embeds rows by a network common to all tasks, and fits a head.

    Batch normalisation uses the statistics of the task's rows in training, support and
    query sets together, and running averages afterwards.
    """

    def __init__(self, module):
        super().__init__(module)
        for layer in self.norms:
            layer.keep_running()

    def fit_head(self, Z, support: Support):
        """Head from embedded support rows (n, d); returns the state."""
        raise NotImplementedError

    def apply_head(self, state, Z):
        """Scores of embedded rows (n, d)."""
        raise NotImplementedError

    def features(self, X, Z):
        """What the head works on; by default the network's output Z (n, d)."""
        return Z

    def embed(self, X):
        """Embed rows, each for itself: (n, ...) -> (n, d)."""
        return self.features(X, self.call(X, source="running")[0])

    def adapt(self, support):
        """See `Learner.adapt`."""
        return self.fit_head(self.embed(support.X), support)

    def predict(self, state, X):
        """See `Learner.predict`."""
        return self.calibrated(self.apply_head(state, self.embed(X)))

    def why_apart(self):
        """See `Learner.why_apart`."""
        return why_opaque(self.module, adapted=False)

    def together(self, support, X):
        """All rows of all tasks in one call of the network; see `Learner.together`."""
        n = support.X.shape[1]
        both = torch.cat([support.X, X], 1)
        precision = self.precision if self.training else None
        with StackedNetwork(self.module, len(X), precision=precision) as network:
            Z = network(both, source="batch" if self.training else "running")
            seen = network.seen() if self.training else ()
        Z = self.features(both.flatten(0, 1), Z.flatten(0, 1))
        Z = Z.view(*both.shape[:2], *Z.shape[1:])

        def head(tensors):
            Z, *known = tensors
            of_task = support._replace(X=None, **dict(zip(names, known, strict=True)))
            return self.apply_head(self.fit_head(Z[:n], of_task), Z[n:])

        names = ("y", "weight", "metadata")
        known = [getattr(support, name) for name in names]
        return each_task(head, (Z, *known), self), seen

    def forward(self, support, X):
        """See `Learner.forward`."""
        n = support.X.shape[0]
        both = torch.cat([support.X, X])
        Z, seen = self.call(both, source="record")
        Z = self.features(both, Z)
        return self.apply_head(self.fit_head(Z[:n], support), Z[n:]), seen
