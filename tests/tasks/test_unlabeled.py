"""Unlabelled rows in episodes and in tasks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_meta import EpisodeSampler, Task
from sk_meta.tasks.encoding import EncodedTasks
from sk_meta.tasks.unlabeled import labeled_rows, mark_unlabeled
from sk_meta.tasks.validation import Schema, check_tasks

N_CLASSES, N_EACH = 10, 8
Y = np.random.default_rng(0).permutation(np.repeat(np.arange(N_CLASSES), N_EACH))
X = np.arange(2.0 * len(Y)).reshape(len(Y), 2)
GROUPS = Y // 5
# Three labelled rows of each class.
LABELED = np.array([(Y[:i] == Y[i]).sum() < 3 for i in range(len(Y))])


@given(
    n_unlabeled=st.integers(1, 4),
    n_distractors=st.integers(0, 2),
    masked=st.booleans(),
    grouped=st.booleans(),
    random_state=st.integers(0, 5),
)
def test_hidden_rows(n_unlabeled, n_distractors, masked, grouped, random_state):
    """Their number by class, where they come from, and what an episode tells of them"""
    sampler = EpisodeSampler(
        X,
        Y,
        3,
        1,
        2,
        10,
        GROUPS if grouped else None,
        random_state,
        n_unlabeled,
        n_distractors,
        LABELED if masked else None,
    )
    for task in sampler:
        hidden = ~task.labeled
        assert hidden.sum() == sampler.n_hidden == n_unlabeled * (3 + n_distractors)
        assert task.support[hidden].all() and task.support.sum() == 3 + hidden.sum()
        assert len(set(task.rows.tolist())) == len(task)
        truth, own = Y[task.rows], np.unique(Y[task.rows][task.labeled])
        np.testing.assert_array_equal(task.y[~hidden], truth[~hidden])
        assert set(task.y[hidden].tolist()) == {task.y[0]}, "a label is not hidden"
        classes, counts = np.unique(truth[hidden], return_counts=True)
        assert (counts == n_unlabeled).all() and len(classes) == 3 + n_distractors
        assert np.isin(own, classes).all() and len(own) == 3
        if masked:
            np.testing.assert_array_equal(LABELED[task.rows], task.labeled)
        if grouped:
            assert len(set((truth // 5).tolist())) == 1


@given(st.integers(0, 3), st.integers(0, 2), st.integers(-2, 3), st.booleans())
def test_other_rows_do_not_depend_on_hidden_ones(
    n_unlabeled, n_distractors, random_state, uneven
):
    y = np.where(np.arange(len(Y)) < 9, 5, Y) if uneven else Y
    n_distractors = min(n_distractors, n_unlabeled)
    few = EpisodeSampler(X, y, 3, 1, 1, 30, None, random_state)
    more = EpisodeSampler(
        X, y, 3, 1, 1, 30, None, random_state, n_unlabeled, n_distractors
    )
    rows, codes = few.draw(np.arange(30))
    drawn, marked = more.draw(np.arange(30))
    kept = marked >= 0
    np.testing.assert_array_equal(drawn[kept].reshape(rows.shape), rows)
    np.testing.assert_array_equal(marked[kept].reshape(codes.shape), codes)
    alone = [more.draw(np.array([i]))[0][0] for i in range(30)]
    np.testing.assert_array_equal(alone, drawn)
    again = more.replace_table(2 * X)
    np.testing.assert_array_equal(again.draw(np.arange(30))[0], drawn)
    if n_unlabeled:
        np.testing.assert_array_equal(again[3].labeled, more[3].labeled)
        moved = more[3].replace_table(X)
        np.testing.assert_array_equal(moved.labeled, more[3].labeled)


def test_all_rows_get_hidden_and_their_order_tells_nothing():
    sampler = EpisodeSampler(X, Y, 3, 1, 2, 400, n_unlabeled=3, n_distractors=2)
    tasks = sampler[:]
    counts = np.bincount(np.concatenate([t.rows[~t.labeled] for t in tasks]))
    assert len(counts) == len(Y) and counts.min() > 0.5 * counts.mean()
    # The first hidden row is of any of the five classes, own or distractor.
    first = [np.flatnonzero(~task.labeled)[0] for task in tasks]
    own = [Y[task.rows[i]] in task.y for task, i in zip(tasks, first, strict=True)]
    assert 0.5 < np.mean(own) < 0.7
    assert "n_unlabeled=3, n_distractors=2" in repr(sampler)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_unlabeled": -1}, "n_unlabeled must be 0 or more, got -1"),
        ({"n_distractors": -1}, "n_distractors must be 0 or more, got -1"),
        ({"n_unlabeled": 0}, "n_distractors is 2, but n_unlabeled is 0"),
        (
            {"n_unlabeled": 6},
            r"10 of 10 classes .* n_shot \+ n_query \+ n_unlabeled = 9 rows; .*0.* 8",
        ),
        ({"labeled": LABELED, "n_query": 3}, r"n_shot \+ n_query = 4 labelled rows"),
        ({"labeled": LABELED, "n_unlabeled": 6}, "n_unlabeled = 6 unlabelled rows"),
        ({"labeled": LABELED[:4]}, r"mask of 80 values .* shape \(4,\)"),
        ({"labeled": LABELED.astype(int)}, "mask of 80 values .* dtype int64"),
        ({"n_distractors": 8}, r"n_way \+ n_distractors is 11, but X has 10 classes"),
        ({"n_distractors": 3, "groups": GROUPS}, "the largest group has 5"),
    ],
)
def test_errors_of_samplers(changed, message):
    arguments = {"n_way": 3, "n_query": 2, "n_unlabeled": 2, "n_distractors": 2}
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(X, Y, **{**arguments, **changed})


def test_values_that_mark_unlabelled_rows():
    expected = [True, False, True]
    for y, unlabeled in (
        ([2, -1, 3], -1),
        ([2.0, -1.0, 3.0], -1),
        (["a", "?", "b"], "?"),
        (np.array(["a", -1, "b"], dtype=object), -1),
        (np.array([[2], [-1], [3]]), -1),
    ):
        np.testing.assert_array_equal(labeled_rows(y, unlabeled), expected)
    for y, unlabeled in (([2, -1, 3], None), (["a", "b"], -1), ([1, 2, 3], "?")):
        assert labeled_rows(y, unlabeled).all()
    with pytest.raises(ValueError, match="Set unlabeled='-1', or pass np.array"):
        labeled_rows(["a", -1, "b"], -1)


def test_tasks_are_marked_on_a_copy():
    task = Task(np.eye(4), [0, 1, -1, -1], labeled=[True, False, True, True])
    marked = mark_unlabeled(task, -1)
    assert marked.labeled.tolist() == [True, False, False, False]
    assert task.labeled.tolist() == [True, False, True, True]
    assert mark_unlabeled(task, None) is task is mark_unlabeled(task, 7)
    (pair,) = check_tasks([(np.eye(3), [0, -1, 1])], unlabeled=-1)
    assert pair.labeled.tolist() == [True, False, True]
    sampler = EpisodeSampler(X, Y, 3, 1, 2, 5)
    assert check_tasks(sampler, unlabeled=-1) is sampler
    with pytest.raises(ValueError, match="has a class 4, the value of unlabelled rows"):
        check_tasks(sampler, unlabeled=4)


@given(st.integers(0, 20), st.sampled_from([1, 2, 0.5]), st.booleans())
def test_unlabelled_rows_join_the_support_set(seed, size, evaluating):
    rng = np.random.default_rng(seed)
    tasks = []
    for i in range(5):
        n = 12 + i
        labeled = np.arange(n) % 4 != 0 if i % 2 else None
        support = rng.permutation(n) < 8 if i == 3 else None
        if i != 3 and labeled is not None:
            labeled = rng.permutation(labeled)
        tasks.append(
            Task(np.arange(n)[:, None], np.arange(n) % 2, support, labeled=labeled)
        )
    schema = Schema.from_tasks(tasks, True, uses_unlabeled=True)
    encoded = EncodedTasks(tasks, schema, size, 0, True)
    visits = encoded.visits(np.arange(5), None if evaluating else rng)
    for i, task in enumerate(tasks):
        labeled = np.ones(len(task), bool) if task.labeled is None else task.labeled
        at, n_support, n_query = visits.at[i], visits.n_support[i], visits.n_query[i]
        rows = visits.slots[at : at + n_support + n_query] - encoded.first[i]
        assert len(set(rows.tolist())) == len(rows)
        support, query = rows[:n_support], rows[n_support:]
        assert labeled[query].all()
        y = encoded.y[visits.slots[at : at + n_support]]
        np.testing.assert_array_equal(y == -1, ~labeled[support])
        if i != 3:
            assert set(np.flatnonzero(~labeled)) <= set(support.tolist())
            assert len(rows) == len(task)
        else:
            assert set(support.tolist()) == set(np.flatnonzero(task.support))
        if isinstance(size, int) and i != 3:
            assert np.bincount(y[y >= 0]).tolist() == [size, size]


def test_a_query_row_without_label_is_left_out_or_predicted():
    labeled = np.array([True, True, False, True, True, False])
    task = Task(np.eye(6), [0, 1] * 3, [0, 1, 2], labeled=labeled, labels="local")
    schema = Schema.from_tasks([task], True, uses_unlabeled=True)
    for scored, expected in ((True, [3, 4]), (False, [3, 4, 5])):
        support, query = EncodedTasks([task], schema, 1, 0, scored).evaluation_draw(0)
        assert support.tolist() == [0, 1, 2] and query.tolist() == expected
