"""The whole meta-step, both loops and the gradient, as one compiled function."""

import logging
import warnings

import torch
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from sk_meta.engine.batching import task_losses

_MOST_SHAPES = 8  # each takes half a minute to compile

logger = logging.getLogger("sk_meta")


class _Losses(nn.Module):
    """A meta-batch's losses as the output of a module, so that it can be traced."""

    def __init__(self, learner):
        super().__init__()
        self.learner = learner

    def forward(self, group):
        return task_losses(self.learner, [group])


class CompiledSteps:
    """One compiled function for each shape of a meta-batch.

    The learner's own code is traced on tensors without values, so that a branch that
    depends on data is found; then torch.compile makes one function of the forward
    passes, the inner gradients and the outer one. Shapes that come after the first
    eight, and what cannot be compiled, are computed as before, and logged.
    """

    def __init__(self):
        self.functions = {}

    def __deepcopy__(self, memo):
        return CompiledSteps()

    def __reduce__(self):
        return CompiledSteps, ()  # compiled again where it is loaded

    def __call__(self, learner, group, reduce, weights=None):
        """The gradient, added to that of the parameters.

        Returns
        -------
        loss, losses, seen : tensors
            As from `MetaStep`; None if this meta-batch is not compiled.
        """
        parameters = {
            name: p for name, p in learner.named_parameters() if p.requires_grad
        }
        values, tree = tree_flatten((group.support, group.query, weights))
        tensors = [value for value in values if torch.is_tensor(value)]
        key = _key(learner, values)
        if key not in self.functions:
            self.functions[key] = self._compile(
                learner, reduce if weights is None else None, parameters, values, tree
            )
        if self.functions[key] is None:
            return None
        function, seen_tree = self.functions[key]
        with torch.no_grad():
            loss, losses, seen, gradients = function(
                list(parameters.values()), list(learner.buffers()), tensors
            )
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad += gradient
        return loss, losses, tree_unflatten(seen, seen_tree)

    def _compile(self, learner, reduce, parameters, values, tree):
        if len(self.functions) >= _MOST_SHAPES:
            if len(self.functions) == _MOST_SHAPES:
                logger.info("more than %d shapes: not compiled", _MOST_SHAPES)
            return None
        step = _Losses(learner)
        names = [f"learner.{name}" for name in parameters]
        buffer_names = [f"learner.{name}" for name, _ in learner.named_buffers()]
        trees = []

        def function(parameters, buffers, tensors):
            tensors = iter(tensors)
            full = [next(tensors) if torch.is_tensor(v) else v for v in values]
            support, query, weights = tree_unflatten(full, tree)
            group = _Group(support, query)
            parameters = [p.detach().requires_grad_() for p in parameters]
            given = dict(zip(names, parameters, strict=True))
            given.update(zip(buffer_names, buffers, strict=True))
            losses, seen = functional_call(step, given, (group,))
            loss = reduce(losses) if weights is None else (losses * weights).sum()
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            seen, seen_tree = tree_flatten(seen)
            trees.append(seen_tree)
            seen = [values.detach() for values in seen]
            return loss.detach(), losses.detach(), seen, gradients

        tensors = [value for value in values if torch.is_tensor(value)]
        given = list(parameters.values()), list(learner.buffers()), tensors
        way = learner.way
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's, about itself
                graph = make_fx(function, tracing_mode="fake")(*given)
            if learner.way != way:
                raise RuntimeError(learner.why)
            graph.graph.eliminate_dead_code()
            graph.recompile()
            compiled = torch.compile(graph, fullgraph=True, dynamic=False)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compiled(*given)
        except Exception as error:  # whatever tracing or the compiler may raise
            logger.info("not compiled: %s: %s", type(error).__name__, error)
            learner.way = way
            return None
        return compiled, trees[-1]


class _Group:
    """What `task_losses` needs of a TaskGroup."""

    def __init__(self, support, query):
        self.support, self.query = support, query


def _key(learner, values):
    """What a compiled function depends on."""
    shapes = tuple(
        (tuple(v.shape), v.dtype, v.device.type) if torch.is_tensor(v) else v
        for v in values
    )
    return learner.way, learner.training, learner.precision, shapes
