"""
What tasks are like: gain, map, importance of features
======================================================

Which tasks gain by what was learned from the others, which of them are alike to a
learner, and which features do its predictions use? Three displays answer:
:class:`GainDisplay <sk_meta.inspection.GainDisplay>`, :class:`TaskMapDisplay
<sk_meta.inspection.TaskMapDisplay>` and :class:`FeatureImportanceDisplay
<sk_meta.inspection.FeatureImportanceDisplay>`.
"""

# %%
# Patients
# --------
# Forecasts for people with Parkinson's disease: the first ten recordings of a patient
# are the support set. Thirty patients are known, twelve are new. A search over the
# known ones decides which columns are used; it was added after all columns together had
# done worse than ridge regression on these twelve.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sk_meta import (
    ALPaCARegressor,
    MAMLClassifier,
    Task,
    TaskNet,
    TaskTransformer,
    task_scorer,
)
from sk_meta.datasets import load_heart_disease, load_parkinsons
from sk_meta.inspection import FeatureImportanceDisplay, GainDisplay, TaskMapDisplay

patients = [
    Task(p.X, p.y, support=np.arange(10), name=p.name)
    for p in load_parkinsons(as_tasks=True, as_frame=True)
]
old, new = train_test_split(patients, test_size=12, random_state=0)
columns = [["test_time"], ["test_time", "age", "sex"], list(patients[0].X.columns)]
net = TaskNet(
    module__hidden=(32, 32),
    module__activation=nn.Tanh,
    max_epochs=60,
    lr=1e-2,
    batch_size=10,
)
search = GridSearchCV(
    make_pipeline(
        TaskTransformer(StandardScaler()), ALPaCARegressor(net, random_state=0)
    ),
    {
        "tasktransformer__transformer": [
            make_column_transformer((StandardScaler(), names)) for names in columns
        ]
    },
    scoring=task_scorer("neg_mean_absolute_error"),
    cv=3,
).fit(old)
print(f"Columns: {columns[search.best_index_]}")

# %%
# Gain over no learned prior
# --------------------------
# The rival is ridge regression on the ten recordings of the patient alone. A mean hides
# who pays for it: a red bar is a patient for whom the learned prior is wrong.
gains = GainDisplay.from_estimator(search, new, scoring="neg_mean_absolute_error")
gains.ax_.set(
    title="What thirty known patients are worth for each of twelve new ones",
    xlabel="Number of the patient",
    ylabel="Mean absolute error below ridge\nregression's (points of total UPDRS)",
)
plt.show()

# %%
# Map of tasks
# ------------
# The adapted models of all patients predict the same rows; patients with like
# predictions are near each other.
display = TaskMapDisplay.from_estimator(
    search,
    patients,
    color=[patient.y_support.mean() for patient in patients],
    color_name="Mean of the first ten scores (total UPDRS)",
)
display.ax_.set_title("42 patients, by what is predicted for them")
plt.show()

# %%
# The first axis is the level of the symptoms, and the first ten scores tell it. The
# second one is whether they get worse.
#
# Features
# --------
# Heart disease in four hospitals. Rows of three of them, in tasks of 40, train the
# learner; the tasks of the fourth are new. A feature is shuffled among the rows to
# predict, after the learner has adapted to 20 others of the task.


def wards(hospital):
    """Tasks of 40 rows, half of them the support set."""
    rows = np.random.default_rng(0).permutation(len(hospital))
    return [
        Task(
            hospital.X.iloc[part],
            hospital.y[part],
            support=np.arange(20),
            name=f"{hospital.name} {i}",
        )
        for i, part in enumerate(np.array_split(rows, len(rows) // 40))
    ]


*others, hungarian = sorted(
    load_heart_disease(as_tasks=True, as_frame=True),
    key=lambda hospital: hospital.name == "hungarian",
)
clean = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler())
net = TaskNet(module__hidden=(16,), max_epochs=40, batch_size=5)
model = make_pipeline(
    TaskTransformer(clean), MAMLClassifier(net, inner_lr=0.1, random_state=0)
).fit([ward for hospital in others for ward in wards(hospital)])
new = wards(hungarian)
print(f"Accuracy on {len(new)} new tasks: {model.score(new):.2f}")
display = FeatureImportanceDisplay.from_estimator(
    model, new, task="hungarian 0", n_repeats=10, random_state=0
)
display.ax_.set_title("What predictions of heart disease use in a new hospital")
plt.show()
