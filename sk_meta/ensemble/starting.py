"""A plain network, from whose weights a meta-learner starts."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import nn

from sk_meta.base import MetaEstimator
from sk_meta.learner import Learner
from sk_meta.training import TaskNet
from sk_meta.wrapped import WrappedLearner


def check_start(start, inner, frozen):
    """Raise unless `start` is a network, and the learner is one to start from it."""
    network_of(start)
    if frozen:
        raise ValueError(
            "start is where a meta-learner starts that is not fitted; the one in "
            "FrozenEstimator has weights of its own. Leave start out, or pass the "
            "meta-learner itself."
        )
    if not isinstance(inner, MetaEstimator):
        raise TypeError(
            f"With start, meta_learner must be a method such as MAMLClassifier; got "
            f"{type(inner).__name__}. Compress what has been repaired instead."
        )


def network_of(start):
    """A copy of the network of a torch module or a fitted skorch net, on the CPU.

    Raises
    ------
    TypeError
        If there is none.
    """
    network = getattr(start, "module_", start)
    network = network.module if isinstance(network, Learner) else network
    if isinstance(network, nn.Module):
        return deepcopy(network).to("cpu", torch.float32)
    advice = "Pass a trained network"
    if hasattr(start, "module"):
        advice = "Fit it first"
    elif isinstance(start, MetaEstimator | WrappedLearner | FrozenEstimator):
        advice = "A fitted meta-learner is passed as meta_learner, in FrozenEstimator"
    what = f"the class {start.__name__}" if isinstance(start, type) else type(start)
    what = what if isinstance(what, str) else what.__name__
    raise TypeError(
        "start must be a torch.nn.Module, or a skorch net that is fitted; got "
        f"{what}. {advice}."
    )


def started(meta_learner, network, tasks, seed):
    """A meta-learner whose network is that one, without meta-training.

    Targets are not scaled: the network speaks in units of y.

    Raises
    ------
    ValueError
        If the network does not suit the method and the tasks.
    """
    meta = clone(meta_learner)
    meta._check_parameters()
    if meta.random_state is None:
        meta.set_params(random_state=seed)
    make_schema = meta._make_schema

    def unscaled(tasks):
        schema = make_schema(tasks)
        return replace(
            schema,
            target_mean=np.zeros_like(schema.target_mean),
            target_scale=np.ones_like(schema.target_scale),
        )

    _check_network(network, meta, make_schema(tasks))
    net = TaskNet() if meta.net is None else meta.net
    options = net.get_params(deep=False)
    own = {k: v for k, v in options.items() if not k.startswith("module")}
    own.update(max_epochs=0, callbacks=None)
    meta.net = type(net)(network, **own)
    meta._make_schema = unscaled
    try:
        meta.fit(tasks)
    finally:
        del meta._make_schema
    for changed in (meta.net, meta.net_):
        changed.max_epochs = options["max_epochs"]
        changed.callbacks = options["callbacks"]
    meta.net_.initialize_callbacks()
    return meta


def _check_network(network, meta, schema):
    """Raise unless a network of the user's suits the method and the tasks."""
    name, training = type(network).__name__, network.training
    try:
        with torch.no_grad():
            output = network.eval()(torch.zeros(2, *schema.shape))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"start, a {name}, does not take rows of shape {schema.shape}, which these "
            f"tasks have: {error}."
        ) from error
    network.train(training)
    n_outputs = meta._n_network_outputs(schema)
    found = tuple(output.shape) if torch.is_tensor(output) else type(output).__name__
    of_rows = len(found) == 2 and found[0] == 2
    if not of_rows or n_outputs not in (None, found[1]):
        needed = "any number" if n_outputs is None else n_outputs
        raise ValueError(
            f"start, a {name}, turns 2 rows into {found}; {type(meta).__name__} needs "
            f"(2, {needed}) for these tasks. Pass a network with an output for each "
            f"{'class' if schema.classification else 'target'}, or a method that "
            "learns from features, such as R2D2."
        )
