"""What distillation adds to a learner: teachers, and a loss that compares with them."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sk_meta.engine.each_task import can_pad
from sk_meta.learner import EmbeddingLearner, Gaussian, weighted_mean
from sk_meta.tasks.validation import check_names, say_shape
from sk_meta.updates import all_rows
from sk_meta.wrapped import unwrapped

_SHUT = -5e8  # scores below are of classes that a learner shuts out
_LEAST_VARIANCE = 1e-6  # as in RowLoss
_OPTIONS = ("distill_mix", "distill_temperature", "partly_labeled")


class Teacher(nn.Module):
    """A trained learner that takes support sets and gives scores as a student does.

    Their labels may have other codes, their targets another scale.

    Parameters
    ----------
    meta : meta-learner
        Fitted; its learner is used, and put into evaluation mode.
    schema : Schema
        Of the student's tasks.
    """

    def __init__(self, meta, schema):
        super().__init__()
        self.learner = meta.learner_.cpu().eval()
        self.learner.way = "vmap"  # right with it and without
        inner = unwrapped(meta)
        own = inner.schema_
        _check_schema(own, schema)
        self.shared_classes = 0
        if schema.classification and schema.labels == "local":
            inner._check_head(schema.n_outputs, "A task")
        elif schema.classification:
            self.shared_classes = len(own.classes)
            codes = np.searchsorted(own.classes, schema.classes)
            # The code -1, of unlabelled rows, finds the last one.
            self.register_buffer("codes", torch.as_tensor([*codes, -1]))
        else:
            scale = schema.target_scale / own.target_scale
            shift = (schema.target_mean - own.target_mean) / own.target_scale
            self.register_buffer("scale", torch.as_tensor(scale).float())
            self.register_buffer("shift", torch.as_tensor(shift).float())

    @torch.no_grad()
    def forward(self, support, X):
        """Adapt to the support set of one task, and predict its rows."""
        n_classes = support.n_classes
        if self.shared_classes:
            y = self.codes[support.y]
            support = support._replace(y=y, n_classes=self.shared_classes)
        elif not n_classes:
            support = support._replace(y=support.y * self.scale + self.shift)
        scores = self.learner.predict(self.learner.adapt(support), X)
        if n_classes:
            columns = self.codes[:-1] if self.shared_classes else slice(n_classes)
            return scores[:, columns]
        if isinstance(scores, Gaussian):
            mean = (scores.mean - self.shift) / self.scale
            return Gaussian(mean, scores.variance / self.scale**2)
        return (scores - self.shift) / self.scale

    @torch.no_grad()
    def embed(self, X):
        """What the teacher's head works on, (n, d)."""
        return self.learner.embed(X)


def _check_schema(own, schema):
    """Raise unless a teacher of the schema `own` can take tasks of another one."""
    if schema.shape != own.shape:
        raise ValueError(
            f"The tasks have {say_shape(schema.shape)}; the teacher was fitted on "
            f"tasks with {say_shape(own.shape)}. Pass the features that it knows."
        )
    check_names(schema.names, own.names, "The list of tasks", "the teacher's")
    if not schema.classification:
        if schema.n_outputs != own.n_outputs:
            raise ValueError(
                f"The tasks have {schema.n_outputs} target(s); the teacher was fitted "
                f"on {own.n_outputs}. Pass the same targets."
            )
        return
    if schema.labels != own.labels:
        raise ValueError(
            f"The tasks have {schema.labels} labels; the teacher was fitted on tasks "
            f"with {own.labels} ones. Pass the same kind."
        )
    if schema.labels == "shared":
        unknown = set(schema.classes.tolist()) - set(own.classes.tolist())
        if unknown:
            raise ValueError(
                f"The tasks have the label {min(unknown)!r}, which the teacher does "
                f"not know; it knows {own.classes.tolist()}. Leave it out, or fit the "
                "teacher on tasks with all labels."
            )


def divergence(taught, scores, temperature):
    """How far scores of rows are from those that teachers give, (n,).

    Parameters
    ----------
    taught : list of tensor of shape (n, n_classes)
        Logits of each teacher; their probabilities at this temperature are averaged.
    scores : tensor of shape (n, n_classes)
        Logits of the student.
    temperature : float

    Returns
    -------
    tensor of shape (n,)
        Kullback-Leibler divergence times the temperature squared, by which the
        gradient keeps its size (Hinton et al., 2015, section 2). Classes that the
        student shuts out, as those without a support row, are left out.
    """
    closed = scores < _SHUT
    target = torch.stack(
        [
            (each.masked_fill(closed, 2 * _SHUT) / temperature).log_softmax(1)
            for each in taught
        ]
    )
    target = target.logsumexp(0) - math.log(len(taught))
    found = (scores / temperature).log_softmax(1)
    rows = F.kl_div(found, target, reduction="none", log_target=True).sum(1)
    return temperature**2 * rows


def divergence_of_targets(taught, scores):
    """The same in regression; averaged over targets.

    Between normal distributions, the teachers' by the moments of their mixture; the
    squared distance of the means where either side has no variance.

    Parameters
    ----------
    taught : list of Gaussian, or of tensor of shape (n, n_targets)
    scores : Gaussian, or tensor of shape (n, n_targets)

    Returns
    -------
    tensor of shape (n,)
    """
    both = all(isinstance(each, Gaussian) for each in (*taught, scores))
    means = torch.stack([_mean(each) for each in taught])
    mean = means.mean(0)
    squared = (mean - _mean(scores)) ** 2
    if not both:
        return squared.mean(1)
    spread = torch.stack([each.variance for each in taught]) + (means - mean) ** 2
    variance = scores.variance.clamp_min(_LEAST_VARIANCE)
    ratio = spread.mean(0).clamp_min(_LEAST_VARIANCE) / variance
    return 0.5 * (ratio - 1 - ratio.log() + squared / variance).mean(1)


def _mean(scores):
    return scores.mean if isinstance(scores, Gaussian) else scores


class Distilling:
    """What a Learner becomes while it has teachers: put in front of its class.

    The teachers are no submodules, so that neither the optimizer nor the saved state
    has them; they share device and type with the learner all the same.

    Attributes
    ----------
    teachers : tuple of Teacher
    distill_mix, distill_temperature : float
    partly_labeled : bool
        Whether the y of query rows may be -1 or NaN, which stand for unknown.
    to_teacher : torch.nn.Linear or None
        From the embedding to the teachers', where these are matched.
    """

    @property
    def uses_weight(self):
        """Whether rows of weight 0 change nothing, for the teachers either."""
        return super().uses_weight and all(can_pad(t.learner) for t in self.teachers)

    def _apply(self, function, recurse=True):
        for teacher in self.teachers:
            teacher._apply(function)
        return super()._apply(function, recurse)

    def loss(self, scores, query, support):
        """The learner's own loss of known labels; in training, mixed with a match."""
        labeled = _labeled(query) if self.partly_labeled else query
        loss = super().loss(scores, labeled, support)
        if not (self.training and self.teachers):
            return loss
        if self.to_teacher is None:
            match = self._match_outputs(scores, query, support)
        else:
            match = self._match_features(query, support)
        return (1 - self.distill_mix) * loss + self.distill_mix * match

    def _match_outputs(self, scores, query, support):
        found = _scores_of_query(scores, len(query.X), self)
        taught = [teacher(support, query.X) for teacher in self.teachers]
        if support.n_classes:
            found = found[:, : support.n_classes]
            rows = divergence(taught, found, self.distill_temperature)
        else:
            rows = divergence_of_targets(taught, found)
        return weighted_mean(rows, query.weight)

    def _match_features(self, query, support):
        X, _, weight = all_rows(support, query)
        Z = self.to_teacher(self.features(X, self.call(X)[0]))
        target = torch.cat([teacher.embed(X) for teacher in self.teachers], 1)
        return weighted_mean(((Z - target) ** 2).mean(1), weight)


def _labeled(query):
    """A query set in which rows without a label have weight 0 instead."""
    if query.y.is_floating_point():
        unknown = query.y.isnan()
        y, known = query.y.masked_fill(unknown, 0.0), ~unknown.any(-1)
    else:
        y, known = query.y.clamp_min(0), query.y >= 0
    weight = known.to(query.X.dtype)
    if query.weight is not None:
        weight = weight * query.weight
    return query._replace(y=y, weight=weight)


def _scores_of_query(scores, n_query, learner):
    if isinstance(scores, list):
        scores = scores[-1]  # after the last inner step
    if isinstance(scores, Gaussian):
        return Gaussian(*(part[-n_query:] for part in scores))
    if torch.is_tensor(scores):
        return scores[-n_query:]  # some learners have the support rows before them
    name = type(learner).__bases__[1].__name__
    raise TypeError(
        f"A student of the kind {name} does not predict query rows in training, as "
        "Reptile, iMAML and objective='marginal' do not. Choose another student."
    )


def with_teachers(module, n_outputs, make, teachers, row_shape, features, **options):
    """Learner from `make`, with teachers."""
    learner = make(module, n_outputs)
    learner.to_teacher = None
    if features and teachers:
        for each in (learner, *(teacher.learner for teacher in teachers)):
            _check_embeds(each)
        rows = torch.zeros(2, *row_shape)
        with torch.no_grad():
            n_own = learner.embed(rows).shape[1]
            n_theirs = sum(teacher.embed(rows).shape[1] for teacher in teachers)
        learner.to_teacher = nn.Linear(n_own, n_theirs)
    vars(learner).update(teachers=teachers, **options)
    kind = type(learner)
    learner.__class__ = type(f"Distilling{kind.__name__}", (Distilling, kind), {})
    return learner


def _check_embeds(learner):
    if not isinstance(learner, EmbeddingLearner):
        raise TypeError(
            f"match='features' needs teachers and a student that embed rows by one "
            f"network for all tasks; {type(learner).__name__} does not. Set "
            "match='outputs'."
        )


def without_teachers(net, make):
    """Turn the learner of a trained net into what `make` makes."""
    learner = net.module_
    if learner.to_teacher is not None:
        extra = set(learner.to_teacher.parameters())
        for group in net.optimizer_.param_groups:
            group["params"] = [p for p in group["params"] if p not in extra]
        for parameter in extra:
            net.optimizer_.state.pop(parameter, None)
    learner.__class__ = type(learner).__bases__[1]
    for name in ("to_teacher", "teachers", *_OPTIONS):
        delattr(learner, name)
    net.make_learner_ = make
