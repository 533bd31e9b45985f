"""How fast the engine is, and how much memory it takes, against other packages.

    python tests/benchmarks/engine.py [--only sine-1,proto5] [--repeats 5] [--quick]
        [--device cuda] [--peers-env build/peers | --plain]

Ours is the whole `fit` (validation, stacking, drawing, history) on tasks, divided by
the number of meta-iterations; the peers get the same tasks as tensors, stacked
beforehand, and the same initial weights. All take turns within one run. higher and
torchopt are installed from PyPI into an environment of their own; --plain does without.
A complete run writes docs/results/engine.md and .png (on a GPU, engine_cuda); with
--only or --quick the page is printed alone.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pages import RESULTS, write_page
from peer_client import ROOT, Unavailable, Workers, peers_python
from peer_page import Line, draw, page
from peer_run import Run, is_right
from peer_workloads import (
    ASIDE,
    BFLOAT16,
    ON_GPU,
    WORKLOADS,
    conv4,
    omniglot,
    proto,
    sine,
)


def against_peers(run, name):
    """Time a workload on all sides, after checking that they do the same."""
    workload = WORKLOADS[name]
    peer_iterations = run.shortened(workload.peer_iterations, 2)
    clock = run.clock(workload)
    calls, checks = {}, {}

    def enter(label, worker, iterations, **options):
        def call():
            took = worker.ask("time", iterations=iterations, **options)
            return 1e3 * took[clock] / took["iterations"]

        calls[label] = call

    for position, (variant, net, _) in enumerate(workload.ours):
        label = f"sk_meta {variant}".strip()
        try:
            worker = run.ready(f"ours {position}", workload, net)
            checks[label] = run.distance(worker, workload, label)
        except Unavailable as error:
            run.skip(f"{name}, {label}", error)
            continue
        n_batches = run.shortened(workload.batches, 2)
        enter(label, worker, n_batches * run.shortened(workload.epochs, 2))
    for peer in workload.peers:
        try:
            worker = run.ready(peer, workload)
            checks[peer] = run.distance(worker, workload, peer)
        except Unavailable as error:
            run.skip(f"{name}, {peer}", error)
            continue
        enter(peer, worker, peer_iterations)
        if BFLOAT16 in [net for _, net, _ in workload.ours] and peer in (
            "loop",
            "joint",
        ):
            enter(
                f"{peer}, autocast to bfloat16", worker, peer_iterations, bfloat16=True
            )
    times = run.in_turn(calls)
    rounding = checks[workload.peers[0]]
    right = {label: is_right(check, rounding) for label, check in checks.items()}
    correct = [
        peer
        for peer in workload.peers
        if peer not in ASIDE and times.get(peer) and right[peer]
    ]
    if not correct:
        raise Unavailable("no peer is right")
    fastest = min(correct, key=times.get)
    for variant, net, asked in workload.ours:
        label = f"sk_meta {variant}".strip()
        ours, peer = times.get(label), times[fastest]
        ratio = ours and peer / ours
        line = Line(
            row=name,
            title=", ".join(filter(None, (workload.title, variant))),
            value=ratio,
            asked=asked,
            unit="ms",
            ours=ours,
            other=peer,
            who=fastest,
            right=net.get("precision") == "bfloat16" or right.get(label, True),
        )
        run.lines.append(line)
    for label, time in times.items():
        run.contenders.append((workload.title, label, time, checks.get(label)))


def memory(run, name):
    """Peak memory of a meta-step: ours, vmap's, and the plain loop's."""
    for n_inner_steps in (1, 5):
        workload = omniglot("Omniglot MLP", ours=(), n_inner_steps=n_inner_steps)
        found = {}
        for label, side, net in (
            ("sk_meta", "ours 0", {}),
            ("vmap", "ours 1", {"way": "vmap"}),
            ("loop", "loop", {}),
        ):
            try:
                found[label] = run.ready(side, workload, net).ask("memory")["bytes"]
            except Unavailable as error:
                run.skip(f"{name}, {label}, inner steps: {n_inner_steps}", error)
        title = f"peak memory, Omniglot MLP, inner steps: {n_inner_steps}"
        ours, other = (
            found.get(label) and found[label] / 1e6 for label in ("sk_meta", "vmap")
        )
        share = ours / other if ours and other else None
        run.lines.append(
            Line(name, title, share, 0.4, "MB", ours, other, "way='vmap'", True)
        )
        for label, n_bytes in found.items():
            run.contenders.append((title, label, n_bytes / 1e6, None))


def growth(run, name):
    """Time of a meta-iteration over the number of tasks, and of inner steps."""
    sizes = run.shortened((8, 16, 32, 64, 128, 256, 512), (8, 16))
    steps = run.shortened((1, 2, 5, 10, 20), (1, 2))
    axes = {
        "tasks": [
            sine("", ours=(), n_tasks=size, batches=max(2, 1024 // size), epochs=2)
            for size in sizes
        ],
        "inner steps": [
            sine("", ours=(), n_inner_steps=n, batches=20, epochs=2) for n in steps
        ],
    }
    for (axis, workloads), values in zip(axes.items(), (sizes, steps), strict=True):
        times = {"sk_meta": [], "loop": []}
        for workload in workloads:
            n_ours = run.shortened(workload.batches * workload.epochs, 2)

            def call(side, n, workload=workload):
                took = run.ready(side, workload).ask("time", iterations=n)
                return 1e3 * took[run.clock(workload)] / took["iterations"]

            medians = run.in_turn(
                {
                    "sk_meta": partial(call, "ours 0", n_ours),
                    "loop": partial(call, "loop", 2),
                }
            )
            for side in times:
                times[side].append(medians[side])
        if None in times["sk_meta"]:
            raise Unavailable("see above")
        run.curves[axis] = (values, times)
        first, *_, last = times["sk_meta"]
        share = last / first / (values[-1] / values[0])
        title = (
            f"sine, from {values[0]} to {values[-1]} {axis}: growth by linear growth"
        )
        run.lines.append(
            Line(name, title, share, 1.0, "ms", last, first, values[0], True)
        )


def ragged(run, name):
    """Whole fit on tasks of 3 to 300 rows, and on equal ones with as many rows."""
    n_tasks = run.shortened(500, 50)
    sizes = np.random.default_rng(0).integers(3, 301, n_tasks)
    equal = np.full(n_tasks, round(sizes.mean()))
    epochs = run.shortened(5, 1)
    workload = sine("", ours=(), batches=2)
    worker = run.ready("ours 0", workload)

    def call(rows):
        took = worker.ask("ragged", sizes=rows.tolist(), epochs=epochs)
        return 1e3 * took[run.clock(workload)] / (epochs * n_tasks / 25)

    times = run.in_turn({"ragged": partial(call, sizes), "equal": partial(call, equal)})
    if None in times.values():
        raise Unavailable("see above")
    rows = sizes.sum() / equal.sum()
    run.lines.append(
        Line(
            name,
            "sine, tasks of 3 to 300 rows: cost by that of as many rows in equal tasks",
            times["ragged"] / times["equal"] / rows,
            1.5,
            "ms",
            times["ragged"],
            times["equal"],
            "equal tasks",
            True,
        )
    )


def search(run, name):
    """A grid of 12 candidates in 3 folds, by MetaGridSearchCV and by GridSearchCV."""
    n_tasks, epochs = run.shortened((300, 40), (30, 2))
    workload = sine("", ours=(), batches=2)
    scores = {}

    def call(side, kind):
        answer = run.workers[side].ask(
            "search", kind=kind, n_tasks=n_tasks, epochs=epochs
        )
        scores[kind] = np.array(answer["scores"])
        return answer["wall"]

    run.ready("ours 0", workload), run.ready("ours 1", workload)
    run.workers["ours 1"].ask("search", kind="grid", n_tasks=6, epochs=1)  # warm
    times = run.in_turn(
        {
            "MetaGridSearchCV": partial(call, "ours 0", "meta"),
            "GridSearchCV": partial(call, "ours 1", "grid"),
        }
    )
    ours, theirs = times["MetaGridSearchCV"], times["GridSearchCV"]
    title = "grid of 12 candidates, 3 folds"
    if ours:
        title += (
            f" (scores differ by {np.abs(scores['meta'] - scores['grid']).max():.0e})"
        )
    run.lines.append(
        Line(name, title, ours and theirs / ours, 4, "s", ours, theirs, "GridSearchCV")
    )


def accuracy(run, name):
    """Whether bfloat16 costs accuracy, on new episodes after a short meta-training."""
    for title, workload, iterations in (
        ("conv4, MAML", conv4("", ours=()), run.shortened(60, 1)),
        (
            "conv4, prototypes",
            proto("", network="proto5", ours=()),
            run.shortened(400, 2),
        ),
    ):
        try:
            scores = [
                np.array(
                    run.ready("ours 0", workload, net).ask(
                        "accuracy",
                        iterations=iterations,
                        n_episodes=run.shortened(300, 5),
                    )["scores"]
                )
                for net in ({}, BFLOAT16)
            ]
        except Unavailable as error:
            run.skip(f"{name}, {title}", error)
            continue
        plain, low = (each.mean() for each in scores)
        noise = 1.96 * np.sqrt(sum(each.var() / len(each) for each in scores))
        title += f", accuracy in bfloat16 after {iterations} meta-iterations"
        run.lines.append(
            Line(
                name,
                title,
                max(plain - low, 0),
                noise,
                "%",
                low,
                plain,
                "float32",
                True,
            )
        )


ROWS = {
    **dict.fromkeys(WORKLOADS, against_peers),
    "memory": memory,
    "growth": growth,
    "ragged": ragged,
    "search": search,
    "accuracy": accuracy,
}


def main():
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", help=f"some of {', '.join(ROWS)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="once, and briefly")
    parser.add_argument("--peers-env", default=ROOT / "build" / "peers", type=Path)
    parser.add_argument("--plain", action="store_true", help="plain torch as only peer")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--verbose", action="store_true", help="errors of the workers")
    options = parser.parse_args()
    everything = [
        name for name in ROWS if options.device == "cuda" or name not in ON_GPU
    ]
    chosen = options.only.split(",") if options.only else everything
    unknown = sorted(set(chosen) - set(ROWS))
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    python = sys.executable if options.plain else peers_python(options.peers_env)
    workers = Workers(python, options.verbose)
    repeats = 1 if options.quick else options.repeats
    with TemporaryDirectory() as folder:
        run = Run(workers, Path(folder), repeats, options.quick, options.device)
        packages = ["torch", "higher", "torchopt", "learn2learn", "torchmeta"]
        versions = workers["higher"].ask("versions", packages=packages)
        for name in chosen:
            print(name, flush=True)
            try:
                ROWS[name](run, name)
            except Unavailable as error:
                run.skip(name, error)
        workers.close()
    command = f"--repeats {repeats}" + " --device cuda" * (options.device == "cuda")
    command += " --plain" * options.plain
    name = "engine" if options.device == "cpu" else "engine_cuda"
    text = page(run, versions, command, f"{name}.png")
    if not (options.only or options.quick):
        draw(run, RESULTS / f"{name}.png")
        write_page(name, text)
    else:
        print("\n".join(text))


if __name__ == "__main__":
    main()
