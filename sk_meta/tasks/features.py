"""Where the features of a meta-batch come from: the device, the disk, or a transformer.

Each source has a method ``take(requests)``: for each Request, the features of its
support rows (n_tasks, n_support, ...) and query rows (n_tasks, n_query, ...).
"""

from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch

from sk_meta.tasks.disk import View, on_disk, table_of
from sk_meta.tasks.task import take_rows
from sk_meta.tasks.validation import call_task


class Part(NamedTuple):
    """Support or query rows of stacked tasks.

    Attributes
    ----------
    slots : int array of shape (n_tasks, n)
        See `EncodedTasks`. Shorter tasks repeat their first row.
    real : float32 array of shape (n_tasks, n), or None
        0 for repetitions, 1 for others; None if there are none.
    y : array of shape (n_tasks, n, ...)
    """

    slots: np.ndarray
    real: np.ndarray | None
    y: np.ndarray

    def slots_of(self, row):
        """Slots of one task, without repetitions."""
        slots = self.slots[row]
        return slots if self.real is None else slots[self.real[row] > 0]


class Request(NamedTuple):
    """Tasks of one size class whose features are wanted.

    Attributes
    ----------
    positions, indices : int arrays of shape (n_tasks,)
        Where the tasks stand in the meta-batch, and in the data set.
    kind : int
    support, query : Part
    """

    positions: np.ndarray
    indices: np.ndarray
    kind: int
    support: Part
    query: Part

    @property
    def slots(self):
        """Slots of the support rows, then of the query rows, as one flat array."""
        return np.concatenate([self.support.slots.ravel(), self.query.slots.ravel()])

    @property
    def owners(self):
        """Task of each of the `slots`."""
        sizes = self.support.slots.shape[1], self.query.slots.shape[1]
        return np.concatenate([np.repeat(self.indices, size) for size in sizes])

    @property
    def size(self):
        """Number of `slots`."""
        return self.support.slots.size + self.query.slots.size

    def split(self, X):
        """Two stacked tensors from the features at `slots`."""
        n, shapes = self.support.slots.size, (self.support, self.query)
        return [
            rows.view(*part.slots.shape, *X.shape[1:])
            for rows, part in zip((X[:n], X[n:]), shapes, strict=True)
        ]


def needs_fit(task):
    """Whether the task's features come from a transformer fitted on its support set."""
    return hasattr(task, "fit_support")


def make_source(tasks, first, schema, device):
    """The source of a list of tasks whose slots start at `first`."""
    if any(needs_fit(task) for task in tasks):
        return FittedFeatures(tasks, first, schema, device)
    tables = {}
    for position, task in enumerate(tasks):
        table = table_of(task)
        tables.setdefault(id(table), (table, call_task(task, position)))
    if any(on_disk(table) for table, _ in tables.values()):
        for table, what in tables.values():
            schema.check_columns(table, what)
        return DiskFeatures(tasks, first, schema, device)
    return DeviceFeatures(tables, tasks, schema, device)


class DeviceFeatures:
    """All rows of all tasks as one tensor on the device; a shared table once.

    Parameters
    ----------
    tables : dict of id to (table, name for messages)
    tasks : list of Task, or None
        None if slots are the rows of the one table.
    """

    def __init__(self, tables, tasks, schema, device):
        starts, parts, n_rows = {}, [], 0
        for key, (table, what) in tables.items():
            # torch warns of read-only arrays, such as joblib's memory maps.
            X = np.require(schema.check_features(table, what), requirements="CW")
            parts.append(torch.from_numpy(X))
            starts[key] = n_rows
            n_rows += len(X)
        self.X = (parts[0] if len(parts) == 1 else torch.cat(parts)).to(device)
        self.device = device
        self._row = None  # of each slot; None where row and slot are the same
        if tasks is not None and (
            len(tables) < len(tasks) or any(isinstance(task, View) for task in tasks)
        ):
            self._row = np.concatenate(
                [
                    starts[id(table_of(task))]
                    + (task.rows if isinstance(task, View) else np.arange(len(task)))
                    for task in tasks
                ]
            )

    def take(self, requests):
        """See above."""
        return [request.split(self._rows(request.slots)) for request in requests]

    def _rows(self, slots):
        rows = slots if self._row is None else self._row[slots]
        return self.X.index_select(0, torch.from_numpy(rows).to(self.device))


class DiskFeatures:
    """Features that stay on disk; those of a meta-batch are read when it is visited."""

    def __init__(self, tasks, first, schema, device):
        self.tasks, self.first = tasks, first
        self.schema, self.device = schema, device

    def take(self, requests):
        """See above; each table is read once."""
        index = np.concatenate([request.owners for request in requests])
        slots = np.concatenate([request.slots for request in requests])
        rows = slots - self.first[index]
        tables, of_task = {}, {}
        for i in np.unique(index).tolist():
            task = self.tasks[i]
            if isinstance(task, View):
                here = index == i
                rows[here] = task.rows[rows[here]]
            table = table_of(task)
            of_task[i], _ = tables.setdefault(id(table), (len(tables), table))
        of_slot = np.array([of_task[i] for i in index.tolist()])
        X = np.empty((len(rows), *self.schema.shape), dtype=np.float32)
        for number, table in tables.values():
            here = of_slot == number
            X[here] = self._checked(
                np.asarray(take_rows(table, rows[here])), index[here]
            )
        ends = np.cumsum([request.size for request in requests])[:-1]
        return [
            request.split(torch.from_numpy(part).to(self.device))
            for request, part in zip(requests, np.split(X, ends), strict=True)
        ]

    def _checked(self, X, index):
        """Rows as numbers, or an error about the first task whose rows are none."""
        with suppress(ValueError):
            return self.schema.check_features(X, "the table")
        for i in np.unique(index).tolist():
            self.schema.check_features(X[index == i], call_task(self.tasks[i], i))
        return self.schema.check_features(X, "the table")


class DiskEpisodes:
    """The same for a sampler, whose slots are rows of its table."""

    def __init__(self, sampler, schema, device):
        self.table, self.schema, self.device = sampler.X, schema, device
        schema.check_columns(self.table, "the sampler's table")

    def take(self, requests):
        """See above."""
        return [request.split(self._rows(request.slots)) for request in requests]

    def _rows(self, rows):
        X = np.asarray(self.table[rows])
        X = self.schema.check_features(X, "the sampler's table")
        # torch warns of read-only arrays.
        return torch.from_numpy(np.require(X, requirements="CW")).to(self.device)


class FittedFeatures:
    """Features of tasks whose transformers are fitted afresh on each support set."""

    def __init__(self, tasks, first, schema, device):
        self.tasks, self.first = tasks, first
        self.schema, self.device = schema, device

    def take(self, requests):
        """See above."""
        return [self._take(request) for request in requests]

    def _take(self, request):
        parts = request.support, request.query
        found = [
            np.empty((*part.slots.shape, *self.schema.shape), dtype=np.float32)
            for part in parts
        ]
        for position, index in enumerate(request.indices.tolist()):
            rows = [part.slots_of(position) - self.first[index] for part in parts]
            fitted = self.tasks[index].fit_support(*rows)
            for X, values in zip(found, fitted, strict=True):
                values = self.schema.check_features(values, "a task")
                X[position, : len(values)] = values
                X[position, len(values) :] = values[0]
        return [torch.from_numpy(X).to(self.device) for X in found]
