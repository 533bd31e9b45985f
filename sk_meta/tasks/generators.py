"""Made-up tasks whose best solution is known."""

from math import sqrt
from numbers import Integral

import numpy as np

from sk_meta.tasks.task import Task

# Draws from a kernel need a matrix that is positive definite after rounding, too.
JITTER = 1e-9
# Numbers in the kernel matrices that are held at once (32 MiB).
CHUNK = 2**22


def make_sinusoids(
    n_tasks=100, *, n_support=10, n_query=10, noise=0.0, random_state=None
):
    """Make sinusoid regression tasks, as in Finn et al. [1]_.

    ``y = amplitude * sin(x - phase)``, with the amplitude uniform in [0.1, 5], the
    phase in [0, pi] and x in [-5, 5].

    Parameters
    ----------
    n_tasks : int, default=100
        Number of tasks.
    n_support, n_query : int or tuple of (low, high), default=10
        Rows of the support set and of the query set, which follows it. A tuple draws
        the number anew for each task, both ends included.
    noise : float, default=0.0
        Standard deviation of what is added to y, in both sets.
    random_state : int, RandomState, Generator or None, default=None
        Pass an int for the same tasks at every call. Global generators are left alone.

    Returns
    -------
    list of Task
        `X` (n_rows, 1) and `y` (n_rows,) are float64. `metadata` (2,) is the truth,
        amplitude and phase: not for a learner that is to be compared with others.

    References
    ----------
    .. [1] C. Finn, P. Abbeel, S. Levine (2017). Model-agnostic meta-learning for fast
       adaptation of deep networks. ICML.

    Examples
    --------
    >>> from sk_meta.tasks import make_sinusoids
    >>> tasks = make_sinusoids(3, n_support=5, n_query=(10, 20), random_state=0)
    >>> tasks[0].X_support.shape
    (5, 1)
    """
    rng = _generator(random_state)
    sizes = _draw_sizes(rng, n_tasks, n_support, n_query)
    rows = sizes.sum(axis=1)
    truth = rng.uniform([0.1, 0.0], [5.0, np.pi], size=(n_tasks, 2))
    amplitude, phase = np.repeat(truth, rows, axis=0).T
    x = rng.uniform(-5.0, 5.0, size=rows.sum())
    y = amplitude * np.sin(x - phase) + _noise(rng, noise, len(x))
    return _cut(x[:, None], y, sizes, "sinusoid", metadata=truth)


def make_linear_tasks(
    n_tasks=100,
    *,
    n_features=5,
    n_support=10,
    n_query=10,
    mean=1.0,
    covariance=0.25,
    noise=0.5,
    random_state=None,
):
    """Make linear regression tasks whose weights share a normal prior.

    ``y = X @ weights + noise``, with the weights drawn from N(mean, covariance) and X
    standard normal. Bayesian linear regression with this prior and noise is optimal,
    for the squared error and for the likelihood: no learner does better on average.

    Parameters
    ----------
    n_tasks : int, default=100
        Number of tasks.
    n_features : int, default=5
        Number of features. There is no intercept.
    n_support, n_query : int or tuple of (low, high), default=10
        Rows of the support set and of the query set, which follows it. A tuple draws
        the number anew for each task, both ends included.
    mean : float or array of shape (n_features,), default=1.0
        Mean of the weights.
    covariance : float or array of shape (n_features, n_features), default=0.25
        Covariance of the weights; a number stands for that times the identity.
    noise : float, default=0.5
        Standard deviation of what is added to y, in both sets.
    random_state : int, RandomState, Generator or None, default=None
        Pass an int for the same tasks at every call. Global generators are left alone.

    Returns
    -------
    list of Task
        `X` (n_rows, n_features) and `y` (n_rows,) are float64. `metadata` (n_features,)
        is the truth, the weights: not for a learner that is to be compared with others.

    Examples
    --------
    >>> from sk_meta.tasks import make_linear_tasks
    >>> tasks = make_linear_tasks(3, n_features=2, random_state=0)
    >>> tasks[0].X.shape, tasks[0].metadata.shape
    ((20, 2), (2,))
    """
    rng = _generator(random_state)
    sizes = _draw_sizes(rng, n_tasks, n_support, n_query)
    rows = sizes.sum(axis=1)
    mean = np.broadcast_to(mean, (n_features,))
    if np.ndim(covariance) == 0:
        covariance = covariance * np.eye(n_features)
    weights = rng.multivariate_normal(mean, covariance, size=n_tasks)
    X = rng.standard_normal((rows.sum(), n_features))
    y = (X * np.repeat(weights, rows, axis=0)).sum(axis=1) + _noise(rng, noise, len(X))
    return _cut(X, y, sizes, "linear", metadata=weights)


def make_gaussian_process_tasks(
    n_tasks=100,
    *,
    kernel="rbf",
    length_scale=1.0,
    output_scale=1.0,
    nu=1.5,
    noise=0.1,
    n_features=1,
    x_range=(-2.0, 2.0),
    n_support=10,
    n_query=10,
    random_state=None,
):
    """Make regression tasks drawn from a Gaussian process with mean 0.

    A Gaussian process with the task's own kernel and noise is optimal: no learner does
    better on average.

    Parameters
    ----------
    n_tasks : int, default=100
        Number of tasks.
    kernel : {"rbf", "matern"}, default="rbf"
        Covariance of the process, as sklearn.gaussian_process.kernels defines it.
    length_scale : float or tuple of (low, high), default=1.0
        Length scale of the kernel, in units of x. A tuple draws it anew for each task,
        uniformly.
    output_scale : float or tuple of (low, high), default=1.0
        Standard deviation of the process at a point; likewise.
    nu : {0.5, 1.5, 2.5}, default=1.5
        Smoothness of the Matern kernel.
    noise : float or tuple of (low, high), default=0.1
        Standard deviation of what is added to y, in both sets; likewise.
    n_features : int, default=1
        Dimension of x.
    x_range : tuple of (low, high), default=(-2.0, 2.0)
        Each feature is uniform in this range.
    n_support, n_query : int or tuple of (low, high), default=10
        Rows of the support set and of the query set, which follows it. A tuple draws
        the number anew for each task, both ends included.
    random_state : int, RandomState, Generator or None, default=None
        Pass an int for the same tasks at every call. Global generators are left alone.

    Returns
    -------
    list of Task
        `X` (n_rows, n_features) and `y` (n_rows,) are float64. `metadata` (3,) is the
        truth, length scale, output scale and noise: not for a learner that is to be
        compared with others.

    Examples
    --------
    >>> from sk_meta.tasks import make_gaussian_process_tasks
    >>> make_gaussian_process_tasks(2, kernel="matern", nu=2.5, random_state=0)
    [Task('gp_0', n_rows=20, n_support=10), Task('gp_1', n_rows=20, n_support=10)]
    >>> task = make_gaussian_process_tasks(length_scale=(0.2, 1.0), random_state=0)[0]
    >>> task.metadata.round(2)
    array([0.71, 1.  , 0.1 ])
    """
    covariance = _covariance(kernel, nu)
    rng = _generator(random_state)
    sizes = _draw_sizes(rng, n_tasks, n_support, n_query)
    truth = np.stack(
        [
            _draw_scale(rng, n_tasks, length_scale, "length_scale"),
            _draw_scale(rng, n_tasks, output_scale, "output_scale"),
            _draw_scale(rng, n_tasks, noise, "noise", zero=True),
        ],
        axis=1,
    )
    rows = sizes.sum(axis=1)
    starts = np.cumsum(rows) - rows
    X = rng.uniform(*x_range, size=(rows.sum(), n_features))
    y = rng.standard_normal(len(X))
    for n_rows in np.unique(rows):
        same = np.flatnonzero(rows == n_rows)
        per_chunk = max(1, CHUNK // int(n_rows) ** 2)
        for first in range(0, len(same), per_chunk):
            chosen = same[first : first + per_chunk]
            at = starts[chosen, None] + np.arange(n_rows)
            distance = _distances(X[at]) / truth[chosen, 0, None, None]
            K = covariance(distance) + JITTER * np.eye(n_rows)
            y[at] = (np.linalg.cholesky(K) @ y[at][..., None])[..., 0]
    scale, error = np.repeat(truth[:, 1:], rows, axis=0).T
    y = scale * y + error * rng.standard_normal(len(X))
    return _cut(X, y, sizes, "gp", metadata=truth)


def make_blob_tasks(
    n_tasks=100,
    *,
    n_classes=5,
    n_support=1,
    n_query=15,
    n_features=10,
    separation=4.0,
    labels="local",
    random_state=None,
):
    """Make classification tasks: each class is a normal cloud with covariance 1.

    Parameters
    ----------
    n_tasks : int, default=100
        Number of tasks.
    n_classes : int, default=5
        Number of classes of a task, at least 2.
    n_support, n_query : int or tuple of (low, high), default=1 and 15
        Rows of each class in the support set and in the query set, which follows it. A
        tuple draws the number anew for each class of each task, both ends included.
    n_features : int, default=10
        Number of features.
    separation : float, default=4.0
        Root mean square distance between the centres of two classes, in units of the
        standard deviation within a class.
    labels : {"local", "shared"}, default="local"
        "local": each task draws the centres of its classes. "shared": class k has the
        same centre in all tasks, of every call with as many classes and features, but
        each task is shifted as a whole by about as much as classes are apart.
    random_state : int, RandomState, Generator or None, default=None
        Pass an int for the same tasks at every call. Global generators are left alone.

    Returns
    -------
    list of Task
        `X` (n_rows, n_features) is float64, `y` (n_rows,) holds 0 to n_classes - 1.
        The rows of a set are sorted by class.

    Examples
    --------
    >>> from sk_meta.tasks import make_blob_tasks
    >>> task = make_blob_tasks(1, n_classes=3, n_support=2, random_state=0)[0]
    >>> task.y_support
    array([0, 0, 1, 1, 2, 2])
    """
    if labels not in ("local", "shared"):
        raise ValueError(f"labels must be 'local' or 'shared', got {labels!r}.")
    if not isinstance(n_classes, Integral) or n_classes < 2:
        raise ValueError(f"n_classes must be an int of at least 2, got {n_classes!r}.")
    rng = _generator(random_state)
    of_class = np.stack(
        [
            _draw_size(rng, (n_tasks, n_classes), size, name)
            for name, size in (("n_support", n_support), ("n_query", n_query))
        ],
        axis=1,
    )  # task, set, class
    scale = separation / sqrt(2 * n_features)
    if labels == "local":
        centres = rng.normal(scale=scale, size=(n_tasks, n_classes, n_features))
    else:
        # A seed of their own: meta-training tasks and new ones must share the centres.
        common = np.random.default_rng(0).normal(
            scale=scale, size=(n_classes, n_features)
        )
        centres = common + rng.normal(scale=scale, size=(n_tasks, 1, n_features))
    task, _, y = np.indices(of_class.shape).reshape(3, -1)
    repeats = of_class.ravel()
    X = np.repeat(centres[task, y], repeats, axis=0)
    X += rng.standard_normal(X.shape)
    sizes = of_class.sum(axis=2)
    return _cut(X, np.repeat(y, repeats), sizes, "blobs", labels=labels)


def _generator(random_state):
    if isinstance(random_state, np.random.RandomState):
        random_state = random_state.randint(2**32, size=4, dtype=np.uint32)
    return np.random.default_rng(random_state)


def _draw_sizes(rng, n_tasks, n_support, n_query):
    """Rows of the two sets of each task: array of shape (n_tasks, 2)."""
    support = _draw_size(rng, (n_tasks,), n_support, "n_support")
    return np.stack([support, _draw_size(rng, (n_tasks,), n_query, "n_query")], axis=1)


def _draw_size(rng, shape, size, name):
    ends = size if isinstance(size, tuple) else (size, size)
    whole = len(ends) == 2 and all(isinstance(end, Integral) for end in ends)
    if not whole or not 1 <= ends[0] <= ends[1]:
        raise ValueError(
            f"{name} must be an int of at least 1 or a tuple (low, high) of them, got "
            f"{size!r}."
        )
    if not isinstance(shape[0], Integral) or shape[0] < 1:
        raise ValueError(f"n_tasks must be an int of at least 1, got {shape[0]!r}.")
    return rng.integers(*ends, size=shape, endpoint=True)


def _draw_scale(rng, n_tasks, scale, name, zero=False):
    """A positive number for each task."""
    ends = scale if isinstance(scale, tuple) else (scale, scale)
    low, high = ends if len(ends) == 2 else (np.nan, np.nan)
    if not (low <= high and (low > 0 or (zero and low == 0))):
        least = "at least 0" if zero else "positive"
        raise ValueError(
            f"{name} must be {least}, a number or a tuple (low, high), got {scale!r}."
        )
    if low == high:
        return np.full(n_tasks, low)
    return rng.uniform(low, high, size=n_tasks)


def _noise(rng, scale, n):
    if not scale >= 0:
        raise ValueError(f"noise must be a number of at least 0, got {scale!r}.")
    return scale * rng.standard_normal(n)


def _distances(X):
    """Euclidean distances within each set: (..., n, d) to (..., n, n)."""
    columns = np.moveaxis(X, -1, 0)
    return np.sqrt(sum((x[..., :, None] - x[..., None, :]) ** 2 for x in columns))


def _covariance(kernel, nu):
    """The kernel as a function of distance over length scale."""
    if kernel == "rbf":
        return lambda r: np.exp(-0.5 * r**2)
    if kernel != "matern":
        raise ValueError(f"kernel must be 'rbf' or 'matern', got {kernel!r}.")
    polynomials = {
        0.5: lambda r: 1.0,
        1.5: lambda r: 1.0 + r,
        2.5: lambda r: 1.0 + r + r**2 / 3.0,
    }
    if nu not in polynomials:
        raise ValueError(f"nu must be one of {list(polynomials)}, got {nu!r}.")
    scale = sqrt(2 * nu)
    return lambda r: polynomials[nu](scale * r) * np.exp(-scale * r)


def _cut(X, y, sizes, name, labels="shared", metadata=None):
    """Tasks from the rows of all of them; `sizes` as from `_draw_sizes`."""
    ends = np.cumsum(sizes.sum(axis=1)).tolist()
    masks = {}
    tasks, start = [], 0
    for i, (end, (n_support, n_query)) in enumerate(
        zip(ends, sizes.tolist(), strict=True)
    ):
        size = (n_support, n_query)
        if size not in masks:
            masks[size] = np.arange(n_support + n_query) < n_support
        tasks.append(
            Task(
                X[start:end],
                y[start:end],
                support=masks[size],
                labels=labels,
                metadata=None if metadata is None else metadata[i],
                name=f"{name}_{i}",
            )
        )
        start = end
    return tasks
