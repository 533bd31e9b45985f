"""MetaGridSearchCV does what GridSearchCV does."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from skorch.callbacks import LRScheduler
from skorch.dataset import ValidSplit
from torch import nn

from sk_meta import (
    ALPaCARegressor,
    MAMLClassifier,
    MAMLRegressor,
    MetaGridSearchCV,
    PrototypicalClassifier,
    TaskNet,
    TaskTransformer,
    adapt,
    task_scorer,
)
from sk_meta.engine.tracing import operations
from sk_meta.networks import MLP, Conv4
from sk_meta.tasks import Task, make_blob_tasks, make_sinusoids

RATES = {"inner_lr": [0.01, 0.1], "net__lr": [1e-3, 1e-2]}


@pytest.fixture(scope="module")
def blobs():
    return make_blob_tasks(13, n_classes=3, labels="shared", random_state=0)


@pytest.fixture(scope="module")
def waves():
    return make_sinusoids(13, random_state=0)


def small(kind, *, net=None, random_state=0, **options):
    settings = {"module__hidden": (8,), "max_epochs": 3, "batch_size": 4, **(net or {})}
    return kind(TaskNet(**settings), random_state=random_state, **options)


def both(estimator, grid, tasks, **options):
    """The two searches, fitted; how many candidates trained together is printed."""
    options = {"cv": 3, **options}
    meta = MetaGridSearchCV(estimator, grid, verbose=1, **options).fit(tasks)
    return meta, GridSearchCV(estimator, grid, **options).fit(tasks)


def same_results(meta, grid):
    found, wanted = meta.cv_results_, grid.cv_results_
    assert list(found) == list(wanted)
    assert found["params"] == wanted["params"]
    for name, values in wanted.items():
        if "score" in name and "time" not in name:
            close = {"rtol": 1e-5, "atol": 1e-5}
            np.testing.assert_allclose(found[name], values, **close, err_msg=name)
        assert np.ma.asarray(found[name]).dtype == np.ma.asarray(values).dtype
    assert meta.n_splits_ == grid.n_splits_
    assert meta.multimetric_ == grid.multimetric_


def together(capsys):
    """How many candidates trained together, and the reasons of the others."""
    lines = capsys.readouterr().out.splitlines()
    (count,) = [line for line in lines if line.endswith("candidates train together")]
    return int(count.split()[0]), [line for line in lines if " alone: " in line]


@pytest.mark.parametrize(
    ("kind", "grid"),
    [
        (MAMLClassifier, RATES),
        (MAMLRegressor, RATES),
        (PrototypicalClassifier, {"net__lr": [1e-3, 1e-2], "random_state": [0, 1]}),
        (ALPaCARegressor, {"net__optimizer__weight_decay": np.array([0.0, 0.1])}),
        (MAMLClassifier, {"net__optimizer__betas": [(0.9, 0.99), (0.5, 0.9)]}),
    ],
)
def test_numbers_train_together_to_the_same_scores(kind, grid, blobs, waves, capsys):
    tasks = waves if kind in (MAMLRegressor, ALPaCARegressor) else blobs
    meta, plain = both(small(kind), grid, tasks, return_train_score=True)
    same_results(meta, plain)
    assert together(capsys) == (len(meta.cv_results_["params"]), [])
    assert len(np.unique(meta.cv_results_["mean_test_score"])) > 1


def test_more_inner_steps_and_first_order(blobs, capsys):
    """Integers and booleans change the computation: one group for each."""
    grid = {
        "n_inner_steps": [1, 2],
        "first_order": [False, True],
        "inner_lr": [0.1, 0.2],
    }
    same_results(*both(small(MAMLClassifier), grid, blobs))
    assert together(capsys) == (8, [])


def test_widths_and_rates(blobs, capsys):
    grid = {"net__module__hidden": [(4,), (8, 8)], "net__lr": [1e-3, 1e-2]}
    same_results(*both(small(MAMLClassifier), grid, blobs))
    assert together(capsys) == (4, [])


@pytest.mark.parametrize("kind", [MAMLClassifier, ALPaCARegressor])
def test_ragged_tasks(kind, make_ragged_tasks, capsys):
    tasks = make_ragged_tasks(classification=kind is MAMLClassifier)
    grid = {"net__lr": [1e-3, 1e-2], "net__batch_size": [3, 4]}
    same_results(*both(small(kind), grid, tasks))
    assert together(capsys) == (4, [])


@pytest.mark.parametrize(("max_epochs", "often"), [(3, False), (15, True)])
def test_what_comes_often_is_traced(max_epochs, often, waves, monkeypatch):
    """To the same bits, for networks that train on what others do not."""
    traced = []

    def spy(function, given):
        traced.append(operations(function, given))
        return traced[-1]

    monkeypatch.setattr("sk_meta.lockstep.operations", spy)
    meta = small(MAMLRegressor, net={"max_epochs": max_epochs})
    meta, grid = both(meta, {"net__batch_size": [3, 4], **RATES}, waves, refit=False)
    same_results(meta, grid)
    assert bool(traced) == often


def test_drawn_support_sets(waves, capsys):
    """A fraction is a number too, but one that the tasks depend on."""
    tasks = [(task.X, task.y) for task in waves]
    grid = {"support_size": [0.3, 0.6], "inner_lr": [0.01, 0.1]}
    same_results(*both(small(MAMLRegressor), grid, tasks))
    assert together(capsys) == (4, [])


@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Rprop]
)
def test_optimizers(optimizer, waves, capsys):
    meta = small(ALPaCARegressor, net={"optimizer": optimizer, "lr": 1e-3})
    same_results(*both(meta, {"net__lr": [1e-4, 1e-3]}, waves))
    assert together(capsys) == (2, [])


def test_weights_come_out_as_by_fit(waves):
    """Also what a fit alone would have seen: history, seed, frozen parts."""
    seen = {}

    def keep(model, tasks, y=None):
        seen[model.net.lr, len(seen)] = model
        return 0.0

    meta = small(MAMLRegressor, net={"module": Frozen, "module__hidden": 8})
    folds = list(KFold(2).split(waves))
    search = MetaGridSearchCV(
        meta, {"net__lr": [1e-3, 1e-2]}, cv=folds, scoring=keep, refit=False
    )
    search.fit(waves)
    for (lr, _), model in seen.items():
        train = folds[list(seen).index((lr, _)) % 2][0]
        alone = clone(meta).set_params(net__lr=lr).fit([waves[i] for i in train])
        for ours, theirs in zip(
            model.learner_.parameters(), alone.learner_.parameters(), strict=True
        ):
            torch.testing.assert_close(ours, theirs)
        assert model.get_params()["net__max_epochs"] == 3 == model.net_.max_epochs
        losses = [model.history_[:, "train_loss"], alone.history_[:, "train_loss"]]
        np.testing.assert_allclose(*losses, rtol=1e-5)
        assert not model.learner_.training


class Frozen(nn.Module):
    """A network with a frozen layer, a buffer and a parameter that nothing uses."""

    def __init__(self, n_features, n_outputs, hidden):
        super().__init__()
        self.first = nn.Linear(n_features, hidden).requires_grad_(False)
        self.last = nn.Linear(hidden, n_outputs)
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("scale", torch.rand(hidden))

    def forward(self, X):
        return self.last(torch.tanh(self.first(X)) * self.scale)


def test_frozen_buffers_and_seeds(waves, capsys):
    meta = small(
        ALPaCARegressor, net={"module": Frozen, "module__n_outputs": 4}, random_state=0
    )
    meta.set_params(net__module__hidden=8)
    grid = {"random_state": [0, 1], "net__optimizer__weight_decay": [0.0, 0.5]}
    same_results(*both(meta, grid, waves))
    assert together(capsys) == (4, [])


def test_pipeline(blobs, capsys):
    steps = [("scale", TaskTransformer(StandardScaler())), ("m", small(MAMLClassifier))]
    grid = {
        "scale__transformer": [StandardScaler(), MinMaxScaler()],
        "scale__scope": ["pooled", "support"],
        "m__inner_lr": [0.1, 0.5],
    }
    scoring = task_scorer("balanced_accuracy")
    meta, plain = both(Pipeline(steps), grid, blobs, scoring=scoring, cv=2)
    same_results(meta, plain)
    assert together(capsys) == (8, [])
    assert meta.best_params_ == plain.best_params_
    few_shot = adapt(meta, blobs[0].X_support, blobs[0].y_support)
    other = adapt(plain, blobs[0].X_support, blobs[0].y_support)
    X = blobs[0].X_query
    assert np.array_equal(few_shot.predict_proba(X), other.predict_proba(X))


def test_refit_and_what_a_fitted_search_does(waves):
    meta, plain = both(small(MAMLRegressor), RATES, waves)
    assert meta.best_params_ == plain.best_params_
    assert meta.best_index_ == plain.best_index_
    assert meta.best_score_ == pytest.approx(plain.best_score_, abs=1e-5)
    assert meta.refit_time_ > 0
    assert meta.score(waves) == plain.score(waves)
    task = waves[0]
    for model in (meta, pickle.loads(pickle.dumps(meta))):
        few_shot = adapt(model, task.X_support, task.y_support)
        assert np.array_equal(
            few_shot.predict(task.X_query), meta.predict(waves[:1])[0]
        )


def test_parameters_and_clone():
    search = MetaGridSearchCV(small(MAMLRegressor), RATES, cv=3, verbose=1)
    wanted = GridSearchCV(small(MAMLRegressor), RATES, cv=3, verbose=1).get_params()
    assert search.get_params().keys() == wanted.keys()
    assert clone(search).get_params(deep=False)["param_grid"] == RATES
    assert clone(search).set_params(estimator__inner_lr=0.5).estimator.inner_lr == 0.5


def test_the_estimator_is_left_alone(waves):
    meta = small(MAMLRegressor)
    before = repr(meta)
    state = torch.random.get_rng_state()
    MetaGridSearchCV(meta, RATES, cv=2).fit(waves)
    assert repr(meta) == before and not hasattr(meta, "net_")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_several_metrics(blobs):
    scoring = {name: task_scorer(name) for name in ("accuracy", "neg_log_loss")}
    meta, plain = both(
        small(MAMLClassifier), RATES, blobs, scoring=scoring, refit="neg_log_loss"
    )
    same_results(meta, plain)
    assert meta.best_params_ == plain.best_params_
    assert meta.scorer_.keys() == plain.scorer_.keys()


def test_a_callable_refit_and_no_refit(waves):
    def last(results):
        return len(results["params"]) - 1

    meta = MetaGridSearchCV(small(MAMLRegressor), RATES, cv=2, refit=last).fit(waves)
    assert meta.best_index_ == 3 and not hasattr(meta, "best_score_")
    meta = MetaGridSearchCV(small(MAMLRegressor), RATES, cv=2, refit=False).fit(waves)
    assert not hasattr(meta, "best_estimator_") and meta.best_score_ is not None


@pytest.mark.filterwarnings("ignore:One or more of the test scores")
@pytest.mark.filterwarnings("ignore:Scoring failed")
def test_failing_candidates(waves):
    grid = {"inner_lr": [-1.0, 0.1, 0.2]}
    found = []
    for kind in (MetaGridSearchCV, GridSearchCV):
        with pytest.warns(FitFailedWarning, match="3 fits failed out of a total of 9"):
            found.append(kind(small(MAMLRegressor), grid, cv=3).fit(waves))
    same_results(*found)
    with pytest.raises(ValueError, match="inner_lr"):
        MetaGridSearchCV(small(MAMLRegressor), grid, error_score="raise").fit(waves)
    with pytest.raises(ValueError, match="All the 3 fits failed"):
        MetaGridSearchCV(small(MAMLRegressor), {"inner_lr": [-1.0]}, cv=3).fit(waves)
    with pytest.raises(ValueError, match="missing"):
        MetaGridSearchCV(small(MAMLRegressor), {"missing": [1.0]}, cv=3).fit(waves)


class Noisy(MLP):
    """Adds random numbers, in no layer that could be found."""

    def forward(self, X):
        return super().forward(X) + 0.1 * torch.randn(1)


class OwnNet(TaskNet):
    """Weighs tasks."""

    def reduce_losses(self, losses):
        return losses.max()


class OwnFit(MAMLClassifier):
    """A fit of its own."""

    def fit(self, tasks, y=None):
        return super().fit(tasks)


class Dropping(nn.Module):
    """Dropout."""

    def __init__(self, n_features, n_outputs):
        super().__init__()
        self.layer = nn.Linear(n_features, n_outputs)

    def forward(self, X):
        return F.dropout(self.layer(X), 0.5, self.training)


ALONE = [
    (
        "callbacks",
        small(MAMLClassifier, net={"callbacks": [LRScheduler("StepLR", step_size=1)]}),
    ),
    ("train_split", small(MAMLClassifier, net={"train_split": ValidSplit(3)})),
    ("OwnNet is not TaskNet", MAMLClassifier(OwnNet(max_epochs=2), random_state=0)),
    ("OwnFit has a fit of its own", small(OwnFit)),
    ("max_memory", small(MAMLClassifier, net={"max_memory": 100.0})),
    ("one task at a time", small(MAMLClassifier, net={"way": "loop"})),
    (
        "running statistics",
        small(PrototypicalClassifier, net={"module__normalization": "batch"}),
    ),
    ("memory", Pipeline([("m", small(MAMLClassifier))], memory="unused")),
    ("random", MAMLClassifier(TaskNet(Dropping, max_epochs=2), random_state=0)),
    (
        "random",
        PrototypicalClassifier(
            TaskNet(Dropping, module__n_outputs=4, max_epochs=2), random_state=0
        ),
    ),
    ("random", small(MAMLClassifier, net={"module": Noisy})),
]


@pytest.mark.parametrize(("reason", "model"), ALONE)
def test_others_are_evaluated_as_before(reason, model, blobs, capsys):
    name = "m__net__lr" if isinstance(model, Pipeline) else "net__lr"
    meta, plain = both(model, {name: [1e-3, 1e-2]}, blobs)
    same_results(meta, plain)
    count, reasons = together(capsys)
    assert count == 0 and len(reasons) == 1 and reason in reasons[0], reasons


def test_convolutions():
    rng = np.random.default_rng(0)
    support = np.arange(8) < 4
    tasks = [
        Task(rng.random((8, 1, 8, 8), dtype="float32"), np.arange(8) % 2, support)
        for _ in range(6)
    ]
    net = TaskNet(Conv4, module__n_filters=2, max_epochs=1)
    meta = MAMLClassifier(net, random_state=0)
    same_results(*both(meta, {"net__lr": [1e-3, 1e-2]}, tasks, cv=2))


def test_an_estimator_that_is_no_meta_learner(capsys):
    X = np.random.default_rng(0).normal(size=(20, 3))
    meta = MetaGridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}, verbose=1).fit(X, X[:, 0])
    plain = GridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}).fit(X, X[:, 0])
    same_results(meta, plain)
    assert together(capsys) == (0, ["2 alone: Ridge has no network of its own"])


def test_some_together_and_some_alone(waves, capsys):
    grid = [
        {"net__lr": [1e-3, 1e-2]},
        {"net__train_split": [ValidSplit(2)], "net__lr": [1e-2]},
    ]
    same_results(*both(small(MAMLRegressor), grid, waves))
    assert together(capsys) == (2, ["1 alone: train_split"])


def test_groups_decide_the_splits(waves):
    options = {"cv": GroupKFold(2), "refit": False}
    groups = np.arange(len(waves)) % 3
    found = [
        kind(small(MAMLRegressor), RATES, **options).fit(waves, groups=groups)
        for kind in (MetaGridSearchCV, GridSearchCV)
    ]
    same_results(*found)


@pytest.mark.slow
def test_processes(waves, capsys):
    same_results(*both(small(MAMLRegressor), RATES, waves, n_jobs=2))
    assert together(capsys) == (4, [])


@pytest.mark.slow
def test_portions_of_a_group_give_the_same(waves, monkeypatch):
    monkeypatch.setattr("sk_meta.search._AT_ONCE", 5)
    same_results(*both(small(MAMLRegressor), RATES, waves))


@pytest.mark.slow
def test_long_training(waves):
    """Rounding grows with every step, so nothing but the same bits stays close."""
    net = {"module__hidden": (40, 40), "max_epochs": 100, "lr": 1e-2}
    meta = small(MAMLRegressor, net=net, n_inner_steps=2)
    same_results(*both(meta, {"inner_lr": [0.01, 0.1]}, waves, refit=False))
