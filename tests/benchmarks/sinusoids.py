"""MAML on sinusoids: mean squared error on 600 new tasks, 10 shots.

    python tests/benchmarks/sinusoids.py [--iterations 20000]

Finn et al. (2017): network 1-40-40-1, 25 tasks in a meta-batch, one inner step in
meta-training. The inner learning rate and the number of steps in `adapt` are chosen on
100 validation tasks; the 600 tasks of the table are drawn afterwards, by another seed.
"""

import argparse

import torch
from pages import write_page

from sk_meta import MAMLRegressor, TaskNet
from sk_meta.metrics import mean_interval
from sk_meta.tasks import make_sinusoids

BATCH, N_TASKS = 25, 100_000


def squared_errors(meta, tasks):
    """Mean squared error of each task."""
    predicted = meta.predict(tasks)
    return [
        float(((y - task.y_query) ** 2).mean())
        for y, task in zip(predicted, tasks, strict=True)
    ]


def train(tasks, iterations, inner_lr):
    """One meta-learner."""
    n_epochs = max(1, round(iterations * BATCH / len(tasks)))
    net = TaskNet(
        module__hidden=(40, 40), lr=1e-3, max_epochs=n_epochs, batch_size=BATCH
    )
    return MAMLRegressor(net, inner_lr=inner_lr, random_state=0).fit(tasks)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=20_000)
    parser.add_argument("--inner-lr", type=float, nargs="+", default=[0.01])
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = make_sinusoids(N_TASKS, random_state=0)
    validation = make_sinusoids(100, random_state=1)
    best, tried = None, []
    for inner_lr in options.inner_lr:
        meta = train(tasks, options.iterations, inner_lr)
        for n_steps in (1, 2, 5, 10):
            meta.learner_.n_adapt_steps = n_steps
            error = mean_interval(squared_errors(meta, validation))[0]
            tried.append(f"| {inner_lr} | {n_steps} | {error:.3f} |")
            if best is None or error < best[0]:
                best = error, meta, inner_lr, n_steps
    _, meta, inner_lr, n_steps = best
    meta.learner_.n_adapt_steps = n_steps
    mean, half = mean_interval(
        squared_errors(meta, make_sinusoids(600, random_state=2))
    )
    lines = [
        "# Sinusoids: MAMLRegressor",
        "",
        f"`python tests/benchmarks/sinusoids.py --iterations {options.iterations}`",
        "",
        "10 shots, network 1-40-40-1, one inner step in meta-training, 25 tasks in a "
        f"meta-batch, {options.iterations} iterations. Inner learning rate and steps "
        "in `adapt` were chosen on 100 validation tasks; the errors there are in the "
        "second table. Mean squared error, 95 % interval over tasks.",
        "",
        "| inner_lr | steps in adapt | 600 new tasks |",
        "|---|---|---|",
        f"| {inner_lr} | {n_steps} | {mean:.3f} ± {half:.3f} |",
        "",
        "| inner_lr | steps in adapt | 100 validation tasks |",
        "|---|---|---|",
    ]
    write_page("sinusoids", [*lines, *tried])


if __name__ == "__main__":
    main()
