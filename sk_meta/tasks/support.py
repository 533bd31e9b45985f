"""Which rows of a task form its support set."""

import zlib
from numbers import Integral, Real

import numpy as np


def check_support_size(support_size):
    """Raise unless `support_size` is rows, a fraction, or a range of either."""
    is_range = isinstance(support_size, tuple)
    bounds = support_size if is_range else (support_size,)
    valid = len(bounds) == 1 + is_range and all(
        (isinstance(b, Integral) and not isinstance(b, bool) and b >= 1)
        or (isinstance(b, Real) and not isinstance(b, Integral) and 0 < b < 1)
        for b in bounds
    )
    if valid and is_range:
        same_kind = isinstance(bounds[0], Integral) == isinstance(bounds[1], Integral)
        valid = same_kind and bounds[0] <= bounds[1]
    if not valid:
        raise ValueError(
            "support_size must be a number of rows (1 or more), a fraction between 0 "
            f"and 1, or a range (low, high) of one of these, got {support_size!r}."
        )


def draw_size(support_size, rng: np.random.Generator):
    """One size: `support_size` itself, or a draw from its range."""
    if not isinstance(support_size, tuple):
        whole = isinstance(support_size, Integral)
        return int(support_size) if whole else float(support_size)
    low, high = support_size
    if isinstance(low, Integral):
        return int(rng.integers(low, high + 1))
    return float(rng.uniform(low, high))


def evaluation_generator(task, evaluation_seed: int) -> np.random.Generator:
    """A generator that depends on the seed and on the task's y, not on its X.

    A search that transforms X in several ways thus compares its candidates on the
    same rows.
    """
    y = np.asarray(task.y)
    content = "\x1f".join(map(str, y.ravel().tolist())).encode()
    return np.random.default_rng((evaluation_seed, zlib.crc32(content)))


def rows_drawn(n_rows: np.ndarray, size: int | float) -> np.ndarray:
    """How many of `n_rows` rows are drawn: at least one, and all but one at most.

    Rows of a class, or of a regression task.
    """
    wanted = np.rint(size * n_rows) if isinstance(size, float) else size
    return np.maximum(1, np.minimum(wanted, n_rows - 1)).astype(np.int64)


def draw_support(
    codes: np.ndarray | None,
    usable: np.ndarray,
    size: int | float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Positions of the rows of a support set.

    Parameters
    ----------
    codes : int array of shape (n_rows,) or None
        Class of each row, for a stratified draw; None for a regression task.
    usable : int array
        Positions of the rows that may be drawn.
    size : int or float
        Rows (of each class, where there are classes), or a fraction of them. At least
        one row is drawn (of each class), and one is left where there are two.
    rng : numpy.random.Generator

    Returns
    -------
    int array, shuffled.
    """
    shuffled = rng.permutation(usable)
    if codes is None:
        strata = [shuffled]
    else:
        order = np.argsort(codes[shuffled], kind="stable")
        counts = np.bincount(codes[shuffled])
        strata = np.split(shuffled[order], np.cumsum(counts[counts > 0])[:-1])
    n_rows = np.array([len(rows) for rows in strata])
    n_drawn = rows_drawn(n_rows, size)
    drawn = [rows[:n] for rows, n in zip(strata, n_drawn, strict=True)]
    return rng.permutation(np.concatenate(drawn))


def draw_supports(
    n_rows: np.ndarray,
    task: np.ndarray,
    size: int | float,
    of_classes: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """Support sets of many tasks at once.

    Parameters
    ----------
    n_rows : int array of shape (n_strata,)
        Rows of each stratum: a class of a task, or a whole regression task.
    task : int array of shape (n_strata,)
        Task of each stratum, in ascending order.
    size : int or float
        As in `draw_support`.
    of_classes : bool
        Whether strata are classes.
    rng : numpy.random.Generator

    Returns
    -------
    int array of shape (n_rows.sum(),)
        Positions among the rows of all strata, one after the other. Task by task, the
        support set, of `rows_drawn` rows a stratum, then the other rows, both shuffled.
    """
    # Sorting by a whole number plus a random fraction shuffles within equal numbers.
    # Of 24 bits, so that the sum is exact.
    stratum = np.repeat(np.arange(len(n_rows)), n_rows)
    order = (stratum + rng.random(len(stratum), dtype=np.float32)).argsort()
    if not of_classes:
        return order
    rank = np.arange(len(order)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    left = rank >= np.repeat(rows_drawn(n_rows, size), n_rows)
    part = 2 * np.repeat(task, n_rows) + left
    return order[(part + rng.random(len(part), dtype=np.float32)).argsort()]
