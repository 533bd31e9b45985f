"""Fusions against their members, on four of the tables.

    python tests/benchmarks/fusion.py [sinusoids|gp_draws|omniglot|heart ...]

Tasks, networks and settings are those of sinusoids.py, gp_draws.py, omniglot.py and
heart_disease.py, with fewer iterations. Three members of a table were named before the
first run: rows near its top that are made in different ways. Weights are learned on
validation tasks; the new tasks are used once. The soup is of four learners that go on
from one training with other draws. Adds to docs/results/fusion.json, and writes
docs/results/fusion.md from it.
"""

import argparse
from copy import deepcopy
from time import process_time

import gp_draws
import numpy as np
import sinusoids
import torch
from heart_baselines import episodes as heart_episodes
from heart_disease import draw_tasks, few_shot, meta_train
from omniglot import samplers, training_and_validation
from omniglot_methods import METHODS as OMNIGLOT
from pages import keep_row, table, write_page
from sinusoid_methods import METHODS as SINUSOIDS
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import balanced_accuracy_score

from sk_meta import (
    FusionClassifier,
    FusionRegressor,
    InContextClassifier,
    JointClassifier,
    MAMLClassifier,
    evaluate,
)
from sk_meta.datasets import load_heart_disease
from sk_meta.tasks import make_sinusoids

WEIGHTS = "uniform", "learned", "support"
N_HEART_DRAWS = 10


def fusions(kind, members, validation, weights=WEIGHTS):
    """Fitted fusions of fitted members, by name."""
    learners = [(name, FrozenEstimator(model)) for name, model in members.items()]
    return {
        f"average, {one}": kind(learners, weights=one).fit(validation)
        for one in weights
    }


def compared(members, fused, score, notes=None):
    """Rows of a table: mean score, and the gain over the best member.

    Parameters
    ----------
    members, fused : dict of name to model
    score : callable
        model -> array of scores of new tasks, higher is better.
    """
    of_members = {name: score(model) for name, model in members.items()}
    best = max(of_members, key=lambda name: of_members[name].mean())
    rows = [
        {"name": name, "member": True, "mean": float(values.mean())}
        for name, values in of_members.items()
    ]
    for name, model in fused.items():
        values = score(model)
        gain = values - of_members[best]
        rows.append(
            {
                "name": name,
                "member": False,
                "mean": float(values.mean()),
                "gain": float(gain.mean()),
                "error": float(gain.std(ddof=1) / np.sqrt(len(gain))),
                "weights": _weights(model),
            }
        )
        print(rows[-1], flush=True)
    return {"best": best, "rows": rows}


def _weights(model):
    return np.round(getattr(model, "weights_", []), 3).tolist()


def _squared(model, tasks):
    return -np.array(sinusoids.squared_errors(model, tasks))


def on_sinusoids():
    """R2D2, conditional neural process and in-context learner; 1,000 iterations."""
    tasks = make_sinusoids(25_000, random_state=0)
    validation = make_sinusoids(100, random_state=1)
    new = make_sinusoids(600, random_state=2)
    members = {
        key: sinusoids.train(SINUSOIDS[key], tasks, 1000, {"lr": 3e-3})[0]
        for key in ("r2d2", "cnp", "in_context")
    }
    fused = fusions(FusionRegressor, members, validation)
    return compared(members, fused, lambda m: _squared(m, new))


def on_soup():
    """R2D2 after 1,000 iterations, and four times 200 more from there."""
    tasks = make_sinusoids(45_000, random_state=0)
    validation = make_sinusoids(100, random_state=1)
    new = make_sinusoids(600, random_state=2)
    start = sinusoids.train(SINUSOIDS["r2d2"], tasks[:25_000], 1000, {"lr": 3e-3})[0]
    members = {}
    for i in range(4):
        branch = deepcopy(start)
        branch.net_.set_params(callbacks=None, lr=1e-3, max_epochs=1)
        branch.net_.rng_ = np.random.default_rng(i)
        part = tasks[25_000 + 5000 * i : 30_000 + 5000 * i]
        members[f"r2d2, branch {i}"] = retrained(branch, part)
    learners = [(name, FrozenEstimator(model)) for name, model in members.items()]
    fused = fusions(FusionRegressor, members, validation, ["uniform"])
    for weights in ("uniform", "learned"):
        meta = FusionRegressor(learners, "soup", weights).fit(validation)
        fused[f"soup, {weights}"] = meta
    return compared(members, fused, lambda m: _squared(m, new))


def retrained(meta, tasks):
    """The same learner after one more pass, at a constant rate."""
    net = meta.net_
    net.callbacks_ = [pair for pair in net.callbacks_ if pair[0] != "decay"]
    for group in net.optimizer_.param_groups:
        group["lr"] = group["initial_lr"] = 1e-3
    return meta.partial_fit(tasks)


def on_gp_draws():
    """ALPaCA, in-context learner, attentive neural process; 1,000 iterations."""
    tasks = gp_draws.draw(16_000, 0)
    validation, new = gp_draws.draw(200, 1), gp_draws.draw(500, 2)
    rates = {"alpaca": 3e-3, "in_context": 1e-3, "anp": 3e-3}
    members = {
        key: gp_draws.train(gp_draws.LEARNERS[key][0], tasks, lr)
        for key, lr in rates.items()
    }
    fused = fusions(FusionRegressor, members, validation)

    def score(model):
        found = model.predict(new, return_std=True)
        return np.array(gp_draws.log_likelihoods(new, *found))

    return compared(members, fused, score)


def on_omniglot():
    """Prototypes, R2D2 and relation network; 1,000 iterations."""
    training, validation = training_and_validation()
    members = {}
    for key in ("prototypes", "r2d2", "relation"):
        meta, drawn = OMNIGLOT[key].make(*training, 1000, 5)
        members[key] = meta.fit(drawn)
    found = samplers(validation)
    few, new = found["5-way, validation"], found["5-way"]
    fused = fusions(FusionClassifier, members, few, ["uniform", "learned"])
    embedding = [(k, FrozenEstimator(members[k])) for k in ("prototypes", "r2d2")]
    concatenated = FusionClassifier(embedding, "concatenate").fit(few)
    fused["concatenate, prototypes and r2d2"] = concatenated
    return compared(members, fused, lambda m: 100 * evaluate(m, new).scores)


def on_heart():
    """MAML, in-context learner and joint training; two passes, seed 0."""
    torch.manual_seed(0)
    hospitals = load_heart_disease(as_tasks=True)
    kinds = {
        "maml": (MAMLClassifier, {"inner_lr": 0.03}),
        "in_context": (InContextClassifier, {}),
        "joint": (JointClassifier, {"n_adapt_steps": 5}),
    }
    parts = []
    for target in range(len(hospitals)):
        draws = list(heart_episodes(hospitals, target))[:N_HEART_DRAWS]
        sources = draws[0].sources
        settings = {"max_epochs": 2, "share": 0.5}
        members = {
            name: meta_train(kind, sources, 0, **settings, **options)
            for name, (kind, options) in kinds.items()
        }
        weights = np.mean(
            [_left_out(kinds, sources, i, settings) for i in range(len(sources))],
            axis=0,
        )
        learners = [(name, FrozenEstimator(m)) for name, m in members.items()]
        some = draw_tasks(sources, 1)[:10]
        fused = {
            f"average, {name}": FusionClassifier(learners, weights=one).fit(some)
            for name, one in zip(WEIGHTS, ("uniform", weights, "support"), strict=True)
        }
        parts.append((members, fused, draws))

    def score(name):
        found = []
        for members, fused, draws in parts:
            model = {**members, **fused}[name]
            for draw in draws:
                y = few_shot(model, draw).predict(draw.query[0])
                found.append(100 * balanced_accuracy_score(draw.query[1], y))
        return np.array(found)

    members, fused, _ = parts[0]
    found = compared({n: n for n in members}, {n: n for n in fused}, score)
    for row in found["rows"]:
        if row["name"] == "average, learned":
            per_target = [f["average, learned"].weights_ for _, f, _ in parts]
            row["weights"] = np.round(np.mean(per_target, axis=0), 3).tolist()
    return found


def _left_out(kinds, sources, index, settings):
    """Weights learned on one source hospital by members that never saw it."""
    rest = [source for i, source in enumerate(sources) if i != index]
    learners = [
        (name, FrozenEstimator(meta_train(kind, rest, 0, **settings, **options)))
        for name, (kind, options) in kinds.items()
    ]
    tasks = draw_tasks([sources[index]], 2)[:100]
    return FusionClassifier(learners, weights="learned").fit(tasks).weights_


TABLES = {
    "sinusoids": (on_sinusoids, "minus mean squared error"),
    "gp_draws": (on_gp_draws, "log likelihood of a query row"),
    "omniglot": (on_omniglot, "accuracy in %, 5-way 1-shot"),
    "heart": (on_heart, "balanced accuracy in %"),
    "soup": (on_soup, "minus mean squared error, sinusoids"),
}


def page(found):
    """The lines of the page, from the saved tables."""
    lines = [
        "# Fusions and their members",
        "",
        "`python tests/benchmarks/fusion.py TABLE`, with TABLE as in the headings",
        "",
        "Scores of new tasks, higher is better; gain over the member that is best on "
        "these very tasks, with its standard error, paired by task. Weights in the "
        "order of the members, learned on validation tasks (heart: on one source "
        "hospital after the other, by members trained on the rest; mean over the "
        "four targets). After a first run support weights were made to count rows by "
        "their weights (heart), and learned soups to start from the uniform one.",
    ]
    for key, result in found.items():
        run, metric = TABLES[key]
        lines += ["", f"## `{key}`", "", f"{run.__doc__} {result['minutes']} minutes."]
        cells = []
        for row in result["rows"]:
            gain = ""
            if not row["member"]:
                gain = f"{row['gain']:+.4f} ± {row['error']:.4f}"
            weights = ", ".join(f"{w:.2f}" for w in row.get("weights", []))
            name = row["name"] + (" (best)" if row["name"] == result["best"] else "")
            cells.append([name, f"{row['mean']:.4f}", gain, weights])
        lines += ["", *table(["", metric, "gain ± standard error", "weights"], cells)]
    return lines


def main():
    """Run tables, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tables", nargs="*", default=[*TABLES], choices=[*TABLES, []])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for key in options.tables:
        start = process_time()
        result = TABLES[key][0]()
        result["minutes"] = round((process_time() - start) / 60, 1)
        rows = keep_row("fusion", key, result)
        write_page("fusion", page(rows))


if __name__ == "__main__":
    main()
