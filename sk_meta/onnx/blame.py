"""Which layer of a network stands in the way of an export."""

import re

from torch.utils._python_dispatch import TorchDispatchMode


class _Watch(TorchDispatchMode):
    """Notes in which layer each operator is used, and which layer is at work."""

    def __init__(self, learner):
        super().__init__()
        self.inside, self.used = [], {}
        self.hooks = []
        for name, layer in learner.named_modules():
            if not list(layer.children()):
                label = f"{name.removeprefix('module.')!r} ({type(layer).__name__})"
                self.hooks += [
                    layer.register_forward_pre_hook(self._enter(label)),
                    layer.register_forward_hook(self._leave),
                ]

    def _enter(self, label):
        return lambda layer, inputs: self.inside.append(label)

    def _leave(self, layer, inputs, output):
        self.inside.pop()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.inside:
            name = function.__name__.partition(".")[0]
            self.used.setdefault(name, self.inside[-1])
        return function(*args, **(kwargs or {}))


def blamed_layer(learner, function, inputs, error) -> str | None:
    """The layer that an export failed at, as far as that can be told.

    Parameters
    ----------
    learner : Learner
    function : callable
        (learner, *inputs) -> tensors, as it was exported.
    inputs : tuple of tensors
    error : Exception
        What the export raised.
    """
    watch = _Watch(learner)
    try:
        with watch:
            function(learner, *inputs)
    except Exception:
        if watch.inside:
            return watch.inside[-1]
    finally:
        for hook in watch.hooks:
            hook.remove()
    for operator in re.findall(r"(?:aten|prims)[.:]+(\w+)", _with_causes(error)):
        operator = operator.removesuffix("_backward")
        # The exporter may know it by another prefix.
        for known in (operator, operator.rpartition("_")[2]):
            for name, layer in watch.used.items():
                if name.endswith(known):
                    return layer
    return None


def _with_causes(error):
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(reversed(texts))
