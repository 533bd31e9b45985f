"""A transformer fitted on source rows, and a head on top of it."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    BayesianRidge,
    LogisticRegression,
    Ridge,
    RidgeClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC
from sklearn.utils import shuffle

from sk_meta import (
    CosineClassifier,
    EpisodeSampler,
    FineTuning,
    RowNet,
    Task,
    TaskTransformer,
    TorchEncoder,
    TransferClassifier,
    TransferRegressor,
    adapt,
    evaluate,
    save,
    task_scorer,
)
from sk_meta.onnx import to_onnx
from sk_meta.tasks import make_blob_tasks, make_linear_tasks

SMALL = RowNet(module__hidden=(6,), max_epochs=2)


class Recorder(TransformerMixin, BaseEstimator):
    """Keeps what it was fitted on."""

    def fit(self, X, y=None):
        self.X_, self.y_ = X, y
        return self

    def transform(self, X):
        return X


def blobs(n_tasks=7, labels="local", n_support=3):
    return make_blob_tasks(
        n_tasks, n_classes=3, labels=labels, n_support=n_support, random_state=0
    )


def table(n_classes=6, n_rows=12):
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(n_classes), n_rows)
    return rng.normal(size=(len(y), 4)) + y[:, None], y


def test_pca_and_svc_are_those_of_sklearn():
    *old, new = blobs()
    few_shot = (
        TransferClassifier(PCA(4), SVC()).fit(old).adapt(new.X_support, new.y_support)
    )
    pca = PCA(4).fit(np.concatenate([task.X for task in old]))
    svc = SVC(break_ties=True).fit(pca.transform(new.X_support), new.y_support)
    expected = svc.predict(pca.transform(new.X_query))
    assert np.array_equal(few_shot.predict(new.X_query), expected)


def test_pca_and_ridge_are_those_of_sklearn():
    *old, new = make_linear_tasks(6, random_state=0)
    meta = TransferRegressor(PCA(2), Ridge()).fit(old)
    pca = PCA(2).fit(np.concatenate([task.X for task in old]))
    ridge = Ridge().fit(pca.transform(new.X_support), new.y_support)
    expected = ridge.predict(pca.transform(new.X_query))
    np.testing.assert_allclose(meta.predict([new])[0], expected)


@pytest.mark.parametrize(
    "head",
    [SVC(), LogisticRegression(), RidgeClassifier(), CosineClassifier(), FineTuning()],
)
def test_names_of_classes_and_order_of_rows_do_not_matter(head):
    *old, new = blobs()
    meta = TransferClassifier(TorchEncoder(SMALL), head, random_state=0).fit(old)
    X, y = new.X_support, new.y_support
    names = np.array(["z", "x", "y"])
    one, other = meta.adapt(X, y), meta.adapt(*shuffle(X, names[y], random_state=0))
    expected = one.predict_proba(new.X_query)
    found = other.predict_proba(new.X_query)[:, [2, 0, 1]]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_local_labels_tell_the_classes_of_tasks_apart():
    tasks = blobs(4)
    seen = TransferClassifier(Recorder()).fit(tasks).encoder_
    assert len(np.unique(seen.y_)) == 12
    first = seen.y_[: len(tasks[0])]
    assert np.array_equal(np.unique(first, return_inverse=True)[1], tasks[0].y)


def test_shared_labels_reach_the_encoder_by_value():
    names = np.array(["a", "b", "c"])
    tasks = [(task.X, names[task.y]) for task in blobs(4, "shared")]
    meta = TransferClassifier(Recorder()).fit(tasks)
    assert np.array_equal(meta.encoder_.y_, np.concatenate([y for _, y in tasks]))
    assert np.array_equal(meta.classes_, names)


@pytest.mark.parametrize("as_list", [False, True])
def test_rows_that_episodes_share_come_once(as_list):
    X, y = table()
    episodes = EpisodeSampler(X, y, n_way=4, n_shot=2, n_query=3, n_episodes=40)
    tasks = list(episodes) if as_list else episodes
    seen = TransferClassifier(Recorder()).fit(tasks).encoder_
    order = np.lexsort(seen.X_.T)
    assert np.array_equal(seen.X_[order], X[np.lexsort(X.T)])
    assert len(np.unique(np.stack([y, seen.y_]), axis=1).T) == 6  # one to one


def test_unlabelled_rows_are_left_out_and_weights_are_handed_on():
    X, y = table()
    labeled, weight = np.arange(len(y)) % 3 > 0, np.arange(len(y)) % 5 + 0.5
    tasks = [Task(X, y, labeled=labeled, sample_weight=weight)]
    meta = TransferClassifier(Recorder()).fit(tasks)
    assert np.array_equal(meta.encoder_.X_, X[labeled])
    weighted = TransferClassifier(StandardScaler()).fit(tasks).encoder_
    expected = np.average(X[labeled], axis=0, weights=weight[labeled])
    np.testing.assert_allclose(weighted.mean_, expected)


def test_adapting_and_predicting_leave_the_encoder():
    *old, new = blobs()
    for head in (None, FineTuning(max_steps=3)):
        meta = TransferClassifier(TorchEncoder(SMALL), head, random_state=0).fit(old)
        before = pickle.dumps(meta.encoder_)
        meta.adapt(new.X_support, new.y_support).predict(new.X_query)
        meta.score([new])
        assert pickle.dumps(meta.encoder_) == before


def test_a_frozen_encoder_is_used_as_it_is():
    *old, new = blobs()
    pca = PCA(2).fit(new.X)
    meta = TransferClassifier(FrozenEstimator(pca)).fit(old)
    expected = pca.transform(new.X)
    np.testing.assert_allclose(meta.embed(new.X), expected)


def test_default_and_passthrough():
    *old, new = blobs()
    scaled = TransferClassifier().fit(old).encoder_
    np.testing.assert_allclose(
        scaled.mean_, np.concatenate([task.X for task in old]).mean(axis=0)
    )
    meta = TransferClassifier("passthrough").fit(old)
    assert np.array_equal(meta.embed(new.X), new.X)


def test_weights_of_support_rows():
    *old, new = blobs()
    X, y, weight = new.X_support, new.y_support, np.arange(9.0) % 4 + 0.5
    found = TransferClassifier("passthrough", LogisticRegression()).fit(old)
    found = found.adapt(X, y, sample_weight=weight).predict_proba(new.X_query)
    by_hand = LogisticRegression().fit(X, y, weight)
    np.testing.assert_allclose(found, by_hand.predict_proba(new.X_query), atol=1e-5)
    neighbours = TransferClassifier(head=KNeighborsClassifier(1)).fit(old)
    neighbours.adapt(X, y, sample_weight=np.full(9, 2.0))
    neighbours.adapt(X, y, sample_weight=np.arange(9) > 0)
    with pytest.raises(ValueError, match="KNeighborsClassifier takes no sample_weight"):
        neighbours.adapt(X, y, sample_weight=weight)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_head_without_probabilities_gives_the_order_of_its_scores(n_classes):
    *old, new = blobs(labels="shared")
    X, y = (part[new.y_support < n_classes] for part in (new.X_support, new.y_support))
    meta = TransferClassifier("passthrough", RidgeClassifier()).fit(old)
    proba = meta.adapt(X, y).predict_proba(new.X_query)
    by_hand = RidgeClassifier().fit(X, y)
    scores = by_hand.decision_function(new.X_query)
    chosen = by_hand.predict(new.X_query)
    assert np.array_equal(proba.argmax(axis=1), chosen)
    if n_classes == 2:
        assert np.array_equal(proba[:, 1].argsort(), scores.argsort())


@pytest.mark.parametrize("head", [BayesianRidge(), GaussianProcessRegressor()])
def test_standard_deviations_of_a_head(head):
    *old, new = make_linear_tasks(6, noise=0.1, random_state=0)
    head.set_params(**({"optimizer": None} if hasattr(head, "optimizer") else {}))
    meta = TransferRegressor("passthrough", head).fit(old)
    few_shot = meta.adapt(new.X_support, new.y_support)
    found = few_shot.predict(new.X_query, return_std=True)
    by_hand = head.fit(new.X_support, new.y_support)
    expected = by_hand.predict(new.X_query, return_std=True)
    np.testing.assert_allclose(found, expected)
    assert meta.predict([new], return_std=True)[1][0].shape == new.y_query.shape


def test_no_standard_deviation_and_several_targets():
    rng = np.random.default_rng(0)
    tasks = [(X := rng.normal(size=(9, 3)), X @ rng.normal(size=(3, 2)))] * 4
    meta = TransferRegressor(TorchEncoder(SMALL), support_size=6).fit(tasks)
    assert meta.predict(tasks)[0].shape == (3, 2)
    with pytest.raises(ValueError, match="no standard deviation"):
        meta.predict(tasks, return_std=True)


def test_a_single_row_of_a_regression_task():
    *old, new = make_linear_tasks(4, random_state=0)
    few_shot = TransferRegressor().fit(old).adapt(new.X[:1], new.y[:1])
    np.testing.assert_allclose(few_shot.predict(new.X[:1]), new.y[:1])


def images(n_tasks=3):
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 6)
    return [
        Task(
            rng.normal(size=(12, 1, 8, 8)) + y[:, None, None, None], y, np.arange(4) * 3
        )
        for _ in range(n_tasks)
    ]


def test_images_are_flat_for_sklearn_and_whole_for_a_network():
    tasks = images()
    flat = TransferClassifier(PCA(3)).fit(tasks)
    assert flat.encoder_.n_features_in_ == 64
    network = TorchEncoder(RowNet(module__n_filters=4, max_epochs=1))
    whole = TransferClassifier(network, FineTuning(max_steps=1)).fit(tasks)
    assert "Conv" in type(whole.encoder_.net_.module_.network).__name__
    for meta in (flat, whole):
        few_shot = meta.adapt(tasks[0].X_support, tasks[0].y_support)
        X = tasks[0].X_query
        assert np.array_equal(few_shot.predict(X), few_shot.predict(X.reshape(-1, 64)))
    both = TransferClassifier(make_pipeline(network, PCA(2))).fit(tasks)
    assert both.embed(tasks[0].X).shape == (12, 2)
    after = TransferClassifier(make_pipeline(PCA(5), TorchEncoder(SMALL))).fit(tasks)
    assert after.embed(tasks[0].X).shape == (12, 6)


def frames():
    rng, tasks = np.random.default_rng(0), []
    for _ in range(4):
        kind, size = rng.choice(["oak", "elm", "fir"], 20), rng.normal(size=20)
        size[::7] = np.nan
        y = np.where(kind == "oak", "broad", "narrow")
        X = pd.DataFrame({"kind": pd.Categorical(kind), "size": size})
        tasks.append(Task(X, y))
    return tasks


def test_frames_with_categories_and_gaps():
    *old, new = frames()
    encoder = make_column_transformer(
        (OneHotEncoder(), ["kind"]), (SimpleImputer(), ["size"]), sparse_threshold=1.0
    )
    meta = TransferClassifier(encoder, support_size=3, random_state=0).fit(old)
    assert list(meta.feature_names_in_) == ["kind", "size"]
    few_shot = meta.adapt(new.X[:10], new.y[:10])
    assert few_shot.score(new.X[10:], new.y[10:]) > 0.7
    assert meta.score([new]) > 0.7
    with pytest.raises(ValueError, match="another order"):
        meta.adapt(new.X[["size", "kind"]], new.y)


def test_arrays_and_frames_may_meet():
    *old, new = blobs()
    names = [f"x{i}" for i in range(10)]
    framed = [task.replace_X(pd.DataFrame(task.X, columns=names)) for task in old]
    frame = pd.DataFrame(new.X_support, columns=names)
    outputs = [
        TransferClassifier(PCA(3)).fit(tasks).adapt(X, new.y_support).predict_proba(X)
        for tasks, X in ((framed, new.X_support), (old, frame), (old, new.X_support))
    ]
    np.testing.assert_allclose(outputs[0], outputs[2])
    np.testing.assert_allclose(outputs[1], outputs[2])


def test_grid_search_over_tasks():
    tasks = blobs(9)
    meta = TransferClassifier(PCA(), SVC(), random_state=0)
    grid = {"encoder__n_components": [1, 8], "head__C": [0.01, 1.0]}
    search = GridSearchCV(meta, grid, cv=3, scoring=task_scorer("accuracy"))
    search.fit(tasks)
    assert search.best_params_["encoder__n_components"] == 8
    assert adapt(search, tasks[0].X_support, tasks[0].y_support).score(
        tasks[0].X_query, tasks[0].y_query
    ) == pytest.approx(search.best_estimator_.score(tasks[:1]))


@pytest.mark.parametrize("scope", ["pooled", "support"])
def test_after_a_task_transformer(scope):
    *old, new = blobs()
    steps = [("scale", TaskTransformer(StandardScaler(), scope))]
    pipe = Pipeline([*steps, ("meta", TransferClassifier(PCA(4)))]).fit(old)
    few_shot = adapt(pipe, new.X_support, new.y_support)
    assert few_shot.score(new.X_query, new.y_query) == pytest.approx(pipe.score([new]))


def test_local_tasks_of_other_sizes_than_the_source_tasks():
    meta = TransferClassifier(PCA(3), random_state=0).fit(blobs())
    other = make_blob_tasks(1, n_classes=7, n_support=2, random_state=1)[0]
    assert meta.predict_proba([other])[0].shape[1] == 7


def test_files_say_what_they_cannot_hold(tmp_path):
    *old, new = blobs()
    meta = TransferClassifier(PCA(3)).fit(old)
    few_shot = meta.adapt(new.X_support, new.y_support)
    for model in (meta, few_shot):
        with pytest.raises(TypeError, match="cannot be written as one ONNX graph"):
            to_onnx(model, tmp_path / "model.onnx")
        with pytest.raises(TypeError, match=r"cannot be saved.*joblib\.dump"):
            save(model, tmp_path / "model.safetensors")


BAD = [
    ({"encoder": SVC()}, TypeError, "encoder must be a transformer"),
    ({"encoder": PCA}, TypeError, r"PCA \(a class\)"),
    ({"encoder": "pca"}, TypeError, "got 'pca'"),
    ({"head": Ridge()}, TypeError, "must be a classifier"),
    ({"head": PCA()}, TypeError, "must be a classifier"),
    ({"head": LogisticRegression}, TypeError, "must be a classifier"),
    ({"head": FineTuning()}, TypeError, "must be a TorchEncoder"),
    ({"encoder": PCA(), "head": FineTuning()}, TypeError, "that ends in one; got PCA"),
    ({"head": SVC(decision_function_shape="ovo")}, ValueError, "Leave it at 'ovr'"),
    ({"support_size": 0}, ValueError, "support_size must be"),
    ({"random_state": "a"}, ValueError, "random_state"),
    ({"encoder": PCA(99)}, ValueError, "n_components=99"),
]


@pytest.mark.parametrize("params, kind, said", BAD)
def test_bad_parameters_leave_a_fitted_learner(params, kind, said):
    *old, new = blobs()
    meta = TransferClassifier(PCA(2), random_state=0).fit(old)
    before = meta.predict_proba([new])[0]
    with pytest.raises(kind, match=said):
        meta.set_params(**params).fit(old)
    assert np.array_equal(meta.predict_proba([new])[0], before)


def test_bad_parts_of_a_regressor():
    tasks = make_linear_tasks(4, random_state=0)
    with pytest.raises(TypeError, match="must be a regressor"):
        TransferRegressor(head=SVC()).fit(tasks)
    with pytest.raises(ValueError, match="head='cosine' is for classes"):
        TransferRegressor(TorchEncoder(SMALL, head="cosine")).fit(tasks)
    of_classes = TorchEncoder(SMALL).fit(tasks[0].X, np.arange(len(tasks[0])) % 2)
    meta = TransferRegressor(FrozenEstimator(of_classes), FineTuning()).fit(tasks)
    with pytest.raises(ValueError, match="fitted on classes"):
        meta.predict(tasks)


@pytest.mark.parametrize("part", ["encoder", "head"])
def test_parameters_of_a_part_that_is_not_there(part):
    with pytest.raises(ValueError, match=f"{part} is None"):
        TransferClassifier().set_params(**{f"{part}__C": 1.0})


def test_bad_support_sets():
    *old, new = blobs(labels="shared")
    meta = TransferClassifier(PCA(2)).fit(old)
    X, y = new.X_support, new.y_support
    for bad, said in (
        ((X, y + 7), "no training task had"),
        ((X[:, :4], y), "4 features"),
        ((X[:3], np.zeros(3, int)), "one class"),
        ((X[:0], y[:0]), "is empty"),
        ((np.full_like(X, np.nan), y), "NaN"),
        ((X, y[:-1]), "has 9 rows"),
    ):
        with pytest.raises(ValueError, match=said):
            meta.adapt(*bad)
    with pytest.raises(ValueError, match="4 features"):
        meta.adapt(X, y).predict(X[:, :4])


def test_a_head_that_cannot_be_fitted_names_task_and_support_set():
    *old, new = blobs(n_support=2)
    named = Task(new.X, new.y, new.support, labels="local", name="ward 7")
    head = GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=3)
    meta = TransferClassifier(head=head).fit(old)
    with pytest.raises(ValueError, match="support set of 6 rows of 3 classes") as found:
        meta.predict([named])
    assert "ward 7" in found.value.__notes__[0]


def test_gaps_that_nobody_fills_are_found_in_fit():
    tasks = [(X := np.random.default_rng(0).normal(size=(20, 3)), X[:, 0] > 0)] * 3
    tasks[0][0][3, 1] = np.nan
    with pytest.raises(ValueError, match="Impute them first"):
        TransferClassifier().fit(tasks)
    filled = make_pipeline(SimpleImputer(), StandardScaler())
    assert TransferClassifier(filled).fit(tasks).score(tasks) > 0.5


def test_episodes_of_the_same_table_warn_of_a_leak():
    X, y = table()
    episodes = EpisodeSampler(X, y, n_way=3, n_shot=2, n_query=3, n_episodes=4)
    meta = TransferClassifier(PCA(2)).fit(episodes)
    with pytest.warns(UserWarning, match="drawn from the table"):
        meta.score(episodes)


@pytest.mark.filterwarnings("ignore:The `probability` parameter:FutureWarning")
def test_labels_are_those_that_the_head_predicts():
    """Platt's probabilities of few rows may say the opposite of the SVC."""
    tasks, differ = blobs(12, n_support=15), 0
    meta = TransferClassifier("passthrough", SVC(probability=True, random_state=0))
    meta.fit(tasks)
    for task in tasks:
        svc = SVC(probability=True, random_state=0)
        svc.fit(task.X_support, task.y_support)
        few_shot = meta.adapt(task.X_support, task.y_support)
        labels = svc.predict(task.X_query)
        np.testing.assert_array_equal(few_shot.predict(task.X_query), labels)
        proba = few_shot.predict_proba(task.X_query)
        own = svc.predict_proba(task.X_query)
        np.testing.assert_allclose(np.sort(proba, axis=1), np.sort(own, axis=1))
        differ += (svc.classes_[own.argmax(axis=1)] != labels).sum()
    assert differ > 0


def test_fine_tuning_at_the_end_of_a_pipeline():
    *old, new = blobs()
    net = RowNet(module__hidden=(4,), max_epochs=1)
    scale = StandardScaler().fit(np.concatenate([task.X for task in old]))
    encoder = make_pipeline(FrozenEstimator(scale), TorchEncoder(net, random_state=0))
    head = FineTuning(max_steps=3, random_state=0)
    meta = TransferClassifier(encoder, head).fit(old)
    found = meta.predict_proba([new])[0]
    scaled = [task.replace_X(scale.transform(task.X)) for task in [*old, new]]
    alone = TransferClassifier(TorchEncoder(net, random_state=0), head)
    expected = alone.fit(scaled[:-1]).predict_proba(scaled[-1:])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_evaluate_tables_with_categories_and_gaps():
    rng = np.random.default_rng(0)
    tasks = []
    for _ in range(8):
        y = np.arange(20) % 2
        letters = np.array(["u", "v"])[y]
        X = pd.DataFrame({"a": rng.normal(size=20) + 2 * y, "b": letters})
        X.loc[3, "a"] = np.nan
        tasks.append(Task(X, y, support=range(8)))
    encoder = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), ["a"]),
        (OneHotEncoder(), ["b"]),
    )
    meta = TransferClassifier(encoder).fit(tasks)
    found = evaluate(meta, tasks, task_scorer("accuracy"))
    assert found.metric == "accuracy"
    assert (found.scores > 0.9).all()  # the category tells
    assert (found.baseline_scores > 0.9).all()
    arrays = [task.replace_X(task.X[["a"]].to_numpy()) for task in tasks]
    meta = TransferClassifier(SimpleImputer()).fit(arrays)
    assert np.isfinite(evaluate(meta, arrays).baseline_scores).all()
