"""Meta-batches of the timed workloads, written to files that both sides read."""

from functools import cache

import numpy as np
from peer_networks import save_batches

from sk_meta import EpisodeSampler
from sk_meta.datasets import load_omniglot
from sk_meta.tasks import make_sinusoids


def write_tasks(path, network, n_tasks, n_batches):
    """Write meta-batches of `n_tasks` for the network of a workload."""
    make = _sinusoids if network == "sine" else _episodes
    save_batches(path, make(network, n_tasks, n_batches))


def _sinusoids(network, n_tasks, n_batches):
    """Ten support and ten query rows; targets of each meta-batch standardised.

    MAMLRegressor scales targets over all tasks: so that this changes nothing.
    """
    tasks = make_sinusoids(n_tasks * n_batches, random_state=0)
    X = np.stack([task.X for task in tasks]).reshape(n_batches, n_tasks, 20, 1)
    y = np.stack([task.y for task in tasks]).reshape(X.shape)
    y -= y.mean(axis=(1, 2), keepdims=True)
    y /= y.std(axis=(1, 2), keepdims=True)
    for rows, targets in zip(X, y, strict=True):
        yield rows[:, :10], targets[:, :10], rows[:, 10:], targets[:, 10:]


@cache
def _omniglot():
    return load_omniglot()


def _episodes(network, n_tasks, n_batches):
    """One-shot episodes; labels are 0, 1, ... in all of them."""
    data = _omniglot()
    n_way, n_query = (60, 5) if network == "proto60" else (5, 15)
    episodes = EpisodeSampler(
        data.data,
        data.target,
        n_way=n_way,
        n_query=n_query,
        n_episodes=n_tasks * n_batches,
    )
    for start in range(0, len(episodes), n_tasks):
        yield _stacked(episodes[start : start + n_tasks], network == "omniglot")


def _stacked(episodes, flat):
    """Rows ordered by class, as the peers' prototypes take for granted."""
    parts = []
    for attributes in (("X_support", "y_support"), ("X_query", "y_query")):
        X, y = (np.stack([getattr(e, a) for e in episodes]) for a in attributes)
        y = np.stack([np.unique(labels, return_inverse=True)[1] for labels in y])
        order = np.argsort(y, axis=1, kind="stable")
        X = np.stack([rows[by] for rows, by in zip(X, order, strict=True)])
        X = X.reshape(*X.shape[:2], -1) if flat else X
        parts += [X, np.take_along_axis(y, order, axis=1)]
    return parts
