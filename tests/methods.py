"""All public meta-estimators with a TaskNet, by the list of public names.

Those made of other estimators (transfer, fusion) have no network over tasks: their own
tests run them through `check_meta_estimator`.
"""

import inspect

import sk_meta
from sk_meta.base import MetaClassifier, MetaRegressor

_CLASSES = [getattr(sk_meta, name) for name in sk_meta.__all__]
_CLASSES = [public for public in _CLASSES if inspect.isclass(public)]
CLASSIFIERS = [public for public in _CLASSES if issubclass(public, MetaClassifier)]
REGRESSORS = [public for public in _CLASSES if issubclass(public, MetaRegressor)]
METHODS = CLASSIFIERS + REGRESSORS
# One of each kind, for tests that take seconds; the others are marked slow.
REPRESENTATIVES = {
    getattr(sk_meta, name)
    for name in (
        "BOILClassifier",
        "DKTRegressor",
        "HypernetworkClassifier",
        "IMAMLRegressor",
        "ProtoMAMLClassifier",
        "R2D2Classifier",
    )
}
