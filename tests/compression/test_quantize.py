"""Quantised learners: smaller files, whose predictions are those of the estimator."""

import copy
import json
import pickle
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import LRScheduler
from torch import nn

from sk_meta import (
    ALPaCARegressor,
    MAMLClassifier,
    PrototypicalClassifier,
    QuantizedLearner,
    R2D2Classifier,
    SelectBest,
    TaskNet,
    TaskTransformer,
    adapt,
    evaluate,
    task_scorer,
)
from sk_meta.compression.rounding import (
    Rounding,
    input_ranges,
    rounded,
    rounded_inputs,
    rounded_weights,
    stored,
)
from sk_meta.networks import Conv4
from sk_meta.onnx import OnnxMetaLearner, quantization, to_onnx
from sk_meta.saving import save
from sk_meta.tasks import Task, make_blob_tasks, make_sinusoids

HOWS = ["int8", "int8_dynamic", "fp16", "int4"]
# Largest deviation of a probability, or of a mean in units of the targets.
NEAR = {"int8": 0.15, "int8_dynamic": 0.15, "fp16": 0.01, "int4": 0.5}
*BLOBS, NEW_BLOB = make_blob_tasks(11, n_classes=3, labels="shared", random_state=0)
BLOBS, NEW_BLOB = (
    [Task(t.X, np.array(list("abc"))[t.y], support=t.support) for t in tasks]
    for tasks in (BLOBS, [NEW_BLOB])
)
NEW_BLOB = NEW_BLOB[0]
*WAVES, NEW_WAVE = make_sinusoids(9, random_state=0)


@pytest.fixture(autouse=True, scope="module")
def each_learner_is_exported_once():
    """Exports take seconds; what is done with them here is new each time."""
    export, found = quantization.export_learner, {}

    def cached(meta, path, X, opset, tolerance):
        state = [
            value.numpy().tobytes() for value in meta.learner_.state_dict().values()
        ]
        key = type(meta), b"".join(state)
        if key not in found:
            found[key] = export(meta, path, X, 21, tolerance).SerializeToString()
        return onnx.ModelProto.FromString(found[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "export_learner", cached)
        yield


def make_net(**options):
    return TaskNet(**{"module__hidden": (40, 40), "max_epochs": 2, **options})


def make_images(n_tasks=4):
    rng = np.random.default_rng(0)
    y = np.tile([0, 1], 4)
    means = rng.normal(size=(2, 1, 16, 16))
    draws = [means[y] + rng.normal(size=(8, 1, 16, 16)) for _ in range(n_tasks)]
    return [Task(X.astype(np.float32), y, support=np.arange(4)) for X in draws]


@cache
def fitted(name):
    net = make_net()
    if name == "conv":
        net = TaskNet(Conv4, module__n_filters=12, max_epochs=2)
        return PrototypicalClassifier(net, random_state=0).fit(make_images())
    made = {
        "prototypes": PrototypicalClassifier(
            make_net(module__normalization="batch"), random_state=0
        ),
        "r2d2": R2D2Classifier(net, random_state=0),
        "alpaca": ALPaCARegressor(net, random_state=0),
        "maml": MAMLClassifier(net, inner_lr=0.05, random_state=0),
    }
    return made[name].fit(tasks_of(name)[0])


def tasks_of(name):
    """Tasks to learn from, and a new one."""
    if name == "conv":
        *old, new = make_images()
        return old, new
    return (WAVES, NEW_WAVE) if name == "alpaca" else (BLOBS, NEW_BLOB)


def quantize(name, how="int8", **options):
    meta = FrozenEstimator(fitted(name))
    return QuantizedLearner(meta, how, **options).fit(tasks_of(name)[0])


def outputs(meta, task):
    adapted = meta.adapt(task.X_support, task.y_support)
    if hasattr(adapted, "predict_proba"):
        return adapted.predict_proba(task.X_query)
    return adapted.predict(task.X_query)


def graph_of(quantized):
    return onnx.ModelProto.FromString(quantized.onnx_model_).graph


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", ["prototypes", "r2d2", "alpaca", "maml", "conv"])
def test_smaller_and_near(name, how, tmp_path):
    meta, (_, new) = fitted(name), tasks_of(name)
    before = copy.deepcopy(meta.learner_.state_dict())
    quantized = quantize(name, how)
    exact = quantization.export_learner(meta, None, None, 20, None)
    assert len(quantized.onnx_model_) < exact.ByteSize()
    np.testing.assert_allclose(
        outputs(quantized, new), outputs(meta, new), atol=NEAR[how]
    )
    path = tmp_path / "learner.onnx"
    path.write_bytes(quantized.onnx_model_)
    of_file = outputs(OnnxMetaLearner(path), new)
    np.testing.assert_array_equal(outputs(quantized, new), of_file)
    for key, value in meta.learner_.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["prototypes", "alpaca"])
def test_tasks_are_predicted_as_the_file_does(name):
    quantized, meta = quantize(name), fitted(name)
    bare = [Task(t.X, t.y) for t in tasks_of(name)[0][:3]]  # support sets are drawn
    for found, exact in zip(
        quantized.predict_tasks(bare), meta.predict_tasks(bare), strict=True
    ):
        np.testing.assert_array_equal(found.support, exact.support)
        np.testing.assert_array_equal(found.query, exact.query)
        rows = found.support
        file, X = OnnxMetaLearner(quantized.onnx_model_), found.task.X[found.query]
        state, classes = file.adapt_state(found.task.X[rows], found.task.y[rows])
        n_classes = 0 if classes is None else len(classes)
        values, std = file.apply_state(state, X, n_classes)
        np.testing.assert_array_equal(found.values, values)
        np.testing.assert_array_equal(found.std, std)
        if name == "prototypes":
            assert found.classes.tolist() == exact.classes.tolist() == list("abc")
        else:
            assert found.std.shape == found.values.shape == exact.values.shape
    assert quantized.score(bare) == pytest.approx(
        evaluate(quantized, bare).scores.mean()
    )
    first = quantized.predict(bare)[0]
    assert len(first) == len(found.query) and hasattr(quantized, "predict_proba") == (
        name == "prototypes"
    )
    if name == "prototypes":
        assert set(first) <= set("abc")
        np.testing.assert_allclose(
            quantized.predict_proba(bare)[0].sum(1), 1, rtol=1e-6
        )


NEW_IMAGE = make_images()[-1]
NEW_BLOB_ROWS = NEW_BLOB.X_support, NEW_BLOB.y_support


def test_rows_do_not_depend_on_each_other():
    adapted = quantize("conv").adapt(NEW_IMAGE.X_support, NEW_IMAGE.y_support)
    together = adapted.predict_proba(NEW_IMAGE.X_query)
    alone = [adapted.predict_proba(row[None])[0] for row in NEW_IMAGE.X_query]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_products_of_images_are_of_integers():
    kinds = [node.op_type for node in graph_of(quantize("conv")).node]
    assert "BatchNormalization" not in kinds and "Relu" not in kinds
    assert kinds.count("Conv") == 8 and kinds.count("QuantizeLinear") >= 10
    kinds = [node.op_type for node in graph_of(quantize("conv", "int8_dynamic")).node]
    assert kinds.count("ConvInteger") == 8 and "Conv" not in kinds


def test_layers_that_take_features_stay_in_float():
    graph = graph_of(quantize("prototypes"))
    takers = [n.op_type for n in graph.node if "X_query" in n.input]
    assert takers == ["Gemm"]


def test_all_weights_of_the_network_are_rounded():
    for how, dtype in (("int8", np.int8), ("fp16", np.float16)):
        arrays = [
            numpy_helper.to_array(c)
            for c in graph_of(quantize("maml", how)).initializer
        ]
        rounded_ = sum(a.size for a in arrays if a.dtype == dtype)
        weights = [p for p in fitted("maml").learner_.module.parameters() if p.ndim > 1]
        assert rounded_ == sum(p.numel() for p in weights)
        assert all(a.size < 100 for a in arrays if a.dtype == np.float32)


def test_it_can_be_written_again_bit_for_bit():
    one, two = quantize("prototypes"), quantize("prototypes")
    assert one.onnx_model_ == two.onnx_model_
    again = pickle.loads(pickle.dumps(one))
    assert again.onnx_model_ == one.onnx_model_
    np.testing.assert_array_equal(outputs(again, NEW_BLOB), outputs(one, NEW_BLOB))
    (text,) = [
        entry.value
        for entry in onnx.ModelProto.FromString(one.onnx_model_).metadata_props
        if entry.key == "sk_meta"
    ]
    assert json.loads(text)["method"] == "PrototypicalClassifier"


def test_to_onnx_writes_the_file_that_it_is(tmp_path):
    quantized, path = quantize("prototypes"), tmp_path / "learner.onnx"
    assert to_onnx(quantized, path).SerializeToString() == quantized.onnx_model_
    np.testing.assert_array_equal(
        outputs(OnnxMetaLearner(path), NEW_BLOB), outputs(quantized, NEW_BLOB)
    )
    with pytest.raises(ValueError, match="Set its own target_opset and fit again"):
        to_onnx(quantized, target_opset=18)
    with pytest.raises(TypeError, match="is an ONNX file already"):
        save(quantized, tmp_path / "learner.safetensors")
    with pytest.raises(TypeError, match="is adapted from a file"):
        to_onnx(quantized.adapt(NEW_BLOB.X_support, NEW_BLOB.y_support))


def test_a_choice_that_is_quantised_is_written_so():
    tasks, _ = tasks_of("prototypes")
    learners = [("fp16", QuantizedLearner(fitted("prototypes"), "fp16"))]
    best = SelectBest(learners, cv=2).fit(tasks)
    written = to_onnx(best).SerializeToString()
    assert written == best.meta_learner_.onnx_model_


def test_pipelines_have_a_file_too():
    tasks, _ = tasks_of("prototypes")
    pipe = make_pipeline(
        TaskTransformer(StandardScaler()),
        QuantizedLearner(fitted("prototypes"), "fp16"),
    ).fit(tasks)
    device = OnnxMetaLearner(to_onnx(pipe).SerializeToString())
    few_shot = adapt(pipe, NEW_BLOB.X_support, NEW_BLOB.y_support)
    found = outputs(device, NEW_BLOB)
    np.testing.assert_allclose(
        found, few_shot.predict_proba(NEW_BLOB.X_query), atol=1e-5
    )


def test_how_is_a_hyperparameter():
    search = GridSearchCV(
        QuantizedLearner(FrozenEstimator(fitted("prototypes"))),
        {"how": HOWS},
        cv=2,
        scoring=task_scorer("balanced_accuracy"),
        error_score="raise",
    ).fit(BLOBS)
    assert search.best_params_["how"] in HOWS
    assert outputs(search.best_estimator_, NEW_BLOB).shape[1] == 3


def test_parameters():
    meta = MAMLClassifier(make_net())
    quantized = QuantizedLearner(meta, "int4", block_size=8, aware_epochs=2)
    copied = clone(quantized.set_params(meta_learner__inner_lr=0.7))
    assert repr(copied) == repr(quantized) and copied.meta_learner.inner_lr == 0.7


# Training with rounded weights.


@pytest.mark.parametrize("name, how", [("conv", "int8"), ("maml", "int4")])
def test_aware_training_leaves_exact_weights(name, how):
    meta = copy.deepcopy(fitted(name))
    before = copy.deepcopy(meta.learner_.state_dict())
    options = {"aware_epochs": 1, "lr": 1e-3}
    quantized = QuantizedLearner(FrozenEstimator(meta), how, **options)
    quantized._train_on(meta, tasks_of(name)[0])
    after, rounding = meta.learner_.state_dict(), quantized._rounding()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert len(meta.history_) == len(fitted(name).history_) + 1
    assert (meta.net_.lr, meta.net_.max_epochs) == (3e-3, 2)
    layer = next(x for x in meta.learner_.modules() if hasattr(x, "weight"))
    assert not torch.equal(rounded(layer.weight, rounding), layer.weight)
    assert not any(x._forward_pre_hooks for x in meta.learner_.modules())


def test_aware_training_and_training_on():
    quantized = quantize("prototypes", aware_epochs=1, random_state=0)
    n_epochs, file = len(quantized.history_), quantized.onnx_model_
    assert n_epochs == len(fitted("prototypes").history_) + 1
    exact = quantized.meta_learner_
    np.testing.assert_allclose(
        outputs(quantized, NEW_BLOB), outputs(exact, NEW_BLOB), atol=NEAR["int8"]
    )
    assert len(quantized.partial_fit(BLOBS).history_) > n_epochs
    assert quantized.onnx_model_ != file and len(exact.history_) == n_epochs


def test_schedules_go_on_in_aware_training():
    schedule = LRScheduler("CosineAnnealingLR", T_max=4)
    net = make_net(callbacks=[schedule])
    meta = PrototypicalClassifier(net, random_state=0).fit(BLOBS)
    quantized = QuantizedLearner(FrozenEstimator(meta), aware_epochs=1)
    quantized._train_on(copied := copy.deepcopy(meta), BLOBS)
    assert len(copied.history_) == 3 and len(meta.history_) == 2


def test_gradients_pass_through_rounding():
    class Net:
        module_ = nn.Sequential(nn.Linear(5, 3))

    net, layer, rounding = Net(), Net.module_[0], Rounding(4)
    net.optimizer_ = torch.optim.SGD([layer.weight], lr=0.1)
    exact, X = layer.weight.detach().clone(), torch.randn(7, 5)
    with rounded_weights(net, rounding):
        assert torch.equal(layer.weight, rounded(exact, rounding))
        layer(X).square().sum().backward()
        gradient = layer.weight.grad.clone()
        net.optimizer_.step()
        torch.testing.assert_close(
            layer.weight, rounded(exact - 0.1 * gradient, rounding)
        )
    torch.testing.assert_close(layer.weight, exact - 0.1 * gradient)
    net.optimizer_.step()  # as before
    torch.testing.assert_close(layer.weight, exact - 0.2 * gradient)


def test_rounded_inputs():
    layer = nn.Linear(2, 1, bias=False)
    X = torch.tensor([[-0.5, 0.3], [0.1, 9.0]], requires_grad=True)
    with rounded_inputs({layer: (-1.0, 1.0)}):
        Z = layer(X)
    inside = torch.tensor([[-0.5, 0.3], [0.1, 1.0]])
    torch.testing.assert_close(Z, layer(inside), atol=0.02, rtol=0)
    Z.sum().backward()
    slopes = layer.weight.detach() * torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(X.grad, slopes)


def test_input_ranges():
    learner = copy.deepcopy(fitted("conv").learner_)
    X = torch.as_tensor(NEW_IMAGE.X)
    ranges = input_ranges(learner, [X[:4], X[4:]])
    first, *others = ranges.values()
    assert len(others) == 3 and all(low == 0 < high for low, high in others)
    assert first == (X.min().item(), X.max().item())
    rows = torch.as_tensor(NEW_BLOB.X, dtype=torch.float32)
    assert (
        len(input_ranges(fitted("prototypes").learner_, [rows])) == 1
    )  # not the first


@pytest.mark.parametrize(
    "bits, block", [(4, 4), (4, 5), (4, None), (7, None), (16, None)]
)
def test_rounding(bits, block):
    weight, rounding = torch.randn(3, 2, 7), Rounding(bits, block)
    once = rounded(weight, rounding)
    assert once.shape == weight.shape and not torch.equal(once, weight)
    torch.testing.assert_close(rounded(once, rounding), once)
    torch.testing.assert_close(rounded(-weight, rounding), -once)
    factor = torch.tensor([2.0, 0.25, 8.0]).view(3, 1, 1)  # of batch normalisation
    torch.testing.assert_close(rounded(weight * factor, rounding), once * factor)
    if bits < 16:
        numbers, scale = stored(weight, rounding)
        assert numbers.abs().max() == 2 ** (bits - 1) - 1
        error = (once - weight).abs().flatten(1).amax(1)
        assert (error <= scale.amax((1, 2)) * 0.51).all()
        assert not rounded(torch.zeros(2, 3), rounding).any()


# Bad input.


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"how": "int2"}, ValueError, "'how'"),
        ({"n_calibration": 0}, ValueError, "'n_calibration'"),
        ({"aware_epochs": -1}, ValueError, "'aware_epochs'"),
        ({"lr": 0.0}, ValueError, "'lr'"),
        ({"block_size": 1}, ValueError, "'block_size'"),
        ({"target_opset": 12}, ValueError, "'target_opset'"),
        ({"how": "int4", "target_opset": 20}, ValueError, "Set target_opset=21"),
        ({"meta_learner": Ridge()}, TypeError, "got Ridge"),
        (
            {"meta_learner": FrozenEstimator(MAMLClassifier())},
            NotFittedError,
            "not fitted",
        ),
    ],
)
def test_bad_parameters_leave_it_as_it_was(options, error, message):
    quantized = quantize("prototypes")
    before = quantized.onnx_model_
    with pytest.raises(error, match=message):
        quantized.set_params(**options).fit(BLOBS)
    assert quantized.onnx_model_ == before


def test_bad_rows_and_tasks():
    quantized = quantize("prototypes")
    with pytest.raises(ValueError, match="sample_weight"):
        quantized.adapt(*NEW_BLOB_ROWS, sample_weight=np.ones(len(NEW_BLOB_ROWS[1])))
    with pytest.raises(ValueError, match="empty"):
        quantized.adapt(NEW_BLOB.X[:0], [])
    with pytest.raises(ValueError, match="feature"):
        quantized.adapt(NEW_BLOB.X_support[:, :2], NEW_BLOB.y_support)
    with pytest.raises(ValueError, match="feature"):
        quantized.fit([Task(t.X[:, :2], t.y) for t in BLOBS])
    with pytest.raises(NotFittedError):
        QuantizedLearner(FrozenEstimator(fitted("maml"))).adapt(*NEW_BLOB_ROWS)
