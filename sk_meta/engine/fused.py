"""Operations in a form that the compiler fuses, for convolutional networks on a CPU.

The compiler reads a max-pooling's index back from memory, number by number. Here the
place of the largest number in its window is compared with each place instead.
"""

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from sk_meta.batch_norm import kept

_RELUS = {F.relu, torch.relu, torch.Tensor.relu}
_POOLINGS = {F.max_pool2d, torch.max_pool2d}
_aten = torch.ops.aten


class ReLULast(TorchFunctionMode):
    """Inside, max-pooling comes before the ReLU: the same, on fewer numbers.

    The ReLU is computed where the network has it too; the compiler leaves out what
    nothing uses.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _POOLINGS and not kwargs.get("return_indices"):
            before = _before_relu(args[0])
            if before is not None:
                return torch.relu(function(before, *args[1:], **kwargs))
        found = function(*args, **kwargs)
        if function in _RELUS and found is not args[0]:
            found._relu_of = args[0], args[0]._version, found._version
        return found


def _before_relu(X):
    """What X is the ReLU of, unless one of the two was changed since."""
    before, *versions = getattr(X, "_relu_of", (None,))
    if before is not None and versions == [before._version, X._version]:
        return before
    return None


def _max_pool(X, kernel, stride=(), padding=(0,), dilation=(1,), ceil_mode=False):
    """aten::max_pool2d_with_indices."""
    if not _tiles(X, kernel, stride, padding, dilation, ceil_mode):
        return NotImplemented
    largest, place = _largest(_windows(X, kernel))
    a, b = kernel
    place = place.long()
    rows = torch.arange(largest.shape[1], device=X.device)[:, None, None] * a
    columns = torch.arange(largest.shape[2], device=X.device)[:, None] * b
    indices = (rows + place // b) * X.shape[3] + columns + place % b
    return largest.permute(0, 3, 1, 2), indices.permute(0, 3, 1, 2)


def _max_pool_backward(
    change, X, kernel, stride, padding, dilation, ceil_mode, indices
):
    """aten::max_pool2d_with_indices_backward."""
    if not _tiles(X, kernel, stride, padding, dilation, ceil_mode):
        return NotImplemented
    a, b = kernel
    _, place = _largest(_windows(X, kernel))
    at = torch.arange(a * b, device=X.device, dtype=X.dtype).view(a, 1, b, 1)
    here = place[:, :, None, :, None] == at
    change = change.permute(0, 2, 3, 1)[:, :, None, :, None]
    found = torch.where(here, change, 0.0).flatten(3, 4).flatten(1, 2)
    right, below = X.shape[3] - found.shape[2], X.shape[2] - found.shape[1]
    if right or below:
        found = torch.constant_pad_nd(found, (0, 0, 0, right, 0, below))
    return found.permute(0, 3, 1, 2)


def _tiles(X, kernel, stride, padding, dilation, ceil_mode):
    """Whether these are images on a CPU, in windows side by side."""
    side_by_side = list(stride) in ([], list(kernel)) and not any(padding)
    whole = set(dilation) == {1} and not ceil_mode
    return X.ndim == 4 and X.device.type == "cpu" and side_by_side and whole


def _windows(X, kernel):
    """(n, channels, height, width) -> (n, rows, a, columns, b, channels)."""
    a, b = kernel
    rows, columns = X.shape[2] // a, X.shape[3] // b
    X = X[:, :, : rows * a, : columns * b].permute(0, 2, 3, 1)
    return X.unflatten(2, (columns, b)).unflatten(1, (rows, a))


def _largest(windows):
    """The largest number of each window, and its place there: the first of several.

    The place is of the numbers' type, so that one loop computes both.
    """
    a, b = windows.shape[2], windows.shape[4]
    largest = windows[:, :, 0, :, 0]
    place = torch.zeros_like(largest)
    for at in range(1, a * b):
        other = windows[:, :, at // b, :, at % b]
        more = (other > largest) | (other != other)  # not a number: as torch does
        largest = torch.where(more, other, largest)
        place = torch.where(more, float(at), place)
    return kept(largest), kept(place)


def _cast(X, **options):
    """aten::_to_copy of images of one channel: the compiler would lose their layout.

    Both layouts are the same numbers then, but convolutions go by the one they see.
    """
    if X.ndim != 4 or X.shape[1] != 1 or options.keys() != {"dtype"}:
        return NotImplemented
    return kept(torch.ops.prims.convert_element_type(X, options["dtype"]))


FUSED = {
    _aten.max_pool2d_with_indices.default: _max_pool,
    _aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
    _aten._to_copy.default: _cast,
}
