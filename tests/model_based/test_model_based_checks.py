"""The suite of all meta-learners, for the model-based ones."""

import pytest

from sk_meta import (
    AttentiveNeuralProcessRegressor,
    ConditionalNeuralProcessRegressor,
    HypernetworkClassifier,
    HypernetworkRegressor,
    InContextClassifier,
    InContextRegressor,
)
from sk_meta.checks import meta_estimator_checks

ESTIMATORS = [
    HypernetworkClassifier(width=8),
    HypernetworkRegressor(width=8, task_hidden=(4,)),
    HypernetworkRegressor(width=8, task_hidden=()),
    ConditionalNeuralProcessRegressor(width=8),
    AttentiveNeuralProcessRegressor(width=8, n_heads=2),
    AttentiveNeuralProcessRegressor(width=8, n_heads=1, n_layers=0),
    InContextClassifier(width=8, n_heads=2),
    InContextRegressor(width=8, n_heads=2, n_layers=1),
]
CHECKS = [
    pytest.param(check, id=f"{type(estimator).__name__}{i}-{check.func.__name__}")
    for i, estimator in enumerate(ESTIMATORS)
    for check in meta_estimator_checks(estimator)
]


@pytest.mark.parametrize("check", CHECKS)
def test_meta_estimator(check):
    check()
