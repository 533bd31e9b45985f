"""Sinusoids: mean squared error on 600 new tasks, 10 shots, method by method.

    python tests/benchmarks/sinusoids.py [METHOD ...] [--iterations 4000]

Tasks as in Finn et al. (2017): 10 support and 10 query rows, 25 tasks in a meta-batch.
Each method tries a few settings for a quarter of the iterations; the best on 100
validation tasks is trained for all of them, and the number of steps in `adapt` is
chosen on these tasks too. The 600 tasks of the table are drawn by another seed. Adds to
docs/results/sinusoids.json, and writes docs/results/sinusoids.md from it.
"""

import argparse
from itertools import product
from time import process_time

import numpy as np
import torch
from pages import keep_row, table, write_page
from sinusoid_methods import METHODS, STEPS

from sk_meta.metrics import mean_interval
from sk_meta.tasks import make_sinusoids

BATCH, N_TASKS = 25, 100_000


def squared_errors(meta, tasks):
    """Mean squared error of each task."""
    return [
        float(((y - task.y_query) ** 2).mean())
        for y, task in zip(meta.predict(tasks), tasks, strict=True)
    ]


def covered(meta, tasks):
    """Share of query rows inside the nominal 90 % interval, in per cent."""
    pairs = zip(*meta.predict(tasks, return_std=True), tasks, strict=True)
    inside = [np.abs(y - task.y_query) <= 1.6449 * std for y, std, task in pairs]
    return 100 * float(np.concatenate(inside).mean())


def settings(grid):
    """All combinations, as dicts."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def train(method, tasks, iterations, setting):
    """One meta-learner, and the minutes that it took."""
    n_epochs = max(1, round(iterations * BATCH / len(tasks)))
    start = process_time()
    meta = method.make(iterations, n_epochs, BATCH, **setting).fit(tasks)
    return meta, (process_time() - start) / 60


def best_steps(method, meta, validation):
    """(error, steps in `adapt`) on validation tasks; the learner is set to them."""
    found = []
    for n_steps in STEPS if method.steps else (None,):
        if n_steps is not None:
            meta.learner_.n_adapt_steps = n_steps
        found.append((mean_interval(squared_errors(meta, validation))[0], n_steps))
    error, n_steps = min(found, key=lambda pair: pair[0])
    if n_steps is not None:
        meta.learner_.n_adapt_steps = n_steps
    return error, n_steps


def run(method, iterations):
    """The row of a method."""
    tasks = make_sinusoids(N_TASKS, random_state=0)
    validation = make_sinusoids(100, random_state=1)
    tried = []
    for setting in settings(method.grid):
        meta, _ = train(method, tasks[: len(tasks) // 4], iterations // 4, setting)
        tried.append((best_steps(method, meta, validation)[0], setting))
        print(*tried[-1], flush=True)
    setting = min(tried, key=lambda pair: pair[0])[1]
    meta, minutes = train(method, tasks, iterations, setting)
    error, n_steps = best_steps(method, meta, validation)
    new = make_sinusoids(600, random_state=2)
    row = {
        "name": type(meta).__name__ + method.note,
        "setting": {**setting, **({"steps": n_steps} if n_steps is not None else {})},
        "validation": round(error, 4),
        "error": [round(v, 4) for v in mean_interval(squared_errors(meta, new))],
        "iterations": iterations,
        "minutes": round(minutes, 1),
    }
    if method.has_std:
        row["covered"] = round(covered(meta, new), 1)
    return row


def page(rows):
    """The lines of the page, from the saved rows."""
    cells = [
        [
            row["name"],
            "{:.3f} ± {:.3f}".format(*row["error"]),
            f"{row['covered']:.0f} %" if "covered" in row else "–",
            f"{row['validation']:.3f}",
            ", ".join(f"{k} {v}" for k, v in row["setting"].items()),
            row["iterations"],
            row["minutes"],
            f"`{key}`",
        ]
        for key, row in sorted(rows.items(), key=lambda item: item[1]["error"][0])
    ]
    header = ["", "600 new tasks", "90 % interval covers", "validation", "chosen"]
    return [
        "# Sinusoids, ten shots",
        "",
        "`python tests/benchmarks/sinusoids.py METHOD`, with METHOD as in the last "
        "column.",
        "",
        "Mean squared error, 95 % interval over tasks. Hidden layers of 40 and 40. "
        "Settings, and for gradient learners the steps in `adapt`, were chosen on 100 "
        "validation tasks; minutes are those of one processor core, for the last "
        "training.",
        "",
        *table([*header, "iterations", "minutes", "METHOD"], cells),
    ]


def main():
    """Train, evaluate once, print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("methods", nargs="*", choices=[[], *METHODS])
    parser.add_argument("--iterations", type=int, default=4000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for key in options.methods or METHODS:
        rows = keep_row("sinusoids", key, run(METHODS[key], options.iterations))
        write_page("sinusoids", page(rows))


if __name__ == "__main__":
    main()
