"""What every public meta-estimator must do, by the list of public names."""

import inspect

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils import estimator_checks
from torch import nn

from sk_meta import (
    MetaGridSearchCV,
    SemiSupervisedPrototypicalClassifier,
    Task,
    TaskNet,
)
from sk_meta.base import MetaClassifier
from sk_meta.onnx import to_onnx
from sk_meta.tasks import make_blob_tasks, make_sinusoids
from tests.methods import METHODS, REPRESENTATIVES

NAMES = [method.__name__ for method in METHODS]
every_method = pytest.mark.parametrize("method", METHODS, ids=NAMES)
pytestmark = pytest.mark.filterwarnings("ignore:No task has an unlabelled row")


API_CHECKS = [
    estimator_checks.check_estimator_cloneable,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_estimator_tags_renamed,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_mixin_order,
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_param_validation,
    estimator_checks.check_parameters_default_constructible,
    estimator_checks.check_set_params,
    estimator_checks.check_estimators_unfitted,
    estimator_checks.check_valid_tag_types,
]
# What differs from the default, and what else must be set for that to show.
CHANGES = {
    "adapt_lr": ({"adapt_lr": 0.5}, {"n_adapt_steps": 2}),
    "adapts": ({"adapts": "head"}, {}),
    "evaluation_seed": ({"evaluation_seed": 1}, {}),
    "first_order": ({"first_order": True}, {"inner_lr": 0.5}),
    "first_order_epochs": ({"first_order_epochs": 1}, {"inner_lr": 0.5}),
    "head": (None, {}),
    "full_context": ({"full_context": True}, {}),
    "inner_batch_size": ({"inner_batch_size": 2}, {}),
    "inner_lr": ({"inner_lr": 0.5}, {}),
    "inner_rates": ({"inner_rates": "layer"}, {}),
    "kernel": ({"kernel": "linear"}, {}),
    "learn_inner_lr": ({"learn_inner_lr": True}, {}),
    "linear_features": (None, {}),
    "loss": ({"loss": "squared_error"}, {}),
    "multi_step_epochs": ({"multi_step_epochs": 1}, {"n_inner_steps": 3}),
    "n_adapt_steps": ({"n_adapt_steps": 4}, {}),
    "n_cg_steps": ({"n_cg_steps": 1}, {}),
    "n_heads": ({"n_heads": 2}, {}),
    "n_inner_steps": ({"n_inner_steps": 3}, {"n_adapt_steps": 1}),
    "n_kernels": ({"n_kernels": 2}, {}),
    "n_layers": ({"n_layers": 3}, {}),
    "n_newton_steps": ({"n_newton_steps": 1}, {"head": "logistic"}),
    "n_reads": ({"n_reads": 2}, {"full_context": True}),
    "n_refinements": ({"n_refinements": 3}, {}),
    "net": ({"net": TaskNet(module__hidden=(5,), max_epochs=1)}, {}),
    "objective": ({"objective": "marginal"}, {}),
    "random_state": ({"random_state": 1}, {}),
    "refinement": ({"refinement": "masked"}, {}),
    "regularization": ({"regularization": 5.0}, {}),
    "relation_hidden": ({"relation_hidden": (5,)}, {}),
    "support_size": ({"support_size": 2}, {}),
    "task_hidden": ({"task_hidden": ()}, {}),
    "temperature": ({"temperature": 1.0}, {}),
    "transductive": ({"transductive": True}, {"module__normalization": "batch"}),
    "unlabeled": ({"unlabeled": 0}, {}),
    "use_metadata": ({"use_metadata": True}, {}),
    "width": ({"width": 32}, {}),
}
SILENT = {"verbose", "gradient_checkpointing"}  # no effect on what is learned


def parameters_of(method):
    return [name for name in inspect.signature(method).parameters if name not in SILENT]


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
@pytest.mark.parametrize("check", API_CHECKS, ids=lambda check: check.__name__)
def test_sklearn_api(method, check):
    check(method.__name__, method())


def drawn_from(method):
    """Tasks without support sets; some rows unlabelled where they can be used."""
    tasks, rng = make_tasks(method), np.random.default_rng(0)
    hides = method is SemiSupervisedPrototypicalClassifier
    return [
        Task(
            task.X,
            task.y,
            metadata=rng.normal(size=2),
            labeled=rng.random(len(task)) < 0.8 if hides else None,
        )
        for task in tasks
    ]


@pytest.mark.parametrize(
    "method, name",
    [(method, name) for method in METHODS for name in parameters_of(method)],
)
def test_every_parameter_acts_and_survives_clone(method, name):
    tasks = drawn_from(method)
    change, common = CHANGES[name]
    if name == "head":
        change = {"head": "prototypes" if "ANIL" in method.__name__ else "logistic"}
    if name == "linear_features":
        change = {name: not inspect.signature(method).parameters[name].default}
    of_net = {k: v for k, v in common.items() if k.startswith("module")}
    common = {k: v for k, v in common.items() if k not in of_net}
    net = make_net(lr=1e-2, **of_net)
    first = method(**{"net": net, "random_state": 0, "support_size": 3, **common})
    second = clone(first).set_params(**change)

    def predictions(estimator):
        found = estimator.fit(tasks)
        proba = getattr(found, "predict_proba", found.predict)
        return np.concatenate([np.ravel(values) for values in proba(tasks)])

    expected = predictions(second)
    assert np.array_equal(predictions(clone(second)), expected)
    assert not np.array_equal(predictions(first), expected)


@pytest.mark.parametrize(
    "method, labels",
    [
        pytest.param(
            method,
            labels,
            marks=[] if method in REPRESENTATIVES else [pytest.mark.slow],
            id=f"{method.__name__}-{labels}",
        )
        for method in METHODS
        for labels in ("shared", "local")
    ],
)
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
