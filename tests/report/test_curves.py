"""Curves: self-contained SVG in the page's own colour."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import heptane.report
from heptane.report.curves import COLOURS, Line, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def chart(*lines: Line, **settings: Any) -> str:
    return line_chart(lines, **{"ident": "acc", "description": "what it shows", "x_label": "epoch", **settings})


def line(*y: float | None, name: str = "training") -> Line:
    return Line(name=name, x=list(range(1, len(y) + 1)), y=list(y))


def words(svg: str) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ET.fromstring(svg).iter(f"{SVG}text")]


def contrast(colour: str, ground: str) -> float:
    def luminance(code: str) -> float:
        parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(colour), luminance(ground)))
    return (high + 0.05) / (low + 0.05)


def test_nothing_to_draw_is_an_empty_string() -> None:
    assert chart() == ""
    assert chart(line(), line(None, math.nan, math.inf)) == ""


def test_one_curve_has_no_legend_and_several_have() -> None:
    assert "training" not in words(chart(line(0.1, 0.2)))
    two = words(chart(line(0.1, 0.2), line(0.3, 0.1, name="validation")))
    assert {"training", "validation", "epoch"} <= set(two)


def test_a_curve_without_a_point_is_not_in_the_legend() -> None:
    assert "validation" not in words(chart(line(0.1, 0.2), line(None, None, name="validation")))


def test_a_level_is_drawn_and_named() -> None:
    assert "target" in words(chart(line(0.1, 0.2), level=0.15))


def test_fractions_are_labelled_in_percent() -> None:
    assert any(word.endswith("%") for word in words(chart(line(0.1, 0.9), percent=True)))
    assert not any("%" in word for word in words(chart(line(0.1, 0.9))))


def test_a_missing_value_leaves_a_gap() -> None:
    def moves(svg: str) -> int:
        return sum(
            path.count("M")
            for path in re.findall(rf'd="([^"]*)"[^>]*stroke: var\(--series-1, {COLOURS[0]}', svg.replace("\n", " "))
        )

    many = [float(i % 3) for i in range(20)]
    gap = [*many[:9], None, *many[10:]]
    assert moves(chart(line(*gap))) == moves(chart(line(*many))) + 1


def test_the_picture_is_xml_of_its_own_with_a_description_and_prefixed_ids() -> None:
    svg = chart(line(0.1, 0.2), line(0.2, 0.3, name="a & b <c>"), description='say "hello" & <bye>')
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'say "hello" & <bye>'
    assert root.get("viewBox")
    assert root.get("width") is None
    assert root.get("height") is None
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(ids) == len(set(ids))
    assert all(ident.startswith("acc-") for ident in ids)
    used = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', svg)
    assert used
    assert {a or b for a, b in used} <= set(ids)
    assert "a & b <c>" in words(svg)


def test_it_takes_the_pages_colour_and_font() -> None:
    svg = chart(line(0.1, 0.2), level=0.1)
    assert "currentColor" in svg
    for foreign in ("#010203", "#000000", "font-family", "<style", "<metadata", "<!--", "DejaVu"):
        assert foreign not in svg


def test_it_is_the_same_each_time() -> None:
    assert chart(line(0.1, 0.4, 0.2)) == chart(line(0.1, 0.4, 0.2))


def test_dollars_in_a_name_are_no_mathematics() -> None:
    assert "cost_$x^2$" in words(chart(line(1, 2, name="cost_$x^2$"), line(1, 2)))


def test_one_point_and_equal_points_can_be_drawn() -> None:
    for lines in (line(0.5), line(0.5, 0.5, 0.5), line(0.0), line(1e-30, 1e30)):
        assert "<svg" in chart(lines)


def test_the_horizontal_axis_has_whole_numbers_only() -> None:
    ticks = [word for word in words(chart(line(0.1, 0.2))) if re.fullmatch(r"[\d.]+", word)]
    assert not any("." in tick for tick in ticks if float(tick) >= 1)


def test_every_colour_of_the_page_stands_out_in_its_own_mode() -> None:
    template = (Path(heptane.report.__file__).parent / "page.html.j2").read_text()
    modes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", template, re.DOTALL)
    ]
    assert [set(modes[0]) == set(mode) for mode in modes] == [True, True, True], "light, dark and print define the same"
    for mode in modes:
        for ground in (mode["page"], mode["card"]):
            for name in ("ink", "soft", "good", "bad", "accent"):
                assert contrast(mode[name], ground) >= 4.5, (name, ground)
            for number in range(len(COLOURS)):
                assert contrast(mode[f"series-{number + 1}"], ground) >= 3, (number, ground)
