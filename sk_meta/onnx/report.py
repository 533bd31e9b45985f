"""What a learner costs where it runs: its file, its work, its time."""

import os
import zlib
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np
from sklearn.pipeline import Pipeline

from sk_meta.onnx.export import _few_shot_of, _is_meta_learner, example_rows
from sk_meta.pipeline import adapt, parts_of
from sk_meta.tasks.task import Task, take_rows
from sk_meta.wrapped import file_within, unwrapped

__all__ = ["SizeReport", "size_report"]

_MANY = 64  # query rows at once
_EACH = 5  # support rows a class, and of five "classes" in regression
_SECONDS = 1.0  # after which a measurement is not repeated any more


@dataclass(frozen=True, repr=False)
class SizeReport:
    """What a learner or an adapted model costs; a list of them makes a DataFrame.

    Attributes
    ----------
    kilobytes : float
        Size of the ONNX file, in 1,000 bytes.
    kilobytes_zipped : float
        The same, compressed, as packages and web servers send it: zeros that pruning
        by magnitude leaves in the file cost next to nothing here.
    parameters : int or None
        Numbers that the learner has learned, without those that are pruned.
    multiply_adds : int or None
        To predict one row once adapted, in matrix products and convolutions.
    adapt_ms : float or None
        Milliseconds of the learner's file for a support set and one query row.
    predict_ms : float or None
        Milliseconds of the adapted model's file for one row.
    predict_64_ms : float or None
        Milliseconds of the adapted model's file for 64 rows.
    n_support : int or None
        Rows of the support set that it adapted to.
    """

    kilobytes: float
    kilobytes_zipped: float
    parameters: int | None = None
    multiply_adds: int | None = None
    adapt_ms: float | None = None
    predict_ms: float | None = None
    predict_64_ms: float | None = None
    n_support: int | None = None

    def __str__(self):
        zipped = f"{self.kilobytes_zipped:,.1f} KB zipped"
        lines = [("file", f"{self.kilobytes:,.1f} KB ({zipped})")]
        if self.parameters is not None:
            lines.append(("parameters", f"{self.parameters:,}"))
        if self.multiply_adds is not None:
            lines.append(("multiply-adds", f"{self.multiply_adds:,} for one row"))
        if self.adapt_ms is not None:
            rows = f"{self.n_support} support rows"
            lines.append(("adapt", f"{self.adapt_ms:.3f} ms ({rows})"))
        if self.predict_ms is not None:
            many = f"{self.predict_64_ms:.3f} ms for 64 rows"
            lines.append(("predict", f"{self.predict_ms:.3f} ms for 1 row, {many}"))
        return "\n".join(f"{name:<15}{value}" for name, value in lines)

    __repr__ = __str__


def size_report(model, task=None, *, n_repeats=200):
    """Size, work and time of a learner, or of an adapted model.

    It is exported; the size is that of the file, and the times are medians in
    onnxruntime on one thread.

    Parameters
    ----------
    model : estimator, or path or bytes of an ONNX file
        A fitted meta-learner, a Pipeline that ends in one, a search over these, or what
        `adapt` returns.
    task : Task or pair (X, y), default=None
        Its support set (all of its rows, where it has none) is adapted to, and its rows
        are predicted. None means random rows: 5 of each class (of up to five classes,
        where each task has its own), or 25 in regression. Needed where inputs are
        columns of a DataFrame.
    n_repeats : int, default=200
        Runs of each measurement; fewer where they take more than a second.

    Returns
    -------
    SizeReport
        None stands for what is not known: a file does not tell its parameters, and
        there is no file of an adapted model for a learner that is only a file, or runs
        as one, such as a quantised one.

    Raises
    ------
    ValueError
        If a task is needed, or if the model cannot be exported.
    ImportError
        If a package that this needs is not installed.

    Notes
    -----
    Times are of this computer, and of nothing else that runs on it. A file of a learner
    adapts anew in each run; one of an adapted model only predicts.

    Examples
    --------
    >>> from sk_meta import FewShotClassifier, size_report
    >>> few_shot = FewShotClassifier().fit([[0.0], [1.0]], ["low", "high"])
    >>> report = size_report(few_shot)
    >>> report.kilobytes < 2
    True
    >>> report.predict_ms < report.predict_64_ms + 1
    True
    """
    if n_repeats < 1:
        raise ValueError(f"n_repeats must be 1 or more, got {n_repeats!r}.")
    task = Task(*task) if isinstance(task, tuple) else task
    if isinstance(model, str | os.PathLike | bytes | bytearray | memoryview):
        return _of_file(model, task, n_repeats)
    model = getattr(model, "best_estimator_", model)
    if _is_meta_learner(model):
        return _of_learner(model, task, n_repeats)
    return _of_adapted(model, task, n_repeats)


def learner_cost(model, task=None, *, n_repeats=200):
    """Kilobytes of a learner's file, and milliseconds to adapt.

    Parameters
    ----------
    model, task, n_repeats
        As in `size_report`; `model` is a meta-learner or a Pipeline ending in one.

    Returns
    -------
    kilobytes, milliseconds : float
    """
    task = Task(*task) if isinstance(task, tuple) else task
    data, _ = _learner_file(model, task)
    return len(data) / 1000, _adapt_ms(data, task, n_repeats)[0]


def _of_learner(model, task, n_repeats):
    data, meta = _learner_file(model, task)
    adapt_ms, task = _adapt_ms(data, task, n_repeats, meta.schema_)
    X, y = _support_rows(task)
    adapted = adapt(model, X, y, metadata=task.metadata)
    times = None, None
    if file_within(parts_of(model)[1]) is None:
        rest = _of_adapted(adapted, task, n_repeats)
        times = rest.predict_ms, rest.predict_64_ms
    rows = np.zeros((len(X), *meta.schema_.shape), dtype=np.float32)
    state, _ = meta.adapt_state(rows, y, metadata=task.metadata)
    work = _work(meta, state)
    return SizeReport(*_kilobytes(data), *work, adapt_ms, *times, len(X))


def _of_adapted(model, task, n_repeats):
    few_shot = _few_shot_of(model)
    if task is not None:
        X = task.X if hasattr(task.X, "columns") else np.asarray(task.X, np.float32)
    elif isinstance(model, Pipeline) and hasattr(model, "feature_names_in_"):
        raise ValueError(
            "The model was fitted on a DataFrame, whose columns are inputs of its file."
            " Pass a task, to tell their types."
        )
    else:
        X = example_rows(model, few_shot)
    data, meta = _exported(model, X), few_shot._meta()
    work = (None, None) if meta is None else _work(unwrapped(meta), few_shot.state_)
    times = _predict_ms(data, X, n_repeats)
    return SizeReport(*_kilobytes(data), *work, None, *times)


def _of_file(file, task, n_repeats):
    from sk_meta.onnx.session import content_of

    data = content_of(file)
    if b"sk_meta.sha256" in data[-84:]:  # where a learner's file has its checksum
        adapt_ms, task = _adapt_ms(data, task, n_repeats)
        rows = len(_support_rows(task)[0])
        return SizeReport(*_kilobytes(data), adapt_ms=adapt_ms, n_support=rows)
    X = None if task is None else task.X
    predict_ms, predict_64_ms = _predict_ms(data, X, n_repeats)
    return SizeReport(
        *_kilobytes(data), predict_ms=predict_ms, predict_64_ms=predict_64_ms
    )


def _learner_file(model, task):
    """Content of the learner's file, and the meta-learner that is in it."""
    _, meta = parts_of(model)
    columns = takes_columns(model)
    if columns and task is None:
        raise ValueError(
            "The pipeline was fitted on DataFrames, whose columns are inputs of its "
            "file. Pass a task, to tell their types."
        )
    X = task.X if columns else None
    return _exported(model, X), unwrapped(meta)


def takes_columns(model):
    """Whether a pipeline's file has an input for each column of a DataFrame."""
    steps, _ = parts_of(model)
    return bool(steps) and hasattr(steps[0][1].transformer_, "feature_names_in_")


def _exported(model, X):
    from sk_meta.onnx import to_onnx  # from there, skl2onnx learns our estimators

    return to_onnx(model, X=X).SerializeToString()


def _kilobytes(data):
    return len(data) / 1000, len(zlib.compress(data, 9)) / 1000


def _adapt_ms(data, task, n_repeats, schema=None):
    """Milliseconds for the support set and one query row, and the task they are of."""
    from sk_meta.onnx import OnnxMetaLearner

    learner = OnnxMetaLearner(data)
    if task is None:
        task = _made_up(learner, learner._schema if schema is None else schema)
    X, y = _support_rows(task)
    state, _ = learner.adapt_state(X, y, metadata=task.metadata)
    feed = state.feed | learner._inputs("X_query", take_rows(task.X, [0]), "X")
    return _median_ms(_session(data), feed, n_repeats), task


def _made_up(learner, schema):
    """A task of random rows, all of them in its support set."""
    rng, given = np.random.default_rng(0), learner._session.inputs().get("X_support")
    if given is None:
        raise ValueError(
            "The inputs of the file are columns of a DataFrame. Pass a task, to tell "
            "what is in them."
        )
    if not schema.classification:
        y = rng.standard_normal((_EACH**2, schema.n_outputs))
        y = schema.target_mean + schema.target_scale * y
        y = y if schema.multi_output else y[:, 0]
    elif schema.labels == "shared":
        y = np.repeat(schema.classes, _EACH)
    else:
        y = np.repeat(np.arange(min(_EACH, learner._most_classes or _EACH)), _EACH)
    X = rng.standard_normal((len(y), *given.shape[1:])).astype(np.float32)
    metadata = schema.metadata
    if metadata is not None:
        names, metadata = metadata.names, np.asarray(metadata.mean)
        if names is not None:
            metadata = dict(zip(names, metadata.tolist(), strict=True))
    return Task(X, y, metadata=metadata)


def _support_rows(task):
    if task.support is None:
        return task.X, task.y
    return task.X_support, task.y_support


def _predict_ms(data, X, n_repeats):
    """Milliseconds of an adapted model's file for one row and for many."""
    from sk_meta.onnx.checking import _DTYPES, feed

    session = _session(data)
    if X is None:
        given = session.get_inputs()
        if len(given) > 1 or given[0].type != "tensor(float)":
            raise ValueError(
                "The inputs of the file are columns of a DataFrame. Pass a task, to "
                "tell what is in them."
            )
        rng = np.random.default_rng(0)
        X = rng.standard_normal((_MANY, *given[0].shape[1:]))
    if not hasattr(X, "columns"):
        X = np.asarray(X, _DTYPES[session.get_inputs()[0].type])
    times = []
    for n in (1, _MANY):
        rows = take_rows(X, np.resize(np.arange(len(X)), n))
        times.append(_median_ms(session, feed(session, rows), n_repeats))
    return tuple(times)


def _session(data):
    import onnx

    from sk_meta.onnx.checking import start

    try:
        return start(onnx.load_from_string(data))
    except Exception as error:
        raise ValueError(f"onnxruntime cannot read the file: {error!s:.300}") from error


def _median_ms(session, feed, n_repeats):
    session.run(None, feed)  # the first run allocates
    times = []
    while len(times) < n_repeats and sum(times) < _SECONDS:
        start = perf_counter()
        session.run(None, feed)
        times.append(perf_counter() - start)
    return 1000 * median(times)


def _work(meta, state):
    """Numbers in the learner, and multiply-adds of one row once adapted."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    learner = meta.learner_
    parameters = sum(parameter.numel() for parameter in learner.parameters())
    masks = (getattr(layer, "mask", None) for layer in learner.modules())
    parameters -= sum(int((~mask).sum()) for mask in masks if torch.is_tensor(mask))
    row = torch.zeros(1, *meta.schema_.shape, device=meta.net_.device)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        learner.predict(state, row)
    return parameters, counter.get_total_flops() // 2
