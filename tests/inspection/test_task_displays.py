"""GainDisplay and TaskMapDisplay."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy.spatial.distance import pdist
from sklearn.preprocessing import FunctionTransformer

from sk_meta import (
    DKTRegressor,
    EpisodeSampler,
    PrototypicalClassifier,
    Task,
    evaluate,
)
from sk_meta.inspection import GainDisplay, TaskMapDisplay
from sk_meta.inspection._shared import GREEN, RED
from sk_meta.metrics import Evaluation


def draw_map(model, tasks, **options):
    ax = Figure().subplots()
    return TaskMapDisplay.from_estimator(model, tasks, ax=ax, **options)


def draw_gain(gain, names=None, **options):
    return GainDisplay(gain, names, **options).plot(Figure().subplots())


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


# Gain


def test_gain_is_that_of_evaluate(alpaca, sines):
    ax = Figure().subplots()
    display = GainDisplay.from_estimator(
        alpaca, sines[8:], scoring="neg_mean_squared_error", ax=ax
    )
    expected = evaluate(alpaca, sines[8:], "neg_mean_squared_error")
    np.testing.assert_array_equal(display.gain, expected.gain)
    heights = [bar.get_height() for bar in display.bars_]
    assert heights == sorted(expected.gain, reverse=True)
    assert display.n_worse_ == len(expected.worse)
    assert display.mean_line_.get_ydata()[0] == pytest.approx(expected.gain.mean())
    order = np.argsort(-expected.gain)
    ticks = [tick.get_text() for tick in ax.get_xticklabels()]
    assert ticks == [expected.names[i] for i in order]


def test_no_learned_prior_gains_nothing(without_net, sines):
    ax = Figure().subplots()
    display = GainDisplay.from_estimator(without_net, sines[8:], ax=ax)
    np.testing.assert_allclose(display.gain, 0, atol=1e-6)


def test_bars_say_who_is_worse():
    display = draw_gain([0.2, -0.1, 0.0, np.nan, 0.3], score_name="Accuracy")
    colors = [to_hex(bar.get_facecolor()).upper() for bar in display.bars_]
    assert colors == [GREEN, GREEN, GREEN, RED]
    mean, better, worse = texts(display.ax_.get_legend())
    assert mean.startswith("mean +0.1 ± ") and better == "2 tasks better"
    assert worse == "1 task worse, 1 the same"
    assert "4 tasks" in display.ax_.get_xlabel()
    assert "accuracy over no learned prior" in display.ax_.get_ylabel()


def test_evaluations_without_names_and_of_one_task():
    found = Evaluation(np.array([0.5]), np.array([0.25]), [None], "roc_auc")
    ax = Figure().subplots()
    display = GainDisplay.from_evaluation(found, ax=ax)
    assert display.names is None and texts(ax.get_legend())[0] == "mean +0.25"
    assert "ROC AUC" in ax.get_ylabel()


def test_bad_gains():
    for gain, message in (([], "not empty"), ([np.nan], "NaN for all tasks")):
        with pytest.raises(ValueError, match=message):
            draw_gain(gain)
    with pytest.raises(ValueError, match="1 names for 2 tasks"):
        draw_gain([0.1, 0.2], ["a"])


# Map


def test_two_components_keep_the_distances_of_three_tasks(alpaca, sines):
    display = draw_map(alpaca, sines[8:11], n_probes=20)
    from sk_meta.inspection._task_vectors import draw_probes

    probes = draw_probes(sines[8:11], 20, np.random.RandomState(0))
    predicted = [
        alpaca.adapt(t.X_support, t.y_support).predict(probes) for t in sines[8:11]
    ]
    np.testing.assert_allclose(pdist(display.points), pdist(predicted), rtol=1e-4)


def test_the_same_task_is_at_the_same_place(alpaca, sines):
    tasks = [*sines[8:12], sines[8]]
    for vectors in ("predictions", "states"):
        points = draw_map(alpaca, tasks, vectors=vectors).points
        np.testing.assert_allclose(points[0], points[4], atol=1e-5)
        assert np.abs(points[0] - points[1]).max() > 1e-4


def test_colour_is_the_score_unless_given(alpaca, sines):
    display = draw_map(alpaca, sines[8:])
    np.testing.assert_allclose(np.mean(display.color), alpaca.score(sines[8:]))
    assert display.colorbar_.ax.get_ylabel() == "R² on query rows"
    assert display.names == [task.name for task in sines[8:]]
    plain = draw_map(alpaca, sines[8:], color=None)
    assert plain.colorbar_ is None and plain.ax_.get_legend() is None
    kinds = ["flat" if task.metadata[0] < 2 else "high" for task in sines[8:]]
    named = draw_map(alpaca, sines[8:], color=kinds, color_name="Amplitude")
    assert texts(named.ax_.get_legend()) == ["flat", "high"]
    assert [len(points.get_offsets()) for points in named.points_] == [
        kinds.count("flat"),
        kinds.count("high"),
    ]


def test_outliers_do_not_stretch_the_colours():
    color = [*np.linspace(0, 1, 40), -1000.0, np.nan]
    display = TaskMapDisplay(np.zeros((42, 2)), color=color).plot(Figure().subplots())
    low, high = display.points_[0].get_clim()
    assert low > -1000 and high == 1.0 and display.colorbar_.extend == "min"


def test_states_where_labels_are_local(blobs, classifier, small_net):
    assert draw_map(classifier, blobs[8:]).points.shape == (4, 2)
    with pytest.raises(ValueError, match="local labels.*vectors='states'"):
        draw_map(classifier, blobs[8:], vectors="predictions")
    X, y = np.concatenate([t.X for t in blobs]), np.repeat(np.arange(18), 10)
    episodes = EpisodeSampler(X[: len(y)], y, 3, 4, 2, 5, random_state=0)
    meta = PrototypicalClassifier(small_net(), random_state=0).fit(blobs[:8])
    assert draw_map(meta, episodes).points.shape == (5, 2)


def test_states_of_different_sizes(sines, small_net):
    meta = DKTRegressor(small_net(), random_state=0).fit(sines[:8])
    tasks = [
        Task(t.X, t.y, support=range(n)) for t, n in zip(sines, (5, 6, 7), strict=False)
    ]
    with pytest.raises(ValueError, match="differ in size.*predictions"):
        draw_map(meta, tasks, vectors="states")
    assert draw_map(meta, tasks).points.shape == (3, 2)


def test_states_that_are_no_tensors(without_net, sines):
    with pytest.raises(TypeError, match="holds no tensors.*vectors='predictions'"):
        draw_map(without_net, sines[8:], vectors="states")


def test_other_embeddings(alpaca, sines):
    first_two = FunctionTransformer(lambda table: table[:, :2])
    display = draw_map(alpaca, sines[8:], embedding=first_two)
    assert display.ax_.get_xlabel() == "FunctionTransformer, axis 1"
    with pytest.raises(ValueError, match="needs two columns"):
        one = FunctionTransformer(lambda table: table[:, :1])
        draw_map(alpaca, sines[8:], embedding=one)


def test_names_stand_beside_points():
    display = TaskMapDisplay([[0, 0], [1, 1]], ["a", "b"])
    display.plot(Figure().subplots(), annotate=True)
    assert [text.get_text() for text in display.ax_.texts] == ["a", "b"]


def test_bad_maps(alpaca, sines):
    for options, message in (
        ({"vectors": "weights"}, "vectors must be"),
        ({"color": [1, 2]}, "2 values for 8 tasks"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_map(alpaca, sines[8:], **options)
    with pytest.raises(ValueError, match="three tasks at least, got 2"):
        draw_map(alpaca, sines[:2])
    with pytest.raises(ValueError, match=r"shape \(n_tasks, 2\)"):
        TaskMapDisplay([[0, 1, 2]]).plot()
    with pytest.raises(ValueError, match="color has shape"):
        TaskMapDisplay([[0, 1]], color=[1, 2]).plot()
