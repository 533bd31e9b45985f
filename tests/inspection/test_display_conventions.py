"""What all displays share: Axes, pyplot, unfitted learners, imports."""

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from sk_meta import MAMLRegressor, TaskNet, TaskTransformer
from sk_meta.inspection import (
    AdaptationDisplay,
    BeforeAfterDisplay,
    FeatureImportanceDisplay,
    GainDisplay,
    LayerChangeDisplay,
    TaskLearningCurveDisplay,
    TaskMapDisplay,
    TrainingHistoryDisplay,
)

FROM_ESTIMATOR = {
    AdaptationDisplay: lambda make, model, tasks, ax: make(
        model, tasks, n_steps=[0, 1], n_shots=[2, 4], ax=ax
    ),
    BeforeAfterDisplay: lambda make, model, tasks, ax: make(model, tasks[0], ax=ax),
    FeatureImportanceDisplay: lambda make, model, tasks, ax: make(
        model, tasks, n_repeats=1, task=0, ax=ax
    ),
    GainDisplay: lambda make, model, tasks, ax: make(model, tasks, ax=ax),
    LayerChangeDisplay: lambda make, model, tasks, ax: make(model, tasks, ax=ax),
    TaskMapDisplay: lambda make, model, tasks, ax: make(model, tasks, ax=ax),
    TrainingHistoryDisplay: lambda make, model, tasks, ax: make(model, ax=ax),
}
NEED_A_NET = [TrainingHistoryDisplay, LayerChangeDisplay]


def draw(display, model, tasks, ax=None):
    return FROM_ESTIMATOR[display](display.from_estimator, model, tasks, ax)


def curve(ax=None):
    display = TaskLearningCurveDisplay(
        train_sizes=np.array([2, 4]),
        train_scores=np.array([[0.4, 0.5], [0.5, 0.6]]),
        test_scores=np.array([[0.2, 0.3], [0.3, 0.6]]),
        score_name="Accuracy",
    )
    return display.plot(ax)


@pytest.fixture(params=[*FROM_ESTIMATOR, TaskLearningCurveDisplay])
def drawing(request, maml, sines):
    """A function of Axes that draws."""
    if request.param is TaskLearningCurveDisplay:
        return curve
    return lambda ax=None: draw(request.param, maml, sines[8:], ax)


def test_given_axes_are_used_and_pyplot_is_not(drawing):
    figure = Figure()
    ax = figure.subplots()
    before = dict(mpl.rcParams)
    display = drawing(ax)
    assert display.ax_ is ax and display.figure_ is figure
    assert ax.has_data() and ax.get_xlabel() and ax.get_ylabel()
    assert plt.get_fignums() == [] and dict(mpl.rcParams) == before
    figure.draw_without_rendering()


def test_the_current_axes_stay_current(drawing):
    _, (given, current) = plt.subplots(1, 2)
    plt.sca(current)
    drawing(given)
    assert plt.gca() is current and not current.has_data()
    assert len(plt.get_fignums()) == 1


def test_plot_draws_again_on_a_figure_of_its_own(drawing):
    display = drawing(Figure().subplots())
    first = display.ax_
    assert display.plot() is display
    assert display.ax_ is not first and len(plt.get_fignums()) == 1
    assert display.ax_.get_xlabel() == first.get_xlabel()


@pytest.mark.parametrize("display", FROM_ESTIMATOR)
@pytest.mark.parametrize("kind", ["learner", "pipeline", "search"])
def test_before_fit(display, kind, sines):
    model = MAMLRegressor(TaskNet())
    if kind == "pipeline":
        model = make_pipeline(TaskTransformer(StandardScaler()), model)
    if kind == "search":
        model = GridSearchCV(model, {"inner_lr": [0.1]})
    with pytest.raises(NotFittedError, match=f"not fitted.*{display.__name__}"):
        draw(display, model, sines[8:])
    assert plt.get_fignums() == []


@pytest.mark.parametrize("display", FROM_ESTIMATOR)
def test_what_is_no_meta_learner(display, sines):
    with pytest.raises(TypeError, match="Expected a meta-learner"):
        draw(display, "maml", sines[8:])


@pytest.mark.parametrize("display", FROM_ESTIMATOR)
def test_pipelines_searches_and_frozen_learners(display, sines, maml, small_net):
    scaler = TaskTransformer(StandardScaler())
    pipe = make_pipeline(scaler, MAMLRegressor(small_net(), random_state=0))
    grid = {"mamlregressor__inner_lr": [0.05]}
    search = GridSearchCV(pipe, grid, cv=2).fit(sines[:8])
    for model in (search, search.best_estimator_, FrozenEstimator(maml)):
        assert draw(display, model, sines[8:]).ax_.has_data()


@pytest.mark.parametrize("display", FROM_ESTIMATOR)
def test_the_learner_stays_as_it_is(display, maml, sines):
    before = maml.predict(sines[8:])
    state = dict(vars(maml)), dict(vars(maml.learner_))
    draw(display, maml, sines[8:])
    assert (dict(vars(maml)), dict(vars(maml.learner_))) == state
    for old, new in zip(before, maml.predict(sines[8:]), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("display", NEED_A_NET)
def test_learners_without_a_net_are_refused_where_one_is_needed(
    display, without_net, sines
):
    with pytest.raises(TypeError, match="WithoutNet"):
        draw(display, without_net, sines[8:])


@pytest.mark.parametrize("display", [d for d in FROM_ESTIMATOR if d not in NEED_A_NET])
def test_learners_without_a_net(display, without_net, sines):
    assert draw(display, without_net, sines[8:]).ax_.has_data()


def test_without_matplotlib(monkeypatch):
    from sk_meta.inspection import _shared

    monkeypatch.setattr(_shared, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="sk_meta\\[plot\\]"):
        GainDisplay([0.1]).plot()


def test_importing_is_cheap():
    code = (
        "import sys, sk_meta.inspection as i; "
        "heavy = {'torch', 'sklearn', 'matplotlib', 'numpy'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "assert set(i.__all__) <= set(dir(i)); "
        "assert all(callable(getattr(i, name)) for name in i.__all__); "
        "assert 'matplotlib' not in sys.modules; "
        "from sk_meta.inspection import CompressionDisplay; "
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
    import sk_meta.inspection

    with pytest.raises(AttributeError, match="no attribute 'NoDisplay'"):
        sk_meta.inspection.NoDisplay  # noqa: B018
