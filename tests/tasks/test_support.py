import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_meta import Task
from sk_meta.tasks.support import (
    check_support_size,
    draw_size,
    draw_support,
    draw_supports,
    evaluation_generator,
    rows_drawn,
)

CODES = st.lists(st.integers(0, 3), min_size=1, max_size=30).map(np.array)
SIZES = st.one_of(st.integers(1, 6), st.floats(0.01, 0.99))
SEEDS = st.integers(0, 1000)


@given(CODES, SIZES, SEEDS)
def test_draws_of_classes_are_stratified(codes, size, seed):
    rows = draw_support(codes, np.arange(len(codes)), size, np.random.default_rng(seed))
    assert len(set(rows.tolist())) == len(rows)
    for code in np.unique(codes):
        n, drawn = np.sum(codes == code), np.sum(codes[rows] == code)
        wanted = round(size * n) if isinstance(size, float) else size
        assert drawn == max(1, min(wanted, n - 1))


@given(st.integers(1, 30), SIZES, SEEDS)
def test_draws_of_a_regression_task(n, size, seed):
    rows = draw_support(None, np.arange(n), size, np.random.default_rng(seed))
    assert len(set(rows.tolist())) == len(rows)
    wanted = round(size * n) if isinstance(size, float) else size
    assert len(rows) == max(1, min(wanted, n - 1))


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1),
    SIZES,
    SEEDS,
)
def test_draws_for_many_tasks_at_once(tasks, size, seed):
    """Strata of tasks, given by their sizes."""
    n_rows = np.array([n for strata in tasks for n in strata])
    task = np.repeat(np.arange(len(tasks)), [len(strata) for strata in tasks])
    rng = np.random.default_rng(seed)
    for of_classes in (True, False):
        if not of_classes:
            n_rows, task = np.bincount(task, n_rows).astype(int), np.arange(len(tasks))
        order = draw_supports(n_rows, task, size, of_classes, rng)
        assert sorted(order) == list(range(n_rows.sum()))
        stratum = np.repeat(np.arange(len(n_rows)), n_rows)
        n_drawn, start = rows_drawn(n_rows, size), 0
        for i in range(len(tasks)):
            strata = np.flatnonzero(task == i)
            mine = stratum[order[start : start + n_rows[strata].sum()]]
            assert set(mine) == set(strata)  # tasks stay apart
            support = mine[: n_drawn[strata].sum()]
            counts = np.bincount(support, minlength=len(n_rows))[strata]
            np.testing.assert_array_equal(counts, n_drawn[strata])
            start += len(mine)


def test_of_many_tasks_every_row_gets_its_turn_and_no_order_is_kept():
    rng, n_rows, task = np.random.default_rng(0), np.full(4, 5), np.array([0, 0, 1, 1])
    draws = np.stack([draw_supports(n_rows, task, 2, True, rng) for _ in range(200)])
    for start in (0, 10):
        support = draws[:, start : start + 4] - start
        assert np.bincount(support.ravel(), minlength=10).min() > 40  # expected: 80
        assert 20 < (support[:, 0] < 5).sum() < 180


@given(CODES, SEEDS)
def test_unusable_rows_are_never_drawn(codes, seed):
    usable = np.flatnonzero(np.arange(len(codes)) % 3 != 1)
    rows = draw_support(codes, usable, 2, np.random.default_rng(seed))
    assert set(rows.tolist()) <= set(usable.tolist())
    assert set(codes[rows].tolist()) == set(codes[usable].tolist())


def test_every_row_gets_its_turn_and_no_order_is_kept():
    rng = np.random.default_rng(0)
    draws = [
        draw_support(np.array([0] * 5 + [1] * 5), np.arange(10), 2, rng)
        for _ in range(200)
    ]
    counts = np.bincount(np.concatenate(draws), minlength=10)
    assert counts.min() > 40  # expected: 80
    assert 20 < sum(draw[0] < 5 for draw in draws) < 180


@pytest.mark.parametrize("size", [(1, 3), (0.2, 0.6)])
def test_sizes_are_drawn_from_their_range(size):
    drawn = [draw_size(size, np.random.default_rng(i)) for i in range(100)]
    assert all(size[0] <= value <= size[1] for value in drawn)
    assert {type(value) for value in drawn} == {type(size[0])}
    if size == (1, 3):
        assert set(drawn) == {1, 2, 3}
    else:
        assert np.ptp(drawn) > 0.3


@pytest.mark.parametrize("size", [3, 0.5])
def test_a_fixed_size_is_itself(size):
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert draw_size(size, rng) == size
    assert rng.bit_generator.state == before


@pytest.mark.parametrize("size", [1, 5, np.int64(2), 0.5, (1, 5), (3, 3), (0.1, 0.9)])
def test_valid_support_sizes(size):
    check_support_size(size)


@pytest.mark.parametrize(
    "size",
    [0, -1, 0.0, 1.0, 2.5, True, None, "5", (), (1,) * 3, (5, 1), (1, 0.5), [1, 5]],
)
def test_invalid_support_sizes(size):
    with pytest.raises(ValueError, match="support_size must be"):
        check_support_size(size)


def draw(task, seed):
    return evaluation_generator(task, seed).permutation(100).tolist()


def test_evaluation_draws_depend_on_the_seed_and_y_alone():
    X, y = np.ones((4, 2)), np.array([0, 1, 0, 1])
    task = Task(X, y)
    others = (Task(5 * X, y, name="b"), Task(np.ones((4, 7)), y.tolist(), metadata=3))
    assert all(draw(other, 0) == draw(task, 0) for other in others)
    assert draw(task, 1) != draw(task, 0)
    assert draw(Task(X, 1 - y), 0) != draw(task, 0)
    assert draw(Task(X, y + 0.5), 0) != draw(task, 0)
