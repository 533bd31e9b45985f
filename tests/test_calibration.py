"""Calibration by held-out tasks: what it reaches, and what it leaves alone."""

import pickle
import warnings
from functools import partial

import numpy as np
import onnxruntime
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sk_meta import (
    ALPaCARegressor,
    CalibratedLearner,
    ConditionalNeuralProcessRegressor,
    EpisodeSampler,
    MAMLRegressor,
    PrototypicalClassifier,
    PrunedLearner,
    QuantizedLearner,
    Task,
    TaskNet,
    TaskTransformer,
    TransferClassifier,
    adapt,
    check_meta_estimator,
    load,
    save,
    split_classes,
)
from sk_meta.model_based.neural_process import ConditionalNeuralProcess
from sk_meta.onnx import OnnxMetaLearner, to_onnx
from sk_meta.tasks import make_blob_tasks, make_sinusoids
from tests.methods import CLASSIFIERS, REGRESSORS, REPRESENTATIVES

WITH_STD = [
    method
    for method in REGRESSORS
    if method.__name__.startswith(
        ("ALPaCA", "Attentive", "Conditional", "DKT", "Hyper", "InContext")
    )
]
every_method = pytest.mark.parametrize(
    "method",
    [
        pytest.param(
            method,
            marks=() if method in REPRESENTATIVES else pytest.mark.slow,
            id=method.__name__,
        )
        for method in CLASSIFIERS + WITH_STD
    ],
)


def make_net(width=6, max_epochs=2, **options):
    return TaskNet(
        module__hidden=(width,),
        module__activation=nn.Tanh,
        max_epochs=max_epochs,
        **options,
    )


def blobs(n_tasks=12, labels="local", seed=0, **options):
    return make_blob_tasks(
        n_tasks, n_classes=3, labels=labels, random_state=seed, **options
    )


class TooSure(ConditionalNeuralProcess):
    """Trained well; what it says of itself afterwards is a quarter of what it knows."""

    def predict(self, state, X):
        """See `Learner.predict`."""
        scores = self.apply_head(state, self.embed(X))
        return self.calibrated(scores._replace(variance=scores.variance / 16))


class Deaf(ConditionalNeuralProcess):
    """Takes no notice of a calibration."""

    def predict(self, state, X):
        """See `Learner.predict`."""
        return self.apply_head(state, self.embed(X))


class OwnRegressor(ConditionalNeuralProcessRegressor):
    """A regressor whose Learner is the class attribute."""

    own = TooSure

    def _learner_maker(self, schema):
        return partial(self.own, n_targets=schema.n_outputs, width=self.width)


class DeafRegressor(OwnRegressor):
    """With the other one."""

    own = Deaf


def too_sure(max_epochs=30):
    net = make_net(16, max_epochs, lr=3e-3)
    return OwnRegressor(net, width=32, random_state=0)


def prototypes(max_epochs=20):
    """Trained on classes that lie far apart, 15 rows of each: too sure by itself."""
    return PrototypicalClassifier(make_net(16, max_epochs, lr=1e-2), random_state=0)


def coverage(meta, tasks, level=0.9):
    """Mean over tasks of the share of query rows in the interval."""
    normal = stats.norm.ppf(0.5 + level / 2)
    means, stds = meta.predict(tasks, return_std=True)
    triples = zip(means, stds, tasks, strict=True)
    return np.mean(
        [np.mean(np.abs(m - t.y_query) <= normal * s) for m, s, t in triples]
    )


def log_loss(meta, tasks):
    """Mean over tasks; labels are 0, 1, ..."""
    pairs = zip(meta.predict_proba(tasks), tasks, strict=True)
    return np.mean([-np.log(p[np.arange(len(p)), t.y_query]).mean() for p, t in pairs])


@pytest.fixture(scope="module")
def sinusoids():
    """Tasks to learn from, and many new ones."""
    tasks = make_sinusoids(360, random_state=0)
    return tasks[:60], tasks[60:]


@pytest.fixture(scope="module")
def regressors(sinusoids):
    """Without calibration, and with."""
    plain = too_sure().fit(sinusoids[0])
    return plain, CalibratedLearner(too_sure(), cv=3).fit(sinusoids[0])


@pytest.fixture(scope="module")
def classifiers():
    plain = prototypes().fit(blobs(30))
    return plain, CalibratedLearner(prototypes(), cv=3).fit(blobs(30))


def test_intervals_cover_what_they_say(sinusoids, regressors):
    plain, calibrated = regressors
    assert coverage(plain, sinusoids[1]) < 0.5
    assert abs(coverage(calibrated, sinusoids[1]) - 0.9) < 0.06
    assert calibrated.coverage_ < 0.5
    assert calibrated.factor_ > 2


def test_level(sinusoids, regressors):
    """Of a frozen learner all tasks are held out, and those are covered exactly."""
    plain, _ = regressors
    for level in (0.5, 0.9, 0.99):
        calibrated = CalibratedLearner(FrozenEstimator(plain), level=level)
        calibrated.fit(sinusoids[1])
        assert abs(coverage(calibrated, sinusoids[1], level) - level) < 0.001
        assert calibrated.coverage_ == pytest.approx(
            coverage(plain, sinusoids[1], level)
        )


def test_every_task_counts_the_same(sinusoids, regressors):
    """Many rows of one task do not outvote the others; weights count within a task."""
    plain, tasks = regressors[0], sinusoids[1][:15]
    inside = [
        np.abs(mean - task.y_query) <= stats.norm.ppf(0.95) * std
        for mean, std, task in zip(
            *plain.predict(tasks, return_std=True), tasks, strict=True
        )
    ]
    chosen = next(i for i, each in enumerate(inside) if 0 < each.mean() < 1)
    odd, inside = tasks[chosen], inside[chosen]
    rest = [task for task in tasks if task is not odd]
    rows = np.flatnonzero(~odd.support)
    every = np.concatenate([np.arange(len(odd)), np.repeat(rows, 99)])
    support = np.arange(len(every)) < odd.support.sum()
    weights = np.where(odd.support, 1.0, 50.0), odd.support.astype(float)
    weights[1][rows] = inside
    usual, many, alike, only = (
        CalibratedLearner(FrozenEstimator(plain)).fit([task, *rest]).coverage_
        for task in (
            odd,
            Task(odd.X[every], odd.y[every], support=support),
            *(
                Task(odd.X, odd.y, support=odd.support, sample_weight=w)
                for w in weights
            ),
        )
    )
    assert usual == pytest.approx(many) == pytest.approx(alike)
    assert only == pytest.approx(usual + (1 - inside.mean()) / len(tasks))


def test_temperature_lowers_the_log_loss(classifiers):
    plain, calibrated = classifiers
    new = blobs(120, seed=1)
    assert log_loss(calibrated, new) < log_loss(plain, new)
    assert calibrated.factor_ > 1
    frozen = CalibratedLearner(FrozenEstimator(plain)).fit(new)
    assert frozen.log_loss_ == pytest.approx(log_loss(plain, new))
    least = log_loss(frozen, new)
    for factor in (0.98, 1.02):
        frozen.learner_.calibrate(factor * frozen.factor_)
        assert log_loss(frozen, new) > least


def test_extreme_logits():
    """Probabilities that are 0 as numbers still have a temperature."""
    tasks = blobs(20)
    far = [Task(30 * t.X, t.y, support=t.support, labels="local") for t in tasks]
    plain = PrototypicalClassifier(make_net(max_epochs=0), random_state=0).fit(tasks)
    plain.learner_.module = nn.Identity()
    with np.errstate(divide="ignore"):
        assert log_loss(plain, far) == np.inf
    calibrated = CalibratedLearner(FrozenEstimator(plain)).fit(far)
    assert calibrated.factor_ > 100
    assert log_loss(calibrated, far) < calibrated.log_loss_ < np.inf


@every_method
def test_every_method(method):
    """Means and labels keep their bits, a factor of 1 all of them; paths agree."""
    classifies = method in CLASSIFIERS
    old = blobs(9, "shared") if classifies else make_sinusoids(9, random_state=0)
    few = old[:3]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No task has an unlabelled row")
        plain = method(make_net(), random_state=0).fit(old)
        calibrated = CalibratedLearner(method(make_net(), random_state=0), cv=2)
        calibrated.fit(old)
    factor = calibrated.factor_
    assert factor > 0
    if classifies:
        before, after = plain.predict_proba(few), calibrated.predict_proba(few)
        pairs = zip(plain.predict(few), calibrated.predict(few), strict=True)
        assert all(np.array_equal(*pair) for pair in pairs)
        for p, q in zip(before, after, strict=True):
            soft = p ** (1 / factor)
            np.testing.assert_allclose(q, soft / soft.sum(1, keepdims=True), rtol=1e-5)
    else:
        (m, s), (n, r) = (x.predict(few, return_std=True) for x in (plain, calibrated))
        assert all(np.array_equal(*pair) for pair in zip(m, n, strict=True))
        np.testing.assert_allclose(np.stack(r), factor * np.stack(s), rtol=1e-6)
        after = r
    for task, expected in zip(few, after, strict=True):
        few_shot = calibrated.adapt(task.X_support, task.y_support)
        if classifies:
            found = few_shot.predict_proba(task.X_query)
        else:
            found = few_shot.predict(task.X_query, return_std=True)[1]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    calibrated.learner_.calibrate(1.0)
    same = calibrated.predict_proba if classifies else calibrated.predict
    wanted = plain.predict_proba if classifies else plain.predict
    options = {} if classifies else {"return_std": True}
    pairs = zip(
        np.ravel(same(few, **options)), np.ravel(wanted(few, **options)), strict=True
    )
    assert all(np.array_equal(*pair) for pair in pairs)


def test_support_sets_are_drawn_as_in_predict(regressors):
    """Tasks without support sets; rows of a task are those that predict scores."""
    plain, _ = regressors
    tasks = [Task(t.X, t.y) for t in make_sinusoids(20, random_state=5)]
    calibrated = CalibratedLearner(FrozenEstimator(plain), level=0.8).fit(tasks)
    normal, inside = stats.norm.ppf(0.9), []
    for found in calibrated.predict_tasks(tasks):
        error = np.abs(found.task.y[found.query] - found.values)
        inside.append(np.mean(error <= normal * found.std * (1 + 1e-6)))
    assert 0 <= np.mean(inside) - 0.8 < 0.02


def test_checks():
    meta = ALPaCARegressor(make_net(), random_state=0)
    check_meta_estimator(CalibratedLearner(meta, cv=2, random_state=0))
    meta = PrototypicalClassifier(make_net(), random_state=0)
    check_meta_estimator(CalibratedLearner(meta, cv=2, random_state=0))


def test_seed_of_the_learners():
    tasks = make_sinusoids(6, random_state=0)
    meta = CalibratedLearner(ALPaCARegressor(make_net()), cv=2, random_state=3)
    factors = [clone(meta).fit(tasks).factor_ for _ in range(2)]
    assert factors[0] == factors[1]
    assert clone(meta).set_params(random_state=4).fit(tasks).factor_ != factors[0]


def test_search_pipeline_and_pickle(sinusoids):
    old, new = sinusoids[0][:12], sinusoids[1][0]
    meta = CalibratedLearner(ALPaCARegressor(make_net(), random_state=0), cv=2)
    pipe = make_pipeline(TaskTransformer(StandardScaler()), meta)
    grid = {"calibratedlearner__meta_learner__net__lr": [1e-3, 1e-2]}
    search = GridSearchCV(pipe, grid, cv=2).fit(old)
    best = search.best_estimator_[-1]
    assert best.net_.lr == search.best_params_[next(iter(grid))]
    assert clone(meta).get_params().keys() == meta.get_params().keys()
    few_shot = adapt(search, new.X_support, new.y_support)
    _, expected = search.best_estimator_.predict([new], return_std=True)
    for model in (few_shot, pickle.loads(pickle.dumps(few_shot))):
        _, std = model.predict(new.X_query, return_std=True)
        np.testing.assert_allclose(std, expected[0], rtol=1e-5)
    again = pickle.loads(pickle.dumps(best))
    assert again.factor_ == best.factor_ == float(again.learner_.calibration)


def test_saved(tmp_path, sinusoids, regressors, classifiers):
    """The number is in the file; files without one are read as ever."""
    path = tmp_path / "model.safetensors"
    new = sinusoids[1][0]
    plain, calibrated = regressors
    few_shot = calibrated.adapt(new.X_support, new.y_support)
    own = [TooSure, OwnRegressor]
    for model, X in ((calibrated, [new]), (few_shot, new.X_query), (plain, [new])):
        save(model, path)
        same = load(path, modules=own)
        pairs = zip(
            model.predict(X, return_std=True),
            same.predict(X, return_std=True),
            strict=True,
        )
        assert all(np.array_equal(*map(np.stack, pair)) for pair in pairs)
    assert same.learner_.calibration is None
    save(classifiers[1], path)
    same, new = load(path), blobs(2, seed=3)
    assert same.factor_ == classifiers[1].factor_ == float(same.learner_.calibration)
    pairs = zip(same.predict_proba(new), classifiers[1].predict_proba(new), strict=True)
    assert all(np.array_equal(*pair) for pair in pairs)


def test_groups_of_tasks(sinusoids):
    """Folds may be any; here two tasks of a source stay together."""
    old = sinusoids[0][:12]
    splits = list(GroupKFold(3).split(old, groups=np.arange(12) // 2))
    given = CalibratedLearner(ALPaCARegressor(make_net(), random_state=0), cv=splits)
    other = clone(given).set_params(cv=3)
    assert given.fit(old).factor_ != other.fit(old).factor_


def test_onnx(sinusoids, regressors, classifiers):
    new = sinusoids[1][0]
    _, calibrated = regressors
    few_shot = calibrated.adapt(new.X_support, new.y_support)
    expected = few_shot.predict(new.X_query, return_std=True)
    file = to_onnx(few_shot, return_std=True).SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    device = OnnxMetaLearner(to_onnx(calibrated).SerializeToString())
    device = device.adapt(new.X_support, new.y_support)
    for found in (
        session.run(None, {"X": new.X_query.astype(np.float32)}),
        device.predict(new.X_query, return_std=True),
    ):
        for part, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(part.ravel(), wanted, rtol=1e-3, atol=1e-4)
    _, calibrated = classifiers
    new = blobs(1, seed=3)[0]
    device = OnnxMetaLearner(to_onnx(calibrated).SerializeToString())
    np.testing.assert_allclose(
        device.adapt(new.X_support, new.y_support).predict_proba(new.X_query),
        calibrated.predict_proba([new])[0],
        atol=1e-4,
    )


def test_within_and_around_compression(sinusoids, classifiers):
    """What is compressed may be calibrated, and a calibrated one quantised."""
    old = sinusoids[0][:12]
    meta = ALPaCARegressor(make_net(), random_state=0)
    pruned = CalibratedLearner(PrunedLearner(meta, max_epochs=1), cv=2).fit(old)
    assert pruned.factor_ == float(pruned.meta_learner_.learner_.calibration)
    plain, calibrated = classifiers
    new = blobs(5, seed=3)
    quantized = QuantizedLearner(FrozenEstimator(calibrated)).fit(new)
    pairs = zip(
        quantized.predict_proba(new), calibrated.predict_proba(new), strict=True
    )
    distance = np.mean([np.abs(p - q).max() for p, q in pairs])
    pairs = zip(quantized.predict_proba(new), plain.predict_proba(new), strict=True)
    assert distance < np.mean([np.abs(p - q).max() for p, q in pairs])


def test_calibrating_again_starts_from_nothing(sinusoids, regressors):
    plain, calibrated = regressors
    factors = [
        CalibratedLearner(FrozenEstimator(meta)).fit(sinusoids[1][:20]).factor_
        for meta in (plain, calibrated)
    ]
    assert factors[0] == factors[1]
    assert calibrated.factor_ == float(calibrated.learner_.calibration)


@pytest.mark.parametrize(
    ("meta", "error", "message"),
    [
        (MAMLRegressor(make_net()), TypeError, "Use a regressor that does"),
        (DeafRegressor(make_net()), TypeError, r"return self\.calibrated\(scores\)"),
        (TransferClassifier(), TypeError, "with a network of its own"),
        (
            QuantizedLearner(ALPaCARegressor(make_net())),
            ValueError,
            "Calibrate the learner first",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refuses_before_training(meta, error, message, monkeypatch):
    trained = []
    monkeypatch.setattr(TaskNet, "train_step", lambda *args: trained.append(args))
    calibrated = CalibratedLearner(meta, cv=2)
    with pytest.raises(error, match=message):
        calibrated.fit(make_sinusoids(6, random_state=0))
    assert not trained
    assert not hasattr(calibrated, "factor_")


def test_refuses_frozen_without_std():
    tasks = make_sinusoids(6, random_state=0)
    meta = MAMLRegressor(make_net(), random_state=0).fit(tasks)
    with pytest.raises(TypeError, match="MAMLRegressor gives no standard deviation"):
        CalibratedLearner(FrozenEstimator(meta)).fit(tasks)


def test_refuses_a_class_in_one_fold_alone():
    tasks = blobs(6, "shared")
    tasks[0] = Task(tasks[0].X, np.where(tasks[0].y == 2, 7, tasks[0].y))
    with pytest.raises(ValueError, match="fold 0 of cv"):
        CalibratedLearner(prototypes(), cv=2).fit(tasks)


@pytest.mark.parametrize("change", [{"cv": 1}, {"level": 1.0}, {"level": 0}, {"cv": 9}])
def test_bad_parameters(change, sinusoids, regressors):
    calibrated = clone(regressors[1]).set_params(**change)
    with pytest.raises(ValueError, match="cv|level|n_splits"):
        calibrated.fit(sinusoids[0][:6])


def test_a_failed_fit_changes_nothing(sinusoids, regressors):
    calibrated = pickle.loads(pickle.dumps(regressors[1]))
    before = vars(calibrated).copy()
    broken = [Task(t.X * np.nan, t.y) for t in sinusoids[0][:6]]
    with pytest.raises(ValueError, match="NaN"):
        calibrated.fit(broken)
    assert vars(calibrated) == before


def test_warns_of_episodes_of_one_table():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(12), 8)
    X = rng.normal(size=(96, 3)) + 3 * rng.normal(size=(12, 3))[y]
    first, second = split_classes(y, 0.5, random_state=0)
    old, new = (
        EpisodeSampler(
            X[rows], y[rows], n_way=3, n_shot=2, n_query=5, n_episodes=8, random_state=0
        )
        for rows in (first, second)
    )
    with pytest.warns(UserWarning, match="too sure of new ones"):
        CalibratedLearner(prototypes(1), cv=2).fit(old)
    meta = prototypes(1).fit(old)
    with pytest.warns(UserWarning, match="too sure of new ones"):
        CalibratedLearner(FrozenEstimator(meta)).fit(old)
    assert CalibratedLearner(FrozenEstimator(meta)).fit(new).factor_ > 0


def test_refuses_targets_without_error():
    tasks = [Task(task.X, 0 * task.y + 3.0) for task in make_sinusoids(8)]
    with pytest.raises(ValueError, match="without any error"):
        CalibratedLearner(ALPaCARegressor(make_net(), random_state=0), cv=2).fit(tasks)


def test_positions_that_are_ranges_and_positions_too_far(sinusoids):
    old, _ = sinusoids
    meta = ALPaCARegressor(make_net(), random_state=0)
    pairs = [(range(4), range(4, 8)), (range(4, 8), range(4))]
    as_arrays = [tuple(map(np.array, pair)) for pair in pairs]
    found = [CalibratedLearner(meta, cv=cv).fit(old[:8]) for cv in (pairs, as_arrays)]
    assert found[0].factor_ == found[1].factor_
    with pytest.raises(ValueError, match="position 7, but fit got 6 tasks"):
        CalibratedLearner(meta, cv=pairs).fit(old[:6])
