"""Where benchmarks leave their tables."""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def write_page(name, lines):
    """Print a page of results, and write it to docs/results/<name>.md."""
    page = "\n".join(lines) + "\n"
    print(page)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(page)


def keep_row(name, key, row):
    """Put a row among those of docs/results/<name>.json; returns all, by key."""
    path = RESULTS / f"{name}.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    rows = dict(sorted({**rows, key: row}.items()))
    path.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def table(header, rows):
    """Lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]
