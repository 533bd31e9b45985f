import numpy as np
import pytest
from sklearn.gaussian_process.kernels import RBF, Matern

from sk_meta.tasks import (
    make_blob_tasks,
    make_gaussian_process_tasks,
    make_linear_tasks,
    make_sinusoids,
)

MAKERS = [
    make_sinusoids,
    make_linear_tasks,
    make_gaussian_process_tasks,
    make_blob_tasks,
]
REGRESSION = MAKERS[:3]


def same(tasks, others):
    return all(
        np.array_equal(a.X, b.X) and np.array_equal(a.y, b.y)
        for a, b in zip(tasks, others, strict=True)
    )


@pytest.mark.parametrize("make", MAKERS)
def test_random_state(make):
    assert same(make(5, random_state=0), make(5, random_state=0))
    assert not same(make(5, random_state=0), make(5, random_state=1))
    assert not same(make(5), make(5))
    state = np.random.RandomState(3)
    first = make(5, random_state=state)
    assert same(first, make(5, random_state=np.random.RandomState(3)))
    assert not same(first, make(5, random_state=state))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("random_state", [None, 0])
def test_global_generator_is_left_alone(make, random_state):
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    make(3, random_state=random_state)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("make", REGRESSION)
def test_sizes(make):
    tasks = make(200, n_support=3, n_query=(4, 7), random_state=0)
    assert len(tasks) == 200
    assert {len(t.X_query) for t in tasks} == {4, 5, 6, 7}
    for task in tasks:
        assert task.labels == "shared"
        assert task.X.dtype == task.y.dtype == np.float64
        assert len(task.X) == len(task.y)
        assert np.array_equal(np.flatnonzero(task.support), [0, 1, 2])
    assert len({task.name for task in tasks}) == 200


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "sizes",
    [
        {"n_support": 0},
        {"n_query": 0},
        {"n_support": (0, 3)},
        {"n_query": (5, 4)},
        {"n_query": 2.5},
        {"n_tasks": 0},
    ],
)
def test_bad_sizes(make, sizes):
    with pytest.raises(ValueError, match=rf"{next(iter(sizes))} must be an int"):
        make(**sizes)


@pytest.mark.parametrize("make", REGRESSION)
def test_bad_noise(make):
    with pytest.raises(ValueError, match="noise must be"):
        make(noise=-1.0)


def test_sinusoids_follow_their_metadata():
    tasks = make_sinusoids(300, n_query=(1, 30), random_state=0)
    for task in tasks:
        amplitude, phase = task.metadata
        np.testing.assert_allclose(task.y, amplitude * np.sin(task.X[:, 0] - phase))
    truth = np.array([task.metadata for task in tasks])
    assert np.all((truth >= [0.1, 0.0]) & (truth <= [5.0, np.pi]))
    np.testing.assert_allclose(truth.mean(axis=0), [2.55, np.pi / 2], atol=0.3)
    x = np.concatenate([task.X for task in tasks])
    assert -5 <= x.min() < -4.9 and 4.9 < x.max() <= 5


def test_sinusoid_noise():
    tasks = make_sinusoids(500, noise=0.3, random_state=0)
    errors = [t.y - t.metadata[0] * np.sin(t.X[:, 0] - t.metadata[1]) for t in tasks]
    assert np.std(errors) == pytest.approx(0.3, rel=0.05)


def test_linear_weights_have_the_prior():
    mean, covariance = np.array([2.0, -1.0]), np.array([[1.0, 0.6], [0.6, 0.5]])
    tasks = make_linear_tasks(
        4000,
        n_features=2,
        mean=mean,
        covariance=covariance,
        noise=0.2,
        random_state=0,
    )
    weights = np.array([task.metadata for task in tasks])
    np.testing.assert_allclose(weights.mean(axis=0), mean, atol=0.08)
    np.testing.assert_allclose(np.cov(weights.T), covariance, atol=0.08)
    errors = np.concatenate([task.y - task.X @ task.metadata for task in tasks])
    assert errors.std() == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize(
    ("options", "kernel"),
    [
        ({"kernel": "rbf", "length_scale": 0.7}, RBF(0.7)),
        ({"kernel": "matern", "nu": 0.5}, Matern(1.0, nu=0.5)),
        ({"kernel": "matern", "nu": 1.5, "n_features": 3}, Matern(1.0, nu=1.5)),
        ({"kernel": "matern", "nu": 2.5, "length_scale": 2.0}, Matern(2.0, nu=2.5)),
    ],
)
def test_gaussian_process_covariance(options, kernel):
    """Whitened with sklearn's kernel, the draws are independent standard normal."""
    noise, n_tasks = 0.1, 2000
    tasks = make_gaussian_process_tasks(
        n_tasks, noise=noise, n_support=3, n_query=(4, 5), random_state=0, **options
    )
    white = []
    for task in tasks:
        K = kernel(task.X) + noise**2 * np.eye(len(task))
        white.append(np.linalg.solve(np.linalg.cholesky(K), task.y)[:7])
    white = np.array(white)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(white.T @ white / n_tasks, np.eye(7), atol=0.13)


def test_gaussian_process_scales_of_each_task():
    """Drawn in their ranges; whitened with a task's own, its rows are standard."""
    tasks = make_gaussian_process_tasks(
        2000,
        length_scale=(0.3, 3.0),
        output_scale=(0.5, 4.0),
        noise=(0.0, 0.5),
        n_support=2,
        n_query=3,
        random_state=0,
    )
    truth = np.array([task.metadata for task in tasks])
    np.testing.assert_allclose(truth.min(axis=0), [0.3, 0.5, 0.0], atol=0.01)
    np.testing.assert_allclose(truth.max(axis=0), [3.0, 4.0, 0.5], atol=0.01)
    white = []
    for task, (length, scale, noise) in zip(tasks, truth, strict=True):
        K = scale**2 * RBF(length)(task.X) + (noise**2 + 1e-9) * np.eye(5)
        white.append(np.linalg.solve(np.linalg.cholesky(K), task.y))
    white = np.array(white)
    np.testing.assert_allclose(white.T @ white / len(tasks), np.eye(5), atol=0.13)


def test_gaussian_process_without_noise_and_many_rows():
    task = make_gaussian_process_tasks(
        1, noise=0.0, length_scale=3.0, n_query=400, random_state=0
    )[0]
    order = np.argsort(task.X[:, 0])
    assert np.abs(np.diff(task.y[order])).max() < 0.1  # smooth


def test_gaussian_process_chunks_do_not_matter(monkeypatch):
    whole = make_gaussian_process_tasks(20, n_query=(5, 8), random_state=0)
    monkeypatch.setattr("sk_meta.tasks.generators.CHUNK", 1)
    for a, b in zip(
        whole,
        make_gaussian_process_tasks(20, n_query=(5, 8), random_state=0),
        strict=True,
    ):
        np.testing.assert_allclose(a.y, b.y)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": "linear"},
        {"kernel": "matern", "nu": 3},
        {"length_scale": 0.0},
        {"length_scale": (1.0, 0.5)},
        {"output_scale": (0.0, 1.0)},
        {"output_scale": (1.0,)},
        {"noise": -0.1},
    ],
)
def test_gaussian_process_bad_options(options):
    with pytest.raises(ValueError, match=f"{list(options)[-1]} must be"):
        make_gaussian_process_tasks(1, **options)


@pytest.mark.parametrize("labels", ["local", "shared"])
def test_blob_counts(labels):
    tasks = make_blob_tasks(
        100, n_classes=4, n_support=(1, 3), n_query=2, labels=labels, random_state=0
    )
    shots = np.array([np.bincount(task.y_support, minlength=4) for task in tasks])
    assert set(shots.ravel()) == {1, 2, 3}
    assert any(len(set(row)) > 1 for row in shots)
    for task in tasks:
        assert task.labels == labels
        assert np.array_equal(np.bincount(task.y_query), [2, 2, 2, 2])
        n_support = len(task.y_support)
        assert task.support[:n_support].all() and not task.support[n_support:].any()


def centres(tasks):
    return np.array(
        [[t.X[t.y == k].mean(axis=0) for k in np.unique(t.y)] for t in tasks]
    )


@pytest.mark.parametrize("labels", ["local", "shared"])
def test_blob_separation(labels):
    tasks = make_blob_tasks(
        300,
        n_classes=20,
        n_query=100,
        n_features=20,
        separation=5.0,
        labels=labels,
        random_state=0,
    )
    centre = centres(tasks)
    apart = ((centre[:, None] - centre[:, :, None]) ** 2).sum(axis=-1)
    of_pairs = apart[:, ~np.eye(20, dtype=bool)]
    assert np.sqrt(of_pairs.mean()) == pytest.approx(5.0, rel=0.1)
    within = np.concatenate([t.X - c[t.y] for t, c in zip(tasks, centre, strict=True)])
    assert within.std() == pytest.approx(1.0, rel=0.02)


def test_blob_labels_mean_what_they_say():
    """Class differences agree across tasks and calls if shared, else they do not."""
    for labels, agree in [("shared", True), ("local", False)]:
        options = {"n_query": 300, "separation": 8.0, "labels": labels}
        a, b = (make_blob_tasks(1, random_state=s, **options) for s in (0, 1))
        a, b = centres(a)[0], centres(b)[0]
        assert np.allclose(a - a[0], b - b[0], atol=0.5) == agree
        assert not np.allclose(a, b, atol=0.5)


def test_blob_bad_options():
    with pytest.raises(ValueError, match="labels must be"):
        make_blob_tasks(labels="global")
    with pytest.raises(ValueError, match="n_classes must be"):
        make_blob_tasks(n_classes=1)
