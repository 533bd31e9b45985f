"""From tasks to meta-batches: episodes, small tasks, ragged ones, tables on disk.

    python tests/benchmarks/data_path.py [--tasks 100000] [--repeats 300]
        [--learn2learn FOLDER]

What lies outside of the meta-step, one thread: drawing 5-way 1-shot episodes of 80
images, stacking sinusoids, an epoch over many small tasks, grouping tasks of 3 to 300
rows, and reading from disk. Prints medians.

learn2learn 0.2.0 does not install on Python 3.11; its part for data does, in FOLDER:

    pip download --no-deps learn2learn==0.2.0 && tar xzf learn2learn-0.2.0.tar.gz
    pip install "cython<3"
    cythonize -i -f -3 learn2learn-0.2.0/learn2learn/data/*.pyx

FOLDER is then learn2learn-0.2.0.
"""

import argparse
import random
import sys
from importlib import import_module
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from types import ModuleType

import numpy as np
import pandas as pd
import torch
from pages import write_page
from torch.utils.data import default_collate

from sk_meta import EpisodeSampler, MAMLRegressor, Task, TaskNet, tasks_from_groups
from sk_meta.tasks import make_sinusoids, tasks_from_file
from sk_meta.tasks.stacking import MetaBatches, TaskDataset
from sk_meta.tasks.validation import Schema, check_tasks

N_CLASSES, N_EACH = 964, 20  # Omniglot's background set
N_WAY, N_ROWS = 5, 16
BATCH = 25


def milliseconds(function, repeats):
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        start = perf_counter()
        function()
        times.append(1e3 * (perf_counter() - start))
    return median(times)


def dataset_of(tasks, classification, support_size=10):
    """The tasks, ready for training."""
    tasks = check_tasks(tasks)
    schema = Schema.from_tasks(tasks, classification)
    dataset = TaskDataset(tasks, schema, support_size, 0, "cpu")
    dataset.check_draws()
    return dataset


class Images(torch.utils.data.Dataset):
    """Images and labels one by one, as learn2learn's data sets give them."""

    def __init__(self, X, y):
        self.X, self.y = torch.from_numpy(X), y.tolist()

    def __len__(self):
        return len(self.X)

    def __getitem__(self, index):
        return self.X[index], self.y[index]


def sample_by_sample(images):
    """Draws an episode as learn2learn does: one description and one call a sample."""
    rows_of = {}
    for row, label in enumerate(images.y):
        rows_of.setdefault(label, []).append(row)

    def draw():
        description = [
            (row, [images.__getitem__])
            for label in random.sample(list(rows_of), N_WAY)
            for row in random.sample(rows_of[label], N_ROWS)
        ]
        samples = []
        for sample, transforms in description:
            for transform in transforms:
                sample = transform(sample)
            samples.append(sample)
        labels = dict.fromkeys(label for _, label in samples)
        codes = {label: code for code, label in enumerate(labels)}
        return default_collate([(X, codes[label]) for X, label in samples])

    return draw


def learn2learn_draw(folder, images):
    """The same by learn2learn itself, of which only the part for data is imported."""
    package = ModuleType("learn2learn")
    package.__path__ = [str(Path(folder) / "learn2learn")]
    sys.modules.update(learn2learn=package, requests=ModuleType("requests"))
    package.data = import_module("learn2learn.data")
    steps = import_module("learn2learn.data.transforms")
    data = package.data.MetaDataset(images)
    return package.data.Taskset(
        data,
        [
            steps.NWays(data, N_WAY),
            steps.KShots(data, N_ROWS),
            steps.LoadData(data),
            steps.RemapLabels(data),
            steps.ConsecutiveLabels(data),
        ],
    ).sample


def episodes(repeats, folder):
    """Lines on the drawing of episodes."""
    rng = np.random.default_rng(0)
    X = rng.random((N_CLASSES * N_EACH, 1, 28, 28), dtype=np.float32)
    y = np.repeat(np.arange(N_CLASSES), N_EACH)
    start = perf_counter()
    sampler = EpisodeSampler(X, y, N_WAY, 1, N_ROWS - 1, n_episodes=10**6)
    dataset = dataset_of(sampler, True)
    made = 1e3 * (perf_counter() - start)
    images = Images(X, y)
    draws = {"sample by sample, collated": (sample_by_sample(images), 1)}
    if folder is not None:
        draws["learn2learn"] = learn2learn_draw(folder, images), 1
    peer = list(draws)[-1]
    for size in (1, 32):
        batch = rng.integers(10**6, size=size)
        draws[f"sk_meta, {size} in a meta-batch"] = (
            lambda b=batch: dataset.batch(b, rng),
            size,
        )
    times = {
        name: milliseconds(draw, repeats) / size for name, (draw, size) in draws.items()
    }
    return [
        f"| drawing an episode of 80 images | ms | against {peer} |",
        "|---|---|---|",
        *(f"| {n} | {t:.3f} | {times[peer] / t:.1f}x |" for n, t in times.items()),
        "",
        f"Making a data set of 1,000,000 episodes: {made:.0f} ms.",
    ]


def meta_batches(repeats):
    """Lines on stacking small and ragged tasks."""
    rng = np.random.default_rng(0)
    sinusoids = make_sinusoids(5000, random_state=0)
    sizes = rng.integers(3, 301, 2000).tolist()
    kinds = {
        "sinusoids, 10 + 10 rows": sinusoids,
        "the same, support sets drawn": [Task(t.X, t.y) for t in sinusoids],
        "3 to 300 rows, half of them support": [
            Task(np.ones((n, 1)), np.arange(float(n)), support=range(max(1, n // 2)))
            for n in sizes
        ],
    }
    lines = [
        f"| {BATCH} tasks in a meta-batch | ms | groups | rows with filling up |",
        "|---|---|---|---|",
    ]
    for name, tasks in kinds.items():
        dataset = dataset_of(tasks, False)
        chosen = rng.integers(len(tasks), size=(repeats, BATCH))
        turn = iter(chosen)
        time = milliseconds(
            lambda d=dataset, t=turn: d.batch(next(t), rng, True), repeats
        )
        batches = [dataset.batch(indices, rng, True) for indices in chosen]
        n_groups = np.mean([len(batch.groups) for batch in batches])
        filled = sum(
            part.X.shape[0] * part.X.shape[1]
            for batch in batches
            for group in batch
            for part in (group.support, group.query)
        )
        n_rows = sum(len(tasks[i]) for i in chosen.ravel())
        lines.append(
            f"| {name} | {time:.3f} | {n_groups:.1f} | {filled / n_rows:.2f}x |"
        )
    return lines


class TimedNet(TaskNet):
    """Counts the processor time of meta-steps, and of the whole epoch."""

    inside = whole = 0.0

    def train_step(self, batch, **fit_params):
        """As in TaskNet."""
        start = process_time()
        step = super().train_step(batch, **fit_params)
        TimedNet.inside += process_time() - start
        return step

    def on_epoch_begin(self, net, **options):
        """As in TaskNet."""
        TimedNet.whole -= process_time()
        super().on_epoch_begin(net, **options)

    def on_epoch_end(self, net, **options):
        """As in TaskNet."""
        super().on_epoch_end(net, **options)
        TimedNet.whole += process_time()


def many_tasks(n_tasks):
    """Lines on an epoch over many small tasks."""
    tasks = make_sinusoids(n_tasks, random_state=0)
    start = process_time()
    dataset = dataset_of(tasks, False)
    made = process_time() - start
    start = process_time()
    for _ in MetaBatches(dataset, BATCH, np.random.default_rng(0)):
        pass
    epoch = process_time() - start
    net = TimedNet(module__hidden=(40, 40), max_epochs=1, batch_size=BATCH)
    MAMLRegressor(net, n_inner_steps=1, random_state=0).fit(tasks)
    whole = TimedNet.whole
    share = 100 * (1 - TimedNet.inside / whole)
    return [
        f"An epoch of `fit` over {n_tasks:,} sinusoids (MAML, one step, network 40-40) "
        f"takes {whole:.1f} s of processor time, of which {share:.1f} % outside of the "
        f"meta-steps; all its meta-batches are stacked in {epoch:.2f} s. Checking and "
        f"encoding the list, once: {made:.1f} s.",
    ]


def from_disk(repeats):
    """Lines on tables that stay on disk."""
    rng = np.random.default_rng(0)
    n_tasks, n_rows, n_features = 1000, 40, 50
    columns = [f"x{i}" for i in range(n_features)]
    X = rng.normal(size=(n_tasks * n_rows, n_features)).astype(np.float32)
    y, groups = rng.normal(size=len(X)), np.repeat(np.arange(n_tasks), n_rows)
    lines = [
        f"| {BATCH} tasks of {n_rows} rows, {n_features} features | ms |",
        "|---|---|",
    ]
    with TemporaryDirectory() as folder:
        np.save(Path(folder) / "X.npy", X)
        parquet = Path(folder) / "table.parquet"
        table = pd.DataFrame(X, columns=columns).assign(target=y, group=groups)
        table.to_parquet(parquet, row_group_size=400)
        arrow = Path(folder) / "table.arrow"
        table.to_feather(arrow, compression="uncompressed", chunksize=4000)
        mapped = np.load(Path(folder) / "X.npy", mmap_mode="r")
        for name, tasks in {
            "in memory": tasks_from_groups(X, y, groups),
            "memory map": tasks_from_groups(mapped, y, groups),
            "Arrow file": tasks_from_file(arrow, target="target", group="group"),
            "Parquet, row groups of 400": tasks_from_file(
                parquet, target="target", group="group"
            ),
        }.items():
            dataset = dataset_of(tasks, False)
            turn = iter(rng.integers(n_tasks, size=(repeats, BATCH)))
            time = milliseconds(
                lambda d=dataset, t=turn: d.batch(next(t), rng), repeats
            )
            lines.append(f"| {name} | {time:.2f} |")
    return lines


def main():
    """Print the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--learn2learn", help="folder of its source, see above")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# The data path",
        "",
        f"`python tests/benchmarks/data_path.py --tasks {options.tasks} --repeats "
        f"{options.repeats}"
        + (" --learn2learn learn2learn-0.2.0`" if options.learn2learn else "`"),
        "",
        "One thread, medians of one run.",
        "",
        *episodes(options.repeats, options.learn2learn),
        "",
        "Sample by sample is a few lines that draw as learn2learn does: a description "
        "of the episode, a call for each image, and torch's `default_collate`. All "
        "take their images from one array in memory: nothing is decoded or rotated.",
        "",
        *meta_batches(options.repeats),
        "",
        *many_tasks(options.tasks),
        "",
        *from_disk(options.repeats // 3),
    ]
    write_page("data_path", lines)


if __name__ == "__main__":
    main()
