"""The suites of this package and of sklearn, over what transfer is made of."""

import pytest
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_meta import (
    CosineClassifier,
    FineTuning,
    RowNet,
    TorchEncoder,
    TransferClassifier,
    TransferRegressor,
)
from sk_meta.checks import meta_estimator_checks

SMALL = RowNet(module__hidden=(6,), max_epochs=2)
TUNED = FineTuning(max_steps=3, lr=1e-2)
ESTIMATORS = [
    TransferClassifier(),
    TransferClassifier(PCA(2), SVC()),
    TransferClassifier(LinearDiscriminantAnalysis(), RidgeClassifier()),
    TransferClassifier(TorchEncoder(SMALL, head="cosine"), CosineClassifier()),
    TransferClassifier(TorchEncoder(SMALL), TUNED),
    TransferRegressor(),
    TransferRegressor("passthrough", GaussianProcessRegressor(optimizer=None)),
    TransferRegressor(make_pipeline(StandardScaler(), TorchEncoder(SMALL)), SVR()),
    TransferRegressor(TorchEncoder(SMALL), TUNED),
]
CHECKS = [
    pytest.param(check, id=f"{type(estimator).__name__}{i}-{check.func.__name__}")
    for i, estimator in enumerate(ESTIMATORS)
    for check in meta_estimator_checks(estimator)
]


@pytest.mark.parametrize("check", CHECKS)
def test_meta_estimator(check):
    check()


@parametrize_with_checks([CosineClassifier(), TorchEncoder(SMALL, random_state=0)])
def test_sklearn(estimator, check):
    check(estimator)
