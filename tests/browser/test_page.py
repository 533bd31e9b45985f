"""The page of examples/browser in headless Chromium: `make test-browser`."""

import json
import os
import shutil
import subprocess
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import numpy as np
import pytest

from sk_meta import MAMLClassifier, R2D2Classifier, TaskNet
from sk_meta.onnx import OnnxMetaLearner, to_onnx
from sk_meta.tasks import make_blob_tasks

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "examples" / "browser"
SIDE = 28
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class _Files(SimpleHTTPRequestHandler):
    """Serves files, and remembers what it was asked."""

    def translate_path(self, path):
        return str(self.server.others.get(path) or super().translate_path(path))

    def log_message(self, *_):
        self.server.asked.append((self.command, self.path))


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_Files, directory=PAGE)
    ) as server:
        server.asked, server.others = [], {}
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def browse(server):
    """Carry out steps on a fresh page -> what draw.mjs says."""
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert chromium, "Needs Chromium, as a command of this name."
    assert (PAGE / "node_modules").exists(), "Run npm ci in examples/browser first."
    # Root has no sandbox. Names have no addresses here, but for the loopback.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]

    def run(steps):
        given = {
            "packages": str(PAGE),
            "chromium": chromium,
            "flags": flags,
            "url": f"http://127.0.0.1:{server.server_port}/",
            "steps": steps,
        }
        done = subprocess.run(
            ["node", Path(__file__).with_name("draw.mjs")],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["errors"] == []
        return found

    return run


def _circle():
    angle = np.linspace(0, 2 * np.pi, 25)
    return [np.c_[np.cos(angle), np.sin(angle)]]


def _cross():
    along = np.linspace(-1, 1, 9)
    return [np.c_[along, 0 * along], np.c_[0 * along, along]]


def _zigzag():
    corners = np.array([[-1, -1], [1, -0.5], [-1, 0], [1, 0.5], [-1, 1]])
    parts = [np.linspace(a, b, 6) for a, b in pairwise(corners)]
    return [np.concatenate(parts)]


SHAPES = {"A": _circle, "B": _cross, "C": _zigzag}


def drawn(shape, random):
    """A shape as a hand would draw it: turned, stretched, shaken, anywhere."""
    turn = random.normal(0, 0.12)
    rotation = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    stretch = random.uniform(0.15, 0.3, size=2)
    centre = random.uniform(0.35, 0.65, size=2)
    return [
        (s @ rotation * stretch + centre + random.normal(0, 0.006, s.shape)).tolist()
        for s in shape()
    ]


def taught(random, shapes=SHAPES, n_shot=3, by="draw"):
    """Steps that teach each shape to a row of its own."""
    steps = [["click", "#add"]] * (len(shapes) - 2)
    for row, shape in enumerate(shapes.values()):
        for _ in range(n_shot):
            steps += [[by, drawn(shape, random)], ["teach", row]]
    return steps


def support_set(read):
    """Images (n, 1, 28, 28) and names of all examples on the page."""
    pairs = [(i, sign["name"]) for sign in read["signs"] for i in sign["images"]]
    images, names = zip(*pairs, strict=True)
    return np.float32(images).reshape(-1, 1, SIDE, SIDE), np.array(names)


@pytest.fixture(scope="module")
def learner():
    return OnnxMetaLearner(PAGE / "learner.onnx")


@pytest.mark.parametrize("by", ["draw", "touch"])
def test_a_new_drawing_is_recognised_as_in_python(browse, learner, by):
    random = np.random.default_rng(0)
    steps = taught(random, by=by)
    for shape in SHAPES.values():
        steps += [[by, drawn(shape, random)], ["read", None], ["click", "#clear"]]
    for read, name in zip(browse(steps)["reads"], SHAPES, strict=True):
        assert read["verdict"] == f"This looks like {name}"
        assert [sign["name"] for sign in read["signs"] if sign["best"]] == [name]
        found = [sign["probability"] for sign in read["signs"]]
        assert sum(found) == pytest.approx(1, abs=1e-6)
        few_shot = learner.adapt(*support_set(read))
        query = np.float32(read["seen"]).reshape(1, 1, SIDE, SIDE)
        assert few_shot.classes_.tolist() == list(SHAPES)
        np.testing.assert_allclose(few_shot.predict_proba(query)[0], found, atol=1e-4)


def test_nothing_leaves_the_page(browse, server):
    server.asked.clear()
    steps = [*taught(np.random.default_rng(1)), ["draw", [[[0.2, 0.2], [0.8, 0.8]]]]]
    found = browse([*steps, ["read", None]])
    hosts = {urlsplit(address).hostname for address in found["requests"]}
    assert hosts <= {"127.0.0.1", None}  # None: data: and blob: addresses
    assert {command for command, _ in server.asked} == {"GET"}
    assert not any("?" in path for _, path in server.asked)


def test_images_are_as_omniglot_has_them(browse):
    """Ink is 1, centred, of the same size and pen wherever and however large drawn."""
    line = np.array([[0.0, 0.0], [0.5, 1.0], [1.0, 0.0]])
    places = [line * 0.3 + 0.1, line * 0.6 + 0.2, line * 0.4 + [0.5, 0.4]]
    steps = []
    for place in places:
        steps += [["draw", [place.tolist()]], ["read", None], ["click", "#clear"]]
    images = [np.array(r["seen"]).reshape(SIDE, SIDE) for r in browse(steps)["reads"]]
    for image in images:
        assert image.min() == 0 and 0.9 < image.max() <= 1
        inked = [np.flatnonzero(image.any(axis)) for axis in (0, 1)]
        for inked_lines in inked:
            assert abs(inked_lines[0] + inked_lines[-1] - (SIDE - 1)) <= 1
            assert 17 <= np.ptp(inked_lines) + 1 <= 20
        # The drawing is 1 by 1 after scaling, its line 5 of 105 pixels wide.
        length = 2 * np.hypot(0.5, 1) * 0.6 * SIDE
        assert image.sum() == pytest.approx(length * SIDE * 5 / 105, rel=0.1)
        assert abs(image - images[0]).mean() < 0.02


def test_undo_clear_remove_and_start_over(browse):
    random = np.random.default_rng(2)
    cross = drawn(_cross, random)
    steps = [
        *taught(random, {"A": _circle, "B": _zigzag}, n_shot=2),
        *(["draw", cross[:1]], ["read", None]),
        *(["draw", cross[1:]], ["read", None]),
        *(["click", "#undo"], ["read", None]),
        *(["click", "#clear"], ["read", None]),
        *(["click", ".examples button"], ["read", None]),
        *(["click", "#restart"], ["read", None]),
    ]
    one, two, undone, cleared, removed, anew = browse(steps)["reads"]
    assert undone == one != two
    assert cleared["seen"] is None
    assert [sign["probability"] for sign in cleared["signs"]] == [None, None]
    assert [len(sign["images"]) for sign in removed["signs"]] == [1, 2]
    assert removed["signs"][0]["images"] == cleared["signs"][0]["images"][1:]
    assert [sign["images"] for sign in anew["signs"]] == [[], []]


def test_a_sign_without_examples_takes_no_part(browse, learner):
    """Rows keep their names where a row between them has no drawings."""
    random = np.random.default_rng(3)
    steps = [["click", "#add"], ["type", [".sign:last-child .name", "<b>Ö"]]]
    for row, shape in ((0, _cross), (2, _circle)):
        steps += [["draw", drawn(shape, random)], ["read", None], ["teach", row]]
    steps += [["draw", drawn(_circle, random)], ["read", None]]
    first, second, last = browse(steps)["reads"]
    for read in (first, second):  # one sign is no choice
        assert [sign["probability"] for sign in read["signs"]] == [None] * 3
    assert last["verdict"] == "This looks like <b>Ö"
    found = [sign["probability"] for sign in last["signs"]]
    assert found[1] is None
    few_shot = learner.adapt(*support_set(last))
    query = np.float32(last["seen"]).reshape(1, 1, SIDE, SIDE)
    assert few_shot.classes_.tolist() == ["<b>Ö", "A"]  # in the order of the letters
    expected = few_shot.predict_proba(query)[0]
    np.testing.assert_allclose([found[2], found[0]], expected, atol=1e-4)


@pytest.mark.parametrize("method", [MAMLClassifier, R2D2Classifier])
def test_other_learners_run_too(browse, server, tmp_path, method):
    """An inner loop and a system of equations, on rows that are no images."""
    *old, new = make_blob_tasks(20, n_classes=3, labels="local", random_state=0)
    path = tmp_path / "other.onnx"
    to_onnx(method(TaskNet(max_epochs=2), random_state=0).fit(old), path)
    server.others["/other.onnx"] = path
    support, query = np.float32(new.X_support), np.float32(new.X_query)
    names, labels = np.unique(new.y_support, return_inverse=True)
    rows = [support.tolist(), labels.tolist(), query.tolist()]
    (found,) = browse([["adapt", ["other.onnx", *rows]]])["reads"]
    few_shot = OnnxMetaLearner(path).adapt(support, new.y_support)
    assert few_shot.classes_.tolist() == names.tolist()
    np.testing.assert_allclose(found, few_shot.predict_proba(query), atol=1e-4)
