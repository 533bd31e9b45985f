"""Meta-gradients of a learner, and the finite differences that they must equal."""

import torch
from torch import nn

from sk_meta.engine.batching import task_losses

TOLERANCE = 1e-6


def mean_loss(learner, batch):
    return task_losses(learner, batch)[0].mean()


def meta_gradient(learner, batch, way):
    """The gradient by all meta-parameters, in one vector."""
    learner.way = way
    # Layer by layer is what is compared here: no quiet change of mind before.
    learner.checked = learner.forced = way == "layers"
    learner.zero_grad()
    mean_loss(learner, batch).backward()
    return torch.cat([p.grad.flatten() for p in learner.parameters()])


def slopes(learner, batch, directions, step=1e-6):
    """Directional derivatives by central differences, task after task."""
    learner.way = "loop"
    start = nn.utils.parameters_to_vector(learner.parameters()).detach()

    def at(vector):
        nn.utils.vector_to_parameters(vector, learner.parameters())
        with torch.no_grad():
            return mean_loss(learner, batch)

    found = [
        (at(start + step * d) - at(start - step * d)) / (2 * step) for d in directions
    ]
    at(start)
    return torch.stack(found)


def deviation(learner, batch, way, n_directions=2):
    """Largest error of the meta-gradient along random directions, relative to it."""
    gradient = meta_gradient(learner, batch, way)
    directions = torch.randn(n_directions, len(gradient), dtype=gradient.dtype)
    error = directions @ gradient - slopes(learner, batch, directions)
    return float(error.abs().max() / gradient.norm())
