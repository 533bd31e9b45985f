"""Interrupt and resume: a callback that continues a killed fit to the same bits."""

import hashlib
import io
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skorch.callbacks import Callback, EarlyStopping
from torch import nn
from torch.utils._pytree import tree_leaves

__all__ = ["ResumableCheckpoint"]

_FORMAT = "sk_meta checkpoint 1"
_TASKS = 64  # of a long list, so many are compared with the interrupted run's
_FREE = {"max_epochs", "verbose", "device", "callbacks"}  # may differ in a resumed run


class ResumableCheckpoint(Callback):
    """Continue an interrupted fit from where it was last saved, to the same bits.

    One of the `callbacks` of a TaskNet. Every few epochs it saves all that training
    depends on: weights and running statistics, the optimizer, the history, the
    generators of random numbers, and what the other callbacks know, such as learning
    rate schedules and the best weights of EarlyStopping. Where `fit` or `partial_fit`
    finds the file, it goes on from there and runs the remaining epochs. A finished
    call removes the file.

    Parameters
    ----------
    path : str or Path
        The file: one for each run, and for each candidate of a search. Its folder is
        made where it is missing.
    every : int, default=10
        Epochs between two saves. A save writes a new file, then puts it in place of
        the old one, so that a kill at any time leaves a whole one.

    Attributes
    ----------
    n_resumed_ : int
        Epochs that the last call took from the file; 0 where there was none.

    Raises
    ------
    ValueError
        If the file is no checkpoint, was cut short, or belongs to another run: other
        tasks, parameters, or random_state. Before any training.

    Notes
    -----
    The same bits need the same machine, the same number of threads and a
    `random_state`. `max_epochs`, `device` and `verbose` may change in between. Of
    long lists, 64 tasks are compared. The weights of a module given as an instance
    are not: they may have been drawn anew.

    Ctrl-C ends `fit` early, as always in skorch; the file stays, and the next `fit`
    goes on from it.

    Of another callback, the attributes that end in an underscore are kept where they
    are numbers, strings, tensors, lists and dicts of these, or have `state_dict` and
    `load_state_dict`. A callback that needs more defines these two itself.

    Reading the file executes no code.

    Examples
    --------
    >>> from sk_meta import MAMLRegressor, TaskNet
    >>> from sk_meta.checkpoint import ResumableCheckpoint
    >>> from sk_meta.tasks import make_sinusoids
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save = ResumableCheckpoint(f"{folder}/maml.ckpt", every=2)
    ...     net = TaskNet(max_epochs=3, callbacks=[save])
    ...     meta = MAMLRegressor(net, random_state=0)
    ...     meta = meta.fit(make_sinusoids(16, random_state=0))
    >>> len(meta.history_)
    3
    """

    def __init__(self, path, every=10):
        self.path = path
        self.every = every

    def initialize(self):
        """See `skorch.callbacks.Callback`."""
        self.n_resumed_ = 0
        return self

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Take up what was saved. The other callbacks have begun already."""
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every must be an int of at least 1, got {self.every!r}.")
        self.n_resumed_ = self.n_epochs_ = 0
        self.split_ = None
        self.run_ = {
            "random_state": getattr(net, "seed_", None),
            # Of a partial_fit; a module given to fit may have been drawn anew.
            "start": _digest(_training_state(net)) if net.history else None,
            "tasks": some_tasks_digest(X),
            **_parameters(net),
        }
        path = Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            state = _load(path)
            self._check(state, net)
            _restore(net, state)
            self.split_ = state["split"]
            self.n_resumed_ = self.n_epochs_ = state["n_epochs"]

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Check that the validation tasks are those of the interrupted run."""
        split = _digest([_indices(dataset_train), _indices(dataset_valid)])
        if self.split_ not in (None, split):
            raise ValueError(
                f"{str(self.path)!r} cannot be resumed: train_split has drawn other "
                "validation tasks than in the interrupted run. Give it a "
                f"random_state, and delete {str(self.path)!r} to start anew."
            )
        self.split_ = split

    def on_epoch_end(self, net, **kwargs):
        """Save, every few epochs. The other callbacks have ended theirs already."""
        self.n_epochs_ += 1
        if self.n_epochs_ % self.every or not _is_main(net):
            return
        state = {
            "format": _FORMAT,
            "run": self.run_,
            "split": self.split_,
            "n_epochs": self.n_epochs_,
            "callbacks": {name: _get_state(cb) for name, cb in _others(net)},
            "history": _plain(net.history.to_list()),
            "engine": {
                "way": net.module_.way,
                "checked": net.module_.checked,
                "bytes": _plain(net.meta_step_.bytes),
            },
            "cuda": torch.cuda.get_rng_state(net.device) if _on_cuda(net) else None,
            **_training_state(net),
        }
        path = Path(self.path)
        part = path.with_name(path.name + ".part")
        with open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def on_train_end(self, net, **kwargs):
        """Remove the file, unless the call was cut short."""
        path = Path(self.path)
        if self.n_epochs_ >= net.max_epochs or _out_of_patience(net):
            if _is_main(net):
                path.unlink(missing_ok=True)
        elif path.exists():
            warnings.warn(
                f"Training was interrupted after {self.n_epochs_} of {net.max_epochs} "
                f"epochs. The same call goes on from {str(path)!r}.",
                stacklevel=2,
            )
        if getattr(net, "accelerator", None) is not None:
            net.accelerator.wait_for_everyone()  # the next call must not find the file

    def _check(self, state, net):
        """Raise unless the state is one of this run."""
        path, saved = str(self.path), state["run"]
        differ = [
            key
            for key in sorted({*saved, *self.run_})
            if saved.get(key) != self.run_.get(key)
        ]
        named = [key for key in differ if key not in _DIGESTS]
        if named:
            there, here = (run.get(named[0], "unset") for run in (saved, self.run_))
            found = f"{named[0]} is {there} there and {here} here"
        elif differ:
            found = f"its {_DIGESTS[differ[-1]]} are not those given here"
        elif state["n_epochs"] > net.max_epochs:
            found = f"it has {state['n_epochs']} epochs, max_epochs={net.max_epochs}"
        elif {*state["callbacks"]} - {name for name, _ in _others(net)}:
            found = f"it had the callbacks {sorted(state['callbacks'])}"
        else:
            return
        raise ValueError(
            f"{path!r} is the checkpoint of another run: {found}. Delete it to start "
            "anew, or give this run a path of its own."
        )


_DIGESTS = {
    "random_state": "seeds",
    "start": "weights before partial_fit",
    "tasks": "tasks, or their support sets,",
}


def _load(path: Path) -> dict:
    """Read a checkpoint; no code in it is executed."""
    content = path.read_bytes()
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if state["format"] == _FORMAT:
            return state
        found = f"its format is {state['format']!r}"
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        KeyError,
        TypeError,
        IndexError,
        ValueError,
    ) as error:
        found = f"{type(error).__name__} in its {len(content)} bytes"
    raise ValueError(
        f"{str(path)!r} is not a whole checkpoint of this version: {found}. Delete it "
        "to start anew, or give another path."
    )


def _training_state(net) -> dict:
    """What decides how training goes on, on any device and without callbacks."""
    return {
        "module": _plain(net.module_.state_dict()),
        "criterion": _plain(_state_of(net.criterion_)),
        "optimizer": _plain(net.optimizer_.state_dict()),
        "numpy": _plain(net.rng_.bit_generator.state),
        "torch": torch.get_rng_state(),
    }


def _restore(net, state):
    net.module_.load_state_dict(state["module"])
    net.optimizer_.load_state_dict(state["optimizer"])
    if state["criterion"]:
        net.criterion_.load_state_dict(state["criterion"])
    # What the engine has found out, and would not find out again to the same bits.
    net.module_.way = state["engine"]["way"]
    net.module_.checked = state["engine"]["checked"]
    net.meta_step_.bytes = state["engine"]["bytes"]
    net.history[:] = state["history"]
    for name, callback in _others(net):
        _set_state(callback, state["callbacks"].get(name, {}))
    # Last: nothing above may draw from them.
    net.rng_.bit_generator.state = state["numpy"]
    torch.set_rng_state(state["torch"])
    if _on_cuda(net) and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], net.device)


def _state_of(criterion):
    return criterion.state_dict() if isinstance(criterion, nn.Module) else {}


def _on_cuda(net):
    return net.device is not None and torch.device(net.device).type == "cuda"


def _is_main(net):
    accelerator = getattr(net, "accelerator", None)
    return accelerator is None or accelerator.is_main_process


def _others(net):
    """The other callbacks; a progress bar has nothing to keep."""
    return [
        (name, callback)
        for name, callback in net.callbacks_
        if not isinstance(callback, ResumableCheckpoint) and name != "progress"
    ]


def _out_of_patience(net):
    return any(
        isinstance(callback, EarlyStopping) and callback.misses_ >= callback.patience
        for _, callback in net.callbacks_
    )


def _get_state(callback) -> dict:
    """What a callback knows, as plain values by attribute."""
    if _keeps_state(callback):
        return {"": _plain(callback.state_dict())}
    found = {}
    for name, value in vars(callback).items():
        if name.endswith("_"):
            if _keeps_state(value):
                # A schedule holds functions too, which its constructor made anew.
                items = value.state_dict().items()
                value = {k: _plain(v) for k, v in items if _is_plain(v)}
            if _is_plain(value):
                found[name] = _plain(value)
    return found


def _set_state(callback, state):
    if "" in state:
        return callback.load_state_dict(state[""])
    for name, value in state.items():
        present = getattr(callback, name, None)
        if _keeps_state(present):
            present.load_state_dict(value)
        else:
            setattr(callback, name, value)


def _keeps_state(value) -> bool:
    """Whether an object, not a class, says itself what it is made of."""
    both = hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
    return both and not isinstance(value, type)


def _plain(value: Any) -> Any:
    """The value in types that are read without executing code.

    Raises
    ------
    TypeError
        If there is something else in it.
    """
    if isinstance(value, np.generic):
        return value.item()
    if torch.is_tensor(value):
        return value.detach().cpu().clone()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    raise TypeError(
        f"A checkpoint cannot keep a {type(value).__name__}. Make it of numbers, "
        "strings, tensors, lists and dicts."
    )


def _is_plain(value) -> bool:
    try:
        _plain(value)
    except TypeError:
        return False
    return True


def _digest(tree) -> str:
    """A hash of nested plain values and tensors."""
    found = hashlib.sha256()

    def add(value):
        if torch.is_tensor(value):
            value = value.detach().cpu().contiguous()
            found.update(f"{value.dtype}{tuple(value.shape)}".encode())
            found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key, entry in value.items():
                found.update(repr(key).encode())
                add(entry)
        elif isinstance(value, list | tuple):
            found.update(f"{len(value)}".encode())
            for entry in value:
                add(entry)
        else:
            found.update(repr(value).encode())

    add(tree)
    return found.hexdigest()


def some_tasks_digest(dataset) -> str:
    """A hash of how many tasks there are, and of some, as drawn for an evaluation.

    Parameters
    ----------
    dataset : TaskDataset
    """
    indices = np.linspace(0, len(dataset) - 1, min(len(dataset), _TASKS)).astype(int)
    groups = [tuple(group[1:3]) for group in dataset.batch(indices.tolist())]
    return _digest([len(dataset), tree_leaves(groups)])


def _indices(dataset) -> list:
    """Which of all tasks a part of them holds."""
    if dataset is None:
        return []
    if not hasattr(dataset, "indices"):
        return [len(dataset)]
    return [_indices(dataset.dataset), [int(index) for index in dataset.indices]]


def _parameters(net) -> dict:
    """Parameters in words: those of the net, its callbacks, and the learner."""
    params = net.get_params(deep=False)
    found = {name: value for name, value in params.items() if name not in _FREE}
    found.pop("accelerator", None)
    for name, callback in _others(net):
        found[f"callbacks__{name}"] = callback
    for name, value in vars(net.module_).items():
        if name[0] != "_" and name not in (
            "training",
            "way",
            "why",
            "checked",
            "forced",
        ):
            if type(value) in (bool, int, float, str):
                found[name] = value
    return {name: _in_words(value) for name, value in found.items()}


def _in_words(value, depth=4) -> str:
    """A description that is the same in another process."""
    if hasattr(value, "__qualname__"):  # a class or function; scripts may move
        return value.__qualname__
    if isinstance(value, np.ndarray):
        return _digest(torch.from_numpy(value)) if value.dtype.kind in "biuf" else "..."
    if torch.is_tensor(value):
        return _digest(value)
    if isinstance(value, nn.Module) or not hasattr(value, "__dict__"):
        if isinstance(value, list | tuple) and depth:
            return f"[{', '.join(_in_words(entry, depth - 1) for entry in value)}]"
        if isinstance(value, dict) and depth:
            pairs = (f"{k!r}: {_in_words(v, depth - 1)}" for k, v in value.items())
            return "{" + ", ".join(pairs) + "}"
        plain = value is None or isinstance(value, bool | int | float | str | nn.Module)
        return str(value) if plain else type(value).__qualname__
    given = (
        {k: v for k, v in vars(value).items() if not k.endswith("_")} if depth else {}
    )
    parts = (f"{name}={_in_words(entry, depth - 1)}" for name, entry in given.items())
    return f"{type(value).__qualname__}({', '.join(parts)})"
