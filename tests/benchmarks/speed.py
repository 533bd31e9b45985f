"""Speed of `fit` on sinusoids against a plain torch loop, and of `adapt` and `predict`.

    python tests/benchmarks/speed.py [--tasks 5000] [--repeats 3]

The workload of Finn et al. (2017): 25 tasks in a meta-batch, 10 support and 10 query
rows, network 1-40-40-1, Adam with learning rate 1e-3, inner steps of 0.01. Both do the
same meta-iterations in the same run, one thread; `fit` includes everything: validation,
stacking, drawing, history. Prints medians and their ratio.
"""

import argparse
from statistics import median
from time import perf_counter, process_time

import torch
from pages import write_page
from torch import nn
from torch.func import functional_call

from sk_meta import MAMLRegressor, TaskNet
from sk_meta.tasks import make_sinusoids

BATCH = 25
EPOCHS = 5


def plain_loop(tasks, n_steps):
    """MAML as one would write it by hand: a loop over the tasks of a meta-batch."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    start = dict(net.named_parameters())
    data = [
        [
            torch.as_tensor(part, dtype=torch.float32).reshape(-1, 1)
            for part in (task.X_support, task.y_support, task.X_query, task.y_query)
        ]
        for task in tasks
    ]
    loss_of = nn.functional.mse_loss
    for first in range(0, len(data), BATCH):
        optimizer.zero_grad()
        for X_support, y_support, X_query, y_query in data[first : first + BATCH]:
            fast = start
            for _ in range(n_steps):
                loss = loss_of(functional_call(net, fast, (X_support,)), y_support)
                gradients = torch.autograd.grad(
                    loss, tuple(fast.values()), create_graph=True
                )
                fast = {
                    name: value - 0.01 * gradient
                    for (name, value), gradient in zip(
                        fast.items(), gradients, strict=True
                    )
                }
            loss = loss_of(functional_call(net, fast, (X_query,)), y_query) / BATCH
            loss.backward()
        optimizer.step()


def whole_fit(tasks, n_steps):
    """The same by sk_meta, `EPOCHS` times over the tasks."""
    net = TaskNet(module__hidden=(40, 40), lr=1e-3, max_epochs=EPOCHS, batch_size=BATCH)
    return MAMLRegressor(net, n_inner_steps=n_steps, random_state=0).fit(tasks)


def seconds(function, *args):
    """Processor time, which other work on the machine disturbs least."""
    start = process_time()
    function(*args)
    return process_time() - start


def main():
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=2500)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = make_sinusoids(options.tasks, random_state=0)
    whole_fit(tasks[:BATCH], 1)
    plain_loop(tasks[:BATCH], 1)
    lines = [
        "# Speed: sinusoids",
        "",
        f"`python tests/benchmarks/speed.py --tasks {options.tasks} --repeats "
        f"{options.repeats}`",
        "",
        "MAML of the second order, 25 tasks in a meta-batch, one thread; whole `fit` "
        "against a plain torch loop over tasks in the same run. Medians of processor "
        "time; the machine is shared, so the ratio is what counts.",
        "",
        "| inner steps | loop, ms/iteration | fit, ms/iteration | ratio |",
        "|---|---|---|---|",
    ]
    for n_steps in (1, 5):
        loop, ours = [], []
        for _ in range(options.repeats):
            loop.append(seconds(plain_loop, tasks, n_steps))
            ours.append(seconds(whole_fit, tasks, n_steps))
        per_loop = 1e3 * median(loop) / (options.tasks / BATCH)
        per_fit = 1e3 * median(ours) / (EPOCHS * options.tasks / BATCH)
        ratio = per_loop / per_fit
        lines.append(f"| {n_steps} | {per_loop:.2f} | {per_fit:.2f} | {ratio:.1f}x |")
    meta = whole_fit(tasks, 1)
    new = make_sinusoids(1, random_state=1)[0]
    few_shot = meta.adapt(new.X_support, new.y_support)
    lines += ["", "Network 40-40, one inner step:", ""]
    for what, function in (
        ("adapt on 10 rows", lambda: meta.adapt(new.X_support, new.y_support)),
        ("predict 1 row", lambda: few_shot.predict(new.X_query[:1])),
    ):
        times = []
        for _ in range(200):
            start = perf_counter()
            function()
            times.append(1e3 * (perf_counter() - start))
        lines.append(f"- {what}: median {median(times):.2f} ms")
    write_page("speed", lines)


if __name__ == "__main__":
    main()
