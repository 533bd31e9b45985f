import pickle
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sk_meta import EpisodeSampler, MAMLRegressor, Task, TaskNet, tasks_from_groups
from sk_meta.tasks import DiskTable, tasks_from_file
from sk_meta.tasks.disk import View, on_disk
from sk_meta.tasks.stacking import MetaBatches, TaskDataset
from sk_meta.tasks.validation import Schema

pyarrow = pytest.importorskip("pyarrow")
FEATURES = ["a", "b", "c"]


def make_table(n_tasks=12, seed=0, shuffle=True):
    """Columns of different types; rows of a task are scattered over the table."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_tasks), rng.integers(6, 15, n_tasks))
    if shuffle:
        groups = rng.permutation(groups)
    n = len(groups)
    return pd.DataFrame(
        {
            "a": rng.normal(size=n),
            "b": rng.integers(0, 9, n),
            "patient": [f"p{group}" for group in groups],
            "c": rng.normal(size=n).astype(np.float32),
            "score": rng.normal(size=n),
            "weight": rng.uniform(1, 2, n),
        }
    )


def write(table, path, chunk=10):
    """A file with several row groups or record batches."""
    if path.suffix == ".parquet":
        table.to_parquet(path, row_group_size=chunk)
    else:
        rows = pyarrow.Table.from_pandas(table)
        with pyarrow.ipc.new_file(str(path), rows.schema) as file:
            file.write_table(rows, max_chunksize=chunk)
    return path


@pytest.fixture(params=["table.parquet", "table.arrow"])
def path(request, tmp_path):
    return write(make_table(), tmp_path / request.param)


@given(st.lists(st.integers(0, 29), min_size=1, max_size=40))
def test_rows_of_a_file_are_those_of_the_table(rows):
    table, disk = TABLE
    np.testing.assert_array_equal(disk[rows], table[rows])


@pytest.fixture(scope="module", autouse=True)
def _table(tmp_path_factory):
    global TABLE
    table = make_table(40)[:30]
    file = write(table, tmp_path_factory.mktemp("disk") / "t.parquet", 7)
    TABLE = table[FEATURES].to_numpy(), DiskTable(file, FEATURES)


def test_a_disk_table_looks_like_an_array(path):
    table = make_table()
    disk = DiskTable(path, FEATURES)
    assert disk.shape == (len(table), 3) and len(disk) == len(table) and disk.ndim == 2
    expected = table[FEATURES].to_numpy()
    for found in (disk[2:5], pickle.loads(pickle.dumps(disk))[2:5]):
        np.testing.assert_array_equal(found, expected[2:5])
    np.testing.assert_array_equal(np.asarray(disk), expected)
    assert disk[:0].shape == (0, 3)
    with pytest.raises(IndexError, match=f"{len(table)} rows; rows 0 to {len(table)}"):
        disk[[0, len(table)]]


def in_memory(table, **options):
    return tasks_from_groups(
        table[FEATURES].to_numpy(), table["score"], table["patient"], **options
    )


def test_tasks_from_a_file_are_those_from_its_table(path):
    table = make_table()
    found = tasks_from_file(
        path,
        target="score",
        group="patient",
        features=FEATURES,
        sample_weight="weight",
    )
    expected = in_memory(table, sample_weight=table["weight"])
    assert [repr(task) for task in found] == [repr(task) for task in expected]
    for task, other in zip(found, expected, strict=True):
        assert len(task) == len(other)
        np.testing.assert_array_equal(task.X, other.X)
        np.testing.assert_array_equal(task.y, other.y)
        np.testing.assert_array_equal(task.sample_weight, other.sample_weight)
    all_others = tasks_from_file(path, target=["score", "weight"], group="patient")
    np.testing.assert_array_equal(all_others[3].X, expected[3].X)
    assert all_others[0].y.shape == (len(expected[0]), 2)


@pytest.mark.parametrize("kind", ["category", "Int64", "float"])
def test_groups_of_any_kind(kind, tmp_path):
    groups = pd.Series([7, 5, 7, 3], dtype=None if kind == "category" else kind)
    table = pd.DataFrame({"x": [1, 2, 3, 4], "y": [0, 1, 2, 3]})
    table["id"] = pd.Categorical(groups, [3, 4, 5, 7]) if kind == "category" else groups
    file = write(table, tmp_path / "t.parquet", 2)
    tasks = tasks_from_file(file, target="y", group="id")
    assert [int(float(task.name)) for task in tasks] == [7, 5, 3]
    assert tasks[0].y.tolist() == [0, 2]
    table["id"] = groups.where(groups != 5, None if kind == "Int64" else np.nan)
    file = write(table, tmp_path / "t.parquet", 2)
    with pytest.raises(ValueError, match=r"1 missing value\(s\), the first in row 1"):
        tasks_from_file(file, target="y", group="id")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "no"}, "table.parquet has no column 'no'; it has"),
        ({"features": ["a", "no"]}, "no column 'no'"),
        ({"features": ["a", "word"]}, "'word' .* holds .*string.*, not numbers"),
        ({"features": ["a", "kind"]}, "'kind' .* holds dictionary.*, not numbers"),
    ],
)
def test_errors_of_files(options, message, tmp_path):
    table = make_table()
    table = table.assign(kind=table["patient"].astype("category"), word="red")
    file = write(table, tmp_path / "table.parquet")
    with pytest.raises(ValueError, match=message):
        tasks_from_file(file, **{"target": "score", "group": "patient", **options})


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"features": "a"}, TypeError, r"features must be a list .*'a'. Pass \['a'\]"),
        ({"features": 3}, TypeError, "features must be a list .* got 3"),
        ({"features": []}, ValueError, "features is empty. Name at least one"),
        ({"features": ["a", "b", "a"]}, ValueError, "features has .* 'a' twice"),
        ({"features": ["a", "score"]}, ValueError, "'score', which is the target. Lea"),
        ({"features": ["patient"]}, ValueError, "'patient', which is the group. Leave"),
        ({"target": []}, ValueError, "target is empty"),
        ({"target": "patient"}, ValueError, "must be different columns, got target='p"),
        ({"target": ["a", "b", "c", "score", "weight"]}, ValueError, "no column left"),
    ],
)
def test_columns_of_two_roles_or_none(options, kind, message, path):
    with pytest.raises(kind, match=message):
        tasks_from_file(path, **{"target": "score", "group": "patient", **options})


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("t.csv", "to_csv", r"t.csv is neither .*read_csv\('t.csv'\).*'t.parquet'"),
        ("t.arrow", "to_csv", "t.arrow is neither a Parquet nor an Arrow file"),
        ("t.parquet", "to_feather", "t.parquet is an Arrow file by .* to 't.arrow'"),
        ("t.feather", "to_parquet", "t.feather is a Parquet file .* to 't.parquet'"),
    ],
)
def test_files_of_another_kind(name, write, message, tmp_path):
    getattr(make_table(), write)(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        tasks_from_file(tmp_path / name, target="score", group="patient")
    with pytest.raises(ValueError, match=message):
        DiskTable(tmp_path / name, FEATURES)


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_damaged_files(name, tmp_path):
    file = write(make_table(), tmp_path / name)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=f"{name} is an? .* file that is damaged"):
        DiskTable(file, FEATURES)


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
@pytest.mark.parametrize("index", [None, "visit", ["visit", "day"]])
def test_the_index_of_a_frame_is_no_feature(index, name, tmp_path):
    table = make_table().drop(columns="weight").sample(frac=1, random_state=0)
    if index:
        rows = np.arange(len(table)) ** 2  # no range, which is not stored
        table = table.assign(visit=rows, day=rows % 7)
        table = table[[*FEATURES, "patient", "score", *np.atleast_1d(index)]]
        table = table.set_index(index)
    file = write(table, tmp_path / name)
    options = {"target": "score", "group": "patient"}
    task = tasks_from_file(file, **options)[0]
    assert task.table.columns == FEATURES
    if index:  # asked for, it is one
        task = tasks_from_file(file, features=["visit"], **options)[0]
        expected = table.index.get_level_values("visit")[task.rows]
        np.testing.assert_array_equal(task.X[:, 0], expected)


def test_the_index_may_be_the_group(tmp_path):
    table = make_table()
    file = write(table.set_index("patient"), tmp_path / "t.parquet")
    tasks = tasks_from_file(file, target=["score", "weight"], group="patient")
    assert len(tasks) == 12 and tasks[0].table.columns == FEATURES


@pytest.fixture(scope="module", params=["frames", "file"])
def fitted_by_name(request, tmp_path_factory):
    """A learner fitted on tasks with column names, and those tasks' file."""
    table = make_table()
    file = write(table, tmp_path_factory.mktemp("names") / "t.parquet")
    if request.param == "frames":
        tasks = tasks_from_groups(table[FEATURES], table["score"], table["patient"])
    else:
        tasks = tasks_from_file(
            file, target="score", group="patient", features=FEATURES
        )
    net = TaskNet(max_epochs=1)
    return MAMLRegressor(net, support_size=3, random_state=0).fit(tasks), file


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (FEATURES[::-1], r"Task 0 \('p\d+'\) has the columns of .* in another order"),
        (["a", "b", "weight"], r"missing \['c'\], unknown \['weight'\]"),
        (["a", "b"], r"Task 0 \('p\d+'\) has 2 features; .* 3 features"),
    ],
)
def test_names_of_file_columns_are_those_of_fit(features, message, fitted_by_name):
    meta, file = fitted_by_name
    assert meta.feature_names_in_.tolist() == FEATURES
    options = {"target": "score", "group": "patient"}
    tasks = tasks_from_file(file, features=features, **options)
    table = make_table()
    frames = tasks_from_groups(table[features], table["score"], table["patient"])
    for new in (tasks, frames):
        for call in (meta.score, meta.predict, meta.partial_fit):
            with pytest.raises(ValueError, match=message):
                call(new)
    same = tasks_from_file(file, features=FEATURES, **options)
    with pytest.raises(
        ValueError, match=r"Task [01] .*(order|other columns|2 features)"
    ):
        MAMLRegressor(TaskNet(max_epochs=1)).fit([*same[:1], *tasks[1:]])


def test_frames_and_files_in_one_list(fitted_by_name):
    meta, file = fitted_by_name
    table = make_table()
    frames = tasks_from_groups(table[FEATURES], table["score"], table["patient"])
    tasks = tasks_from_file(file, target="score", group="patient", features=FEATURES)
    assert meta.score([*frames[:6], *tasks[6:]]) == meta.score(frames)


def test_without_pyarrow(monkeypatch, tmp_path):
    file = write(make_table(), tmp_path / "table.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'sk_meta\[data\]'"):
        DiskTable(file, FEATURES)


def mapped(X, folder):
    np.save(folder / "X.npy", X)
    return np.load(folder / "X.npy", mmap_mode="r")


def test_memory_maps_are_seen_through_views(tmp_path):
    X = mapped(np.ones((5, 2)), tmp_path)
    assert all(on_disk(part) for part in (X, X[1:3], np.asarray(X), X.reshape(10)[2:]))
    assert not any(on_disk(part) for part in (X + 1, X[[0, 1]].copy(), np.ones(3)))


def batches_of(tasks, classification=False, epochs=2, pad=100):
    schema = Schema.from_tasks(tasks, classification)
    dataset = TaskDataset(tasks, schema, 3, 0, "cpu")
    dataset.check_draws()
    rng = np.random.default_rng(0)
    for generator in (rng, rng, None):
        for batch in MetaBatches(dataset, 5, generator, pad):
            yield from batch


def assert_same_batches(tasks, others, **options):
    for group, other in zip(
        batches_of(tasks, **options), batches_of(others, **options), strict=True
    ):
        for part in ("support", "query"):
            for found, expected in zip(
                getattr(group, part), getattr(other, part), strict=True
            ):
                if torch.is_tensor(expected):
                    assert torch.equal(found, expected)
                else:
                    assert found == expected


def test_batches_from_disk_are_those_from_memory(path, tmp_path):
    table = make_table()
    expected = in_memory(table)
    assert_same_batches(
        tasks_from_file(path, target="score", group="patient", features=FEATURES),
        expected,
    )
    X = mapped(table[FEATURES].to_numpy(), tmp_path)
    views = tasks_from_groups(X, table["score"], table["patient"])
    assert all(isinstance(task, View) and task.table is X for task in views)
    assert_same_batches(views, expected)
    slices = [
        Task(X[:9], np.arange(9.0), support=[1, 3]),
        Task(X[9:], np.arange(9.0, len(X))),
    ]
    copies = [Task(t.X.copy(), t.y, support=t.support) for t in slices]
    assert_same_batches(slices, copies)


def test_episodes_from_a_memory_map(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 1, 4, 4)).astype(np.float32)
    y = np.arange(60) % 6
    options = {"n_way": 3, "n_query": 4, "n_episodes": 20}
    assert_same_batches(
        EpisodeSampler(mapped(X, tmp_path), y, **options),
        EpisodeSampler(X, y, **options),
        classification=True,
    )


def test_fit_from_disk_is_fit_from_memory(path):
    meta = MAMLRegressor(TaskNet(max_epochs=2), support_size=3, random_state=0)
    disk = tasks_from_file(path, target="score", group="patient", features=FEATURES)
    memory = in_memory(make_table())
    scores = [meta.fit(tasks).score(memory) for tasks in (disk, memory)]
    assert scores[0] == scores[1] == meta.score(disk)


def test_bad_values_on_disk_are_found_when_they_are_read(tmp_path):
    table = make_table()
    table.loc[table["patient"] == "p3", "a"] = np.nan
    file = write(table, tmp_path / "t.parquet")
    tasks = tasks_from_file(file, target="score", group="patient", features=FEATURES)
    bad = next(i for i, task in enumerate(tasks) if task.name == "p3")
    message = rf"^X of Task {bad} \('p3'\) contains NaN, infinity"
    with pytest.raises(ValueError, match=message):
        list(batches_of(tasks))


def test_memory_stays_below_the_size_of_the_table(tmp_path):
    """Two epochs over 64 MB of features on disk."""
    n_tasks, n_rows, n_features = 500, 16, 1000
    X = np.lib.format.open_memmap(
        tmp_path / "X.npy", "w+", np.float64, (n_tasks * n_rows, n_features)
    )
    X[:] = 1.0
    y = np.arange(len(X), dtype=float)
    groups = np.random.default_rng(0).permutation(len(X)) % n_tasks
    tracemalloc.start()
    tasks = tasks_from_groups(X, y, groups)
    n_seen = sum(len(group.positions) for group in batches_of(tasks))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_seen == 3 * n_tasks
    assert peak < X.nbytes / 10


def test_only_the_row_groups_of_a_batch_are_read(tmp_path, monkeypatch):
    table = make_table(30, shuffle=False)
    file = write(table, tmp_path / "t.parquet", 15)
    tasks = tasks_from_file(file, target="score", group="patient", features=FEATURES)
    file, read = tasks[0].table._file, []
    read_chunk = file.read

    def counting(chunk, columns):
        read.append(chunk)
        return read_chunk(chunk, columns)

    monkeypatch.setattr(file, "read", counting)
    dataset = TaskDataset(tasks, Schema.from_tasks(tasks, False), 3, 0, "cpu")
    dataset.check_draws()
    assert not read
    dataset.batch([8])
    rows = tasks[8].rows
    assert read == list(range(rows[0] // 15, rows[-1] // 15 + 1))
    read.clear()
    for _ in MetaBatches(dataset, 4):
        pass
    n_chunks = -(-len(table) // 15)
    assert len(read) <= n_chunks + 1  # in order, each is read once


def test_names_of_a_sampler_on_disk(tmp_path):
    table = make_table(40)
    file, kind = write(table, tmp_path / "t.arrow"), np.arange(len(table)) % 6
    options = {"n_way": 3, "n_query": 4, "n_episodes": 3}
    episodes = EpisodeSampler(table[FEATURES], kind, **options)
    schema = Schema.from_tasks(episodes, True)
    other = EpisodeSampler(DiskTable(file, FEATURES[::-1]), kind, **options)
    with pytest.raises(ValueError, match="the sampler's table has .*another order"):
        TaskDataset(other, schema, 1, 0, "cpu")
    same = EpisodeSampler(DiskTable(file, FEATURES), kind, **options)
    assert len(TaskDataset(same, schema, 1, 0, "cpu")) == 3
