"""Learners out of files: as torch says, as sklearn wants, and errors for the rest."""

import copy
import io
import pickle

import numpy as np
import onnx
import pytest
from sklearn.base import clone
from sklearn.ensemble import BaggingClassifier, VotingClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_meta import FewShotClassifier, HypernetworkRegressor, Task, TaskNet
from sk_meta.onnx import OnnxFewShotClassifier, OnnxFewShotRegressor, OnnxMetaLearner
from sk_meta.onnx.description import MOST_STEPS
from tests.onnx.toy_learners import (
    DESCRIBED,
    LABELS,
    REGRESSOR,
    SHARED,
    TARGET_MEANS,
    by_column,
    frame,
    rows,
    toy,
    with_imputer,
    with_loop,
)


@pytest.mark.parametrize("present", [[0, 1, 2], [0, 2], [1]])
@pytest.mark.parametrize("classes", ["support", "meta"])
def test_shared_labels_as_torch_says(prototypes, from_prototypes, present, classes):
    X, y = rows(15)
    kept = np.isin(y, present)
    X_support, y_support = frame(X[kept]), LABELS[y[kept]]
    ours = prototypes.adapt(X_support, y_support)
    theirs = from_prototypes.adapt(X_support, y_support)
    for model in (ours, theirs):
        model.set_params(classes=classes).fit(X_support, y_support)
    assert theirs.classes_.tolist() == ours.classes_.tolist()
    expected, found = (m.predict_proba(frame(X)) for m in (ours, theirs))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert theirs.predict(frame(X)).tolist() == ours.predict(frame(X)).tolist()


@pytest.mark.parametrize("n_steps", [None, 0, 5])
@pytest.mark.parametrize("labels", [[10, 20, 30], ["c", "b", "a"], [True, False, True]])
def test_local_labels_and_steps_as_torch_says(maml, from_maml, labels, n_steps):
    X, y = rows(7)
    y = np.array(labels)[y]
    other = copy.deepcopy(maml)
    if n_steps is not None:
        other.learner_.n_adapt_steps = n_steps
    expected = other.adapt(X, y)
    found = from_maml.adapt(X, y, n_steps=n_steps)
    np.testing.assert_allclose(
        found.predict_proba(X), expected.predict_proba(X), atol=1e-5
    )
    assert found.classes_.tolist() == expected.classes_.tolist()


def test_steps_matter(from_maml):
    X, y = rows(6)
    found = [from_maml.adapt(X, y, n_steps=n).predict_proba(X) for n in (1, 2, None)]
    assert not np.allclose(found[0], found[1])
    np.testing.assert_array_equal(found[1], found[2])


def test_regressor_as_torch_says(alpaca, from_alpaca):
    X, _ = rows()
    y = np.random.default_rng(1).normal(size=(12, 2)) * 100 + 7
    ours, theirs = (m.adapt(X, y) for m in (alpaca, from_alpaca))
    expected, found = (m.predict(X, return_std=True) for m in (ours, theirs))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-3)  # of targets around 100
    assert theirs.score(X, y) == pytest.approx(ours.score(X, y), abs=1e-5)


def test_unlabelled_rows():
    """They have no class here, so they change nothing; as labels they would."""
    X, y = rows()
    X, y = np.r_[X, X + 3], np.r_[LABELS[y], np.full(12, "?")]
    learner = OnnxMetaLearner(toy(**SHARED, unlabeled="?"))
    model, expected = learner.adapt(X, y), learner.adapt(X[:12], y[:12])
    assert model.classes_.tolist() == LABELS.tolist()
    np.testing.assert_allclose(model.predict_proba(X), expected.predict_proba(X))
    with pytest.raises(ValueError, match=r"label .*\?"):
        OnnxMetaLearner(toy(**SHARED)).adapt(X, y)
    with pytest.raises(ValueError, match="no row with a known label"):
        learner.adapt(X[12:], y[12:])


def test_metadata():
    tasks = [
        Task(*rows(seed=s), metadata={"size": s, "year": 2 * s**2}) for s in range(5)
    ]
    meta = HypernetworkRegressor(
        TaskNet(max_epochs=1), use_metadata=True, support_size=6, random_state=0
    ).fit(tasks)
    names = {"n_metadata": 2, "metadata_names": ["size", "year"]}
    learner, (X, y) = OnnxMetaLearner(toy(DESCRIBED, **names)), rows()
    found, mixed, other = (
        learner.adapt(X, y, metadata=metadata).predict_proba(X)
        for metadata in (
            {"size": 1, "year": 0},
            {"year": 0, "size": 1},
            {"size": 3, "year": 0},
        )
    )
    np.testing.assert_array_equal(found, mixed)
    assert (other[:, 0] > found[:, 0]).all()
    for wrong in (None, {"size": 3}, [1.0, 2.0], {"size": np.nan, "year": 1}):
        messages = []
        for one in (meta, learner):
            with pytest.raises(ValueError, match="metadata") as caught:
                one.adapt(X, y, metadata=wrong)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_attributes(from_prototypes, from_maml, from_alpaca, prototypes):
    assert from_prototypes.method == "PrototypicalClassifier"
    assert from_prototypes.n_steps is None and from_maml.n_steps == 2
    assert from_prototypes.classes_.tolist() == prototypes.classes_.tolist()
    assert from_prototypes.feature_names_in_.tolist() == [*frame(rows()[0])]
    assert from_prototypes.n_features_in_ == from_alpaca.n_features_in_ == 4
    assert not hasattr(from_maml, "classes_")
    assert not hasattr(from_maml, "feature_names_in_")


def test_paths_bytes_and_files(tmp_path):
    data, path = toy(), tmp_path / "learner.onnx"
    path.write_bytes(data)
    for file in (path, str(path), data, bytearray(data), io.BytesIO(data)):
        assert OnnxMetaLearner(file).method == "ToyClassifier"
    with pytest.raises(TypeError, match="'rb'"), open(__file__) as text:
        OnnxMetaLearner(text)
    with pytest.raises(TypeError, match="SerializeToString"):
        OnnxMetaLearner(onnx.ModelProto())


class TestAsSklearnEstimator:
    """With the toy, which is quick."""

    def test_model_selection(self):
        X, y = rows(30)
        pipe = make_pipeline(
            StandardScaler(), OnnxFewShotClassifier(OnnxMetaLearner(toy()))
        )
        # Class means: the same as without a learned prior, but for the variance.
        expected = make_pipeline(StandardScaler(), FewShotClassifier())
        assert cross_val_score(pipe, X, LABELS[y]).tolist() == (
            cross_val_score(expected, X, LABELS[y]).tolist()
        )
        learner = OnnxMetaLearner(toy(with_loop(), n_steps=3))
        search = GridSearchCV(
            OnnxFewShotClassifier(learner), {"n_steps": [0, 1]}, n_jobs=1
        )
        assert search.fit(X, y).best_estimator_.learner is learner

    def test_ensembles(self):
        X, y = rows(30)
        y = LABELS[y]
        for learner in (OnnxMetaLearner(toy()), OnnxMetaLearner(toy(**SHARED))):
            model = OnnxFewShotClassifier(learner)
            adapted = learner.adapt(X, y)
            bagged = BaggingClassifier(adapted, 3, random_state=0).fit(X, y)
            voting = VotingClassifier([("one", adapted)], voting="soft").fit(X, y)
            assert voting.predict(X).tolist() == model.fit(X, y).predict(X).tolist()
            assert bagged.score(X, y) > 0.5

    def test_clone_keeps_the_learner(self):
        model = OnnxMetaLearner(toy()).adapt(*rows())
        assert clone(model).learner is model.learner
        assert not hasattr(clone(model), "classes_")

    @pytest.mark.parametrize("copied", [copy.deepcopy, None])
    def test_pickle(self, from_maml, copied):
        X, y = rows()
        model = from_maml.adapt(X, y, n_steps=4)
        again = copied(model) if copied else pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
        refitted = again.fit(X, y)
        np.testing.assert_array_equal(refitted.predict_proba(X), model.predict_proba(X))

    def test_later_changes_leave_a_model_as_it_is(self):
        learner, (X, y) = OnnxMetaLearner(toy()), rows()
        X_support = X.astype(np.float32)
        model = learner.adapt(X_support, y)
        before = model.predict_proba(X)
        learner.adapt(X + 1, y[::-1])
        X_support += 5
        np.testing.assert_array_equal(model.predict_proba(X), before)

    def test_order_of_rows_does_not_matter(self, from_prototypes):
        X, y = rows()
        order = np.random.default_rng(0).permutation(12)
        found = from_prototypes.adapt(X, LABELS[y]).predict_proba(X)
        mixed = from_prototypes.adapt(X[order], LABELS[y[order]]).predict_proba(X)
        np.testing.assert_allclose(mixed, found, atol=1e-6)

    def test_wrong_learner(self):
        X, y = rows()
        with pytest.raises(TypeError, match="OnnxMetaLearner\\(path\\)"):
            OnnxFewShotClassifier("learner.onnx").fit(X, y)
        with pytest.raises(TypeError, match="cannot adapt a ToyClassifier"):
            OnnxFewShotRegressor(OnnxMetaLearner(toy())).fit(X, y)


WRONG_ROWS = {
    "empty": (lambda X, y: (X[:0], y[:0]), "support set is empty"),
    "features": (lambda X, y: (X[:, :3], y), "3 features; .* 4 features"),
    "no table": (lambda X, y: (X[0], y), "rows of shape"),
    "nan": (lambda X, y: (np.where(X > 1, np.nan, X), y), "NaN, infinity"),
    "too large": (lambda X, y: (X * 1e60, y), "too large for float32"),
    "strings": (lambda X, y: (X.astype(str), y), "not real numbers"),
    "unknown": (lambda X, y: (X, np.where(y == "ill", "sick", y)), "label .*sick"),
    "length": (lambda X, y: (X, y[:-1]), "12 rows, y has 11"),
    "no y": (lambda X, y: (X, None), "y of the support set is missing"),
    "order": (lambda X, y: (frame(X).iloc[:, ::-1], y), "in another order"),
    "columns": (lambda X, y: (frame(X).rename(columns={"age": "a"}), y), "missing"),
}


@pytest.mark.parametrize("wrong", WRONG_ROWS)
def test_wrong_support_set_as_torch_says(prototypes, from_prototypes, wrong):
    change, match = WRONG_ROWS[wrong]
    X, y = rows()
    X, y = change(X, LABELS[y])
    messages = []
    for learner in (prototypes, from_prototypes):
        with pytest.raises(ValueError, match=match) as caught:
            learner.adapt(X, y)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_wrong_query_rows(from_prototypes):
    X, y = rows()
    model = from_prototypes.adapt(X, LABELS[y])
    before = model.predict_proba(X)
    for wrong, match in (
        (X[:, :3], "3 features"),
        (X[0], "Reshape"),
        (np.full((1, 4), np.nan), "NaN"),
    ):
        with pytest.raises(ValueError, match=match):
            model.predict(wrong)
    np.testing.assert_array_equal(model.predict_proba(X), before)
    with pytest.raises(ValueError, match="order"):
        model.fit(frame(X), LABELS[y]).predict(frame(X).iloc[:, ::-1])


def test_more_classes_than_the_head_has(maml, from_maml):
    X, _ = rows()
    messages = []
    for learner in (maml, from_maml):
        with pytest.raises(ValueError, match="12 classes, the head has 3") as caught:
            learner.adapt(X, np.arange(12))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("n_steps", [-1, MOST_STEPS + 1, 1.5, "3"])
def test_wrong_steps(n_steps):
    learner = OnnxMetaLearner(toy(with_loop(), n_steps=3))
    with pytest.raises(ValueError, match="'n_steps'"):
        learner.adapt(*rows(), n_steps=n_steps)
    with pytest.raises(ValueError, match="no inner loop"):
        OnnxMetaLearner(toy()).adapt(*rows(), n_steps=3)


@pytest.mark.parametrize("wrong", [{"n_threads": 0}, {"n_threads": 1.5}])
@pytest.mark.parametrize("other", [{}, {"time_limit": 0}, {"time_limit": "1"}])
def test_wrong_options(wrong, other):
    with pytest.raises(ValueError, match=r"n_threads|time_limit"):
        OnnxMetaLearner(toy(), **wrong | other)


def test_targets():
    learner, (X, y) = OnnxMetaLearner(toy(TARGET_MEANS, **REGRESSOR)), rows()
    with pytest.raises(ValueError, match="standard deviation"):
        learner.adapt(X, y).predict(X, return_std=True)
    assert learner.adapt(X, y).predict(X).shape == (12,)
    for wrong in (np.full(12, np.nan), y.astype(str), np.ones((12, 2))):
        with pytest.raises(ValueError, match="y of the support set"):
            learner.adapt(X, wrong)
    several = {**REGRESSOR, "n_targets": 2, "multi_output": True}
    several = OnnxMetaLearner(toy(TARGET_MEANS, **several))
    means = several.adapt(X, X[:, :2]).predict(X)
    np.testing.assert_allclose(means, np.tile(X[:, :2].mean(axis=0), (12, 1)))


def test_missing_values_where_the_file_fills_them_in():
    X, y = rows()
    X[::3, 1] = np.nan
    learner = OnnxMetaLearner(toy(with_imputer(7.0)))
    filled = np.where(np.isnan(X), 7, X)
    expected = OnnxMetaLearner(toy()).adapt(filled, y).predict_proba(filled)
    for given in (X, frame(X), X.astype(object)):
        found = learner.adapt(given, y).predict_proba(given)
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="infinity"):
        learner.adapt(np.where(np.isnan(X), np.inf, X), y)


KINDS = {"age": "float", "weight": "int", "pulse": "bool", "noise": "float"}


def test_columns():
    graph = by_column(KINDS)
    learner = OnnxMetaLearner(toy(graph, columns=KINDS, feature_names=[*KINDS]))
    X, y = rows()
    table = frame(X).astype({"pulse": bool}).assign(weight=np.round(X[:, 1]))
    expected = OnnxMetaLearner(toy()).adapt(table.astype(float), y)
    for given in (table, table.astype({"weight": "Int64", "pulse": object})):
        model = learner.adapt(given, y)
        np.testing.assert_array_equal(
            model.predict_proba(given), expected.predict_proba(table.astype(float))
        )
    for column, value in (("age", np.nan), ("age", np.inf), ("age", "old")):
        with pytest.raises(ValueError, match="Column 'age' of the support set"):
            learner.adapt(table.astype({column: object}).assign(age=value), y)
    for column, value in (("weight", 1.5), ("pulse", 2), ("weight", None)):
        with pytest.raises(ValueError, match=f"Column {column!r} of the support set"):
            learner.adapt(table.assign(**{column: value}), y)
    with pytest.raises(ValueError, match="another order"):
        learner.adapt(table.iloc[:, ::-1], y)
