"""Rows of X as inputs of a learner's graph."""

import numpy as np

INPUT_TYPES = {
    "float": "tensor(float)",
    "int": "tensor(int64)",
    "str": "tensor(string)",
    "bool": "tensor(bool)",
}
_DTYPES = {"float": np.float32, "int": np.int64, "bool": np.bool_}


def one_input(X, schema, what, takes_missing):
    """Rows as one float32 array.

    Parameters
    ----------
    X : array of shape (n_rows, ...) or DataFrame
    schema : Schema
    what : str
        How messages call the rows.
    takes_missing : bool
        Whether NaN is allowed.

    Returns
    -------
    array of shape (n_rows, *schema.shape)

    Raises
    ------
    ValueError
        If the rows are not such as the learner was fitted on.
    """
    if not takes_missing:
        return schema.check_features(X, what)
    schema.check_columns(X, what)
    values = X.to_numpy() if hasattr(X, "iloc") else np.asarray(X)
    missing = _is_missing(values)
    filled = schema.check_features(np.where(missing, 0, values), what)
    return np.where(missing.reshape(filled.shape), np.float32(np.nan), filled)


def inputs_by_column(X, schema, what, columns, takes_missing):
    """Each column as an array of its own.

    Parameters
    ----------
    X : array of shape (n_rows, n_columns) or DataFrame
    schema, what, takes_missing
        As in `one_input`.
    columns : dict of str to str
        The kind of each column.

    Returns
    -------
    dict of str to array of shape (n_rows, 1)
    """
    schema.check_columns(X, what)
    by_position = X.iloc if hasattr(X, "iloc") else X
    found = {}
    for position, (name, kind) in enumerate(columns.items()):
        values = np.asarray(by_position[:, position])
        missing = _is_missing(values).any()
        if missing and not (takes_missing and kind == "float"):
            raise ValueError(
                f"Column {name!r} of {what} has missing values. Fill them in first, or "
                "meta-train with a SimpleImputer for it in the Pipeline."
            )
        column = _converted(values, kind)
        if column is None:
            raise ValueError(
                f"Column {name!r} of {what} must hold finite values of kind {kind}, "
                f"which {values.tolist()!r:.60} are not all."
            )
        found[name] = column[:, None]
    return found


def _converted(values, kind):
    """Values in the type of an input, or None if they do not fit."""
    if kind == "str":
        return np.array([str(value) for value in values], dtype=object)
    try:
        with np.errstate(all="ignore"):
            column = values.astype(_DTYPES[kind])
            fits = ~np.isinf(column) if kind == "float" else column == values
    except (TypeError, ValueError, OverflowError):
        return None
    return column if np.all(fits) else None


def _is_missing(values):
    """Mask of NaN, None and pandas' NA."""
    if values.dtype.kind == "f":
        return np.isnan(values)
    if values.dtype.kind != "O":
        return np.zeros(values.shape, dtype=bool)
    names = {"NoneType", "NAType", "NaTType"}
    flat = [type(v).__name__ in names or v != v for v in values.ravel().tolist()]
    return np.array(flat, dtype=bool).reshape(values.shape)
