"""Whole learners as ONNX files against torch: deviations, sizes, and time.

    python tests/benchmarks/on_device.py [METHOD ...]

Every method is trained briefly, its file written, and fresh support sets of three sizes
that the export never saw are adapted to by both. MLPs have two layers of 64. Time is of
adapting to 25 rows and predicting 75, on one thread each, medians of alternating runs.
Writes docs/results/on_device.md.
"""

import argparse
import inspect
import warnings
from time import perf_counter

import numpy as np
import torch
from pages import keep_row, table, write_page

import sk_meta
from sk_meta import (
    EpisodeSampler,
    MAMLClassifier,
    MetaSGDClassifier,
    MetaSGDRegressor,
    PrototypicalClassifier,
    TaskNet,
)
from sk_meta.base import MetaClassifier, MetaRegressor
from sk_meta.datasets import load_omniglot
from sk_meta.networks import MLP, Conv4
from sk_meta.onnx import OnnxMetaLearner, to_onnx
from sk_meta.onnx.checking import last_bits_changed
from sk_meta.tasks import make_blob_tasks, make_sinusoids

SIZES = ((7, 3), (25, 75), (120, 40))
N_TASKS = 20
N_RUNS = 60


def methods():
    """All public meta-estimators."""
    for name in sk_meta.__all__:
        public = getattr(sk_meta, name)
        if inspect.isclass(public) and issubclass(
            public, MetaClassifier | MetaRegressor
        ):
            yield public


def trained(method):
    """A meta-learner with an MLP, briefly trained; 5 inner steps where it has any."""
    options = {"random_state": 0}
    for name in ("n_inner_steps", "n_adapt_steps"):
        if name in inspect.signature(method).parameters:
            options[name] = 5
    # The rates that Meta-SGD learns would grow until 5 steps diverge.
    lr = 3e-4 if method in (MetaSGDClassifier, MetaSGDRegressor) else 3e-3
    net = TaskNet(MLP, module__hidden=(64, 64), max_epochs=20, lr=lr)
    if issubclass(method, MetaClassifier):
        tasks = make_blob_tasks(60, n_classes=5, labels="local", random_state=0)
    else:
        tasks = make_sinusoids(60, random_state=0)
    return method(net, **options).fit(tasks)


def new_task(meta, n_support, n_query, rng):
    """Support and query rows as in training, and labels or targets."""
    if meta.schema_.classification:
        centres = 3 * rng.normal(size=(5, *meta.schema_.shape))
        codes = [np.resize(np.arange(5), n) for n in (n_support, n_query)]
        rows = [centres[c] + rng.normal(size=centres[c].shape) for c in codes]
        return rows[0].astype(np.float32), codes[0], rows[1].astype(np.float32)
    X = [
        rng.uniform(-5, 5, size=(n, 1)).astype(np.float32) for n in (n_support, n_query)
    ]
    amplitude, phase = rng.uniform(0.1, 5), rng.uniform(0, np.pi)
    return X[0], amplitude * np.sin(X[0][:, 0] + phase), X[1]


def answers(few_shot, X):
    """Probabilities, or means and standard deviations where there are any."""
    if hasattr(few_shot, "predict_proba"):
        return (few_shot.predict_proba(X),)
    try:
        return few_shot.predict(X, return_std=True)
    except ValueError:
        return (few_shot.predict(X),)


def compare(meta, device, tasks):
    """Largest difference of each task, and the share of rows of the same class.

    And the difference that the last bits of the support rows make in torch.
    """
    scale = 1.0 if meta.schema_.classification else meta.schema_.target_scale[0]
    worst, noise, same = [], [], []
    for X, y, X_query in tasks:
        theirs = meta.adapt(X, y)
        ours, nudged = device.adapt(X, y), meta.adapt(last_bits_changed(X), y)
        for found, other in ((worst, ours), (noise, nudged)):
            pairs = zip(answers(other, X_query), answers(theirs, X_query), strict=True)
            found.append(max(np.abs(a - b).max() / scale for a, b in pairs))
        if meta.schema_.classification:
            same.append(np.mean(ours.predict(X_query) == theirs.predict(X_query)))
    return worst, noise, np.mean(same) if same else None


def milliseconds(meta, device, task):
    """Medians of adapting and predicting, in turns: (torch, file)."""
    X, y, X_query = task
    taken = {}
    for run in range(N_RUNS):
        for model in (meta, device):
            start = perf_counter()
            model.adapt(X, y).predict(X_query)
            if run >= 5:
                taken.setdefault(model, []).append(perf_counter() - start)
    return [1000 * np.median(taken[model]) for model in (meta, device)]


def row_of(name, meta, tasks, timed):
    """One line of the table, as a dict."""
    data = to_onnx(meta).SerializeToString()
    device = OnnxMetaLearner(data)
    worst, noise, same = compare(meta, device, tasks)
    torch_ms, file_ms = milliseconds(meta, device, timed)
    return {
        "name": name,
        "kilobytes": len(data) / 1000,
        "typical": float(np.median(worst)),
        "worst": float(np.max(worst)),
        "last_bit": float(np.max(noise)),
        "same": None if same is None else float(same),
        "torch_ms": torch_ms,
        "file_ms": file_ms,
    }


def of_method(method):
    """The line of a method with an MLP."""
    meta, rng = trained(method), np.random.default_rng(0)
    sizes = [size for size in SIZES for _ in range(N_TASKS)]
    tasks = [new_task(meta, *size, rng) for size in sizes]
    return row_of(method.__name__, meta, tasks, new_task(meta, 25, 75, rng))


def of_images(method, **options):
    """The line of a method with Conv4 on Omniglot, 5-way."""
    data = load_omniglot(split="background")
    old, new = (
        EpisodeSampler(
            data.data,
            data.target,
            n_way=5,
            n_shot=shots,
            n_query=15,
            n_episodes=n,
            random_state=seed,
        )
        for shots, n, seed in ((1, 200, 0), (5, N_TASKS, 1))
    )
    meta = method(TaskNet(Conv4, max_epochs=1), random_state=0, **options).fit(old)
    tasks = [
        (task.X_support.astype(np.float32), task.y_support, task.X_query)
        for task in new
    ]
    return row_of(f"{method.__name__}, Conv4, Omniglot", meta, tasks, tasks[0])


def write(rows):
    """The page, from the rows kept."""
    cells = [
        [
            row["name"],
            f"{row['kilobytes']:.0f}",
            f"{row['typical']:.0e}",
            f"{row['worst']:.0e}",
            f"{row['last_bit']:.0e}",
            "" if row["same"] is None else f"{100 * row['same']:.1f}",
            f"{row['torch_ms']:.2f}",
            f"{row['file_ms']:.2f}",
            f"{row['file_ms'] / row['torch_ms']:.2f}",
        ]
        for row in sorted(rows.values(), key=lambda row: row["name"])
    ]
    head = ["", "KB", "typical", "worst", "last bit", "same class, %"]
    head += ["torch, ms", "file, ms", "file / torch"]
    text = (
        "The learner's file in onnxruntime against torch: the largest difference in a "
        "task, of probabilities or of targets divided by their standard deviation over "
        "training tasks; median and maximum over 20 fresh tasks of each of three sizes "
        "(Conv4: 20 tasks). Last bit: the maximum that a change of the last bits of "
        "the support rows makes in torch. Where the worst is far above both, an input "
        "of a ReLU has another sign in one of the two: with tanh it does not happen. "
        "Closed forms are solved in float64 in both: the condition of their matrices "
        "is at most signal over noise, some 1e4 here. Time: adapt to 25 rows and "
        "predict 75, medians, one thread each, in turns."
    )
    lines = ["# Learners on a device", "", "`python tests/benchmarks/on_device.py`"]
    write_page("on_device", [*lines, "", text, "", *table(head, cells)])


def main():
    """Measure, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("methods", nargs="*")
    chosen = parser.parse_args().methods
    torch.set_num_threads(1)
    cases = {method.__name__: (of_method, method, {}) for method in methods()}
    cases["Prototypes on images"] = of_images, PrototypicalClassifier, {}
    cases["MAML on images"] = of_images, MAMLClassifier, {"n_inner_steps": 5}
    for name, (measure, method, options) in cases.items():
        if chosen and name not in chosen:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = measure(method, **options)
        write(keep_row("on_device", row["name"], row))


if __name__ == "__main__":
    main()
