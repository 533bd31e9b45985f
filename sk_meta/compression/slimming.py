"""Neurons and channels that leave the network."""

from typing import NamedTuple

import torch
from torch import nn

from sk_meta.networks import MLP, BatchNorm, Conv4, InstanceNorm, LayerNorm

_CHAINS = {nn.Sequential, MLP, Conv4}
_CONVOLUTIONS = {nn.Conv1d, nn.Conv2d, nn.Conv3d}
_WEIGHTED = {nn.Linear, *_CONVOLUTIONS}
_NORMS = {BatchNorm, InstanceNorm, LayerNorm}
_CHANNEL_WISE = {
    nn.Identity,
    nn.Flatten,
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Softplus, nn.Softsign, nn.Tanh, nn.Sigmoid, nn.Hardswish),
    *(nn.Hardtanh, nn.Hardsigmoid, nn.LogSigmoid),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
}


class Hidden(NamedTuple):
    """A hidden layer of a chain, and what stands between it and the next one.

    Attributes
    ----------
    name : str
        In the network.
    layer : torch.nn.Linear or convolution
    norms : list of (name, normalisation)
    consumer : (name, torch.nn.Linear or convolution)
        The layer that takes its output.
    """

    name: str
    layer: nn.Module
    norms: list
    consumer: tuple[str, nn.Module]

    @property
    def width(self):
        """Number of neurons or channels."""
        return len(self.layer.weight)


def hidden_layers(network):
    """Hidden layers of a network that is a chain.

    Parameters
    ----------
    network : torch.nn.Module
        MLP, Conv4, or nn.Sequential of linear layers, convolutions, normalisations,
        activations, pooling and flattening. Its last linear or convolution layer is
        its output.

    Returns
    -------
    list of Hidden

    Raises
    ------
    ValueError
        If the network is none such, with the name of the layer that makes it so.
    """
    hidden, last, norms, owners = [], None, [], set()
    flat = False
    for name, layer in _chain(network, ""):
        reason = _why_not(layer)
        if reason is None and last is not None:
            reason = _why_not_after(last[1], layer, flat)
        if reason is None and id(layer) in owners:
            reason = "is used twice"
        if reason is not None:
            raise _refusal(name, layer, reason)
        flat = flat or type(layer) is nn.Flatten
        if type(layer) in _NORMS:
            norms.append((name, layer))
        if type(layer) in _WEIGHTED:
            owners.add(id(layer))
            if last is not None:
                hidden.append(Hidden(*last, norms, (name, layer)))
            last, norms, flat = (name, layer), [], False
    if not hidden:
        raise ValueError(
            f"{type(network).__name__} has no hidden layer whose neurons could leave; "
            "the outputs of its last layer are kept. Add a layer, or set "
            "how='magnitude'."
        )
    return hidden


def _chain(module, name):
    """Layers in the order in which they are applied, with their names."""
    if type(module) not in _CHAINS:
        yield name, module
        return
    for child_name, child in module._modules.items():  # repeated ones too
        yield from _chain(child, f"{name}.{child_name}".lstrip("."))


def _why_not(layer):
    """Why a layer can be in no chain."""
    kind = type(layer)
    if kind not in _WEIGHTED | _NORMS | _CHANNEL_WISE:
        return "is not known to treat channels one by one"
    if kind in _CONVOLUTIONS and layer.groups != 1:
        return "has groups of channels"
    if kind is LayerNorm and len(layer.normalized_shape) != 1:
        return "normalises over more than one axis"
    if kind is nn.Flatten and (layer.start_dim, layer.end_dim) != (1, -1):
        return "does not flatten a whole row"
    return None


def _why_not_after(last, layer, flat):
    """Why a layer cannot follow a linear or convolution layer."""
    convolved, kind = type(last) in _CONVOLUTIONS, type(layer)
    if convolved and not flat and kind in {nn.Linear, LayerNorm}:
        return "works on another axis than the channels before it"
    if kind not in _WEIGHTED | _NORMS:
        return None
    length = layer.weight.shape[1] if kind in _WEIGHTED else _length(layer)
    width = len(last.weight)
    if length == width or (convolved and flat and length % width == 0):
        return None
    return f"takes {length} numbers of a row, the layer before it puts out {width}"


def _refusal(name, layer, reason):
    where = f"layer {name!r}" if name else "the network"
    return ValueError(
        f"Cannot slim {where} ({type(layer).__name__}): it {reason}. Neurons and "
        "channels leave MLP, Conv4, and nn.Sequential of linear layers, convolutions, "
        "normalisations, activations, pooling and Flatten. For others set "
        "how='magnitude'."
    )


def importance(hidden):
    """How much each neuron or channel counts, (width,).

    The size of its scale in the batch normalisation behind it (Liu et al. 2017), else
    the Euclidean norm of its incoming weights (as in Li et al. 2017).
    """
    for _, norm in hidden.norms:
        if isinstance(norm, BatchNorm | InstanceNorm) and norm.weight is not None:
            return norm.weight.detach().view(hidden.width, -1).norm(dim=1)
    return hidden.layer.weight.detach().flatten(1).norm(dim=1)


def slim(learner, widths):
    """Let the least important neurons and channels leave, in place.

    Parameters
    ----------
    learner : Learner
        Its `module` is a chain. Learning rates that it has for each number of the
        network leave with their parameters.
    widths : dict of int
        By the names of hidden layers: how many of their neurons or channels stay.
    """
    for hidden in hidden_layers(learner.module):
        n = widths[hidden.name]
        if n < hidden.width:
            best = importance(hidden).argsort(descending=True, stable=True)[:n]
            _keep(learner, hidden, best.sort().values)


def _keep(learner, hidden, rows):
    """Keep the neurons or channels of a hidden layer at `rows`."""
    consumer_name, consumer = hidden.consumer
    cuts = [
        (hidden.name, hidden.layer, "weight", 0, rows),
        (hidden.name, hidden.layer, "bias", 0, rows),
    ]
    for name, norm in hidden.norms:
        index = _positions(rows, hidden.width, _length(norm))
        for which in ("weight", "bias", "running_mean", "running_var"):
            cuts.append((name, norm, which, 0, index))
        _set_length(norm, len(index))
    index = _positions(rows, hidden.width, consumer.weight.shape[1])
    cuts.append((consumer_name, consumer, "weight", 1, index))
    rates = _rates_of_numbers(learner)
    for name, layer, which, axis, index in cuts:
        old = getattr(layer, which, None)
        if old is not None:
            setattr(layer, which, _shorter(old, axis, index))
        values, position = rates.get(f"{name}.{which}", (None, None))
        if values is not None:
            values[position] = _shorter(values[position], axis, index)
    _set_lengths(hidden.layer, n_out=len(rows))
    _set_lengths(consumer, n_in=consumer.weight.shape[1])


def _positions(rows, width, length):
    """Positions of channels where each has become several numbers, by Flatten."""
    each = length // width
    return (rows[:, None] * each + torch.arange(each, device=rows.device)).flatten()


def _shorter(old, axis, index):
    """A shorter parameter or buffer."""
    values = old.detach().index_select(axis, index)
    if values.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last):
        values = values.contiguous(memory_format=torch.channels_last)
    is_parameter = isinstance(old, nn.Parameter)
    return nn.Parameter(values, old.requires_grad) if is_parameter else values


def _rates_of_numbers(learner):
    """Learned rates of each number of a parameter: name -> (list, position)."""
    rates = getattr(learner, "rates", None)
    if rates is None or rates.kind != "parameter":
        return {}
    return {
        name: (rates.values, position) for position, name in enumerate(rates.layers)
    }


def _length(norm):
    return norm.normalized_shape[0] if type(norm) is LayerNorm else norm.num_features


def _set_length(norm, length):
    if type(norm) is LayerNorm:
        norm.normalized_shape = (length,)
    else:
        norm.num_features = length


def _set_lengths(layer, n_in=None, n_out=None):
    """What the layer says about itself."""
    names = ("in_features", "out_features")
    if type(layer) in _CONVOLUTIONS:
        names = ("in_channels", "out_channels")
    for name, length in zip(names, (n_in, n_out), strict=True):
        if length is not None:
            setattr(layer, name, length)
