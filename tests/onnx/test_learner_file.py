"""Files of whole meta-learners: they adapt as the meta-learner does."""

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

from sk_meta import (
    ALPaCARegressor,
    ANILRegressor,
    HypernetworkRegressor,
    InContextClassifier,
    MAMLClassifier,
    MAMLRegressor,
    MetaSGDClassifier,
    PrototypicalClassifier,
    R2D2Classifier,
    R2D2Regressor,
    SemiSupervisedPrototypicalClassifier,
    Task,
    TaskNet,
    TaskTransformer,
    adapt,
)
from sk_meta.base import MetaClassifier
from sk_meta.networks import Conv4
from sk_meta.onnx import OnnxMetaLearner, linear_algebra, to_onnx
from sk_meta.onnx.graph import to_graph
from sk_meta.onnx.learner import learner_graph
from sk_meta.tasks import make_blob_tasks, make_sinusoids
from tests.methods import METHODS, REPRESENTATIVES
from tests.test_every_method import make_net, make_tasks, outputs

pytestmark = pytest.mark.filterwarnings("ignore:No task has an unlabelled row")
CASES = [
    pytest.param(
        method,
        labels,
        id=f"{method.__name__}-{labels}",
        marks=[]
        if method in REPRESENTATIVES and labels == "local"
        else [pytest.mark.slow],
    )
    for method in METHODS
    for labels in (["shared", "local"] if issubclass(method, MetaClassifier) else [""])
]
CASES += [
    pytest.param(method, "", id=method.__name__)
    for method in METHODS
    if method in REPRESENTATIVES and not issubclass(method, MetaClassifier)
]


def on_device(model, **options):
    return OnnxMetaLearner(to_onnx(model, **options).SerializeToString())


def deviation(found, expected, X):
    """Largest difference; of targets relative to the spread of the predictions."""
    pairs = zip(outputs(found, X), outputs(expected, X), strict=True)
    scale = 1.0
    if not hasattr(expected, "predict_proba"):
        scale = np.ptp(expected.predict(X)) + np.abs(expected.predict(X)).mean()
    return max(np.abs(ours - theirs).max() / scale for ours, theirs in pairs)


def support_of(rng, n, n_classes, shape):
    y = np.resize(np.arange(n_classes), n) if n_classes else rng.normal(size=n)
    return rng.normal(size=(n, *shape)).astype(np.float32), y


@pytest.mark.parametrize("method, labels", CASES)
def test_every_method_at_sizes_never_seen(method, labels):
    tasks = make_tasks(method, labels or "shared")
    meta = method(make_net(), random_state=0).fit(tasks)
    device, rng = on_device(meta), np.random.default_rng(0)
    n_classes = 3 if issubclass(method, MetaClassifier) else 0
    for n_support, n_query in ((4, 2), (17, 1), (60, 21)):
        X, y = support_of(rng, n_support, n_classes, meta.schema_.shape)
        X_query = rng.normal(size=(n_query, *meta.schema_.shape))
        found, expected = device.adapt(X, y), meta.adapt(X, y)
        assert deviation(found, expected, X_query.astype(np.float32)) < 1e-5


@pytest.fixture(scope="module")
def maml():
    tasks = make_sinusoids(8, random_state=0)
    return MAMLRegressor(make_net(), n_inner_steps=3, random_state=0).fit(tasks)


def test_steps_are_an_input(maml):
    device = on_device(maml)
    assert device.n_steps == 3
    X, y = support_of(np.random.default_rng(0), 10, 0, (1,))
    losses = []
    for n_steps in (1, 3, 12):
        maml.learner_.n_adapt_steps = n_steps
        expected = maml.adapt(X, y)
        found = device.adapt(X, y, n_steps=n_steps)
        assert deviation(found, expected, X) < 1e-5
        losses.append(((found.predict(X) - y) ** 2).mean())
    maml.learner_.n_adapt_steps = 3
    assert losses == sorted(losses, reverse=True)
    np.testing.assert_array_equal(
        device.adapt(X, y).predict(X), device.adapt(X, y, n_steps=3).predict(X)
    )


def test_the_graph_does_not_grow_with_steps(maml):
    sizes = []
    for n_steps in (1, 50):
        maml.learner_.n_adapt_steps = n_steps
        sizes.append(len(learner_graph(maml, 20)[0].SerializeToString()))
    maml.learner_.n_adapt_steps = 3
    assert sizes[0] == sizes[1]


def test_what_no_step_changes_is_outside_of_the_loop():
    """ANIL's features are computed once, not once a step."""
    meta = ANILRegressor(make_net(), random_state=0)
    graph = learner_graph(meta.fit(make_sinusoids(6, random_state=0)), 20)[0].graph
    (loop,) = (node for node in graph.node if node.op_type == "Loop")
    body = next(a.g for a in loop.attribute if a.name == "body")
    assert "Tanh" in {node.op_type for node in graph.node}
    assert "Tanh" not in {node.op_type for node in body.node}


def test_any_number_of_classes():
    tasks = make_blob_tasks(9, n_classes=3, labels="local", random_state=0)
    meta = PrototypicalClassifier(make_net(), random_state=0).fit(tasks)
    device, rng = on_device(meta), np.random.default_rng(0)
    for n_classes in (2, 5, 11):
        X, y = support_of(rng, 30, n_classes, meta.schema_.shape)
        assert deviation(device.adapt(X, y), meta.adapt(X, y), X) < 1e-5


def test_labels_that_are_shared_may_be_absent():
    labels = np.array(["benign", "malign", "unclear"])
    drawn = make_blob_tasks(9, n_classes=3, random_state=0)
    tasks = [Task(t.X, labels[t.y], support=t.support) for t in drawn]
    meta = MetaSGDClassifier(make_net(), random_state=0).fit(tasks)
    device = on_device(meta)
    np.testing.assert_array_equal(device.classes_, labels)
    X, codes = support_of(np.random.default_rng(0), 8, 2, meta.schema_.shape)
    found = device.adapt(X, labels[1:][codes])
    expected = meta.adapt(X, labels[1:][codes])
    np.testing.assert_array_equal(found.classes_, ["malign", "unclear"])
    np.testing.assert_array_equal(found.predict(X), expected.predict(X))
    assert deviation(found, expected, X) < 1e-5


def test_unlabelled_rows():
    rng = np.random.default_rng(0)
    tasks = [
        Task(t.X, np.where(rng.random(len(t)) < 0.5, t.y, -1))
        for t in make_blob_tasks(9, n_classes=2, n_query=20, random_state=0)
    ]
    meta = SemiSupervisedPrototypicalClassifier(
        make_net(), unlabeled=-1, support_size=1, random_state=0
    ).fit(tasks)
    device = on_device(meta)
    X, y = support_of(rng, 12, 2, meta.schema_.shape)
    y[4:] = -1
    found = device.adapt(X, y)
    assert deviation(found, meta.adapt(X, y), X) < 1e-5
    without = device.adapt(X[:4], y[:4]).predict_proba(X)
    assert np.abs(found.predict_proba(X) - without).max() > 1e-3


def test_several_targets_at_any_level():
    rng = np.random.default_rng(0)
    tasks = [
        (rng.normal(size=(12, 3)), 1e6 + 5 * rng.normal(size=(12, 2))) for _ in range(6)
    ]
    meta = ALPaCARegressor(make_net(), random_state=0).fit(tasks)
    X, y = tasks[0]
    found, expected = on_device(meta).adapt(X, y), meta.adapt(X, y)
    for ours, theirs in zip(outputs(found, X), outputs(expected, X), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_metadata_is_an_input():
    tasks = [
        Task(t.X, t.y, support=t.support, metadata={"b": i, "a": i % 3})
        for i, t in enumerate(make_sinusoids(8, random_state=0))
    ]
    meta = HypernetworkRegressor(
        make_net(), use_metadata=True, random_state=0, width=8
    ).fit(tasks)
    device = on_device(meta)
    X, y = tasks[0].X_support, tasks[0].y_support
    found = [device.adapt(X, y, metadata={"a": a, "b": 2}) for a in (0, 2)]
    expected = meta.adapt(X, y, metadata={"b": 2, "a": 0})
    assert deviation(found[0], expected, X) < 1e-5
    assert deviation(found[0], found[1], X) > 1e-5


def test_transformers_are_inside():
    rng = np.random.default_rng(0)

    def table(n):
        return pd.DataFrame(
            {"ward": rng.choice(["a", "b", "c"], n), "age": rng.normal(50, 9, n)}
        )

    tasks = [Task(table(12), rng.integers(2, size=12)) for _ in range(8)]
    columns = make_column_transformer(
        (StandardScaler(), ["age"]), (OneHotEncoder(sparse_output=False), ["ward"])
    )
    pipe = make_pipeline(
        TaskTransformer(columns), R2D2Classifier(make_net(), random_state=0)
    )
    search = GridSearchCV(pipe, {"r2d2classifier__support_size": [2]}, cv=2).fit(tasks)
    X = tasks[0].X
    device = on_device(search, X=X)
    y = np.resize([0, 1], len(X))
    assert deviation(device.adapt(X, y), adapt(search, X, y), table(20)) < 1e-5


def test_scaled_arrays():
    tasks = make_blob_tasks(9, n_classes=2, random_state=0)
    pipe = make_pipeline(
        TaskTransformer(StandardScaler()), MAMLClassifier(make_net(), random_state=0)
    ).fit(tasks)
    X, y = support_of(np.random.default_rng(0), 9, 2, tasks[0].X.shape[1:])
    assert deviation(on_device(pipe).adapt(X, y), adapt(pipe, X, y), X) < 1e-5


@pytest.mark.parametrize(
    "method",
    [PrototypicalClassifier, pytest.param(MAMLClassifier, marks=pytest.mark.slow)],
)
def test_images(method):
    rng = np.random.default_rng(0)
    tasks = [
        Task(rng.random((20, 1, 12, 12)), np.resize(range(3), 20), labels="local")
        for _ in range(4)
    ]
    net = TaskNet(Conv4, module__n_filters=4, max_epochs=1, batch_size=4)
    meta = method(net, random_state=0).fit(tasks)
    device = on_device(meta)
    X, y = support_of(rng, 9, 3, (1, 12, 12))
    new = rng.random((200, 1, 12, 12)).astype(np.float32)
    found, expected = device.adapt(X, y), meta.adapt(X, y)
    gap = np.abs(found.predict_proba(new) - expected.predict_proba(new))
    assert np.median(gap) < 1e-4
    assert (found.predict(new) == expected.predict(new)).mean() >= 0.99


class Recurrent(nn.Module):
    def __init__(self, n_features, n_outputs=4, cells=nn.LSTM):
        super().__init__()
        self.cells = cells(1, 4, batch_first=True)
        self.last = nn.Linear(4, n_outputs)

    def forward(self, X):
        return self.last(self.cells(X[..., None])[0][:, -1])


class Strange(nn.Module):
    def forward(self, X):
        return torch.special.bessel_j0(X)


def with_strange_layer():
    return nn.Sequential(nn.Linear(1, 4), Strange(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    "layer", [nn.LSTM, pytest.param(nn.GRU, marks=pytest.mark.slow)]
)
def test_recurrent_networks(layer):
    net = TaskNet(Recurrent, module__cells=layer, max_epochs=1)
    meta = MAMLRegressor(net, random_state=0).fit(make_sinusoids(6, random_state=0))
    X, y = support_of(np.random.default_rng(0), 7, 0, (1,))
    assert deviation(on_device(meta).adapt(X, y), meta.adapt(X, y), X) < 1e-5


@pytest.mark.slow
def test_attention():
    tasks = make_blob_tasks(9, n_classes=2, random_state=0)
    meta = InContextClassifier(make_net(), width=8, n_heads=2, random_state=0)
    device = on_device(meta.fit(tasks))
    X, y = support_of(np.random.default_rng(0), 7, 2, meta.schema_.shape)
    assert deviation(device.adapt(X, y), meta.adapt(X, y), X) < 1e-5


def test_a_layer_without_a_translation_is_named():
    net = TaskNet(with_strange_layer(), max_epochs=1)
    meta = R2D2Regressor(net, random_state=0).fit(make_sinusoids(6, random_state=0))
    with pytest.raises(ValueError, match=r"layer '1' \(Strange\)"):
        to_onnx(meta)


def test_bad_input(maml, tmp_path):
    path = tmp_path / "learner.onnx"
    with pytest.raises(ValueError, match="from 18 to 22, got 15"):
        to_onnx(maml, path, target_opset=15)
    with pytest.raises(ValueError, match="are for adapted models"):
        to_onnx(maml, path, zipmap=True)
    with pytest.raises(ValueError, match="deviates"):
        to_onnx(maml, path, tolerance=-1.0)
    with pytest.raises(ValueError, match="not fitted"):
        to_onnx(MAMLRegressor(), path)
    pipe = make_pipeline(
        TaskTransformer(StandardScaler(), scope="support"),
        MAMLRegressor(make_net(), random_state=0),
    ).fit(make_sinusoids(6, random_state=0))
    with pytest.raises(ValueError, match="'tasktransformer' is fitted on each support"):
        to_onnx(pipe, path)
    assert not path.exists()


@pytest.mark.parametrize("opset", [18, pytest.param(22, marks=pytest.mark.slow)])
def test_opsets(maml, opset):
    model = to_onnx(maml, target_opset=opset)
    (used,) = (o.version for o in model.opset_import if o.domain == "")
    assert used == opset
    onnx.checker.check_model(model, full_check=True)


class Solving(nn.Module):
    def forward(self, A, B):
        L = torch.linalg.cholesky_ex(A)[0]
        below = torch.linalg.solve_triangular(L, B, upper=False)
        above = torch.linalg.solve_triangular(L.mT, below, upper=True)
        return L, below, above, torch.cholesky_solve(B, L)


@pytest.mark.parametrize("batch", [(), (2,), (3, 1)])
def test_linear_systems(batch):
    rng, n_axes = np.random.default_rng(0), len(batch) + 2
    given = [torch.eye(7).expand(*batch, 7, 7), torch.ones(*batch, 7, 5)]
    any_size = dict.fromkeys(range(len(batch), n_axes), torch.export.Dim.DYNAMIC)
    names = dict(zip("AB", (value.double() for value in given), strict=True))
    translations = linear_algebra.TRANSLATIONS
    model = to_graph(Solving(), names, (any_size, any_size), 20, translations)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for n, m in ((1, 1), (2, 3), (12, 1)):
        root = rng.normal(size=(*batch, n, n))
        A = root @ np.swapaxes(root, -1, -2) + np.eye(n)
        B = rng.normal(size=(*batch, n, m))
        L, below, *solved = session.run(None, {"A": A, "B": B})
        np.testing.assert_allclose(L, np.linalg.cholesky(A), atol=1e-12)
        np.testing.assert_allclose(L @ below, B, atol=1e-12)
        for X in solved:
            np.testing.assert_allclose(A @ X, B, atol=1e-11)


def test_weights_are_in_the_file_once():
    tasks = make_blob_tasks(6, n_classes=2, labels="local", random_state=0)
    net = TaskNet(max_epochs=1, module__hidden=(64, 64))
    meta = PrototypicalClassifier(net, random_state=0).fit(tasks)
    numbers = sum(parameter.numel() for parameter in meta.learner_.parameters())
    graph = to_onnx(meta).graph
    stored = sum(np.prod(tensor.dims) for tensor in graph.initializer)
    assert numbers <= stored < 1.05 * numbers
