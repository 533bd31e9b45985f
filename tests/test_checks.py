"""The suite passes for every meta-learner, and fails for ones with a defect."""

import numpy as np
import pytest
import torch
from sklearn.utils.validation import check_is_fitted

from sk_meta import (
    ALPaCAClassifier,
    ALPaCARegressor,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    TaskNet,
    check_meta_estimator,
)
from sk_meta.checks import meta_estimator_checks

ESTIMATORS = [
    MAMLClassifier(inner_lr=0.1, n_inner_steps=2),
    MAMLClassifier(first_order=True),
    MAMLClassifier(
        TaskNet(module__hidden=(8,), module__normalization="batch", max_epochs=2)
    ),
    MAMLRegressor(inner_lr=0.1),
    PrototypicalClassifier(),
    ALPaCAClassifier(),
    ALPaCARegressor(),
    ALPaCARegressor(linear_features=False),
]
CHECKS = [
    pytest.param(check, id=f"{type(estimator).__name__}{i}-{check.func.__name__}")
    for i, estimator in enumerate(ESTIMATORS)
    for check in meta_estimator_checks(estimator)
]


@pytest.mark.parametrize("check", CHECKS)
def test_meta_estimator(check):
    normalised = check.args[0].net.get_params().get("module__normalization")
    if normalised and check.func.__name__ == "check_support":
        pytest.skip("a row of weight 0 counts in the statistics of the support set")
    check()


class ChangesParameter(PrototypicalClassifier):
    def __init__(self, net=None, *, support_size=5, random_state=None):
        super().__init__(net, support_size=(support_size,), random_state=random_state)


class ReturnsNothing(PrototypicalClassifier):
    def fit(self, tasks, y=None):
        super().fit(tasks)


class Forgets(PrototypicalClassifier):
    """Training goes on from another place than it stopped."""

    def partial_fit(self, tasks, y=None):
        return self.fit(tasks)


class UsesGlobalGenerator(PrototypicalClassifier):
    def fit(self, tasks, y=None):
        np.random.rand()  # noqa: NPY002
        return super().fit(tasks)


class IgnoresRandomState(PrototypicalClassifier):
    def fit(self, tasks, y=None):
        given, self.random_state = self.random_state, None
        super().fit(tasks)
        self.random_state = given
        return self


class LearnsFromQueries(PrototypicalClassifier):
    def predict_tasks(self, tasks):
        check_is_fitted(self)
        with torch.no_grad():
            for parameter in self.learner_.parameters():
                parameter.add_(0.1)
        return super().predict_tasks(tasks)


class Transductive(PrototypicalClassifier):
    def apply_state(self, state, X, n_classes):
        return super().apply_state(state, X - np.mean(X, axis=0), n_classes)


class TrustsFirstRows(PrototypicalClassifier):
    def adapt_state(self, X, y, sample_weight=None, metadata=None):
        weight = np.arange(1, len(y) + 1) * (
            1 if sample_weight is None else sample_weight
        )
        return super().adapt_state(X, y, weight, metadata)


class BreaksOnError(PrototypicalClassifier):
    def fit(self, tasks, y=None):
        vars(self).pop("net_", None)
        return super().fit(tasks)


class AcceptsAnything(PrototypicalClassifier):
    def adapt_state(self, X, y, sample_weight=None, metadata=None):
        if isinstance(X, np.ndarray):
            X = np.nan_to_num(X, posinf=0.0, neginf=0.0)
        return super().adapt_state(X, y, sample_weight, metadata)


@pytest.mark.parametrize(
    "defect, said",
    [
        (ReturnsNothing, "fit does not return self"),
        (Forgets, "history starts anew"),
        (UsesGlobalGenerator, "global random generator"),
        (IgnoresRandomState, "random_state"),
        (LearnsFromQueries, "predicting changes"),
        (Transductive, "adapt differs from predict"),
        (TrustsFirstRows, "adapt differs|order of the support rows"),
        (BreaksOnError, "net_"),
        (AcceptsAnything, "no error on a bad support set"),
    ],
)
def test_defects_are_found(defect, said):
    with pytest.raises(Exception, match=said) as found:
        check_meta_estimator(defect())
    assert found.value.__notes__[0].startswith("In check_")


def test_init_that_does_more_than_assign_is_found():
    with pytest.raises(RuntimeError, match=r"constructor .* modifies parameter"):
        check_meta_estimator(ChangesParameter())


def test_the_given_estimator_is_left_alone():
    estimator = PrototypicalClassifier(support_size=3)
    before = repr(estimator)
    check_meta_estimator(estimator)
    assert repr(estimator) == before and not hasattr(estimator, "net_")
