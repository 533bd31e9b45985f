"""Weights that stay zero: through training, and through the inner loop."""

import os
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class _Masked:
    """A layer whose weight counts only where its mask is True.

    The mask is a part of what the layer computes. A weight of 0 under it thus has a
    gradient of exactly 0, and no step, of either loop, moves it.
    """

    def kept(self):
        """The weight where it counts, 0 elsewhere."""
        return self.weight * self.mask

    def set_mask(self, mask):
        """Set the mask, bool and of the weight's shape, and the other weights to 0."""
        self.register_buffer("mask", mask, persistent=False)
        with torch.no_grad():
            self.weight.masked_fill_(~mask, 0.0)


class LinearMasked(_Masked, nn.Linear):
    """A linear layer with a masked weight."""

    def forward(self, X):
        """(..., n_in) -> (..., n_out)."""
        return F.linear(X, self.kept(), self.bias)


class _ConvMasked(_Masked):
    def forward(self, X):
        """(n, channels, ...) -> (n, channels, ...)."""
        return self._conv_forward(X, self.kept(), self.bias)


class Conv1dMasked(_ConvMasked, nn.Conv1d):
    """A convolution with a masked weight."""


class Conv2dMasked(_ConvMasked, nn.Conv2d):
    """A convolution with a masked weight."""


class Conv3dMasked(_ConvMasked, nn.Conv3d):
    """A convolution with a masked weight."""


_MASKED = {
    nn.Linear: LinearMasked,
    nn.Conv1d: Conv1dMasked,
    nn.Conv2d: Conv2dMasked,
    nn.Conv3d: Conv3dMasked,
}


def maskable(network):
    """Layers of a network whose weights can be pruned one by one.

    Returns
    -------
    list of torch.nn.Module

    Raises
    ------
    ValueError
        If there are none.
    """
    kinds = {*_MASKED, *_MASKED.values()}
    found = [layer for layer in network.modules() if type(layer) in kinds]
    if not found:
        raise ValueError(
            f"{type(network).__name__} has no linear or convolution layer, whose "
            "weights could be pruned. Pass another network as net=TaskNet(module=...)."
        )
    return found


def mask_smallest(network, amount):
    """Prune the weights of a network that are smallest in magnitude, all layers alike.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place: the pruned weights become 0 and stay so. Those that are
        pruned already count among them.
    amount : float
        Share of the weights of linear and convolution layers, from 0 to below 1.
    """
    layers = maskable(network)
    sizes = [
        # What is pruned stays so, whatever weight has come to 0 by itself.
        layer.weight.detach().abs().masked_fill(~mask, -1.0).flatten()
        for layer, mask in zip(layers, map(_mask_of, layers), strict=True)
    ]
    sizes = torch.cat(sizes)
    kept = torch.ones_like(sizes, dtype=torch.bool)
    kept[sizes.argsort(stable=True)[: round(amount * len(sizes))]] = False
    of_layers = kept.split([layer.weight.numel() for layer in layers])
    for layer, mask in zip(layers, of_layers, strict=True):
        if not mask.all():
            # The class alone changes: parameters, hooks and names stay.
            layer.__class__ = _MASKED.get(type(layer), type(layer))
            layer.set_mask(mask.view_as(layer.weight) & _mask_of(layer))


def unmask(network):
    """Make masked layers plain ones again, their weights as they are.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place.
    """
    plain = {masked: kind for kind, masked in _MASKED.items()}
    for layer in network.modules():
        if type(layer) in plain:
            layer.__class__ = plain[type(layer)]
            del layer.mask


def _mask_of(layer):
    mask = getattr(layer, "mask", None)
    return torch.ones_like(layer.weight, dtype=torch.bool) if mask is None else mask


def sparse_size(learner):
    """Bytes of a file with a learner's parameters, in which zeros cost next to nothing.

    Parameters
    ----------
    learner : torch.nn.Module
        Such as the `learner_` of a fitted meta-learner.

    Returns
    -------
    int
        Read from a file, written for this: a compressed archive (``.npz``).

    Examples
    --------
    >>> import torch
    >>> from sk_meta.compression.masking import sparse_size
    >>> layer = torch.nn.Linear(50, 50)
    >>> dense = sparse_size(layer)
    >>> _ = torch.nn.init.zeros_(layer.weight)
    >>> sparse_size(layer) < dense / 5
    True
    """
    arrays = {name: value.cpu().numpy() for name, value in learner.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "learner.npz")
        np.savez_compressed(path, **arrays)
        return os.path.getsize(path)
