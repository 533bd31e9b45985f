"""The page of the engine's figures, and their plot."""

from typing import NamedTuple


class Line(NamedTuple):
    """One figure of the table.

    `value` is held against `asked`: at least that, or `at_most`. `ours` and `other`
    are what it was computed from, in `unit`; `who` is the other side. `right` is False
    where our first loss or gradient is not the exact one.
    """

    row: str
    title: str
    value: float | None
    asked: float
    unit: str
    ours: float | None
    other: float | None
    who: str
    at_most: bool = False
    right: bool = True

    @property
    def met(self):
        """How far the figure meets what was asked: 1 or more where it does."""
        if self.value is None:
            return None
        return (
            self.asked / max(self.value, 1e-9)
            if self.at_most
            else (self.value / self.asked)
        )


def page(run, versions, command, plot):
    """Lines of the page."""
    here = [f"{name} {found}" for name, found in versions.items() if found]
    away = [name for name, found in versions.items() if not found]
    clocks = "processor time on one thread, wall time on two"
    if run.device != "cpu":
        clocks = "wall time, on a GPU"
    lines = [
        "# The engine: speed and memory",
        "",
        f"`python tests/benchmarks/engine.py {command}`",
        "",
        f"Medians of {run.repeats} repeats, all sides taking turns, per "
        f"meta-iteration; {clocks}. Ours is the whole `fit` "
        "(validation, stacking, drawing, history) divided by its meta-iterations; the "
        "peers get the same tasks as tensors, stacked beforehand, and the same initial "
        "weights. Compiled: after the first epoch. The networks are ordinary modules "
        "(`peer_networks.py`); each peer is used as in its own examples "
        "(`peer_steps.py`). The machine is shared, so the ratios are what counts.",
        "",
        f"Peers' environment: {', '.join(here)}. Not importable there, so not timed: "
        f"{', '.join(away) or 'none'}. (The published learn2learn does not build on "
        "Python 3.11 and newer, the published torchmeta asks for torch below 1.10.)",
        "",
        "| | ours | the other | ratio | asked | |",
        "|---|---|---|---|---|---|",
    ]
    lines += map(_table_row, run.lines)
    lines += [
        "",
        "The ratio is to the fastest of the peers that are right: first loss within "
        "1e-5 of the same step in float64, and gradient within 1e-3 (where rounding "
        "grows, twice the plain loop's distance). *Inexact* says that ours is not. "
        "Where the figure asked for is a maximum (≤), the ratio is ours by the other. "
        "The drawing of episodes has a command of its own, `data_path.py`.",
        "",
        f"![]({plot})",
        "",
        "## Every side",
        "",
        "Relative distance of the first loss and of the first gradient (by norms) "
        "from the same step in float64. *loop* is plain torch, task by task; *vmap* is "
        "torch.func by hand, no package's way, so not a peer; *joint* and *separate* "
        "are prototypes as learn2learn and easyfsl write them, the latter with other "
        "distances and statistics, so held against itself. Rows in bfloat16 are as "
        "far off as that precision is.",
        "",
        "| | side | ms (memory: MB) | loss | gradient |",
        "|---|---|---|---|---|",
    ]
    for title, side, value, check in run.contenders:
        off = f"{check[0]:.0e} | {check[1]:.0e}" if check else " | "
        lines.append(f"| {title} | {side} | {_short(value)} | {off} |")
    lines += [
        "",
        "Memory is the peak of what torch held during a meta-step above what it held "
        "before, by every allocation and release that torch's profiler reports.",
    ]
    for axis, (values, times) in run.curves.items():
        lines += [
            "",
            f"## Growth with {axis}",
            "",
            f"| {axis} | sk_meta, ms | loop, ms |",
        ]
        lines.append("|---|---|---|")
        for value, *row in zip(values, times["sk_meta"], times["loop"], strict=True):
            lines.append(f"| {value} | {' | '.join(map(_short, row))} |")
    if run.missing:
        lines += ["", "## Not measured", ""]
        lines += [f"- {name}: {reason}" for name, reason in run.missing]
    return lines


def _table_row(line):
    ours, other = (_short(value, line.unit) for value in (line.ours, line.other))
    value = "–" if line.value is None else f"{line.value:.2f}"
    sign = "≤" if line.at_most else "≥"
    met = {None: "not measured", True: "", False: "**missed**"}
    verdict = met[None if line.met is None else line.met >= 1]
    if not line.right:
        verdict = " ".join(filter(None, (verdict, "**inexact**")))
    return (
        f"| {line.title} | {ours} | {other} ({line.who}) | "
        f"{value} | {sign} {line.asked:.3g} | {verdict} |"
    )


def _short(value, unit=""):
    return (
        "–"
        if value is None
        else f"{value:{'.0f' if value >= 100 else '.3g'}} {unit}".strip()
    )


def draw(run, path):
    """Bars of every figure by what was asked, and the curves of growth."""
    from matplotlib import pyplot

    shown = [line for line in run.lines if line.met is not None][::-1]
    figure = pyplot.figure(figsize=(12, 2 + 0.32 * len(shown)), layout="constrained")
    grid = figure.add_gridspec(max(len(run.curves), 1), 2, width_ratios=(3, 2))
    bars = figure.add_subplot(grid[:, 0])
    reached = [min(line.met, 10) for line in shown]
    colors = ["tab:blue" if value >= 1 else "tab:orange" for value in reached]
    bars.barh([line.title for line in shown], reached, color=colors)
    bars.bar_label(
        bars.containers[0],
        [
            f"{line.value:.2f} ({'≤' if line.at_most else '≥'} {line.asked:.3g})"
            for line in shown
        ],
        padding=3,
    )
    bars.axvline(1, color="black", linewidth=1)
    bars.set(
        xlabel="reached, by what was asked", xlim=(0, 1.4 * max(reached, default=1))
    )
    for position, (axis, (values, times)) in enumerate(run.curves.items()):
        axes = figure.add_subplot(grid[position, 1])
        for side, found in times.items():
            axes.loglog(values, found, "o-", label=side)
        start = times["sk_meta"][0]
        linear = [start * value / values[0] for value in values]
        axes.loglog(values, linear, ":", color="gray", label="linear")
        axes.set(xlabel=axis, ylabel="ms a meta-iteration")
        axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
