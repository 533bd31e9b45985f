"""What a good statistician would do without meta-learning: baselines for a forecast.

Each baseline is a function ``baseline(train_tasks, n_support, **settings)`` that
learns what it can from the training tasks and returns the function
``predict(X_support, y_support, X_query)`` for new ones. A task is any object with
``X`` (DataFrame or array, time in the first column, numbers only) and ``y``; its first
``n_support`` rows are the support set, the others the query set. :func:`choose` picks
the settings on validation tasks cut from the training ones, for each size of the
support set anew: the baselines get every chance.
"""

import warnings
from functools import lru_cache

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor, kernels
from sklearn.model_selection import KFold
from statsmodels.regression.mixed_linear_model import MixedLM


def _time(X):
    return np.asarray(X, dtype=float)[:, 0]


def _columns(X, features):
    """The time alone, or all the features."""
    return np.asarray(X, dtype=float)[:, : 1 if features == "time" else None]


def patient_mean(train_tasks, n_support):
    """The mean of the support set."""
    return lambda X_support, y_support, X_query: np.full(len(X_query), y_support.mean())


def hold_last(train_tasks, n_support):
    """Interpolation in time between readings, the nearest one held beyond them."""

    def predict(X_support, y_support, X_query):
        order = np.argsort(_time(X_support))
        return np.interp(_time(X_query), _time(X_support)[order], y_support[order])

    return predict


def gaussian_process(train_tasks, n_support, kernel="rbf"):
    """A Gaussian process on time for each task, around the mean of its support set.

    Hyperparameters maximise the marginal likelihood of the support set alone. `kernel`
    is "rbf", "matern", "linear" or "linear+rbf", each with a scale and white noise.
    """
    parts = {
        "rbf": kernels.RBF(1.0, (1e-1, 1e2)),
        "matern": kernels.Matern(1.0, (1e-1, 1e2)),
        "linear": kernels.DotProduct(1.0, (1e-2, 1e2)),
    }
    full = kernels.WhiteKernel(1e-2, (1e-6, 1.0))
    for name in kernel.split("+"):
        full = kernels.ConstantKernel(1.0, (1e-3, 1e3)) * parts[name] + full

    def predict(X_support, y_support, X_query):
        start = _time(X_support).mean()
        months = [(_time(X)[:, None] - start) / 30 for X in (X_support, X_query)]
        center, spread = y_support.mean(), y_support.std() or 1.0
        gp = GaussianProcessRegressor(full, n_restarts_optimizer=1, random_state=0)
        with warnings.catch_warnings():
            # A hyperparameter at its bound is no news with five readings.
            warnings.simplefilter("ignore")
            gp.fit(months[0], (y_support - center) / spread)
        return center + spread * gp.predict(months[1])

    return predict


def mixed_model(train_tasks, n_support, covariates=False):
    """Linear mixed-effects model: random intercept and slope in time, by REML.

    A new task's effects are their best linear unbiased predictor from its support set,
    G Z' (Z G Z' + s2 I)^-1 (y - X beta), with G their covariance, Z = [1, time] and s2
    the noise. `covariates` adds the other columns as fixed effects.
    """
    features = "all" if covariates else "time"
    rows = np.concatenate([_columns(task.X, features) for task in train_tasks])
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    scale[scale == 0] = 1.0

    def design(X):
        Z = (_columns(X, features) - mean) / scale
        return np.column_stack([np.ones(len(Z)), Z])

    exog = design(rows) if covariates else design(rows[:, :1])
    y = np.concatenate([task.y for task in train_tasks])
    groups = np.repeat(np.arange(len(train_tasks)), [len(t.y) for t in train_tasks])
    with warnings.catch_warnings():
        # Convergence notes of the optimiser; the fit itself is what is compared.
        warnings.simplefilter("ignore")
        model = MixedLM(y, exog, groups, exog_re=exog[:, :2]).fit(reml=True)
    beta, G, noise = model.fe_params, np.asarray(model.cov_re), model.scale

    def predict(X_support, y_support, X_query):
        S, Q = design(X_support), design(X_query)
        Z = S[:, :2]
        V = Z @ G @ Z.T + noise * np.eye(len(Z))
        effects = G @ Z.T @ np.linalg.solve(V, y_support - S @ beta)
        return Q @ beta + Q[:, :2] @ effects

    return predict


def _summary(X_support, y_support):
    """Mean, last value less mean, slope in time, spread, and mean time."""
    time = _time(X_support)
    center = time - time.mean()
    slope = center @ (y_support - y_support.mean()) / max(center @ center, 1e-12)
    mean, last = y_support.mean(), y_support[time.argmax()]
    return [mean, last - mean, slope, y_support.std(), time.mean()]


def gradient_boosting(
    train_tasks, n_support, features="time", offset="mean", iterations=100
):
    """Pooled gradient boosting on y minus the level of the task's support set.

    The features are those of the row and a summary of the support set (mean, last
    value, slope, spread). `offset` is "mean", "last", or "line" (the straight line
    through the support set, by least squares).
    """

    def prepare(X_support, y_support, X):
        """Features and offset of the rows X."""
        summary = _summary(X_support, y_support)
        mean, last, slope, _, middle = summary
        line = slope * (_time(X) - middle)
        level = mean + {"mean": 0.0, "last": last, "line": line}[offset]
        repeated = np.tile(summary, (len(X), 1))
        return np.column_stack([_columns(X, features), line, repeated]), level

    rows, targets = [], []
    for task in train_tasks:
        X, y = np.asarray(task.X, dtype=float), task.y
        Z, level = prepare(X[:n_support], y[:n_support], X[n_support:])
        rows.append(Z)
        targets.append(y[n_support:] - level)
    model = HistGradientBoostingRegressor(
        max_iter=iterations, max_depth=3, random_state=0
    ).fit(np.concatenate(rows), np.concatenate(targets))

    def predict(X_support, y_support, X_query):
        Z, level = prepare(X_support, y_support, X_query)
        return level + model.predict(Z)

    return predict


def _train(weights, X, y, steps, lr):
    """Full-batch Adam on the squared error of a tanh network: the new weights.

    `weights` is a list of matrices, the last row of each the bias. By hand, because
    an autograd engine's overhead is ten times the work on so few rows.
    """
    weights = [W.copy() for W in weights]
    moments = [(np.zeros_like(W), np.zeros_like(W)) for W in weights]
    for step in range(1, steps + 1):
        layers = _layers(weights, X)
        delta = 2 * (layers[-1] - y[:, None]) / len(y)
        rate = lr * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
        for i in reversed(range(len(weights))):
            W, (first, second) = weights[i], moments[i]
            gradient = np.vstack([layers[i].T @ delta, delta.sum(axis=0)])
            delta = (delta @ W[:-1].T) * (1 - layers[i] ** 2)
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient**2 - second)
            W -= rate * first / (second**0.5 + 1e-8)
    return weights


def _layers(weights, X):
    """Input, hidden layers and output of the network."""
    layers = [X]
    for W in weights[:-1]:
        layers.append(np.tanh(layers[-1] @ W[:-1] + W[-1]))
    return [*layers, layers[-1] @ weights[-1][:-1] + weights[-1][-1]]


@lru_cache(maxsize=8)  # one for all the settings of the fine-tuning
def _joint_network(table, n_columns):
    """The network trained on all rows; `table` holds X and y as bytes (hashable)."""
    rows = np.frombuffer(table, dtype=np.float32).reshape(-1, n_columns + 1)
    rng = np.random.RandomState(0)
    weights = [
        rng.uniform(-(n_in**-0.5), n_in**-0.5, (n_in + 1, n_out)).astype(np.float32)
        for n_in, n_out in ((n_columns, 32), (32, 32), (32, 1))
    ]
    return _train(weights, rows[:, :-1], rows[:, -1], steps=500, lr=3e-3)


def fine_tuned_network(train_tasks, n_support, features="time", steps=100, lr=0.003):
    """One network trained on all tasks jointly, then fine-tuned on the support set.

    The target is y minus the mean of the task's support set: without that offset, the
    level of a new task costs more steps than its few rows bear. All the weights move,
    `steps` steps of Adam with the rate `lr`.
    """
    X = np.concatenate([_columns(task.X, features) for task in train_tasks])
    y = np.concatenate([task.y - task.y[:n_support].mean() for task in train_tasks])
    mean, scale, y_mean, y_scale = X.mean(axis=0), X.std(axis=0), y.mean(), y.std()
    table = np.column_stack([(X - mean) / scale, (y - y_mean) / y_scale])
    joint = _joint_network(table.astype(np.float32).tobytes(), X.shape[1])

    def rows(X):
        return ((_columns(X, features) - mean) / scale).astype(np.float32)

    def predict(X_support, y_support, X_query):
        shift = y_mean + y_support.mean()
        target = ((y_support - shift) / y_scale).astype(np.float32)
        weights = _train(joint, rows(X_support), target, steps, lr)
        return _layers(weights, rows(X_query))[-1][:, 0] * y_scale + shift

    return predict


#: The baselines, and the settings that :func:`choose` tries.
BASELINES = {
    patient_mean: [{}],
    hold_last: [{}],
    gaussian_process: [
        {"kernel": kernel} for kernel in ("rbf", "matern", "linear", "linear+rbf")
    ],
    mixed_model: [{"covariates": False}, {"covariates": True}],
    gradient_boosting: [
        {"features": features, "offset": offset, "iterations": iterations}
        for features in ("time", "all")
        for offset in ("mean", "last", "line")
        for iterations in (20, 100)
    ],
    fine_tuned_network: [
        {"features": features, "steps": steps, "lr": lr}
        for features in ("time", "all")
        for steps, lr in ((100, 0.003), (300, 0.003), (300, 0.01))
    ],
}


def squared_errors(predict, tasks, n_support):
    """Squared errors of the query rows of each task, a list of arrays."""
    errors = []
    for task in tasks:
        X, rest = task.X[:n_support], task.X[n_support:]
        errors.append((predict(X, task.y[:n_support], rest) - task.y[n_support:]) ** 2)
    return errors


def choose(baseline, train_tasks, n_support, n_folds=3, random_state=0):
    """Settings of `baseline` with the least squared error on validation tasks.

    Each fold of the training tasks is the validation set once. The returned
    ``(predict, settings)`` is fitted on all of them with the settings that won.
    """
    candidates = BASELINES[baseline]
    folds = KFold(n_folds, shuffle=True, random_state=random_state)

    def loss(settings):
        errors = []
        for fit, held_out in folds.split(train_tasks):
            predict = baseline([train_tasks[i] for i in fit], n_support, **settings)
            validation = [train_tasks[i] for i in held_out]
            errors += squared_errors(predict, validation, n_support)
        return np.concatenate(errors).mean()

    settings = min(candidates, key=loss) if len(candidates) > 1 else candidates[0]
    return baseline(train_tasks, n_support, **settings), settings
