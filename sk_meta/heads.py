"""Heads on embedded rows that methods share: class means, linear systems, masks."""

import torch
from torch import Tensor

from sk_meta.updates import Parameters


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
    # A number that only a traced graph's input decides needs the mask in any case.
    if isinstance(support.n_classes, int) and not 0 < support.n_classes < n_outputs:
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
