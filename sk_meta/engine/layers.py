"""All tasks through one network, layer by layer, each task with parameters of its own.

A gradient step on n rows changes a linear layer by a product of rank n: the layer's
inputs on these rows, and the gradient of the loss at its outputs. Kept as two factors
(adaptation in activation space), the step costs no weight matrix per task, and all
tasks' rows go through one product with the shared weights. Where the factors would cost
more than the matrices, or where every number of a weight has a learning rate of its
own, they are added up to one matrix per task. Both are exact, and autograd gives the
second order.
"""

import weakref
from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from sk_meta.networks import (
    BatchNorm,
    InstanceNorm,
    LayerNorm,
    batch_norms,
    channels_last,
    in_precision,
)

# In multiply-adds: a number of a weight matrix moved; the calls that longer factors
# take at each step.
_TRAFFIC, _CALLS = 12, 400_000


class Opaque(Exception):
    """The network does something that cannot be followed layer by layer."""


class _Shared:
    """Stands for a parameter while each task has its own: only its layer may use it."""

    def __init__(self, parameter):
        self.dtype, self.device = parameter.dtype, parameter.device
        self.shape, self.ndim = parameter.shape, parameter.ndim
        self.size, self.requires_grad = parameter.size, parameter.requires_grad

    def __getattr__(self, name):
        raise Opaque(f"a parameter's {name!r} is used outside of its layer")

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        raise Opaque(f"{function.__name__} takes a parameter past its layer")


def _product(A, B):
    """(..., n, k) times (..., k, m): the same bits whatever else is computed with it.

    Products with vectors and fused sums take other routes, and roundings, under vmap.
    """
    if B.shape[-1] == 1:
        return (A * B.mT).sum(-1, keepdim=True)
    if A.shape[-1] == 1:
        return A * B
    if A.shape[-2] == 1:
        return (A.mT * B).sum(-2, keepdim=True)
    if A.ndim == B.ndim == 2:
        return torch.mm(A, B)
    return torch.bmm(A, B) if A.ndim == B.ndim == 3 else A @ B


def _joined(factors):
    """Those of several steps as one, along the rows."""
    return factors[0] if len(factors) == 1 else torch.cat(factors, 1)


def _stepped(changes, rates):
    """Changes of outputs times a rate for the whole layer, or with the other rates.

    Rates are None, where the changes are steps already, or those of weight and bias.
    """
    if rates is None:
        return changes, None
    of_weight, of_bias = rates
    if of_weight.ndim == 0 and (of_bias is None or of_bias is of_weight):
        return changes * of_weight, None
    return changes, rates


def _times(rates, which, values):
    return values if rates is None else rates[which] * values


class _Linear:
    """A linear layer, adapted in activation space or by a matrix per task.

    `names` are those of its weight and bias, in the network; empty if tasks share them.
    """

    def __init__(self, layer, network, names):
        self.weight, self.bias = layer.weight, layer.bias
        self.network, self.names = network, names
        # Factors stay one by one: joined, each step would keep those of all before it.
        self.state = (), (), None
        self.records = []

    def __call__(self, X):
        inputs, changes, own = self.state
        if own is not None:
            weight, bias = own
            Z = _product(self.network.by_task(X), weight.mT)
            Z = (Z if bias is None else Z + bias).view(*X.shape[:-1], -1)
        else:
            Z = _product(X, self.weight.mT)
            Z = Z if self.bias is None else Z + self.bias
            if inputs:
                inputs, changes = _joined(inputs), _joined(changes)
                # The bias is the weight of an input that is always 1.
                overlap = _product(self.network.by_task(X), inputs.mT)
                overlap = overlap if self.bias is None else overlap + 1
                Z = Z + _product(overlap, changes).view(Z.shape)
        return self.network.record(self, X, Z)

    def step(self, inputs, changes, rates):
        """Take a gradient step: the inputs, and minus the gradient at the outputs."""
        inputs = self.network.by_task(inputs).to(self.weight.dtype)
        changes = self.network.by_task(changes).to(self.weight.dtype)
        changes, rates = _stepped(changes, rates)
        old_inputs, old_changes, own = self.state
        as_factors = rates is None and self.network.keeps_factors(self.weight, inputs)
        if own is None and as_factors:
            self.state = (*old_inputs, inputs), (*old_changes, changes), None
            return
        if own is None:
            bias = self.bias
            if bias is not None:
                bias = bias.expand(len(inputs), 1, -1)
            own = self.weight.expand(len(inputs), -1, -1), bias
        weight, bias = own
        if 1 in self.weight.shape:  # in the order in memory, forward and backward
            change = (changes * inputs).sum(1).view(-1, *self.weight.shape)
        else:
            change = _product(changes.mT, inputs)
        weight = weight + _times(rates, 0, change)
        if bias is not None:
            bias = bias + _times(rates, 1, changes.sum(1, keepdim=True))
        self.state = (), (), (weight, bias)


class _Norm:
    """A normalisation: statistics and affine part of each task."""

    def __init__(self, layer, network, names):
        self.layer, self.network, self.names = layer, network, names
        self.weight, self.bias = layer.weight, layer.bias
        self.state = self.weight, self.bias
        self.records, self.seen = [], []

    def __call__(self, X):
        n_tasks, layer = self.network.n_tasks, self.layer
        if self.network.source == "running":
            return F.batch_norm(
                X,
                layer.running_mean,
                layer.running_var,
                *self.state,
                False,
                0.0,
                layer.eps,
            )
        rstd = None
        if isinstance(layer, BatchNorm):
            rows, rstd = self._centered(X)
        else:
            rows = layer.normalize(X).view(n_tasks, -1, *X.shape[1:])
        if rstd is not None and (self.weight is None or self.network.recording):
            rows, rstd = rows * rstd, None
        if self.weight is None:
            return rows.to(X.dtype).view(X.shape)
        scale, shift = self.state
        first = n_tasks if scale is not self.weight else 1
        shape = (first, 1, *self._shape(X)[1:])
        normalized, scale = rows, scale.view(shape)
        Z = rows * (scale if rstd is None else rstd * scale)
        Z = Z if shift is None else Z + shift.view(shape)
        Z = Z.to(X.dtype).view(X.shape)
        return self.network.record(self, normalized.view(X.shape), Z)

    def _shape(self, X):
        """Shape that lets the affine parameters broadcast over rows."""
        if isinstance(self.layer, LayerNorm):
            free = X.ndim - len(self.layer.normalized_shape)
            return (1,) * free + tuple(self.layer.normalized_shape)
        return (1, -1) + (1,) * (X.ndim - 2)

    def _centered(self, X):
        """Rows less their task's mean, and 1 / standard deviation."""
        layer, network = self.layer, self.network
        rows = X.view(network.n_tasks, -1, *X.shape[1:])
        if rows.dtype == torch.bfloat16:
            rows = rows.float()  # three digits are too few for a mean
        axes = [axis for axis in range(rows.ndim) if axis not in (0, 2)]
        n = network.n_source
        # torch.var_mean takes many times as long.
        mean = rows[:, :n].mean(axes, keepdim=True)
        rows = rows - mean
        variance = (rows[:, :n] * rows[:, :n]).mean(axes, keepdim=True)
        self.seen.append((mean, variance))
        return rows, torch.rsqrt(variance + layer.eps)

    def step(self, normalized, changes, rates):
        """Take a gradient step, from minus the gradient at the outputs."""
        changes, rates = _stepped(changes, rates)
        shape = self._shape(normalized)
        n_tasks = self.network.n_tasks

        def summed(values):
            rows = values.view(n_tasks, -1, *values.shape[1:])
            axes = [1] + [a + 1 for a in range(1, values.ndim) if shape[a] == 1]
            return rows.sum(axes).view(n_tasks, *self.weight.shape)

        scale, shift = self.state
        scale = scale + _times(rates, 0, summed(changes * normalized))
        if shift is not None:
            shift = shift + _times(rates, 1, summed(changes))
        self.state = scale, shift


_FOLLOWED = {
    nn.Linear: _Linear,
    BatchNorm: _Norm,
    LayerNorm: _Norm,
    InstanceNorm: _Norm,
}


def why_opaque(module: nn.Module, adapted: bool | Collection[str]) -> str | None:
    """What keeps a network from being followed layer by layer; None if nothing does.

    Parameters
    ----------
    module : torch.nn.Module
    adapted : bool or collection of str
        Whether each task changes the parameters, or all share them; or the names of
        those that it changes.
    """
    owners, chosen = {}, _ids(module, None if adapted is True else adapted or ())
    for name, layer in module.named_modules():
        own = dict(layer.named_parameters(recurse=False))
        if isinstance(layer, nn.RNNBase):
            return f"{name or 'the network'} is recurrent"
        if not adapted or not own:
            continue
        free = {id(parameter) in chosen for parameter in own.values()}
        if free == {False}:
            continue
        if type(layer) not in _FOLLOWED:
            return f"{name or 'the network'} ({type(layer).__name__}) has parameters"
        if len(free) > 1:
            return f"{name} is frozen in part"
        for parameter in own.values():
            if owners.setdefault(id(parameter), layer) is not layer:
                return f"{name} shares a parameter with another layer"
    return None


def _ids(module, adapted):
    """Of the named parameters, or of all that are not frozen."""
    return {
        id(parameter)
        for name, parameter in module.named_parameters()
        if (parameter.requires_grad if adapted is None else name in adapted)
    }


class StackedNetwork:
    """A network applied to the rows of all tasks at once; a context manager.

    Inside of the context the network's layers are replaced by ones that know tasks.

    Parameters
    ----------
    module : torch.nn.Module
        `why_opaque` has nothing against it.
    n_tasks : int
    learning_rate : float or scalar tensor, default=0.0
        Of the steps, unless a step has its own.
    n_steps : int, default=0
        Steps to come; with the next two, decides between factors and matrices.
    n_support, n_query : int, default=1
        Rows of a task in a step, and in the last call.
    precision : torch.dtype, default=None
        Of products, as in torch.autocast.
    adapted : collection of str, default=None
        Names of the parameters that steps change; None for all that are not frozen.
    """

    def __init__(
        self,
        module,
        n_tasks,
        learning_rate=0.0,
        n_steps=0,
        n_support=1,
        n_query=1,
        precision=None,
        adapted=None,
    ):
        self.module = module
        self.precision = precision
        self.n_tasks = n_tasks
        self.learning_rate = learning_rate
        self.n_steps, self.n_support, self.n_query = n_steps, n_support, n_query
        self.recording = False
        self.source, self.n_source = "batch", None
        chosen = _ids(module, adapted) if n_steps > 0 else ()
        self.layers = {}
        for name, layer in module.named_modules():
            kind = _FOLLOWED.get(type(layer))
            if kind is None:
                continue
            own = layer.named_parameters(name, recurse=False)
            names = [parameter for parameter, value in own if id(value) in chosen]
            if names or isinstance(layer, BatchNorm):
                # A weak reference: no cycle is to keep the tensors alive.
                self.layers[layer] = kind(layer, weakref.proxy(self), names)
        self.adapted = [layer for layer in self.layers.values() if layer.names]
        self._saved, self._depth = [], 0
        self._copies = self._probed = False

    def __enter__(self):
        self._depth += 1
        if self._depth > 1:
            return self
        for layer, stacked in self.layers.items():
            self._saved.append((layer, dict(layer._parameters)))
            layer.forward = stacked
            for name, parameter in layer._parameters.items():
                if parameter is not None and stacked.names:
                    layer._parameters[name] = _Shared(parameter)
        return self

    def __exit__(self, *error):
        self._depth -= 1
        if self._depth:
            return
        for layer, parameters in self._saved:
            del layer.forward
            layer._parameters.update(parameters)
        self._saved = []

    def __call__(self, X: Tensor, source: str = "batch", n_source: int | None = None):
        """Outputs of rows, (n_tasks, n, ...) -> (n_tasks, n, n_outputs).

        Parameters
        ----------
        X : tensor of shape (n_tasks, n, ...)
        source : {"batch", "running"}, default="batch"
            Statistics of batch normalisation.
        n_source : int, default=None
            The first rows of each task, whose statistics are used; None for all.
        """
        self.source, self.n_source = source, n_source
        for layer in self.layers.values():
            layer.seen = []
        rows = channels_last(X.reshape(-1, *X.shape[2:]))
        Z = in_precision(self.module, rows, self.precision)
        if len(Z) != X.shape[0] * X.shape[1]:
            raise Opaque(f"{X.shape[0] * X.shape[1]} rows became {len(Z)}")
        return Z.view(*X.shape[:2], *Z.shape[1:])

    def seen(self):
        """Statistics of the last call: for each layer and use (n_tasks, channels)."""
        return tuple(
            tuple(
                tuple(part.detach().flatten(1) for part in use)
                for use in self.layers[layer].seen
            )
            for layer in batch_norms(self.module)
        )

    def step(
        self,
        loss: Callable[[Tensor], Tensor],
        X: Tensor,
        first_order: bool,
        rates: dict[str, Tensor] | None = None,
    ):
        """One gradient step of each task.

        Parameters
        ----------
        loss : callable
            Outputs (n_tasks, n, n_outputs) -> summed losses of the tasks.
        X : tensor of shape (n_tasks, n, ...)
        first_order : bool
            Treat the gradients as constants, and keep no graph of them.
        rates : dict of tensors, default=None
            Learning rates by the names of parameters, in place of the common one: a
            scalar, or of the parameter's shape. One and the same scalar for weight and
            bias of a layer is cheapest.
        """
        if not torch.is_grad_enabled():
            X = X.detach().requires_grad_()  # nothing else might ask for a graph
        with torch.enable_grad():
            value, records = self._recorded(loss, X)
            outputs = [Z for _, _, Z, _ in records]
            # The loss times minus the rate: every gradient comes out as its step.
            changes = torch.autograd.grad(
                value * -self.learning_rate if rates is None else -value,
                outputs,
                create_graph=not first_order,
                allow_unused=True,
            )
        for (layer, inputs, _, _), change in zip(records, changes, strict=True):
            if change is None:  # an output that the loss does not depend on
                continue
            inputs = inputs.detach() if first_order else inputs
            layer.step(inputs, change, self._rates_of(layer, rates))

    def _rates_of(self, layer, rates):
        """Those of weight and bias."""
        if rates is None:
            return None
        weight, *bias = [rates[name] for name in layer.names]
        return weight, bias[0] if bias else None

    def step_again(self, loss, X: Tensor, first_order: bool, rates=None):
        """The same as `step`; computed anew in the backward pass instead of kept."""
        if not self._probed:
            # Whether outputs must be copied has to be known before.
            self._probed = True
            with self, torch.enable_grad():
                self._recorded(loss, X)
        forms = []

        def step(X, *flat):
            with self:
                self._set_states(tree_unflatten(flat, before))
                self.step(loss, X, first_order, rates)
            flat, after = tree_flatten([layer.state for layer in self.adapted])
            forms.append(after)
            return tuple(flat)

        flat, before = tree_flatten([layer.state for layer in self.adapted])
        flat = checkpoint(step, X, *flat, use_reentrant=False)
        self._set_states(tree_unflatten(flat, forms[-1]))

    def _set_states(self, states):
        for layer, state in zip(self.adapted, states, strict=True):
            layer.state = state

    def _recorded(self, loss, X):
        self.recording = True
        try:
            value = loss(self(X))
            records = [
                (layer, inputs, Z, Z._version)
                for layer in self.adapted
                for inputs, Z in layer.records
            ]
        finally:
            self.recording = False
            for layer in self.adapted:
                layer.records = []
        if not self._copies and any(Z._version for _, _, Z, _ in records):
            self._copies = True  # something worked in place on a layer's output
            return self._recorded(loss, X)
        return value, records

    def by_task(self, X):
        """Rows of a linear layer, (n_tasks * n, ..., d) -> (n_tasks, n, d)."""
        return X.reshape(self.n_tasks, -1, X.shape[-1])

    def record(self, layer, inputs, Z):
        """Keep what a step needs; the output, safe from operations in place."""
        if not (self.recording and layer.names):
            return Z
        layer.records.append((inputs, Z))
        return Z.clone() if self._copies else Z

    def keeps_factors(self, weight, inputs):
        """Whether two factors per step cost less than a matrix per task."""
        n_out, n_in = weight.shape
        rows = self.n_query + self.n_support * (self.n_steps - 1) / 2
        as_factors = self.n_support * (n_in + n_out) * rows
        if self.n_steps > 1:
            as_factors += _CALLS / self.n_tasks
        as_matrix = (self.n_support + _TRAFFIC) * n_in * n_out
        return as_factors <= as_matrix
