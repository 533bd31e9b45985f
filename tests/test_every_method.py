"""What every public meta-estimator must do, by the list of public names."""

import inspect

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

import sk_meta
from sk_meta import MetaGridSearchCV, TaskNet
from sk_meta.base import MetaClassifier, MetaEstimator
from sk_meta.onnx import to_onnx
from sk_meta.tasks import make_blob_tasks, make_sinusoids

METHODS = [
    kind
    for kind in (getattr(sk_meta, name) for name in sk_meta.__all__)
    if inspect.isclass(kind) and issubclass(kind, MetaEstimator)
]
NAMES = [method.__name__ for method in METHODS]
every_method = pytest.mark.parametrize("method", METHODS, ids=NAMES)
pytestmark = pytest.mark.filterwarnings("ignore:No task has an unlabelled row")


def make_net(**options):
    return TaskNet(
        module__hidden=(6,), module__activation=nn.Tanh, max_epochs=2, **options
    )


def make_tasks(method, labels="shared"):
    if issubclass(method, MetaClassifier):
        return make_blob_tasks(9, n_classes=3, labels=labels, random_state=0)
    return make_sinusoids(9, random_state=0)


def outputs(few_shot, X):
    """Probabilities, or means with the standard deviations where there are any."""
    if hasattr(few_shot, "predict_proba"):
        return (few_shot.predict_proba(X),)
    try:
        return few_shot.predict(X, return_std=True)
    except ValueError:
        return (few_shot.predict(X),)


@every_method
def test_public_and_documented(method):
    parameters = [*inspect.signature(method).parameters]
    assert parameters[0] == "net"
    for name in ("random_state", "support_size", "evaluation_seed", "verbose"):
        assert name in parameters
    text = inspect.getdoc(method)
    described = [line.split(" : ")[0] for line in text.splitlines() if " : " in line]
    assert [p for p in parameters if p not in described] == []
    assert "References" in text and "Examples" in text


@every_method
@pytest.mark.parametrize("labels", ["shared", "local"])
def test_what_adapt_returns_exports(method, labels):
    if labels == "local" and not issubclass(method, MetaClassifier):
        pytest.skip("a regressor has no labels")
    *old, new = make_tasks(method, labels)
    meta = method(make_net(), random_state=0).fit(old)
    model = meta.adapt(new.X_support, new.y_support)
    X = new.X_query.astype(np.float32)
    expected = outputs(model, X)
    made = to_onnx(model, X=X, return_std=len(expected) > 1)
    session = onnxruntime.InferenceSession(made.SerializeToString())
    found = session.run(None, {"X": X})[-len(expected) :]
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_allclose(theirs.reshape(ours.shape), ours, atol=2e-5)


@every_method
def test_together_and_one_by_one_train_alike(method):
    tasks, states = make_tasks(method), []
    for way in ("auto", "loop"):
        # Adam would make much of gradients that are 0 but for rounding.
        net = make_net(way=way, optimizer=torch.optim.SGD)
        meta = method(net, random_state=0).fit(tasks)
        states.append(meta.learner_.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-3, atol=1e-4)


@every_method
def test_searched_together_and_apart(method):
    tasks, grid = make_tasks(method), {"net__lr": [1e-3, 1e-2]}
    meta = method(make_net(), random_state=0)
    found = [
        search(clone(meta), grid, cv=2).fit(tasks).cv_results_["mean_test_score"]
        for search in (MetaGridSearchCV, GridSearchCV)
    ]
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-3)
