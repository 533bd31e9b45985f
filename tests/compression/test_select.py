"""Selection under a budget: what is chosen, and that it is what was promised."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score

from sk_meta import (
    DistilledLearner,
    MAMLRegressor,
    PrototypicalClassifier,
    PrunedLearner,
    R2D2Classifier,
    SelectBest,
    TaskNet,
    best_within,
    load,
    save,
    size_scorer,
    task_scorer,
)
from sk_meta.onnx import to_onnx
from sk_meta.tasks import make_blob_tasks

*TASKS, NEW = make_blob_tasks(
    13, n_classes=2, n_features=3, labels="local", random_state=0
)


def proto(*hidden, **options):
    net = TaskNet(module__hidden=hidden, max_epochs=1)
    return PrototypicalClassifier(net, **options)


def pruned(amount, **options):
    options = {"how": "slim", "n_rounds": 1, "max_epochs": 0, **options}
    return PrunedLearner(None, amount, **options)


LEARNERS = [("big", proto(16, 16)), ("small", proto(4))]
COMPRESS = [("half", pruned(0.5)), ("quarter", pruned(0.75))]


def select(learners=LEARNERS, **options):
    options = {"cv": 2, "random_state": 0, "compress": COMPRESS, **options}
    return SelectBest(learners, **options)


def n_parameters(meta):
    return sum(parameter.numel() for parameter in meta.learner_.parameters())


@pytest.fixture
def cost(monkeypatch):
    """Sizes without writing files: 1 KB and 0.01 ms for each parameter."""

    def learner_cost(model, task=None):
        return float(n_parameters(model)), n_parameters(model) / 100

    monkeypatch.setattr("sk_meta.onnx.report.learner_cost", learner_cost)


@pytest.fixture
def scores(monkeypatch):
    """The learner with more parameters is the better one."""
    monkeypatch.setattr(
        "sk_meta.compression.select.task_scorer",
        lambda scoring: lambda model, tasks: n_parameters(model) / 1e3,
    )


def row(model, name):
    return next(result for result in model.results_ if result["name"] == name)


def chosen(model):
    (one,) = [result for result in model.results_ if result["chosen"]]
    return one


# The budget of a search.

COLUMN = st.lists(st.integers(0, 5), min_size=5, max_size=5)


@given(COLUMN, COLUMN, COLUMN, st.integers(1, 6), st.integers(1, 6))
def test_nothing_better_is_within_the_budget(scores, kilobytes, times, most, longest):
    results = {
        "params": [{"amount": i} for i in range(5)],
        "mean_test_score": np.where(np.array(scores) == 5, np.nan, scores),
        "mean_test_kilobytes": kilobytes,
        "mean_test_milliseconds": times,
    }
    fits = [
        i
        for i in range(5)
        if kilobytes[i] <= most and times[i] <= longest and scores[i] < 5
    ]
    refit = best_within(most, longest)
    if not fits:
        with pytest.raises(ValueError, match="No candidate"):
            refit(results)
        return
    best = refit(results)
    assert best in fits and scores[best] == max(scores[i] for i in fits)
    ties = [i for i in fits if scores[i] == scores[best]]
    assert kilobytes[best] == min(kilobytes[i] for i in ties)


def test_the_error_names_the_smallest():
    results = {
        "params": [{"amount": 0.0}, {"amount": 0.9}],
        "mean_test_score": [0.9, 0.8],
        "mean_test_kilobytes": [80.0, 30.0],
        "mean_test_milliseconds": [1.0, 2.0],
    }
    with pytest.raises(ValueError, match=r"10 KB: the smallest has 30 KB.*0\.9"):
        best_within(kilobytes=10)(results)
    with pytest.raises(ValueError, match=r"50 KB and 1.5 ms.*fastest takes 1 ms.*0\.0"):
        best_within(50, 1.5)(results)
    failed = results | {"mean_test_kilobytes": [np.nan, np.nan]}
    with pytest.raises(ValueError, match="all have failed"):
        best_within(10)(failed)


def test_a_grid_search_refits_the_best_that_fits(cost):
    meta = PrunedLearner(proto(16, 16), how="slim", n_rounds=1, max_epochs=0)
    grid = {"amount": [0.0, 0.5, 0.75]}
    refit = pickle.loads(pickle.dumps(best_within(kilobytes=200)))
    scoring = pickle.loads(pickle.dumps(size_scorer("accuracy")))
    search = GridSearchCV(
        meta.set_params(random_state=0), grid, scoring=scoring, refit=refit, cv=2
    ).fit(TASKS)
    results = search.cv_results_
    assert (np.diff(results["mean_test_kilobytes"]) < 0).all()
    assert n_parameters(search.best_estimator_) <= 200
    fits = results["mean_test_kilobytes"] <= 200
    assert 0 < fits.sum() < 3
    best = results["mean_test_score"][search.best_index_]
    assert best == results["mean_test_score"][fits].max()
    with pytest.raises(ValueError, match="No candidate is within 1 KB"):
        GridSearchCV(
            meta, grid, scoring=scoring, refit=best_within(kilobytes=1), cv=2
        ).fit(TASKS)


def test_the_scorer_scores_as_without_sizes(cost):
    meta = proto(4, random_state=0).fit(TASKS)
    found = size_scorer("balanced_accuracy")(meta, [NEW])
    assert found.keys() == {"score", "kilobytes", "milliseconds"}
    assert found["score"] == task_scorer("balanced_accuracy")(meta, [NEW])


def test_bad_budgets():
    with pytest.raises(ValueError, match="needs a limit"):
        best_within()
    for wrong in (0, -1, "50"):
        with pytest.raises(ValueError, match="'kilobytes' parameter of best_within"):
            best_within(kilobytes=wrong)
    plain = {"params": [{}], "mean_test_score": [1.0]}
    with pytest.raises(ValueError, match="no 'mean_test_kilobytes'.*size_scorer"):
        best_within(kilobytes=1)(plain)


# SelectBest.


def test_scores_are_cross_validated(cost):
    splits = KFold(3, shuffle=True, random_state=1)
    model = select(cv=splits, scoring="balanced_accuracy").fit(TASKS)
    seed = model.meta_learner_.random_state
    for name, learner in LEARNERS:
        expected = cross_val_score(
            clone(learner).set_params(random_state=seed),
            TASKS,
            cv=splits,
            scoring=task_scorer("balanced_accuracy"),
        )
        assert row(model, name)["score"] == pytest.approx(expected.mean())
    best = max(model.results_, key=lambda result: result["score"])
    assert best["chosen"] and best["kilobytes"] is None


def test_it_predicts_as_what_it_chose():
    model = select([("only", proto(4))]).fit(TASKS)
    seed = model.meta_learner_.random_state
    alone = proto(4, random_state=seed).fit(TASKS)
    one, other = (
        meta.adapt(NEW.X_support, NEW.y_support).predict_proba(NEW.X_query)
        for meta in (model, alone)
    )
    np.testing.assert_array_equal(one, other)
    again = select([("only", proto(4))]).fit(TASKS)
    assert again.results_ == model.results_


def test_the_best_that_fits_is_not_compressed(cost, scores):
    model = select(kilobytes=1e4).fit(TASKS)
    assert chosen(model)["name"] == "big" and len(model.results_) == 2
    assert isinstance(model.meta_learner_, PrototypicalClassifier)


@pytest.mark.parametrize("how", ["kilobytes", "milliseconds"])
def test_too_large_a_winner_is_compressed(cost, scores, how):
    limit = 0.6 * n_parameters(select().fit(TASKS))
    model = select(**{how: limit / (1 if how == "kilobytes" else 100)}).fit(TASKS)
    assert chosen(model)["name"] == "big, half"
    assert isinstance(model.meta_learner_, PrunedLearner)
    assert n_parameters(model) <= limit
    assert chosen(model)["kilobytes"] == n_parameters(model)


def test_what_is_too_large_is_not_scored(cost, scores):
    model = select(kilobytes=100).fit(TASKS)
    half, quarter = row(model, "big, half"), row(model, "big, quarter")
    assert half["kilobytes"] > 100 and np.isnan(half["score"])
    assert quarter["kilobytes"] <= 100 and not np.isnan(quarter["score"])
    assert chosen(model)["name"] == "big, quarter"


def test_a_smaller_learner_may_beat_compressions(cost, scores):
    compress = [("tenth", pruned(0.9))]
    learners = [("big", proto(16, 16)), ("middle", proto(8, 8))]
    model = select(learners, kilobytes=110, compress=compress).fit(TASKS)
    assert chosen(model)["name"] == "middle" and n_parameters(model) <= 110


def test_the_next_best_is_compressed_where_nothing_else_fits(cost, scores):
    learners = [("big", proto(32, 32)), ("middle", proto(8, 8))]
    model = select(learners, kilobytes=60, compress=COMPRESS[:1]).fit(TASKS)
    assert chosen(model)["name"] == "middle, half" and n_parameters(model) <= 60


def test_nothing_fits(cost, scores):
    model = select([("big", proto(16, 16)), ("middle", proto(8, 8))]).fit(TASKS)
    before = pickle.dumps(model.results_)
    model.set_params(kilobytes=2)
    with pytest.raises(ValueError, match="within 2 KB: the smallest has .*quarter"):
        model.fit(TASKS)
    assert pickle.dumps(model.results_) == before
    model.set_params(kilobytes=10, compress=[])
    with pytest.raises(ValueError, match=r"the smallest has 104 KB \(middle\)"):
        model.fit(TASKS)


def test_a_compression_that_does_not_suit_is_left_out(cost, scores):
    flat = [("flat", proto(4)), ("flatter", proto(3))]  # no hidden layer to slim
    with pytest.warns(FitFailedWarning, match="'flat, half' is left out.*MLP has no"):
        model = select(flat, kilobytes=12, compress=COMPRESS[:1]).fit(TASKS)
    assert chosen(model)["name"] == "flatter"
    assert np.isnan(row(model, "flat, half")["kilobytes"])


def test_distilling_is_a_compression(cost, scores):
    student = DistilledLearner(None, TaskNet(module__hidden=(3,), max_epochs=1))
    compress = [("student", student)]
    model = select(LEARNERS[:1], kilobytes=20, compress=compress).fit(TASKS)
    assert chosen(model)["name"] == "big, student" and n_parameters(model) <= 20


def test_parameters_reach_the_inner_ones(cost):
    model = select().set_params(big__net__lr=0.5, half__amount=0.3, kilobytes=7)
    assert model.learners[0][1].net.lr == 0.5
    assert model.compress[0][1].amount == 0.3 and model.kilobytes == 7
    other = proto(5)
    model.set_params(small=other)
    assert dict(model.learners)["small"] is other
    copied = clone(model)
    assert copied.get_params()["big__net__lr"] == 0.5
    assert copied.learners[0][1] is not model.learners[0][1]
    with pytest.raises(ValueError, match="Invalid parameter 'huge'"):
        model.set_params(huge__net__lr=1.0)
    select().set_params(big__net__lr=LEARNERS[0][1].net.lr, half__amount=0.5)
    grid = {"big__net__lr": [1e-3, 1e-2], "scoring": ["accuracy"]}
    search = GridSearchCV(select(LEARNERS[:1]), grid, cv=2).fit(TASKS)
    assert len(search.cv_results_["mean_test_score"]) == 2


def test_defaults_and_files(cost, scores, tmp_path):
    learners = [("big", proto(16, 16))]
    model = select(learners, kilobytes=100, compress=None).fit(TASKS)
    assert chosen(model)["name"] == "big, slim 75 %"
    save(model, tmp_path / "model.skm")
    for copied in (pickle.loads(pickle.dumps(model)), load(tmp_path / "model.skm")):
        assert copied.score([NEW]) == model.score([NEW])
        assert chosen(copied) == chosen(model)


def test_the_file_is_within_the_budget():
    """With real files."""
    model = select([("big", proto(64, 64))], kilobytes=15, compress=COMPRESS[1:])
    model.fit(TASKS)
    big, found = model.results_
    size = len(to_onnx(model).SerializeToString()) / 1000
    assert size == found["kilobytes"] <= 15 < big["kilobytes"]
    assert found["chosen"] and found["milliseconds"] > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"learners": []}, ValueError, "empty list"),
        ({"learners": [proto(4)]}, TypeError, "pairs"),
        ({"learners": [("a", Ridge())]}, TypeError, "'a' must be a meta-learner"),
        ({"learners": [("a", proto(4)), ("a", proto(4))]}, ValueError, "not unique"),
        ({"learners": [("cv", proto(4))]}, ValueError, "conflict"),
        (
            {"learners": [("a", proto(4)), ("b", MAMLRegressor())]},
            TypeError,
            "one kind",
        ),
        ({"compress": [("a", R2D2Classifier())]}, TypeError, "compressed learner"),
        ({"compress": [("a", SelectBest([]))]}, TypeError, "compressed learner"),
        ({"kilobytes": 0}, ValueError, "'kilobytes'"),
        ({"milliseconds": "1"}, ValueError, "'milliseconds'"),
        ({"scoring": "no such metric"}, ValueError, "scoring"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        select(**options).fit(TASKS)


def test_frozen_learners_are_refused():
    fitted = proto(4, random_state=0).fit(TASKS)
    with pytest.raises(TypeError, match="'a' is frozen"):
        select([("a", FrozenEstimator(fitted))]).fit(TASKS)


def test_not_fitted():
    with pytest.raises(NotFittedError):
        select().adapt(NEW.X, NEW.y)
