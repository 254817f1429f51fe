"""``report.html``: a run on one page that opens anywhere, without a network or another file."""

from __future__ import annotations

import contextlib
import datetime
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.report import duration, figure, headline, is_finite, label, measure, section
from heptane.report.curves import Line, line_chart
from heptane.report.first import glance, hero, subject
from heptane.report.results import examination

if TYPE_CHECKING:
    from heptane.report.examination.look import Pictures

Pairs = list[tuple[str, str]]
FOR_PROGRAMS = ("preprocess",)  # what a page leaves to result.json


def write_report(result: Mapping[str, Any], path: str | os.PathLike[str], pictures: Pictures | None = None) -> None:
    """Write the page of one run.

    Args:
        result: the content of ``result.json``; any part may be absent, ``None`` or not a number.
        path: where to write; the file is replaced in one step, and its folder is made.
        pictures: of the training data, and of the mistakes that ``result`` names.
    """
    write_page(render(result, pictures), path)


def write_page(page: str, path: str | os.PathLike[str]) -> None:
    """Write a page in one step, and make its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # A folder's name that is not valid UTF-8 arrives with lone surrogates, which no file can hold.
    draft.write_text(page, encoding="utf-8", errors="replace")
    draft.replace(path)


def fill(template: str, **parts: Any) -> str:
    """A template of this folder, filled; everything is escaped but what is marked up already."""
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


def render(result: Mapping[str, Any], pictures: Pictures | None = None) -> str:
    """The page of one run as text."""
    from heptane.report.examination.advice import advise
    from heptane.report.examination.look import Pictures

    return fill(
        "run.html.j2",
        title=headline(result),
        headline=subject(result),
        byline=byline(result),
        hero=hero(result),
        glance=glance(result),
        notes=[str(note) for note in result.get("notes") or []],
        charts=_charts(result),
        seen=examination(result, pictures or Pictures()),
        advice=advise(result),
        uses=_uses(result),
        tricks=[_trick(trick) for trick in _told(result.get("tricks") or [])],
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
    """How to use the trained model: what for, and the words to type."""
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
    """Accuracy, loss, learning rate and momentum, as far as there is something to draw."""
    import markupsafe

    history, schedule = result.get("history") or [], section(result, "schedule")
    target = section(result, "target")
    level = target.get("value") if "accuracy" in str(target.get("metric")) else None
    mixed = any("train_accuracy_mixed" in record for record in history)
    blends = "The training curve is measured on mixup's blends, which are harder than plain samples." if mixed else ""
    smoothed = any("train_loss_unsmoothed" in record for record in history)
    plain = "Both are without label smoothing, so that they can be compared." if smoothed else ""
    captions = {"accuracy": blends, "loss": " ".join(filter(None, [blends, plain]))}
    charts = []
    for kind in ("accuracy", "loss"):
        svg = line_chart(
            _lines(history, kind),
            ident=kind,
            description=_describe(history, kind),
            x_label="epoch",
            percent=kind == "accuracy",
            level=level if kind == "accuracy" and is_finite(level) else None,
            log=kind == "loss" and _spans_decades(_lines(history, kind)),
        )
        charts.append({"title": kind, "svg": svg, "caption": captions[kind]})
    for key in ("learning_rate", "momentum"):
        steps, values = schedule.get("step") or [], schedule.get(key) or []
        if len({value for value in values if is_finite(value)}) < 2:
            continue  # a constant is a setting, and stands among them
        line = Line(name=label(key), x=steps[: len(values)], y=values[: len(steps)])
        described = f"{label(key)} by step: {_span(values)}"
        svg = line_chart([line], ident=key.replace("_", "-"), description=described, x_label="step")
        charts.append({"title": label(key), "svg": svg, "caption": ""})
    return [{**chart, "svg": markupsafe.Markup(chart["svg"])} for chart in charts if chart["svg"]]


def _spans_decades(lines: Sequence[Line]) -> bool:
    """Whether curves are so steep at first that on a linear axis all that matters would be one flat line."""
    known = [value for line in lines for value in line.y if value is not None and is_finite(value)]
    return bool(known) and min(known) > 0 and max(known) > 30 * min(known)


def _lines(history: Sequence[Mapping[str, Any]], kind: str) -> list[Line]:
    epochs = [record.get("epoch") for record in history]
    names = {f"train_{kind}": "training", f"train_{kind}_mixed": "training (mixed)", f"valid_{kind}": "validation"}
    if any(f"train_{kind}_unsmoothed" in record for record in history):
        names = {f"train_{kind}_unsmoothed": "training", f"valid_{kind}": "validation"}
    return [Line(name=name, x=epochs, y=[record.get(key) for record in history]) for key, name in names.items()]


def _describe(history: Sequence[Mapping[str, Any]], kind: str) -> str:
    spans = [f"{line.name} {_span(line.y, kind)}" for line in _lines(history, kind) if any(map(is_finite, line.y))]
    return f"{kind} by epoch: {'; '.join(spans)}"


def _span(values: Iterable[Any], kind: str = "") -> str:
    """How a curve begins and ends, and its top: what a listener needs of a picture."""
    known = [value for value in values if is_finite(value)]
    if not known:
        return "no values"
    first, last, top = (measure(kind, value) for value in (known[0], known[-1], max(known)))
    return f"from {first} to {last}, at most {top}"


def _told(tricks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that were on, and those that were off for a reason."""
    return [trick for trick in tricks if trick.get("on") or trick.get("why")]


def _trick(trick: Mapping[str, Any]) -> dict[str, Any]:
    settings = [(label(key), figure(value)) for key, value in section(trick, "settings").items()]
    title = label(str(trick.get("title") or trick.get("name") or ""))
    return {"title": title, "on": bool(trick.get("on")), "settings": settings, "why": str(trick.get("why") or "")}


def _history(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every key that any epoch recorded, a column each, in the order of their first appearance."""
    keys = list(dict.fromkeys(key for record in history for key in record))
    rows = [[measure(key, record.get(key), 2) for key in keys] for record in history]
    return {"columns": [label(key) for key in keys], "rows": rows}


def facts(result: Mapping[str, Any]) -> list[tuple[str, Pairs]]:
    """The rest of the result as titled lists of name and value, empty ones left out."""
    metrics = [(label(key), measure(key, value, 2)) for key, value in section(result, "metrics").items()]
    seconds = [(label(key), duration(value)) for key, value in section(result, "seconds").items()]
    groups: list[tuple[str, Pairs]] = [("All measures", metrics), ("Clocks", seconds)]
    for key in ("data", "model", "settings", "steps", "environment", "files"):
        pairs = [(label(name), figure(value)) for name, value in section(result, key).items() if name not in FOR_PROGRAMS]
        groups.append((label(key).capitalize(), pairs))
    return [(title, pairs) for title, pairs in groups if pairs]
