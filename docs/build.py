"""Generate the pages of the tricks, the recipes and the measurements, and the figures of the README.

``python docs/build.py`` writes them from docstrings and result files. ``tests/test_docs.py`` checks that they are current.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import sys
from dataclasses import fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from measurements import ROOT, all_figures, link, read, transfer_measured
from result_pages import gpu, markdown, papers, peers, recipes, scaling

from heptane.cli.tricks import TEXTS
from heptane.race.statistics import student_quantile
from heptane.session.settings import field_docs
from heptane.tricks import KINDS

EXAMPLES = {
    "data_parallel": ["data_parallel"],
    "lr_scaling": ["scale_lr", "warmup"],
    "cyclical": ["one_cycle", "triangular"],
    "mixup": ["mixup_batch"],
    "label_smoothing": ["smooth_labels", "soft_cross_entropy"],
    "transfer": ["load_weights", "freeze", "param_groups", "train_mode"],
    "mixed_precision": ["precision"],
}


def pages() -> dict[Path, str]:
    """All generated files with their content."""
    found = {ROOT / "docs" / "tricks" / f"{name}.md": page(name) for name in KINDS}
    for path, mark, content in (
        (ROOT / "README.md", "race", race_caption()),
        (ROOT / "README.md", "seven", seven()),
        (ROOT / "docs" / "scaling.md", "scaling", scaling()),
    ):
        head, _, rest = found.get(path, path.read_text()).partition(f"<!-- {mark} -->")
        _, _, tail = rest.partition(f"<!-- /{mark} -->")
        found[path] = f"{head}<!-- {mark} -->\n{content}<!-- /{mark} -->{tail}"
    made = (("papers", papers()), ("peers", peers()), ("gpu", gpu()))
    found |= {ROOT / "docs" / f"{name}.md": text for name, text in made if text}
    found[ROOT / "docs" / "recipes.md"] = recipes()
    found[ROOT / "docs" / "measured.md"] = all_figures()
    found[ROOT / "src" / "heptane" / "cli" / "measured.json"] = json.dumps(tricks_measured(), indent=1) + "\n"
    return found


def tricks_measured() -> dict[str, Any]:
    """The measured effect and cost of each trick, for the README and ``heptane tricks``."""
    about, rows = [], {}
    if race := read("tricks"):
        plain = next(arm for arm in race["arms"] if arm["name"] == "plain")
        for effect in race["effects"]:
            alone = next((arm for arm in race["arms"] if list(arm["tricks"]) == [effect["trick"]]), None)
            rows[effect["trick"]] = {
                "step": step_ratio(alone, plain) if alone else None,
                "words": effect_words(effect),
                "file": "tricks.json",
            }
        for missing in race["not_raced"]:
            why = missing["why"].split("; ")[-1].replace("bf16 left out: this processor has", "the CPU of this race has")
            rows[missing["trick"]] = {"step": None, "words": f"not measured: {why}", "file": "tricks.json"}
        where, seeds = race["environment"], len(race["plan"]["seeds"])
        about.append(
            f"Measured: speed-up to {race['target']['value']:.0%} validation accuracy, averaged over plain training with "
            "and without the trick, and all tricks with and without it; "
            f"{race['model']['name']} on {race['data']['name']}, {seeds} seeds, {where['threads']} CPU "
            f"threads, {where['cpu']} (benchmarks/results/tricks.json). Not settled: the interval includes 1x."
        )
    if found := read("transfer_time"):
        ratio, seeds = found["times_faster"], len(found["seeds"])
        rows["transfer"] = {
            "step": None,
            "words": f"{ratio['median']:.0f}x ({ratio['min']:.0f}x to {ratio['max']:.0f}x) to the best accuracy of 10 "
            "epochs from scratch on 1,000 images; all but the last block frozen",
            "file": "transfer_time.json",
        }
        about.append(f"Transfer: EfficientNet-lite0, {seeds} seeds (benchmarks/results/transfer_time.json).")
    if found := read("scaling"):
        rows["data_parallel"] = {
            "step": None,
            "words": f"{found['throughput_ratio']:.2f}x with 2 processes on one 2-core CPU",
            "file": "scaling.json",
        }
        about.append("Data parallel: samples per second, small ResNet (benchmarks/results/scaling.json).")
    return {"about": [*about, "On your data: heptane race"], "tricks": rows}


def effect_words(effect: dict[str, Any]) -> str:
    """The speed-up by one trick with its interval, or that it is not settled."""
    low, high = effect["interval"]
    between = f"{low:.2f}x to {high:.2f}x"
    if effect["verdict"] in ("helps", "hurts"):
        return f"{effect['estimate']:.2f}x ({between})"
    return f"{effect['verdict']} ({between})"


def step_ratio(arm: dict[str, Any], plain: dict[str, Any]) -> list[float] | None:
    """Step time of ``arm`` over that of ``plain``: the geometric mean over paired seeds, with a 95% interval by Student's t.

    None below two seeds.
    """
    seconds = [
        {
            run["seed"]: run["clocks"]["train"] / run["steps"]["done"]
            for run in runs
            if run["clocks"] and run["steps"]["done"]
        }
        for runs in (arm["runs"], plain["runs"])
    ]
    logs = [math.log(seconds[0][seed] / seconds[1][seed]) for seed in seconds[0] if seed in seconds[1]]
    if len(logs) < 2:
        return None
    half = student_quantile(0.05, len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    return [round(math.exp(fmean(logs) + side * half), 2) for side in (0, -1, 1)]


def page(name: str) -> str:
    """The page of one trick: its docstring, settings, examples and measurements."""
    kind, flag = KINDS[name], name.replace("_", "-")
    heading, _, summary = _title(name).partition(": ")
    lines = [f"# {heading}", "", f"{summary[:1].upper()}{summary[1:]}", ""]
    for heading, text in _sections(name).items():
        lines += [f"## {heading}", "", f"```\n{text}\n```" if heading == "Equation" else markdown(text), ""]
    lines += ["## Settings", "", f"`hp.Tricks({name}=hp.{kind.__name__}(...))`, or flags of `heptane train`:", ""]
    lines += ["| field | flag | default | |", "|---|---|---|---|"]
    docs = field_docs(kind)
    for field in fields(kind):
        text = docs[field.name].replace("|", "\\|")
        lines.append(f"| `{field.name}` | `--{flag}.{field.name.replace('_', '-')}` | `{field.default!r}` | {text} |")
    lines += ["", "## In your own loop", ""]
    for example in EXAMPLES[name]:
        lines += ["```python", (ROOT / "examples" / f"{example}.py").read_text().rstrip(), "```", ""]
    measured = MEASURED.get(name)
    if measured and (text := measured()):
        lines += ["## Measured", "", text, ""]
    return "\n".join(lines)


def _title(name: str) -> str:
    """The first paragraph of a trick's module docstring, on one line, without markup."""
    text = _docstring(name).split("\n\n", 1)[0]
    return " ".join(re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "").split())


def _sections(name: str) -> dict[str, str]:
    """The sections of a trick's module docstring by heading."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in _docstring(name).partition("\n\n")[2].splitlines():
        if line and not line.startswith(" "):
            heading = line
        elif heading:
            found.setdefault(heading, []).append(line.strip())
    return {heading: "\n".join(lines).strip() for heading, lines in found.items()}


def _docstring(name: str) -> str:
    return inspect.cleandoc(sys.modules[KINDS[name].__module__].__doc__ or "")


SHOWN = {  # arguments in the README's table, without which a trick does little
    "data_parallel": "workers=2",
    "lr_scaling": "reference_batch=32",
    "transfer": 'weights="efficientnet-lite0"',
}


def seven() -> str:
    """The README's table: what each trick does, what it was measured to bring, and its name in ``hp.Tricks``."""
    found = tricks_measured()
    lines = ["| trick | what it does | measured | `hp.Tricks(...)` |", "|---|---|---|---|"]
    for name, kind in KINDS.items():
        label = name.replace("_", " ").replace("lr ", "learning-rate ").replace("cyclical", "cyclical learning rate")
        words = found["tricks"][name]["words"] if name in found["tricks"] else "not measured"
        cells = (
            f"[{label}](docs/tricks/{name}.md)",
            TEXTS[name][0],
            words,
            f"`{name}=hp.{kind.__name__}({SHOWN.get(name, '')})`",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{line}  " for line in found["about"][:-1])]).rstrip() + "\n"


def race_caption() -> str:
    """The caption of the README's picture."""
    race = read("tricks")
    if not race or race["speedup"]["estimate"] is None:
        return ""
    found, machine = race["speedup"], race["environment"]
    low, high = found["interval"]
    speedup = f"{found['estimate']:.2f}x ({found['confidence']:.0%} interval {low:.2f}x to {high:.2f}x"
    task = f"Task: {race['model']['name']} on {race['data']['name']}"
    where = f"{machine['threads']} CPU threads, {machine['cpu']}"
    return (
        f"Speed-up to {race['target']['value']:.0%} validation accuracy with {len(race['effects'])} tricks (1cycle to "
        f"{race['plan']['peak']:g}x the plain learning rate), over the same loop without tricks:\n"
        f"**{speedup}, {found['num_seeds']} seeds)**. {task}, {where} ({link('tricks')}).\n"
    )


def picture() -> None:
    """Draw the README's picture from the result file of the race."""
    from heptane.race.pictures import accuracy_against_time

    if race := read("tricks"):
        path = ROOT / "docs" / "pictures" / "race.svg"
        path.parent.mkdir(exist_ok=True)
        both = [arm for arm in race["arms"] if arm["name"] in ("plain", "all")]
        path.write_text(accuracy_against_time({**race, "arms": both}).replace("<svg ", '<svg style="background: white" ', 1))


MEASURED: dict[str, Any] = {"transfer": transfer_measured}


if __name__ == "__main__":
    for path, content in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    picture()
