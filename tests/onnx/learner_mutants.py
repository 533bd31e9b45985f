"""Tries changed files of learners; a process of its own, for it may crash.

    python -m tests.onnx.learner_mutants FOLDER N SEED

FOLDER holds files of learners, and rows for each in an .npz file. Prints what became of
the mutants, as JSON.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from sk_meta.onnx import OnnxMetaLearner
from sk_meta.onnx.inspect_file import checksum_of
from tests.onnx.toy_learners import sealed

CHECKSUM = len(checksum_of(b""))
NUMBERS = [0, 1, -1, 2, 7, 1000, 10**6, 10**9, 2**31, 2**40, 2**62, -(2**63), 2**63 - 1]
VALUES = [None, True, -1, 0, 2**70, 1e300, "", "x" * 2000, [], [[]], {}, [1, "a"]]
OPERATORS = [
    "ConstantOfShape",
    "Range",
    "Expand",
    "Tile",
    "Loop",
    "If",
    "Pad",
    "OneHot",
]
FORBIDDEN = {"exec", "compile", "import", "open", "os.system", "subprocess.Popen"}


def pick(values, rng):
    return values[rng.integers(len(values))]


def graphs(graph):
    """A graph and those within its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def changed_tensor(tensor, rng):
    values = numpy_helper.to_array(tensor).copy()
    if values.size:
        flat = values.reshape(-1)
        with np.errstate(all="ignore"):
            number = pick(NUMBERS, rng) if values.dtype == np.int64 else rng.integers(3)
            flat[rng.integers(len(flat))] = number
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def change_graph(model, rng):
    """Another number, operator or input; or a node less."""
    graph = pick([*graphs(model.graph)], rng)
    node = pick(graph.node, rng)
    action = rng.integers(6)
    if action == 0 and model.graph.initializer:
        changed_tensor(pick(model.graph.initializer, rng), rng)
    elif action == 1 and node.attribute:
        attribute = pick(node.attribute, rng)
        if attribute.type == onnx.AttributeProto.TENSOR:
            changed_tensor(attribute.t, rng)
        elif attribute.ints:
            attribute.ints[rng.integers(len(attribute.ints))] = pick(NUMBERS, rng)
        else:
            attribute.i = pick(NUMBERS, rng)
    elif action == 2:
        node.op_type = pick(graph.node, rng).op_type
    elif action == 3 and node.input:
        other = pick(graph.node, rng)
        node.input[rng.integers(len(node.input))] = pick([*other.input, "?"], rng)
    elif action == 4:
        node.op_type = pick(OPERATORS, rng)
    else:
        graph.node.remove(node)


def change_description(model, rng):
    (entry,) = (p for p in model.metadata_props if p.key == "sk_meta")
    content = json.loads(entry.value)
    key = pick([*content], rng)
    if rng.integers(4) == 0:
        del content[key]
    else:
        content[key] = pick([*VALUES, *content.values()], rng)
    return json.dumps(content)


def mutant(data, rng):
    """(bytes, whether the checksum fits)."""
    body, kind = data[:-CHECKSUM], rng.integers(8)
    if kind < 2:
        model = onnx.ModelProto.FromString(body)
        change_graph(model, rng)
        (text,) = (p.value for p in model.metadata_props if p.key == "sk_meta")
        return sealed(model, text), True
    if kind == 2:
        model = onnx.ModelProto.FromString(body)
        return sealed(model, change_description(model, rng)), True
    fits = kind == 3
    changed = bytearray(body if fits else data)
    if rng.integers(3):
        for _ in range(rng.integers(1, 4)):
            changed[rng.integers(len(changed))] = rng.integers(256)
    else:
        start = rng.integers(len(changed))
        del changed[start : start + rng.integers(1, 40)]
    changed = bytes(changed)
    return changed + (checksum_of(changed) if fits else b""), fits


def outputs(data, rows):
    learner = OnnxMetaLearner(data, time_limit=5)
    model = learner.adapt(rows["X"], rows["y"])
    called = getattr(model, "predict_proba", model.predict)
    return called(rows["X_query"])


def try_mutants(data, rows, n, rng, events):
    outcomes, expected = Counter(), outputs(data, rows)
    for _ in range(n):
        changed, fits = mutant(data, rng)
        events.clear()
        try:
            with np.errstate(all="ignore"):
                found = outputs(changed, rows)
        except (ValueError, TimeoutError):
            outcomes["error"] += 1
            continue
        finally:
            assert not events, events
        same = np.array_equal(found, expected)
        assert fits or changed == data, "a changed file was read"
        assert len(found) == len(expected) and found.dtype == np.float64
        outcomes["same" if same else "other"] += 1
    return outcomes


def main(folder, n, seed):
    rng, outcomes, events = np.random.default_rng(seed), Counter(), []
    files = sorted(Path(folder).glob("*.onnx"))
    contents = [(f.read_bytes(), dict(np.load(f.with_suffix(".npz")))) for f in files]
    for data, rows in contents:
        outputs(data, rows)  # whatever is imported late
    sys.addaudithook(lambda name, _: name in FORBIDDEN and events.append(name))
    for data, rows in contents:
        outcomes += try_mutants(data, rows, n // len(files), rng, events)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
