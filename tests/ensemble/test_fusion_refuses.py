"""What FusionClassifier and FusionRegressor refuse."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_meta import (
    FusionClassifier,
    R2D2Classifier,
    Task,
    TaskNet,
    TaskTransformer,
    load,
    save,
)
from sk_meta.onnx import to_onnx
from tests.ensemble.test_fusion import (
    R2D2,
    classifiers,
    frozen,
    r2d2,
    regressors,
    values_of,
)


def bad(make, kind, match):
    return pytest.param(make, kind, match, id=match)


@pytest.mark.parametrize(
    ("make", "kind", "match"),
    [
        bad(lambda t: FusionClassifier([]), ValueError, "empty list"),
        bad(lambda t: FusionClassifier([R2D2]), TypeError, "pairs"),
        bad(
            lambda t: FusionClassifier([("svc", Ridge())]),
            TypeError,
            "must be a meta-learner",
        ),
        bad(
            lambda t: FusionClassifier([*classifiers(), *regressors()]),
            TypeError,
            "not for classes",
        ),
        bad(
            lambda t: FusionClassifier([("a", FrozenEstimator(R2D2))]),
            NotFittedError,
            "not fitted",
        ),
        bad(
            lambda t: FusionClassifier(classifiers(), weights=[1, 2, 3]),
            ValueError,
            "2 numbers",
        ),
        bad(
            lambda t: FusionClassifier(classifiers(), weights={"maml": 1}),
            ValueError,
            "got {'maml': 1}",
        ),
        bad(
            lambda t: FusionClassifier(classifiers(), "concatenate", head=Ridge()),
            TypeError,
            "head must be a classifier",
        ),
        bad(
            lambda t: FusionClassifier(classifiers(), head=RidgeClassifier()),
            ValueError,
            "head is for how='concatenate'",
        ),
        bad(
            lambda t: FusionClassifier(classifiers(), weights=[0, 0]),
            ValueError,
            "not all 0",
        ),
        bad(
            lambda t: FusionClassifier(classifiers(), "soup", "support"),
            ValueError,
            "one set of parameters",
        ),
        bad(
            lambda t: FusionClassifier(classifiers(), "concatenate", "learned"),
            ValueError,
            "weighs the features itself",
        ),
        bad(
            lambda t: FusionClassifier(classifiers(), "soup"),
            ValueError,
            "cannot be made into a soup: one is a MAMLClassifier",
        ),
        bad(
            lambda t: FusionClassifier(
                [("a", R2D2), ("b", R2D2Classifier(TaskNet(max_epochs=1)))], "soup"
            ),
            ValueError,
            "has the shapes",
        ),
        bad(
            lambda t: FusionClassifier(classifiers(), "concatenate"),
            ValueError,
            "'maml' is a MAMLClassifier, which has no features",
        ),
        bad(
            lambda t: FusionClassifier(r2d2(narrow(t))),
            ValueError,
            "fitted on 1 features; these tasks have",
        ),
        bad(
            lambda t: FusionClassifier(r2d2(renamed(t)) + r2d2(t, "b")),
            ValueError,
            "fitted on the classes",
        ),
        bad(
            lambda t: FusionClassifier(r2d2(local(t))),
            ValueError,
            "local labels",
        ),
        bad(
            lambda t: FusionClassifier(
                [("a", R2D2), ("b", make_pipeline(StandardScaler(), clone(R2D2)))]
            ),
            TypeError,
            "Step 'standardscaler' of 'b'",
        ),
    ],
)
def test_bad_input_raises_and_changes_nothing(make, kind, match, blobs):
    tasks = [t.replace_X(t.X[:, :2]) for t in blobs]
    meta = FusionClassifier(frozen(classifiers(), tasks)).fit(tasks)
    before = values_of(meta, tasks)
    new = make(tasks)
    meta.set_params(
        **{k: v for k, v in new.get_params(deep=False).items() if k in PARAMETERS}
    )
    with pytest.raises(kind, match=match):
        meta.fit(tasks)
    for one, other in zip(values_of(meta, tasks), before, strict=True):
        np.testing.assert_array_equal(one, other)


PARAMETERS = ("learners", "how", "weights", "head")


def narrow(tasks):
    return [t.replace_X(t.X[:, :1]) for t in tasks]


def local(tasks):
    return [Task(t.X, t.y, t.support, labels="local") for t in tasks]


def renamed(tasks):
    return [Task(t.X, np.char.add("x", t.y.astype(str)), t.support) for t in tasks]


def test_too_few_tasks_to_hold_out(blobs):
    with pytest.raises(ValueError, match="at least 4"):
        FusionClassifier(classifiers(), weights="learned").fit(blobs[:3])


def test_different_columns(blobs):
    frames = [t.replace_X(pd.DataFrame(t.X[:, :2], columns=["a", "b"])) for t in blobs]
    other = [t.replace_X(pd.DataFrame(t.X[:, :2], columns=["a", "c"])) for t in blobs]
    learners = frozen([("r2d2", clone(R2D2))], other)
    with pytest.raises(ValueError, match="fitted on the columns"):
        FusionClassifier(learners).fit(frames)
    scale = TaskTransformer(StandardScaler())
    selected = make_pipeline(scale, clone(R2D2)).fit(other)
    with pytest.raises(ValueError, match="fitted on the columns"):
        FusionClassifier([("r2d2", FrozenEstimator(selected))]).fit(frames)


def test_files_are_those_of_the_parts(blobs, tmp_path):
    meta = FusionClassifier(frozen(classifiers(), blobs)).fit(blobs)
    few_shot = meta.adapt(blobs[0].X_support, blobs[0].y_support)
    for model in (meta, few_shot):
        with pytest.raises(TypeError, match="export its learners one by one"):
            to_onnx(model)
        with pytest.raises(TypeError, match="Use joblib.dump"):
            save(model, tmp_path / "fusion")
    soup = FusionClassifier(r2d2(blobs) + r2d2(blobs, "b"), "soup").fit(blobs)
    with pytest.raises(TypeError, match="export its soup_"):
        to_onnx(soup)
    save(soup.soup_, tmp_path / "soup")
    again = values_of(load(tmp_path / "soup"), blobs)
    for one, other in zip(values_of(soup, blobs), again, strict=True):
        np.testing.assert_array_equal(one, other)
    to_onnx(soup.soup_, tmp_path / "soup.onnx")
