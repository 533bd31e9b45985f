"""Episodes drawn from labelled data, lazily."""

from collections.abc import Sequence
from numbers import Integral

import numpy as np

from sk_meta.tasks.disk import View, on_disk

# Constants of SplitMix64.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


class Episode(View):
    """A view of a table, made by `EpisodeSampler`."""

    def __init__(self, table, rows, y, n_support, name=None, labeled=None):
        self.table = table
        self.rows = rows
        self.y = y
        self.support = np.arange(len(rows)) < n_support
        self.labels = "local"
        self.metadata = self.sample_weight = None
        self.labeled = labeled
        self.name = name

    def replace_table(self, table):
        """The same episode over another table with the same rows."""
        n_support = int(self.support.sum())
        return Episode(table, self.rows, self.y, n_support, self.name, self.labeled)


class EpisodeSampler(Sequence):
    """A lazy sequence of episodes: n_way classes with n_shot labelled rows each.

    Item i is the same episode every time; rows are never copied until they are used.
    Takes the place of a list of tasks in `fit`, `score` and `evaluate`.

    Parameters
    ----------
    X : array of shape (n_rows, ...) or DataFrame
        Features.
    y : array of shape (n_rows,)
        Class of each row.
    n_way : int, default=5
        Classes in an episode.
    n_shot : int, default=1
        Rows of each class in the support set.
    n_query : int, default=15
        Rows of each class in the query set.
    n_episodes : int, default=1000
        Length of the sequence.
    groups : array of shape (n_rows,), default=None
        If given, the classes of an episode all come from one group, such as the
        characters of one alphabet: a harder task than classes from everywhere.
    random_state : int, default=0
        Seed. Episode i depends on it and on i alone.
    n_unlabeled : int, default=0
        Further rows of each class, without their labels, in the support set: for
        semi-supervised learners. Other rows of an episode do not depend on it.
    n_distractors : int, default=0
        Further classes of which `n_unlabeled` rows join them.
    labeled : array of bool of shape (n_rows,), default=None
        If given, `n_shot` and `n_query` rows are drawn from the rows marked here, and
        the unlabelled ones from the others. Of these, `y` only serves the drawing.

    Raises
    ------
    ValueError
        If a class has fewer rows than an episode takes of it, or there are fewer than
        ``n_way + n_distractors`` classes (in every group, where groups are given).

    Notes
    -----
    Cross-validation over one sampler shares classes between the folds, so its score
    says nothing about new classes. Cut the classes first, with `split_classes`.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_meta import EpisodeSampler
    >>> X, y = np.arange(40.0).reshape(20, 2), np.repeat(list("abcde"), 4)
    >>> episodes = EpisodeSampler(X, y, n_way=3, n_shot=1, n_query=2, n_episodes=10)
    >>> len(episodes), episodes[0].X_support.shape, episodes[0].X_query.shape
    (10, (3, 2), (6, 2))
    """

    def __init__(
        self,
        X,
        y,
        n_way=5,
        n_shot=1,
        n_query=15,
        n_episodes=1000,
        groups=None,
        random_state=0,
        n_unlabeled=0,
        n_distractors=0,
        labeled=None,
    ):
        self.X = X if hasattr(X, "iloc") or on_disk(X) else np.asarray(X)
        self.y = np.asarray(y)
        self.groups = None if groups is None else np.asarray(groups)
        self.n_way, self.n_shot, self.n_query = n_way, n_shot, n_query
        self.n_episodes = n_episodes
        self.random_state = random_state
        self.n_unlabeled, self.n_distractors = n_unlabeled, n_distractors
        self.labeled = None if labeled is None else np.asarray(labeled)
        if len(self.X) != len(self.y):
            raise ValueError(
                f"X has {len(self.X)} rows, y has {len(self.y)}; they must agree."
            )
        if not isinstance(random_state, Integral):
            raise ValueError(
                f"random_state must be an integer, got {random_state!r}: episode i is "
                "the same every time."
            )
        for what in ("n_way", "n_shot", "n_query", "n_episodes"):
            if getattr(self, what) < 1:
                raise ValueError(
                    f"{what} must be 1 or more, got {getattr(self, what)}."
                )
        self._check_unlabeled()
        self.classes_, code = np.unique(self.y, return_inverse=True)
        self._rows = self._hidden = _ByClass(code, np.arange(len(code)))
        if self.labeled is not None:
            self._rows = _ByClass(code, np.flatnonzero(self.labeled))
            self._hidden = _ByClass(code, np.flatnonzero(~self.labeled))
        self._check_counts()
        self._check_groups(code)
        self._pools = self._make_pools(code)
        self._seed = _mixed(np.array([random_state % 2**64], dtype=np.uint64))

    @property
    def n_hidden(self):
        """Number of unlabelled rows in a support set."""
        return self.n_unlabeled * (self.n_way + self.n_distractors)

    def _check_unlabeled(self):
        for what in ("n_unlabeled", "n_distractors"):
            if getattr(self, what) < 0:
                raise ValueError(
                    f"{what} must be 0 or more, got {getattr(self, what)}."
                )
        if self.n_distractors and not self.n_unlabeled:
            raise ValueError(
                f"n_distractors is {self.n_distractors}, but n_unlabeled is 0: no row "
                "of these classes would be drawn. Pass n_unlabeled=5, for example."
            )
        given = self.labeled
        if given is not None and (given.dtype != bool or given.shape != self.y.shape):
            raise ValueError(
                f"labeled must be a mask of {len(self.y)} values True and False, got "
                f"an array of dtype {given.dtype} and shape {given.shape}."
            )

    def _check_counts(self):
        """Raise if a class has too few rows."""
        asked = {"n_shot": self.n_shot, "n_query": self.n_query}
        parts = [
            (self._rows.counts, asked, "" if self.labeled is None else "labelled ")
        ]
        if self.labeled is not None:
            hidden = {"n_unlabeled": self.n_unlabeled}
            parts.append((self._hidden.counts, hidden, "unlabelled "))
        elif self.n_unlabeled:
            asked["n_unlabeled"] = self.n_unlabeled
        for counts, asked, kind in parts:
            needed = sum(asked.values())
            small = np.flatnonzero(counts < needed)
            if small.size:
                raise ValueError(
                    f"{small.size} of {len(counts)} classes have fewer than "
                    f"{' + '.join(asked)} = {needed} {kind}rows; the first is "
                    f"{self.classes_[small[0]]!r} with {counts[small[0]]}. Lower "
                    f"{' or '.join(reversed(asked))}, or leave these classes out."
                )

    def _check_groups(self, code):
        if self.groups is None:
            return
        if len(self.groups) != len(self.y):
            raise ValueError(
                f"y has {len(self.y)} rows, groups {len(self.groups)}; they must agree."
            )
        pairs = np.unique(np.stack([code, _codes(self.groups)]), axis=1)[0]
        shared = np.flatnonzero(np.bincount(pairs) > 1)
        if shared.size:
            raise ValueError(
                f"{shared.size} of {len(self.classes_)} classes have rows in several "
                f"groups; the first is {self.classes_[shared[0]]!r}. Name classes by "
                "group and class together, or leave out `groups`."
            )

    def _make_pools(self, code):
        """The sets of classes that an episode may be drawn from."""
        if self.groups is None:
            pools = [range(len(self.classes_))]
        else:
            pools = [
                np.unique(code[self.groups == group]).tolist()
                for group in np.unique(self.groups)
            ]
        needed = self.n_way + self.n_distractors
        enough = [pool for pool in pools if len(pool) >= needed]
        if not enough:
            where = "X" if self.groups is None else "the largest group"
            asked = "n_way + n_distractors" if self.n_distractors else "n_way"
            raise ValueError(
                f"{asked} is {needed}, but {where} has {max(map(len, pools))} classes. "
                f"Lower {asked.replace('+', 'or')}."
            )
        return enough

    def __len__(self):
        return self.n_episodes

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        index = int(index) % len(self)
        (rows,), (codes,) = self.draw(np.array([index]))
        n_support = self.n_way * self.n_shot + self.n_hidden
        y, labeled = self.y[rows], None
        if self.n_hidden:
            labeled = codes >= 0
            y[~labeled] = y[0]  # what is hidden is not there
        name = f"episode {index}"
        return Episode(self.X, rows, y, n_support, name, labeled)

    def draw(self, indices):
        """Rows of many episodes at once.

        Parameters
        ----------
        indices : int array of shape (n_episodes,)

        Returns
        -------
        rows : int array of shape (n_episodes, n_rows)
            Positions in `X`: the support sets, class by class, then their `n_hidden`
            unlabelled rows in random order, then the query sets, class by class.
        codes : int array of that shape
            Class of each row, as its rank among the classes of the episode; -1 for
            those without a label.
        """
        n = len(indices)
        seeds = _mixed(self._seed + indices.astype(np.uint64) * _STEP)
        uniform = (_stream(seeds, 0, 1 + self.n_way) >> np.uint64(11)) * 2.0**-53
        if self.n_hidden:  # numbers of their own: the labelled rows stay the same
            hidden_seeds = _mixed(seeds ^ _STEP)
            more = _stream(hidden_seeds, 0, self.n_distractors) >> np.uint64(11)
            uniform = np.concatenate([uniform, more * 2.0**-53], axis=1)
        classes = np.array([self._draw_classes(*u) for u in uniform.tolist()])
        every, classes = classes, classes[:, : self.n_way]
        keys = self._rows.keys(seeds, 1 + self.n_way, classes)
        picked = keys.argsort(axis=-1)[..., : self.n_shot + self.n_query]
        rows = self._rows.at(classes, picked)
        ranks = classes.argsort(axis=1).argsort(axis=1)
        support, query = rows[..., : self.n_shot], rows[..., self.n_shot :]
        parts = [support.reshape(n, -1), query.reshape(n, -1)]
        sizes = self.n_shot, self.n_query
        codes = [ranks.repeat(size, axis=1) for size in sizes]
        if self.n_hidden:
            taken = picked if self.labeled is None else picked[..., :0]
            parts.insert(1, self._draw_hidden(hidden_seeds, every, taken))
            codes.insert(1, np.full((n, self.n_hidden), -1))
        return np.concatenate(parts, axis=1), np.concatenate(codes, axis=1)

    def _draw_hidden(self, seeds, classes, taken):
        """Unlabelled rows (n_episodes, n_hidden) of classes of which some are taken."""
        start = self.n_distractors
        order = _stream(seeds, start, self.n_hidden).argsort(axis=1)
        keys = self._hidden.keys(seeds, start + self.n_hidden, classes)
        largest = np.iinfo(np.uint64).max
        np.put_along_axis(keys[:, : self.n_way], taken, largest, axis=-1)
        picked = keys.argsort(axis=-1)[..., : self.n_unlabeled]
        rows = self._hidden.at(classes, picked).reshape(len(seeds), -1)
        return np.take_along_axis(rows, order, axis=1)

    def _draw_classes(self, first, *others):
        """Different classes of a pool, from uniform numbers."""
        pool = self._pools[int(first * len(self._pools))]
        moved, chosen = {}, []
        for i, uniform in enumerate(
            others
        ):  # the first steps of a Fisher-Yates shuffle
            j = i + int(uniform * (len(pool) - i))
            chosen.append(pool[moved.get(j, j)])
            moved[j] = moved.get(i, i)
        return chosen

    def replace_table(self, table):
        """The same episodes over another table with the same rows."""
        return EpisodeSampler(
            table,
            self.y,
            self.n_way,
            self.n_shot,
            self.n_query,
            self.n_episodes,
            self.groups,
            self.random_state,
            self.n_unlabeled,
            self.n_distractors,
            self.labeled,
        )

    def __repr__(self):
        names = ["n_way", "n_shot", "n_query"]
        names += [n for n in ("n_unlabeled", "n_distractors") if getattr(self, n)]
        sizes = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"EpisodeSampler({self.n_episodes} episodes, {sizes})"


class _ByClass:
    """Some rows of a table, class by class.

    Parameters
    ----------
    code : int array of shape (n_table_rows,)
        Class of each row of the table.
    rows : int array of shape (n_rows,)
    """

    def __init__(self, code, rows):
        # The rows of class k are order[starts[k] : starts[k] + counts[k]].
        self.order = rows[code[rows].argsort(kind="stable")]
        self.counts = np.bincount(code[rows], minlength=code.max() + 1)
        self.starts = np.cumsum(self.counts) - self.counts

    def keys(self, seeds, start, classes):
        """Random numbers (n, n_classes, width) that order the rows of each class."""
        counts = self.counts[classes]
        n, n_classes = classes.shape
        width = int(counts.max())
        keys = _stream(seeds, start, width * n_classes)
        # A class's numbers must not depend on the width: other episodes decide it.
        keys = keys.reshape(n, width, n_classes).swapaxes(1, 2)
        if counts.min() < width:
            keys[np.arange(width) >= counts[..., None]] = np.iinfo(np.uint64).max
        return keys

    def at(self, classes, picked):
        """Rows of the table at positions (n, n_classes, k) within their classes."""
        return self.order[picked + self.starts[classes][..., None]]


def _mixed(x):
    """Scatter 64-bit numbers, in place: the output function of SplitMix64."""
    x ^= x >> _SHIFTS[0]
    x *= _FACTORS[0]
    x ^= x >> _SHIFTS[1]
    x *= _FACTORS[1]
    x ^= x >> _SHIFTS[2]
    return x


def _stream(seeds, start, length):
    """Random 64-bit numbers (n, length), from position `start` of the seeds' streams.

    SplitMix64 (Steele, Lea, Flood 2014): unlike a generator, it costs nothing to start
    anew for each episode.
    """
    steps = np.arange(start + 1, start + 1 + length, dtype=np.uint64)
    return _mixed(seeds[:, None] + steps * _STEP)


def _codes(values):
    return np.unique(values, return_inverse=True)[1]


def tables_of(tasks):
    """Identities of the tables that the episodes among tasks are drawn from."""
    if isinstance(tasks, EpisodeSampler):
        return {id(tasks.X)}
    return {id(task.table) for task in tasks if isinstance(task, Episode)}


def split_classes(y, test_size=0.25, *, groups=None, random_state=None):
    """Split rows so that no class is on both sides.

    Parameters
    ----------
    y : array of shape (n_rows,)
        Class of each row.
    test_size : float or int, default=0.25
        Share or number of the classes (of the groups, where given) on the second side.
    groups : array of shape (n_rows,), default=None
        If given, whole groups go to one side, such as alphabets.
    random_state : int, RandomState instance or None, default=None
        Seed of the split.

    Returns
    -------
    train, test : ndarray of int
        Row positions.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_meta import split_classes
    >>> y = np.repeat(list("abcd"), 2)
    >>> train, test = split_classes(y, test_size=1, random_state=0)
    >>> sorted(set(y[train]) & set(y[test]))
    []
    """
    from sklearn.model_selection import train_test_split

    units = np.asarray(y if groups is None else groups)
    train, test = train_test_split(
        np.unique(units), test_size=test_size, random_state=random_state
    )
    return np.flatnonzero(np.isin(units, train)), np.flatnonzero(np.isin(units, test))
