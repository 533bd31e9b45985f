"""A function of one task, computed for many."""

import logging
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from sk_meta.networks import MLP, Conv4, LayerNorm, channels_last

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

# What a call takes besides its rows, in rows times parameters.
_CALL, _CALL_ON_GPU = 6e6, 1e8

logger = logging.getLogger("sk_meta")

# No double backward exists for the fused attention kernels.
_attention = SDPBackend.MATH


def preferred_way(learner, device) -> tuple[str, str]:
    """How the tasks of a meta-batch are computed, by rule, and why.

    Layer by layer where the method and the network allow it. Otherwise vmap, which
    saves the overhead of small operations; but recurrent layers have no second-order
    gradient under it, and on a CPU it makes convolutions slower.
    """
    layers = list(learner.modules())
    if any(isinstance(layer, nn.RNNBase) for layer in layers):
        return "loop", "recurrent layers have no second-order gradient under vmap"
    convolves = any(isinstance(layer, nn.modules.conv._ConvNd) for layer in layers)
    if convolves and torch.device(device).type == "cpu":
        return "loop", "on a CPU, convolutions are fastest one task at a time"
    reason = learner.why_apart()
    if reason is None:
        return "layers", "each layer takes the rows of all tasks in one call"
    return "vmap", f"not layer by layer: {reason}"


def fall_back(learner, way: str, reason: str):
    """Go on in another way, and say so.

    Raises
    ------
    ValueError
        If the user asked for the way that does not work.
    """
    if learner.forced:
        raise ValueError(
            f"way={learner.way!r} does not work for this network: {reason}. Leave "
            "way='auto'."
        )
    logger.info("%s -> %s: %s", learner.way, way, reason)
    learner.way, learner.why = way, reason


def can_pad(learner) -> float:
    """Rows of weight 0 that one call fewer is worth; 0 if they might change anything.

    They provably change nothing where the learner says that it honours weights, and the
    network treats each row for itself: it was seen to, in the rows of several tasks, or
    is made of layers that do, and nothing else decides how they are put together.
    """
    if learner.way == "loop" or not learner.uses_weight:
        return 0
    if learner.way == "layers" and learner.checked:
        by_row = not learner.norms
    else:
        layers = list(learner.module.modules())
        by_row = all(type(layer) in _ROW_WISE for layer in layers) and not any(
            layer._forward_hooks or layer._forward_pre_hooks for layer in layers
        )
    if not by_row:
        return 0
    parameters = list(learner.module.parameters())
    on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    size = sum(parameter.numel() for parameter in parameters)
    return (_CALL if on_cpu else _CALL_ON_GPU) / max(size, 1)


def each_task(function: Callable, tensors, learner):
    """Apply a function of one task to stacked tasks, and stack what it returns.

    Parameters
    ----------
    function : callable
        Takes tensors of one task in the nesting of `tensors`; returns tensors in any.
    tensors : nested tensors of shape (n_tasks, ...)
        None stands for an absent one.
    learner : Learner
        Whose `way` says "loop", or else vmap.

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
        if learner.way != "loop" and len(present[0]) > 1:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    return vmap(of_one, randomness="different")(*present)
            except RuntimeError as error:
                failure = error
        results = [
            of_one(*map(channels_last, task)) for task in zip(*present, strict=True)
        ]
    if failure is not None:
        first = str(failure).partition(". ")[0].partition("\n")[0]
        fall_back(learner, "loop", f"vmap failed: {first}")
    return tree_map(lambda *each: torch.stack(each), *results)
