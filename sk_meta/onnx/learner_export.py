"""to_onnx for meta-learners: the graph, what is before it, and the check of both."""

from pathlib import Path

import numpy as np
import onnx
from sklearn.utils.validation import check_is_fitted

from sk_meta.onnx.checking import (
    compare_adapted,
    default_tolerance,
    last_bits_changed,
)
from sk_meta.onnx.graph import quiet
from sk_meta.onnx.learner import (
    description,
    finished,
    learner_graph,
    with_transformers,
)
from sk_meta.onnx.runtime import OnnxMetaLearner
from sk_meta.pipeline import adapt, parts_of
from sk_meta.task_by_task import TaskByTask
from sk_meta.wrapped import file_within, unwrapped

_OPSETS = (18, 22)
_DEFAULT_OPSET = 20
_SIZES = ((5, 1), (9, 14), (26, 3))  # support rows a class or in all, query rows


def export_learner(model, path, X, target_opset, tolerance):
    """See `to_onnx`.

    Parameters
    ----------
    model : fitted meta-learner, or Pipeline of TaskTransformers that ends in one
    path, X, target_opset, tolerance
        As in `to_onnx`.

    Returns
    -------
    onnx.ModelProto
    """
    steps, meta = parts_of(model)
    check_is_fitted(meta)
    transformers = [(name, _pooled(name, step)) for name, step in steps]
    inner = unwrapped(meta)
    require_network(inner)
    X = _example_rows(inner, transformers) if X is None else _in_single_precision(X)
    if stored := file_within(meta):
        given = transformers, path, X, target_opset, tolerance
        return _stored(model, stored, *given)
    opset = _DEFAULT_OPSET if target_opset is None else target_opset
    low, high = _OPSETS
    if not low <= opset <= high:
        raise ValueError(
            f"target_opset of a meta-learner must be from {low} to {high}, got {opset}."
        )
    with quiet():
        onnx_model, n_steps = learner_graph(inner, opset)
        onnx_model = _completed(onnx_model, inner, n_steps, transformers, X, opset)
        check_learner_file(onnx_model, model, X, tolerance)
    if path is not None:
        onnx.save(onnx_model, path)
    return onnx_model


def require_network(meta):
    """Raise for a learner that is made of estimators, with no graph of its own."""
    if not isinstance(meta, TaskByTask):
        return
    kind, advice = type(meta).__name__, "export its learners one by one"
    if hasattr(meta, "encoder_"):
        advice = (
            "write its parts with skl2onnx: make_pipeline(meta.encoder_, head), where "
            "head is few_shot.state_[0]"
        )
    elif meta.how == "soup":
        advice = "export its soup_, which is one learner"
    raise TypeError(
        f"A {kind} is made of other estimators, and cannot be written as one ONNX "
        f"graph; {advice}."
    )


def _stored(model, meta, transformers, path, X, target_opset, tolerance):
    """The file that a quantised learner holds already, transformers put before it."""
    onnx_model = onnx.ModelProto.FromString(meta.onnx_model_)
    (opset,) = (o.version for o in onnx_model.opset_import if o.domain == "")
    if target_opset not in (None, opset):
        raise ValueError(
            f"The file of a {type(meta).__name__} is made in `fit`, here with the "
            f"operators of opset {opset}. Set its own target_opset and fit again."
        )
    if not transformers:
        if path is not None:
            Path(path).write_bytes(meta.onnx_model_)
        return onnx_model
    with quiet():
        n_steps = meta.runtime_.n_steps
        onnx_model = _completed(onnx_model, meta, n_steps, transformers, X, opset)
        check_learner_file(onnx_model, model, X, tolerance)
    if path is not None:
        onnx.save(onnx_model, path)
    return onnx_model


def _completed(onnx_model, meta, n_steps, transformers, X, opset):
    """With transformers, description and checksum."""
    if transformers:
        onnx_model = with_transformers(onnx_model, transformers, X, opset)
    columns = _columns(X) if _by_column(onnx_model) else None
    first = transformers[0][1] if transformers else None
    described = description(unwrapped(meta), n_steps, first, columns)
    onnx_model = finished(onnx_model, described)
    onnx.checker.check_model(onnx_model)
    return onnx_model


def _pooled(name, step):
    if step.scope != "pooled":
        raise ValueError(
            f"Step {name!r} is fitted on each support set, which a file cannot do. Use "
            "scope='pooled', or adapt first and export the adapted model."
        )
    return step.transformer_


def _in_single_precision(X):
    """Rows with numbers of the types that the file takes."""
    if not hasattr(X, "columns"):
        return np.asarray(X, dtype=np.float32)
    types = {"f": np.float32, "i": np.int64, "u": np.int64}
    wanted = {name: types.get(X[name].dtype.kind) for name in X.columns}
    return X.astype({name: kind for name, kind in wanted.items() if kind})


def _by_column(onnx_model):
    return any("/" in value.name for value in onnx_model.graph.input)


def _columns(X):
    kinds = {"f": "float", "i": "int", "u": "int", "b": "bool"}
    return {str(name): kinds.get(X[name].dtype.kind, "str") for name in X.columns}


def _example_rows(meta, transformers):
    """Random rows of the right shape."""
    rng = np.random.default_rng(0)
    if not transformers:
        return rng.standard_normal((64, *meta.schema_.shape)).astype(np.float32)
    first = transformers[0][1]
    if hasattr(first, "feature_names_in_"):
        raise ValueError(
            "The pipeline was fitted on DataFrames, whose columns are inputs of the "
            "file. Pass some rows, X=task.X, to tell their types."
        )
    shape = (64, first.n_features_in_)
    return rng.standard_normal(shape).astype(np.float32)


def check_learner_file(onnx_model, model, X, tolerance=None):
    """Compare a learner's file with the learner, on support sets of three sizes.

    Rows are drawn from X with replacement, and labels and targets at random.

    Parameters
    ----------
    onnx_model : onnx.ModelProto
    model : fitted meta-learner, or Pipeline that ends in one
    X : array of shape (n_rows, ...) or DataFrame
    tolerance : float, default=None
        See `to_onnx`.

    Raises
    ------
    ValueError
        If the two differ by more than `tolerance` and ten times what a change of the
        last bit of the rows does.
    """
    _, meta = parts_of(model)
    schema, rng = unwrapped(meta).schema_, np.random.default_rng(0)
    # Ten times as much as of an adapted model: what it adapts from is rounded too.
    tolerance = 10 * default_tolerance(meta) if tolerance is None else tolerance
    device = OnnxMetaLearner(onnx_model.SerializeToString())
    for n_support, n_query in _SIZES:
        y, metadata = _random_targets(schema, n_support, rng)
        X_support, X_query = (_drawn(X, n, rng) for n in (len(y), n_query))
        model_of, other = (
            adapt(model, rows, y, metadata=metadata)
            for rows in (X_support, last_bits_changed(X_support))
        )
        compare_adapted(
            device.adapt(X_support, y, metadata=metadata),
            model_of,
            other,
            X_query,
            tolerance,
            None if schema.classification else schema.target_scale,
        )


def _drawn(X, n, rng):
    rows = rng.integers(len(X), size=n)
    X = X.iloc[rows].reset_index(drop=True) if hasattr(X, "iloc") else X[rows]
    if hasattr(X, "columns"):
        return X
    return (X + 0.1 * rng.standard_normal(X.shape)).astype(np.float32)


def _random_targets(schema, n_support, rng):
    """y and metadata of a task."""
    metadata = None
    if schema.metadata is not None:
        values = schema.metadata.mean + schema.metadata.scale * rng.standard_normal(
            len(schema.metadata.mean)
        )
        names = schema.metadata.names
        metadata = values if names is None else dict(zip(names, values, strict=True))
    if not schema.classification:
        y = rng.standard_normal((n_support, schema.n_outputs))
        y = schema.target_mean + schema.target_scale * y
        return (y if schema.multi_output else y[:, 0]), metadata
    known = np.arange(schema.n_outputs) if schema.classes is None else schema.classes
    chosen = rng.permutation(len(known))[: max(2, len(known) - rng.integers(2))]
    y = known[np.resize(np.sort(chosen), max(n_support, len(chosen)))]
    return y, metadata
