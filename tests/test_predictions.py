import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from sk_meta.predictions import r_squared


@given(
    seed=st.integers(0, 1000),
    n=st.integers(2, 6),
    n_targets=st.integers(0, 3),
    weighted=st.booleans(),
    constant=st.booleans(),
    exact=st.booleans(),
)
def test_r_squared_is_that_of_sklearn(seed, n, n_targets, weighted, constant, exact):
    rng = np.random.default_rng(seed)
    shape = (n, n_targets) if n_targets else (n,)
    y_true = rng.integers(-3, 4, shape).astype(float)
    if constant:
        y_true[:] = 2.0
    y_pred = y_true.copy() if exact else rng.normal(size=shape)
    weight = rng.uniform(0.5, 2, n) if weighted else None
    known = r2_score(y_true, y_pred, sample_weight=weight)
    assert r_squared(y_true, y_pred, weight) == pytest.approx(known)
