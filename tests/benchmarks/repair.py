"""Learners trained on a biased half of a space, repaired with tasks from all of it.

    python tests/benchmarks/repair.py [--seeds 5] [--first-seed 0]

A learner sees 200 tasks of one half of a space. Then a RepairedLearner, with its own
settings, gets 300 tasks from all of it, and 1,000 others, never used before, say what
came of it: before, after the repair, and after as many epochs with the plain mean loss
(``tail=0``), with the same tasks and the same condition for keeping it. The last of
these rows starts from a plain torch network instead. Learners that were trained on
1,000 tasks from all of their space come after that: a repair should leave them alone.

The defaults of RepairedLearner were chosen with ``--first-seed 100``. Writes
docs/results/repair.md.
"""

import argparse
from time import process_time

import numpy as np
import torch
from pages import table, write_page
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import LRScheduler
from torch import nn

from sk_meta import (
    ConditionalNeuralProcessRegressor,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    R2D2Regressor,
    RepairedLearner,
    Task,
    TaskNet,
)
from sk_meta.ensemble.tail import query_losses, tail_mean
from sk_meta.metrics import mean_interval
from sk_meta.networks import MLP
from sk_meta.tasks import make_blob_tasks, make_sinusoids
from sk_meta.wrapped import unwrapped

N_BIASED, N_REPAIR, N_NEW, N_ALL = 200, 300, 1000, 1000
SIDES = "before", "repaired", "plain"


def two_kinds(n_tasks, seed):
    """Three clouds in five of ten features; the other five are noise, or it is reverse.

    `metadata` says which: 0 where the first five matter.
    """
    rng = np.random.default_rng(seed)
    found = []
    blobs = make_blob_tasks(
        n_tasks, n_classes=3, n_features=5, n_support=3, random_state=seed
    )
    for task in blobs:
        kind = int(rng.integers(2))
        parts = [task.X, 3 * rng.normal(size=task.X.shape)]
        X = np.hstack(parts[::-1] if kind else parts)
        found.append(Task(X, task.y, task.support, "local", kind, name=task.name))
    return found


def shifted_clouds(n_tasks, seed):
    """Three classes that mean the same everywhere, moved from task to task.

    `metadata` is how far along the first feature.
    """
    rng = np.random.default_rng(seed)
    found = []
    blobs = make_blob_tasks(
        n_tasks, n_classes=3, n_features=5, n_support=3, labels="shared",
        random_state=seed,
    )  # fmt: skip
    for task in blobs:
        shift = rng.uniform(-6, 6)
        X = task.X + shift * np.eye(5)[0]
        found.append(Task(X, task.y, task.support, metadata=shift, name=task.name))
    return found


def sinusoids(n_tasks, seed):
    """See `make_sinusoids`."""
    return make_sinusoids(n_tasks, random_state=seed)


def net(n_tasks, n_epochs, **options):
    """Two layers of 40; the learning rate falls to 0."""
    decay = LRScheduler(
        "CosineAnnealingLR", T_max=n_epochs * -(-n_tasks // 8), step_every="batch"
    )
    return TaskNet(
        module__hidden=(40, 40), max_epochs=n_epochs, callbacks=[decay], **options
    )


def maml(n_tasks, seed):
    """On sinusoids."""
    return MAMLRegressor(net(n_tasks, 40), inner_lr=0.05, random_state=seed)


def neural_process(n_tasks, seed):
    """On sinusoids."""
    return ConditionalNeuralProcessRegressor(net(n_tasks, 40), random_state=seed)


def ridge(n_tasks, seed):
    """On sinusoids."""
    return R2D2Regressor(net(n_tasks, 40), random_state=seed)


def prototypes(n_tasks, seed):
    """On clouds of two kinds."""
    return PrototypicalClassifier(net(n_tasks, 30), random_state=seed)


BIASED = {
    "MAML, sinusoids: amplitudes below 2.55": (
        sinusoids,
        lambda task: task.metadata[0] < 2.55,
        maml,
    ),
    "neural process, sinusoids: phases below π / 2": (
        sinusoids,
        lambda task: task.metadata[1] < np.pi / 2,
        neural_process,
    ),
    "prototypes, clouds: the first features matter": (
        two_kinds,
        lambda task: task.metadata == 0,
        prototypes,
    ),
}
PLAIN = "plain torch network, shifted clouds: shifts below 0"
UNBIASED = {
    "ridge head (R2D2), sinusoids": (sinusoids, ridge),
    "prototypes, clouds of both kinds": (two_kinds, prototypes),
}


def half_of(make, half, seed):
    """Tasks of one half of a space."""
    return [task for task in make(4 * N_BIASED, seed) if half(task)][:N_BIASED]


def plain_network(tasks, seed):
    """A classifier of the pooled rows, as torch users train it."""
    X = torch.tensor(np.concatenate([task.X for task in tasks])).float()
    y = torch.tensor(np.concatenate([task.y for task in tasks]))
    torch.manual_seed(seed)
    network = MLP(X.shape[1], 3, (40, 40))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(20):
        for rows in torch.randperm(len(X)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(X[rows]), y[rows]).backward()
            optimizer.step()
    return network


def measured(make_repaired, before, half, make, seed):
    """Losses and scores on new tasks of each side, and what the reports say."""
    tasks, new = make(N_REPAIR, 10 * seed + 1), make(N_NEW, 10 * seed + 2)
    repaired = make_repaired().fit(tasks)
    plain = make_repaired(tail=0.0).fit(tasks)
    learners = dict(zip(SIDES, (before, repaired, plain), strict=True))
    found = {}
    for side, meta in learners.items():
        losses = query_losses(meta.learner_, unwrapped(meta)._later_dataset(new))
        found["worst", side] = float(tail_mean(losses, 0.1))
        found["mean", side] = float(losses.mean())
        found["score", side] = float(meta.score(new))
    report = repaired.repair_report_
    found["found"] = len(report.positions)
    found["other half"] = sum(not half(tasks[i]) for i in report.positions)
    found["kept"] = repaired.repaired_, plain.repaired_
    return found


def of_biased(name, seed):
    """One seed of a row of the first table."""
    if name == PLAIN:
        make, half = shifted_clouds, lambda task: task.metadata < 0
        network = plain_network(half_of(make, half, 10 * seed), seed)
        meta = MAMLClassifier(TaskNet(), inner_lr=0.1, random_state=seed)
        options = {"start": network}
        # No task falls short: it comes back as it was.
        before = RepairedLearner(
            meta, start=network, max_loss=np.inf, random_state=seed
        ).fit(make(N_REPAIR, 10 * seed + 1))
    else:
        make, half, learner = BIASED[name]
        before = learner(N_BIASED, seed).fit(half_of(make, half, 10 * seed))
        meta, options = FrozenEstimator(before), {}

    def make_repaired(**more):
        return RepairedLearner(meta, random_state=seed, **options, **more)

    return measured(make_repaired, before, half, make, seed)


def of_unbiased(name, seed):
    """Whether a learner that needs none was left alone, and what the report says."""
    make, learner = UNBIASED[name]
    meta = learner(N_ALL, seed).fit(make(N_ALL, 10 * seed))
    repaired = RepairedLearner(FrozenEstimator(meta), random_state=seed)
    repaired.fit(make(N_REPAIR, 10 * seed + 1))
    new = make(N_NEW, 10 * seed + 2)
    same = all(
        torch.equal(value, repaired.learner_.state_dict()[key])
        for key, value in meta.learner_.state_dict().items()
    )
    dataset = meta._later_dataset(new)
    losses = [query_losses(m.learner_, dataset) for m in (meta, repaired)]
    return {
        "same": same and not repaired.repaired_,
        "found": len(repaired.repair_report_.positions),
        "trained": repaired.repair_report_.comparison is not None,
        "worst": [float(tail_mean(values, 0.1)) for values in losses],
    }


def interval(values, form="{:+.3g} ± {:.2g}"):
    """Mean over seeds and its 95 % interval."""
    return form.format(*mean_interval(values))


def row_of_losses(name, found):
    """Means over seeds of one row."""
    n = len(found)
    cells = [
        f"{np.mean([one[what, side] for one in found]):.3g}"
        for what in ("worst", "mean", "score")
        for side in SIDES
    ]
    kept = [sum(one["kept"][i] for one in found) for i in (0, 1)]
    counts = [np.mean([one[what] for one in found]) for what in ("found", "other half")]
    return [name, *cells, f"{kept[0]} / {kept[1]} of {n}",
            f"{counts[0]:.0f} ({counts[1]:.0f})"]  # fmt: skip


def row_of_changes(name, found):
    """Paired differences over seeds of one row."""

    def relative(one, side, base):
        return 100 * (one["worst", side] / one["worst", base] - 1)

    def change(one, what, base):
        return one[what, "repaired"] - one[what, base]

    return [
        name,
        interval([relative(one, "repaired", "before") for one in found]),
        interval([change(one, "mean", "before") for one in found]),
        interval([change(one, "score", "before") for one in found]),
        interval([relative(one, "repaired", "plain") for one in found]),
        interval([change(one, "mean", "plain") for one in found]),
        interval([change(one, "score", "plain") for one in found]),
    ]


def page(biased, unbiased, seeds, minutes):
    """The lines of the page."""
    of = [f"{what}, {side}" for what in ("worst", "mean", "score") for side in SIDES]
    seeds = f"{len(seeds)} seeds"
    return [
        "# Repaired learners",
        "",
        "`python tests/benchmarks/repair.py`",
        "",
        f"A learner sees {N_BIASED} tasks of the half of a space that its row names. "
        f"`RepairedLearner`, with its own settings, gets {N_REPAIR} tasks from all of "
        f"the space. All figures are from {N_NEW} other tasks from all of it, used for "
        f"nothing else; means over {seeds}. Worst: mean loss of the worst 10 %. Mean: "
        "mean loss. Score: accuracy or R², over tasks. Plain: the same epochs, tasks "
        "and condition for keeping them with the mean loss, `tail=0`. Kept: repaired / "
        "plain. Found: tasks on which the learner fell short, in brackets those of the "
        f"half it had not seen. {minutes:.0f} minutes in all on one core.",
        "",
        *table(
            ["", *of, "kept", "found"],
            [row_of_losses(name, found) for name, found in biased.items()],
        ),
        "",
        "Losses: squared error of scaled targets (MAML on sinusoids), minus log "
        "density (neural process), cross-entropy (the others).",
        "",
        f"Paired differences, with 95 % intervals over {seeds}; worst in per cent:",
        "",
        *table(
            [
                "",
                *("worst, to before", "mean, to before", "score, to before"),
                *("worst, to plain", "mean, to plain", "score, to plain"),
            ],
            [row_of_changes(name, found) for name, found in biased.items()],
        ),
        "",
        "R² divides by the variance of a task, so that sinusoids with amplitudes near "
        "0.1 decide its mean, while they count for nothing in the mean loss, which a "
        "repair keeps from rising.",
        "",
        f"Learners that were trained on {N_ALL} tasks from all of the space, and need "
        "no repair:",
        "",
        *table(
            ["", "left as it was, bit for bit", "nothing found", "worst of new tasks"],
            [
                [
                    name,
                    f"{sum(one['same'] for one in found)} of {len(found)}",
                    f"{sum(not one['found'] for one in found)} of {len(found)}",
                    " → ".join(
                        f"{np.mean([one['worst'][i] for one in found]):.3g}"
                        for i in (0, 1)
                    ),
                ]
                for name, found in unbiased.items()
            ],
        ),
    ]


def main():
    """Measure all rows, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = process_time()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    found = []
    for names, measure in (((*BIASED, PLAIN), of_biased), (UNBIASED, of_unbiased)):
        found.append({})
        for name in names:
            found[-1][name] = [measure(name, seed) for seed in seeds]
            print(name, f"{process_time() - start:.0f} s", found[-1][name], flush=True)
    lines = page(*found, seeds, (process_time() - start) / 60)
    if options.first_seed:
        print("\n".join(lines))
    else:
        write_page("repair", lines)


if __name__ == "__main__":
    main()
