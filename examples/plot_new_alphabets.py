"""
Read a new alphabet from one example of each character
======================================================

Trained on 30 alphabets, a prototypical network meets 20 others that it has never seen.
It is shown twenty characters of one alphabet, one drawing of each, and reads the next
drawings. Nearest neighbour, logistic regression and a support vector machine get the
same twenty drawings.

Choosing all twenty characters from one alphabet is the hard way to ask: characters of
one alphabet resemble each other, and results quoted for characters from everywhere are
far better. After a minute of training this is not the best that the method does;
``tests/benchmarks/omniglot.py`` trains longer.
"""

# %%
# The tasks: episodes, drawn from labelled drawings without copying them.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from sk_meta import EpisodeSampler, PrototypicalClassifier, TaskNet
from sk_meta.datasets import load_omniglot
from sk_meta.metrics import mean_interval

old = load_omniglot(split="background")
new = load_omniglot(split="evaluation")
training = EpisodeSampler(
    old.data, old.target, n_way=20, n_shot=1, n_query=3, n_episodes=400
)
testing = EpisodeSampler(
    new.data,
    new.target,
    n_way=20,
    n_shot=1,
    n_query=5,
    n_episodes=40,
    groups=new.groups,
)

# %%
# Meta-training: a convolutional network learns an embedding in which one drawing of a
# character stands for the others.
net = TaskNet(module__n_filters=32, max_epochs=1, batch_size=1, lr=2e-3)
meta = PrototypicalClassifier(net, random_state=0).fit(training)

# %%
# Adapting to an episode gives an ordinary classifier, and so it is compared with
# ordinary classifiers. Their settings make no difference that matters with one row a
# class; pixels are what they see.
rivals = {
    "nearest neighbour": KNeighborsClassifier(1),
    "logistic regression": LogisticRegression(C=10.0, max_iter=1000),
    "support vector machine": SVC(C=10.0),
}
scores = {name: [] for name in ["prototypical network", *rivals]}
for episode in testing:
    few_shot = meta.adapt(episode.X_support, episode.y_support)
    accuracy = few_shot.score(episode.X_query, episode.y_query)
    scores["prototypical network"].append(accuracy)
    X_support, X_query = (
        X.reshape(len(X), -1) for X in (episode.X_support, episode.X_query)
    )
    for name, rival in rivals.items():
        rival.fit(X_support, episode.y_support)
        scores[name].append(rival.score(X_query, episode.y_query))

print(f"20 characters of one new alphabet, one drawing each, {len(testing)} episodes")
for name, values in scores.items():
    mean, half = mean_interval(values)
    print(f"  {name:24s} {100 * mean:5.1f} % +- {100 * half:.1f}")

# %%
# One of these alphabets: the drawing that was shown, and what was taken for it. Frames
# are green where the network is right, red where it is wrong.
episode = testing[0]
few_shot = meta.adapt(episode.X_support, episode.y_support)
predicted = few_shot.predict(episode.X_query)
alphabet = episode.y_support[0].split("/")[0].replace("_", " ")
n_shown, n_guesses = 10, 4
fig, axes = plt.subplots(n_guesses + 1, n_shown, figsize=(9, 5.2))
for column, (image, label) in enumerate(
    zip(episode.X_support[:n_shown], episode.y_support[:n_shown], strict=True)
):
    axes[0, column].imshow(1 - image[0], cmap="gray")
    taken = np.flatnonzero(predicted == label)[:n_guesses]
    for row in range(n_guesses):
        ax = axes[row + 1, column]
        if row >= len(taken):
            ax.axis("off")
            continue
        ax.imshow(1 - episode.X_query[taken[row]][0], cmap="gray")
        right = episode.y_query[taken[row]] == label
        for side in ax.spines.values():
            side.set_color("tab:green" if right else "tab:red")
            side.set_linewidth(2.5)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("shown", rotation=0, ha="right", va="center")
axes[1, 0].set_ylabel("read as it", rotation=0, ha="right", va="center")
share = few_shot.score(episode.X_query, episode.y_query)
fig.suptitle(f"{alphabet}: 10 of 20 characters, {100 * share:.0f} % read right")
fig.tight_layout()
fig.savefig("new_alphabets.png", dpi=120)
plt.show()
