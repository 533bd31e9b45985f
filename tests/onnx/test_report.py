"""size_report: it says what is in the file and in the network."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_meta import (
    FewShotClassifier,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    PrunedLearner,
    TaskNet,
    TaskTransformer,
    adapt,
    size_report,
)
from sk_meta.networks import Conv4
from sk_meta.onnx import report as reporting
from sk_meta.onnx import to_onnx
from sk_meta.tasks import make_blob_tasks, make_sinusoids
from sk_meta.tasks.metadata import describe
from sk_meta.tasks.task import Task
from sk_meta.tasks.validation import Schema

N_FEATURES, N_CLASSES = 3, 2
*TASKS, NEW = make_blob_tasks(
    9, n_classes=N_CLASSES, n_features=N_FEATURES, labels="local", random_state=0
)


def net(*hidden, **options):
    return TaskNet(module__hidden=hidden or (8, 6), max_epochs=1, **options)


@pytest.fixture(scope="module")
def meta():
    return PrototypicalClassifier(net(), random_state=0).fit(TASKS)


@pytest.fixture(scope="module")
def reported(meta):
    """The report of a learner, and the files that were written for it."""
    files, export = [], reporting._exported

    def recorded(*arguments):
        files.append(export(*arguments))
        return files[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "_exported", recorded)
        return size_report(meta, n_repeats=3), files


def test_a_learner(meta, reported):
    report, (learner_file, _) = reported
    assert report.kilobytes == len(learner_file) / 1000
    assert report.kilobytes_zipped < report.kilobytes
    assert report.parameters == sum(p.numel() for p in meta.learner_.parameters())
    assert min(report.adapt_ms, report.predict_ms, report.predict_64_ms) > 0
    assert report.n_support % 5 == 0


def test_its_files(reported, tmp_path):
    report, (learner_file, adapted_file) = reported
    found = size_report(learner_file, n_repeats=3)
    assert found.kilobytes == report.kilobytes and found.adapt_ms > 0
    assert found.predict_ms is None and found.parameters is None
    path = tmp_path / "adapted.onnx"
    path.write_bytes(adapted_file)
    for file in (path, str(path)):
        found = size_report(file, n_repeats=3)
        assert found.kilobytes == len(adapted_file) / 1000
        assert found.adapt_ms is None and found.predict_64_ms > 0


def test_its_file_with_a_task(reported):
    _, (learner_file, adapted_file) = reported
    assert size_report(learner_file, NEW, n_repeats=1).n_support == len(NEW.X_support)
    pair = NEW.X, NEW.y
    assert size_report(learner_file, pair, n_repeats=1).n_support == len(NEW)
    assert size_report(adapted_file, pair, n_repeats=1).predict_ms > 0


def test_text_and_table(reported):
    report, _ = reported
    assert f"{report.kilobytes:,.1f} KB" in repr(report) == str(report)
    assert f"{report.parameters:,}" in str(report)
    table = pd.DataFrame([report, report], index=["one", "other"])
    assert table.loc["one", "kilobytes"] == report.kilobytes


@pytest.mark.parametrize("hidden", [(8, 6), (5,)])
def test_multiply_adds_of_linear_layers(hidden):
    tasks = make_sinusoids(4, random_state=0)
    meta = MAMLRegressor(net(*hidden), random_state=0).fit(tasks)
    sizes = (1, *hidden, 1)
    products = [a * b for a, b in pairwise(sizes)]
    state, _ = meta.adapt_state(tasks[0].X_support, tasks[0].y_support)
    parameters, multiply_adds = reporting._work(meta, state)
    assert multiply_adds == sum(products)
    assert parameters == sum(products) + sum(sizes[1:])


def test_multiply_adds_of_convolutions():
    rng = np.random.default_rng(0)
    tasks = [
        (rng.normal(size=(8, 1, 16, 16)).astype(np.float32), np.tile([0, 1], 4))
        for _ in range(2)
    ]
    network = TaskNet(Conv4, module__n_filters=4, max_epochs=1)
    meta = MAMLClassifier(network, random_state=0).fit(tasks)
    _, multiply_adds = reporting._work(meta, meta.adapt_state(*tasks[0])[0])
    pixels = np.array([16, 8, 4, 2]) ** 2  # halved after each
    convolutions = 9 * 4 * pixels * np.array([1, 4, 4, 4])
    assert multiply_adds == convolutions.sum() + 4 * 2


def test_pruned_weights_do_not_count_and_zip_well():
    meta = PrototypicalClassifier(net(32, 32), random_state=0).fit(TASKS)
    pruned = PrunedLearner(FrozenEstimator(meta), 0.9, max_epochs=0).fit(TASKS)
    dense, sparse = (
        size_report(model.adapt(NEW.X_support, NEW.y_support), n_repeats=1)
        for model in (meta, pruned)
    )
    assert sparse.parameters == round(pruned.kept_ * dense.parameters)
    assert sparse.multiply_adds == dense.multiply_adds
    assert sparse.kilobytes_zipped < 0.6 * dense.kilobytes_zipped


def test_an_adapted_estimator_without_a_learner():
    few_shot = FewShotClassifier().fit(NEW.X, NEW.y)
    report = size_report(few_shot, n_repeats=1)
    assert report.kilobytes == len(to_onnx(few_shot).SerializeToString()) / 1000
    assert report.parameters is None and report.adapt_ms is None


def frames():
    names = [f"f{i}" for i in range(N_FEATURES)]
    return [Task(pd.DataFrame(t.X, columns=names), t.y) for t in TASKS]


def test_columns_need_a_task():
    first, *_ = tasks = frames()
    few_shot = make_pipeline(StandardScaler(), FewShotClassifier())
    few_shot.fit(first.X, first.y)
    with pytest.raises(ValueError, match="Pass a task"):
        size_report(few_shot)
    assert size_report(few_shot, first, n_repeats=1).predict_64_ms > 0
    data = to_onnx(few_shot, X=first.X).SerializeToString()
    with pytest.raises(ValueError, match="Pass a task"):
        size_report(data)
    assert size_report(data, first, n_repeats=1).predict_ms > 0
    learner = PrototypicalClassifier(net(), random_state=0)
    pipe = make_pipeline(TaskTransformer(StandardScaler()), learner).fit(tasks)
    with pytest.raises(ValueError, match="Pass a task"):
        size_report(pipe)
    with pytest.raises(ValueError, match="Pass a task"):
        size_report(adapt(pipe, first.X, first.y))


def test_random_rows_are_what_a_learner_takes():
    """Of each kind: own classes, shared classes with metadata, several targets."""
    rng = np.random.default_rng(0)
    shared = [
        Task(rng.normal(size=(6, 4)), ["a", "b", "c"] * 2, metadata={"age": float(i)})
        for i in range(3)
    ]
    targets = [(rng.normal(size=(6, 4)), 50 + rng.normal(size=(6, 2))) for _ in "ab"]
    for tasks, classification in ((TASKS, True), (shared, True), (targets, False)):
        tasks = [t if isinstance(t, Task) else Task(*t) for t in tasks]
        schema = Schema.from_tasks(tasks, classification)
        schema.metadata = describe(tasks) if tasks[0].metadata else None
        given = {"X_support": SimpleNamespace(shape=["n_support", *schema.shape])}
        learner = SimpleNamespace(
            _session=SimpleNamespace(inputs=lambda given=given: given), _most_classes=2
        )
        task = reporting._made_up(learner, schema)
        assert task.X.shape[1:] == schema.shape and task.support is None
        if not classification:
            assert task.y.shape == (25, 2) and abs(task.y.mean() - 50) < 5
        elif schema.labels == "shared":
            assert task.y.tolist() == ["a"] * 5 + ["b"] * 5 + ["c"] * 5
            assert task.metadata == {"age": 1.0}
        else:
            assert np.unique(task.y).tolist() == [0, 1]


def test_bad_input(meta):
    with pytest.raises(ValueError, match="n_repeats must be 1 or more, got 0"):
        size_report(meta, n_repeats=0)
    with pytest.raises(TypeError, match="got Ridge"):
        size_report(Ridge().fit([[0.0], [1.0]], [0, 1]))
    with pytest.raises(ValueError, match="cannot read the file"):
        size_report(b"no such file")
    with pytest.raises(FileNotFoundError):
        size_report("no_such_file.onnx")
