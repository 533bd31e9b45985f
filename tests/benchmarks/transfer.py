"""Transfer: heads on encoders, for digits and for Omniglot.

    python tests/benchmarks/transfer.py digits [ENCODER]
    python tests/benchmarks/transfer.py omniglot ENCODER [--epochs N] [--trial]

Encoders are fitted on source classes, heads on the support sets of new ones. Settings
are chosen on validation classes cut from the source classes: of heads from the grids in
HEADS, for each encoder and number of rows; of encoders where there are several
candidates. For Omniglot, ``--trial`` shows what candidates reach there, and stops.

digits: sklearn's load_digits. Source classes 0 to 4, new ones 5 to 9. For validation,
two of the five source classes are left out at a time, five times. "Turned" encoders are
fitted on the source digits in eight positions, turned and mirrored, each a class of its
own: forty classes instead of five.

omniglot: source classes are the characters of 25 background alphabets, validation ones
those of the other 5, as in omniglot.py; without rotations. New ones are those of the
evaluation alphabets. Fine-tuning is slow, and sees 100 of the 5-way episodes.

Adds rows to docs/results/transfer.json, and writes docs/results/transfer.md from it.
"""

import argparse
import json
from itertools import product
from time import process_time

import numpy as np
import torch
from omniglot import training_and_validation
from pages import RESULTS, keep_row, table, write_page
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import ParameterGrid
from sklearn.svm import SVC
from torch import nn

from sk_meta import (
    CosineClassifier,
    EpisodeSampler,
    FineTuning,
    RowNet,
    TorchEncoder,
    TransferClassifier,
    evaluate,
)
from sk_meta.datasets import load_omniglot
from sk_meta.metrics import mean_interval
from sk_meta.networks import MLP, BatchNorm

PENALTIES = [0.1, 1.0, 10.0, 100.0, 1000.0]
HEADS = {
    "SVC": (SVC(), {"C": [0.1, 1.0, 10.0, 100.0]}),
    "ridge": (RidgeClassifier(), {"alpha": PENALTIES}),
    "logistic": (
        LogisticRegression(max_iter=1000),
        {"C": [0.001, 0.01, 0.1, 1.0, 10.0]},
    ),
    "cosine": (CosineClassifier(), {"scale": [5.0, 20.0, 50.0], "alpha": [1.0, 30.0]}),
    "fine-tuning": (FineTuning(max_steps=20), {"lr": [1e-4, 1e-3]}),
}
FOLDS = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)]
OMNIGLOT = {
    "pixels": ["passthrough"],
    "PCA": [PCA(n) for n in (8, 16, 32, 64, 128)],
    "linear": [TorchEncoder(RowNet(lr=3e-3, batch_size=128, max_epochs=6))],
    "cosine": [
        TorchEncoder(
            RowNet(lr=3e-3, batch_size=128, max_epochs=6), head="cosine", scale=20.0
        )
    ],
}


class SmallImages(nn.Module):
    """Three blocks of convolution, normalisation and ReLU; pooling after the first."""

    def __init__(self, input_shape, n_filters=64):
        super().__init__()
        layers, channels = [], input_shape[0]
        for pool in (True, False, False):
            layers += [
                nn.Conv2d(channels, n_filters, 3, padding=1),
                BatchNorm(n_filters),
                nn.ReLU(),
            ]
            layers += [nn.MaxPool2d(2)] if pool else []
            channels = n_filters
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, X):
        """(n, channels, height, width) -> (n, n_features)."""
        return self.layers(X)


def digit_encoders():
    """Candidates for digits, by the name of their kind."""
    nets = [RowNet(MLP, module__hidden=(256,), max_epochs=n) for n in (1, 3, 10)]
    nets.append(RowNet(module__n_filters=32, max_epochs=3))
    nets += [RowNet(SmallImages, max_epochs=n) for n in (3, 10)]
    networks = {
        f"network, {head}{where}": [TorchEncoder(net, head=head) for net in nets]
        for head in ("linear", "cosine")
        for where in ("", ", turned")
    }
    sizes = [PCA(n) for n in (8, 16, 32, 48)]
    return {
        "pixels": ["passthrough"],
        "PCA": sizes,
        "PCA, turned": sizes,
        **networks,
    }


def turned(X, y):
    """Images in eight positions; each position of a class is a class of its own."""
    mirrored = X, X[..., ::-1]
    images = [np.rot90(Z, n, axes=(2, 3)) for Z in mirrored for n in range(4)]
    labels = [np.char.add(y.astype(str), f"/{i}") for i in range(len(images))]
    return np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels)


def rows_as_source(X, y):
    """Rows to fit an encoder on: one sampler, whose episodes do not matter."""
    return EpisodeSampler(X, y, n_way=2, n_shot=1, n_query=1, n_episodes=1)


def fitted(encoder, X, y):
    """An encoder fitted on source rows."""
    meta = TransferClassifier(encoder, random_state=0)
    return meta.fit(rows_as_source(X, y))


def with_head(meta, head, source):
    """A learner with the same encoder and another head."""
    encoder = FrozenEstimator(meta.encoder_)
    return TransferClassifier(encoder, head, random_state=0).fit(source)


def encoded(meta, X):
    """Features, so that episodes need not encode their rows again."""
    return np.asarray(meta.embed(X))


def heads_for(meta):
    """Fine-tuning is for networks alone."""
    network = isinstance(meta.encoder_, TorchEncoder)
    return [name for name in HEADS if network or name != "fine-tuning"]


def validation_score(meta, head, X, y, Z, shape):
    """Accuracy on episodes of validation classes."""
    tuned = isinstance(head, FineTuning)
    episodes = EpisodeSampler(X if tuned else Z, y, **shape, random_state=1)
    if tuned:
        learner = with_head(meta, head, rows_as_source(X, y))
    else:
        learner = TransferClassifier("passthrough", head, random_state=0)
        learner.fit(rows_as_source(Z, y))
    return float(np.mean(evaluate(learner, episodes).scores))


def choose_head(name, fits, shape):
    """The best setting of a head on validation classes.

    Parameters
    ----------
    name : str
    fits : list of (fitted encoder, X, y, encoded X)
        One for each fold.
    shape : dict
        Of the episodes.
    """
    head, grid = HEADS[name]
    if name == "fine-tuning":
        shape = {**shape, "n_episodes": 10}
    scores = {}
    for setting in ParameterGrid(grid):
        candidate = clone(head).set_params(**setting)
        found = [
            validation_score(meta, candidate, X, y, Z, shape) for meta, X, y, Z in fits
        ]
        scores[tuple(sorted(setting.items()))] = np.mean(found)
    best = max(scores, key=scores.get)
    return clone(head).set_params(**dict(best)), dict(best), float(scores[best])


def interval(meta, episodes):
    """Mean accuracy in per cent, and half of its 95 % interval."""
    found = mean_interval(100 * evaluate(meta, episodes).scores)
    return [round(value, 2) for value in found]


def digits(only=None):
    """Choose, evaluate, keep the rows."""
    X, y = load_digits(return_X_y=True)
    X = (X / 16).reshape(-1, 1, 8, 8).astype(np.float32)
    for name, candidates in digit_encoders().items():
        if only not in (None, name):
            continue
        keep_row("transfer", f"digits/{name}", digit_rows(name, candidates, X, y))


def digit_rows(name, candidates, X, y):
    """Results of all heads on the best of some encoders."""
    start, folds = process_time(), []
    prepare = turned if name.endswith("turned") else lambda X, y: (X, y)
    for left_out in FOLDS:
        held = np.isin(y, left_out)
        rest = (y < 5) & ~held
        folds.append((prepare(X[rest], y[rest]), X[held], y[held]))
    shapes = {
        n: {"n_way": 2, "n_shot": n, "n_query": 15, "n_episodes": 30}
        for n in (1, 5, 10)
    }
    found = []
    for encoder in candidates:
        fits = []
        for source, X_valid, y_valid in folds:
            meta = fitted(encoder, *source)
            fits.append((meta, X_valid, y_valid, encoded(meta, X_valid)))
        plain = LogisticRegression(max_iter=1000)
        scores = [
            validation_score(*fit[:1], plain, *fit[1:], shape)
            for fit, shape in product(fits, shapes.values())
        ]
        found.append((np.mean(scores), fits, encoder))
    for score, _, encoder in found:
        print(say_encoder(encoder), f"validation: {100 * score:.1f} %", flush=True)
    _, fits, encoder = max(found, key=lambda one: one[0])
    final, rows = fitted(encoder, *prepare(X[y < 5], y[y < 5])), {}
    new = y >= 5
    for head, n_shot in product(heads_for(final), shapes):
        best, setting, _ = choose_head(head, fits, shapes[n_shot])
        learner = with_head(final, best, rows_as_source(X[new], y[new]))
        episodes = EpisodeSampler(
            X[new], y[new], 5, n_shot, 15, n_episodes=200, random_state=2
        )
        score = interval(learner, episodes)
        rows.setdefault(head, {})[str(n_shot)] = [*score, say(setting)]
        print(name, head, n_shot, rows[head][str(n_shot)], flush=True)
    minutes = round((process_time() - start) / 60, 1)
    return {"encoder": say_encoder(encoder), "minutes": minutes, "heads": rows}


def omniglot(name, epochs, trial):
    """Fit, choose heads, evaluate once, keep the row."""
    start = process_time()
    (X, y), (X_valid, y_valid) = training_and_validation()
    n = len(X) // 4  # the upright ones
    few = {"n_way": 5, "n_query": 15, "n_episodes": 40}
    plain, found = LogisticRegression(max_iter=1000), []
    for encoder in OMNIGLOT[name]:
        if epochs is not None and isinstance(encoder, TorchEncoder):
            encoder = clone(encoder).set_params(net__max_epochs=epochs)
        meta = fitted(encoder, X[:n], y[:n])
        fit = (meta, X_valid, y_valid, encoded(meta, X_valid))
        scores = {
            n_shot: validation_score(meta, plain, *fit[1:], {**few, "n_shot": n_shot})
            for n_shot in (1, 5)
        }
        print(say_encoder(encoder), "validation, by shots:", scores, flush=True)
        found.append((scores, fit, encoder))
    if trial:
        return
    minutes = round((process_time() - start) / 60, 1)
    new, rows, chosen = load_omniglot(split="evaluation"), {}, []
    for n_shot in (1, 5):
        _, fit, encoder = max(found, key=lambda one: one[0][n_shot])
        chosen.append(say_encoder(encoder))
        for head, cells in omniglot_heads(fit, new, {**few, "n_shot": n_shot}):
            rows.setdefault(head, {}).update(cells)
            print(name, head, cells, flush=True)
    chosen = " / ".join(dict.fromkeys(chosen))
    row = {"encoder": chosen, "minutes": minutes, "heads": rows}
    keep_row("transfer", f"omniglot/{name}", row)


def omniglot_heads(fit, new, shape):
    """Each head on new characters, its settings chosen on validation ones."""
    Z, n_shot = encoded(fit[0], new.data), shape["n_shot"]
    for head in heads_for(fit[0]):
        best, setting, _ = choose_head(head, [fit], shape)
        tuned, cells = head == "fine-tuning", {}
        if tuned:
            learner = with_head(fit[0], best, rows_as_source(new.data, new.target))
        else:
            learner = TransferClassifier("passthrough", best, random_state=0)
            learner.fit(rows_as_source(Z, new.target))
        for n_way, n_query in ((5, 15),) if tuned else ((5, 15), (20, 5)):
            episodes = EpisodeSampler(
                new.data if tuned else Z,
                new.target,
                n_way,
                n_shot,
                n_query,
                n_episodes=100 if tuned else 300,
                random_state=2 if n_way == 5 else 3,
            )
            cells[f"{n_way}/{n_shot}"] = [*interval(learner, episodes), say(setting)]
        yield head, cells


def say(setting):
    """A setting in words."""
    return ", ".join(f"{name}={value:g}" for name, value in setting.items())


def say_encoder(encoder):
    """What matters of an encoder."""
    if not isinstance(encoder, TorchEncoder):
        return "passthrough" if isinstance(encoder, str) else repr(encoder)
    params = encoder.get_params()
    module = getattr(params["net__module"], "__name__", "Conv4")
    size = params.get("net__module__n_filters", params.get("net__module__hidden", 64))
    scale = f", scale={params['scale']:g}" if params["head"] == "cosine" else ""
    return (
        f"{module} {size}, head={params['head']}{scale}, lr={params['net__lr']:g}, "
        f"{params['net__max_epochs']} epochs"
    )


def write():
    """The page, from the saved rows."""
    rows = json.loads((RESULTS / "transfer.json").read_text())
    lines = [
        "# Transfer",
        "",
        "`python tests/benchmarks/transfer.py digits`, or `digits ENCODER`, and "
        "`python tests/benchmarks/transfer.py omniglot ENCODER` for each of "
        f"{', '.join(OMNIGLOT)}.",
        "",
        "Accuracy in per cent on episodes of new classes, and 95 % interval. Encoders "
        "are fitted on source classes, heads on the support sets. Settings were chosen "
        "on validation classes cut from the source classes; episodes of new classes "
        "are the same for all. Minutes are those of one processor "
        "core: for digits with the choice of heads, for Omniglot of the encoder alone. "
        "Grids of heads, and that PCA's size is chosen by shots, were widened after a "
        "first run, as choices sat at their edges.",
    ]
    for problem, columns, title in (
        ("digits", ("1", "5", "10"), "Digits: 0 to 4, then 5 to 9"),
        ("omniglot", ("5/1", "5/5", "20/1", "20/5"), "Omniglot"),
    ):
        lines += ["", f"## {title}", "", *about(problem), ""]
        cells = []
        for key, row in rows.items():
            if key.startswith(problem):
                name = say_name(key)
                cells += [
                    [name, head, *(say_cell(of_head.get(c)) for c in columns)]
                    for head, of_head in row["heads"].items()
                ]
        names = [
            c if problem == "digits" else "-way, ".join(c.split("/")) for c in columns
        ]
        lines += table(["encoder", "head", *(f"{c} shot" for c in names)], cells)
        lines += ["", "Encoders:", ""]
        lines += [
            f"- {say_name(key)}: {row['encoder']}; {row['minutes']} minutes"
            for key, row in rows.items()
            if key.startswith(problem)
        ]
        lines += ["", "Settings of heads, by shots:", ""]
        for key, row in rows.items():
            if key.startswith(problem):
                chosen = "; ".join(
                    f"{head} "
                    + " / ".join(of_head[c][2] for c in columns if c[:2] != "20")
                    for head, of_head in row["heads"].items()
                )
                lines.append(f"- {say_name(key)}: {chosen}")
    write_page("transfer", lines)


def about(problem):
    """What is special about a problem."""
    if problem == "digits":
        return [
            "200 episodes, 5-way, 15 query rows a class. Chosen on 2-way episodes of "
            "two source classes left out, five times. The networks: Conv4, MLP and "
            "SmallImages, three convolutions with one pooling; validation chose. "
            "Turned: fitted on the source digits in eight positions, turned and "
            "mirrored, each a class of its own. The turned ones and SmallImages were "
            "added after the others had been seen to stay at PCA's level on the new "
            "digits."
        ]
    return [
        "300 episodes (fine-tuning: 100), classes from all evaluation alphabets, 15 "
        "query rows a class (20-way: 5); inductive. Encoders see the characters of 25 "
        "background alphabets, without rotations; heads are chosen on 5-way episodes "
        "of the other 5. Learning rate, epochs and scale of networks were set once, "
        "for the time there was, not searched. Fine-tuning takes at most 20 steps; of "
        "one row a class, it trains the last layer."
    ]


def say_name(key):
    """An encoder in the tables."""
    problem, _, name = key.partition("/")
    network = problem == "omniglot" and name in ("linear", "cosine")
    return f"network, {name}" if network else name


def say_cell(cell):
    """Mean and interval."""
    return "–" if cell is None else f"{cell[0]:.1f} ± {cell[1]:.1f}"


def main():
    """Run one part, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("problem", choices=["digits", "omniglot", "page"])
    parser.add_argument("encoder", nargs="?", choices=[*OMNIGLOT, *digit_encoders()])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--trial", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.problem == "digits":
        digits(options.encoder)
    elif options.problem == "omniglot":
        omniglot(options.encoder or "pixels", options.epochs, options.trial)
    if not options.trial:
        write()


if __name__ == "__main__":
    main()
