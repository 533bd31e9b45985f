"""Tasks as tensors: encoded once, drawn, grouped by size and stacked at each visit."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from sk_meta.learner import Query, Support
from sk_meta.tasks.disk import on_disk
from sk_meta.tasks.encoding import EncodedEpisodes, EncodedTasks
from sk_meta.tasks.features import (
    DeviceFeatures,
    DiskEpisodes,
    Part,
    Request,
    make_source,
    needs_fit,
)
from sk_meta.tasks.sampling import EpisodeSampler

__all__ = [
    "MetaBatch",
    "MetaBatches",
    "TaskDataset",
    "TaskGroup",
    "needs_fit",
]

# Small meta-batches are stacked several in a row: between two steps of a training, the
# code that stacks them has left the processor's caches, and takes three times as long.
_IN_A_ROW, _BYTES_IN_A_ROW = 16, 2**20


class TaskGroup(NamedTuple):
    """Tasks of one size, stacked.

    Attributes
    ----------
    positions : int array of shape (n_tasks,)
        Where the tasks stood in the request.
    support : Support
        Tensors with a leading axis of length n_tasks.
    query : Query
        Likewise.
    draws : sequence of (Encoded, support rows, query rows)
        Of each task, as positions in the task.
    """

    positions: np.ndarray
    support: Support
    query: Query
    draws: Sequence = ()


class MetaBatch:
    """The groups of one outer step; its length is the number of tasks."""

    def __init__(self, groups):
        self.groups = groups

    def __iter__(self):
        return iter(self.groups)

    def __len__(self):
        return sum(len(group.positions) for group in self.groups)

    def n_bytes(self):
        """Size of the features."""
        return sum(g.support.X.nbytes + g.query.X.nbytes for g in self.groups)


class Draws(Sequence):
    """What `TaskGroup.draws` holds, looked up when asked."""

    def __init__(self, encoding, request):
        self.encoding, self.request = encoding, request

    def __len__(self):
        return len(self.request.indices)

    def __getitem__(self, row):
        request = self.request
        index = int(request.indices[row])
        support, query = request.support.slots_of(row), request.query.slots_of(row)
        return (
            self.encoding.encoded(index),
            self.encoding.positions(index, support, 0),
            self.encoding.positions(index, query, len(support)),
        )


class TaskDataset(Dataset):
    """Tasks on the device, in one table, and the draw of their support sets.

    Features on disk (memory maps, `DiskTable`) stay there: the rows of a meta-batch are
    read, and checked, when it is visited.

    Parameters
    ----------
    tasks : sequence of Task
        An EpisodeSampler stays lazy.
    schema : Schema
    support_size : int, float or tuple
        See `MetaEstimator`.
    evaluation_seed : int
        Decides the draw outside of training.
    device : str
    scored : bool, default=True
        Whether query rows without a known label are left out, and each task must have
        others. If not, their y is -1, or NaN in regression.
    """

    def __init__(
        self, tasks, schema, support_size, evaluation_seed, device, scored=True
    ):
        self.tasks = tasks
        self.schema = schema
        self.device = device
        if not isinstance(tasks, EpisodeSampler):
            self.encoding = EncodedTasks(
                tasks, schema, support_size, evaluation_seed, scored
            )
            self.source = make_source(tasks, self.encoding.first, schema, device)
            return
        self.encoding = EncodedEpisodes(tasks, schema)
        if on_disk(tasks.X):
            self.source = DiskEpisodes(tasks, schema, device)
        else:
            table = {id(tasks.X): (tasks.X, "the sampler's table")}
            self.source = DeviceFeatures(table, None, schema, device)

    @property
    def X(self):
        """Features of all tasks, as one tensor on the device."""
        return self.source.X

    def __len__(self):
        return len(self.tasks)

    def __getitem__(self, index):
        return index

    def encoded(self, index):
        """Number and meaning of the outputs of task `index`."""
        return self.encoding.encoded(index)

    def evaluation_draw(self, index):
        """Support and query rows of task `index` outside of training.

        Positions in the task; they depend on `evaluation_seed` and the task alone.
        """
        return self.encoding.evaluation_draw(index)

    def check_draws(self):
        """Raise if a task has no row to spare for the query set."""
        self.encoding.check_draws()

    def batch(self, indices, rng=None, pad=0) -> MetaBatch:
        """Stack tasks, grouped by size.

        Parameters
        ----------
        indices : sequence of int
        rng : numpy.random.Generator, default=None
            Decides support sets and the outputs that local labels are put on. None for
            an evaluation.
        pad : float, default=0
            Rows of weight 0 that tasks may be filled up with for each group fewer, for
            learners to which such rows make no difference.
        """
        indices = np.asarray(indices, dtype=np.int64)
        visits = self.encoding.visits(indices, rng)
        if isinstance(visits.kind, int):
            positions = np.arange(len(indices))
            requests = [self._request(positions, indices, visits)]
        else:
            requests = [
                self._request(
                    positions,
                    indices[positions],
                    visits._replace(
                        at=visits.at[positions],
                        n_support=visits.n_support[positions],
                        n_query=visits.n_query[positions],
                        kind=int(visits.kind[positions[0]]),
                    ),
                )
                for positions in _size_groups(visits, pad)
            ]
        features = self.source.take(requests)
        return MetaBatch(
            [
                self._stack(request, *X, rng)
                for request, X in zip(requests, features, strict=True)
            ]
        )

    def _request(self, positions, indices, visits):
        at, n_support = visits.at, visits.n_support
        support = self._part(visits, at, n_support)
        query = self._part(visits, at + n_support, visits.n_query)
        return Request(positions, indices, visits.kind, support, query)

    def _part(self, visits, at, lengths):
        """Rows of stacked tasks, up to the longest: shorter ones repeat their first."""
        real = None
        if isinstance(lengths, int):
            where = at[:, None] + np.arange(lengths)
        else:
            steps = np.arange(lengths.max())
            where = at[:, None] + steps
            if lengths.min() < len(steps):
                real = steps < lengths[:, None]
                where = np.where(real, where, at[:, None])
                real = real.astype(np.float32)
        slots = visits.slots[where]
        y = self.encoding.y[slots] if visits.y is None else visits.y[where]
        return Part(slots, real, y)

    def _stack(self, request, X_support, X_query, rng):
        encoding, parts = self.encoding, (request.support, request.query)
        n_classes, weighted = encoding.of_kind(request.kind)
        y = [part.y for part in parts]
        if rng is not None and n_classes and self.schema.labels == "local":
            # Local classes go to outputs at random, so that none can be memorised.
            outputs = rng.random((len(y[0]), n_classes)).argsort(axis=1)
            if y[1].min() < 0 or self.schema.uses_unlabeled:
                # The code -1 finds the last column: -1.
                outputs = np.pad(outputs, ((0, 0), (0, 1)), constant_values=-1)
            task = np.arange(len(outputs))[:, None]
            y = [outputs[task, codes] for codes in y]
        weights = [part.real for part in parts]
        if weighted:
            weights = [
                encoding.weight[part.slots] * (1 if part.real is None else part.real)
                for part in parts
            ]
        metadata = encoding.metadata(request.kind, request.indices)
        y_support, y_query, w_support, w_query, metadata = (
            None if values is None else torch.from_numpy(values).to(self.device)
            for values in (*y, *weights, metadata)
        )
        return TaskGroup(
            request.positions,
            Support(X_support, y_support, w_support, n_classes, metadata),
            Query(X_query, y_query, w_query),
            Draws(encoding, request),
        )


def _size_groups(visits, pad):
    """Positions of tasks that can be stacked, group by group."""
    sizes = np.stack([visits.kind, visits.n_support, visits.n_query], axis=1)
    if (sizes == sizes[0]).all():
        return [np.arange(len(sizes))]
    if pad:
        kinds = [np.flatnonzero(visits.kind == kind) for kind in np.unique(visits.kind)]
        return [
            kind[part] for kind in kinds for part in cut_by_size(sizes[kind, 1:], pad)
        ]
    groups = {}
    for position, size in enumerate(map(tuple, sizes.tolist())):
        groups.setdefault(size, []).append(position)
    return map(np.array, groups.values())


def cut_by_size(sizes, pad):
    """Groups of tasks of neighbouring sizes, each filled up to its longest.

    A group is cut in two where that saves more rows than a group fewer is worth.

    Parameters
    ----------
    sizes : int array of shape (n_tasks, 2)
        Rows of support and query sets.
    pad : float
        See `TaskDataset.batch`.

    Returns
    -------
    list of int arrays
        Positions of tasks.
    """
    uncut, groups = [np.argsort(sizes.sum(axis=1), kind="stable")], []
    while uncut:
        group = uncut.pop()
        ordered, n = sizes[group], len(group)
        # Rows of a task if the tasks up to it, or from it on, are filled up alike.
        up_to = np.maximum.accumulate(ordered).sum(axis=1)
        from_on = np.maximum.accumulate(ordered[::-1]).sum(axis=1)[::-1]
        first = np.arange(1, n)
        saved = n * up_to[-1] - first * up_to[:-1] - (n - first) * from_on[1:]
        if n > 1 and saved.max() > pad:
            cut = 1 + saved.argmax()
            uncut += [group[cut:], group[:cut]]
        else:
            groups.append(group)
    return groups


class MetaBatches:
    """Iterates over a dataset of tasks, or a subset of one, in meta-batches.

    Parameters
    ----------
    dataset : TaskDataset, or torch.utils.data.Subset of one
    batch_size : int
        Tasks per meta-batch.
    rng : numpy.random.Generator, default=None
        Shuffles the tasks and draws support sets; None for an evaluation.
    pad : float, default=0
        See `TaskDataset.batch`.
    """

    def __init__(self, dataset, batch_size, rng=None, pad=0):
        indices = np.arange(len(dataset))
        while not isinstance(dataset, TaskDataset):
            if not hasattr(dataset, "indices"):
                raise TypeError(
                    f"train_split gave a {type(dataset).__name__}, not some of the "
                    "training tasks. To choose them yourself, use "
                    "ValidSplit(PredefinedSplit(fold)), with fold 0 for validation "
                    "tasks and -1 for the others."
                )
            indices = np.asarray(dataset.indices)[indices]
            dataset = dataset.dataset
        self.dataset, self.indices = dataset, indices
        self.batch_size, self.rng, self.pad = batch_size, rng, pad

    def __len__(self):
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self):
        indices = self.indices
        if self.rng is not None:
            indices = self.rng.permutation(indices)
        starts = iter(range(0, len(indices), self.batch_size))
        in_a_row = 1
        while block := [
            self.dataset.batch(indices[i : i + self.batch_size], self.rng, self.pad)
            for i in islice(starts, in_a_row)
        ]:
            yield from block
            in_a_row = min(_IN_A_ROW, 1 + _BYTES_IN_A_ROW // block[0].n_bytes())
