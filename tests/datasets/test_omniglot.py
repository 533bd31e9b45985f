import shutil
import sys

import numpy as np
import pytest

from sk_meta.datasets import load_image_folder, load_omniglot
from sk_meta.datasets.files import SHIPPED
from sk_meta.datasets.images import resize


@pytest.fixture(scope="module")
def everything():
    return load_omniglot(split="all", image_size=7)


@pytest.fixture(scope="module")
def bits():
    with np.load(SHIPPED / "omniglot.npz") as archive:
        packed = archive["images_packed"][archive["split"] == "evaluation"][::50]
    images = np.unpackbits(packed.reshape(-1, packed.shape[-1]), axis=-1, count=105**2)
    return images.reshape(-1, 105, 105)


def test_counts(everything):
    assert everything.data.shape == (32460, 1, 7, 7)
    assert everything.data.dtype == np.float32
    characters, counts = np.unique(everything.target, return_counts=True)
    assert len(characters) == 1623 and set(counts) == {20}
    assert len(np.unique(everything.groups)) == 50
    assert np.array_equal(everything.drawer.reshape(-1, 20)[0], np.arange(1, 21))
    assert np.array_equal(
        everything.groups, [target.split("/")[0] for target in everything.target]
    )
    assert "MIT" in everything.DESCR and "Lake" in everything.DESCR
    assert (SHIPPED / "omniglot.LICENSE").exists()


def test_splits_are_disjoint(everything):
    background, evaluation = (
        load_omniglot(split=split, image_size=7)
        for split in ("background", "evaluation")
    )
    assert len(np.unique(background.target)) == 964
    assert len(np.unique(evaluation.target)) == 659
    assert not set(background.groups) & set(evaluation.groups)
    joined = np.concatenate([background.data, evaluation.data])
    assert np.array_equal(joined, everything.data)


def test_full_size_is_lossless(bits):
    data = load_omniglot(split="evaluation", image_size=105).data
    assert data.shape == (13180, 1, 105, 105)
    assert np.array_equal(
        data.reshape(-1, 20, 105, 105)[::50].reshape(bits.shape), bits
    )


@pytest.mark.parametrize("size", [1, 28, 35, 64, 200])
def test_resize_keeps_range_and_mean(bits, size):
    resized = resize(bits, size)
    assert resized.shape == (len(bits), size, size)
    assert resized.min() >= 0 and resized.max() <= 1
    np.testing.assert_allclose(
        resized.mean(axis=(1, 2)), bits.mean(axis=(1, 2)), rtol=1e-4
    )


def test_resize_is_block_mean_where_sizes_divide(bits):
    blocks = bits.reshape(-1, 35, 3, 35, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(resize(bits, 35), blocks, atol=1e-6)
    wide = resize(np.repeat(bits, 2, axis=2), 35)
    np.testing.assert_allclose(wide, blocks, atol=1e-6)


def test_tasks(everything):
    tasks = load_omniglot(split="evaluation", image_size=7, as_tasks=True)
    assert len(tasks) == 20
    assert {task.labels for task in tasks} == {"local"}
    assert sum(map(len, tasks)) == 13180
    for task in tasks:
        assert {label.split("/")[0] for label in task.y} == {task.name}
        assert np.array_equal(task.X, everything.data[everything.groups == task.name])


def test_feature_names_follow_the_flattened_pixels(everything):
    assert len(everything.feature_names) == 49
    assert everything.feature_names[8] == "pixel_1_1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "split must be one of"),
        ({"image_size": 0}, "image_size must be an int"),
        ({"image_size": 28.0}, "image_size must be an int"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        load_omniglot(**options)


@pytest.fixture
def official(tmp_path, bits):
    """Folders like the official ones, of a few characters; returns the pixels, too."""
    Image = pytest.importorskip("PIL.Image")
    names = [
        *(f"images_background/{a}/character0{c}" for a in "AB" for c in (1, 2)),
        *("images_evaluation/C/character01", "images_background_small1/A/character01"),
    ]
    for i, name in enumerate(names):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for drawer in (1, 2):
            ink = bits[2 * i + drawer - 1].astype(bool)
            Image.fromarray(~ink).save(folder / f"000{i}_0{drawer}.png")
    (tmp_path / "images_background" / ".DS_Store").write_bytes(b"no image")
    return tmp_path


def zip_up(folder):
    for name in ("images_background", "images_evaluation", "images_background_small1"):
        shutil.make_archive(folder / name, "zip", folder, name)
        shutil.rmtree(folder / name)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("size", [105, 28])
def test_own_copy_goes_the_same_way(official, bits, zipped, size):
    if zipped:
        zip_up(official)
    own = load_omniglot(official, split="all", image_size=size)
    np.testing.assert_allclose(own.data[:, 0], resize(bits[:10], size), atol=1e-6)
    assert own.target[::2].tolist() == [
        *("A/character01", "A/character02", "B/character01", "B/character02"),
        "C/character01",
    ]
    assert own.drawer.tolist() == [1, 2] * 5
    assert set(own) == set(load_omniglot(split="evaluation", image_size=1))

    evaluation = load_omniglot(official, split="evaluation", image_size=size)
    assert np.array_equal(evaluation.data, own.data[8:])
    one = official / ("images_background.zip" if zipped else "images_background")
    assert np.array_equal(load_omniglot(one, image_size=size).data, own.data[:8])
    tasks = load_omniglot(official, as_tasks=True)
    assert [(task.name, len(task)) for task in tasks] == [("A", 4), ("B", 4)]
    with pytest.raises(ValueError, match="holds images_background but no images_eval"):
        load_omniglot(one, split="evaluation")


def test_other_folder_is_read_whole(official):
    whole = load_omniglot(official / "images_background_small1")
    assert whole.target.tolist() == ["A/character01"] * 2


def test_image_folder(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for group, label, shape in [("g", "sick", (20, 12, 3)), ("h", "well", (8, 8, 3))]:
        (tmp_path / group / label).mkdir(parents=True)
        pixels = rng.integers(256, size=shape, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / group / label / "one.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    colour = load_image_folder(tmp_path, image_size=8, color=True)
    assert colour.data.shape == (2, 3, 8, 8) and len(colour.feature_names) == 192
    exact = np.moveaxis(pixels, 2, 0) / np.float32(255)
    np.testing.assert_allclose(colour.data[1], exact, atol=1e-6)
    assert colour.target.tolist() == ["g/sick", "h/well"]
    grey = load_image_folder(tmp_path, image_size=8, labels="shared")
    assert grey.data.shape == (2, 1, 8, 8)
    assert grey.target.tolist() == ["sick", "well"]
    inverted = load_image_folder(tmp_path, image_size=8, invert=True)
    np.testing.assert_allclose(inverted.data, 1 - grey.data, atol=1e-6)
    tasks = load_image_folder(tmp_path, as_tasks=True, labels="shared")
    assert [(t.name, t.labels) for t in tasks] == [("g", "shared"), ("h", "shared")]


def test_sixteen_bits(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    (tmp_path / "g" / "c").mkdir(parents=True)
    pixels = np.array([[0, 1000], [30000, 65535]], dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "g" / "c" / "one.png")
    data = load_image_folder(tmp_path, image_size=2).data
    np.testing.assert_allclose(data[0, 0], pixels / 65535, atol=1e-6)


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_image_folder(tmp_path / "nowhere")
    for load in (load_image_folder, load_omniglot):
        with pytest.raises(ValueError, match="holds no images"):
            load(tmp_path)
    (tmp_path / "stray.png").write_bytes(b"")
    with pytest.raises(ValueError, match="Lay images out group/class/image"):
        load_image_folder(tmp_path)


def test_without_pillow(tmp_path, monkeypatch):
    (tmp_path / "g" / "c").mkdir(parents=True)
    (tmp_path / "g" / "c" / "one.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match="pip install pillow"):
        load_omniglot(tmp_path)
    assert len(load_omniglot(split="evaluation", image_size=1).data) == 13180
