"""How much each member counts: by validation tasks, or by the support set at hand."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from sk_meta.predictions import scored_rows

_LEAST = 1e-6  # probability of a class that a member rules out


def log_scores(found):
    """Log likelihood of the labelled query rows of one TaskPrediction.

    Parameters
    ----------
    found : TaskPrediction
        Of a classifier, or of a regressor with std.

    Returns
    -------
    array of shape (n,)
        Summed over targets.
    """
    y, rows, _ = scored_rows(found)
    values = found.values[rows]
    if found.classes is not None:
        chosen = values[np.arange(len(y)), np.searchsorted(found.classes, y)]
        return np.log(np.clip(chosen, _LEAST, None))
    std = found.std[rows]
    density = -0.5 * ((y - values) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    return density.reshape(len(density), -1).sum(axis=1)


def residuals(found):
    """Errors of the labelled query rows of a regressor, (n, n_targets)."""
    y, rows, _ = scored_rows(found)
    return (found.values[rows] - y).reshape(len(y), -1)


def _weights_of_rows(found):
    """Of the labelled query rows, as the task has them."""
    y, _, weight = scored_rows(found)
    return np.ones(len(y)) if weight is None else weight


def row_weights(found):
    """The same, of sum 1."""
    weight = _weights_of_rows(found)
    return weight / weight.sum()


def by_likelihood(by_member):
    """Whether the members give what a likelihood needs: probabilities, or all a std."""
    return all(
        found.classes is not None or found.std is not None
        for predictions in by_member
        for found in predictions
    )


def simplex_weights(by_member):
    """Weights of members, none negative and of sum 1, of least query loss.

    The loss is that of what the weights make of the members: minus the log likelihood
    of the mixture, or the squared error of the mean where a member gives no std. Both
    are convex in the weights. Each task counts alike.

    Parameters
    ----------
    by_member : list of list of TaskPrediction
        For each member, one for each task.

    Returns
    -------
    array of shape (n_members,)
    """
    tasks = list(zip(*by_member, strict=True))
    share = np.concatenate([row_weights(task[0]) for task in tasks]) / len(tasks)
    if by_likelihood(by_member):
        logs = np.array([np.concatenate([*map(log_scores, m)]) for m in by_member])
        return minimum_on_simplex(lambda w: _mixture_loss(w, logs, share), len(logs))
    errors = np.array([np.concatenate([*map(residuals, m)]) for m in by_member])
    scale = np.sqrt((errors[0] ** 2).mean(axis=0))
    errors = errors / np.where(scale > 0, scale, 1)
    products = np.einsum("knt,lnt,n->kl", errors, errors, share)
    return minimum_on_simplex(
        lambda w: (w @ products @ w, 2 * products @ w), len(errors)
    )


def _mixture_loss(weights, logs, share):
    """Minus the mean log of the mixture, and its gradient."""
    total = logsumexp(logs, axis=0, b=np.maximum(weights, 1e-12)[:, None])
    return -(share @ total), -(np.exp(logs - total) @ share)


def minimum_on_simplex(loss, n, gradient=True):
    """Where a function of weights, none negative and of sum 1, is smallest.

    Parameters
    ----------
    loss : callable
        weights -> value, or (value, gradient).
    n : int
    gradient : bool, default=True
        Whether `loss` returns it; else finite differences.

    Returns
    -------
    array of shape (n,)
    """
    found = minimize(
        loss,
        np.full(n, 1 / n),
        jac=gradient,
        method="SLSQP",
        bounds=[(0, 1)] * n,
        constraints={
            "type": "eq",
            "fun": lambda w: w.sum() - 1,
            "jac": lambda w: np.ones(n),
        },
        options={"ftol": 1e-9, "maxiter": 200} | ({} if gradient else {"eps": 1e-2}),
    )
    weights = np.clip(found.x, 0, None)
    return weights / weights.sum()


def support_weights(by_member):
    """Weights of members by how well each predicts support rows that it was not shown.

    Proportional to the likelihood of the rows left out, one after the other: Bayes'
    rule with the leave-one-out likelihood for evidence, all members equally likely
    beforehand. Where a member gives no std, the errors of each are taken as normal,
    with the variance that they show.

    Parameters
    ----------
    by_member : list of list of TaskPrediction
        For each member, one for each row left out; equal weights if there is none.

    Returns
    -------
    array of shape (n_members,)

    References
    ----------
    Yao, Vehtari, Simpson, Gelman (2018), Using Stacking to Average Bayesian Predictive
    Distributions, section 3.3, pseudo-Bayesian model averaging.
    """
    if not by_member[0]:
        return np.full(len(by_member), 1 / len(by_member))
    share = np.concatenate([*map(_weights_of_rows, by_member[0])])
    share = share / share.mean()
    if by_likelihood(by_member):
        logs = np.array([np.concatenate([*map(log_scores, m)]) for m in by_member])
        return softmax(logs @ share)
    errors = np.array([np.concatenate([*map(residuals, m)]) for m in by_member])
    squared = (errors**2 * share[:, None]).mean(axis=1)
    squared = np.maximum(squared, 1e-12 * squared.max(axis=0) + 1e-300)
    return softmax(-0.5 * errors.shape[1] * np.log(squared).sum(axis=1))


def given(weights, n_members):
    """Weights that sum to 1, from what a user wrote; None stays None."""
    if weights is None:
        return None
    if isinstance(weights, str):  # "uniform"
        return np.full(n_members, 1 / n_members)
    try:
        weights = np.asarray(weights, dtype=float)
    except TypeError:
        weights = np.array(weights, dtype=object)
    fits = (
        weights.dtype == float
        and weights.shape == (n_members,)
        and np.isfinite(weights).all()
    )
    if not fits or (weights < 0).any() or not weights.any():
        raise ValueError(
            f"weights must be {n_members} numbers of at least 0, one for each of the "
            f"learners, and not all 0; got {weights.tolist()!r:.80}."
        )
    return weights / weights.sum()
