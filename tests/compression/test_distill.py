"""Distillation: what the student learns from, and what is left of the teacher."""

import pickle

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from torch import nn

from sk_meta import (
    ALPaCARegressor,
    DistilledLearner,
    DKTRegressor,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    ReptileClassifier,
    SemiSupervisedPrototypicalClassifier,
    Task,
    TaskNet,
    adapt,
)
from sk_meta.onnx import to_onnx
from sk_meta.tasks import make_blob_tasks, make_sinusoids


def make_net(width=6, max_epochs=2, **options):
    return TaskNet(
        module__hidden=(width,),
        module__activation=nn.Tanh,
        max_epochs=max_epochs,
        **options,
    )


def blobs(n_tasks=10, n_classes=3, labels="local", seed=0, **options):
    return make_blob_tasks(
        n_tasks, n_classes=n_classes, labels=labels, random_state=seed, **options
    )


@pytest.fixture(scope="module")
def big():
    """A teacher of local classes."""
    return PrototypicalClassifier(make_net(32, 30), random_state=0).fit(blobs(30))


@pytest.fixture(scope="module")
def big_regressor():
    tasks = make_sinusoids(20, random_state=0)
    return ALPaCARegressor(make_net(32, 10), random_state=0).fit(tasks)


def distilled(teacher, net=None, **options):
    net = make_net() if net is None else net
    options = {"random_state": 0, **options}
    return DistilledLearner(FrozenEstimator(teacher), net, **options)


def weights(meta):
    return meta.learner_.state_dict()


def same(first, second):
    first, second = weights(first), weights(second)
    return all(torch.equal(value, second[name]) for name, value in first.items())


def with_labels_hidden(tasks, share=0.6, seed=0):
    """Some query rows of each task unlabelled; one of each task is known."""
    rng, found = np.random.default_rng(seed), []
    for task in tasks:
        labeled = task.support | (rng.random(len(task)) > share)
        labeled[np.flatnonzero(~task.support)[0]] = True
        found.append(
            Task(task.X, task.y, task.support, labels=task.labels, labeled=labeled)
        )
    return found


# What the student learns


@pytest.mark.parametrize("match", ["outputs", "features"])
def test_without_weight_for_the_teacher_it_is_plain_training(big, match):
    """Bit for bit, whatever rows are unlabelled."""
    for tasks in (blobs(), with_labels_hidden(blobs())):
        alone = PrototypicalClassifier(make_net(), random_state=0).fit(tasks)
        student = distilled(big, mix=0.0, match=match).fit(tasks)
        assert same(alone, student)
    assert not same(alone, distilled(big, match=match).fit(tasks))


def mean_divergence(big, small, tasks):
    """Of a learner's probabilities from the teacher's."""
    pairs = zip(big.predict_proba(tasks), small.predict_proba(tasks), strict=True)
    each = [(p * np.log((p + 1e-9) / (q + 1e-9))).sum(1).mean() for p, q in pairs]
    return np.mean(each)


@pytest.mark.parametrize("student", [None, MAMLClassifier(inner_lr=0.2)])
def test_a_student_is_closer_to_its_teacher_than_one_trained_alone(big, student):
    """On new tasks, where the old ones are few."""
    tasks, new = with_labels_hidden(blobs(5, seed=2)), blobs(20, seed=1)
    net = make_net(16, 30, lr=1e-2)
    plain = PrototypicalClassifier() if student is None else student
    for seed in (0, 1):
        alone = clone(plain).set_params(net=net, random_state=seed).fit(tasks)
        small = distilled(big, net, student=student, mix=1.0, temperature=1.0)
        small.set_params(random_state=seed).fit(tasks)
        assert type(small.meta_learner_) is type(plain)
        assert mean_divergence(big, small, new) < mean_divergence(big, alone, new)


@pytest.mark.parametrize("student", [None, MAMLRegressor(), DKTRegressor()])
def test_regressors_come_closer_to_their_teacher(big_regressor, student):
    tasks = make_sinusoids(20, random_state=0)
    net = make_net(8, 10)

    def distance(small):
        pairs = zip(*(m.predict(tasks) for m in (big_regressor, small)), strict=True)
        return np.mean([np.mean((a - b) ** 2) for a, b in pairs])

    small = distilled(big_regressor, net, student=student, mix=1.0)
    untrained = clone(small).set_params(net__max_epochs=0)
    assert distance(small.fit(tasks)) < distance(untrained.fit(tasks))


def test_embeddings_come_closer_to_the_teachers(big):
    """To the nearest linear map of them, on new tasks."""
    tasks = blobs(30)
    rows = torch.from_numpy(np.concatenate([t.X for t in blobs(9, seed=1)])).float()

    def rest(small):
        with torch.no_grad():
            Z, target = (m.learner_.embed(rows).numpy() for m in (small, big))
        Z = np.column_stack([Z, np.ones(len(Z))])
        return np.linalg.lstsq(Z, target, rcond=None)[1].sum()

    small = distilled(big, make_net(3, 15, lr=1e-2), match="features", mix=1.0)
    untrained = clone(small).set_params(net__max_epochs=0)
    assert rest(small.fit(tasks)) < rest(untrained.fit(tasks))


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("regression", [False, True])
def test_unlabelled_query_rows_teach(big, big_regressor, regression, given):
    """By their features alone, in support sets that are drawn too."""
    tasks = make_sinusoids(8, random_state=0) if regression else blobs(8)
    partly = with_labels_hidden(tasks)
    if not given:
        partly = [Task(t.X, t.y, labels=t.labels, labeled=t.labeled) for t in partly]
    swapped = []
    for task in partly:
        y = task.y.copy()
        y[~task.labeled] = task.y[task.labeled][0]
        swapped.append(
            Task(task.X, y, task.support, labels=task.labels, labeled=task.labeled)
        )
    small = distilled(big_regressor if regression else big, mix=0.5)
    expected = clone(small).fit(partly)
    assert same(clone(small).fit(swapped), expected)
    kept = [
        Task(
            *(part[t.labeled] for part in (t.X, t.y)),
            labels=t.labels,
            support=None if t.support is None else t.support[t.labeled],
        )
        for t in partly
    ]
    assert not same(clone(small).fit(kept), expected)
    assert np.isfinite(expected.history_[-1]["train_loss"])


@pytest.mark.parametrize("regression", [False, True])
def test_unlabelled_rows_are_drawn_into_query_sets_alone(regression, make_dataset):
    tasks = make_sinusoids(4, random_state=0) if regression else blobs(4)
    tasks = [
        Task(t.X, t.y, labels=t.labels, labeled=t.labeled)
        for t in with_labels_hidden(tasks)
    ]
    data = make_dataset(tasks, not regression, scored=False)
    for rng in (np.random.default_rng(0), None):
        for group in data.batch(range(4), rng):
            for row, position in enumerate(group.positions):
                y, labeled = group.query.y[row], tasks[position].labeled
                unknown = y.isnan().any(-1) if regression else y < 0
                assert unknown.sum() == (~labeled).sum() > 0
                _, support, query = group.draws[row]
                assert labeled[support].all()
                assert np.array_equal(labeled[query], ~unknown.numpy())
                assert len(support) + len(query) == len(labeled)


def test_no_query_row_needs_a_label(big):
    hidden = [
        Task(t.X, t.y, t.support, labels=t.labels, labeled=t.support) for t in blobs(8)
    ]
    labeled = distilled(big, mix=1.0).fit(blobs(8))
    assert same(distilled(big, mix=1.0).fit(hidden), labeled)
    with pytest.raises(ValueError, match="no labelled query row"):
        distilled(big, mix=0.0).fit(hidden)


@pytest.mark.parametrize(
    "change",
    [{"mix": 0.5}, {"temperature": 5.0}, {"match": "features"}, {"random_state": 1}],
    ids=str,
)
def test_every_parameter_acts(big, change):
    tasks = blobs(8)
    first = distilled(big)
    second = clone(first).set_params(**change)
    expected = clone(second).fit(tasks)
    assert same(clone(second).fit(tasks), expected)
    assert not same(first.fit(tasks), expected)


def test_without_a_random_state_the_students_own_is_used(big):
    student = PrototypicalClassifier(make_net(), random_state=3)
    small = DistilledLearner(FrozenEstimator(big), student=student).fit(blobs(8))
    assert same(small, distilled(big, random_state=3).fit(blobs(8)))


@pytest.mark.parametrize("weighted", [False, True])
def test_one_teacher_twice_is_one_teacher(big, weighted):
    tasks = blobs(8)
    if weighted:
        for task in tasks:
            task.sample_weight = np.linspace(0.5, 2.0, len(task))
    once = distilled(big, make_net(optimizer=torch.optim.SGD))
    twice = clone(once).set_params(teacher=[FrozenEstimator(big)] * 2)
    twice = weights(twice.fit(tasks))
    for name, value in weights(once.fit(tasks)).items():
        torch.testing.assert_close(twice[name], value)


def test_embeddings_of_several_teachers_are_matched(big):
    """Side by side, of any length and method."""
    tasks = blobs(8)
    other = PrototypicalClassifier(make_net(5), random_state=0).fit(tasks)
    both = distilled(big, match="features")
    first = clone(both).fit(tasks)
    both.set_params(teacher=[FrozenEstimator(big), FrozenEstimator(other)]).fit(tasks)
    assert not same(first, both)


# What is left afterwards


@pytest.mark.parametrize("match", ["outputs", "features"])
def test_what_is_left_is_an_ordinary_meta_learner(big, match):
    *old, new = blobs(8)
    alone = PrototypicalClassifier(make_net(), random_state=0).fit(old)
    small = distilled(big, match=match).fit(old)
    meta = small.meta_learner_
    assert type(meta.learner_) is type(alone.learner_)
    assert vars(meta.learner_).keys() == vars(alone.learner_).keys()
    assert vars(meta).keys() == vars(alone).keys()
    assert weights(meta).keys() == weights(alone).keys()
    held = [p for group in meta.net_.optimizer_.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in meta.learner_.parameters()]
    assert len(pickle.dumps(meta)) < 1.2 * len(pickle.dumps(alone))
    again = pickle.loads(pickle.dumps(small))
    np.testing.assert_array_equal(
        again.predict_proba([new])[0], small.predict_proba([new])[0]
    )
    before = {name: value.clone() for name, value in weights(meta).items()}
    meta.partial_fit(old)
    assert any(not torch.equal(v, weights(meta)[k]) for k, v in before.items())


def test_what_adapt_returns_exports(big):
    *old, new = blobs(8)
    model = adapt(distilled(big).fit(old), new.X_support, new.y_support)
    X = new.X_query.astype(np.float32)
    session = onnxruntime.InferenceSession(to_onnx(model, X=X).SerializeToString())
    found = session.run(None, {"X": X})[1]
    np.testing.assert_allclose(found, model.predict_proba(X), atol=2e-5)


def test_the_teacher_is_left_alone(big):
    before = pickle.dumps(big)
    way, training = big.learner_.way, big.learner_.training
    tasks = blobs(8)
    expected = big.predict_proba(tasks)
    distilled(big, match="features").fit(tasks)
    assert pickle.dumps(big) == before
    assert (big.learner_.way, big.learner_.training) == (way, training)
    for found, right in zip(big.predict_proba(tasks), expected, strict=True):
        np.testing.assert_array_equal(found, right)


def test_a_teacher_that_is_not_frozen_is_fitted_first(big):
    tasks = blobs(8)
    unfitted = PrototypicalClassifier(make_net(12), random_state=1)
    fitted = clone(unfitted).fit(tasks)
    small = DistilledLearner(unfitted, make_net(), random_state=0).fit(tasks)
    assert same(small, distilled(fitted).fit(tasks))
    assert not hasattr(unfitted, "net_")


def test_a_student_teaches_in_turn(big):
    tasks = blobs(8)
    middle = distilled(big).fit(tasks)
    small = DistilledLearner(FrozenEstimator(middle), make_net(2), random_state=0)
    assert small.fit(tasks).score(tasks) > 0
    assert type(small.meta_learner_) is PrototypicalClassifier
    assert same(small, distilled(middle.meta_learner_, make_net(2)).fit(tasks))


def test_searches_over_its_parameters(big):
    grid = {"mix": [0.0, 1.0], "net__module__hidden": [(2,), (4,)]}
    search = GridSearchCV(distilled(big), grid, cv=2, error_score="raise")
    search.fit(blobs(8))
    assert len(set(search.cv_results_["mean_test_score"])) > 1
    best = search.best_estimator_
    assert (
        best.net_.module_.module.layers[0].out_features
        == (search.best_params_["net__module__hidden"][0])
    )


def test_is_a_good_sklearn_citizen(big):
    small = distilled(big, student=MAMLClassifier())
    given = small.get_params(deep=False)
    assert vars(type(small)(**given)).keys() == given.keys()
    assert clone(small).get_params(deep=False).keys() == given.keys()
    small.set_params(net__lr=0.5, student__inner_lr=0.3)
    assert (small.net.lr, small.student.inner_lr) == (0.5, 0.3)
    with pytest.raises(NotFittedError):
        small.predict(blobs(2))
    assert hasattr(small, "predict_proba")
    assert not hasattr(DistilledLearner(MAMLRegressor()), "predict_proba")


# Bad input


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"temperature": 0.0}, ValueError, "'temperature' parameter"),
        ({"temperature": -1.0}, ValueError, "'temperature' parameter"),
        ({"mix": 1.5}, ValueError, "'mix' parameter"),
        ({"match": "logits"}, ValueError, "'match' parameter"),
        ({"net": nn.Linear(1, 1)}, ValueError, "'net' parameter"),
        ({"teacher": []}, ValueError, "empty list"),
        ({"teacher": TaskNet()}, TypeError, "must be a meta-learner.*got TaskNet"),
        ({"student": MAMLRegressor()}, TypeError, "cannot learn from a Prototypical"),
        ({"student": nn.Linear(1, 1)}, TypeError, "student must be a meta-learner"),
        ({"student": ReptileClassifier()}, TypeError, "does not predict query rows"),
        (
            {"student": MAMLClassifier(), "match": "features"},
            TypeError,
            "embed rows.*MAML does not",
        ),
        (
            {"student": SemiSupervisedPrototypicalClassifier(unlabeled=-1)},
            ValueError,
            "its teacher, PrototypicalClassifier, cannot",
        ),
        (
            {"teacher": FrozenEstimator(PrototypicalClassifier())},
            NotFittedError,
            "not fitted",
        ),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:No task has an unlabelled row")
def test_bad_parameters_change_nothing(big, change, error, match):
    small = distilled(big).fit(blobs(8))
    before = small.meta_learner_
    with pytest.raises(error, match=match):
        small.set_params(**change).fit(blobs(8))
    assert small.meta_learner_ is before


@pytest.mark.parametrize(
    "tasks, match",
    [
        (blobs(8, n_features=5), "5 features; the teacher was fitted on"),
        (blobs(8, labels="shared"), "shared labels; the teacher was .* local"),
    ],
    ids=["features", "labels"],
)
def test_tasks_that_the_teacher_does_not_know(big, tasks, match):
    small = distilled(big).fit(blobs(8))
    before = small.meta_learner_
    with pytest.raises(ValueError, match=match):
        small.fit(tasks)
    assert small.meta_learner_ is before


def test_labels_and_targets_that_the_teacher_does_not_know(big_regressor):
    tasks = blobs(8, 3, "shared")
    meta = MAMLClassifier(make_net(), random_state=0).fit(
        [Task(t.X[keep], t.y[keep]) for t in tasks for keep in [t.y != t.y.max()]]
    )
    with pytest.raises(ValueError, match="label 2, which the teacher does not know"):
        distilled(meta).fit(tasks)
    local = MAMLClassifier(make_net(), random_state=0).fit(blobs(8, 2))
    student = PrototypicalClassifier()
    with pytest.raises(ValueError, match="3 classes, the head has 2"):
        distilled(local, student=student).fit(blobs(8, 3))
    two = [
        Task(t.X, np.column_stack([t.y, t.y]), t.support)
        for t in make_sinusoids(8, random_state=0)
    ]
    with pytest.raises(ValueError, match="2 target.*fitted on 1"):
        distilled(big_regressor).fit(two)
