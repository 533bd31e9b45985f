"""Omniglot, one shot with few labels: what unlabelled rows are worth.

    python tests/benchmarks/semi_supervised.py [--distractors] [--trial]

After Ren et al. (2018): meta-training sees the labels of 10 % of the rows of each
character (``--labeled 0.4``: of 40 %), the background alphabets with rotations by 90
degrees as characters of their own. Support sets have one labelled row and five
unlabelled ones of each class, and with ``--distractors`` five of each of as many other
classes again. Prototypes are refined by soft k-means, against distractors by masked
soft k-means. They are compared with themselves unrefined, and with prototypical
networks trained on the same labelled rows in as many iterations.

Five of the background alphabets are left out for validation; settings are chosen there
(``--trial`` stops after it). The evaluation alphabets are used once, at the end: 600
episodes, 5-way, 5 query rows a class, inductive.

Adds rows to docs/results/semi_supervised.json, and writes
docs/results/semi_supervised.md from it.
"""

import argparse
from time import process_time

import numpy as np
from omniglot import with_rotations
from pages import keep_row, table, write_page
from skorch.callbacks import LRScheduler

from sk_meta import (
    EpisodeSampler,
    PrototypicalClassifier,
    SemiSupervisedPrototypicalClassifier,
    TaskNet,
    evaluate,
    split_classes,
)
from sk_meta.datasets import load_omniglot
from sk_meta.metrics import mean_interval

COLUMNS = ("supervised", "without unlabelled rows", "refined")


def some_of_each_class(y, share):
    """Mask of the same share of the rows of each class."""
    rng = np.random.default_rng(0)
    mask = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        mask[rng.permutation(rows)[: round(share * len(rows))]] = True
    return mask


def net(options):
    """Conv4; the learning rate falls to 0 along a cosine."""
    schedule = LRScheduler(
        "CosineAnnealingLR", T_max=options.iterations, step_every="batch"
    )
    return TaskNet(
        max_epochs=1,
        batch_size=options.batch_size,
        lr=options.lr,
        precision="bfloat16",
        device=options.device,
        callbacks=[schedule],
    )


def hidden(options, ways):
    """What a sampler hides, besides `n_shot` and `n_query`."""
    return {
        "n_unlabeled": options.unlabeled,
        "n_distractors": ways if options.distractors else 0,
    }


def train(X, y, options):
    """The semi-supervised learner and the supervised one, on the same episodes."""
    labeled = some_of_each_class(y, options.labeled)
    n_labeled = round(options.labeled * 20)
    sizes = {
        "n_way": options.ways,
        "n_shot": 1,
        "n_query": min(n_labeled - 1, 3),
        "n_episodes": options.iterations * options.batch_size,
        "labeled": labeled,
    }
    semi_supervised = SemiSupervisedPrototypicalClassifier(
        net(options),
        refinement="masked" if options.distractors else "soft",
        n_refinements=options.refinements,
        random_state=options.seed,
    )
    supervised = PrototypicalClassifier(net(options), random_state=options.seed)
    more = hidden(options, options.ways)
    return [
        supervised.fit(EpisodeSampler(X, y, **sizes)),
        semi_supervised.fit(EpisodeSampler(X, y, **sizes, **more)),
    ]


def errors(learners, X, y, options, random_state):
    """Error of each column in per cent, and half of its 95 % interval."""
    sizes = {"n_way": 5, "n_shot": 1, "n_query": 5, "n_episodes": options.episodes}
    few = EpisodeSampler(X, y, **sizes, random_state=random_state)
    # The same labelled rows and query rows.
    more = EpisodeSampler(
        X, y, **sizes, random_state=random_state, **hidden(options, 5)
    )
    supervised, refined = learners
    found = [(supervised, few), (refined, few), (refined, more)]
    values = [100 * (1 - evaluate(meta, episodes).scores) for meta, episodes in found]
    return {
        column: [round(v, 2) for v in mean_interval(scores)]
        for column, scores in zip(COLUMNS, values, strict=True)
    }


def page(rows):
    """The lines of the page, from the saved rows."""
    lines = [
        "# Omniglot, one shot, with unlabelled rows",
        "",
        "`python tests/benchmarks/semi_supervised.py OPTIONS`, with OPTIONS as in the "
        "last column.",
        "",
        "Error in per cent on 600 episodes of the evaluation alphabets, 5-way, and "
        "95 % interval; how much lower refined prototypes are than supervised ones. "
        "Inductive: query rows are never used as unlabelled ones. Conv4 with 64 "
        "filters; supervised are prototypical networks trained on the same labelled "
        "rows in as many iterations.",
        "",
    ]
    cells = []
    for key, row in rows.items():
        scores = ["{:.2f} ± {:.2f}".format(*row[column]) for column in COLUMNS]
        lower = 100 * (1 - row["refined"][0] / row["supervised"][0])
        given = f"`{key}`" if key else "none"
        cells.append([row["name"], *scores, f"{lower:.0f} %", given])
    return lines + table(["", *COLUMNS, "lower by", "OPTIONS"], cells)


def main():
    """Train, evaluate once, print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=6000)
    parser.add_argument("--episodes", type=int, default=600, help="fewer: a trial")
    parser.add_argument("--labeled", type=float, default=0.1, choices=[0.1, 0.4])
    parser.add_argument("--distractors", action="store_true")
    parser.add_argument("--unlabeled", type=int, default=5)
    parser.add_argument("--ways", type=int, default=10, help="of training episodes")
    parser.add_argument("--refinements", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trial", action="store_true")
    options = parser.parse_args()
    old = load_omniglot(split="background")
    rows, held_out = split_classes(
        old.target, test_size=5, groups=old.groups, random_state=0
    )
    start = process_time()
    learners = train(*with_rotations(old.data[rows], old.target[rows]), options)
    print(
        f"{(process_time() - start) / 60:.1f} minutes of a processor; losses", end=" "
    )
    print([round(meta.history_[-1]["train_loss"], 4) for meta in learners])
    validation = old.data[held_out], old.target[held_out]
    print("validation:", errors(learners, *validation, options, random_state=1))
    if options.trial or options.episodes != parser.get_default("episodes"):
        return
    new = load_omniglot(split="evaluation")
    found = errors(learners, new.data, new.target, options, random_state=2)
    given = {
        name: value
        for name, value in vars(options).items()
        if value != parser.get_default(name) and name != "device"
    }
    key = " ".join(
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in given.items()
    )
    name = "masked, with distractors" if options.distractors else "soft"
    name += f", {100 * options.labeled:.0f} % of labels"
    write_page(
        "semi_supervised",
        page(keep_row("semi_supervised", key, {"name": name, **found})),
    )


if __name__ == "__main__":
    main()
