"""TrainingHistoryDisplay and TaskLearningCurveDisplay."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.model_selection import GridSearchCV, learning_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.dataset import ValidSplit

from sk_meta import MAMLRegressor, TaskTransformer, task_scorer
from sk_meta.inspection import TaskLearningCurveDisplay, TrainingHistoryDisplay


def history(train, valid=None, **options):
    rows = [{"train_loss": loss} for loss in train]
    for row, loss in zip(rows, valid or [], strict=False):
        row["valid_loss"] = loss
    ax = Figure().subplots()
    return TrainingHistoryDisplay.from_history(rows, ax=ax, **options)


def test_history_of_an_estimator(sines, small_net):
    net = small_net(train_split=ValidSplit(4)).set_params(max_epochs=4)
    meta = MAMLRegressor(net, random_state=0).fit(sines)
    ax = Figure().subplots()
    display = TrainingHistoryDisplay.from_estimator(meta, ax=ax)
    for line, name in zip(display.lines_, ("train_loss", "valid_loss"), strict=True):
        assert line.get_ydata().tolist() == meta.history_[:, name]
        assert line.get_xdata().tolist() == [1, 2, 3, 4]
    best = int(np.argmin(meta.history_[:, "valid_loss"])) + 1
    assert display.best_epoch_ == best and display.best_.get_xdata()[0] == best


def test_without_validation_there_is_no_best_epoch():
    display = history([3.0, 2.0])
    assert display.best_epoch_ is None and display.best_ is None
    assert len(display.lines_) == 1


def test_best_epoch_and_missing_losses():
    assert history([3, 2, 1, 1], [4, np.nan, 2, 3]).best_epoch_ == 3
    assert history([3, 2], [np.nan, np.nan]).best_epoch_ is None
    assert np.isnan(history([3, 2, 1], [5, 4]).valid_loss[2])


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([100, 1], "log"), ([2, 1], "linear"), ([100, -1], "linear"), ([1, 0], "linear")],
)
def test_the_axis_is_logarithmic_where_the_range_is_wide(losses, scale):
    assert history(losses).ax_.get_yscale() == scale


def test_smoothing():
    rough = [3.0, 1.0, 3.0, 1.0]
    display = history(rough, smoothing=0.9)
    smooth = display.lines_[0].get_ydata()
    assert smooth[0] == 3.0 and np.ptp(smooth[1:]) < 1.0
    assert display.ax_.lines[0].get_ydata().tolist() == rough  # in the background
    np.testing.assert_allclose(
        history([2.0] * 5, smoothing=0.5).lines_[0].get_ydata(), 2.0
    )
    best = history([1, 1, 1], [3, 1, 2], smoothing=0.9)
    assert best.best_epoch_ == 2


def test_bad_histories():
    with pytest.raises(ValueError, match="has 0 epochs"):
        history([])
    with pytest.raises(ValueError, match="has 2 epochs, of which 1"):
        TrainingHistoryDisplay.from_history([{"train_loss": 1.0}, {}])
    for smoothing in (1.0, -0.1):
        with pytest.raises(ValueError, match="smoothing must be"):
            history([1.0], smoothing=smoothing)
    with pytest.raises(ValueError, match="2 losses for 1 epochs"):
        TrainingHistoryDisplay([1], [1.0, 2.0]).plot()


def test_learning_curve_is_sklearns(sines, small_net):
    meta = MAMLRegressor(small_net(), random_state=0)
    options = {"train_sizes": [2, 6], "cv": 3}
    ax = Figure().subplots()
    display = TaskLearningCurveDisplay.from_estimator(meta, sines[:9], ax=ax, **options)
    sizes, train, test = learning_curve(meta, sines[:9], None, **options)
    np.testing.assert_array_equal(display.train_sizes, sizes)
    np.testing.assert_array_equal(display.train_scores, train)
    np.testing.assert_array_equal(display.test_scores, test)
    assert ax.get_xlabel() == "Number of training tasks" and ax.get_ylabel() == "R²"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["Training tasks", "New tasks"]


def test_learning_curve_by_a_metric_of_rows(sines, small_net):
    pipe = make_pipeline(TaskTransformer(StandardScaler()), MAMLRegressor(small_net()))
    search = GridSearchCV(pipe, {"mamlregressor__inner_lr": [0.1]}, cv=2)
    for model, name in ((pipe, "R²"), (search, "R²")):
        display = TaskLearningCurveDisplay.from_estimator(
            model,
            sines[:6],
            train_sizes=[3, 4],
            cv=[([0, 1, 2, 3], [4, 5])],
            score_type="test",
            std_display_style="errorbar",
            ax=Figure().subplots(),
        )
        assert display.ax_.get_ylabel() == name
    metric = "neg_mean_squared_error"
    meta = MAMLRegressor(small_net(), random_state=0)
    display = TaskLearningCurveDisplay.from_estimator(
        meta,
        sines[:6],
        train_sizes=[3, 4],
        cv=[([0, 1, 2, 3], [4, 5])],
        scoring=metric,
        ax=Figure().subplots(),
    )
    expected = task_scorer(metric)(meta.fit(sines[:4]), sines[4:6])
    assert display.test_scores[1, 0] == pytest.approx(expected)
    assert display.ax_.get_ylabel() == "Negative mean squared error"
