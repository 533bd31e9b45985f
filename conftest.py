"""For doctests too: pictures do not pile up."""

import sys

import pytest


@pytest.fixture(autouse=True)
def close_figures():
    """Close what a test or an example has drawn."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
