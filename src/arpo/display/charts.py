"""Charts of runs as PNG files: one look for reports and comparisons.

Knows lines, bands, stacks and panels. Refuses to know what they show. matplotlib is imported when something is drawn,
on its file-only backend, and nothing of its global state is changed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

COLOURS = (
    "#0b6fb5",
    "#d1571f",
    "#16926b",
    "#8a5fb0",
    "#c9930a",
    "#5c6b7a",
    "#c2457f",
    "#3aa6c9",
)  # told apart also when colour-blind
_INK, _FAINT, _GRID = "#1f2933", "#6b7785", "#e3e7ec"
_SMOOTH_FROM = 40  # points from which a running mean is drawn over the raw line
_LEGEND_ROW = 13.0  # points
_LEGEND_WIDTH = 62  # characters, counting about 5 for each handle
_MARK_UPTO = 25  # points up to which each is marked


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """`x` and `y` have equal lengths; None and NaN leave gaps. `low` and `high` draw an interval around it."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    colour: str = ""
    dashed: bool = False
    light: bool = False  # a line of reference, behind the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes. `stack`: the lines are drawn as bars on top of each other, else as lines."""

    title: str
    lines: Sequence[Line]
    x_label: str = "step"
    y_label: str = ""
    stack: bool = False
    percent: bool = False  # y is a share from 0 to 1
    from_zero: bool = False
    notes: Sequence[tuple[float, str]] = field(default_factory=tuple)  # (y, text): a horizontal line of reference


def draw(path: Path | str, panels: Sequence[Panel], *, columns: int = 2) -> Path | None:
    """Draw `panels` into one PNG. Panels without a finite value are left out; without any panel nothing is written
    (None)."""
    shown = [panel for panel in panels if any(_finite(line.y) for line in panel.lines)]
    if not shown:
        return None
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _write_png(Path(path), shown, min(columns, len(shown)))
    return Path(path)


def _write_png(path: Path, shown: Sequence[Panel], columns: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = math.ceil(len(shown) / columns)
    figure = Figure(
        figsize=((5.4 if columns < 3 else 4.2) * columns, (3.5 if columns < 3 else 2.9) * rows),
        dpi=140,
        layout="constrained",
        facecolor="white",
    )
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr, call-arg]
    for number, panel in enumerate(shown):
        row = shown[number - number % columns :][:columns]
        _draw_panel(figure.add_subplot(rows, columns, number + 1), panel, max(_legend_rows(p) for p in row))
    figure.savefig(path)


def _finite(values: Sequence[float | None]) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v)]


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if v is None else float(v) for v in values]


def _visible(panel: Panel) -> list[Line]:
    return [line for line in panel.lines if _finite(line.y)]


def _legend_columns(panel: Panel) -> int:
    labels = [line.label for line in _visible(panel)]
    if sum(len(label) + 5 for label in labels) <= _LEGEND_WIDTH:
        return len(labels)
    for columns in (3, 2):  # the widest of each column must fit
        rows = math.ceil(len(labels) / columns)
        widths = [
            max((len(label) + 5 for label in labels[c * rows : (c + 1) * rows]), default=0) for c in range(columns)
        ]
        if sum(widths) <= _LEGEND_WIDTH:
            return columns
    return 1


def _legend_rows(panel: Panel) -> int:
    lines = _visible(panel)
    return math.ceil(len(lines) / _legend_columns(panel)) if len(lines) > 1 or panel.stack else 0


def _draw_panel(axes: Any, panel: Panel, header_rows: int) -> None:
    """`header_rows`: the legend rows of the tallest header beside this one, so that titles and axes of a row line
    up."""
    lines = _visible(panel)
    coloured = [(line, line.colour or COLOURS[i % len(COLOURS)]) for i, line in enumerate(lines)]
    if panel.stack:
        _draw_stack(axes, coloured)
    else:
        for line, colour in coloured:
            _draw_line(axes, line, colour)
    for y, text in panel.notes:
        axes.axhline(y, color=_FAINT, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        axes.annotate(
            text,
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 2),
            textcoords="offset points",
            **_small("right"),
        )
    _dress(axes, panel, [x for line in lines for x in line.x])
    if rows := _legend_rows(panel):
        axes.legend(
            loc="upper left", bbox_to_anchor=(-0.01, 1.0), bbox_transform=_raised(axes, _LEGEND_ROW * header_rows + 3),
            ncols=math.ceil(len(lines) / rows), frameon=False, fontsize=8, handlelength=1.4, columnspacing=1.2,
            labelcolor=_INK, borderaxespad=0, borderpad=0, handletextpad=0.5,
        )  # fmt: skip
    axes.set_title(
        panel.title, loc="left", fontsize=10.5, fontweight="bold", color=_INK, pad=8 + _LEGEND_ROW * header_rows
    )


def _raised(axes: Any, points: float) -> Any:
    """The axes' own coordinates, moved up by so many points."""
    from matplotlib.transforms import ScaledTranslation

    return axes.transAxes + ScaledTranslation(0, points / 72, axes.figure.dpi_scale_trans)


def _small(align: str) -> dict[str, Any]:
    return {"ha": align, "va": "bottom", "fontsize": 7.5, "color": _FAINT}


def _draw_line(axes: Any, line: Line, colour: str) -> None:
    x, y = list(line.x), _numbers(line.y)
    style = (0, (4, 2)) if line.dashed else "-"
    width, order = (1.2, 2) if line.light else (1.9, 3)
    if line.low and line.high:
        axes.fill_between(
            x, _numbers(line.low), _numbers(line.high), color=colour, alpha=0.14, linewidth=0, zorder=order - 1
        )
    if len(x) >= _SMOOTH_FROM and not line.low:
        if not line.light:
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.28, zorder=order)
        y = running_mean(y, max(3, len(y) // 15))
    marker = "o" if len(_finite(y)) <= _MARK_UPTO and not line.light else None
    axes.plot(
        x, y, color=colour, linewidth=width, linestyle=style, label=line.label, marker=marker, markersize=3.4,
        markeredgecolor="white", markeredgewidth=0.5, alpha=0.55 if line.light else 1.0, zorder=order,
        solid_capstyle="round",
    )  # fmt: skip


def _draw_stack(axes: Any, coloured: Sequence[tuple[Line, str]]) -> None:
    xs = sorted({x for line, _ in coloured for x in line.x})
    gap = min((b - a for a, b in pairwise(xs)), default=1.0)
    base = dict.fromkeys(xs, 0.0)
    for line, colour in coloured:
        heights = {x: v if v is not None and math.isfinite(v) else 0.0 for x, v in zip(line.x, line.y, strict=True)}
        tops = [heights.get(x, 0.0) for x in xs]
        few = len(xs) <= 60
        width, edge = gap * (0.82 if few else 1.0), (0.6 if few else 0.0)
        bottom = [base[x] for x in xs]
        axes.bar(xs, tops, width, bottom, color=colour, label=line.label, zorder=2, edgecolor="white", linewidth=edge)
        base = {x: base[x] + top for x, top in zip(xs, tops, strict=True)}


def _dress(axes: Any, panel: Panel, xs: Sequence[float]) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.grid(axis="y", color=_GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_FAINT, labelsize=8.5, length=0, pad=4)
    axes.set_xlabel(panel.x_label, fontsize=8.5, color=_FAINT)
    axes.set_ylabel(panel.y_label, fontsize=8.5, color=_FAINT)
    whole = all(float(x).is_integer() for x in xs)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=whole, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    if max(xs, default=0) >= 10_000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if panel.percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
        if not panel.stack:
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, -0.02), min(high, 1.02))
    elif (biggest := max(map(abs, axes.get_ylim()))) >= 10_000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    elif biggest < 1e-3:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
    if panel.stack or panel.from_zero:
        axes.set_ylim(bottom=0)
    if len(set(xs)) == 1:  # a single step: a point in the middle, not at the edge of nothing
        axes.set_xlim(xs[0] - 1, xs[0] + 1)
        axes.set_xticks([xs[0]])
    elif panel.stack:
        axes.margins(x=0.01)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over `window` neighbours (fewer at the ends); NaN where all of them are."""
    half = window // 2
    means = []
    for i in range(len(values)):
        near = _finite(values[max(0, i - half) : i + half + 1])
        means.append(sum(near) / len(near) if near else math.nan)
    return means
