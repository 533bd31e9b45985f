"""Intervals on the Parkinson's forecast, before and after calibration.

    python tests/benchmarks/forecast_calibrated.py [--protocol first|random] [--jobs 2]

The protocols of forecast.py, for the four regressors whose intervals are too narrow
there: thirty patients are few for them. CalibratedLearner finds one factor for their
standard deviations on folds of the thirty patients; means stay as they are. Writes
docs/results/forecast_calibrated_<protocol>.md. Half an hour of one processor core.
"""

import argparse

import numpy as np
from forecast import OTHERS, SIZES, forecaster, network, prefix_tasks, shuffled
from forecast_learners import load_patients
from joblib import Parallel, delayed
from pages import table, write_page
from sklearn.model_selection import GroupKFold, ShuffleSplit

from sk_meta import CalibratedLearner

NAMES = (
    "conditional neural process",
    "attentive neural process",
    "in-context",
    "hypernetwork",
)
PROTOCOLS = {"first": "first readings", "random": "readings at random times"}
QUANTILE = 1.6449  # of the normal distribution, for 90 %


def calibrated(name, tasks, n_steps=400):
    """A regressor as in forecast.py, calibrated on folds of whole patients."""
    kind, settings = OTHERS[name]
    net = network(n_steps, len(tasks)).set_params(lr=3e-3)
    folds = GroupKFold(5).split(tasks, groups=[task.name for task in tasks])
    meta = kind(net, random_state=0, **settings)
    return forecaster(CalibratedLearner(meta, cv=list(folds))).fit(tasks)


def coverages(name, protocol, split):
    """{size: share of query rows in the interval, without and with the factor}."""
    patients = load_patients()
    if protocol == "random":
        patients = [shuffled(patient, seed) for seed, patient in enumerate(patients)]
    splits = ShuffleSplit(5, test_size=12, random_state=0).split(patients)
    old, new = ([patients[i] for i in part] for part in list(splits)[split])
    model = calibrated(name, prefix_tasks(old, range(3, 26)))
    factor, found = model[-1].factor_, {}
    for size in SIZES:
        tasks = prefix_tasks(new, [size])
        mean, std = model.predict(tasks, return_std=True)
        y = np.concatenate([task.y_query for task in tasks])
        ratio = np.abs(y - np.concatenate(mean)) / np.concatenate(std)
        found[size] = [np.mean(ratio <= QUANTILE * by) for by in (1 / factor, 1.0)]
    return name, factor, found


def page(results, protocol):
    """The lines of the page."""
    lines = [
        f"# Parkinson's: intervals before and after calibration, {PROTOCOLS[protocol]}",
        "",
        f"`python tests/benchmarks/forecast_calibrated.py --protocol {protocol}`",
        "",
        "Share of the query rows in the nominal 90 % interval, per cent, before -> "
        "after calibration on folds of the thirty known patients; mean of five splits, "
        "12 new patients each. The factor is what standard deviations are multiplied "
        "by, median of the splits. Nothing was chosen on the new patients.",
        "",
    ]
    rows = []
    for name in NAMES:
        mine = [r for r in results if r[0] == name]
        cells = []
        for size in SIZES:
            before, after = np.mean([found[size] for *_, found in mine], axis=0)
            cells.append(f"{100 * before:.0f} -> {100 * after:.0f}")
        rows.append([name, *cells, f"{np.median([r[1] for r in mine]):.2f}"])
    return lines + table(["", *(f"K = {size}" for size in SIZES), "factor"], rows)


def main():
    """Run, print and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="first")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    jobs = [(name, options.protocol, split) for name in NAMES for split in range(5)]
    results = Parallel(n_jobs=options.jobs, verbose=5)(
        delayed(coverages)(*job) for job in jobs
    )
    name = f"forecast_calibrated_{options.protocol}"
    write_page(name, page(results, options.protocol))


if __name__ == "__main__":
    main()
