"""What is in an ONNX file, read without the onnx package, and what may not be in it.

A file from someone else goes to onnxruntime only after this walk through its protobuf:
lengths fit, tensors are as long as their shapes say and lie in this file, and all
operators are standard ones.
"""

import hashlib
from math import prod
from typing import NamedTuple

import numpy as np

_CHECKSUM = b"\x72\x52\x0a\x0esk_meta.sha256\x12\x40"  # a metadata entry, 64 digits
_LENGTH = len(_CHECKSUM) + 64
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}
_NOTHING = memoryview(b"")
_DEEPEST = 16  # graphs within graphs
_LOOPS = {"Loop", "Scan"}
_STRING, _INT4 = 8, {21, 22}
_BYTES = dict(zip(range(1, 23), (4, 1, 1, 2, 2, 4, 8, 0, 1, 2, 8, 4, 8), strict=False))
_BYTES |= {14: 8, 15: 16, 16: 2, 17: 1, 18: 1, 19: 1, 20: 1, 21: 1, 22: 1}


class Contents(NamedTuple):
    """What a walk through a file found.

    Attributes
    ----------
    metadata : dict of str to str
        Of the model; the checksum among it.
    operators : set of str
        Types of all nodes, those in subgraphs included.
    """

    metadata: dict
    operators: set

    @property
    def loops(self) -> bool:
        """Whether a part of the graph runs any number of times."""
        return bool(self.operators & _LOOPS)


def checksum_of(data: bytes) -> bytes:
    """The metadata entry that `to_onnx` appends to the bytes of a model."""
    return _CHECKSUM + hashlib.sha256(data).hexdigest().encode()


def check_checksum(data: bytes):
    """Raise unless a file is as it was written.

    Raises
    ------
    ValueError
        If `to_onnx` did not write it, or somebody changed it afterwards.
    """
    end = data[-_LENGTH:]
    if not end.startswith(_CHECKSUM):
        if b"sk_meta" not in data:
            raise ValueError(
                "it was not written by sk_meta.onnx.to_onnx(meta_learner, path)"
            )
        raise ValueError(
            "it was cut, or changed after it was written: the checksum is not there"
        )
    if end != checksum_of(data[:-_LENGTH]):
        raise ValueError(
            "it was damaged or changed after it was written: the checksum differs"
        )


def inspect_file(data: bytes) -> Contents:
    """Walk through a serialized ONNX model.

    Parameters
    ----------
    data : bytes

    Returns
    -------
    Contents

    Raises
    ------
    ValueError
        If it is malformed, refers to other files, or holds operators or parts that
        `to_onnx` never writes.
    """
    walk = _Walk()
    try:
        walk.model(memoryview(data))
    except (IndexError, TypeError, UnicodeDecodeError) as error:
        raise ValueError("it is no whole ONNX file") from error
    return Contents(walk.metadata, walk.operators)


class _Walk:
    """One method for each kind of message, by the field numbers of onnx.proto."""

    def __init__(self):
        self.metadata, self.operators = {}, set()

    def model(self, data):
        graphs = 0
        for number, value in _fields(data):
            if number == 7:
                graphs += 1
                self.graph(value, 0)
            elif number == 8:
                self.domain(dict(_fields(value)).get(1, _NOTHING))
            elif number == 14:
                self.entry(dict(_fields(value)))
            elif number not in range(1, 7):
                raise ValueError(
                    f"it has parts (field {number}) that are never written"
                )
        if graphs != 1:
            raise ValueError(f"it holds {graphs} graphs instead of one")

    def entry(self, entry):
        key, value = (_text(entry.get(part, _NOTHING)) for part in (1, 2))
        if key in self.metadata:
            raise ValueError(f"its metadata holds {key!r:.60} twice")
        self.metadata[key] = value

    def domain(self, domain):
        if _text(domain) not in _DOMAINS:
            raise ValueError(
                f"it needs operators of {_text(domain)!r:.60}; only those of ONNX run"
            )

    def graph(self, data, depth):
        if depth > _DEEPEST:
            raise ValueError(f"its graphs are nested deeper than {_DEEPEST}")
        for number, value in _fields(data):
            if number == 1:
                self.node(value, depth)
            elif number == 5:
                _check_tensor(value)
            elif number == 15:
                raise ValueError("it has sparse initializers, which are never written")

    def node(self, data, depth):
        operator = ""
        for number, value in _fields(data):
            if number == 4:
                operator = _text(value)
            elif number == 5:
                self.attribute(value, depth)
            elif number == 7:
                self.domain(value)
        self.operators.add(operator)

    def attribute(self, data, depth):
        seen = set()
        for number, value in _fields(data):
            if number in seen & {5, 6}:  # protobuf would merge the two
                raise ValueError("it has an attribute with two values")
            seen.add(number)
            if number in (5, 10):
                _check_tensor(value)
            elif number in (6, 11):
                self.graph(value, depth + 1)
            elif number in (22, 23):
                raise ValueError("it has sparse tensors, which are never written")


def _fields(data):
    """(number, value) of each field of a message; values are ints or memoryviews."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(data, position)
        else:
            if wire == 2:
                length, position = _varint(data, position)
            else:
                length = {1: 8, 5: 4}.get(wire)
            if number == 0 or length is None or length > end - position:
                raise ValueError("it is no whole ONNX file")
            value = data[position : position + length]
            position += length
        yield number, value


def _text(value):
    if isinstance(value, int):
        raise TypeError
    return bytes(value).decode()


def _varint(data, position):
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (2**64 - 1), position
        shift += 7
        if shift > 63:
            raise ValueError("it is no whole ONNX file")


def _check_tensor(data):
    """Raise unless a tensor holds as many values as its shape says, here."""
    dims, kind, found, n_strings = [], 0, 0, 0
    lengths = {}
    for number, value in _fields(data):
        if number == 1:
            dims += [value] if isinstance(value, int) else _varints(value)
        elif number == 2:
            kind = value
        elif number == 6:
            n_strings += 1
        elif number in (4, 5, 7, 9, 10, 11):
            lengths[number] = lengths.get(number, 0) + _n_values(number, value)
        elif number == 13 or (number == 14 and value != 0):
            raise ValueError("it refers to data in another file, which is never read")
    if kind not in _BYTES or len(lengths) + bool(n_strings) > 1:
        raise ValueError(f"it holds a tensor of an unknown type ({kind})")
    expected = prod(dims)  # a negative length is a huge one here, and does not fit
    packed = (expected + 1) // 2 if kind in _INT4 else expected
    if kind == _STRING:
        found = n_strings
    elif 9 in lengths:
        packed, found = packed * _BYTES[kind], lengths[9]
    else:
        found = sum(lengths.values())
        packed = expected * 2 if kind in (14, 15) else packed
    if packed != found:
        raise ValueError(
            f"it holds a tensor of shape {dims!r:.60} that has other than {expected} "
            "values"
        )


def _n_values(number, value):
    """How many numbers one field of a tensor holds; of raw data, the bytes."""
    if isinstance(value, int):
        return 1
    if number == 9:
        return len(value)
    if number in (4, 10):
        return len(value) // (4 if number == 4 else 8)
    return int((np.frombuffer(value, np.uint8) < 128).sum())


def _varints(data):
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value
