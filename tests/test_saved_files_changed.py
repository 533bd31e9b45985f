"""Saved files that someone changed: errors, or another model, and no code."""

import json
import signal
import sys
import sysconfig

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_meta import (
    ALPaCARegressor,
    MAMLClassifier,
    PrototypicalClassifier,
    PrunedLearner,
    TaskTransformer,
    adapt,
    load,
    save,
)
from sk_meta.saving import _checksum, _header
from sk_meta.tasks import make_sinusoids
from tests.test_saving import assert_same, outputs, small_net, tasks_for


def rewritten(data, change, change_tensors=None):
    """A file whose JSON a function has changed, with a checksum that fits."""
    content = json.loads(_header(data)[0])
    change(content)
    text = json.dumps(content)
    tensors = safetensors.torch.load(data)
    if change_tensors is not None:
        change_tensors(tensors)
    header = {"sk_meta": text, "sha256": _checksum(text, tensors)}
    return safetensors.torch.save(tensors, header)


@pytest.fixture
def saved(tmp_path):
    """The bytes of a saved MAMLClassifier."""
    meta = MAMLClassifier(small_net(), random_state=0)
    save(meta.fit(tasks_for(MAMLClassifier)), tmp_path / "meta")
    return (tmp_path / "meta").read_bytes()


def test_from_a_device_that_is_not_here(saved, tmp_path, monkeypatch):
    def change(content):
        content["model"]["estimator"][2]["net"]["net"]["device"] = "cuda"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "x").write_bytes(rewritten(saved, change))
    with pytest.warns(UserWarning, match="finds no such device"):
        meta = load(tmp_path / "x")
    (tmp_path / "x").write_bytes(saved)
    assert_same(meta, load(tmp_path / "x"), tasks_for(MAMLClassifier))


def test_other_versions_are_a_warning(saved, tmp_path):
    def change(content):
        content["versions"]["torch"] = "1.0"

    (tmp_path / "x").write_bytes(rewritten(saved, change))
    with pytest.warns(UserWarning, match=r"torch 1\.0 \(here \d"):
        load(tmp_path / "x")


HOSTILE = {
    "wide": ("net", "module__hidden", {"tuple": [2**62, 2**62]}, "overflow"),
    "narrow": ("net", "module__hidden", {"tuple": [3]}, "of shape"),
    "more": ("net", "module__hidden", {"tuple": [4, 10**6]}, "not in the file"),
    "deep": ("net", "module__hidden", {"tuple": [4] * 10**5}, "many more layers"),
    "module": ("net", "module", {"class": "os.system"}, "may not stand there"),
    "own": ("net", "module", {"class": "system"}, r"modules=\[system\]"),
    "loss": ("net", "criterion", {"class": "torch.nn.Linear"}, "may not stand"),
    "device": ("net", "device", "meta", "asks for the device"),
    "unknown": ("net", "initialized_", True, "no parameter"),
    "method": ("net", "initialize", 1, "no parameter"),
    "class": ("params", "inner_lr", {"class": "torch.nn.ReLU"}, "may not stand"),
    "steps": ("params", "n_inner_steps", 10**9, "over 10000"),
    "setting": ("params", "first_order", "yes", "first_order"),
    "fast": ("options", "n_adapt_steps", 10**9, "over 10000"),
    "options": ("options", "other", 1, "options"),
}


@pytest.mark.parametrize("which", HOSTILE)
def test_what_a_forged_file_asks_for(which, saved, tmp_path):
    part, name, value, message = HOSTILE[which]

    def change(content):
        _, params, fitted = content["model"]["estimator"]
        if part == "options":
            pairs = fitted["options"]["dict"]
            pairs[:] = [pair for pair in pairs if pair[0] != name] + [[name, value]]
        else:
            of_net = (params["net"], fitted["net"])
            for target in (params,) if part == "params" else (n["net"] for n in of_net):
                target[name] = value

    (tmp_path / "x").write_bytes(rewritten(saved, change))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "x")


def test_what_a_forged_file_asks_for_costs_no_memory(saved, tmp_path):
    """Slimmed layers are smaller than their parameters say: here by a billion."""

    def change(content):
        _, _, fitted = content["model"]["estimator"]
        fitted["net"]["net"]["module__hidden"] = {"tuple": [10**15]}

    (tmp_path / "x").write_bytes(rewritten(saved, change))
    (tmp_path / "y").write_bytes(saved)
    found, meta = load(tmp_path / "x"), load(tmp_path / "y")
    assert_same(found, meta, tasks_for(MAMLClassifier))


def test_a_forged_transformer_gets_no_code_and_no_processes(tmp_path):
    tasks = tasks_for(MAMLClassifier)
    meta = PrototypicalClassifier(small_net(), random_state=0)
    pipe = make_pipeline(TaskTransformer(StandardScaler()), meta).fit(tasks)
    save(pipe, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()

    def forged(change):
        def at_transformer(content):
            pipe = content["model"]["estimator"]
            transformer = pipe[1]["steps"][0]["tuple"][1]["estimator"]
            change(pipe, transformer[2]["transformer_"]["estimator"])

        (tmp_path / "x").write_bytes(rewritten(data, at_transformer))
        with pytest.raises(ValueError, match="Cannot load"):
            load(tmp_path / "x")

    forged(lambda pipe, scaler: scaler.__setitem__(0, "sklearn.svm.SVC"))
    forged(lambda pipe, scaler: scaler[2].update(transform=1))
    forged(lambda pipe, scaler: scaler[2].update(__class__="x"))
    forged(lambda pipe, scaler: pipe[1].update(memory="/tmp"))
    forged(lambda pipe, scaler: pipe[1].update(n_jobs=10**6))


FORBIDDEN = {"exec", "compile", "os.system", "os.exec", "os.posix_spawn", "os.fork"}
FORBIDDEN |= {"subprocess.Popen", "pickle.find_class", "socket.connect", "os.remove"}
INSTALLED = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<frozen")
EVENTS = None  # a list while it is listened


def listen(event, args):
    if EVENTS is None or event not in FORBIDDEN:
        return
    if event == "exec" and args[0].co_filename.startswith(INSTALLED):
        return  # a package that imports the rest of itself
    EVENTS.append((event, args))


sys.addaudithook(listen)

VALUES = [
    None,
    True,
    -1,
    0,
    1,
    3,
    10**9,
    2**70,
    1e308,
    0.5,
    "",
    "x",
    "os.system",
    [],
    {},
]
VALUES += [{"class": "torch.nn.Linear"}, {"class": "Mine"}, {"tuple": [10**9, 10**9]}]
VALUES += [{"float": "nan"}, {"dtype": "float64"}, {"slice": [None, None, None]}]


def nodes(tree):
    """(container, key) of everything inside a piece of JSON."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, child in items:
        yield tree, key
        if isinstance(child, dict | list):
            yield from nodes(child)


def mutate_json(content, rng):
    """Something in it replaced, dropped, or put into the place of something else."""
    places = [*nodes(content)]
    where, key = places[rng.integers(len(places))]
    action = rng.integers(6)
    if action == 0:
        del where[key]
    elif action == 1:
        other, at = places[rng.integers(len(places))]
        where[key] = json.loads(json.dumps(other[at]))
    elif action == 2:
        where[key] = VALUES[rng.integers(len(VALUES))]
    else:  # one that may well be right
        plain = [(w, k) for w, k in places if type(w[k]) in (bool, int, float)]
        where, key = plain[rng.integers(len(plain))]
        where[key] = type(where[key])(where[key] * rng.normal(1, 2) + rng.integers(3))


def mutate_tensors(tensors, rng):
    """A number, of any bits; or another length."""
    name = [*tensors][rng.integers(len(tensors))]
    value = tensors[name]
    if rng.integers(4) == 0:
        tensors[name] = value[1:] if value.ndim else value[None]
    else:
        flat = value.clone().reshape(-1)
        bits = flat.view(torch.uint8)
        if len(bits):
            bits[rng.integers(len(bits))] = int(rng.integers(256))
        tensors[name] = flat.view(value.shape)


def mutant(data, rng):
    """(bytes, whether the checksum was made to fit)."""
    kind = rng.integers(6)
    if kind < 2:
        return rewritten(data, lambda content: mutate_json(content, rng)), True
    if kind == 2:
        same = rewritten(data, lambda content: None, lambda t: mutate_tensors(t, rng))
        return same, True
    changed = bytearray(data)
    if kind < 5:
        for _ in range(rng.integers(1, 4)):
            changed[rng.integers(len(data))] = rng.integers(256)
    else:
        start, stop = np.sort(rng.integers(len(data) + 1, size=2))
        del changed[start:stop]
    return bytes(changed), False


def victims():
    """Saved models, and rows or tasks to try them on."""
    *old, new = tasks_for(MAMLClassifier)
    meta = MAMLClassifier(small_net(), random_state=0)
    pipe = make_pipeline(TaskTransformer(StandardScaler()), clone(meta)).fit(old)
    yield pipe, [new]
    yield adapt(pipe, new.X_support, new.y_support), new.X_query
    net = small_net(module__hidden=(5, 4), module__normalization="batch")
    meta = PrototypicalClassifier(net, random_state=0).fit(old)
    yield PrunedLearner(FrozenEstimator(meta), how="slim", max_epochs=0).fit(old), [new]
    *old, new = make_sinusoids(5, random_state=0)
    meta = ALPaCARegressor(small_net(), random_state=0).fit(old)
    yield meta.adapt(new.X_support, new.y_support), new.X_query


def hung(*_):
    raise KeyboardInterrupt("a mutant hangs")


def try_mutants(n, seed, path):
    global EVENTS
    rng = np.random.default_rng(seed)
    outcomes, before = {"error": 0, "same": 0, "other": 0}, signal.getsignal(14)
    signal.signal(signal.SIGALRM, hung)
    try:
        for model, X in victims():
            save(model, path)
            data, expected = path.read_bytes(), outputs(model, X)
            for _ in range(n // 4):
                changed, fits = mutant(data, rng)
                path.write_bytes(changed)
                signal.alarm(60)
                EVENTS = []
                try:
                    found = load(path)
                except (ValueError, UserWarning):
                    found = None
                events, EVENTS = EVENTS, None
                assert not events
                outcomes[try_out(found, X, expected, fits)] += 1
                signal.alarm(0)
    finally:
        EVENTS = None
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return outcomes


def try_out(found, X, expected, fits):
    """A mutant raises, predicts the same, or, with a checksum, is another model."""
    if found is None:
        return "error"
    try:
        with np.errstate(all="ignore"):
            values = outputs(found, X)
    except Exception:
        assert fits
        return "error"
    same = all(np.array_equal(a, b) for a, b in zip(values, expected, strict=False))
    assert same or fits
    return "same" if same else "other"


def test_mutants(tmp_path):
    outcomes = try_mutants(240, 0, tmp_path / "mutant")
    assert all(outcomes.values()), outcomes


@pytest.mark.slow
def test_a_thousand_mutants(tmp_path):
    outcomes = try_mutants(1_000, 1, tmp_path / "mutant")
    assert all(outcomes.values()), outcomes
