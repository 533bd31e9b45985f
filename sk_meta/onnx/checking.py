"""Whether an ONNX model says what the estimator says."""

import numpy as np
import onnxruntime
from sklearn.base import is_classifier

_N_ROWS = 64


def check_onnx(onnx_model, model, X, *, return_std=False, zipmap=False, tolerance):
    """Compare a file with the estimator that it was made from, in onnxruntime.

    All rows at once, and one row alone.

    Parameters
    ----------
    onnx_model : onnx.ModelProto
    model : fitted classifier or regressor
    X : array of shape (n_rows, ...) or DataFrame
        At most 64 rows of it are used.
    return_std : bool
        Whether the file holds standard deviations.
    zipmap : bool or "columns"
        What the probabilities are in the file.
    tolerance : float
        Largest difference: of probabilities, or of targets relative to the largest
        prediction of the same target.

    Raises
    ------
    ValueError
        If the two differ by more.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        onnx_model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    X = _take(X, np.unique(np.linspace(0, len(X) - 1, _N_ROWS).astype(int)))
    for rows in (X, _take(X, [0])):
        found = session.run(None, feed(session, rows))
        if is_classifier(model):
            _compare_classes(model, rows, found, zipmap, tolerance)
        else:
            _compare_targets(model, rows, found, return_std, tolerance)


def feed(session, X):
    """Inputs of a session: one array, or one column each."""
    inputs = session.get_inputs()
    if not hasattr(X, "columns") or len(inputs) == 1:
        return {inputs[0].name: np.asarray(X)}
    columns = {}
    for put in inputs:
        column = X[put.name].to_numpy().reshape(-1, 1)
        columns[put.name] = column.astype(_DTYPES[put.type])
    return columns


_DTYPES = {
    "tensor(bool)": np.bool_,
    "tensor(double)": np.float64,
    "tensor(float)": np.float32,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(string)": object,
}


def _take(X, rows):
    return X.iloc[rows] if hasattr(X, "iloc") else X[rows]


def _compare_classes(model, X, found, zipmap, tolerance):
    expected = model.predict_proba(X)
    labels, *rest = found
    if zipmap == "columns":
        probabilities = np.stack(rest, axis=1)
    elif zipmap:
        keys = [_key(label) for label in model.classes_]
        probabilities = np.array([[row[key] for key in keys] for row in rest[0]])
    else:
        probabilities = rest[0]
    _compare("Probabilities", expected, probabilities, tolerance)
    top = np.sort(expected, axis=1)[:, -2:]
    clear = top[:, -1] - top[:, 0] > 2 * tolerance
    clear |= expected.shape[1] == 1
    wrong = np.flatnonzero((model.predict(X) != labels) & clear)
    if wrong.size:
        row = wrong[0]
        raise ValueError(
            f"The ONNX file gives the label {labels[row]!r} to a row to which the "
            f"model gives {model.predict(X)[row]!r}. {_ADVICE}"
        )


def _key(label):
    return label if isinstance(label, str) else int(label)


def _compare_targets(model, X, found, return_std, tolerance):
    expected = model.predict(X, return_std=True) if return_std else [model.predict(X)]
    size = np.maximum(np.abs(expected[0]).max(axis=0), 1e-6)
    names = ("Predictions", "Standard deviations")
    for name, ours, theirs in zip(names, expected, found, strict=False):
        _compare(name, ours / size, theirs.reshape(ours.shape) / size, tolerance)


def _compare(what, expected, found, tolerance):
    if found.shape != expected.shape:
        raise ValueError(
            f"{what} of the ONNX file have the shape {found.shape}, the model's have "
            f"{expected.shape}. {_ADVICE}"
        )
    difference = np.abs(expected - found).max()
    if not difference <= tolerance:  # NaN included
        raise ValueError(
            f"{what} of the ONNX file are off by up to {difference:.1e}, which is more "
            f"than the tolerance of {tolerance:.1e}. {_ADVICE}"
        )


_ADVICE = (
    "Nothing was written. If the difference is tolerable, pass a larger `tolerance`; "
    "if not, please report it with the network and its transformers."
)
