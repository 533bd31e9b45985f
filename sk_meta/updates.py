"""Inner loops that methods share."""

from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.utils.checkpoint import checkpoint

Parameters = dict[str, Tensor]
_other_loop = ContextVar("what takes the place of `repeat`", default=None)


def repeat(step: Callable, carry, n_steps: int):
    """Apply a step over and over: the inner loop of every method that has one.

    Parameters
    ----------
    step : callable
        (number of the step, carry) -> carry. What it needs besides may be captured.
    carry : nested tensors
    n_steps : int

    Returns
    -------
    nested tensors
    """
    if other := _other_loop.get():
        return other(step, carry, n_steps)
    for number in range(n_steps):
        carry = step(number, carry)
    return carry


@contextmanager
def loops_done_by(other: Callable):
    """Let another function do what `repeat` does, such as one that records the step."""
    token = _other_loop.set(other)
    try:
        yield
    finally:
        _other_loop.reset(token)


def trainable(module: nn.Module) -> Parameters:
    """Parameters that may change; those frozen by the user stay as they are."""
    return {
        name: value for name, value in module.named_parameters() if value.requires_grad
    }


def gradient_step(
    loss: Callable[[Parameters], Tensor],
    parameters: Parameters,
    learning_rate: float | Tensor | Parameters,
    first_order: bool = False,
    again: bool = False,
) -> Parameters:
    """One step of `gradient_descent`; the parameters are explained there."""
    names = tuple(parameters)

    def step(*values):
        parameters = dict(zip(names, values, strict=True))
        start = parameters
        if first_order:
            start = {name: value.detach() for name, value in parameters.items()}
        if again:
            with torch.enable_grad():
                start = {name: value.requires_grad_() for name, value in start.items()}
                gradients = torch.autograd.grad(
                    loss(start), list(start.values()), create_graph=not first_order
                )
            gradients = dict(zip(names, gradients, strict=True))
        else:
            gradients = grad(loss)(start)
        if first_order:
            gradients = {name: value.detach() for name, value in gradients.items()}
        each = isinstance(learning_rate, dict)
        return tuple(
            value - (learning_rate[name] if each else learning_rate) * gradients[name]
            for name, value in parameters.items()
        )

    values = tuple(parameters.values())
    values = checkpoint(step, *values, use_reentrant=False) if again else step(*values)
    return dict(zip(names, values, strict=True))


def gradient_descent(
    loss: Callable[[Parameters], Tensor],
    parameters: Parameters,
    learning_rate: float | Tensor | Parameters,
    n_steps: int,
    first_order: bool = False,
    again: bool = False,
) -> Parameters:
    """Plain gradient descent, differentiable with respect to where it starts.

    Parameters
    ----------
    loss : callable
        Parameters -> scalar.
    parameters : dict of tensors
        Starting point; left as it is.
    learning_rate : float, scalar tensor or dict of tensors
        A dict holds that of each parameter: a scalar, or of the parameter's shape.
    n_steps : int
    first_order : bool, default=False
        Treat the gradients as constants, and keep no graph of them.
    again : bool, default=False
        Compute each step anew in the backward pass instead of keeping what it leaves
        (gradient checkpointing); not under torch.func's transforms.

    Returns
    -------
    dict of tensors
    """

    def step(_, parameters):
        return gradient_step(loss, parameters, learning_rate, first_order, again)

    return repeat(step, parameters, n_steps)


def all_rows(support, query) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features, targets and weights of a task's support and query rows together."""
    weight = None
    if support.weight is not None or query.weight is not None:
        weight = torch.cat(
            [
                torch.ones(len(part.X), dtype=part.X.dtype, device=part.X.device)
                if part.weight is None
                else part.weight.to(part.X.dtype)
                for part in (support, query)
            ]
        )
    X, y = torch.cat([support.X, query.X]), torch.cat([support.y, query.y])
    return X, y, weight


def with_gradient(value: Tensor, parameters: Parameters, gradient: Parameters):
    """A scalar of the value given, whose gradient by the parameters is the one given.

    Parameters
    ----------
    value : scalar tensor
    parameters : dict of tensors
    gradient : dict of tensors
        Of the same shapes; a constant.

    Returns
    -------
    scalar tensor
    """
    linear = sum(
        (gradient[name].detach() * (parameter - parameter.detach())).sum()
        for name, parameter in parameters.items()
    )
    return value.detach() + linear


def conjugate_gradients(
    product: Callable[[Parameters], Parameters],
    b: Parameters,
    n_steps: int,
    least: float = 0.0,
) -> Parameters:
    """Solve A x = b for a symmetric positive definite A, from x = 0.

    Goes no further along a direction in which A is not above `least`, and not once x
    is exact.

    Parameters
    ----------
    product : callable
        v -> A v.
    b : dict of tensors
    n_steps : int
    least : float, default=0.0

    Returns
    -------
    dict of tensors
    """
    x = {name: torch.zeros_like(value) for name, value in b.items()}
    residual = direction = b
    squared = _dot(b, b)
    for _ in range(n_steps):
        image = product(direction)
        curvature = _dot(direction, image)
        enough = least * _dot(direction, direction)
        going = (curvature > enough) & (squared > 0)
        step = torch.where(going, squared / torch.where(going, curvature, 1.0), 0.0)
        x = _plus(x, step, direction)
        residual = _plus(residual, -step, image)
        before, squared = squared, _dot(residual, residual)
        ratio = torch.where(going, squared / torch.where(going, before, 1.0), 0.0)
        direction = _plus(residual, ratio, direction)
    return x


def _dot(a: Parameters, b: Parameters) -> Tensor:
    return sum((a[name] * b[name]).sum() for name in a)


def _plus(a: Parameters, factor: Tensor, b: Parameters) -> Parameters:
    return {name: value + factor * b[name] for name, value in a.items()}
