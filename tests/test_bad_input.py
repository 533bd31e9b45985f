"""Bad input is said clearly before any training, and changes nothing."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sk_meta import (
    ALPaCAClassifier,
    FewShotClassifier,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    Task,
    TaskNet,
    TaskTransformer,
    adapt,
    evaluate,
    task_scorer,
)
from sk_meta.tasks import make_blob_tasks, make_linear_tasks
from tests.methods import CLASSIFIERS, METHODS, REGRESSORS

pytestmark = pytest.mark.filterwarnings("ignore:No task has an unlabelled row")
NAMES = ["age", "dose", "heart", "pulse"]


@pytest.fixture
def no_training(monkeypatch):
    """Fail if an optimiser step is taken."""

    def train_step(self, batch, **fit_params):
        pytest.fail("training started")

    monkeypatch.setattr(TaskNet, "train_step", train_step)


def small_net(**options):
    return TaskNet(**{"module__hidden": (8,), "max_epochs": 1, **options})


def make_tasks(kind, n_classes=3):
    if kind in REGRESSORS:
        return make_linear_tasks(4, n_features=4, random_state=0)
    return make_blob_tasks(
        4,
        n_classes=n_classes,
        n_support=3,
        n_query=4,
        n_features=4,
        labels="shared",
        random_state=0,
    )


@pytest.fixture(scope="module", params=METHODS, ids=lambda kind: kind.__name__)
def fitted(request):
    """A meta-learner, its tasks, and what it predicts."""
    tasks = make_tasks(request.param)
    meta = request.param(small_net(), support_size=2, random_state=0).fit(tasks)
    return meta, tasks, list(meta.predict(tasks))


def spoiled(task, value):
    X = task.X.copy()
    X[-1, 0] = value
    return task.replace_X(X)


def framed(task, names):
    return task.replace_X(pd.DataFrame(task.X[:, : len(names)], columns=names))


def with_y(task, y):
    return Task(task.X, y, task.support, labels=task.labels, name=task.name)


# Last task of the list -> message. The other tasks are sound.
BAD_TASKS = {
    "no rows": (lambda t: Task(t.X[:0], t.y[:0], name="ann"), "'ann' has no rows"),
    "one row": (lambda t: Task(t.X[:1], t.y[:1]), "Task 4 has .*(row|class)"),
    "no query rows": (
        lambda t: Task(t.X, t.y, np.arange(len(t)), name="ann"),
        r"Task 4 \('ann'\) has no query rows: all",
    ),
    "no support rows": (lambda t: Task(t.X, t.y, []), "Task 4 has an empty support"),
    "nan": (lambda t: spoiled(t, np.nan), "X of Task 4 .* contains NaN.*Impute"),
    "infinite": (lambda t: spoiled(t, -np.inf), "X of Task 4 .*infinity"),
    "too large": (lambda t: spoiled(t, 1e300), "X of Task 4 .*too large"),
    "fewer features": (
        lambda t: t.replace_X(t.X[:, :3]),
        "Task 4 .* has 3 features; 4 of the 5 tasks have 4 features",
    ),
    "images": (
        lambda t: t.replace_X(t.X[:, None]),
        r"Task 4 .* rows of shape \(1, 4\)",
    ),
    "strings": (
        lambda t: t.replace_X(np.full(t.X.shape, "red")),
        "X of Task 4 .* not real numbers.*OneHotEncoder",
    ),
    "objects": (
        lambda t: t.replace_X(np.full(t.X.shape, None)),
        "X of Task 4 .*(not real numbers|NaN)",
    ),
    "complex": (lambda t: t.replace_X(t.X * 1j), "X of Task 4 .*not real numbers"),
    "local labels": (
        lambda t: Task(t.X, t.y, t.support, labels="local"),
        "(mix label kinds: Task 4|local labels)",
    ),
    "unlabelled support": (
        lambda t: Task(t.X, t.y, t.support, labeled=~t.support),
        "Task 4 .*(without a known label|no labelled row) in its support set",
    ),
    "unlabelled": (
        lambda t: Task(t.X, t.y, labeled=np.zeros(len(t), dtype=bool)),
        "Task 4 .*(no label|no row with a known label)",
    ),
    "weights": (
        lambda t: Task(t.X, t.y, t.support, sample_weight=np.full(len(t), -1.0)),
        "sample_weight of .*at least 0",
    ),
    "nan weights": (
        lambda t: Task(t.X, t.y, t.support, sample_weight=np.full(len(t), np.nan)),
        "sample_weight of .*finite",
    ),
    "neither task nor pair": (lambda t: t.X, "Task 4 is a ndarray"),
    "a triple": (lambda t: (t.X, t.y, t.y), "Task 4 is a tuple.*pair"),
}


@pytest.mark.parametrize("bad", BAD_TASKS)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_one_bad_task(fitted, bad, method, no_training):
    meta, tasks, before = fitted
    spoil, said = BAD_TASKS[bad]
    if bad == "local labels" and type(meta) in REGRESSORS:
        return  # targets mean the same everywhere
    if method == "partial_fit":  # nothing but fit compares the tasks with each other
        said = said.replace("; 4 of the 5 tasks have 4 features", "")
        said = said.replace("mix label kinds: Task 4", "Task 4 .*has local labels")
    with pytest.raises((ValueError, TypeError), match=said):
        getattr(meta, method)([*tasks, spoil(tasks[-1])])
    assert all(map(np.array_equal, meta.predict(tasks), before))


NO_TASKS = {
    "none": ([], ValueError, "no tasks"),
    "array": (np.zeros((5, 4)), TypeError, "list of tasks.*tasks_from_groups"),
    "frame": (pd.DataFrame(np.zeros((5, 4))), TypeError, "list of tasks"),
    "one task": (Task(np.eye(4), np.arange(4)), TypeError, r"one Task. Pass \[task\]"),
    "None": (None, TypeError, "list of tasks.*NoneType"),
    "generator": ((t for t in ()), TypeError, "list of tasks.*generator"),
}


@pytest.mark.parametrize("bad", NO_TASKS)
@pytest.mark.parametrize("method", ["fit", "partial_fit", "predict", "score"])
def test_no_tasks(fitted, bad, method, no_training):
    meta, tasks, before = fitted
    value, kind, said = NO_TASKS[bad]
    with pytest.raises(kind, match=said):
        getattr(meta, method)(value)
    assert all(map(np.array_equal, meta.predict(tasks), before))


@pytest.mark.parametrize("kind", METHODS)
def test_names_that_differ_between_tasks(kind, no_training):
    tasks = make_tasks(kind)
    frames = [framed(task, NAMES) for task in tasks]
    for names, said in (
        (NAMES[::-1], "Task 4 .*another order"),
        ([*NAMES[:3], "size"], r"missing \['pulse'\], unknown \['size'\]"),
        (NAMES[:3], "Task 4 .* has 3 features"),
    ):
        with pytest.raises(ValueError, match=said):
            kind(small_net()).fit([*frames, framed(tasks[-1], names)])


@pytest.mark.parametrize("kind", METHODS)
def test_names_that_differ_between_fit_and_later(kind):
    tasks = [framed(task, NAMES) for task in make_tasks(kind)]
    meta = kind(small_net(), random_state=0).fit(tasks)
    few_shot = meta.adapt(tasks[0].X_support, tasks[0].y_support)
    other = tasks[0].replace_X(tasks[0].X[NAMES[::-1]])
    for call in (
        lambda: meta.adapt(other.X_support, other.y_support),
        lambda: meta.partial_fit([other]),
        lambda: meta.predict([other]),
        lambda: few_shot.predict(other.X_query),
    ):
        with pytest.raises(ValueError, match=r"another order|feature names"):
            call()
    with pytest.raises(ValueError, match=r"missing|feature names"):
        meta.adapt(other.X_support.rename(columns={"age": "size"}), other.y_support)


BAD_SUPPORT = {
    "fewer features": (lambda X, y: (X[:, :3], y), "support set has 3 features.*4"),
    "wrong dimensions": (lambda X, y: (X[0], y), "support set has rows of shape"),
    "images": (lambda X, y: (X[:, None, None], y), "support set has rows of shape"),
    "nan": (lambda X, y: (X * np.nan, y), "X of the support set contains NaN"),
    "infinite": (
        lambda X, y: (X * np.inf, y),
        "X of the support set contains NaN, inf",
    ),
    "numbers as strings": (lambda X, y: (X.astype(str), y), "not real numbers"),
    "words": (lambda X, y: (np.full(X.shape, "a"), y), "not real numbers"),
    "empty": (lambda X, y: (X[:0], y[:0]), "support set is empty"),
    "lengths": (lambda X, y: (X[1:], y), r"X of the support set has \d+ rows, y"),
    "no y": (lambda X, y: (X, None), "y of the support set is missing"),
    "y of three dimensions": (lambda X, y: (X, y[:, None, None]), "y of .* shape"),
}


@pytest.mark.parametrize("bad", BAD_SUPPORT)
def test_bad_support_set(fitted, bad):
    meta, tasks, before = fitted
    spoil, said = BAD_SUPPORT[bad]
    X, y = tasks[0].X_support, tasks[0].y_support
    few_shot = meta.adapt(X, y)
    expected = few_shot.predict(X)
    for call in (meta.adapt, few_shot.fit):
        with pytest.raises(ValueError, match=said):
            call(*spoil(X, y))
    assert np.array_equal(few_shot.predict(X), expected)
    assert all(map(np.array_equal, meta.predict(tasks), before))


@pytest.mark.parametrize(
    "weight, said",
    [
        (lambda n: np.ones(n - 1), "sample_weight"),
        (lambda n: -np.ones(n), "sample_weight.*at least 0"),
        (lambda n: np.full(n, np.nan), "sample_weight.*finite"),
        (lambda n: np.ones((n, 2)), "sample_weight"),
        (lambda n: np.zeros(n), "sample_weight.*zero"),
    ],
)
def test_bad_weights_of_a_support_set(fitted, weight, said):
    meta, tasks, _ = fitted
    X, y = tasks[0].X_support, tasks[0].y_support
    with pytest.raises(ValueError, match=said):
        meta.adapt(X, y, sample_weight=weight(len(y)))


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda X: X[:, :3], "3 features"),
        (lambda X: X * np.nan, "X contains NaN"),
        (lambda X: X[0], "X has 1 dimension"),
        (lambda X: np.full(X.shape, "a"), "not real numbers"),
    ],
)
def test_bad_rows_to_predict(fitted, spoil, said):
    meta, tasks, _ = fitted
    few_shot = meta.adapt(tasks[0].X_support, tasks[0].y_support)
    with pytest.raises(ValueError, match=said):
        few_shot.predict(spoil(tasks[0].X_query))


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize(
    "y, said",
    [
        (lambda t: np.zeros(len(t), dtype=int), r"Task 4 .*one class \(.*0.*\)"),
        (lambda t: t.y + 0.5, "y of Task 4 .*continuous"),
        (lambda t: np.where(t.y > 0, t.y, np.nan), "y of Task 4 .*NaN.*labeled"),
        (lambda t: t.y.astype(str), "strings as labels and others numbers"),
        (lambda t: np.array([1, "a", *t.y[2:]], dtype=object), "y of Task 4 .*mixes"),
        (lambda t: np.column_stack([t.y, t.y]), "y of Task 4 .*shape"),
    ],
)
def test_bad_labels(kind, y, said, no_training):
    tasks = make_tasks(kind)
    with pytest.raises(ValueError, match=said):
        kind(small_net()).fit([*tasks, with_y(tasks[-1], y(tasks[-1]))])


@pytest.mark.parametrize("kind", REGRESSORS)
@pytest.mark.parametrize(
    "y, said",
    [
        (
            lambda t: np.full(len(t), "a"),
            "y of Task 4 .*not real numbers.*meta-classifier",
        ),
        (lambda t: t.y * np.nan, "y of Task 4 .*NaN"),
        (lambda t: t.y * np.inf, "y of Task 4 .*infinity"),
        (lambda t: np.column_stack([t.y, t.y]), "Task 4 .*as many targets"),
        (lambda t: t.y[:, None, None], r"y of Task 4 .*shape \(\d+, 1, 1\)"),
    ],
)
def test_bad_targets(kind, y, said, no_training):
    tasks = make_tasks(kind)
    with pytest.raises(ValueError, match=said):
        kind(small_net()).fit([*tasks, with_y(tasks[-1], y(tasks[-1]))])


def test_task_says_what_is_missing_in_it():
    X = np.eye(4)
    for make, said in (
        (lambda: Task(X, None, name="ann"), "y of task 'ann' is missing"),
        (lambda: Task(X[0], [0, 1, 0, 1]), "1 dimension.*at least 2"),
        (lambda: Task(X, [0, 1]), "y of the task has 2 entries, but X has 4 rows"),
        (lambda: Task(X, 1), "y of the task has a scalar"),
        (lambda: Task(X, range(4), support=[7]), "holds row 7, but X has 4 rows"),
        (lambda: Task(X, range(4), support=[True]), "mask of shape"),
        (lambda: Task(X, range(4), labels="own"), "must be 'shared' or 'local'"),
        (lambda: Task(X[:0], []), "no rows"),
    ):
        with pytest.raises(ValueError, match=said):
            make()


@pytest.mark.parametrize("kind", METHODS)
def test_pairs_without_y(kind, no_training):
    with pytest.raises(ValueError, match="y of task '0' is missing"):
        kind(small_net()).fit([(np.eye(4), None)])


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_label_that_training_did_not_have(kind):
    tasks = make_tasks(kind)
    meta = kind(small_net()).fit(tasks)
    task = with_y(tasks[0], tasks[0].y + 1)
    for call in (
        lambda: meta.adapt(task.X_support, task.y_support),
        lambda: meta.partial_fit([task]),
        lambda: meta.score([task]),
    ):
        with pytest.raises(ValueError, match=r"label .*3.*which no training task had"):
            call()


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_local_query_class_without_a_support_row(kind, no_training):
    task = make_blob_tasks(1, n_classes=3, n_features=4, random_state=0)[0]
    lacking = Task(task.X, task.y, task.support & (task.y != 2), labels="local")
    with pytest.raises(ValueError, match=r"Task 1 has local labels, .*class .*2"):
        kind(small_net()).fit([task, lacking])


def test_more_classes_than_the_head():
    """MAML has one output a class; the other methods take any number."""
    few, many = (
        make_blob_tasks(4, n_classes=n, n_features=4, random_state=0) for n in (3, 5)
    )
    meta = MAMLClassifier(small_net(), random_state=0).fit(few)
    before = list(meta.predict(few))
    for call in (
        lambda: meta.adapt(many[0].X_support, many[0].y_support),
        lambda: meta.predict(many),
        lambda: meta.score(many),
        lambda: meta.partial_fit(many),
    ):
        with pytest.raises(ValueError, match="5 classes, the head has 3"):
            call()
    assert all(map(np.array_equal, meta.predict(few), before))
    for kind in (PrototypicalClassifier, ALPaCAClassifier):
        meta = kind(small_net()).fit(few)
        adapted = meta.adapt(many[0].X_support, many[0].y_support)
        assert len(adapted.classes_) == 5 and 0 <= meta.score(many) <= 1


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("net", [nn.Linear(4, 1), "MLP", TaskNet, 3])
def test_net_that_is_none(kind, net, no_training):
    with pytest.raises(TypeError, match=r"net must be a TaskNet.*TaskNet\(module="):
        kind(net).fit(make_tasks(kind))


@pytest.mark.parametrize("kind", [MAMLClassifier, MAMLRegressor])
def test_output_size_that_does_not_fit(kind, no_training):
    net = TaskNet(nn.Sequential(nn.Linear(4, 7)))
    with pytest.raises(
        ValueError, match=r"Sequential gives 7 outputs.*these tasks need"
    ):
        kind(net).fit(make_tasks(kind))


class NoRows(nn.Module):
    def __init__(self, n_features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_features))

    def forward(self, X):
        return X @ self.weight


@pytest.mark.parametrize("kind", METHODS)
def test_output_of_another_rank(kind, no_training):
    with pytest.raises(ValueError, match=r"NoRows turned 2 rows into \(2,\)"):
        kind(TaskNet(NoRows)).fit(make_tasks(kind))


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_one_row_of_each_class_leaves_no_query_rows(kind, no_training):
    task = make_tasks(kind)[0]
    rows = [np.flatnonzero(task.y == label)[0] for label in range(3)]
    pairs = [(task.X, task.y), (task.X[rows], task.y[rows])]
    with pytest.raises(ValueError, match=r"Task 1 .*leaves no query rows. Add rows"):
        kind(small_net(), support_size=1).fit(pairs)


@pytest.mark.parametrize("size", [5, (3, 20), 0.9])
@pytest.mark.parametrize("kind", METHODS)
def test_support_size_beyond_the_rows_of_a_task(kind, size):
    """All rows but one (of each class) are then drawn."""
    tasks = make_tasks(kind)
    few = [0, 1, 2, 3, 4] if kind in REGRESSORS else np.argsort(tasks[0].y)[2:10]
    pairs = [(task.X, task.y) for task in tasks]
    pairs.append((tasks[0].X[few], tasks[0].y[few]))
    meta = kind(small_net(), support_size=size, random_state=0).fit(pairs)
    assert np.isfinite(meta.score(pairs[:-1]))
    assert all(len(rows) for rows in meta.predict(pairs))


@pytest.mark.parametrize("size", [0, -1, 1.0, 1.5, (3,), (4, 2), (1, 0.5), "5", None])
def test_support_size_that_is_none(size, no_training):
    with pytest.raises(ValueError, match="support_size must be"):
        PrototypicalClassifier(support_size=size).fit(
            make_tasks(PrototypicalClassifier)
        )


@pytest.mark.parametrize("kind", METHODS)
def test_parameters_of_a_net_that_is_not_there(kind):
    with pytest.raises(ValueError, match=r"net is None. Pass net=TaskNet\(\)"):
        kind().set_params(net__lr=0.1)
    with pytest.raises(ValueError, match="Invalid parameter"):
        kind().set_params(learning_rate=0.1)
    with pytest.raises(ValueError, match="nonsense"):
        kind(TaskNet()).set_params(net__nonsense=1)


def test_strings_pass_where_a_transformer_encodes_them():
    from sklearn.preprocessing import OneHotEncoder

    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(4):
        y = np.arange(12) % 2
        colour = np.where(y, "red", rng.choice(["blue", "green"], 12))
        pairs.append((pd.DataFrame({"colour": colour, "size": "small"}), y))
    meta = PrototypicalClassifier(small_net(), support_size=2, random_state=0)
    with pytest.raises(
        ValueError, match=r"X of Task 0 .*not real numbers.*OneHotEncoder"
    ):
        meta.fit(pairs)
    encoder = TaskTransformer(OneHotEncoder(sparse_output=False))
    pipeline = Pipeline([("encode", encoder), ("meta", meta)]).fit(pairs)
    assert pipeline.score(pairs) > 0.8


def test_transformers_over_tasks_say_what_is_wrong():
    tasks = make_tasks(PrototypicalClassifier)
    scale = TaskTransformer(StandardScaler())
    with pytest.raises(ValueError, match=r"Task 4 .* All tasks need the same features"):
        scale.fit([*tasks, tasks[0].replace_X(tasks[0].X[:, :2])])
    with pytest.raises(ValueError, match="no tasks"):
        scale.fit([])
    with pytest.raises(ValueError, match="transformer"):
        TaskTransformer("scaler").fit(tasks)
    meta = PrototypicalClassifier(small_net())
    bare = Pipeline([("scale", StandardScaler()), ("meta", meta)])
    with pytest.raises((ValueError, TypeError), match=r"task|Task"):
        bare.fit(tasks)


def test_adapt_and_evaluate_say_what_they_take():
    tasks = make_tasks(PrototypicalClassifier)
    meta = PrototypicalClassifier(small_net()).fit(tasks)
    X, y = tasks[0].X_support, tasks[0].y_support
    for call in (lambda: adapt(StandardScaler(), X, y), lambda: evaluate("no", tasks)):
        with pytest.raises(TypeError, match="Expected a meta-learner"):
            call()
    with pytest.raises(TypeError, match="must be a meta-learner, got StandardScaler"):
        FewShotClassifier(StandardScaler()).fit(X, y)
    with pytest.raises(ValueError, match="no tasks"):
        evaluate(meta, [])
    with pytest.raises(ValueError, match="'nonsense'"):
        task_scorer("nonsense")


def test_a_task_without_labelled_query_rows_has_no_score():
    tasks = make_tasks(PrototypicalClassifier)
    task = tasks[0]
    meta = PrototypicalClassifier(small_net()).fit(tasks)
    unknown = Task.from_support_query(task.X_support, task.y_support, task.X_query)
    assert meta.predict([unknown])[0].shape == task.y_query.shape
    with pytest.raises(ValueError, match="no labelled query row"):
        meta.score([unknown])
    with pytest.raises(ValueError, match="Task 1 has no labelled query row"):
        meta.fit([task, unknown])
