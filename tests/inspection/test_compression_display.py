"""CompressionDisplay: what it shows, where it writes, and what it leaves alone."""

from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

mpl.use("Agg")
import matplotlib.pyplot as plt

from sk_meta import PrototypicalClassifier, TaskNet, evaluate
from sk_meta.inspection import CompressionDisplay, pareto
from sk_meta.tasks import make_blob_tasks

NAMES = ["dense", "dense, trained on", "slim 50 %", "slim 75 %", "distilled", "alone"]
SCORES = [0.934, 0.936, 0.921, 0.88, 0.90, 0.85]
KILOBYTES = [460, 460, 170, 70, 42, 42]
MILLISECONDS = [0.9, 0.91, 0.5, 0.33, 0.26, 0.26]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def show(ax=None, **options):
    return CompressionDisplay.from_values(
        NAMES, SCORES, KILOBYTES, MILLISECONDS, ax=ax, **options
    )


def labels_of(ax):
    return [text for text in ax.texts if text.get_text()]  # lines to them have none


def line_of(ax):
    return next(line for line in ax.lines if line.get_label() == "Pareto line")


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=12)
)
def test_pareto_line_is_of_those_that_none_beats(pairs):
    costs, scores = np.array(pairs, dtype=float).T
    best = pareto(costs, scores)
    assert (np.diff(costs[best]) > 0).all() and (np.diff(scores[best]) > 0).all()
    for i in range(len(pairs)):
        at_least = (costs <= costs[i]) & (scores >= scores[i])
        better = at_least & ((costs < costs[i]) | (scores > scores[i]))
        if i in best:
            assert not better.any()
        else:  # beaten, or equalled by one on the line
            assert at_least[best].any()


def test_panels_show_size_and_time():
    display = show(score_name="accuracy", intervals=np.full(6, 0.01))
    left, right = display.ax_
    assert display.figure_ is left.figure is right.figure
    assert "KB" in left.get_xlabel() and "ms" in right.get_xlabel()
    assert left.get_ylabel() == "accuracy"
    for ax, costs in zip(display.ax_, (KILOBYTES, MILLISECONDS), strict=True):
        shown = ax.collections[-1].get_offsets()
        np.testing.assert_array_equal(shown, np.c_[costs, SCORES])
        assert sorted(text.get_text() for text in labels_of(ax)) == sorted(NAMES)
        costs, scores = np.array(costs), np.array(SCORES)
        best = pareto(costs, scores)
        np.testing.assert_array_equal(line_of(ax).get_xdata(), costs[best])
        np.testing.assert_array_equal(line_of(ax).get_ydata(), scores[best])


def test_names_do_not_overlap_and_stay_inside():
    display = show(intervals=np.full(6, 0.01))
    display.figure_.draw_without_rendering()
    for ax in display.ax_:
        boxes = [text.get_window_extent() for text in labels_of(ax)]
        frame = ax.get_window_extent()
        for box in boxes:
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1
            assert frame.y0 <= box.y0 and box.y1 <= frame.y1
        for a, b in combinations(boxes, 2):
            assert not a.overlaps(b)
        points = ax.transData.transform(ax.collections[-1].get_offsets())
        assert not any(box.contains(*point) for box in boxes for point in points)


def test_order_of_the_models_changes_nothing():
    order = [3, 5, 0, 2, 4, 1]
    there, here = (
        show(),
        CompressionDisplay.from_values(
            *([column[i] for i in order] for column in (NAMES, SCORES, KILOBYTES)), None
        ),
    )
    first, second = (line_of(display.ax_[0]).get_xydata() for display in (there, here))
    np.testing.assert_array_equal(first, second)


def test_one_cost_has_one_panel():
    display = CompressionDisplay.from_values(["a", "b"], [1, 2], None, [3.0, 4.0])
    assert len(display.ax_) == 1 and "ms" in display.ax_[0].get_xlabel()


def test_given_axes_are_used_and_pyplot_is_left_alone():
    _, (left, right, current) = plt.subplots(1, 3)
    before = dict(mpl.rcParams)
    plt.sca(current)
    display = show(ax=[left, right])
    assert list(display.ax_) == [left, right]
    assert plt.gca() is current and len(plt.get_fignums()) == 1
    assert not current.has_data()
    assert dict(mpl.rcParams) == before
    again = display.plot()
    assert again is display and len(plt.get_fignums()) == 2


def test_axes_of_a_figure_that_pyplot_does_not_know():
    figure = mpl.figure.Figure()
    part, _ = figure.subfigures(1, 2)
    display = show(ax=part.subplots(2, 1))
    assert display.figure_ is part
    assert plt.get_fignums() == []


def test_from_estimators(monkeypatch):
    """Scores are those of `evaluate`; sizes are measured by another test."""
    from sk_meta.inspection import compression
    from sk_meta.onnx.report import SizeReport

    *old, a, b, c = make_blob_tasks(13, n_classes=2, labels="local", random_state=0)
    net = TaskNet(max_epochs=1, module__hidden=(4,))
    meta = PrototypicalClassifier(net, random_state=0).fit(old)
    report = SizeReport(10.0, 8.0, adapt_ms=0.5)
    monkeypatch.setattr(compression, "size_report", lambda model, task: report)
    display = CompressionDisplay.from_estimators({"one": meta, "same": meta}, [a, b, c])
    expected = evaluate(meta, [a, b, c])
    np.testing.assert_array_equal(display.scores, [expected.mean] * 2)
    np.testing.assert_allclose(display.scores + display.intervals, expected.interval[1])
    assert display.kilobytes.tolist() == [10.0, 10.0]
    assert display.milliseconds.tolist() == [0.5, 0.5]
    assert "accuracy" in display.ax_[0].get_ylabel()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], [], []), "nothing to show"),
        ((["a"], [1, 2], [1], [1]), "scores has shape"),
        ((["a"], [1], [1, 2], [1]), "kilobytes has shape"),
        ((["a"], [1], None, None), "both None"),
        ((["a"], [np.nan], [1], [1]), "scores contains NaN"),
        ((["a"], [1], [0], [1]), "kilobytes must be above 0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        CompressionDisplay.from_values(*arguments)
    assert plt.get_fignums() == []


def test_wrong_number_of_axes():
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="must hold 2 Axes.*got 1"):
        show(ax=ax)
    assert not ax.has_data()
