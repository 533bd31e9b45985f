"""The losses of a meta-batch, in the way that suits the network."""

from copy import deepcopy

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from sk_meta.engine.each_task import each_task, fall_back
from sk_meta.engine.layers import Opaque
from sk_meta.learner import Learner, Query, Support, weighted_mean

_TOLERANCE = 1e-6  # of gradients in float64, relative to the largest


def task_losses(learner, batch, training=True):
    """Loss of each task of a meta-batch.

    Parameters
    ----------
    learner : Learner
    batch : list of TaskGroup
    training : bool, default=True
        Whether statistics of the task's rows may be used, as in training.

    Returns
    -------
    losses : tensor of shape (n_tasks,)
        Group by group.
    seen : tuple of tuples of (mean, variance)
        What normalisation layers saw at each use, each of shape (n_tasks, channels).
    """
    found = [group_losses(learner, group, training) for group in batch]
    losses, seen = zip(*found, strict=True)
    losses = losses[0] if len(losses) == 1 else torch.cat(losses)
    return losses, joined(seen)


def joined(seen):
    """Statistics of several groups as those of one, (n_tasks, channels) each."""
    leaves, tree = tree_flatten(seen[0])
    if len(seen) == 1 or not leaves:
        return seen[0]
    columns = zip(*(tree_flatten(of_group)[0] for of_group in seen), strict=True)
    return tree_unflatten([torch.cat(parts) for parts in columns], tree)


def settle(learner, group):
    """Before the first meta-batch: see whether `together` is right, or leave it."""
    if learner.way == "layers" and not learner.checked:
        learner.checked = True
        reason = disagreement(learner, group)
        if reason is not None:
            fall_back(learner, "vmap", reason)


def group_losses(learner, group, training=True):
    """The same, for tasks of one size."""
    if training:
        settle(learner, group)
    if learner.way == "layers":
        try:
            scores, seen = learner.together(group.support, group.query.X)
        except Opaque as error:
            fall_back(learner, "vmap", str(error))
        else:
            return _losses_of_scores(learner, scores, group), seen

    def of_one(tensors):
        (X, y, weight, metadata), query = tensors
        support = Support(X, y, weight, group.support.n_classes, metadata)
        if training:
            scores, seen = learner(support, query[0])
        else:
            scores, seen = learner.predict(learner.adapt(support), query[0]), ()
        return learner.loss(scores, Query(*query), support), seen

    X, y, weight, _, metadata = group.support
    tensors = ((X, y, weight, metadata), tuple(group.query))
    return each_task(of_one, tensors, learner)


def _losses_of_scores(learner, scores, group):
    if type(learner).loss is Learner.loss:
        rows = learner.row_losses(scores, group.query.y)
        return weighted_mean(rows, group.query.weight)

    def of_one(tensors):
        scores, query, (X, y, weight, metadata) = tensors
        support = Support(X, y, weight, group.support.n_classes, metadata)
        return learner.loss(scores, Query(*query), support)

    X, y, weight, _, metadata = group.support
    return each_task(
        of_one, (scores, tuple(group.query), (X, y, weight, metadata)), learner
    )


def disagreement(learner, group) -> str | None:
    """Whether the tasks come out otherwise together than one by one.

    Losses and gradients are compared on two tasks, in float64.

    Parameters
    ----------
    learner : Learner
        Left as it is.
    group : TaskGroup

    Returns
    -------
    str or None
        What is wrong; None if nothing is.
    """
    group = _two_tasks(group)
    found = []
    try:
        with torch.random.fork_rng(devices=_devices(group)):
            for way in ("layers", "loop"):
                twin = deepcopy(learner).double().train()
                twin.way, twin.checked, twin.forced = way, True, False
                twin.precision = None
                for layer in twin.modules():
                    if isinstance(layer, nn.modules.dropout._DropoutNd):
                        layer.p = 0.0  # other masks are no disagreement
                with _NoBranches():
                    losses, seen = group_losses(twin, group)
                losses.sum().backward()
                if twin.way != way:
                    return twin.why
                gradients = [p.grad for p in twin.parameters() if p.grad is not None]
                found.append((losses.detach(), gradients, tree_flatten(seen)[0]))
    except Opaque as error:
        return str(error)
    except Exception as error:  # whatever a user's module may raise
        return f"{type(error).__name__} when checked in float64: {error}"
    for together, alone in zip(*found, strict=True):
        if not _close(together, alone):
            return "the network's rows or parameters affect one another out of sight"
    return None


class _NoBranches(TorchDispatchMode):
    """Finds where a number is read from a tensor: what follows may depend on it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise Opaque("the network reads numbers from its tensors, as a branch does")
        return function(*args, **(kwargs or {}))


def _close(together, alone):
    together, alone = tree_flatten(together)[0], tree_flatten(alone)[0]
    if len(together) != len(alone):
        return False
    if not alone:
        return True
    scale = max(float(values.abs().max()) for values in alone) + 1e-12
    return all(
        a.shape == b.shape and float((a - b).abs().max()) <= _TOLERANCE * scale
        for a, b in zip(together, alone, strict=True)
    )


def _two_tasks(group):
    """Two tasks that differ in their support rows, in float64."""

    def double(tensor):
        if not torch.is_tensor(tensor):
            return tensor
        tensor = tensor[:1].expand(2, *tensor.shape[1:]) if len(tensor) < 2 else tensor
        tensor = tensor[:2]
        return tensor.double() if tensor.is_floating_point() else tensor

    support, query = tree_map(double, group.support), tree_map(double, group.query)
    # Tasks may share their inputs: the second one's support rows become query rows.
    take = torch.arange(support.X.shape[1], device=query.X.device) % query.X.shape[1]
    X = torch.stack([support.X[0], query.X[1, take]])
    return group._replace(support=support._replace(X=X), query=query)


def _devices(group):
    device = group.query.X.device
    return [device] if device.type == "cuda" else []
