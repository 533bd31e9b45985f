"""Tables that stay on disk, and tasks that are views of a table."""

import mmap
from bisect import bisect_right
from pathlib import Path

import numpy as np

from sk_meta.tasks.task import Task, take_rows


class View(Task):
    """A task that holds row positions of a table, and takes the rows when asked.

    Parameters
    ----------
    table : array of shape (n_table_rows, ...), DataFrame, or DiskTable
    rows : int array of shape (n_rows,)
        Positions in the table.
    y, support, labels, metadata, sample_weight, labeled, name
        As in `Task`, for these rows.
    """

    def __init__(
        self,
        table,
        rows,
        y,
        support=None,
        labels="shared",
        metadata=None,
        sample_weight=None,
        labeled=None,
        name=None,
    ):
        self.table = table
        self.rows = rows
        self._describe(
            table, len(rows), y, support, labels, metadata, sample_weight, labeled, name
        )

    @property
    def X(self):
        """Features, taken from the table on each access."""
        return take_rows(self.table, self.rows)

    def __len__(self):
        return len(self.rows)


def table_of(task):
    """What a task's features are taken from: its own `X`, or the table of a view."""
    return task.table if isinstance(task, View) else task.X


def on_disk(table) -> bool:
    """Whether a table is a DiskTable or lies in a memory map."""
    while isinstance(table, np.ndarray) and not isinstance(table, np.memmap):
        table = table.base
    return isinstance(table, np.memmap | mmap.mmap | DiskTable)


class DiskTable:
    """Numeric columns of a Parquet or Arrow file, of which rows are read when asked.

    Parameters
    ----------
    path : str or Path
        A Parquet file; or an Arrow IPC (Feather) file if its name ends in ".arrow",
        ".ipc" or ".feather". The latter is mapped into memory.
    columns : list of str
        Columns of numbers, in this order.

    Raises
    ------
    TypeError
        If `columns` is no list.
    ValueError
        If there is no column, or one is missing, named twice or holds no numbers; or if
        the file is of another kind.

    Notes
    -----
    Parquet is read by row group, and one row group is kept: write files with small ones
    (``row_group_size=10_000``), sorted by task, if tasks are visited at random.
    """

    def __init__(self, path, columns):
        self.path, self.columns = Path(path), as_columns(columns, "columns")
        self._file = open_table(path)
        schema = self._file.schema
        for column in self.columns:
            if column not in schema.names:
                raise ValueError(
                    f"{self.path.name} has no column {column!r}; it has {schema.names}."
                )
            kind = schema.field(column).type
            if not self._file.is_number(kind):
                raise ValueError(
                    f"Column {column!r} of {self.path.name} holds {kind}, not numbers. "
                    "Leave it out of `features`, or encode it in the file."
                )
        self._starts = np.concatenate([[0], np.cumsum(self._file.sizes)]).tolist()
        self._kept = (None, None)

    @property
    def shape(self):
        """(n_rows, n_columns)."""
        return self._starts[-1], len(self.columns)

    @property
    def ndim(self):
        """2, as a table has."""
        return 2

    def __len__(self):
        return self._starts[-1]

    def __getitem__(self, rows):
        """Rows by position (a slice or an int array), as an array (n, n_columns)."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows)
        if not rows.size:
            return np.empty((0, len(self.columns)))
        if rows.min() < 0 or rows.max() >= len(self):
            raise IndexError(
                f"{self.path.name} has {len(self)} rows; rows {rows.min()} to "
                f"{rows.max()} were asked for."
            )
        order = np.argsort(rows, kind="stable")
        wanted, parts, start = rows[order], [], 0
        while start < len(wanted):
            chunk = bisect_right(self._starts, wanted[start]) - 1
            stop = np.searchsorted(wanted, self._starts[chunk + 1])
            parts.append(self._read(chunk, wanted[start:stop] - self._starts[chunk]))
            start = stop
        found = np.empty((len(rows), len(self.columns)), np.result_type(*parts))
        found[order] = np.concatenate(parts)
        return found

    def _read(self, chunk, rows):
        if self._kept[0] != chunk:
            self._kept = (chunk, self._file.read(chunk, self.columns))
        part = self._kept[1].take(rows)
        return np.stack([np.asarray(part.column(c)) for c in self.columns], axis=1)

    def __array__(self, dtype=None, copy=None):
        """The whole table, in memory."""
        return np.asarray(self[:], dtype=dtype)

    def __getstate__(self):
        return {"path": self.path, "columns": self.columns}

    def __setstate__(self, state):
        self.__init__(**state)


def as_columns(names, what: str) -> list:
    """Names of columns as a list: some, and no name twice."""
    if isinstance(names, str) or not np.iterable(names):
        raise TypeError(
            f"{what} must be a list of column names, got {names!r}. Pass [{names!r}]."
        )
    names = list(names)
    if not names:
        raise ValueError(f"{what} is empty. Name at least one column.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{what} has the column {twice!r} twice. Name it once.")
    return names


_ARROW = {".arrow", ".feather", ".ipc"}
_FIRST_BYTES = {b"PAR1": ("a Parquet", ".parquet"), b"ARRO": ("an Arrow", ".arrow")}


def open_table(path):
    """A file of row groups (Parquet) or record batches (Arrow)."""
    try:
        from pyarrow import ArrowInvalid
    except ImportError as error:
        raise ImportError(
            "Parquet and Arrow files need pyarrow: pip install 'sk_meta[data]'."
        ) from error
    path = Path(path)
    arrow = path.suffix.lower() in _ARROW
    try:
        return _Arrow(path) if arrow else _Parquet(path)
    except ArrowInvalid as error:
        raise ValueError(_say_kind(path, arrow, error)) from error


def _say_kind(path, arrow, error):
    """What a file is that could not be opened, and what to do."""
    with path.open("rb") as file:
        kind, suffix = _FIRST_BYTES.get(file.read(4), (None, None))
    if kind is None:
        return (
            f"{path.name} is neither a Parquet nor an Arrow file. Write its table as "
            f"one; a CSV file, for example, with pandas: pd.read_csv({path.name!r})"
            f".to_parquet({path.stem + '.parquet'!r})."
        )
    if arrow != (suffix == ".arrow"):
        return (
            f"{path.name} is {kind} file by its content, not by its name. Rename it "
            f"to {path.stem + suffix!r}."
        )
    return f"{path.name} is {kind} file that is damaged ({error}). Write it again."


class _File:
    """Chunks of a file: their `sizes`, the `schema`, and how they are read."""

    @property
    def index_columns(self):
        """Columns in which pandas wrote the index of a DataFrame."""
        index = (self.schema.pandas_metadata or {}).get("index_columns", [])
        return [name for name in index if isinstance(name, str)]  # else a range

    @staticmethod
    def is_number(kind):
        """Whether an Arrow type is one of numbers, or of truth values."""
        from pyarrow import types

        tests = types.is_integer, types.is_floating, types.is_boolean
        return any(test(kind) for test in tests)


class _Parquet(_File):
    def __init__(self, path):
        from pyarrow.parquet import ParquetFile

        self.file = ParquetFile(path)
        self.schema = self.file.schema_arrow
        metadata = self.file.metadata
        self.sizes = [
            metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)
        ]

    def read(self, chunk, columns):
        # Chunks are small, and threads cost more than they bring.
        return self.file.read_row_group(chunk, columns=columns, use_threads=False)

    def read_all(self, columns):
        return self.file.read(columns=columns)


class _Arrow(_File):
    def __init__(self, path):
        from pyarrow import ipc, memory_map

        self.file = ipc.open_file(memory_map(str(path)))
        self.schema = self.file.schema
        self.sizes = [
            self.file.get_batch(i).num_rows for i in range(self.file.num_record_batches)
        ]

    def read(self, chunk, columns):
        return self.file.get_batch(chunk).select(columns)

    def read_all(self, columns):
        return self.file.read_all().select(columns)
