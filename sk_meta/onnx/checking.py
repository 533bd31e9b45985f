"""Whether an ONNX model says what the estimator says."""

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as Unsupported
from sklearn.base import is_classifier

_N_ROWS = 64
_LAST_BIT = np.float32(2**-23)
_DTYPES = {
    "tensor(bool)": np.bool_,
    "tensor(double)": np.float64,
    "tensor(float)": np.float32,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(string)": object,
}
_ADVICE = (
    "Nothing was written. If that much is tolerable, pass a larger `tolerance`; if "
    "not, please report it with the network and its transformers."
)


def check_onnx(onnx_model, model, X, *, tolerance, return_std=False, zipmap=False):
    """Compare an ONNX model with the estimator that it was made from, in onnxruntime.

    All rows at once, and one row alone.

    Parameters
    ----------
    onnx_model : onnx.ModelProto
    model : fitted classifier or regressor
    X : array of shape (n_rows, ...) or DataFrame
        At most 64 rows of it are used.
    tolerance : float
        Largest difference: of probabilities, or of targets relative to the range of
        the predictions of the same target. Ten times what a change of the last bit of X
        does to the model is accepted as well.
    return_std : bool, default=False
        Whether the file holds standard deviations.
    zipmap : bool or "columns", default=False
        What the probabilities are in the file.

    Raises
    ------
    ValueError
        If the two differ by more, or in a label whose probability is not tied.
    """
    session = start(onnx_model)
    chosen = np.unique(np.linspace(0, len(X) - 1, _N_ROWS).astype(int))
    X = _take(X, chosen)
    classify = is_classifier(model)
    expected = _outputs(model, X, return_std)
    scale = np.ones(1) if classify else _size(expected[0])
    nudged = _outputs(model, last_bits_changed(X), return_std)
    noise = max(_difference(a, b, scale) for a, b in zip(expected, nudged, strict=True))
    allowed = max(tolerance, 10 * noise)
    for rows in (X, _take(X, slice(1))):
        expected = _outputs(model, rows, return_std)
        found = session.run(None, feed(session, rows))
        if classify:
            labels, *rest = found
            found = [_probabilities(rest, model.classes_, zipmap)]
            _compare_labels(model.predict(rows), labels, expected[0], allowed)
        _compare(expected, found, scale, allowed)


def compare_adapted(found, model, other, X, tolerance, target_scale=None):
    """Compare an estimator that a file's runtime adapted with the meta-learner's own.

    Parameters
    ----------
    found : fitted classifier or regressor
        The runtime's.
    model : fitted classifier or regressor
    other : fitted classifier or regressor
        The same, the last bits of its support set changed.
    X : array of shape (n_rows, ...) or DataFrame
    tolerance : float
        As in `check_onnx`.
    target_scale : array of shape (n_targets,), default=None
        What differences of targets are measured by.
    """
    return_std = _gives_std(model, X)
    scale = np.ones(1) if target_scale is None else target_scale
    expected, nudged, there = (
        _outputs(estimator, rows, return_std)
        for estimator, rows in (
            (model, X),
            (other, last_bits_changed(X)),
            (found, X),
        )
    )
    noise = max(_difference(a, b, scale) for a, b in zip(expected, nudged, strict=True))
    allowed = max(tolerance, 10 * noise)
    if is_classifier(model):
        _compare_labels(model.predict(X), found.predict(X), expected[0], allowed)
    _compare(expected, there, scale, allowed)


def _gives_std(model, X):
    if is_classifier(model):
        return False
    try:
        model.predict(X, return_std=True)
    except ValueError:
        return False
    return True


def default_tolerance(meta):
    """Largest difference that `to_onnx` accepts of a meta-learner, or None of none."""
    if meta is None:
        return 1e-5
    # By name, so that torch stays out of this file.
    layers = meta.learner_.modules()
    convolves = any(type(layer).__name__.startswith("Conv") for layer in layers)
    return 1e-3 if convolves else 1e-5


def start(onnx_model):
    """An onnxruntime session for a model, on the CPU and silent."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(
            onnx_model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Unsupported as error:
        raise ValueError(
            f"onnxruntime cannot run the file: {error} Some operators, SimpleImputer's "
            "among them, exist for float32 only. Pass X as float32, such as "
            "X=X_support.astype(np.float32), or a DataFrame with float32 columns."
        ) from error


def feed(session, X):
    """Inputs of a session: the array, or one column each of a DataFrame."""
    inputs = session.get_inputs()
    if not hasattr(X, "columns"):
        return {inputs[0].name: X}
    # By position: names are not the columns' own where ONNX forbids these.
    return {
        given.name: X.iloc[:, position].to_numpy().astype(_DTYPES[given.type])[:, None]
        for position, given in enumerate(inputs)
    }


def _take(X, rows):
    return X.iloc[rows] if hasattr(X, "iloc") else X[rows]


def _outputs(model, X, return_std):
    if is_classifier(model):
        return [model.predict_proba(X)]
    return list(model.predict(X, return_std=True)) if return_std else [model.predict(X)]


def _size(targets):
    """What differences of targets are measured by, per target."""
    # A part of the level too, below which a float32 output is not exact.
    size = np.ptp(targets, axis=0) + 0.1 * np.abs(targets).max(axis=0)
    return np.where(size > 0, size, 1)


def last_bits_changed(X):
    """X with each number changed in its last float32 bit, or not."""
    if hasattr(X, "columns"):
        numbers = X.select_dtypes("float")
        return X.assign(
            **{name: last_bits_changed(numbers[name].to_numpy()) for name in numbers}
        )
    if X.dtype.kind != "f":
        return X
    signs = np.random.default_rng(0).integers(-1, 2, size=X.shape)
    return X * (1 + _LAST_BIT * signs.astype(X.dtype))


def _probabilities(outputs, classes, zipmap):
    """Probabilities as one array, from whatever form the file gives them."""
    if zipmap == "columns":
        return np.stack(outputs, axis=1)
    if not zipmap:
        return outputs[0]
    keys = [label if isinstance(label, str) else int(label) for label in classes]
    return np.array([[row[key] for key in keys] for row in outputs[0]])


def _difference(expected, found, scale):
    """Largest difference, NaN in both places being none."""
    same = np.isnan(expected) & np.isnan(found)
    return np.where(same, 0, np.abs(expected - found) / scale).max()


def _compare(expected, found, scale, allowed):
    for ours, theirs in zip(expected, found, strict=True):
        if theirs.size != ours.size:
            raise ValueError(
                f"The ONNX file gives an output of shape {theirs.shape}, the model of "
                f"{ours.shape}. {_ADVICE}"
            )
        difference = _difference(ours, theirs.reshape(ours.shape), scale)
        if not difference <= allowed:  # NaN included
            raise ValueError(
                f"The ONNX file deviates from the model by {difference:.1e}; "
                f"{allowed:.1e} is accepted. {_ADVICE}"
            )


def _compare_labels(expected, found, probabilities, allowed):
    ordered = np.sort(probabilities, axis=1)
    tied = np.zeros(len(ordered), dtype=bool)
    if ordered.shape[1] > 1:
        tied = ordered[:, -1] - ordered[:, -2] <= 2 * allowed
    wrong = np.flatnonzero((expected != found) & ~tied)
    if wrong.size:
        row = wrong[0]
        raise ValueError(
            f"The ONNX file gives the label {found[row]!r} to a row that the model "
            f"gives {expected[row]!r}. {_ADVICE}"
        )
