import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_meta import EpisodeSampler, split_classes

N_CLASSES, N_EACH = 12, 6
Y = np.random.default_rng(0).permutation(np.repeat(np.arange(N_CLASSES), N_EACH))
X = np.arange(2.0 * len(Y)).reshape(len(Y), 2)  # a row tells its position
GROUPS = Y // 4


@given(
    n_way=st.integers(2, N_CLASSES),
    n_shot=st.integers(1, 3),
    n_query=st.integers(1, 3),
    index=st.integers(0, 9),
    random_state=st.integers(0, 3),
)
def test_an_episode_has_the_rows_asked_for(n_way, n_shot, n_query, index, random_state):
    task = EpisodeSampler(X, Y, n_way, n_shot, n_query, 10, None, random_state)[index]
    assert task.labels == "local"
    classes, counts = np.unique(task.y_support, return_counts=True)
    assert len(classes) == n_way and (counts == n_shot).all()
    queried, counts = np.unique(task.y_query, return_counts=True)
    assert np.array_equal(queried, classes) and (counts == n_query).all()
    assert len(set(task.rows.tolist())) == len(task) == n_way * (n_shot + n_query)
    rows = (task.X[:, 0] / 2).astype(int)
    np.testing.assert_array_equal(rows, task.rows)
    np.testing.assert_array_equal(Y[rows], task.y)
    np.testing.assert_array_equal(np.r_[task.X_support, task.X_query], task.X)


def test_an_item_is_the_same_whenever_it_is_asked_for():
    sampler = EpisodeSampler(X, Y, 3, 1, 2, 20, random_state=5)
    forward = [task.rows.tolist() for task in sampler]
    again = EpisodeSampler(X, Y, 3, 1, 2, 20, random_state=5)
    backward = [again[i].rows.tolist() for i in reversed(range(20))][::-1]
    assert forward == backward
    assert [task.rows.tolist() for task in again[5:9]] == forward[5:9]
    assert again[-1].rows.tolist() == forward[-1]
    assert again[np.int64(3)].rows.tolist() == forward[3]
    assert len({tuple(rows) for rows in forward}) == 20
    longer = EpisodeSampler(X, Y, 3, 1, 2, 50, random_state=5)
    assert longer[7].rows.tolist() == forward[7]
    other = EpisodeSampler(X, Y, 3, 1, 2, 20, random_state=6)
    assert other[0].rows.tolist() != forward[0]


@given(st.lists(st.integers(0, 10**6 - 1), min_size=1, max_size=9), st.booleans())
def test_many_episodes_at_once_are_the_same_ones(indices, uneven):
    """With codes that are ranks of the classes, as np.unique would give."""
    y = np.where(np.arange(len(Y)) < 12, 5, Y) if uneven else Y
    sampler = EpisodeSampler(X, y, 3, 1, 2, 10**6, random_state=4)
    rows, codes = sampler.draw(np.array(indices))
    assert rows.shape == codes.shape == (len(indices), 9)
    for index, row, code in zip(indices, rows, codes, strict=True):
        np.testing.assert_array_equal(sampler[index].rows, row)
        np.testing.assert_array_equal(np.unique(y[row], return_inverse=True)[1], code)


def test_pairs_of_rows_are_drawn_independently():
    """Neighbouring episodes have no more in common than chance has it."""
    tasks = EpisodeSampler(X, Y, 3, 1, 2, 2001)[:]
    drawn = np.zeros((len(tasks), len(Y)))
    for i, task in enumerate(tasks):
        drawn[i, task.rows] = 1
    drawn -= 9 / len(Y)
    products = (drawn[1:] * drawn[:-1]).sum(axis=1)
    assert abs(products.mean()) < 4 * products.std() / np.sqrt(len(products))


def test_negative_seeds_are_seeds_too():
    found = [
        EpisodeSampler(X, Y, 3, 1, 2, random_state=seed)[0].rows.tolist()
        for seed in (-1, -1, 0, 2**63, 1)
    ]
    assert found[0] == found[1] and len(set(map(tuple, found))) >= 4


def test_global_generators_are_left_alone():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    EpisodeSampler(X, Y, 3, 1, 2)[0]
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_rows_are_not_copied():
    sampler = EpisodeSampler(X, Y, 3, 1, 2, 1000)
    assert sampler.X is X
    for task in sampler[:5]:
        assert np.shares_memory(task.table, X)
        held = [v for v in vars(task).values() if isinstance(v, np.ndarray)]
        own = [v for v in held if v is not X]
        assert sum(v.size for v in own) == 3 * len(task)  # rows, y, support


def test_all_classes_and_rows_get_their_turn():
    tasks = EpisodeSampler(X, Y, 3, 2, 1, 300)[:]
    counts = np.bincount(np.concatenate([task.rows for task in tasks]))
    assert len(counts) == len(Y) and counts.min() > 0.5 * counts.mean()
    firsts = np.bincount([task.y[0] for task in tasks])
    assert len(firsts) == N_CLASSES and firsts.min() > 0


def test_classes_of_an_episode_come_from_one_group():
    tasks = EpisodeSampler(X, Y, 3, 1, 2, 60, groups=GROUPS)
    found = [set((task.y // 4).tolist()) for task in tasks]
    assert all(len(groups) == 1 for groups in found)
    assert set.union(*found) == {0, 1, 2}


def test_groups_with_too_few_classes_are_passed_over():
    groups = np.where(Y < 2, "small", np.where(Y < 6, "middle", "large"))
    tasks = EpisodeSampler(X, Y, 4, 1, 2, 40, groups=groups)
    found = {min(task.y.tolist()) >= 6 for task in tasks}
    assert min(min(task.y) for task in tasks) >= 2 and found == {True, False}


def test_strings_tables_and_replace_table():
    table = pd.DataFrame(X, columns=["a", "b"])
    sampler = EpisodeSampler(table, Y.astype(str), 3, 1, 2, 5, GROUPS, 4)
    task = sampler[2]
    pd.testing.assert_frame_equal(task.X, table.iloc[task.rows])
    other = sampler.replace_table(2 * table)
    assert [t.rows.tolist() for t in other] == [t.rows.tolist() for t in sampler]
    pd.testing.assert_frame_equal(other[2].X, 2 * task.X)
    moved = task.replace_table(2 * table)
    pd.testing.assert_frame_equal(moved.X_query, 2 * task.X_query)
    assert repr(sampler) == "EpisodeSampler(5 episodes, n_way=3, n_shot=1, n_query=2)"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": Y[:5]}, "X has 72 rows, y has 5; they must agree"),
        ({"n_query": 6}, "12 of 12 classes have fewer .* = 7 rows; the first is .*0"),
        ({"y": np.where(np.arange(72) == 3, 99, Y)}, "1 of 13 classes.*99.* with 1"),
        ({"n_way": 13}, "n_way is 13, but X has 12 classes. Lower n_way"),
        ({"n_way": 5, "groups": GROUPS}, "n_way is 5, but the largest group has 4"),
        ({"n_way": 0}, "n_way must be 1 or more, got 0"),
        ({"n_shot": 0}, "n_shot must be 1 or more, got 0"),
        ({"n_query": 0}, "n_query must be 1 or more, got 0"),
        ({"n_episodes": 0}, "n_episodes must be 1 or more, got 0"),
        ({"groups": GROUPS[:9]}, "y has 72 rows, groups 9; they must agree"),
        ({"groups": np.arange(72) % 2}, "classes have rows in several groups"),
    ],
)
def test_errors(changed, message):
    arguments = {"X": X, "y": Y, "n_way": 3, "n_shot": 1, "n_query": 2}
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(**{**arguments, **changed})


def test_indices_out_of_range():
    sampler = EpisodeSampler(X, Y, 3, 1, 2, 5)
    for index in (5, -6):
        with pytest.raises(IndexError, match="of 5"):
            sampler[index]
    assert len(list(sampler)) == 5


@given(st.integers(0, 20), st.sampled_from([0.25, 0.5, 1, 3]))
def test_split_classes_keeps_them_apart(random_state, test_size):
    train, test = split_classes(Y, test_size, random_state=random_state)
    assert sorted([*train, *test]) == list(range(len(Y)))
    assert not set(Y[train]) & set(Y[test])
    n_test = test_size if isinstance(test_size, int) else test_size * N_CLASSES
    assert len(set(Y[test])) == n_test
    again = split_classes(Y, test_size, random_state=random_state)
    assert np.array_equal(train, again[0]) and np.array_equal(test, again[1])


def test_split_classes_by_group():
    train, test = split_classes(Y, 1, groups=GROUPS, random_state=0)
    assert len(set(GROUPS[test])) == 1
    assert not set(GROUPS[train]) & set(GROUPS[test])
    sampler = EpisodeSampler(X[test], Y[test], 3, 1, 2, 5)
    assert set(sampler.classes_) == set(Y[test])
