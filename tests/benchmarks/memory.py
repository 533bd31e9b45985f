"""Peak memory of a meta-step over inner steps and over the tasks of a meta-batch.

    python tests/benchmarks/memory.py

Two networks on images of Omniglot's size, 28x28, 5 classes, MAML of the second order:
a multilayer perceptron with batch normalisation (784-256-128-64-64-5) and Conv4 with 64
filters. Counted are the bytes of all tensors that a meta-step makes, at their peak; the
data, the parameters and their gradients are not among them. The count depends on the
shapes alone: the images are noise. Writes docs/results/memory.md and memory.png.
"""

from typing import NamedTuple

import numpy as np
import torch
from pages import RESULTS, write_page

from sk_meta.engine.memory import peak_bytes
from sk_meta.engine.meta_step import MetaStep
from sk_meta.gradient_based.maml import MAML
from sk_meta.learner import Query, Support
from sk_meta.networks import MLP, Conv4
from sk_meta.tasks.stacking import TaskGroup

STEPS = (1, 2, 5, 10, 20)
TASKS = (1, 2, 4, 8, 16, 32, 64)
N_CLASSES, N_SUPPORT, N_QUERY = 5, 5, 75


class Network(NamedTuple):
    """A network, and what the other axis is held at."""

    title: str
    make: callable
    shape: tuple
    tasks: tuple
    usual_tasks: int
    usual_steps: int
    bound: float


class Curve(NamedTuple):
    """A way to compute a meta-batch, and how it is drawn."""

    label: str
    way: str
    again: bool = False
    bounded: bool = False


NETWORKS = {
    "MLP": Network(
        "MLP with batch normalisation",
        lambda: MLP(784, N_CLASSES, (256, 128, 64, 64), normalization="batch"),
        (784,),
        TASKS,
        32,
        5,
        20,
    ),
    "Conv4": Network(
        "Conv4",
        lambda: Conv4((1, 28, 28), N_CLASSES),
        (1, 28, 28),
        TASKS[:4],
        4,
        5,
        200,
    ),
}
CURVES = {
    "MLP": (
        Curve("layers", "layers"),
        Curve("layers, checkpointing", "layers", again=True),
        Curve("layers, max_memory", "layers", bounded=True),
        Curve("vmap", "vmap"),
        Curve("loop", "loop"),
        Curve("loop, checkpointing", "loop", again=True),
    ),
    "Conv4": (
        Curve("vmap", "vmap"),
        Curve("vmap, max_memory", "vmap", bounded=True),
        Curve("loop", "loop"),
        Curve("loop, checkpointing", "loop", again=True),
    ),
}
COLORS = {"layers": "tab:blue", "vmap": "tab:orange", "loop": "tab:green"}


def make_group(shape, n_tasks):
    """Tasks of noise."""
    generator = torch.Generator().manual_seed(0)

    def rows(n):
        y = (torch.arange(n) % N_CLASSES).repeat(n_tasks, 1)
        return torch.randn(n_tasks, n, *shape, generator=generator), y, None

    support = Support(*rows(N_SUPPORT), N_CLASSES)
    return TaskGroup(np.arange(n_tasks), support, Query(*rows(N_QUERY)))


def megabytes(network, curve, n_steps, n_tasks):
    """Peak of a meta-step; one before it measures what `max_memory` needs to know."""
    torch.manual_seed(0)
    learner = MAML(
        network.make(),
        N_CLASSES,
        0.1,
        n_steps,
        n_steps,
        gradient_checkpointing=curve.again,
    ).train()
    # Compared with the loop in the tests; not a part of what is counted here.
    learner.way, learner.checked, learner.forced = curve.way, True, True
    step = MetaStep(network.bound if curve.bounded else None)
    group = make_group(network.shape, n_tasks)
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if curve.bounded:
        step._most_tasks(learner, group)
    return peak_bytes(step, learner, [group]) / 1e6


def measure():
    """{network: {axis: (values, {label: megabytes})}}."""
    found = {}
    for name, network in NETWORKS.items():
        steps, tasks = {}, {}
        for curve in CURVES[name]:
            print(name, curve.label, flush=True)
            steps[curve.label] = [
                megabytes(network, curve, n, network.usual_tasks) for n in STEPS
            ]
            tasks[curve.label] = [
                megabytes(network, curve, network.usual_steps, n) for n in network.tasks
            ]
        found[name] = {
            "inner steps": (STEPS, steps),
            "tasks in a meta-batch": (network.tasks, tasks),
        }
    return found


def held(network, axis):
    """What is not varied, in words."""
    if axis == "inner steps":
        return f"{network.usual_tasks} tasks in a meta-batch"
    return f"{network.usual_steps} inner steps"


def page(found):
    """Lines of the page."""
    lines = [
        "# Peak memory of a meta-step",
        "",
        "`python tests/benchmarks/memory.py`",
        "",
        f"MAML of the second order, torch {torch.__version__}, float32, on a CPU; "
        f"{N_CLASSES} classes, {N_SUPPORT} support and {N_QUERY} query rows of 28x28 "
        "numbers a task. Megabytes (10^6) of all tensors that a meta-step makes, at "
        "their peak, besides data, parameters and their gradients. The count follows "
        "from the shapes: every run gives the same. *Checkpointing* is "
        "`gradient_checkpointing=True`. `max_memory` is "
        + " and ".join(f"{n.bound:g} ({name})" for name, n in NETWORKS.items())
        + ", in units of 2^20 bytes; a single task is computed whatever it takes. For "
        "convolutions there is no way `layers`.",
        "",
        "Checkpointing keeps what goes from one inner step to the next, and computes "
        "the rest again. That pays where a step leaves more than that: for "
        "convolutions (the feature maps), not for an MLP computed task by task on five "
        "rows (its weights are larger than its activations).",
        "",
        "![](memory.png)",
    ]
    for name, axes in found.items():
        for axis, (values, curves) in axes.items():
            lines += [
                "",
                f"## {NETWORKS[name].title}: {axis} ({held(NETWORKS[name], axis)})",
                "",
                f"| {axis} | {' | '.join(map(str, values))} |",
                "|---" * (len(values) + 1) + "|",
            ]
            for label, row in curves.items():
                numbers = " | ".join(f"{value:.3g}" for value in row)
                lines.append(f"| {label} | {numbers} |")
    return lines


def draw(found, path):
    """A row for each network, a column for each axis."""
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for line, (name, axes) in zip(grid, found.items(), strict=True):
        network = NETWORKS[name]
        for plot, (axis, (values, curves)) in zip(line, axes.items(), strict=True):
            for curve in CURVES[name]:
                plot.loglog(
                    values,
                    curves[curve.label],
                    marker="s" if curve.bounded else "o",
                    linestyle="--" if curve.again else ":" if curve.bounded else "-",
                    color=COLORS[curve.way],
                    label=curve.label,
                )
            bound = network.bound * 2**20 / 1e6
            label = f"max_memory={network.bound:g}"
            plot.axhline(bound, color="black", linewidth=0.8, zorder=0, label=label)
            plot.set(
                title=f"{network.title}, {held(network, axis)}",
                xlabel=axis,
                ylabel="peak memory of a meta-step, MB",
            )
            plot.set_xticks(values, map(str, values))
            plot.minorticks_off()
            low, high = plot.get_ylim()
            ticks = [x for x in (1, 3, 10, 30, 100, 300, 1000, 3000) if low < x < high]
            plot.set_yticks(ticks, map(str, ticks))
            plot.grid(alpha=0.3)
        line[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main():
    """Measure, print, and write the page."""
    torch.set_num_threads(1)
    found = measure()
    draw(found, RESULTS / "memory.png")
    write_page("memory", page(found))


if __name__ == "__main__":
    main()
