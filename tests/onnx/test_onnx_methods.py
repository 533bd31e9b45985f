"""Files of adapted meta-learners: every method, the networks, the operators."""

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import skl2onnx
import torch
from sklearn.base import is_classifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sk_meta import (
    ALPaCAClassifier,
    ALPaCARegressor,
    FewShotRegressor,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    Task,
    TaskNet,
    TaskTransformer,
    adapt,
)
from sk_meta.networks import MLP
from sk_meta.onnx import graph, to_onnx
from sk_meta.tasks import make_blob_tasks, make_sinusoids


class Recurrent(nn.Module):
    """Its ONNX operator has inputs that may be absent."""

    def __init__(self, n_features):
        super().__init__()
        self.cells = nn.GRU(1, 4, batch_first=True)

    def forward(self, X):
        return self.cells(X[..., None])[0][:, -1]


class Attention(nn.Module):
    def __init__(self, n_features):
        super().__init__()
        self.embed = nn.Linear(1, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, X):
        Z = self.embed(X[..., None])
        return self.attention(Z, Z, Z, need_weights=False)[0].mean(1)


NETWORKS = {
    "plain": TaskNet(MLP, module__hidden=(8,), max_epochs=2, lr=0.01),
    "recurrent": TaskNet(Recurrent, max_epochs=1),
    "attention": TaskNet(Attention, max_epochs=1),
    "layer": TaskNet(MLP, module__normalization="layer", max_epochs=1),
    "batch": TaskNet(MLP, module__normalization="batch", max_epochs=1),
    "gelu": TaskNet(MLP, module__activation=nn.GELU, max_epochs=1),
}
METHODS = [
    ALPaCAClassifier,
    MAMLClassifier,
    PrototypicalClassifier,
    ALPaCARegressor,
    MAMLRegressor,
]
OPSETS = [
    pytest.param(opset, marks=[] if opset == 15 else [pytest.mark.slow])
    for opset in range(15, 23)
]


def renamed(task, names):
    return Task(task.X, names[task.y], support=task.support)


def tasks_for(method, n_targets=1):
    if is_a_classifier(method):
        names = np.array(["a", "b", "c", "d"])
        tasks = make_blob_tasks(6, n_classes=4, n_features=3, random_state=0)
        return [renamed(task, names) for task in tasks]
    tasks = make_sinusoids(6, random_state=0)
    if n_targets == 1:
        return tasks
    return [
        Task(t.X, np.stack([t.y * 50 + 9, t.y / 9], axis=1), support=t.support)
        for t in tasks
    ]


def is_a_classifier(method):
    return method.__name__.endswith("Classifier")


@cache
def adapted(method, net="plain", n_targets=1, **parameters):
    """A Pipeline adapted to a new task, and rows of that task."""
    *old, new = tasks_for(method, n_targets)
    model = make_pipeline(
        TaskTransformer(StandardScaler()),
        method(NETWORKS[net], random_state=0, **parameters),
    ).fit(old)
    return adapt(model, new.X_support, new.y_support), new.X_query


def run(onnx_model, X):
    session = onnxruntime.InferenceSession(onnx_model.SerializeToString())
    return session.run(None, {"X": X})


def check(made, model, X):
    """The file against the model, its rows together and one by one."""
    for rows in (X, X[:1]):
        first, *rest = run(made, rows)
        if is_classifier(model):
            assert first.tolist() == model.predict(rows).tolist()
            expected, found = [model.predict_proba(rows)], rest
        elif rest:
            expected, found = model.predict(rows, return_std=True), [first, *rest]
        else:
            expected, found = [model.predict(rows)], [first]
        for ours, theirs in zip(expected, found, strict=True):
            np.testing.assert_allclose(
                theirs.reshape(ours.shape), ours, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("method", METHODS)
def test_methods_and_opsets(method, opset):
    model, X = adapted(method)
    made = to_onnx(model, X=X, target_opset=opset)
    assert {o.version for o in made.opset_import if o.domain == ""} == {opset}
    onnx.checker.check_model(made, full_check=True)
    check(made, model, X)


def test_standard_deviations():
    model, X = adapted(ALPaCARegressor, n_targets=2)
    check(to_onnx(model, X=X, return_std=True), model, X)
    model, X = adapted(ALPaCARegressor)
    options = {FewShotRegressor: {"return_std": True}}
    check(skl2onnx.to_onnx(model, X[:1], options=options), model, X)


@pytest.mark.parametrize("make", [to_onnx, skl2onnx.to_onnx])
def test_no_standard_deviation_to_give(make):
    model, X = adapted(MAMLRegressor)
    given = {"options": {FewShotRegressor: {"return_std": True}}}
    given = {"return_std": True} if make is to_onnx else given
    with pytest.raises(ValueError, match="gives no standard deviation"):
        make(model, X=X, **given)


def test_probabilities_are_those_of_the_classes_of_the_task():
    """Also where another class has all the mass."""
    *old, new = [
        renamed(task, np.array([-5, 2, 9, 30]))
        for task in make_blob_tasks(
            6, n_classes=4, n_features=3, labels="shared", random_state=0
        )
    ]
    meta = ALPaCAClassifier(NETWORKS["plain"], random_state=0).fit(old)
    kept = new.y_support != 9
    few_shot = meta.adapt(new.X_support[kept], new.y_support[kept])
    X = np.concatenate([new.X_query, new.X_query * 1e3])
    made = skl2onnx.to_onnx(few_shot, X[:1], options={"zipmap": False})
    labels, found = run(made, X)
    assert found.shape == (len(X), 3)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    lost = few_shot.predict_proba(X).std(axis=1) == 0
    assert 0 < lost.sum() < len(X)
    np.testing.assert_allclose(found[lost], 1 / 3, atol=1e-6)
    assert labels[~lost].tolist() == few_shot.predict(X)[~lost].tolist()


def test_fewer_classes_than_outputs():
    *old, new = make_blob_tasks(
        6, n_classes=4, n_features=3, labels="local", random_state=0
    )
    meta = MAMLClassifier(NETWORKS["plain"], random_state=0).fit(old)
    kept = new.y_support < 2
    model = meta.adapt(new.X_support[kept], new.y_support[kept])
    made = to_onnx(model, X=new.X_query)
    check(made, model, new.X_query)


@pytest.mark.parametrize("name", ["recurrent", "attention", "layer", "gelu"])
def test_networks_with_the_oldest_operators(name):
    model, X = adapted(PrototypicalClassifier, name)
    check(to_onnx(model, X=X, target_opset=15), model, X)


@pytest.mark.parametrize("transductive", [False, True])
def test_statistics_of_the_support_set_or_of_the_rows(transductive):
    model, X = adapted(MAMLClassifier, "batch", transductive=transductive)
    check(to_onnx(model, X=X), model, X)


def test_silence(capfd, caplog):
    model, X = adapted(ALPaCARegressor)
    capfd.readouterr()
    caplog.set_level("INFO")
    skl2onnx.to_onnx(model, X[:1], target_opset=17)
    to_onnx(model, X=X)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_the_model_is_left_as_it_is():
    model, X = adapted(MAMLRegressor)
    learner = model[-1].meta_learner.estimator.learner_
    names = [name for name, _ in learner.named_buffers()]
    before = model.predict(X)
    state = torch.random.get_rng_state()
    to_onnx(model, X=X)
    np.testing.assert_array_equal(model.predict(X), before)
    assert [name for name, _ in learner.named_buffers()] == names
    assert torch.equal(torch.random.get_rng_state(), state)


def test_subgraphs_keep_what_they_use(monkeypatch):
    """A graph whose `If` has branches that use names from outside of them."""
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    g (float[n, 1] X) => (double[n, 1] mean)
    {
        wide = Cast <to: int = 11> (X)
        one = Constant <value = double {1.0}> ()
        total = ReduceSum <keepdims: int = 0> (wide)
        positive = Greater (total, one)
        mean = If (positive) <
            then_branch = a () => (double[n, 1] up) { up = Add (wide, one) },
            else_branch = b () => (double[n, 1] down) { down = Sub (wide, one) }
        >
    }
    """
    monkeypatch.setattr(graph, "torch_graph", lambda *_: onnx.parser.parse_model(text))
    model, X = adapted(MAMLRegressor)
    made = skl2onnx.to_onnx(model, X[:1], target_opset=18)
    onnx.checker.check_model(made, full_check=True)
    scaled = model[:-1].transform(X)
    for rows, shift in ((abs(X), 1), (-abs(X), -1)):
        (found,) = run(made, rows)
        scaled = model[:-1].transform(rows)
        step = 1 if scaled.sum() > 1 else -1
        np.testing.assert_allclose(found, scaled + step, rtol=1e-6)
        assert step == shift
