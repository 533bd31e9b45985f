"""How much memory a computation holds at its peak."""

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class _Counter(TorchDispatchMode):
    """Adds up the storages that operations make, and takes off those that are freed."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = [x for x in tree_iter((args, kwargs)) if torch.is_tensor(x)]
        given = {x.untyped_storage()._cdata for x in known}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if torch.is_tensor(tensor):
                self._count(tensor.untyped_storage(), given)
        return result

    def _count(self, storage, given):
        key = storage._cdata
        if key in self.known or key in given:
            return
        size = storage.nbytes()
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key, size):
        self.known.discard(key)
        self.now -= size


def peak_bytes(function: Callable, *args) -> int:
    """The most bytes of new tensors alive at one time while a function runs.

    Parameters
    ----------
    function : callable
    *args
        Handed to it; tensors among them do not count.

    Returns
    -------
    int

    Examples
    --------
    >>> import torch
    >>> from sk_meta.engine.memory import peak_bytes
    >>> peak_bytes(lambda x: (x + 1).sum(), torch.zeros(1000))
    4004
    """
    counter = _Counter()
    with counter:
        function(*args)
    return counter.peak
