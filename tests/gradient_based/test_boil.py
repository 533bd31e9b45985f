"""BOIL: the inner loop changes the body of the network, not its head."""

import numpy as np
import pytest
import torch
from torch import nn

from sk_meta import BOILClassifier, BOILRegressor, MAMLClassifier, TaskNet
from sk_meta.checks import meta_estimator_checks
from sk_meta.gradient_based.maml import MAML
from sk_meta.networks import MLP, exact_normalization
from sk_meta.tasks import make_blob_tasks
from tests.meta_gradients import TOLERANCE, deviation

ESTIMATORS = [BOILClassifier(inner_lr=0.1, n_inner_steps=2), BOILRegressor()]


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=f"{type(estimator).__name__}-{check.func.__name__}")
        for estimator in ESTIMATORS
        for check in meta_estimator_checks(estimator)
    ],
)
def test_meta_estimator(check):
    check()


@pytest.mark.parametrize("normalization", [None, "batch"])
@pytest.mark.parametrize("way", ["layers", "vmap", "loop"])
def test_meta_gradients(way, normalization, make_group):
    network = exact_normalization(MLP(4, 3, (5, 6), nn.Tanh, normalization)).double()
    learner = MAML(network, 3, 0.2, 2, 2, adapts="body")
    batch = [make_group(3, 6, 4, 4, 3, weighted=True), make_group(2, 5, 3, 4, 3)]
    learner.checked = learner.forced = True  # no other way than this one
    assert deviation(learner, batch, way) <= TOLERANCE


def fitted(tasks, kind=BOILClassifier, max_epochs=3, **options):
    net = TaskNet(module__hidden=(6, 5), max_epochs=max_epochs, lr=0.02)
    return kind(net, inner_lr=0.3, n_inner_steps=2, random_state=0, **options).fit(
        tasks
    )


def test_a_task_changes_the_body_and_meta_training_the_head_too():
    tasks = make_blob_tasks(12, n_classes=3, random_state=0)
    start, meta = fitted(tasks, max_epochs=0), fitted(tasks)
    state, _ = meta.adapt_state(tasks[0].X_support, tasks[0].y_support)
    common = dict(meta.learner_.module.named_parameters())
    *body, weight, bias = common
    assert [*state.parameters] == body
    assert all(not torch.equal(state.parameters[k], common[k]) for k in body)
    for name in (weight, bias):
        before = start.learner_.module.get_parameter(name)
        assert not torch.equal(common[name], before)


def test_it_is_maml_that_adapts_the_body():
    tasks = make_blob_tasks(12, n_classes=3, random_state=0)
    found = fitted(tasks), fitted(tasks, MAMLClassifier, adapts="body")
    proba = [meta.predict_proba(tasks) for meta in found]
    for one, other in zip(*proba, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found[0].learner_.way == "layers"


def test_what_it_settles_is_no_parameter():
    assert not {"adapts", "inner_rates"} & BOILClassifier().get_params().keys()


def test_a_network_without_a_body():
    net = TaskNet(module__hidden=(), max_epochs=1)
    with pytest.raises(ValueError, match="adapts='body' leaves.*nothing.*add a layer"):
        BOILClassifier(net).fit(make_blob_tasks(6, n_classes=2, random_state=0))
