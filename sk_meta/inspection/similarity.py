"""How alike two sets of activations are."""

import numpy as np


def linear_cka(X, Y):
    """Linear centred kernel alignment of two representations of the same rows.

    1 if they are the same up to a rotation, a shift and one scale; 0 if no feature of
    one is correlated with a feature of the other. It is

        ||Y' X||² / (||X' X|| ||Y' Y||)

    of column-centred X and Y, with Frobenius norms. With few rows and many features it
    is biased upwards: unrelated representations are then not near 0.

    Parameters
    ----------
    X : array of shape (n_rows, ...)
        Axes after the first are flattened.
    Y : array of shape (n_rows, ...)
        Of other width, maybe.

    Returns
    -------
    float
        In [0, 1]; NaN if X or Y is the same in all rows.

    Raises
    ------
    ValueError
        If X and Y have different numbers of rows, or fewer than two.

    References
    ----------
    Kornblith, Norouzi, Lee, Hinton (2019), Similarity of Neural Network Representations
    Revisited, section 3: "linear CKA".

    Examples
    --------
    >>> import numpy as np
    >>> from sk_meta.inspection import linear_cka
    >>> X = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0]])
    >>> linear_cka(X, X), round(linear_cka(X, 3 * X[:, ::-1] + 1), 12)
    (1.0, 1.0)
    """
    X, Y = (np.asarray(part, dtype=np.float64) for part in (X, Y))
    if X.ndim < 1 or Y.ndim < 1 or len(X) != len(Y) or len(X) < 2:
        raise ValueError(
            f"X and Y have shapes {X.shape} and {Y.shape}. Pass two representations of "
            "the same rows, two rows at least."
        )
    X, Y = (_centred(part) for part in (X, Y))
    if not X.any() or not Y.any():
        return float("nan")
    if np.array_equal(X, Y):  # exactly, where rounding would leave 1 - 2e-16
        return 1.0
    # One number whichever way: the smaller matrices are cheaper.
    if len(X) < max(X.shape[1], Y.shape[1]):
        K, L = X @ X.T, Y @ Y.T
        alike, own, other = (K * L).sum(), (K * K).sum(), (L * L).sum()
    else:
        alike, own, other = (
            (product**2).sum() for product in (Y.T @ X, X.T @ X, Y.T @ Y)
        )
    return float(min(alike / np.sqrt(own * other), 1.0))


def _centred(X):
    """Columns less their mean, on a scale of 1; exactly 0 where rows are the same."""
    X = X.reshape(len(X), -1)
    X = X - X[0]  # so that a constant column leaves nothing by rounding
    X = X - X.mean(axis=0)
    scale = np.abs(X).max(initial=0.0)
    return X / scale if scale > 0 else X
