"""What a learner's file says of the learner in words and numbers: JSON, checked."""

import json
from math import isfinite

import numpy as np

FORMAT = 1
MOST_STEPS = 10_000  # of an inner loop
_LONGEST = 2**24  # characters of JSON that are read
_MOST = 2**20  # numbers in a row, targets, metadata
_LABELS = {"str": str, "int": int, "float": float, "bool": bool}


def read_description(text):
    """Values of the JSON in a file, each of its type and within its bounds.

    Parameters
    ----------
    text : str or None

    Returns
    -------
    dict
        As in the JSON; `classes` an array.

    Raises
    ------
    ValueError
        If a value is missing or is not what may stand there.
    """
    if text is None:
        raise ValueError("it does not describe a learner")
    try:
        if len(text) > _LONGEST:
            raise ValueError
        found = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ValueError("its description is no JSON that can be read") from None
    if not isinstance(found, dict) or "format" not in found:
        raise ValueError("it does not describe a learner")
    if found["format"] != FORMAT:
        raise ValueError(
            f"it is of format {found['format']!r:.20}, this version of sk_meta reads "
            f"{FORMAT}; install the version that wrote it"
        )
    for name, fits in _FITS.items():
        if name not in found or not fits(found[name]):
            raise ValueError(f"{name} is {found.get(name)!r:.60}, which cannot be")
    _check_together(found)
    if found["classes"] is not None:
        found["classes"] = _as_array(found["classes"], found["label_kind"])
    return found


def _no_constant(name):
    raise ValueError(f"{name} stands where a number should")


def _is_int(low, high):
    return lambda value: type(value) is int and low <= value <= high


def _is_text(value):
    return type(value) is str and len(value) < 1000


def _texts(value):
    return type(value) is list and all(map(_is_text, value))


def _or_none(fits):
    return lambda value: value is None or fits(value)


_FITS = {
    "method": _is_text,
    "kind": lambda value: _is_text(value) and value in ("classifier", "regressor"),
    "labels": _or_none(lambda value: _is_text(value) and value in ("shared", "local")),
    "classes": _or_none(lambda value: type(value) is list and len(value) > 0),
    "label_kind": _or_none(lambda value: _is_text(value) and value in _LABELS),
    "most_classes": _or_none(_is_int(1, _MOST)),
    "unlabeled": _or_none(lambda value: _is_text(value) or type(value) is int),
    "n_targets": _is_int(0, _MOST),
    "multi_output": lambda value: type(value) is bool,
    "row_shape": lambda value: (
        type(value) is list and len(value) > 0 and all(map(_is_int(1, _MOST), value))
    ),
    "feature_names": _or_none(_texts),
    "columns": _or_none(
        lambda value: (
            type(value) is dict
            and len(value) > 0
            and all(_is_text(kind) and kind in _LABELS for kind in value.values())
        )
    ),
    "n_metadata": _is_int(0, _MOST),
    "metadata_names": _or_none(_texts),
    "n_steps": _or_none(_is_int(0, MOST_STEPS)),
}


def _check_together(found):
    """Raise unless the values can be those of one learner."""
    n_numbers = found["row_shape"][0] if len(found["row_shape"]) == 1 else None
    classifier = found["kind"] == "classifier"
    shared = found["labels"] == "shared"
    together = {
        "labels": (found["labels"] is not None) == classifier,
        "classes": (found["classes"] is not None) == shared,
        "label_kind": (found["label_kind"] is not None) == shared,
        "n_targets": (found["n_targets"] == 0) == classifier,
        "feature_names": len(found["feature_names"] or ()) in (0, n_numbers),
        "columns": len(found["columns"] or ()) in (0, n_numbers),
        "metadata_names": len(found["metadata_names"] or ())
        in (0, found["n_metadata"]),
    }
    for name, fits in together.items():
        if not fits:
            raise ValueError(f"{name} does not fit the rest of its description")


def _as_array(classes, kind):
    """Labels as a sorted array of one type."""
    fits = all(type(label) is _LABELS[kind] for label in classes)
    if fits and kind == "int":
        fits = all(-(2**63) <= label < 2**63 for label in classes)
    if fits and kind == "float":
        fits = all(map(isfinite, classes))
    array = np.asarray(classes) if fits else np.empty(0)
    if not fits or not np.array_equal(np.unique(array), array):
        raise ValueError("classes are not sorted labels of one type")
    return array
