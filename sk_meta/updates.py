"""Inner loops that methods share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.utils.checkpoint import checkpoint

Parameters = dict[str, Tensor]


def trainable(module: nn.Module) -> Parameters:
    """Parameters that may change; those frozen by the user stay as they are."""
    return {
        name: value for name, value in module.named_parameters() if value.requires_grad
    }


def gradient_descent(
    loss: Callable[[Parameters], Tensor],
    parameters: Parameters,
    learning_rate: float | Tensor,
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
    learning_rate : float or scalar tensor
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
        return tuple(
            value - learning_rate * gradients[name]
            for name, value in parameters.items()
        )

    values = tuple(parameters.values())
    for _ in range(n_steps):
        values = (
            checkpoint(step, *values, use_reentrant=False) if again else step(*values)
        )
    return dict(zip(names, values, strict=True))


def prototypes(Z: Tensor, y: Tensor, weight: Tensor | None, n_classes: int):
    """Class means of embedded rows.

    Parameters
    ----------
    Z : tensor of shape (n, d)
    y : int tensor of shape (n,)
        A label outside [0, n_classes) belongs to no class.
    weight : tensor of shape (n,) or None
    n_classes : int

    Returns
    -------
    means : tensor of shape (n_classes, d)
        Zero for a class without rows.
    mass : tensor of shape (n_classes,)
        Summed weight of the rows of each class.
    """
    member = (y[:, None] == torch.arange(n_classes, device=y.device)).to(Z.dtype)
    if weight is not None:
        member = member * weight[:, None]
    mass = member.sum(0)
    return (member.T @ Z) / mass.clamp_min(1e-12)[:, None], mass
