"""The meta-learners of the forecast example: what a user of sk_meta writes."""

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import GradientNormClipping, LRScheduler
from torch import nn

from sk_meta import (
    ALPaCARegressor,
    DKTRegressor,
    MAMLRegressor,
    Task,
    TaskNet,
    TaskTransformer,
    task_scorer,
)
from sk_meta.datasets import load_parkinsons

FEATURES = {
    "time": ["test_time"],
    "time, age, sex": ["test_time", "age", "sex"],
    "all": None,
}


def load_patients():
    """One task per patient, readings sorted by time, which is the first column."""
    patients = load_parkinsons(as_tasks=True, as_frame=True)
    columns = patients[0].X.columns
    columns = ["test_time", *(name for name in columns if name != "test_time")]
    return [p.replace_X(p.X[columns].astype("float32")) for p in patients]


def prefix_tasks(patients, sizes):
    """Forecasts: of each patient, the first readings in time are the support set."""
    return [
        Task(patient.X, patient.y, support=np.arange(size), name=patient.name)
        for patient in patients
        for size in sizes
    ]


def scaled(columns):
    """Standardised columns of a DataFrame, None for all."""
    if columns is None:
        return StandardScaler()
    return ColumnTransformer([("scaled", StandardScaler(), columns)])


def network(n_steps, n_tasks, batch_size=30):
    """A small smooth network, and `n_steps` of Adam with a falling learning rate."""
    decay = LRScheduler("CosineAnnealingLR", T_max=n_steps, step_every="batch")
    return TaskNet(
        module__hidden=(32, 32),
        module__activation=nn.Tanh,
        lr=1e-2,
        batch_size=batch_size,
        max_epochs=max(1, round(n_steps * batch_size / n_tasks)),
        callbacks=[("decay", decay), ("clip", GradientNormClipping(10.0))],
    )


def forecaster(meta_learner):
    """A Pipeline whose columns are a hyperparameter."""
    steps = [
        ("scale", TaskTransformer(scaled(FEATURES["time"]))),
        ("meta", meta_learner),
    ]
    return Pipeline(steps)


def choose(pipeline, grid, tasks, n_jobs=None):
    """Search over settings, on patients held out from the training ones.

    All the prefixes of a patient are on one side of a split: they are one patient.
    """
    search = GridSearchCV(
        pipeline,
        grid,
        scoring=task_scorer("neg_root_mean_squared_error"),
        cv=GroupKFold(3, shuffle=True, random_state=0),
        n_jobs=n_jobs,
    )
    return search.fit(tasks, groups=[task.name for task in tasks])


def alpaca(tasks, n_steps=400, n_jobs=None):
    """ALPaCA: the claim of the example rests on it."""
    net = network(n_steps, len(tasks))
    meta_learner = ALPaCARegressor(net, random_state=0)
    columns = {"scale__transformer": [scaled(names) for names in FEATURES.values()]}
    return choose(forecaster(meta_learner), columns, tasks, n_jobs)


def dkt(tasks, n_steps=400, n_jobs=None):
    """A Gaussian process on time, or on learned features of it; linear in time too."""
    net = network(n_steps, len(tasks))
    meta_learner = DKTRegressor(net, linear_features=True, random_state=0)
    grid = {
        "meta__kernel": ["rbf", "matern"],
        "meta__net__module__hidden": [(), (32, 32)],
    }
    return choose(forecaster(meta_learner), grid, tasks, n_jobs)


def maml(tasks, n_steps=400, n_jobs=None):
    """MAML with the same network, on time alone; `n_jobs` is of no use here."""
    net = network(n_steps, len(tasks)).set_params(lr=3e-3)
    meta_learner = MAMLRegressor(net, inner_lr=0.1, n_inner_steps=5, random_state=0)
    return forecaster(meta_learner).fit(tasks)
