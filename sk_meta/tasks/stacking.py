"""Tasks as tensors: encoded once, drawn, grouped by size and stacked at each visit."""

from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from sk_meta.learner import Query, Support
from sk_meta.tasks.sampling import Episode, EpisodeSampler
from sk_meta.tasks.support import draw_size, draw_support, evaluation_generator
from sk_meta.tasks.validation import call_task


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
    draws : list of (Encoded, support rows, query rows)
        Of each task, as positions in the task.
    """

    positions: np.ndarray
    support: Support
    query: Query
    draws: list = ()


class MetaBatch:
    """The groups of one outer step; its length is the number of tasks."""

    def __init__(self, groups):
        self.groups = groups

    def __iter__(self):
        return iter(self.groups)

    def __len__(self):
        return sum(len(group.positions) for group in self.groups)


class Encoded(NamedTuple):
    """One task, ready to be drawn from; rows are positions in the stacked table."""

    rows: np.ndarray
    y: np.ndarray
    n_classes: int
    classes: np.ndarray | None
    support: np.ndarray | None
    query: np.ndarray | None
    labeled: np.ndarray
    weight: np.ndarray | None
    metadata: np.ndarray | None


class TaskDataset(Dataset):
    """Tasks on the device, in one table, and the draw of their support sets.

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
        Whether each task must have labelled query rows.
    """

    def __init__(
        self, tasks, schema, support_size, evaluation_seed, device, scored=True
    ):
        self.tasks = tasks
        self.schema = schema
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.device = device
        self.scored = scored
        self._tables, self._start, n_rows = {}, {}, 0
        sources = tasks[:1] if isinstance(tasks, EpisodeSampler) else tasks
        tables = []
        for position, task in enumerate(sources):
            if needs_fit(task):
                continue
            table = task.table if isinstance(task, Episode) else task.X
            if id(table) not in self._start:
                what = call_task(task, position)
                # torch warns of read-only arrays, such as joblib's memory maps.
                X = np.require(schema.check_features(table, what), requirements="CW")
                X = torch.from_numpy(X)
                self._start[id(table)] = n_rows
                tables.append(X)
                n_rows += len(X)
        if tables:
            X = tables[0] if len(tables) == 1 else torch.cat(tables)
            self.X = X.to(device)
        self._encoded = (
            None
            if isinstance(tasks, EpisodeSampler)
            else [self._encode(task, i) for i, task in enumerate(tasks)]
        )
        if self._encoded is None:
            self._encode(tasks[0], 0)

    def __len__(self):
        return len(self.tasks)

    def __getitem__(self, index):
        return index

    def encoded(self, index) -> Encoded:
        """Task `index`, encoded."""
        if self._encoded is None:
            return self._encode(self.tasks[index], index)
        return self._encoded[index]

    def _encode(self, task, position):
        what = call_task(task, position)
        y, classes = self._encode_y(task, what)
        labeled = np.ones(len(y), dtype=bool) if task.labeled is None else task.labeled
        if isinstance(task, Episode):
            rows = task.rows + self._start[id(task.table)]
        elif needs_fit(task):
            rows = np.arange(len(y))
        else:
            start = self._start[id(task.X)]
            rows = np.arange(start, start + len(y))
        support = query = None
        if task.support is not None:
            support = np.flatnonzero(task.support)
            query = np.flatnonzero(~task.support)
            self._check_support(support, labeled, what)
        self._check_query(task, query, labeled, what)
        weight = task.sample_weight
        return Encoded(
            rows,
            y,
            0 if classes is None else len(classes),
            classes,
            support,
            query,
            labeled,
            None if weight is None else weight.astype(np.float32),
            numeric_metadata(task.metadata),
        )

    def _encode_y(self, task, what):
        """y as numbers; rows without a known label get those of a labelled one."""
        y, kind = task.y, self.schema.labels
        if self.schema.classification and task.labels != kind:
            raise ValueError(
                f"{what} has {task.labels} labels; the meta-learner was fitted on "
                f"tasks with {kind} ones."
            )
        if task.labeled is not None and not task.labeled.all():
            if not task.labeled.any():
                raise ValueError(f"{what} has no row with a known label.")
            y = y.copy()
            y[~task.labeled] = y[np.flatnonzero(task.labeled)[0]]
        if self.schema.classification and kind == "local":
            in_support = task.support if task.support is not None else slice(None)
            known = np.unique(y[in_support])
            lacking = np.setdiff1d(np.unique(y), known)
            if lacking.size:
                raise ValueError(
                    f"{what} has local labels, and its query set the class "
                    f"{lacking[0]!r}, of which the support set has no row. Give every "
                    "class a support row, or leave its query rows out."
                )
        return self.schema.encode(y, what)

    def _check_support(self, support, labeled, what):
        if not support.size:
            raise ValueError(f"{what} has an empty support set. Mark at least one row.")
        if not labeled[support].all():
            raise ValueError(
                f"{what} has rows without a known label in its support set, which this "
                "meta-learner cannot use. Leave them out of `support`."
            )

    def _check_query(self, task, query, labeled, what):
        if query is None:
            n_usable = labeled.sum()
            if n_usable < 2:
                raise ValueError(
                    f"{what} has {n_usable} labelled row(s); at least 2 are needed, "
                    "one for the support set and one for the query set."
                )
            return
        if not query.size:
            raise ValueError(
                f"{what} has no query rows: all {len(labeled)} are in the support set."
            )
        if self.scored and not labeled[query].any():
            raise ValueError(
                f"{what} has no labelled query row, so nothing to score. Mark fewer "
                "rows as support, or leave the task out."
            )

    def draw(self, index, size, rng):
        """Support and query rows of task `index`, as positions in the task.

        Parameters
        ----------
        index : int
        size : int or float, or None
            None for an evaluation, where everything depends on the task alone.
        rng : numpy.random.Generator or None
        """
        item = self.encoded(index)
        if item.support is not None:
            query = item.query[item.labeled[item.query]] if self.scored else item.query
            return item, item.support, query
        if size is None:
            rng = evaluation_generator(self.tasks[index], self.evaluation_seed)
            size = draw_size(self.support_size, rng)
        usable = np.flatnonzero(item.labeled)
        codes = item.y if self.schema.classification else None
        support = draw_support(codes, usable, size, rng)
        left = np.ones(len(item.y), dtype=bool)
        left[support] = False
        if self.scored:
            left &= item.labeled
        query = np.flatnonzero(left)
        if not query.size:
            raise ValueError(
                f"{call_task(self.tasks[index], index)} has {len(usable)} labelled "
                f"rows; support_size={size} leaves no query rows. Lower support_size, "
                "use a fraction, or leave the task out."
            )
        return item, support, query

    def check_draws(self):
        """Raise if some draw of the largest size would leave no query rows."""
        largest = self.support_size
        if isinstance(largest, tuple):
            largest = largest[1]
        if self._encoded is not None:
            rng = np.random.default_rng(0)
            for index, item in enumerate(self._encoded):
                if item.support is None:
                    self.draw(index, largest, rng)

    def batch(self, indices, rng=None, pad=False) -> MetaBatch:
        """Stack tasks, grouped by size.

        Parameters
        ----------
        indices : sequence of int
        rng : numpy.random.Generator, default=None
            Decides support sets and the outputs that local labels are put on. None for
            an evaluation.
        pad : bool, default=False
            Whether tasks of nearly one size may be filled up with rows of weight 0, for
            learners to which such rows make no difference.
        """
        size = None if rng is None else draw_size(self.support_size, rng)
        groups = {}
        for position, index in enumerate(indices):
            item, support, query = self.draw(index, size, rng)
            kind = (
                item.n_classes,
                item.weight is None,
                None if item.metadata is None else len(item.metadata),
            )
            key = (*kind, len(support), len(query))
            groups.setdefault(key, []).append((position, index, item, support, query))
        if pad:
            groups = _merge_sizes(groups)
        shuffle = self.schema.classification and self.schema.labels == "local"
        return MetaBatch(
            [self._stack(group, rng if shuffle else None) for group in groups.values()]
        )

    def _stack(self, group, rng):
        positions, indices, items, supports, queries = zip(*group, strict=True)
        n_classes = items[0].n_classes
        outputs = None
        if rng is not None:
            # Local classes go to outputs at random, so that none can be memorised.
            tidy = np.tile(np.arange(n_classes), (len(items), 1))
            outputs = rng.permuted(tidy, axis=1)
        parts = []
        for part in (supports, queries):
            pairs = list(zip(items, part, strict=True))
            rows, filled = _fill([item.rows[at] for item, at in pairs])
            y = np.stack(_fill([item.y[at] for item, at in pairs])[0])
            if outputs is not None:
                y = np.take_along_axis(outputs, y, axis=1)
            weight = filled
            if items[0].weight is not None:
                weight, _ = _fill([item.weight[at] for item, at in pairs])
                weight = weight if filled is None else np.stack(weight) * filled
            weight = None if weight is None else self._tensor(weight)
            parts.append((rows, self._tensor(y), weight))
        metadata = None
        if items[0].metadata is not None:
            metadata = self._tensor([item.metadata for item in items])
        (
            (rows_support, y_support, weight_support),
            (rows_query, y_query, weight_query),
        ) = parts
        if needs_fit(self.tasks[indices[0]]):
            X_support, X_query = self._fitted(indices, supports, queries)
        else:
            X_support = self.X[self._tensor(rows_support)]
            X_query = self.X[self._tensor(rows_query)]
        return TaskGroup(
            np.asarray(positions),
            Support(X_support, y_support, weight_support, n_classes, metadata),
            Query(X_query, y_query, weight_query),
            list(zip(items, supports, queries, strict=True)),
        )

    def _fitted(self, indices, supports, queries):
        """Features of tasks whose transformers are fitted on their support sets."""
        pairs = [
            self.tasks[index].fit_support(support, query)
            for index, support, query in zip(indices, supports, queries, strict=True)
        ]
        return tuple(
            self._tensor(
                _fill([self.schema.check_features(X, "a task") for X in part])[0]
            )
            for part in zip(*pairs, strict=True)
        )

    def _tensor(self, arrays):
        return torch.from_numpy(np.stack(arrays)).to(self.device)


def _merge_sizes(groups, waste=1.5):
    """Join groups of neighbouring sizes while filling up adds at most half."""
    kinds = {}
    for (*kind, n_support, n_query), members in groups.items():
        kinds.setdefault(tuple(kind), []).append((n_support, n_query, members))
    merged = {}
    for kind, sizes in kinds.items():
        sizes.sort(key=lambda size: size[0] + size[1])
        joined, rows, longest = [], 0, (0, 0)
        for n_support, n_query, members in sizes:
            longer = max(longest[0], n_support), max(longest[1], n_query)
            more = rows + len(members) * (n_support + n_query)
            if joined and (len(joined) + len(members)) * sum(longer) > waste * more:
                merged[(*kind, *longest)] = joined
                joined, longer = [], (n_support, n_query)
                more = len(members) * (n_support + n_query)
            joined, rows, longest = joined + members, more, longer
        merged[(*kind, *longest)] = joined
    return merged


def _fill(arrays):
    """Repeat the first row up to the longest; (arrays, mask of real rows or None)."""
    lengths = [len(array) for array in arrays]
    longest = max(lengths)
    if min(lengths) == longest:
        return arrays, None
    mask = np.arange(longest) < np.array(lengths)[:, None]
    filled = [
        np.concatenate([array, np.repeat(array[:1], longest - len(array), axis=0)])
        for array in arrays
    ]
    return filled, mask.astype(np.float32)


def needs_fit(task):
    """Whether the task's features come from a transformer fitted on its support set."""
    return hasattr(task, "fit_support")


def numeric_metadata(metadata):
    """Metadata as a float vector where it is numeric, else None."""
    if metadata is None:
        return None
    values = list(metadata.values()) if isinstance(metadata, dict) else metadata
    try:
        return np.atleast_1d(np.asarray(values, dtype=np.float32)).ravel()
    except (TypeError, ValueError):
        return None


class MetaBatches:
    """Iterates over a dataset of tasks, or a subset of one, in meta-batches.

    Parameters
    ----------
    dataset : TaskDataset, or torch.utils.data.Subset of one
    batch_size : int
        Tasks per meta-batch.
    rng : numpy.random.Generator, default=None
        Shuffles the tasks and draws support sets; None for an evaluation.
    pad : bool, default=False
        See `TaskDataset.batch`.
    """

    def __init__(self, dataset, batch_size, rng=None, pad=False):
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
        for start in range(0, len(indices), self.batch_size):
            chosen = indices[start : start + self.batch_size].tolist()
            yield self.dataset.batch(chosen, self.rng, self.pad)
