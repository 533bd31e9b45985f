"""Freed memory that stays with the process while a network is trained."""

import ctypes
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's numbers for mallopt
# Once they are set, glibc leaves them alone: so the most that it would rise to itself.
_MOST_MMAP, _MOST_TRIM = 32 * 2**20, 64 * 2**20


@contextmanager
def kept_memory():
    """Have the C library keep what tensors free, and give it back at the end.

    By default it hands large blocks back to the system at once, and the system clears
    each page before it lends it again; the feature maps of convolutions are such
    blocks. Only with glibc; elsewhere nothing is changed.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, 2**30)
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, _MOST_MMAP)
        library.mallopt(_TRIM_THRESHOLD, _MOST_TRIM)
        library.malloc_trim(0)


def _glibc():
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
    except (AttributeError, OSError, TypeError):
        return None
    return library
