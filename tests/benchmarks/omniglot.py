"""Omniglot, one shot, method by method.

    python tests/benchmarks/omniglot.py METHOD [--iterations N] [--trial]

Meta-training on the background alphabets, rotations by 90 degrees counting as classes
of their own; five of these alphabets are left out for validation, and settings are
chosen there (``--trial`` stops after it). The evaluation alphabets are used once, at
the end: 600 episodes with characters drawn from all of them, 5-way 1-shot with 15
query rows a class, inductive (a prediction does not depend on the other query rows);
then 20-way, with characters from all alphabets and, the harder protocol, from one.
Methods whose head has as many outputs as the training episodes have classes are
trained on 20-way episodes a second time for that (``METHOD --ways 20``).

Adds the method's row to docs/results/omniglot.json, and writes docs/results/omniglot.md
from it.
"""

import argparse
from time import perf_counter, process_time

import numpy as np
import torch
from omniglot_methods import METHODS
from pages import keep_row, table, write_page

from sk_meta import EpisodeSampler, evaluate, split_classes
from sk_meta.datasets import load_omniglot
from sk_meta.metrics import mean_interval

COLUMNS = (
    "5-way, validation",
    "5-way",
    "20-way",
    "20-way, one alphabet",
)


def with_rotations(data, target):
    """Every character in four orientations, each a class of its own."""
    turned = [np.rot90(data, turns, axes=(2, 3)) for turns in range(4)]
    labels = [np.char.add(target.astype(str), f"/{90 * turns}") for turns in range(4)]
    return np.concatenate(turned), np.concatenate(labels)


def training_and_validation():
    """Characters to learn from, with rotations, and those of five other alphabets."""
    old = load_omniglot(split="background")
    rows, held_out = split_classes(
        old.target, test_size=5, groups=old.groups, random_state=0
    )
    training = with_rotations(old.data[rows], old.target[rows])
    return training, (old.data[held_out], old.target[held_out])


def samplers(validation):
    """The episodes of each column of the table."""
    new = load_omniglot(split="evaluation")
    few = {"n_way": 5, "n_shot": 1, "n_query": 15, "n_episodes": 600}
    many = {"n_way": 20, "n_shot": 1, "n_query": 5, "n_episodes": 600}
    episodes = (
        EpisodeSampler(*validation, **few, random_state=1),
        EpisodeSampler(new.data, new.target, **few, random_state=2),
        EpisodeSampler(new.data, new.target, **many, random_state=3),
        EpisodeSampler(new.data, new.target, **many, groups=new.groups, random_state=3),
    )
    return dict(zip(COLUMNS, episodes, strict=True))


def accuracy(meta, episodes):
    """Mean over episodes and half of its 95 % interval, in per cent."""
    return [round(v, 2) for v in mean_interval(100 * evaluate(meta, episodes).scores)]


def page(rows):
    """The lines of the page, from the saved rows."""
    lines = [
        "# Omniglot, one shot",
        "",
        "`python tests/benchmarks/omniglot.py METHOD`, with METHOD as in the last "
        "column.",
        "",
        "Accuracy in per cent on 600 episodes, and 95 % interval. Inductive: no "
        "prediction depends on other query rows. Trained on the background alphabets "
        "without five for validation; new classes from the evaluation alphabets. "
        "Conv4 with 64 filters unless said; minutes are those of one processor core, "
        "60 at most.",
        "",
    ]
    cells = []
    for method, row in rows.items():
        scores = [
            "{:.2f} ± {:.2f}".format(*row[c]) if c in row else "–" for c in COLUMNS
        ]
        cells.append(
            [
                row["name"],
                *scores,
                row["iterations"],
                round(row["minutes"]),
                f"`{method}`",
            ]
        )
    return lines + table(["", *COLUMNS, "iterations", "minutes", "METHOD"], cells)


def main():
    """Train, evaluate once, print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--ways", type=int, choices=[5, 20], default=5)
    parser.add_argument("--trial", action="store_true")
    options = parser.parse_args()
    method = METHODS[options.method]
    iterations = options.iterations or method.iterations
    training, validation = training_and_validation()
    meta, episodes = method.make(*training, iterations, options.ways)
    start, cpu = perf_counter(), process_time()
    meta.fit(episodes)
    minutes, elapsed = ((process_time() - cpu) / 60, (perf_counter() - start) / 60)
    few, new, *many = COLUMNS
    columns = [few] if options.trial else [few, new]
    if options.ways == 20 or method.any_way:
        columns += [] if options.trial else many
    tests = samplers(validation)
    found = {column: accuracy(meta, tests[column]) for column in columns}
    print(f"{minutes:.1f} minutes of {torch.get_num_threads()} threads, ", end="")
    print(f"{elapsed:.1f} elapsed; last losses", end=" ")
    print([round(h["train_loss"], 4) for h in meta.history_[-1:]], found)
    if options.trial:
        return
    key = options.method + (" --ways 20" if options.ways == 20 else "")
    row = {
        "name": method.name or type(meta).__name__,
        "iterations": iterations,
        "minutes": round(minutes, 1),
        **found,
    }
    rows = keep_row("omniglot", key, row)
    write_page("omniglot", page(rows))


if __name__ == "__main__":
    main()
