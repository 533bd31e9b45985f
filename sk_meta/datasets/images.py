"""Images in folders: one folder per group, in it one folder per class."""

from collections.abc import Callable
from io import BytesIO
from pathlib import PurePosixPath

import numpy as np
from sklearn.utils import Bunch

from sk_meta.datasets.files import Files, open_files, optional_import
from sk_meta.tasks.grouping import tasks_from_groups

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff"}

DESCR = """\
Images read from a folder laid out group/class/image. The licence and the citation are
those of whoever made them.
"""


def load_image_folder(
    path,
    *,
    image_size=28,
    color=False,
    invert=False,
    labels="local",
    as_tasks=False,
):
    """Load your own images, laid out group/class/image.

    A group is a task: an alphabet, a machine, a hospital. The licence and the citation
    are those of your images.

    Parameters
    ----------
    path : str or Path
        A folder or a zip archive. The two folders just above an image name its class
        and its group, however deep they lie. Needs Pillow.
    image_size : int, default=28
        Height and width in pixels to which images are resized, by averaging over areas.
    color : bool, default=False
        Three channels (red, green, blue) instead of one (grey).
    invert : bool, default=False
        Turn black into 1 and white into 0.
    labels : {"local", "shared"}, default="local"
        "local": each group has classes of its own, and the target is "group/class".
        "shared": a class means the same in every group, and the target is "class".
    as_tasks : bool, default=False
        Return a list of tasks, one per group.

    Returns
    -------
    Bunch or list of Task
        Bunch with `data` (n, channels, image_size, image_size) float32 in [0, 1],
        `target` (n,), `groups` (n,), `feature_names` (of the flattened pixels),
        `filenames` and `DESCR`. Images are sorted by name.

    Raises
    ------
    ImportError
        If Pillow is not installed.
    ValueError
        If there are no images, or one has no folders that name its group and class.

    Examples
    --------
    >>> from sk_meta.datasets import load_image_folder
    >>> images = load_image_folder("photos")  # doctest: +SKIP
    >>> tasks = load_image_folder("photos.zip", as_tasks=True)  # doctest: +SKIP
    """
    check_image_size(image_size)
    with open_files(path) as files:
        images = only_images(files)
        if not images:
            raise ValueError(
                f"{path} holds no images (looked for {', '.join(sorted(SUFFIXES))})."
            )
        groups, classes = group_and_class(images)
        data = read_images(images, image_size, color=color, invert=invert)
    target = classes
    if labels == "local":
        target = np.array([f"{g}/{c}" for g, c in zip(groups, classes, strict=True)])
    if as_tasks:
        return tasks_from_groups(data, target, groups, labels=labels)
    return Bunch(
        data=data,
        target=target,
        groups=groups,
        feature_names=pixel_names(image_size, channels=data.shape[1]),
        filenames=list(images),
        DESCR=DESCR,
    )


def check_image_size(image_size: int) -> None:
    """Raise unless `image_size` is a positive whole number."""
    if not isinstance(image_size, int | np.integer) or image_size < 1:
        raise ValueError(
            f"image_size must be an int of at least 1, got {image_size!r}."
        )


def only_images(files: Files) -> Files:
    """Keep the files whose name ends like an image's."""
    return {
        name: read
        for name, read in files.items()
        if PurePosixPath(name).suffix.lower() in SUFFIXES
    }


def group_and_class(names) -> tuple[np.ndarray, np.ndarray]:
    """The group and the class of each file name: its two innermost folders."""
    parts = [name.split("/") for name in names]
    stray = [name for name, p in zip(names, parts, strict=True) if len(p) < 3]
    if stray:
        raise ValueError(
            f"{len(stray)} image(s), the first {stray[0]!r}, lie in no folder of a "
            "group and a class. Lay images out group/class/image."
        )
    return np.array([p[-3] for p in parts]), np.array([p[-2] for p in parts])


def read_images(
    files: Files, size: int, *, color: bool = False, invert: bool = False
) -> np.ndarray:
    """Decode and resize images: (n, channels, size, size) float32 in [0, 1]."""
    pillow = optional_import("PIL.Image", "pillow", "Reading images")
    data = np.empty((len(files), 3 if color else 1, size, size), dtype=np.float32)
    for image, read in zip(data, files.values(), strict=True):
        with pillow.open(BytesIO(read())) as file:
            if file.mode.startswith("I"):  # 16-bit grey, which convert would clip
                pixels = np.asarray(file, dtype=np.float32)[None] / 65535
            else:
                pixels = np.asarray(file.convert("RGB" if color else "L"))
                pixels = np.moveaxis(np.atleast_3d(pixels), 2, 0) / np.float32(255)
        image[:] = resize(1 - pixels if invert else pixels, size)
    return data


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resize images by averaging over areas.

    Parameters
    ----------
    images : array of shape (n, height, width)
        Values in [0, 1].
    size : int
        New height and width.

    Returns
    -------
    array of shape (n, size, size), float32
        With the same mean as `images`, up to rounding.
    """
    n, height, width = images.shape
    images = images.astype(np.float32, copy=False)
    if height == width == size:
        return images
    across = images.reshape(-1, width) @ _area_weights(width, size).T
    resized = _area_weights(height, size) @ across.reshape(n, height, size)
    return np.clip(resized, 0, 1, out=resized)


def _area_weights(n_in: int, n_out: int) -> np.ndarray:
    """Share of each old pixel (column) in each new one (row); rows sum to 1."""
    old, new = np.linspace(0, n_out, n_in + 1), np.arange(n_out + 1)[:, None]
    overlap = np.minimum(old[1:], new[1:]) - np.maximum(old[:-1], new[:-1])
    return np.maximum(overlap, 0).astype(np.float32)


def resize_in_chunks(
    read: Callable[[slice], np.ndarray], n: int, size: int, chunk: int = 1024
) -> np.ndarray:
    """Resize `n` images, of which `read(rows)` gives some, holding few at a time."""
    data = np.empty((n, 1, size, size), dtype=np.float32)
    for start in range(0, n, chunk):
        rows = slice(start, start + chunk)
        data[rows, 0] = resize(read(rows), size)
    return data


def pixel_names(size: int, channels: int = 1) -> list[str]:
    """Names of the flattened pixels: pixel_row_column, or red_row_column, and so on."""
    names = ["pixel"] if channels == 1 else ["red", "green", "blue"]
    return [f"{c}_{i}_{j}" for c in names for i in range(size) for j in range(size)]
