"""Tables with an id column: one group of rows is one task."""

from io import BytesIO

import numpy as np
from sklearn.utils import Bunch

from sk_meta.datasets.files import (
    SHIPPED,
    Files,
    description,
    open_files,
    optional_import,
)
from sk_meta.tasks.grouping import tasks_from_groups

UPDRS = ("total_UPDRS", "motor_UPDRS")
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
HEART_FEATURES = [
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang"),
    *("oldpeak", "slope", "ca", "thal"),
]

TABLE_DESCR = """\
A table of your own, read by load_table. Its licence and citation are those of whoever
made it.
"""


def load_parkinsons(path=None, *, target="total_UPDRS", as_tasks=False, as_frame=False):
    """Load Parkinson's telemonitoring: readings of 42 patients over six months.

    The published scores are interpolated between three visits to a clinician, so rows
    left out at random are easy for anyone who interpolates in time. The honest use is a
    forecast: the first readings in time are the support set, the later ones the query
    set. Licence: CC BY 4.0. Citation: Tsanas et al. [1]_.

    Parameters
    ----------
    path : str or Path, default=None
        Your own copy instead of the one that ships with the package:
        ``parkinsons_updrs.data``, or the folder or zip archive that holds it.
    target : {"total_UPDRS", "motor_UPDRS"}, default="total_UPDRS"
        The score to predict. The other one is not in `data` either.
    as_tasks : bool, default=False
        Return a list of tasks, one per patient.
    as_frame : bool, default=False
        Use pandas objects. Needs pandas.

    Returns
    -------
    Bunch or list of Task
        Bunch with `data` (5875, 19): age (years), sex (0 male, 1 female), test_time
        (days), then 16 measures of the voice; `target` (5875,); `groups` (5875,), the
        number of the patient; `feature_names`, `target_names`, `DESCR`, and `frame`
        with `as_frame=True`. Sorted by patient, then by time.

    References
    ----------
    .. [1] A. Tsanas, M. A. Little, P. E. McSharry, L. O. Ramig (2010). Accurate
       telemonitoring of Parkinson's disease progression by noninvasive speech tests.
       IEEE Transactions on Biomedical Engineering 57(4), 884-893.

    Examples
    --------
    >>> from sk_meta.datasets import load_parkinsons
    >>> from sk_meta.tasks.task import Task
    >>> patients = load_parkinsons(as_tasks=True)
    >>> len(patients)
    42

    Forecast from the first ten readings:

    >>> tasks = [Task(p.X, p.y, support=range(10), name=p.name) for p in patients]
    >>> tasks[0]
    Task('1', n_rows=149, n_support=10)
    """
    if target not in UPDRS:
        raise ValueError(f"target must be one of {UPDRS}, got {target!r}.")
    with open_files(path or SHIPPED / "parkinsons_telemonitoring.zip") as files:
        single = next(iter(files.values())) if len(files) == 1 else None
        raw = (single or _find(files, "parkinsons_updrs.data", path))()
    header, _, body = raw.partition(b"\n")
    columns = [name.strip() for name in header.decode().split(",")]
    _require(columns, ["subject#", "age", "sex", "test_time", target], path)
    table = dict(zip(columns, _numbers(body).T, strict=True))
    order = np.lexsort((table["test_time"], table["subject#"]))
    features = [name for name in columns if name not in ("subject#", *UPDRS)]
    return _package(
        np.column_stack([table[name] for name in features])[order],
        table[target][order],
        table["subject#"][order].astype(int),
        names=(features, target, "patient"),
        as_tasks=as_tasks,
        as_frame=as_frame,
        target_names=[target],
        DESCR=description("parkinsons_telemonitoring"),
    )


def load_heart_disease(path=None, *, as_tasks=False, as_frame=False):
    """Load heart disease in four hospitals: who is diseased, from 13 measures.

    Missing values are NaN; so are a cholesterol and a resting blood pressure of 0,
    which hospitals wrote for a missing value. Licence: CC BY 4.0. Citation: Janosi et
    al. [1]_.

    Parameters
    ----------
    path : str or Path, default=None
        Your own copy instead of the one that ships with the package: the folder or zip
        archive that holds ``processed.cleveland.data``, ``processed.hungarian.data``,
        ``processed.switzerland.data`` and ``processed.va.data``.
    as_tasks : bool, default=False
        Return a list of tasks, one per hospital.
    as_frame : bool, default=False
        Use pandas objects. Needs pandas.

    Returns
    -------
    Bunch or list of Task
        Bunch with `data` (920, 13), `target` (920,), 0 or 1, `groups` (920,), the name
        of the hospital, `feature_names`, `target_names` (["healthy", "diseased"]),
        `DESCR`, and `frame` with `as_frame=True`.

    References
    ----------
    .. [1] A. Janosi, W. Steinbrunn, M. Pfisterer, R. Detrano (1988). Heart Disease. UCI
       Machine Learning Repository. https://doi.org/10.24432/C52P4X

    Examples
    --------
    >>> from sk_meta.datasets import load_heart_disease
    >>> for hospital in load_heart_disease(as_tasks=True):
    ...     print(hospital)
    Task('cleveland', n_rows=303)
    Task('hungarian', n_rows=294)
    Task('switzerland', n_rows=123)
    Task('va', n_rows=200)
    """
    with open_files(path or SHIPPED / "heart_disease.zip") as files:
        tables = [
            _numbers(_find(files, f"processed.{hospital}.data", path)())
            for hospital in HOSPITALS
        ]
    table = np.concatenate(tables)
    X, grade = table[:, :-1], table[:, -1]
    zero_is_missing = [HEART_FEATURES.index(name) for name in ("trestbps", "chol")]
    X[:, zero_is_missing] = np.where(
        X[:, zero_is_missing] == 0, np.nan, X[:, zero_is_missing]
    )
    return _package(
        X,
        (grade >= 1).astype(int),
        np.repeat(HOSPITALS, [len(rows) for rows in tables]),
        names=(HEART_FEATURES, "diseased", "hospital"),
        as_tasks=as_tasks,
        as_frame=as_frame,
        target_names=["healthy", "diseased"],
        DESCR=description("heart_disease"),
    )


def load_table(
    path, *, target, group, features=None, labels="shared", as_tasks=False, **options
):
    """Load a table of your own with an id column: a CSV, or what pandas reads as one.

    The licence and the citation are those of your table. Needs pandas.

    Parameters
    ----------
    path : str, Path or file
        Anything that ``pandas.read_csv`` takes.
    target : str or list of str
        The column to predict, or several.
    group : str
        The id column: which task a row belongs to.
    features : list of str, default=None
        The columns to predict from. None means all but `target` and `group`.
    labels : {"shared", "local"}, default="shared"
        Whether a label means the same in every task. Used with `as_tasks=True`.
    as_tasks : bool, default=False
        Return a list of tasks, one per group, in order of first appearance.
    **options
        Passed to ``pandas.read_csv``: ``sep``, ``na_values``, and so on.

    Returns
    -------
    Bunch or list of Task
        Bunch with `data` (a DataFrame), `target`, `groups`, `feature_names`,
        `target_names`, `frame` and `DESCR`. Rows keep their order.

    Raises
    ------
    ImportError
        If pandas is not installed.
    ValueError
        If the table lacks a column.

    Examples
    --------
    >>> from io import StringIO
    >>> from sk_meta.datasets import load_table
    >>> csv = StringIO("shop,day,sales\\nA,1,5.0\\nA,2,6.0\\nB,1,2.0")
    >>> load_table(csv, target="sales", group="shop", as_tasks=True)
    [Task('A', n_rows=2), Task('B', n_rows=1)]
    """
    pandas = optional_import("pandas", "pandas", "load_table")
    frame = pandas.read_csv(path, **options)
    targets = [target] if isinstance(target, str) else list(target)
    _require(list(frame.columns), [group, *targets, *(features or [])], path)
    if features is None:
        features = [name for name in frame.columns if name not in (group, *targets)]
    data, groups = frame[list(features)], frame[group].to_numpy()
    y = frame[target if isinstance(target, str) else targets].to_numpy()
    if as_tasks:
        return tasks_from_groups(data, y, groups, labels=labels)
    return Bunch(
        data=data,
        target=y,
        groups=groups,
        feature_names=list(features),
        target_names=targets,
        frame=frame,
        DESCR=TABLE_DESCR,
    )


def _find(files: Files, name: str, path):
    for found, read in files.items():
        if found.split("/")[-1] == name:
            return read
    raise FileNotFoundError(f"{path} holds no {name}; found {list(files)[:5]}.")


def _require(columns: list, wanted: list, path) -> None:
    lacking = [name for name in wanted if name not in columns]
    if lacking:
        raise ValueError(f"{path} has no column {lacking[0]!r}; it has {columns}.")


def _numbers(raw: bytes) -> np.ndarray:
    """Numbers separated by commas; UCI writes "?" for a missing one."""
    return np.loadtxt(BytesIO(raw.replace(b"?", b"nan")), delimiter=",", ndmin=2)


def _package(X, y, groups, *, names, as_tasks, as_frame, **more):
    """A Bunch or a list of tasks, of arrays or of pandas objects."""
    features, target, group = names
    frame = None
    if as_frame:
        pandas = optional_import("pandas", "pandas", "as_frame=True")
        X = pandas.DataFrame(X, columns=features)
        y, groups = pandas.Series(y, name=target), pandas.Series(groups, name=group)
        frame = pandas.concat([groups, X, y], axis=1)
    if as_tasks:
        return tasks_from_groups(X, y, groups)
    bunch = Bunch(data=X, target=y, groups=groups, feature_names=list(features), **more)
    if as_frame:
        bunch.frame = frame
    return bunch
