"""How a function of one task is computed for the many tasks of a meta-batch."""

import logging
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from sk_meta.learner import Query, Support
from sk_meta.networks import MLP, Conv4, LayerNorm

_ROW_WISE = {
    MLP,
    Conv4,
    LayerNorm,
    nn.Sequential,
    nn.Linear,
    nn.Identity,
    nn.Flatten,
    nn.Conv1d,
    nn.Conv2d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.ReLU,
    nn.LeakyReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.Softplus,
}

logger = logging.getLogger("sk_meta")

# No double backward exists for the fused attention kernels.
_attention = SDPBackend.MATH


def preferred_way(learner, device) -> str:
    """Whether to vmap over tasks or to loop, by rule.

    vmap saves the overhead of small operations. Recurrent layers have no second-order
    gradient under it, and on a CPU it makes convolutions slower.
    """
    layers = list(learner.modules())
    if any(isinstance(layer, nn.RNNBase) for layer in layers):
        return "loop"
    convolves = any(isinstance(layer, nn.modules.conv._ConvNd) for layer in layers)
    on_cpu = torch.device(device).type == "cpu"
    return "loop" if convolves and on_cpu else "vmap"


def can_pad(learner) -> bool:
    """Whether rows of weight 0 provably change nothing, and save time.

    True where the learner says that it honours weights, the network is made of layers
    that treat each row for itself, and nothing else decides how they are put together.
    """
    if learner.way == "loop" or not learner.uses_weight:
        return False
    layers = list(learner.module.modules())
    return all(type(layer) in _ROW_WISE for layer in layers) and not any(
        layer._forward_hooks or layer._forward_pre_hooks for layer in layers
    )


def each_task(function: Callable, tensors, learner):
    """Apply a function of one task to stacked tasks, and stack what it returns.

    Parameters
    ----------
    function : callable
        Takes tensors of one task in the nesting of `tensors`; returns tensors in any.
    tensors : nested tensors of shape (n_tasks, ...)
        None stands for an absent one.
    learner : Learner
        Whose `way` says "vmap" or "loop".

    Returns
    -------
    nested tensors of shape (n_tasks, ...)

    Notes
    -----
    What vmap cannot do (data-dependent branches, layers without a batching rule) is
    looped over from then on, and logged.
    """
    leaves, tree = tree_flatten(tensors)
    present = [leaf for leaf in leaves if leaf is not None]

    def of_one(*given):
        given = iter(given)
        full = [None if leaf is None else next(given) for leaf in leaves]
        return function(tree_unflatten(full, tree))

    failure = None
    with sdpa_kernel(_attention):
        if learner.way == "vmap" and len(present[0]) > 1:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    return vmap(of_one, randomness="different")(*present)
            except RuntimeError as error:
                failure = error
        results = [
            of_one(*map(_channels_last, task)) for task in zip(*present, strict=True)
        ]
    if failure is not None:
        logger.info("vmap failed, looping over tasks from now on: %s", failure)
        learner.way = "loop"
    return tree_map(lambda *each: torch.stack(each), *results)


def _channels_last(tensor):
    """Images in the layout that convolutions on a CPU are fastest in."""
    if tensor.ndim == 4 and tensor.is_floating_point():
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


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
    losses, seen = [], []
    for group in batch:

        def of_one(tensors, n_classes=group.support.n_classes):
            (X, y, weight, metadata), query = tensors
            support = Support(X, y, weight, n_classes, metadata)
            if training:
                scores, seen = learner(support, query[0])
            else:
                scores, seen = learner.predict(learner.adapt(support), query[0]), ()
            return learner.loss(scores, Query(*query), support), seen

        X, y, weight, _, metadata = group.support
        tensors = ((X, y, weight, metadata), tuple(group.query))
        group_losses, group_seen = each_task(of_one, tensors, learner)
        losses.append(group_losses)
        seen.append(group_seen)
    if not seen[0]:
        return torch.cat(losses), ()
    leaves = [tree_flatten(group_seen) for group_seen in seen]
    joined = [
        torch.cat(parts) for parts in zip(*(flat for flat, _ in leaves), strict=True)
    ]
    joined = tree_unflatten(joined, leaves[0][1])
    return torch.cat(losses), joined
