"""The whole meta-step, both loops and the gradient, as one compiled function."""

import logging
import warnings
from collections import Counter

import torch
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from sk_meta.batch_norm import for_compiler
from sk_meta.engine.batching import task_losses
from sk_meta.engine.fused import FUSED, ReLULast

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
    passes, the inner gradients and the outer one. Shapes that have not come often yet,
    those after the first eight, and what cannot be compiled, are computed as before.

    Parameters
    ----------
    patience : int, default=3
        Visits of a shape before it is compiled: of ragged tasks many come once.
    verbose : int, default=0
        1 prints a line before the compiler runs, and where it fails.
    """

    def __init__(self, patience=3, verbose=0):
        self.patience, self.verbose = patience, verbose
        self.functions, self.visits = {}, Counter()

    def __deepcopy__(self, memo):
        return CompiledSteps(self.patience, self.verbose)

    def __reduce__(self):
        # Compiled again where it is loaded.
        return CompiledSteps, (self.patience, self.verbose)

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
        self.visits[key] += 1
        if self.visits[key] < self.patience:
            return None
        if key not in self.functions:
            whole = reduce if weights is None else None
            self.functions[key] = self._compile(
                learner, group, whole, parameters, values, tree
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

    def how(self):
        """What has been compiled so far, in words."""
        n_compiled = sum(made is not None for made in self.functions.values())
        return f"{n_compiled} sizes compiled" if self.functions else "to be compiled"

    def _compile(self, learner, group, reduce, parameters, values, tree):
        if len(self.functions) >= _MOST_SHAPES:
            if len(self.functions) == _MOST_SHAPES:
                self._say(f"More than {_MOST_SHAPES} sizes: the others as before")
            return None
        n_tasks, n_support = group.support.X.shape[:2]
        self._say(
            f"Compiling for {n_tasks} tasks at a time, of {n_support} support and "
            f"{group.query.X.shape[1]} query rows; this may take a minute or two"
        )
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
            with ReLULast():
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
                with for_compiler():
                    graph = make_fx(function, FUSED, tracing_mode="fake")(*given)
            if learner.way != way:
                raise RuntimeError(learner.why)
            graph.graph.eliminate_dead_code()
            graph.recompile()
            compiled = torch.compile(graph, fullgraph=True, dynamic=False)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compiled(*given)
        except Exception as error:  # whatever tracing or the compiler may raise
            first = str(error).partition("\n")[0]
            self._say(f"Not compiled: {type(error).__name__}: {first}")
            learner.way = way
            return None
        return compiled, trees[-1]

    def _say(self, message):
        logger.info(message)
        if self.verbose:
            print(message)


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
    return learner.way, learner.training, learner.precision, learner.phase, shapes
