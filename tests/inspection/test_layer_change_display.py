"""Linear CKA against its formula, and which layers change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_meta import (
    ANILRegressor,
    BOILRegressor,
    JointRegressor,
    MAMLRegressor,
    ProtoMAMLClassifier,
    PrototypicalClassifier,
    Task,
    TaskTransformer,
)
from sk_meta.inspection import LayerChangeDisplay, linear_cka


def show(model, tasks, **options):
    ax = Figure().subplots()
    return LayerChangeDisplay.from_estimator(model, tasks, ax=ax, **options)


def by_definition(X, Y):
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), with linear kernels."""
    n = len(X)
    H = np.eye(n) - 1 / n

    def hsic(K, L):
        return np.trace(K @ H @ L @ H) / (n - 1) ** 2

    K, L = X @ X.T, Y @ Y.T
    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


sizes = st.tuples(st.integers(3, 12), st.integers(2, 12), st.integers(2, 12))


@given(sizes, st.integers(0, 99))
def test_cka_is_its_definition(sizes, seed):
    n, p, q = sizes
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(n, p)), rng.normal(size=(n, q)) + 5
    found = linear_cka(X, Y)
    assert found == pytest.approx(by_definition(X, Y), abs=1e-9)
    assert found == pytest.approx(linear_cka(Y, X)) and 0 <= found <= 1 + 1e-12


@given(sizes, st.integers(0, 99), st.floats(1e-3, 1e3))
def test_cka_knows_no_rotation_scale_or_shift(sizes, seed, scale):
    n, p, q = sizes
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(n, p)), rng.normal(size=(n, q))
    rotated = scale * X @ np.linalg.qr(rng.normal(size=(p, p)))[0] + rng.normal(size=p)
    assert linear_cka(X, rotated) == pytest.approx(1.0)
    assert linear_cka(rotated, Y) == pytest.approx(linear_cka(X, Y))
    assert linear_cka(X, X) == 1.0


def test_cka_of_single_features_is_the_squared_correlation(rng):
    x, y = rng.normal(size=(2, 20))
    assert linear_cka(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def test_cka_is_not_blind_to_unequal_scaling(rng):
    X = rng.normal(size=(50, 3))
    assert linear_cka(X, X * [1, 1, 30]) < 0.9


def test_cka_of_images_and_constants(rng):
    X = rng.normal(size=(6, 2, 3, 3))
    assert linear_cka(X, X) == linear_cka(X.reshape(6, -1), X) == 1.0
    assert np.isnan(linear_cka(np.full((6, 2), 0.1), X))
    with pytest.raises(ValueError, match="the same rows"):
        linear_cka(X, X[1:])
    with pytest.raises(ValueError, match="two rows at least"):
        linear_cka(X[:1], X[:1])


def test_body_of_anil_is_exactly_unchanged(sines, small_net):
    meta = ANILRegressor(small_net(), inner_lr=0.1, random_state=0).fit(sines[:8])
    display = show(meta, sines[8:])
    names = ["layers.0 (Linear)", "layers.2 (Linear)", "head"]
    assert display.layers == names
    assert (display.changes[:-1] == 0).all() and (display.changes[-1] > 1e-6).all()


def test_what_adapts_is_what_changes(sines, small_net):
    options = {"inner_lr": 0.1, "n_inner_steps": 3, "random_state": 0}
    head = MAMLRegressor(small_net(), adapts="head", **options).fit(sines[:8])
    changes = show(head, sines[8:]).changes
    # One output: its squared correlation with itself before.
    assert (changes[:-1] == 0).all() and (changes[-1] > 0).any()
    body = BOILRegressor(small_net(), **options).fit(sines[:8])
    assert (show(body, sines[8:]).changes[1] > 0).all()
    same = JointRegressor(small_net(), n_adapt_steps=0, random_state=0)
    assert (show(same.fit(sines[:8]), sines[8:]).changes == 0).all()


def test_changes_are_those_of_the_activations(maml, sines):
    """The last layer: before and after are what the learner predicts itself."""
    from copy import deepcopy

    start = deepcopy(maml)
    start.learner_.n_adapt_steps = 0
    task = sines[8]
    before, after = (
        meta.adapt(task.X_support, task.y_support).predict(task.X_query)
        for meta in (start, maml)
    )
    changes = show(maml, [task]).changes
    expected = 1 - np.corrcoef(before, after)[0, 1] ** 2
    assert changes[-1, 0] == pytest.approx(expected, abs=1e-4)
    assert ((changes >= -1e-9) & (changes <= 1)).all()


def test_layers_pipelines_and_hooks(maml, sines, small_net):
    display = show(maml, sines[8:], layers=["layers.1", "layers.4"])
    assert display.layers == ["layers.1 (ReLU)", "layers.4 (Linear)"]
    assert display.changes.shape == (2, 8)
    assert not any(m._forward_hooks for m in maml.learner_.modules())
    scaler = TaskTransformer(StandardScaler(), scope="support")
    pipe = make_pipeline(scaler, MAMLRegressor(small_net(), random_state=0))
    assert show(pipe.fit(sines[:8]), sines[8:]).changes.shape == (3, 8)
    with pytest.raises(ValueError, match="no layer 'middle'.*layers.0"):
        show(maml, sines[8:], layers=["middle"])


def test_a_head_made_of_prototypes(blobs, small_net):
    meta = ProtoMAMLClassifier(small_net(), inner_lr=0.1, random_state=0)
    display = show(meta.fit(blobs[:8]), blobs[8:])
    assert display.layers[-1] == "head" and np.isfinite(display.changes).all()


def test_learners_whose_layers_do_not_change(blobs, small_net):
    meta = PrototypicalClassifier(small_net(), random_state=0).fit(blobs[:8])
    with pytest.raises(TypeError, match="Classifier has no network whose layers"):
        show(meta, blobs[8:])


def test_one_query_row(maml, sines):
    task = Task(sines[8].X[:9], sines[8].y[:9], support=range(8), name="short")
    with pytest.raises(ValueError, match="'short' has 1 query rows.*needs two"):
        show(maml, [task])


def test_values_are_drawn():
    ax = Figure().subplots()
    changes = np.array([[0.0, 0.0, 0.0], [0.1, np.nan, 0.3]])
    display = LayerChangeDisplay.from_values(["first", "last"], changes, ax=ax)
    assert [bar.get_width() for bar in display.bars_] == pytest.approx([0.0, 0.2])
    assert [len(dots.get_offsets()) for dots in display.dots_] == [3, 2]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["first", "last"]
    assert "0 = unchanged" in ax.get_xlabel()
    with pytest.raises(ValueError, match="3 names for 2 layers"):
        LayerChangeDisplay.from_values(["a", "b", "c"], changes, ax=ax)
    with pytest.raises(ValueError, match="2 dimension"):
        LayerChangeDisplay.from_values(["a"], [0.1], ax=ax)
