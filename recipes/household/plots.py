"""The plots of the report, as SVG text."""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from recipes.household.conflicts import by_layer
from recipes.household.figures import Cells, Measured, formed, retention, share, sized
from recipes.household.rows import ALL, ROWS
from recipes.household.tables import Specs

from modalloy.composition.coefficients import SEVERAL

LINES: Mapping[str, tuple[str, str, str]] = {
    "joint": ("#111111", "*", ":"),
    "joint-layers": ("#777777", "*", "-"),
    "damc-layers": ("#b2182b", "D", "-"),
    "damc-presence": ("#d95f02", "o", "-"),
    "damc-uniform": ("#e6ab02", "s", "-"),
    "damc-ties": ("#7570b3", "v", "-"),
    "ties": ("#1b7837", "^", "--"),
    "naive-sum": ("#80b1d3", "P", "--"),
    "naive-mean": ("#2166ac", "X", "--"),
    "connectors": ("#999999", ".", ":"),
}
"""Colour, marker and line of the rows that the plot of inputs shows."""
COLOURS = ("#2166ac", "#1b7837", "#d95f02", "#b2182b")
"""Of the modalities."""
_CAPTIONS: Mapping[str, str] = {
    "inputs": "Accuracy against the number of inputs: nested questions, averaged over the sets of "
    "modalities; bars are 95 % intervals clustered by object, the grey line is chance.",
    "retention": "What each composition keeps of each parent's accuracy on its own questions, with "
    "95 % intervals.",
    "format": "Share of free answers to naming questions that are in the parent's exact form.",
    "coefficients": "Coefficient of each parent's text delta by layer, where several modalities "
    "are present, as learned on validation questions; the grey line is where learning began.",
    "interference": "Interference by layer and projection, averaged over pairs of parents; grey "
    "lines are what unrelated deltas have.",
}
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.fonttype": "none",
    "svg.hashsalt": "household",
    "figure.constrained_layout.use": True,
}


@contextmanager
def _drawing(width: float, height: float, columns: int, rows: int = 1) -> Iterator[tuple[Any, Any]]:
    """Yield a figure of ``width`` x ``height`` inches and its axes ``(rows, columns)``."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        yield figure, figure.subplots(rows, columns, squeeze=False)


def _svg(figure: Any, label: str) -> str:
    """Return a figure as an SVG element that scales with its page."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Of an outer page, so that names in one plot are not taken for another's.
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{label}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _bars(found: Sequence[Measured | None]) -> tuple[list[float], list[list[float]]]:
    """Return values and the lengths of error bars, in percent; gaps where there is nothing."""
    values = [100 * m.interval.value if m else math.nan for m in found]
    low = [100 * (m.interval.value - m.interval.low) if m else math.nan for m in found]
    high = [100 * (m.interval.high - m.interval.value) if m else math.nan for m in found]
    return values, [low, high]


def inputs_plot(cells: Cells) -> str | None:
    """Draw accuracy against the number of inputs; ``None`` where nothing is measured."""
    with _drawing(9.5, 4.2, 2) as (figure, axes):
        drawn = 0
        for axis, kind, sizes in zip(
            axes[0], ("object", "attribute"), ((1, 2, 3, 4), (2, 3, 4)), strict=True
        ):
            for place, (row, (colour, marker, line)) in enumerate(LINES.items()):
                found = [share(cells, row, sized(size, kinds=[kind])) for size in sizes]
                if not any(found):
                    continue
                drawn += 1
                values, errors = _bars(found)
                at = [size + 0.025 * (place - len(LINES) / 2) for size in sizes]
                axis.errorbar(
                    at, values, errors, color=colour, marker=marker, linestyle=line, capsize=2,
                    linewidth=1.4, markersize=5, elinewidth=0.8, label=ROWS[row].title,
                )  # fmt: skip
            axis.axhline(25, color="#bbbbbb", linewidth=0.8)
            axis.set(
                title=f"{kind} questions, noisy inputs", xlabel="inputs, each of another modality",
                ylabel="right, %", xticks=sizes,
            )  # fmt: skip
        handles, labels = axes[0][0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        return _svg(figure, "inputs") if drawn else None


def _grouped(
    figure: Any, axis: Any, rows: Sequence[str], series: Mapping[str, Sequence[Measured | None]]
) -> None:
    """Draw groups of bars: one group for each row, one bar for each series."""
    width = 0.8 / len(series)
    for place, (name, found) in enumerate(series.items()):
        values, errors = _bars(found)
        at = [index + width * (place - (len(series) - 1) / 2) for index in range(len(rows))]
        axis.bar(at, values, width, yerr=errors, color=COLOURS[place % len(COLOURS)], label=name,
                 error_kw={"elinewidth": 0.7, "ecolor": "#333333"})  # fmt: skip
    labels = [ROWS[row].title for row in rows]
    axis.set_xticks(range(len(rows)), labels, rotation=35, ha="right")
    figure.legend(loc="outside upper center", ncols=len(series), frameon=False)


def retention_plot(cells: Cells) -> str | None:
    """Draw what every composition keeps of each parent; ``None`` where nothing is measured."""
    table = {
        name: [found if isinstance(found := retention(cells, name, m), Measured) else None
               for m in ALL]
        for name, row in ROWS.items() if not row.alone
    }  # fmt: skip
    rows = [name for name, found in table.items() if any(found)]
    if not rows:
        return None
    with _drawing(9.5, 4.2, 1) as (figure, axes):
        axis = axes[0][0]
        axis.axhline(100, color="#666666", linewidth=0.8)
        series = {m: [table[row][place] for row in rows] for place, m in enumerate(ALL)}
        _grouped(figure, axis, rows, series)
        axis.set_ylabel("of the parent alone, %")
        return _svg(figure, "retention")


def format_plot(cells: Cells) -> str | None:
    """Draw how often free answers keep their form; ``None`` where nothing is measured."""
    table = {name: [formed(cells, name, f"{m}-mc") for m in ALL]
             for name, row in ROWS.items() if not row.alone}  # fmt: skip
    rows = [name for name, found in table.items() if any(found)]
    if not rows:
        return None
    with _drawing(9.5, 4.2, 1) as (figure, axes):
        series = {m: [table[row][place] for row in rows] for place, m in enumerate(ALL)}
        _grouped(figure, axes[0][0], rows, series)
        axes[0][0].set(ylabel="in the exact form, %", ylim=(0, 105))
        return _svg(figure, "format")


def interference_plot(streams: Mapping[str, Sequence[dict[str, Any]]]) -> str | None:
    """Draw interference by layer and projection; ``None`` where there are no two parents."""
    there = {name: list(records) for name, records in streams.items() if records}
    if not there:
        return None
    colours = mpl.colormaps["tab10"]
    with _drawing(9.5, 5.4, len(there), 2) as (figure, axes):
        for column, (name, records) in enumerate(there.items()):
            kinds = (("cosine", "cosine", 0.0), ("conflict", "sign conflict", 0.5))
            for line, (value, label, neutral) in enumerate(kinds):
                axis = axes[line][column]
                for place, (projection, layers) in enumerate(by_layer(records, value).items()):
                    axis.plot(list(layers), list(layers.values()), color=colours(place),
                              linewidth=1.1, label=projection)  # fmt: skip
                axis.axhline(neutral, color="#999999", linewidth=0.8)
                axis.set(
                    title=name if line == 0 else "", xlabel="layer" if line else "",
                    ylabel="" if column else label,
                )  # fmt: skip
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False)
        return _svg(figure, "interference")


def coefficients_plot(specs: Specs) -> str | None:
    """Draw coefficients by layer; ``None`` where no search found any."""
    rows = [row for spec in specs.values() for row in spec.values()]
    learned = next((r for r in rows if all(isinstance(v, tuple) for v in r.values())), None)
    if learned is None:
        return None
    with _drawing(9.5, 3.4, 1) as (figure, axes):
        axis = axes[0][0]
        axis.axhline(SEVERAL, color="#999999", linewidth=0.8)
        for (name, values), colour in zip(sorted(learned.items()), COLOURS, strict=False):
            axis.plot(values, color=colour, marker="o", markersize=3, linewidth=1.2, label=name)
        axis.set(xlabel="layer", ylabel="coefficient")
        figure.legend(loc="outside upper center", ncols=len(learned), frameon=False)
        return _svg(figure, "coefficients")


def all_plots(
    cells: Cells, streams: Mapping[str, Sequence[dict[str, Any]]], specs: Specs
) -> list[tuple[str, str, str | None]]:
    """Return name, caption and SVG of every plot; no SVG where nothing is measured."""
    return [
        ("inputs", _CAPTIONS["inputs"], inputs_plot(cells)),
        ("retention", _CAPTIONS["retention"], retention_plot(cells)),
        ("format", _CAPTIONS["format"], format_plot(cells)),
        ("coefficients", _CAPTIONS["coefficients"], coefficients_plot(specs)),
        ("interference", _CAPTIONS["interference"], interference_plot(streams)),
    ]
