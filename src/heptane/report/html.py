"""``report.html``: a run on one self-contained page, without network access or other files."""

from __future__ import annotations

import contextlib
import datetime
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.storage import write_text
from heptane.report import format_duration, format_metric, format_value, headline, is_finite, readable_name, section
from heptane.report.curves import Line, line_chart
from heptane.report.examination_view import examination_sections
from heptane.report.overview import key_figures, main_result, subject

if TYPE_CHECKING:
    from heptane.report.examination.examine import Pictures

Pairs = list[tuple[str, str]]
FOR_PROGRAMS = ("preprocess",)  # not for readers: in result.json only


def write_report(result: Mapping[str, Any], path: str | os.PathLike[str], pictures: Pictures | None = None) -> None:
    """Write the page of one run.

    Args:
        result: the content of ``result.json``; any part may be absent, ``None`` or NaN.
        path: where to write; replaced atomically, its folder is created.
        pictures: images of the training data and of the mistakes in ``result``.
    """
    write_page(render_report(result, pictures), path)


def write_page(page: str, path: str | os.PathLike[str]) -> None:
    """Write a page atomically; create its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)


def render_template(template: str, **parts: Any) -> str:
    """Render a template of this folder; everything is escaped except ``Markup``."""
    import jinja2

    house = jinja2.Environment(
        loader=jinja2.PackageLoader("heptane", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page: str = house.get_template(template).render(**parts)
    return page


def render_report(result: Mapping[str, Any], pictures: Pictures | None = None) -> str:
    """The page of one run as HTML."""
    from heptane.report.examination.advice import advise
    from heptane.report.examination.examine import Pictures

    return render_template(
        "run.html.j2",
        title=headline(result),
        headline=subject(result),
        byline=byline(result),
        main=main_result(result),
        key_figures=key_figures(result),
        notes=[str(note) for note in result.get("notes") or []],
        charts=_charts(result),
        seen=examination_sections(result, pictures or Pictures()),
        advice=advise(result),
        uses=_uses(result),
        tricks=[_trick(trick) for trick in result.get("tricks") or [] if trick.get("on") or trick.get("why")],
        plain=bool(result.get("tricks")) and not any(trick.get("on") for trick in result["tricks"]),
        history=_history(result.get("history") or []),
        facts=facts(result),
        command=str(result.get("command") or ""),
    )


def byline(result: Mapping[str, Any]) -> str:
    started = str(result.get("started") or "")
    with contextlib.suppress(ValueError):
        started = datetime.datetime.fromisoformat(started).strftime("%Y-%m-%d %H:%M %Z").strip()
    version = result.get("heptane")
    return " · ".join(part for part in (started, f"heptane {version}" if version else "") if part)


def _uses(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How to use the trained model: pairs of purpose and code."""
    weights = section(result, "files").get("model")
    if not weights:
        return []
    folder = Path(str(weights)).parent
    run = shlex.quote(str(folder))
    if not str(result.get("command") or "").startswith("heptane"):
        return [("Load the weights into the same model:", f"hp.load_weights(model, {str(weights)!r})")]
    return [
        ("Predict for new files:", f"heptane predict --run {run} FILE"),
        ("From Python:", f"import heptane as hp\nrun = hp.load_run({str(folder)!r})\nrun.predict(...)"),
    ]


def _charts(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """Charts of accuracy, loss, learning rate and momentum, where they vary."""
    import markupsafe

    history, schedule = result.get("history") or [], section(result, "schedule")
    target = section(result, "target")
    level = target.get("value") if "accuracy" in str(target.get("metric")) else None
    mixed = any("train_accuracy_mixed" in record for record in history)
    blends = "Training accuracy and loss are measured on mixed samples, which are harder than plain ones." if mixed else ""
    smoothed = any("train_loss_unsmoothed" in record for record in history)
    plain = "Both losses are shown without label smoothing, to be comparable." if smoothed else ""
    captions = {"accuracy": blends, "loss": " ".join(filter(None, [blends, plain]))}
    charts = []
    for kind in ("accuracy", "loss"):
        lines = _lines(history, kind)
        spans = [f"{line.name} {_span(line.y, kind)}" for line in lines if any(map(is_finite, line.y))]
        svg = line_chart(
            lines,
            ident=kind,
            description=f"{kind} by epoch: {'; '.join(spans)}",
            x_label="epoch",
            percent=kind == "accuracy",
            level=level if kind == "accuracy" and is_finite(level) else None,
            log=kind == "loss" and _spans_decades(lines),
        )
        charts.append({"title": kind, "svg": svg, "caption": captions[kind]})
    for key in ("learning_rate", "momentum"):
        steps, values = schedule.get("step") or [], schedule.get(key) or []
        if len({value for value in values if is_finite(value)}) < 2:
            continue  # a constant is listed among the settings
        line = Line(name=readable_name(key), x=steps[: len(values)], y=values[: len(steps)])
        described = f"{readable_name(key)} by step: {_span(values)}"
        svg = line_chart([line], ident=key.replace("_", "-"), description=described, x_label="step")
        charts.append({"title": readable_name(key), "svg": svg, "caption": ""})
    return [{**chart, "svg": markupsafe.Markup(chart["svg"])} for chart in charts if chart["svg"]]


def _spans_decades(lines: Sequence[Line]) -> bool:
    """Whether the values span so much that a linear axis would show a flat line."""
    known = [value for line in lines for value in line.y if value is not None and is_finite(value)]
    return bool(known) and min(known) > 0 and max(known) > 30 * min(known)


def _lines(history: Sequence[Mapping[str, Any]], kind: str) -> list[Line]:
    epochs = [record.get("epoch") for record in history]
    names = {f"train_{kind}": "training", f"train_{kind}_mixed": "training (mixed)", f"valid_{kind}": "validation"}
    if any(f"train_{kind}_unsmoothed" in record for record in history):
        names = {f"train_{kind}_unsmoothed": "training", f"valid_{kind}": "validation"}
    return [Line(name=name, x=epochs, y=[record.get(key) for record in history]) for key, name in names.items()]


def _span(values: Iterable[Any], kind: str = "") -> str:
    """A curve in words, for screen readers: first, last and largest value."""
    known = [value for value in values if is_finite(value)]
    first, last, top = (format_metric(kind, value) for value in (known[0], known[-1], max(known)))
    return f"from {first} to {last}, at most {top}"


def _trick(trick: Mapping[str, Any]) -> dict[str, Any]:
    settings = [(readable_name(key), format_value(value)) for key, value in section(trick, "settings").items()]
    title = readable_name(str(trick.get("title") or trick.get("name") or ""))
    return {"title": title, "on": bool(trick.get("on")), "settings": settings, "why": str(trick.get("why") or "")}


def _history(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table of epochs: a column per key, in order of first appearance."""
    keys = list(dict.fromkeys(key for record in history for key in record))
    rows = [[format_metric(key, record.get(key), 2) for key in keys] for record in history]
    return {"columns": [readable_name(key) for key in keys], "rows": rows}


def facts(result: Mapping[str, Any]) -> list[tuple[str, Pairs]]:
    """The rest of the result as titled lists of name and value."""
    metrics = [(readable_name(key), format_metric(key, value, 2)) for key, value in section(result, "metrics").items()]
    seconds = [(readable_name(key), format_duration(value)) for key, value in section(result, "seconds").items()]
    groups: list[tuple[str, Pairs]] = [("All metrics", metrics), ("Time", seconds)]
    for key in ("data", "model", "settings", "steps", "environment", "files"):
        pairs = [
            (readable_name(name), format_value(value))
            for name, value in section(result, key).items()
            if name not in FOR_PROGRAMS
        ]
        groups.append((readable_name(key).capitalize(), pairs))
    return [(title, pairs) for title, pairs in groups if pairs]
