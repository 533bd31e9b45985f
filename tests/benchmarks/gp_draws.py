"""Draws of Gaussian processes: log likelihood and coverage, against the posterior.

    python tests/benchmarks/gp_draws.py [METHOD ...] [--iterations 3000]

One input in [-2, 2], an RBF kernel whose length scale and output scale differ from task
to task, 3 to 50 support rows. Nothing can be better on average than the posterior that
knows the task's own scales; a good statistician, who does not, fits them to the support
set. Settings are chosen on validation tasks, after a quarter of the iterations; the
tasks of the table are drawn by another seed. Adds to docs/results/gp_draws.json, and
writes docs/results/gp_draws.md from it.
"""

import argparse
import warnings
from itertools import product
from time import process_time

import numpy as np
import torch
from pages import keep_row, table, write_page
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from skorch.callbacks import LRScheduler

from sk_meta import (
    ALPaCARegressor,
    AttentiveNeuralProcessRegressor,
    ConditionalNeuralProcessRegressor,
    DKTRegressor,
    InContextRegressor,
    TaskNet,
)
from sk_meta.metrics import mean_interval
from sk_meta.tasks import make_gaussian_process_tasks

BATCH, NOMINAL, QUANTILE = 16, 0.9, 1.6449
PROCESS = {
    "length_scale": (0.25, 1.0),
    "output_scale": (0.5, 1.5),
    "noise": 0.1,
    "n_support": (3, 50),
    "n_query": 20,
}
RATES = [1e-3, 3e-3]
LEARNERS = {
    "cnp": (ConditionalNeuralProcessRegressor, {}),
    "anp": (AttentiveNeuralProcessRegressor, {}),
    "in_context": (InContextRegressor, {}),
    "alpaca": (ALPaCARegressor, {}),
    "dkt": (
        DKTRegressor,
        {"lr": [1e-2, 3e-2], "n_kernels": [16], "hidden": [(), (64, 64)]},
    ),
}


def draw(n_tasks, seed):
    """Tasks."""
    return make_gaussian_process_tasks(n_tasks, random_state=seed, **PROCESS)


def process(kernel, optimizer=None):
    """scikit-learn's Gaussian process; the mean is 0, as it is of the tasks."""
    return GaussianProcessRegressor(
        kernel, optimizer=optimizer, n_restarts_optimizer=2, random_state=0
    )


def posterior(task):
    """Mean and standard deviation of new observations, the scales known."""
    length_scale, output_scale, noise = task.metadata
    kernel = ConstantKernel(output_scale**2) * RBF(length_scale)
    model = process(kernel + WhiteKernel(noise**2))
    return model.fit(task.X_support, task.y_support).predict(task.X_query, True)


def fitted(task):
    """The same, with the scales that make the support set likeliest."""
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(0.5, (5e-2, 10.0))
    kernel += WhiteKernel(0.01, (1e-4, 1.0))
    model = process(kernel, "fmin_l_bfgs_b")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(task.X_support, task.y_support)
    return model.predict(task.X_query, True)


def averaged(task):
    """The same, over the scales that tasks are drawn with, by their likelihood.

    The best that anyone can do who knows how tasks are drawn, but for the form of the
    answer: the normal distribution with the mean and variance of the mixture.
    """
    squared = (task.X - task.X.T) ** 2
    n, evidence, means, variances = task.support.sum(), [], [], []
    for length_scale in np.linspace(*PROCESS["length_scale"], 16):
        unit = np.exp(-0.5 * squared / length_scale**2)
        for output_scale in np.linspace(*PROCESS["output_scale"], 10):
            K = output_scale**2 * unit + PROCESS["noise"] ** 2 * np.eye(len(unit))
            root = np.linalg.cholesky(K[:n, :n])
            white, links = np.split(
                np.linalg.solve(root, np.c_[task.y_support, K[:n, n:]]), [1], axis=1
            )
            evidence.append(-0.5 * (white**2).sum() - np.log(root.diagonal()).sum())
            means.append(links.T @ white[:, 0])
            variances.append(K.diagonal()[n:] - (links**2).sum(axis=0))
    share = softmax(evidence)
    mean = share @ means
    return mean, np.sqrt(share @ (variances + (means - mean) ** 2))


BY_HAND = {"posterior": posterior, "averaged": averaged, "fitted": fitted}
NAMES = {
    "posterior": "posterior, the scales known",
    "averaged": "posterior, only their distribution known",
    "fitted": "Gaussian process, scales fitted to the support set",
}


def log_likelihoods(tasks, means, stds):
    """Mean log density of the query rows of each task."""
    return [
        float(
            (-0.5 * ((t.y_query - m) / s) ** 2 - np.log(s * np.sqrt(2 * np.pi))).mean()
        )
        for t, m, s in zip(tasks, means, stds, strict=True)
    ]


def coverage(tasks, means, stds):
    """Share of the query rows in the nominal interval, of each task."""
    return [
        float((np.abs(t.y_query - m) <= QUANTILE * s).mean())
        for t, m, s in zip(tasks, means, stds, strict=True)
    ]


def train(kind, tasks, lr, hidden=(64, 64), **setting):
    """One meta-learner; the learning rate falls to 0. No hidden layer: no network."""
    steps = len(tasks) // BATCH
    decay = LRScheduler("CosineAnnealingLR", T_max=steps, step_every="batch")
    net = TaskNet(
        module__hidden=hidden,
        lr=lr,
        max_epochs=1,
        batch_size=BATCH,
        callbacks=[("decay", decay)],
    )
    return kind(net, random_state=0, **setting).fit(tasks)


def learned(key, iterations, new):
    """Row of a learner, and its predictions for new tasks."""
    kind, grid = LEARNERS[key]
    grid = {"lr": RATES, **grid}
    tasks, validation = draw(iterations * BATCH, 0), draw(200, 1)
    tried = []
    for values in product(*grid.values()):
        setting = dict(zip(grid, values, strict=True))
        meta = train(kind, tasks[: len(tasks) // 4], **setting)
        found = log_likelihoods(validation, *meta.predict(validation, return_std=True))
        tried.append((np.mean(found), setting))
        print(key, *tried[-1], flush=True)
    setting = max(tried, key=lambda pair: pair[0])[1]
    start = process_time()
    meta = train(kind, tasks, **setting)
    row = {
        "name": kind.__name__,
        "setting": setting,
        "iterations": iterations,
        "minutes": round((process_time() - start) / 60, 1),
    }
    return row, meta.predict(new, return_std=True)


def run(key, iterations):
    """The row of a method."""
    new = draw(500, 2)
    if key in BY_HAND:
        row = {"name": NAMES[key]}
        found = zip(*map(BY_HAND[key], new), strict=True)
    else:
        row, found = learned(key, iterations, new)
    means, stds = found
    row["likelihood"] = mean_interval(log_likelihoods(new, means, stds))
    row["covered"] = mean_interval(coverage(new, means, stds))
    return row


def page(rows):
    """The lines of the page, from the saved rows."""
    cells = [
        [
            row["name"],
            "{:.3f} ± {:.3f}".format(*row["likelihood"]),
            "{:.1f} ± {:.1f} %".format(*(100 * v for v in row["covered"])),
            ", ".join(f"{k} {v}" for k, v in row.get("setting", {}).items()),
            row.get("iterations", ""),
            row.get("minutes", ""),
        ]
        for row in sorted(rows.values(), key=lambda row: -row["likelihood"][0])
    ]
    header = [
        "",
        "log likelihood of a query row",
        f"in the nominal {NOMINAL:.0%} interval",
        "setting",
        "iterations",
        "minutes",
    ]
    return [
        "# Draws of Gaussian processes",
        "",
        "`python tests/benchmarks/gp_draws.py METHOD --iterations N`, N as in table",
        "",
        "500 new tasks with one input in [-2, 2], an RBF kernel with a length scale "
        "between 0.25 and 1 and an output scale between 0.5 and 1.5, noise 0.1, 3 to "
        "50 support rows, 20 query rows. 16 tasks in a meta-batch; settings chosen on "
        "200 validation tasks after a quarter of the iterations. Minutes of one "
        "processor, for the last training alone.",
        "",
        *table(header, cells),
    ]


def main():
    """Run methods, and write the page."""
    parser = argparse.ArgumentParser()
    every = [*BY_HAND, *LEARNERS]
    parser.add_argument("methods", nargs="*", default=every, choices=[*every, []])
    parser.add_argument("--iterations", type=int, default=3000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for key in options.methods:
        row = run(key, options.iterations)
        print(key, row, flush=True)
        rows = keep_row("gp_draws", key, row)
        write_page("gp_draws", page(rows))


if __name__ == "__main__":
    main()
