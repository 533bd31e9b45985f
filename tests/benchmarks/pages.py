"""Where benchmarks leave their tables."""

from pathlib import Path

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def write_page(name, lines):
    """Print a page of results, and write it to docs/results/<name>.md."""
    page = "\n".join(lines) + "\n"
    print(page)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(page)
