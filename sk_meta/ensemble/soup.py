"""Fitted members joined by their parameters."""

from copy import deepcopy

import numpy as np
import torch

from sk_meta.base import MetaEstimator
from sk_meta.engine.batching import task_losses
from sk_meta.ensemble.weights import given, minimum_on_simplex
from sk_meta.tasks.stacking import MetaBatches
from sk_meta.wrapped import unwrapped

_BATCH = 32  # tasks


class Soup:
    """One learner in the place of many.

    Parameters
    ----------
    meta : meta-learner
    weights : array of shape (n_members,)
    """

    def __init__(self, meta, weights):
        self.meta, self.weights = meta, weights

    def adapt(self, support):
        """See `TaskByTask`."""
        return self.meta.adapt_state(*support[:4])[0]

    def portable(self, state):
        """See `TaskByTask`."""
        return self.meta.portable_state(state)

    def apply(self, state, X, n_classes):
        """See `TaskByTask`."""
        return self.meta.apply_state(state, X, n_classes)

    def predict_tasks(self, tasks):
        """See `TaskByTask`."""
        return self.meta.predict_tasks(tasks)


def soup_of(members, weights, tasks):
    """One learner with the weighted mean of the members' parameters.

    Parameters
    ----------
    members : list of Member
    weights : "uniform", "learned" or array of shape (n_members,)
    tasks : list of Task, or EpisodeSampler

    Returns
    -------
    Soup

    References
    ----------
    Wortsman et al. (2022), Model Soups: Averaging Weights of Multiple Fine-tuned Models
    Improves Accuracy without Increasing Inference Time.
    """
    metas = [unwrapped(member.meta) for member in members]
    check_ingredients(members, metas)
    soup = deepcopy(metas[0])
    states = [meta.learner_.state_dict() for meta in metas]
    dataset = soup._later_dataset(tasks)

    def stir(weights):
        soup.learner_.load_state_dict(_mean_state(states, weights))
        _renew_statistics(soup.learner_, dataset)

    def loss(weights):
        stir(np.clip(weights, 0, None))
        batches = MetaBatches(dataset, _BATCH)
        with torch.no_grad():
            losses = [task_losses(soup.learner_, b, training=False)[0] for b in batches]
        return float(torch.cat(losses).double().mean())

    if isinstance(weights, str) and weights == "learned":
        n = len(members)
        found = minimum_on_simplex(loss, n, gradient=False)
        # Not convex: no worse than all alike, or one alone.
        weights = min((found, np.full(n, 1 / n), *np.eye(n)), key=loss)
    weights = given(weights, len(members))
    stir(weights)
    return Soup(soup, weights)


def _mean_state(states, weights):
    mean = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            stacked = torch.stack([state[name] for state in states])
            share = torch.as_tensor(weights, dtype=first.dtype, device=first.device)
            mean[name] = torch.tensordot(share, stacked, 1)
        else:
            mean[name] = first
    return mean


@torch.no_grad()
def _renew_statistics(learner, dataset):
    """Running statistics of normalisation are those of the mean parameters."""
    running = [norm for norm in learner.norms if norm.running_mean is not None]
    if not running:
        return
    momenta = [norm.momentum for norm in running]
    for norm in running:
        norm.num_batches_tracked.zero_()
        norm.momentum = None  # plain mean over all batches
    learner.train()
    for batch in MetaBatches(dataset, _BATCH):
        learner.update_running(task_losses(learner, batch, training=True)[1])
    learner.eval()
    for norm, momentum in zip(running, momenta, strict=True):
        norm.momentum = momentum


def check_ingredients(members, metas):
    """Raise unless the parameters of the members can be averaged."""
    first, first_meta = members[0], metas[0]
    for member, meta in zip(members, metas, strict=True):
        if member.steps:
            raise ValueError(
                f"{member.name!r} is a Pipeline; a soup has one set of parameters. Put "
                "the FusionClassifier or FusionRegressor at the end of the Pipeline."
            )
        if not isinstance(meta, MetaEstimator):
            raise TypeError(
                f"{member.name!r} is a {type(meta).__name__}, which has no network "
                "whose parameters could be averaged. Use how='average'."
            )
        why = _difference(meta, first_meta)
        if why:
            raise ValueError(
                f"{member.name!r} and {first.name!r} cannot be made into a soup: {why}."
                " Only parameters of one architecture can be averaged; use "
                "how='average' for others."
            )


def _difference(meta, first):
    if type(meta) is not type(first):
        return f"one is a {type(meta).__name__}, the other a {type(first).__name__}"
    shapes, others = (
        {name: tuple(value.shape) for name, value in m.learner_.state_dict().items()}
        for m in (meta, first)
    )
    if shapes != others:
        odd = sorted(set(shapes.items()) ^ set(others.items()))[0][0]
        return (
            f"their parameter {odd!r} has the shapes {shapes.get(odd)} and "
            f"{others.get(odd)}"
        )
    if str(meta.learner_.module) != str(first.learner_.module):
        return "their networks have the same parameters, but other layers"
    for name in ("target_mean", "target_scale"):
        if not np.allclose(getattr(meta.schema_, name), getattr(first.schema_, name)):
            return "they scale targets differently, as they were fitted on other tasks"
    return None
