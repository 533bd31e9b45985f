"""How each method is trained on Omniglot: network, episodes, learning rates."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from skorch.callbacks import GradientNormClipping, LRScheduler

from sk_meta import (
    ANILClassifier,
    EpisodeSampler,
    HypernetworkClassifier,
    IMAMLClassifier,
    InContextClassifier,
    JointClassifier,
    MAMLClassifier,
    MatchingClassifier,
    MetaSGDClassifier,
    ProtoMAMLClassifier,
    PrototypicalClassifier,
    R2D2Classifier,
    RelationClassifier,
    ReptileClassifier,
    TaskNet,
)
from sk_meta.networks import MLP


class Method(NamedTuple):
    """A recipe.

    Attributes
    ----------
    make : callable
        (X, y, iterations, ways) -> meta-learner, EpisodeSampler.
    iterations : int
        Outer steps.
    any_way : bool
        Whether it takes more classes than the training episodes have.
    name : str
        In the table, where the class's name does not say it.
    """

    make: Callable
    iterations: int
    any_way: bool = True
    name: str = ""


def with_shifts(X, y):
    """Every drawing, and four copies moved by one pixel along the diagonals."""
    moves = [(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    moved = [np.roll(X, move, axis=(2, 3)) for move in moves]
    return np.concatenate(moved), np.tile(y, len(moves))


def decaying(iterations):
    """The learning rate falls to 0 along a cosine."""
    return [LRScheduler("CosineAnnealingLR", T_max=iterations, step_every="batch")]


def conv_net(iterations, lr, batch_size=1, **options):
    """Conv4 in bfloat16, one pass over the episodes."""
    return TaskNet(
        max_epochs=1,
        batch_size=batch_size,
        lr=lr,
        callbacks=decaying(iterations),
        precision="bfloat16",
        **options,
    )


def embedding(kind, lr=3e-3, n_query=5, **options):
    """A recipe for methods on embeddings: one 20-way episode in each step.

    More ways in training than in the test, as in Snell et al. (2017).
    """

    def make(X, y, iterations, ways):
        episodes = EpisodeSampler(
            X, y, n_way=20, n_shot=1, n_query=n_query, n_episodes=iterations
        )
        net = conv_net(iterations, lr)
        return kind(net, random_state=0, **options), episodes

    return make


def steps(kind, batch_size, lr=3e-3, n_shot=1, n_query=5, **options):
    """A recipe for methods whose inner loop changes the network."""

    def make(X, y, iterations, ways):
        episodes = EpisodeSampler(
            X,
            y,
            n_way=ways,
            n_shot=n_shot,
            n_query=n_query,
            n_episodes=iterations * batch_size,
        )
        net = conv_net(iterations, lr, batch_size)
        return kind(net, random_state=0, **options), episodes

    return make


def maml_without_convolutions(X, y, iterations, ways):
    """A multilayer perceptron with layer normalisation (Finn et al., 2017)."""
    batch_size = 16
    X, y = with_shifts(X, y)
    episodes = EpisodeSampler(
        X, y, n_way=ways, n_shot=1, n_query=5, n_episodes=iterations * batch_size
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


def implicit_maml(X, y, iterations, ways):
    """Gradients are clipped: now and then the implicit one is very long."""
    make = steps(
        IMAMLClassifier,
        2,
        lr=1e-3,
        regularization=0.5,
        inner_lr=0.4,
        n_inner_steps=8,
        n_cg_steps=4,
    )
    meta, episodes = make(X, y, iterations, ways)
    clip = ("clip", GradientNormClipping(1.0))
    return meta.set_params(net__callbacks=[*meta.net.callbacks, clip]), episodes


METHODS = {
    "prototypes": Method(embedding(PrototypicalClassifier), 14_000),
    "matching": Method(embedding(MatchingClassifier), 14_000),
    "matching_full_context": Method(
        embedding(MatchingClassifier, full_context=True),
        14_000,
        name="MatchingClassifier, full context",
    ),
    "relation": Method(embedding(RelationClassifier), 10_000),
    "r2d2": Method(embedding(R2D2Classifier), 10_000),
    "anil": Method(
        embedding(ANILClassifier, head="prototypes", inner_lr=0.1),
        4000,
        name="ANILClassifier, head from prototypes",
    ),
    "in_context": Method(embedding(InContextClassifier), 7000),
    "hypernetwork": Method(embedding(HypernetworkClassifier), 7000),
    "proto_maml": Method(
        embedding(ProtoMAMLClassifier, inner_lr=0.01, first_order=True), 5000
    ),
    "metasgd": Method(steps(MetaSGDClassifier, 4, inner_lr=0.1), 2500, False),
    "reptile": Method(
        steps(
            ReptileClassifier,
            4,
            n_shot=5,
            inner_lr=0.2,
            n_inner_steps=5,
            n_adapt_steps=10,
            inner_batch_size=10,
        ),
        5000,
        False,
    ),
    "imaml": Method(implicit_maml, 4500, False),
    "joint": Method(
        steps(JointClassifier, 4, adapt_lr=0.1, n_adapt_steps=10),
        1500,
        False,
        "JointClassifier, fine-tuned",
    ),
    "maml": Method(
        maml_without_convolutions, 6000, False, "MAMLClassifier, no convolutions"
    ),
}
