"""
What adaptation does: steps, shots, before and after
====================================================

How many gradient steps and how many labelled rows does a new task need, and what does a
learner say of it before it has seen any? Two displays answer: :class:`AdaptationDisplay
<sk_meta.inspection.AdaptationDisplay>` and :class:`BeforeAfterDisplay
<sk_meta.inspection.BeforeAfterDisplay>`.
"""

# %%
# Characters of new alphabets
# ---------------------------
# A task is five characters that the learners have not seen, 14 x 14 pixels. Both learn
# from one drawing of each; how they adapt to more drawings, and with more steps than
# they were trained for, is what the picture shows.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sk_meta import (
    ALPaCARegressor,
    ANILClassifier,
    EpisodeSampler,
    MAMLClassifier,
    MAMLRegressor,
    Task,
    TaskNet,
    TaskTransformer,
)
from sk_meta.datasets import load_omniglot, load_parkinsons
from sk_meta.inspection import AdaptationDisplay, BeforeAfterDisplay
from sk_meta.tasks import make_sinusoids


def episodes(split, n_shot, n_episodes, random_state):
    """Five characters, `n_shot` drawings of each to learn from and five to read."""
    drawings = load_omniglot(split=split, image_size=14)
    return EpisodeSampler(
        drawings.data.reshape(len(drawings.data), -1),
        drawings.target,
        n_way=5,
        n_shot=n_shot,
        n_query=5,
        n_episodes=n_episodes,
        random_state=random_state,
    )


old = episodes("background", 1, 1500, random_state=0)
new = episodes("evaluation", 10, 60, random_state=1)
net = TaskNet(module__hidden=(64, 64), max_epochs=3, batch_size=10)
learners = {
    "MAML": MAMLClassifier(net, inner_lr=0.3, n_inner_steps=3, random_state=0),
    "ANIL": ANILClassifier(net, inner_lr=0.3, n_inner_steps=3, random_state=0),
}
figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
for ax, (name, meta) in zip(axes, learners.items(), strict=True):
    AdaptationDisplay.from_estimator(meta.fit(old), new, ax=ax)
    ax.set_title(f"{name} on five new characters")
    ax.axhline(0.2, color="black", lw=0.8)
    ax.text(10, 0.205, "chance", ha="right", va="bottom", fontsize="small")
plt.show()

# %%
# The query rows are the same at every point of a panel. MAML was trained for one
# drawing and three steps, and gets better with more of both; ANIL, which only adapts
# its last layer, is nearly done after two steps.
#
# One feature: predictions and bands
# ----------------------------------
# On the left MAML and sinusoids: at 0 steps its network says nothing in particular, and
# ten points turn it into the right curve. On the right a patient with Parkinson's
# disease, whose symptoms are forecast from the first ten readings by ALPaCA, a Bayesian
# method: before any reading it knows how scores spread over patients, after ten it
# knows where this one stands, and that it knows less of later months.
*old, new = make_sinusoids(2001, n_support=10, n_query=30, random_state=4)
smooth = {"module__activation": nn.Tanh, "batch_size": 20}
net = TaskNet(module__hidden=(40, 40), max_epochs=8, **smooth)
maml = MAMLRegressor(net, inner_lr=0.05, n_inner_steps=5, random_state=0).fit(old)

patients = [
    Task(p.X[["test_time"]], p.y, support=np.arange(10), name=p.name)
    for p in load_parkinsons(as_tasks=True, as_frame=True)
]
net = TaskNet(module__hidden=(32, 32), max_epochs=60, **smooth)
alpaca = make_pipeline(
    TaskTransformer(StandardScaler().set_output(transform="pandas")),
    ALPaCARegressor(net, random_state=0),
).fit(patients[:-1])

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
BeforeAfterDisplay.from_estimator(maml, new, ax=left)
left.set_title("MAML on a new sinusoid")
BeforeAfterDisplay.from_estimator(alpaca, patients[-1], ax=right)
right.set(
    title="ALPaCA on a new patient",
    xlabel="Days since the first visit",
    ylabel="Symptoms (total UPDRS)",
)
plt.show()
