"""Where the time of a convolutional meta-step goes, and how near the limit it is.

    python tests/benchmarks/convolutions.py

MAML with the network of `peer_networks.ConvNet`, 8 tasks of 5 support and 75 query
images of 28x28, and prototypes on one episode of 80; one thread; eager and compiled.
Writes docs/results/convolutions.md.
"""

from collections import Counter
from itertools import product

import numpy as np
import torch
from pages import write_page
from peer_networks import ConvNet, embedding_net
from torch.profiler import profile

from sk_meta.engine.allocator import kept_memory
from sk_meta.engine.compiled import CompiledSteps
from sk_meta.engine.each_task import preferred_way
from sk_meta.engine.meta_step import MetaStep
from sk_meta.gradient_based.maml import MAML
from sk_meta.learner import Query, Support
from sk_meta.metric_based.prototypes import Prototypes
from sk_meta.networks import exact_normalization
from sk_meta.tasks.stacking import TaskGroup

KINDS = {
    "convolutions": ("conv",),
    "normalisation": ("batch_norm", "Normalize", "addcmul"),
    "ReLU, pooling": ("threshold", "clamp", "relu", "pool"),
    "compiled loops": ("Compiled", "TorchDynamo"),
    "sums and products": ("aten::sum", "aten::mul", "aten::add", "aten::sub", "mean"),
}
# Multiply-adds of a forward pass: four layers of 3x3 on 28, 14, 7 and 3 squared.
MULTIPLY_ADDS = 9 * 64 * (28**2 + 64 * (14**2 + 7**2 + 3**2))


def make_group(n_tasks):
    """Random images: the time does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(5)
    support = torch.rand(n_tasks, 5, 1, 28, 28, generator=generator)
    query = torch.rand(n_tasks, 75, 1, 28, 28, generator=generator)
    return TaskGroup(
        np.arange(n_tasks),
        Support(support, y.repeat(n_tasks, 1), None, 5),
        Query(query, y.repeat_interleave(15).repeat(n_tasks, 1)),
    )


def make_learner(first_order=None, precision=None):
    """MAML of an order, or prototypes."""
    network = ConvNet() if first_order is not None else embedding_net()
    network = exact_normalization(network).to(memory_format=torch.channels_last)
    if first_order is None:
        learner = Prototypes(network)
    else:
        learner = MAML(network, 5, 0.4, 1, 1, first_order, transductive=True)
    learner.way, learner.why = preferred_way(learner, "cpu")
    learner.precision = precision
    return learner.train()


def shares(learner, group, compiled, repeats=3):
    """Milliseconds of each kind of operation in a meta-step."""
    step = MetaStep(compiled=CompiledSteps(patience=1) if compiled else None)
    step(learner, [group])
    with profile() as found:
        for _ in range(repeats):
            step(learner, [group])
    times = Counter()
    for row in found.key_averages():
        kind = next(
            (k for k, words in KINDS.items() if any(w in row.key for w in words)),
            "the rest",
        )
        times[kind] += row.self_cpu_time_total / 1e3 / repeats
    return times


def speed_of_products(n=2048):
    """Multiply-adds per second of a large product of matrices."""
    A = torch.rand(n, n)
    A @ A
    with profile() as found:
        A @ A
    return n**3 / (sum(r.self_cpu_time_total for r in found.key_averages()) / 1e6)


def main():
    """Measure, and write the page."""
    torch.set_num_threads(1)
    best = speed_of_products()
    header = ["", *KINDS, "the rest", "all", "speed of convolutions"]
    lines = [
        "# Convolutions: where the time goes",
        "",
        "`python tests/benchmarks/convolutions.py`",
        "",
        "Milliseconds of a meta-step on one thread, by torch's profiler, which adds a "
        "little to each call. *Speed* in 10^9 multiply-adds a second, counting three "
        "passes over each query image, and over each support image three (first order) "
        f"or six (second); a float32 product of 2048³ reached {best / 1e9:.0f} in this "
        "run. What is left to gain lies in the other columns, which move memory; "
        "compiled, normalisation, ReLU and pooling are one column.",
        "",
        "| " + " | ".join(header) + " |",
        "|---" * len(header) + "|",
    ]
    for name, first_order, n_tasks in (
        ("MAML, 2nd order, 8 tasks", False, 8),
        ("MAML, 1st order, 8 tasks", True, 8),
        ("prototypes, one episode", None, 1),
    ):
        passes = 3 * 75 + 5 * (6 if first_order is False else 3)
        work = n_tasks * passes * MULTIPLY_ADDS / 1e6
        for precision, compiled in product((None, torch.bfloat16), (False, True)):
            learner = make_learner(first_order, precision)
            with kept_memory():
                times = shares(learner, make_group(n_tasks), compiled)
            cells = [times[kind] for kind in (*KINDS, "the rest")]
            speed = work / times["convolutions"]
            cells = [f"{value:.0f}" for value in (*cells, sum(cells), speed)]
            kind = "float32" if precision is None else "bfloat16"
            kind += ", compiled" * compiled
            lines.append(f"| {name}, {kind} | " + " | ".join(cells) + " |")
    write_page("convolutions", lines)


if __name__ == "__main__":
    main()
