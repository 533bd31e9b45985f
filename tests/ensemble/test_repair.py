"""Repair: what is found, what is trained, what is kept, and what stays as it was."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetRegressor
from torch import nn

from sk_meta import (
    ConditionalNeuralProcessRegressor,
    DistilledLearner,
    EpisodeSampler,
    JointClassifier,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    PrunedLearner,
    QuantizedLearner,
    RepairedLearner,
    ReptileClassifier,
    Task,
    TaskNet,
    TaskTransformer,
    adapt,
    evaluate,
    load,
    save,
    task_scorer,
)
from sk_meta.engine.meta_step import MetaStep
from sk_meta.ensemble.tail import (
    query_losses,
    tail_mean,
)
from sk_meta.networks import MLP
from sk_meta.tasks import make_blob_tasks, make_sinusoids
from tests.methods import METHODS, REPRESENTATIVES


def make_net(max_epochs=2, **options):
    return TaskNet(module__hidden=(8,), max_epochs=max_epochs, **options)


def blobs(n_tasks=44, seed=0, **options):
    options = {"n_classes": 2, "n_features": 3, "labels": "shared", **options}
    return make_blob_tasks(n_tasks, random_state=seed, **options)


def sinusoids(n_tasks=44, seed=0):
    return make_sinusoids(n_tasks, n_support=5, n_query=5, random_state=seed)


@pytest.fixture(scope="module")
def untrained():
    """A learner that is easily made better."""
    tasks = make_sinusoids(10, random_state=0)
    return ConditionalNeuralProcessRegressor(make_net(0), random_state=0).fit(tasks)


@pytest.fixture(scope="module")
def classifier():
    return PrototypicalClassifier(make_net(0), random_state=0).fit(blobs())


def repair(meta, **options):
    options = {"max_epochs": 2, "random_state": 0, **options}
    return RepairedLearner(FrozenEstimator(meta), **options)


def same(first, second):
    first, second = (meta.learner_.state_dict() for meta in (first, second))
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


# What is found.


def test_tasks_broken_on_purpose_are_found():
    """A learner that ignores support sets, and tasks whose labels are swapped."""
    tasks = blobs(80, separation=20.0)
    joint = JointClassifier(make_net(20), n_adapt_steps=0, random_state=0)
    joint.fit([shifted(task, 0) for task in tasks])
    tasks, broken = [shifted(task, 0) for task in blobs(80, 1, separation=20.0)], []
    for i in range(0, 80, 9):
        tasks[i] = Task(tasks[i].X, 1 - tasks[i].y, tasks[i].support, name=f"odd {i}")
        broken.append(i)
    repaired = repair(joint, validation=0.2).fit(tasks)
    report = repaired.repair_report_
    looked_at = set(range(80)) - set(report.held_out)
    assert set(report.positions) == set(broken) & looked_at
    assert report.n_tasks == 64 and len(report.held_out) == 16
    assert report.names == [f"odd {i}" for i in report.positions]
    assert all("far above" in why for why in report.why)
    assert report.before == sorted(report.before, reverse=True)
    for text in (report.names[0], "far above the others", "64"):
        assert text in str(report)


def shifted(task, by):
    """The task without its shift as a whole, so that labels mean the same."""
    centre = task.X.mean(axis=0) - by
    return Task(task.X - centre, task.y, task.support, name=task.name)


def test_max_loss_decides_alone(classifier):
    losses = query_losses(classifier.learner_, classifier._later_dataset(blobs()))
    limit = float(np.quantile(losses, 0.7))
    report = repair(classifier, max_loss=limit).fit(blobs()).repair_report_
    looked_at = sorted(set(range(44)) - set(report.held_out))
    assert sorted(report.positions) == [i for i in looked_at if losses[i] > limit]
    rows = report.rows()
    assert [row["position"] for row in rows] == report.positions
    np.testing.assert_allclose(
        [row["before"] for row in rows], losses[report.positions], rtol=1e-5
    )
    assert {"task", "after", "why"} <= rows[0].keys()


# What is kept.


def test_unchanged_where_nothing_falls_short(classifier):
    before = copy.deepcopy(classifier)
    repaired = repair(classifier, max_loss=np.inf).fit(blobs())
    report = repaired.repair_report_
    assert not repaired.repaired_ and not report.repaired
    assert report.positions == [] and report.comparison is None
    assert str(report) == (
        "Unchanged. None of the tasks falls short, so nothing was trained."
    )
    assert same(repaired, before) and same(classifier, before)
    assert len(repaired.history_) == len(before.history_)


@pytest.mark.parametrize("lr", [1e6, 1e30])
def test_harmful_training_is_rejected(untrained, lr):
    good = clone(untrained).set_params(net__max_epochs=5).fit(sinusoids(seed=1))
    repaired = repair(good, lr=lr, max_loss=-100.0).fit(sinusoids())
    report = repaired.repair_report_
    assert not repaired.repaired_ and report.positions
    assert str(report).startswith("Unchanged. ")
    assert same(repaired, good)
    assert repaired.net_.lr == good.net_.lr
    assert np.isfinite(repaired.score(sinusoids(seed=2)))


def test_held_out_tasks_can_refuse(classifier):
    """What is good for the tasks trained on is bad for those held out."""
    tasks = blobs(80, separation=10.0)
    good = clone(classifier).set_params(net__max_epochs=10).fit(tasks)
    held_out = repair(good).fit(tasks).repair_report_.held_out
    for i in set(range(80)) - set(held_out):
        y = np.where(tasks[i].support, tasks[i].y, 1 - tasks[i].y)
        tasks[i] = Task(tasks[i].X, y, tasks[i].support)
    repaired = repair(good, max_loss=0.0, max_epochs=3, lr=0.1).fit(tasks)
    report = repaired.repair_report_
    assert report.held_out == held_out and report.epoch > 0
    assert np.mean(report.after) < np.mean(report.before)
    assert not repaired.repaired_ and same(repaired, good)
    assert "held-out tasks" in report.reason and "not kept" in str(report)


def test_a_repair_that_helps_is_kept(untrained):
    tasks, new = make_sinusoids(80, random_state=1), make_sinusoids(50, random_state=2)
    repaired = repair(untrained, max_epochs=8, lr=0.01, max_loss=0.0).fit(tasks)
    report = repaired.repair_report_
    assert repaired.repaired_ and report.repaired and not same(repaired, untrained)
    assert report.comparison["worst"]["change"][2] < 0
    assert report.comparison["mean"]["change"][0] <= 0
    assert np.mean(report.after) < np.mean(report.before)
    assert report.layers and min(report.layers.values()) > 0
    dataset = untrained._later_dataset(new)
    losses = [query_losses(m.learner_, dataset) for m in (untrained, repaired)]
    assert tail_mean(losses[1], 0.1) < tail_mean(losses[0], 0.1)
    for text in ("Repaired. ", "worst 10 %", "mean", "90 % intervals", "epoch"):
        assert text in str(report)


def test_losses_after_are_those_of_the_learner_returned(untrained):
    tasks = make_sinusoids(80, random_state=1)
    repaired = repair(untrained, max_epochs=6, lr=0.01, max_loss=0.0).fit(tasks)
    report = repaired.repair_report_
    found = query_losses(repaired.learner_, untrained._later_dataset(tasks))
    np.testing.assert_allclose(found[report.positions], report.after, rtol=1e-5)
    held_out = report.comparison["mean"]["after"][0]
    assert found[report.held_out].mean() == pytest.approx(held_out, rel=1e-5)


# What it works for, and what it leaves alone.


@pytest.mark.filterwarnings("ignore:No task has an unlabelled row")
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, marks=() if m in REPRESENTATIVES else pytest.mark.slow)
        for m in METHODS
    ],
    ids=lambda method: method.__name__,
)
def test_every_method(method):
    tasks = blobs(24) if method.__name__.endswith("Classifier") else sinusoids(24)
    meta = method(make_net(1), random_state=0)
    repaired = RepairedLearner(meta, max_epochs=1, validation=0.5, max_loss=-1e9)
    repaired.set_params(random_state=0).fit(tasks)
    assert repaired.repair_report_.n_tasks == 12
    few_shot = adapt(repaired, tasks[0].X_support, tasks[0].y_support)
    assert len(few_shot.predict(tasks[0].X_query)) == len(tasks[0].X_query)


@pytest.mark.parametrize("method", [ReptileClassifier, MAMLClassifier])
def test_reweighted_tasks_still_learn(method):
    """Reptile's way back, too, may be weighed."""
    meta = method(make_net(0), inner_lr=0.1, random_state=0).fit(blobs())
    repaired = repair(meta, max_loss=0.0, max_epochs=5).fit(blobs(80, 1))
    assert repaired.repaired_


def test_options_of_the_net_survive(untrained):
    """Memory, validation split and callbacks are as they were, and have no effect."""
    from skorch.callbacks import EarlyStopping
    from skorch.dataset import ValidSplit

    net = make_net(
        1, max_memory=0.5, train_split=ValidSplit(2), callbacks=[EarlyStopping()]
    )
    meta = MAMLRegressor(net, random_state=0).fit(sinusoids())
    repaired = repair(meta, max_loss=0.0, max_epochs=3).fit(sinusoids(80, 1))
    net = repaired.net_
    assert type(net.meta_step_) is MetaStep and net.max_memory == 0.5
    assert net.max_epochs == 1 and net.train_split is not None
    assert len(net.callbacks_) == len(meta.net_.callbacks_)
    if repaired.repaired_:
        assert len(net.history) == 1 + 3
    repaired.meta_learner_.partial_fit(sinusoids())


def test_nothing_of_the_user_changes(untrained):
    tasks = sinusoids(60)
    legacy = np.random.get_state
    before = copy.deepcopy(untrained), copy.deepcopy(tasks)
    draws = copy.deepcopy(untrained.net_.rng_).random()
    state = torch.get_rng_state(), legacy()[1].copy()
    repair(untrained, max_loss=-1e9).fit(tasks)
    assert same(untrained, before[0])
    assert copy.deepcopy(untrained.net_.rng_).random() == draws
    assert type(untrained.net_.meta_step_) is MetaStep
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (legacy()[1] == state[1]).all()
    for task, other in zip(tasks, before[1], strict=True):
        assert (task.X == other.X).all() and (task.y == other.y).all()


@pytest.mark.parametrize("frozen", [True, False])
def test_reproducible(frozen, untrained):
    tasks, found = sinusoids(60), []
    for _ in range(2):
        meta = FrozenEstimator(untrained) if frozen else clone(untrained)
        meta = RepairedLearner(meta, max_epochs=2, max_loss=-1e9, random_state=3)
        found.append(meta.fit(tasks))
    assert same(*found) and str(found[0].repair_report_) == str(found[1].repair_report_)
    other = clone(meta).set_params(random_state=4).fit(tasks)
    assert other.repair_report_.held_out != meta.repair_report_.held_out


def test_an_unfitted_learner_does_not_see_held_out_tasks(monkeypatch):
    seen = []
    fit = PrototypicalClassifier.fit

    def spy(self, tasks, y=None):
        seen.extend(task.name for task in tasks)
        return fit(self, tasks, y)

    monkeypatch.setattr(PrototypicalClassifier, "fit", spy)
    meta = PrototypicalClassifier(make_net(1), random_state=0)
    tasks = blobs()
    report = RepairedLearner(meta, random_state=0).fit(tasks).repair_report_
    assert not {tasks[i].name for i in report.held_out} & set(seen)


def test_it_is_a_meta_learner(classifier, tmp_path):
    tasks, new = blobs(), blobs(5, 1)
    repaired = repair(classifier, max_loss=0.0).fit(tasks)
    again = pickle.loads(pickle.dumps(repaired))
    assert same(again, repaired)
    assert str(again.repair_report_) == str(repaired.repair_report_)
    save(repaired, tmp_path / "repaired.safetensors")
    loaded = load(tmp_path / "repaired.safetensors")
    assert loaded.repaired_ == repaired.repaired_
    assert str(loaded.repair_report_) == str(repaired.repair_report_)
    assert loaded.score(new) == repaired.score(new)
    assert task_scorer("roc_auc")(repaired, new) <= 1
    assert evaluate(repaired, new).scores.shape == (5,)
    assert repaired.predict_proba(new)[0].shape[1] == 2


def test_in_a_pipeline_and_a_search():
    meta = PrototypicalClassifier(make_net(1), random_state=0)
    repaired = RepairedLearner(meta, max_epochs=1, random_state=0)
    scale = TaskTransformer(StandardScaler())
    tasks = blobs(60)
    pipe = Pipeline([("scale", scale), ("repair", repaired)])
    grid = {"repair__alpha": [0.1, 0.2], "repair__meta_learner__net__lr": [0.01]}
    search = GridSearchCV(pipe, grid, cv=2, scoring=task_scorer("accuracy"))
    search.set_params(estimator__repair__validation=0.4).fit(tasks)
    task = tasks[0]
    few_shot = adapt(search, task.X_support, task.y_support)
    assert few_shot.predict(task.X_query).shape == task.y_query.shape


def test_episodes_of_a_sampler():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(12), 8)
    X = rng.normal(size=(12, 3))[y] + 0.3 * rng.normal(size=(96, 3))
    episodes = EpisodeSampler(
        X, y, n_way=3, n_shot=1, n_query=2, n_episodes=40, random_state=0
    )
    meta = PrototypicalClassifier(make_net(0), random_state=0)
    repaired = RepairedLearner(meta, max_epochs=2, max_loss=0.0, random_state=0)
    report = repaired.fit(episodes).repair_report_
    assert len(report.held_out) == 10 and report.names[0].startswith("episode ")
    with pytest.warns(UserWarning, match="drawn from the table"):
        repaired.score(episodes)


def test_compressed_learners(classifier):
    tasks = blobs()
    pruned = PrunedLearner(FrozenEstimator(classifier), 0.5, max_epochs=0).fit(tasks)
    repaired = repair(pruned, max_loss=0.0).fit(tasks)
    weight, mask = (repaired.learner_.module.layers[0].weight,
                    pruned.learner_.module.layers[0].mask)  # fmt: skip
    assert (weight[~mask] == 0).all()
    student = DistilledLearner(FrozenEstimator(classifier), make_net(1))
    assert RepairedLearner(student, max_epochs=1).fit(tasks).score(tasks) > 0


# A plain network as the start.


@pytest.mark.parametrize("as_net", [False, True])
def test_start_is_where_it_starts(as_net):
    network = MLP(1, 1, (8,))
    if as_net:
        network = NeuralNetRegressor(network, max_epochs=0).initialize()
    before = copy.deepcopy(network)
    net = make_net(3, module__activation=nn.Tanh, lr=0.02)
    meta = MAMLRegressor(net, random_state=0)
    tasks = sinusoids(60)
    repaired = RepairedLearner(meta, start=network, max_loss=np.inf).fit(tasks)
    plain = network.module_ if as_net else network
    found = dict(repaired.learner_.module.named_parameters())
    assert not repaired.repaired_ and len(repaired.history_) == 0
    for name, value in plain.named_parameters():
        assert torch.equal(value, found[name]) and value is not found[name]
    assert repaired.net_.max_epochs == 3 and repaired.net_.lr == 0.02
    repaired.set_params(max_loss=0.0, max_epochs=2, random_state=0).fit(tasks)
    was = before.module_ if as_net else before
    for value, old in zip(plain.parameters(), was.parameters(), strict=True):
        assert torch.equal(value, old) and value.grad is None
    assert plain.training == was.training


def test_start_speaks_in_units_of_y():
    """A network that knows the tasks: y = 100 + 50 x, whatever the support set."""
    rng = np.random.default_rng(0)
    tasks = [(X, 100 + 50 * X[:, 0]) for X in rng.normal(size=(40, 8, 1))]
    network = nn.Sequential(nn.Linear(1, 1))
    with torch.no_grad():
        network[0].weight.fill_(50.0)
        network[0].bias.fill_(100.0)
    repaired = RepairedLearner(
        MAMLRegressor(inner_lr=0.01, support_size=4, random_state=0), start=network
    ).fit(tasks)
    assert repaired.score(tasks) > 1 - 1e-6
    assert repaired.schema_.target_scale == 1 and repaired.schema_.target_mean == 0
    assert not repaired.repaired_


def test_start_gets_better():
    tasks = [shifted(task, 0) for task in blobs(80)]
    meta = MAMLClassifier(TaskNet(lr=0.01), inner_lr=0.1, random_state=0)
    repaired = RepairedLearner(
        meta, start=MLP(3, 2, (8,)), max_loss=0.0, max_epochs=8, random_state=0
    ).fit(tasks)
    assert repaired.repaired_ and repaired.score(tasks) > 0.6
    assert pickle.loads(pickle.dumps(repaired)).repaired_


# What is wrong.


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.0},
        {"alpha": 1.5},
        {"tail": -0.1},
        {"tail": 1.1},
        {"validation": 0.0},
        {"validation": 1.0},
        {"max_epochs": 0},
        {"lr": 0.0},
        {"max_loss": "high"},
        {"random_state": "a"},
    ],
)
def test_parameters_out_of_range(options, classifier):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"The '{name}' parameter"):
        repair(classifier, **options).fit(blobs())


@pytest.mark.parametrize("n_tasks, validation", [(12, 0.5), (30, 0.25), (30, 0.8)])
def test_too_few_tasks(n_tasks, validation, classifier):
    with pytest.raises(ValueError, match=f"of {n_tasks} tasks holds out .* least 10"):
        repair(classifier, validation=validation).fit(blobs(n_tasks))


def test_tasks_that_disagree_are_found_before_training(monkeypatch):
    monkeypatch.setattr(TaskNet, "meta_fit", None)
    tasks = blobs()
    held_out = np.random.default_rng(0).permutation(44)
    for i in held_out[:3]:
        tasks[i] = blobs(1, n_features=4)[0]
    with pytest.raises(ValueError, match="features"):
        RepairedLearner(PrototypicalClassifier()).fit(tasks)


def test_failed_fit_changes_nothing(classifier):
    repaired = repair(classifier, max_loss=0.0).fit(blobs())
    before = vars(repaired).copy()
    with pytest.raises(ValueError, match="3 features"):
        repaired.fit(blobs(n_features=4))
    assert vars(repaired) == before


def test_before_fit(classifier):
    with pytest.raises(AttributeError, match="not fitted"):
        _ = repair(classifier).repair_report_


@pytest.mark.parametrize(
    "start, error, message",
    [
        (MLP, TypeError, "the class MLP. Pass a trained network"),
        (Ridge(), TypeError, "got Ridge"),
        (NeuralNetRegressor(MLP), TypeError, "NeuralNetRegressor. Fit it first"),
        (PrototypicalClassifier(), TypeError, "in FrozenEstimator"),
        (MLP(3, 5, (4,)), ValueError, r"into \(2, 5\).*needs \(2, 2\).*each class"),
        (MLP(7, 2, (4,)), ValueError, r"does not take rows of shape \(3,\)"),
        (nn.Flatten(0), ValueError, r"into \(6,\)"),
    ],
)
def test_start_that_does_not_suit(start, error, message):
    with pytest.raises(error, match=message):
        RepairedLearner(MAMLClassifier(), start=start).fit(blobs())


def test_start_of_another_number_of_targets():
    with pytest.raises(ValueError, match=r"into \(2, 3\).*needs \(2, 1\).*each target"):
        RepairedLearner(MAMLRegressor(), start=MLP(1, 3, (4,))).fit(sinusoids())


def test_start_and_a_learner_with_weights(classifier):
    start = MLP(3, 2, (4,))
    with pytest.raises(ValueError, match="FrozenEstimator has weights of its own"):
        repair(classifier, start=start).fit(blobs())
    pruned = PrunedLearner(MAMLClassifier())
    with pytest.raises(TypeError, match="got PrunedLearner"):
        RepairedLearner(pruned, start=start).fit(blobs())


def test_files_cannot_be_repaired(classifier):
    frozen = FrozenEstimator(classifier)
    small = QuantizedLearner(frozen)
    small.meta_learner_, small.onnx_model_ = classifier, b""
    for meta in (
        QuantizedLearner(frozen),
        FrozenEstimator(small),
        PrunedLearner(FrozenEstimator(small)),
    ):
        with pytest.raises(ValueError, match="a file, which cannot be trained on"):
            RepairedLearner(meta).fit(blobs())


@pytest.mark.parametrize("wrong", [Ridge(), Pipeline([("a", Ridge())]), None])
def test_no_meta_learner(wrong):
    with pytest.raises(TypeError, match="meta_learner must be a meta-learner"):
        RepairedLearner(wrong).fit(blobs())
