"""
Every regressor on one problem
==============================

Sinusoids of random amplitude and phase, a little noise: each task is one, and a new one
is known by eight points. The meta-learners have seen 2,000 others, with the same
network and as many outer steps; nothing was tuned. Bands are nominal 90 % intervals, of
the methods that give them. A Gaussian process that fits its kernel to the eight points
is what one would use without other tasks.
"""

# %%
# The tasks
# ---------
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from torch import nn

from sk_meta import (
    ALPaCARegressor,
    ANILRegressor,
    AttentiveNeuralProcessRegressor,
    BOILRegressor,
    ConditionalNeuralProcessRegressor,
    DKTRegressor,
    HypernetworkRegressor,
    IMAMLRegressor,
    InContextRegressor,
    JointRegressor,
    MAMLRegressor,
    MetaSGDRegressor,
    R2D2Regressor,
    ReptileRegressor,
    TaskNet,
)
from sk_meta.tasks import make_sinusoids

old = make_sinusoids(2000, n_support=8, noise=0.1, random_state=0)
new = make_sinusoids(100, n_support=8, noise=0.1, random_state=1)

# %%
# One loop over estimators
# ------------------------
net = TaskNet(
    module__hidden=(40, 40), module__activation=nn.Tanh, max_epochs=5, batch_size=20
)
steps = {"inner_lr": 0.03, "n_inner_steps": 3, "random_state": 0}
methods = [
    MAMLRegressor(net, **steps),
    ANILRegressor(net, **steps),
    BOILRegressor(net, **steps),
    MetaSGDRegressor(net, **steps),
    ReptileRegressor(net, **steps),
    IMAMLRegressor(net, random_state=0),
    R2D2Regressor(net, random_state=0),
    ALPaCARegressor(net, random_state=0),
    DKTRegressor(net, random_state=0),
    ConditionalNeuralProcessRegressor(net, random_state=0),
    AttentiveNeuralProcessRegressor(net, random_state=0),
    InContextRegressor(net, random_state=0),
    HypernetworkRegressor(net, random_state=0),
    JointRegressor(net, adapt_lr=0.03, n_adapt_steps=10, random_state=0),
]


def mean_squared_error(predictions):
    """Over the query rows of the new tasks."""
    errors = [p - task.y_query for p, task in zip(predictions, new, strict=True)]
    return float(np.mean(np.concatenate(errors) ** 2))


shown = max(new, key=lambda task: np.ptp(task.y))
curve = np.linspace(-5, 5, 200)[:, None]
results = {}
for method in methods:
    method.fit(old)
    few_shot = method.adapt(shown.X_support, shown.y_support)
    try:
        band = few_shot.predict(curve, return_std=True)
    except ValueError:  # a method without one
        band = few_shot.predict(curve), None
    results[type(method).__name__] = band, mean_squared_error(method.predict(new))
warnings.simplefilter("ignore", ConvergenceWarning)  # eight points leave much open
kernel = ConstantKernel(5.0) * RBF(1.0) + WhiteKernel(0.01, (1e-3, 1.0))
alone = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
found = [alone.fit(t.X_support, t.y_support).predict(t.X_query) for t in new]
band = alone.fit(shown.X_support, shown.y_support).predict(curve, return_std=True)
results["Gaussian process, support set only"] = band, mean_squared_error(found)
for name, (_, error) in sorted(results.items(), key=lambda item: item[1][1]):
    print(f"{name:36s} mean squared error {error:6.3f} on 100 new tasks")

# %%
# One new task, seen by each
# --------------------------
# Large points are the support set, small ones the query set; the number is the mean
# squared error over all new tasks.
figure, axes = plt.subplots(
    3, 5, figsize=(14, 8), sharex=True, sharey=True, layout="constrained"
)
for ax, (name, ((mean, std), error)) in zip(axes.flat, results.items(), strict=True):
    if std is not None:
        low, high = mean - 1.645 * std, mean + 1.645 * std
        ax.fill_between(curve[:, 0], low, high, alpha=0.25)
    ax.plot(curve[:, 0], mean)
    ax.plot(shown.X_query[:, 0], shown.y_query, ".", color="gray")
    ax.plot(shown.X_support[:, 0], shown.y_support, "o", color="black")
    ax.set_title(f"{name.replace('Regressor', '')}\n{error:.2f}", fontsize=9)
axes[0, 0].set_ylim(-8, 8)
figure.suptitle("A new sinusoid from eight points, after 2,000 others")
plt.show()
