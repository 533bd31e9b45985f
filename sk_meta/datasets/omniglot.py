"""Omniglot: handwritten characters of 50 alphabets (Lake et al., 2015)."""

import re
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

from sk_meta.datasets.files import SHIPPED, Files, description, open_files
from sk_meta.datasets.images import (
    check_image_size,
    group_and_class,
    only_images,
    pixel_names,
    read_images,
    resize_in_chunks,
)
from sk_meta.tasks.grouping import tasks_from_groups

SIDE = 105  # pixels
N_DRAWERS = 20
SPLITS = {
    "background": ("background",),
    "evaluation": ("evaluation",),
    "all": ("background", "evaluation"),
}


def load_omniglot(path=None, *, split="background", image_size=28, as_tasks=False):
    """Load Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawers each.

    It ships with the package, whole and without loss. Licence: MIT, Copyright (c) 2015
    Brenden Lake. Citation: Lake et al. [1]_.

    Parameters
    ----------
    path : str or Path, default=None
        Your own copy instead: ``images_background.zip``, ``images_evaluation.zip``, a
        folder that holds them, zipped or not, or any images laid out
        alphabet/character/image, dark ink on white. Needs Pillow. `split` picks among
        the two official names; a folder without them is read whole.
    split : {"background", "evaluation", "all"}, default="background"
        The authors' split: 30 alphabets (964 characters), 20 others (659), or both.
    image_size : int, default=28
        Height and width in pixels. The originals have 105; they are resized by
        averaging over areas.
    as_tasks : bool, default=False
        Return a list of tasks, one per alphabet, with local labels.

    Returns
    -------
    Bunch or list of Task
        Bunch with `data` (n, 1, image_size, image_size) float32 in [0, 1], ink = 1;
        `target` (n,), the character, as in "Greek/character03"; `groups` (n,), the
        alphabet; `drawer` (n,), 1 to 20; `feature_names` (of the flattened pixels) and
        `DESCR`. Sorted by alphabet, character and drawer, within each split.

    Raises
    ------
    ImportError
        If `path` is given and Pillow is not installed.
    ValueError
        If `path` lacks the split or holds no images.

    References
    ----------
    .. [1] B. M. Lake, R. Salakhutdinov, J. B. Tenenbaum (2015). Human-level concept
       learning through probabilistic program induction. Science 350(6266), 1332-1338.

    Examples
    --------
    >>> from sk_meta.datasets import load_omniglot
    >>> omniglot = load_omniglot(split="evaluation", image_size=14)
    >>> omniglot.data.shape
    (13180, 1, 14, 14)
    >>> str(omniglot.target[0])
    'Angelic/character01'
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {list(SPLITS)}, got {split!r}.")
    check_image_size(image_size)
    if path is None:
        data, alphabet, character, drawer = _shipped(split, image_size)
    else:
        data, alphabet, character, drawer = _own(path, split, image_size)
    target = np.char.add(np.char.add(alphabet, "/"), character)
    if as_tasks:
        return tasks_from_groups(data, target, alphabet, labels="local")
    return Bunch(
        data=data,
        target=target,
        groups=alphabet,
        drawer=drawer,
        feature_names=pixel_names(image_size),
        DESCR=description("omniglot"),
    )


def _shipped(split, size):
    with np.load(SHIPPED / "omniglot.npz") as archive:
        chosen = np.isin(archive["split"], SPLITS[split])
        packed = archive["images_packed"][chosen]
        packed = packed.reshape(-1, packed.shape[-1])
        alphabet, character = archive["alphabet"][chosen], archive["character"][chosen]

    def unpack(rows):
        bits = np.unpackbits(packed[rows], axis=-1, count=SIDE * SIDE)
        return bits.reshape(-1, SIDE, SIDE)

    return (
        resize_in_chunks(unpack, len(packed), size),
        np.repeat(alphabet, N_DRAWERS),
        np.repeat(character, N_DRAWERS),
        np.tile(np.arange(1, N_DRAWERS + 1), len(alphabet)),
    )


def _own(path, split, size):
    with ExitStack() as stack:
        files = {}
        for source in _sources(Path(path).expanduser()):
            files |= only_images(stack.enter_context(open_files(source)))
        files = _of_split(files, split, path)
        alphabet, character = group_and_class(files)
        data = read_images(files, size, invert=True)
    return data, alphabet, character, _drawers(files, alphabet, character)


def _sources(path: Path) -> list[Path]:
    """The path itself, and the official archives in it that are not unzipped."""
    folders = [path / f"images_{split}" for split in SPLITS["all"]]
    zips = [f.with_suffix(".zip") for f in folders if not f.exists()]
    return [path, *(z for z in zips if z.exists())]


def _of_split(files: Files, split: str, path) -> Files:
    by_split = {
        each: {n: f for n, f in files.items() if f"images_{each}" in n.split("/")}
        for each in SPLITS["all"]
    }
    if not files:
        raise ValueError(f"{path} holds no images; expected alphabet/character/image.")
    if not any(by_split.values()):
        return files
    lacking = [each for each in SPLITS[split] if not by_split[each]]
    if lacking:
        found = next(each for each in by_split if by_split[each])
        raise ValueError(
            f"{path} holds images_{found} but no images_{lacking[0]}, which "
            f"split={split!r} asks for. Pass split={found!r}, or the folder of both."
        )
    return {n: f for each in SPLITS[split] for n, f in by_split[each].items()}


def _drawers(names, alphabet, character) -> np.ndarray:
    """The number that ends a name (0709_01.png), or else the place in the class."""
    seen, drawers = {}, []
    for name, *key in zip(names, alphabet, character, strict=True):
        place = seen[tuple(key)] = seen.get(tuple(key), 0) + 1
        number = re.search(r"_(\d+)\.\w+$", name)
        drawers.append(int(number[1]) if number else place)
    return np.array(drawers)
