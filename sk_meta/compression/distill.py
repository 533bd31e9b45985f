"""Distillation: a small learner that is trained to predict as a big one does."""

from functools import partial
from numbers import Real
from typing import ClassVar

from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import Interval, StrOptions

from sk_meta.base import MetaEstimator
from sk_meta.compression.teaching import Teacher, with_teachers, without_teachers
from sk_meta.tasks.sampling import EpisodeSampler
from sk_meta.tasks.validation import check_tasks
from sk_meta.training import TaskNet
from sk_meta.wrapped import WrappedLearner, fitted_learner, unwrapped


class DistilledLearner(WrappedLearner):
    """A small meta-learner trained to match what a big one predicts once adapted.

    Both adapt to the support set of a training task; then the student is taught the
    teacher's predictions of the query rows, beside their labels. Query rows whose label
    is not known (`Task.labeled`, or the `unlabeled` value of the student) teach too.
    After `fit`, `meta_learner_` is an ordinary meta-learner of the student's kind,
    without the teacher.

    Parameters
    ----------
    teacher : meta-learner, FrozenEstimator of a fitted one, or list of these
        Usually frozen; one that is not is fitted to the tasks first, in every fit.
        The predictions of several are averaged.
    net : TaskNet, default=None
        Network and meta-training of the student; None leaves the student's own.
    student : meta-learner, default=None
        Not fitted, and of any method that predicts query rows in training. None means
        the (first) teacher's method and parameters.
    temperature : float, default=2.0
        By which logits are divided, of teacher and student, before they are compared;
        higher makes more of the classes that the teacher finds unlikely. Of no effect
        in regression or on features.
    mix : float, default=0.9
        Weight of the teacher, from 0 to 1; the labels have the rest.
    match : {"outputs", "features"}, default="outputs"
        What the student matches. "outputs": class probabilities, by Kullback-Leibler
        divergence; in regression, normal distributions likewise, or means by squared
        distance. "features": a learned linear map of the student's embedding matches
        the teacher's embedding of all rows, by squared distance; both have to be
        learners that embed rows, such as prototypical networks.
    random_state : int, RandomState instance or None, default=None
        Seed of the student's initialisation and training; None leaves its own.
    verbose : int, default=0
        1 shows a progress bar of the student's training.

    Attributes
    ----------
    meta_learner_ : meta-learner
        The trained student.
    net_, learner_, history_, n_features_in_, classes_, feature_names_in_
        Those of the student. Validation losses are of the labels alone.

    Raises
    ------
    ValueError
        By `fit`, if the teacher was fitted on other features, labels or targets.
    TypeError
        By `fit`, if one is a classifier and the other a regressor, or if the student
        cannot be taught so.

    Notes
    -----
    The TaskNet's `compile` has no effect on a student. A search over its parameters
    fits a teacher that is not frozen for each candidate: freeze it.

    References
    ----------
    Hinton, Vinyals, Dean (2015), Distilling the Knowledge in a Neural Network,
    section 2. Romero et al. (2015), FitNets: Hints for Thin Deep Nets, equation 3
    (features; a linear regressor).

    Examples
    --------
    >>> from sklearn.frozen import FrozenEstimator
    >>> from sk_meta import DistilledLearner, PrototypicalClassifier, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=3, labels="local", random_state=0)
    >>> big = PrototypicalClassifier(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> net = TaskNet(module__hidden=(8,), max_epochs=2)
    >>> small = DistilledLearner(FrozenEstimator(big), net, random_state=0).fit(old)
    >>> small.adapt(new.X_support, new.y_support).predict(new.X_query[:3]).shape
    (3,)
    """

    _parameter_constraints: ClassVar[dict] = {
        "teacher": "no_validation",
        "net": [TaskNet, None],
        "student": "no_validation",
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "mix": [Interval(Real, 0, 1, closed="both")],
        "match": [StrOptions({"outputs", "features"})],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        teacher,
        net=None,
        *,
        student=None,
        temperature=2.0,
        mix=0.9,
        match="outputs",
        random_state=None,
        verbose=0,
    ):
        self.teacher = teacher
        self.net = net
        self.student = student
        self.temperature = temperature
        self.mix = mix
        self.match = match
        self.random_state = random_state
        self.verbose = verbose

    @property
    def meta_learner(self):
        """What the student is a clone of, but for its net."""
        return _thawed(self._teachers()[0]) if self.student is None else self.student

    def _teachers(self):
        given = self.teacher
        return given if isinstance(given, list | tuple) else [given]

    def fit(self, tasks, y=None):
        """Fit teachers that are not frozen, then train the student.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
        y : None
            Ignored; tasks hold their own.

        Returns
        -------
        self
        """
        self._validate_params()
        self._check_kinds()
        teachers = [fitted_learner(teacher, tasks) for teacher in self._teachers()]
        like = unwrapped(teachers[0]) if self.student is None else self.student
        student = clone(like)
        if self.net is not None:
            student.set_params(net=clone(self.net))
        if self.random_state is not None:
            student.set_params(random_state=self.random_state)
        if self.verbose:
            student.set_params(verbose=self.verbose)
        self._train(student, teachers, tasks)
        self.meta_learner_ = student
        return self

    def _check_kinds(self):
        """Raise unless teachers and student are meta-learners of one kind."""
        if not self._teachers():
            raise ValueError("teacher is an empty list. Pass at least one.")
        for teacher in map(_thawed, self._teachers()):
            if not isinstance(teacher, MetaEstimator | WrappedLearner):
                raise TypeError(
                    "teacher must be a meta-learner with a network, FrozenEstimator of "
                    f"a fitted one, or a list of these; got {type(teacher).__name__}. "
                    "In a Pipeline, distil its last step."
                )
        student = self.meta_learner
        if self.student is not None and not isinstance(student, MetaEstimator):
            raise TypeError(
                "student must be a meta-learner that is not fitted yet, or None; got "
                f"{type(student).__name__}. Compress it further afterwards."
            )
        for teacher in map(_thawed, self._teachers()):
            if teacher._classification != student._classification:
                raise TypeError(
                    f"A {type(student).__name__} cannot learn from a "
                    f"{type(teacher).__name__}: one is for classes, the other for "
                    "targets. Choose both of one kind."
                )

    def _train(self, student, teachers, tasks):
        """Fit the student as its own class does, its learner with teachers."""
        make_maker, plain = student._learner_maker, []
        partly = self.mix > 0 and _partly_labeled(tasks, student.unlabeled)

        def maker(schema):
            _check_unlabeled(student, teachers)
            translated = [Teacher(teacher, schema) for teacher in teachers]
            plain.append(make_maker(schema))
            return partial(
                with_teachers,
                make=plain[0],
                teachers=tuple(translated) if self.mix > 0 else (),
                row_shape=schema.shape,
                features=self.match == "features",
                distill_mix=float(self.mix),
                distill_temperature=float(self.temperature),
                partly_labeled=partly,
            )

        student._learner_maker = maker
        student._dataset = partial(student._dataset, scored=not partly)
        try:
            student.fit(tasks)
        finally:
            del student._learner_maker, student._dataset
        without_teachers(student.net_, plain[0])


def _thawed(meta):
    return meta.estimator if isinstance(meta, FrozenEstimator) else meta


def _partly_labeled(tasks, unlabeled):
    """Whether there are rows without a label that may be query rows."""
    tasks = check_tasks(tasks, unlabeled)
    return not isinstance(tasks, EpisodeSampler) and any(
        task.labeled is not None and not task.labeled.all() for task in tasks
    )


def _check_unlabeled(student, teachers):
    """Raise if support sets may have rows that teachers cannot use."""
    for teacher in map(unwrapped, teachers):
        if student._uses_unlabeled and not teacher._uses_unlabeled:
            raise ValueError(
                f"{type(student).__name__} uses unlabelled rows of support sets, which "
                f"its teacher, {type(teacher).__name__}, cannot. Choose a teacher that "
                "uses them too."
            )
