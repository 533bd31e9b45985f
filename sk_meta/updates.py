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
    for _ in range(n_steps):
        parameters = gradient_step(loss, parameters, learning_rate, first_order, again)
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


def squared_distances(Z: Tensor, means: Tensor) -> Tensor:
    """Squared distances (n, n_means) of rows (n, d) to means (n_means, d)."""
    return (Z**2).sum(1, keepdim=True) - 2 * Z @ means.T + (means**2).sum(1)


def prototype_head(Z: Tensor, support) -> tuple[Parameters, Tensor]:
    """The linear layer whose scores order classes as the distance to their means does.

    Parameters
    ----------
    Z : tensor of shape (n, d)
        Embedded support rows.
    support : Support

    Returns
    -------
    head : dict of tensors
        `weight` of shape (n_classes, d), twice the class means, and `bias`
        (n_classes,), minus their squared lengths.
    closed : bool tensor of shape (n_classes,)
        Classes without a support row.
    """
    means, mass = prototypes(Z, support.y, support.weight, support.n_classes)
    return {"weight": 2 * means, "bias": -(means**2).sum(1)}, mass == 0


def closed_outputs(support, n_outputs: int) -> tuple:
    """Mask (n_outputs,) of outputs that a task has no class for; empty if none."""
    if not 0 < support.n_classes < n_outputs:
        return ()
    return (torch.arange(n_outputs, device=support.y.device) >= support.n_classes,)


def shut_out(scores: Tensor, closed: tuple) -> Tensor:
    """Logits with outputs shut out by a mask, if there is one."""
    return scores.masked_fill(closed[0], -1e9) if closed else scores


def weight_of_known(query, support) -> Tensor:
    """Weights of query rows (n,): 0 where the class has no support row."""
    same = query.y[:, None] == support.y
    if support.weight is not None:
        same = same & (support.weight > 0)
    known = same.any(1).to(query.X.dtype)
    return known if query.weight is None else known * query.weight


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
    product: Callable[[Parameters], Parameters], b: Parameters, n_steps: int
) -> Parameters:
    """Solve A x = b for a symmetric positive definite A, from x = 0.

    Goes no further along a direction in which A is not positive, and not once x is
    exact.

    Parameters
    ----------
    product : callable
        v -> A v.
    b : dict of tensors
    n_steps : int

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
        going = (curvature > 0) & (squared > 0)
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


def ridge(A: Tensor, B: Tensor, penalty: Tensor, weight: Tensor | None = None):
    """Weights W that minimise ``|A W - B|^2 + penalty |W|^2``.

    One equation for each row or for each feature is solved, whichever are fewer: the
    same W. In float64.

    Parameters
    ----------
    A : tensor of shape (..., n, p)
    B : tensor of shape (..., n, k)
    penalty : scalar tensor
        Positive.
    weight : tensor of shape (n,) or None
        Of the rows.

    Returns
    -------
    tensor of shape (..., p, k)
    """
    dtype = A.dtype
    A, B, penalty = A.double(), B.double(), penalty.double()
    if weight is not None:
        root = weight.double().sqrt()[:, None]
        A, B = A * root, B * root
    n, p = A.shape[-2:]
    gram = A @ A.mT if n < p else A.mT @ A
    gram = gram + penalty * torch.eye(min(n, p), dtype=A.dtype, device=A.device)
    factor = torch.linalg.cholesky_ex(gram)[0]
    if n < p:
        return (A.mT @ torch.cholesky_solve(B, factor)).to(dtype)
    return torch.cholesky_solve(A.mT @ B, factor).to(dtype)


def logistic_newton(
    A: Tensor,
    Y: Tensor,
    penalty: Tensor,
    weight: Tensor | None = None,
    n_steps: int = 5,
):
    """Newton steps from 0 on penalised logistic regression, each output for itself.

    The loss of an output is ``log loss + penalty / 2 |w|^2``, summed over rows. Each
    step is a ridge regression (iteratively reweighted least squares).

    Parameters
    ----------
    A : tensor of shape (n, p)
    Y : tensor of shape (n, k)
        0 or 1.
    penalty : scalar tensor
        Positive.
    weight : tensor of shape (n,) or None
        Of the rows.
    n_steps : int, default=5

    Returns
    -------
    tensor of shape (p, k)
    """
    dtype = A.dtype
    A, Y = A.double(), Y.double()
    W = torch.zeros_like(A.mT @ Y)
    for _ in range(n_steps):
        scores = A @ W
        share = scores.sigmoid()
        # At least a little: no division by 0 and shorter steps, to the same place.
        root = (share * (1 - share)).clamp_min(1e-4).sqrt()
        target = root * scores + (Y - share) / root
        rows = root.mT[:, :, None] * A
        W = ridge(rows, target.mT[:, :, None], penalty, weight)[:, :, 0].mT
    return W.to(dtype)
