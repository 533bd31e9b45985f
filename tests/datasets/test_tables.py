import sys
import zipfile
from io import StringIO

import numpy as np
import pytest
from sklearn.utils import Bunch

from sk_meta.datasets import load_heart_disease, load_parkinsons, load_table
from sk_meta.datasets.files import SHIPPED
from sk_meta.tasks import Task


def unzip(name, folder):
    with zipfile.ZipFile(SHIPPED / f"{name}.zip") as archive:
        archive.extractall(folder)
    return folder


def test_parkinsons():
    bunch = load_parkinsons()
    assert bunch.data.shape == (5875, 19) and np.isfinite(bunch.data).all()
    assert bunch.target.shape == bunch.groups.shape == (5875,)
    assert np.array_equal(np.unique(bunch.groups), np.arange(1, 43))
    assert bunch.feature_names[:3] == ["age", "sex", "test_time"]
    assert len(bunch.feature_names) == 19
    assert "interpolated" in bunch.DESCR and "CC BY 4.0" in bunch.DESCR
    assert (SHIPPED / "parkinsons_telemonitoring.LICENSE").exists()


def test_parkinsons_is_sorted_and_loses_no_row(tmp_path):
    bunch = load_parkinsons()
    raw = unzip("parkinsons_telemonitoring", tmp_path) / "parkinsons_updrs.data"
    table = np.loadtxt(raw, delimiter=",", skiprows=1)
    assert np.all(np.diff(bunch.groups) >= 0)
    same_patient = np.diff(bunch.groups) == 0
    assert np.all(np.diff(bunch.data[:, 2])[same_patient] >= 0)
    ours = np.column_stack([bunch.groups, bunch.data[:, :3], bunch.target])
    theirs = table[:, [0, 1, 2, 3, 5]]
    assert sorted(map(tuple, ours)) == sorted(map(tuple, theirs))


@pytest.mark.parametrize("target", ["total_UPDRS", "motor_UPDRS"])
def test_parkinsons_keeps_both_scores_out_of_data(target):
    total = load_parkinsons().target
    bunch = load_parkinsons(target=target)
    assert bunch.target_names == [target]
    assert np.array_equal(bunch.target, total) == (target == "total_UPDRS")
    assert not any("UPDRS" in name for name in bunch.feature_names)
    both = {
        name: load_parkinsons(target=name).target for name in ("total_UPDRS", target)
    }
    for scores in both.values():
        assert not (bunch.data == scores[:, None]).all(axis=0).any()


def test_parkinsons_tasks():
    bunch, tasks = load_parkinsons(), load_parkinsons(as_tasks=True)
    assert [task.name for task in tasks] == [str(i) for i in range(1, 43)]
    assert {task.labels for task in tasks} == {"shared"}
    assert np.array_equal(np.concatenate([task.X for task in tasks]), bunch.data)
    assert np.array_equal(np.concatenate([task.y for task in tasks]), bunch.target)


def test_heart_disease():
    bunch = load_heart_disease()
    assert bunch.data.shape == (920, 13)
    names, first, counts = np.unique(
        bunch.groups, return_index=True, return_counts=True
    )
    assert dict(zip(names, counts, strict=True)) == {
        "cleveland": 303,
        "hungarian": 294,
        "switzerland": 123,
        "va": 200,
    }
    assert np.array_equal(first, np.sort(first))
    assert set(bunch.target) == {0, 1} and bunch.target.dtype.kind == "i"
    assert bunch.target_names == ["healthy", "diseased"]
    assert "CC BY 4.0" in bunch.DESCR and "Janosi" in bunch.DESCR
    assert (SHIPPED / "heart_disease.LICENSE").exists()


def test_heart_disease_zeros_that_mean_missing(tmp_path):
    bunch = load_heart_disease()
    raw = unzip("heart_disease", tmp_path)
    table = np.concatenate(
        [
            np.loadtxt(raw / f"processed.{hospital}.data", delimiter=",")
            for hospital in ("cleveland", "hungarian", "switzerland", "va")
        ]
    )
    missing = np.isnan(table[:, :-1])
    for name in ("trestbps", "chol"):
        column = bunch.feature_names.index(name)
        missing[:, column] |= table[:, column] == 0
    assert np.array_equal(np.isnan(bunch.data), missing)
    assert np.array_equal(bunch.data[~missing], table[:, :-1][~missing])
    assert np.array_equal(bunch.target, table[:, -1] > 0)
    chol = bunch.data[bunch.groups == "switzerland", bunch.feature_names.index("chol")]
    assert np.isnan(chol).all()


@pytest.mark.parametrize(
    ("load", "archive"),
    [
        (load_parkinsons, "parkinsons_telemonitoring"),
        (load_heart_disease, "heart_disease"),
    ],
)
def test_own_copy_goes_the_same_way(load, archive, tmp_path):
    shipped = load()
    for path in (SHIPPED / f"{archive}.zip", unzip(archive, tmp_path)):
        own = load(path)
        assert set(own) == set(shipped)
        assert np.array_equal(own.data, shipped.data, equal_nan=True)
        assert np.array_equal(own.target, shipped.target)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no .*\.data"):
        load(tmp_path / "empty")


def test_own_parkinsons_file(tmp_path):
    raw = unzip("parkinsons_telemonitoring", tmp_path) / "parkinsons_updrs.data"
    assert load_parkinsons(raw.rename(tmp_path / "mine.csv")).data.shape == (5875, 19)
    other = tmp_path / "other.csv"
    other.write_text("subject#,age\n1,60\n")
    with pytest.raises(ValueError, match="has no column 'sex'"):
        load_parkinsons(other)


def test_heart_disease_as_uci_writes_it(tmp_path):
    folder = unzip("heart_disease", tmp_path)
    for file in folder.glob("*.data"):
        file.write_text(file.read_text().replace("NaN", "?"))
    own, shipped = load_heart_disease(folder), load_heart_disease()
    assert np.array_equal(own.data, shipped.data, equal_nan=True)


@pytest.mark.parametrize("load", [load_parkinsons, load_heart_disease])
def test_as_frame(load):
    pytest.importorskip("pandas")
    plain, bunch = load(), load(as_frame=True)
    assert list(bunch.data.columns) == plain.feature_names
    assert np.array_equal(bunch.data.to_numpy(), plain.data, equal_nan=True)
    assert np.array_equal(bunch.target, plain.target)
    assert np.array_equal(bunch.groups, plain.groups)
    assert bunch.frame.shape == (len(plain.data), plain.data.shape[1] + 2)
    tasks = load(as_frame=True, as_tasks=True)
    assert list(tasks[1].X.columns) == plain.feature_names
    assert len(tasks[1].X) == len(tasks[1].y)


@pytest.mark.parametrize(
    "load",
    [
        lambda: load_parkinsons(as_frame=True),
        lambda: load_heart_disease(as_frame=True),
        lambda: load_table("table.csv", target="y", group="g"),
    ],
)
def test_without_pandas(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        load()
    assert isinstance(load_parkinsons(), Bunch)


def test_parkinsons_bad_target():
    with pytest.raises(ValueError, match="target must be one of"):
        load_parkinsons(target="UPDRS")


TABLE = "shop,day,kind,sales\nB,1,x,5.0\nA,1,,2.5\nB,2,y,6.0\n"


def test_table():
    pytest.importorskip("pandas")
    bunch = load_table(StringIO(TABLE), target="sales", group="shop")
    assert bunch.feature_names == list(bunch.data.columns) == ["day", "kind"]
    assert bunch.target.tolist() == [5.0, 2.5, 6.0]
    assert bunch.groups.tolist() == ["B", "A", "B"]
    tasks = load_table(
        StringIO(TABLE),
        target="sales",
        group="shop",
        features=["day"],
        labels="local",
        as_tasks=True,
    )
    assert all(isinstance(task, Task) and task.labels == "local" for task in tasks)
    assert [task.name for task in tasks] == ["B", "A"]
    assert tasks[0].X["day"].tolist() == [1, 2] and tasks[0].y.tolist() == [5.0, 6.0]


def test_table_from_a_file_with_several_targets(tmp_path):
    pytest.importorskip("pandas")
    path = tmp_path / "table.csv"
    path.write_text(TABLE.replace(",", ";"))
    bunch = load_table(path, target=["sales", "day"], group="shop", sep=";")
    assert bunch.target.shape == (3, 2)
    assert bunch.feature_names == ["kind"]


@pytest.mark.parametrize(
    "columns",
    [
        {"target": "profit", "group": "shop"},
        {"target": "sales", "group": "store"},
        {"target": "sales", "group": "shop", "features": ["hour"]},
    ],
)
def test_table_lacks_a_column(columns):
    pytest.importorskip("pandas")
    lacking = {"profit", "store", "hour"}
    with pytest.raises(ValueError, match="has no column") as error:
        load_table(StringIO(TABLE), **columns)
    assert any(name in str(error.value) for name in lacking)
