"""What a fitted meta-learner consists of, and how it is put together again."""

import warnings
from copy import copy, deepcopy
from dataclasses import fields
from functools import partial

import numpy as np
import torch
from sklearn.base import clone
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from sk_meta.networks import BatchNorm, InstanceNorm, LayerNorm
from sk_meta.saving.known import LAYERS, classes_for
from sk_meta.tasks.metadata import Description
from sk_meta.tasks.validation import Schema
from sk_meta.training import TaskNet, seeded

_MOST_STEPS = 10_000  # of a loop in `adapt`
_MAY_SHRINK = (nn.Linear, _ConvNd, BatchNorm, InstanceNorm, LayerNorm, nn.ParameterList)


def fitted_state(meta, where):
    """A fitted meta-learner as a dict of values; see `restore`.

    Parameters
    ----------
    meta : meta-learner
        Fitted.
    where : str
        How messages call it.
    """
    net, learner = meta.net_, meta.learner_
    options = getattr(net.make_learner_, "keywords", {})
    return {
        "schema": {
            part.name: getattr(meta.schema_, part.name) for part in fields(Schema)
        },
        "net": net,
        "options": options,
        "layers": _changed_layers(meta, where),
        "weights": {name: old for name, _, _, old in _slots(learner)},
        "way": (learner.way, learner.why, learner.checked),
        "history": [_plain(row) for row in net.history],
        "seed": net.seed_,
        "next_seed": int(deepcopy(net.rng_).integers(2**62)),
    }


def restore(meta, state):
    """Make an unfitted meta-learner what it was when it was saved.

    Parameters
    ----------
    meta : meta-learner
        Changed in place.
    state : dict
        As from `fitted_state`, but any value may be wrong: it comes from a file.
    """
    meta._check_parameters()
    schema = _checked_schema(meta, state["schema"])
    net = _fresh_net(meta, schema, _on_this_machine(state["net"]))
    net.make_learner_ = _checked_maker(meta, schema, state["options"])
    weights = state["weights"]

    def build():
        with _Budget(2_000 + 200 * len(weights)), seeded(0, "cpu"):
            _build_without_numbers(net)
            if "calibration" in weights:
                net.module_.calibrate(1.0)
            _change_layers(net.module_, state["layers"])
            _check_shapes(net, net.module_, weights)
        _fill(net.module_, weights)
        return net

    net.initialize_module = build  # skorch takes modules in this hook alone
    try:
        with seeded(0, net.device):
            net.initialize()
    finally:
        del net.initialize_module
    _resume(net, state)
    meta._take(net, schema)
    meta._tables_of_fit = set()


class _Budget(TorchDispatchMode):
    """So many operations, and no more: a file may ask for a million layers."""

    def __init__(self, n_operations):
        super().__init__()
        self.left = n_operations

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Count one."""
        self.left -= 1
        if self.left < 0:
            raise ValueError("The network has many more layers than the file weights.")
        return function(*args, **(kwargs or {}))


def _fresh_net(meta, schema, net):
    """The TaskNet that `fit` would make of another `net`, before training."""
    meta = copy(meta)
    meta.net = clone(net).set_params(callbacks=None)
    net = meta._make_net()
    net.input_shape_, net.n_outputs_ = schema.shape, meta._n_network_outputs(schema)
    return net


def _on_this_machine(net):
    device = torch.device(net.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        warnings.warn(
            f"The net was trained on {net.device!r}; torch finds no such device here, "
            "so it is on the CPU.",
            stacklevel=2,
        )
        device = torch.device("cpu")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"The file asks for the device {net.device!r:.60}.")
    return clone(net).set_params(device=str(device))


def _build_without_numbers(net):
    """The learner before training, on torch's meta device: its size costs nothing.

    A network of the user's own that cannot be built so is built with its numbers.
    """
    own = net.module not in (None, *classes_for("module").values())
    try:
        with torch.device("meta"):
            TaskNet.initialize_module(net)
        hidden = own and any(
            torch.is_tensor(value) and value.is_meta
            for layer in net.module_.modules()
            for value in vars(layer).values()
        )
    except Exception:
        if not own:
            raise
        hidden = True
    if hidden:
        TaskNet.initialize_module(net)


def _slots(learner):
    """Name, owner, dict and tensor of parameters and buffers; shared ones once."""
    seen = set()
    for owner_name, owner in learner.named_modules():
        for store in (owner._parameters, owner._buffers):
            for key, old in store.items():
                if old is not None and id(old) not in seen:
                    seen.add(id(old))
                    yield f"{owner_name}.{key}".lstrip("."), owner, store, old


def _changed_layers(meta, where):
    """Names of layers that compression has put in the place of others, and by what."""
    net = _fresh_net(meta, meta.schema_, meta.net_)
    net.make_learner_ = meta.net_.make_learner_
    with seeded(0, net.device):
        net.initialize()
    kinds = {name: type(layer) for name, layer in net.module_.named_modules()}
    changed = {}
    for name, layer in meta.learner_.named_modules():
        kind = type(layer)
        if kind is not kinds.get(name):
            if LAYERS.get(kind.__name__) is not kind:
                raise TypeError(
                    f"{where}: layer {name!r} of the learner is a {kind.__name__}, "
                    "which its parameters do not make. Such a learner cannot be saved "
                    "without pickle; use joblib.dump."
                )
            changed[name] = kind.__name__
    return changed


def _change_layers(learner, changed):
    for name, kind in changed.items():
        layer, kind = learner.get_submodule(name), LAYERS[kind]
        if not issubclass(kind, type(layer)):
            raise ValueError(f"Layer {name!r} cannot be a {kind.__name__}.")
        layer.__class__ = kind
        mask = torch.empty_like(layer.weight, dtype=torch.bool)
        layer.register_buffer("mask", mask, persistent=False)


def _check_shapes(net, learner, weights):
    """Raise unless the weights are those of the learner; let slimmed layers shrink."""
    found = {name: (owner, old) for name, owner, _, old in _slots(learner)}
    if found.keys() != weights.keys():
        name = min(found.keys() ^ weights.keys())
        where = "is not in the file" if name in found else "is in the file alone"
        raise ValueError(f"The weight {name!r:.80} {where}.")
    shrunk = set()
    for name, (owner, old) in found.items():
        new = weights[name]
        if new.dtype != old.dtype:
            raise ValueError(f"{name!r} is of {new.dtype}, expected {old.dtype}.")
        if new.shape != old.shape:
            fits = new.ndim == old.ndim and all(
                n <= most for n, most in zip(new.shape, old.shape, strict=True)
            )
            if not fits or not isinstance(owner, _MAY_SHRINK):
                raise ValueError(
                    f"The weight {name!r} is of shape {tuple(new.shape)}, the "
                    f"parameters of the file ask for {tuple(old.shape)}."
                )
            shrunk.add(owner)
    if shrunk:
        _fill(
            learner, {k: torch.empty_like(v, device="meta") for k, v in weights.items()}
        )
        for owner in shrunk:
            _set_lengths(owner)
        with torch.device("meta"):
            net._check_output(learner.module)


def _set_lengths(layer):
    """What a layer that has shrunk says about itself."""
    weight = getattr(layer, "weight", None)
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, _ConvNd):
        if layer.groups != 1 or layer.transposed:
            raise ValueError("A convolution with groups has shrunk.")
        layer.out_channels, layer.in_channels = weight.shape[:2]
    elif isinstance(layer, LayerNorm):
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(layer, BatchNorm | InstanceNorm):
        layer.num_features = len(weight)


def _fill(learner, weights):
    made = {}
    for name, _, _, old in _slots(learner):
        new = weights[name]
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        made[id(old)] = old, new  # the old one stays alive, so that ids are unique
    for layer in learner.modules():
        for store in (layer._parameters, layer._buffers):
            for key, old in store.items():
                if old is not None:
                    store[key] = made[id(old)][1]


def _resume(net, state):
    """What training has left, besides weights: the way, the history, a generator."""
    way, why, checked = state["way"]
    if way not in ("layers", "vmap", "loop") or type(checked) is not bool:
        raise ValueError(f"The learner's way is {state['way']!r:.60}.")
    learner = net.module_
    net._choose_way(learner)
    learner.way, learner.why, learner.checked = way, why, checked
    net.seed_ = state["seed"]
    net.rng_ = np.random.default_rng(state["next_seed"])
    net.history_.extend({"batches": [], **_plain(row)} for row in state["history"])
    if net.history_:
        learner.begin_epoch(len(net.history_) - 1)


def _plain(row):
    """An epoch of the history, without its meta-batches."""
    row = {k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()}
    kinds = (bool, int, float, str)
    return {str(k): v for k, v in row.items() if type(v) in kinds}


def _checked_maker(meta, schema, options):
    """What makes the learner, with the options that it had in `fit`."""
    maker = meta._learner_maker(schema)
    keywords = getattr(maker, "keywords", {})
    if options.keys() != keywords.keys():
        raise ValueError(
            f"The learner has the options {sorted(options)!r:.200}; the parameters "
            f"of the {type(meta).__name__} ask for {sorted(keywords)}."
        )
    if not options:
        return maker
    params = meta.get_params(deep=False)
    used = {name: value for name, value in options.items() if name in params}
    for name, value in [*params.items(), *used.items()]:
        if name.startswith("n_") and isinstance(value, int) and value > _MOST_STEPS:
            raise ValueError(f"{name} is over {_MOST_STEPS}, which no file may ask for")
    earlier = {name: value for name, value in used.items() if value != keywords[name]}
    clone(meta).set_params(**earlier)._check_parameters()
    return partial(maker.func, **options)


def _checked_schema(meta, values):
    """The Schema, if what is in it fits together."""
    schema = Schema(**values)
    names, classes, n = schema.names, schema.classes, schema.n_outputs
    targets = np.stack([schema.target_mean, schema.target_scale])
    shared = schema.labels == "shared" and meta._classification
    checks = {
        "classification": schema.classification is meta._classification,
        "shape": type(schema.shape) is tuple
        and all(type(length) is int and length > 0 for length in schema.shape),
        "names": names is None
        or (names.shape == schema.shape and all(type(name) is str for name in names)),
        "labels": schema.labels in ("shared", "local"),
        "n_outputs": type(n) is int and n > 0,
        "classes": (classes is not None) == shared
        and (not shared or np.array_equal(np.unique(classes), classes)),
        "number of classes": not shared or n == len(classes),
        "target_mean and target_scale": targets.dtype == np.float64
        and targets.shape == (2, 1 if meta._classification else n)
        and np.isfinite(targets).all()
        and (targets[1] > 0).all(),
        "uses_unlabeled": schema.uses_unlabeled is meta._uses_unlabeled,
        "multi_output": type(schema.multi_output) is bool,
        "n_tasks": type(schema.n_tasks) is int,
        "metadata": schema.metadata is None or _is_description(schema.metadata),
    }
    for name, right in checks.items():
        if not right:
            raise ValueError(f"The {name} of the tasks of meta-training cannot be so.")
    return schema


def _is_description(value):
    shapes = {np.shape(value.mean), np.shape(value.scale)}
    return isinstance(value, Description) and len(shapes) == 1 and value.mean.ndim == 1
