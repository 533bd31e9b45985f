"""All methods against all tables, in one: where each stands.

    python tests/benchmarks/summary.py

Reads the pages of docs/results that other benchmarks wrote, trains nothing, and writes
docs/results/summary.md. A row is a method, classifier and regressor together.
"""

import re

from pages import RESULTS, table, write_page

# Page, column, how the column is called here, and whether larger is better.
TABLES = {
    "omniglot": ("5-way", "Omniglot, 5-way 1-shot, %", True),
    "heart_methods": ("balanced accuracy", "heart disease, balanced accuracy", True),
    "sinusoids": ("600 new tasks", "sinusoids, squared error", False),
    "gp_draws": ("log likelihood of a query row", "GP draws, log likelihood", True),
    "forecast_first": ("K = 10", "Parkinson's, K = 10, error", False),
}
ALIASES = {
    "attentive neural process": "AttentiveNeuralProcess",
    "conditional neural process": "ConditionalNeuralProcess",
    "hypernetwork": "Hypernetwork",
    "in-context": "InContext",
    "joint training, fine-tuned": "Joint",
    "Meta-SGD": "MetaSGD",
    "iMAML": "IMAML",
    "JointClassifier, fine-tuned": "Joint",
    "ANILClassifier, head from prototypes": "ANIL",
    "MAMLClassifier, no convolutions": "MAML",
}
SKIPPED = {"joint training", "JointClassifier, support rows ignored"}


def first_table(name, column):
    """{name of a row: text of a column} of the first table of a page that has it."""
    header, found = None, {}
    for line in (RESULTS / f"{name}.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            if found:
                break
            header = None
        elif header is None:
            header = cells
        elif column in header and not set(line) <= set("|- "):
            found[cells[0]] = cells[header.index(column)]
    return found


def method_of(name):
    """What classifier and regressor of a method have in common; None for others."""
    if name in SKIPPED:
        return None
    name = ALIASES.get(name, name)
    name = re.sub(r"(Classifier|Regressor)$", "", name)
    return name if re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) else None


def ranked(cells, larger):
    """{method: "value (rank)"} and the number of methods."""
    values = {}
    for name, text in cells.items():
        method = method_of(name)
        if method is not None:
            values[method] = float(text.split("±")[0])
    order = sorted(values, key=values.get, reverse=larger)
    return {
        method: (text_of(cells, method), 1 + order.index(method)) for method in order
    }, len(order)


def text_of(cells, method):
    """The figure of a method, without its interval."""
    return next(t for n, t in cells.items() if method_of(n) == method).split("±")[0]


def main():
    """Write the page."""
    columns, ranks = [], {}
    for page, (column, label, larger) in TABLES.items():
        found, n = ranked(first_table(page, column), larger)
        columns.append((f"{label} ({n})", found))
        for method, (_, rank) in found.items():
            ranks.setdefault(method, []).append((rank - 1) / max(n - 1, 1))
    rows = []
    for method in sorted(ranks, key=lambda m: sum(ranks[m]) / len(ranks[m])):
        cells = [
            f"{t.strip()} ({r})"
            for t, r in (f.get(method, ("", 0)) for _, f in columns)
        ]
        mean = sum(ranks[method]) / len(ranks[method])
        rows.append(
            [method, f"{mean:.2f}", *(c if c != " (0)" else "–" for c in cells)]
        )
    header = ["", "mean place", *(label for label, _ in columns)]
    write_page(
        "summary",
        [
            "# Where each method stands",
            "",
            "`python tests/benchmarks/summary.py`",
            "",
            "The figures of the other pages side by side; in brackets the place among "
            "as many methods as the heading says. Mean place: 0 is first, 1 is last, "
            "averaged over the tables that a method is in. The protocols are those of "
            "the pages; on Omniglot iterations differ, on the forecast ALPaCA and DKT "
            "had their settings chosen and the others had not. A place says less than "
            "it seems where figures are within their intervals: see the pages.",
            "",
            *table(header, rows),
        ],
    )


if __name__ == "__main__":
    main()
