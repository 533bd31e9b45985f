import numpy as np
import pandas as pd
import pytest

from sk_meta import Task
from sk_meta.tasks.validation import check_tasks

X, y = np.arange(12.0).reshape(6, 2), np.array([0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize(
    "support",
    [
        [0, 3],
        np.array([3, 0], dtype=np.int32),
        [-6, -3],
        [0, 3, 3],
        np.array([True, False, False, True, False, False]),
        [True, False, False, True, False, False],
    ],
)
def test_masks_and_positions_mean_the_same(support):
    task = Task(X, y, support=support)
    assert task.support.dtype == bool
    np.testing.assert_array_equal(np.flatnonzero(task.support), [0, 3])
    np.testing.assert_array_equal(task.X_support, X[[0, 3]])
    np.testing.assert_array_equal(task.y_support, y[[0, 3]])
    np.testing.assert_array_equal(task.X_query, X[[1, 2, 4, 5]])
    np.testing.assert_array_equal(task.y_query, y[[1, 2, 4, 5]])


def test_a_mask_is_copied_and_rows_are_not():
    mask = np.arange(6) < 2
    task = Task(X, y, support=mask)
    mask[:] = True
    assert task.support.sum() == 2
    assert np.shares_memory(task.X, X) and np.shares_memory(task.y, y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": None}, r"y of task 'ann' is missing. Pass y"),
        ({"y": y[:4]}, r"y of task 'ann' has 4 entries, but X has 6 rows"),
        ({"y": 1}, r"y of task 'ann' has a scalar, but X has 6 rows"),
        ({"X": X[:, 0]}, r"has 1 dimension\(s\); expected at least 2. Reshape"),
        ({"labels": "own"}, r"must be 'shared' or 'local', got 'own'"),
        ({"support": [0, 6]}, r"holds row 6, but X has 6 rows"),
        ({"support": [-7]}, r"holds row -7, but X has 6 rows"),
        ({"support": [True, False]}, r"mask of shape \(2,\), but X has 6 rows"),
        ({"support": [0.0, 1.0]}, r"mask or row positions, got an array of dtype fl"),
        ({"support": [[0], [1]]}, r"mask or row positions.*shape \(2, 1\)"),
        ({"support": 2}, r"mask or row positions.*shape \(\)"),
        ({"support": ["a"]}, r"mask or row positions"),
        ({"sample_weight": [1.0]}, r"sample_weight .* has 1 entries, but X has 6"),
        ({"sample_weight": -np.ones(6)}, r"6 finite numbers of at least 0; .* -1.0"),
        ({"sample_weight": np.full(6, np.nan)}, r"finite numbers .* nan to nan"),
        ({"sample_weight": np.ones((6, 1))}, r"finite numbers .* shape \(6, 1\)"),
        ({"labeled": [True]}, r"labeled of task 'ann' has 1 entries"),
        ({"labeled": [0, 1, 2, 3, 4, 5]}, r"mask of True and False, got .* int"),
    ],
)
def test_errors_name_the_task_and_what_was_found(arguments, message):
    with pytest.raises(ValueError, match=message):
        Task(**{"X": X, "y": y, "name": "ann", **arguments})


def test_parts_of_a_task_without_a_support_set():
    task = Task(X, y)
    for part in ("X_support", "y_support", "X_query", "y_query"):
        with pytest.raises(ValueError, match="no support set of its own; pass support"):
            getattr(task, part)


def test_data_frames_stay_data_frames():
    table = pd.DataFrame({"age": range(6), "sex": list("mfmfmf")}, index=[5] * 6)
    task = Task(table, list("abcabc"), support=[0, 5])
    pd.testing.assert_frame_equal(task.X_support, table.iloc[[0, 5]])
    pd.testing.assert_frame_equal(task.X_query, table.iloc[1:5])
    assert task.y_support.tolist() == ["a", "c"]


def test_replacing_features_keeps_the_rest():
    task = Task(X, y, [0], "local", {"age": 3}, np.ones(6), y == 0, 17)
    other = task.replace_X(2 * X)
    assert np.array_equal(other.X, 2 * X) and np.array_equal(task.X, X)
    rest = [{k: v for k, v in vars(t).items() if k != "X"} for t in (task, other)]
    np.testing.assert_equal(*rest)
    assert other.name == "17" and len(other) == 6
    with pytest.raises(ValueError, match="y of task '17' has 6 entries"):
        task.replace_X(X[:4])


def test_from_support_query():
    task = Task.from_support_query(X[:2], y[:2], X[2:], y[2:], name="bob")
    np.testing.assert_array_equal(task.X, X)
    np.testing.assert_array_equal(task.y, y)
    np.testing.assert_array_equal(task.support, np.arange(6) < 2)
    assert task.labeled.all() and task.name == "bob"


@pytest.mark.parametrize("labels", [list("ab"), [0.5, 1.5], [[1, 2], [3, 4]]])
def test_query_rows_without_labels_are_marked(labels):
    task = Task.from_support_query(X[:2], labels, X[2:])
    np.testing.assert_array_equal(task.labeled, [True] * 2 + [False] * 4)
    np.testing.assert_array_equal(task.y_support, labels)
    assert task.y.dtype == np.asarray(labels).dtype and len(task.y) == 6


def test_from_support_query_of_data_frames():
    table = pd.DataFrame(X, columns=["a", "b"])
    task = Task.from_support_query(table[:2], y[:2], table[2:], y[2:])
    pd.testing.assert_frame_equal(task.X, table)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        # Their sums agree, so that joining would shift labels unseen.
        ((X[:2], y[:3], X[2:], y[3:]), "X_support has 2 rows, y_support has 3"),
        ((X[:2], y[:2], X[2:], y[2:4]), "X_query has 4 rows, y_query has 2"),
    ],
)
def test_from_support_query_checks_each_part(parts, message):
    with pytest.raises(ValueError, match=message):
        Task.from_support_query(*parts)


def test_repr():
    assert repr(Task(X, y)) == "Task(n_rows=6)"
    assert repr(Task(X, y, [0], name="a")) == "Task('a', n_rows=6, n_support=1)"


def test_pairs_become_tasks():
    tasks = check_tasks([(X, y), Task(X, y, name="ann")])
    assert [task.name for task in tasks] == ["0", "ann"]


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        ([], ValueError, "There are no tasks"),
        (Task(X, y), TypeError, r"got one Task. Pass \[task\]"),
        (X, TypeError, "got ndarray.*tasks_from_groups"),
        (pd.DataFrame(X), TypeError, "got DataFrame"),
        ([X], TypeError, "Task 0 is a ndarray. Expected a Task or a pair"),
        ([(X, y), (X, y, y)], TypeError, "Task 1 is a tuple"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_what_is_not_a_list_of_tasks(tasks, error, message):
    with pytest.raises(error, match=message):
        check_tasks(tasks)
