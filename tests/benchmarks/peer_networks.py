"""The networks that are timed, written as users write them, and the tasks on disk.

Needs torch and numpy alone: both sides of the benchmark read this file.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class SineNet(nn.Module):
    """1-40-40-1, as in Finn et al. (2017)."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(1, 40)
        self.second = nn.Linear(40, 40)
        self.last = nn.Linear(40, 1)

    def forward(self, X):
        """(n, 1) -> (n, 1)."""
        return self.last(F.relu(self.second(F.relu(self.first(X)))))


class OmniglotNet(nn.Module):
    """784-256-128-64-64-5 with batch statistics, as in Finn et al. (2017)."""

    def __init__(self):
        super().__init__()
        widths = (784, 256, 128, 64, 64)
        self.linears = nn.ModuleList(map(nn.Linear, widths[:-1], widths[1:]))
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(width, track_running_stats=False) for width in widths[1:]
        )
        self.head = nn.Linear(64, 5)

    def forward(self, X):
        """(n, 784) -> (n, 5)."""
        for linear, norm in zip(self.linears, self.norms, strict=True):
            X = F.relu(norm(linear(X)))
        return self.head(X)


class ConvNet(nn.Module):
    """Four blocks of 64 filters, as in Vinyals et al. (2016)."""

    def __init__(self, n_outputs=5, running=False):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, 64, 3, padding=1) for channels in (1, 64, 64, 64)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(64, track_running_stats=running) for _ in range(4)
        )
        self.head = nn.Linear(64, n_outputs) if n_outputs else nn.Identity()

    def forward(self, X):
        """(n, 1, 28, 28) -> (n, n_outputs), or (n, 64) without outputs."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            X = F.max_pool2d(F.relu(norm(convolution(X))), 2)
        return self.head(X.flatten(1))


def embedding_net():
    """The convolutional network as prototypical networks use it."""
    return ConvNet(n_outputs=None, running=True)


NETWORKS = {
    "sine": SineNet,
    "omniglot": OmniglotNet,
    "conv4": ConvNet,
    "proto5": embedding_net,
    "proto60": embedding_net,
}


def make_network(workload):
    """The network of a workload; its initial weights are the same on both sides."""
    torch.manual_seed(0)
    return NETWORKS[workload]()


def save_batches(path, batches):
    """Write meta-batches (X_support, y_support, X_query, y_query) to an .npz file."""
    np.savez(
        path,
        **{
            f"{index}_{part}": array
            for index, batch in enumerate(batches)
            for part, array in enumerate(batch)
        },
    )


def load_batches(path):
    """Read them again: a list of tuples of four arrays, each (n_tasks, n, ...)."""
    with np.load(path) as arrays:
        return [
            tuple(arrays[f"{index}_{part}"] for part in range(4))
            for index in range(len(arrays.files) // 4)
        ]
