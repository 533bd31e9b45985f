import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_meta import tasks_from_groups


@given(st.lists(st.sampled_from(["ann", "bob", "eve", "zoe"]), min_size=1, max_size=30))
def test_order_of_tasks_and_of_rows(groups):
    n = len(groups)
    X, y = np.arange(2.0 * n).reshape(n, 2), np.arange(n)
    tasks = tasks_from_groups(X, y, groups, sample_weight=10.0 * y)
    assert [task.name for task in tasks] == list(dict.fromkeys(groups))
    for task in tasks:
        rows = [i for i, group in enumerate(groups) if group == task.name]
        assert task.y.tolist() == rows
        np.testing.assert_array_equal(task.X, X[rows])
        np.testing.assert_array_equal(task.sample_weight, 10.0 * y[rows])
        assert task.support is None


def test_tables_groups_of_numbers_and_options():
    table = pd.DataFrame({"a": [1, 2, 3], "id": [9, 7, 9]})
    tasks = tasks_from_groups(table[["a"]], [[1, 2]] * 3, table["id"], labels="local")
    assert [task.name for task in tasks] == ["9", "7"]
    assert [task.X["a"].tolist() for task in tasks] == [[1, 3], [2]]
    assert tasks[0].y.shape == (2, 2) and tasks[0].labels == "local"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": [1]}, "X has 3 rows, y 1, groups 3; they must agree"),
        ({"groups": [1, 2]}, "X has 3 rows, y 3, groups 2"),
        ({"groups": [1.0, np.nan, 2.0]}, r"1 missing value\(s\), the first in row 1"),
        ({"groups": np.array(["a", "b", None])}, r"the first in row 2"),
        ({"groups": pd.Series(["a", None, "b"])}, r"the first in row 1"),
        ({"sample_weight": np.ones(4)}, r"has shape \(4,\); expected \(3,\)"),
        ({"labels": "own"}, "must be 'shared' or 'local'"),
    ],
)
def test_errors(changed, message):
    arguments = {"X": np.ones((3, 1)), "y": [1, 2, 3], "groups": ["a", "b", "a"]}
    with pytest.raises(ValueError, match=message):
        tasks_from_groups(**{**arguments, **changed})
