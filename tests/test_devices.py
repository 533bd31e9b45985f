"""No tensor meets one on another device: checked without a second device.

Torch's "meta" device holds shapes and no values. Here an estimator is trained and used
on it as on a GPU, and every operation is watched for tensors of two devices. What would
be read back from the device is zeros.
"""

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch.dataset import ValidSplit
from skorch.exceptions import DeviceWarning
from torch import is_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sk_meta import (
    ALPaCAClassifier,
    ALPaCARegressor,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    TaskNet,
)
from sk_meta.networks import Conv4
from sk_meta.tasks import EpisodeSampler, Task, make_blob_tasks
from tests.methods import CLASSIFIERS, METHODS, REPRESENTATIVES

_aten = torch.ops.aten


class OneDevice(TorchDispatchMode):
    """Fails where an operation takes tensors of two devices, but for copies."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is _aten._local_scalar_dense.default and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype).item()
        if function is _aten._to_copy.default:
            wanted = kwargs.get("device")
            is_meta = is_tensor(args[0]) and args[0].is_meta  # numbers come too
            if is_meta and wanted is not None and wanted.type == "cpu":
                dtype = kwargs.get("dtype") or args[0].dtype
                return torch.zeros(args[0].shape, dtype=dtype)
        elif function is not _aten.copy_.default:
            tensors = [x for x in tree_leaves((args, kwargs)) if is_tensor(x)]
            # As on a GPU, a single number may come from the CPU.
            devices = {x.device.type for x in tensors if x.ndim}
            if len(devices) > 1:
                raise AssertionError(f"{function} takes tensors on {sorted(devices)}")
        return function(*args, **kwargs)


def make_net(**options):
    """Adam counts its steps by a number that it reads back; plain descent does not."""
    fixed = {"max_epochs": 1, "batch_size": 4, "optimizer": torch.optim.SGD}
    return TaskNet(**{**fixed, "device": "meta", **options})


def make_image_tasks():
    rng = np.random.default_rng(0)
    return [
        Task(rng.normal(size=(20, 1, 8, 8)), np.arange(20) % 2, support=np.arange(6))
        for _ in range(4)
    ]


def make_local_tasks():
    return make_blob_tasks(6, n_classes=2, labels="local", random_state=0)


def make_episodes():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 4)), np.arange(60) % 6
    return EpisodeSampler(
        X, y, n_way=3, n_shot=2, n_query=3, n_episodes=6, random_state=0
    )


MLP_OPTIONS = {"module__hidden": (8, 8), "module__normalization": "batch"}
CONV_OPTIONS = {"module": Conv4, "module__n_filters": 4}
MAML_OPTIONS = {"inner_lr": 0.1, "n_inner_steps": 2}

# Estimator, options of the net, tasks: "classes" and "targets" are of many sizes.
CASES = {
    **{
        f"{name}, {way}": (meta, {**MLP_OPTIONS, "way": way}, tasks)
        for way in ("layers", "vmap", "loop")
        for name, meta, tasks in (
            ("MAML", MAMLClassifier(**MAML_OPTIONS), "classes"),
            ("MAML, targets", MAMLRegressor(**MAML_OPTIONS), "targets"),
            ("Prototypes", PrototypicalClassifier(), "classes"),
            ("ALPaCA", ALPaCARegressor(), "targets"),
            ("ALPaCA, classes", ALPaCAClassifier(), "classes"),
        )
    },
    **{
        f"MAML, {option}, {way}": (
            MAMLClassifier(**MAML_OPTIONS, **{option: True}),
            {**MLP_OPTIONS, "way": way},
            "classes",
        )
        for option in ("first_order", "transductive", "gradient_checkpointing")
        for way in ("layers", "loop")
    },
    "MAML, layer normalisation": (
        MAMLClassifier(**MAML_OPTIONS),
        {"module__normalization": "layer"},
        "classes",
    ),
    "MAML, in pieces": (
        MAMLClassifier(**MAML_OPTIONS),
        {**MLP_OPTIONS, "max_memory": 0.01},
        "classes",
    ),
    "Prototypes, validation": (
        PrototypicalClassifier(),
        {**MLP_OPTIONS, "train_split": ValidSplit(2)},
        "classes",
    ),
    "Prototypes, local labels": (PrototypicalClassifier(), {}, make_local_tasks),
    "MAML, episodes": (MAMLClassifier(**MAML_OPTIONS), {}, make_episodes),
    "Conv4, MAML": (MAMLClassifier(**MAML_OPTIONS), CONV_OPTIONS, make_image_tasks),
    "Conv4, prototypes": (PrototypicalClassifier(), CONV_OPTIONS, make_image_tasks),
    **{
        method.__name__: (
            method(),
            {"module__hidden": (8,)},
            "classes" if method in CLASSIFIERS else "targets",
        )
        for method in METHODS
    },
}

QUICK = {method.__name__ for method in REPRESENTATIVES} | {
    "MAML, layers",
    "MAML, vmap",
    "MAML, loop",
    "MAML, targets, layers",
    "Prototypes, validation",
    "Conv4, prototypes",
}


@pytest.mark.filterwarnings("ignore:These episodes are drawn from the table")
@pytest.mark.filterwarnings("ignore:No task has an unlabelled row")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in CASES
    ],
)
def test_everything_happens_on_the_device(name, make_ragged_tasks):
    estimator, options, tasks = CASES[name]
    if isinstance(tasks, str):
        tasks = make_ragged_tasks(classification=tasks == "classes")
    else:
        tasks = tasks()
    meta = clone(estimator).set_params(net=make_net(**options), random_state=0)
    new = tasks[1]
    with OneDevice():
        meta.fit(tasks)
        meta.partial_fit(tasks)
        found = meta.predict(tasks)
        few_shot = meta.adapt(new.X_support, new.y_support)
        assert few_shot.predict(new.X_query).shape == new.y_query.shape
        state = tree_leaves(few_shot.state_)
        portable = tree_leaves(few_shot.__getstate__()["state_"])
        kept = tree_leaves(few_shot.state_)
    assert [len(y) for y in found] == [len(task.y_query) for task in tasks]
    assert meta.learner_.way == options.get("way", meta.learner_.way)
    tensors = [
        x for x in (*state, *meta.learner_.state_dict().values()) if is_tensor(x)
    ]
    assert tensors and all(x.is_meta for x in tensors)
    assert not any(is_tensor(x) and x.is_meta for x in portable)
    assert all(old is new for old, new in zip(state, kept, strict=True))


def test_a_tensor_on_another_device_would_be_found():
    on_device = torch.zeros(3, device="meta")
    with OneDevice():
        assert (on_device + torch.tensor(1.0)).is_meta
        with pytest.raises(AssertionError, match="on .'cpu', 'meta'."):
            torch.stack([on_device, torch.zeros(3)])


@pytest.mark.parametrize("way", ["layers", "vmap", "loop"])
def test_initial_weights_are_drawn_on_the_cpu(way, make_ragged_tasks):
    """So that they are the same on every device."""
    drawn = []

    class Watch(OneDevice):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if torch.Tag.nondeterministic_seeded in function.tags:
                drawn.append(args[0].device.type)
            return super().__torch_dispatch__(function, types, args, kwargs)

    meta = MAMLClassifier(make_net(way=way), random_state=0)
    with Watch():
        meta.fit(make_ragged_tasks())
    assert set(drawn) == {"cpu"}


ESTIMATORS = {
    "MAML": (MAMLClassifier(**MAML_OPTIONS), True),
    "MAML, targets": (MAMLRegressor(**MAML_OPTIONS), False),
    "Prototypes": (PrototypicalClassifier(), True),
    "ALPaCA": (ALPaCARegressor(), False),
    "ALPaCA, classes": (ALPaCAClassifier(), True),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="for where there is no GPU")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_a_gpu_has_trained_loads_without_one(name, make_ragged_tasks, monkeypatch):
    """Each tensor of the pickle is marked as one of a GPU, as a GPU's would be."""
    estimator, classification = ESTIMATORS[name]
    tasks = make_ragged_tasks(classification=classification)
    net = TaskNet(**MLP_OPTIONS, max_epochs=2, train_split=ValidSplit(2))
    meta = clone(estimator).set_params(net=net, random_state=0).fit(tasks)
    new = tasks[1]
    few_shot = meta.adapt(new.X_support, new.y_support)
    before = meta.score(tasks), few_shot.predict(new.X_query)
    state = few_shot.state_
    meta.net_.device = "cuda"
    few_shot.__dict__.pop("state_")  # by `portable_state` on the CPU, so not marked
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        content = pickle.dumps((meta, few_shot))
        with pytest.raises(RuntimeError, match="CUDA"):
            pickle.loads(pickle.dumps(torch.zeros(2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeviceWarning)  # skorch says that it is moved
        meta, few_shot = pickle.loads(content)
    few_shot.state_ = state
    assert meta.net_.device == "cpu" or meta.net_.device == torch.device("cpu")
    assert meta.score(tasks) == before[0]
    np.testing.assert_array_equal(few_shot.predict(new.X_query), before[1])
    again = meta.adapt(new.X_support, new.y_support)
    np.testing.assert_array_equal(again.predict(new.X_query), before[1])
    meta.partial_fit(tasks)
