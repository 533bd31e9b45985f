"""Files without a learned prior, which are quick to make: labels, options, errors."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import skl2onnx
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sk_meta import FewShotClassifier, FewShotRegressor
from sk_meta.onnx import export, to_onnx

LABELS = {
    "str": np.array(["no", "maybe", "yes, certainly"]),
    "object": np.array(["no", "maybe", "yes"], dtype=object),
    "negative": np.array([-7, 0, 3]),
    "bool": np.array([True, False]),
    "uint8": np.array([1, 2, 200], dtype=np.uint8),
    "float": np.array([1.0, 2.0, 5.0]),
}


def table(n_rows=24, n_features=3):
    return np.random.default_rng(0).normal(size=(n_rows, n_features))


def classifier(labels=LABELS["str"]):
    X = table()
    return FewShotClassifier().fit(X, np.resize(labels, len(X)))


def run(onnx_model, X):
    session = onnxruntime.InferenceSession(onnx_model.SerializeToString())
    if isinstance(X, dict):
        return session.run(None, X)
    return session.run(None, {session.get_inputs()[0].name: X})


@pytest.mark.parametrize("zipmap", [False, True, "columns"])
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("plain", [False, True])
def test_labels_and_probabilities(kind, zipmap, plain):
    X, model = table(), classifier(LABELS[kind])
    if plain:
        options = {FewShotClassifier: {"zipmap": zipmap}}
        made = skl2onnx.to_onnx(model, X[:1], options=options)
    else:
        made = to_onnx(model, X=X, zipmap=zipmap)
    labels, *rest = run(made, X)
    assert labels.tolist() == model.predict(X).tolist()
    if zipmap is True:
        rest = [np.array([[row[c] for c in model.classes_] for row in rest[0]])]
    elif zipmap == "columns":
        rest = [np.stack(rest, axis=1)]
    np.testing.assert_allclose(rest[0], model.predict_proba(X), atol=1e-6)


def test_labels_keep_their_type():
    X = table()
    for kind, expected in {"bool": np.bool_, "negative": np.int64}.items():
        labels, _ = run(to_onnx(classifier(LABELS[kind]), X=X), X)
        assert labels.dtype == expected


@pytest.mark.parametrize("opset", range(15, 23))
def test_opsets(opset):
    X = table()
    model = make_pipeline(StandardScaler(), PCA(2), FewShotClassifier())
    model.fit(X, np.resize(LABELS["str"], len(X)))
    made = to_onnx(model, X=X, target_opset=opset)
    assert {o.version for o in made.opset_import if o.domain == ""} == {opset}
    np.testing.assert_allclose(run(made, X)[1], model.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("n_targets", [None, 1, 2])
def test_regressor(dtype, n_targets):
    X = (10 * table()).astype(dtype)
    y = table(n_features=n_targets or 1) * 100 + 7
    model = FewShotRegressor().fit(X, y if n_targets else y[:, 0])
    (found,) = run(to_onnx(model, X=X), X)
    assert found.shape == (len(X), n_targets or 1)
    np.testing.assert_allclose(found, model.predict(X).reshape(found.shape), rtol=1e-5)


def test_far_from_the_origin():
    X = table() + 1e5
    model = FewShotClassifier().fit(X, np.resize(LABELS["str"], len(X)))
    found = run(to_onnx(model, X=X), X)[1]
    np.testing.assert_allclose(found, model.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize("n_rows", [0, 1, 2, 100])
def test_number_of_rows_is_free(n_rows):
    made = to_onnx(classifier(), X=table())
    labels, probabilities = run(made, table(n_rows))
    assert labels.shape == (n_rows,) and probabilities.shape == (n_rows, 3)


def test_without_rows_the_input_is_float32():
    model = make_pipeline(StandardScaler(), FewShotRegressor()).fit(table(), range(24))
    X = table().astype(np.float32)
    (found,) = run(to_onnx(model), X)
    np.testing.assert_allclose(found[:, 0], model.predict(X), rtol=1e-4)


def test_file(tmp_path):
    path = tmp_path / "model.onnx"
    made = to_onnx(classifier(), path)
    assert onnx.load(path) == made


@pytest.mark.parametrize("zipmap", [False, True])
def test_frozen_parts_and_searches(zipmap):
    X, y = table(), np.resize(LABELS["str"], 24)
    scale = FrozenEstimator(make_pipeline(SimpleImputer(), StandardScaler()).fit(X))
    pipeline = Pipeline([("scale", scale), ("few", FewShotClassifier())]).fit(X, y)
    search = GridSearchCV(pipeline, {"few__classes": ["support"]}, cv=2).fit(X, y)
    X = X.astype(np.float32)
    for model in (pipeline, FrozenEstimator(pipeline), search):
        labels, found = run(to_onnx(model, X=X, zipmap=zipmap), X)
        assert isinstance(found, list) == zipmap
        assert labels.tolist() == model.predict(X).tolist()


def people(n_rows=30):
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "heart rate": rng.normal(60, 10, n_rows).astype(np.float32),
            "age": rng.integers(20, 90, n_rows),
            "sex": rng.choice(["f", "m"], n_rows),
            "unused": rng.normal(size=n_rows),
        }
    )


def test_one_input_per_column():
    X = people()
    X.loc[::7, "heart rate"] = np.nan
    columns = ColumnTransformer(
        [
            ("float", make_pipeline(SimpleImputer(), StandardScaler()), ["heart rate"]),
            ("int", StandardScaler(), ["age"]),
            ("str", OneHotEncoder(sparse_output=False), ["sex"]),
        ]
    )
    model = make_pipeline(columns, FewShotClassifier())
    model.fit(X, np.where(X["age"] > 50, "old", "young"))
    made = to_onnx(model, X=X)
    names = [given.name for given in made.graph.input]
    feed = {
        name: X[[column]].to_numpy()
        for name, column in zip(names, X.columns, strict=True)
    }
    assert run(made, feed)[0].tolist() == model.predict(X).tolist()
    with pytest.raises(ValueError, match="X=X_support"):
        to_onnx(model)


def test_columns_straight_into_the_estimator():
    X = people()[["heart rate", "age", "unused"]]
    model = FewShotRegressor().fit(X, X["age"] * 2.0)
    made = to_onnx(model, X=X)
    assert len(made.graph.input) == 3


@pytest.mark.parametrize("make", [to_onnx, skl2onnx.to_onnx])
def test_silence(make, capfd, caplog):
    caplog.set_level("INFO")
    make(classifier(), X=table())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def tamper(monkeypatch, change):
    original = skl2onnx.to_onnx

    def changed(*args, **kwargs):
        made = original(*args, **kwargs)
        change(made.graph)
        return made

    monkeypatch.setattr(skl2onnx, "to_onnx", changed)


def shift_bias(graph):
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float64 and values.shape == (3,):
            values = values + 0.01 * np.arange(3)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def swap_labels(graph):
    for tensor in graph.initializer:
        tensor.string_data[:] = tensor.string_data[::-1]


def fix_rows(graph):
    shape = np.array([24, 3])
    graph.initializer.append(onnx.numpy_helper.from_array(shape, "fixed"))
    for node in graph.node:
        node.input[:] = ["fixed_X" if name == "X" else name for name in node.input]
    node = onnx.helper.make_node("Reshape", ["X", "fixed"], ["fixed_X"])
    graph.node.insert(0, node)


@pytest.mark.parametrize("change", [shift_bias, swap_labels])
def test_wrong_files_are_not_written(monkeypatch, tmp_path, change):
    tamper(monkeypatch, change)
    with pytest.raises(ValueError, match="ONNX file"):
        to_onnx(classifier(), tmp_path / "model.onnx", X=table())
    assert not list(tmp_path.iterdir())


def test_a_fixed_number_of_rows_is_found(monkeypatch):
    tamper(monkeypatch, fix_rows)
    with pytest.raises(Exception, match="Reshape"):
        to_onnx(classifier(), X=table())


def shift_level(graph):
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float64 and values.shape == (1,):
            values = values + 0.01
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def test_a_small_error_beside_a_high_level(monkeypatch):
    model = FewShotRegressor().fit(table(), 100 + table()[:, 0])
    assert to_onnx(model)
    tamper(monkeypatch, shift_level)
    with pytest.raises(ValueError, match="ONNX file deviates"):
        to_onnx(model)


def test_tolerance(monkeypatch):
    tamper(monkeypatch, shift_bias)
    assert to_onnx(classifier(), X=table(), tolerance=0.1)


def test_tied_labels_may_differ(monkeypatch):
    tamper(monkeypatch, swap_labels)
    model = FewShotClassifier().fit([[-1.0], [1.0]], ["a", "b"])
    assert to_onnx(model, X=np.zeros((3, 1)))
    with pytest.raises(ValueError, match="the label 'b' to a row"):
        to_onnx(model, X=-np.ones((3, 1)))


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"zipmap": "rows"}, "zipmap must be"),
        ({"target_opset": 14}, "from 15 to 22, got 14"),
        ({"target_opset": 23}, "from 15 to 22, got 23"),
        ({"return_std": True}, "for regressors"),
        ({"X": np.zeros((0, 3))}, "no rows"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        to_onnx(classifier(), **arguments)


def test_bad_arguments_of_a_regressor():
    model = FewShotRegressor().fit(table(), range(24))
    with pytest.raises(ValueError, match="for classifiers"):
        to_onnx(model, zipmap=True)
    with pytest.raises(ValueError, match="no standard deviation"):
        to_onnx(model, return_std=True)


def test_float64_operators_that_onnxruntime_lacks():
    X = table()
    model = make_pipeline(SimpleImputer(), FewShotRegressor()).fit(X, range(24))
    with pytest.raises(ValueError, match="Pass X as float32"):
        to_onnx(model, X=X)
    assert to_onnx(model, X=X.astype(np.float32))


def test_what_is_not_adapted():
    with pytest.raises(TypeError, match="got LogisticRegression"):
        to_onnx(LogisticRegression())
    with pytest.raises(Exception, match="not fitted"):
        to_onnx(FewShotClassifier())


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(export, "_NEEDED", ("onnx", "no_such_package"))
    with pytest.raises(ImportError, match=r'no_such_package.*"sk_meta\[onnx\]"'):
        to_onnx(classifier())


def test_import_needs_no_exporter():
    """Without the packages the import works, and the call says what to install."""
    code = """
import sys
for name in ("onnx", "skl2onnx", "onnxruntime", "onnxscript"):
    sys.modules[name] = None
from importlib import util
found = util.find_spec
util.find_spec = lambda name: None if sys.modules.get(name, 0) is None else found(name)
from sk_meta import FewShotClassifier
from sk_meta.onnx import to_onnx
try:
    to_onnx(FewShotClassifier().fit([[0.0], [1.0]], [0, 1]))
except ImportError as error:
    assert "pip install" in str(error)
else:
    raise AssertionError
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
