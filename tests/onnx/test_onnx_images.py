"""Files of models of images."""

import numpy as np
import onnxruntime
import pytest

from sk_meta import EpisodeSampler, MAMLClassifier, PrototypicalClassifier, TaskNet
from sk_meta.networks import Conv4
from sk_meta.onnx import to_onnx
from sk_meta.onnx.export import example_rows


@pytest.fixture(scope="module")
def episodes():
    """Characters of random strokes, upright and 28 pixels wide."""
    rng = np.random.default_rng(0)
    prototypes = rng.random((6, 1, 28, 28)) > 0.8
    flips = rng.random((10, 6, 1, 28, 28)) > 0.98
    X = (prototypes ^ flips).reshape(-1, 1, 28, 28).astype(np.float32)
    y = np.tile([f"letter {i}" for i in range(6)], 10)
    return EpisodeSampler(
        X, y, n_way=3, n_shot=2, n_query=4, n_episodes=4, random_state=0
    )


@pytest.mark.parametrize(
    "method, shape, dtype",
    [
        (MAMLClassifier, (-1, 1, 28, 28), np.float32),
        (PrototypicalClassifier, (-1, 1, 28, 28), np.uint8),
        (PrototypicalClassifier, (-1, 784), np.float64),
    ],
)
def test_conv4(episodes, method, shape, dtype):
    net = TaskNet(Conv4, module__n_filters=4, max_epochs=1)
    meta = method(net, random_state=0).fit(episodes)
    task = episodes[1]
    X = task.X_query.reshape(shape).astype(dtype)
    model = meta.adapt(task.X_support.reshape(shape), task.y_support)
    session = onnxruntime.InferenceSession(to_onnx(model, X=X).SerializeToString())
    for rows in (X, X[:1]):
        labels, probabilities = session.run(None, {"X": rows})
        assert labels.tolist() == model.predict(rows).tolist()
        expected = model.predict_proba(rows)
        np.testing.assert_allclose(probabilities, expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(-1, 1, 28, 28), (-1, 784)])
def test_input_without_rows_to_go_by(episodes, shape):
    net = TaskNet(Conv4, module__n_filters=4, max_epochs=1)
    meta = PrototypicalClassifier(net, random_state=0).fit(episodes)
    model = meta.adapt(episodes[1].X_support.reshape(shape), episodes[1].y_support)
    rows = example_rows(model, model)
    assert rows.shape[1:] == shape[1:] and rows.dtype == np.float32
    assert np.isfinite(model.predict_proba(rows)).all()
