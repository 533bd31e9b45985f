"""AdaptationDisplay: the rows it compares, and the steps it takes."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_meta import (
    EpisodeSampler,
    PrototypicalClassifier,
    PrunedLearner,
    Task,
    TaskTransformer,
)
from sk_meta.inspection import AdaptationDisplay
from sk_meta.inspection.adaptation import _nested
from sk_meta.metrics import mean_interval


def show(model, tasks, n_steps=(0, 1, 3), n_shots=(1, 4), **options):
    ax = Figure().subplots()
    return AdaptationDisplay.from_estimator(
        model, tasks, n_steps=n_steps, n_shots=n_shots, ax=ax, **options
    )


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_all_rows_and_all_steps_are_the_score(maml, sines):
    display = show(maml, sines[8:], n_steps=[0, 3], n_shots=[8])
    assert display.scores.shape == (1, 2, 8)
    assert display.scores[0, -1].mean() == pytest.approx(maml.score(sines[8:]))
    assert display.steps_of_learner == 3
    start, end = display.lines_[0].get_ydata()
    assert start == pytest.approx(display.scores[0, 0].mean())
    assert end == pytest.approx(mean_interval(display.scores[0, 1])[0])


def test_at_0_steps_shots_do_not_matter(maml, sines):
    """So the query rows are the same for all."""
    scores = show(maml, sines[8:], n_shots=[1, 4, 8]).scores
    np.testing.assert_array_equal(scores[0, 0], scores[1, 0])
    np.testing.assert_array_equal(scores[0, 0], scores[2, 0])
    assert (scores[0, 1] != scores[2, 1]).any()


@pytest.mark.parametrize("own", [True, False])
def test_support_sets_are_nested(own, sines, blobs):
    tasks = sines[:3] if own else blobs[:3]
    shots = [1, 2, 4]
    of_shots = _nested(tasks, shots, not own, seed=0)
    rows = [
        [set(map(tuple, task.X_support.tolist())) for task in cut] for cut in of_shots
    ]
    for i, task in enumerate(tasks):
        assert rows[0][i] < rows[1][i] < rows[2][i]
        queries = [cut[i].X_query for cut in of_shots]
        for query in queries[1:]:
            np.testing.assert_array_equal(query, queries[0])
        if own:
            np.testing.assert_array_equal(
                np.sort(queries[0], 0), np.sort(task.X_query, 0)
            )
            continue
        for cut, shot in zip(of_shots, shots, strict=True):
            _, counts = np.unique(cut[i].y_support, return_counts=True)
            assert (counts == shot).all()
        largest = set(map(tuple, queries[0].tolist())) | rows[2][i]
        assert len(largest) == len(task) and len(queries[0]) == len(task) - 12


def test_lines_labels_and_marks(classifier, blobs):
    display = show(classifier, blobs[8:])
    assert labels_of(display.ax_) == [
        "1 row per class",
        "4 rows per class",
        "steps the learner takes",
    ]
    assert len(display.lines_) == len(display.bands_) == 2
    assert (
        "Accuracy" in display.ax_.get_ylabel() and "4 tasks" in display.ax_.get_ylabel()
    )
    assert show(classifier, blobs[8:9]).bands_ == []


def test_without_steps_the_shots_are_the_axis(alpaca, without_net, sines):
    for model in (alpaca, without_net):
        display = show(model, sines[8:], n_shots=[2, 8, 4])
        assert display.n_steps is None and len(display.lines_) == 1
        assert display.lines_[0].get_xdata().tolist() == [2, 4, 8]
        assert display.scores[-1, 0].mean() == pytest.approx(model.score(sines[8:]))
        assert "Support set" in display.ax_.get_xlabel()


def test_other_metrics_pipelines_wrapped_learners_and_episodes(maml, sines, blobs):
    wrapped = PrunedLearner(FrozenEstimator(maml), 0.2, how="magnitude", max_epochs=1)
    display = show(wrapped.fit(sines[:8]), sines[8:], scoring="neg_mean_squared_error")
    assert display.scores.shape == (2, 3, 8) and (display.scores <= 0).all()
    assert "Negative mean squared error" in display.ax_.get_ylabel()
    X, y = np.concatenate([t.X for t in blobs]), np.arange(len(blobs) * 60 // 10)
    y = np.repeat(y, 10)[: len(X)]
    episodes = EpisodeSampler(X[: len(y)], y, 3, 4, 2, 5, random_state=0)
    scaler = TaskTransformer(StandardScaler(), scope="support")
    meta = make_pipeline(scaler, PrototypicalClassifier(random_state=0))
    meta.set_params(prototypicalclassifier__net=None)
    assert show(meta.fit(blobs[:2]), episodes).scores.shape == (2, 1, 5)


def test_unlabelled_rows_are_left_out(maml, sines):
    task = sines[8]
    rows = np.r_[np.arange(16), 0, 15]
    y = np.r_[task.y, 1e6, -1e6]
    more = Task(
        task.X[rows],
        y,
        support=np.r_[np.arange(8), 16],
        labeled=np.arange(18) < 16,
    )
    for cut in _nested([more], [2, 8], False, 0):
        assert np.abs(cut[0].y).max() < 1e5
    assert np.isfinite(show(maml, [more]).scores).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_shots": [9]}, "8 support rows; 9 shots need 9"),
        ({"n_shots": []}, "n_shots must be whole numbers of at least 1"),
        ({"n_shots": [0]}, "n_shots must be whole numbers of at least 1"),
        ({"n_steps": [-1]}, "n_steps must be whole numbers of at least 0"),
        ({"n_steps": [0.5]}, "n_steps must be whole numbers"),
    ],
)
def test_bad_input(options, message, maml, sines):
    with pytest.raises(ValueError, match=message):
        show(maml, sines[8:], **options)


def test_too_few_rows_of_a_class(classifier):
    y = np.array([0] * 9 + [1] * 4)
    task = Task(np.zeros((13, 2)), y, labels="local", name="small")
    message = "Task 0 .'small'. has 4 labelled rows of class 1; 4 shots need 5"
    with pytest.raises(ValueError, match=message):
        show(classifier, [task])


def test_scores_of_a_wrong_shape():
    with pytest.raises(ValueError, match="shots, steps, tasks"):
        AdaptationDisplay([1, 2], [0, 1], np.zeros((2, 3, 4))).plot()
