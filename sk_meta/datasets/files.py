"""Reading files alike from the package, a folder and a zip archive."""

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module, resources
from pathlib import Path

Files = dict[str, Callable[[], bytes]]

SHIPPED = Path(str(resources.files("sk_meta.datasets"))) / "data"


def description(name: str) -> str:
    """The DESCR of a shipped data set."""
    return (SHIPPED / f"{name}.rst").read_text(encoding="utf-8")


@contextmanager
def open_files(path: str | Path) -> Iterator[Files]:
    """Open a folder, a zip archive or a single file.

    Parameters
    ----------
    path : str or Path
        What to open.

    Yields
    ------
    dict
        In sorted order, from each file's name, which begins with the name of the
        folder or archive, to a function that reads it. Hidden files are left out.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    """
    path = Path(path).expanduser().resolve()
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; path must be a file or folder."
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = (m for m in archive.namelist() if not m.endswith("/"))
            yield _visible(
                {f"{path.stem}/{m}": partial(archive.read, m) for m in members}
            )
    else:
        files = (f for f in [path, *path.rglob("*")] if f.is_file())
        yield _visible({_inside(f, path.parent): f.read_bytes for f in files})


def _inside(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _visible(files: Files) -> Files:
    def hidden(name):
        return any(part.startswith((".", "__MACOSX")) for part in name.split("/")[1:])

    return {name: files[name] for name in sorted(files) if not hidden(name)}


def optional_import(module: str, package: str, user: str):
    """Import an optional dependency, or say how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{user} needs {package}, which is not installed. Install it with: "
            f"pip install {package}"
        ) from error
