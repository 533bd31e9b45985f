"""One run of the benchmark: its workers, its files, and what it has found."""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from peer_client import Unavailable, Workers
from peer_tasks import write_tasks

# How far the step of a correct side may be from the same one in float64.
LOSS, GRADIENT = 1e-5, 1e-3


@dataclass
class Run:
    """One run: where it works, how often it repeats, and what it has found."""

    workers: Workers
    folder: Path
    repeats: int
    quick: bool
    device: str
    lines: list = field(default_factory=list)
    contenders: list = field(default_factory=list)
    curves: dict = field(default_factory=dict)
    missing: list = field(default_factory=list)

    def shortened(self, long, short):
        """A number of repetitions, or a small one in a quick run."""
        return short if self.quick else long

    def clock(self, workload):
        """Processor time on one thread, which other work disturbs least; else wall."""
        return "cpu" if workload.threads == 1 and self.device == "cpu" else "wall"

    def tasks(self, workload):
        """The file of a workload's meta-batches, written once."""
        n_batches = self.shortened(workload.batches, 2)
        name = f"{workload.network}-{workload.n_tasks}-{n_batches}.npz"
        path = self.folder / name
        if not path.exists():
            write_tasks(path, workload.network, workload.n_tasks, n_batches)
        return str(path)

    def ready(self, name, workload, net=None):
        """A worker that holds a workload."""
        path = self.tasks(workload)
        worker = self.workers[name]
        described = workload.described(net or {})
        worker.ask(
            "setup",
            workload=described,
            path=path,
            threads=workload.threads,
            device=self.device,
        )
        return worker

    def in_turn(self, calls):
        """Median of each call's answers, all calls taking turns; None where it fails.

        `calls` maps a name to a function that returns a number.
        """
        found = {name: [] for name in calls}
        for _ in range(self.repeats):
            for name, call in calls.items():
                if found[name] is not None:
                    try:
                        found[name].append(call())
                    except Unavailable as error:
                        found[name] = None
                        self.skip(name, error)
        return {name: times and median(times) for name, times in found.items()}

    def skip(self, name, reason):
        """Note what could not be done, and why."""
        self.missing.append((name, str(reason).splitlines()[0]))
        print(f"{name}: {reason}", flush=True)

    def distance(self, worker, workload, name):
        """Relative distance of a side's first loss and gradient from float64's."""
        reference = "separate" if name == "separate" else workload.peers[0]
        exact, found = self.folder / "exact.npz", self.folder / "found.npz"
        loss = self.ready(f"{reference} exact", workload).ask(
            "check", save=str(exact), dtype="float64"
        )["loss"]
        answer = worker.ask("check", save=str(found))
        with np.load(exact) as truth, np.load(found) as gradient:
            off = sum(np.sum((gradient[key] - truth[key]) ** 2) for key in truth.files)
            norm = sum(np.sum(truth[key] ** 2) for key in truth.files)
        return abs(answer["loss"] / loss - 1), float(np.sqrt(off / norm))


def is_right(check, rounding):
    """Whether a step is the exact one, but for rounding as large as plain torch's."""
    loss, gradient = check
    return loss <= LOSS and gradient <= max(GRADIENT, 2 * rounding[1])
