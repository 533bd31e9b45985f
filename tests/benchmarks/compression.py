"""Omniglot, one shot: what each way of compressing a learner costs and saves.

    python tests/benchmarks/compression.py [--trial | --times]

A prototypical network, Conv4 with 64 filters, is meta-trained on 20-way episodes of
the background alphabets, with rotations by 90 degrees as characters of their own. It
is then trained on, in as many further iterations each, as it is (the dense learner,
which the others are compared with), while weights are pruned, while half of the
channels of each layer leave, and with weights rounded to 4 bits. What has no training
of its own is made from the dense or the slim learner.

Five of the background alphabets are left out for validation. The learning rate of each
further training is chosen there (``--trial`` stops after it). The evaluation alphabets
are used once, at the end: 600 episodes, 5-way 1-shot, 15 query rows a class, inductive,
the same ones for all. The size is that of learner.onnx; the time is that of adapting to
5 rows and predicting 64, in onnxruntime on one thread: the median of many runs, the
learners taking turns of ten. It does not depend on what the weights are, so ``--times``
measures it anew, with learners that are hardly trained, for a machine that was busy.

Writes docs/results/compression.json and docs/results/compression.md.
"""

import argparse
import json
import zlib
from time import perf_counter, process_time

import numpy as np
from omniglot import training_and_validation
from omniglot_methods import conv_net
from pages import RESULTS, keep_row, table, write_page
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import LRScheduler

from sk_meta import (
    EpisodeSampler,
    PrototypicalClassifier,
    PrunedLearner,
    QuantizedLearner,
    evaluate,
)
from sk_meta.datasets import load_omniglot
from sk_meta.metrics import mean_interval
from sk_meta.onnx import OnnxMetaLearner, to_onnx

DENSE = "dense, float"
N_ROUNDS = 3
COLUMNS = ("KB", "of dense", "KB, zipped", "accuracy", "against dense", "ms", "faster")


def samples(data, target, ways, n_query, n_episodes, random_state):
    """1-shot episodes."""
    return EpisodeSampler(
        data,
        target,
        n_way=ways,
        n_shot=1,
        n_query=n_query,
        n_episodes=n_episodes,
        random_state=random_state,
    )


def trained_on(make, meta, training, iterations, passes):
    """What `make` makes of a learner, in as many iterations, and its minutes.

    The learning rate falls to 0 along a cosine in each of the passes.
    """
    n = max(iterations // passes, 1)
    frozen = FrozenEstimator(meta)
    # The schedule is a part of the trained net; it begins anew with each pass.
    schedule = LRScheduler(
        "CosineAnnealingLR", T_max=n, step_every="batch", last_epoch=-1
    )
    meta.net_.set_params(callbacks=[schedule]).initialize_callbacks()
    start = process_time()
    found = make(frozen).fit(samples(*training, 20, 5, n, 2000))
    return found, (process_time() - start) / 60


def ways_to_train_on(options):
    """Name -> (learning rate -> (frozen learner -> estimator)), passes."""

    def pruned(amount, how):
        def with_rate(lr):
            return lambda frozen: PrunedLearner(
                frozen,
                amount,
                how=how,
                n_rounds=N_ROUNDS,
                max_epochs=1,
                lr=lr,
                random_state=0,
            )

        return with_rate

    def aware(lr):
        return lambda frozen: QuantizedLearner(
            frozen,
            "int4",
            block_size=options.block_size,
            aware_epochs=1,
            lr=lr,
            random_state=0,
        )

    return {
        DENSE: (pruned(0.0, "magnitude"), N_ROUNDS),
        f"{100 * options.amount:.0f} % of weights 0": (
            pruned(options.amount, "magnitude"),
            N_ROUNDS,
        ),
        "slim 50 %": (pruned(0.5, "slim"), N_ROUNDS),
        "int4, trained with rounding": (aware, 1),
    }


def train_all(meta, training, validation, options):
    """Each learner that is trained on, at the rate that is best in validation."""
    found, rates = {}, {}
    for name, (with_rate, passes) in ways_to_train_on(options).items():
        best = -1.0
        for lr in options.lr:
            learner, minutes = trained_on(
                with_rate(lr), meta, training, options.further, passes
            )
            score = evaluate(learner, validation).scores.mean()
            print(f"{name}, lr={lr}: {100 * score:.2f}, {minutes:.1f} min", flush=True)
            if score > best:
                best, found[name], rates[name] = score, learner, lr
    return found, rates


def quantize_all(found, calibration):
    """Add what is quantised without training."""
    made = {
        "int8": (DENSE, "int8"),
        "int8, ranges of each run": (DENSE, "int8_dynamic"),
        "fp16": (DENSE, "fp16"),
        "int4": (DENSE, "int4"),
        "slim 50 %, int8": ("slim 50 %", "int8"),
    }
    for name, (source, how) in made.items():
        quantized = QuantizedLearner(FrozenEstimator(found[source]), how)
        found[name] = quantized.fit(calibration)


def file_of(learner):
    """The bytes of learner.onnx."""
    written = getattr(learner, "onnx_model_", None)
    return to_onnx(learner).SerializeToString() if written is None else written


def milliseconds(files, rows, n_runs):
    """Of a run of the file, which adapts to 5 rows and predicts 64."""
    learners = {name: OnnxMetaLearner(data) for name, data in files.items()}
    times = {name: [] for name in files}
    for _ in range(n_runs // 10):
        for name, learner in learners.items():
            state, classes = learner.adapt_state(rows[:5], np.arange(5))
            for run in range(11):
                start = perf_counter()
                learner.apply_state(state, rows[5:69], len(classes))
                if run:  # the first comes to memory that others have used
                    times[name].append(perf_counter() - start)
    return {name: 1000 * float(np.median(values)) for name, values in times.items()}


def measure(found, episodes, options):
    """A row of figures for each learner."""
    files = {name: file_of(learner) for name, learner in found.items()}
    rng = np.random.default_rng(0)
    rows = episodes.X[rng.permutation(len(episodes.X))[:69]]
    times = milliseconds(files, rows, options.runs)
    scores = {
        name: 100 * evaluate(meta, episodes).scores for name, meta in found.items()
    }
    return {
        name: {
            "bytes": len(data),
            "zipped": len(zlib.compress(data, 9)),
            "accuracy": list(mean_interval(scores[name])),
            "difference": list(mean_interval(scores[name] - scores[DENSE])),
            "ms": times[name],
        }
        for name, data in files.items()
    }


def page(rows):
    """The lines of the page, from the saved rows."""
    lines = [
        "# Omniglot, one shot, compressed",
        "",
        "`python tests/benchmarks/compression.py OPTIONS`.",
        "",
        "Prototypical networks, Conv4 with 64 filters. Size of learner.onnx, which "
        "takes a support set and adapts; accuracy in per cent on 600 episodes of the "
        "evaluation alphabets, 5-way 1-shot, inductive; difference from the dense "
        "learner, which was trained on for as long, on the same episodes; both with "
        "95 % intervals. Milliseconds to adapt to 5 rows and predict 64 in onnxruntime "
        "on one thread. Learning rates of the further training chosen on alphabets "
        "left out of the background ones.",
    ]
    for key, row in rows.items():
        dense = row["learners"][DENSE]
        lines += ["", f"OPTIONS: {f'`{key}`' if key else 'none'}.", ""]
        cells = [
            [
                name,
                f"{found['bytes'] / 1000:.0f}",
                f"{100 * found['bytes'] / dense['bytes']:.1f} %",
                f"{found['zipped'] / 1000:.0f}",
                "{:.2f} ± {:.2f}".format(*found["accuracy"]),
                "–"
                if name == DENSE
                else "{:+.2f} ± {:.2f}".format(*found["difference"]),
                f"{found['ms']:.1f}",
                f"{dense['ms'] / found['ms']:.1f}x",
            ]
            for name, found in row["learners"].items()
        ]
        lines += table(["", *COLUMNS], cells)
    return lines


def main():
    """Train, choose, compress, evaluate once, print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--further", type=int, default=1000, help="iterations of each")
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-4, 1e-3])
    parser.add_argument("--amount", type=float, default=0.8, help="of weights pruned")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--episodes", type=int, default=600, help="fewer: a trial")
    parser.add_argument("--runs", type=int, default=100, help="to take the time")
    parser.add_argument("--trial", action="store_true")
    parser.add_argument("--times", action="store_true")
    options = parser.parse_args()
    if options.times:
        options.iterations, options.further, options.lr = 20, 9, options.lr[:1]
    training, validation = training_and_validation()
    start = process_time()
    meta = PrototypicalClassifier(conv_net(options.iterations, 3e-3), random_state=0)
    meta.fit(samples(*training, 20, 5, options.iterations, 0))
    print(f"{(process_time() - start) / 60:.1f} minutes of training", flush=True)
    if options.times:
        options.episodes = 5
    held_out = samples(*validation, 5, 15, options.episodes, 1)
    found, rates = train_all(meta, training, held_out, options)
    quantize_all(found, samples(*training, 5, 15, 100, 3))
    if options.times:
        rows = json.loads((RESULTS / "compression.json").read_text())
        for name, row in measure(found, held_out, options).items():
            rows[""]["learners"][name]["ms"] = row["ms"]
        write_page("compression", page(keep_row("compression", "", rows[""])))
        return
    if options.trial or options.episodes != parser.get_default("episodes"):
        print("\n".join(page({"validation": row_of(found, held_out, options, rates)})))
        return
    new = load_omniglot(split="evaluation")
    episodes = samples(new.data, new.target, 5, 15, options.episodes, 2)
    given = {
        name: value
        for name, value in vars(options).items()
        if value != parser.get_default(name) and name != "trial"
    }
    key = " ".join(
        f"--{name.replace('_', '-')} "
        + " ".join(map(str, value if isinstance(value, list) else [value]))
        for name, value in given.items()
    )
    row = row_of(found, episodes, options, rates)
    write_page("compression", page(keep_row("compression", key, row)))


def row_of(found, episodes, options, rates):
    """What is saved."""
    return {"rates": rates, "learners": measure(found, episodes, options)}


if __name__ == "__main__":
    main()
