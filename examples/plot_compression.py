"""
How small can a learner be?
===========================

A prototypical network that reads five new characters from one drawing of each is made
smaller in several ways: neurons leave it, little by little, while it trains on; or a
small network is taught by it. Each is written as an ONNX file, which adapts without
torch, and scored on characters of alphabets that none of them has seen.

Two rivals keep the comparison honest: the dense network with the same extra training as
the pruned ones, and the small network trained without a teacher.
"""

# %%
# The tasks: five characters, drawn on 14 x 14 pixels.
import matplotlib.pyplot as plt
import pandas as pd
from sklearn.frozen import FrozenEstimator

from sk_meta import (
    DistilledLearner,
    EpisodeSampler,
    PrototypicalClassifier,
    PrunedLearner,
    TaskNet,
    evaluate,
    size_report,
)
from sk_meta.datasets import load_omniglot
from sk_meta.inspection import CompressionDisplay
from sk_meta.metrics import mean_interval


def episodes(split, n_episodes, random_state):
    drawings = load_omniglot(split=split, image_size=14)
    return EpisodeSampler(
        drawings.data.reshape(len(drawings.data), -1),
        drawings.target,
        n_way=5,
        n_shot=1,
        n_query=5,
        n_episodes=n_episodes,
        random_state=random_state,
    )


old = episodes("background", 1500, random_state=0)
new = episodes("evaluation", 200, random_state=1)

# %%
# A dense learner, and what is made of it
# ---------------------------------------
# All compressed learners are estimators; another way to compress is another line.
big = TaskNet(module__hidden=(256, 256), max_epochs=4, batch_size=20)
small = TaskNet(module__hidden=(24, 24), max_epochs=4, batch_size=20)
dense = PrototypicalClassifier(big, random_state=0).fit(old)
frozen = FrozenEstimator(dense)


def slim(amount):
    return PrunedLearner(frozen, amount, how="slim", n_rounds=2, max_epochs=1)


models = {
    "dense": dense,
    "dense, trained on": slim(0.0).fit(old),
    "slim 50 %": slim(0.5).fit(old),
    "slim 75 %": slim(0.75).fit(old),
    "distilled": DistilledLearner(frozen, small, match="features", random_state=0).fit(
        old
    ),
    "small, alone": PrototypicalClassifier(small, random_state=0).fit(old),
}

# %%
# What each costs
# ---------------
# Kilobytes of the learner's file, and milliseconds in onnxruntime on one thread. To
# adapt is to take five drawings and the label of each, here with one query row.
support = new[0]
reports = {name: size_report(model, support) for name, model in models.items()}
print(reports["dense"], end="\n\n")
table = pd.DataFrame(reports.values(), index=list(reports))
accuracy = {name: evaluate(model, new) for name, model in models.items()}
table.insert(0, "accuracy", [found.mean for found in accuracy.values()])
print(table.drop(columns="n_support").T.round(3).to_string())

# %%
# What each is worth
# ------------------
# Points off the line are beaten: another learner is at least as good and as small.
# Bars are 95 % intervals over the new tasks. Half of the neurons are hardly missed. The
# small network is no better here for its teacher than alone.
# ``CompressionDisplay.from_estimators(models, new)`` does all of this at once.
display = CompressionDisplay.from_values(
    list(models),
    table["accuracy"],
    table["kilobytes"],
    table["adapt_ms"],
    intervals=[mean_interval(found.scores)[1] for found in accuracy.values()],
    score_name="accuracy on five new characters",
)
display.figure_.suptitle("Characters of new alphabets from one drawing of each")
plt.show()
