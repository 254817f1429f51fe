"""Curves as inline SVG that take the page's own text colour, so that one picture serves light and dark."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette for colour-blind readers, limited to those with contrast 3:1 on white and on near-black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
GOOD, BAD = "#12693a", "#a33407"  # the page's own, for what helps and what hurts
INK = "#010203"  # matplotlib has no currentColor: everything drawn in this colour becomes it
_WIDTH, _HEIGHT = 4.3, 2.55  # inches; near a phone's width, so that the text is readable there without scaling
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
    """One curve: its name in the legend, and its points; what is not a finite number leaves a gap."""

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
    """Draw curves over a shared horizontal axis of whole numbers.

    Args:
        lines: what to draw; a curve without one finite point is left out.
        ident: prefix of every id in the picture, unique on the page: letters, digits, hyphens.
        description: what the picture shows, for those who do not see it.
        percent: the values are fractions, to be labelled in percent.
        level: a horizontal line, such as a target.
        log: draw values that are all above 0 on a logarithmic axis.

    Returns:
        An ``<svg>`` element, the same for the same input; an empty string when there is nothing to draw.
    """
    drawn = [line for line in lines if any(map(math.isfinite, line.points()[1]))]
    if not drawn:
        return ""

    def draw(picture: Figure) -> None:
        axes = picture.add_subplot()
        for index, line in enumerate(drawn):
            _draw(axes, line, index)
        if level is not None:
            axes.axhline(level, color=INK, alpha=0.55, linewidth=1, linestyle=(0, (3, 3)), label="target")
        dress(axes, x_label, percent)
        if log:
            _logarithmic(axes)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
        if len(drawn) > 1 or level is not None:
            columns = len(drawn) + (level is not None)
            picture.legend(loc="outside upper left", ncols=min(columns, 3), frameon=False, handlelength=2.4)

    from matplotlib.ticker import MaxNLocator

    return draw_svg(draw, ident=ident, description=description)


def draw_svg(draw: Callable[[Figure], None], *, ident: str, description: str, height: float = _HEIGHT) -> str:
    """A picture as an ``<svg>`` element that takes the page's font and text colour.

    Args:
        draw: draws on an empty figure; what is in the colour ``INK`` becomes the page's own.
        ident: prefix of every id in the picture, unique on the page.
        description: what it shows, for those who do not see it.
        height: in inches, beside a width of 4.3.
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


def _draw(axes: Axes, line: Line, index: int) -> None:
    x, y = line.points()
    few = sum(map(math.isfinite, y)) <= 12
    axes.plot(
        x,
        y,
        label=line.name,
        color=COLOURS[index % len(COLOURS)],
        linestyle=_DASHES[index % len(_DASHES)],
        linewidth=1.8,
        marker="o" if few else None,
        markersize=3.5,
    )


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 300 else (1.0, 3.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}" if value < 10_000 else f"{value:.0e}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def dress(axes: Axes, x_label: str, percent: bool) -> None:
    """Axes with as little ink as reading needs."""
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
    """Make a stand-alone SVG file fit to stand beside others in a page: own ids, the page's font and colour."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<style.*?</style>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(<[^<>]*?(?: id=\"|url\(#|href=\"#))", rf"\g<1>{ident}-", svg).replace(INK, "currentColor")
    for number, colour in enumerate(COLOURS, 1):  # the page has a lighter and a darker one of each
        svg = svg.replace(colour, f"var(--series-{number}, {colour})")
    for name, colour in (("good", GOOD), ("bad", BAD)):
        svg = svg.replace(colour, f"var(--{name}, {colour})")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)  # matplotlib before 3.10 writes the shorthand
    svg = re.sub(r"font-family: [^;\"]*;? ?| transform=\"rotate\(-0 [^\"]*\"", "", svg)
    svg = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", r"\1", svg, count=1)
    svg = re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", svg, count=1)
    words = html.escape(description)
    return svg.replace("<svg", f'<svg role="img" aria-label="{words}" stroke-linejoin="round"', 1).strip()
