"""
Every learner on one problem
============================

Two interleaving half-moons, turned by a random angle, stretched and moved: each task is
such a pair, and which moon is which class is up to the task. A new pair is known by
five points of each moon. The meta-learners have seen 300 other pairs; a support vector
machine and a nearest neighbour see the ten points alone. The semi-supervised learner
also gets forty points without labels.

All meta-learners have the same small network and as many outer steps; nothing was
tuned, so that the figures say how well a method starts, not which one is best. Two are
made of others: a pooled network whose features carry a support vector machine, and the
mean of two learners, weighed by the support set. Regressors have such a page too, and
what to use when is in :doc:`/user_guide/which_learner`.
"""

# %%
# The tasks
# ---------
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons
from sklearn.frozen import FrozenEstimator
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from torch import nn

from sk_meta import (
    ALPaCAClassifier,
    ANILClassifier,
    BOILClassifier,
    DKTClassifier,
    FusionClassifier,
    HypernetworkClassifier,
    IMAMLClassifier,
    InContextClassifier,
    JointClassifier,
    MAMLClassifier,
    MatchingClassifier,
    MetaSGDClassifier,
    ProtoMAMLClassifier,
    PrototypicalClassifier,
    R2D2Classifier,
    RelationClassifier,
    ReptileClassifier,
    RowNet,
    SemiSupervisedPrototypicalClassifier,
    Task,
    TaskNet,
    TorchEncoder,
    TransferClassifier,
)

N_SUPPORT, N_QUERY, N_UNLABELED = 10, 40, 40


def make_task(rng):
    """Two moons, moved: five labelled points of each, then query, then further ones."""
    X, y = make_moons(200, noise=0.1, random_state=rng)
    angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.3, size=2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    X = ((X - X.mean(axis=0)) * stretch) @ turn + rng.normal(scale=0.3, size=2)
    first = np.concatenate([np.flatnonzero(y == k)[:5] for k in (0, 1)])
    others = np.setdiff1d(np.arange(len(y)), first)[: N_QUERY + N_UNLABELED]
    rows = np.concatenate([first, others])
    return X[rows], y[rows]


def labeled_only(X, y):
    """What most methods see."""
    n = N_SUPPORT + N_QUERY
    return Task(X[:n], y[:n], support=np.arange(N_SUPPORT), labels="local")


def with_unlabeled(X, y):
    """The same, with the further points as unlabelled rows of the support set."""
    labeled = np.arange(len(y)) < N_SUPPORT + N_QUERY
    support = ~labeled | (np.arange(len(y)) < N_SUPPORT)
    return Task(X, y, support=support, labels="local", labeled=labeled)


rng = np.random.RandomState(0)
pairs = [[make_task(rng) for _ in range(n)] for n in (300, 100)]
old, new = ([labeled_only(*pair) for pair in part] for part in pairs)
old_more, new_more = ([with_unlabeled(*pair) for pair in part] for part in pairs)

# %%
# One loop over estimators
# ------------------------
net = TaskNet(module__hidden=(32, 32), module__activation=nn.Tanh, max_epochs=10)
steps = {"inner_lr": 0.3, "n_inner_steps": 3, "random_state": 0}
methods = [
    PrototypicalClassifier(net, random_state=0),
    SemiSupervisedPrototypicalClassifier(net, unlabeled=-1, random_state=0),
    MatchingClassifier(net, random_state=0),
    RelationClassifier(net, random_state=0),
    MAMLClassifier(net, **steps),
    ANILClassifier(net, **steps),
    BOILClassifier(net, **steps),
    MetaSGDClassifier(net, **steps),
    ProtoMAMLClassifier(net, **steps),
    ReptileClassifier(net, **steps),
    IMAMLClassifier(net, random_state=0),
    R2D2Classifier(net, random_state=0),
    DKTClassifier(net, random_state=0),
    ALPaCAClassifier(net, random_state=0),
    HypernetworkClassifier(net, random_state=0),
    InContextClassifier(net, random_state=0),
    JointClassifier(net, adapt_lr=0.3, n_adapt_steps=10, random_state=0),
]
shown, shown_more = new[0], new_more[0]
marked = np.where(shown_more.labeled, shown_more.y, -1)  # -1: unlabelled
results = {}
for method in methods:
    if hasattr(method, "refinement"):  # it uses unlabelled rows
        method.fit(old_more)
        X, y = shown_more.X[shown_more.support], marked[shown_more.support]
        results[type(method).__name__] = method.adapt(X, y), method.score(new_more)
        continue
    method.fit(old)
    few_shot = method.adapt(shown.X_support, shown.y_support)
    results[type(method).__name__] = few_shot, method.score(new)
# %%
# Made of others
# --------------
# The pooled network learns to tell all 600 moons apart.
joined = [
    (name, FrozenEstimator(method))
    for name, method in (("r2d2", methods[11]), ("relation", methods[3]))
]
for method in (
    TransferClassifier(TorchEncoder(RowNet(max_epochs=5)), SVC(C=10.0), random_state=0),
    FusionClassifier(joined, weights="support"),
):
    method.fit(old)
    few_shot = method.adapt(shown.X_support, shown.y_support)
    results[type(method).__name__] = few_shot, method.score(new)

# %%
# Without other tasks
# -------------------
for alone in (SVC(C=10.0), KNeighborsClassifier(1)):
    scores = [
        alone.fit(t.X_support, t.y_support).score(t.X_query, t.y_query) for t in new
    ]
    alone.fit(shown.X_support, shown.y_support)
    results[f"{type(alone).__name__}, support set only"] = alone, np.mean(scores)
for name, (_, score) in sorted(results.items(), key=lambda item: -item[1][1]):
    print(f"{name:38s} {100 * score:5.1f} % of the query rows of 100 new tasks")

# %%
# One new task, seen by each
# --------------------------
# Large points are the support set, small ones the query set; the number is the accuracy
# over all new tasks.
colors = np.array(["tab:blue", "tab:orange"])
low, high = shown.X.min(axis=0) - 0.3, shown.X.max(axis=0) + 0.3
across, up = np.meshgrid(
    *(np.linspace(a, b, 80) for a, b in zip(low, high, strict=True))
)
grid = np.stack([across.ravel(), up.ravel()], axis=1)
figure, axes = plt.subplots(3, 7, figsize=(16, 8), layout="constrained")
for ax in axes.flat:
    ax.set_axis_off()
for ax, (name, (model, score)) in zip(axes.flat, results.items(), strict=False):
    if hasattr(model, "predict_proba"):
        surface = model.predict_proba(grid)[:, 1]
    else:
        surface = model.predict(grid).astype(float)
    ax.imshow(
        surface.reshape(across.shape),
        origin="lower",
        extent=(low[0], high[0], low[1], high[1]),
        cmap="PuOr_r",
        vmin=-0.2,
        vmax=1.2,
        aspect="auto",
    )
    ax.scatter(*shown.X_query.T, c=colors[shown.y_query], s=6, alpha=0.7)
    ax.scatter(*shown.X_support.T, c=colors[shown.y_support], s=45, edgecolor="black")
    ax.set_title(f"{name.replace('Classifier', '')}\n{100 * score:.0f} %", fontsize=9)
figure.suptitle("A new task from ten labelled points, after 300 other tasks")
plt.show()
