"""
Forecast a patient's symptoms from the first readings
=====================================================

Forty-two people with Parkinson's disease recorded their voice at home for six months,
some 140 times each, and each recording carries a score of their symptoms (total UPDRS).
Thirty patients are known. Twelve are new, and of each only the first 5, 10 or 20
readings: what will the score be in the months after?

A meta-learner learns from the thirty how scores move, and adapts to a new patient from
the few readings. It is compared with what a good statistician would do, in
``forecast_baselines.py``, each method with settings chosen on patients held out from
the thirty; the meta-learners are in ``forecast_learners.py``.

The published score is interpolated in time between three visits to a clinic. A reading
at a random time is therefore easy for anyone who interpolates between its neighbours;
a forecast is not. This is one split of the patients, and a coin's throw decides much
with twelve; ``tests/benchmarks/forecast.py`` runs five, with intervals.
"""

# %%
# The tasks
# ---------
# One patient is one task; the first readings in time are the support set.
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from forecast_baselines import BASELINES, choose
from forecast_learners import alpaca, dkt, load_patients, maml, prefix_tasks
from joblib import Parallel, delayed
from sklearn.model_selection import ShuffleSplit

from sk_meta import adapt, evaluate
from sk_meta.onnx import to_onnx

SIZES = (5, 10, 20)
patients = load_patients()
split = ShuffleSplit(1, test_size=12, random_state=0)
old_index, new_index = next(split.split(patients))
old, new = ([patients[i] for i in index] for index in (old_index, new_index))
print(f"{len(old)} patients to learn from, {len(new)} new ones")

# %%
# Meta-training
# -------------
# Each patient is used with prefixes of 3 to 25 readings. Which columns to use is a
# hyperparameter like any other, searched by GridSearchCV over patients.
training = prefix_tasks(old, range(3, 26))
learners = {"DKT": dkt, "ALPaCA": alpaca, "MAML": maml}
searches = {name: fit(training, n_jobs=2) for name, fit in learners.items()}


def root_mean_squared(errors):
    """Over all query rows of all patients."""
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


def errors_of(search, size):
    """Errors on the query rows of each new patient."""
    tasks = prefix_tasks(new, [size])
    predicted = search.predict(tasks)
    return [y - task.y_query for y, task in zip(predicted, tasks, strict=True)]


def baseline_errors(baseline, size):
    """The same for a baseline, with its settings chosen on held-out patients."""
    predict, _ = choose(baseline, old, size)
    return [
        predict(task.X[:size], task.y[:size], task.X[size:]) - task.y[size:]
        for task in new
    ]


# %%
# Comparison
# ----------
jobs = [(baseline, size) for baseline in BASELINES for size in SIZES]
found = Parallel(n_jobs=2)(delayed(baseline_errors)(*job) for job in jobs)
table = {}
for (baseline, size), errors in zip(jobs, found, strict=True):
    table.setdefault(baseline.__name__.replace("_", " "), {})[size] = errors
for name, search in searches.items():
    table[name] = {size: errors_of(search, size) for size in SIZES}

print("\nRoot mean squared error of the forecast, points of total UPDRS")
print(f"{'':24s}" + "".join(f"first {size:<4d}" for size in SIZES))
for name, errors in table.items():
    scores = (root_mean_squared(errors[size]) for size in SIZES)
    print(f"{name:24s}" + "".join(f"{score:7.2f}   " for score in scores))

best = searches["DKT"]  # first over the five splits of tests/benchmarks/forecast.py
result = evaluate(best, prefix_tasks(new, [10]), "neg_root_mean_squared_error")
worse = [f"{result.names[i]} ({result.gain[i]:+.1f})" for i in result.worse]
print(
    "\nWith 10 readings, the learned prior made these patients worse than ridge "
    f"regression on their own readings (points): {', '.join(worse) or 'none'}"
)

# %%
# New patients
# ------------
# Readings that were shown, those that came after, the forecast, and its 90 % band.
fig, axes = plt.subplots(2, 3, figsize=(10, 5.4), sharex=True)
inside, n_rows = 0, 0
for position, patient in enumerate(new):
    forecast = adapt(best, patient.X[:10], patient.y[:10])
    mean, std = forecast.predict(patient.X, return_std=True)
    low, high = mean - 1.645 * std, mean + 1.645 * std
    inside += ((low <= patient.y) & (patient.y <= high))[10:].sum()
    n_rows += len(patient.y) - 10
    if position >= axes.size:
        continue
    ax, day = axes.flat[position], patient.X["test_time"]
    ax.fill_between(day, low, high, color="tab:blue", alpha=0.2, label="90 % band")
    ax.plot(day, mean, color="tab:blue", label="forecast")
    ax.plot(day[10:], patient.y[10:], ".", color="0.6", ms=4, label="what came")
    ax.plot(day[:10], patient.y[:10], "o", color="k", ms=4, label="first 10 readings")
    ax.set_title(f"patient {patient.name}", fontsize=10)
for ax in axes[-1]:
    ax.set_xlabel("day")
for ax in axes[:, 0]:
    ax.set_ylabel("total UPDRS")
handles, labels = axes[0, 0].get_legend_handles_labels()
fig.legend(handles, labels, loc="upper center", ncols=4, frameon=False)
fig.tight_layout(rect=(0, 0, 1, 0.95))
picture = Path("forecast_patients.png")
fig.savefig(picture, dpi=120)
print(f"\n90 % bands hold {100 * inside / n_rows:.0f} % of what came; see {picture}")

# %%
# A file for the device
# ---------------------
# The forecast for one patient as ONNX, checked against the model when it is written.
patient = new[0]
forecast = adapt(best, patient.X[:10], patient.y[:10])
to_onnx(forecast, "forecast.onnx", X=patient.X, return_std=True)

import onnxruntime  # noqa: E402

session = onnxruntime.InferenceSession("forecast.onnx")
inputs = {
    one.name: patient.X[[column]].to_numpy()
    for one, column in zip(session.get_inputs(), patient.X.columns, strict=True)
}
in_file = session.run(None, inputs)
deviation = np.abs(in_file[0].ravel() - forecast.predict(patient.X)).max()
size = Path("forecast.onnx").stat().st_size / 1024
print(f"forecast.onnx: {size:.0f} KB, at most {deviation:.1g} points from the model")
plt.show()
