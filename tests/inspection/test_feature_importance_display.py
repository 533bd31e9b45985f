"""FeatureImportanceDisplay: what is shuffled, and what that does."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn.compose import make_column_transformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sk_meta import PrototypicalClassifier, Task, TaskTransformer, evaluate
from sk_meta.inspection import FeatureImportanceDisplay
from sk_meta.inspection.feature_importance import _order, _shuffled
from sk_meta.tasks import make_blob_tasks


def show(model, tasks, **options):
    ax = Figure().subplots()
    options = {"n_repeats": 2, "random_state": 0, **options}
    return FeatureImportanceDisplay.from_estimator(model, tasks, ax=ax, **options)


def names_on(ax):
    return [text.get_text() for text in ax.get_yticklabels()]


@pytest.fixture(scope="module")
def frames(shared_tasks):
    columns = ["strong", "weak", "noise"]
    return [
        Task(
            pd.DataFrame(t.X, columns=columns).assign(city=["a", "b", "c", "d"] * 6),
            t.y,
            support=t.support,
            name=t.name,
        )
        for t in shared_tasks
    ]


@pytest.fixture(scope="module")
def pipe(frames):
    from sk_meta import TaskNet

    columns = make_column_transformer(
        (StandardScaler(), ["strong", "weak"]), (OneHotEncoder(), ["city"])
    )
    net = TaskNet(module__hidden=(8,), max_epochs=2)
    meta = PrototypicalClassifier(net, random_state=0)
    return make_pipeline(TaskTransformer(columns), meta).fit(frames[:6])


def test_a_feature_that_is_not_used_loses_exactly_nothing(pipe, frames):
    display = show(pipe, frames[6:])
    strong, weak, noise, city = display.importances
    assert (noise == 0).all()
    assert strong.mean() > 0.2 and strong.mean() > max(weak.mean(), city.mean())
    assert names_on(display.ax_)[0] == "strong" == display.names[display.order_[0]]


def test_importance_is_a_difference_of_scores(pipe, frames):
    """With the query rows of one feature in the order of the first draw."""
    display = show(pipe, frames[6:8], n_repeats=1, scoring="neg_log_loss")
    rng = np.random.RandomState(0)
    # The support sets are the first rows here, as they are in the display.
    shuffled = [_shuffled(task, _order(task, rng), 0) for task in frames[6:8]]
    before, after = (
        evaluate(pipe, tasks, "neg_log_loss").scores
        for tasks in (frames[6:8], shuffled)
    )
    np.testing.assert_allclose(display.importances[0], before - after, rtol=1e-5)


def test_only_query_rows_change_places(frames):
    task = frames[0]
    order = _order(task, np.random.RandomState(0))
    assert (order[:8] == np.arange(8)).all() and (order[8:] != np.arange(8, 24)).any()
    changed = _shuffled(task, order, 1)
    pd.testing.assert_frame_equal(changed.X_support, task.X_support)
    assert sorted(changed.X["weak"]) == sorted(task.X["weak"])
    untouched = ["strong", "noise", "city"]
    pd.testing.assert_frame_equal(changed.X[untouched], task.X[untouched])
    assert list(task.X["weak"]) != list(changed.X["weak"])


def test_transformers_fitted_on_support_sets(shared_tasks, small_net):
    scaler = TaskTransformer(StandardScaler(), scope="support")
    meta = PrototypicalClassifier(small_net(), random_state=0)
    model = make_pipeline(scaler, meta).fit(shared_tasks[:6])
    display = show(model, shared_tasks[6:])
    assert display.importances.shape == (3, 4) and display.order_[0] == 0
    assert names_on(display.ax_) == [f"x{i}" for i in display.order_]


@pytest.mark.parametrize("task", [2, -2, "clinic 8"])
def test_one_task_is_marked(task, pipe, frames):
    display = show(pipe, frames[6:], task=task)
    assert display.task == 2 and display.task_name == "clinic 8"
    marked = display.marks_.get_offsets()[:, 0]
    np.testing.assert_array_equal(marked, display.importances[display.order_, 2])
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == ["all 4 tasks", "task clinic 8"]


def test_random_state(pipe, frames):
    one, same, other = (
        show(pipe, frames[6:], random_state=seed).importances for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_values_are_drawn():
    ax = Figure().subplots()
    values = np.array([[0.0, 0.1], [np.nan, 0.5], [0.2, 0.3]])
    display = FeatureImportanceDisplay.from_values(
        values, ["a", "b", "c"], score_name="Accuracy", max_features=2, ax=ax
    )
    assert display.order_.tolist() == [1, 2] and names_on(ax) == ["b", "c"]
    assert "2 most important of 3" in ax.get_ylabel()
    assert "Loss of accuracy" in ax.get_xlabel() and len(display.boxes_["boxes"]) == 2
    assert display.plot(Figure().subplots(), max_features=None).order_.size == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_repeats": 0}, "n_repeats must be 1 or more"),
        ({"n_repeats": 1.5}, "n_repeats must be 1 or more"),
        ({"task": 4}, "no task 4; there are 4"),
        ({"task": "nobody"}, "0 tasks are named 'nobody'"),
    ],
)
def test_bad_input(options, message, pipe, frames):
    with pytest.raises(ValueError, match=message):
        show(pipe, frames[6:], **options)


def test_images(small_net):
    tasks = make_blob_tasks(6, n_classes=2, n_features=4, random_state=0)
    tasks = [task.replace_X(task.X.reshape(-1, 2, 2)) for task in tasks]
    meta = PrototypicalClassifier(small_net(), random_state=0).fit(tasks)
    with pytest.raises(ValueError, match="rows of shape .2, 2.*Flatten"):
        show(meta, tasks)
    with pytest.raises(ValueError, match="2 names for 1 features"):
        FeatureImportanceDisplay.from_values([[0.1]], ["a", "b"])
    with pytest.raises(ValueError, match="task is 3, but there are 1"):
        FeatureImportanceDisplay.from_values([[0.1]], task=3)
