"""Files of learners that were changed, and what reading one needs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from sk_meta.onnx import OnnxMetaLearner, to_onnx
from sk_meta.onnx.description import MOST_STEPS
from sk_meta.onnx.inspect_file import checksum_of, inspect_file
from tests.onnx.toy_learners import (
    CLASS_MEANS,
    DESCRIPTION,
    LABELS,
    SHARED,
    frame,
    rows,
    sealed,
    toy,
    with_loop,
)

ROOT = Path(__file__).parents[2]


def changed(data, where, byte):
    return data[:where] + bytes([byte]) + data[where + 1 :]


def with_checksum(model):
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return data + checksum_of(data)


def edited(edit, graph=CLASS_MEANS):
    """The toy after a change to its onnx.ModelProto, the checksum made to fit."""
    model = parser.parse_model(graph)
    edit(model)
    return sealed(model, json.dumps(DESCRIPTION))


def outside(tensor):
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    tensor.ClearField("raw_data")
    tensor.ClearField("int64_data")


def in_constant(edit):
    def change(model):
        node = model.graph.node[0]
        node.attribute[0].CopyFrom(
            onnx.helper.make_attribute(
                "value", onnx.numpy_helper.from_array(np.array([0, 1]))
            )
        )
        edit(node.attribute[0].t)

    return change


def add_initializer(model):
    tensor = model.graph.initializer.add(name="weights", data_type=1, dims=[3])
    outside(tensor)


def nest(model):
    graph = model.graph
    for _ in range(40):
        node = graph.node.add(op_type="If", output=["x"])
        attribute = node.attribute.add(name="then_branch")
        attribute.type = onnx.AttributeProto.GRAPH
        graph = attribute.g
        graph.name = "deeper"


EDITS = {
    "external": (add_initializer, "another file"),
    "external in a node": (in_constant(outside), "another file"),
    "shape": (in_constant(lambda t: t.dims.append(2**40)), "other than .* values"),
    "negative": (in_constant(lambda t: t.dims.__setitem__(0, -2)), "other than"),
    "type": (in_constant(lambda t: setattr(t, "data_type", 99)), "unknown type"),
    "domain": (lambda m: m.opset_import.add(domain="evil", version=1), "'evil'"),
    "operator": (lambda m: setattr(m.graph.node[3], "domain", "my.ops"), "'my.ops'"),
    "function": (lambda m: m.functions.add(name="f"), "never written"),
    "training": (lambda m: m.training_info.add(), "never written"),
    "nested": (nest, "nested deeper"),
    "sparse": (lambda m: m.graph.sparse_initializer.add(), "sparse"),
    "no operator": (lambda m: m.graph.node[3].ClearField("op_type"), "onnxruntime"),
    "input": (lambda m: setattr(m.graph.input[0], "name", "X"), "onnxruntime|inputs"),
    "rows": (
        lambda m: m.graph.input[0].type.tensor_type.shape.dim[1].Clear(),
        "rows of shape",
    ),
    "output": (lambda m: m.graph.output.pop(), "outputs|onnxruntime"),
}


@pytest.mark.parametrize("what", EDITS)
def test_graphs_that_are_never_written(what):
    edit, match = EDITS[what]
    with pytest.raises(ValueError, match=match):
        OnnxMetaLearner(edited(edit))


def test_output_of_another_shape():
    graph = CLASS_MEANS.replace("axis = 1>(logits)", "axis = 0>(means)")
    graph = graph.replace("float[n_query, n_classes]", "float[a, b]")
    model = OnnxMetaLearner(toy(graph)).adapt(*rows())
    with pytest.raises(ValueError, match="shape .* expected"):
        model.predict(rows()[0])


def test_files_that_were_changed(tmp_path, prototypes):
    data = toy()
    for where in (0, 40, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match="damaged or changed"):
            OnnxMetaLearner(changed(data, where, data[where] ^ 4))
    for cut in (data[:-1], data[: len(data) // 2], data + b"\0", data[:-84]):
        with pytest.raises(ValueError, match="sk_meta|cut, or changed"):
            OnnxMetaLearner(cut)
    adapted = prototypes.adapt(frame(rows()[0]), LABELS[rows()[1]])
    path = tmp_path / "model.onnx"
    to_onnx(adapted, path, X=frame(rows()[0]).astype("float32"))
    for other in (path, b"", b"no file"):
        with pytest.raises(ValueError, match=r"not written by sk_meta.onnx.to_onnx"):
            OnnxMetaLearner(other)
    with pytest.raises(FileNotFoundError):
        OnnxMetaLearner(tmp_path / "none.onnx")


DESCRIPTIONS = {
    "format": [2, "1", None],
    "method": [None, 3, "x" * 2000],
    "kind": ["clusterer", None, [], "regressor"],
    "labels": ["shared", None, {}],
    "classes": [["a"], [], "abc"],
    "label_kind": ["str", "complex"],
    "most_classes": [0, -1, 2.0, True, 2**70],
    "unlabeled": [[], 1.5, True],
    "n_targets": [1, -1, None],
    "multi_output": [None, 0],
    "row_shape": [[], [0], [-4], ["4"], [3], [2, 2], [2**63], 4],
    "feature_names": [["a"], "abcd", [1, 2, 3, 4]],
    "columns": [
        {"a": "float"},
        {c: "complex" for c in "abcd"},
        [],
        {c: "int" for c in "abcd"},
    ],
    "n_metadata": [1, -1, 10**30, None],
    "metadata_names": [["a"], "a"],
    "n_steps": [3, -1, MOST_STEPS + 1, 10**30, "3", 1.0],
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_descriptions_that_cannot_be(name):
    for value in DESCRIPTIONS[name]:
        with pytest.raises(ValueError, match="Cannot read a learner"):
            OnnxMetaLearner(toy(**{name: value}))
    missing = {key: value for key, value in DESCRIPTION.items() if key != name}
    with pytest.raises(ValueError, match="describe|cannot be"):
        OnnxMetaLearner(sealed(parser.parse_model(CLASS_MEANS), json.dumps(missing)))


@pytest.mark.parametrize(
    "classes, kind",
    [
        (["b", "a"], "str"),
        (["a", "a"], "str"),
        ([0, "a"], "int"),
        ([0, True], "int"),
        ([1, 2], "float"),
        ([2**80], "int"),
        ([[1]], "int"),
    ],
)
def test_classes_that_cannot_be(classes, kind):
    with pytest.raises(ValueError, match="classes are not sorted labels"):
        OnnxMetaLearner(toy(**SHARED | {"classes": classes, "label_kind": kind}))


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 10**5, "[]", "null", '{"format": NaN}']
)
def test_descriptions_that_are_no_json(text):
    with pytest.raises(ValueError, match="descri"):
        OnnxMetaLearner(sealed(parser.parse_model(CLASS_MEANS), text))


def test_file_without_a_description():
    with pytest.raises(ValueError, match="does not describe a learner"):
        OnnxMetaLearner(with_checksum(parser.parse_model(CLASS_MEANS)))


def test_inspection_finds_what_is_in_subgraphs():
    found = inspect_file(parser.parse_model(with_loop()).SerializeToString())
    assert {"Loop", "Add", "Identity", "Softmax"} <= found.operators and found.loops
    assert not inspect_file(parser.parse_model(CLASS_MEANS).SerializeToString()).loops


def test_loop_without_an_end():
    learner = OnnxMetaLearner(toy(with_loop(limit=""), n_steps=3), time_limit=0.3)
    X, y = rows()
    for _ in range(2):
        with pytest.raises(TimeoutError, match=r"within 0.3 seconds"):
            learner.adapt(X, y).predict(X)


def test_huge_allocation():
    """Of more than the machine's memory; half of it is the limit."""
    graph = CLASS_MEANS.replace(
        "turned = ",
        "size = Constant<value_ints = [4398046511104]>()\n"
        "last_one = Cast<to = 7>(last)\n flat = Reshape(last_one, axis_1)\n"
        "more = Add(size, flat)\n huge = ConstantOfShape(more)\n"
        "huge_sum = ReduceSum<keepdims = 0>(huge)\n turned = ",
    ).replace("Neg(distance)", "Sub(huge_sum, distance)")
    X, y = rows()
    with pytest.raises(ValueError, match="onnxruntime cannot run"):
        OnnxMetaLearner(toy(graph)).adapt(X, y).predict(X)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, from_maml, from_alpaca):
    """Files with rows to try them on."""
    folder, (X, y) = tmp_path_factory.mktemp("mutants"), rows()
    files = {
        "maml": (from_maml._data, y),
        "alpaca": (from_alpaca._data, X[:, :2]),
        "toy": (toy(with_loop(), n_steps=3), y),
    }
    for name, (data, y) in files.items():
        (folder / f"{name}.onnx").write_bytes(data)
        np.savez(folder / f"{name}.npz", X=X, y=y, X_query=X[:5])
    return folder


@pytest.mark.parametrize(
    "n, seed", [(150, 0), pytest.param(1000, 1, marks=pytest.mark.slow)]
)
def test_mutants(folder, n, seed):
    """Each raises, or predicts, and the process lives on."""
    code = ["-m", "tests.onnx.learner_mutants", str(folder), str(n), str(seed)]
    ran = subprocess.run(
        [sys.executable, *code], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    outcomes = json.loads(ran.stdout)
    assert sum(outcomes.values()) == n // 3 * 3
    assert outcomes["error"] > n // 2


def test_without_torch(folder):
    """In a process that can import none of what is not needed."""
    code = f"""
import sys
blocked = {{"torch", "skorch", "onnx", "onnxscript", "skl2onnx"}}
class Blocks:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocks())
import numpy as np
from sk_meta.onnx import OnnxMetaLearner
given = np.load({str(folder / "maml.npz")!r})
learner = OnnxMetaLearner({str(folder / "maml.onnx")!r})
model = learner.adapt(given["X"], given["y"])
print(model.predict_proba(given["X_query"]).tolist())
assert not blocked & {{name.partition(".")[0] for name in sys.modules}}
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert ran.returncode == 0, ran.stderr
    given = np.load(folder / "maml.npz")
    model = OnnxMetaLearner(folder / "maml.onnx").adapt(given["X"], given["y"])
    np.testing.assert_array_equal(
        json.loads(ran.stdout), model.predict_proba(given["X_query"])
    )


def test_import_says_what_is_missing():
    code = """
import sys
from importlib import util
sys.modules["onnxruntime"] = None
found = util.find_spec
util.find_spec = lambda name: None if name == "onnxruntime" else found(name)
from sk_meta.onnx import OnnxMetaLearner
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert "pip install onnxruntime" in ran.stderr


def test_registration_with_skl2onnx():
    """On its own; other tests have imported to_onnx, which does the same."""
    code = """
import numpy as np, skl2onnx, sk_meta.onnx
from sk_meta import FewShotClassifier
sk_meta.onnx.register()
model = FewShotClassifier().fit([[0.0], [1.0]], ["low", "high"])
skl2onnx.to_onnx(model, np.zeros((1, 1), np.float32))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
