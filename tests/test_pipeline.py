"""TaskTransformer, and Pipelines of it: fitted, transformed, adapted, cloned."""

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sk_meta import (
    ALPaCARegressor,
    EpisodeSampler,
    MAMLClassifier,
    PrototypicalClassifier,
    Task,
    TaskNet,
    TaskTransformer,
    adapt,
)
from sk_meta.tasks import make_blob_tasks, make_linear_tasks, tasks_from_file

NAMES = ["a", "b", "c", "d"]


def small_net(**options):
    return TaskNet(**{"module__hidden": (8,), "max_epochs": 3, "lr": 0.01, **options})


@pytest.fixture(scope="module")
def tasks():
    """Classification tasks with features of very different scales."""
    blobs = make_blob_tasks(
        8,
        n_classes=3,
        n_support=(3, 5),
        n_features=4,
        labels="shared",
        separation=8.0,
        random_state=0,
    )
    return [t.replace_X(t.X * [1, 10, 100, 1000] + 7) for t in blobs]


@pytest.fixture(scope="module")
def frames(tasks):
    return [t.replace_X(pd.DataFrame(t.X, columns=NAMES)) for t in tasks]


def make_pipe(*transformers, meta=None):
    meta = PrototypicalClassifier(small_net(), random_state=0) if meta is None else meta
    return make_pipeline(*map(TaskTransformer, transformers), meta)


def test_pooled_is_fitted_on_all_rows(tasks):
    transformer = TaskTransformer(StandardScaler()).fit(tasks)
    rows = np.concatenate([task.X for task in tasks])
    np.testing.assert_allclose(transformer.transformer_.mean_, rows.mean(axis=0))
    found = transformer.transform(tasks)
    for task, new in zip(tasks, found, strict=True):
        np.testing.assert_allclose(new.X, StandardScaler().fit(rows).transform(task.X))
        assert np.array_equal(new.y, task.y) and np.array_equal(
            new.support, task.support
        )
        assert new.name == task.name and new.labels == task.labels


def test_support_scope_is_fitted_on_each_support_set(tasks):
    """The same as scaling every task by its own support set beforehand."""
    by_hand = [
        t.replace_X(StandardScaler().fit(t.X_support).transform(t.X)) for t in tasks
    ]
    meta = MAMLClassifier(small_net(), inner_lr=0.1, random_state=0)
    scale = TaskTransformer(StandardScaler(), scope="support")
    pipe = Pipeline([("scale", scale), ("meta", meta)]).fit(tasks)
    plain = clone(meta).fit(by_hand)
    for one, other in zip(
        pipe.predict_proba(tasks), plain.predict_proba(by_hand), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    few_shot = adapt(pipe, tasks[0].X_support, tasks[0].y_support)
    np.testing.assert_allclose(few_shot[0].mean_, tasks[0].X_support.mean(axis=0))
    assert np.array_equal(few_shot.predict(tasks[0].X_query), pipe.predict(tasks)[0])


def test_pooled_then_support(tasks):
    pipe = make_pipeline(
        TaskTransformer(StandardScaler()),
        TaskTransformer(PCA(2), scope="support"),
        PrototypicalClassifier(small_net(), random_state=0),
    ).fit(tasks)
    assert pipe[-1].n_features_in_ == 2
    few_shot = adapt(pipe, tasks[0].X_support, tasks[0].y_support)
    found = few_shot.predict_proba(tasks[0].X_query)
    np.testing.assert_allclose(found, pipe.predict_proba(tasks)[0], atol=1e-5)


def test_pooled_after_support_is_refused(tasks):
    pipe = make_pipeline(
        TaskTransformer(StandardScaler(), scope="support"),
        TaskTransformer(StandardScaler()),
        PrototypicalClassifier(small_net()),
    )
    with pytest.raises(ValueError, match="Put the pooled one first"):
        pipe.fit(tasks)


def test_scaling_matters_and_is_carried_by_adapt(tasks):
    pipe = make_pipe(StandardScaler()).fit(tasks)
    assert pipe.score(tasks) > 0.8
    for task, expected in zip(tasks, pipe.predict(tasks), strict=True):
        few_shot = adapt(pipe, task.X_support, task.y_support)
        assert isinstance(few_shot[0], FrozenEstimator)
        assert np.array_equal(few_shot.predict(task.X_query), expected)


def test_adapting_leaves_the_pipeline_as_it_is(tasks):
    pipe = make_pipe(StandardScaler()).fit(tasks)
    before = joblib.hash(pipe[0].transformer_), list(pipe.predict(tasks))
    few_shot = adapt(pipe, tasks[1].X_support, tasks[1].y_support)
    few_shot.fit(tasks[2].X_support, tasks[2].y_support)
    assert joblib.hash(pipe[0].transformer_) == before[0]
    assert all(map(np.array_equal, pipe.predict(tasks), before[1]))


def test_an_adapted_pipeline_refits_as_it_was_adapted(tasks):
    """Frozen steps stay: fit on rows adapts, and nothing else."""
    pipe = make_pipe(StandardScaler()).fit(tasks)
    X, y = tasks[0].X_support, tasks[0].y_support
    few_shot = adapt(pipe, X, y)
    again = clone(few_shot).fit(X, y)
    found = again.predict_proba(tasks[0].X_query)
    assert np.array_equal(found, few_shot.predict_proba(tasks[0].X_query))


def test_column_transformer_on_frames(frames):
    rng = np.random.default_rng(0)
    mixed = []
    for task in frames:
        X = task.X.assign(colour=rng.choice(["red", "blue"], len(task)))
        X.loc[X.index[::5], "a"] = np.nan
        mixed.append(task.replace_X(X))
    columns = ColumnTransformer(
        [
            ("fill", make_pipeline(SimpleImputer(), StandardScaler()), NAMES),
            ("encode", OneHotEncoder(sparse_output=False), ["colour"]),
        ]
    )
    pipe = make_pipe(columns).fit(mixed)
    assert pipe[-1].n_features_in_ == 6
    few_shot = adapt(pipe, mixed[0].X_support, mixed[0].y_support)
    assert few_shot.feature_names_in_.tolist() == [*NAMES, "colour"]
    assert np.array_equal(few_shot.predict(mixed[0].X_query), pipe.predict(mixed)[0])


def test_a_supervised_transformer_sees_y_where_labels_are_shared(tasks):
    rng = np.random.default_rng(0)
    noisy = []
    for task in tasks:
        X = rng.normal(size=(len(task), 7))
        X[:, 6] += task.y
        noisy.append(task.replace_X(X))
    pipe = make_pipe(SelectKBest(k=1)).fit(noisy)
    assert pipe[0].transformer_.get_support().tolist() == [False] * 6 + [True]


@pytest.mark.parametrize("how", ["method", "config"])
def test_pandas_output_stays_inside(tasks, frames, how):
    pipe = make_pipe(StandardScaler())
    expected = clone(pipe).fit(frames).predict_proba(frames)
    if how == "method":
        pipe = clone(pipe).set_output(transform="pandas").fit(frames)
        tasks_out = pipe[0].transform(frames)
        found = pipe.predict_proba(frames)
        few_shot = adapt(pipe, frames[0].X_support, frames[0].y_support)
        rows = few_shot.predict_proba(frames[0].X_query)
    else:
        with sklearn.config_context(transform_output="pandas"):
            pipe = clone(pipe).fit(frames)
            tasks_out = pipe[0].transform(frames)
            found = pipe.predict_proba(frames)
            few_shot = adapt(pipe, frames[0].X_support, frames[0].y_support)
            rows = few_shot.predict_proba(frames[0].X_query)
    assert isinstance(tasks_out, list) and isinstance(tasks_out[0], Task)
    assert list(tasks_out[0].X.columns) == NAMES
    assert pipe[-1].feature_names_in_.tolist() == NAMES
    assert all(map(np.array_equal, found, expected))
    np.testing.assert_allclose(rows, expected[0], rtol=1e-4, atol=1e-5)


def test_set_output_of_an_adapted_pipeline(frames):
    pipe = make_pipe(StandardScaler()).fit(frames)
    few_shot = adapt(pipe, frames[0].X_support, frames[0].y_support)
    expected = few_shot.predict(frames[0].X_query)
    few_shot[:-1].set_output(transform="default")
    assert np.array_equal(few_shot.predict(frames[0].X_query), expected)


def test_set_params_reaches_every_level(tasks):
    pipe = make_pipe(StandardScaler())
    pipe.set_params(
        tasktransformer__transformer__with_mean=False,
        prototypicalclassifier__net__lr=0.25,
        prototypicalclassifier__net__module__hidden=(5,),
    )
    copy = clone(pipe).fit(tasks)
    assert copy[0].transformer_.with_mean is False
    assert copy[-1].net_.lr == 0.25
    assert copy[-1].learner_.module.layers[0].out_features == 5


def test_clone_pickle_and_joblib(tasks, tmp_path):
    pipe = make_pipe(StandardScaler()).fit(tasks)
    joblib.dump(pipe, tmp_path / "pipe.joblib")
    expected = pipe.predict_proba(tasks)
    for copy in (
        pickle.loads(pickle.dumps(pipe)),
        joblib.load(tmp_path / "pipe.joblib"),
        clone(pipe).fit(tasks),
    ):
        assert all(map(np.array_equal, copy.predict_proba(tasks), expected))


def test_scope_and_transformer_act_and_survive_clone(tasks):
    outputs = [
        make_pipe(PCA(2, random_state=0)),
        make_pipe(StandardScaler()),
        make_pipeline(
            TaskTransformer(StandardScaler(), scope="support"),
            PrototypicalClassifier(small_net(), random_state=0),
        ),
    ]
    found = [clone(pipe).fit(tasks).predict_proba(tasks)[0] for pipe in outputs]
    for i, one in enumerate(found):
        assert not any(np.array_equal(one, other) for other in found[:i])


def test_regression():
    lines = make_linear_tasks(8, n_features=4, n_support=(6, 9), random_state=0)
    scaled = [t.replace_X(t.X * 1000 + 500) for t in lines]
    meta = ALPaCARegressor(small_net(), random_state=0)
    pipe = make_pipe(StandardScaler(), meta=meta).fit(scaled)
    few_shot = adapt(pipe, scaled[0].X_support, scaled[0].y_support)
    mean, std = few_shot.predict(scaled[0].X_query, return_std=True)
    np.testing.assert_allclose(mean, pipe.predict(scaled)[0], rtol=1e-3, atol=1e-4)
    assert (std > 0).all()


@pytest.mark.filterwarnings("ignore:These episodes are drawn")
def test_episodes_are_transformed_once_and_stay_lazy():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(6), 8)
    X = (rng.normal(size=(6, 4))[y] * 5 + rng.normal(size=(48, 4))) * 100
    episodes = EpisodeSampler(X, y, n_way=3, n_shot=2, n_query=4, n_episodes=15)
    pipe = make_pipe(StandardScaler()).fit(episodes)
    moved = pipe[0].transform(episodes)
    assert isinstance(moved, EpisodeSampler) and len(moved) == 15
    np.testing.assert_allclose(moved.X, StandardScaler().fit_transform(X))
    assert np.array_equal(moved[3].rows, episodes[3].rows)
    assert pipe.score(episodes) > 0.8
    assert pipe.score([episodes[i] for i in range(15)]) == pipe.score(episodes)


def test_a_step_may_be_left_out(tasks):
    pipe = make_pipe(StandardScaler()).set_params(tasktransformer="passthrough")
    pipe.fit(tasks)
    few_shot = adapt(pipe, tasks[0].X_support, tasks[0].y_support)
    assert np.array_equal(few_shot.predict(tasks[0].X_query), pipe.predict(tasks)[0])


def test_weights_and_metadata_reach_the_meta_learner(tasks):
    pipe = make_pipe(StandardScaler()).fit(tasks)
    X, y = tasks[0].X_support, tasks[0].y_support
    weight = np.linspace(0.1, 3, len(y))
    weighted = adapt(pipe, X, y, sample_weight=weight, metadata={"age": 3.0})
    plain = adapt(pipe, X, y)
    found = [m.predict_proba(tasks[0].X_query) for m in (weighted, plain)]
    assert not np.allclose(*found)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_columns_of_files_keep_their_names(suffix, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import feather, parquet

    rng = np.random.default_rng(0)
    table = {"a": rng.normal(size=80), "b": 9 * rng.normal(size=80)}
    table |= {"y": table["a"] + table["b"], "id": np.repeat(np.arange(8), 10)}
    path = tmp_path / f"table.{suffix}"
    write = parquet.write_table if suffix == "parquet" else feather.write_feather
    write(pa.table(table), path)
    tasks = tasks_from_file(path, target="y", group="id", features=["a", "b"])
    pipe = Pipeline(
        [
            ("scale", TaskTransformer(StandardScaler())),
            ("meta", ALPaCARegressor(TaskNet(max_epochs=2), random_state=0)),
        ]
    ).fit(tasks)
    assert list(pipe[0].transformer_.feature_names_in_) == ["a", "b"]
    swapped = tasks_from_file(path, target="y", group="id", features=["b", "a"])
    with pytest.raises(ValueError, match="feature names"):
        pipe.score(swapped)
