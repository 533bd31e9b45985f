"""Weights rounded to few bits: as a file stores them, and while they are trained."""

from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LEVELS = 255  # of an activation, above its lowest


class Rounding(NamedTuple):
    """How the weights of a layer are stored.

    Attributes
    ----------
    bits : int
        16 stands for half precision, without a scale; below, for signed integers.
    block_size : int or None
        Most weights of an output that share a scale; None for all.
    """

    bits: int
    block_size: int | None = None


class Stored(NamedTuple):
    """Integers and what they are multiples of.

    Attributes
    ----------
    numbers : tensor of shape (n_outputs, n_blocks, block)
        The weights of an output one after the other, then zeros up to whole blocks.
    scale : tensor of shape (n_outputs, n_blocks, 1)
    """

    numbers: Tensor
    scale: Tensor


def stored(weight: Tensor, rounding: Rounding, scale: Tensor | None = None) -> Stored:
    """Round a weight to multiples of scales, symmetric about 0.

    Parameters
    ----------
    weight : tensor of shape (n_outputs, ...)
    rounding : Rounding
        Of fewer than 16 bits.
    scale : tensor of shape (n_outputs, n_blocks, 1), default=None
        Smallest scales to use.
    """
    flat = weight.flatten(1)
    n = flat.shape[1]
    n_blocks = -(-n // min(rounding.block_size or n, n))
    block = -(-n // n_blocks)
    blocks = nn.functional.pad(flat, (0, n_blocks * block - n))
    blocks = blocks.view(len(flat), n_blocks, block)
    largest = 2 ** (rounding.bits - 1) - 1
    found = blocks.abs().amax(2, keepdim=True) / largest
    if scale is not None:
        found = found.maximum(scale)
    found = torch.where(found > 0, found, 1.0)
    return Stored((blocks / found).round().clamp(-largest, largest), found)


def rounded(weight: Tensor, rounding: Rounding) -> Tensor:
    """A weight as it comes out of a file; rounded again, it stays what it is."""
    if rounding.bits == 16:
        return weight.half().to(weight.dtype)
    numbers, scale = stored(weight, rounding)
    flat = (numbers * scale).flatten(1)
    return flat[:, : weight[0].numel()].reshape(weight.shape)


def linear_layers(learner) -> list:
    """The linear and convolution layers of a learner, whose weights are rounded."""
    return [layer for layer in learner.modules() if isinstance(layer, _LINEAR)]


@contextmanager
def rounded_weights(net, rounding: Rounding):
    """Inside, a net computes with rounded weights and trains the exact ones.

    Gradients at the rounded weights change the exact ones, the straight-through
    estimate; no layer knows of it, so that all ways of computing tasks work as before.

    Parameters
    ----------
    net : TaskNet
        Trained, with its optimizer.
    rounding : Rounding
    """
    weights = [layer.weight for layer in linear_layers(net.module_)]
    weights = list({id(weight): weight for weight in weights}.values())
    exact = [torch.empty_like(weight) for weight in weights]

    @torch.no_grad()
    def enter(*_):
        for kept, weight in zip(exact, weights, strict=True):
            kept.copy_(weight)
            weight.copy_(rounded(weight, rounding))

    @torch.no_grad()
    def leave(*_):
        for kept, weight in zip(exact, weights, strict=True):
            weight.copy_(kept)

    with ExitStack() as stack:
        before = net.optimizer_.register_step_pre_hook(leave)
        after = net.optimizer_.register_step_post_hook(enter)
        stack.callback(before.remove)
        stack.callback(after.remove)
        enter()
        stack.callback(leave)
        yield


def input_ranges(learner, rows) -> dict:
    """Lowest and highest input of each layer of an embedding learner's network.

    Parameters
    ----------
    learner : EmbeddingLearner
    rows : iterable of tensors of shape (n, ...)

    Returns
    -------
    dict of layer to (float, float)
        0 is in every range. Without layers that take rows of features themselves:
        these come in any units, and are not rounded.
    """
    found, given = {}, []

    def look(layer, inputs):
        (X,) = inputs
        itself = X.shape == given[-1].shape and torch.equal(X, given[-1])
        if itself and X.ndim == 2:
            return
        low, high = found.get(layer, (0.0, 0.0))
        found[layer] = min(low, X.min().item()), max(high, X.max().item())

    layers = [x for x in learner.module.modules() if isinstance(x, _LINEAR)]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        with torch.no_grad():
            for X in rows:
                given.append(X)
                learner.call(X, source="running")
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: ends for layer, ends in found.items() if ends[0] < ends[1]}


@contextmanager
def rounded_inputs(ranges: dict):
    """Inside, layers round their inputs to 8 bits; gradients pass where they are kept.

    Parameters
    ----------
    ranges : dict of layer to (low, high)
    """
    with ExitStack() as stack:
        for layer, ends in ranges.items():
            hook = layer.register_forward_pre_hook(_rounding_hook(*ends))
            stack.callback(hook.remove)
        yield


def _rounding_hook(low, high):
    scale = (high - low) / _LEVELS
    first = round(-low / scale)

    def round_input(layer, inputs):
        (X,) = inputs
        inside = X.clamp(-first * scale, (_LEVELS - first) * scale)
        multiples = (inside.detach() / scale).round() * scale
        return (inside + (multiples - inside.detach()),)

    return round_input
