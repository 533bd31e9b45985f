"""How low the forecast's error can go: ALPaCA trained on the new patients too.

    python tests/benchmarks/forecast_floor.py

This is no forecast, and no method that could be used. It bounds what the same model can
reach in tests/benchmarks/forecast.py: what is left is not in the first readings.
Writes docs/results/forecast_floor.md.
"""

import numpy as np
import torch
from forecast import SIZES
from forecast_learners import forecaster, load_patients, network, prefix_tasks
from pages import write_page
from sklearn.model_selection import ShuffleSplit

from sk_meta import ALPaCARegressor


def main():
    """Train once on all patients, score on those of the five splits."""
    torch.set_num_threads(1)
    patients = load_patients()
    tasks = prefix_tasks(patients, range(3, 26))
    learner = ALPaCARegressor(network(400, len(tasks)), random_state=0)
    model = forecaster(learner).fit(tasks)
    scores = []
    for size in SIZES:
        errors = []
        for _, new in ShuffleSplit(5, test_size=12, random_state=0).split(patients):
            tasks = prefix_tasks([patients[i] for i in new], [size])
            found = zip(model.predict(tasks), tasks, strict=True)
            squared = np.concatenate([(y - task.y_query) ** 2 for y, task in found])
            errors.append(np.sqrt(squared.mean()))
        scores.append(f"{np.mean(errors):.2f}")
    lines = [
        "# Parkinson's: how low the error can go",
        "",
        "`python tests/benchmarks/forecast_floor.py`",
        "",
        "ALPaCA on time alone, trained on all 42 patients, the ones it is scored on "
        "included. No forecast: a bound for the table of the first readings, same "
        "splits, same measure.",
        "",
        "| | " + " | ".join(f"K = {size}" for size in SIZES) + " |",
        "|---" * (len(SIZES) + 1) + "|",
        "| trained on the new patients too | " + " | ".join(scores) + " |",
    ]
    write_page("forecast_floor", lines)


if __name__ == "__main__":
    main()
