"""Networks, and normalisation whose second-order gradients are right under vmap."""

from contextlib import contextmanager
from copy import deepcopy
from threading import RLock

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from sk_meta.batch_norm import Normalize, compiling

__all__ = ["MLP", "Conv4", "exact_normalization"]


class MLP(nn.Module):
    """Fully connected network.

    Parameters
    ----------
    n_features : int
        Length of a row.
    n_outputs : int or None, default=None
        Length of the output; None ends with the last hidden layer.
    hidden : sequence of int, default=(64, 64)
        Widths of the hidden layers.
    activation : callable, default=torch.nn.ReLU
        Class of the activation layers.
    normalization : {None, "layer", "batch"}, default=None
        Normalisation before each activation.

    Examples
    --------
    >>> import torch
    >>> from sk_meta.networks import MLP
    >>> MLP(3, 2, hidden=(8,))(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        n_features,
        n_outputs=None,
        hidden=(64, 64),
        activation=nn.ReLU,
        normalization=None,
    ):
        super().__init__()
        norms = {None: None, "layer": LayerNorm, "batch": BatchNorm}
        if normalization not in norms:
            raise ValueError(
                "normalization must be None, 'layer' or 'batch', got "
                f"{normalization!r}."
            )
        norm = norms[normalization]
        layers = []
        for n_in, n_out in zip((n_features, *hidden), hidden, strict=False):
            layers.append(nn.Linear(n_in, n_out))
            layers += [norm(n_out)] if norm else []
            layers.append(activation())
        if n_outputs is not None:
            layers.append(nn.Linear((n_features, *hidden)[-1], n_outputs))
        self.layers = nn.Sequential(*layers)

    def forward(self, X):
        """(n, ...) -> (n, n_outputs); a row of any shape is flattened."""
        return self.layers(X.flatten(1))


class Conv4(nn.Module):
    """Four blocks of 3x3 convolution, normalisation, ReLU and 2x2 max-pooling.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, height, width) of an image. Sides shorter than 16 pixels lose their
        last pooling layers.
    n_outputs : int or None, default=None
        Length of the output of a last linear layer; None ends with the flattened
        feature maps.
    n_filters : int, default=64
        Channels of each block.
    normalization : {None, "batch"}, default="batch"
        Normalisation after each convolution.

    References
    ----------
    Vinyals et al. (2016), Matching Networks for One Shot Learning, section 4.1.

    Examples
    --------
    >>> import torch
    >>> from sk_meta.networks import Conv4
    >>> Conv4((1, 28, 28))(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 64])
    """

    def __init__(
        self, input_shape, n_outputs=None, n_filters=64, normalization="batch"
    ):
        super().__init__()
        if len(input_shape) != 3:
            raise ValueError(
                "Conv4 needs images, rows of shape (channels, height, width); got "
                f"rows of shape {tuple(input_shape)}. Reshape X, or use MLP."
            )
        if normalization not in (None, "batch"):
            raise ValueError(
                f"normalization must be None or 'batch', got {normalization!r}."
            )
        channels, *side = input_shape
        layers = []
        for _ in range(4):
            layers.append(nn.Conv2d(channels, n_filters, 3, padding=1))
            layers += [BatchNorm(n_filters)] if normalization else []
            layers.append(nn.ReLU())
            if min(side) >= 2:
                layers.append(nn.MaxPool2d(2))
                side = [length // 2 for length in side]
            channels = n_filters
        layers.append(nn.Flatten())
        if n_outputs is not None:
            layers.append(nn.Linear(n_filters * side[0] * side[1], n_outputs))
        self.layers = nn.Sequential(*layers)

    def forward(self, X):
        """(n, channels, height, width) -> (n, n_outputs)."""
        return self.layers(X)


class _Affine:
    """The affine part of a normalisation, channel by channel."""

    def scale_and_shift(self, X):
        """Scale and shift normalised rows (n, channels, ...)."""
        if self.weight is None:
            return X
        shape = (1, -1) + (1,) * (X.ndim - 2)
        return X * self.weight.view(shape) + self.bias.view(shape)


class BatchNorm(_Affine, _BatchNorm):
    """Batch normalisation of any rank, exact under vmap.

    Which statistics are used is the learner's choice, see `call`; running ones change
    only through `update_running`. Torch's fused operation with an affine part has a
    wrong second-order gradient under vmap, so the affine part stays outside of it
    wherever a gradient may be differentiated again.
    """

    source = "batch"
    given = ()
    seen = ()
    fused = False  # whether this is outside of vmap

    def _check_input_dim(self, X):
        """Any rank."""

    def forward(self, X):
        """(n, channels, ...) -> the same shape."""
        if self.source == "running" and self.running_mean is not None:
            given = (self.running_mean, self.running_var)
            return F.batch_norm(X, *given, self.weight, self.bias, False, 0.0, self.eps)
        single = X.numel() == X.shape[1]  # one value a channel: fused ones refuse
        records = self.source == "record"
        if (records or (self.fused and self.source == "batch")) and not single:
            X, mean, rstd = self._at_once(X)
            if records:
                self.seen.append((mean.detach(), rstd.detach() ** -2 - self.eps))
            return X
        return self.scale_and_shift(self._normalize(X, single))

    def _at_once(self, X):
        """Normalised rows, their mean and 1 / standard deviation."""
        affine = (self.weight, self.bias)
        exact = X.dtype != torch.bfloat16 or compiling()
        if X.device.type != "cpu" or not exact or affine[0] is None:
            return torch.native_batch_norm(X, *affine, None, None, True, 0.0, self.eps)
        return Normalize.apply(X, *affine, self.eps, self.fused)

    def _normalize(self, X, single):
        axes = [axis for axis in range(X.ndim) if axis != 1]
        shape = (1, -1) + (1,) * (X.ndim - 2)
        if self.source == "given":
            mean, variance = self.given.pop(0)  # a layer may be used more than once
            return (X - mean.view(shape)) * torch.rsqrt(variance.view(shape) + self.eps)
        if self.source in ("trace", "record"):
            variance, mean = torch.var_mean(X, axes, correction=0)
            self.seen.append((mean, variance))
        if single:
            return X - X
        return F.batch_norm(X, None, None, None, None, True, 0.0, self.eps)

    def keep_running(self):
        """Have running statistics, also where torch's layer was made without."""
        if self.running_mean is None:
            like = {"device": None if self.weight is None else self.weight.device}
            self.register_buffer("running_mean", torch.zeros(self.num_features, **like))
            self.register_buffer("running_var", torch.ones(self.num_features, **like))
            self.register_buffer("num_batches_tracked", torch.tensor(0, **like))

    @torch.no_grad()
    def update_running(self, mean, variance):
        """Move the running statistics towards those of tasks, (n_tasks, channels)."""
        if self.running_mean is None:
            return
        dtype = self.running_mean.dtype  # they may come in bfloat16
        mean, variance = mean.to(dtype), variance.to(dtype)
        self.num_batches_tracked += 1
        rate = self.momentum
        if rate is None:  # torch's sign for the plain average of all batches
            rate = 1.0 / float(self.num_batches_tracked)
        pooled = variance.mean(0) + mean.var(0, correction=0)
        self.running_mean.lerp_(mean.mean(0), rate)
        self.running_var.lerp_(pooled, rate)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation, exact under vmap: the affine part is applied outside."""

    def forward(self, X):
        """(..., *normalized_shape) -> the same shape."""
        return self.scale_and_shift(self.normalize(X))

    def normalize(self, X):
        """Without the affine part."""
        return F.layer_norm(X, self.normalized_shape, None, None, self.eps)

    def scale_and_shift(self, X):
        """The affine part."""
        if self.weight is not None:
            X = X * self.weight
        return X if self.bias is None else X + self.bias


class InstanceNorm(_Affine, _InstanceNorm):
    """Instance normalisation, exact under vmap."""

    def _check_input_dim(self, X):
        """Any rank."""

    def forward(self, X):
        """(n, channels, ...) -> the same shape."""
        return self.scale_and_shift(self.normalize(X))

    def normalize(self, X):
        """Without the affine part."""
        axes = tuple(range(2, X.ndim))
        variance, mean = torch.var_mean(X, axes, correction=0, keepdim=True)
        return (X - mean) * torch.rsqrt(variance + self.eps)


_EXACT = {
    nn.BatchNorm1d: BatchNorm,
    nn.BatchNorm2d: BatchNorm,
    nn.BatchNorm3d: BatchNorm,
    nn.LayerNorm: LayerNorm,
    nn.InstanceNorm1d: InstanceNorm,
    nn.InstanceNorm2d: InstanceNorm,
    nn.InstanceNorm3d: InstanceNorm,
}


def exact_normalization(module):
    """A copy of a network with exact normalisation in place of torch's fused layers.

    Parameters
    ----------
    module : torch.nn.Module
        Left as it is.

    Returns
    -------
    torch.nn.Module
        With the same parameters and the same ``state_dict`` keys.

    Notes
    -----
    ``torch.nn.BatchNorm*d``, ``LayerNorm`` and ``InstanceNorm*d`` with an affine part
    give wrong second-order gradients under ``torch.func.vmap``.

    Examples
    --------
    >>> from torch import nn
    >>> from sk_meta.networks import exact_normalization
    >>> exact_normalization(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)))[1]
    LayerNorm((3,), eps=1e-05, elementwise_affine=True, bias=True)
    """
    module = deepcopy(module)
    for layer in module.modules():
        # The class alone changes: parameters, hooks and names stay.
        layer.__class__ = _EXACT.get(type(layer), type(layer))
    return module


def channels_last(tensor):
    """Images in the layout that convolutions on a CPU are fastest in."""
    if tensor.ndim != 4 or tensor.is_cuda or not tensor.is_floating_point():
        return tensor
    n_channels, height, width = tensor.shape[1:]
    if n_channels == 1:
        # Both layouts are the same numbers; the strides say which one is meant.
        strides = (height * width, 1, width, 1)
        return tensor.contiguous().as_strided(tensor.shape, strides)
    return tensor.contiguous(memory_format=torch.channels_last)


def pool_first(module):
    """Exchange ReLU and the max-pooling after it, in place: the same, on fewer numbers.

    Only neighbours in a Sequential, and only where no hook looks at them.
    """
    for sequence in module.modules():
        if type(sequence) is not nn.Sequential:
            continue
        for i in range(len(sequence) - 1):
            pair = sequence[i], sequence[i + 1]
            kinds = type(pair[0]), type(pair[1])
            hooked = any(p._forward_hooks or p._forward_pre_hooks for p in pair)
            if kinds == (nn.ReLU, nn.MaxPool2d) and not hooked:
                sequence[i], sequence[i + 1] = pair[1], pair[0]
    return module


def batch_norms(module):
    """The layers of a network that mix rows by their statistics."""
    return tuple(layer for layer in module.modules() if isinstance(layer, BatchNorm))


@contextmanager
def _source(norms, source, statistics, fused):
    for layer, given in zip(norms, statistics or [()] * len(norms), strict=True):
        layer.source, layer.given, layer.seen = source, list(given), []
        layer.fused = fused
    try:
        yield
    finally:
        for layer in norms:
            layer.source, layer.given, layer.seen = "batch", (), ()
            layer.fused = False


# A call puts parameters and statistics into the module for its duration.
_one_at_a_time = RLock()


def in_precision(module, X, precision):
    """A network's output, of the type of its input; inside, products are cheaper."""
    if precision is None:
        return module(X)
    # The cache of casts does not know torch.func's levels.
    with torch.autocast(X.device.type, precision, cache_enabled=False):
        return module(X).to(X.dtype)


def call(
    module,
    X,
    *,
    parameters=None,
    norms=(),
    source="batch",
    statistics=(),
    precision=None,
    fused=False,
):
    """Apply a network as a pure function.

    Parameters
    ----------
    module : torch.nn.Module
    X : tensor of shape (n, ...)
    parameters : dict of tensors, default=None
        Used in place of the network's own.
    norms : tuple of BatchNorm
        ``batch_norms(module)``, found once by the caller.
    source : {"batch", "trace", "record", "running", "given"}
        Which statistics batch normalisation uses. "trace" and "record" use the batch's
        and return them too, with and without a gradient; "record" and "running" allow
        gradients of the first order only.
    statistics : tuple of tuples of (mean, variance)
        For "given": for each layer, one entry for each time it is used.
    precision : torch.dtype, default=None
        Of products and convolutions, as in torch.autocast; None leaves them alone.
    fused : bool, default=False
        Whether there is no vmap around, under which fused normalisation is wrong.

    Returns
    -------
    output : tensor
    seen : tuple of tuples of (mean, variance)
        Likewise. Empty unless `source` is "trace" or "record".
    """

    def forward():
        if parameters is None:
            return in_precision(module, X, precision)

        def changed(X):
            return functional_call(module, parameters, (X,))

        return in_precision(changed, X, precision)

    with _one_at_a_time, _source(norms, source, statistics, fused):
        output = forward()
        asked = source in ("trace", "record")
        seen = tuple(tuple(layer.seen) for layer in norms) if asked else ()
    return output, seen
