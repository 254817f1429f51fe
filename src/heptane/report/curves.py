"""Charts as inline SVG in the page's own text colour, so that one chart serves light and dark mode."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of the Okabe-Ito palette (safe for colour-blind readers) with contrast 3:1 on white and on near-black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
GOOD, BAD = "#12693a", "#a33407"  # as in the page's style sheet
INK = "#010203"  # placeholder: matplotlib has no currentColor, so _inline replaces this by it
_WIDTH, _HEIGHT = 4.3, 2.55  # inches; about a phone's width, so that text is readable there
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve: its name in the legend, and its points; a value that is not finite leaves a gap."""

    name: str
    x: Sequence[float | None]
    y: Sequence[float | None]

    def points(self) -> tuple[list[float], list[float]]:
        """Both coordinates as floats, NaN where a value is missing."""
        return [_number(value) for value in self.x], [_number(value) for value in self.y]


def line_chart(
    lines: Sequence[Line],
    *,
    ident: str,
    description: str,
    x_label: str,
    percent: bool = False,
    level: float | None = None,
    log: bool = False,
) -> str:
    """Draw curves over a shared x axis of whole numbers.

    Args:
        lines: the curves; one without a finite point is left out.
        ident: prefix of every id in the chart, unique on the page: letters, digits, hyphens.
        description: what the chart shows, for screen readers.
        percent: label values, which are fractions, in percent.
        level: a horizontal line, such as a target.
        log: use a logarithmic y axis; all values must be above 0.

    Returns:
        An ``<svg>`` element, the same for the same input; "" if there is nothing to draw.
    """
    drawn = [line for line in lines if any(map(math.isfinite, line.points()[1]))]
    if not drawn:
        return ""

    def draw(picture: Figure) -> None:
        axes = picture.add_subplot()
        for line, colour, dash in zip(drawn, cycle(COLOURS), cycle(_DASHES), strict=False):
            x, y = line.points()
            few = sum(map(math.isfinite, y)) <= 12
            look: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.8, "markersize": 3.5}
            axes.plot(x, y, label=line.name, marker="o" if few else None, **look)
        if level is not None:
            axes.axhline(level, color=INK, alpha=0.55, linewidth=1, linestyle=(0, (3, 3)), label="target")
        style_axes(axes, x_label, percent)
        if log:
            _logarithmic(axes)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
        if len(drawn) > 1 or level is not None:
            columns = len(drawn) + (level is not None)
            picture.legend(loc="outside upper left", ncols=min(columns, 3), frameon=False, handlelength=2.4)

    from matplotlib.ticker import MaxNLocator

    return draw_svg(draw, ident=ident, description=description)


def draw_svg(draw: Callable[[Figure], None], *, ident: str, description: str, height: float = _HEIGHT) -> str:
    """Render a chart as an ``<svg>`` element in the page's font and text colour.

    Args:
        draw: draws on an empty figure; the colour ``INK`` becomes the page's text colour.
        ident: prefix of every id in the chart, unique on the page.
        description: what it shows, for screen readers.
        height: in inches; the width is 4.3.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with style.context(["default", {**_STYLE, "svg.hashsalt": ident}]):
        picture = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(picture)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        picture.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _inline(stream.getvalue(), ident, description)


def _number(value: float | None) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 300 else (1.0, 3.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}" if value < 10_000 else f"{value:.0e}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def style_axes(axes: Axes, x_label: str, percent: bool) -> None:
    """Style axes sparsely: few ticks, faint grid, no frame."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="y", color=INK, alpha=0.14, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_alpha(0.4)
    axes.tick_params(axis="both", length=0, pad=5)


def _inline(svg: str, ident: str, description: str) -> str:
    """Adapt a stand-alone SVG for inlining: unique ids, the page's font and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<style.*?</style>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(<[^<>]*?(?: id=\"|url\(#|href=\"#))", rf"\g<1>{ident}-", svg).replace(INK, "currentColor")
    for number, colour in enumerate(COLOURS, 1):  # the page defines a light and a dark shade of each
        svg = svg.replace(colour, f"var(--series-{number}, {colour})")
    for name, colour in (("good", GOOD), ("bad", BAD)):
        svg = svg.replace(colour, f"var(--{name}, {colour})")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)  # matplotlib before 3.10 writes the shorthand property
    svg = re.sub(r"font-family: [^;\"]*;? ?| transform=\"rotate\(-0 [^\"]*\"", "", svg)
    svg = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", r"\1", svg, count=1)
    svg = re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", svg, count=1)
    words = html.escape(description)
    return svg.replace("<svg", f'<svg role="img" aria-label="{words}" stroke-linejoin="round"', 1).strip()
