"""What each method tries on sinusoids."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from skorch.callbacks import LRScheduler
from torch import nn

from sk_meta import (
    ALPaCARegressor,
    ANILRegressor,
    AttentiveNeuralProcessRegressor,
    BOILRegressor,
    ConditionalNeuralProcessRegressor,
    DKTRegressor,
    HypernetworkRegressor,
    IMAMLRegressor,
    InContextRegressor,
    JointRegressor,
    MAMLRegressor,
    MetaSGDRegressor,
    R2D2Regressor,
    ReptileRegressor,
    TaskNet,
)

STEPS = 1, 2, 5, 10, 20


class Method(NamedTuple):
    """A recipe.

    Attributes
    ----------
    make : callable
        (iterations, n_epochs, batch_size, **setting) -> meta-learner.
    grid : dict
        Settings to try.
    steps : bool
        Whether the number of steps in `adapt` is to be chosen.
    has_std : bool
    note : str
        What the class's name does not say.
    """

    make: Callable
    grid: dict
    steps: bool = False
    has_std: bool = False
    note: str = ""


def recipe(kind, **fixed):
    """Adam with a learning rate that falls to 0; other settings are the method's."""

    def make(iterations, n_epochs, batch_size, lr, activation="tanh", **setting):
        decay = LRScheduler("CosineAnnealingLR", T_max=iterations, step_every="batch")
        net = TaskNet(
            module__hidden=(40, 40),
            module__activation={"relu": nn.ReLU, "tanh": nn.Tanh}[activation],
            lr=lr,
            max_epochs=n_epochs,
            batch_size=batch_size,
            callbacks=[("decay", decay)],
        )
        return kind(net, random_state=0, **fixed, **setting)

    return make


def gradient(kind, inner_lr=(0.01, 0.1), **fixed):
    """A gradient learner, with the paper's ReLU network."""
    make = partial(recipe(kind, **fixed), activation="relu")
    return Method(make, {"lr": [1e-3, 3e-3], "inner_lr": inner_lr}, steps=True)


def direct(kind, has_std=True, **grid):
    """A learner without an inner loop."""
    return Method(recipe(kind), {"lr": [1e-3, 3e-3], **grid}, has_std=has_std)


METHODS = {
    "maml": gradient(MAMLRegressor),
    "metasgd": gradient(MetaSGDRegressor),
    "boil": gradient(BOILRegressor),
    "anil": gradient(ANILRegressor),
    "reptile": gradient(ReptileRegressor, n_inner_steps=5),
    "imaml": gradient(IMAMLRegressor, n_inner_steps=10),
    "joint": Method(
        partial(recipe(JointRegressor), activation="relu"),
        {"lr": [1e-3, 3e-3], "adapt_lr": [0.01, 0.1]},
        steps=True,
    ),
    "alpaca": direct(ALPaCARegressor),
    "r2d2": direct(R2D2Regressor, has_std=False),
    "dkt": direct(DKTRegressor),
    "cnp": direct(ConditionalNeuralProcessRegressor),
    "anp": direct(AttentiveNeuralProcessRegressor),
    "in_context": direct(InContextRegressor),
    "hypernetwork": direct(HypernetworkRegressor),
}
