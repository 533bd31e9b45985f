"""Tasks in flat arrays, so that a meta-batch is looked up without a loop over tasks."""

from typing import NamedTuple

import numpy as np

from sk_meta.tasks.metadata import numeric_metadata
from sk_meta.tasks.support import (
    draw_size,
    draw_support,
    draw_supports,
    evaluation_generator,
    rows_drawn,
)
from sk_meta.tasks.validation import call_task, label_array


class Encoded(NamedTuple):
    """What the outputs of one task stand for: 0 and None in regression."""

    n_classes: int
    classes: np.ndarray | None


class Visits(NamedTuple):
    """The rows of the tasks of a meta-batch.

    Attributes
    ----------
    slots : int array
        Rows, in any order.
    at : int array of shape (n_tasks,)
        Task i has its support set from ``slots[at[i]]`` on, then the query set.
    n_support, n_query, kind : int arrays of shape (n_tasks,), or three ints
        Tasks of one kind and size can be stacked. Ints if that is known of all.
    y : array, or None
        Labels at `slots` where the draw decides them; None where the row does.
    """

    slots: np.ndarray
    at: np.ndarray
    n_support: np.ndarray | int
    n_query: np.ndarray | int
    kind: np.ndarray | int
    y: np.ndarray | None = None


class EncodedTasks:
    """A list of tasks in flat arrays: a slot for each row, task by task.

    Parameters
    ----------
    tasks : list of Task
    schema : Schema
    support_size, evaluation_seed, scored
        As in `TaskDataset`.

    Attributes
    ----------
    first : int array of shape (n_tasks,)
        First slot of each task.
    y : array of shape (n_slots,) or (n_slots, n_targets)
        Encoded.
    weight : float32 array of shape (n_slots,), or None
    n_classes : int array of shape (n_tasks,)
    """

    def __init__(self, tasks, schema, support_size, evaluation_seed, scored):
        self.tasks, self.schema = tasks, schema
        self.support_size, self.evaluation_seed = support_size, evaluation_seed
        self.scored = scored
        encoded = [
            _encode_y(task, schema, i, mark=not scored) for i, task in enumerate(tasks)
        ]
        ys, self._classes = zip(*encoded, strict=True)
        self.n_classes = np.array([0 if c is None else len(c) for c in self._classes])
        self.y = np.concatenate(ys)
        n_rows = np.array([len(y) for y in ys])
        self.first = np.cumsum(n_rows) - n_rows
        self._set_orders(ys)
        self.weight = None
        if any(task.sample_weight is not None for task in tasks):
            weights = [
                np.ones(n) if task.sample_weight is None else task.sample_weight
                for n, task in zip(n_rows, tasks, strict=True)
            ]
            self.weight = np.concatenate(weights).astype(np.float32)
        self._set_kinds()
        sizes = np.stack([self._n_support, self._n_others, self._kind])
        one_size = self._n_support[0] > 0 and (sizes.T == sizes[:, 0]).all()
        self._size = tuple(sizes[:, 0].tolist()) if one_size else None
        self._drawn_once = {}

    def _set_orders(self, ys):
        """Slots of each task: support set and query set, or those that are drawn from.

        The latter by class, with the sizes of the classes in `_strata`; unlabelled
        rows, which join the support set that is drawn, or where nothing is scored the
        query set, are in `_unlabeled`.
        """
        orders, n_support, strata, unlabeled = [], [], [], []
        for position, (task, y) in enumerate(zip(self.tasks, ys, strict=True)):
            labeled, free = task.labeled, []
            if task.support is None:
                order = np.arange(len(y)) if labeled is None else labeled.nonzero()[0]
                _check_usable(len(order), task, position)
                sizes = [len(order)]
                if self.schema.classification:
                    codes = y[order]
                    order = order[codes.argsort(kind="stable")]
                    sizes = np.bincount(codes)
                    sizes = sizes[sizes > 0].tolist()
                strata.append(sizes)
                n_support.append(0)
                wanted = self.schema.uses_unlabeled or not self.scored
                if wanted and labeled is not None:
                    free = np.flatnonzero(~labeled) + self.first[position]
            else:
                order = (~task.support).argsort(kind="stable")
                n = int(np.count_nonzero(task.support))
                self._check_given(order, n, task, position)
                if labeled is not None and self.scored:
                    order = order[labeled[order] | (np.arange(len(order)) < n)]
                strata.append([])
                n_support.append(n)
            orders.append(order)
            unlabeled.append(free)
        lengths = np.array([len(order) for order in orders])
        self._at = np.cumsum(lengths) - lengths
        self._order = np.concatenate(orders) + np.repeat(self.first, lengths)
        self._n_support = np.array(n_support)
        self._n_others = lengths - self._n_support
        self._n_strata = np.array([len(sizes) for sizes in strata])
        self._stratum_at = np.cumsum(self._n_strata) - self._n_strata
        self._strata = np.array([n for sizes in strata for n in sizes], dtype=int)
        self._n_unlabeled = np.array([len(free) for free in unlabeled])
        self._unlabeled_at = np.cumsum(self._n_unlabeled) - self._n_unlabeled
        self._unlabeled = np.concatenate(unlabeled).astype(int)

    def _check_given(self, order, n_support, task, position):
        """Raise unless a task's own support set can be used, and its query set too."""
        what = call_task(task, position)
        if not n_support:
            raise ValueError(f"{what} has an empty support set. Mark at least one row.")
        if n_support == len(order):
            raise ValueError(
                f"{what} has no query rows: all {len(order)} are in the support set."
            )
        if task.labeled is None:
            return
        of_support, of_query = np.split(task.labeled[order], [n_support])
        if not of_support.all() and not self.schema.uses_unlabeled:
            raise ValueError(
                f"{what} has rows without a known label in its support set, which this "
                "meta-learner cannot use. Leave them out of `support`, or use a "
                "semi-supervised meta-learner."
            )
        if not of_support.any():
            raise ValueError(
                f"{what} has no labelled row in its support set. Mark one of each "
                "class, at least."
            )
        if self.scored and not of_query.any():
            raise ValueError(
                f"{what} has no labelled query row, so nothing to score. Mark fewer "
                "rows as support, or leave the task out."
            )

    def _set_kinds(self):
        metadata = [numeric_metadata(task.metadata) for task in self.tasks]
        kinds, by_length = {}, {}
        self._kind = np.empty(len(metadata), dtype=int)
        self._metadata_row = np.zeros(len(metadata), dtype=int)
        n_classes = self.n_classes.tolist()
        for i, (task, values) in enumerate(zip(self.tasks, metadata, strict=True)):
            length = None if values is None else len(values)
            kind = n_classes[i], task.sample_weight is None, length
            self._kind[i] = kinds.setdefault(kind, len(kinds))
            if values is not None:
                same = by_length.setdefault(length, [])
                self._metadata_row[i] = len(same)
                same.append(values)
        self._kinds = list(kinds)
        self._metadata = {length: np.stack(v) for length, v in by_length.items()}

    def encoded(self, index) -> Encoded:
        """What the outputs of task `index` stand for."""
        return Encoded(int(self.n_classes[index]), self._classes[index])

    def of_kind(self, kind):
        """(number of classes, whether rows have weights)."""
        n_classes, unweighted, _ = self._kinds[kind]
        return n_classes, not unweighted

    def metadata(self, kind, indices):
        """Metadata (n_tasks, m) of tasks of one kind, or None."""
        length = self._kinds[kind][2]
        if length is None:
            return None
        return self._metadata[length][self._metadata_row[indices]]

    def positions(self, index, slots, start):
        """Positions in task `index` of some of its slots."""
        return slots - self.first[index]

    def visits(self, indices, rng) -> Visits:
        """Support and query rows of tasks; see `TaskDataset.batch`."""
        at = self._at[indices]
        if self._size is not None:
            return Visits(self._order, at, *self._size)
        n_support = self._n_support[indices]
        n_query, kind = self._n_others[indices], self._kind[indices]
        given = n_support > 0
        if given.all():
            return Visits(self._order, at, n_support, n_query, kind)
        drawn = np.flatnonzero(~given)
        draw = self._draw if rng is not None else self._evaluation_draws
        slots, n_support[drawn], n_query[drawn] = draw(indices[drawn], rng)
        lengths = n_support + n_query
        own = self._order[ranges(at[given], lengths[given])]
        in_turn = np.concatenate([np.flatnonzero(given), drawn])
        at[in_turn] = np.cumsum(lengths[in_turn]) - lengths[in_turn]
        return Visits(np.concatenate([own, slots]), at, n_support, n_query, kind)

    def _draw(self, indices, rng):
        size = draw_size(self.support_size, rng)
        n_usable, n_strata = self._n_others[indices], self._n_strata[indices]
        slots = self._order[ranges(self._at[indices], n_usable)]
        n_rows = self._strata[ranges(self._stratum_at[indices], n_strata)]
        task = np.repeat(np.arange(len(indices)), n_strata)
        of_classes = self.schema.classification
        slots = slots[draw_supports(n_rows, task, size, of_classes, rng)]
        n_support = self._n_drawn(indices, size)
        self._check_left(indices, n_usable - n_support)
        n_free = self._n_unlabeled[indices]
        if n_free.any():
            free = self._unlabeled[ranges(self._unlabeled_at[indices], n_free)]
            ends = np.cumsum(n_usable)
            where = ends - n_usable if self.schema.uses_unlabeled else ends
            slots = np.insert(slots, np.repeat(where, n_free), free)
        n_rows = n_usable + n_free
        if self.schema.uses_unlabeled:
            n_support = n_support + n_free
        return slots, n_support, n_rows - n_support

    def _n_drawn(self, indices, size):
        n_strata = self._n_strata[indices]
        n_rows = self._strata[ranges(self._stratum_at[indices], n_strata)]
        n_drawn = rows_drawn(n_rows, size)
        return np.add.reduceat(n_drawn, np.cumsum(n_strata) - n_strata)

    def _evaluation_draws(self, indices, rng):
        draws = [self.evaluation_draw(index) for index in indices.tolist()]
        rows = [np.concatenate(draw) for draw in draws]
        lengths = [len(part) for part in rows]
        slots = np.concatenate(rows) + np.repeat(self.first[indices], lengths)
        n_support = np.array([len(support) for support, _ in draws])
        return slots, n_support, np.array(lengths) - n_support

    def evaluation_draw(self, index):
        """Support and query rows of a task outside of training: positions in it.

        The draw depends on the seed and the task alone.
        """
        start, n = self._at[index], self._n_support[index]
        order = self._order[start : start + n + self._n_others[index]]
        order = order - self.first[index]
        if n:
            return order[:n], order[n:]
        if index not in self._drawn_once:
            task = self.tasks[index]
            rng = evaluation_generator(task, self.evaluation_seed)
            size = draw_size(self.support_size, rng)
            n_rows = len(task.y)
            codes = None
            if self.schema.classification:
                codes = self.y[self.first[index] : self.first[index] + n_rows]
            support = draw_support(codes, np.sort(order), size, rng)
            if self.schema.uses_unlabeled:
                at, n_free = self._unlabeled_at[index], self._n_unlabeled[index]
                free = self._unlabeled[at : at + n_free] - self.first[index]
                support = np.concatenate([free, support])
            left = np.ones(n_rows, dtype=bool)
            left[support] = False
            if self.scored and task.labeled is not None:
                left &= task.labeled
            query = np.flatnonzero(left)
            self._check_left([index], np.array([len(query)]))
            self._drawn_once[index] = support, query
        return self._drawn_once[index]

    def _check_left(self, indices, n_query):
        """Raise where no query row is left: each class has one row."""
        if (n_query > 0).all():
            return
        index = int(indices[np.flatnonzero(n_query < 1)[0]])
        raise ValueError(
            f"{call_task(self.tasks[index], index)} has {self._n_others[index]} "
            "labelled rows, one of each class; a support set of them leaves no query "
            "rows. Add rows, or leave the task out."
        )

    def check_draws(self):
        """Raise if a task has no row to spare for the query set."""
        drawn = np.flatnonzero(self._n_support == 0)
        # Draws of any size take at least one row of each class, and not all of two.
        self._check_left(drawn, self._n_others[drawn] - self._n_strata[drawn])


class EncodedEpisodes:
    """The episodes of a sampler, drawn when they are visited.

    Has the methods of `EncodedTasks`; a slot is a row of the sampler's table.
    """

    def __init__(self, sampler, schema):
        if sampler.n_hidden and not schema.uses_unlabeled:
            raise ValueError(
                f"The sampler's support sets have {sampler.n_hidden} unlabelled rows, "
                "which this meta-learner cannot use. Pass n_unlabeled=0, or use a "
                "semi-supervised one."
            )
        self.sampler = sampler
        self.classification = schema.classification
        self.weight = None
        _encode_y(sampler[0], schema, 0)
        if schema.classification:
            label_array(sampler.classes_, "y of the sampler")
            self.y, n_classes = None, sampler.n_way
        else:
            (self.y, _), n_classes = schema.encode(sampler.y, "the sampler"), 0
        self.n_classes = np.array([n_classes])
        self._n_support = sampler.n_way * sampler.n_shot + sampler.n_hidden
        self._n_query = sampler.n_way * sampler.n_query

    def encoded(self, index) -> Encoded:
        """What the outputs of episode `index` stand for."""
        classes = np.unique(self.sampler[index].y) if self.classification else None
        return Encoded(int(self.n_classes[0]), classes)

    def of_kind(self, kind):
        """(number of classes, whether rows have weights)."""
        return int(self.n_classes[0]), False

    def metadata(self, kind, indices):
        """Episodes have none."""
        return None

    def positions(self, index, slots, start):
        """Positions in an episode of slots that begin at position `start` of it."""
        return np.arange(start, start + len(slots))

    def visits(self, indices, rng) -> Visits:
        """Support and query rows of episodes."""
        rows, codes = self.sampler.draw(indices)
        n, length = rows.shape
        return Visits(
            rows.ravel(),
            np.arange(0, n * length, length),
            self._n_support,
            self._n_query,
            0,
            codes.ravel() if self.classification else None,
        )

    def evaluation_draw(self, index):
        """Support and query rows of an episode, as positions in it."""
        rows = np.arange(self._n_support + self._n_query)
        return rows[: self._n_support], rows[self._n_support :]

    def check_draws(self):
        """Episodes always have query rows."""


def ranges(starts, lengths):
    """``start, start + 1, ...`` of each length, one after the other."""
    ends = np.cumsum(lengths)
    if not len(ends):
        return ends
    return np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)


def _encode_y(task, schema, position, mark=False):
    """y as numbers; rows without a known label get those of a labelled one.

    Where such rows may be used, or with `mark`, they get -1, or NaN in regression.
    """
    y, kind, what = task.y, schema.labels, call_task(task, position)
    if schema.classification and task.labels != kind:
        raise ValueError(
            f"{what} has {task.labels} labels; the meta-learner was fitted on "
            f"tasks with {kind} ones."
        )
    labeled = np.ones(len(y), bool) if task.labeled is None else task.labeled
    if not labeled.all():
        if not labeled.any():
            raise ValueError(f"{what} has no row with a known label.")
        y = y.copy()
        y[~labeled] = y[np.flatnonzero(labeled)[0]]
    if schema.classification and kind == "local" and task.support is not None:
        known = np.unique(y[task.support & labeled])
        lacking = np.setdiff1d(np.unique(y), known)
        if lacking.size:
            raise ValueError(
                f"{what} has local labels, and its query set the class "
                f"{lacking[0]!r}, of which the support set has no row. Give every "
                "class a support row, or leave its query rows out."
            )
    known = labeled if schema.uses_unlabeled else None
    encoded, classes = schema.encode(y, what, known)
    if mark:
        encoded[~labeled] = -1 if schema.classification else np.nan
    return encoded, classes


def _check_usable(n_usable, task, position):
    if n_usable < 2:
        raise ValueError(
            f"{call_task(task, position)} has {n_usable} labelled row(s); at least 2 "
            "are needed, one for the support set and one for the query set."
        )
