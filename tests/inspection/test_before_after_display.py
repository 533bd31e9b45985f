"""BeforeAfterDisplay: what a learner says before it has seen a row, and after."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_meta import (
    ALPaCARegressor,
    AttentiveNeuralProcessRegressor,
    ConditionalNeuralProcessRegressor,
    DKTRegressor,
    FewShotRegressor,
    Task,
    TaskTransformer,
)
from sk_meta.inspection import BeforeAfterDisplay


def show(model, task, **options):
    ax = Figure().subplots()
    return BeforeAfterDisplay.from_estimator(model, task, n_points=30, ax=ax, **options)


def with_targets(task, y):
    return Task(task.X, y, support=task.support)


def test_after_is_what_the_adapted_learner_predicts(alpaca, sines):
    task = sines[8]
    display = show(alpaca, task)
    few_shot = alpaca.adapt(task.X_support, task.y_support)
    mean, std = few_shot.predict(display.x[:, None], return_std=True)
    np.testing.assert_allclose(display.after, mean)
    np.testing.assert_allclose(display.after_std, std)
    np.testing.assert_array_equal(display.support[0], task.X_support[:, 0])
    np.testing.assert_array_equal(display.query[1], task.y_query)
    assert display.x[0] == task.X.min() and display.x[-1] == task.X.max()


def test_at_0_steps_the_targets_say_nothing(maml, sines):
    task = sines[8]
    one, other = show(maml, task), show(maml, with_targets(task, task.y[::-1]))
    np.testing.assert_array_equal(one.before, other.before)
    assert np.abs(one.after - other.after).max() > 1e-3
    assert one.before_std is None and one.baseline is None and not one.bands_
    assert set(one.lines_) == {"before", "after"}


@pytest.mark.parametrize("kind", [ALPaCARegressor, DKTRegressor])
def test_rows_make_a_bayesian_method_surer(kind, sines, small_net):
    meta = kind(small_net(), random_state=0).fit(sines[:8])
    display = show(meta, sines[8])
    assert (display.after_std <= display.before_std * (1 + 1e-4)).all()
    moved = show(meta, with_targets(sines[8], sines[8].y + 3))
    np.testing.assert_allclose(display.before, moved.before, atol=1e-4)
    assert set(display.bands_) == {"before", "after"}


def test_prior_of_a_deep_kernel_is_its_mean(sines, small_net):
    meta = DKTRegressor(small_net(), random_state=0).fit(sines[:8])
    schema = meta.schema_
    prior = (
        meta.learner_.mean.detach().numpy() * schema.target_scale + schema.target_mean
    )
    np.testing.assert_allclose(show(meta, sines[8]).before, prior[0], atol=1e-4)


def test_neural_processes(sines, small_net):
    """A mean of no rows is a vector of zeros; attention always looks at some row."""
    mean = ConditionalNeuralProcessRegressor(small_net(), width=8, random_state=0)
    assert show(mean.fit(sines[:8]), sines[8]).before is not None
    attentive = AttentiveNeuralProcessRegressor(small_net(), width=8, random_state=0)
    display = show(attentive.fit(sines[:8]), sines[8])
    assert display.before is None and "baseline" in display.lines_


def test_without_a_before_there_is_ridge_regression(without_net, sines):
    task = sines[8]
    display = show(without_net, task)
    ridge = FewShotRegressor().fit(task.X_support, task.y_support)
    expected = ridge.predict(display.x[:, None])
    np.testing.assert_allclose(display.baseline, expected)
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert "No learned prior (ridge)" in labels


@pytest.mark.parametrize("scope", ["pooled", "support"])
def test_pipelines_and_data_frames(scope, sines, small_net):
    tasks = [
        Task(pd.DataFrame(t.X * 100, columns=["days"]), t.y, support=t.support)
        for t in sines[:9]
    ]
    scaler = TaskTransformer(StandardScaler(), scope=scope)
    pipe = make_pipeline(scaler, ALPaCARegressor(small_net(), random_state=0))
    display = show(pipe.fit(tasks[:8]), tasks[8])
    assert display.ax_.get_xlabel() == "days"
    assert display.x[-1] == tasks[8].X.to_numpy().max()
    assert np.isfinite(display.before).all()


def test_a_task_without_a_support_set_gets_the_learners_draw(maml, sines):
    task = Task(sines[8].X, sines[8].y)
    display = show(maml, task)
    (found,) = maml.predict_tasks([task])
    drawn = np.sort(task.X[found.support, 0])
    np.testing.assert_array_equal(np.sort(display.support[0]), drawn)


def test_predictions_are_drawn():
    ax = Figure().subplots()
    x = np.linspace(0, 1, 5)
    display = BeforeAfterDisplay.from_predictions(
        x,
        2 * x,
        before=0 * x,
        after_std=np.full(5, 0.1),
        support=([0.5], [1.0]),
        target_name="price",
        ax=ax,
    )
    np.testing.assert_array_equal(display.lines_["after"].get_ydata(), 2 * x)
    edge = display.bands_["after"].get_paths()[0].vertices
    assert edge[:, 1].max() == pytest.approx(2 + 0.1645)
    assert edge[:, 1].min() == pytest.approx(-0.1645)
    assert set(display.bands_) == {"after"} and ax.get_ylabel() == "price"


def test_bad_input(maml, classifier, sines, blobs):
    with pytest.raises(TypeError, match="MAMLClassifier is a classifier"):
        show(classifier, blobs[8])
    with pytest.raises(ValueError, match="before has shape .3,., x has .2,."):
        BeforeAfterDisplay([0, 1], [0, 1], before=[0, 1, 2]).plot()


def test_two_features_or_targets(small_net, rng):
    X, y = rng.normal(size=(16, 2)), rng.normal(size=(16, 2))
    two_features = [Task(X, y[:, 0], support=range(8), name="wide")] * 4
    meta = ALPaCARegressor(small_net(), random_state=0).fit(two_features)
    with pytest.raises(ValueError, match="'wide' has rows of shape .2,.; only a sin"):
        show(meta, two_features[0])
    two_targets = [Task(X[:, :1], y, support=range(8))] * 4
    meta = ALPaCARegressor(small_net(), random_state=0).fit(two_targets)
    with pytest.raises(ValueError, match="has 2 targets"):
        show(meta, two_targets[0])
