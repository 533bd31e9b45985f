"""Fitted models as one file, which holds numbers and no code."""

import hashlib
import json
import os
import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sk_meta.saving.values import Reader, Writer

__all__ = ["load", "save"]

_FORMAT = 1
_LONGEST = 2**24  # bytes of JSON that are read
_PACKAGES = ("sk_meta", "scikit-learn", "torch")


def save(model, path):
    """Write a fitted model to one file: numbers and JSON, no pickle.

    Parameters
    ----------
    model : estimator
        Fitted: a meta-learner, also a compressed one; what its `adapt` returns; or a
        Pipeline that ends in one of these. For a search, its ``best_estimator_``.
    path : str or Path
        Usually ends in ``.safetensors``. An old file is replaced when the new one is
        whole.

    Raises
    ------
    TypeError
        If a parameter or a fitted attribute cannot be written, such as a function or a
        module given as an instance; the message names it.
    ImportError
        If the package safetensors is missing.

    Warns
    -----
    UserWarning
        Names parameters that were set and are left out, since they matter to training
        alone: callbacks, `train_split`, a `random_state` that is no integer, and what a
        subclass of TaskNet adds; `memory` and `n_jobs` likewise.

    Notes
    -----
    The file is a safetensors file: the weights under their names, and everything else
    as JSON in its header, with a checksum of both. Before `save` returns, the file is
    read back. Not in it: the state of the optimizer, and, of the history, the
    meta-batches. Of a compressed learner, the parameter `meta_learner` is written
    without what it has learned.

    Examples
    --------
    >>> import os, tempfile
    >>> from sk_meta import PrototypicalClassifier, TaskNet, load, save
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(9, n_classes=2, random_state=0)
    >>> meta = PrototypicalClassifier(TaskNet(max_epochs=1), random_state=0).fit(old)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(meta, os.path.join(folder, "meta.safetensors"))
    ...     same = load(os.path.join(folder, "meta.safetensors"))
    >>> bool((same.predict_proba([new])[0] == meta.predict_proba([new])[0]).all())
    True
    """
    if isinstance(model, BaseSearchCV):
        raise TypeError("Of a search, the winner can be saved: best_estimator_.")
    ours = type(model).__module__.partition(".")[0] == "sk_meta"
    if not hasattr(model, "adapt") and not isinstance(model, Pipeline) and not ours:
        raise TypeError(
            f"Expected a meta-learner, what its adapt returns, or a Pipeline that ends "
            f"in one; got {type(model).__name__}. Use joblib.dump for others."
        )
    check_is_fitted(model)
    writer = Writer()
    content = {
        "format": _FORMAT,
        "versions": _versions(),
        "model": writer.write(model, type(model).__name__),
    }
    text = json.dumps(content, allow_nan=False)
    if len(text) > _LONGEST:
        raise ValueError(f"The model takes {len(text)} bytes of JSON, over {_LONGEST}.")
    checksum = _checksum(text, writer.tensors)
    header = {"sk_meta": text, "sha256": checksum}
    data = _safetensors().save(writer.tensors, header)
    _read(data, writer.own)
    if writer.left_out:
        warnings.warn(
            "Left out of the file, since it matters to training alone: "
            f"{', '.join(sorted(writer.left_out))}.",
            stacklevel=2,
        )
    path = Path(path)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        new.write_bytes(data)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def load(path, modules=()):
    """Read a model that `save` has written.

    The file decides on numbers alone. It names classes, of sk_meta, scikit-learn and
    torch, and only those of a fixed list are looked up; it imports and runs nothing.

    Parameters
    ----------
    path : str or Path
    modules : sequence of classes, default=()
        Your own that the file needs: networks, losses, optimizers, meta-learners,
        transformers. They are called with values from the file.

    Returns
    -------
    estimator
        Fitted. It predicts the same bits as the saved one, on the same machine with
        the same versions; `partial_fit` trains on, with an optimizer that starts anew.

    Raises
    ------
    ValueError
        If the file is no such file, is damaged, or needs a class that is not in
        `modules`. Nothing larger than the file is allocated before this is known.
    ImportError
        If the package safetensors is missing.

    Warns
    -----
    UserWarning
        If the file was written by other versions, with both; and if it was trained on
        a device that this machine does not have.

    Notes
    -----
    The checksum tells damage, not forgery: whoever changes a file can compute it anew.
    Such a file is then another model, or an error, but never code. `partial_fit` runs
    as many epochs as the file says.

    Examples
    --------
    See `save`.
    """
    own = {kind.__name__: kind for kind in modules}
    return _read(Path(path).read_bytes(), own, path)


def _read(data, own, path="the new file"):
    torch_io = _safetensors()
    try:
        text, checksum = _header(data)
        tensors = torch_io.load(data)
        if checksum != _checksum(text, tensors):
            raise ValueError("its checksum does not fit, so it was damaged")
        content = json.loads(text, parse_constant=_no_constant)
        if content["format"] != _FORMAT:
            raise ValueError(f"it is of format {content['format']!r:.20}")
        _compare_versions(content["versions"])
        reader = Reader(tensors, own)
        model = reader.read(content["model"])
        reader.finish()
        check_is_fitted(model)
    except Warning:
        raise
    except ValueError as error:
        raise ValueError(f"Cannot load {str(path)!r}: {error!s:.500}") from error
    except Exception as error:  # whatever wrong values bring about
        raise ValueError(
            f"Cannot load {str(path)!r}: what is in it does not fit together "
            f"({type(error).__name__}: {error!s:.300})"
        ) from error
    return model


def _header(data):
    """The JSON and the checksum in the header of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(len(data) - 8, 2 * _LONGEST):
        raise ValueError("it is not a whole safetensors file")
    try:
        header = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except ValueError as error:
        raise ValueError("its header is damaged") from error
    if not {"sk_meta", "sha256"} <= header.keys():
        raise ValueError("it was not written by sk_meta.save")
    if len(header["sk_meta"]) > _LONGEST:
        raise ValueError("its header is too long")
    return header["sk_meta"], header["sha256"]


def _checksum(text, tensors):
    """SHA-256 of the JSON, and of the tensors with their names, types and shapes."""
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _no_constant(name):
    raise ValueError(f"{name} stands where a number should")


def _versions():
    found = {name: version(name) for name in _PACKAGES[1:]}
    found["sk_meta"] = import_module("sk_meta").__version__
    # A build for a GPU and one for the CPU differ in what follows the plus sign.
    return {name: found[name].partition("+")[0] for name in _PACKAGES}


def _compare_versions(written):
    here = _versions()
    differ = [
        f"{name} {written.get(name)!s:.20} (here {here[name]})"
        for name in _PACKAGES
        if written.get(name) != here[name]
    ]
    if differ:
        warnings.warn(
            f"The file was written with {', '.join(differ)}. It is read all the same; "
            "compare its predictions with some that you know.",
            stacklevel=4,
        )


def _safetensors():
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "Saving needs the package safetensors: pip install 'sk_meta[save]'."
        ) from error
    return safetensors.torch
