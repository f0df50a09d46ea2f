"""A picture of the dashboard from a Prometheus, for documents: the same panels, expressions, units and places."""

from __future__ import annotations

import io
import math
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter
from PIL import Image

from deploy.grafana.dashboard import COLUMNS, dashboard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

mpl.use("Agg")

Json = dict[str, Any]
Curve = tuple[dict[str, str], list[tuple[float, float]]]
"""Labels, and pairs of time and value."""
if TYPE_CHECKING:
    Ask = Callable[[str, float, float, float], list[Curve]]
    """Answers an expression from start to end, with a value each step; all in seconds."""

CELL_INCHES = 0.85, 0.34
BACKGROUND, SURFACE, TEXT, FAINT, RED, GREEN = "#111217", "#181b1f", "#ccccdc", "#33363d", "#f2495c", "#73bf69"
COLOURS = (
    *("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0", "#37872d", "#fade2a"),
    *("#447ebc", "#c15c17", "#890f02", "#0a437c", "#6d1f62", "#584477"),
)
LEGEND_ENTRIES = 6
STEPS = 240
PALETTE = 64
SHORT = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
SMALL = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


class Span(NamedTuple):
    """What the picture is of, Unix seconds."""

    start: float
    end: float
    rate_seconds: float
    """What $__rate_interval stands for."""


def draw(path: Path, ask: Ask, span: Span, rows: Sequence[str]) -> None:
    """Draw these rows of the dashboard into a file."""
    panels = list(_of_rows(dashboard()["panels"], rows))
    top = min(panel["gridPos"]["y"] for panel in panels)
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) - top
    plt.rcParams.update({"font.size": 7, "text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": FAINT})
    figure = plt.figure(figsize=(COLUMNS * CELL_INCHES[0], height * CELL_INCHES[1]), facecolor=BACKGROUND)
    for panel in panels:
        place = panel["gridPos"]
        left, bottom = place["x"] / COLUMNS, 1 - (place["y"] - top + place["h"]) / height
        box = (left, bottom, place["w"] / COLUMNS, place["h"] / height)
        if panel["type"] == "row":
            figure.text(box[0] + 0.004, box[1] + box[3] / 2, panel["title"], fontsize=10, va="center", weight="bold")
        else:
            _panel(figure.add_axes(_inner(box, height)), panel, list(_curves(panel, ask, span)), span)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80, facecolor=BACKGROUND)
    plt.close(figure)
    # A fifth of the size, for a repository.
    Image.open(drawn).convert("RGB").quantize(PALETTE).save(path, optimize=True)


def _of_rows(panels: Iterable[Json], wanted: Sequence[str]) -> Iterable[Json]:
    shown = False
    for panel in panels:
        if panel["type"] == "row":
            shown = panel["title"] in wanted
        if shown:
            yield panel


def _inner(box: tuple[float, float, float, float], height: int) -> tuple[float, float, float, float]:
    """Room for the title above, and the legend below."""
    left, bottom, wide, high = box
    return left + 0.028, bottom + 1.2 / height, wide - 0.034, high - 2.2 / height


def _curves(panel: Json, ask: Ask, span: Span) -> Iterable[Curve]:
    """Every series of every target, under the name that its legend gives it."""
    step = (span.end - span.start) / STEPS
    for target in panel["targets"]:
        for labels, values in ask(chosen(target["expr"], span.rate_seconds), span.start, span.end, step):
            name = re.sub(r"{{(\w+)}}", r"{0[\1]}", target["legendFormat"]).format(defaultdict(str, labels))
            yield {"name": " ".join(name.split())}, [one for one in values if math.isfinite(one[1])]


def chosen(expression: str, rate_seconds: float) -> str:
    """The expression with all variables of the dashboard filled in."""
    filled = expression.replace("$__rate_interval", f"{rate_seconds:.0f}s")
    return filled.replace("$job", ".+").replace("$instance", ".+")


def _panel(axes: Axes, panel: Json, curves: list[Curve], span: Span) -> None:
    axes.set_facecolor(SURFACE)
    axes.set_title(panel["title"], loc="left", fontsize=8, color=TEXT)
    field = panel["fieldConfig"]["defaults"]
    limits = [step["value"] for step in field["thresholds"]["steps"] if step["value"] is not None]
    if panel["type"] == "stat":
        _number(axes, curves, field["unit"], limits)
        return
    axes.grid(color=FAINT, linewidth=0.4)
    axes.tick_params(colors=TEXT, length=0)
    axes.set_xlim(0, span.end - span.start)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:.0f} s"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: worded(value, field["unit"])))
    if not curves:
        axes.text(0.5, 0.5, "No data", transform=axes.transAxes, ha="center", va="center", color=TEXT)
        return
    curves.sort(key=lambda curve: -max((value for _, value in curve[1]), default=0.0))
    if field["custom"]["stacking"]["mode"] == "normal":
        _stack(axes, curves, span)
    else:
        _lines(axes, curves, span)
    axes.set_ylim(bottom=0)
    if limits and axes.get_ylim()[1] > limits[0]:
        axes.axhline(limits[0], color=RED, linewidth=0.6, linestyle="--")
    named = axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.09),
        ncols=3,
        fontsize=5.5,
        frameon=False,
        handlelength=1,
        columnspacing=1,
        labelspacing=0.2,
    )
    for text in named.get_texts():
        text.set_color(TEXT)


def _number(axes: Axes, curves: list[Curve], unit: str, limits: list[float]) -> None:
    """The newest value, large; its course behind it."""
    axes.set_axis_off()
    values = [value for _, values in curves[:1] for _, value in values]
    if not values:
        axes.text(0.5, 0.5, "No data", ha="center", va="center", fontsize=14, color=TEXT)
        return
    colour = RED if limits and values[-1] >= limits[0] else GREEN
    axes.fill_between(range(len(values)), values, color=colour, alpha=0.25)
    axes.set_ylim(bottom=0)
    axes.text(
        0.5,
        0.55,
        worded(values[-1], unit),
        transform=axes.transAxes,
        ha="center",
        va="center",
        fontsize=20,
        color=colour,
    )


def _lines(axes: Axes, curves: list[Curve], span: Span) -> None:
    for number, (labels, values) in enumerate(curves):
        label = labels["name"] if number < LEGEND_ENTRIES else None
        axes.plot(
            [at - span.start for at, _ in values],
            [value for _, value in values],
            color=COLOURS[number % len(COLOURS)],
            linewidth=1,
            label=label,
        )


def _stack(axes: Axes, curves: list[Curve], span: Span) -> None:
    """Filled on top of each other; where a series has no value it is nothing."""
    times = sorted({at for _, values in curves for at, _ in values})
    below = [0.0] * len(times)
    for number, (labels, values) in enumerate(curves):
        known = dict(values)
        above = [floor + known.get(at, 0.0) for at, floor in zip(times, below, strict=True)]
        colour, label = COLOURS[number % len(COLOURS)], labels["name"] if number < LEGEND_ENTRIES else None
        seconds = [at - span.start for at in times]
        axes.fill_between(seconds, below, above, color=colour, alpha=0.45, linewidth=0)
        axes.plot(seconds, above, color=colour, linewidth=0.8, label=label)
        below = above


def worded(value: float, unit: str) -> str:
    """A number as Grafana shows it in this unit."""
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    if unit == "s":
        size, name = next(((size, name) for size, name in SMALL if abs(value) >= size), SMALL[-1])
        return f"{value / size:.3g} {name}" if value else "0 s"
    if unit == "bytes":
        return f"{value / (1 << 20):.3g} MiB"
    size, name = next(((size, name) for size, name in SHORT if abs(value) >= size), (1.0, ""))
    return f"{value / size:.3g}{name}{ {'reqps': ' req/s', 'pps': ' p/s'}.get(unit, '') }"
