"""Omniglot, one shot: prototypical networks, and MAML without convolutions.

    python tests/benchmarks/omniglot.py prototypes [--iterations 8000]
    python tests/benchmarks/omniglot.py maml [--iterations 6000]

Meta-training on the background alphabets, rotations by 90 degrees counting as classes
of their own; five of these alphabets are left out for validation. The evaluation ones
are used once, at the end: 600 episodes with characters drawn from all of them, 5-way
1-shot with 15 query rows a class, inductive (a prediction does not depend on the other
query rows); and, the harder protocol, 20-way with characters of one alphabet.
Writes docs/results/omniglot_<method>.md.
"""

import argparse
from time import perf_counter

import numpy as np
import torch
from pages import write_page
from skorch.callbacks import LRScheduler

from sk_meta import (
    EpisodeSampler,
    MAMLClassifier,
    PrototypicalClassifier,
    TaskNet,
    evaluate,
    split_classes,
)
from sk_meta.datasets import load_omniglot
from sk_meta.metrics import mean_interval
from sk_meta.networks import MLP


def with_rotations(data, target):
    """Every character in four orientations, each a class of its own."""
    turned = [np.rot90(data, turns, axes=(2, 3)) for turns in range(4)]
    labels = [np.char.add(target.astype(str), f"/{90 * turns}") for turns in range(4)]
    return np.concatenate(turned), np.concatenate(labels)


def with_shifts(X, y):
    """Every drawing, and four copies moved by one pixel along the diagonals."""
    moves = [(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    moved = [np.roll(X, move, axis=(2, 3)) for move in moves]
    return np.concatenate(moved), np.tile(y, len(moves))


def decaying(iterations):
    """The learning rate falls to 0 along a cosine."""
    return [
        LRScheduler("CosineAnnealingLR", T_max=iterations, step_every="batch"),
    ]


def prototypes(X, y, iterations):
    """Conv4, training episodes with more ways than the test (Snell et al., 2017)."""
    episodes = EpisodeSampler(
        X, y, n_way=20, n_shot=1, n_query=3, n_episodes=iterations
    )
    net = TaskNet(max_epochs=1, batch_size=1, lr=2e-3, callbacks=decaying(iterations))
    return PrototypicalClassifier(net, random_state=0), episodes


def maml(X, y, iterations):
    """A multilayer perceptron with layer normalisation (Finn et al., 2017)."""
    batch_size = 16
    X, y = with_shifts(X, y)
    episodes = EpisodeSampler(
        X, y, n_way=5, n_shot=1, n_query=5, n_episodes=iterations * batch_size
    )
    net = TaskNet(
        MLP,
        module__hidden=(256, 128, 64, 64),
        module__normalization="layer",
        lr=1e-3,
        max_epochs=1,
        batch_size=batch_size,
        callbacks=decaying(iterations),
    )
    return MAMLClassifier(net, inner_lr=1.0, random_state=0), episodes


def main():
    """Train, evaluate once, print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--iterations", type=int)
    options = parser.parse_args()
    make, default = METHODS[options.method]
    iterations = options.iterations or default
    old, new = (load_omniglot(split=split) for split in ("background", "evaluation"))
    rows, held_out = split_classes(
        old.target, test_size=5, groups=old.groups, random_state=0
    )
    meta, episodes = make(*with_rotations(old.data[rows], old.target[rows]), iterations)
    start = perf_counter()
    meta.fit(episodes)
    minutes = (perf_counter() - start) / 60
    few = {"n_way": 5, "n_shot": 1, "n_query": 15, "n_episodes": 600}
    many = {"n_way": 20, "n_shot": 1, "n_query": 5, "n_episodes": 600}
    protocols = {
        "5-way 1-shot, 5 validation alphabets": EpisodeSampler(
            old.data[held_out], old.target[held_out], **few, random_state=1
        ),
        "5-way 1-shot, all evaluation alphabets": EpisodeSampler(
            new.data, new.target, **few, random_state=2
        ),
    }
    if options.method == "prototypes":  # any number of classes
        protocols["20-way 1-shot, all evaluation alphabets"] = EpisodeSampler(
            new.data, new.target, **many, random_state=3
        )
        protocols["20-way 1-shot, within an evaluation alphabet"] = EpisodeSampler(
            new.data, new.target, **many, groups=new.groups, random_state=3
        )
    lines = [
        f"# Omniglot: {type(meta).__name__}",
        "",
        f"`python tests/benchmarks/omniglot.py {options.method} --iterations "
        f"{iterations}`",
        "",
        f"{iterations} meta-iterations in {minutes:.1f} minutes, "
        f"{torch.get_num_threads()} thread(s) of a shared CPU. Inductive.",
        "",
        "| episodes | accuracy, % |",
        "|---|---|",
    ]
    for name, sampler in protocols.items():
        mean, half = mean_interval(100 * evaluate(meta, sampler).scores)
        lines.append(f"| {name} | {mean:.2f} ± {half:.2f} |")
    write_page(f"omniglot_{options.method}", lines)


METHODS = {"prototypes": (prototypes, 8000), "maml": (maml, 6000)}

if __name__ == "__main__":
    main()
