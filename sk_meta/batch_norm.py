"""Batch normalisation with exact sums, as torch computes it and as it is compiled."""

from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F

_AT_ONCE = 2**18  # numbers whose products are added up: what a cache holds
_compiling = ContextVar("compiling", default=False)


@contextmanager
def for_compiler():
    """Inside, operations are written down for the compiler, in the form it needs."""
    token = _compiling.set(True)
    try:
        yield
    finally:
        _compiling.reset(token)


def compiling():
    """Whether this is inside of `for_compiler`."""
    return _compiling.get()


def kept(tensor):
    """What the compiler has to keep: it computes anew, for each use, what is cheap."""
    if not compiling():
        return tensor
    return tensor.as_strided(tensor.shape, tensor.stride())


class Normalize(torch.autograd.Function):
    """Batch normalisation with sums that are exact to rounding.

    On a CPU, torch's own adds up images in the channels-last layout one number after
    the other: with 60,000 of them the gradient is wrong in its third digit.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(X, weight, bias, eps, alone):
        """(n, channels, ...) -> the same shape, mean, 1 / standard deviation."""
        shape = _shape(X)
        n = X.numel() // X.shape[1]
        mean = _sum(X) / n
        variance = _sum_of(_square_around(mean.view(shape)), X) / n
        rstd = torch.rsqrt(variance + eps)
        if compiling():
            scale = kept(rstd * weight)
            shift = kept(bias - mean * scale)
            Z = torch.addcmul(shift.view(shape), X, scale.view(shape))
            return Z.to(X.dtype), mean, rstd
        Z = F.batch_norm(X, mean, variance, weight, bias, False, 0.0, eps)
        return Z, mean, rstd

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Keep what the gradient is made from."""
        X, weight, _, _, ctx.alone = inputs
        ctx.save_for_backward(X, weight, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, change, change_mean, change_rstd):
        """Gradients; made of operations that have gradients themselves."""
        X, weight, mean, rstd = ctx.saved_tensors
        if change is None:  # only the statistics were used
            change = torch.zeros_like(X)
        shape = _shape(X)
        n = X.numel() // len(mean)
        at_bias = _sum(change)
        along = _sum_of(torch.mul, change, X) - mean * at_bias
        scale = rstd * weight
        at_mean = -scale * at_bias
        at_rstd = weight * along
        if change_mean is not None:
            at_mean = at_mean + change_mean
        if change_rstd is not None:
            at_rstd = at_rstd + change_rstd
        slope = -at_rstd * rstd**3 / n
        rest = kept(at_mean / n - slope * mean)
        slope, scale = kept(slope), kept(scale)
        at_X = torch.addcmul(rest.view(shape), X, slope.view(shape))
        if torch.is_grad_enabled() or not ctx.alone:
            at_X = torch.addcmul(at_X, change, scale.view(shape))
        else:
            at_X.addcmul_(change, scale.view(shape))  # large: each copy costs
        return at_X.to(X.dtype), along * rstd, at_bias, None, None


def _shape(X):
    """What statistics (channels,) are viewed as, beside X."""
    return (1, -1) + (1,) * (X.ndim - 2)


def _square_around(mean):
    return lambda X: (X - mean) ** 2


def _sum(X):
    """Sums of each channel, (channels,)."""
    if not compiling():
        return X.sum([axis for axis in range(X.ndim) if axis != 1])
    # Image by image: the compiler adds numbers up in order, and reads them like that.
    images = X.sum(tuple(range(2, X.ndim)), dtype=_sum_type(X)) if X.ndim > 2 else X
    return images.sum(0, dtype=_sum_type(X))


def _sum_of(function, *tensors):
    """The same of a function, number by number: never all in memory."""
    if compiling():
        return _sum(function(*(tensor.to(_sum_type(tensor)) for tensor in tensors)))
    n_rows = max(1, _AT_ONCE * len(tensors[0]) // tensors[0].numel())
    parts = zip(*(tensor.split(n_rows) for tensor in tensors), strict=True)
    return sum(_sum(function(*part)) for part in parts)


def _sum_type(X):
    return torch.promote_types(X.dtype, torch.float32)
