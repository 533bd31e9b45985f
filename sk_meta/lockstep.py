"""Many meta-learners of one structure, trained in lockstep: one call a step for all."""

import contextlib
import warnings
from collections import Counter, defaultdict
from copy import copy
from itertools import zip_longest

import numpy as np
import torch
from sklearn.base import clone
from torch import nn
from torch.func import functional_call, grad_and_value, vmap

from sk_meta.engine.batching import task_losses
from sk_meta.engine.tracing import operations
from sk_meta.learner import Query, Support
from sk_meta.tasks.stacking import TaskGroup
from sk_meta.training import seeded

# Optimizers that change each parameter by its own gradient alone: one serves many nets.
_INDEPENDENT = {
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adagrad,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
}
_TRACE_PAYS = 20  # calls to come for which tracing one pays
_SEEN = 3  # calls after which it is known how often a shape comes
_TOLERANCE = 1e-3  # of the first losses, together against alone
_PLAIN = (bool, int, float, str, type(None), np.generic)


class Apart(Exception):
    """Why meta-learners cannot be trained together."""


class Datasets(dict):
    """The tasks of each fold, encoded once for all meta-learners that share them.

    Attributes
    ----------
    in_learner : set of str
        Parameters of the meta-learner that its Learner keeps as a number, so that the
        tasks do not depend on them.
    """

    in_learner = frozenset()

    def key(self, meta, fold):
        """What decides how tasks are encoded and drawn, besides what all share."""
        own = meta.get_params(deep=False)
        numbers = own.keys() - self.in_learner
        return fold, *((k, own[k]) for k in own if k in numbers and _number(own[k]))


def _number(value):
    return isinstance(value, float)


def prepared(meta, tasks, fold, datasets):
    """A meta-learner as `fit` has it before the first epoch.

    Parameters
    ----------
    meta : MetaEstimator
        Left as it is.
    tasks : list of Task, list of (X, y), or EpisodeSampler
    fold : int
        Stands for these tasks.
    datasets : Datasets
        Of the meta-learners prepared so far; gets the new ones.

    Returns
    -------
    MetaEstimator

    Raises
    ------
    Apart
        If its network is one that is computed task by task.
    """
    blank = clone(meta).set_params(verbose=0)
    key = datasets.key(meta, fold)

    def dataset(*args, **options):
        if key not in datasets:
            datasets[key] = type(blank)._dataset(blank, *args, **options)
        return datasets[key]

    def make_net():
        net = type(blank)._make_net(blank)
        net.fit_loop = lambda *args, **options: net  # `train` stands for it
        return net

    blank._dataset, blank._make_net = dataset, make_net
    blank.fit(tasks)
    del blank._dataset, blank._make_net, blank.net_.fit_loop
    blank.net, blank.verbose = meta.net, meta.verbose
    learner = blank.net_.module_
    if learner.way == "loop":
        raise Apart("this network is computed one task at a time")
    if learner.phase is not None:
        raise Apart("other things are computed from some epoch on")
    if not datasets.in_learner:
        own = meta.get_params(deep=False)
        kept = vars(learner).items()
        datasets.in_learner = {k for k, v in kept if _number(v) and own.get(k) == v}
        datasets[datasets.key(meta, fold)] = datasets[key]
    return blank


def alike(meta):
    """What meta-learners that train together have in common, as a key."""
    learner = meta.net_.module_
    values = [*learner.named_parameters(), *learner.named_buffers()]
    shapes = tuple((k, v.shape, v.dtype, v.requires_grad) for k, v in values)
    return type(learner), shapes, _plain(learner)


def _plain(learner):
    """All that is no tensor, but for the learner's own numbers."""
    return tuple(
        (name, key, type(value), value)
        for name, module in learner.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, _PLAIN)
        and not (module is learner and _number(value))
        and key not in ("why", "checked")
    )


def train(metas, folds, datasets):
    """Train prepared meta-learners together, each as its `fit` would.

    Parameters
    ----------
    metas : list of MetaEstimator
        `prepared` and `alike`; they are changed.
    folds : list of hashable
        Which tasks each of them has.
    datasets : Datasets
        Of `prepared`.

    Raises
    ------
    Apart
        If these networks cannot be computed together.
    """
    streams, stream_of = {}, []
    for meta, fold in zip(metas, folds, strict=True):
        net = meta.net_
        tasks = datasets.key(meta, fold)
        # Nets of one seed draw the same meta-batches from the same tasks.
        key = tasks, repr(net.rng_.bit_generator.state)
        if key not in streams:
            iterator = net.get_iterator(datasets[tasks], training=True)
            streams[key] = len(streams), iterator
        stream_of.append(streams[key][0])
    iterators = [iterator for _, iterator in streams.values()]
    units = {}
    for m, meta in enumerate(metas):
        unit = len(iterators[stream_of[m]]), _settings(meta.net_.optimizer_)
        units.setdefault(unit, []).append(m)
    order = [m for unit in units.values() for m in unit]
    nets = [metas[m].net_ for m in order]
    sizes = [(length, len(unit)) for (length, _), unit in units.items()]
    n_epochs = nets[0].max_epochs
    n_steps = n_epochs * max(map(len, iterators))
    with seeded(0, nets[0].device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        together = _Together(nets, [stream_of[m] for m in order], sizes, n_steps)
        for _ in range(n_epochs):
            for position, batches in enumerate(zip_longest(*iterators)):
                together.step(position, batches)
            together.end_epoch()
        together.hand_back()


def _settings(optimizer):
    """What optimizers have in common that one call can stand for; else themselves."""
    if type(optimizer) not in _INDEPENDENT or len(optimizer.param_groups) > 1:
        return id(optimizer)
    group = optimizer.param_groups[0].items()
    return type(optimizer), tuple((k, v) for k, v in group if k != "params")


class _Losses(nn.Module):
    """The losses of a learner's tasks, as a module for functional_call."""

    def __init__(self, learner):
        super().__init__()
        self.learner = learner

    def forward(self, numbers, group):
        """Losses (n_tasks,)."""
        before = {name: getattr(self.learner, name) for name in numbers}
        try:
            for name, value in numbers.items():
                setattr(self.learner, name, value)
            return task_losses(self.learner, [group])[0]
        finally:
            for name, value in before.items():
                setattr(self.learner, name, value)


class _Together:
    """Networks side by side: their parameters stacked along a first axis.

    Parameters
    ----------
    nets : list of TaskNet
        Initialized and `alike`.
    stream_of : list of int
        Which of the streams of meta-batches each of them sees.
    units : list of (int, int)
        Neighbours that share one optimizer: batches in an epoch, number of nets.
    n_steps : int
        Of the whole training.
    """

    def __init__(self, nets, stream_of, units, n_steps):
        self.nets, self.stream_of, self.units = nets, stream_of, units
        self.learners = [net.module_.train() for net in nets]
        self.template = self.learners[0]
        self.device = torch.device(nets[0].device)
        self.losses = _Losses(self.template)
        self.rows = {}  # streams of a call -> its members, and each one's stream
        self.n_tasks = [0] * len(nets)
        self.stacked = {}
        self.n_steps, self.n_done = n_steps, 0
        self.counts, self.traced = Counter(), {}

    def step(self, position, batches):
        """One outer step of each net that has a meta-batch.

        Parameters
        ----------
        position : int
            In the epoch.
        batches : list of MetaBatch
            Of each stream; None where it has ended.
        """
        self.n_done += 1
        looking = not self.stacked
        if looking:
            self._look(batches[0])
        calls = defaultdict(list)  # what has one shape goes through one call
        for stream, batch in enumerate(batches):
            for group in batch or ():
                calls[_shape(group)].append((stream, group))
        gradients, losses = None, torch.zeros_like(self.total)
        for (n_classes, _), found in calls.items():
            streams, groups = zip(*found, strict=True)
            index, at = self._rows_of(streams)
            n_tasks = [len(batches[self.stream_of[m]]) for m in index.tolist()]
            n_tasks = torch.tensor(n_tasks, device=self.device)
            every = len(index) == len(self.nets)
            rows = None if every else index
            try:
                changes, summed = self._call(groups, n_classes, rows, at, n_tasks)
            except RuntimeError as error:
                if "random" not in str(error):
                    raise
                raise Apart("random numbers in the network") from error
            losses.index_add_(0, index, summed)
            if every and len(calls) == 1:
                gradients = changes
                break
            if gradients is None:
                gradients = {k: torch.zeros_like(v) for k, v in self.stacked.items()}
            for name, change in changes.items():
                gradients[name].index_add_(0, index, change)
        if looking:
            self._compare(losses, batches)
        self.total += losses
        for m, stream in enumerate(self.stream_of):
            self.n_tasks[m] += len(batches[stream] or ())
        self._update(position, gradients)

    def _look(self, batch):
        """Which parameters the losses depend on; the engine settles on its way."""
        template = self.template
        parameters = dict(template.named_parameters())
        free = {k: v for k, v in parameters.items() if v.requires_grad}
        losses, seen = task_losses(template, batch)
        if seen:
            # Its biases have a gradient of zero but for rounding, which Adam enlarges.
            raise Apart("batch normalisation with running statistics")
        changes = torch.autograd.grad(
            losses.mean(), list(free.values()), allow_unused=True
        )
        if template.way == "loop":
            raise Apart("this network is computed one task at a time")
        used = [
            k for k, change in zip(free, changes, strict=True) if change is not None
        ]
        named = [
            dict([*learner.named_parameters(), *learner.named_buffers()])
            for learner in self.learners
        ]
        self.stacked, self.fixed = {}, {}
        for name in named[0]:
            each = [values[name].detach() for values in named]
            if name in used:
                self.stacked[name] = torch.stack(each)
            elif any(not torch.equal(each[0], other) for other in each[1:]):
                self.fixed[name] = torch.stack(each)
        self.numbers = {}
        for name in [k for k, v in vars(template).items() if _number(v)]:
            each = [float(getattr(learner, name)) for learner in self.learners]
            if len(set(each)) > 1:
                self.numbers[name] = losses.new_tensor(each)
        self.total = losses.new_zeros(len(self.nets))
        for learner in self.learners:
            learner.way, learner.why = template.way, template.why
            learner.checked = template.checked
        self.plain = _plain(template)
        self._make_optimizers()

    def _make_optimizers(self):
        """Of each unit: batches in an epoch, optimizer, and whose values it changes.

        Each net's values are parameters of their own, so that they come out to the same
        bits as with an optimizer of their own.
        """
        self.optimizers, start = [], 0
        for length, size in self.units:
            net, owned = self.nets[start], []
            names = {id(v): k for k, v in net.module_.named_parameters()}
            optimizer = copy(net.optimizer_)
            optimizer.state, optimizer.param_groups = defaultdict(dict), []
            for group in net.optimizer_.param_groups:
                used = [names[id(parameter)] for parameter in group["params"]]
                mine = [
                    (name, m, self.stacked[name][m])
                    for name in used
                    if name in self.stacked  # others never have a gradient
                    for m in range(start, start + size)
                ]
                owned += mine
                values = [each for _, _, each in mine]
                optimizer.param_groups.append({**group, "params": values})
            self.optimizers.append((length, optimizer, owned))
            start += size

    def _rows_of(self, streams):
        """Members that train on streams, and the position of each one's stream."""
        if streams not in self.rows:
            pairs = sorted(
                (m, at)
                for at, stream in enumerate(streams)
                for m, own in enumerate(self.stream_of)
                if own == stream
            )
            self.rows[streams] = tuple(torch.tensor(pairs, device=self.device).T)
        return self.rows[streams]

    def _call(self, groups, n_classes, index, at, n_tasks):
        """Gradients of the mean losses, and summed losses, of each member."""
        parts = [_tensors(group) for group in groups]
        present = [tensor is not None for tensor in parts[0]]
        tensors = [
            torch.stack(each)[at]
            for each in zip(*parts, strict=True)
            if each[0] is not None
        ]

        def loss(parameters, fixed, numbers, tensors, n_tasks):
            given = iter(tensors)
            X, y, weight, metadata, *query = [
                next(given) if here else None for here in present
            ]
            support = Support(X, y, weight, n_classes, metadata)
            group = TaskGroup(None, support, Query(*query))
            values = {f"learner.{k}": v for k, v in {**parameters, **fixed}.items()}
            losses = functional_call(self.losses, values, (numbers, group))
            return losses.sum() / n_tasks, losses.detach().sum()

        def take(values):
            return values if index is None else {k: v[index] for k, v in values.items()}

        function = vmap(grad_and_value(loss, has_aux=True), randomness="error")
        given = take(self.stacked), take(self.fixed), take(self.numbers)
        given = *given, tensors, n_tasks
        key = _shape(groups[0]), len(at)
        changes, (_, summed) = self._traced(key, function, given)(*given)
        return changes, summed

    def _traced(self, key, function, given):
        """A function as the list of its operations, where its shape will come often.

        The same bits in half the time, as no Python of the network runs any more; so
        not where the network itself has changed in the meantime.
        """
        self.counts[key] += 1
        to_come = self.counts[key] * (self.n_steps / self.n_done - 1)
        if self.counts[key] == _SEEN and to_come >= _TRACE_PAYS:
            if _plain(self.template) == self.plain:
                with contextlib.suppress(RuntimeError):
                    self.traced[key] = operations(function, given)
        return self.traced.get(key, function)

    def _compare(self, losses, batches):
        """Raise where a net's losses differ from those that it has alone."""
        with torch.no_grad():
            pairs = zip(self.learners, self.stream_of, strict=True)
            alone = [
                task_losses(one, batches[stream])[0].sum() for one, stream in pairs
            ]
        alone = torch.stack(alone)
        if not torch.allclose(losses, alone, _TOLERANCE, 1e-6, equal_nan=True):
            raise Apart("the network comes out otherwise when computed with others")

    def _update(self, position, gradients):
        apart = {name: each.unbind() for name, each in gradients.items()}
        for length, optimizer, owned in self.optimizers:
            if position < length:
                for name, m, values in owned:
                    values.grad = apart[name][m]
                optimizer.step()

    def end_epoch(self):
        """Write the epoch into the histories."""
        means = (self.total / torch.tensor(self.n_tasks, device=self.device)).tolist()
        for net, mean in zip(self.nets, means, strict=True):
            net.history.new_epoch()
            net.history.record("epoch", len(net.history))
            net.history.record("train_loss", mean)
        self.total.zero_()
        self.n_tasks = [0] * len(self.nets)

    @torch.no_grad()
    def hand_back(self):
        """Give each net its parameters."""
        for m, learner in enumerate(self.learners):
            for name, parameter in learner.named_parameters():
                if name in self.stacked:
                    parameter.copy_(self.stacked[name][m])
            learner.eval()


def _tensors(group):
    X, y, weight, _, metadata = group.support
    return X, y, weight, metadata, *group.query


def _shape(group):
    tensors = [None if t is None else (t.shape, t.dtype) for t in _tensors(group)]
    return group.support.n_classes, tuple(tensors)
