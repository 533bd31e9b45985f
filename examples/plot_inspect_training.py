"""
What training does: epochs, tasks, layers
=========================================

Has meta-training gone on for long enough, would more tasks help, and which layers of
the network does adaptation change? Three displays answer:
:class:`TrainingHistoryDisplay <sk_meta.inspection.TrainingHistoryDisplay>`,
:class:`TaskLearningCurveDisplay
<sk_meta.inspection.TaskLearningCurveDisplay>` and :class:`LayerChangeDisplay
<sk_meta.inspection.LayerChangeDisplay>`.
"""

# %%
# The tasks
# ---------
# Patients with Parkinson's disease: the first ten voice recordings of a patient are the
# support set, the later ones are forecast.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.dataset import ValidSplit
from torch import nn

from sk_meta import (
    ALPaCARegressor,
    ANILClassifier,
    BOILClassifier,
    EpisodeSampler,
    MAMLClassifier,
    Task,
    TaskNet,
    TaskTransformer,
)
from sk_meta.datasets import load_omniglot, load_parkinsons
from sk_meta.inspection import (
    LayerChangeDisplay,
    TaskLearningCurveDisplay,
    TrainingHistoryDisplay,
)

patients = [
    Task(p.X[["test_time"]], p.y, support=np.arange(10), name=p.name)
    for p in load_parkinsons(as_tasks=True, as_frame=True)
]


def forecaster(n_epochs, **options):
    """Standardised time, then ALPaCA with a small smooth network."""
    net = TaskNet(
        module__hidden=(32, 32),
        module__activation=nn.Tanh,
        max_epochs=n_epochs,
        lr=1e-2,
        batch_size=10,
        **options,
    )
    scaler = StandardScaler().set_output(transform="pandas")
    return make_pipeline(TaskTransformer(scaler), ALPaCARegressor(net, random_state=0))


# %%
# Epochs and tasks
# ----------------
# The loss is that of the query rows after adapting. Validation patients, a quarter of
# all, show where training should end; a learning curve over the number of patients
# shows whether it pays to find more of them.
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
model = forecaster(100, train_split=ValidSplit(4)).fit(patients)
TrainingHistoryDisplay.from_estimator(model, ax=left, smoothing=0.8)
left.set_title("Loss of ALPaCA in meta-training")
TaskLearningCurveDisplay.from_estimator(
    forecaster(20),
    patients,
    scoring="neg_root_mean_squared_error",
    ax=right,
)
right.set(
    title="Forecasts against the number of known patients",
    ylabel="Negative root mean squared error\n(points of total UPDRS)",
)
plt.show()

# %%
# The validation loss, minus a log density, is that of ten patients: it is as rough as
# that, and the best epoch is a hint. On the right the band is one standard deviation
# over five folds. The first dozen patients help most; the curves are still closing.
#
# Layers
# ------
# Five new characters from one drawing of each. For each layer, activations on the
# query rows are compared before and after the inner loop. ANIL adapts its head alone;
# BOIL all but the last layer, whose output changes with what comes in; MAML may adapt
# all layers, and changes hardly any but the last one.


def episodes(split, n_episodes, random_state):
    """Five characters on 14 x 14 pixels, a drawing of each to learn from."""
    drawings = load_omniglot(split=split, image_size=14)
    return EpisodeSampler(
        drawings.data.reshape(len(drawings.data), -1),
        drawings.target,
        n_way=5,
        n_shot=1,
        n_query=10,
        n_episodes=n_episodes,
        random_state=random_state,
    )


old = episodes("background", 1000, random_state=0)
new = episodes("evaluation", 40, random_state=1)
net = TaskNet(module__hidden=(64, 64, 64), max_epochs=2, batch_size=10)
steps = {"inner_lr": 0.2, "n_inner_steps": 3, "random_state": 0}
learners = {
    "ANIL": ANILClassifier(net, **steps),
    "MAML": MAMLClassifier(net, **steps),
    "BOIL": BOILClassifier(net, **steps),
}
figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
for ax, (name, meta) in zip(axes, learners.items(), strict=True):
    meta.fit(old)
    LayerChangeDisplay.from_estimator(meta, new, ax=ax)
    ax.set_title(f"{name}: accuracy {meta.score(new):.2f}")
    ax.set_xlim(0, 1)
figure.suptitle("Which layers change when a network adapts to five new characters")
plt.show()
