"""sklearn's model selection splits, subsamples and scores tasks."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    RandomizedSearchCV,
    cross_val_score,
    cross_validate,
    learning_curve,
    train_test_split,
    validation_curve,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from sk_meta import (
    ALPaCAClassifier,
    ALPaCARegressor,
    EpisodeSampler,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    Task,
    TaskNet,
    TaskTransformer,
    adapt,
    evaluate,
    task_scorer,
)
from sk_meta.tasks import make_blob_tasks, make_linear_tasks, make_sinusoids

CLASSIFIERS = [MAMLClassifier, PrototypicalClassifier, ALPaCAClassifier]
REGRESSORS = [MAMLRegressor, ALPaCARegressor]


def small(kind, **options):
    net = TaskNet(module__hidden=(8,), max_epochs=2, lr=0.01)
    return kind(net, random_state=0, **options)


@pytest.fixture(scope="module")
def blobs():
    """Ragged tasks; labels are strings."""
    tasks = make_blob_tasks(
        12, n_classes=3, n_support=(2, 4), n_features=4, labels="shared", random_state=0
    )
    return [Task(t.X, np.array(list("abc"))[t.y], t.support) for t in tasks]


@pytest.fixture(scope="module")
def lines():
    return make_linear_tasks(12, n_features=4, n_support=(4, 9), random_state=0)


@pytest.mark.parametrize("kind", CLASSIFIERS + REGRESSORS)
def test_cross_val_score_is_over_tasks(kind, blobs, lines):
    tasks = blobs if kind in CLASSIFIERS else lines
    splits = list(KFold(3).split(tasks))
    found = cross_val_score(small(kind), tasks, cv=3)
    for score, (train, test) in zip(found, splits, strict=True):
        meta = small(kind).fit([tasks[i] for i in train])
        assert score == meta.score([tasks[i] for i in test])


def test_cross_validate_with_several_metrics(blobs):
    scoring = {
        name: task_scorer(name) for name in ("balanced_accuracy", "neg_log_loss")
    }
    found = cross_validate(
        small(ALPaCAClassifier), blobs, cv=3, scoring=scoring, return_train_score=True
    )
    assert (found["test_balanced_accuracy"] <= 1).all()
    assert (found["train_neg_log_loss"] < 0).all()


def test_a_metric_over_rows_says_so(blobs):
    """The docs tell users to wrap it in task_scorer."""
    with pytest.raises((TypeError, ValueError)):
        cross_val_score(
            small(ALPaCAClassifier),
            blobs,
            cv=3,
            scoring="balanced_accuracy",
            error_score="raise",
        )


def test_train_test_split_keeps_tasks_whole(blobs):
    train, test = train_test_split(blobs, test_size=4, random_state=0)
    assert len(train) == 8 and all(isinstance(task, Task) for task in train + test)
    assert not set(map(id, train)) & set(map(id, test))
    assert 0 <= small(PrototypicalClassifier).fit(train).score(test) <= 1


def test_grid_search_over_a_pipeline_into_the_net(blobs):
    pipe = Pipeline(
        [("scale", TaskTransformer(StandardScaler())), ("maml", small(MAMLClassifier))]
    )
    grid = {
        "scale__transformer": [StandardScaler(), MinMaxScaler()],
        "scale__scope": ["pooled", "support"],
        "maml__inner_lr": [0.01, 0.5],
        "maml__net__module__hidden": [(4,), (8,)],
    }
    search = GridSearchCV(pipe, grid, scoring=task_scorer("balanced_accuracy"), cv=2)
    search.fit(blobs)
    assert len(search.cv_results_["params"]) == 16
    best = clone(pipe).set_params(**search.best_params_).fit(blobs)
    assert search.score(blobs) == task_scorer("balanced_accuracy")(best, blobs)
    few_shot = adapt(search, blobs[0].X_support, blobs[0].y_support)
    assert isinstance(few_shot, Pipeline)
    assert np.array_equal(few_shot.predict(blobs[0].X_query), best.predict(blobs)[0])
    assert np.array_equal(evaluate(search, blobs).scores, evaluate(best, blobs).scores)


def test_grid_search_finds_the_better_candidate():
    """A learning rate of nothing learns nothing."""
    tasks = make_sinusoids(30, random_state=0)
    net = TaskNet(module__hidden=(16,), max_epochs=10, lr=1e-2)
    search = GridSearchCV(
        ALPaCARegressor(net, random_state=0),
        {"net__lr": [1e-9, 1e-2]},
        scoring=task_scorer("neg_mean_squared_error"),
        cv=3,
    ).fit(tasks)
    assert search.best_params_ == {"net__lr": 1e-2}


def test_candidates_are_scored_on_the_same_drawn_rows(blobs):
    """Two candidates that differ in nothing get one score, support sets undrawn."""
    pairs = [(task.X, task.y) for task in blobs]
    meta = small(PrototypicalClassifier, support_size=2)
    pipe = Pipeline([("scale", TaskTransformer(StandardScaler())), ("meta", meta)])
    scale = [StandardScaler(), StandardScaler(copy=True)]
    search = GridSearchCV(pipe, {"scale__transformer": scale}, cv=3).fit(pairs)
    first, second = search.cv_results_["mean_test_score"]
    assert first == second


@pytest.mark.parametrize("kind", [PrototypicalClassifier, ALPaCARegressor])
def test_halving_search_uses_more_and_more_tasks(kind, blobs, lines):
    tasks = blobs if kind in CLASSIFIERS else lines
    search = HalvingGridSearchCV(
        small(kind),
        {"net__lr": [1e-3, 1e-2, 1e-1]},
        min_resources=6,
        factor=2,
        cv=2,
        random_state=0,
    ).fit(tasks)
    assert search.n_resources_ == [6, 12]
    assert np.isfinite(search.score(tasks))


def test_randomized_search(lines):
    search = RandomizedSearchCV(
        small(MAMLRegressor),
        {"inner_lr": [0.01, 0.1], "n_inner_steps": [1, 2]},
        n_iter=2,
        cv=2,
        random_state=0,
    ).fit(lines)
    assert set(search.best_params_) == {"inner_lr", "n_inner_steps"}


def test_learning_curve_over_the_number_of_tasks(lines):
    sizes, train, test = learning_curve(
        small(ALPaCARegressor), lines, None, train_sizes=[2, 5, 8], cv=3
    )
    assert sizes.tolist() == [2, 5, 8]
    assert train.shape == test.shape == (3, 3) and np.isfinite(test).all()
    meta = small(ALPaCARegressor).fit(lines[4:6])
    assert test[0, 0] == meta.score(lines[:4])


def test_validation_curve(lines):
    _, test = validation_curve(
        small(MAMLRegressor),
        lines,
        None,
        param_name="inner_lr",
        param_range=[0.01, 0.1],
    )
    assert test.shape == (2, 5) and np.isfinite(test).all()


@pytest.mark.filterwarnings("ignore:These episodes are drawn")
def test_episodes_are_split_by_position():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(8), 8)
    X = rng.normal(size=(8, 4))[y] * 5 + rng.normal(size=(64, 4))
    episodes = EpisodeSampler(X, y, n_way=3, n_shot=2, n_query=4, n_episodes=12)
    found = cross_val_score(small(PrototypicalClassifier), episodes, cv=3)
    assert found.shape == (3,) and (found > 0.8).all()
