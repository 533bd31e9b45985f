"""
Features from old classes, heads for new ones
=============================================

Plain transfer, the baseline of every meta-learner: an encoder is fitted on the digits
0 to 4, and for the digits 5 to 9 an ordinary classifier is trained on a few encoded
rows. Any transformer of scikit-learn may be the encoder and any classifier the head,
so that ``TransferClassifier(PCA(16), SVC())`` is a whole method in one line.

Here four encoders meet five heads. Nothing was tuned; tuned ones, and Omniglot, are in
:doc:`/results/transfer`.
"""

# %%
# Old classes and new ones
# ------------------------
# The encoder sees the rows of the old classes, each once. New tasks are episodes: one
# or five rows for each of five new digits, and fifteen others to be told apart.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.svm import SVC

from sk_meta import (
    CosineClassifier,
    EpisodeSampler,
    FineTuning,
    RowNet,
    TorchEncoder,
    TransferClassifier,
    evaluate,
)
from sk_meta.metrics import mean_interval

X, y = load_digits(return_X_y=True)
X = X / 16
old, new = y < 5, y >= 5
source = EpisodeSampler(X[old], y[old], n_way=5, n_shot=5, n_episodes=100)
episodes = {
    n_shot: EpisodeSampler(X[new], y[new], 5, n_shot, 15, n_episodes=100)
    for n_shot in (1, 5)
}

# %%
# One line
# --------
meta = TransferClassifier(PCA(16), SVC()).fit(source)
print(f"PCA, then SVC, from five rows a class: {meta.score(episodes[5]):.3f}")

# %%
# Encoders and heads
# ------------------
# Each encoder is fitted once, and frozen under its heads. `TorchEncoder` is a network
# that learns to tell the old classes apart; with a cosine layer as its last one it is
# that of Baseline++. Fine-tuning, for networks alone, trains all of it further on the
# rows of the new classes, and stops when some of these rows say so.
net = RowNet(module__hidden=(256,), max_epochs=3)
encoders = {
    "pixels": "passthrough",
    "PCA": PCA(16),
    "network": TorchEncoder(net),
    "network,\ncosine layer": TorchEncoder(net, head="cosine"),
}
heads = {
    "SVC": SVC(C=10.0),
    "ridge": RidgeClassifier(),
    "logistic": LogisticRegression(C=10.0, max_iter=1000),
    "cosine": CosineClassifier(),
    "fine-tuning": FineTuning(max_steps=10),
}
found = {}
for encoder_name, encoder in encoders.items():
    fitted = TransferClassifier(encoder, random_state=0).fit(source).encoder_
    for head_name, head in heads.items():
        if head_name == "fine-tuning" and "network" not in encoder_name:
            continue
        meta = TransferClassifier(FrozenEstimator(fitted), head, random_state=0)
        meta.fit(source)
        for n_shot, tasks in episodes.items():
            scores = 100 * evaluate(meta, tasks).scores
            found[n_shot, encoder_name, head_name] = mean_interval(scores)

# %%
# With five old classes there is little to learn about digits as such: a network keeps
# what tells these five apart, and that is not what tells 5 to 9 apart. The raw pixels
# are as good a start. With more old classes it is the other way round: hundreds of
# characters in Omniglot, or just these five digits turned and mirrored, each position a
# class of its own, see :doc:`/results/transfer`.
colors = dict(
    zip(heads, ["tab:blue", "tab:orange", "tab:green", "tab:red", "black"], strict=True)
)
figure, axes = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
for ax, n_shot in zip(axes, episodes, strict=True):
    for row, encoder_name in enumerate(encoders):
        for place, head_name in enumerate(heads):
            if (n_shot, encoder_name, head_name) not in found:
                continue
            mean, half = found[n_shot, encoder_name, head_name]
            ax.errorbar(
                mean,
                row + 0.14 * (place - 2),
                xerr=half,
                fmt="o",
                color=colors[head_name],
                label=head_name if row == len(encoders) - 1 else None,
            )
    for line in np.arange(len(encoders) - 1) + 0.5:
        ax.axhline(line, color="lightgray", linewidth=0.8)
    rows = "one row" if n_shot == 1 else "five rows"
    ax.set(title=f"from {rows} a class", xlabel="accuracy on new digits, %")
axes[0].set_yticks(range(len(encoders)), encoders)
axes[0].invert_yaxis()
axes[0].set_ylabel("encoder, from the digits 0 to 4")
figure.legend(
    *axes[1].get_legend_handles_labels(), title="head", loc="outside right upper"
)
figure.suptitle("The digits 5 to 9 from a few rows: mean of 100 draws, 95 % interval")
plt.show()
