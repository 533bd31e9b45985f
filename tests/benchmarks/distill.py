"""Omniglot, one shot: a tenth of the parameters, trained alone and by a teacher.

    python tests/benchmarks/distill.py [--trial]

The teacher is a prototypical network, Conv4 with 64 filters; the students are Conv4
with 19 filters and a tenth of its parameters. All learn from 20-way episodes of the
background alphabets, with rotations by 90 degrees as characters of their own. Students
are trained in as many iterations alone as by the teacher, and alone once more in as
much processor time as the teacher's way takes, the teacher's own training left out.

Five of the background alphabets are left out for validation. The learning rate (of the
student alone, then used in every training), the temperature and the weight of the
teacher are chosen there, with a seed of its own (``--trial`` stops after it). The
evaluation alphabets are used once, at the end, for five other seeds: 600 episodes,
20-way and 5-way 1-shot, inductive.

Adds a row to docs/results/distill.json, and writes docs/results/distill.md from it.
"""

import argparse
from itertools import product
from time import process_time

import numpy as np
from omniglot import training_and_validation
from omniglot_methods import conv_net
from pages import keep_row, table, write_page
from sklearn.frozen import FrozenEstimator

from sk_meta import DistilledLearner, EpisodeSampler, PrototypicalClassifier, evaluate
from sk_meta.datasets import load_omniglot
from sk_meta.metrics import mean_interval

WAYS = (20, 5)
N_QUERY = {20: 5, 5: 15}
STUDENTS = ("alone", "distilled", "alone, as much time")
TUNING_SEED = 100


def episodes(data, target, ways, n_episodes, random_state):
    """1-shot episodes."""
    return EpisodeSampler(
        data,
        target,
        n_way=ways,
        n_shot=1,
        n_query=N_QUERY[ways],
        n_episodes=n_episodes,
        random_state=random_state,
    )


def timed(meta, training, iterations):
    """The fitted learner and the minutes of a processor that it took."""
    sampler = episodes(*training, 20, iterations, 1000 + meta.random_state)
    start = process_time()
    meta.fit(sampler)
    return meta, (process_time() - start) / 60


def student_net(options, lr, iterations):
    return conv_net(iterations, lr, module__n_filters=options.filters)


def alone(training, options, lr, seed, iterations):
    """The student, trained on labels."""
    net = student_net(options, lr, iterations)
    return timed(PrototypicalClassifier(net, random_state=seed), training, iterations)


def distilled(teacher, training, options, lr, seed, temperature, mix):
    """The student, trained by the teacher and on labels."""
    small = DistilledLearner(
        FrozenEstimator(teacher),
        student_net(options, lr, options.iterations),
        temperature=temperature,
        mix=mix,
        match=options.match,
        random_state=seed,
    )
    return timed(small, training, options.iterations)


def accuracy(meta, sampler):
    """Mean over episodes, in per cent."""
    return float(100 * evaluate(meta, sampler).scores.mean())


def choose(teacher, training, validation, options):
    """Settings with the best accuracy on the validation alphabets."""

    def score(meta, minutes, said):
        found = accuracy(meta, validation)
        print(f"  {said}: {found:.2f}, {minutes:.1f} minutes", flush=True)
        return found

    print(f"validation: teacher {accuracy(teacher, validation):.2f}", flush=True)
    by_lr = {
        lr: score(
            *alone(training, options, lr, TUNING_SEED, options.iterations),
            f"alone, lr={lr}",
        )
        for lr in options.lr
    }
    lr = max(by_lr, key=by_lr.get)
    by_pair = {
        pair: score(
            *distilled(teacher, training, options, lr, TUNING_SEED, *pair),
            "distilled, temperature={}, mix={}".format(*pair),
        )
        for pair in product(options.temperature, options.mix)
    }
    return lr, *max(by_pair, key=by_pair.get)


def run_seed(teacher, training, tests, options, settings, seed):
    """Accuracy of each student at each number of ways, and minutes."""
    lr, *pair = settings
    plain, short = alone(training, options, lr, seed, options.iterations)
    small, minutes = distilled(teacher, training, options, lr, seed, *pair)
    more = round(options.iterations * max(minutes / short, 1))
    longer, long = alone(training, options, lr, seed, more)
    found = {}
    for name, meta, spent in zip(
        STUDENTS, (plain, small, longer), (short, minutes, long), strict=True
    ):
        scores = {str(ways): accuracy(meta, tests[ways]) for ways in WAYS}
        found[name] = {"minutes": spent, **scores}
    print(f"seed {seed}: {found}", flush=True)
    return found


def n_parameters(meta):
    return sum(values.numel() for values in meta.learner_.parameters())


def page(rows):
    """The lines of the page, from the saved rows."""
    lines = [
        "# Omniglot, one shot, by a teacher",
        "",
        "`python tests/benchmarks/distill.py OPTIONS`.",
        "",
        "Accuracy in per cent on 600 episodes of the evaluation alphabets, inductive; "
        "of students the mean over seeds and its 95 % interval. Prototypical networks, "
        "Conv4. Settings chosen on alphabets left out of the background ones. Minutes "
        "are those of one processor core, for one student.",
    ]
    for key, row in rows.items():
        lr, temperature, mix = row["settings"]
        lines += [
            "",
            f"OPTIONS: {f'`{key}`' if key else 'none'}. Chosen: lr={lr}, "
            f"temperature={temperature}, mix={mix}.",
            "",
        ]
        cells = [["teacher", row["parameters"][0], *row["teacher"], "–"]]
        for name in STUDENTS:
            runs = [run[name] for run in row["seeds"]]
            scores = [
                "{:.2f} ± {:.2f}".format(*mean_interval(np.array(values)))
                for values in ([run[str(ways)] for run in runs] for ways in WAYS)
            ]
            minutes = f"{np.mean([run['minutes'] for run in runs]):.1f}"
            cells.append([name, row["parameters"][1], *scores, minutes])
        for other in ("alone", "alone, as much time"):
            gains = [
                "{:+.2f} ± {:.2f}".format(
                    *mean_interval(
                        np.array(
                            [r["distilled"][w] - r[other][w] for r in row["seeds"]]
                        )
                    )
                )
                for w in map(str, WAYS)
            ]
            cells.append([f"distilled, against {other}", "", *gains, ""])
        header = ["", "parameters", *(f"{ways}-way" for ways in WAYS), "minutes"]
        lines += table(header, cells)
    return lines


def main():
    """Train, choose, evaluate once, print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=1500, help="of students")
    parser.add_argument("--teacher-iterations", type=int, default=6000)
    parser.add_argument("--filters", type=int, default=19, help="of students")
    parser.add_argument("--match", choices=["outputs", "features"], default="outputs")
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-3, 1e-2])
    parser.add_argument("--temperature", type=float, nargs="+", default=[2, 4, 8])
    parser.add_argument("--mix", type=float, nargs="+", default=[0.5, 0.9])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=600, help="fewer: a test")
    parser.add_argument("--trial", action="store_true")
    options = parser.parse_args()
    training, held_out = training_and_validation()
    net = conv_net(options.teacher_iterations, 3e-3)
    teacher = PrototypicalClassifier(net, random_state=0)
    teacher, minutes = timed(teacher, training, options.teacher_iterations)
    print(f"teacher: {minutes:.1f} minutes of a processor", flush=True)
    validation = episodes(*held_out, 20, options.episodes // 2, random_state=1)
    settings = choose(teacher, training, validation, options)
    print("chosen: lr={}, temperature={}, mix={}".format(*settings), flush=True)
    if options.trial:
        return
    new = load_omniglot(split="evaluation")
    tests = {
        ways: episodes(new.data, new.target, ways, options.episodes, random_state=2)
        for ways in WAYS
    }
    student = PrototypicalClassifier(student_net(options, 0.0, 1))
    student.fit(episodes(*training, 20, 1, 0))
    row = {
        "settings": settings,
        "parameters": [n_parameters(teacher), n_parameters(student)],
        "teacher": [round(accuracy(teacher, tests[ways]), 2) for ways in WAYS],
        "seeds": [
            run_seed(teacher, training, tests, options, settings, seed)
            for seed in range(options.seeds)
        ],
    }
    if options.episodes != parser.get_default("episodes"):
        print("\n".join(page({"a test": row})))
        return
    given = {
        name: value
        for name, value in vars(options).items()
        if value != parser.get_default(name)
    }
    key = " ".join(
        f"--{name.replace('_', '-')} "
        + " ".join(map(str, value if isinstance(value, list) else [value]))
        for name, value in given.items()
    )
    write_page("distill", page(keep_row("distill", key, row)))


if __name__ == "__main__":
    main()
