"""One file without pickle: the same bits come back, and a file runs no code."""

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler
from skorch.callbacks import EarlyStopping
from skorch.dataset import ValidSplit
from torch import nn

from sk_meta import (
    FewShotClassifier,
    FewShotRegressor,
    HypernetworkRegressor,
    MAMLClassifier,
    MetaSGDClassifier,
    PrototypicalClassifier,
    PrunedLearner,
    Task,
    TaskNet,
    TaskTransformer,
    adapt,
    load,
    save,
)
from sk_meta.base import MetaClassifier
from sk_meta.networks import Conv4
from sk_meta.tasks import make_blob_tasks, make_sinusoids
from sk_meta.wrapped import WrappedLearner, fitted_learner
from tests.methods import METHODS


def small_net(**options):
    return TaskNet(**{"module__hidden": (4,), "max_epochs": 1, **options})


def tasks_for(method):
    if issubclass(method, MetaClassifier):
        return make_blob_tasks(
            5, n_classes=2, n_features=2, labels="shared", random_state=0
        )
    return make_sinusoids(5, random_state=0)


def outputs(model, X):
    """What a model says about rows, or about tasks."""
    found = getattr(model, "predict_proba", model.predict)(X)
    return [np.asarray(part) for part in (found if found.dtype == object else [found])]


def assert_same(one, other, X):
    for ours, theirs in zip(outputs(one, X), outputs(other, X), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def params_of(model):
    """By their texts; a callback that skorch adds differs by its address alone."""
    params = model.get_params()
    return {k: repr(v) for k, v in params.items() if "callbacks__" not in k}


@pytest.fixture
def again(tmp_path):
    """Saves and loads."""

    def save_and_load(model, **options):
        save(model, tmp_path / "model.safetensors")
        return load(tmp_path / "model.safetensors", **options)

    return save_and_load


@pytest.mark.filterwarnings("ignore:No task has an unlabelled row")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_method_comes_back(method, again):
    *old, new = tasks_for(method)
    meta = method(small_net(), random_state=0).fit(old)
    same = again(meta)
    assert_same(meta, same, old)
    assert params_of(same) == params_of(meta)
    assert same.learner_.way == meta.learner_.way
    assert same.history_[:, "train_loss"] == meta.history_[:, "train_loss"]
    for one, other in zip(
        meta.learner_.buffers(), same.learner_.buffers(), strict=True
    ):
        assert torch.equal(one, other)
    few_shot = meta.adapt(new.X_support, new.y_support)
    assert_same(few_shot, again(few_shot), new.X_query)
    assert_same(few_shot, same.adapt(new.X_support, new.y_support), new.X_query)
    same.partial_fit(old)
    assert len(same.history_) == 2 * len(meta.history_)
    weights = zip(meta.learner_.parameters(), same.learner_.parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in weights)


def test_trains_on_alike(again):
    tasks = tasks_for(MAMLClassifier)
    meta = MAMLClassifier(small_net(), random_state=0).fit(tasks)
    one, other = again(meta), again(meta)
    before = torch.get_rng_state()
    assert_same(one.partial_fit(tasks), other.partial_fit(tasks), tasks)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", [str, int, bool, float])
def test_labels_and_names_of_any_type(kind, again):
    labels = np.array([kind(0), kind(1)])
    tasks = [
        Task(pd.DataFrame(task.X, columns=["a", "b"]), labels[task.y], task.support)
        for task in tasks_for(MAMLClassifier)
    ]
    same = again(MAMLClassifier(small_net(), random_state=0).fit(tasks))
    assert same.classes_.dtype == labels.dtype
    assert same.classes_.tolist() == labels.tolist()
    assert same.feature_names_in_.tolist() == ["a", "b"]
    few_shot = again(same.adapt(tasks[0].X_support, tasks[0].y_support))
    assert set(few_shot.predict(tasks[0].X_query)) <= set(labels)
    with pytest.raises(ValueError, match="columns"):
        same.adapt(tasks[0].X_support[["b", "a"]], tasks[0].y_support)


def test_several_targets_and_metadata(again):
    rng = np.random.default_rng(0)
    tasks = [
        Task(
            rng.normal(size=(12, 2)),
            100 + rng.normal(size=(12, 3)),
            support=[0, 1, 2, 3],
            metadata={"age": rng.normal(50, 9), "dose": rng.normal()},
        )
        for _ in range(4)
    ]
    meta = HypernetworkRegressor(small_net(), use_metadata=True, random_state=0)
    same = again(meta.fit(tasks))
    assert_same(meta, same, tasks)
    assert same.schema_.metadata.names == ("age", "dose")
    with pytest.raises(ValueError, match="metadata"):
        same.predict([Task(task.X, task.y, task.support) for task in tasks])


@pytest.mark.parametrize("labels", ["local", "shared"])
def test_images_and_local_labels(labels, again):
    rng = np.random.default_rng(0)
    tasks = [
        Task(rng.normal(size=(6, 1, 16, 16)), np.arange(6) % 2, labels=labels)
        for _ in range(3)
    ]
    net = TaskNet(Conv4, module__n_filters=3, max_epochs=1)
    meta = MAMLClassifier(net, support_size=2, random_state=0).fit(tasks)
    same = again(meta)
    assert_same(meta, same, tasks)
    few_shot = meta.adapt(tasks[0].X[:2], tasks[0].y[:2])
    assert_same(few_shot, again(few_shot), tasks[1].X)


COLUMNS = [("one", OneHotEncoder(handle_unknown="ignore"), [0])]


@pytest.mark.parametrize(
    "transformer, scope",
    [
        (StandardScaler(), "pooled"),
        (StandardScaler(), "support"),
        (MinMaxScaler((0, 2)), "pooled"),
        (make_pipeline(SimpleImputer(), PCA(2, random_state=0)), "pooled"),
        (make_pipeline(SimpleImputer(), PCA(2, random_state=0)), "support"),
        (SelectKBest(k=2), "pooled"),
        (ColumnTransformer(COLUMNS, remainder="passthrough"), "pooled"),
    ],
)
def test_pipelines(transformer, scope, again):
    tasks = make_blob_tasks(
        5, n_classes=2, n_features=3, labels="shared", random_state=0
    )
    if isinstance(transformer, ColumnTransformer):
        tasks = [task.replace_X(np.round(task.X)) for task in tasks]
    *old, new = tasks
    meta = PrototypicalClassifier(small_net(), random_state=0)
    pipe = make_pipeline(TaskTransformer(transformer, scope), meta).fit(old)
    same = again(pipe)
    assert_same(pipe, same, old)
    assert params_of(same) == params_of(pipe)
    few_shot = adapt(pipe, new.X_support, new.y_support)
    assert_same(few_shot, again(few_shot), new.X_query)
    assert isinstance(again(few_shot), Pipeline)


@pytest.mark.parametrize("how", ["slim", "magnitude"])
def test_pruned(how, again):
    *old, new = tasks_for(MAMLClassifier)
    net = small_net(module__hidden=(8, 6), module__normalization="batch")
    meta = MetaSGDClassifier(net, random_state=0).fit(old)
    pruned = PrunedLearner(
        FrozenEstimator(meta), how=how, max_epochs=1, random_state=0
    ).fit(old)
    same = again(pruned)
    assert_same(pruned, same, old)
    assert same.kept_ == pruned.kept_
    few_shot = pruned.adapt(new.X_support, new.y_support)
    assert_same(few_shot, again(few_shot), new.X_query)
    with pytest.raises(AttributeError):  # what it was made from stays behind
        _ = same.meta_learner.estimator.learner_
    before = {n: p.clone() for n, p in same.learner_.module.named_parameters()}
    same.partial_fit(old)
    for name, value in same.learner_.module.named_parameters():
        assert value.shape == before[name].shape
        if how == "magnitude" and value.ndim > 1:
            assert (value[before[name] == 0] == 0).all()


class Plain(WrappedLearner):
    """A compressed learner of the user's own."""

    def __init__(self, meta_learner):
        self.meta_learner = meta_learner

    def fit(self, tasks, y=None):
        """Compress nothing."""
        self.meta_learner_ = fitted_learner(self.meta_learner, tasks)
        self.note_ = {"kept": (1.0, None)}
        return self


class Mine(nn.Module):
    """A network that cannot be built without numbers."""

    def __init__(self, n_features, width=3):
        super().__init__()
        self.layer = nn.Linear(n_features, width)
        self.register_buffer("shift", torch.ones(width), persistent=False)
        self.scale = torch.full((width,), float(torch.ones(2).sum().item()))

    def forward(self, X):
        """(n, n_features) -> (n, width)."""
        return self.layer(X) * self.scale + self.shift


class Table(Mine):
    """Builds anywhere, but keeps a tensor that is no buffer."""

    def __init__(self, n_features):
        nn.Module.__init__(self)
        self.layer = nn.Linear(n_features, 3)
        self.shift, self.scale = torch.ones(3), torch.full((3,), 2.0)


@pytest.mark.parametrize("own", [Mine, Table, Plain], ids=lambda own: own.__name__)
def test_classes_of_the_user(own, tmp_path):
    tasks, path = tasks_for(MAMLClassifier), tmp_path / "own.safetensors"
    net = small_net() if own is Plain else TaskNet(own, max_epochs=1)
    meta = PrototypicalClassifier(net, random_state=0)
    meta = (Plain(meta) if own is Plain else meta).fit(tasks)
    save(meta, path)
    with pytest.raises(ValueError, match=rf"modules=\[{own.__name__}\]"):
        load(path)
    assert_same(meta, load(path, modules=[own]), tasks)


def test_without_a_learned_prior(again):
    X, y = np.arange(6.0)[:, None], np.array(["a", "b"] * 3)
    few_shot = FewShotClassifier().fit(X, y)
    assert_same(few_shot, again(few_shot), X)
    few_shot = FewShotRegressor().fit(X, X[:, 0])
    assert_same(few_shot, again(few_shot), X)


def test_parameters_set_since_fit(again):
    tasks = tasks_for(MAMLClassifier)
    meta = MAMLClassifier(small_net(), inner_lr=0.5, random_state=0).fit(tasks)
    meta.set_params(inner_lr=0.1, net__lr=1.0)
    same = again(meta)
    assert_same(meta, same, tasks)
    assert (same.inner_lr, same.learner_.inner_lr) == (0.1, 0.5)
    assert (same.net.lr, same.net_.lr) == (1.0, meta.net_.lr)


def test_pickle_and_joblib_go_on(tmp_path, again):
    tasks = tasks_for(MAMLClassifier)
    meta = again(MAMLClassifier(small_net(), random_state=0).fit(tasks))
    assert_same(meta, pickle.loads(pickle.dumps(meta)), tasks)
    joblib.dump(meta, tmp_path / "meta.joblib")
    assert_same(meta, joblib.load(tmp_path / "meta.joblib"), tasks)


def test_says_what_is_left_out(again):
    tasks = tasks_for(MAMLClassifier)
    net = small_net(callbacks=[EarlyStopping()], train_split=ValidSplit(2))
    meta = MAMLClassifier(net, random_state=np.random.RandomState(0)).fit(tasks)
    with pytest.warns(UserWarning, match=r"callbacks, random_state.*, train_split"):
        same = again(meta)
    assert same.net.callbacks is None and same.net.train_split is None
    assert_same(meta, same, tasks)


class Weighing(TaskNet):
    """Counts hard tasks more."""

    def reduce_losses(self, losses):
        """(n_tasks,) -> scalar."""
        return (losses**2).mean()


def test_a_subclass_comes_back_as_a_task_net(again):
    tasks = tasks_for(MAMLClassifier)
    meta = MAMLClassifier(Weighing(max_epochs=1), random_state=0, verbose=1).fit(tasks)
    with pytest.warns(UserWarning, match="Weighing"):
        same = again(meta)
    assert type(same.net) is type(same.net_) is TaskNet
    assert_same(meta, same, tasks)


@pytest.mark.parametrize(
    "options, what",
    [
        ({"module__activation": lambda: nn.ReLU()}, "net.module__activation"),
        ({"module": nn.Sequential(nn.Flatten(), nn.Linear(2, 2))}, "net.module is"),
    ],
)
def test_says_what_cannot_be_written(options, what, tmp_path):
    net = TaskNet(max_epochs=1, **options)
    meta = MAMLClassifier(net, random_state=0).fit(tasks_for(MAMLClassifier))
    with pytest.raises(TypeError, match=what):
        save(meta, tmp_path / "x")
    assert [*tmp_path.iterdir()] == []


def test_refuses_other_objects(tmp_path):
    meta = MAMLClassifier(small_net())
    with pytest.raises(ValueError, match="not fitted"):
        save(meta, tmp_path / "x")
    with pytest.raises(TypeError, match="best_estimator_"):
        save(GridSearchCV(meta, {}), tmp_path / "x")
    with pytest.raises(TypeError, match="joblib"):
        save(StandardScaler().fit([[0.0], [1.0]]), tmp_path / "x")
    for content in (b"", b"\0" * 9, b"\xff" * 99, safetensors.torch.save({})):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ValueError, match="Cannot load"):
            load(tmp_path / "x")
