"""Small things around encoders and heads: seeds, shapes, and what cannot work."""

from contextlib import contextmanager

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state, get_tags

from sk_meta.seeds import settle_random_states
from sk_meta.tasks.task import take_rows


def two_seeds(random_state):
    """Of the encoder and of heads; fresh ones leave the global generators alone."""
    if random_state is None:
        return (np.random.SeedSequence().generate_state(2) >> 1).tolist()
    return check_random_state(random_state).randint(2**31 - 1, size=2).tolist()


@contextmanager
def own_generator():
    """NumPy's global generator, from which SVR draws whatever is set, is left alone."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def seeded_clone(estimator, seed):
    """A clone; each `random_state` that is None becomes a seed."""
    return settle_random_states(clone(estimator), np.random.RandomState(seed))


def within(encoder):
    """An encoder itself, without its frost."""
    return encoder.estimator if isinstance(encoder, FrozenEstimator) else encoder


def split_network(encoder):
    """What comes before the last step of an encoder, or None, and that step."""
    encoder = within(encoder)
    if isinstance(encoder, Pipeline):
        return encoder[:-1], within(encoder.steps[-1][1])
    return None, encoder


def takes_images(encoder):
    """Whether rows of more than one axis need not be flattened for an encoder."""
    while isinstance(encoder, Pipeline):
        encoder = encoder.steps[0][1]
    return hasattr(encoder, "fit") and get_tags(encoder).input_tags.three_d_array


def as_table(X, keep=False):
    """Rows of two axes, unless they are to be kept."""
    return X if keep or len(X.shape) == 2 else X.reshape(len(X), -1)


def drop_unweighted(support):
    """Rows of weight 0 are not there, so that any head can do with such weights."""
    weight = support.weight
    if weight is None or weight.all():
        return support
    kept = np.flatnonzero(weight)
    X = take_rows(support.X, kept)
    return support._replace(X=X, y=support.y[kept], weight=weight[kept])


def check_scores(head):
    """Raise for a classifier of whose answers no probabilities can be made."""
    params = head.get_params(deep=True)
    if any(
        name.rpartition("__")[2] == "decision_function_shape" and value == "ovo"
        for name, value in params.items()
    ):
        raise ValueError(
            "The head has decision_function_shape='ovo', which gives scores of pairs "
            "of classes. Leave it at 'ovr'."
        )


def check_gaps(encoder, head, X):
    """Raise if missing values of source rows come through to a head that takes none."""
    if hasattr(X, "iloc"):
        gaps = X.isna().to_numpy().any(axis=1)
    elif X.dtype.kind == "f":
        gaps = ~np.isfinite(X).all(axis=tuple(range(1, X.ndim)))
    else:
        return
    if not gaps.any() or get_tags(head).input_tags.allow_nan:
        return
    rows = np.flatnonzero(gaps)
    Z = encoder.transform(take_rows(X, rows))
    Z = np.asarray(Z.toarray() if hasattr(Z, "toarray") else Z, dtype=float)
    if not np.isfinite(Z).all():
        raise ValueError(
            f"{len(rows)} source rows hold NaN or infinity, and {say(encoder)} lets "
            "them through. Impute them first, with encoder=make_pipeline("
            "SimpleImputer(), ...), or choose a head that takes them."
        )


def say(value):
    """How messages call what was passed as an encoder or a head."""
    return f"{value.__name__} (a class)" if isinstance(value, type) else repr(value)
