import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Subset

from sk_meta import EpisodeSampler, Task
from sk_meta.tasks import make_blob_tasks
from sk_meta.tasks.metadata import numeric_metadata
from sk_meta.tasks.stacking import MetaBatches, TaskDataset, cut_by_size
from sk_meta.tasks.validation import Schema


def numbered_task(number, n_support, n_query, weight=False, metadata=None):
    """A regression task; y tells task and row, X and the weights tell y."""
    y = 100.0 * number + np.arange(n_support + n_query)
    mask = np.arange(len(y)) < n_support
    return Task(
        np.stack([y, -y], axis=1),
        y,
        support=mask,
        sample_weight=1 + y if weight else None,
        metadata=metadata,
    )


def unscaled(dataset, y):
    schema = dataset.schema
    return y.numpy() * schema.target_scale + schema.target_mean


@given(
    st.lists(
        st.tuples(
            st.integers(1, 3), st.integers(1, 3), st.booleans(), st.sampled_from([0, 1])
        ),
        min_size=1,
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_ragged_tasks_are_grouped_and_none_is_lost(kinds, random):
    tasks = [
        numbered_task(i, n_support, n_query, weight, [1.0 * i] * m if m else None)
        for i, (n_support, n_query, weight, m) in enumerate(kinds)
    ]
    dataset = TaskDataset(tasks, Schema.from_tasks(tasks, False), 1, 0, "cpu")
    indices = random.sample(range(len(tasks)), random.randint(1, len(tasks)))
    batch = dataset.batch(indices)
    positions = np.concatenate([group.positions for group in batch])
    assert sorted(positions) == list(range(len(indices))) and len(batch) == len(indices)
    assert len(list(batch)) == len({kinds[i] for i in indices})
    for group in batch:
        for row, position in enumerate(group.positions):
            task = tasks[indices[position]]
            for found, of_support in ((group.support, True), (group.query, False)):
                y = task.y[task.support == of_support]
                np.testing.assert_array_equal(found.X[row].numpy()[:, 0], y)
                np.testing.assert_allclose(
                    unscaled(dataset, found.y[row])[:, 0], y, rtol=1e-4, atol=1e-3
                )
                if task.sample_weight is None:
                    assert found.weight is None
                else:
                    np.testing.assert_array_equal(found.weight[row], 1 + y)
            if task.metadata is None:
                assert group.support.metadata is None
            else:
                np.testing.assert_array_equal(
                    group.support.metadata[row], task.metadata
                )
        assert group.support.n_classes == 0


@pytest.fixture
def blobs():
    """Ten local-label tasks of three classes without a support set."""
    made = make_blob_tasks(10, n_classes=3, n_support=2, n_query=3, random_state=0)
    return [Task(t.X, t.y, labels="local") for t in made]


def assert_same(group, other, rows=slice(None)):
    """Groups hold the same tensors; of the first, `rows` alone."""
    for part in ("support", "query"):
        for found, expected in zip(
            getattr(group, part), getattr(other, part), strict=True
        ):
            if torch.is_tensor(expected):
                assert torch.equal(found[rows], expected)
            else:
                assert found == expected


def test_tasks_of_one_size_are_stacked_as_among_others(make_dataset):
    """They take a shorter way where the list has no others."""
    tasks = [numbered_task(i, 3, 4, metadata=[1.0 * i]) for i in range(8)]
    schema = Schema.from_tasks(tasks, False)
    alone = TaskDataset(tasks, schema, 1, 0, "cpu")
    among = TaskDataset([*tasks, numbered_task(8, 3, 2)], schema, 1, 0, "cpu")
    for pad in (0, 1):
        (group,), (other, _) = alone.batch([5, 2], pad=pad), among.batch([5, 2, 8])
        assert_same(group, other)
        assert group.support.X.is_contiguous() and group.query.X.is_contiguous()


@pytest.mark.parametrize("classification", [False, True])
def test_given_and_drawn_support_sets_in_one_batch(
    classification, make_dataset, make_ragged_tasks
):
    given_ones = make_ragged_tasks(classification)
    tasks = [
        Task(t.X, t.y, support=None if i in (1, 6, 9) else t.support, name=t.name)
        for i, t in enumerate(given_ones)
    ]
    dataset = make_dataset(tasks, classification, support_size=2)
    dataset.check_draws()
    for rng in (None, np.random.default_rng(0)):
        indices = [7, 0, 3, 4, 9, 6, 1]
        for group in dataset.batch(indices, rng):
            for row, position in enumerate(group.positions):
                task = tasks[indices[position]]
                _, support, query = group.draws[row]
                assert sorted([*support, *query]) == list(range(len(task)))
                for part, rows in ((group.support, support), (group.query, query)):
                    np.testing.assert_array_equal(
                        part.X[row].numpy(), task.X[rows].astype(np.float32)
                    )
                if task.support is not None:
                    assert task.support[support].all() and not task.support[query].any()
                elif not classification:
                    assert len(support) == 2


def test_the_same_generator_draws_the_same(blobs, make_dataset):
    dataset = make_dataset(blobs, support_size=(1, 3))
    first, second = (
        list(MetaBatches(dataset, 4, np.random.default_rng(5))) for _ in range(2)
    )
    for batch, other in zip(first, second, strict=True):
        for group, same in zip(batch, other, strict=True):
            assert_same(group, same)


def test_batches_stacked_in_a_row_are_those_stacked_one_by_one(blobs, make_dataset):
    dataset, rng = make_dataset(blobs * 10), np.random.default_rng(1)
    found = MetaBatches(dataset, 3, np.random.default_rng(1))
    order = rng.permutation(100)
    for i, batch in enumerate(found):
        (expected,) = dataset.batch(order[3 * i : 3 * i + 3], rng)
        (group,) = batch
        assert_same(group, expected)


SIZES = st.tuples(st.integers(1, 150), st.integers(1, 150))


def filled_up(sizes):
    return len(sizes) * sizes.max(axis=0).sum()


@given(st.lists(SIZES, min_size=1, max_size=40), st.floats(0.5, 1000))
def test_tasks_are_filled_up_where_that_is_worth_it(sizes, pad):
    sizes = np.array(sizes)
    groups = cut_by_size(sizes, pad)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(sizes)))
    rows = [filled_up(sizes[group]) for group in groups]
    assert sum(rows) + pad * (len(groups) - 1) <= filled_up(sizes)
    for group, n_rows in zip(groups, rows, strict=True):
        order = group[np.argsort(sizes[group].sum(axis=1), kind="stable")]
        for cut in range(1, len(group)):
            parts = sizes[order[:cut]], sizes[order[cut:]]
            assert n_rows - sum(map(filled_up, parts)) <= pad


@pytest.mark.parametrize(("pad", "n_groups"), [(0.5, 5), (60, 2), (1e6, 1)])
def test_the_more_a_call_takes_the_more_tasks_share_it(pad, n_groups):
    sizes = np.array([[1, 2], [100, 90], [1, 3], [101, 92], [102, 90], [1, 2]])
    groups = cut_by_size(sizes, pad)
    assert len(groups) == n_groups
    alike = next(group.tolist() for group in groups if 0 in group)
    assert 5 in alike


def test_tasks_with_other_classes_are_apart(make_dataset):
    """However much a call takes."""
    tasks = [
        task
        for n_classes in (2, 3)
        for task in make_blob_tasks(
            3, n_classes=n_classes, labels="local", random_state=0
        )
    ]
    groups = make_dataset(tasks).batch(range(6), pad=1e9).groups
    assert [group.support.n_classes for group in groups] == [2, 3]
    assert [sorted(group.positions.tolist()) for group in groups] == [
        [0, 1, 2],
        [3, 4, 5],
    ]


def test_a_sampler_draws_what_is_visited_and_no_more(make_dataset, monkeypatch):
    X, y = np.ones((24, 2)), np.arange(24) % 4
    drawn, draw = [], EpisodeSampler.draw
    monkeypatch.setattr(
        EpisodeSampler, "draw", lambda self, i: drawn.extend(i) or draw(self, i)
    )
    dataset = make_dataset(EpisodeSampler(X, y, 2, 1, 2, n_episodes=10**6))
    dataset.check_draws()
    assert len(drawn) < 5
    batches = iter(MetaBatches(dataset, 8, np.random.default_rng(0)))
    for _ in range(3):
        next(batches)
    assert len(drawn) < 5 + 8 * 40


def test_episodes_of_a_regression(make_dataset):
    X, y = np.random.default_rng(0).normal(size=(24, 2)), np.arange(24) % 4
    sampler = EpisodeSampler(X, y, 2, 1, 2, n_episodes=5)
    (group,) = (dataset := make_dataset(sampler, classification=False)).batch([3])
    y = unscaled(dataset, group.support.y)
    np.testing.assert_allclose(y[0, :, 0], sampler[3].y_support, rtol=1e-5, atol=1e-5)


def test_evaluation_batches_are_the_same_each_time(blobs, make_dataset):
    dataset = make_dataset(blobs, support_size=(1, 3))
    batches = [dataset.batch(range(10)) for _ in range(2)]
    batches.append(make_dataset(blobs, support_size=(1, 3)).batch(range(10)))
    for groups in zip(*batches, strict=True):
        for other in groups[1:]:
            assert torch.equal(other.support.X, groups[0].support.X)
            assert torch.equal(other.support.y, groups[0].support.y)
            assert torch.equal(other.query.X, groups[0].query.X)
            assert np.array_equal(other.positions, groups[0].positions)


def drawn(dataset, index):
    return dataset.evaluation_draw(index)[0].tolist()


def test_evaluation_draws_ignore_position_neighbours_and_features(blobs, make_dataset):
    """Also from one list to another; but for the seed they stay as they are."""
    relabelled = [
        Task(t.X, np.random.default_rng(i).permutation(t.y), labels="local")
        for i, t in enumerate(blobs)
    ]
    dataset = make_dataset(relabelled, support_size=0.5)
    reverse = make_dataset(
        [t.replace_X(3 * t.X) for t in relabelled[::-1]], support_size=0.5
    )
    for index in range(10):
        assert drawn(dataset, index) == drawn(reverse, 9 - index)
    assert len({tuple(drawn(dataset, index)) for index in range(10)}) > 5
    other = make_dataset(relabelled, support_size=0.5, seed=1)
    assert [drawn(other, i) for i in range(10)] != [
        drawn(dataset, i) for i in range(10)
    ]


def test_training_draws_differ_from_visit_to_visit(blobs, make_dataset):
    dataset, rng = make_dataset(blobs, support_size=2), np.random.default_rng(0)
    (first,), (second,) = (dataset.batch([0], rng) for _ in range(2))
    assert not torch.equal(first.support.X, second.support.X)
    sizes = {
        group.support.X.shape[1]
        for _ in range(20)
        for group in make_dataset(blobs, support_size=(1, 3)).batch([0, 1], rng)
    }
    assert sizes == {3, 6, 9}


def test_support_and_query_share_the_rows_out(blobs, make_dataset):
    dataset, rng = make_dataset(blobs, support_size=2), np.random.default_rng(0)
    for generator in (None, rng):
        (group,) = dataset.batch(range(10), generator)
        for row, task in enumerate(blobs):
            found = torch.cat([group.support.X[row], group.query.X[row]]).numpy()
            expected = task.X.astype(np.float32)
            np.testing.assert_array_equal(
                found[np.lexsort(found.T)], expected[np.lexsort(expected.T)]
            )
        assert (torch.stack([group.support.y == k for k in range(3)]).sum(2) == 2).all()


def test_local_labels_are_put_on_outputs_at_random_in_training_alone(
    blobs, make_dataset
):
    dataset, rng = make_dataset(blobs), np.random.default_rng(0)
    (evaluated,) = dataset.batch([0])
    codes = dict(zip(map(tuple, dataset.X.tolist()), blobs[0].y, strict=False))
    own = [codes[tuple(row)] for row in evaluated.support.X[0].tolist()]
    assert evaluated.support.y[0].tolist() == own
    seen = set()
    for _ in range(60):
        (group,) = dataset.batch([0], rng)
        y = torch.cat([group.support.y[0], group.query.y[0]]).tolist()
        X = torch.cat([group.support.X[0], group.query.X[0]]).tolist()
        mapping = {(codes[tuple(row)], label) for row, label in zip(X, y, strict=True)}
        assert len(mapping) == 3  # support and query rows alike, one to one
        seen.add(tuple(label for _, label in sorted(mapping)))
    assert len(seen) == 6


def test_shared_labels_keep_their_outputs(make_dataset):
    tasks = [
        Task(np.ones((8, 2)), list("bbbbcccc")),
        Task(np.ones((8, 2)), list("aacc") * 2),
    ]
    dataset, rng = make_dataset(tasks), np.random.default_rng(0)
    for _ in range(5):
        for index, codes in ((0, {1, 2}), (1, {0, 2})):
            (group,) = dataset.batch([index], rng)
            assert set(group.support.y[0].tolist()) == codes
            assert group.support.n_classes == 3


def test_one_table_on_the_device_and_no_copies(make_dataset):
    X = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    sampler = EpisodeSampler(X, np.arange(24) % 4, 2, 1, 2, n_episodes=10**6)
    dataset = make_dataset(sampler)
    assert np.shares_memory(dataset.X.numpy(), X)
    (group,) = dataset.batch([5, 999_999])
    assert group.draws[0][0].classes.tolist() == np.unique(sampler[5].y).tolist()
    np.testing.assert_array_equal(group.draws[1][2], np.arange(2, 6))
    np.testing.assert_array_equal(group.support.X[1], sampler[999_999].X_support)
    np.testing.assert_array_equal(group.query.X[0], sampler[5].X_query)
    shared = [Task(X, np.arange(24) % 2, support=[i, i + 1]) for i in range(5)]
    assert len(make_dataset(shared).X) == 24


def test_read_only_features_are_copied_without_a_warning(make_dataset):
    """As joblib hands them to its workers."""
    X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    X.flags.writeable = False
    dataset = make_dataset([Task(X, np.arange(8) % 2)])
    assert not np.shares_memory(dataset.X.numpy(), X)


def test_rows_without_labels_are_neither_support_nor_scored(make_dataset):
    labeled = np.arange(12) % 3 != 0
    task = Task(np.arange(12.0)[:, None], np.arange(12) % 2, labeled=labeled)
    for scored in (True, False):
        dataset = make_dataset([task], scored=scored)
        support, query = dataset.evaluation_draw(0)
        assert labeled[support].all()
        assert labeled[query].all() == scored
        assert len(support) + len(query) == (8 if scored else 12)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"support": []}, "empty support set"),
        ({"support": np.arange(6)}, "no query rows: all 6 are in the support set"),
        ({"support": [0, 1], "labeled": np.arange(6) < 2}, "no labelled query row"),
        (
            {"support": [0, 1, 5], "labeled": np.arange(6) < 4},
            "rows without a known label in its support set",
        ),
        (
            {"support": [0, 2], "labels": "local"},
            "local labels, and its query set the class .*1.*, of which the support set",
        ),
    ],
)
def test_errors_name_the_task(task, message, make_dataset):
    good = Task(np.ones((6, 2)), [0, 1] * 3, labels=task.get("labels", "shared"))
    bad = Task(np.ones((6, 2)), [0, 1] * 3, name="ann", **task)
    with pytest.raises(ValueError, match=message) as error:
        make_dataset([good, bad])
    assert str(error.value).startswith("Task 1 ('ann')")


@pytest.mark.parametrize("size", [4, (3, 20), 0.99])
def test_small_tasks_keep_a_query_row(size, make_dataset):
    """A task of too few rows gives all but one; the draw of a large one stays."""
    tasks = [Task(np.ones((n, 2)), np.arange(n)) for n in (30, 2, 4)]
    dataset = make_dataset(tasks, False, support_size=size)
    dataset.check_draws()
    sizes = set()
    for rng in (None, *map(np.random.default_rng, range(30))):
        for group in dataset.batch(range(3), rng):
            n_support, n_query = group.support.X.shape[1], group.query.X.shape[1]
            sizes |= {(n_support + n_query, n_support)}
    assert {(2, 1), (4, 3)} <= sizes
    assert all(1 <= n_support < n for n, n_support in sizes)
    largest = {4: 4, (3, 20): 20, 0.99: 29}[size]
    assert max(sizes) == (30, largest)
    alone = make_dataset(tasks[:1], False, support_size=size)
    for found, expected in zip(
        dataset.evaluation_draw(0), alone.evaluation_draw(0), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_one_row_of_each_class_leaves_no_query_rows(make_dataset):
    tasks = [Task(np.ones((n, 2)), np.arange(n) % 3, name=f"n={n}") for n in (9, 4, 3)]
    make_dataset(tasks[:2], support_size=5).check_draws()
    dataset = make_dataset(tasks, support_size=1)
    for call in (
        dataset.check_draws,
        lambda: dataset.evaluation_draw(2),
        lambda: dataset.batch([0, 2], np.random.default_rng(0)),
    ):
        with pytest.raises(
            ValueError, match=r"Task 2 \('n=3'\) has 3 .* no query rows"
        ):
            call()


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, None),
        ({"sex": 1, "age": 3}, [3, 1]),
        ([1.5, 2.0], [1.5, 2.0]),
        (7, [7]),
        ({"name": "ann"}, None),
    ],
)
def test_numeric_metadata(metadata, expected):
    found = numeric_metadata(metadata)
    assert (None if found is None else found.tolist()) == expected


@pytest.mark.parametrize("batch_size", [1, 3, 4, 20])
def test_meta_batches_visit_each_task_once(batch_size, blobs, make_dataset):
    dataset = make_dataset(blobs)
    chosen = [7, 2, 5, 9]
    for data, wanted in ((dataset, list(range(10))), (Subset(dataset, chosen), chosen)):
        for rng in (None, np.random.default_rng(0)):
            batches = MetaBatches(data, batch_size, rng)
            visited = []
            for batch in batches:
                assert len(batch) <= batch_size
                for group in batch:
                    both = torch.cat([group.support.X, group.query.X], dim=1)
                    lowest = both.flatten(1).min(1).values.tolist()
                    visited += [least_of(blobs).index(value) for value in lowest]
            assert sorted(visited) == sorted(wanted)
            assert len(batches) == len(list(batches)) == -(-len(wanted) // batch_size)
            assert rng is not None or visited == wanted


def least_of(tasks):
    return [float(task.X.astype(np.float32).min()) for task in tasks]
