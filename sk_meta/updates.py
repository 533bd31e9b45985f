"""Inner loops that methods share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import grad

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

    Returns
    -------
    dict of tensors
    """
    for _ in range(n_steps):
        if first_order:
            start = {name: value.detach() for name, value in parameters.items()}
        else:
            start = parameters
        gradients = grad(loss)(start)
        if first_order:
            gradients = {name: value.detach() for name, value in gradients.items()}
        parameters = {
            name: value - learning_rate * gradients[name]
            for name, value in parameters.items()
        }
    return parameters


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
